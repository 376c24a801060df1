//! ARP for IPv4 over Ethernet (RFC 826).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::verdict::Reason;
use crate::wire::ethernet;

/// Operation: who has the target address (IANA "ARP Parameters")?
pub const REQUEST: u16 = 1;
/// Operation: the sender has it.
pub const REPLY: u16 = 2;

/// Hardware type of Ethernet.
const ETHERNET: u16 = 1;

/// An ARP packet for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Packet {
    /// Hardware type: 1.
    pub hardware: U16,
    /// Protocol type: 0x0800.
    pub protocol: U16,
    /// Length of a hardware address: 6.
    pub hardware_len: u8,
    /// Length of a protocol address: 4.
    pub protocol_len: u8,
    /// [`REQUEST`], [`REPLY`], or another.
    pub operation: U16,
    /// The sender's MAC address.
    pub sender_mac: [u8; 6],
    /// The sender's IPv4 address.
    pub sender: [u8; 4],
    /// The target's MAC address; meaningless in a request.
    pub target_mac: [u8; 6],
    /// The target's IPv4 address.
    pub target: [u8; 4],
}

/// Reads the packet behind an Ethernet header. Padding may follow it.
///
/// # Errors
/// [`Reason::Malformed`] when it is cut short or not for IPv4 over Ethernet.
pub fn read(bytes: &[u8]) -> Result<&Packet, Reason> {
    let (packet, _) = Packet::ref_from_prefix(bytes).map_err(|_| Reason::Malformed)?;
    let is_ours = packet.hardware.get() == ETHERNET
        && packet.protocol.get() == ethernet::IPV4
        && packet.hardware_len == 6
        && packet.protocol_len == 4;
    if is_ours { Ok(packet) } else { Err(Reason::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rustfmt::skip]
    const WHO_HAS: [u8; 28] = [
        0, 1, 8, 0, 6, 4, 0, 1, // Ethernet, IPv4, request
        0x0a, 0x58, 10, 244, 1, 5, 10, 244, 1, 5, // from
        0, 0, 0, 0, 0, 0, 10, 244, 1, 1, // for
    ];

    #[test]
    fn a_request_is_read() {
        let packet = read(&WHO_HAS).unwrap();
        assert_eq!(packet.operation.get(), REQUEST);
        assert_eq!(packet.sender_mac, [0x0a, 0x58, 10, 244, 1, 5]);
        assert_eq!(packet.sender, [10, 244, 1, 5]);
        assert_eq!(packet.target, [10, 244, 1, 1]);
    }

    #[test]
    fn other_kinds_and_short_packets_are_refused() {
        assert_eq!(read(&WHO_HAS[..27]).unwrap_err(), Reason::Malformed);
        for ix in [0, 2, 4, 5] {
            let mut packet = WHO_HAS;
            packet[ix] = 7;
            assert_eq!(read(&packet).unwrap_err(), Reason::Malformed, "byte {ix}");
        }
    }
}
