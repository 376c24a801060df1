//! The sum under every checksum, in the widest registers that the CPU has.
//!
//! There is one loop for long packets. The compiler turns it into vector instructions, and it is compiled
//! once more for AVX2, which doubles its speed; which of the two runs is found out at run time. Headers and
//! small packets take fewer instructions in ordinary registers.
//!
//! Words of every width have the same sum after folding (RFC 1071 §2).

// Calls a function that needs AVX2 after having looked for AVX2.
#![allow(unsafe_code)]

/// Fewer bytes than this are summed in the time that vectors take to begin and to end.
const WIDE_MIN: usize = 128;

/// Adds up `bytes` as native words, the last one padded with zeros. The sum is small enough for millions of
/// its like to be added to it.
///
/// Inlined, so that a sum of so many bytes as the compiler knows is straight code.
#[inline]
pub(super) fn sum_native(bytes: &[u8]) -> u64 {
    if bytes.len() < WIDE_MIN { sum_short(bytes) } else { sum_long(bytes) }
}

fn sum_long(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks();
    sum_blocks(blocks) + sum_short(rest)
}

fn sum_blocks(blocks: &[[u8; 32]]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { sum_blocks_avx2(blocks) };
    }
    sum_lanes(blocks)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_blocks_avx2(blocks: &[[u8; 32]]) -> u64 {
    sum_lanes(blocks)
}

/// Always inlined, so that it is compiled with the features of whoever calls it.
#[inline(always)]
fn sum_lanes(blocks: &[[u8; 32]]) -> u64 {
    let mut lanes = [0_u64; 8];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    lanes.iter().sum()
}

/// Adds up eight bytes at a time, each carry where it belongs in ones' complement: at the low end.
#[inline]
fn sum_short(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = 0_u64;
    for word in words {
        let (wrapped, carry) = sum.overflowing_add(u64::from_ne_bytes(*word));
        sum = wrapped + u64::from(carry);
    }
    let (words, rest) = rest.as_chunks::<4>();
    let (halves, last) = rest.as_chunks::<2>();
    let word = words.first().map_or(0, |word| u32::from_ne_bytes(*word));
    let half = halves.first().map_or(0, |half| u16::from_ne_bytes(*half));
    let last = last.first().map_or(0, |byte| u16::from_ne_bytes([*byte, 0]));
    (sum & 0xffff_ffff) + (sum >> 32) + u64::from(word) + u64::from(half) + u64::from(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What folding keeps: the sum modulo 0xffff, of whose two zeros only nothing but zeros has the first.
    fn folded(sum: u64) -> (u64, bool) {
        (sum % 0xffff, sum == 0)
    }

    proptest! {
        #[test]
        fn every_way_has_the_same_sum(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let sum = folded(sum_native(&bytes));
            prop_assert_eq!(folded(sum_short(&bytes)), sum);
            prop_assert_eq!(folded(sum_long(&bytes)), sum);
        }

        #[test]
        fn all_registers_have_the_same_sum(blocks in prop::collection::vec(any::<[u8; 32]>(), 0..60)) {
            prop_assert_eq!(sum_blocks(&blocks), sum_lanes(&blocks));
        }
    }

    #[test]
    fn the_longest_frame_of_ones_does_not_overflow() {
        let bytes = vec![0xff; 1 << 20];
        assert_eq!(sum_long(&bytes), (1 << 18) * u64::from(u32::MAX));
        assert_eq!(folded(sum_short(&bytes)), (0, false));
    }
}
