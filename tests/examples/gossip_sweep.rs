//! Puts simulated clusters through everything that can happen to one, with many seeds:
//!
//! ```sh
//! cargo run --release --example gossip_sweep                              # all cases, 10 000 seeds each
//! cargo run --release --example gossip_sweep -- --case split --seeds 500
//! cargo run --release --example gossip_sweep -- --replay split 4711       # what happened, in words
//! ```
//!
//! It runs the shipped code with virtual time, and looks after every step whether the promises of
//! `docs/gossip.md` hold.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use overlay::gossip::sim::cases::{self, CASES, Case};
use overlay::gossip::sim::sweep::{Sum, sweep};
use overlay::gossip::sim::trial;

/// Puts simulated clusters through everything that can happen to one.
///
/// One seed decides on everything in a run: who is where, what is lost, when what happens. The promises of
/// docs/gossip.md (I1 to I6) are looked at after every datagram and every timer.
#[derive(Debug, Parser)]
#[command(name = "gossip_sweep")]
struct Options {
    /// Run only the case with this name, or those whose name contains it; may be given several times. Without it, all
    /// are run.
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,

    /// How many seeds each case is run with. Cases of many nodes or hours are run with fewer, as the table
    /// says.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,

    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,

    /// How many runs at a time. Default: one per processor.
    #[arg(long)]
    jobs: Option<usize>,

    /// Run one case with one seed, and tell what happened.
    #[arg(long, num_args = 2, value_names = ["CASE", "SEED"], conflicts_with_all = ["cases", "from"])]
    replay: Option<Vec<String>>,

    /// With --replay: for how many seconds before its end every datagram is told. All of them with a large
    /// number.
    #[arg(long, default_value_t = 3.0)]
    talk: f64,

    /// List the cases.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list {
        for case in CASES {
            println!("{:20} {}", case.name, case.about);
        }
        return ExitCode::SUCCESS;
    }
    if let Some(what) = &options.replay {
        return replay(&what[0], &what[1], options.talk);
    }
    let is_meant = |case: &Case, name: &String| match cases::find(name) {
        Some(exact) => exact.name == case.name,
        None => case.name.contains(name),
    };
    let wanted = |case: &&Case| {
        options.cases.is_empty() || options.cases.iter().any(|name| is_meant(case, name))
    };
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    if cases.is_empty() {
        println!("No case has such a name. These are there: {}", names());
        return ExitCode::from(2);
    }
    let jobs = options.jobs.or_else(|| std::thread::available_parallelism().ok().map(Into::into));
    let results: Vec<_> =
        cases.iter().map(|case| (*case, run(case, &options, jobs.unwrap_or(1)))).collect();
    table(&results)
}

fn names() -> String {
    CASES.iter().map(|case| case.name).collect::<Vec<_>>().join(", ")
}

/// Runs a case, and tells how far it is.
fn run(case: &Case, options: &Options, jobs: usize) -> (Sum, Duration) {
    let begun = Instant::now();
    let seeds = case.seeds(options.seeds);
    let mut told = begun;
    let progress = |done| {
        let shown = std::io::stderr().is_terminal();
        if shown && told.elapsed() >= Duration::from_millis(200) {
            told = Instant::now();
            eprint!("\r{:20} {done} of {seeds}", case.name);
            // A terminal that is gone is no reason to stop.
            let _shown = std::io::stderr().flush();
        }
    };
    let sum = sweep(case, options.from..options.from + seeds, jobs, progress);
    eprintln!(
        "\r{:20} {} seeds in {:.1} s, {} broken",
        case.name,
        sum.seeds,
        begun.elapsed().as_secs_f64(),
        sum.failures.len()
    );
    (sum, begun.elapsed())
}

fn table(results: &[(&Case, (Sum, Duration))]) -> ExitCode {
    println!(
        "{:20} {:>7} {:>7} {:>12} {:>9} {:>7} {:>11} {:>8}",
        "case", "seeds", "broken", "steps", "disputes", "losses", "agree (s)", "took (s)"
    );
    for (case, (sum, took)) in results {
        println!(
            "{:20} {:>7} {:>7} {:>12} {:>9} {:>7} {:>11.2} {:>8.1}",
            case.name,
            sum.seeds,
            sum.failures.len(),
            sum.steps,
            sum.disputes,
            sum.losses,
            sum.slowest.as_secs_f64(),
            took.as_secs_f64()
        );
    }
    let broken: usize = results.iter().map(|(_, (sum, _))| sum.failures.len()).sum();
    let steps: u64 = results.iter().map(|(_, (sum, _))| sum.steps).sum();
    let seeds: u64 = results.iter().map(|(_, (sum, _))| sum.seeds).sum();
    println!("\n{} cases, {seeds} runs, {steps} steps, {broken} broken promises", results.len());
    for (case, (sum, _)) in results {
        for (seed, violation) in sum.failures.iter().take(3) {
            println!("\n{} with seed {seed}: {violation}", case.name);
            println!(
                "  cargo run --release --example gossip_sweep -- --replay {} {seed}",
                case.name
            );
        }
    }
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(case: &str, seed: &str, talk: f64) -> ExitCode {
    let (Some(case), Ok(seed)) = (cases::find(case), seed.parse()) else {
        println!("--replay wants the name of a case and a number. The cases are: {}", names());
        return ExitCode::from(2);
    };
    let talk = Duration::try_from_secs_f64(talk).unwrap_or(Duration::MAX);
    let (outcome, history) = trial::replay(case, seed);
    println!("{} with seed {seed}: {}\n", case.name, case.about);
    print!("{}", history.render(talk));
    match outcome.violation {
        None => {
            println!("\nno promise was broken in {} steps", outcome.tally.steps);
            ExitCode::SUCCESS
        }
        Some(violation) => {
            println!("\n{violation}");
            ExitCode::FAILURE
        }
    }
}
