//! ICMP (RFC 792, RFC 1812 §4.3) and ICMPv6 (RFC 4443) errors.
//!
//! In order: [`may_answer`] says whether a packet may be answered with an error at all, [`RateLimit`]
//! whether one may be sent now, [`copy_first_packet`] turns what the switch holds back into a packet
//! as its sender put it on the wire, and [`write`] builds the error that quotes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::frame::{Checksum, Frame, Ingress};
use crate::offload::Cut;
use crate::verdict::Reason;
use crate::wire::{ETHERNET_LEN, Fragment, Headers, Ip, Transport, checksum};

/// What an error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// There is no way to the destination.
    NetUnreachable,
    /// The destination would be here or on another node, but nobody holds the address.
    HostUnreachable,
    /// Nobody listens at the port.
    PortUnreachable,
    /// The packet is not allowed.
    Prohibited,
    /// TTL or hop limit ran out.
    TimeExceeded,
    /// The packet is longer than the way ahead takes.
    TooBig {
        /// The longest that it takes: the next-hop MTU (RFC 1191 §4, RFC 4443 §3.2).
        mtu: u16,
    },
}

/// Whether a packet may be answered with an error (RFC 1812 §4.3.2.7, RFC 4443 §2.4 e).
///
/// Not when it was sent to a group or from what is not one host, not when it is a later fragment, and
/// not when it is, or may be, an error itself. A link-layer broadcast never comes this far.
pub fn may_answer(ip: &Ip) -> bool {
    !is_group(ip.destination)
        && is_one_host(ip.source)
        && ip.fragment != Fragment::Later
        && !may_be_error(ip)
}

fn may_be_error(ip: &Ip) -> bool {
    match (ip.protocol, ip.transport) {
        (ICMPV4, Transport::Icmp { kind, .. }) => !matches!(
            kind,
            // Echo and its reply, timestamp and its reply: the queries that are left in use.
            0 | 8 | 13 | 14
        ),
        (ICMPV6, Transport::Icmp { kind, .. }) => kind < 128 || kind == V6_REDIRECT,
        // An ICMP message whose type is not there.
        (ICMPV4 | ICMPV6, _) => true,
        _ => false,
    }
}

fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

fn is_one_host(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4.octets()[0] >= 240 || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(local || is_group(address) || address.is_unspecified() || address.is_loopback())
}

/// A token bucket: so many errors per second, and at most one second's worth at once.
#[derive(Debug)]
pub struct RateLimit {
    per_s: u64,
    /// In units of 10⁻⁹ errors, so that a nanosecond adds a whole number.
    nano_tokens: u64,
    refilled: Instant,
}

impl RateLimit {
    /// Starts with a full bucket.
    pub fn new(per_s: u32, now: Instant) -> Self {
        let per_s = u64::from(per_s);
        Self { per_s, nano_tokens: per_s * NANOS, refilled: now }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.refilled).min(Duration::from_secs(1));
        let passed_ns = u64::from(passed.subsec_nanos()) + passed.as_secs() * NANOS;
        self.refilled = self.refilled.max(now);
        self.nano_tokens = (self.nano_tokens + passed_ns * self.per_s).min(self.per_s * NANOS);
        match self.nano_tokens.checked_sub(NANOS) {
            Some(left) => {
                self.nano_tokens = left;
                true
            }
            None => false,
        }
    }
}

/// Copies the packet that an error is to quote into the empty `quote`: what the sender of `frame` put, or
/// would have put, on a wire. Of a super-frame that is the first packet; its checksum is filled in.
///
/// # Errors
/// [`Reason::BadOffload`] when the frame's meta data contradicts its bytes.
pub fn copy_first_packet(
    frame: &Frame,
    headers: &Headers,
    quote: &mut Frame,
) -> Result<(), Reason> {
    let cut = Cut::new(frame, headers)?;
    quote.set_len(cut.segment_len(0));
    cut.write(0, quote.data_mut());
    Ok(())
}

/// From whom an error is, and to whom: the sender of the packet that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// An ICMP error.
    V4 {
        /// The switch's address.
        source: Ipv4Addr,
        /// The sender's address.
        target: Ipv4Addr,
    },
    /// An ICMPv6 error.
    V6 {
        /// The switch's address.
        source: Ipv6Addr,
        /// The sender's address.
        target: Ipv6Addr,
    },
}

/// Writes an error about `packet`, an IP packet of the same family, into the empty `frame`. The MAC
/// addresses are left zero.
pub fn write(frame: &mut Frame, error: Error, ends: Ends, packet: &[u8]) {
    match ends {
        Ends::V4 { source, target } => write_v4(frame, error, source, target, packet),
        Ends::V6 { source, target } => write_v6(frame, error, source, target, packet),
    }
    frame.meta.ingress = Ingress::Switch;
    frame.meta.checksum = Checksum::Verified;
}

fn write_v4(frame: &mut Frame, error: Error, source: Ipv4Addr, target: Ipv4Addr, packet: &[u8]) {
    // RFC 792; code 13 and its meaning: RFC 1812 §5.2.7.1.
    let (kind, code, mtu) = match error {
        Error::NetUnreachable => (3, 0, 0),
        Error::HostUnreachable => (3, 1, 0),
        Error::PortUnreachable => (3, 3, 0),
        Error::Prohibited => (3, 13, 0),
        Error::TimeExceeded => (11, 0, 0),
        Error::TooBig { mtu } => (3, 4, mtu),
    };
    let quote = &packet[..packet.len().min(V4_QUOTE_LEN_MAX)];
    let total_len = IPV4_LEN + ICMP_LEN + quote.len();
    frame.set_len(ETHERNET_LEN + total_len);
    let data = frame.data_mut();
    data[..ETHERNET_LEN].fill(0);
    data[12..14].copy_from_slice(&[0x08, 0x00]);
    let (header, message) = data[ETHERNET_LEN..].split_at_mut(IPV4_LEN);
    header.fill(0);
    header[0] = 0x45;
    header[1] = INTERNETWORK_CONTROL;
    header[2..4].copy_from_slice(&low_16(total_len).to_be_bytes());
    header[6] = 0x40; // Don't Fragment: so the identification may stay zero (RFC 6864 §4.1).
    header[8] = TTL;
    header[9] = ICMPV4;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&target.octets());
    checksum::set_ipv4_header(header);
    message[..6].copy_from_slice(&[kind, code, 0, 0, 0, 0]);
    message[6..8].copy_from_slice(&mtu.to_be_bytes());
    message[ICMP_LEN..].copy_from_slice(quote);
    let sum = checksum::internet(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

fn write_v6(frame: &mut Frame, error: Error, source: Ipv6Addr, target: Ipv6Addr, packet: &[u8]) {
    // RFC 4443 §3.
    let (kind, code, mtu) = match error {
        Error::NetUnreachable => (1, 0, 0),
        Error::Prohibited => (1, 1, 0),
        Error::HostUnreachable => (1, 3, 0),
        Error::PortUnreachable => (1, 4, 0),
        Error::TooBig { mtu } => (2, 0, mtu),
        Error::TimeExceeded => (3, 0, 0),
    };
    let quote = &packet[..packet.len().min(V6_QUOTE_LEN_MAX)];
    let payload_len = ICMP_LEN + quote.len();
    frame.set_len(ETHERNET_LEN + IPV6_LEN + payload_len);
    let data = frame.data_mut();
    data[..ETHERNET_LEN].fill(0);
    data[12..14].copy_from_slice(&[0x86, 0xdd]);
    let (header, message) = data[ETHERNET_LEN..].split_at_mut(IPV6_LEN);
    header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    header[4..6].copy_from_slice(&low_16(payload_len).to_be_bytes());
    header[6..8].copy_from_slice(&[ICMPV6, TTL]);
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&target.octets());
    message[..6].copy_from_slice(&[kind, code, 0, 0, 0, 0]);
    message[6..8].copy_from_slice(&mtu.to_be_bytes());
    message[ICMP_LEN..].copy_from_slice(quote);
    let sum = checksum::transport(source.into(), target.into(), ICMPV6, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// The low 16 bits: for lengths that are known to be those of one IP packet.
fn low_16(value: usize) -> u16 {
    debug_assert!(value <= usize::from(u16::MAX), "longer than an IP packet");
    u16::try_from(value).unwrap_or(u16::MAX)
}

const NANOS: u64 = 1_000_000_000;

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const ICMP_LEN: usize = 8;

// IANA "Assigned Internet Protocol Numbers".
const ICMPV4: u8 = 1;
const ICMPV6: u8 = 58;

/// ICMPv6 Redirect (RFC 4861 §4.5): RFC 4443 §2.4 e.2 treats it as an error.
const V6_REDIRECT: u8 = 137;

/// TTL and hop limit of what the switch sends (RFC 1812 §4.2.2.9: any value; 64 is the usual one).
const TTL: u8 = 64;

/// The precedence that errors are sent with (RFC 1812 §4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// So that the error is not longer than 576 bytes (RFC 1812 §4.3.2.3).
const V4_QUOTE_LEN_MAX: usize = 576 - IPV4_LEN - ICMP_LEN;

/// So that the error is not longer than the smallest MTU (RFC 4443 §2.4 c).
const V6_QUOTE_LEN_MAX: usize = 1280 - IPV6_LEN - ICMP_LEN;
