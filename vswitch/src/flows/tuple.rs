//! What names a flow in one direction.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::service::Protocol;
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

/// A [`Tuple`] as it is stored and compared.
pub(crate) type TupleWords = [u64; TUPLE_WORDS];
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

    /// IPv4 addresses share a word, which leaves less to hash.
    #[inline]
    pub(crate) fn words(&self) -> TupleWords {
        let ports = u64::from(self.source.1) << 48 | u64::from(self.destination.1) << 32;
        let meta = ports | u64::from(self.protocol.number()) << 8;
        match (self.source.0, self.destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let addresses =
                    u64::from(source.to_bits()) << 32 | u64::from(destination.to_bits());
                [meta | FAMILY_V4, addresses, 0, 0, 0]
            }
            (source, destination) => {
                let ([a, b], [c, d]) = (halves(source), halves(destination));
                [meta | FAMILY_V6, a, b, c, d]
            }
        }
    }

    /// The tuple that has these words.
    pub(crate) fn from_words(words: &TupleWords) -> Option<Self> {
        let [meta, a, b, c, d] = *words;
        let [p, q, r, s, _, _, protocol, family] = meta.to_be_bytes();
        let (source_port, destination_port) =
            (u16::from_be_bytes([p, q]), u16::from_be_bytes([r, s]));
        let (source, destination) = match u64::from(family) {
            FAMILY_V4 => {
                let [e, f, g, h, i, j, k, l] = a.to_be_bytes();
                (Ipv4Addr::from([e, f, g, h]).into(), Ipv4Addr::from([i, j, k, l]).into())
            }
            FAMILY_V6 => (whole(a, b), whole(c, d)),
            _ => return None,
        };
        Some(Self {
            source: (source, source_port),
            destination: (destination, destination_port),
            protocol: FlowProtocol::from_number(protocol),
        })
    }
}

fn halves(address: IpAddr) -> [u64; 2] {
    crate::service::address_words(address)
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
    pub(crate) fn hash(&self, words: &TupleWords) -> u64 {
        let [k0, k1, k2, k3, k4, k5] = self.0;
        let [meta, a, b, c, d] = *words;
        let first = fold(meta ^ k0, a ^ k1);
        if meta & 0xff == FAMILY_V4 {
            return fold(first ^ k2, k3);
        }
        fold(first ^ fold(b ^ k2, c ^ k3), d ^ k4 ^ k5)
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let [lower, upper] = halves_of(product);
    lower ^ upper
}

#[inline]
fn halves_of(value: u128) -> [u64; 2] {
    // Neither half can be too large.
    [value & u128::from(u64::MAX), value >> 64].map(|half| u64::try_from(half).unwrap_or(0))
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
            prop_assert_eq!(Tuple::from_words(&tuple.words()), Some(tuple));
            prop_assert_eq!(tuple.words() == other.words(), tuple == other);
        }

        #[test]
        fn every_part_counts_for_the_hash(tuple in tuples(), at in 0_usize..5, bit in 0_u32..64) {
            let keys = HashKeys::new(9);
            let mut words = tuple.words();
            words[at] ^= 1 << bit;
            if let Some(other) = Tuple::from_words(&words)
                && other.words() == words
            {
                prop_assert_ne!(keys.hash(&words), keys.hash(&tuple.words()));
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
            used[usize::try_from(keys.hash(&tuple.words()) >> 58).unwrap()] += 1;
        }
        assert!(used.iter().all(|count| (50..160).contains(count)), "{used:?}");
    }
}
