//! What pods notice when their node's lease is lost, and that no address is ever two pods'.

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::support::*;
use overlay::config::LeaseConfig;
use overlay::gossip::LeaseState;
use overlay::subnet::Conflict;
use vswitch::tables::Route;
use weft::sim::{Cluster, Family, Node, Pod};

/// Three nodes, of which the last two hold one subnet and do not hear of each other, with pods on both.
fn both_hold(seed: u64) -> (Cluster, [Vec<Pod>; 2]) {
    let mut cluster = Cluster::builder().nodes(3).pods_per_node(0).seed(seed).build();
    let nodes = cluster.nodes();
    let stolen = cluster.leases(nodes[1]);
    cluster.kill(nodes[2]);
    let leases = cluster.memory(nodes[1]).leases.clone();
    cluster.memory(nodes[2]).leases = leases;
    cluster.partition(&nodes[..2], &nodes[2..]);
    cluster.start(nodes[2]);
    assert!(cluster.run_until(10 * SECOND, |c| c.leases(nodes[2]) == stolen));
    // .2 and .3 here; .2 to .5 there, of which .3 goes again.
    let near = (0..2).map(|_| cluster.add_pod(nodes[1])).collect();
    let mut far: Vec<_> = (0..4).map(|_| cluster.add_pod(nodes[2])).collect();
    cluster.remove_pod(far.remove(1));
    (cluster, [near, far])
}

/// Whether every running node leads each pod's addresses to that pod, and nobody else's.
fn is_unique(cluster: &mut Cluster, pods: &[(Pod, Node)]) -> Result<(), String> {
    for (pod, home) in pods {
        for address in cluster.addresses((*pod).into()) {
            for node in cluster.running() {
                let underlay = cluster.underlay_address(*home);
                let tables = cluster.tables(node).unwrap();
                let right = match tables.route(address) {
                    Route::Port(_) => node == *home,
                    Route::Node(ix) => tables.peer(ix).unwrap().underlay.ip() == underlay,
                    Route::Host | Route::Router | Route::Nobody | Route::Outside => false,
                };
                if !right {
                    let route = tables.route(address);
                    return Err(format!(
                        "{node:?} leads {address} of {pod:?} on {home:?} to {route:?}"
                    ));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn pods_of_a_lost_lease_keep_their_addresses_unless_the_winner_has_given_them_away() {
    for seed in 40..48 {
        let (mut cluster, [near, far]) = both_hold(seed);
        let nodes = cluster.nodes();
        let witness = cluster.add_pod(nodes[0]);
        let stolen = cluster.leases(nodes[1]);
        cluster.heal();
        cluster.settle(30 * SECOND);
        let near_won = cluster.leases(nodes[1]) == stolen;
        let (winner, won, loser, lost) = if near_won {
            (nodes[1], near, nodes[2], far)
        } else {
            (nodes[2], far, nodes[1], near)
        };
        // Contradictions are believed after ten seconds.
        cluster.run_for(15 * SECOND);
        let used: Vec<_> = won.iter().flat_map(|pod| cluster.addresses((*pod).into())).collect();
        let collides = |cluster: &Cluster, pod: Pod| used.contains(&v4(cluster, pod));
        let (cut_off, kept): (Vec<_>, Vec<_>) =
            lost.into_iter().partition(|pod| collides(&cluster, *pod));
        assert!(!cut_off.is_empty(), "seed {seed}: .2 is on both");
        let mut live: Vec<_> = won.iter().map(|pod| (*pod, winner)).collect();
        live.extend(kept.iter().map(|pod| (*pod, loser)));
        live.push((witness, nodes[0]));
        is_unique(&mut cluster, &live).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        for (pod, _) in &live {
            for (other, _) in &live {
                if pod != other {
                    assert_reaches(&mut cluster, *pod, *other);
                }
            }
        }
        // The conflicts name both parties, on every node.
        for pod in &cut_off {
            for address in cluster.addresses((*pod).into()) {
                let (holder, claimant) = (cluster.node_id(winner), cluster.node_id(loser));
                let conflict = Conflict::Exception { address, holder, claimant };
                for node in &nodes {
                    let conflicts = &cluster.map(*node).unwrap().conflicts;
                    assert!(conflicts.contains(&conflict), "seed {seed}: {conflicts:?}");
                }
            }
        }
        // The winner gives none of them away, however many pods it gets, and the loser's are out of its new lease.
        let mut seen: BTreeMap<IpAddr, Pod> = BTreeMap::new();
        for (pod, _) in &live {
            for address in cluster.addresses((*pod).into()) {
                assert_eq!(seen.insert(address, *pod), None, "seed {seed}");
            }
        }
        for node in [winner, loser] {
            for _ in 0..20 {
                let pod = cluster.add_pod(node);
                for address in cluster.addresses(pod.into()) {
                    assert_eq!(seen.insert(address, pod), None, "seed {seed}: {address} twice");
                }
            }
        }
        // Once the pods are gone, the addresses are the winner's alone, after a restart, too.
        let addresses: Vec<_> = kept.iter().map(|pod| v4(&cluster, *pod)).collect();
        for pod in kept.iter().chain(&cut_off) {
            cluster.remove_pod(*pod);
        }
        cluster.run_for(5 * SECOND);
        for address in addresses {
            let tables = cluster.tables(nodes[0]).unwrap();
            let Route::Node(ix) = tables.route(address) else { panic!("seed {seed}: {address}") };
            let underlay = tables.peer(ix).unwrap().underlay.ip();
            assert_eq!(underlay, cluster.underlay_address(winner), "seed {seed}");
        }
        let conflicts = &cluster.map(nodes[0]).unwrap().conflicts;
        assert!(
            conflicts.is_empty()
                || cluster.run_until(90 * SECOND, |cluster| {
                    cluster.map(nodes[0]).unwrap().conflicts.is_empty()
                })
        );
    }
}

#[test]
fn an_exception_outlives_restarts_of_both_sides() {
    for seed in 50..54 {
        let (mut cluster, [near, far]) = both_hold(seed);
        let nodes = cluster.nodes();
        let witness = cluster.add_pod(nodes[0]);
        let stolen = cluster.leases(nodes[1]);
        cluster.heal();
        cluster.settle(30 * SECOND);
        let near_won = cluster.leases(nodes[1]) == stolen;
        let (loser, lost, won) =
            if near_won { (nodes[2], &far, &near) } else { (nodes[1], &near, &far) };
        let winners: Vec<_> = won.iter().map(|pod| v4(&cluster, *pod)).collect();
        let kept: Vec<_> =
            lost.iter().copied().filter(|pod| !winners.contains(&v4(&cluster, *pod))).collect();
        let pairs: Vec<_> = kept.iter().map(|pod| (*pod, loser)).collect();
        for restart in [&nodes[1..2], &nodes[2..3], &nodes[..]] {
            for node in restart {
                cluster.kill(*node);
            }
            cluster.run_for(SECOND);
            for node in restart {
                cluster.start(*node);
            }
            cluster.settle(30 * SECOND);
            cluster.run_for(3 * SECOND);
            is_unique(&mut cluster, &pairs).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
            for pod in &kept {
                assert_reaches(&mut cluster, witness, *pod);
            }
        }
    }
}

#[test]
fn a_node_that_comes_back_sends_nothing_before_its_lease_is_proven() {
    for seed in 60..66 {
        let lease = LeaseConfig {
            ranges: vec!["10.244.0.0/23".parse().unwrap()],
            ..LeaseConfig::default()
        };
        let mut cluster =
            Cluster::builder().nodes(2).pods_per_node(1).lease(lease).seed(seed).build();
        let (nodes, pods) = (cluster.nodes(), cluster.pods());
        let subnet = cluster.leases(nodes[1]);
        let target = v4(&cluster, pods[0]);
        let frame = udp_from(&cluster, pods[1], target, 9, b"here I am");
        let tunnel = cluster.vxlan_address(nodes[1]);
        cluster.kill(nodes[1]);
        // In half of the runs somebody else is given its subnet meanwhile.
        let heir = (seed % 2 == 0).then(|| {
            cluster.run_for(12 * SECOND);
            let heir = cluster.add_node();
            cluster.run_until(20 * SECOND, |cluster| cluster.leases(heir) == subnet);
            assert_eq!(cluster.leases(heir), subnet, "seed {seed}");
            heir
        });
        cluster.start_capture(100_000);
        cluster.start(nodes[1]);
        let mut proven = false;
        for _ in 0..500 {
            cluster.inject_frame(pods[1], &frame);
            cluster.run_for(Duration::from_millis(2));
            let state = cluster.gossip(nodes[1]).unwrap().lease_state();
            proven |= !matches!(state, LeaseState::Returning { .. });
            let sent = cluster.take_capture();
            let sent = sent.iter().filter(|datagram| datagram.from.ip() == tunnel.ip());
            let sent = sent.filter(|datagram| datagram.to.port() == tunnel.port()).count();
            assert!(proven || sent == 0, "seed {seed}: {sent} datagrams in {state:?}");
        }
        assert!(proven, "seed {seed}");
        assert_eq!(cluster.leases(nodes[1]) == subnet, heir.is_none(), "seed {seed}");
        if heir.is_none() {
            assert!(cluster.ping(pods[1], target, 3 * SECOND).is_some(), "seed {seed}");
        }
        let family = Family::of(target);
        assert_eq!(family, Family::V4);
    }
}
