//! Where objects come from: a directory of manifests, kept in step with what is in it.

pub mod manifests;
pub mod scan;
pub mod watch;

use std::path::Path;

pub use manifests::{Directory, Listing};
pub use watch::{SharedDirectory, Update, Watcher};

use crate::cluster::parse::parse;
use crate::cluster::{ClusterState, ServiceConfig};
use scan::{Found, Scanner};

/// Reads a directory of manifests, or one file, once: for questions that need no daemon.
///
/// # Errors
/// When it cannot be read at all. What is wrong in it is told by [`Directory::listing`].
pub fn load(path: &Path, config: ServiceConfig) -> Result<(Directory, ClusterState), String> {
    let (mut directory, mut state) = (Directory::new(), ClusterState::new(config));
    let found = if path.is_dir() { Scanner::new(path).scan()? } else { vec![scan::look_at(path)?] };
    let mut changes = Vec::new();
    for found in found {
        match found {
            Found::Text { file, text } => changes.extend(directory.set_file(&file, parse(&text))),
            Found::Unreadable { file, reason } => directory.set_unreadable(&file, reason),
            Found::Gone { .. } => {}
        }
    }
    state.apply(changes);
    Ok((directory, state))
}
