//! Carries out one measurement on one contestant.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use weft::bench::{self, Direction, Outcome, Plan, Protocol, Server, Test};
use weft::lab::{Family, Interrupt, Wait};

use super::cpu::{self, OtherWork, Window};
use super::lines::Job;
use super::mesh;
use super::topology::{Pod, Service, Stage};

/// What a measurement gives: the figures of [`super::lines::LINES`] by name, each in its line's unit.
pub(crate) type Figures = Vec<(&'static str, f64)>;

/// How long each part of a measurement takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Before anything counts.
    pub(crate) warm_up: Duration,
    /// While it counts.
    pub(crate) duration: Duration,
}

/// Bytes of a small datagram and of a request.
const SMALL_LEN: u16 = 64;

/// How long the other flow of [`Job::Fair`] runs before and after what is measured beside it.
const MARGIN: Duration = Duration::from_millis(300);

/// Threads that make connections: one a CPU of the machine that the targets are for.
const CONNECTING_THREADS: u16 = 2;

/// How long pods may take to reach each other for the first time.
const REACH_LIMIT: Duration = Duration::from_secs(20);

/// Does `job` on `stage`.
pub(crate) fn measure(
    job: Job,
    stage: &Stage,
    timing: Timing,
    interrupt: &Interrupt,
) -> Result<Figures> {
    let remote =
        || -> Result<Route<'_>> { Ok(Route::between(&stage.pods(0)[0], &stage.pods(1)[0])) };
    let local =
        || -> Result<Route<'_>> { Ok(Route::between(&stage.pods(0)[0], &stage.pods(0)[1])) };
    let tcp = |streams, direction| Test::TcpThroughput { streams, direction };
    let round_trip = |protocol| Test::RoundTrip { protocol, payload: SMALL_LEN };
    let flood = Test::UdpRate { payload: SMALL_LEN, flows: 1 };
    match job {
        Job::Tcp1 => tcp_with_costs(&remote()?, timing),
        Job::Tcp4 => throughput("tcp4", &remote()?.run(tcp(4, Direction::Send), timing)?),
        Job::Bidir => throughput("bidir", &remote()?.run(tcp(1, Direction::Both), timing)?),
        Job::Udp64 => rate("udp64", &remote()?.run(flood, timing)?),
        Job::RttTcp => {
            let outcome = remote()?.run(round_trip(Protocol::Tcp), timing)?;
            percentiles(["rtt-tcp-p50", "rtt-tcp-p99"], &outcome)
        }
        Job::RttUdp => {
            let outcome = remote()?.run(round_trip(Protocol::Udp), timing)?;
            percentiles(["rtt-udp-p50", "rtt-udp-p99"], &outcome)
        }
        Job::BusyTcp => {
            let _busy = OtherWork::start()?;
            let outcome = remote()?.run(round_trip(Protocol::Tcp), timing)?;
            percentiles(["busy-tcp-p50", "busy-tcp-p99"], &outcome)
        }
        Job::BusyUdp => {
            let _busy = OtherWork::start()?;
            let outcome = remote()?.run(round_trip(Protocol::Udp), timing)?;
            percentiles(["busy-udp-p50", "busy-udp-p99"], &outcome)
        }
        Job::Connect => {
            let test = Test::ConnectRate { parallel: CONNECTING_THREADS };
            connects("connect", &remote()?.run(test, timing)?)
        }
        Job::ServiceConnect => through_a_service(stage, timing, interrupt),
        Job::Fair => beside_a_stream(stage, timing),
        Job::LocalTcp1 => throughput("local-tcp1", &local()?.run(tcp(1, Direction::Send), timing)?),
        Job::LocalUdp64 => rate("local-udp64", &local()?.run(flood, timing)?),
        Job::LocalRtt => {
            let outcome = local()?.run(round_trip(Protocol::Tcp), timing)?;
            percentiles(["local-rtt-p50", "local-rtt-p99"], &outcome)
        }
        Job::Tcp1V6 => {
            let outcome = remote()?.over_v6().run(tcp(1, Direction::Send), timing)?;
            throughput("tcp1-v6", &outcome)
        }
        Job::RttV6 => {
            let outcome = remote()?.over_v6().run(round_trip(Protocol::Tcp), timing)?;
            let [p50, _] = percentiles(["rtt-v6-p50", "rtt-v6-p99"], &outcome)?[..] else {
                bail!("two percentiles were asked for");
            };
            Ok(vec![p50])
        }
        Job::Mesh => {
            let bits_per_s = mesh::bits_per_s(stage, timing, interrupt)?;
            Ok(vec![("mesh", bits_per_s / 1e9)])
        }
        Job::Idle => idle(["idle-cpu", "idle-memory"], stage, interrupt),
        Job::Full => idle(["full-cpu", "full-memory"], stage, interrupt),
    }
}

/// Waits until a stage's pods reach each other, which also fills what has to be learned.
pub(crate) fn wait_until_reachable(stage: &Stage, interrupt: &Interrupt) -> Result<()> {
    use weft::lab::probe::Ping;

    let source = stage.pods(0).first().context("the first node has no pods")?;
    for target in [stage.pods(0).last(), stage.pods(1).first()].into_iter().flatten() {
        for address in &target.addresses {
            interrupt.wait_for(REACH_LIMIT, || {
                let ping = Ping { count: 1, ..Ping::new(*address) };
                let report = ping.run(&source.namespace)?;
                Ok(if report.is_ok() {
                    Wait::Done(())
                } else {
                    Wait::NotYet(format!(
                        "{} cannot reach pod {address}: {report:?}",
                        stage.contestant
                    ))
                })
            })?;
        }
    }
    Ok(())
}

/// Moves enough bytes from one node to another that every kind of frame is among them.
pub(crate) fn send_a_little(stage: &Stage, from: usize, to: usize) -> Result<()> {
    let timing = Timing { warm_up: Duration::ZERO, duration: Duration::from_millis(200) };
    let test = Test::TcpThroughput { streams: 2, direction: Direction::Send };
    Route::between(&stage.pods(from)[0], &stage.pods(to)[0]).run(test, timing).map(drop)
}

/// The way of a measurement's traffic.
#[derive(Debug, Clone)]
pub(crate) struct Route<'a> {
    source: &'a Pod,
    target: &'a Pod,
    family: Family,
}

impl<'a> Route<'a> {
    /// Over IPv4.
    pub(crate) fn between(source: &'a Pod, target: &'a Pod) -> Self {
        Self { source, target, family: Family::V4 }
    }

    fn over_v6(self) -> Self {
        Self { family: Family::V6, ..self }
    }

    /// Starts what answers at the target.
    fn server(&self) -> Result<Server> {
        serve(self.target, self.target.address(self.family)?)
    }

    /// Measures.
    pub(crate) fn run(&self, test: Test, timing: Timing) -> Result<Outcome> {
        let server = self.server()?;
        self.run_against(server.address(), test, timing)
    }

    fn run_against(&self, server: SocketAddr, test: Test, timing: Timing) -> Result<Outcome> {
        let plan = Plan { test, warm_up: timing.warm_up, duration: timing.duration };
        self.source.namespace.run(|| bench::run(server, &plan))?
    }
}

fn serve(pod: &Pod, address: IpAddr) -> Result<Server> {
    let started = pod.namespace.run(|| Server::start(SocketAddr::new(address, 0)))?;
    started.with_context(|| format!("starting a server at {address}"))
}

fn tcp_with_costs(route: &Route<'_>, timing: Timing) -> Result<Figures> {
    let window = Window::open(timing.warm_up, timing.duration)?;
    let test = Test::TcpThroughput { streams: 1, direction: Direction::Send };
    let outcome = route.run(test, timing)?;
    let mut figures = throughput("tcp1", &outcome)?;
    let gigabytes_per_s = figures[0].1 / 8.0;
    figures.push(("tcp1-cpu", window.busy()? / gigabytes_per_s));
    if let Outcome::Throughput { reordering_seen, .. } = outcome {
        figures.push(("tcp1-reordered", float(reordering_seen)));
    }
    Ok(figures)
}

/// Connections to a Service whose one endpoint is on the other node.
fn through_a_service(stage: &Stage, timing: Timing, interrupt: &Interrupt) -> Result<Figures> {
    let route = Route::between(&stage.pods(0)[0], &stage.pods(1)[0]);
    let service = Service::make(stage, route.target)?;
    let server = route.server()?;
    let address = service.wait_for(route.source, server.address(), interrupt)?;
    let test = Test::ConnectRate { parallel: CONNECTING_THREADS };
    connects("service-connect", &route.run_against(address, test, timing)?)
}

/// A round trip between the second pods of both nodes, while the first keep a stream going.
fn beside_a_stream(stage: &Stage, timing: Timing) -> Result<Figures> {
    let bulk = Route::between(&stage.pods(0)[0], &stage.pods(1)[0]);
    let beside = Route::between(&stage.pods(0)[1], &stage.pods(1)[1]);
    let (bulk_server, beside_server) = (bulk.server()?, beside.server()?);
    let longer =
        Timing { warm_up: MARGIN, duration: timing.warm_up + timing.duration + 2 * MARGIN };
    let outcome = std::thread::scope(|scope| -> Result<Outcome> {
        let stream = scope.spawn(|| {
            let test = Test::TcpThroughput { streams: 1, direction: Direction::Send };
            bulk.run_against(bulk_server.address(), test, longer)
        });
        let test = Test::RoundTrip { protocol: Protocol::Tcp, payload: SMALL_LEN };
        let outcome = beside.run_against(beside_server.address(), test, timing);
        let stream = stream.join().map_err(|_| anyhow!("the stream's thread panicked"))?;
        stream.context("the stream beside which a round trip is measured")?;
        outcome
    })?;
    percentiles(["fair-p50", "fair-p99"], &outcome)
}

/// How long an idle daemon is watched.
pub(crate) const IDLE_TIME: Duration = Duration::from_secs(10);

/// What the first node's daemon takes when there is no traffic.
fn idle(figures: [&'static str; 2], stage: &Stage, interrupt: &Interrupt) -> Result<Figures> {
    let node = stage.lab().nodes().first().context("there is no node")?;
    let daemon = node.daemon.with_context(|| format!("no daemon runs on {}", node.name))?;
    let (start, before) = (Instant::now(), cpu::of_process(daemon.pid)?);
    pass(IDLE_TIME, interrupt)?;
    let share = (cpu::of_process(daemon.pid)? - before) / start.elapsed().as_secs_f64();
    let memory = cpu::resident(daemon.pid)?;
    Ok(vec![(figures[0], share * 100.0), (figures[1], memory / 1e6)])
}

/// Lets time pass, unless interrupted.
pub(crate) fn pass(time: Duration, interrupt: &Interrupt) -> Result<()> {
    let start = Instant::now();
    interrupt.wait_for(time * 2, || {
        Ok(if start.elapsed() < time {
            Wait::NotYet("measuring".to_owned())
        } else {
            Wait::Done(())
        })
    })
}

fn throughput(figure: &'static str, outcome: &Outcome) -> Result<Figures> {
    let Outcome::Throughput { bytes, elapsed, .. } = outcome else {
        bail!("a stream was measured, and its outcome is {outcome:?}");
    };
    ensure!(*bytes > 0, "no byte arrived");
    Ok(vec![(figure, float(*bytes) * 8.0 / elapsed.as_secs_f64() / 1e9)])
}

fn rate(figure: &'static str, outcome: &Outcome) -> Result<Figures> {
    let Outcome::Rate { sent, received, elapsed } = outcome else {
        bail!("datagrams were measured, and their outcome is {outcome:?}");
    };
    ensure!(*received > 0, "none of {sent} datagrams arrived");
    Ok(vec![(figure, float(*received) / elapsed.as_secs_f64() / 1e3)])
}

fn percentiles(figures: [&'static str; 2], outcome: &Outcome) -> Result<Figures> {
    let Outcome::RoundTrip { count, lost, p50, p99, .. } = outcome else {
        bail!("a round trip was measured, and its outcome is {outcome:?}");
    };
    ensure!(*count > 0, "no answer came; {lost} requests were lost");
    Ok(vec![(figures[0], p50.as_secs_f64() * 1e6), (figures[1], p99.as_secs_f64() * 1e6)])
}

fn connects(figure: &'static str, outcome: &Outcome) -> Result<Figures> {
    let Outcome::Connects { count, failed, elapsed } = outcome else {
        bail!("connections were measured, and their outcome is {outcome:?}");
    };
    ensure!(*count > 0, "no connection was made; {failed} failed");
    Ok(vec![(figure, float(*count) / elapsed.as_secs_f64() / 1e3)])
}

/// Counts are far below 2⁵³.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}
