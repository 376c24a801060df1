//! The failure detector: foca, with a clock and an outbox.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use foca::{
    AccumulatingRuntime, Foca, Identity as _, Member, NoCustomBroadcast, OwnedNotification, State,
    Timer,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::codec::{self, DATAGRAM_MAX, ENVELOPE_LEN, SwimCodec};
use super::counters::Refused;
use super::identity::Identity;
use super::record::stir;
use super::timing::Timing;
use crate::node_id::NodeId;

/// Whether nodes are alive.
pub(super) struct Swim {
    foca: Foca<Identity, SwimCodec, StdRng, NoCustomBroadcast>,
    timing: Timing,
    nodes_max: usize,
    tuned_for: usize,
    timers: BTreeMap<(Instant, u64), Timer<Identity>>,
    timers_made: u64,
    /// Members with a suspicion that may end their lives here, and when they were heard last since it began. At most
    /// as many as there are members.
    suspects: BTreeMap<Identity, Option<Instant>>,
    runtime: AccumulatingRuntime<Identity>,
    outbox: VecDeque<(SocketAddr, Vec<u8>)>,
    news: Vec<News>,
}

/// What happened in the failure detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Somebody came up, went down or returned in a new life.
    Changed(Identity),
    /// Others say of somebody that it is dead.
    Accused(Identity),
    /// This node was declared dead, and lives on in a new life.
    Renewed,
}

impl fmt::Debug for Swim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Swim")
            .field("identity", self.foca.identity())
            .field("active", &self.foca.num_members())
            .finish_non_exhaustive()
    }
}

impl Swim {
    pub(super) fn new(identity: Identity, timing: Timing, nodes_max: usize, seed: u64) -> Self {
        let config = timing.swim(1, DATAGRAM_MAX - ENVELOPE_LEN);
        Self {
            foca: Foca::new(identity, config, StdRng::seed_from_u64(seed), SwimCodec),
            timing,
            nodes_max,
            tuned_for: 1,
            timers: BTreeMap::new(),
            timers_made: 0,
            suspects: BTreeMap::new(),
            runtime: AccumulatingRuntime::new(),
            outbox: VecDeque::new(),
            news: Vec::new(),
        }
    }

    /// This node, in its present life.
    pub(super) fn identity(&self) -> Identity {
        *self.foca.identity()
    }

    /// All members that count as alive.
    pub(super) fn active(&self) -> impl Iterator<Item = Identity> {
        self.foca.iter_members().map(|member| *member.id())
    }

    /// Everybody that was ever heard of, with the state of their last life.
    pub(super) fn states(&self) -> impl Iterator<Item = (Identity, State)> {
        self.foca.iter_membership_state().map(|member| (*member.id(), member.state()))
    }

    /// A sum over all lives and states, whatever their order.
    pub(super) fn sum(&self) -> u64 {
        let weight = |(member, state): (Identity, State)| {
            let [a, b, c, d, e, f, g, h, ..] = member.id.0;
            let id = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            let port = u64::from(member.address.port());
            stir(stir(id ^ member.incarnation) ^ port << 2 ^ state as u64)
        };
        self.states().map(weight).fold(0, u64::wrapping_add)
    }

    /// The last life of the node `id` at `address`.
    pub(super) fn state(&self, id: NodeId, address: SocketAddr) -> Option<(Identity, State)> {
        self.states().find(|(member, _)| member.id == id && member.address == address)
    }

    fn is_down(&self, member: Identity) -> bool {
        self.state(member.id, member.address).is_some_and(|(_, state)| state == State::Down)
    }

    /// Takes a datagram's body, sent by `from`, of `header_len` bytes of header and a tail of news.
    pub(super) fn handle(
        &mut self,
        body: &[u8],
        header_len: usize,
        from: Identity,
        now: Instant,
    ) -> Result<(), Refused> {
        // Once there is no more room for members, news about others stay outside.
        let full = self.foca.iter_membership_state().len() >= self.nodes_max;
        let body = if full { body.get(..header_len).unwrap_or(body) } else { body };
        if let Some(heard) = self.suspects.get_mut(&from) {
            *heard = Some(now);
        }
        let result = self.foca.handle_data(body, &mut self.runtime);
        let known = self.news.len();
        self.collect(now);
        // What somebody says of itself is no hearsay.
        let told = self.news[known..].iter().filter_map(|news| match news {
            News::Changed(member) if member.addr() != from.addr() => Some(*member),
            News::Changed(_) | News::Accused(_) | News::Renewed => None,
        });
        let accused = told.filter(|member| self.is_down(*member)).map(News::Accused);
        let accused: Vec<_> = accused.collect();
        self.news.extend(accused);
        result.map_err(|error| match error {
            foca::Error::Decode(_)
            | foca::Error::MalformedPacket
            | foca::Error::CustomBroadcast(_) => Refused::Malformed,
            foca::Error::DataTooBig => Refused::Oversize,
            foca::Error::DataFromOurselves => Refused::OwnAddress,
            foca::Error::NotUndead
            | foca::Error::SameIdentity
            | foca::Error::NotConnected
            | foca::Error::IncompleteProbeCycle
            | foca::Error::IndirectForOurselves
            | foca::Error::Encode(_)
            | foca::Error::InvalidConfig => Refused::Protocol,
        })
    }

    /// Whether there is room for one more member.
    pub(super) fn has_room(&self) -> bool {
        self.foca.iter_membership_state().len() < self.nodes_max
    }

    /// Tells the failure detector of a member that somebody else sees alive.
    pub(super) fn introduce(&mut self, member: Identity, now: Instant) {
        let known = self.state(member.id, member.address);
        let news = known.is_none_or(|(known, _)| known.incarnation < member.incarnation);
        if news && (known.is_some() || self.has_room()) && member != self.identity() {
            let update = std::iter::once(Member::alive(member));
            // Encoding into memory is all that could fail in there.
            let _encoded = self.foca.apply_many(update, false, &mut self.runtime);
            self.collect(now);
        }
    }

    /// Tells the failure detector of a member that was dead already when this node first heard of it. Without
    /// that, whoever has not noticed yet that it is dead could make it live again.
    pub(super) fn note_dead(&mut self, member: Identity, now: Instant) {
        let is_new = self.state(member.id, member.address).is_none();
        if is_new && self.has_room() && member != self.identity() {
            let update = std::iter::once(Member::new(member, 0, State::Down));
            // Encoding into memory is all that could fail in there.
            let _encoded = self.foca.apply_many(update, false, &mut self.runtime);
            self.collect(now);
        }
    }

    /// Asks `member` to take this node in.
    pub(super) fn announce(&mut self, member: Identity, now: Instant) {
        let _encoded = self.foca.announce(member, &mut self.runtime);
        self.collect(now);
    }

    /// Goes on in a life that replaces every one up to `incarnation`.
    pub(super) fn overtake(&mut self, incarnation: u64, now: Instant) {
        let own = self.identity();
        if incarnation >= own.incarnation {
            let renewed = Identity { incarnation: incarnation + 1, ..own };
            let _encoded = self.foca.change_identity(renewed, &mut self.runtime);
            self.news.push(News::Renewed);
            self.collect(now);
        }
    }

    /// Says goodbye.
    pub(super) fn leave(&mut self, now: Instant) {
        let _encoded = self.foca.leave_cluster(&mut self.runtime);
        self.timers.clear();
        self.suspects.clear();
        self.collect(now);
    }

    /// Forgets a dead member.
    pub(super) fn forget(&mut self, member: Identity, now: Instant) {
        self.suspects.remove(&member);
        let _nothing = self.foca.handle_timer(Timer::RemoveDown(member), &mut self.runtime);
        self.collect(now);
    }

    /// Number of members that count as alive, this node included.
    pub(super) fn len(&self) -> usize {
        self.foca.num_members() + 1
    }

    /// Adjusts how often news are repeated, and how long suspects are given, to the size of the cluster.
    pub(super) fn tune(&mut self, timing: &Timing) {
        let nodes = self.len();
        if nodes.ilog2() != self.tuned_for.ilog2() || *timing != self.timing {
            self.tuned_for = nodes;
            self.timing.clone_from(timing);
            let config = self.timing.swim(nodes, DATAGRAM_MAX - ENVELOPE_LEN);
            let _same_periods = self.foca.set_config(config);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            let timer = entry.remove();
            let mut suspect = None;
            if let Timer::ChangeSuspectToDown { member_id, .. } = &timer {
                suspect = Some(*member_id);
            }
            if let Some(later) = suspect.and_then(|suspect| self.reprieve(suspect, now)) {
                self.schedule(later, timer);
                continue;
            }
            // An error tells that a late timer found another state than it was made for; foca has
            // already recovered then.
            let _recovered = self.foca.handle_timer(timer, &mut self.runtime);
            self.collect(now);
            // There may be several timers for one suspect, and of former suspicions.
            if let Some(suspect) = suspect.filter(|suspect| !self.is_suspect(*suspect)) {
                self.suspects.remove(&suspect);
            }
        }
    }

    /// Until when a suspicion that would end a life now has to wait: nobody dies of whom something was heard while the
    /// suspicion lasted, before nothing has been heard for as long as a suspicion lasts. Where much is lost, the suspect's
    /// own contradiction may be, while its other words come through.
    fn reprieve(&self, suspect: Identity, now: Instant) -> Option<Instant> {
        let heard = (*self.suspects.get(&suspect)?)?;
        let until = heard + self.timing.suspect;
        (until > now && self.is_suspect(suspect)).then_some(until)
    }

    fn is_suspect(&self, member: Identity) -> bool {
        self.state(member.id, member.address) == Some((member, State::Suspect))
    }

    fn schedule(&mut self, at: Instant, timer: Timer<Identity>) {
        self.timers_made += 1;
        self.timers.insert((at, self.timers_made), timer);
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.keys().next().map(|(at, _)| *at)
    }

    pub(super) fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outbox.pop_front()
    }

    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    fn collect(&mut self, now: Instant) {
        while let Some((to, body)) = self.runtime.to_send() {
            self.outbox.push_back((to.address, codec::encode_swim(&body)));
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            if let Timer::ChangeSuspectToDown { member_id, .. } = &timer {
                self.suspects.entry(*member_id).or_default();
            }
            self.schedule(now + after, timer);
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(member)
                | OwnedNotification::MemberDown(member)
                | OwnedNotification::Rename(_, member) => self.news.push(News::Changed(member)),
                OwnedNotification::Rejoin(_) => self.news.push(News::Renewed),
                OwnedNotification::Active
                | OwnedNotification::Idle
                | OwnedNotification::Defunct => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn swim(number: u8) -> Swim {
        let address = SocketAddr::from(([192, 0, 2, number], 7946));
        let identity = Identity { id: NodeId([number; 16]), address, incarnation: 1 };
        Swim::new(identity, Timing::default(), 10, number.into())
    }

    /// A node that judges another one, to which nothing gets, so that it cannot contradict.
    struct Pair {
        now: Instant,
        judge: Swim,
        suspect: Swim,
        is_heard: bool,
    }

    impl Pair {
        /// Goes on until the judge comes to this conclusion, for a minute at most. Returns what it was, and after how long.
        fn until(&mut self, wanted: State) -> (State, Duration) {
            let begun = self.now;
            loop {
                self.now += Duration::from_millis(100);
                self.judge.handle_timeout(self.now);
                while self.judge.poll_transmit().is_some() {}
                self.suspect.announce(self.judge.identity(), self.now);
                while let Some((_, datagram)) = self.suspect.poll_transmit() {
                    let body = &datagram[1..];
                    let (header, header_len) = SwimCodec::peek(body).unwrap();
                    if self.is_heard {
                        self.judge.handle(body, header_len, header.src, self.now).unwrap();
                    }
                }
                let Identity { id, address, .. } = self.suspect.identity();
                let (_, state) = self.judge.state(id, address).unwrap();
                if state == wanted || self.now > begun + Duration::from_secs(60) {
                    return (state, self.now - begun);
                }
            }
        }
    }

    #[test]
    fn a_suspicion_ends_no_life_of_which_something_is_heard() {
        let (now, mut judge, suspect) = (Instant::now(), swim(1), swim(2));
        judge.introduce(suspect.identity(), now);
        let mut pair = Pair { now, judge, suspect, is_heard: true };
        assert_eq!(pair.until(State::Suspect).0, State::Suspect, "it is asked in vain");
        assert_eq!(pair.until(State::Down).0, State::Suspect);
        pair.is_heard = false;
        let (state, after) = pair.until(State::Down);
        assert_eq!(state, State::Down);
        assert!(after <= Timing::default().suspect + Duration::from_millis(200), "{after:?}");
        assert!(pair.judge.suspects.is_empty());
    }
}
