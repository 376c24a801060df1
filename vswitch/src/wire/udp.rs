//! UDP datagrams (RFC 768).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Its protocol number.
pub const PROTOCOL: u8 = 17;
/// Length of a header.
pub const HEADER_LEN: usize = 8;
/// Where in the header the length stands.
pub const LENGTH_OFFSET: usize = 4;
/// Where in the header the checksum stands.
pub const CHECKSUM_OFFSET: usize = 6;

/// A UDP header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// Length of header and payload.
    pub length: U16,
    /// Checksum over pseudo-header, header and payload; zero for none, over IPv4 only.
    pub checksum: U16,
}

/// Reads a header whose length is no shorter than itself; `None` if there is none. The payload may be
/// cut short, as in a first fragment.
#[inline]
pub fn read(bytes: &[u8]) -> Option<&Header> {
    let (header, _) = Header::ref_from_prefix(bytes).ok()?;
    (usize::from(header.length.get()) >= HEADER_LEN).then_some(header)
}

/// The length that the datagram at the start of `bytes` gives itself.
pub fn len(bytes: &[u8]) -> Option<usize> {
    read(bytes).map(|header| usize::from(header.length.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: [u8; 10] = [0xd4, 0x31, 0, 53, 0, 10, 0xab, 0xcd, 1, 2];

    #[test]
    fn a_datagram_is_read() {
        let header = read(&QUERY).unwrap();
        assert_eq!(header.source.get(), 54_321);
        assert_eq!(header.destination.get(), 53);
        assert_eq!(header.checksum.get(), 0xabcd);
        assert_eq!(len(&QUERY), Some(10));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(read(&QUERY[..7]).is_none());
        let mut datagram = QUERY;
        datagram[5] = 7;
        assert!(read(&datagram).is_none());
    }
}
