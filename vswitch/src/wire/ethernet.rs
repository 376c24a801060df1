//! Ethernet II frames (IEEE 802.3-2022 §3).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::mac::Mac;
use crate::verdict::Reason;

/// EtherType of IPv4 (IANA "IEEE 802 Numbers").
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherTypes of tags: 802.1Q, 802.1ad, and the one in use before it.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// An Ethernet header without tag.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// What follows. Numbers below 0x0600 are lengths instead (IEEE 802.3-2022 §3.2.6).
    pub ethertype: U16,
}

/// Reads the header at the start of `frame`, and returns what follows it.
///
/// # Errors
/// [`Reason::Malformed`] when it is cut short, [`Reason::VlanTagged`] when a tag follows.
#[inline]
pub fn read(frame: &[u8]) -> Result<(&Header, &[u8]), Reason> {
    let (header, rest) = Header::ref_from_prefix(frame).map_err(|_| Reason::Malformed)?;
    if TAGS.contains(&header.ethertype.get()) {
        return Err(Reason::VlanTagged);
    }
    Ok((header, rest))
}

/// Writes both addresses.
///
/// # Panics
/// If `frame` is shorter than 12 bytes.
#[inline]
pub fn set_macs(frame: &mut [u8], destination: Mac, source: Mac) {
    let addresses = &mut frame[..12];
    addresses[..6].copy_from_slice(&destination.0);
    addresses[6..].copy_from_slice(&source.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: [u8; 15] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x06, 0x99];

    #[test]
    fn a_header_is_read() {
        let (header, rest) = read(&FRAME).unwrap();
        assert_eq!(header.destination, [2, 0, 0, 0, 0, 1]);
        assert_eq!(header.source, [2, 0, 0, 0, 0, 2]);
        assert_eq!(header.ethertype.get(), ARP);
        assert_eq!(rest, [0x99]);
    }

    #[test]
    fn tags_and_short_frames_are_refused() {
        assert_eq!(read(&FRAME[..13]).unwrap_err(), Reason::Malformed);
        for tag in [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]] {
            let mut frame = FRAME;
            frame[12..14].copy_from_slice(&tag);
            assert_eq!(read(&frame).unwrap_err(), Reason::VlanTagged);
        }
    }

    #[test]
    fn addresses_are_written() {
        let mut frame = FRAME;
        set_macs(&mut frame, Mac([1; 6]), Mac([3; 6]));
        assert_eq!(frame[..12], [1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3]);
        assert_eq!(frame[12..], FRAME[12..]);
    }
}
