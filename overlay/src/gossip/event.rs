//! What gossip has to tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::claim::{Release, RememberedLease};
use super::strangers::Stranger;
use crate::node_id::NodeId;
use crate::subnet::Conflict;

/// Something happened that is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A node is in the cluster, for the first time or again.
    MemberUp {
        /// Who.
        id: NodeId,
        /// Its name.
        name: String,
        /// Its address.
        underlay: IpAddr,
    },
    /// A node became unreachable.
    MemberDown {
        /// Who.
        id: NodeId,
        /// Its name.
        name: String,
    },
    /// A node said goodbye.
    MemberLeft {
        /// Who.
        id: NodeId,
        /// Its name.
        name: String,
    },
    /// All that another node knows is known here too, for the first time.
    Synced {
        /// Whose knowledge it was.
        with: SocketAddr,
    },
    /// This node's cluster has met another one, which was born apart from it, and becomes a part of that one.
    ClusterJoined {
        /// Who founded the cluster that this node belonged to.
        former: NodeId,
        /// Who founded the one that it belongs to now.
        origin: NodeId,
    },
    /// This node announced a claim.
    LeaseClaimed {
        /// The subnet.
        prefix: IpNetwork,
    },
    /// The subnet is this node's from now on.
    LeaseHeld {
        /// The subnet.
        prefix: IpNetwork,
    },
    /// A better claim of another node was found: the subnet is not this node's any more.
    LeaseLost {
        /// The subnet.
        prefix: IpNetwork,
        /// Who has it.
        winner: NodeId,
        /// Whether it was in use here already.
        held: bool,
    },
    /// The subnet was this node's before it slept or was restarted. It is not used before another node was
    /// asked, or nobody could be.
    LeaseUnproven {
        /// The subnet.
        prefix: IpNetwork,
    },
    /// This node gives a subnet up by itself.
    LeaseReleased {
        /// The subnet.
        prefix: IpNetwork,
        /// Why.
        why: Release,
    },
    /// The subnet that is fixed for this node is fixed for another one, too, which has it.
    LeaseBlocked {
        /// The subnet.
        prefix: IpNetwork,
        /// Who has it.
        by: NodeId,
    },
    /// Every subnet of a family is some other node's; this node keeps trying.
    LeaseExhausted {
        /// Whether it is the IPv6 range.
        v6: bool,
    },
    /// More addresses are used outside of the lease, or left to others, than one record holds.
    ExceptionsLeftOut {
        /// How many are not told: pods with them are cut off.
        left_out: usize,
    },
    /// Something that should be unique is not.
    Conflict(Conflict),
    /// It is unique again.
    ConflictResolved(Conflict),
    /// A seed does not answer. Told at the second, and at every tenth time.
    SeedUnreachable {
        /// Its address.
        address: SocketAddr,
        /// How often in a row it did not.
        unanswered: u32,
    },
    /// Somebody's datagrams come from another address than it claims as its own: nobody could answer.
    /// There is address translation between the nodes, or the wrong interface was chosen there.
    AddressTranslated {
        /// The address that it claims.
        claimed: SocketAddr,
        /// The address that its datagrams come from.
        seen: SocketAddr,
    },
    /// Somebody speaks without a seal, or with one that this node cannot open.
    Stranger(Stranger),
    /// This process stood still; it may have been declared dead, and asks others what happened.
    Slept {
        /// For how long its clock was not looked at.
        gap: Duration,
    },
    /// Another node knows a later life of this one than its own disk remembers; it went above that.
    MemoryRecovered {
        /// The version that the cluster knew.
        version: u64,
    },
}

/// How far this node has come with its own leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseState {
    /// Nothing is claimed yet: a seed is being asked first, what others hold.
    Waiting,
    /// Something is claimed, and not everything held yet.
    Claiming {
        /// What is held already.
        held: Vec<IpNetwork>,
        /// What is claimed.
        claiming: Vec<IpNetwork>,
    },
    /// There is a lease for every family that has a range.
    Held {
        /// The leases, IPv4 first.
        prefixes: Vec<IpNetwork>,
    },
    /// What was held before a restart or a sleep is not used yet: it must first be known whether it still
    /// is this node's.
    Returning {
        /// The subnets.
        prefixes: Vec<IpNetwork>,
    },
    /// The subnet that is fixed for this node is fixed for another live node, too. It is tried again every
    /// second.
    Blocked {
        /// What is held of another family.
        held: Vec<IpNetwork>,
        /// The fixed subnet.
        prefix: IpNetwork,
        /// Who has it.
        by: NodeId,
    },
    /// Every subnet of these ranges belongs to other nodes; it is tried again every second.
    Exhausted {
        /// What is held of another family.
        held: Vec<IpNetwork>,
        /// The ranges in which nothing is free.
        ranges: Vec<IpNetwork>,
    },
    /// Another node has the same id and keeps it; see [`Conflict::Identity`].
    Suspended {
        /// Where that one is.
        other: SocketAddr,
    },
    /// This node has said goodbye.
    Left,
}

impl LeaseState {
    /// The subnets that are this node's, IPv4 first.
    pub fn held(&self) -> &[IpNetwork] {
        match self {
            Self::Claiming { held, .. }
            | Self::Exhausted { held, .. }
            | Self::Blocked { held, .. } => held,
            Self::Held { prefixes } => prefixes,
            Self::Waiting | Self::Returning { .. } | Self::Suspended { .. } | Self::Left => &[],
        }
    }
}

impl LeaseState {
    /// Whether pods here may talk to other nodes: not before a remembered lease is proven, and not while
    /// another node has this one's id.
    pub fn is_at_home(&self) -> bool {
        !matches!(self, Self::Returning { .. } | Self::Suspended { .. })
    }

    /// Whether another node has this one's id and keeps it. All pods here are cut off then: their addresses may
    /// be those of its pods, too.
    pub fn is_suspended(&self) -> bool {
        matches!(self, Self::Suspended { .. })
    }
}

/// What this node's pods have to do with leases: the daemon tells it, and the record announces it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holdings {
    /// All addresses of this node's pods. Those that are in none of its leases are announced as exceptions.
    pub pods: BTreeSet<IpAddr>,
    /// Addresses out of its own leases that it does not hand out, because pods of these nodes have them.
    pub grants: BTreeMap<IpAddr, NodeId>,
}

/// What has to survive a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// No version or incarnation above this one was used before the restart.
    pub counter: u64,
    /// The highest lease epoch that was ever seen.
    pub clock: u64,
    /// The leases.
    pub leases: Vec<RememberedLease>,
    /// Subnets that this node had, and out of which pods of it still have addresses.
    pub retained: Vec<IpNetwork>,
    /// Gossip addresses of some members: further seeds after a restart.
    pub peers: Vec<SocketAddr>,
    /// The node that founded the cluster that this one belongs to.
    pub origin: Option<NodeId>,
}
