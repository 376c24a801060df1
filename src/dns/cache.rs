//! Answers of other servers, kept for a while. Pure: it is told what time it is.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use lru::LruCache;

use super::answer::Answer;

/// Longest that an answer is kept as fresh, whatever it says.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// Longest that "no such name" is kept, whatever the zone says (RFC 2308 §5 advises one to three hours;
/// names that were just made should not be missing that long).
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(30);

/// How long a server's failure is kept, so that a broken zone is not asked for with each request
/// (RFC 2308 §7 permits five minutes).
const FAILURE_TTL: Duration = Duration::from_secs(1);

/// The TTL of an answer that is told although it is too old (RFC 8767 §4).
const STALE_TTL_S: u32 = 30;

/// An answer is fetched anew before it ends when it was asked for this often, in its last tenth.
const PREFETCH_HITS: u32 = 3;

/// A question, as the cache knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The name; names that differ in case only are the same.
    pub name: Name,
    /// The type.
    pub kind: RecordType,
    /// Whether DNSSEC's records are wanted, and whether checks are left to the client.
    pub dnssec: (bool, bool),
}

/// What the cache has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hit {
    /// A good answer; `renew` says that it is worth being fetched anew already.
    Fresh {
        /// The answer, with what is left of its TTLs.
        answer: Answer,
        /// Whether to fetch it in advance.
        renew: bool,
    },
    /// An answer that has ended: better than none, should no server answer (RFC 8767).
    Stale(Answer),
    /// Nothing.
    Miss,
}

/// Answers by question, at most so many; those that nobody asks for go first.
#[derive(Debug)]
pub struct Cache {
    entries: Option<LruCache<Key, Entry>>,
    stale: Duration,
}

#[derive(Debug)]
struct Entry {
    answer: Answer,
    stored: Instant,
    ttl: Duration,
    hits: u32,
    renewing: bool,
}

impl Cache {
    /// A cache of `capacity` answers (0: none), which tells ended ones for `stale` longer.
    pub fn new(capacity: usize, stale: Duration) -> Self {
        Self { entries: NonZeroUsize::new(capacity).map(LruCache::new), stale }
    }

    /// What is known of a question.
    pub fn get(&mut self, key: &Key, now: Instant) -> Hit {
        let Some(entries) = &mut self.entries else { return Hit::Miss };
        let Some(entry) = entries.get_mut(key) else { return Hit::Miss };
        let age = now.saturating_duration_since(entry.stored);
        if age < entry.ttl {
            entry.hits = entry.hits.saturating_add(1);
            let renew = entry.hits >= PREFETCH_HITS
                && !entry.renewing
                && entry.ttl.saturating_sub(age) < entry.ttl / 10;
            entry.renewing |= renew;
            let aged = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            let answer = with_ttls(&entry.answer, |ttl| ttl.saturating_sub(aged));
            return Hit::Fresh { answer, renew };
        }
        if age < entry.ttl + self.stale && entry.answer.rcode != ResponseCode::ServFail {
            return Hit::Stale(with_ttls(&entry.answer, |_| STALE_TTL_S));
        }
        entries.pop(key);
        Hit::Miss
    }

    /// Keeps an answer for as long as it may be.
    pub fn put(&mut self, key: Key, answer: &Answer, now: Instant) {
        let Some(entries) = &mut self.entries else { return };
        let ttl = lifetime(answer);
        if ttl.is_zero() {
            return;
        }
        // What ended may still be better than a failure.
        let failed = answer.rcode == ResponseCode::ServFail;
        if failed && entries.peek(&key).is_some_and(|old| old.answer.rcode != answer.rcode) {
            return;
        }
        let entry = Entry { answer: answer.clone(), stored: now, ttl, hits: 0, renewing: false };
        entries.put(key, entry);
    }

    /// How many answers are kept.
    pub fn len(&self) -> usize {
        self.entries.as_ref().map_or(0, LruCache::len)
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// For how long an answer is good.
fn lifetime(answer: &Answer) -> Duration {
    if answer.rcode == ResponseCode::ServFail {
        return FAILURE_TTL;
    }
    if answer.rcode != ResponseCode::NoError && answer.rcode != ResponseCode::NXDomain {
        return Duration::ZERO;
    }
    let positive = answer.exists() && !answer.answers.is_empty();
    if positive {
        let least = answer.answers.iter().map(|record| record.ttl).min().unwrap_or(0);
        return Duration::from_secs(u64::from(least)).min(TTL_MAX);
    }
    // Without a SOA a negative answer must not be kept (RFC 2308 §5).
    let soa = answer.authorities.iter().find_map(|record| {
        let RData::SOA(soa) = &record.data else { return None };
        Some(soa.minimum.min(record.ttl))
    });
    soa.map_or(Duration::ZERO, |least| Duration::from_secs(u64::from(least)).min(NEGATIVE_TTL_MAX))
}

fn with_ttls(answer: &Answer, change: impl Fn(u32) -> u32) -> Answer {
    let mut answer = answer.clone();
    let sections: [&mut Vec<Record>; 3] =
        [&mut answer.answers, &mut answer.authorities, &mut answer.additionals];
    for record in sections.into_iter().flatten() {
        record.ttl = change(record.ttl);
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::A;

    use super::super::answer::soa;
    use super::*;

    fn key(name: &str) -> Key {
        Key { name: Name::from_ascii(name).unwrap(), kind: RecordType::A, dnssec: (false, false) }
    }

    fn answer(ttl: u32) -> Answer {
        let name = Name::from_ascii("example.org.").unwrap();
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
        let record = Record::from_rdata(name, ttl, data);
        Answer { authoritative: false, ..Answer::records(vec![record]) }
    }

    fn negative(ttl: u32) -> Answer {
        Answer::negative(ResponseCode::NXDomain, soa(&Name::from_ascii("org.").unwrap(), ttl))
    }

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn an_answer_ages_and_ends_and_is_still_better_than_nothing() {
        let start = Instant::now();
        let mut cache = Cache::new(10, seconds(3600));
        cache.put(key("example.org."), &answer(60), start);
        let hit = cache.get(&key("EXAMPLE.org."), start + seconds(20));
        assert_eq!(hit, Hit::Fresh { answer: answer(40), renew: false });
        let hit = cache.get(&key("example.org."), start + seconds(60));
        assert_eq!(hit, Hit::Stale(answer(30)));
        assert_eq!(cache.get(&key("example.org."), start + seconds(3660)), Hit::Miss);
        assert!(cache.is_empty());
    }

    #[test]
    fn a_name_that_does_not_exist_is_soon_asked_for_again() {
        let start = Instant::now();
        let mut cache = Cache::new(10, Duration::ZERO);
        cache.put(key("new.org."), &negative(86_400), start);
        assert!(matches!(cache.get(&key("new.org."), start + seconds(29)), Hit::Fresh { .. }));
        assert_eq!(cache.get(&key("new.org."), start + seconds(30)), Hit::Miss);
        let bare = Answer { authorities: Vec::new(), ..negative(60) };
        cache.put(key("bare.org."), &bare, start);
        assert_eq!(cache.get(&key("bare.org."), start), Hit::Miss);
    }

    #[test]
    fn what_many_ask_for_is_renewed_once_before_it_ends() {
        let start = Instant::now();
        let mut cache = Cache::new(10, Duration::ZERO);
        cache.put(key("example.org."), &answer(100), start);
        let mut renew = |at| {
            let hit = cache.get(&key("example.org."), start + seconds(at));
            let Hit::Fresh { renew, .. } = hit else { panic!("{hit:?}") };
            renew
        };
        assert!(!renew(1) && !renew(2) && !renew(80));
        assert!(renew(95));
        assert!(!renew(96), "already on its way");
    }

    #[test]
    fn a_failure_does_not_push_out_an_answer_and_the_oldest_goes_first() {
        let start = Instant::now();
        let mut cache = Cache::new(2, seconds(60));
        cache.put(key("example.org."), &answer(1), start);
        cache.put(
            key("example.org."),
            &Answer::failure(ResponseCode::ServFail),
            start + seconds(5),
        );
        assert!(matches!(cache.get(&key("example.org."), start + seconds(5)), Hit::Stale(_)));
        cache.put(key("b.org."), &answer(60), start);
        cache.put(key("c.org."), &answer(60), start);
        assert_eq!(cache.get(&key("example.org."), start), Hit::Miss);
        assert_eq!(cache.len(), 2);
        let mut none = Cache::new(0, Duration::ZERO);
        none.put(key("a."), &answer(60), start);
        assert_eq!(none.get(&key("a."), start), Hit::Miss);
    }
}
