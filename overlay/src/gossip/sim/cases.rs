//! What a cluster is put through.
//!
//! Each case is a few lines that say what happens; the seed decides on who and when. At its end everything
//! is mended, and all nodes must agree. The promises are looked at after every single step, see
//! [`super::watch`].

use std::time::Duration;

use super::Faults;
use super::trial::Trial;

/// Something that happens to clusters.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    /// What to do.
    pub script: fn(&mut Trial),
    /// It is run with one seed where others are run with so many.
    pub costs: u64,
}

impl Case {
    /// How many seeds it is run with where others are run with `seeds`.
    pub fn seeds(&self, seeds: u64) -> u64 {
        seeds.div_ceil(self.costs)
    }
}

/// All cases.
pub const CASES: &[Case] = &[
    Case {
        name: "split",
        about: "3|2 for less than it takes to notice, or a little more, then together again",
        script: |t| {
            t.start(5);
            t.agree();
            let order = t.shuffled(5);
            t.split(&order[..2]);
            t.wait_about(1..9);
            t.heal();
            t.agree();
        },
        costs: 1,
    },
    Case {
        name: "split_long",
        about: "3|2 until everybody is dead to the other side",
        script: |t| {
            t.start(5);
            t.agree();
            let order = t.shuffled(5);
            t.split(&order[..2]);
            t.wait_about(12..40);
            t.heal();
            t.agree();
        },
        costs: 1,
    },
    Case {
        name: "split_grow",
        about: "3|2, nodes are added on both sides, few subnets are free",
        script: |t| {
            t.range_of(16);
            t.start(5);
            t.agree();
            let order = t.shuffled(5);
            t.split(&order[..2]);
            t.wait_about(0..10);
            let far = [t.join_by(&order[..1]), t.join_by(&order[1..2])];
            t.split(&[order[0], order[1], far[0], far[1]]);
            t.join_by(&order[2..3]);
            t.join_by(&order[3..4]);
            t.wait_about(3..20);
            t.heal();
            t.agree();
        },
        costs: 1,
    },
    Case {
        name: "split_restart",
        about: "3|2, everybody on both sides is restarted while it lasts",
        script: |t| {
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
        },
        costs: 1,
    },
];

/// The case of that name.
pub fn find(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

/// Losses, jitter and everything.
const BAD_WEATHER: Faults = Faults {
    loss: 0.3,
    duplication: 0.0,
    corruption: 0.0,
    delay: Duration::ZERO..Duration::from_millis(200),
    disk: Duration::ZERO..Duration::ZERO,
};
