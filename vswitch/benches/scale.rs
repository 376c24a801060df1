//! Nanoseconds per frame in a small cluster and in a large one, and the ratio of both.
//!
//! Caches make the ratio larger than that of the instructions, which `tests/bench/instructions.rs` holds to
//! 1.10; other work on the machine makes it anything. Here it is printed, not judged.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it found")]

mod support;
#[path = "support/timing.rs"]
mod timing;

use criterion::{Criterion, criterion_group, criterion_main};
use support::Growth;

fn scale(criterion: &mut Criterion) {
    let costs = timing::run(criterion, &support::scale::workloads());
    for growth in Growth::all(costs.iter().map(|(name, cost)| (name.as_str(), *cost))) {
        let (Growth { what, from, to }, ratio) = (&growth, growth.ratio());
        println!(
            "{what:24} {:7.1} ns with {:<4} {:7.1} ns with {:<7} ratio {ratio:.2}",
            from.1, from.0, to.1, to.0,
        );
    }
}

criterion_group!(benches, scale);
criterion_main!(benches);
