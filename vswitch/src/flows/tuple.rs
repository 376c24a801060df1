//! What names a flow in one direction.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::service::{Protocol, address_words, fold};
use crate::wire::{Fragment, Ip, Transport, icmp};

/// The protocol of a flow: all of Services', and those without ports, whose flows are only followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// Echo requests of ICMP or ICMPv6 with their replies. Their identifier stands for the port of who asks, and 0
    /// for the other's.
    Echo,
    /// Any other protocol, by its number (IANA "Assigned Internet Protocol Numbers"). Both ports are 0.
    Other(u8),
}

impl FlowProtocol {
    /// The protocol as Services know it.
    pub fn service(self) -> Option<Protocol> {
        match self {
            Self::Tcp => Some(Protocol::Tcp),
            Self::Udp => Some(Protocol::Udp),
            Self::Sctp => Some(Protocol::Sctp),
            Self::Echo | Self::Other(_) => None,
        }
    }

    /// Echo has ICMP's number in both families: addresses tell them apart.
    fn number(self) -> u8 {
        match self {
            Self::Tcp => Protocol::Tcp.number(),
            Self::Udp => Protocol::Udp.number(),
            Self::Sctp => Protocol::Sctp.number(),
            Self::Echo => icmp::PROTOCOL_V4,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match Protocol::from_number(number) {
            Some(protocol) => protocol.into(),
            None if number == icmp::PROTOCOL_V4 => Self::Echo,
            None => Self::Other(number),
        }
    }
}

impl From<Protocol> for FlowProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

impl fmt::Display for FlowProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(number) => write!(f, "IP {number}"),
            Self::Tcp => f.write_str("TCP"),
            Self::Udp => f.write_str("UDP"),
            Self::Sctp => f.write_str("SCTP"),
            Self::Echo => f.write_str("ICMP"),
        }
    }
}

/// Addresses, ports and protocol of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// From where.
    pub source: (IpAddr, u16),
    /// To where; an address of the same family.
    pub destination: (IpAddr, u16),
    /// The protocol.
    pub protocol: FlowProtocol,
}

/// A [`Tuple`] as it is hashed, stored, compared and written into packets.
///
/// The first word has both ports, the protocol and the family; the others have the addresses. Those of IPv4 share a
/// word, which leaves less to do, and the last three are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed([u64; TUPLE_WORDS]);

pub(crate) const TUPLE_WORDS: usize = 5;

impl Tuple {
    /// The tuple of a packet that has one: TCP, UDP or SCTP with its ports.
    #[inline]
    pub fn of(ip: &Ip) -> Option<Self> {
        let (protocol, source, destination) = match ip.transport {
            Transport::Tcp { source, destination, .. } => (FlowProtocol::Tcp, source, destination),
            Transport::Udp { source, destination } => (FlowProtocol::Udp, source, destination),
            Transport::Sctp { source, destination } => (FlowProtocol::Sctp, source, destination),
            Transport::Icmp { .. } | Transport::Other => return None,
        };
        debug_assert!(ip.fragment != Fragment::Later, "later fragments have no ports");
        let (source, destination) = ((ip.source, source), (ip.destination, destination));
        Some(Self { source, destination, protocol })
    }

    /// The tuple of a packet that has no ports and yet may be answered: an echo request or its reply, with what is
    /// behind the IP header in `frame`, or any packet of a protocol that nothing is known of.
    pub fn of_portless(frame: &[u8], ip: &Ip) -> Option<Self> {
        let (protocol, source, destination) = match ip.transport {
            Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Sctp { .. } => return None,
            Transport::Icmp { kind, .. } => {
                let identifier = frame.get(ip.transport_offset + 4..)?.first_chunk()?;
                let identifier = u16::from_be_bytes(*identifier);
                match icmp::echo(ip.source.is_ipv4(), kind)? {
                    icmp::Echo::Request => (FlowProtocol::Echo, identifier, 0),
                    icmp::Echo::Reply => (FlowProtocol::Echo, 0, identifier),
                }
            }
            // One of these is what is left of a header that was cut off.
            Transport::Other => match FlowProtocol::from_number(ip.protocol) {
                protocol @ FlowProtocol::Other(_) if ip.protocol != icmp::PROTOCOL_V6 => {
                    (protocol, 0, 0)
                }
                FlowProtocol::Tcp
                | FlowProtocol::Udp
                | FlowProtocol::Sctp
                | FlowProtocol::Echo
                | FlowProtocol::Other(_) => return None,
            },
        };
        let (source, destination) = ((ip.source, source), (ip.destination, destination));
        Some(Self { source, destination, protocol })
    }

    /// The tuple of an answer.
    #[must_use]
    pub fn inverse(self) -> Self {
        Self { source: self.destination, destination: self.source, protocol: self.protocol }
    }

    /// The tuple in words.
    #[inline]
    pub fn packed(&self) -> Packed {
        let number = self.protocol.number();
        Packed::new(self.source, self.destination, number)
    }
}

impl Packed {
    /// The tuple of a packet that has one: TCP, UDP or SCTP with its ports.
    #[inline(always)]
    pub fn of(ip: &Ip) -> Option<Self> {
        let (protocol, source, destination) = match ip.transport {
            Transport::Tcp { source, destination, .. } => (Protocol::Tcp, source, destination),
            Transport::Udp { source, destination } => (Protocol::Udp, source, destination),
            Transport::Sctp { source, destination } => (Protocol::Sctp, source, destination),
            Transport::Icmp { .. } | Transport::Other => return None,
        };
        debug_assert!(ip.fragment != Fragment::Later, "later fragments have no ports");
        Some(Self::new((ip.source, source), (ip.destination, destination), protocol.number()))
    }

    #[inline(always)]
    fn new(source: (IpAddr, u16), destination: (IpAddr, u16), protocol: u8) -> Self {
        let ports = u64::from(source.1) << 48 | u64::from(destination.1) << 32;
        let meta = ports | u64::from(protocol) << 8;
        Self(match (source.0, destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let addresses =
                    u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits());
                [meta | FAMILY_V4, addresses, 0, 0, 0]
            }
            (source, destination) => {
                let ([a, b], [c, d]) = (address_words(source), address_words(destination));
                [meta | FAMILY_V6, a, b, c, d]
            }
        })
    }

    /// The tuple in full.
    pub fn unpacked(&self) -> Tuple {
        Tuple {
            source: (self.source(), self.source_port()),
            destination: (self.destination(), self.destination_port()),
            protocol: self.protocol(),
        }
    }

    /// The tuple of an answer.
    #[must_use]
    #[inline]
    pub fn inverse(self) -> Self {
        const PORT: u64 = 0xffff;
        let Self([meta, a, b, c, d]) = self;
        let swapped = (meta & PORT << 32) << 16 | (meta >> 16) & PORT << 32;
        let meta = swapped | meta & 0xffff_ffff;
        Self(if self.is_v4() { [meta, a.rotate_left(32), 0, 0, 0] } else { [meta, c, d, a, b] })
    }

    /// Whether the addresses are of IPv4.
    #[inline]
    pub fn is_v4(&self) -> bool {
        is_v4(self.0[0])
    }

    /// From where.
    pub fn source(&self) -> IpAddr {
        let Self([_, a, b, ..]) = *self;
        if self.is_v4() { v4_halves(a).0.into() } else { whole(a, b) }
    }

    /// To where.
    #[inline]
    pub fn destination(&self) -> IpAddr {
        let Self([_, a, _, c, d]) = *self;
        if self.is_v4() { v4_halves(a).1.into() } else { whole(c, d) }
    }

    /// The source's port.
    pub fn source_port(&self) -> u16 {
        let [a, b, ..] = self.0[0].to_be_bytes();
        u16::from_be_bytes([a, b])
    }

    /// The destination's port.
    #[inline]
    pub fn destination_port(&self) -> u16 {
        let [_, _, a, b, ..] = self.0[0].to_be_bytes();
        u16::from_be_bytes([a, b])
    }

    /// The protocol.
    #[inline]
    pub fn protocol(&self) -> FlowProtocol {
        let [.., number, _] = self.0[0].to_be_bytes();
        FlowProtocol::from_number(number)
    }

    /// Both ports, as they stand in a header.
    #[inline]
    pub(crate) fn port_bytes(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.0[0].to_be_bytes();
        [a, b, c, d]
    }

    /// Both addresses of IPv4, as they stand in a header.
    #[inline]
    pub(crate) fn v4_bytes(&self) -> [u8; 8] {
        self.0[1].to_be_bytes()
    }

    /// Both addresses of IPv6 in four parts, as they stand in a header.
    #[inline]
    pub(crate) fn v6_bytes(&self) -> [[u8; 8]; 4] {
        let Self([_, a, b, c, d]) = *self;
        [a, b, c, d].map(u64::to_be_bytes)
    }

    /// The words.
    #[inline]
    pub(crate) fn words(&self) -> &[u64; TUPLE_WORDS] {
        &self.0
    }

    /// The tuple that `word` has the words of, if that is `self`. Asks for no more of them than it needs.
    #[inline]
    pub(super) fn is_in(&self, word: impl Fn(usize) -> u64) -> bool {
        let Self([meta, a, b, c, d]) = *self;
        meta == word(0)
            && a == word(1)
            && (is_v4(meta) || (b == word(2) && c == word(3) && d == word(4)))
    }

    /// The tuple that `word` has the words of: those that [`Packed::words`] gave.
    #[inline]
    pub(super) fn from_words(word: impl Fn(usize) -> u64) -> Self {
        let meta = word(0);
        if is_v4(meta) {
            return Self([meta, word(1), 0, 0, 0]);
        }
        Self([meta, word(1), word(2), word(3), word(4)])
    }
}

#[inline]
fn is_v4(meta: u64) -> bool {
    meta & 0xff == FAMILY_V4
}

/// Source and destination.
#[inline]
fn v4_halves(addresses: u64) -> (Ipv4Addr, Ipv4Addr) {
    let [a, b, c, d, e, f, g, h] = addresses.to_be_bytes();
    (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h))
}

fn whole(upper: u64, lower: u64) -> IpAddr {
    Ipv6Addr::from_bits(u128::from(upper) << 64 | u128::from(lower)).into()
}

const FAMILY_V4: u64 = 4;
const FAMILY_V6: u64 = 6;

/// The keys of a hash that outsiders cannot foresee.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HashKeys([u64; 6]);

impl HashKeys {
    /// Derives the keys from a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self([0, 1, 2, 3, 4, 5].map(|number| crate::service::stable_hash(seed, &[number]) | 1))
    }

    /// Hashes with multiplications whose upper and lower halves are folded together, as foldhash does.
    #[inline]
    pub(crate) fn hash(&self, tuple: &Packed) -> u64 {
        let [k0, k1, k2, k3, k4, k5] = self.0;
        let Packed([meta, a, b, c, d]) = *tuple;
        let first = fold(meta ^ k0, a ^ k1);
        if meta & 0xff == FAMILY_V4 {
            return fold(first ^ k2, k3);
        }
        fold(first ^ fold(b ^ k2, c ^ k3), d ^ k4 ^ k5)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuples() -> impl Strategy<Value = Tuple> {
        let v4 = any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
        let v6 = any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (a.into(), b.into()));
        const PROTOCOLS: &[FlowProtocol] = &[
            FlowProtocol::Tcp,
            FlowProtocol::Udp,
            FlowProtocol::Sctp,
            FlowProtocol::Echo,
            FlowProtocol::Other(47),
        ];
        let protocol = prop::sample::select(PROTOCOLS);
        (prop_oneof![v4, v6], any::<(u16, u16)>(), protocol).prop_map(
            |((a, b), (p, q), protocol)| Tuple { source: (a, p), destination: (b, q), protocol },
        )
    }

    proptest! {
        #[test]
        fn words_say_it_all(tuple in tuples(), other in tuples()) {
            let packed = tuple.packed();
            prop_assert_eq!(packed.unpacked(), tuple);
            prop_assert_eq!(packed.inverse(), tuple.inverse().packed());
            prop_assert_eq!(Packed::from_words(|ix| packed.words()[ix]), packed);
            prop_assert_eq!(packed == other.packed(), tuple == other);
            prop_assert_eq!(packed.is_in(|ix| other.packed().words()[ix]), tuple == other);
        }

        #[test]
        fn every_part_counts_for_the_hash(tuple in tuples(), at in 0_usize..5, bit in 0_u32..64) {
            let keys = HashKeys::new(9);
            let mut changed = tuple.packed();
            changed.0[at] ^= 1 << bit;
            // Of what is no tuple, nothing is said.
            if changed.is_v4() == tuple.packed().is_v4() && changed.unpacked().packed() == changed {
                prop_assert_ne!(keys.hash(&changed), keys.hash(&tuple.packed()));
            }
        }
    }

    #[test]
    fn flows_spread() {
        let keys = HashKeys::new(3);
        let mut used = [0; 64];
        for port in 0..6400 {
            let tuple = Tuple {
                source: (IpAddr::from([10, 0, 0, 1]), port),
                destination: (IpAddr::from([10, 0, 0, 2]), 80),
                protocol: FlowProtocol::Tcp,
            };
            used[usize::try_from(keys.hash(&tuple.packed()) >> 58).unwrap()] += 1;
        }
        assert!(used.iter().all(|count| (50..160).contains(count)), "{used:?}");
    }
}
