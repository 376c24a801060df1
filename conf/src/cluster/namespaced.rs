//! Things that are found by namespace and name.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::sync::Arc;

use super::object::ObjectName;

/// A map by namespace and name that is asked with plain text.
#[derive(Debug, Clone)]
pub(crate) struct Namespaced<T> {
    namespaces: BTreeMap<Arc<str>, BTreeMap<Arc<str>, T>>,
    len: usize,
}

impl<T> Default for Namespaced<T> {
    fn default() -> Self {
        Self { namespaces: BTreeMap::new(), len: 0 }
    }
}

impl<T> Namespaced<T> {
    pub(crate) fn insert(&mut self, id: &ObjectName, thing: T) -> Option<T> {
        let names = self.namespaces.entry(Arc::clone(&id.namespace)).or_default();
        let before = names.insert(Arc::clone(&id.name), thing);
        self.len += usize::from(before.is_none());
        before
    }

    pub(crate) fn remove(&mut self, id: &ObjectName) -> Option<T> {
        let names = self.namespaces.get_mut(&id.namespace)?;
        let removed = names.remove(&id.name);
        if names.is_empty() {
            self.namespaces.remove(&id.namespace);
        }
        self.len -= usize::from(removed.is_some());
        removed
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&T> {
        self.namespaces.get(namespace)?.get(name)
    }

    pub(crate) fn get_mut(&mut self, id: &ObjectName) -> Option<&mut T> {
        self.namespaces.get_mut(&id.namespace)?.get_mut(&id.name)
    }

    pub(crate) fn find(&self, id: &ObjectName) -> Option<&T> {
        self.get(&id.namespace, &id.name)
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains_key(namespace)
    }

    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &T> {
        self.namespaces.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.namespaces.values().flat_map(BTreeMap::values)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl<T: Default> Namespaced<T> {
    pub(crate) fn entry(&mut self, id: &ObjectName) -> &mut T {
        let names = self.namespaces.entry(Arc::clone(&id.namespace)).or_default();
        match names.entry(Arc::clone(&id.name)) {
            btree_map::Entry::Occupied(entry) => entry.into_mut(),
            btree_map::Entry::Vacant(entry) => {
                self.len += 1;
                entry.insert(T::default())
            }
        }
    }
}
