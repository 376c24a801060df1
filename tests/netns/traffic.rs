//! Pods, nodes and the world outside talk to each other: real daemons, real TAPs, the kernel's own TCP.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use crate::common::place::{gateways, leases, node, pod, same_family, set_mtu};
use crate::common::traffic::{End, both_ways};
use crate::common::{TestLab, eventually, find, skip};
use cni::link::Netlink;
use ipnetwork::IpNetwork;
use socket2::{Domain, Socket, Type};
use vswitch::verdict::Reason;
use weft::admin::api::ProblemTopic;
use weft::lab::probe::{Amount, EchoServer, Ping, SeenAs, Transfer, tcp_seen_as, udp_seen_as};
use weft::lab::{Family, LabConfig, Plan, WORLD};

/// Bytes of the streams between all ends.
const STREAM_LEN: u64 = 4_000_000;

/// Bytes of the long streams.
const BULK_LEN: u64 = 1_000_000_000;

#[test]
fn everybody_reaches_everybody_over_an_ipv4_underlay() {
    everybody_reaches_everybody(Family::V4);
}

#[test]
fn everybody_reaches_everybody_over_an_ipv6_underlay() {
    everybody_reaches_everybody(Family::V6);
}

fn everybody_reaches_everybody(underlay: Family) {
    if !crate::common::may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 2, underlay, ..LabConfig::new("traffic") };
    let lab = TestLab::up(config);
    let here = pod(&lab, "n1-p1");
    for other in [pod(&lab, "n1-p2"), pod(&lab, "n2-p1"), node(&lab, "n1"), node(&lab, "n2")] {
        both_ways(&here, &other, STREAM_LEN);
        long_datagrams(&here, &other);
    }
    nodes_keep_their_underlay_address(&lab, &here);
    nodes_reach_each_other(&lab);
    pods_reach_the_world(&lab, &here);
    lab.finish();
}

/// Almost as long as UDP can be: 45 fragments.
fn long_datagrams(one: &End, other: &End) {
    for (source, target) in [(one, other), (other, one)] {
        for address in &target.addresses {
            if source.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4()) {
                let server = EchoServer::start(&target.namespace, *address).unwrap();
                let server = SocketAddr::new(*address, server.port());
                let seen = udp_seen_as(&source.namespace, server, 60_000);
                let seen = seen.unwrap_or_else(|error| {
                    panic!("60 kB from {} to {address}: {error}", source.name)
                });
                assert!(!seen.is_rewritten(), "{seen:?}");
            }
        }
    }
}

/// A connection that a node makes from its underlay address arrives under that address.
fn nodes_keep_their_underlay_address(lab: &TestLab, pod: &End) {
    for name in ["n1", "n2"] {
        let node = node(lab, name);
        let underlay = node.addresses[0];
        let address = same_family(&pod.addresses, underlay);
        let server = EchoServer::start(&pod.namespace, address).unwrap();
        let seen = tcp_seen_from(&node, underlay, SocketAddr::new(address, server.port()));
        assert_eq!((seen.own, seen.is_rewritten()), (seen.seen, false), "{name}");
        assert_eq!(seen.seen.ip(), underlay);
    }
}

fn tcp_seen_from(end: &End, source: IpAddr, server: SocketAddr) -> SeenAs {
    let own = SocketAddr::new(source, 0);
    let mut stream = end
        .namespace
        .run(|| {
            let socket = Socket::new(Domain::for_address(own), Type::STREAM, None).unwrap();
            socket.bind(&own.into()).unwrap();
            socket.connect(&server.into()).unwrap();
            std::net::TcpStream::from(socket)
        })
        .unwrap();
    let own = stream.local_addr().unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    SeenAs { own, seen: text.trim().parse().unwrap() }
}

fn nodes_reach_each_other(lab: &TestLab) {
    let (one, other) = (node(lab, "n1"), node(lab, "n2"));
    for (source, target) in [(&one, &other), (&other, &one)] {
        for address in &target.addresses {
            let report = Ping::new(*address).run(&source.namespace).unwrap();
            assert!(report.is_ok(), "{} to {address}: {report:?}", source.name);
        }
    }
}

/// Under the node's address, which is the only one that the world has a way back to.
fn pods_reach_the_world(lab: &TestLab, pod: &End) {
    let admin = lab.admin("n1").unwrap();
    if find("nft").is_none() {
        let problems = admin.status().unwrap().problems;
        assert!(
            problems.iter().any(|problem| problem.topic == ProblemTopic::Masquerade),
            "{problems:?}"
        );
        skip("WEFT_REQUIRE_INTEROP", "masquerading, as nft is not installed (package nftables)");
        return;
    }
    for family in Family::ALL {
        let world = Plan::world(family).ip();
        let server = EchoServer::start(&lab.namespace(WORLD).unwrap(), world).unwrap();
        let server = SocketAddr::new(world, server.port());
        let number = lab.state().node("n1").unwrap().number;
        let node = Plan::node(family, number).ip();
        let seen = tcp_seen_as(&pod.namespace, server).unwrap();
        assert!(pod.addresses.contains(&seen.own.ip()) && seen.seen.ip() == node, "{seen:?}");
        let seen = udp_seen_as(&pod.namespace, server, 8192).unwrap();
        assert_eq!(seen.seen.ip(), node);
        let report = Ping::new(world).run(&pod.namespace).unwrap();
        assert!(report.is_ok(), "to {world}: {report:?}");
    }
    assert_eq!(admin.status().unwrap().problems, []);
}

#[test]
fn a_gigabyte_each_way_arrives_whole() {
    if !crate::common::may_make_labs() {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 2, ..LabConfig::new("bulk") });
    for (source, target) in
        [("n1-p1", "n2-p1"), ("n2-p1", "n1-p1"), ("n1-p1", "n1-p2"), ("n1-p2", "n1-p1")]
    {
        let (from, to) = (pod(&lab, source), pod(&lab, target));
        let transfer = Transfer { amount: Amount::Bytes(BULK_LEN), verify: true };
        let report = transfer.run(&from.namespace, &to.namespace, to.addresses[0]);
        let report = report.unwrap_or_else(|error| panic!("{source} to {target}: {error}"));
        assert_eq!(report.bytes, BULK_LEN);
        eprintln!("{source} to {target}: {:.0} Mbit/s", report.bits_per_s() / 1e6);
    }
    lab.finish();
}

/// The pods' MTU over an IPv4 underlay of 1500 bytes.
const INNER_MTU: usize = 1450;

#[test]
fn what_cannot_be_carried_is_refused_with_the_right_words() {
    if !crate::common::may_make_labs() {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 2, ..LabConfig::new("refused") });
    let (here, there) = (pod(&lab, "n1-p1"), pod(&lab, "n2-p1"));
    longest_packets_pass(&here, &there);
    hops_are_counted(&lab, &here, &there);
    unknown_addresses_are_unreachable(&lab, &here);
    longer_packets_are_refused(&here, &there);
    the_tunnel_is_out_of_reach(&lab, &here);
    // Last: the pod keeps the addresses that it gave itself.
    foreign_sources_are_dropped(&lab, &here, &there);
    lab.finish();
}

fn echo_len(target: IpAddr, packet_len: usize) -> usize {
    packet_len - if target.is_ipv4() { 20 + 8 } else { 40 + 8 }
}

fn longest_packets_pass(here: &End, there: &End) {
    for target in &there.addresses {
        let payload_len = echo_len(*target, INNER_MTU);
        let ping = Ping { payload_len, dont_fragment: true, ..Ping::new(*target) };
        let report = ping.run(&here.namespace).unwrap();
        assert!(report.is_ok(), "{INNER_MTU} bytes to {target}: {report:?}");
    }
}

/// A pod that raises its own MTU is told the one of the path.
fn longer_packets_are_refused(here: &End, there: &End) {
    set_mtu(&here.namespace, "eth0", 9000);
    for target in &there.addresses {
        let payload_len = echo_len(*target, INNER_MTU + 1);
        let ping = Ping { payload_len, dont_fragment: true, ..Ping::new(*target) };
        let report = ping.run(&here.namespace).unwrap();
        assert_eq!(report.received, 0, "to {target}");
        // The first was refused on the way; having learned, the kernel refuses the others itself.
        assert!(report.error.unwrap_or_default().contains("known path"), "to {target}");
        if let IpAddr::V4(target) = target {
            assert_eq!(path_mtu(here, *target), u32::try_from(INNER_MTU).unwrap());
        }
    }
}

/// What the pod's kernel believes after the ICMP error (`IP_MTU`, ip(7)).
fn path_mtu(from: &End, target: Ipv4Addr) -> u32 {
    let socket = from.namespace.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((target, 9))?;
        std::io::Result::Ok(socket)
    });
    rustix::net::sockopt::ip_mtu(socket.unwrap().unwrap()).unwrap()
}

fn hops_are_counted(lab: &TestLab, here: &End, there: &End) {
    for target in &there.addresses {
        let ping = |hops| Ping { hop_limit: Some(hops), count: 1, ..Ping::new(*target) };
        // One hop at each node's switch, and the pod itself.
        assert!(ping(3).run(&here.namespace).unwrap().is_ok(), "{target}");
        for (hops, router) in [(1, "n1"), (2, "n2")] {
            let report = ping(hops).run(&here.namespace).unwrap();
            let told = report.error.unwrap_or_default();
            let router = same_family(&gateways(lab, router), *target).to_string();
            assert_eq!(report.received, 0, "{target}, {hops} hops");
            assert!(told.contains(&router), "{target}, {hops} hops: {told:?}, not from {router}");
        }
    }
}

fn unknown_addresses_are_unreachable(lab: &TestLab, here: &End) {
    for lease in leases(lab, "n2") {
        let unused = crate::common::foreign::address(&[lease], lease.is_ipv4(), 200);
        let report = Ping { count: 1, ..Ping::new(unused) }.run(&here.namespace).unwrap();
        let told = report.error.unwrap_or_default();
        let router = same_family(&gateways(lab, "n2"), unused).to_string();
        assert!(told.contains(&router), "{unused}: {told:?}, not from {router}");
    }
}

/// Of an address that the pod gave itself, nothing gets out.
fn foreign_sources_are_dropped(lab: &TestLab, here: &End, there: &End) {
    for lease in leases(lab, "n1") {
        let stolen = crate::common::foreign::address(&[lease], lease.is_ipv4(), 201);
        let mut netlink = Netlink::open_in(here.namespace.path()).unwrap();
        let index = netlink.link("eth0").unwrap().index;
        netlink.add_address(index, IpNetwork::from(stolen)).unwrap();
        let before = lab.dropped("n1", Reason::Spoofed);
        send(here, stolen, SocketAddr::new(same_family(&there.addresses, stolen), 9));
        eventually("the packet is counted as spoofed", || {
            lab.dropped("n1", Reason::Spoofed) > before
        });
    }
}

fn the_tunnel_is_out_of_reach(lab: &TestLab, here: &End) {
    let own = here.addresses[0];
    for name in ["n1", "n2"] {
        for port in [4789, 7946] {
            let before = lab.dropped("n1", Reason::TunnelPort);
            send(here, own, SocketAddr::new(node(lab, name).addresses[0], port));
            eventually("the packet is counted as for the tunnel", || {
                lab.dropped("n1", Reason::TunnelPort) > before
            });
        }
    }
}

fn send(from: &End, source: IpAddr, target: SocketAddr) {
    let sent = from.namespace.run(|| UdpSocket::bind((source, 0))?.send_to(b"hello", target));
    assert_eq!(sent.unwrap().unwrap(), 5, "from {source} to {target}");
}
