//! Cuts a super-frame into the packets that it stands for.

use crate::frame::{Checksum, Frame, GsoKind};
use crate::offload::SEGMENTS_MAX;
use crate::verdict::Reason;
use crate::wire::tcp::flag::{CWR, FIN, PSH};
use crate::wire::{
    ETHERNET_LEN, Fragment, Headers, Ip, Network, Transport, checksum, ipv6, tcp, udp,
};

/// A frame, seen as the packets that it stands for.
///
/// The lengths are known before anything is written, so a caller can lay out all packets of a frame in
/// one buffer. A frame that is no super-frame is one packet; its checksum is completed if it has to be.
/// Padding is left away.
#[derive(Debug)]
pub struct Cut<'a> {
    frame: &'a [u8],
    headers_len: usize,
    /// Payload bytes in every packet but the last.
    size: usize,
    segments: usize,
    work: Work,
}

/// What is done to a packet after it was copied.
#[derive(Debug, Clone, Copy)]
enum Work {
    Nothing,
    Complete { start: u16, offset: u16 },
    Tcp(Ip),
    Udp(Ip),
}

impl<'a> Cut<'a> {
    /// Looks at `frame`, of which [`crate::wire::parse`] said `headers`.
    ///
    /// # Errors
    /// [`Reason::BadOffload`] when the meta data does not fit the bytes, which cannot be if it comes
    /// from [`super::decode`] or [`super::Coalescer`].
    pub fn new(frame: &'a Frame, headers: &Headers) -> Result<Self, Reason> {
        let data = frame.data();
        let ip = match &headers.network {
            Network::Ip(ip) => Some(ip),
            Network::Arp => None,
        };
        let len = ip.map_or(data.len(), |ip| ETHERNET_LEN + ip.len);
        let data = data.get(..len).ok_or(Reason::BadOffload)?;
        let Some(gso) = frame.meta.gso else {
            let work = match frame.meta.checksum {
                Checksum::Partial { start, offset } => {
                    let end = usize::from(start) + usize::from(offset) + 2;
                    if end > len {
                        return Err(Reason::BadOffload);
                    }
                    Work::Complete { start, offset }
                }
                Checksum::Filled | Checksum::Verified => Work::Nothing,
            };
            return Ok(Self { frame: data, headers_len: 0, size: len, segments: 1, work });
        };
        let ip = ip.filter(|ip| ip.fragment == Fragment::Whole).ok_or(Reason::BadOffload)?;
        let is_ipv4 = ip.source.is_ipv4();
        let (work, header_len) = match (gso.kind, ip.transport) {
            (GsoKind::Tcp4, Transport::Tcp { header_len, .. }) if is_ipv4 => {
                (Work::Tcp(*ip), header_len)
            }
            (GsoKind::Tcp6, Transport::Tcp { header_len, .. }) if !is_ipv4 => {
                (Work::Tcp(*ip), header_len)
            }
            (GsoKind::Udp, Transport::Udp { .. }) => (Work::Udp(*ip), udp::HEADER_LEN),
            (GsoKind::Tcp4 | GsoKind::Tcp6 | GsoKind::Udp, _) => return Err(Reason::BadOffload),
        };
        let headers_len = ip.transport_offset + header_len;
        let size = usize::from(gso.size);
        if size == 0 || headers_len > len {
            return Err(Reason::BadOffload);
        }
        let segments = (len - headers_len).div_ceil(size).max(1);
        if segments > usize::from(SEGMENTS_MAX) {
            return Err(Reason::BadOffload);
        }
        Ok(Self { frame: data, headers_len, size, segments, work })
    }

    /// How many packets there are: at least one.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Length of packet `ix`, its Ethernet header included. All but the last have the same.
    ///
    /// # Panics
    /// If there is no such packet.
    pub fn segment_len(&self, ix: usize) -> usize {
        self.headers_len + self.payload(ix).len()
    }

    /// Writes packet `ix` to the start of `to` and returns its length.
    ///
    /// # Panics
    /// If there is no such packet, or `to` is shorter than [`Cut::segment_len`].
    pub fn write(&self, ix: usize, to: &mut [u8]) -> usize {
        let payload = self.payload(ix);
        let len = self.headers_len + payload.len();
        let to = &mut to[..len];
        to[..self.headers_len].copy_from_slice(&self.frame[..self.headers_len]);
        to[self.headers_len..].copy_from_slice(payload);
        match self.work {
            Work::Nothing => {}
            Work::Complete { start, offset } => {
                let result = checksum::complete_partial(to, start, offset);
                debug_assert!(result.is_ok(), "checked when the cut was made");
            }
            Work::Tcp(ip) => {
                write_ip(to, &ip, ix);
                self.write_tcp(to, &ip, ix);
            }
            Work::Udp(ip) => {
                write_ip(to, &ip, ix);
                write_udp(to, &ip);
            }
        }
        len
    }

    /// The payload of packet `ix`; of a frame that is not cut, all of it.
    fn payload(&self, ix: usize) -> &'a [u8] {
        assert!(ix < self.segments, "packet {ix} of {}", self.segments);
        let start = self.headers_len + ix * self.size;
        let end = (start + self.size).min(self.frame.len());
        &self.frame[start..end]
    }

    /// The sequence number counts on; FIN and PSH belong to the last byte (RFC 9293 §3.4, §3.9.1), CWR to
    /// the first packet (RFC 3168 §6.1.2).
    fn write_tcp(&self, packet: &mut [u8], ip: &Ip, ix: usize) {
        let segment = &mut packet[ip.transport_offset..];
        let sequence = &mut segment[tcp::SEQUENCE_OFFSET..tcp::SEQUENCE_OFFSET + 4];
        let ahead = u32::try_from(ix * self.size).unwrap_or(u32::MAX);
        let first = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
        sequence.copy_from_slice(&first.wrapping_add(ahead).to_be_bytes());
        if ix != 0 {
            segment[tcp::FLAGS_OFFSET] &= !CWR;
        }
        if ix + 1 != self.segments {
            segment[tcp::FLAGS_OFFSET] &= !(FIN | PSH);
        }
        write_checksum(segment, ip, tcp::CHECKSUM_OFFSET);
    }
}

/// Writes lengths, the IPv4 identification and the IPv4 header's checksum.
fn write_ip(packet: &mut [u8], ip: &Ip, ix: usize) {
    let ip_len = packet.len() - ETHERNET_LEN;
    let header = &mut packet[ETHERNET_LEN..ip.transport_offset];
    if ip.source.is_ipv4() {
        header[2..4].copy_from_slice(&to_u16(ip_len).to_be_bytes());
        let first = u16::from_be_bytes([header[4], header[5]]);
        header[4..6].copy_from_slice(&first.wrapping_add(to_u16(ix)).to_be_bytes());
        checksum::set_ipv4_header(header);
    } else {
        header[4..6].copy_from_slice(&to_u16(ip_len - ipv6::HEADER_LEN).to_be_bytes());
    }
}

fn write_udp(packet: &mut [u8], ip: &Ip) {
    let segment = &mut packet[ip.transport_offset..];
    let len = to_u16(segment.len());
    segment[udp::LENGTH_OFFSET..udp::LENGTH_OFFSET + 2].copy_from_slice(&len.to_be_bytes());
    write_checksum(segment, ip, udp::CHECKSUM_OFFSET);
}

fn write_checksum(segment: &mut [u8], ip: &Ip, offset: usize) {
    segment[offset..offset + 2].fill(0);
    let sum = checksum::transport(ip.source, ip.destination, ip.protocol, segment);
    segment[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Lengths and indexes here are bounded by the longest IP packet.
fn to_u16(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
