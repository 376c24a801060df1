//! Sets of selectors: few of very many, most of the time.

/// The number of a selector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SelectorIx(pub u32);

/// A set of selectors. It takes 16 bytes for each 64 neighbouring numbers of which one is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct BitSet(Box<[(u32, u64)]>);

impl BitSet {
    /// Whether `selector` is in the set.
    pub fn contains(&self, selector: SelectorIx) -> bool {
        let found = self.0.binary_search_by_key(&(selector.0 / WORD_BITS), |(word, _)| *word);
        found.is_ok_and(|at| self.0[at].1 >> (selector.0 % WORD_BITS) & 1 == 1)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is in it, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = SelectorIx> {
        self.0.iter().flat_map(|(word, bits)| members(*word, *bits))
    }

    /// What is in both, in ascending order. Takes as many steps as the smaller set has words, times the logarithm
    /// of the other's.
    pub fn common<'s>(&'s self, other: &'s Self) -> impl Iterator<Item = SelectorIx> + 's {
        let (few, many) = if self.0.len() <= other.0.len() { (self, other) } else { (other, self) };
        few.0.iter().flat_map(|(word, bits)| {
            let found = many.0.binary_search_by_key(word, |(word, _)| *word);
            members(*word, found.map_or(0, |at| many.0[at].1 & bits))
        })
    }
}

impl FromIterator<SelectorIx> for BitSet {
    fn from_iter<I: IntoIterator<Item = SelectorIx>>(selectors: I) -> Self {
        let mut all: Vec<u32> = selectors.into_iter().map(|selector| selector.0).collect();
        all.sort_unstable();
        let mut words: Vec<(u32, u64)> = Vec::new();
        for selector in all {
            let (word, bit) = (selector / WORD_BITS, 1 << (selector % WORD_BITS));
            match words.last_mut() {
                Some((last, bits)) if *last == word => *bits |= bit,
                _ => words.push((word, bit)),
            }
        }
        Self(words.into())
    }
}

fn members(word: u32, mut bits: u64) -> impl Iterator<Item = SelectorIx> {
    std::iter::from_fn(move || {
        let bit = (bits != 0).then(|| bits.trailing_zeros())?;
        bits &= bits - 1;
        Some(SelectorIx(word * WORD_BITS + bit))
    })
}

const WORD_BITS: u32 = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn sets() -> impl Strategy<Value = BTreeSet<u32>> {
        prop::collection::btree_set(prop_oneof![0_u32..200, any::<u32>()], 0..40)
    }

    fn bits(set: &BTreeSet<u32>) -> BitSet {
        set.iter().copied().map(SelectorIx).collect()
    }

    proptest! {
        #[test]
        fn it_is_a_set(a in sets(), b in sets(), other in 0_u32..200) {
            let (ours, theirs) = (bits(&a), bits(&b));
            prop_assert!(ours.iter().map(|selector| selector.0).eq(a.iter().copied()));
            let common = ours.common(&theirs).map(|selector| selector.0);
            prop_assert!(common.eq(a.intersection(&b).copied()));
            prop_assert_eq!(ours.contains(SelectorIx(other)), a.contains(&other));
            prop_assert_eq!(ours.is_empty(), a.is_empty());
        }
    }
}
