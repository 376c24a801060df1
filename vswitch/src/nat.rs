//! Other addresses and ports for a packet, whatever it looks like.
//!
//! Nothing but header fields and checksums changes, so a super-frame stays one. Checksums are updated and
//! never computed anew: a packet that came damaged leaves damaged.
//!
//! | checksum | what happens |
//! |---|---|
//! | filled in | updated for addresses and ports (RFC 1624) |
//! | partial (`NEEDS_CSUM`, all super-frames) | the field holds the pseudo-header's sum: updated for the addresses |
//! | UDP's zero | stays zero |
//! | SCTP's CRC | covers the ports: updated if they change |
//! | in a first fragment | as in a whole packet, which it is part of |

use std::net::IpAddr;

use crate::flows::{FlowProtocol, Packed, Tuple};
use crate::frame::{Checksum, Frame};
use crate::service::Protocol;
use crate::verdict::Reason;
use crate::wire::checksum::{Change, Sum};
use crate::wire::{ETHERNET_LEN, Fragment, Ip, Transport, icmp, ipv4, ipv6, sctp, tcp, udp};

/// Gives the packet in `frame`, of which [`crate::wire::parse`] said `ip`, the addresses and ports of `to`. A later
/// fragment has no ports, and gets the addresses.
///
/// # Errors
/// [`Reason::FragmentUnknown`] for a fragment of an SCTP packet whose ports would change: its CRC covers what is
/// in the others. The frame is then as it was.
#[inline(always)]
pub fn translate(frame: &mut Frame, ip: &Ip, to: &Packed) -> Result<(), Reason> {
    match ip.transport {
        Transport::Tcp { .. } => translate_summed::<{ tcp::CHECKSUM_OFFSET }>(frame, ip, to),
        Transport::Udp { .. } => translate_summed::<{ udp::CHECKSUM_OFFSET }>(frame, ip, to),
        Transport::Sctp { .. } => return translate_sctp(frame, ip, to),
        // A later fragment.
        Transport::Icmp { .. } | Transport::Other => {
            set_addresses(&mut frame.data_mut()[ETHERNET_LEN..], to);
        }
    }
    Ok(())
}

/// A TCP segment or UDP datagram, or the first fragment of one, with its checksum at `OFFSET`.
#[inline]
fn translate_summed<const OFFSET: usize>(frame: &mut Frame, ip: &Ip, to: &Packed) {
    let is_partial = is_partial(frame, ip);
    let is_udp = OFFSET == udp::CHECKSUM_OFFSET;
    let data = frame.data_mut();
    let addresses = set_addresses(&mut data[ETHERNET_LEN..], to);
    let segment = &mut data[ip.transport_offset..];
    let change = set_ports(segment, to.port_bytes(), addresses);
    if is_partial {
        write_at(segment, OFFSET, |sum| addresses.update_sum(sum));
    } else {
        write_at(segment, OFFSET, |field| update(change, is_udp, field));
    }
}

fn translate_sctp(frame: &mut Frame, ip: &Ip, to: &Packed) -> Result<(), Reason> {
    let ports = [to.source_port(), to.destination_port()];
    let Transport::Sctp { source, destination } = ip.transport else { return Ok(()) };
    let changes = [source, destination] != ports;
    if changes && ip.fragment != Fragment::Whole {
        return Err(Reason::FragmentUnknown);
    }
    let (packet, end) = (frame.data_mut(), ETHERNET_LEN + ip.len);
    set_addresses(&mut packet[ETHERNET_LEN..], to);
    if changes {
        sctp::set_ports(&mut packet[ip.transport_offset..end], ports[0], ports[1]);
    }
    Ok(())
}

/// The packet that an ICMP error is about, as far as the error quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted {
    /// Its tuple.
    pub tuple: Tuple,
    /// Where it begins, from the start of the frame.
    start: usize,
    /// Where its layer 4 header begins.
    transport: usize,
}

/// What an ICMP error in `frame` quotes; `None` if it is no error, is a fragment, or does not quote ports.
pub fn quoted(frame: &[u8], ip: &Ip) -> Option<Quoted> {
    if !is_error(ip) || ip.fragment != Fragment::Whole {
        return None;
    }
    let start = ip.transport_offset + QUOTE_OFFSET;
    let packet = frame.get(start..ETHERNET_LEN + ip.len)?;
    let (source, destination, transport, protocol) = if ip.source.is_ipv4() {
        let header_len = usize::from(packet.first()? & 0x0f) * 4;
        let later = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & ipv4::FRAGMENT_OFFSET;
        if packet[0] >> 4 != 4 || header_len < ipv4::HEADER_LEN || later != 0 {
            return None;
        }
        let source: [u8; 4] = *packet.get(12..)?.first_chunk()?;
        let destination: [u8; 4] = *packet.get(16..)?.first_chunk()?;
        (IpAddr::from(source), IpAddr::from(destination), header_len, *packet.get(9)?)
    } else {
        if packet.first()? >> 4 != 6 {
            return None;
        }
        let source: [u8; 16] = *packet.get(8..)?.first_chunk()?;
        let destination: [u8; 16] = *packet.get(24..)?.first_chunk()?;
        let (transport, protocol) = ipv6::quoted_transport(packet)?;
        (IpAddr::from(source), IpAddr::from(destination), transport, protocol)
    };
    let header = packet.get(transport..)?;
    let (protocol, ports) = quoted_ports(header, protocol, ip.source.is_ipv4())?;
    let tuple =
        Tuple { source: (source, ports[0]), destination: (destination, ports[1]), protocol };
    Some(Quoted { tuple, start, transport: start + transport })
}

/// The protocol and ports of the packet that is quoted from its layer 4 header on; an echo's identifier stands for the
/// port of who asked.
fn quoted_ports(header: &[u8], protocol: u8, is_ipv4: bool) -> Option<(FlowProtocol, [u16; 2])> {
    if let Some(protocol) = Protocol::from_number(protocol) {
        let [a, b, c, d] = *header.first_chunk()?;
        return Some((protocol.into(), [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]));
    }
    if protocol != if is_ipv4 { icmp::PROTOCOL_V4 } else { icmp::PROTOCOL_V6 } {
        return None;
    }
    let [kind, _, _, _, a, b] = *header.first_chunk()?;
    let identifier = u16::from_be_bytes([a, b]);
    let ports = match icmp::echo(is_ipv4, kind)? {
        icmp::Echo::Request => [identifier, 0],
        icmp::Echo::Reply => [0, identifier],
    };
    Some((FlowProtocol::Echo, ports))
}

/// Where an ICMP error goes that travels with the packets which leave as `to`, and came as `from`.
pub fn error_addresses(ip: &Ip, from: &Tuple, to: &Tuple) -> (IpAddr, IpAddr) {
    // A router on the way speaks for itself.
    let source = if ip.source == from.source.0 { to.source.0 } else { ip.source };
    (source, to.destination.0)
}

/// Gives the ICMP error in `frame` its addresses, and what it quotes the tuple of a packet that came from where
/// the error goes: `to` inverted.
pub fn translate_error(frame: &mut Frame, ip: &Ip, quoted: &Quoted, to: &Tuple) {
    let is_partial = is_partial(frame, ip);
    let (source, destination) = error_addresses(ip, &quoted.tuple.inverse(), to);
    let end = ETHERNET_LEN + ip.len;
    let data = frame.data_mut();
    // The ports are not looked at.
    let outer = Tuple { source: (source, 0), destination: (destination, 0), ..*to }.packed();
    let outer = set_addresses(&mut data[ETHERNET_LEN..], &outer);
    // All that changes: the headers, and of layer 4's as much as is quoted of the longest.
    let changing = quoted.start..end.min(quoted.transport + tcp::HEADER_LEN);
    let before = Sum::of(&data[changing.clone()]);

    let quote = to.inverse();
    let (header, rest) = data[quoted.start..end].split_at_mut(quoted.transport - quoted.start);
    let packed = quote.packed();
    let inner = set_addresses(header, &packed);
    let change = set_ports(rest, packed.port_bytes(), inner);
    // As far as it is quoted. SCTP's cannot be known: only its beginning is here.
    let offset = match quote.protocol {
        FlowProtocol::Tcp => Some(tcp::CHECKSUM_OFFSET),
        FlowProtocol::Udp => Some(udp::CHECKSUM_OFFSET),
        FlowProtocol::Sctp | FlowProtocol::Echo | FlowProtocol::Other(_) => None,
    };
    if let Some(offset) = offset.filter(|offset| rest.len() >= offset + 2) {
        let is_udp = quote.protocol == FlowProtocol::Udp;
        write_at(rest, offset, |field| update(change, is_udp, field));
    }

    let after = Sum::of(&data[changing]);
    // ICMPv6 covers the addresses, ICMP does not.
    let pseudo = if ip.source.is_ipv4() { Change::default() } else { outer };
    let whole = pseudo.between(before, after);
    let message = &mut data[ip.transport_offset..];
    if is_partial {
        write_at(message, icmp::CHECKSUM_OFFSET, |sum| pseudo.update_sum(sum));
    } else {
        write_at(message, icmp::CHECKSUM_OFFSET, |field| whole.update(field));
    }
}

/// Whether the field holds the pseudo-header's sum. What a packet carries may be partial, too, and is no concern
/// of its own checksum.
#[inline]
fn is_partial(frame: &Frame, ip: &Ip) -> bool {
    matches!(frame.meta.checksum, Checksum::Partial { start, .. }
        if usize::from(start) == ip.transport_offset)
}

fn is_error(ip: &Ip) -> bool {
    match (ip.transport, ip.source) {
        // RFC 792: unreachable, quench, redirect, exceeded, parameter problem.
        (Transport::Icmp { kind, .. }, IpAddr::V4(_)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        // RFC 4443 §2.1.
        (Transport::Icmp { kind, .. }, IpAddr::V6(_)) => kind < 128,
        _ => false,
    }
}

/// Writes addresses into the header of an IP packet of the same family, and IPv4's checksum.
#[inline(always)]
fn set_addresses(packet: &mut [u8], to: &Packed) -> Change {
    if to.is_v4() {
        let header = first_chunk_mut::<{ ipv4::HEADER_LEN }>(packet);
        let change = replace(first_chunk_mut(&mut header[12..]), &to.v4_bytes(), Change::default());
        write_at(header, V4_CHECKSUM_OFFSET, |field| change.update(field));
        return change;
    }
    let header = first_chunk_mut::<{ ipv6::HEADER_LEN }>(packet);
    let (parts, _) = header[8..].as_chunks_mut::<8>();
    parts
        .iter_mut()
        .zip(to.v6_bytes())
        .fold(Change::default(), |change, (part, address)| replace(part, &address, change))
}

/// Writes ports into a layer 4 header, and adds that to `change`.
#[inline]
fn set_ports(segment: &mut [u8], ports: [u8; 4], change: Change) -> Change {
    replace(first_chunk_mut(segment), &ports, change)
}

#[inline]
fn replace<const N: usize>(place: &mut [u8; N], with: &[u8; N], change: Change) -> Change {
    let change = change.of(place, with);
    *place = *with;
    change
}

/// The first bytes of a header that has as many.
#[inline]
fn first_chunk_mut<const N: usize>(bytes: &mut [u8]) -> &mut [u8; N] {
    bytes.first_chunk_mut().expect("the packet was parsed")
}

/// A UDP checksum of zero means none, and one that comes out as zero is sent as its other form (RFC 768).
#[inline]
fn update(change: Change, is_udp: bool, field: u16) -> u16 {
    match (is_udp, field) {
        (true, 0) => 0,
        (true, field) => match change.update(field) {
            0 => u16::MAX,
            sum => sum,
        },
        (false, field) => change.update(field),
    }
}

#[inline]
fn write_at(bytes: &mut [u8], offset: usize, change: impl FnOnce(u16) -> u16) {
    let field = &mut bytes[offset..offset + 2];
    let value = change(u16::from_be_bytes([field[0], field[1]]));
    field.copy_from_slice(&value.to_be_bytes());
}

const V4_CHECKSUM_OFFSET: usize = 10;

/// Where in an ICMP error the packet begins that it is about (RFC 792, RFC 4443 §3).
const QUOTE_OFFSET: usize = 8;

#[cfg(test)]
mod tests;
