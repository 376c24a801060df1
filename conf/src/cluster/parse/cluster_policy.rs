//! The cluster-wide policies of policy.networking.k8s.io, by the schema of their custom resources:
//! ClusterNetworkPolicy (v1alpha2), AdminNetworkPolicy and BaselineAdminNetworkPolicy (v1alpha1).

use std::sync::Arc;

use super::meta::meta;
use super::policy::{cidr, protocol, selector};
use super::reader::{Fields, Item};
use crate::cluster::labels::LabelSelector;
use crate::cluster::names;
use crate::cluster::object::{ObjectKind, Protocol};
use crate::cluster::policy::{
    ClusterPolicy, IpBlock, NamespaceSelection, PodSelection, PolicyAction, PolicyPeer, PolicyPort,
    PolicyRule, PolicyTier, PortRange,
};

/// Most of anything in a ClusterNetworkPolicy: rules in one direction, peers and protocols of a rule.
const LIST_MAX: usize = 25;

/// The same for the older kinds.
const OLD_LIST_MAX: usize = 100;

/// Most entries of a peer's `networks`, in all kinds.
const NETWORKS_MAX: usize = 25;

/// Greatest `spec.priority`.
const PRIORITY_MAX: i64 = 1000;

/// Longest name of a rule.
const NAME_MAX: usize = 100;

/// The only name that a BaselineAdminNetworkPolicy may have: there is one in a cluster.
const ONLY_BASELINE: &str = "default";

const BASELINE_ACTIONS: [(&str, PolicyAction); 2] =
    [("Allow", PolicyAction::Accept), ("Deny", PolicyAction::Deny)];

const OLD_ACTIONS: [(&str, PolicyAction); 3] =
    [("Allow", PolicyAction::Accept), ("Deny", PolicyAction::Deny), ("Pass", PolicyAction::Pass)];

const ACTIONS: [(&str, PolicyAction); 3] =
    [("Accept", PolicyAction::Accept), ("Deny", PolicyAction::Deny), ("Pass", PolicyAction::Pass)];

/// What tells the kinds apart.
struct Shape {
    kind: ObjectKind,
    list_max: usize,
    actions: &'static [(&'static str, PolicyAction)],
    ports_field: &'static str,
    port: fn(&Item<'_>) -> Option<PolicyPort>,
}

pub(super) fn cluster_network_policy(object: &mut Fields<'_>) -> Option<Arc<ClusterPolicy>> {
    let shape = Shape {
        kind: ObjectKind::ClusterNetworkPolicy,
        list_max: LIST_MAX,
        actions: &ACTIONS,
        ports_field: "protocols",
        port: protocol_match,
    };
    let tier = |spec: &mut Fields<'_>| {
        let tiers = [("Admin", PolicyTier::Admin), ("Baseline", PolicyTier::Baseline)];
        spec.need("tier")?.one_of(&tiers)
    };
    policy(object, &shape, tier)
}

pub(super) fn admin_network_policy(object: &mut Fields<'_>) -> Option<Arc<ClusterPolicy>> {
    let shape = Shape {
        kind: ObjectKind::AdminNetworkPolicy,
        list_max: OLD_LIST_MAX,
        actions: &OLD_ACTIONS,
        ports_field: "ports",
        port: old_port,
    };
    policy(object, &shape, |_| Some(PolicyTier::Admin))
}

pub(super) fn baseline_admin_network_policy(object: &mut Fields<'_>) -> Option<Arc<ClusterPolicy>> {
    let shape = Shape {
        kind: ObjectKind::BaselineAdminNetworkPolicy,
        list_max: OLD_LIST_MAX,
        actions: &BASELINE_ACTIONS,
        ports_field: "ports",
        port: old_port,
    };
    policy(object, &shape, |_| Some(PolicyTier::Baseline))
}

fn policy(
    object: &mut Fields<'_>,
    shape: &Shape,
    tier: impl Fn(&mut Fields<'_>) -> Option<PolicyTier>,
) -> Option<Arc<ClusterPolicy>> {
    object.pass(&["status"]);
    let is_only = shape.kind == ObjectKind::BaselineAdminNetworkPolicy;
    let name_check = if is_only { only_baseline } else { names::dns1123_subdomain };
    let meta = meta(object, name_check, false);
    let mut spec = object.need("spec")?.fields()?;
    let tier = tier(&mut spec);
    let priority = if is_only {
        Some(0)
    } else {
        let priority = spec.need("priority");
        priority.and_then(|item| item.whole(0, PRIORITY_MAX, "priority"))
    };
    let subject = spec.need("subject").and_then(|item| subject(&item));
    let ingress = rules(&mut spec, "ingress", "from", shape);
    let egress = rules(&mut spec, "egress", "to", shape);
    spec.finish();
    Some(Arc::new(ClusterPolicy {
        kind: shape.kind,
        name: meta?.name,
        tier: tier?,
        priority: u16::try_from(priority?).ok()?,
        subject: subject?,
        ingress: ingress.into(),
        egress: egress.into(),
    }))
}

fn only_baseline(name: &str) -> Result<(), String> {
    if name != ONLY_BASELINE {
        return Err(format!(
            "is not {ONLY_BASELINE:?}: a cluster has one such policy, of that name"
        ));
    }
    Ok(())
}

/// `subject`, which has exactly one of `namespaces` and `pods`.
fn subject(item: &Item<'_>) -> Option<PodSelection> {
    let mut fields = item.fields()?;
    let found = pods_of(&mut fields);
    fields.finish();
    exactly_one(item, found.into_iter().collect(), "namespaces, pods")
}

/// What `namespaces` and `pods` select.
fn pods_of(fields: &mut Fields<'_>) -> Vec<PodSelection> {
    let namespaces = fields.get("namespaces").map(|item| PodSelection {
        namespaces: NamespaceSelection::Selected(selector(&item)),
        pods: LabelSelector::default(),
    });
    let pods = fields.get("pods").and_then(|item| {
        let mut fields = item.fields()?;
        let namespaces = fields.need("namespaceSelector").map(|item| selector(&item));
        let pods = fields.need("podSelector").map(|item| selector(&item));
        fields.finish();
        Some(PodSelection { namespaces: NamespaceSelection::Selected(namespaces?), pods: pods? })
    });
    namespaces.into_iter().chain(pods).collect()
}

/// The only one of `found`, or why there is none. `of` names the fields.
fn exactly_one<T>(item: &Item<'_>, found: Vec<T>, of: &str) -> Option<T> {
    let count = found.len();
    let mut found = found.into_iter();
    if count != 1 {
        item.refuse(format!("has {count} of {of}: exactly one is possible"));
        return None;
    }
    found.next()
}

fn rules(
    spec: &mut Fields<'_>,
    direction: &'static str,
    peers_field: &'static str,
    shape: &Shape,
) -> Vec<PolicyRule> {
    let is_egress = direction == "egress";
    let mut rules = Vec::new();
    for item in spec.list(direction, shape.list_max) {
        let Some(mut fields) = item.fields() else { continue };
        let name = fields.get("name").and_then(|item| {
            item.checked(|text| match text.chars().count() {
                0 => Ok(None),
                1..=NAME_MAX => Ok(Some(Arc::from(text))),
                _ => Err(format!("is too long: at most {NAME_MAX} characters are possible")),
            })
        });
        let action = fields.need("action").and_then(|item| item.one_of(shape.actions));
        let ports_item = fields.get(shape.ports_field);
        if let Some(item) = ports_item.as_ref().filter(|item| item.is_empty_list()) {
            item.refuse("is empty: leave it out for everything");
        }
        let ports = ports_item.map(|item| item.list(shape.list_max)).unwrap_or_default();
        let ports: Box<[PolicyPort]> = ports.iter().filter_map(shape.port).collect();
        let is_named = ports.iter().any(|port| matches!(port, PolicyPort::Named { .. }));
        let mut peers = Vec::new();
        if let Some(list) = fields.need(peers_field) {
            if list.is_empty_list() {
                list.refuse("is empty: a rule is about somebody");
            }
            for item in list.list(shape.list_max) {
                let found = peer(&item, is_egress);
                let is_address = found
                    .iter()
                    .any(|peer| matches!(peer, PolicyPeer::Block(_) | PolicyPeer::Nodes(_)));
                if is_address && is_named {
                    item.refuse(
                        "has no names of ports: only pods do, and the rule has such a name",
                    );
                }
                peers.extend(found);
            }
        }
        fields.finish();
        if let Some(action) = action {
            let peers = Some(peers.into());
            rules.push(PolicyRule { name: name.flatten(), action, peers, ports });
        }
    }
    rules
}

/// One entry of `from` or `to`. One of `networks` may be several blocks.
fn peer(item: &Item<'_>, is_egress: bool) -> Vec<PolicyPeer> {
    let Some(mut fields) = item.fields() else { return Vec::new() };
    let pods = pods_of(&mut fields).into_iter().map(|pods| vec![PolicyPeer::Pods(pods)]);
    let mut found: Vec<Vec<PolicyPeer>> = pods.collect();
    let mut of = "namespaces, pods";
    if is_egress {
        of = "namespaces, pods, nodes, networks";
        found.extend(fields.get("nodes").map(|item| vec![PolicyPeer::Nodes(selector(&item))]));
        if let Some(networks) = fields.get("networks") {
            if networks.is_empty_list() {
                networks.refuse("is empty: at least one is needed");
            }
            let networks = networks.list(NETWORKS_MAX);
            let blocks = networks.iter().filter_map(|item| item.checked(cidr));
            let block = |cidr| PolicyPeer::Block(IpBlock { cidr, except: Box::default() });
            found.push(blocks.map(block).collect());
        }
        if let Some(domains) = fields.get("domainNames") {
            domains.refuse(
                "cannot be enforced: this version of Weft does not look into answers of the DNS",
            );
            return Vec::new();
        }
    }
    fields.finish();
    exactly_one(item, found, of).unwrap_or_default()
}

/// One of a ClusterNetworkPolicy's `protocols`.
fn protocol_match(item: &Item<'_>) -> Option<PolicyPort> {
    let mut fields = item.fields()?;
    let mut found = Vec::new();
    for (field, protocol) in
        [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)]
    {
        let Some(item) = fields.get(field) else { continue };
        let Some(mut of) = item.fields() else { continue };
        let ports = of.need("destinationPort").and_then(|item| destination_port(&item));
        of.finish();
        found.push(ports.map(|ports| PolicyPort::Numbers { protocol, ports }));
    }
    if let Some(item) = fields.get("destinationNamedPort") {
        let name = item.name(names::service_name);
        found.push(name.map(|name| PolicyPort::Named { protocol: None, name }));
    }
    fields.finish();
    exactly_one(item, found, "tcp, udp, sctp, destinationNamedPort").flatten()
}

/// `destinationPort`: a number, or a range.
fn destination_port(item: &Item<'_>) -> Option<PortRange> {
    let mut fields = item.fields()?;
    let mut found = Vec::new();
    if let Some(item) = fields.get("number") {
        found.push(item.port().map(|port| PortRange { first: port, last: port }));
    }
    if let Some(item) = fields.get("range") {
        let mut range = item.fields()?;
        found.push(start_and_end(&mut range));
        range.finish();
    }
    fields.finish();
    exactly_one(item, found, "number, range").flatten()
}

/// One of an AdminNetworkPolicy's `ports`.
fn old_port(item: &Item<'_>) -> Option<PolicyPort> {
    let mut fields = item.fields()?;
    let mut found = Vec::new();
    if let Some(item) = fields.get("portNumber") {
        let mut of = item.fields()?;
        let protocol = protocol(&mut of);
        let port = of.need("port").and_then(|item| item.port());
        of.finish();
        let ports = port.map(|port| PortRange { first: port, last: port });
        found.push(
            protocol.zip(ports).map(|(protocol, ports)| PolicyPort::Numbers { protocol, ports }),
        );
    }
    if let Some(item) = fields.get("portRange") {
        let mut of = item.fields()?;
        let protocol = protocol(&mut of);
        let ports = start_and_end(&mut of);
        of.finish();
        found.push(
            protocol.zip(ports).map(|(protocol, ports)| PolicyPort::Numbers { protocol, ports }),
        );
    }
    if let Some(item) = fields.get("namedPort") {
        let name = item.name(names::service_name);
        found.push(name.map(|name| PolicyPort::Named { protocol: None, name }));
    }
    fields.finish();
    exactly_one(item, found, "portNumber, portRange, namedPort").flatten()
}

/// `start` and `end` of a range, of which the end is the greater one.
fn start_and_end(fields: &mut Fields<'_>) -> Option<PortRange> {
    let first = fields.need("start").and_then(|item| item.port());
    let last = fields.need("end").and_then(|item| item.port());
    let (first, last) = (first?, last?);
    if last <= first {
        fields.refuse("end", format!("{last} is not greater than start, which is {first}"));
        return None;
    }
    Some(PortRange { first, last })
}
