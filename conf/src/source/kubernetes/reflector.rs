//! Keeps the objects of one kind in step with an API server. Pure: answers and the time come in, changes and
//! what to ask next come out.
//!
//! ```text
//!            ┌──── expired (410) ─────────────────────────────┐
//!            ▼                                                │
//!   List ── page ──► List ── last page ──► Watch ── end ──► Watch, from the last version
//!     │                                      │
//!     └── failure ──► Wait ──► again ◄───────┘
//! ```
//!
//! 1. A list comes in chunks. Each is taken up at once; what is not in the list is removed when the last one
//!    is there, and not before.
//! 2. A watch goes on from the version of the list, and bookmarks move that version on. When it ends, the
//!    next one goes on from there: nothing is listed again but for a version that the server has forgotten.
//! 3. Whatever fails is tried again after a pause that grows, with jitter, so that a thousand nodes do not
//!    come back at once. Two lists of one kind have a pause between them, too.
//!
//! What is known stays in force all that time.

use std::fmt;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::resource::Resource;
use super::store::{Judged, Store};
use crate::cluster::{Change, Object, ObjectName};

/// How patient a [`Reflector`] is.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// The first pause after a failure, and the longest. Each is twice the one before, and up to half longer
    /// or shorter by chance.
    pub retry_min: Duration,
    /// The longest pause after failures.
    pub retry_max: Duration,
    /// The least time from the beginning of one list to that of the next.
    pub list_pause: Duration,
    /// When a kind that is not served is asked for again.
    pub absent_pause: Duration,
    /// How long a watch lasts at least, if the server agrees; it ends it within twice that time.
    pub watch_min: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            // As client-go's reflector: 800 ms to 30 s, watches of 5 to 10 minutes.
            retry_min: Duration::from_millis(800),
            retry_max: Duration::from_secs(30),
            list_pause: Duration::from_secs(10),
            absent_pause: Duration::from_secs(300),
            watch_min: Duration::from_secs(300),
        }
    }
}

/// Objects of one answer to a list, as `kubectl` asks for.
pub const CHUNK_LEN: u32 = 500;

/// Why a request brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nobody answers, or the answer broke off.
    Unreachable(String),
    /// The server has forgotten the version, or the place in the list (410 Gone).
    Expired,
    /// The server has no such kind (404).
    NotServed,
    /// The server answers, and refuses.
    Refused {
        /// The status of HTTP.
        status: u16,
        /// What it says.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
}

/// A chunk of a list.
#[derive(Debug)]
pub struct Page {
    /// Its objects.
    pub items: Vec<Judged>,
    /// The version of the list.
    pub version: String,
    /// Where the next chunk begins; `None` in the last one.
    pub next: Option<String>,
}

/// What a watch tells.
#[derive(Debug)]
pub enum Seen {
    /// An object was made or changed.
    Set(Judged, String),
    /// An object was deleted.
    Deleted(ObjectName, String),
    /// All up to this version was told.
    Bookmark(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(text) => f.write_str(text),
            Self::Expired => f.write_str("it has forgotten what it said"),
            Self::NotServed => f.write_str("status 404, it has none"),
            Self::Refused { message, .. } => f.write_str(message),
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing until then.
    Wait(Instant),
    /// Ask for a chunk of the list.
    List {
        /// Most objects in it; `None` for all.
        limit: Option<u32>,
        /// Where it begins; `None` for the first one.
        from: Option<String>,
    },
    /// Ask for what happens.
    Watch {
        /// After this version.
        version: String,
        /// When the server is to end it, in seconds.
        timeout_s: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    List { from: Option<String> },
    Watch,
}

/// One kind of objects, kept in step.
#[derive(Debug)]
pub struct Reflector {
    resource: Resource,
    timing: Timing,
    rng: StdRng,
    store: Store,
    next: Next,
    /// Nothing is asked before.
    not_before: Instant,
    /// All up to here is known.
    version: String,
    listed_at: Option<Instant>,
    /// The next list is asked for in one piece: the server forgets its chunks faster than they are fetched.
    whole: bool,
    complete: bool,
    served: bool,
    failures: u32,
    trouble: Option<Trouble>,
    /// Whether the watch that is open has told anything.
    told: bool,
}

/// Why what is known may be old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: Instant,
    /// What the last request brought.
    pub failure: Failure,
}

impl Reflector {
    /// Nothing is known yet. The seed spreads the pauses.
    pub fn new(resource: Resource, timing: Timing, seed: u64, now: Instant) -> Self {
        Self {
            resource,
            timing,
            rng: StdRng::seed_from_u64(seed),
            store: Store::new(resource.kind),
            next: Next::List { from: None },
            not_before: now,
            version: String::new(),
            listed_at: None,
            whole: false,
            complete: false,
            served: true,
            failures: 0,
            trouble: None,
            told: false,
        }
    }

    /// Takes up an object that is remembered of the server, before anything is asked of it. It stays as it is
    /// until the first list is complete.
    pub fn restore(&mut self, object: Object) {
        self.store.restore(object);
    }

    /// Forgets an object of which nothing is known but what is remembered. Returns what changes by it.
    pub fn forget_remembered(&mut self, id: &ObjectName) -> Option<Change> {
        self.store.forget_remembered(id)
    }

    /// What to do next.
    pub fn step(&mut self, now: Instant) -> Step {
        if now < self.not_before {
            return Step::Wait(self.not_before);
        }
        match &self.next {
            Next::List { from } => {
                let from = from.clone();
                if from.is_none() {
                    self.store.begin_list();
                    self.listed_at = Some(now);
                }
                Step::List { limit: (!self.whole).then_some(CHUNK_LEN), from }
            }
            Next::Watch => {
                let least = self.timing.watch_min.as_secs().max(1);
                let timeout_s = self.rng.random_range(least..=least * 2);
                Step::Watch { version: self.version.clone(), timeout_s }
            }
        }
    }

    /// Takes up an answer to a list.
    pub fn listed(&mut self, page: Page) -> Vec<Change> {
        self.answered();
        self.failures = 0;
        self.served = true;
        let mut changes: Vec<Change> =
            page.items.into_iter().filter_map(|item| self.store.set_listed(item)).collect();
        match page.next {
            Some(next) => self.next = Next::List { from: Some(next) },
            None => {
                changes.extend(self.store.end_list());
                self.version = page.version;
                self.complete = true;
                self.whole = false;
                self.next = Next::Watch;
            }
        }
        changes
    }

    /// Takes up that a watch is open.
    pub fn watching(&mut self) {
        self.answered();
        self.told = false;
    }

    /// Takes up what a watch tells.
    pub fn seen(&mut self, seen: Seen) -> Option<Change> {
        self.told = true;
        self.failures = 0;
        match seen {
            Seen::Set(judged, version) => {
                self.advance(version);
                self.store.set_seen(judged)
            }
            Seen::Deleted(name, version) => {
                let number = super::store::number(&version);
                self.advance(version);
                self.store.set_deleted(&name, number)
            }
            Seen::Bookmark(version) => {
                self.advance(version);
                None
            }
        }
    }

    /// Takes up that a watch has ended as watches do.
    pub fn ended(&mut self, now: Instant) {
        if self.told {
            return;
        }
        // One that ends before it has told anything would be opened again and again.
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + self.pause();
    }

    /// Takes up that a request has failed, or that a watch broke off.
    pub fn failed(&mut self, failure: Failure, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        self.failures = self.failures.saturating_add(1);
        let mut wait = self.pause();
        match &failure {
            Failure::Expired => {
                if let Next::List { from: Some(_) } = self.next {
                    self.whole = true;
                }
                self.next = Next::List { from: None };
                // The server is well, and what was known before stays until the new list is there.
                let earliest = self.listed_at.map_or(now, |at| at + self.timing.list_pause);
                wait = wait.max(earliest.saturating_duration_since(now));
            }
            Failure::NotServed if self.resource.optional => {
                self.store.begin_list();
                changes = self.store.end_list();
                self.complete = true;
                self.served = false;
                self.next = Next::List { from: None };
                wait = self.timing.absent_pause;
            }
            Failure::NotServed => self.next = Next::List { from: None },
            // The next chunk of a list is asked for again; the server remembers it for some minutes.
            Failure::Unreachable(_) => {}
            Failure::Refused { retry_after, .. } => {
                wait = wait.max(retry_after.unwrap_or_default().min(self.timing.absent_pause));
            }
        }
        self.not_before = now + wait;
        if failure == Failure::NotServed && self.resource.optional {
            self.answered();
        } else {
            let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
            self.trouble = Some(Trouble { since, failure });
        }
        changes
    }

    fn answered(&mut self) {
        self.trouble = None;
    }

    fn advance(&mut self, version: String) {
        // News may come in another order; what is known to be told is the latest.
        let (new, known) = (super::store::number(&version), super::store::number(&self.version));
        if !version.is_empty() && new.zip(known).is_none_or(|(new, known)| new > known) {
            self.version = version;
        }
    }

    fn pause(&mut self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        let full = (self.timing.retry_min * (1 << doublings)).min(self.timing.retry_max);
        full.mul_f64(self.rng.random_range(0.5..1.5))
    }

    /// What is watched.
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// The objects.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether there was a complete list once, so that what is not known is not there.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether the server has the kind at all.
    pub fn is_served(&self) -> bool {
        self.served
    }

    /// Why what is known may be old.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ObjectKind;
    use crate::cluster::parse::ApiObject;

    const NAMESPACES: Resource =
        Resource { kind: ObjectKind::Namespace, plural: "namespaces", optional: false };

    fn judged(name: &str, version: u64) -> Judged {
        let text = format!(r#"{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}}}}"#);
        let object: ApiObject = serde_json::from_str(&text).unwrap();
        Judged::new(ObjectKind::Namespace, &object).unwrap()
    }

    fn page(names: &[&str], version: &str, next: Option<&str>) -> Page {
        let items = names.iter().map(|name| judged(name, 1)).collect();
        Page { items, version: version.into(), next: next.map(Into::into) }
    }

    fn reflector(resource: Resource, now: Instant) -> Reflector {
        Reflector::new(resource, Timing::default(), 1, now)
    }

    fn unreachable() -> Failure {
        Failure::Unreachable("no route".into())
    }

    /// The time at which something else than waiting is to be done, and what.
    fn next(reflector: &mut Reflector, now: Instant) -> (Instant, Step) {
        match reflector.step(now) {
            Step::Wait(until) => (until, reflector.step(until)),
            step @ (Step::List { .. } | Step::Watch { .. }) => (now, step),
        }
    }

    #[test]
    fn chunks_follow_each_other_and_a_watch_follows_them() {
        let now = Instant::now();
        let mut reflector = reflector(NAMESPACES, now);
        assert_eq!(reflector.step(now), Step::List { limit: Some(CHUNK_LEN), from: None });
        assert_eq!(reflector.listed(page(&["a"], "5", Some("next"))).len(), 1);
        assert!(!reflector.is_complete());
        // A chunk that fails is asked for again, not the list.
        reflector.failed(unreachable(), now);
        let (later, step) = next(&mut reflector, now);
        assert_eq!(step, Step::List { limit: Some(CHUNK_LEN), from: Some("next".into()) });
        assert_eq!(reflector.listed(page(&["b"], "5", None)).len(), 1);
        assert!(reflector.is_complete() && reflector.trouble().is_none());
        let Step::Watch { version, timeout_s } = reflector.step(later) else { panic!("a watch") };
        assert_eq!(version, "5");
        assert!((300..=600).contains(&timeout_s));
        reflector.watching();
        reflector.seen(Seen::Bookmark("9".into()));
        reflector.seen(Seen::Set(judged("c", 8), "8".into()));
        reflector.ended(later);
        let Step::Watch { version, .. } = reflector.step(later) else { panic!("a watch") };
        assert_eq!(version, "9", "what came in the wrong order moves nothing back");
    }

    #[test]
    fn a_version_that_is_forgotten_costs_a_list_and_not_two() {
        let now = Instant::now();
        let mut reflector = reflector(NAMESPACES, now);
        reflector.step(now);
        reflector.listed(page(&["a", "b"], "5", None));
        assert!(reflector.failed(Failure::Expired, now).is_empty());
        let (later, step) = next(&mut reflector, now);
        assert_eq!(step, Step::List { limit: Some(CHUNK_LEN), from: None });
        assert!(later >= now + Timing::default().list_pause);
        assert_eq!(reflector.store().counts(), (2, 0), "all stays until the list is complete");
        // Forgotten in the middle: the next one comes in one piece.
        assert!(reflector.listed(page(&["b"], "7", Some("next"))).is_empty());
        reflector.failed(Failure::Expired, later);
        let (_, step) = next(&mut reflector, later);
        assert_eq!(step, Step::List { limit: None, from: None });
        assert_eq!(reflector.listed(page(&["b"], "8", None)).len(), 1);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_differ_from_node_to_node() {
        let now = Instant::now();
        let pauses = |seed: u64| {
            let mut reflector = Reflector::new(NAMESPACES, Timing::default(), seed, now);
            let mut at = now;
            let pause = |_| {
                reflector.failed(unreachable(), at);
                let (until, _) = next(&mut reflector, at);
                let pause = until - at;
                at = until;
                pause
            };
            (0..12).map(pause).collect::<Vec<_>>()
        };
        let one = pauses(1);
        assert!(one[0] < Duration::from_millis(1300) && one[0] > Duration::from_millis(300));
        assert!(one.iter().all(|pause| *pause < Duration::from_secs(46)));
        assert!(one[9..].iter().all(|pause| *pause > Duration::from_secs(14)), "{one:?}");
        assert_ne!(one, pauses(2));
    }

    #[test]
    fn trouble_is_as_old_as_its_first_failure() {
        let now = Instant::now();
        let mut reflector = reflector(NAMESPACES, now);
        reflector.failed(unreachable(), now);
        reflector.failed(Failure::NotServed, now + Duration::from_secs(9));
        assert_eq!(reflector.trouble().map(|trouble| trouble.since), Some(now));
        reflector.listed(page(&[], "1", None));
        assert!(reflector.trouble().is_none());
    }

    #[test]
    fn a_server_that_asks_for_patience_gets_it() {
        let now = Instant::now();
        let mut reflector = reflector(NAMESPACES, now);
        let retry_after = Some(Duration::from_secs(17));
        let failure = Failure::Refused { status: 429, message: "busy".into(), retry_after };
        reflector.failed(failure, now);
        assert!(next(&mut reflector, now).0 >= now + Duration::from_secs(17));
    }

    #[test]
    fn a_kind_that_may_be_missing_is_empty_then() {
        let now = Instant::now();
        let mut reflector = reflector(Resource { optional: true, ..NAMESPACES }, now);
        reflector.step(now);
        reflector.listed(page(&["a"], "5", None));
        assert_eq!(reflector.failed(Failure::NotServed, now).len(), 1);
        assert!(reflector.is_complete() && !reflector.is_served());
        assert!(reflector.trouble().is_none());
        let (later, step) = next(&mut reflector, now);
        assert_eq!(step, Step::List { limit: Some(CHUNK_LEN), from: None });
        assert!(later >= now + Timing::default().absent_pause);
    }
}
