//! `cargo bench --bench overlay`: Weft and the kernel's own overlay, side by side.
//!
//! Builds the same nodes and pods for every contestant, measures them in turns, and prints a table with
//! medians, spreads and ratios. What the figures mean: `tests/bench/README.md`.

// A benchmark is a command, and its results go to the standard output.
#![allow(clippy::print_stdout)]

mod args;
mod chart;
mod cpu;
mod json;
mod lines;
mod measure;
mod mesh;
mod results;
mod schedule;
mod signals;
mod statistics;
mod table;
mod tools;
mod topology;
mod wire;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use weft::lab::{Interrupt, Labs, sandbox};

use args::Args;
use results::Results;
use schedule::Schedule;
use topology::Site;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("overlay: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let own_arguments: Vec<String> = std::env::args().skip(1).collect();
    match &own_arguments[..] {
        [what, cpu] if what == cpu::ARGUMENT => return cpu::spin(cpu).map(|()| ExitCode::SUCCESS),
        [what, pods @ ..] if what == topology::PLAIN_ARGUMENT => {
            return topology::plain_main(pods).map(|()| ExitCode::SUCCESS);
        }
        _ => {}
    }
    let args = Args::parse();
    if !args.join.is_empty() {
        let mut results = Results::default();
        for path in &args.join {
            json::read(path, &mut results)?;
        }
        show(&args, &results)?;
        return Ok(code(&results));
    }
    let weft_extra = match &args.weft_toml {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?
        }
        None => String::new(),
    };
    let labs = Labs::of_user();
    // Alone in its namespaces, nothing of the benchmark can outlive it, whatever happens to it.
    sandbox::enter_own()?;
    let interrupt = Interrupt::default();
    signals::install(&interrupt)?;
    topology::remove_abandoned(&labs)?;
    let site = Site { labs, interrupt, weft_extra };

    let mut results = Results::default();
    let schedule = Schedule::new(&args, &mut results)?;
    eprintln!("{schedule}");
    let done = schedule.run(&site, &mut results);
    // What was measured before a failure or ctrl-C is still true.
    show(&args, &results)?;
    done?;
    Ok(code(&results))
}

/// The table, and the files that are asked for.
fn show(args: &Args, results: &Results) -> Result<()> {
    print!("{}", table::text(results, &args.wires()));
    if let Some(path) = &args.json {
        json::write(path, results, &args.wires())?;
    }
    if let Some(dir) = &args.charts {
        let count = chart::draw(dir, results)?;
        eprintln!("{count} charts are in {}", dir.display());
    }
    Ok(())
}

fn code(results: &Results) -> ExitCode {
    if results.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
