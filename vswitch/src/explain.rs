//! What would become of a packet, and why, without one: made of the functions that the pipeline is made of.

use std::net::IpAddr;

use crate::service::{
    Choice, Class, Decision, Endpoint, EndpointState, FrontendKind, Protocol, Service, Target,
    TrafficPolicy, decide, must_masquerade,
};
use crate::switch::{Foreseen, foresee};
use crate::tables::{PortKind, Tables};
use crate::verdict::Reason;
use crate::wire::{Fragment, Ip, Transport};

/// The first packet of a connection that there is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Who asks.
    pub from: IpAddr,
    /// Where it sends to; an address of the same family.
    pub to: IpAddr,
    /// The port that it sends to.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// How a packet ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It goes on.
    Forward,
    /// It ends at the switch, and its sender is told.
    Reject,
    /// It ends at the switch in silence.
    Drop,
}

impl Outcome {
    /// As it stands in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reject => "reject",
            Self::Drop => "drop",
        }
    }
}

/// What would become of a packet, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Whom the switch takes the client for, which decides whose traffic policy counts.
    pub class: Class,
    /// How it ends.
    pub outcome: Outcome,
    /// `namespace/name:port` of the Service that it was sent to, if any.
    pub service: Option<String>,
    /// By which kind of the Service's addresses it came, and which traffic policy counts there. `None` without a
    /// Service, and where it was refused before that mattered.
    pub choice: Option<(FrontendKind, TrafficPolicy)>,
    /// Who may get it: all endpoints that may be chosen; without a Service the destination itself.
    pub endpoints: Vec<(IpAddr, u16)>,
    /// Whether the switch takes the client's place towards any of them.
    pub masquerade: bool,
    /// The reason of a drop, as counters name it.
    pub drop: Option<Reason>,
    /// Why, for people.
    pub reason: String,
}

/// Explains what the switch of the client's node would do with the packet. `tables` are that node's.
pub fn explain(tables: &Tables, question: &Question) -> Explanation {
    let class = Class::of(tables, question.from);
    let target = Target { address: question.to, port: Some((question.protocol, question.port)) };
    match decide(tables, class, question.from, target) {
        Decision::Pass => {
            let to = (question.to, question.port);
            let foreseen = foresee_packet(tables, class, question, to, false);
            let ends = Explanation::ends(class, None, &foreseen);
            Explanation { endpoints: if ends.drop.is_none() { vec![to] } else { vec![] }, ..ends }
        }
        Decision::Refuse(refusal) => {
            let outcome = if refusal.is_told { Outcome::Reject } else { Outcome::Drop };
            Explanation {
                class,
                outcome,
                service: name(refusal.service),
                choice: None,
                endpoints: Vec::new(),
                masquerade: false,
                drop: Some(refusal.reason),
                reason: refusal.reason.describe().to_owned(),
            }
        }
        Decision::Choose(choice) => explain_choice(tables, class, question, &choice),
    }
}

fn explain_choice(
    tables: &Tables,
    class: Class,
    question: &Question,
    choice: &Choice<'_>,
) -> Explanation {
    let Choice { service, pool, policy, kind } = *choice;
    let all = || service.members(pool).map(|endpoint| (endpoint.address, endpoint.port));
    let masquerades = |address: IpAddr| must_masquerade(tables, class, question.from, address);
    let masquerade = all().any(|(address, _)| masquerades(address));
    // If none of them can be reached, it matters why.
    let foreseen = all().map(|endpoint| {
        if masquerades(endpoint.0) && tables.masquerade().for_family_of(endpoint.0).is_none() {
            return Foreseen::Dropped(Reason::NatPorts);
        }
        foresee_packet(tables, class, question, endpoint, true)
    });
    let best = foreseen.min_by_key(|foreseen| !matches!(foreseen, Foreseen::Forwarded(_)));
    let best = best.unwrap_or(Foreseen::Dropped(Reason::NoEndpoint));
    let mut made = Explanation {
        choice: Some((kind, policy)),
        endpoints: all().collect(),
        masquerade,
        ..Explanation::ends(class, name(Some(service)), &best)
    };
    if made.drop.is_none() {
        made.reason = whom(choice);
    }
    made
}

/// Who may be chosen, and why not others.
fn whom(choice: &Choice<'_>) -> String {
    let Choice { service, pool, policy, .. } = choice;
    let known = &service.spec().endpoints;
    let of_state = |state| known.iter().filter(|endpoint| endpoint.state == state).count();
    let is_draining = |endpoint: &Endpoint| endpoint.state == EndpointState::Draining;
    let (whose, wherefrom) = match policy {
        TrafficPolicy::Cluster => ("of the cluster", ""),
        TrafficPolicy::Local => ("on this node", " here"),
    };
    let why = if service.members(pool).all(is_draining) {
        format!(", which terminate: no ready one is left{wherefrom}")
    } else if *policy == TrafficPolicy::Cluster && pool.len() < of_state(EndpointState::Ready) {
        ", which are near by topology".to_owned()
    } else {
        String::new()
    };
    let (count, known) = (pool.len(), known.len());
    let endpoints = if count == 1 { "the one endpoint" } else { "any of the endpoints" };
    format!("{endpoints} {whose}{why} ({count} of {known} known)")
}

impl Explanation {
    fn ends(class: Class, service: Option<String>, foreseen: &Foreseen) -> Self {
        let (outcome, drop, reason) = match foreseen {
            Foreseen::Forwarded(whither) => (Outcome::Forward, None, (*whither).to_owned()),
            Foreseen::Refused(reason) => {
                (Outcome::Reject, Some(*reason), reason.describe().to_owned())
            }
            Foreseen::Dropped(reason) => {
                (Outcome::Drop, Some(*reason), reason.describe().to_owned())
            }
        };
        let (choice, endpoints, masquerade) = (None, Vec::new(), false);
        Self { class, outcome, service, choice, endpoints, masquerade, drop, reason }
    }
}

fn name(service: Option<&Service>) -> Option<String> {
    service.map(|service| service.name().to_owned())
}

fn foresee_packet(
    tables: &Tables,
    class: Class,
    question: &Question,
    (address, port): (IpAddr, u16),
    is_translated: bool,
) -> Foreseen {
    let kind = match class {
        Class::Pod => PortKind::Pod,
        Class::Node | Class::Outside | Class::Peer => PortKind::Host,
    };
    let (source, destination) = (ANY_PORT, port);
    let transport = match question.protocol {
        Protocol::Tcp => Transport::Tcp { source, destination, header_len: 20 },
        Protocol::Udp => Transport::Udp { source, destination },
        Protocol::Sctp => Transport::Sctp { source, destination },
    };
    let ip = Ip {
        source: question.from,
        destination: address,
        ttl: 64,
        traffic_class: 0,
        len: 0,
        fragment: Fragment::Whole,
        dont_fragment: true,
        protocol: question.protocol.number(),
        transport_offset: 0,
        transport,
    };
    foresee(tables, kind, &ip, is_translated)
}

/// Nothing depends on the client's port.
const ANY_PORT: u16 = 40_000;
