//! Nanoseconds per packet: cutting and coalescing; and per checksum.

mod support;
#[path = "support/timing.rs"]
mod timing;

use criterion::{Criterion, criterion_group, criterion_main};

fn offload(criterion: &mut Criterion) {
    timing::run(criterion, &support::offload::workloads());
    timing::run(criterion, &support::checksum::workloads());
}

criterion_group!(benches, offload);
criterion_main!(benches);
