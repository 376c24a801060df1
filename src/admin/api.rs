//! What the admin socket says: the JSON of `weft -o json`, and of `curl --unix-socket`.
//!
//! | method | path | request | answer |
//! | --- | --- | --- | --- |
//! | GET | `/v1/status` | | [`Status`] |
//! | GET | `/v1/nodes` | | list of [`NodeStatus`] |
//! | GET | `/v1/leases` | | [`LeasesReport`] |
//! | GET | `/v1/watch` | | [`crate::events::EventRecord`]s without end, one to a line |
//! | GET | `/v1/pods` | | list of [`PodStatus`] |
//! | GET | `/v1/map/pods` | | list of [`MapPod`] |
//! | GET | `/v1/ipam` | | [`IpamReport`](super::ipam::IpamReport) |
//! | POST | `/v1/ipam/release` | [`ReleaseRequest`](super::ipam::ReleaseRequest) | [`Released`](super::ipam::Released) |
//! | GET | `/v1/counters` | | [`CountersReport`] |
//! | GET | `/v1/dns` | | [`DnsStatus`](crate::dns::report::DnsStatus), or null without a name server |
//! | GET | `/v1/dns/log?client=` | | [`crate::dns::stats::LogLine`]s without end, one to a line |
//! | GET | `/v1/dns/query?name=&type=&from=` | | [`DnsAnswer`](crate::dns::report::DnsAnswer) |
//! | GET | `/v1/explain?from=&to=&port=&protocol=&node=` | | [`Explained`](crate::explain::Explained) |
//! | GET | `/v1/services` | | list of [`ServiceStatus`](super::services::ServiceStatus) |
//! | GET | `/v1/endpoints` | | list of [`EndpointStatus`](super::services::EndpointStatus) |
//! | GET | `/v1/flows?max=&service=&client=` | | [`FlowsReport`](super::services::FlowsReport) |
//! | GET | `/v1/objects` | | [`conf::source::Listing`] |
//! | GET | `/v1/policy/list` | | list of [`PolicyStatus`](crate::policy::list::PolicyStatus) |
//! | GET | `/v1/policy/matrix?protocol=&port=` | | [`Matrix`](crate::policy::matrix::Matrix) |
//! | POST | `/v1/ports` | [`PortRequest`] | [`PodStatus`] |
//! | DELETE | `/v1/ports/NAME` | | |
//! | POST | `/v1/cni` | `cni::rpc::CniRequest` | `cni::rpc::CniResponse` |
//!
//! An error is answered with a status of 400 or above; when the request was understood, with an [`ErrorBody`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use conf::cluster::Protocol;
use conf::source::manifests::Counts;
use ipnetwork::IpNetwork;
use overlay::path::probe::PathState;
use overlay::seal::KeyId;
use overlay::subnet::MemberState;
use serde::{Deserialize, Serialize};
use vswitch::counters::PortTotals;
use vswitch::mac::Mac;

use super::capability::{Capability, CapabilityName, Place};

/// The node and its health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Name of the network.
    pub network: String,
    /// Name of the node.
    pub name: String,
    /// Identity of the node: 32 hexadecimal digits, kept for its life.
    pub node_id: String,
    /// Underlay address; absent until it is known.
    pub underlay: Option<IpAddr>,
    /// MTU of the underlay interface.
    pub underlay_mtu: Option<u16>,
    /// MTU of pods' interfaces.
    pub pod_mtu: Option<u16>,
    /// VTEP MAC address.
    pub vtep_mac: Mac,
    /// Leased prefixes, once held.
    pub leases: Vec<IpNetwork>,
    /// How far the node has come with its lease.
    pub lease_state: LeasePhase,
    /// Addresses of the leases that pods hold, and that can be handed out, by prefix.
    pub addresses: Vec<PoolStatus>,
    /// Whether gossip is in clear, so that whoever reaches its port may join.
    pub insecure: bool,
    /// Names of the keys that this node accepts, the one in use first. Empty while gossip does not run, and
    /// without a seal.
    pub keys: Vec<KeyId>,
    /// Live nodes in the map, this one included.
    pub nodes_alive: usize,
    /// Version of the map.
    pub map_generation: u64,
    /// Version of the switch's tables.
    pub tables_generation: u64,
    /// Attached pods.
    pub pods: usize,
    /// How many objects are declared, and what became of them.
    pub objects: Counts,
    /// The API server that they come from; `None` where they come from files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_server: Option<ApiServerStatus>,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Whether pods can be attached now.
    pub ready: bool,
    /// What is wrong, each with what to do. Empty when all is well.
    pub problems: Vec<Problem>,
    /// What the kernel offers, whether it is in use, and why not.
    pub capabilities: Vec<Capability>,
}

/// How far a node has come with its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeasePhase {
    /// A seed is asked first what others hold.
    Waiting,
    /// Something is claimed.
    Claiming,
    /// What was held before a restart or a sleep is not used before another node was asked.
    Returning,
    /// Pods can be given addresses.
    Held,
    /// The subnet that is fixed for this node is fixed for another one, too.
    Blocked,
    /// Every subnet is another node's.
    Exhausted,
    /// Another node has this one's identity.
    Suspended,
    /// The node has said goodbye.
    Left,
}

impl LeasePhase {
    /// Whether pods here may talk to other nodes: not before a remembered lease is proven, and not while
    /// another node has this one's identity.
    pub fn is_at_home(self) -> bool {
        !matches!(self, Self::Returning | Self::Suspended)
    }

    /// The phase as it stands in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Claiming => "claiming",
            Self::Returning => "returning",
            Self::Held => "held",
            Self::Blocked => "blocked",
            Self::Exhausted => "exhausted",
            Self::Suspended => "suspended",
            Self::Left => "left",
        }
    }
}

/// How the node stands with the API server of its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiServerStatus {
    /// The server that is asked at present.
    pub server: String,
    /// Whether all objects were known once.
    pub synced: bool,
    /// For how long what is known may have been old, in seconds; `None` while it is up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_s: Option<u64>,
    /// Whether what is known was known before the daemon started, and the server has not told all of it since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remembered: bool,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Something that is wrong with the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it is about.
    pub topic: ProblemTopic,
    /// What is wrong, and what to do.
    pub text: String,
}

/// What a problem is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProblemTopic {
    /// The underlay address is not known, or gone.
    Underlay,
    /// The tunnel is not open.
    Tunnel,
    /// The gossip does not run, or nobody answers.
    Gossip,
    /// What must survive a restart cannot be written.
    Storage,
    /// There is no lease.
    Lease,
    /// `weft0` is not as it has to be.
    Host,
    /// Pods cannot reach the world.
    Masquerade,
    /// A kernel setting could not be made.
    Sysctl,
    /// A pod has no network, or an old configuration.
    Pod,
    /// Nodes were left out of the tables.
    Tables,
    /// Something in the cluster that should be unique is not.
    Conflict,
    /// Objects cannot be honoured, or their directory cannot be read.
    Objects,
    /// The API server of the cluster does not answer, or refuses.
    Kubernetes,
    /// The path to a node carries less than the interfaces at both ends.
    Path,
    /// No data passes to a node that is alive.
    Data,
    /// Pods' names are not answered.
    Dns,
    /// Gossip is not sealed, the key file is wrong, or others have other keys.
    Keys,
    /// Few addresses are left for further pods, or none.
    Addresses,
}

/// Use of one leased prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// The prefix.
    pub prefix: IpNetwork,
    /// Addresses that pods hold.
    pub used: u64,
    /// Addresses that can still be handed out.
    pub free: u64,
}

/// A node of the map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Name of the node.
    pub name: String,
    /// Identity of the node.
    pub node_id: String,
    /// Whether it is alive, as the node that answers sees it.
    pub state: MemberState,
    /// Whether it is the node that answers.
    pub this_node: bool,
    /// Underlay address.
    pub underlay: IpAddr,
    /// MTU of its underlay interface.
    pub underlay_mtu: u16,
    /// VTEP MAC address.
    pub vtep_mac: Mac,
    /// Leased prefixes.
    pub leases: Vec<IpNetwork>,
    /// Version of its record.
    pub version: u64,
    /// Seconds that it has been in this state, as the node that answers saw it.
    pub since_s: u64,
    /// Name and version of its daemon, such as `weft/0.1.0`; empty where no Weft daemon speaks for it.
    pub software: String,
    /// Names of the keys that it accepts, the one that it uses first; none if its gossip is in clear.
    pub keys: Vec<KeyId>,
    /// The path to it; absent for this node, and for nodes that cannot be sent to.
    pub path: Option<PathStatus>,
}

/// Who has which subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasesReport {
    /// The cluster ranges.
    pub ranges: Vec<IpNetwork>,
    /// Subnets that this node's configuration keeps free.
    pub reserved: Vec<IpNetwork>,
    /// All leases that the node knows, in the order of their addresses.
    pub leases: Vec<LeaseStatus>,
    /// Addresses of pods out of subnets that their nodes have lost.
    pub exceptions: Vec<ExceptionStatus>,
    /// What contradicts itself, and what is being done.
    pub conflicts: Vec<ConflictStatus>,
}

/// An address that a pod keeps although its node has lost the subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceptionStatus {
    /// The address.
    pub address: IpAddr,
    /// Name of the node of the pod.
    pub node: String,
    /// Identity of that node.
    pub node_id: String,
    /// Whether packets to the address are sent there; not, when the subnet's holder gave it to a pod of its own.
    pub leads_there: bool,
    /// Name of the node that holds the subnet now, if any does.
    pub holder: Option<String>,
}

/// A subnet, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The subnet.
    pub prefix: IpNetwork,
    /// Name of the node.
    pub node: String,
    /// Identity of the node.
    pub node_id: String,
    /// Whether it is the node that answers.
    pub this_node: bool,
    /// Whether the node is alive.
    pub node_state: MemberState,
    /// What the node has of it.
    pub state: LeaseHolding,
    /// Whether the node's configuration says that it must be this one.
    pub fixed: bool,
    /// Higher than that of every earlier holder whom the node knew of.
    pub epoch: u64,
    /// Name of the node that keeps it, where this one is losing it.
    pub winner: Option<String>,
    /// Seconds until it is anybody's, where it is reserved; earlier, when no other is free.
    pub free_in_s: Option<u64>,
}

/// What a node has of a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseHolding {
    /// It is in use.
    Held,
    /// It is announced, so that whoever knows better can object.
    Claiming,
    /// Another node has a better claim, and this one is giving it up.
    Losing,
    /// The node is dead or has left; it is kept for its return.
    Reserved,
}

impl LeaseHolding {
    /// The name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Claiming => "claiming",
            Self::Losing => "losing",
            Self::Reserved => "reserved",
        }
    }
}

/// Something that should be unique and is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictStatus {
    /// Both parties, and what is being done.
    pub text: String,
}

/// The path to another node, as probes through the tunnel find it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathStatus {
    /// Whether data passes.
    pub state: PathState,
    /// Seconds that this has been so.
    pub since_s: u64,
    /// Round-trip time in microseconds, smoothed; absent before the first answer.
    pub rtt_us: Option<u64>,
    /// Share of the last probes, at most 32, that were lost: 0 to 1.
    pub loss: Option<f32>,
    /// Longest IP packet of the underlay that passes towards the node.
    pub mtu: u16,
    /// The lesser MTU of the interfaces at both ends.
    pub mtu_max: u16,
    /// Longest packet that pods may send to the node.
    pub pod_mtu: u16,
    /// Longest packet that pods there may send to this node, as that one told.
    pub pod_mtu_back: Option<u16>,
}

/// What is said everywhere about a node without a key.
pub const INSECURE: &str = "gossip is in clear (insecure = true under [overlay]): whoever reaches its port may \
    join, lie about subnets and read everything. `weft key generate` makes a key; take it to all nodes, and \
    remove the line";

/// A pod of any node, as gossip told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapPod {
    /// Kubernetes namespace, where the runtime told it.
    pub namespace: Option<String>,
    /// Pod name; where the runtime did not tell it, the container's id, or the name of a device of the host.
    pub name: String,
    /// Unique id, where the runtime told it.
    pub uid: Option<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Labels, where the runtime told them.
    pub labels: BTreeMap<String, String>,
    /// Whether it is in its node's network.
    pub host_network: bool,
    /// Name of its node.
    pub node: Option<String>,
    /// Identity of its node.
    pub node_id: String,
    /// For how many seconds there has been one.
    pub age_s: u64,
}

/// A port of the switch with a pod (or virtual machine) behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Kubernetes namespace, where the runtime told it.
    pub namespace: Option<String>,
    /// Pod name, where the runtime told it.
    pub name: Option<String>,
    /// Container id.
    pub container_id: String,
    /// Interface in the pod.
    pub ifname: String,
    /// Path of the pod's network namespace; absent for an `AF_PACKET` port.
    pub netns: Option<String>,
    /// MAC address.
    pub mac: Mac,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// First addresses of the lease: the pod's default gateways.
    pub gateways: Vec<IpAddr>,
    /// MTU of the interface.
    pub mtu: u16,
    /// Port number in the switch; absent while it is not attached.
    pub port: Option<u16>,
    /// Traffic, seen from the switch.
    pub traffic: PortTotals,
    /// Packets of the pod that the kernel dropped before the switch saw them.
    pub kernel_dropped: u64,
    /// Ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPortStatus>,
}

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPortStatus {
    /// The protocol.
    pub protocol: Protocol,
    /// The node's address; absent: all that have node ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// Why it is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl PodStatus {
    /// The port as people call it.
    pub fn title(&self) -> String {
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            (None, Some(name)) => name.clone(),
            // A device of the host: nothing else tells one from another.
            (_, None) if self.netns.is_none() => self.ifname.clone(),
            (_, None) => self.container_id.chars().take(16).collect(),
        }
    }
}

/// All counters of the node, in packets as on a wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersReport {
    /// Came in through a port or the tunnel.
    pub received: u64,
    /// Made by the switch: replies, ICMP errors, fragments.
    pub originated: u64,
    /// Taken by a port or the underlay.
    pub delivered: u64,
    /// Asked of the switch itself.
    pub answered: u64,
    /// Received and not yet accounted for: 0 whenever the switch is idle.
    pub queued: i64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes delivered.
    pub delivered_bytes: u64,
    /// Dropped, by reason; reasons that never occurred are left out.
    pub dropped: BTreeMap<String, u64>,
    /// Drops of tunnel packets by sender, the latest first, at most 64.
    pub offenders: Vec<Offender>,
    /// Gossip datagrams that were refused, by reason.
    pub gossip_refused: BTreeMap<String, u64>,
    /// What the kernel dropped before it was received: no part of the sums above.
    pub kernel_dropped: KernelDropped,
    /// How often the kernel refused what it otherwise takes, so that a slower way was taken.
    pub fallbacks: Vec<FallbackCount>,
    /// What became of this node's own probes of the paths to others.
    pub probes: ProbesReport,
}

/// Probes of the paths to other nodes, since the daemon was started. Those of other nodes are counted as packets that
/// were answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbesReport {
    /// Sent; they are among the packets originated.
    pub sent: u64,
    /// Replies.
    pub replies: u64,
    /// Replies that came too late, or that nobody had asked for.
    pub unasked: u64,
}

/// Packets that the kernel dropped before the switch saw them, since the daemon was started. What the
/// kernel had merged counts as one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelDropped {
    /// At the tunnel's receive buffer, or with a wrong outer checksum.
    pub tunnel: u64,
    /// On the way from the node itself.
    pub host: u64,
    /// On the way from the pods and the devices of the host.
    pub ports: u64,
}

/// How often a capability was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackCount {
    /// The capability.
    pub name: CapabilityName,
    /// Where it was lost.
    pub at: Place,
    /// How often, trials included, since the daemon was started.
    pub count: u64,
}

/// Somebody whose tunnel packets were refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offender {
    /// Underlay address.
    pub address: IpAddr,
    /// Why.
    pub reason: String,
    /// Reports seen; under a flood not every packet is reported.
    pub reports: u64,
}

/// The policies that are in force on this node, and what was counted of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoliciesReport {
    /// What they do.
    pub enforcement: PolicyEnforcement,
    /// Changes whenever anything about them does.
    pub generation: u64,
    /// Addresses of pods that they may be about, of all nodes.
    pub addresses: usize,
    /// Denials that no event told of one by one, since the daemon was started.
    pub denials_untold: u64,
    /// All policies, by tier and name.
    pub policies: Vec<PolicyCounts>,
}

/// What the policies of a node do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyEnforcement {
    /// Nothing: there are none.
    Off,
    /// They are in force.
    On,
    /// What they deny is counted, and passes.
    Audit,
    /// They are not known yet: pods are shut off.
    Pending,
}

/// What was counted of a policy on this node, since it was last changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCounts {
    /// `admin`, `namespace` or `baseline`.
    pub tier: String,
    /// `namespace/name`, or the name of a policy of the cluster.
    pub name: String,
    /// Packets denied since the policy isolates their sender, and no rule of any policy accepts them.
    pub denied_egress: u64,
    /// The same of their receiver.
    pub denied_ingress: u64,
    /// Its rules.
    pub rules: Vec<PolicyRuleCounts>,
}

/// What was counted of a rule on this node, since it was last changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRuleCounts {
    /// `egress` or `ingress`.
    pub direction: String,
    /// Its place in the policy's list for that direction, from 0.
    pub rule: u32,
    /// Flows that it decided about. A rule with 0 was of no use on this node.
    pub matched: u64,
    /// Packets that it denied.
    pub denied: u64,
}

/// Asks for a port on an existing interface of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRequest {
    /// The host's interface: one end of a veth pair, or a tap.
    pub device: String,
    /// MAC address of the interface behind it.
    pub mac: Mac,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What failed, on what, why, and what to do.
    pub error: String,
}
