//! `weft explain`, `services`, `endpoints` and `flows` of running nodes, beside what connections really do.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};

use crate::common::{TestLab, eventually, may_make_labs};
use weft::admin::services::FlowsQuery;
use weft::explain::{Answer, Query, Verdict};
use weft::lab::probe::{EchoServer, tcp_seen_as};
use weft::lab::{Family, Lab, LabConfig, address_of};

#[test]
fn explanations_of_running_nodes_are_what_connections_do() {
    if !may_make_labs() {
        return;
    }
    let mut config = LabConfig::new("explain");
    config.nodes = 2;
    config.pods_per_node = 2;
    let lab = TestLab::up(config);
    let servers: Vec<(String, EchoServer)> = ["n1-p2", "n2-p1"]
        .map(|pod| {
            let server = EchoServer::start(&lab.namespace(pod).unwrap(), address(&lab, pod));
            (pod.to_owned(), server.unwrap())
        })
        .into();
    let slice = |pod: &str, node: &str, port: u16| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {pod}\n  \
             namespace: lab\n  labels: {{kubernetes.io/service-name: web}}\naddressType: IPv4\n\
             ports: [{{name: http, port: {port}}}]\nendpoints:\n\
             - {{addresses: [{}], nodeName: {node}, targetRef: {{kind: Pod, name: {pod}, namespace: lab}}}}\n",
            address(&lab, pod)
        )
    };
    let service = |name: &str, more: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: lab}}\n\
             spec: {{{more}ports: [{{name: http, port: 80}}]}}\n"
        )
    };
    let manifest = service("web", "clusterIP: 10.96.0.7, internalTrafficPolicy: Local, ")
        + &service("empty", "clusterIP: 10.96.0.8, ")
        + &slice("n1-p2", "n1", servers[0].1.port())
        + &slice("n2-p1", "n2", servers[1].1.port());
    fs::write(lab.manifests().join("web.yaml"), manifest).unwrap();
    for node in ["n1", "n2"] {
        eventually(&format!("{node} knows the endpoints"), || {
            let endpoints = lab.admin(node).unwrap().endpoints().unwrap();
            endpoints.iter().filter(|end| end.ready).count() == 2
        });
    }

    // Both nodes' switches, each asked at both nodes: what a node says of another is what that one says.
    for (client, endpoint) in [("n1-p1", "n1-p2"), ("n2-p2", "n2-p1")] {
        let port = servers.iter().find(|(pod, _)| pod == endpoint).unwrap().1.port();
        for asked in ["n1", "n2"] {
            let answer = ask(&lab, asked, &format!("lab/{client}"), "lab/web", "http");
            assert_eq!(answer.verdict, Verdict::Forward, "{asked} {client}: {answer:?}");
            assert_eq!(answer.service.as_deref(), Some("lab/web:http"));
            let only = SocketAddr::new(address(&lab, endpoint), port).to_string();
            assert_eq!(answer.endpoints, [only], "{asked} {client}");
            assert!(!answer.masquerade);
        }
        let namespace = lab.namespace(client).unwrap();
        for _ in 0..5 {
            let seen = tcp_seen_as(&namespace, "10.96.0.7:80".parse().unwrap()).unwrap();
            assert_eq!(seen.seen.ip(), address(&lab, client));
        }
    }
    // Who talked through what, at the node of each client alone.
    let query = FlowsQuery { service: Some("lab/web".to_owned()), ..FlowsQuery::default() };
    let flows = lab.admin("n1").unwrap().flows(&query).unwrap().flows;
    assert_eq!(flows.len(), 5, "{flows:?}");
    for flow in &flows {
        assert_eq!(flow.client_pod.as_deref(), Some("lab/n1-p1"));
        assert_eq!(flow.endpoint_pod.as_deref(), Some("lab/n1-p2"));
        assert_eq!((flow.client, flow.frontend), (flow.seen_as, "10.96.0.7:80".parse().unwrap()));
        assert!(flow.bytes_sent > 0 && flow.bytes_received > 0, "{flow:?}");
    }
    let nobodys = FlowsQuery { client: Some("lab/n1-p2".to_owned()), ..query };
    assert!(lab.admin("n1").unwrap().flows(&nobodys).unwrap().flows.is_empty());
    let endpoints = lab.admin("n1").unwrap().endpoints().unwrap();
    let used: BTreeSet<(String, u32)> =
        endpoints.into_iter().map(|end| (end.pod.unwrap_or_default(), end.flows)).collect();
    assert_eq!(used, [("lab/n1-p2".to_owned(), 5), ("lab/n2-p1".to_owned(), 0)].into());

    // Nobody serves: told at once, as it was foretold.
    let answer = ask(&lab, "n1", "lab/n1-p1", "lab/empty", "80");
    assert_eq!((answer.verdict, answer.endpoints.len()), (Verdict::Reject, 0), "{answer:?}");
    let refused = tcp_seen_as(&lab.namespace("n1-p1").unwrap(), "10.96.0.8:80".parse().unwrap());
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);

    // The node itself, and its name.
    let answer = ask(&lab, "n1", "n1", "lab/web", "80");
    assert_eq!((answer.verdict, answer.endpoints.len()), (Verdict::Forward, 1), "{answer:?}");
    let services = lab.admin("n2").unwrap().services().unwrap();
    let seen: Vec<_> = services.iter().map(|one| (&*one.name, one.ready, one.endpoints)).collect();
    assert_eq!(seen, [("empty", 0, 0), ("web", 2, 2)]);
    let fault = lab.admin("n1").unwrap().explain(&query_of("lab/nobody", "lab/web", "80"));
    assert!(format!("{:#}", fault.unwrap_err()).contains("there is no pod lab/nobody"));
    lab.finish();
}

fn address(lab: &Lab, pod: &str) -> IpAddr {
    address_of(&lab.state().pod(pod).unwrap().1.addresses, Family::V4).unwrap()
}

fn query_of(from: &str, to: &str, port: &str) -> Query {
    let [from, to, port] = [from, to, port].map(str::to_owned);
    Query { from, to, port, protocol: None, node: None }
}

fn ask(lab: &Lab, asked: &str, from: &str, to: &str, port: &str) -> Answer {
    lab.admin(asked).unwrap().explain(&query_of(from, to, port)).unwrap().answer
}
