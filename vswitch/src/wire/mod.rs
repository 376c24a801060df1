//! Packet formats: what a frame says, found once.
//!
//! [`parse`] looks at every header of a frame exactly once and returns where things are and what later
//! stages need. It takes any bytes: what contradicts itself is refused, and nothing panics. After it,
//! the offsets in [`Headers`] are known to lie inside the frame.

use std::net::IpAddr;

use crate::mac::Mac;

/// Length of an Ethernet header without tag.
pub const ETHERNET_LEN: usize = 14;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Destination MAC address.
    pub destination: Mac,
    /// Source MAC address.
    pub source: Mac,
    /// What follows the Ethernet header.
    pub network: Network,
}

/// What follows the Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// An ARP packet for IPv4 over Ethernet (RFC 826), complete.
    Arp,
    /// An IPv4 or IPv6 packet.
    Ip(Ip),
}

/// An IPv4 (RFC 791) or IPv6 (RFC 8200) packet. It starts at [`ETHERNET_LEN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub traffic_class: u8,
    /// Length of the IP packet in bytes, its header included, padding of the frame excluded.
    pub len: usize,
    /// Whether, and how, the packet is a fragment.
    pub fragment: Fragment,
    /// IPv4 Don't Fragment. Always true for IPv6.
    pub dont_fragment: bool,
    /// The protocol behind the IPv4 header, or behind the last IPv6 extension header that could be walked
    /// (IANA "Assigned Internet Protocol Numbers").
    pub protocol: u8,
    /// Offset of the layer 4 header from the start of the frame. With [`Fragment::Later`] there is
    /// payload instead.
    pub transport_offset: usize,
    /// What is known of layer 4.
    pub transport: Transport,
}

/// Whether a packet is a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// A whole packet.
    Whole,
    /// The first fragment: the layer 4 header is here.
    First,
    /// A later fragment: no layer 4 header.
    Later,
}

/// What is known of layer 4. A header that does not fit into a whole packet is malformed; in a first
/// fragment it is [`Transport::Other`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP (RFC 9293).
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Length of the TCP header with options, in bytes.
        header_len: usize,
    },
    /// UDP (RFC 768).
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP (RFC 792) or ICMPv6 (RFC 4443).
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Anything else, or a later fragment.
    Other,
}
