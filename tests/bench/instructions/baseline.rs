//! The committed counts, and what they were made with.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::callgrind;

/// The committed file, from the root of the repository.
pub(crate) const PATH: &str = "tests/bench/instructions.toml";

/// What to do about a baseline that does not fit.
pub(crate) const BLESS: &str =
    "if that is meant so, write it anew: cargo bench --bench instructions -- --bless";

/// Counts may grow by so much.
const MORE_MAX: f64 = 1.05;

/// Below so much of the baseline, it hides what would be lost next.
const LESS_MIN: f64 = 0.95;

const HEADER: &str = "\
# Instructions per frame, packet, sum or lookup, and what they were counted with.
# Written by `cargo bench --bench instructions -- --bless`; see instructions.rs.

";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Baseline {
    pub(crate) environment: Environment,
    /// By the workload's name.
    pub(crate) instructions: BTreeMap<String, f64>,
}

/// What counts depend on beside the code.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Environment {
    /// Compiler, and with it the standard library.
    rustc: String,
    /// What the compiler compiles for.
    target: String,
    /// The C library.
    libc: String,
    /// The widest vector instructions, of the CPU and of valgrind.
    vectors: String,
}

/// Something that is not as it was when the baseline was made.
pub(crate) struct Difference {
    pub(crate) what: String,
    /// Whether it belongs to what is installed, so that it does not change by itself.
    pub(crate) is_ours: bool,
}

/// What changed too much.
pub(crate) struct Changes {
    pub(crate) worse: Vec<String>,
    pub(crate) better: Vec<String>,
}

impl Baseline {
    pub(crate) fn load() -> anyhow::Result<Self> {
        let text = fs::read_to_string(path()).with_context(|| format!("cannot read {PATH}"))?;
        toml::from_str(&text).with_context(|| format!("{PATH} is not a baseline; {BLESS}"))
    }

    pub(crate) fn save(&self) -> anyhow::Result<()> {
        let text = toml::to_string(self).context("cannot write the baseline as TOML")?;
        fs::write(path(), format!("{HEADER}{text}")).with_context(|| format!("cannot write {PATH}"))
    }

    /// Workloads that only one side has. Where only some were counted, the others are not missed.
    pub(crate) fn name_differences(
        &self,
        counts: &BTreeMap<String, f64>,
        is_whole: bool,
    ) -> Vec<String> {
        let unknown = counts
            .keys()
            .filter(|name| !self.instructions.contains_key(*name))
            .map(|name| format!("{name} is not in the baseline; {BLESS}"));
        let gone =
            self.instructions.keys().filter(|name| is_whole && !counts.contains_key(*name)).map(
                |name| format!("{name} is in the baseline, and no workload any more; {BLESS}"),
            );
        unknown.chain(gone).collect()
    }

    pub(crate) fn changes(&self, counts: &BTreeMap<String, f64>) -> Changes {
        let mut changes = Changes { worse: Vec::new(), better: Vec::new() };
        for (name, now) in counts {
            let Some(before) = self.instructions.get(name) else { continue };
            let ratio = now / before;
            let line = format!("{name} takes {now:.1} instructions, in the baseline {before:.1}");
            if ratio > MORE_MAX {
                changes.worse.push(format!("{line}: over 5 % more; {BLESS}"));
            } else if ratio < LESS_MIN {
                changes.better.push(format!(
                    "{line}: run with --bless to write the new baseline, so that it is not lost again"
                ));
            }
        }
        changes
    }
}

impl Environment {
    /// Asks the compiler, the C library, and this program under valgrind.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let about = output_of(&rustc, &["-vV"])?;
        let field = |name: &str| {
            let value = about.lines().find_map(|line| line.strip_prefix(name));
            value.map(str::to_owned).with_context(|| format!("rustc -vV does not say {name}"))
        };
        Ok(Self {
            rustc: field("rustc ")?,
            target: field("host: ")?,
            libc: output_of("getconf", &["GNU_LIBC_VERSION"])?,
            vectors: callgrind::vectors()?,
        })
    }

    /// What is different in `now`.
    pub(crate) fn differences(&self, now: &Self) -> Vec<Difference> {
        let pairs = [
            ("rustc", &self.rustc, &now.rustc, true),
            ("target", &self.target, &now.target, true),
            ("C library", &self.libc, &now.libc, true),
            ("vector instructions", &self.vectors, &now.vectors, false),
        ];
        pairs
            .into_iter()
            .filter(|(_, before, now, _)| before != now)
            .map(|(name, before, now, is_ours)| Difference {
                what: format!("the baseline was made with {name} {before:?}, here it is {now:?}"),
                is_ours,
            })
            .collect()
    }
}

/// The widest vector instructions that this process can choose.
pub(crate) fn vectors() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("avx", std::arch::is_x86_feature_detected!("avx")),
            ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ];
        all.into_iter().find(|(_, is_there)| *is_there).map_or("sse2", |(name, _)| name)
    }
    #[cfg(not(target_arch = "x86_64"))]
    "those of the architecture"
}

fn path() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PATH)
}

fn output_of(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(output.status.success(), "{program} {arguments:?} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
