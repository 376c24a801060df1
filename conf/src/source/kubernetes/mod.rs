//! The API server of a Kubernetes cluster as the source of objects.
//!
//! Each kind has a task, which does what its [`reflector`] says and passes on what changes. Everything that
//! decides is pure: [`resource`] (what is watched), [`wire`] (paths and answers), [`store`] (the objects),
//! [`reflector`] (when to ask for what), [`snapshot`] (what is kept for a start without the server). [`client`] is the way to the server.

pub mod client;
pub mod objects;
pub mod reflector;
pub mod resource;
pub mod snapshot;
pub mod store;
pub mod wire;

use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

pub use client::{Access, Api};
pub use objects::{Health, SharedObjects};
pub use reflector::Timing;

use self::client::Lines;
use self::reflector::{Failure, Step};
use super::watch::Update;
use crate::cluster::{Change, ObjectKind};

/// Updates that may wait to be taken up; further ones wait at the server.
const UPDATES_MAX: usize = 16;

/// Most events that are taken up at once.
const BATCH_LEN_MAX: usize = 1000;

/// What one kind has to tell.
#[derive(Debug)]
struct News {
    /// The place of the kind.
    ix: usize,
    update: Update,
    /// Whether with this all of the kind was told once.
    complete: bool,
}

/// The tasks that keep objects in step, until this is dropped.
#[derive(Debug)]
pub struct Source {
    objects: SharedObjects,
    updates: mpsc::Receiver<News>,
    /// Ends with this.
    _tasks: JoinSet<()>,
}

impl Source {
    /// Starts to keep objects in step with a server, whether it can be reached or not. Must be called within a
    /// tokio runtime.
    pub fn start(api: Api, timing: Timing, seed: u64) -> Self {
        Self::resume(SharedObjects::new(api, timing, seed))
    }

    /// The same with objects that may know something already. Must be called within a tokio runtime.
    pub fn resume(objects: SharedObjects) -> Self {
        let (send, updates) = mpsc::channel(UPDATES_MAX);
        let mut tasks = JoinSet::new();
        for ix in 0..objects.len() {
            tasks.spawn(follow(objects.clone(), ix, send.clone()));
        }
        Self { objects, updates, _tasks: tasks }
    }

    /// The objects, and how they stand.
    pub fn objects(&self) -> SharedObjects {
        self.objects.clone()
    }

    /// Waits for the next change: of objects, or, when it is empty, of how they stand. Whoever asks takes it up
    /// before it asks what is known. May be cancelled.
    pub async fn next(&mut self) -> Update {
        match self.updates.recv().await {
            Some(News { ix, update, complete }) => {
                if complete {
                    self.objects.set_passed_on(ix);
                }
                update
            }
            // The tasks end with this, and not before.
            None => std::future::pending().await,
        }
    }
}

/// Keeps one kind in step for ever.
async fn follow(objects: SharedObjects, ix: usize, updates: mpsc::Sender<News>) {
    let kind = objects.lock(ix).resource().kind;
    while !updates.is_closed() {
        let (step, path) = {
            let mut reflector = objects.lock(ix);
            let step = reflector.step(Instant::now());
            let path = wire::request(reflector.resource(), &step);
            (step, path)
        };
        match (step, path) {
            (Step::Wait(until), _) => sleep_until(until.into()).await,
            (Step::List { .. }, Some(path)) => list(&objects, ix, kind, &path, &updates).await,
            (Step::Watch { .. }, Some(path)) => watch(&objects, ix, kind, &path, &updates).await,
            // Every request has a path.
            (Step::List { .. } | Step::Watch { .. }, None) => return,
        }
    }
}

async fn list(
    objects: &SharedObjects,
    ix: usize,
    kind: ObjectKind,
    path: &str,
    updates: &mpsc::Sender<News>,
) {
    let page = match objects.api().get(path).await {
        Ok(body) => {
            // A chunk of pods takes some milliseconds.
            let read = tokio::task::spawn_blocking(move || wire::page(kind, &body)).await;
            read.unwrap_or_else(|_panic| Err(Failure::Unreachable("its list is no list".into())))
        }
        Err(failure) => Err(failure),
    };
    let changes = match page {
        Ok(page) => objects.lock(ix).listed(page),
        Err(failure) => return fail(objects, ix, failure, updates).await,
    };
    tell(objects, ix, changes, updates).await;
}

async fn watch(
    objects: &SharedObjects,
    ix: usize,
    kind: ObjectKind,
    path: &str,
    updates: &mpsc::Sender<News>,
) {
    let mut lines = match objects.api().watch(path).await {
        Ok(lines) => lines,
        Err(failure) => return fail(objects, ix, failure, updates).await,
    };
    let had_trouble = {
        let mut reflector = objects.lock(ix);
        let had_trouble = reflector.trouble().is_some();
        reflector.watching();
        had_trouble
    };
    if had_trouble {
        tell(objects, ix, Vec::new(), updates).await;
    }
    loop {
        match lines.more().await {
            Ok(true) => {}
            Ok(false) => return objects.lock(ix).ended(Instant::now()),
            Err(failure) => return fail(objects, ix, failure, updates).await,
        }
        loop {
            let (count, changes, failure) = take_up(objects, ix, kind, &mut lines);
            if !changes.is_empty() {
                tell(objects, ix, changes, updates).await;
            }
            if let Some(failure) = failure {
                return fail(objects, ix, failure, updates).await;
            }
            if count < BATCH_LEN_MAX {
                break;
            }
        }
    }
}

/// Takes up the events that are there. Returns how many, what they change, and why there will be no more.
fn take_up(
    objects: &SharedObjects,
    ix: usize,
    kind: ObjectKind,
    lines: &mut Lines,
) -> (usize, Vec<Change>, Option<Failure>) {
    let (mut seen, mut failure, mut count) = (Vec::new(), None, 0);
    while count < BATCH_LEN_MAX
        && let Some(line) = lines.ready()
    {
        count += 1;
        match wire::event(kind, line) {
            Ok(event) => seen.extend(event),
            Err(found) => {
                failure = Some(found);
                break;
            }
        }
    }
    let mut reflector = objects.lock(ix);
    let changes = seen.into_iter().filter_map(|seen| reflector.seen(seen)).collect();
    (count, changes, failure)
}

async fn fail(objects: &SharedObjects, ix: usize, failure: Failure, updates: &mpsc::Sender<News>) {
    let changes = objects.lock(ix).failed(failure, Instant::now());
    tell(objects, ix, changes, updates).await;
}

async fn tell(
    objects: &SharedObjects,
    ix: usize,
    changes: Vec<Change>,
    updates: &mpsc::Sender<News>,
) {
    let complete = objects.lock(ix).is_complete();
    let update = Update { changes, files: 0 };
    // Nobody listens any more when the source is dropped, and the task ends.
    let _ = updates.send(News { ix, update, complete }).await;
}
