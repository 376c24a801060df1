//! Everything that the data path needs to know, in one immutable snapshot.
//!
//! The control side builds [`Tables`] whole from what is declared and known, and swaps them in; a
//! worker borrows them for the length of one batch. Nothing in here is ever changed in place.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use foldhash::fast::RandomState;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use prefix_trie::PrefixMap;

use crate::ix::{NodeIx, PortIx};
use crate::mac::Mac;

/// The switch's own IPv4 address on every port: the host's next hop to the cluster range.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The switch's own IPv6 address on every port.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// An immutable snapshot of all that forwarding depends on.
#[derive(Debug, Clone)]
pub struct Tables {
    /// Counts snapshots; a later one has a larger number.
    pub generation: u64,
    /// This node's own addresses.
    pub node: Node,
    ports: Vec<Option<PortEntry>>,
    peers: Vec<Peer>,
    local: HashMap<IpAddr, PortIx, RandomState>,
    by_underlay: HashMap<IpAddr, NodeIx, RandomState>,
    routes_v4: PrefixMap<Ipv4Network, Target>,
    routes_v6: PrefixMap<Ipv6Network, Target>,
}

/// This node, as the switch sees it.
#[derive(Debug, Clone)]
pub struct Node {
    /// Inner source MAC address of what this node sends into the tunnel.
    pub vtep_mac: Mac,
    /// The lease's first IPv4 address: the host's own, and the source of the switch's ICMP errors.
    pub gateway_v4: Option<Ipv4Addr>,
    /// The lease's first IPv6 address.
    pub gateway_v6: Option<Ipv6Addr>,
    /// The underlay address. Pods of all nodes reach the node under it without NAT.
    pub underlay: Option<IpAddr>,
    /// UDP port that nodes receive VXLAN on.
    pub vxlan_port: u16,
    /// UDP port that nodes receive gossip on.
    pub gossip_port: u16,
}

/// A local port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortEntry {
    /// Whose port it is.
    pub kind: PortKind,
    /// The address of the interface at the port's other end.
    pub mac: Mac,
    /// Longest IP packet that the interface takes.
    pub mtu: u16,
    /// The addresses that may send from this port, and that are delivered to it.
    pub addresses: Vec<IpAddr>,
}

/// Whose port it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKind {
    /// A pod's (or virtual machine's): hostile, and held to its own addresses.
    Pod,
    /// The node's own interface `weft0`: it routes for the world outside.
    Host,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Name for people.
    pub name: String,
    /// Where it receives VXLAN.
    pub underlay: SocketAddr,
    /// Inner destination MAC address of what is sent to it.
    pub vtep_mac: Mac,
    /// Longest IP packet that fits the path to it.
    pub mtu: u16,
    /// The prefixes that belong to it.
    pub leases: Vec<IpNetwork>,
}

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// To a pod on this node.
    Port(PortIx),
    /// To another node, or a pod on it.
    Node(NodeIx),
    /// To this node itself, through [`PortIx::HOST`].
    Host,
    /// To the switch itself.
    Router,
    /// Nowhere: it is in the cluster range, and nobody holds it.
    Nobody,
    /// Out of the cluster, by way of the host.
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Node(NodeIx),
    Nobody,
}

impl Tables {
    /// Finds where `address` leads.
    pub fn route(&self, address: IpAddr) -> Route {
        if let Some(port) = self.local.get(&address) {
            return if *port == PortIx::HOST { Route::Host } else { Route::Port(*port) };
        }
        let target = match address {
            IpAddr::V4(ROUTER_V4) | IpAddr::V6(ROUTER_V6) => return Route::Router,
            IpAddr::V4(v4) => self.routes_v4.get_lpm(&host_v4(v4)).map(|(_, target)| *target),
            IpAddr::V6(v6) => self.routes_v6.get_lpm(&host_v6(v6)).map(|(_, target)| *target),
        };
        match target {
            Some(Target::Node(node)) => Route::Node(node),
            Some(Target::Nobody) => Route::Nobody,
            None => Route::Outside,
        }
    }

    /// The local port at `ix`.
    pub fn port(&self, ix: PortIx) -> Option<&PortEntry> {
        self.ports.get(ix.ix())?.as_ref()
    }

    /// All local ports with their indexes.
    pub fn ports(&self) -> impl Iterator<Item = (PortIx, &PortEntry)> {
        (0..).zip(&self.ports).filter_map(|(ix, port)| Some((PortIx(ix), port.as_ref()?)))
    }

    /// The node at `ix`.
    pub fn peer(&self, ix: NodeIx) -> Option<&Peer> {
        self.peers.get(ix.ix())
    }

    /// All other live nodes.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The live node with this underlay address.
    pub fn peer_by_underlay(&self, address: IpAddr) -> Option<NodeIx> {
        self.by_underlay.get(&address).copied()
    }

    /// Whether `address` is the underlay address of a live node, or of this one.
    pub fn is_node(&self, address: IpAddr) -> bool {
        self.node.underlay == Some(address) || self.by_underlay.contains_key(&address)
    }
}

/// Puts [`Tables`] together.
#[derive(Debug)]
pub struct TablesBuilder {
    tables: Tables,
}

impl TablesBuilder {
    /// Starts with a node and the cluster ranges; every address in them that nobody claims later leads
    /// to [`Route::Nobody`].
    pub fn new(generation: u64, node: Node, ranges: &[IpNetwork]) -> Self {
        let mut tables = Tables {
            generation,
            node,
            ports: Vec::new(),
            peers: Vec::new(),
            local: HashMap::default(),
            by_underlay: HashMap::default(),
            routes_v4: PrefixMap::new(),
            routes_v6: PrefixMap::new(),
        };
        for range in ranges {
            insert_route(&mut tables, *range, Target::Nobody);
        }
        Self { tables }
    }

    /// Adds a local port. An address that an earlier port holds stays with that one.
    pub fn port(&mut self, ix: PortIx, entry: PortEntry) -> &mut Self {
        let tables = &mut self.tables;
        if tables.ports.len() <= ix.ix() {
            tables.ports.resize(ix.ix() + 1, None);
        }
        for address in &entry.addresses {
            tables.local.entry(*address).or_insert(ix);
        }
        tables.ports[ix.ix()] = Some(entry);
        self
    }

    /// Adds another live node: its leases and its underlay address lead to it.
    ///
    /// Returns `None`, and adds nothing, once there are 65 536 nodes.
    pub fn peer(&mut self, peer: Peer) -> Option<NodeIx> {
        let tables = &mut self.tables;
        let ix = NodeIx(u16::try_from(tables.peers.len()).ok()?);
        for lease in &peer.leases {
            insert_route(tables, *lease, Target::Node(ix));
        }
        let address = peer.underlay.ip();
        insert_route(tables, IpNetwork::from(address), Target::Node(ix));
        tables.by_underlay.insert(address, ix);
        tables.peers.push(peer);
        Some(ix)
    }

    /// Finishes the snapshot.
    pub fn build(self) -> Tables {
        self.tables
    }
}

fn insert_route(tables: &mut Tables, prefix: IpNetwork, target: Target) {
    match prefix {
        IpNetwork::V4(v4) => {
            tables.routes_v4.insert(v4, target);
        }
        IpNetwork::V6(v6) => {
            tables.routes_v6.insert(v6, target);
        }
    }
}

fn host_v4(address: Ipv4Addr) -> Ipv4Network {
    Ipv4Network::from(address)
}

fn host_v6(address: Ipv6Addr) -> Ipv6Network {
    Ipv6Network::from(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> Tables {
        let node = Node {
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            gateway_v4: Some(Ipv4Addr::new(10, 244, 1, 1)),
            gateway_v6: None,
            underlay: Some("192.0.2.1".parse().unwrap()),
            vxlan_port: 4789,
            gossip_port: 7946,
        };
        let ranges = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
        let mut builder = TablesBuilder::new(1, node, &ranges);
        let host = PortEntry {
            kind: PortKind::Host,
            mac: Mac::HOST,
            mtu: 1450,
            addresses: vec!["10.244.1.1".parse().unwrap(), "192.0.2.1".parse().unwrap()],
        };
        let pod = PortEntry {
            kind: PortKind::Pod,
            mac: Mac([2, 0, 0, 0, 1, 2]),
            mtu: 1450,
            addresses: vec!["10.244.1.2".parse().unwrap()],
        };
        builder.port(PortIx::HOST, host).port(PortIx(4), pod);
        builder.peer(Peer {
            name: "b".to_owned(),
            underlay: "192.0.2.2:4789".parse().unwrap(),
            vtep_mac: Mac([2, 0, 0, 0, 0, 2]),
            mtu: 1450,
            leases: vec!["10.244.2.0/24".parse().unwrap(), "fd00:10:244:2::/64".parse().unwrap()],
        });
        builder.build()
    }

    #[test]
    fn every_kind_of_address_finds_its_way() {
        let tables = tables();
        let route = |text: &str| tables.route(text.parse().unwrap());
        assert_eq!(route("10.244.1.2"), Route::Port(PortIx(4)));
        assert_eq!(route("10.244.1.1"), Route::Host);
        assert_eq!(route("192.0.2.1"), Route::Host);
        assert_eq!(route("10.244.1.3"), Route::Nobody);
        assert_eq!(route("10.244.2.9"), Route::Node(NodeIx(0)));
        assert_eq!(route("192.0.2.2"), Route::Node(NodeIx(0)));
        assert_eq!(route("192.0.2.3"), Route::Outside);
        assert_eq!(route("fd00:10:244:2::9"), Route::Node(NodeIx(0)));
        assert_eq!(route("fd00:10:244:3::9"), Route::Nobody);
        assert_eq!(route("169.254.1.1"), Route::Router);
        assert_eq!(route("fe80::1"), Route::Router);
    }

    #[test]
    fn nodes_are_known_by_their_underlay_address() {
        let tables = tables();
        assert!(tables.is_node("192.0.2.1".parse().unwrap()));
        assert_eq!(tables.peer_by_underlay("192.0.2.2".parse().unwrap()), Some(NodeIx(0)));
        assert_eq!(tables.peer_by_underlay("192.0.2.1".parse().unwrap()), None);
        assert_eq!(tables.ports().count(), 2);
    }
}
