//! `weft services`, `weft endpoints` and `weft flows`: what stands for what, and who is talking through it.

use std::io::Write;

use anyhow::Result;
use conf::cluster::ServiceType;

use super::args::{EndpointsArgs, FlowsArgs, ServicesArgs};
use super::table::Table;
use super::view::{join, print, short_duration, target};
use crate::admin::services::{EndpointStatus, FlowStatus, FlowsQuery, ServiceStatus};

pub(super) fn services(arguments: &ServicesArgs, out: &mut impl Write) -> Result<()> {
    let mut services = target(&arguments.target)?.services()?;
    if let Some(namespace) = &arguments.namespace {
        services.retain(|service| service.namespace == *namespace);
    }
    print(&services, arguments.output.output, out, |out| {
        write!(out, "{}", services_table(&services))
    })
}

pub(super) fn endpoints(arguments: &EndpointsArgs, out: &mut impl Write) -> Result<()> {
    let mut endpoints = target(&arguments.target)?.endpoints()?;
    if let Some(service) = &arguments.service {
        let port = format!("{service}:");
        endpoints.retain(|end| end.service == *service || end.service.starts_with(&port));
    }
    if let Some(namespace) = &arguments.namespace {
        let own = format!("{namespace}/");
        endpoints.retain(|end| end.service.starts_with(&own));
    }
    print(&endpoints, arguments.output.output, out, |out| {
        write!(out, "{}", endpoints_table(&endpoints))
    })
}

pub(super) fn flows(arguments: &FlowsArgs, out: &mut impl Write) -> Result<()> {
    let query = FlowsQuery {
        max: Some(arguments.max),
        service: arguments.service.clone(),
        client: arguments.client.clone(),
    };
    let mut report = target(&arguments.target)?.flows(&query)?;
    // The longest idle last: what goes on now is what people look for.
    report.flows.sort_by_key(|flow| (flow.idle_ms, flow.client, flow.endpoint));
    if report.more {
        eprintln!("weft: there are more flows than {}; --max shows more of them", arguments.max);
    }
    let (used, capacity) = (report.used, report.capacity);
    print(&report.flows, arguments.output.output, out, |out| {
        write!(out, "{}", flows_table(&report.flows))?;
        writeln!(out, "\n{used} entries of {capacity} in use")
    })
}

fn services_table(services: &[ServiceStatus]) -> Table {
    let mut table = Table::new([
        "NAMESPACE",
        "SERVICE",
        "TYPE",
        "CLUSTER IP",
        "EXTERNAL",
        "PORTS",
        "READY",
        "NOTE",
    ]);
    for service in services {
        let ports = service.ports.iter().map(|port| match port.node_port {
            Some(node_port) => format!("{}:{node_port}/{}", port.port, port.protocol),
            None => format!("{}/{}", port.port, port.protocol),
        });
        let cluster_ip =
            if service.headless { "None".to_owned() } else { join(&service.cluster_ips) };
        let external = match &service.external_name {
            Some(name) => name.clone(),
            None => join(&service.external_ips),
        };
        let ready = match service.kind {
            ServiceType::ExternalName => String::new(),
            ServiceType::ClusterIp | ServiceType::NodePort | ServiceType::LoadBalancer => {
                format!("{}/{}", service.ready, service.endpoints)
            }
        };
        let refused = service.refused.iter().map(|why| format!("REFUSED: {why}"));
        let note: Vec<String> = refused.chain(service.problems.iter().cloned()).collect();
        table.row([
            service.namespace.clone(),
            service.name.clone(),
            service.kind.as_str().to_owned(),
            cluster_ip,
            external,
            join(&ports.collect::<Vec<_>>()),
            ready,
            note.join("; "),
        ]);
    }
    table
}

fn endpoints_table(endpoints: &[EndpointStatus]) -> Table {
    let mut table =
        Table::new(["SERVICE", "ENDPOINT", "POD", "NODE", "STATE", "FLOWS HERE"]).right([5]);
    for end in endpoints {
        let address = match (end.port, end.protocol) {
            (Some(port), Some(protocol)) => {
                format!("{}/{protocol}", std::net::SocketAddr::new(end.address, port))
            }
            (Some(_) | None, Some(_) | None) => end.address.to_string(),
        };
        let state = match (end.ready, end.serving, end.terminating) {
            (true, _, false) => "ready",
            (true, _, true) => "ready, terminating",
            (false, true, true) => "terminating, serves",
            (false, false, true) => "terminating",
            (false, _, false) => "not ready",
        };
        table.row([
            end.service.clone(),
            address,
            end.pod.clone().unwrap_or_default(),
            end.node.clone().unwrap_or_default(),
            state.to_owned(),
            end.flows.to_string(),
        ]);
    }
    table
}

fn flows_table(flows: &[FlowStatus]) -> Table {
    let mut table = Table::new([
        "PROTO", "CLIENT", "SERVICE", "ENDPOINT", "STATE", "AGE", "IDLE", "SENT", "RECEIVED",
    ])
    .right([5, 6, 7, 8]);
    for flow in flows {
        let named = |address: std::net::SocketAddr, pod: &Option<String>| match pod {
            Some(pod) => format!("{pod}:{}", address.port()),
            None => address.to_string(),
        };
        let is_plain = flow.frontend == flow.endpoint;
        let unnamed = || if is_plain { String::new() } else { flow.frontend.to_string() };
        let service = flow.service.clone().unwrap_or_else(unnamed);
        let mut endpoint = named(flow.endpoint, &flow.endpoint_pod);
        if flow.seen_as.ip() != flow.client.ip() {
            endpoint.push_str(" (sees the switch)");
        }
        table.row([
            flow.protocol.clone(),
            named(flow.client, &flow.client_pod),
            service,
            endpoint,
            flow.state.clone(),
            short_duration(flow.age_ms / 1000),
            short_duration(flow.idle_ms / 1000),
            bytes(flow.bytes_sent),
            bytes(flow.bytes_received),
        ]);
    }
    table
}

/// Bytes with three digits at most, in decimal units.
fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    let Some((unit, name)) = UNITS.iter().find(|(unit, _)| count >= *unit) else {
        return format!("{count} B");
    };
    let value = count as f64 / *unit as f64;
    if value < 9.95 { format!("{value:.1} {name}") } else { format!("{value:.0} {name}") }
}

#[cfg(test)]
mod tests {
    use conf::cluster::Protocol;

    use super::*;
    use crate::admin::services::ServicePortStatus;

    #[test]
    fn services_are_a_line_each() {
        let web = ServiceStatus {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            kind: ServiceType::NodePort,
            headless: false,
            cluster_ips: vec!["10.96.0.7".parse().unwrap(), "fd00:10:96::7".parse().unwrap()],
            external_ips: vec!["198.51.100.9".parse().unwrap()],
            external_name: None,
            ports: vec![ServicePortStatus {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: Some(30080),
            }],
            ready: 1,
            endpoints: 2,
            refused: None,
            problems: Vec::new(),
        };
        let docs = ServiceStatus {
            name: "docs".to_owned(),
            kind: ServiceType::ExternalName,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            external_name: Some("docs.example.org".to_owned()),
            ports: Vec::new(),
            ..web.clone()
        };
        let db = ServiceStatus {
            name: "db".to_owned(),
            kind: ServiceType::ClusterIp,
            headless: true,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            refused: Some("spec.clusterIP: no".to_owned()),
            ports: Vec::new(),
            ..web.clone()
        };
        assert_eq!(
            services_table(&[web, docs, db]).to_string(),
            "\
NAMESPACE  SERVICE  TYPE          CLUSTER IP                EXTERNAL          PORTS         READY  NOTE
default    web      NodePort      10.96.0.7, fd00:10:96::7  198.51.100.9      80:30080/TCP  1/2    -
default    docs     ExternalName  -                         docs.example.org  -             -      -
default    db       ClusterIP     None                      -                 -             1/2    REFUSED: spec.clusterIP: no
"
        );
    }

    #[test]
    fn endpoints_say_their_state_and_who_is_left() {
        let ready = EndpointStatus {
            service: "default/web:http".to_owned(),
            protocol: Some(Protocol::Tcp),
            address: "10.244.1.5".parse().unwrap(),
            port: Some(8080),
            pod: Some("default/web-0".to_owned()),
            node: Some("n1".to_owned()),
            zone: None,
            ready: true,
            serving: true,
            terminating: false,
            flows: 12,
        };
        let ending = EndpointStatus {
            address: "fd00::5".parse().unwrap(),
            pod: None,
            node: None,
            ready: false,
            terminating: true,
            flows: 3,
            ..ready.clone()
        };
        assert_eq!(
            endpoints_table(&[ready, ending]).to_string(),
            "\
SERVICE           ENDPOINT             POD            NODE  STATE                FLOWS HERE
default/web:http  10.244.1.5:8080/TCP  default/web-0  n1    ready                        12
default/web:http  [fd00::5]:8080/TCP   -              -     terminating, serves           3
"
        );
    }

    #[test]
    fn flows_say_who_talks_through_what() {
        let flow = FlowStatus {
            protocol: "TCP".to_owned(),
            client: "10.244.1.9:40000".parse().unwrap(),
            client_pod: Some("default/client".to_owned()),
            service: Some("default/web:http".to_owned()),
            frontend: "10.96.0.7:80".parse().unwrap(),
            endpoint: "10.244.2.5:8080".parse().unwrap(),
            endpoint_pod: Some("default/web-1".to_owned()),
            seen_as: "10.244.1.9:40000".parse().unwrap(),
            state: "ESTABLISHED".to_owned(),
            age_ms: 61_000,
            idle_ms: 200,
            expires_ms: 86_400_000,
            packets_sent: 10,
            bytes_sent: 999,
            packets_received: 12,
            bytes_received: 1_250_000,
        };
        let outside = FlowStatus {
            client: "203.0.113.9:50000".parse().unwrap(),
            client_pod: None,
            seen_as: "10.244.1.0:50000".parse().unwrap(),
            service: None,
            ..flow.clone()
        };
        let echo = FlowStatus {
            protocol: "ICMP".to_owned(),
            service: None,
            frontend: flow.endpoint,
            state: "REPLIED".to_owned(),
            ..flow.clone()
        };
        assert_eq!(
            flows_table(&[flow, outside, echo]).to_string(),
            "\
PROTO  CLIENT                SERVICE           ENDPOINT                              STATE          AGE  IDLE   SENT  RECEIVED
TCP    default/client:40000  default/web:http  default/web-1:8080                    ESTABLISHED  1m01s    0s  999 B    1.2 MB
TCP    203.0.113.9:50000     10.96.0.7:80      default/web-1:8080 (sees the switch)  ESTABLISHED  1m01s    0s  999 B    1.2 MB
ICMP   default/client:40000  -                 default/web-1:8080                    REPLIED      1m01s    0s  999 B    1.2 MB
"
        );
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(9_960), "10 kB");
        assert_eq!(bytes(123_456_789), "123 MB");
    }
}
