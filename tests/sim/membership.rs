//! Nodes come, crash, return, leave and are cut off; what pods notice of it.

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

use std::time::Duration;

use crate::support::*;
use overlay::config::LeaseConfig;
use overlay::gossip::{Event, Memory};
use overlay::subnet::MemberState;
use vswitch::verdict::Reason;
use weft::sim::{Cluster, Family, Faults, Node, NodeOptions, Pod, PodError, TraceEvent};

fn cluster(nodes: usize, seed: u64) -> Cluster {
    Cluster::builder().nodes(nodes).pods_per_node(1).seed(seed).build()
}

/// Whether no running node but `gone` itself routes to it any more.
fn is_gone(cluster: &Cluster, gone: Node) -> bool {
    let others = cluster.running().into_iter().filter(|node| *node != gone);
    others.into_iter().all(|node| {
        let member = &cluster.map(node).unwrap().members[&cluster.node_id(gone)];
        !member.state.is_active() && member.routes().next().is_none()
    })
}

/// Asserts that `from` does not reach `to`, and is told so by its own node.
fn assert_unreachable(cluster: &mut Cluster, from: Pod, to: Pod) {
    for family in Family::ALL {
        let target = of(cluster, to, family);
        let frame = udp_from(cluster, from, target, 9, b"still there?");
        cluster.host(from).take_icmp_errors();
        cluster.inject_frame(from, &frame);
        cluster.run_for(SECOND);
        let router = cluster.address(cluster.node_of(from), family).unwrap();
        let errors = cluster.host(from).take_icmp_errors();
        let (kind, code) = if family == Family::V4 { (3, 1) } else { (1, 3) };
        let seen: Vec<_> = errors.iter().map(|e| (e.from, e.kind, e.code)).collect();
        assert_eq!(seen, [(router, kind, code)], "{target}");
        assert_eq!(cluster.ping(from, target, 2 * SECOND), None, "{target}");
    }
}

#[test]
fn a_killed_node_is_gone_within_ten_seconds_and_returns_with_lease_and_pods() {
    for (seed, loss) in [(1, 0.0), (2, 0.0), (3, 0.05)] {
        let mut cluster = cluster(3, seed);
        cluster.set_faults(Faults { loss, delay: Duration::from_millis(1), ..Faults::NONE });
        let (nodes, pods) = (cluster.nodes(), cluster.pods());
        let leases = cluster.leases(nodes[1]);
        let addresses = cluster.addresses(pods[1].into());

        cluster.kill(nodes[1]);
        assert!(
            cluster.run_until(10 * SECOND, |cluster| is_gone(cluster, nodes[1])),
            "seed {seed}"
        );
        cluster.set_faults(Faults { delay: Duration::from_millis(1), ..Faults::NONE });
        assert_unreachable(&mut cluster, pods[0], pods[1]);
        assert_reaches(&mut cluster, pods[0], pods[2]);

        cluster.start(nodes[1]);
        cluster.settle(5 * SECOND);
        assert_eq!(cluster.leases(nodes[1]), leases);
        assert_eq!(cluster.addresses(pods[1].into()), addresses);
        for (from, to) in pairs(&cluster) {
            assert_reaches(&mut cluster, from, to);
        }
    }
}

#[test]
fn a_restart_that_nobody_noticed_keeps_connections() {
    let mut cluster = cluster(2, 4);
    let (nodes, pods) = (cluster.nodes(), cluster.pods());
    let target = std::net::SocketAddr::new(v4(&cluster, pods[1]), 80);
    let server = cluster.host(pods[1]).tcp_listen(80);
    let client = cluster.host(pods[0]).tcp_connect(target);
    cluster.run_for(3 * SECOND);
    assert!(cluster.host(pods[0]).tcp_is_connected(client));

    cluster.kill(nodes[1]);
    cluster.run_for(SECOND);
    cluster.start(nodes[1]);
    cluster.host(pods[0]).tcp_send(client, b"are you there?");
    let heard = |cluster: &mut Cluster| cluster.host(pods[1]).tcp_receive(server);
    let mut received = Vec::new();
    for _ in 0..100 {
        cluster.run_for(Duration::from_millis(50));
        received.extend(heard(&mut cluster));
    }
    assert_eq!(received, b"are you there?");
    // And the map never lost it.
    assert_eq!(cluster.state(nodes[0], nodes[1]), Some(MemberState::Alive));
}

#[test]
fn a_node_that_leaves_is_gone_within_a_second() {
    for seed in [5, 6, 7] {
        let mut cluster = cluster(3, seed);
        let (nodes, pods) = (cluster.nodes(), cluster.pods());
        cluster.leave(nodes[2]);
        assert!(cluster.run_until(SECOND, |cluster| is_gone(cluster, nodes[2])), "seed {seed}");
        assert!(cluster.run_until(SECOND, |cluster| !cluster.is_running(nodes[2])));
        assert_eq!(cluster.state(nodes[0], nodes[2]), Some(MemberState::Left));
        assert_unreachable(&mut cluster, pods[0], pods[2]);
        assert_eq!(cluster.try_add_pod(nodes[2]), Err(PodError::NotRunning));

        cluster.start(nodes[2]);
        cluster.settle(5 * SECOND);
        assert_reaches(&mut cluster, pods[0], pods[2]);
    }
}

#[test]
fn two_sides_of_a_partition_live_on_and_find_together() {
    let mut cluster = cluster(5, 8);
    let (nodes, pods) = (cluster.nodes(), cluster.pods());
    let (left, right) = nodes.split_at(3);
    let leases: Vec<_> = nodes.iter().map(|node| cluster.leases(*node)).collect();
    cluster.partition(left, right);
    let split = |cluster: &Cluster| {
        right.iter().all(|other| {
            left.iter().all(|node| {
                let dead = |a, b| cluster.state(a, b) == Some(MemberState::Dead);
                dead(*node, *other) && dead(*other, *node)
            })
        })
    };
    assert!(cluster.run_until(10 * SECOND, split), "{}", cluster.picture());
    assert_reaches(&mut cluster, pods[0], pods[2]);
    assert_reaches(&mut cluster, pods[3], pods[4]);
    assert_unreachable(&mut cluster, pods[0], pods[4]);
    assert_unreachable(&mut cluster, pods[4], pods[0]);

    cluster.heal();
    cluster.settle(30 * SECOND);
    let after: Vec<_> = nodes.iter().map(|node| cluster.leases(*node)).collect();
    assert_eq!(after, leases, "nobody has to move");
    for (from, to) in pairs(&cluster) {
        assert_reaches(&mut cluster, from, to);
    }
}

#[test]
fn of_two_holders_of_one_lease_one_takes_another() {
    for seed in 10..15 {
        // Three nodes, of which the last two never met before they are cut off from each other.
        let mut cluster = Cluster::builder().nodes(3).seed(seed).build();
        let nodes = cluster.nodes();
        let stolen = cluster.leases(nodes[1]);
        cluster.kill(nodes[2]);
        let memory: Memory = cluster.memory(nodes[1]).clone();
        cluster.memory(nodes[2]).leases = memory.leases;
        cluster.partition(&nodes[..2], &nodes[2..]);
        cluster.start(nodes[2]);
        // The disk says so, and nobody can be asked.
        let alone = cluster.run_until(10 * SECOND, |c| c.leases(nodes[2]) == stolen);
        assert!(alone, "seed {seed}");
        assert_eq!(cluster.leases(nodes[1]), stolen);

        cluster.heal();
        cluster.settle(30 * SECOND);
        let (one, other) = (cluster.leases(nodes[1]), cluster.leases(nodes[2]));
        assert!(one.iter().all(|lease| !other.contains(lease)), "{}", cluster.picture());
        assert!(one == stolen || other == stolen, "one keeps it");
        assert_equal_maps(&cluster);
        // Whoever had to move tells so, and its new pods are reached.
        let lost = cluster.trace().events().any(|(_, event)| {
            matches!(event, TraceEvent::Gossip(_, Event::LeaseLost { held: true, .. }))
        });
        assert!(lost);
        let pods: Vec<_> = nodes.iter().map(|node| cluster.add_pod(*node)).collect();
        for to in &pods[1..] {
            assert_reaches(&mut cluster, pods[0], *to);
        }
    }
}

#[test]
fn when_the_range_is_exhausted_adding_a_pod_fails_and_others_go_on() {
    let lease =
        LeaseConfig { ranges: vec!["10.244.0.0/23".parse().unwrap()], ..LeaseConfig::default() };
    let mut cluster = Cluster::builder().nodes(2).lease(lease).seed(20).build();
    let late = cluster.add_node();
    cluster.run_for(20 * SECOND);
    assert_eq!(cluster.leases(late), []);
    assert_eq!(cluster.try_add_pod(late), Err(PodError::NoLease));
    let nodes = cluster.nodes();
    let (a, b) = (cluster.add_pod(nodes[0]), cluster.add_pod(nodes[1]));
    let target = v4(&cluster, b);
    assert!(cluster.ping(a, target, 3 * SECOND).is_some());
}

#[test]
fn a_full_lease_has_no_address_left_until_a_pod_goes() {
    let lease = LeaseConfig {
        ranges: vec!["10.244.0.0/24".parse().unwrap()],
        prefix_len_v4: 29,
        ..LeaseConfig::default()
    };
    let mut cluster = Cluster::builder().nodes(1).lease(lease).seed(21).build();
    let node = cluster.nodes()[0];
    // Eight addresses, less network, node and broadcast.
    let pods: Vec<_> = (0..5).map(|_| cluster.add_pod(node)).collect();
    assert!(matches!(cluster.try_add_pod(node), Err(PodError::Exhausted(_))));
    let (last, freed) = (pods[4], v4(&cluster, pods[1]));
    cluster.remove_pod(pods[1]);
    assert_eq!(cluster.ping(last, freed, 3 * SECOND), None);
    let again = cluster.add_pod(node);
    assert_eq!(v4(&cluster, again), freed);
    assert!(cluster.ping(last, freed, 3 * SECOND).is_some());
}

#[test]
fn a_frame_to_a_pod_that_is_gone_is_refused_and_counted() {
    let mut cluster = cluster(2, 22);
    let (nodes, pods) = (cluster.nodes(), cluster.pods());
    let target = v4(&cluster, pods[1]);
    assert_reaches(&mut cluster, pods[0], pods[1]);
    cluster.remove_pod(pods[1]);
    let frame = udp_from(&cluster, pods[0], target, 9, b"gone?");
    cluster.inject_frame(pods[0], &frame);
    cluster.run_for(SECOND);
    assert_eq!(cluster.dropped(nodes[1], Reason::NoSuchAddress), 1);
    let errors = cluster.host(pods[0]).take_icmp_errors();
    assert_eq!(errors.iter().map(|e| (e.kind, e.code)).collect::<Vec<_>>(), [(3, 1)]);
}

#[test]
fn a_node_with_another_mtu_is_told_in_every_map() {
    let mut cluster = cluster(2, 23);
    let small = cluster.add_node_with(NodeOptions { underlay_mtu: 1300, ..NodeOptions::default() });
    cluster.settle(10 * SECOND);
    let nodes = cluster.nodes();
    let mtu_to = |cluster: &mut Cluster, from: Node, to: Node| {
        let underlay = cluster.underlay_address(to);
        let tables = cluster.tables(from).unwrap();
        let peer = tables.peer_by_underlay(underlay).and_then(|ix| tables.peer(ix));
        peer.unwrap().mtu
    };
    assert_eq!(mtu_to(&mut cluster, nodes[0], nodes[1]), 1450);
    assert_eq!(mtu_to(&mut cluster, nodes[0], small), 1250);
    assert_eq!(mtu_to(&mut cluster, small, nodes[0]), 1250);
}

/// A history with about everything in it.
fn history(seed: u64) -> (u64, u64, Vec<Option<vswitch::counters::Totals>>) {
    let faults = Faults {
        loss: 0.02,
        duplication: 0.02,
        delay: Duration::from_millis(1),
        jitter: Duration::from_millis(1),
    };
    let mut cluster =
        Cluster::builder().nodes(3).pods_per_node(1).seed(seed).faults(faults).build();
    let (nodes, pods) = (cluster.nodes(), cluster.pods());
    let transfer = cluster.tcp(pods[0], pods[1], Family::V4, &[5; 50_000], 60 * SECOND);
    assert_eq!(transfer.received.len(), 50_000);
    cluster.kill(nodes[2]);
    cluster.run_for(9 * SECOND);
    cluster.start(nodes[2]);
    cluster.partition(&nodes[..1], &nodes[1..]);
    cluster.run_for(9 * SECOND);
    cluster.heal();
    cluster.settle(30 * SECOND);
    let sent = cluster.underlay_totals().sent;
    let totals = nodes.iter().map(|node| cluster.totals(*node)).collect();
    (cluster.trace().digest(), sent, totals)
}

#[test]
fn one_seed_gives_one_history() {
    assert_eq!(history(30), history(30));
    assert_ne!(history(30), history(31));
}
