//! What is told of policies: whom each is for, what was counted, and why its rules do not match.

use std::fmt;
use std::net::IpAddr;

use conf::cluster::{ClusterState, ObjectName};
use serde::{Deserialize, Serialize};
use vswitch::policy::{Action, BitSet, Direction, Peers, PortMatch, Tier, Traffic};

use super::rules::{Compiled, Source};
use super::selectors::selects_namespace;
use super::{PolicyTables, of_namespace};
use crate::policy::list::{DirectionStatus, PolicyStatus, RuleStatus};

/// A rule that does not match, and what of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// The policy, as `namespace/name`.
    pub policy: String,
    /// The rule's place in the policy's list for the direction, from 0.
    pub rule: u32,
    /// Whether it is about this peer.
    pub peer: bool,
    /// Whether it is about what is sent.
    pub port: bool,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, rule, peer, port } = self;
        let why = match (peer, port) {
            (true, _) => "is about this peer, and not about this port",
            (false, true) => "is about this port, and not about this peer",
            (false, false) => "is about neither this peer nor this port",
        };
        write!(f, "rule {rule} of {policy} {why}")
    }
}

impl PolicyTables {
    /// All policies, by kind and name.
    pub fn list(&self, state: &ClusterState) -> Vec<PolicyStatus> {
        self.policies
            .iter()
            .map(|(key, compiled)| PolicyStatus {
                kind: key.kind.to_string(),
                namespace: key.id.namespace.to_string(),
                name: key.id.name.to_string(),
                tier: compiled.source.tier().to_string(),
                priority: match &compiled.source {
                    Source::Network(_) => None,
                    Source::Cluster(policy) => Some(policy.priority),
                },
                pods: self.pods_of(state, compiled),
                ingress: status(compiled, Direction::Ingress),
                egress: status(compiled, Direction::Egress),
            })
            .collect()
    }

    /// The pods that a policy is for.
    fn pods_of(&self, state: &ClusterState, compiled: &Compiled) -> Vec<String> {
        let subject = &compiled.subject;
        let mut found = Vec::new();
        for namespace in self.pods.namespaces() {
            let labels = state.namespace_labels(namespace);
            if selects_namespace(&subject.namespaces, namespace, &labels) {
                let pods = self.pods.of_namespace(namespace);
                let pods = pods.filter(|(_, pod)| subject.pods.selects(&pod.labels));
                found.extend(pods.map(|(name, _)| format!("{namespace}/{name}")));
            }
        }
        found
    }

    /// For each rule of the NetworkPolicies that isolate a pod: what of it matches a peer, and what does not.
    pub fn misses(
        &self,
        id: &ObjectName,
        direction: Direction,
        peer: IpAddr,
        traffic: Traffic,
    ) -> Vec<Miss> {
        let Some(pod) = self.pods.get(id) else { return Vec::new() };
        let nothing = BitSet::default();
        let subject = self.table.subject(peer);
        let bits = subject.map_or(&nothing, |subject| &*subject.selectors);
        let own = of_namespace(&self.policies, &id.namespace);
        let isolating = own.filter(|compiled| {
            compiled.speaks_of(direction) && compiled.subject.pods.selects(&pod.labels)
        });
        let mut misses: Vec<Miss> = Vec::new();
        for compiled in isolating {
            for (name, peers, ports) in compiled.parts_for(direction, &pod.ports) {
                let (is_peer, is_port) =
                    (is_about_peer(peers, peer, bits), is_about_traffic(ports.as_deref(), traffic));
                let policy = name.policy.to_string();
                // A rule with names of ports is several.
                match misses.last_mut() {
                    Some(last) if last.policy == policy && last.rule == name.rule => {
                        last.peer |= is_peer;
                        last.port |= is_port;
                    }
                    _ => {
                        let (peer, port) = (is_peer, is_port);
                        misses.push(Miss { policy, rule: name.rule, peer, port });
                    }
                }
            }
        }
        misses
    }
}

fn status(compiled: &Compiled, direction: Direction) -> Option<DirectionStatus> {
    let rules = compiled.source.rules(direction)?;
    let names = compiled.policy.rules.iter().filter(|name| name.direction == direction);
    let rules = rules.iter().zip(names).map(|(rule, name)| {
        let counts = name.counts();
        RuleStatus {
            name: rule.name.as_ref().map(ToString::to_string),
            action: match super::rules::action(rule.action) {
                Action::Accept => "accept",
                Action::Deny => "deny",
                Action::Pass => "pass",
            }
            .to_owned(),
            matched: counts.matched,
            denied: counts.denied,
        }
    });
    let is_isolating = compiled.source.tier() == Tier::Namespace;
    let denied = if is_isolating { compiled.policy.name.denied(direction) } else { 0 };
    Some(DirectionStatus { rules: rules.collect(), denied })
}

fn is_about_peer(peers: &Peers, address: IpAddr, bits: &BitSet) -> bool {
    match peers {
        Peers::Everybody => true,
        Peers::Some { selectors, blocks } => {
            selectors.iter().any(|selector| bits.contains(*selector))
                || blocks.iter().any(|block| {
                    block.cidr.contains(address)
                        && !block.except.iter().any(|except| except.contains(address))
                })
        }
    }
}

/// `None` stands for no port at all.
fn is_about_traffic(ports: Option<&[PortMatch]>, traffic: Traffic) -> bool {
    let Some(ports) = ports else { return false };
    let Traffic::Port { protocol, port } = traffic else { return ports.is_empty() };
    let is_meant = |meant: &PortMatch| meant.protocol == protocol && meant.ports.contains(&port);
    ports.is_empty() || ports.iter().any(is_meant)
}
