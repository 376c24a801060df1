//! Real TCP/IP stacks talk through the switch, on one node and over a bad network between two.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "only tests are in here")]
#![cfg(feature = "sim")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::*;
use vswitch::config::Config;
use vswitch::frame::Ingress;
use vswitch::mac::Mac;
use vswitch::port::{NodeIx, PortIx};
use vswitch::sim::{Clock, Delivery, Faults, Host, HostConfig, Net, SwitchSim, TcpHandle};
use vswitch::tables::{Node, Peer, PortEntry, PortKind, TablesBuilder};

const STEP: Duration = Duration::from_millis(10);

/// Pod `pod` of node `node`, with both families.
fn pod(node: u8, pod: u8, offload: bool) -> HostConfig {
    HostConfig {
        mac: Mac([0x0a, 0x58, 10, 244, node, pod]),
        mtu: 1450,
        addresses: vec![
            format!("10.244.{node}.{pod}/24").parse().unwrap(),
            format!("fd00:10:244:{node}::{pod}/128").parse().unwrap(),
        ],
        gateways: vec![ip(&format!("10.244.{node}.1")), ip(&format!("fd00:10:244:{node}::1"))],
        offload,
        seed: u64::from(node) << 8 | u64::from(pod),
    }
}

fn v4(node: u8, pod: u8) -> std::net::IpAddr {
    ip(&format!("10.244.{node}.{pod}"))
}

fn v6(node: u8, pod: u8) -> std::net::IpAddr {
    ip(&format!("fd00:10:244:{node}::{pod}"))
}

/// Node `own` of two, with two pods at ports 1 and 2.
fn node_sim(own: u8, offload: bool, clock: &Clock) -> SwitchSim {
    let vtep = |node| Mac([2, 0, 0, 0, 0, node]);
    let underlay = |node| ip(&format!("192.0.2.{node}"));
    let node = Node {
        vtep_mac: vtep(own),
        gateway_v4: Some(format!("10.244.{own}.1").parse().unwrap()),
        gateway_v6: Some(format!("fd00:10:244:{own}::1").parse().unwrap()),
        underlay: Some(underlay(own)),
        vxlan_port: 4789,
        gossip_port: 7946,
    };
    let ranges = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
    let mut tables = TablesBuilder::new(1, node, &ranges);
    let other = 3 - own;
    tables.peer(Peer {
        name: "other".to_owned(),
        underlay: SocketAddr::new(underlay(other), 4789),
        vtep_mac: vtep(other),
        mtu: 1450,
        leases: vec![
            format!("10.244.{other}.0/24").parse().unwrap(),
            format!("fd00:10:244:{other}::/64").parse().unwrap(),
        ],
    });
    let pods = [pod(own, 2, offload), pod(own, 3, offload)];
    let ports = [PortIx(1), PortIx(2)];
    for (port, pod) in ports.iter().zip(&pods) {
        tables.port(*port, pod.port_entry());
    }
    let mut sim = SwitchSim::new(&Config::default(), tables.build(), clock.now());
    for (port, pod) in ports.iter().zip(&pods) {
        sim.attach(*port, Host::new(pod, clock.now()));
    }
    sim
}

const A: PortIx = PortIx(1);
const B: PortIx = PortIx(2);

#[test]
fn pods_on_one_node_ping_each_other_and_the_router() {
    let mut clock = Clock::new();
    let mut sim = node_sim(1, false, &clock);
    let targets = [v4(1, 3), v6(1, 3), ip("169.254.1.1"), ip("fe80::1")];
    for (sequence, target) in (0..).zip(targets) {
        sim.host(A).ping(target, sequence);
        // smoltcp asks for one neighbor a second.
        for _ in 0..300 {
            sim.run(clock.now());
            clock.advance(STEP);
        }
        assert_eq!(sim.host(A).take_echo_replies(), [(target, sequence)]);
    }
    let totals = sim.totals();
    assert_eq!(totals.queued(), 0);
    assert!(totals.answered >= 4, "two ARP or ND requests of each, and two pings");
    assert_eq!(sim.buffers_in_use(), 0);
}

#[test]
fn the_node_and_its_pods_reach_each_other() {
    let mut clock = Clock::new();
    let mut sim = node_sim(1, false, &clock);
    let config = HostConfig {
        mac: Mac::HOST,
        mtu: 1450,
        addresses: vec!["10.244.1.1/0".parse().unwrap(), "fd00:10:244:1::1/128".parse().unwrap()],
        gateways: vec![ip("fe80::1")],
        offload: false,
        seed: 1,
    };
    let ranges = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
    let mut tables = TablesBuilder::new(2, sim.tables().node.clone(), &ranges);
    let entry = PortEntry { kind: PortKind::Host, ..config.port_entry() };
    tables.port(PortIx::HOST, entry).port(A, pod(1, 2, false).port_entry());
    sim.set_tables(tables.build());
    sim.attach(PortIx::HOST, Host::new(&config, clock.now()));
    let pings = [(PortIx::HOST, v4(1, 2)), (PortIx::HOST, v6(1, 2)), (A, v4(1, 1)), (A, v6(1, 1))];
    for (from, target) in pings {
        sim.host(from).ping(target, 1);
        for _ in 0..300 {
            sim.run(clock.now());
            clock.advance(STEP);
        }
        assert_eq!(sim.host(from).take_echo_replies(), [(target, 1)], "{target}");
    }
    // And outside of the cluster there is nobody to answer, but the host gets the packet.
    let before = sim.port_totals(PortIx::HOST).delivered;
    sim.host(A).ping(ip("198.51.100.7"), 2);
    sim.run(clock.now());
    assert_eq!(sim.port_totals(PortIx::HOST).delivered, before + 1);
    assert_eq!(sim.totals().queued(), 0);
}

#[test]
fn nobody_answers_for_an_address_that_nobody_has() {
    let mut clock = Clock::new();
    let mut sim = node_sim(1, false, &clock);
    sim.host(A).ping(v6(1, 99), 1);
    let far_and_gone = ip("10.244.7.7");
    sim.host(A).ping(far_and_gone, 2);
    for _ in 0..300 {
        sim.run(clock.now());
        clock.advance(STEP);
    }
    assert_eq!(sim.host(A).take_echo_replies(), []);
    let errors = sim.host(A).take_icmp_errors();
    let seen: Vec<_> = errors.iter().map(|error| (error.from, error.kind, error.code)).collect();
    assert!(seen.contains(&(v6(1, 1), 1, 3)), "{seen:?}");
    assert!(seen.contains(&(v4(1, 1), 3, 1)), "{seen:?}");
    assert_eq!(sim.totals().queued(), 0);
}

#[test]
fn datagrams_arrive_with_the_senders_own_address() {
    let mut clock = Clock::new();
    let mut sim = node_sim(1, false, &clock);
    for (from, to) in [(v4(1, 2), v4(1, 3)), (v6(1, 2), v6(1, 3))] {
        let socket_a = sim.host(A).udp_bind(5000);
        let socket_b = sim.host(B).udp_bind(6000);
        assert!(sim.host(A).udp_send(socket_a, SocketAddr::new(to, 6000), b"question"));
        let mut answered = false;
        for _ in 0..300 {
            sim.run(clock.now());
            clock.advance(STEP);
            if let Some((sender, data)) = sim.host(B).udp_receive(socket_b) {
                assert_eq!((sender, &data[..]), (SocketAddr::new(from, 5000), &b"question"[..]));
                assert!(sim.host(B).udp_send(socket_b, sender, b"answer"));
            }
            if let Some((sender, data)) = sim.host(A).udp_receive(socket_a) {
                assert_eq!((sender, &data[..]), (SocketAddr::new(to, 6000), &b"answer"[..]));
                answered = true;
                break;
            }
        }
        assert!(answered, "{from} -> {to}");
        sim.host(A).udp_close(socket_a);
        sim.host(B).udp_close(socket_b);
    }
    assert_eq!(sim.totals().queued(), 0);
}

/// One transfer, driven step by step.
struct Transfer {
    client: TcpHandle,
    server: TcpHandle,
    data: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
}

impl Transfer {
    fn new(client: &mut Host, server: &mut Host, to: SocketAddr, len: usize) -> Self {
        let data = (0..len).map(|ix| (ix * 7 + ix / 256) as u8).collect();
        let server = server.tcp_listen(to.port());
        let client = client.tcp_connect(to);
        Self { client, server, data, sent: 0, received: Vec::new() }
    }

    fn step(&mut self, client: &mut Host) {
        if client.tcp_is_connected(self.client) {
            self.sent += client.tcp_send(self.client, &self.data[self.sent..]);
            if self.sent == self.data.len() {
                client.tcp_close(self.client);
            }
        }
    }

    fn collect(&mut self, server: &mut Host) {
        self.received.extend(server.tcp_receive(self.server));
    }

    fn is_done(&self) -> bool {
        self.received.len() >= self.data.len()
    }
}

#[test]
fn tcp_runs_through_one_switch_with_and_without_super_frames() {
    for (offload, target) in
        [(false, v4(1, 3)), (false, v6(1, 3)), (true, v4(1, 3)), (true, v6(1, 3))]
    {
        let mut clock = Clock::new();
        let mut sim = node_sim(1, offload, &clock);
        let mut server = sim.detach(B).unwrap();
        let to = SocketAddr::new(target, 80);
        let mut transfer = Transfer::new(sim.host(A), &mut server, to, 1_000_000);
        sim.attach(B, server);
        for _ in 0..2000 {
            transfer.step(sim.host(A));
            sim.run(clock.now());
            transfer.collect(sim.host(B));
            if transfer.is_done() {
                break;
            }
            clock.advance(STEP);
        }
        assert!(transfer.received == transfer.data, "{target} offload {offload}");
        let totals = sim.totals();
        assert_eq!(totals.queued(), 0);
        assert_eq!(totals.dropped_total(), 0);
        assert!(totals.delivered > 700, "counted in packets, also super-frames: {totals:?}");
        assert_eq!(
            sim.port_totals(A).received_bytes + sim.port_totals(B).received_bytes,
            totals.received_bytes
        );
    }
}

/// Two nodes with a network between them that carries inner frames as they are.
struct Pair {
    clock: Clock,
    nodes: [SwitchSim; 2],
    net: Net<usize, Vec<u8>>,
    trace: Vec<(Duration, usize, Vec<u8>)>,
}

impl Pair {
    fn new(seed: u64, faults: Faults, offload: bool) -> Self {
        let clock = Clock::new();
        let nodes = [node_sim(1, offload, &clock), node_sim(2, offload, &clock)];
        let mut net = Net::new(seed);
        net.set_faults(faults);
        Self { clock, nodes, net, trace: Vec::new() }
    }

    /// Lets everything happen until `time` has passed.
    fn run_for(&mut self, time: Duration) {
        let end = self.clock.elapsed() + time;
        while self.clock.elapsed() < end {
            let now = self.clock.now();
            while let Some(Delivery { to, message, .. }) = self.net.receive(now) {
                self.trace.push((self.clock.elapsed(), to, message.clone()));
                self.nodes[to].receive(now, NodeIx(0), &message);
            }
            for from in 0..2 {
                let node = &mut self.nodes[from];
                node.run(now);
                let net = &mut self.net;
                node.send_wire(|_, packet| net.send(now, from, 1 - from, packet.to_vec()));
            }
            self.clock.advance(Duration::from_millis(1));
        }
    }

    fn assert_conserved(&self) {
        for node in &self.nodes {
            assert_eq!(node.totals().queued(), 0);
            assert_eq!(node.buffers_in_use(), 0);
        }
        let net = self.net.totals();
        let on_the_way = self.net.on_the_way() as u64;
        assert_eq!(net.sent + net.duplicated, net.delivered + net.lost + net.cut + on_the_way);
    }
}

const BAD: Faults = Faults {
    loss: 0.03,
    duplication: 0.02,
    delay: Duration::from_millis(2),
    jitter: Duration::from_millis(6),
};

fn transfer_over(seed: u64, target: std::net::IpAddr, offload: bool) -> Pair {
    let mut pair = Pair::new(seed, BAD, offload);
    let [near, far] = &mut pair.nodes;
    let to = SocketAddr::new(target, 80);
    let mut transfer = Transfer::new(near.host(A), far.host(A), to, 100_000);
    while !transfer.is_done() {
        transfer.step(pair.nodes[0].host(A));
        pair.run_for(Duration::from_millis(20));
        transfer.collect(pair.nodes[1].host(A));
        assert!(pair.clock.elapsed() < Duration::from_secs(300), "the transfer hangs");
    }
    assert!(transfer.received == transfer.data, "seed {seed}");
    pair
}

#[test]
fn tcp_survives_loss_reorder_and_duplication() {
    let (mut lost, mut duplicated) = (0, 0);
    for (seed, target, offload) in
        [(1, v4(2, 2), false), (2, v6(2, 2), false), (3, v4(2, 2), true), (4, v6(2, 2), true)]
    {
        let pair = transfer_over(seed, target, offload);
        pair.assert_conserved();
        lost += pair.net.totals().lost;
        duplicated += pair.net.totals().duplicated;
    }
    assert!(lost > 0 && duplicated > 0, "{lost} lost, {duplicated} duplicated");
}

#[test]
fn one_seed_gives_one_trace() {
    let trace = |seed| transfer_over(seed, v4(2, 2), false).trace;
    let first = trace(5);
    assert!(first.len() > 100);
    assert!(first == trace(5));
    assert!(first != trace(6));
}

#[test]
fn a_partition_stops_pods_and_healing_brings_them_back() {
    let mut pair = Pair::new(1, Faults::NONE, false);
    let ping = |pair: &mut Pair, sequence| {
        pair.nodes[0].host(A).ping(v4(2, 3), sequence);
        pair.run_for(Duration::from_secs(3));
        pair.nodes[0].host(A).take_echo_replies()
    };
    assert_eq!(ping(&mut pair, 1), [(v4(2, 3), 1)]);
    pair.net.partition(&[0], &[1]);
    assert_eq!(ping(&mut pair, 2), []);
    pair.net.heal();
    assert_eq!(ping(&mut pair, 3), [(v4(2, 3), 3)]);
    pair.assert_conserved();
}

#[test]
fn a_smaller_path_is_told_to_the_sender() {
    let clock = Clock::new();
    let mut sim = node_sim(1, false, &clock);
    let mut tables =
        TablesBuilder::new(2, sim.tables().node.clone(), &["fd00:10:244::/56".parse().unwrap()]);
    let a = pod(1, 2, false);
    tables.port(A, a.port_entry());
    let addresses = vec![v6(1, 3)];
    let kind = PortKind::Pod;
    tables.port(B, PortEntry { kind, mac: pod(1, 3, false).mac, mtu: 1300, addresses });
    sim.set_tables(tables.build());
    let bytes = udp(a.mac, "fd00:10:244:1::2", "fd00:10:244:1::3", &[0; 1300]);
    let frame = sim.make_frame(Ingress::Port(A), &bytes).unwrap();
    sim.inject(clock.now(), frame);
    let errors = sim.host(A).take_icmp_errors();
    assert_eq!(errors.len(), 1);
    assert_eq!((errors[0].from, errors[0].kind, errors[0].mtu), (v6(1, 1), 2, 1300));
    assert_eq!(sim.totals().queued(), 0);
}
