//! discovery.k8s.io/v1 EndpointSlice, by the rules of `ValidateEndpointSlice` in Kubernetes'
//! `pkg/apis/discovery/validation`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::meta::meta;
use super::reader::{Fields, Item};
use super::service::{PROTOCOLS, is_proxied};
use crate::cluster::names;
use crate::cluster::object::{
    EndpointSlice, Hints, IpFamily, ObjectName, Protocol, SliceEndpoint, SlicePort,
};

/// Most endpoints of a slice (`maxEndpoints`).
const ENDPOINTS_MAX: usize = 1000;

/// Most addresses of an endpoint (`maxAddresses`).
const ADDRESSES_MAX: usize = 100;

/// Most ports of a slice (`maxPorts`).
const PORTS_MAX: usize = 20_000;

/// Most hints of an endpoint (`maxZoneHints`, `maxNodeHints`).
const HINTS_MAX: usize = 8;

/// Which Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(super) fn slice(object: &mut Fields<'_>) -> Option<Arc<EndpointSlice>> {
    let meta = meta(object, names::dns1123_subdomain, true);
    let family = object.need("addressType").and_then(|item| match item.text()? {
        "IPv4" => Some(IpFamily::V4),
        "IPv6" => Some(IpFamily::V6),
        "FQDN" => {
            item.refuse("names as endpoints are not served, as by kube-proxy: give addresses");
            None
        }
        other => {
            item.refuse(format!("{:?} is none of IPv4, IPv6", super::shorten(other)));
            None
        }
    });
    let namespace = meta.as_ref().map(|meta| Arc::clone(&meta.namespace)).unwrap_or_default();
    let items = object.list("endpoints", ENDPOINTS_MAX);
    let endpoints = items.iter().filter_map(|item| endpoint(item, family, &namespace)).collect();
    let ports = ports(object);
    let meta = meta?;
    Some(Arc::new(EndpointSlice {
        id: meta.id(),
        service: meta.labels.get(SERVICE_NAME).filter(|name| !name.is_empty()).cloned(),
        family: family?,
        endpoints,
        ports: ports.into(),
        proxied: is_proxied(&meta.labels),
    }))
}

fn endpoint(
    item: &Item<'_>,
    family: Option<IpFamily>,
    namespace: &Arc<str>,
) -> Option<SliceEndpoint> {
    let mut fields = item.fields()?;
    fields.pass(&["deprecatedTopology"]);
    let items = fields.need("addresses").map(|item| {
        let items = item.list(ADDRESSES_MAX);
        if items.is_empty() {
            item.refuse("is empty: an endpoint has an address");
        }
        items
    });
    let addresses: Vec<IpAddr> = items
        .iter()
        .flatten()
        .filter_map(|item| {
            let address = item.checked(names::reachable_address)?;
            if let Some(family) = family
                && IpFamily::of(address) != family
            {
                item.refuse(format!("{address} is no {family} address"));
            }
            Some(address)
        })
        .collect();
    if addresses.len() > 1
        && let Some(second) = items.iter().flatten().nth(1)
    {
        second.note("only an endpoint's first address is served, as by kube-proxy");
    }
    let (mut ready, mut serving, mut terminating) = (None, None, None);
    if let Some(mut conditions) = fields.map("conditions") {
        ready = conditions.get("ready").and_then(|item| item.yes());
        serving = conditions.get("serving").and_then(|item| item.yes());
        terminating = conditions.get("terminating").and_then(|item| item.yes());
        conditions.finish();
    }
    let ready = ready.unwrap_or(true);
    let hostname = fields.get("hostname").filter(|item| item.text() != Some(""));
    let hostname = hostname.and_then(|item| item.name(names::dns1123_label));
    let node = fields.get("nodeName").and_then(|item| item.name(names::dns1123_subdomain));
    let zone = fields.get("zone").and_then(|item| item.name(names::label_value));
    let mut hints = Hints::default();
    if let Some(mut given) = fields.map("hints") {
        hints.zones = places(&mut given, "forZones");
        hints.nodes = places(&mut given, "forNodes");
        given.finish();
    }
    let pod = fields.get("targetRef").and_then(|item| target(&item, namespace));
    fields.finish();
    Some(SliceEndpoint {
        address: *addresses.first()?,
        ready,
        serving: serving.unwrap_or(ready),
        terminating: terminating.unwrap_or(false),
        hostname,
        node,
        zone: zone.filter(|zone| !zone.is_empty()),
        hints,
        pod,
    })
}

/// The names in a list of hints.
fn places(hints: &mut Fields<'_>, field: &'static str) -> Box<[Arc<str>]> {
    let mut places = BTreeSet::new();
    for item in hints.list(field, HINTS_MAX) {
        let Some(mut fields) = item.fields() else { continue };
        if let Some(item) = fields.need("name")
            && let Some(name) = item.name(names::dns1123_subdomain)
            && !places.insert(Arc::clone(&name))
        {
            item.refuse(format!("{name:?} is there twice"));
        }
        fields.finish();
    }
    places.into_iter().collect()
}

/// The pod that an endpoint is. What else it may be does not matter here.
fn target(item: &Item<'_>, namespace: &Arc<str>) -> Option<ObjectName> {
    let mut fields = item.fields()?;
    fields.pass(&["apiVersion", "uid", "resourceVersion", "fieldPath"]);
    let is_pod = fields.get("kind").is_some_and(|item| item.text() == Some("Pod"));
    let name = fields.get("name").and_then(|item| item.text());
    let namespace = match fields.get("namespace").and_then(|item| item.text()) {
        Some(own) if !own.is_empty() => Arc::from(own),
        Some(_) | None => Arc::clone(namespace),
    };
    fields.finish();
    name.filter(|name| is_pod && !name.is_empty()).map(|name| ObjectName::new(namespace, name))
}

fn ports(object: &mut Fields<'_>) -> Vec<SlicePort> {
    let mut seen = BTreeSet::new();
    let mut ports = Vec::new();
    for item in object.list("ports", PORTS_MAX) {
        let Some(mut fields) = item.fields() else { continue };
        let name = fields.get("name").filter(|item| item.text() != Some(""));
        let name = match &name {
            Some(item) => item.name(names::dns1123_label),
            None => Some("".into()),
        };
        let protocol =
            fields.get("protocol").map_or(Some(Protocol::Tcp), |item| item.one_of(&PROTOCOLS));
        let port = fields.get("port").map(|item| item.port());
        let app_protocol =
            fields.get("appProtocol").and_then(|item| item.name(names::qualified_name));
        if let Some(name) = &name
            && !seen.insert(Arc::clone(name))
        {
            fields.refuse("name", format!("{name:?} is the name of another port"));
        }
        fields.finish();
        if let (Some(name), Some(protocol)) = (name, protocol) {
            ports.push(SlicePort { name, protocol, port: port.flatten(), app_protocol });
        }
    }
    ports
}
