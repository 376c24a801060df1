//! The policy stage of the pipeline: whether the policies for both ends let a packet through.
//!
//! ```text
//!                        ┌── of a flow that the policies in force admitted ────────────────► passes
//!  packet of a pod ──────┤── of another flow ── judged anew ── yes: noted ─────────────────► passes
//!  that is judged        │                          └─ no: noted ──────────────────────────► dropped
//!                        └── of none ── judge ── yes: flow entered ────────────────────────► passes
//!                                        └─ no ── may it be a reply? ── no ────────────────► dropped
//! ```
//!
//! It stands behind Services and before anything is written: judged is who really sends and who really receives.
//! Each node applies the rules of its own pods, the sender's egress here and the receiver's ingress there. One case is
//! different: where this switch takes the place of a client towards a pod elsewhere (a NodePort, from outside), nobody
//! else sees the client, so this one applies the ingress rules of that pod. The pod's node lets pass what comes from the
//! address by which another node takes clients' places; it is believed from that node alone.
//!
//! | | |
//! |---|---|
//! | a flow | is judged in the direction in which it began, with the generation of policies that did so noted. Any other generation judges its next packet anew, in whichever direction that goes ([`Established::Recheck`]) |
//! | a flow that is not admitted any more | is kept, so that what is sent on in either direction is not taken for the beginning of another flow, or for a reply to one |
//! | a packet that asks for a connection | is never a reply: a SYN, an INIT or an echo request against a flow's direction is judged for itself |
//! | a TCP segment of no flow that asks for nothing | is taken for a reply if the opposite direction is allowed, so that connections outlive a restart |
//! | an ICMP error | goes with the flow of the packet which it is about; about none, it is judged as a packet without ports |
//! | later fragments | follow the first, which has the ports; without it they are dropped |
//! | a pod that nobody has told of yet | matches no selector. Where that might let through what a rule about labels denies, it waits ([`Reason::PolicyPending`]) |

use std::net::IpAddr;
use std::sync::Arc;

use crate::flows::{
    self, Direction as Way, FlowProtocol, FlowTable, Hit, NewFlow, Refused, Ticks, Tuple,
};
use crate::frame::Frame;
use crate::nat;
use crate::policy::denial::Denial;
use crate::policy::{
    Direction, Established, PolicyTable, Question, Ruling, Traffic, Why, judge_egress,
    judge_ingress,
};
use crate::serve::{Translated, fragment_key};
use crate::tables::{Route, Tables};
use crate::verdict::Reason;
use crate::wire::{Fragment, Ip, Transport, icmp, sctp, tcp, udp};

/// What the stage works with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage<'t> {
    pub(crate) tables: &'t Tables,
    pub(crate) flows: &'t FlowTable,
    pub(crate) now: Ticks,
}

/// A packet, as the stages before found it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'p> {
    pub(crate) frame: &'p Frame,
    /// As its sender wrote it.
    pub(crate) ip: &'p Ip,
    pub(crate) translated: Option<&'p Translated>,
    /// The flow that it is of, or that it is an error about.
    pub(crate) hit: Option<&'p Hit>,
}

/// Who really sends what to whom.
#[derive(Debug, Clone, Copy)]
struct Ends {
    from: IpAddr,
    to: IpAddr,
    protocol: FlowProtocol,
    /// The receiver's.
    port: u16,
    /// Whether the receiver sees this switch in place of the sender.
    is_masqueraded: bool,
}

/// What the rules say that this node applies.
#[derive(Debug, Clone, Copy)]
struct Sides<'t> {
    egress: Option<Ruling<'t>>,
    ingress: Option<Ruling<'t>>,
    /// Whether somebody has to be known first.
    is_pending: bool,
}

impl Sides<'_> {
    fn verdict(&self) -> Result<(), Reason> {
        let denies = |side: &Option<Ruling<'_>>| side.is_some_and(|ruling| !ruling.passes());
        if self.is_pending {
            Err(Reason::PolicyPending)
        } else if denies(&self.egress) {
            Err(Reason::PolicyDeniedEgress)
        } else if denies(&self.ingress) {
            Err(Reason::PolicyDeniedIngress)
        } else {
            Ok(())
        }
    }
}

impl<'t> Stage<'t> {
    /// Finds out whether the packet goes on.
    #[inline]
    pub(crate) fn admit(&self, packet: &Packet<'_>) -> Result<(), Reason> {
        if let Some(hit) = packet.hit
            && hit.is_admitted(self.policies().generation())
            && self.goes_on(packet, hit)
        {
            return Ok(());
        }
        self.admit_slowly(packet)
    }

    /// Lets a whole packet of a flow pass that is admitted, unless it may ask for a connection against the flow's
    /// direction.
    #[inline]
    fn goes_on(&self, packet: &Packet<'_>, hit: &Hit) -> bool {
        let ip = packet.ip;
        let has_ports = matches!(ip.transport, Transport::Tcp { .. } | Transport::Udp { .. });
        if !has_ports || ip.fragment != Fragment::Whole {
            return false;
        }
        let mark = flows::mark(packet.frame, ip);
        let asks = hit.direction == Way::Reply && flows::opens(hit.packed().protocol(), mark);
        if !asks && hit.is_plain() {
            self.note(packet, hit, mark);
        }
        !asks
    }

    #[inline(never)]
    fn admit_slowly(&self, packet: &Packet<'_>) -> Result<(), Reason> {
        let ip = packet.ip;
        if ip.fragment == Fragment::Later {
            return self.admit_later_fragment(packet);
        }
        if let Some(tuple) = Tuple::of(ip) {
            let admitted = match packet.hit {
                Some(hit) => self.follow(packet, hit, &tuple),
                None => self.begin(packet, &tuple),
            };
            return admitted.inspect(|()| self.note_fragment(packet, tuple));
        }
        if let Some(hit) = packet.hit {
            return self.admit_error(packet, hit);
        }
        self.admit_portless(packet)
    }

    fn admit_later_fragment(&self, packet: &Packet<'_>) -> Result<(), Reason> {
        let key = fragment_key(packet.frame, packet.ip).ok_or(Reason::FragmentUnknown)?;
        let found = self.flows.admitted_fragments().find(&key, self.now);
        found.map(|_| ()).ok_or(Reason::FragmentUnknown)
    }

    fn note_fragment(&self, packet: &Packet<'_>, tuple: Tuple) {
        if let Some(key) = fragment_key(packet.frame, packet.ip) {
            self.flows.admitted_fragments().note(key, tuple, self.now);
        }
    }

    /// A packet of a flow, which travels with `tuple`.
    fn follow(&self, packet: &Packet<'_>, hit: &Hit, tuple: &Tuple) -> Result<(), Reason> {
        let mark = flows::mark(packet.frame, packet.ip);
        let opens = flows::opens(tuple.protocol, mark) || is_echo_request(packet.ip);
        if opens && hit.direction == Way::Reply {
            let ends = Ends {
                from: tuple.source.0,
                to: hit.to().destination.0,
                protocol: tuple.protocol,
                port: hit.to().destination.1,
                is_masqueraded: false,
            };
            let is_stopped = hit.is_plain() && !hit.was_admitted();
            if is_stopped && self.sides(&ends).verdict().is_ok() {
                // A connection in place of one that is not admitted any more.
                self.flows.remove(hit);
                return self.begin(packet, tuple);
            }
            return self.judge(&ends, packet.frame.packets());
        }
        self.recheck(packet, hit, tuple)?;
        if hit.is_plain() {
            self.note(packet, hit, mark);
        }
        Ok(())
    }

    /// An error about a packet of a flow. Serve has seen that it goes to who sent that packet.
    fn admit_error(&self, packet: &Packet<'_>, hit: &Hit) -> Result<(), Reason> {
        let quoted = match packet.translated.and_then(Translated::quoted) {
            Some(quoted) => Some(quoted.tuple),
            None => nat::quoted(packet.frame.data(), packet.ip).map(|quoted| quoted.tuple),
        };
        match quoted {
            Some(tuple) => self.recheck(packet, hit, &tuple.inverse()),
            None => self.admit_portless(packet),
        }
    }

    /// Whether a flow is still admitted, of which a packet travels with `tuple`.
    fn recheck(&self, packet: &Packet<'_>, hit: &Hit, tuple: &Tuple) -> Result<(), Reason> {
        let generation = self.policies().generation();
        let stays = self.tables.established() == Established::Keep && hit.was_admitted();
        if hit.is_admitted(generation) || stays {
            return Ok(());
        }
        let ends = match hit.direction {
            Way::Original => Ends {
                from: tuple.source.0,
                to: hit.to().destination.0,
                protocol: tuple.protocol,
                port: hit.to().destination.1,
                is_masqueraded: hit.to().source.0 != tuple.source.0,
            },
            Way::Reply => Ends {
                from: hit.to().destination.0,
                to: tuple.source.0,
                protocol: tuple.protocol,
                port: tuple.source.1,
                is_masqueraded: hit.to().destination.0 != tuple.destination.0,
            },
        };
        match self.judge(&ends, packet.frame.packets()) {
            Ok(()) => {
                self.flows.set_admitted(hit, generation);
                Ok(())
            }
            Err(reason) => {
                // Without the flow, nothing would tell its next segment from a reply to the other end. What was
                // entered for this packet alone, to translate it, takes no room.
                if hit.is_plain() || hit.is_established() {
                    self.flows.set_denied(hit, self.now);
                } else {
                    self.flows.remove(hit);
                }
                Err(reason)
            }
        }
    }

    /// The first packet of a flow, or one of a flow that nobody remembers.
    fn begin(&self, packet: &Packet<'_>, tuple: &Tuple) -> Result<(), Reason> {
        let ends = Ends::of(tuple);
        let sides = self.sides(&ends);
        let original = match sides.verdict() {
            Ok(()) => *tuple,
            Err(_) if self.may_be_reply(packet, tuple) => tuple.inverse(),
            Err(reason) => {
                self.tell(&ends, &sides, packet.frame.packets());
                return Err(reason);
            }
        };
        if original == *tuple {
            self.tell(&ends, &sides, packet.frame.packets());
        }
        let services = self.tables.services().generation();
        let new = NewFlow::plain(original, services, self.policies().generation());
        let hit = self.flows.insert(&new, self.now).map_err(|refused| match refused {
            Refused::Full => Reason::FlowsFull,
            Refused::NoPort => Reason::NatPorts,
        })?;
        let hit = if original == *tuple { Some(hit) } else { self.flows.find(tuple, self.now) };
        if let Some(hit) = hit {
            self.note(packet, &hit, flows::mark(packet.frame, packet.ip));
        }
        Ok(())
    }

    /// Whether the packet may belong to a connection that was made before this switch began to remember.
    fn may_be_reply(&self, packet: &Packet<'_>, tuple: &Tuple) -> bool {
        tuple.protocol == FlowProtocol::Tcp
            && !flows::opens(tuple.protocol, flows::mark(packet.frame, packet.ip))
            && self.sides(&Ends::of(&tuple.inverse())).verdict().is_ok()
    }

    /// A packet without ports that is not about another. Those that may be answered begin a flow.
    fn admit_portless(&self, packet: &Packet<'_>) -> Result<(), Reason> {
        let ip = packet.ip;
        if is_cut(ip) {
            return Err(Reason::FragmentUnknown);
        }
        let tuple = Tuple::of_portless(packet.frame.data(), ip);
        let admitted = match tuple {
            Some(tuple) => match self.flows.find(&tuple, self.now) {
                Some(hit) => self.follow(packet, &hit, &tuple),
                None if is_echo_reply(ip) => self.judge(&Ends::of(&tuple), packet.frame.packets()),
                None => self.begin(packet, &tuple),
            },
            None => {
                let ends = Ends {
                    from: ip.source,
                    to: ip.destination,
                    protocol: FlowProtocol::Other(ip.protocol),
                    port: 0,
                    is_masqueraded: false,
                };
                self.judge(&ends, packet.frame.packets())
            }
        };
        let anything = || Tuple {
            source: (ip.source, 0),
            destination: (ip.destination, 0),
            protocol: FlowProtocol::Other(ip.protocol),
        };
        admitted.inspect(|()| self.note_fragment(packet, tuple.unwrap_or_else(anything)))
    }

    #[inline]
    fn note(&self, packet: &Packet<'_>, hit: &Hit, mark: u8) {
        let (packets, bytes) = (packet.frame.packets(), packet.frame.len() as u64);
        self.flows.note(hit, self.now, packets, bytes, mark);
    }

    /// Judges, and counts and tells what comes of it.
    fn judge(&self, ends: &Ends, packets: u64) -> Result<(), Reason> {
        let sides = self.sides(ends);
        self.tell(ends, &sides, packets);
        sides.verdict()
    }

    /// Asks the rules that this node applies.
    fn sides(&self, ends: &Ends) -> Sides<'t> {
        let (tables, policies) = (self.tables, self.policies());
        let is_here = |address| matches!(tables.route(address), Route::Port(_));
        let (from_here, to_here) = (is_here(ends.from), is_here(ends.to));
        let is_own_node =
            (from_here && tables.is_own(ends.to)) || (to_here && tables.is_own(ends.from));
        let question =
            Question { from: ends.from, to: ends.to, traffic: ends.traffic(), is_own_node };
        let to_elsewhere = ends.is_masqueraded && tables.is_pod_elsewhere(ends.to);
        // Its node has asked the rules for the client.
        let is_decided = to_here && tables.is_masquerade_elsewhere(ends.from);
        let asks_ingress = to_elsewhere || (to_here && !is_decided);
        let is_pending = (from_here && self.waits_for(Direction::Egress, ends.from, ends.to))
            || (asks_ingress && self.waits_for(Direction::Ingress, ends.to, ends.from))
            || (to_elsewhere && policies.subject(ends.to).is_none());
        Sides {
            egress: from_here.then(|| judge_egress(policies, &question)),
            ingress: asks_ingress.then(|| judge_ingress(policies, &question)),
            is_pending,
        }
    }

    /// Whether the rules of `own` cannot decide about `peer` before its labels are known.
    fn waits_for(&self, direction: Direction, own: IpAddr, peer: IpAddr) -> bool {
        let rules = self.policies().subject(own).and_then(|subject| subject.rules(direction));
        rules.is_some_and(|rules| {
            rules.needs_labels()
                && self.tables.is_pod_elsewhere(peer)
                && self.policies().subject(peer).is_none()
        })
    }

    /// Counts what was decided, and tells what was denied.
    fn tell(&self, ends: &Ends, sides: &Sides<'_>, packets: u64) {
        if sides.is_pending {
            return;
        }
        let egress = sides.egress.map(|ruling| (Direction::Egress, ruling));
        let passes = sides.egress.is_none_or(|ruling| ruling.passes());
        // What its sender may not send was not decided by its receiver's rules.
        let ingress = sides.ingress.filter(|_| passes).map(|ruling| (Direction::Ingress, ruling));
        for (direction, ruling) in egress.into_iter().chain(ingress) {
            ruling.count(direction, packets);
            if ruling.is_denied && self.flows.denials().has_room() {
                self.push_denial(ends, direction, &ruling, packets);
            }
        }
    }

    fn push_denial(&self, ends: &Ends, direction: Direction, ruling: &Ruling<'_>, packets: u64) {
        let of = |address| self.policies().subject(address).map(Arc::clone);
        let (own, peer) = match direction {
            Direction::Egress => (ends.from, ends.to),
            Direction::Ingress => (ends.to, ends.from),
        };
        // Who is denied something has rules.
        let Some(subject) = of(own) else { return };
        self.flows.denials().push(Denial {
            direction,
            from: ends.from,
            to: ends.to,
            protocol: ends.protocol,
            port: ends.port,
            subject,
            peer: of(peer),
            rule: match ruling.why {
                Why::Rule(rule) => Some(Arc::clone(rule)),
                Why::NoRules | Why::Itself | Why::OwnNode | Why::NoMatch | Why::NotIsolated => None,
            },
            is_audited: ruling.is_audited,
            packets,
        });
    }

    fn policies(&self) -> &'t PolicyTable {
        self.tables.policies()
    }
}

impl Ends {
    /// Those of a packet that is not translated.
    fn of(tuple: &Tuple) -> Self {
        let (to, port) = tuple.destination;
        let port = if tuple.protocol.service().is_some() { port } else { 0 };
        Self { from: tuple.source.0, to, protocol: tuple.protocol, port, is_masqueraded: false }
    }

    fn traffic(&self) -> Traffic {
        match self.protocol.service() {
            Some(protocol) => Traffic::Port { protocol, port: self.port },
            None => Traffic::Portless,
        }
    }
}

fn is_echo_request(ip: &Ip) -> bool {
    echo(ip) == Some(icmp::Echo::Request)
}

fn is_echo_reply(ip: &Ip) -> bool {
    echo(ip) == Some(icmp::Echo::Reply)
}

fn echo(ip: &Ip) -> Option<icmp::Echo> {
    match ip.transport {
        Transport::Icmp { kind, .. } => icmp::echo(ip.source.is_ipv4(), kind),
        Transport::Tcp { .. }
        | Transport::Udp { .. }
        | Transport::Sctp { .. }
        | Transport::Other => None,
    }
}

/// Whether the first fragment ends before its ports, or its type.
fn is_cut(ip: &Ip) -> bool {
    let own_icmp = if ip.source.is_ipv4() { icmp::PROTOCOL_V4 } else { icmp::PROTOCOL_V6 };
    ip.transport == Transport::Other
        && [tcp::PROTOCOL, udp::PROTOCOL, sctp::PROTOCOL, own_icmp].contains(&ip.protocol)
}
