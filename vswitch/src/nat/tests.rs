//! Translated packets of every kind, with etherparse as the judge of their checksums.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use proptest::prelude::*;

use super::*;
use crate::frame::{Gso, GsoKind};
use crate::icmp_error::{self, Ends, Error};
use crate::offload::Cut;
use crate::wire::{self, Network, checksum};

fn ip_of(frame: &Frame) -> Ip {
    let Network::Ip(ip) = wire::parse(frame.data()).unwrap().network else { panic!("ARP") };
    ip
}

fn frame_of(bytes: &[u8]) -> Frame {
    let mut frame = Frame::new();
    assert!(frame.append(bytes));
    frame
}

fn packet(tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let step = match (tuple.source.0, tuple.destination.0) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            link.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            link.ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("two families"),
    };
    let (source, destination) = (tuple.source.1, tuple.destination.1);
    let mut bytes = Vec::new();
    match tuple.protocol {
        FlowProtocol::Tcp => step.tcp(source, destination, 7, 1000).write(&mut bytes, payload),
        FlowProtocol::Udp => step.udp(source, destination).write(&mut bytes, payload),
        FlowProtocol::Sctp => {
            let mut sctp = source.to_be_bytes().to_vec();
            sctp.extend(destination.to_be_bytes());
            sctp.extend([1, 2, 3, 4, 0, 0, 0, 0]);
            sctp.extend(payload);
            let sum = crc32c::crc32c(&sctp);
            sctp[8..12].copy_from_slice(&sum.to_le_bytes());
            step.write(&mut bytes, etherparse::IpNumber(132), &sctp)
        }
        other @ (FlowProtocol::Echo | FlowProtocol::Other(_)) => panic!("{other}"),
    }
    .unwrap();
    bytes
}

/// A frame whose checksum is left to be done: the field holds the pseudo-header's sum.
fn partial(tuple: &Tuple, payload: &[u8], gso: Option<Gso>) -> Frame {
    let mut bytes = packet(tuple, payload);
    let ip = ip_of(&frame_of(&bytes));
    let offset = checksum::checksum_offset(ip.transport).unwrap();
    let len = bytes.len() - ip.transport_offset;
    let sum = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, len).fold();
    let at = ip.transport_offset + offset;
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let mut frame = frame_of(&bytes);
    let start = u16::try_from(ip.transport_offset).unwrap();
    frame.meta.checksum = Checksum::Partial { start, offset: u16::try_from(offset).unwrap() };
    frame.meta.gso = gso;
    frame
}

/// The packets that the frame stands for, as on a wire.
fn on_wire(frame: &Frame) -> Vec<Vec<u8>> {
    let headers = wire::parse(frame.data()).unwrap();
    let cut = Cut::new(frame, &headers).unwrap();
    (0..cut.segments())
        .map(|ix| {
            let mut packet = vec![0; cut.segment_len(ix)];
            cut.write(ix, &mut packet);
            packet
        })
        .collect()
}

/// Checks all checksums with etherparse, and returns the tuple and the payload.
fn judge(bytes: &[u8]) -> (Tuple, Vec<u8>) {
    let packet = PacketHeaders::from_ethernet_slice(bytes).unwrap();
    let payload = packet.payload.slice().to_vec();
    let net = packet.net.unwrap();
    let (source, destination) = match &net {
        NetHeaders::Ipv4(header, _) => {
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header");
            (Ipv4Addr::from(header.source).into(), Ipv4Addr::from(header.destination).into())
        }
        NetHeaders::Ipv6(header, _) => {
            (Ipv6Addr::from(header.source).into(), Ipv6Addr::from(header.destination).into())
        }
        NetHeaders::Arp(_) => panic!("ARP"),
    };
    let (protocol, ports, payload) = match packet.transport {
        Some(transport) => {
            let mut right = transport.clone();
            match &net {
                NetHeaders::Ipv4(header, _) => {
                    right.update_checksum_ipv4(header, &payload).unwrap();
                }
                NetHeaders::Ipv6(header, _) => {
                    right.update_checksum_ipv6(header, &payload).unwrap();
                }
                NetHeaders::Arp(_) => panic!("ARP"),
            }
            assert_eq!(right, transport, "layer 4 checksum");
            match transport {
                TransportHeader::Tcp(tcp) => {
                    (FlowProtocol::Tcp, (tcp.source_port, tcp.destination_port), payload)
                }
                TransportHeader::Udp(udp) => {
                    (FlowProtocol::Udp, (udp.source_port, udp.destination_port), payload)
                }
                other @ (TransportHeader::Icmpv4(_)
                | TransportHeader::Icmpv6(_)
                | TransportHeader::Igmp(_)) => panic!("{other:?}"),
            }
        }
        None => {
            let mut zeroed = payload.clone();
            zeroed[8..12].fill(0);
            let sum = crc32c::crc32c(&zeroed);
            assert_eq!(payload[8..12], sum.to_le_bytes(), "CRC32c");
            let ports = (
                u16::from_be_bytes([payload[0], payload[1]]),
                u16::from_be_bytes([payload[2], payload[3]]),
            );
            (FlowProtocol::Sctp, ports, payload[12..].to_vec())
        }
    };
    let tuple = Tuple { source: (source, ports.0), destination: (destination, ports.1), protocol };
    (tuple, payload)
}

/// Two tuples of one family and protocol.
fn pairs(protocols: &'static [FlowProtocol]) -> impl Strategy<Value = (Tuple, Tuple)> {
    let v4 = prop::collection::vec(any::<[u8; 4]>().prop_map(IpAddr::from), 4);
    let v6 = prop::collection::vec(any::<[u8; 16]>().prop_map(IpAddr::from), 4);
    let protocol = prop::sample::select(protocols);
    (prop_oneof![v4, v6], any::<[u16; 4]>(), protocol).prop_map(|(addresses, ports, protocol)| {
        let tuple = |at| Tuple {
            source: (addresses[at], ports[at]),
            destination: (addresses[at + 1], ports[at + 1]),
            protocol,
        };
        (tuple(0), tuple(2))
    })
}

const ALL: &[FlowProtocol] = &[FlowProtocol::Tcp, FlowProtocol::Udp, FlowProtocol::Sctp];
const OFFLOADED: &[FlowProtocol] = &[FlowProtocol::Tcp, FlowProtocol::Udp];

proptest! {
    #[test]
    fn whole_packets((from, to) in pairs(ALL), payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut frame = frame_of(&packet(&from, &payload));
        let ip = ip_of(&frame);
        translate(&mut frame, &ip, &to.packed()).unwrap();
        prop_assert_eq!(judge(frame.data()), (to, payload.clone()));
        // And back: not a byte differs, but for a UDP checksum's other zero.
        let ip = ip_of(&frame);
        translate(&mut frame, &ip, &from.packed()).unwrap();
        prop_assert_eq!(judge(frame.data()), (from, payload));
    }

    #[test]
    fn partial_checksums(
        (from, to) in pairs(OFFLOADED),
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut frame = partial(&from, &payload, None);
        let (ip, meta) = (ip_of(&frame), frame.meta);
        translate(&mut frame, &ip, &to.packed()).unwrap();
        prop_assert_eq!(frame.meta, meta, "it is still to be done");
        prop_assert_eq!(judge(&on_wire(&frame)[0]), (to, payload));
    }

    #[test]
    fn super_frames((from, to) in pairs(OFFLOADED), len in 1001_usize..5000) {
        let payload: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let kind = match (from.protocol, from.source.0) {
            (FlowProtocol::Udp, _) => GsoKind::Udp,
            (_, IpAddr::V4(_)) => GsoKind::Tcp4,
            (_, IpAddr::V6(_)) => GsoKind::Tcp6,
        };
        let segments = u16::try_from(len.div_ceil(1000)).unwrap();
        let mut frame = partial(&from, &payload, Some(Gso { kind, size: 1000, segments }));
        let ip = ip_of(&frame);
        translate(&mut frame, &ip, &to.packed()).unwrap();
        prop_assert_eq!(frame.packets(), u64::from(segments));
        let mut together = Vec::new();
        for packet in on_wire(&frame) {
            let (tuple, part) = judge(&packet);
            prop_assert_eq!(tuple, to);
            together.extend(part);
        }
        prop_assert_eq!(together, payload);
    }

    #[test]
    fn damage_stays_damage((from, to) in pairs(ALL), at in 12_usize..40, bit in 0_u8..8) {
        let mut bytes = packet(&from, &[9; 40]);
        let ip = ip_of(&frame_of(&bytes));
        let at = ip.transport_offset + 20 + at % 20;
        bytes[at] ^= 1 << bit;
        let mut frame = frame_of(&bytes);
        translate(&mut frame, &ip, &to.packed()).unwrap();
        frame.data_mut()[at] ^= 1 << bit;
        prop_assert_eq!(judge(frame.data()).0, to, "nothing else was wrong");
    }

    /// What every error about a packet says after it went back through the translation: the client reads of the
    /// packet that it sent, with checksums that are right all the way in.
    #[test]
    fn errors_quote_what_their_reader_sent(
        (sent, seen) in pairs(ALL),
        by_endpoint in any::<bool>(),
        too_big in any::<bool>(),
        cut in 28_usize..200,
    ) {
        prop_assume!(sent.destination.0 != sent.source.0);
        // The endpoint's side has the packet as `seen`, and reports it.
        let on_way = packet(&seen, &[3; 200]);
        let on_way = &on_way[ETHERNET_LEN..];
        let is_v4 = seen.source.0.is_ipv4();
        let on_way = &on_way[..on_way.len().min(if is_v4 { cut } else { cut + 40 })];
        let router: IpAddr =
            if is_v4 { [192, 0, 2, 77].into() } else { "2001:db8::77".parse().unwrap() };
        prop_assume!(router != seen.destination.0);
        let speaker = if by_endpoint { seen.destination.0 } else { router };
        let ends = Ends::new(speaker, seen.source.0).unwrap();
        let error = if too_big { Error::TooBig { mtu: 1400 } } else { Error::PortUnreachable };
        let mut frame = Frame::new();
        icmp_error::write(&mut frame, error, ends, on_way);

        let ip = ip_of(&frame);
        let found = quoted(frame.data(), &ip).unwrap();
        prop_assert_eq!(found.tuple, seen);
        let to = sent.inverse();
        let (source, destination) = error_addresses(&ip, &seen.inverse(), &to);
        translate_error(&mut frame, &ip, &found, &to);
        let after = ip_of(&frame);
        prop_assert_eq!((after.source, after.destination), (source, destination));
        prop_assert_eq!(destination, sent.source.0);
        prop_assert_eq!(source, if by_endpoint { sent.destination.0 } else { router });
        // The checksum of the error itself.
        let message = &frame.data()[after.transport_offset..];
        if is_v4 {
            prop_assert_eq!(checksum::internet(message), 0);
        } else {
            prop_assert!(checksum::is_right(source, destination, 58, message));
        }
        // And what it quotes is what was sent: the ports, the addresses, the header's checksum.
        prop_assert_eq!(quoted(frame.data(), &after).unwrap().tuple, sent);
        let original = packet(&sent, &[3; 200]);
        let quote = &message[8..];
        let header_len = after.transport_offset - ETHERNET_LEN;
        prop_assert_eq!(&quote[..header_len], &original[ETHERNET_LEN..ETHERNET_LEN + header_len]);
        if sent.protocol != FlowProtocol::Sctp {
            let same = quote.iter().zip(&original[ETHERNET_LEN..]).filter(|(a, b)| a == b).count();
            // All, but for a checksum of zero in its other form.
            prop_assert!(same + 2 >= quote.len(), "{} of {}", same, quote.len());
        }
    }

    #[test]
    fn no_bytes_in_an_error_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>()) {
        let ends = if v6 {
            Ends::new("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
        } else {
            Ends::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
        };
        let mut frame = Frame::new();
        icmp_error::write(&mut frame, Error::PortUnreachable, ends.unwrap(), &bytes);
        let ip = ip_of(&frame);
        if let Some(found) = quoted(frame.data(), &ip) {
            let to = found.tuple.inverse();
            if Ends::new(ip.source, found.tuple.source.0).is_some() {
                translate_error(&mut frame, &ip, &found, &to);
            }
        }
    }
}

fn v4(source: [u8; 4], destination: [u8; 4]) -> Tuple {
    Tuple {
        source: (source.into(), 4000),
        destination: (destination.into(), 53),
        protocol: FlowProtocol::Udp,
    }
}

#[test]
fn a_udp_checksum_of_none_stays_none() {
    let from = v4([10, 0, 0, 1], [10, 0, 0, 2]);
    let mut bytes = packet(&from, b"abc");
    bytes[40..42].fill(0);
    let mut frame = frame_of(&bytes);
    let ip = ip_of(&frame);
    translate(&mut frame, &ip, &v4([10, 0, 0, 3], [10, 0, 0, 4]).packed()).unwrap();
    assert_eq!(frame.data()[40..42], [0, 0]);
}

#[test]
fn fragments_make_the_translated_packet() {
    let (from, to) = (v4([10, 0, 0, 1], [10, 96, 0, 2]), v4([10, 0, 0, 1], [10, 244, 2, 9]));
    let mut bytes = packet(&from, &[5; 3000]);
    bytes[20] = 0; // May be fragmented.
    checksum::set_ipv4_header(&mut bytes[14..34]);
    let mut first = frame_of(&bytes);
    let ip = ip_of(&first);
    let mut later = Vec::new();
    let mut pool = crate::frame::Pool::new(8);
    crate::fragment::fragment(&mut first, &ip, 1400, &mut pool, &mut later).unwrap();
    let mut together = Vec::new();
    for fragment in std::iter::once(&mut first).chain(&mut later) {
        let ip = ip_of(fragment);
        translate(fragment, &ip, &to.packed()).unwrap();
        let header = &fragment.data()[14..34];
        assert_eq!(checksum::internet(header), 0);
        together.extend_from_slice(&fragment.data()[34..]);
    }
    let (source, destination) = (to.source.0, to.destination.0);
    assert!(checksum::is_right(source, destination, udp::PROTOCOL, &together));
}

#[test]
fn a_fragment_of_an_sctp_packet_keeps_its_ports_or_is_refused() {
    let from = Tuple { protocol: FlowProtocol::Sctp, ..v4([10, 0, 0, 1], [10, 96, 0, 2]) };
    let mut bytes = packet(&from, &[5; 800]);
    bytes[20] = 0x20; // More fragments.
    checksum::set_ipv4_header(&mut bytes[14..34]);
    let mut frame = frame_of(&bytes[..34 + 400]);
    frame.data_mut()[16..18].copy_from_slice(&420_u16.to_be_bytes());
    checksum::set_ipv4_header(&mut frame.data_mut()[14..34]);
    let ip = ip_of(&frame);
    assert_eq!(ip.fragment, Fragment::First);
    let before = frame.data().to_vec();
    let other_port = Tuple { destination: ([10, 244, 2, 9].into(), 54), ..from };
    assert_eq!(translate(&mut frame, &ip, &other_port.packed()), Err(Reason::FragmentUnknown));
    assert_eq!(frame.data(), before);
    let same_port = Tuple { destination: ([10, 244, 2, 9].into(), 53), ..from };
    assert_eq!(translate(&mut frame, &ip, &same_port.packed()), Ok(()));
    assert_eq!(ip_of(&frame).destination, IpAddr::from([10, 244, 2, 9]));
}

#[test]
fn what_is_no_error_quotes_nothing() {
    let mut frame = Frame::new();
    let ends = Ends::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into()).unwrap();
    let on_way = packet(&v4([10, 0, 0, 2], [10, 0, 0, 3]), &[0; 50]);
    icmp_error::write(&mut frame, Error::PortUnreachable, ends, &on_way[14..]);
    assert!(quoted(frame.data(), &ip_of(&frame)).is_some());
    let mut echo = frame_of(frame.data());
    echo.data_mut()[34] = 8;
    assert!(quoted(echo.data(), &ip_of(&echo)).is_none());
    let mut later = frame_of(frame.data());
    later.data_mut()[14 + 28 + 7] = 1;
    assert!(quoted(later.data(), &ip_of(&later)).is_none(), "of a later fragment");
}
