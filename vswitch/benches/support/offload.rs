//! Cutting super-frames, and making them.

use std::hint::black_box;

use vswitch::frame::{BATCH_MAX, Batch, Frame, Ingress, Pool};
use vswitch::offload::{Coalescer, Cut, Options};
use vswitch::port::NodeIx;
use vswitch::wire;

use super::node::{self, Family};
use super::packet::{Ends, MTU, SEGMENTS};
use super::{Round, Workload};

/// Payload of a small datagram.
const SMALL: usize = 64;

pub fn workloads() -> Vec<Workload> {
    let mut all = Vec::new();
    for family in Family::ALL {
        let v = family.name();
        let ends = node::from_node(family, NodeIx(0), 0);
        // The same with `flows` different source ports.
        let flows = move |flows: u16| {
            (0..flows).map(move |flow| Ends { ports: (40_000 + flow, 5201), ..ends })
        };
        all.push(Workload::new(format!("cut/super-frame-{v}"), SEGMENTS, move || Cutting {
            frame: ends.super_frame(SEGMENTS),
            packet: vec![0; MTU + wire::ETHERNET_LEN],
        }));
        all.push(Workload::new(format!("coalesce/one-flow-{v}"), SEGMENTS, move || {
            Coalescing::new(packets_of(&ends.super_frame(SEGMENTS)), 1)
        }));
        let name = format!("coalesce/64-flows-interleaved-{v}");
        all.push(Workload::new(name, 64 * 4, move || {
            let flows: Vec<_> = flows(64).map(|ends| packets_of(&ends.super_frame(4))).collect();
            let packets = (0..4).flat_map(|ix| flows.iter().map(move |flow| flow[ix].clone()));
            Coalescing::new(packets.collect(), 64)
        }));
        all.push(Workload::new(format!("coalesce/small-udp-one-flow-{v}"), BATCH_MAX, move || {
            Coalescing::new(vec![ends.udp(SMALL); BATCH_MAX], 1)
        }));
        all.push(Workload::new(format!("coalesce/small-udp-64-flows-{v}"), BATCH_MAX, move || {
            Coalescing::new(flows(64).map(|ends| ends.udp(SMALL)).collect(), 64)
        }));
    }
    all
}

/// The packets that a frame stands for.
pub fn packets_of(frame: &Frame) -> Vec<Vec<u8>> {
    let headers = wire::parse(frame.data()).unwrap();
    let cut = Cut::new(frame, &headers).unwrap();
    (0..cut.segments())
        .map(|ix| {
            let mut packet = vec![0; cut.segment_len(ix)];
            cut.write(ix, &mut packet);
            packet
        })
        .collect()
}

struct Cutting {
    frame: Frame,
    packet: Vec<u8>,
}

impl Round for Cutting {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        let headers = wire::parse(self.frame.data()).unwrap();
        let cut = Cut::new(&self.frame, &headers).unwrap();
        assert_eq!(cut.segments(), SEGMENTS);
        for ix in 0..SEGMENTS {
            black_box(cut.write(ix, black_box(&mut self.packet)));
        }
    }
}

struct Coalescing {
    coalescer: Coalescer,
    pool: Pool,
    packets: Vec<Vec<u8>>,
    batch: Batch,
    /// How many frames must come of the packets.
    frames: usize,
}

impl Coalescing {
    fn new(packets: Vec<Vec<u8>>, frames: usize) -> Self {
        let options = Options { merge_udp: true, mtu: MTU.try_into().unwrap() };
        Self {
            coalescer: Coalescer::new(options),
            pool: Pool::new(packets.len()),
            batch: Batch::with_capacity(packets.len()),
            packets,
            frames,
        }
    }
}

impl Round for Coalescing {
    fn prepare(&mut self) {
        for frame in self.batch.drain(..) {
            self.pool.put(frame);
        }
    }

    fn run(&mut self) {
        let ingress = Ingress::Node(NodeIx(0));
        for packet in &self.packets {
            self.coalescer.push(packet, ingress, &mut self.pool, &mut self.batch).unwrap();
        }
        self.coalescer.finish(&mut self.batch);
        assert_eq!(self.batch.len(), self.frames, "frames");
    }
}
