//! What is merged, and what is not. That cutting gives it back is shown in [`super::roundtrip`].

use proptest::prelude::*;

use super::*;

pub(super) const FROM: Ingress = Ingress::Node(NodeIx(3));
pub(super) const OPTIONS: Options = Options { merge_udp: true, mtu: 1450 };

#[test]
fn a_bulk_stream_becomes_one_frame() {
    for first in [Packet::TCP, Packet::TCP.v6(), Packet::UDP, Packet::UDP.v6()] {
        let mut stream = vec![Packet { payload_len: 1380, ..first }];
        while stream.len() < 40 {
            stream.push(stream.last().unwrap().next());
        }
        stream.last_mut().unwrap().payload_len = 7;
        let packets: Vec<_> = stream.iter().map(Packet::build).collect();
        let batch = coalesce(&packets, OPTIONS);
        assert_eq!(batch.len(), 1);
        let kind = match (stream[0].is_tcp, stream[0].is_ipv4) {
            (true, true) => GsoKind::Tcp4,
            (true, false) => GsoKind::Tcp6,
            (false, _) => GsoKind::Udp,
        };
        assert_eq!(batch[0].meta.gso, Some(Gso { kind, size: 1380, segments: 40 }));
        assert_eq!(batch[0].meta.ingress, FROM);
        assert_eq!(cut(&batch[0]), packets);
        // What is written to a TAP is what a kernel would have handed over.
        let mut again = Frame::new();
        assert!(again.append(batch[0].data()));
        decode(&encode(&batch[0]), &mut again).unwrap();
        assert_eq!(again.meta.gso, batch[0].meta.gso);
        assert_eq!(again.meta.checksum, batch[0].meta.checksum);
    }
}

#[test]
fn a_frame_ends_at_the_longest_packet() {
    for first in [Packet::TCP, Packet::TCP.v6()] {
        let mut stream = vec![Packet { payload_len: 1380, ..first }];
        while stream.len() < 100 {
            stream.push(stream.last().unwrap().next());
        }
        let packets: Vec<_> = stream.iter().map(Packet::build).collect();
        let batch = coalesce(&packets, OPTIONS);
        assert_eq!(batch.len(), 3, "47 packets of 1380 bytes fit into 65 535");
        assert_eq!(batch.iter().flat_map(cut).collect::<Vec<_>>(), packets);
    }
}

/// How the second of two packets has to differ so that it is not merged.
#[test]
fn whatever_cutting_would_not_give_back_is_not_merged() {
    let tcp: [Change<Packet>; 18] = [
        ("flow", |packet| packet.port += 1),
        ("host", |packet| packet.host += 1),
        ("MAC address", |packet| packet.source_mac += 1),
        ("congestion mark", |packet| packet.traffic_class = 3),
        ("TTL", |packet| packet.ttl -= 1),
        ("gap", |packet| packet.sequence = packet.sequence.wrapping_add(1)),
        ("retransmission", |packet| packet.sequence = Packet::TCP.sequence),
        ("acknowledgment", |packet| packet.acknowledgment += 1),
        ("window", |packet| packet.window += 1),
        ("urgent pointer", |packet| packet.urgent = 1),
        ("longer", |packet| packet.payload_len += 1),
        ("empty", |packet| packet.payload_len = 0),
        ("SYN", |packet| packet.flags |= SYN),
        ("RST", |packet| packet.flags |= RST),
        ("URG", |packet| packet.flags |= URG),
        ("CWR", |packet| packet.flags |= CWR),
        ("ECE", |packet| packet.flags |= ECE),
        ("options", |packet| packet.options = vec![1; 4]),
    ];
    for (name, change) in tcp {
        for first in [Packet::TCP, Packet::TCP.v6()] {
            let mut second = first.next();
            change(&mut second);
            assert_eq!(coalesce(&[first.build(), second.build()], OPTIONS).len(), 2, "{name}");
        }
    }
    let v4: [Change<Packet>; 3] = [
        ("identification", |packet| packet.identification += 1),
        ("identification backwards", |packet| packet.identification -= 2),
        ("Don't Fragment", |packet| packet.dont_fragment ^= true),
    ];
    for (name, change) in v4 {
        for first in [Packet::TCP, Packet::UDP] {
            let mut second = first.next();
            change(&mut second);
            assert_eq!(coalesce(&[first.build(), second.build()], OPTIONS).len(), 2, "{name}");
        }
    }
    let mut second = Packet::TCP.v6().next();
    second.flow_label = 1;
    assert_eq!(coalesce(&[Packet::TCP.v6().build(), second.build()], OPTIONS).len(), 2);
}

#[test]
fn an_identification_may_stand_still_only_where_it_means_nothing() {
    for (dont_fragment, frames) in [(true, 1), (false, 3)] {
        let first = Packet { dont_fragment, identification: 0, ..Packet::TCP };
        let still = |packet: &Packet| Packet { identification: 0, ..packet.next() };
        let second = still(&first);
        let stream = [first.build(), second.build(), still(&second).build()];
        assert_eq!(coalesce(&stream, OPTIONS).len(), frames);
    }
    // It stands still, then counts.
    let second = Packet { identification: 1000, ..Packet::TCP.next() };
    let stream = [Packet::TCP.build(), second.build(), second.next().build()];
    assert_eq!(coalesce(&stream, OPTIONS).len(), 2);
}

#[test]
fn flags_that_end_or_begin_a_frame() {
    let first = Packet { flags: ACK | CWR | ECE, ..Packet::TCP };
    let second = Packet { flags: ACK | ECE | PSH, ..first.next() };
    let third = Packet { flags: ACK | ECE | FIN, ..second.next() };
    let after = third.next();
    let stream = [first.build(), second.build(), third.build(), after.build()];
    let batch = coalesce(&stream, OPTIONS);
    assert_eq!(batch.len(), 2, "nothing is appended behind FIN");
    assert_eq!(encode(&batch[0]).gso_type, 0x81);
    let cut = cut(&batch[0]);
    assert_eq!(cut[0], stream[0]);
    assert_eq!(cut[1][47], ACK | ECE);
    assert_eq!(cut[2][47], ACK | ECE | FIN | PSH, "PSH moves to the last packet");
}

#[test]
fn a_short_packet_is_the_last() {
    let second = Packet { payload_len: 99, ..Packet::TCP.next() };
    let third = Packet { payload_len: 99, ..second.next() };
    let stream = [Packet::TCP.build(), second.build(), third.build()];
    let batch = coalesce(&stream, OPTIONS);
    assert_eq!(batch.iter().map(Frame::packets).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(batch[1].meta.checksum, Checksum::Verified);
    assert_eq!(batch.iter().flat_map(cut).collect::<Vec<_>>(), stream);
}

#[test]
fn datagrams_are_merged_only_where_they_may_be() {
    let stream = [Packet::UDP.build(), Packet::UDP.next().build()];
    assert_eq!(coalesce(&stream, OPTIONS).len(), 1);
    assert_eq!(coalesce(&stream, Options { merge_udp: false, ..OPTIONS }).len(), 2);

    let mut stream = vec![Packet::UDP];
    while stream.len() <= usize::from(UDP_SEGMENTS_MAX) {
        stream.push(stream.last().unwrap().next());
    }
    let packets: Vec<_> = stream.iter().map(Packet::build).collect();
    assert_eq!(coalesce(&packets, OPTIONS).len(), 2);
}

#[test]
fn datagrams_without_checksum_stay_as_they_are() {
    let mut stream = [Packet::UDP.build(), Packet::UDP.next().build()];
    for packet in &mut stream {
        packet[40..42].fill(0);
    }
    let batch = coalesce(&stream, OPTIONS);
    assert_eq!(batch.len(), 2);
    assert_eq!(batch[0].meta.checksum, Checksum::Filled);
    assert_eq!(batch.iter().flat_map(cut).collect::<Vec<_>>(), stream);
}

#[test]
fn flows_do_not_mix_and_are_told_apart_by_ingress() {
    let second = Packet::TCP.next().build();
    let mut pool = Pool::new(4);
    let mut batch = Batch::new();
    let mut coalescer = Coalescer::new(OPTIONS);
    coalescer.push(&Packet::TCP.build(), FROM, &mut pool, &mut batch).unwrap();
    let elsewhere = Ingress::Node(NodeIx(4));
    coalescer.push(&second, elsewhere, &mut pool, &mut batch).unwrap();
    assert_eq!(batch.len(), 2);
    coalescer.push(&second, FROM, &mut pool, &mut batch).unwrap();
    coalescer.finish(&mut batch);
    assert_eq!(batch.len(), 2);
    assert_eq!(batch[0].packets(), 2);
    // Nothing is left over for the next batch.
    batch.clear();
    coalescer.push(&Packet::TCP.next().next().build(), FROM, &mut pool, &mut batch).unwrap();
    coalescer.finish(&mut batch);
    assert_eq!(batch.len(), 1);
    assert_eq!(batch[0].packets(), 1);
}

#[test]
fn a_fragment_is_not_overtaken() {
    let mut fragment = Packet { payload_len: 96, ..Packet::UDP }.build();
    fragment[20] = 0x20;
    checksum::set_ipv4_header(&mut fragment[14..34]);
    let stream = [Packet::UDP.build(), fragment, Packet::UDP.next().build()];
    let batch = coalesce(&stream, OPTIONS);
    assert_eq!(batch.iter().flat_map(cut).collect::<Vec<_>>(), stream);
}

#[test]
fn damaged_packets_are_refused_and_leave_no_trace() {
    let mut pool = Pool::new(1);
    let mut batch = Batch::new();
    let mut coalescer = Coalescer::new(OPTIONS);
    let mut push =
        |packet: &[u8], batch: &mut Batch| coalescer.push(packet, FROM, &mut pool, batch);
    for packet in [Packet::TCP, Packet::TCP.v6(), Packet::UDP, Packet::UDP.v6()] {
        let mut packet = packet.build();
        *packet.last_mut().unwrap() ^= 1;
        assert_eq!(push(&packet, &mut batch), Err(Reason::BadChecksum));
        assert_eq!(push(&packet[..30], &mut batch), Err(Reason::Malformed));
    }
    assert!(batch.is_empty());
    push(&Packet::TCP.build(), &mut batch).unwrap();
    let other = Packet { port: 1, ..Packet::TCP }.build();
    assert_eq!(push(&other, &mut batch), Err(Reason::PoolEmpty));
    push(&Packet::TCP.next().build(), &mut batch).unwrap();
    coalescer.finish(&mut batch);
    assert_eq!(batch.len(), 1);
    assert_eq!(batch[0].packets(), 2);
}

/// What a kernel VTEP over a device with checksum offload sends.
fn partial(packet: &Packet) -> Vec<u8> {
    super_frame(packet, 0).0.data().to_vec()
}

#[test]
fn partial_checksums_are_accepted_and_merged() {
    for first in [Packet::TCP, Packet::TCP.v6(), Packet::UDP, Packet::UDP.v6()] {
        let (second, third) = (first.next(), first.next().next());
        let single = coalesce(&[partial(&first)], OPTIONS);
        assert!(matches!(single[0].meta.checksum, Checksum::Partial { .. }));
        assert_eq!(cut(&single[0]), [first.build()]);
        let merged = coalesce(&[partial(&first), second.build(), partial(&third)], OPTIONS);
        assert_eq!(merged.len(), 1);
        assert_eq!(cut(&merged[0]), [first.build(), second.build(), third.build()]);
    }
}

#[test]
fn an_oversize_partial_segment_becomes_a_super_frame_again() {
    for first in [Packet::TCP, Packet::TCP.v6()] {
        let packet = Packet { payload_len: 60_000, options: vec![1; 12], ..first };
        let batch = coalesce(&[partial(&packet)], OPTIONS);
        let headers_len = if packet.is_ipv4 { 20 } else { 40 } + 32;
        let gso = batch[0].meta.gso.unwrap();
        assert_eq!(usize::from(gso.size), 1450 - headers_len);
        let cut = cut(&batch[0]);
        assert!(cut.iter().all(|packet| packet.len() <= 14 + 1450));
        cut.iter().for_each(|packet| assert_sound(packet));
        let payload: Vec<u8> =
            cut.iter().flat_map(|packet| &packet[14 + headers_len..]).copied().collect();
        assert_eq!(payload, packet.build()[14 + headers_len..]);
        // With a checksum of its own it is what it is: a packet that is too long.
        assert_eq!(coalesce(&[packet.build()], OPTIONS)[0].meta.gso, None);
    }
    let datagram = Packet { payload_len: 60_000, ..Packet::UDP };
    let batch = coalesce(&[partial(&datagram)], OPTIONS);
    assert_eq!(batch[0].meta.gso, None);
    assert!(matches!(batch[0].meta.checksum, Checksum::Partial { .. }));
}

proptest! {
    #[test]
    fn any_bytes_are_fine(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 1..8),
    ) {
        let mut pool = Pool::new(8);
        let mut batch = Batch::new();
        let mut coalescer = Coalescer::new(OPTIONS);
        let accepted = packets
            .iter()
            .filter(|packet| coalescer.push(packet, FROM, &mut pool, &mut batch).is_ok())
            .count();
        coalescer.finish(&mut batch);
        let packets: u64 = batch.iter().map(Frame::packets).sum();
        prop_assert_eq!(packets, u64::try_from(accepted).unwrap());
    }
}

fn coalesce(packets: &[Vec<u8>], options: Options) -> Batch {
    let mut pool = Pool::new(packets.len());
    let mut batch = Batch::new();
    let mut coalescer = Coalescer::new(options);
    for packet in packets {
        coalescer.push(packet, FROM, &mut pool, &mut batch).unwrap();
    }
    coalescer.finish(&mut batch);
    batch
}
