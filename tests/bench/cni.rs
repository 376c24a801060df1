//! How long a container runtime waits for ADD and DEL, with 1, 100 and 250 pods on the node.
//!
//! ```console
//! # cargo bench --bench cni
//! ```
//!
//! Each call is a process of its own, as runtimes start it: the plugin, the daemon's work with two synced writes of its
//! file, the interface, its addresses and routes. As root, or where a user may make network namespaces.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft::lab::{Lab, LabConfig, Labs, Namespace, sandbox, socket};

const NODE: &str = "n1";
/// Pods that are there already.
const LEVELS: [usize; 3] = [1, 100, 250];
/// Calls at each level.
const CALLS: usize = 100;

fn main() -> ExitCode {
    if !sandbox::is_privileged() {
        println!("not run: this needs root");
        return ExitCode::SUCCESS;
    }
    let calls = if std::env::args().any(|argument| argument == "--bench") { CALLS } else { 3 };
    let place = tempfile::Builder::new().prefix("weft-bench-").tempdir_in("/tmp").unwrap();
    let config = LabConfig {
        nodes: 1,
        pods_per_node: 0,
        program: Some(PathBuf::from(env!("CARGO_BIN_EXE_weft"))),
        ..LabConfig::new("cni")
    };
    let lab = Lab::up(&Labs::under(place.path()), config).unwrap();
    println!(
        "{:>6} {:>10} {:>10} {:>10} {:>10}",
        "pods", "ADD p50", "ADD p99", "DEL p50", "DEL p99"
    );
    let mut there = 0;
    for level in LEVELS {
        for n in there..level {
            Call::new(&lab, &format!("there{n}")).run("ADD");
        }
        there = level;
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for n in 0..calls {
            let call = Call::new(&lab, &format!("measured{level}x{n}"));
            adds.push(call.run("ADD"));
            dels.push(call.run("DEL"));
            call.namespace.remove().unwrap();
        }
        let ms = |times: &mut Vec<Duration>, percent: usize| {
            times.sort_unstable();
            times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3
        };
        let [add50, add99] = [50, 99].map(|percent| ms(&mut adds, percent));
        let [del50, del99] = [50, 99].map(|percent| ms(&mut dels, percent));
        println!("{level:>6} {add50:>7.1} ms {add99:>7.1} ms {del50:>7.1} ms {del99:>7.1} ms");
    }
    lab.down().unwrap();
    ExitCode::SUCCESS
}

/// A container that the plugin is called for.
struct Call<'a> {
    lab: &'a Lab,
    id: String,
    namespace: Namespace,
}

impl<'a> Call<'a> {
    fn new(lab: &'a Lab, id: &str) -> Self {
        let namespace = Namespace::create(lab.dir().join("ns").join(id)).unwrap();
        Self { lab, id: id.to_owned(), namespace }
    }

    fn run(&self, verb: &str) -> Duration {
        let config: Value = json!({
            "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni",
            "socket": socket(self.lab.dir(), NODE),
        });
        let variables: [(&str, OsString); 4] = [
            ("CNI_COMMAND", verb.into()),
            ("CNI_CONTAINERID", self.id.clone().into()),
            ("CNI_NETNS", self.namespace.path().into()),
            ("CNI_IFNAME", "eth0".into()),
        ];
        let begun = Instant::now();
        let mut command = Command::new(self.lab.dir().join("bin/weft-cni"));
        command.env_clear().envs(variables).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let took = begun.elapsed();
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
        took
    }
}
