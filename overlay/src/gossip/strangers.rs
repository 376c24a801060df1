//! Who speaks without a key, or with a wrong one: for people, who want to know which node to look at.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::counters::Refused;
use crate::seal::KeyId;
use crate::seal::cipher::Header;

/// Somebody whose datagrams are refused for their seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranger {
    /// Where its datagrams come from.
    pub address: SocketAddr,
    /// What was wrong with the latest one.
    pub reason: Refused,
    /// The key that it was sealed with.
    pub key: Option<KeyId>,
    /// How many there were, since they began to come.
    pub count: u64,
}

/// The strangers of the last minute.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    seen: BTreeMap<SocketAddr, Seen>,
}

#[derive(Debug)]
struct Seen {
    stranger: Stranger,
    last: Instant,
    told: Instant,
}

/// Most strangers that are told apart.
const STRANGERS_MAX: usize = 64;

/// How often it is told of one, if each time something else is wrong.
const TELL_PAUSE: Duration = Duration::from_secs(10);

/// For how long one is remembered who says nothing any more.
const MEMORY: Duration = Duration::from_secs(60);

impl Strangers {
    /// Notes a refused datagram; whose it is, if that is news.
    pub(super) fn note(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        reason: Refused,
        now: Instant,
    ) -> Option<Stranger> {
        let sealed = matches!(reason, Refused::Sealed | Refused::UnknownKey | Refused::Unauthentic);
        if !sealed && reason != Refused::Unsealed {
            return None;
        }
        let key = Header::read(datagram).filter(|_| sealed).map(|header| header.key);
        if let Some(Seen { stranger, last, told }) = self.seen.get_mut(&from) {
            let is_recent = now < *last + MEMORY;
            let is_other = (stranger.reason, stranger.key) != (reason, key);
            let count = if is_recent { stranger.count.saturating_add(1) } else { 1 };
            *stranger = Stranger { address: from, reason, key, count };
            *last = now;
            let is_news = !is_recent || is_other && now >= *told + TELL_PAUSE;
            if is_news {
                *told = now;
            }
            return is_news.then_some(*stranger);
        }
        if self.seen.len() >= STRANGERS_MAX {
            self.seen.retain(|_, seen| now < seen.last + MEMORY);
        }
        if self.seen.len() >= STRANGERS_MAX {
            return None;
        }
        let stranger = Stranger { address: from, reason, key, count: 1 };
        self.seen.insert(from, Seen { stranger, last: now, told: now });
        Some(stranger)
    }

    /// Those of the last minute, the latest first.
    pub(super) fn recent(&self, now: Instant) -> Vec<Stranger> {
        let mut recent: Vec<_> =
            self.seen.values().filter(|seen| now < seen.last + MEMORY).collect();
        recent.sort_by_key(|seen| std::cmp::Reverse(seen.last));
        recent.into_iter().map(|seen| seen.stranger).collect()
    }
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, reason, key, count } = self;
        let datagrams = if *count == 1 { "datagram" } else { "datagrams" };
        write!(f, "{count} {datagrams} ")?;
        match (reason, key) {
            (Refused::Unsealed, _) => write!(
                f,
                "without a seal from {address}: the node there runs with `insecure = true`; give it this \
                 network's keys"
            ),
            (Refused::Sealed, _) => write!(
                f,
                "with a seal from {address}, while this node runs with `insecure = true`; give it the keys of \
                 the network"
            ),
            (Refused::UnknownKey, Some(key)) => write!(
                f,
                "with an unknown key ({key}) from {address}: compare `weft key list` there and here, and carry \
                 the key that is missing with `weft key add`"
            ),
            (_, _) => write!(f, "with a broken seal from {address}: damaged on the way, or forged"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_news_once_a_minute_and_whenever_something_else_is_wrong() {
        let (mut strangers, now) = (Strangers::default(), Instant::now());
        let from: SocketAddr = "192.0.2.1:7946".parse().unwrap();
        let mut note = |reason, after| {
            strangers.note(from, &[], reason, now + Duration::from_secs(after)).is_some()
        };
        assert!(note(Refused::Unsealed, 0));
        assert!(!note(Refused::Unsealed, 1));
        assert!(!note(Refused::UnknownKey, 2), "too soon");
        assert!(!note(Refused::Malformed, 3));
        assert!(!note(Refused::UnknownKey, 14), "nothing else");
        assert!(note(Refused::Unsealed, 15));
        assert!(!note(Refused::Unsealed, 74));
        assert!(note(Refused::Unsealed, 200));
        assert_eq!(strangers.recent(now + Duration::from_secs(201))[0].count, 1);
        assert_eq!(strangers.recent(now + Duration::from_secs(300)), []);
    }

    #[test]
    fn no_more_are_told_apart_than_the_limit() {
        let (mut strangers, now) = (Strangers::default(), Instant::now());
        for port in 1..200 {
            let from = SocketAddr::from(([192, 0, 2, 1], port));
            strangers.note(from, &[], Refused::Unsealed, now);
        }
        assert_eq!(strangers.recent(now).len(), STRANGERS_MAX);
        let from = SocketAddr::from(([192, 0, 2, 2], 1));
        let later = now + MEMORY;
        assert!(strangers.note(from, &[], Refused::Unsealed, later).is_some());
        assert_eq!(strangers.recent(later).len(), 1);
    }
}
