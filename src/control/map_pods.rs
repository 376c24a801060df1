//! The pods of all nodes: what this node tells of its own, and what it knows of the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipam::{Allocation, Attachment, PortKind, Record};
use overlay::gossip::Ages;
use overlay::pods::{LocalPod, PODS_PER_NODE_MAX, Pod, PodError, PodMap};
use overlay::subnet::SubnetMap;
use tokio::sync::watch;

use super::attach::now_unix_s;
use super::{Control, Topic};
use crate::admin::api::MapPod;

/// What is known of pods beyond this node's own.
#[derive(Debug, Default)]
pub(super) struct KnownPods {
    map: Arc<PodMap>,
    learned: Ages,
    /// This node's own, for gossip to pass on.
    told: watch::Sender<Vec<LocalPod>>,
}

/// All pods at one moment, to be written out without holding anything up.
#[derive(Debug, Clone)]
pub struct MapPods {
    pods: Arc<PodMap>,
    nodes: Arc<SubnetMap>,
}

/// Numbers about the pods of all nodes.
#[derive(Debug, Clone, Default)]
pub struct PodNumbers {
    /// Pods that are known, of all nodes.
    pub known: usize,
    /// Pods that are kept out of the map, because their addresses are not their node's.
    pub kept_out: usize,
    /// How long it took to learn of new ones.
    pub learned: Ages,
}

impl Control {
    /// This node's pods, as gossip is to tell them, whenever they change.
    pub fn told_pods(&self) -> watch::Receiver<Vec<LocalPod>> {
        self.known_pods.told.subscribe()
    }

    /// Takes up what is known of the pods of all nodes.
    pub fn set_pods(&mut self, pods: Arc<PodMap>) {
        self.known_pods.map = Arc::clone(&pods);
        self.set_pod_map(pods);
    }

    /// Takes up how long it took to learn of pods.
    pub fn set_pods_learned(&mut self, learned: Ages) {
        self.known_pods.learned = learned;
    }

    /// The pods of all nodes.
    pub fn map_pods(&self) -> MapPods {
        MapPods { pods: Arc::clone(&self.known_pods.map), nodes: Arc::clone(&self.map) }
    }

    /// How many there are.
    pub fn pod_numbers(&self) -> PodNumbers {
        let KnownPods { map, learned, .. } = &self.known_pods;
        PodNumbers { known: map.len(), kept_out: map.kept_out, learned: learned.clone() }
    }

    /// Tells this node's pods to the others. One that cannot be told is a problem, and the rest is told.
    pub fn tell_pods(&mut self) {
        self.take_up_own_pods();
        let (mut told, mut faults) = (Vec::new(), Vec::new());
        for (attachment, local) in self.local_pods() {
            let room =
                if told.len() < PODS_PER_NODE_MAX { Ok(()) } else { Err(crowded(&local.pod)) };
            match room.and_then(|()| local.pod.check()) {
                Ok(()) => {
                    self.clear(&Topic::Told(attachment));
                    told.push(local);
                }
                Err(error) => faults.push((attachment, error)),
            }
        }
        for (attachment, error) in faults {
            let problem = format!("{error}. It has its network; other nodes do not know its name");
            self.raise(Topic::Told(attachment), problem);
        }
        self.known_pods.told.send_replace(told);
        self.mark_pods();
    }

    /// Takes up this node's own pods among the objects of the cluster, without the way around by the map: a pod has
    /// its policies before its port is open.
    pub(super) fn take_up_own_pods(&mut self) {
        let now = Instant::now();
        let pods = self.local_pods().into_iter().map(|(_, local)| local);
        let own: Vec<LocalPod> = pods.filter(|local| !local.pod.namespace.is_empty()).collect();
        self.set_own_pods(&own, now);
    }

    /// Whether others could be told of a pod with this record.
    pub(super) fn check_told(
        &self,
        attachment: &Attachment,
        record: &Record,
    ) -> Result<(), PodError> {
        let mut pod = to_pod(attachment, record);
        let name = identity(&pod);
        let mut others = 0;
        for (_, local) in self.local_pods() {
            if identity(&local.pod) == name {
                pod.addresses = local.pod.addresses;
            } else {
                others += 1;
            }
        }
        if self.ipam.get(attachment).is_none() {
            // As long as what it will be given.
            pod.addresses.extend(self.gateways());
        }
        if others < PODS_PER_NODE_MAX { pod.check() } else { Err(crowded(&pod)) }
    }

    /// The pods on this node. Several interfaces of one pod are one pod with all their addresses.
    fn local_pods(&self) -> Vec<(Attachment, LocalPod)> {
        let now = now_unix_s();
        let mut pods: BTreeMap<_, (Attachment, LocalPod)> = BTreeMap::new();
        for allocation in self.ipam.iter() {
            let Allocation { attachment, record, .. } = allocation;
            if matches!(record.port, PortKind::Foreign { .. }) {
                // Where its packets go is the other plugin's business.
                continue;
            }
            let pod = to_pod(attachment, record);
            let age = Duration::from_secs(now.saturating_sub(record.created_unix_s));
            let (_, local) = pods
                .entry(identity(&pod))
                .or_insert_with(|| (attachment.clone(), LocalPod { pod, age }));
            local.pod.addresses.extend(allocation.addresses());
            local.age = local.age.max(age);
        }
        pods.into_values().collect()
    }
}

impl MapPods {
    /// The pods as they are shown, in the order of namespace and name.
    pub fn list(&self) -> Vec<MapPod> {
        let now = Instant::now();
        let pods = self.pods.iter().map(|entry| {
            let Pod { namespace, name, uid, addresses, labels, host_network } = &*entry.pod;
            MapPod {
                namespace: Some(namespace.clone()).filter(|namespace| !namespace.is_empty()),
                name: name.clone(),
                uid: uid.clone(),
                addresses: addresses.clone(),
                labels: labels.clone(),
                host_network: *host_network,
                node: self.nodes.members.get(&entry.node).map(|node| node.name.clone()),
                node_id: entry.node.to_string(),
                age_s: now.saturating_duration_since(entry.since).as_secs(),
            }
        });
        pods.collect()
    }
}

/// A pod as others know it, without its addresses. What the runtime did not name is called by the id of its
/// container; a device of the host by its own name.
fn to_pod(attachment: &Attachment, record: &Record) -> Pod {
    let (namespace, name, uid) = match (&record.pod, &record.port) {
        (Some(pod), _) => (pod.namespace.clone(), pod.name.clone(), pod.uid.clone()),
        (None, PortKind::Tap { .. } | PortKind::Foreign { .. }) => {
            (String::new(), attachment.container_id.clone(), None)
        }
        (None, PortKind::AfPacket { device, .. }) => (String::new(), device.clone(), None),
    };
    let labels = record.labels.clone();
    Pod { namespace, name, uid, addresses: Vec::new(), labels, host_network: false }
}

fn identity(pod: &Pod) -> (String, String, Option<String>) {
    (pod.namespace.clone(), pod.name.clone(), pod.uid.clone())
}

fn crowded(pod: &Pod) -> PodError {
    let why = format!("this node has {PODS_PER_NODE_MAX} pods already, the most that are told");
    PodError { pod: pod.title(), why }
}
