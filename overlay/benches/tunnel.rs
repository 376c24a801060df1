//! Nanoseconds per packet: encapsulating and decapsulating, without the sockets.

#[path = "../../vswitch/benches/support/mod.rs"]
mod support;
#[path = "../../vswitch/benches/support/timing.rs"]
mod timing;
#[path = "support/tunnel.rs"]
mod workloads;

use criterion::{Criterion, criterion_group, criterion_main};

fn tunnel(criterion: &mut Criterion) {
    timing::run(criterion, &workloads::workloads());
}

criterion_group!(benches, tunnel);
criterion_main!(benches);
