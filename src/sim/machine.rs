//! A node: the daemon's parts around one switch, and what outlives the daemon.
//!
//! A [`Life`] is what a daemon process holds in memory. Between two lives a [`Machine`] keeps what is on
//! disk (gossip's memory, addresses) and in the kernel (pods with their interfaces).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use ipam::Pool;
use ipnetwork::IpNetwork;
use overlay::decap::{Decapsulator, OFFENCES_MAX, Offence};
use overlay::encap::{Encapsulator, Transmit};
use overlay::gossip::sim::Network;
use overlay::gossip::{Gossip, GossipConfig, Holdings, LeaseState, LocalNode, Protection};
use overlay::node_id::NodeId;
use overlay::seal::{KeyRing, Secrets};
use overlay::subnet::{SubnetMap, inner_mtu};
use overlay::tunnel::source_of;
use overlay::udp::Sent;
use overlay::vxlan::Vni;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vswitch::config::Config;
use vswitch::counters::Totals;
use vswitch::frame::{BATCH_MAX, Batch, Frame, Ingress};
use vswitch::mac::Mac;
use vswitch::policy::{Established, PolicyTable};
use vswitch::port::{NodeIx, PortIx};
use vswitch::service::ServiceTable;
use vswitch::sim::{Host, HostConfig, SwitchSim};
use vswitch::tables::{Node as OwnNode, ROUTER_V6, Tables, TablesBuilder};
use vswitch::verdict::Reason;
use vswitch::wire;

use super::place::Node;
use super::trace::TraceEvent;
use super::underlay::{Datagram, Underlay, packet_len};
use crate::control::HeldLease;
use crate::control::compile::{self, Inputs};

/// The first of the UDP ports that VXLAN is sent from, and how many there are.
const SOURCE_PORT: u16 = 49_152;
const SOURCES: u16 = 8;

/// Datagrams in one send, as Linux has it (`UDP_MAX_SEGMENTS`, `linux/udp.h`).
const SEGMENTS_MAX: usize = 64;

/// Refused tunnel packets that are kept for whoever asks.
const KEPT_OFFENCES_MAX: usize = 4096;

/// Why a pod could not be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PodError {
    /// The node's daemon is not running.
    #[error("the node's daemon is not running")]
    NotRunning,
    /// The node holds no lease yet.
    #[error("the node holds no lease to take an address from")]
    NoLease,
    /// All addresses are in use.
    #[error("no address is free in {0}")]
    Exhausted(IpNetwork),
    /// All ports are in use.
    #[error("the node has {0} ports, the most it may have")]
    TooManyPorts(u16),
}

/// A node's machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) node: Node,
    /// With what the daemon starts; its memory is what is on disk.
    pub(super) local: LocalNode,
    seeds: Vec<SocketAddr>,
    gossip: GossipConfig,
    switch: Config,
    offload: bool,
    lease: HeldLease,
    pods: BTreeMap<PortIx, compile::Pod>,
    cursors: [Option<IpAddr>; 2],
    /// Addresses of the lease that are left to pods of other nodes.
    lent: BTreeMap<IpAddr, NodeId>,
    holdings: Holdings,
    /// The hosts, while no daemon runs.
    hosts: BTreeMap<PortIx, Host>,
    has_host_port: bool,
    life: Option<Life>,
    lives: u64,
    offences: VecDeque<Offence>,
    /// What was wrong at the end of earlier lives.
    pub(super) violations: Vec<String>,
}

/// What a daemon holds in memory.
#[derive(Debug)]
struct Life {
    gossip: Gossip,
    switch: SwitchSim,
    encapsulator: Encapsulator,
    decapsulator: Decapsulator,
    offences: Arc<ArrayQueue<Offence>>,
    generation: u64,
    was_proven: bool,
    published: Option<Arc<SubnetMap>>,
    inbox: VecDeque<Datagram>,
    batch: Batch,
    /// Hosts have something to do now.
    is_stirred: bool,
    hosts_wake: Option<Instant>,
}

/// What a machine is made of.
pub(super) struct Parts {
    pub(super) node: Node,
    pub(super) local: LocalNode,
    pub(super) seeds: Vec<SocketAddr>,
    pub(super) gossip: GossipConfig,
    pub(super) switch: Config,
    pub(super) offload: bool,
}

impl Machine {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            node: parts.node,
            local: parts.local,
            seeds: parts.seeds,
            gossip: parts.gossip,
            switch: parts.switch,
            offload: parts.offload,
            lease: HeldLease::default(),
            pods: BTreeMap::new(),
            cursors: [None; 2],
            lent: BTreeMap::new(),
            holdings: Holdings::default(),
            hosts: BTreeMap::new(),
            has_host_port: false,
            life: None,
            lives: 0,
            offences: VecDeque::new(),
            violations: Vec::new(),
        }
    }

    /// Starts the daemon with what is on disk. No effect if it runs.
    pub(super) fn start(&mut self, seed: u64, underlay: &mut Underlay) {
        if self.life.is_some() {
            return;
        }
        let now = underlay.clock.now();
        // From its seed, so that runs replay byte for byte; and different in each life.
        let mut random = StdRng::seed_from_u64(seed);
        let secrets = Secrets::from_bytes(random.random(), random.random());
        let protection = Protection::Sealed { keys: KeyRing::new(Network::key(0)), secrets };
        let (config, local) = (self.gossip.clone(), self.local.clone());
        let mut gossip = Gossip::new(config, local, protection, seed, now);
        for seed in self.seeds.iter().chain(&self.local.memory.peers) {
            gossip.join(*seed, now);
        }
        let offences = Arc::new(ArrayQueue::new(OFFENCES_MAX));
        let mut switch = SwitchSim::new(&self.switch, self.empty_tables(), now);
        for (port, mut host) in std::mem::take(&mut self.hosts) {
            discard_unsent(&mut host, now);
            switch.attach(port, host);
        }
        self.lives += 1;
        self.holdings = Holdings::default();
        self.life = Some(Life {
            gossip,
            switch,
            encapsulator: Encapsulator::new(Vni::WEFT, SEGMENTS_MAX),
            decapsulator: Decapsulator::new(Vni::WEFT, self.pod_mtu(), Arc::clone(&offences)),
            offences,
            generation: 0,
            was_proven: false,
            published: None,
            inbox: VecDeque::new(),
            batch: Batch::with_capacity(BATCH_MAX),
            is_stirred: true,
            hosts_wake: None,
        });
        self.publish();
        self.breathe(underlay);
    }

    /// Ends the daemon as `kill -9` does: all that is on disk or in the kernel stays. Whatever its
    /// counters do not account for becomes a violation.
    pub(super) fn kill(&mut self) {
        self.violations.extend(self.violations_now());
        let Some(mut life) = self.life.take() else { return };
        self.keep_offences(&life.offences);
        let ports: Vec<_> = life.switch.hosts().map(|(port, _)| port).collect();
        for port in ports {
            if let Some(host) = life.switch.detach(port) {
                self.hosts.insert(port, host);
            }
        }
    }

    pub(super) fn leave(&mut self, underlay: &mut Underlay) {
        if let Some(life) = &mut self.life {
            life.gossip.leave(underlay.clock.now());
            self.breathe(underlay);
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.life.is_some()
    }

    /// The daemon's gossip; `None` while it is not running.
    pub(super) fn gossip(&self) -> Option<&Gossip> {
        self.life.as_ref().map(|life| &life.gossip)
    }

    /// The counters of the present life; all zero while there is none.
    pub(super) fn totals(&self) -> Option<Totals> {
        self.life.as_ref().map(|life| life.switch.totals())
    }

    pub(super) fn switch(&mut self) -> Option<&mut SwitchSim> {
        self.life.as_mut().map(|life| &mut life.switch)
    }

    pub(super) fn take_offences(&mut self) -> Vec<Offence> {
        if let Some(life) = &self.life {
            let offences = Arc::clone(&life.offences);
            self.keep_offences(&offences);
        }
        self.offences.drain(..).collect()
    }

    /// What the present life cannot account for.
    pub(super) fn violations_now(&self) -> Vec<String> {
        let Some(life) = &self.life else { return Vec::new() };
        let (name, lives, totals) = (&self.local.name, self.lives, life.switch.totals());
        let mut violations = Vec::new();
        if totals.queued() != 0 {
            let queued = totals.queued();
            violations
                .push(format!("{name}, life {lives}: {queued} packets left over: {totals:?}"));
        }
        let in_use = life.switch.buffers_in_use();
        if in_use != 0 {
            violations.push(format!("{name}, life {lives}: {in_use} buffers have not come back"));
        }
        violations
    }

    /// The stack at a port. Whatever it is told to do happens when the cluster runs on.
    pub(super) fn host(&mut self, port: PortIx) -> Option<&mut Host> {
        match &mut self.life {
            Some(life) => {
                life.is_stirred = true;
                let mut hosts = life.switch.hosts();
                hosts.find(|(at, _)| *at == port).map(|(_, host)| host)
            }
            None => self.hosts.get_mut(&port),
        }
    }

    pub(super) fn pod(&self, port: PortIx) -> Option<&compile::Pod> {
        self.pods.get(&port)
    }

    /// The addresses of the machine itself, as pods reach it.
    pub(super) fn own_addresses(&self) -> Vec<IpAddr> {
        self.pools().iter().map(Pool::gateway).chain([self.local.underlay]).collect()
    }

    /// Gives a pod an address of each family and a port.
    pub(super) fn add_pod(&mut self, seed: u64, now: Instant) -> Result<PortIx, PodError> {
        if self.life.is_none() {
            return Err(PodError::NotRunning);
        }
        let pools = self.pools();
        if pools.is_empty() {
            return Err(PodError::NoLease);
        }
        let mut addresses = Vec::new();
        for pool in &pools {
            let is_taken = |address| {
                let held = self.pods.values().any(|pod| pod.addresses.contains(&address));
                held || self.lent.contains_key(&address)
            };
            let cursor = self.cursors[usize::from(pool.prefix().is_ipv6())];
            let free = pool
                .next_free(cursor, &[], is_taken)
                .ok_or_else(|| PodError::Exhausted(pool.prefix()))?;
            addresses.push((*pool, free));
        }
        let ports_max = self.switch.ports_max;
        let free = (1..ports_max).map(PortIx).find(|port| !self.pods.contains_key(port));
        let port = free.ok_or(PodError::TooManyPorts(ports_max))?;
        for (pool, address) in &addresses {
            self.cursors[usize::from(pool.prefix().is_ipv6())] = Some(*address);
        }
        let host = self.make_pod_host(&addresses, seed);
        let addresses: Vec<_> = addresses.into_iter().map(|(_, address)| address).collect();
        let pod = compile::Pod { port, mac: host.mac, mtu: host.mtu, addresses, is_pod: true };
        self.pods.insert(port, pod);
        if let Some(life) = &mut self.life {
            life.switch.attach(port, Host::new(&host, now));
        }
        self.publish();
        Ok(port)
    }

    /// Takes a pod away; its addresses are free again.
    pub(super) fn remove_pod(&mut self, port: PortIx) {
        self.pods.remove(&port);
        self.hosts.remove(&port);
        if let Some(life) = &mut self.life {
            life.switch.detach(port);
        }
        self.publish();
    }

    /// Hands in a datagram that arrived; returns whether anybody listens.
    pub(super) fn receive(&mut self, datagram: Datagram) -> bool {
        let ports = [self.local.vxlan_port, self.local.gossip_port];
        match &mut self.life {
            Some(life) if ports.contains(&datagram.to.port()) => {
                life.inbox.push_back(datagram);
                true
            }
            Some(_) | None => false,
        }
    }

    /// Sends a frame into the switch as if the port's interface had.
    pub(super) fn inject(
        &mut self,
        port: PortIx,
        bytes: &[u8],
        describe: impl FnOnce(&mut Frame),
        underlay: &mut Underlay,
    ) {
        let now = underlay.clock.now();
        let Some(life) = &mut self.life else { return };
        match life.switch.make_frame(Ingress::Port(port), bytes) {
            Ok(mut frame) => {
                describe(&mut frame);
                life.switch.inject(now, frame);
                life.empty_wire(&self.local, underlay);
            }
            // A card takes no longer frame; the port of a real one would not even see it.
            Err(reason) => {
                let context = life.switch.context();
                context.counters.received.add(1);
                context.counters.count_drop(reason, 1);
            }
        }
        life.is_stirred = true;
        self.breathe(underlay);
    }

    /// When something is to be done if nothing arrives.
    pub(super) fn next_at(&self, now: Instant) -> Option<Instant> {
        let life = self.life.as_ref()?;
        if life.is_stirred || !life.inbox.is_empty() {
            return Some(now);
        }
        [life.gossip.poll_timeout(), life.hosts_wake].into_iter().flatten().min()
    }

    /// Does all that is to be done now.
    pub(super) fn breathe(&mut self, underlay: &mut Underlay) {
        let now = underlay.clock.now();
        let Some(life) = &mut self.life else { return };
        life.take_inbox(&self.local, now, underlay);
        if life.gossip.poll_timeout().is_some_and(|at| at <= now) {
            life.gossip.handle_timeout(now);
        }
        self.follow_gossip(underlay);
        if let Some(life) = &mut self.life {
            life.run_hosts(&self.local, underlay);
            let offences = Arc::clone(&life.offences);
            self.keep_offences(&offences);
        }
    }

    /// Saves, sends and takes up what gossip has, as its agent does.
    fn follow_gossip(&mut self, underlay: &mut Underlay) {
        let now = underlay.clock.now();
        self.tell_holdings(now);
        let Some(life) = &mut self.life else { return };
        while let Some(memory) = life.gossip.poll_memory() {
            self.local.memory = memory;
            life.gossip.handle_saved(now);
        }
        let from = SocketAddr::new(self.local.underlay, self.local.gossip_port);
        while let Some((to, datagram)) = life.gossip.poll_transmit() {
            underlay.send(from, to, &datagram);
        }
        while let Some(event) = life.gossip.poll_event() {
            underlay.trace.note(underlay.clock.elapsed(), TraceEvent::Gossip(self.node, event));
        }
        let is_new = life.published.as_ref().is_none_or(|map| !Arc::ptr_eq(map, life.gossip.map()));
        let is_proven = life.gossip.lease_state().is_at_home();
        let is_new = is_new || is_proven != life.was_proven;
        life.was_proven = is_proven;
        let held = match life.gossip.lease_state() {
            LeaseState::Held { prefixes } => Some(prefixes),
            LeaseState::Waiting
            | LeaseState::Claiming { .. }
            | LeaseState::Returning { .. }
            | LeaseState::Blocked { .. }
            | LeaseState::Exhausted { .. }
            | LeaseState::Suspended { .. }
            | LeaseState::Left => None,
        };
        let is_over = life.gossip.has_left();
        if let Some(prefixes) = held.filter(|prefixes| HeldLease::new(prefixes) != self.lease) {
            self.lease = HeldLease::new(&prefixes);
            underlay.trace.note(underlay.clock.elapsed(), TraceEvent::Lease(self.node, prefixes));
            self.set_up_host(now);
            self.publish();
        } else if is_new {
            self.publish();
        }
        if is_over {
            underlay.trace.note(underlay.clock.elapsed(), TraceEvent::Left(self.node));
            self.kill();
        }
    }

    /// Leaves addresses to other nodes, and tells gossip of that and of the pods, as the daemon does.
    fn tell_holdings(&mut self, now: Instant) {
        let Some(life) = &mut self.life else { return };
        let (own, map) = (self.local.id, life.gossip.map());
        let pods: BTreeSet<_> =
            self.pods.values().flat_map(|pod| pod.addresses.iter().copied()).collect();
        if matches!(life.gossip.lease_state(), LeaseState::Held { .. }) {
            self.lent.retain(|address, to| map.asks(*to, *address).unwrap_or(true));
            for (address, to) in map.requests(own) {
                if !pods.contains(&address) {
                    self.lent.entry(address).or_insert(to);
                }
            }
        }
        let holdings = Holdings { pods, grants: self.lent.clone() };
        if holdings != self.holdings {
            self.holdings = holdings.clone();
            life.gossip.set_holdings(holdings, now);
        }
    }

    /// Makes the machine's own stack, behind `weft0`, for the lease.
    fn set_up_host(&mut self, now: Instant) {
        self.has_host_port = true;
        let addresses = self.own_addresses().into_iter().map(|address| match address {
            // smoltcp has no routes without a gateway: everything is on its link, and the switch answers.
            IpAddr::V4(_) => IpNetwork::new(address, 0),
            IpAddr::V6(_) => IpNetwork::new(address, 128),
        });
        let config = HostConfig {
            mac: Mac::HOST,
            mtu: self.pod_mtu(),
            addresses: addresses.flatten().collect(),
            gateways: self.lease.v6.map(|_| IpAddr::V6(ROUTER_V6)).into_iter().collect(),
            offload: self.offload,
            seed: self.lives,
        };
        if let Some(life) = &mut self.life {
            life.switch.attach(PortIx::HOST, Host::new(&config, now));
        }
    }

    fn make_pod_host(&self, addresses: &[(Pool, IpAddr)], seed: u64) -> HostConfig {
        let v4 = addresses.iter().find_map(|(_, address)| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let v6 = addresses.iter().find_map(|(_, address)| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        let networks = addresses.iter().map(|(pool, address)| {
            let len = if address.is_ipv4() { pool.prefix().prefix() } else { 128 };
            IpNetwork::new(*address, len)
        });
        HostConfig {
            mac: Mac(ipam::Mac::for_addresses(v4, v6).0),
            mtu: self.pod_mtu(),
            addresses: networks.flatten().collect(),
            gateways: addresses.iter().map(|(pool, _)| pool.gateway()).collect(),
            offload: self.offload,
            seed,
        }
    }

    /// Makes the tables anew and puts them in force.
    fn publish(&mut self) {
        let mut pods: Vec<_> = self.pods.values().cloned().collect();
        let (node, mtu) = (self.own_node(), self.pod_mtu());
        let Some(life) = &mut self.life else { return };
        life.generation += 1;
        let map = Arc::clone(life.gossip.map());
        let cut_off = map.cut_off(self.local.id);
        let is_suspended = life.gossip.lease_state().is_suspended();
        for pod in &mut pods {
            pod.addresses.retain(|address| !is_suspended && !cut_off.contains(address));
        }
        let is_proven = life.gossip.lease_state().is_at_home();
        let inputs = Inputs {
            generation: life.generation,
            node,
            ranges: self.gossip.lease.ranges.clone(),
            host_mtu: self.has_host_port.then_some(mtu),
            pods,
            peers: if is_proven {
                map.peers(self.local.id, self.local.underlay_mtu)
            } else {
                Vec::new()
            },
            services: Arc::new(ServiceTable::empty()),
            policies: Arc::new(PolicyTable::off()),
            established: Established::default(),
        };
        let (tables, left_out) = compile::compile(inputs);
        assert_eq!(left_out, 0, "a simulated cluster is small");
        life.switch.set_tables(tables);
        life.published = Some(map);
        life.is_stirred = true;
    }

    fn empty_tables(&self) -> Tables {
        TablesBuilder::new(0, self.own_node(), &self.gossip.lease.ranges).build()
    }

    fn own_node(&self) -> OwnNode {
        let gateways: Vec<_> = self.pools().iter().map(Pool::gateway).collect();
        OwnNode {
            vtep_mac: self.local.id.vtep_mac(),
            gateway_v4: gateways.iter().find_map(|gateway| match gateway {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            }),
            gateway_v6: gateways.iter().find_map(|gateway| match gateway {
                IpAddr::V6(v6) => Some(*v6),
                IpAddr::V4(_) => None,
            }),
            underlay: Some(self.local.underlay),
            vxlan_port: self.local.vxlan_port,
            gossip_port: self.local.gossip_port,
        }
    }

    /// The pools of the lease, IPv4 first. Prefixes without room for a pod have none.
    fn pools(&self) -> Vec<Pool> {
        let v4 = self.lease.v4.map(IpNetwork::V4);
        let v6 = self.lease.v6.map(IpNetwork::V6);
        v4.into_iter().chain(v6).flat_map(Pool::new).collect()
    }

    fn pod_mtu(&self) -> u16 {
        inner_mtu(self.local.underlay_mtu, self.local.underlay)
    }

    fn keep_offences(&mut self, queue: &ArrayQueue<Offence>) {
        while let Some(offence) = queue.pop() {
            if self.offences.len() == KEPT_OFFENCES_MAX {
                self.offences.pop_front();
            }
            self.offences.push_back(offence);
        }
    }
}

impl Life {
    /// Hands in what arrived: VXLAN in batches, as a worker does, and gossip one by one.
    fn take_inbox(&mut self, local: &LocalNode, now: Instant, underlay: &mut Underlay) {
        while let Some(Datagram { from, to, bytes }) = self.inbox.pop_front() {
            if to.port() == local.gossip_port {
                self.gossip.handle_datagram(from, &bytes, now);
                continue;
            }
            let mut context = self.switch.context();
            self.decapsulator.push(from, bytes.len(), &bytes, &mut context, &mut self.batch);
            if self.batch.len() >= BATCH_MAX {
                self.forward_batch(local, now, underlay);
            }
        }
        self.forward_batch(local, now, underlay);
    }

    fn forward_batch(&mut self, local: &LocalNode, now: Instant, underlay: &mut Underlay) {
        self.decapsulator.finish(&self.switch.context(), &mut self.batch);
        if self.decapsulator.has_probes() {
            let from = SocketAddr::new(local.underlay, SOURCE_PORT);
            self.decapsulator.answer_probes(now, &self.switch.context(), |to, datagram| {
                underlay.send(from, to, datagram);
                Sent::taken(1, datagram.len())
            });
        }
        if self.batch.is_empty() {
            return;
        }
        self.is_stirred = true;
        self.switch.forward_batch(now, &mut self.batch);
        for (node, reason) in self.switch.take_foreign() {
            self.decapsulator.note_foreign(self.switch.tables(), node, reason);
        }
        self.empty_wire(local, underlay);
    }

    /// Lets the hosts act until nothing moves any more at this moment, if anything happened to them or
    /// their time has come.
    fn run_hosts(&mut self, local: &LocalNode, underlay: &mut Underlay) {
        let now = underlay.clock.now();
        if self.is_stirred || self.hosts_wake.is_some_and(|at| at <= now) {
            self.is_stirred = false;
            while self.switch.turn(now) {
                self.empty_wire(local, underlay);
            }
            self.empty_wire(local, underlay);
            // A stack that could not do what it wants to at once does not get it done by asking again.
            let soonest = now + HOST_PAUSE;
            self.hosts_wake = self.switch.next_at(now).map(|at| at.max(soonest));
        }
    }

    /// Sends what waits for other nodes, as a tunnel's uplink does.
    fn empty_wire(&mut self, local: &LocalNode, underlay: &mut Underlay) {
        while let Some((node, frame)) = self.switch.take_wire() {
            if let Err(reason) = self.encapsulate(local, node, &frame, underlay) {
                self.switch.dropped(frame, reason);
            } else {
                self.switch.context().pool.put(frame);
            }
        }
        let Self { encapsulator, switch, .. } = self;
        encapsulator.flush(&mut |transmit| send(local, switch, underlay, &transmit));
    }

    fn encapsulate(
        &mut self,
        local: &LocalNode,
        node: NodeIx,
        frame: &Frame,
        underlay: &mut Underlay,
    ) -> Result<(), Reason> {
        let peer = self.switch.tables().peer(node).ok_or(Reason::NodeGone)?.clone();
        let headers = wire::parse(frame.data())?;
        let socket_ix = source_of(&headers, usize::from(SOURCES));
        let Self { encapsulator, switch, .. } = self;
        encapsulator.push(&peer, socket_ix, frame, &headers, &mut |transmit| {
            send(local, switch, underlay, &transmit);
        })
    }
}

/// Throws away what a host wanted to send while nobody read from its interface.
fn discard_unsent(host: &mut Host, now: Instant) {
    const TURNS_MAX: usize = 64;
    let mut frame = Frame::new();
    for _ in 0..TURNS_MAX {
        if !host.poll(now) {
            return;
        }
        while host.send(&mut frame) {
            frame.clear();
        }
    }
}

/// How long a stack that still has something to do is left alone.
const HOST_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// Puts datagrams on the wire and counts them, as the kernel and the uplink do. What is longer than the
/// interface takes, the kernel refuses.
fn send(
    local: &LocalNode,
    switch: &mut SwitchSim,
    underlay: &mut Underlay,
    transmit: &Transmit<'_>,
) {
    let socket = u16::try_from(transmit.socket_ix).unwrap_or(SOURCES);
    let from = SocketAddr::new(local.underlay, SOURCE_PORT + socket);
    for datagram in transmit.bytes.chunks(transmit.segment_len) {
        let counters = switch.context().counters;
        if packet_len(local.underlay, datagram.len()) > usize::from(local.underlay_mtu) {
            counters.count_drop(Reason::PathMtu, 1);
            continue;
        }
        counters.delivered.add(1);
        counters.delivered_bytes.add((datagram.len() - overlay::vxlan::HEADER_LEN) as u64);
        underlay.send(from, transmit.to, datagram);
    }
}
