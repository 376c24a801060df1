//! Making the map, and telling what has changed in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Gossip;
use super::event::Event;
use super::record::Record;
use super::store::Stored;
use crate::node_id::NodeId;
use crate::subnet::{Conflict, Lease, Member, MemberState, SubnetMap};

/// A contradiction that may be one, or only the shadow of a node that has just died.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    first: Instant,
    last: Instant,
}

/// Most contradictions that are followed at a time.
const CANDIDATES_MAX: usize = 4096;

/// For how long a contradiction that comes and goes counts as one.
const CONFLICT_MEMORY: Duration = Duration::from_secs(60);

/// A dead node is forgotten after its lease's reservation has passed, and not before this.
const FORGET_MIN: Duration = Duration::from_secs(3600);

impl Gossip {
    /// Makes the maps anew, as far as anything about them has changed.
    pub(super) fn view(&mut self) {
        self.viewed = self.now;
        if std::mem::take(&mut self.dirty) {
            self.view_nodes();
        }
        self.view_pods();
    }

    /// Has the map made anew if somebody is suspected, or not any more: that comes and goes without news.
    /// Contradictions become lasting ones by time alone.
    pub(super) fn notice_suspicions(&mut self) {
        let sum = self.swim.sum();
        self.dirty |= sum != self.swim_sum || !self.candidates.is_empty();
        self.swim_sum = sum;
    }

    /// Sets the clockwork for the number of nodes.
    pub(super) fn tune(&mut self) {
        let size = self.size.next(self.config.preset, self.swim.len());
        if size != self.size {
            self.size = size;
            self.config.timing = self.clockwork.scaled(size);
        }
        self.swim.tune(&self.config.timing);
    }

    fn view_nodes(&mut self) {
        self.tune();
        let states: BTreeMap<(NodeId, SocketAddr), foca::State> = self
            .swim
            .states()
            .map(|(member, state)| ((member.id, member.address), state))
            .collect();
        let found: Vec<_> = self
            .store
            .iter()
            .map(|stored| (stored.record.id, self.member_state(stored, &states), stored.dead_since))
            .collect();
        for (id, state, dead_since) in &found {
            if state.is_active() == dead_since.is_some() {
                let since = (!state.is_active()).then_some(self.now);
                self.store.set_dead_since(*id, since);
            }
        }
        let states = found.into_iter().map(|(id, state, _)| (id, state)).collect();
        let mut map = SubnetMap { members: self.members(&states), ..SubnetMap::default() };
        map.settle();
        let conflicts = self.lasting_conflicts(&map);
        map.conflicts.extend(conflicts);
        map.conflicts.sort();
        map.generation = self.map.generation;
        if map != *self.map {
            map.generation += 1;
            let former = Arc::clone(&self.map);
            self.note_members(&former, &map);
            self.tell_changes(&map);
            self.map = Arc::new(map);
        }
    }

    fn member_state(
        &self,
        stored: &Stored,
        states: &BTreeMap<(NodeId, SocketAddr), foca::State>,
    ) -> MemberState {
        let record = &stored.record;
        if record.left {
            return MemberState::Left;
        }
        if record.id == self.local.id && !self.suspended {
            return MemberState::Alive;
        }
        match states.get(&(record.id, record.address())) {
            Some(foca::State::Alive) => MemberState::Alive,
            Some(foca::State::Suspect) => MemberState::Suspect,
            Some(foca::State::Down) if self.appeals.is_open((record.id, record.address())) => {
                MemberState::Suspect
            }
            Some(foca::State::Down) | None => MemberState::Dead,
        }
    }

    fn members(&self, states: &BTreeMap<NodeId, MemberState>) -> BTreeMap<NodeId, Member> {
        let members = self.store.iter().filter_map(|stored| {
            let record = &stored.record;
            let state = *states.get(&record.id)?;
            let former = self.map.members.get(&record.id).filter(|former| former.state == state);
            let leases = record.leases.iter().filter_map(|lease| {
                Some(Lease {
                    prefix: lease.prefix()?,
                    claim: lease.claim(),
                    epoch: lease.epoch,
                    fixed: lease.fixed,
                    contested: false,
                })
            });
            let member = Member {
                id: record.id,
                name: record.name.clone(),
                underlay: record.underlay,
                vxlan_port: record.vxlan_port,
                gossip_port: record.gossip_port,
                vtep_mac: record.vtep_mac,
                underlay_mtu: record.underlay_mtu,
                software: record.software.clone(),
                origin: record.origin,
                keys: record.keys.clone(),
                leases: leases.collect(),
                asked: record.exceptions.list().unwrap_or_default(),
                exceptions: Vec::new(),
                grants: grants(record),
                state,
                version: record.version,
                since: former
                    .map_or_else(|| stored.dead_since.unwrap_or(self.now), |former| former.since),
                shadowed: false,
            };
            Some((record.id, member))
        });
        members.collect()
    }

    /// The contradictions between nodes that are proven, or have lasted for long enough.
    fn lasting_conflicts(&mut self, map: &SubnetMap) -> BTreeSet<Conflict> {
        let (now, wait) = (self.now, self.config.timing.conflict);
        let mut seen = shared_addresses(map);
        seen.extend(self.shared_ids());
        seen.extend(refused_exceptions(map));
        for conflict in seen {
            if self.candidates.len() >= CANDIDATES_MAX && !self.candidates.contains_key(&conflict) {
                continue;
            }
            let candidate =
                self.candidates.entry(conflict).or_insert(Candidate { first: now, last: now });
            candidate.last = now;
        }
        self.candidates.retain(|_, candidate| now < candidate.last + CONFLICT_MEMORY);
        let lasting = self.candidates.iter().filter(|(_, seen)| seen.last >= seen.first + wait);
        let mut conflicts: BTreeSet<_> = lasting.map(|(conflict, _)| conflict.clone()).collect();
        if let Some((other, _)) = self.duplicate {
            let own = self.swim.identity().address;
            let addresses = [own.min(other), own.max(other)];
            conflicts.insert(Conflict::Identity { id: self.local.id, addresses });
        }
        conflicts
    }

    fn shared_ids(&self) -> Vec<Conflict> {
        let mut active: Vec<_> =
            self.swim.active().map(|member| (member.id, member.address)).collect();
        active.sort_unstable();
        let pairs = active.windows(2).filter(|pair| pair[0].0 == pair[1].0);
        pairs
            .map(|pair| Conflict::Identity { id: pair[0].0, addresses: [pair[0].1, pair[1].1] })
            .collect()
    }

    fn tell_changes(&mut self, map: &SubnetMap) {
        let (former, own) = (Arc::clone(&self.map), self.local.id);
        for member in map.members.values().filter(|member| member.id != own) {
            let before = former.members.get(&member.id).map(|former| former.state);
            let was_active = before.is_some_and(MemberState::is_active);
            let (id, name) = (member.id, member.name.clone());
            match member.state {
                MemberState::Alive | MemberState::Suspect if !was_active => {
                    self.event(Event::MemberUp { id, name, underlay: member.underlay });
                }
                MemberState::Dead if was_active => self.event(Event::MemberDown { id, name }),
                MemberState::Left if was_active => self.event(Event::MemberLeft { id, name }),
                MemberState::Alive
                | MemberState::Suspect
                | MemberState::Dead
                | MemberState::Left => {}
            }
        }
        for conflict in map.conflicts.iter().filter(|new| !former.conflicts.contains(new)) {
            self.event(Event::Conflict(conflict.clone()));
        }
        for conflict in former.conflicts.iter().filter(|old| !map.conflicts.contains(old)) {
            self.event(Event::ConflictResolved(conflict.clone()));
        }
    }

    /// For how long the dead are remembered.
    pub(super) fn forget_after(&self) -> Duration {
        Duration::from_secs(u64::from(self.config.lease.hold_s)).max(FORGET_MIN)
    }

    /// Forgets whoever has been dead for long enough, and members of whom nobody has a record.
    pub(super) fn forget_expired(&mut self) {
        let (now, after) = (self.now, self.forget_after());
        let expired = self.store.iter().filter(|stored| {
            stored.dead_since.is_some_and(|since| now.saturating_duration_since(since) >= after)
        });
        let expired: BTreeSet<NodeId> = expired.map(|stored| stored.record.id).collect();
        for id in &expired {
            self.store.bury(*id);
            self.forget_pods(*id);
            self.dirty = true;
        }
        let crowded = self.swim.states().count() > self.config.nodes_max / 4 * 3;
        let dead = self.swim.states().filter(|(member, state)| {
            let unknown = self
                .store
                .get(member.id)
                .is_none_or(|stored| stored.record.address() != member.address);
            *state == foca::State::Down && (expired.contains(&member.id) || (crowded && unknown))
        });
        for member in dead.map(|(member, _)| member).collect::<Vec<_>>() {
            self.swim.forget(member, now);
        }
    }
}

fn grants(record: &Record) -> BTreeMap<IpAddr, NodeId> {
    let grants = record.grants.iter().flat_map(|grant| {
        let addresses = grant.addresses.list().unwrap_or_default();
        addresses.into_iter().map(|address| (address, grant.to))
    });
    grants.collect()
}

fn refused_exceptions(map: &SubnetMap) -> impl Iterator<Item = Conflict> {
    map.refused.iter().map(|(address, holder, claimant)| Conflict::Exception {
        address: *address,
        holder: *holder,
        claimant: *claimant,
    })
}

fn shared_addresses(map: &SubnetMap) -> BTreeSet<Conflict> {
    let active = map.members.values().filter(|member| member.state.is_active());
    let mut by_address: Vec<_> =
        active.map(|member| (member.underlay, member.id, member.name.clone())).collect();
    by_address.sort_unstable();
    let pairs = by_address.windows(2).filter(|pair| pair[0].0 == pair[1].0);
    pairs
        .map(|pair| Conflict::Address {
            address: pair[0].0,
            nodes: [pair[0].1, pair[1].1],
            names: [pair[0].2.clone(), pair[1].2.clone()],
        })
        .collect()
}
