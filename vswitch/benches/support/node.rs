//! A node of a cluster: its pods, and the other nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;
use vswitch::mac::Mac;
use vswitch::port::{NodeIx, PortIx};
use vswitch::tables::{Node, Peer, PortEntry, PortKind, Tables, TablesBuilder};

use super::packet::{Ends, MTU};

/// The VTEP of the node itself.
const VTEP: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// The VTEP of all other nodes.
pub const PEER_VTEP: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// The address of pod `pod` (from 0) on the node that holds lease `lease`.
    pub fn pod(self, lease: u16, pod: u16) -> IpAddr {
        let [high, low] = lease.to_be_bytes();
        match self {
            Self::V4 => IpAddr::from([10, high, low, u8::try_from(pod + 2).unwrap()]),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, lease, 0, 0, 0, pod + 2).into(),
        }
    }
}

/// A node with `pods` pods, which holds lease 0, among `nodes` others with the leases behind it.
pub fn tables(nodes: u16, pods: u16) -> Tables {
    tables_with(nodes, pods, |_| {})
}

/// The same, with something added.
pub fn tables_with(nodes: u16, pods: u16, add: impl FnOnce(&mut TablesBuilder)) -> Tables {
    let ranges = ["10.0.0.0/14".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
    let node = Node {
        vtep_mac: VTEP,
        gateway_v4: Some(Ipv4Addr::new(10, 0, 0, 1)),
        gateway_v6: Some(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1)),
        underlay: Some(underlay(0).ip()),
        vxlan_port: 4789,
        gossip_port: 7946,
    };
    let mut builder = TablesBuilder::with_seed(1, node, &ranges, 7);
    let mut host = vec![underlay(0).ip()];
    host.extend([Ipv4Addr::new(10, 0, 0, 1).into(), "fd00:10:244::1".parse::<IpAddr>().unwrap()]);
    let mtu = u16::try_from(MTU).unwrap();
    let host = PortEntry { kind: PortKind::Host, mac: Mac::HOST, mtu, addresses: host };
    builder.port(PortIx::HOST, host);
    for pod in 0..pods {
        let addresses = Family::ALL.map(|family| family.pod(0, pod)).into();
        let entry = PortEntry { kind: PortKind::Pod, mac: pod_mac(pod), mtu, addresses };
        builder.port(port(pod), entry);
    }
    for node in 0..nodes {
        let added = builder.peer(Peer {
            name: format!("node-{node}"),
            underlay: underlay(node + 1),
            vtep_mac: PEER_VTEP,
            mtu,
            leases: vec![
                IpNetwork::new(Family::V4.pod(node + 1, 0), 24).unwrap(),
                IpNetwork::new(Family::V6.pod(node + 1, 0), 64).unwrap(),
            ],
        });
        assert_eq!(added, Some(NodeIx(node)));
    }
    add(&mut builder);
    builder.build()
}

/// The port of pod `pod`.
pub fn port(pod: u16) -> PortIx {
    PortIx(pod + 1)
}

/// From pod `pod` to a pod on another node.
pub fn to_node(family: Family, pod: u16, node: NodeIx) -> Ends {
    Ends {
        macs: (pod_mac(pod), Mac::ROUTER),
        addresses: (family.pod(0, pod), family.pod(node.0 + 1, 7)),
        ports: (40_000, 5201),
    }
}

/// From a pod on another node to pod `pod`.
pub fn from_node(family: Family, node: NodeIx, pod: u16) -> Ends {
    Ends {
        macs: (PEER_VTEP, VTEP),
        addresses: (family.pod(node.0 + 1, 7), family.pod(0, pod)),
        ports: (40_000, 5201),
    }
}

/// From pod to pod.
pub fn between_pods(family: Family, from: u16, to: u16) -> Ends {
    Ends {
        macs: (pod_mac(from), Mac::ROUTER),
        addresses: (family.pod(0, from), family.pod(0, to)),
        ports: (40_000, 5201),
    }
}

/// Where the node that holds lease `lease` receives VXLAN.
pub fn underlay(lease: u16) -> SocketAddr {
    let [high, low] = lease.to_be_bytes();
    SocketAddr::from(([172, 16, high, low], 4789))
}

fn pod_mac(pod: u16) -> Mac {
    let [high, low] = pod.to_be_bytes();
    Mac([0x0a, 0x58, 10, 0, high, low])
}
