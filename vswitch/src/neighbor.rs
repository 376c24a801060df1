//! Answers ARP (RFC 826) and IPv6 neighbor discovery (RFC 4861), so that neither ever has to be flooded.
//!
//! Nothing is learned and nothing expires: an address is answered for when [`Tables::route`] says that
//! somebody holds it, always with the switch's own [`Mac::ROUTER`], and never to the port that holds
//! it itself. The reply is written over the request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::{Checksum, Frame, Ingress};
use crate::mac::Mac;
use crate::tables::{PortEntry, PortKind, Route, Tables};
use crate::verdict::{Reason, Verdict};
use crate::wire::{ETHERNET_LEN, Fragment, Ip, Transport, checksum};

/// Whether the packet is a neighbor discovery message. Such a message is for the link and is never
/// forwarded, whatever its addresses.
pub fn is_discovery(ip: &Ip) -> bool {
    ip.source.is_ipv6()
        && matches!(ip.transport, Transport::Icmp { kind: ROUTER_SOLICITATION..=REDIRECT, .. })
}

/// Answers the ARP request in `frame` in place, for the port that it came from.
///
/// `frame` holds a complete ARP packet for IPv4 over Ethernet.
pub fn answer_arp(tables: &Tables, asker: &PortEntry, frame: &mut Frame) -> Verdict {
    let Some(arp) = read_arp(frame.data()) else {
        return Verdict::Drop(Reason::Malformed);
    };
    if arp.operation != ARP_REQUEST {
        return Verdict::Drop(Reason::NeighborIgnored);
    }
    // A sender of 0.0.0.0 probes whether an address is taken (RFC 5227 §2.1.1).
    let probe = arp.sender.is_unspecified();
    if arp.sender_mac != asker.mac || !(probe || may_use(asker, arp.sender.into())) {
        return Verdict::Drop(Reason::Spoofed);
    }
    if !is_held_by_another(tables, asker, arp.target.into()) {
        return Verdict::Drop(Reason::NeighborIgnored);
    }
    write_arp_reply(frame, &arp);
    Verdict::Answered
}

/// Answers the neighbor solicitation in `frame` in place, for the port that it came from.
///
/// Other discovery messages end here: addresses and routes of pods are static, so there is no router to
/// solicit, and nothing that a pod advertises is believed.
pub fn answer_discovery(tables: &Tables, asker: &PortEntry, ip: &Ip, frame: &mut Frame) -> Verdict {
    match ip.transport {
        Transport::Icmp { kind: NEIGHBOR_SOLICITATION, .. } => {}
        Transport::Icmp { kind: ROUTER_SOLICITATION, .. } => {
            return Verdict::Drop(Reason::Multicast);
        }
        Transport::Icmp { .. }
        | Transport::Tcp { .. }
        | Transport::Udp { .. }
        | Transport::Other => return Verdict::Drop(Reason::NeighborIgnored),
    }
    let Some(solicitation) = read_solicitation(ip, frame) else {
        return Verdict::Drop(Reason::NeighborIgnored);
    };
    let source = solicitation.source;
    let own =
        source.is_unspecified() || source.is_unicast_link_local() || may_use(asker, source.into());
    if !own {
        return Verdict::Drop(Reason::Spoofed);
    }
    if !is_held_by_another(tables, asker, solicitation.target.into()) {
        return Verdict::Drop(Reason::NeighborIgnored);
    }
    write_advertisement(frame, asker.mac, &solicitation);
    Verdict::Answered
}

/// Whether somebody holds `target`, and not (only) the asker. A probe for the asker's own address thus
/// gets no answer, and one for an address of somebody else shows that it is taken.
///
/// The gateway addresses are the pods' next hop, and so always there, even while the host's port is not.
fn is_held_by_another(tables: &Tables, asker: &PortEntry, target: IpAddr) -> bool {
    let is_gateway = match target {
        IpAddr::V4(v4) => tables.node.gateway_v4 == Some(v4),
        IpAddr::V6(v6) => tables.node.gateway_v6 == Some(v6),
    };
    let is_held = match tables.route(target) {
        Route::Port(_) | Route::Node(_) | Route::Host | Route::Router => true,
        Route::Nobody | Route::Outside => is_gateway,
    };
    is_held && !asker.addresses.contains(&target)
}

/// Whether the port may use `source` as its own. The host may ask with any address that it has.
fn may_use(asker: &PortEntry, source: IpAddr) -> bool {
    match asker.kind {
        PortKind::Pod => asker.addresses.contains(&source),
        PortKind::Host => true,
    }
}

/// An ARP packet for IPv4 over Ethernet (RFC 826).
struct Arp {
    operation: u16,
    sender_mac: Mac,
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

fn read_arp(data: &[u8]) -> Option<Arp> {
    let body: &[u8; ARP_LEN] = data.get(ETHERNET_LEN..)?.first_chunk()?;
    let operation = *body[6..8].first_chunk::<2>()?;
    Some(Arp {
        operation: u16::from_be_bytes(operation),
        sender_mac: Mac::from_slice(&body[8..14])?,
        sender: Ipv4Addr::from(*body[14..18].first_chunk::<4>()?),
        target: Ipv4Addr::from(*body[24..28].first_chunk::<4>()?),
    })
}

fn write_arp_reply(frame: &mut Frame, request: &Arp) {
    frame.set_len(ETHERNET_LEN + ARP_LEN);
    let data = frame.data_mut();
    data[0..6].copy_from_slice(&request.sender_mac.0);
    data[6..12].copy_from_slice(&Mac::ROUTER.0);
    let body = &mut data[ETHERNET_LEN..];
    body[6..8].copy_from_slice(&ARP_REPLY.to_be_bytes());
    body[8..14].copy_from_slice(&Mac::ROUTER.0);
    body[14..18].copy_from_slice(&request.target.octets());
    body[18..24].copy_from_slice(&request.sender_mac.0);
    body[24..28].copy_from_slice(&request.sender.octets());
    made_here(frame);
}

/// A valid neighbor solicitation (RFC 4861 §4.3).
struct Solicitation {
    source: Ipv6Addr,
    target: Ipv6Addr,
}

/// Reads a solicitation and checks all that RFC 4861 §7.1.1 asks for.
fn read_solicitation(ip: &Ip, frame: &Frame) -> Option<Solicitation> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (ip.source, ip.destination) else {
        return None;
    };
    let Transport::Icmp { code: 0, .. } = ip.transport else {
        return None;
    };
    // Discovery messages are not fragmented (RFC 6980), and have never been forwarded.
    if ip.fragment != Fragment::Whole || ip.ttl != 255 {
        return None;
    }
    let message = frame.data().get(ip.transport_offset..ETHERNET_LEN + ip.len)?;
    let target = Ipv6Addr::from(*message.get(8..)?.first_chunk::<16>()?);
    if target.is_multicast() {
        return None;
    }
    let source_link_address = has_source_link_address(message.get(SOLICITATION_LEN..)?)?;
    if source.is_unspecified()
        && (source_link_address || destination != solicited_node_group(target))
    {
        return None;
    }
    match frame.meta.checksum {
        Checksum::Filled => {
            checksum::is_right(ip.source, ip.destination, ICMPV6, message).then_some(())?;
        }
        Checksum::Verified | Checksum::Partial { .. } => {}
    }
    Some(Solicitation { source, target })
}

/// Walks the options (RFC 4861 §4.6). `None` if one has no length or passes the end.
fn has_source_link_address(mut options: &[u8]) -> Option<bool> {
    let mut found = false;
    while let [kind, units, ..] = *options {
        let len = usize::from(units) * 8;
        if len == 0 {
            return None;
        }
        options = options.get(len..)?;
        found |= kind == SOURCE_LINK_ADDRESS;
    }
    options.is_empty().then_some(found)
}

/// The group that a node listens to for solicitations of `target` (RFC 4291 §2.7.1).
fn solicited_node_group(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// Writes the advertisement that answers `request` (RFC 4861 §7.2.4).
///
/// Its source is the target itself: it is the one address that every stack looks up.
fn write_advertisement(frame: &mut Frame, asker: Mac, request: &Solicitation) {
    let probe = request.source.is_unspecified();
    let (mac, destination, flags) = if probe {
        (ALL_NODES_MAC, ALL_NODES, FLAG_ROUTER | FLAG_OVERRIDE)
    } else {
        (asker, request.source, FLAG_ROUTER | FLAG_SOLICITED | FLAG_OVERRIDE)
    };
    frame.set_len(ADVERTISEMENT_FRAME_LEN);
    let data = frame.data_mut();
    data[0..6].copy_from_slice(&mac.0);
    data[6..12].copy_from_slice(&Mac::ROUTER.0);
    data[12..14].copy_from_slice(&[0x86, 0xdd]);
    let (header, message) = data[ETHERNET_LEN..].split_at_mut(IPV6_LEN);
    // Version 6, no traffic class, no flow label; 32 bytes of ICMPv6; hop limit 255.
    header[0..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    header[8..24].copy_from_slice(&request.target.octets());
    header[24..40].copy_from_slice(&destination.octets());
    message[0..8].copy_from_slice(&[NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    message[8..24].copy_from_slice(&request.target.octets());
    message[24..26].copy_from_slice(&[TARGET_LINK_ADDRESS, 1]);
    message[26..32].copy_from_slice(&Mac::ROUTER.0);
    let sum = checksum::transport(request.target.into(), destination.into(), ICMPV6, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    made_here(frame);
}

fn made_here(frame: &mut Frame) {
    frame.meta.ingress = Ingress::Switch;
    frame.meta.gso = None;
    frame.meta.checksum = Checksum::Verified;
}

const ARP_LEN: usize = 28;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

const IPV6_LEN: usize = 40;
/// IANA "Assigned Internet Protocol Numbers".
const ICMPV6: u8 = 58;

// ICMPv6 types of RFC 4861 §4.
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

// Options of RFC 4861 §4.6.
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

// Flags of RFC 4861 §4.4.
const FLAG_ROUTER: u8 = 0x80;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;

/// Length of a solicitation without options.
const SOLICITATION_LEN: usize = 24;

/// Ethernet and IPv6 headers, the advertisement, and its one option.
const ADVERTISEMENT_FRAME_LEN: usize = ETHERNET_LEN + IPV6_LEN + 24 + 8;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 2464 §7.
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
