//! What a kernel hands over is checked, and cut as a network card would.

use proptest::prelude::*;

use super::*;

fn packets() -> impl Strategy<Value = Packet> {
    (any::<[bool; 3]>(), any::<(u16, u32, u8, u8)>(), 0usize..=10, 1usize..5000).prop_map(
        |(
            [is_ipv4, is_tcp, dont_fragment],
            (identification, sequence, flags, ttl),
            options,
            len,
        )| {
            Packet {
                is_ipv4,
                is_tcp,
                dont_fragment,
                identification,
                sequence,
                ttl,
                flags: if is_tcp { flags } else { 0 },
                options: if is_tcp { vec![1; options * 4] } else { Vec::new() },
                payload_len: len,
                ..Packet::TCP
            }
        },
    )
}

proptest! {
    #[test]
    fn a_cut_is_what_a_network_card_would_send(packet in packets(), size in 3u16..3000) {
        let (mut frame, header) = super_frame(&packet, size);
        decode(&header, &mut frame).unwrap();
        let size = usize::from(size);
        let cut = cut(&frame);
        prop_assert_eq!(cut.len(), packet.payload_len.div_ceil(size));
        let last = cut.len() - 1;
        for (ix, got) in cut.iter().enumerate() {
            assert_sound(got);
            // Built anew from what must be true of packet `ix`.
            let ahead = ix * size;
            let mut flags = packet.flags;
            if ix != 0 {
                flags &= !CWR;
            }
            if ix != last {
                flags &= !(FIN | PSH);
            }
            let want = Packet {
                identification: packet.identification.wrapping_add(u16::try_from(ix).unwrap()),
                sequence: packet.sequence.wrapping_add(u32::try_from(ahead).unwrap()),
                flags,
                payload_len: size.min(packet.payload_len - ahead),
                ..packet.clone()
            };
            prop_assert_eq!(got, &want.build());
        }
    }

    #[test]
    fn a_partial_checksum_is_completed(packet in packets(), padding in 0usize..30) {
        let (mut frame, header) = super_frame(&packet, 0);
        let header = VnetHeader { gso_type: 0, ..header };
        prop_assert!(frame.append(&vec![0xff; padding]));
        decode(&header, &mut frame).unwrap();
        prop_assert_eq!(cut(&frame), vec![packet.build()]);
        checksum::complete(&mut frame).unwrap();
        prop_assert_eq!(frame.data(), &packet.build()[..]);
        prop_assert_eq!(frame.meta.checksum, Checksum::Filled);
    }

    #[test]
    fn encode_gives_back_what_decode_took(packet in packets(), size in 100u16..3000) {
        let (mut frame, header) = super_frame(&packet, size);
        decode(&header, &mut frame).unwrap();
        let got = encode(&frame);
        let want = match frame.meta.gso {
            Some(_) => {
                let header_len = if packet.is_tcp { 20 + packet.options.len() } else { 8 };
                let hdr_len = header.csum_start.get() + u16::try_from(header_len).unwrap();
                VnetHeader { hdr_len: U16::new(hdr_len), ..header }
            }
            None => VnetHeader { gso_type: 0, hdr_len: U16::ZERO, gso_size: U16::ZERO, ..header },
        };
        prop_assert_eq!(got, want);
        prop_assert_eq!(VnetHeader::from_slice(&got.to_bytes()), Some(got));
    }

    /// Whatever the header says and wherever it points, there is an answer, and cutting works.
    #[test]
    fn hostile_headers_are_fine(
        packet in packets(),
        bytes in any::<[u8; 10]>(),
        keep in any::<[bool; 10]>(),
        flips in prop::collection::vec((0usize..80, any::<u8>()), 0..3),
    ) {
        let (mut frame, header) = super_frame(&packet, 100);
        let mut header = header.to_bytes();
        for ix in 0..10 {
            if !keep[ix] {
                header[ix] = bytes[ix];
            }
        }
        for (at, value) in flips {
            if let Some(byte) = frame.data_mut().get_mut(at) {
                *byte ^= value;
            }
        }
        let header = VnetHeader::from_slice(&header).unwrap();
        let before = frame.data().to_vec();
        if decode(&header, &mut frame).is_ok() && wire::parse(frame.data()).is_ok() {
            prop_assert_eq!(frame.data(), &before[..frame.len()]);
            let packets = cut(&frame);
            prop_assert!(packets.len() <= usize::from(SEGMENTS_MAX));
            for packet in packets {
                // Addresses, which may have been checked, are not what a checksum is written to.
                prop_assert_eq!(ip_of(&packet).source, ip_of(&before).source);
            }
            encode(&frame);
        }
    }
}

#[test]
fn contradicting_headers_are_refused() {
    let cases: [Change<VnetHeader>; 12] = [
        ("segmentation without checksum", |header| header.flags = 0),
        ("size zero", |header| header.gso_size = U16::ZERO),
        ("too many packets", |header| header.gso_size = U16::new(1)),
        ("TCP over the other IP", |header| header.gso_type = 4),
        ("UDP fragmentation", |header| header.gso_type = 3),
        ("UDP segmentation of TCP", |header| header.gso_type = 5),
        ("ECN of nothing", |header| header.gso_type = 0x80),
        ("unknown type", |header| header.gso_type = 9),
        ("start in the IP header", |header| header.csum_start = U16::new(26)),
        ("start behind the frame", |header| header.csum_start = U16::new(65_535)),
        ("offset elsewhere", |header| header.csum_offset = U16::new(6)),
        ("offset behind the frame", |header| header.csum_offset = U16::new(65_535)),
    ];
    let packet = Packet { payload_len: 5000, ..Packet::TCP };
    for (name, change) in cases {
        let (mut frame, mut header) = super_frame(&packet, 1000);
        change(&mut header);
        assert_eq!(decode(&header, &mut frame), Err(Reason::BadOffload), "{name}");
    }
    let (mut frame, header) = super_frame(&packet, 1000);
    frame.set_len(1000);
    assert_eq!(decode(&header, &mut frame), Err(Reason::Malformed), "cut short");
}

/// A pod may have tunnels of its own.
#[test]
fn a_checksum_inside_a_tunnel_is_completed() {
    let inner = Packet::TCP.build();
    let outer = Packet { payload_len: 8 + inner.len(), ..Packet::UDP };
    let (mut frame, header) = super_frame(&outer, 0);
    let inner_at = 14 + 20 + 8 + 8;
    frame.data_mut()[40..42].fill(0);
    frame.data_mut()[inner_at..].copy_from_slice(super_frame(&Packet::TCP, 0).0.data());
    let header = VnetHeader {
        gso_type: 0,
        csum_start: U16::new(u16::try_from(inner_at).unwrap() + 34),
        csum_offset: U16::new(16),
        ..header
    };
    decode(&header, &mut frame).unwrap();
    assert_eq!(encode(&frame).csum_start, header.csum_start);
    assert_eq!(cut(&frame)[0][inner_at..], inner);
    // Not in the UDP header, and not where the tunnel's packet would be cut.
    let ports = VnetHeader { csum_start: U16::new(34), csum_offset: U16::new(2), ..header };
    assert_eq!(decode(&ports, &mut frame), Err(Reason::BadOffload));
    let cut = VnetHeader { gso_type: 5, gso_size: U16::new(10), ..header };
    assert_eq!(decode(&cut, &mut frame), Err(Reason::BadOffload));
}

#[test]
fn a_udp_length_that_differs_from_the_packet_is_refused() {
    let (mut frame, header) = super_frame(&Packet { payload_len: 5000, ..Packet::UDP }, 1000);
    frame.data_mut()[38..40].copy_from_slice(&100u16.to_be_bytes());
    assert_eq!(decode(&header, &mut frame), Err(Reason::BadOffload));
}

#[test]
fn a_fragment_has_no_checksum_to_complete() {
    let (mut frame, header) = super_frame(&Packet { payload_len: 808, ..Packet::UDP }, 1000);
    frame.data_mut()[20] = 0x20;
    checksum::set_ipv4_header(&mut frame.data_mut()[14..34]);
    assert_eq!(decode(&header, &mut frame), Err(Reason::BadOffload));
}

#[test]
fn the_kernels_word_for_a_checksum_is_taken() {
    let mut frame = Frame::new();
    assert!(frame.append(&Packet::TCP.build()));
    decode(&VnetHeader { flags: 2, ..VnetHeader::NONE }, &mut frame).unwrap();
    assert_eq!(frame.meta.checksum, Checksum::Verified);
    assert_eq!(encode(&frame).flags, 2);
    decode(&VnetHeader::NONE, &mut frame).unwrap();
    assert_eq!(frame.meta.checksum, Checksum::Filled);
    assert_eq!(encode(&frame), VnetHeader::NONE);
}
