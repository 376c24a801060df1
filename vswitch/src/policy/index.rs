//! Finds the first rule that matches, in a time that hardly depends on how many there are.
//!
//! ```text
//!   traffic ──► ports in order, a binary search ──► the rules for this port ─┐
//!          └──────────────────────────────────────► the rules for all ports ─┤
//!                                                                            ▼
//!                                       the first of:  for everybody
//!                                                      selectors: the peer's bits AND the rules'
//!                                                      address: a binary search in ranges that do not overlap
//! ```
//!
//! Excepted blocks are cut out of the ranges beforehand. Where rules have so many ranges of ports that overlap that
//! the index would grow out of proportion ([`ENTRIES_MAX`]), every rule is looked at instead.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use foldhash::fast::RandomState;
use ipnetwork::IpNetwork;

use super::{BitSet, Block, Peers, Rule, SelectorIx, Traffic};
use crate::service::Protocol;

/// The first match among rules.
#[derive(Debug)]
pub(super) enum Index {
    Compiled(Compiled),
    /// There is none: look at each.
    Linear,
}

#[derive(Debug)]
pub(super) struct Compiled {
    every_port: Class,
    ports: [Ports; 3],
    classes: Box<[Class]>,
}

/// Which class of rules each port has.
#[derive(Debug, Default)]
struct Ports {
    /// The first port of each range; the first range starts at 0.
    starts: Box<[u16]>,
    /// The class of each range.
    classes: Box<[u32]>,
}

/// Rules that all match the same ports.
#[derive(Debug, Default)]
struct Class {
    everybody: Option<u32>,
    selectors: BitSet,
    /// The first rule of each selector, in the selectors' order.
    by_selector: Box<[(SelectorIx, u32)]>,
    v4: Ranges<u32>,
    v6: Ranges<u128>,
}

/// The first rule of each range of addresses.
#[derive(Debug)]
struct Ranges<K>(Box<[(K, Option<u32>)]>);

impl<K> Default for Ranges<K> {
    fn default() -> Self {
        Self(Box::default())
    }
}

/// Most entries of rules in all classes of one index.
const ENTRIES_MAX: usize = 1 << 18;

impl Index {
    pub(super) fn new(rules: &[Rule]) -> Self {
        Self::with_room(rules, ENTRIES_MAX)
    }

    pub(super) fn with_room(rules: &[Rule], entries_max: usize) -> Self {
        let numbered = || (0..).zip(rules);
        let every_port = numbered().filter(|(_, rule)| rule.ports.is_empty()).collect::<Vec<_>>();
        let mut classes = Vec::new();
        let mut known: HashMap<Vec<u32>, u32, RandomState> = HashMap::default();
        let mut entries = 0;
        let mut ports = [Ports::default(), Ports::default(), Ports::default()];
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
            let mut starts = Vec::new();
            let mut of_range = Vec::new();
            let all = sweep(ranges_of_ports(rules, protocol), |start, active| {
                let members: Vec<u32> = active.keys().copied().collect();
                entries += members.len();
                if entries > entries_max {
                    return false;
                }
                let class = *known.entry(members).or_insert_with_key(|members| {
                    classes.push(Class::new(
                        members
                            .iter()
                            .filter_map(|ix| Some((*ix, rules.get(usize::try_from(*ix).ok()?)?))),
                    ));
                    u32::try_from(classes.len() - 1).unwrap_or(u32::MAX)
                });
                // What begins behind the last port is nobody's.
                if let Ok(start) = u16::try_from(start) {
                    starts.push(start);
                    of_range.push(class);
                }
                true
            });
            if !all {
                return Self::Linear;
            }
            ports[place(protocol)] = Ports { starts: starts.into(), classes: of_range.into() };
        }
        let every_port = Class::new(every_port.into_iter());
        Self::Compiled(Compiled { every_port, ports, classes: classes.into() })
    }

    /// The number of the first of `rules` that matches `traffic` and a peer.
    pub(super) fn first(
        &self,
        rules: &[Rule],
        traffic: Traffic,
        address: IpAddr,
        selectors: &BitSet,
    ) -> Option<u32> {
        match self {
            Self::Compiled(compiled) => compiled.first(traffic, address, selectors),
            Self::Linear => {
                let at = rules.iter().position(|rule| matches(rule, traffic, address, selectors));
                at.and_then(|at| u32::try_from(at).ok())
            }
        }
    }
}

impl Compiled {
    fn first(&self, traffic: Traffic, address: IpAddr, selectors: &BitSet) -> Option<u32> {
        let of_port = match traffic {
            Traffic::Portless => None,
            Traffic::Port { protocol, port } => self.class(protocol, port),
        };
        let found = [Some(&self.every_port), of_port].into_iter().flatten();
        found.filter_map(|class| class.first(address, selectors)).min()
    }

    fn class(&self, protocol: Protocol, port: u16) -> Option<&Class> {
        let ports = &self.ports[place(protocol)];
        let behind = ports.starts.partition_point(|start| *start <= port);
        let class = *ports.classes.get(behind.checked_sub(1)?)?;
        self.classes.get(usize::try_from(class).ok()?)
    }
}

impl Class {
    fn new<'r>(rules: impl Iterator<Item = (u32, &'r Rule)>) -> Self {
        let mut everybody = None;
        let mut by_selector: BTreeMap<SelectorIx, u32> = BTreeMap::new();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        // In ascending order, so that the first rule stays.
        for (ix, rule) in rules {
            match &rule.peers {
                Peers::Everybody => {
                    everybody.get_or_insert(ix);
                }
                Peers::Some { selectors, blocks } => {
                    for selector in selectors {
                        by_selector.entry(*selector).or_insert(ix);
                    }
                    for block in blocks {
                        match block.cidr {
                            IpNetwork::V4(_) => v4.extend(
                                ranges_of_block(block).map(|(start, end)| (ix, start, end)),
                            ),
                            IpNetwork::V6(_) => v6.extend(
                                ranges_of_block(block).map(|(start, end)| (ix, start, end)),
                            ),
                        }
                    }
                }
            }
        }
        Self {
            everybody,
            selectors: by_selector.keys().copied().collect(),
            by_selector: by_selector.into_iter().collect(),
            v4: Ranges::new(v4, |start| u32::try_from(start).ok()),
            v6: Ranges::new(v6, Some),
        }
    }

    fn first(&self, address: IpAddr, selectors: &BitSet) -> Option<u32> {
        let by_address = match address {
            IpAddr::V4(v4) => self.v4.get(v4.to_bits()),
            IpAddr::V6(v6) => self.v6.get(v6.to_bits()),
        };
        let by_selector = self.selectors.common(selectors).filter_map(|selector| {
            let found = self.by_selector.binary_search_by_key(&selector, |(own, _)| *own);
            found.ok().map(|at| self.by_selector[at].1)
        });
        self.everybody.into_iter().chain(by_address).chain(by_selector).min()
    }
}

impl<K: Copy + Ord> Ranges<K> {
    /// `key` is `None` for what lies behind the last address.
    fn new(ranges: Vec<(u32, u128, Option<u128>)>, key: impl Fn(u128) -> Option<K>) -> Self {
        let mut starts: Vec<(K, Option<u32>)> = Vec::new();
        sweep(ranges, |start, active| {
            let rule = active.keys().next().copied();
            let is_new = starts.last().is_none_or(|(_, last)| *last != rule);
            if let (true, Some(start)) = (is_new, key(start)) {
                starts.push((start, rule));
            }
            true
        });
        Self(starts.into())
    }

    fn get(&self, address: K) -> Option<u32> {
        let behind = self.0.partition_point(|(start, _)| *start <= address);
        self.0.get(behind.checked_sub(1)?)?.1
    }
}

/// Goes through ranges of numbers, each with a rule, its first number and the first behind it, and calls `visit` for
/// every place where the set of rules changes. Stops, and returns false, when that does.
fn sweep(
    ranges: Vec<(u32, u128, Option<u128>)>,
    mut visit: impl FnMut(u128, &BTreeMap<u32, u32>) -> bool,
) -> bool {
    let mut changes: BTreeMap<u128, Vec<(u32, bool)>> = BTreeMap::new();
    for (rule, start, end) in ranges {
        changes.entry(start).or_default().push((rule, true));
        if let Some(end) = end {
            changes.entry(end).or_default().push((rule, false));
        }
    }
    let mut active: BTreeMap<u32, u32> = BTreeMap::new();
    for (at, changes) in changes {
        // Those that begin first: a rule may end and begin at the same place.
        for (rule, _) in changes.iter().filter(|(_, begins)| *begins) {
            *active.entry(*rule).or_default() += 1;
        }
        for (rule, _) in changes.iter().filter(|(_, begins)| !begins) {
            if let Some(count) = active.get_mut(rule) {
                *count -= 1;
                if *count == 0 {
                    active.remove(rule);
                }
            }
        }
        if !visit(at, &active) {
            return false;
        }
    }
    true
}

fn ranges_of_ports(rules: &[Rule], protocol: Protocol) -> Vec<(u32, u128, Option<u128>)> {
    let numbered = (0..).zip(rules);
    let all = numbered.flat_map(|(ix, rule)| rule.ports.iter().map(move |ports| (ix, ports)));
    all.filter(|(_, ports)| ports.protocol == protocol && !ports.ports.is_empty())
        .map(|(ix, ports)| {
            let (start, end) = (*ports.ports.start(), *ports.ports.end());
            (ix, u128::from(start), Some(u128::from(end) + 1))
        })
        .collect()
}

/// The ranges that are left of a block when what is excepted is taken out: each with the first address behind it, or
/// none if it goes to the end.
fn ranges_of_block(block: &Block) -> impl Iterator<Item = (u128, Option<u128>)> {
    let (start, end) = ends(block.cidr);
    let same_family = |except: &&IpNetwork| except.is_ipv4() == block.cidr.is_ipv4();
    let mut holes: Vec<_> =
        block.except.iter().filter(same_family).map(|hole| ends(*hole)).collect();
    holes.sort_unstable();
    let mut next = Some(start);
    let mut left = Vec::new();
    for (hole_start, hole_end) in holes {
        let Some(from) = next else { break };
        if hole_start > end {
            break;
        }
        if hole_start > from {
            left.push((from, Some(hole_start)));
        }
        next = hole_end.checked_add(1).map(|behind| behind.max(from));
    }
    if let Some(from) = next.filter(|from| *from <= end) {
        left.push((from, end.checked_add(1)));
    }
    left.into_iter()
}

/// The first and the last address of a network, as numbers.
fn ends(network: IpNetwork) -> (u128, u128) {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    (bits(network.network()), bits(network.broadcast()))
}

/// Whether the rule matches: what the index must agree with.
pub(super) fn matches(rule: &Rule, traffic: Traffic, address: IpAddr, selectors: &BitSet) -> bool {
    let port_matches = rule.ports.is_empty()
        || match traffic {
            Traffic::Portless => false,
            Traffic::Port { protocol, port } => {
                let mut ports = rule.ports.iter();
                ports.any(|ports| ports.protocol == protocol && ports.ports.contains(&port))
            }
        };
    port_matches
        && match &rule.peers {
            Peers::Everybody => true,
            Peers::Some { selectors: own, blocks } => {
                own.iter().any(|selector| selectors.contains(*selector))
                    || blocks.iter().any(|block| {
                        block.cidr.contains(address)
                            && !block.except.iter().any(|except| except.contains(address))
                    })
            }
        }
}

fn place(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Sctp => 2,
    }
}
