//! Rate limits of pods, as the capability `bandwidth` asks for them, measured in both directions.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::process::{Command, Stdio};

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
        let more = (ingress * 5 / 4).to_string();
        let udp = ["-u", "-b", &more, "-l", "1200"];
        let flooded = iperf(&pod.namespace, &far, v4, &udp);
        let arrived = arrived(&flooded["sum"]);
        // A datagram's headers count, too, and UDP has no others behind the first to share them with.
        let payload = ingress as f64 * 1200.0 / (1200.0 + 42.0);
        // What the client sent before the server counted is among its losses, so that a little seems to be missing.
        let ratio = arrived / payload;
        assert!((0.9..1.0 + TOLERANCE).contains(&ratio), "UDP: {arrived} of {payload}");
        eprintln!("UDP to the pod: {:.1} of {:.1} Mbit/s", arrived / 1e6, payload / 1e6);
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

/// What arrived of a flood: its sum counts what was sent.
fn arrived(sum: &Value) -> f64 {
    let number = |name: &str| sum[name].as_f64().unwrap_or_else(|| panic!("{name}: {sum}"));
    number("bits_per_second") * (1.0 - number("lost_percent") / 100.0)
}
