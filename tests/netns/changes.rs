//! What changes under a daemon that runs: the address of its underlay interface, and its configuration.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::place::{leases, pod};
use crate::common::traffic::both_ways;
use crate::common::{TestLab, eventually, may_make_labs};
use cni::link::Netlink;
use ipnetwork::IpNetwork;
use overlay::subnet::MemberState;
use rustix::process::{Pid, Signal, kill_process};
use weft::admin::api::LeasePhase;
use weft::lab::probe::Ping;
use weft::lab::{LabConfig, Namespace};

/// How long nodes may take to find each other, and one another at its new address.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_node_goes_on_under_another_underlay_address() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 3, pods_per_node: 1, ..LabConfig::new("moves") };
    let mut lab = TestLab::up(config);
    let nodes = ["n1", "n2", "n3"];
    lab.wait_for_map(&nodes, LIMIT).unwrap();
    let (old, new) = (lab.state().node("n2").unwrap().underlay, IpAddr::from([192, 168, 77, 99]));
    let lease = leases(&lab, "n2");

    // Its file leaves open which address of the network it has.
    lab.stop("n2").unwrap();
    let daemon = start_with(&lab, "n2", |text| {
        text.replace(&format!("address = \"{old}\""), "address = \"192.168.77.0/24\"")
    });
    lab.wait_for_map(&nodes, LIMIT).unwrap();
    // A map is there a moment before the tables that follow from it.
    let (one, other) = (pod(&lab, "n1-p1"), pod(&lab, "n2-p1"));
    for address in other.addresses.clone() {
        eventually("traffic goes on after the restart", || {
            Ping::new(address).run(&one.namespace).is_ok_and(|report| report.is_ok())
        });
    }
    both_ways(&one, &other, 10_000);

    let namespace = lab.namespace("n2").unwrap();
    let start = Instant::now();
    readdress(&namespace, old, new);
    eventually("the others know it under its new address, and it knows them", || {
        let seen = |node: &str, other: &str, at: Option<IpAddr>| {
            let map = lab.admin(node).unwrap().nodes().unwrap();
            map.iter().any(|it| {
                let is_there = at.is_none_or(|at| it.underlay == at);
                it.name == other && it.state == MemberState::Alive && is_there
            })
        };
        ["n1", "n3"].iter().all(|node| seen(node, "n2", Some(new)) && seen("n2", node, None))
    });
    eprintln!("followed after {:?}", start.elapsed());
    let status = lab.admin("n2").unwrap().status().unwrap();
    assert_eq!(status.underlay, Some(new));
    eventually("it has its lease as before", || leases(&lab, "n2") == lease);
    eventually("nothing is wrong", || {
        nodes.iter().all(|node| lab.admin(node).unwrap().status().unwrap().problems.is_empty())
    });
    for other in ["n1-p1", "n3-p1"] {
        both_ways(&pod(&lab, other), &pod(&lab, "n2-p1"), 10_000);
    }
    let log = fs::read_to_string(lab.dir().join("nodes/n2/changed.log")).unwrap();
    assert!(log.contains("underlay-changed") && log.contains(&format!("before={old}")), "{log}");

    stop(daemon);
    readdress(&namespace, new, old);
    lab.start("n2").unwrap();
    lab.wait_for_map(&nodes, LIMIT).unwrap();
    lab.finish();
}

#[test]
fn a_range_is_added_while_all_daemons_run() {
    if !may_make_labs() {
        return;
    }
    let lease = "ranges = [\"10.244.0.0/23\"]";
    let config = LabConfig {
        nodes: 2,
        pods_per_node: 1,
        ipv6: false,
        lease: Some(lease.to_owned()),
        ..LabConfig::new("grows")
    };
    let mut lab = TestLab::up(config);
    lab.wait_for_map(&["n1", "n2"], LIMIT).unwrap();
    let third = lab.add_idle_node().unwrap();
    lab.launch(&third).unwrap();
    let phase = |lab: &TestLab| lab.admin(&third).unwrap().status().map(|it| it.lease_state).ok();
    eventually("no subnet is left for the third", || phase(&lab) == Some(LeasePhase::Exhausted));

    let before = [leases(&lab, "n1"), leases(&lab, "n2")];
    for node in ["n1", "n2", &third] {
        let wider = "ranges = [\"10.244.0.0/23\", \"10.245.0.0/16\"]\nprefix_len_v4 = 26";
        rewrite(&lab, node, |text| text.replace(lease, wider));
        hang_up(&lab, node);
    }
    eventually("it has one of the new range", || phase(&lab) == Some(LeasePhase::Held));
    let held = leases(&lab, &third);
    let range: IpNetwork = "10.245.0.0/16".parse().unwrap();
    assert!(held.len() == 1 && held[0].prefix() == 26 && range.contains(held[0].ip()), "{held:?}");
    assert_eq!([leases(&lab, "n1"), leases(&lab, "n2")], before, "the others keep theirs");
    let name = lab.add_pod(&third).unwrap();
    lab.wait_for_map(&["n1", "n2", &third], LIMIT).unwrap();
    for other in ["n1-p1", "n2-p1"] {
        both_ways(&pod(&lab, other), &pod(&lab, &name), 10_000);
    }

    // A file with errors changes nothing, and says so.
    rewrite(&lab, &third, |text| text.replace("10.245.0.0/16", "10.245.0.0/99"));
    hang_up(&lab, &third);
    eventually("the file is refused", || {
        fs::read_to_string(lab.log_path(&third)).unwrap().contains("config-refused")
    });
    assert_eq!(leases(&lab, &third), held);
    lab.finish();
}

fn hang_up(lab: &TestLab, node: &str) {
    let daemon = lab.state().node(node).unwrap().daemon.unwrap();
    daemon.signal(Signal::HUP).unwrap();
}

fn rewrite(lab: &TestLab, node: &str, change: impl Fn(String) -> String) {
    let file = lab.dir().join("nodes").join(node).join("weft.toml");
    let text = fs::read_to_string(&file).unwrap();
    let changed = change(text.clone());
    assert_ne!(changed, text);
    fs::write(&file, changed).unwrap();
}

fn readdress(namespace: &Namespace, old: IpAddr, new: IpAddr) {
    let mut netlink = Netlink::open_in(namespace.path()).unwrap();
    let index = netlink.link("eth0").unwrap().index;
    netlink.delete_address(index, IpNetwork::new(old, 24).unwrap()).unwrap();
    netlink.add_address(index, IpNetwork::new(new, 24).unwrap()).unwrap();
}

/// Starts a node's daemon with another file.
fn start_with(lab: &TestLab, node: &str, change: impl Fn(String) -> String) -> Child {
    let dir = lab.dir().join("nodes").join(node);
    let text = fs::read_to_string(dir.join("weft.toml")).unwrap();
    let file = dir.join("changed.toml");
    fs::write(&file, change(text)).unwrap();
    let log = fs::File::create(dir.join("changed.log")).unwrap();
    let mut command = lab.command(node, &lab.dir().join("bin/weftd").to_string_lossy()).unwrap();
    command.arg("--config").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

fn stop(mut daemon: Child) {
    let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
}
