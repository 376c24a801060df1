//! Counters, and the conservation law that they obey.
//!
//! The unit is the packet as it would be on a wire: a super-frame counts as the packets that it stands
//! for, so cutting and coalescing change no sum. On every node, at any moment between two batches,
//!
//! ```text
//! received + originated = delivered + answered + sum(dropped[reason]) + queued
//! ```
//!
//! where *originated* are the packets that the switch makes itself (ARP and ND replies, ICMP errors, the
//! additional packets when one is fragmented), *answered* are those that it was asked with, and *queued*
//! are those that a sink holds until its flush.
//!
//! Each worker owns one [`WorkerCounters`] and is its only writer; a reader adds them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::verdict::Reason;

/// A counter with one writer and any number of readers.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker calls this, so no read-modify-write instruction is needed.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Reads the value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters that one worker writes.
#[derive(Debug)]
pub struct WorkerCounters {
    /// Packets that came in through a port or the tunnel.
    pub received: Counter,
    /// Packets that the switch made.
    pub originated: Counter,
    /// Packets that a port or the underlay has taken.
    pub delivered: Counter,
    /// Packets that were for the switch itself.
    pub answered: Counter,
    /// Bytes of received frames, Ethernet headers included.
    pub received_bytes: Counter,
    /// Bytes of delivered frames, Ethernet headers included.
    pub delivered_bytes: Counter,
    /// Packets dropped, by reason.
    dropped: [Counter; Reason::COUNT],
    /// Per local port, by [`crate::ix::PortIx`].
    ports: Box<[PortCounters]>,
}

/// What one worker counts for one local port. Seen from the switch: *received* came from the pod.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Packets that the switch received from the port.
    pub received: Counter,
    /// Bytes that the switch received from the port.
    pub received_bytes: Counter,
    /// Packets that the port has taken.
    pub delivered: Counter,
    /// Bytes that the port has taken.
    pub delivered_bytes: Counter,
    /// Packets from or to this port that were dropped.
    pub dropped: Counter,
}

impl WorkerCounters {
    /// Makes counters for `ports_max` local ports.
    pub fn new(ports_max: usize) -> Self {
        Self {
            received: Counter::default(),
            originated: Counter::default(),
            delivered: Counter::default(),
            answered: Counter::default(),
            received_bytes: Counter::default(),
            delivered_bytes: Counter::default(),
            dropped: std::array::from_fn(|_| Counter::default()),
            ports: (0..ports_max).map(|_| PortCounters::default()).collect(),
        }
    }

    /// Counts `packets` dropped for `reason`.
    pub fn count_drop(&self, reason: Reason, packets: u64) {
        self.dropped[reason as usize].add(packets);
    }

    /// Packets dropped for `reason` so far.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize].get()
    }

    /// The counters of a local port; `None` beyond the limit that they were made with.
    #[inline]
    pub fn port(&self, port: crate::ix::PortIx) -> Option<&PortCounters> {
        self.ports.get(port.ix())
    }
}

/// The counters of all workers of a node.
#[derive(Debug, Clone)]
pub struct Counters {
    workers: Vec<Arc<CachePadded<WorkerCounters>>>,
}

impl Counters {
    /// Makes counters for `workers` workers and `ports_max` local ports.
    pub fn new(workers: usize, ports_max: usize) -> Self {
        let make = |_| Arc::new(CachePadded::new(WorkerCounters::new(ports_max)));
        Self { workers: (0..workers).map(make).collect() }
    }

    /// Adds counters for a further writer, which has nothing to do with ports, and returns them.
    pub fn add_writer(&mut self) -> Arc<CachePadded<WorkerCounters>> {
        let counters = Arc::new(CachePadded::new(WorkerCounters::new(0)));
        self.workers.push(Arc::clone(&counters));
        counters
    }

    /// The counters of worker `ix`.
    ///
    /// # Panics
    /// If there is no such worker.
    pub fn worker(&self, ix: usize) -> Arc<CachePadded<WorkerCounters>> {
        Arc::clone(&self.workers[ix])
    }

    /// Adds up what all workers have counted.
    pub fn sum(&self) -> Totals {
        let sum = |field: fn(&WorkerCounters) -> &Counter| {
            self.workers.iter().map(|worker| field(worker).get()).sum()
        };
        Totals {
            received: sum(|worker| &worker.received),
            originated: sum(|worker| &worker.originated),
            delivered: sum(|worker| &worker.delivered),
            answered: sum(|worker| &worker.answered),
            received_bytes: sum(|worker| &worker.received_bytes),
            delivered_bytes: sum(|worker| &worker.delivered_bytes),
            dropped: std::array::from_fn(|ix| {
                self.workers.iter().map(|worker| worker.dropped[ix].get()).sum()
            }),
        }
    }

    /// Adds up what all workers have counted for one port.
    pub fn port(&self, port: crate::ix::PortIx) -> PortTotals {
        let sum = |field: fn(&PortCounters) -> &Counter| {
            self.workers
                .iter()
                .filter_map(|worker| worker.port(port))
                .map(|counters| field(counters).get())
                .sum()
        };
        PortTotals {
            received: sum(|port| &port.received),
            received_bytes: sum(|port| &port.received_bytes),
            delivered: sum(|port| &port.delivered),
            delivered_bytes: sum(|port| &port.delivered_bytes),
            dropped: sum(|port| &port.dropped),
        }
    }
}

/// The counters of a node at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    /// Packets that came in through a port or the tunnel.
    pub received: u64,
    /// Packets that the switch made.
    pub originated: u64,
    /// Packets that a port or the underlay has taken.
    pub delivered: u64,
    /// Packets that were for the switch itself.
    pub answered: u64,
    /// Bytes of received frames.
    pub received_bytes: u64,
    /// Bytes of delivered frames.
    pub delivered_bytes: u64,
    /// Packets dropped, by [`Reason`] number.
    pub dropped: [u64; Reason::COUNT],
}

/// The counters of one local port at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct PortTotals {
    /// Packets that the switch received from the port.
    pub received: u64,
    /// Bytes that the switch received from the port.
    pub received_bytes: u64,
    /// Packets that the port has taken.
    pub delivered: u64,
    /// Bytes that the port has taken.
    pub delivered_bytes: u64,
    /// Packets from or to this port that were dropped.
    pub dropped: u64,
}

impl Totals {
    /// Packets dropped for `reason`.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Packets dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// What the conservation law leaves over: packets still queued. Zero once all is flushed; negative
    /// never, unless a packet was counted twice.
    pub fn queued(&self) -> i128 {
        i128::from(self.received) + i128::from(self.originated)
            - i128::from(self.delivered)
            - i128::from(self.answered)
            - i128::from(self.dropped_total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ix::PortIx;

    #[test]
    fn totals_add_up_over_workers() {
        let counters = Counters::new(2, 4);
        counters.worker(0).received.add(5);
        counters.worker(1).received.add(2);
        counters.worker(0).delivered.add(4);
        counters.worker(1).count_drop(Reason::Spoofed, 2);
        counters.worker(1).port(PortIx(3)).unwrap().dropped.add(2);
        let totals = counters.sum();
        assert_eq!(totals.received, 7);
        assert_eq!(totals.dropped(Reason::Spoofed), 2);
        assert_eq!(totals.queued(), 1);
        assert_eq!(counters.port(PortIx(3)).dropped, 2);
        assert!(counters.worker(0).port(PortIx(4)).is_none());
    }
}
