//! What the switch of one node has to know of a Service, out of what is known of it in the cluster. Pure.

use std::sync::Arc;
use std::time::Duration;

use conf::Balancing;
use conf::cluster::{
    Endpoint, IpFamily, Protocol, Service, ServicePort, ServiceType, ServiceView, TrafficPolicy,
};
use vswitch::service::{self, Algorithm, EndpointState, Family, Frontend};

/// Where, and how, Services are served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Name of the node.
    pub node: Arc<str>,
    /// The zone that it is in.
    pub zone: Option<Arc<str>>,
    /// How an endpoint is chosen.
    pub balancing: Balancing,
}

/// The name of a Service's port, as the switch, its counters and people know it: `namespace/name:port`,
/// with the port's name, or its number when it has none.
pub fn port_name(service: &Service, port: &ServicePort) -> String {
    if port.name.is_empty() {
        format!("{}:{}", service.id, port.port)
    } else {
        format!("{}:{}", service.id, port.name)
    }
}

/// The ports of a Service, one for each family that it has. None when the switch does not serve it: it is
/// headless, a name for a name, refused, or somebody else's.
pub fn service_ports(view: &ServiceView, place: &Place) -> Vec<service::ServicePort> {
    let service = &view.service;
    let is_served = view.refused.is_none()
        && service.proxied
        && !service.is_headless()
        && service.kind != ServiceType::ExternalName;
    if !is_served {
        return Vec::new();
    }
    let of_family = |family| {
        let ports = service.ports.iter().enumerate();
        ports.map(move |(ix, port)| service_port(view, (ix, port), family, place))
    };
    let ports = view.families.iter().flat_map(|family| of_family(*family));
    ports.filter(|port| !port.frontends.is_empty()).collect()
}

fn service_port(
    view: &ServiceView,
    (ix, port): (usize, &ServicePort),
    family: IpFamily,
    place: &Place,
) -> service::ServicePort {
    let service = &view.service;
    service::ServicePort {
        name: port_name(service, port),
        family: match family {
            IpFamily::V4 => Family::V4,
            IpFamily::V6 => Family::V6,
        },
        protocol: match port.protocol {
            Protocol::Tcp => service::Protocol::Tcp,
            Protocol::Udp => service::Protocol::Udp,
            Protocol::Sctp => service::Protocol::Sctp,
        },
        frontends: frontends(view, (ix, port), family),
        endpoints: endpoints(view, port, family, place),
        internal_policy: policy(service.internal_policy),
        external_policy: policy(service.external_policy),
        algorithm: match place.balancing {
            Balancing::Maglev => Algorithm::Maglev,
            Balancing::Random => Algorithm::Random,
            Balancing::LeastConnections => Algorithm::LeastConnections,
        },
        affinity: service.affinity_s.map(|seconds| Duration::from_secs(u64::from(seconds))),
    }
}

fn policy(policy: TrafficPolicy) -> service::TrafficPolicy {
    match policy {
        TrafficPolicy::Cluster => service::TrafficPolicy::Cluster,
        TrafficPolicy::Local => service::TrafficPolicy::Local,
    }
}

/// Where clients send, in the order in which one address would be taken: its own, those for the world, the
/// nodes'.
fn frontends(
    view: &ServiceView,
    (ix, service_port): (usize, &ServicePort),
    family: IpFamily,
) -> Vec<Frontend> {
    let of_family = |address: &&std::net::IpAddr| IpFamily::of(**address) == family;
    let (port, service) = (service_port.port, &view.service);
    let cluster = view.cluster_ips.iter().filter(of_family);
    let cluster = cluster.map(|address| Frontend::ClusterIp { address: *address, port });
    let ranges = &service.load_balancer.source_ranges;
    let load_balancer = view.load_balancer_ips.iter().filter(of_family);
    let load_balancer = load_balancer.map(|address| Frontend::LoadBalancer {
        address: *address,
        port,
        source_ranges: ranges.to_vec(),
    });
    let taken = &view.load_balancer_ips;
    let external = service.external_ips.iter().filter(of_family);
    let external = external.filter(|address| !taken.contains(address));
    let external = external.map(|address| Frontend::ExternalIp { address: *address, port });
    let node_port = view.node_ports.get(ix).copied().flatten();
    let node_port = node_port.map(|port| Frontend::NodePort { port });
    cluster.chain(load_balancer).chain(external).chain(node_port).collect()
}

fn endpoints(
    view: &ServiceView,
    port: &ServicePort,
    family: IpFamily,
    place: &Place,
) -> Vec<service::Endpoint> {
    let Some(port) = view.endpoints.port(&port.name, port.protocol) else { return Vec::new() };
    let found: Vec<(&Endpoint, u16)> = (view.endpoints.of_port(port))
        .filter(|(endpoint, _)| IpFamily::of(endpoint.address) == family)
        .collect();
    let near = Near::of(&found, place);
    let endpoint = |(endpoint, port): (&Endpoint, u16)| service::Endpoint {
        address: endpoint.address,
        port,
        is_local: endpoint.node.as_ref() == Some(&place.node),
        is_near: near.holds(endpoint, place),
        state: match endpoint {
            Endpoint { ready: true, .. } => EndpointState::Ready,
            Endpoint { serving: true, terminating: true, .. } => EndpointState::Draining,
            Endpoint { .. } => EndpointState::Unavailable,
        },
    };
    found.into_iter().map(endpoint).collect()
}

/// Which endpoints are near enough: as kube-proxy's `topologyModeFromHints`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Near {
    /// Those that are meant for this node: every ready one has a hint for nodes, and one for this.
    Node,
    /// Those that are meant for this zone, by the same rule.
    Zone,
    /// All.
    All,
}

impl Near {
    fn of(endpoints: &[(&Endpoint, u16)], place: &Place) -> Self {
        let ready = endpoints.iter().filter(|(endpoint, _)| endpoint.ready);
        let mut hints = ready.map(|(endpoint, _)| &endpoint.hints);
        if hints.clone().all(|hints| !hints.nodes.is_empty())
            && hints.clone().any(|hints| hints.nodes.contains(&place.node))
        {
            return Self::Node;
        }
        let Some(zone) = &place.zone else { return Self::All };
        if hints.clone().all(|hints| !hints.zones.is_empty())
            && hints.any(|hints| hints.zones.contains(zone))
        {
            return Self::Zone;
        }
        Self::All
    }

    fn holds(self, endpoint: &Endpoint, place: &Place) -> bool {
        match self {
            Self::Node => endpoint.hints.nodes.contains(&place.node),
            Self::Zone => {
                place.zone.as_ref().is_some_and(|zone| endpoint.hints.zones.contains(zone))
            }
            Self::All => true,
        }
    }
}
