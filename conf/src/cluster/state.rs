//! Everything that is declared and known of a cluster, found by name, kept up to date change by change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::endpoints::{self, ServiceEndpoints};
use super::fact::{NodeFact, PodFact, PodView};
use super::labels::Labels;
use super::namespaced::Namespaced;
use super::object::{
    EndpointSlice, Namespace, Node, Object, ObjectKey, ObjectKind, ObjectName, Pod, Secret,
    Service, ServiceCidr,
};
use super::policy::{ClusterPolicy, NetworkPolicy};
use super::service_map::{Allocations, Authority, ServiceConfig, ServiceView, Used};

/// A change of what is declared or known.
#[derive(Debug, Clone)]
pub enum Change {
    /// An object is there, in place of the one with the same key.
    Set(Object),
    /// An object is gone.
    Remove(ObjectKey),
    /// A node has attached a pod.
    SetPod(PodFact),
    /// A node has a pod no more.
    RemovePod {
        /// The pod.
        id: ObjectName,
        /// The node.
        node: Arc<str>,
    },
    /// A node is in the map.
    SetNode(NodeFact),
    /// A node is not in the map any more.
    RemoveNode(Arc<str>),
}

/// What is different after changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Services whose [`ServiceView`] is new, other or gone.
    pub services: BTreeSet<ObjectName>,
    /// Pods whose [`PodView`] is new, other or gone.
    pub pods: BTreeSet<ObjectName>,
    /// Namespaces.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Nodes.
    pub nodes: BTreeSet<Arc<str>>,
    /// ServiceCIDRs.
    pub service_cidrs: BTreeSet<Arc<str>>,
    /// Secrets.
    pub secrets: BTreeSet<ObjectName>,
    /// Policies of all kinds.
    pub policies: BTreeSet<ObjectKey>,
}

impl Delta {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// Adds what `later` changed.
    pub fn merge(&mut self, later: Self) {
        self.services.extend(later.services);
        self.pods.extend(later.pods);
        self.namespaces.extend(later.namespaces);
        self.nodes.extend(later.nodes);
        self.service_cidrs.extend(later.service_cidrs);
        self.secrets.extend(later.secrets);
        self.policies.extend(later.policies);
    }
}

/// The objects of a cluster, the pods and nodes that are known to be there, and what follows: each
/// Service's addresses and endpoints.
///
/// What it holds depends only on what is there, not on the order of the changes that led to it.
#[derive(Debug, Clone)]
pub struct ClusterState {
    namespaces: BTreeMap<Arc<str>, Arc<Namespace>>,
    nodes: BTreeMap<Arc<str>, NodeEntry>,
    service_cidrs: BTreeMap<Arc<str>, Arc<ServiceCidr>>,
    pods: Namespaced<PodEntry>,
    services: Namespaced<Arc<ServiceView>>,
    slices: Namespaced<Arc<EndpointSlice>>,
    secrets: Namespaced<Arc<Secret>>,
    network_policies: Namespaced<Arc<NetworkPolicy>>,
    cluster_policies: BTreeMap<(ObjectKind, Arc<str>), Arc<ClusterPolicy>>,
    allocations: Allocations,
    /// Slices by the Service that they belong to.
    slices_of: Namespaced<BTreeSet<Arc<str>>>,
    /// Pods by each of their labels.
    pods_by_label: BTreeMap<Arc<str>, ByLabel>,
    /// Services by the first label of their selectors.
    services_by_label: BTreeMap<Arc<str>, ByLabel>,
    pods_by_node: BTreeMap<Arc<str>, BTreeSet<ObjectName>>,
    pods_by_address: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    services_by_address: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
}

type ByLabel = BTreeMap<(Arc<str>, Arc<str>), BTreeSet<Arc<str>>>;

#[derive(Debug, Clone, Default)]
struct PodEntry {
    manifest: Option<Arc<Pod>>,
    /// By node; almost always one.
    facts: Vec<PodFact>,
    view: Option<Arc<PodView>>,
}

#[derive(Debug, Clone, Default)]
struct NodeEntry {
    object: Option<Arc<Node>>,
    fact: Option<NodeFact>,
}

impl NodeEntry {
    fn zone(&self) -> Option<&Arc<str>> {
        self.object.as_ref()?.zone()
    }

    fn addresses(&self) -> &[IpAddr] {
        let declared = self.object.as_ref().map_or(&[][..], |node| &node.addresses);
        match &self.fact {
            Some(fact) if declared.is_empty() => &fact.addresses,
            Some(_) | None => declared,
        }
    }
}

impl Default for ClusterState {
    fn default() -> Self {
        Self::new(ServiceConfig::default())
    }
}

impl ClusterState {
    /// An empty cluster.
    pub fn new(config: ServiceConfig) -> Self {
        Self {
            namespaces: BTreeMap::new(),
            nodes: BTreeMap::new(),
            service_cidrs: BTreeMap::new(),
            pods: Namespaced::default(),
            services: Namespaced::default(),
            slices: Namespaced::default(),
            secrets: Namespaced::default(),
            network_policies: Namespaced::default(),
            cluster_policies: BTreeMap::new(),
            allocations: Allocations::new(config),
            slices_of: Namespaced::default(),
            pods_by_label: BTreeMap::new(),
            services_by_label: BTreeMap::new(),
            pods_by_node: BTreeMap::new(),
            pods_by_address: BTreeMap::new(),
            services_by_address: BTreeMap::new(),
        }
    }

    /// How Services get their addresses.
    pub fn config(&self) -> &ServiceConfig {
        self.allocations.config()
    }

    /// Takes up changes, and says what is different by them.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Delta {
        let mut work = Work::default();
        for change in changes {
            self.take_up(change, &mut work);
        }
        for id in work.pods {
            self.refresh_pod(&id, &mut work.delta, &mut work.services);
        }
        for id in work.services {
            self.refresh_service(&id, &mut work.delta);
        }
        work.delta
    }

    fn take_up(&mut self, change: Change, work: &mut Work) {
        match change {
            Change::Set(Object::Namespace(namespace)) => {
                let name = Arc::clone(&namespace.name);
                if self.namespaces.insert(Arc::clone(&name), Arc::clone(&namespace)).as_ref()
                    != Some(&namespace)
                {
                    work.delta.namespaces.insert(name);
                }
            }
            Change::Set(Object::Node(node)) => {
                let name = Arc::clone(&node.name);
                self.change_node(&name, work, |entry| entry.object = Some(node));
            }
            Change::Set(Object::ServiceCidr(cidr)) => {
                let name = Arc::clone(&cidr.name);
                let before = self.service_cidrs.insert(Arc::clone(&name), Arc::clone(&cidr));
                if before.as_ref() != Some(&cidr) {
                    work.delta.service_cidrs.insert(name);
                }
            }
            Change::Set(Object::Pod(pod)) => {
                let id = pod.id.clone();
                self.pods.entry(&id).manifest = Some(pod);
                work.pods.insert(id);
            }
            Change::Set(Object::Service(service)) => self.set_service(&service, work),
            Change::Set(Object::EndpointSlice(slice)) => {
                let id = slice.id.clone();
                let before = self.slices.insert(&id, Arc::clone(&slice));
                self.index_slice(before.as_deref(), Some(&slice), work);
            }
            Change::Set(Object::Secret(secret)) => {
                let id = secret.id.clone();
                if self.secrets.insert(&id, Arc::clone(&secret)).as_ref() != Some(&secret) {
                    work.delta.secrets.insert(id);
                }
            }
            Change::Set(Object::NetworkPolicy(policy)) => {
                let id = policy.id.clone();
                let before = self.network_policies.insert(&id, Arc::clone(&policy));
                if before.as_ref() != Some(&policy) {
                    let kind = ObjectKind::NetworkPolicy;
                    work.delta.policies.insert(ObjectKey { kind, id });
                }
            }
            Change::Set(Object::ClusterPolicy(policy)) => {
                let (kind, name) = (policy.kind, Arc::clone(&policy.name));
                let before =
                    self.cluster_policies.insert((kind, Arc::clone(&name)), Arc::clone(&policy));
                if before.as_ref() != Some(&policy) {
                    let id = ObjectName::new("", name);
                    work.delta.policies.insert(ObjectKey { kind, id });
                }
            }
            Change::Remove(ObjectKey { kind, id }) => self.remove(kind, id, work),
            Change::SetPod(fact) => {
                let id = fact.id.clone();
                let entry = self.pods.entry(&id);
                entry.facts.retain(|known| known.node != fact.node);
                entry.facts.push(fact);
                work.pods.insert(id);
            }
            Change::RemovePod { id, node } => {
                if let Some(entry) = self.pods.get_mut(&id) {
                    entry.facts.retain(|known| known.node != node);
                    work.pods.insert(id);
                }
            }
            Change::SetNode(fact) => {
                let name = Arc::clone(&fact.name);
                self.change_node(&name, work, |entry| entry.fact = Some(fact));
            }
            Change::RemoveNode(name) => self.change_node(&name, work, |entry| entry.fact = None),
        }
    }

    fn remove(&mut self, kind: ObjectKind, id: ObjectName, work: &mut Work) {
        match kind {
            ObjectKind::Namespace => {
                if self.namespaces.remove(&id.name).is_some() {
                    work.delta.namespaces.insert(id.name);
                }
            }
            ObjectKind::Node => self.change_node(&id.name, work, |entry| entry.object = None),
            ObjectKind::ServiceCidr => {
                if self.service_cidrs.remove(&id.name).is_some() {
                    work.delta.service_cidrs.insert(id.name);
                }
            }
            ObjectKind::Pod => {
                if let Some(entry) = self.pods.get_mut(&id) {
                    entry.manifest = None;
                    work.pods.insert(id);
                }
            }
            ObjectKind::Service => {
                if let Some(before) = self.services.remove(&id) {
                    self.index_service(Some(&before), None);
                    work.services.extend(self.allocations.update(&id, None));
                    work.delta.services.insert(id);
                }
            }
            ObjectKind::EndpointSlice => {
                let before = self.slices.remove(&id);
                self.index_slice(before.as_deref(), None, work);
            }
            ObjectKind::Secret => {
                if self.secrets.remove(&id).is_some() {
                    work.delta.secrets.insert(id);
                }
            }
            ObjectKind::NetworkPolicy => {
                if self.network_policies.remove(&id).is_some() {
                    work.delta.policies.insert(ObjectKey { kind, id });
                }
            }
            ObjectKind::ClusterNetworkPolicy
            | ObjectKind::AdminNetworkPolicy
            | ObjectKind::BaselineAdminNetworkPolicy => {
                if self.cluster_policies.remove(&(kind, Arc::clone(&id.name))).is_some() {
                    work.delta.policies.insert(ObjectKey { kind, id });
                }
            }
        }
    }

    fn set_service(&mut self, service: &Arc<Service>, work: &mut Work) {
        let id = service.id.clone();
        if self.services.find(&id).is_some_and(|view| view.service == *service) {
            return;
        }
        let view = Arc::new(ServiceView {
            service: Arc::clone(service),
            refused: None,
            problems: Box::default(),
            families: Box::default(),
            cluster_ips: Box::default(),
            node_ports: Box::default(),
            health_check_node_port: None,
            load_balancer_ips: Box::default(),
            endpoints: Arc::default(),
        });
        let before = self.services.insert(&id, Arc::clone(&view));
        self.index_service(before.as_deref(), Some(&view));
        work.services.extend(self.allocations.update(&id, Some(service)));
        // Its view is an empty one until it is made anew, which is a change in any case.
        work.delta.services.insert(id);
    }

    fn change_node(
        &mut self,
        name: &Arc<str>,
        work: &mut Work,
        change: impl FnOnce(&mut NodeEntry),
    ) {
        let entry = self.nodes.entry(Arc::clone(name)).or_default();
        let before = entry.clone();
        change(entry);
        if entry.object == before.object && entry.fact == before.fact {
            if entry.object.is_none() && entry.fact.is_none() {
                self.nodes.remove(name);
            }
            return;
        }
        work.delta.nodes.insert(Arc::clone(name));
        if entry.zone() != before.zone() || entry.addresses() != before.addresses() {
            work.pods.extend(self.pods_by_node.get(name).into_iter().flatten().cloned());
        }
        if entry.object.is_none() && entry.fact.is_none() {
            self.nodes.remove(name);
        }
    }

    /// Makes a pod's view anew, and notes which Services that concerns.
    fn refresh_pod(
        &mut self,
        id: &ObjectName,
        delta: &mut Delta,
        services: &mut BTreeSet<ObjectName>,
    ) {
        let Some(entry) = self.pods.find(id) else { return };
        let before = entry.view.clone();
        let after = self.view_of(id, entry).map(Arc::new);
        if before == after {
            if after.is_none() {
                self.pods.remove(id);
            }
            return;
        }
        for view in [&before, &after].into_iter().flatten() {
            services.extend(self.selecting(&id.namespace, &view.labels));
        }
        self.index_pod(before.as_deref(), after.as_deref());
        match (&after, self.pods.get_mut(id)) {
            (Some(_), Some(entry)) => entry.view = after,
            (None, _) => {
                self.pods.remove(id);
            }
            (Some(_), None) => {}
        }
        delta.pods.insert(id.clone());
    }

    fn view_of(&self, id: &ObjectName, entry: &PodEntry) -> Option<PodView> {
        let latest = entry.facts.iter().max_by_key(|fact| (fact.since_ms, &fact.node));
        if latest.is_none() && entry.manifest.is_none() {
            return None;
        }
        let manifest = entry.manifest.as_deref();
        let node = latest
            .map(|fact| &fact.node)
            .or_else(|| manifest.and_then(|pod| pod.node.as_ref()))
            .cloned();
        let at = node.as_ref().and_then(|node| self.nodes.get(node));
        let addresses = match (latest, manifest) {
            (Some(fact), _) => fact.addresses.clone(),
            (None, Some(pod)) if pod.addresses.is_empty() && pod.host_network => {
                one_of_each(at.map_or(&[][..], NodeEntry::addresses))
            }
            (None, Some(pod)) => pod.addresses.clone(),
            (None, None) => Box::default(),
        };
        let labels = match (manifest, latest) {
            (Some(pod), _) => pod.labels.clone(),
            (None, Some(fact)) => fact.labels.clone(),
            (None, None) => Labels::default(),
        };
        Some(PodView {
            id: id.clone(),
            labels,
            zone: at.and_then(NodeEntry::zone).cloned(),
            node,
            addresses,
            host_network: latest.is_some_and(|fact| fact.host_network)
                || manifest.is_some_and(|pod| pod.host_network),
            manifest: entry.manifest.clone(),
            attached: latest.is_some(),
        })
    }

    /// Makes a Service's view anew.
    fn refresh_service(&mut self, id: &ObjectName, delta: &mut Delta) {
        let Some(before) = self.services.find(id).cloned() else { return };
        let service = Arc::clone(&before.service);
        let addresses = self.allocations.addresses(&service);
        let endpoints = self.gather_endpoints(&service);
        let endpoints = if endpoints == *before.endpoints {
            Arc::clone(&before.endpoints)
        } else {
            Arc::new(endpoints)
        };
        let after = ServiceView {
            service,
            refused: addresses.refused,
            problems: addresses.problems.into(),
            families: addresses.families.into(),
            cluster_ips: addresses.cluster_ips.into(),
            node_ports: addresses.node_ports.into(),
            health_check_node_port: addresses.health_check_node_port,
            load_balancer_ips: addresses.load_balancer_ips.into(),
            endpoints,
        };
        if after == *before {
            return;
        }
        let after = Arc::new(after);
        self.index_service(Some(&before), Some(&after));
        self.services.insert(id, after);
        delta.services.insert(id.clone());
    }

    fn gather_endpoints(&self, service: &Service) -> ServiceEndpoints {
        let computes = self.config().authority == Authority::Weft && !service.selector.is_empty();
        let selected =
            computes.then(|| self.pods_selected(&service.id.namespace, &service.selector));
        let slices = self.slices_of.find(&service.id).into_iter().flatten();
        let slices = slices.filter_map(|name| self.slices.get(&service.id.namespace, name));
        endpoints::gather(service, selected.into_iter().flatten(), slices.map(AsRef::as_ref))
    }

    /// The Services of a namespace that select a pod with these labels.
    fn selecting(&self, namespace: &str, labels: &Labels) -> Vec<ObjectName> {
        let Some(by_label) = self.services_by_label.get(namespace) else { return Vec::new() };
        let candidates = labels.pairs().iter().filter_map(|pair| by_label.get(pair)).flatten();
        let views = candidates.filter_map(|name| self.services.get(namespace, name));
        let selecting = views.filter(|view| labels.contains_all(&view.service.selector));
        selecting.map(|view| view.service.id.clone()).collect()
    }

    fn index_pod(&mut self, before: Option<&PodView>, after: Option<&PodView>) {
        let Some(one) = before.or(after) else { return };
        let id = one.id.clone();
        if before.map(|view| &view.labels) != after.map(|view| &view.labels) {
            let by_label = self.pods_by_label.entry(Arc::clone(&id.namespace)).or_default();
            for pair in before.into_iter().flat_map(|view| view.labels.pairs()) {
                remove_from(by_label, pair, &id.name);
            }
            for pair in after.into_iter().flat_map(|view| view.labels.pairs()) {
                by_label.entry(pair.clone()).or_default().insert(Arc::clone(&id.name));
            }
            if by_label.is_empty() {
                self.pods_by_label.remove(&id.namespace);
            }
        }
        for address in before.into_iter().flat_map(|view| &view.addresses) {
            remove_from(&mut self.pods_by_address, address, &id);
        }
        for address in after.into_iter().flat_map(|view| &view.addresses) {
            self.pods_by_address.entry(*address).or_default().insert(id.clone());
        }
        if let Some(node) = before.and_then(|view| view.node.as_ref()) {
            remove_from(&mut self.pods_by_node, node, &id);
        }
        if let Some(node) = after.and_then(|view| view.node.as_ref()) {
            self.pods_by_node.entry(Arc::clone(node)).or_default().insert(id);
        }
    }

    fn index_service(&mut self, before: Option<&ServiceView>, after: Option<&ServiceView>) {
        let Some(one) = before.or(after) else { return };
        let id = one.service.id.clone();
        let first = |view: Option<&ServiceView>| view?.service.selector.pairs().first().cloned();
        let (old, new) = (first(before), first(after));
        if old != new {
            let by_label = self.services_by_label.entry(Arc::clone(&id.namespace)).or_default();
            if let Some(pair) = old {
                remove_from(by_label, &pair, &id.name);
            }
            if let Some(pair) = new {
                by_label.entry(pair).or_default().insert(Arc::clone(&id.name));
            }
            if by_label.is_empty() {
                self.services_by_label.remove(&id.namespace);
            }
        }
        for address in before.into_iter().flat_map(|view| &view.cluster_ips) {
            remove_from(&mut self.services_by_address, address, &id);
        }
        for address in after.into_iter().flat_map(|view| &view.cluster_ips) {
            self.services_by_address.entry(*address).or_default().insert(id.clone());
        }
    }

    fn index_slice(
        &mut self,
        before: Option<&EndpointSlice>,
        after: Option<&EndpointSlice>,
        work: &mut Work,
    ) {
        if before == after {
            return;
        }
        let owner = |slice: &EndpointSlice| {
            Some(ObjectName {
                namespace: Arc::clone(&slice.id.namespace),
                name: Arc::clone(slice.service.as_ref()?),
            })
        };
        if let Some((slice, service)) = before.and_then(|slice| Some((slice, owner(slice)?))) {
            let names = self.slices_of.entry(&service);
            names.remove(&slice.id.name);
            if names.is_empty() {
                self.slices_of.remove(&service);
            }
            work.services.insert(service);
        }
        if let Some((slice, service)) = after.and_then(|slice| Some((slice, owner(slice)?))) {
            self.slices_of.entry(&service).insert(Arc::clone(&slice.id.name));
            work.services.insert(service);
        }
    }

    /// A Service, by namespace and name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<ServiceView>> {
        self.services.get(namespace, name)
    }

    /// All Services, by namespace and name. Those with [`ServiceView::refused`] are among them.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceView>> {
        self.services.iter()
    }

    /// The Services of a namespace.
    pub fn services_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<ServiceView>> {
        self.services.in_namespace(namespace)
    }

    /// The Service with this cluster-wide address.
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<ServiceView>> {
        self.services.find(self.services_by_address.get(&address)?.first()?)
    }

    /// A pod, by namespace and name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<PodView>> {
        self.pods.get(namespace, name)?.view.as_ref()
    }

    /// All pods, by namespace and name.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<PodView>> {
        self.pods.iter().filter_map(|entry| entry.view.as_ref())
    }

    /// The pods of a namespace.
    pub fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<PodView>> {
        self.pods.in_namespace(namespace).filter_map(|entry| entry.view.as_ref())
    }

    /// The pods with this address. There is one, but for pods on a host's network, and those that have ended.
    pub fn pods_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<PodView>> {
        let ids = self.pods_by_address.get(&address).into_iter().flatten();
        ids.filter_map(|id| self.pods.find(id)?.view.as_ref())
    }

    /// The pods of a namespace with all of these labels. Without a label, all of its pods.
    pub fn pods_selected<'a>(
        &'a self,
        namespace: &'a str,
        labels: &'a Labels,
    ) -> impl Iterator<Item = &'a PodView> {
        let by_label = self.pods_by_label.get(namespace);
        // The label that the fewest pods have leaves the least to look at.
        let of_pair = |pair| by_label.and_then(|by_label| by_label.get(pair));
        let rarest =
            labels.pairs().iter().map(of_pair).min_by_key(|names| names.map_or(0, BTreeSet::len));
        let everywhere = rarest.is_none().then(|| self.pods_in(namespace));
        let names = rarest.flatten().into_iter().flatten();
        let labelled = names.filter_map(move |name| self.pod(namespace, name));
        labelled
            .filter(|pod| pod.labels.contains_all(labels))
            .chain(everywhere.into_iter().flatten())
            .map(AsRef::as_ref)
    }

    /// An endpoint slice, by namespace and name.
    pub fn slice(&self, namespace: &str, name: &str) -> Option<&Arc<EndpointSlice>> {
        self.slices.get(namespace, name)
    }

    /// A Secret, by namespace and name.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Secret>> {
        self.secrets.get(namespace, name)
    }

    /// A NetworkPolicy, by namespace and name.
    pub fn network_policy(&self, namespace: &str, name: &str) -> Option<&Arc<NetworkPolicy>> {
        self.network_policies.get(namespace, name)
    }

    /// All NetworkPolicies, by namespace and name.
    pub fn network_policies(&self) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        self.network_policies.iter()
    }

    /// A policy of the cluster, by its kind and name.
    pub fn cluster_policy(&self, kind: ObjectKind, name: &str) -> Option<&Arc<ClusterPolicy>> {
        self.cluster_policies.get(&(kind, Arc::from(name)))
    }

    /// All policies of the cluster, by kind and name.
    pub fn cluster_policies(&self) -> impl Iterator<Item = &Arc<ClusterPolicy>> {
        self.cluster_policies.values()
    }

    /// A namespace that is declared.
    pub fn namespace(&self, name: &str) -> Option<&Arc<Namespace>> {
        self.namespaces.get(name)
    }

    /// The namespaces that are declared.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.namespaces.values()
    }

    /// Whether a namespace exists: it is declared, something is in it, or every cluster has it.
    pub fn has_namespace(&self, name: &str) -> bool {
        ["default", "kube-system"].contains(&name)
            || self.namespaces.contains_key(name)
            || self.services.has_namespace(name)
            || self.pods.has_namespace(name)
            || self.slices.has_namespace(name)
            || self.secrets.has_namespace(name)
            || self.network_policies.has_namespace(name)
    }

    /// The labels of a namespace. One that is not declared has the one that the API server gives to each.
    pub fn namespace_labels(&self, name: &str) -> Labels {
        match self.namespaces.get(name) {
            Some(namespace) => namespace.labels.clone(),
            None => [("kubernetes.io/metadata.name", name)].into_iter().collect(),
        }
    }

    /// A Node object.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)?.object.as_ref()
    }

    /// The Node objects.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values().filter_map(|entry| entry.object.as_ref())
    }

    /// All nodes that are declared or in the map, by name.
    pub fn known_nodes(&self) -> impl Iterator<Item = KnownNode<'_>> {
        self.nodes.iter().map(|(name, entry)| KnownNode {
            name,
            labels: entry.object.as_ref().map(|node| &node.labels).cloned().unwrap_or_default(),
            addresses: entry.addresses(),
        })
    }

    /// The addresses of a node: those of its object, and without any those that the map tells.
    pub fn node_addresses(&self, name: &str) -> &[IpAddr] {
        self.nodes.get(name).map_or(&[], NodeEntry::addresses)
    }

    /// The zone that a node is in.
    pub fn zone_of(&self, node: &str) -> Option<&Arc<str>> {
        self.nodes.get(node)?.zone()
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: ObjectKind) -> usize {
        match kind {
            ObjectKind::Namespace => self.namespaces.len(),
            ObjectKind::Node => self.nodes().count(),
            ObjectKind::ServiceCidr => self.service_cidrs.len(),
            ObjectKind::Pod => self.pods.iter().filter(|entry| entry.manifest.is_some()).count(),
            ObjectKind::Service => self.services.len(),
            ObjectKind::EndpointSlice => self.slices.len(),
            ObjectKind::Secret => self.secrets.len(),
            ObjectKind::NetworkPolicy => self.network_policies.len(),
            ObjectKind::ClusterNetworkPolicy
            | ObjectKind::AdminNetworkPolicy
            | ObjectKind::BaselineAdminNetworkPolicy => {
                self.cluster_policies.keys().filter(|(known, _)| *known == kind).count()
            }
        }
    }

    /// The ranges that ServiceCIDRs declare, in the order of their names.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNetwork> {
        self.service_cidrs.values().flat_map(|cidr| cidr.ranges.iter().copied())
    }

    /// How much of the pools of addresses and ports is in use.
    pub fn used(&self) -> Used {
        self.allocations.used()
    }
}

/// A node, whether it is declared or only in the map.
#[derive(Debug, Clone)]
pub struct KnownNode<'s> {
    /// Its name.
    pub name: &'s Arc<str>,
    /// `metadata.labels` of its object; none without one.
    pub labels: Labels,
    /// Those of its object, and without any those that the map tells.
    pub addresses: &'s [IpAddr],
}

/// What is left to do for some changes.
#[derive(Default)]
struct Work {
    delta: Delta,
    pods: BTreeSet<ObjectName>,
    services: BTreeSet<ObjectName>,
}

/// The first address of each family.
pub(super) fn one_of_each(addresses: &[IpAddr]) -> Box<[IpAddr]> {
    let mut first: Vec<IpAddr> = Vec::new();
    for address in addresses {
        if !first.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            first.push(*address);
        }
    }
    first.into()
}

/// Takes `thing` out of the set of `key`, and an empty set out of the map.
fn remove_from<K: Ord, T: Ord + ?Sized, S: Ord + std::borrow::Borrow<T>>(
    map: &mut BTreeMap<K, BTreeSet<S>>,
    key: &K,
    thing: &T,
) {
    if let Some(things) = map.get_mut(key) {
        things.remove(thing);
        if things.is_empty() {
            map.remove(key);
        }
    }
}
