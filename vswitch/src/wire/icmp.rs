//! ICMP (RFC 792) and ICMPv6 (RFC 4443).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Protocol number of ICMP, for IPv4.
pub const PROTOCOL_V4: u8 = 1;
/// Protocol number of ICMPv6.
pub const PROTOCOL_V6: u8 = 58;
/// Where in the header the checksum stands.
pub const CHECKSUM_OFFSET: usize = 2;

/// What every message of both begins with.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum over the message; for ICMPv6 over the pseudo-header, too.
    pub checksum: U16,
}

/// Reads a header; `None` if it is cut short.
pub fn read(bytes: &[u8]) -> Option<&Header> {
    Header::ref_from_prefix(bytes).ok().map(|(header, _)| header)
}

/// A message that is answered by one that carries the same identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// Echo.
    Request,
    /// Echo Reply.
    Reply,
}

/// What a message of this type is (RFC 792 p. 14, RFC 4443 §4), if it is one of these.
pub fn echo(is_ipv4: bool, kind: u8) -> Option<Echo> {
    match (is_ipv4, kind) {
        (true, 8) | (false, 128) => Some(Echo::Request),
        (true, 0) | (false, 129) => Some(Echo::Reply),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_is_read() {
        let header = read(&[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]).unwrap();
        assert_eq!((header.kind, header.code), (8, 0));
        assert_eq!(header.checksum.get(), 0xf7fd);
        assert!(read(&[8, 0, 0]).is_none());
    }
}
