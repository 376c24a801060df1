//! Who announces which address, and what it says on the link. Pure: frames and `now` in, frames out.
//!
//! Every node ranks the nodes that may announce an address by a hash of both, so all agree without talking. The first
//! that is alive announces. The two behind it ask it again and again, as any host would, whether it has the address:
//! when it falls silent, the next in rank has it a second later, long before the cluster takes the node for dead.
//!
//! Nobody gives an address up before the next has it: a node that comes back is taken for silent until it answers,
//! and answers only when it has been there for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use overlay::node_id::NodeId;
use vswitch::mac::Mac;
use vswitch::service::stable_hash;

use super::frames::{self, Said, Speaker};

/// How often who announces is asked.
pub(super) const ASK: Duration = Duration::from_millis(200);

/// How many questions in a row without an answer mean that it is silent.
const MISSED_MAX: u32 = 4;

/// How often a silent node that ranks higher is asked whether it is there again, and a node for its Ethernet address.
const ASK_SILENT: Duration = Duration::from_secs(1);

/// How many nodes behind the one that announces watch it.
const WATCHERS: usize = 2;

/// How long after its start a node announces nothing: it may not know all endpoints yet.
const HOLD: Duration = Duration::from_secs(5);

/// When an address is claimed after it has come here: hosts may miss one claim.
const CLAIMS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// When an address is claimed again because somebody else claims it, too; no sooner than that after another claim.
const CONTESTED: Duration = Duration::from_secs(1);

/// What is to be announced, and by whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The nodes that are alive with their underlay addresses, this one included.
    pub nodes: BTreeMap<NodeId, IpAddr>,
    /// The addresses, each with the nodes that may announce it.
    pub addresses: BTreeMap<IpAddr, BTreeSet<NodeId>>,
}

/// The order in which nodes announce `address`.
pub fn rank(address: IpAddr, candidates: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let words = |bytes: &[u8]| -> Vec<u64> {
        let word = |chunk: &[u8]| chunk.iter().fold(0, |word, byte| (word << 8) | u64::from(*byte));
        bytes.chunks(8).map(word).collect()
    };
    let seed = match address {
        IpAddr::V4(v4) => words(&v4.octets()),
        IpAddr::V6(v6) => words(&v6.octets()),
    };
    let seed = stable_hash(0, &seed);
    let mut ranked: Vec<NodeId> = candidates.iter().copied().collect();
    ranked.sort_by_cached_key(|id| std::cmp::Reverse((stable_hash(seed, &words(&id.0)), *id)));
    ranked
}

/// One node's part in announcing.
#[derive(Debug)]
pub(super) struct Core {
    me: NodeId,
    speaker: Speaker,
    /// When this node may announce.
    ready: Instant,
    nodes: BTreeMap<NodeId, IpAddr>,
    /// What is known of other nodes' Ethernet addresses.
    macs: BTreeMap<NodeId, Mac>,
    guards: BTreeMap<IpAddr, Guard>,
    next_resolve: Instant,
}

/// What is known of one address.
#[derive(Debug)]
struct Guard {
    rank: Vec<NodeId>,
    /// Nodes that do not answer for it.
    silent: BTreeSet<NodeId>,
    is_mine: bool,
    /// When it is to be claimed.
    claims: Vec<Instant>,
    last_claim: Option<Instant>,
    next_ask: Instant,
    next_ask_silent: Instant,
    /// Who was asked last, and how often in a row it has not answered.
    asked: Option<(NodeId, u32)>,
}

impl Core {
    pub(super) fn new(me: NodeId, speaker: Speaker, now: Instant) -> Self {
        Self {
            me,
            speaker,
            ready: now + HOLD,
            nodes: BTreeMap::new(),
            macs: BTreeMap::new(),
            guards: BTreeMap::new(),
            next_resolve: now,
        }
    }

    /// Who announces each address, as far as this node knows: `None` when nobody may.
    pub(super) fn holders(&self) -> BTreeMap<IpAddr, Option<NodeId>> {
        self.guards.iter().map(|(address, guard)| (*address, guard.holder())).collect()
    }

    /// Takes up another link, or other addresses of this node there.
    pub(super) fn set_speaker(&mut self, speaker: Speaker) {
        self.speaker = speaker;
    }

    /// Takes up what is to be announced.
    pub(super) fn set(&mut self, wanted: &Wanted, now: Instant) {
        self.nodes.clone_from(&wanted.nodes);
        self.macs.retain(|id, _| wanted.nodes.contains_key(id));
        self.guards.retain(|address, _| wanted.addresses.contains_key(address));
        for (address, candidates) in &wanted.addresses {
            let rank = rank(*address, candidates);
            let guard = self.guards.entry(*address).or_insert_with(|| Guard::new(now));
            guard.set_rank(rank, self.me);
        }
    }

    /// Takes up a frame from the link. What is to be sent is added to `out`.
    pub(super) fn take(&mut self, frame: &[u8], now: Instant, out: &mut Vec<Vec<u8>>) {
        match frames::read(frame) {
            Some(Said::Asks { target, asker }) => {
                self.learn(asker.1, asker.0);
                if self.guards.get(&target).is_some_and(|guard| guard.is_mine) {
                    out.extend(frames::answer(&self.speaker, target, asker));
                }
            }
            Some(Said::Has { address, mac }) => {
                self.learn(address, mac);
                let claimant = self.macs.iter().find(|(_, known)| **known == mac);
                let claimant = claimant.map(|(id, _)| *id);
                if let Some(guard) = self.guards.get_mut(&address)
                    && mac != self.speaker.mac
                {
                    guard.hear(claimant, self.me, now);
                }
            }
            None => {}
        }
    }

    fn learn(&mut self, address: IpAddr, mac: Mac) {
        let node = self.nodes.iter().find(|(_, underlay)| **underlay == address);
        if let Some((id, _)) = node.filter(|(id, _)| **id != self.me) {
            self.macs.insert(*id, mac);
        }
    }

    /// Does what is due. To be called a few times within [`ASK`]. What is to be sent is added to `out`.
    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        let Self { me, speaker, ready, nodes, macs, guards, next_resolve } = self;
        // Who may not announce yet need not find out whether others do.
        let is_ready = now >= *ready;
        let resolves = now >= *next_resolve;
        let mut unknown = BTreeSet::new();
        for (address, guard) in guards {
            let watched = if is_ready { guard.watched(*me, now) } else { Vec::new() };
            for id in watched {
                // Nobody can be missed who was never heard.
                if let Some(mac) = macs.get(&id) {
                    guard.note_asked(id);
                    out.extend(frames::ask(speaker, Some(*mac), *address));
                }
            }
            if resolves {
                let before = guard.rank.iter().take_while(|id| **id != *me);
                unknown.extend(before.filter(|id| !macs.contains_key(id)).copied());
            }
            guard.decide(*me, *ready, now);
            let due = guard.claims.iter().filter(|due| **due <= now).count();
            if due > 0 {
                guard.claims.drain(..due);
                guard.last_claim = Some(now);
                out.extend(frames::claim(speaker, *address));
            }
        }
        if resolves {
            *next_resolve = now + ASK_SILENT;
            let underlays = unknown.iter().filter_map(|id| nodes.get(id));
            out.extend(underlays.filter_map(|address| frames::ask(speaker, None, *address)));
        }
    }
}

impl Guard {
    fn new(now: Instant) -> Self {
        Self {
            rank: Vec::new(),
            silent: BTreeSet::new(),
            is_mine: false,
            claims: Vec::new(),
            last_claim: None,
            next_ask: now,
            next_ask_silent: now,
            asked: None,
        }
    }

    fn set_rank(&mut self, rank: Vec<NodeId>, me: NodeId) {
        if rank == self.rank {
            return;
        }
        self.silent.retain(|id| rank.contains(id));
        if self.is_mine && rank.contains(&me) {
            let before = rank.iter().take_while(|id| **id != me);
            self.silent.extend(before.filter(|id| !self.rank.contains(id)));
        }
        self.rank = rank;
    }

    fn holder(&self) -> Option<NodeId> {
        self.rank.iter().copied().find(|id| !self.silent.contains(id))
    }

    /// Who is to be asked now.
    fn watched(&mut self, me: NodeId, now: Instant) -> Vec<NodeId> {
        let holder = self.holder();
        let place = |id: NodeId| self.rank.iter().position(|other| *other == id);
        let (Some(own), Some(first)) = (place(me), holder.and_then(place)) else {
            return Vec::new();
        };
        let mut watched = Vec::new();
        if now >= self.next_ask_silent {
            self.next_ask_silent = now + ASK_SILENT;
            let before = self.rank.iter().take(own);
            watched.extend(before.filter(|id| self.silent.contains(id)).copied());
        }
        if first < own && own - first <= WATCHERS && now >= self.next_ask {
            self.next_ask = now + ASK;
            watched.extend(holder);
        }
        watched
    }

    fn note_asked(&mut self, id: NodeId) {
        if self.holder() != Some(id) {
            return;
        }
        let missed = match self.asked {
            Some((asked, missed)) if asked == id => missed + 1,
            Some(_) | None => 0,
        };
        self.asked = Some((id, missed));
        if missed >= MISSED_MAX {
            self.silent.insert(id);
            self.asked = None;
        }
    }

    /// Somebody says that it has the address.
    fn hear(&mut self, claimant: Option<NodeId>, me: NodeId, now: Instant) {
        if let Some(id) = claimant {
            self.silent.remove(&id);
            let place = |id: NodeId| self.rank.iter().position(|other| *other == id);
            if let (Some(theirs), Some(own)) = (place(id), place(me))
                && theirs < own
            {
                // It found those before it silent. They are asked again, too.
                self.silent.extend(self.rank.iter().take(theirs).copied());
            }
            if self.asked.is_some_and(|(asked, _)| asked == id) {
                self.asked = None;
            }
        }
        let recently = self.last_claim.is_some_and(|last| now < last + CONTESTED);
        if self.is_mine && self.holder() == Some(me) && self.claims.is_empty() && !recently {
            self.claims.push(now + CONTESTED);
        }
    }

    /// Whether the address is this node's, from now on.
    fn decide(&mut self, me: NodeId, ready: Instant, now: Instant) {
        let is_mine = self.holder() == Some(me) && now >= ready;
        if is_mine && !self.is_mine {
            self.claims = CLAIMS.iter().map(|after| now + *after).collect();
        }
        if !is_mine {
            self.claims.clear();
        }
        self.is_mine = is_mine;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: &str = "192.0.2.240";

    fn id(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Nodes on one link, where every frame reaches all others at once.
    struct Link {
        now: Instant,
        nodes: BTreeMap<u8, Core>,
        dead: BTreeSet<u8>,
        claims: Vec<(u8, Duration)>,
        start: Instant,
    }

    impl Link {
        fn new(count: u8) -> Self {
            let now = Instant::now();
            let mut link = Self {
                now,
                nodes: BTreeMap::new(),
                dead: BTreeSet::new(),
                claims: Vec::new(),
                start: now,
            };
            (1..=count).for_each(|number| link.add(number));
            link.set(&(1..=count).collect::<Vec<_>>());
            link
        }

        fn add(&mut self, number: u8) {
            let speaker = Speaker {
                mac: Mac([2, 0, 0, 0, 0, number]),
                v4: Some([192, 0, 2, number].into()),
                v6: Some(format!("fe80::{number}").parse().unwrap()),
            };
            self.nodes.insert(number, Core::new(id(number), speaker, self.now));
        }

        /// What all nodes take up: these are alive, and any may announce.
        fn set(&mut self, alive: &[u8]) {
            let nodes: BTreeMap<_, _> =
                alive.iter().map(|n| (id(*n), IpAddr::from([192, 0, 2, *n]))).collect();
            let addresses = [(ip(VIP), nodes.keys().copied().collect())].into();
            let wanted = Wanted { nodes, addresses };
            for core in self.nodes.values_mut() {
                core.set(&wanted, self.now);
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.now += Duration::from_millis(50);
                for from in self.nodes.keys().copied().collect::<Vec<_>>() {
                    let mut out = Vec::new();
                    if !self.dead.contains(&from) {
                        self.nodes.get_mut(&from).unwrap().tick(self.now, &mut out);
                    }
                    self.send(from, out);
                }
            }
        }

        fn send(&mut self, from: u8, frames: Vec<Vec<u8>>) {
            for frame in frames {
                let said = frames::read(&frame).unwrap();
                if frame[..6] == [0xff; 6] && matches!(said, Said::Has { .. }) {
                    self.claims.push((from, self.now - self.start));
                }
                // The kernels answer for the nodes' own addresses, dead daemons or not.
                if let Said::Asks { target: IpAddr::V4(target), asker } = said
                    && let Some(number @ 1..200) = Some(target.octets()[3])
                {
                    let mac = Mac([2, 0, 0, 0, 0, number]);
                    let speaker = Speaker { mac, v4: None, v6: None };
                    let reply = frames::answer(&speaker, target.into(), asker).unwrap();
                    let core = self.nodes.get_mut(&from).unwrap();
                    core.take(&reply, self.now, &mut Vec::new());
                }
                for to in self.nodes.keys().copied().collect::<Vec<_>>() {
                    if to == from || self.dead.contains(&to) {
                        continue;
                    }
                    let mut out = Vec::new();
                    self.nodes.get_mut(&to).unwrap().take(&frame, self.now, &mut out);
                    self.send(to, out);
                }
            }
        }

        /// Who answers for the address now.
        fn holders(&self) -> Vec<u8> {
            let alive = self.nodes.iter().filter(|(number, _)| !self.dead.contains(number));
            let mine = alive.filter(|(_, core)| core.guards.values().any(|guard| guard.is_mine));
            mine.map(|(number, _)| *number).collect()
        }

        fn ranked(&self) -> Vec<u8> {
            let all = self.nodes.keys().map(|number| id(*number)).collect();
            rank(ip(VIP), &all).into_iter().map(|id| id.0[0]).collect()
        }
    }

    #[test]
    fn one_of_three_announces_and_says_so() {
        let mut link = Link::new(3);
        link.run(HOLD - Duration::from_millis(100));
        assert!(link.holders().is_empty());
        link.run(Duration::from_secs(5));
        let first = link.ranked()[0];
        assert_eq!(link.holders(), [first]);
        // Five times a request and a reply, and no more.
        assert!(link.claims.iter().all(|(from, _)| *from == first));
        assert_eq!(link.claims.len(), 2 * CLAIMS.len());
    }

    #[test]
    fn the_next_has_it_within_a_second_and_a_quarter_and_the_one_behind_it_too() {
        let mut link = Link::new(5);
        link.run(Duration::from_secs(12));
        let ranked = link.ranked();
        for ix in 0..3 {
            let died = link.now;
            link.dead.insert(ranked[ix]);
            link.claims.clear();
            while link.holders().is_empty() {
                link.run(Duration::from_millis(50));
                assert!(link.now < died + Duration::from_secs(3), "after {ix}");
            }
            assert!(link.now - died <= Duration::from_millis(1250), "{:?}", link.now - died);
            assert_eq!(link.holders(), [ranked[ix + 1]]);
            assert_eq!(link.claims.len(), 2, "claimed at once");
            link.run(Duration::from_secs(1));
        }
    }

    #[test]
    fn both_die_at_once() {
        let mut link = Link::new(4);
        link.run(Duration::from_secs(12));
        let ranked = link.ranked();
        link.dead.extend(&ranked[..2]);
        link.run(Duration::from_millis(2500));
        assert_eq!(link.holders(), [ranked[2]]);
    }

    #[test]
    fn who_comes_back_gets_it_without_a_moment_between() {
        let mut link = Link::new(3);
        link.run(Duration::from_secs(12));
        let [first, second, third] = link.ranked()[..] else { panic!("three nodes") };
        link.dead.insert(first);
        link.run(Duration::from_secs(2));
        // The cluster takes it for dead, and later for alive again.
        link.set(&[second, third]);
        link.run(Duration::from_secs(3));
        link.dead.remove(&first);
        link.add(first);
        link.set(&[1, 2, 3]);
        for _ in 0..200 {
            link.run(Duration::from_millis(50));
            assert!(!link.holders().is_empty(), "at {:?}", link.now - link.start);
        }
        assert_eq!(link.holders(), [first]);
    }

    #[test]
    fn a_claim_by_a_stranger_is_answered_and_not_for_ever() {
        let mut link = Link::new(1);
        link.run(Duration::from_secs(12));
        link.claims.clear();
        let stranger = Speaker { mac: Mac([2, 0, 0, 0, 9, 9]), v4: None, v6: None };
        for _ in 0..100 {
            let frame = &frames::claim(&stranger, ip(VIP))[0];
            link.nodes.get_mut(&1).unwrap().take(frame, link.now, &mut Vec::new());
            link.run(Duration::from_millis(50));
        }
        assert!((2..=2 * 5).contains(&link.claims.len()), "{:?}", link.claims);
        assert_eq!(link.holders(), [1]);
    }

    #[test]
    fn ranks_are_spread_and_stable() {
        let all: BTreeSet<NodeId> = (1..=10).map(id).collect();
        let fewer: BTreeSet<NodeId> = (2..=10).map(id).collect();
        let mut counts: BTreeMap<NodeId, usize> = BTreeMap::new();
        for last in 0..=255 {
            let address = IpAddr::from([192, 0, 2, last]);
            let ranked = rank(address, &all);
            *counts.entry(ranked[0]).or_default() += 1;
            let left: Vec<_> = ranked.into_iter().filter(|node| *node != id(1)).collect();
            assert_eq!(left, rank(address, &fewer), "the others keep their order");
        }
        assert!(counts.values().all(|count| (10..50).contains(count)), "{counts:?}");
    }
}
