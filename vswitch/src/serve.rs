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
    self, Direction, FlowProtocol, FlowTable, FragmentKey, Hit, NewFlow, Refused, Ticks, Tuple,
};
use crate::frame::Frame;
use crate::nat::{self, Quoted};
use crate::service::{
    Choice, Class, Decision, EndpointState, Pick, Refusal, Service, Target, TrafficPolicy, decide,
    must_masquerade,
};
use crate::tables::{PortKind, Tables};
use crate::verdict::Reason;
use crate::wire::{self, Fragment, Ip, Transport};

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

/// What the stage finds.
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

/// A packet of a flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Translated {
    what: What,
    /// Its new addresses and ports.
    to: Tuple,
    /// The flow; a later fragment does not know it. Of an error: that of the packet which it is about.
    hit: Option<Hit>,
}

#[derive(Debug, Clone, Copy)]
enum What {
    /// A packet of the flow itself, or a part of one.
    Packet,
    /// An ICMP error about one.
    Error(Quoted),
}

impl Translated {
    /// The packet as it is routed: with its addresses on the other side.
    pub(crate) fn routed(&self, ip: &Ip) -> Ip {
        let (source, destination) = match &self.what {
            What::Packet => (self.to.source.0, self.to.destination.0),
            What::Error(quoted) => nat::error_addresses(ip, &quoted.tuple.inverse(), &self.to),
        };
        // The ports, too: a pod must not reach what it may not by way of a Service.
        let transport = match (ip.transport, self.what) {
            (Transport::Udp { .. }, What::Packet) => {
                Transport::Udp { source: self.to.source.1, destination: self.to.destination.1 }
            }
            (transport, _) => transport,
        };
        Ip { source, destination, transport, ..*ip }
    }

    /// The flow, if this is a packet of it that knows, or an error about one.
    pub(crate) fn hit(&self) -> Option<&Hit> {
        self.hit.as_ref()
    }

    /// What the error quotes that this is.
    pub(crate) fn quoted(&self) -> Option<&Quoted> {
        match &self.what {
            What::Packet => None,
            What::Error(quoted) => Some(quoted),
        }
    }

    /// Whether the packet is a client's.
    pub(crate) fn is_original(&self) -> bool {
        matches!(self.what, What::Packet)
            && self.hit.is_some_and(|hit| hit.direction == Direction::Original)
    }

    /// Writes the new addresses and ports into the packet.
    pub(crate) fn apply(&self, frame: &mut Frame, ip: &Ip) -> Result<(), Reason> {
        match &self.what {
            What::Packet => nat::translate(frame, ip, &self.to),
            What::Error(quoted) => {
                nat::translate_error(frame, ip, quoted, &self.to);
                Ok(())
            }
        }
    }
}

impl<'t> Stage<'t> {
    /// Finds out what becomes of the packet in `frame`.
    #[inline]
    pub(crate) fn serve(&self, frame: &Frame, ip: &Ip) -> Served {
        let may_ask = self.client.is_some() || self.tables.services().has_host_ports();
        let is_asked = may_ask && self.tables.may_be_service(ip.destination);
        if !is_asked && self.flows.is_empty() {
            return Served::Plain(None);
        }
        let has_ports = matches!(ip.transport, Transport::Tcp { .. } | Transport::Udp { .. });
        if !is_asked && has_ports && ip.fragment == Fragment::Whole {
            match Tuple::of(ip).and_then(|tuple| self.flows.find(&tuple, self.now)) {
                None => return Served::Plain(None),
                Some(hit) if hit.is_plain() => return Served::Plain(Some(hit)),
                Some(hit) if hit.direction == Direction::Reply => {
                    return self.follow(frame, ip, hit);
                }
                // The Service is gone.
                Some(_) => {}
            }
        }
        self.serve_slowly(frame, ip)
    }

    /// Whom the packet is from.
    fn class(&self, source: IpAddr) -> Class {
        match self.client {
            Some(PortKind::Pod) => Class::Pod,
            Some(PortKind::Host) => Class::of_host(self.tables, source),
            None => Class::Peer,
        }
    }

    /// Sends a packet where its flow goes.
    fn follow(&self, frame: &Frame, ip: &Ip, hit: Hit) -> Served {
        let mark = flows::mark(frame, ip);
        self.flows.note(&hit, self.now, frame.packets(), frame.len() as u64, mark);
        Served::Translated(Translated { what: What::Packet, to: hit.to, hit: Some(hit) })
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
        if let (Served::Translated(translated), Some(key)) = (&served, fragment_key(frame, ip)) {
            self.flows.fragments().note(key, translated.to, self.now);
        }
        served
    }

    fn serve_tuple(&self, frame: &Frame, ip: &Ip, tuple: Tuple) -> Served {
        let mark = flows::mark(frame, ip);
        let found = self.flows.find(&tuple, self.now);
        if let Some(hit) = found.filter(Hit::is_plain) {
            let generation = self.tables.services().generation();
            if hit.is_checked(generation) || self.is_no_service(&tuple) {
                self.flows.set_checked(&hit, generation);
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
        self.follow(frame, ip, hit)
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
        let (address, port) = hit.to.destination;
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
            Some(hit) => Served::Translated(Translated {
                what: What::Error(quoted),
                to: hit.to,
                hit: Some(hit),
            }),
            None => self.decide_portless(ip),
        }
    }

    fn serve_later_fragment(&self, frame: &Frame, ip: &Ip) -> Served {
        let found =
            fragment_key(frame, ip).and_then(|key| self.flows.fragments().find(&key, self.now));
        match found {
            Some(to) => Served::Translated(Translated { what: What::Packet, to, hit: None }),
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
