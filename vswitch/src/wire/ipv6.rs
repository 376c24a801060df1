//! IPv6 packets and their extension headers (RFC 8200).

use std::net::Ipv6Addr;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::verdict::Reason;
use crate::wire::{ETHERNET_LEN, Fragment, Ip, read_transport};

/// Length of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Most extension headers in front of layer 4. RFC 8200 §4.1 recommends at most seven, each once.
pub const EXTENSIONS_MAX: usize = 8;

/// Next-header numbers of extension headers (IANA "IPv6 Extension Header Types").
pub(crate) const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// The jumbo payload option's type (RFC 2675 §2).
pub(crate) const OPTION_JUMBO: u8 = 0xc2;

/// The fixed IPv6 header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Version, 6, in the upper four bits; then traffic class and flow label.
    pub version_class_flow: U32,
    /// Length of what follows the fixed header.
    pub payload_len: U16,
    /// What follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

impl Header {
    /// The traffic class.
    pub fn traffic_class(&self) -> u8 {
        let [first, second, ..] = self.version_class_flow.to_bytes();
        first << 4 | second >> 4
    }
}

/// Reads the packet behind an Ethernet header, and returns what `with` makes of it. Padding may follow it.
///
/// Two kinds of packets are refused so that no stage can be deceived about where a packet goes and what
/// it carries: those that ask for a source route with hops left, whose destination address is not where
/// they are going, and first fragments that do not hold all headers up to layer 4's
/// (RFC 8200 §4.5, RFC 7112).
///
/// # Errors
/// [`Reason::Malformed`], for these, and when a length contradicts another, there are more than
/// [`EXTENSIONS_MAX`] extension headers, the fragment passes 65 535 bytes, or layer 4 is cut short.
#[inline(always)]
pub(super) fn read<T>(packet: &[u8], with: impl FnOnce(Ip) -> T) -> Result<T, Reason> {
    let (header, rest) = Header::ref_from_prefix(packet).map_err(|_| Reason::Malformed)?;
    let payload_len = usize::from(header.payload_len.get());
    let payload = rest.get(..payload_len).ok_or(Reason::Malformed)?;
    if packet[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let chain = walk(header.next_header, payload)?;
    let upper = &payload[chain.len..];
    let (transport, is_cut) = read_transport(chain.protocol, chain.fragment, upper, false)?;
    if is_cut {
        return Err(Reason::Malformed);
    }
    Ok(with(Ip {
        source: Ipv6Addr::from(header.source).into(),
        destination: Ipv6Addr::from(header.destination).into(),
        ttl: header.hop_limit,
        traffic_class: header.traffic_class(),
        len: HEADER_LEN + payload_len,
        fragment: chain.fragment,
        dont_fragment: true,
        protocol: chain.protocol,
        transport_offset: ETHERNET_LEN + HEADER_LEN + chain.len,
        transport,
    }))
}

/// The extension headers of a packet.
struct Chain {
    /// The first number that is not an extension header that can be walked.
    protocol: u8,
    /// Length of all that were walked.
    len: usize,
    fragment: Fragment,
    /// Whether there was a fragment header, even if this is no fragment.
    is_fragment: bool,
}

/// Walks the extension headers in front of layer 4, which is where `payload` begins.
fn walk(next_header: u8, payload: &[u8]) -> Result<Chain, Reason> {
    let fragment = Fragment::Whole;
    let mut chain = Chain { protocol: next_header, len: 0, fragment, is_fragment: false };
    for _ in 0..EXTENSIONS_MAX {
        let at = chain.protocol;
        let rest = &payload[chain.len..];
        let len = match at {
            HOP_BY_HOP | DESTINATION | ROUTING => {
                let len = (usize::from(*rest.get(1).ok_or(Reason::Malformed)?) + 1) * 8;
                if at == ROUTING && *rest.get(3).ok_or(Reason::Malformed)? != 0 {
                    return Err(Reason::Malformed);
                }
                len
            }
            // RFC 4302 §2.2: units of four bytes, minus two.
            AUTHENTICATION => (usize::from(*rest.get(1).ok_or(Reason::Malformed)?) + 2) * 4,
            // RFC 8200 §4.1: each but one kind once. A fragment in a fragment could hide one header behind another.
            FRAGMENT if chain.is_fragment => return Err(Reason::Malformed),
            FRAGMENT => 8,
            _ => return Ok(chain),
        };
        let extension = rest.get(..len).ok_or(Reason::Malformed)?;
        chain.protocol = extension[0];
        chain.len += len;
        if at == FRAGMENT {
            chain.is_fragment = true;
            let behind = payload.len() - chain.len;
            match read_fragment([extension[2], extension[3]], behind)? {
                Fragment::Later => return Ok(Chain { fragment: Fragment::Later, ..chain }),
                Fragment::First => chain.fragment = Fragment::First,
                // Not a fragment in spite of its header (RFC 6946).
                Fragment::Whole => {}
            }
        }
    }
    match chain.protocol {
        HOP_BY_HOP | DESTINATION | ROUTING | AUTHENTICATION | FRAGMENT => Err(Reason::Malformed),
        _ => Ok(chain),
    }
}

/// The identification in the fragment header of the packet at the start of `packet`; `None` if it has none.
pub fn fragment_id(packet: &[u8]) -> Option<u32> {
    let (header, payload) = Header::ref_from_prefix(packet).ok()?;
    let (mut at, mut rest) = (header.next_header, payload);
    for _ in 0..EXTENSIONS_MAX {
        let len = match at {
            HOP_BY_HOP | DESTINATION | ROUTING => (usize::from(*rest.get(1)?) + 1) * 8,
            AUTHENTICATION => (usize::from(*rest.get(1)?) + 2) * 4,
            FRAGMENT => {
                let [a, b, c, d] = *rest.get(4..8)?.first_chunk()?;
                return Some(u32::from_be_bytes([a, b, c, d]));
            }
            _ => return None,
        };
        at = *rest.first()?;
        rest = rest.get(len..)?;
    }
    None
}

/// Where layer 4 begins, and its protocol, in the packet at the start of `packet`, which may be cut short: one
/// that an error quotes. `None` if that is not there, or it is a later fragment.
pub(crate) fn quoted_transport(packet: &[u8]) -> Option<(usize, u8)> {
    let (header, payload) = Header::ref_from_prefix(packet).ok()?;
    let mut at = header.next_header;
    let mut offset = 0;
    for _ in 0..EXTENSIONS_MAX {
        let rest = payload.get(offset..)?;
        let len = match at {
            HOP_BY_HOP | DESTINATION | ROUTING => (usize::from(*rest.get(1)?) + 1) * 8,
            AUTHENTICATION => (usize::from(*rest.get(1)?) + 2) * 4,
            FRAGMENT if u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]) & 0xfff8 == 0 => 8,
            FRAGMENT => return None,
            _ => return Some((HEADER_LEN + offset, at)),
        };
        at = *rest.first()?;
        offset += len;
    }
    None
}

/// RFC 8200 §4.5: offset in units of eight bytes, two reserved bits, More Fragments.
fn read_fragment(field: [u8; 2], payload_len: usize) -> Result<Fragment, Reason> {
    let field = u16::from_be_bytes(field);
    let offset = usize::from(field & 0xfff8);
    let more = field & 1 == 1;
    if offset + payload_len > 65_535 || (more && !payload_len.is_multiple_of(8)) {
        return Err(Reason::Malformed);
    }
    Ok(match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    })
}

/// Takes one from the hop limit (RFC 8200 §3). Zero stays.
///
/// # Panics
/// If `packet` is shorter than a header.
#[inline(always)]
pub fn decrement_hop_limit(packet: &mut [u8]) {
    packet[7] = packet[7].saturating_sub(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Transport;

    fn read(packet: &[u8]) -> Result<Ip, Reason> {
        super::read(packet, |ip| ip)
    }

    const UDP: u8 = 17;
    const DATAGRAM: [u8; 8] = [0x12, 0x34, 0, 53, 0, 8, 0xaa, 0xbb];
    const TO_53: Transport = Transport::Udp { source: 0x1234, destination: 53 };

    /// A packet with the given extension headers, each without its next-header byte.
    fn packet(extensions: &[(u8, &[u8])], last: u8, upper: &[u8]) -> Vec<u8> {
        let mut numbers = extensions.iter().map(|(number, _)| *number).chain([last]);
        let first = numbers.next().unwrap();
        let mut payload = Vec::new();
        for ((_, body), next) in extensions.iter().zip(numbers) {
            payload.push(next);
            payload.extend_from_slice(body);
        }
        payload.extend_from_slice(upper);
        let mut packet = vec![0x6a, 0xb1, 0x23, 0x45];
        packet.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
        packet.extend_from_slice(&[first, 64]);
        packet.extend_from_slice(&"fd00:10:244:1::5".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(&"fd00:10:244:2::7".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(&payload);
        packet
    }

    const OPTIONS: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    const SPENT_ROUTE: &[u8] = &[0, 4, 0, 0, 0, 0, 0];
    const AH: &[u8] = &[2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9];

    #[test]
    fn a_datagram_is_read() {
        assert_eq!(
            read(&packet(&[], UDP, &DATAGRAM)).unwrap(),
            Ip {
                source: "fd00:10:244:1::5".parse().unwrap(),
                destination: "fd00:10:244:2::7".parse().unwrap(),
                ttl: 64,
                traffic_class: 0xab,
                len: 48,
                fragment: Fragment::Whole,
                dont_fragment: true,
                protocol: UDP,
                transport_offset: 54,
                transport: TO_53,
            }
        );
    }

    #[test]
    fn extension_headers_are_walked() {
        let chain = [
            (HOP_BY_HOP, OPTIONS),
            (ROUTING, SPENT_ROUTE),
            (AUTHENTICATION, AH),
            (DESTINATION, OPTIONS),
        ];
        let ip = read(&packet(&chain, UDP, &DATAGRAM)).unwrap();
        assert_eq!((ip.transport, ip.transport_offset), (TO_53, 54 + 8 + 8 + 16 + 8));
    }

    #[test]
    fn a_chain_has_a_limit_and_must_fit() {
        let most = vec![(DESTINATION, OPTIONS); EXTENSIONS_MAX];
        assert_eq!(read(&packet(&most, UDP, &DATAGRAM)).unwrap().transport, TO_53);
        let more = vec![(DESTINATION, OPTIONS); EXTENSIONS_MAX + 1];
        assert_eq!(read(&packet(&more, UDP, &DATAGRAM)), Err(Reason::Malformed));
        for number in [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION] {
            assert_eq!(read(&packet(&[], number, &[])), Err(Reason::Malformed), "{number}");
            assert_eq!(read(&packet(&[], number, &[UDP, 9])), Err(Reason::Malformed), "{number}");
        }
    }

    #[test]
    fn what_cannot_be_walked_ends_the_walk() {
        for number in [50, 59, 253] {
            let ip = read(&packet(&[(DESTINATION, OPTIONS)], number, &[1, 2, 3])).unwrap();
            assert_eq!((ip.protocol, ip.transport_offset), (number, 62));
            assert_eq!(ip.transport, Transport::Other);
        }
    }

    #[test]
    fn fragments_are_seen_wherever_they_stand() {
        let first: &[u8] = &[0, 0, 1, 0, 0, 0, 9];
        let later: &[u8] = &[0, 0, 9, 0, 0, 0, 9];
        let whole: &[u8] = &[0, 0, 0, 0, 0, 0, 9];
        for (body, fragment, transport) in [
            (first, Fragment::First, TO_53),
            (later, Fragment::Later, Transport::Other),
            (whole, Fragment::Whole, TO_53),
        ] {
            let chain = [(DESTINATION, OPTIONS), (FRAGMENT, body)];
            let ip = read(&packet(&chain, UDP, &DATAGRAM)).unwrap();
            assert_eq!((ip.fragment, ip.transport), (fragment, transport));
            assert_eq!(ip.transport_offset, 54 + 16);
        }
        // Behind a later fragment's header nothing is walked.
        let chain = [(FRAGMENT, later), (DESTINATION, OPTIONS)];
        assert_eq!(read(&packet(&chain, UDP, &DATAGRAM)).unwrap().protocol, DESTINATION);
    }

    #[test]
    fn deceptions_are_refused() {
        let hops_left: &[u8] = &[0, 4, 1, 0, 0, 0, 0];
        let first: &[u8] = &[0, 0, 1, 0, 0, 0, 9];
        let far: &[u8] = &[0, 0xff, 0xf9, 0, 0, 0, 9];
        let cases: [(&str, Vec<u8>); 7] = [
            ("source route", packet(&[(ROUTING, hops_left)], UDP, &DATAGRAM)),
            ("first fragment without layer 4", packet(&[(FRAGMENT, first)], 6, &DATAGRAM)),
            (
                "first fragment that ends in the chain",
                packet(&[(FRAGMENT, first)], DESTINATION, &[]),
            ),
            ("odd fragment", packet(&[(FRAGMENT, first)], UDP, &[&DATAGRAM[..], &[1]].concat())),
            ("past the longest packet", packet(&[(FRAGMENT, far)], UDP, &DATAGRAM)),
            ("datagram shorter than it says", packet(&[], UDP, &[0, 1, 0, 2, 0, 9, 0, 0])),
            ("no payload", packet(&[], UDP, &[])),
        ];
        for (name, packet) in cases {
            assert_eq!(read(&packet), Err(Reason::Malformed), "{name}");
        }
        let whole = packet(&[], UDP, &DATAGRAM);
        assert_eq!(read(&whole[..47]), Err(Reason::Malformed));
        assert_eq!(read(&whole[..39]), Err(Reason::Malformed));
        let mut version = whole;
        version[0] = 0x45;
        assert_eq!(read(&version), Err(Reason::Malformed));
    }
}
