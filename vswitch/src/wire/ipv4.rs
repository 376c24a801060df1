//! IPv4 packets (RFC 791).

use std::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::verdict::Reason;
use crate::wire::checksum::Sum;
use crate::wire::{ETHERNET_LEN, Fragment, Ip, read_transport};

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// Don't Fragment, in [`Header::flags_fragment`].
pub const DONT_FRAGMENT: u16 = 0x4000;
/// More Fragments, in [`Header::flags_fragment`].
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset in units of eight bytes, in [`Header::flags_fragment`].
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Loose and strict source route (RFC 791 §3.1).
const SOURCE_ROUTES: [u8; 2] = [131, 137];

/// An IPv4 header without its options.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Version, 4, in the upper half; header length in units of four bytes in the lower.
    pub version_ihl: u8,
    /// Type of service.
    pub traffic_class: u8,
    /// Length of header and payload.
    pub total_len: U16,
    /// Identification of the datagram that a fragment belongs to.
    pub identification: U16,
    /// [`DONT_FRAGMENT`], [`MORE_FRAGMENTS`], [`FRAGMENT_OFFSET`].
    pub flags_fragment: U16,
    /// Time to live.
    pub ttl: u8,
    /// What follows.
    pub protocol: u8,
    /// Checksum over the header.
    pub checksum: U16,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

impl Header {
    /// Length of the header with options, in bytes.
    pub fn header_len(&self) -> usize {
        usize::from(self.version_ihl & 0xf) * 4
    }
}

/// Reads the packet behind an Ethernet header, and returns what `with` makes of it. Padding may follow it.
///
/// A packet that asks for a source route is refused as RFC 7126 §4.3 and §4.4 advise: its destination
/// address is not where it is going.
///
/// # Errors
/// [`Reason::Malformed`] when a length contradicts another, the header's checksum is wrong, the
/// fragment passes 65 535 bytes, or layer 4 of a whole packet is cut short.
#[inline(always)]
pub(super) fn read<T>(packet: &[u8], with: impl FnOnce(Ip) -> T) -> Result<T, Reason> {
    let (header, _) = Header::ref_from_prefix(packet).map_err(|_| Reason::Malformed)?;
    let header_len = header.header_len();
    let total_len = usize::from(header.total_len.get());
    let is_sound = header.version_ihl >> 4 == 4
        && header_len >= HEADER_LEN
        && header_len <= total_len
        && total_len <= packet.len();
    if !is_sound {
        return Err(Reason::Malformed);
    }
    let mut sum = Sum::of(header.as_bytes());
    if header_len > HEADER_LEN {
        let options = &packet[HEADER_LEN..header_len];
        check_options(options)?;
        sum = sum.add_bytes(options);
    }
    if sum.checksum() != 0 {
        return Err(Reason::Malformed);
    }
    let payload = &packet[header_len..total_len];
    let flags_fragment = header.flags_fragment.get();
    let fragment = read_fragment(flags_fragment, payload.len())?;
    let (transport, _) = read_transport(header.protocol, fragment, payload, true)?;
    Ok(with(Ip {
        source: Ipv4Addr::from(header.source).into(),
        destination: Ipv4Addr::from(header.destination).into(),
        ttl: header.ttl,
        traffic_class: header.traffic_class,
        len: total_len,
        fragment,
        dont_fragment: flags_fragment & DONT_FRAGMENT != 0,
        protocol: header.protocol,
        transport_offset: ETHERNET_LEN + header_len,
        transport,
    }))
}

fn read_fragment(flags_fragment: u16, payload_len: usize) -> Result<Fragment, Reason> {
    let offset = usize::from(flags_fragment & FRAGMENT_OFFSET) * 8;
    let more = flags_fragment & MORE_FRAGMENTS != 0;
    // RFC 791 §3.1: a datagram is at most 65 535 bytes long, and only its end may be odd.
    if offset + payload_len > 65_535 || (more && !payload_len.is_multiple_of(8)) {
        return Err(Reason::Malformed);
    }
    Ok(match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    })
}

fn check_options(mut options: &[u8]) -> Result<(), Reason> {
    while let Some((&kind, rest)) = options.split_first() {
        match kind {
            0 => break,
            1 => options = rest,
            _ => {
                let len = usize::from(*rest.first().ok_or(Reason::Malformed)?);
                if len < 2 || len > options.len() || SOURCE_ROUTES.contains(&kind) {
                    return Err(Reason::Malformed);
                }
                options = &options[len..];
            }
        }
    }
    Ok(())
}

/// Takes one from the TTL and updates the checksum (RFC 1812 §5.3.1, RFC 1624). A TTL of zero stays.
///
/// # Panics
/// If `packet` is shorter than a header.
#[inline(always)]
pub fn decrement_ttl(packet: &mut [u8]) {
    let header = &mut packet[..HEADER_LEN];
    if header[8] == 0 {
        return;
    }
    header[8] -= 1;
    // What the sum has lost its complement gains; 0xffff is 0.
    let (sum, carry) = u16::from_be_bytes([header[10], header[11]]).overflowing_add(0x0100);
    let sum = sum.wrapping_add(u16::from(carry || sum == u16::MAX));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Transport, checksum};

    fn read(packet: &[u8]) -> Result<Ip, Reason> {
        super::read(packet, |ip| ip)
    }

    /// A ping, as `ping -c 1 -s 0` sends it.
    #[rustfmt::skip]
    const PING: [u8; 28] = [
        0x45, 0x00, 0x00, 0x1c, 0xbe, 0xef, 0x40, 0x00, // 28 bytes, Don't Fragment
        0x40, 0x01, 0x62, 0xfe, // TTL 64, ICMP
        10, 244, 1, 5, 10, 244, 2, 7,
        0x08, 0x00, 0xf7, 0xfd, 0x00, 0x01, 0x00, 0x01,
    ];

    fn with(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut packet = PING.to_vec();
        change(&mut packet);
        let header_len = (usize::from(packet[0] & 0xf) * 4).clamp(20, packet.len());
        checksum::set_ipv4_header(&mut packet[..header_len]);
        packet
    }

    #[test]
    fn a_ping_is_read() {
        assert_eq!(with(|_| ()), PING, "the literal's checksum");
        let ip = read(&PING).unwrap();
        assert_eq!(
            ip,
            Ip {
                source: [10, 244, 1, 5].into(),
                destination: [10, 244, 2, 7].into(),
                ttl: 64,
                traffic_class: 0,
                len: 28,
                fragment: Fragment::Whole,
                dont_fragment: true,
                protocol: 1,
                transport_offset: 34,
                transport: Transport::Icmp { kind: 8, code: 0 },
            }
        );
    }

    #[test]
    fn padding_is_not_part_of_the_packet() {
        let mut packet = PING.to_vec();
        packet.resize(46, 0);
        assert_eq!(read(&packet), read(&PING));
    }

    #[test]
    fn contradictions_are_refused() {
        let cases: [(&str, Vec<u8>); 9] = [
            ("cut short", PING[..27].to_vec()),
            ("header cut short", PING[..19].to_vec()),
            ("version 6", with(|packet| packet[0] = 0x65)),
            ("header too short", with(|packet| packet[0] = 0x44)),
            ("header longer than the packet", with(|packet| packet[0] = 0x4f)),
            ("total length zero", with(|packet| packet[2..4].fill(0))),
            ("layer 4 cut short", with(|packet| packet[3] = 23)),
            (
                "past the longest datagram",
                with(|packet| packet[6..8].copy_from_slice(&[0x1f, 0xff])),
            ),
            ("checksum", {
                let mut packet = PING.to_vec();
                packet[10] ^= 1;
                packet
            }),
        ];
        for (name, packet) in cases {
            assert_eq!(read(&packet), Err(Reason::Malformed), "{name}");
        }
    }

    #[test]
    fn fragments_are_told_apart() {
        let first = with(|packet| packet[6..8].copy_from_slice(&[0x20, 0]));
        assert_eq!(read(&first).unwrap().fragment, Fragment::First);
        assert!(!read(&first).unwrap().dont_fragment);
        let later = with(|packet| packet[6..8].copy_from_slice(&[0x20, 1]));
        let ip = read(&later).unwrap();
        assert_eq!((ip.fragment, ip.transport), (Fragment::Later, Transport::Other));
        let last = with(|packet| packet[6..8].copy_from_slice(&[0, 1]));
        assert_eq!(read(&last).unwrap().fragment, Fragment::Later);
    }

    fn with_options(options: [u8; 4]) -> Vec<u8> {
        let mut packet = PING.to_vec();
        packet.splice(20..20, options);
        packet[0] = 0x46;
        packet[3] = 32;
        checksum::set_ipv4_header(&mut packet[..24]);
        packet
    }

    #[test]
    fn options_are_stepped_over() {
        // Router alert (RFC 2113); no-operations and end of list.
        for options in [[148, 4, 0, 0], [1, 1, 0, 99]] {
            let ip = read(&with_options(options)).unwrap();
            assert_eq!(ip.transport_offset, 38);
            assert_eq!(ip.transport, Transport::Icmp { kind: 8, code: 0 });
        }
    }

    #[test]
    fn source_routes_and_broken_options_are_refused() {
        for options in
            [[131, 4, 4, 0], [1, 137, 3, 4], [148, 5, 0, 0], [148, 1, 0, 0], [1, 1, 1, 7]]
        {
            assert_eq!(read(&with_options(options)), Err(Reason::Malformed), "{options:?}");
        }
    }

    #[test]
    fn the_ttl_goes_down_with_a_right_checksum() {
        let mut packet = PING;
        for ttl in (0..64).rev() {
            decrement_ttl(&mut packet);
            assert_eq!(read(&packet).unwrap().ttl, ttl);
        }
        decrement_ttl(&mut packet);
        assert_eq!(read(&packet).unwrap().ttl, 0);
    }

    #[test]
    fn every_checksum_is_updated_as_the_rfc_says() {
        for old in 0..=u16::MAX {
            let mut packet = PING;
            packet[10..12].copy_from_slice(&old.to_be_bytes());
            decrement_ttl(&mut packet);
            let new = checksum::update(old, 0x4001, 0x3f01);
            assert_eq!(packet[10..12], new.to_be_bytes(), "{old:#06x}");
        }
    }
}
