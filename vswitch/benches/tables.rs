//! Nanoseconds per lookup in the tables of a large node.

mod support;
#[path = "support/timing.rs"]
mod timing;

use criterion::{Criterion, criterion_group, criterion_main};

fn tables(criterion: &mut Criterion) {
    timing::run(criterion, &support::tables::workloads());
}

criterion_group!(benches, tables);
criterion_main!(benches);
