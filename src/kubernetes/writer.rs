//! Writes to the API server what people look for there: that the node's network is up, addresses of load
//! balancers, and events of objects that cannot be honoured.
//!
//! What each node knows best, it writes itself. What all nodes know alike, the one writes that holds the Lease.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use conf::source::kubernetes::Api;
use conf::source::kubernetes::reflector::Failure;
use http::Method;
use jiff::Timestamp;
use serde_json::Value;

use super::election::{Election, RENEW_PAUSE, Turn};
use super::writes::{self, LEASE, Notice, Write};
use crate::control::{SharedControl, WriteBack};

/// How often the node says that its network is up: the condition's heartbeat.
const HEARTBEAT_PAUSE: Duration = Duration::from_secs(300);

/// How often the same is said of the same object.
const REPEAT_PAUSE: Duration = Duration::from_secs(3600);

/// Most events at a time, and most that are remembered as told.
const EVENTS_PER_TURN: usize = 5;
const TOLD_MAX: usize = 2000;

/// Most addresses that are written at a time.
const INGRESS_PER_TURN: usize = 20;

/// Writes for ever.
pub async fn run(api: Api, control: SharedControl, node: String) {
    let mut writer = Writer {
        api,
        election: Election::new(&node, LEASE),
        node,
        heartbeat_at: None,
        told: BTreeMap::new(),
    };
    loop {
        tokio::time::sleep(RENEW_PAUSE).await;
        let control = control.clone();
        let gathered = tokio::task::spawn_blocking(move || control.lock().write_back()).await;
        // A panic there ends the daemon by another way.
        let Ok(gathered) = gathered else { return };
        writer.turn(gathered).await;
    }
}

struct Writer {
    api: Api,
    node: String,
    election: Election,
    heartbeat_at: Option<Instant>,
    /// What was told of whom, and when.
    told: BTreeMap<Notice, Instant>,
}

impl Writer {
    async fn turn(&mut self, gathered: WriteBack) {
        let now = Instant::now();
        if gathered.ready && self.heartbeat_at.is_none_or(|at| at.elapsed() >= HEARTBEAT_PAUSE) {
            let is_first = self.heartbeat_at.is_none();
            let write = writes::network_available(&self.node, Timestamp::now(), is_first);
            if self.write(&write).await {
                self.heartbeat_at = Some(now);
            }
        }
        if gathered.is_candidate {
            self.elect().await;
        }
        let mut notices = gathered.own;
        if self.election.acts(Instant::now()) {
            for write in gathered.ingress.iter().take(INGRESS_PER_TURN) {
                self.write(write).await;
            }
            notices.extend(gathered.of_all);
        }
        self.tell(notices).await;
    }

    async fn elect(&mut self) {
        let now = Instant::now();
        let lease = match self.api.get(&writes::lease_path(Some(LEASE))).await {
            Ok(body) => match serde_json::from_slice::<Value>(&body) {
                Ok(lease) => Some(lease),
                Err(error) => return tracing::debug!(%error, "the Lease cannot be read"),
            },
            Err(Failure::NotServed) => None,
            Err(failure) => return tracing::debug!(%failure, "the Lease cannot be had"),
        };
        let (method, path, body) = match self.election.turn(lease.as_ref(), now, Timestamp::now()) {
            Turn::Leave => return,
            Turn::Create(body) => ("POST", writes::lease_path(None), body),
            Turn::Update(body) => ("PUT", writes::lease_path(Some(LEASE)), body),
        };
        if self.write(&Write { method, path, media_type: writes::OBJECT, body }).await {
            self.election.won(now);
        }
    }

    async fn tell(&mut self, notices: Vec<Notice>) {
        self.told.retain(|_, at| at.elapsed() < REPEAT_PAUSE);
        let new: Vec<Notice> =
            notices.into_iter().filter(|notice| !self.told.contains_key(notice)).collect();
        for notice in new.into_iter().take(EVENTS_PER_TURN) {
            if self.told.len() >= TOLD_MAX {
                return;
            }
            if self.write(&writes::event(&notice, &self.node, Timestamp::now())).await {
                self.told.insert(notice, Instant::now());
            }
        }
    }

    /// Whether it was written. What was not is tried again with the next turn, as far as it still is so.
    async fn write(&self, write: &Write) -> bool {
        let Write { method, path, media_type, body } = write;
        let method = match *method {
            "POST" => Method::POST,
            "PUT" => Method::PUT,
            _ => Method::PATCH,
        };
        match self.api.send(method, path, media_type, body.to_string().into_bytes()).await {
            Ok(_) => true,
            // Another node was faster.
            Err(Failure::Refused { status: 409, .. }) => false,
            Err(failure) => {
                tracing::debug!(path, %failure, "the API server does not take what is written");
                false
            }
        }
    }
}
