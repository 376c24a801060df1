//! Packet formats: what a frame says, found once.
//!
//! [`parse`] looks at every header of a frame exactly once and returns where things are and what later
//! stages need. It takes any bytes: what contradicts itself is refused, and nothing panics. After it,
//! the offsets in [`Headers`] are known to lie inside the frame.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod flow;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod sctp;
mod sum;
pub mod tcp;
pub mod udp;

use std::net::IpAddr;

use crate::mac::Mac;
use crate::verdict::Reason;

pub use ethernet::set_macs;

/// Length of an Ethernet header without tag.
pub const ETHERNET_LEN: usize = 14;

/// Finds out what a frame says. `frame` begins with its Ethernet header; padding may follow the packet.
///
/// # Errors
/// [`Reason::Malformed`] when the frame contradicts itself, [`Reason::EtherType`] and
/// [`Reason::VlanTagged`] when it is of a kind that is not carried.
pub fn parse(frame: &[u8]) -> Result<Headers, Reason> {
    let (header, rest) = ethernet::read(frame)?;
    // What each arm ends with is written where it is wanted, and not moved there.
    let with = |network| Headers {
        destination: Mac(header.destination),
        source: Mac(header.source),
        network,
    };
    match header.ethertype.get() {
        ethernet::IPV4 => ipv4::read(rest, |ip| with(Network::Ip(ip))),
        ethernet::IPV6 => ipv6::read(rest, |ip| with(Network::Ip(ip))),
        ethernet::ARP => arp::read(rest).map(|_| with(Network::Arp)),
        _ => Err(Reason::EtherType),
    }
}

/// Reads the layer 4 header at the start of `payload`. Also returns whether it is cut short, which only
/// a first fragment's may be.
#[inline(always)]
fn read_transport(
    protocol: u8,
    fragment: Fragment,
    payload: &[u8],
    is_ipv4: bool,
) -> Result<(Transport, bool), Reason> {
    if fragment == Fragment::Later {
        return Ok((Transport::Other, false));
    }
    let transport = match protocol {
        tcp::PROTOCOL => tcp::read(payload).map(|header| Transport::Tcp {
            source: header.source.get(),
            destination: header.destination.get(),
            header_len: header.header_len(),
        }),
        udp::PROTOCOL => udp::read(payload)
            .filter(|header| {
                fragment == Fragment::First || usize::from(header.length.get()) <= payload.len()
            })
            .map(|header| Transport::Udp {
                source: header.source.get(),
                destination: header.destination.get(),
            }),
        sctp::PROTOCOL => sctp::read(payload).map(|header| Transport::Sctp {
            source: header.source.get(),
            destination: header.destination.get(),
        }),
        icmp::PROTOCOL_V4 if is_ipv4 => read_icmp(payload),
        icmp::PROTOCOL_V6 if !is_ipv4 => read_icmp(payload),
        _ => Some(Transport::Other),
    };
    match (transport, fragment) {
        (Some(transport), _) => Ok((transport, false)),
        (None, Fragment::First) => Ok((Transport::Other, true)),
        (None, Fragment::Whole | Fragment::Later) => Err(Reason::Malformed),
    }
}

fn read_icmp(payload: &[u8]) -> Option<Transport> {
    icmp::read(payload).map(|header| Transport::Icmp { kind: header.kind, code: header.code })
}

/// Takes one from the TTL or hop limit of the IP packet in `frame`; zero stays.
///
/// # Panics
/// If [`parse`] did not find an IP packet in `frame`.
#[inline(always)]
pub fn decrement_ttl(frame: &mut [u8]) {
    let packet = &mut frame[ETHERNET_LEN..];
    if packet[0] >> 4 == 4 {
        ipv4::decrement_ttl(packet);
    } else {
        ipv6::decrement_hop_limit(packet);
    }
}

/// The identification that all fragments of a packet have, if the IP packet in `frame` is one.
///
/// # Panics
/// If [`parse`] did not find an IP packet in `frame`.
pub fn fragment_id(frame: &[u8], ip: &Ip) -> Option<u32> {
    let packet = &frame[ETHERNET_LEN..];
    match ip.fragment {
        Fragment::Whole => None,
        _ if ip.source.is_ipv4() => Some(u16::from_be_bytes([packet[4], packet[5]]).into()),
        Fragment::First | Fragment::Later => ipv6::fragment_id(packet),
    }
}

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
    /// SCTP (RFC 9260).
    Sctp {
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

#[cfg(test)]
mod tests;
