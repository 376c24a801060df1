//! Which addresses of a prefix can be handed out, and in what order (pure).
//!
//! A pool holds no state: who holds which address is the caller's, and so is the cursor. That keeps a
//! /64 as cheap as a /24, and lets the same pool answer for addresses that are taken for other reasons
//! than being in use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// The addresses of one prefix.
///
/// Never handed out: the network address (for IPv6 the subnet-router anycast address, RFC 4291 §2.6.1),
/// the first address (the node's own, which is the pods' gateway), and for IPv4 the broadcast address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    prefix: IpNetwork,
    first: u128,
    last: u128,
}

/// The prefix has no address that could be given to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} has no address left for a pod: use at most /30 for IPv4 and at most /126 for IPv6")]
pub struct PrefixTooSmall(pub IpNetwork);

impl Pool {
    /// Makes the pool of `prefix`. Host bits in the prefix are ignored.
    ///
    /// # Errors
    /// When nothing is left after the reserved addresses.
    pub fn new(prefix: IpNetwork) -> Result<Self, PrefixTooSmall> {
        let (network, host_bits, reserved_at_end) = match prefix {
            IpNetwork::V4(v4) => (u128::from(u32::from(v4.network())), 32 - v4.prefix(), 1),
            IpNetwork::V6(v6) => (u128::from(v6.network()), 128 - v6.prefix(), 0),
        };
        // Two reserved at the start, and for IPv4 one at the end: less than two bits leave nothing.
        if host_bits < 2 {
            return Err(PrefixTooSmall(prefix));
        }
        let highest = u128::MAX >> (128 - u32::from(host_bits));
        Ok(Self { prefix, first: network + 2, last: network + highest - reserved_at_end })
    }

    /// The prefix, as it was given.
    pub fn prefix(&self) -> IpNetwork {
        self.prefix
    }

    /// The node's own address, which is the pods' gateway.
    pub fn gateway(&self) -> IpAddr {
        self.address(self.first - 1)
    }

    /// How many addresses can be handed out.
    pub fn capacity(&self) -> u128 {
        self.last - self.first + 1
    }

    /// Whether `address` is one that can be handed out.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.number(address).is_some_and(|number| (self.first..=self.last).contains(&number))
    }

    /// How many addresses can be handed out, without those in `excluded` ranges.
    pub fn capacity_without(&self, excluded: &[IpNetwork]) -> u128 {
        // Ranges either nest or have nothing in common: the outermost count.
        let outermost = excluded.iter().enumerate().filter(|(ix, range)| {
            let holds = |(other_ix, other): (usize, &IpNetwork)| {
                other_ix != *ix
                    && other.contains(range.network())
                    && (other.prefix() < range.prefix()
                        || (other.prefix() == range.prefix() && other_ix < *ix))
            };
            !excluded.iter().enumerate().any(holds)
        });
        let out: u128 = outermost
            .filter_map(|(_, range)| self.overlap(range))
            .map(|(first, last)| last - first + 1)
            .sum();
        self.capacity() - out
    }

    /// The next free address after `cursor`, wrapping round: an address that was given back is used
    /// again as late as possible. Without a cursor, or with one outside, it starts at the beginning.
    /// Addresses in `excluded` ranges are none; a range is passed over in one step, however large.
    ///
    /// `is_taken` is asked at most once per address. `None` when every address is taken.
    pub fn next_free(
        &self,
        cursor: Option<IpAddr>,
        excluded: &[IpNetwork],
        is_taken: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let start = match cursor.filter(|address| self.contains(*address)) {
            Some(address) => self.after(self.number(address)?),
            None => self.first,
        };
        let mut candidate = start;
        let mut left = self.capacity();
        while left > 0 {
            let address = self.address(candidate);
            let range = excluded.iter().find(|range| range.contains(address));
            let last = match range.and_then(|range| self.overlap(range)) {
                Some((_, last)) => last,
                None if !is_taken(address) => return Some(address),
                None => candidate,
            };
            left = left.saturating_sub(last - candidate + 1);
            candidate = self.after(last);
        }
        None
    }

    /// The part of `range` that could be handed out, as numbers.
    fn overlap(&self, range: &IpNetwork) -> Option<(u128, u128)> {
        let (first, last) = match range {
            IpNetwork::V4(v4) => (IpAddr::from(v4.network()), IpAddr::from(v4.broadcast())),
            IpNetwork::V6(v6) => (IpAddr::from(v6.network()), IpAddr::from(v6.broadcast())),
        };
        let (first, last) =
            (self.number(first)?.max(self.first), self.number(last)?.min(self.last));
        (first <= last).then_some((first, last))
    }

    fn after(&self, number: u128) -> u128 {
        if number == self.last { self.first } else { number + 1 }
    }

    /// The address as a number, if it is of the pool's family.
    fn number(&self, address: IpAddr) -> Option<u128> {
        match (self.prefix, address) {
            (IpNetwork::V4(_), IpAddr::V4(v4)) => Some(u128::from(u32::from(v4))),
            (IpNetwork::V6(_), IpAddr::V6(v6)) => Some(u128::from(v6)),
            (IpNetwork::V4(_), IpAddr::V6(_)) | (IpNetwork::V6(_), IpAddr::V4(_)) => None,
        }
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.prefix {
            IpNetwork::V4(_) => Ipv4Addr::from(
                u32::try_from(number).expect("an IPv4 pool's bounds come from IPv4 addresses"),
            )
            .into(),
            IpNetwork::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pool(prefix: &str) -> Pool {
        Pool::new(prefix.parse().unwrap()).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn network_gateway_and_broadcast_are_reserved() {
        let pool = pool("10.244.1.0/24");
        assert_eq!(pool.gateway(), address("10.244.1.1"));
        assert_eq!(pool.capacity(), 253);
        for reserved in ["10.244.1.0", "10.244.1.1", "10.244.1.255", "10.244.2.2", "::2"] {
            assert!(!pool.contains(address(reserved)), "{reserved}");
        }
        assert!(pool.contains(address("10.244.1.2")));
        assert!(pool.contains(address("10.244.1.254")));
    }

    #[test]
    fn ipv6_has_no_broadcast_and_a_64_is_cheap() {
        let pool = pool("fd00:10:244:1::/64");
        assert_eq!(pool.gateway(), address("fd00:10:244:1::1"));
        assert_eq!(pool.capacity(), (1 << 64) - 2);
        assert!(pool.contains(address("fd00:10:244:1:ffff:ffff:ffff:ffff")));
        assert_eq!(pool.next_free(None, &[], |_| false), Some(address("fd00:10:244:1::2")));
        let last = address("fd00:10:244:1:ffff:ffff:ffff:ffff");
        assert_eq!(pool.next_free(Some(last), &[], |_| false), Some(address("fd00:10:244:1::2")));
    }

    #[test]
    fn a_whole_address_family_does_not_overflow() {
        assert_eq!(pool("0.0.0.0/0").capacity(), (1 << 32) - 3);
        assert_eq!(pool("::/0").capacity(), u128::MAX - 1);
    }

    #[test]
    fn prefixes_without_room_are_refused() {
        for prefix in ["10.0.0.0/31", "10.0.0.1/32", "fd00::/127", "fd00::1/128"] {
            assert!(Pool::new(prefix.parse().unwrap()).is_err(), "{prefix}");
        }
        assert_eq!(pool("10.0.0.0/30").capacity(), 1);
        assert_eq!(pool("fd00::/126").capacity(), 2);
    }

    #[test]
    fn goes_round_and_ends_when_all_are_taken() {
        let pool = pool("10.0.0.0/29");
        let mut taken = BTreeSet::new();
        let mut cursor = None;
        for expected in 2..=6 {
            cursor = pool.next_free(cursor, &[], |address| taken.contains(&address));
            assert_eq!(cursor, Some(Ipv4Addr::new(10, 0, 0, expected).into()));
            taken.extend(cursor);
        }
        assert_eq!(pool.next_free(cursor, &[], |address| taken.contains(&address)), None);
        taken.remove(&address("10.0.0.4"));
        let next =
            pool.next_free(Some(address("10.0.0.5")), &[], |address| taken.contains(&address));
        assert_eq!(next, Some(address("10.0.0.4")));
    }

    #[test]
    fn a_cursor_of_another_prefix_is_ignored() {
        let cursor = Some(address("10.9.9.9"));
        assert_eq!(
            pool("10.0.0.0/29").next_free(cursor, &[], |_| false),
            Some(address("10.0.0.2"))
        );
    }

    #[test]
    fn excluded_ranges_are_passed_over_however_large() {
        let pool = pool("10.0.0.0/24");
        let range = |text: &str| text.parse::<IpNetwork>().unwrap();
        let excluded = [range("10.0.0.0/28"), range("10.0.0.4/30"), range("10.0.0.255/32")];
        // 2 to 254 without 2 to 15; the broadcast address never counted.
        assert_eq!(pool.capacity_without(&excluded), 253 - 14);
        assert_eq!(pool.capacity_without(&[excluded[0], excluded[0]]), 253 - 14);
        assert_eq!(pool.next_free(None, &excluded, |_| false), Some(address("10.0.0.16")));
        let last = Some(address("10.0.0.254"));
        assert_eq!(pool.next_free(last, &excluded, |_| false), Some(address("10.0.0.16")));
        assert_eq!(pool.next_free(None, &[range("10.0.0.0/16")], |_| false), None);
        assert_eq!(pool.capacity_without(&[range("10.0.0.0/8")]), 0);
        let pool = self::pool("fd00::/64");
        let half = [range("fd00::/65")];
        let expected = address("fd00:0:0:0:8000::");
        assert_eq!(pool.next_free(None, &half, |_| false), Some(expected));
        assert_eq!(
            pool.next_free(None, &half, |found| found != address("fd00::8000:0:0:9")),
            Some(address("fd00::8000:0:0:9"))
        );
    }
}
