//! What happens, for people and programs: each event is a line of the log, and goes to whoever watches
//! (`weft watch`). Every event has a [`Code`] out of one table.

mod codes;
mod gossip;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

pub use self::codes::{Code, Level};
pub(crate) use self::gossip::log_gossip;

/// Events that wait for a slow watcher; when there are more, it misses the oldest and is told how many.
pub const WAITING_MAX: usize = 1024;

/// Something that happened, as `weft watch -o json` prints it: one to a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Counts the events of one run of the daemon, from 1. Who finds a gap has missed some.
    pub seq: u64,
    /// When, in UTC (RFC 3339).
    pub time: Timestamp,
    /// Name of the node that tells.
    pub node: String,
    /// The code: see `docs/operations.md`.
    pub code: String,
    /// How bad it is.
    pub level: Level,
    /// What happened, in words.
    pub text: String,
    /// What it is about: `node`, `prefix`, `address`, …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub about: BTreeMap<String, String>,
}

/// Tells what happens to the log and to all who watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    node: Arc<str>,
    seq: Arc<AtomicU64>,
    watchers: broadcast::Sender<Arc<EventRecord>>,
}

impl EventLog {
    /// Makes one for the node of this name.
    pub fn new(node: &str) -> Self {
        let (watchers, _) = broadcast::channel(WAITING_MAX);
        Self { node: node.into(), seq: Arc::default(), watchers }
    }

    /// Tells that something happened, and what it is about.
    pub fn emit(&self, code: Code, text: impl Into<String>, about: &[(&str, &dyn ToString)]) {
        let text = text.into();
        let about: BTreeMap<_, _> =
            about.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect();
        let named: String = about.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let name = code.as_str();
        match code.level() {
            Level::Info => tracing::info!(code = name, "{text}{named}"),
            Level::Warn => tracing::warn!(code = name, "{text}{named}"),
            Level::Error => tracing::error!(code = name, "{text}{named}"),
        }
        let record = EventRecord {
            seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1,
            time: now(),
            node: self.node.to_string(),
            code: name.to_owned(),
            level: code.level(),
            text,
            about,
        };
        // An error means that nobody watches.
        let _nobody = self.watchers.send(Arc::new(record));
    }

    /// Watches from now on.
    pub fn watch(&self) -> Watch {
        Watch { node: Arc::clone(&self.node), events: self.watchers.subscribe() }
    }
}

/// The events from one moment on.
#[derive(Debug)]
pub struct Watch {
    node: Arc<str>,
    events: broadcast::Receiver<Arc<EventRecord>>,
}

impl Watch {
    /// Waits for the next event. After some were missed it says how many. `None` once there will be no more.
    pub async fn next(&mut self) -> Option<Arc<EventRecord>> {
        match self.events.recv().await {
            Ok(record) => Some(record),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(Arc::new(self.lost(lost))),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// A record that none of the daemon's own has the place of: its number is 0.
    fn lost(&self, lost: u64) -> EventRecord {
        let code = Code::EventsLost;
        EventRecord {
            seq: 0,
            time: now(),
            node: self.node.to_string(),
            code: code.as_str().to_owned(),
            level: code.level(),
            text: format!("{lost} events were missed: they came faster than they were read"),
            about: [("lost".to_owned(), lost.to_string())].into(),
        }
    }
}

/// To the millisecond; nobody reads more.
fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(Unit::Millisecond).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_watches_sees_what_happens_from_then_on() {
        let log = EventLog::new("n1");
        log.emit(Code::DaemonStarted, "weftd runs", &[]);
        let mut watch = log.watch();
        log.emit(Code::NodeUp, "node n2 is up", &[("node", &"n2"), ("underlay", &"192.0.2.2")]);
        let record = watch.next().await.unwrap();
        assert_eq!((record.seq, record.code.as_str(), record.level), (2, "node-up", Level::Info));
        assert_eq!(record.about["underlay"], "192.0.2.2");
        let line = serde_json::to_string(&*record).unwrap();
        assert!(line.contains(r#""level":"info""#) && line.contains(r#""node":"n1""#), "{line}");
        assert_eq!(serde_json::from_str::<EventRecord>(&line).unwrap(), *record);
        drop(log);
        assert_eq!(watch.next().await, None);
    }

    #[tokio::test]
    async fn who_reads_slowly_is_told_how_much_was_missed() {
        let log = EventLog::new("n1");
        let mut watch = log.watch();
        let all = WAITING_MAX as u64 + 10;
        for _ in 0..all {
            log.emit(Code::Synced, "the map is complete", &[]);
        }
        let lost = watch.next().await.unwrap();
        assert_eq!((lost.code.as_str(), lost.about["lost"].as_str()), ("events-lost", "10"));
        for seq in 11..=all {
            assert_eq!(watch.next().await.unwrap().seq, seq);
        }
    }
}
