//! The objects of a cluster, with the fields that Weft honours and no others.
//!
//! They are what is left after the checks of [`super::parse`]: a value here is valid and has its default.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::labels::Labels;
use super::policy::{ClusterPolicy, NetworkPolicy};

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    /// v1 Namespace.
    Namespace,
    /// v1 Node.
    Node,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
    /// v1 Pod.
    Pod,
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// v1 Secret.
    Secret,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
    /// policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// policy.networking.k8s.io/v1alpha1 AdminNetworkPolicy.
    AdminNetworkPolicy,
    /// policy.networking.k8s.io/v1alpha1 BaselineAdminNetworkPolicy.
    BaselineAdminNetworkPolicy,
}

impl ObjectKind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Namespace,
        Self::Node,
        Self::ServiceCidr,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::Secret,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
    ];

    /// `kind` in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Secret => "Secret",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
        }
    }

    /// `apiVersion` in a manifest.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Node | Self::Pod | Self::Service | Self::Secret => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy | Self::ServiceCidr => "networking.k8s.io/v1",
            Self::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
            Self::AdminNetworkPolicy | Self::BaselineAdminNetworkPolicy => {
                "policy.networking.k8s.io/v1alpha1"
            }
        }
    }

    /// Whether it is a policy, without which pods are open.
    pub fn is_policy(self) -> bool {
        matches!(
            self,
            Self::NetworkPolicy
                | Self::ClusterNetworkPolicy
                | Self::AdminNetworkPolicy
                | Self::BaselineAdminNetworkPolicy
        )
    }

    /// Whether objects of this kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        match self {
            Self::Namespace
            | Self::Node
            | Self::ServiceCidr
            | Self::ClusterNetworkPolicy
            | Self::AdminNetworkPolicy
            | Self::BaselineAdminNetworkPolicy => false,
            Self::Pod
            | Self::Service
            | Self::EndpointSlice
            | Self::Secret
            | Self::NetworkPolicy => true,
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What tells an object from others of its kind. Cluster-wide objects have an empty namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name in it.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A name in a namespace.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What tells an object from all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name.
    pub id: ObjectName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.id)
    }
}

/// An object of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Object {
    /// v1 Namespace.
    Namespace(Arc<Namespace>),
    /// v1 Node.
    Node(Arc<Node>),
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr(Arc<ServiceCidr>),
    /// v1 Pod.
    Pod(Arc<Pod>),
    /// v1 Service.
    Service(Arc<Service>),
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// v1 Secret. It is never written anywhere.
    #[serde(skip)]
    Secret(Arc<Secret>),
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy(Arc<NetworkPolicy>),
    /// A policy of policy.networking.k8s.io, of any kind.
    ClusterPolicy(Arc<ClusterPolicy>),
}

impl Object {
    /// What tells it from all others.
    pub fn key(&self) -> ObjectKey {
        let (kind, id) = match self {
            Self::Namespace(o) => (ObjectKind::Namespace, ObjectName::new("", Arc::clone(&o.name))),
            Self::Node(o) => (ObjectKind::Node, ObjectName::new("", Arc::clone(&o.name))),
            Self::ServiceCidr(o) => {
                (ObjectKind::ServiceCidr, ObjectName::new("", Arc::clone(&o.name)))
            }
            Self::Pod(o) => (ObjectKind::Pod, o.id.clone()),
            Self::Service(o) => (ObjectKind::Service, o.id.clone()),
            Self::EndpointSlice(o) => (ObjectKind::EndpointSlice, o.id.clone()),
            Self::Secret(o) => (ObjectKind::Secret, o.id.clone()),
            Self::NetworkPolicy(o) => (ObjectKind::NetworkPolicy, o.id.clone()),
            Self::ClusterPolicy(o) => (o.kind, ObjectName::new("", Arc::clone(&o.name))),
        };
        ObjectKey { kind, id }
    }
}

/// A transport protocol.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP, the default everywhere.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol as manifests name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The protocol's number in IP headers.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpFamily {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl IpFamily {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// The family as manifests name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// v1 Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Namespace and name.
    pub id: ObjectName,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.selector`; empty when there is none: endpoints then come from slices alone.
    pub selector: Labels,
    /// `spec.ports`.
    pub ports: Box<[ServicePort]>,
    /// `spec.clusterIP` and `spec.clusterIPs`.
    pub cluster_ip: ClusterIp,
    /// `spec.ipFamilies` as given; what is missing comes from the cluster's service ranges.
    pub families: Box<[IpFamily]>,
    /// `spec.ipFamilyPolicy`.
    pub family_policy: FamilyPolicy,
    /// `spec.externalName`, without the dot at its end; only with [`ServiceType::ExternalName`].
    pub external_name: Option<Arc<str>>,
    /// `spec.externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.sessionAffinity: ClientIP` with its timeout, in seconds (1 to 86400).
    pub affinity_s: Option<u32>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.trafficDistribution`.
    pub distribution: Option<TrafficDistribution>,
    /// What concerns load balancers.
    pub load_balancer: LoadBalancer,
    /// `spec.healthCheckNodePort` as given.
    pub health_check_node_port: Option<u16>,
    /// Whether the switch serves it: not with the label `service.kubernetes.io/service-proxy-name` (something
    /// else does) or `service.kubernetes.io/headless`. The DNS names it all the same.
    pub proxied: bool,
}

impl Service {
    /// Whether it has no address of its own by wish, so that its name stands for its endpoints.
    pub fn is_headless(&self) -> bool {
        self.cluster_ip == ClusterIp::Headless && self.kind != ServiceType::ExternalName
    }

    /// Whether anything of it is reached from outside of the cluster.
    pub fn is_external(&self) -> bool {
        match self.kind {
            ServiceType::NodePort | ServiceType::LoadBalancer => true,
            ServiceType::ClusterIp => !self.external_ips.is_empty(),
            ServiceType::ExternalName => false,
        }
    }

    /// Whether Weft gives it an address for clients outside: it is of the type, and names no other
    /// implementation.
    pub fn wants_load_balancer(&self) -> bool {
        self.kind == ServiceType::LoadBalancer
            && self.load_balancer.class.as_deref().is_none_or(|class| class == LOAD_BALANCER_CLASS)
    }

    /// Whether each of its ports has a node port.
    pub fn wants_node_ports(&self) -> bool {
        match self.kind {
            ServiceType::NodePort => true,
            ServiceType::LoadBalancer => self.load_balancer.node_ports,
            ServiceType::ClusterIp | ServiceType::ExternalName => false,
        }
    }

    /// Whether a node port tells load balancers in front if this node has endpoints.
    pub fn wants_health_check(&self) -> bool {
        self.kind == ServiceType::LoadBalancer && self.external_policy == TrafficPolicy::Local
    }
}

/// The `loadBalancerClass` that Weft serves, besides Services that name none.
pub const LOAD_BALANCER_CLASS: &str = "weft.io/layer2";

/// A Service's `spec.type`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum ServiceType {
    /// Reached at a cluster-wide address.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// And at a port of every node.
    NodePort,
    /// And at an address for the world.
    LoadBalancer,
    /// Only a name for a name.
    ExternalName,
}

impl ServiceType {
    /// The type as manifests name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalName => "ExternalName",
        }
    }
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// `name`; empty on an only port without one.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
    /// `targetPort`.
    pub target: TargetPort,
    /// `nodePort` as given.
    pub node_port: Option<u16>,
    /// `appProtocol`.
    pub app_protocol: Option<Arc<str>>,
}

/// A port of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TargetPort {
    /// The same at each.
    Number(u16),
    /// What the pod's containers call so.
    Name(Arc<str>),
}

/// What a Service says of its own addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClusterIp {
    /// Nothing: they are allocated.
    #[default]
    Auto,
    /// It wants none (`None`).
    Headless,
    /// One, or one of each family, the first being the primary.
    Given(Box<[IpAddr]>),
}

/// A Service's `spec.ipFamilyPolicy`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum FamilyPolicy {
    /// One family.
    #[default]
    SingleStack,
    /// Both where the cluster has both.
    PreferDualStack,
    /// Both, or it is refused.
    RequireDualStack,
}

/// Which endpoints may serve.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum TrafficPolicy {
    /// All of them.
    #[default]
    Cluster,
    /// Those on the node that the traffic comes to first.
    Local,
}

/// A Service's `spec.trafficDistribution`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrafficDistribution {
    /// Endpoints in the client's zone first. `PreferClose` is its old name.
    PreferSameZone,
    /// Endpoints on the client's node first, then those in its zone.
    PreferSameNode,
}

/// What a Service says of load balancers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadBalancer {
    /// `spec.loadBalancerClass`.
    pub class: Option<Arc<str>>,
    /// `spec.loadBalancerIP`: the address that it wants.
    pub requested: Option<IpAddr>,
    /// `spec.loadBalancerSourceRanges`: who may use it; empty means everybody.
    pub source_ranges: Box<[IpNetwork]>,
    /// `spec.allocateLoadBalancerNodePorts`.
    pub node_ports: bool,
    /// `status.loadBalancer.ingress[].ip` without `ipMode: Proxy`: given from outside, by whoever wrote the
    /// status.
    pub ingress: Box<[IpAddr]>,
}

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub id: ObjectName,
    /// The label `kubernetes.io/service-name`: the Service, in the same namespace.
    pub service: Option<Arc<str>>,
    /// `addressType`.
    pub family: IpFamily,
    /// `endpoints`.
    pub endpoints: Box<[SliceEndpoint]>,
    /// `ports`.
    pub ports: Box<[SlicePort]>,
    /// Whether the switch serves it, see [`Service::proxied`].
    pub proxied: bool,
}

/// An endpoint in a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceEndpoint {
    /// `addresses[0]`: what further ones mean is not specified.
    pub address: IpAddr,
    /// `conditions.ready`; yes when not said.
    pub ready: bool,
    /// `conditions.serving`; the same as ready when not said.
    pub serving: bool,
    /// `conditions.terminating`; no when not said.
    pub terminating: bool,
    /// `hostname`.
    pub hostname: Option<Arc<str>>,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `hints`.
    pub hints: Hints,
    /// `targetRef`, when it is a pod.
    pub pod: Option<ObjectName>,
}

/// For clients where an endpoint is meant to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// `hints.forZones`.
    pub zones: Box<[Arc<str>]>,
    /// `hints.forNodes`.
    pub nodes: Box<[Arc<str>]>,
}

/// A port of a slice's endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlicePort {
    /// `name`; empty when there is none.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`; `None` means every port, which no Service uses.
    pub port: Option<u16>,
    /// `appProtocol`.
    pub app_protocol: Option<Arc<str>>,
}

/// v1 Pod, as it is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace and name.
    pub id: ObjectName,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `spec.hostname`.
    pub hostname: Option<Arc<str>>,
    /// `spec.subdomain`.
    pub subdomain: Option<Arc<str>>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `ports` of its containers and sidecars.
    pub ports: Box<[ContainerPort]>,
    /// `status.podIPs`, or `status.podIP`.
    pub addresses: Box<[IpAddr]>,
    /// The condition `Ready` in its status, where there is one.
    pub ready: Option<bool>,
    /// `status.phase` is `Succeeded` or `Failed`: it serves nobody any more.
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
}

/// A port that a container declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// `name`; empty when there is none.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `containerPort`.
    pub port: u16,
    /// `hostPort`.
    pub host_port: Option<u16>,
    /// `hostIP`.
    pub host_ip: Option<IpAddr>,
}

/// v1 Namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// The name.
    pub name: Arc<str>,
    /// `metadata.labels`, with `kubernetes.io/metadata.name` as the API server sets it.
    pub labels: Labels,
}

/// v1 Node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The name.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `status.addresses` of the types `InternalIP` and `ExternalIP`, in that order.
    pub addresses: Box<[IpAddr]>,
    /// `spec.podCIDRs`, or `spec.podCIDR`.
    pub pod_cidrs: Box<[IpNetwork]>,
}

impl Node {
    /// The zone it is in, by the label `topology.kubernetes.io/zone`.
    pub fn zone(&self) -> Option<&Arc<str>> {
        self.labels.get("topology.kubernetes.io/zone").filter(|zone| !zone.is_empty())
    }
}

/// networking.k8s.io/v1 ServiceCIDR: where the API server takes cluster IPs from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCidr {
    /// The name.
    pub name: Arc<str>,
    /// `spec.cidrs`: one range, or one of each family.
    pub ranges: Box<[IpNetwork]>,
}

/// v1 Secret. What it holds is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// Namespace and name.
    pub id: ObjectName,
    /// `type`.
    pub kind: Arc<str>,
    /// `data`, decoded, and `stringData` over it.
    pub data: BTreeMap<Arc<str>, Box<[u8]>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, kind, data } = self;
        let keys: Vec<_> = data.iter().map(|(key, value)| (key, value.len())).collect();
        f.debug_struct("Secret")
            .field("id", id)
            .field("kind", kind)
            .field("bytes_of", &keys)
            .finish()
    }
}
