//! Open vSwitch with its userspace datapath, in one namespace of a lab and in a directory of its own:
//! nothing of it touches an Open vSwitch that the machine may run, or a kernel module.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use weft::lab::{Lab, Namespace};

use super::{eventually, find};

/// The programs that [`Ovs`] needs, with their Debian packages.
pub(crate) const PROGRAMS: [(&str, &str); 6] = [
    ("ovs-vswitchd", "openvswitch-switch"),
    ("ovsdb-server", "openvswitch-common"),
    ("ovsdb-tool", "openvswitch-common"),
    ("ovs-vsctl", "openvswitch-switch"),
    ("ovs-ofctl", "openvswitch-common"),
    ("ovs-appctl", "openvswitch-common"),
];

/// The database's layout, as the packages install it.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A running Open vSwitch. Killed when dropped.
pub(crate) struct Ovs {
    dir: PathBuf,
    namespace: Namespace,
    processes: Vec<Child>,
}

impl Ovs {
    /// Starts it on the machine `name` of the lab.
    #[track_caller]
    pub(crate) fn start(lab: &Lab, name: &str) -> Self {
        let dir = lab.dir().join(format!("{name}-ovs"));
        fs::create_dir(&dir).unwrap();
        let namespace = lab.namespace(name).unwrap();
        let mut ovs = Self { dir, namespace, processes: Vec::new() };
        let (database, socket) = (ovs.path("conf.db"), ovs.socket());
        ovs.run("ovsdb-tool", &["create", &database, SCHEMA]);
        let control = format!("--unixctl={}", ovs.path("ovsdb-server.ctl"));
        ovs.spawn("ovsdb-server", &[&database, &format!("--remote=p{socket}"), &control]);
        let path = ovs.path("db.sock");
        eventually("ovsdb-server listens", || Path::new(&path).exists());
        ovs.vsctl("init");
        let control = format!("--unixctl={}", ovs.control());
        ovs.spawn("ovs-vswitchd", &[&socket, &control, "--disable-system"]);
        let path = ovs.control();
        eventually("ovs-vswitchd runs", || Path::new(&path).exists());
        ovs
    }

    /// Changes the configuration without waiting for it to be carried out.
    #[track_caller]
    pub(crate) fn vsctl(&self, line: &str) {
        let database = format!("--db={}", self.socket());
        let words = line.split_whitespace();
        let arguments: Vec<_> = [database.as_str(), "--no-wait"].into_iter().chain(words).collect();
        self.run("ovs-vsctl", &arguments);
    }

    /// Adds a flow to a bridge, whose ports may be named.
    #[track_caller]
    pub(crate) fn add_flow(&self, bridge: &str, flow: &str) {
        let bridge = format!("unix:{}", self.path(&format!("{bridge}.mgmt")));
        self.run("ovs-ofctl", &["--names", "add-flow", &bridge, flow]);
    }

    /// What `ovs-appctl` says to a command.
    #[track_caller]
    pub(crate) fn appctl(&self, line: &str) -> String {
        let target = format!("--target={}", self.control());
        let words = line.split_whitespace();
        self.run("ovs-appctl", &[target.as_str()].into_iter().chain(words).collect::<Vec<_>>())
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn socket(&self) -> String {
        format!("unix:{}", self.path("db.sock"))
    }

    fn control(&self) -> String {
        self.path("ovs-vswitchd.ctl")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(find(program).unwrap());
        command.args(arguments).stdin(Stdio::null());
        for variable in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR"] {
            command.env(variable, &self.dir);
        }
        command
    }

    fn spawn(&mut self, program: &str, arguments: &[&str]) {
        let mut command = self.command(program, arguments);
        let log = fs::File::create(self.path(&format!("{program}.log"))).unwrap();
        command.stdout(Stdio::null()).stderr(log);
        self.namespace.start_inside(&mut command, true).unwrap();
        self.processes.push(command.spawn().unwrap());
    }

    #[track_caller]
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program, arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {}: {stderr}", arguments.join(" "));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            // It may have ended by itself; then there is nothing to do.
            drop(process.kill());
            drop(process.wait());
        }
    }
}
