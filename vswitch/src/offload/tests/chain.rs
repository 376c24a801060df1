//! What a chain takes, and how it says how long it is. That the kernel's cut of it gives back every packet is shown
//! in [`super::roundtrip`].

use super::*;

const BOTH: LongFrames = LongFrames { tcp4: true, tcp6: true };
const SIZE: u16 = 1400;
const SEGMENTS: u16 = 40;

/// A super-frame's worth of payload.
const FIRST: Packet = {
    let mut packet = Packet::TCP;
    packet.payload_len = SIZE as usize * SEGMENTS as usize;
    packet
};

impl Packet {
    /// The super-frame that follows in the same flow.
    fn next_super(&self) -> Self {
        Self { identification: self.identification.wrapping_add(SEGMENTS), ..self.next() }
    }
}

/// A super-frame as a pod's kernel hands it over.
fn part(packet: &Packet, size: u16) -> Frame {
    let (mut frame, header) = super_frame(packet, size);
    decode(&header, &mut frame).unwrap();
    assert!(frame.meta.gso.is_some());
    frame
}

/// A chain that begins with `first`.
fn begun(first: &Packet) -> Chain {
    let mut chain = Chain::new(BOTH);
    chain.push(part(first, SIZE)).unwrap();
    chain
}

/// The kind and the bytes of one write.
fn written(chain: &mut Chain) -> Option<(GsoKind, Vec<u8>)> {
    let (kind, slices) = chain.slices()?;
    Some((kind, slices.iter().flat_map(|slice| slice.to_vec()).collect()))
}

fn popped(chain: &mut Chain) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| chain.pop()).map(|frame| frame.data().to_vec()).collect()
}

#[test]
fn the_headers_say_what_the_whole_is() {
    for (first, count) in [(FIRST, 2), (FIRST, CHAIN_MAX), (FIRST.v6(), 2), (FIRST.v6(), CHAIN_MAX)]
    {
        let options = [&[1, 1, 8, 10][..], &[7; 8]].concat();
        let mut packets = vec![Packet { options, ..first }];
        while packets.len() < count {
            packets.push(packets.last().unwrap().next_super());
        }
        packets.last_mut().unwrap().flags |= PSH;
        let frames: Vec<Vec<u8>> = packets.iter().map(Packet::build).collect();
        let mut chain = Chain::new(BOTH);
        for packet in &packets {
            assert!(!chain.is_full());
            chain.push(part(packet, SIZE)).unwrap();
        }
        assert_eq!(chain.is_full(), count == CHAIN_MAX);

        let (kind, bytes) = written(&mut chain).unwrap();
        let header = VnetHeader::from_slice(&bytes).unwrap();
        let bytes = &bytes[VnetHeader::LEN..];
        let network_len = if packets[0].is_ipv4 { 20 } else { 40 };
        let headers_len = 14 + network_len + 32;
        let payload: Vec<u8> =
            frames.iter().flat_map(|frame| &frame[headers_len..]).copied().collect();
        let jumbo = usize::from(!packets[0].is_ipv4) * 8;
        let transport = 14 + network_len + jumbo;
        assert_eq!((header.flags, header.gso_size.get()), (1, SIZE));
        assert_eq!(usize::from(header.hdr_len.get()), headers_len + jumbo);
        assert_eq!(
            (usize::from(header.csum_start.get()), header.csum_offset.get()),
            (transport, 16)
        );

        assert_eq!(bytes[..12], frames[0][..12], "MAC addresses");
        let (source, destination) = if packets[0].is_ipv4 {
            assert_eq!((kind, header.gso_type), (GsoKind::Tcp4, 1));
            assert_eq!(bytes[16..18], [0, 0], "the kernel takes the length from the frame");
            assert_eq!(checksum::internet(&bytes[14..34]), 0);
            let like_first = [&frames[0][14..16], &[0, 0], &frames[0][18..24]].concat();
            assert_eq!([&bytes[14..24]].concat(), like_first);
            assert_eq!(bytes[26..34], frames[0][26..34]);
            let ip = ip_of(&frames[0]);
            (ip.source, ip.destination)
        } else {
            assert_eq!((kind, header.gso_type), (GsoKind::Tcp6, 4));
            let (ip, rest) = Ipv6Header::from_slice(&bytes[14..]).unwrap();
            let (like, _) = Ipv6Header::from_slice(&frames[0][14..]).unwrap();
            assert_eq!((ip.payload_length, ip.next_header), (0, IpNumber(0)));
            let expected = Ipv6Header { payload_length: 0, next_header: IpNumber(0), ..like };
            assert_eq!(ip, expected);
            // RFC 2675 §2: option 0xc2 with four bytes, the length of all behind the fixed header.
            let (option, _) = Ipv6RawExtHeader::from_slice(rest).unwrap();
            let whole = u32::try_from(bytes.len() - 54).unwrap();
            assert_eq!(option.next_header, IpNumber::TCP);
            assert_eq!(option.payload(), [&[0xc2, 4], &whole.to_be_bytes()[..]].concat());
            (ip.source.into(), ip.destination.into())
        };
        let (tcp, rest) = TcpHeader::from_slice(&bytes[transport..]).unwrap();
        let (like, _) = TcpHeader::from_slice(&frames[0][14 + network_len..]).unwrap();
        let len = bytes.len() - transport;
        let sum = checksum::pseudo_header(source, destination, 6, len).fold();
        assert_eq!(tcp, TcpHeader { psh: true, checksum: sum, ..like });
        assert!(*rest == payload, "every byte, in order");
        let parts: Vec<_> =
            packets.iter().map(|packet| part(packet, SIZE).data().to_vec()).collect();
        assert!(popped(&mut chain) == parts, "the super-frames are untouched");
    }
}

#[test]
fn what_a_packet_can_say_it_says() {
    for first in [Packet { payload_len: 2800, ..FIRST }, Packet { payload_len: 2800, ..FIRST }.v6()]
    {
        let second = Packet { identification: first.identification + 2, ..first.next() };
        let mut chain = begun(&first);
        chain.push(part(&second, SIZE)).unwrap();
        let (_, bytes) = written(&mut chain).unwrap();
        let ip = ip_of(&bytes[VnetHeader::LEN..]);
        assert_eq!(ip.len, bytes.len() - VnetHeader::LEN - 14);
        let mut whole = Frame::new();
        assert!(whole.append(&bytes[VnetHeader::LEN..]));
        decode(&VnetHeader::from_slice(&bytes).unwrap(), &mut whole).unwrap();
        let parts = [&first, &second].map(|packet| cut(&part(packet, SIZE)));
        assert_eq!(cut(&whole), parts.concat());
    }
}

/// The longest packet whose length fits its header, and the shortest whose length does not.
#[test]
fn the_length_is_left_out_only_where_it_does_not_fit() {
    for (first, most, len_at) in [(FIRST, 65_535 - 40, 16), (FIRST.v6(), 65_535 - 20, 18)] {
        for (payload_len, said) in [(most, 65_535u16), (most + 1, 0)] {
            let mut chain = begun(&first);
            let rest =
                Packet { payload_len: payload_len - FIRST.payload_len, ..first.next_super() };
            chain.push(part(&rest, SIZE)).unwrap();
            let (_, bytes) = written(&mut chain).unwrap();
            let at = VnetHeader::LEN + len_at;
            assert_eq!(bytes[at..at + 2], said.to_be_bytes());
        }
    }
}

#[test]
fn what_does_not_go_on_where_the_last_one_ended_is_refused() {
    let changes: [Change<Packet>; 18] = [
        ("flow", |packet| packet.port += 1),
        ("host", |packet| packet.host += 1),
        ("MAC address", |packet| packet.source_mac += 1),
        ("congestion mark", |packet| packet.traffic_class = 3),
        ("TTL", |packet| packet.ttl -= 1),
        ("gap", |packet| packet.sequence = packet.sequence.wrapping_add(1)),
        ("overlap", |packet| packet.sequence = packet.sequence.wrapping_sub(1)),
        ("retransmission", |packet| packet.sequence = FIRST.sequence),
        ("acknowledgment", |packet| packet.acknowledgment += 1),
        ("window", |packet| packet.window += 1),
        ("urgent pointer", |packet| packet.urgent = 1),
        ("options", |packet| packet.options = vec![1; 4]),
        ("ECE", |packet| packet.flags |= ECE),
        ("CWR", |packet| packet.flags |= CWR),
        ("URG", |packet| packet.flags |= URG),
        ("SYN", |packet| packet.flags |= SYN),
        ("RST", |packet| packet.flags |= RST),
        ("without ACK", |packet| packet.flags = 0),
    ];
    for first in [FIRST, FIRST.v6()] {
        for (name, change) in changes {
            let mut second = first.next_super();
            change(&mut second);
            assert_refused(&first, part(&second, SIZE), name);
        }
        assert_refused(&first, part(&first.next_super(), SIZE - 1), "another segment size");
        let other = Packet { is_ipv4: !first.is_ipv4, ..first.next_super() };
        assert_refused(&first, part(&other, SIZE), "the other protocol");
        let datagrams = Packet { is_tcp: false, flags: 0, ..first.next_super() };
        assert_refused(&first, part(&datagrams, SIZE), "datagrams");
        let mut single = Frame::new();
        assert!(single.append(&Packet { payload_len: 100, ..first.next_super() }.build()));
        single.meta.checksum = Checksum::Verified;
        assert_refused(&first, single, "a single packet");
    }
    let second = Packet { dont_fragment: false, ..FIRST.next_super() };
    assert_refused(&FIRST, part(&second, SIZE), "Don't Fragment");
    let second = Packet { flow_label: 1, ..FIRST.v6().next_super() };
    assert_refused(&FIRST.v6(), part(&second, SIZE), "flow label");
    let first = Packet { dont_fragment: false, ..FIRST };
    let second = Packet { identification: 7, ..first.next_super() };
    assert_refused(&first, part(&second, SIZE), "identification of what may be fragmented");
}

/// `frame` comes back as it is, and the chain is as it was.
#[track_caller]
fn assert_refused(first: &Packet, frame: Frame, name: &str) {
    let mut chain = begun(first);
    let (bytes, meta) = (frame.data().to_vec(), frame.meta);
    let refused = chain.push(frame).expect_err(name);
    assert!(refused.data() == bytes && refused.meta == meta, "{name}");
    assert!(written(&mut chain).is_none(), "{name}");
    chain.push(part(&first.next_super(), SIZE)).expect(name);
    assert_eq!(popped(&mut chain).len(), 2, "{name}");
}

#[test]
fn an_identification_counts_only_where_it_means_something() {
    for (dont_fragment, identification) in [(true, 7), (true, 1000), (false, 1000 + SEGMENTS)] {
        let first = Packet { dont_fragment, ..FIRST };
        let mut chain = begun(&first);
        let second = Packet { identification, ..first.next_super() };
        chain.push(part(&second, SIZE)).unwrap();
        // Counted from the first of all.
        let third =
            Packet { identification: identification.wrapping_add(SEGMENTS), ..second.next_super() };
        chain.push(part(&third, SIZE)).unwrap();
    }
}

#[test]
fn nothing_follows_a_short_segment_or_the_end() {
    for first in [FIRST, FIRST.v6()] {
        let short = Packet { payload_len: FIRST.payload_len - 1, ..first.clone() };
        let fin = Packet { flags: ACK | FIN, ..first };
        for last in [short, fin] {
            let mut chain = begun(&last);
            assert!(chain.is_full());
            assert!(chain.push(part(&last.next_super(), SIZE)).is_err());

            let before = Packet {
                sequence: last.sequence.wrapping_sub(u32::try_from(FIRST.payload_len).unwrap()),
                flags: ACK,
                payload_len: FIRST.payload_len,
                ..last.clone()
            };
            let mut chain = begun(&before);
            chain.push(part(&last, SIZE)).unwrap();
            assert!(chain.is_full(), "but it may be the last");
            assert!(chain.push(part(&last.next_super(), SIZE)).is_err());
            let (_, bytes) = written(&mut chain).unwrap();
            let transport = usize::from(VnetHeader::from_slice(&bytes).unwrap().csum_start.get());
            assert_eq!(bytes[VnetHeader::LEN + transport + 13], last.flags);
        }
    }
}

#[test]
fn a_chain_has_a_longest_length() {
    let mut chain = begun(&FIRST);
    let mut last = FIRST;
    for _ in 1..CHAIN_MAX {
        last = last.next_super();
        chain.push(part(&last, SIZE)).unwrap();
    }
    assert!(chain.is_full());
    assert!(chain.push(part(&last.next_super(), SIZE)).is_err());
    assert_eq!(popped(&mut chain).len(), CHAIN_MAX);
    assert!(!chain.is_full(), "it can begin anew");
    assert!(written(&mut chain).is_none());
    chain.push(part(&Packet { port: 1, ..FIRST }, SIZE)).unwrap();
}

#[test]
fn only_what_the_kernel_takes_gets_long() {
    for (first, long) in [
        (FIRST, LongFrames { tcp4: false, tcp6: true }),
        (FIRST.v6(), LongFrames { tcp4: true, tcp6: false }),
        (FIRST, LongFrames::NONE),
    ] {
        let mut chain = Chain::new(long);
        chain.push(part(&first, SIZE)).unwrap();
        assert!(chain.push(part(&first.next_super(), SIZE)).is_err());
        assert!(written(&mut chain).is_none());
        assert_eq!(popped(&mut chain), [part(&first, SIZE).data()]);
    }
}

#[test]
fn a_chain_begins_only_with_what_may_be_merged() {
    let changes: [Change<Packet>; 6] = [
        ("SYN", |packet| packet.flags |= SYN),
        ("RST", |packet| packet.flags |= RST),
        ("URG", |packet| packet.flags |= URG),
        ("CWR", |packet| packet.flags |= CWR),
        ("options of the network header", |packet| packet.has_ip_options = true),
        ("datagrams", |packet| packet.is_tcp = false),
    ];
    for packet in [FIRST, FIRST.v6()] {
        for (name, change) in changes {
            let mut packet = packet.clone();
            change(&mut packet);
            assert!(Chain::new(BOTH).push(part(&packet, SIZE)).is_err(), "{name}");
        }
        let mut plain = Frame::new();
        assert!(plain.append(&Packet { payload_len: 100, ..packet }.build()));
        assert!(Chain::new(BOTH).push(plain).is_err(), "no super-frame");
    }
}
