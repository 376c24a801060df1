//! Whether datagrams to a destination are sent as one (`UDP_SEGMENT`), and the way back where they are not.
//!
//! Which device the route takes decides: one that cannot fill in checksums refuses on kernels before 6.11,
//! and so does every route with an IPsec policy (EIO, `udp_send_skb`, `net/ipv4/udp.c`). Routes and devices
//! change. So a refusal counts for one destination and for a time: 10 s, doubled with each trial that fails,
//! up to 10 min. Peers behind other devices are not slowed, and a trial costs one system call.
//!
//! Each worker has a [`SendOffload`] of its own, and learns for itself. While nothing is lost, a send
//! looks at nothing but an empty map's length, and the clock is read only for a destination that is lost.
//! [`Fallbacks`] tell the control side; they are written when something changes.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;

use crate::udp::Capabilities;

/// How long a destination is sent datagrams singly after the first refusal.
pub const PAUSE_MIN: Duration = Duration::from_secs(10);

/// The same, after many.
pub const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Destinations that are remembered, more than the nodes that gossip takes unless told otherwise. With one
/// more, all are forgotten, and each costs a trial.
const LOST_MAX: usize = 8192;

/// What one worker knows about sending merged.
#[derive(Debug)]
pub struct SendOffload {
    /// The kernel has it at all.
    available: bool,
    lost: HashMap<SocketAddr, Pause, FixedState>,
    fallbacks: Arc<Fallbacks>,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    len: Duration,
    until: Instant,
}

/// What one worker tells the control side about sending merged.
#[derive(Debug, Default)]
pub struct Fallbacks {
    count: AtomicU64,
    lost: Mutex<BTreeMap<SocketAddr, Fallback>>,
}

/// A destination that datagrams go to singly for the time being.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// The destination.
    pub to: SocketAddr,
    /// What the kernel said to the last trial.
    pub why: String,
    /// When the first was refused.
    pub since: Instant,
    /// The first send from then on is a trial.
    pub next_try: Instant,
}

impl SendOffload {
    /// Starts as `capabilities` say.
    pub fn new(capabilities: &Capabilities) -> Self {
        Self {
            available: capabilities.send_offload.is_ok(),
            lost: HashMap::default(),
            fallbacks: Arc::default(),
        }
    }

    /// What it tells the control side.
    pub fn fallbacks(&self) -> Arc<Fallbacks> {
        Arc::clone(&self.fallbacks)
    }

    /// Whether the next send to `to` is to be merged, if only for a trial.
    pub fn may_merge(&self, to: SocketAddr, now: impl FnOnce() -> Instant) -> bool {
        if self.lost.is_empty() {
            return self.available;
        }
        self.available && self.lost.get(&to).is_none_or(|pause| now() >= pause.until)
    }

    /// Notes that the kernel has taken a merged send to `to`.
    pub fn regain(&mut self, to: SocketAddr) {
        if !self.lost.is_empty() && self.lost.remove(&to).is_some() {
            self.fallbacks.lock().remove(&to);
        }
    }

    /// Notes that the kernel takes datagrams to `to` singly, and merged it does not.
    pub fn lose(&mut self, to: SocketAddr, error: &io::Error, now: Instant) {
        if self.lost.len() >= LOST_MAX && !self.lost.contains_key(&to) {
            self.lost.clear();
            self.fallbacks.lock().clear();
        }
        let len = match self.lost.get(&to) {
            Some(pause) => (pause.len * 2).min(PAUSE_MAX),
            None => PAUSE_MIN,
        };
        let until = now + len;
        self.lost.insert(to, Pause { len, until });

        self.fallbacks.count.fetch_add(1, Ordering::Relaxed);
        let mut told = self.fallbacks.lock();
        let since = told.get(&to).map_or(now, |fallback| fallback.since);
        told.insert(to, Fallback { to, why: error.to_string(), since, next_try: until });
    }
}

impl Fallbacks {
    /// How often a merged send was refused, trials included.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The destinations that datagrams go to singly, in the order of their addresses.
    pub fn lost(&self) -> Vec<Fallback> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Fallback>> {
        // Every change is one call, so that a panic elsewhere leaves nothing half done.
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offload(available: bool) -> SendOffload {
        let send_offload = if available { Ok(()) } else { Err("no".to_owned()) };
        SendOffload::new(&Capabilities {
            receive_offload: Ok(()),
            send_offload,
            segments_max: 64,
            receive_buffer: 0,
            send_buffer: 0,
        })
    }

    fn to(number: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], number))
    }

    fn refused() -> io::Error {
        io::Error::from_raw_os_error(libc::EIO)
    }

    #[test]
    fn no_clock_is_read_while_nothing_is_lost() {
        assert!(offload(true).may_merge(to(1), || unreachable!()));
        assert!(!offload(false).may_merge(to(1), || unreachable!()));
    }

    #[test]
    fn a_refusal_is_about_one_destination_and_ends_with_a_trial_that_works() {
        let mut offload = offload(true);
        let start = Instant::now();
        offload.lose(to(1), &refused(), start);
        assert!(offload.may_merge(to(2), || unreachable!()));
        assert!(!offload.may_merge(to(1), || start + PAUSE_MIN - Duration::from_nanos(1)));
        assert!(offload.may_merge(to(1), || start + PAUSE_MIN));
        let told = offload.fallbacks().lost();
        let expected = Fallback {
            to: to(1),
            why: refused().to_string(),
            since: start,
            next_try: start + PAUSE_MIN,
        };
        assert_eq!(told, [expected]);

        offload.regain(to(1));
        assert!(offload.may_merge(to(1), || unreachable!()));
        assert_eq!(offload.fallbacks().lost(), []);
        assert_eq!(offload.fallbacks().count(), 1);
    }

    #[test]
    fn trials_that_fail_become_rarer_and_never_end() {
        let mut offload = offload(true);
        let start = Instant::now();
        let mut now = start;
        for secs in [10, 20, 40, 80, 160, 320, 600, 600, 600] {
            assert!(offload.may_merge(to(1), || now));
            offload.lose(to(1), &refused(), now);
            assert_eq!(offload.fallbacks().lost()[0].since, start);
            now += Duration::from_secs(secs);
            assert!(!offload.may_merge(to(1), || now - Duration::from_nanos(1)), "{secs}");
        }
        assert!(offload.may_merge(to(1), || now));
        offload.regain(to(1));
        offload.lose(to(1), &refused(), now);
        assert!(offload.may_merge(to(1), || now + PAUSE_MIN), "the next loss is a new one");
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let mut offload = offload(true);
        let now = Instant::now();
        for number in 0..=u16::try_from(LOST_MAX).unwrap() {
            offload.lose(to(number), &refused(), now);
        }
        assert_eq!((offload.lost.len(), offload.fallbacks().lost().len()), (1, 1));
    }
}
