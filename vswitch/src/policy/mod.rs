//! Policies on who may reach whom: what every pod is allowed to send and to receive.
//!
//! ```text
//!   RuleSetSpec … ──► RuleSet ──► Subject … ──► PolicyTableBuilder ──► Arc<PolicyTable> ──► Tables
//!   (one pod, one direction)      (one pod)                                 │
//!                                                                           ▼
//!   Question (from, to, traffic) ─────────────────────────────────────►   judge ──► Judgement
//! ```
//!
//! Everything here is as neutral as it can be: whoever makes the specs has read the objects, matched labels and
//! resolved the names of ports. A *selector* is anything that a pod matches or does not; which are in use, and
//! what they mean, is its maker's business, and here they are numbers.
//!
//! [`judge()`] is the one place that says whether somebody may reach somebody, for the data path, explanations and
//! whole matrices alike. The tiers are those of the Network Policy API (`policy.networking.k8s.io`):
//!
//! | tier | rules | afterwards |
//! |---|---|---|
//! | admin | in order; the first that matches accepts, denies or passes to the next tier | if none matches: the next tier |
//! | namespace (`networking.k8s.io/v1`) | if a policy isolates the pod: any rule that matches accepts | if none matches: denied. A pod that is not isolated: the next tier |
//! | baseline | in order; the first that matches accepts or denies | if none matches: accepted |
//!
//! Always accepted is what a pod sends to itself, and what it exchanges with its own node.

mod bits;
pub mod denial;
mod index;
mod judge;
mod name;
mod rules;
mod table;

use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnetwork::IpNetwork;

pub use bits::{BitSet, SelectorIx};
pub use judge::{Judgement, Question, Ruling, Traffic, Why, judge, judge_egress, judge_ingress};
pub use name::{Counts, Direction, Policy, PolicyName, RuleName, Tier};
pub use rules::{Match, RuleSet};
pub use table::{Enforcement, Established, PolicyTable, PolicyTableBuilder, Subject};

use crate::service::Protocol;

/// All rules for one pod in one direction.
#[derive(Debug, Clone, Default)]
pub struct RuleSetSpec {
    /// The admin tier, the most important rule first.
    pub admin: Vec<Rule>,
    /// The namespace tier; `None` if no policy isolates the pod in this direction.
    pub namespace: Option<Isolation>,
    /// The baseline tier, the most important rule first. A rule that passes accepts: nothing comes behind it.
    pub baseline: Vec<Rule>,
}

/// What isolates a pod in one direction, and what it may do nevertheless.
#[derive(Debug, Clone, Default)]
pub struct Isolation {
    /// The policies that isolate it.
    pub policies: Vec<Arc<PolicyName>>,
    /// Their rules, all of which accept. What none of them matches is denied.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Where it is written.
    pub name: Arc<RuleName>,
    /// What becomes of what it matches.
    pub action: Action,
    /// Whom it is about: senders of an ingress rule, receivers of an egress rule.
    pub peers: Peers,
    /// Which ports of the receiver. If there are none: everything, protocols without ports included.
    pub ports: Vec<PortMatch>,
}

/// What becomes of what a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is accepted.
    Accept,
    /// It is denied.
    Deny,
    /// The next tier decides.
    Pass,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peers {
    /// Everybody, in the cluster and outside.
    Everybody,
    /// Whoever matches one of these. Without any: nobody.
    Some {
        /// Pods.
        selectors: Vec<SelectorIx>,
        /// Addresses, whosesoever they are.
        blocks: Vec<Block>,
    },
}

/// A block of addresses (`ipBlock`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The block.
    pub cidr: IpNetwork,
    /// Parts of it that are not meant.
    pub except: Vec<IpNetwork>,
}

/// Some ports of one protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMatch {
    /// The protocol.
    pub protocol: Protocol,
    /// The ports; `0..=65535` for all.
    pub ports: RangeInclusive<u16>,
}

#[cfg(test)]
mod tests;
