//! The virtio-net header in front of every frame that a TAP or packet socket reads or writes
//! (`struct virtio_net_hdr`, `linux/virtio_net.h`; virtio 1.3 §5.1.6).

use zerocopy::byteorder::native_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame::{Checksum, Frame, Gso, GsoKind};
use crate::offload::SEGMENTS_MAX;
use crate::verdict::Reason;
use crate::wire::{self, ETHERNET_LEN, Fragment, Ip, Network, Transport, checksum, tcp, udp};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_NONE`.
const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`, added to a TCP type.
const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`, in the byte order of the machine, which is what TAPs and packet sockets use
/// unless told otherwise.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct VnetHeader {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of all headers: a hint. On the forward path Linux writes something else.
    pub hdr_len: U16,
    /// Payload bytes in each packet but the last.
    pub gso_size: U16,
    /// Where the summed bytes begin, from the start of the frame.
    pub csum_start: U16,
    /// Where the checksum belongs, from `csum_start`.
    pub csum_offset: U16,
}

impl VnetHeader {
    /// Its length, and the least that `TUNSETVNETHDRSZ` takes.
    pub const LEN: usize = size_of::<Self>();

    /// The header of a whole packet of which nothing is left to do.
    pub const NONE: Self = Self {
        flags: 0,
        gso_type: GSO_NONE,
        hdr_len: U16::ZERO,
        gso_size: U16::ZERO,
        csum_start: U16::ZERO,
        csum_offset: U16::ZERO,
    };

    /// Reads the header at the start of `bytes`; `None` if there are fewer than [`VnetHeader::LEN`].
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(header, _)| header)
    }

    /// The header's bytes, to be written in front of the frame.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        zerocopy::transmute!(self)
    }
}

/// Sets the frame's [`crate::frame::Meta`] to what the header says, and checks it against the frame's
/// bytes; the ingress stays. A frame whose checksum is partial loses its padding.
///
/// Neither the header nor the frame is trusted: both may come from a pod.
///
/// # Errors
/// [`Reason::BadOffload`] when header and frame contradict each other, or the super-frame stands for
/// more than [`SEGMENTS_MAX`] packets; what [`wire::parse`] returns when the frame is not one that can
/// have offloads.
pub fn decode(header: &VnetHeader, frame: &mut Frame) -> Result<(), Reason> {
    frame.meta.gso = None;
    frame.meta.checksum =
        if header.flags & DATA_VALID == 0 { Checksum::Filled } else { Checksum::Verified };
    if header.flags & NEEDS_CSUM == 0 {
        // virtio 1.3 §5.1.6.2: segmentation implies a partial checksum.
        return if header.gso_type == GSO_NONE { Ok(()) } else { Err(Reason::BadOffload) };
    }
    let Network::Ip(ip) = wire::parse(frame.data())?.network else {
        return Err(Reason::BadOffload);
    };
    let checksum = decode_checksum(header, frame.data(), &ip)?;
    let gso = decode_gso(header, &ip)?;
    frame.set_len(ETHERNET_LEN + ip.len);
    frame.meta.checksum = checksum;
    frame.meta.gso = gso;
    Ok(())
}

/// A checksum is completed only where the packet has one, or in what the packet carries: a tunnel's own
/// packet, whose checksum Linux leaves to be done behind the tunnel's headers. Elsewhere it could change
/// an address or a port after it was checked.
fn decode_checksum(header: &VnetHeader, frame: &[u8], ip: &Ip) -> Result<Checksum, Reason> {
    let (start, offset) = (header.csum_start.get(), header.csum_offset.get());
    let end = ETHERNET_LEN + ip.len;
    let is_own = usize::from(start) == ip.transport_offset
        && Some(usize::from(offset)) == checksum::checksum_offset(ip.transport);
    let (carried_from, is_whole_datagram) = match ip.transport {
        Transport::Udp { .. } => {
            let len = udp::len(&frame[ip.transport_offset..]);
            (Some(ip.transport_offset + udp::HEADER_LEN), len == Some(end - ip.transport_offset))
        }
        Transport::Other => (Some(ip.transport_offset), true),
        Transport::Tcp { .. } | Transport::Sctp { .. } | Transport::Icmp { .. } => (None, true),
    };
    let is_carried = header.gso_type == GSO_NONE
        && carried_from.is_some_and(|from| usize::from(start) >= from)
        && usize::from(start) + usize::from(offset) + 2 <= end;
    let is_sound = ip.fragment == Fragment::Whole && is_whole_datagram && (is_own || is_carried);
    if is_sound { Ok(Checksum::Partial { start, offset }) } else { Err(Reason::BadOffload) }
}

fn decode_gso(header: &VnetHeader, ip: &Ip) -> Result<Option<Gso>, Reason> {
    let is_ipv4 = ip.source.is_ipv4();
    let (kind, header_len) = match (header.gso_type & !GSO_ECN, ip.transport) {
        (GSO_NONE, _) if header.gso_type == GSO_NONE => return Ok(None),
        (GSO_TCPV4, Transport::Tcp { header_len, .. }) if is_ipv4 => (GsoKind::Tcp4, header_len),
        (GSO_TCPV6, Transport::Tcp { header_len, .. }) if !is_ipv4 => (GsoKind::Tcp6, header_len),
        (GSO_UDP_L4, Transport::Udp { .. }) if header.gso_type == GSO_UDP_L4 => {
            (GsoKind::Udp, udp::HEADER_LEN)
        }
        _ => return Err(Reason::BadOffload),
    };
    let size = header.gso_size.get();
    let payload_len = ETHERNET_LEN + ip.len - ip.transport_offset - header_len;
    if size == 0 {
        return Err(Reason::BadOffload);
    }
    if payload_len <= usize::from(size) {
        // One packet. Linux takes it as an ordinary one, too (`virtio_net_hdr_to_skb`).
        return Ok(None);
    }
    match u16::try_from(payload_len.div_ceil(usize::from(size))) {
        Ok(segments) if segments <= SEGMENTS_MAX => Ok(Some(Gso { kind, size, segments })),
        Ok(_) | Err(_) => Err(Reason::BadOffload),
    }
}

/// The header to write in front of the frame.
///
/// A super-frame must have a partial checksum, as [`decode`] and [`super::Coalescer`] leave it.
pub fn encode(frame: &Frame) -> VnetHeader {
    let (start, offset) = match frame.meta.checksum {
        Checksum::Filled => return VnetHeader::NONE,
        Checksum::Verified => return VnetHeader { flags: DATA_VALID, ..VnetHeader::NONE },
        Checksum::Partial { start, offset } => (start, offset),
    };
    let header = VnetHeader {
        flags: NEEDS_CSUM,
        csum_start: U16::new(start),
        csum_offset: U16::new(offset),
        ..VnetHeader::NONE
    };
    let Some(gso) = frame.meta.gso else {
        return header;
    };
    let segment = frame.data().get(usize::from(start)..).unwrap_or_default();
    let (gso_type, header_len) = match gso.kind {
        GsoKind::Tcp4 => encode_tcp(GSO_TCPV4, segment),
        GsoKind::Tcp6 => encode_tcp(GSO_TCPV6, segment),
        GsoKind::Udp => (GSO_UDP_L4, udp::HEADER_LEN),
    };
    let hdr_len = u16::try_from(usize::from(start) + header_len).unwrap_or(u16::MAX);
    VnetHeader { gso_type, hdr_len: U16::new(hdr_len), gso_size: U16::new(gso.size), ..header }
}

fn encode_tcp(gso_type: u8, segment: &[u8]) -> (u8, usize) {
    let Some(header) = tcp::read(segment) else {
        return (gso_type, tcp::HEADER_LEN);
    };
    let has_cwr = header.flags & tcp::flag::CWR != 0;
    (if has_cwr { gso_type | GSO_ECN } else { gso_type }, header.header_len())
}
