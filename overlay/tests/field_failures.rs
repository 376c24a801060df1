//! Failures of other overlays, as their users reported them, replayed step by step.
//!
//! Each test tells what happened there, and what happens here instead. It runs with many seeds; a failing
//! one is named in the message.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use overlay::gossip::Event;
use overlay::gossip::sim::cases::Case;
use overlay::gossip::sim::sweep::sweep;
use overlay::gossip::sim::trial::Trial;
use overlay::subnet::{Conflict, MemberState};

/// Runs a script with many seeds, `WEFT_SIM_FACTOR` times as many as usual. The promises I1 to I6 are
/// looked at after every step, and in the end all must agree.
fn replay(name: &'static str, script: fn(&mut Trial)) {
    let factor: u64 = std::env::var("WEFT_SIM_FACTOR")
        .map_or(1, |factor| factor.parse().expect("WEFT_SIM_FACTOR is a number"));
    let case = Case { name, about: "", costs: 1, script };
    let jobs = std::thread::available_parallelism().map_or(1, Into::into);
    let sum = sweep(&case, 0..40 * factor, jobs, |_| {});
    let failures: Vec<_> =
        sum.failures.iter().map(|(seed, what)| format!("seed {seed}: {what}")).collect();
    assert!(failures.is_empty(), "{name}\n{}", failures.join("\n"));
}

fn has_event(t: &Trial, node: usize, is: impl Fn(&Event) -> bool) -> bool {
    t.network.events(node).iter().any(|(_, event)| is(event))
}

fn state(t: &Trial, of: usize, at: usize) -> Option<MemberState> {
    let id = t.network.id(of);
    t.network.map(at)?.members.get(&id).map(|member| member.state)
}

/// <https://github.com/flannel-io/flannel/issues/1289>
///
/// There: (1) node A is suspended for longer than its lease lives. (2) The lease expires in etcd. (3) Node B
/// starts and is given A's subnet. (4) A wakes up, finds its `subnet.env`, and takes the subnet back,
/// because it only looks at what it wrote itself. (5) Both have the subnet. (6) Pods of both have the same
/// addresses, until somebody restarts things by hand.
///
/// Here: A asks before it uses what it had, learns that B's claim has a higher epoch, gives the subnet up,
/// says so (`lease-lost`), and takes another one.
#[test]
fn flannel_1289_a_node_that_slept_over_its_lease_does_not_take_it_back() {
    replay("flannel_1289", |t| {
        t.range_of(4);
        t.start(4);
        t.agree();
        let order = t.shuffled(4);
        let (a, subnet) = (order[0], t.held(order[0]));
        t.sleep(&[a]);
        t.wait_about(12..20);
        let b = t.join_by(&order[1..2]);
        t.agree();
        t.expect(t.held(b) == subnet, "B is given A's subnet");
        t.leave(&order[3..]);
        t.wait(2);
        t.wake(&[a]);
        t.agree();
        t.expect(t.held(b) == subnet, "B keeps it");
        t.expect(t.held(a) != subnet && t.held(a).len() == 1, "A has another one");
        let told = has_event(t, a, |event| matches!(event, Event::LeaseLost { held: true, .. }));
        t.expect(told, "A says that it lost it");
    });
}

/// <https://github.com/flannel-io/flannel/issues/1343>
///
/// There: a node's `subnet.env` outlives its lease (the machine was off, or came from an image); at its next
/// start the node insists on the subnet in the file, though another node has it now.
///
/// Here: what the disk remembers carries the epoch of the claim that won it. It is not used before somebody
/// was asked, and it loses against every later claim.
#[test]
fn flannel_1343_a_remembered_subnet_loses_against_a_later_claim() {
    replay("flannel_1343", |t| {
        t.range_of(4);
        t.start(3);
        t.agree();
        let order = t.shuffled(3);
        let (a, subnet) = (order[0], t.held(order[0]));
        let old = t.snapshot(a);
        t.kill(&[a]);
        t.wait_about(10..20);
        let heirs = [t.join_by(&order[1..2]), t.join_by(&order[1..2])];
        t.agree();
        let heir = heirs.into_iter().find(|heir| t.held(*heir) == subnet);
        t.expect(heir.is_some(), "somebody is given A's subnet");
        t.restore(a, old);
        t.agree();
        t.expect(heir.is_some_and(|heir| t.held(heir) == subnet), "who has it keeps it");
        t.expect(t.held(a) != subnet, "A has another one, or none");
    });
}

/// <https://github.com/flannel-io/flannel/issues/805>
///
/// There: the daemon could not renew its lease in time (etcd was slow); the lease expired and went to
/// another node while the first one went on using it, without a word in its log.
///
/// Here: nothing needs renewing. A node that the others cannot reach keeps its subnet as long as there is
/// another one to give away; if there is none and it does lose it, it is told as soon as it can be, and says
/// so.
#[test]
fn flannel_805_a_node_that_cannot_be_heard_keeps_its_subnet_while_others_are_free() {
    replay("flannel_805", |t| {
        t.start(4);
        t.agree();
        let order = t.shuffled(4);
        let (a, subnet) = (order[0], t.held(order[0]));
        t.split(&[a]);
        t.wait_about(30..90);
        let b = t.join_by(&order[1..2]);
        t.wait(5);
        t.expect(t.held(b) != subnet, "the newcomer has another one");
        t.expect(t.held(a) == subnet, "A goes on with its own");
        t.heal();
        t.agree();
        t.expect(t.held(a) == subnet, "and afterwards, too");
        let lost = has_event(t, a, |event| matches!(event, Event::LeaseLost { .. }));
        t.expect(!lost, "nothing was lost");
    });
}

/// <https://github.com/weaveworks/weave/issues/3310>
///
/// There: after a peer's disk was restored or its address reused, the others received an "update for IP range
/// I own", refused the connection, and did so for ever: a dispute about one range ended gossip about all.
///
/// Here: a dispute is decided by the two claims themselves, alike on every node. Gossip goes on in it, routes
/// between the others do not change (I5), and it is over as soon as both have heard of each other.
#[test]
fn weave_3310_a_dispute_about_one_subnet_ends_nothing_else() {
    replay("weave_3310", |t| {
        t.start(5);
        t.agree();
        let order = t.shuffled(5);
        let (a, b, subnet) = (order[0], order[1], t.held(order[0]));
        let mut stolen = t.snapshot(b);
        stolen.leases.clone_from(&t.snapshot(a).leases);
        t.restore(b, stolen);
        t.agree();
        let owners = [a, b].into_iter().filter(|node| t.held(*node) == subnet).count();
        t.expect(owners == 1, "one of them has it");
        t.expect(t.held(a).len() == 1 && t.held(b).len() == 1, "the other one has another");
        for node in &order[2..] {
            for other in &order {
                t.expect(state(t, *other, *node) == Some(MemberState::Alive), "nobody is cut off");
            }
        }
    });
}

/// <https://github.com/weaveworks/weave/issues/2084>
///
/// There: a machine was set back to an old snapshot. Its ring of addresses was older than what its peers
/// knew of it; they rejected its updates, and it could not join again until all state was removed.
///
/// Here: its peers tell it how far its own record had come, it goes above that (`memory-recovered`), and
/// takes back what they remember of it.
#[test]
fn weave_2084_a_node_whose_disk_was_set_back_joins_again() {
    replay("weave_2084", |t| {
        t.start(4);
        t.agree();
        let node = t.any(0..4);
        let subnet = t.held(node);
        let old = t.snapshot(node);
        for _ in 0..3 {
            t.wait_about(1..4);
            t.restart(&[node]);
        }
        t.agree();
        t.restore(node, old);
        t.agree();
        t.expect(t.held(node) == subnet, "it has its subnet");
        let told = has_event(t, node, |event| matches!(event, Event::MemoryRecovered { .. }));
        t.expect(told, "it says that the others knew more");
    });
}

/// <https://github.com/projectcalico/libcalico-go/issues/778>
///
/// There: two processes claimed one block of addresses at the same time, each in two steps of which only the
/// first was guarded. Both believed to own it, and gave the same addresses to different pods.
///
/// Here: a claim is announced first, and held after nobody has objected and it is on disk; of claims at the
/// same time one wins everywhere. No address is ever used twice (I1), however narrow the range.
#[test]
fn calico_778_of_two_claims_at_once_one_is_granted() {
    replay("calico_778", |t| {
        t.range_of(4);
        t.start(4);
        t.agree();
        let mut subnets: Vec<_> = (0..4).flat_map(|node| t.held(node)).collect();
        subnets.sort_unstable();
        subnets.dedup();
        t.expect(subnets.len() == 4, "four nodes have four subnets");
        t.expect(!has_event(t, 0, is_lease_conflict), "nobody has ever seen two holders");
    });
}

fn is_lease_conflict(event: &Event) -> bool {
    matches!(event, Event::Conflict(Conflict::Lease { .. }))
}

/// <https://github.com/hashicorp/serf/issues/605>
///
/// There: after a partition in which both sides had declared each other dead, and had forgotten each other,
/// nothing ever tried the other side again: two clusters stayed, until somebody ran `join`.
///
/// Here: the dead are dialled for ever, and so are seeds. Any partition of any length heals by itself.
#[test]
fn serf_605_a_partition_heals_by_itself_however_long_it_was() {
    replay("serf_605", |t| {
        t.slow_motion(10);
        t.network.config.lease.hold_s = 0;
        t.heal_within(400);
        t.start(5);
        t.agree();
        let order = t.shuffled(5);
        t.split(&order[..2]);
        // Longer than the dead are remembered, in some of the runs.
        t.wait_about(60..5000);
        let apart = state(t, order[0], order[4]).is_none_or(|state| !state.is_active());
        t.expect(apart, "the sides are dead to each other");
        t.heal();
        t.agree();
    });
}
