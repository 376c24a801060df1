//! Parsing, and the whole pipeline for small frames.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::utils::CachePadded;
use vswitch::config::Config;
use vswitch::counters::{Counters, WorkerCounters};
use vswitch::frame::{BATCH_MAX, Batch, Frame, Ingress, Pool};
use vswitch::port::{Context, NodeIx};
use vswitch::switch::Switch;
use vswitch::tables::Tables;
use vswitch::verdict::Egress;
use vswitch::wire;

use super::node::{self, Family};
use super::{Round, Workload};

/// Payload of a small frame.
pub const PAYLOAD: usize = 64;

/// Pods and other nodes of an ordinary node.
const PODS: u16 = 30;
const NODES: u16 = 10;

pub fn workloads() -> Vec<Workload> {
    let parse = Family::ALL.into_iter().flat_map(|family| {
        let ends = node::to_node(family, 0, NodeIx(0));
        let packets = [("tcp", ends.tcp(PAYLOAD)), ("udp", ends.udp(PAYLOAD))];
        packets.map(|(protocol, packet)| {
            let name = format!("parse/{protocol}-{}", family.name());
            Workload::new(name, BATCH_MAX, move || Parse { packet: packet.clone() })
        })
    });
    let forward = Family::ALL.into_iter().flat_map(|family| {
        Direction::ALL.map(|direction| {
            let name = format!("forward/{}-{}", direction.name(), family.name());
            Workload::new(name, BATCH_MAX, move || {
                let frames = direction.frames(family, NODES, PODS);
                Forward::new(node::tables(NODES, PODS), frames, 1)
            })
        })
    });
    parse.chain(forward).collect()
}

/// Which way frames go.
#[derive(Debug, Clone, Copy)]
pub enum Direction {
    PortToNode,
    NodeToPort,
    PortToPort,
}

impl Direction {
    pub const ALL: [Self; 3] = [Self::PortToNode, Self::NodeToPort, Self::PortToPort];

    pub fn name(self) -> &'static str {
        match self {
            Self::PortToNode => "port-to-node",
            Self::NodeToPort => "node-to-port",
            Self::PortToPort => "port-to-port",
        }
    }

    /// One frame for each pair of a pod and a node; between pods, one from each to the next.
    pub fn frames(self, family: Family, nodes: u16, pods: u16) -> Vec<Template> {
        let pairs = move || (0..pods).flat_map(move |pod| (0..nodes).map(move |node| (pod, node)));
        match self {
            Self::PortToNode => pairs()
                .map(|(pod, node)| Template {
                    bytes: node::to_node(family, pod, NodeIx(node)).udp(PAYLOAD),
                    ingress: Ingress::Port(node::port(pod)),
                    egress: Egress::Node(NodeIx(node)),
                })
                .collect(),
            Self::NodeToPort => pairs()
                .map(|(pod, node)| Template {
                    bytes: node::from_node(family, NodeIx(node), pod).udp(PAYLOAD),
                    ingress: Ingress::Node(NodeIx(node)),
                    egress: Egress::Port(node::port(pod)),
                })
                .collect(),
            Self::PortToPort => (0..pods)
                .map(|pod| (pod, (pod + 1) % pods))
                .map(|(from, to)| Template {
                    bytes: node::between_pods(family, from, to).udp(PAYLOAD),
                    ingress: Ingress::Port(node::port(from)),
                    egress: Egress::Port(node::port(to)),
                })
                .collect(),
        }
    }
}

/// A frame as it comes in, and where it must go.
pub struct Template {
    pub bytes: Vec<u8>,
    pub ingress: Ingress,
    pub egress: Egress,
}

struct Parse {
    packet: Vec<u8>,
}

impl Round for Parse {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        for _ in 0..BATCH_MAX {
            black_box(wire::parse(black_box(&self.packet))).unwrap();
        }
    }
}

/// A batch of frames through the switch.
pub struct Forward {
    tables: Tables,
    switch: Switch,
    pool: Pool,
    counters: Arc<CachePadded<WorkerCounters>>,
    now: Instant,
    batch: Batch,
    out: Vec<(Egress, Frame)>,
    templates: Vec<Template>,
    /// Source ports that every template is sent with.
    source_ports: u16,
    /// Frames made so far.
    made: usize,
    /// Where the frames at hand must go.
    expected: Vec<Egress>,
}

impl Forward {
    pub fn new(tables: Tables, templates: Vec<Template>, source_ports: u16) -> Self {
        Self::with_config(&Config::default(), tables, templates, source_ports)
    }

    pub fn with_config(
        config: &Config,
        tables: Tables,
        templates: Vec<Template>,
        source_ports: u16,
    ) -> Self {
        let now = Instant::now();
        Self {
            counters: Counters::new(1, tables.ports().count()).worker(0),
            tables,
            switch: Switch::new(config, now),
            pool: Pool::new(BATCH_MAX),
            now,
            batch: Batch::with_capacity(BATCH_MAX),
            out: Vec::with_capacity(BATCH_MAX),
            templates,
            source_ports,
            made: 0,
            expected: Vec::with_capacity(BATCH_MAX),
        }
    }

    /// Takes back what came out, and checks it.
    fn take_back(&mut self) {
        assert!(
            self.out.iter().map(|(egress, _)| egress).eq(&self.expected),
            "a frame went astray"
        );
        self.expected.clear();
        for (_, frame) in self.out.drain(..) {
            self.pool.put(frame);
        }
    }

    /// Sends every frame once.
    pub fn run_all(&mut self) {
        let all = self.templates.len() * usize::from(self.source_ports);
        for _ in 0..all.div_ceil(BATCH_MAX) {
            self.prepare();
            self.run();
        }
        self.take_back();
    }

    /// Sends other frames from now on, each with the source port that it has.
    pub fn replace(&mut self, templates: Vec<Template>) {
        self.templates = templates;
        self.made = 0;
        self.source_ports = 0;
    }

    /// The next frame: all templates in turn, then all again with the next source port.
    fn make_frame(&mut self) {
        let template = &self.templates[self.made % self.templates.len()];
        let ports = usize::from(self.source_ports).max(1);
        let turn = self.made / self.templates.len() % ports;
        let mut frame = self.pool.take().unwrap();
        assert!(frame.append(&template.bytes));
        // UDP ends the frame: its header stands right before the payload.
        let at = frame.len() - PAYLOAD - wire::udp::HEADER_LEN;
        if self.source_ports != 0 {
            let source_port = 5000 + u16::try_from(turn).unwrap();
            frame.data_mut()[at..at + 2].copy_from_slice(&source_port.to_be_bytes());
        }
        frame.meta.ingress = template.ingress;
        self.batch.push(frame);
        self.expected.push(template.egress);
        self.made += 1;
    }
}

impl Round for Forward {
    fn prepare(&mut self) {
        self.take_back();
        for _ in 0..BATCH_MAX {
            self.make_frame();
        }
    }

    fn run(&mut self) {
        let Self { tables, pool, counters, .. } = self;
        let mut context = Context { tables, pool, counters };
        self.switch.forward(&mut context, self.now, &mut self.batch, &mut self.out);
    }
}
