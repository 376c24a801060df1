//! What can go wrong with an interface.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::error::{CniError, Code};
use crate::netns::NetnsError;

/// Why an interface could not be set up or looked at. Each text contains its cause, which is therefore
/// no `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(io::Error),
    /// The socket failed, or its answer cannot be read.
    #[error("netlink does not work: cannot {action}: {why}")]
    Socket {
        /// What was being done.
        action: &'static str,
        /// What happened.
        why: String,
    },
    /// The kernel said no.
    #[error("cannot {what}: {cause}{}{detail}", if detail.is_empty() { "" } else { ": " })]
    Refused {
        /// What was asked for.
        what: String,
        /// The kernel's error number.
        cause: io::Error,
        /// The kernel's own words, if it had any.
        detail: String,
    },
    /// There is no such interface.
    #[error("there is no interface {name}")]
    NoSuchLink {
        /// Its name.
        name: String,
    },
    /// Another interface already has the route.
    #[error("the route to {destination} is already taken by interface {device}")]
    RouteTaken {
        /// Where it leads.
        destination: IpNetwork,
        /// The interface that has it.
        device: String,
    },
    /// An interface has an address, for which the kernel takes no packets.
    #[error(
        "{ifname} has the address {address}, but after {} ms the kernel still has no local route for it; \
         see whether something in the container deletes routes, and try again",
        waited.as_millis()
    )]
    NotLocal {
        /// The interface.
        ifname: String,
        /// Its address.
        address: IpAddr,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A kernel setting cannot be changed.
    #[error("cannot set {} to {value}: {cause}{}", path.display(), sysctl_advice(cause))]
    Sysctl {
        /// The file below `/proc/sys`.
        path: PathBuf,
        /// The value.
        value: String,
        /// The kernel's answer.
        cause: io::Error,
    },
}

impl LinkError {
    /// The kernel's error number, if the kernel said no to a request.
    pub fn refusal(&self) -> Option<i32> {
        match self {
            Self::Refused { cause, .. } => cause.raw_os_error(),
            Self::Netns(_)
            | Self::Open(_)
            | Self::Socket { .. }
            | Self::NoSuchLink { .. }
            | Self::RouteTaken { .. }
            | Self::NotLocal { .. }
            | Self::Sysctl { .. } => None,
        }
    }
}

/// What a runtime is told. A namespace that is gone means that the container is gone, and that there is
/// nothing to clean up: who answers with this has to have released what the attachment held.
impl From<LinkError> for CniError {
    fn from(error: LinkError) -> Self {
        let (code, msg) = match &error {
            LinkError::Netns(netns) if netns.is_missing() => {
                (Code::UNKNOWN_CONTAINER, "the container's network namespace is gone")
            }
            LinkError::Netns(_)
            | LinkError::Open(_)
            | LinkError::Socket { .. }
            | LinkError::Refused { .. }
            | LinkError::NoSuchLink { .. }
            | LinkError::RouteTaken { .. }
            | LinkError::NotLocal { .. }
            | LinkError::Sysctl { .. } => {
                (Code::ATTACH_FAILED, "the container's interface cannot be set up")
            }
        };
        Self::new(code, msg).with_details(error.to_string())
    }
}

fn sysctl_advice(cause: &io::Error) -> &'static str {
    if cause.kind() == io::ErrorKind::ReadOnlyFilesystem {
        ". /proc/sys is mounted read-only, as container runtimes do; run privileged, or mount it \
         writable"
    } else if cause.kind() == io::ErrorKind::NotFound {
        ". Is IPv6 switched off in this kernel?"
    } else {
        ""
    }
}

/// Takes one of the kernel's refusals for success.
pub(super) fn unless(done: Result<(), LinkError>, errno: i32) -> Result<(), LinkError> {
    match done {
        Err(error) if error.refusal() == Some(errno) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = || io::Error::from_raw_os_error(libc::ENOSPC);
        let errors = [
            LinkError::Open(cause()),
            LinkError::Refused { what: "x".into(), cause: cause(), detail: String::new() },
            LinkError::Sysctl { path: "/x".into(), value: "1".into(), cause: cause() },
            LinkError::Netns(NetnsError::Io { action: "open", path: "/x".into(), cause: cause() }),
        ];
        for error in errors {
            assert_eq!(error.to_string().matches("No space left").count(), 1, "{error}");
            assert!(std::error::Error::source(&error).is_none(), "{error}");
        }
    }

    #[test]
    fn a_runtime_learns_whether_the_container_is_gone() {
        let gone = LinkError::Netns(NetnsError::Missing { path: "/run/netns/x".into() });
        let error = CniError::from(gone);
        assert_eq!(error.code, Code(3));
        assert!(error.details.contains("/run/netns/x"), "{error}");
        let other = LinkError::NoSuchLink { name: "eth0".into() };
        assert_eq!(CniError::from(other).code, Code(102));
    }
}
