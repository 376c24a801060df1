//! Every node knows the pods of every node by name: while they come and go, while daemons are restarted, and
//! after the network was in two parts.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::common::place::pod;
use crate::common::traffic::{End, both_ways};
use crate::common::{TestLab, eventually, may_make_labs};
use weft::admin::api::MapPod;
use weft::lab::LabConfig;

/// How long it may take until a pod is known everywhere, or gone.
const KNOWN_MAX: Duration = Duration::from_secs(2);

/// How long the two parts of a network may take to lose each other, and to find together again.
const LOSS_MAX: Duration = Duration::from_secs(15);
const HEAL_MAX: Duration = Duration::from_secs(30);

#[test]
fn pods_are_known_by_name_on_every_node() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 3, pods_per_node: 1, ..LabConfig::new("names") };
    let mut lab = TestLab::up(config);
    let nodes = ["n1", "n2", "n3"];
    lab.wait_for_map(&nodes, LOSS_MAX).unwrap();
    eventually("the first pods are known everywhere", || knows(&lab, &nodes));

    let start = Instant::now();
    let added = lab.add_pod("n1").unwrap();
    within(KNOWN_MAX, start, "the new pod is known everywhere", || knows(&lab, &nodes));
    let seen = find(&lab, "n3", &added).unwrap();
    assert_eq!((seen.namespace.as_deref(), seen.node.as_deref()), (Some("lab"), Some("n1")));
    assert_eq!(seen.addresses, pod(&lab, &added).addresses);
    assert_eq!(seen.labels["lab/pod"], added);
    assert!(seen.age_s < 10, "{seen:?}");

    // Killed and started again: nobody is told anything but by the state on its disk.
    lab.kill("n1").unwrap();
    lab.start("n1").unwrap();
    eventually("all pods are known again", || knows(&lab, &nodes));
    assert!(find(&lab, "n3", &added).is_some());

    // One that goes while others do not hear of it.
    lab.cut("n1").unwrap();
    lab.remove_pod(&added).unwrap();
    lab.heal("n1").unwrap();
    lab.wait_for_map(&nodes, HEAL_MAX).unwrap();
    eventually("the pod that went is gone everywhere", || knows(&lab, &nodes));

    let start = Instant::now();
    lab.remove_pod("n1-p1").unwrap();
    within(KNOWN_MAX, start, "the other one is, too", || knows(&lab, &nodes));
    assert!(find(&lab, "n2", "n1-p1").is_none());

    lab.stop("n3").unwrap();
    eventually("a node that left takes its pods along", || find(&lab, "n2", "n3-p1").is_none());
    lab.finish();
}

#[test]
fn a_network_in_two_parts_becomes_one_with_all_pods() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 5, pods_per_node: 1, ..LabConfig::new("parts") };
    let mut lab = TestLab::up(config);
    let nodes = ["n1", "n2", "n3", "n4", "n5"];
    let (large, small) = nodes.split_at(3);
    lab.wait_for_map(&nodes, LOSS_MAX).unwrap();
    eventually("the first pods are known everywhere", || knows(&lab, &nodes));

    lab.divide(small).unwrap();
    lab.wait_for_map(large, LOSS_MAX).unwrap();
    lab.wait_for_map(small, LOSS_MAX).unwrap();
    for node in ["n1", "n3", "n4", "n5"] {
        lab.add_pod(node).unwrap();
    }
    lab.remove_pod("n2-p1").unwrap();
    lab.remove_pod("n5-p1").unwrap();
    eventually("each part knows its own", || knows(&lab, large) && knows(&lab, small));
    both_ways(&pod(&lab, "n1-p2"), &pod(&lab, "n3-p2"), 10_000);
    both_ways(&pod(&lab, "n4-p2"), &pod(&lab, "n5-p2"), 10_000);

    let start = Instant::now();
    lab.unite().unwrap();
    lab.wait_for_map(&nodes, HEAL_MAX).unwrap();
    eventually("all pods are known everywhere", || knows(&lab, &nodes));
    eprintln!("one again after {:?}", start.elapsed());
    let first = listed(&lab, "n1");
    for node in &nodes[1..] {
        assert_eq!(listed(&lab, node), first, "{node}");
    }
    let pods: Vec<End> = lab.state().pods().map(|(_, found)| pod(&lab, &found.name)).collect();
    for (ix, one) in pods.iter().enumerate() {
        for other in &pods[..ix] {
            both_ways(one, other, 10_000);
        }
    }
    lab.finish();
}

/// Whether all these nodes know exactly the pods of all of them.
fn knows(lab: &TestLab, nodes: &[&str]) -> bool {
    let of_nodes = lab.state().pods().filter(|(node, _)| nodes.contains(&node.name.as_str()));
    let real: BTreeSet<(String, String, Vec<IpAddr>)> = of_nodes
        .map(|(node, pod)| (pod.name.clone(), node.name.clone(), pod.addresses.clone()))
        .collect();
    nodes.iter().all(|node| listed(lab, node) == real)
}

/// What a node lists: name, node and addresses of every pod.
fn listed(lab: &TestLab, node: &str) -> BTreeSet<(String, String, Vec<IpAddr>)> {
    let pods = lab.admin(node).unwrap().map_pods().unwrap_or_default();
    pods.into_iter().map(|pod| (pod.name, pod.node.unwrap_or_default(), pod.addresses)).collect()
}

fn find(lab: &TestLab, node: &str, name: &str) -> Option<MapPod> {
    let pods = lab.admin(node).unwrap().map_pods().unwrap();
    pods.into_iter().find(|pod| pod.name == name)
}

#[track_caller]
fn within(limit: Duration, start: Instant, what: &str, holds: impl FnMut() -> bool) {
    eventually(what, holds);
    let elapsed = start.elapsed();
    eprintln!("{what} after {elapsed:?}");
    assert!(elapsed < limit, "{what} only after {elapsed:?}");
}
