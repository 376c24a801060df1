//! What `Switch::forward` costs in a small cluster and in a large one: it should be the same.
//!
//! Only what is named grows; the rest stays at a few.

use vswitch::frame::BATCH_MAX;

use super::Workload;
use super::node::{self, Family};
use super::pipeline::{Direction, Forward};

/// What does not grow.
const FEW: u16 = 10;

pub fn workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for family in Family::ALL {
        for direction in [Direction::PortToNode, Direction::NodeToPort] {
            all.extend([1, 1000].map(|nodes| workload("nodes", nodes, direction, family)));
            all.extend([1, 100_000].map(|flows| workload("flows", flows, direction, family)));
        }
        for direction in Direction::ALL {
            // A pod alone on its node has no other to send to.
            let least = if matches!(direction, Direction::PortToPort) { 2 } else { 1 };
            all.extend([least, 250].map(|pods| workload("pods", pods, direction, family)));
        }
    }
    all
}

fn workload(what: &str, number: u32, direction: Direction, family: Family) -> Workload {
    let few = u32::from(FEW);
    let (nodes, pods, flows) = match what {
        "nodes" => (number, few, number * few),
        "pods" => (few, number, number * few),
        // One flow has two ends, however many others there are to choose from.
        "flows" => (few, few, number),
        _ => unreachable!("nothing else grows"),
    };
    let name = format!("scale/{what}-{}-{}/{number}", direction.name(), family.name());
    let frames = usize::try_from(flows).unwrap();
    let make = move || {
        let [nodes, pods] = [nodes, pods].map(|number| u16::try_from(number).unwrap());
        let mut templates = direction.frames(family, nodes, pods);
        templates.truncate(frames);
        let source_ports = u16::try_from((frames / templates.len()).max(1)).unwrap();
        Forward::new(node::tables(nodes, pods), templates, source_ports)
    };
    let rounds = u64::from(flows).div_ceil(BATCH_MAX as u64).max(8);
    Workload { rounds, ..Workload::new(name, BATCH_MAX, make) }
}
