//! What a cluster is put through.
//!
//! Each case is a few lines that say what happens; the seed decides on who and when. At its end everything
//! is mended, and all nodes must agree. The promises are looked at after every single step, see
//! [`super::watch`].

use std::time::Duration;

use super::Faults;
use super::trial::Trial;
use crate::gossip::Event;

/// Something that happens to clusters.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    /// It is run with one seed where the others are run with so many, because it takes so long.
    pub costs: u64,
    /// What to do.
    pub script: fn(&mut Trial),
}

impl Case {
    /// How many seeds it is run with where the others are run with `seeds`.
    pub fn seeds(&self, seeds: u64) -> u64 {
        seeds.div_ceil(self.costs)
    }
}

/// The case of that name.
pub fn find(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

const fn case(name: &'static str, about: &'static str, script: fn(&mut Trial)) -> Case {
    Case { name, about, costs: 1, script }
}

/// All cases.
pub const CASES: &[Case] = &[
    // Partitions.
    case("split", "3|2 for less than it takes to notice, or a little more", |t| {
        t.start(5);
        t.agree();
        let order = t.shuffled(5);
        t.split(&order[..2]);
        t.wait_about(1..9);
        t.heal();
        t.agree();
    }),
    case("split_long", "3|2 until everybody is dead to the other side", |t| {
        t.start(5);
        t.agree();
        let order = t.shuffled(5);
        t.split(&order[..2]);
        t.wait_about(12..40);
        t.heal();
        t.agree();
    }),
    case("split_grow", "3|2, both sides grow though few subnets are free", |t| {
        t.range_of(16);
        t.start(5);
        t.agree();
        let order = t.shuffled(5);
        t.split(&order[..2]);
        t.wait_about(0..10);
        let near = [t.join_by(&order[..1]), t.join_by(&order[1..2])];
        t.split(&[order[0], order[1], near[0], near[1]]);
        t.join_by(&order[2..3]);
        t.join_by(&order[3..4]);
        t.wait_about(3..20);
        t.heal();
        t.agree();
    }),
    case("split_restart", "3|2, and everybody is restarted while it lasts", |t| {
        t.heal_within(45);
        t.start(5);
        t.agree();
        let order = t.shuffled(5);
        t.split(&order[..2]);
        t.wait_about(5..15);
        t.kill(&order);
        t.wait_about(0..3);
        t.revive(&order);
        t.wait_about(5..30);
        t.heal();
        t.agree();
    }),
    case("one_way_link", "nothing gets from one node to one other", |t| {
        t.start(5);
        t.agree();
        let order = t.shuffled(5);
        t.cut(order[0], order[1]);
        t.wait_about(5..60);
        t.nobody_died();
    }),
    case("flapping_links", "every few seconds other nodes are cut off", |t| {
        t.start(5);
        t.agree();
        for _ in 0..12 {
            let order = t.shuffled(5);
            match t.any(0..4) {
                0 => t.split(&order[..1]),
                1 => t.split(&order[..2]),
                2 => t.cut(order[0], order[1]),
                _ => t.heal(),
            }
            t.wait_ms(200..6000);
        }
    }),
    case("split_in_three", "three sides, each of which goes on, then two heals", |t| {
        t.start(6);
        t.agree();
        let order = t.shuffled(6);
        t.split(&order[..2]);
        t.split(&order[2..4]);
        t.wait_about(5..20);
        t.heal();
        t.split(&order[..2]);
        t.wait_about(1..20);
        t.heal();
        t.agree();
    }),
    // Nodes that were away.
    case("sleeper", "a node sleeps until its subnet is another's, and wakes up", |t| {
        t.range_of(4);
        t.start(4);
        t.agree();
        let order = t.shuffled(4);
        let (sleeper, subnet) = (order[0], t.held(order[0]));
        t.sleep(&[sleeper]);
        t.wait_about(12..25);
        let heir = t.join_by(&order[1..2]);
        t.agree();
        t.expect(t.held(heir) == subnet, "the newcomer has the sleeper's subnet");
        t.wake(&[sleeper]);
        t.wait(12);
        t.expect(t.held(heir) == subnet, "the newcomer keeps it");
        t.expect(t.held(sleeper).is_empty(), "the sleeper has given it up");
    }),
    case(
        "clock_jumps",
        "one node's clock jumps ahead by a day, another's is set back by one",
        |t| {
            t.start(5);
            t.agree();
            let order = t.shuffled(5);
            t.jump(order[0], DAY_S);
            t.wait_about(0..10);
            t.set_back(order[1], DAY_S);
            t.wait_about(0..10);
            t.jump(order[1], DAY_S);
            t.wait_about(0..10);
            t.nobody_died();
        },
    ),
    case(
        "old_snapshot",
        "a disk is set back to a copy that knows a lease which is another's now",
        |t| {
            t.range_of(4);
            t.start(3);
            t.agree();
            let order = t.shuffled(3);
            let (returner, subnet) = (order[0], t.held(order[0]));
            let copy = t.snapshot(returner);
            t.kill(&[returner]);
            t.wait_about(10..20);
            let heirs = [t.join_by(&order[1..2]), t.join_by(&order[2..3])];
            t.agree();
            t.expect(heirs.iter().any(|heir| t.held(*heir) == subnet), "one has the subnet");
            t.restore(returner, copy);
            t.wait_about(5..15);
            t.expect(heirs.iter().any(|heir| t.held(*heir) == subnet), "it keeps it");
        },
    ),
    case("set_back", "disks are set back to older copies again and again", |t| {
        t.start(4);
        t.agree();
        let node = t.any(0..4);
        let subnet = t.held(node);
        let copy = t.snapshot(node);
        for _ in 0..4 {
            t.wait_about(0..8);
            match t.any(0..3) {
                0 => t.restart(&[node]),
                _ => t.restore(node, copy.clone()),
            }
        }
        t.agree();
        t.expect(t.held(node) == subnet, "it has its subnet all the time");
    }),
    case("lost_disk", "nodes lose their disks, and have their subnets back from the others", |t| {
        t.start(5);
        t.agree();
        let order = t.shuffled(5);
        let subnets = [t.held(order[0]), t.held(order[1])];
        t.kill(&order[..2]);
        t.wait_about(0..15);
        t.wipe(&order[..2]);
        t.revive(&order[..2]);
        t.agree();
        let again = [t.held(order[0]), t.held(order[1])];
        t.expect(again == subnets, "they have their subnets back");
    }),
    case(
        "long_gone",
        "a node dies while another sleeps for longer than the dead are remembered",
        |t| {
            t.slow_motion(20);
            t.network.config.lease.hold_s = 0;
            t.heal_within(300);
            t.start(4);
            t.agree();
            let order = t.shuffled(4);
            t.sleep(&order[..1]);
            t.wait_about(0..60);
            t.kill(&order[1..2]);
            t.wait_about(3900..9000);
            t.wake(&order[..1]);
            t.wait_about(200..400);
        },
    ),
    // Identities.
    case("cloned_disk", "a second machine starts with a copy of a node's disk", |t| {
        t.start(4);
        t.agree();
        let node = t.any(0..4);
        let clone = t.clone_of(node);
        t.wait_about(10..30);
        t.expect(t.is_suspended(clone), "the one with the higher address stands down");
        t.expect(!t.is_suspended(node), "the other one goes on");
        if t.chance(0.5) {
            t.kill(&[clone]);
            t.wait_about(30..40);
        } else {
            t.kill(&[node]);
            t.wait_about(35..60);
            t.expect(!t.is_suspended(clone), "left alone with the id, it goes on with it");
            t.revive(&[node]);
            t.wait_about(10..30);
            t.expect(t.is_suspended(clone), "and stands down again");
        }
    }),
    case(
        "one_address_everywhere",
        "all newcomers have one underlay address, such as 10.0.2.15, and are corrected one by one",
        |t| {
            t.start(1);
            let mut newcomers = Vec::new();
            for _ in 0..3 {
                let mut local = t.network.next_local();
                let own = std::mem::replace(&mut local.underlay, [10, 0, 2, 15].into());
                newcomers.push((t.join_as(local, &[0]), own));
            }
            t.wait_about(5..40);
            for (node, own) in newcomers {
                t.kill(&[node]);
                t.network.local(node).underlay = own;
                t.wait_about(0..15);
                t.revive(&[node]);
            }
        },
    ),
    case("one_address_twice", "a newcomer has another's underlay address, and is corrected", |t| {
        t.start(4);
        t.agree();
        let mut double = t.network.next_local();
        let own = double.underlay;
        double.underlay = t.network.address(2).ip();
        let double = t.join_as(double, &[0]);
        t.wait_about(5..30);
        t.kill(&[double]);
        t.network.local(double).underlay = own;
        t.wait_about(10..20);
        t.revive(&[double]);
    }),
    case("address_moves", "a node comes back with another underlay address", |t| {
        t.start(4);
        t.agree();
        let node = t.any(1..4);
        let subnet = t.held(node);
        t.kill(&[node]);
        t.wait_about(0..12);
        t.network.local(node).underlay = [198, 18, 7, 7].into();
        t.revive(&[node]);
        t.agree();
        t.expect(t.held(node) == subnet, "it takes its subnet along");
    }),
    case("born_apart", "two clusters that never heard of each other meet", |t| {
        t.range_of(16);
        t.start(3);
        t.enter_by(&[3]);
        t.split(&[0, 1, 2]);
        t.start(3);
        t.wait_about(15..30);
        t.agree();
        t.heal();
        t.wait_about(0..5);
        t.join_by(&[0, 3]);
        t.agree();
        let joined = t.count(|event| matches!(event, Event::ClusterJoined { .. }));
        t.expect(joined == 3, "one cluster goes over to the other, and each node of it says so");
    }),
    // Weather.
    Case {
        name: "hour_of_losses",
        about: "an hour with 30 % of all datagrams lost, and up to 200 ms of delay: nobody dies",
        costs: 60,
        script: |t| losses(t, 3600),
    },
    case("minute_of_losses", "the same for a minute, and nodes come and restart in it", |t| {
        losses(t, 60);
    }),
    case("storm", "half of all datagrams arrive twice, and up to half a second late", |t| {
        t.start(4);
        t.agree();
        t.weather(Faults { duplication: 0.5, delay: ms(0)..ms(500), ..Faults::default() });
        let order = t.shuffled(4);
        t.join_by(&order[..1]);
        t.restart(&order[1..2]);
        t.wait_about(0..5);
        t.leave(&order[2..3]);
        t.wait_about(5..20);
        t.revive(&order[2..3]);
        t.wait_about(5..10);
    }),
    case("garbage", "a third of all datagrams is damaged", |t| {
        t.start(3);
        t.agree();
        t.weather(Faults { corruption: 0.3, ..Faults::default() });
        let order = t.shuffled(3);
        t.restart(&order[..1]);
        t.join_by(&order[1..2]);
        t.wait_about(10..30);
    }),
    case("slow_node", "one node stands still for a second, again and again: nobody dies", |t| {
        t.start(5);
        t.agree();
        let node = t.any(0..5);
        for _ in 0..15 {
            t.stutter(node, 900..1100);
            t.wait_ms(100..2000);
        }
        t.nobody_died();
    }),
    // Comings and goings.
    case("leave_and_reuse", "a node leaves, and the next one has its subnet", |t| {
        t.range_of(4);
        t.start(4);
        t.agree();
        let order = t.shuffled(4);
        let subnet = t.held(order[0]);
        t.leave(&order[..1]);
        t.wait_ms(0..1000);
        let heir = t.join_by(&order[1..2]);
        t.agree();
        t.expect(t.held(heir) == subnet, "the newcomer has the leaver's subnet");
    }),
    case("exhausted", "more nodes than subnets, in a partition", |t| {
        t.range_of(4);
        t.start(4);
        t.agree();
        let order = t.shuffled(4);
        t.split(&order[..2]);
        t.wait_about(0..15);
        let near = t.join_by(&order[..1]);
        t.split(&[order[0], order[1], near]);
        t.join_by(&order[2..3]);
        t.wait_about(5..20);
        t.heal();
        t.agree();
    }),
    case("claim_race", "more nodes than subnets start at once", |t| {
        t.range_of(8);
        t.start(10);
        t.agree();
    }),
    case("seeds_dead", "the seed is gone for ever, and everybody else is restarted", |t| {
        t.heal_within(45);
        t.start(5);
        t.agree();
        t.wait_about(2..10);
        t.kill(&[0]);
        t.wait_about(0..15);
        let others = [1, 2, 3, 4];
        t.kill(&others);
        t.wait_about(0..5);
        t.revive(&others);
        t.wait_about(0..10);
        t.join_by(&[0, 3]);
        t.agree();
    }),
    case("chain", "each node knows only the one before it; some are restarted", |t| {
        t.join();
        for ix in 1..6 {
            t.join_by(&[ix - 1]);
            t.wait_ms(0..2000);
        }
        t.agree();
        let order = t.shuffled(6);
        t.restart(&order[..3]);
    }),
    case(
        "star",
        "the only seed is killed, loses its disk and comes back, while others come",
        |t| {
            t.heal_within(45);
            t.start(4);
            t.agree();
            t.kill(&[0]);
            t.wait_about(0..12);
            t.join();
            t.wait_about(0..10);
            if t.chance(0.5) {
                t.wipe(&[0]);
            }
            t.revive(&[0]);
            t.join();
            t.agree();
        },
    ),
    case("mass_restart", "the power fails: all come back in any order, within some seconds", |t| {
        t.heal_within(45);
        t.start(6);
        t.agree();
        t.wait_about(0..5);
        let order = t.shuffled(6);
        t.kill(&order);
        for node in order {
            t.wait_ms(0..3000);
            t.revive(&[node]);
        }
        t.agree();
    }),
    case("rolling_restart", "one after the other is restarted, faster than anybody notices", |t| {
        t.start(5);
        t.agree();
        for node in t.shuffled(5) {
            t.kill(&[node]);
            t.wait_ms(0..1500);
            t.revive(&[node]);
            t.wait_ms(0..1500);
        }
    }),
    // A change of keys in the midst of all that.
    case("rotate_split", "3|2 while the keys are changed", |t| {
        rotating(t, |t, order| {
            t.split(&order[..2]);
            t.wait_about(1..9);
        });
    }),
    case(
        "rotate_split_long",
        "3|2 until all are dead to the other side, while the keys are changed",
        |t| {
            rotating(t, |t, order| {
                t.split(&order[..2]);
                t.wait_about(12..30);
            });
        },
    ),
    case("rotate_split_grow", "3|2 while the keys are changed, and both sides grow", |t| {
        rotating(t, |t, order| {
            t.split(&order[..2]);
            t.wait_about(0..6);
            let near = t.join_by(&order[..1]);
            t.split(&[order[0], order[1], near]);
            t.join_by(&order[2..3]);
            t.wait_about(3..10);
        });
    }),
    case(
        "rotate_split_restart",
        "3|2 while the keys are changed, and everybody is restarted",
        |t| {
            t.heal_within(45);
            rotating(t, |t, order| {
                t.split(&order[..2]);
                t.wait_about(0..10);
                t.kill(order);
                t.wait_about(0..3);
                t.revive(order);
                t.wait_about(5..15);
            });
        },
    ),
    case(
        "rotate_one_way",
        "nothing gets from one node to one other, while the keys are changed",
        |t| {
            rotating(t, |t, order| {
                t.cut(order[0], order[1]);
                t.wait_about(5..20);
            });
        },
    ),
    case(
        "rotate_sleeper",
        "a node sleeps while the others change their keys as far as they can",
        |t| {
            rotating(t, |t, order| {
                t.sleep(&order[..1]);
                t.wait_about(5..40);
                t.wake(&order[..1]);
            });
        },
    ),
    // Disks.
    case("full_disks", "disks refuse every write, while nodes come and claim", |t| {
        t.range_of(16);
        t.start(3);
        t.agree();
        let order = t.shuffled(3);
        t.full_disk(&order[..2], true);
        let (full, good) = (t.join(), t.join());
        t.full_disk(&[full], true);
        t.wait_about(0..20);
        t.restart(&order[..1]);
        t.leave(&[good]);
        t.wait_about(0..10);
        t.full_disk(&[order[0], order[1], full], false);
        t.wait(12);
    }),
    case("slow_disks", "writing takes up to two seconds, and nodes are killed in it", |t| {
        t.range_of(8);
        t.heal_within(30);
        t.weather(Faults { disk: ms(1)..ms(2000), ..Faults::default() });
        t.start(5);
        for _ in 0..6 {
            t.wait_ms(0..3000);
            let node = t.any(0..5);
            t.kill(&[node]);
            t.wait_ms(0..2000);
            t.revive(&[node]);
        }
    }),
    // Everything.
    case("anything", "thirty things by chance", anything),
    Case {
        name: "five_hundred",
        about: "500 nodes start at once and agree within 5 s",
        costs: 500,
        script: |t| {
            t.range_of(1024);
            t.heal_within(5);
            t.start(500);
            t.wait(5);
            t.agree();
        },
    },
];

const DAY_S: u64 = 86_400;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn rotating(t: &mut Trial, disturb: fn(&mut Trial, &[usize])) {
    t.start(5);
    t.agree();
    let order = t.shuffled(5);
    t.begin_rotation();
    t.wait_about(0..6);
    disturb(t, &order);
    t.heal();
    t.agree();
    t.end_rotation();
}

fn losses(t: &mut Trial, seconds: u64) {
    t.start(5);
    t.agree();
    t.weather(Faults { loss: 0.3, delay: ms(0)..ms(200), ..Faults::default() });
    t.wait(seconds);
    t.nobody_died();
}

fn anything(t: &mut Trial) {
    t.heal_within(45);
    t.range_of(16);
    let first = 2 + t.any(0..3);
    t.start(first);
    let mut nodes = first;
    let mut copy = None;
    for _ in 0..30 {
        let order = t.shuffled(nodes);
        let (one, some) = (order[0], &order[..=nodes / 2]);
        match t.any(0..16) {
            0 | 1 => t.kill(&[one]),
            2..=4 => t.revive(some),
            5 => t.leave(&[one]),
            6 => t.split(some),
            7 => t.cut(one, order[1]),
            8 | 9 => t.heal(),
            10 if nodes < 8 => {
                t.join_by(&order[..2]);
                nodes += 1;
            }
            11 => t.sleep(&[one]),
            12 => t.wake(&order),
            13 => t.full_disk(&[one], true),
            14 => t.full_disk(&order, false),
            15 => {
                let copied = t.snapshot(one);
                if let Some((node, copied)) = copy.replace((one, copied)) {
                    t.restore(node, copied);
                }
            }
            _ => t.weather(Faults { loss: 0.1, duplication: 0.1, ..Faults::default() }),
        }
        t.wait_ms(0..4000);
    }
    let all = t.shuffled(nodes);
    t.heal();
    t.full_disk(&all, false);
    t.wake(&all);
    t.revive(&all);
    t.wait(2);
    t.revive(&all);
}
