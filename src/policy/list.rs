//! Policies as they are told: whom each is for, and what was counted of its rules.

use serde::{Deserialize, Serialize};

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// `kind` of its manifest.
    pub kind: String,
    /// Its namespace; empty for one of the cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `admin`, `namespace` or `baseline`.
    pub tier: String,
    /// Its priority, where its kind has one.
    pub priority: Option<u16>,
    /// The pods that it is for, as `namespace/name`.
    pub pods: Vec<String>,
    /// Its rules for what pods are sent. `None`: it says nothing about that.
    pub ingress: Option<DirectionStatus>,
    /// Its rules for what pods send. `None`: it says nothing about that.
    pub egress: Option<DirectionStatus>,
}

/// What a policy says about one direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionStatus {
    /// Its rules.
    pub rules: Vec<RuleStatus>,
    /// Packets that were denied since it isolates a pod, and no rule matched.
    pub denied: u64,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// `name`, where it has one.
    pub name: Option<String>,
    /// `accept`, `deny` or `pass`.
    pub action: String,
    /// Times that it decided: once for a flow, and for each packet of what is no flow.
    pub matched: u64,
    /// Packets that it denied.
    pub denied: u64,
}

impl PolicyStatus {
    /// `namespace/name`, or the name alone.
    pub fn title(&self) -> String {
        if self.namespace.is_empty() {
            return self.name.clone();
        }
        format!("{}/{}", self.namespace, self.name)
    }

    /// The rules that never decided anything: `ingress[0]`.
    pub fn unused(&self) -> Vec<String> {
        let of = |direction: &str, status: &Option<DirectionStatus>| {
            let rules = status.iter().flat_map(|status| status.rules.iter().enumerate());
            let unused = rules.filter(|(_, rule)| rule.matched == 0);
            unused.map(|(ix, _)| format!("{direction}[{ix}]")).collect::<Vec<_>>()
        };
        [of("ingress", &self.ingress), of("egress", &self.egress)].concat()
    }
}
