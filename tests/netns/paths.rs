//! Paths that carry less than their ends would send: towards a node with a smaller link, and to and from the
//! world. Who sends too much is told so, and what may be cut is cut.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::common::foreign::address;
use crate::common::place::{add_route, gateways, leases, pod, same_family, set_mtu};
use crate::common::traffic::End;
use crate::common::{TestLab, may_make_labs};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use vswitch::verdict::Reason;
use weft::lab::probe::{Amount, Ping, PingReport, Transfer};
use weft::lab::{Family, LabConfig, Plan, UNDERLAY, WORLD};

/// The pods' MTU over an IPv4 underlay of 1500 bytes.
const INNER_MTU: u16 = 1450;

/// The underlay MTU of the node with the smaller link, and its pods' MTU.
const SMALL_MTU: u16 = 1400;
const SMALL_INNER_MTU: u16 = 1350;

/// Bytes of each TCP stream.
const STREAM_LEN: u64 = 4_000_000;

/// How soon a pod must hear that there is nobody.
const ERROR_MAX: Duration = Duration::from_millis(500);

/// How long a datagram may take.
const DATAGRAM_MAX: Duration = Duration::from_secs(5);

#[test]
fn paths_that_carry_less_are_found_out() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 1, ..LabConfig::new("paths") };
    let mut lab = TestLab::up(config);
    let small = lab.add_idle_node().unwrap();
    lab.set_mtu(&small, SMALL_MTU).unwrap();
    lab.start(&small).unwrap();
    let small_pod = lab.add_pod(&small).unwrap();
    lab.wait_for_map(&["n1", &small], Duration::from_secs(20)).unwrap();
    let (here, beside) = (pod(&lab, "n1-p1"), pod(&lab, "n1-p2"));
    let there = pod(&lab, &small_pod);
    hops_on_one_node(&lab, &here, &beside);
    nobody_is_told_at_once(&lab, &here);

    the_smaller_end_decides(&lab, &here, &there);
    long_datagrams_are_cut(&here, &there);
    streams_find_the_path_mtu(&here, &there);

    let world = End {
        name: WORLD.to_owned(),
        namespace: lab.namespace(WORLD).unwrap(),
        addresses: world(),
    };
    route_back(&lab, "n1");
    route_back(&lab, &small);
    the_world_is_told(&lab, &world, &here, INNER_MTU, "n1");
    the_world_is_told(&lab, &world, &there, SMALL_INNER_MTU, &small);
    pods_are_told_about_the_way_out(&lab, &beside, &world);
    lab.finish();
}

/// Pods of one node are one hop apart, and a pod and its own node none.
fn hops_on_one_node(lab: &TestLab, here: &End, beside: &End) {
    for target in &beside.addresses {
        let gateway = same_family(&gateways(lab, "n1"), *target);
        let one = Ping { hop_limit: Some(1), count: 1, ..Ping::new(*target) };
        expect_error(&one.run(&here.namespace).unwrap(), "time exceeded", gateway);
        let two = Ping { hop_limit: Some(2), ..one };
        assert!(two.run(&here.namespace).unwrap().is_ok(), "{target}");
        let node = Ping { target: gateway, ..one };
        assert!(node.run(&here.namespace).unwrap().is_ok(), "{gateway}");
    }
}

/// Addresses that no pod holds, of this node's lease and of one that nobody has.
fn nobody_is_told_at_once(lab: &TestLab, here: &End) {
    let held: Vec<_> = lab.nodes().iter().flat_map(|node| leases(lab, &node.name)).collect();
    for lease in leases(lab, "n1") {
        let unleased = (1..=250).map(|number: u8| match lease.network() {
            IpAddr::V4(_) => IpAddr::from([10, 244, number, 9]),
            IpAddr::V6(_) => format!("fd00:10:244:{number:x}::9").parse().unwrap(),
        });
        let unleased = unleased.into_iter().find(|ip| !held.iter().any(|held| held.contains(*ip)));
        let gateway = same_family(&gateways(lab, "n1"), lease.network());
        for nobody in [address(&[lease], lease.is_ipv4(), 200), unleased.unwrap()] {
            let before = lab.dropped("n1", Reason::NoSuchAddress);
            let start = Instant::now();
            let ping = Ping { count: 1, ..Ping::new(nobody) };
            expect_error(&ping.run(&here.namespace).unwrap(), "host unreachable", gateway);
            assert!(start.elapsed() < ERROR_MAX, "{nobody}: after {:?}", start.elapsed());
            assert_eq!(lab.dropped("n1", Reason::NoSuchAddress), before + 1, "{nobody}");
        }
    }
}

fn the_smaller_end_decides(lab: &TestLab, here: &End, there: &End) {
    for target in &there.addresses {
        let gateway = same_family(&gateways(lab, "n1"), *target);
        assert!(full(*target, SMALL_INNER_MTU).run(&here.namespace).unwrap().is_ok(), "{target}");
        let before = lab.dropped("n1", Reason::TooBig);
        let refused = full(*target, SMALL_INNER_MTU + 1).run(&here.namespace).unwrap();
        expect_error(&refused, "too big: mtu 1350", gateway);
        assert_eq!(lab.dropped("n1", Reason::TooBig), before + 1, "{target}");
    }
}

/// Without DF the switch cuts them, in IPv4.
fn long_datagrams_are_cut(here: &End, there: &End) {
    let receiver = (there.addresses[0], 0);
    let receiver = there.namespace.run(|| UdpSocket::bind(receiver)).unwrap().unwrap();
    receiver.set_read_timeout(Some(DATAGRAM_MAX)).unwrap();
    let sender = (here.addresses[0], 0);
    let sender = here.namespace.run(|| UdpSocket::bind(sender)).unwrap().unwrap();
    set_ip_mtu_discover(&sender, Ipv4PathMtuDiscovery::DONT).unwrap();
    // One packet of the sender's MTU, and three of them.
    for len in [usize::from(INNER_MTU) - 28, 4000] {
        let sent: Vec<u8> = (0..len).map(|ix| u8::try_from(ix % 251).unwrap()).collect();
        sender.send_to(&sent, receiver.local_addr().unwrap()).unwrap();
        let mut received = [0; 8192];
        let (got, from) = receiver.recv_from(&mut received).unwrap();
        assert_eq!((&received[..got], from), (&sent[..], sender.local_addr().unwrap()));
    }
}

/// Both ends believe that they may send 1450 bytes; the switches say what they may.
fn streams_find_the_path_mtu(here: &End, there: &End) {
    set_mtu(&there.namespace, "eth0", INNER_MTU.into());
    for (source, target) in [(here, there), (there, here)] {
        for address in &target.addresses {
            let transfer = Transfer { amount: Amount::Bytes(STREAM_LEN), verify: true };
            let report = transfer.run(&source.namespace, &target.namespace, *address);
            let report = report.unwrap_or_else(|error| panic!("to {address}: {error}"));
            assert_eq!(report.bytes, STREAM_LEN, "to {address}");
        }
    }
    set_mtu(&there.namespace, "eth0", SMALL_INNER_MTU.into());
}

/// The world's packets are as long as its own link allows; the node's kernel knows how long a pod's may be.
fn the_world_is_told(lab: &TestLab, world: &End, pod: &End, mtu: u16, node: &str) {
    let number = lab.state().node(node).unwrap().number;
    for target in &pod.addresses {
        let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
        let refused = full(*target, mtu + 1).run(&world.namespace).unwrap();
        expect_error(&refused, &format!("too big: mtu {mtu}"), Plan::node(family, number).ip());
        assert!(full(*target, mtu).run(&world.namespace).unwrap().is_ok(), "{target}");
    }
}

/// A pod that raises its own MTU is told by the switch.
fn pods_are_told_about_the_way_out(lab: &TestLab, pod: &End, world: &End) {
    for target in &world.addresses {
        assert!(full(*target, INNER_MTU).run(&pod.namespace).unwrap().is_ok(), "{target}");
    }
    set_mtu(&pod.namespace, "eth0", 9000);
    for target in &world.addresses {
        let gateway = same_family(&gateways(lab, "n1"), *target);
        let refused = full(*target, INNER_MTU + 1).run(&pod.namespace).unwrap();
        expect_error(&refused, "too big: mtu 1450", gateway);
    }
}

/// One echo request that is a packet of `packet_len` bytes and may not be fragmented.
fn full(target: IpAddr, packet_len: u16) -> Ping {
    let header_len = if target.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let payload_len = usize::from(packet_len) - header_len;
    Ping { payload_len, dont_fragment: true, count: 1, ..Ping::new(target) }
}

#[track_caller]
fn expect_error(report: &PingReport, text: &str, from: IpAddr) {
    assert_eq!(report.received, 0, "{report:?}");
    assert_eq!(report.error.as_deref(), Some(&*format!("{text}, says {from}")));
}

fn world() -> Vec<IpAddr> {
    Family::ALL.map(|family| Plan::world(family).ip()).to_vec()
}

/// Gives the world a way to the node's pods, which it does not have by itself.
fn route_back(lab: &TestLab, node: &str) {
    let number = lab.state().node(node).unwrap().number;
    for lease in leases(lab, node) {
        let family = if lease.is_ipv4() { Family::V4 } else { Family::V6 };
        let near = Plan::world_router(family).ip();
        add_route(&lab.namespace(WORLD).unwrap(), "eth0", lease, near);
        let far = Plan::node(family, number).ip();
        add_route(&lab.namespace(UNDERLAY).unwrap(), "br0", lease, far);
    }
}
