//! `weft bench`: the same tests over the overlay and beside it.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use ipnetwork::IpNetwork;
use serde::Serialize;

use super::args::{BenchArgs, BenchCommand, BenchRunArgs, BenchTest, TargetArgs};
use super::table::Table;
use super::view::{self, join, print};
use crate::admin::api::NodeStatus;
use crate::bench::{self, DEFAULT_PORT, Direction, Outcome, Plan, Protocol, Server, Test};
use crate::lab::{self, Labs};

/// How long traffic runs before it counts: TCP has found its pace, caches and neighbours are known.
const WARM_UP: Duration = Duration::from_millis(500);

/// Streams of the test with several: more than a small machine has CPUs.
const STREAMS: u16 = 4;

/// Bytes of small datagrams and of round trips.
const SMALL_PAYLOAD: u16 = 64;

/// Threads that connect.
const CONNECTING: u16 = 4;

pub(super) fn run(arguments: &BenchArgs, out: &mut impl Write) -> Result<()> {
    match &arguments.command {
        BenchCommand::Serve { listen } => serve(*listen, out),
        BenchCommand::Run(arguments) => run_tests(arguments, out),
    }
}

fn serve(listen: SocketAddr, out: &mut impl Write) -> Result<()> {
    let server = Server::start(listen).map_err(|error| {
        let advice = match error.raw_os_error() {
            Some(libc::EADDRINUSE) => {
                "; is another `weft bench serve` running? Give another port: `--listen ADDRESS:PORT`"
            }
            Some(libc::EADDRNOTAVAIL) => "; give an address of this machine, or `[::]` for all",
            Some(libc::EAFNOSUPPORT) => "; without IPv6, give `--listen 0.0.0.0:5281`",
            _ => "",
        };
        anyhow!("listening on {listen}: {error}{advice}")
    })?;
    // In one piece: whoever waits for the first line may then stop reading.
    writeln!(
        out,
        "Answering measurements on {}, until ctrl-C.\n\
         On another node:  weft bench run NODE      (this node's name)\n\
         From anywhere:    weft bench run ADDRESS   (one of this machine, node or pod)",
        server.address()
    )?;
    out.flush()?;
    loop {
        rustix::event::pause();
    }
}

fn run_tests(arguments: &BenchRunArgs, out: &mut impl Write) -> Result<()> {
    let paths = paths(arguments)?;
    let tests = match &arguments.tests[..] {
        [] => BenchTest::value_variants(),
        tests => tests,
    };
    let duration = Duration::from_secs(arguments.seconds.into());
    let measured = within(&arguments.from, || {
        tests.iter().map(|test| measure(*test, duration, &arguments.target, &paths)).collect()
    });
    let report = BenchReport { target: arguments.target.clone(), tests: measured? };
    print(&report, arguments.output.output, out, |out| write!(out, "{}", table(&report)))
}

/// One way to the target.
#[derive(Debug, Clone, Copy)]
struct Path {
    kind: PathKind,
    address: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum PathKind {
    /// To an address that the user has given.
    Address,
    /// To the node's address in the overlay: through the tunnel.
    Overlay,
    /// To the address of the node's machine: without the tunnel.
    Underlay,
}

impl PathKind {
    fn heading(self) -> &'static str {
        match self {
            Self::Address => "RESULT",
            Self::Overlay => "OVERLAY",
            Self::Underlay => "UNDERLAY",
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Address => "",
            Self::Overlay => " through the overlay",
            Self::Underlay => " over the underlay (left out with --overlay-only)",
        }
    }
}

/// The ways to what the user calls the target.
fn paths(arguments: &BenchRunArgs) -> Result<Vec<Path>> {
    let target = &arguments.target;
    if let Ok(address) = target.parse::<SocketAddr>() {
        return Ok(vec![Path { kind: PathKind::Address, address }]);
    }
    let port = arguments.port.unwrap_or(DEFAULT_PORT);
    if let Ok(ip) = target.parse::<IpAddr>() {
        let address = SocketAddr::new(ip, port);
        return Ok(vec![Path { kind: PathKind::Address, address }]);
    }
    let nodes =
        view::target(&arguments.from).and_then(|admin| admin.nodes()).with_context(|| {
            format!("looking up node {target} (in a pod, or where no daemon runs, give an address)")
        })?;
    let (overlay, underlay) = addresses(target, &nodes)?;
    let path = |kind, ip| Path { kind, address: SocketAddr::new(ip, port) };
    let mut paths = vec![path(PathKind::Overlay, overlay)];
    if !arguments.overlay_only {
        paths.push(path(PathKind::Underlay, underlay));
    }
    Ok(paths)
}

/// A node's address in the overlay, and the one of its machine.
fn addresses(name: &str, nodes: &[NodeStatus]) -> Result<(IpAddr, IpAddr)> {
    let Some(node) = nodes.iter().find(|node| node.name == name) else {
        let names: Vec<_> = nodes.iter().map(|node| &node.name).collect();
        bail!("there is no node `{name}`, but {}; or give an address", join(&names));
    };
    if node.this_node {
        bail!("{name} is this node: nothing would leave it; give another node");
    }
    if !node.state.is_active() {
        bail!("node {name} is {}: see `weft nodes`", node.state.name());
    }
    let first = node.leases.iter().find(|lease| lease.is_ipv4()).or_else(|| node.leases.first());
    // Its own address is the first behind the network's (see `control`).
    let overlay = first.and_then(|lease| match lease {
        IpNetwork::V4(lease) => lease.nth(1).map(IpAddr::from),
        IpNetwork::V6(lease) => lease.nth(1).map(IpAddr::from),
    });
    let overlay = overlay.with_context(|| format!("node {name} has no lease yet: wait for it"))?;
    Ok((overlay, node.underlay))
}

/// Does `work` in the namespace of the lab's node that the user has named; else right here.
fn within<T: Send>(from: &TargetArgs, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let Some(node) = &from.node else { return work() };
    let labs = Labs::of_user();
    let name = from.lab.as_deref().unwrap_or("lab");
    let state = labs.read(name)?;
    super::lab::enter(&state)?;
    lab::namespace_in(&labs.dir(name), &state, node)?.run(work)?
}

/// One test over every path, one right after the other.
fn measure(
    test: BenchTest,
    duration: Duration,
    target: &str,
    paths: &[Path],
) -> Result<TestReport> {
    let plan = Plan { test: what(test), warm_up: WARM_UP, duration };
    let mut measured = Vec::new();
    for Path { kind, address } in paths {
        let way = if *kind == PathKind::Address { "" } else { kind.heading() };
        eprint!("{:<24}{:<10}", title(test), way.to_lowercase());
        let outcome = bench::run(*address, &plan);
        match &outcome {
            Ok(outcome) => eprintln!("{}", figures(outcome)[0].text),
            Err(_) => eprintln!("failed"),
        }
        let outcome = outcome.with_context(|| format!("{target}{}", kind.describe()))?;
        measured.push(PathReport { path: *kind, address: *address, outcome });
    }
    let name = test.to_possible_value().map(|value| value.get_name().to_owned());
    let ratio = match &measured[..] {
        [one, other] => figures(&one.outcome)[0].ratio(&figures(&other.outcome)[0]),
        _ => None,
    };
    Ok(TestReport {
        name: name.unwrap_or_default(),
        title: title(test),
        plan,
        paths: measured,
        ratio,
    })
}

/// What is measured, for programs.
#[derive(Debug, Serialize)]
struct BenchReport {
    target: String,
    tests: Vec<TestReport>,
}

#[derive(Debug, Serialize)]
struct TestReport {
    name: String,
    #[serde(skip)]
    title: &'static str,
    plan: Plan,
    paths: Vec<PathReport>,
    /// The main figure of the overlay divided by that of the underlay.
    ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct PathReport {
    path: PathKind,
    address: SocketAddr,
    outcome: Outcome,
}

fn what(test: BenchTest) -> Test {
    let tcp = |streams, direction| Test::TcpThroughput { streams, direction };
    let round_trip = |protocol| Test::RoundTrip { protocol, payload: SMALL_PAYLOAD };
    match test {
        BenchTest::Tcp => tcp(1, Direction::Send),
        BenchTest::TcpReceive => tcp(1, Direction::Receive),
        BenchTest::TcpBoth => tcp(1, Direction::Both),
        BenchTest::Tcp4 => tcp(STREAMS, Direction::Send),
        BenchTest::Udp => Test::UdpRate { payload: SMALL_PAYLOAD, flows: 1 },
        BenchTest::RttTcp => round_trip(Protocol::Tcp),
        BenchTest::RttUdp => round_trip(Protocol::Udp),
        BenchTest::Connect => Test::ConnectRate { parallel: CONNECTING },
    }
}

fn title(test: BenchTest) -> &'static str {
    match test {
        BenchTest::Tcp => "TCP, 1 stream, sent",
        BenchTest::TcpReceive => "TCP, 1 stream, received",
        BenchTest::TcpBoth => "TCP, both ways at once",
        BenchTest::Tcp4 => "TCP, 4 streams, sent",
        BenchTest::Udp => "UDP, 64 bytes",
        BenchTest::RttTcp => "round trip, TCP",
        BenchTest::RttUdp => "round trip, UDP",
        BenchTest::Connect => "TCP connections",
    }
}

/// One line of the table.
struct Figure {
    name: &'static str,
    text: String,
    /// What can be compared, where that says something.
    value: Option<f64>,
}

impl Figure {
    fn ratio(&self, to: &Self) -> Option<f64> {
        let (value, to) = (self.value?, to.value?);
        (to > 0.0).then(|| value / to)
    }
}

/// What people want to know of an outcome, the main thing first.
fn figures(outcome: &Outcome) -> Vec<Figure> {
    let rate = |count: u64, elapsed: &Duration| count as f64 / elapsed.as_secs_f64().max(1e-9);
    let counted = |name, text| Figure { name, text, value: None };
    match outcome {
        Outcome::Throughput { bytes, elapsed, retransmits, reordering_seen } => {
            let bits = rate(*bytes, elapsed) * 8.0;
            vec![
                Figure { name: "", text: format!("{:.2} Gbit/s", bits / 1e9), value: Some(bits) },
                counted("segments sent again", retransmits.to_string()),
                counted("segments out of order", reordering_seen.to_string()),
            ]
        }
        Outcome::Rate { sent, received, elapsed } => {
            let arrived = rate(*received, elapsed);
            let lost = sent.saturating_sub(*received) as f64 / (*sent).max(1) as f64;
            vec![
                Figure {
                    name: "",
                    text: format!("{:.3} Mpps", arrived / 1e6),
                    value: Some(arrived),
                },
                counted("lost", format!("{:.1} %", lost * 100.0)),
            ]
        }
        Outcome::RoundTrip { lost, p50, p99, max, .. } => {
            let time = |name, time: &Duration| {
                let value = time.as_secs_f64();
                Figure { name, text: format!("{:.1} µs", value * 1e6), value: Some(value) }
            };
            let lost = counted("lost", lost.to_string());
            vec![
                time("p50", p50),
                time("p99", p99),
                Figure { value: None, ..time("max", max) },
                lost,
            ]
        }
        Outcome::Connects { count, failed, elapsed } => {
            let value = rate(*count, elapsed);
            vec![
                Figure { name: "", text: format!("{value:.0} /s"), value: Some(value) },
                counted("failed", failed.to_string()),
            ]
        }
    }
}

fn table(report: &BenchReport) -> Table {
    let mut heading = vec!["TEST".to_owned()];
    let paths = report.tests.first().map_or(&[][..], |test| &test.paths);
    heading.extend(paths.iter().map(|path| path.path.heading().to_owned()));
    let is_compared = paths.len() == 2;
    if is_compared {
        heading.push("RATIO".to_owned());
    }
    let mut table = Table::wide(heading).right(1..4);
    for test in &report.tests {
        let columns: Vec<_> = test.paths.iter().map(|path| figures(&path.outcome)).collect();
        let rows = columns.iter().map(Vec::len).min().unwrap_or(0);
        for ix in 0..rows {
            let name = columns[0][ix].name;
            let mut row = vec![match (ix, name) {
                (0, "") => test.title.to_owned(),
                (0, name) => format!("{}: {name}", test.title),
                (_, name) => format!("  {name}"),
            }];
            row.extend(columns.iter().map(|figures| figures[ix].text.clone()));
            if is_compared {
                let ratio = columns[0][ix].ratio(&columns[1][ix]);
                row.push(ratio.map_or_else(|| " ".to_owned(), |ratio| format!("{ratio:.2}")));
            }
            table.row(row);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use overlay::subnet::MemberState;
    use vswitch::mac::Mac;

    use super::*;

    fn node(name: &str, state: MemberState, lease: Option<&str>) -> NodeStatus {
        NodeStatus {
            name: name.to_owned(),
            node_id: "00ff".to_owned(),
            state,
            this_node: name == "a",
            underlay: "192.168.10.12".parse().unwrap(),
            underlay_mtu: 1500,
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            leases: lease.map(|lease| lease.parse().unwrap()).into_iter().collect(),
            version: 1,
            since_s: 0,
            software: String::new(),
            path: None,
            keys: Vec::new(),
        }
    }

    #[test]
    fn a_node_has_two_addresses_if_it_is_another_and_alive() {
        let nodes = [
            node("a", MemberState::Alive, Some("10.244.1.0/24")),
            node("b", MemberState::Alive, Some("10.244.2.0/24")),
            node("c", MemberState::Dead, Some("10.244.3.0/24")),
            node("d", MemberState::Alive, None),
            node("e", MemberState::Alive, Some("fd00:10:244:5::/64")),
        ];
        let underlay: IpAddr = "192.168.10.12".parse().unwrap();
        let of = |name| addresses(name, &nodes);
        assert_eq!(of("b").unwrap(), ("10.244.2.1".parse().unwrap(), underlay));
        assert_eq!(of("e").unwrap(), ("fd00:10:244:5::1".parse().unwrap(), underlay));
        for (name, why) in
            [("a", "is this node"), ("c", "is dead"), ("d", "no lease yet"), ("x", "a, b, c, d, e")]
        {
            let error = of(name).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_table_sets_both_ways_side_by_side() {
        let second = Duration::from_secs(1);
        let path =
            |path, outcome| PathReport { path, address: "[::1]:1".parse().unwrap(), outcome };
        let throughput = |bytes| Outcome::Throughput {
            bytes,
            elapsed: second,
            retransmits: 0,
            reordering_seen: 0,
        };
        let round_trip = |p50| Outcome::RoundTrip {
            count: 9,
            lost: 0,
            p50: Duration::from_nanos(p50),
            p90: second,
            p99: second,
            max: second,
        };
        let test = |test, overlay, underlay| TestReport {
            name: String::new(),
            title: title(test),
            plan: Plan { test: what(test), warm_up: WARM_UP, duration: second },
            paths: vec![path(PathKind::Overlay, overlay), path(PathKind::Underlay, underlay)],
            ratio: None,
        };
        let tests = vec![
            test(BenchTest::Tcp, throughput(900_000_000), throughput(1_000_000_000)),
            test(BenchTest::RttUdp, round_trip(30_000), round_trip(20_000)),
        ];
        let report = BenchReport { target: "b".to_owned(), tests };
        assert_eq!(
            table(&report).to_string(),
            "\
TEST                          OVERLAY      UNDERLAY  RATIO
TCP, 1 stream, sent       7.20 Gbit/s   8.00 Gbit/s   0.90
  segments sent again               0             0
  segments out of order             0             0
round trip, UDP: p50          30.0 µs       20.0 µs   1.50
  p99                    1000000.0 µs  1000000.0 µs   1.00
  max                    1000000.0 µs  1000000.0 µs
  lost                              0             0
"
        );
    }
}
