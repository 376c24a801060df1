//! Whether an address is in one of a few ranges, in a few instructions: the way of every frame leads through here.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Ranges of both families, each as its first address and its mask.
#[derive(Debug, Clone)]
pub(crate) struct Ranges {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Ranges {
    pub(crate) fn new(ranges: &[IpNetwork]) -> Self {
        let v4 = ranges.iter().filter_map(|range| match range {
            IpNetwork::V4(v4) => Some((v4.network().to_bits(), v4.mask().to_bits())),
            IpNetwork::V6(_) => None,
        });
        let v6 = ranges.iter().filter_map(|range| match range {
            IpNetwork::V4(_) => None,
            IpNetwork::V6(v6) => Some((v6.network().to_bits(), v6.mask().to_bits())),
        });
        Self { v4: v4.collect(), v6: v6.collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether `address` is in any.
    #[inline]
    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.iter().any(|(first, mask)| v4.to_bits() & mask == *first),
            IpAddr::V6(v6) => self.v6.iter().any(|(first, mask)| v6.to_bits() & mask == *first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_in_and_their_neighbors_are_not() {
        let ranges = ["10.96.1.0/23", "192.0.2.7/32", "fd00:10:96::/112"];
        let ranges = Ranges::new(&ranges.map(|range| range.parse().unwrap()));
        let holds = |text: &str| ranges.contain(text.parse().unwrap());
        assert!(["10.96.0.0", "10.96.1.255", "192.0.2.7"].into_iter().all(holds));
        assert!(["fd00:10:96::", "fd00:10:96::ffff"].into_iter().all(holds));
        assert!(!["10.95.255.255", "10.96.2.0", "192.0.2.6", "192.0.2.8"].into_iter().any(holds));
        assert!(!["fd00:10:96::1:0", "fd00:10:95::1", "::10.96.0.1"].into_iter().any(holds));
        assert!(!Ranges::new(&[]).contain([0, 0, 0, 0].into()));
        assert!(Ranges::new(&["0.0.0.0/0".parse().unwrap()]).contain([1, 2, 3, 4].into()));
    }
}
