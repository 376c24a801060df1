//! Runs this program under valgrind.

use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, bail, ensure};

/// Matches the name of the function whose instructions count, those of what it calls included; however the
/// compiler mangles it.
pub(crate) const MEASURED: &str = "*measured_round*";

/// Counts the instructions of all measured rounds of a workload.
pub(crate) fn count(workload: &str) -> anyhow::Result<u64> {
    let dir = tempfile::tempdir().context("no temporary directory for callgrind's output")?;
    let path = dir.path().join("callgrind.out");
    let out = format!("--callgrind-out-file={}", path.display());
    let toggle = format!("--toggle-collect={MEASURED}");
    run(&["--tool=callgrind", &out, &toggle], &["--measure", workload])
        .with_context(|| format!("counting {workload} failed"))?;
    let total = total_in(&path).with_context(|| format!("counting {workload} failed"))?;
    ensure!(
        total > 0,
        "counting {workload} failed: callgrind saw no function {MEASURED}; is the benchmark stripped?"
    );
    Ok(total)
}

/// What this program says of the vector instructions that valgrind shows to it.
pub(crate) fn vectors() -> anyhow::Result<String> {
    let output = run(&["--tool=none"], &["--vectors"]).context("asking for vectors failed")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The environment is left out: its length moves the stack, and what copies memory looks at addresses.
fn run(valgrind: &[&str], own: &[&str]) -> anyhow::Result<Output> {
    let exe = env::current_exe().context("this program has no path")?;
    let kept = env::vars_os().filter(|(name, _)| name == "PATH" || name == "VALGRIND_LIB");
    let output = Command::new("valgrind")
        .arg("-q")
        .args(valgrind)
        .arg(exe)
        .args(own)
        .env_clear()
        .envs(kept)
        .output();
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("valgrind is not installed: apt-get install valgrind")
        }
        output => output.context("cannot start valgrind")?,
    };
    ensure!(
        output.status.success(),
        "valgrind ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output)
}

/// Callgrind writes the sum of all counts into a line "totals: N" (Callgrind Format Specification).
fn total_in(path: &Path) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path).context("callgrind left no output")?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.context("callgrind's output has no totals")?;
    total.trim().parse().with_context(|| format!("callgrind's total is no number: {total}"))
}
