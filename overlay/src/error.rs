//! What can go wrong on the way to the other nodes.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::seal::FileError;

/// An operation of this crate failed.
///
/// Each text is complete: it contains its cause, which is therefore no `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel gave no random numbers.
    #[error("cannot read random numbers from the kernel: {cause}")]
    Random {
        /// What the kernel said.
        cause: io::Error,
    },

    /// A state file could not be read.
    #[error("cannot read {}: {cause}", path.display())]
    ReadState {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },

    /// A state file could not be written.
    #[error("cannot write {}: {cause}", path.display())]
    WriteState {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },

    /// The file with the node's identity holds something else.
    #[error(
        "{} does not hold a node id (32 hexadecimal digits): restore it from a backup, or remove it, \
         and this node joins as a new one with a new lease",
        path.display()
    )]
    CorruptNodeId {
        /// The file.
        path: PathBuf,
    },

    /// The file with what gossip remembers is damaged.
    #[error(
        "{} is damaged ({why}): restore it from a backup, or remove it, and this node asks the cluster \
         for what it forgot",
        path.display()
    )]
    CorruptState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },

    /// The keys of the network could not be read.
    #[error(transparent)]
    Keys(Box<FileError>),

    /// The gossip socket could not be opened.
    #[error("cannot listen for gossip on {address}: {cause}")]
    BindGossip {
        /// The address and port.
        address: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },

    /// No underlay address could be chosen.
    #[error(
        "cannot choose the underlay address: {why}; tried {tried}; set it in the configuration"
    )]
    NoUnderlay {
        /// What was looked for.
        why: String,
        /// What was tried, for people.
        tried: String,
    },

    /// The interfaces of the machine could not be read.
    #[error("cannot read the network interfaces: {cause}")]
    ReadInterfaces {
        /// What the kernel said.
        cause: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = || io::Error::from(io::ErrorKind::StorageFull);
        let errors = [
            Error::Random { cause: cause() },
            Error::ReadState { path: "/x".into(), cause: cause() },
            Error::WriteState { path: "/x".into(), cause: cause() },
            Error::BindGossip { address: ([192, 0, 2, 1], 7946).into(), cause: cause() },
            Error::ReadInterfaces { cause: cause() },
        ];
        for error in errors {
            assert_eq!(error.to_string().matches(&cause().to_string()).count(), 1, "{error}");
            assert!(std::error::Error::source(&error).is_none(), "{error}");
        }
    }
}
