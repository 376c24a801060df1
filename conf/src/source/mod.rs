//! Where objects come from: a directory of manifests, or the API server of a Kubernetes cluster. Both are kept
//! in step with what is there, and tell the same changes of the same objects.

#[cfg(feature = "kube")]
pub mod kubernetes;
pub mod manifests;
pub mod scan;
pub mod watch;

use std::path::Path;

pub use manifests::{Directory, Listing};
pub use watch::{SharedDirectory, Update, Watcher};

use self::manifests::{Counts, RefusedObject};
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

/// Objects with what became of each, wherever they come from. Copies are of the same ones.
#[derive(Debug, Clone)]
pub enum Objects {
    /// Of a directory.
    Manifests(SharedDirectory),
    /// Of an API server.
    #[cfg(feature = "kube")]
    Kubernetes(kubernetes::SharedObjects),
}

impl Objects {
    /// How many objects there are of each fate.
    pub fn counts(&self, state: &ClusterState) -> Counts {
        match self {
            Self::Manifests(directory) => directory.lock().counts(state),
            #[cfg(feature = "kube")]
            Self::Kubernetes(objects) => objects.counts(state),
        }
    }

    /// What cannot be honoured.
    pub fn refused(&self, state: &ClusterState) -> Vec<RefusedObject> {
        match self {
            Self::Manifests(directory) => directory.lock().refused(state),
            #[cfg(feature = "kube")]
            Self::Kubernetes(objects) => objects.refused(state),
        }
    }

    /// Every object, and what became of it.
    pub fn listing(&self, state: &ClusterState) -> Listing {
        match self {
            Self::Manifests(directory) => directory.lock().listing(state),
            #[cfg(feature = "kube")]
            Self::Kubernetes(objects) => objects.listing(state),
        }
    }
}
