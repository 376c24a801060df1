//! Which endpoints a Service has: the pods that it selects, and what slices say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::fact::PodView;
use super::object::{
    EndpointSlice, Hints, ObjectName, Protocol, Service, SliceEndpoint, TargetPort,
    TrafficDistribution,
};
use super::state::one_of_each;

/// All endpoints of a Service, of both families, whatever their condition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// The endpoints, each once, by address.
    pub endpoints: Box<[Endpoint]>,
    /// What is served at them, by name and protocol.
    pub ports: Box<[EndpointPort]>,
}

impl ServiceEndpoints {
    /// The port of this name and protocol.
    pub fn port(&self, name: &str, protocol: Protocol) -> Option<&EndpointPort> {
        self.ports.iter().find(|port| port.protocol == protocol && port.name.as_ref() == name)
    }

    /// The endpoints that serve a port, each with its port number.
    pub fn of_port(&self, port: &EndpointPort) -> impl Iterator<Item = (&Endpoint, u16)> {
        let at = |(ix, number): &(u32, u16)| Some((self.endpoints.get(*ix as usize)?, *number));
        port.targets.iter().filter_map(at)
    }
}

/// Somewhere that a Service is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Takes new connections: it is serving and not terminating, or the Service publishes all.
    pub ready: bool,
    /// Answers, though it may be terminating.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
    /// The name under the Service's own name, in the DNS.
    pub hostname: Option<Arc<str>>,
    /// The node that it is on.
    pub node: Option<Arc<str>>,
    /// The zone that it is in.
    pub zone: Option<Arc<str>>,
    /// For clients where it is meant to be.
    pub hints: Hints,
    /// The pod behind it.
    pub pod: Option<ObjectName>,
}

/// A port of a Service, as its endpoints have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// Name of the port; empty when it has none.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// `appProtocol`.
    pub app_protocol: Option<Arc<str>>,
    /// Index in [`ServiceEndpoints::endpoints`] and port number, sorted.
    pub targets: Box<[(u32, u16)]>,
}

/// Gathers a Service's endpoints. An endpoint in a slice takes precedence over a pod with its address:
/// somebody has said it in so many words.
pub(super) fn gather<'a>(
    service: &Service,
    pods: impl IntoIterator<Item = &'a PodView>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> ServiceEndpoints {
    let mut gathering = Gathering::default();
    for slice in slices {
        for endpoint in &slice.endpoints {
            let ports = slice.ports.iter().filter_map(|port| {
                let key = (Arc::clone(&port.name), port.protocol);
                Some((key, port.app_protocol.clone(), port.port?))
            });
            gathering.add(from_slice(endpoint), ports);
        }
    }
    let from_slices = gathering.endpoints.len();
    for pod in pods.into_iter().filter(|pod| !pod.is_finished()) {
        // Further ones are those of further interfaces.
        for address in &one_of_each(&pod.addresses) {
            let ports = service.ports.iter().filter_map(|port| {
                let number = match &port.target {
                    TargetPort::Number(number) => *number,
                    TargetPort::Name(name) => {
                        let mut ports = pod.ports().iter();
                        ports.find(|at| at.name == *name && at.protocol == port.protocol)?.port
                    }
                };
                Some(((Arc::clone(&port.name), port.protocol), port.app_protocol.clone(), number))
            });
            if gathering.is_known(*address, from_slices) {
                continue;
            }
            gathering.add(from_pod(service, pod, *address), ports);
        }
    }
    gathering.finish()
}

/// What the endpoints of a slice are.
fn from_slice(endpoint: &SliceEndpoint) -> Endpoint {
    let SliceEndpoint { address, ready, serving, terminating, .. } = *endpoint;
    Endpoint {
        address,
        ready,
        serving,
        terminating,
        hostname: endpoint.hostname.clone(),
        node: endpoint.node.clone(),
        zone: endpoint.zone.clone(),
        hints: endpoint.hints.clone(),
        pod: endpoint.pod.clone(),
    }
}

/// What the endpoint slice controller of Kubernetes writes for a pod.
fn from_pod(service: &Service, pod: &PodView, address: IpAddr) -> Endpoint {
    let (serving, terminating) = (pod.is_ready(), pod.is_terminating());
    let one = |name: &Option<Arc<str>>| name.iter().cloned().collect::<Box<[_]>>();
    let hints = match service.distribution {
        None => Hints::default(),
        Some(TrafficDistribution::PreferSameZone) => {
            Hints { zones: one(&pod.zone), nodes: Box::default() }
        }
        Some(TrafficDistribution::PreferSameNode) => {
            Hints { zones: one(&pod.zone), nodes: one(&pod.node) }
        }
    };
    let in_subdomain = pod.subdomain() == Some(&service.id.name);
    Endpoint {
        address,
        ready: service.publish_not_ready || (serving && !terminating),
        serving,
        terminating,
        hostname: pod.hostname().filter(|_| in_subdomain).cloned(),
        node: pod.node.clone(),
        zone: pod.zone.clone(),
        hints,
        pod: Some(pod.id.clone()),
    }
}

type PortKey = (Arc<str>, Protocol);

#[derive(Default)]
struct Gathering {
    endpoints: Vec<Endpoint>,
    by_address: BTreeMap<IpAddr, usize>,
    ports: BTreeMap<PortKey, GatheredPort>,
}

#[derive(Default)]
struct GatheredPort {
    app_protocol: Option<Arc<str>>,
    /// Index in the endpoints in the order of their finding, and port number.
    targets: BTreeSet<(usize, u16)>,
}

impl Gathering {
    /// Whether one of the first `count` endpoints has this address.
    fn is_known(&self, address: IpAddr, count: usize) -> bool {
        self.by_address.get(&address).is_some_and(|ix| *ix < count)
    }

    /// Adds an endpoint. Of several with one address, as while it moves from slice to slice, the one in the
    /// best condition counts.
    fn add(
        &mut self,
        endpoint: Endpoint,
        ports: impl Iterator<Item = (PortKey, Option<Arc<str>>, u16)>,
    ) {
        let ix = match self.by_address.get(&endpoint.address) {
            Some(ix) => {
                let known = &mut self.endpoints[*ix];
                let condition = |of: &Endpoint| (of.ready, of.serving, !of.terminating);
                if condition(&endpoint) > condition(known) {
                    *known = endpoint;
                }
                *ix
            }
            None => {
                let ix = self.endpoints.len();
                self.by_address.insert(endpoint.address, ix);
                self.endpoints.push(endpoint);
                ix
            }
        };
        for (key, app_protocol, number) in ports {
            let port = self.ports.entry(key).or_default();
            if port.app_protocol.is_none() {
                port.app_protocol = app_protocol;
            }
            port.targets.insert((ix, number));
        }
    }

    fn finish(self) -> ServiceEndpoints {
        // By address, so that the outcome does not depend on the order in which things were found.
        let places: BTreeMap<usize, u32> = self.by_address.values().copied().zip(0_u32..).collect();
        let mut endpoints: Vec<_> = self.endpoints.into_iter().map(Some).collect();
        let ports = self.ports.into_iter().map(|((name, protocol), port)| {
            let target = |(ix, number): (usize, u16)| Some((*places.get(&ix)?, number));
            let mut targets: Vec<_> = port.targets.into_iter().filter_map(target).collect();
            targets.sort_unstable();
            let app_protocol = port.app_protocol;
            EndpointPort { name, protocol, app_protocol, targets: targets.into() }
        });
        ServiceEndpoints {
            ports: ports.collect(),
            endpoints: (self.by_address.into_values())
                .filter_map(|ix| endpoints.get_mut(ix)?.take())
                .collect(),
        }
    }
}
