//! Every combination of caller, frontend, policies and endpoints, against kube-proxy's rules written down
//! naively; and what else a table of Services promises.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::mac::Mac;
use crate::port::PortIx;
use crate::tables::{Node, Peer, PortEntry, PortKind, Tables, TablesBuilder};
use crate::verdict::Reason;

const CLUSTER_IP: &str = "10.96.0.7";
const EXTERNAL_IP: &str = "198.51.100.7";
const BALANCER: &str = "198.51.100.8";
const NODE: &str = "192.0.2.1";
const OTHER_NODE: &str = "192.0.2.2";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn endpoint(text: &str, state: EndpointState) -> Endpoint {
    let address = ip(text);
    let is_local = text.starts_with("10.244.1.");
    Endpoint { address, port: 8080, is_local, is_near: true, state }
}

fn service(endpoints: Vec<Endpoint>) -> ServicePort {
    ServicePort {
        name: "shop/web:http".to_owned(),
        family: Family::V4,
        protocol: Protocol::Tcp,
        frontends: vec![
            Frontend::ClusterIp { address: ip(CLUSTER_IP), port: 80 },
            Frontend::ExternalIp { address: ip(EXTERNAL_IP), port: 80 },
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

fn builder() -> ServiceTableBuilder {
    ServiceTableBuilder::new(vec!["10.96.0.0/16".parse().unwrap()])
}

fn tables(services: Vec<ServicePort>) -> Tables {
    let mut table = builder();
    services.into_iter().for_each(|service| table.set(service).unwrap());
    let node = Node {
        vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
        gateway_v4: Some(Ipv4Addr::new(10, 244, 1, 1)),
        gateway_v6: None,
        underlay: Some(ip(NODE)),
        vxlan_port: 4789,
        gossip_port: 7946,
    };
    let mut builder = TablesBuilder::new(1, node, &["10.244.0.0/16".parse().unwrap()]);
    let mut port = |ix, kind, addresses: &[&str]| {
        let addresses = addresses.iter().map(|text| ip(text)).collect();
        builder.port(PortIx(ix), PortEntry { kind, mac: Mac::HOST, mtu: 1450, addresses });
    };
    port(0, PortKind::Host, &["10.244.1.1", NODE]);
    port(1, PortKind::Pod, &["10.244.1.2"]);
    port(2, PortKind::Pod, &["10.244.1.3"]);
    builder.peer(Peer {
        name: "b".to_owned(),
        underlay: format!("{OTHER_NODE}:4789").parse().unwrap(),
        vtep_mac: Mac([2, 0, 0, 0, 0, 2]),
        mtu: 1450,
        leases: vec!["10.244.2.0/24".parse().unwrap()],
    });
    builder.services(Arc::new(table.build(1)));
    builder.build()
}

/// What a client learns: the endpoints that may serve it, or how it is turned away.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Endpoints(BTreeSet<IpAddr>),
    Reject(Reason),
    Drop(Reason),
    Pass,
}

fn outcome(tables: &Tables, class: Class, source: &str, to: &str, port: u16) -> Outcome {
    let target = Target { address: ip(to), port: Some((Protocol::Tcp, port)) };
    match decide(tables, class, ip(source), target) {
        Decision::Pass => Outcome::Pass,
        Decision::Choose(choice) => Outcome::Endpoints(
            choice.service.members(choice.pool).map(|endpoint| endpoint.address).collect(),
        ),
        Decision::Refuse(Refusal { reason, is_told: true, .. }) => Outcome::Reject(reason),
        Decision::Refuse(Refusal { reason, is_told: false, .. }) => Outcome::Drop(reason),
    }
}

/// kube-proxy's rules, in the order of its chains (nftables mode): the endpoints of each policy with the fallback
/// to terminating ones, the short cut for clients inside, reject without endpoints, drop without local ones.
fn oracle(spec: &ServicePort, class: Class, kind: FrontendKind) -> Outcome {
    let of = |filter: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<IpAddr> {
        spec.endpoints.iter().filter(|e| filter(e)).map(|e| e.address).collect()
    };
    let or = |first: BTreeSet<IpAddr>, second: BTreeSet<IpAddr>| {
        if first.is_empty() { second } else { first }
    };
    let cluster =
        or(of(&|e| e.state == EndpointState::Ready), of(&|e| e.state == EndpointState::Draining));
    let local = or(
        of(&|e| e.is_local && e.state == EndpointState::Ready),
        of(&|e| e.is_local && e.state == EndpointState::Draining),
    );
    if cluster.is_empty() {
        return Outcome::Reject(Reason::NoEndpoint);
    }
    let is_local = if kind == FrontendKind::ClusterIp {
        spec.internal_policy == TrafficPolicy::Local
    } else {
        spec.external_policy == TrafficPolicy::Local && class == Class::Outside
    };
    match (is_local, local.is_empty()) {
        (false, _) => Outcome::Endpoints(cluster),
        (true, false) => Outcome::Endpoints(local),
        (true, true) => Outcome::Drop(Reason::NoLocalEndpoint),
    }
}

#[test]
fn every_combination_ends_as_with_kube_proxy() {
    use EndpointState::{Draining, Ready, Unavailable};
    const STATES: [Option<EndpointState>; 4] =
        [None, Some(Ready), Some(Draining), Some(Unavailable)];
    const POLICIES: [TrafficPolicy; 2] = [TrafficPolicy::Cluster, TrafficPolicy::Local];
    let callers = [
        (Class::Pod, "10.244.1.2"),
        (Class::Node, "10.244.1.1"),
        (Class::Node, NODE),
        (Class::Outside, "203.0.113.9"),
        (Class::Outside, OTHER_NODE),
    ];
    let frontends = [
        (FrontendKind::ClusterIp, CLUSTER_IP, 80),
        (FrontendKind::ExternalIp, EXTERNAL_IP, 80),
        (FrontendKind::LoadBalancer, BALANCER, 80),
        (FrontendKind::NodePort, NODE, 30080),
    ];
    let mut seen = 0;
    // Two endpoints here and one on another node, each there or not, in any state.
    for states in (0..64).map(|n| [STATES[n % 4], STATES[n / 4 % 4], STATES[n / 16]]) {
        let addresses = ["10.244.1.2", "10.244.1.3", "10.244.2.9"];
        let endpoints: Vec<Endpoint> = addresses
            .into_iter()
            .zip(states)
            .filter_map(|(address, state)| Some(endpoint(address, state?)))
            .collect();
        for (internal_policy, external_policy) in
            POLICIES.into_iter().flat_map(|a| POLICIES.map(|b| (a, b)))
        {
            let spec =
                ServicePort { internal_policy, external_policy, ..service(endpoints.clone()) };
            let tables = tables(vec![spec.clone()]);
            for (class, source) in callers {
                for (kind, to, port) in frontends {
                    let expected = oracle(&spec, class, kind);
                    let found = outcome(&tables, class, source, to, port);
                    assert_eq!(found, expected, "{class:?} {source} to {kind:?}, {spec:?}");
                    seen += 1;
                }
            }
        }
    }
    assert_eq!(seen, 64 * 4 * 5 * 4);
}

#[test]
fn node_ports_are_on_nodes_addresses_and_nowhere_else() {
    let tables = tables(vec![service(vec![endpoint("10.244.2.9", EndpointState::Ready)])]);
    let to = |class, source, to| outcome(&tables, class, source, to, 30080);
    let served = || Outcome::Endpoints([ip("10.244.2.9")].into());
    assert_eq!(to(Class::Pod, "10.244.1.2", NODE), served());
    assert_eq!(to(Class::Pod, "10.244.1.2", OTHER_NODE), served(), "a pod's own node decides");
    assert_eq!(to(Class::Outside, "203.0.113.9", OTHER_NODE), Outcome::Pass);
    assert_eq!(to(Class::Pod, "10.244.1.2", "10.244.1.3"), Outcome::Pass);
    assert_eq!(to(Class::Pod, "10.244.1.2", EXTERNAL_IP), Outcome::Pass);
    assert_eq!(outcome(&tables, Class::Pod, "10.244.1.2", NODE, 80), Outcome::Pass);
}

#[test]
fn addresses_of_services_refuse_other_ports_and_unknown_ones_are_silent() {
    let tables = tables(vec![service(vec![endpoint("10.244.2.9", EndpointState::Ready)])]);
    let to = |address, port| outcome(&tables, Class::Pod, "10.244.1.2", address, port);
    assert_eq!(to(CLUSTER_IP, 81), Outcome::Reject(Reason::NoSuchPort));
    assert_eq!(to(BALANCER, 81), Outcome::Reject(Reason::NoSuchPort));
    assert_eq!(to(EXTERNAL_IP, 81), Outcome::Pass, "it may be somebody's own address");
    assert_eq!(to("10.96.0.8", 80), Outcome::Drop(Reason::NoSuchService));
    let ping = Target { address: ip(CLUSTER_IP), port: None };
    let Decision::Refuse(refusal) = decide(&tables, Class::Pod, ip("10.244.1.2"), ping) else {
        panic!("a ping is answered with port unreachable, as by kube-proxy")
    };
    assert_eq!((refusal.reason, refusal.is_told), (Reason::NoSuchPort, true));
    let udp = Target { address: ip(CLUSTER_IP), port: Some((Protocol::Udp, 80)) };
    let decision = decide(&tables, Class::Pod, ip("10.244.1.2"), udp);
    assert!(matches!(decision, Decision::Refuse(Refusal { reason: Reason::NoSuchPort, .. })));
}

#[test]
fn source_ranges_count_for_the_load_balancer_and_for_everybody() {
    let mut spec = service(vec![endpoint("10.244.1.3", EndpointState::Ready)]);
    spec.frontends[2] = Frontend::LoadBalancer {
        address: ip(BALANCER),
        port: 80,
        source_ranges: vec!["203.0.113.0/24".parse().unwrap(), "10.244.1.2/32".parse().unwrap()],
    };
    let tables = tables(vec![spec]);
    let served = || Outcome::Endpoints([ip("10.244.1.3")].into());
    let denied = Outcome::Drop(Reason::SourceRange);
    assert_eq!(outcome(&tables, Class::Outside, "203.0.113.9", BALANCER, 80), served());
    assert_eq!(outcome(&tables, Class::Pod, "10.244.1.2", BALANCER, 80), served());
    assert_eq!(outcome(&tables, Class::Pod, "10.244.1.3", BALANCER, 80), denied);
    assert_eq!(outcome(&tables, Class::Outside, "203.0.114.9", NODE, 30080), served());
}

#[test]
fn topology_counts_while_a_ready_endpoint_is_near() {
    let far = |text| Endpoint { is_near: false, ..endpoint(text, EndpointState::Ready) };
    let near = endpoint("10.244.2.9", EndpointState::Ready);
    let to = |endpoints| {
        outcome(&tables(vec![service(endpoints)]), Class::Pod, "10.244.1.2", CLUSTER_IP, 80)
    };
    assert_eq!(to(vec![far("10.244.2.8"), near]), Outcome::Endpoints([near.address].into()));
    let both = [ip("10.244.2.7"), ip("10.244.2.8")];
    assert_eq!(to(vec![far("10.244.2.8"), far("10.244.2.7")]), Outcome::Endpoints(both.into()));
}

#[test]
fn masquerade_only_where_it_must() {
    let tables = tables(vec![]);
    let must = |class, source, endpoint| must_masquerade(&tables, class, ip(source), ip(endpoint));
    for (class, source, endpoint, expected) in [
        (Class::Pod, "10.244.1.2", "10.244.1.3", false),
        (Class::Pod, "10.244.1.2", "10.244.2.9", false),
        (Class::Pod, "10.244.1.2", "10.244.1.1", false),
        (Class::Pod, "10.244.1.2", "203.0.113.9", false),
        (Class::Pod, "10.244.1.2", "10.244.1.2", true),
        (Class::Node, "10.244.1.1", "10.244.1.2", false),
        (Class::Node, NODE, "10.244.2.9", false),
        (Class::Node, NODE, OTHER_NODE, false),
        (Class::Node, "192.168.7.1", "10.244.2.9", true),
        (Class::Node, NODE, NODE, true),
        (Class::Node, NODE, "203.0.113.9", true),
        (Class::Outside, "203.0.113.9", "10.244.1.2", false),
        (Class::Outside, "203.0.113.9", "10.244.2.9", true),
        (Class::Outside, "203.0.113.9", NODE, true),
        (Class::Outside, "203.0.113.9", "203.0.113.10", true),
    ] {
        assert_eq!(must(class, source, endpoint), expected, "{class:?} {source} to {endpoint}");
    }
}

#[test]
fn classes_are_found_by_address() {
    let tables = tables(vec![]);
    let class = |text| Class::of(&tables, ip(text));
    assert_eq!(class("10.244.1.2"), Class::Pod);
    assert_eq!(class("10.244.2.9"), Class::Pod);
    assert_eq!(class("10.244.1.1"), Class::Node);
    assert_eq!(class(NODE), Class::Node);
    assert_eq!(class(OTHER_NODE), Class::Outside);
    assert_eq!(class("203.0.113.9"), Class::Outside);
}

fn pick(client_port: u16, by_address: bool, chance: u64) -> Pick {
    Pick {
        client: (ip("10.244.1.2"), client_port),
        frontend: (ip(CLUSTER_IP), 80),
        by_address,
        chance,
    }
}

fn many(count: u8, algorithm: Algorithm) -> ServicePort {
    let endpoints =
        (1..=count).map(|n| endpoint(&format!("10.244.2.{n}"), EndpointState::Ready)).collect();
    ServicePort { algorithm, ..service(endpoints) }
}

fn single(spec: ServicePort) -> Arc<ServiceTable> {
    let mut table = builder();
    table.set(spec).unwrap();
    Arc::new(table.build(1))
}

#[test]
fn nodes_choose_alike_whatever_order_they_hear_of_endpoints_in() {
    let spec = many(50, Algorithm::Maglev);
    let mut reversed = spec.clone();
    reversed.endpoints.reverse();
    // Which endpoint is local differs from node to node.
    reversed.endpoints.iter_mut().for_each(|endpoint| endpoint.is_local = true);
    let (one, other) = (single(spec), single(reversed));
    let chosen = |table: &ServiceTable, port| {
        let service = table.service("shop/web:http", Family::V4).unwrap();
        let endpoint = service.choose(service.cluster(), &pick(port, false, 0), |_| 0).unwrap();
        endpoint.address
    };
    for port in 1..2000 {
        assert_eq!(chosen(&one, port), chosen(&other, port));
    }
    // Written down: a change would make nodes of two versions disagree.
    let golden: Vec<String> = (1..=4).map(|port| chosen(&one, port).to_string()).collect();
    assert_eq!(golden, ["10.244.2.40", "10.244.2.40", "10.244.2.9", "10.244.2.25"]);
}

#[test]
fn every_algorithm_gives_each_endpoint_its_share() {
    for algorithm in [Algorithm::Maglev, Algorithm::Random, Algorithm::LeastConnections] {
        let table = single(many(5, algorithm));
        let service = table.service("shop/web:http", Family::V4).unwrap();
        let mut connections = [0_u32; 6];
        for n in 0..5000_u16 {
            let chance = stable_hash(3, &[n.into()]);
            let of = |endpoint: &Endpoint| -> usize {
                let IpAddr::V4(v4) = endpoint.address else { panic!("{endpoint:?}") };
                v4.octets()[3].into()
            };
            let chosen = service
                .choose(service.cluster(), &pick(n, false, chance), |endpoint| {
                    connections[of(endpoint)]
                })
                .unwrap();
            connections[of(chosen)] += 1;
        }
        let spread = if algorithm == Algorithm::LeastConnections { 990..1011 } else { 880..1121 };
        assert!(connections[1..].iter().all(|count| spread.contains(count)), "{connections:?}");
    }
}

#[test]
fn with_affinity_a_client_is_known_by_its_address() {
    let table = single(ServicePort {
        affinity: Some(Duration::from_secs(10_800)),
        ..many(20, Algorithm::Maglev)
    });
    let service = table.service("shop/web:http", Family::V4).unwrap();
    let chosen = |pick: Pick| service.choose(service.cluster(), &pick, |_| 0).unwrap().address;
    let first = chosen(pick(1, true, 0));
    assert!((2..500).all(|port| chosen(pick(port, true, 0)) == first));
    let by_node_port = Pick { frontend: (ip(NODE), 30080), ..pick(1, true, 0) };
    assert_eq!(chosen(by_node_port), first);
}

#[test]
fn a_table_is_edited_service_by_service() {
    let first = single(many(5, Algorithm::Maglev));
    let mut edit = first.edit();
    let db = ServicePort {
        name: "shop/db:".to_owned(),
        frontends: vec![Frontend::ClusterIp { address: ip(CLUSTER_IP), port: 5432 }],
        ..many(2, Algorithm::Maglev)
    };
    edit.set(db.clone()).unwrap();
    let taken = ServicePort { name: "shop/thief:".to_owned(), ..db };
    let error = edit.set(taken).unwrap_err();
    assert_eq!(error.to_string(), "shop/thief:: TCP port 5432 of 10.96.0.7 is shop/db:'s already");
    let second = edit.build(2);
    assert_eq!(second.services().count(), 2);
    assert_eq!(first.services().count(), 1, "the one before is left as it was");

    let mut edit = second.edit();
    assert!(edit.remove("shop/db:", Family::V4));
    assert!(!edit.remove("shop/db:", Family::V4));
    edit.set(many(3, Algorithm::Maglev)).unwrap();
    let third = edit.build(3);
    assert!(third.owns(ip(CLUSTER_IP)));
    assert!(third.frontend(ip(CLUSTER_IP), 5432, Protocol::Tcp).is_none());
    assert_eq!(third.service("shop/web:http", Family::V4).unwrap().cluster().len(), 3);
    let mut edit = third.edit();
    assert!(edit.remove("shop/web:http", Family::V4));
    assert!(!edit.build(4).owns(ip(CLUSTER_IP)));
}

#[test]
fn what_cannot_be_served_is_refused() {
    let set = |change: fn(&mut ServicePort)| {
        let mut spec = many(1, Algorithm::Maglev);
        change(&mut spec);
        builder().set(spec).unwrap_err().to_string()
    };
    let v6 = set(|spec| spec.endpoints[0].address = "fd00::1".parse().unwrap());
    assert_eq!(v6, "shop/web:http: fd00::1 is no IPv4 address");
    let loopback = set(|spec| spec.endpoints[0].address = [127, 0, 0, 1].into());
    assert_eq!(
        loopback,
        "shop/web:http: 127.0.0.1 cannot be the address of a Service or an endpoint"
    );
    assert_eq!(set(|spec| spec.endpoints[0].port = 0), "shop/web:http: port 0 is no port");
    let crowd = set(|spec| spec.endpoints = vec![spec.endpoints[0]; 65_535]);
    assert_eq!(crowd, "shop/web:http: 65535 endpoints are more than 65534");
}

/// The time is generous: it must hold on a busy machine, without optimization.
#[test]
fn one_change_among_fifty_thousand_services_costs_little() {
    let spec = |n: u32| {
        let address = IpAddr::from((0x0a60_0000 + n).to_be_bytes());
        let endpoints = (1..=5)
            .map(|e| endpoint(&format!("10.244.{}.{e}", n % 250 + 1), EndpointState::Ready))
            .collect();
        ServicePort {
            name: format!("shop/service-{n}:http"),
            frontends: vec![Frontend::ClusterIp { address, port: 80 }],
            ..service(endpoints)
        }
    };
    let mut table = builder();
    (0..50_000).for_each(|n| table.set(spec(n)).unwrap());
    let table = table.build(1);
    let size: usize = table.services().map(Service::size).sum();
    assert!(size < 50_000 * 2000, "{size} bytes");
    let start = Instant::now();
    let mut edit = table.edit();
    let mut changed = spec(25_000);
    changed.endpoints.pop();
    edit.set(changed).unwrap();
    let edited = edit.build(2);
    let took = start.elapsed();
    assert_eq!(edited.services().count(), 50_000);
    assert!(took < Duration::from_millis(250), "{took:?}");
}
