//! v1 Pod, as far as the network goes. What else it has is the kubelet's, and is not looked at.

use std::net::IpAddr;
use std::sync::Arc;

use super::meta::meta;
use super::reader::{Fields, Item};
use super::service::PROTOCOLS;
use crate::cluster::names;
use crate::cluster::object::{ContainerPort, Pod, Protocol};

/// Most containers of a pod. Kubernetes sets no bound but the object's size.
const CONTAINERS_MAX: usize = 1000;

/// Most ports of a container.
const PORTS_MAX: usize = 1000;

pub(super) fn pod(object: &mut Fields<'_>) -> Option<Arc<Pod>> {
    let meta = meta(object, names::dns1123_subdomain, true);
    let mut spec = object.need("spec")?.fields()?;
    let node = spec.get("nodeName").filter(|item| item.text() != Some(""));
    let node = node.and_then(|item| item.name(names::dns1123_subdomain));
    let hostname = spec.get("hostname").filter(|item| item.text() != Some(""));
    let hostname = hostname.and_then(|item| item.name(names::dns1123_label));
    let subdomain = spec.get("subdomain").filter(|item| item.text() != Some(""));
    let subdomain = subdomain.and_then(|item| item.name(names::dns1123_label));
    let host_network = spec.get("hostNetwork").and_then(|item| item.yes()).unwrap_or(false);
    let mut ports = Vec::new();
    for item in spec.list("containers", CONTAINERS_MAX) {
        if let Some(mut container) = item.fields() {
            container_ports(&mut container, &mut ports);
        }
    }
    for item in spec.list("initContainers", CONTAINERS_MAX) {
        let Some(mut container) = item.fields() else { continue };
        // Sidecars: they run beside the containers, others end before these start.
        let restarts = container.get("restartPolicy");
        if restarts.is_some_and(|item| item.text() == Some("Always")) {
            container_ports(&mut container, &mut ports);
        }
    }
    let status = object.map("status").map(|mut status| status_of(&mut status)).unwrap_or_default();
    let meta = meta?;
    Some(Arc::new(Pod {
        id: meta.id(),
        labels: meta.labels,
        node,
        hostname,
        subdomain,
        host_network,
        ports: ports.into(),
        addresses: status.addresses.into(),
        ready: status.ready,
        finished: status.finished,
        terminating: meta.terminating,
    }))
}

fn container_ports(container: &mut Fields<'_>, ports: &mut Vec<ContainerPort>) {
    for item in container.list("ports", PORTS_MAX) {
        let Some(mut fields) = item.fields() else { continue };
        let name = fields.get("name").filter(|item| item.text() != Some(""));
        let name = name.map_or_else(|| Some("".into()), |item| item.name(names::service_name));
        let protocol =
            fields.get("protocol").map_or(Some(Protocol::Tcp), |item| item.one_of(&PROTOCOLS));
        let port = fields.need("containerPort").and_then(|item| item.port());
        let host_port = fields
            .get("hostPort")
            .and_then(|item| item.whole(0, 65_535, "port"))
            .and_then(|port| u16::try_from(port).ok().filter(|port| *port != 0));
        let host_ip = fields.get("hostIP").filter(|item| item.text() != Some(""));
        let host_ip = host_ip.and_then(|item| item.checked(names::address));
        fields.finish();
        if let (Some(name), Some(protocol), Some(port)) = (name, protocol, port) {
            ports.push(ContainerPort { name, protocol, port, host_port, host_ip });
        }
    }
}

#[derive(Default)]
struct Status {
    addresses: Vec<IpAddr>,
    ready: Option<bool>,
    finished: bool,
}

fn status_of(status: &mut Fields<'_>) -> Status {
    let mut found = Status::default();
    let address = |item: Item<'_>| item.checked(names::address);
    for item in status.list("podIPs", 2) {
        let ip = item.fields().and_then(|mut fields| fields.get("ip"));
        found.addresses.extend(ip.and_then(address));
    }
    let single = status.get("podIP").filter(|item| item.text() != Some(""));
    if let Some(single) = single.and_then(address)
        && found.addresses.is_empty()
    {
        found.addresses.push(single);
    }
    for item in status.list("conditions", CONTAINERS_MAX) {
        let Some(mut condition) = item.fields() else { continue };
        if condition.get("type").is_some_and(|item| item.text() == Some("Ready")) {
            found.ready =
                Some(condition.get("status").is_some_and(|item| item.text() == Some("True")));
        }
    }
    match status.get("phase").and_then(|item| item.text()) {
        Some("Succeeded" | "Failed") => found.finished = true,
        // It has not started: no container of it can be ready.
        Some("Pending") => found.ready = Some(found.ready.unwrap_or(false)),
        Some(_) | None => {}
    }
    found
}
