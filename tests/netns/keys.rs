//! Keys on real nodes: rotation while traffic flows, and nodes without the right key, which see nothing, join
//! nothing and get nothing through the tunnel.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::{TestLab, eventually, may_make_labs};
use overlay::node_id::NodeId;
use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Protocol, Socket, Type};
use vswitch::verdict::Reason;
use weft::admin::api::ProblemTopic;
use weft::lab::probe::{Amount, Ping, Transfer};
use weft::lab::{LabConfig, Namespace, UNDERLAY};

const LIMIT: Duration = Duration::from_secs(20);
const GOSSIP_PORT: u16 = 7946;
const VXLAN_PORT: u16 = 4789;

/// `ETH_P_ALL` of linux/if_ether.h.
const ETH_P_ALL: u16 = 3;

#[test]
fn keys_are_changed_while_traffic_flows_and_nothing_is_lost() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 3, pods_per_node: 1, ..LabConfig::new("rotate") };
    let lab = TestLab::up(config);
    let nodes = ["n1", "n2", "n3"];
    lab.wait_for_map(&nodes, LIMIT).unwrap();
    let old = key_in_use(&lab, "n1");
    let traffic = Traffic::start(&lab, "n1-p1", "n2-p1");

    assert_done(&key(&lab, "n1", &["generate", "--comment", "the new one"], ""));
    let new = other_key(&lab, "n1", &old);
    let line = key(&lab, "n1", &["list", "--secret", &new], "");
    assert_done(&line);
    let line = stdout(&line);
    assert!(line.starts_with("accept ") && line.ends_with("  # the new one\n"), "{line}");
    assert_done(&key(&lab, "n2", &["add"], &line));
    // Not before all have it.
    let refused = key(&lab, "n1", &["use", &new], "");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("n3 ("), "{text}");
    assert_done(&key(&lab, "n3", &["add"], &line));

    for node in nodes {
        eventually_done(&lab, node, &["use", &new]);
        assert_eq!(key_in_use(&lab, node), new);
    }
    let used = key(&lab, "n1", &["remove", &new], "");
    assert!(String::from_utf8_lossy(&used.stderr).contains("in use here"), "{used:?}");
    for node in nodes {
        eventually_done(&lab, node, &["remove", &old]);
    }
    eventually("all have the new key only", || {
        nodes.iter().all(|node| {
            let status = lab.admin(node).unwrap().status().unwrap();
            status.problems.is_empty() && status.keys.len() == 1
        })
    });
    lab.wait_for_map(&nodes, LIMIT).unwrap();
    traffic.finish();
    for node in nodes {
        let refused = lab.admin(node).unwrap().counters().unwrap().gossip_refused;
        for reason in ["unsealed", "sealed", "unknown_key", "unauthentic", "replayed", "late"] {
            assert_eq!(refused.get(reason), None, "{node}: {refused:?}");
        }
        let listed = stdout(&key(&lab, node, &["list"], ""));
        assert!(listed.contains(&format!("{new}  in use            3        3  -")), "{listed}");
        let log = std::fs::read_to_string(lab.log_path(node)).unwrap();
        assert!(!log.contains("is unreachable"), "{log}");
        let secret = line.split_whitespace().nth(1).unwrap();
        assert!(!log.contains(secret), "a key in the log");
    }

    // Whoever does not get the next key is locked out as soon as this one is removed, here by force.
    assert_done(&key(&lab, "n1", &["generate"], ""));
    let next = other_key(&lab, "n1", &new);
    let line = stdout(&key(&lab, "n1", &["list", "--secret", &next], ""));
    assert_done(&key(&lab, "n2", &["add"], &line));
    for node in ["n1", "n2"] {
        assert_done(&key(&lab, node, &["use", &next, "--force"], ""));
        assert_done(&key(&lab, node, &["remove", &new, "--force"], ""));
    }
    lab.wait_for_map(&["n1", "n2"], Duration::from_secs(15)).unwrap();
    let locked_out = lab.state().node("n3").unwrap().underlay;
    eventually("the node that is locked out is named", || {
        let problems = lab.admin("n1").unwrap().status().unwrap().problems;
        problems.iter().any(|problem| {
            problem.topic == ProblemTopic::Keys
                && problem.text.contains(&format!("unknown key ({new}) from {locked_out}"))
        })
    });
    assert_done(&key(&lab, "n3", &["add"], &line));
    lab.wait_for_map(&nodes, Duration::from_secs(45)).unwrap();
    lab.finish();
}

#[test]
fn a_node_without_the_key_sees_nothing_joins_nothing_and_gets_nothing_through_the_tunnel() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 2, pods_per_node: 1, ..LabConfig::new("outside") };
    let extra_of_node = [("n3".to_owned(), "[overlay]\ninsecure = true\n".to_owned())].into();
    let mut lab = TestLab::up(LabConfig { extra_of_node, ..config });
    lab.wait_for_map(&["n1", "n2"], LIMIT).unwrap();
    let outside = lab.add_idle_node().unwrap();
    assert_eq!(outside, "n3");

    // Everything that crosses the underlay while a member restarts, the third node tries to join, and pods talk.
    let capture = Capture::start(&lab.namespace(UNDERLAY).unwrap());
    lab.stop("n2").unwrap();
    lab.start("n2").unwrap();
    lab.start("n3").unwrap();
    let eavesdropper = lab.state().node("n3").unwrap().underlay;
    eventually("the members name the one without a seal", || {
        let problems = lab.admin("n1").unwrap().status().unwrap().problems;
        problems.iter().any(|problem| {
            problem.text.contains(&format!("without a seal from {eavesdropper}:{GOSSIP_PORT}"))
        })
    });
    lab.wait_for_map(&["n1", "n2"], LIMIT).unwrap();
    let datagrams = capture.finish();

    let own = lab.admin("n3").unwrap().status().unwrap();
    assert!(own.insecure && own.keys.is_empty());
    assert!(own.problems.iter().any(|problem| problem.text.contains("gossip is in clear")));
    assert_eq!(lab.admin("n3").unwrap().nodes().unwrap().len(), 1, "it sees itself");
    for node in ["n1", "n2"] {
        let names: Vec<_> =
            lab.admin(node).unwrap().nodes().unwrap().into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["n1", "n2"]);
    }
    let refused = lab.admin("n1").unwrap().counters().unwrap().gossip_refused;
    assert!(refused["unsealed"] > 0, "{refused:?}");

    let (mut sealed, mut clear) = (0, 0);
    let needles = ["n1", "n2"].map(|node| needles(&lab, node));
    let own_needles = needles_of_insecure(&lab);
    for (from, payload) in &datagrams {
        let finds = |needle: &Vec<u8>| payload.windows(needle.len()).any(|part| part == needle);
        if *from == eavesdropper {
            clear += usize::from(own_needles.iter().all(finds));
        } else {
            sealed += 1;
            assert!(!needles.iter().flatten().any(finds), "from {from}: {payload:02x?}");
        }
    }
    assert!(sealed > 100 && clear > 0, "{sealed} sealed, {clear} in clear");

    // What it sends into the tunnel goes nowhere, and is counted.
    let target = SocketAddr::new(lab.state().node("n1").unwrap().underlay, VXLAN_PORT);
    let before = lab.dropped("n1", Reason::VxlanNotMember);
    let mut datagram = vec![8, 0, 0, 0, 0, 0, 1, 0];
    datagram.resize(8 + 60, 0);
    lab.namespace("n3")
        .unwrap()
        .run(|| {
            let socket = UdpSocket::bind((eavesdropper, 0)).unwrap();
            for _ in 0..10 {
                socket.send_to(&datagram, target).unwrap();
            }
        })
        .unwrap();
    eventually("all ten are counted", || lab.dropped("n1", Reason::VxlanNotMember) >= before + 10);
    eventually("its sender is named", || {
        let offenders = lab.admin("n1").unwrap().counters().unwrap().offenders;
        offenders.iter().any(|offender| offender.address == eavesdropper)
    });

    // With the key it is one of them, under the name and lease that it has.
    lab.stop("n3").unwrap();
    let file = lab.dir().join("nodes/n3/weft.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let keys = format!("key_file = \"{}\"", lab.key_file("n3").display());
    std::fs::write(&file, text.replace("insecure = true", &keys)).unwrap();
    let log = std::fs::File::create(lab.dir().join("nodes/n3/member.log")).unwrap();
    let weftd = lab.dir().join("bin/weftd").to_string_lossy().into_owned();
    let mut command = lab.command("n3", &weftd).unwrap();
    command.arg("--config").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut member = command.spawn().unwrap();
    lab.wait_for_map(&["n1", "n2", "n3"], LIMIT).unwrap();
    let pid = Pid::from_raw(i32::try_from(member.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(member.wait().unwrap().success());
    lab.finish();
}

#[test]
fn a_daemon_without_a_key_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weft.toml");
    let keys = dir.path().join("keys");
    let text = |overlay: &str| {
        format!(
            "network = \"prod\"\nseeds = []\n[overlay]\n{overlay}\n[paths]\nstate = \"{0}/state\"\nrun = \"{0}/run\"\n",
            dir.path().display()
        )
    };
    let weft = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_weft")).args(arguments).output().unwrap()
    };
    let path = file.to_str().unwrap();
    std::fs::write(&file, text(&format!("key_file = \"{}\"", keys.display()))).unwrap();
    let run = weft(&["daemon", "--config", path]);
    let told = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(2), "{told}");
    for part in ["there is no key file", "weft key generate", "weft key add", "insecure = true"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let check = weft(&["daemon", "--check", "--config", path]);
    let told = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(check.status.success() && told.contains("warning: ") && told.contains("no key file"));

    assert_done(&weft(&["key", "generate", "--config", path]));
    let check = weft(&["daemon", "--check", "--config", path]);
    assert!(!String::from_utf8_lossy(&check.stderr).contains("warning"), "{check:?}");
    std::fs::write(&keys, "use 12\n").unwrap();
    let run = weft(&["daemon", "--config", path]);
    let told = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(told.contains(&format!("{}:1: a key is 64", keys.display())), "{told}");

    std::fs::write(&file, text("insecure = true")).unwrap();
    let check = weft(&["daemon", "--check", "--config", path]);
    let told = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(check.status.success() && told.contains("gossip is in clear"), "{told}");
}

/// Runs `weft key` for a node of the lab.
fn key(lab: &TestLab, node: &str, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.env("WEFT_LAB_DIR", lab.dir().parent().unwrap());
    command.arg("key").args(arguments).args(["--node", node, "--lab", &lab.state().config.name]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn assert_done(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What other nodes have must have got around first.
#[track_caller]
fn eventually_done(lab: &TestLab, node: &str, arguments: &[&str]) {
    eventually(&format!("{node}: weft key {arguments:?}"), || {
        key(lab, node, arguments, "").status.success()
    });
}

fn keys(lab: &TestLab, node: &str) -> Vec<(String, bool)> {
    let listed = key(lab, node, &["list", "-o", "json"], "");
    assert_done(&listed);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let keys = listed["keys"].as_array().unwrap().iter();
    keys.map(|key| (key["id"].as_str().unwrap().to_owned(), key["used"].as_bool().unwrap()))
        .collect()
}

fn key_in_use(lab: &TestLab, node: &str) -> String {
    keys(lab, node).into_iter().find(|(_, used)| *used).unwrap().0
}

fn other_key(lab: &TestLab, node: &str, known: &str) -> String {
    keys(lab, node).into_iter().find(|(id, _)| id != known).unwrap().0
}

/// What would tell who a node is: its id, its address, its pods' addresses and names, its software.
fn needles(lab: &TestLab, node: &str) -> Vec<Vec<u8>> {
    let id: NodeId = lab.admin(node).unwrap().status().unwrap().node_id.parse().unwrap();
    let mut needles = vec![id.0.to_vec(), id.vtep_mac().0.to_vec(), b"weft/".to_vec()];
    let state = lab.state().node(node).unwrap();
    for pod in &state.pods {
        needles.push(pod.name.as_bytes().to_vec());
        needles.extend(pod.addresses.iter().map(|address| octets(*address)));
    }
    needles.push(octets(state.underlay));
    // Four bytes are found in a megabyte of random ones with a probability of one to four thousand.
    needles
}

/// What a node in clear cannot help telling.
fn needles_of_insecure(lab: &TestLab) -> Vec<Vec<u8>> {
    let id: NodeId = lab.admin("n3").unwrap().status().unwrap().node_id.parse().unwrap();
    vec![id.0.to_vec(), octets(lab.state().node("n3").unwrap().underlay)]
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Pings and a TCP stream between two pods, until they are asked how it went.
struct Traffic {
    stop: Arc<AtomicBool>,
    pings: JoinHandle<(u32, u32)>,
    stream: JoinHandle<u64>,
}

impl Traffic {
    fn start(lab: &TestLab, source: &str, target: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let near = lab.namespace(source).unwrap();
        let far = lab.namespace(target).unwrap();
        let address = lab.state().pod(target).unwrap().1.addresses[0];
        let pings = std::thread::spawn({
            let (stop, near) = (Arc::clone(&stop), near.clone());
            move || {
                let (mut sent, mut received) = (0, 0);
                while !stop.load(Ordering::Relaxed) {
                    let ping = Ping {
                        count: 100,
                        interval: Duration::from_millis(10),
                        patience: Duration::from_secs(5),
                        ..Ping::new(address)
                    };
                    let report = ping.run(&near).unwrap();
                    sent += u32::from(report.sent);
                    received += u32::from(report.received);
                }
                (sent, received)
            }
        });
        let stream = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut bytes = 0;
                while !stop.load(Ordering::Relaxed) {
                    let transfer =
                        Transfer { amount: Amount::For(Duration::from_secs(2)), verify: true };
                    bytes += transfer.run(&near, &far, address).unwrap().bytes;
                }
                bytes
            }
        });
        Self { stop, pings, stream }
    }

    /// Nothing was lost.
    #[track_caller]
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, received) = self.pings.join().unwrap();
        let bytes = self.stream.join().unwrap();
        eprintln!("{received} of {sent} pings answered, {bytes} bytes carried and compared");
        assert!(sent > 100 && bytes > 1_000_000);
        assert_eq!(received, sent);
    }
}

/// All datagrams of gossip that cross a namespace, with their senders' addresses.
struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(IpAddr, Vec<u8>)>>,
}

impl Capture {
    fn start(namespace: &Namespace) -> Self {
        let protocol = Some(Protocol::from(i32::from(ETH_P_ALL.to_be())));
        let socket =
            namespace.run(|| Socket::new(Domain::PACKET, Type::RAW, protocol)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || read_gossip(&socket, &stop)
        });
        Self { stop, thread }
    }

    fn finish(self) -> Vec<(IpAddr, Vec<u8>)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn read_gossip(mut socket: &Socket, stop: &AtomicBool) -> Vec<(IpAddr, Vec<u8>)> {
    let mut found = Vec::new();
    let mut frame = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let len = match socket.read(&mut frame) {
            Ok(len) => len,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        found.extend(gossip_in(&frame[..len]));
    }
    found
}

fn gossip_in(frame: &[u8]) -> Option<(IpAddr, Vec<u8>)> {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).ok()?;
    let etherparse::TransportSlice::Udp(udp) = packet.transport? else { return None };
    let etherparse::NetSlice::Ipv4(ip) = packet.net? else { return None };
    let is_gossip = udp.destination_port() == GOSSIP_PORT && udp.source_port() == GOSSIP_PORT;
    is_gossip.then(|| (ip.header().source_addr().into(), udp.payload().to_vec()))
}
