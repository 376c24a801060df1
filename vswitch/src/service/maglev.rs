//! Maglev hashing (Eisenbud et al.: "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4).
//!
//! Every member has a permutation of the table's places, which follows from nothing but its identity. In turn,
//! each takes the first place in its permutation that is still free, until all are taken. So the members'
//! shares differ by one place at most, and when a member comes or goes few places change hands but its own.

use crate::service::stable_hash;

/// Which member serves a hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maglev {
    places: Places,
}

/// Members are numbers below their count; few of them fit into a byte.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Places {
    /// At most one member: no choice.
    Single,
    Few(Box<[u8]>),
    Many(Box<[u16]>),
}

impl Maglev {
    /// Makes the table for members with these identities, which must differ and be in an order that is the same on
    /// all nodes.
    pub fn new(identities: &[u64]) -> Self {
        let len = table_len(identities.len());
        let places = if identities.len() <= 1 {
            Places::Single
        } else if let Some(few) = fill(identities, len).into_iter().map(narrow).collect() {
            Places::Few(few)
        } else {
            Places::Many(fill(identities, len).into())
        };
        Self { places }
    }

    /// The member for `hash`; 0 if there are none.
    pub fn get(&self, hash: u64) -> usize {
        match &self.places {
            Places::Single => 0,
            Places::Few(places) => usize::from(places[place(hash, places.len())]),
            Places::Many(places) => usize::from(places[place(hash, places.len())]),
        }
    }

    /// Bytes of memory that the table takes.
    pub fn size(&self) -> usize {
        match &self.places {
            Places::Single => 0,
            Places::Few(places) => places.len(),
            Places::Many(places) => 2 * places.len(),
        }
    }
}

/// How many places the table for `members` members has: a prime of at least 127 for each, so that shares differ by
/// 1 % at most, up to [`TABLE_LEN_MAX`]. None for a single member.
///
/// A place takes one byte for up to 256 members, and two for more: 1 kB for up to 8 members, 8 kB for up to 64,
/// 131 kB for up to 512 (66 kB for half of that), 262 kB for more.
///
/// There are few lengths because tables of different lengths have little in common: a Service that grows beyond
/// 8, 64 or 512 endpoints, or shrinks back, spreads its new connections anew. Those that it has stay where
/// they are.
pub fn table_len(members: usize) -> usize {
    match members {
        0 | 1 => 0,
        2..=8 => 1021,
        9..=64 => 8191,
        65..=512 => 65_521,
        _ => TABLE_LEN_MAX,
    }
}

/// The most places that a table has, the largest prime below a power of two like all others. It holds up to
/// 65 535 members; their shares differ by 10 % at most for up to 13 000 of them.
pub const TABLE_LEN_MAX: usize = 131_071;

fn narrow(member: u16) -> Option<u8> {
    u8::try_from(member).ok()
}

/// The upper bits of the product choose a place; all hashes are as likely, so all places are.
fn place(hash: u64, len: usize) -> usize {
    let scaled = u128::from(hash) * len as u128;
    usize::try_from(scaled >> 64).unwrap_or(0)
}

fn fill(identities: &[u64], len: usize) -> Vec<u16> {
    const FREE: u16 = u16::MAX;
    let len_wide = len as u64;
    let to_ix = |value: u64| usize::try_from(value).unwrap_or(0);
    // Where each member looks next, and how far it goes from there. The length is prime, so it sees every place.
    let mut walks: Vec<(usize, usize)> = identities
        .iter()
        .map(|identity| {
            let offset = stable_hash(OFFSET_SEED, &[*identity]) % len_wide;
            let skip = stable_hash(SKIP_SEED, &[*identity]) % (len_wide - 1) + 1;
            (to_ix(offset), to_ix(skip))
        })
        .collect();
    let mut places = vec![FREE; len];
    let mut left = len;
    loop {
        for (member, (next, skip)) in (0..FREE).zip(&mut walks) {
            if left == 0 {
                return places;
            }
            while places[*next] != FREE {
                *next = (*next + *skip) % len;
            }
            places[*next] = member;
            left -= 1;
        }
    }
}

const OFFSET_SEED: u64 = 0x6f66_6673_6574;
const SKIP_SEED: u64 = 0x736b_6970;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identities(count: u64) -> Vec<u64> {
        (0..count).map(|member| stable_hash(7, &[member])).collect()
    }

    /// Which identity serves each of many hashes.
    fn owners(identities: &[u64]) -> Vec<u64> {
        let table = Maglev::new(identities);
        (0..20_000).map(|n| identities[table.get(stable_hash(1, &[n]))]).collect()
    }

    fn shares(members: usize) -> (usize, usize) {
        let places = fill(&identities(members as u64), table_len(members));
        let mut shares = vec![0; members];
        places.iter().for_each(|member| shares[usize::from(*member)] += 1);
        (*shares.iter().min().unwrap(), *shares.iter().max().unwrap())
    }

    #[test]
    fn shares_differ_by_one_place() {
        for members in [2, 3, 5, 10, 255, 256, 257, 1000] {
            let (least, most) = shares(members);
            assert!(most - least <= 1, "{members}: {least} to {most}");
        }
    }

    #[test]
    fn no_member_or_one_needs_no_table() {
        assert_eq!(Maglev::new(&[]).get(9), 0);
        assert_eq!(Maglev::new(&[77]).get(u64::MAX), 0);
        assert_eq!(Maglev::new(&[77]).size(), 0);
    }

    #[test]
    fn the_size_is_as_documented() {
        let size = |count| Maglev::new(&identities(count)).size();
        assert_eq!((size(8), size(9), size(65)), (1021, 8191, 65_521));
        assert_eq!((size(257), size(513)), (2 * 65_521, 2 * TABLE_LEN_MAX));
        assert_eq!(table_len(65_535), TABLE_LEN_MAX);
    }

    #[test]
    fn more_members_than_fit_into_a_byte_all_serve() {
        let all: std::collections::BTreeSet<u64> = owners(&identities(300)).into_iter().collect();
        assert_eq!(all.len(), 300);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The share that leaves with a member is its own; hardly anything else moves.
        #[test]
        fn few_lose_their_member(
            count in prop_oneof![3_u64..=8, 10_u64..=64, 66_u64..=100],
            leaves in any::<prop::sample::Index>(),
        ) {
            let before = identities(count);
            let mut after = before.clone();
            let gone = after.remove(leaves.index(before.len()));
            let moved = owners(&before)
                .into_iter()
                .zip(owners(&after))
                .filter(|(old, new)| *old != gone && old != new)
                .count();
            // The paper (§5.3) finds about 1 to 2 % at a hundred places per member.
            prop_assert!(moved < 20_000 * 6 / 100, "{} of 20000", moved);
        }
    }
}
