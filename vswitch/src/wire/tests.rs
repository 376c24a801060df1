//! What holds for all packets: nothing panics, and etherparse says the same.

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, NetSlice,
    PacketBuilder, SlicedPacket, TransportSlice,
};
use proptest::prelude::*;

use super::checksum::Verification;
use super::*;

/// An IP header in front of `payload_len` bytes of UDP payload.
fn ip_headers() -> impl Strategy<Value = IpHeaders> {
    let v4 = (any::<[u8; 4]>(), any::<[u8; 4]>(), any::<u8>(), any::<u8>(), 0usize..=10).prop_map(
        |(source, destination, ttl, traffic_class, options)| {
            let mut header = Ipv4Header {
                source,
                destination,
                time_to_live: ttl,
                dont_fragment: ttl & 1 == 1,
                identification: u16::from(ttl) << 8,
                ..Default::default()
            };
            header.dscp = (traffic_class >> 2).try_into().unwrap();
            header.ecn = (traffic_class & 3).try_into().unwrap();
            // No-operations.
            header.options = Ipv4Options::try_from(&[1; 40][..options * 4]).unwrap();
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        },
    );
    let v6 = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u8>(), any::<u8>(), any::<[bool; 5]>())
        .prop_map(|(source, destination, hop_limit, traffic_class, present)| {
            let header = Ipv6Header {
                source,
                destination,
                hop_limit,
                traffic_class,
                flow_label: 0x12345.try_into().unwrap(),
                ..Default::default()
            };
            let raw = |len: usize| Ipv6RawExtHeader::new_raw(IpNumber(0), &[0; 30][..len]).unwrap();
            let extensions = Ipv6Extensions {
                hop_by_hop_options: present[0].then(|| raw(6)),
                destination_options: present[1].then(|| raw(14)),
                routing: present[2].then(|| Ipv6RoutingExtensions {
                    routing: raw(22),
                    final_destination_options: present[3].then(|| raw(6)),
                }),
                fragment: present[4]
                    .then(|| Ipv6FragmentHeader::new(IpNumber(0), IpFragOffset::ZERO, false, 77)),
                auth: None,
            };
            IpHeaders::Ipv6(header, extensions)
        });
    prop_oneof![v4, v6]
}

/// TCP, UDP, ICMP and, as kind 3, something unknown.
fn packets(kinds: std::ops::Range<u8>) -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(any::<u8>(), 0..100);
    (ip_headers(), payload, any::<(u16, u16, u32)>(), kinds).prop_map(
        |(headers, payload, (source, destination, sequence), kind)| {
            let is_ipv4 = matches!(headers, IpHeaders::Ipv4(..));
            let builder =
                PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ip(headers);
            let mut packet = Vec::new();
            match kind {
                0 => builder
                    .tcp(source, destination, sequence, 5000)
                    .ack(sequence)
                    .options_raw(&[1; 40][..usize::from(source % 11) * 4])
                    .unwrap()
                    .write(&mut packet, &payload),
                1 => builder.udp(source, destination).write(&mut packet, &payload),
                2 if is_ipv4 => {
                    builder.icmpv4_echo_request(source, destination).write(&mut packet, &payload)
                }
                2 => builder.icmpv6_echo_request(source, destination).write(&mut packet, &payload),
                _ => builder.write(&mut packet, IpNumber(253), &payload),
            }
            .unwrap();
            packet
        },
    )
}

/// What every later stage relies on.
fn assert_offsets_lie_inside(frame: &[u8], headers: &Headers) {
    let Network::Ip(ip) = headers.network else {
        return;
    };
    assert!(ETHERNET_LEN + ip.len <= frame.len());
    assert!(ip.transport_offset <= ETHERNET_LEN + ip.len);
    let behind = ETHERNET_LEN + ip.len - ip.transport_offset;
    let header_len = match ip.transport {
        Transport::Tcp { header_len, .. } => header_len,
        Transport::Udp { .. } => udp::HEADER_LEN,
        Transport::Sctp { .. } => sctp::HEADER_LEN,
        Transport::Icmp { .. } => 4,
        Transport::Other => 0,
    };
    assert!(header_len <= behind);
    assert_eq!(ip.source.is_ipv4(), ip.destination.is_ipv4());
}

fn look_at(frame: &[u8]) {
    if let Ok(headers) = parse(frame) {
        assert_offsets_lie_inside(frame, &headers);
        flow::hash(&headers, 1);
        if let Network::Ip(ip) = headers.network {
            checksum::verify(frame, &ip);
            let mut changed = frame.to_vec();
            decrement_ttl(&mut changed);
            let Ok(Headers { network: Network::Ip(after), .. }) = parse(&changed) else {
                panic!("a packet stays one when its TTL is decremented");
            };
            assert_eq!(after, Ip { ttl: ip.ttl.saturating_sub(1), ..ip });
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_fine(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        ethertype in prop::sample::select(vec![0u16, 0x0800, 0x0806, 0x86dd, 0x8100]),
    ) {
        if ethertype != 0 && bytes.len() > 14 {
            bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
            bytes[14] = if ethertype == 0x86dd { 0x60 } else { 0x45 };
        }
        look_at(&bytes);
    }

    #[test]
    fn mutated_packets_are_fine(
        mut packet in packets(0..4),
        changes in prop::collection::vec((0usize..120, any::<u8>()), 0..4),
        cut in prop::option::of(0usize..200),
        fix_checksum in any::<bool>(),
    ) {
        for (at, value) in changes {
            let at = at % packet.len();
            packet[at] = value;
        }
        if let Some(cut) = cut {
            packet.truncate(cut);
        }
        if fix_checksum && packet.len() >= 74 && packet[14] >> 4 == 4 {
            let len = usize::from(packet[14] & 0xf) * 4;
            if len >= 20 {
                checksum::set_ipv4_header(&mut packet[14..14 + len]);
            }
        }
        look_at(&packet);
    }

    #[test]
    fn etherparse_agrees(packet in packets(0..4), padding in 0usize..20) {
        let mut frame = packet.clone();
        frame.resize(packet.len() + padding, 0);
        let ours = parse(&frame).unwrap();
        let theirs = SlicedPacket::from_ethernet(&packet).unwrap();
        prop_assert_eq!(ours.source, Mac([2, 0, 0, 0, 0, 1]));
        prop_assert_eq!(ours.destination, Mac([2, 0, 0, 0, 0, 2]));
        let Network::Ip(ip) = ours.network else { panic!("not IP") };
        prop_assert_eq!(ip.len, packet.len() - ETHERNET_LEN);
        prop_assert_eq!(ip.fragment, Fragment::Whole);
        match theirs.net.as_ref().unwrap() {
            NetSlice::Ipv4(slice) => {
                let header = slice.header();
                prop_assert_eq!(ip.source, IpAddr::from(header.source_addr()));
                prop_assert_eq!(ip.destination, IpAddr::from(header.destination_addr()));
                prop_assert_eq!(ip.ttl, header.ttl());
                prop_assert_eq!(ip.dont_fragment, header.dont_fragment());
                prop_assert_eq!(ip.traffic_class, header.dcp().value() << 2 | header.ecn().value());
                prop_assert_eq!(ip.protocol, slice.payload().ip_number.0);
                prop_assert_eq!(ip.transport_offset, packet.len() - slice.payload().payload.len());
            }
            NetSlice::Ipv6(slice) => {
                let header = slice.header();
                prop_assert_eq!(ip.source, IpAddr::from(header.source_addr()));
                prop_assert_eq!(ip.destination, IpAddr::from(header.destination_addr()));
                prop_assert_eq!(ip.ttl, header.hop_limit());
                prop_assert_eq!(ip.traffic_class, header.traffic_class());
                prop_assert_eq!(ip.protocol, slice.payload().ip_number.0);
                prop_assert_eq!(ip.transport_offset, packet.len() - slice.payload().payload.len());
            }
            NetSlice::Arp(_) => panic!("not IP"),
        }
        let expected = match &theirs.transport {
            Some(TransportSlice::Tcp(tcp)) => Transport::Tcp {
                source: tcp.source_port(),
                destination: tcp.destination_port(),
                header_len: usize::from(tcp.data_offset()) * 4,
            },
            Some(TransportSlice::Udp(udp)) => {
                Transport::Udp { source: udp.source_port(), destination: udp.destination_port() }
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                Transport::Icmp { kind: icmp.type_u8(), code: icmp.code_u8() }
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                Transport::Icmp { kind: icmp.type_u8(), code: icmp.code_u8() }
            }
            _ => Transport::Other,
        };
        prop_assert_eq!(ip.transport, expected);
        let verification = checksum::verify(&frame, &ip);
        let has_checksum = expected != Transport::Other;
        prop_assert_eq!(
            verification,
            if has_checksum { Verification::Right } else { Verification::Absent }
        );
    }

    /// One flipped bit in what the checksum covers is always seen.
    #[test]
    fn damage_is_seen(packet in packets(0..3), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let Network::Ip(ip) = parse(&packet).unwrap().network else { panic!("not IP") };
        let is_udp = matches!(ip.transport, Transport::Udp { .. });
        // UDP's length and checksum decide what is covered, and whether.
        let skip = if is_udp { udp::HEADER_LEN } else { 0 };
        prop_assume!(packet.len() > ip.transport_offset + skip);
        let mut damaged = packet.clone();
        let at = ip.transport_offset + skip + at.index(packet.len() - ip.transport_offset - skip);
        damaged[at] ^= 1 << bit;
        if let Ok(Headers { network: Network::Ip(after), .. }) = parse(&damaged) {
            let verification = checksum::verify(&damaged, &after);
            prop_assert!(verification != Verification::Right, "{verification:?}");
        }
    }
}

#[test]
fn zero_means_no_checksum_over_ipv4_only() {
    let build = |headers: IpHeaders| {
        let mut packet = Vec::new();
        PacketBuilder::ethernet2([2; 6], [2; 6])
            .ip(headers)
            .udp(1, 2)
            .write(&mut packet, &[1, 2, 3])
            .unwrap();
        let Network::Ip(ip) = parse(&packet).unwrap().network else { panic!("not IP") };
        packet[ip.transport_offset + 6..ip.transport_offset + 8].fill(0);
        checksum::verify(&packet, &ip)
    };
    let v4 = IpHeaders::Ipv4(Ipv4Header::default(), Ipv4Extensions::default());
    assert_eq!(build(v4), Verification::Absent);
    let v6 = IpHeaders::Ipv6(Ipv6Header::default(), Ipv6Extensions::default());
    assert_eq!(build(v6), Verification::Wrong);
}

#[test]
fn a_pseudo_header_sum_is_recognized() {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2([2; 6], [2; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1, 2, 3, 4)
        .write(&mut packet, b"payload")
        .unwrap();
    let Network::Ip(ip) = parse(&packet).unwrap().network else { panic!("not IP") };
    let sum = checksum::pseudo_header(ip.source, ip.destination, 6, 27).fold();
    packet[50..52].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(checksum::verify(&packet, &ip), Verification::Partial { start: 34, offset: 16 });
    packet[51] ^= 1;
    assert_eq!(checksum::verify(&packet, &ip), Verification::Wrong);
}

#[test]
fn other_ethertypes_are_refused() {
    let mut frame = [0; 60];
    assert_eq!(parse(&frame), Err(Reason::EtherType));
    frame[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(parse(&frame), Err(Reason::EtherType));
    frame[12..14].copy_from_slice(&[0x81, 0x00]);
    assert_eq!(parse(&frame), Err(Reason::VlanTagged));
    assert_eq!(parse(&frame[..13]), Err(Reason::Malformed));
}
