//! From manifests to objects, and why not.
//!
//! 1. [`tree`] divides a file into documents and reads each into values that know their line.
//! 2. This module finds out what each document is, and opens lists.
//! 3. A reader per kind checks every field by the rules of the Kubernetes API and fills in its defaults.
//!
//! An object with anything wrong is refused as a whole, with all that is wrong at once; the others of its
//! file are kept. What does not concern the network is ignored, and said to be.

mod cluster_policy;
mod json;
mod meta;
mod plain;
mod pod;
mod policy;
mod reader;
mod service;
mod slice;
mod tree;

#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::de::{Deserialize, Deserializer};

use self::json::Json;
use self::reader::{Findings, Item, Report, shorten};
use self::tree::{Node, Value};
use super::object::{Object, ObjectKind};

/// Most bytes of one file of manifests: 100 000 Services in one file are below it.
pub const FILE_LEN_MAX: usize = 64 << 20;

/// Where a manifest comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Somebody has written it: a field that does not exist is a mistake.
    File,
    /// An API server has checked it, and may know more fields than this version of Weft.
    Api,
}

/// What a file of manifests holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifests {
    /// The objects that are right.
    pub accepted: Vec<Accepted>,
    /// What cannot be honoured.
    pub refused: Vec<Refused>,
    /// What does not concern Weft.
    pub ignored: Vec<Ignored>,
}

/// An object that is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The object.
    pub object: Object,
    /// The line that it begins on.
    pub line: usize,
    /// What of it is not honoured, though it does no harm.
    pub notes: Vec<FieldProblem>,
    /// Whether it is what a file held before, in place of what is refused.
    pub is_kept: bool,
    /// Lines of the fields that may be found wrong only when all objects are known.
    places: Box<[(String, usize)]>,
}

impl Accepted {
    /// The line of a field, or of the object when the field is not in it.
    pub fn line_of(&self, field: &str) -> usize {
        let found = self.places.iter().find(|(name, _)| name == field);
        found.map_or(self.line, |(_, line)| *line)
    }
}

/// An object, or a whole document, that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What it is, as far as that is known.
    pub title: Title,
    /// Why: at least one reason, in the order of their lines.
    pub problems: Vec<FieldProblem>,
}

/// An object that does not concern Weft.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// What it is.
    pub title: Title,
    /// The line that it begins on.
    pub line: usize,
    /// Why.
    pub reason: String,
}

/// What an object says that it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Title {
    /// `kind`; empty when it does not say.
    pub kind: String,
    /// `metadata.namespace`, or the one that objects are in which do not say.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Title {
    /// The title of an object, shortened for a message.
    pub(crate) fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: shorten(kind), namespace: shorten(namespace), name: shorten(name) }
    }
}

impl fmt::Display for Title {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind.is_empty() { "document" } else { &self.kind };
        match (self.namespace.as_str(), self.name.as_str()) {
            (_, "") => f.write_str(kind),
            ("", name) => write!(f, "{kind} {name}"),
            (namespace, name) => write!(f, "{kind} {namespace}/{name}"),
        }
    }
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldProblem {
    /// The line of the field, or of what should have it.
    pub line: usize,
    /// Its path from the object's root; empty for the whole document.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for FieldProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            return f.write_str(&self.reason);
        }
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// Reads the text of a file: YAML with any number of documents, or JSON, and lists of objects.
pub fn parse(text: &str) -> Manifests {
    let mut manifests = Manifests::default();
    if text.len() > FILE_LEN_MAX {
        let reason = format!("the file is longer than {FILE_LEN_MAX} bytes: divide it");
        manifests.refuse(Title::default(), 1, "", reason);
        return manifests;
    }
    for document in tree::documents(text) {
        match document.read() {
            Ok(Some(node)) => manifests.take(&node, None, 0),
            Ok(None) => {}
            Err(error) => {
                let reason = format!("is no YAML: {}", shorten(&error.reason));
                manifests.refuse(Title::default(), error.line, "", reason);
            }
        }
    }
    manifests
}

/// What an item of a typed list is when it does not say.
#[derive(Clone, Copy)]
struct ListOf<'n> {
    api_version: &'n str,
    kind: &'n str,
}

/// Deepest list of lists.
const LISTS_MAX: usize = 4;

impl Manifests {
    fn take(&mut self, node: &Node, list_of: Option<ListOf<'_>>, depth: usize) {
        let text = |name| node.field(name).and_then(Node::as_text);
        let kind = text("kind").or_else(|| list_of.map(|list| list.kind)).unwrap_or_default();
        let api_version =
            text("apiVersion").or_else(|| list_of.map(|list| list.api_version)).unwrap_or_default();
        let title = title_of(node, kind);
        if !matches!(node.value, Value::Map(_)) {
            let reason = format!("is {}, not an object", node.value.article());
            return self.refuse(title, node.line, "", reason);
        }
        for (field, value) in [("apiVersion", api_version), ("kind", kind)] {
            if value.is_empty() {
                let line = node.field(field).map_or(node.line, |node| node.line);
                let reason = match node.field(field) {
                    Some(_) => "is no text, or an empty one",
                    None => "is missing",
                };
                return self.refuse(title, line, field, reason.to_owned());
            }
        }
        if let (Some(of), Some(items)) = (kind.strip_suffix("List"), node.field("items")) {
            let of = ListOf { api_version, kind: of };
            let of = (!of.kind.is_empty()).then_some(of);
            return self.open(items, of, title, depth);
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let known = ObjectKind::ALL.into_iter().find(|known| {
            let known_group = known.api_version().split_once('/').map_or("", |(group, _)| group);
            known.as_str() == kind && known_group == group
        });
        match known {
            Some(known) if known.api_version() == api_version => self.read(known, node, title),
            Some(known) => {
                let line = node.field("apiVersion").map_or(node.line, |node| node.line);
                let reason = format!(
                    "version {:?} of {kind} is not known: write {}",
                    shorten(version),
                    known.api_version()
                );
                self.refuse(title, line, "apiVersion", reason);
            }
            None => match stance(group, kind) {
                Stance::Refuse(reason) => self.refuse(title, node.line, "kind", reason.to_owned()),
                Stance::Ignore(reason) => {
                    self.ignored.push(Ignored {
                        title,
                        line: node.line,
                        reason: reason.to_owned(),
                    });
                }
            },
        }
    }

    /// Takes the items of a list.
    fn open(&mut self, items: &Node, of: Option<ListOf<'_>>, title: Title, depth: usize) {
        if items.value == Value::Null {
            return;
        }
        let Value::List(list) = &items.value else {
            let reason = format!("is {}, not a list", items.value.article());
            return self.refuse(title, items.line, "items", reason);
        };
        if depth >= LISTS_MAX {
            let reason = "lists are nested too deep".to_owned();
            return self.refuse(title, items.line, "items", reason);
        }
        list.iter().for_each(|item| self.take(item, of, depth + 1));
    }

    fn read(&mut self, kind: ObjectKind, node: &Node, title: Title) {
        match judge(kind, node, Origin::File) {
            Ok(accepted) => self.accepted.push(accepted),
            Err(problems) => self.refused.push(Refused { title, problems }),
        }
    }

    fn refuse(&mut self, title: Title, line: usize, field: &str, reason: String) {
        let problem = FieldProblem { line, field: field.to_owned(), reason };
        self.refused.push(Refused { title, problems: vec![problem] });
    }
}

/// An object as an API server sends it.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiObject(Node);

impl<'de> Deserialize<'de> for ApiObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Json::deserialize(deserializer).map(|Json(node)| Self(node))
    }
}

impl ApiObject {
    /// `metadata.name`; empty when it has none.
    pub fn name(&self) -> &str {
        self.meta("name")
    }

    /// `metadata.namespace`; empty when it has none.
    pub fn namespace(&self) -> &str {
        self.meta("namespace")
    }

    /// `metadata.resourceVersion`; empty when it has none.
    pub fn version(&self) -> &str {
        self.meta("resourceVersion")
    }

    /// `metadata.uid`; empty when it has none.
    pub fn uid(&self) -> &str {
        self.meta("uid")
    }

    /// A field of text at the top; empty when there is none.
    pub fn text(&self, field: &str) -> &str {
        self.0.field(field).and_then(Node::as_text).unwrap_or_default()
    }

    /// A field with a number at the top.
    pub fn number(&self, field: &str) -> Option<i64> {
        if let Value::Whole(number) = self.0.field(field)?.value { Some(number) } else { None }
    }

    fn meta(&self, field: &str) -> &str {
        let field = self.0.field("metadata").and_then(|meta| meta.field(field));
        field.and_then(Node::as_text).unwrap_or_default()
    }
}

/// Reads an object of an API server. Fields that are not known are no mistake there. Lines are 0.
///
/// # Errors
/// All that is wrong with it.
pub fn parse_api(kind: ObjectKind, object: &ApiObject) -> Result<Accepted, Vec<FieldProblem>> {
    judge(kind, &object.0, Origin::Api)
}

/// Reads an object of a known kind, or says why not: at least one reason.
fn judge(kind: ObjectKind, node: &Node, origin: Origin) -> Result<Accepted, Vec<FieldProblem>> {
    match object(kind, node, origin) {
        (Some(object), Findings { problems, notes, places }) if problems.is_empty() => {
            let places = places.into_boxed_slice();
            Ok(Accepted { object, line: node.line, notes, is_kept: false, places })
        }
        (_, Findings { mut problems, .. }) => {
            if problems.is_empty() {
                // Every reader says why it makes nothing; nothing is refused without a word.
                let reason = "cannot be read".to_owned();
                problems.push(FieldProblem { line: node.line, field: String::new(), reason });
            }
            Err(problems)
        }
    }
}

/// Reads an object of a known kind.
fn object(kind: ObjectKind, node: &Node, origin: Origin) -> (Option<Object>, Findings) {
    let report = Report::new(origin);
    let object = read_kind(kind, &report.root(node));
    (object, report.finish())
}

fn read_kind(kind: ObjectKind, root: &Item<'_>) -> Option<Object> {
    let mut fields = root.fields()?;
    fields.pass(&["apiVersion", "kind"]);
    let object = match kind {
        ObjectKind::Namespace => plain::namespace(&mut fields).map(Object::Namespace),
        ObjectKind::Node => plain::node(&mut fields).map(Object::Node),
        ObjectKind::ServiceCidr => plain::service_cidr(&mut fields).map(Object::ServiceCidr),
        ObjectKind::Pod => pod::pod(&mut fields).map(Object::Pod),
        ObjectKind::Service => service::service(&mut fields, root).map(Object::Service),
        ObjectKind::EndpointSlice => slice::slice(&mut fields).map(Object::EndpointSlice),
        ObjectKind::Secret => plain::secret(&mut fields).map(Object::Secret),
        ObjectKind::NetworkPolicy => policy::network_policy(&mut fields).map(Object::NetworkPolicy),
        ObjectKind::ClusterNetworkPolicy => {
            cluster_policy::cluster_network_policy(&mut fields).map(Object::ClusterPolicy)
        }
        ObjectKind::AdminNetworkPolicy => {
            cluster_policy::admin_network_policy(&mut fields).map(Object::ClusterPolicy)
        }
        ObjectKind::BaselineAdminNetworkPolicy => {
            cluster_policy::baseline_admin_network_policy(&mut fields).map(Object::ClusterPolicy)
        }
    };
    fields.finish();
    object
}

/// What an object says of itself, whether it is right or not.
fn title_of(node: &Node, kind: &str) -> Title {
    let meta =
        |name| node.field("metadata").and_then(|meta| meta.field(name)).and_then(Node::as_text);
    let known = ObjectKind::ALL.into_iter().find(|known| known.as_str() == kind);
    let namespace = match (meta("namespace"), known) {
        (Some(_), Some(known)) if !known.is_namespaced() => "",
        (Some(namespace), _) => namespace,
        (None, Some(known)) if known.is_namespaced() => meta::DEFAULT_NAMESPACE,
        (None, _) => "",
    };
    Title::new(kind, namespace, meta("name").unwrap_or_default())
}

/// What becomes of a kind that is not read.
enum Stance {
    /// Who declares it counts on something that will not happen.
    Refuse(&'static str),
    /// It is somebody else's.
    Ignore(&'static str),
}

fn stance(group: &str, kind: &str) -> Stance {
    match (group, kind) {
        ("", "Endpoints") => Stance::Refuse(
            "Endpoints is not read, Kubernetes has deprecated it: write an EndpointSlice",
        ),
        ("networking.k8s.io", "Ingress" | "IngressClass") | ("gateway.networking.k8s.io", _) => {
            Stance::Ignore("this version of Weft serves no HTTP routes")
        }
        ("apps" | "batch", _) | ("", "ReplicationController") => {
            Stance::Ignore("Weft makes no pods: it serves those that the runtime attaches")
        }
        _ => Stance::Ignore("it is no kind of the network that Weft knows"),
    }
}
