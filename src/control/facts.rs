//! What the map of the cluster says of pods and nodes, as changes of the cluster's state. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use conf::cluster::{Change, NodeFact, ObjectName, PodFact};
use overlay::node_id::NodeId;
use overlay::pods::{LocalPod, Pod, PodEntry, PodMap};
use overlay::subnet::SubnetMap;

/// Turns snapshots of the map into changes.
#[derive(Debug)]
pub struct Facts {
    /// This node's name. What its own pods are it knows better than the map.
    node: Arc<str>,
    own: BTreeMap<ObjectName, PodFact>,
    pods: Arc<PodMap>,
    nodes: BTreeMap<NodeId, NodeFact>,
    /// What times are counted from.
    epoch: Instant,
}

impl Facts {
    /// Nothing is known yet.
    pub fn new(node: &str, epoch: Instant) -> Self {
        let (own, pods, nodes) = (BTreeMap::new(), Arc::default(), BTreeMap::new());
        Self { node: node.into(), own, pods, nodes, epoch }
    }

    /// Takes up this node's own pods, as they are at `now`.
    pub fn set_own(&mut self, pods: &[LocalPod], now: Instant) -> Vec<Change> {
        let fact = |local: &LocalPod| {
            let since = now.checked_sub(local.age).unwrap_or(now);
            let fact = self.fact(&local.pod, since, &self.node);
            match self.own.get(&fact.id) {
                // An age that is computed again differs a little.
                Some(known) => {
                    let same = PodFact { since_ms: known.since_ms, ..fact.clone() };
                    if same == *known { same } else { fact }
                }
                None => fact,
            }
        };
        let new: BTreeMap<_, _> =
            pods.iter().map(fact).map(|fact| (fact.id.clone(), fact)).collect();
        let old = std::mem::replace(&mut self.own, new);
        let gone = old.keys().filter(|id| !self.own.contains_key(*id));
        let gone =
            gone.map(|id| Change::RemovePod { id: id.clone(), node: Arc::clone(&self.node) });
        let changed = self.own.iter().filter(|(id, fact)| old.get(*id) != Some(*fact));
        gone.chain(changed.map(|(_, fact)| Change::SetPod(fact.clone()))).collect()
    }

    /// Takes up a new map of the nodes.
    pub fn set_nodes(&mut self, map: &SubnetMap) -> Vec<Change> {
        let active = map.members.values().filter(|member| member.state.is_active());
        let fact = |member: &overlay::subnet::Member| NodeFact {
            name: member.name.as_str().into(),
            addresses: Box::new([member.underlay]),
        };
        let nodes: BTreeMap<_, _> = active.map(|member| (member.id, fact(member))).collect();
        if nodes == self.nodes {
            return Vec::new();
        }
        let before = std::mem::replace(&mut self.nodes, nodes);
        let mut changes = Vec::new();
        let names: BTreeSet<_> = self.nodes.values().map(|node| &node.name).collect();
        for gone in before.values().filter(|node| !names.contains(&node.name)) {
            changes.push(Change::RemoveNode(Arc::clone(&gone.name)));
        }
        changes.extend(self.nodes.values().cloned().map(Change::SetNode));
        // Names may be others now, so that pods are elsewhere.
        let pods = Arc::clone(&self.pods);
        let all = pods.iter().map(|entry| entry.as_ref()).map(name_of).collect();
        self.compare(&pods, &pods, &before, all, &mut changes);
        changes
    }

    /// Takes up a new map of the pods.
    pub fn set_pods(&mut self, pods: Arc<PodMap>) -> Vec<Change> {
        let before = std::mem::replace(&mut self.pods, Arc::clone(&pods));
        let mut names = BTreeSet::new();
        let (mut old, mut new) = (before.iter().peekable(), pods.iter().peekable());
        // Both in the order of names, nodes and numbers; what did not change is shared.
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(old), Some(new)) => order_of(old).cmp(&order_of(new)),
            };
            let gone = old.next_if(|_| order.is_le());
            let fresh = new.next_if(|_| order.is_ge());
            if let (Some(gone), Some(fresh)) = (gone, fresh)
                && (Arc::ptr_eq(gone, fresh) || gone == fresh)
            {
                continue;
            }
            names.extend([gone, fresh].into_iter().flatten().map(|entry| name_of(entry)));
        }
        let mut changes = Vec::new();
        let nodes = self.nodes.clone();
        self.compare(&before, &pods, &nodes, names, &mut changes);
        changes
    }

    /// Tells what is different of the pods with these names.
    fn compare(
        &self,
        before: &PodMap,
        after: &PodMap,
        nodes_before: &BTreeMap<NodeId, NodeFact>,
        names: BTreeSet<(String, String)>,
        changes: &mut Vec<Change>,
    ) {
        for (namespace, name) in names {
            // Without a namespace it is no pod of Kubernetes, and nothing selects it.
            if namespace.is_empty() {
                continue;
            }
            let old = self.facts_of(before, nodes_before, &namespace, &name);
            let new = self.facts_of(after, &self.nodes, &namespace, &name);
            for gone in old.iter().filter(|(node, _)| !new.contains_key(*node)) {
                let (node, fact) = gone;
                changes.push(Change::RemovePod { id: fact.id.clone(), node: Arc::clone(node) });
            }
            let changed = new.into_iter().filter(|(node, fact)| old.get(node) != Some(fact));
            changes.extend(changed.map(|(_, fact)| Change::SetPod(fact)));
        }
    }

    /// What each node says of a pod; of several by the same name the latest.
    fn facts_of(
        &self,
        pods: &PodMap,
        nodes: &BTreeMap<NodeId, NodeFact>,
        namespace: &str,
        name: &str,
    ) -> BTreeMap<Arc<str>, PodFact> {
        let mut latest: BTreeMap<Arc<str>, PodFact> = BTreeMap::new();
        for entry in pods.by_name(namespace, name) {
            let Some(node) = nodes.get(&entry.node) else { continue };
            if node.name == self.node {
                continue;
            }
            let fact = self.fact(&entry.pod, entry.since, &node.name);
            match latest.get(&node.name) {
                Some(other) if other.since_ms > fact.since_ms => {}
                Some(_) | None => drop(latest.insert(Arc::clone(&node.name), fact)),
            }
        }
        latest
    }

    fn fact(&self, pod: &Pod, since: Instant, node: &Arc<str>) -> PodFact {
        // Counted from far enough back that what was there before this process has a time, too.
        const BACK_MS: u64 = 1 << 50;
        let millis =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(0);
        let since_ms = match since.checked_duration_since(self.epoch) {
            Some(after) => BACK_MS.saturating_add(millis(after)),
            None => BACK_MS.saturating_sub(millis(self.epoch.duration_since(since))),
        };
        PodFact {
            id: ObjectName::new(pod.namespace.as_str(), pod.name.as_str()),
            node: Arc::clone(node),
            addresses: pod.addresses.as_slice().into(),
            labels: pod.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            host_network: pod.host_network,
            since_ms,
        }
    }
}

fn name_of(entry: &PodEntry) -> (String, String) {
    (entry.pod.namespace.clone(), entry.pod.name.clone())
}

fn order_of(entry: &PodEntry) -> (&str, &str, NodeId, u64) {
    (&entry.pod.namespace, &entry.pod.name, entry.node, entry.key)
}
