//! One thread that carries frames.
//!
//! A breath, which is also the order in which to read:
//!
//! 1. wait until a source is readable, an order has come, or a second has passed;
//! 2. per readable source, those with little first ([`crate::queue`]): take a batch, let the [`Switch`]
//!    decide, hand each frame to its sink or the uplink;
//! 3. flush the sinks that were used, and the uplink;
//! 4. hand sources to or from another worker, as [`crate::load`] demands;
//! 5. once a second, look for devices that have vanished in silence;
//! 6. carry out the orders.
//!
//! Orders come last, so a source that one of them removes is not looked up by an event of this breath.
//! The tables are borrowed, and the time is read, once a batch.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};
use crossbeam::utils::CachePadded;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::Errno;

use crate::config::Config;
use crate::counters::WorkerCounters;
use crate::engine::Status;
use crate::flows::FlowTable;
use crate::frame::{Batch, Frame, Pool};
use crate::home::{Home, Place};
use crate::load::{self, Load};
use crate::offload::{Coalescer, Options};
use crate::port::{Context, PortIx, Sink, Source, Uplink};
use crate::published::Reader;
use crate::queue::{self, Urgency};
use crate::slice::Turn;
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

/// Sources with a backlog for which there is room from the start.
const SOURCES_EXPECTED: usize = 64;

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
    pub(crate) tables: Reader<Tables>,
    pub(crate) counters: Arc<CachePadded<WorkerCounters>>,
    pub(crate) flows: Arc<FlowTable>,
    pub(crate) orders: Receiver<Order>,
    pub(crate) ix: usize,
    pub(crate) homes: Vec<Arc<Home>>,
    pub(crate) status: Arc<Status>,
}

pub(crate) struct Worker {
    ix: usize,
    /// Of all workers. The first worker, the keeper, also serves those whose workers rest.
    homes: Vec<Arc<Home>>,
    orders: Receiver<Order>,
    /// Sources that hold frames which they have read already.
    backlog: Vec<Place>,
    /// What is served in this breath, the last one first.
    serving: Vec<Place>,
    dispatch: Dispatch,
    tables: Reader<Tables>,
    counters: Arc<CachePadded<WorkerCounters>>,
    status: Arc<Status>,
    /// When the sources' devices were last looked after.
    checked: Instant,
    spin: Spin,
    load: Load,
    /// The keeper could do this worker's work, too.
    wants_rest: bool,
    urgency: Urgency,
    /// Whether there was a large batch in this breath, or in the last one that had any.
    has_bulk: bool,
    /// `None` where the kernel does not let the worker choose.
    turn: Option<Turn>,
    coalescer: Coalescer,
    switch: Switch,
    pool: Pool,
    batch: Batch,
    out: Vec<(Egress, Frame)>,
}

/// The worker that serves the sources of those who rest.
const KEEPER: usize = 0;

/// Whether the worker goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Breathe,
    Stop,
}

impl Worker {
    pub(crate) fn new(parts: WorkerParts) -> Self {
        let ports_max = usize::from(parts.config.ports_max);
        let frames_max = usize::from(parts.config.buffers);
        let now = Instant::now();
        Self {
            ix: parts.ix,
            homes: parts.homes,
            orders: parts.orders,
            backlog: Vec::with_capacity(SOURCES_EXPECTED + EVENTS_MAX),
            serving: Vec::with_capacity(SOURCES_EXPECTED + EVENTS_MAX),
            dispatch: Dispatch::new(ports_max),
            tables: parts.tables,
            counters: parts.counters,
            status: parts.status,
            checked: now,
            spin: Spin::new(now),
            load: Load::new(now),
            wants_rest: false,
            urgency: Urgency::default(),
            has_bulk: false,
            turn: None,
            coalescer: Coalescer::new(Options { merge_udp: true, mtu: u16::MAX }),
            switch: Switch::with_flows(&parts.config, now, parts.flows),
            pool: Pool::new(frames_max),
            // A message out of the tunnel can be many frames, and a frame many fragments; but there are
            // never more than the pool has.
            batch: Vec::with_capacity(frames_max),
            out: Vec::with_capacity(frames_max),
        }
    }

    fn home(&self) -> &Arc<Home> {
        &self.homes[self.ix]
    }

    /// Lets the worker choose how the scheduler treats its thread, the calling one.
    pub(crate) fn take_turn(&mut self, turn: Turn) {
        self.turn = Some(turn);
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
        let woken = self.line_up(events, now);
        let worked = !self.serving.is_empty();
        self.has_bulk &= !worked;
        while let Some(place) = self.serving.pop() {
            self.serve(place);
        }
        self.flush();
        self.hurry(now);
        if worked {
            self.spin.work(now);
        }
        self.share_work(now)?;
        if now.saturating_duration_since(self.checked) >= IDLE_MAX {
            self.checked = now;
            self.check_sources();
        }
        if woken { self.obey() } else { Ok(Next::Breathe) }
    }

    /// Puts the sources that are ready into the order in which they are served. Returns whether there are
    /// orders, too.
    fn line_up(&mut self, events: &[epoll::Event], now: Instant) -> bool {
        std::mem::swap(&mut self.backlog, &mut self.serving);
        let left = self.serving.len();
        let mut woken = false;
        for event in events {
            match Place::of_token(event.data.u64()) {
                Some(place) if self.serving[..left].contains(&place) => {}
                Some(place) => self.serving.push(place),
                None => woken = true,
            }
        }
        if self.serving.len() > 1 {
            let is_bulky = |place: &Place| {
                self.homes.get(place.home).is_some_and(|home| home.lock().is_bulky(place.slot))
            };
            self.serving.sort_unstable_by_key(|place| !is_bulky(place));
            if let [first, .., last] = &self.serving[..]
                && is_bulky(first)
                && !is_bulky(last)
            {
                self.urgency.note(now);
            }
        }
        woken
    }

    /// Tells the scheduler when the worker begins to be urgent, and when it does not hurry any more.
    fn hurry(&mut self, now: Instant) {
        let is_urgent = self.urgency.is_urgent(now);
        if let Some(turn) = &mut self.turn
            && turn.is_urgent() != is_urgent
            && turn.set_urgent(is_urgent).is_err()
        {
            // It was allowed at first; whoever has taken it away knows why.
            self.turn = None;
        }
    }

    /// Waits until there is something to do, and returns when that was.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<Instant> {
        const IDLE: Timespec = Timespec { tv_sec: IDLE_MAX.as_secs().cast_signed(), tv_nsec: 0 };
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.poll(events, &NOW)?;
        let start = Instant::now();
        let mut now = start;
        while events.is_empty() && self.backlog.is_empty() {
            match self.spin.idle(now) {
                // While this thread has the larger share, giving the CPU away is of no use to others.
                Idle::Look if !self.urgency.is_urgent(now) => {
                    rustix::thread::sched_yield();
                    let back = Instant::now();
                    if self.spin.back(now, back) && !self.has_bulk {
                        self.urgency.note(back);
                    }
                    self.poll(events, &NOW)?;
                    now = back;
                }
                Idle::Look | Idle::Sleep => {
                    self.poll(events, &IDLE)?;
                    now = Instant::now();
                    break;
                }
            }
        }
        if let Some(percent) = self.load.waited(now - start, now) {
            self.home().set_load(percent);
            let both = percent.saturating_add(self.homes[KEEPER].load());
            self.wants_rest = self.ix != KEEPER && both <= load::REST_MAX;
        }
        Ok(now)
    }

    fn poll(&self, events: &mut Vec<epoll::Event>, timeout: &Timespec) -> io::Result<()> {
        let room = rustix::buffer::spare_capacity(events);
        match epoll::wait(self.home().epoll(), room, Some(timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes one batch from a source to wherever its frames go.
    fn serve(&mut self, place: Place) {
        let Some(home) = self.homes.get(place.home) else {
            return;
        };
        let mut sources = home.lock();
        let Some(slot) = sources.get_mut(place.slot) else {
            return;
        };
        let mut context =
            Context { tables: self.tables.load(), pool: &mut self.pool, counters: &self.counters };
        let received = slot.source.receive(&mut context, &mut self.batch);
        slot.is_bulky = queue::is_bulky(&self.batch);
        self.has_bulk |= slot.is_bulky;
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
            let port = sources.close(home, place.slot);
            drop(sources);
            self.backlog.retain(|other| *other != place);
            // Only now: whoever is told may open it anew.
            self.status.lost(port, &error);
        } else if slot.source.pending() && !self.backlog.contains(&place) {
            self.backlog.push(place);
        }
    }

    fn flush(&mut self) {
        let mut context =
            Context { tables: self.tables.load(), pool: &mut self.pool, counters: &self.counters };
        self.dispatch.flush(&mut context);
    }

    /// Hands sources from worker to worker: see [`crate::load`]. Everything that they brought has been sent.
    fn share_work(&mut self, now: Instant) -> io::Result<()> {
        if self.ix == KEEPER {
            if self.load.is_saturated(now) {
                for (ix, home) in
                    self.homes.iter().enumerate().filter(|(_, home)| home.is_resting())
                {
                    self.backlog.retain(|place| place.home != ix);
                    home.give_back()?;
                }
            }
        } else if std::mem::take(&mut self.wants_rest)
            && self.backlog.is_empty()
            && !self.home().is_resting()
        {
            self.home().rest(&self.homes[KEEPER])?;
        }
        Ok(())
    }

    fn check_sources(&mut self) {
        let home = self.home();
        let mut sources = home.lock();
        let lost = sources.vanished();
        let lost: Vec<_> =
            lost.into_iter().map(|(slot, error)| (sources.close(home, slot), error)).collect();
        drop(sources);
        for (port, error) in lost {
            self.status.lost(port, &error);
        }
    }

    fn obey(&mut self) -> io::Result<Next> {
        self.home().clear_wake()?;
        while let Ok(Order { command, done }) = self.orders.try_recv() {
            let stop = matches!(command, Command::Stop);
            let result = self.carry_out(command);
            // Whoever gave the order may have stopped waiting for the answer; it is carried out anyhow.
            let _nobody_waits = done.send(result);
            if stop {
                return Ok(Next::Stop);
            }
        }
        self.take_backlog();
        // Lets go of tables that were replaced while this worker was idle.
        self.tables.load();
        Ok(Next::Breathe)
    }

    /// Takes up what the keeper left when it gave the sources back.
    fn take_backlog(&mut self) {
        let home = &self.homes[self.ix];
        if home.is_resting() {
            return;
        }
        for slot in home.lock().pending() {
            let place = Place { home: self.ix, slot };
            if !self.backlog.contains(&place) {
                self.backlog.push(place);
            }
        }
    }

    fn carry_out(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::AddSource { port, source } => return self.home().open(port, source),
            Command::AddSink { port, sink } => self.dispatch.set_sink(port, Some(sink)),
            Command::RemovePort { port } => {
                self.home().close(Some(port));
                self.dispatch.set_sink(port, None);
            }
            Command::SetUplink { uplink } => self.dispatch.uplink = Some(uplink),
            Command::RemoveTunnel => {
                self.home().close(None);
                self.dispatch.uplink = None;
            }
            Command::Stop => self.home().close_all(),
        }
        Ok(())
    }
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
