//! The sum under every checksum, in the widest registers that the CPU has.
//!
//! There is one loop. The compiler turns it into vector instructions, and it is compiled once more for
//! AVX2, which doubles its speed; which of the two runs is found out at run time.

// Calls a function that needs AVX2 after having looked for AVX2.
#![allow(unsafe_code)]

/// Fewer bytes than this are summed in the time that it takes to choose.
#[cfg(target_arch = "x86_64")]
const WIDE_MIN: usize = 128;

/// Adds up `bytes` as native 32-bit words, the last one padded with zeros. Every other width has the same
/// result after folding (RFC 1071 §2).
pub(super) fn sum_native(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() >= WIDE_MIN && std::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { sum_avx2(bytes) };
    }
    sum(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    sum(bytes)
}

/// Always inlined, so that it is compiled with the features of whoever calls it.
#[inline(always)]
fn sum(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut lanes = [0_u64; 8];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, tail) = rest.as_chunks::<4>();
    let mut sum: u64 = lanes.iter().sum();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    sum + u64::from(u32::from_ne_bytes(last))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_way_has_the_same_sum(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(sum_native(&bytes), sum(&bytes));
        }
    }

    #[test]
    fn the_longest_frame_of_ones_does_not_overflow() {
        let bytes = vec![0xff; 1 << 20];
        assert_eq!(sum_native(&bytes), (1 << 18) * u64::from(u32::MAX));
    }
}
