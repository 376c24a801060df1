//! A network of gossiping nodes in memory: virtual time, seeded faults, the shipped protocol code.
//!
//! ```
//! use std::time::Duration;
//! use overlay::gossip::sim::Network;
//!
//! let mut network = Network::new(42);
//! network.faults.loss = 0.1;
//! for _ in 0..3 {
//!     network.add_node();
//! }
//! let agreed = network.run_until(Duration::from_secs(10), |network| network.agrees_on(3));
//! assert!(agreed);
//! ```
//!
//! The same seed and calls give the same run. A crash is [`Network::kill`]: it leaves nothing but what
//! the node had saved.
//!
//! [`cases`] are what such a network is put through, [`trial`] runs one of them with one seed, [`watch`]
//! looks after every step whether the promises hold, and [`sweep`] does that with many seeds.

pub mod cases;
mod clock;
pub mod history;
pub mod sweep;
pub mod trial;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use self::clock::Clock;
use self::history::{Fate, History};
use super::envelope::{SEALED_PREFIX, look_into};
use super::{Event, Gossip, GossipConfig, Holdings, LocalNode, Memory, Protection, check_pods};
use crate::config::LeaseConfig;
use crate::node_id::NodeId;
use crate::pods::{LocalPod, PodMap};
use crate::seal::cipher::{Header, NetworkKey, Salt};
use crate::seal::{ClusterKey, KeyRing, Secrets};
use crate::subnet::SubnetMap;

/// What the wire does to datagrams.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// The part of all datagrams that is lost, from 0 to 1.
    pub loss: f64,
    /// The part of all datagrams that arrives twice.
    pub duplication: f64,
    /// The part of all datagrams that arrives with some bytes changed.
    pub corruption: f64,
    /// How long a datagram travels; different times put datagrams out of order.
    pub delay: Range<Duration>,
    /// How long a disk takes to write what is saved; zero writes at once.
    pub disk: Range<Duration>,
}

impl Default for Faults {
    fn default() -> Self {
        let delay = Duration::from_micros(200)..Duration::from_millis(2);
        let disk = Duration::ZERO..Duration::ZERO;
        Self { loss: 0.0, duplication: 0.0, corruption: 0.0, delay, disk }
    }
}

/// Nodes and the wire between them.
#[derive(Debug)]
pub struct Network {
    /// What the wire does; may be changed at any time.
    pub faults: Faults,
    /// What nodes that are added from now on have in common.
    pub config: GossipConfig,
    /// The keys of nodes that are added from now on; `None`: they gossip in clear.
    pub keys: Option<KeyRing>,
    /// Total length of all datagrams, without UDP and IP headers.
    pub bytes_sent: u64,
    /// The longest datagram so far.
    pub longest_sent: usize,
    started: Instant,
    now: Instant,
    rng: StdRng,
    nodes: Vec<Node>,
    wire: BTreeMap<(Instant, u64), Packet>,
    packets: u64,
    wakes: BTreeSet<(Instant, usize)>,
    /// Who is at an address.
    bound: BTreeMap<SocketAddr, BTreeSet<usize>>,
    /// From whom nothing gets to whom.
    cuts: BTreeSet<(usize, usize)>,
    capture: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
    history: Option<History>,
}

/// A machine that gossip runs on.
#[derive(Debug)]
struct Node {
    config: GossipConfig,
    keys: Option<KeyRing>,
    up_since: Duration,
    /// With what it would start; its memory is what it last saved.
    local: LocalNode,
    seeds: Vec<SocketAddr>,
    gossip: Option<Gossip>,
    /// How often it was started.
    life: u32,
    clock: Clock,
    /// Where it listens in this life.
    address: SocketAddr,
    events: Vec<(Duration, Event)>,
    side: u32,
    disk_refuses: bool,
    /// What its disk is writing, and when that is done.
    writing: Option<(Instant, Memory)>,
    /// What has arrived while it slept; `None` while it is awake.
    asleep: Option<VecDeque<(SocketAddr, Vec<u8>)>>,
    /// Whether its sleep is too short to count as one.
    is_dozing: bool,
    wake: Option<Instant>,
    /// The pods on the machine, which outlive the daemon.
    pods: Vec<LocalPod>,
}

/// Most datagrams that wait for a node that sleeps, as a socket's buffer has an end.
const INBOX_MAX: usize = 256;

#[derive(Debug)]
struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    /// Who has sent it, from which side; nobody can cut off what came from outside.
    sender: Option<(usize, u32)>,
    datagram: Vec<u8>,
}

/// A sealed datagram with any content: what a member that lies could send. `plain` is what stands under the
/// seal, in a session that no honest node has.
pub fn seal(
    key: &ClusterKey,
    network: &str,
    salt: [u8; 16],
    counter: u64,
    plain: &[u8],
) -> Vec<u8> {
    let (key, session) = (NetworkKey::new(key, network), Salt(salt));
    let header = Header { key: key.id, network: key.tag, session, counter };
    let mut datagram = Vec::new();
    header.write(SEALED_PREFIX, &mut datagram);
    datagram.extend_from_slice(plain);
    key.session(session).seal(counter, &mut datagram);
    datagram
}

/// What has happened in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something happened to this node.
    At(usize),
    /// A datagram got lost on its way.
    Nowhere,
}

impl Network {
    /// An empty network. `seed` decides on all ids, losses and delays.
    pub fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            faults: Faults::default(),
            config: GossipConfig::new("sim", LeaseConfig::default()),
            keys: Some(KeyRing::new(Self::key(0))),
            bytes_sent: 0,
            longest_sent: 0,
            started: now,
            now,
            rng: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            wire: BTreeMap::new(),
            packets: 0,
            wakes: BTreeSet::new(),
            bound: BTreeMap::new(),
            cuts: BTreeSet::new(),
            capture: None,
            history: None,
        }
    }

    /// The `n`th key of the simulation. Networks begin with the first, whose number is 0.
    pub fn key(n: u8) -> ClusterKey {
        let mut bytes = [n; 32];
        bytes[31] = !n;
        ClusterKey::from_bytes(bytes)
    }

    /// Replaces the key file of a node, which sees that at once if it is running.
    pub fn set_keys(&mut self, ix: usize, keys: KeyRing) {
        let node = &mut self.nodes[ix];
        if let Some(gossip) = &mut node.gossip {
            gossip.set_keys(&keys, node.clock.read(self.now));
        }
        node.keys = Some(keys);
        self.drain(ix);
    }

    /// Lets a node go on in a new session, as its driver does every hour.
    pub fn renew_session(&mut self, ix: usize) {
        let secrets = Secrets::from_bytes(self.rng.random(), self.rng.random());
        if let Some(gossip) = &mut self.nodes[ix].gossip {
            gossip.renew_session(&secrets);
        }
    }

    /// When a node was started last, since the start of the network.
    pub fn started(&self, ix: usize) -> Duration {
        self.nodes[ix].up_since
    }

    /// The key file of a node.
    pub fn keys(&self, ix: usize) -> Option<&KeyRing> {
        self.nodes[ix].keys.as_ref()
    }

    /// Adds and starts a node with an id by chance, the next free address in 198.18.0.0/15, and the first node as its seed. Returns its index.
    pub fn add_node(&mut self) -> usize {
        let ix = self.nodes.len();
        let seeds: Vec<_> = (ix > 0).then(|| self.address(0)).into_iter().collect();
        let local = self.next_local();
        self.add(local, seeds)
    }

    /// What [`Network::add_node`] would add next.
    pub fn next_local(&mut self) -> LocalNode {
        let ix = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let mut id = [0; 16];
        self.rng.fill_bytes(&mut id);
        let base = u32::from_be_bytes([198, 18, 0, 1]);
        LocalNode {
            id: NodeId(id),
            name: format!("node-{ix}"),
            underlay: IpAddr::from((base + ix).to_be_bytes()),
            gossip_port: 7946,
            vxlan_port: 4789,
            underlay_mtu: 1500,
            software: "weft/0.1.0".to_owned(),
            has_seeds: false,
            memory: Memory::default(),
        }
    }

    /// Adds and starts a node. Returns its index.
    pub fn add(&mut self, local: LocalNode, seeds: Vec<SocketAddr>) -> usize {
        let ix = self.install(local, seeds);
        self.start(ix);
        ix
    }

    /// Adds a node without starting it.
    fn install(&mut self, local: LocalNode, seeds: Vec<SocketAddr>) -> usize {
        self.nodes.push(Node {
            config: self.config.clone(),
            keys: self.keys.clone(),
            up_since: Duration::ZERO,
            address: SocketAddr::new(local.underlay, local.gossip_port),
            local,
            seeds,
            gossip: None,
            life: 0,
            clock: Clock::right(self.now),
            events: Vec::new(),
            side: 0,
            disk_refuses: false,
            writing: None,
            asleep: None,
            is_dozing: false,
            wake: None,
            pods: Vec::new(),
        });
        self.nodes.len() - 1
    }

    /// Starts a node that was killed, with what it had saved.
    pub fn start(&mut self, ix: usize) {
        let seed = self.rng.random();
        let secrets = Secrets::from_bytes(self.rng.random(), self.rng.random());
        let node = &mut self.nodes[ix];
        let protection = match node.keys.clone() {
            Some(keys) => Protection::Sealed { keys, secrets },
            None => Protection::Insecure,
        };
        let now = node.clock.read(self.now);
        if let Some(there) = self.bound.get_mut(&node.address) {
            there.remove(&ix);
        }
        node.address = SocketAddr::new(node.local.underlay, node.local.gossip_port);
        self.bound.entry(node.address).or_default().insert(ix);
        let mut gossip =
            Gossip::new(node.config.clone(), node.local.clone(), protection, seed, now);
        for seed in &node.seeds {
            gossip.join(*seed, now);
        }
        gossip.set_pods(node.pods.clone(), now).expect("they were checked when they were set");
        node.life += 1;
        node.gossip = Some(gossip);
        node.up_since = self.now - self.started;
        node.asleep = None;
        node.writing = None;
        self.drain(ix);
    }

    /// Ends a node as `kill -9` does.
    pub fn kill(&mut self, ix: usize) {
        self.nodes[ix].gossip = None;
        self.nodes[ix].writing = None;
        self.reschedule(ix);
    }

    /// Stops a node's process, as a hypervisor does; what arrives waits for it.
    pub fn freeze(&mut self, ix: usize) {
        self.nodes[ix].asleep.get_or_insert_default();
        self.reschedule(ix);
    }

    /// Lets a stopped process go on: it reads what has arrived, and then looks at the clock.
    pub fn thaw(&mut self, ix: usize) {
        let Some(inbox) = self.nodes[ix].asleep.take() else { return };
        for (from, datagram) in inbox {
            self.hand_in(ix, from, &datagram);
        }
        self.wake_up(ix);
    }

    /// Lets a node's clock, as it sees it, jump ahead.
    pub fn jump(&mut self, ix: usize, ahead: Duration) {
        let node = &mut self.nodes[ix];
        node.clock = node.clock.ahead(self.now, ahead);
        self.reschedule(ix);
    }

    /// Takes from a killed node what it had saved.
    pub fn wipe_disk(&mut self, ix: usize) {
        self.nodes[ix].local.memory = Memory::default();
    }

    /// What a node has saved.
    pub fn disk(&mut self, ix: usize) -> &mut Memory {
        &mut self.nodes[ix].local.memory
    }

    /// Lets a node's disk refuse every write from now on, as a full one does, or take them again.
    pub fn refuse_writes(&mut self, ix: usize, refuses: bool) {
        self.nodes[ix].disk_refuses = refuses;
    }

    /// What a node is started with; changes take effect at its next start.
    pub fn local(&mut self, ix: usize) -> &mut LocalNode {
        &mut self.nodes[ix].local
    }

    /// Sets the pods on a node, all of them.
    ///
    /// # Panics
    /// When one of them cannot be told to others.
    pub fn set_pods(&mut self, ix: usize, pods: Vec<LocalPod>) {
        check_pods(&pods).expect("pods that can be told");
        let node = &mut self.nodes[ix];
        node.pods.clone_from(&pods);
        if let Some(gossip) = &mut node.gossip {
            let now = node.clock.read(self.now);
            gossip.set_pods(pods, now).expect("they were just checked");
        }
        self.drain(ix);
    }

    /// What a node knows of all pods; `None` while it is not running.
    pub fn pods(&self, ix: usize) -> Option<&PodMap> {
        self.gossip(ix).map(|gossip| &**gossip.pods())
    }

    /// Whether every running node knows exactly the pods that the running nodes have.
    pub fn agrees_on_pods(&self) -> bool {
        let real: BTreeSet<_> = self
            .running()
            .flat_map(|ix| self.nodes[ix].pods.iter().map(move |local| (self.id(ix), &local.pod)))
            .collect();
        self.running().all(|ix| {
            self.pods(ix).is_some_and(|map| {
                map.len() == real.len()
                    && map.iter().all(|entry| real.contains(&(entry.node, &*entry.pod)))
            })
        })
    }

    /// Lets a node say goodbye; it ends once it has.
    pub fn leave(&mut self, ix: usize) {
        let node = &mut self.nodes[ix];
        if let Some(gossip) = &mut node.gossip {
            gossip.leave(node.clock.read(self.now));
        }
        self.drain(ix);
    }

    /// Gives a node another lease configuration while it runs.
    pub fn configure(&mut self, ix: usize, lease: LeaseConfig) {
        let node = &mut self.nodes[ix];
        node.config.lease = lease.clone();
        if let Some(gossip) = &mut node.gossip {
            gossip.configure(lease, node.clock.read(self.now));
        }
        self.drain(ix);
    }

    /// Tells a node which addresses its pods have, and which it leaves to others, as its daemon would.
    pub fn set_holdings(&mut self, ix: usize, holdings: Holdings) {
        let node = &mut self.nodes[ix];
        if let Some(gossip) = &mut node.gossip {
            gossip.set_holdings(holdings, node.clock.read(self.now));
        }
        self.drain(ix);
    }

    /// Cuts the nodes of `group` off from all the others, and leaves them together.
    pub fn isolate(&mut self, group: &[usize]) {
        let side = self.nodes.iter().map(|node| node.side).max().unwrap_or_default() + 1;
        for ix in group {
            self.nodes[*ix].side = side;
        }
    }

    /// Lets nothing through that `from` sends to `to`; the other direction stays as it is.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.cuts.insert((from, to));
    }

    /// Connects everybody with everybody.
    pub fn heal(&mut self) {
        self.cuts.clear();
        for node in &mut self.nodes {
            node.side = 0;
        }
    }

    /// Whether datagrams get from one node to another.
    fn gets_through(&self, from: usize, to: usize) -> bool {
        self.nodes[from].side == self.nodes[to].side && !self.cuts.contains(&(from, to))
    }

    /// Puts a datagram on the wire, on every side of it.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        self.send(Packet { from, to, sender: None, datagram });
    }

    /// Starts to keep a copy of every datagram that is sent, and gives away what was kept so far: from
    /// where, where to, and what.
    pub fn capture(&mut self) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        self.capture.replace(Vec::new()).unwrap_or_default()
    }

    /// How long the network has been running.
    pub fn elapsed(&self) -> Duration {
        self.now - self.started
    }

    /// A node's protocol state; `None` while it is not running.
    pub fn gossip(&self, ix: usize) -> Option<&Gossip> {
        self.nodes[ix].gossip.as_ref()
    }

    /// A node's map; `None` while it is not running.
    pub fn map(&self, ix: usize) -> Option<&SubnetMap> {
        self.gossip(ix).map(|gossip| &**gossip.map())
    }

    /// The subnets that a node holds, as it knows itself.
    pub fn held(&self, ix: usize) -> Vec<IpNetwork> {
        self.gossip(ix).map(|gossip| gossip.lease_state().held().to_vec()).unwrap_or_default()
    }

    /// A node's id.
    pub fn id(&self, ix: usize) -> NodeId {
        self.nodes[ix].local.id
    }

    /// A node's gossip address.
    pub fn address(&self, ix: usize) -> SocketAddr {
        SocketAddr::new(self.nodes[ix].local.underlay, self.nodes[ix].local.gossip_port)
    }

    /// Everything that a node has told, with the time since the start of the network.
    pub fn events(&self, ix: usize) -> &[(Duration, Event)] {
        &self.nodes[ix].events
    }

    /// The indexes of all nodes that are running.
    pub fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|ix| self.nodes[*ix].gossip.is_some())
    }

    /// Whether every running node holds its leases and sees exactly `nodes` nodes alive, and all routes
    /// are the same everywhere and lead to whoever believes to hold them.
    pub fn agrees_on(&self, nodes: usize) -> bool {
        let routes = |map: &SubnetMap| -> BTreeSet<(IpNetwork, NodeId)> {
            let members = map.members.values();
            members.flat_map(|m| m.routes().map(|prefix| (prefix, m.id))).collect()
        };
        let held = self.running().flat_map(|ix| {
            self.held(ix).into_iter().map(move |prefix| (prefix, self.id(ix))).collect::<Vec<_>>()
        });
        let held: BTreeSet<_> = held.collect();
        self.running().all(|ix| {
            self.map(ix).is_some_and(|map| {
                let alive = map.members.values().filter(|member| member.state.is_active());
                !self.held(ix).is_empty() && alive.count() == nodes && routes(map) == held
            })
        })
    }

    /// Runs for some time.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end).is_some() {}
        self.now = end;
    }

    /// Runs until `goal` is reached, but not longer than `time`; tells whether it was reached.
    ///
    /// The goal is looked at every 20 ms.
    pub fn run_until(&mut self, time: Duration, goal: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + time;
        while !goal(self) {
            if self.now >= end {
                return false;
            }
            self.run_for(Duration::from_millis(20).min(end - self.now));
        }
        true
    }

    /// Does the next thing that happens until `end`; `None` if nothing does.
    fn step(&mut self, end: Instant) -> Option<Step> {
        let wake = self.wakes.first().copied();
        let arrival = self.wire.first_key_value().map(|(key, _)| *key);
        match (arrival, wake) {
            (Some((at, _)), wake) if at <= end && wake.is_none_or(|(wake, _)| at <= wake) => {
                self.now = self.now.max(at);
                let (_, packet) = self.wire.pop_first()?;
                Some(self.deliver(packet).map_or(Step::Nowhere, Step::At))
            }
            (_, Some((at, ix))) if at <= end => {
                self.now = self.now.max(at);
                self.wake_up(ix);
                Some(Step::At(ix))
            }
            (Some(_) | None, Some(_) | None) => None,
        }
    }

    /// Does what time has come for at a node.
    fn wake_up(&mut self, ix: usize) {
        let node = &mut self.nodes[ix];
        let now = node.clock.read(self.now);
        if let Some((_, memory)) = node.writing.take_if(|(done, _)| *done <= self.now) {
            node.local.memory = memory;
            if let Some(gossip) = &mut node.gossip {
                gossip.handle_saved(now);
            }
        }
        if let Some(gossip) = &mut node.gossip
            && gossip.poll_timeout().is_some_and(|at| at <= now)
        {
            gossip.handle_timeout(now);
        }
        self.drain(ix);
    }

    /// Brings a datagram to where it goes; returns who got it.
    fn deliver(&mut self, packet: Packet) -> Option<usize> {
        let reaches = |ix: &usize| {
            let sent = |(from, side): (usize, u32)| {
                side == self.nodes[*ix].side && !self.cuts.contains(&(from, *ix))
            };
            self.nodes[*ix].gossip.is_some() && packet.sender.is_none_or(sent)
        };
        let there = self.bound.get(&packet.to).into_iter().flatten();
        let receivers: Vec<_> = there.copied().filter(reaches).collect();
        if receivers.is_empty() {
            self.note(&packet, Fate::CutOff);
            return None;
        }
        // Of several nodes with one address, anyone may get it.
        let ix = receivers[self.rng.random_range(0..receivers.len())];
        self.note(&packet, Fate::Arrives(ix));
        if let Some(inbox) = &mut self.nodes[ix].asleep {
            if inbox.len() < INBOX_MAX {
                inbox.push_back((packet.from, packet.datagram));
            }
            return Some(ix);
        }
        self.hand_in(ix, packet.from, &packet.datagram);
        Some(ix)
    }

    fn hand_in(&mut self, ix: usize, from: SocketAddr, datagram: &[u8]) {
        let node = &mut self.nodes[ix];
        if let Some(gossip) = &mut node.gossip {
            gossip.handle_datagram(from, datagram, node.clock.read(self.now));
        }
        self.drain(ix);
    }

    /// Does for a node what its driver would.
    fn drain(&mut self, ix: usize) {
        let node = &mut self.nodes[ix];
        let mut sent = Vec::new();
        if let Some(gossip) = &mut node.gossip {
            let now = node.clock.read(self.now);
            while let Some(memory) = gossip.poll_memory() {
                if node.disk_refuses {
                    gossip.handle_save_failed(now);
                } else if self.faults.disk.is_empty() {
                    node.local.memory = memory;
                    gossip.handle_saved(now);
                } else {
                    let takes = self.rng.random_range(self.faults.disk.clone());
                    node.writing = Some((self.now + takes, memory));
                    break;
                }
            }
            while let Some((to, datagram)) = gossip.poll_transmit() {
                let sender = Some((ix, node.side));
                sent.push(Packet { from: node.address, to, sender, datagram });
            }
            while let Some(event) = gossip.poll_event() {
                let at = self.now - self.started;
                if let Some(history) = &mut self.history {
                    history.event(at, &node.local.name, &event);
                }
                node.events.push((at, event));
            }
            if gossip.has_left() {
                node.gossip = None;
                node.writing = None;
            }
        }
        for packet in sent {
            self.send(packet);
        }
        self.reschedule(ix);
    }

    fn reschedule(&mut self, ix: usize) {
        let node = &mut self.nodes[ix];
        if let Some(wake) = node.wake {
            self.wakes.remove(&(wake, ix));
        }
        let due = node.gossip.as_ref().and_then(Gossip::poll_timeout);
        let due = due.map(|at| node.clock.when(at));
        let written = node.writing.as_ref().map(|(done, _)| *done);
        let wake = [due, written].into_iter().flatten().min();
        node.wake = wake.filter(|_| node.asleep.is_none());
        if let Some(wake) = node.wake {
            self.wakes.insert((wake, ix));
        }
    }

    fn send(&mut self, mut packet: Packet) {
        self.bytes_sent += packet.datagram.len() as u64;
        self.longest_sent = self.longest_sent.max(packet.datagram.len());
        if let Some(capture) = &mut self.capture {
            capture.push((packet.from, packet.to, packet.datagram.clone()));
        }
        if self.rng.random_bool(self.faults.loss) {
            self.note(&packet, Fate::Lost);
            return;
        }
        if self.rng.random_bool(self.faults.duplication) {
            let Packet { from, to, sender, ref datagram } = packet;
            self.put_on_wire(Packet { from, to, sender, datagram: datagram.clone() });
        }
        if self.rng.random_bool(self.faults.corruption) && !packet.datagram.is_empty() {
            for _ in 0..self.rng.random_range(1..8) {
                let at = self.rng.random_range(0..packet.datagram.len());
                packet.datagram[at] = self.rng.random();
            }
        }
        self.put_on_wire(packet);
    }

    fn put_on_wire(&mut self, packet: Packet) {
        let delay = self.rng.random_range(self.faults.delay.clone());
        self.packets += 1;
        self.wire.insert((self.now + delay, self.packets), packet);
    }

    /// Writes into the history what becomes of a datagram.
    fn note(&mut self, packet: &Packet, fate: Fate) {
        let Some(history) = &mut self.history else { return };
        let name = |address: SocketAddr, ix: Option<usize>| match ix {
            Some(ix) => self.nodes[ix].local.name.clone(),
            None => address.to_string(),
        };
        let from = name(packet.from, packet.sender.map(|(ix, _)| ix));
        let to = match fate {
            Fate::Arrives(ix) => Some(ix),
            Fate::Lost | Fate::CutOff => {
                self.bound.get(&packet.to).and_then(|there| there.first().copied())
            }
        };
        let keys = packet.sender.and_then(|(ix, _)| self.nodes[ix].keys.as_ref());
        let said = look_into(&self.config.network, keys, &packet.datagram);
        let at = self.now - self.started;
        history.datagram(at, &from, &name(packet.to, to), fate, said.as_deref());
    }
}
