//! What the tunnel carries to each node is found out, told, and heeded: gossip that passes where VXLAN does not, long
//! packets that vanish without a word, and the way back.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::net::IpAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::place::{gateways, pod, same_family};
use crate::common::traffic::End;
use crate::common::{TestLab, eventually, has_programs, may_make_labs, run};
use overlay::path::probe::PathState;
use weft::admin::api::{NodeStatus, PathStatus};
use weft::events::{EventRecord, Level};
use weft::lab::LabConfig;
use weft::lab::probe::{Amount, Ping, Transfer, TransferReport};

/// Three seconds are promised where there is traffic; and machines that run tests are busy with other work, too.
const NOTICED_MAX: Duration = Duration::from_secs(3 + 2);

/// What the link in the middle lets through, and what that is inside the tunnel over IPv4.
const NARROW: u16 = 1400;
const NARROW_INNER: u16 = 1350;

/// How long streams run: longer than all that is done to their path.
const STREAM: Duration = Duration::from_secs(25);

#[test]
fn a_firewall_against_vxlan_alone_is_noticed() {
    if !has_programs(&[("nft", "nftables")]) || !may_make_labs() {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 2, pods_per_node: 1, ..LabConfig::new("firewall") });
    let (here, there) = (pod(&lab, "n1-p1"), pod(&lab, "n2-p1"));
    eventually("data passes both ways", || {
        [("n1", "n2"), ("n2", "n1")].iter().all(|(from, to)| {
            let path = path(&lab, from, to);
            path.state == PathState::Up && path.rtt_us.is_some_and(|rtt| rtt > 0)
        })
    });
    let line = shown(&lab, "n1", "n2");
    assert_eq!(
        (line.state.as_str(), line.data.as_str(), line.mtu.as_str()),
        ("alive", "ok", "1500")
    );
    assert!(line.rtt.ends_with('s') && line.loss.ends_with('%'), "{line:?}");
    assert_eq!(line.version, env!("CARGO_PKG_VERSION"));

    let traffic = steady(&here, there.addresses[0], Duration::from_secs(12));
    eventually("the switch sends", || path_is_probed_often(&lab, "n1"));
    let mut watch = Watch::start(&lab, "n1");
    drop_at(&lab, "n2", "udp dport 4789");
    let start = Instant::now();
    eventually("the path is dead", || shown(&lab, "n1", "n2").data == "dead");
    assert!(start.elapsed() < NOTICED_MAX, "after {:?}", start.elapsed());
    let line = shown(&lab, "n1", "n2");
    assert_eq!(line.state, "alive", "gossip passes");
    let status = lab.admin("n1").unwrap().status().unwrap();
    let problem = status.problems.iter().find(|problem| problem.text.contains("no data passes"));
    assert!(problem.is_some_and(|problem| problem.text.contains("n2")), "{:?}", status.problems);

    let event = watch.wait_for("path-down");
    assert_eq!((event.level, event.node.as_str()), (Level::Error, "n1"));
    assert!(event.text.contains("n2"), "{event:?}");
    let log = fs::read_to_string(lab.log_path("n1")).unwrap();
    assert!(log.contains(r#"code="path-down""#), "{log}");

    run(&lab.namespace("n2").unwrap(), "nft delete table inet health");
    let start = Instant::now();
    eventually("the path works again", || shown(&lab, "n1", "n2").data == "ok");
    assert!(start.elapsed() < NOTICED_MAX, "after {:?}", start.elapsed());
    eventually("the problem is gone", || {
        lab.admin("n1").unwrap().status().unwrap().problems.is_empty()
    });
    assert_eq!(watch.wait_for("path-up").about["node"], "n2");
    drop(watch);
    traffic.join().unwrap();
    for node in ["n1", "n2"] {
        assert!(lab.admin(node).unwrap().counters().unwrap().offenders.is_empty());
    }
    lab.finish();
}

#[test]
fn a_black_hole_for_long_packets_is_found_and_pods_are_told() {
    if !has_programs(&[("nft", "nftables"), ("ethtool", "ethtool")]) || !may_make_labs() {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 2, pods_per_node: 2, ..LabConfig::new("blackhole") });
    let (here, there) = (pod(&lab, "n1-p1"), pod(&lab, "n2-p1"));
    for node in ["n1", "n2"] {
        // So that the rule below sees packets as they would be on a wire.
        run(&lab.namespace(node).unwrap(), "ethtool -K eth0 tx off gso off gro off");
    }
    eventually("data passes", || path(&lab, "n1", "n2").state == PathState::Up);
    let target = there.addresses[0];
    let gateway = same_family(&gateways(&lab, "n1"), target);
    // The kernel of a pod with a stream keeps what it was told to itself; this one asks.
    let beside = pod(&lab, "n1-p2");
    assert!(full(target, 1450).run(&beside.namespace).unwrap().is_ok());

    let stream = stream(&here, &there, target);
    eventually("the switch sends", || path_is_probed_often(&lab, "n1"));
    drop_at(&lab, "n2", &format!("udp dport 4789 ip length > {NARROW}"));
    let start = Instant::now();
    eventually("the MTU is found", || path(&lab, "n1", "n2").mtu == NARROW);
    assert!(start.elapsed() < NOTICED_MAX, "after {:?}", start.elapsed());
    let line = shown(&lab, "n1", "n2");
    assert_eq!((line.data.as_str(), line.mtu.as_str()), ("narrow", "1400/1500"));
    assert_eq!(path(&lab, "n2", "n1").mtu, 1500, "the way back is as it was");
    eventually("the other end is told", || {
        path(&lab, "n2", "n1").pod_mtu_back == Some(NARROW_INNER)
    });

    eventually("pods are told the right number", || {
        let refused = full(target, 1450).run(&beside.namespace).unwrap();
        refused.error.as_deref() == Some(&*format!("too big: mtu {NARROW_INNER}, says {gateway}"))
    });
    assert!(full(target, NARROW_INNER).run(&beside.namespace).unwrap().is_ok());
    let status = lab.admin("n1").unwrap().status().unwrap();
    assert!(status.problems.iter().any(|problem| problem.text.contains("1400")), "{status:?}");

    run(&lab.namespace("n2").unwrap(), "nft delete table inet health");
    eventually("the path is wide again", || shown(&lab, "n1", "n2").mtu == "1500");
    assert!(lab.admin("n1").unwrap().status().unwrap().problems.is_empty());
    let report = stream.join().unwrap();
    assert!(report.bytes > 1_000_000, "the stream went on: {report:?}");
    lab.finish();
}

/// Sends small packets for a time, in the background.
fn steady(from: &End, to: IpAddr, time: Duration) -> JoinHandle<()> {
    let (namespace, interval) = (from.namespace.clone(), Duration::from_millis(100));
    let count = u16::try_from(time.as_millis() / interval.as_millis()).unwrap();
    std::thread::spawn(move || {
        let ping = Ping { count, interval, ..Ping::new(to) };
        let report = ping.run(&namespace).unwrap();
        assert!(report.received > 0, "{report:?}");
    })
}

/// Sends a stream of which each byte is compared, in the background.
fn stream(from: &End, to: &End, address: IpAddr) -> JoinHandle<TransferReport> {
    let (source, target) = (from.namespace.clone(), to.namespace.clone());
    std::thread::spawn(move || {
        let transfer = Transfer { amount: Amount::For(STREAM), verify: true };
        transfer.run(&source, &target, address).unwrap()
    })
}

/// Whether the node probes as it does where there is traffic: several times while one looks.
fn path_is_probed_often(lab: &TestLab, node: &str) -> bool {
    let sent = || lab.admin(node).unwrap().counters().unwrap().probes.sent;
    let before = sent();
    let start = Instant::now();
    while sent() < before + 3 {
        if start.elapsed() > Duration::from_secs(3) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// Lets a node drop what comes to it and matches.
fn drop_at(lab: &TestLab, node: &str, matches: &str) {
    let namespace = lab.namespace(node).unwrap();
    run(&namespace, "nft add table inet health");
    run(&namespace, "nft add chain inet health input { type filter hook input priority 0 ; }");
    run(&namespace, &format!("nft add rule inet health input {matches} drop"));
}

/// `weft watch`, running.
struct Watch {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    /// Starts it, and waits until it misses nothing any more.
    fn start(lab: &TestLab, node: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        let socket = lab.admin(node).unwrap().socket().to_owned();
        command.args(["watch", "-o", "json", "--socket"]).arg(socket);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("watching"), "{said}");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Reads on to the next event with this code.
    fn wait_for(&mut self, code: &str) -> EventRecord {
        let records = self.lines.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let mut records = records.inspect(|record: &EventRecord| eprintln!("{record:?}"));
        records.find(|record| record.code == code).expect("the daemon goes on telling")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn full(target: IpAddr, packet_len: u16) -> Ping {
    let payload_len = usize::from(packet_len) - 20 - 8;
    Ping { payload_len, dont_fragment: true, count: 1, ..Ping::new(target) }
}

fn path(lab: &TestLab, from: &str, to: &str) -> PathStatus {
    let nodes = lab.admin(from).unwrap().nodes().unwrap();
    let node: Option<NodeStatus> = nodes.into_iter().find(|node| node.name == to);
    node.unwrap().path.unwrap()
}

/// A line of `weft nodes`.
#[derive(Debug)]
struct Line {
    state: String,
    data: String,
    rtt: String,
    loss: String,
    mtu: String,
    version: String,
}

fn shown(lab: &TestLab, node: &str, other: &str) -> Line {
    let socket = lab.admin(node).unwrap().socket().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    let output = command.arg("nodes").arg("--socket").arg(socket).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    // Two blanks part columns, and one may be within.
    let cells = |line: &str| -> Vec<String> {
        line.split("  ")
            .map(|cell| cell.trim().to_owned())
            .filter(|cell| !cell.is_empty())
            .collect()
    };
    let heading = cells(lines.next().unwrap());
    let line = lines.find(|line| line.starts_with(other)).unwrap_or_else(|| panic!("{text}"));
    let found = cells(line);
    let cell = |name: &str| {
        let ix = heading.iter().position(|cell| cell == name);
        ix.and_then(|ix| found.get(ix)).unwrap_or_else(|| panic!("{name}: {text}")).clone()
    };
    Line {
        state: cell("STATE"),
        data: cell("DATA"),
        rtt: cell("RTT"),
        loss: cell("LOSS"),
        mtu: cell("MTU"),
        version: cell("VERSION"),
    }
}
