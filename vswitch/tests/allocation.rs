//! The switch allocates nothing once it is warm.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "only tests are in here")]
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait, and only one can count")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use vswitch::frame::{BATCH_MAX, Frame, Ingress};
use vswitch::mac::Mac;
use vswitch::port::{Context, PortIx};
use vswitch::service::{
    Algorithm, Endpoint, EndpointState, Family, Frontend, Protocol, ServicePort,
    ServiceTableBuilder, TrafficPolicy,
};
use vswitch::tables::{Masquerade, Tables};
use vswitch::verdict::Egress;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the same as ours.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the same as ours.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the same as ours.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// The node of the other tests, with Services of every outcome.
fn serving() -> Tables {
    let mut table = ServiceTableBuilder::new(vec!["10.96.0.0/16".parse().unwrap()]);
    for (name, last, endpoints) in [
        ("none", 1, &[][..]),
        ("here", 2, &["10.244.1.3", "10.244.1.2"]),
        ("there", 3, &["10.244.2.9"]),
    ] {
        let endpoint = |address: &&str| Endpoint {
            address: ip(address),
            port: 5353,
            is_local: false,
            is_near: true,
            state: EndpointState::Ready,
        };
        let service = ServicePort {
            name: name.to_owned(),
            family: Family::V4,
            protocol: Protocol::Udp,
            frontends: vec![Frontend::ClusterIp { address: [10, 96, 0, last].into(), port: 53 }],
            endpoints: endpoints.iter().map(endpoint).collect(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            algorithm: Algorithm::LeastConnections,
            affinity: Some(Duration::from_secs(60)),
        };
        table.set(service).unwrap();
    }
    let mut builder = tables_builder();
    builder.port(PortIx::HOST, host_port());
    builder.services(Arc::new(table.build(1)));
    builder.masquerade(Masquerade { v4: Some([10, 244, 1, 0].into()), v6: None });
    builder.build()
}

#[test]
fn ten_thousand_frames_allocate_nothing() {
    let mut bench = Bench::with_tables(serving());
    let arp = [
        &[0xff; 6][..],
        &MAC_A.0,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &MAC_A.0,
        &[10, 244, 1, 2, 0, 0, 0, 0, 0, 0, 10, 244, 1, 1],
    ]
    .concat();
    let mut fragmented = udp(MAC_A, "10.244.1.2", "10.244.2.9", &[3; 3000]);
    fragmented[20] &= !0x40;
    vswitch::wire::checksum::set_ipv4_header(&mut fragmented[14..34]);
    let from_a = Ingress::Port(POD_A);
    let kinds = [
        (from_a, udp(MAC_A, "10.244.1.2", "10.244.1.3", &[0; 100])),
        (from_a, udp(MAC_A, "fd00:10:244:1::2", "fd00:10:244:2::9", &[0; 1000])),
        (from_a, udp(MAC_A, "10.244.1.2", "198.51.100.7", &[0; 100])),
        (from_a, udp(MAC_A, "10.244.1.2", "10.244.1.99", &[0; 100])),
        (from_a, udp(MAC_A, "fd00:10:244:1::2", "fd00:10:244:2::9", &[0; 1400])),
        (from_a, udp(MAC_A, "10.244.1.2", "10.96.0.1", &[0; 100])),
        (from_a, udp(MAC_A, "10.244.1.2", "10.96.0.2", &[0; 100])),
        (from_a, udp(MAC_A, "10.244.1.2", "10.96.0.3", &[0; 100])),
        (from_a, udp(MAC_A, "10.244.1.2", "10.96.0.4", &[0; 100])),
        (from_a, arp),
        (from_a, fragmented),
        (Ingress::Port(PortIx::HOST), udp(Mac::HOST, "10.244.1.1", "10.244.1.3", &[0; 100])),
        (Ingress::Node(PEER), udp_to(PEER_VTEP, VTEP, "10.244.2.9", "10.244.1.3", 53, &[0; 100])),
        (Ingress::Node(PEER), vec![0; 30]),
    ];
    let worker = bench.counters.worker(0);
    let mut batch: Vec<Frame> = Vec::with_capacity(BATCH_MAX);
    let mut out: Vec<(Egress, Frame)> = Vec::with_capacity(4 * BATCH_MAX);
    let mut forwarded = 0;
    let mut next_port = 0_u16;
    let mut before = 0;
    while forwarded < 10_000 {
        // The first rounds make the pool's buffers.
        if bench.totals().received < 1000 {
            forwarded = 0;
            before = allocations();
        }
        for (ingress, bytes) in kinds.iter().cycle().take(BATCH_MAX) {
            let mut frame = bench.pool.take().unwrap();
            assert!(frame.append(bytes));
            if bytes.get(30..33) == Some(&[10, 96, 0]) {
                // Mostly new flows: many more than there is room for.
                next_port = next_port.wrapping_add(1);
                frame.data_mut()[34..36].copy_from_slice(&next_port.to_be_bytes());
            }
            frame.meta.ingress = *ingress;
            worker.received.add(1);
            batch.push(frame);
        }
        let mut context =
            Context { tables: &bench.tables, pool: &mut bench.pool, counters: &worker };
        bench.switch.forward(&mut context, bench.now, &mut batch, &mut out);
        forwarded += out.len();
        for (_, frame) in out.drain(..) {
            worker.delivered.add(frame.packets());
            bench.pool.put(frame);
        }
    }
    // `Totals` reads the counters and allocates nothing either.
    assert_eq!(allocations() - before, 0);
    assert_eq!(bench.totals().queued(), 0);
    let flows = bench.switch.flows();
    assert!(flows.len() > flows.capacity() / 2, "the table was filled");
    assert!(allocations() > 0, "the allocator counts");
}
