//! Anti-entropy: two nodes find out where their records differ, and exchange those.
//!
//! ```text
//!  A ── Digest: 64 sums ──────────────► B
//!  A ◄─ InSync                          B   nothing differs: the end, at a constant cost
//!  A ◄─ Versions of the buckets ─────── B   or something does
//!  A ── Records: what is newer here ──► B
//!  A ── Request: what is newer there ─► B
//!  A ◄─ Records ─────────────────────── B
//! ```
//!
//! New records are also passed on at once, to a few members by each node that had not seen them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::IteratorRandom;
use serde::Serialize;

use super::Gossip;
use super::codec::{
    DATAGRAM_MAX, ENVELOPE_LEN, Envelope, Message, RecordItem, VersionItem, encoded_len,
};
use super::counters::Refused;
use super::event::Event;
use super::identity::Identity;
use super::store::Outcome;
use crate::node_id::NodeId;

/// A question that is being answered.
#[derive(Debug)]
pub(super) struct Pull {
    from: SocketAddr,
    session: u32,
    parts: BTreeSet<u16>,
    complete: bool,
    listed: bool,
    wanted: BTreeSet<NodeId>,
}

/// What a peer lists of its records.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) mask: u64,
    pub(super) low: NodeId,
    pub(super) high: NodeId,
    pub(super) items: Vec<VersionItem>,
}

/// How many datagrams are spent on answers: requests are short and their senders unproven.
#[derive(Debug)]
pub(super) struct Limiter {
    per_s: u32,
    left: u32,
    refilled: Instant,
}

/// Most answering datagrams per second.
pub(super) const ANSWERS_PER_S: u32 = 1000;

/// Most datagrams of version lists in one answer.
const PARTS_MAX: usize = 16;

/// Most ids in a request.
const REQUEST_MAX: usize = 60;

impl Limiter {
    pub(super) fn new(per_s: u32, now: Instant) -> Self {
        Self { per_s, left: per_s, refilled: now }
    }

    pub(super) fn take(&mut self, count: usize, now: Instant) -> bool {
        if now >= self.refilled + Duration::from_secs(1) {
            *self = Self::new(self.per_s, now);
        }
        match u32::try_from(count).ok().and_then(|count| self.left.checked_sub(count)) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

impl Gossip {
    /// Compares records with `with`, or with a member chosen by chance.
    pub(super) fn start_sync(&mut self, with: Option<SocketAddr>) {
        let Some(from) = with.or_else(|| self.some_members(1).pop()) else { return };
        let session = self.rng.random();
        let (parts, wanted) = (BTreeSet::new(), BTreeSet::new());
        self.pull = Some(Pull { from, session, parts, complete: false, listed: false, wanted });
        self.compare_pods_with(from, session);
        let (buckets, pods) = (self.store.sums(), self.pods.sums());
        self.send(from, Message::Digest { session, buckets, pods });
    }

    pub(super) fn answer_digest(
        &mut self,
        to: SocketAddr,
        session: u32,
        (buckets, pods): (&[u8], &[u8]),
    ) -> Result<(), Refused> {
        let mask = self.store.differing(buckets).ok_or(Refused::Malformed)?;
        let pods = self.pods.differing(pods).ok_or(Refused::Malformed)?;
        if mask == 0 {
            self.allow(1)?;
            self.send(to, Message::InSync { session });
        } else {
            self.answer_sums(to, session, mask)?;
        }
        // Records come first: without them, nobody's pods are known.
        if pods == 0 { Ok(()) } else { self.answer_pod_sums(to, session, pods) }
    }

    fn answer_sums(&mut self, to: SocketAddr, session: u32, mask: u64) -> Result<(), Refused> {
        let items: Vec<_> = self.store.versions(mask, NodeId::MIN, NodeId::MAX).collect();
        let empty = Message::Versions {
            session,
            part: u16::MAX,
            parts: u16::MAX,
            complete: true,
            mask: u64::MAX,
            low: NodeId::MAX,
            high: NodeId::MAX,
            items: Vec::new(),
        };
        let mut chunks = self.chunks(empty, items);
        if chunks.is_empty() {
            chunks.push(Vec::new());
        }
        // A different part of a long list each time, so that in the end all of it was compared.
        let complete = chunks.len() <= PARTS_MAX;
        let count = chunks.len();
        let first = if complete { 0 } else { self.rng.random_range(0..count) };
        let lows: Vec<_> = (0..count)
            .map(|ix| match chunks[ix].first() {
                Some(item) if ix > 0 => item.id,
                Some(_) | None => NodeId::MIN,
            })
            .collect();
        let parts = count.min(PARTS_MAX);
        self.allow(parts)?;
        for part in 0..parts {
            let ix = (first + part) % count;
            let high = lows.get(ix + 1).map_or(NodeId::MAX, |next| before(*next));
            let message = Message::Versions {
                session,
                part: u16::try_from(part).unwrap_or(u16::MAX),
                parts: u16::try_from(parts).unwrap_or(u16::MAX),
                complete,
                mask,
                low: lows[ix],
                high,
                items: std::mem::take(&mut chunks[ix]),
            };
            self.send(to, message);
        }
        Ok(())
    }

    pub(super) fn compare_versions(
        &mut self,
        from: SocketAddr,
        session: u32,
        (part, parts, complete): (u16, u16, bool),
        listed: Listed,
    ) -> Result<(), Refused> {
        let asked = |pull: &&mut Pull| pull.from == from && pull.session == session;
        let pull = self.pull.as_mut().filter(asked).ok_or(Refused::Unsolicited)?;
        pull.parts.insert(part);
        pull.complete = complete;
        pull.listed = pull.parts.len() >= usize::from(parts);

        let Listed { mask, low, high, items } = listed;
        let sorted = items.is_sorted_by(|one, other| one.id < other.id);
        if !sorted || items.iter().any(|item| item.id < low || item.id > high) {
            return Err(Refused::Malformed);
        }
        let mut theirs = items.iter().peekable();
        let mut newer_here = Vec::new();
        let mut newer_there = Vec::new();
        for own in self.store.versions(mask, low, high) {
            while let Some(item) = theirs.next_if(|item| item.id < own.id) {
                newer_there.push(item.id);
            }
            match theirs.next_if(|item| item.id == own.id) {
                None => newer_here.push(own.id),
                Some(item) => match (own.version, own.digest).cmp(&(item.version, item.digest)) {
                    std::cmp::Ordering::Less => newer_there.push(own.id),
                    std::cmp::Ordering::Equal => {}
                    std::cmp::Ordering::Greater => newer_here.push(own.id),
                },
            }
        }
        newer_there.extend(theirs.map(|item| item.id));
        pull.wanted.extend(&newer_there);

        for ids in newer_there.chunks(REQUEST_MAX) {
            self.send(from, Message::Request { ids: ids.to_vec() });
        }
        let items = newer_here.into_iter().filter_map(|id| self.record_item(id)).collect();
        for message in self.pack_records(items) {
            self.allow(1)?;
            self.send(from, message);
        }
        self.check_pull();
        Ok(())
    }

    pub(super) fn answer_request(&mut self, to: SocketAddr, ids: &[NodeId]) -> Result<(), Refused> {
        if ids.len() > REQUEST_MAX {
            return Err(Refused::Malformed);
        }
        let items = ids.iter().filter_map(|id| self.record_item(*id)).collect();
        for message in self.pack_records(items) {
            self.allow(1)?;
            self.send(to, message);
        }
        Ok(())
    }

    /// Nothing differs.
    pub(super) fn finish_pull(&mut self, from: SocketAddr, session: u32) -> Result<(), Refused> {
        match &self.pull {
            Some(pull) if pull.from == from && pull.session == session => {
                self.pull = None;
                self.mark_synced(from);
                Ok(())
            }
            Some(_) | None => Err(Refused::Unsolicited),
        }
    }

    /// Takes records in, each for itself: a bad one does not spoil the others.
    pub(super) fn take_records(
        &mut self,
        from: SocketAddr,
        items: Vec<RecordItem>,
    ) -> Result<(), Refused> {
        let mut refused = None;
        let (mut outdated, mut buried) = (Vec::new(), Vec::new());
        for item in items {
            let (id, address) = (item.record.id, item.record.address());
            if let Some(pull) = &mut self.pull {
                pull.wanted.remove(&id);
            }
            match self.take_record(item) {
                Ok(Outcome::Stale) => outdated.push(id),
                Ok(Outcome::Buried) => buried.push((id, address)),
                Ok(Outcome::Full) => self.counters.refuse(Refused::TooManyNodes),
                Ok(Outcome::News | Outcome::Known) => {}
                Err(reason) => {
                    if let Some(earlier) = refused.replace(reason) {
                        self.counters.refuse(earlier);
                    }
                }
            }
        }
        // If it lives, it must know how far its record had come.
        for (id, address) in buried {
            self.allow(1)?;
            let view = self.view_of(id, address);
            let hello = self.hello(Some(view));
            self.send(address, hello);
        }
        // Whoever passes on something old has not heard the news.
        let items = outdated.into_iter().filter_map(|id| self.record_item(id)).collect();
        for message in self.pack_records(items) {
            self.allow(1)?;
            self.send(from, message);
        }
        self.check_pull();
        refused.map_or(Ok(()), Err)
    }

    fn take_record(&mut self, item: RecordItem) -> Result<Outcome, Refused> {
        item.record.validate(&self.config.lease)?;
        let id = item.record.id;
        if id == self.local.id && !self.suspended {
            self.meet_own_record(item);
            return Ok(Outcome::Known);
        }
        let RecordItem { record, dead_for_s } = item;
        let dead_for = dead_for_s.map(|age| Duration::from_secs(u64::from(age)));
        let known = self.store.get(id).is_some();
        if !known && dead_for.is_some_and(|age| age >= self.forget_after()) {
            return Ok(Outcome::Known);
        }
        for lease in &record.leases {
            self.claims.witness(lease.epoch);
        }
        let owner = Identity { id, address: record.address(), incarnation: record.incarnation };
        let (left, keys) = (record.left, record.keys.clone());
        let dead_since = dead_for.map(|age| self.now.checked_sub(age).unwrap_or(self.started));
        let outcome = self.store.offer(record, dead_since);
        if outcome == Outcome::News {
            self.dirty = true;
            self.spread(id);
            self.envelopes.note_keys(owner.address, &keys, self.now);
            if !left && owner.address != self.swim.identity().address {
                match dead_for {
                    None => self.swim.introduce(owner, self.now),
                    Some(_) => self.swim.note_dead(owner, self.now),
                }
            }
        }
        Ok(outcome)
    }

    fn check_pull(&mut self) {
        let Some(pull) = self.pull.take_if(|pull| pull.listed && pull.wanted.is_empty()) else {
            return;
        };
        if pull.complete {
            let news = !self.synced;
            self.mark_synced(pull.from);
            if news {
                // Now that the nodes are known, their pods.
                self.start_sync(Some(pull.from));
            }
        } else {
            self.start_sync(Some(pull.from));
        }
    }

    fn mark_synced(&mut self, with: SocketAddr) {
        if !self.synced {
            self.synced = true;
            self.event(Event::Synced { with });
        }
    }

    pub(super) fn record_item(&self, id: NodeId) -> Option<RecordItem> {
        let stored = self.store.get(id)?;
        let age = stored.dead_since.map(|since| self.now.saturating_duration_since(since));
        let dead_for_s = age.map(|age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX));
        Some(RecordItem { record: stored.record.clone(), dead_for_s })
    }

    pub(super) fn pack_records(&self, items: Vec<RecordItem>) -> Vec<Message> {
        let chunks = self.chunks(Message::Records { items: Vec::new() }, items);
        chunks.into_iter().map(|items| Message::Records { items }).collect()
    }

    /// Cuts a list so that each piece fits a datagram around `empty`.
    pub(super) fn chunks<T: Serialize>(&self, empty: Message, items: Vec<T>) -> Vec<Vec<T>> {
        let clock = self.claims.clock();
        let envelope = Envelope { from: self.swim.identity(), clock, message: empty };
        // The list's length takes one byte more from 128 items on, and never three.
        let room = DATAGRAM_MAX - ENVELOPE_LEN - encoded_len(&envelope) - 1;
        let mut chunks = Vec::new();
        let mut chunk = Vec::new();
        let mut chunk_len = 0;
        for item in items {
            let item_len = encoded_len(&item);
            if chunk_len + item_len > room && !chunk.is_empty() {
                chunks.push(std::mem::take(&mut chunk));
                chunk_len = 0;
            }
            chunk_len += item_len;
            chunk.push(item);
        }
        if !chunk.is_empty() {
            chunks.push(chunk);
        }
        chunks
    }

    /// Some live members, chosen by chance.
    pub(super) fn some_members(&mut self, count: usize) -> Vec<SocketAddr> {
        let own = self.swim.identity().address;
        let others = self.swim.active().map(|member| member.address);
        others.filter(|address| *address != own).sample(&mut self.rng, count)
    }

    fn allow(&mut self, datagrams: usize) -> Result<(), Refused> {
        if self.replies.take(datagrams, self.now) { Ok(()) } else { Err(Refused::RateLimited) }
    }
}

/// The id before this one.
pub(super) fn before(id: NodeId) -> NodeId {
    NodeId(u128::from_be_bytes(id.0).saturating_sub(1).to_be_bytes())
}
