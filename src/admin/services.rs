//! Services, their endpoints and the flows to them, as the admin socket tells them.

use std::net::{IpAddr, SocketAddr};

use conf::cluster::{Protocol, ServiceType};
use serde::{Deserialize, Serialize};

/// A Service, with what it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its `spec.type`.
    #[serde(rename = "type")]
    pub kind: ServiceType,
    /// Whether it is without an address by its own wish (`clusterIP: None`).
    pub headless: bool,
    /// Its cluster-wide addresses, the primary one first.
    pub cluster_ips: Vec<IpAddr>,
    /// Its addresses for the world: those of load balancers, and `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// The name that it stands for (`type: ExternalName`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_name: Option<String>,
    /// Its ports.
    pub ports: Vec<ServicePortStatus>,
    /// Endpoints that take new connections.
    pub ready: usize,
    /// All endpoints.
    pub endpoints: usize,
    /// Why it is not served at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What else it should have, and has not.
    pub problems: Vec<String>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortStatus {
    /// Its name; empty for an only port without one.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
    /// Its number at every node.
    pub node_port: Option<u16>,
}

/// An endpoint of a Service's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// `namespace/name:port` of the Service; without its port, when it is headless and has none.
    pub service: String,
    /// The protocol; `None` when the Service has no ports.
    pub protocol: Option<Protocol>,
    /// The endpoint's address.
    pub address: IpAddr,
    /// The port there; `None` when the Service has no ports.
    pub port: Option<u16>,
    /// The pod behind it, as `namespace/name`.
    pub pod: Option<String>,
    /// The node that it is on.
    pub node: Option<String>,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it answers, though it may be terminating.
    pub serving: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Flows to it through this node's switch, open connections among them: when it terminates and this is 0 on all
    /// nodes, nobody is left.
    pub flows: u32,
}

/// A flow that this node's switch follows: to a Service, or of a pod to which policies apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// The protocol: `TCP`, `UDP`, `SCTP`, `ICMP` (echo; the identifier is the client's port), or `IP` and a number.
    pub protocol: String,
    /// Who asks.
    pub client: SocketAddr,
    /// The client's pod, as `namespace/name`.
    pub client_pod: Option<String>,
    /// `namespace/name:port` of the Service; `None` when it has the frontend no more, and for a flow to no Service, whose
    /// frontend is its endpoint.
    pub service: Option<String>,
    /// Where the client sends to.
    pub frontend: SocketAddr,
    /// Who serves.
    pub endpoint: SocketAddr,
    /// The endpoint's pod, as `namespace/name`.
    pub endpoint_pod: Option<String>,
    /// Whom the endpoint sees: the client, unless the switch takes its place.
    pub seen_as: SocketAddr,
    /// The state, by the names of `conntrack -L`.
    pub state: String,
    /// Milliseconds since its first packet.
    pub age_ms: u64,
    /// Milliseconds since its last packet.
    pub idle_ms: u64,
    /// Milliseconds until it is forgotten if nothing more comes.
    pub expires_ms: u64,
    /// Packets from the client.
    pub packets_sent: u64,
    /// Bytes from the client, Ethernet headers included.
    pub bytes_sent: u64,
    /// Packets to the client.
    pub packets_received: u64,
    /// Bytes to the client.
    pub bytes_received: u64,
}

/// Which flows are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsQuery {
    /// At most so many.
    pub max: Option<usize>,
    /// Only those to this Service, `NAMESPACE/NAME` or `NAMESPACE/NAME:PORT`.
    pub service: Option<String>,
    /// Only those of this client, an address or `NAMESPACE/POD`.
    pub client: Option<String>,
}

/// Flows, and whether these are all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsReport {
    /// The flows, in no order that means anything.
    pub flows: Vec<FlowStatus>,
    /// Whether there are more than were asked for.
    pub more: bool,
    /// Entries of the table that are in use.
    pub used: usize,
    /// Entries that the table has.
    pub capacity: usize,
}
