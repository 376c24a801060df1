//! Open vSwitch's userspace datapath, in a directory of its own: nothing of it touches an Open vSwitch that
//! the machine may run, or a kernel module.
//!
//! On every node a bridge `br-int` with a TAP per pod and a VXLAN port per node, whose flows know where every
//! pod is, and a bridge `br-phy` that has the node's device and underlay address.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ::weft::lab::{Family, Interrupt, Namespace, Plan, Wait};
use anyhow::{Context, Result, ensure};

use super::super::tools::{self, Program};
use super::flat::{self, Place};
use super::{Ground, LINK, Process, VXLAN_OVERHEAD};

/// The programs that it needs.
pub(super) const PROGRAMS: [Program; 6] = [
    ("ovs-vswitchd", "openvswitch-switch"),
    ("ovs-vsctl", "openvswitch-switch"),
    ("ovsdb-server", "openvswitch-common"),
    ("ovsdb-tool", "openvswitch-common"),
    ("ovs-ofctl", "openvswitch-common"),
    ("ovs-appctl", "openvswitch-common"),
];

/// The database's layout, as the packages install it.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// How long anything of it may take to appear.
const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn join(ground: &mut Ground) -> Result<()> {
    let places = flat::make_pods(ground)?;
    for node in 0..usize::from(ground.layout.nodes) {
        let ovs = Ovs::start(ground, node)?;
        ovs.take_link(ground, node)?;
        ovs.add_tunnels(ground, node)?;
        for place in places.iter().filter(|place| place.node == node) {
            ovs.add_pod(place)?;
            flat::configure(place, &places, ground.wire.mtu() - VXLAN_OVERHEAD)?;
        }
        for place in &places {
            let output = match place.node == node {
                true => tap(place),
                false => tunnel(place.node),
            };
            let flow = format!("dl_dst={},actions=output:{output}", flat::text(place.mac));
            let bridge = format!("unix:{}", ovs.path("br-int.mgmt"));
            ovs.run("ovs-ofctl", &["--names", "add-flow", &bridge, &flow])?;
        }
    }
    Ok(())
}

/// The Open vSwitch of a node.
#[derive(Debug)]
struct Ovs {
    dir: PathBuf,
    namespace: Namespace,
}

impl Ovs {
    fn start(ground: &mut Ground, node: usize) -> Result<Self> {
        let dir = ground.lab.dir().join(format!("ovs{node}"));
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let ovs = Self { dir, namespace: ground.node(node)? };
        let database = ovs.path("conf.db");
        ovs.run("ovsdb-tool", &["create", &database, SCHEMA])?;
        let control = format!("--unixctl={}", ovs.path("ovsdb-server.ctl"));
        let remote = format!("--remote=p{}", ovs.socket());
        ovs.spawn(ground, "ovsdb-server", &[&database, &remote, &control])?;
        ovs.wait_for_file("db.sock")?;
        ovs.vsctl("init")?;
        let control = format!("--unixctl={}", ovs.control());
        ovs.spawn(ground, "ovs-vswitchd", &[&ovs.socket(), &control, "--disable-system"])?;
        ovs.wait_for_file("ovs-vswitchd.ctl")?;
        Ok(ovs)
    }

    /// Makes the node's device a port of a bridge, which takes over its address: tunnel packets leave only
    /// through a bridge that has the local address.
    fn take_link(&self, ground: &Ground, node: usize) -> Result<()> {
        let mtu = ground.wire.mtu();
        self.vsctl(&format!(
            "add-br br-phy -- set bridge br-phy datapath_type=netdev -- add-port br-phy {LINK} \
             -- set interface {LINK} mtu_request={mtu} -- set interface br-phy mtu_request={mtu}"
        ))?;
        self.wait_for_device("br-phy")?;
        let own = Plan::node(Family::V4, u8::try_from(node + 1)?);
        tools::ip(
            &self.namespace,
            &format!(
                "address flush dev {LINK}\nlink set br-phy up\naddress add {own} dev br-phy\n"
            ),
        )?;
        let known = format!("SRC {}", own.ip());
        let control = format!("--target={}", self.control());
        Interrupt::default().wait_for(LIMIT, || {
            let routes = self.run("ovs-appctl", &[&control, "ovs/route/show"])?;
            Ok(if routes.contains(&known) {
                Wait::Done(())
            } else {
                Wait::NotYet(format!("Open vSwitch does not know its address {}", own.ip()))
            })
        })
    }

    fn add_tunnels(&self, ground: &Ground, node: usize) -> Result<()> {
        self.vsctl("add-br br-int -- set bridge br-int datapath_type=netdev fail-mode=secure")?;
        for peer in (0..usize::from(ground.layout.nodes)).filter(|peer| *peer != node) {
            let (port, remote) = (tunnel(peer), ground.underlay(peer)?);
            self.vsctl(&format!(
                "add-port br-int {port} -- set interface {port} type=vxlan options:remote_ip={remote} \
                 options:key=1 options:dst_port=4789"
            ))?;
        }
        self.wait_for_device("br-int")
    }

    /// Makes a TAP, and moves it to its pod. Open vSwitch holds it open there.
    fn add_pod(&self, place: &Place) -> Result<()> {
        let name = tap(place);
        self.vsctl(&format!("add-port br-int {name} -- set interface {name} type=internal"))?;
        self.wait_for_device(&name)?;
        let pod = place.pod.namespace.path().display();
        tools::ip(&self.namespace, &format!("link set {name} netns {pod} name eth0\n"))
    }

    /// Changes the configuration without waiting for it to be carried out.
    fn vsctl(&self, line: &str) -> Result<()> {
        let database = format!("--db={}", self.socket());
        let arguments: Vec<&str> =
            [database.as_str(), "--no-wait"].into_iter().chain(line.split_whitespace()).collect();
        self.run("ovs-vsctl", &arguments).map(drop)
    }

    fn wait_for_file(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        self.wait_for(name, || Ok(Path::new(&path).exists()))
    }

    fn wait_for_device(&self, name: &str) -> Result<()> {
        self.wait_for(name, || {
            let links = tools::run(&self.namespace, tools::IP.0, &["-o", "link"])?;
            Ok(links.contains(&format!(" {name}: ")))
        })
    }

    fn wait_for(&self, what: &str, is_there: impl Fn() -> Result<bool>) -> Result<()> {
        let log = self.path("ovs-vswitchd.log");
        let waited = Interrupt::default().wait_for(LIMIT, || {
            Ok(if is_there()? {
                Wait::Done(())
            } else {
                Wait::NotYet(format!("there is no {what}"))
            })
        });
        waited.with_context(|| {
            format!("Open vSwitch says: {}", fs::read_to_string(log).unwrap_or_default())
        })
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

    fn command(&self, program: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = tools::command(&self.namespace, program)?;
        command.args(arguments).stdin(Stdio::null());
        for variable in ["OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR"] {
            command.env(variable, &self.dir);
        }
        Ok(command)
    }

    fn spawn(&self, ground: &mut Ground, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(program, arguments)?;
        let log = File::create(self.path(&format!("{program}.log")))?;
        command.stdout(Stdio::null()).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {program}"))?;
        ground.processes.push(Process(child));
        Ok(())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let what = || format!("running {program} {}", arguments.join(" "));
        let output = self.command(program, arguments)?.output().with_context(what)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", what(), stderr.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The port of a pod.
fn tap(place: &Place) -> String {
    format!("tap{}", place.ix + 1)
}

/// The port of another node.
fn tunnel(node: usize) -> String {
    format!("vx{}", node + 1)
}
