//! Finding where an address leads, in the tables of a large node.

use std::hint::black_box;
use std::net::IpAddr;

use vswitch::port::NodeIx;
use vswitch::tables::{Route, Tables};

use super::node::{self, Family};
use super::{Round, Workload};

const NODES: u16 = 1000;
const PODS: u16 = 250;

pub fn workloads() -> Vec<Workload> {
    let routes = Family::ALL.into_iter().flat_map(|family| {
        let name = |what| format!("route/{what}-{}", family.name());
        [
            Workload::new(name("pod"), PODS.into(), move || Lookup::new(to_pods(family))),
            Workload::new(name("node"), NODES.into(), move || Lookup::new(to_nodes(family))),
            Workload::new(name("outside"), PODS.into(), move || Lookup::new(outside(family))),
        ]
    });
    let members = Workload::new("route/member", NODES.into(), || Members {
        tables: node::tables(NODES, PODS),
        addresses: (1..=NODES).map(|lease| node::underlay(lease).ip()).collect(),
    });
    routes.chain([members]).collect()
}

fn to_pods(family: Family) -> Vec<(IpAddr, Route)> {
    (0..PODS)
        .map(|pod| (node::between_pods(family, 0, pod).addresses.1, Route::Port(node::port(pod))))
        .collect()
}

fn to_nodes(family: Family) -> Vec<(IpAddr, Route)> {
    let nodes = (0..NODES).map(NodeIx);
    nodes.map(|node| (node::to_node(family, 0, node).addresses.1, Route::Node(node))).collect()
}

fn outside(family: Family) -> Vec<(IpAddr, Route)> {
    let address = |ix: u16| match family {
        Family::V4 => IpAddr::from([198, 51, 100, u8::try_from(ix).unwrap()]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, ix, 0, 0, 0, 1]),
    };
    (0..PODS).map(|ix| (address(ix), Route::Outside)).collect()
}

struct Lookup {
    tables: Tables,
    addresses: Vec<IpAddr>,
}

impl Lookup {
    fn new(expected: Vec<(IpAddr, Route)>) -> Self {
        let tables = node::tables(NODES, PODS);
        for (address, route) in &expected {
            assert_eq!(tables.route(*address), *route, "{address}");
        }
        Self { tables, addresses: expected.into_iter().map(|(address, _)| address).collect() }
    }
}

impl Round for Lookup {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        for address in &self.addresses {
            black_box(self.tables.route(black_box(*address)));
        }
    }
}

/// Which node a tunnel packet comes from.
struct Members {
    tables: Tables,
    addresses: Vec<IpAddr>,
}

impl Round for Members {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        for address in &self.addresses {
            assert!(self.tables.peer_by_underlay(black_box(*address)).is_some());
        }
    }
}
