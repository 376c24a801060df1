//! Counts the instructions that the data path takes per frame, and compares them with the committed baseline.
//! Unlike times, they are the same on a busy machine and on an idle one.
//!
//! ```console
//! $ cargo bench --bench instructions              # compare
//! $ cargo bench --bench instructions -- forward   # only the workloads with this in their name
//! $ cargo bench --bench instructions -- --bless   # write the baseline anew
//! ```
//!
//! The workloads are those of the criterion benchmarks (`vswitch/benches`, `overlay/benches`). For each of
//! them this program starts itself under valgrind's callgrind, which counts what happens inside of
//! [`measured_round`] and nowhere else. It fails when
//!
//! - a workload takes over 5 % more instructions than the baseline says;
//! - a `scale` workload takes over 10 % more in a large cluster than in a small one;
//! - the baseline and the workloads do not have the same names.
//!
//! Hash tables have random seeds, so counts differ by up to 2 % from run to run.
//!
//! They depend on the compiler, the C library (which copies memory), the architecture, and the vector
//! instructions that code chooses at run time among those that valgrind has. `instructions.toml` records them;
//! where they differ, counts are shown and not judged, but for the scale. With `--strict`, as in CI, a baseline
//! that was made with another compiler or C library is a failure, too: whoever changes them writes it anew.
//! Only the vector instructions of CI's machine are taken as they come.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it found")]

#[path = "instructions/baseline.rs"]
mod baseline;
#[path = "instructions/callgrind.rs"]
mod callgrind;
#[path = "../../vswitch/benches/support/mod.rs"]
mod support;
#[path = "../../overlay/benches/support/tunnel.rs"]
mod tunnel;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, bail, ensure};
use baseline::{Baseline, Environment};
use clap::Parser;
use support::{Growth, Round, Workload};

/// Counts instructions per frame and compares them with the baseline.
#[derive(Debug, Parser)]
struct Options {
    /// Only workloads with this in their name
    filter: Option<String>,
    /// Write the baseline anew
    #[arg(long, conflicts_with = "filter")]
    bless: bool,
    /// Fail when the baseline was made with another compiler or C library
    #[arg(long)]
    strict: bool,
    /// Do this workload, to be counted (the program calls itself with it)
    #[arg(long, hide = true)]
    measure: Option<String>,
    /// Print the vector instructions that are there (likewise)
    #[arg(long, hide = true)]
    vectors: bool,
    /// Cargo says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if options.vectors {
        println!("{}", baseline::vectors());
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(name) = &options.measure {
        measure(name)?;
        return Ok(ExitCode::SUCCESS);
    }
    let workloads: Vec<Workload> = workloads()
        .into_iter()
        .filter(|workload| options.filter.as_ref().is_none_or(|part| workload.name.contains(part)))
        .collect();
    ensure!(!workloads.is_empty(), "no workload has {:?} in its name", options.filter);
    let environment = Environment::find()?;
    let counts = count_all(&workloads)?;

    let mut failures = check_scale(&counts);
    if options.bless {
        Baseline { environment, instructions: counts }.save()?;
        println!("\nThe baseline was written. Commit {}", baseline::PATH);
    } else {
        failures.extend(compare(&options, &environment, &counts)?);
    }
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn workloads() -> Vec<Workload> {
    let groups = [
        support::pipeline::workloads(),
        support::offload::workloads(),
        support::checksum::workloads(),
        support::tables::workloads(),
        tunnel::workloads(),
        support::service::workloads(),
        support::policy::workloads(),
        support::scale::workloads(),
    ];
    groups.into_iter().flatten().collect()
}

/// Does a workload often enough for everything in it to have its turn.
fn measure(name: &str) -> anyhow::Result<()> {
    let workload = workloads()
        .into_iter()
        .find(|workload| workload.name == name)
        .with_context(|| format!("there is no workload {name}"))?;
    let mut round = workload.warm();
    for _ in 0..workload.rounds {
        round.prepare();
        measured_round(&mut *round);
    }
    Ok(())
}

/// What is counted. Callgrind knows it by its name, [`callgrind::MEASURED`].
#[inline(never)]
fn measured_round(round: &mut dyn Round) {
    round.run();
    // Otherwise the call above were a jump, and this function over before the round began.
    black_box(());
}

/// Instructions per unit of each workload. As many are counted at a time as there are CPUs.
fn count_all(workloads: &[Workload]) -> anyhow::Result<BTreeMap<String, f64>> {
    let next = AtomicUsize::new(0);
    let count_some = || -> anyhow::Result<Vec<(String, f64)>> {
        let mut counts = Vec::new();
        while let Some(workload) = workloads.get(next.fetch_add(1, Ordering::Relaxed)) {
            let instructions = callgrind::count(&workload.name)?;
            let units = workload.rounds * workload.units;
            // A tenth of an instruction is exact enough.
            let per_unit = (10.0 * instructions as f64 / units as f64).round() / 10.0;
            counts.push((workload.name.clone(), per_unit));
        }
        Ok(counts)
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(count_some)).collect();
        let mut all = BTreeMap::new();
        for thread in threads {
            let Ok(counts) = thread.join() else { bail!("a thread that counts has panicked") };
            all.extend(counts?);
        }
        Ok(all)
    })
}

fn check_scale(counts: &BTreeMap<String, f64>) -> Vec<String> {
    let costs = counts.iter().map(|(name, count)| (name.as_str(), *count));
    let mut failures = Vec::new();
    for growth in Growth::all(costs) {
        let (Growth { what, from, to }, ratio) = (&growth, growth.ratio());
        let line = format!(
            "{what:24} {:6.1} instructions with {:<4} {:6.1} with {:<7} ratio {ratio:.3}",
            from.1, from.0, to.1, to.0,
        );
        println!("{line}");
        if ratio > Growth::MAX {
            failures.push(format!("not flat within {:.2}: {line}", Growth::MAX));
        }
    }
    failures
}

fn compare(
    options: &Options,
    environment: &Environment,
    counts: &BTreeMap<String, f64>,
) -> anyhow::Result<Vec<String>> {
    let baseline = Baseline::load()?;
    println!("\n{:44} {:>12} {:>10}", "instructions per frame, sum or lookup", "now", "baseline");
    for (name, now) in counts {
        match baseline.instructions.get(name) {
            Some(before) => {
                let change = 100.0 * (now / before - 1.0);
                println!("{name:44} {now:12.1} {before:10.1}  {change:+.1} %");
            }
            None => println!("{name:44} {now:12.1}          -"),
        }
    }
    println!();

    let mut failures = Vec::new();
    let differences = baseline.environment.differences(environment);
    for difference in &differences {
        if options.strict && difference.is_ours {
            failures.push(format!("{}; {}", difference.what, baseline::BLESS));
        } else {
            println!("WARNING: {}", difference.what);
        }
    }
    let is_whole = options.filter.is_none();
    failures.extend(baseline.name_differences(counts, is_whole));
    let found = baseline.changes(counts);
    if differences.is_empty() {
        failures.extend(found.worse);
    } else {
        println!("WARNING: so the counts are not judged, but for the scale");
        found.worse.iter().for_each(|line| println!("NOT JUDGED: {line}"));
    }
    found.better.iter().for_each(|line| println!("BETTER: {line}"));
    Ok(failures)
}
