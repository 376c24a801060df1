//! Whether somebody may reach somebody.

use std::net::IpAddr;
use std::sync::Arc;

use super::{
    Action, BitSet, Direction, Enforcement, Match, PolicyName, PolicyTable, RuleName, Subject,
};
use crate::service::Protocol;

/// What somebody wants to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Traffic {
    /// Something to a port.
    Port {
        /// The protocol.
        protocol: Protocol,
        /// The receiver's port, after Services are translated.
        port: u16,
    },
    /// Something of a protocol without ports, such as ICMP. Only rules that say nothing about ports match it.
    Portless,
}

/// The first packet of a flow that there is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Who sends, before anybody takes its place.
    pub from: IpAddr,
    /// Who is to receive, after Services are translated; an address of the same family.
    pub to: IpAddr,
    /// What is sent.
    pub traffic: Traffic,
    /// Whether one of the two is a pod, and the other an address of the node that this pod is on.
    pub is_own_node: bool,
}

/// What the rules say, in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Judgement<'t> {
    /// By the sender's rules.
    pub egress: Ruling<'t>,
    /// By the receiver's rules.
    pub ingress: Ruling<'t>,
}

impl Judgement<'_> {
    /// Whether it may go on: neither side's rules deny it, or what they deny is only counted.
    pub fn passes(&self) -> bool {
        self.egress.passes() && self.ingress.passes()
    }
}

/// What the rules of one side say.
#[derive(Debug, Clone, Copy)]
pub struct Ruling<'t> {
    /// Whether they deny it.
    pub is_denied: bool,
    /// Whether what they deny is only counted.
    pub is_audited: bool,
    /// The policies of the namespace tier that isolate the pod in this direction.
    pub isolating: &'t [Arc<PolicyName>],
    /// Why.
    pub why: Why<'t>,
}

/// Why a ruling is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why<'t> {
    /// It is no pod, or no rule says anything about it in this direction.
    NoRules,
    /// A pod may always reach itself.
    Itself,
    /// A pod and its own node may always reach each other.
    OwnNode,
    /// This rule matches.
    Rule(&'t Arc<RuleName>),
    /// No rule of the policies that isolate the pod matches.
    NoMatch,
    /// No rule matches, and no policy isolates the pod.
    NotIsolated,
}

impl Ruling<'_> {
    /// Whether it may go on.
    pub fn passes(&self) -> bool {
        !self.is_denied || self.is_audited
    }

    const fn accepted(why: Why<'_>) -> Ruling<'_> {
        Ruling { is_denied: false, is_audited: false, isolating: &[], why }
    }

    /// Counts that the ruling was made, about so many packets that it denies.
    pub fn count(&self, direction: Direction, packets: u64) {
        match self.why {
            Why::Rule(rule) => {
                rule.count_matched();
                if self.is_denied {
                    rule.count_denied(packets);
                }
            }
            Why::NoMatch => {
                for policy in self.isolating {
                    policy.count_denied(direction, packets);
                }
            }
            Why::NoRules | Why::Itself | Why::OwnNode | Why::NotIsolated => {}
        }
    }
}

/// Judges by the rules of both sides.
pub fn judge<'t>(table: &'t PolicyTable, question: &Question) -> Judgement<'t> {
    Judgement { egress: judge_egress(table, question), ingress: judge_ingress(table, question) }
}

/// Judges by the sender's rules alone, as its node does.
pub fn judge_egress<'t>(table: &'t PolicyTable, question: &Question) -> Ruling<'t> {
    judge_side(table, Direction::Egress, question.from, question.to, question)
}

/// Judges by the receiver's rules alone, as its node does.
pub fn judge_ingress<'t>(table: &'t PolicyTable, question: &Question) -> Ruling<'t> {
    judge_side(table, Direction::Ingress, question.to, question.from, question)
}

fn judge_side<'t>(
    table: &'t PolicyTable,
    direction: Direction,
    own: IpAddr,
    peer: IpAddr,
    question: &Question,
) -> Ruling<'t> {
    let subject = table.subject(own);
    let rules = subject.and_then(|subject| Some((subject, subject.rules(direction)?)));
    let Some((subject, rules)) = rules else { return Ruling::accepted(Why::NoRules) };
    let isolating = rules.isolating();
    let other: Option<&Arc<Subject>> = table.subject(peer);
    if own == peer || other.is_some_and(|other| Arc::ptr_eq(subject, other)) {
        return Ruling { isolating, ..Ruling::accepted(Why::Itself) };
    }
    if question.is_own_node {
        return Ruling { isolating, ..Ruling::accepted(Why::OwnNode) };
    }
    let nothing = BitSet::default();
    let selectors = other.map_or(&nothing, |other| &*other.selectors);
    let (is_denied, why) = match rules.find(question.traffic, peer, selectors) {
        Match::Rule(rule) => (rule.action == Action::Deny, Why::Rule(&rule.name)),
        Match::Isolated => (true, Why::NoMatch),
        Match::Nothing => (false, Why::NotIsolated),
    };
    let is_audited = subject.audit || table.enforcement() == Enforcement::Audit;
    Ruling { is_denied, is_audited: is_denied && is_audited, isolating, why }
}
