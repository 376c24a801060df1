//! What control makes and workers read: the current value, without a lock between the two.
//!
//! Workers look at the value once per batch. A value is never changed, only replaced, so a batch sees one as a
//! whole; and it is freed by whoever replaces it, never by a worker, for which that could take long.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Cache};

/// A value that is replaced as a whole.
#[derive(Debug)]
pub(crate) struct Published<T> {
    current: Arc<ArcSwap<T>>,
    /// Former values that a reader may still hold.
    retired: Mutex<Vec<Arc<T>>>,
}

/// Who reads it.
#[derive(Debug)]
pub(crate) struct Reader<T>(Cache<Arc<ArcSwap<T>>, Arc<T>>);

impl<T> Published<T> {
    /// The first value.
    pub(crate) fn new(value: Arc<T>) -> Self {
        Self { current: Arc::new(ArcSwap::new(value)), retired: Mutex::default() }
    }

    /// Replaces the value: every [`Reader::load`] that begins after this returns the new one.
    pub(crate) fn publish(&self, value: Arc<T>) {
        let old = self.current.swap(value);
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(old);
        // Nobody can take hold of a former value any more: whom it is left to, it stays with.
        retired.retain(|value| Arc::strong_count(value) > 1);
    }

    /// The value.
    pub(crate) fn load(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// A reader, which holds the value that it has loaded last.
    pub(crate) fn reader(&self) -> Reader<T> {
        Reader(Cache::new(Arc::clone(&self.current)))
    }
}

impl<T> Reader<T> {
    /// The value. While it is the same as before, that costs one load.
    pub(crate) fn load(&mut self) -> &T {
        self.0.load()
    }
}

#[cfg(all(test, not(weft_loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread::{self, ThreadId};

    use super::*;

    const VALUES: u64 = 20_000;
    const READERS: usize = 3;

    /// A value whose parts belong together, which knows who may free it.
    struct Value {
        parts: [u64; 64],
        publisher: ThreadId,
        freed: Arc<AtomicU64>,
    }

    impl Drop for Value {
        fn drop(&mut self) {
            assert_eq!(thread::current().id(), self.publisher, "freed by a reader");
            self.freed.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn readers_see_whole_values_in_order_and_free_none() {
        let (freed, is_over) = (Arc::new(AtomicU64::new(0)), AtomicBool::new(false));
        let value = |number| {
            let (publisher, freed) = (thread::current().id(), Arc::clone(&freed));
            Arc::new(Value { parts: [number; 64], publisher, freed })
        };
        let published = Published::new(value(0));
        thread::scope(|scope| {
            let readers = (0..READERS).map(|_| {
                let mut reader = published.reader();
                let is_over = &is_over;
                scope.spawn(move || {
                    let (mut last, mut seen) = (0, 0);
                    loop {
                        // Before the look: what is published by then must be seen.
                        let over = is_over.load(Ordering::Acquire);
                        let parts = &reader.load().parts;
                        assert!(parts.iter().all(|part| *part == parts[0]), "{parts:?}");
                        assert!(parts[0] >= last, "{} after {last}", parts[0]);
                        seen += u64::from(parts[0] > last);
                        last = parts[0];
                        if over {
                            return (last, seen, reader);
                        }
                    }
                })
            });
            let readers: Vec<_> = readers.collect();
            for number in 1..=VALUES {
                published.publish(value(number));
            }
            is_over.store(true, Ordering::Release);
            for reader in readers {
                let (last, seen, _reader) = reader.join().unwrap();
                assert_eq!(last, VALUES);
                assert!(seen > 0);
            }
        });
        // All readers hold the last value at most.
        published.publish(value(VALUES + 1));
        assert_eq!(freed.load(Ordering::Relaxed), VALUES + 1);
    }
}
