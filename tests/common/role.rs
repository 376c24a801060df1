//! What the roles of a manifest permit.

#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::collections::BTreeSet;

use serde_json::Value;

/// One thing that is permitted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    /// `list`, `watch`, `get`, `create`, `update`, `patch`.
    pub(crate) verb: String,
    /// The API group; empty for the core.
    pub(crate) group: String,
    /// Resource, and a subresource behind `/`.
    pub(crate) resource: String,
    /// The namespace; empty for all.
    pub(crate) namespace: String,
    /// The name; empty for all.
    pub(crate) name: String,
}

/// The documents of a file.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let documents = text.split("\n---\n");
    documents
        .map(|text| serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")))
        .collect()
}

/// All that the ClusterRoles and Roles of a file permit.
pub(crate) fn granted(text: &str) -> BTreeSet<Rule> {
    let mut granted = BTreeSet::new();
    for role in documents(text) {
        if role["kind"] != "ClusterRole" && role["kind"] != "Role" {
            continue;
        }
        let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
        for rule in role["rules"].as_array().unwrap() {
            let words = |name: &str| -> Vec<String> {
                let list = rule[name].as_array().cloned().unwrap_or_default();
                list.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
            };
            let names = match words("resourceNames") {
                names if names.is_empty() => vec![String::new()],
                names => names,
            };
            for verb in words("verbs") {
                for group in words("apiGroups") {
                    for resource in words("resources") {
                        granted.extend(names.iter().map(|name| Rule {
                            verb: verb.clone(),
                            group: group.clone(),
                            resource: resource.clone(),
                            namespace: namespace.to_owned(),
                            name: name.clone(),
                        }));
                    }
                }
            }
        }
    }
    granted
}
