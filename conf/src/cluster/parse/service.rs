//! v1 Service, by the rules of `ValidateService` in Kubernetes' `pkg/apis/core/validation`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::Origin;
use super::meta::{labels, meta};
use super::reader::{Fields, Item};
use crate::cluster::labels::Labels;
use crate::cluster::names;
use crate::cluster::object::{
    ClusterIp, FamilyPolicy, IpFamily, LOAD_BALANCER_CLASS, LoadBalancer, Protocol, Service,
    ServicePort, ServiceType, TargetPort, TrafficDistribution, TrafficPolicy,
};

/// Labels that take a Service away from the switch.
pub(super) const NOT_PROXIED: [&str; 2] =
    ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// `sessionAffinityConfig.clientIP.timeoutSeconds` when it is not said: three hours.
const AFFINITY_DEFAULT_S: u32 = 10_800;

/// Most ports of a Service. Kubernetes sets no bound but the object's size.
const PORTS_MAX: usize = 1000;

/// The port of the kubelet, which Kubernetes lets no load balancer have.
const KUBELET_PORT: u16 = 10_250;

pub(super) const PROTOCOLS: [(&str, Protocol); 3] =
    [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("SCTP", Protocol::Sctp)];

const FAMILIES: [(&str, IpFamily); 2] = [("IPv4", IpFamily::V4), ("IPv6", IpFamily::V6)];

const POLICIES: [(&str, TrafficPolicy); 2] =
    [("Cluster", TrafficPolicy::Cluster), ("Local", TrafficPolicy::Local)];

pub(super) fn service(object: &mut Fields<'_>, root: &Item<'_>) -> Option<Arc<Service>> {
    let name_check = match root.origin() {
        Origin::File => names::dns1035_label,
        // Newer API servers take names that begin with a digit (RelaxedServiceNameValidation).
        Origin::Api => names::dns1123_label,
    };
    let meta = meta(object, name_check, true);
    let status = status(object);
    let mut spec = object.need("spec")?.fields()?;

    let kind = spec.get("type").map_or(Some(ServiceType::ClusterIp), |item| {
        item.place();
        item.one_of(&[
            ("ClusterIP", ServiceType::ClusterIp),
            ("NodePort", ServiceType::NodePort),
            ("LoadBalancer", ServiceType::LoadBalancer),
            ("ExternalName", ServiceType::ExternalName),
        ])
    });
    // Without its type nothing else of it can be judged.
    let kind = kind?;
    let cluster_ip = cluster_ip(&mut spec, kind);
    let (families, family_policy) = families(&mut spec, kind, &cluster_ip);
    let is_headless = cluster_ip == ClusterIp::Headless && kind != ServiceType::ExternalName;
    let ports = ports(&mut spec, kind, is_headless);
    let external_ips = external_ips(&mut spec);
    let is_external = match kind {
        ServiceType::NodePort | ServiceType::LoadBalancer => true,
        ServiceType::ClusterIp => !external_ips.is_empty(),
        ServiceType::ExternalName => false,
    };
    let selector = spec.get("selector").map(|item| labels(&item)).unwrap_or_default();
    let external_name = external_name(&mut spec, kind);
    let external_policy = spec.get("externalTrafficPolicy").and_then(|item| {
        let policy = item.one_of(&POLICIES)?;
        if !is_external {
            item.refuse("only Services that are reached from outside have one");
        }
        Some(policy)
    });
    let external_policy = external_policy.unwrap_or_default();
    let internal_policy = spec.get("internalTrafficPolicy").and_then(|item| item.one_of(&POLICIES));
    let affinity_s = affinity(&mut spec);
    let publish_not_ready = spec.get("publishNotReadyAddresses").and_then(|item| item.yes());
    let distribution = spec.get("trafficDistribution").and_then(|item| {
        item.one_of(&[
            ("PreferClose", TrafficDistribution::PreferSameZone),
            ("PreferSameZone", TrafficDistribution::PreferSameZone),
            ("PreferSameNode", TrafficDistribution::PreferSameNode),
        ])
    });
    let load_balancer = load_balancer(&mut spec, kind, status);
    let health_check_node_port = health_check_node_port(&mut spec, kind, external_policy, &ports);
    spec.finish();

    let meta = meta?;
    for (key, item) in &meta.annotations {
        if ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"]
            .contains(key)
            && !item.text().is_some_and(|mode| mode.eq_ignore_ascii_case("disabled"))
        {
            item.note("Weft does not divide zones by their CPUs: set spec.trafficDistribution");
        }
    }
    Some(Arc::new(Service {
        id: meta.id(),
        proxied: is_proxied(&meta.labels),
        labels: meta.labels,
        kind,
        selector,
        ports: ports.into(),
        cluster_ip,
        families: families.into(),
        family_policy,
        external_name,
        external_ips: external_ips.into(),
        external_policy,
        internal_policy: internal_policy.unwrap_or_default(),
        affinity_s,
        publish_not_ready: publish_not_ready.unwrap_or(false),
        distribution,
        load_balancer,
        health_check_node_port,
    }))
}

/// Whether these labels leave a Service, or its slices, to the switch.
pub(super) fn is_proxied(labels: &Labels) -> bool {
    NOT_PROXIED.iter().all(|label| labels.get(label).is_none())
}

fn cluster_ip(spec: &mut Fields<'_>, kind: ServiceType) -> ClusterIp {
    let is_set = |item: &Item<'_>| item.text() != Some("");
    let single = spec.get("clusterIP").filter(is_set);
    let list = spec.get("clusterIPs").map(|item| item.list(2)).unwrap_or_default();
    let list: Vec<_> = list.into_iter().filter(is_set).collect();
    if let Some(first) = single.as_ref().or_else(|| list.first()) {
        first.place();
        if kind == ServiceType::ExternalName {
            first.refuse("a Service of type ExternalName has no address");
            return ClusterIp::Auto;
        }
    }
    if let (Some(single), Some(first)) = (&single, list.first())
        && single.text() != first.text()
    {
        first.refuse("the first of clusterIPs must be the same as clusterIP");
        return ClusterIp::Auto;
    }
    let items: Vec<_> = if list.is_empty() { single.into_iter().collect() } else { list };
    if items.iter().any(|item| item.text() == Some("None")) {
        if items.len() > 1 {
            items[0].refuse("None stands alone");
        } else if kind != ServiceType::ClusterIp {
            items[0].refuse(format!("a Service of type {} needs an address", kind.as_str()));
        }
        return ClusterIp::Headless;
    }
    let mut given: Vec<IpAddr> = Vec::new();
    for item in &items {
        item.place();
        let Some(address) = item.checked(names::address) else { continue };
        if given.iter().any(|other| IpFamily::of(*other) == IpFamily::of(address)) {
            item.refuse("is a second address of the same family");
        }
        given.push(address);
    }
    if given.is_empty() { ClusterIp::Auto } else { ClusterIp::Given(given.into()) }
}

fn families(
    spec: &mut Fields<'_>,
    kind: ServiceType,
    cluster_ip: &ClusterIp,
) -> (Vec<IpFamily>, FamilyPolicy) {
    let policy_item = spec.get("ipFamilyPolicy");
    let policy = policy_item.as_ref().and_then(|item| {
        item.place();
        item.one_of(&[
            ("SingleStack", FamilyPolicy::SingleStack),
            ("PreferDualStack", FamilyPolicy::PreferDualStack),
            ("RequireDualStack", FamilyPolicy::RequireDualStack),
        ])
    });
    let items = spec.list("ipFamilies", 2);
    let mut families = Vec::new();
    for item in &items {
        item.place();
        let Some(family) = item.one_of(&FAMILIES) else { continue };
        if families.contains(&family) {
            item.refuse("is there twice");
        }
        families.push(family);
    }
    if kind == ServiceType::ExternalName {
        for item in policy_item.iter().chain(&items) {
            item.refuse("a Service of type ExternalName has no addresses");
        }
        return (families, FamilyPolicy::SingleStack);
    }
    let given: &[IpAddr] = match cluster_ip {
        ClusterIp::Given(given) => given,
        ClusterIp::Auto | ClusterIp::Headless => &[],
    };
    for ((address, family), item) in given.iter().zip(&families).zip(&items) {
        if IpFamily::of(*address) != *family {
            item.refuse(format!("{family} is not the family of {address}"));
        }
    }
    let count = given.len().max(families.len());
    if policy == Some(FamilyPolicy::SingleStack) && count > 1 {
        spec.refuse("ipFamilyPolicy", "SingleStack is one family, and two are given");
    }
    // As the API server does: who gives two means two; nobody looks after a headless Service without
    // selector, so it may have both.
    let policy = policy.unwrap_or_else(|| {
        let is_free = *cluster_ip == ClusterIp::Headless && spec.get("selector").is_none();
        if count > 1 || is_free {
            FamilyPolicy::RequireDualStack
        } else {
            FamilyPolicy::SingleStack
        }
    });
    (families, policy)
}

fn ports(spec: &mut Fields<'_>, kind: ServiceType, is_headless: bool) -> Vec<ServicePort> {
    let list = spec.get("ports");
    if list.as_ref().is_none_or(Item::is_empty_list)
        && !is_headless
        && kind != ServiceType::ExternalName
    {
        spec.refuse("ports", "a Service has at least one port, unless it is headless");
    }
    let items = list.map(|item| item.list(PORTS_MAX)).unwrap_or_default();
    let (mut names_seen, mut ports_seen, mut node_ports_seen) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::new();
    for item in &items {
        let Some(mut fields) = item.fields() else { continue };
        let name = fields.get("name").filter(|item| item.text() != Some(""));
        let name = match name {
            Some(item) => item.name(names::dns1123_label).inspect(|name| {
                if !names_seen.insert(Arc::clone(name)) {
                    item.refuse(format!("{name:?} is the name of another port"));
                }
            }),
            None => {
                if items.len() > 1 {
                    fields.refuse("name", "is missing: of several ports each has a name");
                }
                Some("".into())
            }
        };
        let protocol =
            fields.get("protocol").map_or(Some(Protocol::Tcp), |item| item.one_of(&PROTOCOLS));
        let port = fields.need("port").and_then(|item| {
            let port = item.port()?;
            if kind == ServiceType::LoadBalancer && port == KUBELET_PORT {
                item.refuse(format!("{KUBELET_PORT} is the kubelet's port on every node"));
            }
            if let Some(protocol) = protocol
                && !ports_seen.insert((protocol, port))
            {
                item.refuse(format!("{protocol} {port} is there twice"));
            }
            Some(port)
        });
        let target = match fields.get("targetPort") {
            Some(item) if item.is_text() => item.name(names::service_name).map(TargetPort::Name),
            Some(item) => item.port().map(TargetPort::Number),
            None => port.map(TargetPort::Number),
        };
        let node_port = fields.get("nodePort").and_then(|item| {
            item.place();
            let node_port = item.whole(0, 65_535, "port")?;
            let node_port = u16::try_from(node_port).ok().filter(|port| *port != 0)?;
            match kind {
                ServiceType::NodePort | ServiceType::LoadBalancer => {}
                ServiceType::ClusterIp | ServiceType::ExternalName => item.refuse(format!(
                    "a Service of type {} has no node ports: set spec.type to NodePort",
                    kind.as_str()
                )),
            }
            if let Some(protocol) = protocol
                && !node_ports_seen.insert((protocol, node_port))
            {
                item.refuse(format!("{protocol} {node_port} is there twice"));
            }
            Some(node_port)
        });
        let app_protocol =
            fields.get("appProtocol").and_then(|item| item.name(names::qualified_name));
        fields.finish();
        if let (Some(name), Some(protocol), Some(port), Some(target)) =
            (name, protocol, port, target)
        {
            ports.push(ServicePort { name, protocol, port, target, node_port, app_protocol });
        }
    }
    ports
}

fn external_ips(spec: &mut Fields<'_>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for item in spec.list("externalIPs", PORTS_MAX) {
        item.place();
        if let Some(address) = item.checked(names::reachable_address)
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses
}

fn external_name(spec: &mut Fields<'_>, kind: ServiceType) -> Option<Arc<str>> {
    if kind != ServiceType::ExternalName {
        // Kubernetes takes it for any type, and it means nothing.
        if let Some(item) = spec.get("externalName").filter(|item| item.text() != Some("")) {
            item.note(format!("a Service of type {} has no use for it", kind.as_str()));
        }
        return None;
    }
    spec.need("externalName")?.checked(|text| {
        let name = text.strip_suffix('.').unwrap_or(text);
        names::dns_name(name)?;
        Ok(Arc::from(name))
    })
}

fn affinity(spec: &mut Fields<'_>) -> Option<u32> {
    let wanted = spec
        .get("sessionAffinity")
        .and_then(|item| item.one_of(&[("None", false), ("ClientIP", true)]));
    let mut timeout = None;
    if let Some(item) = spec.get("sessionAffinityConfig") {
        if wanted != Some(true) {
            item.refuse("is only for sessionAffinity: ClientIP");
        }
        if let Some(mut fields) = item.fields() {
            if let Some(mut client) = fields.map("clientIP") {
                timeout = client
                    .get("timeoutSeconds")
                    .and_then(|item| item.whole(1, 86_400, "timeout in seconds"));
                client.finish();
            }
            fields.finish();
        }
    }
    let timeout = timeout.and_then(|timeout| u32::try_from(timeout).ok());
    wanted.unwrap_or(false).then(|| timeout.unwrap_or(AFFINITY_DEFAULT_S))
}

fn load_balancer(spec: &mut Fields<'_>, kind: ServiceType, ingress: Vec<IpAddr>) -> LoadBalancer {
    let is_one = kind == ServiceType::LoadBalancer;
    let only = |item: &Item<'_>| {
        if !is_one {
            item.refuse("is only for Services of type LoadBalancer");
        }
    };
    let class = spec.get("loadBalancerClass").and_then(|item| {
        only(&item);
        let class = item.name(names::qualified_name)?;
        if class.as_ref() != LOAD_BALANCER_CLASS {
            item.note(format!(
                "another implementation serves this class; Weft's is {LOAD_BALANCER_CLASS}"
            ));
        }
        Some(class)
    });
    let requested = spec.get("loadBalancerIP").filter(|item| item.text() != Some(""));
    let requested = requested.and_then(|item| {
        item.place();
        item.checked(names::reachable_address)
    });
    let ranges = spec.get("loadBalancerSourceRanges").map(|item| {
        let items = item.list(PORTS_MAX);
        if !items.is_empty() {
            only(&item);
        }
        items.iter().filter_map(|item| item.checked(range)).collect::<Vec<_>>()
    });
    let node_ports = spec.get("allocateLoadBalancerNodePorts").and_then(|item| {
        only(&item);
        item.yes()
    });
    LoadBalancer {
        class,
        requested,
        source_ranges: ranges.unwrap_or_default().into(),
        node_ports: is_one && node_ports.unwrap_or(true),
        ingress: if is_one { ingress.into() } else { Box::default() },
    }
}

/// A range as Kubernetes writes it. Bits after the prefix do not matter, as in kube-proxy.
pub(super) fn range(text: &str) -> Result<IpNetwork, String> {
    let text = text.trim();
    let range: IpNetwork = match text.split_once('/') {
        Some(_) => text.parse().map_err(|_| "is no range like 192.0.2.0/24".to_owned())?,
        None => return Err("is no range: a / and a length are missing".into()),
    };
    IpNetwork::new(range.network(), range.prefix()).map_err(|_| "is no range".into())
}

fn health_check_node_port(
    spec: &mut Fields<'_>,
    kind: ServiceType,
    policy: TrafficPolicy,
    ports: &[ServicePort],
) -> Option<u16> {
    let item = spec.get("healthCheckNodePort")?;
    item.place();
    let port = u16::try_from(item.whole(0, 65_535, "port")?).ok().filter(|port| *port != 0)?;
    if kind != ServiceType::LoadBalancer || policy != TrafficPolicy::Local {
        item.refuse("is only for type LoadBalancer with externalTrafficPolicy Local");
    }
    if ports.iter().any(|other| other.node_port == Some(port)) {
        item.refuse(format!("{port} is the node port of one of its ports"));
    }
    Some(port)
}

/// The addresses that somebody has given to its load balancer.
fn status(object: &mut Fields<'_>) -> Vec<IpAddr> {
    let Some(mut status) = object.map("status") else { return Vec::new() };
    let Some(mut load_balancer) = status.map("loadBalancer") else { return Vec::new() };
    let mut addresses = Vec::new();
    for item in load_balancer.list("ingress", PORTS_MAX) {
        let Some(mut fields) = item.fields() else { continue };
        // A proxy in front ends connections itself, so traffic to its address must go there.
        let is_proxy = fields.get("ipMode").is_some_and(|item| item.text() == Some("Proxy"));
        let address = fields.get("ip").and_then(|item| item.checked(names::address));
        addresses.extend(address.filter(|_| !is_proxy));
    }
    addresses
}
