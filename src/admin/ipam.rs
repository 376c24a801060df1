//! Addresses, as the admin socket tells of them.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// All addresses of a node that are not simply free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamReport {
    /// The leased prefixes.
    pub pools: Vec<IpamPool>,
    /// Addresses that somebody has, in their order.
    pub held: Vec<HeldAddress>,
    /// Addresses that were given back and rest.
    pub resting: Vec<RestingAddress>,
    /// Addresses that are kept for the return of a pod.
    pub kept: Vec<KeptAddress>,
    /// Ranges of which nothing is handed out.
    pub excluded: Vec<IpNetwork>,
    /// How long an address rests, in seconds.
    pub reuse_delay_s: u64,
    /// How often since the start an address was given out that still rested.
    pub shortened: u64,
}

/// Use of one leased prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamPool {
    /// The prefix.
    pub prefix: IpNetwork,
    /// Addresses that pods hold, or pods of other nodes.
    pub used: u64,
    /// Addresses that rest; they are among the free ones.
    pub resting: u64,
    /// Addresses that can still be handed out.
    pub free: u64,
    /// Whether these are few.
    pub low: bool,
}

/// An address that somebody has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldAddress {
    /// The address.
    pub address: IpAddr,
    /// The container's id.
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
    /// The network's name in the CNI configuration.
    pub network: String,
    /// The pod's Kubernetes namespace, if the runtime named it.
    pub namespace: Option<String>,
    /// The pod's name, if the runtime named it.
    pub name: Option<String>,
    /// For how long, in seconds.
    pub since_s: u64,
    /// Whether it belongs to a subnet that the node has lost.
    pub outside_lease: bool,
    /// Whether the container's namespace may still be there.
    pub alive: bool,
}

/// An address that was given back a short time ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestingAddress {
    /// The address.
    pub address: IpAddr,
    /// The id of the container that had it.
    pub container_id: String,
    /// The interface's name in that container.
    pub ifname: String,
    /// That pod's Kubernetes namespace.
    pub namespace: Option<String>,
    /// That pod's name.
    pub name: Option<String>,
    /// For how long it has rested, in seconds.
    pub since_s: u64,
    /// For how long it will rest still, in seconds.
    pub free_in_s: u64,
}

/// An address that is kept for the return of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAddress {
    /// The address.
    pub address: IpAddr,
    /// The pod's Kubernetes namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The interface's name in the pod.
    pub ifname: String,
    /// For how long it has been free, in seconds.
    pub since_s: u64,
}

/// Asks for an address to be taken back, or to rest no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRequest {
    /// The address.
    pub address: IpAddr,
    /// Also from a container that is still there.
    #[serde(default)]
    pub force: bool,
}

/// An address that is free now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// The address.
    pub address: IpAddr,
    /// Who had it; `None` when it only rested.
    pub holder: Option<String>,
}
