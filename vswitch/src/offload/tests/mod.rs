//! Cutting gives packets whose every checksum etherparse confirms, and gives back what was coalesced.

use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader,
    Ipv6Header, Ipv6RawExtHeader, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TcpOptions,
    TransportSlice,
};
use zerocopy::byteorder::native_endian::U16;

use super::*;
use crate::frame::{Batch, Checksum, Frame, Gso, GsoKind, Ingress, Meta, Pool};
use crate::port::NodeIx;
use crate::verdict::Reason;
use crate::wire::tcp::flag::{ACK, CWR, ECE, FIN, PSH, RST, SYN, URG};
use crate::wire::{self, Network, checksum};

mod chain;
mod coalesce;
mod cut;
mod merge;
mod roundtrip;

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
    /// Options of the IPv4 header, or an extension header of IPv6.
    has_ip_options: bool,
    /// Offset in units of eight bytes, and whether more fragments follow.
    fragment: Option<(u16, bool)>,
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
            has_ip_options: false,
            fragment: None,
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
        let (fragment_offset, more_fragments) = self.fragment.unwrap_or_default();
        let fragment_offset = fragment_offset.try_into().unwrap();
        if self.is_ipv4 {
            let mut header = Ipv4Header {
                source: [10, 244, 1, self.host],
                destination: [10, 244, 2, 7],
                time_to_live: self.ttl,
                identification: self.identification,
                dont_fragment: self.dont_fragment,
                fragment_offset,
                more_fragments,
                ..Default::default()
            };
            if self.has_ip_options {
                // Router alert (RFC 2113).
                header.options = [148, 4, 0, 0].into();
            }
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
        // The kind of what follows is filled in when the packet is written.
        let next_header = IpNumber::default();
        // Padding of six bytes (RFC 8200 §4.2).
        let options = Ipv6RawExtHeader::new_raw(next_header, &[1, 4, 0, 0, 0, 0]).unwrap();
        let extensions = Ipv6Extensions {
            destination_options: self.has_ip_options.then_some(options),
            fragment: self.fragment.map(|_| {
                let identification = self.identification.into();
                Ipv6FragmentHeader { next_header, fragment_offset, more_fragments, identification }
            }),
            ..Default::default()
        };
        IpHeaders::Ipv6(header, extensions)
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
