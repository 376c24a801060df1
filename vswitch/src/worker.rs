//! One thread that carries frames.
//!
//! A breath, which is also the order in which to read:
//!
//! 1. wait until a source is readable, an order has come, or a second has passed;
//! 2. per readable source: take a batch, let the [`Switch`] decide, hand each frame to its sink or the
//!    uplink;
//! 3. flush the sinks that were used, and the uplink;
//! 4. once a second, look for devices that have vanished in silence;
//! 5. carry out the orders.
//!
//! Orders come last, so a source that one of them removes is not looked up by an event of this breath.
//! The tables are borrowed, and the time is read, once a batch.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use crossbeam::channel::{Receiver, Sender};
use crossbeam::utils::CachePadded;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::config::Config;
use crate::counters::WorkerCounters;
use crate::engine::Status;
use crate::frame::{Batch, Frame, Pool};
use crate::offload::{Coalescer, Options};
use crate::port::{Context, PortIx, Sink, Source, Uplink};
use crate::spin::{Idle, Spin};
use crate::switch::Switch;
use crate::tables::Tables;
use crate::verdict::{Egress, Reason};

/// The longest time between two breaths. An idle worker wakes this often, to show that it is alive, and
/// also a busy one looks after its sources' devices this often.
pub const IDLE_MAX: Duration = Duration::from_secs(1);

/// Sources that are served in one breath. The others are as ready in the next one, and the kernel
/// hands them out in turn.
const EVENTS_MAX: usize = 64;

/// The token of the event descriptor; sources use their slot's index.
const WAKE_TOKEN: u64 = u64::MAX;

/// A change that a worker carries out between two breaths.
pub(crate) enum Command {
    /// Reads from `source` from now on; `port` is `None` for the tunnel.
    AddSource { port: Option<PortIx>, source: Box<dyn Source> },
    /// Sends frames for `port` to `sink`.
    AddSink { port: PortIx, sink: Box<dyn Sink> },
    /// Closes the source and the sink of `port`.
    RemovePort { port: PortIx },
    /// Sends frames for other nodes to `uplink`.
    SetUplink { uplink: Box<dyn Uplink> },
    /// Closes the tunnel's source and the uplink.
    RemoveTunnel,
    /// Ends the worker.
    Stop,
}

/// A command, and where to say that it was carried out.
pub(crate) struct Order {
    pub(crate) command: Command,
    pub(crate) done: Sender<io::Result<()>>,
}

/// What a worker is made of.
pub(crate) struct WorkerParts {
    pub(crate) config: Config,
    pub(crate) tables: Arc<ArcSwap<Tables>>,
    pub(crate) counters: Arc<CachePadded<WorkerCounters>>,
    pub(crate) orders: Receiver<Order>,
    pub(crate) wake: Arc<OwnedFd>,
    pub(crate) status: Arc<Status>,
}

pub(crate) struct Worker {
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    orders: Receiver<Order>,
    sources: Vec<Option<Slot>>,
    /// The slots of sources that hold frames which they have read already.
    backlog: Vec<usize>,
    /// What was the backlog before this breath.
    serving: Vec<usize>,
    dispatch: Dispatch,
    tables: Cache<Arc<ArcSwap<Tables>>, Arc<Tables>>,
    counters: Arc<CachePadded<WorkerCounters>>,
    status: Arc<Status>,
    /// When the sources' devices were last looked after.
    checked: Instant,
    spin: Spin,
    coalescer: Coalescer,
    switch: Switch,
    pool: Pool,
    batch: Batch,
    out: Vec<(Egress, Frame)>,
}

struct Slot {
    port: Option<PortIx>,
    source: Box<dyn Source>,
}

/// Whether the worker goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Breathe,
    Stop,
}

impl Worker {
    pub(crate) fn new(parts: WorkerParts) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        watch(&epoll, parts.wake.as_fd(), WAKE_TOKEN)?;
        let ports_max = usize::from(parts.config.ports_max);
        let frames_max = usize::from(parts.config.buffers);
        let now = Instant::now();
        Ok(Self {
            epoll,
            wake: parts.wake,
            orders: parts.orders,
            sources: Vec::new(),
            backlog: Vec::with_capacity(1),
            serving: Vec::with_capacity(1),
            dispatch: Dispatch::new(ports_max),
            tables: Cache::new(parts.tables),
            counters: parts.counters,
            status: parts.status,
            checked: now,
            spin: Spin::new(now),
            coalescer: Coalescer::new(Options { merge_udp: true, mtu: u16::MAX }),
            switch: Switch::new(&parts.config, now),
            pool: Pool::new(frames_max),
            // A message out of the tunnel can be many frames, and a frame many fragments; but there are
            // never more than the pool has.
            batch: Vec::with_capacity(frames_max),
            out: Vec::with_capacity(frames_max),
        })
    }

    /// Carries frames until it is told to stop.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while self.breathe(&mut events)? == Next::Breathe {}
        Ok(())
    }

    /// One turn: see the module's documentation.
    fn breathe(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<Next> {
        events.clear();
        let now = self.wait(events)?;
        self.status.breathed(now);
        std::mem::swap(&mut self.backlog, &mut self.serving);
        let mut worked = !self.serving.is_empty();
        while let Some(slot) = self.serving.pop() {
            self.serve(slot);
        }
        let mut woken = false;
        for event in &*events {
            match usize::try_from(event.data.u64()) {
                Ok(slot) if slot < self.sources.len() => {
                    self.serve(slot);
                    worked = true;
                }
                _ => woken = true,
            }
        }
        self.flush();
        if worked {
            self.spin.work(now);
        }
        if now.saturating_duration_since(self.checked) >= IDLE_MAX {
            self.checked = now;
            self.check_sources();
        }
        if woken { self.obey() } else { Ok(Next::Breathe) }
    }

    /// Waits until there is something to do, and returns when that was.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<Instant> {
        const IDLE: Timespec = Timespec { tv_sec: IDLE_MAX.as_secs().cast_signed(), tv_nsec: 0 };
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.poll(events, &NOW)?;
        let mut now = Instant::now();
        while events.is_empty() && self.backlog.is_empty() {
            match self.spin.idle(now) {
                Idle::Look => {
                    rustix::thread::sched_yield();
                    let back = Instant::now();
                    self.spin.back(now, back);
                    self.poll(events, &NOW)?;
                    now = back;
                }
                Idle::Sleep => {
                    self.poll(events, &IDLE)?;
                    now = Instant::now();
                    break;
                }
            }
        }
        Ok(now)
    }

    fn poll(&self, events: &mut Vec<epoll::Event>, timeout: &Timespec) -> io::Result<()> {
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), Some(timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes one batch from a source to wherever its frames go.
    fn serve(&mut self, slot_ix: usize) {
        let Some(slot) = &mut self.sources[slot_ix] else {
            return;
        };
        let mut context =
            Context { tables: self.tables.load(), pool: &mut self.pool, counters: &self.counters };
        let received = slot.source.receive(&mut context, &mut self.batch);
        // What comes out of the tunnel has been merged there.
        if slot.port.is_some() && self.batch.len() > 1 {
            self.coalescer.merge(&mut self.batch, context.pool);
        }
        self.switch.forward(&mut context, Instant::now(), &mut self.batch, &mut self.out);
        for (node, reason) in self.switch.take_foreign() {
            slot.source.note_foreign(context.tables, node, reason);
        }
        for (egress, frame) in self.out.drain(..) {
            self.dispatch.send(&mut context, egress, frame);
        }
        if let Err(error) = received {
            self.lose_source(slot_ix, &error);
        } else if slot.source.pending() && !self.backlog.contains(&slot_ix) {
            self.backlog.push(slot_ix);
        }
    }

    fn flush(&mut self) {
        let mut context =
            Context { tables: self.tables.load(), pool: &mut self.pool, counters: &self.counters };
        self.dispatch.flush(&mut context);
    }

    fn check_sources(&mut self) {
        for ix in 0..self.sources.len() {
            if let Some(slot) = &self.sources[ix]
                && let Err(error) = slot.source.check()
            {
                self.lose_source(ix, &error);
            }
        }
    }

    fn obey(&mut self) -> io::Result<Next> {
        let mut count = [0; 8];
        match rustix::io::read(&self.wake, &mut count) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Ok(Order { command, done }) = self.orders.try_recv() {
            let stop = matches!(command, Command::Stop);
            let result = self.carry_out(command);
            // Whoever gave the order may have stopped waiting for the answer; it is carried out anyhow.
            let _nobody_waits = done.send(result);
            if stop {
                return Ok(Next::Stop);
            }
        }
        // Lets go of tables that were replaced while this worker was idle.
        self.tables.load();
        Ok(Next::Breathe)
    }

    fn carry_out(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::AddSource { port, source } => return self.open_source(port, source),
            Command::AddSink { port, sink } => self.dispatch.set_sink(port, Some(sink)),
            Command::RemovePort { port } => {
                self.close_sources_of(Some(port));
                self.dispatch.set_sink(port, None);
            }
            Command::SetUplink { uplink } => self.dispatch.uplink = Some(uplink),
            Command::RemoveTunnel => {
                self.close_sources_of(None);
                self.dispatch.uplink = None;
            }
            Command::Stop => {
                for slot in 0..self.sources.len() {
                    self.close_source(slot);
                }
            }
        }
        Ok(())
    }

    fn open_source(&mut self, port: Option<PortIx>, source: Box<dyn Source>) -> io::Result<()> {
        let slot = match self.sources.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.sources.push(None);
                self.sources.len() - 1
            }
        };
        watch(&self.epoll, source.fd(), slot as u64)?;
        self.sources[slot] = Some(Slot { port, source });
        Ok(())
    }

    fn close_sources_of(&mut self, port: Option<PortIx>) {
        for ix in 0..self.sources.len() {
            if self.sources[ix].as_ref().is_some_and(|slot| slot.port == port) {
                self.close_source(ix);
            }
        }
    }

    /// Closes a source whose device vanished, and only then tells: whoever is told may open it anew.
    fn lose_source(&mut self, slot_ix: usize, error: &io::Error) {
        let port = self.sources[slot_ix].as_ref().and_then(|slot| slot.port);
        self.close_source(slot_ix);
        self.status.lost(port, error);
    }

    fn close_source(&mut self, slot_ix: usize) {
        self.backlog.retain(|slot| *slot != slot_ix);
        if let Some(slot) = self.sources[slot_ix].take() {
            // Sinks of other workers may hold the descriptor open, so closing it here is not enough.
            // It fails only for a descriptor that is not watched, which is what is wanted.
            let _unwatched_anyhow = epoll::delete(&self.epoll, slot.source.fd());
        }
    }
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    Ok(epoll::add(epoll, fd, EventData::new_u64(token), EventFlags::IN)?)
}

/// The sinks and the uplink of one worker.
struct Dispatch {
    sinks: Vec<Option<Box<dyn Sink>>>,
    uplink: Option<Box<dyn Uplink>>,
    /// The sinks that were used since the last flush, each once.
    touched: Vec<PortIx>,
    is_touched: Vec<bool>,
    uplink_touched: bool,
}

impl Dispatch {
    fn new(ports_max: usize) -> Self {
        Self {
            sinks: (0..ports_max).map(|_| None).collect(),
            uplink: None,
            touched: Vec::with_capacity(ports_max),
            is_touched: vec![false; ports_max],
            uplink_touched: false,
        }
    }

    fn send(&mut self, context: &mut Context<'_>, egress: Egress, frame: Frame) {
        match egress {
            Egress::Port(port) => match self.sinks.get_mut(port.ix()) {
                Some(Some(sink)) => {
                    sink.send(context, frame);
                    if !self.is_touched[port.ix()] {
                        self.is_touched[port.ix()] = true;
                        self.touched.push(port);
                    }
                }
                _ => context.finish_dropped(port, Reason::PortGone, frame),
            },
            Egress::Node(node) => match &mut self.uplink {
                Some(uplink) => {
                    uplink.send(context, node, frame);
                    self.uplink_touched = true;
                }
                None => {
                    context.counters.count_drop(Reason::NodeGone, frame.packets());
                    context.pool.put(frame);
                }
            },
        }
    }

    fn flush(&mut self, context: &mut Context<'_>) {
        for port in self.touched.drain(..) {
            self.is_touched[port.ix()] = false;
            if let Some(sink) = &mut self.sinks[port.ix()] {
                sink.flush(context);
            }
        }
        if std::mem::take(&mut self.uplink_touched)
            && let Some(uplink) = &mut self.uplink
        {
            uplink.flush(context);
        }
    }

    fn set_sink(&mut self, port: PortIx, sink: Option<Box<dyn Sink>>) {
        if let Some(slot) = self.sinks.get_mut(port.ix()) {
            *slot = sink;
        }
    }
}
