//! The node's control side: it knows what is declared, what the cluster says and which pods are here, and
//! from all that it makes the switch's tables.
//!
//! ```text
//!   set_lease ─┐
//!   set_map ───┤                    publish
//!   set_underlay ─► Control (fields) ──────► compile (pure) ─► Arc<Tables> ─► Engine
//!   cni ───────┤
//!   add_device ┘
//! ```
//!
//! Every change ends in [`Control::publish`], which makes the tables whole again. Methods may block for
//! milliseconds (they sync files and talk to the kernel); they are called from blocking threads.

mod attach;
mod balancers;
mod capabilities;
mod cni_verbs;
pub mod compile;
mod deletions;
pub mod device;
pub mod endpoints;
mod exceptions;
pub mod exposure;
pub mod facts;
mod gate;
pub mod host_ports;
pub mod ipam_report;
pub(crate) mod kernel_drops;
mod leases;
mod map_pods;
mod objects;
mod paths;
pub mod policies;
mod ports;
mod published;
pub mod ranges;
mod report;
mod service_views;
pub mod services;
mod services_host;
mod shared;
mod write_back;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use conf::NodeConfig;
use conf::cluster::{Delta, ObjectName};
use ipam::{Attachment, Ipam, Policy};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use overlay::gossip::Stranger;
use overlay::node_id::NodeId;
use overlay::path::monitor::PathMonitor;
use overlay::path::probe::Finding;
use overlay::subnet::{SubnetMap, inner_mtu};
use overlay::tunnel::{Tunnel, TunnelConfig, TunnelStatus};
use overlay::underlay::Underlay;
use overlay::vxlan::Vni;
use rand::TryRng;
use rand::rngs::SysRng;
use tokio::sync::{mpsc, watch};
use vswitch::engine::{Engine, TunnelPort};
use vswitch::policy::PolicyTable;
use vswitch::port::PortIx;
use vswitch::service::ServiceTable;
use vswitch::tables::{Node, TablesBuilder};

pub use self::attach::AttachError;
use self::attach::Attached;
pub(crate) use self::attach::now_unix_s;
use self::balancers::Balancer;
use self::capabilities::FallbackCounts;
pub(crate) use self::gate::mode as policy_mode;
use self::kernel_drops::KernelDrops;
use self::map_pods::KnownPods;
pub use self::map_pods::{MapPods, PodNumbers};
use self::objects::Objects;
pub use self::objects::SharedCluster;
pub(crate) use self::paths::is_up;
use self::ports::PortNumbers;
pub use self::service_views::ServiceViews;
pub use self::shared::SharedControl;
pub use self::write_back::WriteBack;
use crate::admin::api::{LeasePhase, Offender, ProblemTopic};
use crate::announce::{Plan, Report};
use crate::dns::report::DnsStatus;
use crate::dns::{self, resolver::Resolver};
use crate::events::{Code, EventLog};
use crate::health_check::HealthChecks;
use crate::host::long_frames::{self, Probed};
use crate::host::ways::{self, Ways};
use crate::host::{Host, nft, sysctl};

/// A worker that has not breathed for this long hangs: idle ones breathe every second.
const BREATH_MAX: Duration = Duration::from_secs(10);

/// Senders of refused tunnel packets that are remembered.
const OFFENDERS_MAX: usize = 64;

/// Who this node is, fixed for the life of the daemon.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Identity, kept across restarts.
    pub id: NodeId,
    /// Name for people.
    pub name: String,
    /// The kernel's boot id: namespaces do not outlive a boot.
    pub boot_id: String,
}

/// The node's share of the cluster ranges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldLease {
    /// IPv4 subnet.
    pub v4: Option<Ipv4Network>,
    /// IPv6 subnet.
    pub v6: Option<Ipv6Network>,
}

impl HeldLease {
    /// The lease made of these prefixes, of which there is at most one per family.
    pub fn new(prefixes: &[IpNetwork]) -> Self {
        let mut lease = Self::default();
        for prefix in prefixes {
            match prefix {
                IpNetwork::V4(v4) => lease.v4 = Some(*v4),
                IpNetwork::V6(v6) => lease.v6 = Some(*v6),
            }
        }
        lease
    }
}

/// What may be wrong with the node, one problem at a time for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Something of the node as a whole.
    Node(ProblemTopic),
    /// A kernel setting could not be made.
    Sysctl(&'static str),
    /// A pod has no network, or an old configuration.
    Pod(Attachment),
    /// Addresses cannot be left to other nodes' pods.
    Lending,
    /// The address of a pod is another node's pod's, too, and that one keeps it.
    CutOff(IpAddr),
    /// A pod cannot be told to other nodes.
    Told(Attachment),
    /// A part of Services that is not the switch's.
    Services(&'static str),
    /// The control plane of Kubernetes gives this node no subnet, or another one than it has.
    PodCidrs,
    /// What is known of a Kubernetes cluster cannot be kept on disk.
    Snapshot,
    /// What the plugin noted while no daemon ran cannot be carried out.
    Deletions,
    /// The path to the node at this underlay address carries less than both ends.
    Path(IpAddr),
    /// No data passes to the node at this underlay address.
    Data(IpAddr),
}

impl Topic {
    /// The code of the event that there is such a problem, and of the one that it is solved.
    fn codes(&self) -> (Code, Code) {
        let raised = match self {
            Self::Path(_) => return (Code::PathNarrow, Code::PathWide),
            Self::Data(_) => return (Code::PathDown, Code::PathUp),
            Self::Sysctl(_) => Code::ProblemSysctl,
            Self::Services(_) => Code::ProblemObjects,
            Self::Pod(_) | Self::Told(_) => Code::ProblemPod,
            Self::CutOff(_) => Code::ProblemCutOff,
            Self::Lending | Self::Snapshot | Self::Deletions => Code::ProblemStorage,
            Self::PodCidrs => Code::ProblemLease,
            Self::Node(topic) => match topic {
                ProblemTopic::Underlay => Code::ProblemUnderlay,
                ProblemTopic::Tunnel => Code::ProblemTunnel,
                ProblemTopic::Gossip => Code::ProblemGossip,
                ProblemTopic::Storage => Code::ProblemStorage,
                ProblemTopic::Lease => Code::ProblemLease,
                ProblemTopic::Host => Code::ProblemHost,
                ProblemTopic::Masquerade => Code::ProblemMasquerade,
                ProblemTopic::Sysctl => Code::ProblemSysctl,
                ProblemTopic::Pod => Code::ProblemPod,
                ProblemTopic::Tables => Code::ProblemTables,
                ProblemTopic::Objects => Code::ProblemObjects,
                ProblemTopic::Kubernetes => Code::ProblemKubernetes,
                ProblemTopic::Dns => Code::ProblemDns,
                ProblemTopic::Keys => Code::ProblemKeys,
                ProblemTopic::Addresses => Code::ProblemAddresses,
                ProblemTopic::Conflict | ProblemTopic::Path | ProblemTopic::Data => {
                    Code::ProblemOther
                }
            },
        };
        (raised, Code::ProblemSolved)
    }

    /// The topic as the admin socket names it.
    fn kind(&self) -> ProblemTopic {
        match self {
            Self::Node(topic) => *topic,
            Self::Sysctl(_) => ProblemTopic::Sysctl,
            Self::Services(_) => ProblemTopic::Objects,
            Self::PodCidrs => ProblemTopic::Lease,
            Self::Lending | Self::Snapshot | Self::Deletions => ProblemTopic::Storage,
            Self::Pod(_) | Self::Told(_) | Self::CutOff(_) => ProblemTopic::Pod,
            Self::Path(_) => ProblemTopic::Path,
            Self::Data(_) => ProblemTopic::Data,
        }
    }
}

/// The control side of one node.
#[derive(Debug)]
pub struct Control {
    config: Arc<NodeConfig>,
    identity: Identity,
    events: EventLog,
    started: Instant,
    engine: Engine,
    ipam: Ipam,
    attached: BTreeMap<Attachment, Attached>,
    numbers: PortNumbers,
    lease: HeldLease,
    lease_phase: LeasePhase,
    /// A lease that is held, but could not be written down yet.
    lease_waiting: Option<HeldLease>,
    map: Arc<SubnetMap>,
    services: Arc<ServiceTable>,
    policies: Arc<PolicyTable>,
    /// Denials that nobody was told of in detail.
    denials_untold: u64,
    /// Addresses of pods here that other nodes' pods have, and keep.
    cut_off: BTreeSet<IpAddr>,
    /// Since when nobody knows the nodes any more that addresses were left to.
    absent: BTreeMap<NodeId, Instant>,
    objects: Objects,
    /// What the host's own table has of the Services.
    ways: Ways,
    /// The Services that have something for the world.
    balancers: BTreeMap<ObjectName, Balancer>,
    plans: watch::Sender<Arc<Plan>>,
    health_checks: watch::Sender<HealthChecks>,
    /// Who announces addresses of load balancers.
    announced: Report,
    underlay: Option<Underlay>,
    /// Who answers pods' names, unless the configuration leaves that to others.
    dns: Option<Arc<Resolver>>,
    /// Where it is to answer; nowhere without it.
    dns_addresses: watch::Sender<Vec<IpAddr>>,
    tunnel: Option<TunnelStatus>,
    host: Option<Host>,
    paths: PathMonitor,
    /// What the paths' monitor finds out, until somebody takes it.
    findings: Option<mpsc::Receiver<(NodeId, Finding)>>,
    /// What the kernel takes of super-frames longer than a packet can say.
    long_frames: Probed,
    kernel_drops: KernelDrops,
    /// What was counted of tunnels and ports that are closed.
    past_fallbacks: FallbackCounts,
    /// When the kernel is asked again for what it did not grant in full.
    next_growth: Instant,
    problems: BTreeMap<Topic, String>,
    offenders: VecDeque<Offender>,
    offence_lines: u32,
    gossip_refused: BTreeMap<String, u64>,
    strangers: Vec<Stranger>,
    known_pods: KnownPods,
    generation: u64,
}

impl Control {
    /// Starts the switch with no ports; what the last run remembers of lease and pods is taken up by
    /// [`Control::reattach`].
    ///
    /// # Errors
    /// When the workers cannot be started.
    pub fn new(
        config: Arc<NodeConfig>,
        identity: Identity,
        mut ipam: Ipam,
    ) -> anyhow::Result<Self> {
        ipam.set_policy(Policy {
            reuse_delay_s: config.ipam.reuse_delay_s.into(),
            excluded: config.ipam.exclude.clone(),
            sticky: config.ipam.sticky,
        })?;
        let (v4, v6) = ipam.lease();
        let node = Node {
            vtep_mac: identity.id.vtep_mac(),
            gateway_v4: None,
            gateway_v6: None,
            underlay: None,
            vxlan_port: config.overlay.vxlan_port,
            gossip_port: config.overlay.gossip_port,
        };
        let empty = TablesBuilder::new(0, node, &config.lease.ranges).build();
        let engine = Engine::start(&config.switch, Arc::new(empty))?;
        let numbers = PortNumbers::new(config.switch.ports_max);
        let started = Instant::now();
        let objects = Objects::new(&config, &identity.name, started);
        let dns_addresses = watch::Sender::new(objects.tables().names().to_vec());
        let seed = SysRng.try_next_u64().context("the kernel gives no random number")?;
        let (paths, findings) =
            PathMonitor::new(identity.id.vtep_mac(), engine.prober_counters(), seed);
        // What asks for loops must not be guessed.
        let secret = SysRng.try_next_u64().context("the kernel gives no random number")?;
        let ranges = [&config.lease.ranges[..], &config.services.ranges].concat();
        let dns = || Arc::new(dns::resolver(&config.dns, &ranges, secret));
        let dns = config.dns.enabled.then(dns);
        Ok(Self {
            config,
            events: EventLog::new(&identity.name),
            identity,
            started,
            engine,
            ipam,
            attached: BTreeMap::new(),
            numbers,
            lease: HeldLease { v4, v6 },
            lease_phase: if v4.is_some() || v6.is_some() {
                LeasePhase::Returning
            } else {
                LeasePhase::Waiting
            },
            lease_waiting: None,
            map: Arc::default(),
            services: Arc::new(ServiceTable::empty()),
            // Shut until all policies are known.
            policies: Arc::new(gate::shut()),
            denials_untold: 0,
            cut_off: BTreeSet::new(),
            absent: BTreeMap::new(),
            objects,
            ways: Ways::default(),
            balancers: BTreeMap::new(),
            dns_addresses,
            plans: watch::Sender::default(),
            health_checks: watch::Sender::default(),
            announced: Report::default(),
            underlay: None,
            dns,
            tunnel: None,
            host: None,
            paths,
            findings: Some(findings),
            long_frames: long_frames::probe(),
            kernel_drops: KernelDrops::default(),
            past_fallbacks: FallbackCounts::default(),
            next_growth: started,
            problems: BTreeMap::new(),
            offenders: VecDeque::new(),
            offence_lines: 0,
            gossip_refused: BTreeMap::new(),
            strangers: Vec::new(),
            known_pods: KnownPods::default(),
            generation: 0,
        })
    }

    /// Who this node is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Who probes the paths to the other nodes, and what it finds out. For whoever runs it, once.
    pub fn take_paths(&mut self) -> Option<(PathMonitor, mpsc::Receiver<(NodeId, Finding)>)> {
        Some((self.paths.clone(), self.findings.take()?))
    }

    /// Who answers pods' names.
    pub fn dns(&self) -> Option<&Arc<Resolver>> {
        self.dns.as_ref()
    }

    /// How the name server is doing; `None` when there is none.
    pub fn dns_status(&self) -> Option<DnsStatus> {
        let addresses = self.dns_addresses.borrow();
        self.dns.as_deref().map(|resolver| DnsStatus::of(resolver, &self.config.dns, &addresses))
    }

    /// Where the name server is to answer, for who listens there.
    pub fn dns_addresses(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.dns_addresses.subscribe()
    }

    /// What is to be announced, for who announces it.
    pub fn plans(&self) -> watch::Receiver<Arc<Plan>> {
        self.plans.subscribe()
    }

    /// What is to be answered about Services' health, for who answers.
    pub fn health_checks(&self) -> watch::Receiver<HealthChecks> {
        self.health_checks.subscribe()
    }

    /// How many pods are attached here.
    pub fn pod_count(&self) -> usize {
        self.attached.len()
    }

    /// Where all that happens is told.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Takes up a new view of the cluster.
    pub fn set_map(&mut self, map: Arc<SubnetMap>) {
        self.map = map;
        self.follow_exceptions();
        self.set_node_facts();
        self.follow_balancers(&BTreeSet::new());
        self.publish();
    }

    /// Gives back what flows that are over take. To be called about once a second.
    pub fn tidy_flows(&self) {
        self.engine.flows().tidy(Instant::now());
    }

    /// Takes up all Services. The table's generation must differ from that of every other one before it.
    pub fn set_services(&mut self, services: Arc<ServiceTable>) {
        self.services = services;
        self.publish();
        self.follow_exposure();
    }

    /// Takes up what gossip refused so far, by reason, and who speaks with a wrong seal or none.
    pub fn set_gossip_refused(&mut self, refused: BTreeMap<String, u64>, strangers: Vec<Stranger>) {
        self.gossip_refused = refused;
        self.strangers = strangers;
    }

    /// Takes up a lease that this node holds: new pods get addresses out of it.
    ///
    /// Pods with addresses of an earlier lease keep them.
    pub fn set_lease(&mut self, lease: HeldLease) {
        if let Err(error) = self.ipam.set_lease(lease.v4, lease.v6) {
            // The old one is not this node's any more, so nothing is handed out until this works.
            self.lease_phase = LeasePhase::Claiming;
            self.lease_waiting = Some(lease);
            let problem = format!("the lease cannot be taken up: {error}. It is tried again");
            self.raise(Topic::Node(ProblemTopic::Lease), problem);
            return;
        }
        self.watch_addresses();
        let was_unproven = self.lease_phase == LeasePhase::Returning;
        self.lease_phase = LeasePhase::Held;
        self.follow_exceptions();
        self.lease_waiting = None;
        self.clear(&Topic::Node(ProblemTopic::Lease));
        let changed = self.lease != lease;
        self.lease = lease;
        self.set_up_host();
        self.publish();
        self.follow_balancers(&BTreeSet::new());
        if was_unproven && !changed {
            self.events.emit(Code::LeaseTakenUp, "the lease is this node's still", &[]);
        }
        if changed {
            let leases: Vec<_> = self.leases().iter().map(ToString::to_string).collect();
            let leases = leases.join(" ");
            self.events.emit(Code::LeaseTakenUp, "lease taken up", &[("leases", &leases)]);
            self.configure_all();
        }
    }

    /// Takes up that there is no lease at present, and why. The last one still serves the pods that are
    /// there, and gives no new addresses.
    ///
    /// While it is not known whether the last one still is this node's ([`LeasePhase::Returning`]), or another
    /// node has this one's id ([`LeasePhase::Suspended`]), nothing is sent to other nodes or taken from them.
    /// In the second case all pods are cut off.
    pub fn set_no_lease(&mut self, phase: LeasePhase, problem: Option<String>) {
        let was_at_home = self.lease_phase.is_at_home();
        self.lease_phase = phase;
        self.follow_exceptions();
        if !(was_at_home && phase.is_at_home()) {
            self.publish();
        }
        self.follow_balancers(&BTreeSet::new());
        self.lease_waiting = None;
        match problem {
            Some(problem) => self.raise(Topic::Node(ProblemTopic::Lease), problem),
            None => self.clear(&Topic::Node(ProblemTopic::Lease)),
        }
    }

    /// Takes up another `[lease]` section: the node's routes, masquerading and tables follow its ranges.
    pub fn set_lease_config(&mut self, config: Arc<NodeConfig>) {
        self.config = config;
        self.set_up_host();
        self.publish();
    }

    /// Takes up the underlay address: opens the tunnel there and gives every interface the right MTU.
    ///
    /// # Errors
    /// When the tunnel's sockets cannot be opened.
    pub fn set_underlay(&mut self, underlay: Underlay) -> anyhow::Result<()> {
        // The old sockets may hold the same port.
        self.engine.set_tunnel(None)?;
        self.forget_tunnel();
        let address = underlay.address;
        self.underlay = Some(underlay);
        let tunnel = self.open_tunnel(address);
        self.clear(&Topic::Node(ProblemTopic::Underlay));
        self.configure_all();
        self.set_up_host();
        self.take_up_delta(&Delta::default());
        self.follow_balancers(&BTreeSet::new());
        self.publish();
        tunnel
    }

    fn open_tunnel(&mut self, underlay: IpAddr) -> anyhow::Result<()> {
        let vni = self.config.overlay.vni;
        let config = TunnelConfig {
            underlay,
            port: self.config.overlay.vxlan_port,
            vni: Vni::new(vni).with_context(|| format!("VNI {vni} does not fit 24 bits"))?,
            workers: self.engine.workers(),
            mtu: self.pod_mtu(),
        };
        let opened = Tunnel::open(&config).map_err(anyhow::Error::from).and_then(|tunnel| {
            let uplinks = tunnel.uplinks.into_iter().map(|uplink| Box::new(uplink) as _).collect();
            let sources = tunnel.sources.into_iter().map(|source| Box::new(source) as _).collect();
            let port = TunnelPort { sources, uplinks };
            self.engine.set_tunnel(Some(port))?;
            Ok(tunnel.status)
        });
        match opened {
            Ok(status) => {
                self.paths.set_port(Some(status.probes().clone()));
                self.tunnel = Some(status);
                self.clear(&Topic::Node(ProblemTopic::Tunnel));
                Ok(())
            }
            Err(error) => {
                self.raise(Topic::Node(ProblemTopic::Tunnel), error.to_string());
                Err(error)
            }
        }
    }

    /// Makes or adapts `weft0`, its routes and the masquerading; what does not work is a problem, and the
    /// rest goes on.
    fn set_up_host(&mut self) {
        let gateways = self.gateways();
        if gateways.is_empty() {
            return;
        }
        match self.try_set_up_host(&gateways) {
            Ok(()) => {
                self.clear(&Topic::Node(ProblemTopic::Host));
                self.route_balancers();
            }
            Err(error) => {
                let interface = &self.config.host.interface;
                let problem =
                    format!("{interface} cannot be set up, so this node reaches no pod: {error}");
                self.raise(Topic::Node(ProblemTopic::Host), problem);
            }
        }
        self.set_up_forwarding();
    }

    fn try_set_up_host(&mut self, gateways: &[IpAddr]) -> anyhow::Result<()> {
        let mtu = self.pod_mtu();
        if self.host.is_none() {
            let host = Host::open(&self.config.host.interface)?;
            let port = host.port(self.engine.workers());
            // The tables first: from its first frame on, the port is known.
            self.host = Some(host);
            self.publish();
            self.engine.add_port(PortIx::HOST, port)?;
        }
        if let Some(host) = &self.host {
            let mut addresses = gateways.to_vec();
            addresses.extend(self.dns_addresses.borrow().iter());
            host.configure(&addresses, &self.routed_ranges(), mtu)?;
        }
        Ok(())
    }

    fn set_up_forwarding(&mut self) {
        let interface = self.config.host.interface.clone();
        let settings = [
            ("forwarding", sysctl::enable_forwarding(self.lease.v6.is_some())),
            ("rp_filter", sysctl::loosen_reverse_path_filter(&interface)),
            ("accept_local", sysctl::accept_own_addresses(&interface)),
        ];
        for (name, set) in settings {
            match set {
                Ok(()) => self.clear(&Topic::Sysctl(name)),
                Err(error) => self.raise(Topic::Sysctl(name), error.to_string()),
            }
        }
        // Until the objects are known, the table of an earlier run keeps connections alive.
        if self.objects.cluster().is_synced() {
            self.set_up_table();
        }
    }

    fn set_up_table(&mut self) {
        self.follow_ways();
        let leases = self.leases();
        let masquerades = self.config.host.masquerade;
        let set = nft::apply(&nft::Ruleset {
            interface: &self.config.host.interface,
            vxlan_port: self.config.overlay.vxlan_port,
            masqueraded: if masquerades { &leases } else { &[] },
            ranges: &self.config.lease.ranges,
            dns: &self.dns_addresses.borrow(),
            ways: &self.ways,
        });
        match set {
            // Without `nft`, some things are not possible; they may not be wanted, either.
            Err(nft::Error::Missing) if !masquerades && self.ways.is_empty() => {}
            Ok(()) => self.clear(&Topic::Node(ProblemTopic::Masquerade)),
            Err(error) => self.raise(Topic::Node(ProblemTopic::Masquerade), error.to_string()),
        }
    }

    /// Tries again what did not work, and makes anew what vanished. Called every few seconds.
    pub fn repair(&mut self) {
        if let Some(lease) = self.lease_waiting {
            self.set_lease(lease);
        }
        if let (None, Some(underlay)) = (&self.tunnel, &self.underlay) {
            let address = underlay.address;
            if let Err(error) = self.open_tunnel(address) {
                tracing::debug!("the tunnel is still closed: {error:#}");
            }
        }
        let host_is_well = self.host.is_some()
            && !self.problems.keys().any(|topic| {
                let node = [ProblemTopic::Host, ProblemTopic::Masquerade, ProblemTopic::Sysctl];
                node.contains(&topic.kind())
            });
        if !host_is_well {
            self.set_up_host();
            self.publish();
        }
        self.take_up_deletions();
        self.plug_missing();
        self.look_for_refused();
    }

    /// Makes the tables anew and puts them in force.
    fn publish(&mut self) {
        self.generation += 1;
        let own_mtu = self.underlay.as_ref().map_or(0, |underlay| underlay.mtu);
        let peers = match &self.underlay {
            Some(_) if self.lease_phase.is_at_home() => self.map.peers(self.identity.id, own_mtu),
            Some(_) | None => Vec::new(),
        };
        let peers = self.follow_paths(peers, own_mtu);
        let inputs = compile::Inputs {
            generation: self.generation,
            node: Node {
                vtep_mac: self.identity.id.vtep_mac(),
                gateway_v4: self.lease.v4.map(gateway_v4),
                gateway_v6: self.lease.v6.map(gateway_v6),
                underlay: self.underlay.as_ref().map(|underlay| underlay.address),
                vxlan_port: self.config.overlay.vxlan_port,
                gossip_port: self.config.overlay.gossip_port,
            },
            ranges: self.config.lease.ranges.clone(),
            host_mtu: self.host.as_ref().map(|_| self.pod_mtu()),
            pods: self.attached.values().map(|pod| pod.to_table(&self.cut_off)).collect(),
            peers,
            services: Arc::clone(&self.services),
            policies: Arc::clone(&self.policies),
            established: self.config.policy.established,
        };
        let (tables, left_out) = compile::compile(inputs);
        self.engine.publish(Arc::new(tables));
        match left_out {
            0 => self.clear(&Topic::Node(ProblemTopic::Tables)),
            n => self.raise(
                Topic::Node(ProblemTopic::Tables),
                format!("{n} nodes do not fit the tables (65536 do)"),
            ),
        }
    }

    /// MTU of pods' interfaces and of `weft0`. Until the underlay is known, that of an Ethernet.
    fn pod_mtu(&self) -> u16 {
        const ETHERNET_MTU: u16 = 1500;
        match &self.underlay {
            Some(underlay) => inner_mtu(underlay.mtu, underlay.address),
            None => inner_mtu(ETHERNET_MTU, IpAddr::from([0; 4])),
        }
    }

    /// The lease's first addresses: the node's own, and pods' default gateways.
    fn gateways(&self) -> Vec<IpAddr> {
        let v4 = self.lease.v4.map(|lease| IpAddr::from(gateway_v4(lease)));
        let v6 = self.lease.v6.map(|lease| IpAddr::from(gateway_v6(lease)));
        v4.into_iter().chain(v6).collect()
    }

    fn leases(&self) -> Vec<IpNetwork> {
        let v4 = self.lease.v4.map(IpNetwork::V4);
        v4.into_iter().chain(self.lease.v6.map(IpNetwork::V6)).collect()
    }

    /// Whether the data path is alive.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn health(&mut self) -> Result<(), String> {
        for (ix, worker) in self.engine.health().into_iter().enumerate() {
            if let Some(why) = worker.ended {
                return Err(format!("worker {ix} has ended: {why}"));
            }
            if worker.last_breath > BREATH_MAX {
                return Err(format!("worker {ix} has hung for {:?}", worker.last_breath));
            }
            if let Some(why) = worker.slice_refused {
                let problem = format!(
                    "the workers cannot have short time slices and priority: {why}; packets wait longer \
                     while the CPUs are busy. Allow weftd a nice value of {} (`LimitNICE=` of systemd, or the \
                     capability CAP_SYS_NICE), and `sched_setattr` where a seccomp filter forbids it",
                    vswitch::slice::URGENT_NICE
                );
                self.raise(Topic::Sysctl("time slice"), problem);
            }
        }
        Ok(())
    }

    /// Notes a problem, and logs it once.
    pub fn raise(&mut self, topic: Topic, problem: String) {
        if self.problems.get(&topic) != Some(&problem) {
            self.events.emit(topic.codes().0, problem.as_str(), &[]);
            self.problems.insert(topic, problem);
        }
    }

    /// Notes that there is no such problem, or no more.
    pub fn clear(&mut self, topic: &Topic) {
        if let Some(problem) = self.problems.remove(topic) {
            self.events.emit(topic.codes().1, format!("solved: {problem}"), &[]);
        }
    }

    /// Takes the data path down. Pods keep their interfaces and addresses.
    ///
    /// # Errors
    /// When a worker does not stop.
    pub fn stop(self) -> anyhow::Result<()> {
        Ok(self.engine.stop()?)
    }
}

/// The first address of an IPv4 lease behind its network address.
fn gateway_v4(lease: Ipv4Network) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from_bits(lease.network().to_bits().saturating_add(1))
}

/// The first address of an IPv6 lease behind the subnet-router anycast address (RFC 4291 §2.6.1).
fn gateway_v6(lease: Ipv6Network) -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::from_bits(lease.network().to_bits().saturating_add(1))
}
