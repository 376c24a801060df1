//! From a question to its answer.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use conf::NodeConfig;
use conf::cluster::{ClusterState, Protocol, ServicePort, ServiceType, ServiceView};
use vswitch::explain::{Explanation, Outcome, Question, explain as ask_switch};
use vswitch::service::{
    self, Class, Decision, EndpointState, Family, FrontendKind, Target, TrafficPolicy, decide,
};
use vswitch::tables::{Route, Tables};

use super::ends::{self, Caller, Destination};
use super::policies;
use super::world::World;
use super::{Answer, Candidate, Details, Explained, Query, Verdict};
use crate::control::endpoints::port_name;

/// Most nodes that are asked when none is named.
const NODES_MAX: usize = 64;

/// What an answer is made of.
#[derive(Debug, Clone, Copy)]
pub struct Known<'k> {
    /// The configuration, which is the same on all nodes as far as it matters here.
    pub config: &'k NodeConfig,
    /// The objects of the cluster.
    pub state: &'k ClusterState,
    /// Its nodes.
    pub world: &'k World,
    /// The node that is asked, with the tables that are in force there.
    pub own: Option<(&'k str, &'k Tables)>,
}

/// One packet, in addresses.
#[derive(Debug, Clone, Copy)]
struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: Protocol,
    port: u16,
}

/// Answers a question.
///
/// # Errors
/// When it cannot be understood: nobody has the name, or it is not clear whose switch decides.
pub fn explain(known: &Known<'_>, query: &Query) -> Result<Explained, String> {
    let caller = ends::caller(known, &query.from)?;
    let protocol = query.protocol.as_deref().map(ends::protocol).transpose()?;
    match ends::destination(known, &query.to)? {
        Destination::Addresses { title, addresses, pod, service } => {
            let named = match (&service, &pod) {
                (Some(view), _) => ends::service_ports(view),
                (None, Some(pod)) => ends::pod_ports(pod),
                (None, None) => Vec::new(),
            };
            let (protocol, port) = ends::port(&query.port, protocol, &named)?;
            let (from, to) = ends::pair(&caller, &addresses, &title)?;
            let packet = Packet { from, to, protocol, port };
            let mut explained = decided_one(known, query, &caller, &title, packet)?;
            explained.details.notes.extend(service.and_then(|view| other_protocol(&view, &packet)));
            Ok(explained)
        }
        Destination::Service(view) => to_service(known, query, &caller, &view, protocol),
    }
}

fn to_service(
    known: &Known<'_>,
    query: &Query,
    caller: &Caller,
    view: &ServiceView,
    protocol: Option<Protocol>,
) -> Result<Explained, String> {
    let service = &view.service;
    let title = format!("Service {}", service.id);
    let (protocol, port) = ends::port(&query.port, protocol, &ends::service_ports(view))?;
    let declared = service.ports.iter().find(|one| one.protocol == protocol && one.port == port);
    let name = declared.map(|declared| port_name(service, declared));
    let unaddressed = |verdict, reason: String| Explained {
        answer: Answer {
            verdict,
            service: name.clone().or_else(|| Some(format!("{}:{port}", service.id))),
            endpoints: Vec::new(),
            masquerade: false,
            reason,
            egress: None,
            ingress: None,
        },
        details: Details {
            from: titled(caller, caller.addresses.first()),
            to: format!("{title}, {protocol} port {port}"),
            ..Details::default()
        },
    };
    if let Some(problem) = &view.refused {
        let reason = format!(
            "the Service is refused ({}: {}): it has neither an address nor a name",
            problem.field, problem.reason
        );
        return Ok(unaddressed(Verdict::Reject, reason));
    }
    if service.kind == ServiceType::ExternalName {
        let target = service.external_name.as_deref().unwrap_or_default();
        let reason = format!(
            "it is a name for a name: the DNS answers CNAME {target}, and the client connects to that itself; the \
             switch translates nothing"
        );
        return Ok(unaddressed(Verdict::Forward, reason));
    }
    if service.is_headless() {
        return to_headless(known, query, caller, view, (protocol, port), declared);
    }
    let (from, to) = ends::pair(caller, &view.cluster_ips, &title)?;
    let packet = Packet { from, to, protocol, port };
    let mut explained = decided_one(known, query, caller, &title, packet)?;
    let notes = &mut explained.details.notes;
    notes.extend(other_protocol(view, &packet));
    if !service.proxied {
        notes.push(
            "it has the label service.kubernetes.io/service-proxy-name or service.kubernetes.io/headless: \
             this switch leaves it to others"
                .to_owned(),
        );
    }
    Ok(explained)
}

/// A Service without addresses: the DNS names its endpoints, and the client connects to one of them itself.
fn to_headless(
    known: &Known<'_>,
    query: &Query,
    caller: &Caller,
    view: &ServiceView,
    (protocol, port): (Protocol, u16),
    declared: Option<&ServicePort>,
) -> Result<Explained, String> {
    let id = &view.service.id;
    let title = format!("headless Service {id}");
    let service = match declared {
        Some(declared) => port_name(&view.service, declared),
        None => format!("{id}:{port}"),
    };
    let by_name = query.port.parse::<u16>().is_err();
    // By its name, a port is looked up as SRV, which tells each endpoint's own; a number is what the client dials.
    let offered = declared.and_then(|port| view.endpoints.port(&port.name, port.protocol));
    let offered: Vec<(IpAddr, u16)> = match offered {
        Some(offered) => view
            .endpoints
            .of_port(offered)
            .map(|(endpoint, number)| (endpoint.address, number))
            .collect(),
        None => Vec::new(),
    };
    let target = |address: IpAddr| {
        let of = offered.iter().find(|(of, _)| *of == address);
        of.map(|(_, number)| *number)
    };
    let named: Vec<IpAddr> =
        view.endpoints.endpoints.iter().filter(|end| end.ready).map(|end| end.address).collect();
    let mut notes = Vec::new();
    let differing = offered.iter().find(|(_, number)| *number != port);
    if let (false, Some((address, number))) = (by_name, differing) {
        notes.push(format!(
            "port {port} of the Service is port {number} of {address}: without a cluster address nobody translates \
             it, so dial {number}, or look the port up as SRV"
        ));
    }
    let packet = |address: &IpAddr| {
        let (from, to) = ends::pair(caller, &[*address], &title).ok()?;
        let port = if by_name { target(to).unwrap_or(port) } else { port };
        Some(Packet { from, to, protocol, port })
    };
    let packets: Vec<Packet> = named.iter().filter_map(packet).collect();
    let mut explained: Option<Explained> = None;
    for one in decided(known, query, caller, &title, &packets)? {
        match &mut explained {
            None => explained = Some(one),
            Some(all) if all.answer.verdict > one.answer.verdict => {
                all.answer.verdict = one.answer.verdict;
                all.answer.endpoints = one.answer.endpoints;
                all.answer.egress = one.answer.egress;
                all.answer.ingress = one.answer.ingress;
            }
            Some(all) if all.answer.verdict == one.answer.verdict => {
                all.answer.endpoints.extend(one.answer.endpoints);
            }
            Some(_) => {}
        }
    }
    let Some(mut explained) = explained else {
        let reason = match named.is_empty() {
            true => "no endpoint is ready: the name does not exist (NXDOMAIN), so nothing is sent",
            false => "no endpoint has an address of the client's family, so nothing is sent",
        };
        let answer = Answer {
            verdict: Verdict::Reject,
            service: Some(service),
            endpoints: Vec::new(),
            masquerade: false,
            reason: reason.to_owned(),
            egress: None,
            ingress: None,
        };
        let details = Details {
            from: titled(caller, caller.addresses.first()),
            to: format!("{title}, {protocol} port {port}"),
            ..Details::default()
        };
        return Ok(Explained { answer, details });
    };
    let count = explained.answer.endpoints.len();
    if explained.answer.verdict == Verdict::Forward {
        explained.answer.reason = format!(
            "headless: the DNS answers the addresses of its {count} ready endpoints, and the client connects to one \
             of them without translation"
        );
    }
    explained.answer.service = Some(service);
    explained.details.notes.extend(notes);
    explained.details.to = format!("{title}, {protocol} port {port}");
    Ok(explained)
}

/// That the Service has the port under another protocol.
fn other_protocol(view: &ServiceView, packet: &Packet) -> Option<String> {
    let ports = view.service.ports.iter().filter(|port| port.port == packet.port);
    let others: Vec<&str> = ports.map(|port| port.protocol.as_str()).collect();
    let is_hidden = !others.is_empty() && !others.contains(&packet.protocol.as_str());
    is_hidden.then(|| {
        let (port, others) = (packet.port, others.join(" and "));
        format!("port {port} of {} is {others}: say --proto", view.service.id)
    })
}

fn decided_one(
    known: &Known<'_>,
    query: &Query,
    caller: &Caller,
    title: &str,
    packet: Packet,
) -> Result<Explained, String> {
    let mut one = decided(known, query, caller, title, &[packet])?;
    one.pop().ok_or_else(|| "no packet is asked about".to_owned())
}

/// Asks the switch that decides about packets of one sender.
fn decided(
    known: &Known<'_>,
    query: &Query,
    caller: &Caller,
    title: &str,
    packets: &[Packet],
) -> Result<Vec<Explained>, String> {
    let Some(packet) = packets.first() else { return Ok(Vec::new()) };
    let at = |node: &str| at_node(known, node, caller, title, packets);
    if let Some(node) = &query.node {
        if !known.world.has(node) {
            return Err(ends::no_node(known, node));
        }
        return Ok(at(node));
    }
    let is_known = |node: &Arc<str>| known.world.has(node);
    let destination = || ends::node_at(known, packet.to);
    if let Some(node) = caller.node.clone().filter(is_known).or_else(destination).filter(is_known) {
        return Ok(at(&node));
    }
    // From outside, to an address that any node may serve.
    if let Some((own, _)) = known.own {
        return Ok(at(own));
    }
    let mut nodes = known.world.names();
    let Some(first) = nodes.next() else { return Ok(at("")) };
    let mut found = at(first);
    let answers = |found: &[Explained]| -> Vec<Answer> {
        found.iter().map(|explained| explained.answer.clone()).collect()
    };
    for node in nodes.take(NODES_MAX) {
        if answers(&at(node)) != answers(&found) {
            return Err(format!(
                "the answer differs from node to node: say with --node where the packet comes in ({})",
                known.world.names().take(20).map(AsRef::as_ref).collect::<Vec<_>>().join(", ")
            ));
        }
    }
    for explained in &mut found {
        explained.details.node = Some("any node".to_owned());
    }
    Ok(found)
}

/// Asks the switch of one node.
fn at_node(
    known: &Known<'_>,
    node: &str,
    caller: &Caller,
    title: &str,
    packets: &[Packet],
) -> Vec<Explained> {
    let tables = match known.own {
        Some((own, tables)) if own == node => Cow::Borrowed(tables),
        Some(_) | None => {
            let targets = packets.iter().map(|packet| (packet.to, packet.port)).collect();
            Cow::Owned(known.world.tables(node, known.state, known.config, &targets))
        }
    };
    packets.iter().map(|packet| ask(known, (node, &tables), caller, title, packet)).collect()
}

fn ask(
    known: &Known<'_>,
    (node, tables): (&str, &Tables),
    caller: &Caller,
    title: &str,
    packet: &Packet,
) -> Explained {
    let Packet { from, to, protocol, port } = *packet;
    let protocol = switch_protocol(protocol);
    let question = Question { from, to, port, protocol };
    let mut details = Details {
        from: titled(caller, Some(&from)),
        to: format!("{title}, {protocol} to {}", SocketAddr::new(to, port)),
        node: Some(node.to_owned()),
        ..Details::default()
    };
    if let Some(reason) = beside_the_switch(tables, &question) {
        details.node = None;
        let answer = Answer {
            verdict: Verdict::Forward,
            service: None,
            endpoints: vec![SocketAddr::new(to, port).to_string()],
            masquerade: false,
            reason: reason.to_owned(),
            egress: None,
            ingress: None,
        };
        return Explained { answer, details };
    }
    let explanation = ask_switch(tables, &question);
    tell_rule(&explanation, &mut details);
    tell_source(tables, &explanation, from, &mut details);
    tell_candidates(known, tables, &explanation, to, &mut details);
    let endpoints = explanation.endpoints.iter();
    let answer = Answer {
        verdict: match explanation.outcome {
            Outcome::Forward => Verdict::Forward,
            Outcome::Reject => Verdict::Reject,
            Outcome::Drop => Verdict::Drop,
        },
        service: explanation.service.clone(),
        endpoints: endpoints
            .map(|(address, port)| SocketAddr::new(*address, *port).to_string())
            .collect(),
        masquerade: explanation.masquerade,
        reason: match explanation.drop {
            Some(reason) => format!("{} ({reason})", explanation.reason.trim_end_matches('.')),
            None => explanation.reason.clone(),
        },
        egress: None,
        ingress: None,
    };
    let mut explained = Explained { answer, details };
    policies::add(known, from, protocol, &explanation.endpoints, &mut explained);
    explained
}

/// Why a packet does not come by the switch at all: the node, or the world, sends it to neither a pod nor a
/// Service, and the kernel of the node routes or delivers it.
fn beside_the_switch(tables: &Tables, question: &Question) -> Option<&'static str> {
    let class = Class::of(tables, question.from);
    let target = Target { address: question.to, port: Some((question.protocol, question.port)) };
    let is_plain = matches!(decide(tables, class, question.from, target), Decision::Pass);
    if class == Class::Pod || !is_plain {
        return None;
    }
    match tables.route(question.to) {
        Route::Host => Some("to the node itself: its kernel takes it, and no switch is asked"),
        Route::Outside => Some("to neither a pod nor a Service: the node's kernel routes it"),
        Route::Node(_) if tables.is_node(question.to) => {
            Some("from machine to machine: the underlay carries it, and no switch is asked")
        }
        Route::Node(_) | Route::Port(_) | Route::Router | Route::Nobody => None,
    }
}

fn tell_rule(explanation: &Explanation, details: &mut Details) {
    let class = match explanation.class {
        Class::Pod => "a pod",
        Class::Node => "the node itself",
        Class::Outside => "the world outside",
        Class::Peer => "another node, through the tunnel",
    };
    let Some((kind, policy)) = explanation.choice else {
        details.rule = Some(format!("the sender is {class}"));
        return;
    };
    let policy = match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    };
    let frontend = match kind {
        FrontendKind::ClusterIp => "the cluster IP",
        FrontendKind::ExternalIp => "an external IP",
        FrontendKind::LoadBalancer => "the load balancer's address",
        FrontendKind::NodePort => "a node port",
        FrontendKind::HostPort => "a host port",
    };
    let counts = match (kind, explanation.class) {
        (FrontendKind::ClusterIp, _) => format!("internalTrafficPolicy counts, which is {policy}"),
        (_, Class::Outside | Class::Peer) => format!("externalTrafficPolicy counts, which is {policy}"),
        (_, Class::Pod | Class::Node) => {
            "the way out and back in is cut short: all endpoints, whatever externalTrafficPolicy says"
                .to_owned()
        }
    };
    details.rule = Some(format!("from {class} to {frontend}: {counts}"));
}

fn tell_source(tables: &Tables, explanation: &Explanation, from: IpAddr, details: &mut Details) {
    if explanation.outcome != Outcome::Forward {
        return;
    }
    let switch = tables.masquerade().for_family_of(from);
    let switch = switch.map_or_else(|| "the switch".to_owned(), |address| address.to_string());
    let pairs = explanation.endpoints.iter();
    let counts = pairs
        .filter(|(address, _)| service::must_masquerade(tables, explanation.class, from, *address))
        .count();
    details.source = Some(match (explanation.masquerade, counts == explanation.endpoints.len()) {
        (true, true) => format!("seen as {switch}, so that replies come back by this switch"),
        (true, false) => {
            format!(
                "seen as {switch} by those from where replies would not come back by this switch"
            )
        }
        (false, _) => format!("kept: {from}"),
    });
}

fn tell_candidates(
    known: &Known<'_>,
    tables: &Tables,
    explanation: &Explanation,
    to: IpAddr,
    details: &mut Details,
) {
    let Some(name) = &explanation.service else { return };
    let Some(service) = tables.services().service(name, Family::of(to)) else { return };
    let spec = service.spec();
    let view = name.rsplit_once(':').and_then(|(id, _)| id.split_once('/'));
    let view = view.and_then(|(namespace, name)| known.state.service(namespace, name));
    let policy = explanation.choice.map(|(_, policy)| policy);
    let declared: BTreeMap<IpAddr, _> = view
        .into_iter()
        .flat_map(|view| view.endpoints.endpoints.iter().map(|end| (end.address, end)))
        .collect();
    let may_be_chosen: BTreeSet<_> = explanation.endpoints.iter().copied().collect();
    for endpoint in &spec.endpoints {
        let declared = declared.get(&endpoint.address);
        let pod = declared.and_then(|end| end.pod.as_ref()).map(ToString::to_string);
        let node = declared.and_then(|end| end.node.as_ref()).map(ToString::to_string);
        let chosen = may_be_chosen.contains(&(endpoint.address, endpoint.port));
        let is_local = policy == Some(TrafficPolicy::Local);
        let why = match endpoint.state {
            _ if chosen => "",
            EndpointState::Unavailable => "is not ready",
            EndpointState::Ready | EndpointState::Draining if policy.is_none() => "",
            EndpointState::Ready | EndpointState::Draining if is_local && !endpoint.is_local => {
                "is not on this node, and the policy is Local"
            }
            EndpointState::Draining => "terminates, and others are ready",
            EndpointState::Ready => "is farther away than others",
        };
        details.candidates.push(Candidate {
            endpoint: SocketAddr::new(endpoint.address, endpoint.port).to_string(),
            pod,
            node,
            state: match endpoint.state {
                EndpointState::Ready => "ready",
                EndpointState::Draining => "terminating",
                EndpointState::Unavailable => "not ready",
            }
            .to_owned(),
            chosen,
            why: why.to_owned(),
        });
    }
    if let Some(affinity) = spec.affinity {
        details.notes.push(format!(
            "sessionAffinity ClientIP: a client keeps its endpoint until it has not connected for {} s",
            affinity.as_secs()
        ));
    }
}

fn titled(caller: &Caller, address: Option<&IpAddr>) -> String {
    match address {
        Some(address) => format!("{}, {address}", caller.title),
        None => caller.title.clone(),
    }
}

fn switch_protocol(protocol: Protocol) -> service::Protocol {
    match protocol {
        Protocol::Tcp => service::Protocol::Tcp,
        Protocol::Udp => service::Protocol::Udp,
        Protocol::Sctp => service::Protocol::Sctp,
    }
}
