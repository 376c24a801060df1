//! The pods that policies can be about, as they were last looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use conf::cluster::{Authority, ClusterState, Labels, ObjectName, PodView};
use vswitch::policy::Subject;
use vswitch::service::Protocol;

use super::rules::protocol_of;
use super::selectors::NamedPort;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_name: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Pod>>,
    /// How many pods have each number for a name.
    numbers: BTreeMap<(Arc<str>, Protocol), BTreeMap<u16, usize>>,
    /// The addresses of pods that are there, though nothing is known of them that policies ask for.
    unknown: BTreeMap<ObjectName, Box<[IpAddr]>>,
}

/// A pod, with all that its rules depend on.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) labels: Labels,
    pub(super) node: Option<Arc<str>>,
    pub(super) addresses: Box<[IpAddr]>,
    /// Sorted, each once.
    pub(super) ports: Box<[NamedPort]>,
    /// What it has in the table. `None` until that is made.
    pub(super) subject: Option<Arc<Subject>>,
}

/// Whether policies can be about a pod, and it is known what they ask for.
pub(super) fn is_meant(state: &ClusterState, view: &PodView) -> bool {
    has_addresses(view) && is_known(state, view)
}

/// Whether a pod's addresses are its own: not if it is on its node's network, or has ended.
fn has_addresses(view: &PodView) -> bool {
    !view.host_network && !view.is_finished()
}

/// Whether a pod's labels are known. On a Kubernetes cluster they are in its object alone, so before that is there
/// it is nobody, and its port stays shut.
fn is_known(state: &ClusterState, view: &PodView) -> bool {
    view.manifest.is_some() || state.config().authority == Authority::Weft
}

/// The pod that has an address. While two claim it, the one that a node has attached, and of such the first by
/// name: the same on every node. Nobody if that one is not known: it is not who had the address before.
pub(super) fn owner(state: &ClusterState, address: IpAddr) -> Option<&Arc<PodView>> {
    let claim = state.pods_at(address).filter(|view| has_addresses(view));
    let owner = claim.min_by_key(|view| (!view.attached, &view.id));
    owner.filter(|view| is_known(state, view))
}

impl Pod {
    pub(super) fn of(view: &PodView) -> Self {
        let named = view.ports().iter().filter(|port| !port.name.is_empty());
        let named = named.map(|port| NamedPort {
            name: Arc::clone(&port.name),
            protocol: protocol_of(port.protocol),
            number: port.port,
        });
        Self {
            labels: view.labels.clone(),
            node: view.node.clone(),
            addresses: view.addresses.clone(),
            ports: named.collect::<BTreeSet<_>>().into_iter().collect(),
            subject: None,
        }
    }
}

impl Pods {
    pub(super) fn get(&self, id: &ObjectName) -> Option<&Pod> {
        self.by_name.get(&id.namespace)?.get(&id.name)
    }

    pub(super) fn get_mut(&mut self, id: &ObjectName) -> Option<&mut Pod> {
        self.by_name.get_mut(&id.namespace)?.get_mut(&id.name)
    }

    /// Takes up the addresses of a pod of which nothing else is known, or that it is none. Returns those for which
    /// that is another answer.
    pub(super) fn set_unknown(
        &mut self,
        state: &ClusterState,
        id: &ObjectName,
        view: Option<&PodView>,
    ) -> Vec<IpAddr> {
        let unknown = view.filter(|view| has_addresses(view) && !is_known(state, view));
        let after = unknown.map(|view| view.addresses.clone());
        let before = match after.clone() {
            Some(addresses) => self.unknown.insert(id.clone(), addresses),
            None => self.unknown.remove(id),
        };
        if before == after {
            return Vec::new();
        }
        before.into_iter().chain(after).flatten().collect()
    }

    /// Takes up what a pod is now, or that there is none, and returns what it was. `names` gets the names of ports of
    /// which the numbers are others now.
    pub(super) fn set(
        &mut self,
        id: &ObjectName,
        pod: Option<Pod>,
        names: &mut BTreeSet<Arc<str>>,
    ) -> Option<Pod> {
        for port in pod.iter().flat_map(|pod| &pod.ports) {
            let numbers = self.numbers.entry((Arc::clone(&port.name), port.protocol)).or_default();
            let count = numbers.entry(port.number).or_default();
            *count += 1;
            if *count == 1 {
                names.insert(Arc::clone(&port.name));
            }
        }
        let before = match pod {
            Some(pod) => {
                let pods = self.by_name.entry(Arc::clone(&id.namespace)).or_default();
                pods.insert(Arc::clone(&id.name), pod)
            }
            None => self.by_name.get_mut(&id.namespace).and_then(|pods| pods.remove(&id.name)),
        };
        if self.by_name.get(&id.namespace).is_some_and(BTreeMap::is_empty) {
            self.by_name.remove(&id.namespace);
        }
        for port in before.iter().flat_map(|pod| &pod.ports) {
            let key = (Arc::clone(&port.name), port.protocol);
            let Some(numbers) = self.numbers.get_mut(&key) else { continue };
            let Some(count) = numbers.get_mut(&port.number) else { continue };
            *count -= 1;
            if *count == 0 {
                numbers.remove(&port.number);
                names.insert(Arc::clone(&port.name));
            }
            if numbers.is_empty() {
                self.numbers.remove(&key);
            }
        }
        before
    }

    /// The namespaces that have pods.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }

    /// The pods of a namespace.
    pub(super) fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = (&Arc<str>, &Pod)> {
        self.by_name.get(namespace).into_iter().flatten()
    }

    /// All pods with their namespaces and names.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, &Pod)> {
        self.by_name.iter().flat_map(|(namespace, pods)| {
            pods.iter().map(move |(name, pod)| (namespace, name, pod))
        })
    }

    /// The numbers that pods have for a name, with their protocols.
    pub(super) fn numbers(&self, name: &Arc<str>, protocol: Option<Protocol>) -> Vec<NamedPort> {
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
        let protocols = protocols.filter(|one| protocol.is_none_or(|wanted| wanted == *one));
        let mut found = Vec::new();
        for protocol in protocols {
            let numbers = self.numbers.get(&(Arc::clone(name), protocol));
            let numbers = numbers.into_iter().flat_map(BTreeMap::keys);
            found.extend(numbers.map(|number| NamedPort {
                name: Arc::clone(name),
                protocol,
                number: *number,
            }));
        }
        found
    }

    /// All pods that have this port, with each of their addresses.
    pub(super) fn addresses_with<'p>(
        &'p self,
        port: &'p NamedPort,
    ) -> impl Iterator<Item = (ObjectName, IpAddr)> + 'p {
        let having = self.all().filter(|(_, _, pod)| pod.ports.binary_search(port).is_ok());
        having.flat_map(|(namespace, name, pod)| {
            let id = ObjectName::new(Arc::clone(namespace), Arc::clone(name));
            pod.addresses.iter().map(move |address| (id.clone(), *address))
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_name.values().map(BTreeMap::len).sum()
    }
}
