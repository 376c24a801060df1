//! How a node comes to its lease, and when it loses it. Pure: records in, decisions out.
//!
//! Per address family:
//!
//! ```text
//!           synced, or alone          quiet for claim_confirm       on disk
//!  Idle ─────────────────────► Claiming ──────────────────► Saving ────────► Held
//!   ▲                             │ ▲                         │               │
//!   └── somebody's claim is better┘ └── nothing free: Exhausted              │
//!   └─────────────────────────────────────────────────────────┴───────────────┘
//! ```
//!
//! A remembered lease starts at `Held`.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::identity::COUNTER_MAX;
use super::record::{LeaseRecord, stir};
use super::store::{Store, Stored};
use crate::config::LeaseConfig;
use crate::node_id::NodeId;
use crate::subnet::{Claim, rank};

/// A lease that a node had before it was restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RememberedLease {
    /// The subnet.
    pub prefix: IpNetwork,
    /// The epoch of the claim that won it.
    pub epoch: u64,
}

/// What changed about the own leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Announce this claim.
    Claimed(IpNetwork),
    /// Save all leases; then call [`Claims::saved`].
    Save,
    /// The subnet is this node's.
    Held(IpNetwork),
    /// Somebody else has it.
    Lost { prefix: IpNetwork, winner: NodeId, held: bool },
    /// Every subnet is somebody's.
    Exhausted { v6: bool },
    /// It was remembered, and cannot be a lease here any more.
    Forgotten(IpNetwork),
}

#[derive(Debug)]
pub(super) struct Claims {
    own: NodeId,
    config: LeaseConfig,
    confirm: Duration,
    hold: Duration,
    families: Vec<Family>,
    /// The highest epoch that was ever seen anywhere: a new claim goes above it, so that a former holder
    /// who slept through everything, or was forgotten, loses to whoever came after.
    clock: u64,
    attempts: u64,
}

#[derive(Debug)]
struct Family {
    v6: bool,
    slots: Slots,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Idle,
    Exhausted,
    Claiming { prefix: IpNetwork, epoch: u64, since: Instant },
    Saving { prefix: IpNetwork, epoch: u64 },
    Held { prefix: IpNetwork, epoch: u64 },
}

impl Step {
    fn lease(self) -> Option<(IpNetwork, Claim, u64)> {
        match self {
            Self::Idle | Self::Exhausted => None,
            Self::Claiming { prefix, epoch, .. } | Self::Saving { prefix, epoch } => {
                Some((prefix, Claim::Claiming, epoch))
            }
            Self::Held { prefix, epoch } => Some((prefix, Claim::Held, epoch)),
        }
    }
}

impl Claims {
    pub(super) fn new(own: NodeId, config: LeaseConfig) -> Self {
        let families = [false, true].into_iter().filter_map(|v6| {
            let slots = Slots::new(&config, v6);
            (slots.total > 0).then_some(Family { v6, slots, step: Step::Idle })
        });
        Self {
            own,
            confirm: Duration::from_millis(u64::from(config.claim_confirm_ms)),
            hold: Duration::from_secs(u64::from(config.hold_s)),
            families: families.collect(),
            config,
            clock: 0,
            attempts: 0,
        }
    }

    /// Takes up a lease of a former life; what the ranges do not contain any more is returned.
    pub(super) fn remember(&mut self, lease: RememberedLease) -> Change {
        self.witness(lease.epoch);
        let RememberedLease { prefix, epoch } = lease;
        let family = self.families.iter_mut().find(|family| family.v6 == prefix.is_ipv6());
        match family {
            Some(family) if self.config.is_lease(prefix) && family.step == Step::Idle => {
                family.step = Step::Held { prefix, epoch };
                Change::Held(prefix)
            }
            Some(_) | None => Change::Forgotten(prefix),
        }
    }

    /// Takes note of an epoch that somebody has used.
    pub(super) fn witness(&mut self, epoch: u64) {
        if epoch < COUNTER_MAX / 2 {
            self.clock = self.clock.max(epoch);
        }
    }

    pub(super) fn clock(&self) -> u64 {
        self.clock
    }

    /// Takes back what this node's own former record in the cluster says that it held, as far as it
    /// knows of no lease itself: the disk was lost, the cluster remembers.
    pub(super) fn adopt(&mut self, leases: &[LeaseRecord], store: &Store) -> Vec<Change> {
        let mut changes = Vec::new();
        for lease in leases.iter().filter(|lease| lease.held) {
            let Some(prefix) = lease.prefix() else { continue };
            let claim = (Claim::Held, lease.epoch, self.own);
            if self.winner(prefix, claim, store).is_some() || !self.config.is_lease(prefix) {
                continue;
            }
            for family in self.families.iter_mut().filter(|family| family.v6 == prefix.is_ipv6()) {
                match family.step {
                    Step::Idle | Step::Exhausted | Step::Claiming { .. } => {
                        family.step = Step::Saving { prefix, epoch: lease.epoch };
                        changes.push(Change::Claimed(prefix));
                        changes.push(Change::Save);
                    }
                    Step::Saving { .. } | Step::Held { .. } => {}
                }
            }
        }
        changes
    }

    /// Gives up everything.
    pub(super) fn drop_all(&mut self, winner: NodeId) -> Vec<Change> {
        let mut changes = Vec::new();
        for family in &mut self.families {
            if let Some((prefix, claim, _)) = family.step.lease() {
                changes.push(Change::Lost { prefix, winner, held: claim == Claim::Held });
            }
            family.step = Step::Idle;
        }
        changes
    }

    /// Looks at what everybody holds, and decides. `may_claim`: whether it is time to claim something.
    pub(super) fn tick(&mut self, store: &Store, may_claim: bool, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        self.contest(store, &mut changes);
        if may_claim {
            self.claim(store, now, &mut changes);
        }
        for family in &mut self.families {
            if let Step::Claiming { prefix, epoch, since } = family.step
                && now.duration_since(since) >= self.confirm
            {
                family.step = Step::Saving { prefix, epoch };
                changes.push(Change::Save);
            }
        }
        changes
    }

    /// The leases of [`Claims::to_save`] are on disk.
    pub(super) fn saved(&mut self, store: &Store) -> Vec<Change> {
        let mut changes = Vec::new();
        // Nobody has been told yet, so a last look costs nothing.
        self.contest(store, &mut changes);
        for family in &mut self.families {
            if let Step::Saving { prefix, epoch } = family.step {
                family.step = Step::Held { prefix, epoch };
                changes.push(Change::Held(prefix));
            }
        }
        changes
    }

    /// What has to survive a restart.
    pub(super) fn to_save(&self) -> Vec<RememberedLease> {
        let leases = self.families.iter().filter_map(|family| match family.step {
            Step::Idle | Step::Exhausted | Step::Claiming { .. } => None,
            Step::Saving { prefix, epoch } | Step::Held { prefix, epoch } => {
                Some(RememberedLease { prefix, epoch })
            }
        });
        leases.collect()
    }

    /// What the own record says.
    pub(super) fn records(&self) -> Vec<LeaseRecord> {
        let leases = self.families.iter().filter_map(|family| family.step.lease());
        leases.map(|(prefix, claim, epoch)| LeaseRecord::new(prefix, claim, epoch)).collect()
    }

    /// The subnets that are held and that are claimed, and the ranges in which nothing is free.
    pub(super) fn summary(&self) -> (Vec<IpNetwork>, Vec<IpNetwork>, Vec<IpNetwork>) {
        let (mut held, mut claiming, mut exhausted) = (Vec::new(), Vec::new(), Vec::new());
        for family in &self.families {
            match family.step {
                Step::Idle => {}
                Step::Exhausted => {
                    exhausted.extend(family.slots.ranges.iter().map(|(net, _)| *net));
                }
                Step::Claiming { prefix, .. } | Step::Saving { prefix, .. } => {
                    claiming.push(prefix);
                }
                Step::Held { prefix, .. } => held.push(prefix),
            }
        }
        (held, claiming, exhausted)
    }

    /// Whether every family has its lease.
    pub(super) fn is_complete(&self) -> bool {
        self.families.iter().all(|family| matches!(family.step, Step::Held { .. }))
    }

    /// Whether a family would claim something if it could.
    pub(super) fn is_seeking(&self) -> bool {
        self.families.iter().any(|family| matches!(family.step, Step::Idle | Step::Exhausted))
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let claiming = self.families.iter().filter_map(|family| match family.step {
            Step::Claiming { since, .. } => Some(since + self.confirm),
            Step::Idle | Step::Exhausted | Step::Saving { .. } | Step::Held { .. } => None,
        });
        claiming.min()
    }

    fn contest(&mut self, store: &Store, changes: &mut Vec<Change>) {
        for ix in 0..self.families.len() {
            let Some((prefix, claim, epoch)) = self.families[ix].step.lease() else { continue };
            if let Some(winner) = self.winner(prefix, (claim, epoch, self.own), store) {
                self.families[ix].step = Step::Idle;
                changes.push(Change::Lost { prefix, winner, held: claim == Claim::Held });
            }
        }
    }

    /// Whose claim to `prefix` is better than the own one.
    ///
    /// A dead node's is only if it is a later one: then it won the subnet while this node was away, and
    /// may come back.
    fn winner(
        &self,
        prefix: IpNetwork,
        own: (Claim, u64, NodeId),
        store: &Store,
    ) -> Option<NodeId> {
        let mut best: Option<(Claim, u64, NodeId)> = None;
        for stored in store.iter().filter(|stored| stored.record.id != self.own) {
            for lease in &stored.record.leases {
                let claim = (lease.claim(), lease.epoch, stored.record.id);
                let counts = match stored.dead_since {
                    None => rank(claim, own) == Ordering::Greater,
                    Some(_) => lease.held && lease.epoch > own.1,
                };
                let same = lease.network == prefix.network();
                if same && counts && best.is_none_or(|best| rank(claim, best) == Ordering::Greater)
                {
                    best = Some(claim);
                }
            }
        }
        best.map(|(_, _, id)| id)
    }

    fn claim(&mut self, store: &Store, now: Instant, changes: &mut Vec<Change>) {
        if !self.is_seeking() {
            return;
        }
        let seeking = |family: &Family| matches!(family.step, Step::Idle | Step::Exhausted);
        let taken = Taken::new(store, self.own, self.hold, now);
        let mut hint = None;
        for family in &mut self.families {
            if seeking(family) {
                let start = hint.unwrap_or_else(|| hash(self.own, self.attempts));
                self.attempts += 1;
                match family.slots.pick(start, &taken) {
                    Some(prefix) => {
                        self.clock += 1;
                        family.step = Step::Claiming { prefix, epoch: self.clock, since: now };
                        changes.push(Change::Claimed(prefix));
                    }
                    None if family.step == Step::Exhausted => {}
                    None => {
                        family.step = Step::Exhausted;
                        changes.push(Change::Exhausted { v6: family.v6 });
                    }
                }
            }
            // The second family's subnet has the same number as the first one's, when that is free.
            hint = family.step.lease().and_then(|(prefix, _, _)| family.slots.number(prefix));
        }
    }
}

fn hash(id: NodeId, attempt: u64) -> u64 {
    let (halves, _) = id.0.as_chunks::<8>();
    halves.iter().fold(attempt, |hash, half| stir(hash ^ u64::from_be_bytes(*half)))
}

/// Which subnets are somebody's.
struct Taken {
    by_address: BTreeMap<IpAddr, Option<Instant>>,
}

impl Taken {
    fn new(store: &Store, own: NodeId, hold: Duration, now: Instant) -> Self {
        let mut by_address = BTreeMap::new();
        let reserved = |stored: &&Stored| {
            stored.dead_since.is_none_or(|since| now.saturating_duration_since(since) < hold)
        };
        let others = store.iter().filter(|stored| stored.record.id != own);
        for stored in others.filter(reserved) {
            for lease in &stored.record.leases {
                // A live claim outweighs a dead one, and a later death an earlier one.
                let since = by_address.entry(lease.network).or_insert(stored.dead_since);
                *since = match (*since, stored.dead_since) {
                    (Some(one), Some(other)) => Some(one.max(other)),
                    (None, _) | (_, None) => None,
                };
            }
        }
        Self { by_address }
    }
}

/// The subnets of one family, numbered.
#[derive(Debug)]
struct Slots {
    ranges: Vec<(IpNetwork, u64)>,
    prefix_len: u8,
    total: u64,
}

impl Slots {
    fn new(config: &LeaseConfig, v6: bool) -> Self {
        let prefix_len = if v6 { config.prefix_len_v6 } else { config.prefix_len_v4 };
        let ranges = config.ranges.iter().filter(|range| range.is_ipv6() == v6).map(|range| {
            let bits = u32::from(prefix_len.saturating_sub(range.prefix())).min(SLOT_BITS_MAX);
            (*range, 1_u64 << bits)
        });
        let ranges: Vec<_> = ranges.collect();
        let total = ranges.iter().map(|(_, count)| count).sum();
        Self { ranges, prefix_len, total }
    }

    /// The first free subnet from number `start` on; else the one whose holder has been away longest.
    fn pick(&self, start: u64, taken: &Taken) -> Option<IpNetwork> {
        let start = start % self.total;
        let steps = self.total.min(taken.by_address.len() as u64 + 1);
        let candidates = (0..steps).filter_map(|step| self.at((start + step) % self.total));
        let free = |prefix: &IpNetwork| !taken.by_address.contains_key(&prefix.network());
        candidates.clone().find(free).or_else(|| {
            let away = taken.by_address.iter().filter_map(|(address, since)| {
                let prefix = IpNetwork::new(*address, self.prefix_len).ok()?;
                self.number(prefix)?;
                Some(((*since)?, prefix))
            });
            away.min().map(|(_, prefix)| prefix)
        })
    }

    fn at(&self, mut number: u64) -> Option<IpNetwork> {
        for (range, count) in &self.ranges {
            if number < *count {
                return IpNetwork::new(
                    shift(range.network(), number, self.prefix_len),
                    self.prefix_len,
                )
                .ok();
            }
            number -= count;
        }
        None
    }

    fn number(&self, prefix: IpNetwork) -> Option<u64> {
        let mut before = 0;
        for (range, count) in &self.ranges {
            if range.is_ipv6() == prefix.is_ipv6() && range.contains(prefix.network()) {
                let offset = bits(prefix.network()) - bits(range.network());
                let width = if range.is_ipv6() { 128 } else { 32 };
                let number = u64::try_from(offset >> (width - u32::from(self.prefix_len))).ok()?;
                return (number < *count).then_some(before + number);
            }
            before += count;
        }
        None
    }
}

/// More subnets than there can be nodes are not told apart: 2³² per range.
const SLOT_BITS_MAX: u32 = 32;

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn shift(network: IpAddr, number: u64, prefix_len: u8) -> IpAddr {
    match network {
        IpAddr::V4(v4) => {
            let offset = u128::from(number) << (32 - u32::from(prefix_len));
            let address = u128::from(v4.to_bits()) + offset;
            IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(address).unwrap_or(u32::MAX)))
        }
        IpAddr::V6(v6) => {
            let offset = u128::from(number) << (128 - u32::from(prefix_len));
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits().saturating_add(offset)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::record::tests::record;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn dual() -> LeaseConfig {
        LeaseConfig {
            ranges: vec![net("10.244.0.0/22"), net("fd00:10:244::/62")],
            ..LeaseConfig::default()
        }
    }

    fn store(records: &[(u8, &str, bool, u64, Option<Instant>)]) -> Store {
        let mut store = Store::new(100);
        for (id, prefix, held, epoch, dead_since) in records {
            let mut record = record(*id, 1);
            let claim = if *held { Claim::Held } else { Claim::Claiming };
            record.leases = vec![LeaseRecord::new(net(prefix), claim, *epoch)];
            store.offer(record, *dead_since);
        }
        store
    }

    /// Runs a claim to its end, and tells what is held.
    fn settle(claims: &mut Claims, store: &Store, now: Instant) -> Vec<IpNetwork> {
        claims.tick(store, true, now);
        claims.tick(store, true, now + Duration::from_secs(2));
        claims.saved(store);
        claims.summary().0
    }

    #[test]
    fn slots_are_numbered_across_ranges() {
        let config = LeaseConfig {
            ranges: vec![net("10.1.0.0/23"), net("fd00::/63"), net("10.9.4.0/24")],
            ..LeaseConfig::default()
        };
        let v4 = Slots::new(&config, false);
        let all: Vec<_> = (0..v4.total).map(|number| v4.at(number).unwrap()).collect();
        assert_eq!(all, [net("10.1.0.0/24"), net("10.1.1.0/24"), net("10.9.4.0/24")]);
        for (number, prefix) in (0..).zip(&all) {
            assert_eq!(v4.number(*prefix), Some(number));
        }
        assert_eq!(v4.at(3), None);
        let v6 = Slots::new(&config, true);
        assert_eq!(v6.at(1), Some(net("fd00:0:0:1::/64")));
        assert_eq!(v6.number(net("fd00:0:0:1::/64")), Some(1));
    }

    #[test]
    fn a_claim_is_held_after_a_quiet_time_and_after_it_is_saved() {
        let now = Instant::now();
        let store = store(&[]);
        let mut claims = Claims::new(NodeId([1; 16]), dual());
        assert_eq!(claims.tick(&store, false, now), []);
        let changes = claims.tick(&store, true, now);
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert_eq!(claims.poll_timeout(), Some(now + Duration::from_millis(1500)));
        assert_eq!(claims.tick(&store, true, now + Duration::from_millis(1499)), []);
        let later = now + Duration::from_millis(1500);
        assert_eq!(claims.tick(&store, true, later), [Change::Save, Change::Save]);
        assert!(claims.records().iter().all(|lease| !lease.held));
        assert!(claims.saved(&store).iter().all(|change| matches!(change, Change::Held(_))));
        assert!(claims.is_complete());
        let (held, _, _) = claims.summary();
        let numbers: Vec<_> = [false, true]
            .into_iter()
            .zip(&held)
            .map(|(v6, prefix)| Slots::new(&dual(), v6).number(*prefix).unwrap())
            .collect();
        assert_eq!(numbers[0], numbers[1], "both families have the same number: {held:?}");
    }

    #[test]
    fn a_free_subnet_comes_before_a_reserved_one_and_the_longest_away_goes_first() {
        let now = Instant::now();
        let config = LeaseConfig { ranges: vec![net("10.244.0.0/22")], ..LeaseConfig::default() };
        let later = now + Duration::from_secs(1);
        let mut others = vec![
            (2, "10.244.0.0/24", true, 7, None),
            (3, "10.244.1.0/24", true, 8, Some(later)),
            (4, "10.244.2.0/24", true, 9, Some(now)),
        ];
        let mut claims = Claims::new(NodeId([1; 16]), config.clone());
        assert_eq!(settle(&mut claims, &store(&others), now), [net("10.244.3.0/24")]);

        others.push((5, "10.244.3.0/24", false, 10, None));
        let mut claims = Claims::new(NodeId([1; 16]), config.clone());
        claims.witness(10);
        assert_eq!(settle(&mut claims, &store(&others), now), [net("10.244.2.0/24")]);
        assert!(claims.to_save()[0].epoch > 9, "above the former holder");

        for other in &mut others {
            other.4 = None;
        }
        let mut claims = Claims::new(NodeId([1; 16]), config);
        let changes = claims.tick(&store(&others), true, now);
        assert_eq!(changes, [Change::Exhausted { v6: false }]);
        assert_eq!(claims.tick(&store(&others), true, now), []);
        others.pop();
        assert_eq!(settle(&mut claims, &store(&others), later), [net("10.244.3.0/24")]);
    }

    #[test]
    fn a_remembered_lease_is_held_until_somebody_has_a_better_claim() {
        let now = Instant::now();
        let prefix = net("10.244.1.0/24");
        let lease = RememberedLease { prefix, epoch: 5 };
        let cases = [
            (("10.244.1.0/24", true, 6, None), true),
            (("10.244.1.0/24", true, 4, None), false),
            (("10.244.1.0/24", false, 9, None), false),
            (("10.244.1.0/24", true, 6, Some(now)), true),
            (("10.244.1.0/24", true, 5, Some(now)), false),
            (("10.244.2.0/24", true, 6, None), false),
        ];
        for ((other, held, epoch, dead), lost) in cases {
            for own in [1, 9] {
                let mut claims = Claims::new(NodeId([own; 16]), dual());
                assert_eq!(claims.remember(lease), Change::Held(prefix));
                let changes = claims.tick(&store(&[(4, other, held, epoch, dead)]), false, now);
                let expected = Change::Lost { prefix, winner: NodeId([4; 16]), held: true };
                assert_eq!(changes == [expected], lost, "{other} {held} {epoch} {dead:?}");
            }
        }
        let mut claims = Claims::new(NodeId([1; 16]), dual());
        let outside = RememberedLease { prefix: net("10.9.0.0/24"), epoch: 1 };
        assert_eq!(claims.remember(outside), Change::Forgotten(outside.prefix));
    }

    #[test]
    fn what_the_cluster_remembers_is_taken_back() {
        let now = Instant::now();
        let former = [LeaseRecord::new(net("10.244.1.0/24"), Claim::Held, 5)];
        let mut claims = Claims::new(NodeId([1; 16]), dual());
        claims.adopt(&former, &store(&[]));
        claims.saved(&store(&[]));
        assert_eq!(claims.summary().0, [net("10.244.1.0/24")]);

        let mut late = Claims::new(NodeId([1; 16]), dual());
        let changes = late.adopt(&former, &store(&[(2, "10.244.1.0/24", true, 6, None)]));
        assert_eq!(changes, []);
        assert_eq!(settle(&mut late, &store(&[(2, "10.244.1.0/24", true, 6, None)]), now).len(), 2);
    }
}
