//! A node: the real switch with hosts in place of pods, and a queue in place of the tunnel.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crossbeam::utils::CachePadded;

use super::Host;
use crate::config::Config;
use crate::counters::{Counters, PortTotals, Totals, WorkerCounters};
use crate::flows::FlowTable;
use crate::frame::{BATCH_MAX, Batch, Frame, Ingress, Pool};
use crate::offload::Cut;
use crate::port::{Context, NodeIx, PortIx};
use crate::switch::Switch;
use crate::tables::Tables;
use crate::verdict::{Egress, Reason};
use crate::wire;

/// The real [`Switch`] with a [`Host`] on each port.
///
/// [`SwitchSim::run`] does all that can be done at one moment. Frames for other nodes then wait for
/// [`SwitchSim::send_wire`], and packets from them go in with [`SwitchSim::receive`]. A tunnel that is to
/// be simulated too takes frames whole with [`SwitchSim::take_wire`], hands them in with
/// [`SwitchSim::forward_batch`], and works with [`SwitchSim::context`], as it does in a worker.
#[derive(Debug)]
pub struct SwitchSim {
    switch: Switch,
    tables: Tables,
    pool: Pool,
    counters: Counters,
    worker: Arc<CachePadded<WorkerCounters>>,
    hosts: BTreeMap<PortIx, Host>,
    batch: Batch,
    out: Vec<(Egress, Frame)>,
    wire: VecDeque<(NodeIx, Frame)>,
}

/// Most flows of a simulated node: there may be hundreds in one process.
const FLOWS_MAX: u32 = 4096;

impl SwitchSim {
    /// Makes a node without hosts.
    pub fn new(config: &Config, tables: Tables, now: Instant) -> Self {
        let counters = Counters::new(1, usize::from(config.ports_max));
        let flows_max = config.flows_max.min(FLOWS_MAX);
        let flows = Arc::new(FlowTable::new(flows_max, 0, now));
        Self {
            switch: Switch::with_flows(config, now, flows),
            tables,
            pool: Pool::new(usize::from(config.buffers)),
            worker: counters.worker(0),
            counters,
            hosts: BTreeMap::new(),
            batch: Batch::with_capacity(BATCH_MAX),
            out: Vec::with_capacity(2 * BATCH_MAX),
            wire: VecDeque::new(),
        }
    }

    /// Replaces the tables. As in a worker, no frame is under way within the switch when that happens;
    /// those for nodes are dropped, because their indexes belong to the old tables.
    pub fn set_tables(&mut self, tables: Tables) {
        while let Some((_, frame)) = self.wire.pop_front() {
            self.worker.count_drop(Reason::NodeGone, frame.packets());
            self.pool.put(frame);
        }
        self.tables = tables;
    }

    /// The tables in force.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Puts a host on a port; returns the one that was there. That the port exists is up to the tables.
    pub fn attach(&mut self, port: PortIx, host: Host) -> Option<Host> {
        self.hosts.insert(port, host)
    }

    /// Takes the host off a port.
    pub fn detach(&mut self, port: PortIx) -> Option<Host> {
        self.hosts.remove(&port)
    }

    /// The host on a port.
    ///
    /// # Panics
    /// If there is none.
    pub fn host(&mut self, port: PortIx) -> &mut Host {
        self.hosts.get_mut(&port).expect("a host is attached to the port")
    }

    /// All hosts, by port.
    pub fn hosts(&mut self) -> impl Iterator<Item = (PortIx, &mut Host)> {
        self.hosts.iter_mut().map(|(port, host)| (*port, host))
    }

    /// Lets the hosts act and carries what they send, until nothing moves any more at this moment.
    ///
    /// When more frames wait for other nodes than there are buffers, the rest waits with the hosts.
    pub fn run(&mut self, now: Instant) {
        while self.turn(now) {}
    }

    /// Lets the hosts act once and carries one batch of what they send; returns whether there may be more
    /// to do at this moment. A simulated tunnel that empties [`SwitchSim::take_wire`] after each turn never
    /// lets the buffers run out.
    pub fn turn(&mut self, now: Instant) -> bool {
        let mut moved = false;
        for host in self.hosts.values_mut() {
            moved |= host.poll(now);
        }
        let collected = self.collect();
        if collected {
            self.forward(now);
        }
        let is_starved = !collected && self.hosts.values().any(Host::is_sending);
        collected || (moved && !is_starved)
    }

    /// When a host wants to act next, if nothing arrives before.
    pub fn next_at(&mut self, now: Instant) -> Option<Instant> {
        self.hosts.values_mut().filter_map(|host| host.poll_at(now)).min()
    }

    /// Runs one frame through the switch, and delivers. The frame's meta data says where it came from;
    /// [`SwitchSim::make_frame`] makes one. It is counted as received.
    pub fn inject(&mut self, now: Instant, frame: Frame) {
        let context = self.context();
        match frame.meta.ingress {
            Ingress::Port(port) => context.count_received(port, &frame),
            Ingress::Node(_) | Ingress::Switch => count_received(context.counters, &frame),
        }
        self.batch.push(frame);
        self.forward(now);
    }

    /// Runs frames through the switch, and delivers. Unlike [`SwitchSim::inject`] it does not count them as
    /// received: whoever made them in [`SwitchSim::context`], as a tunnel does, already has.
    pub fn forward_batch(&mut self, now: Instant, batch: &mut Batch) {
        self.batch.append(batch);
        self.forward(now);
    }

    /// Takes the nodes that sent, in the last batch, what is not theirs to send; see
    /// [`Switch::take_foreign`].
    pub fn take_foreign(&mut self) -> Vec<(NodeIx, Reason)> {
        self.switch.take_foreign().collect()
    }

    /// Runs a frame that `node` has sent through the switch, and delivers it. A frame that is too long is
    /// dropped and counted, and so is any when the buffers are used up.
    pub fn receive(&mut self, now: Instant, node: NodeIx, bytes: &[u8]) {
        match self.make_frame(Ingress::Node(node), bytes) {
            Ok(frame) => self.inject(now, frame),
            Err(reason) => {
                self.worker.received.add(1);
                self.worker.count_drop(reason, 1);
            }
        }
    }

    /// Makes a frame in a buffer of this node.
    ///
    /// # Errors
    /// [`Reason::PoolEmpty`] when all buffers are in use, [`Reason::Malformed`] when the frame is longer
    /// than any.
    pub fn make_frame(&mut self, ingress: Ingress, bytes: &[u8]) -> Result<Frame, Reason> {
        let mut frame = self.pool.take().ok_or(Reason::PoolEmpty)?;
        if !frame.append(bytes) {
            self.pool.put(frame);
            return Err(Reason::Malformed);
        }
        frame.meta.ingress = ingress;
        Ok(frame)
    }

    /// Hands every packet that waits for another node to `carry`, as it would be on a wire: super-frames
    /// cut, checksums filled in. It then counts as delivered.
    pub fn send_wire(&mut self, mut carry: impl FnMut(NodeIx, &[u8])) {
        let mut packet = Vec::new();
        while let Some((node, frame)) = self.wire.pop_front() {
            let cut = wire::parse(frame.data()).and_then(|headers| Cut::new(&frame, &headers)).map(
                |cut| {
                    for ix in 0..cut.segments() {
                        packet.resize(cut.segment_len(ix), 0);
                        cut.write(ix, &mut packet);
                        carry(node, &packet);
                    }
                },
            );
            match cut {
                Ok(()) => self.sent(frame),
                Err(reason) => self.dropped(frame, reason),
            }
        }
    }

    /// Takes the oldest frame that waits to be sent to another node, for a tunnel that is simulated too.
    /// Until [`SwitchSim::sent`] or [`SwitchSim::dropped`] is told of it, it counts as queued.
    pub fn take_wire(&mut self) -> Option<(NodeIx, Frame)> {
        self.wire.pop_front()
    }

    /// Counts a frame as delivered to its node, and gives its buffer back.
    pub fn sent(&mut self, frame: Frame) {
        self.worker.delivered.add(frame.packets());
        self.worker.delivered_bytes.add(frame.len() as u64);
        self.pool.put(frame);
    }

    /// Counts a frame as dropped, and gives its buffer back.
    pub fn dropped(&mut self, frame: Frame, reason: Reason) {
        self.worker.count_drop(reason, frame.packets());
        self.pool.put(frame);
    }

    /// What a source, a sink or an uplink works with.
    pub fn context(&mut self) -> Context<'_> {
        Context { tables: &self.tables, pool: &mut self.pool, counters: &self.worker }
    }

    /// The flows to Services.
    pub fn flows(&self) -> &Arc<FlowTable> {
        self.switch.flows()
    }

    /// The node's counters.
    pub fn totals(&self) -> Totals {
        self.counters.sum()
    }

    /// The counters of one port.
    pub fn port_totals(&self, port: PortIx) -> PortTotals {
        self.counters.port(port)
    }

    /// Buffers in use: those of the frames that wait to be sent to other nodes.
    pub fn buffers_in_use(&self) -> usize {
        self.pool.in_use()
    }

    /// Fills the batch with what hosts have sent; returns whether there was anything.
    fn collect(&mut self) -> bool {
        let context =
            Context { tables: &self.tables, pool: &mut self.pool, counters: &self.worker };
        for (port, host) in &mut self.hosts {
            while self.batch.len() < BATCH_MAX {
                let Some(mut frame) = context.pool.take() else {
                    return !self.batch.is_empty();
                };
                if !host.send(&mut frame) {
                    context.pool.put(frame);
                    break;
                }
                frame.meta.ingress = Ingress::Port(*port);
                context.count_received(*port, &frame);
                self.batch.push(frame);
            }
        }
        !self.batch.is_empty()
    }

    fn forward(&mut self, now: Instant) {
        let mut context =
            Context { tables: &self.tables, pool: &mut self.pool, counters: &self.worker };
        self.switch.forward(&mut context, now, &mut self.batch, &mut self.out);
        for (egress, frame) in self.out.drain(..) {
            match egress {
                Egress::Node(node) => self.wire.push_back((node, frame)),
                Egress::Port(port) => match self.hosts.get_mut(&port) {
                    Some(host) => match host.deliver(&frame) {
                        Ok(()) => context.finish_delivered(port, frame),
                        Err(reason) => context.finish_dropped(port, reason, frame),
                    },
                    None => context.finish_dropped(port, Reason::PortGone, frame),
                },
            }
        }
    }
}

fn count_received(counters: &WorkerCounters, frame: &Frame) {
    counters.received.add(frame.packets());
    counters.received_bytes.add(frame.len() as u64);
}
