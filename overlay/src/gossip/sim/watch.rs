//! The promises, looked at after every step.
//!
//! | | |
//! |---|---|
//! | I1 | no address is used by two live attachments |
//! | I2 | no subnet has two holders |
//! | I3 | after a heal, all maps are equal within a bound |
//! | I4 | a lease that is held is never lost in silence, and never to nobody |
//! | I5 | a route between two undisturbed nodes never goes away because of what happens elsewhere |
//! | I6 | nothing that is over comes back: no dead node, no older record, no forgotten one |
//!
//! I1 and I2 cannot hold between two nodes that cannot hear of each other. So they are asked of nodes that
//! are *joined*: that can talk, directly or by others, and know the way. Two that were cut off from each
//! other have [`Bounds::heal`] to settle what both of them were granted meanwhile. There is no such time
//! for what a node is granted, or uses again after a restart, although it could have asked somebody who
//! knew of another holder: that breaks I2 at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::Network;
use crate::config::overlaps;
use crate::gossip::{Event, Gossip, Holdings, LeaseState};
use crate::node_id::NodeId;
use crate::pods::{LocalPod, Pod, PodMap};
use crate::subnet::{Claim, Standing, SubnetMap, rank};

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// When, since the start of the run.
    pub at: Duration,
    /// Which promise: `I1` to `I6`.
    pub invariant: &'static str,
    /// By whom, and how.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} broken after {:.6} s: {}", self.invariant, self.at.as_secs_f64(), self.what)
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// From when two nodes can talk again until they agree.
    pub heal: Duration,
    /// From its start until a node knows what there is to know, and is a good one to ask.
    pub start: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { heal: Duration::from_secs(12), start: Duration::from_secs(5) }
    }
}

/// What happened in a run, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Steps that were looked at: datagrams that arrived, and timers.
    pub steps: u64,
    /// How often two nodes held one subnet, though they could not know.
    pub disputes: u64,
    /// Leases that were lost to a better claim.
    pub losses: u64,
    /// Most pods at a time.
    pub pods: usize,
    /// The longest that it took to agree.
    pub slowest: Duration,
}

/// Looks at a network.
#[derive(Debug, Default)]
pub struct Watch {
    /// How long things may take.
    pub bounds: Bounds,
    /// What was seen.
    pub tally: Tally,
    nodes: Vec<Seen>,
    /// Since when two nodes can send to each other.
    direct: BTreeMap<(usize, usize), Since>,
    /// Since when two nodes can hear of each other.
    joined: BTreeMap<(usize, usize), Since>,
    by_id: BTreeMap<NodeId, Vec<usize>>,
    /// Every lease that was ever held, by whom, with which epoch.
    grants: BTreeSet<(IpNetwork, NodeId, u64)>,
    /// What two nodes have both.
    overlaps: BTreeSet<(Double, usize, usize)>,
    /// What two joined nodes have both, and until when they may.
    doubles: BTreeMap<(Double, usize, usize), Instant>,
    next_due: Option<Instant>,
    /// Who uses an address.
    users: BTreeMap<IpAddr, BTreeSet<usize>>,
    /// The numbers of all pods that there are.
    pods: BTreeSet<u64>,
    pods_made: u64,
}

/// What should have one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Double {
    Subnet(IpNetwork),
    Address(IpAddr),
}

/// Since when two nodes have been together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Since {
    at: Instant,
    /// Whether one of them was started then; otherwise both were there, and a cut was healed.
    by_start: bool,
}

/// A node, as it was looked at last.
#[derive(Debug)]
struct Seen {
    life: u32,
    started: Option<Instant>,
    is_running: bool,
    speaks: bool,
    /// The highest version of its record, and what that was when it was started last.
    version: u64,
    floor: u64,
    /// Its life, as the failure detector counts them.
    incarnation: u64,
    map: Option<Arc<SubnetMap>>,
    /// What it holds and uses.
    held: Vec<(IpNetwork, u64)>,
    /// Since when it has wanted what it does not hold yet, and whether it held that before.
    claims: Vec<(IpNetwork, Instant)>,
    /// What it was granted and has not been told to be lost.
    entitled: Vec<(IpNetwork, u64)>,
    events_read: usize,
    /// Its pods. Like those that it leaves addresses to, they outlive its process.
    pods: BTreeMap<IpAddr, Attached>,
    /// Addresses out of its lease that pods of others have.
    lent: BTreeMap<IpAddr, NodeId>,
    /// What its process has been told of both.
    told: Option<Holdings>,
    pods_changed: bool,
    /// When its next pod comes, or one that is to end does.
    pods_due: Option<Instant>,
    pod_map: Option<Arc<PodMap>>,
    /// Pods that it knew, and that are gone.
    buried_pods: BTreeSet<u64>,
    /// From when on it may be given another pod.
    next_pod: Instant,
    /// Who was dead or gone to it after they had stopped.
    buried: BTreeSet<NodeId>,
    /// Whom it has forgotten after they had stopped.
    forgotten: BTreeSet<NodeId>,
}

impl Seen {
    fn new(now: Instant) -> Self {
        Self {
            life: 0,
            started: None,
            is_running: false,
            speaks: false,
            version: 0,
            floor: 0,
            incarnation: 0,
            map: None,
            held: Vec::new(),
            claims: Vec::new(),
            entitled: Vec::new(),
            events_read: 0,
            pods: BTreeMap::new(),
            lent: BTreeMap::new(),
            told: None,
            pods_changed: false,
            pods_due: None,
            pod_map: None,
            buried_pods: BTreeSet::new(),
            next_pod: now,
            buried: BTreeSet::new(),
            forgotten: BTreeSet::new(),
        }
    }
}

/// A pod.
#[derive(Debug, Clone, Copy)]
struct Attached {
    number: u64,
    /// Since when its node has not had its subnet any more.
    lost_at: Option<Instant>,
}

/// How many pods each node is given, and how far apart they come.
const PODS: usize = 2;
const POD_PAUSE: Duration = Duration::from_secs(2);

/// How long pods live on after their node has lost their subnet.
const POD_LIFE: Duration = Duration::from_secs(20);

impl Watch {
    /// Has a look at what changed at node `ix` in the last step.
    pub(super) fn look(&mut self, network: &Network, ix: usize) -> Result<(), Violation> {
        self.tally.steps += 1;
        let node = &network.nodes[ix];
        if self.nodes.get(ix).is_none_or(|seen| {
            let speaks = node.gossip.as_ref().is_some_and(Gossip::may_speak);
            seen.is_running != node.gossip.is_some()
                || seen.life != node.life
                || seen.speaks != speaks
        }) {
            self.rewire(network)?;
        }
        if let Some(gossip) = &network.nodes[ix].gossip {
            let seen = &mut self.nodes[ix];
            seen.version = seen.version.max(gossip.version);
            seen.incarnation = gossip.swim.identity().incarnation;
        }
        self.follow_leases(network, ix)?;
        self.follow_map(network, ix)?;
        self.follow_pods(network, ix)?;
        if self.nodes[ix].pods_due.is_some_and(|due| due <= network.now) {
            self.attach_pods(network, ix)?;
            self.find_doubles(network);
        }
        if self.next_due.is_some_and(|due| network.now >= due) {
            self.check_doubles(network)?;
        }
        Ok(())
    }

    /// Takes note of who can talk to whom, after that was changed.
    pub(super) fn rewire(&mut self, network: &Network) -> Result<(), Violation> {
        let count = network.nodes.len();
        let mut started = BTreeSet::new();
        while self.nodes.len() < count {
            self.nodes.push(Seen::new(network.now));
        }
        for (ix, node) in network.nodes.iter().enumerate() {
            let seen = &mut self.nodes[ix];
            let is_running = node.gossip.is_some();
            if is_running && seen.life != node.life {
                started.insert(ix);
                seen.started = Some(network.now);
                seen.life = node.life;
                seen.floor = seen.version;
                seen.map = None;
                seen.held.clear();
                seen.claims.clear();
                seen.buried.clear();
                seen.forgotten.clear();
                seen.pod_map = None;
                seen.buried_pods.clear();
                seen.told = None;
                seen.pods_changed = true;
            }
            seen.is_running = is_running;
            seen.speaks = node.gossip.as_ref().is_some_and(Gossip::may_speak);
        }
        self.by_id.clear();
        for (ix, node) in network.nodes.iter().enumerate() {
            self.by_id.entry(node.local.id).or_default().push(ix);
        }
        for ix in &started {
            let id = network.nodes[*ix].local.id;
            for seen in &mut self.nodes {
                seen.buried.remove(&id);
                seen.forgotten.remove(&id);
            }
        }
        self.connect(network, &started);
        for ix in started {
            self.follow_leases(network, ix)?;
        }
        self.find_doubles(network);
        Ok(())
    }

    fn connect(&mut self, network: &Network, started: &BTreeSet<usize>) {
        let awake: Vec<usize> = (0..network.nodes.len())
            .filter(|ix| {
                let node = &network.nodes[*ix];
                // Who has nothing reserved on its disk, and cannot write to it, has to be silent.
                let speaks = node.gossip.as_ref().is_some_and(Gossip::may_speak);
                speaks && (node.asleep.is_none() || node.is_dozing) && !shares_address(network, *ix)
            })
            .collect();
        let mut direct = BTreeMap::new();
        let mut group: Vec<usize> = (0..network.nodes.len()).collect();
        for one in &awake {
            for other in awake.iter().filter(|other| *other > one) {
                if !network.gets_through(*one, *other) || !network.gets_through(*other, *one) {
                    continue;
                }
                let pair = (*one, *other);
                let by_start = started.contains(one) || started.contains(other);
                let since = Since { at: network.now, by_start };
                direct
                    .insert(pair, *self.direct.get(&pair).filter(|_| !by_start).unwrap_or(&since));
                if knows(network, *one, *other) || knows(network, *other, *one) {
                    let (from, to) = (group[*other], group[*one]);
                    group.iter_mut().filter(|group| **group == from).for_each(|group| *group = to);
                }
            }
        }
        let mut joined = BTreeMap::new();
        for one in &awake {
            for other in awake.iter().filter(|other| *other > one && group[**other] == group[*one])
            {
                let pair = (*one, *other);
                let by_start = started.contains(one) || started.contains(other);
                let since = Since { at: network.now, by_start };
                joined
                    .insert(pair, *self.joined.get(&pair).filter(|_| !by_start).unwrap_or(&since));
            }
        }
        self.direct = direct;
        self.joined = joined;
    }

    fn follow_leases(&mut self, network: &Network, ix: usize) -> Result<(), Violation> {
        let node = &network.nodes[ix];
        let Some(gossip) = &node.gossip else { return Ok(()) };
        let mut lost: Vec<(IpNetwork, NodeId)> = Vec::new();
        let mut released = Vec::new();
        for (_, event) in &node.events[self.nodes[ix].events_read..] {
            if let Event::LeaseLost { prefix, winner, held: true } = event {
                lost.push((*prefix, *winner));
            } else if let Event::LeaseReleased { prefix, .. } = event {
                self.nodes[ix].entitled.retain(|(entitled, _)| entitled != prefix);
                released.push(*prefix);
            } else if let Event::LeaseUnproven { prefix } = event {
                released.push(*prefix);
            }
        }
        self.nodes[ix].events_read = node.events.len();
        let mut held = Vec::new();
        let mut claims = Vec::new();
        let used = gossip.claims.summary().held;
        for lease in gossip.claims.records() {
            let Some(prefix) = lease.prefix() else { continue };
            if lease.held {
                self.grants.insert((prefix, node.local.id, lease.epoch));
            }
            if used.contains(&prefix) {
                held.push((prefix, lease.epoch));
            } else {
                let known = self.nodes[ix].claims.iter().find(|(claim, _)| *claim == prefix);
                claims.push((prefix, known.map_or(network.now, |(_, since)| *since)));
            }
        }
        for (prefix, winner) in &lost {
            self.judge_loss(network, ix, *prefix, *winner)?;
        }
        if !lost.is_empty() || !released.is_empty() {
            self.nodes[ix].pods_due = Some(network.now);
        }
        if held == self.nodes[ix].held {
            self.nodes[ix].claims = claims;
            return Ok(());
        }
        let before = std::mem::replace(&mut self.nodes[ix].held, held.clone());
        for (prefix, epoch) in &before {
            let kept = held.iter().any(|(now, _)| now == prefix);
            let told = released.contains(prefix) || lost.iter().any(|(lost, _)| lost == prefix);
            if !kept && !told {
                let what = format!(
                    "{} holds {prefix} (epoch {epoch}) no more, and tells nobody",
                    node.local.name
                );
                return self.broken(network, "I4", what);
            }
        }
        let claimed = std::mem::replace(&mut self.nodes[ix].claims, claims);
        for (prefix, epoch) in held.iter().filter(|lease| !before.contains(lease)) {
            let claimed_at = claimed.iter().find(|(claim, _)| claim == prefix).map(|(_, at)| *at);
            self.judge_grant(network, ix, *prefix, *epoch, claimed_at)?;
        }
        self.nodes[ix].pods_due = Some(network.now);
        self.find_doubles(network);
        Ok(())
    }

    /// Whether a lease was rightly lost.
    fn judge_loss(
        &mut self,
        network: &Network,
        ix: usize,
        prefix: IpNetwork,
        winner: NodeId,
    ) -> Result<(), Violation> {
        self.tally.losses += 1;
        let node = &network.nodes[ix];
        let own = node.local.id;
        let entitled = self.nodes[ix].entitled.iter().find(|(entitled, _)| *entitled == prefix);
        let epoch = entitled.map_or(0, |(_, epoch)| *epoch);
        self.nodes[ix].entitled.retain(|(entitled, _)| *entitled != prefix);
        if winner == own {
            let twins = self.by_id.get(&own).map_or(0, Vec::len);
            if twins < 2 {
                let what =
                    format!("{} gives up {prefix} for a twin that does not exist", node.local.name);
                return self.broken(network, "I4", what);
            }
            return Ok(());
        }
        let better = self.grants.iter().any(|(granted, holder, theirs)| {
            let standing = |epoch, id| Standing { fixed: false, claim: Claim::Held, epoch, id };
            let is_better = rank(standing(*theirs, *holder), standing(epoch, own)).is_gt();
            overlaps(*granted, prefix) && *holder == winner && is_better
        });
        if !better {
            let what = format!(
                "{} (epoch {epoch}) loses {prefix} to {}, who never held it with a better claim",
                node.local.name,
                self.name_of(network, winner)
            );
            return self.broken(network, "I4", what);
        }
        Ok(())
    }

    /// Whether a lease was rightly granted.
    fn judge_grant(
        &mut self,
        network: &Network,
        ix: usize,
        prefix: IpNetwork,
        epoch: u64,
        claimed_at: Option<Instant>,
    ) -> Result<(), Violation> {
        let node = &network.nodes[ix];
        let other = self.nodes[ix]
            .entitled
            .iter()
            .find(|(entitled, _)| *entitled != prefix && entitled.is_ipv6() == prefix.is_ipv6());
        if let Some((entitled, _)) = other {
            let what = format!(
                "{} was granted {entitled}, and holds {prefix} now: nobody was told of a loss",
                node.local.name
            );
            return self.broken(network, "I4", what);
        }
        let entitled = &mut self.nodes[ix].entitled;
        entitled.retain(|(entitled, _)| *entitled != prefix);
        entitled.push((prefix, epoch));
        let Some(claimed_at) = claimed_at else { return Ok(()) };
        for other in (0..self.nodes.len()).filter(|other| *other != ix) {
            let theirs = self.nodes[other].held.iter().find(|(held, _)| overlaps(*held, prefix));
            let Some((held, their_epoch)) = theirs.filter(|_| self.nodes[other].is_running) else {
                continue;
            };
            if self.could_ask(network, ix, other, claimed_at) {
                let what = format!(
                    "{} was granted {prefix} (epoch {epoch}), claimed {:.3} s ago, though {} holds {held} (epoch {their_epoch}) and could be asked",
                    node.local.name,
                    (network.now - claimed_at).as_secs_f64(),
                    network.nodes[other].local.name,
                );
                return self.broken(network, "I2", what);
            }
        }
        Ok(())
    }

    /// Does what a node's container runtime and its daemon do with pods: those of a lost subnet live on for a
    /// while, and others come one after the other, at addresses that nobody else's pods have.
    fn attach_pods(&mut self, network: &Network, ix: usize) -> Result<(), Violation> {
        let now = network.now;
        let (seen, own) = (&mut self.nodes[ix], network.nodes[ix].local.id);
        let entitled = &seen.entitled;
        for (address, pod) in &mut seen.pods {
            let is_home = entitled.iter().any(|(prefix, _)| prefix.contains(*address));
            pod.lost_at = if is_home { None } else { pod.lost_at.or(Some(now)) };
        }
        let ends = |pod: &Attached| pod.lost_at.map(|at| at + POD_LIFE);
        let ended = seen.pods.iter().filter(|(_, pod)| ends(pod).is_some_and(|end| end <= now));
        let ended: Vec<_> = ended.map(|(address, pod)| (*address, pod.number)).collect();
        for (address, number) in ended {
            seen.pods.remove(&address);
            seen.pods_changed = true;
            self.pods.remove(&number);
            if let Some(users) = self.users.get_mut(&address) {
                users.remove(&ix);
            }
        }
        seen.pods_due = seen.pods.values().filter_map(ends).min();
        let Some(gossip) = &network.nodes[ix].gossip else { return Ok(()) };
        let map = gossip.map();
        let has_pod = |address: &IpAddr| seen.pods.contains_key(address);
        let mut lent = seen.lent.clone();
        lent.retain(|address, to| map.asks(*to, *address).unwrap_or(true));
        if !seen.held.is_empty() {
            for (address, to) in map.requests(own) {
                lent.entry(address).or_insert(to);
            }
        }
        lent.retain(|address, _| !has_pod(address));
        seen.lent = lent;
        let mut fresh = None;
        for (prefix, _) in &seen.held {
            let there = seen.pods.keys().filter(|address| prefix.contains(**address)).count();
            if there < PODS {
                // The first address is the node's own.
                let mut free = prefix.iter().skip(2).filter(|address| {
                    !seen.pods.contains_key(address) && !seen.lent.contains_key(address)
                });
                fresh = fresh.or_else(|| free.next());
                let next = now + POD_PAUSE;
                seen.pods_due = Some(seen.pods_due.map_or(next, |due| due.min(next)));
            }
        }
        if let Some(address) = fresh.filter(|_| seen.next_pod <= now) {
            seen.next_pod = now + POD_PAUSE;
            self.pods_made += 1;
            let pod = Attached { number: self.pods_made, lost_at: None };
            seen.pods.insert(address, pod);
            seen.pods_changed = true;
            self.pods.insert(pod.number);
            self.users.entry(address).or_default().insert(ix);
            self.judge_address(network, ix, address)?;
        }
        self.tally.pods = self.tally.pods.max(self.pods.len());
        Ok(())
    }

    /// Whether an address was rightly given to a pod.
    fn judge_address(
        &self,
        network: &Network,
        ix: usize,
        address: IpAddr,
    ) -> Result<(), Violation> {
        let others = self.users.get(&address).into_iter().flatten().filter(|other| **other != ix);
        for other in others {
            // That the other pod lives on was told when its node lost the subnet.
            let lost = self.nodes[*other].pods.get(&address).and_then(|pod| pod.lost_at);
            let told = lost.is_some_and(|at| at + self.bounds.heal <= network.now);
            let settled = self.settled_at(network, ix) <= network.now;
            let standing = !is_cut_off(network, *other, address);
            if told && settled && standing && self.are_joined(ix, *other) {
                let what = format!(
                    "{} gives {address} to a pod, though one of {} has kept it",
                    network.nodes[ix].local.name, network.nodes[*other].local.name
                );
                return self.broken(network, "I1", what);
            }
        }
        Ok(())
    }

    /// What a node's daemon tells its gossip of pods, if that has changed since it was asked last.
    pub(super) fn take_pods(&mut self, ix: usize) -> Option<(Vec<LocalPod>, Holdings)> {
        let seen = self.nodes.get_mut(ix)?;
        let holdings =
            Holdings { pods: seen.pods.keys().copied().collect(), grants: seen.lent.clone() };
        let changed = std::mem::take(&mut seen.pods_changed);
        if !changed && seen.told.as_ref() == Some(&holdings) {
            return None;
        }
        seen.told = Some(holdings.clone());
        let pods = seen.pods.iter().map(|(address, Attached { number, .. })| {
            let pod = Pod {
                namespace: "default".to_owned(),
                name: format!("pod-{number}"),
                uid: Some(number.to_string()),
                addresses: vec![*address],
                labels: BTreeMap::new(),
                host_network: false,
            };
            LocalPod { pod, age: Duration::ZERO }
        });
        Some((pods.collect(), holdings))
    }

    fn follow_pods(&mut self, network: &Network, ix: usize) -> Result<(), Violation> {
        let Some(gossip) = &network.nodes[ix].gossip else { return Ok(()) };
        let map = gossip.pods();
        let former = self.nodes[ix].pod_map.clone();
        if former.as_ref().is_some_and(|former| Arc::ptr_eq(former, map)) {
            return Ok(());
        }
        let now = numbers(map);
        // What vanishes with its node may be shown again with it, until its end is heard of.
        let members = &gossip.map().members;
        let is_active = |id| members.get(id).is_some_and(|member| member.state.is_active());
        let before = former.iter().flat_map(|former| former.iter());
        let before =
            before.filter(|entry| is_active(&entry.node)).filter_map(|entry| number(&entry.pod));
        let gone: Vec<u64> =
            before.filter(|number| !now.contains(number) && !self.pods.contains(number)).collect();
        let seen = &mut self.nodes[ix];
        if let Some(number) = now.intersection(&seen.buried_pods).next() {
            let what = format!(
                "{} knows pod-{number} again, which has ended and was gone",
                network.nodes[ix].local.name
            );
            return self.broken(network, "I6", what);
        }
        seen.buried_pods.extend(gone);
        seen.pod_map = Some(Arc::clone(map));
        Ok(())
    }

    fn find_doubles(&mut self, network: &Network) {
        let running: Vec<usize> =
            (0..self.nodes.len()).filter(|ix| self.nodes[*ix].is_running).collect();
        let mut found: BTreeSet<(Double, usize, usize)> = BTreeSet::new();
        let mut leases: Vec<(IpNetwork, usize)> = running
            .iter()
            .flat_map(|ix| self.nodes[*ix].held.iter().map(|(prefix, _)| (*prefix, *ix)))
            .collect();
        leases.sort_unstable();
        // Subnets overlap only with what follows them in this order, up to the first that does not.
        for (at, (prefix, one)) in leases.iter().enumerate() {
            for (other_prefix, other) in
                leases[at + 1..].iter().take_while(|(next, _)| overlaps(*next, *prefix))
            {
                if one != other {
                    let subnet =
                        if prefix.prefix() > other_prefix.prefix() { prefix } else { other_prefix };
                    found.insert((Double::Subnet(*subnet), *one.min(other), *one.max(other)));
                }
            }
        }
        for (address, users) in self.users.iter().filter(|(_, users)| users.len() > 1) {
            let users: Vec<_> = users.iter().filter(|ix| self.nodes[**ix].is_running).collect();
            for (at, one) in users.iter().enumerate() {
                for other in &users[at + 1..] {
                    found.insert((Double::Address(*address), **one, **other));
                }
            }
        }
        let fresh = found.difference(&self.overlaps);
        let subnets = fresh.filter(|(what, _, _)| matches!(what, Double::Subnet(_)));
        self.tally.disputes += subnets.count() as u64;
        let doubles = found.iter().filter_map(|double| {
            let (_, one, other) = double;
            let begun = self.joined.get(&(*one, *other))?;
            let until = self.settled_at(network, *one).max(begun.at + self.bounds.heal);
            Some((*double, until))
        });
        self.doubles = doubles.collect();
        self.next_due = self.doubles.values().min().copied();
        self.overlaps = found;
    }

    fn check_doubles(&mut self, network: &Network) -> Result<(), Violation> {
        let now = network.now;
        for ((what, one, other), due) in &mut self.doubles {
            let Double::Address(address) = what else { continue };
            // Of two pods with one address, one may be there and cut off: it has to be deleted by somebody.
            let stands = |ix: &usize| !is_cut_off(network, *ix, *address);
            if now >= *due && !(stands(one) && stands(other)) {
                *due = now + Duration::from_secs(1);
            }
        }
        self.next_due = self.doubles.values().min().copied();
        let due = self.doubles.iter().find(|(_, due)| now >= **due);
        let Some(((what, one, other), _)) = due else { return Ok(()) };
        let name = |ix: usize| network.nodes[ix].local.name.as_str();
        let epoch = |ix: usize, prefix: IpNetwork| {
            let held = self.nodes[ix].held.iter().find(|(held, _)| overlaps(*held, prefix));
            held.map_or(0, |(_, epoch)| *epoch)
        };
        let (one, other) = (*one, *other);
        let since = self.joined.get(&(one, other)).map_or(network.now, |since| since.at);
        let together = (network.now - since).as_secs_f64();
        match *what {
            Double::Subnet(prefix) => {
                let text = format!(
                    "{} (epoch {}) and {} (epoch {}) hold {prefix}, though they have been together for {together:.1} s",
                    name(one),
                    epoch(one, prefix),
                    name(other),
                    epoch(other, prefix),
                );
                self.broken(network, "I2", text)
            }
            Double::Address(address) => {
                let text = format!(
                    "pods of {} and of {} use {address}, though they have been together for {together:.1} s",
                    name(one),
                    name(other),
                );
                self.broken(network, "I1", text)
            }
        }
    }

    fn follow_map(&mut self, network: &Network, ix: usize) -> Result<(), Violation> {
        let Some(gossip) = &network.nodes[ix].gossip else { return Ok(()) };
        let map = gossip.map();
        let former = self.nodes[ix].map.clone();
        if former.as_ref().is_some_and(|former| Arc::ptr_eq(former, map)) {
            return Ok(());
        }
        let own = network.nodes[ix].local.id;
        if let Some(former) = &former {
            for member in former.members.values().filter(|member| member.id != own) {
                let now = map.members.get(&member.id);
                if let Some(now) = now.filter(|now| now.version < member.version) {
                    let what = format!(
                        "{} goes back from version {} to {} of the record of {}",
                        network.nodes[ix].local.name, member.version, now.version, member.name
                    );
                    return self.broken(network, "I6", what);
                }
                for prefix in member.routes() {
                    if !now.is_some_and(|now| now.routes().any(|route| route == prefix)) {
                        self.judge_lost_route(network, ix, member.id, prefix)?;
                    }
                }
                if now.is_none() && self.has_stopped(member.id) {
                    self.nodes[ix].forgotten.insert(member.id);
                }
            }
        }
        for member in map.members.values().filter(|member| member.id != own) {
            // At its address another one answers.
            let address = member.underlay;
            let is_replaced = (0..self.nodes.len()).any(|other| {
                self.nodes[other].is_running && network.nodes[other].address.ip() == address
            });
            if !self.has_stopped(member.id) || is_replaced {
                continue;
            }
            let name = &network.nodes[ix].local.name;
            if self.nodes[ix].forgotten.contains(&member.id) {
                let what = format!(
                    "{name} knows {} again, which has stopped and was forgotten",
                    member.name
                );
                return self.broken(network, "I6", what);
            }
            // Whose last life was never heard of may still be told to have lived.
            let address = SocketAddr::new(member.underlay, member.gossip_port);
            let met = gossip.swim.state(member.id, address).map_or(0, |(met, _)| met.incarnation);
            let was_met = self.by_id.get(&member.id).is_some_and(|nodes| {
                let is_last = |seen: &Seen| member.version > seen.floor && met >= seen.incarnation;
                nodes.iter().all(|ix| is_last(&self.nodes[*ix]))
            });
            if !member.state.is_active() {
                if was_met {
                    self.nodes[ix].buried.insert(member.id);
                }
            } else if self.nodes[ix].buried.contains(&member.id) {
                let what = format!(
                    "{name} believes that {} lives again, which has stopped and was dead to it",
                    member.name
                );
                return self.broken(network, "I6", what);
            }
        }
        self.nodes[ix].map = Some(Arc::clone(map));
        // What others ask for may have changed.
        self.nodes[ix].pods_due = Some(network.now);
        Ok(())
    }

    /// Whether a route went away though nothing is wrong with either end.
    fn judge_lost_route(
        &mut self,
        network: &Network,
        ix: usize,
        to: NodeId,
        prefix: IpNetwork,
    ) -> Result<(), Violation> {
        let Some([other]) = self.by_id.get(&to).map(Vec::as_slice) else { return Ok(()) };
        let other = *other;
        let pair = (ix.min(other), ix.max(other));
        let undisturbed =
            self.direct.get(&pair).is_some_and(|since| network.now >= since.at + self.bounds.heal);
        let holds = self.nodes[other].held.iter().any(|(held, _)| *held == prefix);
        let leaving = network.nodes[other]
            .gossip
            .as_ref()
            .is_none_or(|gossip| gossip.lease_state() == LeaseState::Left);
        let disputed = (0..self.nodes.len()).any(|third| {
            third != other
                && self.nodes[third].is_running
                && self.nodes[third].held.iter().any(|(held, _)| overlaps(*held, prefix))
        });
        if undisturbed && holds && !leaving && !disputed {
            let what = format!(
                "{} routes {prefix} to {} no more, though nothing is wrong between them",
                network.nodes[ix].local.name, network.nodes[other].local.name
            );
            return self.broken(network, "I5", what);
        }
        Ok(())
    }

    /// Why the nodes do not agree yet; `None` if they do.
    pub(super) fn disagreement(&self, network: &Network) -> Option<String> {
        let awake = network.running().filter(|ix| network.nodes[*ix].asleep.is_none());
        let running: Vec<usize> = awake.collect();
        for ix in &running {
            let node = &network.nodes[*ix];
            let name = &node.local.name;
            let gossip = node.gossip.as_ref()?;
            let map = gossip.map();
            let state = gossip.lease_state();
            let settled = match &state {
                LeaseState::Held { .. } => true,
                LeaseState::Exhausted { .. } => self.all_are_held(network),
                LeaseState::Suspended { .. } => {
                    self.by_id.get(&node.local.id).is_some_and(|twins| twins.len() > 1)
                }
                LeaseState::Waiting
                | LeaseState::Claiming { .. }
                | LeaseState::Returning { .. }
                | LeaseState::Blocked { .. }
                | LeaseState::Left => false,
            };
            if !settled {
                return Some(format!("{name} is {state:?}"));
            }
            for other in
                running.iter().filter(|other| *other == ix || self.are_joined(*ix, **other))
            {
                let theirs = &network.nodes[*other];
                let suspended =
                    matches!(theirs.gossip.as_ref()?.lease_state(), LeaseState::Suspended { .. });
                let Some(member) = map.members.get(&theirs.local.id) else {
                    return Some(format!("{name} does not know {}", theirs.local.name));
                };
                if suspended {
                    continue;
                }
                let shadowed = member.shadowed;
                if !member.state.is_active() && !shadowed {
                    return Some(format!(
                        "to {name}, {} is {}",
                        theirs.local.name,
                        member.state.name()
                    ));
                }
                let mut routes: Vec<_> = member.routes().collect();
                let mut held: Vec<_> =
                    self.nodes[*other].held.iter().map(|(prefix, _)| *prefix).collect();
                routes.sort_unstable();
                held.sort_unstable();
                if routes != held && !shadowed {
                    return Some(format!(
                        "{name} routes {routes:?} to {}, which holds {held:?}",
                        theirs.local.name
                    ));
                }
                let (own, other) = (gossip.origin.get(), theirs.gossip.as_ref()?.origin.get());
                if own != other {
                    return Some(format!(
                        "{name} belongs to {own:?}, and {} to {other:?}",
                        theirs.local.name
                    ));
                }
                let their_map = theirs.gossip.as_ref()?.map();
                if let Some(difference) = difference(map, their_map) {
                    return Some(format!(
                        "the maps of {name} and {} differ: {difference}",
                        theirs.local.name
                    ));
                }
            }
            for member in map.members.values().filter(|member| member.state.is_active()) {
                let alive = self.by_id.get(&member.id).into_iter().flatten().any(|other| {
                    *other == *ix || (running.contains(other) && self.are_joined(*ix, *other))
                });
                if !alive {
                    return Some(format!("{name} believes that {} is alive", member.name));
                }
            }
            let there =
                running.iter().filter(|other| *other == ix || self.are_joined(*ix, **other));
            let there = there.filter(|other| {
                let gossip = network.nodes[**other].gossip.as_ref();
                let state = gossip.map(Gossip::lease_state);
                !matches!(state, Some(LeaseState::Suspended { .. }))
            });
            let real: BTreeSet<u64> = there
                .flat_map(|other| self.nodes[*other].pods.values().map(|pod| pod.number))
                .collect();
            let known = numbers(gossip.pods());
            let shadowed = map.members.values().any(|member| member.shadowed);
            // A pod whose address leads to another node's pod is kept out of the map, and counted.
            let left_out = real.len().checked_sub(known.len());
            let all = known.is_subset(&real) && left_out == Some(gossip.pods().kept_out);
            if !all && !shadowed {
                return Some(format!("{name} knows the pods {known:?}, and there are {real:?}"));
            }
        }
        None
    }

    /// Has a node forget what it was granted, because its disk was changed or its operator said so.
    pub(super) fn excuse(&mut self, ix: usize) {
        if let Some(seen) = self.nodes.get_mut(ix) {
            seen.entitled.clear();
        }
    }

    fn all_are_held(&self, network: &Network) -> bool {
        let config = &network.config.lease;
        let ranges = config.ranges.iter().filter(|range| range.is_ipv4());
        let all: u32 =
            ranges.map(|range| 1 << (config.prefix_len_v4 - range.prefix()).min(20)).sum();
        let held = self.nodes.iter().filter(|seen| seen.is_running);
        let held: BTreeSet<_> =
            held.flat_map(|seen| seen.held.iter().map(|(prefix, _)| *prefix)).collect();
        held.len() >= usize::try_from(all).unwrap_or(usize::MAX)
    }

    /// When all those that `ix` is joined with have had the time to hear of each other.
    ///
    /// Whoever was just started asks before it claims, so only cuts that were healed take time.
    fn settled_at(&self, network: &Network, ix: usize) -> Instant {
        let with = |(one, other): &(usize, usize)| {
            (*one == ix || self.are_joined(ix, *one))
                && (*other == ix || self.are_joined(ix, *other))
        };
        let around = self.joined.iter().filter(|(pair, _)| with(pair));
        let settled = around.map(|(_, since)| match since.by_start {
            true => since.at,
            false => since.at + self.bounds.heal,
        });
        settled.max().unwrap_or(network.started)
    }

    /// Whether `ix`, which wants something since `since`, could learn what `other` holds by asking those
    /// whom it knew: one of them had been there for long enough to know.
    fn could_ask(&self, network: &Network, ix: usize, other: usize, since: Instant) -> bool {
        let has_twin = network.nodes[ix].local.id == network.nodes[other].local.id;
        let node = &network.nodes[ix];
        let mut others = (0..self.nodes.len()).filter(|asked| *asked != ix);
        let knows_one = others.any(|asked| {
            let seen = &self.nodes[asked];
            let address = network.nodes[asked].address;
            let known = node.seeds.contains(&address) || node.local.memory.peers.contains(&address);
            let reached = self.direct.contains_key(&(ix.min(asked), ix.max(asked)));
            let in_time = seen.started.is_some_and(|at| at + self.bounds.start <= since);
            let knows = asked == other || self.are_joined(asked, other);
            known && reached && seen.is_running && in_time && knows
        });
        let settled = self.settled_at(network, ix) <= since;
        knows_one && settled && !has_twin && self.are_joined(ix, other)
    }

    fn are_joined(&self, one: usize, other: usize) -> bool {
        self.joined.contains_key(&(one.min(other), one.max(other)))
    }

    fn has_stopped(&self, id: NodeId) -> bool {
        self.by_id.get(&id).is_none_or(|nodes| nodes.iter().all(|ix| !self.nodes[*ix].is_running))
    }

    fn name_of(&self, network: &Network, id: NodeId) -> String {
        let ix = self.by_id.get(&id).and_then(|nodes| nodes.first());
        ix.map_or_else(|| id.to_string(), |ix| network.nodes[*ix].local.name.clone())
    }

    fn broken<T>(
        &self,
        network: &Network,
        invariant: &'static str,
        what: String,
    ) -> Result<T, Violation> {
        Err(Violation { at: network.elapsed(), invariant, what })
    }
}

/// Whether another process has this one's underlay address, too, and so gets a part of what is sent to it: nobody can
/// hear of either as long as that lasts.
fn shares_address(network: &Network, ix: usize) -> bool {
    let own = network.nodes[ix].address.ip();
    network
        .nodes
        .iter()
        .enumerate()
        .any(|(other, node)| other != ix && node.gossip.is_some() && node.address.ip() == own)
}

/// Whether a pod of a node may not use its address any more, because another node's has it.
fn is_cut_off(network: &Network, ix: usize, address: IpAddr) -> bool {
    let node = &network.nodes[ix];
    node.gossip.as_ref().is_some_and(|gossip| {
        gossip.lease_state().is_suspended()
            || gossip.map().cut_off(node.local.id).contains(&address)
    })
}

/// Whether `one` has a way to find `other`.
fn knows(network: &Network, one: usize, other: usize) -> bool {
    let node = &network.nodes[one];
    let (address, id) = (network.nodes[other].address, network.nodes[other].local.id);
    node.seeds.contains(&address)
        || node.local.memory.peers.contains(&address)
        || node.gossip.as_ref().is_some_and(|gossip| gossip.map().members.contains_key(&id))
}

fn number(pod: &Pod) -> Option<u64> {
    pod.uid.as_deref()?.parse().ok()
}

/// The numbers of the pods that a node knows.
fn numbers(map: &PodMap) -> BTreeSet<u64> {
    map.iter().filter_map(|entry| number(&entry.pod)).collect()
}

/// Where two maps differ in what they say of who lives and who holds what.
fn difference(one: &SubnetMap, other: &SubnetMap) -> Option<String> {
    let ids: BTreeSet<&NodeId> = one.members.keys().chain(other.members.keys()).collect();
    ids.into_iter().find_map(|id| {
        let tell = |map: &SubnetMap| {
            map.members.get(id).map(|member| {
                let leases: Vec<_> = member
                    .leases
                    .iter()
                    .map(|lease| (lease.prefix, lease.claim, lease.epoch))
                    .collect();
                (member.version, member.state.is_active(), leases)
            })
        };
        let (here, there) = (tell(one), tell(other));
        // The dead are not forgotten at the same moment everywhere.
        let is_dead = |it: &Option<(u64, bool, _)>| it.as_ref().is_none_or(|(_, lives, _)| !lives);
        let forgotten = (here.is_none() || there.is_none()) && is_dead(&here) && is_dead(&there);
        (here != there && !forgotten).then(|| format!("{}: {here:?} and {there:?}", id.short()))
    })
}
