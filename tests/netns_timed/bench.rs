//! `weft bench` between pods and nodes of a real cluster.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use crate::common::place::{node, pod};
use crate::common::{TestLab, eventually};
use serde_json::Value;
use weft::bench::{self, Direction, Outcome, Plan, Protocol, Server, Test};
use weft::lab::{LabConfig, Namespace};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// What `weft bench run` runs by itself.
const TESTS: [&str; 8] =
    ["tcp", "tcp-receive", "tcp-both", "tcp-4", "udp", "rtt-tcp", "rtt-udp", "connect"];

#[test]
fn pods_on_two_nodes_measure_everything() {
    let _alone = crate::alone();
    if !crate::common::may_make_labs() {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 2, pods_per_node: 1, ..LabConfig::new("bench") });
    let (client, target) = (pod(&lab, "n1-p1"), pod(&lab, "n2-p1"));
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let server = target.namespace.run(|| Server::start(any)).unwrap().unwrap();
    for address in &target.addresses {
        let address = SocketAddr::new(*address, server.address().port());
        for test in [
            Test::TcpThroughput { streams: 1, direction: Direction::Send },
            Test::TcpThroughput { streams: 2, direction: Direction::Receive },
            Test::TcpThroughput { streams: 2, direction: Direction::Both },
            Test::UdpRate { payload: 64, flows: 2 },
            Test::RoundTrip { protocol: Protocol::Tcp, payload: 64 },
            Test::RoundTrip { protocol: Protocol::Udp, payload: 1000 },
            Test::ConnectRate { parallel: 2 },
        ] {
            let (warm_up, duration) = (Duration::from_millis(100), Duration::from_millis(400));
            let plan = Plan { test, warm_up, duration };
            let outcome = client.namespace.run(|| bench::run(address, &plan)).unwrap();
            let outcome = outcome.unwrap_or_else(|error| panic!("{test:?}: {error:#}"));
            assert_sane(&outcome, duration);
        }
    }
    drop(server);
    a_client_that_goes_away_ends_its_measurement(&client.namespace, &target);
    lab.finish();
}

/// The threads of a measurement of an hour end with its client.
fn a_client_that_goes_away_ends_its_measurement(
    client: &Namespace,
    target: &crate::common::traffic::End,
) {
    let address = SocketAddr::new(target.addresses[0], 0);
    let server = target.namespace.run(|| Server::start(address)).unwrap().unwrap();
    let command = ["bench", "run", "--seconds", "3600", "--test", "tcp-both"];
    let mut child = weft(client, &command);
    let mut child = child.arg(server.address().to_string()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the measurement has begun", || bench_threads() > 0);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the measurement has ended", || bench_threads() == 0);
}

/// The threads of this process that make or take traffic.
fn bench_threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = names.filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok());
    names.filter(|name| name.trim() == "bench").count()
}

#[test]
fn a_node_is_measured_by_its_name() {
    let _alone = crate::alone();
    if !crate::common::may_make_labs() {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 2, pods_per_node: 0, ..LabConfig::new("bench") });
    let (here, there) = (node(&lab, "n1"), node(&lab, "n2"));
    let admin = lab.admin("n1").unwrap();
    eventually("n1 knows the leases of n2", || {
        admin.nodes().unwrap().iter().any(|node| node.name == "n2" && node.leases.len() == 2)
    });
    let socket = admin.socket().to_owned();
    let run = |arguments: &[&str]| {
        let mut command = weft(&here.namespace, &["bench", "run", "--seconds", "1"]);
        command.arg("--socket").arg(&socket).args(arguments).output().unwrap()
    };

    let output = run(&["n2", "--test", "tcp"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("weft bench serve"), "{text}");
    let output = run(&["n7"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("no node `n7`, but n1, n2"), "{text}");

    let _server = Serving::start(&there.namespace);
    let report = json(&run(&["n2", "-o", "json"]));
    let tests = report["tests"].as_array().unwrap();
    let names: Vec<_> = tests.iter().map(|test| test["name"].as_str().unwrap()).collect();
    assert_eq!(names, TESTS);
    for test in tests {
        assert!(test["ratio"].as_f64().unwrap() > 0.0, "{test}");
        let paths = test["paths"].as_array().unwrap();
        let addresses = [there.addresses[1], there.addresses[0]];
        for ((path, name), address) in paths.iter().zip(["overlay", "underlay"]).zip(addresses) {
            assert_eq!((&path["path"], path_ip(path)), (&Value::from(name), address), "{test}");
            let outcome: Outcome = serde_json::from_value(path["outcome"].clone()).unwrap();
            assert_sane(&outcome, Duration::from_secs(1));
        }
    }

    let output = run(&["n2", "--overlay-only", "--test", "rtt-udp"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("TEST ") && text.contains("OVERLAY\n"), "{text}");
    assert!(text.contains("round trip, UDP: p50"), "{text}");
    by_its_name_in_a_lab(lab.dir());
    lab.finish();
}

/// From outside of the lab's namespaces.
fn by_its_name_in_a_lab(dir: &Path) {
    let mut command = Command::new(WEFT);
    command.env("WEFT_LAB_DIR", dir.parent().unwrap());
    command.args(["bench", "run", "n2", "--node", "n1", "--lab", "bench", "--seconds", "1"]);
    let report = json(&command.args(["--test", "rtt-tcp", "-o", "json"]).output().unwrap());
    assert_eq!(report["tests"].as_array().unwrap().len(), 1, "{report}");
}

#[track_caller]
fn assert_sane(outcome: &Outcome, duration: Duration) {
    eprintln!("{outcome:?}");
    match *outcome {
        Outcome::Throughput { bytes, elapsed, .. } => {
            assert!(bytes > 1_000_000 && elapsed >= duration, "{outcome:?}");
        }
        Outcome::Rate { sent, received, elapsed } => {
            assert!(sent > 100 && received > 100 && elapsed >= duration, "{outcome:?}");
        }
        Outcome::RoundTrip { count, p50, p90, p99, max, .. } => {
            assert!(count > 2 && p50 > Duration::from_micros(1), "{outcome:?}");
            assert!(p50 <= p90 && p90 <= p99 && p99 <= max, "{outcome:?}");
        }
        Outcome::Connects { count, elapsed, .. } => {
            assert!(count > 2 && elapsed >= duration, "{outcome:?}");
        }
    }
}

fn path_ip(path: &Value) -> IpAddr {
    let address: SocketAddr = path["address"].as_str().unwrap().parse().unwrap();
    address.ip()
}

#[track_caller]
fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn weft(namespace: &Namespace, arguments: &[&str]) -> Command {
    let mut command = Command::new(WEFT);
    namespace.start_inside(command.args(arguments), true).unwrap();
    command
}

/// A running `weft bench serve`.
struct Serving {
    child: Child,
    /// Held open: the program ends when nobody can read what it prints.
    _stdout: BufReader<ChildStdout>,
}

impl Serving {
    #[track_caller]
    fn start(namespace: &Namespace) -> Self {
        let mut command = weft(namespace, &["bench", "serve"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.contains("[::]:5281"), "{line}");
        Self { child, _stdout: stdout }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
