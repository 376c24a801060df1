//! What a node serves to machines that watch it, and which of its devices it does not give away.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Output};
use std::time::Duration;

use crate::common::{TestLab, eventually, may_make_labs};
use cni::link::Netlink;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use ipnetwork::IpNetwork;
use vswitch::verdict::Reason;
use weft::lab::probe::Ping;
use weft::lab::{LabConfig, Namespace};

const NODE: &str = "n1";
const POD: &str = "n1-p1";
/// Where the lab's nodes serve their metrics.
const METRICS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9144);

#[test]
fn a_node_is_watched_and_keeps_its_own_devices() {
    if !may_make_labs() {
        return;
    }
    let mut lab = TestLab::up(LabConfig { nodes: 2, pods_per_node: 1, ..LabConfig::new("ports") });
    health_is_served(&lab);
    metrics_have_every_reason(&lab);
    metrics_add_up(&lab);
    answers_to_names_are_counted_by_zone_and_code(&lab);
    devices_that_the_node_needs_are_refused(&lab);
    a_node_that_is_not_ready_says_so(&mut lab);
    lab.finish();
}

fn health_is_served(lab: &TestLab) {
    for path in ["/healthz", "/readyz"] {
        let (status, _, body) = get(lab, NODE, path);
        assert_eq!(status, 200, "{path}: {body}");
    }
    assert_eq!(get(lab, NODE, "/nothing").0, 404);
}

fn metrics_have_every_reason(lab: &TestLab) {
    let (status, head, text) = get(lab, NODE, "/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(text.ends_with("# EOF\n"), "{}", &text[text.len().saturating_sub(200)..]);
    for reason in Reason::ALL {
        let series = format!("weft_dropped_packets_total{{reason=\"{}\"}} ", reason.as_str());
        assert_eq!(text.matches(&series).count(), 1, "{series}");
    }
    for series in [
        r#"weft_capability{name="udp_gro",at="tunnel"} "#,
        r#"weft_capability{name="tap_uso",at="host"} "#,
        r#"weft_capability{name="gso_write",at="port"} 1"#,
        r#"weft_fallbacks_total{name="udp_gso",at="tunnel"} 0"#,
        r#"weft_kernel_dropped_packets_total{at="tunnel"} "#,
        r#"weft_kernel_dropped_packets_total{at="port"} "#,
    ] {
        assert_eq!(text.matches(series).count(), 1, "{series}: {text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap().parse::<f64>();
        assert!(value.is_ok_and(f64::is_finite), "{line}");
    }
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: Vec<_> = names.map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
}

/// What was received or made is delivered, answered, dropped, or under way.
fn metrics_add_up(lab: &TestLab) {
    let target = lab.state().pod("n2-p1").unwrap().1.addresses[0];
    let before = sum(&get(lab, NODE, "/metrics").2, "weft_received_packets_total");
    let ping = Ping { count: 50, ..Ping::new(target) };
    assert!(ping.run(&lab.namespace(POD).unwrap()).unwrap().is_ok());
    eventually("the metrics add up", || {
        let text = get(lab, NODE, "/metrics").2;
        let part = |name: &str| sum(&text, &format!("weft_{name}_packets_total"));
        let came = part("received") + part("originated");
        let went = part("delivered") + part("answered") + part("dropped");
        // Each request came from the pod, each reply from the tunnel.
        part("received") >= before + 100.0 && (came - went).abs() < 0.5
    });
}

fn devices_that_the_node_needs_are_refused(lab: &TestLab) {
    let node = lab.namespace(NODE).unwrap();
    let mut netlink = Netlink::open_in(node.path()).unwrap();
    netlink.create_veth("addressed", "addressed-far", None).unwrap();
    let index = netlink.link("addressed").unwrap().index;
    netlink.add_address(index, "198.18.0.1/24".parse().unwrap()).unwrap();
    netlink.create_veth("bridged", "bridged-far", None).unwrap();
    netlink.create_bridge("bridge").unwrap();
    let (port, bridge) = (netlink.link("bridged").unwrap().index, netlink.link("bridge").unwrap());
    netlink.set_master(port, Some(bridge.index)).unwrap();

    for (device, why) in [
        ("lo", "the node itself needs it"),
        ("weft0", "the node itself needs it"),
        ("eth0", "the node itself needs it"),
        ("addressed", "the node has the address 198.18.0.1/24 on it"),
        ("bridged", "it belongs to the bridge"),
        ("nowhere", "there is no interface nowhere"),
    ] {
        let before = addresses(&node);
        let output = weft(lab, &["port", "add", device, "52:54:00:00:00:01"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{device}: {said}");
        assert!(said.contains(device) && said.contains(why), "{device}: {said}");
        assert_eq!(addresses(&node), before, "{device}");
    }
    for mac in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        let output = weft(lab, &["port", "add", "addressed-far", mac]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{mac}: {said}");
        assert!(said.contains(mac), "{mac}: {said}");
    }
    let output = weft(lab, &["port", "remove", "eth0"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("eth0 is not a port"), "{said}");

    let pods = lab.admin(NODE).unwrap().pods().unwrap();
    assert_eq!(pods.len(), 1, "{pods:?}");
    for address in &lab.state().pod("n2-p1").unwrap().1.addresses {
        for from in [NODE, POD] {
            let report = Ping::new(*address).run(&lab.namespace(from).unwrap()).unwrap();
            assert!(report.is_ok(), "{from} to {address}: {report:?}");
        }
    }
}

/// A daemon that was only just started waits for a lease: alive, but not ready.
fn a_node_that_is_not_ready_says_so(lab: &mut TestLab) {
    let idle = lab.add_idle_node().unwrap();
    lab.cut(&idle).unwrap();
    lab.launch(&idle).unwrap();
    eventually("the daemon serves", || lab.admin(&idle).unwrap().status().is_ok());
    let (status, _, body) = get(lab, &idle, "/healthz");
    assert_eq!(status, 200, "{body}");
    // Nobody answers, so it first waits for seeds, for five seconds.
    let (status, _, body) = get(lab, &idle, "/readyz");
    assert_eq!(status, 503, "{body}");
    assert!(body.starts_with("not ready\n"), "{body}");
    lab.heal(&idle).unwrap();
    eventually("it is ready", || get(lab, &idle, "/readyz").0 == 200);
}

/// Status, head and body of an answer over HTTP/1.1.
#[track_caller]
fn get(lab: &TestLab, node: &str, path: &str) -> (u16, String, String) {
    let namespace = lab.namespace(node).unwrap();
    let mut answer = String::new();
    eventually("the metrics port is open", || {
        let Ok(mut stream) = namespace.run(|| TcpStream::connect(METRICS)).unwrap() else {
            return false;
        };
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {METRICS}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        answer.clear();
        stream.read_to_string(&mut answer).unwrap();
        true
    });
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn answers_to_names_are_counted_by_zone_and_code(lab: &TestLab) {
    let series = |zone: &str, code: &str| {
        format!("weft_dns_responses_total{{zone=\"{zone}\",part=\"cluster\",rcode=\"{code}\"}} ")
    };
    let count = |text: &str, series: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0.0, |value| value.parse().unwrap())
    };
    let (noerror, nxdomain) =
        (series("cluster.local.", "NOERROR"), series("cluster.local.", "NXDOMAIN"));
    let before = get(lab, NODE, "/metrics").2;
    for name in ["dns-version.cluster.local.", "nobody.lab.svc.cluster.local."] {
        let mut request = Message::new(1, MessageType::Query, OpCode::Query);
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::TXT));
        let request = request.to_vec().unwrap();
        let ask = || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket.send_to(&request, "10.96.0.10:53").unwrap();
            socket.recv(&mut [0; 512]).unwrap()
        };
        lab.namespace(POD).unwrap().run(ask).unwrap();
    }
    let after = get(lab, NODE, "/metrics").2;
    for series in [&noerror, &nxdomain] {
        assert!(count(&after, series) > count(&before, series), "{series}\n{after}");
    }
    let (all, timed) =
        (sum(&after, "weft_dns_responses_total"), sum(&after, "weft_dns_response_seconds_count"));
    assert!((all - timed).abs() < 0.5, "{all} responses, {timed} of them timed");
    assert!((sum(&after, "weft_dns_synced") - 1.0).abs() < 0.5, "{after}");
}

/// The sum of all series of a metric.
fn sum(text: &str, name: &str) -> f64 {
    let series = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let values: Vec<f64> =
        series.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!values.is_empty(), "no {name} in\n{text}");
    values.iter().sum()
}

/// Every address of the node, with the index of its device.
#[track_caller]
fn addresses(node: &Namespace) -> BTreeSet<(u32, IpNetwork)> {
    let mut netlink = Netlink::open_in(node.path()).unwrap();
    let held = netlink.addresses(None).unwrap();
    held.into_iter().map(|held| (held.index, held.address)).collect()
}

fn weft(lab: &TestLab, arguments: &[&str]) -> Output {
    let socket = lab.admin(NODE).unwrap().socket().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(arguments).arg("--socket").arg(socket).output().unwrap()
}
