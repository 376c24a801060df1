//! Who is in the cluster and who holds which subnet, without a store and without a master.
//!
//! [`Gossip`] has no socket, no clock and no thread. Whoever drives it
//!
//! 1. hands in what arrives ([`Gossip::handle_datagram`]) and what time it is
//!    ([`Gossip::handle_timeout`], at the latest when [`Gossip::poll_timeout`] says),
//! 2. saves what must survive ([`Gossip::poll_memory`], then [`Gossip::handle_saved`] or
//!    [`Gossip::handle_save_failed`]),
//! 3. sends what is to be sent ([`Gossip::poll_transmit`]),
//! 4. reads the [`SubnetMap`], the pods ([`Gossip::pods`]), the [`LeaseState`] and the [`Event`]s.
//!
//! The parts: [`swim`] finds out who is alive; [`store`] keeps a record per node, which [`sync`] makes
//! equal everywhere; [`pod_store`] and [`pod_sync`] do the same for pods; [`publish`] writes the own record; [`claim`] decides on leases; [`seeds`] finds
//! the way in; [`view`] makes the map. `docs/gossip.md` is the protocol's description.
//!
//! The same seed, calls and times give the same datagrams, byte for byte.

mod addresses;
mod appeal;
mod claim;
mod codec;
mod counters;
mod envelope;
mod event;
#[cfg(test)]
mod hostile;
mod identity;
mod origin;
mod pod_store;
mod pod_sync;
mod publish;
mod receive;
mod record;
mod seeds;
mod session;
pub mod sim;
mod slots;
mod store;
mod strangers;
mod swim;
mod sync;
mod timing;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};

use self::appeal::Appeals;
use self::claim::{Change, Claims, Summary};
pub use self::claim::{Release, RememberedLease};
pub use self::codec::DATAGRAM_MAX;
pub(crate) use self::codec::pod_len;
use self::codec::{Envelope, Message, View};
pub use self::counters::{Ages, Counters, Refused};
pub use self::envelope::Protection;
use self::envelope::{Envelopes, Outgoing};
pub use self::event::{Event, Holdings, LeaseState, Memory};
pub(crate) use self::identity::COUNTER_MAX;
use self::identity::Identity;
use self::origin::Origin;
use self::pod_store::PodStore;
use self::pod_sync::PodSync;
pub use self::pod_sync::check_pods;
pub use self::record::{
    LEASES_MAX, NAME_LEN_MAX, SOFTWARE_LEN_MAX, UNDERLAY_MTU_MIN, is_name, is_software,
};
pub use self::seeds::SEEDS_MAX;
use self::seeds::Seeds;
use self::store::Store;
pub use self::strangers::Stranger;
use self::strangers::Strangers;
use self::swim::{News, Swim};
use self::sync::{Limiter, Pull};
use self::timing::Size;
pub use self::timing::Timing;
use self::view::Candidate;
use crate::config::{LeaseConfig, Preset};
use crate::node_id::NodeId;
use crate::seal::{KeyId, KeyRing, Secrets};
use crate::subnet::{Conflict, MemberState, SubnetMap};

/// What all nodes of a network have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipConfig {
    /// The network's name; nodes of another one are ignored, and counted.
    pub network: String,
    /// How addresses are dealt out.
    pub lease: LeaseConfig,
    /// How often what happens.
    pub timing: Timing,
    /// For how many nodes the timing is adapted.
    pub preset: Preset,
    /// Most nodes that are remembered.
    pub nodes_max: usize,
    /// Most pods that are remembered, of all nodes together.
    pub pods_max: usize,
}

impl GossipConfig {
    /// A network with the default clockwork and limits.
    pub fn new(network: impl Into<String>, lease: LeaseConfig) -> Self {
        Self {
            network: network.into(),
            lease,
            timing: Timing::default(),
            preset: Preset::Auto,
            nodes_max: 5000,
            pods_max: PODS_MAX,
        }
    }
}

/// Most pods that are remembered unless the configuration says otherwise: what 5000 nodes with 50 pods
/// each have, in about 150 MB.
const PODS_MAX: usize = 250_000;

/// What this node says about itself, and what it remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNode {
    /// Who it is.
    pub id: NodeId,
    /// Its name: 1 to 63 printable characters, see [`is_name`].
    pub name: String,
    /// Its address on the underlay: what it sends from, and is reached at.
    pub underlay: IpAddr,
    /// UDP port that it receives gossip on.
    pub gossip_port: u16,
    /// UDP port that it receives VXLAN on.
    pub vxlan_port: u16,
    /// Longest IP packet that its underlay interface takes.
    pub underlay_mtu: u16,
    /// Name and version of the daemon, such as `weft/0.1.0`: see [`is_software`]. Empty where no Weft daemon
    /// speaks for the node; nobody then expects its tunnel endpoint to answer path probes.
    pub software: String,
    /// Whether seeds are configured, though their addresses are perhaps not known yet: without a lease
    /// of its own, the node then waits for them before it claims one.
    pub has_seeds: bool,
    /// What it saved before it was restarted.
    pub memory: Memory,
}

/// This node's part in the gossip.
pub struct Gossip {
    config: GossipConfig,
    /// The timing for a small cluster; the configuration's is the one in force.
    clockwork: Timing,
    size: Size,
    local: LocalNode,
    envelopes: Envelopes,
    rng: StdRng,
    started: Instant,
    now: Instant,

    swim: Swim,
    store: Store,
    pods: PodStore,
    pod_sync: PodSync,
    claims: Claims,
    appeals: Appeals,
    origin: Origin,
    holdings: Holdings,
    /// Subnets that were this node's: its record announces them as ranges for as long as it has exceptions
    /// in them.
    retained: Vec<IpNetwork>,
    /// How many addresses found no place in the own record.
    left_out: usize,
    /// Whether the own record has said in this life that it holds a lease.
    has_held: bool,
    seeds: Seeds,
    counters: Counters,

    /// Version of the own record, and the highest one that may be used before more are reserved on disk.
    version: u64,
    reserved: u64,
    /// The highest counter that is reserved on disk: nothing above it is ever sent.
    on_disk: u64,
    /// Whether there is something to save, and what is being saved.
    unsaved: bool,
    saving: Option<Memory>,
    /// Since when saving fails.
    disk_trouble: Option<DiskTrouble>,

    pull: Option<Pull>,
    synced: bool,
    /// Since when it is asked what others hold: the start, or the end of a sleep.
    asking_since: Instant,
    /// Whether something could have been claimed when this was last decided.
    claims_looked: (bool, bool),
    /// The state of the records at which that was.
    claims_seen: u64,
    replies: Limiter,
    rumors: BTreeSet<NodeId>,
    rumor_at: Option<Instant>,
    next_sync: Instant,
    next_dial: Instant,

    /// Another node with this one's id, and when it was heard last.
    duplicate: Option<(SocketAddr, Instant)>,
    suspended: bool,
    probed_twin: Option<Instant>,
    translated: BTreeMap<SocketAddr, Instant>,
    candidates: BTreeMap<Conflict, Candidate>,
    /// Some members, remembered for the next start.
    peers: Vec<SocketAddr>,
    departure: Option<Departure>,
    goodbye_to: Vec<SocketAddr>,

    map: Arc<SubnetMap>,
    dirty: bool,
    viewed: Instant,
    /// A sum over all lives and states when this was last looked at.
    swim_sum: u64,

    strangers: Strangers,
    outbox: VecDeque<(SocketAddr, Outgoing)>,
    events: VecDeque<Event>,
}

/// How far the goodbye has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Departure {
    repeats: u32,
    next: Instant,
}

/// The disk refuses what is to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DiskTrouble {
    retry_at: Instant,
    pause: Duration,
}

/// First and longest pause before something is given again that could not be saved.
const SAVE_RETRY: Duration = Duration::from_secs(1);
const SAVE_RETRY_MAX: Duration = Duration::from_secs(10);

/// Most datagrams that wait to be sent.
const OUTBOX_MAX: usize = 8192;

/// Most events that wait to be taken.
const EVENTS_MAX: usize = 1024;

/// Most former subnets that are kept in mind.
const RETAINED_MAX: usize = 4;

/// A gap in the clock that is worth mentioning.
const SLEEP_MIN: Duration = Duration::from_secs(5);

/// How often, and how far apart, a goodbye is said.
const GOODBYES: u32 = 3;
const GOODBYE_PAUSE: Duration = Duration::from_millis(80);

/// How many members hear each goodbye.
const GOODBYE_FANOUT: usize = 8;

impl fmt::Debug for Gossip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gossip")
            .field("swim", &self.swim)
            .field("version", &self.version)
            .field("map_generation", &self.map.generation)
            .finish_non_exhaustive()
    }
}

impl Gossip {
    /// Starts a node. `seed` decides on every choice by chance, but not on anything that is secret.
    pub fn new(
        config: GossipConfig,
        local: LocalNode,
        protection: Protection,
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let envelopes = Envelopes::new(&config.network, protection, config.nodes_max, now);
        let version = local.memory.counter + 1;
        let identity = Identity {
            id: local.id,
            address: SocketAddr::new(local.underlay, local.gossip_port),
            incarnation: version,
        };
        let timing = config.timing.clone();
        let swim = Swim::new(identity, timing, config.nodes_max, rng.random());
        let mut claims = Claims::new(local.id, config.lease.clone());
        claims.witness(local.memory.clock);
        let remembered: Vec<_> =
            local.memory.leases.iter().map(|lease| claims.remember(*lease)).collect();
        let mut gossip = Self {
            store: Store::new(config.nodes_max),
            pods: PodStore::new(config.pods_max),
            pod_sync: PodSync::new(now),
            envelopes,
            started: now,
            now,
            clockwork: config.timing.clone(),
            size: Size::default(),
            swim,
            claims,
            appeals: Appeals::default(),
            origin: Origin::remembered(local.memory.origin),
            holdings: Holdings::default(),
            retained: local.memory.retained.clone(),
            left_out: 0,
            has_held: false,
            seeds: Seeds::default(),
            counters: Counters::default(),
            version,
            reserved: version + publish::RESERVE,
            on_disk: local.memory.counter,
            unsaved: true,
            saving: None,
            disk_trouble: None,
            pull: None,
            synced: false,
            asking_since: now,
            claims_looked: (false, false),
            claims_seen: 0,
            replies: Limiter::new(sync::ANSWERS_PER_S, now),
            rumors: BTreeSet::new(),
            rumor_at: None,
            next_sync: now + rng.random_range(Duration::ZERO..config.timing.sync),
            next_dial: now + config.timing.dead_dial,
            duplicate: None,
            suspended: false,
            probed_twin: None,
            translated: BTreeMap::new(),
            candidates: BTreeMap::new(),
            peers: Vec::new(),
            departure: None,
            goodbye_to: Vec::new(),
            map: Arc::new(SubnetMap::default()),
            dirty: true,
            viewed: now,
            swim_sum: 0,
            strangers: Strangers::default(),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            rng,
            config,
            local,
        };
        gossip.apply_changes(remembered);
        gossip.peers.clone_from(&gossip.local.memory.peers);
        for peer in gossip.peers.clone() {
            gossip.join(peer, now);
        }
        gossip.publish();
        gossip.view();
        gossip
    }

    /// Adds the address of a node that is probably in the cluster. It is dialled at once, and again for
    /// ever whenever it is not among the members, so that what was cut apart finds together.
    ///
    /// At most [`SEEDS_MAX`] are kept. This node's own address is no seed.
    pub fn join(&mut self, seed: SocketAddr, now: Instant) {
        self.advance(now);
        if seed != self.swim.identity().address && self.seeds.add(seed, &self.config.timing, now) {
            self.dial_seeds();
        }
    }

    /// Tells whether to wait for seeds that have not joined yet; see [`LocalNode::has_seeds`]. A node
    /// that finds out that it is its own only seed need not wait.
    pub fn expect_seeds(&mut self, has_seeds: bool) {
        self.local.has_seeds = has_seeds;
    }

    /// Stops dialling a seed.
    pub fn forget_seed(&mut self, seed: SocketAddr) {
        self.seeds.remove(seed);
    }

    /// Takes up another lease configuration: at once, without a restart. The own record announces its
    /// ranges; what is held stays unless it does not fit any more, see [`Release`].
    pub fn configure(&mut self, lease: LeaseConfig, now: Instant) {
        self.advance(now);
        self.config.lease = lease.clone();
        let changes = self.claims.configure(lease);
        self.unsaved |= !changes.is_empty();
        self.apply_changes(changes);
        self.claims_looked = (false, false);
        self.settle();
    }

    /// Tells that the machine stood still for `gap`, as seen on a clock that went on. What is held is not
    /// used until another node was asked, or nobody could be: somebody may have been given it.
    pub fn handle_sleep(&mut self, gap: Duration, now: Instant) {
        self.advance(now);
        if self.departure.is_none() {
            self.wake_up(gap);
            self.settle();
        }
    }

    fn wake_up(&mut self, gap: Duration) {
        self.event(Event::Slept { gap });
        self.synced = false;
        self.asking_since = self.now;
        // Who has nobody to ask decides at once, and must look again for that.
        self.claims_looked = (false, false);
        self.seeds.ask_again();
        let changes = self.claims.doubt();
        self.apply_changes(changes);
        self.next_sync = self.now;
    }

    /// Takes up which addresses the pods of this node have, and which ones of its leases it leaves to the pods
    /// of others; see [`SubnetMap::requests`].
    pub fn set_holdings(&mut self, holdings: Holdings, now: Instant) {
        self.advance(now);
        let is_in =
            |prefix: &IpNetwork| holdings.pods.iter().any(|address| prefix.contains(*address));
        let former = self.retained.len();
        self.retained.retain(is_in);
        self.unsaved |= self.retained.len() != former;
        self.holdings = holdings;
        self.settle();
    }

    /// Keeps a subnet in mind that was this node's, for the pods that have addresses out of it.
    fn retain(&mut self, prefix: IpNetwork) {
        if !self.retained.contains(&prefix) {
            self.retained.push(prefix);
            if self.retained.len() > RETAINED_MAX {
                self.retained.remove(0);
            }
            self.unsaved = true;
        }
    }

    /// Says goodbye. Go on driving until [`Gossip::has_left`].
    pub fn leave(&mut self, now: Instant) {
        self.advance(now);
        if self.departure.is_none() {
            self.departure = Some(Departure { repeats: GOODBYES, next: now });
            self.publish();
            self.say_goodbye();
            self.swim.leave(now);
            self.settle();
        }
    }

    /// Whether goodbye has been said often enough.
    pub fn has_left(&self) -> bool {
        self.departure.is_some_and(|departure| departure.repeats == 0) && self.outbox.is_empty()
    }

    /// Takes a datagram from the gossip socket.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        self.advance(now);
        self.counters.received += 1;
        self.counters.received_bytes += datagram.len() as u64;
        if let Err(reason) = self.open(from, datagram) {
            self.counters.refuse(reason);
            self.note_stranger(from, datagram, reason);
        }
        if self.departure.is_none() {
            self.settle();
        }
    }

    /// Replaces the keys, without a restart. No effect on a node that was started without any.
    pub fn set_keys(&mut self, keys: &KeyRing, now: Instant) {
        self.advance(now);
        if let Envelopes::Sealed(sessions) = &mut self.envelopes {
            sessions.set_keys(keys, now);
            self.settle();
        }
    }

    /// Goes on in a new session, whose salt is in `secrets`: what a machine does that may have been copied
    /// while it ran. Other nodes ask once for a proof; nothing is lost.
    pub fn renew_session(&mut self, secrets: &Secrets) {
        if let Envelopes::Sealed(sessions) = &mut self.envelopes {
            sessions.renew(secrets);
        }
    }

    /// The names of this node's keys, the one in use first. Empty if its gossip is not sealed.
    pub fn keys(&self) -> Vec<KeyId> {
        self.envelopes.keys()
    }

    /// Who has spoken lately with a wrong seal or none, the latest first.
    pub fn strangers(&self) -> Vec<Stranger> {
        self.strangers.recent(self.now)
    }

    /// Does what time has come for.
    pub fn handle_timeout(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.now);
        self.advance(now);
        if let Some(departure) = self.departure {
            if departure.repeats > 0 && departure.next <= now {
                self.say_goodbye();
            }
            return;
        }
        if gap >= SLEEP_MIN {
            self.wake_up(gap);
        }
        self.swim.handle_timeout(now);
        self.dial_seeds();
        if self.next_dial <= now {
            self.next_dial = now + self.config.timing.dead_dial;
            self.dial_dead();
        }
        if self.next_sync <= now {
            let pause = self.config.timing.sync;
            self.next_sync = now + pause.mul_f64(self.rng.random_range(0.9..1.1));
            self.forget_expired();
            self.remember_peers();
            self.start_sync(None);
            self.notice_suspicions();
        }
        if self.rumor_at.is_some_and(|at| at <= now) {
            self.spread_rumors();
        }
        self.tend_pods();
        self.tend_appeals();
        self.settle();
    }

    /// When [`Gossip::handle_timeout`] has to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if let Some(departure) = self.departure {
            return (departure.repeats > 0).then_some(departure.next);
        }
        self.timers().into_iter().filter_map(|(_, at)| at).min()
    }

    /// What is waited for, each with its name and its time.
    fn timers(&self) -> [(&'static str, Option<Instant>); 11] {
        let waits =
            self.claims.is_returning() || (!self.claims_looked.1 && self.disk_trouble.is_none());
        // While a twin has the id there is nothing to claim.
        let waits = waits && !self.synced && !self.suspended;
        let claim_at = waits.then(|| self.claim_deadline());
        let save_at = self.disk_trouble.filter(|_| self.unsaved).map(|trouble| trouble.retry_at);
        let dirty = self.dirty || self.pod_sync.is_dirty();
        let view_at = dirty.then(|| self.viewed + self.config.timing.view);
        [
            ("sync", Some(self.next_sync)),
            ("dial", Some(self.next_dial)),
            ("rumor", self.rumor_at),
            ("swim", self.swim.poll_timeout()),
            ("seeds", self.seeds.poll_timeout()),
            ("claims", self.claims.poll_timeout()),
            ("appeals", self.appeals.poll_timeout()),
            ("pods", self.pod_sync.poll_timeout()),
            ("claim", claim_at),
            ("save", save_at),
            ("view", view_at),
        ]
    }

    /// What is to be sent next, and where to. Nothing, while this node's present life is not on disk.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        if !self.may_speak() {
            return None;
        }
        let (to, what) = self.outbox.pop_front()?;
        let datagram = self.envelopes.close(to, what, self.now);
        self.counters.sent += 1;
        self.counters.sent_bytes += datagram.len() as u64;
        Some((to, datagram))
    }

    /// What has happened since the last call, the oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What is to be saved; [`Gossip::handle_saved`] or [`Gossip::handle_save_failed`] tells how that
    /// went. There is no more until then, and after a failure only once it is time to try again.
    ///
    /// Sending need not wait for it: what has to be on disk first is not given away before it is.
    pub fn poll_memory(&mut self) -> Option<Memory> {
        let early = self.disk_trouble.is_some_and(|trouble| self.now < trouble.retry_at);
        if !self.unsaved || self.saving.is_some() || early {
            return None;
        }
        self.unsaved = false;
        let memory = self.memory();
        self.saving = Some(memory.clone());
        Some(memory)
    }

    /// What [`Gossip::poll_memory`] gave last is on disk: new leases and counters may be used now.
    pub fn handle_saved(&mut self, now: Instant) {
        self.advance(now);
        let Some(saved) = self.saving.take() else { return };
        self.disk_trouble = None;
        self.on_disk = saved.counter;
        if saved.leases == self.claims.to_save() {
            let changes = self.claims.saved(&self.store);
            self.apply_changes(changes);
        } else {
            self.unsaved = true;
        }
        self.settle();
    }

    /// What [`Gossip::poll_memory`] gave last could not be saved: it is given again, later and later.
    ///
    /// Until that succeeds nothing new is claimed or held, and no counter is used that is not reserved
    /// on disk. All else goes on: a node with a full disk lives.
    pub fn handle_save_failed(&mut self, now: Instant) {
        self.advance(now);
        self.saving = None;
        self.unsaved = true;
        let pause =
            self.disk_trouble.map_or(SAVE_RETRY, |trouble| (trouble.pause * 2).min(SAVE_RETRY_MAX));
        self.disk_trouble = Some(DiskTrouble { retry_at: self.now + pause, pause });
        if !self.may_speak() {
            // Answers that nobody waits for any more.
            self.counters.overflowed += self.outbox.len() as u64;
            self.outbox.clear();
        }
    }

    /// The map as it is now known.
    pub fn map(&self) -> &Arc<SubnetMap> {
        &self.map
    }

    /// How far the own leases have come.
    pub fn lease_state(&self) -> LeaseState {
        if self.departure.is_some() {
            return LeaseState::Left;
        }
        if let (true, Some((other, _))) = (self.suspended, self.duplicate) {
            return LeaseState::Suspended { other };
        }
        let Summary { held, returning, claiming, exhausted, blocked } = self.claims.summary();
        if self.claims.is_complete() {
            LeaseState::Held { prefixes: held }
        } else if !returning.is_empty() {
            LeaseState::Returning { prefixes: returning }
        } else if !claiming.is_empty() {
            LeaseState::Claiming { held, claiming }
        } else if let Some((prefix, by)) = blocked {
            LeaseState::Blocked { held, prefix, by }
        } else if !exhausted.is_empty() {
            LeaseState::Exhausted { held, ranges: exhausted }
        } else if held.is_empty() {
            LeaseState::Waiting
        } else {
            LeaseState::Claiming { held, claiming }
        }
    }

    /// Totals since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.local.id
    }

    /// Opens a datagram and takes what may be believed.
    fn open(&mut self, from: SocketAddr, datagram: &[u8]) -> Result<(), Refused> {
        let opened = self.envelopes.open(from, datagram, self.now)?;
        for answer in opened.answers {
            if !matches!(answer, Outgoing::Challenge { .. }) {
                // Whoever wants a proof is there.
                self.seeds.answered(from, &self.config.timing, self.now);
            }
            self.push_out(from, answer);
        }
        self.counters.unproven += u64::from(opened.unproven);
        match opened.body {
            // Whoever says goodbye only answers questions about that.
            Some(message) if self.departure.is_none() => self.receive(from, &message),
            Some(_) | None => Ok(()),
        }
    }

    fn note_stranger(&mut self, from: SocketAddr, datagram: &[u8], reason: Refused) {
        if let Some(stranger) = self.strangers.note(from, datagram, reason, self.now) {
            self.event(Event::Stranger(stranger));
        }
    }

    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Draws the conclusions from whatever was just heard.
    fn settle(&mut self) {
        if self.departure.is_none() {
            self.follow_news();
            self.resume_if_alone();
            if !self.suspended {
                self.tend_claims();
            }
            self.publish();
            self.publish_pods();
        }
        while let Some((to, message)) = self.swim.poll_transmit() {
            self.push_out(to, Outgoing::Message(message));
        }
        if (self.dirty || self.pod_sync.is_dirty())
            && self.now >= self.viewed + self.config.timing.view
        {
            self.view();
        }
    }

    /// Decides on leases, if anything that decides has changed.
    fn tend_claims(&mut self) {
        let is_informed = self.synced || self.now >= self.claim_deadline();
        // What cannot be saved could not be held either.
        let may_claim = is_informed && self.disk_trouble.is_none();
        let looked = (is_informed, may_claim);
        let changed = self.store.changes() != self.claims_seen || looked != self.claims_looked;
        let due = self.claims.poll_timeout().is_some_and(|at| at <= self.now);
        if changed {
            self.follow_origin(is_informed);
        }
        if changed || due || (may_claim && self.claims.is_seeking()) {
            self.claims_looked = looked;
            self.claims_seen = self.store.changes();
            let changes = self.claims.tick(&self.store, is_informed, may_claim, self.now);
            self.apply_changes(changes);
        }
    }

    fn follow_news(&mut self) {
        for news in self.swim.take_news() {
            self.dirty = true;
            let member = match news {
                News::Changed(member) => member,
                News::Accused(member) => {
                    self.hear(member);
                    continue;
                }
                News::Renewed => continue,
            };
            let alive = self.swim.state(member.id, member.address);
            let alive = alive.is_some_and(|(_, state)| state != foca::State::Down);
            let outdated = self.store.get(member.id).is_none_or(|stored| {
                stored.record.left || stored.record.incarnation < member.incarnation
            });
            if alive && outdated && member.id != self.local.id {
                self.send(member.address, Message::Request { ids: vec![member.id] });
            }
        }
    }

    /// Asks a node that others declared dead, and that routes lead to, whether it is.
    fn hear(&mut self, member: Identity) {
        let (id, address) = (member.id, member.address);
        let is_routed = self.map.members.get(&id).is_some_and(|known| {
            known.state.is_active() && SocketAddr::new(known.underlay, known.gossip_port) == address
        });
        let time = self.config.timing.appeal;
        if is_routed && self.appeals.open((id, address), time, self.now) {
            let view = self.view_of(id, address);
            let hello = self.hello(Some(view));
            self.send(address, hello);
        }
    }

    fn tend_appeals(&mut self) {
        if self.appeals.poll_timeout().is_none_or(|at| at > self.now) {
            return;
        }
        let swim = &self.swim;
        let lives = |(id, address)| {
            swim.state(id, address).is_none_or(|(_, state)| state != foca::State::Down)
        };
        let (due, ended) = self.appeals.tend(self.config.timing.appeal, self.now, lives);
        self.dirty |= ended;
        for (id, address) in due {
            let view = self.view_of(id, address);
            let hello = self.hello(Some(view));
            self.send(address, hello);
        }
    }

    fn apply_changes(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.dirty = true;
            let event = match change {
                Change::Save => {
                    self.unsaved = true;
                    continue;
                }
                Change::Claimed(prefix) => Event::LeaseClaimed { prefix },
                Change::Held(prefix) => Event::LeaseHeld { prefix },
                Change::Lost { prefix, winner, held } => {
                    if held {
                        self.retain(prefix);
                    }
                    self.unsaved = true;
                    Event::LeaseLost { prefix, winner, held }
                }
                Change::Exhausted { v6 } => Event::LeaseExhausted { v6 },
                Change::Unproven(prefix) => Event::LeaseUnproven { prefix },
                Change::Released { prefix, why } => {
                    self.retain(prefix);
                    self.unsaved = true;
                    Event::LeaseReleased { prefix, why }
                }
                Change::Blocked { prefix, by } => Event::LeaseBlocked { prefix, by },
            };
            self.event(event);
        }
    }

    /// When this node decides by itself what is its own, if nobody has told it what others hold.
    fn claim_deadline(&self) -> Instant {
        let knows_others = !self.seeds.is_empty() || self.swim.active().next().is_some();
        if !self.local.has_seeds && !knows_others {
            return self.asking_since;
        }
        let wait = Duration::from_millis(u64::from(self.config.lease.claim_wait_ms));
        // A seed that has answered once will tell the rest, unless very much is lost.
        self.asking_since + if self.seeds.any_answered() { wait * 4 } else { wait }
    }

    fn dial_seeds(&mut self) {
        if self.seeds.poll_timeout().is_none_or(|at| at > self.now) {
            return;
        }
        let members: BTreeSet<_> = self.swim.active().map(|member| member.address).collect();
        let timing = &self.config.timing;
        let alone = members.is_empty();
        let due = self.seeds.due(timing, self.now, alone, |seed| members.contains(&seed));
        for (address, unanswered) in due {
            if unanswered == 2 || (unanswered > 0 && unanswered % 10 == 0) {
                self.event(Event::SeedUnreachable { address, unanswered });
            }
            let hello = self.hello(None);
            self.send(address, hello);
        }
    }

    /// Tries one of the dead again: perhaps it was not dead, but cut off.
    fn dial_dead(&mut self) {
        let own = self.local.id;
        let dead = self.store.iter().filter(|stored| {
            let is_dead = stored.dead_since.is_some() && !stored.record.left;
            (is_dead || self.is_forgotten_suspect(stored.record.id)) && stored.record.id != own
        });
        let dead: Vec<_> = dead.map(|dead| (dead.record.id, dead.record.address())).collect();
        let chosen = dead.into_iter().choose(&mut self.rng);
        if let Some((id, address)) = chosen {
            let view = self.view_of(id, address);
            let hello = self.hello(Some(view));
            self.send(address, hello);
        }
        if let (true, Some((twin, _))) = (self.suspended, self.duplicate) {
            let hello = self.hello(None);
            self.send(twin, hello);
        }
    }

    /// What is known of a node at an address.
    fn view_of(&self, id: NodeId, address: SocketAddr) -> View {
        let state = self.swim.state(id, address);
        let must_renew = |state| match state {
            foca::State::Down => true,
            foca::State::Suspect => self.is_forgotten_suspect(id),
            foca::State::Alive => false,
        };
        let incarnation = state.map(|(known, state)| (known.incarnation, must_renew(state)));
        let known = self.store.get(id).map(|stored| stored.record.version);
        let version = known.or_else(|| self.store.grave(id));
        View { id, incarnation, version, buried: known.is_none() && version.is_some() }
    }

    /// Whether a node has been suspect for longer than suspicions last. Whoever suspected it has begun a
    /// new life since, and the suspicion's end was lost with the old one; nor does the suspect know of it.
    /// Only a new life of its own clears it then.
    fn is_forgotten_suspect(&self, id: NodeId) -> bool {
        self.map.members.get(&id).is_some_and(|member| {
            member.state == MemberState::Suspect
                && self.now >= member.since + 2 * self.config.timing.suspect
        })
    }

    fn send(&mut self, to: SocketAddr, message: Message) {
        let envelope = Envelope { from: self.swim.identity(), clock: self.claims.clock(), message };
        self.push_out(to, Outgoing::Message(codec::encode(&envelope)));
    }

    /// "Here I am", with what is thought of the receiver.
    fn hello(&self, you: Option<View>) -> Message {
        Message::Hello { you, keys: self.envelopes.keys() }
    }

    fn push_out(&mut self, to: SocketAddr, what: Outgoing) {
        if self.outbox.len() < OUTBOX_MAX {
            self.outbox.push_back((to, what));
        } else {
            self.counters.overflowed += 1;
        }
    }

    fn event(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
            self.counters.events_lost += 1;
        }
        self.events.push_back(event);
    }
}
