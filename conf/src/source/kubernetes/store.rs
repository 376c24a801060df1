//! The objects of one kind, as an API server has told them. Pure.

use std::collections::BTreeMap;

use crate::cluster::parse::{Accepted, ApiObject, FieldProblem, parse_api};
use crate::cluster::{Change, Object, ObjectKey, ObjectKind, ObjectName};

/// Most deleted objects that are remembered, so that late news of them raise nobody from the dead.
const TOMBSTONES_MAX: usize = 4096;

/// An object that was read and judged, outside of any lock.
#[derive(Debug)]
pub struct Judged {
    name: ObjectName,
    version: Option<u64>,
    uid: Option<u128>,
    fate: Fate,
}

impl Judged {
    /// Reads an object. `None` when it has no name, which no API server sends.
    pub fn new(kind: ObjectKind, object: &ApiObject) -> Option<Self> {
        let name = name_of(object)?;
        let fate = match parse_api(kind, object) {
            Ok(Accepted { object, notes, .. }) => {
                Fate::InForce { object, notes: notes.into_boxed_slice() }
            }
            Err(problems) => Fate::Refused { problems: problems.into_boxed_slice(), kept: None },
        };
        Some(Self { name, version: number(object.version()), uid: uid_number(object.uid()), fate })
    }
}

/// The name of an object, whatever else it is.
pub fn name_of(object: &ApiObject) -> Option<ObjectName> {
    let name = object.name();
    (!name.is_empty()).then(|| ObjectName::new(object.namespace(), name))
}

/// A version as a number. API servers count (KEP-5504), though nobody had to for long; of those that do not,
/// whatever comes is new.
pub fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

/// A UID as a number, which takes less memory. API servers give random UUIDs (RFC 9562 §5.4); others are not kept.
fn uid_number(uid: &str) -> Option<u128> {
    let digits: String = uid.split('-').collect();
    let is_uuid = uid.len() == 36 && digits.len() == 32;
    u128::from_str_radix(&digits, 16).ok().filter(|_| is_uuid)
}

/// The same as a UID again.
fn uid_text(number: u128) -> String {
    let digits = format!("{number:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
    parts.join("-")
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is in force.
    InForce {
        /// The object.
        object: Object,
        /// What of it is not honoured.
        notes: Box<[FieldProblem]>,
    },
    /// It cannot be honoured.
    Refused {
        /// Why: at least one reason.
        problems: Box<[FieldProblem]>,
        /// What it was before, which stays in force: a policy that was changed. Without it, pods that it shuts would be
        /// open.
        kept: Option<Object>,
    },
}

impl Fate {
    /// What is in force of it.
    pub fn in_force(&self) -> Option<&Object> {
        match self {
            Self::InForce { object, .. } => Some(object),
            Self::Refused { kept, .. } => kept.as_ref(),
        }
    }

    fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

#[derive(Debug)]
struct Entry {
    version: Option<u64>,
    uid: Option<u128>,
    /// The list that has named it last.
    list: u32,
    /// Whether the server has not told it yet since the start.
    is_remembered: bool,
    fate: Fate,
}

/// The objects of one kind.
#[derive(Debug)]
pub struct Store {
    kind: ObjectKind,
    entries: BTreeMap<ObjectName, Entry>,
    /// With the version that they went with.
    deleted: BTreeMap<ObjectName, u64>,
    refused: usize,
    list: u32,
}

impl Store {
    /// No objects.
    pub fn new(kind: ObjectKind) -> Self {
        Self { kind, entries: BTreeMap::new(), deleted: BTreeMap::new(), refused: 0, list: 0 }
    }

    /// Takes up an object that is not told by the server but remembered of it. The next complete list has the last
    /// word about it. Must be called before anything else.
    pub fn restore(&mut self, object: Object) {
        let fate = Fate::InForce { object: object.clone(), notes: Box::default() };
        let entry = Entry { version: None, uid: None, list: self.list, is_remembered: true, fate };
        self.entries.insert(object.key().id, entry);
    }

    /// Forgets an object of which nothing is known but what is remembered: another one has its name now.
    pub fn forget_remembered(&mut self, name: &ObjectName) -> Option<Change> {
        let is_remembered = self.entries.get(name).is_some_and(|entry| entry.is_remembered);
        if is_remembered { self.remove(name) } else { None }
    }

    /// Begins a list. What is there stays until the list is complete.
    pub fn begin_list(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// Takes up an object of the list. A list has the last word: a cluster that was set back to an earlier
    /// state counts from there again.
    pub fn set_listed(&mut self, judged: Judged) -> Option<Change> {
        self.set(judged)
    }

    /// Ends a list that is complete. What it did not name is gone.
    pub fn end_list(&mut self) -> Vec<Change> {
        self.deleted.clear();
        let list = self.list;
        let gone: Vec<ObjectName> = (self.entries.iter())
            .filter(|(_, entry)| entry.list != list)
            .map(|(name, _)| name.clone())
            .collect();
        gone.into_iter().filter_map(|name| self.remove(&name)).collect()
    }

    /// Takes up that an object was made or changed. News that are older than what is known are none.
    pub fn set_seen(&mut self, judged: Judged) -> Option<Change> {
        let known = self.entries.get(&judged.name).and_then(|entry| entry.version);
        let known = known.max(self.deleted.get(&judged.name).copied());
        if judged.version.zip(known).is_some_and(|(new, known)| new <= known) {
            return None;
        }
        self.deleted.remove(&judged.name);
        self.set(judged)
    }

    /// Takes up that an object was deleted.
    pub fn set_deleted(&mut self, name: &ObjectName, version: Option<u64>) -> Option<Change> {
        let known = self.entries.get(name).and_then(|entry| entry.version);
        if version.zip(known).is_some_and(|(new, known)| new < known) {
            return None;
        }
        if let Some(version) = version {
            let before = self.deleted.get(name).copied().unwrap_or(0);
            self.deleted.insert(name.clone(), version.max(before));
            self.forget_old();
        }
        self.remove(name)
    }

    fn set(&mut self, judged: Judged) -> Option<Change> {
        let Judged { name, version, uid, mut fate } = judged;
        let before = self.entries.remove(&name).map(|entry| entry.fate);
        if let Some(before) = &before {
            self.refused -= usize::from(before.is_refused());
        }
        let before = before.as_ref().and_then(Fate::in_force);
        if let Fate::Refused { kept, .. } = &mut fate
            && self.kind.is_policy()
        {
            *kept = before.cloned();
        }
        let after = fate.in_force().cloned();
        self.refused += usize::from(fate.is_refused());
        let change = match (before, after) {
            (Some(before), Some(after)) if *before == after => None,
            (_, Some(after)) => Some(Change::Set(after)),
            (Some(_), None) => {
                Some(Change::Remove(ObjectKey { kind: self.kind, id: name.clone() }))
            }
            (None, None) => None,
        };
        let entry = Entry { version, uid, list: self.list, is_remembered: false, fate };
        self.entries.insert(name, entry);
        change
    }

    fn remove(&mut self, name: &ObjectName) -> Option<Change> {
        let gone = self.entries.remove(name)?.fate;
        self.refused -= usize::from(gone.is_refused());
        let key = ObjectKey { kind: self.kind, id: name.clone() };
        gone.in_force().is_some().then_some(Change::Remove(key))
    }

    fn forget_old(&mut self) {
        if self.deleted.len() <= TOMBSTONES_MAX {
            return;
        }
        let mut versions: Vec<u64> = self.deleted.values().copied().collect();
        let (_, median, _) = versions.select_nth_unstable(TOMBSTONES_MAX / 2);
        let median = *median;
        self.deleted.retain(|_, version| *version > median);
    }

    /// The kind.
    pub fn kind(&self) -> ObjectKind {
        self.kind
    }

    /// Every object, and what became of it, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Fate)> {
        self.entries.iter().map(|(name, entry)| (name, &entry.fate))
    }

    /// `metadata.uid` of an object.
    pub fn uid(&self, name: &ObjectName) -> Option<String> {
        self.entries.get(name)?.uid.map(uid_text)
    }

    /// How many objects there are, and how many of them are refused.
    pub fn counts(&self) -> (usize, usize) {
        (self.entries.len(), self.refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str, version: u64, team: &str) -> Judged {
        let text = format!(
            r#"{{"metadata":{{"name":"{name}","resourceVersion":"{version}","labels":{{"team":"{team}"}}}}}}"#
        );
        let object = serde_json::from_str(&text).unwrap();
        Judged::new(ObjectKind::Namespace, &object).unwrap()
    }

    fn id(name: &str) -> ObjectName {
        ObjectName::new("", name)
    }

    #[test]
    fn uids_come_back_as_they_were() {
        let uid = "0d1f5a2c-0000-4000-8000-00000000a001";
        assert_eq!(uid_number(uid).map(uid_text).as_deref(), Some(uid));
        for none in ["", "n1", "0d1f5a2c00004000800000000000a0011234", "é".repeat(18).as_str()] {
            assert_eq!(uid_number(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_remembered_stays_until_a_list_is_complete() {
        let mut store = Store::new(ObjectKind::Namespace);
        for name in ["a", "b", "c"] {
            let Fate::InForce { object, .. } = namespace(name, 5, "x").fate else { panic!() };
            store.restore(object);
        }
        store.begin_list();
        assert!(store.set_listed(namespace("a", 2, "x")).is_none(), "it is as it was");
        assert!(matches!(store.set_listed(namespace("b", 3, "y")), Some(Change::Set(_))));
        assert_eq!(store.counts(), (3, 0));
        let gone = store.end_list();
        assert!(matches!(&gone[..], [Change::Remove(key)] if key.id == id("c")));
    }

    #[test]
    fn old_news_are_none() {
        let mut store = Store::new(ObjectKind::Namespace);
        assert!(matches!(store.set_seen(namespace("a", 5, "x")), Some(Change::Set(_))));
        assert!(store.set_seen(namespace("a", 4, "y")).is_none());
        assert!(store.set_seen(namespace("a", 5, "y")).is_none());
        assert!(store.set_deleted(&id("a"), Some(4)).is_none());
        assert!(matches!(store.set_deleted(&id("a"), Some(7)), Some(Change::Remove(_))));
        // Late news of what was deleted raise nobody from the dead; one made anew is another.
        assert!(store.set_seen(namespace("a", 6, "y")).is_none());
        assert!(store.set_seen(namespace("a", 8, "y")).is_some());
        assert!(store.set_deleted(&id("a"), Some(7)).is_none());
        assert_eq!(store.counts(), (1, 0));
    }

    #[test]
    fn a_list_has_the_last_word_and_only_when_it_is_complete() {
        let mut store = Store::new(ObjectKind::Namespace);
        store.begin_list();
        store.set_listed(namespace("a", 5, "x"));
        store.set_listed(namespace("b", 6, "x"));
        assert!(store.end_list().is_empty());
        // The cluster was set back: versions are lower than before.
        store.begin_list();
        assert!(store.set_listed(namespace("b", 2, "y")).is_some());
        assert_eq!(store.counts(), (2, 0));
        // That list did not come to its end, and the next one names another.
        store.begin_list();
        store.set_listed(namespace("a", 3, "x"));
        let gone = store.end_list();
        assert_eq!(gone.len(), 1);
        assert!(matches!(&gone[0], Change::Remove(key) if key.id == id("b")));
    }

    #[test]
    fn what_becomes_wrong_is_not_in_force_any_more() {
        let mut store = Store::new(ObjectKind::Namespace);
        store.set_seen(namespace("a", 5, "x"));
        assert!(matches!(store.set_seen(namespace("a", 6, "no label!")), Some(Change::Remove(_))));
        assert_eq!(store.counts(), (1, 1));
        assert!(store.set_deleted(&id("a"), Some(7)).is_none());
        assert_eq!(store.counts(), (0, 0));
    }

    #[test]
    fn a_policy_that_becomes_wrong_stays_as_it_was() {
        let policy = |version: u64, spec: &str| {
            let text = format!(
                r#"{{"metadata":{{"name":"p","namespace":"a","resourceVersion":"{version}"}},"spec":{spec}}}"#
            );
            Judged::new(ObjectKind::NetworkPolicy, &serde_json::from_str(&text).unwrap()).unwrap()
        };
        let id = ObjectName::new("a", "p");
        let mut store = Store::new(ObjectKind::NetworkPolicy);
        let wrong = r#"{"podSelector":{},"ingress":[{"ports":[{"port":0}]}]}"#;
        assert!(store.set_seen(policy(1, wrong)).is_none(), "nothing was there to be kept");
        assert!(matches!(store.set_seen(policy(5, r#"{"podSelector":{}}"#)), Some(Change::Set(_))));
        for version in [6, 7] {
            assert!(store.set_seen(policy(version, wrong)).is_none());
            assert_eq!(store.counts(), (1, 1));
            assert!(store.iter().all(|(_, fate)| fate.in_force().is_some()));
        }
        assert!(matches!(store.set_deleted(&id, Some(8)), Some(Change::Remove(_))));
        assert_eq!(store.counts(), (0, 0));
    }

    #[test]
    fn what_is_only_remembered_is_forgotten_when_asked() {
        let mut store = Store::new(ObjectKind::Namespace);
        for name in ["a", "b"] {
            let Fate::InForce { object, .. } = namespace(name, 5, "x").fate else { panic!() };
            store.restore(object);
        }
        store.set_listed(namespace("b", 6, "x"));
        assert!(matches!(store.forget_remembered(&id("a")), Some(Change::Remove(_))));
        assert!(store.forget_remembered(&id("b")).is_none(), "the server has told it");
        assert!(matches!(store.set_listed(namespace("a", 6, "x")), Some(Change::Set(_))));
    }

    #[test]
    fn few_of_the_dead_are_remembered() {
        let mut store = Store::new(ObjectKind::Namespace);
        for version in 0..3 * TOMBSTONES_MAX as u64 {
            store.set_deleted(&id(&format!("n{version}")), Some(version));
        }
        assert!(store.deleted.len() <= TOMBSTONES_MAX);
        let last = 3 * TOMBSTONES_MAX as u64 - 1;
        assert!(store.deleted.contains_key(&id(&format!("n{last}"))));
    }
}
