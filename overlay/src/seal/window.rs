//! Which counters of a session have been seen: each is accepted once, in about any order.

/// How far behind the highest counter one may be. A sender counts over all its receivers, so this is how
/// many datagrams it may send to anybody while one is on its way: two seconds at a thousand per second.
pub(crate) const WINDOW: u64 = 2048;

const WORDS: usize = (WINDOW / 64) as usize;

/// A sliding window over the counters of one session (RFC 6479 describes the ring of bits).
#[derive(Debug, Clone)]
pub(crate) struct Window {
    /// Lower counters are too old.
    floor: u64,
    /// One more than the highest counter seen.
    next: u64,
    /// Bit n: whether the counter n (mod [`WINDOW`]) was seen.
    seen: [u64; WORDS],
}

/// What is to be thought of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is new.
    Fresh,
    /// It was seen already.
    Seen,
    /// It is too old to tell.
    Old,
    /// It is from before the session has proven to live.
    Early,
}

impl Window {
    /// A window that takes nothing below `floor`.
    pub(crate) fn new(floor: u64) -> Self {
        Self { floor, next: floor, seen: [0; WORDS] }
    }

    /// Looks at a counter, before its datagram has proven to be genuine.
    pub(crate) fn judge(&self, counter: u64) -> Verdict {
        // Nobody gets to the last counter by counting, and there is none after it.
        if counter == u64::MAX || counter.saturating_add(WINDOW) < self.next {
            Verdict::Old
        } else if counter < self.floor {
            Verdict::Early
        } else if counter < self.next && self.bit(counter) {
            Verdict::Seen
        } else {
            Verdict::Fresh
        }
    }

    /// Marks a counter as seen. It must be fresh.
    pub(crate) fn mark(&mut self, counter: u64) {
        if counter >= self.next {
            let passed = counter - self.next;
            if passed >= WINDOW {
                self.seen = [0; WORDS];
            } else {
                for skipped in self.next..counter {
                    self.set(skipped, false);
                }
            }
            self.next = counter + 1;
        }
        self.set(counter, true);
    }

    /// Takes nothing below `floor` from now on.
    pub(crate) fn raise(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
    }

    fn bit(&self, counter: u64) -> bool {
        let (word, bit) = place(counter);
        self.seen[word] >> bit & 1 == 1
    }

    fn set(&mut self, counter: u64, seen: bool) {
        let (word, bit) = place(counter);
        self.seen[word] = self.seen[word] & !(1 << bit) | u64::from(seen) << bit;
    }
}

fn place(counter: u64) -> (usize, u32) {
    let place = usize::try_from(counter % WINDOW).unwrap_or_default();
    (place / 64, u32::try_from(place % 64).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_edges_are_where_they_should_be() {
        let mut window = Window::new(10);
        assert_eq!(window.judge(9), Verdict::Early);
        assert_eq!(window.judge(10), Verdict::Fresh);
        window.mark(10);
        assert_eq!(window.judge(10), Verdict::Seen);
        window.mark(10 + WINDOW);
        assert_eq!(window.judge(10), Verdict::Old);
        assert_eq!(window.judge(11), Verdict::Fresh);
        assert_eq!(window.judge(u64::MAX), Verdict::Old);
        window.mark(u64::MAX - 1);
        assert_eq!(window.judge(11), Verdict::Old);
        assert_eq!(window.judge(u64::MAX - 1), Verdict::Seen);
        assert_eq!(window.judge(u64::MAX - 2), Verdict::Fresh);
        assert_eq!(window.judge(u64::MAX), Verdict::Old);
    }

    proptest! {
        /// Against a set of all counters that were ever accepted.
        #[test]
        fn nothing_is_accepted_twice_and_nothing_recent_is_refused(
            steps in proptest::collection::vec((0_u64..6, 0_u64..3000), 1..400),
        ) {
            let mut window = Window::new(5);
            let mut accepted = BTreeSet::new();
            let mut top = 5_u64;
            for (kind, by) in steps {
                let counter = match kind {
                    0 => top + by,
                    1 | 2 => top + by % 4,
                    _ => top.saturating_sub(by),
                };
                let fresh = window.judge(counter) == Verdict::Fresh;
                let recent = counter >= 5 && counter + WINDOW > top;
                if fresh {
                    prop_assert!(!accepted.contains(&counter));
                    window.mark(counter);
                    accepted.insert(counter);
                    top = top.max(counter);
                } else {
                    prop_assert!(!recent || accepted.contains(&counter), "{counter} below {top}");
                }
            }
        }
    }
}
