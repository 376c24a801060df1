//! The snapshot of all pods, and how the next one is made of it.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use super::Pod;
use crate::node_id::NodeId;

/// All pods of all live nodes that this node knows of, itself included.
///
/// Pods of dead and departed nodes are not in it, and neither are those whose addresses are not their
/// node's to give.
#[derive(Debug, Clone)]
pub struct PodMap {
    /// Counts snapshots of this process; a later one has a larger number.
    pub generation: u64,
    /// How many pods are kept out, because an address of theirs does not belong to their node.
    pub kept_out: usize,
    pods: RedBlackTreeMapSync<(NodeId, u64), Arc<PodEntry>>,
    by_address: RedBlackTreeMapSync<IpAddr, Arc<PodEntry>>,
    by_name: RedBlackTreeSetSync<ByName>,
}

/// A pod and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEntry {
    /// Its node.
    pub node: NodeId,
    /// Its number there, which no other pod of that node ever has in one life of its daemon.
    pub key: u64,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Since when there has been one, on this node's clock; the time that the news travelled is missing.
    pub since: Instant,
}

/// An entry in the order of namespace and name.
#[derive(Debug, Clone)]
struct ByName(Arc<PodEntry>);

impl ByName {
    fn key(&self) -> (&str, &str, NodeId, u64) {
        let PodEntry { node, key, pod, .. } = &*self.0;
        (&pod.namespace, &pod.name, *node, *key)
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ByName {}

impl PartialOrd for ByName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl Default for PodMap {
    fn default() -> Self {
        Self {
            generation: 0,
            kept_out: 0,
            pods: RedBlackTreeMapSync::new_sync(),
            by_address: RedBlackTreeMapSync::new_sync(),
            by_name: RedBlackTreeSetSync::new_sync(),
        }
    }
}

impl PodMap {
    /// Number of pods.
    pub fn len(&self) -> usize {
        self.pods.size()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// The pod that has this address. Pods in their node's network have none of their own, and are not
    /// found.
    pub fn by_address(&self, address: IpAddr) -> Option<&Arc<PodEntry>> {
        self.by_address.get(&address)
    }

    /// The pods of this namespace and name. There may be two for a moment, when a pod was made anew on
    /// another node.
    pub fn by_name(&self, namespace: &str, name: &str) -> impl Iterator<Item = &Arc<PodEntry>> {
        let from = |node, key| {
            let pod = Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: None,
                addresses: Vec::new(),
                labels: std::collections::BTreeMap::new(),
                host_network: false,
            };
            ByName(Arc::new(PodEntry { node, key, pod: Arc::new(pod), since: Instant::now() }))
        };
        let range = (
            Bound::Included(from(NodeId::MIN, u64::MIN)),
            Bound::Included(from(NodeId::MAX, u64::MAX)),
        );
        let found: Vec<_> = self.by_name.range(range).map(|found| &found.0).collect();
        found.into_iter()
    }

    /// All pods, in the order of namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<PodEntry>> {
        self.by_name.iter().map(|entry| &entry.0)
    }

    /// The pods of one node, in the order in which it told of them.
    pub fn of_node(&self, node: NodeId) -> impl Iterator<Item = &Arc<PodEntry>> {
        self.pods.range((node, u64::MIN)..=(node, u64::MAX)).map(|(_, entry)| entry)
    }

    /// Puts `pods` in place of all that this node had. Tells whether that changed anything.
    pub(crate) fn set_node(&mut self, node: NodeId, pods: &[PodEntry]) -> bool {
        let former: Vec<_> = self.of_node(node).cloned().collect();
        let mut gone = former.iter().peekable();
        let mut new = pods.iter().peekable();
        let (mut remove, mut insert) = (Vec::new(), Vec::new());
        loop {
            let order = match (gone.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.key.cmp(&new.key),
            };
            let old = gone.next_if(|_| order.is_le());
            let fresh = new.next_if(|_| order.is_ge());
            if old.map(|old| &old.pod) != fresh.map(|fresh| &fresh.pod) {
                remove.extend(old.cloned());
                insert.extend(fresh.cloned().map(Arc::new));
            }
        }
        for entry in &remove {
            self.take_out(entry);
        }
        for entry in &insert {
            self.put_in(entry);
        }
        let freed = remove.iter().flat_map(|entry| &entry.pod.addresses);
        for address in freed {
            if self.by_address.contains_key(address) {
                continue;
            }
            // Another pod of the node may have claimed the same address in vain.
            let heir = pods.iter().find(|entry| entry.is_found_at(*address));
            if let Some(heir) = heir.and_then(|heir| self.pods.get(&(node, heir.key)).cloned()) {
                self.by_address.insert_mut(*address, heir);
            }
        }
        !remove.is_empty() || !insert.is_empty()
    }

    fn take_out(&mut self, entry: &Arc<PodEntry>) {
        self.pods.remove_mut(&(entry.node, entry.key));
        self.by_name.remove_mut(&ByName(Arc::clone(entry)));
        for address in &entry.pod.addresses {
            let is_its = |found: &Arc<PodEntry>| (found.node, found.key) == (entry.node, entry.key);
            if self.by_address.get(address).is_some_and(is_its) {
                self.by_address.remove_mut(address);
            }
        }
    }

    fn put_in(&mut self, entry: &Arc<PodEntry>) {
        self.pods.insert_mut((entry.node, entry.key), Arc::clone(entry));
        self.by_name.insert_mut(ByName(Arc::clone(entry)));
        for address in entry.pod.addresses.iter().filter(|address| entry.is_found_at(**address)) {
            self.by_address.insert_mut(*address, Arc::clone(entry));
        }
    }
}

impl PodEntry {
    fn is_found_at(&self, address: IpAddr) -> bool {
        !self.pod.host_network && self.pod.addresses.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::pod;

    fn entry(node: u8, key: u64, name: &str, address: &str) -> PodEntry {
        let pod = Arc::new(pod(name, address));
        PodEntry { node: NodeId([node; 16]), key, pod, since: Instant::now() }
    }

    fn names(map: &PodMap) -> Vec<String> {
        map.iter().map(|entry| entry.pod.name.clone()).collect()
    }

    #[test]
    fn pods_are_found_by_address_name_and_node() {
        let mut map = PodMap::default();
        let (one, two) = (NodeId([1; 16]), NodeId([2; 16]));
        assert!(map.set_node(one, &[entry(1, 1, "b", "10.1.0.1"), entry(1, 2, "a", "10.1.0.2")]));
        assert!(map.set_node(two, &[entry(2, 1, "a", "10.2.0.1")]));
        let before = map.clone();
        assert_eq!(names(&map), ["a", "a", "b"]);
        assert_eq!(map.by_name("default", "a").count(), 2);
        assert_eq!(map.by_name("default", "").count(), 0);
        assert_eq!(map.by_name("other", "a").count(), 0);
        assert_eq!(map.by_address("10.2.0.1".parse().unwrap()).unwrap().node, two);

        assert!(!map.set_node(two, &[entry(2, 1, "a", "10.2.0.1")]), "nothing new");
        assert!(map.set_node(one, &[entry(1, 2, "a", "10.1.0.3")]), "one gone, one changed");
        assert_eq!(names(&map), ["a", "a"]);
        assert!(map.by_address("10.1.0.1".parse().unwrap()).is_none());
        assert!(map.by_address("10.1.0.2".parse().unwrap()).is_none());
        assert_eq!(map.by_address("10.1.0.3".parse().unwrap()).unwrap().key, 2);
        assert!(map.set_node(one, &[]));
        assert_eq!((map.len(), map.of_node(one).count()), (1, 0));
        assert_eq!(before.len(), 3, "an earlier snapshot stays as it was");
    }

    #[test]
    fn an_address_claimed_twice_is_found_until_both_are_gone() {
        let mut map = PodMap::default();
        let (node, address) = (NodeId([1; 16]), "10.1.0.1".parse().unwrap());
        let (first, second) = (entry(1, 1, "a", "10.1.0.1"), entry(1, 2, "b", "10.1.0.1"));
        map.set_node(node, &[first.clone(), second.clone()]);
        map.set_node(node, &[first]);
        assert_eq!(map.by_address(address).unwrap().pod.name, "a");
        map.set_node(node, &[second]);
        assert_eq!(map.by_address(address).unwrap().pod.name, "b");
        map.set_node(node, &[]);
        assert!(map.by_address(address).is_none());
    }

    #[test]
    fn a_pod_in_its_nodes_network_has_no_address_of_its_own() {
        let mut map = PodMap::default();
        let mut entry = entry(1, 1, "proxy", "192.0.2.1");
        Arc::make_mut(&mut entry.pod).host_network = true;
        map.set_node(entry.node, &[entry]);
        assert_eq!(map.by_name("default", "proxy").count(), 1);
        assert!(map.by_address("192.0.2.1".parse().unwrap()).is_none());
    }
}
