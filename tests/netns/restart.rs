//! Daemons come and go, in order and not in order: pods keep what they have, a node returns as itself, and
//! nothing is guessed at or left behind.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::place::{leases, node, pod};
use crate::common::traffic::End;
use crate::common::{TestLab, eventually, find, may_make_labs, run};
use cni::link::{Netlink, Route};
use ipnetwork::IpNetwork;
use overlay::subnet::MemberState;
use weft::admin::api::PoolStatus;
use weft::lab::probe::Ping;
use weft::lab::{Lab, LabConfig, Namespace};

/// How long pods may be without network after the start of a daemon: a second is promised, and another one
/// is for machines that are busy with other tests.
const OUTAGE_MAX: Duration = Duration::from_secs(2);

/// How long other nodes may count a node that says goodbye.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// How long other nodes may count a node that is gone without a word.
const LOSS_MAX: Duration = Duration::from_secs(10);

/// How long a repair may take.
const REPAIR_MAX: Duration = Duration::from_secs(5);

/// How long an answer over an open connection may take: TCP waits longer from one retry to the next.
const TCP_SILENCE_MAX: Duration = Duration::from_secs(10);

/// The node's own interface.
const HOST_INTERFACE: &str = "weft0";

#[test]
fn pods_outlive_a_killed_daemon() {
    if !may_make_labs() {
        return;
    }
    let mut lab = TestLab::up(LabConfig { nodes: 2, ..LabConfig::new("killed") });
    let (here, beside, far) = (pod(&lab, "n1-p1"), pod(&lab, "n1-p2"), pod(&lab, "n2-p1"));
    let (devices, lease) = (devices(&[&here, &beside]), leases(&lab, "n1"));
    let mut connections = Vec::new();
    for other in [&beside, &far] {
        connections
            .extend(other.addresses.iter().map(|address| Connection::open(&here, other, *address)));
    }
    connections.iter_mut().for_each(Connection::exchange);

    lab.kill("n1").unwrap();
    assert_eq!(self::devices(&[&here, &beside]), devices);
    connections.iter_mut().for_each(|connection| connection.near.write_all(&MESSAGE).unwrap());
    // As pods do that need each other: the kernel asks for the gateway, and nobody answers.
    for address in beside.addresses.iter().chain(&far.addresses) {
        assert!(!is_answered(&here, *address), "the data path has not gone");
    }

    let start = Instant::now();
    lab.launch("n1").unwrap();
    std::thread::scope(|scope| {
        for other in [&beside, &far] {
            for address in &other.addresses {
                let here = &here;
                scope.spawn(move || {
                    let outage = time_until(OUTAGE_MAX, start, || is_answered(here, *address));
                    eprintln!("from {} to {address}: answered after {outage:?}", here.name);
                });
            }
        }
    });
    for connection in &mut connections {
        connection.expect_at_far_end();
        connection.exchange();
    }
    lab.wait_until_ready("n1").unwrap();
    assert_eq!(self::devices(&[&here, &beside]), devices);
    assert_eq!(leases(&lab, "n1"), lease);
    for name in ["n1-p1", "n1-p2"] {
        lab.check_pod(name).unwrap();
    }
    lab.finish();
}

#[test]
fn a_node_that_leaves_or_dies_returns_as_itself() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 3, pods_per_node: 1, ..LabConfig::new("return") };
    let mut lab = TestLab::up(config);
    lab.wait_for_map(&["n1", "n2", "n3"], LOSS_MAX).unwrap();
    let pods = ["n1-p1", "n2-p1", "n3-p1"].map(|name| pod(&lab, name));

    let (leaving, lease) = (&pods[0], leases(&lab, "n1"));
    let devices = devices(&[leaving]);
    let start = Instant::now();
    lab.stop("n1").unwrap();
    let left = |node| state_seen(&lab, node, "n1") == Some(MemberState::Left);
    let elapsed = time_until(LEAVE_MAX, start, || ["n2", "n3"].into_iter().all(left));
    eprintln!("n1 has left for all after {elapsed:?}");
    assert_eq!(self::devices(&[leaving]), devices);
    reach_each_other(&pods[1..]);
    assert!(!is_answered(&pods[1], leaving.addresses[0]));
    lab.start("n1").unwrap();
    assert_eq!((leases(&lab, "n1"), self::devices(&[leaving])), (lease, devices));
    lab.wait_for_map(&["n1", "n2", "n3"], LOSS_MAX).unwrap();
    reach_each_other(&pods);

    let lease = leases(&lab, "n3");
    let start = Instant::now();
    lab.kill("n3").unwrap();
    lab.cut("n3").unwrap();
    lab.wait_for_map(&["n1", "n2"], LOSS_MAX).unwrap();
    eprintln!("n3 is dead for all after {:?}", start.elapsed());
    assert!(start.elapsed() < LOSS_MAX);
    for node in ["n1", "n2"] {
        assert_eq!(state_seen(&lab, node, "n3"), Some(MemberState::Dead));
    }
    lab.heal("n3").unwrap();
    lab.start("n3").unwrap();
    assert_eq!(leases(&lab, "n3"), lease);
    lab.wait_for_map(&["n1", "n2", "n3"], LOSS_MAX).unwrap();
    reach_each_other(&pods);
    lab.finish();
}

#[test]
fn a_reboot_gives_the_addresses_of_its_pods_back() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 1, pods_per_node: 0, ..LabConfig::new("reboot") };
    let mut lab = TestLab::up(config);
    let unused = pools(&lab);
    let pods = [lab.add_pod("n1").unwrap(), lab.add_pod("n1").unwrap()];
    assert_ne!(pools(&lab), unused);

    lab.stop("n1").unwrap();
    for pod in &pods {
        lab.namespace(pod).unwrap().remove().unwrap();
    }
    lab.start("n1").unwrap();
    assert_eq!(lab.admin("n1").unwrap().pods().unwrap(), []);
    assert_eq!(pools(&lab), unused);
    let pods = [lab.add_pod("n1").unwrap(), lab.add_pod("n1").unwrap()];
    reach_each_other(&pods.map(|name| pod(&lab, &name)));
    lab.finish();
}

#[test]
fn a_damaged_state_file_and_a_second_daemon_are_refused() {
    if !may_make_labs() {
        return;
    }
    let mut lab = TestLab::up(LabConfig { nodes: 1, ..LabConfig::new("refused") });
    let pods = ["n1-p1", "n1-p2"].map(|name| pod(&lab, name));
    let (lease, state) = (leases(&lab, "n1"), state_dir(&lab, "n1"));

    let second = weft(&lab, "weftd", &[]);
    let said = error_of(&second);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("in use by another process: a second weftd"), "{said}");
    assert!(said.contains(&*state.to_string_lossy()), "{said}");
    reach_each_other(&pods);
    assert!(lab.admin("n1").unwrap().status().unwrap().ready, "the first one goes on");

    lab.stop("n1").unwrap();
    for name in ["pods.json", "gossip.json", "node-id"] {
        let path = state.join(name);
        let whole = fs::read(&path).unwrap();
        let half = &whole[..whole.len() / 2];
        fs::write(&path, half).unwrap();
        let refused = weft(&lab, "weftd", &[]);
        let said = error_of(&refused);
        assert_eq!(refused.status.code(), Some(2), "{name}: {said}");
        assert!(said.contains(&*path.to_string_lossy()), "{name}: {said}");
        assert!(said.to_lowercase().contains("restore it from a backup"), "{name}: {said}");
        assert_eq!(fs::read(&path).unwrap(), half, "{name} is evidence");
        fs::write(&path, whole).unwrap();
    }
    lab.start("n1").unwrap();
    assert_eq!(leases(&lab, "n1"), lease);
    reach_each_other(&pods);
    lab.finish();
}

#[test]
fn a_node_without_its_seeds_serves_its_pods_and_is_joined_later() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 0, ..LabConfig::new("seeds") };
    let mut lab = TestLab::up(config);
    let (alone, seed) = (lab.add_idle_node().unwrap(), lab.add_idle_node().unwrap());
    lab.cut(&seed).unwrap();
    lab.start(&alone).unwrap();
    let file = fs::read_to_string(config_file(&lab, &alone)).unwrap();
    let address = lab.state().node(&seed).unwrap().underlay;
    assert!(file.contains(&format!("seeds = [\"{address}\"]")), "{file}");
    let mut pods = Vec::new();
    for _ in 0..2 {
        let name = lab.add_pod(&alone).unwrap();
        pods.push(pod(&lab, &name));
    }
    reach_each_other(&pods);
    let lease = leases(&lab, &alone);

    // The same after a start with no answer from anywhere.
    lab.kill(&alone).unwrap();
    let start = Instant::now();
    lab.launch(&alone).unwrap();
    let outage = time_until(OUTAGE_MAX, start, || is_answered(&pods[0], pods[1].addresses[0]));
    eprintln!("without seeds: answered after {outage:?}");
    lab.wait_until_ready(&alone).unwrap();

    lab.heal(&seed).unwrap();
    lab.start(&seed).unwrap();
    lab.wait_for_map(&[&alone, &seed], Duration::from_secs(20)).unwrap();
    assert_eq!(leases(&lab, &alone), lease);
    let name = lab.add_pod(&seed).unwrap();
    pods.push(pod(&lab, &name));
    reach_each_other(&pods);
    lab.finish();
}

#[test]
fn an_uninstalled_node_is_as_it_was() {
    if !may_make_labs() {
        return;
    }
    let mut lab = TestLab::up(LabConfig { nodes: 0, ..LabConfig::new("removed") });
    let name = lab.add_idle_node().unwrap();
    let namespace = lab.namespace(&name).unwrap();
    let before = Listing::of(&namespace);
    lab.start(&name).unwrap();
    let pod = lab.add_pod(&name).unwrap();
    let pod = self::pod(&lab, &pod);
    let installed = Listing::of(&namespace);
    assert_ne!(installed.links, before.links);
    assert_ne!(installed.routes, before.routes);
    assert_eq!(installed.nft == before.nft, installed.nft.is_none());

    let refused = weft(&lab, "weft", &["uninstall", "--files"]);
    let said = error_of(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("in use by another process"), "{said}");
    assert_eq!(Listing::of(&namespace), installed);
    let underlay = node(&lab, &name).addresses[0];
    eventually("the pod still reaches its node", || is_answered(&pod, underlay));
    lab.assert_conserved();

    lab.stop(&name).unwrap();
    let removed = weft(&lab, "weft", &["uninstall", "--files"]);
    assert!(removed.status.success(), "{}", error_of(&removed));
    assert_eq!(Listing::of(&namespace), before);
    assert!(!state_dir(&lab, &name).exists());
    let devices = Netlink::open_in(pod.namespace.path()).unwrap().links().unwrap();
    assert!(devices.iter().all(|link| link.name == "lo"), "{devices:?}");
    lab.finish();
}

#[test]
fn a_deleted_host_interface_is_made_again() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 1, pods_per_node: 1, ..LabConfig::new("repair") };
    let lab = TestLab::up(config);
    let (here, pod) = (node(&lab, "n1"), pod(&lab, "n1-p1"));
    let reaches = || pod.addresses.iter().all(|address| is_answered(&here, *address));
    eventually("the node reaches its pod", reaches);

    let mut netlink = Netlink::open_in(here.namespace.path()).unwrap();
    let index = netlink.link(HOST_INTERFACE).unwrap().index;
    let start = Instant::now();
    netlink.delete_link(index).unwrap();
    let elapsed = time_until(REPAIR_MAX, start, reaches);
    eprintln!("{HOST_INTERFACE} is back after {elapsed:?}");
    assert_ne!(netlink.link(HOST_INTERFACE).unwrap().index, index);
    eventually("nothing is amiss any more", || {
        lab.admin("n1").unwrap().status().unwrap().problems.is_empty() || find("nft").is_none()
    });
    lab.finish();
}

const MESSAGE: [u8; 1000] = [7; 1000];

/// A TCP connection, of which this process holds both ends.
struct Connection {
    near: TcpStream,
    far: TcpStream,
}

impl Connection {
    #[track_caller]
    fn open(source: &End, target: &End, address: IpAddr) -> Self {
        let listener = target.namespace.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
        let server = listener.local_addr().unwrap();
        let near = source.namespace.run(|| TcpStream::connect(server)).unwrap().unwrap();
        let (far, _) = listener.accept().unwrap();
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(TCP_SILENCE_MAX)).unwrap();
        }
        Self { near, far }
    }

    /// A message each way.
    #[track_caller]
    fn exchange(&mut self) {
        self.near.write_all(&MESSAGE).unwrap();
        self.expect_at_far_end();
        self.far.write_all(&MESSAGE).unwrap();
        let mut received = [0; MESSAGE.len()];
        self.near.read_exact(&mut received).unwrap();
        assert_eq!(received, MESSAGE);
    }

    #[track_caller]
    fn expect_at_far_end(&mut self) {
        let mut received = [0; MESSAGE.len()];
        self.far.read_exact(&mut received).unwrap();
        assert_eq!(received, MESSAGE);
    }
}

/// What a namespace has in the way of network.
#[derive(Debug, PartialEq)]
struct Listing {
    links: Vec<(u32, String, u32, bool)>,
    addresses: Vec<(u32, IpNetwork)>,
    routes: Vec<Route>,
    /// Absent when there is no `nft`.
    nft: Option<String>,
}

impl Listing {
    #[track_caller]
    fn of(namespace: &Namespace) -> Self {
        let mut netlink = Netlink::open_in(namespace.path()).unwrap();
        let links = netlink.links().unwrap().into_iter();
        let addresses = netlink.addresses(None).unwrap().into_iter();
        Self {
            links: links.map(|link| (link.index, link.name, link.mtu, link.is_up)).collect(),
            addresses: addresses.map(|held| (held.index, held.address)).collect(),
            routes: netlink.routes().unwrap(),
            nft: find("nft").map(|_| run(namespace, "nft list ruleset")),
        }
    }
}

/// The pods' devices with their numbers and addresses, which change if they are made anew.
#[track_caller]
fn devices(pods: &[&End]) -> Vec<(u32, Option<[u8; 6]>, Vec<IpAddr>)> {
    let device = |pod: &&End| {
        let mut netlink = Netlink::open_in(pod.namespace.path()).unwrap();
        let link = netlink.link("eth0").unwrap();
        let held = netlink.addresses(Some(link.index)).unwrap();
        let held: Vec<_> = held.into_iter().map(|held| held.address.ip()).collect();
        assert!(pod.addresses.iter().all(|address| held.contains(address)), "{held:?}");
        (link.index, link.mac, held)
    };
    pods.iter().map(device).collect()
}

#[track_caller]
fn pools(lab: &Lab) -> Vec<PoolStatus> {
    lab.admin("n1").unwrap().status().unwrap().addresses
}

/// How `node` sees `other`.
fn state_seen(lab: &Lab, node: &str, other: &str) -> Option<MemberState> {
    let seen = lab.admin(node).unwrap().nodes().unwrap();
    seen.iter().find(|seen| seen.name == other).map(|seen| seen.state)
}

/// Every one reaches every other, over all its addresses, within the time that a change needs to spread.
#[track_caller]
fn reach_each_other(pods: &[End]) {
    for one in pods {
        for other in pods.iter().filter(|other| other.name != one.name) {
            for address in &other.addresses {
                eventually(&format!("{} reaches {address}", one.name), || {
                    is_answered(one, *address)
                });
            }
        }
    }
}

/// Whether one of a few requests in quick succession is answered.
fn is_answered(source: &End, target: IpAddr) -> bool {
    let wait = Duration::from_millis(10);
    let ping = Ping { count: 3, interval: wait, patience: wait, ..Ping::new(target) };
    ping.run(&source.namespace).unwrap().received > 0
}

/// How long after `start` it `holds`, which is less than `limit`.
#[track_caller]
fn time_until(limit: Duration, start: Instant, mut holds: impl FnMut() -> bool) -> Duration {
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}");
        std::thread::yield_now();
    }
    let elapsed = start.elapsed();
    assert!(elapsed < limit, "only after {elapsed:?}, which is more than {limit:?}");
    elapsed
}

/// Runs the program under that name in the first node, with its configuration file, until it ends by itself.
#[track_caller]
fn weft(lab: &Lab, name: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(lab.dir().join("bin").join(name));
    command.args(arguments).arg("--config").arg(config_file(lab, "n1"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    lab.namespace("n1").unwrap().start_inside(&mut command, false).unwrap();
    let mut child = command.spawn().unwrap();
    eventually(&format!("{name} ends"), || child.try_wait().unwrap().is_some());
    child.wait_with_output().unwrap()
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn node_dir(lab: &Lab, node: &str) -> PathBuf {
    lab.dir().join("nodes").join(node)
}

fn config_file(lab: &Lab, node: &str) -> PathBuf {
    node_dir(lab, node).join("weft.toml")
}

fn state_dir(lab: &Lab, node: &str) -> PathBuf {
    node_dir(lab, node).join("state")
}
