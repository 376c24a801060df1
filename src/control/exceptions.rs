//! Addresses of pods that outlive their node's lease, and those of other nodes' pods in this node's.
//!
//! When a node loses a lease its pods keep their addresses. They lead to it as long as the subnet's new holder
//! leaves them to it, and that one does unless it has given them to pods of its own; see `docs/gossip.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipam::Allocation;
use overlay::gossip::Holdings;
use overlay::node_id::NodeId;

use super::{Control, Topic};
use crate::admin::api::LeasePhase;

impl Control {
    /// What gossip is to tell of pods and their addresses. Call it whenever the map or the lease has changed, and
    /// now and then: pods come and go.
    pub fn holdings(&mut self) -> Holdings {
        if self.lease_phase == LeasePhase::Held {
            self.lend();
        }
        let pods = self.ipam.iter().flat_map(Allocation::addresses).collect();
        let grants = self.ipam.lent().iter();
        let grants = grants.filter_map(|(address, to)| Some((*address, to.parse().ok()?)));
        Holdings { pods, grants: grants.collect() }
    }

    /// Leaves addresses of the lease to the nodes whose pods have them.
    fn lend(&mut self) {
        let own = self.identity.id;
        let mut wanted: BTreeMap<IpAddr, String> = BTreeMap::new();
        let (now, hold) = (Instant::now(), u64::from(self.config.lease.hold_s));
        for (address, text) in self.ipam.lent() {
            let Ok(to) = text.parse::<NodeId>() else { continue };
            let stays = match self.map.asks(to, *address) {
                Some(asks) => {
                    self.absent.remove(&to);
                    asks
                }
                // Perhaps it is only not heard of since this daemon was started.
                None => {
                    let since = *self.absent.entry(to).or_insert(now);
                    now.duration_since(since) < Duration::from_secs(hold)
                }
            };
            if stays {
                wanted.insert(*address, text.clone());
            }
        }
        for (address, to) in self.map.requests(own) {
            wanted.entry(address).or_insert_with(|| to.to_string());
        }
        wanted.retain(|address, _| self.ipam.holder(*address).is_none());
        if wanted == *self.ipam.lent() {
            return;
        }
        match self.ipam.lend(&wanted) {
            Ok(_) => self.clear(&Topic::Lending),
            Err(error) => {
                let problem = format!(
                    "addresses cannot be left to pods of other nodes, which are cut off until then: {error}"
                );
                self.raise(Topic::Lending, problem);
            }
        }
    }

    /// Cuts off the pods whose addresses other nodes' pods keep, and names them.
    pub(super) fn follow_exceptions(&mut self) {
        let is_suspended = self.lease_phase == LeasePhase::Suspended;
        // Another node has this one's id, and with it perhaps pods with these very addresses.
        let cut_off: BTreeSet<IpAddr> = match is_suspended {
            true => self.ipam.iter().flat_map(Allocation::addresses).collect(),
            false => self.map.cut_off(self.identity.id),
        };
        let former = std::mem::replace(&mut self.cut_off, cut_off);
        let solved: BTreeSet<_> = former.difference(&self.cut_off).copied().collect();
        for address in solved {
            self.clear(&Topic::CutOff(address));
        }
        for address in self.cut_off.clone() {
            let Some(held) = self.ipam.holder(address) else { continue };
            let pod = held.record.pod.as_ref().map_or_else(
                || held.attachment.to_string(),
                |pod| format!("{}/{}", pod.namespace, pod.name),
            );
            let problem = if is_suspended {
                format!(
                    "pod {pod} with the address {address} is cut off: this node stands down, because another one has its \
                     identity, and may have a pod with this address. Give this node an id of its own, or delete the pod"
                )
            } else {
                format!(
                    "pod {pod} is cut off: its address {address} is used by a pod on another node, which holds the \
                     subnet since this node lost it. Delete the pod, so that it comes back with another address"
                )
            };
            self.raise(Topic::CutOff(address), problem);
        }
    }
}
