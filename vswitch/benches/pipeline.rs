//! Nanoseconds per frame: parsing, and the switch in each direction.

mod support;
#[path = "support/timing.rs"]
mod timing;

use criterion::{Criterion, criterion_group, criterion_main};

fn pipeline(criterion: &mut Criterion) {
    timing::run(criterion, &support::pipeline::workloads());
    timing::run(criterion, &support::service::workloads());
    timing::run(criterion, &support::policy::workloads());
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
