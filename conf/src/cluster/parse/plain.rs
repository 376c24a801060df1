//! v1 Namespace, Node and Secret; networking.k8s.io/v1 ServiceCIDR.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnetwork::IpNetwork;

use super::meta::meta;
use super::reader::Fields;
use super::service::range;
use crate::cluster::labels::Labels;
use crate::cluster::names;
use crate::cluster::object::{Namespace, Node, Secret, ServiceCidr};

/// The label that the API server gives to every namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Most bytes in a Secret (`MaxSecretSize`).
const SECRET_LEN_MAX: usize = 1 << 20;

/// Most addresses of a node.
const ADDRESSES_MAX: usize = 64;

pub(super) fn namespace(object: &mut Fields<'_>) -> Option<Arc<Namespace>> {
    object.pass(&["spec", "status"]);
    let meta = meta(object, names::dns1123_label, false)?;
    let name = (Arc::from(NAMESPACE_NAME), Arc::clone(&meta.name));
    let labels: Labels = meta
        .labels
        .iter()
        .map(|(key, value)| (Arc::clone(key), Arc::clone(value)))
        .chain([name])
        .collect();
    Some(Arc::new(Namespace { name: meta.name, labels }))
}

pub(super) fn node(object: &mut Fields<'_>) -> Option<Arc<Node>> {
    let meta = meta(object, names::dns1123_subdomain, false);
    let mut pod_cidrs: Vec<IpNetwork> = Vec::new();
    if let Some(mut spec) = object.map("spec") {
        let ranges = spec.list("podCIDRs", 2);
        pod_cidrs.extend(ranges.iter().filter_map(|item| item.checked(range)));
        let single = spec.get("podCIDR").filter(|item| item.text() != Some(""));
        if let Some(single) = single.and_then(|item| item.checked(range))
            && pod_cidrs.is_empty()
        {
            pod_cidrs.push(single);
        }
    }
    let (mut internal, mut external): (Vec<IpAddr>, Vec<IpAddr>) = (Vec::new(), Vec::new());
    if let Some(mut status) = object.map("status") {
        for item in status.list("addresses", ADDRESSES_MAX) {
            let Some(mut fields) = item.fields() else { continue };
            let addresses = match fields.need("type").and_then(|item| item.text()) {
                Some("InternalIP") => &mut internal,
                Some("ExternalIP") => &mut external,
                // Names of the node.
                Some(_) | None => continue,
            };
            let address = fields.need("address").and_then(|item| item.checked(names::address));
            addresses.extend(address);
        }
    }
    internal.append(&mut external);
    let meta = meta?;
    Some(Arc::new(Node {
        name: meta.name,
        labels: meta.labels,
        addresses: internal.into(),
        pod_cidrs: pod_cidrs.into(),
    }))
}

pub(super) fn service_cidr(object: &mut Fields<'_>) -> Option<Arc<ServiceCidr>> {
    object.pass(&["status"]);
    let meta = meta(object, names::dns1123_subdomain, false);
    let mut ranges: Vec<IpNetwork> = Vec::new();
    if let Some(mut spec) = object.map("spec") {
        for item in spec.list("cidrs", 2) {
            let Some(found) = item.checked(range) else { continue };
            if ranges.iter().any(|known| known.is_ipv4() == found.is_ipv4()) {
                item.refuse("is a second range of the same family: a ServiceCIDR has one of each");
            }
            ranges.push(found);
        }
    }
    if ranges.is_empty() {
        object.refuse("spec.cidrs", "has no range: give one, or one of each family".to_owned());
    }
    Some(Arc::new(ServiceCidr { name: meta?.name, ranges: ranges.into() }))
}

pub(super) fn secret(object: &mut Fields<'_>) -> Option<Arc<Secret>> {
    object.pass(&["immutable"]);
    let meta = meta(object, names::dns1123_subdomain, true);
    let kind = object.get("type").and_then(|item| item.text());
    let mut data: BTreeMap<Arc<str>, Box<[u8]>> = BTreeMap::new();
    for (entry, item) in object.get("data").map(|item| item.entries()).unwrap_or_default() {
        if let Err(why) = key(&entry.key) {
            item.refuse(why);
            continue;
        }
        // What is wrong with it is told without telling it.
        let Some(text) = item.text() else { continue };
        match STANDARD.decode(text.split_ascii_whitespace().collect::<String>()) {
            Ok(bytes) => {
                data.insert(entry.key.as_str().into(), bytes.into());
            }
            Err(_) => item.refuse("is no base64: put clear text below stringData"),
        }
    }
    for (entry, item) in object.get("stringData").map(|item| item.entries()).unwrap_or_default() {
        match (key(&entry.key), item.text()) {
            (Err(why), _) => item.refuse(why),
            (Ok(()), Some(text)) => {
                data.insert(entry.key.as_str().into(), text.as_bytes().into());
            }
            (Ok(()), None) => {}
        }
    }
    let len: usize = data.values().map(|bytes| bytes.len()).sum();
    if len > SECRET_LEN_MAX {
        object.refuse("data", format!("has {len} bytes: at most {SECRET_LEN_MAX} are possible"));
    }
    let meta = meta?;
    Some(Arc::new(Secret { id: meta.id(), kind: kind.unwrap_or("Opaque").into(), data }))
}

/// A key of a Secret (`IsConfigMapKey`).
fn key(text: &str) -> Result<(), String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty()
        || text.len() > 253
        || !text.bytes().all(good)
        || text == "."
        || text.starts_with("..")
    {
        return Err("the key is none: 1 to 253 letters, digits, - _ and .".into());
    }
    Ok(())
}
