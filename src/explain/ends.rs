//! Both ends of a question: from the words that name them to addresses and ports.

use std::net::IpAddr;
use std::sync::Arc;

use conf::cluster::{PodView, Protocol, ServiceView};

use super::evaluate::Known;
use super::world::pod_at;

/// Who sends.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// What it is, for people.
    pub(super) title: String,
    /// Its addresses, the primary one first.
    pub(super) addresses: Vec<IpAddr>,
    /// The node that it is on, or is.
    pub(super) node: Option<Arc<str>>,
}

/// Where it sends to.
#[derive(Debug, Clone)]
pub(super) enum Destination {
    /// Addresses.
    Addresses {
        /// Whose they are, for people.
        title: String,
        /// The primary one first.
        addresses: Vec<IpAddr>,
        /// The pod that has them.
        pod: Option<Arc<PodView>>,
        /// The Service that has them.
        service: Option<Arc<ServiceView>>,
    },
    /// A Service by its name, which may or may not have addresses.
    Service(Arc<ServiceView>),
}

/// What somebody calls an end of the question.
enum Name<'n> {
    Address(IpAddr),
    Node(&'n str),
    /// Namespace and name.
    Pod(&'n str, &'n str),
    Service(&'n str, &'n str),
    PodOrService(&'n str, &'n str),
}

impl<'n> Name<'n> {
    fn parse(text: &'n str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            ["pod", namespace, name] => Ok(Self::Pod(namespace, name)),
            ["service" | "svc", namespace, name] => Ok(Self::Service(namespace, name)),
            [namespace, name] => Ok(Self::PodOrService(namespace, name)),
            [node] if !node.is_empty() => Ok(Self::Node(node)),
            _ => Err(format!(
                "{text} names nobody: give an address, NAMESPACE/NAME, or the name of a node"
            )),
        }
    }
}

/// Finds who sends.
pub(super) fn caller(known: &Known<'_>, text: &str) -> Result<Caller, String> {
    match Name::parse(text)? {
        Name::Address(address) => Ok(caller_at(known, address)),
        Name::Node(node) => {
            if !known.world.has(node) {
                return Err(no_node(known, node));
            }
            Ok(Caller {
                title: format!("node {node}"),
                addresses: node_addresses(known, node),
                node: Some(node.into()),
            })
        }
        Name::Pod(namespace, name) | Name::PodOrService(namespace, name) => {
            let pod = known.state.pod(namespace, name).ok_or_else(|| {
                let is_service = known.state.service(namespace, name).is_some();
                let hint = if is_service { ": a Service does not send" } else { "" };
                format!("there is no pod {namespace}/{name}{hint}")
            })?;
            if pod.addresses.is_empty() {
                return Err(format!(
                    "the pod {namespace}/{name} has no address: its manifest needs status.podIP, or a node must \
                     have attached it"
                ));
            }
            Ok(Caller {
                title: pod_title(pod),
                addresses: pod.addresses.to_vec(),
                node: pod.node.clone(),
            })
        }
        Name::Service(namespace, name) => Err(format!(
            "the Service {namespace}/{name} does not send; name a pod, a node or an address"
        )),
    }
}

fn caller_at(known: &Known<'_>, address: IpAddr) -> Caller {
    let addresses = vec![address];
    if let Some(pod) = pod_at(known.state, address) {
        return Caller { title: pod_title(pod), addresses, node: pod.node.clone() };
    }
    let node = node_at(known, address);
    let title = match &node {
        Some(node) => format!("node {node}, or its subnet"),
        None => "somebody outside of the cluster".to_owned(),
    };
    Caller { title, addresses, node }
}

/// The node that an address is of: its own, or out of its subnet.
pub(super) fn node_at(known: &Known<'_>, address: IpAddr) -> Option<Arc<str>> {
    let declared = || known.state.nodes().find(|node| node.addresses.contains(&address));
    known.world.node_at(address).or_else(|| declared().map(|node| &node.name)).cloned()
}

fn node_addresses(known: &Known<'_>, node: &str) -> Vec<IpAddr> {
    let mut addresses = known.state.node_addresses(node).to_vec();
    for is_v4 in [true, false] {
        let own = known.world.address_of(node, is_v4);
        addresses.extend(own.filter(|own| !addresses.contains(own)));
    }
    addresses
}

/// Finds where it sends to.
pub(super) fn destination(known: &Known<'_>, text: &str) -> Result<Destination, String> {
    let state = known.state;
    match Name::parse(text)? {
        Name::Address(address) => {
            let service = state.services().find(|view| {
                view.cluster_ips.contains(&address)
                    || view.load_balancer_ips.contains(&address)
                    || view.service.external_ips.contains(&address)
            });
            let pod = pod_at(state, address).cloned();
            let title = match (service, &pod, node_at(known, address)) {
                (Some(view), ..) => format!("an address of the Service {}", view.service.id),
                (None, Some(pod), _) => pod_title(pod),
                (None, None, Some(node)) => format!("node {node}, or its subnet"),
                (None, None, None) => "an address".to_owned(),
            };
            Ok(Destination::Addresses {
                title,
                addresses: vec![address],
                pod,
                service: service.cloned(),
            })
        }
        Name::Node(node) if known.world.has(node) => Ok(Destination::Addresses {
            title: format!("node {node}"),
            addresses: node_addresses(known, node),
            pod: None,
            service: None,
        }),
        Name::Node(node) => Err(no_node(known, node)),
        Name::Service(namespace, name) => state
            .service(namespace, name)
            .map(|view| Destination::Service(Arc::clone(view)))
            .ok_or_else(|| format!("there is no Service {namespace}/{name}")),
        Name::Pod(namespace, name) => state
            .pod(namespace, name)
            .map(to_pod)
            .unwrap_or_else(|| Err(format!("there is no pod {namespace}/{name}"))),
        Name::PodOrService(namespace, name) => {
            match (state.service(namespace, name), state.pod(namespace, name)) {
                (Some(view), _) => Ok(Destination::Service(Arc::clone(view))),
                (None, Some(pod)) => to_pod(pod),
                (None, None) => {
                    Err(format!("there is neither a Service nor a pod {namespace}/{name}"))
                }
            }
        }
    }
}

fn to_pod(pod: &Arc<PodView>) -> Result<Destination, String> {
    if pod.addresses.is_empty() {
        return Err(format!("the pod {} has no address yet", pod.id));
    }
    Ok(Destination::Addresses {
        title: pod_title(pod),
        addresses: pod.addresses.to_vec(),
        pod: Some(Arc::clone(pod)),
        service: None,
    })
}

/// The addresses of both ends, of one family: the destination's first that the sender has one for.
pub(super) fn pair(
    caller: &Caller,
    addresses: &[IpAddr],
    title: &str,
) -> Result<(IpAddr, IpAddr), String> {
    let of_family =
        |to: &IpAddr| caller.addresses.iter().find(|from| from.is_ipv4() == to.is_ipv4());
    addresses.iter().find_map(|to| Some((*of_family(to)?, *to))).ok_or_else(|| {
        let families = |addresses: &[IpAddr]| match addresses.first() {
            Some(IpAddr::V4(_)) => "IPv4",
            Some(IpAddr::V6(_)) => "IPv6",
            None => "no",
        };
        format!(
            "{} has only {} addresses, {title} only {}: they cannot talk",
            caller.title,
            families(&caller.addresses),
            families(addresses)
        )
    })
}

/// A protocol as people write it.
pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_uppercase().as_str() {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(format!("{text} is no protocol of Services: TCP, UDP or SCTP")),
    }
}

/// The port that is meant, among those that have names: name, protocol, number.
pub(super) fn port(
    text: &str,
    protocol: Option<Protocol>,
    named: &[(&str, Protocol, u16)],
) -> Result<(Protocol, u16), String> {
    if let Ok(number) = text.parse::<u16>() {
        if number == 0 {
            return Err("port 0 is no port".to_owned());
        }
        return Ok((protocol.unwrap_or_default(), number));
    }
    let mut found = named
        .iter()
        .filter(|(name, of, _)| *name == text && protocol.is_none_or(|protocol| protocol == *of));
    match (found.next(), named) {
        (Some((_, protocol, number)), _) => Ok((*protocol, *number)),
        (None, []) => Err(format!("{text} is no number, and the destination names no ports")),
        (None, _) => {
            let names: Vec<String> =
                named.iter().map(|(name, of, number)| format!("{name} ({number}/{of})")).collect();
            Err(format!("the destination has no port {text}: it has {}", names.join(", ")))
        }
    }
}

/// The ports of a Service.
pub(super) fn service_ports(view: &ServiceView) -> Vec<(&str, Protocol, u16)> {
    let ports = view.service.ports.iter();
    ports.map(|port| (port.name.as_ref(), port.protocol, port.port)).collect()
}

/// The ports that a pod's containers declare.
pub(super) fn pod_ports(pod: &PodView) -> Vec<(&str, Protocol, u16)> {
    pod.ports().iter().map(|port| (port.name.as_ref(), port.protocol, port.port)).collect()
}

fn pod_title(pod: &PodView) -> String {
    let network = if pod.host_network { " in the network of its node" } else { "" };
    match &pod.node {
        Some(node) => format!("pod {}{network} on {node}", pod.id),
        None => format!("pod {}{network}", pod.id),
    }
}

pub(super) fn no_node(known: &Known<'_>, node: &str) -> String {
    const SHOWN: usize = 20;
    let names: Vec<&str> = known.world.names().map(AsRef::as_ref).take(SHOWN).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    // Who leaves the namespace out means a pod.
    let pod = known.state.pods().find(|pod| pod.id.name.as_ref() == node);
    let hint = pod.map(|pod| format!("; do you mean the pod {}?", pod.id)).unwrap_or_default();
    format!("there is no node {node}; known are: {names}{hint}")
}
