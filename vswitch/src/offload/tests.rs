//! Cutting gives packets whose every checksum etherparse confirms, and gives back what was coalesced.

use etherparse::{
    IpHeaders, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, NetSlice, PacketBuilder,
    SlicedPacket, TcpHeader, TcpOptions, TransportSlice,
};
use proptest::prelude::*;
use zerocopy::byteorder::native_endian::U16;

use super::*;
use crate::frame::{Batch, Checksum, Frame, Gso, GsoKind, Ingress, Pool};
use crate::port::NodeIx;
use crate::verdict::Reason;
use crate::wire::tcp::flag::{ACK, CWR, ECE, FIN, PSH, RST, SYN, URG};
use crate::wire::{self, Network, checksum};

const FROM: Ingress = Ingress::Node(NodeIx(3));
const OPTIONS: Options = Options { merge_udp: true, mtu: 1450 };

/// A change to a thing, and its name.
type Change<T> = (&'static str, fn(&mut T));

/// A TCP segment or UDP datagram, in words.
#[derive(Debug, Clone, PartialEq)]
struct Packet {
    is_ipv4: bool,
    is_tcp: bool,
    /// The last byte of the source address.
    host: u8,
    source_mac: u8,
    traffic_class: u8,
    ttl: u8,
    identification: u16,
    dont_fragment: bool,
    flow_label: u32,
    port: u16,
    sequence: u32,
    acknowledgment: u32,
    window: u16,
    urgent: u16,
    flags: u8,
    options: Vec<u8>,
    payload_len: usize,
}

impl Packet {
    const TCP: Self = Self::plain(true, ACK);
    const UDP: Self = Self::plain(false, 0);

    const fn plain(is_tcp: bool, flags: u8) -> Self {
        Self {
            is_ipv4: true,
            is_tcp,
            host: 5,
            source_mac: 1,
            traffic_class: 0,
            ttl: 63,
            identification: 1000,
            dont_fragment: true,
            flow_label: 0x12345,
            port: 40_000,
            sequence: 0xffff_f000,
            acknowledgment: 77,
            window: 500,
            urgent: 0,
            flags,
            options: Vec::new(),
            payload_len: 100,
        }
    }

    fn v6(self) -> Self {
        Self { is_ipv4: false, ..self }
    }

    /// The packet that follows in the same flow.
    fn next(&self) -> Self {
        Self {
            identification: self.identification.wrapping_add(1),
            sequence: self.sequence.wrapping_add(u32::try_from(self.payload_len).unwrap()),
            ..self.clone()
        }
    }

    fn ip_headers(&self) -> IpHeaders {
        if self.is_ipv4 {
            let mut header = Ipv4Header {
                source: [10, 244, 1, self.host],
                destination: [10, 244, 2, 7],
                time_to_live: self.ttl,
                identification: self.identification,
                dont_fragment: self.dont_fragment,
                ..Default::default()
            };
            header.dscp = (self.traffic_class >> 2).try_into().unwrap();
            header.ecn = (self.traffic_class & 3).try_into().unwrap();
            return IpHeaders::Ipv4(header, Ipv4Extensions::default());
        }
        let mut source = [0xfd; 16];
        source[15] = self.host;
        let header = Ipv6Header {
            source,
            destination: [0xfc; 16],
            hop_limit: self.ttl,
            traffic_class: self.traffic_class,
            flow_label: self.flow_label.try_into().unwrap(),
            ..Default::default()
        };
        IpHeaders::Ipv6(header, Ipv6Extensions::default())
    }

    fn build(&self) -> Vec<u8> {
        let payload: Vec<u8> = (0..self.payload_len)
            .map(|ix| {
                let at = self.sequence.wrapping_add(u32::try_from(ix).unwrap());
                (at.wrapping_mul(0x9e37_79b1) >> 24) as u8
            })
            .collect();
        let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, self.source_mac], [2, 0, 0, 0, 0, 9])
            .ip(self.ip_headers());
        let mut packet = Vec::new();
        if !self.is_tcp {
            step.udp(self.port, 53).write(&mut packet, &payload).unwrap();
            return packet;
        }
        let has = |flag: u8| self.flags & flag != 0;
        let header = TcpHeader {
            source_port: self.port,
            destination_port: 80,
            sequence_number: self.sequence,
            acknowledgment_number: self.acknowledgment,
            window_size: self.window,
            urgent_pointer: self.urgent,
            fin: has(FIN),
            syn: has(SYN),
            rst: has(RST),
            psh: has(PSH),
            ack: has(ACK),
            urg: has(URG),
            ece: has(ECE),
            cwr: has(CWR),
            options: TcpOptions::try_from_slice(&self.options).unwrap(),
            ..Default::default()
        };
        step.tcp_header(header).write(&mut packet, &payload).unwrap();
        packet
    }
}

/// Checks every length and checksum in `packet` with etherparse.
fn assert_sound(packet: &[u8]) {
    let sliced = SlicedPacket::from_ethernet(packet).unwrap();
    let transport = sliced.transport.as_ref().unwrap();
    let (got, want, covered) = match (sliced.net.as_ref().unwrap(), transport) {
        (NetSlice::Ipv4(net), transport) => {
            let header = net.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let (source, destination) = (header.source, header.destination);
            match transport {
                TransportSlice::Tcp(tcp) => (
                    tcp.checksum(),
                    tcp.calc_checksum_ipv4(source, destination).unwrap(),
                    tcp.slice().len(),
                ),
                TransportSlice::Udp(udp) => (
                    udp.checksum(),
                    udp.to_header()
                        .calc_checksum_ipv4_raw(source, destination, udp.payload())
                        .unwrap(),
                    udp.slice().len(),
                ),
                TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => {
                    panic!("neither TCP nor UDP")
                }
            }
        }
        (NetSlice::Ipv6(net), transport) => {
            let header = net.header().to_header();
            let (source, destination) = (header.source, header.destination);
            match transport {
                TransportSlice::Tcp(tcp) => (
                    tcp.checksum(),
                    tcp.calc_checksum_ipv6(source, destination).unwrap(),
                    tcp.slice().len(),
                ),
                TransportSlice::Udp(udp) => (
                    udp.checksum(),
                    udp.to_header()
                        .calc_checksum_ipv6_raw(source, destination, udp.payload())
                        .unwrap(),
                    udp.slice().len(),
                ),
                TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_) => {
                    panic!("neither TCP nor UDP")
                }
            }
        }
        (NetSlice::Arp(_), _) => panic!("not IP"),
    };
    assert_eq!(got, want);
    let ip = ip_of(packet);
    assert_eq!(wire::ETHERNET_LEN + ip.len, packet.len(), "no padding");
    assert_eq!(ip.transport_offset + covered, packet.len());
}

fn ip_of(packet: &[u8]) -> wire::Ip {
    match wire::parse(packet).unwrap().network {
        Network::Ip(ip) => ip,
        Network::Arp => panic!("not IP"),
    }
}

fn cut(frame: &Frame) -> Vec<Vec<u8>> {
    let headers = wire::parse(frame.data()).unwrap();
    let cut = Cut::new(frame, &headers).unwrap();
    assert_eq!(u64::try_from(cut.segments()).unwrap(), frame.packets());
    (0..cut.segments())
        .map(|ix| {
            let mut packet = vec![0xee; cut.segment_len(ix) + 1];
            assert_eq!(cut.write(ix, &mut packet), cut.segment_len(ix));
            assert_eq!(packet.pop(), Some(0xee), "nothing is written behind the packet");
            packet
        })
        .collect()
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

/// What a pod's kernel hands over: `packet` with its checksum left to do, and the header in front.
fn super_frame(packet: &Packet, size: u16) -> (Frame, VnetHeader) {
    let bytes = packet.build();
    let ip = ip_of(&bytes);
    let offset = if packet.is_tcp { 16 } else { 6 };
    let mut frame = Frame::new();
    assert!(frame.append(&bytes));
    let len = bytes.len() - ip.transport_offset;
    let sum = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, len).fold();
    let at = ip.transport_offset + offset;
    frame.data_mut()[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let header = VnetHeader {
        flags: 1,
        gso_type: match (packet.is_tcp, packet.is_ipv4) {
            (true, true) => 1,
            (true, false) => 4,
            (false, _) => 5,
        } | if packet.flags & CWR != 0 { 0x80 } else { 0 },
        hdr_len: U16::new(u16::MAX),
        gso_size: U16::new(size),
        csum_start: U16::new(u16::try_from(ip.transport_offset).unwrap()),
        csum_offset: U16::new(u16::try_from(offset).unwrap()),
    };
    (frame, header)
}

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
fn more_flows_than_places_are_fine() {
    let flows = 200;
    let mut packets = Vec::new();
    for round in 0..2 {
        for port in 0..flows {
            let first = Packet { port, ..Packet::TCP };
            packets.push(if round == 0 { first.build() } else { first.next().build() });
        }
    }
    let batch = coalesce(&packets, OPTIONS);
    let cut: Vec<_> = batch.iter().flat_map(cut).collect();
    assert_eq!(sorted(&cut), sorted(&packets));
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

/// One packet of a stream: which flow, what happens, and a number for it.
type Step = (usize, u8, u16);

/// Plays the steps of several flows, some of which deviate from the plain bulk stream.
fn stream(steps: &[Step], exact: bool) -> Vec<Packet> {
    let mut flows = [
        Packet { port: 1, ..Packet::TCP },
        Packet { port: 2, dont_fragment: false, options: vec![1; 12], ..Packet::TCP },
        Packet { port: 3, ..Packet::TCP.v6() },
        Packet { port: 4, dont_fragment: false, ..Packet::UDP },
        Packet { port: 5, payload_len: 50, ..Packet::UDP.v6() },
        Packet { port: 6, identification: 0xfffe, ..Packet::TCP },
    ];
    let mut packets = Vec::new();
    for &(flow, action, number) in steps {
        let flow = &mut flows[flow];
        let small = u8::try_from(number % 256).unwrap();
        let mut once = flow.clone();
        match action {
            0 => once.payload_len = usize::from(number % 100) + 1,
            1 => once.payload_len = 100 + usize::from(number % 300),
            2 => once.sequence = flow.sequence.wrapping_add(u32::from(number)),
            3 => once.sequence = flow.sequence.wrapping_sub(100),
            4 if flow.is_tcp => once.flags = small,
            5 if flow.is_tcp => once.flags = ACK | FIN,
            6 if flow.is_tcp => once.flags = ACK | CWR,
            7 if flow.is_tcp => once.flags = ACK | ECE,
            8 => flow.acknowledgment += 1,
            9 => flow.window = number,
            10 => flow.traffic_class = small & 3,
            11 => flow.ttl = 60 + small % 4,
            12 => flow.identification = number,
            13 if flow.is_tcp => flow.options = vec![1; usize::from(number % 4) * 4],
            14 if flow.is_tcp => once.payload_len = 0,
            15 => flow.source_mac = 1 + small % 2,
            16 if flow.is_tcp && !exact => once.flags = ACK | PSH,
            17 if !exact => flow.identification = flow.identification.wrapping_sub(1),
            _ => {}
        }
        if action >= 8 && action != 14 && action != 16 {
            once = flow.clone();
        }
        if exact {
            once.flags &= !PSH;
        }
        flow.identification = once.identification.wrapping_add(1);
        flow.sequence = once.next().sequence;
        packets.push(once);
    }
    packets
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Most steps go on in one flow, or there would be nothing to merge.
    let action = prop_oneof![8 => Just(255u8), 1 => 0u8..18];
    prop::collection::vec((0usize..6, action, any::<u16>()), 1..120)
}

fn sorted(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut sorted = packets.to_vec();
    sorted.sort();
    sorted
}

/// The packets of each flow, in order.
fn by_flow(packets: &[Vec<u8>]) -> Vec<Vec<Vec<u8>>> {
    let mut flows = vec![Vec::new(); 7];
    for packet in packets {
        let port = usize::from(wire::flow::ports(&ip_of(packet)).0);
        flows[port].push(packet.clone());
    }
    flows
}

/// Takes away what coalescing may change: PSH, and an identification that means nothing.
fn without_what_may_change(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let ip = ip_of(&packet);
    if ip.source.is_ipv4() && ip.dont_fragment {
        packet[18..20].fill(0);
        checksum::set_ipv4_header(&mut packet[14..34]);
    }
    if matches!(ip.transport, wire::Transport::Tcp { .. }) {
        packet[ip.transport_offset + 13] &= !PSH;
        packet[ip.transport_offset + 16..ip.transport_offset + 18].fill(0);
    }
    packet
}

proptest! {
    #[test]
    fn cutting_gives_back_exactly_what_was_coalesced(
        steps in steps(),
        swaps in prop::collection::vec((0usize..120, 0usize..120), 0..4),
        merge_udp in any::<bool>(),
    ) {
        let mut packets: Vec<_> = stream(&steps, true).iter().map(Packet::build).collect();
        for (one, other) in swaps {
            let len = packets.len();
            packets.swap(one % len, other % len);
        }
        let batch = coalesce(&packets, Options { merge_udp, ..OPTIONS });
        prop_assert!(batch.len() <= packets.len());
        let cut: Vec<_> = batch.iter().flat_map(cut).collect();
        cut.iter().for_each(|packet| assert_sound(packet));
        prop_assert_eq!(by_flow(&cut), by_flow(&packets));
    }

    #[test]
    fn only_what_means_nothing_changes(steps in steps()) {
        let packets: Vec<_> = stream(&steps, false).iter().map(Packet::build).collect();
        let batch = coalesce(&packets, OPTIONS);
        let cut: Vec<_> = batch.iter().flat_map(cut).collect();
        cut.iter().for_each(|packet| assert_sound(packet));
        let plain = |packets: &[Vec<u8>]| -> Vec<Vec<u8>> {
            packets.iter().map(|packet| without_what_may_change(packet)).collect()
        };
        prop_assert_eq!(by_flow(&plain(&cut)), by_flow(&plain(&packets)));
        // PSH is never lost: a frame whose packets had it has it.
        let has_psh = |packets: &[Vec<u8>]| packets.iter().any(|packet| {
            let ip = ip_of(packet);
            ip.protocol == 6 && packet[ip.transport_offset + 13] & PSH != 0
        });
        prop_assert_eq!(has_psh(&cut), has_psh(&packets));
    }

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
