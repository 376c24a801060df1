//! The objects of many files: which of them are in force, and what is wrong with the others.
//!
//! Pure: files come in as what [`parse`](crate::cluster::parse::parse) makes of them, and changes of objects
//! go out. Of several definitions of one object the first counts, by the file's name and then by its place in
//! the file. A change that is refused leaves an object as it was, as an API server would: a slip of the pen
//! opens nobody's pods and stops nobody's Service.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cluster::parse::{Accepted, FieldProblem, Manifests, Title};
use crate::cluster::{Change, ClusterState, ObjectKey, ObjectKind, ObjectName, ServiceView};
use crate::suggest::nearest;

/// The files of a directory, and the objects that they define.
#[derive(Debug, Default)]
pub struct Directory {
    files: BTreeMap<String, File>,
    /// Where each object is defined: file, and index in its accepted ones.
    definitions: BTreeMap<ObjectKey, BTreeSet<(String, usize)>>,
    /// Why the directory as a whole cannot be read.
    problem: Option<String>,
}

#[derive(Debug, Default)]
struct File {
    manifests: Manifests,
    /// Why it could not be read; what it held before is kept.
    unreadable: Option<String>,
}

impl Directory {
    /// A directory without files.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up what a file holds now. Returns what changes by it. What it held of an object whose new
    /// definition is refused stays in force.
    pub fn set_file(&mut self, file: &str, mut manifests: Manifests) -> Vec<Change> {
        let kept = self.files.get(file).map(|before| kept(&before.manifests, &manifests));
        manifests.accepted.extend(kept.into_iter().flatten());
        let new = File { manifests, unreadable: None };
        self.replace(file, Some(new))
    }

    /// Takes up that a file cannot be read. What it held stays in force: nobody has removed it.
    pub fn set_unreadable(&mut self, file: &str, reason: String) {
        self.files.entry(file.to_owned()).or_default().unreadable = Some(reason);
    }

    /// Takes up that a file is gone, and its objects with it.
    pub fn remove_file(&mut self, file: &str) -> Vec<Change> {
        self.replace(file, None)
    }

    /// Takes up why the directory cannot be read, or that it can be. Objects stay in force.
    pub fn set_problem(&mut self, problem: Option<String>) {
        self.problem = problem;
    }

    /// Why the directory cannot be read.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    fn replace(&mut self, file: &str, new: Option<File>) -> Vec<Change> {
        let old = self.files.get(file).map(|file| &file.manifests.accepted[..]).unwrap_or_default();
        let new_objects = new.as_ref().map(|file| &file.manifests.accepted[..]).unwrap_or_default();
        let keys: BTreeSet<ObjectKey> =
            old.iter().chain(new_objects).map(|found| found.object.key()).collect();
        let before: Vec<_> = keys.iter().map(|key| self.in_force(key).cloned()).collect();
        for found in old.iter().map(|found| found.object.key()).collect::<BTreeSet<_>>() {
            if let Some(places) = self.definitions.get_mut(&found) {
                places.retain(|(place, _)| place != file);
                if places.is_empty() {
                    self.definitions.remove(&found);
                }
            }
        }
        for (ix, found) in new_objects.iter().enumerate() {
            let places = self.definitions.entry(found.object.key()).or_default();
            places.insert((file.to_owned(), ix));
        }
        match new {
            Some(new) => self.files.insert(file.to_owned(), new),
            None => self.files.remove(file),
        };
        let mut changes = Vec::new();
        for (key, before) in keys.into_iter().zip(before) {
            match (before, self.in_force(&key)) {
                (Some(before), Some(after)) if before.object == after.object => {}
                (_, Some(after)) => changes.push(Change::Set(after.object.clone())),
                (Some(_), None) => changes.push(Change::Remove(key)),
                (None, None) => {}
            }
        }
        changes
    }

    /// The definition of an object that counts, with its file and its place in there: the first that is not merely
    /// kept.
    fn counting(&self, key: &ObjectKey) -> Option<(&str, usize, &Accepted)> {
        let places = self.definitions.get(key)?.iter();
        let found = places.filter_map(|(file, ix)| {
            let found = self.files.get(file)?.manifests.accepted.get(*ix)?;
            Some((file.as_str(), *ix, found))
        });
        found.min_by_key(|(file, ix, found)| (found.is_kept, *file, *ix))
    }

    fn in_force(&self, key: &ObjectKey) -> Option<&Accepted> {
        self.counting(key).map(|(.., found)| found)
    }

    /// Where an object that is in force is defined: file and line.
    pub fn place_of(&self, key: &ObjectKey) -> Option<(&str, usize)> {
        self.counting(key).map(|(file, _, found)| (file, found.line))
    }

    /// What cannot be honoured.
    pub fn refused(&self, state: &ClusterState) -> Vec<RefusedObject> {
        // Most directories have nothing of it, and this is asked at every change.
        if self.counts(state).refused == 0 { Vec::new() } else { self.listing(state).refused }
    }

    /// Everything that the files hold, and what became of it. `state` knows what is wrong with Services
    /// only beside others.
    pub fn listing(&self, state: &ClusterState) -> Listing {
        let mut listing = Listing::default();
        listing.problems.extend(self.problem.clone());
        for (name, file) in &self.files {
            self.list_file(name, file, state, &mut listing);
        }
        listing
    }

    fn list_file(&self, name: &str, file: &File, state: &ClusterState, listing: &mut Listing) {
        if let Some(reason) = &file.unreadable {
            let title = Title::default();
            let problem = FieldProblem { line: 0, field: String::new(), reason: reason.clone() };
            listing.refused.push(RefusedObject::new(name, &title, &problem));
        }
        for refused in &file.manifests.refused {
            for problem in &refused.problems {
                listing.refused.push(RefusedObject::new(name, &refused.title, problem));
            }
        }
        for ignored in &file.manifests.ignored {
            listing.ignored.push(IgnoredObject {
                file: name.to_owned(),
                line: ignored.line,
                kind: ignored.title.kind.clone(),
                namespace: ignored.title.namespace.clone(),
                name: ignored.title.name.clone(),
                reason: ignored.reason.clone(),
            });
        }
        for (ix, found) in file.manifests.accepted.iter().enumerate() {
            let key = found.object.key();
            let title = title(&key);
            if let Some((other, other_ix, counts)) = self.counting(&key)
                && (other, other_ix) != (name, ix)
            {
                if found.is_kept {
                    continue;
                }
                let at = counts.line;
                let reason = format!("is defined already, at {other}:{at}: remove one of them");
                let problem =
                    FieldProblem { line: found.line, field: "metadata.name".into(), reason };
                listing.refused.push(RefusedObject::new(name, &title, &problem));
                continue;
            }
            let view = service_view(state, &key);
            if let Some(refused) = view.and_then(|view| view.refused.as_ref()) {
                let line = found.line_of(&refused.field);
                let problem = FieldProblem {
                    line,
                    field: refused.field.clone(),
                    reason: refused.reason.clone(),
                };
                listing.refused.push(RefusedObject::new(name, &title, &problem));
                continue;
            }
            let notes = found.notes.iter().map(ToString::to_string);
            let problems = view.into_iter().flat_map(|view| &view.problems);
            let problems = problems.map(|found| note(&found.field, &found.reason));
            listing.accepted.push(AcceptedObject {
                file: name.to_owned(),
                line: found.line,
                kind: title.kind,
                namespace: title.namespace,
                name: title.name,
                notes: notes.chain(problems).collect(),
            });
        }
    }

    /// How many objects there are of each fate. Cheaper than a [`Listing`].
    pub fn counts(&self, state: &ClusterState) -> Counts {
        let mut counts = Counts { files: self.files.len(), ..Counts::default() };
        for file in self.files.values() {
            let Manifests { refused, ignored, accepted } = &file.manifests;
            counts.refused += refused.len() + usize::from(file.unreadable.is_some());
            counts.ignored += ignored.len();
            counts.accepted += accepted.len();
        }
        let refused_later = self.definitions.values().map(|places| places.len() - 1).sum::<usize>()
            + state.services().filter(|view| view.refused.is_some()).count();
        counts.accepted = counts.accepted.saturating_sub(refused_later);
        counts.refused += refused_later;
        counts
    }
}

/// What stays in force of what a file held: the objects whose new definition is refused, and, where it is
/// unknown which object is meant, every one that is not there any more.
fn kept(before: &Manifests, now: &Manifests) -> Vec<Accepted> {
    let is_unknown = now.refused.iter().any(|refused| {
        let names = ["kind", "metadata", "metadata.name", "metadata.namespace"];
        refused.title.kind.is_empty()
            || refused.title.name.is_empty()
            || refused.problems.iter().any(|problem| names.contains(&problem.field.as_str()))
    });
    let refused: BTreeSet<_> = now.refused.iter().map(|refused| &refused.title).collect();
    let defined: BTreeSet<_> = now.accepted.iter().map(|found| found.object.key()).collect();
    let kept = before.accepted.iter().filter(|found| {
        let key = found.object.key();
        let title = title(&key);
        let is_misspelt = || now.ignored.iter().any(|ignored| is_slip(&ignored.title, &title));
        !defined.contains(&key) && (is_unknown || refused.contains(&title) || is_misspelt())
    });
    let reason = "is as it was before this file was changed: its new definition is refused";
    kept.map(|found| {
        let problem =
            FieldProblem { line: found.line, field: String::new(), reason: reason.to_owned() };
        let mut found = found.clone();
        found.notes = vec![problem];
        found.is_kept = true;
        found
    })
    .collect()
}

/// Whether a document that does not concern Weft was meant for this object: its group or its kind is written wrongly.
fn is_slip(ignored: &Title, object: &Title) -> bool {
    ignored.name == object.name
        && (ignored.namespace.is_empty() || ignored.namespace == object.namespace)
        && nearest(&ignored.kind, [object.kind.as_str()]).is_some()
}

fn title(key: &ObjectKey) -> Title {
    Title::new(key.kind.as_str(), &key.id.namespace, &key.id.name)
}

/// What of an object is not honoured, in a line.
pub(super) fn note(field: &str, reason: &str) -> String {
    format!("{field}: {reason}")
}

/// What became of a Service beside others.
pub(super) fn service_view<'s>(
    state: &'s ClusterState,
    key: &ObjectKey,
) -> Option<&'s ServiceView> {
    let ObjectName { namespace, name } = &key.id;
    let view = state.service(namespace, name).filter(|_| key.kind == ObjectKind::Service)?;
    Some(view)
}

/// How many objects there are of each fate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Files of manifests.
    pub files: usize,
    /// Objects in force.
    pub accepted: usize,
    /// Objects, and documents, that cannot be honoured.
    pub refused: usize,
    /// Objects that do not concern Weft.
    pub ignored: usize,
}

/// Everything that a directory holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// What is in force.
    pub accepted: Vec<AcceptedObject>,
    /// What cannot be honoured: one entry for each reason.
    pub refused: Vec<RefusedObject>,
    /// What does not concern Weft.
    pub ignored: Vec<IgnoredObject>,
    /// Why the directory as a whole cannot be read.
    pub problems: Vec<String>,
}

/// An object in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedObject {
    /// File, from the directory on; empty for an object of an API server.
    pub file: String,
    /// Line that the object begins on; 0 without a file.
    pub line: usize,
    /// `kind`.
    pub kind: String,
    /// Namespace; empty for cluster-wide objects.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What of it is not honoured.
    pub notes: Vec<String>,
}

/// A reason why an object cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedObject {
    /// File, from the directory on; empty for an object of an API server.
    pub file: String,
    /// Line of what is wrong; 0 for the whole file.
    pub line: usize,
    /// `kind`, as far as it is known.
    pub kind: String,
    /// Namespace, as far as it is known.
    pub namespace: String,
    /// Name, as far as it is known.
    pub name: String,
    /// Path of the field; empty for the whole document.
    pub field: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl RefusedObject {
    pub(super) fn new(file: &str, title: &Title, problem: &FieldProblem) -> Self {
        Self {
            file: file.to_owned(),
            line: problem.line,
            kind: title.kind.clone(),
            namespace: title.namespace.clone(),
            name: title.name.clone(),
            field: problem.field.clone(),
            reason: problem.reason.clone(),
        }
    }
}

impl fmt::Display for RefusedObject {
    /// `file:line: field: reason`, or `kind namespace/name: field: reason` of what comes from no file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file.is_empty() {
            let (kind, namespace, name) =
                (self.kind.clone(), self.namespace.clone(), self.name.clone());
            write!(f, "{}", Title { kind, namespace, name })?;
        }
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        f.write_str(": ")?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// An object that does not concern Weft.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IgnoredObject {
    /// File, from the directory on; empty for an object of an API server.
    pub file: String,
    /// Line that the object begins on; 0 without a file.
    pub line: usize,
    /// `kind`.
    pub kind: String,
    /// Namespace, where it has one.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Why.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ServiceConfig;
    use crate::cluster::parse::parse;

    fn service(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]{spec}}}\n---\n"
        )
    }

    struct Cluster {
        directory: Directory,
        state: ClusterState,
    }

    impl Cluster {
        fn new() -> Self {
            Self { directory: Directory::new(), state: ClusterState::default() }
        }

        fn set(&mut self, file: &str, text: &str) -> usize {
            let changes = self.directory.set_file(file, parse(text));
            self.apply(changes)
        }

        fn remove(&mut self, file: &str) -> usize {
            let changes = self.directory.remove_file(file);
            self.apply(changes)
        }

        fn apply(&mut self, changes: Vec<Change>) -> usize {
            let count = changes.len();
            self.state.apply(changes);
            count
        }

        fn accepted(&self) -> Vec<String> {
            let listing = self.directory.listing(&self.state);
            let counts = self.directory.counts(&self.state);
            assert_eq!(counts.accepted, listing.accepted.len());
            listing.accepted.iter().map(|a| format!("{}:{} {}", a.file, a.line, a.name)).collect()
        }

        fn refused(&self) -> Vec<String> {
            self.directory.listing(&self.state).refused.iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn only_what_differs_changes() {
        let mut cluster = Cluster::new();
        let (a, b) = (service("a", ""), service("b", ""));
        assert_eq!(cluster.set("x.yaml", &format!("{a}{b}")), 2);
        assert_eq!(cluster.set("x.yaml", &format!("{a}{b}")), 0);
        assert_eq!(cluster.set("x.yaml", &format!("# moved\n{b}{a}")), 0);
        assert_eq!(cluster.accepted(), ["x.yaml:2 b", "x.yaml:7 a"]);
        let other = service("a", ", sessionAffinity: ClientIP");
        assert_eq!(cluster.set("x.yaml", &format!("{other}{b}")), 1);
        assert_eq!(cluster.set("x.yaml", &other), 1);
        assert_eq!(cluster.remove("x.yaml"), 1);
        assert_eq!(cluster.state.services().count(), 0);
    }

    #[test]
    fn the_first_definition_counts_and_the_next_takes_over() {
        let mut cluster = Cluster::new();
        cluster.set("b.yaml", &service("web", ", clusterIP: 10.96.1.2"));
        cluster.set("a.yaml", &(service("web", ", clusterIP: 10.96.1.1") + &service("web", "")));
        let address = |cluster: &Cluster| {
            cluster.state.service("default", "web").unwrap().cluster_ips[0].to_string()
        };
        assert_eq!(address(&cluster), "10.96.1.1");
        assert_eq!(cluster.accepted(), ["a.yaml:1 web"]);
        assert_eq!(
            cluster.refused(),
            [
                "a.yaml:6: metadata.name: is defined already, at a.yaml:1: remove one of them",
                "b.yaml:1: metadata.name: is defined already, at a.yaml:1: remove one of them",
            ]
        );
        cluster.remove("a.yaml");
        assert_eq!(address(&cluster), "10.96.1.2");
        assert!(cluster.refused().is_empty());
    }

    #[test]
    fn a_change_that_is_refused_leaves_the_object_as_it_was() {
        let mut cluster = Cluster::new();
        let (a, b) = (service("a", ""), service("b", ""));
        cluster.set("x.yaml", &format!("{a}{b}"));
        for _ in 0..2 {
            let broken = a.replace("port: 80", "prot: 80");
            assert_eq!(cluster.set("x.yaml", &format!("# again\n{broken}{b}")), 0);
            assert_eq!(cluster.accepted(), ["x.yaml:7 b", "x.yaml:1 a"]);
            assert_eq!(cluster.refused().len(), 2, "{:?}", cluster.refused());
            let notes = &cluster.directory.listing(&cluster.state).accepted[1].notes;
            assert_eq!(
                *notes,
                ["is as it was before this file was changed: its new definition is refused"]
            );
        }
        // What is taken out is gone, also beside what is refused.
        assert_eq!(cluster.set("x.yaml", &a.replace("port: 80", "prot: 80")), 1);
        assert_eq!(cluster.accepted(), ["x.yaml:1 a"]);
        assert_eq!(cluster.set("x.yaml", ""), 1);
        assert!(cluster.accepted().is_empty());
        // What was never right never was in force.
        cluster.set("x.yaml", &a.replace("port: 80", "prot: 80"));
        assert!(cluster.accepted().is_empty());
    }

    #[test]
    fn a_file_that_is_no_yaml_any_more_takes_nothing_out_of_force() {
        let mut cluster = Cluster::new();
        let (a, b) = (service("a", ""), service("b", ""));
        cluster.set("x.yaml", &format!("{a}{b}"));
        let other = service("a", ", sessionAffinity: ClientIP");
        assert_eq!(cluster.set("x.yaml", &format!("{other}{}", b.replace("80}]", "80}"))), 1);
        assert_eq!(cluster.accepted(), ["x.yaml:1 a", "x.yaml:6 b"]);
        assert_eq!(cluster.refused().len(), 1, "{:?}", cluster.refused());
        assert!(
            cluster.refused()[0].starts_with("x.yaml:9: is no YAML: "),
            "{:?}",
            cluster.refused()
        );

        // What cannot be read at all has not changed.
        cluster.directory.set_unreadable("x.yaml", "Permission denied".into());
        assert_eq!(cluster.accepted(), ["x.yaml:1 a", "x.yaml:6 b"]);
        assert_eq!(cluster.refused()[0], "x.yaml: Permission denied");
        cluster.set("x.yaml", &a);
        assert!(cluster.refused().is_empty());
    }

    #[test]
    fn a_slip_in_what_names_an_object_takes_nothing_out_of_force() {
        let policy = |name: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\nspec: {{podSelector: {{}}}}\n"
            )
        };
        let long = "long-".repeat(16) + "name";
        for (name, right, wrong) in [
            ("p", "kind: NetworkPolicy\n", ""),
            ("p", "kind: NetworkPolicy", "kind: []"),
            ("p", "kind: NetworkPolicy", "kind: NetworkPolcy"),
            ("p", "networking.k8s.io", "networking.k8s.oi"),
            ("p", "networking.k8s.io/v1", "networking.k8s.io/v2"),
            ("p", "apiVersion: networking.k8s.io/v1\n", ""),
            ("p", "name: p", "name: P"),
            ("p", "name: p", "name: p\n  namespace: Default"),
            ("p", "name: p", "nmae: p"),
            ("p", "metadata:\n  name: p", "metadata: p"),
            (&long, "podSelector", "podSelektor"),
        ] {
            let mut cluster = Cluster::new();
            assert_eq!(cluster.set("x.yaml", &policy(name)), 1);
            for _ in 0..2 {
                assert_eq!(
                    cluster.set("x.yaml", &policy(name).replace(right, wrong)),
                    0,
                    "{wrong}"
                );
                assert_eq!(cluster.accepted().len(), 1, "{wrong}");
            }
            assert_eq!(cluster.set("x.yaml", &policy("other")), 2, "{wrong}");
        }
        // Another kind is meant as it is written.
        let mut cluster = Cluster::new();
        cluster.set("x.yaml", &policy("p"));
        assert_eq!(cluster.set("x.yaml", &policy("p").replace("NetworkPolicy", "Ingress")), 1);
    }

    #[test]
    fn what_is_kept_makes_way_for_what_is_defined() {
        let mut cluster = Cluster::new();
        let address = |cluster: &Cluster| {
            cluster.state.service("default", "web").unwrap().cluster_ips[0].to_string()
        };
        let first = service("web", ", clusterIP: 10.96.1.1");
        cluster.set("a.yaml", &first);
        cluster.set("a.yaml", &first.replace("port: 80", "prot: 80"));
        assert_eq!(cluster.set("b.yaml", &service("web", ", clusterIP: 10.96.1.2")), 1);
        assert_eq!(address(&cluster), "10.96.1.2");
        assert_eq!(cluster.accepted(), ["b.yaml:1 web"]);
        assert_eq!(
            cluster.refused().len(),
            2,
            "only what is wrong with it: {:?}",
            cluster.refused()
        );
        assert_eq!(cluster.remove("b.yaml"), 1);
        assert_eq!(address(&cluster), "10.96.1.1");
    }

    #[test]
    fn conflicts_are_told_at_their_line() {
        let mut cluster = Cluster::new();
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec:\n  ports: [{port: 80}]\n  clusterIP: IP\n---\n";
        let service =
            |name: &str, ip: &str| text.replace("NAME", name).replace("IP\n", &format!("{ip}\n"));
        cluster.set(
            "x.yaml",
            &(service("b", "10.96.0.9") + &service("a", "10.96.0.9") + &service("c", "192.0.2.1")),
        );
        assert_eq!(cluster.accepted(), ["x.yaml:8 a"]);
        assert_eq!(
            cluster.refused(),
            [
                "x.yaml:6: spec.clusterIP: the Service default/a has this address: give each its own, or none",
                "x.yaml:20: spec.clusterIP: is not in the range 10.96.0.0/12 of Services: choose another, or \
                 leave it out to be given one",
            ]
        );
        cluster.set("x.yaml", &service("b", "10.96.0.9"));
        assert!(cluster.refused().is_empty());
    }

    #[test]
    fn what_cannot_be_given_is_a_note() {
        let config = ServiceConfig { node_ports: 30_000..=30_000, ..ServiceConfig::default() };
        let mut cluster = Cluster::new();
        cluster.state = ClusterState::new(config);
        cluster
            .set("x.yaml", &(service("a", ", type: NodePort") + &service("b", ", type: NodePort")));
        let listing = cluster.directory.listing(&cluster.state);
        assert_eq!(listing.accepted[0].notes, Vec::<String>::new());
        assert_eq!(
            listing.accepted[1].notes,
            ["spec.ports[0].nodePort: no port of 30000-30000 is free: widen [services] node_ports"]
        );
    }
}
