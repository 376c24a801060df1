//! networking.k8s.io/v1 NetworkPolicy, by the rules of `ValidateNetworkPolicy` in Kubernetes'
//! `pkg/apis/networking/validation`, and what all kinds of policies have in common.

use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::meta::{labels, meta};
use super::reader::{Fields, Item};
use super::service::PROTOCOLS;
use crate::cluster::labels::{LabelSelector, Operator, Requirement};
use crate::cluster::names;
use crate::cluster::object::Protocol;
use crate::cluster::policy::{
    IpBlock, NamespaceSelection, NetworkPolicy, PodSelection, PolicyAction, PolicyPeer, PolicyPort,
    PolicyRule, PortRange,
};

/// Most rules of a policy in one direction, peers of a rule, and exceptions of a block. Kubernetes sets no bound
/// but the object's size.
const LIST_MAX: usize = 10_000;

/// Most ports of a rule, and requirements of a selector with their values.
const PORTS_MAX: usize = 1000;

pub(super) fn network_policy(object: &mut Fields<'_>) -> Option<Arc<NetworkPolicy>> {
    object.pass(&["status"]);
    let meta = meta(object, names::dns1123_subdomain, true)?;
    let id = meta.id();
    let Some(item) = object.get("spec") else {
        // The API server takes it: a policy that says nothing isolates all pods of its namespace.
        let (pods, ingress) = (LabelSelector::default(), Some(Box::default()));
        return Some(Arc::new(NetworkPolicy { id, pods, ingress, egress: None }));
    };
    let mut spec = item.fields()?;
    let pods = spec.get("podSelector").map(|item| selector(&item)).unwrap_or_default();
    let types = spec.list("policyTypes", 2);
    let types: Vec<&str> = types.iter().filter_map(policy_type).collect();
    let ingress = rules(&mut spec, "ingress", "from", &id.namespace);
    let egress = rules(&mut spec, "egress", "to", &id.namespace);
    // Without policyTypes, each policy is about ingress, and one that has rules for egress about that, too.
    let (is_ingress, is_egress) = match &types[..] {
        [] => (true, !egress.is_empty()),
        types => (types.contains(&INGRESS), types.contains(&EGRESS)),
    };
    let unused = [("ingress", &ingress, is_ingress), ("egress", &egress, is_egress)];
    for (field, rules, is_meant) in unused {
        if let Some(item) = spec.get(field).filter(|_| !is_meant && !rules.is_empty()) {
            item.note("has no effect: spec.policyTypes does not name this direction");
        }
    }
    spec.finish();
    Some(Arc::new(NetworkPolicy {
        id,
        pods,
        ingress: is_ingress.then(|| ingress.into()),
        egress: is_egress.then(|| egress.into()),
    }))
}

const INGRESS: &str = "Ingress";
const EGRESS: &str = "Egress";

fn policy_type(item: &Item<'_>) -> Option<&'static str> {
    item.one_of(&[(INGRESS, INGRESS), (EGRESS, EGRESS)])
}

fn rules(
    spec: &mut Fields<'_>,
    direction: &'static str,
    peers_field: &'static str,
    namespace: &Arc<str>,
) -> Vec<PolicyRule> {
    let mut rules = Vec::new();
    for item in spec.list(direction, LIST_MAX) {
        let Some(mut fields) = item.fields() else { continue };
        let ports = fields.list("ports", PORTS_MAX).iter().filter_map(port).collect();
        let items = fields.list(peers_field, LIST_MAX);
        let peers: Vec<_> = items.iter().filter_map(|item| peer(item, namespace)).collect();
        // None at all is everybody, whether the list is empty or not there.
        let peers = (!items.is_empty()).then(|| peers.into());
        fields.finish();
        rules.push(PolicyRule { name: None, action: PolicyAction::Accept, peers, ports });
    }
    rules
}

fn peer(item: &Item<'_>, namespace: &Arc<str>) -> Option<PolicyPeer> {
    let mut fields = item.fields()?;
    let pods = fields.get("podSelector").map(|item| selector(&item));
    let namespaces = fields.get("namespaceSelector").map(|item| selector(&item));
    let block_item = fields.get("ipBlock");
    let block = block_item.as_ref().and_then(ip_block);
    fields.finish();
    if let Some(block_item) = block_item {
        if pods.is_some() || namespaces.is_some() {
            block_item.refuse("stands alone: addresses, or pods, but not both");
        }
        return block.map(PolicyPeer::Block);
    }
    let namespaces = match (namespaces, &pods) {
        (Some(selector), _) => NamespaceSelection::Selected(selector),
        (None, Some(_)) => NamespaceSelection::Own(Arc::clone(namespace)),
        (None, None) => {
            item.refuse("says nobody: one of podSelector, namespaceSelector, ipBlock is missing");
            return None;
        }
    };
    Some(PolicyPeer::Pods(PodSelection { namespaces, pods: pods.unwrap_or_default() }))
}

fn ip_block(item: &Item<'_>) -> Option<IpBlock> {
    let mut fields = item.fields()?;
    let cidr = fields.need("cidr").and_then(|item| item.checked(cidr));
    let mut except = Vec::new();
    for item in fields.list("except", LIST_MAX) {
        let Some(part) = item.checked(self::cidr) else { continue };
        let is_part = cidr.is_none_or(|cidr| {
            cidr.is_ipv4() == part.is_ipv4()
                && cidr.contains(part.ip())
                && cidr.prefix() < part.prefix()
        });
        if !is_part {
            item.refuse(format!("{part} is no part of cidr: it must lie in it, and be smaller"));
        }
        except.push(part);
    }
    fields.finish();
    Some(IpBlock { cidr: cidr?, except: except.into() })
}

fn port(item: &Item<'_>) -> Option<PolicyPort> {
    let mut fields = item.fields()?;
    let protocol = protocol(&mut fields);
    let end = fields.get("endPort");
    let port = match fields.get("port") {
        Some(item) if item.is_text() => {
            if let Some(end) = &end {
                end.refuse("is only for ports with a number");
            }
            let name = item.name(names::service_name);
            name.zip(protocol)
                .map(|(name, protocol)| PolicyPort::Named { protocol: Some(protocol), name })
        }
        Some(item) => {
            let first = item.port();
            let last = end.as_ref().map_or(first, Item::port);
            if let (Some(first), Some(last), Some(end)) = (first, last, &end)
                && last < first
            {
                end.refuse(format!("{last} is less than port, which is {first}"));
            }
            let range = first.zip(last).map(|(first, last)| PortRange { first, last });
            range.zip(protocol).map(|(ports, protocol)| PolicyPort::Numbers { protocol, ports })
        }
        None => {
            if let Some(end) = &end {
                end.refuse("is the end of a range that has no beginning: port is missing");
            }
            protocol.map(|protocol| PolicyPort::Numbers { protocol, ports: PortRange::ALL })
        }
    };
    fields.finish();
    port
}

/// `protocol`, TCP by default.
pub(super) fn protocol(fields: &mut Fields<'_>) -> Option<Protocol> {
    fields.get("protocol").map_or(Some(Protocol::Tcp), |item| item.one_of(&PROTOCOLS))
}

/// A range of addresses in the notation of RFC 4632 §3.1. Bits behind the prefix mean nothing.
pub(super) fn cidr(text: &str) -> Result<IpNetwork, String> {
    let unlike = || "is no range of addresses like 192.0.2.0/24".to_owned();
    let (address, prefix) = text.split_once('/').ok_or_else(unlike)?;
    let is_number = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let prefix = prefix.parse().ok().filter(|_| is_number).ok_or_else(unlike)?;
    let range = IpNetwork::new(names::address(address)?, prefix).map_err(|_| unlike())?;
    IpNetwork::new(range.network(), range.prefix()).map_err(|_| unlike())
}

/// A `LabelSelector`, by the rules of `ValidateLabelSelector` in `k8s.io/apimachinery`.
pub(super) fn selector(item: &Item<'_>) -> LabelSelector {
    let Some(mut fields) = item.fields() else { return LabelSelector::default() };
    let labels = fields.get("matchLabels").map(|item| labels(&item)).unwrap_or_default();
    let expressions = fields.list("matchExpressions", PORTS_MAX);
    let expressions = expressions.iter().filter_map(requirement).collect();
    fields.finish();
    LabelSelector { labels, expressions }
}

fn requirement(item: &Item<'_>) -> Option<Requirement> {
    #[derive(Clone, Copy)]
    enum Word {
        In,
        NotIn,
        Exists,
        DoesNotExist,
    }
    let mut fields = item.fields()?;
    let key = fields.need("key").and_then(|item| item.name(names::qualified_name));
    let word = fields.need("operator").and_then(|item| {
        item.one_of(&[
            ("In", Word::In),
            ("NotIn", Word::NotIn),
            ("Exists", Word::Exists),
            ("DoesNotExist", Word::DoesNotExist),
        ])
    });
    let values = fields.list("values", PORTS_MAX);
    let values: Box<[Arc<str>]> =
        values.iter().filter_map(|item| item.name(names::label_value)).collect();
    let is_given = fields.get("values").is_some_and(|item| !item.is_empty_list());
    match word {
        Some(Word::In | Word::NotIn) if !is_given => {
            fields.refuse("values", "is missing: In and NotIn ask for at least one");
        }
        Some(Word::Exists | Word::DoesNotExist) if is_given => {
            fields.refuse("values", "Exists and DoesNotExist ask for no values");
        }
        Some(_) | None => {}
    }
    fields.finish();
    let operator = match word? {
        Word::In => Operator::In(values),
        Word::NotIn => Operator::NotIn(values),
        Word::Exists => Operator::Exists,
        Word::DoesNotExist => Operator::DoesNotExist,
    };
    Some(Requirement { key: key?, operator })
}
