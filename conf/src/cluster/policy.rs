//! Policies on who may reach whom: `networking.k8s.io/v1` NetworkPolicy, and the cluster-wide ones of
//! `policy.networking.k8s.io`.
//!
//! All kinds have the same rules here. What tells them apart is whom they are for, in which tier they stand, and
//! what happens when none of their rules matches.

use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::labels::LabelSelector;
use super::object::{ObjectKind, ObjectName, Protocol};

/// networking.k8s.io/v1 NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub id: ObjectName,
    /// `spec.podSelector`: which pods of the namespace it is for.
    pub pods: LabelSelector,
    /// `spec.ingress`. `None`: it says nothing of what pods are sent (`policyTypes`). An empty list: it isolates
    /// them, and allows nothing.
    pub ingress: Option<Box<[PolicyRule]>>,
    /// `spec.egress`, likewise.
    pub egress: Option<Box<[PolicyRule]>>,
}

/// A policy of `policy.networking.k8s.io`, for pods of any namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPolicy {
    /// ClusterNetworkPolicy, AdminNetworkPolicy or BaselineAdminNetworkPolicy.
    pub kind: ObjectKind,
    /// The name.
    pub name: Arc<str>,
    /// `spec.tier`, or what the kind stands for.
    pub tier: PolicyTier,
    /// `spec.priority`, from 0 to 1000: lower ones are asked first. 0 where the kind has none.
    pub priority: u16,
    /// `spec.subject`: which pods it is for. Never those on their node's network.
    pub subject: PodSelection,
    /// `spec.ingress`: the first rule that matches counts.
    pub ingress: Box<[PolicyRule]>,
    /// `spec.egress`, likewise.
    pub egress: Box<[PolicyRule]>,
}

/// Whether cluster-wide policies are asked before those of namespaces, or after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyTier {
    /// Before them.
    Admin,
    /// After them, and only about pods that none of them isolates.
    Baseline,
}

/// One rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// `name`, of cluster-wide policies.
    pub name: Option<Arc<str>>,
    /// `action`; [`PolicyAction::Accept`] in a NetworkPolicy.
    pub action: PolicyAction,
    /// `from` or `to`. `None`: everybody, inside and outside of the cluster.
    pub peers: Option<Box<[PolicyPeer]>>,
    /// `ports`; empty: everything, protocols without ports included.
    pub ports: Box<[PolicyPort]>,
}

/// What becomes of what a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyAction {
    /// It is accepted.
    Accept,
    /// It is denied.
    Deny,
    /// The next tier decides.
    Pass,
}

/// One of those that a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PolicyPeer {
    /// Pods, but for those on their node's network.
    Pods(PodSelection),
    /// Addresses, whosesoever they are.
    Block(IpBlock),
    /// The addresses of nodes.
    Nodes(LabelSelector),
}

/// Which pods are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodSelection {
    /// The namespaces that they are in.
    pub namespaces: NamespaceSelection,
    /// Which of the pods there.
    pub pods: LabelSelector,
}

/// Which namespaces are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NamespaceSelection {
    /// This one: a peer's `podSelector` alone is about the policy's own namespace.
    Own(Arc<str>),
    /// Those with such labels.
    Selected(LabelSelector),
}

/// `ipBlock`, or one of `networks`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IpBlock {
    /// `cidr`.
    pub cidr: IpNetwork,
    /// `except`: each a part of `cidr`, and smaller.
    pub except: Box<[IpNetwork]>,
}

/// Some ports of the receiver.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PolicyPort {
    /// All of a protocol, or a range.
    Numbers {
        /// The protocol.
        protocol: Protocol,
        /// The ports; from 0 for all.
        ports: PortRange,
    },
    /// Those that the receiving pod's containers call so.
    Named {
        /// The protocol; `None` where the pod says which.
        protocol: Option<Protocol>,
        /// The name.
        name: Arc<str>,
    },
}

/// Ports from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last, not less than the first.
    pub last: u16,
}

impl PortRange {
    /// All ports.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// The same as a range of the standard library.
    pub fn range(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}
