//! Which cluster a node belongs to, and what becomes of two that were born apart and meet.
//!
//! A cluster's *origin* is the id of the node that founded it, because it had nobody to ask when it claimed its
//! first lease. Whoever joins takes up the origin of those it joins; it is in every record, and survives restarts.
//! So two origins among live members mean that two clusters have met which dealt out addresses without knowing of
//! each other. Having one name and a common key, they become one: everybody goes over to the lower origin, and the
//! conflict rule settles the subnets that both have given away.

use std::time::{Duration, Instant};

use super::Gossip;
use super::event::Event;
use crate::node_id::NodeId;

/// Nodes that were started together and found different ones first are one cluster from the beginning.
const YOUTH: Duration = Duration::from_secs(10);

/// What a node knows of the cluster that it belongs to.
#[derive(Debug, Default)]
pub(super) struct Origin {
    own: Option<NodeId>,
    /// Since when, if not since an earlier life.
    since: Option<Instant>,
}

impl Origin {
    pub(super) fn remembered(own: Option<NodeId>) -> Self {
        Self { own, since: None }
    }

    pub(super) fn get(&self) -> Option<NodeId> {
        self.own
    }
}

impl Gossip {
    /// Decides to which cluster this node belongs, once it was told or nobody can tell, and follows the others
    /// to a lower origin.
    pub(super) fn follow_origin(&mut self, is_informed: bool) {
        let others = || {
            let live = self.store.iter().filter(|stored| stored.dead_since.is_none());
            live.filter(|stored| stored.record.id != self.local.id)
        };
        let lowest = others().filter_map(|stored| stored.record.origin).min();
        let Some(own) = self.origin.own else {
            if is_informed {
                // Where nobody has decided yet, all who start together find the same one.
                let founder = others().map(|stored| stored.record.id).min();
                let founder = founder.map_or(self.local.id, |id| id.min(self.local.id));
                self.adopt_origin(lowest.unwrap_or(founder));
            }
            return;
        };
        if let Some(lower) = lowest.filter(|lowest| *lowest < own) {
            let is_young = self.origin.since.is_some_and(|since| self.now < since + YOUTH);
            self.adopt_origin(lower);
            if !is_young {
                self.event(Event::ClusterJoined { former: own, origin: lower });
            }
        }
    }

    fn adopt_origin(&mut self, origin: NodeId) {
        self.origin = Origin { own: Some(origin), since: Some(self.now) };
        self.unsaved = true;
    }
}
