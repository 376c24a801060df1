//! What becomes different for pods when one set of manifests takes another one's place.
//!
//! Every pair of pods that are in both is asked about what the policies of either can tell apart: each port that a
//! rule or a container names, the ones beside it, one more, and something without ports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use conf::cluster::policy::{PolicyPort, PolicyRule};
use conf::cluster::{ClusterState, PodView};
use serde::{Deserialize, Serialize};
use vswitch::policy::Traffic;
use vswitch::service::Protocol;

use super::{Evaluator, addresses_of};
use crate::control::policies::protocol_of;

/// Most questions of one comparison.
const QUESTIONS_MAX: usize = 50_000_000;

/// What is different.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Pairs of pods for whom something is different.
    pub pairs: Vec<PairDifference>,
    /// Pods that only the old manifests have.
    pub only_old: Vec<String>,
    /// Pods that only the new manifests have.
    pub only_new: Vec<String>,
}

/// A pair of pods for whom something is different.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PairDifference {
    /// Who sends.
    pub from: String,
    /// Who is sent to.
    pub to: String,
    /// What is allowed now and was not.
    pub allowed: Vec<String>,
    /// What is not allowed any more.
    pub denied: Vec<String>,
}

/// Compares.
///
/// # Errors
/// When there are too many questions to ask.
pub fn compare(old: &Evaluator, new: &Evaluator) -> Result<Difference, String> {
    let pods = |evaluator: &Evaluator| -> BTreeMap<String, Arc<PodView>> {
        evaluator.pods().map(|view| (view.id.to_string(), Arc::clone(view))).collect()
    };
    let (before, after) = (pods(old), pods(new));
    let ranges = Ranges::of([old.state(), new.state()]);
    let questions = before.len() * before.len() * (ranges.0.len() + 1);
    if questions > QUESTIONS_MAX {
        return Err(format!(
            "{} pods and {} ranges of ports are too much to compare: divide the manifests",
            before.len(),
            ranges.0.len()
        ));
    }
    let mut difference = Difference {
        pairs: Vec::new(),
        only_old: before.keys().filter(|name| !after.contains_key(*name)).cloned().collect(),
        only_new: after.keys().filter(|name| !before.contains_key(*name)).cloned().collect(),
    };
    let both = || before.iter().filter_map(|(name, old)| Some((name, old, after.get(name)?)));
    for (from, old_from, new_from) in both() {
        for (to, old_to, new_to) in both().filter(|(to, ..)| *to != from) {
            let was = addresses_of(old_from, old_to);
            let is = addresses_of(new_from, new_to);
            let (Some(was), Some(is)) = (was, is) else { continue };
            let (mut allowed, mut denied) = (Vec::new(), Vec::new());
            for (traffic, range) in ranges.questions() {
                let was = old.judge(was.0, was.1, traffic).passes();
                match (was, new.judge(is.0, is.1, traffic).passes()) {
                    (false, true) => allowed.push(range),
                    (true, false) => denied.push(range),
                    (true, true) | (false, false) => {}
                }
            }
            if !(allowed.is_empty() && denied.is_empty()) {
                difference.pairs.push(PairDifference {
                    from: from.clone(),
                    to: to.clone(),
                    allowed: ranges.describe(&allowed),
                    denied: ranges.describe(&denied),
                });
            }
        }
    }
    Ok(difference)
}

/// Ranges of ports, in each of which all ports are alike to every policy.
#[derive(Debug)]
struct Ranges(Vec<Range>);

/// Ports of a protocol from the first to the last; `None`: what has no ports.
type Range = Option<(Protocol, u16, u16)>;

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

impl Ranges {
    fn of<'s>(states: impl IntoIterator<Item = &'s ClusterState>) -> Self {
        // Where a range begins. Ports begin with 1.
        let mut starts: BTreeSet<(Protocol, u32)> =
            PROTOCOLS.iter().map(|protocol| (*protocol, 1)).collect();
        let mut cut = |protocol, first: u16, last: u16| {
            starts.insert((protocol, u32::from(first).max(1)));
            starts.insert((protocol, u32::from(last) + 1));
        };
        for state in states {
            let network = state.network_policies().flat_map(|policy| {
                let rules = policy.ingress.iter().chain(&policy.egress);
                rules.flat_map(|rules| rules.iter())
            });
            let cluster = state
                .cluster_policies()
                .flat_map(|policy| policy.ingress.iter().chain(policy.egress.iter()));
            let ports = network.chain(cluster).flat_map(|rule: &PolicyRule| rule.ports.iter());
            for port in ports {
                if let PolicyPort::Numbers { protocol, ports } = port {
                    cut(protocol_of(*protocol), ports.first, ports.last);
                }
            }
            for port in state.pods().flat_map(|view| view.ports()) {
                cut(protocol_of(port.protocol), port.port, port.port);
            }
        }
        let mut ranges = vec![None];
        for protocol in PROTOCOLS {
            let starts = starts.range((protocol, 0)..=(protocol, u32::from(u16::MAX)));
            let starts: Vec<u16> =
                starts.filter_map(|(_, start)| u16::try_from(*start).ok()).collect();
            let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
            ranges.extend(
                starts.iter().zip(ends).map(|(first, last)| Some((protocol, *first, last))),
            );
        }
        Self(ranges)
    }

    fn questions(&self) -> impl Iterator<Item = (Traffic, usize)> {
        let traffic = |range: &Range| match range {
            None => Traffic::Portless,
            Some((protocol, first, _)) => Traffic::Port { protocol: *protocol, port: *first },
        };
        self.0.iter().enumerate().map(move |(ix, range)| (traffic(range), ix))
    }

    /// These ranges for people: neighbours as one, and everything as one word.
    fn describe(&self, found: &[usize]) -> Vec<String> {
        if found.len() == self.0.len() {
            return vec!["everything".to_owned()];
        }
        let mut joined: Vec<Range> = Vec::new();
        for range in found.iter().filter_map(|ix| self.0.get(*ix)) {
            match (joined.last_mut(), range) {
                (Some(Some((protocol, _, last))), Some((same, first, end)))
                    if protocol == same && last.checked_add(1) == Some(*first) =>
                {
                    *last = *end;
                }
                _ => joined.push(*range),
            }
        }
        let words = |range: &Range| match range {
            None => "what has no ports".to_owned(),
            Some((protocol, 1, u16::MAX)) => protocol.to_string(),
            Some((protocol, first, last)) if first == last => format!("{protocol} {first}"),
            Some((protocol, first, last)) => format!("{protocol} {first}-{last}"),
        };
        joined.iter().map(words).collect()
    }
}
