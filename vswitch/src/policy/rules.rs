//! The rules for one pod in one direction, ready to decide.

use std::net::IpAddr;
use std::sync::Arc;

use super::index::Index;
use super::{Action, BitSet, Peers, PolicyName, Rule, RuleSetSpec, Traffic};

/// All rules for one pod in one direction. Pods to which the same policies apply share one.
#[derive(Debug)]
pub struct RuleSet {
    admin: Rules,
    isolating: Option<Box<[Arc<PolicyName>]>>,
    namespace: Rules,
    baseline: Rules,
}

/// What decides.
#[derive(Debug, Clone, Copy)]
pub enum Match<'r> {
    /// This rule.
    Rule(&'r Rule),
    /// That no rule of the isolating policies matches.
    Isolated,
    /// Nothing: no rule matches, and no policy isolates the pod.
    Nothing,
}

#[derive(Debug)]
struct Rules {
    rules: Box<[Rule]>,
    index: Index,
}

impl RuleSet {
    /// Makes rules ready.
    pub fn new(spec: RuleSetSpec) -> Self {
        let (isolating, namespace) = match spec.namespace {
            None => (None, Vec::new()),
            Some(isolation) => (Some(isolation.policies.into()), isolation.rules),
        };
        let [admin, namespace, baseline] =
            [spec.admin, namespace, spec.baseline].map(|rules| Rules::new(rules, Index::new));
        Self { admin, isolating, namespace, baseline }
    }

    /// The policies that isolate the pod. There may be none.
    pub fn isolating(&self) -> &[Arc<PolicyName>] {
        self.isolating.as_deref().unwrap_or_default()
    }

    /// Whether somebody may be accepted for want of labels: a rule that does not accept is about selectors.
    pub fn needs_labels(&self) -> bool {
        let rules = self.admin.rules.iter().chain(&self.baseline.rules);
        rules.filter(|rule| rule.action != Action::Accept).any(|rule| match &rule.peers {
            Peers::Everybody => false,
            Peers::Some { selectors, .. } => !selectors.is_empty(),
        })
    }

    /// What decides about `traffic` with a peer that has this address and matches these selectors.
    pub fn find(&self, traffic: Traffic, address: IpAddr, selectors: &BitSet) -> Match<'_> {
        if let Some(rule) = self.admin.first(traffic, address, selectors)
            && rule.action != Action::Pass
        {
            return Match::Rule(rule);
        }
        if self.isolating.is_some() {
            let rule = self.namespace.first(traffic, address, selectors);
            return rule.map_or(Match::Isolated, Match::Rule);
        }
        self.baseline.first(traffic, address, selectors).map_or(Match::Nothing, Match::Rule)
    }
}

impl Rules {
    fn new(rules: Vec<Rule>, index: impl Fn(&[Rule]) -> Index) -> Self {
        let index = index(&rules);
        Self { rules: rules.into(), index }
    }

    fn first(&self, traffic: Traffic, address: IpAddr, selectors: &BitSet) -> Option<&Rule> {
        let ix = self.index.first(&self.rules, traffic, address, selectors)?;
        self.rules.get(usize::try_from(ix).ok()?)
    }
}
