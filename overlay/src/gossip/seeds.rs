//! The addresses that lead into the cluster, dialled for ever.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::timing::Timing;

/// Most seed addresses; further ones are not dialled.
pub const SEEDS_MAX: usize = 64;

/// How many dials of a seed come half of `seed_retry` apart, before the pauses grow: a node that nobody answers goes on
/// alone soon, and where much is lost that should not be by chance.
const FIRST_DIALS: u32 = 8;

#[derive(Debug, Default)]
pub(super) struct Seeds {
    seeds: BTreeMap<SocketAddr, Seed>,
}

#[derive(Debug)]
struct Seed {
    next: Instant,
    pause: Duration,
    unanswered: u32,
    answered: bool,
}

impl Seeds {
    /// Adds a seed, to be dialled at once; `false` if there are too many.
    pub(super) fn add(&mut self, address: SocketAddr, timing: &Timing, now: Instant) -> bool {
        let room = self.seeds.len() < SEEDS_MAX || self.seeds.contains_key(&address);
        if room {
            let seed = Seed { next: now, pause: timing.seed_retry, unanswered: 0, answered: false };
            self.seeds.entry(address).or_insert(seed);
        }
        room
    }

    pub(super) fn remove(&mut self, address: SocketAddr) {
        self.seeds.remove(&address);
    }

    /// Whether there is somebody to ask.
    pub(super) fn is_empty(&self) -> bool {
        self.seeds.is_empty()
    }

    /// Forgets who has answered: they are asked anew.
    pub(super) fn ask_again(&mut self) {
        for seed in self.seeds.values_mut() {
            seed.answered = false;
        }
    }

    /// Whether any seed has answered.
    pub(super) fn any_answered(&self) -> bool {
        self.seeds.values().any(|seed| seed.answered)
    }

    /// The seeds to dial now, with how often in a row each has not answered. Those that are members
    /// already, as `is_member` knows, are only looked at again later. A node that is `alone` has nothing
    /// better to do, and does not slow down as much.
    pub(super) fn due(
        &mut self,
        timing: &Timing,
        now: Instant,
        alone: bool,
        is_member: impl Fn(SocketAddr) -> bool,
    ) -> Vec<(SocketAddr, u32)> {
        let mut due = Vec::new();
        let pause_max = if alone { timing.dead_dial } else { timing.seed_retry_max };
        for (address, seed) in self.seeds.iter_mut().filter(|(_, seed)| seed.next <= now) {
            if is_member(*address) {
                seed.next = now + timing.seed_retry_max;
                seed.pause = timing.seed_retry;
                seed.unanswered = 0;
                continue;
            }
            due.push((*address, seed.unanswered));
            seed.unanswered = seed.unanswered.saturating_add(1);
            if seed.unanswered <= FIRST_DIALS {
                seed.next = now + timing.seed_retry / 2;
                continue;
            }
            seed.pause = seed.pause.min(pause_max);
            seed.next = now + seed.pause;
            seed.pause = (seed.pause * 2).min(timing.seed_retry_max);
        }
        due
    }

    /// A node at this address has answered.
    pub(super) fn answered(&mut self, address: SocketAddr, timing: &Timing, now: Instant) {
        if let Some(seed) = self.seeds.get_mut(&address) {
            seed.answered = true;
            seed.unanswered = 0;
            seed.pause = timing.seed_retry;
            // If what follows is lost, it is tried again soon.
            seed.next = seed.next.min(now + timing.seed_retry);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.seeds.values().map(|seed| seed.next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_dialled_for_ever_at_a_slowing_rate() {
        let (timing, start) = (Timing::default(), Instant::now());
        let mut seeds = Seeds::default();
        let address: SocketAddr = "192.0.2.1:7946".parse().unwrap();
        assert!(seeds.add(address, &timing, start));
        let mut dials = Vec::new();
        while dials.len() < 17 {
            let now = seeds.poll_timeout().unwrap();
            assert_eq!(seeds.due(&timing, now, false, |_| false).len(), 1);
            dials.push((now - start).as_millis() / 100);
        }
        assert_eq!(dials[..9], [0, 5, 10, 15, 20, 25, 30, 35, 40]);
        assert_eq!(dials[9..], [50, 70, 110, 190, 350, 650, 950, 1250]);
        seeds.answered(address, &timing, start + Duration::from_secs(125));
        let now = seeds.poll_timeout().unwrap();
        assert_eq!(now, start + Duration::from_secs(126));
        assert_eq!(seeds.due(&timing, now, false, |_| true), []);
        assert_eq!(seeds.poll_timeout(), Some(now + timing.seed_retry_max));
        assert!(seeds.any_answered());
    }

    #[test]
    fn there_is_a_limit() {
        let (timing, now) = (Timing::default(), Instant::now());
        let mut seeds = Seeds::default();
        for port in 1..=64 {
            assert!(seeds.add(SocketAddr::from(([192, 0, 2, 1], port)), &timing, now));
        }
        assert!(!seeds.add(SocketAddr::from(([192, 0, 2, 1], 65)), &timing, now));
    }
}
