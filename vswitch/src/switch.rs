//! The pipeline: what becomes of a frame, stage by stage in reading order.
//!
//! ```text
//!  batch ─► parse ─► link ─► neighbor ─► admit ─► guard ─► serve ─► route ─► gate ─► TTL ─► MTU ─► rewrite ─► out
//!             │       │         │          │        │        │        │       │       │      │
//!             ▼       ▼         ▼          ▼        ▼        ▼        ▼       ▼       ▼      ▼
//!          Malformed  …      Answered   Spoofed  TunnelPort NoEndpoint …  PolicyDenied… TtlExpired TooBig  + an ICMP error
//! ```
//!
//! [`Switch::forward`] drains a batch and does the accounting; `decide` is the pipeline. There is no other
//! control flow of a frame. Nothing here allocates, locks, logs or reads the clock.
//!
//! What every frame meets is inlined always: a call and the values that it hands over cost as much as what it does.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::Config;
use crate::flows::{FlowTable, Ticks};
use crate::frame::{BATCH_MAX, Batch, Frame, GsoKind, Ingress, Meta};
use crate::icmp_error::{self, Ends, Error, RateLimit};
use crate::mac::Mac;
use crate::port::{Context, NodeIx, PortIx};
use crate::serve::{Served, Stage, Translated, Turned};
use crate::tables::{Gate, Port, PortEntry, PortKind, ROUTER_V4, ROUTER_V6, Route, Tables};
use crate::verdict::{Egress, Reason, Verdict};
use crate::wire::{self, ETHERNET_LEN, Fragment, Headers, Ip, Network, Transport, checksum, udp};
use crate::{fragment, gate, neighbor, reset};

/// The switch of one worker.
#[derive(Debug)]
pub struct Switch {
    errors: RateLimit,
    /// Shared with the other workers' switches.
    flows: Arc<FlowTable>,
    /// Counts packets that something may be left to chance for.
    chances: u64,
    /// The fragments of the frame at hand behind its first.
    later_fragments: Vec<Frame>,
    /// Nodes that sent, in the last batch, what is not theirs to send.
    foreign: Vec<(NodeIx, Reason)>,
}

impl Switch {
    /// Makes a switch with a flow table of its own.
    pub fn new(config: &Config, now: Instant) -> Self {
        Self::with_flows(config, now, Arc::new(FlowTable::new(config.flows_max, 0, now)))
    }

    /// Makes a switch. It keeps nothing but a rate limit and the flows; all else that it knows comes with each
    /// batch.
    pub fn with_flows(config: &Config, now: Instant, flows: Arc<FlowTable>) -> Self {
        Self {
            errors: RateLimit::new(config.icmp_errors_per_s, now),
            flows,
            chances: 0,
            later_fragments: Vec::with_capacity(BATCH_MAX),
            foreign: Vec::with_capacity(BATCH_MAX),
        }
    }

    /// Decides about every frame of `batch` and leaves it empty. What goes on is appended to `out`, in
    /// order; what ends here is counted and its buffer goes back to the pool.
    ///
    /// Frames in `out` have been counted as received or originated, and not yet as delivered.
    pub fn forward(
        &mut self,
        context: &mut Context<'_>,
        now: Instant,
        batch: &mut Batch,
        out: &mut Vec<(Egress, Frame)>,
    ) {
        self.foreign.clear();
        let ticks = self.flows.ticks(now);
        let mut round = Round { context, now, ticks, out };
        for mut frame in batch.drain(..) {
            let (ingress, packets) = (frame.meta.ingress, frame.packets());
            let verdict = self.decide(&mut round, &mut frame);
            self.carry_out(&mut round, verdict, ingress, packets, frame);
        }
    }

    /// Takes the nodes that sent, in the last batch, frames which were not for this one or not from them, with
    /// the reason for which each was dropped. Of very many in one batch some are left out.
    pub fn take_foreign(&mut self) -> impl Iterator<Item = (NodeIx, Reason)> {
        self.foreign.drain(..)
    }

    /// The flows that are translated or judged.
    pub fn flows(&self) -> &Arc<FlowTable> {
        &self.flows
    }

    /// The pipeline. On [`Verdict::Answered`] the reply is in `frame`, for the port that asked. ICMP
    /// errors go straight to the round's output.
    fn decide(&mut self, round: &mut Round<'_, '_>, frame: &mut Frame) -> Verdict {
        let tables = round.context.tables;
        let sender = match find_sender(tables, frame.meta.ingress) {
            Ok(sender) => sender,
            Err(reason) => return Verdict::Drop(reason),
        };

        // Parse: every header once; offsets can be trusted from here on.
        let parsed = wire::parse(frame.data());
        let headers = match &parsed {
            Ok(headers) => headers,
            Err(reason) => return Verdict::Drop(*reason),
        };

        // Link: the frame is for the switch, and from whom it says.
        if let Err(reason) = check_link(tables, sender, headers) {
            return Verdict::Drop(reason);
        }

        // Neighbor: ARP and ND are for the link, and end here. So does what is sent to a group.
        let ip = match (&headers.network, sender) {
            (Network::Arp, Sender::Port(asker)) => {
                return neighbor::answer_arp(tables, asker, frame);
            }
            (Network::Ip(ip), Sender::Port(asker)) if neighbor::is_discovery(ip) => {
                return neighbor::answer_discovery(tables, asker, ip, frame);
            }
            (Network::Ip(ip), Sender::Node(_)) if neighbor::is_discovery(ip) => {
                return Verdict::Drop(Reason::NeighborIgnored);
            }
            (Network::Arp, Sender::Node(_)) => return Verdict::Drop(Reason::NeighborIgnored),
            (Network::Ip(ip), Sender::Port(_) | Sender::Node(_)) => ip,
        };
        if headers.destination.is_multicast() || is_group(ip.destination) {
            return Verdict::Drop(Reason::Multicast);
        }
        // Padding is of the link, too: behind a short packet it could exceed any MTU.
        frame.set_len(ETHERNET_LEN + ip.len);

        // Admit: the source address is the sender's.
        if let Err(reason) = admit(tables, sender, ip) {
            return Verdict::Drop(reason);
        }

        // Guard: pods have no business with the nodes' tunnel and gossip.
        if sender.is_pod() && is_for_tunnel(tables, ip) {
            return Verdict::Drop(Reason::TunnelPort);
        }

        // Serve: to whom it really goes, and from whom it really comes. The frame keeps what its sender wrote
        // until nothing can be refused any more.
        let served = self.serve(round, sender, frame, ip);
        let (translated, hit) = match &served {
            Served::Plain(hit) => (None, hit.as_ref()),
            Served::Translated(translated) => (Some(translated), translated.hit()),
            Served::Refused(Turned { reason, is_told: false }) => return Verdict::Drop(*reason),
            Served::Refused(Turned { reason, is_told: true }) => {
                return self.turn_away(round, frame, headers, ip, *reason);
            }
        };

        // Route: where it leaves, if anywhere.
        let way = match translated {
            None => route(tables, sender, ip),
            Some(translated) => {
                let (address, port) = translated.destination();
                if sender.is_pod() && is_tunnel(tables, ip, address, port) {
                    return Verdict::Drop(Reason::TunnelPort);
                }
                route_translated(tables, address)
            }
        };
        let egress = match way {
            Way::Out(egress) => egress,
            Way::Router => return self.answer(round, frame, headers, ip),
            Way::Nowhere(reason) => return Verdict::Drop(reason),
            Way::Unreachable(error) => {
                let Some(translated) = translated else {
                    return self.refuse(round, frame, headers, Reason::NoSuchAddress, error);
                };
                return self.lose(round, frame, headers, ip, translated);
            }
        };
        let next = match Next::find(tables, egress) {
            Ok(next) => next,
            Err(reason) => return Verdict::Drop(reason),
        };

        // Gate: the policies for both ends let it through.
        let of_service = translated.map_or(Gate::OPEN, |_| tables.gate_of_translated());
        let gate = sender.gate().and(next.gate).and(of_service);
        if !gate.is_open() {
            let packet = gate::Packet { frame, ip, translated, hit };
            if let Err(reason) = self.pass(round, gate, &packet) {
                return Verdict::Drop(reason);
            }
        }

        // TTL: the switch and its host are one router.
        let decrements = !sender.is_host() && egress != Egress::Port(PortIx::HOST);
        if decrements && ip.ttl <= 1 {
            return self.refuse_as(
                round,
                frame,
                headers,
                Reason::TtlExpired,
                Error::TimeExceeded,
                speaker(translated, ip),
            );
        }

        // MTU: what is too long is fragmented below, or refused now, as its sender sent it.
        let too_long = match packet_len_max(frame, ip) {
            Ok(len) => len > usize::from(next.mtu),
            Err(reason) => return Verdict::Drop(reason),
        };
        if too_long && (ip.dont_fragment || frame.meta.gso.is_some()) {
            let error = Error::TooBig { mtu: next.mtu };
            let speaker = speaker(translated, ip);
            return self.refuse_as(round, frame, headers, Reason::TooBig, error, speaker);
        }

        // Rewrite: everything that every fragment has is written before it is cut.
        if let Some(translated) = translated
            && let Err(reason) = translated.apply(frame, ip)
        {
            return Verdict::Drop(reason);
        }
        let data = frame.data_mut();
        if decrements {
            wire::decrement_ttl(data);
        }
        next.address(data);
        if too_long {
            let (pool, later) = (&mut *round.context.pool, &mut self.later_fragments);
            if let Err(reason) = fragment::fragment(frame, ip, next.mtu, pool, later) {
                return Verdict::Drop(reason);
            }
        }
        Verdict::Forward(egress)
    }

    #[inline]
    fn serve(
        &mut self,
        round: &Round<'_, '_>,
        sender: Sender<'_>,
        frame: &Frame,
        ip: &Ip,
    ) -> Served {
        let tables = round.context.tables;
        self.chances = self.chances.wrapping_add(1);
        let stage = Stage {
            tables,
            flows: &self.flows,
            now: round.ticks,
            client: match sender {
                Sender::Port(entry) => Some(entry.kind),
                Sender::Node(_) => None,
            },
            chance: self.chances,
        };
        stage.serve(frame, ip)
    }

    /// Asks the policies about a packet.
    #[inline]
    fn pass(
        &self,
        round: &Round<'_, '_>,
        gate: Gate,
        packet: &gate::Packet<'_>,
    ) -> Result<(), Reason> {
        if gate.is_shut() {
            return Err(Reason::PolicyPending);
        }
        let stage =
            gate::Stage { tables: round.context.tables, flows: &self.flows, now: round.ticks };
        stage.admit(packet)
    }

    /// Tells the sender of the packet in `frame` that nobody serves it, as the one that it was sent to would.
    fn turn_away(
        &mut self,
        round: &mut Round<'_, '_>,
        frame: &Frame,
        headers: &Headers,
        ip: &Ip,
        reason: Reason,
    ) -> Verdict {
        if matches!(ip.transport, Transport::Tcp { .. }) {
            self.reset(round, frame, ip);
            return Verdict::Drop(reason);
        }
        let speaker = Some(ip.destination);
        self.refuse_as(round, frame, headers, reason, Error::PortUnreachable, speaker)
    }

    /// Ends a flow whose other end nobody has any more.
    fn lose(
        &mut self,
        round: &mut Round<'_, '_>,
        frame: &Frame,
        headers: &Headers,
        written: &Ip,
        translated: &Translated,
    ) -> Verdict {
        if translated.is_original() && matches!(written.transport, Transport::Tcp { .. }) {
            if let Some(hit) = translated.hit() {
                self.flows.remove(hit);
            }
            self.reset(round, frame, written);
            return Verdict::Drop(Reason::EndpointGone);
        }
        let speaker = speaker(Some(translated), written);
        let error = Error::HostUnreachable;
        self.refuse_as(round, frame, headers, Reason::NoSuchAddress, error, speaker)
    }

    /// Sends a reset to the sender of the segment in `frame`, from where that was sent to.
    fn reset(&mut self, round: &mut Round<'_, '_>, frame: &Frame, ip: &Ip) {
        let egress = way_back(round.context.tables, ip.source);
        let Ok(next) = Next::find(round.context.tables, egress) else { return };
        if !icmp_error::may_answer(ip) || !self.errors.take(round.now) {
            return;
        }
        let Some(mut reply) = round.context.pool.take() else { return };
        if reset::write(&mut reply, frame, ip) {
            next.address(reply.data_mut());
            round.context.counters.originated.add(1);
            round.out.push((egress, reply));
        } else {
            round.context.pool.put(reply);
        }
    }

    /// Answers a packet to the switch's own address: an echo request with its reply, a segment or a
    /// datagram with an error.
    fn answer(
        &mut self,
        round: &mut Round<'_, '_>,
        frame: &mut Frame,
        headers: &Headers,
        ip: &Ip,
    ) -> Verdict {
        match ip.transport {
            Transport::Icmp { .. } if is_echo_request(ip) => match write_echo_reply(frame, ip) {
                Ok(()) => Verdict::Answered,
                Err(reason) => Verdict::Drop(reason),
            },
            Transport::Tcp { .. } | Transport::Udp { .. } => {
                self.refuse(round, frame, headers, Reason::NoService, Error::PortUnreachable)
            }
            Transport::Sctp { .. } | Transport::Icmp { .. } | Transport::Other => {
                Verdict::Drop(Reason::NoService)
            }
        }
    }

    /// Drops the packet in `frame` and, where that is right and possible, tells its sender why. `frame`
    /// still holds the packet as it came in.
    fn refuse(
        &mut self,
        round: &mut Round<'_, '_>,
        frame: &Frame,
        headers: &Headers,
        reason: Reason,
        error: Error,
    ) -> Verdict {
        self.refuse_as(round, frame, headers, reason, error, None)
    }

    /// The same, as if `speaker` said so.
    fn refuse_as(
        &mut self,
        round: &mut Round<'_, '_>,
        frame: &Frame,
        headers: &Headers,
        reason: Reason,
        error: Error,
        speaker: Option<IpAddr>,
    ) -> Verdict {
        if let Some((egress, reply)) = self.make_error(round, frame, headers, error, speaker) {
            round.context.counters.originated.add(1);
            round.out.push((egress, reply));
        }
        Verdict::Drop(reason)
    }

    fn make_error(
        &mut self,
        round: &mut Round<'_, '_>,
        frame: &Frame,
        headers: &Headers,
        error: Error,
        speaker: Option<IpAddr>,
    ) -> Option<(Egress, Frame)> {
        let (tables, pool) = (round.context.tables, &mut *round.context.pool);
        let Network::Ip(ip) = &headers.network else { return None };
        if !icmp_error::may_answer(ip) {
            return None;
        }
        let egress = way_back(tables, ip.source);
        let next = Next::find(tables, egress).ok()?;
        let ends = match speaker {
            Some(speaker) => Ends::new(speaker, ip.source)?,
            None => error_ends(tables, egress, ip.source)?,
        };
        if !self.errors.take(round.now) {
            return None;
        }
        let mut quote = pool.take()?;
        let reply = match icmp_error::copy_first_packet(frame, headers, &mut quote) {
            Ok(()) => pool.take(),
            Err(_) => None,
        };
        let reply = reply.map(|mut reply| {
            icmp_error::write(&mut reply, error, ends, &quote.data()[ETHERNET_LEN..]);
            next.address(reply.data_mut());
            (egress, reply)
        });
        pool.put(quote);
        reply
    }

    fn note_foreign(&mut self, node: NodeIx, reason: Reason) {
        let is_foreign = matches!(reason, Reason::VxlanSource | Reason::VxlanVtep);
        if is_foreign && self.foreign.len() < BATCH_MAX {
            self.foreign.push((node, reason));
        }
    }

    /// Does what the verdict says, and the accounting.
    fn carry_out(
        &mut self,
        round: &mut Round<'_, '_>,
        verdict: Verdict,
        ingress: Ingress,
        packets: u64,
        frame: Frame,
    ) {
        let counters = round.context.counters;
        match (verdict, ingress) {
            (Verdict::Forward(egress), _) => {
                round.out.push((egress, frame));
                for fragment in self.later_fragments.drain(..) {
                    counters.originated.add(1);
                    round.out.push((egress, fragment));
                }
            }
            (Verdict::Answered, Ingress::Port(port)) => {
                counters.answered.add(packets);
                counters.originated.add(1);
                round.out.push((Egress::Port(port), frame));
            }
            // Only ports are answered.
            (Verdict::Answered, Ingress::Node(_) | Ingress::Switch) => {
                counters.answered.add(packets);
                round.context.pool.put(frame);
            }
            (Verdict::Drop(reason), ingress) => {
                counters.count_drop(reason, packets);
                match ingress {
                    Ingress::Port(port) => {
                        if let Some(counters) = counters.port(port) {
                            counters.dropped.add(packets);
                        }
                    }
                    Ingress::Node(node) => self.note_foreign(node, reason),
                    Ingress::Switch => {}
                }
                round.context.pool.put(frame);
            }
        }
    }
}

/// How the stages behind Services would end a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Foreseen {
    /// It goes on, and whither.
    Forwarded(&'static str),
    /// It ends here, and its sender is told.
    Refused(Reason),
    /// It ends here.
    Dropped(Reason),
}

/// Asks the stages behind Services about a packet that comes in by a port of this kind.
pub(crate) fn foresee(tables: &Tables, kind: PortKind, ip: &Ip, is_translated: bool) -> Foreseen {
    let entry = PortEntry { kind, mac: Mac::HOST, mtu: u16::MAX, addresses: Vec::new() };
    let port = Port { entry, gate: Gate::OPEN };
    let sender = Sender::Port(&port);
    if sender.is_pod() && is_for_tunnel(tables, ip) {
        return Foreseen::Dropped(Reason::TunnelPort);
    }
    let way = if is_translated {
        route_translated(tables, ip.destination)
    } else {
        route(tables, sender, ip)
    };
    match way {
        Way::Out(Egress::Port(PortIx::HOST)) => Foreseen::Forwarded("to the node, or by way of it"),
        Way::Out(Egress::Port(_)) => Foreseen::Forwarded("to a pod on this node"),
        Way::Out(Egress::Node(_)) => Foreseen::Forwarded("to another node, or a pod on it"),
        Way::Router => Foreseen::Refused(Reason::NoService),
        Way::Nowhere(reason) => Foreseen::Dropped(reason),
        Way::Unreachable(_) => Foreseen::Refused(Reason::NoSuchAddress),
    }
}

/// What is the same for all frames of a batch.
struct Round<'r, 'c> {
    context: &'r mut Context<'c>,
    now: Instant,
    /// The same, as flows are told.
    ticks: Ticks,
    out: &'r mut Vec<(Egress, Frame)>,
}

/// Who sent the frame, as far as the ingress says.
#[derive(Debug, Clone, Copy)]
enum Sender<'a> {
    Port(&'a Port),
    Node(NodeIx),
}

impl Sender<'_> {
    fn is_pod(self) -> bool {
        matches!(self, Sender::Port(port) if port.entry.kind == PortKind::Pod)
    }

    fn is_host(self) -> bool {
        matches!(self, Sender::Port(port) if port.entry.kind == PortKind::Host)
    }

    fn gate(self) -> Gate {
        match self {
            Sender::Port(port) => port.gate,
            Sender::Node(_) => Gate::OPEN,
        }
    }
}

fn find_sender(tables: &Tables, ingress: Ingress) -> Result<Sender<'_>, Reason> {
    match ingress {
        Ingress::Port(port) => tables.gated_port(port).map(Sender::Port).ok_or(Reason::PortGone),
        Ingress::Node(node) => {
            tables.peer(node).map(|_| Sender::Node(node)).ok_or(Reason::NodeGone)
        }
        // What the switch makes is sent, not received.
        Ingress::Switch => Err(Reason::PortGone),
    }
}

fn check_link(tables: &Tables, sender: Sender<'_>, headers: &Headers) -> Result<(), Reason> {
    let destination = headers.destination;
    match sender {
        Sender::Node(_) if destination != tables.node.vtep_mac => Err(Reason::VxlanVtep),
        Sender::Node(_) => Ok(()),
        Sender::Port(entry) if entry.kind == PortKind::Pod && headers.source != entry.mac => {
            Err(Reason::Spoofed)
        }
        Sender::Port(_) if destination == Mac::ROUTER || destination.is_multicast() => Ok(()),
        Sender::Port(_) => Err(Reason::NotForRouter),
    }
}

/// Whether the sender may use the packet's source address.
fn admit(tables: &Tables, sender: Sender<'_>, ip: &Ip) -> Result<(), Reason> {
    match sender {
        Sender::Node(node) if tables.route(ip.source) == Route::Node(node) => Ok(()),
        Sender::Node(_) => Err(Reason::VxlanSource),
        Sender::Port(_) if is_to_router_on_link(ip) => Ok(()),
        Sender::Port(entry) => match entry.kind {
            PortKind::Pod if entry.addresses.contains(&ip.source) => Ok(()),
            PortKind::Pod => Err(Reason::Spoofed),
            PortKind::Host if is_martian(tables, ip.source) => Err(Reason::Martian),
            PortKind::Host => Ok(()),
        },
    }
}

/// Whether the packet is between two link-local addresses, the switch's being one: `ping fe80::1`.
fn is_to_router_on_link(ip: &Ip) -> bool {
    ip.destination == ROUTER_V6 && is_link_local(ip.source)
}

/// Whether the address can never be routed. One that somebody holds can: a node may well have a
/// link-local address that its pods use, such as a DNS cache at 169.254.20.10.
fn is_martian(tables: &Tables, address: IpAddr) -> bool {
    let never = match address {
        IpAddr::V4(v4) => {
            v4.octets()[0] == 0
                || v4.octets()[0] >= 240
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.to_ipv4_mapped().is_some()
        }
    };
    never && tables.route(address) == Route::Outside
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

/// Whether the packet is, or may turn out to be, for a node's VXLAN or gossip port.
///
/// Later fragments pass: a datagram's ports are in its first fragment, and without that one the rest is
/// harmless. A first fragment that is too short for them is held back. ([`wire::parse`] refuses those
/// of IPv6, and chains of extension headers whose end it does not see.)
#[inline(always)]
fn is_for_tunnel(tables: &Tables, ip: &Ip) -> bool {
    let port = if let Transport::Udp { destination, .. } = ip.transport { destination } else { 0 };
    is_tunnel(tables, ip, ip.destination, port)
}

/// The same of a packet that goes to another address and port than it says.
#[inline(always)]
fn is_tunnel(tables: &Tables, ip: &Ip, address: IpAddr, port: u16) -> bool {
    let suspicious = match ip.transport {
        Transport::Udp { .. } => [tables.node.vxlan_port, tables.node.gossip_port].contains(&port),
        Transport::Other => ip.protocol == udp::PROTOCOL && ip.fragment != Fragment::Later,
        Transport::Tcp { .. } | Transport::Sctp { .. } | Transport::Icmp { .. } => false,
    };
    // An address outside may be that of a node which this one has not heard of. The host would send such
    // a packet on under its own address, and the other node would take it for this node's.
    suspicious && may_be_node(tables, address)
}

#[inline(never)]
fn may_be_node(tables: &Tables, address: IpAddr) -> bool {
    match tables.route(address) {
        Route::Host | Route::Outside => true,
        Route::Node(_) => tables.is_node(address),
        Route::Port(_) | Route::Router | Route::Nobody => false,
    }
}

/// Where a packet goes.
enum Way {
    Out(Egress),
    /// To the switch itself.
    Router,
    /// Nowhere, and its sender is not told.
    Nowhere(Reason),
    /// Nowhere, and its sender is told.
    Unreachable(Error),
}

#[inline(always)]
fn route(tables: &Tables, sender: Sender<'_>, ip: &Ip) -> Way {
    match (tables.route(ip.destination), sender) {
        (Route::Port(port), _) => Way::Out(Egress::Port(port)),
        (Route::Node(node), Sender::Port(entry)) if entry.kind == PortKind::Pod => {
            Way::Out(Egress::Node(node))
        }
        (route, sender) => route_seldom(tables, sender, ip, route),
    }
}

/// The way of what does not go from or to a pod.
#[inline(never)]
fn route_seldom(tables: &Tables, sender: Sender<'_>, ip: &Ip, route: Route) -> Way {
    const HOST: Egress = Egress::Port(PortIx::HOST);
    match (route, sender) {
        (Route::Port(port), _) => Way::Out(Egress::Port(port)),
        (Route::Host, _) => Way::Out(HOST),
        (Route::Nobody, _) => Way::Unreachable(Error::HostUnreachable),

        // The tunnel leads to this node, not through it.
        (Route::Node(_) | Route::Router | Route::Outside, Sender::Node(_)) => {
            Way::Nowhere(Reason::NotForUs)
        }

        (Route::Node(node), Sender::Port(entry)) => match entry.kind {
            PortKind::Pod => Way::Out(Egress::Node(node)),
            // The other node believes this one only what lives here.
            PortKind::Host => match tables.route(ip.source) {
                Route::Host | Route::Port(_) => Way::Out(Egress::Node(node)),
                Route::Node(_) | Route::Router | Route::Nobody | Route::Outside => {
                    Way::Nowhere(Reason::ForeignSource)
                }
            },
        },
        (Route::Router, Sender::Port(_)) => Way::Router,
        (Route::Outside, Sender::Port(_)) if is_martian(tables, ip.destination) => {
            Way::Nowhere(Reason::Martian)
        }
        (Route::Outside, Sender::Port(entry)) => match entry.kind {
            PortKind::Pod if tables.port(PortIx::HOST).is_some() => Way::Out(HOST),
            // The host is the way out; it does not get back what it sends here by mistake.
            PortKind::Pod | PortKind::Host => Way::Unreachable(Error::NetUnreachable),
        },
    }
}

/// Where a packet of a flow goes: the switch itself has chosen its destination.
#[inline(always)]
fn route_translated(tables: &Tables, destination: IpAddr) -> Way {
    const HOST: Egress = Egress::Port(PortIx::HOST);
    match tables.route(destination) {
        Route::Port(port) => Way::Out(Egress::Port(port)),
        Route::Node(node) => Way::Out(Egress::Node(node)),
        Route::Host => Way::Out(HOST),
        Route::Outside if tables.port(PortIx::HOST).is_some() => Way::Out(HOST),
        Route::Outside | Route::Nobody => Way::Unreachable(Error::HostUnreachable),
        Route::Router => Way::Nowhere(Reason::NoService),
    }
}

/// Who tells a client what became of its packet: the Service, which is all that it knows.
fn speaker(translated: Option<&Translated>, written: &Ip) -> Option<IpAddr> {
    translated.filter(|translated| translated.is_original()).map(|_| written.destination)
}

/// Where an error to `sender` leaves.
fn way_back(tables: &Tables, sender: IpAddr) -> Egress {
    match tables.route(sender) {
        Route::Port(port) => Egress::Port(port),
        Route::Node(node) => Egress::Node(node),
        Route::Host | Route::Router | Route::Nobody | Route::Outside => Egress::Port(PortIx::HOST),
    }
}

/// From whom to whom an error goes; `None` when the switch has no address of that family.
///
/// The gateway address is the host's own, and no host believes a packet from itself. Towards it the
/// switch uses the address that the host knows it by as a next hop.
fn error_ends(tables: &Tables, egress: Egress, sender: IpAddr) -> Option<Ends> {
    let to_host = egress == Egress::Port(PortIx::HOST);
    Some(match sender {
        IpAddr::V4(target) => {
            let source = if to_host { ROUTER_V4 } else { tables.node.gateway_v4? };
            Ends::V4 { source, target }
        }
        IpAddr::V6(target) => {
            let source = if to_host { ROUTER_V6 } else { tables.node.gateway_v6? };
            Ends::V6 { source, target }
        }
    })
}

/// The next hop: all that the last stages need to know of the egress.
struct Next {
    mtu: u16,
    source: Mac,
    destination: Mac,
    gate: Gate,
}

impl Next {
    #[inline(always)]
    fn find(tables: &Tables, egress: Egress) -> Result<Self, Reason> {
        match egress {
            Egress::Port(port) => {
                let Port { entry, gate } = tables.gated_port(port).ok_or(Reason::PortGone)?;
                let (source, destination) = (Mac::ROUTER, entry.mac);
                Ok(Self { mtu: entry.mtu, source, destination, gate: *gate })
            }
            Egress::Node(node) => {
                let peer = tables.peer(node).ok_or(Reason::NodeGone)?;
                let source = tables.node.vtep_mac;
                let (destination, gate) = (peer.vtep_mac, Gate::OPEN);
                Ok(Self { mtu: peer.mtu, source, destination, gate })
            }
        }
    }

    fn address(&self, frame: &mut [u8]) {
        wire::set_macs(frame, self.destination, self.source);
    }
}

/// Length of the longest IP packet that the frame stands for.
#[inline(always)]
fn packet_len_max(frame: &Frame, ip: &Ip) -> Result<usize, Reason> {
    let Some(gso) = frame.meta.gso else {
        return Ok(ip.len);
    };
    let header_len = match (gso.kind, ip.transport, ip.source) {
        (GsoKind::Tcp4, Transport::Tcp { header_len, .. }, IpAddr::V4(_))
        | (GsoKind::Tcp6, Transport::Tcp { header_len, .. }, IpAddr::V6(_)) => header_len,
        (GsoKind::Udp, Transport::Udp { .. }, _) => udp::HEADER_LEN,
        (GsoKind::Tcp4 | GsoKind::Tcp6 | GsoKind::Udp, _, _) => return Err(Reason::BadOffload),
    };
    if ip.fragment != Fragment::Whole || gso.size == 0 {
        return Err(Reason::BadOffload);
    }
    let headers_len = ip.transport_offset - ETHERNET_LEN + header_len;
    Ok(ip.len.min(headers_len + usize::from(gso.size)))
}

fn is_echo_request(ip: &Ip) -> bool {
    let request = if ip.source.is_ipv4() { V4_ECHO_REQUEST } else { V6_ECHO_REQUEST };
    ip.fragment == Fragment::Whole
        && matches!(ip.transport, Transport::Icmp { kind, code: 0 } if kind == request)
}

/// Writes the reply to an echo request over it (RFC 792 p. 14, RFC 4443 §4.2).
fn write_echo_reply(frame: &mut Frame, ip: &Ip) -> Result<(), Reason> {
    checksum::complete(frame)?;
    let data = frame.data_mut();
    data.copy_within(6..12, 0);
    data[6..12].copy_from_slice(&Mac::ROUTER.0);
    let (header, message) = data[ETHERNET_LEN..].split_at_mut(ip.transport_offset - ETHERNET_LEN);
    let reply = match ip.source {
        IpAddr::V4(_) => {
            let (source, destination) = header[12..20].split_at_mut(4);
            source.swap_with_slice(destination);
            header[8] = REPLY_TTL;
            checksum::set_ipv4_header(header);
            V4_ECHO_REPLY
        }
        IpAddr::V6(_) => {
            let (source, destination) = header[8..40].split_at_mut(16);
            source.swap_with_slice(destination);
            header[7] = REPLY_TTL;
            V6_ECHO_REPLY
        }
    };
    // Updated and not computed anew, so that a request that is damaged does not get a reply that looks
    // right.
    let before = u16::from_be_bytes([message[0], message[1]]);
    message[0] = reply;
    let after = u16::from_be_bytes([message[0], message[1]]);
    let sum = checksum::update(u16::from_be_bytes([message[2], message[3]]), before, after);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    frame.meta = Meta { ingress: Ingress::Switch, gso: None, checksum: frame.meta.checksum };
    Ok(())
}

// RFC 792.
const V4_ECHO_REQUEST: u8 = 8;
const V4_ECHO_REPLY: u8 = 0;

// RFC 4443 §4.
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;

const REPLY_TTL: u8 = 64;
