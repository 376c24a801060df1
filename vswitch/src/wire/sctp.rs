//! SCTP packets (RFC 9260).

use zerocopy::byteorder::little_endian::U32 as LittleU32;
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Its protocol number.
pub const PROTOCOL: u8 = 132;
/// Length of the common header.
pub const HEADER_LEN: usize = 12;
/// Where in the common header the checksum stands.
pub const CHECKSUM_OFFSET: usize = 8;

/// Types of chunks (RFC 9260 §3.2).
pub mod chunk {
    /// Asks for an association.
    pub const INIT: u8 = 1;
    /// Ends an association at once.
    pub const ABORT: u8 = 6;
    /// Ends an association that both sides have shut down.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// The common header (RFC 9260 §3.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// Verification tag.
    pub tag: U32,
    /// CRC32c over the packet with this field zero (RFC 9260 §6.8), the low byte first.
    pub checksum: LittleU32,
}

/// Reads a common header; `None` if it is cut short.
pub fn read(bytes: &[u8]) -> Option<&Header> {
    Header::ref_from_prefix(bytes).ok().map(|(header, _)| header)
}

/// The type of the first chunk, if there is one.
pub fn first_chunk(packet: &[u8]) -> Option<u8> {
    packet.get(HEADER_LEN).copied()
}

/// Writes other ports into `packet`. The checksum is then as right or wrong as it was: what came damaged is
/// not made to look sound. A checksum of zero stays, which means none to those who agreed so (RFC 9653).
///
/// # Panics
/// If `packet` is shorter than a common header.
pub fn set_ports(packet: &mut [u8], source: u16, destination: u16) {
    let (field, before) = (checksum(packet), crc(packet));
    packet[..2].copy_from_slice(&source.to_be_bytes());
    packet[2..4].copy_from_slice(&destination.to_be_bytes());
    if field == 0 && before != 0 {
        return;
    }
    let after = field ^ before ^ crc(packet);
    packet[CHECKSUM_OFFSET..HEADER_LEN].copy_from_slice(&after.to_le_bytes());
}

fn checksum(packet: &[u8]) -> u32 {
    let [a, b, c, d] = [packet[8], packet[9], packet[10], packet[11]];
    u32::from_le_bytes([a, b, c, d])
}

/// The CRC32c of `packet` as if its checksum field were zero.
fn crc(packet: &[u8]) -> u32 {
    let head = crc32c::crc32c(&packet[..CHECKSUM_OFFSET]);
    let field = crc32c::crc32c_append(head, &[0; 4]);
    crc32c::crc32c_append(field, &packet[HEADER_LEN..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packet with one chunk, whose checksum was computed by `crc32c` over the whole with zeros in its place.
    fn packet(source: u16, destination: u16) -> Vec<u8> {
        let mut bytes = source.to_be_bytes().to_vec();
        bytes.extend(destination.to_be_bytes());
        bytes.extend([9, 8, 7, 6, 0, 0, 0, 0]);
        bytes.extend([chunk::INIT, 0, 0, 8, 1, 2, 3, 4]);
        let sum = crc32c::crc32c(&bytes);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    #[test]
    fn a_packet_is_read() {
        let bytes = packet(7, 9);
        let header = read(&bytes).unwrap();
        assert_eq!((header.source.get(), header.destination.get()), (7, 9));
        assert_eq!(first_chunk(&bytes), Some(chunk::INIT));
        assert!(read(&bytes[..11]).is_none());
        assert_eq!(first_chunk(&bytes[..12]), None);
    }

    #[test]
    fn the_check_value_of_rfc_3720() {
        // RFC 3720 §B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn ports_change_and_the_checksum_stays_as_right_as_it_was() {
        let mut bytes = packet(7, 9);
        set_ports(&mut bytes, 7000, 9000);
        assert_eq!(bytes, packet(7000, 9000));

        let mut damaged = packet(7, 9);
        damaged[15] ^= 1;
        set_ports(&mut damaged, 7000, 9000);
        assert_ne!(checksum(&damaged), crc(&damaged));
        damaged[15] ^= 1;
        assert_eq!(damaged, packet(7000, 9000));

        let mut without = packet(7, 9);
        without[8..12].fill(0);
        set_ports(&mut without, 7000, 9000);
        assert_eq!(checksum(&without), 0);
    }
}
