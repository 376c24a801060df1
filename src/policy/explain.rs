//! Why somebody may reach somebody, or may not.

use std::net::IpAddr;
use std::sync::Arc;

use conf::cluster::ObjectName;
use serde::{Deserialize, Serialize};
use vswitch::policy::{Direction, PolicyTable, Question, RuleName, Ruling, Traffic, Why, judge};

use super::{Evaluator, is_own_node};
use crate::control::policies::Miss;

/// What the rules of both sides say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyAnswer {
    /// The sender's.
    pub egress: SideAnswer,
    /// The receiver's.
    pub ingress: SideAnswer,
}

impl PolicyAnswer {
    /// Whether it may go on.
    pub fn passes(&self) -> bool {
        self.egress.verdict.passes() && self.ingress.verdict.passes()
    }
}

/// What the rules of one side say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideAnswer {
    /// Whether it may go on.
    pub verdict: Verdict,
    /// The NetworkPolicies that isolate the pod in this direction, as `namespace/name`.
    pub isolating: Vec<String>,
    /// The rule that decided.
    pub rule: Option<RuleAnswer>,
    /// Why, for people.
    pub reason: String,
    /// Where no rule of the isolating policies matches: what is wrong with each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub misses: Vec<Miss>,
}

/// Whether something may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It may.
    Allow,
    /// It may not.
    Deny,
    /// It may, since what is denied is only counted.
    Audit,
}

impl Verdict {
    /// Whether it goes on.
    pub fn passes(self) -> bool {
        self != Self::Deny
    }

    /// As it stands in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

/// A rule that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleAnswer {
    /// `admin`, `namespace` or `baseline`.
    pub tier: String,
    /// The policy, as `namespace/name`, or its name alone if it is the cluster's.
    pub policy: String,
    /// `egress` or `ingress`.
    pub direction: String,
    /// Its place in the policy's list for this direction, from 0.
    pub rule: u32,
}

impl From<&RuleName> for RuleAnswer {
    fn from(name: &RuleName) -> Self {
        Self {
            tier: name.policy.tier().to_string(),
            policy: name.policy.to_string(),
            direction: name.direction.to_string(),
            rule: name.rule,
        }
    }
}

impl Evaluator {
    /// Says whether `from` may reach `to`, and why.
    pub fn explain(&self, from: IpAddr, to: IpAddr, traffic: Traffic) -> PolicyAnswer {
        self.explain_at(from, to, traffic, is_own_node(&self.state, from, to))
    }

    /// The same, for whoever knows better whether one of the two is a pod and the other its node.
    pub fn explain_at(
        &self,
        from: IpAddr,
        to: IpAddr,
        traffic: Traffic,
        is_own_node: bool,
    ) -> PolicyAnswer {
        let table = self.tables.table();
        let judgement = judge(table, &Question { from, to, traffic, is_own_node });
        let side = |direction, ruling: &Ruling<'_>, own: IpAddr, peer: IpAddr| {
            let mut answer = SideAnswer::of(table, direction, ruling, own);
            if ruling.why == Why::NoMatch {
                answer.misses = self.misses(direction, own, peer, traffic);
            }
            answer
        };
        PolicyAnswer {
            egress: side(Direction::Egress, &judgement.egress, from, to),
            ingress: side(Direction::Ingress, &judgement.ingress, to, from),
        }
    }

    /// Why none of the rules matches of the policies that isolate the pod at `own`.
    fn misses(
        &self,
        direction: Direction,
        own: IpAddr,
        peer: IpAddr,
        traffic: Traffic,
    ) -> Vec<Miss> {
        let Some(id) = self.pod_at(own) else { return Vec::new() };
        self.tables.misses(&id, direction, peer, traffic)
    }

    fn pod_at(&self, address: IpAddr) -> Option<ObjectName> {
        let subject = self.tables.table().subject(address)?;
        let (namespace, name) = subject.name.split_once('/')?;
        Some(ObjectName::new(namespace, name))
    }
}

impl SideAnswer {
    /// Says in words what was ruled about the pod at `own`, or about whoever else is there.
    pub fn of(table: &PolicyTable, direction: Direction, ruling: &Ruling<'_>, own: IpAddr) -> Self {
        let who = match table.subject(own) {
            Some(subject) => format!("the pod {}", subject.name),
            None => own.to_string(),
        };
        let reason = match ruling.why {
            Why::NoRules if table.subject(own).is_none() => {
                format!("{who} is no pod with an address of its own: no policy is for it")
            }
            Why::NoRules => format!("no policy is for {who} in this direction"),
            Why::Itself => "a pod always reaches itself".to_owned(),
            Why::OwnNode => "a pod and its own node always reach each other".to_owned(),
            Why::Rule(rule) => {
                let what = if ruling.is_denied { "denies" } else { "allows" };
                format!("{} {what} it", describe(rule))
            }
            Why::NoMatch => {
                let policies: Vec<&str> =
                    ruling.isolating.iter().map(|policy| policy.as_str()).collect();
                format!(
                    "{who} is isolated for {direction} by {}, and no rule of theirs matches",
                    policies.join(", ")
                )
            }
            Why::NotIsolated => {
                format!(
                    "no NetworkPolicy isolates {who} for {direction}, and no other rule matches"
                )
            }
        };
        Self {
            verdict: match (ruling.is_denied, ruling.is_audited) {
                (false, _) => Verdict::Allow,
                (true, false) => Verdict::Deny,
                (true, true) => Verdict::Audit,
            },
            isolating: ruling.isolating.iter().map(ToString::to_string).collect(),
            rule: match ruling.why {
                Why::Rule(rule) => Some(RuleAnswer::from(&**rule)),
                Why::NoRules | Why::Itself | Why::OwnNode | Why::NoMatch | Why::NotIsolated => None,
            },
            reason,
            misses: Vec::new(),
        }
    }
}

/// A rule for people: `rule 0 for ingress of the NetworkPolicy default/web`.
fn describe(rule: &Arc<RuleName>) -> String {
    format!(
        "rule {} for {} of the policy {} ({} tier)",
        rule.rule,
        rule.direction,
        rule.policy,
        rule.policy.tier()
    )
}
