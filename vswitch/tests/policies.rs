//! Packets of pods that policies apply to, through the whole pipeline: what passes, what ends and why, what its replies
//! do, and what the next packet does after a change.

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

mod common;

use std::sync::Arc;

use common::*;
use etherparse::{Icmpv4Type, IpNumber, TcpHeader};
use ipnetwork::IpNetwork;
use proptest::prelude::*;
use vswitch::frame::Ingress;
use vswitch::mac::Mac;
use vswitch::policy::{
    Action, BitSet, Block, Direction, Enforcement, Established, Isolation, Peers, PolicyName,
    PolicyTable, PolicyTableBuilder, PortMatch, Question, Rule, RuleName, RuleSet, RuleSetSpec,
    SelectorIx, Subject, Tier, Traffic, judge,
};
use vswitch::port::PortIx;
use vswitch::service::{
    Algorithm, Endpoint, EndpointState, Family, Frontend, Protocol, ServicePort,
    ServiceTableBuilder, TrafficPolicy,
};
use vswitch::tables::{Masquerade, Tables};
use vswitch::verdict::{Egress, Reason};
use vswitch::wire::checksum;

const A: &str = "10.244.1.2";
const B: &str = "10.244.1.3";
const SMALL: &str = "10.244.1.4";
const REMOTE: &str = "10.244.2.9";
const UNKNOWN: &str = "10.244.2.77";
/// By which the other node takes clients' places.
const OTHER_SWITCH: &str = "10.244.2.0";
const OTHER_GATEWAY: &str = "10.244.2.1";
const GATEWAY: &str = "10.244.1.1";
const NODE: &str = "192.0.2.1";
const WORLD: &str = "203.0.113.9";
const VIP: &str = "10.96.0.7";
const DNS: &str = "10.96.0.10";

const FROM_A: Ingress = Ingress::Port(POD_A);
const FROM_B: Ingress = Ingress::Port(POD_B);
const FROM_SMALL: Ingress = Ingress::Port(POD_SMALL);
const FROM_HOST: Ingress = Ingress::Port(PortIx::HOST);
const FROM_PEER: Ingress = Ingress::Node(PEER);

const WEB: SelectorIx = SelectorIx(3);
const ADMIN: SelectorIx = SelectorIx(70);

const EGRESS: Option<Reason> = Some(Reason::PolicyDeniedEgress);
const INGRESS: Option<Reason> = Some(Reason::PolicyDeniedIngress);
const PENDING: Option<Reason> = Some(Reason::PolicyPending);
const LOST: Option<Reason> = Some(Reason::FragmentUnknown);

fn peers(selectors: &[SelectorIx], blocks: &[&str]) -> Peers {
    let block = |text: &&str| Block { cidr: text.parse().unwrap(), except: vec![] };
    Peers::Some { selectors: selectors.to_vec(), blocks: blocks.iter().map(block).collect() }
}

fn rule(tier: Tier, action: Action, peers: Peers, ports: &[(Protocol, u16)]) -> Rule {
    let policy = PolicyName::new(tier, "shop/p");
    let port = |(protocol, port): &(Protocol, u16)| PortMatch {
        protocol: *protocol,
        ports: *port..=*port,
    };
    let name = RuleName::new(policy, Direction::Ingress, 0);
    Rule { name, action, peers, ports: ports.iter().map(port).collect() }
}

fn allow(peers: Peers, ports: &[(Protocol, u16)]) -> Rule {
    rule(Tier::Namespace, Action::Accept, peers, ports)
}

fn isolated(rules: Vec<Rule>) -> Option<Arc<RuleSet>> {
    let policies = vec![PolicyName::new(Tier::Namespace, "shop/p")];
    let namespace = Some(Isolation { policies, rules });
    Some(Arc::new(RuleSet::new(RuleSetSpec { namespace, ..RuleSetSpec::default() })))
}

fn pod(name: &str, selectors: &[SelectorIx]) -> Subject {
    let selectors: BitSet = selectors.iter().copied().collect();
    let (name, selectors) = (Arc::from(name), Arc::new(selectors));
    Subject { name, selectors, egress: None, ingress: None, audit: false }
}

/// A and the remote pod have the label, B and the small one have not; nobody is isolated.
fn subjects() -> Vec<(&'static str, Subject)> {
    vec![
        (A, pod("shop/a", &[WEB])),
        (B, pod("shop/b", &[])),
        (SMALL, pod("shop/small", &[])),
        (REMOTE, pod("shop/remote", &[WEB])),
    ]
}

/// The policies with one pod's rules changed.
fn policies(generation: u64, change: impl Fn(&str, &mut Subject)) -> PolicyTable {
    let mut builder = PolicyTableBuilder::new(Enforcement::On);
    for (address, mut subject) in subjects() {
        change(address, &mut subject);
        let subject = Arc::new(subject);
        builder.subject(ip(address), Arc::clone(&subject));
        if let Some(last) = address.strip_prefix("10.244.1.") {
            builder.subject(ip(&format!("fd00:10:244:1::{last}")), subject);
        }
    }
    builder.build(generation)
}

fn ingress_of(pod: &'static str, rules: Option<Arc<RuleSet>>) -> impl Fn(&str, &mut Subject) {
    move |address, subject| {
        if address == pod {
            subject.ingress.clone_from(&rules);
        }
    }
}

fn egress_of(pod: &'static str, rules: Option<Arc<RuleSet>>) -> impl Fn(&str, &mut Subject) {
    move |address, subject| {
        if address == pod {
            subject.egress.clone_from(&rules);
        }
    }
}

/// The node of the other tests, with these policies, and a Service of the given endpoints.
fn tables_of(policies: PolicyTable, established: Established, endpoints: &[&str]) -> Tables {
    let mut services = ServiceTableBuilder::new(vec!["10.96.0.0/16".parse().unwrap()]);
    services.answered(vec![ip(DNS)]);
    let endpoint = |address: &&str| Endpoint {
        address: ip(address),
        port: 8080,
        is_local: address.starts_with("10.244.1."),
        is_near: true,
        state: EndpointState::Ready,
    };
    let service = ServicePort {
        name: "shop/web:http".to_owned(),
        family: Family::V4,
        protocol: Protocol::Tcp,
        frontends: vec![
            Frontend::ClusterIp { address: ip(VIP), port: 80 },
            Frontend::NodePort { port: 30080 },
        ],
        endpoints: endpoints.iter().map(endpoint).collect(),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        algorithm: Algorithm::Maglev,
        affinity: None,
    };
    services.set(service).unwrap();
    let mut builder = tables_builder();
    builder.port(PortIx::HOST, host_port());
    builder.services(Arc::new(services.build(1)));
    builder.masquerade(Masquerade {
        v4: Some([10, 244, 1, 0].into()),
        v6: Some("fd00:10:244:1::".parse().unwrap()),
    });
    builder.policies(Arc::new(policies), established);
    builder.build()
}

fn bench(policies: PolicyTable) -> Bench {
    Bench::with_tables(tables_of(policies, Established::Recheck, &[]))
}

/// Who sends from this address: the ingress, and the MAC addresses that it sends with.
fn sender(source: &str) -> (Ingress, Mac, Mac) {
    match source {
        A => (FROM_A, MAC_A, Mac::ROUTER),
        B => (FROM_B, MAC_B, Mac::ROUTER),
        SMALL => (FROM_SMALL, MAC_SMALL, Mac::ROUTER),
        REMOTE | UNKNOWN | OTHER_SWITCH | OTHER_GATEWAY => (FROM_PEER, PEER_VTEP, VTEP),
        _ => (FROM_HOST, Mac::HOST, Mac::ROUTER),
    }
}

type End<'a> = (&'a str, u16);

const SYN: u8 = 2;
const ACK: u8 = 16;

fn tcp_bytes(source: End<'_>, destination: End<'_>, flags: u8) -> Vec<u8> {
    let (_, from, to) = sender(source.0);
    let mut header = TcpHeader::new(source.1, destination.1, 1000, 64_000);
    (header.syn, header.ack) = (flags & SYN != 0, flags & ACK != 0);
    let mut bytes = Vec::new();
    let step = with_ip(from, to, source.0, destination.0, 64);
    step.tcp_header(header).write(&mut bytes, &[]).unwrap();
    bytes
}

fn tcp(bench: &mut Bench, source: End<'_>, destination: End<'_>, flags: u8) -> Option<Reason> {
    bench.reason_for(sender(source.0).0, &tcp_bytes(source, destination, flags)).0
}

fn udp_bytes(source: End<'_>, destination: End<'_>, payload: &[u8]) -> Vec<u8> {
    let (_, from, to) = sender(source.0);
    let mut bytes = Vec::new();
    let step = with_ip(from, to, source.0, destination.0, 64);
    step.udp(source.1, destination.1).write(&mut bytes, payload).unwrap();
    bytes
}

fn datagram(bench: &mut Bench, source: End<'_>, destination: End<'_>) -> Option<Reason> {
    bench.reason_for(sender(source.0).0, &udp_bytes(source, destination, b"x")).0
}

fn raw(
    bench: &mut Bench,
    source: &str,
    destination: &str,
    protocol: u8,
    bytes: &[u8],
) -> Option<Reason> {
    let (ingress, from, to) = sender(source);
    let mut frame = Vec::new();
    let step = with_ip(from, to, source, destination, 64);
    step.write(&mut frame, IpNumber(protocol), bytes).unwrap();
    bench.reason_for(ingress, &frame).0
}

fn sctp(bench: &mut Bench, source: End<'_>, destination: End<'_>, chunk: u8) -> Option<Reason> {
    let mut bytes = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    bytes.extend([1, 2, 3, 4, 0, 0, 0, 0, chunk, 0, 0, 4]);
    raw(bench, source.0, destination.0, 132, &bytes)
}

/// An echo message: 8 asks, 0 answers.
fn echo(bench: &mut Bench, source: &str, destination: &str, kind: u8, id: u16) -> Option<Reason> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 1]);
    raw(bench, source, destination, 1, &bytes)
}

#[test]
fn what_no_rule_accepts_is_dropped_and_replies_pass() {
    let rules = isolated(vec![allow(peers(&[WEB], &[]), &[(Protocol::Tcp, 80)])]);
    let mut bench = bench(policies(1, ingress_of(B, rules)));
    assert_eq!(tcp(&mut bench, (A, 4000), (B, 80), SYN), None);
    assert_eq!(tcp(&mut bench, (B, 80), (A, 4000), SYN | ACK), None);
    assert_eq!(tcp(&mut bench, (A, 4000), (B, 80), ACK), None);
    assert_eq!(tcp(&mut bench, (REMOTE, 4000), (B, 80), SYN), None);
    assert_eq!(tcp(&mut bench, (A, 4000), (B, 81), SYN), INGRESS);
    assert_eq!(tcp(&mut bench, (SMALL, 4000), (B, 80), SYN), INGRESS);
    assert_eq!(tcp(&mut bench, (WORLD, 4000), (B, 80), SYN), INGRESS);
    assert_eq!(datagram(&mut bench, (A, 4000), (B, 80)), INGRESS);
    assert_eq!(sctp(&mut bench, (A, 4000), (B, 80), 1), INGRESS, "SCTP is not TCP");
    assert_eq!(raw(&mut bench, A, B, 47, &[0; 20]), INGRESS);
    // B itself may send anything, and is answered.
    for peer in [A, SMALL, REMOTE, WORLD] {
        assert_eq!(tcp(&mut bench, (B, 5000), (peer, 443), SYN), None);
        assert_eq!(tcp(&mut bench, (peer, 443), (B, 5000), SYN | ACK), None, "{peer}");
        assert_eq!(datagram(&mut bench, (B, 5001), (peer, 53)), None);
        assert_eq!(datagram(&mut bench, (peer, 53), (B, 5001)), None, "{peer}");
    }
    assert_eq!(datagram(&mut bench, (SMALL, 53), (B, 5002)), INGRESS, "nobody asked");
}

#[test]
fn a_pod_that_may_not_send_answers_and_no_more() {
    let mut bench = bench(policies(1, egress_of(A, isolated(vec![]))));
    assert_eq!(tcp(&mut bench, (B, 4000), (A, 80), SYN), None);
    assert_eq!(tcp(&mut bench, (A, 80), (B, 4000), SYN | ACK), None);
    assert_eq!(tcp(&mut bench, (A, 80), (B, 4001), SYN), EGRESS);
    assert_eq!(tcp(&mut bench, (A, 4000), (WORLD, 80), SYN), EGRESS);
    assert_eq!(datagram(&mut bench, (A, 4000), (REMOTE, 80)), EGRESS);
    assert_eq!(sctp(&mut bench, (B, 5000), (A, 7), 1), None);
    assert_eq!(sctp(&mut bench, (A, 7), (B, 5000), 2), None, "an INIT ACK");
    assert_eq!(sctp(&mut bench, (A, 7), (B, 5000), 1), EGRESS, "an INIT is no answer");
    assert_eq!(echo(&mut bench, B, A, 8, 9), None);
    assert_eq!(echo(&mut bench, A, B, 0, 9), None);
    assert_eq!(echo(&mut bench, A, B, 8, 9), EGRESS);
    assert_eq!(echo(&mut bench, A, B, 0, 10), EGRESS, "nobody asked");
    assert_eq!(raw(&mut bench, B, A, 47, &[0; 20]), None);
    assert_eq!(raw(&mut bench, A, B, 47, &[0; 20]), None, "GRE has nothing to tell flows apart");
    assert_eq!(raw(&mut bench, A, REMOTE, 47, &[0; 20]), EGRESS);
}

#[test]
fn a_request_against_a_flow_is_no_reply() {
    // A colludes: it makes a flow towards B look like one from B, and then asks for a connection.
    let mut bench = bench(policies(1, ingress_of(B, isolated(vec![]))));
    assert_eq!(tcp(&mut bench, (A, 80), (B, 4000), ACK), None, "taken for a reply");
    assert_eq!(tcp(&mut bench, (A, 80), (B, 4000), SYN), INGRESS);
    assert_eq!(tcp(&mut bench, (B, 4000), (A, 80), SYN), None);
    assert_eq!(tcp(&mut bench, (A, 80), (B, 4000), SYN), INGRESS);
    assert_eq!(tcp(&mut bench, (A, 80), (B, 4000), SYN | ACK), None);
    assert_eq!(echo(&mut bench, B, A, 8, 0), None);
    assert_eq!(echo(&mut bench, A, B, 0, 0), None);
    assert_eq!(echo(&mut bench, A, B, 8, 0), INGRESS);
}

#[test]
fn connections_outlive_a_restart_and_nothing_else_gets_in() {
    // Nothing is remembered: the server's segments come first.
    let mut restarted = bench(policies(1, ingress_of(B, isolated(vec![]))));
    assert_eq!(tcp(&mut restarted, (REMOTE, 80), (B, 4000), ACK), None);
    assert_eq!(tcp(&mut restarted, (B, 4000), (REMOTE, 80), ACK), None);
    assert_eq!(datagram(&mut restarted, (REMOTE, 80), (B, 4000)), INGRESS);
    assert_eq!(sctp(&mut restarted, (REMOTE, 80), (B, 4000), 0), INGRESS);
    // Where neither direction is allowed, nothing is taken for a reply.
    let shut = policies(1, |address, subject| {
        if address == B {
            (subject.ingress, subject.egress) = (isolated(vec![]), isolated(vec![]));
        }
    });
    let mut restarted = bench(shut);
    assert_eq!(tcp(&mut restarted, (REMOTE, 80), (B, 4000), ACK), INGRESS);
}

/// The error that `source` sends `destination` about the packet in `about`.
fn unreachable(source: &str, destination: &str, about: &[u8]) -> Vec<u8> {
    let (_, from, to) = sender(source);
    let mut bytes = Vec::new();
    let kind = Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
    let step = with_ip(from, to, source, destination, 64);
    step.icmpv4(kind).write(&mut bytes, &about[14..(14 + 28).min(about.len())]).unwrap();
    bytes
}

#[test]
fn errors_about_a_flow_pass_and_others_do_not() {
    let mut bench = bench(policies(1, ingress_of(B, isolated(vec![]))));
    let sent = udp_bytes((B, 5000), (REMOTE, 53), b"x");
    assert_eq!(bench.reason_for(FROM_B, &sent).0, None);
    for teller in [REMOTE, OTHER_GATEWAY] {
        assert_eq!(bench.reason_for(FROM_PEER, &unreachable(teller, B, &sent)).0, None, "{teller}");
    }
    let never = udp_bytes((B, 5001), (REMOTE, 53), b"x");
    assert_eq!(bench.reason_for(FROM_PEER, &unreachable(REMOTE, B, &never)).0, INGRESS);
    let foreign = udp_bytes((A, 5000), (REMOTE, 53), b"x");
    assert_eq!(bench.reason_for(FROM_PEER, &unreachable(REMOTE, B, &foreign)).0, INGRESS);
    // About an echo request, too.
    assert_eq!(echo(&mut bench, B, REMOTE, 8, 77), None);
    let mut asked = sent.clone();
    asked[23] = 1;
    asked.truncate(34);
    asked.extend([8, 0, 0, 0, 0, 77, 0, 1]);
    assert_eq!(bench.reason_for(FROM_PEER, &unreachable(REMOTE, B, &asked)).0, None);
}

#[test]
fn a_change_stops_what_is_not_allowed_any_more_in_both_directions() {
    let open = || isolated(vec![allow(Peers::Everybody, &[])]);
    for (established, stops) in [(Established::Recheck, true), (Established::Keep, false)] {
        for first_from_server in [false, true] {
            let before = tables_of(policies(1, ingress_of(B, open())), established, &[]);
            let mut bench = Bench::with_tables(before);
            assert_eq!(tcp(&mut bench, (A, 4000), (B, 80), SYN), None);
            assert_eq!(tcp(&mut bench, (B, 80), (A, 4000), SYN | ACK), None);
            let closed = policies(2, ingress_of(B, isolated(vec![])));
            bench.tables = tables_of(closed, established, &[]);
            let expected = if stops { INGRESS } else { None };
            if first_from_server {
                assert_eq!(tcp(&mut bench, (B, 80), (A, 4000), ACK), expected);
            }
            assert_eq!(tcp(&mut bench, (A, 4000), (B, 80), SYN), expected, "{established:?}");
            assert_eq!(tcp(&mut bench, (A, 4001), (B, 80), SYN), INGRESS);
            // What is allowed by the new ones goes on.
            bench.tables = tables_of(policies(3, ingress_of(B, open())), established, &[]);
            assert_eq!(tcp(&mut bench, (A, 4000), (B, 80), ACK), None);
        }
    }
}

#[test]
fn what_a_change_has_stopped_is_taken_for_no_other_flow() {
    let open = || isolated(vec![allow(Peers::Everybody, &[])]);
    let (client, server) = ((A, 4000), (B, 80));
    for denied in [INGRESS, EGRESS] {
        let of = |generation, rules| {
            let policies = if denied == INGRESS {
                policies(generation, ingress_of(B, rules))
            } else {
                policies(generation, egress_of(A, rules))
            };
            tables_of(policies, Established::Recheck, &[])
        };
        // The other direction is allowed: either end's segments would pass if they were of no flow.
        for ends in [[client, server], [server, client]] {
            let mut bench = Bench::with_tables(of(1, open()));
            assert_eq!(tcp(&mut bench, client, server, SYN), None);
            assert_eq!(tcp(&mut bench, server, client, SYN | ACK), None);
            assert_eq!(tcp(&mut bench, client, server, ACK), None);
            assert_eq!(datagram(&mut bench, client, server), None);
            assert_eq!(datagram(&mut bench, server, client), None);
            bench.tables = of(2, isolated(vec![]));
            for turn in 0..3 {
                for (from, to) in [(ends[0], ends[1]), (ends[1], ends[0])] {
                    assert_eq!(tcp(&mut bench, from, to, ACK), denied, "{from:?}, {turn}");
                    assert_eq!(datagram(&mut bench, from, to), denied, "{from:?}, {turn}");
                }
            }
            assert_eq!(bench.switch.flows().len(), 2);
            // Once it is allowed again, it goes on.
            bench.tables = of(3, open());
            assert_eq!(tcp(&mut bench, ends[0], ends[1], ACK), None);
            assert_eq!(datagram(&mut bench, ends[0], ends[1]), None);
            // The server may make a connection between the same ports.
            bench.tables = of(4, isolated(vec![]));
            assert_eq!(tcp(&mut bench, client, server, ACK), denied);
            assert_eq!(tcp(&mut bench, server, client, SYN), None);
            assert_eq!(tcp(&mut bench, client, server, SYN | ACK), None);
            assert_eq!(tcp(&mut bench, client, server, SYN), denied);
            assert_eq!(bench.switch.flows().len(), 2);
        }
    }
}

#[test]
fn services_are_judged_by_who_really_serves_and_who_really_asks() {
    let web = || isolated(vec![allow(peers(&[WEB], &[]), &[(Protocol::Tcp, 8080)])]);
    let of = |endpoint: &str, policies| {
        Bench::with_tables(tables_of(policies, Established::Recheck, &[endpoint]))
    };
    let mut ours = of(B, policies(1, ingress_of(B, web())));
    assert_eq!(tcp(&mut ours, (A, 4000), (VIP, 80), SYN), None);
    assert_eq!(tcp(&mut ours, (B, 8080), (A, 4000), SYN | ACK), None);
    assert_eq!(tcp(&mut ours, (SMALL, 4000), (VIP, 80), SYN), INGRESS);
    assert_eq!(tcp(&mut ours, (SMALL, 4000), (VIP, 80), SYN), INGRESS, "the flow is not kept");
    assert_eq!(tcp(&mut ours, (WORLD, 4000), (NODE, 30080), SYN), INGRESS);
    assert_eq!(tcp(&mut ours, (B, 4000), (VIP, 80), SYN), None, "itself, by way of the Service");

    // The egress rule is about the endpoint and its port, not about the Service's.
    let to = |port| isolated(vec![allow(peers(&[], &["10.244.1.3/32"]), &[(Protocol::Tcp, port)])]);
    let mut theirs = of(B, policies(1, egress_of(A, to(8080))));
    assert_eq!(tcp(&mut theirs, (A, 4000), (VIP, 80), SYN), None);
    let mut theirs = of(B, policies(1, egress_of(A, to(80))));
    assert_eq!(tcp(&mut theirs, (A, 4000), (VIP, 80), SYN), EGRESS);

    // A pod elsewhere does not see who asks from outside: this node judges for it.
    let world = || isolated(vec![allow(peers(&[], &["203.0.113.0/28"]), &[])]);
    let mut far = of(REMOTE, policies(1, ingress_of(REMOTE, world())));
    assert_eq!(tcp(&mut far, (WORLD, 4000), (NODE, 30080), SYN), None);
    assert_eq!(tcp(&mut far, ("203.0.113.99", 4000), (NODE, 30080), SYN), INGRESS);
    assert_eq!(tcp(&mut far, (A, 4000), (VIP, 80), SYN), None, "left to the pod's own node");
    let mut nobody = of(UNKNOWN, policies(1, |_, _| {}));
    assert_eq!(tcp(&mut nobody, (WORLD, 4000), (NODE, 30080), SYN), PENDING);

    // And what another node's switch has let through passes, from that node alone.
    let mut near = of(B, policies(1, ingress_of(B, isolated(vec![]))));
    assert_eq!(tcp(&mut near, (OTHER_SWITCH, 4000), (B, 8080), SYN), None);
    assert_eq!(tcp(&mut near, (OTHER_GATEWAY, 4000), (B, 8080), SYN), INGRESS);
    let forged = tcp_bytes((OTHER_SWITCH, 4000), (B, 8080), SYN);
    assert_eq!(near.reason_for(Ingress::Node(OTHER_PEER), &forged).0, Some(Reason::VxlanSource));
}

#[test]
fn a_change_of_policy_reaches_flows_of_services() {
    let all = || isolated(vec![allow(Peers::Everybody, &[])]);
    let of = |generation, rules| {
        tables_of(policies(generation, ingress_of(B, rules)), Established::Recheck, &[B])
    };
    let mut bench = Bench::with_tables(of(1, all()));
    assert_eq!(tcp(&mut bench, (SMALL, 4000), (VIP, 80), SYN), None);
    assert_eq!(tcp(&mut bench, (B, 8080), (SMALL, 4000), SYN | ACK), None);
    bench.tables = of(2, isolated(vec![]));
    assert_eq!(tcp(&mut bench, (B, 8080), (SMALL, 4000), ACK), INGRESS);
    assert_eq!(tcp(&mut bench, (SMALL, 4000), (VIP, 80), ACK), INGRESS);
    assert_eq!(tcp(&mut bench, (B, 8080), (SMALL, 4000), ACK), INGRESS, "and not as B's own");
    bench.tables = of(3, None);
    assert_eq!(tcp(&mut bench, (SMALL, 4001), (VIP, 80), SYN), None);
}

#[test]
fn an_address_that_becomes_a_services_does_so_for_its_next_packet_whatever_replies_come_first() {
    let external = |name: &str, address: &str, port| ServicePort {
        name: name.to_owned(),
        family: Family::V4,
        protocol: Protocol::Tcp,
        frontends: vec![Frontend::ExternalIp { address: ip(address), port }],
        endpoints: vec![Endpoint {
            address: ip(B),
            port: 8080,
            is_local: true,
            is_near: true,
            state: EndpointState::Ready,
        }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        algorithm: Algorithm::Maglev,
        affinity: None,
    };
    let tables = |generation, services: Vec<ServicePort>| {
        let mut table = ServiceTableBuilder::new(vec![]);
        services.into_iter().for_each(|service| table.set(service).unwrap());
        let mut builder = tables_builder();
        builder.port(PortIx::HOST, host_port());
        builder.services(Arc::new(table.build(generation)));
        let rules = isolated(vec![allow(Peers::Everybody, &[])]);
        builder.policies(Arc::new(policies(1, egress_of(A, rules))), Established::Recheck);
        builder.build()
    };
    // A port of A's own address is a Service's, so replies to A have to be looked at, too.
    let own = || external("shop/own:", A, 9999);
    let mut bench = Bench::with_tables(tables(1, vec![own()]));
    let egress = |bench: &mut Bench, source: End<'_>, destination: End<'_>, flags| {
        let out = bench.run(sender(source.0).0, &tcp_bytes(source, destination, flags));
        out.into_iter().map(|(egress, _)| egress).collect::<Vec<_>>()
    };
    let (client, world) = ((A, 4000), (WORLD, 80));
    assert_eq!(egress(&mut bench, client, world, SYN), [Egress::Port(PortIx::HOST)]);
    assert_eq!(egress(&mut bench, world, client, SYN | ACK), [Egress::Port(POD_A)]);
    bench.tables = tables(2, vec![own(), external("shop/taken:", WORLD, 80)]);
    assert_eq!(egress(&mut bench, world, client, ACK), [Egress::Port(POD_A)]);
    assert_eq!(egress(&mut bench, client, world, ACK), [Egress::Port(POD_B)]);
}

#[test]
fn a_pod_and_its_own_node_always_reach_each_other() {
    let shut = policies(1, |address, subject| {
        if address == B {
            (subject.ingress, subject.egress) = (isolated(vec![]), isolated(vec![]));
        }
    });
    let mut bench = bench(shut);
    for own in [GATEWAY, NODE] {
        assert_eq!(tcp(&mut bench, (own, 4000), (B, 80), SYN), None, "a probe");
        assert_eq!(tcp(&mut bench, (B, 80), (own, 4000), SYN | ACK), None);
        assert_eq!(tcp(&mut bench, (B, 4000), (own, 10250), SYN), None);
    }
    assert_eq!(datagram(&mut bench, (B, 4000), (DNS, 53)), None, "the node answers there");
    assert_eq!(tcp(&mut bench, (OTHER_GATEWAY, 4000), (B, 80), SYN), INGRESS, "not its own");
    assert_eq!(tcp(&mut bench, (B, 4000), ("192.0.2.2", 10250), SYN), EGRESS, "not its own");
}

#[test]
fn fragments_follow_the_first() {
    let rules = isolated(vec![allow(Peers::Everybody, &[(Protocol::Udp, 53)])]);
    let mut bench = bench(policies(1, ingress_of(B, rules)));
    let fragment = |port, id: u16, more: bool, offset: u16| {
        let mut bytes = udp_bytes((A, 4000), (B, port), &[1; 40]);
        let field = (offset / 8) | if more { 0x2000 } else { 0 };
        bytes[18..20].copy_from_slice(&id.to_be_bytes());
        bytes[20..22].copy_from_slice(&field.to_be_bytes());
        checksum::set_ipv4_header(&mut bytes[14..34]);
        bytes
    };
    let mut run = |bytes: Vec<u8>| bench.reason_for(FROM_A, &bytes).0;
    assert_eq!(run(fragment(53, 7, false, 48)), LOST, "before the first");
    assert_eq!(run(fragment(53, 7, true, 0)), None);
    assert_eq!(run(fragment(53, 7, false, 48)), None);
    assert_eq!(run(fragment(54, 8, true, 0)), INGRESS);
    assert_eq!(run(fragment(54, 8, false, 48)), LOST);
    // A first fragment that ends within its header.
    let mut cut = tcp_bytes((A, 4000), (B, 80), SYN);
    cut.truncate(34 + 8);
    cut[16..18].copy_from_slice(&28_u16.to_be_bytes());
    cut[20..22].copy_from_slice(&0x2000_u16.to_be_bytes());
    checksum::set_ipv4_header(&mut cut[14..34]);
    assert_eq!(run(cut), LOST);
}

/// An IPv6 packet from A to B with these headers behind the first, whose type is `next`.
fn six(next: u8, behind: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let step = with_ip(MAC_A, Mac::ROUTER, "fd00:10:244:1::2", "fd00:10:244:1::3", 64);
    // Any number will do: another is written over it.
    step.write(&mut bytes, IpNumber(253), behind).unwrap();
    bytes[14 + 6] = next;
    bytes
}

#[test]
fn extension_headers_hide_nothing() {
    let rules = isolated(vec![allow(Peers::Everybody, &[(Protocol::Udp, 53)])]);
    let mut bench = bench(policies(1, ingress_of(B, rules)));
    let datagram = |port: u16| [&[0x0f, 0xa0][..], &port.to_be_bytes(), &[0, 8, 0, 0]].concat();
    let options = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = |next: u8, field: u16, id: u8| {
        let [a, b] = field.to_be_bytes();
        vec![next, 0, a, b, 0, 0, 0, id]
    };
    let mut run = |bytes: Vec<u8>| bench.reason_for(FROM_A, &bytes).0;
    for (port, expected) in [(53, None), (54, INGRESS)] {
        let datagram = datagram(port);
        assert_eq!(run(six(17, &datagram)), expected);
        for header in [0, 60] {
            assert_eq!(run(six(header, &[options(17), datagram.clone()].concat())), expected);
        }
        let route = vec![17, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(run(six(43, &[route, datagram.clone()].concat())), expected);
        let chain = [options(60), options(44), fragment(17, 0, 1), datagram.clone()].concat();
        assert_eq!(run(six(0, &chain)), expected, "an atomic fragment");
        let first = [fragment(17, 1, 2), datagram].concat();
        assert_eq!(run(six(44, &first)), expected);
        assert_eq!(run(six(44, &[fragment(17, 8, 3), vec![0; 8]].concat())), LOST);
        if port == 53 {
            assert_eq!(run(six(44, &[fragment(17, 8, 2), vec![0; 8]].concat())), None);
        }
    }
    // A fragment in a fragment could hide one behind the other.
    let nested = [fragment(44, 1, 5), fragment(17, 1, 6), datagram(53)].concat();
    assert_eq!(run(six(44, &nested)), Some(Reason::Malformed));
    for unknown in [50, 59, 135, 253] {
        assert_eq!(run(six(unknown, &datagram(53))), INGRESS, "{unknown}: no ports, so no rule");
    }
}

#[test]
fn a_pod_that_nobody_knows_is_shut_off_until_somebody_does() {
    let mut unborn = policies(1, |_, _| {}).edit();
    unborn.remove_subject(ip(B));
    let mut bench = bench(unborn.build(2));
    for peer in [A, REMOTE, WORLD, GATEWAY] {
        assert_eq!(tcp(&mut bench, (B, 4000), (peer, 80), SYN), PENDING, "{peer}");
        assert_eq!(tcp(&mut bench, (peer, 4000), (B, 80), SYN), PENDING, "{peer}");
    }
    assert_eq!(tcp(&mut bench, (A, 4000), (REMOTE, 80), SYN), None);
    bench.tables = tables_of(policies(3, |_, _| {}), Established::Recheck, &[]);
    assert_eq!(tcp(&mut bench, (A, 4000), (B, 80), SYN), None);
    // Where there cannot be any policies, nobody is waited for.
    bench.tables = tables_of(PolicyTable::off(), Established::Recheck, &[]);
    assert_eq!(tcp(&mut bench, (B, 4000), (A, 80), SYN), None);
}

#[test]
fn who_is_not_known_yet_does_not_slip_past_a_rule_about_labels() {
    let admin = |action, peers| {
        let admin = vec![rule(Tier::Admin, action, peers, &[])];
        Some(Arc::new(RuleSet::new(RuleSetSpec { admin, ..RuleSetSpec::default() })))
    };
    let mut denies = bench(policies(1, ingress_of(B, admin(Action::Deny, peers(&[ADMIN], &[])))));
    assert_eq!(tcp(&mut denies, (UNKNOWN, 4000), (B, 80), SYN), PENDING);
    assert_eq!(tcp(&mut denies, (REMOTE, 4000), (B, 80), SYN), None, "known to be no such");
    assert_eq!(tcp(&mut denies, (OTHER_GATEWAY, 4000), (B, 80), SYN), None, "no pod");
    assert_eq!(tcp(&mut denies, (WORLD, 4000), (B, 80), SYN), None, "no pod");
    // A rule about addresses needs no labels; one that accepts labels accepts nobody without.
    let blocks = admin(Action::Deny, peers(&[], &["10.244.2.128/25"]));
    let mut by_address = bench(policies(1, ingress_of(B, blocks)));
    assert_eq!(tcp(&mut by_address, (UNKNOWN, 4000), (B, 80), SYN), None);
    let accepts = isolated(vec![allow(peers(&[ADMIN], &[]), &[])]);
    let mut by_label = bench(policies(1, ingress_of(B, accepts)));
    assert_eq!(tcp(&mut by_label, (UNKNOWN, 4000), (B, 80), SYN), INGRESS);
}

#[test]
fn a_denial_says_who_what_and_why() {
    let isolating = isolated(vec![]);
    let mut bench = bench(policies(1, ingress_of(B, isolating.clone())));
    assert_eq!(tcp(&mut bench, (SMALL, 4000), (B, 81), SYN), INGRESS);
    let flows = Arc::clone(bench.switch.flows());
    let denial = flows.denials().take().unwrap();
    assert_eq!(denial.direction, Direction::Ingress);
    assert_eq!((denial.from, denial.to, denial.port), (ip(SMALL), ip(B), 81));
    assert_eq!(&*denial.subject.name, "shop/b");
    assert_eq!(&*denial.peer.as_ref().unwrap().name, "shop/small");
    assert!(denial.rule.is_none() && !denial.is_audited);
    assert_eq!(denial.isolating()[0].as_str(), "shop/p");
    assert_eq!(isolating.unwrap().isolating()[0].denied(Direction::Ingress), 1);
    // The ring is bounded, and says what it lost.
    for port in 0..1000 {
        assert_eq!(tcp(&mut bench, (SMALL, 4000), (B, port), SYN), INGRESS);
    }
    let waiting = std::iter::from_fn(|| flows.denials().take()).count();
    assert_eq!(u64::try_from(waiting).unwrap() + flows.denials().take_lost(), 1000);
    assert_eq!(flows.len(), 0, "what is denied takes no room");
}

#[test]
fn an_audit_counts_and_lets_pass() {
    let mut audited = bench(policies(1, |address, subject| {
        if address == B {
            subject.ingress = isolated(vec![]);
            subject.audit = true;
        }
    }));
    assert_eq!(tcp(&mut audited, (SMALL, 4000), (B, 81), SYN), None);
    let denial = audited.switch.flows().denials().take().unwrap();
    assert!(denial.is_audited);
    assert_eq!(denial.isolating()[0].denied(Direction::Ingress), 1);
    assert_eq!(tcp(&mut audited, (B, 81), (SMALL, 4000), SYN | ACK), None);
}

#[test]
fn pods_without_rules_leave_no_trace() {
    let mut bench = bench(policies(1, ingress_of(SMALL, isolated(vec![]))));
    assert_eq!(tcp(&mut bench, (A, 4000), (B, 80), SYN), None);
    assert_eq!(datagram(&mut bench, (A, 4000), (WORLD, 80)), None);
    assert_eq!(bench.switch.flows().len(), 0);
    assert_eq!(tcp(&mut bench, (SMALL, 4000), (B, 80), SYN), None);
    assert_eq!(bench.switch.flows().len(), 1);
}

/// Rules of every kind about the few who are here.
fn rule_sets() -> impl Strategy<Value = Option<Arc<RuleSet>>> {
    let blocks = prop::sample::select(
        &["10.244.1.0/29", "10.244.2.0/24", "203.0.113.0/24", "0.0.0.0/0"][..],
    );
    let except = prop::option::of(prop::sample::select(&["10.244.1.2/32", "203.0.113.9/32"][..]));
    let block = (blocks, except).prop_map(|(cidr, except)| {
        let except: Vec<IpNetwork> = except.iter().map(|text| text.parse().unwrap()).collect();
        Peers::Some {
            selectors: vec![],
            blocks: vec![Block { cidr: cidr.parse().unwrap(), except }],
        }
    });
    let who = prop_oneof![
        Just(Peers::Everybody),
        Just(peers(&[WEB], &[])),
        Just(peers(&[ADMIN], &[])),
        block
    ];
    let port =
        prop::sample::select(&[(Protocol::Tcp, 80), (Protocol::Udp, 80), (Protocol::Tcp, 81)][..]);
    let action = prop::sample::select(&[Action::Accept, Action::Deny, Action::Pass][..]);
    let rules = |tier| {
        let one = (action.clone(), who.clone(), prop::collection::vec(port.clone(), 0..3));
        prop::collection::vec(one, 0..4).prop_map(move |rules| {
            let rules = rules.into_iter().map(|(action, peers, ports)| {
                let action = if tier == Tier::Namespace { Action::Accept } else { action };
                rule(tier, action, peers, &ports)
            });
            rules.collect::<Vec<_>>()
        })
    };
    let namespace = prop::option::of(rules(Tier::Namespace));
    let spec = (rules(Tier::Admin), namespace, rules(Tier::Baseline));
    prop::option::of(spec.prop_map(|(admin, namespace, baseline)| {
        let isolation =
            |rules| Isolation { policies: vec![PolicyName::new(Tier::Namespace, "p")], rules };
        let namespace = namespace.map(isolation);
        Arc::new(RuleSet::new(RuleSetSpec { admin, namespace, baseline }))
    }))
}

proptest! {
    /// The data path and the explanation are one function, whatever way a packet takes to it.
    #[test]
    fn a_first_packet_fares_as_the_judgement_says(
        sets in prop::collection::vec((rule_sets(), rule_sets()), 4),
        via_service in any::<bool>(),
    ) {
        let mut subjects: Vec<_> = subjects();
        for ((_, subject), (egress, ingress)) in subjects.iter_mut().zip(&sets) {
            (subject.egress, subject.ingress) = (egress.clone(), ingress.clone());
        }
        let mut builder = PolicyTableBuilder::new(Enforcement::On);
        for (address, subject) in &subjects {
            builder.subject(ip(address), Arc::new(subject.clone()));
            if let Some(last) = address.strip_prefix("10.244.1.") {
                builder.subject(ip(&format!("fd00:10:244:1::{last}")), Arc::new(subject.clone()));
            }
        }
        let table = builder.build(1);
        let mut source_port = 4000;
        for from in [A, B, SMALL, REMOTE, WORLD] {
            for to in [A, B, SMALL, REMOTE, WORLD] {
                let is_here = |address: &str| address.starts_with("10.244.1.");
                if from == to || !(is_here(from) || is_here(to)) {
                    continue;
                }
                for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 80), (Protocol::Sctp, 80), (Protocol::Tcp, 81)] {
                    source_port += 1;
                    let serves = via_service && is_here(from) && to != WORLD && protocol == Protocol::Tcp;
                    let judged_port = if serves { 8080 } else { port };
                    let question = Question {
                        from: ip(from),
                        to: ip(to),
                        traffic: Traffic::Port { protocol, port: judged_port },
                        is_own_node: false,
                    };
                    let judgement = judge(&table, &question);
                    let denied = if is_here(from) && !judgement.egress.passes() {
                        EGRESS
                    } else if is_here(to) && !judgement.ingress.passes() {
                        INGRESS
                    } else {
                        None
                    };
                    let endpoints: &[&str] = if serves { &[to] } else { &[] };
                    let mut bench = Bench::with_tables(tables_of(table.clone(), Established::Recheck, endpoints));
                    let target = if serves { (VIP, 80) } else { (to, port) };
                    let found = match protocol {
                        Protocol::Tcp => tcp(&mut bench, (from, source_port), target, SYN),
                        Protocol::Udp => datagram(&mut bench, (from, source_port), target),
                        Protocol::Sctp => sctp(&mut bench, (from, source_port), target, 1),
                    };
                    prop_assert_eq!(found, denied, "{} → {} {}/{}", from, to, protocol, judged_port);
                }
            }
        }
    }
}
