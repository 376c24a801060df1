//! The switch's table of policies, kept in step with the state of the cluster. Pure.
//!
//! ```text
//!   policies ──► rules (rules.rs) ─────────────────────────────┐
//!      └──► selectors in use (selectors.rs) ◄── labels, ports ─┤
//!                                                              ▼
//!   pods ──► for each: which selectors, which policies ──► Subject ──► PolicyTable
//! ```
//!
//! A change costs what it changes. A pod that comes is compared with the selectors that can be about its namespace,
//! and no rule is made anew for it; a policy that changes is made into rules once, and only the pods that it is for
//! get other rules, only those that a new selector is about other selectors. Pods with the same policies share
//! their rules.

mod pods;
mod report;
mod rules;
mod selectors;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use conf::cluster::policy::{NamespaceSelection, PodSelection};
use conf::cluster::{ClusterState, Delta, ObjectKey, ObjectKind, ObjectName};
use vswitch::policy::{
    Direction, Enforcement, Isolation, PolicyTable, PolicyTableBuilder, RuleSet, RuleSetSpec,
    Subject, Tier,
};

use self::pods::{Pod, Pods, is_meant, owner};
pub use self::report::Miss;
pub use self::rules::protocol_of;
use self::rules::{Compiled, Compiler, Order, Source};
use self::selectors::{NamedPort, Selector, Selectors, selects_namespace};

/// Which pods get rules. Those that do not are still known as peers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// All.
    #[default]
    All,
    /// Those on this node. Of the others only the rules for what they are sent: the node judges by them when it
    /// takes the place of a client whom the other node then cannot see.
    Node(Arc<str>),
    /// These.
    Pods(BTreeSet<ObjectName>),
}

impl Scope {
    fn has(&self, id: &ObjectName, pod: &Pod, direction: Direction) -> bool {
        match self {
            Self::All => true,
            Self::Node(node) => {
                direction == Direction::Ingress || pod.node.as_ref().is_some_and(|on| on == node)
            }
            Self::Pods(pods) => pods.contains(id),
        }
    }
}

/// What the rules do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mode {
    /// In general.
    pub enforcement: Enforcement,
    /// Namespaces with pods for whom what is denied is only counted.
    pub audited: BTreeSet<Arc<str>>,
}

/// Makes [`PolicyTable`]s, each out of the one before.
#[derive(Debug)]
pub struct PolicyTables {
    scope: Scope,
    mode: Mode,
    table: PolicyTable,
    generation: u64,
    version: u64,
    pods: Pods,
    selectors: Selectors,
    policies: BTreeMap<ObjectKey, Compiled>,
    /// The policies of the cluster in the order in which they are asked.
    ordered: BTreeMap<(Tier, Order), ObjectKey>,
    /// Rules that pods share, as long as one of them has them.
    rule_sets: BTreeMap<RuleSetKey, Weak<RuleSet>>,
    /// When to look for rules that nobody has any more.
    sweep_at: usize,
}

/// What the rules for a pod in one direction are made of: versions of policies, and the ports that they call by
/// name.
type RuleSetKey = (Direction, Vec<u64>, Vec<NamedPort>);

/// At so few sets of rules those that nobody has are not looked for.
const SWEEP_MIN: usize = 256;

impl PolicyTables {
    /// A table without pods and policies.
    pub fn new(scope: Scope, mode: Mode) -> Self {
        let table = PolicyTableBuilder::new(mode.enforcement).build(0);
        Self {
            scope,
            mode,
            table,
            generation: 0,
            version: 0,
            pods: Pods::default(),
            selectors: Selectors::default(),
            policies: BTreeMap::new(),
            ordered: BTreeMap::new(),
            rule_sets: BTreeMap::new(),
            sweep_at: SWEEP_MIN,
        }
    }

    /// The table for everything that a state holds: for questions that are asked once.
    pub fn of(state: &ClusterState, scope: Scope) -> Self {
        let mode = Mode { enforcement: Enforcement::On, ..Mode::default() };
        let mut tables = Self::new(scope, mode);
        tables.take_up_all(state);
        tables
    }

    /// Takes up everything that a state holds.
    pub fn take_up_all(&mut self, state: &ClusterState) -> Arc<PolicyTable> {
        let delta = Delta {
            pods: state.pods().map(|view| view.id.clone()).collect(),
            policies: Source::keys(state).collect(),
            ..Delta::default()
        };
        self.update(state, &delta)
    }

    /// The table as it was made last.
    pub fn table(&self) -> &PolicyTable {
        &self.table
    }

    /// How many pods, policies, and selectors there are, and sets of rules that pods share.
    pub fn counts(&self) -> PolicyCounts {
        let rule_sets = self.rule_sets.values().filter(|rules| rules.strong_count() > 0).count();
        PolicyCounts {
            pods: self.pods.len(),
            policies: self.policies.len(),
            selectors: self.selectors.len(),
            rule_sets,
        }
    }

    /// Takes up what is different. Returns the new table, of which the generation is the old one's if it holds the
    /// same.
    pub fn update(&mut self, state: &ClusterState, delta: &Delta) -> Arc<PolicyTable> {
        let mut builder = self.table.edit();
        let mut work = Work::default();
        self.take_up_pods(state, delta, &mut work);
        self.take_up_policies(state, delta, &mut work, &mut builder);
        self.find_selected(state, &mut work);
        let mut is_new = self.make_subjects(state, &mut work);
        is_new |= self.set_addresses(state, &work.addresses, &mut builder);
        is_new |= work.is_new;
        if is_new {
            self.generation += 1;
        }
        self.table = builder.build(self.generation);
        if self.rule_sets.len() > self.sweep_at {
            self.rule_sets.retain(|_, rules| rules.strong_count() > 0);
            self.sweep_at = (self.rule_sets.len() * 2).max(SWEEP_MIN);
        }
        Arc::new(self.table.clone())
    }

    fn take_up_pods(&mut self, state: &ClusterState, delta: &Delta, work: &mut Work) {
        for id in &delta.pods {
            let view = state.pod(&id.namespace, &id.name);
            let unknown = self.pods.set_unknown(state, id, view.map(|view| &**view));
            work.pods_moved |= !unknown.is_empty();
            work.addresses.extend(unknown);
            let view = view.filter(|view| is_meant(state, view));
            let mut pod = view.map(|view| Pod::of(view));
            let before = self.pods.get(id);
            let has_moved = before.map(|pod| (&pod.addresses, &pod.ports))
                != pod.as_ref().map(|pod| (&pod.addresses, &pod.ports));
            work.pods_moved |= has_moved;
            let same_pod = before.zip(pod.as_ref()).is_some_and(|(before, pod)| {
                (&before.labels, &before.node) == (&pod.labels, &pod.node)
            });
            if !has_moved && same_pod {
                continue;
            }
            work.addresses.extend(before.into_iter().flat_map(|pod| &pod.addresses));
            work.addresses.extend(pod.iter().flat_map(|pod| &pod.addresses));
            if let Some(pod) = &mut pod {
                pod.subject = before.and_then(|before| before.subject.clone());
                work.pods.insert(id.clone());
            }
            self.pods.set(id, pod, &mut work.port_names);
        }
        for namespace in &delta.namespaces {
            let pods = self.pods.of_namespace(namespace);
            let ids =
                pods.map(|(name, _)| ObjectName::new(Arc::clone(namespace), Arc::clone(name)));
            work.pods.extend(ids);
        }
    }

    fn take_up_policies(
        &mut self,
        state: &ClusterState,
        delta: &Delta,
        work: &mut Work,
        builder: &mut PolicyTableBuilder,
    ) {
        let needs_again = |compiled: &Compiled| {
            (compiled.needs_nodes && !delta.nodes.is_empty())
                || (compiled.needs_addresses && work.pods_moved)
                || compiled.port_names.iter().any(|name| work.port_names.contains(name))
        };
        let again = self.policies.iter().filter(|(_, compiled)| needs_again(compiled));
        let keys: BTreeSet<ObjectKey> =
            again.map(|(key, _)| key.clone()).chain(delta.policies.iter().cloned()).collect();
        work.is_new |= !keys.is_empty();
        for key in keys {
            let before = self.policies.remove(&key);
            if let Some(before) = &before {
                self.ordered.remove(&(before.source.tier(), before.source.order()));
                work.subjects.push(before.subject.clone());
                builder.remove_policy(before.policy.name.tier(), before.policy.name.as_str());
            }
            if let Some(source) = Source::find(state, &key) {
                self.version += 1;
                let mut compiler = Compiler {
                    state,
                    pods: &self.pods,
                    selectors: &mut self.selectors,
                    new_selectors: &mut work.selectors,
                };
                let compiled = compiler.compile(source, before.as_ref(), self.version);
                let place = (compiled.source.tier(), compiled.source.order());
                if compiled.source.tier() != Tier::Namespace {
                    self.ordered.insert(place, key.clone());
                }
                work.subjects.push(compiled.subject.clone());
                builder.policy(Arc::clone(&compiled.policy));
                self.policies.insert(key, compiled);
            }
            // Only now: what both ask for stays.
            for selector in before.iter().flat_map(|before| &before.selectors) {
                self.selectors.release(selector);
            }
        }
    }

    /// Finds the pods that changed policies are for, and those that new selectors are about.
    fn find_selected(&self, state: &ClusterState, work: &mut Work) {
        let new =
            work.selectors.iter().map(|Selector { pods, port }| (pods.as_ref(), port.as_ref()));
        let changed = work.subjects.iter().map(|pods| (Some(pods), None));
        let mut found = Vec::new();
        for (pods, port) in new.chain(changed) {
            let has_port =
                |pod: &Pod| port.is_none_or(|port| pod.ports.binary_search(port).is_ok());
            let is_selected =
                |pod: &Pod| pods.is_none_or(|pods| pods.pods.selects(&pod.labels)) && has_port(pod);
            let mut take = |namespace: &Arc<str>| {
                let pods = self.pods.of_namespace(namespace).filter(|(_, pod)| is_selected(pod));
                found.extend(
                    pods.map(|(name, _)| ObjectName::new(Arc::clone(namespace), Arc::clone(name))),
                );
            };
            match pods.map(|pods| &pods.namespaces) {
                Some(NamespaceSelection::Own(own)) => take(own),
                None => self.pods.namespaces().for_each(take),
                Some(selected @ NamespaceSelection::Selected(_)) => {
                    let namespaces = self.pods.namespaces().filter(|namespace| {
                        selects_namespace(selected, namespace, &state.namespace_labels(namespace))
                    });
                    namespaces.for_each(take);
                }
            }
        }
        work.pods.extend(found);
    }

    /// Makes the subjects of pods anew. Returns whether any is another.
    fn make_subjects(&mut self, state: &ClusterState, work: &mut Work) -> bool {
        let ids: Vec<ObjectName> = std::mem::take(&mut work.pods).into_iter().collect();
        let mut is_new = false;
        for ids in ids.chunk_by(|one, other| one.namespace == other.namespace) {
            is_new |= self.make_of_namespace(state, ids, &mut work.addresses);
        }
        is_new
    }

    /// The same for pods of one namespace. `addresses` gets those of pods that are different.
    fn make_of_namespace(
        &mut self,
        state: &ClusterState,
        ids: &[ObjectName],
        addresses: &mut BTreeSet<IpAddr>,
    ) -> bool {
        let Some(first) = ids.first() else { return false };
        let namespace = &first.namespace;
        let labels = state.namespace_labels(namespace);
        let candidates = self.selectors.of_namespace(namespace, &labels);
        let cluster = self.ordered.values().filter_map(|key| self.policies.get(key));
        let of_cluster = cluster
            .filter(|compiled| selects_namespace(&compiled.subject.namespaces, namespace, &labels));
        let own = of_namespace(&self.policies, namespace);
        let policies: Vec<&Compiled> = of_cluster.chain(own).collect();
        let audit = self.mode.audited.contains(namespace);
        let mut is_new = false;
        for id in ids {
            let Some(pod) = self.pods.get_mut(id) else { continue };
            let selecting = policies.iter().copied();
            let selecting: Vec<&Compiled> =
                selecting.filter(|compiled| compiled.subject.pods.selects(&pod.labels)).collect();
            let mut rules = |direction| {
                let is_wanted = self.scope.has(id, pod, direction);
                let rules = is_wanted.then(|| rule_set(direction, &selecting, &pod.ports));
                rules.flatten().map(|(key, make)| {
                    let known = self.rule_sets.get(&key).and_then(Weak::upgrade);
                    known.unwrap_or_else(|| {
                        let made = Arc::new(RuleSet::new(make()));
                        self.rule_sets.insert(key, Arc::downgrade(&made));
                        made
                    })
                })
            };
            let (egress, ingress) = (rules(Direction::Egress), rules(Direction::Ingress));
            let selectors = candidates.matched(&pod.labels, &pod.ports);
            if let Some(before) = &pod.subject
                && *before.selectors == selectors
                && is_same(before.egress.as_ref(), egress.as_ref())
                && is_same(before.ingress.as_ref(), ingress.as_ref())
                && before.audit == audit
            {
                continue;
            }
            let name = match &pod.subject {
                Some(before) => Arc::clone(&before.name),
                None => id.to_string().into(),
            };
            let selectors = Arc::new(selectors);
            pod.subject = Some(Arc::new(Subject { name, selectors, egress, ingress, audit }));
            addresses.extend(&pod.addresses);
            is_new = true;
        }
        is_new
    }

    /// Puts in the table who has these addresses now. Returns whether any has another.
    fn set_addresses(
        &self,
        state: &ClusterState,
        addresses: &BTreeSet<IpAddr>,
        builder: &mut PolicyTableBuilder,
    ) -> bool {
        let mut is_new = false;
        for address in addresses {
            let id = owner(state, *address).map(|view| &view.id);
            let subject = id.and_then(|id| self.pods.get(id)?.subject.as_ref());
            if is_same(self.table.subject(*address), subject) {
                continue;
            }
            is_new = true;
            match subject {
                Some(subject) => builder.subject(*address, Arc::clone(subject)),
                None => builder.remove_subject(*address),
            };
        }
        is_new
    }
}

/// How much of everything there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyCounts {
    /// Pods that policies can be about.
    pub pods: usize,
    /// Policies.
    pub policies: usize,
    /// Different peers that rules are about.
    pub selectors: usize,
    /// Different sets of rules that pods have.
    pub rule_sets: usize,
}

/// What is left to do for some changes.
#[derive(Debug, Default)]
struct Work {
    /// Pods that may get another subject.
    pods: BTreeSet<ObjectName>,
    /// Whether any pod has other addresses or ports.
    pods_moved: bool,
    /// Names of ports that have other numbers.
    port_names: BTreeSet<Arc<str>>,
    /// Selectors that are new.
    selectors: Vec<Selector>,
    /// Whom changed policies were for, and are for.
    subjects: Vec<PodSelection>,
    /// Addresses that may have another subject.
    addresses: BTreeSet<IpAddr>,
    /// Whether something is different that no pod shows.
    is_new: bool,
}

/// The NetworkPolicies of a namespace, by name.
fn of_namespace<'p>(
    policies: &'p BTreeMap<ObjectKey, Compiled>,
    namespace: &Arc<str>,
) -> impl Iterator<Item = &'p Compiled> {
    let kind = ObjectKind::NetworkPolicy;
    let first = ObjectKey { kind, id: ObjectName::new(Arc::clone(namespace), "") };
    let namespace = Arc::clone(namespace);
    let is_in = move |key: &ObjectKey| key.kind == kind && key.id.namespace == namespace;
    policies.range(first..).take_while(move |(key, _)| is_in(key)).map(|(_, compiled)| compiled)
}

/// What the rules are made of that these policies have for a pod, and how. `None` when they say nothing.
fn rule_set<'p>(
    direction: Direction,
    selecting: &'p [&'p Compiled],
    ports: &'p [NamedPort],
) -> Option<(RuleSetKey, impl FnOnce() -> RuleSetSpec + 'p)> {
    let speaking: Vec<&Compiled> =
        selecting.iter().copied().filter(|compiled| compiled.speaks_of(direction)).collect();
    if speaking.is_empty() {
        return None;
    }
    let versions = speaking.iter().map(|compiled| compiled.version).collect();
    let called = ports.iter().filter(|port| {
        direction == Direction::Ingress && speaking.iter().any(|compiled| compiled.calls(port))
    });
    let key = (direction, versions, called.cloned().collect());
    Some((key, move || spec(direction, &speaking, ports)))
}

fn spec(direction: Direction, speaking: &[&Compiled], ports: &[NamedPort]) -> RuleSetSpec {
    let mut spec = RuleSetSpec::default();
    for compiled in speaking {
        let rules = compiled.rules_for(direction, ports);
        match compiled.source.tier() {
            Tier::Admin => spec.admin.extend(rules),
            Tier::Baseline => spec.baseline.extend(rules),
            Tier::Namespace => {
                let isolation = spec.namespace.get_or_insert_with(Isolation::default);
                isolation.policies.push(Arc::clone(&compiled.policy.name));
                isolation.rules.extend(rules);
            }
        }
    }
    spec
}

fn is_same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests;
