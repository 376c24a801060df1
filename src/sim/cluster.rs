//! The cluster, and the order in which things happen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use overlay::decap::Offence;
use overlay::gossip::{Gossip, GossipConfig, LeaseState, LocalNode, Memory};
use overlay::node_id::NodeId;
use overlay::subnet::{MemberState, SubnetMap};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vswitch::counters::{PortTotals, Totals};
use vswitch::frame::{Checksum, Gso};
use vswitch::mac::Mac;
use vswitch::port::PortIx;
use vswitch::sim::{Faults, Host};
use vswitch::tables::Tables;
use vswitch::verdict::Reason;

use super::builder::{ClusterBuilder, NodeOptions};
use super::machine::{Machine, Parts, PodError};
use super::place::{Family, Node, Place, Pod};
use super::trace::{Trace, TraceEvent};
use super::underlay::{Captured, Underlay, UnderlayTotals};

/// The range of pods' IPv6 addresses, unless the lease configuration has one.
const RANGE_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0), 56);

/// Underlay addresses: the range for tests between networks (RFC 2544), and that for documentation
/// (RFC 3849).
const UNDERLAY_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const UNDERLAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Nodes with pods, and the network between them: see [`crate::sim`].
#[derive(Debug)]
pub struct Cluster {
    pub(super) underlay: Underlay,
    pub(super) machines: Vec<Machine>,
    by_address: BTreeMap<IpAddr, usize>,
    /// Where each pod that was ever added is, until it is removed.
    pods: Vec<Option<(usize, PortIx)>>,
    random: StdRng,
    settings: ClusterBuilder,
    pub(super) ping_sequence: u16,
}

impl Cluster {
    /// Settings to make a cluster with.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    pub(super) fn new(mut settings: ClusterBuilder) -> Self {
        let (address, len) = RANGE_V6;
        let ranges = &mut settings.lease.ranges;
        if settings.ipv6 && !ranges.iter().any(IpNetwork::is_ipv6) {
            ranges.extend(IpNetwork::new(address.into(), len));
        }
        let mut random = StdRng::seed_from_u64(settings.seed);
        let mut underlay = Underlay::new(random.random());
        underlay.set_faults(settings.faults);
        let nodes = settings.nodes;
        let mut cluster = Self {
            underlay,
            machines: Vec::new(),
            by_address: BTreeMap::new(),
            pods: Vec::new(),
            random,
            settings,
            ping_sequence: 0,
        };
        for _ in 0..nodes {
            cluster.add_node();
        }
        cluster
    }

    /// Adds and starts a node. All nodes but the first have the first one as their seed.
    pub fn add_node(&mut self) -> Node {
        self.add_node_with(self.settings.node)
    }

    /// Adds and starts a node that may differ from the others.
    pub fn add_node_with(&mut self, options: NodeOptions) -> Node {
        let ix = self.machines.len();
        let underlay = self.underlay_address_at(ix);
        let seeds: Vec<_> = (ix > 0).then(|| self.gossip_address(Node(0))).into_iter().collect();
        let local = LocalNode {
            id: NodeId(self.random.random()),
            name: format!("node-{ix}"),
            underlay,
            gossip_port: 7946,
            vxlan_port: 4789,
            underlay_mtu: options.underlay_mtu,
            software: concat!("weft/", env!("CARGO_PKG_VERSION")).to_owned(),
            has_seeds: !seeds.is_empty(),
            memory: Memory::default(),
        };
        let gossip = GossipConfig {
            timing: self.settings.timing.clone(),
            ..GossipConfig::new("sim", self.settings.lease.clone())
        };
        self.underlay.connect(underlay, options.underlay_mtu);
        self.by_address.insert(underlay, ix);
        let node = Node(ix);
        let switch = self.settings.switch.clone();
        let offload = options.offload;
        self.machines.push(Machine::new(Parts { node, local, seeds, gossip, switch, offload }));
        self.start(node);
        node
    }

    /// Starts the daemon of a node, with what it had on disk and the pods that are still there. No effect
    /// if it runs.
    pub fn start(&mut self, node: Node) {
        if self.is_running(node) {
            return;
        }
        let seed = self.random.random();
        self.note(TraceEvent::Started(node));
        self.machines[node.0].start(seed, &mut self.underlay);
    }

    /// Ends the daemon of a node as `kill -9` does. Its pods, its disk and its counters' debts stay.
    pub fn kill(&mut self, node: Node) {
        self.note(TraceEvent::Killed(node));
        self.machines[node.0].kill();
    }

    /// Lets the daemon of a node say goodbye. It ends once it has, some hundred milliseconds later.
    pub fn leave(&mut self, node: Node) {
        self.note(TraceEvent::Leaving(node));
        self.machines[node.0].leave(&mut self.underlay);
    }

    /// What a node has on its disk about gossip and lease: change it while its daemon does not run.
    pub fn memory(&mut self, node: Node) -> &mut Memory {
        &mut self.machines[node.0].local.memory
    }

    /// Adds a pod.
    ///
    /// # Panics
    /// For the reasons that [`Cluster::try_add_pod`] returns.
    pub fn add_pod(&mut self, node: Node) -> Pod {
        match self.try_add_pod(node) {
            Ok(pod) => pod,
            Err(error) => panic!("no pod could be added to {node:?}: {error}"),
        }
    }

    /// Adds a pod.
    ///
    /// # Errors
    /// When the node is not running, holds no lease, or has no address or port left.
    pub fn try_add_pod(&mut self, node: Node) -> Result<Pod, PodError> {
        let seed = self.random.random();
        let now = self.underlay.clock.now();
        let port = self.machines[node.0].add_pod(seed, now)?;
        let pod = Pod(self.pods.len());
        self.pods.push(Some((node.0, port)));
        let addresses = self.addresses(pod.into());
        self.note(TraceEvent::PodAdded(pod, node, addresses));
        Ok(pod)
    }

    /// Removes a pod; its addresses are free again. Its name must not be used afterwards.
    pub fn remove_pod(&mut self, pod: Pod) {
        if let Some((node, port)) = self.pods[pod.0].take() {
            self.note(TraceEvent::PodRemoved(pod));
            self.machines[node].remove_pod(port);
        }
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<Node> {
        (0..self.machines.len()).map(Node).collect()
    }

    /// All nodes whose daemon runs.
    pub fn running(&self) -> Vec<Node> {
        self.nodes().into_iter().filter(|node| self.is_running(*node)).collect()
    }

    /// Whether a node's daemon runs.
    pub fn is_running(&self, node: Node) -> bool {
        self.machines[node.0].is_running()
    }

    /// All pods that were not removed.
    pub fn pods(&self) -> Vec<Pod> {
        (0..self.pods.len()).filter(|ix| self.pods[*ix].is_some()).map(Pod).collect()
    }

    /// The pods on a node.
    pub fn pods_on(&self, node: Node) -> Vec<Pod> {
        self.pods().into_iter().filter(|pod| self.node_of(*pod) == node).collect()
    }

    /// The node that a pod is on.
    ///
    /// # Panics
    /// If the pod was removed.
    pub fn node_of(&self, pod: Pod) -> Node {
        Node(self.locate(pod.into()).0)
    }

    /// The addresses of a pod, or those under which pods reach a node's machine.
    ///
    /// # Panics
    /// If the pod was removed.
    pub fn addresses(&self, place: Place) -> Vec<IpAddr> {
        let (node, port) = self.locate(place);
        match self.machines[node].pod(port) {
            Some(pod) => pod.addresses.clone(),
            None => self.machines[node].own_addresses(),
        }
    }

    /// The first address of a family.
    pub fn address(&self, place: impl Into<Place>, family: Family) -> Option<IpAddr> {
        let addresses = self.addresses(place.into());
        addresses.into_iter().find(|address| Family::of(*address) == family)
    }

    /// The MAC address of a pod's interface.
    ///
    /// # Panics
    /// If the pod was removed.
    pub fn mac(&self, pod: Pod) -> Mac {
        let (node, port) = self.locate(pod.into());
        let pod = self.machines[node].pod(port);
        pod.expect("every pod that was not removed has a port").mac
    }

    /// A node's address on the underlay.
    pub fn underlay_address(&self, node: Node) -> IpAddr {
        self.machines[node.0].local.underlay
    }

    /// Where a node receives VXLAN.
    pub fn vxlan_address(&self, node: Node) -> SocketAddr {
        SocketAddr::new(self.underlay_address(node), self.machines[node.0].local.vxlan_port)
    }

    /// Where a node receives gossip.
    pub fn gossip_address(&self, node: Node) -> SocketAddr {
        SocketAddr::new(self.underlay_address(node), self.machines[node.0].local.gossip_port)
    }

    /// Inner MAC address of what a node sends to others, and of what they send to it.
    pub fn vtep_mac(&self, node: Node) -> Mac {
        self.machines[node.0].local.id.vtep_mac()
    }

    /// A node's identity in gossip.
    pub fn node_id(&self, node: Node) -> NodeId {
        self.machines[node.0].local.id
    }

    /// The network stack of a pod or a machine. What it is told to do happens when the cluster runs on.
    ///
    /// # Panics
    /// If the pod was removed, or the node has never held a lease.
    pub fn host(&mut self, place: impl Into<Place>) -> &mut Host {
        let (node, port) = self.locate(place.into());
        self.machines[node].host(port).expect("a node that holds a lease has a stack behind weft0")
    }

    /// A node's map; `None` while it is not running.
    pub fn map(&self, node: Node) -> Option<&SubnetMap> {
        self.gossip(node).map(|gossip| &**gossip.map())
    }

    /// A node's part in gossip; `None` while it is not running.
    pub fn gossip(&self, node: Node) -> Option<&Gossip> {
        self.machines[node.0].gossip()
    }

    /// The tables of a node's switch; `None` while it is not running.
    pub fn tables(&mut self, node: Node) -> Option<&Tables> {
        self.machines[node.0].switch().map(|switch| switch.tables())
    }

    /// The subnets that a node holds, as it knows itself.
    pub fn leases(&self, node: Node) -> Vec<IpNetwork> {
        self.gossip(node).map(|gossip| gossip.lease_state().held().to_vec()).unwrap_or_default()
    }

    /// The state of `other`, as `node` sees it.
    pub fn state(&self, node: Node, other: Node) -> Option<MemberState> {
        Some(self.map(node)?.members.get(&self.node_id(other))?.state)
    }

    /// A node's counters since its daemon was started; `None` while it is not running.
    pub fn totals(&self, node: Node) -> Option<Totals> {
        self.machines[node.0].totals()
    }

    /// How many packets a node has dropped for `reason` since its daemon was started.
    pub fn dropped(&self, node: Node, reason: Reason) -> u64 {
        self.totals(node).map_or(0, |totals| totals.dropped(reason))
    }

    /// The counters of a pod's, or a machine's, port; all zero while the daemon is not running.
    pub fn port_totals(&mut self, place: impl Into<Place>) -> PortTotals {
        let (node, port) = self.locate(place.into());
        let switch = self.machines[node].switch();
        switch.map(|switch| switch.port_totals(port)).unwrap_or_default()
    }

    /// Takes the refused tunnel packets that a node has told of, with their senders.
    pub fn take_offences(&mut self, node: Node) -> Vec<Offence> {
        self.machines[node.0].take_offences()
    }

    /// What became of all datagrams.
    pub fn underlay_totals(&self) -> UnderlayTotals {
        self.underlay.totals()
    }

    /// Sets what the underlay does to datagrams on all ways that have no faults of their own.
    pub fn set_faults(&mut self, faults: Faults) {
        self.underlay.set_faults(faults);
    }

    /// Sets what happens between two nodes, in both directions.
    pub fn set_link(&mut self, a: Node, b: Node, faults: Faults) {
        let (a, b) = (self.underlay_address(a), self.underlay_address(b));
        self.underlay.set_link(a, b, faults);
        self.underlay.set_link(b, a, faults);
    }

    /// Sets the longest IP packet that passes between two nodes, in both directions. The nodes are not
    /// told: longer ones vanish.
    pub fn set_link_mtu(&mut self, a: Node, b: Node, mtu: u16) {
        let (a, b) = (self.underlay_address(a), self.underlay_address(b));
        self.underlay.set_link_mtu(a, b, mtu);
        self.underlay.set_link_mtu(b, a, mtu);
    }

    /// Cuts the ways between two nodes, also for what is on them.
    pub fn cut(&mut self, a: Node, b: Node) {
        self.note(TraceEvent::Cut(a, b));
        let (a, b) = (self.underlay_address(a), self.underlay_address(b));
        self.underlay.cut(a, b);
        self.underlay.cut(b, a);
    }

    /// Cuts one way only: what `from` sends does not reach `to` any more.
    pub fn cut_one_way(&mut self, from: Node, to: Node) {
        self.note(TraceEvent::Cut(from, to));
        let (from, to) = (self.underlay_address(from), self.underlay_address(to));
        self.underlay.cut(from, to);
    }

    /// Cuts all ways between the nodes of `side` and those of `other`.
    pub fn partition(&mut self, side: &[Node], other: &[Node]) {
        for a in side {
            for b in other {
                self.cut(*a, *b);
            }
        }
    }

    /// Mends the ways between two nodes.
    pub fn mend(&mut self, a: Node, b: Node) {
        let (a, b) = (self.underlay_address(a), self.underlay_address(b));
        self.underlay.mend(a, b);
        self.underlay.mend(b, a);
    }

    /// Mends all ways.
    pub fn heal(&mut self) {
        self.note(TraceEvent::Healed);
        self.underlay.heal();
    }

    /// Sends a frame, from its Ethernet header on, as if a pod's or a machine's interface had. It may be
    /// any bytes. No effect while the daemon is not running.
    ///
    /// # Panics
    /// If the pod was removed.
    pub fn inject_frame(&mut self, place: impl Into<Place>, bytes: &[u8]) {
        self.inject_super_frame(place, bytes, None, Checksum::Filled);
    }

    /// The same for a frame that the interface leaves to be cut, or without its checksum.
    ///
    /// # Panics
    /// If the pod was removed.
    pub fn inject_super_frame(
        &mut self,
        place: impl Into<Place>,
        bytes: &[u8],
        gso: Option<Gso>,
        checksum: Checksum,
    ) {
        let place = place.into();
        let (node, port) = self.locate(place);
        self.underlay.trace.note_frame(self.underlay.clock.elapsed(), place, bytes);
        let describe = |frame: &mut vswitch::frame::Frame| {
            frame.meta.gso = gso;
            frame.meta.checksum = checksum;
        };
        self.machines[node].inject(port, bytes, describe, &mut self.underlay);
    }

    /// Puts a datagram on the underlay. Its sender may be anybody, member or not.
    pub fn inject_datagram(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.underlay.send(from, to, bytes);
    }

    /// Keeps the latest `datagrams_max` datagrams that are sent from now on.
    pub fn start_capture(&mut self, datagrams_max: usize) {
        self.underlay.set_capture(datagrams_max);
    }

    /// Takes the datagrams that were kept, the oldest first. The capture goes on.
    pub fn take_capture(&mut self) -> Vec<Captured> {
        self.underlay.take_capture()
    }

    /// What has happened so far.
    pub fn trace(&self) -> &Trace {
        &self.underlay.trace
    }

    /// How much time has passed since the cluster was made.
    pub fn elapsed(&self) -> Duration {
        self.underlay.clock.elapsed()
    }

    /// Lets time pass, and everything happen that happens in it.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.underlay.clock.now() + time;
        while self.step(end) {}
        self.underlay.clock.advance_to(end);
    }

    /// Runs until `goal` is reached, but not longer than `time_max`; tells whether it was reached. The
    /// goal is looked at every 10 ms.
    pub fn run_until(&mut self, time_max: Duration, mut goal: impl FnMut(&Self) -> bool) -> bool {
        let end = self.elapsed() + time_max;
        while !goal(self) {
            let left = end.saturating_sub(self.elapsed());
            if left.is_zero() {
                return false;
            }
            self.run_for(LOOK.min(left));
        }
        true
    }

    /// Whether all running nodes hold their leases, and every one of their maps shows exactly them alive
    /// and each other's leases where their holders believe to hold them.
    pub fn agrees(&self) -> bool {
        let running = self.running();
        let alive: BTreeSet<_> = running.iter().map(|node| self.node_id(*node)).collect();
        let held = running
            .iter()
            .flat_map(|node| self.leases(*node).into_iter().map(|prefix| (prefix, *node)))
            .map(|(prefix, node)| (prefix, self.node_id(node)));
        let held: BTreeSet<_> = held.collect();
        running.iter().all(|node| {
            let is_complete =
                |gossip: &Gossip| matches!(gossip.lease_state(), LeaseState::Held { .. });
            let Some(map) = self.map(*node) else { return false };
            self.gossip(*node).is_some_and(is_complete)
                && alive_in(map) == alive
                && routes(map) == held
        })
    }

    /// Runs until all agree; see [`Cluster::agrees`].
    ///
    /// # Panics
    /// If that takes longer than `time_max`, with what each node knows.
    pub fn settle(&mut self, time_max: Duration) {
        let settled = self.run_until(time_max, Self::agrees);
        assert!(settled, "no agreement within {time_max:?}:\n{}", self.picture());
    }

    /// What each node knows, for messages of failing tests.
    pub fn picture(&self) -> String {
        let mut lines = Vec::new();
        for machine in &self.machines {
            let name = &machine.local.name;
            let Some(gossip) = machine.gossip() else {
                lines.push(format!("{name}: not running"));
                continue;
            };
            lines.push(format!("{name} {}: {:?}", machine.local.id, gossip.lease_state()));
            for member in gossip.map().members.values() {
                let routes: Vec<_> = member.routes().map(|prefix| prefix.to_string()).collect();
                lines.push(format!(
                    "  {} {} {}",
                    member.name,
                    member.state.name(),
                    routes.join(" ")
                ));
            }
        }
        lines.join("\n")
    }

    /// Does the next thing that happens until `end`; `false` if nothing does.
    fn step(&mut self, end: Instant) -> bool {
        let now = self.underlay.clock.now();
        let wakes = self.machines.iter().filter_map(|machine| machine.next_at(now));
        let Some(at) = wakes.chain(self.underlay.next_at()).min().filter(|at| *at <= end) else {
            return false;
        };
        self.underlay.clock.advance_to(at);
        let now = self.underlay.clock.now();
        while let Some(datagram) = self.underlay.receive() {
            let machine = self.by_address.get(&datagram.to.ip()).copied();
            let taken = machine.is_some_and(|ix| self.machines[ix].receive(datagram));
            if !taken {
                self.underlay.count_unclaimed();
            }
        }
        for machine in &mut self.machines {
            if machine.next_at(now).is_some_and(|at| at <= now) {
                machine.breathe(&mut self.underlay);
            }
        }
        true
    }

    fn locate(&self, place: Place) -> (usize, PortIx) {
        match place {
            Place::Machine(node) => (node.0, PortIx::HOST),
            Place::Pod(pod) => self.pods[pod.0].expect("the pod was not removed"),
        }
    }

    fn note(&mut self, event: TraceEvent) {
        self.underlay.trace.note(self.underlay.clock.elapsed(), event);
    }

    fn underlay_address_at(&self, ix: usize) -> IpAddr {
        let host = u32::try_from(ix + 1).expect("a simulated cluster is small");
        if self.settings.ipv6_underlay {
            IpAddr::V6(Ipv6Addr::from_bits(UNDERLAY_V6.to_bits() + u128::from(host)))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(UNDERLAY_V4.to_bits() + host))
        }
    }
}

fn alive_in(map: &SubnetMap) -> BTreeSet<NodeId> {
    let alive = map.members.values().filter(|member| member.state == MemberState::Alive);
    alive.map(|member| member.id).collect()
}

fn routes(map: &SubnetMap) -> BTreeSet<(IpNetwork, NodeId)> {
    let members = map.members.values();
    members.flat_map(|member| member.routes().map(|prefix| (prefix, member.id))).collect()
}
