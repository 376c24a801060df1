//! Whether an address may be one of a set, in a few instructions: the way of every frame leads through here.

use std::net::IpAddr;

use crate::service::halves;

/// A Bloom filter with one hash. Never wrong when it says no; says yes wrongly for about one address of sixteen.
#[derive(Debug, Clone)]
pub(crate) struct AddressFilter {
    bits: Box<[u64]>,
    /// What is left of a 64-bit hash after shifting it is the number of a bit.
    shift: u32,
}

impl AddressFilter {
    /// A filter that says no to everything.
    pub(crate) fn empty() -> Self {
        Self::with_room(0)
    }

    /// A filter with room for `count` addresses.
    pub(crate) fn with_room(count: usize) -> Self {
        let bits = (count * BITS_PER_ADDRESS).next_power_of_two().max(WORD_BITS);
        Self { bits: vec![0; bits / WORD_BITS].into(), shift: 64 - bits.ilog2() }
    }

    /// Puts `address` in.
    pub(crate) fn insert(&mut self, address: IpAddr) {
        let (word, bit) = self.place(address);
        self.bits[word] |= bit;
    }

    /// Whether nothing was put in.
    pub(crate) fn is_empty(&self) -> bool {
        self.bits.iter().all(|word| *word == 0)
    }

    /// Whether `address` may have been put in.
    #[inline]
    pub(crate) fn may_hold(&self, address: IpAddr) -> bool {
        let (word, bit) = self.place(address);
        self.bits[word] & bit != 0
    }

    #[inline]
    fn place(&self, address: IpAddr) -> (usize, u64) {
        // Multiplicative hashing: the upper bits of the product depend on all bits of the address.
        let folded = match address {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => {
                let [upper, lower] = halves(v6.to_bits());
                upper.rotate_left(29) ^ lower.wrapping_mul(GOLDEN)
            }
        };
        let hash = folded.wrapping_mul(GOLDEN) >> self.shift;
        // There are at most as many bits as memory has, so this loses nothing.
        let ix = usize::try_from(hash).unwrap_or(0);
        (ix / WORD_BITS, 1 << (ix % WORD_BITS))
    }
}

const WORD_BITS: usize = 64;
const BITS_PER_ADDRESS: usize = 16;
/// 2⁶⁴ divided by the golden ratio (Knuth, The Art of Computer Programming, volume 3, §6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_is_found_and_most_of_the_rest_is_not() {
        for v6 in [false, true] {
            let address = |n: u32| -> IpAddr {
                if v6 {
                    IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::try_from(n).unwrap()])
                } else {
                    IpAddr::from((0x0a60_0000 + n).to_be_bytes())
                }
            };
            let mut filter = AddressFilter::with_room(1000);
            assert!((0..60_000).all(|n| !filter.may_hold(address(n))));
            (0..1000).for_each(|n| filter.insert(address(n)));
            assert!((0..1000).all(|n| filter.may_hold(address(n))));
            let wrong = (1000..60_000).filter(|n| filter.may_hold(address(*n))).count();
            assert!(wrong < 59_000 / 10, "{wrong}");
        }
        assert!(!AddressFilter::empty().may_hold(IpAddr::from([0; 4])));
        assert!(AddressFilter::empty().is_empty());
    }
}
