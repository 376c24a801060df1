//! Words that are read without waiting while another thread may write them (a sequence lock).
//!
//! A writer makes the sequence number odd, writes, and makes it even again. A reader takes the words only if it
//! saw the same even number before and after. There must be one writer at a time. All words are atomics, so
//! a torn read is seen and thrown away, and is never undefined behaviour (Boehm: "Can Seqlocks Get Along with
//! Programming Language Memory Models?", MSPC 2012).

use crate::sync::{AtomicU64, Ordering, fence};

/// `N` words that change together.
#[derive(Debug)]
#[cfg_attr(not(weft_loom), derive(zerocopy::FromZeros))]
#[repr(C)]
pub(super) struct Cell<const N: usize> {
    sequence: AtomicU64,
    words: [AtomicU64; N],
}

/// The words of a [`Cell`] while they are read.
#[derive(Clone, Copy)]
pub(super) struct Words<'c, const N: usize>(&'c [AtomicU64; N]);

impl<const N: usize> Words<'_, N> {
    #[inline]
    pub(super) fn get(self, ix: usize) -> u64 {
        self.0[ix].load(Ordering::Relaxed)
    }
}

impl<const N: usize> Cell<N> {
    /// Reads the words, and which writing they are of. `None` while they are being written.
    pub(super) fn read(&self) -> Option<(u32, [u64; N])> {
        self.read_with(|words| std::array::from_fn(|ix| words.get(ix)))
    }

    /// Lets `read` take what it needs of the words, and tells which writing they are of. `None` while they are being
    /// written: `read` may then have seen words of different writings, and what it made of them is thrown away.
    #[inline]
    pub(super) fn read_with<T>(&self, read: impl FnOnce(Words<'_, N>) -> T) -> Option<(u32, T)> {
        let before = self.sequence.load(Ordering::Acquire);
        let made = read(Words(&self.words));
        // The words before the number: it is the second load that must not come first.
        fence(Ordering::Acquire);
        let after = self.sequence.load(Ordering::Relaxed);
        (before == after && before & 1 == 0).then(|| (epoch(before), made))
    }

    /// Writes the words, and returns which writing this is: never 0. Only one thread may do so at a time.
    pub(super) fn write(&self, words: &[u64; N]) -> u32 {
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(before + 1, Ordering::Relaxed);
        // The odd number before the words.
        fence(Ordering::Release);
        for (to, word) in self.words.iter().zip(words) {
            to.store(*word, Ordering::Relaxed);
        }
        // A number whose lower half is 0 is nobody's.
        let after = if epoch(before + 2) == 0 { before + 4 } else { before + 2 };
        self.sequence.store(after, Ordering::Release);
        epoch(after)
    }
}

#[cfg(weft_loom)]
impl<const N: usize> Cell<N> {
    pub(super) fn new() -> Self {
        Self { sequence: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// Counts writings. It wraps after four billion, by when nobody remembers the first.
#[inline]
fn epoch(sequence: u64) -> u32 {
    let [.., a, b, c, d] = (sequence >> 1).to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}
