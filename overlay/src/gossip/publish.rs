//! The own record, and who else believes to be its owner.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::addresses::{ADDRESSES_MAX, Addresses};
use super::codec::{self, RecordItem};
use super::event::{Event, Memory};
use super::identity::COUNTER_MAX;
use super::record::{GRANTS_MAX, Grant, LeaseRecord, Prefix, RECORD_LEN_MAX, Record};
use super::timing::FANOUT;
use super::{GOODBYE_FANOUT, GOODBYE_PAUSE, Gossip};
use crate::config::{RANGES_MAX, covers};
use crate::node_id::NodeId;

/// Most members that are remembered for the next start.
const PEERS_MAX: usize = 8;

/// How many versions are reserved on disk at once, so that most changes need no write.
pub(super) const RESERVE: u64 = 1024;

/// Higher counters are not believed when others report them.
pub(super) const COUNTER_SANE: u64 = COUNTER_MAX / 2;

/// For how long a twin counts as present after it was heard.
pub(super) const TWIN_MEMORY: Duration = Duration::from_secs(30);

impl Gossip {
    /// Writes the own record anew if anything about it has changed.
    pub(super) fn publish(&mut self) {
        self.reserve(self.version);
        if self.suspended {
            return;
        }
        let id = self.local.id;
        let identity = self.swim.identity();
        let mut record = Record {
            id,
            version: self.version,
            incarnation: identity.incarnation,
            name: self.local.name.clone(),
            underlay: self.local.underlay,
            gossip_port: self.local.gossip_port,
            vxlan_port: self.local.vxlan_port,
            underlay_mtu: self.local.underlay_mtu,
            vtep_mac: id.vtep_mac(),
            left: self.departure.is_some(),
            software: self.local.software.clone(),
            keys: self.envelopes.keys(),
            leases: self.claims.records(),
            ranges: self.announced_ranges(),
            reserved: self.config.lease.reserved.iter().map(|net| Prefix::new(*net)).collect(),
            exceptions: Addresses::default(),
            grants: Vec::new(),
            origin: self.origin.get(),
        };
        let left_out = self.announce_addresses(&mut record);
        if left_out != self.left_out {
            self.left_out = left_out;
            if left_out > 0 {
                self.event(Event::ExceptionsLeftOut { left_out });
            }
        }
        match self.store.get(id) {
            Some(stored) if stored.record == record => return,
            Some(_) => record.version += 1,
            None => {}
        }
        self.reserve(record.version);
        // At the start nothing is on disk yet, and nothing is sent either.
        if record.version > self.on_disk && self.store.get(id).is_some() {
            return;
        }
        self.version = record.version;
        self.has_held |= record.leases.iter().any(|lease| lease.held);
        self.store.replace(record);
        self.dirty = true;
        self.spread(id);
    }

    /// The configured ranges, and what pods still have addresses of, though it is in none of them.
    fn announced_ranges(&self) -> Vec<Prefix> {
        let ranges = &self.config.lease.ranges;
        let is_outside = |net: &&IpNetwork| !ranges.iter().any(|range| covers(*range, **net));
        let former = self.retained.iter().filter(is_outside);
        let all = ranges.iter().chain(former).take(RANGES_MAX);
        all.map(|range| Prefix::new(*range)).collect()
    }

    /// Puts exceptions and grants into the own record, as many as fit, and returns how many do not.
    fn announce_addresses(&self, record: &mut Record) -> usize {
        let leases: Vec<_> = record.leases.iter().filter_map(LeaseRecord::prefix).collect();
        let ranges: Vec<_> = record.ranges.iter().filter_map(|range| range.network()).collect();
        let is_in = |prefixes: &[IpNetwork], address: &IpAddr| {
            prefixes.iter().any(|prefix| prefix.contains(*address))
        };
        let held = record.leases.iter().filter(|lease| lease.held);
        let held: Vec<_> = held.filter_map(LeaseRecord::prefix).collect();
        let exceptions = self.holdings.pods.iter();
        let mut exceptions: BTreeSet<IpAddr> =
            exceptions.filter(|a| is_in(&ranges, a) && !is_in(&leases, a)).copied().collect();
        let mut grants: BTreeMap<NodeId, BTreeSet<IpAddr>> = BTreeMap::new();
        for (address, to) in self.holdings.grants.iter().filter(|(a, _)| is_in(&held, a)) {
            grants.entry(*to).or_default().insert(*address);
        }
        let mut left_out = 0;
        loop {
            record.exceptions = Addresses::new(&exceptions);
            let granted = grants.iter().map(|(to, set)| (*to, Addresses::new(set)));
            record.grants = granted.map(|(to, addresses)| Grant { to, addresses }).collect();
            let count = grants.values().map(BTreeSet::len).sum::<usize>();
            let fits = codec::encoded_len(record) <= RECORD_LEN_MAX
                && exceptions.len() <= ADDRESSES_MAX
                && count <= ADDRESSES_MAX
                && grants.len() <= GRANTS_MAX;
            // Own pods come last: they can be restarted, while a grant that is taken back hurts others.
            if fits {
                return left_out;
            } else if exceptions.pop_last().is_none() {
                let last = grants.keys().next_back().copied();
                let Some(set) = last.and_then(|last| grants.get_mut(&last)) else {
                    return left_out;
                };
                set.pop_last();
                grants.retain(|_, set| !set.is_empty());
            }
            left_out += 1;
        }
    }

    /// Makes sure that no version and no incarnation is ever used again after a restart.
    fn reserve(&mut self, version: u64) {
        let used = version.max(self.swim.identity().incarnation);
        if used + RESERVE / 4 > self.reserved {
            self.reserved = used + RESERVE;
            self.unsaved = true;
        }
    }

    /// Whether this life and record may be shown to others: both are reserved on disk.
    pub(super) fn may_speak(&self) -> bool {
        // While a twin has the id, the record is the twin's.
        let own = self.store.get(self.local.id).filter(|_| !self.suspended);
        own.map_or(0, |own| own.record.version).max(self.swim.identity().incarnation)
            <= self.on_disk
    }

    pub(super) fn memory(&self) -> Memory {
        Memory {
            counter: self.reserved,
            clock: self.claims.clock(),
            leases: self.claims.to_save(),
            retained: self.retained.clone(),
            peers: self.peers.clone(),
            origin: self.origin.get(),
        }
    }

    /// Keeps a few live members in mind. Saved when most of those on disk do not live any more, or there
    /// were fewer than there could be: seldom, in a cluster that stands.
    pub(super) fn remember_peers(&mut self) {
        let active: BTreeSet<_> = self.swim.active().map(|member| member.address).collect();
        let alive = self.peers.iter().filter(|peer| active.contains(peer)).count();
        if alive < PEERS_MAX.min(active.len()).div_ceil(2) {
            self.peers = self.some_members(PEERS_MAX);
            self.peers.sort_unstable();
            self.unsaved = true;
        }
    }

    /// The cluster knows version `known` of the own record: the next one is above it.
    pub(super) fn go_above(&mut self, known: u64) {
        if known > self.version {
            self.event(Event::MemoryRecovered { version: known });
            // `publish` counts one up, as the record in the store differs from now on.
            self.version = known;
        }
    }

    /// Whether this node was started without a memory: it is new, or its disk was lost.
    pub(super) fn has_forgotten(&self) -> bool {
        self.local.memory == Memory::default()
    }

    /// Somebody has sent a record with this node's own id.
    pub(super) fn meet_own_record(&mut self, item: RecordItem) {
        let RecordItem { record, .. } = item;
        let address = record.address();
        let newer =
            self.store.get(self.local.id).is_none_or(|own| own.record.compare(&record).is_lt());
        if address == self.swim.identity().address {
            // Without a memory of its own, this life may have counted as far as the former one had, lives included.
            let is_former = record.incarnation < self.swim.identity().incarnation
                || (!self.has_held && record.leases.iter().any(|lease| lease.held));
            if (newer || (self.has_forgotten() && is_former)) && record.version < COUNTER_SANE {
                self.go_above(record.version);
                // Equal versions with different content: one more makes the difference.
                self.version = self.version.max(record.version + 1);
                let changes = self.claims.adopt(&record.leases, &self.store);
                self.apply_changes(changes);
            }
            return;
        }
        if newer && record.version < COUNTER_SANE {
            self.go_above(record.version);
            self.version = self.version.max(record.version + 1);
        }
        // A former life at another address, or a twin? Only a twin answers.
        let asked = self.probed_twin.is_some_and(|at| self.now < at + self.config.timing.sync);
        if !asked {
            self.probed_twin = Some(self.now);
            let hello = self.hello(None);
            self.send(address, hello);
        }
    }

    /// A live node with this one's id has spoken from `other`. The lower address keeps the id: both
    /// sides come to the same conclusion without another word.
    pub(super) fn meet_twin(&mut self, other: SocketAddr) {
        let known = self.duplicate.is_some_and(|(address, _)| address == other);
        let fresh = self.duplicate.is_some_and(|(_, at)| self.now < at + TWIN_MEMORY);
        let own = self.swim.identity().address;
        // Of several twins the lowest one counts.
        if !known && fresh && self.duplicate.is_some_and(|(address, _)| address < other) {
            return;
        }
        self.duplicate = Some((other, self.now));
        self.dirty |= !known;
        if own > other && !self.suspended {
            self.suspended = true;
            let changes = self.claims.drop_all(self.local.id);
            self.apply_changes(changes);
            self.store.remove(self.local.id);
            self.forget_pods(self.local.id);
        }
    }

    /// Takes the id up again once nobody else has it.
    pub(super) fn resume_if_alone(&mut self) {
        let gone = self.duplicate.is_some_and(|(_, at)| self.now >= at + TWIN_MEMORY);
        if gone {
            self.duplicate = None;
            self.dirty = true;
            if std::mem::take(&mut self.suspended) {
                let theirs = self.store.remove(self.local.id).map_or(0, |record| record.version);
                self.version = self.version.max(theirs) + 1;
                self.forget_pods(self.local.id);
                self.begin_pods();
            }
        }
    }

    /// Passes a record on to some members soon.
    pub(super) fn spread(&mut self, id: NodeId) {
        self.rumors.insert(id);
        let at = self.now + self.config.timing.rumor;
        self.rumor_at.get_or_insert(at);
    }

    pub(super) fn spread_rumors(&mut self) {
        self.rumor_at = None;
        let members = self.some_members(FANOUT);
        let ids: Vec<_> = self.rumors.iter().copied().take(RUMORS_MAX).collect();
        for id in &ids {
            self.rumors.remove(id);
        }
        if !self.rumors.is_empty() {
            self.rumor_at = Some(self.now + self.config.timing.rumor);
        }
        self.spread_pods(&members);
        if members.is_empty() {
            return;
        }
        let items: Vec<_> = ids.into_iter().filter_map(|id| self.record_item(id)).collect();
        for message in self.pack_records(items) {
            for member in &members {
                self.send(*member, message.clone());
            }
        }
    }

    pub(super) fn say_goodbye(&mut self) {
        let Some(departure) = &mut self.departure else { return };
        departure.repeats = departure.repeats.saturating_sub(1);
        departure.next = self.now + GOODBYE_PAUSE;
        let members = match self.goodbye_to.is_empty() {
            true => self.some_members(GOODBYE_FANOUT),
            false => self.goodbye_to.clone(),
        };
        let items: Vec<_> = self.record_item(self.local.id).into_iter().collect();
        for message in self.pack_records(items) {
            for member in &members {
                self.send(*member, message.clone());
            }
        }
        self.goodbye_to = members;
    }
}

/// Most records that are passed on at once.
const RUMORS_MAX: usize = 64;
