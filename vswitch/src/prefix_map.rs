//! Longest-prefix match.
//!
//! There is one hash table for each prefix length in use. A cluster has two or three: single addresses,
//! leases, and its range. So a lookup takes as many probes, however many prefixes there are.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::BitAnd;

use foldhash::fast::RandomState;

/// Values of prefixes. `K` is an address as a number, such as [`std::net::Ipv4Addr::to_bits`] gives.
#[derive(Debug, Clone)]
pub(crate) struct PrefixMap<K, V> {
    /// By length, the longest first.
    levels: Vec<Level<K, V>>,
}

/// All prefixes of one length.
#[derive(Debug, Clone)]
struct Level<K, V> {
    /// As many leading ones as the prefixes are long. Of two masks the longer is the larger number.
    mask: K,
    values: HashMap<K, V, RandomState>,
}

impl<K, V> PrefixMap<K, V>
where
    K: Copy + Ord + Hash + BitAnd<Output = K>,
{
    /// Makes an empty map.
    pub(crate) fn new() -> Self {
        Self { levels: Vec::new() }
    }

    /// The value of the longest prefix that holds `address`.
    pub(crate) fn get(&self, address: K) -> Option<&V> {
        self.levels.iter().find_map(|level| level.values.get(&(address & level.mask)))
    }

    /// The value of the prefix that `mask` makes of `address`: `value` if it had none.
    pub(crate) fn get_or_insert(&mut self, address: K, mask: K, value: V) -> &mut V {
        let ix = match self.levels.binary_search_by(|level| mask.cmp(&level.mask)) {
            Ok(ix) => ix,
            Err(ix) => {
                self.levels.insert(ix, Level { mask, values: HashMap::default() });
                ix
            }
        };
        self.levels[ix].values.entry(address & mask).or_insert(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_counts_whichever_came_first() {
        let mut map = PrefixMap::new();
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
}
