//! The peers that rules are about, each with its number, and which of them a pod matches.

use std::collections::BTreeMap;
use std::sync::Arc;

use conf::cluster::policy::{NamespaceSelection, PodSelection};
use conf::cluster::{LabelSelector, Labels};
use vswitch::policy::{BitSet, SelectorIx};
use vswitch::service::Protocol;

/// A port that a pod's containers have a name for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NamedPort {
    pub(super) name: Arc<str>,
    pub(super) protocol: Protocol,
    pub(super) number: u16,
}

/// What a pod matches or does not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Selector {
    /// The pods; `None` for all of them.
    pub(super) pods: Option<PodSelection>,
    /// Of these, those that have such a port.
    pub(super) port: Option<NamedPort>,
}

/// All selectors in use.
///
/// They are kept by namespace, so that a pod is compared with those that can be about it. A number is used once:
/// what a pod is said to match, and nobody asks for any more, does no harm.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    next: u32,
    by_namespaces: BTreeMap<NamespaceSelection, BTreeMap<LabelSelector, Entry>>,
    everywhere: Entry,
}

#[derive(Debug, Default)]
struct Entry {
    plain: Option<Use>,
    named: BTreeMap<NamedPort, Use>,
}

#[derive(Debug)]
struct Use {
    ix: SelectorIx,
    /// How many rules ask for it.
    count: usize,
}

impl Selectors {
    /// The number of a selector, which one rule more asks for, and whether it is new.
    pub(super) fn acquire(&mut self, selector: &Selector) -> (SelectorIx, bool) {
        let next = SelectorIx(self.next);
        let entry = self.entry(selector);
        let found = match &selector.port {
            None => entry.plain.get_or_insert(Use { ix: next, count: 0 }),
            Some(port) => entry.named.entry(port.clone()).or_insert(Use { ix: next, count: 0 }),
        };
        found.count += 1;
        let ix = found.ix;
        self.next += u32::from(ix == next);
        (ix, ix == next)
    }

    /// One rule less asks for a selector.
    pub(super) fn release(&mut self, selector: &Selector) {
        let entry = self.entry(selector);
        let is_last = |found: &mut Use| {
            found.count = found.count.saturating_sub(1);
            found.count == 0
        };
        match &selector.port {
            None => {
                if entry.plain.as_mut().is_some_and(is_last) {
                    entry.plain = None;
                }
            }
            Some(port) => {
                if entry.named.get_mut(port).is_some_and(is_last) {
                    entry.named.remove(port);
                }
            }
        }
        if !entry.is_empty() {
            return;
        }
        let Some(pods) = &selector.pods else { return };
        if let Some(entries) = self.by_namespaces.get_mut(&pods.namespaces) {
            entries.remove(&pods.pods);
            if entries.is_empty() {
                self.by_namespaces.remove(&pods.namespaces);
            }
        }
    }

    fn entry(&mut self, selector: &Selector) -> &mut Entry {
        let Some(pods) = &selector.pods else { return &mut self.everywhere };
        let entries = self.by_namespaces.entry(pods.namespaces.clone()).or_default();
        entries.entry(pods.pods.clone()).or_default()
    }

    /// What can be about pods of this namespace, with these labels.
    pub(super) fn of_namespace(&self, namespace: &Arc<str>, labels: &Labels) -> OfNamespace<'_> {
        let own = NamespaceSelection::Own(Arc::clone(namespace));
        let own = self.by_namespaces.get(&own);
        // The order of the enum puts those by label behind those by name.
        let first = NamespaceSelection::Selected(LabelSelector::default());
        let by_label = self.by_namespaces.range(first..);
        let by_label =
            by_label.filter(|(selection, _)| selects_namespace(selection, namespace, labels));
        let entries = own.into_iter().chain(by_label.map(|(_, entries)| entries)).collect();
        OfNamespace { entries, everywhere: &self.everywhere }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        let entries = self.by_namespaces.values().flat_map(BTreeMap::values);
        entries.chain([&self.everywhere]).map(Entry::len).sum()
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.plain.is_none() && self.named.is_empty()
    }

    fn len(&self) -> usize {
        usize::from(self.plain.is_some()) + self.named.len()
    }

    fn matched<'s>(&'s self, ports: &'s [NamedPort]) -> impl Iterator<Item = SelectorIx> + 's {
        let named = ports.iter().filter_map(|port| self.named.get(port));
        self.plain.iter().chain(named).map(|found| found.ix)
    }
}

/// The selectors that can be about pods of one namespace.
#[derive(Debug)]
pub(super) struct OfNamespace<'s> {
    entries: Vec<&'s BTreeMap<LabelSelector, Entry>>,
    everywhere: &'s Entry,
}

impl OfNamespace<'_> {
    /// Those that a pod with these labels and ports matches.
    pub(super) fn matched(&self, labels: &Labels, ports: &[NamedPort]) -> BitSet {
        let entries = self.entries.iter().copied().flatten();
        let entries = entries.filter(|(selector, _)| selector.selects(labels));
        let entries = entries.map(|(_, entry)| entry).chain([self.everywhere]);
        entries.flat_map(|entry| entry.matched(ports)).collect()
    }
}

/// Whether a namespace with these labels is meant.
pub(super) fn selects_namespace(
    selection: &NamespaceSelection,
    namespace: &str,
    labels: &Labels,
) -> bool {
    match selection {
        NamespaceSelection::Own(own) => own.as_ref() == namespace,
        NamespaceSelection::Selected(selector) => selector.selects(labels),
    }
}
