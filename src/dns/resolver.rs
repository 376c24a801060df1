//! Where an answer comes from: the cluster's zones, the configuration's, the cache, or other servers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::answer::Answer;
use super::cache::{Cache, Hit, Key};
use super::cluster::{ClusterZones, Found};
use super::directory::Directory;
use super::exchange;
use super::message::Request;
use super::records::StaticZones;
use super::stats::{CountedZone, Part, QueryLine, Stats, code_name, count};
use super::upstream::{ServerStatus, Upstreams};

/// Most names that an alias may lead through.
const ALIASES_MAX: usize = 8;

/// Most questions that wait for other servers at a time; CoreDNS' default for its forwarder.
const WAITING_MAX: usize = 1000;

/// How long a question may take in all; clients give up after five seconds.
const ANSWER_MAX: Duration = Duration::from_millis(4500);

/// After this long without an answer, one that has ended is told (RFC 8767 §5).
const STALE_AFTER: Duration = Duration::from_millis(1800);

/// Below this name, questions tell whether servers lead back here.
const LOOP_ZONE: &str = "loop.weft.invalid.";

/// What never changes while the server runs.
#[derive(Debug)]
pub struct Settings {
    /// The cluster's zones.
    pub cluster: ClusterZones,
    /// The configuration's.
    pub statics: StaticZones,
    /// Zones with servers of their own, which responses are counted for.
    pub stubs: Vec<Name>,
    /// Whether to walk pods' search paths.
    pub autopath: bool,
    /// Most answers that are kept.
    pub cache_entries: usize,
    /// For how long ended ones are told.
    pub serve_stale: Duration,
}

/// Answers questions.
#[derive(Debug)]
pub struct Resolver {
    settings: Settings,
    /// Absent until the first state of the cluster is known.
    directory: RwLock<Option<Directory>>,
    /// Search domains of the node, which pods have behind those of the cluster.
    search: ArcSwap<Vec<Name>>,
    upstreams: Mutex<Upstreams>,
    cache: Mutex<Cache>,
    /// Questions that are under way, so that equal ones wait for one answer.
    under_way: Mutex<HashMap<Key, watch::Receiver<Option<Answer>>>>,
    waiting: Semaphore,
    loop_name: Name,
    loops_seen: watch::Sender<u64>,
    /// The zones that responses are counted for, by their places in the statistics. Of one part, longer ones first.
    zones: Vec<(Part, Name)>,
    stats: Stats,
}

impl Resolver {
    /// A resolver that knows nothing of the cluster yet and has no other servers.
    pub fn new(settings: Settings, secret: u64) -> Self {
        let loop_name = Name::from_ascii(format!("{secret:016x}.{LOOP_ZONE}"));
        let zones = counted_zones(&settings);
        let named = zones.iter();
        let named = named.map(|(part, zone)| CountedZone { name: zone.to_ascii(), part: *part });
        Self {
            stats: Stats::new(named),
            zones,
            directory: RwLock::default(),
            search: ArcSwap::default(),
            upstreams: Mutex::default(),
            cache: Mutex::new(Cache::new(settings.cache_entries, settings.serve_stale)),
            under_way: Mutex::default(),
            waiting: Semaphore::new(WAITING_MAX),
            loop_name: loop_name.unwrap_or_else(|_never| Name::root()),
            loops_seen: watch::Sender::new(0),
            settings,
        }
    }

    /// Takes up changes of the cluster's state: from now on answers are made of them. The first call says
    /// that the state is known.
    pub fn update(&self, change: impl FnOnce(&mut Directory)) {
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        change(directory.get_or_insert_default());
    }

    /// Takes up other servers and the node's search domains.
    pub fn set_upstreams(&self, zones: Vec<(Name, Vec<SocketAddr>)>, search: Vec<Name>) {
        lock(&self.upstreams).set(zones);
        self.search.store(Arc::new(search));
    }

    /// How the other servers are doing.
    pub fn upstreams(&self) -> Vec<ServerStatus> {
        lock(&self.upstreams).status(Instant::now())
    }

    /// Counters and the log.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// How many answers are kept.
    pub fn cached(&self) -> usize {
        lock(&self.cache).len()
    }

    /// Services and pods that are known; `None` before the first state.
    pub fn known(&self) -> Option<(usize, usize)> {
        self.directory().as_ref().map(Directory::size)
    }

    /// The first address of a pod, given as `namespace/name`.
    pub fn address_of(&self, pod: &str) -> Option<IpAddr> {
        let (namespace, name) = pod.split_once('/')?;
        self.directory().as_ref()?.pod(namespace, name)?.addresses.first().copied()
    }

    /// The answer, when it takes no other server: most of them.
    pub fn answer_now(
        self: &Arc<Self>,
        request: &Request,
        client: IpAddr,
    ) -> Option<(Answer, Part)> {
        if self.is_loop_test(&request.name) {
            return Some((Answer::failure(ResponseCode::NXDomain), Part::Forward));
        }
        let (found, part) = self.look_up(&request.name, request.kind);
        match found {
            Found::Answer(answer) => {
                let walk = answer.rcode == ResponseCode::NXDomain
                    && self.search_path(&request.name, client).is_some();
                (!walk).then_some((answer, part))
            }
            Found::Alias(answer, target) => {
                self.follow_now(answer, target, request.kind).map(|answer| (answer, part))
            }
            Found::Foreign => {
                let key = key(&request.name, request);
                let Hit::Fresh { answer, renew } = lock(&self.cache).get(&key, Instant::now())
                else {
                    return None;
                };
                count(&self.stats.cache_hits);
                if renew && let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    let resolver = Arc::clone(self);
                    count(&self.stats.prefetches);
                    runtime.spawn(async move { resolver.fetch(&key).await });
                }
                Some((answer, Part::Forward))
            }
        }
    }

    /// The answer, asking other servers where that is needed.
    pub async fn answer(self: &Arc<Self>, request: &Request, client: IpAddr) -> (Answer, Part) {
        if let Some(done) = self.answer_now(request, client) {
            return done;
        }
        let Ok(_permit) = self.waiting.try_acquire() else {
            count(&self.stats.overload);
            return (Answer::failure(ResponseCode::ServFail), Part::Forward);
        };
        let work = self.answer_slowly(request, client);
        timeout(ANSWER_MAX, work)
            .await
            .unwrap_or_else(|_late| (Answer::failure(ResponseCode::ServFail), Part::Forward))
    }

    async fn answer_slowly(self: &Arc<Self>, request: &Request, client: IpAddr) -> (Answer, Part) {
        let (found, part) = self.look_up(&request.name, request.kind);
        match found {
            Found::Foreign => (self.forward(&key(&request.name, request)).await, Part::Forward),
            Found::Alias(answer, target) => (self.follow(answer, target, request).await, part),
            Found::Answer(answer) => {
                let Some((base, path)) = self.search_path(&request.name, client) else {
                    return (answer, part);
                };
                match self.walk(request, &base, &path).await {
                    Some(found) => {
                        count(&self.stats.autopath);
                        (found, Part::Forward)
                    }
                    None => (answer, part),
                }
            }
        }
    }

    /// Counts a response, and tells it to those who read the log.
    pub fn finish(
        &self,
        request: &Request,
        client: IpAddr,
        answer: &Answer,
        part: Part,
        took: Duration,
    ) {
        self.stats.responded(self.zone_of(part, &request.name), answer.rcode, took);
        if !self.stats.is_watched() {
            return;
        }
        let directory = self.directory();
        let pod = directory.as_ref().and_then(|directory| directory.client(client));
        self.stats.log(QueryLine {
            time: Timestamp::now(),
            client,
            pod: pod.map(|(namespace, name)| format!("{namespace}/{name}")),
            name: request.name.to_ascii(),
            kind: request.kind.to_string(),
            rcode: code_name(answer.rcode),
            answers: answer.answers.len(),
            part,
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        });
    }

    /// The place in the statistics of the zone that a response is about.
    fn zone_of(&self, part: Part, name: &Name) -> Option<usize> {
        let is_it = |(of, zone): &(Part, Name)| *of == part && zone.zone_of(name);
        let found = self.zones.iter().position(is_it);
        // An alias may lead from one zone to another, and a search path anywhere.
        found.or_else(|| self.zones.iter().rposition(|(of, _)| *of == part))
    }

    /// The answer of what this server itself knows; nobody else is asked. An alias that leads elsewhere is told as it
    /// is, and names of others are a failure.
    pub fn answer_alone(&self, request: &Request, client: IpAddr) -> (Answer, Part) {
        let (found, part) = self.look_up(&request.name, request.kind);
        match found {
            Found::Foreign => (Answer::failure(ResponseCode::ServFail), Part::Forward),
            Found::Alias(answer, target) => (self.follow_alone(answer, target, request.kind), part),
            Found::Answer(answer) if answer.rcode == ResponseCode::NXDomain => {
                let found = self.search_path(&request.name, client).and_then(|(base, path)| {
                    path.iter().find_map(|domain| {
                        let candidate = below(&base, domain)?;
                        let answer = match self.look_up(&candidate, request.kind).0 {
                            Found::Answer(answer) => answer,
                            Found::Alias(answer, target) => {
                                self.follow_alone(answer, target, request.kind)
                            }
                            Found::Foreign => return None,
                        };
                        answer.exists().then(|| led_to(&request.name, candidate, answer))
                    })
                });
                (found.unwrap_or(answer), part)
            }
            Found::Answer(answer) => (answer, part),
        }
    }

    /// Follows an alias as far as it stays here.
    fn follow_alone(&self, mut answer: Answer, mut target: Name, kind: RecordType) -> Answer {
        for _ in 0..ALIASES_MAX {
            match self.look_up(&target, kind).0 {
                Found::Answer(last) => return joined(answer, last),
                Found::Alias(next, further) => {
                    answer = joined(answer, next);
                    target = further;
                }
                Found::Foreign => return answer,
            }
        }
        Answer::failure(ResponseCode::ServFail)
    }

    /// Asks each other server a question that only this one is asked: who sends it here, loops.
    pub async fn look_for_loops(&self) -> Vec<(SocketAddr, bool)> {
        let servers = lock(&self.upstreams).addresses();
        let mut news = Vec::new();
        for server in servers {
            let before = *self.loops_seen.borrow();
            let question = Key {
                name: self.loop_name.clone(),
                kind: RecordType::HINFO,
                dnssec: (false, false),
            };
            let answered = exchange::ask(server, &question).await.is_ok();
            let looping = *self.loops_seen.borrow() != before;
            let known = looping || answered;
            if known && lock(&self.upstreams).set_looping(server, looping, Instant::now()) {
                news.push((server, looping));
            }
        }
        news
    }

    fn directory(&self) -> RwLockReadGuard<'_, Option<Directory>> {
        // A change that panicked left a state as good as any other.
        self.directory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_loop_test(&self, name: &Name) -> bool {
        let hit = *name == self.loop_name;
        if hit {
            self.loops_seen.send_modify(|seen| *seen += 1);
        }
        hit
    }

    /// What this server itself has to say.
    fn look_up(&self, name: &Name, kind: RecordType) -> (Found, Part) {
        match self.settings.statics.answer(name, kind) {
            Found::Foreign => {}
            found @ (Found::Answer(_) | Found::Alias(..)) => return (found, Part::Static),
        }
        let directory = self.directory();
        match self.settings.cluster.answer(directory.as_ref(), name, kind) {
            Found::Foreign => (Found::Foreign, Part::Forward),
            found @ (Found::Answer(_) | Found::Alias(..)) => (found, Part::Cluster),
        }
    }

    /// Follows an alias as long as it stays here; `None` when it leaves.
    fn follow_now(&self, mut answer: Answer, mut target: Name, kind: RecordType) -> Option<Answer> {
        for _ in 0..ALIASES_MAX {
            match self.look_up(&target, kind).0 {
                Found::Answer(last) => return Some(joined(answer, last)),
                Found::Alias(next, further) => {
                    answer = joined(answer, next);
                    target = further;
                }
                Found::Foreign => return None,
            }
        }
        Some(Answer::failure(ResponseCode::ServFail))
    }

    async fn follow(
        self: &Arc<Self>,
        mut answer: Answer,
        mut target: Name,
        request: &Request,
    ) -> Answer {
        for _ in 0..ALIASES_MAX {
            match self.look_up(&target, request.kind).0 {
                Found::Answer(last) => return joined(answer, last),
                Found::Alias(next, further) => {
                    answer = joined(answer, next);
                    target = further;
                }
                Found::Foreign => {
                    return joined(answer, self.forward(&key(&target, request)).await);
                }
            }
        }
        Answer::failure(ResponseCode::ServFail)
    }

    /// The name that a pod was looking for, and the domains that it would try after this one.
    fn search_path(&self, name: &Name, client: IpAddr) -> Option<(Name, Vec<Name>)> {
        if !self.settings.autopath {
            return None;
        }
        let directory = self.directory();
        let (namespace, _) = directory.as_ref()?.client(client)?;
        let domain = self.settings.cluster.domain();
        let services = domain.prepend_label("svc").ok()?;
        let first = services.prepend_label(namespace.as_str()).ok()?;
        if !first.zone_of(name) || name.num_labels() <= first.num_labels() {
            return None;
        }
        let count = usize::from(name.num_labels() - first.num_labels());
        let base = Name::from_labels(name.iter().take(count)).ok()?;
        let mut path = vec![services, domain.clone()];
        path.extend(self.search.load().iter().cloned());
        path.push(Name::root());
        Some((base, path))
    }

    /// Tries the rest of a search path, and leads from the asked name to the one that exists.
    async fn walk(
        self: &Arc<Self>,
        request: &Request,
        base: &Name,
        path: &[Name],
    ) -> Option<Answer> {
        for domain in path {
            let Some(candidate) = below(base, domain) else { continue };
            let answer = match self.look_up(&candidate, request.kind).0 {
                Found::Answer(answer) => answer,
                Found::Alias(answer, target) => self.follow(answer, target, request).await,
                // A cluster that knows no other servers knows all names that there are for it.
                Found::Foreign if !self.has_servers(&candidate) => continue,
                Found::Foreign => self.forward(&key(&candidate, request)).await,
            };
            if answer.exists() {
                return Some(led_to(&request.name, candidate, answer));
            }
            if answer.rcode != ResponseCode::NXDomain {
                // Nobody knows whether the name exists there, so nothing behind it may be told.
                return Some(Answer::failure(ResponseCode::ServFail));
            }
        }
        None
    }

    fn has_servers(&self, name: &Name) -> bool {
        !lock(&self.upstreams).choose(name, Instant::now()).is_empty()
    }

    /// The answer of other servers, or the best that is known of it.
    async fn forward(self: &Arc<Self>, key: &Key) -> Answer {
        let stale = match lock(&self.cache).get(key, Instant::now()) {
            Hit::Fresh { answer, .. } => {
                count(&self.stats.cache_hits);
                return answer;
            }
            Hit::Stale(answer) => Some(answer),
            Hit::Miss => None,
        };
        count(&self.stats.cache_misses);
        let fetched = match &stale {
            Some(_) => timeout(STALE_AFTER, self.fetch(key)).await.ok(),
            None => Some(self.fetch(key).await),
        };
        let good = |answer: &Answer| answer.rcode != ResponseCode::ServFail;
        match (fetched.filter(|answer| good(answer) || stale.is_none()), stale) {
            (Some(answer), _) => answer,
            (None, Some(old)) => {
                count(&self.stats.stale);
                old
            }
            (None, None) => Answer::failure(ResponseCode::ServFail),
        }
    }

    /// Asks other servers, once for all who want to know the same.
    async fn fetch(self: &Arc<Self>, key: &Key) -> Answer {
        let mut news = {
            let mut under_way = lock(&self.under_way);
            match under_way.get(key) {
                Some(news) => news.clone(),
                None => {
                    let (tell, news) = watch::channel(None);
                    under_way.insert(key.clone(), news.clone());
                    let (resolver, key) = (Arc::clone(self), key.clone());
                    // On its own, so that it ends although the first one to ask may give up.
                    tokio::spawn(async move {
                        let answer = resolver.ask_others(&key).await;
                        lock(&resolver.cache).put(key.clone(), &answer, Instant::now());
                        lock(&resolver.under_way).remove(&key);
                        tell.send_replace(Some(answer));
                    });
                    news
                }
            }
        };
        let answered = news.wait_for(Option::is_some).await;
        let answer = answered.ok().and_then(|answer| answer.clone());
        answer.unwrap_or_else(|| Answer::failure(ResponseCode::ServFail))
    }

    async fn ask_others(&self, key: &Key) -> Answer {
        let servers = lock(&self.upstreams).choose(&key.name, Instant::now());
        for server in servers {
            match exchange::ask(server, key).await {
                Ok(answer) if !is_failure(answer.rcode) => {
                    lock(&self.upstreams).answered(server);
                    return answer;
                }
                Ok(_) | Err(_) => {
                    self.stats.forward_failures.fetch_add(1, Ordering::Relaxed);
                    lock(&self.upstreams).failed(server, Instant::now());
                }
            }
        }
        Answer::failure(ResponseCode::ServFail)
    }
}

/// The zones that responses are counted for: longer ones first, so that the first that fits is the right one.
fn counted_zones(settings: &Settings) -> Vec<(Part, Name)> {
    let cluster = settings.cluster.zones().into_iter().map(|zone| (Part::Cluster, zone));
    // Records outside of the configuration's zones are counted for the root.
    let root = [Part::Static, Part::Forward].map(|part| (part, Name::root()));
    let statics = settings.statics.zones().iter().map(|zone| (Part::Static, zone.clone()));
    let stubs = settings.stubs.iter().map(|zone| (Part::Forward, zone.clone()));
    let mut zones: Vec<_> = cluster.chain(statics).chain(stubs).chain(root).collect();
    zones.sort_by_key(|(part, zone)| (*part, std::cmp::Reverse(zone.num_labels())));
    zones.dedup();
    zones
}

/// A name as it is along a search path.
fn below(base: &Name, domain: &Name) -> Option<Name> {
    let mut name = base.clone();
    name.set_fqdn(false);
    let mut candidate = name.append_domain(domain).ok()?;
    candidate.set_fqdn(true);
    Some(candidate)
}

/// An alias from the name that was asked for to the one that exists, and what is there.
fn led_to(name: &Name, found: Name, answer: Answer) -> Answer {
    let least = answer.answers.iter().map(|record| record.ttl).min().unwrap_or(0);
    let alias = Record::from_rdata(name.clone(), least, RData::CNAME(CNAME(found)));
    joined(Answer::records(vec![alias]), answer)
}

/// What another server might do better.
fn is_failure(rcode: ResponseCode) -> bool {
    [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp, ResponseCode::FormErr]
        .contains(&rcode)
}

fn key(name: &Name, request: &Request) -> Key {
    let dnssec_ok = request.edns.is_some_and(|edns| edns.dnssec_ok);
    Key { name: name.clone(), kind: request.kind, dnssec: (dnssec_ok, request.checking_disabled) }
}

/// An alias and what it leads to: the code is that of the last name (RFC 6604 §3).
fn joined(first: Answer, last: Answer) -> Answer {
    let mut answers = first.answers;
    answers.extend(last.answers);
    Answer { answers, authoritative: first.authoritative, ..last }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after each statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "tests/resolver.rs"]
mod tests;
