//! The nodes of a cluster and who is on them: enough to make the tables of any node's switch. Pure.
//!
//! For a running cluster that is what the map tells; for manifests, what Nodes, Pods and slices say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use conf::NodeConfig;
use conf::cluster::{ClusterState, ObjectName, PodView, ServiceView};
use ipnetwork::IpNetwork;
use overlay::subnet::SubnetMap;
use vswitch::mac::Mac;
use vswitch::policy::{Established, PolicyTable};
use vswitch::port::PortIx;
use vswitch::tables::{Node, Peer, Tables};

use crate::control::compile::{self, Inputs, Pod};
use crate::control::endpoints::Place;
use crate::control::ranges;
use crate::control::services::ServiceTables;
use crate::dns::place;

/// No question depends on the length of a packet.
const MTU: u16 = 1450;

/// The nodes of a cluster.
#[derive(Debug, Clone, Default)]
pub struct World {
    nodes: BTreeMap<Arc<str>, WorldNode>,
    /// Addresses that somebody is said to have, nobody says where.
    elsewhere: BTreeSet<IpAddr>,
}

/// A node, as far as other nodes' switches know it.
#[derive(Debug, Clone, Default)]
struct WorldNode {
    underlay: Option<IpAddr>,
    leases: Vec<IpNetwork>,
    /// The addresses of each pod with a network of its own.
    pods: Vec<Vec<IpAddr>>,
}

impl World {
    /// The cluster as a running node knows it.
    pub fn of_map(map: &SubnetMap, state: &ClusterState) -> Self {
        let mut world = Self::default();
        for member in map.members.values().filter(|member| member.state.is_active()) {
            let node = WorldNode {
                underlay: Some(member.underlay),
                leases: member.prefixes().collect(),
                pods: Vec::new(),
            };
            world.nodes.insert(member.name.as_str().into(), node);
        }
        for pod in state.pods().filter(|pod| pod.attached && !pod.host_network) {
            let node = pod.node.as_ref().and_then(|node| world.nodes.get_mut(node));
            node.into_iter().for_each(|node| node.pods.push(pod.addresses.to_vec()));
        }
        world
    }

    /// The cluster as manifests declare it: what they say is there, is there.
    pub fn declared(state: &ClusterState) -> Self {
        let mut world = Self::default();
        for node in state.nodes() {
            let entry = world.nodes.entry(Arc::clone(&node.name)).or_default();
            entry.underlay = node.addresses.first().copied();
            entry.leases = node.pod_cidrs.to_vec();
        }
        let mut placed = BTreeSet::new();
        let pods = state.pods().filter(|pod| !pod.host_network && !pod.is_finished());
        for pod in pods.filter(|pod| !pod.addresses.is_empty()) {
            placed.extend(pod.addresses.iter().copied());
            match &pod.node {
                Some(node) => {
                    let entry = world.nodes.entry(Arc::clone(node)).or_default();
                    entry.pods.push(pod.addresses.to_vec());
                }
                None => world.elsewhere.extend(pod.addresses.iter().copied()),
            }
        }
        let of_nodes: BTreeSet<IpAddr> =
            state.nodes().flat_map(|node| node.addresses.iter().copied()).collect();
        for endpoint in state.services().flat_map(|view| view.endpoints.endpoints.iter()) {
            let address = endpoint.address;
            if of_nodes.contains(&address) || !placed.insert(address) {
                continue;
            }
            match &endpoint.node {
                Some(node) => {
                    world.nodes.entry(Arc::clone(node)).or_default().pods.push(vec![address]);
                }
                None => drop(world.elsewhere.insert(address)),
            }
        }
        world.nodes.retain(|name, _| !name.is_empty());
        world
    }

    /// The nodes' names, in their order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.keys()
    }

    /// Whether there is such a node.
    pub fn has(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// Adds a node of which nothing but its name is known.
    pub fn add(&mut self, node: &str) {
        self.nodes.entry(node.into()).or_default();
    }

    /// The node whose own address this is, or whose subnet it is out of.
    pub fn node_at(&self, address: IpAddr) -> Option<&Arc<str>> {
        let is_own = |node: &WorldNode| node.underlay == Some(address);
        let holds = |node: &WorldNode| {
            node.pods.iter().flatten().any(|pod| *pod == address)
                || node.leases.iter().any(|lease| lease.contains(address))
        };
        let find = |is: &dyn Fn(&WorldNode) -> bool| self.nodes.iter().find(|(_, node)| is(node));
        find(&is_own).or_else(|| find(&holds)).map(|(name, _)| name)
    }

    /// An address of this family that is the node's own.
    pub fn address_of(&self, node: &str, is_v4: bool) -> Option<IpAddr> {
        let node = self.nodes.get(node)?;
        let gateways = node.leases.iter().filter_map(|lease| gateway(*lease));
        node.underlay.into_iter().chain(gateways).find(|address| address.is_ipv4() == is_v4)
    }

    /// The tables of a node's switch, with all Services that have anything to do with one of the targets.
    pub fn tables(
        &self,
        node: &str,
        state: &ClusterState,
        config: &NodeConfig,
        targets: &BTreeSet<(IpAddr, u16)>,
    ) -> Tables {
        let (ranges, _) = ranges::of_services(config, state);
        let names = place::addresses(&config.dns, state);
        let place = Place { node: node.into(), zone: None, balancing: config.services.balancing };
        let mut services = ServiceTables::new(place, &ranges, &config.lease.ranges, names);
        let addresses = targets.iter().map(|(address, _)| *address).collect();
        let ports = targets.iter().map(|(_, port)| *port).collect();
        let concerned: BTreeSet<ObjectName> = state
            .services()
            .filter(|view| may_be_at(view, &addresses, &ports))
            .map(|view| view.service.id.clone())
            .collect();
        let node_addresses = first_of_each_family(state.node_addresses(node));
        let services = services.update(state, &concerned, node_addresses);

        let own = self.nodes.get(node).cloned().unwrap_or_default();
        let (v4, v6) = self.gateways(&own, &config.lease.ranges);
        let pods = (1..).zip(&own.pods).map(|(ix, addresses)| Pod {
            port: PortIx(ix),
            mac: Mac::HOST,
            mtu: MTU,
            addresses: addresses.clone(),
            is_pod: true,
        });
        let peers = self.nodes.iter().filter(|(name, _)| name.as_ref() != node);
        let peer = |name: &str, underlay, leases| Peer {
            name: name.to_owned(),
            underlay: SocketAddr::new(underlay, config.overlay.vxlan_port),
            vtep_mac: Mac::ROUTER,
            mtu: MTU,
            leases,
        };
        let peers = peers.map(|(name, other)| {
            let pods = other.pods.iter().flatten().map(|pod| IpNetwork::from(*pod));
            peer(
                name,
                other.underlay.unwrap_or(NOWHERE),
                other.leases.iter().copied().chain(pods).collect(),
            )
        });
        let elsewhere = self.elsewhere.iter().map(|address| IpNetwork::from(*address)).collect();
        let inputs = Inputs {
            generation: 1,
            node: Node {
                vtep_mac: Mac::HOST,
                gateway_v4: v4,
                gateway_v6: v6,
                underlay: own.underlay,
                vxlan_port: config.overlay.vxlan_port,
                gossip_port: config.overlay.gossip_port,
            },
            ranges: config.lease.ranges.clone(),
            host_mtu: Some(MTU),
            pods: pods.collect(),
            peers: peers.chain([peer("", NOWHERE, elsewhere)]).collect(),
            services,
            policies: Arc::new(PolicyTable::off()),
            established: Established::default(),
        };
        compile::compile(inputs).0
    }

    /// The first addresses of a node's subnets. A node without one has one all the same once it runs, so that
    /// something near the end of the range stands for it.
    fn gateways(
        &self,
        node: &WorldNode,
        ranges: &[IpNetwork],
    ) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let of_family = |is_v4: bool| {
            let mut leases =
                node.leases.iter().chain(ranges.iter()).filter(|lease| lease.is_ipv4() == is_v4);
            let lease = *leases.next()?;
            if node.leases.contains(&lease) { gateway(lease) } else { self.unused(lease) }
        };
        let v4 = of_family(true).and_then(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        });
        let v6 = of_family(false).and_then(|address| match address {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        });
        (v4, v6)
    }

    /// The last address of a range that nobody has, and neither the one before it.
    fn unused(&self, range: IpNetwork) -> Option<IpAddr> {
        let is_free = |address: IpAddr| {
            range.contains(address)
                && !self.elsewhere.contains(&address)
                && self.node_at(address).is_none()
        };
        let below = |count: u32| -> Option<IpAddr> {
            Some(match range {
                IpNetwork::V4(v4) => {
                    Ipv4Addr::from_bits(v4.broadcast().to_bits().checked_sub(count)?).into()
                }
                IpNetwork::V6(v6) => {
                    Ipv6Addr::from_bits(v6.broadcast().to_bits().checked_sub(count.into())?).into()
                }
            })
        };
        const TRIES: u32 = 1000;
        (0..TRIES).find_map(|count| {
            let (address, before) = (below(count)?, below(count + 1)?);
            (is_free(address) && is_free(before)).then_some(address)
        })
    }
}

/// Stands for a node whose own address nobody knows.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The first address of a subnet behind its network address.
fn gateway(lease: IpNetwork) -> Option<IpAddr> {
    Some(match lease {
        IpNetwork::V4(v4) => Ipv4Addr::from_bits(v4.network().to_bits().checked_add(1)?).into(),
        IpNetwork::V6(v6) => Ipv6Addr::from_bits(v6.network().to_bits().checked_add(1)?).into(),
    })
}

/// Whether anything of a Service may be at one of these addresses, or, at any address, at one of these node ports.
fn may_be_at(view: &ServiceView, addresses: &BTreeSet<IpAddr>, ports: &BTreeSet<u16>) -> bool {
    let all = view.cluster_ips.iter().chain(&view.load_balancer_ips);
    let mut all = all.chain(&view.service.external_ips);
    all.any(|address| addresses.contains(address))
        || view.node_ports.iter().flatten().any(|port| ports.contains(port))
}

fn first_of_each_family(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let first = |is_v4: bool| addresses.iter().find(|address| address.is_ipv4() == is_v4);
    first(true).into_iter().chain(first(false)).copied().collect()
}

/// The pod that has an address for itself.
pub fn pod_at(state: &ClusterState, address: IpAddr) -> Option<&Arc<PodView>> {
    let mut pods = state.pods_at(address).filter(|pod| !pod.host_network && !pod.is_finished());
    pods.next()
}
