//! What policies cost: frames of established flows of a pod that is isolated in both directions, the first frame of a
//! flow, frames of a flow to a Service, and frames of pods that no policy applies to, beside all this.

use std::sync::Arc;

use vswitch::config::Config;
use vswitch::frame::BATCH_MAX;
use vswitch::policy::{
    Action, BitSet, Direction as Side, Enforcement, Established, Isolation, Peers, PolicyName,
    PolicyTableBuilder, Rule, RuleName, RuleSet, RuleSetSpec, SelectorIx, Subject, Tier,
};
use vswitch::tables::TablesBuilder;

use super::Workload;
use super::node::{self, Family};
use super::pipeline::{Direction, Forward, Template};
use super::service;

/// Flows that there are.
const FLOWS: u16 = 1000;

const NODES: u16 = 10;
const PODS: u16 = 30;

/// The pods from 0 on that policies apply to.
const ISOLATED: u16 = 1;

pub fn workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let name = |what: &str| format!("policy/{what}-{}", family.name());
        let first = move |direction: Direction| direction.frames(family, 1, ISOLATED);
        all.push(Workload::new(name("from-pod"), BATCH_MAX, move || {
            forward(first(Direction::PortToNode), FLOWS, 1 << 17)
        }));
        all.push(Workload::new(name("to-pod"), BATCH_MAX, move || {
            forward(first(Direction::NodeToPort), FLOWS, 1 << 17)
        }));
        all.push(Workload::new(name("new-flow"), BATCH_MAX, move || {
            forward(first(Direction::PortToNode), 60_000, 1024)
        }));
        all.push(Workload::new(name("to-service"), BATCH_MAX, move || {
            forward(vec![service::request(family)], FLOWS, 1 << 17)
        }));
        all.push(Workload::new(name("plain-beside"), BATCH_MAX, move || {
            let mut forward = forward(first(Direction::PortToNode), FLOWS, 1 << 17);
            let frames = Direction::PortToNode.frames(family, NODES, PODS).into_iter();
            forward.replace(frames.skip(usize::from(NODES * ISOLATED)).collect());
            forward
        }));
    }
    all
}

fn forward(templates: Vec<Template>, source_ports: u16, flows_max: u32) -> Forward {
    let config = Config { flows_max, ..Config::default() };
    let tables = node::tables_with(NODES, PODS, |builder| {
        service::add_services(builder);
        add_policies(builder);
    });
    let mut forward = Forward::with_config(&config, tables, templates, source_ports);
    forward.run_all();
    forward
}

fn add_policies(builder: &mut TablesBuilder) {
    let rules = |direction| {
        let policy = PolicyName::new(Tier::Namespace, "bench/policy");
        let rule = Rule {
            name: RuleName::new(policy.clone(), direction, 0),
            action: Action::Accept,
            peers: Peers::Everybody,
            ports: Vec::new(),
        };
        let namespace = Some(Isolation { policies: vec![policy], rules: vec![rule] });
        Some(Arc::new(RuleSet::new(RuleSetSpec { namespace, ..RuleSetSpec::default() })))
    };
    let (egress, ingress) = (rules(Side::Egress), rules(Side::Ingress));
    let selectors: Arc<BitSet> = Arc::new([SelectorIx(1)].into_iter().collect());
    let mut table = PolicyTableBuilder::new(Enforcement::On);
    for pod in 0..PODS {
        let is_isolated = pod < ISOLATED;
        let subject = Arc::new(Subject {
            name: Arc::from(format!("bench/{pod}")),
            selectors: Arc::clone(&selectors),
            egress: egress.clone().filter(|_| is_isolated),
            ingress: ingress.clone().filter(|_| is_isolated),
            audit: false,
        });
        for family in Family::ALL {
            table.subject(family.pod(0, pod), Arc::clone(&subject));
        }
    }
    builder.policies(Arc::new(table.build(1)), Established::Recheck);
}
