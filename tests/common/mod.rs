//! What tests with real kernels share: a lab in a place of its own, programs that may be missing, and
//! commands in namespaces.

// Every test program compiles all of this and uses a part of it.
#![allow(dead_code)]
// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

pub(crate) mod capture;
pub(crate) mod container;
pub(crate) mod foreign;
pub(crate) mod frames;
pub(crate) mod ovs;
pub(crate) mod place;
pub(crate) mod service;
pub(crate) mod traffic;
pub(crate) mod wire;

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vswitch::verdict::Reason;
use weft::lab::{Lab, LabConfig, Labs, Namespace, sandbox};

/// A lab that nobody else sees and that is removed when this is dropped.
pub(crate) struct TestLab {
    lab: Lab,
    _place: TempDir,
}

impl TestLab {
    /// Makes the lab with the programs of this build.
    #[track_caller]
    pub(crate) fn up(config: LabConfig) -> Self {
        // Not in a long $TMPDIR: the path of a Unix socket has at most 107 bytes.
        Self::up_in(Path::new("/tmp"), config)
    }

    /// The same with all its files below `directory`.
    #[track_caller]
    pub(crate) fn up_in(directory: &Path, config: LabConfig) -> Self {
        let place = tempfile::Builder::new().prefix("weft-test-").tempdir_in(directory).unwrap();
        let program = Some(PathBuf::from(env!("CARGO_BIN_EXE_weft")));
        let lab = Lab::up(&Labs::under(place.path()), LabConfig { program, ..config });
        Self { lab: lab.unwrap_or_else(|error| panic!("{error:#}")), _place: place }
    }

    /// Every daemon has accounted for every packet: received and originated are delivered, answered or
    /// dropped for a reason.
    #[track_caller]
    pub(crate) fn assert_conserved(&self) {
        for node in self.lab.nodes().iter().filter(|node| node.daemon.is_some()) {
            let admin = self.lab.admin(&node.name).unwrap();
            let what = format!("{} has accounted for every packet", node.name);
            eventually(&what, || admin.counters().unwrap().queued == 0);
        }
    }

    /// How many packets the node has dropped for this reason.
    #[track_caller]
    pub(crate) fn dropped(&self, node: &str, reason: Reason) -> u64 {
        let counters = self.lab.admin(node).unwrap().counters().unwrap();
        counters.dropped.get(reason.as_str()).copied().unwrap_or(0)
    }

    /// What every test ends with: all packets are accounted for, and nothing of the lab stays behind, neither
    /// processes nor mounts nor files.
    #[track_caller]
    pub(crate) fn finish(self) {
        self.assert_conserved();
        let Self { lab, _place: place } = self;
        lab.down().unwrap_or_else(|error| panic!("{error:#}"));
        let path = place.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&path), "{mounts}");
        let commands = fs::read_dir("/proc").unwrap().flatten();
        let commands = commands.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let commands = commands.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "));
        let left: Vec<_> = commands.filter(|command| command.contains(&path)).collect();
        assert!(left.is_empty(), "{left:?}");
        // The last lab takes the directory of all labs with it.
        assert!(!place.path().exists(), "{path} is left");
    }
}

impl Deref for TestLab {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl DerefMut for TestLab {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

/// Whether this process may make labs. If not, runs the calling test again in namespaces of this user's
/// own, and fails if that fails; where the machine does not permit such namespaces, says so.
#[track_caller]
pub(crate) fn may_make_labs() -> bool {
    if sandbox::is_privileged() {
        return true;
    }
    let name = std::thread::current().name().expect("a test's thread has its name").to_owned();
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "--net", "--"]);
        command
    };
    let permitted = unshare().arg("true").output().is_ok_and(|output| output.status.success());
    let unusable = match sandbox::check_tun() {
        Err(error) => Some(format!("{error:#}")),
        Ok(()) if permitted => None,
        Ok(()) => Some("this user may not make a network of its own".to_owned()),
    };
    if let Some(why) = unusable {
        skip("WEFT_REQUIRE_KERNEL_TESTS", &why);
        return false;
    }
    let own = std::env::current_exe().unwrap();
    let status = unshare().arg(own).args(["--exact", &name, "--nocapture"]).status().unwrap();
    assert!(status.success(), "{name} failed in namespaces of this user's own");
    false
}

/// Whether all `programs`, each with the Debian package that it is in, are there. Says which are not.
#[track_caller]
pub(crate) fn has_programs(programs: &[(&str, &str)]) -> bool {
    let missing = programs.iter().filter(|(program, _)| find(program).is_none());
    let missing: Vec<_> =
        missing.map(|(program, package)| format!("{program} (package {package})")).collect();
    if !missing.is_empty() {
        skip("WEFT_REQUIRE_INTEROP", &format!("not installed: {}", missing.join(", ")));
    }
    missing.is_empty()
}

/// Says why a test does nothing; fails where the variable forbids that.
#[track_caller]
pub(crate) fn skip(variable: &str, why: &str) {
    assert!(std::env::var_os(variable).is_none_or(|set| set != "1"), "{why}");
    eprintln!("skipped: {why}");
}

/// The path of a program: also where administrators' programs are, which is not on every user's path.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Runs a command, written as in a shell but without quoting, inside `namespace`, and gives what it
/// prints.
#[track_caller]
pub(crate) fn run(namespace: &Namespace, line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    let mut command = Command::new(find(program).unwrap_or_else(|| program.into()));
    namespace.start_inside(command.args(words), false).unwrap();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `holds`.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        pause();
    }
}

/// Other processes' state can only be looked at again and again.
#[allow(clippy::disallowed_methods)]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
