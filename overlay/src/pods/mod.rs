//! The pods of all nodes, as gossip tells them: who they are, and which node has them.
//!
//! Each node tells of its own pods. A [`PodMap`] is what one node knows of all of them at one moment: an
//! immutable snapshot, like [`SubnetMap`](crate::subnet::SubnetMap), but one that shares all that did not
//! change with the snapshot before it, so that one pod more among 30 000 costs microseconds.

mod map;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::map::{PodEntry, PodMap};
use crate::gossip::pod_len;

/// Most pods of one node that are told to others. As `[switch] ports_max` is at most 65 535, a node may
/// have more; those beyond are refused by name.
pub const PODS_PER_NODE_MAX: usize = 1024;

/// Most addresses of one pod: one per family and interface, for up to four interfaces.
pub const ADDRESSES_MAX: usize = 8;

/// Most labels of one pod.
pub const LABELS_MAX: usize = 32;

/// Longest pod in bytes, as it is encoded for other nodes: names, addresses and labels together. One pod
/// always fits one datagram.
pub const POD_LEN_MAX: usize = 960;

/// Longest namespace and label value: a DNS label (RFC 1123 §2.1).
const LABEL_LEN_MAX: usize = 63;

/// Longest pod name and label key prefix: a DNS name (RFC 1123 §2.1).
const NAME_LEN_MAX: usize = 253;

/// Longest unique id of a pod. Kubernetes' have 36 characters.
const UID_LEN_MAX: usize = 64;

/// A pod, as its node tells others about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pod {
    /// Its Kubernetes namespace; empty if the runtime did not tell.
    pub namespace: String,
    /// Its name; if the runtime did not tell, its container's id, or the name of a device of the host.
    pub name: String,
    /// Its unique id, if the runtime told.
    pub uid: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its labels, with Kubernetes' rules for keys and values.
    pub labels: BTreeMap<String, String>,
    /// Whether it has no network of its own, but its node's: its address is then the node's, too.
    pub host_network: bool,
}

/// A pod of this node, to be told to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// The pod.
    pub pod: Pod,
    /// How long there has been one.
    pub age: Duration,
}

/// Why a pod cannot be told to other nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pod {pod} cannot be told to other nodes: {why}")]
pub struct PodError {
    /// Its namespace and name.
    pub pod: String,
    /// What is wrong, and what would be right.
    pub why: String,
}

impl Pod {
    /// Namespace and name, as people write them.
    pub fn title(&self) -> String {
        let name: String = self.name.chars().take(NAME_LEN_MAX).collect();
        if self.namespace.is_empty() { name } else { format!("{}/{name}", self.namespace) }
    }

    /// Checks names, labels and lengths.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), PodError> {
        self.find_fault().map_or(Ok(()), |why| Err(PodError { pod: self.title(), why }))
    }

    fn find_fault(&self) -> Option<String> {
        let Self { namespace, name, uid, addresses, labels, host_network: _ } = self;
        if !namespace.is_empty() && !is_dns_label(namespace) {
            return Some(format!(
                "its namespace {namespace:.80?} is no DNS label: 1 to 63 lower-case letters, digits and `-`"
            ));
        }
        if !is_object_name(name) {
            return Some(format!(
                "its name {name:.80?} is none: 1 to 253 letters, digits, `-`, `_` and `.`"
            ));
        }
        if let Some(uid) = uid
            && (uid.len() > UID_LEN_MAX || !is_object_name(uid))
        {
            return Some(format!("its uid {uid:.80?} is none: 1 to 64 letters, digits and `-`"));
        }
        if addresses.len() > ADDRESSES_MAX {
            return Some(format!(
                "it has {} addresses, and {ADDRESSES_MAX} are told",
                addresses.len()
            ));
        }
        if let Some(address) = addresses.iter().find(|address| !is_unicast(**address)) {
            return Some(format!("{address} cannot be a pod's address"));
        }
        if labels.len() > LABELS_MAX {
            return Some(format!("it has {} labels, and {LABELS_MAX} are told", labels.len()));
        }
        if let Some(why) = labels.iter().find_map(|(key, value)| label_fault(key, value)) {
            return Some(why);
        }
        let len = pod_len(self);
        (len > POD_LEN_MAX).then(|| {
            format!(
                "it takes {len} bytes, and {POD_LEN_MAX} are told: give it fewer or shorter labels"
            )
        })
    }
}

/// What is wrong with a label, by Kubernetes' rules ("Labels and Selectors", syntax and character set).
pub fn label_fault(key: &str, value: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|prefix| !is_dns_name(prefix)) || !is_label_text(name) {
        return Some(format!(
            "label key {key:.80?} is none: 1 to 63 letters, digits, `-`, `_` and `.`, letters or digits at both \
             ends, perhaps with a DNS name and `/` before it"
        ));
    }
    (!value.is_empty() && !is_label_text(value)).then(|| {
        format!(
            "label {key:.80} has the value {value:.80?}: write nothing, or 1 to 63 letters, digits, `-`, `_` and \
             `.`, letters or digits at both ends"
        )
    })
}

fn is_label_text(text: &str) -> bool {
    let alphanumeric = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= LABEL_LEN_MAX
        && alphanumeric(text.bytes().next())
        && alphanumeric(text.bytes().last())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// A DNS label as Kubernetes has it (RFC 1123 §2.1, in lower case).
fn is_dns_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=LABEL_LEN_MAX).contains(&text.len())
        && text.bytes().all(|byte| plain(byte) || byte == b'-')
        && text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain)
}

fn is_dns_name(text: &str) -> bool {
    text.len() <= NAME_LEN_MAX && text.split('.').all(is_dns_label)
}

/// What pods, containers and devices are called: DNS names in Kubernetes, ids elsewhere.
fn is_object_name(text: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
}

fn is_unicast(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::from([255, 255, 255, 255]);
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() && !broadcast
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn pod(name: &str, address: &str) -> Pod {
        Pod {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: None,
            addresses: vec![address.parse().unwrap()],
            labels: [("app".to_owned(), name.to_owned())].into(),
            host_network: false,
        }
    }

    #[test]
    fn what_kubernetes_takes_is_told() {
        let mut web = pod("web-7d4b9c-x2x", "10.244.1.2");
        assert_eq!(web.check(), Ok(()));
        for (key, value) in [
            ("a", ""),
            ("app.kubernetes.io/name", "Web_1.0"),
            ("pod-template-hash", "7d4b9c"),
            ("a.b-c_d", "x"),
        ] {
            assert_eq!(label_fault(key, value), None);
            web.labels.insert(key.to_owned(), value.to_owned());
        }
        assert_eq!(web.check(), Ok(()));
        // Without names from the runtime: a container's id.
        let bare = Pod { namespace: String::new(), name: "f".repeat(64), ..web };
        assert_eq!(bare.check(), Ok(()));
    }

    #[test]
    fn what_cannot_be_told_is_refused_by_name() {
        type Spoil = fn(&mut Pod);
        let cases: [(&str, Spoil); 12] = [
            ("namespace", |pod| pod.namespace = "Default".to_owned()),
            ("namespace", |pod| pod.namespace = "a".repeat(64)),
            ("name", |pod| pod.name.clear()),
            ("name", |pod| pod.name = "a\u{1b}[2J".to_owned()),
            ("uid", |pod| pod.uid = Some("u".repeat(65))),
            ("9 addresses", |pod| pod.addresses = vec![pod.addresses[0]; 9]),
            ("224.0.0.1", |pod| pod.addresses = vec![[224, 0, 0, 1].into()]),
            ("label key", |pod| drop(pod.labels.insert("-a".to_owned(), String::new()))),
            ("label key", |pod| drop(pod.labels.insert("/a".to_owned(), String::new()))),
            ("has the value", |pod| drop(pod.labels.insert("a".to_owned(), "a b".to_owned()))),
            ("33 labels", |pod| {
                pod.labels = (0..33).map(|n| (format!("l{n}"), String::new())).collect();
            }),
            ("bytes", |pod| {
                pod.labels = (0..20).map(|n| (format!("l{n}"), "v".repeat(60))).collect();
            }),
        ];
        for (part, spoil) in cases {
            let mut pod = pod("web", "10.244.1.2");
            spoil(&mut pod);
            let error = pod.check().unwrap_err();
            assert_eq!(error.pod, pod.title());
            assert!(error.why.contains(part), "{part} in {error}");
        }
    }
}
