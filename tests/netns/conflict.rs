//! Two machines that were given one address on a real link, where only one of them gets what is sent to it; and
//! two with one identity.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::common::place::pod;
use crate::common::traffic::both_ways;
use crate::common::{TestLab, eventually, may_make_labs};
use cni::link::Netlink;
use ipnetwork::IpNetwork;
use weft::admin::api::{LeasePhase, ProblemTopic};
use weft::lab::{LabConfig, Namespace};

const SEED: &str = "n1";
const FIRST: &str = "n2";

#[test]
fn two_nodes_with_one_underlay_address_do_not_go_unnoticed() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 2, pods_per_node: 0, ..LabConfig::new("twins") };
    let mut lab = TestLab::up(config);
    lab.wait_for_map(&[SEED, FIRST], Duration::from_secs(20)).unwrap();
    let second = lab.add_idle_node().unwrap();
    // Its file and its identity.
    lab.start(&second).unwrap();
    lab.stop(&second).unwrap();

    let (own, taken) =
        (lab.state().node(&second).unwrap().underlay, lab.state().node(FIRST).unwrap().underlay);
    let namespace = lab.namespace(&second).unwrap();
    readdress(&namespace, own, taken);
    let twin = start_with_address(&lab, &second, own, taken);
    // Whichever the network sends the answers to: the other one hears nobody. If it changes its mind, all hear
    // of both and name the two.
    eventually("one of the two notices", || {
        [FIRST, &second].iter().any(|node| is_amiss(&lab, node).unwrap_or(false))
    });

    stop(twin);
    readdress(&namespace, taken, own);
    lab.start(&second).unwrap();
    for node in [SEED, FIRST, second.as_str()] {
        let what = format!("{node} sees that it is solved");
        eventually(&what, || is_amiss(&lab, node) == Some(false));
    }
    lab.wait_for_map(&[SEED, FIRST, &second], Duration::from_secs(20)).unwrap();
    lab.finish();
}

#[test]
fn pods_of_a_node_that_stands_down_for_its_twin_are_cut_off_until_it_has_an_id_of_its_own() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 3, pods_per_node: 1, ..LabConfig::new("clones") };
    let mut lab = TestLab::up(config);
    let (first, clone) = ("n2", "n3");
    lab.wait_for_map(&[SEED, first, clone], Duration::from_secs(20)).unwrap();
    lab.stop(clone).unwrap();
    let id = |node: &str| lab.dir().join("nodes").join(node).join("state/node-id");
    let (theirs, own) = (id(first), id(clone));
    fs::copy(&theirs, &own).unwrap();
    lab.launch(clone).unwrap();
    eventually("the one with the higher address stands down, and its pod is cut off", || {
        lab.admin(clone).unwrap().status().is_ok_and(|status| {
            let mut texts = status.problems.iter().map(|problem| problem.text.as_str());
            status.lease_state == LeasePhase::Suspended
                && texts.any(|text| text.contains("lab/n3-p1") && text.contains("is cut off"))
        })
    });
    eventually("the other one names it, too, and goes on", || {
        is_amiss(&lab, first) == Some(true)
            && lab.admin(first).unwrap().status().unwrap().lease_state == LeasePhase::Held
    });
    both_ways(&pod(&lab, "n1-p1"), &pod(&lab, "n2-p1"), 10_000);

    lab.stop(clone).unwrap();
    fs::remove_file(&own).unwrap();
    lab.start(clone).unwrap();
    lab.wait_for_map(&[SEED, first, clone], Duration::from_secs(20)).unwrap();
    eventually("its pod is cut off no more", || {
        let status = lab.admin(clone).unwrap().status().unwrap();
        !status.problems.iter().any(|problem| problem.topic == ProblemTopic::Pod)
    });
    both_ways(&pod(&lab, "n1-p1"), &pod(&lab, "n3-p1"), 10_000);
    lab.finish();
}

/// Whether the node has trouble with other nodes; `None` when it does not answer.
fn is_amiss(lab: &TestLab, node: &str) -> Option<bool> {
    let problems = lab.admin(node).unwrap().status().ok()?.problems;
    let mut topics = problems.iter().map(|problem| &problem.topic);
    Some(topics.any(|topic| matches!(topic, ProblemTopic::Conflict | ProblemTopic::Gossip)))
}

/// Also makes it forget its neighbors.
fn readdress(namespace: &Namespace, old: IpAddr, new: IpAddr) {
    let mut netlink = Netlink::open_in(namespace.path()).unwrap();
    let index = netlink.link("eth0").unwrap().index;
    netlink.delete_address(index, IpNetwork::new(old, 24).unwrap()).unwrap();
    netlink.set_down(index).unwrap();
    netlink.add_address(index, IpNetwork::new(new, 24).unwrap()).unwrap();
    netlink.set_up(index).unwrap();
}

fn start_with_address(lab: &TestLab, node: &str, own: IpAddr, other: IpAddr) -> Child {
    let dir = lab.dir().join("nodes").join(node);
    let text = fs::read_to_string(dir.join("weft.toml")).unwrap();
    let text = text.replace(&format!("address = \"{own}\""), &format!("address = \"{other}\""));
    let file = dir.join("twin.toml");
    fs::write(&file, text).unwrap();
    let log = fs::File::create(dir.join("twin.log")).unwrap();
    let mut command = lab.command(node, &lab.dir().join("bin/weftd").to_string_lossy()).unwrap();
    command.arg("--config").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

fn stop(mut daemon: Child) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
}
