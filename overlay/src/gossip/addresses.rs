//! Sets of single addresses, short on the wire: neighbours cost two bytes together.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Most addresses in one set: twice as many as a node with the usual two leases can have pods.
pub(super) const ADDRESSES_MAX: usize = 512;

/// A set of addresses, as runs: how many are left out, and how many follow each other then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Addresses {
    v4: Vec<(u32, u16)>,
    v6: Vec<(u128, u16)>,
}

impl Addresses {
    /// The set of these addresses, in ascending order; at most [`ADDRESSES_MAX`].
    pub(super) fn new(addresses: &BTreeSet<IpAddr>) -> Self {
        let mut set = Self::default();
        let (mut next_v4, mut next_v6) = (0_u32, 0_u128);
        for address in addresses.iter().take(ADDRESSES_MAX) {
            match address {
                IpAddr::V4(v4) => {
                    let gap = v4.to_bits() - next_v4;
                    match set.v4.last_mut().filter(|_| gap == 0) {
                        Some((_, run)) => *run += 1,
                        None => set.v4.push((gap, 1)),
                    }
                    next_v4 = v4.to_bits().saturating_add(1);
                }
                IpAddr::V6(v6) => {
                    let gap = v6.to_bits() - next_v6;
                    match set.v6.last_mut().filter(|_| gap == 0) {
                        Some((_, run)) => *run += 1,
                        None => set.v6.push((gap, 1)),
                    }
                    next_v6 = v6.to_bits().saturating_add(1);
                }
            }
        }
        set
    }

    /// All of them in ascending order; `None` if this is no set, or too large a one.
    pub(super) fn list(&self) -> Option<Vec<IpAddr>> {
        let runs = self.v4.iter().map(|(_, run)| run).chain(self.v6.iter().map(|(_, run)| run));
        let count: usize = runs.clone().map(|run| usize::from(*run)).sum();
        if count > ADDRESSES_MAX || runs.clone().any(|run| *run == 0) {
            return None;
        }
        let mut all = Vec::with_capacity(count);
        let mut next = Some(0_u32);
        for (gap, run) in &self.v4 {
            for step in 0..*run {
                let bits = next?.checked_add(if step == 0 { *gap } else { 0 })?;
                all.push(Ipv4Addr::from_bits(bits).into());
                next = bits.checked_add(1);
            }
        }
        let mut next = Some(0_u128);
        for (gap, run) in &self.v6 {
            for step in 0..*run {
                let bits = next?.checked_add(if step == 0 { *gap } else { 0 })?;
                all.push(Ipv6Addr::from_bits(bits).into());
                next = bits.checked_add(1);
            }
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        let set: BTreeSet<IpAddr> =
            ["10.244.1.2", "10.244.1.3", "10.244.1.9", "fd00::2", "fd00::3"]
                .map(|text| text.parse().unwrap())
                .into();
        let short = Addresses::new(&set);
        assert_eq!(short.v4[1], (5, 1));
        assert_eq!((short.v4.len(), short.v6.len()), (2, 1));
        assert_eq!(short.list().unwrap(), set.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_set_is_refused() {
        let v4 = |runs: &[(u32, u16)]| Addresses { v4: runs.to_vec(), v6: Vec::new() };
        assert_eq!(v4(&[(5, 0)]).list(), None);
        assert_eq!(v4(&[(u32::MAX, 2)]).list(), None);
        assert_eq!(v4(&[(5, 300), (5, 300)]).list(), None);
        assert_eq!(v4(&[(u32::MAX, 1), (0, 1)]).list(), None);
        assert!(v4(&[(u32::MAX, 1)]).list().is_some());
    }

    proptest! {
        #[test]
        fn every_set_comes_back(
            v4 in prop::collection::btree_set(any::<u16>(), 0..200),
            v6 in prop::collection::btree_set(0_u128..300, 0..200),
        ) {
            let v4 = v4.into_iter().map(|bits| IpAddr::from(Ipv4Addr::from_bits(u32::from(bits))));
            let v6 = v6.into_iter().map(|bits| IpAddr::from(Ipv6Addr::from_bits(u128::MAX - bits)));
            let set: BTreeSet<IpAddr> = v4.chain(v6).collect();
            prop_assert_eq!(Addresses::new(&set).list().unwrap(), set.into_iter().collect::<Vec<_>>());
        }
    }
}
