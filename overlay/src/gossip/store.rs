//! All records, and sums over them by which two nodes find out quickly where they differ.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Instant;

use super::codec::VersionItem;
use super::record::{Record, stir};
use crate::node_id::NodeId;

/// Number of buckets. A node's record is in the bucket that the first six bits of its id name, so a
/// bucket is a range of ids.
pub(super) const BUCKETS: usize = 64;

/// A record with what this node observed about its owner.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) record: Record,
    pub(super) digest: u64,
    /// Since when the owner has been dead or gone; `None` while it lives.
    pub(super) dead_since: Option<Instant>,
}

/// What came of offering a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is newer than what was there, or the first of its owner.
    News,
    /// It was there already.
    Known,
    /// A newer one was there.
    Stale,
    /// It was forgotten: its owner had been dead for long enough.
    Buried,
    /// There is no room.
    Full,
}

#[derive(Debug)]
pub(super) struct Store {
    records: BTreeMap<NodeId, Stored>,
    sums: [u64; BUCKETS],
    nodes_max: usize,
    changes: u64,
    /// The versions of records that were forgotten: what others still have of them is not news. With the
    /// number of each burial, so that the oldest graves make room.
    graves: BTreeMap<NodeId, (u64, u64)>,
    burials: u64,
}

impl Store {
    pub(super) fn new(nodes_max: usize) -> Self {
        Self {
            records: BTreeMap::new(),
            sums: [0; BUCKETS],
            nodes_max,
            changes: 0,
            graves: BTreeMap::new(),
            burials: 0,
        }
    }

    /// Keeps the newer of `record` and the one that is there.
    pub(super) fn offer(&mut self, record: Record, dead_since: Option<Instant>) -> Outcome {
        let id = record.id;
        let digest = record.digest();
        let known = self.records.get(&id);
        match known
            .map(|known| known.record.version.cmp(&record.version).then(known.digest.cmp(&digest)))
        {
            Some(Ordering::Equal) => return Outcome::Known,
            Some(Ordering::Greater) => return Outcome::Stale,
            Some(Ordering::Less) => {}
            None if self.grave(id).is_some_and(|version| record.version <= version) => {
                return Outcome::Buried;
            }
            None if self.records.len() >= self.nodes_max => return Outcome::Full,
            None => {}
        }
        let dead_since = known.map_or(dead_since, |known| known.dead_since);
        self.put(Stored { record, digest, dead_since });
        Outcome::News
    }

    /// Puts the owner's own record in place, whatever was there.
    pub(super) fn replace(&mut self, record: Record) {
        let digest = record.digest();
        self.put(Stored { record, digest, dead_since: None });
    }

    /// Counts everything that has changed in here.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    fn put(&mut self, stored: Stored) {
        self.changes += 1;
        let id = stored.record.id;
        self.graves.remove(&id);
        let sum = &mut self.sums[bucket(id)];
        *sum = sum.wrapping_add(weight(&stored));
        if let Some(old) = self.records.insert(id, stored) {
            *sum = sum.wrapping_sub(weight(&old));
        }
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Option<Record> {
        let old = self.records.remove(&id)?;
        self.changes += 1;
        let sum = &mut self.sums[bucket(id)];
        *sum = sum.wrapping_sub(weight(&old));
        Some(old.record)
    }

    /// Forgets a record, and remembers that it did: who still has it tells no news.
    pub(super) fn bury(&mut self, id: NodeId) {
        let Some(record) = self.remove(id) else { return };
        if self.graves.len() >= self.nodes_max {
            let oldest = self.graves.iter().min_by_key(|(_, (_, burial))| *burial);
            if let Some(id) = oldest.map(|(id, _)| *id) {
                self.graves.remove(&id);
            }
        }
        self.burials += 1;
        self.graves.insert(id, (record.version, self.burials));
    }

    /// The version of a record that was forgotten.
    pub(super) fn grave(&self, id: NodeId) -> Option<u64> {
        self.graves.get(&id).map(|(version, _)| *version)
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&Stored> {
        self.records.get(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stored> {
        self.records.values()
    }

    pub(super) fn set_dead_since(&mut self, id: NodeId, dead_since: Option<Instant>) {
        if let Some(stored) = self.records.get_mut(&id) {
            stored.dead_since = dead_since;
            self.changes += 1;
        }
    }

    /// The buckets' sums, as they are sent.
    pub(super) fn sums(&self) -> Vec<u8> {
        self.sums.iter().flat_map(|sum| sum.to_be_bytes()).collect()
    }

    /// Which buckets differ from somebody else's sums: bit n for bucket n. `None` if those are not sums.
    pub(super) fn differing(&self, sums: &[u8]) -> Option<u64> {
        differing(&self.sums, sums)
    }

    /// The versions of all records in the buckets of `mask` with ids from `low` to `high`, in order.
    pub(super) fn versions(
        &self,
        mask: u64,
        low: NodeId,
        high: NodeId,
    ) -> impl Iterator<Item = VersionItem> {
        let range = (low <= high).then(|| self.records.range(low..=high));
        let records = range.into_iter().flatten();
        let listed = records.filter(move |(id, _)| mask >> bucket(**id) & 1 == 1);
        listed.map(|(id, stored)| VersionItem {
            id: *id,
            version: stored.record.version,
            digest: stored.digest,
        })
    }
}

/// Which of these buckets' sums differ from somebody else's.
pub(super) fn differing(own: &[u64; BUCKETS], theirs: &[u8]) -> Option<u64> {
    let (theirs, []) = theirs.as_chunks::<8>() else { return None };
    if theirs.len() != BUCKETS {
        return None;
    }
    let pairs = own.iter().zip(theirs).enumerate();
    let differing = pairs.filter(|(_, (own, theirs))| own.to_be_bytes() != **theirs);
    Some(differing.fold(0, |mask, (ix, _)| mask | 1 << ix))
}

pub(super) fn bucket(id: NodeId) -> usize {
    usize::from(id.0[0] >> 2)
}

fn weight(stored: &Stored) -> u64 {
    stir(stored.digest ^ stored.record.version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::record::tests::record;

    #[test]
    fn the_newest_record_stays_in_whatever_order_they_come() {
        let records = [record(1, 1), record(1, 2), record(1, 3)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut store = Store::new(10);
            for ix in order {
                store.offer(records[ix].clone(), None);
            }
            assert_eq!(store.get(records[0].id).unwrap().record.version, 3);
            assert_eq!(store.offer(records[2].clone(), None), Outcome::Known);
            assert_eq!(store.offer(records[0].clone(), None), Outcome::Stale);
        }
    }

    #[test]
    fn sums_depend_on_the_content_and_not_on_the_history() {
        let mut one = Store::new(10);
        let mut other = Store::new(10);
        for id in 1..5 {
            one.offer(record(id, 1), None);
            one.offer(record(id, 2), None);
        }
        one.offer(record(9, 1), None);
        one.remove(NodeId([9; 16]));
        for id in (1..5).rev() {
            other.offer(record(id, 2), None);
        }
        assert_eq!(one.differing(&other.sums()), Some(0));
        other.offer(record(1, 3), None);
        assert_eq!(one.differing(&other.sums()), Some(1));
        assert_eq!(one.differing(&[0; 511]), None);
    }

    #[test]
    fn no_more_than_the_limit_are_kept() {
        let mut store = Store::new(2);
        assert_eq!(store.offer(record(1, 1), None), Outcome::News);
        assert_eq!(store.offer(record(2, 1), None), Outcome::News);
        assert_eq!(store.offer(record(3, 1), None), Outcome::Full);
        assert_eq!(store.offer(record(2, 2), None), Outcome::News);
    }

    #[test]
    fn what_was_forgotten_comes_back_only_with_a_newer_record() {
        let mut store = Store::new(2);
        store.offer(record(1, 5), None);
        store.bury(record(1, 5).id);
        assert_eq!(store.offer(record(1, 5), None), Outcome::Buried);
        assert_eq!(store.offer(record(1, 4), None), Outcome::Buried);
        assert_eq!(store.offer(record(1, 6), None), Outcome::News);
        assert_eq!(store.grave(record(1, 6).id), None);

        // As many graves are kept as records, the newest ones.
        for id in 2..5 {
            store.offer(record(id, 1), None);
            store.bury(record(id, 1).id);
        }
        let graves = [2, 3, 4].map(|id| store.grave(record(id, 1).id));
        assert_eq!(graves, [None, Some(1), Some(1)]);
    }

    #[test]
    fn versions_are_listed_by_bucket_and_range() {
        let mut store = Store::new(10);
        for id in [1, 2, 200] {
            store.offer(record(id, 1), None);
        }
        let list = |mask, low, high| {
            let items = store.versions(mask, NodeId([low; 16]), NodeId([high; 16]));
            items.map(|item| item.id.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(list(u64::MAX, 0, 255), [1, 2, 200]);
        assert_eq!(list(1, 0, 255), [1, 2]);
        assert_eq!(list(1, 2, 255), [2]);
        assert_eq!(list(1, 2, 1), [0; 0]);
    }
}
