//! What is measured, described once: the clock (criterion, the files beside this directory) and the
//! instruction counter (`tests/bench/instructions.rs`) run the same rounds.
//!
//! | module | measures |
//! |---|---|
//! | [`pipeline`] | parsing, and `Switch::forward` in each direction |
//! | [`offload`] | cutting and coalescing |
//! | [`checksum`] | summing |
//! | [`tables`] | finding a route |
//! | [`service`] | `Switch::forward` with Services |
//! | [`policy`] | `Switch::forward` with policies |
//! | [`scale`] | `Switch::forward` as nodes, pods and flows grow |

#![allow(dead_code, unreachable_pub, reason = "each benchmark uses a part")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up must stop")]

pub mod checksum;
pub mod node;
pub mod offload;
pub mod packet;
pub mod pipeline;
pub mod policy;
pub mod scale;
pub mod service;
pub mod tables;

/// Work that can be done again and again.
pub trait Round {
    /// Makes ready for the next round. Not measured.
    fn prepare(&mut self);

    /// The work. Panics when its result is not what it should be.
    fn run(&mut self);
}

/// A kind of work, and how much of it there is in one [`Round`].
pub struct Workload {
    /// `group/what`; of the workloads that differ only in a number, `group/what/number`.
    pub name: String,
    /// How many frames, packets, sums or lookups a round handles: what the cost is divided by.
    pub units: u64,
    /// After so many rounds everything that the workload varies was seen.
    pub rounds: u64,
    make: Box<dyn Fn() -> Box<dyn Round> + Sync>,
}

impl Workload {
    /// Describes work whose every round is the same.
    pub fn new<R: Round + 'static>(
        name: impl Into<String>,
        units: usize,
        make: impl Fn() -> R + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            units: units as u64,
            rounds: 8,
            make: Box::new(move || Box::new(make())),
        }
    }

    /// The work, made ready and done twice, so that nothing is left to be done only once.
    pub fn warm(&self) -> Box<dyn Round> {
        let mut round = (self.make)();
        for _ in 0..2 {
            round.prepare();
            round.run();
        }
        round
    }
}

/// How the cost of a `scale` workload grows from its smallest number to its largest.
#[derive(Debug, Clone, PartialEq)]
pub struct Growth {
    /// The workloads' name without the number.
    pub what: String,
    /// The smallest number, and the cost of a unit.
    pub from: (u64, f64),
    /// The largest number, and the cost of a unit.
    pub to: (u64, f64),
}

impl Growth {
    /// The largest ratio of `to` to `from` that counts as flat.
    pub const MAX: f64 = 1.10;

    /// All growths in `costs`, which are names of workloads and what a unit costs.
    pub fn all<'a>(costs: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<Self> {
        let mut growths: Vec<Self> = Vec::new();
        for (name, cost) in costs {
            let Some((what, number)) =
                name.strip_prefix("scale/").and_then(|name| name.rsplit_once('/'))
            else {
                continue;
            };
            let point = (number.parse().unwrap(), cost);
            match growths.iter_mut().find(|growth| growth.what == what) {
                Some(growth) if point.0 < growth.from.0 => growth.from = point,
                Some(growth) if point.0 > growth.to.0 => growth.to = point,
                Some(_) => {}
                None => growths.push(Self { what: what.to_owned(), from: point, to: point }),
            }
        }
        growths.retain(|growth| growth.from.0 != growth.to.0);
        growths
    }

    /// What a unit costs with the largest number, as a multiple of the cost with the smallest.
    pub fn ratio(&self) -> f64 {
        self.to.1 / self.from.1
    }
}
