//! Longest-prefix match.
//!
//! There is one hash table for each prefix length in use. A cluster has two or three: single addresses,
//! leases, and its range. So a lookup takes as many probes, however many prefixes there are.
//!
//! Every frame asks, so a probe is no more than two multiplications, a load and a comparison. The tables have open
//! addressing with linear probing, are at most half full, and are hashed with keys of their own, so that whoever names
//! prefixes does not know which ones meet.

use std::hash::BuildHasher as _;
use std::ops::BitAnd;

use foldhash::fast::FixedState;

use crate::service::{fold, halves};

/// Values of prefixes. `K` is an address as a number, such as [`std::net::Ipv4Addr::to_bits`] gives.
#[derive(Debug, Clone)]
pub(crate) struct PrefixMap<K, V> {
    /// By length, the longest first.
    levels: Vec<Level<K, V>>,
    keys: [u64; 3],
}

/// All prefixes of one length.
#[derive(Debug, Clone)]
struct Level<K, V> {
    /// As many leading ones as the prefixes are long. Of two masks the longer is the larger number.
    mask: K,
    len: usize,
    /// A power of two of them.
    places: Box<[Option<(K, V)>]>,
    /// What is left of a hash after shifting it is a place.
    shift: u32,
}

/// An address as a number.
pub(crate) trait Address: Copy + Ord + BitAnd<Output = Self> {
    /// Two words that differ if the addresses do.
    fn halves(self) -> [u64; 2];
}

impl Address for u32 {
    #[inline]
    fn halves(self) -> [u64; 2] {
        [self.into(), 0]
    }
}

impl Address for u128 {
    #[inline]
    fn halves(self) -> [u64; 2] {
        halves(self)
    }
}

/// Places of a table in which there is one prefix.
const PLACES_MIN: usize = 4;

impl<K: Address, V: Copy> PrefixMap<K, V> {
    /// Makes an empty map, whose keys are made of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let random = FixedState::with_seed(seed);
        Self { levels: Vec::new(), keys: [0_u64, 1, 2].map(|number| random.hash_one(number) | 1) }
    }

    /// The value of the longest prefix that holds `address`.
    #[inline(always)]
    pub(crate) fn get(&self, address: K) -> Option<&V> {
        for level in &self.levels {
            let key = address & level.mask;
            let mut at = level.first_place(self.keys, key);
            // A table that is half empty has an end to every search.
            while let Some(Some((own, value))) = level.places.get(at) {
                if *own == key {
                    return Some(value);
                }
                at = level.next_place(at);
            }
        }
        None
    }

    /// The value of the prefix that `mask` makes of `address`: `value` if it had none.
    pub(crate) fn get_or_insert(&mut self, address: K, mask: K, value: V) -> &mut V {
        let ix = match self.levels.binary_search_by(|level| mask.cmp(&level.mask)) {
            Ok(ix) => ix,
            Err(ix) => {
                self.levels.insert(ix, Level::new(mask));
                ix
            }
        };
        self.levels[ix].get_or_insert(self.keys, address & mask, value)
    }
}

impl<K: Address, V: Copy> Level<K, V> {
    fn new(mask: K) -> Self {
        let places: Box<[_]> = vec![None; PLACES_MIN].into();
        let shift = u64::BITS - places.len().ilog2();
        Self { mask, len: 0, places, shift }
    }

    fn get_or_insert(&mut self, keys: [u64; 3], key: K, value: V) -> &mut V {
        let mut place = self.find(keys, key);
        if self.places[place].is_none() {
            if 2 * (self.len + 1) > self.places.len() {
                self.grow(keys);
                place = self.find(keys, key);
            }
            self.len += 1;
        }
        let (_, value) = self.places[place].get_or_insert((key, value));
        value
    }

    /// Where `key` is, or would be.
    fn find(&self, keys: [u64; 3], key: K) -> usize {
        let mut at = self.first_place(keys, key);
        while self.places[at].is_some_and(|(own, _)| own != key) {
            at = self.next_place(at);
        }
        at
    }

    fn grow(&mut self, keys: [u64; 3]) {
        let places = vec![None; 2 * self.places.len()].into();
        let before = std::mem::replace(&mut self.places, places);
        self.shift -= 1;
        for (key, value) in before.into_iter().flatten() {
            let place = self.find(keys, key);
            self.places[place] = Some((key, value));
        }
    }

    /// Where the search for `key` begins. The halves of a product are folded together, as foldhash does, and this
    /// twice: addresses in a row would otherwise be one step apart, and with some keys a short one.
    #[inline]
    fn first_place(&self, keys: [u64; 3], key: K) -> usize {
        let [first, second] = key.halves();
        let hash = fold(fold(first ^ keys[0], second ^ keys[1]), keys[2]);
        // There are fewer places than memory has bytes, so this loses nothing.
        usize::try_from(hash >> self.shift).unwrap_or(0)
    }

    #[inline]
    fn next_place(&self, place: usize) -> usize {
        (place + 1) & (self.places.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_counts_whichever_came_first() {
        let mut map = PrefixMap::new(1);
        for (address, mask, value) in [
            (0x0a01_0000_u32, 0xffff_0000, "/16"),
            (0x0a01_0203, 0xffff_ffff, "/32"),
            (0x0a01_02ff, 0xffff_ff00, "/24"),
            (0x0a01_0300, 0xffff_ff00, "/24"),
        ] {
            map.get_or_insert(address, mask, value);
        }
        assert_eq!(map.levels.len(), 3);
        assert_eq!(map.get(0x0a01_0203), Some(&"/32"));
        assert_eq!(map.get(0x0a01_0204), Some(&"/24"));
        assert_eq!(map.get(0x0a01_0400), Some(&"/16"));
        assert_eq!(map.get(0x0a02_0203), None);
        map.get_or_insert(0, 0, "/0");
        assert_eq!(map.get(0x0a02_0203), Some(&"/0"));
    }

    #[test]
    fn many_are_found_and_no_others() {
        let mut map = PrefixMap::new(1);
        // Addresses as clusters have them: in rows, and far apart by powers of two.
        let addresses = (0..20_000_u128).map(|n| 0xfd00 << 112 | (n % 200) << 64 | (n / 200));
        for (value, address) in addresses.clone().enumerate() {
            assert_eq!(*map.get_or_insert(address, u128::MAX, value), value);
            assert_eq!(*map.get_or_insert(address, u128::MAX, usize::MAX), value, "it was first");
        }
        for (value, address) in addresses.enumerate() {
            assert_eq!(map.get(address), Some(&value));
            assert_eq!(map.get(address ^ 1 << 100), None);
        }
        let level = &map.levels[0];
        assert_eq!(level.len, 20_000);
        let steps = |(key, _): (u128, usize)| {
            let (first, last) = (level.first_place(map.keys, key), level.places.len() - 1);
            level.find(map.keys, key).wrapping_sub(first) & last
        };
        let farthest = level.places.iter().flatten().map(|place| steps(*place)).max();
        assert!(farthest < Some(200), "{farthest:?} steps to a prefix");
    }

    /// A few pods in a row are what most nodes have; with any keys they must be found at once.
    #[test]
    fn rows_of_addresses_do_not_pile_up() {
        for seed in 0..200 {
            let mut map = PrefixMap::new(seed);
            let row = |n: u128| 0xfd00_0010_0244_0000 << 64 | (n + 2);
            (0..30).for_each(|n| _ = map.get_or_insert(row(n), u128::MAX, n));
            let level = &map.levels[0];
            let steps = (0..30).map(|n| {
                level.find(map.keys, row(n)).wrapping_sub(level.first_place(map.keys, row(n)))
                    & (level.places.len() - 1)
            });
            let steps: usize = steps.sum();
            assert!(steps < 120, "{steps} steps to 30 addresses with the seed {seed}");
        }
    }
}
