//! Services with addresses for the world: who may announce them, and what load balancers in front are told. Pure but
//! for where it is handed on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use conf::cluster::{ClusterState, Endpoint, ObjectName, ServiceView, TrafficPolicy};
use ipnetwork::IpNetwork;
use overlay::node_id::NodeId;

use super::{Control, Topic};
use crate::admin::api::LeasePhase;
use crate::announce::{Plan, Report, Wanted};
use crate::health_check::{HealthCheck, HealthChecks};

/// Label of a node that is to announce nothing, whatever its value (Kubernetes, "Well-Known Labels").
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What a Service has for the world.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Balancer {
    /// Its addresses out of the pool.
    addresses: Vec<IpAddr>,
    /// The nodes with endpoints, under traffic policy `Local`; `None` when any node will do.
    nodes: Option<BTreeSet<Arc<str>>>,
    /// Where it is asked for this node's endpoints, and how many are ready.
    health: Option<(u16, usize)>,
}

impl Balancer {
    /// What `view` has on the node `node`. `None` when it has nothing for the world that is Weft's.
    pub(super) fn of(view: &ServiceView, pool: &[IpNetwork], node: &str) -> Option<Self> {
        let service = &view.service;
        if view.refused.is_some() || !service.proxied {
            return None;
        }
        let is_ours = |address: &&IpAddr| pool.iter().any(|range| range.contains(**address));
        let addresses = if service.wants_load_balancer() {
            view.load_balancer_ips.iter().filter(is_ours).copied().collect()
        } else {
            Vec::new()
        };
        let ports = service.ports.iter();
        let ports = ports.filter_map(|port| view.endpoints.port(&port.name, port.protocol));
        let endpoints: Vec<&Endpoint> = ports
            .flat_map(|port| view.endpoints.of_port(port))
            .map(|(endpoint, _)| endpoint)
            .collect();
        let nodes_with = |serves: fn(&Endpoint) -> bool| -> BTreeSet<Arc<str>> {
            endpoints.iter().filter(|end| serves(end)).filter_map(|end| end.node.clone()).collect()
        };
        let nodes = (service.external_policy == TrafficPolicy::Local).then(|| {
            let ready = nodes_with(|end| end.ready);
            if ready.is_empty() { nodes_with(|end| end.serving && end.terminating) } else { ready }
        });
        let health = view.health_check_node_port.map(|port| {
            let here = endpoints.iter().filter(|end| end.node.as_deref() == Some(node));
            let ready: BTreeSet<IpAddr> =
                here.filter(|end| end.ready).map(|end| end.address).collect();
            (port, ready.len())
        });
        (!addresses.is_empty() || health.is_some()).then_some(Self { addresses, nodes, health })
    }
}

impl Control {
    /// Takes up what of these Services is for the world.
    pub(super) fn follow_balancers(&mut self, services: &BTreeSet<ObjectName>) {
        let cluster = self.objects.cluster().clone();
        let state = cluster.read();
        for id in services {
            let view = state.service(&id.namespace, &id.name);
            let pool = &self.config.services.load_balancer_pool;
            match view.and_then(|view| Balancer::of(view, pool, &self.identity.name)) {
                Some(balancer) => self.balancers.insert(id.clone(), balancer),
                None => self.balancers.remove(id),
            };
        }
        self.plan(&state);
    }

    /// Tells who announces, and who answers for health, what has changed.
    pub(super) fn plan(&mut self, state: &ClusterState) {
        let plan = Arc::new(self.make_plan(state));
        self.plans.send_if_modified(|old| {
            let is_new = *old != plan;
            if is_new {
                *old = plan;
            }
            is_new
        });
        let checks = self.balancers.iter().filter_map(|(id, balancer)| {
            let (port, local_endpoints) = balancer.health?;
            Some((port, HealthCheck { service: id.clone(), local_endpoints }))
        });
        let checks = HealthChecks {
            ports: checks.collect(),
            is_healthy: self.host.is_some() && self.lease_phase == LeasePhase::Held,
        };
        self.health_checks.send_if_modified(|old| {
            let is_new = *old != checks;
            if is_new {
                *old = checks;
            }
            is_new
        });
    }

    fn make_plan(&self, state: &ClusterState) -> Plan {
        let Some(underlay) = &self.underlay else { return Plan::default() };
        let is_excluded =
            |name: &str| state.node(name).is_some_and(|node| node.labels.get(EXCLUDED).is_some());
        let mut nodes = BTreeMap::new();
        let mut by_name: BTreeMap<&str, BTreeSet<NodeId>> = BTreeMap::new();
        // Where no Weft daemon runs, nobody announces.
        let others = self.map.reachable(self.identity.id);
        let others = others.filter(|member| !member.software.is_empty());
        let others = others.map(|member| (member.id, member.name.as_str(), member.underlay));
        let own = (self.identity.id, self.identity.name.as_str(), underlay.address);
        // A node without a subnet has no part in anything; it may not be in the cluster at all.
        let own = (self.lease_phase == LeasePhase::Held).then_some(own);
        for (id, name, address) in others.chain(own).filter(|(_, name, _)| !is_excluded(name)) {
            nodes.insert(id, address);
            by_name.entry(name).or_default().insert(id);
        }
        let candidates = |balancer: &Balancer| match &balancer.nodes {
            None => nodes.keys().copied().collect(),
            Some(names) => {
                let found = names.iter().filter_map(|name| by_name.get(name.as_ref()));
                found.flatten().copied().collect::<BTreeSet<NodeId>>()
            }
        };
        let addresses = self.balancers.values().flat_map(|balancer| {
            let candidates = candidates(balancer);
            balancer.addresses.iter().map(move |address| (*address, candidates.clone()))
        });
        let addresses = addresses.collect();
        Plan { interface: Some(underlay.interface.clone()), wanted: Wanted { nodes, addresses } }
    }

    /// Takes up how announcing goes.
    pub fn set_announced(&mut self, report: Report) {
        let topic = Topic::Services("announcing");
        match &report.problem {
            Some(problem) => self.raise(topic, problem.clone()),
            None => self.clear(&topic),
        }
        for (address, holder) in &report.holders {
            if self.announced.holders.get(address) != Some(holder) {
                let holder = self.holder_name(*holder);
                tracing::info!(%address, holder, "an address for the world is announced by another node");
            }
        }
        self.announced = report;
    }

    /// What is to be said of a Service's addresses for the world.
    pub(super) fn announcements_of(&self, id: &ObjectName) -> Vec<String> {
        let addresses = self.balancers.get(id).map(|balancer| balancer.addresses.as_slice());
        let told = addresses.unwrap_or_default().iter().map(|address| {
            match self.announced.holders.get(address) {
                Some(Some(holder)) => {
                    format!("{address} is announced by {}", self.holder_name(Some(*holder)))
                }
                Some(None) => format!(
                    "{address} is announced by no node: with externalTrafficPolicy Local, none has a ready endpoint"
                ),
                None => format!("{address} is not announced yet"),
            }
        });
        told.collect()
    }

    fn holder_name(&self, holder: Option<NodeId>) -> String {
        match holder {
            None => "nobody".to_owned(),
            Some(id) if id == self.identity.id => self.identity.name.clone(),
            Some(id) => {
                let member = self.map.members.get(&id);
                member.map_or_else(|| id.to_string(), |member| member.name.clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use conf::cluster::parse::parse;
    use conf::source::Directory;

    use super::*;

    const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, externalTrafficPolicy: POLICY, healthCheckNodePort: CHECK, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.2], nodeName: n1, conditions: {ready: N1}}
- {addresses: [10.244.1.3], nodeName: n1, conditions: {ready: N1}}
- {addresses: [10.244.2.2], nodeName: n2, conditions: {ready: N2, serving: true, terminating: true}}
";

    fn balancer(policy: &str, n1: bool, n2: bool) -> Option<Balancer> {
        let pool: Vec<IpNetwork> = vec!["192.0.2.240/28".parse().unwrap()];
        let mut state = ClusterState::new(conf::cluster::ServiceConfig {
            load_balancer_pool: pool.clone(),
            ..Default::default()
        });
        let check = if policy == "Local" { "32000" } else { "0" };
        let text = SERVICE
            .replace("POLICY", policy)
            .replace("CHECK", check)
            .replace("N1", &n1.to_string())
            .replace("N2", &n2.to_string());
        let mut directory = Directory::new();
        let changes = directory.set_file("a.yaml", parse(&text));
        state.apply(changes);
        let refused = directory.refused(&state);
        assert!(refused.is_empty(), "{}", refused[0]);
        Balancer::of(state.service("default", "web").unwrap(), &pool, "n1")
    }

    fn names(list: &[&str]) -> Option<BTreeSet<Arc<str>>> {
        Some(list.iter().map(|name| Arc::from(*name)).collect())
    }

    #[test]
    fn under_local_only_nodes_with_endpoints_announce() {
        let of = |n1, n2| balancer("Local", n1, n2).unwrap();
        assert_eq!(of(true, true).nodes, names(&["n1", "n2"]));
        assert_eq!(of(true, false).nodes, names(&["n1"]));
        assert_eq!(of(false, false).nodes, names(&["n2"]), "it terminates and still serves");
        assert_eq!(balancer("Cluster", false, false).unwrap().nodes, None);
        assert_eq!(of(true, true).addresses.len(), 1);
    }

    #[test]
    fn health_counts_the_ready_endpoints_of_this_node() {
        assert_eq!(balancer("Local", true, true).unwrap().health, Some((32000, 2)));
        assert_eq!(balancer("Local", false, true).unwrap().health, Some((32000, 0)));
        assert_eq!(balancer("Cluster", true, true).unwrap().health, None);
    }
}
