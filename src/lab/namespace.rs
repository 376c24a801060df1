//! Network namespaces that have a path.
//!
//! A namespace lives as long as something refers to it. Here that is a bind mount of its file under
//! `/proc` onto a file in the lab's directory: the form in which container runtimes hand namespaces to CNI
//! plugins, and which `nsenter --net=PATH` takes.

// `pre_exec`, by which a program starts in a namespace, has no safe form: it runs between fork and exec.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cni::netns::{self, Netns, NetnsError};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

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
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, NetnsError> {
        let namespace = Self { path: path.into() };
        Netns::create()?.pin(&namespace.path)?;
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

    /// Runs `work` inside, on a thread of its own. Sockets opened there stay in the namespace and can be
    /// used from any thread afterwards.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        netns::run_in(&self.path, work).map_err(io::Error::other)
    }

    /// Makes `command` start inside. With `die_with_parent`, it is killed when the thread that starts it
    /// ends, however that happens.
    ///
    /// # Errors
    /// When the path is gone.
    pub fn start_inside(
        &self,
        command: &mut Command,
        die_with_parent: bool,
    ) -> Result<(), NetnsError> {
        let netns = Netns::open(&self.path)?;
        let enter = move || {
            if die_with_parent {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            }
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe functions may run; the closure makes two
        // system calls, and neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }

    /// Makes `command` see `file` as its `/etc/resolv.conf`, as in a container; nothing else sees it there.
    ///
    /// # Errors
    /// When the path has a zero byte.
    pub fn show_resolv_conf(command: &mut Command, file: &Path) -> io::Result<()> {
        let file = CString::new(file.as_os_str().as_bytes())?;
        let show = move || {
            // SAFETY: the child has one thread, and shares its directories with nobody.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
            mount_change(c"/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
            mount_bind(file.as_c_str(), c"/etc/resolv.conf")?;
            Ok(())
        };
        // SAFETY: between fork and exec only async-signal-safe functions may run; the closure makes three
        // system calls, and neither allocates nor locks.
        unsafe { command.pre_exec(show) };
        Ok(())
    }

    /// A number that no other namespace of the running kernel has.
    ///
    /// # Errors
    /// When the path is gone.
    pub fn inode(&self) -> Result<u64, NetnsError> {
        Ok(netns::identity(&self.path)?.inode)
    }

    /// Unbinds it. The kernel frees it once the last process in it has ended. It is no error if it is
    /// not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self) -> io::Result<()> {
        match netns::unpin(&self.path) {
            Ok(()) => Ok(()),
            // An ordinary user whose mount namespace is gone, and with it the mount. If it is not, then
            // removing the file fails and says so.
            Err(NetnsError::NotPermitted { .. }) => fs::remove_file(&self.path),
            Err(error) => Err(io::Error::other(error)),
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
