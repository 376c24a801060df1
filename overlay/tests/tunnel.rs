//! Two nodes, each a switch with a tunnel, joined by a veth pair: the real kernel's TCP between their pods,
//! and what the underlay may do to the tunnel.
#![allow(
    unsafe_code,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that speaks to the kernel, and shares its means with others"
)]

#[path = "../../vswitch/tests/kernel/mod.rs"]
mod kernel;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Instant;

use kernel::*;
use overlay::path::kernel::path_mtu;
use overlay::send_offload::SendOffload;
use overlay::tunnel::{
    Tunnel, TunnelConfig, TunnelError, TunnelSource, TunnelStatus, TunnelUplink,
};
use overlay::udp::{self, Capabilities, ReceiveSocket, SOURCE_PORT_MIN, SendSocket, Sent};
use overlay::vxlan::{self, Vni};
use vswitch::config::Config;
use vswitch::engine::{Engine, TunnelPort};
use vswitch::port::{Source, Uplink};
use vswitch::tap::Tap;
use vswitch::verdict::Reason;

const TESTS: [Test; 10] = [
    ("two_nodes_carry_tcp_and_udp_over_ipv4", two_nodes_carry_tcp_and_udp_over_ipv4),
    ("two_nodes_carry_tcp_and_udp_over_ipv6", two_nodes_carry_tcp_and_udp_over_ipv6),
    ("without_offloads_it_is_the_same", without_offloads_it_is_the_same),
    ("a_port_that_is_taken_is_explained", a_port_that_is_taken_is_explained),
    ("an_address_that_is_not_there_is_explained", an_address_that_is_not_there_is_explained),
    ("what_the_underlay_refuses_is_counted", what_the_underlay_refuses_is_counted),
    ("what_a_firewall_drops_is_counted", what_a_firewall_drops_is_counted),
    ("a_node_that_does_not_listen_ends_nothing", a_node_that_does_not_listen_ends_nothing),
    ("only_what_is_too_long_is_refused", only_what_is_too_long_is_refused),
    ("many_small_datagrams_at_once_are_accounted_for", many_small_datagrams_at_once),
];

const UNDERLAY_MTU: u32 = 1500;
const BULK: usize = 32_000_000;
const LENS: [usize; 4] = [1, 1000, 1400, 9000];

fn main() -> ExitCode {
    kernel::main(&TESTS)
}

/// A node with one pod.
struct TestNode {
    net: Net,
    number: u8,
    underlay: IpAddr,
    pod: Pod,
    engine: Engine,
    status: TunnelStatus,
    tap: Tap,
}

impl TestNode {
    fn start(net: Net, number: u8, is_v4: bool, capabilities: Option<Capabilities>) -> Self {
        let underlay = underlay(number, is_v4);
        let pod = Pod::new(number, 2, pod_mtu(is_v4));
        // The fewest buffers that can be configured must do.
        let config = Config { buffers: 128, ..Config::default() };
        let other = 3 - number;
        let peers = [(other, self::underlay(other, is_v4), pod_mtu(is_v4))];
        let tables = tables((number, underlay), &[&pod], &peers, vxlan::PORT);
        let engine = Engine::start(&config, Arc::new(tables)).unwrap();
        let tunnel = TunnelConfig {
            underlay,
            port: vxlan::PORT,
            vni: Vni::WEFT,
            workers: engine.workers(),
            mtu: pod_mtu(is_v4),
        };
        let Tunnel { sources, uplinks, status } = net
            .run(|| match capabilities {
                Some(capabilities) => Tunnel::open_with(&tunnel, capabilities),
                None => Tunnel::open(&tunnel),
            })
            .unwrap();
        engine.set_tunnel(Some(port(sources, uplinks))).unwrap();
        let tap = pod.plug_tap(&engine);
        Self { net, number, underlay, pod, engine, status, tap }
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.engine.counters().sum().dropped(reason)
    }

    fn fallbacks(&self) -> u64 {
        self.status.fallbacks().iter().map(|worker| worker.count()).sum()
    }

    /// Sends a datagram of the pod to the other node's pod.
    fn send_datagram(&self, other: &Self, len: usize) {
        let socket = self.pod.net.run(|| UdpSocket::bind((self.pod.v4(), 0))).unwrap();
        socket.send_to(&vec![1; len], (other.pod.v4(), 9)).unwrap();
    }
}

fn port(sources: Vec<TunnelSource>, uplinks: Vec<TunnelUplink>) -> TunnelPort {
    let sources = sources.into_iter().map(|source| Box::new(source) as Box<dyn Source>);
    let uplinks = uplinks.into_iter().map(|uplink| Box::new(uplink) as Box<dyn Uplink>);
    TunnelPort { sources: sources.collect(), uplinks: uplinks.collect() }
}

fn pod_mtu(is_v4: bool) -> u16 {
    if is_v4 { 1450 } else { 1430 }
}

fn underlay(number: u8, is_v4: bool) -> IpAddr {
    ip(&if is_v4 { format!("192.0.2.{number}") } else { format!("fd00:77::{number}") })
}

/// Two namespaces that reach each other over both protocols.
fn underlays() -> [Net; 2] {
    let nets = [Net::new(), Net::new()];
    nets[0].join("eth0", &nets[1], "eth0", UNDERLAY_MTU);
    for (number, net) in (1..).zip(&nets) {
        net.add_address("eth0", &format!("{}/24", underlay(number, true)));
        net.add_address("eth0", &format!("{}/64", underlay(number, false)));
    }
    nets
}

fn nodes(is_v4: bool, capabilities: Option<&Capabilities>) -> [TestNode; 2] {
    let [first, second] = underlays();
    let start = |net, number| TestNode::start(net, number, is_v4, capabilities.cloned());
    [start(first, 1), start(second, 2)]
}

fn carry_tcp_and_udp(nodes: [TestNode; 2]) {
    let [first, second] = &nodes;
    for (source, target) in [(first, second), (second, first)] {
        for address in target.pod.addresses() {
            transfer(&source.pod.net, &target.pod.net, address, BULK);
            echo(&source.pod.net, &target.pod.net, address, &LENS);
        }
    }
    for node in &nodes {
        let totals = assert_clean(&node.engine);
        // Four streams' data, or their acknowledgments, and each packet counted as on a wire.
        assert!(totals.received_bytes > 4 * BULK as u64, "{totals:?}");
        assert!(totals.received > 4 * BULK as u64 / 1450, "{totals:?}");
        assert_eq!(node.status.take_offence(), None);
        assert_eq!(node.tap.gso_refused(), 0);
        assert_eq!(node.fallbacks(), 0);
        assert!(node.engine.take_lost_sources().is_empty());
    }
    for node in nodes {
        node.engine.stop().unwrap();
    }
}

fn two_nodes_carry_tcp_and_udp_over_ipv4() {
    let nodes = nodes(true, None);
    for node in &nodes {
        let capabilities = node.status.capabilities();
        assert_eq!((&capabilities.send_offload, &capabilities.receive_offload), (&Ok(()), &Ok(())));
    }
    carry_tcp_and_udp(nodes);
}

fn two_nodes_carry_tcp_and_udp_over_ipv6() {
    let nodes = nodes(false, None);
    carry_tcp_and_udp(nodes);
}

fn without_offloads_it_is_the_same() {
    let capabilities = Net::new().run(|| udp::probe(ip("127.0.0.1"))).unwrap();
    let without = Capabilities { send_offload: Err("switched off".into()), ..capabilities };
    let nodes = nodes(true, Some(&without));
    carry_tcp_and_udp(nodes);
}

fn open(net: &Net, underlay: IpAddr) -> Result<Tunnel, TunnelError> {
    let config =
        TunnelConfig { underlay, port: vxlan::PORT, vni: Vni::WEFT, workers: 2, mtu: 1450 };
    net.run(|| Tunnel::open(&config))
}

fn a_port_that_is_taken_is_explained() {
    let [net, _other] = underlays();
    let address = underlay(1, true);
    let first = open(&net, address).unwrap();
    let taken = open(&net, address).unwrap_err();
    assert!(matches!(taken, TunnelError::Bind { .. }), "{taken}");
    drop(first);
    let index = net.index("eth0");
    let made = net.netlink().create_vxlan("flannel.1", 1, vxlan::PORT, address, index);
    if let Err(error) = made {
        return skip(&format!("this kernel makes no vxlan device: {error}"));
    }
    net.set_up("flannel.1", true);
    let taken = open(&net, address).unwrap_err().to_string();
    assert!(taken.contains("192.0.2.1:4789"), "{taken}");
    assert!(taken.contains("a kernel vxlan device, has this UDP port"), "{taken}");
    net.delete("flannel.1");
    open(&net, address).unwrap();
}

fn an_address_that_is_not_there_is_explained() {
    for address in ["192.0.2.77", "fd00:77::77"] {
        let refused = open(&Net::new(), ip(address)).unwrap_err();
        assert!(matches!(refused, TunnelError::Probe { .. }), "{refused}");
        assert!(refused.to_string().contains("no interface of this network namespace has it"));
    }
}

fn what_the_underlay_refuses_is_counted() {
    let [first, second] = nodes(true, None);
    transfer(&first.pod.net, &second.pod.net, second.pod.v4(), 100_000);
    // No route: ENETUNREACH.
    first.net.set_up("eth0", false);
    first.send_datagram(&second, 10);
    eventually("the packet is counted", || first.dropped(Reason::UnderlayError) == 1);
    first.net.set_up("eth0", true);
    transfer(&first.pod.net, &second.pod.net, second.pod.v4(), 100_000);
    // A shorter underlay than was declared: EMSGSIZE.
    let index = first.net.index("eth0");
    first.net.netlink().set_mtu(index, 1400).unwrap();
    let before = first.dropped(Reason::UnderlayError);
    first.send_datagram(&second, 1400);
    eventually("the packet is counted", || first.dropped(Reason::PathMtu) == 1);
    assert_eq!(first.dropped(Reason::UnderlayError), before);
    let narrow = SocketAddr::new(second.underlay, vxlan::PORT);
    let told = &first.status.probes().narrow;
    assert_eq!((told.pop(), told.pop()), (Some(narrow), None));
    assert_eq!(first.net.run(|| path_mtu(first.underlay, narrow)).unwrap(), 1400);
    first.send_datagram(&second, 1000);
    first.net.netlink().set_mtu(index, UNDERLAY_MTU).unwrap();
    transfer(&first.pod.net, &second.pod.net, second.pod.v4(), 1_000_000);
    assert_eq!(first.fallbacks(), 0);
    for node in [first, second] {
        eventually("all is accounted for", || node.engine.counters().sum().queued() == 0);
        assert!(node.engine.take_lost_sources().is_empty());
        node.engine.stop().unwrap();
    }
}

fn what_a_firewall_drops_is_counted() {
    let [first, second] = nodes(true, None);
    let rules = "add table inet t; add chain inet t o { type filter hook output priority 0; }; \
                 add rule inet t o udp dport 4789 drop";
    if !nft(&first.net, rules) {
        return skip("nft (package nftables) is not there, or this kernel has no nftables");
    }
    for _ in 0..3 {
        let before = first.dropped(Reason::UnderlayError);
        first.send_datagram(&second, 10);
        eventually("the packet is counted", || first.dropped(Reason::UnderlayError) > before);
    }
    assert!(nft(&first.net, "delete table inet t"));
    transfer(&first.pod.net, &second.pod.net, second.pod.v4(), 1_000_000);
    assert_eq!(first.fallbacks(), 0);
    eventually("all is accounted for", || first.engine.counters().sum().queued() == 0);
}

fn nft(net: &Net, rules: &str) -> bool {
    net.run(|| {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let output = Command::new("nft").arg(rules).env("PATH", path).output();
        output.is_ok_and(|output| output.status.success())
    })
}

fn a_node_that_does_not_listen_ends_nothing() {
    let [first, second] = nodes(true, None);
    second.engine.set_tunnel(None).unwrap();
    // Each is answered with "port unreachable".
    let before = first.engine.counters().sum();
    for _ in 0..5 {
        first.send_datagram(&second, 10);
    }
    eventually("they are sent", || first.engine.counters().sum().delivered >= before.delivered + 5);
    eventually("all is accounted for", || first.engine.counters().sum().queued() == 0);
    assert_eq!(first.dropped(Reason::UnderlayError), 0);
    let again = open(&second.net, second.underlay).unwrap();
    second.engine.set_tunnel(Some(port(again.sources, again.uplinks))).unwrap();
    transfer(&first.pod.net, &second.pod.net, second.pod.v4(), 1_000_000);
    assert!(first.engine.take_lost_sources().is_empty());
}

fn only_what_is_too_long_is_refused() {
    let nets = underlays();
    for is_v4 in [true, false] {
        let (from, to) = (underlay(1, is_v4), underlay(2, is_v4));
        let mut receiver =
            nets[1].run(|| ReceiveSocket::bind(SocketAddr::new(to, vxlan::PORT))).unwrap();
        let capabilities = nets[0].run(|| udp::probe(from)).unwrap();
        let header = if is_v4 { 28 } else { 48 };
        let fits = UNDERLAY_MTU as usize - header;
        for has_offload in [true, false] {
            let offload = if has_offload { Ok(()) } else { Err("switched off".into()) };
            let capabilities = Capabilities { send_offload: offload, ..capabilities.clone() };
            let mut offload = SendOffload::new(&capabilities);
            let sender = nets[0].run(|| SendSocket::bind(from)).unwrap();
            assert!(sender.source_port() >= SOURCE_PORT_MIN);
            let to = SocketAddr::new(to, vxlan::PORT);

            let mut send = |segment_len, bytes| {
                sender.send(&mut offload, to, segment_len, &vec![1; bytes], Instant::now)
            };
            let sent = send(fits, 40 * fits + 9);
            let bytes = 40 * fits as u64 + 9;
            assert_eq!(sent, Sent { taken: 41, bytes, ..Sent::default() });
            assert_eq!(receive(&mut receiver, 41), [&[fits; 40][..], &[9]].concat());

            // Nothing is fragmented, and the short one is none of those that are too long.
            let sent = send(fits + 1, 40 * (fits + 1) + 9);
            assert_eq!(sent, Sent { taken: 1, bytes: 9, too_long: 40, ..Sent::default() });
            assert_eq!(receive(&mut receiver, 1), [9]);
            let sent = send(fits + 1, fits + 1);
            assert_eq!(sent, Sent { too_long: 1, ..Sent::default() });
            assert_eq!(offload.fallbacks().count(), 0, "this says nothing about offloads");
        }
    }
}

/// The lengths of the next datagrams.
fn receive(socket: &mut ReceiveSocket, datagrams: usize) -> Vec<usize> {
    let mut lens = Vec::new();
    eventually("the datagrams come", || {
        while let Some(received) = socket.receive().unwrap() {
            lens.extend(received.bytes.chunks(received.stride).map(<[u8]>::len));
        }
        lens.len() >= datagrams
    });
    lens
}

fn many_small_datagrams_at_once() {
    let [first, second] = nodes(true, None);
    // As a member: every datagram is of another flow, to a port where nobody listens, or it is garbage.
    let to = SocketAddr::new(second.underlay, vxlan::PORT);
    let capabilities = first.status.capabilities().clone();
    let segments_max = capabilities.segments_max;
    let mut offload = SendOffload::new(&capabilities);
    let sender = first.net.run(|| SendSocket::bind(first.underlay)).unwrap();
    let mut send =
        |len, bytes: &[u8]| sender.send(&mut offload, to, len, bytes, Instant::now).taken;
    let many: Vec<u8> = (0..segments_max).flat_map(datagram).collect();
    let some: Vec<u8> = (1000..1060).flat_map(datagram).collect();
    let len = datagram(0).len();
    let mut expected = second.engine.counters().sum().received;
    let garbage = vec![0xff; 3 * segments_max];
    for _ in 0..50 {
        for _ in 0..4 {
            // One after which a batch takes another, which is as long as can be.
            expected += send(len, &some);
            expected += send(len, &many);
            expected += send(3, &garbage);
        }
        // They are fewer than would fit into the smallest receive buffer.
        eventually("all came", || second.engine.counters().sum().received >= expected);
    }
    eventually("all is accounted for", || second.engine.counters().sum().queued() == 0);
    // Each datagram was a frame of its own, and the buffers were enough.
    assert_eq!(second.dropped(Reason::PoolEmpty), 0);
    assert!(second.dropped(Reason::VxlanTruncated) >= 200 * segments_max as u64);
    transfer(&first.pod.net, &second.pod.net, second.pod.v4(), 1_000_000);
}

/// A VXLAN datagram with an IPv4 packet for the second node's pod.
fn datagram(flow: usize) -> Vec<u8> {
    let port = 40_000 + u16::try_from(flow).unwrap();
    let mut bytes = vxlan::encode(Vni::WEFT).to_vec();
    etherparse::PacketBuilder::ethernet2(vtep_mac(1).0, vtep_mac(2).0)
        .ipv4([10, 244, 1, 2], [10, 244, 2, 2], 64)
        .udp(port, 9)
        .write(&mut bytes, b"x")
        .unwrap();
    bytes
}
