//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::lines::Job;
use super::wire::Wire;

/// Measures Weft against the kernel's bridge and vxlan device, side by side on this machine.
///
/// Runs as root, or as an ordinary user where the machine permits user namespaces. Nothing but the
/// measurement should run meanwhile.
#[derive(Debug, Parser)]
#[command(name = "overlay", bin_name = "cargo bench --bench overlay --", max_term_width = 100)]
pub(crate) struct Args {
    /// Measure only these.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,...")]
    pub(crate) only: Vec<Job>,

    /// On these wires between the nodes [default: all].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WIRE,...")]
    pub(crate) wire: Vec<Wire>,

    /// How often each contestant is measured, in turns with the others [default: 5].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,

    /// How long each measurement takes, after its warm-up [default: 2].
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,

    /// One short round on the wires `ideal` and `1500`, in about a minute: shows that all works, not how
    /// fast it is.
    #[arg(long)]
    pub(crate) quick: bool,

    /// Also Open vSwitch's userspace datapath and wireguard-go, where installed, and a plain forwarder
    /// with one frame a system call.
    #[arg(long)]
    pub(crate) all: bool,

    /// Also another build of Weft: the path of its program `weft`.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) against: Option<PathBuf>,

    /// A file with TOML for the `weft.toml` of every node, to measure settings.
    #[arg(long, value_name = "FILE")]
    pub(crate) weft_toml: Option<PathBuf>,

    /// Measures nothing: shows the results of earlier runs, written by `--json`, as if they were of one run.
    /// For a machine that is quiet for some minutes only. A figure that is in several is taken from the last.
    #[arg(long, value_delimiter = ',', value_name = "FILE,...", conflicts_with_all = ["only", "quick", "all", "against"])]
    pub(crate) join: Vec<PathBuf>,

    /// Writes all values to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draws the charts of docs/performance.md into this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) charts: Option<PathBuf>,

    /// What cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    pub(crate) fn rounds(&self) -> usize {
        let default = if self.quick { 1 } else { 5 };
        self.rounds.map_or(default, usize::from)
    }

    pub(crate) fn duration(&self) -> Duration {
        let default = if self.quick { Duration::from_millis(700) } else { Duration::from_secs(2) };
        self.seconds.unwrap_or(default)
    }

    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_millis(if self.quick { 200 } else { 500 })
    }

    pub(crate) fn wires(&self) -> Vec<Wire> {
        match (self.wire.as_slice(), self.quick) {
            ([], true) => vec![Wire::Ideal, Wire::Mtu1500],
            ([], false) => Wire::ALL.to_vec(),
            (wires, _) => wires.to_vec(),
        }
    }

    /// Whether a job is to be done.
    pub(crate) fn wants(&self, job: Job) -> bool {
        if self.only.is_empty() { !(self.quick && job.is_long()) } else { self.only.contains(&job) }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is no number of seconds"))?;
    if !(0.1..=600.0).contains(&seconds) {
        return Err("a measurement takes 0.1 to 600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}
