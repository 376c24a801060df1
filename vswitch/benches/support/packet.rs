//! Packets between two addresses, and super-frames that stand for several.

use std::net::IpAddr;

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, TcpOptionElement};
use vswitch::frame::{Checksum, Frame, Gso, GsoKind};
use vswitch::mac::Mac;
use vswitch::wire::{self, Network, Transport, checksum};

/// The longest IP packet that pods send.
pub const MTU: usize = 1450;

/// Packets in a super-frame: so many of [`MTU`] bytes fit one UDP send.
pub const SEGMENTS: usize = 44;

/// Length of the TCP header that Linux sends: with timestamps.
const TCP_HEADER_LEN: usize = 32;

/// Who speaks to whom.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    pub macs: (Mac, Mac),
    pub addresses: (IpAddr, IpAddr),
    pub ports: (u16, u16),
}

impl Ends {
    /// A UDP datagram with `payload` bytes.
    pub fn udp(&self, payload: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let (source, target) = self.ports;
        self.ip().udp(source, target).write(&mut packet, &bytes(payload)).unwrap();
        packet
    }

    /// A TCP segment with `payload` bytes.
    pub fn tcp(&self, payload: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let (source, target) = self.ports;
        let timestamps =
            [TcpOptionElement::Noop, TcpOptionElement::Noop, TcpOptionElement::Timestamp(1, 2)];
        let segment = self.ip().tcp(source, target, 1, 512).ack(7);
        let segment = segment.options(&timestamps).unwrap();
        segment.write(&mut packet, &bytes(payload)).unwrap();
        packet
    }

    /// A TCP segment of [`MTU`] bytes.
    pub fn tcp_of_mtu(&self) -> Vec<u8> {
        self.tcp(self.tcp_payload_max())
    }

    /// What a pod hands over as one: `segments` TCP segments of [`MTU`] bytes.
    pub fn super_frame(&self, segments: usize) -> Frame {
        let size = self.tcp_payload_max();
        let mut frame = Frame::new();
        assert!(frame.append(&self.tcp(segments * size)));
        let Network::Ip(ip) = wire::parse(frame.data()).unwrap().network else { panic!("not IP") };
        assert!(matches!(ip.transport, Transport::Tcp { .. }));
        let offset = checksum::checksum_offset(ip.transport).unwrap();
        let len = frame.len() - ip.transport_offset;
        let sum = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, len).fold();
        let at = ip.transport_offset + offset;
        frame.data_mut()[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        frame.meta.checksum = Checksum::Partial {
            start: ip.transport_offset.try_into().unwrap(),
            offset: offset.try_into().unwrap(),
        };
        frame.meta.gso = Some(Gso {
            kind: if ip.source.is_ipv4() { GsoKind::Tcp4 } else { GsoKind::Tcp6 },
            size: size.try_into().unwrap(),
            segments: segments.try_into().unwrap(),
        });
        frame
    }

    fn ip(&self) -> PacketBuilderStep<IpHeaders> {
        let link = PacketBuilder::ethernet2(self.macs.0.0, self.macs.1.0);
        match self.addresses {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                link.ipv4(source.octets(), target.octets(), 64)
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                link.ipv6(source.octets(), target.octets(), 64)
            }
            _ => panic!("two families"),
        }
    }

    fn tcp_payload_max(&self) -> usize {
        let ip_header_len = if self.addresses.0.is_ipv4() { 20 } else { 40 };
        MTU - ip_header_len - TCP_HEADER_LEN
    }
}

/// Bytes that no two segments have in common.
pub fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}
