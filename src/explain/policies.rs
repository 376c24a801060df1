//! What policies say of a connection, to each of the endpoints that it may go to.

use std::collections::BTreeSet;
use std::iter;
use std::net::{IpAddr, SocketAddr};

use conf::cluster::ObjectName;
use vswitch::policy::Traffic;
use vswitch::service::Protocol;
use vswitch::verdict::Reason;

use super::ends::node_at;
use super::evaluate::Known;
use super::world::pod_at;
use super::{Explained, Verdict};
use crate::control::policies::Scope;
use crate::control::policy_mode;
use crate::policy::Evaluator;
use crate::policy::explain::PolicyAnswer;

/// Adds it to an answer of the switch. What no policy lets through is dropped, whatever the answer was before.
pub(super) fn add(
    known: &Known<'_>,
    from: IpAddr,
    protocol: Protocol,
    endpoints: &[(IpAddr, u16)],
    explained: &mut Explained,
) {
    if explained.answer.verdict != Verdict::Forward || endpoints.is_empty() {
        return;
    }
    let ends = iter::once(from).chain(endpoints.iter().map(|(address, _)| *address));
    let pods = ends.filter_map(|address| pod_at(known.state, address));
    let pods: BTreeSet<ObjectName> = pods.map(|view| view.id.clone()).collect();
    let mode = policy_mode(&known.config.policy);
    let evaluator = Evaluator::with_mode(known.state.clone(), Scope::Pods(pods), mode);
    let answer = |(address, port): &(IpAddr, u16)| {
        let traffic = Traffic::Port { protocol, port: *port };
        let is_own_node = is_own_node(known, from, *address);
        let answer = evaluator.explain_at(from, *address, traffic, is_own_node);
        (SocketAddr::new(*address, *port).to_string(), answer)
    };
    let answers: Vec<(String, PolicyAnswer)> = endpoints.iter().map(answer).collect();
    let denied = answers.iter().filter(|(_, answer)| !answer.passes()).count();
    for candidate in explained.details.candidates.iter_mut().filter(|one| one.chosen) {
        let found = answers.iter().find(|(endpoint, _)| *endpoint == candidate.endpoint);
        if let Some((_, answer)) = found.filter(|(_, answer)| !answer.passes()) {
            candidate.why = format!("then denied: {}", denial(answer).1);
        }
    }
    // If any is reached, that is the answer; if none is, the first one's reason is as good as any.
    let is_dropped = denied == answers.len();
    let Some((_, told)) = answers.into_iter().find(|(_, answer)| is_dropped || answer.passes())
    else {
        return;
    };
    if is_dropped {
        let (reason, why) = denial(&told);
        explained.answer.verdict = Verdict::Drop;
        explained.answer.endpoints.clear();
        explained.answer.reason = format!("policies deny it: {why} ({reason})");
    } else if denied > 0 {
        explained.details.notes.push(format!(
            "policies deny {denied} of the {} endpoints: a connection that is given one of these gets no answer",
            endpoints.len()
        ));
    }
    explained.answer.egress = Some(told.egress);
    explained.answer.ingress = Some(told.ingress);
}

/// Which side denies, and why. The sender's is asked first.
fn denial(answer: &PolicyAnswer) -> (Reason, &str) {
    if answer.egress.verdict.passes() {
        return (Reason::PolicyDeniedIngress, &answer.ingress.reason);
    }
    (Reason::PolicyDeniedEgress, &answer.egress.reason)
}

/// Whether one of the two is a pod, and the other an address of the node that this pod is on, be it of its machine or
/// out of its subnet.
fn is_own_node(known: &Known<'_>, from: IpAddr, to: IpAddr) -> bool {
    let is_on = |pod: IpAddr, node: IpAddr| {
        let on = pod_at(known.state, pod).and_then(|view| view.node.as_ref());
        let at = pod_at(known.state, node).is_none().then(|| node_at(known, node)).flatten();
        on.zip(at).is_some_and(|(on, at)| *on == at)
    };
    is_on(from, to) || is_on(to, from)
}
