//! The path to one node: does the tunnel carry anything, how long does it take, how long may packets be. Packetization
//! layer path MTU discovery (RFC 8899) for a tunnel, as a state machine without socket and clock.
//!
//! ```text
//!                 a beat is lost                     nothing comes back for 1.5 s
//!   ┌────────┐ ────────────────────► ┌─────────────┐ ─────────────────────────► ┌────────┐
//!   │ steady │                       │  searching  │                            │  down  │
//!   │ (beats)│ ◄──────────────────── │  (rounds)   │ ◄───────────────────────── │(beats) │
//!   └────────┘  the longest is found └─────────────┘      a beat is answered    └────────┘
//!        └────── time to look higher ────────▲
//! ```
//!
//! A **beat** is one probe: of full length where there is traffic, so that it finds out about long packets, too. A
//! **round** of a search sends probes of ten lengths at once, each up to three times, and leaves a tenth of the lengths
//! that were in question; three or four rounds find the last byte. The length that failed first is tried in each
//! round again, so that losses by chance alone make no path narrow. Of anything that is answered, also late, it is
//! known that it passes.
//!
//! What differs from RFC 8899, and why: the search starts at the top and not at `BASE_PLPMTU`, because both
//! interfaces' MTUs are known, nearly every path carries them, and a pod remembers each smaller number that it is told
//! for ten minutes. Several probes are under way at once, and timers follow the round-trip time (RFC 6298) down to 100 ms
//! where the RFC asks for seconds, because a black hole is to be noticed within three; they are few bytes in a network
//! between the nodes of one cluster.
//!
//! Lengths are of the outer IP packet, as an MTU is.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::gossip::UNDERLAY_MTU_MIN;

/// Pause between beats where there is traffic.
pub const BEAT: Duration = Duration::from_millis(500);

/// Pause between beats of a path that is down and has no traffic.
const DOWN_BEAT: Duration = Duration::from_secs(2);

/// Without any answer for this long a path is down. A daemon that is restarted, or stands still for a moment, is back
/// sooner.
pub const DOWN_AFTER: Duration = Duration::from_millis(1500);

/// First and longest pause before a path that is narrower than both ends is tried with longer packets again: the longest
/// is the `PMTU_RAISE_TIMER` of RFC 8899 §5.1.1. Each trial that fails doubles it.
pub const RAISE_MIN: Duration = Duration::from_secs(10);
/// See [`RAISE_MIN`].
pub const RAISE_MAX: Duration = Duration::from_secs(600);

/// One beat in so many is of full length where there is no traffic.
const FULL_EVERY: u32 = 6;

/// How often each length is tried in a round: `MAX_PROBES` of RFC 8899 §5.1.2.
const ATTEMPTS: u8 = 3;

/// Lengths between the bounds that are tried at once.
const WAYS: u32 = 8;

/// How long to wait for an answer: before the first one came, and at least and at most afterwards.
const TIMEOUT_FIRST: Duration = Duration::from_millis(300);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(1);

/// How late an answer may come and still be believed.
const LATE_MAX: Duration = Duration::from_secs(5);

/// Probes under way that are remembered: ten lengths, three times, in four rounds.
const SENT_MAX: usize = 128;

/// When there was no room to send, it is tried again after this.
const UNSENT_PAUSE: Duration = Duration::from_millis(50);

/// Whether a path carries anything.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PathState {
    /// No probe has been answered yet, and it is too early to say more.
    Untested,
    /// Probes are answered.
    Up,
    /// No probe is answered.
    Down,
}

impl PathState {
    /// All states.
    pub const ALL: [Self; 3] = [Self::Untested, Self::Up, Self::Down];

    /// The state's name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Untested => "untested",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Who said that a path carries no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Probes: longer packets vanish.
    Probes,
    /// The kernel: a router said so, or a route.
    Kernel,
}

/// Something was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Something passes; after how long a time in which nothing did, if it ever did before.
    Up {
        /// `None` for the first time.
        after: Option<Duration>,
    },
    /// Nothing passes any more.
    Down,
    /// The path carries more or less than it did.
    Mtu {
        /// What it carried.
        from: u16,
        /// What it carries.
        to: u16,
        /// Who said so.
        cause: Cause,
    },
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathReport {
    /// Whether it carries anything.
    pub state: PathState,
    /// Since when.
    pub since: Instant,
    /// Smoothed round-trip time.
    pub rtt: Option<Duration>,
    /// Lost beats among the last, at most 32: 0.0 to 1.0.
    pub loss: Option<f32>,
    /// Longest outer IP packet towards the node.
    pub mtu: u16,
    /// The lesser MTU of both ends' interfaces.
    pub max: u16,
    /// Longest inner IP packet that the node sends to this one, as it told.
    pub back: Option<u16>,
}

/// The state of one path.
#[derive(Debug)]
pub struct PathProbe {
    /// Length of the shortest probe.
    small: u16,
    max: u16,
    /// What the kernel knows, if it is less.
    kernel: Option<u16>,
    mtu: u16,
    state: PathState,
    since: Instant,
    is_active: bool,
    active_pause: Duration,
    idle_pause: Duration,
    beats: u32,
    /// `None` for a node that does not answer: it is not asked.
    next_beat: Option<Instant>,
    beat: Option<Sent>,
    search: Option<Search>,
    raise_at: Option<Instant>,
    raise_pause: Duration,
    outbox: VecDeque<Outgoing>,
    sent: VecDeque<Sent>,
    rtt: Rtt,
    losses: Losses,
    back: Option<u16>,
    findings: VecDeque<Finding>,
}

/// A probe that is to be sent.
#[derive(Debug, Clone, Copy)]
struct Outgoing {
    size: u16,
    is_beat: bool,
}

/// A probe that was sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    nonce: u64,
    size: u16,
    at: Instant,
}

/// What lengths pass: more than `low` is not known, `lost` did not.
#[derive(Debug)]
struct Search {
    /// Since when nothing was heard, as long as that is so.
    silent_since: Instant,
    low: Option<u16>,
    lost: u32,
    top: u16,
    candidates: Vec<Candidate>,
    attempt: u8,
    next_at: Instant,
    /// Some probe of this round was not sent, so that its loss says nothing.
    is_spoiled: bool,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    size: u16,
    is_answered: bool,
}

impl PathProbe {
    /// A path of which nothing is known but the lesser MTU of both ends. It is taken to carry that much until something
    /// else is found out. `small` is the length of the shortest probe; the first one goes at `first`, or never.
    pub fn new(
        small: u16,
        max: u16,
        idle_pause: Duration,
        now: Instant,
        first: Option<Instant>,
    ) -> Self {
        Self {
            small,
            max,
            kernel: None,
            mtu: max,
            state: PathState::Untested,
            since: now,
            is_active: false,
            active_pause: BEAT,
            idle_pause,
            beats: 0,
            next_beat: first,
            beat: None,
            search: None,
            raise_at: None,
            raise_pause: RAISE_MIN,
            outbox: VecDeque::new(),
            sent: VecDeque::new(),
            rtt: Rtt::default(),
            losses: Losses::default(),
            back: None,
            findings: VecDeque::new(),
        }
    }

    /// What is known.
    pub fn report(&self) -> PathReport {
        PathReport {
            state: self.state,
            since: self.since,
            rtt: self.rtt.smoothed,
            loss: self.losses.ratio(),
            mtu: self.mtu,
            max: self.max,
            back: self.back,
        }
    }

    /// Longest outer IP packet towards the node.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether the kernel knows that the path carries less than both ends. It forgets that without telling.
    pub fn is_narrow_by_kernel(&self) -> bool {
        self.kernel.is_some()
    }

    /// Takes up another lesser MTU of both ends.
    pub fn set_max(&mut self, max: u16, now: Instant) {
        if max == self.max {
            return;
        }
        let was_narrow = self.mtu < self.ceiling();
        self.max = max;
        let ceiling = self.ceiling();
        if !was_narrow || self.mtu > ceiling {
            self.mtu = ceiling;
        }
        self.restart(now);
    }

    /// Takes up whether there is traffic on this path.
    pub fn set_active(&mut self, is_active: bool, now: Instant) {
        if is_active && !self.is_active && self.beats > 0 {
            self.beat_by(now);
        }
        self.is_active = is_active;
    }

    /// Takes up how long to pause where there is traffic: [`BEAT`], or longer where there are very many such paths.
    pub fn set_active_pause(&mut self, active_pause: Duration) {
        self.active_pause = active_pause;
    }

    /// Takes up how long to pause where there is no traffic.
    pub fn set_idle_pause(&mut self, idle_pause: Duration) {
        self.idle_pause = idle_pause;
    }

    /// Takes up what the kernel knows of the path: the MTU of the route, or less if a router has said so.
    pub fn handle_kernel(&mut self, mtu: u16, now: Instant) {
        let kernel = (mtu < self.max).then_some(mtu.max(UNDERLAY_MTU_MIN));
        if kernel == self.kernel {
            return;
        }
        self.kernel = kernel;
        let ceiling = self.ceiling();
        if ceiling < self.mtu || self.next_beat.is_none() {
            self.set_mtu(ceiling, Cause::Kernel);
        }
        self.restart(now);
    }

    /// Looks anew: at what the path carries now, or at more than that.
    fn restart(&mut self, now: Instant) {
        self.search = None;
        self.beat = None;
        self.outbox.clear();
        if self.beats > 0 {
            self.beat_by(now);
        }
        self.raise_pause = RAISE_MIN;
        self.raise_at = (self.mtu < self.ceiling()).then_some(now);
    }

    /// Does what time has come for.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.sent.front().is_some_and(|sent| sent.at + LATE_MAX <= now) {
            self.sent.pop_front();
        }
        if let Some(search) = &self.search {
            if search.next_at <= now {
                self.go_on_searching(now);
            }
        } else if let Some(beat) = self.beat {
            if beat.at + self.rtt.timeout() <= now {
                self.lose_beat(now);
            }
        } else if self.state == PathState::Up && self.raise_at.is_some_and(|at| at <= now) {
            self.raise_at = None;
            self.search(Some(self.mtu), self.ceiling(), now);
        } else if self.next_beat.is_some_and(|at| at <= now) && self.outbox.is_empty() {
            self.outbox.push_back(Outgoing { size: self.beat_size(), is_beat: true });
        }
    }

    /// When [`PathProbe::handle_timeout`] has to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if let Some(search) = &self.search {
            return Some(search.next_at);
        }
        if let Some(beat) = &self.beat {
            return Some(beat.at + self.rtt.timeout());
        }
        let raise_at = self.raise_at.filter(|_| self.state == PathState::Up);
        raise_at.into_iter().chain(self.next_beat).min()
    }

    /// The length of the next probe that is to be sent now. `nonce` gives it its nonce.
    pub fn poll_transmit(&mut self, nonce: impl FnOnce() -> u64, now: Instant) -> Option<u16> {
        let Outgoing { size, is_beat } = self.outbox.pop_front()?;
        let sent = Sent { nonce: nonce(), size, at: now };
        if self.sent.len() == SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(sent);
        if is_beat {
            self.beats = self.beats.wrapping_add(1);
            self.beat = Some(sent);
            self.next_beat = Some(now + self.beat_pause());
        }
        Some(size)
    }

    /// The probe with this nonce found no room, so nothing can be said about it.
    pub fn handle_unsent(&mut self, nonce: u64, now: Instant) {
        self.sent.retain(|sent| sent.nonce != nonce);
        if self.beat.is_some_and(|beat| beat.nonce == nonce) {
            self.beat = None;
            self.next_beat = Some(now + UNSENT_PAUSE);
        }
        if let Some(search) = &mut self.search {
            search.is_spoiled = true;
        }
    }

    /// A reply came `at` this time, from a node that sends at most `back` bytes. Returns whether it was asked for.
    pub fn handle_reply(&mut self, nonce: u64, back: u16, at: Instant) -> bool {
        let Some(ix) = self.sent.iter().position(|sent| sent.nonce == nonce) else {
            return false;
        };
        let Some(Sent { size, at: sent_at, .. }) = self.sent.remove(ix) else {
            return false;
        };
        self.rtt.sample(at.saturating_duration_since(sent_at));
        self.back = Some(back);
        if self.beat.is_some_and(|beat| beat.nonce == nonce) {
            self.beat = None;
            self.losses.push(false);
        }
        let was = self.state;
        if was != PathState::Up {
            let after = match was {
                PathState::Down => Some(at.saturating_duration_since(self.since)),
                PathState::Untested | PathState::Up => None,
            };
            self.enter(PathState::Up, at);
            self.findings.push_back(Finding::Up { after });
        }
        if self.search.is_some() {
            self.note_answer(size, at);
        } else if was == PathState::Down {
            self.next_beat = Some(at + self.beat_pause());
            self.search(Some(size), self.ceiling(), at);
        } else if size > self.mtu && size <= self.ceiling() {
            // Late, but it passed.
            self.set_mtu(size, Cause::Probes);
            self.raise_at = (size < self.ceiling()).then_some(at);
        }
        true
    }

    /// What has been found out since the last call, the oldest first.
    pub fn poll_finding(&mut self) -> Option<Finding> {
        self.findings.pop_front()
    }

    fn ceiling(&self) -> u16 {
        self.kernel.map_or(self.max, |kernel| kernel.min(self.max))
    }

    fn beat_size(&self) -> u16 {
        let is_full = match self.state {
            PathState::Down => false,
            PathState::Untested => true,
            PathState::Up => self.is_active || self.beats.is_multiple_of(FULL_EVERY),
        };
        if is_full { self.mtu } else { self.small }
    }

    fn beat_pause(&self) -> Duration {
        match (self.is_active, self.state) {
            (true, _) => self.active_pause,
            (false, PathState::Down) => DOWN_BEAT,
            (false, PathState::Untested | PathState::Up) => self.idle_pause,
        }
    }

    fn beat_by(&mut self, now: Instant) {
        self.next_beat = self.next_beat.map(|at| at.min(now));
    }

    fn lose_beat(&mut self, now: Instant) {
        let Some(beat) = self.beat.take() else { return };
        self.losses.push(true);
        if self.state == PathState::Down {
            return;
        }
        self.search(None, self.mtu, now);
        if let Some(search) = &mut self.search {
            search.silent_since = beat.at;
        }
    }

    /// Begins to look for the longest that passes, up to `top`. `low` is known to pass.
    fn search(&mut self, low: Option<u16>, top: u16, now: Instant) {
        if low.is_some_and(|low| low >= top) {
            return self.finish(top, now);
        }
        self.search = Some(Search {
            silent_since: now,
            low,
            lost: u32::from(top) + 1,
            top,
            candidates: Vec::new(),
            attempt: 0,
            next_at: now,
            is_spoiled: false,
        });
        self.open_round(now);
    }

    fn open_round(&mut self, now: Instant) {
        if let Some(search) = &mut self.search {
            search.candidates = search.lengths(self.small);
            search.attempt = 0;
            search.is_spoiled = false;
        }
        self.attempt(now);
    }

    /// Sends what of the round has not been answered.
    fn attempt(&mut self, now: Instant) {
        let timeout = self.rtt.timeout();
        let Some(search) = &mut self.search else { return };
        search.attempt += 1;
        search.next_at = now + timeout;
        self.outbox.clear();
        let open = search.candidates.iter().filter(|candidate| !candidate.is_answered);
        self.outbox.extend(open.map(|candidate| Outgoing { size: candidate.size, is_beat: false }));
    }

    fn go_on_searching(&mut self, now: Instant) {
        let Some(search) = &mut self.search else { return };
        if search.attempt < ATTEMPTS {
            return self.attempt(now);
        }
        let answered = search.candidates.iter().filter(|candidate| candidate.is_answered);
        let Some(best) = answered.map(|candidate| candidate.size).max() else {
            if search.low.take().is_some() {
                // Not even that passes any more: from the beginning.
                search.lost = u32::from(search.top) + 1;
                search.silent_since = now;
            } else if now.saturating_duration_since(search.silent_since) >= DOWN_AFTER {
                return self.go_down(now);
            }
            return self.open_round(now);
        };
        let low = search.low.map_or(best, |low| low.max(best));
        search.low = Some(low);
        if !search.is_spoiled {
            let lost = search.candidates.iter().map(|candidate| candidate.size);
            let lost = lost.filter(|size| *size > low).min();
            search.lost = lost.map_or(search.lost, |lost| search.lost.min(lost.into()));
        }
        if low < UNDERLAY_MTU_MIN && search.lost <= UNDERLAY_MTU_MIN.into() {
            self.finish(UNDERLAY_MTU_MIN, now);
        } else if search.lost <= u32::from(low) + 1 {
            self.finish(low, now);
        } else {
            self.open_round(now);
        }
    }

    /// A probe of this length passed, so shorter ones do, too.
    fn note_answer(&mut self, size: u16, at: Instant) {
        let Some(search) = &mut self.search else { return };
        for candidate in &mut search.candidates {
            candidate.is_answered |= candidate.size <= size;
        }
        search.low = search.low.map(|low| low.max(size));
        if size >= search.top {
            let top = search.top;
            self.finish(top, at);
        }
    }

    /// Ends the search: the path carries `size`.
    fn finish(&mut self, size: u16, now: Instant) {
        let was = self.mtu;
        let looked_higher = self.search.take().is_none_or(|search| search.top > was);
        self.outbox.clear();
        self.set_mtu(size, Cause::Probes);
        self.next_beat = Some(now + self.beat_pause());
        if size == self.ceiling() {
            self.raise_pause = RAISE_MIN;
            self.raise_at = None;
        } else if size != was {
            self.raise_pause = RAISE_MIN;
            self.raise_at = Some(now + self.raise_pause);
        } else if looked_higher {
            self.raise_pause = (self.raise_pause * 2).min(RAISE_MAX);
            self.raise_at = Some(now + self.raise_pause);
        }
    }

    fn go_down(&mut self, now: Instant) {
        self.search = None;
        self.outbox.clear();
        self.enter(PathState::Down, now);
        self.findings.push_back(Finding::Down);
        self.next_beat = Some(now + self.beat_pause());
    }

    fn enter(&mut self, state: PathState, now: Instant) {
        self.state = state;
        self.since = now;
    }

    fn set_mtu(&mut self, mtu: u16, cause: Cause) {
        if mtu != self.mtu {
            self.findings.push_back(Finding::Mtu { from: self.mtu, to: mtu, cause });
            self.mtu = mtu;
        }
    }
}

impl Search {
    /// The lengths of the next round: one that is known to pass, or the shortest; evenly many between what passes and
    /// what does not; and the top.
    fn lengths(&self, small: u16) -> Vec<Candidate> {
        let floor = UNDERLAY_MTU_MIN.min(self.top);
        let low = self.low.unwrap_or(0).max(floor);
        let gap = self.lost.saturating_sub(low.into());
        let between = (1..=WAYS).map(|way| u32::from(low) + gap * way / (WAYS + 1));
        let between = between.filter(|size| *size > low.into() && *size < self.lost);
        let between = between.filter_map(|size| u16::try_from(size).ok());
        let floor = self.low.is_none_or(|low| low < floor).then_some(floor);
        let anchor = self.low.unwrap_or(small);
        let mut sizes: Vec<u16> =
            [anchor].into_iter().chain(floor).chain(between).chain([self.top]).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes.into_iter().map(|size| Candidate { size, is_answered: false }).collect()
    }
}

/// The round-trip time, smoothed (RFC 6298 §2).
#[derive(Debug, Default)]
struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
}

impl Rtt {
    fn sample(&mut self, rtt: Duration) {
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(rtt)) / 4;
                self.smoothed = Some((smoothed * 7 + rtt) / 8);
            }
        }
    }

    fn timeout(&self) -> Duration {
        self.smoothed.map_or(TIMEOUT_FIRST, |smoothed| {
            (smoothed + self.variation * 4).clamp(TIMEOUT_MIN, TIMEOUT_MAX)
        })
    }
}

/// What became of the last beats: a bit for each, set if it was lost.
#[derive(Debug, Default)]
struct Losses {
    bits: u32,
    count: u8,
}

impl Losses {
    fn push(&mut self, is_lost: bool) {
        self.bits = self.bits << 1 | u32::from(is_lost);
        self.count = (self.count + 1).min(32);
    }

    fn ratio(&self) -> Option<f32> {
        let lost = u8::try_from(self.bits.count_ones()).unwrap_or(u8::MAX);
        (self.count > 0).then(|| f32::from(lost) / f32::from(self.count))
    }
}

#[cfg(test)]
mod tests;
