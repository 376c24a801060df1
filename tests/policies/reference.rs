//! Who may reach whom, straight from the words of the Kubernetes API, slowly.
//!
//! It works on the manifests as JSON and shares no code with what it is compared to: no parser, no types, no matching
//! of labels, no compiled rules. Sentences in quotes are those of `k8s.io/api/networking/v1` and
//! `sigs.k8s.io/network-policy-api`.

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

use std::net::IpAddr;

use serde_json::{Value, json};

/// All objects of a cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    pub(crate) objects: Vec<Value>,
}

/// What is sent: a protocol and port, or something without ports.
pub(crate) type Sent = Option<(&'static str, u16)>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Accepted,
    Denied,
    Undecided,
}

impl World {
    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }

    /// The pod with an address, if it has one of its own and has not ended.
    fn pod_at(&self, address: IpAddr) -> Option<&Value> {
        self.of_kind("Pod").find(|pod| {
            pod["spec"]["hostNetwork"] != true
                && !has_ended(pod)
                && addresses(pod).contains(&address)
        })
    }

    /// Whether `address` is of the node that the pod is on.
    fn is_node_of(&self, pod: &Value, address: IpAddr) -> bool {
        let node =
            self.of_kind("Node").find(|node| node["metadata"]["name"] == pod["spec"]["nodeName"]);
        node.is_some_and(|node| node_addresses(node).contains(&address))
    }

    /// The labels of a namespace; the API server gives each its name as one.
    fn namespace_labels(&self, name: &Value) -> Value {
        let declared = self.of_kind("Namespace").find(|one| one["metadata"]["name"] == *name);
        let mut labels =
            declared.map_or_else(|| json!({}), |one| one["metadata"]["labels"].clone());
        if labels.is_null() {
            labels = json!({});
        }
        labels["kubernetes.io/metadata.name"] = name.clone();
        labels
    }

    /// Whether `from` may reach `to`.
    pub(crate) fn allows(&self, from: IpAddr, to: IpAddr, sent: Sent) -> bool {
        let (sender, receiver) = (self.pod_at(from), self.pod_at(to));
        // "A Pod cannot block access to itself."
        if from == to || (sender.is_some() && same(sender, receiver)) {
            return true;
        }
        // "traffic to and from the node where a Pod is running is always allowed, regardless of the IP address of the
        // Pod or the node"
        if sender.is_some_and(|pod| self.is_node_of(pod, to))
            || receiver.is_some_and(|pod| self.is_node_of(pod, from))
        {
            return true;
        }
        // "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the source
        // pod and the ingress policy on the destination pod need to allow the connection."
        let sends = sender.is_none_or(|pod| self.side(pod, Direction::Egress, to, receiver, sent));
        let takes =
            receiver.is_none_or(|pod| self.side(pod, Direction::Ingress, from, sender, sent));
        sends && takes
    }

    fn side(
        &self,
        pod: &Value,
        direction: Direction,
        peer: IpAddr,
        peer_pod: Option<&Value>,
        sent: Sent,
    ) -> bool {
        // "Policy tiers are evaluated in the following order: Admin tier, NetworkPolicy tier, Baseline tier"
        match self.cluster_tier("Admin", pod, direction, peer, peer_pod, sent) {
            Outcome::Accepted => return true,
            Outcome::Denied => return false,
            Outcome::Undecided => {}
        }
        // "v1.NetworkPolicy always makes a final decision for selected pods."
        let selecting: Vec<&Value> = self
            .of_kind("NetworkPolicy")
            .filter(|policy| policy["metadata"]["namespace"] == pod["metadata"]["namespace"])
            .filter(|policy| selects(&policy["spec"]["podSelector"], &pod["metadata"]["labels"]))
            .filter(|policy| is_of_type(policy, direction))
            .collect();
        if !selecting.is_empty() {
            // "if the traffic matches at least one ingress rule across all of the NetworkPolicy objects whose
            // podSelector matches the pod"
            return selecting.iter().any(|policy| {
                let rules = list(&policy["spec"][section(direction)]);
                rules.iter().any(|rule| {
                    self.network_rule(policy, rule, pod, direction, peer, peer_pod, sent)
                })
            });
        }
        match self.cluster_tier("Baseline", pod, direction, peer, peer_pod, sent) {
            Outcome::Accepted => true,
            Outcome::Denied => false,
            // "the default kubernetes policy is applied, which says that all pods can communicate with each other"
            Outcome::Undecided => true,
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn network_rule(
        &self,
        policy: &Value,
        rule: &Value,
        pod: &Value,
        direction: Direction,
        peer: IpAddr,
        peer_pod: Option<&Value>,
        sent: Sent,
    ) -> bool {
        let key = if direction == Direction::Ingress { "from" } else { "to" };
        let (peers, ports) = (list(&rule[key]), list(&rule["ports"]));
        // "If this field is empty or missing, this rule matches all sources"
        let is_peer = peers.is_empty()
            || peers.iter().any(|one| self.network_peer(policy, one, peer, peer_pod));
        // "The traffic must match both ports and from."
        let receiver = if direction == Direction::Ingress { Some(pod) } else { peer_pod };
        // "If this field is empty or missing, this rule matches all ports (traffic not restricted by port)."
        is_peer && (ports.is_empty() || ports.iter().any(|one| network_port(one, receiver, sent)))
    }

    fn network_peer(
        &self,
        policy: &Value,
        peer: &Value,
        address: IpAddr,
        pod: Option<&Value>,
    ) -> bool {
        if !peer["ipBlock"].is_null() {
            let except = list(&peer["ipBlock"]["except"]);
            return in_block(&peer["ipBlock"]["cidr"], address)
                && !except.iter().any(|one| in_block(one, address));
        }
        let Some(pod) = pod else { return false };
        let namespace = &pod["metadata"]["namespace"];
        // "If namespaceSelector is also set, then the NetworkPolicyPeer as a whole selects the pods matching podSelector
        // in the Namespaces selected by NamespaceSelector. Otherwise it selects the pods matching podSelector in the
        // policy's own namespace."
        let is_there = if peer["namespaceSelector"].is_null() {
            *namespace == policy["metadata"]["namespace"]
        } else {
            selects(&peer["namespaceSelector"], &self.namespace_labels(namespace))
        };
        is_there && selects(&peer["podSelector"], &pod["metadata"]["labels"])
    }

    fn cluster_tier(
        &self,
        tier: &str,
        pod: &Value,
        direction: Direction,
        peer: IpAddr,
        peer_pod: Option<&Value>,
        sent: Sent,
    ) -> Outcome {
        let mut policies: Vec<&Value> = self
            .objects
            .iter()
            .filter(|object| match object["kind"].as_str().unwrap() {
                "ClusterNetworkPolicy" => object["spec"]["tier"] == tier,
                "AdminNetworkPolicy" => tier == "Admin",
                "BaselineAdminNetworkPolicy" => tier == "Baseline",
                _ => false,
            })
            .collect();
        // "Policies with lower priority values have higher precedence". Ours of two with the same one: by name, and the
        // newest kind first.
        policies.sort_by_key(|policy| {
            let kind = ["ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"]
                .iter()
                .position(|kind| policy["kind"] == *kind);
            let name = policy["metadata"]["name"].as_str().unwrap();
            (policy["spec"]["priority"].as_u64().unwrap_or(0), name, kind)
        });
        for policy in policies {
            let subject = &policy["spec"]["subject"];
            if !self.namespaced_pod(subject, pod) {
                continue;
            }
            for rule in list(&policy["spec"][section(direction)]) {
                let key = if direction == Direction::Ingress { "from" } else { "to" };
                let is_peer =
                    list(&rule[key]).iter().any(|one| self.cluster_peer(one, peer, peer_pod));
                let receiver = if direction == Direction::Ingress { Some(pod) } else { peer_pod };
                let is_new = policy["kind"] == "ClusterNetworkPolicy";
                let ports = list(&rule[if is_new { "protocols" } else { "ports" }]);
                let is_port = ports.is_empty()
                    || ports.iter().any(|one| {
                        if is_new {
                            cluster_port(one, receiver, sent)
                        } else {
                            admin_port(one, receiver, sent)
                        }
                    });
                if is_peer && is_port {
                    return match rule["action"].as_str().unwrap() {
                        "Accept" | "Allow" => Outcome::Accepted,
                        "Deny" => Outcome::Denied,
                        // "Skips all further ClusterNetworkPolicy rules in the current tier for the selected traffic,
                        // and passes evaluation to the next tier."
                        "Pass" => Outcome::Undecided,
                        other => panic!("{other}"),
                    };
                }
            }
        }
        Outcome::Undecided
    }

    /// `namespaces` or `pods`, of a subject or a peer.
    fn namespaced_pod(&self, selection: &Value, pod: &Value) -> bool {
        let labels = self.namespace_labels(&pod["metadata"]["namespace"]);
        if !selection["namespaces"].is_null() {
            return selects(&selection["namespaces"], &labels);
        }
        let pods = &selection["pods"];
        !pods.is_null()
            && selects(&pods["namespaceSelector"], &labels)
            && selects(&pods["podSelector"], &pod["metadata"]["labels"])
    }

    fn cluster_peer(&self, peer: &Value, address: IpAddr, pod: Option<&Value>) -> bool {
        if !peer["networks"].is_null() {
            return list(&peer["networks"]).iter().any(|one| in_block(one, address));
        }
        if !peer["nodes"].is_null() {
            let mut nodes = self
                .of_kind("Node")
                .filter(|node| selects(&peer["nodes"], &node["metadata"]["labels"]));
            return nodes.any(|node| node_addresses(node).contains(&address));
        }
        // "Note that host-networked pods are not included in this type of peer."
        pod.is_some_and(|pod| self.namespaced_pod(peer, pod))
    }
}

fn same(one: Option<&Value>, other: Option<&Value>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => std::ptr::eq(one, other),
        _ => false,
    }
}

fn section(direction: Direction) -> &'static str {
    if direction == Direction::Ingress { "ingress" } else { "egress" }
}

/// "If this field is not specified, it will default based on the existence of ingress or egress rules; policies that
/// contain an egress section are assumed to affect egress, and all policies (whether or not they contain an ingress
/// section) are assumed to affect ingress."
fn is_of_type(policy: &Value, direction: Direction) -> bool {
    let types = list(&policy["spec"]["policyTypes"]);
    if types.is_empty() {
        return direction == Direction::Ingress || !list(&policy["spec"]["egress"]).is_empty();
    }
    types.contains(&json!(if direction == Direction::Ingress { "Ingress" } else { "Egress" }))
}

/// "If not specified, this field defaults to TCP." "If this field is not provided, this matches all port names and
/// numbers." "endPort indicates that the range of ports from port to endPort if set, inclusive, should be allowed"
fn network_port(port: &Value, receiver: Option<&Value>, sent: Sent) -> bool {
    let Some((protocol, number)) = sent else { return false };
    if port["protocol"].as_str().unwrap_or("TCP") != protocol {
        return false;
    }
    if port["port"].is_null() {
        return true;
    }
    if let Some(name) = port["port"].as_str() {
        return has_port(receiver, name, protocol, number);
    }
    let first = port["port"].as_u64().unwrap();
    let last = port["endPort"].as_u64().unwrap_or(first);
    (first..=last).contains(&u64::from(number))
}

fn cluster_port(port: &Value, receiver: Option<&Value>, sent: Sent) -> bool {
    let Some((protocol, number)) = sent else { return false };
    if let Some(name) = port["destinationNamedPort"].as_str() {
        return has_port(receiver, name, protocol, number);
    }
    let port = &port[protocol.to_lowercase()]["destinationPort"];
    in_range(&port["number"], &port["range"], number)
}

fn admin_port(port: &Value, receiver: Option<&Value>, sent: Sent) -> bool {
    let Some((protocol, number)) = sent else { return false };
    if let Some(name) = port["namedPort"].as_str() {
        return has_port(receiver, name, protocol, number);
    }
    let of = if port["portRange"].is_null() { &port["portNumber"] } else { &port["portRange"] };
    of["protocol"].as_str().unwrap_or("TCP") == protocol && in_range(&of["port"], of, number)
}

fn in_range(only: &Value, range: &Value, number: u16) -> bool {
    if let Some(only) = only.as_u64() {
        return only == u64::from(number);
    }
    let (Some(start), Some(end)) = (range["start"].as_u64(), range["end"].as_u64()) else {
        return false;
    };
    (start..=end).contains(&u64::from(number))
}

/// Whether any of a pod's containers calls this port so.
fn has_port(pod: Option<&Value>, name: &str, protocol: &str, number: u16) -> bool {
    let Some(pod) = pod else { return false };
    list(&pod["spec"]["containers"]).iter().flat_map(|container| list(&container["ports"])).any(
        |port| {
            port["name"] == name
                && port["protocol"].as_str().unwrap_or("TCP") == protocol
                && port["containerPort"] == number
        },
    )
}

/// A label selector: "The result of matchLabels and matchExpressions are ANDed. An empty label selector matches all
/// objects."
fn selects(selector: &Value, labels: &Value) -> bool {
    let pairs = selector["matchLabels"].as_object();
    let pairs = pairs.is_none_or(|pairs| pairs.iter().all(|(key, value)| labels[key] == *value));
    let expressions = list(&selector["matchExpressions"]);
    pairs
        && expressions.iter().all(|expression| {
            let found = &labels[expression["key"].as_str().unwrap()];
            let is_one_of = list(&expression["values"]).contains(found);
            match expression["operator"].as_str().unwrap() {
                "In" => !found.is_null() && is_one_of,
                // Also of what has no such label.
                "NotIn" => found.is_null() || !is_one_of,
                "Exists" => !found.is_null(),
                "DoesNotExist" => found.is_null(),
                other => panic!("{other}"),
            }
        })
}

/// Whether the first bits of both are the same, one by one.
fn in_block(cidr: &Value, address: IpAddr) -> bool {
    let (start, len) = cidr.as_str().unwrap().split_once('/').unwrap();
    let bits = |address: IpAddr| -> Vec<bool> {
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
    };
    let (start, address) = (bits(start.parse().unwrap()), bits(address));
    let len: usize = len.parse().unwrap();
    start.len() == address.len() && start[..len] == address[..len]
}

pub(crate) fn addresses(pod: &Value) -> Vec<IpAddr> {
    let ips = list(&pod["status"]["podIPs"]);
    ips.iter().map(|ip| ip["ip"].as_str().unwrap().parse().unwrap()).collect()
}

pub(crate) fn node_addresses(node: &Value) -> Vec<IpAddr> {
    let all = list(&node["status"]["addresses"]);
    all.iter().map(|one| one["address"].as_str().unwrap().parse().unwrap()).collect()
}

fn has_ended(pod: &Value) -> bool {
    pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed"
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
