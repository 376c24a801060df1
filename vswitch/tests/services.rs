//! Packets to Services, from every kind of client, through the whole pipeline: where they come out, what they look
//! like there, what comes back, and what the next packet does after a change.

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

mod common;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use etherparse::{PacketBuilder, TcpHeader, TransportHeader};
use vswitch::explain::{Outcome, Question, explain};
use vswitch::frame::{Checksum, Gso, GsoKind, Ingress};
use vswitch::mac::Mac;
use vswitch::port::PortIx;
use vswitch::service::{
    Algorithm, Endpoint, EndpointState, Family, Frontend, Protocol, ServicePort,
    ServiceTableBuilder, TrafficPolicy,
};
use vswitch::tables::{Masquerade, Tables};
use vswitch::verdict::{Egress, Reason};
use vswitch::wire::tcp::flag::{ACK, FIN, RST, SYN};
use vswitch::wire::{self, Network, checksum};

const VIP: &str = "10.96.0.7";
const VIP6: &str = "fd00:10:96::7";
const BALANCER: &str = "198.51.100.8";
const A: &str = "10.244.1.2";
const B: &str = "10.244.1.3";
const GATEWAY: &str = "10.244.1.1";
const NODE: &str = "192.0.2.1";
const SWITCH: &str = "10.244.1.0";
const REMOTE: &str = "10.244.2.9";
const WORLD: &str = "203.0.113.9";

const FROM_A: Ingress = Ingress::Port(POD_A);
const FROM_B: Ingress = Ingress::Port(POD_B);
const FROM_HOST: Ingress = Ingress::Port(PortIx::HOST);
const FROM_PEER: Ingress = Ingress::Node(PEER);
const TO_HOST: Egress = Egress::Port(PortIx::HOST);

fn endpoint(address: &str, port: u16, state: EndpointState) -> Endpoint {
    let is_local = [A, B, GATEWAY, NODE, "fd00:10:244:1::3"].contains(&address);
    Endpoint { address: ip(address), port, is_local, is_near: true, state }
}

fn ready(addresses: &[&str]) -> Vec<Endpoint> {
    addresses.iter().map(|address| endpoint(address, 8080, EndpointState::Ready)).collect()
}

fn service(protocol: Protocol, endpoints: Vec<Endpoint>) -> ServicePort {
    ServicePort {
        name: format!("shop/web:{protocol}"),
        family: Family::V4,
        protocol,
        frontends: vec![
            Frontend::ClusterIp { address: ip(VIP), port: 80 },
            Frontend::LoadBalancer { address: ip(BALANCER), port: 80, source_ranges: vec![] },
            Frontend::NodePort { port: 30080 },
        ],
        endpoints,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        algorithm: Algorithm::Maglev,
        affinity: None,
    }
}

/// The node of the other tests, with these Services.
fn serving(generation: u64, services: Vec<ServicePort>) -> Tables {
    let ranges = vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()];
    let mut table = ServiceTableBuilder::new(ranges);
    services.into_iter().for_each(|service| table.set(service).unwrap());
    let mut builder = tables_builder();
    builder.port(PortIx::HOST, host_port());
    builder.services(Arc::new(table.build(generation)));
    builder.masquerade(Masquerade {
        v4: Some([10, 244, 1, 0].into()),
        v6: Some("fd00:10:244:1::".parse().unwrap()),
    });
    builder.build()
}

fn bench(protocol: Protocol, endpoints: &[&str]) -> Bench {
    Bench::with_tables(serving(1, vec![service(protocol, ready(endpoints))]))
}

/// Somebody who sends: the ingress, and the MAC addresses that it sends with.
fn macs(from: Ingress) -> (Mac, Mac) {
    match from {
        FROM_A => (MAC_A, Mac::ROUTER),
        FROM_B => (MAC_B, Mac::ROUTER),
        FROM_HOST => (Mac::HOST, Mac::ROUTER),
        Ingress::Port(_) | Ingress::Node(_) | Ingress::Switch => (PEER_VTEP, VTEP),
    }
}

type End<'a> = (&'a str, u16);

fn tcp(from: Ingress, source: End<'_>, destination: End<'_>, flags: u8) -> Vec<u8> {
    let (sender, to) = macs(from);
    let mut header = TcpHeader::new(source.1, destination.1, 1000, 64_000);
    header.syn = flags & SYN != 0;
    header.ack = flags & ACK != 0;
    header.fin = flags & FIN != 0;
    header.rst = flags & RST != 0;
    header.acknowledgment_number = if header.ack { 5000 } else { 0 };
    let mut bytes = Vec::new();
    with_ip(sender, to, source.0, destination.0, 64)
        .tcp_header(header)
        .write(&mut bytes, &[])
        .unwrap();
    bytes
}

fn datagram(from: Ingress, source: End<'_>, destination: End<'_>) -> Vec<u8> {
    let (sender, to) = macs(from);
    let mut bytes = Vec::new();
    let step = with_ip(sender, to, source.0, destination.0, 64);
    step.udp(source.1, destination.1).write(&mut bytes, b"question").unwrap();
    bytes
}

/// Both ends of a packet that came out, whose checksums are right.
fn ends(bytes: &[u8]) -> ((IpAddr, u16), (IpAddr, u16)) {
    let seen = look(bytes);
    let (source, destination) = match seen.transport.unwrap() {
        TransportHeader::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
        TransportHeader::Udp(udp) => (udp.source_port, udp.destination_port),
        other @ (TransportHeader::Icmpv4(_)
        | TransportHeader::Icmpv6(_)
        | TransportHeader::Igmp(_)) => panic!("{other:?}"),
    };
    ((seen.source, source), (seen.destination, destination))
}

fn end(text: &str, port: u16) -> (IpAddr, u16) {
    (ip(text), port)
}

/// The one packet that came out.
fn single(out: Out) -> (Egress, Vec<u8>) {
    let [only] = <[_; 1]>::try_from(out).unwrap_or_else(|out| panic!("{} packets", out.len()));
    only
}

impl Bench {
    /// Where a packet leaves, and its ends there.
    fn goes(&mut self, from: Ingress, bytes: &[u8]) -> (Egress, (IpAddr, u16), (IpAddr, u16)) {
        let (egress, bytes) = single(self.run(from, bytes));
        let (source, destination) = ends(&bytes);
        (egress, source, destination)
    }

    fn change(&mut self, generation: u64, services: Vec<ServicePort>) {
        self.tables = serving(generation, services);
    }
}

#[test]
fn a_pod_reaches_a_pod_beside_it_and_hears_from_the_service() {
    let mut bench = bench(Protocol::Tcp, &[B]);
    let out = bench.goes(FROM_A, &tcp(FROM_A, (A, 40_000), (VIP, 80), SYN));
    assert_eq!(out, (Egress::Port(POD_B), end(A, 40_000), end(B, 8080)), "the source is kept");
    let back = bench.goes(FROM_B, &tcp(FROM_B, (B, 8080), (A, 40_000), SYN | ACK));
    assert_eq!(back, (Egress::Port(POD_A), end(VIP, 80), end(A, 40_000)));
    let flow = &bench.switch.flows().view(bench.now, 10, |_| true)[0];
    assert_eq!((flow.state, flow.packets_original, flow.packets_reply), ("SYN_RECV", 1, 1));
    assert_eq!(flow.service_name(bench.tables.services()), Some("shop/web:TCP"));
}

#[test]
fn a_pod_reaches_a_pod_on_another_node() {
    let mut bench = bench(Protocol::Tcp, &[REMOTE]);
    let out = bench.goes(FROM_A, &tcp(FROM_A, (A, 40_000), (VIP, 80), SYN));
    assert_eq!(out, (Egress::Node(PEER), end(A, 40_000), end(REMOTE, 8080)));
    let back = bench.goes(FROM_PEER, &tcp(FROM_PEER, (REMOTE, 8080), (A, 40_000), SYN | ACK));
    assert_eq!(back, (Egress::Port(POD_A), end(VIP, 80), end(A, 40_000)));
    // By the NodePort of whichever node, and by the load balancer, too.
    for (address, port) in [(NODE, 30080), ("192.0.2.3", 30080), (BALANCER, 80)] {
        let out = bench.goes(FROM_A, &tcp(FROM_A, (A, 40_001), (address, port), SYN));
        assert_eq!((out.0, out.2), (Egress::Node(PEER), end(REMOTE, 8080)), "{address}");
        assert_eq!(out.1.0, ip(A));
    }
}

#[test]
fn a_pod_reaches_itself_and_its_node_and_the_world_through_a_service() {
    let mut hairpin = bench(Protocol::Tcp, &[A]);
    let out = hairpin.goes(FROM_A, &tcp(FROM_A, (A, 40_000), (VIP, 80), SYN));
    assert_eq!(out, (Egress::Port(POD_A), end(SWITCH, 40_000), end(A, 8080)));
    let back = hairpin.goes(FROM_A, &tcp(FROM_A, (A, 8080), (SWITCH, 40_000), SYN | ACK));
    assert_eq!(back, (Egress::Port(POD_A), end(VIP, 80), end(A, 40_000)));

    for (address, from) in [(NODE, FROM_HOST), (WORLD, FROM_HOST)] {
        let mut bench = bench(Protocol::Tcp, &[address]);
        let out = bench.goes(FROM_A, &tcp(FROM_A, (A, 40_000), (VIP, 80), SYN));
        assert_eq!(out, (TO_HOST, end(A, 40_000), end(address, 8080)));
        let back = bench.goes(from, &tcp(from, (address, 8080), (A, 40_000), SYN | ACK));
        assert_eq!(back, (Egress::Port(POD_A), end(VIP, 80), end(A, 40_000)));
    }
}

#[test]
fn the_node_reaches_every_kind_of_endpoint() {
    // Pods see the node as itself; what would be answered past the switch sees the switch.
    for (address, egress, seen_as, from) in [
        (A, Egress::Port(POD_A), GATEWAY, FROM_A),
        (REMOTE, Egress::Node(PEER), GATEWAY, FROM_PEER),
        (NODE, TO_HOST, SWITCH, FROM_HOST),
        (WORLD, TO_HOST, SWITCH, FROM_HOST),
    ] {
        let mut bench = bench(Protocol::Tcp, &[address]);
        let out = bench.goes(FROM_HOST, &tcp(FROM_HOST, (GATEWAY, 40_000), (VIP, 80), SYN));
        assert_eq!(out, (egress, end(seen_as, 40_000), end(address, 8080)));
        let back = tcp(from, (address, 8080), (seen_as, 40_000), SYN | ACK);
        let back = bench.goes(from, &back);
        assert_eq!(back, (TO_HOST, end(VIP, 80), end(GATEWAY, 40_000)), "{address}");
    }
}

#[test]
fn the_world_reaches_node_ports_and_its_address_is_kept_where_replies_come_back() {
    for (address, egress, seen_as, from) in [
        (A, Egress::Port(POD_A), WORLD, FROM_A),
        (REMOTE, Egress::Node(PEER), SWITCH, FROM_PEER),
        (NODE, TO_HOST, SWITCH, FROM_HOST),
    ] {
        let mut bench = bench(Protocol::Tcp, &[address]);
        let out = bench.goes(FROM_HOST, &tcp(FROM_HOST, (WORLD, 5000), (NODE, 30080), SYN));
        assert_eq!(out, (egress, end(seen_as, 5000), end(address, 8080)));
        let back = bench.goes(from, &tcp(from, (address, 8080), (seen_as, 5000), SYN | ACK));
        assert_eq!(back, (TO_HOST, end(NODE, 30080), end(WORLD, 5000)), "{address}");
    }
}

#[test]
fn host_ports_are_served_to_other_nodes_pods_and_to_everybody_else() {
    let spec = ServicePort {
        frontends: vec![Frontend::HostPort { address: ip(NODE), port: 8443 }],
        ..service(Protocol::Tcp, ready(&[A]))
    };
    let mut bench = Bench::with_tables(serving(1, vec![spec]));
    for (client, from, egress) in [
        (REMOTE, FROM_PEER, Egress::Node(PEER)),
        (WORLD, FROM_HOST, TO_HOST),
        (GATEWAY, FROM_HOST, TO_HOST),
        (B, FROM_B, Egress::Port(POD_B)),
    ] {
        let out = bench.goes(from, &tcp(from, (client, 40_000), (NODE, 8443), SYN));
        assert_eq!(out, (Egress::Port(POD_A), end(client, 40_000), end(A, 8080)));
        let back = bench.goes(FROM_A, &tcp(FROM_A, (A, 8080), (client, 40_000), SYN | ACK));
        assert_eq!(back, (egress, end(NODE, 8443), end(client, 40_000)), "{client}");
    }
    let out = bench.goes(FROM_A, &tcp(FROM_A, (A, 40_000), (NODE, 8443), SYN));
    assert_eq!(out, (Egress::Port(POD_A), end(SWITCH, 40_000), end(A, 8080)), "itself");
    // Another node has its own, and the next port is the node's.
    let out = bench.goes(FROM_B, &tcp(FROM_B, (B, 40_000), ("192.0.2.3", 8443), SYN));
    assert_eq!(out.2, end("192.0.2.3", 8443));
    let out = bench.goes(FROM_PEER, &tcp(FROM_PEER, (REMOTE, 40_000), (NODE, 8444), SYN));
    assert_eq!(out, (TO_HOST, end(REMOTE, 40_000), end(NODE, 8444)));
}

#[test]
fn what_other_nodes_send_to_services_is_decided_about_there() {
    let mut bench = bench(Protocol::Tcp, &[A]);
    let out = bench.goes(FROM_PEER, &tcp(FROM_PEER, (REMOTE, 40_000), (NODE, 30080), SYN));
    assert_eq!(out, (TO_HOST, end(REMOTE, 40_000), end(NODE, 30080)));
}

#[test]
fn many_clients_share_the_switch_s_address_and_each_gets_its_own_replies() {
    let mut bench = bench(Protocol::Tcp, &[REMOTE]);
    for n in 1..=250 {
        let client = format!("203.0.113.{n}");
        let out = bench.goes(FROM_HOST, &tcp(FROM_HOST, (&client, 5000), (NODE, 30080), SYN));
        let seen_as = out.1;
        assert_eq!((seen_as.0, out.2), (ip(SWITCH), end(REMOTE, 8080)));
        let reply = tcp(FROM_PEER, (REMOTE, 8080), (SWITCH, seen_as.1), SYN | ACK);
        let back = bench.goes(FROM_PEER, &reply);
        assert_eq!(back, (TO_HOST, end(NODE, 30080), (ip(&client), 5000)));
    }
}

#[test]
fn without_endpoints_everybody_is_told_at_once() {
    let mut bench = bench(Protocol::Tcp, &[]);
    for (from, client, egress) in [
        (FROM_A, A, Egress::Port(POD_A)),
        (FROM_HOST, GATEWAY, TO_HOST),
        (FROM_HOST, WORLD, TO_HOST),
    ] {
        for (address, port) in [(VIP, 80), (BALANCER, 80), (NODE, 30080)] {
            let syn = tcp(from, (client, 40_000), (address, port), SYN);
            let (reason, out) = bench.reason_for(from, &syn);
            assert_eq!(reason, Some(Reason::NoEndpoint));
            let (to, bytes) = single(out);
            assert_eq!(to, egress);
            assert_eq!(ends(&bytes), (end(address, port), end(client, 40_000)));
            let Some(TransportHeader::Tcp(reset)) = look(&bytes).transport else { panic!() };
            assert!(reset.rst && reset.ack);
            assert_eq!((reset.sequence_number, reset.acknowledgment_number), (0, 1001));
        }
    }
    let late = tcp(FROM_A, (A, 40_000), (VIP, 80), ACK);
    let (_, bytes) = single(bench.run(FROM_A, &late));
    let Some(TransportHeader::Tcp(reset)) = look(&bytes).transport else { panic!() };
    assert!(reset.rst && !reset.ack);
    assert_eq!(reset.sequence_number, 5000, "where the client expects it");
    let (_, out) = bench.reason_for(FROM_A, &tcp(FROM_A, (A, 40_000), (VIP, 80), RST));
    assert!(out.is_empty(), "a reset is not answered");
    assert!(bench.switch.flows().is_empty());
}

#[test]
fn datagrams_without_endpoint_are_answered_by_the_service_s_address() {
    let mut bench = bench(Protocol::Udp, &[]);
    let question = datagram(FROM_A, (A, 4000), (VIP, 80));
    let (reason, out) = bench.reason_for(FROM_A, &question);
    assert_eq!(reason, Some(Reason::NoEndpoint));
    let (egress, bytes) = single(out);
    let seen = look(&bytes);
    assert_eq!((egress, seen.source, seen.destination), (Egress::Port(POD_A), ip(VIP), ip(A)));
    assert_eq!(bytes[34..36], [3, 3], "port unreachable");
    assert_eq!(bytes[42..70], question[14..42], "it quotes what was sent");
}

#[test]
fn wrong_ports_and_pings_are_refused_and_unknown_addresses_are_silent() {
    let mut bench = bench(Protocol::Tcp, &[B]);
    let (reason, out) = bench.reason_for(FROM_A, &tcp(FROM_A, (A, 40_000), (VIP, 81), SYN));
    assert_eq!((reason, out.len()), (Some(Reason::NoSuchPort), 1));
    let (reason, out) = bench.reason_for(FROM_A, &datagram(FROM_A, (A, 4000), (VIP, 80)));
    assert_eq!((reason, out.len()), (Some(Reason::NoSuchPort), 1));
    let mut ping = Vec::new();
    with_ip(MAC_A, Mac::ROUTER, A, VIP, 64)
        .icmpv4_echo_request(1, 1)
        .write(&mut ping, &[])
        .unwrap();
    let (reason, out) = bench.reason_for(FROM_A, &ping);
    assert_eq!((reason, out[0].1[34..36].to_vec()), (Some(Reason::NoSuchPort), vec![3, 3]));
    let (reason, out) = bench.reason_for(FROM_A, &tcp(FROM_A, (A, 40_000), ("10.96.9.9", 80), SYN));
    assert_eq!((reason, out.len()), (Some(Reason::NoSuchService), 0));
}

#[test]
fn only_remote_endpoints_under_local_drop_what_is_from_outside_and_nothing_else() {
    let local = ServicePort {
        external_policy: TrafficPolicy::Local,
        ..service(Protocol::Tcp, ready(&[REMOTE]))
    };
    let mut bench = Bench::with_tables(serving(1, vec![local.clone()]));
    let (reason, out) =
        bench.reason_for(FROM_HOST, &tcp(FROM_HOST, (WORLD, 5000), (BALANCER, 80), SYN));
    assert_eq!((reason, out.len()), (Some(Reason::NoLocalEndpoint), 0));
    let out = bench.goes(FROM_A, &tcp(FROM_A, (A, 40_000), (BALANCER, 80), SYN));
    assert_eq!(out, (Egress::Node(PEER), end(A, 40_000), end(REMOTE, 8080)));
    // With one here it is served, and sees who asks.
    bench.change(2, vec![ServicePort { endpoints: ready(&[REMOTE, B]), ..local }]);
    let out = bench.goes(FROM_HOST, &tcp(FROM_HOST, (WORLD, 5000), (BALANCER, 80), SYN));
    assert_eq!(out, (Egress::Port(POD_B), end(WORLD, 5000), end(B, 8080)));
}

#[test]
fn a_service_is_no_way_to_the_tunnel() {
    let endpoints = vec![endpoint("192.0.2.2", 4789, EndpointState::Ready)];
    let mut bench = Bench::with_tables(serving(1, vec![service(Protocol::Udp, endpoints)]));
    let (reason, _) = bench.reason_for(FROM_A, &datagram(FROM_A, (A, 4000), (VIP, 80)));
    assert_eq!(reason, Some(Reason::TunnelPort));
}

/// What a client's packet meets: an endpoint, or a refusal.
#[derive(Debug, PartialEq, Eq)]
enum Met {
    Endpoint(&'static str, u16),
    Refused(Reason),
}

fn meets(bench: &mut Bench, bytes: &[u8]) -> Met {
    let (reason, out) = bench.reason_for(FROM_A, bytes);
    if let Some(reason) = reason {
        return Met::Refused(reason);
    }
    let (_, bytes) = single(out);
    let (_, (address, port)) = ends(&bytes);
    let all = [A, B, REMOTE, "10.244.2.10", GATEWAY];
    let name = all.into_iter().find(|name| ip(name) == address).unwrap();
    Met::Endpoint(name, port)
}

/// The transitions that other proxies got wrong, packet by packet: the first one after a change goes right.
#[test]
fn the_first_datagram_after_every_change_goes_right() {
    let mut bench = bench(Protocol::Udp, &[B]);
    let question = datagram(FROM_A, (A, 4000), (VIP, 80));
    let with = |endpoints| vec![service(Protocol::Udp, endpoints)];
    let state = |address, state| endpoint(address, 8080, state);
    let (here, there) = (Met::Endpoint(B, 8080), Met::Endpoint(REMOTE, 8080));
    let steps: Vec<(&str, Vec<ServicePort>, Met)> = vec![
        ("as it was", with(ready(&[B])), here),
        ("N to M, the old one gone", with(ready(&[REMOTE])), there),
        ("N to M, the old one still there", with(ready(&[REMOTE, B])), Met::Endpoint(REMOTE, 8080)),
        ("N to 0", with(vec![]), Met::Refused(Reason::NoEndpoint)),
        ("0 to N", with(ready(&[B])), Met::Endpoint(B, 8080)),
        (
            "no longer serving",
            with(vec![state(B, EndpointState::Unavailable), state(REMOTE, EndpointState::Ready)]),
            Met::Endpoint(REMOTE, 8080),
        ),
        (
            "draining, while others are ready",
            with(vec![state(REMOTE, EndpointState::Draining), state(B, EndpointState::Ready)]),
            Met::Endpoint(REMOTE, 8080),
        ),
        (
            "the target port changed",
            with(vec![endpoint(REMOTE, 9090, EndpointState::Ready)]),
            Met::Endpoint(REMOTE, 9090),
        ),
        ("the Service deleted", vec![], Met::Refused(Reason::NoSuchService)),
        ("and made again", with(ready(&[B])), Met::Endpoint(B, 8080)),
        (
            "the policy is Local",
            vec![ServicePort {
                internal_policy: TrafficPolicy::Local,
                ..service(Protocol::Udp, ready(&[REMOTE]))
            }],
            Met::Refused(Reason::NoLocalEndpoint),
        ),
        (
            "another Service has the address",
            vec![ServicePort {
                name: "shop/other:".to_owned(),
                ..service(Protocol::Udp, ready(&[REMOTE]))
            }],
            Met::Endpoint(REMOTE, 8080),
        ),
        (
            "the port became TCP's",
            vec![service(Protocol::Tcp, ready(&[B]))],
            Met::Refused(Reason::NoSuchPort),
        ),
    ];
    for (generation, (what, services, expected)) in (1..).zip(steps) {
        bench.change(generation, services);
        assert_eq!(meets(&mut bench, &question), expected, "packet {generation}: {what}");
    }
    assert!(bench.switch.flows().is_empty());
}

#[test]
fn answered_connections_live_on_and_new_ones_go_right() {
    let mut bench = bench(Protocol::Tcp, &[B]);
    let client = |port, flags| tcp(FROM_A, (A, port), (VIP, 80), flags);
    let with = |endpoints| vec![service(Protocol::Tcp, endpoints)];
    assert_eq!(meets(&mut bench, &client(1000, SYN)), Met::Endpoint(B, 8080));
    bench.run(FROM_B, &tcp(FROM_B, (B, 8080), (A, 1000), SYN | ACK));
    assert_eq!(meets(&mut bench, &client(1000, ACK)), Met::Endpoint(B, 8080));
    // Not answered yet: it is as new as any.
    assert_eq!(meets(&mut bench, &client(1001, SYN)), Met::Endpoint(B, 8080));

    let draining = vec![
        endpoint(B, 8080, EndpointState::Draining),
        endpoint(REMOTE, 8080, EndpointState::Ready),
    ];
    for (generation, services) in [(2, with(draining)), (3, with(ready(&[REMOTE]))), (4, vec![])] {
        bench.change(generation, services);
        assert_eq!(meets(&mut bench, &client(1000, ACK)), Met::Endpoint(B, 8080), "{generation}");
        let back = bench.goes(FROM_B, &tcp(FROM_B, (B, 8080), (A, 1000), ACK));
        assert_eq!(back, (Egress::Port(POD_A), end(VIP, 80), end(A, 1000)));
        let new = meets(&mut bench, &client(1001, SYN));
        let expected = if generation == 4 {
            Met::Refused(Reason::NoSuchService)
        } else {
            Met::Endpoint(REMOTE, 8080)
        };
        assert_eq!(new, expected, "{generation}");
    }
    bench.change(5, with(ready(&[REMOTE])));
    assert_eq!(meets(&mut bench, &client(1000, SYN)), Met::Endpoint(REMOTE, 8080), "asked anew");
}

#[test]
fn a_connection_to_an_address_that_nobody_has_is_reset() {
    // 10.244.1.77 is in the cluster range, and nobody's.
    let mut bench = Bench::with_tables(serving(
        1,
        vec![service(Protocol::Tcp, vec![endpoint("10.244.1.77", 8080, EndpointState::Ready)])],
    ));
    let (reason, out) = bench.reason_for(FROM_A, &tcp(FROM_A, (A, 1000), (VIP, 80), ACK));
    assert_eq!(reason, Some(Reason::EndpointGone));
    let (_, bytes) = single(out);
    assert_eq!(ends(&bytes), (end(VIP, 80), end(A, 1000)));
    let Some(TransportHeader::Tcp(reset)) = look(&bytes).transport else { panic!() };
    assert!(reset.rst);
    assert!(bench.switch.flows().is_empty());
}

/// An unexpected packet is translated like any other: it never makes an endpoint reset what it does not know
/// (the "invalid state" bug).
#[test]
fn packets_out_of_any_window_are_translated() {
    let mut bench = bench(Protocol::Tcp, &[B]);
    bench.run(FROM_A, &tcp(FROM_A, (A, 1000), (VIP, 80), SYN));
    for flags in [ACK, RST, SYN | ACK, FIN, ACK, SYN | FIN] {
        let back = bench.goes(FROM_B, &tcp(FROM_B, (B, 8080), (A, 1000), flags));
        assert_eq!(back, (Egress::Port(POD_A), end(VIP, 80), end(A, 1000)));
    }
}

#[test]
fn a_connection_that_the_switch_has_not_seen_begin_finds_its_endpoint_again() {
    let endpoints = ["10.244.2.9", "10.244.2.10", B, GATEWAY];
    let mut before = bench(Protocol::Tcp, &endpoints);
    let mut after = bench(Protocol::Tcp, &endpoints);
    for port in 1000..1100 {
        let was = meets(&mut before, &tcp(FROM_A, (A, port), (VIP, 80), SYN));
        assert_eq!(meets(&mut after, &tcp(FROM_A, (A, port), (VIP, 80), ACK)), was);
    }
}

#[test]
fn with_affinity_a_client_keeps_its_endpoint_as_long_as_it_may_be_chosen() {
    let names = [B, REMOTE, "10.244.2.10"];
    let sticky = |addresses: &[&str]| {
        vec![ServicePort {
            affinity: Some(Duration::from_secs(100)),
            algorithm: Algorithm::Random,
            ..service(Protocol::Tcp, ready(addresses))
        }]
    };
    let mut bench = Bench::with_tables(serving(1, sticky(&names)));
    let mut next = 1000;
    let mut meets_next = |bench: &mut Bench| {
        next += 1;
        meets(bench, &tcp(FROM_A, (A, next), (VIP, 80), SYN))
    };
    let first = meets_next(&mut bench);
    for _ in 0..50 {
        assert_eq!(meets_next(&mut bench), first);
        bench.now += Duration::from_secs(90);
    }
    let Met::Endpoint(had, _) = first else { panic!("{first:?}") };
    let rest: Vec<&str> = names.into_iter().filter(|name| *name != had).collect();
    bench.change(2, sticky(&rest));
    let second = meets_next(&mut bench);
    assert_ne!(second, first);
    bench.change(3, sticky(&names));
    assert!((0..20).all(|_| meets_next(&mut bench) == second), "it has another one now");
    let after_a_break: Vec<Met> = (0..40)
        .map(|_| {
            bench.now += Duration::from_secs(101);
            meets_next(&mut bench)
        })
        .collect();
    assert!(after_a_break.iter().any(|met| *met != second), "the time is over");
}

#[test]
fn chance_and_least_connections_spread_clients_over_endpoints() {
    for (algorithm, spread) in
        [(Algorithm::Random, 60..141), (Algorithm::LeastConnections, 95..106)]
    {
        let addresses = [B, REMOTE, "10.244.2.10", GATEWAY];
        let service = ServicePort { algorithm, ..service(Protocol::Tcp, ready(&addresses)) };
        let mut bench = Bench::with_tables(serving(1, vec![service]));
        for port in 1000..1400 {
            meets(&mut bench, &tcp(FROM_A, (A, port), (VIP, 80), SYN));
        }
        for address in addresses {
            let flows = bench.switch.flows();
            let count = flows.view(bench.now, 1000, |flow| flow.endpoint.0 == ip(address)).len();
            assert!(spread.contains(&count), "{algorithm:?}: {count} at {address}");
        }
    }
}

#[test]
fn errors_about_translated_packets_reach_who_sent_them() {
    let mut bench = bench(Protocol::Udp, &[REMOTE]);
    let question = datagram(FROM_HOST, (WORLD, 5000), (NODE, 30080));
    let (_, sent) = single(bench.run(FROM_HOST, &question));
    // The other node has nobody at that address, and says so about the packet as it came there.
    let mut error = Vec::new();
    let (sender, to) = macs(FROM_PEER);
    let kind = etherparse::Icmpv4Type::DestinationUnreachable(
        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1300 },
    );
    with_ip(sender, to, "10.244.2.1", SWITCH, 64)
        .icmpv4(kind)
        .write(&mut error, &sent[14..])
        .unwrap();
    let (egress, bytes) = single(bench.run(FROM_PEER, &error));
    let seen = look(&bytes);
    assert_eq!((egress, seen.source, seen.destination), (TO_HOST, ip("10.244.2.1"), ip(WORLD)));
    assert_eq!(bytes[40..42], 1300_u16.to_be_bytes());
    // TTL and MAC addresses aside, the client finds its own packet in it.
    assert_eq!(bytes[14 + 28 + 12..14 + 28 + 24], question[14 + 12..14 + 24]);
    assert_eq!(checksum::internet(&bytes[14 + 28..14 + 48]), 0);

    // And the other way: the client does not want the answer.
    let reply = datagram(FROM_PEER, (REMOTE, 8080), (SWITCH, 5000));
    let (_, answer) = single(bench.run(FROM_PEER, &reply));
    let mut error = Vec::new();
    let kind = etherparse::Icmpv4Type::DestinationUnreachable(
        etherparse::icmpv4::DestUnreachableHeader::Port,
    );
    let (sender, to) = macs(FROM_HOST);
    with_ip(sender, to, WORLD, NODE, 64).icmpv4(kind).write(&mut error, &answer[14..]).unwrap();
    let (egress, bytes) = single(bench.run(FROM_HOST, &error));
    let seen = look(&bytes);
    assert_eq!(
        (egress, seen.source, seen.destination),
        (Egress::Node(PEER), ip(SWITCH), ip(REMOTE))
    );
    assert_eq!(bytes[14 + 28 + 12..14 + 28 + 24], reply[14 + 12..14 + 24]);
}

#[test]
fn what_is_too_long_is_refused_as_its_sender_wrote_it() {
    let mut bench = bench(Protocol::Udp, &[REMOTE]);
    let (sender, to) = macs(FROM_A);
    let mut long = Vec::new();
    with_ip(sender, to, A, VIP, 64).udp(4000, 80).write(&mut long, &[1; 1410]).unwrap();
    let (reason, out) = bench.reason_for(FROM_A, &long);
    assert_eq!(reason, Some(Reason::TooBig));
    let (_, bytes) = single(out);
    assert_eq!(look(&bytes).source, ip(VIP));
    assert_eq!(bytes[34..36], [3, 4]);
    assert_eq!(bytes[42..70], long[14..42], "not what it would have become");
}

#[test]
fn fragments_follow_the_first() {
    let mut bench = bench(Protocol::Udp, &[REMOTE]);
    let (sender, to) = macs(FROM_A);
    let mut long = Vec::new();
    with_ip(sender, to, A, VIP, 64).udp(4000, 80).write(&mut long, &[1; 3000]).unwrap();
    long[20] = 0;
    checksum::set_ipv4_header(&mut long[14..34]);
    let piece = |id: u16, from: usize, len: usize| {
        let mut bytes = long[..34].to_vec();
        bytes.extend(&long[34 + from..34 + from + len]);
        bytes[16..18].copy_from_slice(&u16::try_from(20 + len).unwrap().to_be_bytes());
        bytes[18..20].copy_from_slice(&id.to_be_bytes());
        let more = if from + len < 3008 { 0x2000 } else { 0 };
        let field = more | u16::try_from(from / 8).unwrap();
        bytes[20..22].copy_from_slice(&field.to_be_bytes());
        checksum::set_ipv4_header(&mut bytes[14..34]);
        bytes
    };
    let mut together = Vec::new();
    for (from, len) in [(0, 1200), (1200, 1200), (2400, 608)] {
        let (egress, bytes) = single(bench.run(FROM_A, &piece(7, from, len)));
        assert_eq!(egress, Egress::Node(PEER));
        let Network::Ip(seen) = wire::parse(&bytes).unwrap().network else { panic!() };
        assert_eq!((seen.source, seen.destination), (ip(A), ip(REMOTE)));
        together.extend_from_slice(&bytes[34..]);
    }
    assert!(checksum::is_right(ip(A), ip(REMOTE), 17, &together));
    // Without the first nobody knows where they go.
    let (reason, _) = bench.reason_for(FROM_A, &piece(8, 1200, 1200));
    assert_eq!(reason, Some(Reason::FragmentUnknown));
}

#[test]
fn super_frames_pass_whole() {
    let mut bench = bench(Protocol::Tcp, &[B]);
    bench.run(FROM_A, &tcp(FROM_A, (A, 40_000), (VIP, 80), SYN));
    let mut bytes = Vec::new();
    let (sender, to) = macs(FROM_A);
    let step = with_ip(sender, to, A, VIP, 64);
    step.tcp(40_000, 80, 1, 64_000).ack(1).write(&mut bytes, &[7; 5000]).unwrap();
    let sum = checksum::pseudo_header(ip(A), ip(VIP), 6, 5020).fold();
    bytes[50..52].copy_from_slice(&sum.to_be_bytes());
    let mut frame = bench.frame(FROM_A, &bytes);
    frame.meta.gso = Some(Gso { kind: GsoKind::Tcp4, size: 1000, segments: 5 });
    frame.meta.checksum = Checksum::Partial { start: 34, offset: 16 };
    let out = bench.forward(vec![frame]);
    let (_, frame) = &out[0];
    assert_eq!(frame.packets(), 5);
    let expected = checksum::pseudo_header(ip(A), ip(B), 6, 5020).fold();
    assert_eq!(frame.data()[50..52], expected.to_be_bytes());
    bench.recycle(out);
    let flow = &bench.switch.flows().view(bench.now, 10, |_| true)[0];
    assert_eq!(flow.packets_original, 6);
}

#[test]
fn ipv6_is_the_same() {
    let service = ServicePort {
        family: Family::V6,
        frontends: vec![Frontend::ClusterIp { address: ip(VIP6), port: 80 }],
        ..service(Protocol::Tcp, ready(&["fd00:10:244:1::2"]))
    };
    let mut bench = Bench::with_tables(serving(1, vec![service]));
    let client = "fd00:10:244:1::2";
    let out = bench.goes(FROM_A, &tcp(FROM_A, (client, 40_000), (VIP6, 80), SYN));
    assert_eq!(out, (Egress::Port(POD_A), end("fd00:10:244:1::", 40_000), end(client, 8080)));
    let reply = tcp(FROM_A, (client, 8080), ("fd00:10:244:1::", 40_000), SYN | ACK);
    let back = bench.goes(FROM_A, &reply);
    assert_eq!(back, (Egress::Port(POD_A), end(VIP6, 80), end(client, 40_000)));
    let (reason, out) = bench.reason_for(FROM_A, &tcp(FROM_A, (client, 40_000), (VIP6, 81), SYN));
    assert_eq!((reason, out.len()), (Some(Reason::NoSuchPort), 1));
    let (_, bytes) = single(out);
    assert_eq!(ends(&bytes), (end(VIP6, 81), end(client, 40_000)));
}

#[test]
fn sctp_is_served() {
    let mut bench = bench(Protocol::Sctp, &[B]);
    let mut sctp = [&5000_u16.to_be_bytes()[..], &80_u16.to_be_bytes(), &[0; 8]].concat();
    sctp.extend([1, 0, 0, 8, 1, 2, 3, 4]);
    let mut bytes = Vec::new();
    let link = PacketBuilder::ethernet2(MAC_A.0, Mac::ROUTER.0);
    let step = link.ipv4([10, 244, 1, 2], [10, 96, 0, 7], 64);
    step.write(&mut bytes, etherparse::IpNumber(132), &sctp).unwrap();
    let (egress, out) = single(bench.run(FROM_A, &bytes));
    assert_eq!(egress, Egress::Port(POD_B));
    assert_eq!(out[36..38], 8080_u16.to_be_bytes());
    assert_eq!(bench.switch.flows().len(), 1);
}

/// The explanation and the pipeline are asked the same, and must say the same.
#[test]
fn explanations_say_what_the_pipeline_does() {
    let none = || service(Protocol::Tcp, vec![]);
    let local = || ServicePort {
        external_policy: TrafficPolicy::Local,
        ..service(Protocol::Tcp, ready(&[REMOTE]))
    };
    let tables = [
        vec![],
        vec![none()],
        vec![local()],
        vec![service(Protocol::Tcp, ready(&[B, REMOTE, NODE, WORLD]))],
        vec![service(Protocol::Tcp, ready(&[A]))],
    ];
    let clients = [(FROM_A, A), (FROM_HOST, GATEWAY), (FROM_HOST, "203.0.113.77")];
    let targets = [
        (VIP, 80),
        (VIP, 81),
        (NODE, 30080),
        (BALANCER, 80),
        (B, 80),
        ("10.244.1.99", 80),
        ("10.96.1.1", 80),
        (WORLD, 80),
    ];
    for services in tables {
        let mut bench = Bench::with_tables(serving(1, services.clone()));
        for (from, client) in clients {
            for (to, port) in targets {
                let question =
                    Question { from: ip(client), to: ip(to), port, protocol: Protocol::Tcp };
                let explanation = explain(&bench.tables, &question);
                // So that every refusal is told.
                bench.now += Duration::from_secs(1);
                // Many connections, so that every endpoint is chosen.
                for source in 1000..1060 {
                    let (reason, out) =
                        bench.reason_for(from, &tcp(from, (client, source), (to, port), SYN));
                    assert_eq!(reason, explanation.drop, "{question:?}: {explanation:?}");
                    match explanation.outcome {
                        Outcome::Drop => assert!(out.is_empty()),
                        Outcome::Reject => assert!(out.len() == 1, "{question:?}"),
                        Outcome::Forward => {
                            let (_, bytes) = single(out);
                            let (seen_as, endpoint) = ends(&bytes);
                            assert!(explanation.endpoints.contains(&endpoint), "{explanation:?}");
                            assert!(explanation.masquerade || seen_as.0 == ip(client));
                        }
                    }
                }
                if explanation.outcome == Outcome::Forward && explanation.service.is_some() {
                    let met: std::collections::BTreeSet<_> = bench
                        .switch
                        .flows()
                        .view(bench.now, 10_000, |flow| {
                            flow.client.0 == ip(client) && flow.frontend == (ip(to), port)
                        })
                        .into_iter()
                        .map(|flow| flow.endpoint)
                        .collect();
                    assert_eq!(met, explanation.endpoints.iter().copied().collect());
                }
            }
        }
    }
}

#[test]
fn an_explanation_names_service_endpoints_and_reason() {
    let tables = serving(1, vec![service(Protocol::Tcp, ready(&[B, REMOTE]))]);
    let question = |from: &str, to: &str, port| Question {
        from: ip(from),
        to: ip(to),
        port,
        protocol: Protocol::Tcp,
    };
    let found = explain(&tables, &question(A, VIP, 80));
    assert_eq!((found.outcome, found.service.as_deref()), (Outcome::Forward, Some("shop/web:TCP")));
    assert_eq!(found.endpoints, [end(B, 8080), end(REMOTE, 8080)]);
    assert_eq!(
        (found.masquerade, &*found.reason),
        (false, "any of the endpoints of the cluster (2 of 2 known)")
    );
    assert!(explain(&tables, &question(WORLD, NODE, 30080)).masquerade);
    let plain = explain(&tables, &question(A, B, 443));
    assert_eq!((plain.outcome, plain.endpoints), (Outcome::Forward, vec![end(B, 443)]));
    let nobody = explain(&tables, &question(A, "10.244.1.99", 443));
    assert_eq!((nobody.outcome, nobody.endpoints), (Outcome::Reject, vec![]));
}

#[test]
fn resets_and_errors_have_one_rate() {
    let mut bench = bench(Protocol::Tcp, &[]);
    let answered = (0..2000_u16)
        .filter(|port| {
            let syn = tcp(FROM_A, (A, 10_000 + port), (VIP, 80), SYN);
            !bench.run(FROM_A, &syn).is_empty()
        })
        .count();
    assert_eq!(answered, 1000);
    assert_eq!(bench.totals().dropped(Reason::NoEndpoint), 2000);
}
