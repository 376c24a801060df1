//! What a Service costs: frames of established flows in each direction, the first frame of a flow, and plain frames
//! while there are Services and flows.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use vswitch::config::Config;
use vswitch::frame::{BATCH_MAX, Ingress};
use vswitch::port::NodeIx;
use vswitch::service::{
    Algorithm, Endpoint, EndpointState, Frontend, Protocol, ServicePort, ServiceTableBuilder,
    TrafficPolicy,
};
use vswitch::tables::{Masquerade, TablesBuilder};
use vswitch::verdict::Egress;

use super::Workload;
use super::node::{self, Family};
use super::packet::Ends;
use super::pipeline::{Direction, Forward, PAYLOAD, Template};

/// Services in a large cluster.
const SERVICES: u32 = 10_000;

/// Flows that there are.
const FLOWS: u16 = 1000;

const NODES: u16 = 10;
const PODS: u16 = 30;

pub fn workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let name = |what: &str| format!("service/{what}-{}", family.name());
        all.push(Workload::new(name("to-endpoint"), BATCH_MAX, move || {
            forward(vec![request(family)], FLOWS, 1 << 17)
        }));
        all.push(Workload::new(name("from-endpoint"), BATCH_MAX, move || {
            let mut forward = forward(vec![request(family)], 1, 1 << 17);
            forward.replace(vec![reply(family)]);
            forward
        }));
        // So few flows fit that each is the first of its kind.
        all.push(Workload::new(name("new-flow"), BATCH_MAX, move || {
            forward(vec![request(family)], 60_000, 1024)
        }));
        all.push(Workload::new(name("plain-beside"), BATCH_MAX, move || {
            let mut forward = forward(vec![request(family)], FLOWS, 1 << 17);
            forward.replace(Direction::PortToNode.frames(family, NODES, PODS));
            forward
        }));
    }
    all
}

fn forward(templates: Vec<Template>, source_ports: u16, flows_max: u32) -> Forward {
    let config = Config { flows_max, ..Config::default() };
    let tables = node::tables_with(NODES, PODS, add_services);
    let mut forward = Forward::with_config(&config, tables, templates, source_ports);
    forward.run_all();
    forward
}

pub fn add_services(builder: &mut TablesBuilder) {
    let mut table = ServiceTableBuilder::new(vec![
        "10.96.0.0/16".parse().unwrap(),
        "fd00:10:96::/112".parse().unwrap(),
    ]);
    for family in Family::ALL {
        for number in 0..SERVICES {
            let endpoint = Endpoint {
                address: server(family).addresses.1,
                port: 5201,
                is_local: false,
                is_near: true,
                state: EndpointState::Ready,
            };
            let set = table.set(ServicePort {
                name: format!("bench/{number}:"),
                family: match family {
                    Family::V4 => vswitch::service::Family::V4,
                    Family::V6 => vswitch::service::Family::V6,
                },
                protocol: Protocol::Udp,
                frontends: vec![Frontend::ClusterIp {
                    address: cluster_ip(family, number),
                    port: 80,
                }],
                endpoints: vec![endpoint],
                internal_policy: TrafficPolicy::Cluster,
                external_policy: TrafficPolicy::Cluster,
                algorithm: Algorithm::Maglev,
                affinity: None,
            });
            set.unwrap();
        }
    }
    builder.services(Arc::new(table.build(1)));
    builder.masquerade(Masquerade::default());
}

fn cluster_ip(family: Family, number: u32) -> IpAddr {
    let low = u16::try_from(number + 1).unwrap();
    let [high, last] = low.to_be_bytes();
    match family {
        Family::V4 => IpAddr::from([10, 96, high, last]),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, low).into(),
    }
}

/// A pod here and the endpoint on another node.
fn server(family: Family) -> Ends {
    node::to_node(family, 0, NodeIx(0))
}

pub fn request(family: Family) -> Template {
    let pod = server(family);
    let to_service = Ends {
        addresses: (pod.addresses.0, cluster_ip(family, SERVICES / 2)),
        ports: (40_000, 80),
        ..pod
    };
    Template {
        bytes: to_service.udp(PAYLOAD),
        ingress: Ingress::Port(node::port(0)),
        egress: Egress::Node(NodeIx(0)),
    }
}

fn reply(family: Family) -> Template {
    let pod = node::from_node(family, NodeIx(0), 0);
    // The port of the first flow; that of the frame's source is the endpoint's.
    let from_endpoint = Ends { ports: (5201, 5000), ..pod };
    Template {
        bytes: from_endpoint.udp(PAYLOAD),
        ingress: Ingress::Node(NodeIx(0)),
        egress: Egress::Port(node::port(0)),
    }
}
