//! Real container runtimes on our network: containerd (`ctr run --cni`) and podman with its CNI backend, each node
//! in a namespace of its own, with a root file system that is made of a static busybox on the spot.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::common::{TestLab, eventually, find, has_programs, may_make_labs, skip};
use serde_json::{Value, json};
use weft::admin::api::PodStatus;
use weft::lab::{Lab, LabConfig, Namespace, WORLD, socket};

const PLUGINS: &str = "/usr/lib/cni";

const CONTAINERD: [(&str, &str); 5] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
    ("unshare", "util-linux"),
];

const PODMAN: [(&str, &str); 3] =
    [("podman", "podman"), ("busybox", "busybox-static"), ("runc", "runc")];

/// On our network; and within limits that are those of many machines, also where podman's defaults are above.
const NETWORK: [&str; 6] =
    ["--network", "weft", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"];

#[test]
fn containers_of_containerd_on_two_nodes_talk_and_outlive_restarts() {
    if !may_make_labs() || !has_programs(&CONTAINERD) || !has_plugins() {
        return;
    }
    let mut lab = TestLab::up(two_nodes("containerd"));
    let mut nodes = ["n1", "n2"].map(|node| Containerd::start(&lab, node));
    if let Err(why) = nodes[0].run_bare() {
        skip("WEFT_REQUIRE_INTEROP", &format!("containers cannot be run here: {why}"));
        nodes.into_iter().for_each(Containerd::stop);
        lab.finish();
        return;
    }
    let mut containers = nodes.each_ref().map(|node| node.run(&lab, "web"));
    let addresses = containers.each_ref().map(|container| container.addresses.clone());
    assert!(addresses.iter().all(|of| of.len() == 2), "one of each family: {addresses:?}");
    let all_talk = |nodes: &[Containerd; 2], what: &str| {
        for (from, to) in [(0, 1), (1, 0)] {
            for address in &addresses[to] {
                eventually(&format!("{what}: {} reads from {address}", nodes[from].node), || {
                    nodes[from].fetch("web", *address).as_deref() == Some(&*nodes[to].node)
                });
            }
        }
    };
    all_talk(&nodes, "at first");

    // A container that ends gives its addresses back: the runtime calls DEL.
    let extra = nodes[0].run(&lab, "extra");
    assert!(extra.addresses.iter().all(|address| !addresses[0].contains(address)));
    nodes[0].kill("extra", extra);
    eventually("its addresses are free", || pods_of(&lab, "n1", "extra").is_empty());

    // The node's daemon restarts under running containers.
    lab.stop("n1").unwrap();
    lab.start("n1").unwrap();
    all_talk(&nodes, "after a restart of weftd");

    // The runtime restarts, and who waited for the container is gone, so that nobody will call DEL for it. The shim
    // keeps the container.
    containers[0].process.kill().unwrap();
    containers[0].process.wait().unwrap();
    nodes[0].restart();
    all_talk(&nodes, "after a restart of containerd");
    let still = pods_of(&lab, "n1", "web");
    assert_eq!(still[0].addresses, addresses[0]);

    // It ends unseen while weftd does not run, and is gone when that starts again.
    lab.stop("n1").unwrap();
    nodes[0].ctr(&["task", "kill", "-s", "KILL", &nodes[0].id("web")]);
    eventually("the container has ended", || {
        let tasks = nodes[0].ctr(&["task", "ls", "-q"]);
        let running = nodes[0].ctr(&["task", "ls"]);
        !tasks.contains("web") || running.contains("STOPPED")
    });
    lab.start("n1").unwrap();
    eventually("nobody holds its addresses", || pods_of(&lab, "n1", "web").is_empty());

    // A new one under the name of the old one.
    nodes[0].ctr(&["task", "delete", &nodes[0].id("web")]);
    nodes[0].ctr(&["container", "delete", &nodes[0].id("web")]);
    containers[0] = nodes[0].run(&lab, "web");
    let again = containers[0].addresses.clone();
    assert!(again.iter().all(|address| !addresses[0].contains(address)), "they rest: {again:?}");
    for address in &again {
        assert_eq!(nodes[1].fetch("web", *address).as_deref(), Some("n1"), "{address}");
    }
    let [first, second] = containers;
    nodes[0].kill("web", first);
    nodes[1].kill("web", second);
    for node in ["n1", "n2"] {
        eventually("all is given back", || lab.admin(node).unwrap().pods().unwrap().is_empty());
    }
    nodes.into_iter().for_each(Containerd::stop);
    lab.finish();
}

#[test]
fn containers_of_podman_get_what_they_ask_for() {
    if !may_make_labs() || !has_programs(&PODMAN) || !has_plugins() {
        return;
    }
    let lab = TestLab::up(LabConfig { pods_per_node: 1, ..two_nodes("podman") });
    let podman = Podman::new(&lab, "n1");
    let backend = podman.run(&["info", "--format", "{{.Host.NetworkBackend}}"]);
    if text(&backend.stdout).trim() != "cni" {
        let why = format!("this podman has no CNI backend: {backend:?}");
        skip("WEFT_REQUIRE_INTEROP", &why);
        lab.finish();
        return;
    }
    let rootfs = podman.rootfs.to_string_lossy().into_owned();
    let serve = ["--rootfs", &rootfs, "/bin/httpd", "-f", "-p", "80", "-h", "/www"];
    let run =
        |options: &[&str]| podman.ok(&[&["run", "-d"], &NETWORK[..], options, &serve[..]].concat());
    run(&["--name", "any"]);
    let any = lab.admin("n1").unwrap().pods().unwrap().into_iter().find(|pod| pod.name.is_none());
    let any = any.or_else(|| pods_named(&lab, "any")).expect("podman's container is attached");
    let wanted = unused_of(&any.addresses);
    run(&["--name", "asked", "--ip", &wanted.to_string(), "--mac-address", "c2:11:22:33:44:55"]);
    let asked = holder(&lab, wanted).expect("who asked for it has it");
    assert_eq!(asked.mac.to_string(), "c2:11:22:33:44:55");
    for (pod, address) in [(&any, any.addresses[0]), (&asked, wanted)] {
        eventually(&format!("{address} is reached: {pod:?}"), || {
            fetch_from(&lab, "n2-p1", address).as_deref() == Some("n1")
        });
    }
    // The same address for a second one.
    let address = wanted.to_string();
    let options = [&["run", "--rm"], &NETWORK[..], &["--ip", &address]].concat();
    let refused = podman.run(&[&options[..], &serve[..]].concat());
    assert!(!refused.status.success());
    let why = text(&refused.stderr);
    assert!(why.contains(&format!("{wanted} was asked for and is held by")), "{why}");

    // Stopped and started: a new attachment each time, and none is left behind.
    podman.ok(&["stop", "-t", "0", "asked"]);
    assert!(holder(&lab, wanted).is_none());
    podman.ok(&["start", "asked"]);
    eventually("it is reached again", || {
        fetch_from(&lab, "n2-p1", wanted).as_deref() == Some("n1")
    });
    podman.ok(&["rm", "-f", "-t", "0", "any", "asked"]);
    published_ports_lead_to_containers(&lab, &podman, &run);
    let left = lab.admin("n1").unwrap().pods().unwrap();
    assert_eq!(left.len(), 1, "only the lab's own: {left:?}");
    drop(podman);
    lab.finish();
}

/// `podman run -p`: to the world, to pods, and to the node; kept over a restart of the node's daemon, and given back.
fn published_ports_lead_to_containers(
    lab: &Lab,
    podman: &Podman,
    run: &impl Fn(&[&str]) -> String,
) {
    if find("nft").is_none() {
        return skip("WEFT_REQUIRE_INTEROP", "nft is not installed (package nftables)");
    }
    let node: IpAddr = [192, 168, 77, 1].into();
    let clients = [WORLD, "n2", "n2-p1", "n1-p1", "n1"];
    let all_read = |port: u16, when: &str| {
        for client in clients {
            eventually(&format!("{when}: {client} reads from port {port}"), || {
                fetch_port(lab, client, node, port).as_deref() == Some("n1")
            });
        }
    };
    run(&["--name", "web", "-p", "8080:80", "-p", "192.168.77.1:8081:80/tcp", "-p", "8080:80/udp"]);
    all_read(8080, "at first");
    all_read(8081, "at first");
    let again = [&["run", "--rm"], &NETWORK[..], &["-p", "8080:80"]].concat();
    let rootfs = podman.rootfs.to_string_lossy().into_owned();
    let refused = podman.run(&[&again[..], &["--rootfs", &rootfs, "/bin/true"]].concat());
    assert!(!refused.status.success());
    podman.ok(&["stop", "-t", "0", "web"]);
    for client in clients {
        assert_eq!(fetch_port(lab, client, node, 8080), None, "{client}");
    }
    podman.ok(&["start", "web"]);
    all_read(8080, "started again");
    podman.ok(&["rm", "-f", "-t", "0", "web"]);
    assert_eq!(fetch_port(lab, WORLD, node, 8080), None);
}

/// A containerd of a node, with a root and a socket of its own.
struct Containerd {
    node: String,
    dir: PathBuf,
    on: Namespace,
    daemon: Child,
}

/// A container, and the `ctr` that waits for it.
struct Container {
    process: Child,
    addresses: Vec<IpAddr>,
}

impl Containerd {
    #[track_caller]
    fn start(lab: &Lab, node: &str) -> Self {
        let dir = lab.dir().join("containerd").join(node);
        make_rootfs(&dir.join("rootfs"), node);
        write_list(&dir.join("net.d"), lab, node);
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            dir.join("root"),
            dir.join("state"),
            dir.join("c.sock"),
            dir.join("t.sock"),
        );
        fs::write(dir.join("config.toml"), config).unwrap();
        // ctr takes configuration and plugins from fixed places.
        let enter = format!(
            "set -e; mkdir -p /etc/cni/net.d; mount --bind {dir}/net.d /etc/cni/net.d; \
             mount -t tmpfs tmpfs /opt; mkdir -p /opt/cni/bin; ln -s {plugin} /opt/cni/bin/weft-cni; \
             ln -s {PLUGINS}/* /opt/cni/bin/; exec \"$@\"",
            dir = dir.display(),
            plugin = lab.dir().join("bin/weft-cni").display(),
        );
        fs::write(dir.join("enter"), enter).unwrap();
        let daemon = Self::spawn(&dir);
        let on = lab.namespace(node).unwrap();
        let started = Self { node: node.to_owned(), dir, on, daemon };
        started.wait();
        started
    }

    fn spawn(dir: &Path) -> Child {
        let log = fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
        Command::new("containerd")
            .arg("-c")
            .arg(dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn wait(&self) {
        eventually("containerd answers", || {
            let answer = self.command(&["version"]).output().unwrap();
            answer.status.success()
        });
    }

    fn restart(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.daemon = Self::spawn(&self.dir);
        self.wait();
    }

    fn stop(mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        // A shim ends with its container, a moment later.
        let dir = self.dir.to_string_lossy().into_owned();
        eventually("its shims have ended", || !is_on_a_command_line(&dir));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.dir.join("c.sock")).args(arguments).stdin(Stdio::null());
        command
    }

    /// Whether containers can be run at all, without a network.
    fn run_bare(&self) -> Result<(), String> {
        let rootfs = self.dir.join("rootfs").to_string_lossy().into_owned();
        let run = ["run", "--rm", "--rootfs", &rootfs, "bare", "/bin/true"];
        let output = self.command(&run).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
    }

    #[track_caller]
    fn ctr(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "ctr {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a web server in a container, attached as `ctr` does it.
    #[track_caller]
    fn run(&self, lab: &Lab, id: &str) -> Container {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh"]).arg(self.dir.join("enter"));
        command.arg("ctr").arg("-a").arg(self.dir.join("c.sock"));
        command.args(["run", "--cni", "--rm", "--rootfs"]).arg(self.dir.join("rootfs"));
        command.args([&self.id(id), "/bin/httpd", "-f", "-p", "80", "-h", "/www"]);
        let log = fs::File::create(self.dir.join(format!("{id}.log"))).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.on.start_inside(&mut command, false).unwrap();
        let process = command.spawn().unwrap();
        let log = || fs::read_to_string(self.dir.join(format!("{id}.log"))).unwrap();
        eventually(&format!("{id} runs: {}", log()), || {
            self.ctr(&["task", "ls"])
                .lines()
                .any(|line| line.starts_with(&self.id(id)) && line.contains("RUNNING"))
        });
        let pods = pods_of(lab, &self.node, id);
        assert_eq!(pods.len(), 1, "{}", log());
        Container { process, addresses: pods[0].addresses.clone() }
    }

    /// The id of a container.
    fn id(&self, name: &str) -> String {
        container_id(name, &self.node)
    }

    #[track_caller]
    fn kill(&self, id: &str, mut container: Container) {
        self.ctr(&["task", "kill", "-s", "KILL", &self.id(id)]);
        container.process.wait().unwrap();
    }

    /// What a container reads from the web server at `address`.
    fn fetch(&self, id: &str, address: IpAddr) -> Option<String> {
        let (id, url) = (self.id(id), url(address));
        let arguments = ["task", "exec", "--exec-id", "fetch", &id, "/bin/busybox"];
        // Its own option for that (-T) crashes when it is linked statically.
        let arguments = [&arguments[..], &["timeout", "3", "wget", "-qO-", &url]].concat();
        let output = self.command(&arguments).output().unwrap();
        output.status.success().then(|| text(&output.stdout).trim().to_owned())
    }
}

impl Drop for Containerd {
    /// Containers would outlive a test that fails.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let tasks = self.command(&["task", "ls", "-q"]).output();
            for id in tasks.map(|tasks| text(&tasks.stdout)).unwrap_or_default().lines() {
                let _ = self.command(&["task", "kill", "-s", "KILL", id]).output();
            }
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
    }
}

/// A podman on a node, with storage and networks of its own.
struct Podman {
    dir: PathBuf,
    rootfs: PathBuf,
    on: Namespace,
}

impl Podman {
    fn new(lab: &Lab, node: &str) -> Self {
        let dir = lab.dir().join("podman");
        let rootfs = dir.join("rootfs");
        make_rootfs(&rootfs, node);
        write_list(&dir.join("net.d"), lab, node);
        fs::create_dir_all(dir.join("bin")).unwrap();
        symlink(lab.dir().join("bin/weft-cni"), dir.join("bin/weft-cni")).unwrap();
        for plugin in fs::read_dir(PLUGINS).unwrap() {
            let plugin = plugin.unwrap();
            symlink(plugin.path(), dir.join("bin").join(plugin.file_name())).unwrap();
        }
        let config = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{:?}]\nnetwork_config_dir = {:?}\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\ntmp_dir = {:?}\n",
            dir.join("bin"),
            dir.join("net.d"),
            dir.join("tmp"),
        );
        fs::write(dir.join("containers.conf"), config).unwrap();
        Self { dir, rootfs, on: lab.namespace(node).unwrap() }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        // crun of Debian 12 refuses machines with both versions of cgroups.
        command.args(["--runtime", "runc"]).arg("--root").arg(self.dir.join("root"));
        command.arg("--runroot").arg(self.dir.join("run")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.on.start_inside(&mut command, false).unwrap();
        command.spawn().unwrap().wait_with_output().unwrap()
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "podman {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }
}

impl Drop for Podman {
    /// Containers would outlive a test that fails.
    fn drop(&mut self) {
        let _ = self.run(&["rm", "-f", "-a", "-t", "0"]);
    }
}

/// A root file system with a web server that tells where it is.
fn make_rootfs(root: &Path, page: &str) {
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp", "run", "www"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(find("busybox").unwrap(), root.join("bin/busybox")).unwrap();
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for applet in ["httpd", "wget", "sh", "ip", "true", "sleep"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    let mut file = fs::File::create(root.join("www/index.html")).unwrap();
    writeln!(file, "{page}").unwrap();
}

/// The network list, as an administrator would write it.
fn write_list(directory: &Path, lab: &Lab, node: &str) {
    fs::create_dir_all(directory).unwrap();
    let list: Value = json!({
        "cniVersion": "1.0.0",
        "name": "weft",
        "plugins": [{
            "type": "weft-cni",
            "socket": socket(lab.dir(), node),
            "capabilities": { "ips": true, "mac": true, "portMappings": true },
        }],
    });
    fs::write(directory.join("10-weft.conflist"), list.to_string()).unwrap();
}

fn has_plugins() -> bool {
    let there = Path::new(PLUGINS).join("loopback").exists();
    if !there {
        skip("WEFT_REQUIRE_INTEROP", "not installed: package containernetworking-plugins");
    }
    there
}

fn two_nodes(name: &str) -> LabConfig {
    LabConfig { nodes: 2, pods_per_node: 0, ..LabConfig::new(name) }
}

/// An id that no other node has, and no other test: all share the machine's cgroups and the directory of runc.
fn container_id(name: &str, node: &str) -> String {
    format!("{name}-{node}-{}", std::process::id())
}

/// containerd's namespace stands before the id.
fn pods_of(lab: &Lab, node: &str, id: &str) -> Vec<PodStatus> {
    let id = format!("default-{}", container_id(id, node));
    let pods = lab.admin(node).unwrap().pods().unwrap();
    pods.into_iter().filter(|pod| pod.container_id == id).collect()
}

fn pods_named(lab: &Lab, name: &str) -> Option<PodStatus> {
    let pods = lab.admin("n1").unwrap().pods().unwrap();
    pods.into_iter().find(|pod| pod.name.as_deref() == Some(name))
}

fn holder(lab: &Lab, address: IpAddr) -> Option<PodStatus> {
    let pods = lab.admin("n1").unwrap().pods().unwrap();
    pods.into_iter().find(|pod| pod.addresses.contains(&address))
}

/// An IPv4 address of the same lease that nobody has: far from those that are handed out first.
fn unused_of(addresses: &[IpAddr]) -> IpAddr {
    let IpAddr::V4(v4) = addresses[0] else { panic!("{addresses:?}") };
    let [a, b, c, _] = v4.octets();
    IpAddr::from([a, b, c, 200])
}

/// What a pod of the lab reads from the web server at `address`.
fn fetch_from(lab: &Lab, pod: &str, address: IpAddr) -> Option<String> {
    fetch_port(lab, pod, address, 80)
}

fn fetch_port(lab: &Lab, place: &str, address: IpAddr, port: u16) -> Option<String> {
    let mut command = Command::new("busybox");
    let url = format!("http://{}/", SocketAddr::new(address, port));
    command.args(["timeout", "3", "wget", "-qO-", &url]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    lab.namespace(place).unwrap().start_inside(&mut command, false).unwrap();
    let output = command.spawn().unwrap().wait_with_output().unwrap();
    output.status.success().then(|| text(&output.stdout).trim().to_owned())
}

fn url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("http://{v4}/"),
        IpAddr::V6(v6) => format!("http://[{v6}]/"),
    }
}

fn is_on_a_command_line(part: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).contains(part))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
