//! The tunnel allocates nothing once it is warm.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "only tests are in here")]
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait, and only one can count")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;

use common::{Bench, Flow, Kind, NODES, frame_of};
use overlay::encap::Transmit;
use overlay::tunnel::source_of;
use vswitch::frame::{Batch, Frame};
use vswitch::port::{Context, NodeIx};
use vswitch::wire;

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

#[test]
fn ten_thousand_frames_allocate_nothing() {
    let mut bench = Bench::new(64);
    let mut frames = Vec::new();
    for number in 0..30 {
        let flow = |kind, is_v4| Flow { node: number % NODES, is_v4, kind, number };
        for is_v4 in [true, false] {
            frames.push((flow(Kind::Tcp, is_v4), 20_000, Some(1398)));
            frames.push((flow(Kind::Tcp, is_v4), 100, None));
            frames.push((flow(Kind::Udp, is_v4), 9000, Some(1000)));
            frames.push((flow(Kind::Udp, is_v4), 300, None));
            frames.push((flow(Kind::Icmp, is_v4), 56, None));
            frames.push((flow(Kind::Fragment, is_v4), 800, None));
        }
    }
    let frames: Vec<_> = frames
        .into_iter()
        .map(|(flow, payload, size)| (flow.node, frame_of(flow, 1, payload, size)))
        .collect();
    // As many as a pool that serves the largest of these rounds.
    let mut batch = Batch::with_capacity(4096);
    let mut sent = 0;
    let mut before = 0;
    while sent < 10_000 + frames.len() {
        // The first round makes the pool's buffers.
        if sent == frames.len() {
            before = allocations();
        }
        sent += carry(&mut bench, &frames, &mut batch);
    }
    assert_eq!(allocations() - before, 0);
    assert!(before > 0, "the allocator counts");
    let totals = bench.counters.sum();
    assert_eq!(totals.dropped_total(), 0);
    let packets: u64 = frames.iter().map(|(_, frame)| frame.packets()).sum();
    assert_eq!(totals.received, packets * (sent / frames.len()) as u64);
}

/// Sends all frames, receives what comes of them, and returns how many they were.
fn carry(bench: &mut Bench, frames: &[(u16, Frame)], batch: &mut Batch) -> usize {
    let Bench { tables, pool, counters, encapsulator, decapsulator, .. } = bench;
    let counters = counters.worker(0);
    let mut context = Context { tables, pool, counters: &counters };
    let mut deliver = |transmit: Transmit<'_>| {
        let from = SocketAddr::new(transmit.to.ip(), 50_000);
        let Transmit { segment_len, bytes, .. } = transmit;
        decapsulator.push(from, segment_len, bytes, &mut context, batch);
    };
    for (node, frame) in frames {
        let headers = wire::parse(frame.data()).unwrap();
        let socket_ix = source_of(&headers, 4);
        let peer = tables.peer(NodeIx(*node)).unwrap();
        encapsulator.push(peer, socket_ix, frame, &headers, &mut deliver).unwrap();
    }
    encapsulator.flush(&mut deliver);
    decapsulator.finish(&context, batch);
    for frame in batch.drain(..) {
        context.pool.put(frame);
    }
    frames.len()
}
