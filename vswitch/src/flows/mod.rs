//! Flows that are translated, and those of pods that policies apply to: each is one entry, found by the packets of
//! both directions.
//!
//! ```text
//!             hash of the packet's tuple
//!                      │
//!   tags   [ 8 bytes ] ▼ of a bucket: is there anybody like this?    ◄── most frames end their search here
//!   positions [ 8 × (epoch, slot, direction) ]
//!                      ▼
//!   slots  [ both tuples, Service │ state │ counters of each direction ]
//! ```
//!
//! Workers share the table, and the two directions of a flow may be two workers' work. So:
//!
//! - *Finding* locks nothing and writes nothing: a slot's tuples are read as a whole or not at all
//!   ([`cell`]), and must be those of the packet. A position that points to a slot which has become somebody
//!   else's is harmless for that reason.
//! - *Changing* takes the locks of the one or two shards that the flow's tuples hash to, the lower first. So no two
//!   flows ever have a tuple in common: there are no insert races, and no two clients share a port of the
//!   switch's own address.
//! - What is noted of each packet (time, counts) is written without a lock where only the same direction writes.
//!
//! Everything is allocated at start, and zeroed by the kernel as it is first used. When all slots of a shard are in
//! use, the oldest flow that was never answered gives way, of some that are looked at; if there is none, the
//! new one is refused.
//!
//! An entry says by which generation of Services it was last found right, and by which of policies it was last
//! admitted. Whoever uses it with another one must look again: see [`Hit::is_checked`] and [`Hit::is_admitted`].

mod affinity;
mod cell;
mod fragments;
mod state;
mod tuple;
mod view;

use std::fmt;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

pub use affinity::Affinity;
use cell::{Cell, Words};
pub use fragments::{FragmentKey, Fragments};
use state::Seen;
pub use tuple::{FlowProtocol, Packed, Tuple};
use tuple::{HashKeys, TUPLE_WORDS};
pub use view::FlowView;

use crate::frame::Frame;
use crate::policy::denial::Denials;
use crate::service::stable_hash;
use crate::sync::{AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering};
use crate::wire::{Ip, Transport, sctp, tcp};

/// The direction of a packet within its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client.
    Original,
    /// To the client.
    Reply,
}

/// Time since the table was made, in tenths of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticks(u32);

impl Ticks {
    const PER_S: u32 = 10;

    pub(crate) fn from_secs(secs: u32) -> Self {
        Self(secs.saturating_mul(Self::PER_S))
    }

    pub(crate) fn from_duration(duration: Duration) -> Self {
        let tenths = duration.as_millis() / 100;
        Self(u32::try_from(tenths).unwrap_or(u32::MAX))
    }

    #[cfg(test)]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    fn as_secs(self) -> u32 {
        self.0 / Self::PER_S
    }
}

/// All flows of a node that are translated or judged, and what else outlives a packet.
pub struct FlowTable {
    start: Instant,
    keys: HashKeys,
    tags: Box<[AtomicU64]>,
    positions: Box<[Bucket]>,
    slots: Box<[Slot]>,
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    slots_per_shard: usize,
    live: CachePadded<AtomicU32>,
    /// Connections per endpoint, by the endpoint's hash: few endpoints share a place.
    connections: Box<[AtomicU32]>,
    affinity: Affinity,
    fragments: Fragments,
    admitted_fragments: Fragments,
    denials: Denials,
}

/// Where the flows of a bucket are: each position is an epoch, a slot and a direction; 0 for none.
#[derive(Debug)]
#[cfg_attr(not(weft_loom), derive(zerocopy::FromZeros))]
#[repr(C, align(64))]
struct Bucket([AtomicU64; WAYS]);

/// One flow.
#[derive(Debug)]
#[cfg_attr(not(weft_loom), derive(zerocopy::FromZeros))]
#[repr(C, align(64))]
struct Slot {
    /// The tuple of each direction, as its packets come in, and the Service.
    names: Cell<NAMES>,
    /// The epoch, and [`Seen`].
    state: AtomicU64,
    /// The epoch, and the lower half of the generation of Services by which the flow was last found right.
    checked: AtomicU64,
    /// The epoch, and the lower half of the generation of policies that last admitted the flow; 0 for none, or if it
    /// was denied since.
    admitted: AtomicU64,
    created: AtomicU32,
    original: Track,
    reply: Track,
}

/// What was noted of one direction. On a cache line of its own, since each has a worker of its own.
#[derive(Debug)]
#[cfg_attr(not(weft_loom), derive(zerocopy::FromZeros))]
#[repr(C, align(64))]
struct Track {
    packets: AtomicU64,
    bytes: AtomicU64,
    /// When the last one came.
    last: AtomicU32,
}

/// What a shard's lock protects: the changes of its buckets, and the use of its slots.
#[derive(Debug)]
struct Shard {
    /// Slots that were given back.
    free: Vec<u32>,
    /// The shard's slots from this one on were never used.
    used: usize,
    /// Where the search for a flow that can give way goes on.
    hand: usize,
}

/// In place of the Service's id in a flow that is not translated.
pub(crate) const PLAIN: u64 = 0;
/// In place of a generation of policies in a flow that none has admitted, or that the last did not.
const NEVER: u32 = 0;
/// Both tuples and the Service's id.
const NAMES: usize = 2 * TUPLE_WORDS + 1;
/// Where in the names the tuple of the client's packets begins.
const ORIGINAL: usize = 0;
/// Where that of the replies begins.
const REPLY: usize = TUPLE_WORDS;
/// Where the Service's id stands.
const SERVICE: usize = 2 * TUPLE_WORDS;
/// Positions per bucket: as many as there are bytes in a word of tags.
const WAYS: usize = 8;
/// Shards at most. Two workers seldom meet in one.
const SHARDS_MAX: usize = 64;
/// Slots that are looked at when none is free.
const VICTIMS_MAX: usize = 64;
/// Ports that are tried for a flow before it is refused.
const PORTS_TRIED: u64 = 128;
/// The lowest port that is given to a flow: those below say who is asking.
const PORT_MIN: u16 = 1024;
/// Places for counts of connections.
const CONNECTION_PLACES: usize = 1 << 14;
/// Flows for each client that can be remembered for affinity.
const FLOWS_PER_CLIENT: usize = 8;

/// What a packet says about the state of its flow: TCP's flags, or the type of SCTP's first chunk.
#[inline]
pub fn mark(frame: &Frame, ip: &Ip) -> u8 {
    match ip.transport {
        Transport::Tcp { .. } => {
            frame.data().get(ip.transport_offset + tcp::FLAGS_OFFSET).copied().unwrap_or(0)
        }
        Transport::Sctp { .. } => {
            let packet = frame.data().get(ip.transport_offset..).unwrap_or_default();
            sctp::first_chunk(packet).unwrap_or(0)
        }
        Transport::Udp { .. } | Transport::Icmp { .. } | Transport::Other => 0,
    }
}

/// Whether a packet with this [`mark`] asks for a new connection.
#[inline]
pub fn opens(protocol: FlowProtocol, mark: u8) -> bool {
    use tcp::flag::{ACK, RST, SYN};
    match protocol {
        FlowProtocol::Tcp => mark & (SYN | ACK | RST) == SYN,
        FlowProtocol::Sctp => mark == sctp::chunk::INIT,
        FlowProtocol::Udp | FlowProtocol::Echo | FlowProtocol::Other(_) => false,
    }
}

/// A flow that a packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    ix: u32,
    epoch: u32,
    seen: Seen,
    /// The direction of the packet.
    pub direction: Direction,
    to: Packed,
    /// The Service that the flow came by; 0 if it is not translated.
    pub service: u64,
    /// As in the slot.
    checked: u64,
    /// As in the slot.
    admitted: u64,
}

impl Hit {
    /// The packet's tuple on the other side of the switch.
    pub fn to(&self) -> Tuple {
        self.to.unpacked()
    }

    /// The same, in words.
    #[inline]
    pub fn packed(&self) -> &Packed {
        &self.to
    }

    /// Whether the endpoint has answered.
    pub fn is_established(&self) -> bool {
        self.seen.has(Seen::REPLIED)
    }

    /// Whether one side has begun to close.
    pub fn is_closing(&self) -> bool {
        self.seen.is_closing()
    }

    /// Whether the flow was found right by the Services of `generation`.
    #[inline]
    pub fn is_checked(&self, generation: u64) -> bool {
        // A note that was made of another flow says nothing about this one.
        self.checked == join(self.epoch, lower_32(generation))
    }

    /// Whether the flow is only followed, and not translated.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.service == PLAIN
    }

    /// Whether the policies of `generation` have admitted the flow.
    #[inline]
    pub fn is_admitted(&self, generation: u64) -> bool {
        let generation = lower_32(generation);
        generation != NEVER && self.admitted == join(self.epoch, generation)
    }

    /// Whether any policies have, and none has denied it since.
    pub fn was_admitted(&self) -> bool {
        upper_32(self.admitted) == self.epoch && lower_32(self.admitted) != NEVER
    }
}

/// A flow that is to be.
#[derive(Debug, Clone, Copy)]
pub struct NewFlow {
    /// As its packets come in from the client.
    pub original: Tuple,
    /// Who serves it.
    pub endpoint: (IpAddr, u16),
    /// The address that the endpoint sees in place of the client's.
    pub masquerade: Option<IpAddr>,
    /// The Service's id.
    pub service: u64,
    /// The generation of Services that decided so.
    pub generation: u64,
    /// The generation of policies that admit it, if they were asked.
    pub admitted: Option<u64>,
}

impl NewFlow {
    /// A flow that is followed as it is, since policies admit it.
    pub fn plain(original: Tuple, services: u64, policies: u64) -> Self {
        Self {
            original,
            endpoint: original.destination,
            masquerade: None,
            service: PLAIN,
            generation: services,
            admitted: Some(policies),
        }
    }
}

/// Why a flow cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is no room.
    Full,
    /// All ports that were tried are in use towards this endpoint.
    NoPort,
}

impl FlowTable {
    /// Makes a table for about `flows_max` flows: never fewer, and fewer than twice as many.
    ///
    /// Each takes up to 256 bytes, and its share of the index 72 at most. Whoever knows `seed` can send packets
    /// that fill one bucket; it cannot do more.
    pub fn new(flows_max: u32, seed: u64, now: Instant) -> Self {
        let wanted = usize::try_from(flows_max).unwrap_or(usize::MAX).clamp(1, 1 << 30);
        let shards =
            (wanted / VICTIMS_MAX).clamp(1, SHARDS_MAX).next_power_of_two().min(SHARDS_MAX);
        let slots_per_shard = wanted.div_ceil(shards);
        let slots = shards * slots_per_shard;
        // Two positions in use of eight on average, so that hardly ever a bucket is full before the table is.
        let buckets = slots.next_power_of_two();
        let shard = |_| {
            // Room is made now, and given by the kernel when it is used.
            let free = Vec::with_capacity(slots_per_shard);
            CachePadded::new(Mutex::new(Shard { free, used: 0, hand: 0 }))
        };
        Self {
            start: now,
            keys: HashKeys::new(seed),
            tags: zeroed::words(buckets),
            positions: zeroed::buckets(buckets),
            slots: zeroed::slots(slots),
            shards: (0..shards).map(shard).collect(),
            slots_per_shard,
            live: CachePadded::new(AtomicU32::new(0)),
            connections: zeroed::counts(CONNECTION_PLACES.min(slots.next_power_of_two())),
            affinity: Affinity::new(slots.div_ceil(FLOWS_PER_CLIENT)),
            fragments: Fragments::new(),
            admitted_fragments: Fragments::new(),
            denials: Denials::new(),
        }
    }

    /// The time that a packet which came at `now` has here.
    pub fn ticks(&self, now: Instant) -> Ticks {
        Ticks::from_duration(now.saturating_duration_since(self.start))
    }

    /// How many flows there are, expired ones that nobody has missed included.
    pub fn len(&self) -> usize {
        usize::try_from(self.live.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.live.load(Ordering::Relaxed) == 0
    }

    /// How many flows there can be.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Which endpoints clients had last.
    pub fn affinity(&self) -> &Affinity {
        &self.affinity
    }

    /// Where the later fragments of packets go.
    pub fn fragments(&self) -> &Fragments {
        &self.fragments
    }

    /// Packets whose first fragment policies have admitted, by their addresses as they came in.
    pub fn admitted_fragments(&self) -> &Fragments {
        &self.admitted_fragments
    }

    /// What policies denied, for whoever tells people.
    pub fn denials(&self) -> &Denials {
        &self.denials
    }

    /// A number that nobody outside can foresee, for the `turn`th time that a client is left to chance.
    pub fn chance(&self, tuple: &Tuple, turn: u64) -> u64 {
        stable_hash(self.keys.hash(&tuple.packed()), &[turn])
    }

    /// Connections to an endpoint that are not over. Endpoints may share a count, few do.
    pub fn connections(&self, endpoint: (IpAddr, u16)) -> u32 {
        self.count_of(endpoint).load(Ordering::Relaxed)
    }

    /// Finds the flow that a packet with `tuple` belongs to.
    pub fn find(&self, tuple: &Tuple, now: Ticks) -> Option<Hit> {
        self.find_packed(&tuple.packed(), now)
    }

    /// The same.
    #[inline]
    pub fn find_packed(&self, tuple: &Packed, now: Ticks) -> Option<Hit> {
        let (bucket, tag) = self.bucket_of(self.keys.hash(tuple));
        let candidates = equal_bytes(self.tags[bucket].load(Ordering::Acquire), tag);
        if candidates == 0 {
            return None;
        }
        // There is seldom another.
        let hit = self.look_at(bucket, candidates, tuple, now);
        if hit.is_some() || candidates & (candidates - 1) == 0 {
            return hit;
        }
        self.find_among(bucket, candidates & (candidates - 1), tuple, now)
    }

    #[inline(never)]
    fn find_among(
        &self,
        bucket: usize,
        mut candidates: u64,
        tuple: &Packed,
        now: Ticks,
    ) -> Option<Hit> {
        while candidates != 0 {
            let hit = self.look_at(bucket, candidates, tuple, now);
            if hit.is_some() {
                return hit;
            }
            candidates &= candidates - 1;
        }
        None
    }

    /// The flow at the first of `candidates`, which is not 0, if it is alive and has `tuple` in that direction.
    #[inline]
    fn look_at(&self, bucket: usize, candidates: u64, tuple: &Packed, now: Ticks) -> Option<Hit> {
        let way = (candidates.trailing_zeros() / 8) as usize;
        let position = Position::of(self.positions[bucket].0[way].load(Ordering::Acquire))?;
        let slot = self.slots.get(position.slot())?;
        let (own, other, track) = match position.direction {
            Direction::Original => (ORIGINAL, REPLY, &slot.original),
            Direction::Reply => (REPLY, ORIGINAL, &slot.reply),
        };
        let (epoch, found) = slot.names.read_with(|words: Words<'_, NAMES>| {
            tuple.is_in(|ix| words.get(own + ix)).then(|| {
                let other = Packed::from_words(|ix| words.get(other + ix));
                (other.inverse(), words.get(SERVICE))
            })
        })?;
        let (to, service) = found?;
        if epoch != position.epoch {
            return None;
        }
        let seen = slot.live(epoch)?;
        // Who was here a moment ago is not over. Otherwise both directions are asked, and the state.
        let is_fresh = now.since(Ticks(track.last.load(Ordering::Relaxed))) <= state::TIMEOUT_MIN;
        if !is_fresh && slot.is_expired(seen, tuple.protocol(), now) {
            return None;
        }
        Some(Hit {
            ix: position.ix,
            epoch,
            seen,
            direction: position.direction,
            to,
            service,
            checked: slot.checked.load(Ordering::Relaxed),
            admitted: slot.admitted.load(Ordering::Relaxed),
        })
    }

    /// Notes a packet of the flow. `mark` is what [`mark`] says of it.
    #[inline(always)]
    pub fn note(&self, hit: &Hit, now: Ticks, packets: u64, bytes: u64, mark: u8) {
        let Some(slot) = self.slots.get(ix_of(hit.ix)) else { return };
        let track = match hit.direction {
            Direction::Original => &slot.original,
            Direction::Reply => &slot.reply,
        };
        // One direction is one worker's work at a time, so nothing is lost between load and store. If
        // it were, it would be a count.
        let add = |counter: &AtomicU64, n: u64| {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        };
        add(&track.packets, packets);
        add(&track.bytes, bytes);
        if track.last.load(Ordering::Relaxed) != now.0 {
            track.last.store(now.0, Ordering::Relaxed);
        }
        self.advance(slot, hit, mark);
    }

    #[inline]
    fn advance(&self, slot: &Slot, hit: &Hit, mark: u8) {
        let protocol = hit.to.protocol();
        let state = slot.state.load(Ordering::Relaxed);
        let seen = Seen(lower_32(state));
        if seen.after(protocol, hit.direction, mark) != seen {
            self.advance_from(slot, hit, mark, state);
        }
    }

    #[inline(never)]
    fn advance_from(&self, slot: &Slot, hit: &Hit, mark: u8, mut state: u64) {
        let protocol = hit.to.protocol();
        loop {
            let seen = Seen(lower_32(state));
            if upper_32(state) != hit.epoch || !seen.has(Seen::LIVE) || seen.has(Seen::DEAD) {
                return;
            }
            let after = seen.after(protocol, hit.direction, mark);
            if after == seen {
                return;
            }
            // Read before the mark is taken away: the slot may be somebody else's right behind that.
            let endpoint = slot.endpoint(hit.epoch);
            let new = join(hit.epoch, after.0);
            match slot.state.compare_exchange(state, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if seen.has(Seen::COUNTED) && !after.has(Seen::COUNTED) => {
                    return self.uncount(endpoint);
                }
                Ok(_) => return,
                Err(now_is) => state = now_is,
            }
        }
    }

    /// Notes that the flow was found right by the Services of `generation`.
    pub fn set_checked(&self, hit: &Hit, generation: u64) {
        if let Some(slot) = self.slots.get(ix_of(hit.ix)) {
            slot.checked.store(join(hit.epoch, lower_32(generation)), Ordering::Relaxed);
        }
    }

    /// Notes that the policies of `generation` admit the flow.
    pub fn set_admitted(&self, hit: &Hit, generation: u64) {
        if let Some(slot) = self.slots.get(ix_of(hit.ix)) {
            slot.admitted.store(join(hit.epoch, lower_32(generation)), Ordering::Relaxed);
        }
    }

    /// Notes that policies do not admit the flow any more. It is remembered for as long as without the packet that was
    /// denied, or longer if that was the client's: who was sent nothing may at last begin a flow in the other direction.
    pub fn set_denied(&self, hit: &Hit, now: Ticks) {
        let Some(slot) = self.slots.get(ix_of(hit.ix)) else { return };
        slot.admitted.store(join(hit.epoch, NEVER), Ordering::Relaxed);
        if hit.direction == Direction::Original {
            slot.original.last.store(now.0, Ordering::Relaxed);
        }
    }

    /// Forgets a flow: the next packet is the first of another.
    pub fn remove(&self, hit: &Hit) {
        self.kill(hit.ix, hit.epoch);
    }

    /// Enters a flow, and returns what its first packet would find. If another worker was faster, that is the
    /// flow that it has entered.
    ///
    /// A masquerading flow gets a port of its own towards its endpoint. So does, at its client's address, one
    /// whose replies could not be told from those of another flow.
    ///
    /// # Errors
    /// When there is no room, or no port.
    pub fn insert(&self, new: &NewFlow, now: Ticks) -> Result<Hit, Refused> {
        let original = new.original.packed();
        let hash = self.keys.hash(&original);
        let address = new.masquerade.unwrap_or(new.original.source.0);
        // What is not translated keeps its port.
        let turns = if new.service == PLAIN { 1 } else { PORTS_TRIED };
        for turn in 0..turns {
            let Some(port) = self.port(new, turn, hash) else { continue };
            let reply = Tuple {
                source: new.endpoint,
                destination: (address, port),
                protocol: new.original.protocol,
            };
            match self.try_insert(new, &original, hash, &reply.packed(), now) {
                Attempt::Done(hit) => return Ok(hit),
                Attempt::Full => return Err(Refused::Full),
                Attempt::Taken => {}
            }
        }
        Err(Refused::NoPort)
    }

    /// The port that is tried in this turn: the client's own first, then others in an order that follows from the
    /// client's and endpoint's addresses, so that after a restart a flow has a chance to get the same.
    fn port(&self, new: &NewFlow, turn: u64, hash: u64) -> Option<u16> {
        let own = new.original.source.1;
        if turn == 0 {
            return (new.masquerade.is_none() || own >= PORT_MIN).then_some(own);
        }
        let packed = new.original.packed();
        let [meta, addresses @ ..] = packed.words();
        let start = stable_hash(*meta, addresses);
        // Neighbours would run into each other.
        let ports = u64::from(u16::MAX - PORT_MIN) + 1;
        let jump = if turn < PORTS_TRIED / 2 { turn } else { turn.wrapping_mul(hash | 1) };
        let offset = start.wrapping_add(jump) % ports;
        Some(PORT_MIN + u16::try_from(offset).unwrap_or(0))
    }

    fn try_insert(
        &self,
        new: &NewFlow,
        original: &Packed,
        hash: u64,
        reply: &Packed,
        now: Ticks,
    ) -> Attempt {
        let places = [self.bucket_of(hash), self.bucket_of(self.keys.hash(reply))];
        let [(own, own_tag), (other, other_tag)] = places;
        let (mut shard, _other_shard) = self.lock_both(self.shard_of(own), self.shard_of(other));
        if let Some(hit) = self.find_locked(own, own_tag, original, now) {
            return match hit.direction {
                Direction::Original => Attempt::Done(hit),
                // Somebody else's replies look like this.
                Direction::Reply => Attempt::Full,
            };
        }
        if self.find_locked(other, other_tag, reply, now).is_some() {
            return Attempt::Taken;
        }
        let Some(way) = self.free_way(own, None, now) else { return Attempt::Full };
        let same = (own == other).then_some(way);
        let Some(other_way) = self.free_way(other, same, now) else { return Attempt::Full };
        let Some(ix) = self.free_slot(self.shard_of(own), &mut shard, now) else {
            return Attempt::Full;
        };
        let slot = &self.slots[ix_of(ix)];
        let epoch = slot.names.write(&join_names(original, reply, new.service));
        let is_counted = new.service != PLAIN;
        let seen = if is_counted { Seen::LIVE.with(Seen::COUNTED) } else { Seen::LIVE };
        slot.begin(now);
        slot.checked.store(join(epoch, lower_32(new.generation)), Ordering::Relaxed);
        let admitted = new.admitted.map_or(NEVER, lower_32);
        slot.admitted.store(join(epoch, admitted), Ordering::Relaxed);
        slot.state.store(join(epoch, seen.0), Ordering::Release);
        self.live.fetch_add(1, Ordering::Relaxed);
        if is_counted {
            self.count_of(new.endpoint).fetch_add(1, Ordering::Relaxed);
        }
        self.set(own, way, own_tag, Position { ix, epoch, direction: Direction::Original });
        self.set(other, other_way, other_tag, Position { ix, epoch, direction: Direction::Reply });
        match self.find_locked(own, own_tag, original, now) {
            Some(hit) => Attempt::Done(hit),
            // It was just written, under the lock.
            None => Attempt::Full,
        }
    }

    /// Gives back the slots of some flows that are over. Whoever calls this once a second has looked at all of them
    /// after eight. Does not hold up workers.
    pub fn tidy(&self, now: Instant) {
        const PARTS: usize = 8;
        let now = self.ticks(now);
        self.sweep(now, ix_of(now.as_secs()) % PARTS, PARTS);
    }

    /// Gives back the slots of flows that are over, in one part of `parts` of the table. A flow that nobody asks for
    /// takes room until then; one that is asked for is found to be over at once.
    fn sweep(&self, now: Ticks, part: usize, parts: usize) {
        for number in (0..self.shards.len()).filter(|shard| shard % parts.max(1) == part) {
            let first = number * self.slots_per_shard;
            // In short turns, so that no worker waits for long.
            for turn in 0..self.slots_per_shard.div_ceil(VICTIMS_MAX) {
                let start = turn * VICTIMS_MAX;
                let mut shard = lock(&self.shards[number]);
                for ix in start..(start + VICTIMS_MAX).min(shard.used) {
                    self.reclaim(first + ix, &mut shard, now);
                }
            }
        }
    }

    /// Puts the slot on the free list if its flow is over.
    fn reclaim(&self, ix: usize, shard: &mut Shard, now: Ticks) {
        let slot = &self.slots[ix];
        let state = slot.state.load(Ordering::Acquire);
        let (epoch, seen) = (upper_32(state), Seen(lower_32(state)));
        let Ok(number) = u32::try_from(ix) else { return };
        if !seen.has(Seen::LIVE) {
            return;
        }
        if !seen.has(Seen::DEAD) {
            let is_expired =
                slot.protocol().is_none_or(|protocol| slot.is_expired(seen, protocol, now));
            if !is_expired || !self.kill(number, epoch) {
                return;
            }
        }
        slot.state.store(join(epoch, 0), Ordering::Release);
        shard.free.push(number);
    }

    /// A slot of the shard for a new flow: one that is free, or that of a flow which gives way.
    fn free_slot(&self, number: usize, shard: &mut Shard, now: Ticks) -> Option<u32> {
        if let Some(ix) = shard.free.pop() {
            return Some(ix);
        }
        let first = number * self.slots_per_shard;
        if shard.used < self.slots_per_shard {
            shard.used += 1;
            return u32::try_from(first + shard.used - 1).ok();
        }
        let mut victim: Option<(Ticks, usize)> = None;
        for _ in 0..VICTIMS_MAX.min(self.slots_per_shard) {
            let ix = first + shard.hand;
            shard.hand = (shard.hand + 1) % self.slots_per_shard;
            self.reclaim(ix, shard, now);
            if let Some(free) = shard.free.pop() {
                return Some(free);
            }
            let slot = &self.slots[ix];
            let seen = Seen(lower_32(slot.state.load(Ordering::Acquire)));
            let is_spared = slot.protocol().is_some_and(|protocol| seen.is_assured(protocol));
            if !is_spared && victim.is_none_or(|(last, _)| slot.last() < last) {
                victim = Some((slot.last(), ix));
            }
        }
        let (_, ix) = victim?;
        let epoch = upper_32(self.slots[ix].state.load(Ordering::Acquire));
        let ix = u32::try_from(ix).ok()?;
        // If it fails, somebody has given the flow up at this moment; its slot is as good.
        self.kill(ix, epoch);
        Some(ix)
    }

    /// A position of the bucket, other than `not`, for a new flow.
    fn free_way(&self, bucket: usize, not: Option<usize>, now: Ticks) -> Option<usize> {
        let ways = || (0..WAYS).filter(|way| Some(*way) != not);
        let position = |way: usize| {
            Position::of(self.positions[bucket].0[way].load(Ordering::Relaxed))
                .and_then(|position| Some((position, self.slots.get(position.slot())?)))
        };
        let unused = ways().find(|way| {
            position(*way).is_none_or(|(position, slot)| match slot.live(position.epoch) {
                None => true,
                Some(seen) => {
                    let protocol = slot.protocol();
                    let over = protocol.is_none_or(|protocol| slot.is_expired(seen, protocol, now));
                    // Only once it cannot come back to life.
                    over && self.kill(position.ix, position.epoch)
                }
            })
        });
        unused.or_else(|| {
            let spare = ways().filter_map(|way| {
                let (found, slot) = position(way)?;
                let seen = slot.live(found.epoch)?;
                (!seen.is_assured(slot.protocol()?)).then_some((slot.last(), way, found))
            });
            let (_, way, found) = spare.min_by_key(|(last, ..)| *last)?;
            self.kill(found.ix, found.epoch);
            Some(way)
        })
    }

    /// Gives a flow up. Returns whether it was this call that did.
    fn kill(&self, ix: u32, epoch: u32) -> bool {
        let Some(slot) = self.slots.get(ix_of(ix)) else { return false };
        let mut state = slot.state.load(Ordering::Acquire);
        loop {
            let seen = Seen(lower_32(state));
            if upper_32(state) != epoch || !seen.has(Seen::LIVE) || seen.has(Seen::DEAD) {
                return false;
            }
            let endpoint = slot.endpoint(epoch);
            let dead = join(epoch, seen.with(Seen::DEAD).without(Seen::COUNTED).0);
            match slot.state.compare_exchange(state, dead, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.live.fetch_sub(1, Ordering::Relaxed);
                    if seen.has(Seen::COUNTED) {
                        self.uncount(endpoint);
                    }
                    return true;
                }
                Err(now_is) => state = now_is,
            }
        }
    }

    /// Takes a flow from its endpoint's connections.
    fn uncount(&self, endpoint: Option<(IpAddr, u16)>) {
        if let Some(endpoint) = endpoint {
            self.count_of(endpoint).fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn count_of(&self, endpoint: (IpAddr, u16)) -> &AtomicU32 {
        let [upper, lower] = crate::service::address_words(endpoint.0);
        let hash = stable_hash(endpoint.1.into(), &[upper, lower]);
        &self.connections[scale(hash, self.connections.len())]
    }

    fn find_locked(&self, bucket: usize, tag: u8, tuple: &Packed, now: Ticks) -> Option<Hit> {
        let candidates = equal_bytes(self.tags[bucket].load(Ordering::Relaxed), tag);
        self.find_among(bucket, candidates, tuple, now)
    }

    fn set(&self, bucket: usize, way: usize, tag: u8, position: Position) {
        self.positions[bucket].0[way].store(position.word(), Ordering::Release);
        let shift = 8 * way;
        let tags = self.tags[bucket].load(Ordering::Relaxed) & !(0xff << shift);
        self.tags[bucket].store(tags | u64::from(tag) << shift, Ordering::Release);
    }

    /// The bucket of a hash, and a byte that few others in it have. No tag is 0.
    #[inline]
    fn bucket_of(&self, hash: u64) -> (usize, u8) {
        let [tag, ..] = hash.to_le_bytes();
        (scale(hash, self.tags.len()), tag | 1)
    }

    fn shard_of(&self, bucket: usize) -> usize {
        bucket & (self.shards.len() - 1)
    }

    /// Locks two shards, or one if they are the same; the first of them is the first returned.
    fn lock_both(
        &self,
        first: usize,
        second: usize,
    ) -> (MutexGuard<'_, Shard>, Option<MutexGuard<'_, Shard>>) {
        match first.cmp(&second) {
            std::cmp::Ordering::Equal => (lock(&self.shards[first]), None),
            std::cmp::Ordering::Less => {
                let guard = lock(&self.shards[first]);
                (guard, Some(lock(&self.shards[second])))
            }
            std::cmp::Ordering::Greater => {
                let guard = lock(&self.shards[second]);
                (lock(&self.shards[first]), Some(guard))
            }
        }
    }
}

impl fmt::Debug for FlowTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowTable({} of {} flows)", self.len(), self.capacity())
    }
}

enum Attempt {
    Done(Hit),
    /// Another flow's replies look the same.
    Taken,
    Full,
}

impl Slot {
    /// What was seen of the flow of `epoch`, if it is this one and alive.
    #[inline]
    fn live(&self, epoch: u32) -> Option<Seen> {
        let state = self.state.load(Ordering::Acquire);
        let seen = Seen(lower_32(state));
        let is_live = upper_32(state) == epoch && seen.has(Seen::LIVE) && !seen.has(Seen::DEAD);
        is_live.then_some(seen)
    }

    fn begin(&self, now: Ticks) {
        self.created.store(now.0, Ordering::Relaxed);
        for track in [&self.original, &self.reply] {
            track.packets.store(0, Ordering::Relaxed);
            track.bytes.store(0, Ordering::Relaxed);
            track.last.store(now.0, Ordering::Relaxed);
        }
    }

    /// When the last packet came.
    fn last(&self) -> Ticks {
        let [original, reply] =
            [&self.original, &self.reply].map(|track| track.last.load(Ordering::Relaxed));
        Ticks(original.max(reply))
    }

    fn is_expired(&self, seen: Seen, protocol: FlowProtocol, now: Ticks) -> bool {
        now.since(self.last()) > seen.timeout(protocol)
    }

    /// Who serves the flow of `epoch`, if it is this one.
    fn endpoint(&self, epoch: u32) -> Option<(IpAddr, u16)> {
        let (read_epoch, names) = self.names.read()?;
        let reply = split(&names).1;
        (read_epoch == epoch).then(|| (reply.source(), reply.source_port()))
    }

    fn protocol(&self) -> Option<FlowProtocol> {
        let (_, names) = self.names.read()?;
        Some(split(&names).0.protocol())
    }
}

/// Where a flow is.
#[derive(Debug, Clone, Copy)]
struct Position {
    ix: u32,
    epoch: u32,
    direction: Direction,
}

impl Position {
    fn of(word: u64) -> Option<Self> {
        let rest = lower_32(word);
        let direction = if rest & 1 == 0 { Direction::Original } else { Direction::Reply };
        // No epoch is 0.
        (word != 0).then_some(Self { ix: rest >> 1, epoch: upper_32(word), direction })
    }

    fn word(self) -> u64 {
        join(self.epoch, self.ix << 1 | u32::from(self.direction == Direction::Reply))
    }

    fn slot(self) -> usize {
        ix_of(self.ix)
    }
}

/// The tuples of both directions.
fn split(names: &[u64; NAMES]) -> (Packed, Packed) {
    let at = |start: usize| Packed::from_words(|ix| names[start + ix]);
    (at(ORIGINAL), at(REPLY))
}

fn join_names(original: &Packed, reply: &Packed, service: u64) -> [u64; NAMES] {
    let [a, b, c, d, e] = *original.words();
    let [f, g, h, i, j] = *reply.words();
    [a, b, c, d, e, f, g, h, i, j, service]
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // A worker that panicked here has ended, and its table with it; the others need not.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[inline]
fn ix_of(ix: u32) -> usize {
    usize::try_from(ix).unwrap_or(usize::MAX)
}

#[inline]
fn join(upper: u32, lower: u32) -> u64 {
    u64::from(upper) << 32 | u64::from(lower)
}

#[inline]
fn upper_32(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[inline]
fn lower_32(word: u64) -> u32 {
    let [.., a, b, c, d] = word.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// A number below `len` for a hash, by its upper bits.
#[inline]
fn scale(hash: u64, len: usize) -> usize {
    let scaled = u128::from(hash) * len as u128;
    usize::try_from(scaled >> 64).unwrap_or(0)
}

/// The bytes of `word` that equal `byte`, their highest bits set; above a byte that does, one that does not may be
/// set, too.
#[inline]
fn equal_bytes(word: u64, byte: u8) -> u64 {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let differing = word ^ (LOW * u64::from(byte));
    differing.wrapping_sub(LOW) & !differing & HIGH
}

/// Memory that the kernel zeroes when it is first used.
#[cfg(not(weft_loom))]
mod zeroed {
    use zerocopy::FromZeros;

    use super::{AtomicU32, AtomicU64, Bucket, Slot};

    fn boxed<T: FromZeros>(len: usize) -> Box<[T]> {
        <[T]>::new_box_zeroed_with_elems(len).expect("a table fits into memory")
    }

    pub(super) fn words(len: usize) -> Box<[AtomicU64]> {
        boxed(len)
    }

    pub(super) fn counts(len: usize) -> Box<[AtomicU32]> {
        boxed(len)
    }

    pub(super) fn buckets(len: usize) -> Box<[Bucket]> {
        boxed(len)
    }

    pub(super) fn slots(len: usize) -> Box<[Slot]> {
        boxed(len)
    }
}

#[cfg(weft_loom)]
mod zeroed {
    use super::{AtomicU32, AtomicU64, Bucket, Cell, Slot, Track};

    fn word() -> AtomicU64 {
        AtomicU64::new(0)
    }

    fn track() -> Track {
        Track { packets: word(), bytes: word(), last: AtomicU32::new(0) }
    }

    pub(super) fn words(len: usize) -> Box<[AtomicU64]> {
        (0..len).map(|_| word()).collect()
    }

    pub(super) fn counts(len: usize) -> Box<[AtomicU32]> {
        (0..len).map(|_| AtomicU32::new(0)).collect()
    }

    pub(super) fn buckets(len: usize) -> Box<[Bucket]> {
        (0..len).map(|_| Bucket(std::array::from_fn(|_| word()))).collect()
    }

    pub(super) fn slots(len: usize) -> Box<[Slot]> {
        let slot = |_| Slot {
            names: Cell::new(),
            state: word(),
            checked: word(),
            admitted: word(),
            created: AtomicU32::new(0),
            original: track(),
            reply: track(),
        };
        (0..len).map(slot).collect()
    }
}

#[cfg(all(test, weft_loom))]
mod loom;
#[cfg(all(test, not(weft_loom)))]
mod tests;
