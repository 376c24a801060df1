//! What is declared and known, made into the switch's tables. Pure: same inputs, same tables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use vswitch::mac::Mac;
use vswitch::policy::{Established, PolicyTable};
use vswitch::port::PortIx;
use vswitch::service::ServiceTable;
use vswitch::tables::{Masquerade, Node, Peer, PortEntry, PortKind, Tables, TablesBuilder};

/// Everything that the tables are made from.
#[derive(Debug)]
pub struct Inputs {
    /// Number of the snapshot.
    pub generation: u64,
    /// This node's addresses.
    pub node: Node,
    /// The cluster ranges.
    pub ranges: Vec<IpNetwork>,
    /// MTU of `weft0`, once the host's port exists.
    pub host_mtu: Option<u16>,
    /// The pods on this node.
    pub pods: Vec<Pod>,
    /// The other live nodes.
    pub peers: Vec<Peer>,
    /// All Services.
    pub services: Arc<ServiceTable>,
    /// All pods with the policies for them.
    pub policies: Arc<PolicyTable>,
    /// What becomes of flows when policies change.
    pub established: Established,
}

/// A pod on this node.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its port in the switch.
    pub port: PortIx,
    /// MAC address of its interface.
    pub mac: Mac,
    /// MTU of its interface.
    pub mtu: u16,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is a pod of Kubernetes. Policies are about no other.
    pub is_pod: bool,
}

/// Makes the tables. Nodes beyond the tables' limit are left out and counted in the second value.
pub fn compile(inputs: Inputs) -> (Tables, usize) {
    let own_addresses = host_addresses(&inputs.node);
    let masquerade = masquerade(&inputs.node);
    let mut builder = TablesBuilder::new(inputs.generation, inputs.node, &inputs.ranges);
    builder.services(inputs.services).masquerade(masquerade);
    builder.policies(inputs.policies, inputs.established);
    if let Some(mtu) = inputs.host_mtu {
        let entry =
            PortEntry { kind: PortKind::Host, mac: Mac::HOST, mtu, addresses: own_addresses };
        builder.port(PortIx::HOST, entry);
    }
    for pod in inputs.pods {
        let entry =
            PortEntry { kind: PortKind::Pod, mac: pod.mac, mtu: pod.mtu, addresses: pod.addresses };
        builder.port(pod.port, entry);
        if !pod.is_pod {
            builder.exempt(pod.port);
        }
    }
    let left_out = inputs.peers.into_iter().filter_map(|peer| match builder.peer(peer) {
        Some(_) => None,
        None => Some(()),
    });
    let left_out = left_out.count();
    (builder.build(), left_out)
}

/// The address right before the gateway's, which is the lease's network address: no pod is ever given it.
fn masquerade(node: &Node) -> Masquerade {
    let v4 = |gateway: Ipv4Addr| Some(Ipv4Addr::from_bits(gateway.to_bits().checked_sub(1)?));
    let v6 = |gateway: Ipv6Addr| Some(Ipv6Addr::from_bits(gateway.to_bits().checked_sub(1)?));
    Masquerade { v4: node.gateway_v4.and_then(v4), v6: node.gateway_v6.and_then(v6) }
}

/// The addresses under which the node itself is reached through `weft0`.
fn host_addresses(node: &Node) -> Vec<IpAddr> {
    let gateways = [node.gateway_v4.map(IpAddr::V4), node.gateway_v6.map(IpAddr::V6)];
    gateways.into_iter().chain([node.underlay]).flatten().collect()
}

#[cfg(test)]
mod tests {
    use vswitch::tables::Route;

    use super::*;

    #[test]
    fn the_node_its_pods_and_its_peers_are_reachable() {
        let inputs = Inputs {
            generation: 7,
            node: Node {
                vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
                gateway_v4: Some([10, 244, 1, 1].into()),
                gateway_v6: Some("fd00:10:244:1::1".parse().unwrap()),
                underlay: Some([192, 0, 2, 1].into()),
                vxlan_port: 4789,
                gossip_port: 7946,
            },
            ranges: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
            host_mtu: Some(1450),
            pods: vec![Pod {
                port: PortIx(1),
                mac: Mac([2, 0, 0, 0, 1, 1]),
                mtu: 1450,
                addresses: vec![[10, 244, 1, 2].into()],
                is_pod: true,
            }],
            peers: vec![Peer {
                name: "b".to_owned(),
                underlay: "192.0.2.2:4789".parse().unwrap(),
                vtep_mac: Mac([2, 0, 0, 0, 0, 2]),
                mtu: 1450,
                leases: vec!["10.244.2.0/24".parse().unwrap()],
            }],
            services: Arc::new(ServiceTable::empty()),
            policies: Arc::new(PolicyTable::off()),
            established: Established::default(),
        };
        let (tables, left_out) = compile(inputs);
        assert_eq!(left_out, 0);
        assert_eq!(tables.generation, 7);
        let route = |text: &str| tables.route(text.parse().unwrap());
        for host in ["10.244.1.1", "fd00:10:244:1::1", "192.0.2.1"] {
            assert_eq!(route(host), Route::Host, "{host}");
        }
        assert_eq!(route("10.244.1.2"), Route::Port(PortIx(1)));
        for masquerade in ["10.244.1.0", "fd00:10:244:1::"] {
            assert_eq!(route(masquerade), Route::Router, "{masquerade}");
        }
        assert!(matches!(route("10.244.2.77"), Route::Node(_)));
        assert!(matches!(route("192.0.2.2"), Route::Node(_)));
    }
}
