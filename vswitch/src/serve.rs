//! The Service stage of the pipeline: to whom a packet really goes, and as whom.
//!
//! ```text
//!                      ┌── of a flow? ── reply ──────────────────────────────► translated back
//!  packet ─ may it be ─┤        └─ from the client ── still right? ── yes ───► translated
//!           to Service ┤                                  └─ no: forgotten
//!           or a flow  └── to a Service ◄──────────────────┘
//!              │                └─ decide ── choose ── flow entered ─────────► translated
//!              │ no                    └────────────────────────────────────► refused
//!              ▼
//!            plain, after a handful of instructions
//! ```
//!
//! For a packet of a flow that was found right by the Services in force, one look at the table of flows is all: see
//! [`Stage::serve`]. All others take [`Stage::serve_slowly`], which would find the same.
//!
//! **No stale state.** A flow says by which generation of Services it was last found right. With any other, its next
//! packet from the client is judged anew ([`Stage::is_right`]):
//!
//! | the flow | stays with its endpoint |
//! |---|---|
//! | UDP, or TCP and SCTP not answered yet | while the Service has it, it serves (ready or draining), and the traffic policy allows it |
//! | a new TCP SYN or SCTP INIT on an old flow | while it may be chosen, and the old connection has not begun to close |
//! | TCP and SCTP, answered | always, as with kube-proxy. If nobody has the endpoint's address any more, TCP is reset at once |
//!
//! Otherwise it is forgotten, and the packet is the first of a new flow: it goes to another endpoint, is
//! refused, or is nobody's.
//!
//! Policies on who may reach whom are asked behind this stage, about who really sends and receives ([`crate::gate`]).
//! The flows that they follow are in the same table, so what is found here is handed on.

use std::net::IpAddr;

use crate::flows::{
    self, Direction, FlowProtocol, FlowTable, FragmentKey, Hit, NewFlow, Packed, Refused, Ticks,
    Tuple,
};
use crate::frame::Frame;
use crate::nat::{self, Quoted};
use crate::service::{
    Choice, Class, Decision, EndpointState, Pick, Refusal, Service, Target, TrafficPolicy, decide,
    must_masquerade,
};
use crate::tables::{PortKind, Tables};
use crate::verdict::Reason;
use crate::wire::{self, Fragment, Ip};

/// What the stage works with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage<'t> {
    pub(crate) tables: &'t Tables,
    pub(crate) flows: &'t FlowTable,
    pub(crate) now: Ticks,
    /// Whose port the packet comes in by; `None` for what other nodes send, who have decided already save about
    /// this node's host ports.
    pub(crate) client: Option<PortKind>,
    /// A number that differs from packet to packet. It may be foreseen.
    pub(crate) chance: u64,
}

/// What the stage finds. It is large, so it is looked at where it is, and not moved.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Served {
    /// The packet is what it seems. It may be of a flow that is followed.
    Plain(Option<Hit>),
    /// It goes elsewhere, or comes from elsewhere.
    Translated(Translated),
    /// It ends here.
    Refused(Turned),
}

/// How a packet is turned away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turned {
    pub(crate) reason: Reason,
    /// Whether its sender is told.
    pub(crate) is_told: bool,
}

/// A packet that belongs to a flow to a Service.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Translated {
    /// A packet of the flow, with its ports.
    Packet(Hit),
    /// A later fragment of one, with its new addresses: it does not know the flow.
    Fragment(Packed),
    /// An ICMP error about a packet that answers those of the flow.
    Error(Quoted, Hit),
}

impl Translated {
    /// Where the packet goes. The port, too: a pod must not reach what it may not by way of a Service.
    #[inline]
    pub(crate) fn destination(&self) -> (IpAddr, u16) {
        let to = match self {
            Self::Packet(hit) | Self::Error(_, hit) => hit.packed(),
            Self::Fragment(to) => to,
        };
        (to.destination(), to.destination_port())
    }

    /// The flow, if this is a packet of it that knows, or an error about one.
    #[inline]
    pub(crate) fn hit(&self) -> Option<&Hit> {
        match self {
            Self::Packet(hit) | Self::Error(_, hit) => Some(hit),
            Self::Fragment(_) => None,
        }
    }

    /// What the error quotes that this is.
    pub(crate) fn quoted(&self) -> Option<&Quoted> {
        match self {
            Self::Error(quoted, _) => Some(quoted),
            Self::Packet(_) | Self::Fragment(_) => None,
        }
    }

    /// Whether the packet is a client's.
    pub(crate) fn is_original(&self) -> bool {
        matches!(self, Self::Packet(hit) if hit.direction == Direction::Original)
    }

    /// Writes the new addresses and ports into the packet.
    #[inline(always)]
    pub(crate) fn apply(&self, frame: &mut Frame, ip: &Ip) -> Result<(), Reason> {
        let to = match self {
            Self::Packet(hit) => hit.packed(),
            Self::Fragment(to) => to,
            Self::Error(quoted, hit) => {
                nat::translate_error(frame, ip, quoted, &hit.to());
                return Ok(());
            }
        };
        nat::translate(frame, ip, to)
    }
}

impl<'t> Stage<'t> {
    /// Finds out what becomes of the packet in `frame`.
    #[inline]
    pub(crate) fn serve(&self, frame: &Frame, ip: &Ip) -> Served {
        if self.flows.is_empty() {
            return if self.may_be_asked(ip) {
                self.serve_slowly(frame, ip)
            } else {
                Served::Plain(None)
            };
        }
        if ip.fragment == Fragment::Whole
            && let Some(tuple) = Packed::of(ip)
        {
            match self.flows.find_packed(&tuple, self.now) {
                // Most packets end here, or with the next one.
                Some(hit) if self.goes_on(&hit, frame, ip) => {
                    if hit.is_plain() {
                        return Served::Plain(Some(hit));
                    }
                    self.note(&hit, frame, ip);
                    return Served::Translated(Translated::Packet(hit));
                }
                None if !self.may_be_asked(ip) => return Served::Plain(None),
                Some(_) | None => {}
            }
        }
        self.serve_slowly(frame, ip)
    }

    /// Whether the packet may be to a Service. Seldom wrong if it says yes, and never if it says no.
    #[inline(always)]
    fn may_be_asked(&self, ip: &Ip) -> bool {
        let may_ask = self.client.is_some() || self.tables.services().has_host_ports();
        may_ask && self.tables.may_be_service(ip.destination)
    }

    /// Whether a packet goes where its flow went so far, as far as that can be said at once.
    #[inline]
    fn goes_on(&self, hit: &Hit, frame: &Frame, ip: &Ip) -> bool {
        let is_checked = hit.is_checked(self.tables.services().generation());
        match (hit.is_plain(), hit.direction) {
            (true, _) => is_checked || !self.may_be_asked(ip),
            (false, Direction::Reply) => true,
            (false, Direction::Original) => {
                let protocol = hit.packed().protocol();
                is_checked && !flows::opens(protocol, flows::mark(frame, ip))
            }
        }
    }

    #[inline(always)]
    fn note(&self, hit: &Hit, frame: &Frame, ip: &Ip) {
        let mark = flows::mark(frame, ip);
        self.flows.note(hit, self.now, frame.packets(), frame.len() as u64, mark);
    }

    /// Whom the packet is from.
    fn class(&self, source: IpAddr) -> Class {
        match self.client {
            Some(PortKind::Pod) => Class::Pod,
            Some(PortKind::Host) => Class::of_host(self.tables, source),
            None => Class::Peer,
        }
    }

    #[inline(never)]
    fn serve_slowly(&self, frame: &Frame, ip: &Ip) -> Served {
        if ip.fragment == Fragment::Later {
            return self.serve_later_fragment(frame, ip);
        }
        let served = match Tuple::of(ip) {
            Some(tuple) => self.serve_tuple(frame, ip, tuple),
            None => match nat::quoted(frame.data(), ip) {
                Some(quoted) => self.serve_error(ip, quoted),
                None => self.decide_portless(ip),
            },
        };
        if let (Served::Translated(translated), Some(key)) = (&served, fragment_key(frame, ip))
            && let Some(hit) = translated.hit()
        {
            self.flows.fragments().note(key, hit.to(), self.now);
        }
        served
    }

    fn serve_tuple(&self, frame: &Frame, ip: &Ip, tuple: Tuple) -> Served {
        let mark = flows::mark(frame, ip);
        let found = self.flows.find(&tuple, self.now);
        if let Some(hit) = found.filter(Hit::is_plain) {
            let generation = self.tables.services().generation();
            if hit.is_checked(generation) || !self.may_be_asked(ip) {
                return Served::Plain(Some(hit));
            }
            if self.is_no_service(&tuple) {
                // A reply says nothing about the address that its flow was sent to.
                if hit.direction == Direction::Original {
                    self.flows.set_checked(&hit, generation);
                }
                return Served::Plain(Some(hit));
            }
            // The address has become a Service's.
            self.flows.remove(&hit);
        }
        let found = found.filter(|hit| !hit.is_plain()).filter(|hit| {
            let is_right = match hit.direction {
                Direction::Reply => true,
                Direction::Original => self.stays(hit, &tuple, mark),
            };
            if !is_right {
                self.flows.remove(hit);
            }
            is_right
        });
        let hit = match found {
            Some(hit) => hit,
            None => match self.begin(&tuple) {
                Ok(Some(hit)) => hit,
                Ok(None) => return Served::Plain(None),
                Err(turned) => return Served::Refused(turned),
            },
        };
        self.note(&hit, frame, ip);
        Served::Translated(Translated::Packet(hit))
    }

    /// Whether a packet is to no Service.
    fn is_no_service(&self, tuple: &Tuple) -> bool {
        let class = self.class(tuple.source.0);
        matches!(decide(self.tables, class, tuple.source.0, target_of(tuple)), Decision::Pass)
    }

    /// Whether a client's packet still goes where its flow went so far.
    fn stays(&self, hit: &Hit, tuple: &Tuple, mark: u8) -> bool {
        let opens = flows::opens(tuple.protocol, mark);
        let generation = self.tables.services().generation();
        if hit.is_checked(generation) && !opens {
            return true;
        }
        let is_right = self.is_right(hit, tuple, opens);
        if is_right {
            self.flows.set_checked(hit, generation);
        }
        is_right
    }

    /// The rules above, in code.
    fn is_right(&self, hit: &Hit, tuple: &Tuple, opens: bool) -> bool {
        if opens && hit.is_closing() {
            return false;
        }
        let lives_on = !opens && tuple.protocol != FlowProtocol::Udp && hit.is_established();
        let class = self.class(tuple.source.0);
        let Decision::Choose(choice) = decide(self.tables, class, tuple.source.0, target_of(tuple))
        else {
            return lives_on;
        };
        let Choice { service, pool, policy, .. } = choice;
        let (address, port) = hit.to().destination;
        if service.id() != hit.service {
            return lives_on;
        }
        let serves = || {
            service.endpoint(address, port).is_some_and(|endpoint| {
                endpoint.state != EndpointState::Unavailable
                    && (policy == TrafficPolicy::Cluster || endpoint.is_local)
            })
        };
        service.is_member(pool, address, port) || (!opens && (lives_on || serves()))
    }

    /// Enters the flow of a client's first packet; `None` if that is not to a Service.
    fn begin(&self, tuple: &Tuple) -> Result<Option<Hit>, Turned> {
        let class = self.class(tuple.source.0);
        let choice = match decide(self.tables, class, tuple.source.0, target_of(tuple)) {
            Decision::Pass => return Ok(None),
            Decision::Refuse(refusal) => return Err(refused(&refusal)),
            Decision::Choose(choice) => choice,
        };
        let endpoint = self.choose(&choice, tuple).ok_or_else(|| drop(Reason::NoEndpoint))?;
        let masquerade = if must_masquerade(self.tables, class, tuple.source.0, endpoint.0) {
            let address = self.tables.masquerade().for_family_of(endpoint.0);
            Some(address.ok_or_else(|| drop(Reason::NatPorts))?)
        } else {
            None
        };
        let new = NewFlow {
            original: *tuple,
            endpoint,
            masquerade,
            service: choice.service.id(),
            generation: self.tables.services().generation(),
            admitted: None,
        };
        let entered = self.flows.insert(&new, self.now).map_err(|refused| match refused {
            Refused::Full => drop(Reason::FlowsFull),
            Refused::NoPort => drop(Reason::NatPorts),
        });
        entered.map(Some)
    }

    /// Chooses an endpoint, the one that the client had last if it is to keep that.
    fn choose(&self, choice: &Choice<'_>, tuple: &Tuple) -> Option<(IpAddr, u16)> {
        let Choice { service, pool, .. } = *choice;
        let timeout = service.spec().affinity.map(Ticks::from_duration);
        let client = tuple.source.0;
        let last = timeout.and_then(|timeout| {
            let last = self.flows.affinity().find(service.id(), client, timeout, self.now);
            last.filter(|(address, port)| service.is_member(pool, *address, *port))
        });
        let chosen = last.or_else(|| self.choose_anew(choice, tuple))?;
        if timeout.is_some() {
            self.flows.affinity().note(service.id(), client, chosen, self.now);
        }
        Some(chosen)
    }

    fn choose_anew(&self, choice: &Choice<'_>, tuple: &Tuple) -> Option<(IpAddr, u16)> {
        let service: &Service = choice.service;
        let pick = Pick {
            client: tuple.source,
            frontend: tuple.destination,
            by_address: service.spec().affinity.is_some(),
            chance: self.flows.chance(tuple, self.chance),
        };
        let connections = |endpoint: &crate::service::Endpoint| {
            self.flows.connections((endpoint.address, endpoint.port))
        };
        let endpoint = service.choose(choice.pool, &pick, connections)?;
        Some((endpoint.address, endpoint.port))
    }

    /// An error about a packet of a flow goes where the packets go that answer that one.
    fn serve_error(&self, ip: &Ip, quoted: Quoted) -> Served {
        let tuple = quoted.tuple.inverse();
        let is_its_sender = ip.destination == tuple.destination.0;
        match self.flows.find(&tuple, self.now).filter(|_| is_its_sender) {
            Some(hit) if hit.is_plain() => Served::Plain(Some(hit)),
            Some(hit) => Served::Translated(Translated::Error(quoted, hit)),
            None => self.decide_portless(ip),
        }
    }

    fn serve_later_fragment(&self, frame: &Frame, ip: &Ip) -> Served {
        let found =
            fragment_key(frame, ip).and_then(|key| self.flows.fragments().find(&key, self.now));
        match found {
            Some(to) => Served::Translated(Translated::Fragment(to.packed())),
            None => match self.decide_portless(ip) {
                Served::Refused(_) => Served::Refused(drop(Reason::FragmentUnknown)),
                Served::Plain(_) | Served::Translated(_) => Served::Plain(None),
            },
        }
    }

    /// What becomes of a packet without ports: addresses of Services have nothing but ports.
    fn decide_portless(&self, ip: &Ip) -> Served {
        let class = self.class(ip.source);
        let target = Target { address: ip.destination, port: None };
        match decide(self.tables, class, ip.source, target) {
            Decision::Refuse(refusal) => Served::Refused(refused(&refusal)),
            Decision::Pass | Decision::Choose(_) => Served::Plain(None),
        }
    }
}

fn target_of(tuple: &Tuple) -> Target {
    let (address, port) = tuple.destination;
    Target { address, port: tuple.protocol.service().map(|protocol| (protocol, port)) }
}

fn refused(refusal: &Refusal<'_>) -> Turned {
    Turned { reason: refusal.reason, is_told: refusal.is_told }
}

fn drop(reason: Reason) -> Turned {
    Turned { reason, is_told: false }
}

pub(crate) fn fragment_key(frame: &Frame, ip: &Ip) -> Option<FragmentKey> {
    let id = wire::fragment_id(frame.data(), ip)?;
    Some(FragmentKey { source: ip.source, destination: ip.destination, id })
}
