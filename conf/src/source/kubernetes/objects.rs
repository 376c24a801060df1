//! The objects of an API server, which are looked at and changed in turns; what became of each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::client::Api;
use super::reflector::{Reflector, Timing, Trouble};
use super::resource::{Resource, WATCHED};
use super::store::Fate;
use crate::cluster::parse::{FieldProblem, Title};
use crate::cluster::{Change, ClusterState, Object, ObjectKey, ObjectKind, ObjectName};
use crate::source::manifests::{
    AcceptedObject, Counts, Listing, RefusedObject, note, service_view,
};

/// The objects of an API server. Copies are of the same ones.
#[derive(Debug, Clone)]
pub struct SharedObjects {
    api: Api,
    reflectors: Arc<[Mutex<Reflector>]>,
    /// Of which kinds a complete list was passed on, so that whoever takes up changes in order has it.
    passed_on: Arc<[AtomicBool]>,
}

/// How the objects stand with the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The server that is asked at present.
    pub server: String,
    /// Whether all objects were passed on once.
    pub complete: bool,
    /// Since when something of it may be old.
    pub stale_since: Option<Instant>,
    /// Why, in words.
    pub reason: Option<String>,
}

impl SharedObjects {
    /// Nothing is known yet. The seed spreads the pauses of many nodes.
    pub fn new(api: Api, timing: Timing, seed: u64) -> Self {
        let now = Instant::now();
        let reflector = |(ix, resource): (u64, &Resource)| {
            Mutex::new(Reflector::new(*resource, timing, seed.wrapping_add(ix), now))
        };
        let reflectors = (0..).zip(WATCHED).map(reflector).collect();
        let passed_on = WATCHED.iter().map(|_| AtomicBool::new(false)).collect();
        Self { api, reflectors, passed_on }
    }

    /// Takes up what is remembered of the server, before anything is asked of it: objects that are in force from now
    /// on, and stay as they are until their kind is listed. Those of kinds that are not watched are left out.
    /// Returns what changes by it.
    pub fn restore(&self, remembered: Vec<Object>) -> Vec<Change> {
        let mut changes = Vec::new();
        for object in remembered {
            let kind = object.key().kind;
            let Some(ix) = WATCHED.iter().position(|resource| resource.kind == kind) else {
                continue;
            };
            self.lock(ix).restore(object.clone());
            changes.push(Change::Set(object));
        }
        changes
    }

    /// Forgets a pod of which nothing is known but what is remembered. Returns what changes by it.
    pub fn forget_remembered_pod(&self, id: &ObjectName) -> Option<Change> {
        let ix = WATCHED.iter().position(|resource| resource.kind == ObjectKind::Pod)?;
        self.lock(ix).forget_remembered(id)
    }

    /// All objects that are in force, kind by kind.
    pub fn in_force(&self) -> Vec<Object> {
        let mut objects = Vec::new();
        for reflector in self.reflectors.iter().map(lock) {
            let fates = reflector.store().iter().map(|(_, fate)| fate);
            objects.extend(fates.filter_map(Fate::in_force).cloned());
        }
        objects
    }

    /// Who is asked.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// How many kinds there are.
    pub(super) fn len(&self) -> usize {
        self.reflectors.len()
    }

    /// Waits for one's turn with a kind.
    pub(super) fn lock(&self, ix: usize) -> MutexGuard<'_, Reflector> {
        lock(&self.reflectors[ix])
    }

    /// Notes that all objects of a kind were passed on once.
    pub(super) fn set_passed_on(&self, ix: usize) {
        self.passed_on[ix].store(true, Ordering::Release);
    }

    /// Whether all objects of a kind were passed on once.
    pub fn is_known(&self, kind: ObjectKind) -> bool {
        let mut kinds = WATCHED.iter().zip(self.passed_on.iter());
        kinds
            .any(|(resource, passed_on)| resource.kind == kind && passed_on.load(Ordering::Acquire))
    }

    /// `metadata.uid` of an object, where the server has told it.
    pub fn uid(&self, kind: ObjectKind, id: &ObjectName) -> Option<String> {
        let ix = WATCHED.iter().position(|resource| resource.kind == kind)?;
        self.lock(ix).store().uid(id)
    }

    /// How the objects stand with the API server.
    pub fn health(&self) -> Health {
        let complete = self.passed_on.iter().all(|passed_on| passed_on.load(Ordering::Acquire));
        let mut oldest: Option<(Trouble, &'static str)> = None;
        for reflector in self.reflectors.iter().map(lock) {
            if let Some(trouble) = reflector.trouble()
                && oldest.as_ref().is_none_or(|(other, _)| trouble.since < other.since)
            {
                oldest = Some((trouble.clone(), reflector.resource().plural));
            }
        }
        Health {
            server: self.api.server(),
            complete,
            stale_since: oldest.as_ref().map(|(trouble, _)| trouble.since),
            reason: oldest.map(|(trouble, plural)| format!("{plural}: {}", trouble.failure)),
        }
    }

    /// What cannot be honoured.
    pub fn refused(&self, state: &ClusterState) -> Vec<RefusedObject> {
        let mut listing = Listing::default();
        for reflector in self.reflectors.iter().map(lock) {
            let store = reflector.store();
            if store.counts().1 == 0 && store.kind() != ObjectKind::Service {
                continue;
            }
            let is_refused = |id: &ObjectName, fate: &Fate| {
                matches!(fate, Fate::Refused { .. })
                    || state.service(&id.namespace, &id.name).is_some_and(|it| it.refused.is_some())
            };
            for (id, fate) in store.iter().filter(|(id, fate)| is_refused(id, fate)) {
                let key = ObjectKey { kind: store.kind(), id: id.clone() };
                list(&key, fate, state, &mut listing);
            }
        }
        listing.refused
    }

    /// Everything that the server holds of the kinds that are watched, and what became of it.
    pub fn listing(&self, state: &ClusterState) -> Listing {
        let mut listing = Listing::default();
        for reflector in self.reflectors.iter().map(lock) {
            let store = reflector.store();
            for (id, fate) in store.iter() {
                let key = ObjectKey { kind: store.kind(), id: id.clone() };
                list(&key, fate, state, &mut listing);
            }
        }
        listing
    }

    /// How many objects there are of each fate. Cheaper than a [`Listing`].
    pub fn counts(&self, state: &ClusterState) -> Counts {
        let mut counts = Counts::default();
        for reflector in self.reflectors.iter().map(lock) {
            let (all, refused) = reflector.store().counts();
            counts.accepted += all - refused;
            counts.refused += refused;
        }
        let later = state.services().filter(|view| view.refused.is_some()).count();
        counts.accepted = counts.accepted.saturating_sub(later);
        counts.refused += later;
        counts
    }
}

fn list(key: &ObjectKey, fate: &Fate, state: &ClusterState, listing: &mut Listing) {
    let title = Title {
        kind: key.kind.as_str().to_owned(),
        namespace: key.id.namespace.to_string(),
        name: key.id.name.to_string(),
    };
    let mut refuse = |field: &str, reason: &str| {
        let problem = FieldProblem { line: 0, field: field.into(), reason: reason.into() };
        listing.refused.push(RefusedObject::new("", &title, &problem));
    };
    let notes = match fate {
        Fate::Refused { problems, .. } => {
            problems.iter().for_each(|problem| refuse(&problem.field, &problem.reason));
            return;
        }
        Fate::InForce { notes, .. } => notes,
    };
    let view = service_view(state, key);
    if let Some(refused) = view.and_then(|view| view.refused.as_ref()) {
        return refuse(&refused.field, &refused.reason);
    }
    let notes = notes.iter().map(|found| note(&found.field, &found.reason));
    let problems = view.into_iter().flat_map(|view| &view.problems);
    let problems = problems.map(|found| note(&found.field, &found.reason));
    listing.accepted.push(AcceptedObject {
        file: String::new(),
        line: 0,
        kind: title.kind,
        namespace: title.namespace,
        name: title.name,
        notes: notes.chain(problems).collect(),
    });
}

/// A panic of whoever had it leaves objects that the next list puts right.
fn lock(reflector: &Mutex<Reflector>) -> MutexGuard<'_, Reflector> {
    reflector.lock().unwrap_or_else(PoisonError::into_inner)
}
