//! Network namespaces: look at one, run something in one, make one.
//!
//! A namespace belongs to a thread. Everything here that must be in another namespace gets a thread of
//! its own, which ends with the work: no thread of a pool ever changes its namespace, and there is
//! nothing to change back.
//!
//! Unsafe, because `unshare` and two `ioctl`s have no safe wrapper in the crates that we use.
#![allow(unsafe_code)]

use std::ffi::c_ulong;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Magic number of the file system of namespaces (linux/magic.h, `NSFS_MAGIC`).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Asks for a namespace's kind (linux/nsfs.h, `NS_GET_NSTYPE`, `_IO(0xb7, 3)`).
const NS_GET_NSTYPE: c_ulong = 0xb703;

/// What is being done when a thread moves into a namespace.
const ENTER: &str = "enter";

/// Why a namespace cannot be used. Each variant names it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetnsError {
    /// There is nothing at the path: the container is gone, or the path is of another mount namespace.
    #[error("there is no network namespace at {}: the path does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// There is something else at the path.
    #[error("{} is not a network namespace", path.display())]
    NotANamespace {
        /// The path.
        path: PathBuf,
    },
    /// We may not.
    #[error(
        "not permitted to {action} the network namespace {}: this needs root, or CAP_SYS_ADMIN in the \
         user namespace that owns it",
        path.display()
    )]
    NotPermitted {
        /// What was being done.
        action: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A system call failed in another way.
    #[error("cannot {action} the network namespace {}: {cause}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
}

impl NetnsError {
    /// Whether the namespace is gone, as opposed to being unusable or out of reach for now: nothing is at
    /// the path, or something else is. What was attached there may be released.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::NotANamespace { .. })
    }

    fn new(action: &'static str, path: &Path, cause: io::Error) -> Self {
        let path = path.to_owned();
        let kind = cause.kind();
        if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            Self::Missing { path }
        } else if kind == io::ErrorKind::PermissionDenied {
            Self::NotPermitted { action, path }
        } else if cause.raw_os_error() == Some(libc::EINVAL) && action == ENTER {
            // setns(2): the descriptor does not refer to a network namespace.
            Self::NotANamespace { path }
        } else {
            Self::Io { action, path, cause }
        }
    }
}

/// A network namespace that is open, and stays in existence while this does.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    /// For messages.
    path: PathBuf,
}

/// Which namespace it is: equal for two paths of the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The device number of the namespace file system.
    pub device: u64,
    /// The inode number. The kernel may give it again once the namespace is gone.
    pub inode: u64,
}

impl Netns {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// When there is none, or it is not a network namespace, or we may not.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|source| NetnsError::new("open", path, source))?;
        // A leftover of a namespace that is gone is a plain file.
        if !is_network_namespace(&file).map_err(|source| NetnsError::new("open", path, source))? {
            return Err(NetnsError::NotANamespace { path: path.to_owned() });
        }
        Ok(Self { fd: file.into(), path: path.to_owned() })
    }

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes a new namespace. It lives while it is open, or [pinned](Self::pin), or used.
    ///
    /// # Errors
    /// When we may not.
    pub fn create() -> Result<Self, NetnsError> {
        let path = Path::new("(new)");
        on_own_thread(path, || {
            // SAFETY: leaves the namespace of this thread only, which nobody else uses, and touches
            // neither memory nor file descriptors (CLONE_FILES is not among the flags).
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|errno| NetnsError::new("create", path, errno.into()))?;
            Self::current()
        })
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which namespace it is.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn identity(&self) -> Result<Identity, NetnsError> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(|errno| NetnsError::new("look at", &self.path, errno.into()))?;
        Ok(Identity { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it.
    ///
    /// What is opened there (sockets, TAPs, netlink) stays in that namespace and can be used from
    /// anywhere afterwards. Paths below `/proc/sys/net`, read from inside, are the namespace's own.
    ///
    /// # Errors
    /// When the namespace cannot be entered. A panic in `work` is passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        on_own_thread(&self.path, || {
            rustix::thread::move_into_link_name_space(
                self.fd.as_fd(),
                Some(LinkNameSpaceType::Network),
            )
            .map_err(|errno| NetnsError::new(ENTER, &self.path, errno.into()))?;
            Ok(work())
        })
    }

    /// Gives the namespace a name in the file system, as `ip netns add` does, so that it lives without
    /// a process. The file is created; [`unpin`] removes it.
    ///
    /// # Errors
    /// When the file exists, or we may not mount.
    pub fn pin(&self, path: &Path) -> Result<(), NetnsError> {
        let failed = |source| NetnsError::new("pin", path, source);
        File::create_new(path).map_err(failed)?;
        // Through /proc, because the kernel binds files, not file descriptors.
        let source = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let bound = rustix::mount::mount_bind(source.as_str(), path);
        if let Err(errno) = bound {
            // The error that matters is the mount's.
            let _ = std::fs::remove_file(path);
            return Err(failed(errno.into()));
        }
        Ok(())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Removes what [`Netns::pin`] made. It is not an error when nothing is there.
///
/// # Errors
/// When it cannot be unmounted or removed.
pub fn unpin(path: &Path) -> Result<(), NetnsError> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // EINVAL: a plain file, on which nothing is mounted.
        Ok(()) | Err(rustix::io::Errno::INVAL) => {}
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(NetnsError::new("unpin", path, errno.into())),
    }
    std::fs::remove_file(path).map_err(|source| NetnsError::new("unpin", path, source))
}

/// Runs `work` in the namespace at `path`; see [`Netns::run`].
///
/// # Errors
/// When the namespace cannot be opened or entered.
pub fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    Netns::open(path)?.run(work)
}

/// Which namespace is at `path`.
///
/// # Errors
/// When there is none.
pub fn identity(path: &Path) -> Result<Identity, NetnsError> {
    Netns::open(path)?.identity()
}

/// Whether there is a network namespace at `path`.
pub fn is_netns(path: &Path) -> bool {
    Netns::open(path).is_ok()
}

/// Makes this mount namespace private, so that pins made later do not spread to others.
///
/// # Errors
/// When we may not mount.
pub fn make_mounts_private() -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Propagation;
    rustix::mount::mount_change("/", Propagation::PRIVATE | Propagation::REC)?;
    Ok(())
}

/// Mounts an empty in-memory directory at `path`, such as a private `/run/netns`.
///
/// # Errors
/// When we may not mount.
pub fn mount_tmpfs(path: &Path) -> io::Result<()> {
    rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, None)?;
    Ok(())
}

fn is_network_namespace(file: &File) -> io::Result<bool> {
    let file_system = rustix::fs::fstatfs(file)?;
    if u64::try_from(file_system.f_type) != Ok(NSFS_MAGIC) {
        return Ok(false);
    }
    // SAFETY: the descriptor is open for the length of the call, and this request takes no argument and
    // writes nothing; its answer is the return value.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind == libc::CLONE_NEWNET) }
}

fn on_own_thread<T: Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, NetnsError> + Send,
) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let started = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work);
        let thread =
            started.map_err(|source| NetnsError::new("start a thread for", path, source))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_no_network_namespace_are_named() {
        let missing = Netns::open(Path::new("/run/netns/cni-no-such-namespace")).unwrap_err();
        assert!(matches!(missing, NetnsError::Missing { .. }));
        assert!(missing.is_missing());
        assert!(missing.to_string().contains("cni-no-such-namespace"), "{missing}");

        // A plain file, a directory, and a namespace of another kind.
        for path in ["/proc/self/status", "/", "/proc/self/ns/mnt"] {
            let error = Netns::open(Path::new(path)).unwrap_err();
            assert!(matches!(error, NetnsError::NotANamespace { .. }), "{path}: {error}");
            assert!(!is_netns(Path::new(path)));
        }
    }

    #[test]
    fn only_what_is_not_there_is_missing() {
        let error = |action, errno| {
            NetnsError::new(action, Path::new("/run/netns/x"), io::Error::from_raw_os_error(errno))
        };
        for errno in [libc::ENOENT, libc::ENOTDIR] {
            assert!(error("open", errno).is_missing(), "{}", error("open", errno));
        }
        assert!(error(ENTER, libc::EINVAL).is_missing());
        for errno in [
            libc::EMFILE,
            libc::ENFILE,
            libc::EACCES,
            libc::EPERM,
            libc::ENOMEM,
            libc::EAGAIN,
            libc::EIO,
        ] {
            for action in ["open", ENTER, "start a thread for"] {
                let error = error(action, errno);
                assert!(!error.is_missing(), "{error}");
                assert!(error.to_string().contains("/run/netns/x"), "{error}");
            }
        }
        assert!(!error("open", libc::EINVAL).is_missing());

        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Netns::open(&file.path().join("below")).unwrap_err().is_missing());
        assert!(Netns::open(file.path()).unwrap_err().is_missing());
    }

    #[test]
    fn the_own_namespace_is_one() {
        let path = Path::new("/proc/self/ns/net");
        assert!(is_netns(path));
        let current = Netns::current().unwrap();
        assert_eq!(current.identity().unwrap(), identity(path).unwrap());
    }
}
