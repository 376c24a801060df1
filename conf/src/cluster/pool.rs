//! Numbers handed out of a fixed range by name, the same on every node without a word between them.
//!
//! The rule: who asks for a certain number comes first; of several who ask for the same one, the first by
//! name has it and the others have none. Then the others, in the order of their names, take the first free
//! number of a sequence that is derived from the name by hashing. So who has what depends on who is there,
//! and on nothing else: not on the order in which they came, not on the past.
//!
//! [`Pool`] keeps that up to date at the cost of a change, not of a count: a newcomer displaces whoever is
//! behind it by name, and a number that comes free goes to the first by name that would rather have had it.
//! Because all numbers have the same opinion of who comes first, there is one outcome only.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

/// The numbers that can be had: 0 to `len` - 1.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    len: u64,
    /// The lowest numbers, which are given out last: people choose theirs there.
    low: u64,
    /// Never given out, but to who asks for them.
    reserved: BTreeSet<u64>,
}

impl Space {
    /// # Panics
    /// When `low` is not less than `len`.
    pub(crate) fn new(len: u64, low: u64, reserved: impl IntoIterator<Item = u64>) -> Self {
        assert!(low < len, "something is left above the low numbers");
        let reserved = reserved.into_iter().filter(|number| *number < len).collect();
        Self { len, low, reserved }
    }
}

/// Where a claimant's sequence of numbers begins, and how it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sequence {
    start: u64,
    step: u64,
}

impl Sequence {
    /// The sequence of who has this name: double hashing above the low numbers, then those in order.
    fn new(space: &Space, name: &str) -> Self {
        let upper = space.len - space.low;
        let start = scatter(fnv1a(name.as_bytes())) % upper;
        let mut step =
            1 + scatter(fnv1a(name.as_bytes()) ^ u64::MAX) % upper.max(2).saturating_sub(1);
        // Only a step without common divisor comes to every number.
        while gcd(step, upper) != 1 {
            step = step % upper + 1;
        }
        Self { start, step }
    }

    fn number(self, space: &Space, attempt: u64) -> Option<u64> {
        let upper = space.len - space.low;
        if attempt < upper {
            let offset = u128::from(self.start) + u128::from(attempt) * u128::from(self.step);
            let offset = u64::try_from(offset % u128::from(upper)).unwrap_or(0);
            return Some(space.low + offset);
        }
        Some(attempt - upper).filter(|number| *number < space.low)
    }
}

#[derive(Debug, Clone, Copy)]
enum Claim {
    /// Asks for this number.
    Fixed(u64),
    /// Takes any, and has come so far in its sequence.
    Any { sequence: Sequence, attempt: u64 },
    /// Takes any, and there is none.
    Exhausted { sequence: Sequence },
}

/// What a claimant has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome<C> {
    /// This number.
    Has(u64),
    /// None: the other asks for the same one, and comes first.
    Taken { by: C },
    /// None: all are in use.
    Exhausted,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Pool<C> {
    space: Space,
    claims: BTreeMap<C, Claim>,
    /// Who asks for a number.
    fixed: BTreeMap<u64, BTreeSet<C>>,
    /// Who took a number.
    taken: BTreeMap<u64, C>,
    takers: BTreeSet<C>,
    /// Who would rather have had a number than the one it took.
    passed: BTreeMap<u64, BTreeSet<C>>,
    exhausted: BTreeSet<C>,
    changed: BTreeSet<C>,
}

impl<C: Ord + Clone> Pool<C> {
    pub(crate) fn new(space: Space) -> Self {
        Self {
            space,
            claims: BTreeMap::new(),
            fixed: BTreeMap::new(),
            taken: BTreeMap::new(),
            takers: BTreeSet::new(),
            passed: BTreeMap::new(),
            exhausted: BTreeSet::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Asks for a certain number, which must be one of the space's.
    pub(crate) fn claim(&mut self, claimant: C, number: u64) {
        debug_assert!(number < self.space.len);
        if let Some(Claim::Fixed(before)) = self.claims.get(&claimant)
            && *before == number
        {
            return;
        }
        self.release(&claimant);
        self.claims.insert(claimant.clone(), Claim::Fixed(number));
        let claimants = self.fixed.entry(number).or_default();
        self.changed.extend(claimants.iter().cloned());
        self.changed.insert(claimant.clone());
        claimants.insert(claimant);
        if let Some(displaced) = self.taken.remove(&number) {
            self.pass_on(displaced, number);
        }
    }

    /// Asks for any number, by the sequence of `name`.
    pub(crate) fn request(&mut self, claimant: C, name: &str) {
        let sequence = Sequence::new(&self.space, name);
        match self.claims.get(&claimant) {
            Some(Claim::Any { sequence: before, .. } | Claim::Exhausted { sequence: before })
                if *before == sequence =>
            {
                return;
            }
            Some(Claim::Fixed(_) | Claim::Any { .. } | Claim::Exhausted { .. }) | None => {}
        }
        self.release(&claimant);
        self.claims.insert(claimant.clone(), Claim::Any { sequence, attempt: 0 });
        self.place(claimant, 0);
    }

    /// Asks for nothing any more.
    pub(crate) fn release(&mut self, claimant: &C) {
        let Some(claim) = self.claims.remove(claimant) else { return };
        self.changed.insert(claimant.clone());
        match claim {
            Claim::Fixed(number) => {
                let Some(claimants) = self.fixed.get_mut(&number) else { return };
                claimants.remove(claimant);
                self.changed.extend(claimants.iter().cloned());
                if claimants.is_empty() {
                    self.fixed.remove(&number);
                    self.vacate(number);
                }
            }
            Claim::Any { sequence, attempt } => {
                self.forget_passed(claimant, sequence, 0..attempt);
                self.takers.remove(claimant);
                if let Some(number) = sequence.number(&self.space, attempt) {
                    self.taken.remove(&number);
                    self.vacate(number);
                }
            }
            Claim::Exhausted { .. } => {
                self.exhausted.remove(claimant);
            }
        }
    }

    /// What a claimant has. `None` when it asks for nothing.
    pub(crate) fn outcome(&self, claimant: &C) -> Option<Outcome<C>> {
        Some(match self.claims.get(claimant)? {
            Claim::Fixed(number) => match self.fixed.get(number)?.first()? {
                first if first == claimant => Outcome::Has(*number),
                first => Outcome::Taken { by: first.clone() },
            },
            Claim::Any { sequence, attempt } => {
                Outcome::Has(sequence.number(&self.space, *attempt)?)
            }
            Claim::Exhausted { .. } => Outcome::Exhausted,
        })
    }

    /// Whose outcome may have changed since the last call.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<C> {
        mem::take(&mut self.changed)
    }

    /// The claimants from `first` on, while `same` says so.
    pub(crate) fn claims_from(&self, first: C, same: impl Fn(&C) -> bool) -> Vec<C> {
        self.claims
            .range(first..)
            .map(|(claimant, _)| claimant)
            .take_while(|c| same(c))
            .cloned()
            .collect()
    }

    /// How many numbers are in use.
    pub(crate) fn used(&self) -> usize {
        self.taken.len() + self.fixed.len()
    }

    /// Gives a number to `claimant`, and one to whom it displaces, and so on.
    fn place(&mut self, mut claimant: C, mut attempt: u64) {
        loop {
            self.changed.insert(claimant.clone());
            let sequence = match self.claims.get(&claimant) {
                Some(Claim::Any { sequence, .. } | Claim::Exhausted { sequence }) => *sequence,
                Some(Claim::Fixed(_)) | None => return,
            };
            // Nothing is free and nobody is behind it: it need not look.
            let last = self.takers.last().is_none_or(|last| *last < claimant);
            let hopeless = last && self.is_full();
            let found = if hopeless { None } else { self.find(&claimant, sequence, attempt) };
            let Some((found, number)) = found else {
                let looked_at = if hopeless { attempt } else { self.space.len };
                self.forget_passed(&claimant, sequence, 0..looked_at);
                self.takers.remove(&claimant);
                self.exhausted.insert(claimant.clone());
                self.claims.insert(claimant, Claim::Exhausted { sequence });
                return;
            };
            self.claims.insert(claimant.clone(), Claim::Any { sequence, attempt: found });
            self.takers.insert(claimant.clone());
            let Some(displaced) = self.taken.insert(number, claimant) else { return };
            let Some(next) = self.passed_by(&displaced, number) else { return };
            (claimant, attempt) = (displaced, next);
        }
    }

    /// The first number of the sequence, from `attempt` on, that is free or taken by somebody behind.
    fn find(&mut self, claimant: &C, sequence: Sequence, mut attempt: u64) -> Option<(u64, u64)> {
        loop {
            let number = sequence.number(&self.space, attempt)?;
            let asked_for = self.fixed.contains_key(&number);
            let taken = self.taken.get(&number).is_some_and(|taker| taker < claimant);
            if !self.space.reserved.contains(&number) {
                if !asked_for && !taken {
                    return Some((attempt, number));
                }
                self.passed.entry(number).or_default().insert(claimant.clone());
            }
            attempt += 1;
        }
    }

    /// Gives another number to who had this one.
    fn pass_on(&mut self, displaced: C, number: u64) {
        if let Some(attempt) = self.passed_by(&displaced, number) {
            self.place(displaced, attempt);
        }
    }

    /// Notes that `claimant` does not get the number that it had, and says which attempt is next.
    fn passed_by(&mut self, claimant: &C, number: u64) -> Option<u64> {
        let Some(Claim::Any { attempt, .. }) = self.claims.get(claimant) else { return None };
        self.passed.entry(number).or_default().insert(claimant.clone());
        Some(attempt + 1)
    }

    /// Gives a number that came free to the first by name that would rather have it, and the number of that
    /// one to the next, and so on.
    fn vacate(&mut self, mut number: u64) {
        loop {
            if self.fixed.contains_key(&number) || self.space.reserved.contains(&number) {
                return;
            }
            let passed = self.passed.get(&number).and_then(BTreeSet::first);
            let next = match (passed, self.exhausted.first()) {
                (Some(passed), Some(exhausted)) => passed.min(exhausted),
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return,
            };
            let next = next.clone();
            self.changed.insert(next.clone());
            let (sequence, before) = match self.claims.get(&next) {
                Some(Claim::Any { sequence, attempt }) => (*sequence, Some(*attempt)),
                Some(Claim::Exhausted { sequence }) => (*sequence, None),
                Some(Claim::Fixed(_)) | None => return,
            };
            let mut attempt = 0;
            while sequence.number(&self.space, attempt) != Some(number) {
                if before.is_none()
                    && let Some(passed) = sequence.number(&self.space, attempt)
                    && !self.space.reserved.contains(&passed)
                {
                    self.passed.entry(passed).or_default().insert(next.clone());
                }
                attempt += 1;
            }
            self.claims.insert(next.clone(), Claim::Any { sequence, attempt });
            self.takers.insert(next.clone());
            self.taken.insert(number, next.clone());
            let Some(before) = before else {
                self.exhausted.remove(&next);
                return;
            };
            self.forget_passed(&next, sequence, attempt..before);
            let Some(left) = sequence.number(&self.space, before) else { return };
            self.taken.remove(&left);
            number = left;
        }
    }

    fn forget_passed(&mut self, claimant: &C, sequence: Sequence, attempts: std::ops::Range<u64>) {
        for attempt in attempts {
            let Some(number) = sequence.number(&self.space, attempt) else { return };
            if let Some(claimants) = self.passed.get_mut(&number) {
                claimants.remove(claimant);
                if claimants.is_empty() {
                    self.passed.remove(&number);
                }
            }
        }
    }

    fn is_full(&self) -> bool {
        let asked_for = self.fixed.keys().filter(|number| !self.space.reserved.contains(number));
        let free = self.space.len - self.space.reserved.len() as u64;
        // Counting those asked for is only needed near the end.
        let used = (self.taken.len() + self.fixed.len()) as u64;
        used >= free && (self.taken.len() + asked_for.count()) as u64 >= free
    }
}

/// FNV-1a, 64 bits: the same for ever and everywhere, unlike the hashes of the standard library.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The finisher of splitmix64: FNV's upper bits alone are not scattered well.
fn scatter(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The rule, word by word.
    fn by_the_rule(
        space: &Space,
        wants: &BTreeMap<u32, Option<u64>>,
    ) -> BTreeMap<u32, Outcome<u32>> {
        let mut outcomes = BTreeMap::new();
        let mut used: BTreeMap<u64, u32> = BTreeMap::new();
        for (who, number) in wants.iter().filter_map(|(who, want)| Some((*who, (*want)?))) {
            let first = *used.entry(number).or_insert(who);
            let has =
                if first == who { Outcome::Has(number) } else { Outcome::Taken { by: first } };
            outcomes.insert(who, has);
        }
        for who in wants.iter().filter(|(_, want)| want.is_none()).map(|(who, _)| *who) {
            let sequence = Sequence::new(space, &who.to_string());
            let mut numbers = (0..).map_while(|attempt| sequence.number(space, attempt));
            let free = numbers.find(|n| !used.contains_key(n) && !space.reserved.contains(n));
            let has = free.map_or(Outcome::Exhausted, |number| {
                used.insert(number, who);
                Outcome::Has(number)
            });
            outcomes.insert(who, has);
        }
        outcomes
    }

    proptest! {
        #[test]
        fn any_history_ends_where_the_rule_does(
            steps in prop::collection::vec((0_u32..24, prop::option::of(prop::option::of(0_u64..16))), 1..120),
            low in 0_u64..8,
            reserved in prop::collection::btree_set(0_u64..16, 0..3),
        ) {
            let space = Space::new(16, low, reserved);
            let mut pool = Pool::new(space.clone());
            let mut wants = BTreeMap::new();
            let mut told: BTreeMap<u32, Outcome<u32>> = BTreeMap::new();
            for (who, want) in steps {
                match want {
                    None => {
                        pool.release(&who);
                        wants.remove(&who);
                    }
                    Some(Some(number)) => {
                        pool.claim(who, number);
                        wants.insert(who, Some(number));
                    }
                    Some(None) => {
                        pool.request(who, &who.to_string());
                        wants.insert(who, None);
                    }
                }
                for who in pool.take_changed() {
                    match pool.outcome(&who) {
                        Some(outcome) => told.insert(who, outcome),
                        None => told.remove(&who),
                    };
                }
                prop_assert_eq!(&told, &by_the_rule(&space, &wants));
            }
        }
    }

    #[test]
    fn every_number_is_come_to_once() {
        for (len, low) in [(1, 0), (2, 0), (2, 1), (3, 1), (16, 4), (254, 16), (2768, 86)] {
            let space = Space::new(len, low, []);
            for name in ["", "a", "default/web", "kube-system/kube-dns"] {
                let sequence = Sequence::new(&space, name);
                let numbers: Vec<u64> =
                    (0..).map_while(|attempt| sequence.number(&space, attempt)).collect();
                assert_eq!(numbers.len() as u64, len);
                assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len() as u64, len);
                assert!(numbers.iter().zip(low..len).all(|(number, _)| *number >= low));
            }
        }
    }

    /// What was handed out must not change with a new version of Weft.
    #[test]
    fn sequences_stay_as_they_are() {
        let space = Space::new(1 << 20, 256, []);
        let first = |name| {
            let sequence = Sequence::new(&space, name);
            [0, 1].map(|attempt| sequence.number(&space, attempt).unwrap())
        };
        assert_eq!(first("default/web"), [125_478, 548_687]);
        assert_eq!(first("kube-system/kube-dns"), [817_155, 649_958]);
    }

    #[test]
    fn a_full_pool_refuses_many_at_no_cost() {
        let mut pool = Pool::new(Space::new(2768, 86, []));
        for who in 0..50_000_u32 {
            pool.request(who, &who.to_string());
        }
        assert_eq!(pool.used(), 2768);
        assert_eq!(
            pool.outcome(&2767).map(|outcome| matches!(outcome, Outcome::Has(_))),
            Some(true)
        );
        assert_eq!(pool.outcome(&2768), Some(Outcome::Exhausted));
        pool.release(&7);
        assert!(matches!(pool.outcome(&2768), Some(Outcome::Has(_))));
        assert_eq!(pool.outcome(&2769), Some(Outcome::Exhausted));
    }
}
