//! What policies and rules are called, and what was counted of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A direction, as the pod sees it that a rule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// What the pod sends.
    Egress,
    /// What it is sent.
    Ingress,
}

impl Direction {
    /// As Kubernetes writes it, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A tier of policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// The cluster administrator's: before all others.
    Admin,
    /// Those of namespaces (`networking.k8s.io/v1`).
    Namespace,
    /// The cluster administrator's for what nobody else says anything about.
    Baseline,
}

impl Tier {
    /// As the Network Policy API writes it, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Namespace => "namespace",
            Self::Baseline => "baseline",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A policy's name. Whoever makes tables keeps it as long as the policy stays the same: with it goes what was
/// counted.
#[derive(Debug)]
pub struct PolicyName {
    tier: Tier,
    name: Box<str>,
    egress: Counter,
    ingress: Counter,
}

impl PolicyName {
    /// A policy of `tier`: `namespace/name`, or its name alone if it is the cluster's.
    pub fn new(tier: Tier, name: &str) -> Arc<Self> {
        let (egress, ingress) = (Counter::default(), Counter::default());
        Arc::new(Self { tier, name: name.into(), egress, ingress })
    }

    /// `namespace/name`, or the name alone of one that is the cluster's.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The tier.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Packets that were denied since the policy isolates their sender or receiver, and no rule of any policy
    /// accepts them; or that would have been, where policies are only audited.
    pub fn denied(&self, direction: Direction) -> u64 {
        self.of(direction).get()
    }

    pub(crate) fn count_denied(&self, direction: Direction, packets: u64) {
        self.of(direction).add(packets);
    }

    fn of(&self, direction: Direction) -> &Counter {
        match direction {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }
}

impl PartialEq for PolicyName {
    fn eq(&self, other: &Self) -> bool {
        (self.tier, &self.name) == (other.tier, &other.name)
    }
}

impl Eq for PolicyName {}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A rule's name. Whoever makes tables keeps it as long as the rule stays the same: with it goes what was counted.
#[derive(Debug)]
pub struct RuleName {
    /// The policy that it is written in.
    pub policy: Arc<PolicyName>,
    /// For which direction.
    pub direction: Direction,
    /// Its place in the policy's list for this direction, from 0.
    pub rule: u32,
    matched: Counter,
    denied: Counter,
}

impl RuleName {
    /// The `rule`th rule of `policy` for `direction`.
    pub fn new(policy: Arc<PolicyName>, direction: Direction, rule: u32) -> Arc<Self> {
        Arc::new(Self {
            policy,
            direction,
            rule,
            matched: Counter::default(),
            denied: Counter::default(),
        })
    }

    /// What was counted since the rule is what it is.
    pub fn counts(&self) -> Counts {
        Counts { matched: self.matched.get(), denied: self.denied.get() }
    }

    pub(crate) fn count_matched(&self) {
        self.matched.add(1);
    }

    pub(crate) fn count_denied(&self, packets: u64) {
        self.denied.add(packets);
    }
}

impl PartialEq for RuleName {
    fn eq(&self, other: &Self) -> bool {
        (&self.policy, self.direction, self.rule) == (&other.policy, other.direction, other.rule)
    }
}

impl Eq for RuleName {}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}[{}]", self.policy, self.direction, self.rule)
    }
}

/// What was counted of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Times that it decided: once for each flow, once for each packet of what is no flow.
    pub matched: u64,
    /// Packets that it denied, or would have where policies are only audited.
    pub denied: u64,
}

/// A policy with all its rules, for whoever wants to know what was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: Arc<PolicyName>,
    /// Its rules in both directions.
    pub rules: Vec<Arc<RuleName>>,
}

/// Counts what is seldom: workers share it.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
