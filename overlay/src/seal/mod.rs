//! Keys of the cluster, and what is done with them: messages sealed, and opened by nobody else.
//!
//! [`key`] has the keys themselves and the ring of those that a node accepts; [`file`](mod@file) reads and
//! changes the file that they are kept in; [`cipher`] seals and opens single datagrams; [`window`] and
//! [`cookie`] keep out what was sent before. How two nodes come to trust each other's datagrams is in
//! `gossip/session.rs`, and described in `docs/gossip.md`.

pub(crate) mod cipher;
pub(crate) mod cookie;
pub mod file;
pub mod key;
pub(crate) mod window;

pub use self::cookie::Secrets;
pub use self::file::{FileError, KeyFile, KeyLine};
pub use self::key::{ClusterKey, KEYS_MAX, KeyId, KeyRing};
