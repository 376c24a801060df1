//! Making the knowledge of pods equal everywhere.
//!
//! ```text
//!  A ── Digest: 64 sums ──────────────────────► B
//!  A ◄─ Clocks of the buckets that differ ───── B
//!  A ── Pods: what is newer here ─────────────► B
//!  A ── PodRequest: what is newer there ──────► B
//!  A ◄─ Pods, some dozens of datagrams, Last ── B
//!  A ── PodRequest: the rest ─────────────────► B
//! ```
//!
//! What is new is also passed on at once, to a few members by each node that did not know it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;

use super::Gossip;
use super::codec::{Answer, DATAGRAM_MAX, ENVELOPE_LEN, Envelope, Message, encoded_len};
use super::counters::Refused;
use super::pod_store::{Clock, ClockItem, Delta, Life, Taken, Want};
use super::publish::COUNTER_SANE;
use super::sync::{Limiter, before};
use crate::node_id::NodeId;
use crate::pods::{LocalPod, PODS_PER_NODE_MAX, PodEntry, PodError, PodMap};
use crate::subnet::{Member, SubnetMap};

/// Most datagrams of one answer: about half of what a socket's buffer holds.
const ANSWER_MAX: usize = 48;

/// Most datagrams that are sent unasked to a node that was found to know less.
const PUSH_MAX: usize = 8;

/// Most nodes whose pods are asked for at a time.
const WANTS_MAX: usize = 40;

/// Most datagrams of clocks in one answer.
const CLOCKS_MAX: usize = 16;

/// Most datagrams of answers and news per second.
const ANSWERS_PER_S: u32 = 3000;
const NEWS_PER_S: u32 = 400;

/// Most datagrams that are passed on at a time.
const NEWS_MAX: usize = 8;

/// Most nodes about whose pods there are news to pass on; those beyond are left to the comparison.
const NEWS_WAITING_MAX: usize = 512;

/// After how long without an answer the rest is asked for again, and how often.
const RETRY: Duration = Duration::from_millis(400);
const RETRIES: u32 = 3;

/// Changes that are passed on although they did not come as news.
const SMALL: u64 = 8;

/// What this node tells about its own pods, and what it asks others.
#[derive(Debug)]
pub(super) struct PodSync {
    pub(super) own: Vec<LocalPod>,
    life: Life,
    /// Whether the store has this life and these pods.
    told: bool,
    /// The comparison that answers are awaited to.
    session: Option<(SocketAddr, u32)>,
    pull: Option<Pull>,
    /// What was not known of a node's pods before there were news about them.
    news: BTreeMap<NodeId, Want>,
    /// Of whose pods something was heard that does not follow on what is known, and from whom.
    gaps: BTreeMap<NodeId, SocketAddr>,
    answers: Limiter,
    news_left: Limiter,
    pub(super) map: Arc<PodMap>,
    /// The nodes whose pods are to be looked at for the next map.
    dirty: BTreeSet<NodeId>,
    /// For how many pods of each node there is no room in the map.
    kept_out: BTreeMap<NodeId, usize>,
}

/// Pods that somebody is asked for.
#[derive(Debug)]
struct Pull {
    from: SocketAddr,
    wanted: BTreeMap<NodeId, Clock>,
    asked: Instant,
    tries: u32,
    progress: bool,
}

impl PodSync {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            own: Vec::new(),
            life: Life::default(),
            told: false,
            session: None,
            pull: None,
            news: BTreeMap::new(),
            gaps: BTreeMap::new(),
            answers: Limiter::new(ANSWERS_PER_S, now),
            news_left: Limiter::new(NEWS_PER_S, now),
            map: Arc::default(),
            dirty: BTreeSet::new(),
            kept_out: BTreeMap::new(),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.pull.as_ref().map(|pull| pull.asked + RETRY)
    }

    pub(super) fn has_news(&self) -> bool {
        !self.news.is_empty() || !self.gaps.is_empty()
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }
}

impl Gossip {
    /// Sets the pods of this node, all of them, as others are to know them. What did not change costs
    /// nobody anything.
    ///
    /// # Errors
    /// The first pod that cannot be told, with the reason; nothing has changed then.
    pub fn set_pods(&mut self, pods: Vec<LocalPod>, now: Instant) -> Result<(), PodError> {
        check_pods(&pods)?;
        self.advance(now);
        self.pod_sync.own = pods;
        self.pod_sync.told = false;
        self.settle();
        Ok(())
    }

    /// The pods of all nodes, as they are now known.
    pub fn pods(&self) -> &Arc<PodMap> {
        &self.pod_sync.map
    }

    /// Writes the own pods anew if anything about them has changed.
    pub(super) fn publish_pods(&mut self) {
        if self.pod_sync.told || self.suspended || self.departure.is_some() {
            return;
        }
        if self.pod_sync.life == Life::default() {
            // Versions are reserved on disk before they are used, so this one was never used before.
            self.pod_sync.life = Life { counter: self.version, nonce: self.rng.random() };
        }
        let (id, life) = (self.local.id, self.pod_sync.life);
        if life.counter > self.on_disk || self.store.get(id).is_none() {
            return;
        }
        self.pod_sync.told = true;
        let before = self.pods.want(id);
        let renewed = before.clock.life != life;
        if renewed {
            self.pods.begin(id, life);
        }
        if self.pods.set_own(id, &self.pod_sync.own, self.now) || renewed {
            self.pod_sync.dirty.insert(id);
            self.tell_pods(before);
        }
    }

    /// Somebody knows more of the own pods than this node: its disk was set back, or it has a twin. It
    /// goes on in a life above that one.
    fn outlive(&mut self, clock: Clock) {
        if clock.life.counter < COUNTER_SANE && clock > self.pods.clock(self.local.id) {
            self.go_above(clock.life.counter);
            self.version = self.version.max(clock.life.counter) + 1;
            self.begin_pods();
        }
    }

    /// Tells all own pods again, in a new life.
    pub(super) fn begin_pods(&mut self) {
        self.pod_sync.life = Life::default();
        self.pod_sync.told = false;
    }

    /// Forgets what is known of a node's pods.
    pub(super) fn forget_pods(&mut self, id: NodeId) {
        self.pods.remove(id);
        self.pod_sync.dirty.insert(id);
    }

    /// The comparison that answers are awaited to from now on.
    pub(super) fn compare_pods_with(&mut self, from: SocketAddr, session: u32) {
        self.pod_sync.session = Some((from, session));
    }

    /// Lists what is known of the pods in the buckets that differ.
    pub(super) fn answer_pod_sums(
        &mut self,
        to: SocketAddr,
        session: u32,
        mask: u64,
    ) -> Result<(), Refused> {
        let items: Vec<_> = self.pods.clocks(mask, NodeId::MIN, NodeId::MAX).collect();
        let (low, high) = (NodeId::MAX, NodeId::MAX);
        let empty = Message::Clocks { session, mask: u64::MAX, low, high, items: Vec::new() };
        let mut chunks = self.chunks(empty, items);
        if chunks.is_empty() {
            chunks.push(Vec::new());
        }
        // A different part of a long list each time, so that in the end all of it was compared.
        let count = chunks.len();
        let first = if count <= CLOCKS_MAX { 0 } else { self.rng.random_range(0..count) };
        let lows: Vec<_> = (0..count)
            .map(|ix| match chunks[ix].first() {
                Some(item) if ix > 0 => item.id,
                Some(_) | None => NodeId::MIN,
            })
            .collect();
        for part in 0..count.min(CLOCKS_MAX) {
            let ix = (first + part) % count;
            let (low, high) =
                (lows[ix], lows.get(ix + 1).map_or(NodeId::MAX, |next| before(*next)));
            let items = std::mem::take(&mut chunks[ix]);
            self.allow_pods()?;
            self.send(to, Message::Clocks { session, mask, low, high, items });
        }
        Ok(())
    }

    pub(super) fn compare_clocks(
        &mut self,
        from: SocketAddr,
        session: u32,
        (mask, low, high): (u64, NodeId, NodeId),
        items: &[ClockItem],
    ) -> Result<(), Refused> {
        if self.pod_sync.session != Some((from, session)) {
            return Err(Refused::Unsolicited);
        }
        let sorted = items.is_sorted_by(|one, other| one.id < other.id);
        if !sorted || items.iter().any(|item| item.id < low || item.id > high) {
            return Err(Refused::Malformed);
        }
        let mut newer_here = Vec::new();
        let mut theirs = items.iter().peekable();
        let mut newer_there = Vec::new();
        for own in self.pods.clocks(mask, low, high) {
            while let Some(item) = theirs.next_if(|item| item.id < own.id) {
                newer_there.push(*item);
            }
            match theirs.next_if(|item| item.id == own.id) {
                None => newer_here.push(Want::nothing(own.id)),
                Some(item) if item.clock > own.clock => newer_there.push(*item),
                // Its floor is not known here; the least one is right for everybody.
                Some(item) if item.clock < own.clock => {
                    newer_here.push(Want { id: own.id, clock: item.clock, floor: 0 });
                }
                Some(_) => {}
            }
        }
        newer_there.extend(theirs);
        for item in newer_there {
            self.want_pods(from, item);
        }
        self.ask_pods();
        let mut wants = newer_here.into_iter().peekable();
        for items in self.pack_pods(&mut wants, PUSH_MAX).0 {
            self.allow_pods()?;
            self.send(from, Message::Pods { items, answers: Answer::Part });
        }
        Ok(())
    }

    /// Notes that `from` knows more.
    fn want_pods(&mut self, from: SocketAddr, item: ClockItem) {
        if item.id == self.local.id && !self.suspended {
            self.outlive(item.clock);
            return;
        }
        // Without its record, nothing is known of a node. That comes first, by the same comparison.
        if self.store.get(item.id).is_none() || self.pods.clock(item.id) >= item.clock {
            return;
        }
        let busy = self.pod_sync.pull.as_ref().is_some_and(|pull| pull.from != from);
        if !busy {
            let asked = self.now.checked_sub(RETRY).unwrap_or(self.now);
            let pull = self.pod_sync.pull.get_or_insert_with(|| Pull {
                from,
                wanted: BTreeMap::new(),
                asked,
                tries: 0,
                progress: true,
            });
            pull.wanted.insert(item.id, item.clock);
        }
    }

    /// Asks for some of what is wanted, unless an answer is under way.
    fn ask_pods(&mut self) {
        let now = self.now;
        let Some(pull) = &mut self.pod_sync.pull else { return };
        pull.wanted.retain(|id, clock| self.pods.clock(*id) < *clock);
        if pull.wanted.is_empty() || pull.tries > RETRIES {
            self.pod_sync.pull = None;
            return;
        }
        if now < pull.asked + RETRY {
            return;
        }
        pull.tries = if pull.progress { 1 } else { pull.tries + 1 };
        pull.asked = now;
        pull.progress = false;
        let to = pull.from;
        let wants = pull.wanted.keys().take(WANTS_MAX).map(|id| self.pods.want(*id)).collect();
        self.send(to, Message::PodRequest { wants });
    }

    pub(super) fn answer_pod_request(
        &mut self,
        to: SocketAddr,
        wants: Vec<Want>,
    ) -> Result<(), Refused> {
        if wants.len() > WANTS_MAX {
            return Err(Refused::Malformed);
        }
        let mut wants = wants.into_iter().peekable();
        let (mut answer, _) = self.pack_pods(&mut wants, ANSWER_MAX);
        let last = answer.pop().unwrap_or_default();
        for items in answer {
            self.allow_pods()?;
            self.send(to, Message::Pods { items, answers: Answer::Part });
        }
        self.allow_pods()?;
        self.send(to, Message::Pods { items: last, answers: Answer::Last });
        Ok(())
    }

    pub(super) fn take_pods(
        &mut self,
        from: SocketAddr,
        items: Vec<Delta>,
        answers: Answer,
    ) -> Result<(), Refused> {
        let mut refused = None;
        for delta in items {
            if let Err(reason) = self.take_delta(from, delta, answers)
                && let Some(earlier) = refused.replace(reason)
            {
                self.counters.refuse(earlier);
            }
        }
        if let Some(pull) = self.pod_sync.pull.as_mut().filter(|pull| pull.from == from) {
            pull.progress |= answers != Answer::News;
            if answers == Answer::Last {
                // Without any progress in between, the rest is asked for later.
                pull.asked = self.now.checked_sub(RETRY).unwrap_or(self.now);
                self.ask_pods();
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn take_delta(
        &mut self,
        from: SocketAddr,
        delta: Delta,
        answers: Answer,
    ) -> Result<(), Refused> {
        let (id, clock) = (delta.id, Clock { life: delta.life, change: delta.upto });
        if id == self.local.id && !self.suspended {
            self.outlive(clock);
            return Ok(());
        }
        if self.store.get(id).is_none() {
            return Ok(());
        }
        let (anew, changes) = (delta.base == 0, delta.upto - delta.base.min(delta.upto));
        match self.pods.take(delta, self.now)? {
            Taken::News { before, ages_ms } => {
                self.pod_sync.dirty.insert(id);
                for age_ms in ages_ms {
                    self.counters.pods_learned.add(age_ms);
                }
                if answers == Answer::News || (!anew && changes <= SMALL) {
                    self.tell_pods(before);
                }
            }
            Taken::Gap => {
                if self.pod_sync.gaps.len() < NEWS_WAITING_MAX {
                    self.pod_sync.gaps.insert(id, from);
                    self.tell_soon();
                }
            }
            Taken::Known | Taken::Outdated => {}
        }
        Ok(())
    }

    /// Passes on soon what was not known `before`.
    fn tell_pods(&mut self, before: Want) {
        if self.pod_sync.news.len() < NEWS_WAITING_MAX {
            self.pod_sync.news.entry(before.id).or_insert(before);
            self.tell_soon();
        }
    }

    /// Sends news of pods to some members, and asks for what was missed.
    pub(super) fn spread_pods(&mut self, members: &[SocketAddr]) {
        let gaps = std::mem::take(&mut self.pod_sync.gaps);
        let mut asked: BTreeMap<SocketAddr, Vec<Want>> = BTreeMap::new();
        for (id, from) in gaps {
            asked.entry(from).or_default().push(self.pods.want(id));
        }
        for (to, wants) in asked {
            for wants in wants.chunks(WANTS_MAX) {
                self.send(to, Message::PodRequest { wants: wants.to_vec() });
            }
        }
        let news = std::mem::take(&mut self.pod_sync.news);
        if members.is_empty() || news.is_empty() {
            return;
        }
        let mut wants = news.into_values().peekable();
        let (packed, rest) = self.pack_pods(&mut wants, NEWS_MAX);
        self.pod_sync.news = rest.into_iter().chain(wants).map(|want| (want.id, want)).collect();
        for items in packed {
            if !self.pod_sync.news_left.take(members.len(), self.now) {
                // Whoever misses this finds it missing when it compares.
                break;
            }
            for member in members {
                let items = items.clone();
                self.send(*member, Message::Pods { items, answers: Answer::News });
            }
        }
        if self.pod_sync.has_news() {
            self.tell_soon();
        }
    }

    /// Packs what these wants lack into datagrams, `max` at most. Returns with them how far the last of
    /// the wants that were taken has come, if not all of what it lacks is packed.
    fn pack_pods(
        &self,
        wants: &mut std::iter::Peekable<impl Iterator<Item = Want>>,
        max: usize,
    ) -> (Vec<Vec<Delta>>, Option<Want>) {
        let clock = self.claims.clock();
        let message = Message::Pods { items: Vec::new(), answers: Answer::Last };
        let envelope = Envelope { from: self.swim.identity(), clock, message };
        let room = DATAGRAM_MAX - ENVELOPE_LEN - encoded_len(&envelope) - 1;
        let mut packed = Vec::new();
        let (mut items, mut left): (Vec<Delta>, usize) = (Vec::new(), room);
        let mut rest = None;
        while packed.len() < max
            && let Some(want) = rest.take().or_else(|| wants.next())
        {
            match self.pods.delta(&want, left, self.now) {
                Some(delta) => {
                    left -= encoded_len(&delta).min(left);
                    let clock = Clock { life: delta.life, change: delta.upto };
                    rest = Some(Want { id: want.id, clock, floor: delta.floor });
                    items.push(delta);
                }
                // Nothing is missing any more, or there is no room.
                None if self.pods.clock(want.id) <= want.clock => {}
                None if items.is_empty() => {}
                None => {
                    packed.push(std::mem::take(&mut items));
                    left = room;
                    rest = Some(want);
                }
            }
        }
        if !items.is_empty() {
            packed.push(items);
        }
        (packed, rest)
    }

    /// Does what time has come for.
    pub(super) fn tend_pods(&mut self) {
        if self.pod_sync.poll_timeout().is_some_and(|at| at <= self.now) {
            self.ask_pods();
        }
    }

    /// Notes whose pods are to be looked at because their node's state or leases have changed.
    pub(super) fn note_members(&mut self, former: &SubnetMap, map: &SubnetMap) {
        let shows =
            |member: &Member| (member.state.is_active(), member.prefixes().collect::<Vec<_>>());
        for (id, member) in &map.members {
            let before = former.members.get(id);
            if before.is_none_or(|before| {
                before.underlay != member.underlay || shows(before) != shows(member)
            }) {
                self.pod_sync.dirty.insert(*id);
            }
        }
        let gone = former.members.keys().filter(|id| !map.members.contains_key(*id));
        self.pod_sync.dirty.extend(gone);
    }

    /// Makes the map of pods anew, where something has changed.
    pub(super) fn view_pods(&mut self) {
        let dirty = std::mem::take(&mut self.pod_sync.dirty);
        if dirty.is_empty() {
            return;
        }
        let mut map = PodMap::clone(&self.pod_sync.map);
        let mut changed = false;
        for id in dirty {
            let member = self.map.members.get(&id).filter(|member| member.state.is_active());
            let Some(member) = member else {
                self.pod_sync.kept_out.remove(&id);
                changed |= map.set_node(id, &[]);
                continue;
            };
            let Some(pods) = self.pods.pods(id) else { continue };
            let (mut entries, mut kept_out) = (Vec::new(), 0);
            for (key, pod, since) in pods {
                if pod.addresses.iter().all(|address| member.owns(*address, pod.host_network)) {
                    entries.push(PodEntry { node: id, key, pod: Arc::clone(pod), since });
                } else {
                    kept_out += 1;
                }
            }
            self.pod_sync.kept_out.insert(id, kept_out);
            changed |= map.set_node(id, &entries);
        }
        self.pod_sync.kept_out.retain(|_, count| *count > 0);
        let kept_out = self.pod_sync.kept_out.values().sum();
        if changed || kept_out != map.kept_out {
            map.kept_out = kept_out;
            map.generation += 1;
            self.pod_sync.map = Arc::new(map);
        }
    }

    fn tell_soon(&mut self) {
        let at = self.now + self.config.timing.rumor;
        self.rumor_at.get_or_insert(at);
    }

    fn allow_pods(&mut self) -> Result<(), Refused> {
        if self.pod_sync.answers.take(1, self.now) { Ok(()) } else { Err(Refused::RateLimited) }
    }
}

/// Checks that these pods can be told to others.
///
/// # Errors
/// The first one that cannot, with the reason.
pub fn check_pods(pods: &[LocalPod]) -> Result<(), PodError> {
    if let Some(surplus) = pods.get(PODS_PER_NODE_MAX) {
        let why = format!("this node has {} pods, and {PODS_PER_NODE_MAX} are told", pods.len());
        return Err(PodError { pod: surplus.pod.title(), why });
    }
    pods.iter().try_for_each(|local| local.pod.check())
}
