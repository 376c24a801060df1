//! Where objects come from: a directory of manifests, kept in step with what is in it.

pub mod manifests;
pub mod scan;
pub mod watch;

pub use manifests::{Directory, Listing};
pub use watch::{Update, Watcher};
