//! The network between nodes, with its faults.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// What may happen to a message on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// Probability that it is lost, from 0 to 1.
    pub loss: f64,
    /// Probability that it arrives twice, from 0 to 1. Each copy has a delay of its own.
    pub duplication: f64,
    /// How long it takes at least.
    pub delay: Duration,
    /// How much longer it may take, evenly distributed. With jitter, messages overtake each other.
    pub jitter: Duration,
}

impl Faults {
    /// Nothing goes wrong, and nothing takes time.
    pub const NONE: Self =
        Self { loss: 0.0, duplication: 0.0, delay: Duration::ZERO, jitter: Duration::ZERO };
}

/// A network that carries messages of type `T` between endpoints named by `A`.
///
/// What happens is decided by the seed and by the order of calls, and by nothing else. Messages arrive in
/// the order of their times; of two at the same time, the one that was sent first.
#[derive(Debug)]
pub struct Net<A, T> {
    random: Xoshiro256PlusPlus,
    faults: Faults,
    links: BTreeMap<(A, A), Faults>,
    cuts: BTreeSet<(A, A)>,
    on_the_way: BinaryHeap<Reverse<Event<A, T>>>,
    sequence: u64,
    totals: NetTotals,
}

/// A message that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery<A, T> {
    /// When it arrived.
    pub at: Instant,
    /// Who sent it.
    pub from: A,
    /// For whom it is.
    pub to: A,
    /// The message.
    pub message: T,
}

/// What became of all messages so far: sent + duplicated = delivered + lost + cut + on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetTotals {
    /// Messages that were sent.
    pub sent: u64,
    /// Second copies that the network made.
    pub duplicated: u64,
    /// Messages that arrived.
    pub delivered: u64,
    /// Messages that were lost by chance.
    pub lost: u64,
    /// Messages that were sent, or were on the way, between endpoints that are cut off from each other.
    pub cut: u64,
}

impl<A: Copy + Ord, T: Clone> Net<A, T> {
    /// Makes a network without faults.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            faults: Faults::NONE,
            links: BTreeMap::new(),
            cuts: BTreeSet::new(),
            on_the_way: BinaryHeap::new(),
            sequence: 0,
            totals: NetTotals::default(),
        }
    }

    /// Sets the faults of all ways that have none of their own.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Sets the faults of the way from `from` to `to`. The way back has its own.
    pub fn set_link(&mut self, from: A, to: A, faults: Faults) {
        self.links.insert((from, to), faults);
    }

    /// Cuts the way from `from` to `to`, also for what is on it. The way back stays.
    pub fn cut(&mut self, from: A, to: A) {
        self.cuts.insert((from, to));
    }

    /// Cuts every way between `side` and `other`, in both directions.
    pub fn partition(&mut self, side: &[A], other: &[A]) {
        for a in side {
            for b in other {
                self.cut(*a, *b);
                self.cut(*b, *a);
            }
        }
    }

    /// Mends the way from `from` to `to`.
    pub fn mend(&mut self, from: A, to: A) {
        self.cuts.remove(&(from, to));
    }

    /// Mends all cuts.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Sends a message.
    pub fn send(&mut self, now: Instant, from: A, to: A, message: T) {
        self.totals.sent += 1;
        let faults = self.links.get(&(from, to)).copied().unwrap_or(self.faults);
        if self.cuts.contains(&(from, to)) {
            self.totals.cut += 1;
            return;
        }
        if self.random.random_bool(faults.loss.clamp(0.0, 1.0)) {
            self.totals.lost += 1;
            return;
        }
        if self.random.random_bool(faults.duplication.clamp(0.0, 1.0)) {
            self.totals.duplicated += 1;
            self.dispatch(now, from, to, message.clone(), faults);
        }
        self.dispatch(now, from, to, message, faults);
    }

    fn dispatch(&mut self, now: Instant, from: A, to: A, message: T, faults: Faults) {
        let at = now + faults.delay + faults.jitter.mul_f64(self.random.random_range(0.0..1.0));
        let sequence = self.sequence;
        self.sequence += 1;
        let delivery = Delivery { at, from, to, message };
        self.on_the_way.push(Reverse(Event { at, sequence, delivery }));
    }

    /// When the next message arrives.
    pub fn next_at(&self) -> Option<Instant> {
        self.on_the_way.peek().map(|Reverse(event)| event.at)
    }

    /// Takes the next message that has arrived by `now`.
    pub fn receive(&mut self, now: Instant) -> Option<Delivery<A, T>> {
        while self.next_at().is_some_and(|at| at <= now) {
            let Reverse(event) = self.on_the_way.pop()?;
            let delivery = event.delivery;
            if self.cuts.contains(&(delivery.from, delivery.to)) {
                self.totals.cut += 1;
                continue;
            }
            self.totals.delivered += 1;
            return Some(delivery);
        }
        None
    }

    /// Messages on the way.
    pub fn on_the_way(&self) -> usize {
        self.on_the_way.len()
    }

    /// What became of all messages so far.
    pub fn totals(&self) -> NetTotals {
        self.totals
    }
}

#[derive(Debug)]
struct Event<A, T> {
    at: Instant,
    sequence: u64,
    delivery: Delivery<A, T>,
}

impl<A, T> PartialEq for Event<A, T> {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl<A, T> Eq for Event<A, T> {}

impl<A, T> PartialOrd for Event<A, T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<A, T> Ord for Event<A, T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: u64 = 10_000;

    fn faults() -> Faults {
        Faults {
            loss: 0.1,
            duplication: 0.05,
            delay: Duration::from_millis(5),
            jitter: Duration::from_millis(10),
        }
    }

    /// Sends numbers, one a millisecond; returns what arrived and when.
    fn run(seed: u64) -> (Vec<(Duration, u64)>, NetTotals) {
        let start = Instant::now();
        let mut net = Net::new(seed);
        net.set_faults(faults());
        for number in 0..MESSAGES {
            net.send(start + Duration::from_millis(number), 'a', 'b', number);
        }
        let end = start + Duration::from_secs(60);
        let arrived = std::iter::from_fn(|| net.receive(end))
            .map(|delivery| (delivery.at - start, delivery.message))
            .collect();
        (arrived, net.totals())
    }

    #[test]
    fn faults_happen_as_often_as_asked() {
        let (arrived, totals) = run(1);
        assert!((900..1100).contains(&totals.lost), "{totals:?}");
        assert!((350..550).contains(&totals.duplicated), "{totals:?}");
        assert_eq!(totals.sent + totals.duplicated, totals.delivered + totals.lost);
        assert!(arrived.is_sorted_by_key(|(at, _)| *at));
        assert!(!arrived.is_sorted_by_key(|(_, number)| *number), "jitter reorders");
        for (at, number) in arrived {
            let took = at - Duration::from_millis(number);
            assert!(took >= Duration::from_millis(5) && took <= Duration::from_millis(15));
        }
    }

    #[test]
    fn one_seed_gives_one_run() {
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn without_faults_order_is_kept() {
        let now = Instant::now();
        let mut net = Net::new(1);
        for number in 0..100 {
            net.send(now, 1, 2, number);
        }
        let arrived: Vec<_> = std::iter::from_fn(|| net.receive(now)).map(|d| d.message).collect();
        assert_eq!(arrived, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_partition_also_stops_what_is_on_the_way() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut net = Net::new(1);
        net.set_link('a', 'b', Faults { delay: Duration::from_millis(10), ..Faults::NONE });
        net.send(now, 'a', 'b', "early");
        net.partition(&['a'], &['b', 'c']);
        net.send(now, 'b', 'a', "during");
        net.send(now, 'b', 'c', "same side");
        assert_eq!(net.receive(later).map(|d| d.message), Some("same side"));
        assert_eq!(net.receive(later), None);
        assert_eq!(net.totals().cut, 2);
        net.mend('b', 'a');
        net.send(now, 'b', 'a', "mended");
        assert_eq!(net.receive(now).map(|d| d.message), Some("mended"));
        net.heal();
        net.send(now, 'a', 'b', "after");
        assert_eq!(net.receive(now), None, "it takes its time");
        assert_eq!(net.next_at(), Some(now + Duration::from_millis(10)));
        assert_eq!(net.receive(later).map(|d| d.message), Some("after"));
        assert_eq!(net.on_the_way(), 0);
    }
}
