//! Leases of all kinds in a simulated network: sizes, fixed and reserved ones, returns, other configurations.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::time::Duration;

use ipnetwork::IpNetwork;
use overlay::config::LeaseConfig;
use overlay::gossip::sim::Network;
use overlay::gossip::{Event, LeaseState, Release};

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ranges(ranges: &[&str]) -> LeaseConfig {
    let ranges = ranges.iter().map(|range| net(range)).collect();
    LeaseConfig { ranges, ..LeaseConfig::default() }
}

#[track_caller]
fn reach(network: &mut Network, seed: u64, seconds: u64, goal: impl Fn(&Network) -> bool) {
    if network.run_until(secs(seconds), goal) {
        return;
    }
    let nodes = network.running().map(|ix| {
        let state = network.gossip(ix).unwrap().lease_state();
        let map = network.map(ix).unwrap();
        let members = map.members.values().map(|member| {
            let prefixes: Vec<_> = member.prefixes().map(|prefix| prefix.to_string()).collect();
            format!("    {} {} {}", member.name, member.state.name(), prefixes.join(" "))
        });
        let members: Vec<_> = members.collect();
        format!("node {ix} {state:?}\n{}\n    {:?}\n", members.join("\n"), map.conflicts)
    });
    let picture: String = nodes.collect();
    panic!("seed {seed}: not reached within {seconds} s\n{picture}");
}

fn agreed(seed: u64, nodes: usize, lease: LeaseConfig) -> Network {
    let mut network = Network::new(seed);
    network.config.lease = lease;
    for _ in 0..nodes {
        network.add_node();
    }
    reach(&mut network, seed, 20, |network| network.agrees_on(nodes));
    network
}

fn has_event(network: &Network, ix: usize, is: impl Fn(&Event) -> bool) -> bool {
    network.events(ix).iter().any(|(_, event)| is(event))
}

fn assert_disjoint(network: &Network, seed: u64) {
    let held: Vec<_> = network.running().flat_map(|ix| network.held(ix)).collect();
    for (ix, one) in held.iter().enumerate() {
        for other in &held[..ix] {
            let overlap = one.contains(other.network()) || other.contains(one.network());
            assert!(!overlap, "seed {seed}: {one} and {other}");
        }
    }
}

#[test]
fn nodes_of_different_sizes_share_a_range() {
    for seed in 0..40 {
        let mut network = Network::new(seed);
        let lengths = [24, 22, 26, 23, 28, 24];
        for length in lengths {
            network.config.lease = ranges(&["10.244.0.0/18"]);
            network.config.lease.prefix_len_v4 = length;
            network.add_node();
        }
        reach(&mut network, seed, 30, |network| network.agrees_on(6));
        assert_disjoint(&network, seed);
        for (ix, length) in lengths.into_iter().enumerate() {
            assert_eq!(network.held(ix)[0].prefix(), length, "seed {seed}");
        }
    }
}

#[test]
fn a_fixed_subnet_is_had_by_its_node_whoever_chose_it_before() {
    for seed in 0..40 {
        let mut network = agreed(seed, 4, ranges(&["10.244.0.0/21"]));
        let chosen = network.held(2)[0];
        let other = network.held(3)[0];
        network.config.lease.fixed = vec![chosen];
        let fixed = network.add_node();
        reach(&mut network, seed, 20, |network| {
            network.held(fixed) == [chosen] && network.agrees_on(5)
        });
        assert_eq!(network.held(3), [other], "seed {seed}: whom it does not concern stays");
        assert_disjoint(&network, seed);
        let id = network.id(fixed);
        assert!(has_event(&network, 2, |event| matches!(
            event,
            Event::LeaseLost { prefix, winner, held: true } if *prefix == chosen && *winner == id
        )));

        // A second one finds it taken, says so, and has it as soon as it can.
        let second = network.add_node();
        reach(&mut network, seed, 20, |network| {
            let state = network.gossip(second).unwrap().lease_state();
            matches!(state, LeaseState::Blocked { prefix, by, .. } if prefix == chosen && by == id)
        });
        assert_eq!(network.held(fixed), [chosen], "seed {seed}");
        network.leave(fixed);
        reach(&mut network, seed, 20, |network| network.held(second) == [chosen]);
    }
}

#[test]
fn what_one_node_reserves_nobody_chooses() {
    for seed in 0..40 {
        let mut network = Network::new(seed);
        network.config.lease = ranges(&["10.244.0.0/21"]);
        network.config.lease.reserved = vec![net("10.244.0.0/22"), net("10.244.4.0/25")];
        network.add_node();
        network.config.lease.reserved.clear();
        for _ in 0..3 {
            network.add_node();
        }
        // One of the four must wait: only 10.244.5.0 to 10.244.7.0 are left.
        reach(&mut network, seed, 20, |network| {
            network.running().filter(|ix| network.held(*ix).len() == 1).count() == 3
        });
        network.run_for(secs(5));
        for ix in network.running() {
            for held in network.held(ix) {
                assert!(held.network() >= net("10.244.5.0/24").network(), "seed {seed}: {held}");
            }
        }
        // A fixed one may be inside.
        network.config.lease.fixed = vec![net("10.244.1.0/24")];
        let fixed = network.add_node();
        reach(&mut network, seed, 20, |network| network.held(fixed) == [net("10.244.1.0/24")]);
    }
}

/// <https://github.com/flannel-io/flannel/issues/1289>: a node whose lease had run out came back with it while
/// another node had it by then.
#[test]
fn flannel_1289_a_node_that_slept_past_its_lease_uses_it_at_no_moment() {
    for seed in 0..100 {
        let mut network = agreed(seed, 3, ranges(&["10.244.0.0/22"]));
        let subnet = network.held(2);
        network.kill(2);
        network.run_for(secs(12));
        let heirs = [network.add_node(), network.add_node()];
        reach(&mut network, seed, 20, |network| network.agrees_on(4));
        network.faults.loss = if seed % 2 == 0 { 0.0 } else { 0.1 };
        let taken = heirs.iter().any(|heir| network.held(*heir) == subnet);
        assert!(taken, "seed {seed}: nothing else is left");
        network.start(2);
        for _ in 0..1500 {
            assert_ne!(network.held(2), subnet, "seed {seed} at {:?}", network.elapsed());
            network.run_for(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_remembered_lease_is_used_after_five_seconds_when_nobody_can_be_asked() {
    for seed in 0..50 {
        let mut network = agreed(seed, 3, LeaseConfig::default());
        let subnet = network.held(2);
        network.kill(2);
        network.isolate(&[2]);
        network.start(2);
        network.run_for(Duration::from_millis(4900));
        let state = network.gossip(2).unwrap().lease_state();
        assert_eq!(state, LeaseState::Returning { prefixes: subnet.clone() }, "seed {seed}");
        network.run_for(Duration::from_millis(200));
        assert_eq!(network.held(2), subnet, "seed {seed}");

        // With somebody to ask it takes a moment.
        network.heal();
        network.kill(1);
        let subnet = network.held(1);
        network.start(1);
        assert!(network.held(1).is_empty());
        reach(&mut network, seed, 1, |network| network.held(1) != subnet);
    }
}

#[test]
fn the_first_node_alone_need_not_wait() {
    let mut network = Network::new(1);
    network.add_node();
    reach(&mut network, 1, 2, |network| network.held(0).len() == 1);
    network.kill(0);
    network.start(0);
    assert_eq!(network.held(0).len(), 1, "there is nobody to ask");
}

#[test]
fn a_range_grows_while_nodes_run_that_were_not_told_yet() {
    for seed in 0..40 {
        let mut network = agreed(seed, 4, ranges(&["10.244.0.0/22"]));
        // The range is full; the newcomer is told a wider one and a further one.
        let before: Vec<_> = (0..4).map(|ix| network.held(ix)).collect();
        network.config.lease = ranges(&["10.244.0.0/21", "10.9.0.0/16"]);
        let newcomer = network.add_node();
        reach(&mut network, seed, 15, |network| network.agrees_on(5));
        let lease = network.held(newcomer)[0];
        let newcomer_id = network.id(newcomer);
        assert!(!before.contains(&vec![lease]), "seed {seed}");
        for ix in 0..5 {
            let map = network.map(ix).unwrap();
            let holder = map.holder(lease.network()).unwrap();
            assert_eq!(holder.id, newcomer_id, "seed {seed}: routed, though not told of the range");
        }
        // The others are told one after the other; nobody has to move.
        for ix in 0..4 {
            network.configure(ix, network.config.lease.clone());
            network.run_for(secs(1));
            assert!(network.agrees_on(5), "seed {seed}");
        }
        for (ix, held) in before.iter().enumerate() {
            assert_eq!(&network.held(ix), held, "seed {seed}");
        }
    }
}

#[test]
fn a_range_that_shrinks_is_left_by_whoever_holds_something_outside() {
    for seed in 0..40 {
        let mut network = agreed(seed, 3, ranges(&["10.244.0.0/22"]));
        let inside = |lease: &[IpNetwork]| net("10.244.0.0/23").contains(lease[0].network());
        let before: Vec<_> = (0..3).map(|ix| network.held(ix)).collect();
        let smaller = ranges(&["10.244.0.0/23", "10.9.0.0/16"]);
        for ix in 0..3 {
            network.configure(ix, smaller.clone());
        }
        reach(&mut network, seed, 20, |network| network.agrees_on(3));
        for (ix, former) in before.iter().enumerate() {
            let held = network.held(ix);
            assert_eq!(held == *former, inside(former), "seed {seed}: {held:?} and {former:?}");
            let prefix = former[0];
            let released = Event::LeaseReleased { prefix, why: Release::OutsideRanges };
            assert_eq!(has_event(&network, ix, |event| *event == released), !inside(former));
        }
    }
}
