//! The results as a file that programs read, this one among them.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::lines::LINES;
use super::results::Results;
use super::topology::Contestant;
use super::wire::Wire;

/// Writes all values and all judged lines to `path`.
pub(crate) fn write(path: &Path, results: &Results, wires: &[Wire]) -> Result<()> {
    let context = || format!("writing {}", path.display());
    let file = File::create(path).with_context(context)?;
    serde_json::to_writer_pretty(BufWriter::new(file), &value(results, wires)).with_context(context)
}

/// Adds the values in `path`, which [`write`] has written.
pub(crate) fn read(path: &Path, results: &mut Results) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let file: Written = serde_json::from_str(&text)
        .with_context(|| format!("{} holds no results of this benchmark", path.display()))?;
    for Row { wire, contestant, figure, values } in file.values {
        let known = || {
            let line = LINES.iter().find(|line| line.figure == figure)?;
            Some((Contestant::of_name(&contestant)?, line.figure))
        };
        let (contestant, figure) = known().with_context(|| {
            format!("{}: `{figure}` of `{contestant}` is not known here", path.display())
        })?;
        results.set(wire, contestant, figure, values);
    }
    results.left_out.extend(file.left_out);
    results.failures.extend(file.failures);
    Ok(())
}

/// What is read back.
#[derive(Debug, serde::Deserialize)]
struct Written {
    values: Vec<Row>,
    left_out: Vec<String>,
    failures: Vec<String>,
}

#[derive(Debug, serde::Deserialize)]
struct Row {
    wire: Wire,
    contestant: String,
    figure: String,
    values: Vec<Option<f64>>,
}

fn value(results: &Results, wires: &[Wire]) -> Value {
    let lines = wires.iter().flat_map(|wire| {
        LINES.iter().filter_map(|line| results.judge(*wire, line)).map(move |judged| {
            json!({
                "wire": wire,
                "figure": judged.line.figure,
                "title": judged.line.title,
                "unit": judged.line.unit,
                "baseline": judged.baseline,
                "weft": judged.subject,
                "ratio": judged.ratio,
                "must": judged.target.map(|target| target.must.to_string()),
                "stretch": judged.target.and_then(|target| target.stretch).map(|b| b.to_string()),
                "result": judged.verdict,
            })
        })
    });
    let values = results.all().map(|(wire, contestant, figure, values)| {
        json!({ "wire": wire, "contestant": contestant.name(), "figure": figure, "values": values })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "machine": {
            "kernel": first_line("/proc/sys/kernel/osrelease"),
            "cpus": std::thread::available_parallelism().map(usize::from).ok(),
            "cpu": cpu_model(),
        },
        "lines": lines.collect::<Vec<_>>(),
        "values": values.collect::<Vec<_>>(),
        "left_out": results.left_out,
        "failures": results.failures,
    })
}

fn first_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.to_owned())
}

fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
