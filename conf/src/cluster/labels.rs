//! Labels, and what selects by them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// An object's labels, sorted by key. Few and short, so a slice is smaller and faster than a map; a
/// copy shares it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<(Arc<str>, Arc<str>)>")]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let ix = self.0.binary_search_by(|(known, _)| known.as_ref().cmp(key)).ok()?;
        self.0.get(ix).map(|(_, value)| value)
    }

    /// Keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// The same as one slice.
    pub fn pairs(&self) -> &[(Arc<str>, Arc<str>)] {
        &self.0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every label of `wanted` is here, with the same value. Nothing wanted is everywhere.
    pub fn contains_all(&self, wanted: &Self) -> bool {
        wanted.iter().all(|(key, value)| self.get(key) == Some(value))
    }
}

impl From<Vec<(Arc<str>, Arc<str>)>> for Labels {
    fn from(labels: Vec<(Arc<str>, Arc<str>)>) -> Self {
        labels.into_iter().collect()
    }
}

impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    /// Of several values for a key the last one counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let labels = labels.into_iter().map(|(key, value)| (key.into(), value.into()));
        Self(labels.collect::<BTreeMap<_, _>>().into_iter().collect())
    }
}

/// A `LabelSelector`: selects what meets all of its requirements. One without requirements selects
/// everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LabelSelector {
    /// `matchLabels`.
    pub labels: Labels,
    /// `matchExpressions`.
    pub expressions: Box<[Requirement]>,
}

impl LabelSelector {
    /// Whether something with these labels is selected.
    pub fn selects(&self, labels: &Labels) -> bool {
        labels.contains_all(&self.labels)
            && self.expressions.iter().all(|requirement| requirement.is_met(labels))
    }
}

/// One of a selector's `matchExpressions`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Requirement {
    /// The label.
    pub key: Arc<str>,
    /// What is asked of it.
    pub operator: Operator,
}

/// What is asked of a label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operator {
    /// Has one of these values.
    In(Box<[Arc<str>]>),
    /// Has none of these values, or is not there.
    NotIn(Box<[Arc<str>]>),
    /// Is there.
    Exists,
    /// Is not there.
    DoesNotExist,
}

impl Requirement {
    /// Whether these labels meet it.
    pub fn is_met(&self, labels: &Labels) -> bool {
        let found = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => found.is_some_and(|found| values.contains(found)),
            Operator::NotIn(values) => found.is_none_or(|found| !values.contains(found)),
            Operator::Exists => found.is_some(),
            Operator::DoesNotExist => found.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_select_as_the_api_says() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Labels>();
        let web = labels(&[("app", "web"), ("tier", "front")]);
        assert_eq!(web.get("app").map(AsRef::as_ref), Some("web"));
        assert!(web.contains_all(&labels(&[])));
        assert!(web.contains_all(&labels(&[("tier", "front")])));
        assert!(!web.contains_all(&labels(&[("tier", "back")])));
        assert!(!web.contains_all(&labels(&[("zone", "a")])));

        let values = |values: &[&str]| values.iter().map(|value| Arc::from(*value)).collect();
        for (key, operator, selected) in [
            ("app", Operator::In(values(&["db", "web"])), true),
            ("app", Operator::In(values(&["db"])), false),
            ("zone", Operator::In(values(&["a"])), false),
            ("app", Operator::NotIn(values(&["web"])), false),
            ("zone", Operator::NotIn(values(&["a"])), true),
            ("app", Operator::Exists, true),
            ("zone", Operator::Exists, false),
            ("app", Operator::DoesNotExist, false),
            ("zone", Operator::DoesNotExist, true),
        ] {
            let requirement = Requirement { key: key.into(), operator };
            assert_eq!(requirement.is_met(&web), selected, "{requirement:?}");
            let selector = LabelSelector {
                labels: labels(&[("tier", "front")]),
                expressions: Box::new([requirement]),
            };
            assert_eq!(selector.selects(&web), selected);
        }
        assert!(LabelSelector::default().selects(&labels(&[])));
    }
}
