//! ICMP (RFC 792, RFC 1812 §4.3) and ICMPv6 (RFC 4443) errors.
//!
//! In order: [`may_answer`] says whether a packet may be answered with an error at all, [`RateLimit`]
//! whether one may be sent now, [`copy_first_packet`] turns what the switch holds back into a packet
//! as its sender put it on the wire, and [`write()`] builds the error that quotes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::frame::{Checksum, Frame, Ingress};
use crate::offload::Cut;
use crate::verdict::Reason;
use crate::wire::{
    ETHERNET_LEN, Fragment, Headers, Ip, Transport, checksum, ethernet, icmp, ipv4, ipv6,
};

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
        (icmp::PROTOCOL_V4, Transport::Icmp { kind, .. }) => !matches!(
            kind,
            // Echo and its reply, timestamp and its reply: the queries that are left in use.
            0 | 8 | 13 | 14
        ),
        (icmp::PROTOCOL_V6, Transport::Icmp { kind, .. }) => kind < 128 || kind == V6_REDIRECT,
        // An ICMP message whose type is not there.
        (icmp::PROTOCOL_V4 | icmp::PROTOCOL_V6, _) => true,
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

impl Ends {
    /// From `source` to `target`, if they are of one family.
    pub fn new(source: IpAddr, target: IpAddr) -> Option<Self> {
        match (source, target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => Some(Self::V4 { source, target }),
            (IpAddr::V6(source), IpAddr::V6(target)) => Some(Self::V6 { source, target }),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }
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
    let total_len = ipv4::HEADER_LEN + ICMP_LEN + quote.len();
    frame.set_len(ETHERNET_LEN + total_len);
    let data = frame.data_mut();
    data[..ETHERNET_LEN].fill(0);
    data[12..14].copy_from_slice(&ethernet::IPV4.to_be_bytes());
    let (header, message) = data[ETHERNET_LEN..].split_at_mut(ipv4::HEADER_LEN);
    header.fill(0);
    header[0] = 0x45;
    header[1] = INTERNETWORK_CONTROL;
    header[2..4].copy_from_slice(&low_16(total_len).to_be_bytes());
    header[6] = 0x40; // Don't Fragment: so the identification may stay zero (RFC 6864 §4.1).
    header[8] = TTL;
    header[9] = icmp::PROTOCOL_V4;
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
    frame.set_len(ETHERNET_LEN + ipv6::HEADER_LEN + payload_len);
    let data = frame.data_mut();
    data[..ETHERNET_LEN].fill(0);
    data[12..14].copy_from_slice(&ethernet::IPV6.to_be_bytes());
    let (header, message) = data[ETHERNET_LEN..].split_at_mut(ipv6::HEADER_LEN);
    header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    header[4..6].copy_from_slice(&low_16(payload_len).to_be_bytes());
    header[6..8].copy_from_slice(&[icmp::PROTOCOL_V6, TTL]);
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&target.octets());
    message[..6].copy_from_slice(&[kind, code, 0, 0, 0, 0]);
    message[6..8].copy_from_slice(&mtu.to_be_bytes());
    message[ICMP_LEN..].copy_from_slice(quote);
    let sum = checksum::transport(source.into(), target.into(), icmp::PROTOCOL_V6, message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// The low 16 bits: for lengths that are known to be those of one IP packet.
fn low_16(value: usize) -> u16 {
    debug_assert!(value <= usize::from(u16::MAX), "longer than an IP packet");
    u16::try_from(value).unwrap_or(u16::MAX)
}

const NANOS: u64 = 1_000_000_000;

const ICMP_LEN: usize = 8;

/// ICMPv6 Redirect (RFC 4861 §4.5): RFC 4443 §2.4 e.2 treats it as an error.
const V6_REDIRECT: u8 = 137;

/// TTL and hop limit of what the switch sends (RFC 1812 §4.2.2.9: any value; 64 is the usual one).
const TTL: u8 = 64;

/// The precedence that errors are sent with (RFC 1812 §4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 0xc0;

/// So that the error is not longer than 576 bytes (RFC 1812 §4.3.2.3).
const V4_QUOTE_LEN_MAX: usize = 576 - ipv4::HEADER_LEN - ICMP_LEN;

/// So that the error is not longer than the smallest MTU (RFC 4443 §2.4 c).
const V6_QUOTE_LEN_MAX: usize = 1280 - ipv6::HEADER_LEN - ICMP_LEN;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Gso, GsoKind};
    use crate::wire::{self, Network};

    const NOW: fn() -> Instant = Instant::now;

    fn ip(source: &str, destination: &str) -> Ip {
        Ip {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ttl: 64,
            traffic_class: 0,
            len: 28,
            fragment: Fragment::Whole,
            dont_fragment: true,
            protocol: 17,
            transport_offset: 34,
            transport: Transport::Udp { source: 1, destination: 2 },
        }
    }

    fn icmp(source: &str, destination: &str, protocol: u8, kind: u8) -> Ip {
        let transport = Transport::Icmp { kind, code: 0 };
        Ip { protocol, transport, ..ip(source, destination) }
    }

    #[test]
    fn what_may_be_answered() {
        let (a, b) = ("10.244.1.2", "10.244.1.3");
        let (a6, b6) = ("fd00::2", "fd00::3");
        assert!(may_answer(&ip(a, b)));
        assert!(may_answer(&ip(a6, b6)));
        assert!(may_answer(&Ip { fragment: Fragment::First, ..ip(a, b) }));
        assert!(!may_answer(&Ip { fragment: Fragment::Later, ..ip(a, b) }));
        for query in [0, 8, 13, 14] {
            assert!(may_answer(&icmp(a, b, 1, query)));
        }
        for error in [3, 4, 5, 11, 12, 200] {
            assert!(!may_answer(&icmp(a, b, 1, error)), "{error}");
        }
        assert!(may_answer(&icmp(a6, b6, 58, 128)));
        for error in [1, 2, 3, 4, 127, 137] {
            assert!(!may_answer(&icmp(a6, b6, 58, error)), "{error}");
        }
        let cut = Ip { transport: Transport::Other, ..icmp(a, b, 1, 8) };
        assert!(!may_answer(&cut), "an ICMP message without a type may be an error");
        for source in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.3.4"] {
            assert!(!may_answer(&ip(source, b)), "{source}");
        }
        for source in ["::", "::1", "ff02::1", "fe80::2"] {
            assert!(!may_answer(&ip(source, b6)), "{source}");
        }
        assert!(!may_answer(&ip(a, "224.0.0.1")));
        assert!(!may_answer(&ip(a, "255.255.255.255")));
        assert!(!may_answer(&ip(a6, "ff02::1")));
    }

    #[test]
    fn the_rate_is_limited_and_recovers() {
        let start = NOW();
        let mut limit = RateLimit::new(10, start);
        let mut take = |ms| {
            let now = start + Duration::from_millis(ms);
            std::iter::from_fn(|| limit.take(now).then_some(())).count()
        };
        assert_eq!(take(0), 10);
        assert_eq!(take(99), 0);
        assert_eq!(take(100), 1);
        assert_eq!(take(50), 0, "time that goes backwards gives nothing");
        assert_eq!(take(1100), 10);
        assert_eq!(take(1_000_000), 10, "an idle hour is worth no more than a second");
    }

    fn written(error: Error, ends: Ends, packet: &[u8]) -> Vec<u8> {
        let mut frame = Frame::new();
        write(&mut frame, error, ends, packet);
        frame.data()[ETHERNET_LEN..].to_vec()
    }

    #[test]
    fn an_error_is_written_byte_by_byte() {
        let ends =
            Ends::V4 { source: Ipv4Addr::new(10, 244, 1, 1), target: Ipv4Addr::new(10, 244, 1, 2) };
        let packet = [0x45, 0, 0, 28, 1, 2, 3, 4];
        #[rustfmt::skip]
        let expected = [
            0x45, 0xc0, 0, 36, 0, 0, 0x40, 0, 64, 1, 0x22, 0x2f, 10, 244, 1, 1, 10, 244, 1, 2,
            3, 4, 0xae, 0x2f, 0, 0, 0x05, 0xaa,
            0x45, 0, 0, 28, 1, 2, 3, 4,
        ];
        assert_eq!(written(Error::TooBig { mtu: 1450 }, ends, &packet), expected);
    }

    #[test]
    fn every_error_has_its_type_and_code_and_right_checksums() {
        let v4 = Ends::V4 { source: [10, 0, 0, 1].into(), target: [10, 0, 0, 2].into() };
        let v6 =
            Ends::V6 { source: "fd00::1".parse().unwrap(), target: "fd00::2".parse().unwrap() };
        let packet = [0x5a; 3000];
        for (error, in_v4, in_v6) in [
            (Error::NetUnreachable, (3, 0), (1, 0)),
            (Error::HostUnreachable, (3, 1), (1, 3)),
            (Error::PortUnreachable, (3, 3), (1, 4)),
            (Error::Prohibited, (3, 13), (1, 1)),
            (Error::TimeExceeded, (11, 0), (3, 0)),
            (Error::TooBig { mtu: 1300 }, (3, 4), (2, 0)),
        ] {
            let bytes = written(error, v4, &packet);
            assert_eq!(bytes.len(), 576);
            assert_eq!((bytes[20], bytes[21]), in_v4, "{error:?}");
            assert_eq!(checksum::internet(&bytes[..20]), 0, "{error:?}");
            assert_eq!(checksum::internet(&bytes[20..]), 0, "{error:?}");

            let bytes = written(error, v6, &packet);
            assert_eq!(bytes.len(), 1280);
            assert_eq!((bytes[40], bytes[41]), in_v6, "{error:?}");
            let sliced = etherparse::SlicedPacket::from_ip(&bytes).unwrap();
            let Some(etherparse::NetSlice::Ipv6(ip)) = &sliced.net else { panic!() };
            let (source, destination) = (ip.header().source(), ip.header().destination());
            let Some(etherparse::TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!() };
            assert!(icmp.is_checksum_valid(source, destination), "{error:?}");
        }
    }

    #[test]
    fn of_a_super_frame_the_first_packet_is_quoted_as_on_a_wire() {
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([1; 16], [2; 16], 9)
            .tcp(1, 2, 3, 4)
            .write(&mut bytes, &[7; 5000])
            .unwrap();
        let mut frame = Frame::new();
        assert!(frame.append(&bytes));
        frame.meta.gso = Some(Gso { kind: GsoKind::Tcp6, size: 1000, segments: 5 });
        frame.meta.checksum = Checksum::Partial { start: 54, offset: 16 };
        let mut quote = Frame::new();
        copy_first_packet(&frame, &wire::parse(&bytes).unwrap(), &mut quote).unwrap();
        assert_eq!(quote.len(), 54 + 20 + 1000);
        let Network::Ip(ip) = wire::parse(quote.data()).unwrap().network else { panic!() };
        assert_eq!((ip.len, ip.ttl), (40 + 20 + 1000, 9));
        assert!(checksum::is_right(ip.source, ip.destination, 6, &quote.data()[54..]));
        assert_eq!(frame.data(), bytes, "the frame itself is left as it was");
    }
}
