//! What is measured of the tunnel: from frames to what the sockets are given, and back. See
//! `vswitch/benches/support` for the idea.

#![allow(dead_code, unreachable_pub, reason = "each benchmark uses a part")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up must stop")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use overlay::decap::{Decapsulator, OFFENCES_MAX};
use overlay::encap::{Encapsulator, Transmit};
use overlay::tunnel::source_of;
use overlay::vxlan::{self, Vni};
use vswitch::counters::{Counters, WorkerCounters};
use vswitch::frame::{BATCH_MAX, Batch, Frame, Pool};
use vswitch::port::{Context, NodeIx};
use vswitch::tables::Tables;
use vswitch::wire;

use super::support::node::{self, Family};
use super::support::offload::packets_of;
use super::support::packet::{Ends, MTU, SEGMENTS};
use super::support::{Round, Workload};

/// Payload of a small datagram.
const SMALL: usize = 64;

/// Other nodes.
const NODES: u16 = 10;

/// Most datagrams in one send, as kernels take them.
const DATAGRAMS_MAX: usize = 64;

/// Source sockets.
const SOCKETS: usize = 4;

/// The node that is spoken to.
const PEER: NodeIx = NodeIx(3);

pub fn workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for family in Family::ALL {
        for traffic in Traffic::ALL {
            let (name, units) =
                (format!("{}-{}", traffic.name(), family.name()), traffic.packets());
            all.push(Workload::new(format!("encapsulate/{name}"), units, move || {
                Encapsulating::new(traffic.frames(&node::to_node(family, 0, PEER)))
            }));
            // However they were sent, the packets of one flow arrive alike.
            if !matches!(traffic, Traffic::FullSegments) {
                all.push(Workload::new(format!("decapsulate/{name}"), units, move || {
                    let frames = traffic.frames(&node::from_node(family, PEER, 0));
                    let packets: Vec<_> = frames.iter().flat_map(packets_of).collect();
                    Decapsulating::new(&packets, !matches!(traffic, Traffic::SmallFlows))
                }));
            }
        }
    }
    all
}

#[derive(Debug, Clone, Copy)]
enum Traffic {
    /// One TCP flow, handed over as one.
    SuperFrame,
    /// One TCP flow, packet by packet.
    FullSegments,
    OneSmallFlow,
    /// A datagram of each of many flows.
    SmallFlows,
}

impl Traffic {
    const ALL: [Self; 4] =
        [Self::SuperFrame, Self::FullSegments, Self::OneSmallFlow, Self::SmallFlows];

    fn name(self) -> &'static str {
        match self {
            Self::SuperFrame => "super-frame",
            Self::FullSegments => "full-segments",
            Self::OneSmallFlow => "small-udp-one-flow",
            Self::SmallFlows => "small-udp-64-flows",
        }
    }

    fn packets(self) -> usize {
        match self {
            Self::SuperFrame | Self::FullSegments => SEGMENTS,
            Self::OneSmallFlow | Self::SmallFlows => BATCH_MAX,
        }
    }

    fn frames(self, ends: &Ends) -> Vec<Frame> {
        let packets = match self {
            Self::SuperFrame => return vec![ends.super_frame(SEGMENTS)],
            Self::FullSegments => vec![ends.tcp_of_mtu(); SEGMENTS],
            Self::OneSmallFlow => vec![ends.udp(SMALL); BATCH_MAX],
            Self::SmallFlows => (40_000..)
                .map(|port| Ends { ports: (port, 5201), ..*ends }.udp(SMALL))
                .take(BATCH_MAX)
                .collect(),
        };
        let frames = packets.iter().map(|packet| {
            let mut frame = Frame::new();
            assert!(frame.append(packet));
            frame
        });
        frames.collect()
    }
}

/// Frames for one node, until they are handed to the sockets.
struct Encapsulating {
    tables: Tables,
    encapsulator: Encapsulator,
    frames: Vec<Frame>,
    /// How many datagrams must come of them.
    datagrams: u64,
}

impl Encapsulating {
    fn new(frames: Vec<Frame>) -> Self {
        Self {
            tables: node::tables(NODES, 1),
            encapsulator: Encapsulator::new(Vni::WEFT, DATAGRAMS_MAX),
            datagrams: frames.iter().map(Frame::packets).sum(),
            frames,
        }
    }
}

impl Round for Encapsulating {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        let mut sent = 0;
        let mut transmit = |transmit: Transmit<'_>| {
            sent += transmit.datagrams;
            black_box(transmit.bytes);
        };
        let peer = self.tables.peer(PEER).unwrap();
        for frame in &self.frames {
            let headers = wire::parse(frame.data()).unwrap();
            let socket_ix = source_of(&headers, SOCKETS);
            self.encapsulator.push(peer, socket_ix, frame, &headers, &mut transmit).unwrap();
        }
        self.encapsulator.flush(&mut transmit);
        assert_eq!(sent, self.datagrams, "datagrams");
    }
}

/// What the socket has received from one node, until it is for the switch.
struct Decapsulating {
    tables: Tables,
    decapsulator: Decapsulator,
    pool: Pool,
    counters: Arc<CachePadded<WorkerCounters>>,
    messages: Vec<Message>,
    batch: Batch,
    /// How many frames must come of them.
    frames: usize,
}

/// What one receive returns: datagrams of `stride` bytes, which the kernel merged.
struct Message {
    stride: usize,
    bytes: Vec<u8>,
}

impl Decapsulating {
    /// Datagrams of one flow arrive merged, those of several do not.
    fn new(packets: &[Vec<u8>], is_one_flow: bool) -> Self {
        let merged = if is_one_flow { packets.len() } else { 1 };
        let messages = packets.chunks(merged).map(|packets| Message {
            stride: vxlan::HEADER_LEN + packets[0].len(),
            bytes: packets.iter().flat_map(|packet| datagram_of(packet)).collect(),
        });
        let offences = Arc::new(ArrayQueue::new(OFFENCES_MAX));
        Self {
            tables: node::tables(NODES, 1),
            decapsulator: Decapsulator::new(Vni::WEFT, MTU.try_into().unwrap(), offences),
            pool: Pool::new(packets.len()),
            counters: Counters::new(1, 2).worker(0),
            messages: messages.collect(),
            batch: Batch::with_capacity(packets.len()),
            frames: if is_one_flow { 1 } else { packets.len() },
        }
    }
}

impl Round for Decapsulating {
    fn prepare(&mut self) {
        for frame in self.batch.drain(..) {
            self.pool.put(frame);
        }
    }

    fn run(&mut self) {
        let Self { tables, pool, counters, batch, .. } = self;
        let mut context = Context { tables, pool, counters };
        let from = SocketAddr::new(node::underlay(PEER.0 + 1).ip(), 50_000);
        for Message { stride, bytes } in &self.messages {
            self.decapsulator.push(from, *stride, bytes, &mut context, batch);
        }
        self.decapsulator.finish(&context, batch);
        assert_eq!(batch.len(), self.frames, "frames");
    }
}

fn datagram_of(packet: &[u8]) -> Vec<u8> {
    [&vxlan::encode(Vni::WEFT), packet].concat()
}
