//! Everything that the data path needs to know, in one immutable snapshot.
//!
//! The control side builds [`Tables`] whole from what is declared and known, and swaps them in; a
//! worker borrows them for the length of one batch. Nothing in here is ever changed in place.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnetwork::IpNetwork;

use crate::ix::{NodeIx, PortIx};
use crate::mac::Mac;
use crate::policy::{Enforcement, Established, PolicyTable};
use crate::prefix_map::PrefixMap;
use crate::service::{AddressFilter, ServiceTable};

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
    ports: Vec<Option<Port>>,
    peers: Vec<Peer>,
    by_underlay: HashMap<IpAddr, NodeIx, RandomState>,
    routes_v4: PrefixMap<u32, Route>,
    routes_v6: PrefixMap<u128, Route>,
    services: Arc<ServiceTable>,
    masquerade: Masquerade,
    /// Everything that may be a Service's address, but for the ranges of cluster IPs.
    service_filter: AddressFilter,
    /// Whether there is any such address or range.
    has_service_addresses: bool,
    policies: Arc<PolicyTable>,
    established: Established,
}

/// The addresses by which the switch takes a client's place. Nobody else may have them; they lead to the switch.
///
/// The network address of the node's lease is one that no pod is ever given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// For IPv4.
    pub v4: Option<Ipv4Addr>,
    /// For IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Masquerade {
    /// The address of the family of `address`.
    pub fn for_family_of(self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    fn addresses(self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
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

/// A local port in the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) entry: PortEntry,
    pub(crate) gate: Gate,
}

impl Deref for Port {
    type Target = PortEntry;

    fn deref(&self) -> &PortEntry {
        &self.entry
    }
}

/// Whether policies have to be asked about what somebody sends or is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gate(u8);

impl Gate {
    /// They say nothing about it.
    pub(crate) const OPEN: Self = Self(0);
    /// They must be asked.
    pub(crate) const JUDGED: Self = Self(1);
    /// They are not known yet.
    pub(crate) const SHUT: Self = Self(2);

    /// What holds for a packet that passes both.
    #[inline]
    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[inline]
    pub(crate) fn is_open(self) -> bool {
        self == Self::OPEN
    }

    pub(crate) fn is_shut(self) -> bool {
        self.0 & Self::SHUT.0 != 0
    }
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

impl Tables {
    /// Finds where `address` leads.
    #[inline(always)]
    pub fn route(&self, address: IpAddr) -> Route {
        let route = match address {
            IpAddr::V4(v4) => self.routes_v4.get(v4.to_bits()),
            IpAddr::V6(v6) => self.routes_v6.get(v6.to_bits()),
        };
        route.copied().unwrap_or(Route::Outside)
    }

    /// The local port at `ix`.
    pub fn port(&self, ix: PortIx) -> Option<&PortEntry> {
        self.gated_port(ix).map(|port| &port.entry)
    }

    #[inline]
    pub(crate) fn gated_port(&self, ix: PortIx) -> Option<&Port> {
        self.ports.get(ix.ix())?.as_ref()
    }

    /// All local ports with their indexes.
    pub fn ports(&self) -> impl Iterator<Item = (PortIx, &PortEntry)> {
        (0..).zip(&self.ports).filter_map(|(ix, port)| Some((PortIx(ix), &port.as_ref()?.entry)))
    }

    /// The node at `ix`.
    #[inline]
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

    /// All Services.
    #[inline]
    pub fn services(&self) -> &ServiceTable {
        &self.services
    }

    /// The addresses by which the switch takes a client's place.
    pub fn masquerade(&self) -> Masquerade {
        self.masquerade
    }

    /// Whether a packet to `address` may be to a Service. Seldom wrong if it says yes, and never if it says no.
    #[inline]
    pub fn may_be_service(&self, address: IpAddr) -> bool {
        self.has_service_addresses
            && (self.service_filter.may_hold(address) || self.services.is_in_range(address))
    }

    /// All pods with the policies for them.
    #[inline]
    pub fn policies(&self) -> &PolicyTable {
        &self.policies
    }

    /// What becomes of flows when policies change.
    pub fn established(&self) -> Established {
        self.established
    }

    /// Whether policies have to be asked about flows to Services: they may be for pods elsewhere.
    #[inline]
    pub(crate) fn gate_of_translated(&self) -> Gate {
        if self.policies.enforcement() == Enforcement::Off { Gate::OPEN } else { Gate::JUDGED }
    }

    /// Whether `address` is one by which the switch of another node takes a client's place.
    pub(crate) fn is_masquerade_elsewhere(&self, address: IpAddr) -> bool {
        self.lease_elsewhere(address).is_some_and(|lease| lease.network() == address)
    }

    /// Whether `address` is a pod's on another node, as far as routes say.
    pub(crate) fn is_pod_elsewhere(&self, address: IpAddr) -> bool {
        let is_node_own = |lease: &IpNetwork| {
            offset(address, lease.network()).is_some_and(|distance| distance <= 1)
        };
        match self.route(address) {
            Route::Node(_) if self.is_node(address) => false,
            Route::Node(_) => !self.lease_elsewhere(address).is_some_and(is_node_own),
            Route::Port(_) | Route::Host | Route::Router | Route::Nobody | Route::Outside => false,
        }
    }

    /// The other node's lease that holds `address`. A single address that is a pod's is no lease.
    fn lease_elsewhere(&self, address: IpAddr) -> Option<&IpNetwork> {
        let Route::Node(node) = self.route(address) else { return None };
        let is_range = |lease: &&IpNetwork| match lease {
            IpNetwork::V4(v4) => v4.prefix() <= 30,
            IpNetwork::V6(v6) => v6.prefix() <= 126,
        };
        let leases = self.peer(node)?.leases.iter().filter(is_range);
        leases.into_iter().find(|lease| lease.contains(address))
    }

    /// Whether `address` is one of this node's own.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.route(address) == Route::Host || self.services.is_node_own(address)
    }

    /// Whether `address` is the underlay address of a live node, or of this one.
    pub fn is_node(&self, address: IpAddr) -> bool {
        self.node.underlay == Some(address) || self.by_underlay.contains_key(&address)
    }
}

/// How far `address` lies behind `start`, of the same family.
fn offset(address: IpAddr, start: IpAddr) -> Option<u128> {
    match (address, start) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.to_bits().checked_sub(b.to_bits()).map(u128::from),
        (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits().checked_sub(b.to_bits()),
        _ => None,
    }
}

/// Puts [`Tables`] together.
#[derive(Debug)]
pub struct TablesBuilder {
    tables: Tables,
    exempt: Vec<PortIx>,
}

impl TablesBuilder {
    /// Starts with a node and the cluster ranges; every address in them that nobody claims later leads
    /// to [`Route::Nobody`].
    pub fn new(generation: u64, node: Node, ranges: &[IpNetwork]) -> Self {
        Self::with_seed(generation, node, ranges, RandomState::default().hash_one(0_u8))
    }

    /// The same, with routes that are hashed by `seed` and not by chance: for who compares what two builds take. Where
    /// others name addresses, nobody may know the seed.
    pub fn with_seed(generation: u64, node: Node, ranges: &[IpNetwork], seed: u64) -> Self {
        let tables = Tables {
            generation,
            node,
            ports: Vec::new(),
            peers: Vec::new(),
            by_underlay: HashMap::default(),
            routes_v4: PrefixMap::new(seed),
            routes_v6: PrefixMap::new(seed),
            services: Arc::new(ServiceTable::empty()),
            masquerade: Masquerade::default(),
            service_filter: AddressFilter::empty(),
            has_service_addresses: false,
            policies: Arc::new(PolicyTable::off()),
            established: Established::default(),
        };
        let mut builder = Self { tables, exempt: Vec::new() };
        for range in ranges {
            builder.lead(*range, Route::Nobody);
        }
        for router in [IpAddr::V4(ROUTER_V4), IpAddr::V6(ROUTER_V6)] {
            builder.lead(router.into(), Route::Router);
        }
        builder
    }

    /// Adds a local port. An address that an earlier port holds stays with that one.
    pub fn port(&mut self, ix: PortIx, entry: PortEntry) -> &mut Self {
        let route = if ix == PortIx::HOST { Route::Host } else { Route::Port(ix) };
        for address in &entry.addresses {
            self.lead((*address).into(), route);
        }
        let ports = &mut self.tables.ports;
        if ports.len() <= ix.ix() {
            ports.resize(ix.ix() + 1, None);
        }
        // What policies say of it is found out at the end.
        ports[ix.ix()] = Some(Port { entry, gate: Gate::OPEN });
        self
    }

    /// Says that what is behind a port is no pod, so that policies are never about it, and nobody waits for any.
    pub fn exempt(&mut self, ix: PortIx) -> &mut Self {
        self.exempt.push(ix);
        self
    }

    /// Adds another live node: its leases and its underlay address lead to it, but for what is local.
    ///
    /// Returns `None`, and adds nothing, once there are 65 536 nodes.
    pub fn peer(&mut self, peer: Peer) -> Option<NodeIx> {
        let ix = NodeIx(u16::try_from(self.tables.peers.len()).ok()?);
        let address = peer.underlay.ip();
        for prefix in peer.leases.iter().copied().chain([address.into()]) {
            self.lead(prefix, Route::Node(ix));
        }
        self.tables.by_underlay.insert(address, ix);
        self.tables.peers.push(peer);
        Some(ix)
    }

    /// Takes up all Services. Without them there are none.
    pub fn services(&mut self, services: Arc<ServiceTable>) -> &mut Self {
        self.tables.services = services;
        self
    }

    /// Sets the addresses by which the switch takes a client's place. Without one of its family, a connection that
    /// needs it is refused.
    pub fn masquerade(&mut self, masquerade: Masquerade) -> &mut Self {
        self.tables.masquerade = masquerade;
        for address in masquerade.addresses() {
            self.lead(address.into(), Route::Router);
        }
        self
    }

    /// Takes up all policies, and what becomes of flows when they change. Without them there cannot be any.
    pub fn policies(&mut self, policies: Arc<PolicyTable>, established: Established) -> &mut Self {
        self.tables.policies = policies;
        self.tables.established = established;
        self
    }

    /// Finishes the snapshot.
    pub fn build(mut self) -> Tables {
        self.set_gates();
        let tables = &self.tables;
        let mut filter = tables.services.filter().clone();
        if tables.services.has_node_ports() {
            let peers = tables.peers.iter().map(|peer| peer.underlay.ip());
            let own = tables.services.node_addresses().iter().copied();
            peers.chain(own).chain(tables.node.underlay).for_each(|node| filter.insert(node));
        }
        self.tables.has_service_addresses = !filter.is_empty() || self.tables.services.has_ranges();
        self.tables.service_filter = filter;
        self.tables
    }

    /// A pod that is not known is shut off, until it is.
    fn set_gates(&mut self) {
        let policies = &self.tables.policies;
        if policies.enforcement() == Enforcement::Off {
            return;
        }
        let ports = (0..).zip(&mut self.tables.ports);
        let pods = ports.filter(|(ix, _)| !self.exempt.contains(&PortIx(*ix)));
        let pods = pods.filter_map(|(_, port)| port.as_mut());
        for port in pods.filter(|port| port.entry.kind == PortKind::Pod) {
            let of_address = |address: &IpAddr| match policies.subject(*address) {
                None => Gate::SHUT,
                Some(subject) if subject.is_judged() => Gate::JUDGED,
                Some(_) => Gate::OPEN,
            };
            port.gate = port.entry.addresses.iter().map(of_address).fold(Gate::OPEN, Gate::and);
        }
    }

    /// Lets `prefix` lead to `route`, unless something nearer has the same prefix already.
    fn lead(&mut self, prefix: IpNetwork, route: Route) {
        let Tables { routes_v4, routes_v6, .. } = &mut self.tables;
        let place = match prefix {
            IpNetwork::V4(v4) => {
                routes_v4.get_or_insert(v4.ip().to_bits(), v4.mask().to_bits(), route)
            }
            IpNetwork::V6(v6) => {
                routes_v6.get_or_insert(v6.ip().to_bits(), v6.mask().to_bits(), route)
            }
        };
        let gives_way = match place {
            Route::Port(_) | Route::Host => false,
            Route::Router => matches!(route, Route::Port(_) | Route::Host),
            Route::Node(_) | Route::Nobody | Route::Outside => true,
        };
        if gives_way {
            *place = route;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node() -> Node {
        Node {
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            gateway_v4: Some(Ipv4Addr::new(10, 244, 1, 1)),
            gateway_v6: None,
            underlay: Some("192.0.2.1".parse().unwrap()),
            vxlan_port: 4789,
            gossip_port: 7946,
        }
    }

    fn tables() -> Tables {
        let ranges = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
        let mut builder = TablesBuilder::new(1, node(), &ranges);
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

    /// Somebody who claims addresses.
    #[derive(Debug, Clone)]
    enum Claim {
        Port(PortIx, Vec<IpAddr>),
        Peer(IpAddr, Vec<IpNetwork>),
    }

    /// Addresses of which many are equal, and more have a long prefix in common.
    fn address() -> impl Strategy<Value = IpAddr> {
        let v4 = prop::sample::select(&[[10, 244], [10, 245], [169, 254]][..]);
        let v6 = prop::sample::select(&[0xfd00, 0xfe80][..]);
        prop_oneof![
            (v4, 0_u8..3, 0_u8..3).prop_map(|([a, b], c, d)| IpAddr::from([a, b, c, d])),
            (v6, 0_u16..2, 0_u16..2, 0_u16..3)
                .prop_map(|(a, b, c, d)| IpAddr::from([a, 0, 0, b, 0, 0, c, d])),
        ]
    }

    fn prefix() -> impl Strategy<Value = IpNetwork> {
        const LENS: &[u8] = &[0, 8, 15, 24, 31, 32, 48, 63, 64, 65, 112, 127, 128];
        (address(), prop::sample::select(LENS)).prop_map(|(address, len)| {
            let len_max = if address.is_ipv4() { 32 } else { 128 };
            IpNetwork::new(address, len.min(len_max)).unwrap()
        })
    }

    fn claim() -> impl Strategy<Value = Claim> {
        prop_oneof![
            (0_u16..4, prop::collection::vec(address(), 0..4))
                .prop_map(|(ix, addresses)| Claim::Port(PortIx(ix), addresses)),
            (address(), prop::collection::vec(prefix(), 0..4))
                .prop_map(|(underlay, leases)| Claim::Peer(underlay, leases)),
        ]
    }

    /// A prefix, what decides between equal ones (the highest does), and where it leads.
    type Lead = (IpNetwork, (u8, i32), Route);

    /// Everything that leads somewhere. What is nearer decides; then, of ports, the first, and of nodes, the
    /// last.
    fn leads(ranges: &[IpNetwork], claims: &[Claim]) -> Vec<Lead> {
        let routers = [IpAddr::V4(ROUTER_V4), IpAddr::V6(ROUTER_V6)].map(IpNetwork::from);
        let mut leads: Vec<Lead> = routers.map(|router| (router, (2, 0), Route::Router)).into();
        leads.extend(ranges.iter().map(|range| (*range, (0, 0), Route::Nobody)));
        let mut peers = 0;
        for (turn, claim) in (0..).zip(claims) {
            match claim {
                Claim::Port(ix, addresses) => {
                    let route = if ix.0 == 0 { Route::Host } else { Route::Port(*ix) };
                    let prefixes = addresses.iter().copied().map(IpNetwork::from);
                    leads.extend(prefixes.map(|prefix| (prefix, (3, -turn), route)));
                }
                Claim::Peer(underlay, leases) => {
                    let route = Route::Node(NodeIx(peers));
                    let prefixes = leases.iter().copied().chain([(*underlay).into()]);
                    leads.extend(prefixes.map(|prefix| (prefix, (1, turn), route)));
                    peers += 1;
                }
            }
        }
        leads
    }

    proptest! {
        #[test]
        fn an_address_leads_where_looking_at_every_claim_leads(
            ranges in prop::collection::vec(prefix(), 0..3),
            claims in prop::collection::vec(claim(), 0..12),
            addresses in prop::collection::vec(address(), 50),
        ) {
            let mut builder = TablesBuilder::new(1, node(), &ranges);
            for claim in claims.clone() {
                match claim {
                    Claim::Port(ix, addresses) => {
                        let (kind, mac) = (PortKind::Pod, Mac::HOST);
                        builder.port(ix, PortEntry { kind, mac, mtu: 1450, addresses });
                    }
                    Claim::Peer(underlay, leases) => {
                        let underlay = (underlay, 4789).into();
                        let (name, vtep_mac) = (String::new(), Mac::HOST);
                        builder.peer(Peer { name, underlay, vtep_mac, mtu: 1450, leases });
                    }
                }
            }
            let tables = builder.build();
            let leads = leads(&ranges, &claims);
            for address in addresses {
                let holders = leads.iter().filter(|(prefix, ..)| prefix.contains(address));
                let best = holders.max_by_key(|(prefix, rank, _)| (prefix.prefix(), *rank));
                let expected = best.map_or(Route::Outside, |(.., route)| *route);
                prop_assert_eq!(tables.route(address), expected, "{}", address);
            }
        }
    }
}
