//! Policies in the daemon: put in force, counted, and told about.

use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;

use conf::PolicyConfig;
use vswitch::policy::denial::Denial;
use vswitch::policy::{Direction, Enforcement, Policy, PolicyTable, PolicyTableBuilder, RuleName};

use super::Control;
use super::policies::Mode;
use crate::admin::api::{PoliciesReport, PolicyCounts, PolicyEnforcement, PolicyRuleCounts};
use crate::events::Code;

/// Denials that are told one by one, each time that reports are collected.
const DENIALS_TOLD: usize = 10;

/// Policies that a line names of those that isolate a pod.
const POLICIES_NAMED: usize = 8;

/// What is in force before all policies are known: no pod sends or is sent anything.
pub(super) fn shut() -> PolicyTable {
    PolicyTableBuilder::new(Enforcement::On).build(u64::MAX)
}

/// What policies do by the configuration.
pub(crate) fn mode(config: &PolicyConfig) -> Mode {
    let enforcement = if config.audit { Enforcement::Audit } else { Enforcement::On };
    Mode {
        enforcement,
        audited: config.audit_namespaces.iter().map(|name| name.as_str().into()).collect(),
    }
}

impl Control {
    /// Puts policies in force. The table's generation must differ from that of every other one that was not the
    /// same.
    pub(super) fn set_policies(&mut self, policies: Arc<PolicyTable>) {
        let of = |table: &PolicyTable| (table.generation(), table.enforcement());
        if of(&self.policies) != of(&policies) {
            self.policies = policies;
            self.publish();
        }
    }

    /// The policies that are in force, and what was counted of them.
    pub fn policies(&self) -> PoliciesReport {
        let table = &self.policies;
        let enforcement = match table.enforcement() {
            _ if !self.cluster().is_synced() => PolicyEnforcement::Pending,
            Enforcement::Off => PolicyEnforcement::Off,
            Enforcement::On => PolicyEnforcement::On,
            Enforcement::Audit => PolicyEnforcement::Audit,
        };
        PoliciesReport {
            enforcement,
            generation: table.generation(),
            addresses: table.len(),
            denials_untold: self.denials_untold,
            policies: table.policies().into_iter().map(|policy| counts(policy)).collect(),
        }
    }

    /// Tells what policies denied since this was last called. What is alike is told as one.
    pub(super) fn tell_denials(&mut self) {
        let flows = Arc::clone(self.engine.flows());
        let mut alike: BTreeMap<DenialKey, (Denial, u64)> = BTreeMap::new();
        for denial in iter::from_fn(|| flows.denials().take()) {
            let packets = denial.packets;
            let (_, sum) = alike.entry(key(&denial)).or_insert((denial, 0));
            *sum += packets;
        }
        let mut untold = flows.denials().take_lost();
        for (turn, (denial, packets)) in alike.into_values().enumerate() {
            if turn < DENIALS_TOLD {
                self.tell_denial(&denial, packets);
            } else {
                untold += packets;
            }
        }
        self.denials_untold += untold;
        if untold > 0 {
            let text = format!("{untold} more packets were denied or audited");
            self.events.emit(Code::PolicyDenialsUntold, text, &[("packets", &untold)]);
        }
    }

    fn tell_denial(&self, denial: &Denial, packets: u64) {
        let Denial { direction, from, to, protocol, port, is_audited, .. } = denial;
        let own = &*denial.subject.name;
        let peer = denial.peer.as_ref().map(|peer| &*peer.name);
        let (from_pod, to_pod) = match direction {
            Direction::Egress => (Some(own), peer),
            Direction::Ingress => (peer, Some(own)),
        };
        let name = |pod: Option<&str>, address| match pod {
            Some(pod) => format!("{pod} ({address})"),
            None => format!("{address}"),
        };
        let what = match port {
            0 => protocol.to_string(),
            port => format!("{protocol} {port}"),
        };
        let policies: Vec<&str> =
            denial.isolating().iter().take(POLICIES_NAMED).map(|policy| policy.as_str()).collect();
        let policies = match &denial.rule {
            Some(rule) => rule.policy.as_str().to_owned(),
            None => policies.join(" "),
        };
        let why = match &denial.rule {
            Some(rule) => format!("rule {} of {} denies it", rule.rule, title(rule)),
            None => format!("no rule of the policies that isolate {own} accepts it ({policies})"),
        };
        let verb = if *is_audited { "would be denied" } else { "denied" };
        let text = format!(
            "{direction} {verb}: {} to {}, {what}: {why}",
            name(from_pod, from),
            name(to_pod, to)
        );
        let rule = denial.rule.as_ref().map(|rule| rule.rule.to_string()).unwrap_or_default();
        let (from_pod, to_pod) = (from_pod.unwrap_or_default(), to_pod.unwrap_or_default());
        let about: [(&str, &dyn ToString); 10] = [
            ("direction", direction),
            ("from", from),
            ("from_pod", &from_pod),
            ("to", to),
            ("to_pod", &to_pod),
            ("protocol", protocol),
            ("port", port),
            ("policy", &policies),
            ("rule", &rule),
            ("packets", &packets),
        ];
        let code = if *is_audited { Code::PolicyAudited } else { Code::PolicyDenied };
        let about = about.iter().filter(|(_, value)| !value.to_string().is_empty());
        self.events.emit(code, text, &about.copied().collect::<Vec<_>>());
    }
}

fn title(rule: &RuleName) -> String {
    format!("{} ({} tier)", rule.policy, rule.policy.tier())
}

type DenialKey = (bool, Direction, String, String, String, u16, String);

/// What denials have in common that are told as one.
fn key(denial: &Denial) -> DenialKey {
    let peer = match (&denial.peer, denial.direction) {
        (Some(peer), _) => peer.name.to_string(),
        (None, Direction::Egress) => denial.to.to_string(),
        (None, Direction::Ingress) => denial.from.to_string(),
    };
    let rule = denial.rule.as_ref().map(|rule| rule.to_string()).unwrap_or_default();
    let (protocol, port) = (denial.protocol.to_string(), denial.port);
    let own = denial.subject.name.to_string();
    (denial.is_audited, denial.direction, own, peer, protocol, port, rule)
}

fn counts(policy: &Policy) -> PolicyCounts {
    let rules = policy.rules.iter().map(|rule| {
        let counts = rule.counts();
        PolicyRuleCounts {
            direction: rule.direction.to_string(),
            rule: rule.rule,
            matched: counts.matched,
            denied: counts.denied,
        }
    });
    PolicyCounts {
        tier: policy.name.tier().to_string(),
        name: policy.name.as_str().to_owned(),
        denied_egress: policy.name.denied(Direction::Egress),
        denied_ingress: policy.name.denied(Direction::Ingress),
        rules: rules.collect(),
    }
}
