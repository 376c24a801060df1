//! Answers ARP (RFC 826) and IPv6 neighbor discovery (RFC 4861), so that neither ever has to be flooded.
//!
//! Nothing is learned and nothing expires: an address is answered for when [`Tables::route`] says that
//! somebody holds it, always with the switch's own [`Mac::ROUTER`], and never to the port that holds
//! it itself. The reply is written over the request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::IntoBytes;

use crate::frame::{Checksum, Frame, Ingress};
use crate::mac::Mac;
use crate::tables::{PortEntry, PortKind, Route, Tables};
use crate::verdict::{Reason, Verdict};
use crate::wire::{
    self, ETHERNET_LEN, Fragment, Ip, Transport, arp, checksum, ethernet, icmp, ipv6,
};

/// Whether the packet is a neighbor discovery message. Such a message is for the link and is never
/// forwarded, whatever its addresses.
#[inline]
pub fn is_discovery(ip: &Ip) -> bool {
    ip.source.is_ipv6()
        && matches!(ip.transport, Transport::Icmp { kind: ROUTER_SOLICITATION..=REDIRECT, .. })
}

/// Answers the ARP request in `frame` in place, for the port that it came from.
///
/// `frame` holds a complete ARP packet for IPv4 over Ethernet.
pub fn answer_arp(tables: &Tables, asker: &PortEntry, frame: &mut Frame) -> Verdict {
    let Some(Ok(request)) = frame.data().get(ETHERNET_LEN..).map(|body| arp::read(body).copied())
    else {
        return Verdict::Drop(Reason::Malformed);
    };
    if request.operation.get() != arp::REQUEST {
        return Verdict::Drop(Reason::NeighborIgnored);
    }
    // A sender of 0.0.0.0 probes whether an address is taken (RFC 5227 §2.1.1).
    let sender = Ipv4Addr::from(request.sender);
    let is_own = sender.is_unspecified() || may_use(asker, sender.into());
    if request.sender_mac != asker.mac.0 || !is_own {
        return Verdict::Drop(Reason::Spoofed);
    }
    if !is_held_by_another(tables, asker, request.target.into()) {
        return Verdict::Drop(Reason::NeighborIgnored);
    }
    write_arp_reply(frame, &request);
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
        | Transport::Sctp { .. }
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
/// The gateway addresses are the pods' next hop, and so always there for them, even while the host's port
/// is not. The host is not told so: it has to find them free in order to take them.
fn is_held_by_another(tables: &Tables, asker: &PortEntry, target: IpAddr) -> bool {
    let is_gateway = match target {
        IpAddr::V4(v4) => tables.node.gateway_v4 == Some(v4),
        IpAddr::V6(v6) => tables.node.gateway_v6 == Some(v6),
    };
    let is_next_hop = is_gateway && asker.kind == PortKind::Pod;
    let is_held = match tables.route(target) {
        Route::Port(_) | Route::Node(_) | Route::Host | Route::Router => true,
        Route::Nobody | Route::Outside => is_next_hop,
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

fn write_arp_reply(frame: &mut Frame, request: &arp::Packet) {
    let reply = arp::Packet {
        operation: arp::REPLY.into(),
        sender_mac: Mac::ROUTER.0,
        sender: request.target,
        target_mac: request.sender_mac,
        target: request.sender,
        ..*request
    };
    frame.set_len(ETHERNET_LEN + reply.as_bytes().len());
    let data = frame.data_mut();
    wire::set_macs(data, Mac(request.sender_mac), Mac::ROUTER);
    data[ETHERNET_LEN..].copy_from_slice(reply.as_bytes());
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
            checksum::is_right(ip.source, ip.destination, icmp::PROTOCOL_V6, message)
                .then_some(())?;
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
    wire::set_macs(data, mac, Mac::ROUTER);
    data[12..14].copy_from_slice(&ethernet::IPV6.to_be_bytes());
    let (header, message) = data[ETHERNET_LEN..].split_at_mut(ipv6::HEADER_LEN);
    // Version 6, no traffic class, no flow label; 32 bytes of ICMPv6; hop limit 255.
    header[0..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 32, icmp::PROTOCOL_V6, 255]);
    header[8..24].copy_from_slice(&request.target.octets());
    header[24..40].copy_from_slice(&destination.octets());
    message[0..8].copy_from_slice(&[NEIGHBOR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    message[8..24].copy_from_slice(&request.target.octets());
    message[24..26].copy_from_slice(&[TARGET_LINK_ADDRESS, 1]);
    message[26..32].copy_from_slice(&Mac::ROUTER.0);
    let sum =
        checksum::transport(request.target.into(), destination.into(), icmp::PROTOCOL_V6, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    made_here(frame);
}

fn made_here(frame: &mut Frame) {
    frame.meta.ingress = Ingress::Switch;
    frame.meta.gso = None;
    frame.meta.checksum = Checksum::Verified;
}

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
const ADVERTISEMENT_FRAME_LEN: usize = ETHERNET_LEN + ipv6::HEADER_LEN + 24 + 8;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// RFC 2464 §7.
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::PortIx;
    use crate::tables::{Node, TablesBuilder};

    const ASKER: Mac = Mac([0x0a, 0x58, 10, 244, 1, 2]);

    fn pod(last: u8) -> PortEntry {
        PortEntry {
            kind: PortKind::Pod,
            mac: Mac([0x0a, 0x58, 10, 244, 1, last]),
            mtu: 1450,
            addresses: vec![
                [10, 244, 1, last].into(),
                format!("fd00:10:244:1::{last}").parse().unwrap(),
            ],
        }
    }

    fn tables() -> Tables {
        let node = Node {
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            gateway_v4: Some(Ipv4Addr::new(10, 244, 1, 1)),
            gateway_v6: Some("fd00:10:244:1::1".parse().unwrap()),
            underlay: None,
            vxlan_port: 4789,
            gossip_port: 7946,
        };
        let ranges = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
        let mut builder = TablesBuilder::new(1, node, &ranges);
        builder.port(PortIx(2), pod(2)).port(PortIx(3), pod(3));
        builder.build()
    }

    fn frame(bytes: &[u8]) -> Frame {
        let mut frame = Frame::new();
        assert!(frame.append(bytes));
        frame.meta.ingress = Ingress::Port(PortIx(2));
        frame
    }

    /// "Who has `target`? Tell `sender`", padded as a card pads it.
    fn who_has(mac: Mac, sender: [u8; 4], target: [u8; 4]) -> Frame {
        #[rustfmt::skip]
        let bytes = [
            &[0xff; 6], &mac.0[..], &[8, 6],
            &[0, 1, 8, 0, 6, 4, 0, 1],
            &mac.0, &sender,
            &[0; 6], &target,
            &[0; 18],
        ];
        frame(&bytes.concat())
    }

    #[test]
    fn an_arp_request_gets_a_literal_reply() {
        let mut frame = who_has(ASKER, [10, 244, 1, 2], [10, 244, 1, 3]);
        assert_eq!(answer_arp(&tables(), &pod(2), &mut frame), Verdict::Answered);
        #[rustfmt::skip]
        let expected = [
            0x0a, 0x58, 10, 244, 1, 2, 0x02, b'W', b'E', b'F', b'T', 1, 8, 6,
            0, 1, 8, 0, 6, 4, 0, 2,
            0x02, b'W', b'E', b'F', b'T', 1, 10, 244, 1, 3,
            0x0a, 0x58, 10, 244, 1, 2, 10, 244, 1, 2,
        ];
        assert_eq!(frame.data(), expected);
        assert_eq!(frame.meta.ingress, Ingress::Switch);
    }

    #[test]
    fn arp_is_answered_for_what_exists_and_for_nobody_else() {
        let own = [10, 244, 1, 2];
        let ignored = Verdict::Drop(Reason::NeighborIgnored);
        for (sender, target, expected) in [
            (own, [10, 244, 1, 1], Verdict::Answered),
            (own, [169, 254, 1, 1], Verdict::Answered),
            (own, [10, 244, 1, 99], ignored),
            (own, [198, 51, 100, 7], ignored),
            (own, own, ignored),
            ([0; 4], own, ignored),
            ([0; 4], [10, 244, 1, 3], Verdict::Answered),
            ([10, 244, 1, 3], [10, 244, 1, 1], Verdict::Drop(Reason::Spoofed)),
        ] {
            let mut frame = who_has(ASKER, sender, target);
            let verdict = answer_arp(&tables(), &pod(2), &mut frame);
            assert_eq!(verdict, expected, "{sender:?} asks for {target:?}");
        }
        let mut spoofed = who_has(Mac([2; 6]), own, [10, 244, 1, 1]);
        let verdict = answer_arp(&tables(), &pod(2), &mut spoofed);
        assert_eq!(verdict, Verdict::Drop(Reason::Spoofed));
        let mut reply = who_has(ASKER, own, [10, 244, 1, 1]);
        reply.data_mut()[21] = 2;
        assert_eq!(answer_arp(&tables(), &pod(2), &mut reply), ignored);
    }

    #[test]
    fn the_host_finds_the_gateway_address_free() {
        let host = PortEntry {
            kind: PortKind::Host,
            mac: Mac::HOST,
            mtu: 1450,
            addresses: vec![[192, 0, 2, 1].into()],
        };
        for (target, expected) in [
            ([10, 244, 1, 1], Verdict::Drop(Reason::NeighborIgnored)),
            ([10, 244, 1, 3], Verdict::Answered),
            ([169, 254, 1, 1], Verdict::Answered),
        ] {
            for sender in [[0; 4], [192, 0, 2, 1]] {
                let mut frame = who_has(Mac::HOST, sender, target);
                assert_eq!(answer_arp(&tables(), &host, &mut frame), expected, "{target:?}");
            }
        }
    }

    /// A neighbor solicitation with the given options, right in every other respect.
    fn solicitation(source: &str, target: &str, options: &[u8]) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        let source: Ipv6Addr = source.parse().unwrap();
        let group = solicited_node_group(target);
        let mut message = vec![NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        message.extend(options);
        let sum = checksum::transport(source.into(), group.into(), 58, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let [.., a, b, c, d] = group.octets();
        let len = u8::try_from(message.len()).unwrap();
        #[rustfmt::skip]
        let bytes = [
            &[0x33, 0x33, a, b, c, d], &ASKER.0[..], &[0x86, 0xdd],
            &[0x60, 0, 0, 0, 0, len, 58, 255],
            &source.octets(), &group.octets(),
            &message,
        ];
        bytes.concat()
    }

    fn ask(bytes: &[u8]) -> (Verdict, Frame) {
        let mut frame = frame(bytes);
        let headers = wire::parse(bytes).unwrap();
        let wire::Network::Ip(ip) = headers.network else { panic!("{headers:?}") };
        assert!(is_discovery(&ip));
        let verdict = answer_discovery(&tables(), &pod(2), &ip, &mut frame);
        (verdict, frame)
    }

    const OWN: &str = "fd00:10:244:1::2";
    const OTHER: &str = "fd00:10:244:1::3";
    const LINK: [u8; 8] = [1, 1, 0x0a, 0x58, 10, 244, 1, 2];

    #[test]
    fn a_solicitation_gets_an_advertisement() {
        let (verdict, frame) = ask(&solicitation(OWN, OTHER, &LINK));
        assert_eq!(verdict, Verdict::Answered);
        let packet = etherparse::SlicedPacket::from_ethernet(frame.data()).unwrap();
        let ethernet = packet.link.unwrap();
        let ethernet = ethernet.to_header().unwrap().ethernet2().unwrap();
        assert_eq!((ethernet.destination, ethernet.source), (ASKER.0, Mac::ROUTER.0));
        let Some(etherparse::NetSlice::Ipv6(ip)) = &packet.net else { panic!("not IPv6") };
        let (source, destination) = (ip.header().source(), ip.header().destination());
        assert_eq!(ip.header().hop_limit(), 255);
        assert_eq!(Ipv6Addr::from(source), OTHER.parse::<Ipv6Addr>().unwrap());
        assert_eq!(Ipv6Addr::from(destination), OWN.parse::<Ipv6Addr>().unwrap());
        let Some(etherparse::TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!() };
        assert!(icmp.is_checksum_valid(source, destination));
        assert_eq!((icmp.type_u8(), icmp.code_u8()), (136, 0));
        let body = icmp.slice();
        assert_eq!(body[4..8], [0xe0, 0, 0, 0], "router, solicited, override");
        assert_eq!(body[8..24], source);
        assert_eq!(body[24..], [2, 1, 0x02, b'W', b'E', b'F', b'T', 1]);
    }

    #[test]
    fn duplicate_address_detection_finds_duplicates_only() {
        let (verdict, _) = ask(&solicitation("::", OWN, &[]));
        assert_eq!(verdict, Verdict::Drop(Reason::NeighborIgnored));
        let (verdict, frame) = ask(&solicitation("::", OTHER, &[]));
        assert_eq!(verdict, Verdict::Answered);
        assert_eq!(frame.data()[..6], ALL_NODES_MAC.0);
        assert_eq!(frame.data()[38..54], ALL_NODES.octets());
        assert_eq!(frame.data()[58], FLAG_ROUTER | FLAG_OVERRIDE, "not solicited");
    }

    #[test]
    fn discovery_is_answered_for_what_exists_and_for_nobody_else() {
        let ignored = Verdict::Drop(Reason::NeighborIgnored);
        for (source, target, expected) in [
            (OWN, "fd00:10:244:1::1", Verdict::Answered),
            (OWN, "fe80::1", Verdict::Answered),
            ("fe80::858:aff:fef4:102", OTHER, Verdict::Answered),
            (OWN, "fd00:10:244:1::99", ignored),
            (OWN, "2001:db8::1", ignored),
            (OWN, OWN, ignored),
            (OTHER, "fd00:10:244:1::1", Verdict::Drop(Reason::Spoofed)),
        ] {
            let (verdict, _) = ask(&solicitation(source, target, &LINK));
            assert_eq!(verdict, expected, "{source} asks for {target}");
        }
    }

    #[test]
    fn invalid_solicitations_are_ignored() {
        let ignored = Verdict::Drop(Reason::NeighborIgnored);
        let right = solicitation(OWN, OTHER, &LINK);
        let change = |at: usize, value: u8| {
            let mut bytes = right.clone();
            bytes[at] = value;
            bytes
        };
        for (what, bytes) in [
            ("hop limit", change(21, 254)),
            ("code", change(55, 1)),
            ("checksum", change(56, !right[56])),
            ("an option without length", solicitation(OWN, OTHER, &[1, 0, 0, 0, 0, 0, 0, 0])),
            ("an option that passes the end", solicitation(OWN, OTHER, &[1, 2, 0, 0, 0, 0, 0, 0])),
            ("an option cut short", solicitation(OWN, OTHER, &[1])),
            ("a link address of nobody", solicitation("::", OTHER, &LINK)),
            ("a group as target", solicitation(OWN, "ff02::1", &LINK)),
        ] {
            assert_eq!(ask(&bytes).0, ignored, "{what}");
        }
        let solicit_router = change(54, ROUTER_SOLICITATION);
        assert_eq!(ask(&solicit_router).0, Verdict::Drop(Reason::Multicast));
        assert_eq!(ask(&change(54, NEIGHBOR_ADVERTISEMENT)).0, ignored);
    }
}
