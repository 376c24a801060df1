//! Random clusters: few names, labels, ports and addresses, so that they meet.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use serde_json::{Map, Value, json};

use crate::reference::World;

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 3] = ["app", "tier", "zone"];
const VALUES: [&str; 3] = ["x", "y", ""];
const NAMES: [&str; 3] = ["http", "dns", "alt"];
pub(crate) const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
pub(crate) const PORTS: [u16; 6] = [1, 53, 80, 81, 8080, 65_535];

/// Makes clusters and changes of them, the same ones for the same seed.
#[derive(Debug)]
pub(crate) struct Maker {
    random: StdRng,
}

impl Maker {
    pub(crate) fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed) }
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.random.random_range(0..n) == 0
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.random.random_range(0..n)
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A cluster of a few objects of every kind.
    pub(crate) fn world(&mut self) -> World {
        let mut objects = Vec::new();
        for name in NAMESPACES {
            // One that is not declared exists all the same.
            if !self.one_in(4) {
                objects.push(self.namespace(name));
            }
        }
        for number in 0..2 {
            objects.push(self.node(number));
        }
        for number in 0..2 + self.below(5) {
            objects.push(self.pod(number));
        }
        for number in 0..2 + self.below(7) {
            objects.push(self.network_policy(number));
        }
        if !self.one_in(3) {
            for number in 0..self.below(4) {
                objects.push(self.cluster_policy(number));
            }
        }
        World { objects }
    }

    /// Changes one object, or adds or removes one. Returns its place, and what it was.
    pub(crate) fn change(&mut self, world: &mut World) {
        let number = self.below(9);
        let new = match self.below(10) {
            0 => {
                let name = self.pick(&NAMESPACES);
                self.namespace(name)
            }
            1 => self.node(number % 2),
            2..=5 => self.pod(number % 7),
            6 | 7 => self.network_policy(number),
            _ => self.cluster_policy(number % 4),
        };
        let is_same = |object: &Value| {
            object["kind"] == new["kind"]
                && object["metadata"]["name"] == new["metadata"]["name"]
                && object["metadata"]["namespace"] == new["metadata"]["namespace"]
        };
        world.objects.retain(|object| !is_same(object));
        if !self.one_in(4) {
            world.objects.push(new);
        }
    }

    fn labels(&mut self) -> Value {
        let mut labels = Map::new();
        for key in KEYS {
            if self.one_in(2) {
                labels.insert(key.into(), self.pick(&VALUES).into());
            }
        }
        labels.into()
    }

    fn namespace(&mut self, name: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": self.labels()}})
    }

    fn node(&mut self, number: usize) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": format!("n{number}"), "labels": self.labels()},
            "status": {"addresses": [
                {"type": "InternalIP", "address": format!("192.0.2.{}", number + 1)},
                {"type": "InternalIP", "address": format!("2001:db8::{}", number + 1)},
            ]},
        })
    }

    fn pod(&mut self, number: usize) -> Value {
        let node = self.below(2);
        let host = self.one_in(8);
        let ips = if host {
            vec![format!("192.0.2.{}", node + 1), format!("2001:db8::{}", node + 1)]
        } else {
            match self.below(4) {
                0 => vec![format!("10.0.0.{number}")],
                1 => vec![format!("fd00::{number}")],
                _ => vec![format!("10.0.0.{number}"), format!("fd00::{number}")],
            }
        };
        let ips: Vec<Value> = ips.into_iter().map(|ip| json!({"ip": ip})).collect();
        let mut ports = Vec::new();
        for name in NAMES {
            if self.one_in(2) {
                ports.push(json!({
                    "name": name, "containerPort": self.pick(&PORTS), "protocol": self.pick(&PROTOCOLS),
                }));
            }
        }
        let phase = if self.one_in(12) { "Succeeded" } else { "Running" };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("p{number}"), "namespace": NAMESPACES[number % 3], "labels": self.labels(),
            },
            "spec": {
                "nodeName": format!("n{node}"), "hostNetwork": host,
                "containers": [{"ports": ports}],
            },
            "status": {"phase": phase, "podIPs": ips},
        })
    }

    fn selector(&mut self) -> Value {
        let mut selector = Map::new();
        if self.one_in(2) {
            let key = self.pick(&KEYS);
            selector.insert("matchLabels".into(), json!({key: self.pick(&VALUES)}));
        }
        if self.one_in(3) {
            let operator = self.pick(&["In", "NotIn", "Exists", "DoesNotExist"]);
            let key = self.pick(&KEYS);
            let mut expression = json!({"key": key, "operator": operator});
            if operator.ends_with("In") {
                let values: Vec<&str> =
                    (0..1 + self.below(2)).map(|_| self.pick(&VALUES)).collect();
                expression["values"] = json!(values);
            }
            selector.insert("matchExpressions".into(), json!([expression]));
        }
        selector.into()
    }

    fn namespace_selector(&mut self) -> Value {
        if self.one_in(3) {
            let name = self.pick(&NAMESPACES);
            return json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
        }
        self.selector()
    }

    fn cidr(&mut self) -> (String, Vec<String>) {
        let (v4, number) = (self.one_in(2), self.below(8));
        if v4 {
            match self.below(5) {
                0 => ("0.0.0.0/0".into(), vec!["10.0.0.0/8".into()]),
                1 => ("10.0.0.0/24".into(), vec!["10.0.0.0/30".into(), "10.0.0.6/32".into()]),
                2 => (format!("10.0.0.{number}/30"), vec![format!("10.0.0.{}/32", number & !3)]),
                3 => ("192.0.2.0/30".into(), vec!["192.0.2.2/32".into()]),
                _ => (format!("10.0.0.{number}/32"), vec![]),
            }
        } else {
            match self.below(4) {
                0 => ("::/0".into(), vec!["fd00::/8".into()]),
                1 => ("fd00::/120".into(), vec!["fd00::4/127".into()]),
                2 => ("2001:db8::/64".into(), vec![]),
                _ => (format!("fd00::{number}/128"), vec![]),
            }
        }
    }

    fn network_peer(&mut self) -> Value {
        match self.below(4) {
            0 => {
                let (cidr, except) = self.cidr();
                let except = if self.one_in(2) { except } else { Vec::new() };
                json!({"ipBlock": {"cidr": cidr, "except": except}})
            }
            1 => json!({"podSelector": self.selector()}),
            2 => json!({"namespaceSelector": self.namespace_selector()}),
            _ => json!({
                "namespaceSelector": self.namespace_selector(), "podSelector": self.selector(),
            }),
        }
    }

    fn network_port(&mut self) -> Value {
        let mut port = Map::new();
        if !self.one_in(3) {
            port.insert("protocol".into(), self.pick(&PROTOCOLS).into());
        }
        match self.below(4) {
            0 => {}
            1 => {
                port.insert("port".into(), self.pick(&NAMES).into());
            }
            2 => {
                let (one, other) = (self.pick(&PORTS), self.pick(&PORTS));
                port.insert("port".into(), one.min(other).into());
                port.insert("endPort".into(), one.max(other).into());
            }
            _ => {
                port.insert("port".into(), self.pick(&PORTS).into());
            }
        }
        port.into()
    }

    fn network_rules(&mut self, key: &str) -> Value {
        let rules = (0..self.below(3)).map(|_| {
            let mut rule = Map::new();
            if !self.one_in(4) {
                let peers: Vec<Value> = (0..self.below(3)).map(|_| self.network_peer()).collect();
                rule.insert(key.into(), peers.into());
            }
            if !self.one_in(3) {
                let ports: Vec<Value> = (0..self.below(3)).map(|_| self.network_port()).collect();
                rule.insert("ports".into(), ports.into());
            }
            Value::from(rule)
        });
        rules.collect::<Vec<_>>().into()
    }

    fn network_policy(&mut self, number: usize) -> Value {
        let mut spec = Map::new();
        if !self.one_in(5) {
            spec.insert("podSelector".into(), self.selector());
        }
        if !self.one_in(3) {
            spec.insert("ingress".into(), self.network_rules("from"));
        }
        if !self.one_in(3) {
            spec.insert("egress".into(), self.network_rules("to"));
        }
        match self.below(5) {
            0 => drop(spec.insert("policyTypes".into(), json!(["Ingress"]))),
            1 => drop(spec.insert("policyTypes".into(), json!(["Egress"]))),
            2 => drop(spec.insert("policyTypes".into(), json!(["Ingress", "Egress"]))),
            _ => {}
        }
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("np{number}"), "namespace": NAMESPACES[number % 3]},
            "spec": spec,
        })
    }

    fn pods_or_namespaces(&mut self) -> Value {
        if self.one_in(2) {
            return json!({"namespaces": self.namespace_selector()});
        }
        json!({"pods": {
            "namespaceSelector": self.namespace_selector(), "podSelector": self.selector(),
        }})
    }

    fn cluster_rules(&mut self, kind: &str, is_egress: bool) -> Value {
        let is_new = kind == "ClusterNetworkPolicy";
        let rules = (0..self.below(4)).map(|_| {
            let accept = if is_new { "Accept" } else { "Allow" };
            let actions = [accept, "Deny", "Pass"];
            let actions = if kind.starts_with('B') { &actions[..2] } else { &actions[..] };
            let mut has_addresses = false;
            let peers: Vec<Value> = (0..1 + self.below(2))
                .map(|_| match self.below(4) {
                    0 if is_egress => {
                        has_addresses = true;
                        json!({"networks": [self.cidr().0]})
                    }
                    1 if is_egress => {
                        has_addresses = true;
                        json!({"nodes": self.selector()})
                    }
                    _ => self.pods_or_namespaces(),
                })
                .collect();
            let mut rule = json!({"action": self.pick(actions)});
            rule[if is_egress { "to" } else { "from" }] = peers.into();
            if !self.one_in(3) {
                let ports: Vec<Value> = (0..1 + self.below(2))
                    .map(|_| {
                        if is_new {
                            self.new_port(!has_addresses)
                        } else {
                            self.old_port(!has_addresses)
                        }
                    })
                    .collect();
                rule[if is_new { "protocols" } else { "ports" }] = ports.into();
            }
            rule
        });
        rules.collect::<Vec<_>>().into()
    }

    fn range(&mut self) -> (u16, u16) {
        let first = self.below(PORTS.len() - 1);
        let last = first + 1 + self.below(PORTS.len() - first - 1);
        (PORTS[first], PORTS[last])
    }

    fn new_port(&mut self, may_be_named: bool) -> Value {
        let protocol = self.pick(&PROTOCOLS).to_lowercase();
        match self.below(3) {
            0 if may_be_named => json!({"destinationNamedPort": self.pick(&NAMES)}),
            1 => {
                let (start, end) = self.range();
                json!({protocol: {"destinationPort": {"range": {"start": start, "end": end}}}})
            }
            _ => json!({protocol: {"destinationPort": {"number": self.pick(&PORTS)}}}),
        }
    }

    fn old_port(&mut self, may_be_named: bool) -> Value {
        match self.below(3) {
            0 if may_be_named => json!({"namedPort": self.pick(&NAMES)}),
            1 => {
                let (start, end) = self.range();
                json!({"portRange": {"protocol": self.pick(&PROTOCOLS), "start": start, "end": end}})
            }
            _ if self.one_in(2) => json!({"portNumber": {"port": self.pick(&PORTS)}}),
            _ => json!({"portNumber": {
                "protocol": self.pick(&PROTOCOLS), "port": self.pick(&PORTS),
            }}),
        }
    }

    fn cluster_policy(&mut self, number: usize) -> Value {
        let kind = [
            "ClusterNetworkPolicy",
            "ClusterNetworkPolicy",
            "AdminNetworkPolicy",
            "BaselineAdminNetworkPolicy",
        ][number % 4];
        let (version, name) = match kind {
            "ClusterNetworkPolicy" => ("v1alpha2", format!("cnp{number}")),
            "AdminNetworkPolicy" => ("v1alpha1", "anp".to_owned()),
            _ => ("v1alpha1", "default".to_owned()),
        };
        let mut spec = json!({"subject": self.pods_or_namespaces()});
        if kind == "ClusterNetworkPolicy" {
            spec["tier"] = self.pick(&["Admin", "Admin", "Baseline"]).into();
        }
        if kind != "BaselineAdminNetworkPolicy" {
            spec["priority"] = self.below(3).into();
        }
        if !self.one_in(3) {
            spec["ingress"] = self.cluster_rules(kind, false);
        }
        if !self.one_in(3) {
            spec["egress"] = self.cluster_rules(kind, true);
        }
        json!({
            "apiVersion": format!("policy.networking.k8s.io/{version}"), "kind": kind,
            "metadata": {"name": name}, "spec": spec,
        })
    }
}
