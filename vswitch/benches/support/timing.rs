//! The clock's side: hands workloads to criterion, for which one iteration is one unit (a frame, a packet,
//! a sum or a lookup). So the times that it prints are per unit, and its throughput is units per second.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};

use super::support::{Round, Workload};

/// Fewer units than these say little about the cost of one.
const UNITS_MIN: u64 = 10_000;

/// Measures the workloads. Returns, for those that were run long enough, the least that a unit took, in ns.
pub(crate) fn run(criterion: &mut Criterion, workloads: &[Workload]) -> Vec<(String, f64)> {
    let mut costs = Vec::new();
    for workload in workloads {
        let mut least = f64::INFINITY;
        let (group, id) = workload.name.split_once('/').expect("a name is group/what");
        let mut group = criterion.benchmark_group(group);
        group.throughput(Throughput::Elements(1));
        group.bench_function(id, |bencher| {
            let mut round = workload.warm();
            bencher.iter_custom(|units| {
                let time = time_of(&mut *round, workload.units, units);
                if units >= UNITS_MIN {
                    least = least.min(time.as_secs_f64() * 1e9 / units as f64);
                }
                time
            });
        });
        group.finish();
        if least.is_finite() {
            costs.push((workload.name.clone(), least));
        }
    }
    costs
}

/// How long `units` units take, of which a round has `units_per_round`: whole rounds are done, and the time
/// scaled to the number asked for.
fn time_of(round: &mut dyn Round, units_per_round: u64, units: u64) -> Duration {
    let rounds = units.div_ceil(units_per_round);
    let mut total = Duration::ZERO;
    for _ in 0..rounds {
        round.prepare();
        let start = Instant::now();
        round.run();
        total += start.elapsed();
    }
    total.mul_f64(units as f64 / (rounds * units_per_round) as f64)
}
