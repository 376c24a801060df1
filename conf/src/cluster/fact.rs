//! What is known of pods and nodes without anybody having declared it.

use std::net::IpAddr;
use std::sync::Arc;

use super::labels::Labels;
use super::object::{ContainerPort, ObjectName, Pod};

/// A pod that a node of the cluster has attached, as the map tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFact {
    /// Namespace and name, from `K8S_POD_NAMESPACE` and `K8S_POD_NAME`.
    pub id: ObjectName,
    /// The node that it is on.
    pub node: Arc<str>,
    /// Its addresses, the primary one first.
    pub addresses: Box<[IpAddr]>,
    /// Labels that the runtime told (`args.cni.labels`).
    pub labels: Labels,
    /// Whether it has no network of its own, but its node's.
    pub host_network: bool,
    /// When it was attached, in milliseconds since 1970. Of two nodes that claim to have the same pod, the
    /// later is right: it was moved, and the news of its end have not come yet.
    pub since_ms: u64,
}

/// A node of the cluster, as the map tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFact {
    /// Its name.
    pub name: Arc<str>,
    /// Addresses that it is reached at.
    pub addresses: Box<[IpAddr]>,
}

/// A pod as far as it is known: what its node has attached, and what its manifest says.
///
/// Addresses and node are the node's word, where it has attached it. All else is the manifest's; without
/// one, labels are what the runtime told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Namespace and name.
    pub id: ObjectName,
    /// Its labels.
    pub labels: Labels,
    /// The node that it is on.
    pub node: Option<Arc<str>>,
    /// The zone of that node.
    pub zone: Option<Arc<str>>,
    /// Its addresses, the primary one first. A pod on the host's network has its node's.
    pub addresses: Box<[IpAddr]>,
    /// Whether it is on its node's network.
    pub host_network: bool,
    /// Its manifest.
    pub manifest: Option<Arc<Pod>>,
    /// Whether a node has attached it.
    pub attached: bool,
}

impl PodView {
    /// Whether it takes requests: so says its status, and without one it does.
    pub fn is_ready(&self) -> bool {
        self.manifest.as_ref().and_then(|pod| pod.ready).unwrap_or(true)
    }

    /// Whether it is being deleted.
    pub fn is_terminating(&self) -> bool {
        self.manifest.as_ref().is_some_and(|pod| pod.terminating)
    }

    /// Whether it has ended, so that nobody answers at its addresses.
    pub fn is_finished(&self) -> bool {
        self.manifest.as_ref().is_some_and(|pod| pod.finished)
    }

    /// `spec.hostname`.
    pub fn hostname(&self) -> Option<&Arc<str>> {
        self.manifest.as_ref()?.hostname.as_ref()
    }

    /// `spec.subdomain`.
    pub fn subdomain(&self) -> Option<&Arc<str>> {
        self.manifest.as_ref()?.subdomain.as_ref()
    }

    /// The ports that its containers declare.
    pub fn ports(&self) -> &[ContainerPort] {
        self.manifest.as_ref().map_or(&[], |pod| &pod.ports)
    }
}
