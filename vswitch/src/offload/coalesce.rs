//! Makes super-frames of the packets that arrive out of the tunnel.
//!
//! For each flow the coalescer knows the newest frame in the batch. Only that one may grow, and any
//! packet of the flow that it cannot take becomes a frame of its own and the newest. So packets of a
//! flow stay in order whatever arrives.
//!
//! A packet is appended only where cutting gives it back: see [`super`] for the exact promise, and
//! `tests` for the proof.

use std::net::IpAddr;

use crate::frame::{BATCH_MAX, Batch, Checksum, Frame, Gso, GsoKind, Ingress, Pool};
use crate::offload::SEGMENTS_MAX;
use crate::verdict::Reason;
use crate::wire::checksum::{self, Verification};
use crate::wire::tcp::flag::{ACK, CWR, FIN, PSH, RST, SYN, URG};
use crate::wire::{
    self, ETHERNET_LEN, Fragment, Headers, Ip, Network, Transport, flow, ipv4, ipv6, tcp, udp,
};

/// Most datagrams in one UDP super-frame, as in Linux (`UDP_GRO_CNT_MAX`, `net/ipv4/udp_offload.c`).
pub const UDP_SEGMENTS_MAX: u16 = 64;

/// Most flows of one batch whose frames can grow: as many as a batch has frames. Of more flows the
/// oldest are forgotten, and their frames do not grow any more.
const FLOWS_MAX: usize = 64;

/// Longest IP packet (RFC 791 §3.1), and longest IPv6 packet without the jumbo option.
const IP_LEN_MAX: usize = 65_535;

/// An IPv4 packet of this length passes every link whole (RFC 791 §3.1: 576 bytes must be accepted).
const NEVER_TOO_LONG: usize = 576;

/// What a coalescer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether UDP datagrams may be merged (`GsoKind::Udp`). Every port of the switch must then be able
    /// to take or cut them.
    pub merge_udp: bool,
    /// Longest IP packet that a pod sends. A longer TCP segment whose checksum is partial is a
    /// super-frame whose header got lost on its way through an offloading tunnel; it becomes one again,
    /// to be cut to this length.
    pub mtu: u16,
}

/// Merges packets of the same flow as they arrive: see the module's documentation.
///
/// Give it every packet of a batch with [`Coalescer::push`], then call [`Coalescer::finish`] before
/// anything else is done with the batch.
#[derive(Debug)]
pub struct Coalescer {
    options: Options,
    growing: Vec<Growing>,
    /// Where the next flow goes once all places are taken.
    oldest: usize,
    /// The batch that [`Coalescer::merge`] makes.
    merged: Batch,
}

/// The newest frame of a flow.
#[derive(Debug)]
struct Growing {
    hash: u32,
    key: Key,
    /// Where the frame is in the batch.
    frame_ix: usize,
    /// Cleared once nothing may be appended any more.
    is_open: bool,
    /// The headers of the frame's first packet.
    ip: Ip,
    headers_len: usize,
    /// Payload bytes in each packet.
    size: usize,
    segments: u16,
    /// The sequence number of the next payload byte. TCP only.
    next_sequence: u32,
    identification: Identification,
}

/// What makes a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    ingress: Ingress,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: (u16, u16),
}

/// How the IPv4 identification goes on from packet to packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identification {
    last: u16,
    /// Not known before the second packet. Zero is possible only with Don't Fragment.
    step: Option<u16>,
}

/// A packet that may be merged.
struct Candidate<'a> {
    packet: &'a [u8],
    ip: Ip,
    headers_len: usize,
    payload: &'a [u8],
}

impl Coalescer {
    /// Makes a coalescer for one worker. Nothing is allocated afterwards.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            growing: Vec::with_capacity(FLOWS_MAX),
            oldest: 0,
            merged: Vec::with_capacity(BATCH_MAX),
        }
    }

    /// What it may do.
    pub fn options(&self) -> Options {
        self.options
    }

    /// Checks one packet, an Ethernet frame from inside the tunnel, and adds it to `batch`: at the end
    /// of the newest frame of its flow, or as a new frame from `pool`.
    ///
    /// # Errors
    /// What [`wire::parse`] returns; [`Reason::BadChecksum`] when the layer 4 checksum is wrong;
    /// [`Reason::PoolEmpty`]. The batch is then unchanged.
    pub fn push(
        &mut self,
        packet: &[u8],
        ingress: Ingress,
        pool: &mut Pool,
        batch: &mut Batch,
    ) -> Result<(), Reason> {
        let headers = wire::parse(packet)?;
        let Network::Ip(ip) = headers.network else {
            return add_frame(packet, ingress, Checksum::Filled, pool, batch);
        };
        let packet = &packet[..ETHERNET_LEN + ip.len];
        let checksum = match checksum::verify(packet, &ip) {
            Verification::Right => Checksum::Verified,
            Verification::Absent => Checksum::Filled,
            Verification::Partial { start, offset } => Checksum::Partial { start, offset },
            Verification::Wrong => return Err(Reason::BadChecksum),
        };
        if ip.fragment != Fragment::Whole {
            add_frame(packet, ingress, checksum, pool, batch)?;
            self.close_between(ingress, &ip, batch);
            return Ok(());
        }
        if !matches!(ip.transport, Transport::Tcp { .. } | Transport::Udp { .. }) {
            return add_frame(packet, ingress, checksum, pool, batch);
        }
        let key = Key::of(ingress, &ip);
        let hash = flow::hash_ip(&ip, 0);
        let place = self.growing.iter().position(|other| other.hash == hash && other.key == key);
        let candidate = Candidate::of(packet, &ip, checksum, self.options);
        if let (Some(place), Some(candidate)) = (place, &candidate)
            && self.growing[place].append(candidate, batch)
        {
            return Ok(());
        }
        let frame_ix = batch.len();
        add_frame(packet, ingress, checksum, pool, batch)?;
        restore_super_frame(&mut batch[frame_ix], &ip, self.options.mtu);
        let next = candidate.map(|candidate| Growing::new(hash, key, frame_ix, &candidate));
        self.succeed(place, next, batch);
        Ok(())
    }

    /// Merges the frames of `batch`, which came in through local ports, in the same way. Super-frames stay as
    /// they are.
    pub fn merge(&mut self, batch: &mut Batch, pool: &mut Pool) {
        let mut merged = std::mem::take(&mut self.merged);
        for frame in batch.drain(..) {
            self.push_frame(frame, pool, &mut merged);
        }
        self.finish(&mut merged);
        batch.append(&mut merged);
        self.merged = merged;
    }

    /// As [`Coalescer::push`], with a frame that is one already. One that cannot be read is the switch's to
    /// drop.
    fn push_frame(&mut self, mut frame: Frame, pool: &mut Pool, batch: &mut Batch) {
        let Ok(Headers { network: Network::Ip(ip), .. }) = wire::parse(frame.data()) else {
            return batch.push(frame);
        };
        if ip.fragment != Fragment::Whole {
            let ingress = frame.meta.ingress;
            batch.push(frame);
            return self.close_between(ingress, &ip, batch);
        }
        if !matches!(ip.transport, Transport::Tcp { .. } | Transport::Udp { .. }) {
            return batch.push(frame);
        }
        let key = Key::of(frame.meta.ingress, &ip);
        let hash = flow::hash_ip(&ip, 0);
        let place = self.growing.iter().position(|other| other.hash == hash && other.key == key);
        // A merged packet is no longer fragmented on its way; so only those are merged that may not be, or
        // never need to be (RFC 791 §3.1).
        let is_single = frame.meta.gso.is_none() && (ip.dont_fragment || ip.len <= NEVER_TOO_LONG);
        if is_single {
            frame.set_len(ETHERNET_LEN + ip.len);
        }
        let candidate = is_single
            .then(|| Candidate::of(frame.data(), &ip, frame.meta.checksum, self.options))
            .flatten();
        if let (Some(place), Some(candidate)) = (place, &candidate)
            && self.growing[place].append(candidate, batch)
        {
            return pool.put(frame);
        }
        let next = candidate.map(|candidate| Growing::new(hash, key, batch.len(), &candidate));
        batch.push(frame);
        self.succeed(place, next, batch);
    }

    /// The newest frame of a flow is now `next`, or one that cannot grow.
    fn succeed(&mut self, place: Option<usize>, next: Option<Growing>, batch: &mut Batch) {
        match (place, next) {
            (Some(place), next) => {
                self.growing[place].close(batch);
                if let Some(next) = next {
                    self.growing[place] = next;
                }
            }
            (None, Some(next)) => self.insert(next, batch),
            (None, None) => {}
        }
    }

    /// Finishes all frames of the batch and forgets them.
    pub fn finish(&mut self, batch: &mut Batch) {
        for growing in &mut self.growing {
            growing.close(batch);
        }
        self.growing.clear();
        self.oldest = 0;
    }

    fn insert(&mut self, next: Growing, batch: &mut Batch) {
        if self.growing.len() < FLOWS_MAX {
            self.growing.push(next);
            return;
        }
        self.growing[self.oldest].close(batch);
        self.growing[self.oldest] = next;
        self.oldest = (self.oldest + 1) % FLOWS_MAX;
    }

    /// A fragment may belong to any flow between its addresses; none of them may overtake it.
    fn close_between(&mut self, ingress: Ingress, ip: &Ip, batch: &mut Batch) {
        for growing in &mut self.growing {
            let key = &growing.key;
            if key.ingress == ingress
                && key.source == ip.source
                && key.destination == ip.destination
            {
                growing.close(batch);
            }
        }
    }
}

fn add_frame(
    packet: &[u8],
    ingress: Ingress,
    checksum: Checksum,
    pool: &mut Pool,
    batch: &mut Batch,
) -> Result<(), Reason> {
    let mut frame = pool.take().ok_or(Reason::PoolEmpty)?;
    if !frame.append(packet) {
        pool.put(frame);
        return Err(Reason::Malformed);
    }
    frame.meta.ingress = ingress;
    frame.meta.checksum = checksum;
    batch.push(frame);
    Ok(())
}

/// Makes a super-frame of a TCP segment that is longer than the MTU and has a partial checksum: see
/// [`Options::mtu`]. Leaves everything else as it is.
fn restore_super_frame(frame: &mut Frame, ip: &Ip, mtu: u16) {
    let (Checksum::Partial { .. }, Transport::Tcp { header_len, .. }) =
        (frame.meta.checksum, ip.transport)
    else {
        return;
    };
    let headers_len = ip.transport_offset + header_len;
    let payload_len = frame.len() - headers_len;
    let room = (ETHERNET_LEN + usize::from(mtu)).saturating_sub(headers_len);
    if payload_len <= room || room == 0 {
        return;
    }
    let kind = if ip.source.is_ipv4() { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
    let segments = u16::try_from(payload_len.div_ceil(room));
    if let (Ok(size), Ok(segments @ ..=SEGMENTS_MAX)) = (u16::try_from(room), segments) {
        frame.meta.gso = Some(Gso { kind, size, segments });
    }
}

impl Key {
    fn of(ingress: Ingress, ip: &Ip) -> Self {
        Self {
            ingress,
            source: ip.source,
            destination: ip.destination,
            protocol: ip.protocol,
            ports: flow::ports(ip),
        }
    }
}

impl<'a> Candidate<'a> {
    /// The packet, if it may be part of a super-frame. `packet` has no padding.
    fn of(packet: &'a [u8], ip: &Ip, checksum: Checksum, options: Options) -> Option<Self> {
        let ip_header_len = if ip.source.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        // Options and extension headers stay out: what they mean for a part of a packet is their own.
        let is_plain = ip.transport_offset == ETHERNET_LEN + ip_header_len
            && ip.len <= usize::from(options.mtu)
            && match checksum {
                Checksum::Verified => true,
                // Not that of a packet which this one carries.
                Checksum::Partial { start, .. } => usize::from(start) == ip.transport_offset,
                Checksum::Filled => false,
            };
        if !is_plain {
            return None;
        }
        let segment = &packet[ip.transport_offset..];
        let header_len = match ip.transport {
            Transport::Tcp { header_len, .. } => {
                let flags = segment[tcp::FLAGS_OFFSET];
                (flags & (SYN | RST | URG | ACK) == ACK).then_some(header_len)
            }
            Transport::Udp { .. } => (options.merge_udp
                && udp::len(segment) == Some(segment.len()))
            .then_some(udp::HEADER_LEN),
            Transport::Sctp { .. } | Transport::Icmp { .. } | Transport::Other => None,
        }?;
        let headers_len = ip.transport_offset + header_len;
        let payload = &packet[headers_len..];
        (!payload.is_empty()).then_some(Self { packet, ip: *ip, headers_len, payload })
    }

    fn is_tcp(&self) -> bool {
        matches!(self.ip.transport, Transport::Tcp { .. })
    }

    fn flags(&self) -> u8 {
        if self.is_tcp() { self.packet[self.ip.transport_offset + tcp::FLAGS_OFFSET] } else { 0 }
    }

    fn sequence(&self) -> u32 {
        let at = self.ip.transport_offset + tcp::SEQUENCE_OFFSET;
        if self.is_tcp() { read_u32(self.packet, at) } else { 0 }
    }

    fn payload_len(&self) -> u32 {
        u32::try_from(self.payload.len()).unwrap_or(u32::MAX)
    }
}

impl Growing {
    fn new(hash: u32, key: Key, frame_ix: usize, first: &Candidate<'_>) -> Self {
        Self {
            hash,
            key,
            frame_ix,
            is_open: first.flags() & FIN == 0,
            ip: first.ip,
            headers_len: first.headers_len,
            size: first.payload.len(),
            segments: 1,
            next_sequence: first.sequence().wrapping_add(first.payload_len()),
            identification: Identification::of(first.packet),
        }
    }

    /// Appends the packet if it may be. Returns whether it was.
    fn append(&mut self, next: &Candidate<'_>, batch: &mut Batch) -> bool {
        let Some(frame) = batch.get_mut(self.frame_ix) else {
            return false;
        };
        let Some(identification) = self.takes(frame.data(), next) else {
            return false;
        };
        if !frame.append(next.payload) {
            return false;
        }
        if next.is_tcp() {
            let at = self.ip.transport_offset + tcp::FLAGS_OFFSET;
            frame.data_mut()[at] |= next.flags() & (FIN | PSH);
        }
        self.identification = identification;
        self.next_sequence = self.next_sequence.wrapping_add(next.payload_len());
        self.segments += 1;
        if next.payload.len() < self.size || next.flags() & FIN != 0 {
            self.close(batch);
        }
        true
    }

    /// Whether cutting would give the packet back if it were appended to `frame`; if so, how the
    /// identification goes on.
    fn takes(&self, frame: &[u8], next: &Candidate<'_>) -> Option<Identification> {
        let segments_max = if next.is_tcp() { SEGMENTS_MAX } else { UDP_SEGMENTS_MAX };
        let fits = self.is_open
            && self.segments < segments_max
            && self.headers_len == next.headers_len
            && next.payload.len() <= self.size
            && frame.len() + next.payload.len() <= ETHERNET_LEN + IP_LEN_MAX;
        let goes_on = fits
            && has_same_network_header(frame, next)
            && (!next.is_tcp() || self.has_same_tcp_header(frame, next));
        if !goes_on {
            return None;
        }
        self.identification.follow(next)
    }

    fn has_same_tcp_header(&self, frame: &[u8], next: &Candidate<'_>) -> bool {
        let at = self.ip.transport_offset;
        let differing = frame[at + tcp::FLAGS_OFFSET] ^ next.flags();
        next.sequence() == self.next_sequence
            // Acknowledgment, header length and reserved bits.
            && frame[at + 8..at + 13] == next.packet[at + 8..at + 13]
            && differing & !(FIN | PSH | CWR) == 0
            // Cutting leaves CWR on the first packet only; all others have the first one's ECE.
            && next.flags() & CWR == 0
            // Window.
            && frame[at + 14..at + 16] == next.packet[at + 14..at + 16]
            // Urgent pointer and options.
            && frame[at + 18..self.headers_len] == next.packet[at + 18..self.headers_len]
    }

    /// Completes the frame's headers if it was merged. Nothing can be appended afterwards.
    fn close(&mut self, batch: &mut Batch) {
        if !std::mem::replace(&mut self.is_open, false) || self.segments == 1 {
            return;
        }
        let Some(frame) = batch.get_mut(self.frame_ix) else {
            return;
        };
        let is_ipv4 = self.ip.source.is_ipv4();
        let (kind, offset) = match self.ip.transport {
            Transport::Tcp { .. } if is_ipv4 => (GsoKind::Tcp4, tcp::CHECKSUM_OFFSET),
            Transport::Tcp { .. } => (GsoKind::Tcp6, tcp::CHECKSUM_OFFSET),
            Transport::Udp { .. }
            | Transport::Sctp { .. }
            | Transport::Icmp { .. }
            | Transport::Other => (GsoKind::Udp, udp::CHECKSUM_OFFSET),
        };
        let (header, segment) =
            frame.data_mut()[ETHERNET_LEN..].split_at_mut(self.ip.transport_offset - ETHERNET_LEN);
        if is_ipv4 {
            let len = to_u16(header.len() + segment.len());
            header[2..4].copy_from_slice(&len.to_be_bytes());
            checksum::set_ipv4_header(header);
        } else {
            header[4..6].copy_from_slice(&to_u16(segment.len()).to_be_bytes());
        }
        if kind == GsoKind::Udp {
            let len = to_u16(segment.len());
            segment[udp::LENGTH_OFFSET..udp::LENGTH_OFFSET + 2].copy_from_slice(&len.to_be_bytes());
        }
        let Ip { source, destination, protocol, .. } = self.ip;
        let sum = checksum::pseudo_header(source, destination, protocol, segment.len()).fold();
        segment[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
        frame.meta.checksum =
            Checksum::Partial { start: to_u16(self.ip.transport_offset), offset: to_u16(offset) };
        frame.meta.gso = Some(Gso { kind, size: to_u16(self.size), segments: self.segments });
    }
}

/// Whether everything in front of layer 4 is equal, but for length, identification and checksum. The
/// addresses are the flow's and need no look.
fn has_same_network_header(frame: &[u8], next: &Candidate<'_>) -> bool {
    let equal = |from: usize, to: usize| frame[from..to] == next.packet[from..to];
    if next.ip.source.is_ipv4() {
        // MAC addresses to type of service; flags; TTL and protocol.
        equal(0, ETHERNET_LEN + 2) && equal(ETHERNET_LEN + 6, ETHERNET_LEN + 10)
    } else {
        // MAC addresses to flow label; next header and hop limit.
        equal(0, ETHERNET_LEN + 4) && equal(ETHERNET_LEN + 6, ETHERNET_LEN + 8)
    }
}

impl Identification {
    /// That of the IPv4 packet in `frame`; of an IPv6 packet, anything.
    fn of(frame: &[u8]) -> Self {
        let at = ETHERNET_LEN + 4;
        Self { last: u16::from_be_bytes([frame[at], frame[at + 1]]), step: None }
    }

    /// The identification after `next`, if that one goes on as the packets before it.
    ///
    /// Cutting counts up from packet to packet. So must the packets themselves, unless the number means
    /// nothing: with Don't Fragment it may also stand still (RFC 6864 §4.1).
    fn follow(self, next: &Candidate<'_>) -> Option<Self> {
        let last = Self::of(next.packet).last;
        if next.ip.source.is_ipv6() {
            return Some(Self { last, step: None });
        }
        let step = last.wrapping_sub(self.last);
        let is_possible = step == 1 || (step == 0 && next.ip.dont_fragment);
        (is_possible && self.step.is_none_or(|before| before == step))
            .then_some(Self { last, step: Some(step) })
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Lengths and offsets here are bounded by the longest IP packet.
fn to_u16(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
