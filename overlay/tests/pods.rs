//! What the gossip promises about pods, in a simulated network with virtual time.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::net::IpAddr;
use std::time::Duration;

use overlay::gossip::sim::{Faults, Network};
use overlay::gossip::{DATAGRAM_MAX, Refused};
use overlay::pods::{LocalPod, Pod};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The seeds to run, `WEFT_SIM_FACTOR` times as many as usual.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let factor = std::env::var("WEFT_SIM_FACTOR")
        .map_or(1, |factor| factor.parse().expect("WEFT_SIM_FACTOR is a number"));
    0..count * factor
}

/// A cluster whose nodes hold their leases.
fn agreed(seed: u64, nodes: usize) -> Network {
    let mut network = Network::new(seed);
    for _ in 0..nodes {
        network.add_node();
    }
    assert!(network.run_until(secs(20), |network| network.agrees_on(nodes)), "seed {seed}");
    network
}

/// The `number`th pod of a node, at an address of its lease.
fn pod(network: &mut Network, ix: usize, number: u8, label_len: usize) -> LocalPod {
    let IpAddr::V4(base) = network.disk(ix).leases[0].prefix.network() else {
        panic!("an IPv4 lease")
    };
    let [a, b, c, _] = base.octets();
    let name = format!("web-{ix}-{number}");
    let labels = [
        ("app.kubernetes.io/name".to_owned(), "web".to_owned()),
        ("pod-template-hash".to_owned(), "x".repeat(label_len.min(63))),
        ("version".to_owned(), "y".repeat(label_len.saturating_sub(63).min(63))),
    ];
    let pod = Pod {
        namespace: "default".to_owned(),
        name,
        uid: Some(format!("8a7c1c1e-0000-4000-8000-{ix:06}{number:06}")),
        addresses: vec![IpAddr::from([a, b, c, number])],
        labels: labels.into(),
        host_network: false,
    };
    LocalPod { pod, age: Duration::ZERO }
}

fn fill(network: &mut Network, ix: usize, numbers: impl IntoIterator<Item = u8>) {
    let pods: Vec<_> = numbers.into_iter().map(|number| pod(network, ix, number, 10)).collect();
    network.set_pods(ix, pods);
}

/// Runs until all nodes know the same pods, which are those that there are.
fn reach(network: &mut Network, seed: u64, seconds: u64) -> Duration {
    let before = network.elapsed();
    if !network.run_until(secs(seconds), Network::agrees_on_pods) {
        let known = network.running().map(|ix| {
            let refused = &network.gossip(ix).unwrap().counters().refused;
            format!(
                "node {ix} knows {} pods, refused {refused:?}\n",
                network.pods(ix).unwrap().len()
            )
        });
        panic!("seed {seed}: not within {seconds} s\n{}", known.collect::<String>());
    }
    network.elapsed() - before
}

fn bytes_per_node_and_s(network: &mut Network, seconds: u64) -> u64 {
    let nodes = network.running().count() as u64;
    let before = network.bytes_sent;
    network.run_for(secs(seconds));
    (network.bytes_sent - before) / seconds / nodes
}

#[test]
fn pods_are_known_everywhere_within_a_second_and_gone_as_soon() {
    for seed in seeds(20) {
        let mut network = agreed(seed, 5);
        fill(&mut network, 3, [2, 3]);
        assert!(reach(&mut network, seed, 5) < secs(1), "seed {seed}");
        let address = pod(&mut network, 3, 2, 10).pod.addresses[0];
        let map = network.pods(0).unwrap();
        assert_eq!(map.by_address(address).unwrap().node, network.id(3));
        assert_eq!(map.by_name("default", "web-3-3").count(), 1);

        // New labels of a pod that stays.
        let mut changed = pod(&mut network, 3, 2, 10);
        changed.pod.labels.insert("tier".to_owned(), "front".to_owned());
        let other = pod(&mut network, 3, 3, 10);
        network.set_pods(3, vec![changed, other]);
        assert!(reach(&mut network, seed, 5) < secs(1), "seed {seed}");

        network.set_pods(3, Vec::new());
        assert!(reach(&mut network, seed, 5) < secs(1), "seed {seed}");
        let learned = &network.gossip(0).unwrap().counters().pods_learned;
        assert_eq!(learned.counts.iter().sum::<u64>(), 2, "{learned:?}");
    }
}

#[test]
fn a_full_node_is_told_in_datagrams_that_fit() {
    for seed in seeds(3) {
        let mut network = agreed(seed, 5);
        for ix in 0..5 {
            let pods = (1..=250).map(|number| pod(&mut network, ix, number, 126)).collect();
            network.set_pods(ix, pods);
        }
        let all_at_once = reach(&mut network, seed, 10);
        let newcomer = network.add_node();
        let before = network.elapsed();
        assert!(network.run_until(secs(20), |network| network.agrees_on(6)));
        reach(&mut network, seed, 20);
        println!(
            "1250 pods after {all_at_once:?}; newcomer after {:?}",
            network.elapsed() - before
        );
        assert_eq!(network.pods(newcomer).unwrap().len(), 1250);
        assert!(network.longest_sent <= DATAGRAM_MAX, "{}", network.longest_sent);
    }
}

#[test]
fn what_did_not_change_costs_the_same_however_much_it_is() {
    let mut network = agreed(1, 8);
    network.run_for(secs(30));
    let empty = bytes_per_node_and_s(&mut network, 20);
    for ix in 0..8 {
        fill(&mut network, ix, 1..=250);
    }
    reach(&mut network, 1, 10);
    network.run_for(secs(30));
    let full = bytes_per_node_and_s(&mut network, 20);
    println!("{empty} B/s without pods, {full} B/s with 2000");
    assert!(full < empty + empty / 10, "{empty} B/s without pods, {full} B/s with 2000");
}

#[test]
fn pods_that_went_while_their_node_was_down_do_not_come_back() {
    for seed in seeds(20) {
        let mut network = agreed(seed, 4);
        network.faults.loss = if seed % 2 == 0 { 0.0 } else { 0.1 };
        for ix in 0..4 {
            fill(&mut network, ix, 2..20);
        }
        reach(&mut network, seed, 10);
        network.kill(2);
        // Quick: the others have not noticed. Slow: it was dead for them.
        network.run_for(if seed % 3 == 0 { secs(12) } else { Duration::from_millis(300) });
        fill(&mut network, 2, [2, 50]);
        network.start(2);
        reach(&mut network, seed, 15);
        network.run_for(secs(5));
        assert!(network.agrees_on_pods(), "seed {seed}");
    }
}

#[test]
fn pods_that_changed_on_both_sides_of_a_partition_are_the_same_afterwards() {
    for seed in seeds(30) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut network = agreed(seed, 5);
        network.faults = Faults { loss: 0.05, duplication: 0.05, ..Faults::default() };
        for ix in 0..5 {
            fill(&mut network, ix, 2..10);
        }
        reach(&mut network, seed, 10);
        network.isolate(&[3, 4]);
        // Long enough for more ends of pods than there are tombstones, every second time.
        for _ in 0..if seed % 2 == 0 { 40 } else { 400 } {
            let (ix, from) = (random.random_range(0..5), random.random_range(2..200));
            let to = from + random.random_range(0..8);
            fill(&mut network, ix, from..to);
            network.run_for(Duration::from_millis(100));
        }
        if seed % 5 == 0 {
            network.kill(4);
            network.start(4);
        }
        network.heal();
        reach(&mut network, seed, 30);
        network.run_for(secs(10));
        assert!(network.agrees_on_pods(), "seed {seed}");
    }
}

#[test]
fn a_node_with_an_old_disk_says_the_last_word_about_its_own_pods() {
    for seed in seeds(20) {
        let mut network = agreed(seed, 3);
        let snapshot = network.disk(1).clone();
        for number in 2..20 {
            fill(&mut network, 1, [number, number + 1]);
            network.run_for(Duration::from_millis(50));
        }
        reach(&mut network, seed, 5);
        network.kill(1);
        *network.disk(1) = snapshot;
        fill(&mut network, 1, [100]);
        network.start(1);
        reach(&mut network, seed, 15);
        // And once more, with a disk that is empty.
        network.kill(1);
        fill(&mut network, 1, [101]);
        network.wipe_disk(1);
        network.start(1);
        reach(&mut network, seed, 15);
    }
}

#[test]
fn pods_at_addresses_of_another_node_are_kept_out() {
    let mut network = agreed(7, 3);
    fill(&mut network, 0, [2]);
    fill(&mut network, 1, [2]);
    reach(&mut network, 7, 5);
    let thief = pod(&mut network, 1, 2, 10).pod;
    let host = LocalPod {
        pod: Pod {
            name: "proxy".to_owned(),
            addresses: vec![network.address(0).ip()],
            host_network: true,
            ..thief.clone()
        },
        age: secs(3),
    };
    let thief = LocalPod { pod: Pod { name: "thief".to_owned(), ..thief }, age: secs(3) };
    network.set_pods(0, vec![thief.clone(), host]);
    network.run_for(secs(3));
    for ix in 0..3 {
        let map = network.pods(ix).unwrap();
        assert_eq!(map.by_address(thief.pod.addresses[0]).unwrap().node, network.id(1));
        assert_eq!(map.by_name("default", "thief").count(), 0);
        assert_eq!(map.by_name("default", "proxy").count(), 1);
        assert_eq!((map.len(), map.kept_out), (2, 1));
    }
}

#[test]
fn damaged_datagrams_do_no_harm_to_pods() {
    for seed in seeds(10) {
        let mut network = agreed(seed, 4);
        network.faults = Faults { corruption: 0.2, duplication: 0.2, ..Faults::default() };
        for round in 0..20 {
            fill(&mut network, round % 4, 2..u8::try_from(round + 3).unwrap());
            network.run_for(Duration::from_millis(200));
        }
        network.faults = Faults::default();
        reach(&mut network, seed, 20);
    }
}

#[test]
fn too_many_pods_are_refused_and_counted_and_nothing_else_suffers() {
    let mut network = Network::new(3);
    network.config.pods_max = 10;
    for _ in 0..3 {
        network.add_node();
    }
    assert!(network.run_until(secs(20), |network| network.agrees_on(3)));
    fill(&mut network, 0, 2..8);
    reach(&mut network, 3, 5);
    fill(&mut network, 1, 2..20);
    network.run_for(secs(10));
    let counters = network.gossip(2).unwrap().counters();
    assert!(counters.refused(Refused::TooManyPods) > 0);
    assert_eq!(network.pods(2).unwrap().of_node(network.id(0)).count(), 6);
    assert!(network.agrees_on(3));
    fill(&mut network, 1, [2]);
    reach(&mut network, 3, 15);
}
