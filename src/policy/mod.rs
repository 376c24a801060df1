//! Questions about policies, asked of the objects alone: who may reach whom, why, and what a change would change.
//!
//! All answers come from [`judge`] and the rules that [`PolicyTables`] makes, which is what the switch
//! decides with. So they cannot disagree with it.

pub mod diff;
pub mod expect;
pub mod explain;
pub mod list;
pub mod matrix;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use conf::NodeConfig;
use conf::cluster::{Change, ClusterState, Object, ObjectName, Pod, PodView};
use conf::source::{self, Listing};
use ipnetwork::IpNetwork;
use vswitch::policy::{Judgement, Question, Traffic, judge};

use crate::control::policies::{Mode, PolicyTables, Scope};

/// A state of the cluster with the rules for its pods.
#[derive(Debug)]
pub struct Evaluator {
    state: ClusterState,
    tables: PolicyTables,
}

impl Evaluator {
    /// Makes the rules for the pods of `scope`, and puts them in force.
    pub fn new(state: ClusterState, scope: Scope) -> Self {
        let tables = PolicyTables::of(&state, scope);
        Self { state, tables }
    }

    /// The same, with rules that may only be counted.
    pub fn with_mode(state: ClusterState, scope: Scope, mode: Mode) -> Self {
        let mut tables = PolicyTables::new(scope, mode);
        tables.take_up_all(&state);
        Self { state, tables }
    }

    /// The state.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// The rules.
    pub fn tables(&self) -> &PolicyTables {
        &self.tables
    }

    /// Whether `from` may reach `to`.
    pub fn judge(&self, from: IpAddr, to: IpAddr, traffic: Traffic) -> Judgement<'_> {
        let is_own_node = is_own_node(&self.state, from, to);
        judge(self.tables.table(), &Question { from, to, traffic, is_own_node })
    }

    /// All pods that have an address and have not ended, by namespace and name. Those on their node's network are
    /// among them: with the node's address, and as such without policies.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<PodView>> {
        let has_address = |view: &&Arc<PodView>| !view.is_finished() && !view.addresses.is_empty();
        self.state.pods().filter(has_address)
    }
}

/// Whether one of the two addresses is a pod's, and the other one of the node's that this pod is on.
pub fn is_own_node(state: &ClusterState, from: IpAddr, to: IpAddr) -> bool {
    let is_on = |pod: IpAddr, node: IpAddr| {
        let mut pods = state.pods_at(pod).filter(|view| !view.is_finished());
        pods.any(|view| {
            let own = view.node.as_ref().map(|name| state.node_addresses(name));
            own.is_some_and(|own| own.contains(&node))
        })
    };
    is_on(from, to) || is_on(to, from)
}

/// An address of each, of one family: of the receiver the first that the sender can send to.
pub fn addresses_of(from: &PodView, to: &PodView) -> Option<(IpAddr, IpAddr)> {
    to.addresses.iter().find_map(|to| {
        let from = from.addresses.iter().find(|from| from.is_ipv4() == to.is_ipv4())?;
        Some((*from, *to))
    })
}

/// Manifests, ready for questions.
#[derive(Debug)]
pub struct Manifests {
    /// What they declare.
    pub state: ClusterState,
    /// What became of each object.
    pub listing: Listing,
    /// Pods that were given an address, since their manifests have none.
    pub stand_ins: Vec<ObjectName>,
}

/// Reads a directory of manifests, or one file.
///
/// A pod of which the manifest has no address gets one: it would have one out of the cluster's ranges if it ran, and so
/// it has here, counted from their ends down so that it is nobody else's.
///
/// # Errors
/// When it cannot be read at all.
pub fn read_manifests(path: &Path, config: &NodeConfig) -> Result<Manifests, String> {
    let (directory, mut state) = source::load(path, config.allocation())?;
    let stand_ins = add_addresses(&mut state, &config.lease.ranges);
    let listing = directory.listing(&state);
    Ok(Manifests { state, listing, stand_ins })
}

/// Gives addresses to pods that have none. Returns which.
pub fn add_addresses(state: &mut ClusterState, ranges: &[IpNetwork]) -> Vec<ObjectName> {
    let taken: BTreeSet<IpAddr> = state.pods().flat_map(|view| &view.addresses).copied().collect();
    let lacking = state
        .pods()
        .filter(|view| view.addresses.is_empty() && !view.host_network && !view.is_finished());
    let lacking: Vec<Arc<Pod>> = lacking.filter_map(|view| view.manifest.clone()).collect();
    let mut sources: Vec<_> = ranges
        .iter()
        .map(|range| downwards(*range).filter(|address| !taken.contains(address)))
        .collect();
    let mut changes = Vec::new();
    let mut added = Vec::new();
    for pod in lacking {
        let addresses: Box<[IpAddr]> = sources.iter_mut().filter_map(Iterator::next).collect();
        added.push(pod.id.clone());
        let pod = Arc::new(Pod { addresses, ..(*pod).clone() });
        changes.push(Change::Set(Object::Pod(pod)));
    }
    state.apply(changes);
    added
}

/// The addresses of a range from its end on, without the last one.
fn downwards(range: IpNetwork) -> Box<dyn Iterator<Item = IpAddr>> {
    match range {
        IpNetwork::V4(range) => {
            let (first, last) = (range.network().to_bits(), range.broadcast().to_bits());
            Box::new((first..last).rev().map(|bits| Ipv4Addr::from_bits(bits).into()))
        }
        IpNetwork::V6(range) => {
            let (first, last) = (range.network().to_bits(), range.broadcast().to_bits());
            Box::new((first..last).rev().map(|bits| Ipv6Addr::from_bits(bits).into()))
        }
    }
}
