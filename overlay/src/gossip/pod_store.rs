//! The pods of all nodes, as changes that their owners numbered.
//!
//! Each owner numbers every change of its pods: pod added, pod changed, pod gone. A node's knowledge of an
//! owner is *all changes up to number n*, so what another one lacks is a range of numbers, whatever it
//! missed and however long it was away. Of each pod only the last change is kept; of a pod that is gone, a
//! tombstone.
//!
//! Numbers belong to one *life* of the owner's daemon, and begin at 1 in each: what a new life says
//! replaces all that earlier ones said. Within a life, the oldest tombstones are dropped beyond a bound;
//! the *floor* is the highest number so dropped. Whoever knows less than the floor says is given all
//! anew, from 0, as nobody can tell it any more what is gone.
//!
//! So nothing that is gone ever comes back. What holds of every node's knowledge of every owner, with
//! known number k and floor f, is: *no pod that ended at or before max(k, f) is in it*. A delta of the
//! changes after b up to u, from a sender with floor g, keeps that true because it is taken only if
//!
//! - b ≤ k: no change between is missing, and of what is known already nothing is looked at;
//! - g ≤ max(k, f): every end that the sender has dropped is known here; otherwise all begins anew at 0;
//! - f ≤ max(u, g): the sender's knowledge is not of a time before this floor;
//! - its life is not an earlier one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::codec;
use super::counters::Refused;
use super::identity::COUNTER_MAX;
use super::record::stir;
use super::store::{BUCKETS, bucket};
use crate::node_id::NodeId;
use crate::pods::{LocalPod, PODS_PER_NODE_MAX, Pod};

/// Most tombstones that an owner keeps: a node that missed more than this many ends of pods is given the
/// owner's pods anew.
pub(super) const TOMBSTONES_MAX: usize = 64;

/// A life of an owner's daemon, later ones being greater. The counter is one that is reserved on disk; the
/// nonce keeps apart two lives that begin at the same counter after a disk was set back or cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(super) struct Life {
    pub(super) counter: u64,
    pub(super) nonce: u32,
}

/// How much is known of an owner's pods. Who knows more is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(super) struct Clock {
    pub(super) life: Life,
    /// All changes up to this one.
    pub(super) change: u64,
}

/// A clock and whose pods it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClockItem {
    pub(super) id: NodeId,
    pub(super) clock: Clock,
}

/// "Of these pods I know this."
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Want {
    pub(super) id: NodeId,
    pub(super) clock: Clock,
    /// No pod that ended at or before this change is among those known.
    pub(super) floor: u64,
}

/// Some changes of an owner's pods: all that still matter of those after `base` up to `upto`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Delta {
    pub(super) id: NodeId,
    pub(super) life: Life,
    pub(super) base: u64,
    pub(super) upto: u64,
    /// The last change that the sender knows of.
    pub(super) last: u64,
    pub(super) floor: u64,
    /// In the order of their numbers.
    pub(super) changes: Vec<ChangeItem>,
}

/// A change of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChangeItem {
    pub(super) change: u64,
    /// The number of the change that added the pod: the pod's key.
    pub(super) key: u64,
    /// The pod as it is now, or that it is gone.
    pub(super) pod: Option<PodItem>,
}

/// A pod and its age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PodItem {
    /// For how long there has been one, in milliseconds.
    pub(super) age_ms: u64,
    pub(super) pod: Arc<Pod>,
}

/// What came of a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taken {
    /// Something is known now that was not before.
    News {
        /// What was known before.
        before: Want,
        /// How old the pods are that are new, in milliseconds.
        ages_ms: Vec<u64>,
    },
    /// All of it was known already.
    Known,
    /// Changes before it are missing here.
    Gap,
    /// Of a life that is over, or of before the floor.
    Outdated,
}

/// The last change of one pod.
#[derive(Debug, Clone)]
struct Entry {
    key: u64,
    pod: Option<(Arc<Pod>, Instant)>,
}

/// What is known of one owner's pods.
#[derive(Debug, Clone, Default)]
struct State {
    life: Life,
    known: u64,
    /// The last change that anybody told of.
    last: u64,
    floor: u64,
    /// Being taken over anew from the first change on, and not whole yet.
    refilling: bool,
    by_change: BTreeMap<u64, Entry>,
    by_key: BTreeMap<u64, u64>,
    pods: usize,
}

/// All owners' pods.
#[derive(Debug)]
pub(super) struct PodStore {
    states: BTreeMap<NodeId, State>,
    sums: [u64; BUCKETS],
    pods: usize,
    pods_max: usize,
}

impl State {
    fn clock(&self) -> Clock {
        Clock { life: self.life, change: self.known }
    }

    fn put(&mut self, change: u64, entry: Entry) {
        if let Some(former) = self.by_key.insert(entry.key, change)
            && let Some(former) = self.by_change.remove(&former)
        {
            self.pods -= usize::from(former.pod.is_some());
        }
        self.pods += usize::from(entry.pod.is_some());
        self.by_change.insert(change, entry);
    }

    fn raise_floor(&mut self, floor: u64) {
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        let by_key = &mut self.by_key;
        self.by_change.retain(|change, entry| {
            let stays = entry.pod.is_some() || *change > floor;
            if !stays {
                by_key.remove(&entry.key);
            }
            stays
        });
    }

    fn tombstones(&self) -> usize {
        self.by_change.len() - self.pods
    }
}

impl PodStore {
    pub(super) fn new(pods_max: usize) -> Self {
        Self { states: BTreeMap::new(), sums: [0; BUCKETS], pods: 0, pods_max }
    }

    /// Begins a life of this node's own: all its pods are to be told again.
    pub(super) fn begin(&mut self, id: NodeId, life: Life) {
        let state = State { life, known: 1, last: 1, floor: 1, ..State::default() };
        self.change(id, |own| *own = state);
    }

    /// Makes `wanted` this node's own pods. Returns whether that changed anything.
    ///
    /// A pod is the same one as long as namespace, name and uid are.
    pub(super) fn set_own(&mut self, id: NodeId, wanted: &[LocalPod], now: Instant) -> bool {
        let Some(state) = self.states.get(&id) else { return false };
        let identity = |pod: &Pod| (pod.namespace.clone(), pod.name.clone(), pod.uid.clone());
        let mut former: BTreeMap<_, _> = state
            .by_change
            .values()
            .filter_map(|entry| Some((entry.key, &entry.pod.as_ref()?.0)))
            .map(|(key, pod)| (identity(pod), (key, Arc::clone(pod))))
            .collect();
        let mut changes = Vec::new();
        for LocalPod { pod, age } in wanted {
            let since = now.checked_sub(*age).unwrap_or(now);
            match former.remove(&identity(pod)) {
                Some((_, known)) if *known == *pod => {}
                Some((key, _)) => changes.push((Some(key), Some((Arc::new(pod.clone()), since)))),
                None => changes.push((None, Some((Arc::new(pod.clone()), since)))),
            }
        }
        let gone = former.into_values().map(|(key, _)| (Some(key), None));
        // What is gone first: it makes room.
        changes.splice(0..0, gone);
        if changes.is_empty() {
            return false;
        }
        self.change(id, |own| {
            for (key, pod) in changes {
                own.known += 1;
                own.last = own.known;
                own.put(own.known, Entry { key: key.unwrap_or(own.known), pod });
            }
            let surplus = own.tombstones().saturating_sub(TOMBSTONES_MAX);
            let dead = own.by_change.iter().filter(|(_, entry)| entry.pod.is_none());
            let floor = dead.map(|(change, _)| *change).take(surplus).last();
            own.raise_floor(floor.unwrap_or_default());
        });
        true
    }

    /// Takes in what somebody tells of another node's pods.
    pub(super) fn take(&mut self, delta: Delta, now: Instant) -> Result<Taken, Refused> {
        delta.validate()?;
        let id = delta.id;
        let known = self.states.get(&id);
        let before = known.map_or_else(|| Want::nothing(id), |state| state.want(id));
        if delta.life < before.clock.life {
            return Ok(Taken::Outdated);
        }
        let same_life = known.is_some() && delta.life == before.clock.life;
        let anew = !same_life || delta.floor > before.clock.change.max(before.floor);
        if !anew && before.floor > delta.upto.max(delta.floor) {
            // Of a time before this floor: it may tell of pods whose end nobody tells of any more.
            return Ok(Taken::Outdated);
        }
        let from = if anew { 0 } else { before.clock.change };
        if delta.base > from {
            return Ok(Taken::Gap);
        }
        if !anew && delta.upto <= before.clock.change {
            self.change(id, |state| {
                state.last = state.last.max(delta.last);
                state.raise_floor(delta.floor);
            });
            return Ok(Taken::Known);
        }
        self.make_room(id, anew, from, &delta)?;
        // Not what is being read for the first time: that may be as old as it likes.
        let measures = !anew && self.states.get(&id).is_some_and(|state| !state.refilling);
        let mut ages_ms = Vec::new();
        self.change(id, |state| {
            if anew {
                let (life, refilling) = (delta.life, true);
                *state = State { life, refilling, ..State::default() };
            }
            for ChangeItem { change, key, pod } in delta.changes {
                if change <= from {
                    continue;
                }
                if let (true, Some(item), false) = (measures, &pod, state.by_key.contains_key(&key))
                {
                    ages_ms.push(item.age_ms);
                }
                let pod = pod.map(|PodItem { age_ms, pod }| {
                    (pod, now.checked_sub(Duration::from_millis(age_ms)).unwrap_or(now))
                });
                state.put(change, Entry { key, pod });
            }
            state.known = delta.upto;
            state.last = state.last.max(delta.last).max(delta.upto);
            state.refilling &= state.known < state.last;
            state.raise_floor(delta.floor);
        });
        Ok(Taken::News { before, ages_ms })
    }

    /// Checks the limits before anything is changed.
    fn make_room(&self, id: NodeId, anew: bool, from: u64, delta: &Delta) -> Result<(), Refused> {
        let state = self.states.get(&id);
        let (mut own, mut dead) =
            state.filter(|_| !anew).map_or((0, 0), |state| (state.pods, state.tombstones()));
        for item in delta.changes.iter().filter(|item| item.change > from) {
            let former = state.filter(|_| !anew).and_then(|state| {
                let change = state.by_key.get(&item.key)?;
                Some(state.by_change.get(change)?.pod.is_some())
            });
            match former {
                Some(true) => own -= 1,
                Some(false) => dead -= 1,
                None => {}
            }
            match item.pod {
                Some(_) => own += 1,
                None => dead += 1,
            }
        }
        let others = self.pods - state.map_or(0, |state| state.pods);
        let fits = own <= PODS_PER_NODE_MAX
            && dead <= 2 * TOMBSTONES_MAX
            && (others + own <= self.pods_max || own <= state.map_or(0, |state| state.pods));
        if fits { Ok(()) } else { Err(Refused::TooManyPods) }
    }

    /// What is known of an owner's pods.
    pub(super) fn want(&self, id: NodeId) -> Want {
        self.states.get(&id).map_or_else(|| Want::nothing(id), |state| state.want(id))
    }

    pub(super) fn clock(&self, id: NodeId) -> Clock {
        self.want(id).clock
    }

    pub(super) fn remove(&mut self, id: NodeId) {
        if let Some(state) = self.states.remove(&id) {
            self.pods -= state.pods;
            let sum = &mut self.sums[bucket(id)];
            *sum = sum.wrapping_sub(weight(id, state.clock()));
        }
    }

    /// An owner's pods, in the order of their keys; `None` while they are being taken over anew, and
    /// what was known before is the best that there is.
    pub(super) fn pods(
        &self,
        id: NodeId,
    ) -> Option<impl Iterator<Item = (u64, &Arc<Pod>, Instant)>> {
        let state = self.states.get(&id).filter(|state| !state.refilling)?;
        Some(state.by_key.iter().filter_map(|(key, change)| {
            let (pod, since) = state.by_change.get(change)?.pod.as_ref()?;
            Some((*key, pod, *since))
        }))
    }

    /// How many pods are known, of all owners.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pods
    }

    /// The buckets' sums, as they are sent.
    pub(super) fn sums(&self) -> Vec<u8> {
        self.sums.iter().flat_map(|sum| sum.to_be_bytes()).collect()
    }

    /// Which buckets differ from somebody else's sums: bit n for bucket n. `None` if those are not sums.
    pub(super) fn differing(&self, sums: &[u8]) -> Option<u64> {
        super::store::differing(&self.sums, sums)
    }

    /// The clocks of all owners in the buckets of `mask` with ids from `low` to `high`, in order.
    pub(super) fn clocks(
        &self,
        mask: u64,
        low: NodeId,
        high: NodeId,
    ) -> impl Iterator<Item = ClockItem> {
        let range = (low <= high).then(|| self.states.range(low..=high));
        let states = range.into_iter().flatten();
        let listed = states.filter(move |(id, _)| mask >> bucket(**id) & 1 == 1);
        listed.map(|(id, state)| ClockItem { id: *id, clock: state.clock() })
    }

    /// What somebody lacks who knows `want`, as far as it fits `room` bytes; `None` if that is nothing, or
    /// if not even one change fits.
    pub(super) fn delta(&self, want: &Want, room: usize, now: Instant) -> Option<Delta> {
        let state = self.states.get(&want.id)?;
        if state.clock() <= want.clock {
            return None;
        }
        let same_life = state.life == want.clock.life;
        let anew = !same_life || state.floor > want.clock.change.max(want.floor);
        let base = if anew { 0 } else { want.clock.change };
        let mut delta = Delta {
            id: want.id,
            life: state.life,
            base,
            upto: state.known,
            last: state.last,
            floor: state.floor,
            changes: Vec::new(),
        };
        // The list's length takes one byte more from 128 changes on, and never three.
        let mut room = room.checked_sub(codec::encoded_len(&delta) + 1)?;
        let mut upto = base;
        for (change, entry) in state.by_change.range(base + 1..) {
            let pod = entry.pod.as_ref().map(|(pod, since)| {
                let age = now.saturating_duration_since(*since).as_millis();
                PodItem { age_ms: age_ms(age), pod: Arc::clone(pod) }
            });
            let item = ChangeItem { change: *change, key: entry.key, pod };
            match room.checked_sub(codec::encoded_len(&item)) {
                Some(left) => room = left,
                None => {
                    delta.upto = upto;
                    return (upto > base).then_some(delta);
                }
            }
            upto = *change;
            delta.changes.push(item);
        }
        Some(delta)
    }

    fn change(&mut self, id: NodeId, change: impl FnOnce(&mut State)) {
        let known = self.states.contains_key(&id);
        let state = self.states.entry(id).or_default();
        let sum = &mut self.sums[bucket(id)];
        if known {
            *sum = sum.wrapping_sub(weight(id, state.clock()));
        }
        self.pods -= state.pods;
        change(state);
        self.pods += state.pods;
        *sum = sum.wrapping_add(weight(id, state.clock()));
    }
}

impl Want {
    pub(super) fn nothing(id: NodeId) -> Self {
        Self { id, clock: Clock::default(), floor: 0 }
    }
}

impl State {
    fn want(&self, id: NodeId) -> Want {
        Want { id, clock: self.clock(), floor: self.floor }
    }
}

impl Delta {
    /// Checks everything that is relied on later.
    fn validate(&self) -> Result<(), Refused> {
        let ensure = |right: bool, reason| if right { Ok(()) } else { Err(reason) };
        let counters = [self.life.counter, self.last];
        ensure(counters.into_iter().all(|counter| counter < COUNTER_MAX), Refused::BadCounter)?;
        let in_order = self.base < self.upto && self.upto <= self.last && self.floor <= self.last;
        ensure(in_order, Refused::Malformed)?;
        let sorted = self.changes.is_sorted_by(|one, other| one.change < other.change);
        ensure(sorted, Refused::Malformed)?;
        for ChangeItem { change, key, pod } in &self.changes {
            let listed = self.base < *change && *change <= self.upto && key <= change && *key > 0;
            ensure(listed, Refused::Malformed)?;
            if let Some(item) = pod {
                ensure(item.age_ms < COUNTER_MAX && item.pod.check().is_ok(), Refused::BadPod)?;
            }
        }
        Ok(())
    }
}

fn age_ms(age: u128) -> u64 {
    u64::try_from(age).unwrap_or(u64::MAX).min(COUNTER_MAX - 1)
}

fn weight(id: NodeId, clock: Clock) -> u64 {
    let (halves, _) = id.0.as_chunks::<8>();
    let Clock { life, change } = clock;
    let parts = [life.counter, u64::from(life.nonce), change];
    let id = halves.iter().fold(0, |hash, half| stir(hash ^ u64::from_be_bytes(*half)));
    parts.into_iter().fold(id, |hash, part| stir(hash ^ part))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pods::tests::pod;

    const OWNER: NodeId = NodeId([1; 16]);

    fn local(ix: usize) -> LocalPod {
        let (high, low) = (ix / 250, ix % 250 + 1);
        let mut pod = pod(&format!("pod-{ix}"), &format!("10.1.{high}.{low}"));
        pod.labels.insert("app.kubernetes.io/instance".to_owned(), "x".repeat(60));
        LocalPod { pod, age: Duration::ZERO }
    }

    fn owner(life: u64, pods: &[usize], now: Instant) -> PodStore {
        let mut store = PodStore::new(1000);
        store.begin(OWNER, Life { counter: life, nonce: 0 });
        set(&mut store, pods, now);
        store
    }

    fn set(store: &mut PodStore, pods: &[usize], now: Instant) {
        let pods: Vec<_> = pods.iter().map(|ix| local(*ix)).collect();
        store.set_own(OWNER, &pods, now);
    }

    fn names(store: &PodStore) -> Option<Vec<String>> {
        let mut names: Vec<_> = store.pods(OWNER)?.map(|(_, pod, _)| pod.name.clone()).collect();
        names.sort();
        Some(names)
    }

    /// Brings `to` up to what `from` knows; returns the datagrams that it took.
    fn copy(from: &PodStore, to: &mut PodStore, room: usize, now: Instant) -> usize {
        for datagrams in 0.. {
            let Some(delta) = from.delta(&to.want(OWNER), room, now) else { return datagrams };
            assert!(codec::encoded_len(&delta) <= room);
            assert!(matches!(to.take(delta, now), Ok(Taken::News { .. })));
        }
        0
    }

    #[test]
    fn a_node_full_of_pods_fits_small_datagrams_and_appears_as_a_whole() {
        let now = Instant::now();
        let all: Vec<_> = (0..250).collect();
        let from = owner(5, &all, now);
        let mut to = PodStore::new(1000);
        let first = from.delta(&to.want(OWNER), 1100, now).unwrap();
        to.take(first, now).unwrap();
        assert_eq!(names(&to), None, "not before it is whole");
        let datagrams = copy(&from, &mut to, 1100, now);
        assert!((20..60).contains(&datagrams), "{datagrams}");
        assert_eq!(names(&to), names(&from));
        assert_eq!(to.differing(&from.sums()), Some(0));
        assert_eq!(from.delta(&to.want(OWNER), 1100, now), None);
    }

    #[test]
    fn one_change_is_one_small_delta_and_nothing_is_nothing() {
        let now = Instant::now();
        let mut from = owner(5, &[1, 2, 3], now);
        let mut to = PodStore::new(1000);
        copy(&from, &mut to, 1100, now);
        assert!(!from.set_own(OWNER, &[1, 2, 3].map(local), now));
        set(&mut from, &[1, 3], now);
        let delta = from.delta(&to.want(OWNER), 1100, now).unwrap();
        assert!(codec::encoded_len(&delta) < 40, "{}", codec::encoded_len(&delta));
        assert_ne!(to.differing(&from.sums()), Some(0));
        to.take(delta.clone(), now).unwrap();
        assert_eq!(names(&to).unwrap(), ["pod-1", "pod-3"]);
        assert_eq!(to.take(delta, now), Ok(Taken::Known));
        // Labels may change while the pod stays.
        let key = |store: &PodStore| store.pods(OWNER).unwrap().next().unwrap().0;
        let before = key(&from);
        let mut changed = [local(1), local(3)];
        changed[0].pod.labels.clear();
        assert!(from.set_own(OWNER, &changed, now));
        assert_eq!(key(&from), before);
        copy(&from, &mut to, 1100, now);
        assert!(to.pods(OWNER).unwrap().any(|(_, pod, _)| pod.labels.is_empty()));
    }

    #[test]
    fn what_misses_something_before_is_not_taken() {
        let now = Instant::now();
        let mut from = owner(5, &[1], now);
        let mut to = PodStore::new(1000);
        copy(&from, &mut to, 1100, now);
        set(&mut from, &[1, 2], now);
        let want = from.want(OWNER);
        set(&mut from, &[1, 2, 3], now);
        let later = from.delta(&want, 1100, now).unwrap();
        assert_eq!(to.take(later, now), Ok(Taken::Gap));
        assert_eq!(names(&to).unwrap(), ["pod-1"]);
    }

    #[test]
    fn a_new_life_replaces_all_that_was_said_before() {
        let now = Instant::now();
        let old = owner(5, &[1, 2, 3], now);
        let new = owner(6, &[2, 4], now);
        let mut to = PodStore::new(1000);
        copy(&old, &mut to, 1100, now);
        let stale = old.delta(&Want::nothing(OWNER), 1100, now).unwrap();
        copy(&new, &mut to, 1100, now);
        assert_eq!(names(&to).unwrap(), ["pod-2", "pod-4"]);
        assert_eq!(to.take(stale, now), Ok(Taken::Outdated));
        assert_eq!(names(&to).unwrap(), ["pod-2", "pod-4"]);
    }

    #[test]
    fn whoever_is_behind_the_floor_begins_anew() {
        let now = Instant::now();
        let mut from = owner(5, &[1, 2, 3], now);
        let mut asleep = PodStore::new(1000);
        copy(&from, &mut asleep, 1100, now);
        for ix in 4..4 + 2 * TOMBSTONES_MAX {
            set(&mut from, &[3, ix], now);
        }
        let state = &from.states[&OWNER];
        assert!(state.tombstones() <= TOMBSTONES_MAX, "{}", state.tombstones());
        assert!(state.floor > asleep.clock(OWNER).change);
        let delta = from.delta(&asleep.want(OWNER), 300, now).unwrap();
        assert_eq!(delta.base, 0);
        // On the way, somebody who does not know of the floor offers what it still has.
        let mut half = PodStore::new(1000);
        copy(&asleep, &mut half, 1100, now);
        half.take(delta, now).unwrap();
        if let Some(old) = asleep.delta(&half.want(OWNER), 1100, now) {
            assert_eq!(half.take(old, now), Ok(Taken::Outdated));
        }
        copy(&from, &mut half, 300, now);
        copy(&from, &mut asleep, 300, now);
        for store in [half, asleep] {
            assert_eq!(names(&store), names(&from));
            assert_eq!(store.differing(&from.sums()), Some(0));
        }
    }

    #[test]
    fn there_are_limits() {
        let now = Instant::now();
        let all: Vec<_> = (0..10).collect();
        let from = owner(5, &all, now);
        let mut small = PodStore::new(5);
        let delta = from.delta(&small.want(OWNER), 10_000, now).unwrap();
        assert_eq!(small.take(delta.clone(), now), Err(Refused::TooManyPods));
        assert_eq!((small.len(), small.clock(OWNER)), (0, Clock::default()));

        let mut crowd = delta.clone();
        crowd.changes.clear();
        let pod = Arc::new(local(1).pod);
        crowd.upto = 2 * PODS_PER_NODE_MAX as u64;
        crowd.last = crowd.upto;
        for change in 1..=crowd.upto {
            let pod = Some(PodItem { age_ms: 0, pod: Arc::clone(&pod) });
            crowd.changes.push(ChangeItem { change, key: change, pod });
        }
        assert_eq!(PodStore::new(100_000).take(crowd.clone(), now), Err(Refused::TooManyPods));
        for item in &mut crowd.changes {
            item.pod = None;
        }
        assert_eq!(PodStore::new(100_000).take(crowd, now), Err(Refused::TooManyPods));

        type Spoil = fn(&mut Delta);
        let spoils: [(Refused, Spoil); 9] = [
            (Refused::BadCounter, |delta| delta.life.counter = COUNTER_MAX),
            (Refused::BadCounter, |delta| delta.last = COUNTER_MAX),
            (Refused::Malformed, |delta| delta.upto = delta.base),
            (Refused::Malformed, |delta| delta.last = delta.upto - 1),
            (Refused::Malformed, |delta| delta.floor = delta.last + 1),
            (Refused::Malformed, |delta| delta.changes.swap(0, 1)),
            (Refused::Malformed, |delta| delta.changes[0].key = delta.changes[0].change + 1),
            (Refused::Malformed, |delta| delta.upto = 3),
            (Refused::BadPod, |delta| {
                let item = delta.changes[0].pod.as_mut().unwrap();
                Arc::make_mut(&mut item.pod).name = "a\n".to_owned();
            }),
        ];
        for (reason, spoil) in spoils {
            let mut delta = delta.clone();
            spoil(&mut delta);
            assert_eq!(PodStore::new(1000).take(delta, now), Err(reason));
        }
    }

    proptest! {
        /// Nodes copy from each other and from the owner in any order, datagram by datagram, datagrams
        /// arrive late and again, while pods come and go and the owner is restarted: whoever knows as much
        /// as the owner knows the same pods, so none that is gone has come back.
        #[test]
        fn nothing_that_is_gone_comes_back(
            steps in proptest::collection::vec(
                (0_usize..5, 0_usize..5, any::<prop::sample::Index>(), 0_u8..20), 1..400,
            ),
        ) {
            let now = Instant::now();
            let mut life = 1;
            let mut made = 0;
            let mut pods: Vec<usize> = Vec::new();
            let mut stores: Vec<_> = (0..5).map(|_| PodStore::new(1000)).collect();
            stores[0] = owner(life, &pods, now);
            let mut late: Vec<Delta> = Vec::new();
            for (from, to, index, what) in steps {
                match what {
                    0 => {
                        life += 1;
                        stores[0] = owner(life, &pods, now);
                    }
                    1..=6 => {
                        // A few long-lived pods, and many that pass.
                        made += 1;
                        pods.push(made);
                        if pods.len() > 4 {
                            pods.remove(index.index(pods.len()));
                        }
                        set(&mut stores[0], &pods, now);
                    }
                    7 if !late.is_empty() && to != 0 => {
                        let delta = late[index.index(late.len())].clone();
                        prop_assert!(stores[to].take(delta, now).is_ok());
                    }
                    _ if from != to && to != 0 => {
                        let want = stores[to].want(OWNER);
                        if let Some(delta) = stores[from].delta(&want, 400, now) {
                            late.push(delta.clone());
                            prop_assert!(stores[to].take(delta, now).is_ok());
                        }
                    }
                    _ => {}
                }
                for store in &stores[1..] {
                    let Some(state) = store.states.get(&OWNER) else { continue };
                    let own = &stores[0].states[&OWNER];
                    if state.life == own.life && state.known == own.known {
                        prop_assert_eq!(names(store), names(&stores[0]));
                    }
                }
            }
            for to in 1..5 {
                let mut copied = std::mem::replace(&mut stores[to], PodStore::new(0));
                copy(&stores[0], &mut copied, 400, now);
                prop_assert_eq!(names(&copied), names(&stores[0]));
                prop_assert_eq!(copied.differing(&stores[0].sums()), Some(0));
                stores[to] = copied;
            }
        }
    }
}
