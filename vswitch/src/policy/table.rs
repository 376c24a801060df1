//! All pods with the rules for them, and how the table of them is put together.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use rpds::HashTrieMapSync;
use serde::{Deserialize, Serialize};

use super::{BitSet, Direction, Policy, RuleSet, Tier};

/// What the rules of a table do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Enforcement {
    /// Nothing, since there cannot be any: no object is ever read. No pod is waited for.
    #[default]
    Off,
    /// They are in force. A pod of this node that is not in the table can neither send nor receive.
    On,
    /// What they deny is counted, and goes on.
    Audit,
}

/// What becomes of flows that there are when policies change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Established {
    /// The next packet of each is judged anew, in whichever direction: what is not allowed any more stops.
    #[default]
    Recheck,
    /// What was admitted once goes on until it is over.
    Keep,
}

/// A pod with the rules for it.
#[derive(Debug, Clone)]
pub struct Subject {
    /// `namespace/name`.
    pub name: Arc<str>,
    /// The selectors that the pod matches, of all that are in use.
    pub selectors: Arc<BitSet>,
    /// For what it sends; `None` if no rule says anything about that.
    pub egress: Option<Arc<RuleSet>>,
    /// For what it is sent; `None` if no rule says anything about that.
    pub ingress: Option<Arc<RuleSet>>,
    /// Whether what its rules deny is only counted.
    pub audit: bool,
}

impl Subject {
    /// The rules for one direction.
    pub fn rules(&self, direction: Direction) -> Option<&RuleSet> {
        match direction {
            Direction::Egress => self.egress.as_deref(),
            Direction::Ingress => self.ingress.as_deref(),
        }
    }

    /// Whether any rule says anything about the pod. If none does, its packets are not looked at.
    pub fn is_judged(&self) -> bool {
        self.egress.is_some() || self.ingress.is_some()
    }
}

/// All pods of the cluster with the rules for them: immutable, and shared between snapshots of
/// [`crate::tables::Tables`]. A copy costs nothing, and a change what it changes.
#[derive(Debug, Clone)]
pub struct PolicyTable {
    /// Changes whenever anything in the table does.
    generation: u64,
    enforcement: Enforcement,
    subjects: HashTrieMapSync<IpAddr, Arc<Subject>, RandomState>,
    policies: HashTrieMapSync<(Tier, Arc<str>), Arc<Policy>, RandomState>,
}

impl PolicyTable {
    /// A table without rules, where there cannot be any.
    pub fn off() -> Self {
        PolicyTableBuilder::new(Enforcement::Off).build(0)
    }

    /// Changes whenever anything in the table does.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What the rules do.
    pub fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// The pod that has this address.
    pub fn subject(&self, address: IpAddr) -> Option<&Arc<Subject>> {
        self.subjects.get(&address)
    }

    /// All addresses of pods with their pods, in no order that means anything.
    pub fn subjects(&self) -> impl Iterator<Item = (IpAddr, &Arc<Subject>)> {
        self.subjects.iter().map(|(address, subject)| (*address, subject))
    }

    /// How many addresses of pods there are.
    pub fn len(&self) -> usize {
        self.subjects.size()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    /// All policies, those that apply to no pod included, by tier and name.
    pub fn policies(&self) -> Vec<&Arc<Policy>> {
        let mut all: Vec<_> = self.policies.iter().collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all.into_iter().map(|(_, policy)| policy).collect()
    }

    /// Begins a table that differs a little from this one: what is not changed is shared.
    pub fn edit(&self) -> PolicyTableBuilder {
        PolicyTableBuilder { table: self.clone() }
    }
}

/// Puts a [`PolicyTable`] together.
#[derive(Debug)]
pub struct PolicyTableBuilder {
    table: PolicyTable,
}

impl PolicyTableBuilder {
    /// Begins a table without pods and policies.
    pub fn new(enforcement: Enforcement) -> Self {
        let subjects = HashTrieMapSync::new_with_hasher_and_ptr_kind(RandomState::default());
        let policies = HashTrieMapSync::new_with_hasher_and_ptr_kind(RandomState::default());
        Self { table: PolicyTable { generation: 0, enforcement, subjects, policies } }
    }

    /// Sets what the rules do.
    pub fn enforcement(&mut self, enforcement: Enforcement) -> &mut Self {
        self.table.enforcement = enforcement;
        self
    }

    /// Sets who has `address`: a pod, with the same [`Subject`] at each of its addresses. Whoever had it before has it
    /// no more.
    pub fn subject(&mut self, address: IpAddr, subject: Arc<Subject>) -> &mut Self {
        self.table.subjects.insert_mut(address, subject);
        self
    }

    /// Takes the pod away that has `address`.
    pub fn remove_subject(&mut self, address: IpAddr) -> &mut Self {
        self.table.subjects.remove_mut(&address);
        self
    }

    /// Sets a policy, for whoever wants to know what was counted. What its rules do, subjects say.
    pub fn policy(&mut self, policy: Arc<Policy>) -> &mut Self {
        let key = (policy.name.tier(), Arc::from(policy.name.as_str()));
        self.table.policies.insert_mut(key, policy);
        self
    }

    /// Takes a policy away.
    pub fn remove_policy(&mut self, tier: Tier, name: &str) -> &mut Self {
        self.table.policies.remove_mut(&(tier, Arc::from(name)));
        self
    }

    /// Finishes the table. `generation` must differ from that of every table before it that was not the same.
    pub fn build(mut self, generation: u64) -> PolicyTable {
        self.table.generation = generation;
        self.table
    }
}
