//! The subnets that a node can choose from, and which of them are somebody's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::store::{Store, Stored};
use crate::config::LeaseConfig;
use crate::node_id::NodeId;
use crate::span::{Span, first};

/// Whose addresses are whose, of one family.
#[derive(Debug)]
pub(super) struct Taken {
    /// Subnets whose holder is away, since when.
    away: Vec<(Instant, Span)>,
    /// All of the others, disjoint and in order.
    live: Vec<Span>,
    /// All, disjoint and in order.
    all: Vec<Span>,
}

impl Taken {
    /// What is taken of a family. Subnets of the dead count for as long as `hold`.
    pub(super) fn new(
        store: &Store,
        own: NodeId,
        config: &LeaseConfig,
        v6: bool,
        now: Instant,
    ) -> Self {
        let hold = Duration::from_secs(u64::from(config.hold_s));
        let reserved = |stored: &&Stored| {
            stored.dead_since.is_none_or(|since| now.saturating_duration_since(since) < hold)
        };
        let (mut away, mut live) = (Vec::new(), Vec::new());
        for stored in store.iter().filter(|stored| stored.record.id != own).filter(reserved) {
            let record = &stored.record;
            for prefix in record.leases.iter().filter_map(super::record::LeaseRecord::prefix) {
                if prefix.is_ipv6() == v6 {
                    match stored.dead_since {
                        Some(since) => away.push((since, Span::of(prefix))),
                        None => live.push(Span::of(prefix)),
                    }
                }
            }
            // The pods of another node live there: chosen only when nothing else is left.
            let pods = record.exceptions.list().unwrap_or_default().into_iter();
            let pods = pods.filter(|address| address.is_ipv6() == v6);
            away.extend(pods.map(|address| (now, Span::of(address.into()))));
            let reserved = record.reserved.iter().filter_map(|prefix| prefix.network());
            live.extend(reserved.filter(|prefix| prefix.is_ipv6() == v6).map(Span::of));
        }
        let reserved = config.reserved.iter().filter(|prefix| prefix.is_ipv6() == v6);
        live.extend(reserved.map(|prefix| Span::of(*prefix)));
        let live = merge(live);
        let all = merge(live.iter().copied().chain(away.iter().map(|(_, span)| *span)).collect());
        away.sort_unstable();
        Self { away, live, all }
    }
}

/// Joins spans that touch or overlap.
fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(span.last);
            }
            Some(_) | None => merged.push(span),
        }
    }
    merged
}

/// The span of a disjoint, ordered list that overlaps with `span`.
fn overlapping(spans: &[Span], span: Span) -> Option<Span> {
    let behind = spans.partition_point(|other| other.first <= span.last);
    let candidate = *spans.get(behind.checked_sub(1)?)?;
    (candidate.last >= span.first).then_some(candidate)
}

/// The subnets of one family, numbered.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    pub(super) ranges: Vec<(IpNetwork, u64)>,
    prefix_len: u8,
    pub(super) total: u64,
}

impl Slots {
    pub(super) fn new(config: &LeaseConfig, v6: bool) -> Self {
        let prefix_len = if v6 { config.prefix_len_v6 } else { config.prefix_len_v4 };
        let ranges = config.ranges.iter().filter(|range| range.is_ipv6() == v6).map(|range| {
            let bits = u32::from(prefix_len.saturating_sub(range.prefix())).min(SLOT_BITS_MAX);
            (*range, 1_u64 << bits)
        });
        let ranges: Vec<_> = ranges.collect();
        let total = ranges.iter().map(|(_, count)| count).sum();
        Self { ranges, prefix_len, total }
    }

    /// The first free subnet from number `start` on; else the one whose holders have been away longest.
    pub(super) fn pick(&self, start: u64, taken: &Taken) -> Option<IpNetwork> {
        self.free(start, taken).or_else(|| self.longest_away(taken))
    }

    /// Every step leaves a taken span, or a range, behind.
    fn free(&self, start: u64, taken: &Taken) -> Option<IpNetwork> {
        let mut number = start.checked_rem(self.total)?;
        let mut passed = 0;
        while passed < self.total {
            let prefix = self.at(number)?;
            let Some(obstacle) = overlapping(&taken.all, Span::of(prefix)) else {
                return Some(prefix);
            };
            let next = self.behind(number, obstacle.last);
            passed += next - number;
            number = next % self.total;
        }
        None
    }

    /// The number of the first subnet after `number` that begins behind `address`, or of the first one of
    /// the next range.
    fn behind(&self, number: u64, address: u128) -> u64 {
        let mut before = 0;
        for (range, count) in &self.ranges {
            if number < before + count {
                let offset =
                    address.saturating_sub(Span::of(*range).first) >> self.host_bits(*range);
                let next = u64::try_from(offset).unwrap_or(u64::MAX).saturating_add(1).min(*count);
                return (before + next).max(number + 1);
            }
            before += count;
        }
        number + 1
    }

    fn longest_away(&self, taken: &Taken) -> Option<IpNetwork> {
        let mut best: Option<(Instant, IpNetwork)> = None;
        for (since, span) in &taken.away {
            if best.is_some_and(|(best, _)| best <= *since) {
                break;
            }
            let numbers = (0..self.ranges.len()).filter_map(|ix| self.number_in(ix, span.first));
            let Some(prefix) = numbers.filter_map(|number| self.at(number)).next() else {
                continue;
            };
            let slot = Span::of(prefix);
            if overlapping(&taken.live, slot).is_some() {
                continue;
            }
            let holders = taken.away.iter().filter(|(_, other)| other.overlaps(slot));
            let last = holders.map(|(since, _)| *since).max().unwrap_or(*since);
            if best.is_none_or(|best| (last, prefix) < best) {
                best = Some((last, prefix));
            }
        }
        best.map(|(_, prefix)| prefix)
    }

    pub(super) fn at(&self, mut number: u64) -> Option<IpNetwork> {
        for (range, count) in &self.ranges {
            if number < *count {
                let network =
                    Span::of(*range).first + (u128::from(number) << self.host_bits(*range));
                return IpNetwork::new(to_address(network, range.is_ipv6())?, self.prefix_len).ok();
            }
            number -= count;
        }
        None
    }

    /// The number of the subnet that begins where `prefix` does.
    pub(super) fn number(&self, prefix: IpNetwork) -> Option<u64> {
        let of_family = |ix: &usize| self.ranges[*ix].0.is_ipv6() == prefix.is_ipv6();
        let mut ranges = (0..self.ranges.len()).filter(of_family);
        ranges.find_map(|ix| self.number_in(ix, first(prefix)))
    }

    /// The number of the subnet of one range that contains an address.
    fn number_in(&self, ix: usize, address: u128) -> Option<u64> {
        let (range, count) = self.ranges.get(ix)?;
        let before: u64 = self.ranges[..ix].iter().map(|(_, count)| count).sum();
        let offset = address.checked_sub(Span::of(*range).first)?;
        let number = u64::try_from(offset >> self.host_bits(*range)).ok()?;
        (number < *count).then_some(before + number)
    }

    fn host_bits(&self, range: IpNetwork) -> u32 {
        let width = if range.is_ipv6() { 128 } else { 32 };
        width - u32::from(self.prefix_len)
    }
}

/// More subnets than there can be nodes are not told apart: 2³² per range.
const SLOT_BITS_MAX: u32 = 32;

fn to_address(bits: u128, v6: bool) -> Option<IpAddr> {
    if v6 {
        Some(Ipv6Addr::from_bits(bits).into())
    } else {
        u32::try_from(bits).ok().map(|bits| Ipv4Addr::from_bits(bits).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::record::Prefix;
    use crate::gossip::record::tests::{lease, record};

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn config(ranges: &[&str], prefix_len_v4: u8) -> LeaseConfig {
        let ranges = ranges.iter().map(|range| net(range)).collect();
        LeaseConfig { ranges, prefix_len_v4, ..LeaseConfig::default() }
    }

    fn store(leases: &[(u8, &str, Option<Instant>)]) -> Store {
        let mut store = Store::new(100);
        for (id, prefix, dead_since) in leases {
            let mut record = record(*id, 1);
            record.leases = vec![lease(prefix, true, 1)];
            store.offer(record, *dead_since);
        }
        store
    }

    fn pick(config: &LeaseConfig, start: u64, store: &Store, now: Instant) -> Option<IpNetwork> {
        let taken = Taken::new(store, NodeId([99; 16]), config, false, now);
        Slots::new(config, false).pick(start, &taken)
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
    fn a_subnet_of_any_size_is_free_only_if_nobody_has_a_part_of_it() {
        let now = Instant::now();
        let others = store(&[
            (1, "10.244.0.0/22", None),
            (2, "10.244.4.64/26", None),
            (3, "10.244.7.0/24", None),
        ]);
        let small = config(&["10.244.0.0/21"], 24);
        assert_eq!(pick(&small, 0, &others, now), Some(net("10.244.5.0/24")));
        assert_eq!(pick(&small, 7, &others, now), Some(net("10.244.5.0/24")), "round the end");
        let tiny = config(&["10.244.0.0/21"], 26);
        assert_eq!(pick(&tiny, 0, &others, now), Some(net("10.244.4.0/26")));
        assert_eq!(pick(&tiny, 17, &others, now), Some(net("10.244.4.128/26")));
        let large = config(&["10.244.0.0/21"], 23);
        assert_eq!(pick(&large, 0, &others, now), None);
        let further = config(&["10.244.0.0/21", "10.9.0.0/22"], 23);
        assert_eq!(pick(&further, 0, &others, now), Some(net("10.9.0.0/23")));
    }

    #[test]
    fn what_is_reserved_here_or_by_another_node_is_not_free() {
        let now = Instant::now();
        let mut other = record(1, 1);
        other.leases.clear();
        other.reserved = vec![Prefix::new(net("10.244.0.0/24"))];
        let mut others = Store::new(10);
        others.offer(other, None);
        let mut config = config(&["10.244.0.0/22"], 24);
        config.reserved = vec![net("10.244.1.0/24"), net("10.244.2.128/25")];
        assert_eq!(pick(&config, 0, &others, now), Some(net("10.244.3.0/24")));
    }

    #[test]
    fn of_those_away_the_one_whose_last_holder_has_been_away_longest_goes_first() {
        let now = Instant::now();
        let at = |seconds| Some(now + Duration::from_secs(seconds));
        let config = config(&["10.244.0.0/22"], 23);
        let others = store(&[
            (1, "10.244.0.0/24", at(1)),
            (2, "10.244.1.0/24", at(5)),
            (3, "10.244.2.0/23", at(3)),
        ]);
        let later = now + Duration::from_secs(9);
        assert_eq!(pick(&config, 0, &others, later), Some(net("10.244.2.0/23")));
        let others = store(&[(1, "10.244.0.0/24", at(1)), (3, "10.244.2.0/24", None)]);
        assert_eq!(pick(&config, 0, &others, later), Some(net("10.244.0.0/23")));
    }
}
