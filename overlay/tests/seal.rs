//! What the seal promises, in a simulated network with virtual time: strangers stay outside, nothing is
//! believed twice, and keys are changed without one lost message.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use overlay::gossip::Refused;
use overlay::gossip::sim::Network;
use overlay::seal::{KeyId, KeyRing};
use overlay::subnet::MemberState;
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

/// A cluster whose nodes agree.
fn agreed(seed: u64, nodes: usize) -> Network {
    let mut network = Network::new(seed);
    for _ in 0..nodes {
        network.add_node();
    }
    reach(&mut network, seed, 15, |network| network.agrees_on(nodes));
    network
}

#[track_caller]
fn reach(network: &mut Network, seed: u64, seconds: u64, goal: impl Fn(&Network) -> bool) {
    if network.run_until(secs(seconds), goal) {
        return;
    }
    for ix in network.running() {
        let members = network.map(ix).unwrap().members.values();
        let members: Vec<_> =
            members.map(|m| format!("{} {} {:?}", m.name, m.state.name(), m.keys)).collect();
        let gossip = network.gossip(ix).unwrap();
        eprintln!("node {ix} {:?}: {members:?} {:?}", gossip.keys(), gossip.counters().refused);
    }
    panic!("seed {seed}: not reached within {seconds} s");
}

fn id(n: u8) -> KeyId {
    Network::key(n).id()
}

/// A ring of these keys, of which the first is in use.
fn ring(keys: &[u8]) -> KeyRing {
    let mut ring = KeyRing::new(Network::key(keys[0]));
    for key in &keys[1..] {
        assert!(ring.accept(Network::key(*key)));
    }
    ring
}

fn refused(network: &Network, ix: usize, reason: Refused) -> u64 {
    network.gossip(ix).unwrap().counters().refused(reason)
}

fn state(network: &Network, ix: usize, other: usize) -> Option<MemberState> {
    network.map(ix)?.members.get(&network.id(other)).map(|member| member.state)
}

/// What the seal refuses.
const SEAL: [Refused; 8] = [
    Refused::Unsealed,
    Refused::Sealed,
    Refused::UnknownKey,
    Refused::Unauthentic,
    Refused::Replayed,
    Refused::Late,
    Refused::Reflected,
    Refused::ForeignNetwork,
];

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn nothing_in_a_datagram_tells_who_is_there() {
    let mut network = Network::new(1);
    network.capture();
    for _ in 0..4 {
        network.add_node();
    }
    reach(&mut network, 1, 15, |network| network.agrees_on(4));
    network.kill(2);
    network.start(2);
    network.leave(3);
    network.run_for(secs(10));
    let captured = network.capture();
    assert!(captured.len() > 200, "{}", captured.len());
    for (_, _, datagram) in &captured {
        for ix in 0..4 {
            let IpAddr::V4(address) = network.address(ix).ip() else { panic!("IPv4") };
            assert!(!contains(datagram, &address.octets()), "an underlay address");
            assert!(!contains(datagram, &network.id(ix).0), "an id");
            assert!(!contains(datagram, &network.id(ix).vtep_mac().0), "a MAC address");
        }
        assert!(!contains(datagram, b"node-"), "a name");
        assert!(!contains(datagram, b"weft/"), "a version");
        assert!(
            !contains(datagram, &[10, 244]) || datagram.len() > 40,
            "a lease, by accident only"
        );
    }
}

#[test]
fn strangers_see_nothing_join_nothing_and_are_named() {
    for seed in seeds(10) {
        let mut network = agreed(seed, 3);
        network.keys = None;
        let unsealed = network.add_node();
        network.keys = Some(ring(&[1]));
        let other_key = network.add_node();
        network.run_for(secs(30));
        for ix in 0..3 {
            assert_eq!(network.map(ix).unwrap().members.len(), 3, "seed {seed}");
        }
        for ix in [unsealed, other_key] {
            assert_eq!(network.map(ix).unwrap().members.len(), 1, "seed {seed}");
        }
        assert!(refused(&network, 0, Refused::Unsealed) > 0, "seed {seed}");
        assert!(refused(&network, 0, Refused::UnknownKey) > 0, "seed {seed}");
        let strangers = network.gossip(0).unwrap().strangers();
        let named = |ix: usize, reason: Refused, key: Option<KeyId>| {
            let address = network.address(ix);
            strangers.iter().any(|s| s.address == address && s.reason == reason && s.key == key)
        };
        assert!(named(unsealed, Refused::Unsealed, None), "{strangers:?}");
        assert!(named(other_key, Refused::UnknownKey, Some(id(1))), "{strangers:?}");
    }
}

#[test]
fn a_network_with_the_same_key_and_another_name_is_another_network() {
    let mut network = agreed(3, 3);
    network.config.network = "other".to_owned();
    let foreign = network.add_node();
    network.run_for(secs(20));
    assert_eq!(network.map(0).unwrap().members.len(), 3);
    assert_eq!(network.map(foreign).unwrap().members.len(), 1);
    assert!(refused(&network, 0, Refused::ForeignNetwork) > 0);
}

/// Recorded datagrams of a node that is dead by now, and of its earlier lives, do not bring it back: neither
/// where they were received before, nor where the receiver was restarted and remembers nothing.
#[test]
fn what_was_recorded_is_not_believed_again() {
    for seed in seeds(20) {
        let mut network = Network::new(seed);
        network.capture();
        for _ in 0..3 {
            network.add_node();
        }
        reach(&mut network, seed, 15, |network| network.agrees_on(3));
        network.kill(2);
        network.run_for(secs(1));
        network.start(2);
        reach(&mut network, seed, 15, |network| network.agrees_on(3));
        network.run_for(secs(5));
        network.kill(2);
        let recorded = network.capture();
        let is_dead = |network: &Network| {
            [0, 1].into_iter().all(|ix| state(network, ix, 2) == Some(MemberState::Dead))
        };
        reach(&mut network, seed, 15, is_dead);
        network.kill(0);
        network.run_for(secs(1));
        network.start(0);
        reach(&mut network, seed, 15, |network| network.agrees_on(2));
        let before: Vec<_> =
            [0, 1].map(|ix| network.gossip(ix).unwrap().counters().clone()).to_vec();
        let from_dead = network.address(2);
        let (mut to_restarted, mut to_other) = (0, 0);
        for (from, to, datagram) in recorded {
            if from == from_dead {
                to_restarted += u64::from(to == network.address(0));
                to_other += u64::from(to == network.address(1));
                network.inject(from, to, datagram);
                network.run_for(Duration::from_millis(5));
            }
        }
        assert!(to_restarted > 20 && to_other > 20);
        assert!(is_dead(&network), "seed {seed}");
        network.run_for(secs(10));
        assert!(is_dead(&network), "seed {seed}");
        let grown = |ix: usize, reason| refused(&network, ix, reason) - before[ix].refused(reason);
        // Node 1 remembers both sessions of node 2, and node 0 none: there nothing is proven. What asks node 1
        // for a proof and says nothing, and came before the proof of its own session, is answered once more.
        let unproven =
            |ix: usize| network.gossip(ix).unwrap().counters().unproven - before[ix].unproven;
        let ignored = grown(1, Refused::Replayed) + grown(1, Refused::Late) + unproven(1);
        assert!(ignored + 2 >= to_other, "seed {seed}: {ignored} of {to_other}");
        assert_eq!(grown(0, Refused::Replayed) + grown(0, Refused::Late), 0, "seed {seed}");
        assert!(unproven(0) > 20, "seed {seed}");
    }
}

/// The same with a sender that is alive, whose session the restarted receiver asks for a proof: the proof
/// is about what comes after it, and not about what was recorded before.
#[test]
fn a_proof_is_not_for_what_came_before_it() {
    for seed in seeds(20) {
        let mut network = Network::new(seed);
        network.capture();
        network.add_node();
        network.add_node();
        reach(&mut network, seed, 15, |network| network.agrees_on(2));
        network.run_for(secs(5));
        let recorded = network.capture();
        network.kill(0);
        network.start(0);
        network.run_for(secs(3));
        assert!(network.agrees_on(2), "seed {seed}");
        let before = network.gossip(0).unwrap().counters().clone();
        let (from, to) = (network.address(1), network.address(0));
        let mut count = 0;
        for (_, _, datagram) in recorded.into_iter().filter(|(f, t, _)| (*f, *t) == (from, to)) {
            count += 1;
            network.inject(from, to, datagram);
        }
        network.run_for(secs(1));
        let after = network.gossip(0).unwrap().counters();
        let grown = |reason| after.refused(reason) - before.refused(reason);
        let unproven = after.unproven - before.unproven;
        let ignored = grown(Refused::Late) + grown(Refused::Replayed) + unproven;
        assert!(ignored + 2 >= count, "seed {seed}: {ignored} of {count}");
        assert!(count > 10);
    }
}

/// Whoever sends recorded datagrams with a false sender does not make a node send more to that one.
#[test]
fn no_datagram_is_answered_with_more_than_it_has() {
    let mut network = Network::new(7);
    network.capture();
    for _ in 0..3 {
        network.add_node();
    }
    reach(&mut network, 7, 15, |network| network.agrees_on(3));
    network.run_for(secs(3));
    let recorded = network.capture();
    // Nobody is at the victim's address; the other node is gone, so that nothing else is said.
    network.kill(0);
    network.kill(1);
    network.kill(2);
    network.local(0).memory = overlay::gossip::Memory::default();
    network.start(0);
    network.run_for(secs(20));
    let (victim, to): (SocketAddr, _) = ("198.18.9.9:7946".parse().unwrap(), network.address(0));
    let mut answered = 0;
    for (_, _, datagram) in recorded {
        network.capture();
        let len = datagram.len();
        network.inject(victim, to, datagram);
        network.run_for(Duration::from_millis(150));
        let answers = network.capture();
        let sent: usize =
            answers.iter().filter(|(_, to, _)| *to == victim).map(|(_, _, d)| d.len()).sum();
        assert!(sent <= len, "{sent} bytes for {len}");
        answered += usize::from(sent > 0);
    }
    assert!(answered > 50, "{answered}");
}

/// No two datagrams are ever sealed under one key, session and counter: whatever disk a node starts from.
#[test]
fn no_nonce_is_used_twice_whatever_disk_a_node_starts_from() {
    for seed in seeds(10) {
        let mut network = Network::new(seed);
        network.capture();
        for _ in 0..3 {
            network.add_node();
        }
        reach(&mut network, seed, 15, |network| network.agrees_on(3));
        let snapshot = network.disk(1).clone();
        let mut captured = network.capture();
        for _ in 0..4 {
            network.kill(1);
            *network.disk(1) = snapshot.clone();
            network.start(1);
            network.run_for(secs(4));
        }
        network.set_keys(0, ring(&[0, 1]));
        network.run_for(secs(2));
        captured.extend(network.capture());
        let mut seen = BTreeSet::new();
        for (_, _, datagram) in &captured {
            // Key, network, session and counter, as in `seal/cipher.rs`.
            assert!(seen.insert(datagram[2..38].to_vec()), "seed {seed}");
        }
        assert!(seen.len() > 300);
    }
}

/// Nobody believes a changed datagram, whichever bit was changed.
#[test]
fn a_changed_bit_anywhere_is_refused() {
    let mut network = Network::new(5);
    network.capture();
    network.add_node();
    network.add_node();
    reach(&mut network, 5, 15, |network| network.agrees_on(2));
    let (from, to) = (network.address(1), network.address(0));
    let recorded = network.capture();
    let (_, _, datagram) =
        recorded.iter().rev().find(|(f, t, _)| (*f, *t) == (from, to)).unwrap().clone();
    for bit in 0..datagram.len() * 8 {
        let before = network.gossip(0).unwrap().counters().clone();
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        network.inject(from, to, changed);
        // Half a round trip: nothing else is in between often enough to hide a missing refusal.
        network.run_for(Duration::from_millis(3));
        let after = network.gossip(0).unwrap().counters();
        let refused = |counters: &overlay::gossip::Counters| counters.refused.values().sum::<u64>();
        assert!(refused(after) > refused(&before), "bit {bit}");
        assert_eq!(after.unproven, before.unproven, "bit {bit}");
    }
}

/// How long a daemon runs until `weft key` relies on its map.
const UPTIME_MIN: Duration = Duration::from_secs(10);

/// Someone who changes the keys of one node after the other, as `weft key` permits it.
struct Operator {
    rng: StdRng,
}

impl Operator {
    /// Does the next step at a node, if `weft key` would; tells whether the node has ended its rotation.
    fn step(network: &mut Network, ix: usize) -> bool {
        let keys = network.keys(ix).unwrap().ids();
        let Some(map) = network.map(ix) else { return keys == [id(1)] };
        let up = network.elapsed() - network.started(ix);
        if keys != [id(0)] && up < UPTIME_MIN {
            return false;
        }
        let alive: Vec<_> =
            map.members.values().filter(|m| m.state.is_active()).map(|m| m.keys.clone()).collect();
        if keys == [id(0)] {
            network.set_keys(ix, ring(&[0, 1]));
        } else if keys[0] == id(0) {
            if alive.iter().all(|keys| keys.contains(&id(1))) {
                network.set_keys(ix, ring(&[1, 0]));
            }
        } else if keys.len() == 2 && alive.iter().all(|keys| keys[0] == id(1)) {
            network.set_keys(ix, ring(&[1]));
        }
        network.keys(ix).unwrap().ids() == [id(1)]
    }

    fn pause(&mut self, network: &mut Network) {
        network.run_for(Duration::from_millis(self.rng.random_range(5..700)));
    }
}

/// Nodes join, leave, sleep and are killed while the keys are changed over a bad wire, and not one message
/// is refused for its seal.
#[test]
fn keys_are_changed_without_one_refused_message() {
    for seed in seeds(40) {
        let mut network = agreed(seed, 6);
        network.faults.loss = 0.1;
        network.faults.delay = Duration::from_micros(200)..Duration::from_millis(30);
        let mut operator = Operator { rng: StdRng::seed_from_u64(seed) };
        let mut away = None;
        let mut left = false;
        let mut done = BTreeSet::new();
        for turn in 0..2000 {
            operator.pause(&mut network);
            let nodes = 6 + usize::from(turn >= 12);
            match turn {
                // Restarted at once, and killed and gone for a while.
                4 => {
                    network.kill(1);
                    network.start(1);
                }
                8 => {
                    network.kill(2);
                    away = Some(2);
                }
                // A new node gets the key file of one that is there.
                12 => {
                    network.keys = network.keys(0).cloned();
                    network.add_node();
                }
                16 => {
                    network.leave(3);
                    left = true;
                }
                30 => {
                    network.start(2);
                    network.start(3);
                    away = None;
                    left = false;
                    reach(&mut network, seed, 20, |network| network.agrees_on(7));
                }
                _ => {}
            }
            // The former key is removed when all are back: nobody is to be locked out here.
            let ix = operator.rng.random_range(0..nodes);
            let is_away = away == Some(ix) || (left && ix == 3);
            let ends = network.keys(ix).unwrap().ids() == [id(1), id(0)];
            if !is_away && (turn > 30 || !ends) && Operator::step(&mut network, ix) {
                done.insert(ix);
            }
            if done.len() == 7 {
                break;
            }
        }
        assert_eq!(done.len(), 7, "seed {seed}: the rotation ends");
        network.run_for(secs(5));
        network.faults.loss = 0.0;
        reach(&mut network, seed, 10, |network| network.agrees_on(7));
        for ix in 0..7 {
            for reason in SEAL {
                assert_eq!(refused(&network, ix, reason), 0, "seed {seed}, node {ix}: {reason:?}");
            }
            assert_eq!(network.gossip(ix).unwrap().keys(), [id(1)]);
        }
    }
}

#[test]
fn a_node_that_was_away_returns_with_its_old_key_and_is_locked_out_when_that_is_removed() {
    for seed in seeds(30) {
        let mut network = agreed(seed, 5);
        let lease = network.held(3);
        network.kill(3);
        reach(&mut network, seed, 15, |network| {
            (0..5).filter(|ix| *ix != 3).all(|ix| state(network, ix, 3) == Some(MemberState::Dead))
        });
        for keys in [ring(&[0, 1]), ring(&[1, 0])] {
            for ix in [0, 1, 2, 4] {
                network.set_keys(ix, keys.clone());
                network.run_for(Duration::from_millis(300));
            }
        }
        // One of those that stay has lost all sessions and what it knew of the keys of others.
        network.kill(0);
        network.start(0);
        network.run_for(secs(2));
        network.start(3);
        reach(&mut network, seed, 10, |network| network.agrees_on(5));
        assert_eq!(network.held(3), lease, "seed {seed}");
        network.run_for(secs(20));
        assert!(network.agrees_on(5), "seed {seed}: it stays a member");

        for ix in [0, 1, 2, 4] {
            network.set_keys(ix, ring(&[1]));
        }
        let removed = network.elapsed();
        reach(&mut network, seed, 12, |network| {
            [0, 1, 2, 4].into_iter().all(|ix| state(network, ix, 3) == Some(MemberState::Dead))
        });
        assert!(network.elapsed() - removed <= secs(10), "seed {seed}");
        // Nor does it come back, or hear anything any more.
        network.run_for(secs(60));
        for ix in [0, 1, 2, 4] {
            assert_eq!(state(&network, ix, 3), Some(MemberState::Dead), "seed {seed}");
            assert_eq!(state(&network, 3, ix), Some(MemberState::Dead), "seed {seed}");
        }
        assert!(refused(&network, 3, Refused::UnknownKey) > 0, "seed {seed}");

        network.set_keys(3, ring(&[1]));
        reach(&mut network, seed, 40, |network| network.agrees_on(5));
        assert_eq!(network.held(3), lease, "seed {seed}");
    }
}

/// Who was locked out returns as soon as it has a key of the others, also before that is the one that it uses,
/// and though all that it knows of their keys is old.
#[test]
fn a_node_that_was_locked_out_returns_with_any_key_of_the_others() {
    for seed in seeds(30) {
        let mut network = agreed(seed, 3);
        for ix in [0, 1] {
            network.set_keys(ix, ring(&[1, 0]));
        }
        network.run_for(Duration::from_millis(300 * (seed % 5)));
        for ix in [0, 1] {
            network.set_keys(ix, ring(&[1]));
        }
        reach(&mut network, seed, 12, |network| {
            [0, 1].into_iter().all(|ix| state(network, ix, 2) == Some(MemberState::Dead))
        });
        network.run_for(secs(20));
        network.set_keys(2, ring(&[0, 1]));
        reach(&mut network, seed, 40, |network| network.agrees_on(3));
        network.run_for(secs(20));
        assert!(network.agrees_on(3), "seed {seed}");
    }
}

/// A machine that is copied while it runs goes on with the same session; with the next one, others hear it
/// again. Nothing is lost when a session is renewed.
#[test]
fn a_renewed_session_is_believed_at_once() {
    for seed in seeds(20) {
        let mut network = agreed(seed, 4);
        network.run_for(secs(3));
        let before: Vec<_> = (0..4).map(|ix| refused_by_seal(&network, ix)).collect();
        for round in 0..3 {
            for ix in 0..4 {
                network.renew_session(ix);
                network.run_for(Duration::from_millis(200 * round));
            }
        }
        network.run_for(secs(10));
        assert!(network.agrees_on(4), "seed {seed}");
        for (ix, before) in before.into_iter().enumerate() {
            assert_eq!(refused_by_seal(&network, ix), before, "seed {seed}");
            let suspected = network
                .events(ix)
                .iter()
                .any(|(_, event)| matches!(event, overlay::gossip::Event::MemberDown { .. }));
            assert!(!suspected, "seed {seed}");
        }
    }
}

fn refused_by_seal(network: &Network, ix: usize) -> u64 {
    SEAL.into_iter().map(|reason| refused(network, ix, reason)).sum()
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = |seed| {
        let mut network = Network::new(seed);
        network.capture();
        for _ in 0..3 {
            network.add_node();
        }
        network.run_for(secs(5));
        network.set_keys(0, ring(&[0, 1]));
        network.kill(1);
        network.start(1);
        network.run_for(secs(5));
        network.capture()
    };
    assert!(run(5) == run(5));
    assert!(run(5) != run(6));
}
