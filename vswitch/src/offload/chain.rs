//! Super-frames that follow each other, handed to the kernel as one that is longer than an IP packet can
//! say ("BIG TCP").
//!
//! ```text
//!  headers │ payload │     headers │ payload │          headers │ payload ─── payload │
//!      one super-frame         the next                      one write of both
//! ```
//!
//! Nothing is copied but the headers: the payloads stay in their frames and are gathered by the write. An
//! IPv4 packet longer than 65 535 bytes has the total length 0, an IPv6 packet the payload length 0 and a
//! jumbo option (RFC 2675), and the kernel takes the length from the frame. It never leaves the machine as
//! such: whoever sends it on cuts it.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::frame::{Checksum, Frame, Gso, GsoKind};
use crate::offload::vnet::{self, VnetHeader};
use crate::wire::tcp::flag::{CWR, FIN, PSH, RST, SYN, URG};
use crate::wire::{
    self, ETHERNET_LEN, Fragment, Ip, Network, Transport, checksum, ipv4, ipv6, tcp,
};

/// Most super-frames in a chain: a quarter of a megabyte. More do not make it faster, and would fill a CPU's
/// own cache.
pub const CHAIN_MAX: usize = 4;

/// The longest packet whose header can say how long it is.
const IP_LEN_MAX: usize = 65_535;

/// A hop-by-hop options header with a jumbo payload option (RFC 2675 §2).
const JUMBO_LEN: usize = 8;

/// Room for a virtio-net header and all headers of a packet.
const HEADERS_MAX: usize = VnetHeader::LEN + ETHERNET_LEN + ipv6::HEADER_LEN + JUMBO_LEN + 60;

/// What the kernel takes of super-frames that are longer than a packet can say. Found out by trying: see
/// `weft::host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LongFrames {
    /// TCP over IPv4 (Linux 6.3; through a TAP, Linux 6.6).
    pub tcp4: bool,
    /// TCP over IPv6 (through a TAP, Linux 6.6).
    pub tcp6: bool,
}

impl LongFrames {
    /// None at all.
    pub const NONE: Self = Self { tcp4: false, tcp6: false };

    fn has(self, kind: GsoKind) -> bool {
        match kind {
            GsoKind::Tcp4 => self.tcp4,
            GsoKind::Tcp6 => self.tcp6,
            GsoKind::Udp => false,
        }
    }
}

/// Super-frames of one flow, in order and without a gap.
#[derive(Debug)]
pub struct Chain {
    long: LongFrames,
    frames: VecDeque<Frame>,
    head: Option<Head>,
    /// A virtio-net header and the headers of the whole.
    headers: [u8; HEADERS_MAX],
}

/// What the next super-frame is compared with.
#[derive(Debug, Clone, Copy)]
struct Head {
    kind: GsoKind,
    size: u16,
    /// Source and destination.
    addresses: (IpAddr, IpAddr),
    transport_offset: usize,
    headers_len: usize,
    next_sequence: u32,
    /// The payload of every frame together.
    payload_len: usize,
    /// The flags of every frame together.
    flags: u8,
    /// The last frame ends with a shorter segment, or with FIN.
    is_closed: bool,
}

impl Chain {
    /// An empty one, which gets long only as the kernel takes it.
    pub fn new(long: LongFrames) -> Self {
        let frames = VecDeque::with_capacity(CHAIN_MAX);
        Self { long, frames, head: None, headers: [0; HEADERS_MAX] }
    }

    /// Appends `frame` if it goes on where the last one ended, or if the chain is empty and it can begin one.
    ///
    /// # Errors
    /// The frame, if not.
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        let Some(next) = Head::of(&frame) else {
            return Err(frame);
        };
        let head = match (self.head, self.frames.front()) {
            (None, _) | (_, None) => next,
            (Some(head), Some(first)) => {
                let both = head.followed_by(&next, first.data(), frame.data());
                match both.filter(|_| self.long.has(next.kind) && !self.is_full()) {
                    Some(both) => both,
                    None => return Err(frame),
                }
            }
        };
        self.head = Some(head);
        self.frames.push_back(frame);
        Ok(())
    }

    /// Whether nothing more can follow.
    pub fn is_full(&self) -> bool {
        self.frames.len() == CHAIN_MAX || self.head.is_some_and(|head| head.is_closed)
    }

    /// Takes the first super-frame.
    pub fn pop(&mut self) -> Option<Frame> {
        self.head = None;
        self.frames.pop_front()
    }

    /// What one gathering write takes: a virtio-net header, the headers of the whole, and every payload. `None`
    /// if there are not several super-frames.
    pub fn slices(&mut self) -> Option<(GsoKind, ArrayVec<IoSlice<'_>, { CHAIN_MAX + 1 }>)> {
        let head = self.head.filter(|_| self.frames.len() > 1)?;
        let len = head.write_headers(self.frames.front()?, &mut self.headers);
        let headers = std::iter::once(&self.headers[..len]);
        let payloads = self.frames.iter().map(|frame| &frame.data()[head.headers_len..]);
        Some((head.kind, headers.chain(payloads).map(IoSlice::new).collect()))
    }
}

impl Head {
    /// That of a super-frame which may be part of a chain.
    fn of(frame: &Frame) -> Option<Self> {
        let Gso { kind, size, .. } = frame.meta.gso?;
        if kind == GsoKind::Udp || !matches!(frame.meta.checksum, Checksum::Partial { .. }) {
            return None;
        }
        let Network::Ip(ip) = wire::parse(frame.data()).ok()?.network else {
            return None;
        };
        let Transport::Tcp { header_len, .. } = ip.transport else {
            return None;
        };
        if ip.fragment != Fragment::Whole || ip.transport_offset != plain_transport_offset(&ip) {
            return None;
        }
        let segment = &frame.data()[ip.transport_offset..];
        let flags = segment[tcp::FLAGS_OFFSET];
        if flags & (SYN | RST | URG | CWR) != 0 {
            return None;
        }
        let headers_len = ip.transport_offset + header_len;
        let payload_len = frame.len() - headers_len;
        let sequence =
            u32::from_be_bytes(*segment[tcp::SEQUENCE_OFFSET..].first_chunk().unwrap_or(&[0; 4]));
        Some(Self {
            kind,
            size,
            addresses: (ip.source, ip.destination),
            transport_offset: ip.transport_offset,
            headers_len,
            next_sequence: sequence.wrapping_add(u32::try_from(payload_len).unwrap_or(0)),
            payload_len,
            flags,
            is_closed: !payload_len.is_multiple_of(usize::from(size)) || flags & FIN != 0,
        })
    }

    /// Both together, if `next` goes on where this ends. `first` and `frame` are the first super-frame and
    /// that of `next`.
    fn followed_by(&self, next: &Self, first: &[u8], frame: &[u8]) -> Option<Self> {
        let next_payload_len = u32::try_from(next.payload_len).unwrap_or(0);
        let at = self.transport_offset;
        let equal = |from: usize, to: usize| first[from..to] == frame[from..to];
        let is_next = !self.is_closed
            && (self.kind, self.size, at, self.headers_len)
                == (next.kind, next.size, next.transport_offset, next.headers_len)
            && next.next_sequence.wrapping_sub(next_payload_len) == self.next_sequence
            && has_same_network_header(self.kind, &equal)
            && self.numbers_go_on(first, frame)
            // Ports; acknowledgment and header length.
            && equal(at, at + 4)
            && equal(at + 8, at + 13)
            && (self.flags ^ next.flags) & !(FIN | PSH) == 0
            // Window; urgent pointer and options.
            && equal(at + 14, at + 16)
            && equal(at + 18, self.headers_len);
        is_next.then_some(Self {
            next_sequence: next.next_sequence,
            payload_len: self.payload_len + next.payload_len,
            flags: self.flags | next.flags,
            is_closed: next.is_closed,
            ..*self
        })
    }

    /// Whether the IPv4 identification goes on, as cutting makes it, or means nothing (RFC 6864 §4.1).
    fn numbers_go_on(&self, first: &[u8], frame: &[u8]) -> bool {
        let number =
            |frame: &[u8]| u16::from_be_bytes([frame[ETHERNET_LEN + 4], frame[ETHERNET_LEN + 5]]);
        // Don't Fragment.
        let is_free = self.kind != GsoKind::Tcp4 || frame[ETHERNET_LEN + 6] & 0x40 != 0;
        let segments = to_u16(self.payload_len / usize::from(self.size));
        is_free || number(frame) == number(first).wrapping_add(segments)
    }

    /// Writes the virtio-net header and the headers of the whole; returns their length.
    fn write_headers(&self, first: &Frame, to: &mut [u8; HEADERS_MAX]) -> usize {
        let ip_len = self.headers_len - ETHERNET_LEN + self.payload_len;
        let segment_len = self.headers_len - self.transport_offset + self.payload_len;
        let jumbo = self.kind == GsoKind::Tcp6 && ip_len - ipv6::HEADER_LEN > IP_LEN_MAX;
        let inserted = if jumbo { JUMBO_LEN } else { 0 };
        let frame = &mut to[VnetHeader::LEN..];
        let (at, start) = (self.transport_offset, self.transport_offset + inserted);
        frame[..at].copy_from_slice(&first.data()[..at]);
        let headers_len = self.headers_len + inserted;
        frame[start..headers_len].copy_from_slice(&first.data()[at..self.headers_len]);
        frame[start + tcp::FLAGS_OFFSET] = self.flags;
        let network = &mut frame[ETHERNET_LEN..start];
        if self.kind == GsoKind::Tcp4 {
            let len = u16::try_from(ip_len).unwrap_or(0);
            network[2..4].copy_from_slice(&len.to_be_bytes());
            checksum::set_ipv4_header(network);
        } else {
            let payload_len = ip_len - ipv6::HEADER_LEN;
            let len = if jumbo { 0 } else { u16::try_from(payload_len).unwrap_or(0) };
            network[4..6].copy_from_slice(&len.to_be_bytes());
            if jumbo {
                let long = u32::try_from(payload_len + JUMBO_LEN).unwrap_or(u32::MAX);
                let [a, b, c, d] = long.to_be_bytes();
                network[6] = ipv6::HOP_BY_HOP;
                network[ipv6::HEADER_LEN..].copy_from_slice(&[
                    tcp::PROTOCOL,
                    0,
                    ipv6::OPTION_JUMBO,
                    4,
                    a,
                    b,
                    c,
                    d,
                ]);
            }
        }
        let (source, destination) = self.addresses;
        let sum = checksum::pseudo_header(source, destination, tcp::PROTOCOL, segment_len).fold();
        frame[start + tcp::CHECKSUM_OFFSET..start + tcp::CHECKSUM_OFFSET + 2]
            .copy_from_slice(&sum.to_be_bytes());
        let header = VnetHeader {
            csum_start: to_u16(start).into(),
            hdr_len: to_u16(headers_len).into(),
            ..vnet::encode(first)
        };
        to[..VnetHeader::LEN].copy_from_slice(&header.to_bytes());
        VnetHeader::LEN + headers_len
    }
}

/// Offsets here are those of headers.
fn to_u16(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

/// Where layer 4 begins if there are neither options nor extension headers.
fn plain_transport_offset(ip: &Ip) -> usize {
    ETHERNET_LEN + if ip.source.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
}

/// Whether everything in front of layer 4 is equal, but for lengths, identification and checksum.
fn has_same_network_header(kind: GsoKind, equal: &impl Fn(usize, usize) -> bool) -> bool {
    let at = ETHERNET_LEN;
    if kind == GsoKind::Tcp4 {
        equal(0, at + 2) && equal(at + 6, at + 10) && equal(at + 12, at + 20)
    } else {
        equal(0, at + 4) && equal(at + 6, at + ipv6::HEADER_LEN)
    }
}
