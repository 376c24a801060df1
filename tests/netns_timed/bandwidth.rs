//! Rate limits of pods, as the capability `bandwidth` asks for them, measured in both directions.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::container::{Container, addresses};
use crate::common::{TestLab, eventually, has_programs, may_make_labs};
use serde_json::{Value, json};
use weft::lab::{LabConfig, Namespace};

const NODE: &str = "n1";
const FAR_POD: &str = "n2-p1";
/// How far from the rate what is measured may be.
const TOLERANCE: f64 = 0.03;

#[test]
fn a_pod_sends_and_receives_at_its_rates_and_they_change_live() {
    let _alone = crate::alone();
    if !may_make_labs() || !has_programs(&[("iperf3", "iperf3")]) {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 2, pods_per_node: 1, ..LabConfig::new("bandwidth") });
    let pod = Container::new(&lab, NODE, "limited");
    let far = lab.namespace(FAR_POD).unwrap();
    let near = lab.namespace("n1-p1").unwrap();
    // The second one is a change under a running pod; the last takes the limits away.
    for (ingress, egress) in [(80_000_000_u64, 40_000_000_u64), (20_000_000, 120_000_000)] {
        let result = add(&pod, ingress, egress);
        let [v4, v6] = addresses(&result)[..] else { panic!("{result}") };
        for (address, from) in [(v4, &far), (v6, &far), (v4, &near)] {
            let to_pod = iperf(&pod.namespace, from, address, &[]);
            assert_rate(&format!("TCP to {address}"), ingress, &to_pod["sum_received"]);
            let from_pod = iperf(&pod.namespace, from, address, &["-R"]);
            assert_rate(&format!("TCP from {address}"), egress, &from_pod["sum_received"]);
        }
        // More than is let through: what arrives is the rate, and not less.
        for (what, from, to, address, wanted) in [
            ("to", &far, &pod.namespace, v4, ingress),
            ("from", &pod.namespace, &far, address_of(&lab, FAR_POD), egress),
        ] {
            let arrived = flood(from, to, address, wanted * 5 / 4);
            let ratio = arrived / wanted as f64;
            eprintln!(
                "UDP {what} the pod: {:.2} of {:.1} Mbit/s ({:+.1} %)",
                arrived / 1e6,
                wanted as f64 / 1e6,
                (ratio - 1.0) * 100.0
            );
            assert!((ratio - 1.0).abs() < TOLERANCE, "UDP {what}: {arrived} of {wanted}");
        }
    }
    let free = pod.add();
    let unlimited = iperf(&pod.namespace, &near, addresses(&free)[0], &[]);
    let rate = unlimited["sum_received"]["bits_per_second"].as_f64().unwrap();
    assert!(rate > 200_000_000.0, "no limit any more: {rate}");
    pod.del();
    lab.finish();
}

#[test]
fn limits_outlive_the_daemon() {
    let _alone = crate::alone();
    if !may_make_labs() || !has_programs(&[("iperf3", "iperf3")]) {
        return;
    }
    let mut lab = TestLab::up(LabConfig { nodes: 2, pods_per_node: 1, ..LabConfig::new("limits") });
    let pod = Container::new(&lab, NODE, "limited");
    let result = add(&pod, 30_000_000, 30_000_000);
    lab.kill(NODE).unwrap();
    lab.start(NODE).unwrap();
    let far = lab.namespace(FAR_POD).unwrap();
    let measured = iperf(&pod.namespace, &far, addresses(&result)[0], &[]);
    assert_rate("after a restart", 30_000_000, &measured["sum_received"]);
    pod.del();
    lab.finish();
}

#[track_caller]
fn add(pod: &Container, ingress: u64, egress: u64) -> Value {
    let mut config = pod.config();
    let burst = 400_000;
    config["runtimeConfig"] = json!({ "bandwidth": {
        "ingressRate": ingress, "ingressBurst": burst, "egressRate": egress, "egressBurst": burst
    } });
    pod.call("ADD", &config).unwrap()
}

/// What iperf3 says at its end, of a client in `client` and a server in `server` at `address`.
#[track_caller]
fn iperf(server: &Namespace, client: &Namespace, address: IpAddr, options: &[&str]) -> Value {
    let start = |on: &Namespace, arguments: &[&str]| {
        let mut command = Command::new("iperf3");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        on.start_inside(&mut command, true).unwrap();
        command.spawn().unwrap()
    };
    let mut listening = start(server, &["-s", "-1"]);
    let address = address.to_string();
    let arguments = [&["-c", &address, "-t", "4", "-O", "1", "-J"], options].concat();
    let mut answer = Value::Null;
    // The server takes a moment to listen.
    eventually("iperf3 is answered", || {
        let output = start(client, &arguments).wait_with_output().unwrap();
        answer = serde_json::from_slice(&output.stdout).unwrap_or_default();
        answer["error"].is_null() && answer["end"].is_object()
    });
    listening.wait().unwrap();
    answer["end"].take()
}

#[track_caller]
fn assert_rate(what: &str, wanted: u64, sum: &Value) {
    let found = sum["bits_per_second"].as_f64().unwrap_or_else(|| panic!("{what}: {sum}"));
    let ratio = found / wanted as f64;
    eprintln!(
        "{what}: {:.1} of {:.1} Mbit/s ({:+.1} %)",
        found / 1e6,
        wanted as f64 / 1e6,
        (ratio - 1.0) * 100.0
    );
    assert!((ratio - 1.0).abs() < TOLERANCE, "{what}: {found} of {wanted}");
}

/// Payload of a datagram in a flood, and the headers before it that count, too: IPv4 and UDP.
const PAYLOAD: usize = 1200;
const HEADERS: usize = 20 + 8;

/// Sends datagrams at `rate_bps` for some seconds. Returns the bits per second that arrive, counted where they do:
/// iperf3 takes for lost what it sent before the other side began to count.
#[track_caller]
fn flood(from: &Namespace, to: &Namespace, address: IpAddr, rate_bps: u64) -> f64 {
    let any: IpAddr = [0; 4].into();
    let receiver = to.run(|| UdpSocket::bind((any, 0)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let target = SocketAddr::new(address, receiver.local_addr().unwrap().port());
    let sender = from.run(|| UdpSocket::bind((any, 0)).unwrap()).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| send_at(&sender, target, rate_bps, &is_over));
        let mut datagram = [0; PAYLOAD];
        let mut receive = || {
            receiver.recv(&mut datagram).unwrap();
            Instant::now()
        };
        // The burst and what the queue takes at first are gone by then.
        let begun = receive();
        let mut first = begun;
        while first < begun + Duration::from_secs(1) {
            first = receive();
        }
        let (mut count, mut last) = (0_u32, first);
        while last < first + Duration::from_secs(4) {
            last = receive();
            count += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        f64::from(count) * ((PAYLOAD + HEADERS) * 8) as f64 / (last - first).as_secs_f64()
    })
}

/// A program that sends at a rate has to wait in between.
#[allow(clippy::disallowed_methods)]
fn send_at(socket: &UdpSocket, target: SocketAddr, rate_bps: u64, is_over: &AtomicBool) {
    let begun = Instant::now();
    let each = Duration::from_secs_f64(((PAYLOAD + HEADERS) * 8) as f64 / rate_bps as f64);
    let mut sent = 0;
    // Nor does it go on when whoever counts has given up.
    while !is_over.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(20) {
        while each * sent < begun.elapsed() {
            // A full buffer is the limit at work.
            let _ = socket.send_to(&[0; PAYLOAD], target);
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn address_of(lab: &TestLab, pod: &str) -> IpAddr {
    *lab.state().pod(pod).unwrap().1.addresses.iter().find(|address| address.is_ipv4()).unwrap()
}
