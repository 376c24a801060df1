//! What the name server counts, and the log of questions that somebody watches.

use std::array;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// Which part of the names a question was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The cluster's domain and the reverse zones of its addresses.
    Cluster,
    /// Zones and records of the configuration.
    Static,
    /// All others.
    Forward,
    /// None: the request could not be served.
    None,
}

impl Part {
    /// The part's name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Static => "static",
            Self::Forward => "forward",
            Self::None => "none",
        }
    }
}

/// Response codes that are told apart: those of the header's four bits, and BADVERS.
const CODES: usize = 17;

/// Upper bounds of the latency buckets, in microseconds; one more bucket has the rest.
pub const LATENCY_BOUNDS_US: [u64; 8] =
    [100, 300, 1000, 3000, 10_000, 100_000, 1_000_000, 5_000_000];

/// Questions that wait for a slow reader of the log before it misses some.
const LOG_MAX: usize = 1024;

/// A zone that responses are counted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedZone {
    /// Its name, as metrics show it.
    pub name: String,
    /// The part of the names that it belongs to.
    pub part: Part,
}

/// Counters, written by all servers.
#[derive(Debug)]
pub struct Stats {
    /// Zones, with responses by code. The last is for what is in none of them.
    zones: Vec<(CountedZone, [AtomicU64; CODES])>,
    latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    latency_sum_us: AtomicU64,
    /// Answers out of the cache.
    pub cache_hits: AtomicU64,
    /// Questions that the cache could not answer.
    pub cache_misses: AtomicU64,
    /// Answers that had ended, told because no server answered.
    pub stale: AtomicU64,
    /// Answers that were fetched before they ended.
    pub prefetches: AtomicU64,
    /// Questions that other servers did not answer.
    pub forward_failures: AtomicU64,
    /// Questions refused because too many waited for other servers.
    pub overload: AtomicU64,
    /// Names found along the search path of the pod that asked.
    pub autopath: AtomicU64,
    /// What came in and was no request at all.
    pub ignored: AtomicU64,
    /// Responses that could not be sent.
    pub unsent: AtomicU64,
    log: broadcast::Sender<QueryLine>,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogLine {
    /// A question and its answer.
    Query(QueryLine),
    /// The reader was too slow.
    Missed {
        /// How many questions it has missed.
        missed: u64,
    },
}

/// One question and how it was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryLine {
    /// When it was answered.
    pub time: Timestamp,
    /// Who asked.
    pub client: IpAddr,
    /// The pod that has this address, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The name.
    pub name: String,
    /// The type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The response's code.
    pub rcode: String,
    /// Records in the answer.
    pub answers: usize,
    /// Which part of the names it is about.
    pub part: Part,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// Totals at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Responses by zone and code; those that are zero are left out.
    pub responses: Vec<(CountedZone, String, u64)>,
    /// Responses by latency: for each bound of [`LATENCY_BOUNDS_US`], and for what took longer.
    pub latency: Vec<u64>,
    /// The sum of all latencies, in microseconds.
    pub latency_sum_us: u64,
    /// Everything else, by name.
    pub others: Vec<(&'static str, u64)>,
}

impl Stats {
    /// Nothing is counted yet. `zones` are those that responses are counted for, each by its place in the list.
    pub fn new(zones: impl IntoIterator<Item = CountedZone>) -> Self {
        let zero = || AtomicU64::new(0);
        let none = CountedZone { name: "none".to_owned(), part: Part::None };
        let zones = zones.into_iter().chain([none]);
        Self {
            zones: zones.map(|zone| (zone, array::from_fn(|_| zero()))).collect(),
            latency: array::from_fn(|_| zero()),
            latency_sum_us: zero(),
            cache_hits: zero(),
            cache_misses: zero(),
            stale: zero(),
            prefetches: zero(),
            forward_failures: zero(),
            overload: zero(),
            autopath: zero(),
            ignored: zero(),
            unsent: zero(),
            log: broadcast::channel(LOG_MAX).0,
        }
    }

    /// Counts a response about a name of the `zone`th zone; `None` for what is in no zone.
    pub fn responded(&self, zone: Option<usize>, rcode: ResponseCode, took: Duration) {
        let code = usize::from(u16::from(rcode)).min(CODES - 1);
        let last = self.zones.len() - 1;
        if let Some((_, codes)) = self.zones.get(zone.unwrap_or(last).min(last)) {
            count(&codes[code]);
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.iter().position(|bound| us <= *bound);
        count(&self.latency[bucket.unwrap_or(LATENCY_BOUNDS_US.len())]);
        self.latency_sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Whether somebody reads the log.
    pub fn is_watched(&self) -> bool {
        self.log.receiver_count() > 0
    }

    /// Tells a question to those who read the log.
    pub fn log(&self, line: QueryLine) {
        // An error means that the last reader has just left.
        let _ = self.log.send(line);
    }

    /// The questions from now on.
    pub fn watch(&self) -> broadcast::Receiver<QueryLine> {
        self.log.subscribe()
    }

    /// All totals.
    pub fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut responses = Vec::new();
        for (zone, codes) in &self.zones {
            for (code, counter) in (0_u8..).zip(codes) {
                let total = get(counter);
                if total > 0 {
                    responses.push((
                        zone.clone(),
                        code_name(ResponseCode::from(code >> 4, code & 15)),
                        total,
                    ));
                }
            }
        }
        Totals {
            responses,
            latency: self.latency.iter().map(get).collect(),
            latency_sum_us: get(&self.latency_sum_us),
            others: vec![
                ("cache_hits", get(&self.cache_hits)),
                ("cache_misses", get(&self.cache_misses)),
                ("stale_answers", get(&self.stale)),
                ("prefetches", get(&self.prefetches)),
                ("forward_failures", get(&self.forward_failures)),
                ("overload", get(&self.overload)),
                ("autopath", get(&self.autopath)),
                ("ignored", get(&self.ignored)),
                ("unsent", get(&self.unsent)),
            ],
        }
    }
}

/// Counts one up.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A code as dig shows it: `NOERROR`, `NXDOMAIN`.
pub fn code_name(rcode: ResponseCode) -> String {
    let known = [
        (ResponseCode::NoError, "NOERROR"),
        (ResponseCode::FormErr, "FORMERR"),
        (ResponseCode::ServFail, "SERVFAIL"),
        (ResponseCode::NXDomain, "NXDOMAIN"),
        (ResponseCode::NotImp, "NOTIMP"),
        (ResponseCode::Refused, "REFUSED"),
        (ResponseCode::BADVERS, "BADVERS"),
    ];
    let name = known.iter().find(|(code, _)| *code == rcode).map(|(_, name)| (*name).to_owned());
    name.unwrap_or_else(|| format!("RCODE{}", u16::from(rcode)))
}
