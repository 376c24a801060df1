//! How a node comes to its lease, and when it loses it. Pure: records in, decisions out.
//!
//! Per address family:
//!
//! ```text
//!           synced, or alone          quiet for claim_confirm       on disk
//!  Idle ─────────────────────► Claiming ──────────────────► Saving ────────► Held ◄────┐
//!   ▲                             │ ▲                         │               ▲ │      │
//!   ├── somebody's claim is better┘ ├── nothing free:         │ somebody else │ │      │ synced, or alone,
//!   │                               │   Exhausted             │ wants it, too │ │      │ and nobody else
//!   │                               └── the fixed one is      ▼               │ ▼      │ wants it
//!   │                                   fixed elsewhere:   Clearing ──────────┘ Returning
//!   │                                   Blocked               │      slept: ──► │
//!   └───────────────── somebody's claim is better, or released ─────────────────┘
//! ```
//!
//! A remembered lease starts at `Returning`: others see that it is held, but it is not used before somebody
//! was asked. Nor is one used, remembered or new, while somebody who lives is known to hold or to claim a part
//! of it: a worse claim ends as soon as its owner hears of the better one, and only then is it certain that
//! nobody else uses the subnet.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::identity::COUNTER_MAX;
use super::record::{LeaseRecord, stir};
use super::slots::{Slots, Taken};
use super::store::Store;
use crate::config::{LeaseConfig, overlaps};
use crate::node_id::NodeId;
use crate::subnet::{Bid, Claim, Standing, judge, rank};

/// A lease that a node had before it was restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RememberedLease {
    /// The subnet.
    pub prefix: IpNetwork,
    /// The epoch of the claim that won it.
    pub epoch: u64,
}

/// Why a node gives a lease up by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// It is outside of the configured ranges.
    OutsideRanges,
    /// The configuration fixes another one.
    FixedElsewhere,
    /// The cluster remembers a later lease of this node than its disk does.
    Outdated,
}

impl Release {
    /// The reason in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::OutsideRanges => "it is outside of the configured ranges",
            Self::FixedElsewhere => "the configuration fixes another subnet for this node",
            Self::Outdated => "the cluster remembers a later lease of this node",
        }
    }
}

/// What changed about the own leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Announce this claim.
    Claimed(IpNetwork),
    /// Save all leases; then call [`Claims::saved`].
    Save,
    /// It was this node's, and is not used until it is known that it still is.
    Unproven(IpNetwork),
    /// The subnet is this node's.
    Held(IpNetwork),
    /// Somebody else has it.
    Lost { prefix: IpNetwork, winner: NodeId, held: bool },
    /// This node gives it up.
    Released { prefix: IpNetwork, why: Release },
    /// Every subnet is somebody's.
    Exhausted { v6: bool },
    /// The only one that it may have is fixed for another node, too.
    Blocked { prefix: IpNetwork, by: NodeId },
}

/// The own leases, for whoever asks.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) held: Vec<IpNetwork>,
    pub(super) returning: Vec<IpNetwork>,
    pub(super) claiming: Vec<IpNetwork>,
    /// The ranges in which nothing is free.
    pub(super) exhausted: Vec<IpNetwork>,
    /// A fixed subnet that another node has, and who.
    pub(super) blocked: Option<(IpNetwork, NodeId)>,
}

#[derive(Debug, Clone)]
pub(super) struct Claims {
    own: NodeId,
    config: LeaseConfig,
    families: Vec<Family>,
    /// The highest epoch that was ever seen anywhere: a new claim goes above it, so that a former holder
    /// who slept through everything, or was forgotten, loses to whoever came after.
    clock: u64,
    attempts: u64,
}

#[derive(Debug, Clone)]
struct Family {
    v6: bool,
    slots: Slots,
    fixed: Option<IpNetwork>,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Idle,
    Exhausted,
    Blocked { by: NodeId },
    Claiming { prefix: IpNetwork, epoch: u64, since: Instant },
    Saving { prefix: IpNetwork, epoch: u64 },
    Clearing { prefix: IpNetwork, epoch: u64 },
    Returning { prefix: IpNetwork, epoch: u64 },
    Held { prefix: IpNetwork, epoch: u64 },
}

impl Step {
    fn lease(self) -> Option<(IpNetwork, Claim, u64)> {
        match self {
            Self::Idle | Self::Exhausted | Self::Blocked { .. } => None,
            Self::Claiming { prefix, epoch, .. } | Self::Saving { prefix, epoch } => {
                Some((prefix, Claim::Claiming, epoch))
            }
            Self::Clearing { prefix, epoch }
            | Self::Returning { prefix, epoch }
            | Self::Held { prefix, epoch } => Some((prefix, Claim::Held, epoch)),
        }
    }

    /// Whether it is, or was, in use.
    fn is_had(self) -> bool {
        matches!(self, Self::Returning { .. } | Self::Held { .. })
    }

    fn is_seeking(self) -> bool {
        matches!(self, Self::Idle | Self::Exhausted | Self::Blocked { .. })
    }
}

impl Family {
    fn new(config: &LeaseConfig, v6: bool) -> Option<Self> {
        let slots = Slots::new(config, v6);
        (slots.total > 0).then(|| Self { v6, slots, fixed: config.fixed(v6), step: Step::Idle })
    }

    fn bid(&self, own: NodeId) -> Option<Bid> {
        let (prefix, claim, epoch) = self.step.lease()?;
        let fixed = self.fixed == Some(prefix);
        Some(Bid { prefix, standing: Standing { fixed, claim, epoch, id: own } })
    }

    /// Why this lease cannot stay, as far as the configuration says.
    fn misfit(&self, prefix: IpNetwork, config: &LeaseConfig) -> Option<Release> {
        if !config.is_lease(prefix) {
            return Some(Release::OutsideRanges);
        }
        self.fixed.filter(|fixed| *fixed != prefix).map(|_| Release::FixedElsewhere)
    }
}

impl Claims {
    pub(super) fn new(own: NodeId, config: LeaseConfig) -> Self {
        let families = [false, true].into_iter().filter_map(|v6| Family::new(&config, v6));
        Self { own, families: families.collect(), config, clock: 0, attempts: 0 }
    }

    /// Takes up a lease of a former life, to be proven; what does not fit the configuration any more is
    /// released.
    pub(super) fn remember(&mut self, lease: RememberedLease) -> Change {
        self.witness(lease.epoch);
        let RememberedLease { prefix, epoch } = lease;
        let family = self.families.iter_mut().find(|family| family.v6 == prefix.is_ipv6());
        let Some(family) = family.filter(|family| family.step == Step::Idle) else {
            return Change::Released { prefix, why: Release::OutsideRanges };
        };
        match family.misfit(prefix, &self.config) {
            Some(why) => Change::Released { prefix, why },
            None => {
                family.step = Step::Returning { prefix, epoch };
                Change::Unproven(prefix)
            }
        }
    }

    /// Takes up another configuration. A lease stays whatever its length is; one that is outside of the
    /// ranges, or not the fixed one, is given up.
    pub(super) fn configure(&mut self, config: LeaseConfig) -> Vec<Change> {
        self.config = config;
        let former = std::mem::take(&mut self.families);
        let mut changes = Vec::new();
        for v6 in [false, true] {
            let held = former.iter().find(|family| family.v6 == v6).map(|family| family.step);
            let lease = held.and_then(Step::lease);
            let Some(mut family) = Family::new(&self.config, v6) else {
                changes.extend(lease.map(|(prefix, _, _)| Change::Released {
                    prefix,
                    why: Release::OutsideRanges,
                }));
                continue;
            };
            let misfit = lease.and_then(|(prefix, _, _)| {
                family.misfit(prefix, &self.config).map(|why| Change::Released { prefix, why })
            });
            if misfit.is_none() && lease.is_some() {
                family.step = held.unwrap_or(Step::Idle);
            }
            changes.extend(misfit);
            self.families.push(family);
        }
        changes
    }

    /// After a sleep: what is held is not used until it is known that it still is this node's.
    pub(super) fn doubt(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for family in &mut self.families {
            if let Step::Held { prefix, epoch } = family.step {
                family.step = Step::Returning { prefix, epoch };
                changes.push(Change::Unproven(prefix));
            }
        }
        changes
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

    /// Takes back what this node's own former record in the cluster says that it held, as far as its own
    /// disk does not know better: that was lost, or set back; the cluster remembers.
    pub(super) fn adopt(&mut self, leases: &[LeaseRecord], store: &Store) -> Vec<Change> {
        let mut changes = Vec::new();
        for lease in leases.iter().filter(|lease| lease.held) {
            let Some(prefix) = lease.prefix() else { continue };
            let Some(ix) = self.families.iter().position(|family| family.v6 == prefix.is_ipv6())
            else {
                continue;
            };
            let bid = Bid { prefix, standing: lease.standing(self.own) };
            let family = &self.families[ix];
            if family.misfit(prefix, &self.config).is_some() || self.winner(bid, store).is_some() {
                continue;
            }
            let outdated = match family.step {
                Step::Idle | Step::Exhausted | Step::Blocked { .. } | Step::Claiming { .. } => None,
                Step::Returning { prefix, epoch } if epoch < lease.epoch => Some(prefix),
                Step::Returning { .. }
                | Step::Saving { .. }
                | Step::Clearing { .. }
                | Step::Held { .. } => continue,
            };
            self.families[ix].step = Step::Saving { prefix, epoch: lease.epoch };
            changes.extend(
                outdated
                    .filter(|former| *former != prefix)
                    .map(|prefix| Change::Released { prefix, why: Release::Outdated }),
            );
            changes.extend([Change::Claimed(prefix), Change::Save]);
        }
        changes
    }

    /// Gives up everything.
    pub(super) fn drop_all(&mut self, winner: NodeId) -> Vec<Change> {
        let mut changes = Vec::new();
        for family in &mut self.families {
            if let Some((prefix, _, _)) = family.step.lease() {
                changes.push(Change::Lost { prefix, winner, held: family.step.is_had() });
            }
            family.step = Step::Idle;
        }
        changes
    }

    /// Looks at what everybody holds, and decides. `is_informed`: whether it is known what others hold, or
    /// nobody can tell. `may_claim`: whether, besides, something new could be saved.
    pub(super) fn tick(
        &mut self,
        store: &Store,
        is_informed: bool,
        may_claim: bool,
        now: Instant,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        self.contest(store, &mut changes);
        if is_informed {
            for ix in 0..self.families.len() {
                let step = self.families[ix].step;
                if let Step::Clearing { prefix, epoch } | Step::Returning { prefix, epoch } = step
                    && !self.is_disputed(prefix, store)
                {
                    self.families[ix].step = Step::Held { prefix, epoch };
                    changes.push(Change::Held(prefix));
                }
            }
        }
        if may_claim {
            self.claim(store, now, &mut changes);
        }
        let confirm = self.confirm();
        for family in &mut self.families {
            if let Step::Claiming { prefix, epoch, since } = family.step
                && now.duration_since(since) >= confirm
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
        for ix in 0..self.families.len() {
            let Step::Saving { prefix, epoch } = self.families[ix].step else { continue };
            if self.is_disputed(prefix, store) {
                self.families[ix].step = Step::Clearing { prefix, epoch };
            } else {
                self.families[ix].step = Step::Held { prefix, epoch };
                changes.push(Change::Held(prefix));
            }
        }
        changes
    }

    /// What has to survive a restart.
    pub(super) fn to_save(&self) -> Vec<RememberedLease> {
        let leases = self.families.iter().filter_map(|family| match family.step {
            Step::Idle | Step::Exhausted | Step::Blocked { .. } | Step::Claiming { .. } => None,
            Step::Saving { prefix, epoch }
            | Step::Clearing { prefix, epoch }
            | Step::Returning { prefix, epoch }
            | Step::Held { prefix, epoch } => Some(RememberedLease { prefix, epoch }),
        });
        leases.collect()
    }

    /// What the own record says.
    pub(super) fn records(&self) -> Vec<LeaseRecord> {
        let bids = self.families.iter().filter_map(|family| family.bid(self.own));
        bids.map(|bid| LeaseRecord::new(bid.prefix, bid.standing)).collect()
    }

    pub(super) fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for family in &self.families {
            match family.step {
                Step::Idle => {}
                Step::Exhausted => {
                    summary.exhausted.extend(family.slots.ranges.iter().map(|(net, _)| *net));
                }
                Step::Blocked { by } => {
                    summary.blocked = family.fixed.map(|fixed| (fixed, by)).or(summary.blocked);
                }
                Step::Claiming { prefix, .. }
                | Step::Saving { prefix, .. }
                | Step::Clearing { prefix, .. } => {
                    summary.claiming.push(prefix);
                }
                Step::Returning { prefix, .. } => summary.returning.push(prefix),
                Step::Held { prefix, .. } => summary.held.push(prefix),
            }
        }
        summary
    }

    /// Whether every family has its lease.
    pub(super) fn is_complete(&self) -> bool {
        self.families.iter().all(|family| matches!(family.step, Step::Held { .. }))
    }

    /// Whether a family would claim something if it could.
    pub(super) fn is_seeking(&self) -> bool {
        self.families.iter().any(|family| family.step.is_seeking())
    }

    /// Whether a lease waits for its proof.
    pub(super) fn is_returning(&self) -> bool {
        let waits = |step| matches!(step, Step::Clearing { .. } | Step::Returning { .. });
        self.families.iter().any(|family| waits(family.step))
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let claiming = self.families.iter().filter_map(|family| match family.step {
            Step::Claiming { since, .. } => Some(since + self.confirm()),
            Step::Idle
            | Step::Exhausted
            | Step::Blocked { .. }
            | Step::Saving { .. }
            | Step::Clearing { .. }
            | Step::Returning { .. }
            | Step::Held { .. } => None,
        });
        claiming.min()
    }

    fn confirm(&self) -> Duration {
        Duration::from_millis(u64::from(self.config.claim_confirm_ms))
    }

    fn contest(&mut self, store: &Store, changes: &mut Vec<Change>) {
        for ix in 0..self.families.len() {
            let Some(bid) = self.families[ix].bid(self.own) else { continue };
            if let Some(winner) = self.winner(bid, store) {
                let held = self.families[ix].step.is_had();
                self.families[ix].step = Step::Idle;
                changes.push(Change::Lost { prefix: bid.prefix, winner, held });
            }
        }
    }

    /// Whose claim wins against the own one.
    ///
    /// A dead node's does only if it is a later one: then it won the subnet while this node was away, and
    /// may come back.
    fn winner(&self, own: Bid, store: &Store) -> Option<NodeId> {
        let others = || store.iter().filter(|stored| stored.record.id != self.own);
        let (mut is_challenged, mut dead) = (false, None::<Standing>);
        for stored in others() {
            for lease in &stored.record.leases {
                let standing = lease.standing(stored.record.id);
                if !lease.prefix().is_some_and(|prefix| overlaps(prefix, own.prefix)) {
                    continue;
                }
                let of_dead = |it: Standing| (it.fixed, it.epoch);
                match stored.dead_since {
                    None => is_challenged |= rank(standing, own.standing) == Ordering::Greater,
                    Some(_) if lease.held && of_dead(standing) > of_dead(own.standing) => {
                        let best =
                            dead.is_none_or(|dead| rank(standing, dead) == Ordering::Greater);
                        dead = if best { Some(standing) } else { dead };
                    }
                    Some(_) => {}
                }
            }
        }
        // Who challenges may itself lose to somebody else.
        let judged = is_challenged.then(|| {
            let live = others().filter(|stored| stored.dead_since.is_none());
            let bids = live.flat_map(|stored| {
                let id = stored.record.id;
                let leases = stored.record.leases.iter();
                leases.filter_map(move |lease| {
                    Some(Bid { prefix: lease.prefix()?, standing: lease.standing(id) })
                })
            });
            let judged = judge(bids.chain([own]).collect());
            judged.into_iter().find(|(bid, _)| *bid == own).and_then(|(_, winner)| winner)
        });
        judged.flatten().or_else(|| dead.map(|dead| dead.id))
    }

    /// Whether somebody who lives is known to hold or to want a part of a subnet. Whoever it is loses to this
    /// node, or this node would have lost already; but it may not know that yet, and be about to use the
    /// subnet or use it now. It gives up as soon as it hears of this node's claim.
    fn is_disputed(&self, prefix: IpNetwork, store: &Store) -> bool {
        let live = store.iter().filter(|stored| stored.dead_since.is_none());
        let mut others = live.filter(|stored| stored.record.id != self.own);
        others.any(|stored| {
            let mut leases = stored.record.leases.iter().filter_map(LeaseRecord::prefix);
            leases.any(|other| overlaps(other, prefix))
        })
    }

    fn claim(&mut self, store: &Store, now: Instant, changes: &mut Vec<Change>) {
        if !self.is_seeking() {
            return;
        }
        let mut hint = None;
        for family in &mut self.families {
            if family.step.is_seeking() {
                let rival = family.fixed.map(|fixed| fixed_elsewhere(fixed, self.own, store));
                let start = hint.unwrap_or_else(|| hash(self.own, self.attempts));
                self.attempts += 1;
                let choice = match (family.fixed, rival.flatten()) {
                    (Some(_), Some(by)) => Err(Step::Blocked { by }),
                    (Some(fixed), None) => Ok(fixed),
                    (None, _) => {
                        let taken = Taken::new(store, self.own, &self.config, family.v6, now);
                        family.slots.pick(start, &taken).ok_or(Step::Exhausted)
                    }
                };
                match choice {
                    Ok(prefix) => {
                        self.clock += 1;
                        family.step = Step::Claiming { prefix, epoch: self.clock, since: now };
                        changes.push(Change::Claimed(prefix));
                    }
                    Err(step) if step == family.step => {}
                    Err(step) => {
                        family.step = step;
                        changes.push(match (step, family.fixed) {
                            (Step::Blocked { by }, Some(prefix)) => Change::Blocked { prefix, by },
                            _ => Change::Exhausted { v6: family.v6 },
                        });
                    }
                }
            }
            // The second family's subnet has the same number as the first one's, when that is free.
            hint = family.step.lease().and_then(|(prefix, _, _)| family.slots.number(prefix));
        }
    }
}

/// The live node for which a part of this subnet is fixed, too.
fn fixed_elsewhere(fixed: IpNetwork, own: NodeId, store: &Store) -> Option<NodeId> {
    let live = store.iter().filter(|stored| stored.dead_since.is_none() && stored.record.id != own);
    let mut rivals = live.filter(|stored| {
        stored.record.leases.iter().any(|lease| {
            lease.fixed && lease.prefix().is_some_and(|prefix| overlaps(prefix, fixed))
        })
    });
    rivals.next().map(|stored| stored.record.id)
}

fn hash(id: NodeId, attempt: u64) -> u64 {
    let (halves, _) = id.0.as_chunks::<8>();
    halves.iter().fold(attempt, |hash, half| stir(hash ^ u64::from_be_bytes(*half)))
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::record::tests::{lease, record};

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
            record.leases = vec![lease(prefix, *held, *epoch)];
            store.offer(record, *dead_since);
        }
        store
    }

    /// Runs a claim to its end, and tells what is held.
    fn settle(claims: &mut Claims, store: &Store, now: Instant) -> Vec<IpNetwork> {
        claims.tick(store, true, true, now);
        claims.tick(store, true, true, now + Duration::from_secs(2));
        claims.saved(store);
        claims.summary().held
    }

    #[test]
    fn a_claim_is_held_after_a_quiet_time_and_after_it_is_saved() {
        let now = Instant::now();
        let store = store(&[]);
        let mut claims = Claims::new(NodeId([1; 16]), dual());
        assert_eq!(claims.tick(&store, false, false, now), []);
        let changes = claims.tick(&store, true, true, now);
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert_eq!(claims.poll_timeout(), Some(now + Duration::from_millis(1500)));
        assert_eq!(claims.tick(&store, true, true, now + Duration::from_millis(1499)), []);
        let later = now + Duration::from_millis(1500);
        assert_eq!(claims.tick(&store, true, true, later), [Change::Save, Change::Save]);
        assert!(claims.records().iter().all(|lease| !lease.held));
        assert!(claims.saved(&store).iter().all(|change| matches!(change, Change::Held(_))));
        assert!(claims.is_complete());
        let held = claims.summary().held;
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
        let changes = claims.tick(&store(&others), true, true, now);
        assert_eq!(changes, [Change::Exhausted { v6: false }]);
        assert_eq!(claims.tick(&store(&others), true, true, now), []);
        others.pop();
        assert_eq!(settle(&mut claims, &store(&others), later), [net("10.244.3.0/24")]);
    }

    #[test]
    fn a_remembered_lease_is_held_unless_somebody_has_a_better_claim() {
        let now = Instant::now();
        let prefix = net("10.244.1.0/24");
        let lease = RememberedLease { prefix, epoch: 5 };
        let lost = || vec![Change::Lost { prefix, winner: NodeId([4; 16]), held: true }];
        let kept = || vec![Change::Held(prefix)];
        // Whoever loses has to hear of it first.
        let cases = [
            (("10.244.1.0/24", true, 6, None), lost()),
            (("10.244.1.0/24", true, 4, None), vec![]),
            (("10.244.1.0/24", false, 4, None), vec![]),
            (("10.244.1.0/24", true, 6, Some(now)), lost()),
            (("10.244.1.0/24", true, 5, Some(now)), kept()),
            (("10.244.2.0/24", true, 6, None), kept()),
        ];
        for ((other, held, epoch, dead), expected) in cases {
            for own in [1, 9] {
                let mut claims = Claims::new(NodeId([own; 16]), dual());
                assert_eq!(claims.remember(lease), Change::Unproven(prefix));
                let others = store(&[(4, other, held, epoch, dead)]);
                let changes = claims.tick(&others, true, false, now);
                assert_eq!(changes, expected, "{other} {held} {epoch} {dead:?}");
                if expected.is_empty() {
                    assert_eq!(claims.tick(&store(&[]), true, false, now), kept());
                }
            }
        }
        let mut claims = Claims::new(NodeId([1; 16]), dual());
        let outside = RememberedLease { prefix: net("10.9.0.0/24"), epoch: 1 };
        let why = Release::OutsideRanges;
        let prefix = outside.prefix;
        assert_eq!(claims.remember(outside), Change::Released { prefix, why });
    }

    #[test]
    fn what_the_cluster_remembers_is_taken_back() {
        let now = Instant::now();
        let former = [lease("10.244.1.0/24", true, 5)];
        let mut claims = Claims::new(NodeId([1; 16]), dual());
        claims.adopt(&former, &store(&[]));
        claims.saved(&store(&[]));
        assert_eq!(claims.summary().held, [net("10.244.1.0/24")]);

        let mut late = Claims::new(NodeId([1; 16]), dual());
        let changes = late.adopt(&former, &store(&[(2, "10.244.1.0/24", true, 6, None)]));
        assert_eq!(changes, []);
        assert_eq!(settle(&mut late, &store(&[(2, "10.244.1.0/24", true, 6, None)]), now).len(), 2);
    }

    #[test]
    fn a_remembered_lease_is_not_used_before_somebody_was_asked() {
        let now = Instant::now();
        let prefix = net("10.244.1.0/24");
        let mut claims = Claims::new(NodeId([1; 16]), dual());
        claims.remember(RememberedLease { prefix, epoch: 5 });
        assert_eq!(claims.tick(&store(&[]), false, false, now), []);
        assert!(claims.summary().held.is_empty());
        assert!(claims.records()[0].held, "others see that it is still claimed");
        // Somebody else is about to take it, or has it: he gives up as soon as he hears of this node.
        for (held, epoch) in [(false, 6), (false, 5), (false, 4), (true, 4)] {
            let sought = store(&[(4, "10.244.1.0/25", held, epoch, None)]);
            assert_eq!(claims.tick(&sought, true, false, now), [], "{held} {epoch}");
        }
        assert_eq!(claims.tick(&store(&[]), true, false, now), [Change::Held(prefix)]);

        assert_eq!(claims.doubt(), [Change::Unproven(prefix)]);
        let taken = store(&[(4, "10.244.0.0/22", true, 6, None)]);
        let lost = Change::Lost { prefix, winner: NodeId([4; 16]), held: true };
        assert_eq!(claims.tick(&taken, false, false, now), [lost]);
    }

    #[test]
    fn a_disk_that_was_set_back_gives_way_to_what_the_cluster_remembers() {
        let (old, new) = (net("10.244.1.0/24"), net("10.244.2.0/24"));
        let mut claims = Claims::new(NodeId([1; 16]), dual());
        claims.remember(RememberedLease { prefix: old, epoch: 5 });
        let changes = claims.adopt(&[lease("10.244.2.0/24", true, 9)], &store(&[]));
        let released = Change::Released { prefix: old, why: Release::Outdated };
        assert_eq!(changes, [released, Change::Claimed(new), Change::Save]);
        assert_eq!(claims.saved(&store(&[])), [Change::Held(new)]);
        assert_eq!(claims.adopt(&[lease("10.244.3.0/24", true, 10)], &store(&[])), []);
    }

    #[test]
    fn a_fixed_subnet_is_taken_from_whoever_chose_it_and_not_from_whom_it_is_fixed_for() {
        let now = Instant::now();
        let fixed = net("10.244.2.0/23");
        let config = LeaseConfig {
            ranges: vec![net("10.244.0.0/22")],
            fixed: vec![fixed],
            ..LeaseConfig::default()
        };
        let others = store(&[(2, "10.244.2.0/24", true, 7, None)]);
        let mut claims = Claims::new(NodeId([9; 16]), config.clone());
        assert_eq!(settle(&mut claims, &others, now), [], "not before that one has let go");
        assert_eq!(claims.summary().claiming, [fixed]);
        assert!(claims.records()[0].held, "so that it does");
        assert_eq!(claims.tick(&store(&[]), true, true, now), [Change::Held(fixed)]);
        // And the one who chose it gives way already to the claim.
        let mut claims = Claims::new(NodeId([9; 16]), config.clone());
        claims.tick(&others, true, true, now);
        let mut announced = record(9, 1);
        announced.leases = claims.records();
        let mut seen = Store::new(10);
        seen.offer(announced, None);
        let mut chooser = Claims::new(NodeId([2; 16]), LeaseConfig::default());
        chooser.remember(RememberedLease { prefix: net("10.244.2.0/24"), epoch: 7 });
        let lost =
            Change::Lost { prefix: net("10.244.2.0/24"), winner: NodeId([9; 16]), held: true };
        assert_eq!(chooser.tick(&seen, true, false, now), [lost]);

        let mut second = Claims::new(NodeId([3; 16]), config);
        let blocked = Change::Blocked { prefix: fixed, by: NodeId([9; 16]) };
        assert_eq!(second.tick(&seen, true, true, now), [blocked]);
        assert_eq!(second.tick(&seen, true, true, now), []);
        assert_eq!(second.summary().blocked, Some((fixed, NodeId([9; 16]))));
        assert_eq!(settle(&mut second, &store(&[]), now), [fixed], "as soon as it can");
    }

    #[test]
    fn another_configuration_moves_only_what_does_not_fit() {
        let now = Instant::now();
        let mut claims = Claims::new(NodeId([1; 16]), dual());
        let held = settle(&mut claims, &store(&[]), now);
        let mut wider = dual();
        wider.ranges[0] = net("10.244.0.0/16");
        wider.prefix_len_v4 = 26;
        assert_eq!(claims.configure(wider.clone()), []);
        assert_eq!(claims.summary().held, held);

        wider.fixed = vec![net("10.244.77.0/24")];
        let moved = Change::Released { prefix: held[0], why: Release::FixedElsewhere };
        assert_eq!(claims.configure(wider.clone()), [moved]);
        assert_eq!(settle(&mut claims, &store(&[]), now), [net("10.244.77.0/24"), held[1]]);

        wider.fixed.clear();
        wider.ranges = vec![net("10.9.0.0/16")];
        let gone = |prefix| Change::Released { prefix, why: Release::OutsideRanges };
        assert_eq!(claims.configure(wider), [gone(net("10.244.77.0/24")), gone(held[1])]);
        assert_eq!(settle(&mut claims, &store(&[]), now).len(), 1);
    }
}
