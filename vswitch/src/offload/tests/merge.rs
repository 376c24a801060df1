//! Frames of local ports are merged as packets out of the tunnel are, where that changes nothing on their way.

use proptest::prelude::*;

use super::coalesce::OPTIONS;
use super::*;
use crate::ix::PortIx;

const PORT: Ingress = Ingress::Port(PortIx(3));

/// Frames as a port's source makes them, and the pool that they are from.
struct Port {
    pool: Pool,
    batch: Batch,
}

impl Port {
    fn new() -> Self {
        Self { pool: Pool::new(200), batch: Batch::new() }
    }

    fn receive(&mut self, bytes: &[u8], checksum: Checksum, gso: Option<Gso>) {
        let mut frame = self.pool.take().unwrap();
        assert!(frame.append(bytes));
        frame.meta = Meta { ingress: PORT, gso, checksum };
        self.batch.push(frame);
    }

    fn receive_packet(&mut self, packet: &Packet) {
        self.receive(&packet.build(), Checksum::Verified, None);
    }

    /// Merges what was received; what the frames are then, each cut into packets.
    #[track_caller]
    fn merge(&mut self) -> Vec<Vec<Vec<u8>>> {
        Coalescer::new(OPTIONS).merge(&mut self.batch, &mut self.pool);
        assert_eq!(self.pool.in_use(), self.batch.len(), "each buffer is a frame's or free");
        self.batch.iter().map(cut).collect()
    }
}

fn packets() -> impl Strategy<Value = Vec<Packet>> {
    let flow = || (any::<[bool; 2]>(), 1u16..4);
    let flags = prop::sample::subsequence(vec![PSH, FIN, ECE], 0..=1);
    let step =
        (any::<prop::sample::Index>(), prop_oneof![4 => Just(500usize), 1 => 1usize..500], flags);
    (prop::collection::vec(flow(), 1..4), prop::collection::vec(step, 1..100)).prop_map(
        |(flows, steps)| {
            let begin = |([is_ipv4, is_tcp], port): &([bool; 2], u16)| Packet {
                is_ipv4: *is_ipv4,
                is_tcp: *is_tcp,
                port: *port,
                ..Packet::TCP
            };
            let mut flows: Vec<Packet> = flows.iter().map(begin).collect();
            let play = |(ix, payload_len, flags): (prop::sample::Index, usize, Vec<u8>)| {
                let ix = ix.index(flows.len());
                let flags = flags.into_iter().fold(ACK, |all, flag| all | flag);
                let packet = Packet { payload_len, flags, ..flows[ix].clone() };
                flows[ix] = packet.next();
                packet
            };
            steps.into_iter().map(play).collect()
        },
    )
}

proptest! {
    /// None of these can be fragmented, and nothing else sets a port's frames apart.
    #[test]
    fn frames_are_merged_as_packets_of_a_datagram_are(packets in packets()) {
        let mut port = Port::new();
        let (mut pool, mut pushed) = (Pool::new(200), Batch::new());
        let mut coalescer = Coalescer::new(OPTIONS);
        for packet in &packets {
            port.receive_packet(packet);
            coalescer.push(&packet.build(), PORT, &mut pool, &mut pushed).unwrap();
        }
        coalescer.finish(&mut pushed);
        port.merge();
        prop_assert_eq!(port.batch.len(), pushed.len());
        for (merged, pushed) in port.batch.iter().zip(&pushed) {
            prop_assert_eq!(merged.data(), pushed.data());
            prop_assert_eq!(merged.meta, pushed.meta);
        }
    }
}

#[test]
fn the_flows_of_a_port_become_a_frame_each() {
    let firsts = [Packet::TCP, Packet::TCP.v6(), Packet::UDP, Packet::UDP.v6()];
    let mut port = Port::new();
    let mut sent = vec![Vec::new(); firsts.len()];
    let mut next = firsts;
    for _ in 0..10 {
        for (sent, next) in sent.iter_mut().zip(&mut next) {
            port.receive_packet(next);
            sent.push(next.build());
            *next = next.next();
        }
    }
    assert_eq!(port.merge(), sent);
    assert!(port.batch.iter().all(|frame| frame.meta.ingress == PORT));
    assert!(port.batch.iter().all(|frame| frame.meta.gso.is_some_and(|gso| gso.segments == 10)));
}

#[test]
fn a_super_frame_stays_as_it_is_and_where_it_is() {
    let first = Packet { payload_len: 100, ..Packet::TCP };
    let large = Packet { payload_len: 1000, ..first.next() };
    let after =
        Packet { payload_len: 100, identification: large.identification + 10, ..large.next() };
    let last = after.next();
    let (mut frame, header) = super_frame(&large, 100);
    decode(&header, &mut frame).unwrap();

    let mut port = Port::new();
    port.receive_packet(&first);
    port.receive(frame.data(), frame.meta.checksum, frame.meta.gso);
    port.receive_packet(&after);
    port.receive_packet(&last);
    let merged = port.merge();
    assert_eq!(merged, [vec![first.build()], cut(&frame), vec![after.build(), last.build()]]);
    assert_eq!(port.batch[1].data(), frame.data());
    assert_eq!(port.batch[1].meta.gso, frame.meta.gso);
}

#[test]
fn what_the_port_left_to_be_summed_is_merged_and_what_it_carries_is_not() {
    for (packet, offset) in
        [(Packet::TCP, 16), (Packet::UDP, 6), (Packet::TCP.v6(), 16), (Packet::UDP.v6(), 6)]
    {
        let transport = u16::try_from(ip_of(&packet.build()).transport_offset).unwrap();
        let own = Checksum::Partial { start: transport, offset };
        // In what a tunnel of the pod's carries.
        let carried = Checksum::Partial { start: transport + 40, offset };
        for (checksum, frames) in
            [(own, 1), (Checksum::Verified, 1), (carried, 2), (Checksum::Filled, 2)]
        {
            let mut port = Port::new();
            for packet in [&packet, &packet.next()] {
                port.receive(&packet.build(), checksum, None);
            }
            Coalescer::new(OPTIONS).merge(&mut port.batch, &mut port.pool);
            assert_eq!(port.batch.len(), frames, "{checksum:?}");
            if frames == 2 {
                assert!(port.batch.iter().all(|frame| frame.meta.checksum == checksum));
                assert_eq!(port.batch[1].data(), packet.next().build());
            }
        }
    }
}

/// On a narrow path a packet would be fragmented, and each of them by itself.
#[test]
fn what_may_be_fragmented_is_merged_only_if_it_never_needs_to_be() {
    for (dont_fragment, ip_len, frames) in [(true, 577, 1), (false, 576, 1), (false, 577, 2)] {
        for packet in [Packet::TCP, Packet::UDP] {
            let payload_len = ip_len - if packet.is_tcp { 40 } else { 28 };
            let first = Packet { dont_fragment, payload_len, ..packet };
            let mut port = Port::new();
            port.receive_packet(&first);
            port.receive_packet(&first.next());
            let merged = port.merge();
            assert_eq!(merged.len(), frames, "{dont_fragment} {ip_len}");
            assert_eq!(merged.concat(), [first.build(), first.next().build()]);
        }
    }
}

#[test]
fn nothing_overtakes_in_its_flow() {
    let first = Packet { payload_len: 96, ..Packet::UDP };
    let fragment = Packet { fragment: Some((0, true)), dont_fragment: false, ..first.next() };
    let empty = Packet { payload_len: 0, ..Packet::TCP.next() };
    for (stream, frames) in [
        (vec![first.clone(), fragment, first.next()], 3),
        (vec![Packet::TCP, empty.clone(), empty.next(), empty.next().next()], 4),
        (vec![Packet::TCP.next(), Packet::TCP, Packet::TCP.next()], 2),
    ] {
        let mut port = Port::new();
        stream.iter().for_each(|packet| port.receive_packet(packet));
        let merged = port.merge();
        let sent: Vec<_> = stream.iter().map(Packet::build).collect();
        assert_eq!(merged.concat(), sent);
        assert_eq!(merged.len(), frames);
    }
}

#[test]
fn what_is_no_packet_of_a_flow_stays_in_its_place() {
    let arp =
        [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat();
    let mut port = Port::new();
    port.receive_packet(&Packet::TCP);
    port.receive(&arp, Checksum::Filled, None);
    port.receive(&[1, 2, 3], Checksum::Filled, None);
    // Padding is lost with the merge, or it would stand in the middle.
    let second = [&Packet::TCP.next().build()[..], &[0; 6]].concat();
    port.receive(&second, Checksum::Verified, None);
    Coalescer::new(OPTIONS).merge(&mut port.batch, &mut port.pool);
    assert_eq!(port.pool.in_use(), 3);
    assert_eq!(cut(&port.batch[0]), [Packet::TCP.build(), Packet::TCP.next().build()]);
    assert_eq!(port.batch[1].data(), arp);
    assert_eq!(port.batch[2].data(), [1, 2, 3]);
}

#[test]
fn a_batch_leaves_nothing_for_the_next() {
    let mut coalescer = Coalescer::new(OPTIONS);
    let mut port = Port::new();
    for packet in [Packet::TCP, Packet::TCP.next()] {
        port.receive_packet(&packet);
        coalescer.merge(&mut port.batch, &mut port.pool);
        assert_eq!(port.batch.len(), 1);
        assert_eq!(port.batch[0].data(), packet.build());
        assert_eq!(port.batch[0].meta.gso, None);
        port.pool.put(port.batch.remove(0));
    }
    assert_eq!(port.pool.in_use(), 0);
}
