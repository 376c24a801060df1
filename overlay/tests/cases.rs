//! Everything that can happen to a cluster, each with some seeds.
//!
//! `cargo run --release --example gossip_sweep` runs the same with many more, and replays what fails here.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::thread;
use std::time::Duration;

use overlay::gossip::sim::cases::{self, CASES};
use overlay::gossip::sim::sweep::sweep;
use overlay::gossip::sim::trial;

/// How many seeds each case is run with; `WEFT_SIM_FACTOR` times as many if that is set.
const SEEDS: u64 = 12;

#[test]
fn all_promises_are_kept_in_every_case() {
    let factor = std::env::var("WEFT_SIM_FACTOR")
        .map_or(1, |factor| factor.parse().expect("WEFT_SIM_FACTOR is a number"));
    let only = std::env::var("WEFT_SIM_CASE").unwrap_or_default();
    let jobs = thread::available_parallelism().map_or(1, Into::into);
    let mut broken = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(&only)) {
        // The longest are for the sweep.
        if case.costs > 100 && only.is_empty() {
            continue;
        }
        let begun = std::time::Instant::now();
        let sum = sweep(case, 0..case.seeds(SEEDS * factor), jobs, |_| {});
        println!(
            "{:20} {:5} seeds, {:9} steps, {:3} disputes, {:3} losses, agreed after {:.2} s, {:?}",
            case.name,
            sum.seeds,
            sum.steps,
            sum.disputes,
            sum.losses,
            sum.slowest.as_secs_f64(),
            begun.elapsed()
        );
        let name = case.name;
        broken.extend(
            sum.failures
                .into_iter()
                .map(|(seed, violation)| format!("{name} with seed {seed}: {violation}")),
        );
    }
    assert!(
        broken.is_empty(),
        "{}\nreplay: cargo run --release --example gossip_sweep -- --replay CASE SEED",
        broken.join("\n")
    );
}

/// Seeds that found something in a long run.
#[test]
fn what_was_broken_once_stays_mended() {
    for (name, seed) in [
        // A node that had lost its disk had counted as far as its record in the cluster, and did not take its lease back.
        ("lost_disk", 1246),
        ("lost_disk", 7250),
        ("lost_disk", 7282),
        // Its record was not asked for, as it had counted as far, and was overwritten.
        ("lost_disk", 8655),
        // Only three dials in the first five seconds, and all were lost: it went on alone.
        ("garbage", 92),
        ("garbage", 1695),
        // Nobody can hear of nodes that share an underlay address, as long as they do.
        ("one_address_everywhere", 4661),
        ("one_address_everywhere", 5121),
    ] {
        let outcome = trial::run(cases::find(name).unwrap(), seed);
        assert!(outcome.violation.is_none(), "{name} with seed {seed}: {:?}", outcome.violation);
    }
}

#[test]
fn a_seed_replays_byte_for_byte() {
    for name in ["anything", "split_grow", "slow_disks"] {
        let case = cases::find(name).unwrap();
        let (outcome, history) = trial::replay(case, 7);
        let (again, same_history) = trial::replay(case, 7);
        assert_eq!((&outcome, history.to_string()), (&again, same_history.to_string()));
        assert_eq!(trial::run(case, 7), outcome, "watching does not change what happens");
        let (_, other) = trial::replay(case, 8);
        assert_ne!(history.to_string(), other.to_string());
        assert!(history.to_string().len() > 10 * history.render(Duration::ZERO).len());
    }
}
