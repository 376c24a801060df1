//! What becomes of a packet to a Service.

use std::net::IpAddr;

use crate::service::{Family, FrontendKind, Pool, Protocol, Service, TrafficPolicy};
use crate::tables::{Route, Tables};
use crate::verdict::Reason;

/// Who asks. It decides which traffic policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A pod of the cluster.
    Pod,
    /// The node itself, or a pod in its network namespace.
    Node,
    /// The world outside, which other nodes are, too.
    Outside,
    /// What another node sends through the tunnel. That node has decided already, save about what only this one
    /// serves.
    Peer,
}

impl Class {
    /// What comes in by the node's own interface from `source`.
    pub(crate) fn of_host(tables: &Tables, source: IpAddr) -> Self {
        let is_own = tables.route(source) == Route::Host
            || tables.services().node_addresses().contains(&source);
        if is_own { Self::Node } else { Self::Outside }
    }

    /// What `address` would be as a client, for explanations.
    pub fn of(tables: &Tables, address: IpAddr) -> Self {
        match tables.route(address) {
            Route::Port(_) | Route::Nobody => Self::Pod,
            Route::Node(_) if !tables.is_node(address) => Self::Pod,
            Route::Node(_) | Route::Host | Route::Router | Route::Outside => {
                Self::of_host(tables, address)
            }
        }
    }
}

/// Where a packet was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Destination address.
    pub address: IpAddr,
    /// Protocol and port, if the protocol is one that Services can have.
    pub port: Option<(Protocol, u16)>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy)]
pub enum Decision<'t> {
    /// It was not sent to a Service: it is routed by its destination address.
    Pass,
    /// It goes to one of these endpoints.
    Choose(Choice<'t>),
    /// It ends here.
    Refuse(Refusal<'t>),
}

/// The endpoints that may serve a packet.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'t> {
    /// The Service.
    pub service: &'t Service,
    /// Those of its endpoints that may be chosen. Not empty.
    pub pool: &'t Pool,
    /// By which kind of frontend it came.
    pub kind: FrontendKind,
    /// Which of the Service's endpoints serve this client.
    pub policy: TrafficPolicy,
}

/// Why a packet ends at the switch.
#[derive(Debug, Clone, Copy)]
pub struct Refusal<'t> {
    /// The Service, if there is one.
    pub service: Option<&'t Service>,
    /// Why.
    pub reason: Reason,
    /// Whether its sender is told, by a TCP reset or an ICMP error.
    pub is_told: bool,
}

/// Decides what becomes of a packet of a `class` client with address `source`.
pub fn decide(tables: &Tables, class: Class, source: IpAddr, target: Target) -> Decision<'_> {
    let table = tables.services();
    let address = target.address;
    if class == Class::Peer {
        let found =
            target.port.and_then(|(protocol, port)| table.frontend(address, port, protocol));
        return match found {
            Some((service, kind @ FrontendKind::HostPort)) => {
                choose(class, source, address, service, kind)
            }
            Some(_) | None => Decision::Pass,
        };
    }
    let found = target.port.and_then(|(protocol, port)| {
        table.frontend(address, port, protocol).or_else(|| {
            let is_node = is_node_address(tables, class, address);
            let service = is_node.then(|| table.node_port(Family::of(address), port, protocol));
            Some((service??, FrontendKind::NodePort))
        })
    });
    match found {
        Some((service, kind)) => choose(class, source, address, service, kind),
        // As kube-proxy does: an address that a Service has refuses its other ports, and one that no
        // Service has is silent, since its Service may be on its way here.
        None if table.owns(address) => refuse(None, Reason::NoSuchPort),
        None if table.is_in_range(address) => drop(None, Reason::NoSuchService),
        None => Decision::Pass,
    }
}

fn choose<'t>(
    class: Class,
    source: IpAddr,
    address: IpAddr,
    service: &'t Service,
    kind: FrontendKind,
) -> Decision<'t> {
    if kind == FrontendKind::LoadBalancer && !service.admits(address, source) {
        return drop(Some(service), Reason::SourceRange);
    }
    if !service.has_endpoint() {
        return refuse(Some(service), Reason::NoEndpoint);
    }
    let policy = match (kind, class) {
        (FrontendKind::ClusterIp, _) => service.spec().internal_policy,
        // From inside the cluster the way to an external address is cut short: neither policy counts.
        (_, Class::Pod | Class::Node) => TrafficPolicy::Cluster,
        (_, Class::Outside | Class::Peer) => service.spec().external_policy,
    };
    let pool = match policy {
        TrafficPolicy::Cluster => service.cluster(),
        TrafficPolicy::Local => service.local(),
    };
    if pool.is_empty() {
        return drop(Some(service), Reason::NoLocalEndpoint);
    }
    Decision::Choose(Choice { service, pool, kind, policy })
}

/// Whether NodePorts of `address` are served here. Pods' packets are decided about at the pod's own node,
/// whichever node they are for.
fn is_node_address(tables: &Tables, class: Class, address: IpAddr) -> bool {
    tables.node.underlay == Some(address)
        || tables.services().node_addresses().contains(&address)
        || (class == Class::Pod && tables.is_node(address))
}

fn refuse(service: Option<&Service>, reason: Reason) -> Decision<'_> {
    Decision::Refuse(Refusal { service, reason, is_told: true })
}

fn drop(service: Option<&Service>, reason: Reason) -> Decision<'_> {
    Decision::Refuse(Refusal { service, reason, is_told: false })
}

/// Whether the endpoint at `endpoint` must see the switch in place of the client, so that its replies come back
/// by this switch.
///
/// Everywhere else the client's own address is kept.
pub fn must_masquerade(tables: &Tables, class: Class, source: IpAddr, endpoint: IpAddr) -> bool {
    let route = tables.route(endpoint);
    match class {
        // Hairpin: nobody believes a packet from its own address.
        Class::Pod => match (tables.route(source), route) {
            (Route::Port(own), Route::Port(other)) => own == other,
            _ => source == endpoint,
        },
        Class::Node => match route {
            Route::Port(_) => false,
            // Other nodes believe this one its own addresses, and send replies to them back through the tunnel.
            Route::Node(_) => tables.route(source) != Route::Host,
            // The node would answer itself, and the world outside the node, without asking the switch.
            Route::Host | Route::Outside | Route::Router | Route::Nobody => true,
        },
        Class::Outside | Class::Peer => !matches!(route, Route::Port(_)),
    }
}
