//! Where the later fragments of a packet go: they have no ports, so they follow the first.

use std::net::IpAddr;
use std::sync::PoisonError;

use crate::flows::{Ticks, Tuple, scale};
use crate::service::{address_words, stable_hash};
use crate::sync::{AtomicU32, Mutex, MutexGuard, Ordering};

/// What all fragments of a packet have in common (RFC 791 §3.2, RFC 8200 §4.5). IPv6 has no protocol in it, so
/// neither has IPv4's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentKey {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Identification.
    pub id: u32,
}

/// Packets of which the first fragment was translated.
///
/// There are few fragments, so short locks do. When a bucket is full, the oldest packet is forgotten: its
/// later fragments are then dropped.
#[derive(Debug)]
pub struct Fragments {
    buckets: Box<[Mutex<[Option<Entry>; WAYS]>]>,
    /// When the last one was noted, and one more; 0 for never.
    last: AtomicU32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: FragmentKey,
    to: Tuple,
    since: Ticks,
}

#[cfg(not(weft_loom))]
const BUCKETS: usize = 64;
#[cfg(weft_loom)]
const BUCKETS: usize = 1;
const WAYS: usize = 8;

/// A receiver waits for at most so long for the rest of a packet (RFC 8200 §4.5; RFC 791 §3.2 lets it wait less).
const TIMEOUT_S: u32 = 60;

impl Fragments {
    pub(super) fn new() -> Self {
        let bucket = |_| Mutex::new([None; WAYS]);
        Self { buckets: (0..BUCKETS).map(bucket).collect(), last: AtomicU32::new(0) }
    }

    /// Notes where the rest of a packet goes.
    pub fn note(&self, key: FragmentKey, to: Tuple, now: Ticks) {
        self.last.store(now.0.saturating_add(1), Ordering::Relaxed);
        let mut bucket = self.bucket(&key);
        let place = bucket.iter_mut().min_by_key(|entry| match entry {
            Some(entry) if entry.key == key => (0, Ticks::default()),
            None => (1, Ticks::default()),
            Some(entry) => (2, entry.since),
        });
        if let Some(place) = place {
            *place = Some(Entry { key, to, since: now });
        }
    }

    /// Where this fragment goes, if it is of a packet whose first fragment was translated.
    pub fn find(&self, key: &FragmentKey, now: Ticks) -> Option<Tuple> {
        let timeout = Ticks::from_secs(TIMEOUT_S);
        let last = self.last.load(Ordering::Relaxed);
        if last == 0 || now.since(Ticks(last)) > timeout {
            return None;
        }
        let bucket = self.bucket(key);
        let entry = bucket.iter().flatten().find(|entry| entry.key == *key)?;
        (now.since(entry.since) <= timeout).then_some(entry.to)
    }

    fn bucket(&self, key: &FragmentKey) -> MutexGuard<'_, [Option<Entry>; WAYS]> {
        let ([a, b], [c, d]) = (address_words(key.source), address_words(key.destination));
        let ix = scale(stable_hash(key.id.into(), &[a, b, c, d]), self.buckets.len());
        self.buckets[ix].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(weft_loom)))]
mod tests {
    use super::*;
    use crate::flows::FlowProtocol;

    #[test]
    fn the_rest_follows_the_first_for_a_minute() {
        let fragments = Fragments::new();
        let address = |n| IpAddr::from([10, 0, 0, n]);
        let key = |id| FragmentKey { source: address(1), destination: address(2), id };
        let to = Tuple {
            source: (address(1), 5),
            destination: (address(3), 6),
            protocol: FlowProtocol::Udp,
        };
        assert_eq!(fragments.find(&key(7), Ticks(0)), None);
        fragments.note(key(7), to, Ticks(0));
        assert_eq!(fragments.find(&key(7), Ticks(600)), Some(to));
        assert_eq!(fragments.find(&key(8), Ticks(600)), None);
        assert_eq!(fragments.find(&key(7), Ticks(602)), None);
        (100..2000).for_each(|id| fragments.note(key(id), to, Ticks(700)));
        let kept = (100..2000).filter(|id| fragments.find(&key(*id), Ticks(700)).is_some()).count();
        assert_eq!(kept, BUCKETS * WAYS, "bounded, and the oldest go");
    }
}
