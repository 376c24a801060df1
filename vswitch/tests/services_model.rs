//! The Service stage against a model that is too simple to be wrong: maps without limits, and the rules of who stays
//! with whom written down once more, from their description.
//!
//! Random clients send to Services, endpoints answer, and the Services change in between. Whatever comes out must be
//! what the model allows, with addresses and checksums right, and nothing may ever go to an endpoint that the
//! present Services do not allow it.

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

mod common;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use common::*;
use etherparse::{TcpHeader, TransportHeader};
use proptest::prelude::*;
use vswitch::frame::Ingress;
use vswitch::mac::Mac;
use vswitch::port::PortIx;
use vswitch::service::{
    Algorithm, Endpoint, EndpointState, Family, Frontend, Protocol, ServicePort,
    ServiceTableBuilder, TrafficPolicy,
};
use vswitch::tables::{Masquerade, Tables};
use vswitch::verdict::{Egress, Reason};

type End = (IpAddr, u16);

const ENDPOINTS: [&str; 4] = ["10.244.1.2", "10.244.1.3", "10.244.2.9", "10.244.3.9"];
const CLIENTS: [&str; 4] = ["10.244.1.2", "10.244.1.3", "10.244.1.1", "203.0.113.9"];
const SWITCH: &str = "10.244.1.0";
const VIPS: [&str; 2] = ["10.96.0.1", "10.96.0.2"];
const BALANCER: &str = "198.51.100.8";

/// A Service as the model knows it.
#[derive(Debug, Clone)]
struct Declared {
    /// State of each of [`ENDPOINTS`], if it is one, and its port.
    endpoints: [Option<(EndpointState, u16)>; 4],
    internal: TrafficPolicy,
    external: TrafficPolicy,
}

#[derive(Debug, Clone)]
enum Step {
    /// A client sends to a cluster IP, or to the balancer's address (which is the first Service's).
    Send { client: usize, port: u16, to: usize, is_udp: bool, flags: u8 },
    /// The endpoint of one of the flows answers.
    Answer { which: prop::sample::Index, flags: u8 },
    /// A Service is declared anew, or deleted.
    Declare { which: usize, declared: Option<Declared> },
}

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;
const RST: u8 = 4;

fn declared() -> impl Strategy<Value = Declared> {
    use EndpointState::{Draining, Ready, Unavailable};
    let state = prop::sample::select(&[Ready, Ready, Ready, Draining, Unavailable][..]);
    let port = prop::sample::select(&[8080_u16, 8080, 9090][..]);
    let endpoint = prop::option::of((state, port));
    let policy = || {
        prop::sample::select(
            &[TrafficPolicy::Cluster, TrafficPolicy::Cluster, TrafficPolicy::Local][..],
        )
    };
    (prop::array::uniform4(endpoint), policy(), policy())
        .prop_map(|(endpoints, internal, external)| Declared { endpoints, internal, external })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flags = || prop::sample::select(&[SYN, SYN, ACK, ACK, ACK, FIN | ACK, RST][..]);
    let step = prop_oneof![
        8 => (0_usize..4, 0_u16..3, 0_usize..3, any::<bool>(), flags()).prop_map(
            |(client, port, to, is_udp, flags)| Step::Send { client, port: 40_000 + port, to, is_udp, flags }
        ),
        5 => (any::<prop::sample::Index>(), flags())
            .prop_map(|(which, flags)| Step::Answer { which, flags }),
        2 => (0_usize..2, prop::option::weighted(0.85, declared()))
            .prop_map(|(which, declared)| Step::Declare { which, declared }),
    ];
    prop::collection::vec(step, 1..80)
}

fn is_local(endpoint: usize) -> bool {
    endpoint < 2
}

fn tables(generation: u64, services: &[Option<Declared>; 2]) -> Tables {
    let mut table = ServiceTableBuilder::new(vec!["10.96.0.0/16".parse().unwrap()]);
    for (number, declared) in services.iter().enumerate() {
        let Some(declared) = declared else { continue };
        let endpoints = declared.endpoints.iter().enumerate().filter_map(|(ix, endpoint)| {
            let (state, port) = (*endpoint)?;
            let address = ip(ENDPOINTS[ix]);
            Some(Endpoint { address, port, is_local: is_local(ix), is_near: true, state })
        });
        let endpoints: Vec<Endpoint> = endpoints.collect();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut frontends = vec![Frontend::ClusterIp { address: ip(VIPS[number]), port: 80 }];
            if number == 0 {
                let address = ip(BALANCER);
                frontends.push(Frontend::LoadBalancer { address, port: 80, source_ranges: vec![] });
            }
            table
                .set(ServicePort {
                    name: format!("test/{number}:{protocol}"),
                    family: Family::V4,
                    protocol,
                    frontends,
                    endpoints: endpoints.clone(),
                    internal_policy: declared.internal,
                    external_policy: declared.external,
                    algorithm: [Algorithm::Maglev, Algorithm::LeastConnections][number],
                    affinity: None,
                })
                .unwrap();
        }
    }
    let mut builder = tables_builder();
    builder.port(PortIx::HOST, host_port());
    builder.services(Arc::new(table.build(generation)));
    builder.masquerade(Masquerade { v4: Some([10, 244, 1, 0].into()), v6: None });
    builder.build()
}

/// A flow as the model knows it.
#[derive(Debug, Clone)]
struct Flow {
    service: usize,
    endpoint: End,
    /// Whom the endpoint sees.
    seen_as: End,
    answered: bool,
    /// Who has finished: client, endpoint.
    finished: [bool; 2],
    reset: bool,
}

impl Flow {
    fn note(&mut self, is_udp: bool, by_client: bool, flags: u8) {
        self.answered |= !by_client;
        if is_udp {
            return;
        }
        self.reset = flags & RST != 0;
        if !self.reset && flags & FIN != 0 {
            self.finished[usize::from(!by_client)] = true;
        }
    }

    fn is_closing(&self) -> bool {
        self.reset || self.finished != [false; 2]
    }
}

#[derive(Debug, Default)]
struct Model {
    services: [Option<Declared>; 2],
    /// By client, frontend, and whether it is UDP.
    flows: HashMap<(End, End, bool), Flow>,
}

/// What a packet to a Service may meet.
#[derive(Debug, PartialEq, Eq)]
enum May {
    Endpoints(Vec<End>),
    Refused(Reason),
}

impl Model {
    /// The endpoints that a new connection may get.
    fn choice(&self, client: usize, to: usize) -> May {
        let service = to % 2;
        let Some(declared) = &self.services[service] else {
            let reason = if to == 2 { None } else { Some(Reason::NoSuchService) };
            return match reason {
                Some(reason) => May::Refused(reason),
                // The balancer's address is nobody's: it is in the world outside.
                None => May::Endpoints(vec![(ip(BALANCER), 80)]),
            };
        };
        let of = |state, local_only: bool| -> Vec<End> {
            let all = declared.endpoints.iter().enumerate();
            all.filter_map(|(ix, endpoint)| {
                let (found, port) = (*endpoint)?;
                (found == state && (!local_only || is_local(ix))).then(|| (ip(ENDPOINTS[ix]), port))
            })
            .collect()
        };
        let either = |local_only| {
            let ready = of(EndpointState::Ready, local_only);
            if ready.is_empty() { of(EndpointState::Draining, local_only) } else { ready }
        };
        if either(false).is_empty() {
            return May::Refused(Reason::NoEndpoint);
        }
        let found = either(self.is_local_only(client, to));
        if found.is_empty() { May::Refused(Reason::NoLocalEndpoint) } else { May::Endpoints(found) }
    }

    fn is_local_only(&self, client: usize, to: usize) -> bool {
        let Some(declared) = &self.services[to % 2] else { return false };
        let policy = match (to, client) {
            (2, 3) => declared.external,
            (2, _) => TrafficPolicy::Cluster,
            _ => declared.internal,
        };
        policy == TrafficPolicy::Local
    }

    /// Whether a flow keeps its endpoint for this packet.
    fn keeps(&self, flow: &Flow, client: usize, to: usize, is_udp: bool, flags: u8) -> bool {
        let opens = !is_udp && flags & (SYN | ACK | RST) == SYN;
        if opens && flow.is_closing() {
            return false;
        }
        let may_be_chosen = self.services[to % 2].is_some()
            && matches!(self.choice(client, to), May::Endpoints(all) if all.contains(&flow.endpoint));
        if may_be_chosen || opens {
            return may_be_chosen;
        }
        if !is_udp && flow.answered {
            return true;
        }
        let Some(declared) = &self.services[to % 2] else { return false };
        let is_refused = matches!(self.choice(client, to), May::Refused(_));
        !is_refused
            && declared.endpoints.iter().enumerate().any(|(ix, endpoint)| {
                let Some((state, port)) = *endpoint else { return false };
                (ip(ENDPOINTS[ix]), port) == flow.endpoint
                    && state != EndpointState::Unavailable
                    && (!self.is_local_only(client, to) || is_local(ix))
            })
    }
}

fn packet(from: Ingress, source: End, destination: End, is_udp: bool, flags: u8) -> Vec<u8> {
    let (sender, to) = match from {
        Ingress::Port(POD_A) => (MAC_A, Mac::ROUTER),
        Ingress::Port(POD_B) => (MAC_B, Mac::ROUTER),
        Ingress::Port(_) => (Mac::HOST, Mac::ROUTER),
        Ingress::Node(PEER) => (PEER_VTEP, VTEP),
        Ingress::Node(_) | Ingress::Switch => (Mac([2, 0, 0, 0, 0, 3]), VTEP),
    };
    let (a, b) = (source.0.to_string(), destination.0.to_string());
    let step = with_ip(sender, to, &a, &b, 64);
    let mut bytes = Vec::new();
    if is_udp {
        step.udp(source.1, destination.1).write(&mut bytes, b"payload").unwrap();
    } else {
        let mut header = TcpHeader::new(source.1, destination.1, 1, 1000);
        header.syn = flags & SYN != 0;
        header.ack = flags & ACK != 0;
        header.fin = flags & FIN != 0;
        header.rst = flags & RST != 0;
        step.tcp_header(header).write(&mut bytes, b"payload").unwrap();
    }
    bytes
}

fn ends(bytes: &[u8]) -> (End, End) {
    let seen = look(bytes);
    assert_eq!(seen.payload, b"payload");
    match seen.transport.unwrap() {
        TransportHeader::Tcp(tcp) => {
            ((seen.source, tcp.source_port), (seen.destination, tcp.destination_port))
        }
        TransportHeader::Udp(udp) => {
            ((seen.source, udp.source_port), (seen.destination, udp.destination_port))
        }
        other @ (TransportHeader::Icmpv4(_)
        | TransportHeader::Icmpv6(_)
        | TransportHeader::Igmp(_)) => panic!("{other:?}"),
    }
}

fn port_of(address: IpAddr) -> Ingress {
    match address.to_string().as_str() {
        "10.244.1.2" => Ingress::Port(POD_A),
        "10.244.1.3" => Ingress::Port(POD_B),
        "10.244.2.9" => Ingress::Node(PEER),
        "10.244.3.9" => Ingress::Node(OTHER_PEER),
        _ => Ingress::Port(PortIx::HOST),
    }
}

fn egress_of(address: IpAddr) -> Egress {
    match port_of(address) {
        Ingress::Port(port) => Egress::Port(port),
        Ingress::Node(node) => Egress::Node(node),
        Ingress::Switch => unreachable!("nobody lives there"),
    }
}

/// Whether the endpoint must see the switch's address.
fn masquerades(client: usize, endpoint: IpAddr) -> bool {
    let is_here = is_local(ENDPOINTS.iter().position(|name| ip(name) == endpoint).unwrap());
    match client {
        0 | 1 => ip(CLIENTS[client]) == endpoint,
        2 => false,
        _ => !is_here,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_comes_out_is_what_the_model_allows(steps in steps()) {
        let mut model = Model::default();
        let mut generation = 1;
        let mut bench = Bench::with_tables(tables(generation, &model.services));
        for step in steps {
            match step {
                Step::Declare { which, declared } => {
                    model.services[which] = declared;
                    generation += 1;
                    bench.tables = tables(generation, &model.services);
                }
                Step::Send { client, port, to, is_udp, flags } => {
                    let source = (ip(CLIENTS[client]), port);
                    let frontend = if to == 2 { (ip(BALANCER), 80) } else { (ip(VIPS[to]), 80) };
                    let key = (source, frontend, is_udp);
                    let keeps = model.flows.get(&key).is_some_and(|flow| {
                        let service = to % 2;
                        flow.service == service && model.keeps(flow, client, to, is_udp, flags)
                    });
                    if !keeps {
                        model.flows.remove(&key);
                    }
                    let from = port_of(source.0);
                    let bytes = packet(from, source, frontend, is_udp, flags);
                    let (reason, out) = bench.reason_for(from, &bytes);
                    let allowed = match model.flows.get(&key) {
                        Some(flow) => May::Endpoints(vec![flow.endpoint]),
                        None => model.choice(client, to),
                    };
                    let endpoints = match allowed {
                        May::Refused(expected) => {
                            prop_assert_eq!(reason, Some(expected));
                            prop_assert!(out.len() <= 1);
                            continue;
                        }
                        May::Endpoints(endpoints) => endpoints,
                    };
                    if endpoints == [(ip(BALANCER), 80)] {
                        // To the world, or back from where it came.
                        let lost = (client >= 2).then_some(Reason::NoSuchAddress);
                        prop_assert_eq!(reason, lost);
                        continue;
                    }
                    prop_assert_eq!(reason, None);
                    prop_assert_eq!(out.len(), 1);
                    let (egress, bytes) = &out[0];
                    let (seen_as, endpoint) = ends(bytes);
                    prop_assert!(endpoints.contains(&endpoint), "{:?} not of {:?}", endpoint, endpoints);
                    prop_assert_eq!(*egress, egress_of(endpoint.0));
                    let masquerade = masquerades(client, endpoint.0);
                    prop_assert_eq!(seen_as.0, if masquerade { ip(SWITCH) } else { source.0 });
                    match model.flows.get_mut(&key) {
                        Some(flow) => {
                            prop_assert_eq!(flow.seen_as, seen_as);
                            flow.note(is_udp, true, flags);
                        }
                        None => {
                            // No other flow looks like this one to its endpoint.
                            let twin = model.flows.iter().find(|((.., udp), flow)| {
                                *udp == is_udp && flow.endpoint == endpoint && flow.seen_as == seen_as
                            });
                            prop_assert!(twin.is_none(), "{:?}", twin);
                            let mut flow = Flow {
                                service: to % 2,
                                endpoint,
                                seen_as,
                                answered: false,
                                finished: [false; 2],
                                reset: false,
                            };
                            flow.note(is_udp, true, flags);
                            model.flows.insert(key, flow);
                        }
                    }
                }
                Step::Answer { which, flags } => {
                    let mut keys: Vec<_> = model.flows.keys().copied().collect();
                    keys.sort_unstable();
                    if keys.is_empty() { continue }
                    let key = keys[which.index(keys.len())];
                    let flow = model.flows.get_mut(&key).unwrap();
                    let from = port_of(flow.endpoint.0);
                    let bytes = packet(from, flow.endpoint, flow.seen_as, key.2, flags);
                    let (reason, out) = bench.reason_for(from, &bytes);
                    prop_assert_eq!(reason, None, "an answer is never refused");
                    let (egress, bytes) = &out[0];
                    prop_assert_eq!(*egress, egress_of(key.0.0));
                    prop_assert_eq!(ends(bytes), (key.1, key.0));
                    flow.note(key.2, false, flags);
                }
            }
        }
    }
}
