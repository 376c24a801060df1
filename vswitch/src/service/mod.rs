//! Services: addresses that stand for a changing set of endpoints.
//!
//! ```text
//!   ServicePort … ──► ServiceTableBuilder ──► Arc<ServiceTable> ──► Tables
//!                                                    │
//!   (who asks, where) ──────────── decide ◄──────────┘
//!                                    │
//!            Pass · Choose(pool) ─► Pool::choose ─► endpoint · Refuse(reason)
//! ```
//!
//! A [`ServicePort`] is one port of a Service in one address family, as neutral as it can be: whoever makes
//! it has read the objects, found the endpoints' states and applied topology. [`decide()`] is the one
//! place that says what becomes of a packet to a Service, for the data path and for explanations alike. Its
//! rules are those of kube-proxy's nftables mode; `docs/services.md` has them as a table.

mod decide;
mod filter;
mod maglev;
mod pool;
mod ranges;
mod shared;
mod table;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

pub use decide::{Choice, Class, Decision, Refusal, Target, decide, must_masquerade};
pub(crate) use filter::AddressFilter;
pub use maglev::{Maglev, TABLE_LEN_MAX, table_len};
pub use pool::{Pick, Pool};
pub use table::{Service, ServiceError, ServiceTable, ServiceTableBuilder};

use crate::wire::{sctp, tcp, udp};

/// A protocol that Services can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol with this number (IANA "Assigned Internet Protocol Numbers").
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            tcp::PROTOCOL => Some(Self::Tcp),
            udp::PROTOCOL => Some(Self::Udp),
            sctp::PROTOCOL => Some(Self::Sctp),
            _ => None,
        }
    }

    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => tcp::PROTOCOL,
            Self::Udp => udp::PROTOCOL,
            Self::Sctp => sctp::PROTOCOL,
        }
    }

    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One port of a Service in one address family: all that the switch of one node needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name:port`. Together with the family it names this one among all.
    pub name: String,
    /// The family of all its addresses.
    pub family: Family,
    /// The protocol.
    pub protocol: Protocol,
    /// Where clients send.
    pub frontends: Vec<Frontend>,
    /// Who serves, in any order. Each address and port once.
    pub endpoints: Vec<Endpoint>,
    /// For traffic to the cluster IP (`internalTrafficPolicy`).
    pub internal_policy: TrafficPolicy,
    /// For traffic from outside to any other frontend (`externalTrafficPolicy`).
    pub external_policy: TrafficPolicy,
    /// How an endpoint is chosen for a new connection.
    pub algorithm: Algorithm,
    /// How long a client stays with the endpoint that it had last (`sessionAffinity: ClientIP`), counted from
    /// its latest new connection. `None` for no affinity.
    pub affinity: Option<Duration>,
}

/// Where clients of a Service send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frontend {
    /// The cluster IP.
    ClusterIp {
        /// Address.
        address: IpAddr,
        /// Port.
        port: u16,
    },
    /// One of `externalIPs`. Only this port of the address is the Service's.
    ExternalIp {
        /// Address.
        address: IpAddr,
        /// Port.
        port: u16,
    },
    /// An address of the load balancer.
    LoadBalancer {
        /// Address.
        address: IpAddr,
        /// Port.
        port: u16,
        /// Who may send there (`loadBalancerSourceRanges`); everybody if empty.
        source_ranges: Vec<IpNetwork>,
    },
    /// A port of every node's address.
    NodePort {
        /// Port.
        port: u16,
    },
    /// A port of one address of this node, which no other node serves (`hostPort`).
    HostPort {
        /// Address.
        address: IpAddr,
        /// Port.
        port: u16,
    },
}

/// What kind of frontend a packet was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrontendKind {
    /// A cluster IP.
    ClusterIp,
    /// One of `externalIPs`.
    ExternalIp,
    /// An address of the load balancer.
    LoadBalancer,
    /// A port of every node's address.
    NodePort,
    /// A port of one address of this node.
    HostPort,
}

/// Somebody who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Whether it is on this node.
    pub is_local: bool,
    /// Whether topology (hints, `trafficDistribution`) allows it for clients of this node. True for all where
    /// topology is not in use. Traffic policy `Local` does not ask. If it is true for no ready endpoint,
    /// topology is left aside.
    pub is_near: bool,
    /// Whether it may be chosen.
    pub state: EndpointState,
}

/// Whether an endpoint may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndpointState {
    /// It serves and is to be chosen.
    Ready,
    /// It terminates and still serves: chosen only while there is no ready one.
    Draining,
    /// It is not to be chosen. What is connected to it stays connected.
    Unavailable,
}

/// Which endpoints serve a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// All.
    Cluster,
    /// Those on this node.
    Local,
}

/// How an endpoint is chosen for a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Algorithm {
    /// By a hash of the connection that is the same on all nodes, and that few connections lose their endpoint
    /// by when others come and go. The default.
    #[default]
    Maglev,
    /// By chance.
    Random,
    /// The one with the fewest connections through this node, of two taken by chance.
    LeastConnections,
}

/// A hash that is the same on every node, on every machine and in every version: nodes choose alike by it.
///
/// Each word is mixed by the finalizer of splitmix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number
/// Generators", 2014).
pub fn stable_hash(seed: u64, words: &[u64]) -> u64 {
    words.iter().fold(mix(seed), |hash, word| mix(hash ^ word))
}

fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// An address as two words, for [`stable_hash`].
#[inline]
pub(crate) fn address_words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [0, v4.to_bits().into()],
        IpAddr::V6(v6) => halves(v6.to_bits()),
    }
}

/// Multiplies, and folds the upper and the lower half of the product together.
#[inline]
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let [upper, lower] = halves(u128::from(a) * u128::from(b));
    lower ^ upper
}

/// The upper and the lower half.
#[inline]
pub(crate) fn halves(bits: u128) -> [u64; 2] {
    // Neither can be too large.
    [bits >> 64, bits & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or(0))
}

#[cfg(test)]
mod tests;
