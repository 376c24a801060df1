//! Measuring tools that need no program on the machine: ping, echo and bulk transfer between namespaces.
//!
//! Each opens its sockets inside a [`Namespace`](super::namespace::Namespace) and is otherwise ordinary
//! code of this process, so a test can hold both ends of a connection.

mod echo;
mod ping;
mod reach;
mod transfer;

pub use echo::{EchoServer, SeenAs, tcp_seen_as, udp_seen_as};
pub use ping::{Ping, PingReport};
pub use reach::{Reach, ReachServer, protocols, reach};
pub use transfer::{Amount, Transfer, TransferReport};

/// How long a peer may be silent before a measurement fails.
const SILENCE_MAX: std::time::Duration = std::time::Duration::from_secs(5);
