//! Network namespaces that have a path.
//!
//! A namespace lives as long as something refers to it. Here that is a bind mount of its file under
//! `/proc` onto a file in the lab's directory: the form in which container runtimes hand namespaces to CNI
//! plugins, and which `nsenter --net=PATH` takes.

// `unshare` has no safe form: with CLONE_FILES it can take file descriptors away from other threads.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// A network namespace with a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    path: PathBuf,
}

impl Namespace {
    /// Makes a new namespace and binds it to `path`, which must not exist.
    ///
    /// # Errors
    /// When the kernel refuses the namespace or the mount; nothing is left behind then.
    pub fn create(path: impl Into<PathBuf>) -> io::Result<Self> {
        let namespace = Self { path: path.into() };
        File::create_new(&namespace.path)?;
        let bound = on_own_thread(|| {
            // SAFETY: CLONE_FILES is not among the flags, so no file descriptor table is split.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
            Ok(mount_bind("/proc/thread-self/ns/net", &namespace.path)?)
        });
        if let Err(error) = bound {
            fs::remove_file(&namespace.path)?;
            return Err(error);
        }
        Ok(namespace)
    }

    /// The namespace that is bound to `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is bound.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it, to hand to the kernel.
    ///
    /// # Errors
    /// When the path is gone.
    pub fn open(&self) -> io::Result<OwnedFd> {
        Ok(File::open(&self.path)?.into())
    }

    /// Runs `work` inside, on a thread of its own. Sockets opened there stay in the namespace and can be
    /// used from any thread afterwards.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let fd = self.open()?;
        on_own_thread(|| {
            move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })
    }

    /// Makes `command` start inside. With `die_with_parent`, it is killed when the thread that starts it
    /// ends, however that happens.
    ///
    /// # Errors
    /// When the path is gone.
    pub fn start_inside(&self, command: &mut Command, die_with_parent: bool) -> io::Result<()> {
        let fd = self.open()?;
        let enter = move || {
            if die_with_parent {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            }
            move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe functions may run; the closure makes two
        // system calls, and neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }

    /// A number that no other namespace of the running kernel has.
    ///
    /// # Errors
    /// When the path is gone.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.path)?.ino())
    }

    /// Unbinds it. The kernel frees it once the last process in it has ended. It is no error if it is
    /// not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self) -> io::Result<()> {
        match unmount(&self.path, UnmountFlags::DETACH) {
            // EINVAL: a file that is no mount point. EPERM: an ordinary user whose mount namespace is gone,
            // and with it the mount; if it is not, then removing the file fails and says so.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {
                fs::remove_file(&self.path)
            }
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes `dir` a mount of its own from which mounts do not spread: where `/` is shared, as systemd makes
/// it, every other mount namespace would hold the lab's namespaces alive.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn make_private(dir: &Path) -> io::Result<()> {
    mount_bind(dir, dir)?;
    mount_change(dir, MountPropagationFlags::PRIVATE)?;
    Ok(())
}

/// Undoes [`make_private`]. It is no error if it was not done.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn unmake_private(dir: &Path) -> io::Result<()> {
    match unmount(dir, UnmountFlags::DETACH) {
        Ok(())
        | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT | rustix::io::Errno::PERM) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
