//! Which endpoint a client had last (`sessionAffinity: ClientIP`).

use std::net::IpAddr;
use std::sync::PoisonError;

use crate::flows::{Ticks, scale};
use crate::service::{address_words, stable_hash};
use crate::sync::{Mutex, MutexGuard};

/// Clients and their endpoints. Asked for new flows only, so short locks do.
///
/// When a bucket is full, the client that has been away for the longest is forgotten. It loses nothing as long as
/// its endpoint is chosen by Maglev, which then depends on the client's address alone.
#[derive(Debug)]
pub struct Affinity {
    buckets: Box<[Mutex<[Option<Entry>; WAYS]>]>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    service: u64,
    client: IpAddr,
    endpoint: (IpAddr, u16),
    since: Ticks,
}

const WAYS: usize = 8;

impl Affinity {
    /// Makes room for about `clients_max` clients.
    pub(super) fn new(clients_max: usize) -> Self {
        let bucket = |_| Mutex::new([None; WAYS]);
        Self { buckets: (0..clients_max.div_ceil(WAYS)).map(bucket).collect() }
    }

    /// The endpoint that `client` had last with the Service, if that is not longer ago than `timeout`.
    pub fn find(
        &self,
        service: u64,
        client: IpAddr,
        timeout: Ticks,
        now: Ticks,
    ) -> Option<(IpAddr, u16)> {
        let bucket = self.bucket(service, client);
        let mut entries = bucket.iter().flatten();
        let entry = entries.find(|entry| entry.service == service && entry.client == client)?;
        (now.since(entry.since) < timeout).then_some(entry.endpoint)
    }

    /// Notes that `client` has `endpoint` now.
    pub fn note(&self, service: u64, client: IpAddr, endpoint: (IpAddr, u16), now: Ticks) {
        let mut bucket = self.bucket(service, client);
        let is_own = |entry: &Entry| entry.service == service && entry.client == client;
        // Its own, or one that is empty, or else the oldest.
        let place = bucket.iter_mut().min_by_key(|entry| match entry {
            Some(entry) if is_own(entry) => (0, Ticks::default()),
            None => (1, Ticks::default()),
            Some(entry) => (2, entry.since),
        });
        if let Some(place) = place {
            *place = Some(Entry { service, client, endpoint, since: now });
        }
    }

    fn bucket(&self, service: u64, client: IpAddr) -> MutexGuard<'_, [Option<Entry>; WAYS]> {
        let ix = scale(stable_hash(service, &address_words(client)), self.buckets.len());
        self.buckets[ix].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(weft_loom)))]
mod tests {
    use super::*;

    const HOUR: fn() -> Ticks = || Ticks::from_secs(3600);

    fn client(n: u8) -> IpAddr {
        IpAddr::from([10, 244, 1, n])
    }

    #[test]
    fn a_client_is_remembered_until_its_time_is_over() {
        let affinity = Affinity::new(8);
        let endpoint = (client(9), 80);
        affinity.note(1, client(1), endpoint, Ticks(50));
        assert_eq!(affinity.find(1, client(1), HOUR(), Ticks(60)), Some(endpoint));
        assert_eq!(affinity.find(2, client(1), HOUR(), Ticks(60)), None);
        assert_eq!(affinity.find(1, client(2), HOUR(), Ticks(60)), None);
        assert_eq!(affinity.find(1, client(1), HOUR(), Ticks(50).plus(HOUR())), None);
        affinity.note(1, client(1), (client(8), 80), Ticks(70));
        assert_eq!(affinity.find(1, client(1), HOUR(), Ticks(70)), Some((client(8), 80)));
    }

    #[test]
    fn who_was_away_for_longest_is_forgotten_first() {
        let affinity = Affinity::new(8);
        for n in 1..=9 {
            affinity.note(1, client(n), (client(100), 80), Ticks(n.into()));
        }
        let find = |n| affinity.find(1, client(n), HOUR(), Ticks(10));
        assert_eq!(find(1), None);
        assert!((2..=9).all(|n| find(n).is_some()));
    }
}
