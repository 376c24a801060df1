//! `metadata`, which every object has.

use std::sync::Arc;

use super::reader::{Fields, Item};
use crate::cluster::labels::Labels;
use crate::cluster::names;
use crate::cluster::object::ObjectName;

/// Where objects are that do not say.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// What is honoured of `metadata`.
#[derive(Debug)]
pub(super) struct Meta<'n> {
    pub(super) name: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) labels: Labels,
    /// Checked, but for the keys that somebody asks for.
    pub(super) annotations: Vec<(&'n str, Item<'n>)>,
    pub(super) terminating: bool,
}

impl Meta<'_> {
    pub(super) fn id(&self) -> ObjectName {
        ObjectName { namespace: Arc::clone(&self.namespace), name: Arc::clone(&self.name) }
    }
}

/// Reads `metadata`. `None` when there is no name.
pub(super) fn meta<'n>(
    object: &mut Fields<'n>,
    check: fn(&str) -> Result<(), String>,
    is_namespaced: bool,
) -> Option<Meta<'n>> {
    let mut fields = object.need("metadata")?.fields()?;
    fields.pass(&[
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "ownerReferences",
        "finalizers",
        "managedFields",
        "selfLink",
        "generateName",
    ]);
    let name = match fields.get("name") {
        Some(name) => name.name(check),
        None if fields.get("generateName").is_some() => {
            fields.refuse("generateName", "nobody makes names here: give it a name");
            None
        }
        None => {
            fields.refuse("name", "is missing");
            None
        }
    };
    let namespace = fields.get("namespace").filter(|item| item.text() != Some(""));
    let namespace = match namespace {
        Some(item) if is_namespaced => item.name(names::dns1123_label),
        Some(item) => {
            item.refuse("objects of this kind are in no namespace");
            None
        }
        None if is_namespaced => Some(DEFAULT_NAMESPACE.into()),
        None => Some("".into()),
    };
    let labels = fields.get("labels").map(|item| labels(&item)).unwrap_or_default();
    let annotations = fields.get("annotations").map(|item| item.entries()).unwrap_or_default();
    let annotations = annotations.into_iter().filter_map(|(entry, item)| {
        item.text()?;
        Some((entry.key.as_str(), item))
    });
    let annotations = annotations.collect();
    let terminating = fields.get("deletionTimestamp").is_some();
    fields.finish();
    Some(Meta { name: name?, namespace: namespace?, labels, annotations, terminating })
}

/// A map of labels.
pub(super) fn labels(item: &Item<'_>) -> Labels {
    let pair = |(entry, item): (&super::tree::Entry, Item<'_>)| {
        if let Err(why) = names::qualified_name(&entry.key) {
            item.refuse(format!("{:?} {why}", super::shorten(&entry.key)));
            return None;
        }
        Some((Arc::<str>::from(entry.key.as_str()), item.name(names::label_value)?))
    };
    item.entries().into_iter().filter_map(pair).collect()
}
