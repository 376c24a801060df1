//! Every order of events that a few nodes and subnets can have, tried out on the shipped [`Claims`].
//!
//! A state is what each node has decided, what it has on disk, and which of the records that were ever
//! written it knows. From each state every event is tried: a record arrives (in any order, or never), a
//! claim's quiet time ends, the disk has written, a process ends, with or without its disk, and starts again,
//! somebody asks somebody for all it knows, the network is cut and mended, a node takes another for dead. So
//! losses, delays and reordering need no events of their own: what was lost is what never arrives.
//!
//! In *timely* models there are no cuts, and news arrive within `claim_confirm_ms`. Then nobody ever holds what
//! another one holds. In all models
//! - nothing that is held is lost to a claim that is not held, or is worse;
//! - from every state, once all records are exchanged, all know the same, and nobody holds what another
//!   one holds.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Instant;

use super::*;
use crate::gossip::record::Record;
use crate::gossip::record::tests::record;

/// A model's size.
#[derive(Debug, Clone, Copy)]
struct Size {
    nodes: usize,
    subnets: u32,
    /// Whether news arrive in time, and nothing is ever cut.
    timely: bool,
    /// How many processes end, in all.
    crashes: u32,
    /// How many of those disks are lost.
    wipes: u32,
    /// How often the last node is cut off from the others.
    cuts: u32,
    /// How many records a node writes at most: what goes further is not followed.
    records: usize,
}

/// All there is to know.
#[derive(Debug, Clone)]
struct World {
    nodes: Vec<Machine>,
    /// All records that each node has ever written, the first one first.
    written: Vec<Vec<Record>>,
    /// How many of them each node had written before its present life.
    born: Vec<usize>,
    is_cut: bool,
    crashes: u32,
    wipes: u32,
    cuts: u32,
}

#[derive(Debug, Clone)]
struct Machine {
    process: Option<Process>,
    disk: Option<Disk>,
    /// How many of each node's records it has heard of: the last of them is what it knows.
    known: Vec<usize>,
    dead: Vec<bool>,
}

#[derive(Debug, Clone)]
struct Process {
    claims: Claims,
    is_informed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Disk {
    leases: Vec<RememberedLease>,
    clock: u64,
}

/// Something that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happens {
    /// A node hears another one's record of that number.
    Hears(usize, usize, usize),
    /// Two nodes tell each other all they know, and the first one was waiting for that.
    Asks(usize, usize),
    /// A node stops waiting for somebody to ask.
    GoesOnAlone(usize),
    /// The quiet time of a claim is over.
    Confirms(usize),
    /// What is to be saved is on disk, and the node knows.
    Saves(usize),
    /// What is to be saved is on disk, and the node has ended before it knew.
    SavesAndEnds(usize),
    Ends(usize),
    LosesDisk(usize),
    Starts(usize),
    /// A node takes another one for dead, or alive again.
    Buries(usize, usize),
    Revives(usize, usize),
    IsCut,
    IsMended,
}

impl Size {
    fn config(self) -> LeaseConfig {
        let bits = 24 - self.subnets.ilog2();
        let range = format!("10.244.0.0/{bits}");
        LeaseConfig { ranges: vec![range.parse().unwrap()], ..LeaseConfig::default() }
    }
}

fn id(ix: usize) -> NodeId {
    NodeId([u8::try_from(ix).unwrap() + 1; 16])
}

impl World {
    fn new(size: Size) -> Self {
        let machine = Machine {
            process: None,
            disk: None,
            known: vec![0; size.nodes],
            dead: vec![false; size.nodes],
        };
        Self {
            nodes: vec![machine; size.nodes],
            written: vec![Vec::new(); size.nodes],
            born: vec![0; size.nodes],
            is_cut: false,
            crashes: 0,
            wipes: 0,
            cuts: 0,
        }
    }

    fn is_connected(&self, one: usize, other: usize) -> bool {
        let last = self.nodes.len() - 1;
        !self.is_cut || (one == last) == (other == last)
    }

    fn lives(&self, ix: usize) -> bool {
        self.nodes[ix].process.is_some()
    }

    /// What a node knows.
    fn store(&self, ix: usize, now: Instant) -> Store {
        let mut store = Store::new(16);
        for other in (0..self.nodes.len()).filter(|other| *other != ix) {
            if let Some(known) = self.nodes[ix].known[other].checked_sub(1) {
                let dead_since = self.nodes[ix].dead[other].then_some(now);
                store.offer(self.written[other][known].clone(), dead_since);
            }
        }
        store
    }

    fn hear(&mut self, ix: usize, other: usize, count: usize) {
        // A record of a life that is not over tells that its node lives.
        let is_alive = self.lives(other) && count > self.born[other];
        let Some(process) = &mut self.nodes[ix].process else { return };
        for lease in &self.written[other][count - 1].leases {
            process.claims.witness(lease.epoch);
        }
        let known = &mut self.nodes[ix].known[other];
        if count > *known {
            *known = count;
            self.nodes[ix].dead[other] &= !is_alive;
        }
    }

    /// Everything that `from` knows is known to `to`.
    fn tell_all(&mut self, from: usize, to: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != to) {
            let known = if other == from {
                self.written[from].len()
            } else {
                self.nodes[from].known[other]
            };
            if known > self.nodes[to].known[other] {
                self.hear(to, other, known);
            }
        }
        // What it has forgotten of itself, too.
        let own = self.nodes[from].known[to];
        if own > self.nodes[to].known[to]
            && let Some(former) = own.checked_sub(1)
        {
            let leases = self.written[to][former].leases.clone();
            let store = self.store(to, Instant::now());
            self.nodes[to].known[to] = own;
            if let Some(process) = &mut self.nodes[to].process {
                process.claims.adopt(&leases, &store);
            }
        }
    }

    /// Decides and announces, as a node does after every event.
    fn settle(&mut self, ix: usize, now: Instant) -> Result<(), String> {
        self.tick(ix, now, now)
    }

    fn tick(&mut self, ix: usize, base: Instant, now: Instant) -> Result<(), String> {
        let store = self.store(ix, base);
        let Some(process) = &mut self.nodes[ix].process else { return Ok(()) };
        let before: Vec<_> = process.claims.families.iter().map(|family| family.step).collect();
        let informed = process.is_informed;
        let changes = process.claims.tick(&store, informed, informed, now);
        // How often nothing was free makes no difference.
        process.claims.attempts = process.claims.attempts.min(ATTEMPTS_MAX);
        for family in &mut process.claims.families {
            if let Step::Claiming { since, .. } = &mut family.step {
                *since = base;
            }
        }
        self.judge(ix, &changes, &before, &store)?;
        self.announce(ix);
        Ok(())
    }

    fn announce(&mut self, ix: usize) {
        let Some(process) = &self.nodes[ix].process else { return };
        let leases = process.claims.records();
        let is_first = self.written[ix].len() == self.born[ix];
        if is_first || self.written[ix].last().is_none_or(|last| last.leases != leases) {
            let version = self.written[ix].len() as u64 + 1;
            let mut record = record(u8::try_from(ix).unwrap() + 1, version);
            record.leases = leases;
            self.written[ix].push(record);
        }
        self.nodes[ix].known[ix] = self.written[ix].len();
    }

    /// Whether what was held was rightly lost.
    fn judge(
        &self,
        ix: usize,
        changes: &[Change],
        before: &[Step],
        store: &Store,
    ) -> Result<(), String> {
        for change in changes {
            let Change::Lost { prefix, winner, held: true } = change else { continue };
            let epoch =
                before.iter().find_map(|step| step.lease().filter(|(net, ..)| net == prefix));
            let epoch = epoch.map_or(0, |(_, _, epoch)| epoch);
            let own = Standing { fixed: false, claim: Claim::Held, epoch, id: id(ix) };
            let theirs = store.get(*winner).into_iter().flat_map(|stored| &stored.record.leases);
            let mut theirs = theirs.filter(|lease| lease.prefix() == Some(*prefix));
            let better =
                theirs.any(|lease| lease.held && rank(lease.standing(*winner), own).is_gt());
            if !better {
                return Err(format!(
                    "node {ix} loses {prefix} to {winner}, who has nothing better"
                ));
            }
        }
        Ok(())
    }

    fn possible(&self, size: Size) -> Vec<Happens> {
        let all = 0..self.nodes.len();
        let mut events = Vec::new();
        for ix in all.clone() {
            let machine = &self.nodes[ix];
            let Some(process) = &machine.process else {
                events.push(Happens::Starts(ix));
                if self.wipes < size.wipes && machine.disk.is_some() {
                    events.push(Happens::LosesDisk(ix));
                }
                continue;
            };
            if self.written[ix].len() >= size.records {
                continue;
            }
            let others = || all.clone().filter(move |other| *other != ix);
            let mut can_ask =
                others().filter(|other| self.lives(*other) && self.is_connected(ix, *other));
            let is_known = |other: usize| {
                let process = self.nodes[other].process.as_ref();
                process.is_some_and(|process| process.is_informed)
            };
            if !process.is_informed {
                // If there is somebody who knows, that one is asked.
                let informed: Vec<_> = can_ask.clone().filter(|other| is_known(*other)).collect();
                let asked = if size.timely && !informed.is_empty() {
                    informed
                } else {
                    can_ask.clone().collect()
                };
                events.extend(asked.iter().map(|other| Happens::Asks(ix, *other)));
                if !size.timely || can_ask.next().is_none() {
                    events.push(Happens::GoesOnAlone(ix));
                }
            }
            for other in others() {
                let reached = self.is_connected(ix, other);
                for count in machine.known[other] + 1..=self.written[other].len() {
                    if reached {
                        events.push(Happens::Hears(ix, other, count));
                    }
                }
                let gone = !self.lives(other) || !reached;
                if gone && !machine.dead[other] && machine.known[other] > 0 {
                    events.push(Happens::Buries(ix, other));
                }
                if !gone && machine.dead[other] {
                    events.push(Happens::Revives(ix, other));
                }
            }
            let step = process.claims.families[0].step;
            if matches!(step, Step::Claiming { .. }) && (!size.timely || self.is_quiet(ix)) {
                events.push(Happens::Confirms(ix));
            }
            if matches!(step, Step::Saving { .. }) {
                events.push(Happens::Saves(ix));
                if self.crashes < size.crashes {
                    events.push(Happens::SavesAndEnds(ix));
                }
            }
            if self.crashes < size.crashes {
                events.push(Happens::Ends(ix));
            }
        }
        if self.is_cut {
            events.push(Happens::IsMended);
        } else if self.cuts < size.cuts {
            events.push(Happens::IsCut);
        }
        events
    }

    /// Whether all who know what others hold have heard of this node's claim, and it has heard what they had to
    /// say. Who was just started asks one of them before it uses anything.
    fn is_quiet(&self, ix: usize) -> bool {
        let knows = |other: &usize| {
            self.nodes[*other].process.as_ref().is_some_and(|process| process.is_informed)
        };
        (0..self.nodes.len()).filter(|other| *other != ix && knows(other)).all(|other| {
            self.nodes[other].known[ix] == self.written[ix].len()
                && self.nodes[ix].known[other] == self.written[other].len()
        })
    }

    fn happen(&mut self, event: Happens, size: Size, now: Instant) -> Result<(), String> {
        match event {
            Happens::Hears(ix, other, count) => {
                self.hear(ix, other, count);
                self.settle(ix, now)
            }
            Happens::Asks(ix, other) => {
                self.tell_all(ix, other);
                self.tell_all(other, ix);
                self.nodes[ix].dead[other] = false;
                self.nodes[other].dead[ix] = false;
                self.inform(ix);
                self.settle(other, now)?;
                self.settle(ix, now)
            }
            Happens::GoesOnAlone(ix) => {
                self.inform(ix);
                self.settle(ix, now)
            }
            Happens::Confirms(ix) => self.tick(ix, now, now + Duration::from_secs(60)),
            Happens::Saves(ix) => {
                self.save(ix);
                let store = self.store(ix, now);
                if let Some(process) = &mut self.nodes[ix].process {
                    process.claims.saved(&store);
                }
                self.announce(ix);
                self.settle(ix, now)
            }
            Happens::SavesAndEnds(ix) => {
                self.save(ix);
                self.end(ix);
                Ok(())
            }
            Happens::Ends(ix) => {
                self.end(ix);
                Ok(())
            }
            Happens::LosesDisk(ix) => {
                self.wipes += 1;
                self.nodes[ix].disk = None;
                Ok(())
            }
            Happens::Starts(ix) => {
                let mut claims = Claims::new(id(ix), size.config());
                let machine = &mut self.nodes[ix];
                let remembers = machine.disk.is_some();
                if let Some(disk) = &machine.disk {
                    claims.witness(disk.clock);
                    for lease in &disk.leases {
                        claims.remember(*lease);
                    }
                }
                machine.process = Some(Process { claims, is_informed: false });
                // A new life has a new record, also if it says the same.
                self.born[ix] = self.written[ix].len();
                if remembers || self.written[ix].is_empty() {
                    self.announce(ix);
                } else {
                    self.nodes[ix].known[ix] = 0;
                }
                Ok(())
            }
            Happens::Buries(ix, other) => {
                self.nodes[ix].dead[other] = true;
                self.settle(ix, now)
            }
            Happens::Revives(ix, other) => {
                self.nodes[ix].dead[other] = false;
                self.settle(ix, now)
            }
            Happens::IsCut => {
                self.cuts += 1;
                self.is_cut = true;
                Ok(())
            }
            Happens::IsMended => {
                self.is_cut = false;
                Ok(())
            }
        }
    }

    fn inform(&mut self, ix: usize) {
        if let Some(process) = &mut self.nodes[ix].process {
            process.is_informed = true;
        }
    }

    fn save(&mut self, ix: usize) {
        let machine = &mut self.nodes[ix];
        if let Some(Process { claims, .. }) = &machine.process {
            machine.disk = Some(Disk { leases: claims.to_save(), clock: claims.clock() });
        }
    }

    fn end(&mut self, ix: usize) {
        self.crashes += 1;
        let count = self.nodes.len();
        let machine = &mut self.nodes[ix];
        machine.process = None;
        machine.known = vec![0; count];
        machine.dead = vec![false; count];
    }

    /// What two nodes hold.
    fn double(&self) -> Option<String> {
        let held = |ix: usize| {
            let process = self.nodes[ix].process.as_ref();
            process.map(|process| process.claims.summary().held).unwrap_or_default()
        };
        let mut seen: Vec<(IpNetwork, usize)> = Vec::new();
        for ix in 0..self.nodes.len() {
            for prefix in held(ix) {
                if let Some((_, other)) = seen.iter().find(|(known, _)| *known == prefix) {
                    return Some(format!("nodes {other} and {ix} hold {prefix}"));
                }
                seen.push((prefix, ix));
            }
        }
        None
    }

    /// Mends all and lets all records be exchanged until nothing changes any more.
    fn exchange(mut self, size: Size, now: Instant) -> Result<(), String> {
        self.is_cut = false;
        for ix in 0..self.nodes.len() {
            if !self.lives(ix) {
                self.happen(Happens::Starts(ix), size, now)?;
            }
        }
        for _ in 0..20 {
            let before = self.key();
            for ix in 0..self.nodes.len() {
                for other in (0..self.nodes.len()).filter(|other| *other != ix) {
                    self.happen(Happens::Asks(ix, other), size, now)?;
                }
            }
            for ix in 0..self.nodes.len() {
                let step = self.nodes[ix].process.as_ref().map(|it| it.claims.families[0].step);
                if matches!(step, Some(Step::Claiming { .. })) && self.is_quiet(ix) {
                    self.happen(Happens::Confirms(ix), size, now)?;
                }
                self.happen(Happens::Saves(ix), size, now)?;
            }
            if self.key() == before {
                if let Some(double) = self.double() {
                    return Err(format!("after all was exchanged, {double}"));
                }
                let all = 0..self.nodes.len();
                let equal = all.clone().all(|ix| {
                    all.clone()
                        .all(|other| self.nodes[ix].known[other] == self.written[other].len())
                });
                let without = all.filter(|ix| {
                    let process = self.nodes[*ix].process.as_ref();
                    process.is_none_or(|process| process.claims.summary().held.is_empty())
                });
                let lacking = self.nodes.len().saturating_sub(size.subnets as usize);
                return if !equal {
                    Err("after all was exchanged, not all know the same".to_owned())
                } else if without.count() != lacking {
                    Err("after all was exchanged, a subnet is free and a node without".to_owned())
                } else {
                    Ok(())
                };
            }
        }
        Err("exchanging all does not come to an end".to_owned())
    }

    /// All that makes this state differ from others.
    fn key(&self) -> (u64, u64) {
        let hash = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            self.hash_into(&mut hasher);
            hasher.finish()
        };
        (hash(1), hash(2))
    }

    fn hash_into(&self, hasher: &mut DefaultHasher) {
        for (ix, machine) in self.nodes.iter().enumerate() {
            let Machine { process, disk, known, dead } = machine;
            (known, dead, self.born[ix], process.is_some(), disk.is_some()).hash(hasher);
            if let Some(Disk { leases, clock }) = disk {
                clock.hash(hasher);
                for RememberedLease { prefix, epoch } in leases {
                    (prefix, epoch).hash(hasher);
                }
            }
            if let Some(Process { claims, is_informed }) = process {
                (claims.clock, claims.attempts, is_informed).hash(hasher);
                for family in &claims.families {
                    let lease = family.step.lease();
                    let lease = lease.map(|(prefix, _, epoch)| (prefix, epoch));
                    (step_name(family.step), lease).hash(hasher);
                }
            }
            for record in &self.written[ix] {
                for lease in &record.leases {
                    (lease.network, lease.held, lease.epoch).hash(hasher);
                }
                record.version.hash(hasher);
            }
        }
        let Self { is_cut, crashes, wipes, cuts, .. } = self;
        (is_cut, crashes, wipes, cuts).hash(hasher);
    }
}

/// A node that has looked for a subnet this often goes on as if it were the last time.
const ATTEMPTS_MAX: u64 = 3;

fn step_name(step: Step) -> &'static str {
    match step {
        Step::Idle => "idle",
        Step::Exhausted => "exhausted",
        Step::Blocked { .. } => "blocked",
        Step::Claiming { .. } => "claiming",
        Step::Saving { .. } => "saving",
        Step::Clearing { .. } => "clearing",
        Step::Returning { .. } => "returning",
        Step::Held { .. } => "held",
    }
}

/// Goes through all states; returns how many there are, and how many steps between them.
fn explore(size: Size) -> (usize, usize) {
    let now = Instant::now();
    let mut seen = BTreeSet::new();
    // Each state with the way to it, as its number in this list.
    let mut ways: Vec<(usize, Option<Happens>)> = vec![(0, None)];
    let mut queue = VecDeque::from([(World::new(size), 0)]);
    let mut steps = 0;
    seen.insert(queue[0].0.key());
    while let Some((world, way)) = queue.pop_front() {
        for event in world.possible(size) {
            steps += 1;
            let mut next = world.clone();
            let mut found = next.happen(event, size, now);
            if found.is_ok() && size.timely {
                found = next.double().map_or(Ok(()), Err);
            }
            let is_new = seen.insert(next.key());
            if found.is_ok() && is_new {
                found = next.clone().exchange(size, now);
            }
            if let Err(what) = found {
                panic!("{what}\n{size:?}\n{}", story(&ways, way, event));
            }
            if is_new {
                ways.push((way, Some(event)));
                queue.push_back((next, ways.len() - 1));
            }
        }
    }
    println!("{size:?}: {} states, {steps} steps", seen.len());
    (seen.len(), steps)
}

fn story(ways: &[(usize, Option<Happens>)], mut way: usize, last: Happens) -> String {
    let mut events = vec![format!("{last:?}")];
    while let (before, Some(event)) = ways[way] {
        events.push(format!("{event:?}"));
        way = before;
    }
    events.reverse();
    events.join("\n")
}

const SMALL: Size =
    Size { nodes: 2, subnets: 2, timely: true, crashes: 1, wipes: 1, cuts: 0, records: 10 };

/// Whether to go through the large models, too, which takes minutes.
fn is_large() -> bool {
    std::env::var_os("WEFT_MODEL_LARGE").is_some()
}

#[test]
fn two_nodes_in_time() {
    let crashes = if is_large() { 2 } else { 1 };
    for subnets in [1, 2] {
        let (states, _) = explore(Size { subnets, crashes, ..SMALL });
        assert!(states > 100);
    }
}

#[test]
fn two_nodes_with_losses_and_a_cut() {
    let records = if is_large() { 6 } else { 4 };
    for subnets in [1, 2] {
        let size = Size { subnets, timely: false, cuts: 1, records, ..SMALL };
        let (states, _) = explore(size);
        assert!(states > 1000);
    }
}

/// The small one is a race of three for one subnet; in the large ones a node returns with a lease that was on
/// its disk before anybody was told, while two others claim.
#[test]
fn three_nodes_of_which_one_crashes() {
    let (crashes, records) = if is_large() { (1, 7) } else { (0, 3) };
    for subnets in if is_large() { vec![1, 2] } else { vec![1] } {
        let size = Size { nodes: 3, subnets, crashes, wipes: 0, records, ..SMALL };
        let (states, _) = explore(size);
        assert!(states > 1000);
    }
}
