//! TCP segments (RFC 9293).

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Its protocol number.
pub const PROTOCOL: u8 = 6;
/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// Where in the header the sequence number stands.
pub const SEQUENCE_OFFSET: usize = 4;
/// Where in the header the flags stand.
pub const FLAGS_OFFSET: usize = 13;
/// Where in the header the checksum stands.
pub const CHECKSUM_OFFSET: usize = 16;

/// Flags, as RFC 9293 §3.1 and RFC 3168 §6.1 name them.
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment field is significant.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is significant.
    pub const URG: u8 = 0x20;
    /// Echo of a congestion mark.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;
}

/// A TCP header without its options.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
    /// Sequence number of the first payload byte, or of SYN.
    pub sequence: U32,
    /// The sequence number that is expected next.
    pub acknowledgment: U32,
    /// Header length in units of four bytes, in the upper half; reserved bits in the lower.
    pub data_offset: u8,
    /// See [`flag`].
    pub flags: u8,
    /// Receive window.
    pub window: U16,
    /// Checksum over pseudo-header, header and payload.
    pub checksum: U16,
    /// Urgent pointer.
    pub urgent: U16,
}

impl Header {
    /// Length of the header with options, in bytes.
    pub fn header_len(&self) -> usize {
        usize::from(self.data_offset >> 4) * 4
    }
}

/// Reads a header with room for all of its options in `bytes`; `None` if there is none.
#[inline]
pub fn read(bytes: &[u8]) -> Option<&Header> {
    let (header, _) = Header::ref_from_prefix(bytes).ok()?;
    (header.header_len() >= HEADER_LEN && header.header_len() <= bytes.len()).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rustfmt::skip]
    const SYN: [u8; 24] = [
        0x9c, 0x40, 0x00, 0x50, // 40000 to 80
        0x01, 0x02, 0x03, 0x04, 0, 0, 0, 0, // sequence number, nothing acknowledged
        0x60, 0x02, 0xfa, 0xf0, // 24 bytes, SYN, window 64240
        0x12, 0x34, 0, 0, // checksum
        2, 4, 0x05, 0xb4, // maximum segment size 1460
    ];

    #[test]
    fn a_segment_is_read() {
        let header = read(&SYN).unwrap();
        assert_eq!(header.source.get(), 40_000);
        assert_eq!(header.destination.get(), 80);
        assert_eq!(header.sequence.get(), 0x0102_0304);
        assert_eq!(header.header_len(), 24);
        assert_eq!(header.flags, flag::SYN);
        assert_eq!(header.window.get(), 64_240);
        assert_eq!(SYN[FLAGS_OFFSET], flag::SYN);
        assert_eq!(SYN[CHECKSUM_OFFSET..][..2], [0x12, 0x34]);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(read(&SYN[..19]).is_none());
        assert!(read(&SYN[..23]).is_none(), "options cut short");
        let mut segment = SYN;
        segment[12] = 0x40;
        assert!(read(&segment).is_none(), "header shorter than a header");
    }
}
