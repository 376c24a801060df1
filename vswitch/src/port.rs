//! Where frames come in and go out.
//!
//! A port has two halves. Its [`Source`] is owned by one worker, so a flow's frames are read by one
//! thread and keep their order. Its [`Sink`] exists once per worker, so no worker waits for another.
//! The tunnel is the same, with an [`Uplink`] in place of the sink: its frames go to a node.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use crate::counters::WorkerCounters;
use crate::frame::{Batch, Frame, GsoKind, Pool};
pub use crate::ix::{NodeIx, PortIx};
use crate::tables::Tables;
use crate::verdict::Reason;

/// What a source or a sink works with, borrowed for the length of one batch.
#[derive(Debug)]
pub struct Context<'a> {
    /// The tables in force for this batch.
    pub tables: &'a Tables,
    /// The worker's buffers. Frames that end here go back to it.
    pub pool: &'a mut Pool,
    /// The worker's counters.
    pub counters: &'a WorkerCounters,
}

impl Context<'_> {
    /// Counts a frame that came in through local `port`.
    pub fn count_received(&self, port: PortIx, frame: &Frame) {
        let (packets, bytes) = (frame.packets(), frame.len() as u64);
        self.counters.received.add(packets);
        self.counters.received_bytes.add(bytes);
        if let Some(port) = self.counters.port(port) {
            port.received.add(packets);
            port.received_bytes.add(bytes);
        }
    }

    /// Counts a frame that local `port` has taken, and puts its buffer back.
    pub fn finish_delivered(&mut self, port: PortIx, frame: Frame) {
        let (packets, bytes) = (frame.packets(), frame.len() as u64);
        self.counters.delivered.add(packets);
        self.counters.delivered_bytes.add(bytes);
        if let Some(port) = self.counters.port(port) {
            port.delivered.add(packets);
            port.delivered_bytes.add(bytes);
        }
        self.pool.put(frame);
    }

    /// Counts a frame that ends at local `port`, and puts its buffer back.
    pub fn finish_dropped(&mut self, port: PortIx, reason: Reason, frame: Frame) {
        self.count_dropped(port, reason, frame.packets());
        self.pool.put(frame);
    }

    /// Counts packets that end at local `port`.
    pub fn count_dropped(&self, port: PortIx, reason: Reason, packets: u64) {
        self.counters.count_drop(reason, packets);
        if let Some(port) = self.counters.port(port) {
            port.dropped.add(packets);
        }
    }
}

/// The receiving half of a port, or of the tunnel.
pub trait Source: Send + std::fmt::Debug {
    /// Readable when frames wait; the worker polls it.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Appends what waits to `batch`, until it holds [`crate::frame::BATCH_MAX`] frames, nothing
    /// waits, or the pool is empty. Counts what it received, and what it dropped itself. On an error
    /// `batch` holds what came before it.
    ///
    /// # Errors
    /// When the device is gone for good. The worker then stops polling the source.
    fn receive(&mut self, context: &mut Context<'_>, batch: &mut Batch) -> io::Result<()>;

    /// Looks whether the device is still there, where reading does not tell. The worker asks about once a
    /// second.
    ///
    /// # Errors
    /// When the device is gone for good. The worker then stops polling the source.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether frames wait that the file descriptor does not tell of, because they were read already.
    /// The worker then comes back without waiting.
    fn pending(&self) -> bool {
        false
    }

    /// Notes that the switch dropped a frame of the last batch because `node` may not send it. Only a
    /// tunnel's frames come from nodes.
    fn note_foreign(&mut self, _tables: &Tables, _node: NodeIx, _reason: Reason) {}
}

/// The sending half of a local port, one per worker.
pub trait Sink: Send + std::fmt::Debug {
    /// Sends one frame or queues it until [`Sink::flush`]. Counts it as delivered or dropped and puts
    /// its buffer back.
    fn send(&mut self, context: &mut Context<'_>, frame: Frame);

    /// Sends what is queued.
    fn flush(&mut self, context: &mut Context<'_>);
}

/// A kind of super-frame that a device does not take whole for the time being, so it is given single
/// packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GsoFallback {
    /// The kind.
    pub kind: GsoKind,
    /// When the first one was refused.
    pub since: Instant,
    /// The first one from then on is a trial.
    pub next_try: Instant,
}

/// The sending half of the tunnel, one per worker.
pub trait Uplink: Send + std::fmt::Debug {
    /// Sends one frame to a node, or queues it until [`Uplink::flush`]. Counts it as delivered or
    /// dropped and puts its buffer back.
    fn send(&mut self, context: &mut Context<'_>, node: NodeIx, frame: Frame);

    /// Sends what is queued.
    fn flush(&mut self, context: &mut Context<'_>);
}
