//! The paths to the other nodes: what probes and the kernel find out of them, for people and for the tables.
//!
//! [`overlay::path`] finds out; it is the one owner of the MTU of a path. Here pods are held to that, as if the other
//! node's interface had it: the switch tells them, and cuts what may be cut.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use overlay::node_id::NodeId;
use overlay::path::peers::PathTarget;
use overlay::path::probe::{Finding, PathReport, PathState};
use overlay::subnet::{Member, inner_mtu};
use vswitch::tables::Peer;

use super::{Control, Topic};
use crate::admin::api::PathStatus;
use crate::events::Code;

impl Control {
    /// Takes up what has been found out of the path to a node.
    pub fn take_up_finding(&mut self, id: NodeId, finding: Finding) {
        let Some(member) = self.map.reachable(self.identity.id).find(|member| member.id == id)
        else {
            return;
        };
        let (name, to) = (member.name.clone(), member.underlay);
        match finding {
            Finding::Down => {
                let problem = describe_down(member);
                self.raise(Topic::Data(to), problem);
            }
            Finding::Up { after: None } => {
                let text = format!("data passes to node {name}");
                self.events().emit(Code::PathUp, text, &[("node", &name), ("address", &to)]);
            }
            Finding::Up { after: Some(after) } => {
                self.problems.remove(&Topic::Data(to));
                let text = format!("data passes to node {name} again, after {after:.1?}");
                self.events().emit(Code::PathUp, text, &[("node", &name), ("address", &to)]);
            }
            Finding::Mtu { from, to: mtu, .. } => {
                tracing::debug!(from, mtu, "the path to node {name} ({to}) carries another length");
                self.tell_width(id);
                self.publish();
            }
        }
    }

    /// Raises or clears the problem that the path to a node is narrow.
    fn tell_width(&mut self, id: NodeId) {
        let own_mtu = self.underlay.as_ref().map_or(0, |underlay| underlay.mtu);
        let member = self.map.reachable(self.identity.id).find(|member| member.id == id);
        let (Some(member), Some(mtu)) = (member, self.paths.mtu(id)) else { return };
        let (to, both) = (member.underlay, own_mtu.min(member.underlay_mtu));
        if mtu < both {
            let problem = describe_narrow(&member.name, to, mtu, both);
            self.raise(Topic::Path(to), problem);
        } else {
            self.clear(&Topic::Path(to));
        }
    }

    /// Tells who probes which nodes there are, and holds the pods to what the paths carry. Nothing is said any more
    /// about paths that lead nowhere.
    pub(super) fn follow_paths(&mut self, mut peers: Vec<Peer>, own_mtu: u16) -> Vec<Peer> {
        let targets = self.map.reachable(self.identity.id).take(peers.len());
        let targets: Vec<_> = targets.map(|member| target(member, own_mtu)).collect();
        let ids: Vec<_> = targets.iter().map(|target| target.id).collect();
        self.paths.set_targets(targets);
        for (id, peer) in ids.into_iter().zip(&mut peers) {
            if let Some(mtu) = self.paths.mtu(id) {
                peer.mtu = peer.mtu.min(inner_mtu(mtu, peer.underlay.ip()));
            }
        }
        let gone: Vec<_> = (self.problems.keys())
            .filter(|topic| match topic {
                Topic::Path(to) | Topic::Data(to) => {
                    !peers.iter().any(|peer| peer.underlay.ip() == *to)
                }
                Topic::Node(_)
                | Topic::Sysctl(_)
                | Topic::Lending
                | Topic::CutOff(_)
                | Topic::PodCidrs
                | Topic::Snapshot
                | Topic::Told(_)
                | Topic::Services(_)
                | Topic::Deletions
                | Topic::Pod(_) => false,
            })
            .cloned()
            .collect();
        for topic in gone {
            self.problems.remove(&topic);
        }
        peers
    }

    /// The path to a node, for people.
    pub(super) fn path_status(member: &Member, report: &PathReport, now: Instant) -> PathStatus {
        PathStatus {
            state: report.state,
            since_s: now.saturating_duration_since(report.since).as_secs(),
            rtt_us: report.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            loss: report.loss,
            mtu: report.mtu,
            mtu_max: report.max,
            pod_mtu: inner_mtu(report.mtu, member.underlay),
            pod_mtu_back: report.back,
        }
    }
}

fn target(member: &Member, own_mtu: u16) -> PathTarget {
    PathTarget {
        id: member.id,
        to: SocketAddr::new(member.underlay, member.vxlan_port),
        vtep_mac: member.vtep_mac,
        max: own_mtu.min(member.underlay_mtu),
        // Where no Weft daemon is, a tunnel endpoint of another kind is, which does not know probes.
        answers: !member.software.is_empty(),
    }
}

fn describe_down(member: &Member) -> String {
    let Member { name, underlay, vxlan_port, .. } = member;
    format!(
        "no data passes to node {name} ({underlay}), though its gossip does: pods there cannot be reached. See that UDP \
         port {vxlan_port} is open between the nodes, in both directions"
    )
}

fn describe_narrow(name: &str, to: IpAddr, mtu: u16, both: u16) -> String {
    format!(
        "the path to node {name} ({to}) carries only {mtu} bytes, and the interfaces at both ends {both}: pods are \
         held to what it carries. Find the link with the smaller MTU on the way, or set `mtu = {mtu}` under \
         [underlay]"
    )
}

/// Whether data passes, for metrics: 1 or 0, and nothing as long as that is not known.
pub(crate) fn is_up(state: PathState) -> Option<bool> {
    match state {
        PathState::Untested => None,
        PathState::Up => Some(true),
        PathState::Down => Some(false),
    }
}
