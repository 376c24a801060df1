//! TCP resets: how the switch refuses a connection (RFC 9293 §3.5.2).

use std::net::IpAddr;

use crate::frame::{Checksum, Frame, Ingress};
use crate::wire::tcp::flag::{ACK, FIN, RST, SYN};
use crate::wire::{ETHERNET_LEN, Fragment, Ip, Transport, checksum, ethernet, ipv4, ipv6, tcp};

/// Writes the reset that answers the segment in `frame`, which [`crate::wire::parse`] found to be `ip`, into the empty
/// `reply`: from where the segment was sent to. The MAC addresses are left zero. Returns whether there is
/// one: a reset is not answered.
pub(crate) fn write(reply: &mut Frame, frame: &Frame, ip: &Ip) -> bool {
    let Transport::Tcp { header_len, .. } = ip.transport else { return false };
    let segment = frame.data().get(ip.transport_offset..ETHERNET_LEN + ip.len);
    let Some(header) = segment.and_then(tcp::read) else { return false };
    let flags = header.flags;
    if flags & RST != 0 || ip.fragment != Fragment::Whole {
        return false;
    }
    let payload_len = ETHERNET_LEN + ip.len - ip.transport_offset - header_len;
    // SYN and FIN take a sequence number each.
    let signs = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let len = u32::try_from(payload_len).unwrap_or(0).wrapping_add(signs);
    let (sequence, acknowledgment, reply_flags) = if flags & ACK != 0 {
        (header.acknowledgment.get(), 0, RST)
    } else {
        (0, header.sequence.get().wrapping_add(len), RST | ACK)
    };
    let answer = tcp::Header {
        source: header.destination,
        destination: header.source,
        sequence: sequence.into(),
        acknowledgment: acknowledgment.into(),
        data_offset: 5 << 4,
        flags: reply_flags,
        window: 0.into(),
        checksum: 0.into(),
        urgent: 0.into(),
    };
    write_packet(reply, ip.destination, ip.source, answer);
    true
}

fn write_packet(reply: &mut Frame, source: IpAddr, target: IpAddr, mut segment: tcp::Header) {
    use zerocopy::IntoBytes;
    let sum = checksum::transport(source, target, tcp::PROTOCOL, segment.as_bytes());
    segment.checksum = sum.into();
    let header_len = if source.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    reply.set_len(ETHERNET_LEN + header_len + tcp::HEADER_LEN);
    let data = reply.data_mut();
    data[..ETHERNET_LEN].fill(0);
    let (link, packet) = data.split_at_mut(ETHERNET_LEN);
    let (header, rest) = packet.split_at_mut(header_len);
    rest.copy_from_slice(segment.as_bytes());
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            link[12..].copy_from_slice(&ethernet::IPV4.to_be_bytes());
            header.fill(0);
            header[0] = 0x45;
            // 20 bytes of header and 20 of segment.
            header[3] = 40;
            header[6] = 0x40; // Don't Fragment: so the identification may stay zero (RFC 6864 §4.1).
            header[8] = TTL;
            header[9] = tcp::PROTOCOL;
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&target.octets());
            checksum::set_ipv4_header(header);
        }
        (source, target) => {
            link[12..].copy_from_slice(&ethernet::IPV6.to_be_bytes());
            header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 20, tcp::PROTOCOL, TTL]);
            for (place, address) in [(8, source), (24, target)] {
                if let IpAddr::V6(address) = address {
                    header[place..place + 16].copy_from_slice(&address.octets());
                }
            }
        }
    }
    reply.meta.ingress = Ingress::Switch;
    reply.meta.checksum = Checksum::Verified;
}

const TTL: u8 = 64;
