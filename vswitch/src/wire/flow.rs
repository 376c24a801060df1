//! Which packets belong together.

use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;

use foldhash::fast::FixedState;

use crate::wire::{Fragment, Headers, Ip, Network, Transport};

/// The hash of a packet's flow. Both directions of a flow have the same.
///
/// It covers addresses, protocol and ports. Of fragments it covers the addresses only, since later ones
/// have no ports and, over IPv6, not even the protocol: all fragments of a packet have the same hash.
/// Frames that are not IP all have the same hash.
pub fn hash(headers: &Headers, seed: u64) -> u32 {
    match &headers.network {
        Network::Arp => 0,
        Network::Ip(ip) => hash_ip(ip, seed),
    }
}

/// The hash of an IP packet's flow: see [`hash`].
pub fn hash_ip(ip: &Ip, seed: u64) -> u32 {
    let (source_port, destination_port) = ports(ip);
    let source = (bits(ip.source), source_port);
    let destination = (bits(ip.destination), destination_port);
    let mut hasher = FixedState::with_seed(seed).build_hasher();
    for (address, port) in [source.min(destination), source.max(destination)] {
        hasher.write_u128(address);
        hasher.write_u16(port);
    }
    if ip.fragment == Fragment::Whole {
        hasher.write_u8(ip.protocol);
    }
    upper_32(hasher.finish())
}

/// Source and destination port of a whole TCP, UDP or SCTP packet, otherwise zeros.
pub fn ports(ip: &Ip) -> (u16, u16) {
    match ip.transport {
        Transport::Tcp { source, destination, .. }
        | Transport::Udp { source, destination }
        | Transport::Sctp { source, destination }
            if ip.fragment == Fragment::Whole =>
        {
            (source, destination)
        }
        Transport::Tcp { .. }
        | Transport::Udp { .. }
        | Transport::Sctp { .. }
        | Transport::Icmp { .. }
        | Transport::Other => (0, 0),
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn upper_32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Ip {
        Ip {
            source: source.0,
            destination: destination.0,
            ttl: 64,
            traffic_class: 0,
            len: 100,
            fragment: Fragment::Whole,
            dont_fragment: false,
            protocol: 17,
            transport_offset: 34,
            transport: Transport::Udp { source: source.1, destination: destination.1 },
        }
    }

    proptest! {
        #[test]
        fn both_directions_hash_alike(
            a in any::<([u8; 4], u16)>(),
            b in any::<([u8; 4], u16)>(),
            seed in any::<u64>(),
        ) {
            let (a, b) = ((IpAddr::from(a.0), a.1), (IpAddr::from(b.0), b.1));
            prop_assert_eq!(hash_ip(&ip(a, b), seed), hash_ip(&ip(b, a), seed));
        }
    }

    #[test]
    fn ports_addresses_protocol_and_seed_matter() {
        let a = (IpAddr::from([10, 0, 0, 1]), 1000);
        let b = (IpAddr::from([10, 0, 0, 2]), 2000);
        let base = hash_ip(&ip(a, b), 7);
        assert_ne!(base, hash_ip(&ip(a, b), 8));
        assert_ne!(base, hash_ip(&ip((a.0, 1001), b), 7));
        assert_ne!(base, hash_ip(&ip((a.0, 2000), (b.0, 1000)), 7), "ports belong to addresses");
        assert_ne!(base, hash_ip(&ip(a, (IpAddr::from([10, 0, 0, 3]), 2000)), 7));
        assert_ne!(base, hash_ip(&Ip { protocol: 6, ..ip(a, b) }, 7));
    }

    #[test]
    fn all_fragments_of_a_packet_hash_alike() {
        let a = (IpAddr::from([10, 0, 0, 1]), 1000);
        let b = (IpAddr::from([10, 0, 0, 2]), 2000);
        let first = Ip { fragment: Fragment::First, ..ip(a, b) };
        let later =
            Ip { fragment: Fragment::Later, transport: Transport::Other, protocol: 60, ..first };
        assert_eq!(hash_ip(&first, 7), hash_ip(&later, 7));
    }

    #[test]
    fn flows_spread() {
        let b = (IpAddr::from([10, 0, 0, 2]), 80);
        let mut used = [0; 16];
        for port in 0..1600 {
            used[(hash_ip(&ip((IpAddr::from([10, 0, 0, 1]), port), b), 1) % 16) as usize] += 1;
        }
        assert!(used.iter().all(|count| (50..150).contains(count)), "{used:?}");
    }
}
