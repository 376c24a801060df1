//! What the gossip promises, in a simulated network with virtual time.
//!
//! Every scenario runs with many seeds; a failing one is named in the message, and replays exactly.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::net::SocketAddr;
use std::time::Duration;

use overlay::config::LeaseConfig;
use overlay::gossip::sim::{Faults, Network};
use overlay::gossip::{Event, GossipConfig, LeaseState, Refused, RememberedLease};
use overlay::subnet::{Conflict, MemberState};

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The seeds to run, `WEFT_SIM_FACTOR` times as many as usual.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let factor = std::env::var("WEFT_SIM_FACTOR")
        .map_or(1, |factor| factor.parse().expect("WEFT_SIM_FACTOR is a number"));
    0..count * factor
}

fn cluster(seed: u64, nodes: usize) -> Network {
    let mut network = Network::new(seed);
    for _ in 0..nodes {
        network.add_node();
    }
    network
}

/// A cluster whose nodes agree already.
fn agreed(seed: u64, nodes: usize) -> Network {
    let mut network = cluster(seed, nodes);
    reach(&mut network, seed, 15, |network| network.agrees_on(nodes));
    network
}

/// Runs until `goal`, and fails with the seed and a picture of all nodes if that takes too long.
fn reach(
    network: &mut Network,
    seed: u64,
    seconds: u64,
    goal: impl Fn(&Network) -> bool,
) -> Duration {
    let before = network.elapsed();
    if !network.run_until(secs(seconds), goal) {
        panic!("seed {seed}: not reached within {seconds} s\n{}", picture(network));
    }
    network.elapsed() - before
}

fn picture(network: &Network) -> String {
    let nodes = network.running().map(|ix| {
        let map = network.map(ix).unwrap();
        let state = network.gossip(ix).unwrap().lease_state();
        let members = map.members.values().map(|m| {
            let routes: Vec<_> = m.routes().map(|prefix| prefix.to_string()).collect();
            format!("{} {} v{} {}", m.name, m.state.name(), m.version, routes.join(" "))
        });
        let members: Vec<_> = members.collect();
        let events: Vec<_> =
            network.events(ix).iter().rev().take(12).map(|event| format!("{event:?}")).collect();
        format!(
            "node {ix} {} {state:?}\n  {}\n  {:?}\n  {}\n",
            network.id(ix),
            members.join("\n  "),
            map.conflicts,
            events.join("\n  ")
        )
    });
    nodes.collect()
}

fn sees(network: &Network, ix: usize, other: usize) -> Option<MemberState> {
    network.map(ix)?.members.get(&network.id(other)).map(|member| member.state)
}

fn is_gone(network: &Network, other: usize) -> bool {
    network.running().filter(|ix| *ix != other).all(|ix| {
        sees(network, ix, other).is_some_and(|state| !state.is_active())
            && network.map(ix).unwrap().members[&network.id(other)].routes().next().is_none()
    })
}

fn has_event(network: &Network, ix: usize, is: impl Fn(&Event) -> bool) -> bool {
    network.events(ix).iter().any(|(_, event)| is(event))
}

#[test]
fn three_nodes_agree() {
    let mut longest = Duration::ZERO;
    for seed in seeds(200) {
        let mut network = cluster(seed, 3);
        let time = reach(&mut network, seed, 5, |network| network.agrees_on(3));
        longest = longest.max(time);
    }
    println!("three nodes agree after at most {longest:?}");
}

#[test]
fn fifty_nodes_agree() {
    for seed in seeds(2) {
        let mut network = cluster(seed, 50);
        let time = reach(&mut network, seed, 10, |network| network.agrees_on(50));
        println!("fifty nodes agree after {time:?}");
    }
}

#[test]
fn a_killed_node_is_gone_within_ten_seconds_and_returns_with_its_lease() {
    let (mut gone, mut back) = (Duration::ZERO, Duration::ZERO);
    for seed in seeds(200) {
        let mut network = agreed(seed, 3);
        network.faults.loss = if seed % 2 == 0 { 0.0 } else { 0.1 };
        let ix = usize::try_from(seed % 3).unwrap();
        let lease = network.held(ix);
        network.kill(ix);
        gone = gone.max(reach(&mut network, seed, 10, |network| is_gone(network, ix)));
        network.start(ix);
        back = back.max(reach(&mut network, seed, 3, |network| network.agrees_on(3)));
        assert_eq!(network.held(ix), lease, "seed {seed}");
    }
    println!("killed: gone after at most {gone:?}, back after at most {back:?}");
}

#[test]
fn no_suspicion_outlives_the_cut_that_caused_it() {
    for seed in seeds(100) {
        let mut network = agreed(seed, 2);
        // About as long as it takes to be declared dead: one side may be quicker than the other.
        network.isolate(&[1]);
        network.run_for(Duration::from_millis(3000 + 25 * seed % 2500));
        network.heal();
        reach(&mut network, seed, 30, |network| {
            sees(network, 0, 1) == Some(MemberState::Alive)
                && sees(network, 1, 0) == Some(MemberState::Alive)
        });
    }
}

#[test]
fn a_node_whose_disk_is_full_lives_on_and_gets_no_new_lease() {
    for seed in seeds(50) {
        let mut network = agreed(seed, 3);
        let lease = network.held(1);
        for ix in 0..3 {
            network.refuse_writes(ix, true);
        }
        // New neighbours are worth remembering, and cannot be.
        for _ in 3..6 {
            network.add_node();
        }
        reach(&mut network, seed, 10, |network| network.agrees_on(6));
        network.kill(5);
        network.faults.loss = 0.05;
        for _ in 0..60 {
            network.run_for(secs(1));
            for ix in 0..3 {
                for other in (0..5).filter(|other| *other != ix) {
                    let alive = sees(&network, other, ix).is_some_and(MemberState::is_active);
                    assert!(alive, "seed {seed}\n{}", picture(&network));
                }
            }
        }
        network.faults.loss = 0.0;
        assert_eq!(network.held(1), lease, "seed {seed}");

        // Somebody else wins the subnet: it is given up, and no other one is taken.
        let mut thief = network.next_local();
        thief.memory.clock = 1000;
        thief.memory.leases = vec![RememberedLease { prefix: lease[0], epoch: 1000 }];
        let seed_address = network.address(0);
        network.add(thief, vec![seed_address]);
        reach(&mut network, seed, 10, |network| network.held(1).is_empty());
        network.run_for(secs(30));
        assert_eq!(network.held(1), [], "seed {seed}");
        for other in [0, 2, 3, 4, 6] {
            let member = &network.map(other).unwrap().members[&network.id(1)];
            assert!(member.state.is_active(), "seed {seed}");
            assert!(member.routes().next().is_none(), "seed {seed}\n{}", picture(&network));
        }

        for ix in 0..3 {
            network.refuse_writes(ix, false);
        }
        reach(&mut network, seed, 20, |network| network.agrees_on(6));
        assert_eq!(network.disk(1).leases.len(), 1, "seed {seed}");
    }
}

#[test]
fn nothing_is_said_that_is_not_reserved_on_disk() {
    for seed in seeds(20) {
        let mut network = agreed(seed, 3);
        // The cluster knows a later life of this node than its disk, and the disk is full.
        network.kill(2);
        network.disk(2).counter += 100_000;
        network.start(2);
        reach(&mut network, seed, 5, |network| network.agrees_on(3));
        network.kill(2);
        network.wipe_disk(2);
        network.refuse_writes(2, true);
        network.start(2);
        network.capture();
        network.run_for(secs(20));
        let from = network.address(2);
        let said = network.capture().into_iter().filter(|(sender, _, _)| *sender == from).count();
        assert_eq!(said, 0, "seed {seed}: a first life that was never saved");
        network.refuse_writes(2, false);
        reach(&mut network, seed, 30, |network| network.agrees_on(3));
    }
}

#[test]
fn who_was_dead_when_a_newcomer_came_is_not_made_alive_by_a_sleeper() {
    for seed in seeds(20) {
        let mut network = agreed(seed, 4);
        network.freeze(2);
        network.kill(1);
        reach(&mut network, seed, 20, |network| {
            [0, 3].into_iter().all(|ix| sees(network, ix, 1) == Some(MemberState::Dead))
        });
        let newcomer = network.add_node();
        reach(&mut network, seed, 10, |network| {
            sees(network, newcomer, 1).is_some() && !network.held(newcomer).is_empty()
        });
        // It has not noticed, and says so.
        network.thaw(2);
        network.run_for(secs(10));
        let dead = network.id(1);
        let is_up = |event: &Event| matches!(event, Event::MemberUp { id, .. } if *id == dead);
        assert!(!has_event(&network, newcomer, is_up), "seed {seed}: {}", picture(&network));
        assert!(sees(&network, newcomer, 2).unwrap().is_active(), "seed {seed}");
    }
}

#[test]
fn a_node_that_restarts_at_once_is_taken_back_at_once_as_often_as_it_likes() {
    for seed in seeds(20) {
        let mut network = agreed(seed, 3);
        for round in 0..10 {
            let ix = round % 3;
            let lease = network.held(ix);
            network.kill(ix);
            network.start(ix);
            reach(&mut network, seed, 2, |network| network.agrees_on(3));
            assert_eq!(network.held(ix), lease, "seed {seed}");
        }
    }
}

#[test]
fn a_node_whose_disk_was_lost_gets_its_lease_back_from_the_cluster() {
    for seed in seeds(100) {
        let mut network = agreed(seed, 3);
        let ix = usize::try_from(seed % 3).unwrap();
        let lease = network.held(ix);
        network.kill(ix);
        if seed % 2 == 0 {
            network.run_for(secs(12));
        }
        network.wipe_disk(ix);
        network.start(ix);
        reach(&mut network, seed, 8, |network| network.agrees_on(3));
        assert_eq!(network.held(ix), lease, "seed {seed}");
    }
}

#[test]
fn a_hundred_nodes_notice_a_death_in_time() {
    let mut network = agreed(7, 100);
    for round in 0..2 {
        network.kill(50 + round);
        let time = reach(&mut network, 7, 10, |network| is_gone(network, 50 + round));
        println!("hundred nodes noticed a death after {time:?}");
    }
}

#[test]
fn losses_kill_nobody() {
    for seed in seeds(8) {
        let mut network = agreed(seed, if seed % 2 == 0 { 3 } else { 10 });
        network.faults = Faults {
            loss: 0.1,
            duplication: 0.1,
            delay: Duration::from_millis(1)..Duration::from_millis(60),
            ..Faults::default()
        };
        network.run_for(secs(200));
        for ix in network.running() {
            let died = has_event(&network, ix, |event| matches!(event, Event::MemberDown { .. }));
            assert!(!died, "seed {seed}: {}", picture(&network));
        }
    }
}

#[test]
fn a_goodbye_is_heard_within_a_second() {
    for seed in seeds(200) {
        let mut network = agreed(seed, 5);
        network.faults.loss = if seed % 2 == 0 { 0.0 } else { 0.1 };
        let lease = network.held(1);
        network.leave(1);
        reach(&mut network, seed, 1, |network| {
            network.running().all(|ix| sees(network, ix, 1) == Some(MemberState::Left))
        });
        network.run_for(secs(2));
        assert_eq!(network.running().count(), 4, "the node has ended");
        network.start(1);
        reach(&mut network, seed, 4, |network| network.agrees_on(5));
        assert_eq!(network.held(1), lease, "seed {seed}");
    }
}

/// Two nodes whose ids hash alike are rare, so the range has a single free subnet.
fn narrow(prefix: &str) -> GossipConfig {
    let ranges = vec![prefix.parse().unwrap()];
    GossipConfig::new("sim", LeaseConfig { ranges, ..LeaseConfig::default() })
}

#[test]
fn of_simultaneous_claims_one_wins_everywhere() {
    for seed in seeds(200) {
        let mut network = Network::new(seed);
        network.config = narrow("10.244.0.0/22");
        network.faults.loss = 0.05;
        for _ in 0..4 {
            network.add_node();
        }
        reach(&mut network, seed, 20, |network| network.agrees_on(4));
    }
}

#[test]
fn a_subnet_that_two_nodes_remember_stays_with_the_better_claim() {
    for seed in seeds(200) {
        let mut network = agreed(seed, 4);
        let prefix = network.held(2)[0];
        // Above what the others remember of them.
        let base = network.disk(2).leases[0].epoch;
        network.kill(2);
        network.kill(3);
        let other_epoch = 1 + seed % 5;
        network.disk(2).leases = vec![RememberedLease { prefix, epoch: base + 3 }];
        network.disk(3).leases = vec![RememberedLease { prefix, epoch: base + other_epoch }];
        network.start(2);
        network.start(3);
        reach(&mut network, seed, 20, |network| network.agrees_on(4));
        let (low, high) = if network.id(2) < network.id(3) { (2, 3) } else { (3, 2) };
        let winner = match other_epoch.cmp(&3) {
            std::cmp::Ordering::Less => 2,
            std::cmp::Ordering::Equal => low,
            std::cmp::Ordering::Greater => 3,
        };
        let loser = if winner == low { high } else { low };
        assert_eq!(network.held(winner), [prefix], "seed {seed}");
        assert_ne!(network.held(loser), [prefix], "seed {seed}");
        let id = network.id(winner);
        assert!(has_event(&network, loser, |event| matches!(
            event,
            Event::LeaseLost { prefix: lost, winner, held: true } if *lost == prefix && *winner == id
        )));
    }
}

#[test]
fn a_node_that_slept_over_its_lease_does_not_steal_it_back() {
    for seed in seeds(100) {
        let mut network = Network::new(seed);
        network.config = narrow("10.244.0.0/23");
        for _ in 0..2 {
            network.add_node();
        }
        reach(&mut network, seed, 20, |network| network.agrees_on(2));
        let prefix = network.held(1)[0];
        network.kill(1);
        reach(&mut network, seed, 12, |network| is_gone(network, 1));
        // Nothing else is free: the newcomer is given the dead node's subnet.
        let newcomer = network.add_node();
        reach(&mut network, seed, 12, |network| network.agrees_on(2));
        assert_eq!(network.held(newcomer), [prefix], "seed {seed}");
        network.start(1);
        network.run_for(secs(5));
        assert_eq!(network.held(newcomer), [prefix], "seed {seed}");
        assert!(network.held(1).is_empty(), "seed {seed}: {}", picture(&network));
        let state = network.gossip(1).unwrap().lease_state();
        assert!(matches!(state, LeaseState::Exhausted { .. }), "seed {seed}: {state:?}");
    }
}

#[test]
fn an_exhausted_range_is_told_and_used_as_soon_as_there_is_room() {
    for seed in seeds(100) {
        let mut network = Network::new(seed);
        network.config = narrow("10.244.0.0/23");
        for _ in 0..3 {
            network.add_node();
        }
        let without = |network: &Network| {
            let mut running = network.running();
            let without = running.find(|ix| {
                let state = network.gossip(*ix).unwrap().lease_state();
                matches!(state, LeaseState::Exhausted { .. })
            });
            without.filter(|_| {
                network.running().filter(|ix| !network.held(*ix).is_empty()).count() == 2
            })
        };
        reach(&mut network, seed, 15, |network| without(network).is_some());
        let waiting = without(&network).unwrap();
        let told = |event: &Event| matches!(event, Event::LeaseExhausted { v6: false });
        assert!(has_event(&network, waiting, told), "seed {seed}");
        network.leave((waiting + 1) % 3);
        reach(&mut network, seed, 15, |network| network.agrees_on(2));
    }
}

#[test]
fn both_families_are_leased_together() {
    for seed in seeds(50) {
        let mut network = Network::new(seed);
        network.config.lease.ranges.push("fd00:10:244::/56".parse().unwrap());
        for _ in 0..4 {
            network.add_node();
        }
        reach(&mut network, seed, 15, |network| network.agrees_on(4));
        for ix in 0..4 {
            let held = network.held(ix);
            assert_eq!(held.len(), 2, "seed {seed}");
            let third = held[0].ip().to_string();
            let number: u16 = third.split('.').nth(2).unwrap().parse().unwrap();
            let same = format!("fd00:10:244:{number:x}::/64").replace(":0::/64", "::/64");
            assert_eq!(held[1].to_string(), same, "seed {seed}");
        }
    }
}

#[test]
fn a_partition_heals_however_long_it_was() {
    let mut longest = Duration::ZERO;
    for seed in seeds(60) {
        let mut network = agreed(seed, 5);
        let leases: Vec<_> = (0..5).map(|ix| network.held(ix)).collect();
        network.isolate(&[3, 4]);
        let split = if seed % 4 == 0 { 120 } else { 3 + seed % 15 };
        network.run_for(secs(split));
        if split > 12 {
            assert!(!sees(&network, 0, 3).unwrap().is_active(), "seed {seed}");
            assert!(!sees(&network, 4, 0).unwrap().is_active(), "seed {seed}");
            assert!(sees(&network, 4, 3).unwrap().is_active(), "seed {seed}");
        }
        network.heal();
        longest = longest.max(reach(&mut network, seed, 20, |network| network.agrees_on(5)));
        for (ix, lease) in leases.iter().enumerate() {
            assert_eq!(&network.held(ix), lease, "seed {seed}");
        }
    }
    println!("a partition heals within {longest:?}");
}

#[test]
fn a_partition_heals_though_everybody_restarted_in_it() {
    for seed in seeds(30) {
        let mut network = agreed(seed, 5);
        network.isolate(&[3, 4]);
        network.run_for(secs(15));
        for ix in 0..5 {
            network.kill(ix);
        }
        for ix in 0..5 {
            network.start(ix);
        }
        network.run_for(secs(30));
        network.heal();
        // Only the seed is known now, and it is dialled every 30 seconds.
        reach(&mut network, seed, 45, |network| network.agrees_on(5));
    }
}

#[test]
fn what_was_claimed_on_both_sides_of_a_partition_is_settled() {
    for seed in seeds(100) {
        let mut network = Network::new(seed);
        network.config = narrow("10.244.0.0/21");
        for _ in 0..4 {
            network.add_node();
        }
        reach(&mut network, seed, 20, |network| network.agrees_on(4));
        network.isolate(&[2, 3]);
        let seeds = vec![network.address(2)];
        let local = network.next_local();
        let far = network.add(local, seeds);
        network.isolate(&[2, 3, far]);
        network.add_node();
        network.run_for(secs(12));
        network.heal();
        reach(&mut network, seed, 30, |network| network.agrees_on(6));
    }
}

#[test]
fn a_lone_node_serves_itself_while_its_seeds_are_silent() {
    for seed in seeds(50) {
        let mut network = Network::new(seed);
        let mut locals = Vec::new();
        for _ in 0..3 {
            let local = network.next_local();
            locals.push(network.add(local, vec!["198.18.0.77:7946".parse().unwrap()]));
        }
        network.run_for(secs(4));
        assert!(network.held(0).is_empty(), "it waits for its seed first");
        network.run_for(secs(4));
        assert!(locals.iter().all(|ix| network.held(*ix).len() == 1), "seed {seed}");
        assert!(has_event(&network, 0, |event| matches!(event, Event::SeedUnreachable { .. })));
        // The seed comes up at last.
        let mut local = network.next_local();
        local.underlay = "198.18.0.77".parse().unwrap();
        network.add(local, vec![]);
        reach(&mut network, seed, 45, |network| network.agrees_on(4));
    }
}

#[test]
fn a_cloned_node_is_named_and_the_lower_address_keeps_the_id() {
    for seed in seeds(30) {
        let mut network = agreed(seed, 4);
        let mut clone = network.next_local();
        clone.id = network.id(2);
        clone.memory = network.disk(2).clone();
        if seed % 2 == 0 {
            clone.underlay = "10.0.0.1".parse().unwrap();
        }
        let seeds = vec![network.address(0)];
        let twin = network.add(clone, seeds);
        let (low, high) = if seed % 2 == 0 { (twin, 2) } else { (2, twin) };
        let addresses: [SocketAddr; 2] = [network.address(low), network.address(high)];
        let conflict = Conflict::Identity { id: network.id(2), addresses };
        reach(&mut network, seed, 15, |network| {
            [low, high].into_iter().all(|ix| {
                has_event(network, ix, |event| *event == Event::Conflict(conflict.clone()))
            })
        });
        network.run_for(secs(10));
        let state = network.gossip(high).unwrap().lease_state();
        assert_eq!(state, LeaseState::Suspended { other: network.address(low) }, "seed {seed}");
        assert_eq!(network.held(low).len(), 1, "seed {seed}: {}", picture(&network));
        let versions = |network: &Network| -> Vec<u64> {
            network
                .running()
                .map(|ix| network.map(ix).unwrap().members[&network.id(2)].version)
                .collect()
        };
        let before = versions(&network);
        network.run_for(secs(20));
        assert_eq!(versions(&network), before, "seed {seed}: nobody fights over the record");

        network.kill(high);
        network.run_for(secs(90));
        let resolved = Event::ConflictResolved(conflict.clone());
        assert!(has_event(&network, low, |event| *event == resolved), "seed {seed}");
    }
}

#[test]
fn two_nodes_with_one_address_are_named_everywhere() {
    for seed in seeds(40) {
        let mut network = agreed(seed, 4);
        let mut double = network.next_local();
        double.underlay = network.address(2).ip();
        let seeds = vec![network.address(0)];
        let double = network.add(double, seeds);
        let address = network.address(2).ip();
        reach(&mut network, seed, 60, |network| {
            [0, 1, 2, double].into_iter().all(|ix| {
                has_event(network, ix, |event| {
                    matches!(event, Event::Conflict(Conflict::Address { address: a, .. }) if *a == address)
                })
            })
        });
        // Whom it does not concern goes on.
        for ix in [0, 1, 3] {
            let undisturbed = sees(&network, 0, ix).unwrap().is_active();
            assert!(undisturbed && network.held(ix).len() == 1, "seed {seed}");
        }
    }
}

#[test]
fn a_machine_replaced_at_its_address_is_no_conflict() {
    for seed in seeds(50) {
        let mut network = agreed(seed, 4);
        let mut successor = network.next_local();
        successor.underlay = network.address(2).ip();
        let seeds = vec![network.address(0)];
        network.kill(2);
        network.add(successor, seeds);
        network.run_for(secs(30));
        assert!(network.agrees_on(4), "seed {seed}: {}", picture(&network));
        for ix in network.running() {
            let conflict = has_event(&network, ix, |event| {
                matches!(
                    event,
                    Event::Conflict(Conflict::Address { .. } | Conflict::Identity { .. })
                )
            });
            assert!(!conflict, "seed {seed}");
        }
    }
}

#[test]
fn a_node_that_moves_to_another_address_takes_its_lease_along() {
    for seed in seeds(50) {
        let mut network = agreed(seed, 4);
        let lease = network.held(2);
        network.kill(2);
        network.local(2).underlay = "198.18.7.7".parse().unwrap();
        network.start(2);
        reach(&mut network, seed, 5, |network| network.agrees_on(4));
        network.run_for(secs(30));
        assert!(network.agrees_on(4), "seed {seed}: {}", picture(&network));
        assert_eq!(network.held(2), lease, "seed {seed}");
    }
}

#[test]
fn another_network_at_the_same_seed_is_ignored_and_counted() {
    for seed in seeds(20) {
        let mut network = agreed(seed, 3);
        network.config = GossipConfig::new("other", LeaseConfig::default());
        let foreign = network.add_node();
        network.run_for(secs(20));
        for ix in 0..3 {
            assert_eq!(network.map(ix).unwrap().members.len(), 3, "seed {seed}");
        }
        assert_eq!(network.map(foreign).unwrap().members.len(), 1, "seed {seed}");
        let refused = network.gossip(0).unwrap().counters().refused(Refused::ForeignNetwork);
        assert!(refused > 0, "seed {seed}");
    }
}

#[test]
fn a_third_of_garbage_does_no_harm() {
    for seed in seeds(50) {
        let mut network = cluster(seed, 3);
        network.faults.corruption = 0.3;
        // A first contact takes five datagrams that all arrive unharmed, or another attempt.
        reach(&mut network, seed, 60, |network| network.agrees_on(3));
        network.run_for(secs(30));
        let refused: u64 = (0..3)
            .map(|ix| network.gossip(ix).unwrap().counters().refused.values().sum::<u64>())
            .sum();
        assert!(refused > 10, "seed {seed}");
        network.faults.corruption = 0.0;
        reach(&mut network, seed, 30, |network| network.agrees_on(3));
    }
}

#[test]
fn a_quiet_cluster_costs_little_however_many_nodes_it_has() {
    let rate = |nodes: usize| {
        let mut network = agreed(1, nodes);
        network.run_for(secs(20));
        let before = network.bytes_sent;
        network.run_for(secs(20));
        (network.bytes_sent - before) / 20 / u64::try_from(nodes).unwrap()
    };
    let (few, many) = (rate(10), rate(100));
    println!("bytes per second and node at rest: {few} of 10 nodes, {many} of 100 nodes");
    assert!(many < 2500, "{many} bytes per second and node");
    assert!(many < few + few / 4, "the cost does not grow with the cluster: {few} and {many}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut network = cluster(seed, 6);
        network.faults.loss = 0.2;
        network.run_for(secs(20));
        let events: Vec<_> = (0..6).map(|ix| network.events(ix).to_vec()).collect();
        (network.bytes_sent, events)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5).0, run(6).0);
}
