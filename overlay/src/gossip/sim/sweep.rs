//! Many seeds, on many processors.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::cases::Case;
use super::trial::{self, Outcome};
use super::watch::Violation;

/// What came of a case with many seeds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many seeds were run.
    pub seeds: u64,
    /// Steps after which the promises were looked at.
    pub steps: u64,
    /// How often two nodes held one subnet because they could not know of each other.
    pub disputes: u64,
    /// Leases that were lost to a better claim.
    pub losses: u64,
    /// The longest that it took to agree.
    pub slowest: Duration,
    /// The seed with which it took longest.
    pub slowest_seed: u64,
    /// The seeds that broke a promise, in ascending order; the rest of the seeds is left out after
    /// [`FAILURES_MAX`] of them.
    pub failures: Vec<(u64, Violation)>,
}

/// After so many failures a case is given up.
pub const FAILURES_MAX: usize = 20;

/// Runs `case` with all `seeds` on `jobs` threads. `progress` is told how many are done.
pub fn sweep(case: &Case, seeds: Range<u64>, jobs: usize, mut progress: impl FnMut(u64)) -> Sum {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let (done, results) = mpsc::channel();
    let mut sum = Sum::default();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (done, next, stop, end) = (done.clone(), &next, &stop, seeds.end);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || done.send((seed, trial::run(case, seed))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        for (seed, outcome) in results {
            sum.add(seed, outcome);
            stop.store(sum.failures.len() >= FAILURES_MAX, Ordering::Relaxed);
            progress(sum.seeds);
        }
    });
    sum.failures.sort_unstable_by_key(|(seed, _)| *seed);
    sum
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        let tally = outcome.tally;
        self.seeds += 1;
        self.steps += tally.steps;
        self.disputes += tally.disputes;
        self.losses += tally.losses;
        if (tally.slowest, self.slowest_seed) > (self.slowest, seed) {
            (self.slowest, self.slowest_seed) = (tally.slowest, seed);
        }
        self.failures.extend(outcome.violation.map(|violation| (seed, violation)));
    }
}
