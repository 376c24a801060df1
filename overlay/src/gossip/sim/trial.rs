//! One case with one seed.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::cases::Case;
use super::clock::Clock;
use super::history::History;
use super::watch::{Tally, Violation, Watch};
use super::{Faults, Network};
use crate::gossip::{Event, LeaseState, LocalNode, Memory};
use crate::seal::KeyRing;

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The promise that was broken; `None` if all were kept.
    pub violation: Option<Violation>,
    /// What happened, in numbers.
    pub tally: Tally,
}

/// A network that a script puts through something, and that is looked at after every step.
///
/// Nodes are numbers, in the order in which they were added. After a broken promise nothing happens any
/// more, so that a script need not look.
pub struct Trial {
    /// The nodes and what is between them.
    pub network: Network,
    watch: Watch,
    random: StdRng,
    /// With whom newcomers begin.
    doors: Vec<usize>,
    violation: Option<Violation>,
    /// How far each node has come with a change of keys that is under way.
    rotation: Option<Vec<usize>>,
    /// What time it is, and how many steps it has been.
    beats: (Instant, u32),
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial").field("violation", &self.violation).finish_non_exhaustive()
    }
}

/// Runs `case` with `seed`.
pub fn run(case: &Case, seed: u64) -> Outcome {
    let mut trial = Trial::new(seed);
    trial.play(case)
}

/// Runs `case` with `seed`, and tells all that happened.
pub fn replay(case: &Case, seed: u64) -> (Outcome, History) {
    let mut trial = Trial::new(seed);
    trial.network.history = Some(History::default());
    let outcome = trial.play(case);
    let mut history = trial.network.history.take().unwrap_or_default();
    if let Some(violation) = &outcome.violation {
        history.note(violation.at, format!("*** {violation}"));
        history.note(violation.at, format!("what the nodes know:\n{}", trial.picture()));
    }
    (outcome, history)
}

impl Trial {
    fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed ^ 0x7472_6961_6c00_0000);
        let network = Network::new(seed);
        Self {
            beats: (network.now, 0),
            network,
            watch: Watch::default(),
            random,
            doors: vec![0],
            violation: None,
            rotation: None,
        }
    }

    fn play(&mut self, case: &Case) -> Outcome {
        let script = AssertUnwindSafe(|| {
            (case.script)(self);
            self.say("the end of the script: all is mended, and must settle".to_owned());
            self.heal();
            self.network.faults = Faults::default();
            self.agree();
            self.end_rotation();
            self.wait(3);
            self.agree();
        });
        if let Err(panic) = catch_unwind(script) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let what = text.unwrap_or_else(|| "a panic without words".to_owned());
            self.violation =
                Some(Violation { at: self.network.elapsed(), invariant: "panic", what });
        }
        Outcome { violation: self.violation.clone(), tally: self.watch.tally }
    }

    // Nodes

    /// Starts `count` nodes that have the first one as their seed.
    pub fn start(&mut self, count: usize) {
        for _ in 0..count {
            self.join();
        }
    }

    /// Starts one more node.
    pub fn join(&mut self) -> usize {
        let doors = self.doors.clone();
        self.join_by(&doors)
    }

    /// Starts one more node whose seeds are `doors`.
    pub fn join_by(&mut self, doors: &[usize]) -> usize {
        let local = self.network.next_local();
        self.join_as(local, doors)
    }

    /// Starts a certain node whose seeds are `doors`.
    pub fn join_as(&mut self, local: LocalNode, doors: &[usize]) -> usize {
        let ix = self.network.nodes.len();
        let seeds: Vec<SocketAddr> = doors
            .iter()
            .filter(|door| **door != ix)
            .map(|door| match self.network.nodes.get(*door) {
                Some(_) => self.network.address(*door),
                None => self.future_address(*door),
            })
            .collect();
        if let Some(stages) = &mut self.rotation {
            let stage = stages.iter().copied().min().unwrap_or_default();
            stages.push(stage);
            self.network.keys = Some(ring(stage));
        }
        let name = local.name.clone();
        self.say(format!("{name} at {} is started, with seeds {doors:?}", local.underlay));
        let ix = self.network.install(local, seeds);
        // No two machines have started at the same time, and none has a perfect quartz.
        let ahead = Duration::from_secs(self.random.random_range(0..1_000_000));
        let fast_ppm = self.random.random_range(-200..=200);
        self.network.nodes[ix].clock = Clock::wrong(self.network.now, ahead, fast_ppm);
        if !self.is_over() {
            self.network.start(ix);
        }
        self.changed();
        ix
    }

    /// Makes `doors` the seeds of all nodes that are started from now on.
    pub fn enter_by(&mut self, doors: &[usize]) {
        self.doors = doors.to_vec();
    }

    /// Lets the whole range have room for `count` leases only.
    pub fn range_of(&mut self, count: u32) {
        let bits = u8::try_from(count.next_power_of_two().ilog2()).unwrap_or_default();
        let range = format!("10.244.0.0/{}", 24 - bits);
        self.network.config.lease.ranges = range.parse().into_iter().collect();
    }

    /// Makes all clockwork so many times slower, for hours that pass quickly.
    pub fn slow_motion(&mut self, times: u32) {
        let timing = &mut self.network.config.timing;
        for pause in [
            &mut timing.probe_period,
            &mut timing.probe_rtt,
            &mut timing.suspect,
            &mut timing.appeal,
            &mut timing.swim_gossip,
            &mut timing.sync,
            &mut timing.dead_dial,
            &mut timing.seed_retry,
            &mut timing.seed_retry_max,
            &mut timing.conflict,
        ] {
            *pause *= times;
        }
    }

    /// Kills nodes, as `kill -9` does.
    pub fn kill(&mut self, nodes: &[usize]) {
        self.each(nodes, "is killed", Network::kill);
    }

    /// Starts killed nodes again, with what they had saved.
    pub fn revive(&mut self, nodes: &[usize]) {
        self.each(nodes, "is started again", |network, ix| {
            if network.nodes[ix].gossip.is_none() {
                network.start(ix);
            }
        });
    }

    /// Kills nodes and starts them again at once.
    pub fn restart(&mut self, nodes: &[usize]) {
        self.kill(nodes);
        self.revive(nodes);
    }

    /// Has nodes say goodbye.
    pub fn leave(&mut self, nodes: &[usize]) {
        self.each(nodes, "leaves", Network::leave);
    }

    /// Stops nodes' processes, as when their machines are suspended.
    pub fn sleep(&mut self, nodes: &[usize]) {
        self.each(nodes, "falls asleep", Network::freeze);
    }

    /// Lets them go on.
    pub fn wake(&mut self, nodes: &[usize]) {
        self.each(nodes, "wakes up", Network::thaw);
    }

    /// Stops a node's process for a moment only.
    pub fn stutter(&mut self, node: usize, millis: Range<u64>) {
        self.network.nodes[node].is_dozing = true;
        self.sleep(&[node]);
        self.wait_ms(millis);
        self.wake(&[node]);
        self.network.nodes[node].is_dozing = false;
        self.changed();
    }

    /// Lets a node's clock jump ahead.
    pub fn jump(&mut self, node: usize, seconds: u64) {
        let text = format!("'s clock jumps ahead by {seconds} s");
        self.each(&[node], &text, |network, ix| network.jump(ix, Duration::from_secs(seconds)));
    }

    /// Restarts a node with its clock set back.
    pub fn set_back(&mut self, node: usize, seconds: u64) {
        self.kill(&[node]);
        let text = format!("'s clock is set back by {seconds} s");
        self.each(&[node], &text, |network, ix| {
            let clock = &network.nodes[ix].clock;
            let ahead = clock.read(network.now) - network.now;
            let ahead = ahead.saturating_sub(Duration::from_secs(seconds));
            network.nodes[ix].clock = Clock::wrong(network.now, ahead, 0);
        });
        self.revive(&[node]);
    }

    // Disks

    /// What a node has on its disk.
    pub fn snapshot(&mut self, node: usize) -> Memory {
        self.say(format!("the disk of node-{node} is copied"));
        self.network.disk(node).clone()
    }

    /// Kills a node, puts `memory` onto its disk and starts it again.
    pub fn restore(&mut self, node: usize, memory: Memory) {
        self.kill(&[node]);
        self.say(format!("the disk of node-{node} is set back to the copy"));
        *self.network.disk(node) = memory;
        self.watch.excuse(node);
        self.revive(&[node]);
    }

    /// Takes from killed nodes all that they had saved.
    pub fn wipe(&mut self, nodes: &[usize]) {
        for node in nodes {
            self.watch.excuse(*node);
        }
        self.each(nodes, "'s disk is lost", Network::wipe_disk);
    }

    /// Starts a machine with a copy of a node's disk.
    pub fn clone_of(&mut self, node: usize) -> usize {
        let mut clone = self.network.next_local();
        clone.id = self.network.id(node);
        clone.memory = self.network.disk(node).clone();
        let doors = self.doors.clone();
        self.join_as(clone, &doors)
    }

    /// Lets nodes' disks refuse every write, or take them again.
    pub fn full_disk(&mut self, nodes: &[usize], full: bool) {
        let text = if full { "'s disk is full" } else { "'s disk has room again" };
        self.each(nodes, text, |network, ix| network.refuse_writes(ix, full));
    }

    // The wire

    /// Cuts `group` off from all the others.
    pub fn split(&mut self, group: &[usize]) {
        self.say(format!("{group:?} are cut off from the others"));
        self.network.isolate(group);
        self.changed();
    }

    /// Lets nothing through from one node to another; the other direction stays as it is.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.say(format!("nothing gets from node-{from} to node-{to}"));
        self.network.cut(from, to);
        self.changed();
    }

    /// Connects everybody with everybody.
    pub fn heal(&mut self) {
        self.say("everybody is connected with everybody".to_owned());
        self.network.heal();
        self.changed();
    }

    /// What the wire does to datagrams from now on.
    pub fn weather(&mut self, faults: Faults) {
        self.say(format!("{faults:?}"));
        self.network.faults = faults;
    }

    // Time

    /// Lets some seconds pass.
    pub fn wait(&mut self, seconds: u64) {
        self.wait_ms(seconds * 1000..seconds * 1000 + 1);
    }

    /// Lets between so many and so many seconds pass.
    pub fn wait_about(&mut self, seconds: Range<u64>) {
        self.wait_ms(seconds.start * 1000..seconds.end * 1000);
    }

    /// Lets between so many and so many milliseconds pass.
    pub fn wait_ms(&mut self, millis: Range<u64>) {
        let mut left = self.random.random_range(millis);
        while self.rotation.is_some() && left > 0 && !self.is_over() {
            let pause = self.random.random_range(50..1000).min(left);
            self.run(Duration::from_millis(pause));
            self.rotate();
            left -= pause;
        }
        self.run(Duration::from_millis(left));
    }

    // Keys

    /// Begins to change the key of all nodes, one after the other while time passes: first all of them accept
    /// the new one, then all use it, then all remove the old one.
    pub fn begin_rotation(&mut self) {
        self.rotation = Some(vec![0; self.network.nodes.len()]);
    }

    /// Lets the change of keys come to its end, and everybody agree afterwards.
    pub fn end_rotation(&mut self) {
        while !self.is_over()
            && self
                .rotation
                .as_ref()
                .is_some_and(|stages| stages.iter().any(|stage| *stage < LAST_STAGE))
        {
            self.wait_ms(500..501);
        }
        if self.rotation.take().is_some() {
            self.agree();
        }
    }

    /// Brings one node a step further, as soon as all have come as far as it has.
    fn rotate(&mut self) {
        let Some(stages) = &mut self.rotation else { return };
        let behind = stages.iter().copied().min().unwrap_or_default();
        let nodes = &self.network.nodes;
        // Who is asleep does not look at its key file.
        let due =
            (0..stages.len()).filter(|ix| stages[*ix] == behind && nodes[*ix].asleep.is_none());
        let due: Vec<usize> = due.collect();
        if behind == LAST_STAGE || due.is_empty() {
            return;
        }
        let ix = due[self.random.random_range(0..due.len())];
        stages[ix] += 1;
        let keys = ring(stages[ix]);
        self.each(&[ix], &format!("has the keys {:?}", keys.ids()), |network, ix| {
            network.set_keys(ix, keys.clone());
        });
    }

    /// How long agreement may take after a heal. Default 12 s.
    pub fn heal_within(&mut self, seconds: u64) {
        self.watch.bounds.heal = Duration::from_secs(seconds);
    }

    /// Waits until all that can talk with each other agree, and fails if that takes longer than it may:
    /// I3.
    pub fn agree(&mut self) {
        let begun = self.network.elapsed();
        let bound = self.watch.bounds.heal;
        while !self.is_over()
            && let Some(why) = self.watch.disagreement(&self.network)
        {
            if self.network.elapsed() >= begun + bound {
                let what = format!("no agreement within {} s: {why}", bound.as_secs());
                self.fail("I3", what);
            }
            self.run(LOOK_PAUSE);
        }
        let took = self.network.elapsed() - begun;
        self.watch.tally.slowest = self.watch.tally.slowest.max(took);
        self.say(format!("agreed after {:.2} s", took.as_secs_f64()));
    }

    // Chance

    /// Everything from `0` to `count`, in an order by chance.
    pub fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        all.shuffle(&mut self.random);
        all
    }

    /// A number by chance.
    pub fn any(&mut self, range: Range<usize>) -> usize {
        self.random.random_range(range)
    }

    /// Whether something that happens so often, from 0 to 1, happens now.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.random.random_bool(probability)
    }

    // What is to be seen

    /// The subnets that a node holds.
    pub fn held(&self, node: usize) -> Vec<IpNetwork> {
        self.network.held(node)
    }

    /// Whether a node has stood down for another one with its id.
    pub fn is_suspended(&self, node: usize) -> bool {
        let gossip = self.network.gossip(node);
        gossip.is_some_and(|gossip| matches!(gossip.lease_state(), LeaseState::Suspended { .. }))
    }

    /// How many of the nodes that run have told such an event.
    pub fn count(&self, is: impl Fn(&Event) -> bool) -> usize {
        let told = |ix: &usize| self.network.events(*ix).iter().any(|(_, event)| is(event));
        self.network.running().filter(told).count()
    }

    /// Fails if anybody was ever declared dead.
    pub fn nobody_died(&mut self) {
        let died = (0..self.network.nodes.len()).find_map(|ix| {
            let mut events = self.network.events(ix).iter();
            let (at, event) =
                events.find(|(_, event)| matches!(event, Event::MemberDown { .. }))?;
            Some(format!("node-{ix} tells after {:.3} s: {event:?}", at.as_secs_f64()))
        });
        if let Some(died) = died {
            self.fail("I5", died);
        }
    }

    // Expectations of a case

    /// Fails unless `holds`.
    pub fn expect(&mut self, holds: bool, what: &str) {
        if !holds {
            self.fail("case", what.to_owned());
        }
    }

    /// Fails with the invariant's name.
    pub fn fail(&mut self, invariant: &'static str, what: String) {
        let at = self.network.elapsed();
        self.violation.get_or_insert(Violation { at, invariant, what });
    }

    /// Whether a promise was broken, so that nothing happens any more.
    pub fn is_over(&self) -> bool {
        self.violation.is_some()
    }

    fn each(&mut self, nodes: &[usize], what: &str, act: impl Fn(&mut Network, usize)) {
        if self.is_over() {
            return;
        }
        for ix in nodes {
            let space = if what.starts_with('\'') { "" } else { " " };
            self.say(format!("{}{space}{what}", self.network.nodes[*ix].local.name));
            act(&mut self.network, *ix);
            self.changed();
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.network.now + time;
        while !self.is_over()
            && let Some(step) = self.network.step(end)
        {
            if let super::Step::At(ix) = step {
                self.look(ix);
            }
            self.beat();
        }
        if !self.is_over() {
            self.network.now = end;
        }
    }

    /// Looks at a node, and does on it what its container runtime would.
    fn look(&mut self, ix: usize) {
        let mut looked = self.watch.look(&self.network, ix);
        while looked.is_ok()
            && let Some((pods, holdings)) = self.watch.take_pods(ix)
        {
            self.network.set_pods(ix, pods);
            self.network.set_holdings(ix, holdings);
            looked = self.watch.look(&self.network, ix);
        }
        if let Err(violation) = looked {
            self.violation = Some(violation);
        }
    }

    /// Fails if time stands still: a node that wants to be woken again and again at one time would keep a
    /// processor busy for ever.
    fn beat(&mut self) {
        let (at, beats) = &mut self.beats;
        if *at == self.network.now {
            *beats += 1;
        } else {
            (*at, *beats) = (self.network.now, 0);
        }
        if *beats > BEATS_MAX {
            let busy = self.network.wakes.first().map(|(_, ix)| *ix);
            let node = busy.map(|ix| &self.network.nodes[ix]);
            let late = node.into_iter().flat_map(|node| {
                let now = node.clock.read(self.network.now);
                let timers = node.gossip.iter().flat_map(|gossip| gossip.timers());
                timers.filter(move |(_, at)| at.is_some_and(|at| at <= now)).map(|(name, _)| name)
            });
            let late: Vec<_> = late.collect();
            let what = format!("{BEATS_MAX} steps, and no time has passed: {busy:?} {late:?}");
            self.fail("busy", what);
        }
    }

    fn changed(&mut self) {
        if self.is_over() {
            return;
        }
        if let Err(violation) = self.watch.rewire(&self.network) {
            self.violation = Some(violation);
        }
        for ix in 0..self.network.nodes.len() {
            if self.network.nodes[ix].gossip.is_some() && !self.is_over() {
                self.look(ix);
            }
        }
    }

    fn say(&mut self, text: String) {
        let at = self.network.elapsed();
        if !self.is_over()
            && let Some(history) = &mut self.network.history
        {
            history.note(at, text);
        }
    }

    fn future_address(&self, ix: usize) -> SocketAddr {
        let base = u32::from_be_bytes([198, 18, 0, 1]);
        let ix = u32::try_from(ix).unwrap_or_default();
        SocketAddr::from(((base + ix).to_be_bytes(), 7946))
    }

    /// What every node knows.
    pub fn picture(&self) -> String {
        let running: BTreeSet<usize> = self.network.running().collect();
        let nodes = running.into_iter().filter_map(|ix| {
            let gossip = self.network.gossip(ix)?;
            let members = gossip.map().members.values().map(|member| {
                let routes: Vec<_> = member.routes().map(|route| route.to_string()).collect();
                format!(
                    "    {} {} v{} {} routes [{}]",
                    member.name,
                    member.id.short(),
                    member.version,
                    member.state.name(),
                    routes.join(" ")
                )
            });
            let members: Vec<_> = members.collect();
            let (name, state) = (&self.network.nodes[ix].local.name, gossip.lease_state());
            Some(format!("  {name}: {state:?}\n{}\n", members.join("\n")))
        });
        nodes.collect()
    }
}

/// The keys of a node that has come so far with a change of keys.
fn ring(stage: usize) -> KeyRing {
    let [old, new] = [0, 1].map(Network::key);
    let (used, accepted) = match stage {
        0 => (old, None),
        1 => (old, Some(new)),
        2 => (new, Some(old)),
        _ => (new, None),
    };
    let mut ring = KeyRing::new(used);
    if let Some(key) = accepted {
        ring.accept(key);
    }
    ring
}

/// When only the new key is left.
const LAST_STAGE: usize = 3;

/// Most steps that may happen at one time: a thousand nodes that start at once need some.
const BEATS_MAX: u32 = 100_000;

/// How often agreement is looked for.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
