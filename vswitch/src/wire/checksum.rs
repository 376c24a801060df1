//! The Internet checksum: RFC 1071 sums, RFC 1624 updates, and what TCP, UDP and ICMP make of them.
//!
//! A checksum that this module computes for UDP is never zero, since zero there means "none"
//! (RFC 768). Zero and 0xffff are the same number in ones' complement, so every other protocol can
//! take either.

use std::net::IpAddr;

use crate::frame::{Checksum, Frame};
use crate::verdict::Reason;
use crate::wire::sum::sum_native;
use crate::wire::{ETHERNET_LEN, Fragment, Ip, Transport, icmp, tcp, udp};

/// A ones' complement sum that is still growing (RFC 1071 §1).
///
/// It is kept in the byte order of the machine, which RFC 1071 §2 (B) allows, and folded at the end.
/// Sixty-four bits cannot overflow before 16 GiB have been added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `bytes`, an odd last byte padded with zero.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sum_native(bytes))
    }

    /// Adds `bytes`. Only the last bytes that are added may be odd in number.
    #[must_use]
    #[inline]
    pub fn add_bytes(self, bytes: &[u8]) -> Self {
        Self(self.0 + sum_native(bytes))
    }

    /// Adds one 16-bit number.
    #[must_use]
    #[inline]
    pub fn add_u16(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// Adds one 32-bit number.
    #[must_use]
    #[inline]
    pub fn add_u32(self, value: u32) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// The sum in sixteen bits. Zero only if nothing but zeros was added.
    #[inline]
    pub fn fold(self) -> u16 {
        // Each half added to the other: the carry out of the lower sum goes into the upper one, as it should.
        let sum = high_32(self.0.wrapping_add(self.0.rotate_left(32)));
        let sum = high_16(sum.wrapping_add(sum.rotate_left(16)));
        u16::from_be(sum)
    }

    /// The checksum: the complement of the sum.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The sum over the pseudo-header (RFC 9293 §3.1, RFC 768, RFC 8200 §8.1): addresses, protocol, and the
/// length of the layer 4 header and payload.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Sum {
    let addresses = Sum::default().add_address(source).add_address(destination);
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    addresses.add_u16(u16::from(protocol)).add_u32(len)
}

impl Sum {
    fn add_address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.add_bytes(&address.octets()),
            IpAddr::V6(address) => self.add_bytes(&address.octets()),
        }
    }
}

/// The checksum of an ICMP message, or of any bytes without a pseudo-header (RFC 792). The bytes of
/// the checksum field must be zero.
pub fn internet(bytes: &[u8]) -> u16 {
    Sum::of(bytes).checksum()
}

/// The checksum of a TCP segment, UDP datagram or ICMPv6 message whose checksum field is zero. Never
/// zero for UDP.
pub fn transport(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let sum = pseudo_header(source, destination, protocol, segment.len()).add_bytes(segment);
    never_zero_for_udp(protocol, sum.checksum())
}

/// Whether the checksum in a TCP segment, UDP datagram or ICMPv6 message is right. UDP's zero, "none",
/// is not looked for.
pub fn is_right(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> bool {
    let sum = pseudo_header(source, destination, protocol, segment.len()).add_bytes(segment);
    sum.checksum() == 0
}

/// The checksum after one 16-bit word that it covers changed from `before` to `after`
/// (RFC 1624 §3, equation 3).
#[must_use]
#[inline]
pub fn update(checksum: u16, before: u16, after: u16) -> u16 {
    !Sum::default().add_u16(!checksum).add_u16(!before).add_u16(after).fold()
}

/// The checksum after one 32-bit word that it covers changed, such as an IPv4 address.
#[must_use]
pub fn update_u32(checksum: u16, before: u32, after: u32) -> u16 {
    !Sum::default().add_u16(!checksum).add_u32(!before).add_u32(after).fold()
}

/// Bytes that changed under a checksum: the complement of what they summed up to before, and what they do after.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change(Sum);

impl Change {
    /// Notes that `before` became `after`, of which both begin at an even place of what is summed. `N` is a multiple of
    /// four.
    #[must_use]
    #[inline]
    pub fn of<const N: usize>(self, before: &[u8; N], after: &[u8; N]) -> Self {
        const { assert!(N.is_multiple_of(4), "whole words") };
        let (before, _) = before.as_chunks::<4>();
        let (after, _) = after.as_chunks::<4>();
        let words = before.iter().zip(after);
        let sum = words.fold(self.0.0, |sum, (before, after)| {
            sum + u64::from(!u32::from_ne_bytes(*before)) + u64::from(u32::from_ne_bytes(*after))
        });
        Self(Sum(sum))
    }

    /// Adds what summed up to `before` and sums up to `after` now.
    #[must_use]
    pub fn between(self, before: Sum, after: Sum) -> Self {
        Self(Sum(self.0.0 + after.0).add_u16(!before.fold()))
    }

    /// The checksum after the change (RFC 1624 §3, equation 3).
    #[must_use]
    #[inline]
    pub fn update(self, checksum: u16) -> u16 {
        !self.update_sum(!checksum)
    }

    /// The folded sum after the change: what stands in place of a checksum that is yet to be filled in.
    #[must_use]
    #[inline]
    pub fn update_sum(self, sum: u16) -> u16 {
        self.0.add_u16(sum).fold()
    }
}

/// Fills in the checksum of an IPv4 header (RFC 791 §3.1). `header` is the header with its options and
/// nothing else.
///
/// # Panics
/// If `header` is shorter than 20 bytes.
pub fn set_ipv4_header(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = internet(header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// What can be said of the layer 4 checksum of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// It is right.
    Right,
    /// There is none to check: UDP over IPv4 that has none, a fragment, or another protocol.
    Absent,
    /// The field holds the folded sum of the pseudo-header: the sender left the rest to hardware that
    /// the packet never met. `start` and `offset` are those of [`Checksum::Partial`].
    Partial {
        /// Offset of the layer 4 header from the start of the frame.
        start: u16,
        /// Offset of the checksum from `start`.
        offset: u16,
    },
    /// It is wrong.
    Wrong,
}

/// Checks the layer 4 checksum of the packet in `frame`, of which [`super::parse`] said `ip`.
pub fn verify(frame: &[u8], ip: &Ip) -> Verification {
    let Some((offset, segment)) = covered(frame, ip) else {
        return Verification::Absent;
    };
    let field = u16::from_be_bytes([segment[offset], segment[offset + 1]]);
    let is_udp = matches!(ip.transport, Transport::Udp { .. });
    if is_udp && field == 0 {
        // RFC 768; RFC 8200 §8.1 forbids it over IPv6.
        return if ip.source.is_ipv4() { Verification::Absent } else { Verification::Wrong };
    }
    let pseudo = if ip.protocol == icmp::PROTOCOL_V4 {
        Sum::default()
    } else {
        pseudo_header(ip.source, ip.destination, ip.protocol, segment.len())
    };
    if pseudo.add_bytes(segment).checksum() == 0 {
        return Verification::Right;
    }
    // Completing it later means to sum to the end of the packet.
    let is_completable = ip.protocol != icmp::PROTOCOL_V4
        && ip.transport_offset + segment.len() == ETHERNET_LEN + ip.len;
    match (u16::try_from(ip.transport_offset), u16::try_from(offset)) {
        (Ok(start), Ok(offset)) if is_completable && field == pseudo.fold() => {
            Verification::Partial { start, offset }
        }
        _ => Verification::Wrong,
    }
}

/// The bytes that the layer 4 checksum covers, and where among them it stands. `None` if there is none.
fn covered<'a>(frame: &'a [u8], ip: &Ip) -> Option<(usize, &'a [u8])> {
    if ip.fragment != Fragment::Whole {
        return None;
    }
    let offset = checksum_offset(ip.transport)?;
    let segment = frame.get(ip.transport_offset..ETHERNET_LEN + ip.len)?;
    let segment = match ip.transport {
        // What lies behind a UDP datagram in its packet is not part of it.
        Transport::Udp { .. } => segment.get(..udp::len(segment)?)?,
        Transport::Tcp { .. }
        | Transport::Sctp { .. }
        | Transport::Icmp { .. }
        | Transport::Other => segment,
    };
    (segment.len() >= offset + 2).then_some((offset, segment))
}

/// Where in its layer 4 header a protocol has its checksum.
#[inline]
pub fn checksum_offset(transport: Transport) -> Option<usize> {
    match transport {
        Transport::Tcp { .. } => Some(tcp::CHECKSUM_OFFSET),
        Transport::Udp { .. } => Some(udp::CHECKSUM_OFFSET),
        Transport::Icmp { .. } => Some(icmp::CHECKSUM_OFFSET),
        // SCTP has a CRC, which is not of this kind.
        Transport::Sctp { .. } | Transport::Other => None,
    }
}

/// Fills in a checksum that is [`Checksum::Partial`]; does nothing if it is filled in already.
///
/// # Errors
/// [`Reason::BadOffload`] for a super-frame, which has a checksum only once it is cut, and for a frame
/// that the meta data does not fit.
pub fn complete(frame: &mut Frame) -> Result<(), Reason> {
    let Checksum::Partial { start, offset } = frame.meta.checksum else {
        return Ok(());
    };
    if frame.meta.gso.is_some() {
        return Err(Reason::BadOffload);
    }
    complete_partial(frame.data_mut(), start, offset)?;
    frame.meta.checksum = Checksum::Filled;
    Ok(())
}

/// Fills in the checksum of a frame whose field holds the folded sum of the pseudo-header. `start` and
/// `offset` are those of [`Checksum::Partial`].
///
/// # Errors
/// [`Reason::BadOffload`] when they point outside of `frame`.
pub fn complete_partial(frame: &mut [u8], start: u16, offset: u16) -> Result<(), Reason> {
    let offset = usize::from(offset);
    let segment = frame.get_mut(usize::from(start)..).ok_or(Reason::BadOffload)?;
    let mut checksum = Sum::of(segment).checksum();
    if checksum == 0 && offset == udp::CHECKSUM_OFFSET {
        checksum = 0xffff;
    }
    let field = segment.get_mut(offset..offset + 2).ok_or(Reason::BadOffload)?;
    field.copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

fn never_zero_for_udp(protocol: u8, checksum: u16) -> u16 {
    if protocol == udp::PROTOCOL && checksum == 0 { 0xffff } else { checksum }
}

fn high_32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

fn high_16(value: u32) -> u16 {
    let [a, b, ..] = value.to_be_bytes();
    u16::from_be_bytes([a, b])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §4.1, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).fold(), 0xddf2);
        assert_eq!(internet(&bytes), 0x220d);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn udp_is_never_zero() {
        let address = IpAddr::from([10, 0, 0, 1]);
        // Chosen so that everything adds up to 0xffff.
        let mut datagram = [0, 1, 0, 2, 0, 10, 0, 0, 0, 0];
        let sum = pseudo_header(address, address, udp::PROTOCOL, 10).add_bytes(&datagram).fold();
        datagram[8..].copy_from_slice(&(!sum).to_be_bytes());
        assert_eq!(transport(address, address, udp::PROTOCOL, &datagram), 0xffff);
        assert_eq!(transport(address, address, tcp::PROTOCOL, &datagram) & 1, 1, "another sum");
    }

    proptest! {
        #[test]
        fn sums_agree_with_the_reference(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(Sum::of(&bytes).fold(), reference(&bytes));
        }

        #[test]
        fn parts_add_up(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..100) {
            let at = (at * 2).min(bytes.len() & !1);
            let (first, second) = bytes.split_at(at);
            prop_assert_eq!(Sum::of(first).add_bytes(second).fold(), Sum::of(&bytes).fold());
        }

        #[test]
        fn an_update_is_a_new_sum(
            mut bytes in prop::collection::vec(any::<u8>(), 12..64),
            at in 0usize..4,
            after in any::<u32>(),
        ) {
            let at = at * 2;
            bytes[at + 4] = 1; // All zero has two representations.
            let before = u32::from_be_bytes(*bytes[at..].first_chunk().unwrap());
            let old = internet(&bytes);
            bytes[at..at + 4].copy_from_slice(&after.to_be_bytes());
            prop_assert_eq!(update_u32(old, before, after), internet(&bytes));

            let half = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            let old = internet(&bytes);
            bytes[at..at + 2].copy_from_slice(&[0x12, 0x34]);
            prop_assert_eq!(update(old, half, 0x1234), internet(&bytes));
        }

        #[test]
        fn what_transport_computes_is_right(
            mut segment in prop::collection::vec(any::<u8>(), 20..100),
            source in any::<u32>(),
            destination in any::<u32>(),
        ) {
            let source = IpAddr::from(source.to_be_bytes());
            let destination = IpAddr::from(destination.to_be_bytes());
            segment[16..18].fill(0);
            let sum = transport(source, destination, tcp::PROTOCOL, &segment);
            segment[16..18].copy_from_slice(&sum.to_be_bytes());
            prop_assert!(is_right(source, destination, tcp::PROTOCOL, &segment));
            segment[3] ^= 1;
            prop_assert!(!is_right(source, destination, tcp::PROTOCOL, &segment));
        }
    }
}
