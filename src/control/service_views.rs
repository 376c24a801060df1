//! Services, endpoints and flows at one moment, written out beside the control side: there may be very many.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use conf::cluster::{ClusterState, Protocol, ServiceView};
use vswitch::flows::{FlowTable, FlowView};
use vswitch::service;
use vswitch::tables::Tables;

use super::endpoints::port_name;
use super::{Control, SharedCluster};
use crate::admin::services::{
    EndpointStatus, FlowStatus, FlowsQuery, FlowsReport, ServicePortStatus, ServiceStatus,
};
use crate::explain::world::pod_at;

/// Most flows that one answer tells: some ten megabytes.
const FLOWS_MAX: usize = 50_000;

/// What answers are made of. It holds nothing up.
#[derive(Debug, Clone)]
pub struct ServiceViews {
    cluster: SharedCluster,
    flows: Arc<FlowTable>,
    tables: Arc<Tables>,
}

impl Control {
    /// Services, endpoints and flows, to be written out.
    pub fn service_views(&self) -> ServiceViews {
        ServiceViews {
            cluster: self.cluster(),
            flows: Arc::clone(self.engine.flows()),
            tables: self.engine.tables(),
        }
    }
}

impl ServiceViews {
    /// All Services, in the order of namespace and name.
    pub fn services(&self) -> Vec<ServiceStatus> {
        self.cluster.read().services().map(|view| service_status(view)).collect()
    }

    /// All endpoints of all Services, in the order of the Services.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        let mut flows: HashMap<(service::Protocol, (IpAddr, u16)), u32> = HashMap::new();
        for flow in self.flows.view(Instant::now(), usize::MAX, is_of_service) {
            if let Some(protocol) = flow.protocol.service() {
                *flows.entry((protocol, flow.endpoint)).or_default() += 1;
            }
        }
        let count = |protocol: Protocol, endpoint: (IpAddr, u16)| {
            flows.get(&(of_switch(protocol), endpoint)).copied().unwrap_or(0)
        };
        let state = self.cluster.read();
        state.services().flat_map(|view| endpoint_statuses(view, &count)).collect()
    }

    /// Flows to Services, and those of pods to which policies apply.
    ///
    /// # Errors
    /// When the client that is asked for is not known.
    pub fn flows(&self, query: &FlowsQuery) -> Result<FlowsReport, String> {
        let FlowsQuery { max, service, client } = query;
        let state = self.cluster.read();
        let clients = client.as_deref().map(|client| clients(&state, client)).transpose()?;
        let services = self.tables.services();
        let is_wanted = |flow: &FlowView| {
            let is_client = clients.as_ref().is_none_or(|clients| clients.contains(&flow.client.0));
            is_client
                && service.as_ref().is_none_or(|wanted| {
                    let name = flow.service_name(services);
                    name.is_some_and(|name| is_of(name, wanted))
                })
        };
        let max = max.unwrap_or(FLOWS_MAX).min(FLOWS_MAX);
        let mut found = self.flows.view(Instant::now(), max + 1, is_wanted);
        let more = found.len() > max;
        found.truncate(max);
        let pod = |address: IpAddr| pod_at(&state, address).map(|pod| pod.id.to_string());
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let flows = found.into_iter().map(|flow| FlowStatus {
            protocol: flow.protocol.to_string(),
            client: SocketAddr::from(flow.client),
            client_pod: pod(flow.client.0),
            service: flow.service_name(services).map(str::to_owned),
            frontend: SocketAddr::from(flow.frontend),
            endpoint: SocketAddr::from(flow.endpoint),
            endpoint_pod: pod(flow.endpoint.0),
            seen_as: SocketAddr::from(flow.seen_as),
            state: flow.state.to_owned(),
            age_ms: millis(flow.age),
            idle_ms: millis(flow.idle),
            expires_ms: millis(flow.expires),
            packets_sent: flow.packets_original,
            bytes_sent: flow.bytes_original,
            packets_received: flow.packets_reply,
            bytes_received: flow.bytes_reply,
        });
        Ok(FlowsReport {
            flows: flows.collect(),
            more,
            used: self.flows.len(),
            capacity: self.flows.capacity(),
        })
    }
}

/// Whether a flow is to a Service. The others are those of pods that policies are about.
fn is_of_service(flow: &FlowView) -> bool {
    !flow.is_plain()
}

/// Whether `namespace/name:port` is of the Service, or the port, that somebody asks for.
fn is_of(name: &str, wanted: &str) -> bool {
    name.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

fn clients(state: &ClusterState, text: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = text.parse() {
        return Ok(vec![address]);
    }
    let pod = text.split_once('/').and_then(|(namespace, name)| state.pod(namespace, name));
    let pod =
        pod.ok_or_else(|| format!("{text} is neither an address nor a known pod NAMESPACE/POD"))?;
    Ok(pod.addresses.to_vec())
}

fn service_status(view: &ServiceView) -> ServiceStatus {
    let service = &view.service;
    let node_port = |ix: usize| view.node_ports.get(ix).copied().flatten();
    let port = |(ix, port): (usize, &conf::cluster::ServicePort)| ServicePortStatus {
        name: port.name.to_string(),
        protocol: port.protocol,
        port: port.port,
        node_port: node_port(ix),
    };
    let balancers = view.load_balancer_ips.iter();
    let own = service.external_ips.iter().filter(|own| !view.load_balancer_ips.contains(own));
    let told =
        |problem: &conf::cluster::ServiceProblem| format!("{}: {}", problem.field, problem.reason);
    let endpoints = &view.endpoints.endpoints;
    ServiceStatus {
        namespace: service.id.namespace.to_string(),
        name: service.id.name.to_string(),
        kind: service.kind,
        headless: service.is_headless(),
        cluster_ips: view.cluster_ips.to_vec(),
        external_ips: balancers.chain(own).copied().collect(),
        external_name: service.external_name.as_ref().map(ToString::to_string),
        ports: service.ports.iter().enumerate().map(port).collect(),
        ready: endpoints.iter().filter(|endpoint| endpoint.ready).count(),
        endpoints: endpoints.len(),
        refused: view.refused.as_ref().map(told),
        problems: view.problems.iter().map(told).collect(),
    }
}

fn endpoint_statuses(
    view: &ServiceView,
    flows: &impl Fn(Protocol, (IpAddr, u16)) -> u32,
) -> Vec<EndpointStatus> {
    let service = &view.service;
    let status = |endpoint: &conf::cluster::Endpoint| EndpointStatus {
        service: service.id.to_string(),
        protocol: None,
        address: endpoint.address,
        port: None,
        pod: endpoint.pod.as_ref().map(ToString::to_string),
        node: endpoint.node.as_ref().map(ToString::to_string),
        zone: endpoint.zone.as_ref().map(ToString::to_string),
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        flows: 0,
    };
    if service.ports.is_empty() {
        return view.endpoints.endpoints.iter().map(status).collect();
    }
    let ports = service.ports.iter().filter_map(|port| {
        let of_port = view.endpoints.port(&port.name, port.protocol)?;
        Some(view.endpoints.of_port(of_port).map(move |(endpoint, number)| EndpointStatus {
            service: port_name(service, port),
            protocol: Some(port.protocol),
            port: Some(number),
            flows: flows(port.protocol, (endpoint.address, number)),
            ..status(endpoint)
        }))
    });
    ports.flatten().collect()
}

fn of_switch(protocol: Protocol) -> service::Protocol {
    match protocol {
        Protocol::Tcp => service::Protocol::Tcp,
        Protocol::Udp => service::Protocol::Udp,
        Protocol::Sctp => service::Protocol::Sctp,
    }
}

#[cfg(test)]
mod tests {
    use conf::cluster::parse::parse;
    use conf::source::Directory;

    use super::*;

    #[test]
    fn services_and_endpoints_tell_what_they_were_given() {
        let text = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.7
  externalIPs: [198.51.100.9]
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: default, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIP: 10.244.1.5}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: default, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c}]}
status: {podIP: 10.244.2.5, conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: v1
kind: Service
metadata: {name: all, namespace: default}
spec: {clusterIP: None, selector: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: web-again, namespace: default}
spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}
";
        let mut state = ClusterState::default();
        state.apply(Directory::new().set_file("all.yaml", parse(text)));
        let services: Vec<_> = state.services().map(|view| service_status(view)).collect();
        let [all, web, again] = services.as_slice() else { panic!("{services:?}") };
        assert!(all.headless && all.cluster_ips.is_empty());
        assert!(again.refused.as_ref().unwrap().contains("default/web"), "{again:?}");
        assert_eq!((web.ready, web.endpoints), (1, 2));
        assert_eq!(web.cluster_ips, [IpAddr::from([10, 96, 0, 7])]);
        assert_eq!(web.external_ips, [IpAddr::from([198, 51, 100, 9])]);
        assert_eq!(web.ports[0].node_port, Some(30080));

        let busy = |_: Protocol, endpoint: (IpAddr, u16)| u32::from(endpoint.1 == 8080) * 3;
        let view = state.service("default", "web").unwrap();
        let endpoints = endpoint_statuses(view, &busy);
        let seen: Vec<_> = endpoints
            .iter()
            .map(|end| (&*end.service, end.pod.as_deref().unwrap(), end.port, end.ready, end.flows))
            .collect();
        assert_eq!(
            seen,
            [
                ("default/web:http", "default/web-0", Some(8080), true, 3),
                ("default/web:http", "default/web-1", Some(8080), false, 3),
            ]
        );
        let view = state.service("default", "all").unwrap();
        let endpoints = endpoint_statuses(view, &busy);
        assert_eq!(endpoints.len(), 2);
        assert!(endpoints.iter().all(|end| end.port.is_none() && end.service == "default/all"));
        assert_eq!(clients(&state, "default/web-0").unwrap(), [IpAddr::from([10, 244, 1, 5])]);
        assert!(clients(&state, "default/nobody").is_err());
    }

    #[test]
    fn a_service_is_asked_for_with_or_without_its_port() {
        for (name, wanted, is) in [
            ("default/web:http", "default/web", true),
            ("default/web:http", "default/web:http", true),
            ("default/web:http", "default/we", false),
            ("default/web-2:http", "default/web", false),
        ] {
            assert_eq!(is_of(name, wanted), is, "{name} {wanted}");
        }
    }
}
