//! ServiceCIDRs say where cluster IPs are.

use std::net::SocketAddr;

use serde_json::json;
use vswitch::verdict::Reason;
use weft::lab::probe::{EchoServer, tcp_seen_as};

use super::{Cluster, service, slice};
use crate::common::place::{self, pod};
use crate::common::{eventually, may_make_labs};

#[test]
fn nodes_reach_services_where_service_cidrs_say_that_they_are() {
    if !may_make_labs() {
        return;
    }
    let mut cluster = Cluster::new("ranges", 1, "");
    // Outside of what is configured.
    let address = "10.43.0.20";
    cluster.store.set("services", &service("web", "ClusterIP", address));
    cluster.lab.add_nodes(1).unwrap();
    let name = cluster.lab.add_pod("n1").unwrap();
    let server = pod(&cluster.lab, &name);
    let echo = EchoServer::start(&server.namespace, server.addresses[0]).unwrap();
    cluster.store.set("endpointslices", &slice(server.addresses[0], echo.port()));
    let name = cluster.lab.add_pod("n1").unwrap();
    let client = pod(&cluster.lab, &name);
    let node = place::node(&cluster.lab, "n1");
    let at: SocketAddr = format!("{address}:80").parse().unwrap();
    let is_served = |from: &crate::common::traffic::End| tcp_seen_as(&from.namespace, at).is_ok();
    eventually("pods are served by their switch anyhow", || is_served(&client));
    assert!(!is_served(&node), "nobody leads the node there");

    let cidr = |ranges: &[&str]| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "more", "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
            "spec": {"cidrs": ranges},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": ""}]}
        })
    };
    cluster.store.set("servicecidrs", &cidr(&["10.43.0.0/16"]));
    eventually("the node is served", || is_served(&node));
    // An address there that no Service has leads nowhere.
    let none: SocketAddr = "10.43.9.9:80".parse().unwrap();
    let before = cluster.lab.dropped("n1", Reason::NoSuchService);
    tcp_seen_as(&client.namespace, none).unwrap_err();
    assert!(cluster.lab.dropped("n1", Reason::NoSuchService) > before);

    // The pods' own range is none for Services, and that is told.
    cluster.store.set("servicecidrs", &cidr(&["10.244.0.0/20"]));
    let problems = || cluster.lab.admin("n1").unwrap().status().unwrap().problems;
    eventually("the wrong range is told", || {
        problems().iter().any(|it| it.text.contains("10.244.0.0/20 overlaps with the pods' range"))
    });
    cluster.store.delete("servicecidrs", "", "more");
    eventually("nothing is wrong", || problems().is_empty());
    eventually("the node is served no more", || !is_served(&node));
    cluster.lab.finish();
}
