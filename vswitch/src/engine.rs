//! The workers as the control side sees them: start, tell, watch, stop.
//!
//! ```text
//!                    ┌─ worker 0 ──── reads the ports with an even index (of three workers)
//!  Engine ─ command ─┼─ worker 1 ──── reads the ports with an odd one
//!          + eventfd └─ worker 2 ──── the last: reads the tunnel
//! ```
//!
//! While there is little to do, worker 0 reads everything: see [`crate::load`]. Every worker can send to every
//! port and every node, by sinks and an uplink of its own. Every change is acknowledged: when a method
//! returns, the workers have done it. So after [`Engine::remove_port`] no worker holds the port's file
//! descriptor.
//!
//! The methods block for the length of one batch, well under a millisecond as a rule, and at most
//! [`ANSWER_TIMEOUT`].

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use crossbeam::utils::CachePadded;

use crate::config::Config;
use crate::counters::{Counters, WorkerCounters};
use crate::flows::FlowTable;
use crate::home::Home;
use crate::port::{PortIx, Sink, Source, Uplink};
use crate::published::Published;
use crate::slice::Turn;
use crate::tables::Tables;
use crate::worker::{Command, Order, Worker, WorkerParts};

/// How long a worker may take to carry out a change. A batch is a few milliseconds at the very worst,
/// so one that takes this long hangs.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Changes that wait for one worker. The control side makes few, and waits for each.
const ORDERS_MAX: usize = 16;

/// Lost sources that one worker remembers until somebody asks. Further ones are forgotten; what is sent to
/// their ports is still counted as dropped.
const LOST_MAX: usize = 64;

/// A local port, to be handed to the workers.
#[derive(Debug)]
pub struct Port {
    /// Its receiving half.
    pub source: Box<dyn Source>,
    /// Its sending halves, one per worker: [`Engine::workers`].
    pub sinks: Vec<Box<dyn Sink>>,
}

/// The tunnel, to be handed to the workers.
#[derive(Debug)]
pub struct TunnelPort {
    /// Its receiving halves.
    pub sources: Vec<Box<dyn Source>>,
    /// Its sending halves, one per worker: [`Engine::workers`].
    pub uplinks: Vec<Box<dyn Uplink>>,
}

/// Why the workers could not be started, or did not do what they were told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A thread, an epoll or an event descriptor could not be made.
    #[error("cannot start worker {worker}: {source}")]
    StartWorker {
        /// Which worker.
        worker: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is not one sink or uplink per worker.
    #[error("{given} sending halves were given for {workers} workers")]
    WrongCount {
        /// How many were given.
        given: usize,
        /// How many workers there are.
        workers: usize,
    },
    /// The port's index is beyond the limit.
    #[error("port {port} is beyond the limit of {ports_max} ports")]
    TooManyPorts {
        /// The index.
        port: u16,
        /// The limit, `ports_max` of the configuration.
        ports_max: u16,
    },
    /// The kernel refused to watch the source.
    #[error("worker {worker} cannot poll the source: {source}")]
    Poll {
        /// Which worker.
        worker: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The worker has ended.
    #[error("worker {worker} has ended")]
    WorkerEnded {
        /// Which worker.
        worker: usize,
    },
    /// The worker did not answer within [`ANSWER_TIMEOUT`].
    #[error("worker {worker} does not answer")]
    WorkerStuck {
        /// Which worker.
        worker: usize,
    },
}

/// How a worker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerHealth {
    /// The time since its last breath. A healthy worker breathes at least every
    /// [`crate::worker::IDLE_MAX`].
    pub last_breath: Duration,
    /// Why the worker has ended, if it has.
    pub ended: Option<String>,
    /// Why the worker has no short time slices or cannot be urgent ([`crate::slice`]), if that is so: it then
    /// waits longer for a busy CPU.
    pub slice_refused: Option<String>,
}

/// A source whose device vanished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostSource {
    /// The port; `None` for the tunnel.
    pub port: Option<PortIx>,
    /// What the kernel said.
    pub error: String,
}

/// What the workers tell the control side. Written by workers, at rare events only; the heartbeat is
/// the exception.
#[derive(Debug)]
pub(crate) struct Status {
    started: Instant,
    /// Milliseconds from `started` to the last breath.
    last_breath_ms: AtomicU64,
    ended: Mutex<Option<String>>,
    slice_refused: OnceLock<String>,
    lost: Mutex<Vec<LostSource>>,
}

impl Status {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            last_breath_ms: AtomicU64::new(0),
            ended: Mutex::new(None),
            slice_refused: OnceLock::new(),
            lost: Mutex::new(Vec::new()),
        }
    }

    /// Notes that the worker is alive at `now`.
    pub(crate) fn breathed(&self, now: Instant) {
        let ms = now.saturating_duration_since(self.started).as_millis();
        self.last_breath_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Notes that a source vanished.
    pub(crate) fn lost(&self, port: Option<PortIx>, error: &io::Error) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.len() < LOST_MAX {
            lost.push(LostSource { port, error: error.to_string() });
        }
    }

    fn health(&self, now: Instant) -> WorkerHealth {
        let since =
            self.started + Duration::from_millis(self.last_breath_ms.load(Ordering::Relaxed));
        WorkerHealth {
            last_breath: now.saturating_duration_since(since),
            ended: self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            slice_refused: self.slice_refused.get().cloned(),
        }
    }
}

/// The running data path.
#[derive(Debug)]
pub struct Engine {
    workers: Vec<Handle>,
    ports_max: u16,
    tables: Published<Tables>,
    counters: Counters,
    prober: Arc<CachePadded<WorkerCounters>>,
    flows: Arc<FlowTable>,
}

#[derive(Debug)]
struct Handle {
    orders: Sender<Order>,
    home: Arc<Home>,
    status: Arc<Status>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the workers, with no port and no tunnel yet.
    ///
    /// # Errors
    /// [`EngineError::StartWorker`] when the kernel refuses a thread or a descriptor.
    pub fn start(config: &Config, tables: Arc<Tables>) -> Result<Self, EngineError> {
        let workers = usize::from(config.workers.max(1));
        let mut counters = Counters::new(workers, usize::from(config.ports_max));
        let prober = counters.add_writer();
        let mut engine = Self {
            workers: Vec::with_capacity(workers),
            ports_max: config.ports_max,
            tables: Published::new(tables),
            counters,
            prober,
            flows: Arc::new(FlowTable::new(config.flows_max, random_seed(), Instant::now())),
        };
        let mut homes = Vec::with_capacity(workers);
        for ix in 0..workers {
            let home =
                Home::new(ix).map_err(|source| EngineError::StartWorker { worker: ix, source })?;
            homes.push(Arc::new(home));
        }
        for ix in 0..workers {
            let handle = engine
                .spawn(config, ix, &homes)
                .map_err(|source| EngineError::StartWorker { worker: ix, source })?;
            engine.workers.push(handle);
        }
        Ok(engine)
    }

    /// How many workers there are, and so how many sinks or uplinks each port or tunnel needs.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Hands a local port to the workers. A port that had the same index is removed first.
    ///
    /// # Errors
    /// When `port` does not fit the engine, or a worker cannot take it. The port is then removed again.
    pub fn add_port(&self, ix: PortIx, port: Port) -> Result<(), EngineError> {
        if ix.0 >= self.ports_max {
            return Err(EngineError::TooManyPorts { port: ix.0, ports_max: self.ports_max });
        }
        self.check_count(port.sinks.len())?;
        self.remove_port(ix)?;
        let mut sinks = port.sinks.into_iter();
        let mut answers = Vec::with_capacity(self.workers());
        for (worker, sink) in (0..).zip(sinks.by_ref()) {
            answers.push(self.order(worker, Command::AddSink { port: ix, sink }));
        }
        let reader = self.reader_of(ix);
        let source = Command::AddSource { port: Some(ix), source: port.source };
        let added = self.wait_all(answers).and_then(|()| {
            let answer = self.order(reader, source);
            self.wait_all(vec![answer])
        });
        if added.is_err() {
            self.remove_port(ix)?;
        }
        added
    }

    /// Takes a local port from the workers. When this returns `Ok`, none of them holds its descriptor.
    /// A port that is not there is no error.
    ///
    /// # Errors
    /// When a worker does not answer. A worker that has ended holds nothing and is no error.
    pub fn remove_port(&self, ix: PortIx) -> Result<(), EngineError> {
        self.tell_all(|| Command::RemovePort { port: ix })
    }

    /// Replaces the tunnel, or with `None` takes it away.
    ///
    /// The old one is closed first. A new one that binds the same address and port can only be opened
    /// after that: take the tunnel away, open, and set.
    ///
    /// # Errors
    /// When `tunnel` does not fit the engine, or a worker cannot take it. There is no tunnel then.
    pub fn set_tunnel(&self, tunnel: Option<TunnelPort>) -> Result<(), EngineError> {
        if let Some(tunnel) = &tunnel {
            self.check_count(tunnel.uplinks.len())?;
        }
        self.tell_all(|| Command::RemoveTunnel)?;
        let Some(tunnel) = tunnel else {
            return Ok(());
        };
        let mut answers = Vec::with_capacity(self.workers());
        for (worker, uplink) in tunnel.uplinks.into_iter().enumerate() {
            answers.push(self.order(worker, Command::SetUplink { uplink }));
        }
        let sources = tunnel.sources.into_iter();
        let added = self.wait_all(answers).and_then(|()| {
            sources.map(|source| Command::AddSource { port: None, source }).try_for_each(
                |command| {
                    let answer = self.order(self.workers() - 1, command);
                    self.wait_all(vec![answer])
                },
            )
        });
        if added.is_err() {
            self.tell_all(|| Command::RemoveTunnel)?;
        }
        added
    }

    /// Puts new tables in force: every batch that begins after this uses them.
    pub fn publish(&self, tables: Arc<Tables>) {
        self.tables.publish(tables);
        for worker in &self.workers {
            // An idle worker would otherwise hold the old tables until its next heartbeat.
            worker.home.wake();
        }
    }

    /// The tables in force.
    pub fn tables(&self) -> Arc<Tables> {
        self.tables.load()
    }

    /// The counters of all workers.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The counters, among those of all workers, for who sends through the tunnel's sockets beside the workers. It
    /// must be one thread at a time.
    pub fn prober_counters(&self) -> Arc<CachePadded<WorkerCounters>> {
        Arc::clone(&self.prober)
    }

    /// The flows to Services, which all workers share.
    pub fn flows(&self) -> &Arc<FlowTable> {
        &self.flows
    }

    /// How every worker is.
    pub fn health(&self) -> Vec<WorkerHealth> {
        let now = Instant::now();
        self.workers
            .iter()
            .map(|worker| {
                let mut health = worker.status.health(now);
                let finished = worker.thread.as_ref().is_none_or(JoinHandle::is_finished);
                if finished && health.ended.is_none() {
                    health.ended = Some("it returned".to_owned());
                }
                health
            })
            .collect()
    }

    /// The sources whose devices vanished since the last call.
    pub fn take_lost_sources(&self) -> Vec<LostSource> {
        let take = |worker: &Handle| {
            std::mem::take(&mut *worker.status.lost.lock().unwrap_or_else(PoisonError::into_inner))
        };
        self.workers.iter().flat_map(take).collect()
    }

    /// Stops all workers and closes every port and the tunnel. What was received is still delivered.
    ///
    /// # Errors
    /// The first worker that could not be stopped, or had already ended.
    pub fn stop(mut self) -> Result<(), EngineError> {
        self.stop_workers()
    }

    fn stop_workers(&mut self) -> Result<(), EngineError> {
        let answers: Vec<_> =
            (0..self.workers()).map(|worker| self.order(worker, Command::Stop)).collect();
        let mut first = Ok(());
        for answer in answers {
            let worker = answer.worker;
            let stopped = self.wait(answer);
            let stuck = matches!(stopped, Err(EngineError::WorkerStuck { .. }));
            if let Some(thread) = self.workers[worker].thread.take()
                && !stuck
                && thread.join().is_err()
            {
                first = first.and(Err(EngineError::WorkerEnded { worker }));
            }
            first = first.and(stopped);
        }
        first
    }

    fn spawn(&self, config: &Config, ix: usize, homes: &[Arc<Home>]) -> io::Result<Handle> {
        let (orders, inbox) = bounded(ORDERS_MAX);
        let status = Arc::new(Status::new());
        let mut worker = Worker::new(WorkerParts {
            config: config.clone(),
            tables: self.tables.reader(),
            counters: self.counters.worker(ix),
            flows: Arc::clone(&self.flows),
            orders: inbox,
            ix,
            homes: homes.to_vec(),
            status: Arc::clone(&status),
        });
        let (mourner, home) = (Arc::clone(&status), Arc::clone(&homes[ix]));
        let thread = std::thread::Builder::new().name(format!("weft-{ix}")).spawn(move || {
            match Turn::shorten() {
                Ok(turn) => worker.take_turn(turn),
                Err(error) => {
                    let _set_once = mourner.slice_refused.set(error.to_string());
                }
            }
            // The worker is consumed here whatever happens, so nobody sees a half-changed one.
            let ended = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
                Ok(Ok(())) => "it was stopped".to_owned(),
                Ok(Err(error)) => format!("it cannot wait for frames: {error}"),
                Err(panic) => format!("it panicked: {}", panic_text(&*panic)),
            };
            drop(worker);
            // The keeper's, if this one panicked while it rested.
            home.close_all();
            *mourner.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
        })?;
        Ok(Handle { orders, home: Arc::clone(&homes[ix]), status, thread: Some(thread) })
    }

    fn check_count(&self, given: usize) -> Result<(), EngineError> {
        let workers = self.workers();
        if given == workers { Ok(()) } else { Err(EngineError::WrongCount { given, workers }) }
    }

    /// The last worker reads the tunnel, the others share the ports. With one worker it does all.
    fn reader_of(&self, port: PortIx) -> usize {
        port.ix() % (self.workers() - 1).max(1)
    }

    fn tell_all(&self, command: impl Fn() -> Command) -> Result<(), EngineError> {
        let answers = (0..self.workers()).map(|worker| self.order(worker, command())).collect();
        match self.wait_all(answers) {
            Err(EngineError::WorkerEnded { .. }) => Ok(()),
            other => other,
        }
    }

    fn order(&self, worker: usize, command: Command) -> Answer {
        let handle = &self.workers[worker];
        let (done, answer) = bounded(1);
        let sent = match handle.orders.send_timeout(Order { command, done }, ANSWER_TIMEOUT) {
            Ok(()) => Ok(answer),
            Err(SendTimeoutError::Timeout(_)) => Err(EngineError::WorkerStuck { worker }),
            Err(SendTimeoutError::Disconnected(_)) => Err(EngineError::WorkerEnded { worker }),
        };
        handle.home.wake();
        Answer { worker, sent }
    }

    /// Waits for all, and returns the first error; a stuck worker counts more than one that has ended.
    fn wait_all(&self, answers: Vec<Answer>) -> Result<(), EngineError> {
        let mut first = Ok(());
        for answer in answers {
            let result = self.wait(answer);
            let ended = matches!(first, Err(EngineError::WorkerEnded { .. }));
            if result.is_err() && (first.is_ok() || ended) {
                first = result;
            }
        }
        first
    }

    #[expect(clippy::unused_self, reason = "reads as one sentence beside its callers")]
    fn wait(&self, answer: Answer) -> Result<(), EngineError> {
        let worker = answer.worker;
        match answer.sent?.recv_timeout(ANSWER_TIMEOUT) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(EngineError::Poll { worker, source }),
            Err(RecvTimeoutError::Timeout) => Err(EngineError::WorkerStuck { worker }),
            Err(RecvTimeoutError::Disconnected) => Err(EngineError::WorkerEnded { worker }),
        }
    }
}

impl Drop for Engine {
    /// Stops the workers. Use [`Engine::stop`] to learn whether that worked.
    fn drop(&mut self) {
        let running = self.workers.iter().any(|worker| worker.thread.is_some());
        if running && let Err(_unreportable) = self.stop_workers() {
            // A drop has nobody to tell; whoever wants to know calls `stop`.
        }
    }
}

struct Answer {
    worker: usize,
    sent: Result<Receiver<io::Result<()>>, EngineError>,
}

/// What nobody outside can know: the standard library draws it from the kernel.
fn random_seed() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0_u8)
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixDatagram;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::frame::{Batch, Frame};
    use crate::mac::Mac;
    use crate::port::{Context, NodeIx};
    use crate::tables::{Node, TablesBuilder};

    const DEADLINE: Duration = Duration::from_secs(10);

    /// What a test's source does with a datagram, by its first byte.
    const PANIC: u8 = b'p';
    const VANISH: u8 = b'v';
    /// It says who received it.
    const WHO: u8 = b'w';
    /// It keeps its receiver busy for a while.
    const WORK: u8 = b'b';

    #[derive(Debug)]
    struct TestSource(Arc<UnixDatagram>);

    impl Source for TestSource {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn receive(&mut self, _context: &mut Context<'_>, _batch: &mut Batch) -> io::Result<()> {
            let mut buffer = [0; 16];
            match self.0.recv(&mut buffer) {
                Ok(_) if buffer[0] == PANIC => panic!("told to"),
                Ok(_) if buffer[0] == VANISH => Err(io::Error::other("gone")),
                Ok(_) if buffer[0] == WHO => {
                    let name = std::thread::current().name().unwrap_or_default().to_owned();
                    self.0.send(name.as_bytes()).map(|_| ())
                }
                Ok(_) if buffer[0] == WORK => {
                    let end = Instant::now() + Duration::from_millis(1);
                    while Instant::now() < end {
                        std::hint::spin_loop();
                    }
                    Ok(())
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            }
        }
    }

    #[derive(Debug)]
    struct TestSink(#[expect(dead_code, reason = "holds it open")] Arc<UnixDatagram>);

    impl Sink for TestSink {
        fn send(&mut self, context: &mut Context<'_>, frame: Frame) {
            context.pool.put(frame);
        }
        fn flush(&mut self, _context: &mut Context<'_>) {}
    }

    impl Uplink for TestSink {
        fn send(&mut self, context: &mut Context<'_>, _node: NodeIx, frame: Frame) {
            context.pool.put(frame);
        }
        fn flush(&mut self, _context: &mut Context<'_>) {}
    }

    /// Reads nothing; its device is there until told otherwise.
    #[derive(Debug)]
    struct SilentSource(UnixDatagram, Arc<AtomicBool>);

    impl Source for SilentSource {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn receive(&mut self, _context: &mut Context<'_>, _batch: &mut Batch) -> io::Result<()> {
            Ok(())
        }

        fn check(&self) -> io::Result<()> {
            if self.1.load(Ordering::Relaxed) { Err(io::Error::other("unplugged")) } else { Ok(()) }
        }
    }

    fn tables() -> Arc<Tables> {
        let node = Node {
            vtep_mac: Mac::HOST,
            gateway_v4: Some(Ipv4Addr::new(10, 244, 1, 1)),
            gateway_v6: None,
            underlay: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            vxlan_port: 4789,
            gossip_port: 7946,
        };
        Arc::new(TablesBuilder::new(1, node, &[]).build())
    }

    fn start(workers: u16) -> Engine {
        Engine::start(&Config { workers, ports_max: 8, ..Config::default() }, tables()).unwrap()
    }

    /// A port, and the other end of its socket: sending fails once nobody holds the port's end.
    fn port(engine: &Engine) -> (Port, UnixDatagram) {
        let (inner, outer) = UnixDatagram::pair().unwrap();
        let inner = Arc::new(inner);
        let sink = |_| Box::new(TestSink(Arc::clone(&inner))) as Box<dyn Sink>;
        let sinks = (0..engine.workers()).map(sink).collect();
        (Port { source: Box::new(TestSource(inner)), sinks }, outer)
    }

    fn tunnel(engine: &Engine) -> (TunnelPort, UnixDatagram) {
        let (inner, outer) = UnixDatagram::pair().unwrap();
        let inner = Arc::new(inner);
        let uplink = |_| Box::new(TestSink(Arc::clone(&inner))) as Box<dyn Uplink>;
        let uplinks = (0..engine.workers()).map(uplink).collect();
        (TunnelPort { sources: vec![Box::new(TestSource(inner))], uplinks }, outer)
    }

    fn eventually<T>(mut probe: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = probe() {
                return found;
            }
            assert!(Instant::now() < deadline, "it did not happen within {DEADLINE:?}");
            std::thread::yield_now();
        }
    }

    /// Who serves the source at the other end of `outer`.
    fn who(outer: &UnixDatagram) -> String {
        let mut name = [0; 16];
        outer.set_read_timeout(Some(DEADLINE)).unwrap();
        outer.send(&[WHO]).unwrap();
        let len = outer.recv(&mut name).unwrap();
        String::from_utf8_lossy(&name[..len]).into_owned()
    }

    #[test]
    fn one_worker_serves_all_while_there_is_little_to_do_and_gives_back_when_there_is_much() {
        let engine = start(2);
        let (busy, busy_outer) = port(&engine);
        let (tunnel, outer) = tunnel(&engine);
        engine.add_port(PortIx(0), busy).unwrap();
        engine.set_tunnel(Some(tunnel)).unwrap();
        eventually(|| (who(&outer) == "weft-0").then_some(()));
        eventually(|| {
            for _ in 0..4 {
                busy_outer.send(&[WORK]).unwrap();
            }
            (who(&outer) == "weft-1").then_some(())
        });
        eventually(|| (who(&outer) == "weft-0").then_some(()));
        engine.set_tunnel(None).unwrap();
        assert!(outer.send(b"x").is_err(), "the tunnel is closed, whoever served it");
        engine.stop().unwrap();
    }

    #[test]
    fn nobody_holds_a_removed_port() {
        for workers in 1..=3 {
            let engine = start(workers);
            for ix in [PortIx(0), PortIx(1), PortIx(7)] {
                let (port, outer) = port(&engine);
                engine.add_port(ix, port).unwrap();
                outer.send(b"x").unwrap();
                engine.remove_port(ix).unwrap();
                assert!(outer.send(b"x").is_err(), "the port is still held");
            }
            engine.stop().unwrap();
        }
    }

    #[test]
    fn a_port_replaces_the_one_before_and_a_stop_closes_all() {
        let engine = start(2);
        let (first, first_outer) = port(&engine);
        engine.add_port(PortIx(1), first).unwrap();
        let (second, second_outer) = port(&engine);
        engine.add_port(PortIx(1), second).unwrap();
        assert!(first_outer.send(b"x").is_err());
        second_outer.send(b"x").unwrap();
        let (tunnel, tunnel_outer) = tunnel(&engine);
        engine.set_tunnel(Some(tunnel)).unwrap();
        engine.stop().unwrap();
        assert!(second_outer.send(b"x").is_err());
        assert!(tunnel_outer.send(b"x").is_err());
    }

    #[test]
    fn the_tunnel_can_come_late_and_change() {
        let engine = start(2);
        engine.set_tunnel(None).unwrap();
        let (first, first_outer) = tunnel(&engine);
        engine.set_tunnel(Some(first)).unwrap();
        first_outer.send(b"x").unwrap();
        let (second, second_outer) = tunnel(&engine);
        engine.set_tunnel(Some(second)).unwrap();
        assert!(first_outer.send(b"x").is_err());
        engine.set_tunnel(None).unwrap();
        assert!(second_outer.send(b"x").is_err());
    }

    #[test]
    fn a_panic_is_noticed_and_nothing_waits_for_the_dead() {
        let engine = start(2);
        // One of the keeper's, which no other worker serves.
        let (first, outer) = port(&engine);
        engine.add_port(PortIx(2), first).unwrap();
        outer.send(&[PANIC]).unwrap();
        let ended = eventually(|| engine.health()[0].ended.clone());
        assert_eq!(ended, "it panicked: told to");
        assert_eq!(engine.health()[1].ended, None);
        let started = Instant::now();
        engine.remove_port(PortIx(3)).unwrap();
        let (port, _outer) = port(&engine);
        let added = engine.add_port(PortIx(3), port);
        assert!(matches!(added, Err(EngineError::WorkerEnded { worker: 0 })), "{added:?}");
        let stopped = engine.stop();
        assert!(matches!(stopped, Err(EngineError::WorkerEnded { worker: 0 })), "{stopped:?}");
        assert!(started.elapsed() < ANSWER_TIMEOUT);
    }

    /// Gives one frame of `len` bytes for each datagram, and says so.
    #[derive(Debug)]
    struct FrameSource {
        socket: UnixDatagram,
        len: usize,
        served: Sender<usize>,
    }

    impl Source for FrameSource {
        fn fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }

        fn receive(&mut self, context: &mut Context<'_>, batch: &mut Batch) -> io::Result<()> {
            self.socket.recv(&mut [0; 16])?;
            let mut frame = context.pool.take().unwrap();
            assert!(frame.append(&vec![0; self.len]));
            context.count_received(PortIx(0), &frame);
            batch.push(frame);
            self.served.send(self.len).map_err(io::Error::other)
        }
    }

    /// Keeps its worker until it is sent something again.
    #[derive(Debug)]
    struct GateSource(UnixDatagram);

    impl Source for GateSource {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn receive(&mut self, _context: &mut Context<'_>, _batch: &mut Batch) -> io::Result<()> {
            self.0.recv(&mut [0; 16])?;
            self.0.send(b"closed")?;
            self.0.recv(&mut [0; 16]).map(|_| ())
        }
    }

    #[test]
    fn of_sources_that_are_ready_together_those_with_small_batches_come_first() {
        const LENS: [usize; 3] = [60_000, 100, 60_001];
        let engine = start(1);
        let (served, order) = crossbeam::channel::unbounded();
        let add = |ix, source: Box<dyn Source>| {
            let (port, outer) = port(&engine);
            engine.add_port(ix, Port { source, ..port }).unwrap();
            outer
        };
        let outers = [0, 1, 2].map(|ix| {
            let (socket, outer) = UnixDatagram::pair().unwrap();
            let source = FrameSource { socket, len: LENS[ix], served: served.clone() };
            add(PortIx(u16::try_from(ix).unwrap()), Box::new(source));
            outer
        });
        let (gate, gate_outer) = UnixDatagram::pair().unwrap();
        add(PortIx(7), Box::new(GateSource(gate)));
        let take = || order.recv_timeout(DEADLINE).unwrap();
        for outer in &outers {
            outer.send(b"x").unwrap();
            take();
        }
        for _ in 0..20 {
            gate_outer.send(b"x").unwrap();
            gate_outer.recv(&mut [0; 16]).unwrap();
            for outer in &outers {
                outer.send(b"x").unwrap();
            }
            gate_outer.send(b"x").unwrap();
            assert_eq!(take(), LENS[1]);
            let mut others = [take(), take()];
            others.sort_unstable();
            assert_eq!(others, [LENS[0], LENS[2]]);
        }
    }

    #[test]
    fn a_vanished_device_is_told_and_no_longer_read() {
        let engine = start(2);
        let (port, outer) = port(&engine);
        engine.add_port(PortIx(2), port).unwrap();
        outer.send(&[VANISH]).unwrap();
        let lost = eventually(|| engine.take_lost_sources().pop());
        assert_eq!(lost, LostSource { port: Some(PortIx(2)), error: "gone".to_owned() });
        outer.send(&[PANIC]).unwrap();
        engine.remove_port(PortIx(2)).unwrap();
        assert_eq!(engine.health()[0].ended, None);
    }

    #[test]
    fn a_device_that_vanishes_in_silence_is_found_also_beside_a_busy_one() {
        let engine = start(2);
        let (mut silent, _outer) = port(&engine);
        let (inner, outer) = UnixDatagram::pair().unwrap();
        let is_gone = Arc::new(AtomicBool::new(false));
        silent.source = Box::new(SilentSource(inner, Arc::clone(&is_gone)));
        engine.add_port(PortIx(2), silent).unwrap();
        // The other port's worker never waits.
        outer.send(b"x").unwrap();
        let breath = engine.health()[0].last_breath;
        eventually(|| (engine.health()[0].last_breath < breath).then_some(()));
        assert_eq!(engine.take_lost_sources(), []);
        is_gone.store(true, Ordering::Relaxed);
        let lost = eventually(|| engine.take_lost_sources().pop());
        assert_eq!(lost, LostSource { port: Some(PortIx(2)), error: "unplugged".to_owned() });
        assert!(outer.send(b"x").is_err(), "its source is closed");
        assert_eq!(engine.take_lost_sources(), [], "told once");
    }

    #[test]
    fn an_idle_worker_breathes_by_itself_once_a_second_and_no_more() {
        const IDLE: Duration = crate::worker::IDLE_MAX;
        let engine = start(1);
        let breath = || Instant::now() - engine.health()[0].last_breath;
        let next = |last| eventually(|| Some(breath()).filter(|breath| *breath > last + IDLE / 4));
        // The first breath of all may come at once; the one after it has nothing but time to wake it.
        let first = next(breath());
        let second = next(first);
        assert!(second - first > IDLE * 9 / 10, "it woke after {:?}", second - first);
    }

    #[test]
    fn replaced_tables_are_freed_by_the_one_who_publishes() {
        let engine = start(2);
        let old = Arc::downgrade(&engine.tables());
        engine.publish(tables());
        eventually(|| {
            engine.publish(tables());
            (old.strong_count() == 0).then_some(())
        });
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let engine = start(2);
        let (mut short, outer) = port(&engine);
        short.sinks.pop();
        let added = engine.add_port(PortIx(1), short);
        assert!(matches!(added, Err(EngineError::WrongCount { given: 1, workers: 2 })));
        assert!(outer.send(b"x").is_err(), "the refused port is closed");
        let (far, _outer) = port(&engine);
        let added = engine.add_port(PortIx(8), far);
        assert!(matches!(added, Err(EngineError::TooManyPorts { port: 8, ports_max: 8 })));
    }
}
