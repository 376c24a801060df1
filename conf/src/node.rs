//! The node file as types that cannot hold a wrong value.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use overlay::underlay::UnderlaySelector;
use serde::{Deserialize, Serialize};
use vswitch::policy::Established;

use crate::cluster::{Authority, ServiceConfig};
use crate::dns::DnsConfig;

/// `weft.toml`. The meaning, default and bounds of each field are in [`crate::schema`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Name of the network; nodes with another name are not talked to.
    pub network: String,
    /// Nodes that are asked first. Empty only on the very first node.
    pub seeds: Vec<Seed>,
    /// The node's name; [`NodeConfig::node_name`] fills in the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<NodeName>,
    /// The network below.
    #[serde(default)]
    pub underlay: UnderlayConfig,
    /// The tunnel and the gossip.
    #[serde(default)]
    pub overlay: overlay::config::Config,
    /// The cluster's address ranges and the node's share of them.
    #[serde(default)]
    pub lease: overlay::config::LeaseConfig,
    /// How addresses are handed out.
    #[serde(default)]
    pub ipam: IpamConfig,
    /// The switch.
    #[serde(default)]
    pub switch: vswitch::config::Config,
    /// The node's own interface.
    #[serde(default)]
    pub host: HostConfig,
    /// Where the objects of the cluster are.
    #[serde(default)]
    pub objects: ObjectsConfig,
    /// What Services are given.
    #[serde(default)]
    pub services: ServicesConfig,
    /// What network policies do.
    #[serde(default)]
    pub policy: PolicyConfig,
    /// The name server.
    #[serde(default)]
    pub dns: DnsConfig,
    /// Where files go.
    #[serde(default)]
    pub paths: PathsConfig,
    /// Metrics and health.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// The log.
    #[serde(default)]
    pub log: LogConfig,
}

impl NodeConfig {
    /// A file with only its two required fields: everything else has its default.
    pub fn new(network: impl Into<String>, seeds: Vec<Seed>) -> Self {
        Self {
            network: network.into(),
            seeds,
            name: None,
            underlay: UnderlayConfig::default(),
            overlay: overlay::config::Config::default(),
            lease: overlay::config::LeaseConfig::default(),
            ipam: IpamConfig::default(),
            switch: vswitch::config::Config::default(),
            host: HostConfig::default(),
            objects: ObjectsConfig::default(),
            services: ServicesConfig::default(),
            policy: PolicyConfig::default(),
            dns: DnsConfig::default(),
            paths: PathsConfig::default(),
            metrics: MetricsConfig::default(),
            log: LogConfig::default(),
        }
    }

    /// The seeds as host and port, to be resolved each time they are tried.
    pub fn seed_endpoints(&self) -> impl Iterator<Item = (&str, u16)> {
        self.seeds
            .iter()
            .map(|seed| (seed.host.as_str(), seed.port.unwrap_or(self.overlay.gossip_port)))
    }

    /// How Services are given their addresses and ports: the same on all nodes, whether this one has a name
    /// server or not.
    pub fn allocation(&self) -> ServiceConfig {
        let ServicesConfig { ranges, node_ports, load_balancer_pool, .. } = &self.services;
        // Where clusters have their DNS, by habit and by configuration.
        let mut reserved: Vec<IpAddr> =
            ranges.iter().filter_map(|range| nth_address(range, 10)).collect();
        let own = self.dns.addresses.iter().filter(|address| !reserved.contains(address));
        let own: Vec<IpAddr> = own.copied().collect();
        reserved.extend(own);
        ServiceConfig {
            authority: match self.objects.source {
                ObjectSource::Manifests => Authority::Weft,
                ObjectSource::Kubernetes => Authority::Kubernetes,
            },
            ranges: ranges.clone(),
            reserved,
            node_ports: node_ports.first..=node_ports.last,
            load_balancer_pool: load_balancer_pool.clone(),
        }
    }

    /// The node's name: the one in the file, else the host's.
    ///
    /// # Errors
    /// When the host's name cannot be read, or cannot name a node.
    pub fn node_name(&self) -> Result<NodeName, String> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let file = "/proc/sys/kernel/hostname";
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("the host's name cannot be read from {file}: {error}"))?;
        let text = text.trim();
        text.parse().map_err(|why| {
            format!("the host's name {text:?} cannot name a node: {why}; set name in weft.toml")
        })
    }
}

/// A node that is asked first: `host`, `host:port`, `[v6]:port`, or a bare IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Seed {
    /// An address or a DNS name; an IPv6 address is without brackets.
    pub host: String,
    /// The gossip port there; `None` is the node's own gossip port.
    pub port: Option<u16>,
}

impl Seed {
    /// The address, when the seed is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok(Self { host: text.into(), port: None });
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or("the bracket is not closed")?;
            host.parse::<Ipv6Addr>().map_err(|_| "only an IPv6 address stands in brackets")?;
            let port = match rest.strip_prefix(':') {
                Some(port) => Some(port_of(port)?),
                None if rest.is_empty() => None,
                None => return Err("after the bracket comes :port or nothing".into()),
            };
            return Ok(Self { host: host.into(), port });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port_of(port)?)),
            None => (text, None),
        };
        check_host(host)?;
        Ok(Self { host: host.into(), port })
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.host.contains(':')) {
            (Some(port), true) => write!(f, "[{}]:{port}", self.host),
            (Some(port), false) => write!(f, "{}:{port}", self.host),
            (None, _) => f.write_str(&self.host),
        }
    }
}

/// A node's name, as people and metrics see it: 1 to 63 letters, digits, `-`, `_` and `.`, with a letter
/// or digit at both ends. It is not the node's identity, which is generated once and kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        if bytes.len() <= 63
            && bytes.iter().copied().all(good)
            && end(bytes.first())
            && end(bytes.last())
        {
            return Ok(Self(text.into()));
        }
        Err("a name is 1 to 63 letters, digits, - _ and ., with a letter or digit at both ends"
            .into())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The `[underlay]` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnderlayConfig {
    /// Which of the host's addresses other nodes send to.
    pub address: UnderlaySelector,
    /// MTU of the network below, in bytes. `None` is that of the interface which holds the address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// The `[ipam]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IpamConfig {
    /// How long an address that was given back rests before somebody else gets it, in seconds.
    pub reuse_delay_s: u32,
    /// Ranges of which nothing is handed out.
    pub exclude: Vec<IpNetwork>,
    /// Whether a pod gets the addresses back that the last pod of its namespace and name had.
    pub sticky: bool,
}

impl Default for IpamConfig {
    fn default() -> Self {
        Self { reuse_delay_s: 60, exclude: Vec::new(), sticky: false }
    }
}

/// The `[host]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Name of the node's own interface into the switch.
    pub interface: String,
    /// Whether what pods send to the world outside gets the node's address.
    pub masquerade: bool,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { interface: "weft0".into(), masquerade: true }
    }
}

/// The `[objects]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectsConfig {
    /// Where objects come from.
    pub source: ObjectSource,
    /// The directory of manifests.
    pub dir: PathBuf,
    /// How to reach the API server; `None` within a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// API servers to be asked instead of the one that is told to pods, or in the kubeconfig.
    pub api_servers: Vec<ApiServer>,
    /// Who chooses the nodes' subnets.
    pub pod_cidrs: PodCidrs,
}

impl Default for ObjectsConfig {
    fn default() -> Self {
        Self {
            source: ObjectSource::default(),
            dir: "/etc/weft/manifests".into(),
            kubeconfig: None,
            api_servers: Vec::new(),
            pod_cidrs: PodCidrs::default(),
        }
    }
}

/// Where objects come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectSource {
    /// A directory of manifests.
    #[default]
    Manifests,
    /// The API server of a Kubernetes cluster.
    Kubernetes,
}

/// Who chooses the nodes' subnets in a Kubernetes cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodCidrs {
    /// The control plane, where it does: then nodes have `spec.podCIDRs`.
    #[default]
    Auto,
    /// The control plane; until it has, the node has no subnet.
    Node,
    /// The nodes among themselves, whatever the control plane says.
    Claim,
}

/// The URL of an API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ApiServer(String);

impl FromStr for ApiServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let host = rest.ok_or("it begins with https://")?;
        // One form of a host and port is that of seeds.
        let seed: Seed = host.strip_suffix('/').unwrap_or(host).parse()?;
        if seed.host.contains(':') && !host.starts_with('[') {
            return Err("an IPv6 address stands in brackets".into());
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The `[policy]` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// What becomes of flows that there are when policies change.
    pub established: Established,
    /// Whether what policies deny is only counted.
    pub audit: bool,
    /// Namespaces for whose pods what is denied is only counted.
    pub audit_namespaces: Vec<String>,
}

/// The `[services]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServicesConfig {
    /// Where cluster-wide addresses are taken from: at most one range of each family.
    pub ranges: Vec<IpNetwork>,
    /// Where node ports are taken from.
    pub node_ports: PortRange,
    /// Where addresses for Services of type LoadBalancer are taken from.
    pub load_balancer_pool: Vec<IpNetwork>,
    /// How an endpoint is chosen.
    pub balancing: Balancing,
}

impl Default for ServicesConfig {
    fn default() -> Self {
        let ServiceConfig { ranges, node_ports, load_balancer_pool, .. } = ServiceConfig::default();
        Self {
            ranges,
            node_ports: PortRange { first: *node_ports.start(), last: *node_ports.end() },
            load_balancer_pool,
            balancing: Balancing::default(),
        }
    }
}

/// The address so many after a range's first one.
fn nth_address(range: &IpNetwork, n: u8) -> Option<IpAddr> {
    let address: IpAddr = match range {
        IpNetwork::V4(v4) => Ipv4Addr::from_bits(v4.network().to_bits() | u32::from(n)).into(),
        IpNetwork::V6(v6) => Ipv6Addr::from_bits(v6.network().to_bits() | u128::from(n)).into(),
    };
    range.contains(address).then_some(address)
}

/// Ports from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').ok_or("a range of ports is like 30000-32767")?;
        let (first, last) = (port_of(first)?, port_of(last)?);
        if first > last {
            return Err("its first port is larger than its last".into());
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// How an endpoint of a Service is chosen for a new connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balancing {
    /// By a hash that is the same on all nodes, and that moves few connections when endpoints change.
    #[default]
    Maglev,
    /// By chance.
    Random,
    /// The one with the fewest connections, of two taken by chance.
    LeastConnections,
}

/// The `[paths]` section. All are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PathsConfig {
    /// What must survive a reboot: the node's identity, its lease, the pods' addresses.
    pub state: PathBuf,
    /// What must not: the daemon's socket.
    pub run: PathBuf,
}

impl PathsConfig {
    /// The daemon's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("weftd.sock")
    }
}

impl Default for PathsConfig {
    fn default() -> Self {
        Self { state: "/var/lib/weft".into(), run: "/run/weft".into() }
    }
}

/// The `[metrics]` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where metrics and health are served.
    pub listen: MetricsListen,
}

/// Where metrics and health are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MetricsListen {
    /// Nowhere.
    Off,
    /// Over HTTP on this address and TCP port.
    At(SocketAddr),
}

impl Default for MetricsListen {
    fn default() -> Self {
        Self::At(SocketAddr::from(([127, 0, 0, 1], 9144)))
    }
}

impl FromStr for MetricsListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        match text.parse::<SocketAddr>() {
            Ok(at) if at.port() != 0 => Ok(Self::At(at)),
            Ok(_) => Err("port 0 would be another one at each start".into()),
            Err(_) => Err("it is neither \"off\" nor address:port".into()),
        }
    }
}

impl fmt::Display for MetricsListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(at) => at.fmt(f),
        }
    }
}

/// The `[log]` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// The least important lines that are written.
    pub level: LogLevel,
}

/// How important a log line must be to be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What does not work.
    Error,
    /// And what works less well than it could.
    Warn,
    /// And what changes: nodes, pods, leases.
    #[default]
    Info,
    /// And why decisions were made.
    Debug,
    /// And every message.
    Trace,
}

impl LogLevel {
    /// The level's name, as a filter takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// What can be a Linux interface name (`dev_valid_name` in net/core/dev.c): 1 to 15 bytes, neither `.` nor
/// `..`, without `/`, `:` and white space.
pub(crate) fn check_interface(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." {
        return Err("an interface's name is 1 to 15 bytes long".into());
    }
    if name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        return Err("an interface's name has no / : or white space".into());
    }
    Ok(())
}

/// What can be a network's name.
pub(crate) fn check_network(name: &str) -> Result<(), String> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=63).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err("a network's name is 1 to 63 lower-case letters, digits and -".into())
}

/// An IPv4 address or a DNS name (RFC 1123 §2.1).
fn check_host(host: &str) -> Result<(), String> {
    if host.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err("looks like an IPv4 address, but is none".into());
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(good);
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.len() <= 253 && name.split('.').all(label) {
        return Ok(());
    }
    Err("it is neither an address nor a host name".into())
}

fn port_of(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a port is a number from 1 to 65535".into()),
        Ok(port) => Ok(port),
    }
}

/// Text in the file, checked type in the program: both ways through `FromStr` and `Display`.
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}

pub(crate) use as_text;

as_text!(Seed, NodeName, MetricsListen, PortRange, ApiServer);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_in_all_their_forms() {
        for (text, host, port) in [
            ("192.168.10.11", "192.168.10.11", None),
            ("192.168.10.11:7000", "192.168.10.11", Some(7000)),
            ("node-a.example.org", "node-a.example.org", None),
            ("node-a:7946", "node-a", Some(7946)),
            ("fd00::1", "fd00::1", None),
            ("[fd00::1]", "fd00::1", None),
            ("[fd00::1]:7946", "fd00::1", Some(7946)),
        ] {
            let seed: Seed = text.parse().unwrap();
            assert_eq!((seed.host.as_str(), seed.port), (host, port), "{text}");
            assert_eq!(seed.to_string().parse::<Seed>().unwrap(), seed);
        }
        for text in [
            "",
            ":",
            ":7946",
            "a:0",
            "a:99999",
            "a:b",
            "a b",
            "192.168.10.300",
            "[fd00::1",
            "[a]:1",
            "[fd00::1]7946",
            "a..b",
            "fd00::1::2",
            "http://a",
        ] {
            assert!(text.parse::<Seed>().is_err(), "{text}");
        }
    }

    #[test]
    fn api_servers_are_urls() {
        for text in ["https://192.168.10.11:6443", "https://[fd00::1]:6443/", "http://a.example"] {
            assert_eq!(text.parse::<ApiServer>().unwrap().to_string(), text);
        }
        for text in ["192.168.10.11:6443", "https://", "https://a/b", "https://fd00::1", "ftp://a"]
        {
            assert!(text.parse::<ApiServer>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_control_plane_decides_where_there_is_one() {
        let mut config = NodeConfig::new("prod", vec![]);
        assert_eq!(config.allocation().authority, Authority::Weft);
        config.objects.source = ObjectSource::Kubernetes;
        assert_eq!(config.allocation().authority, Authority::Kubernetes);
    }

    #[test]
    fn port_ranges_in_their_one_form() {
        let range = PortRange { first: 30_000, last: 32_767 };
        assert_eq!("30000-32767".parse(), Ok(range));
        assert_eq!(range.to_string(), "30000-32767");
        for text in ["", "30000", "0-1", "2-1", "1-65536", "a-b", "1-2-3"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_address_of_the_dns_is_left_to_it() {
        let mut config = NodeConfig::new("prod", vec![]);
        assert_eq!(config.allocation(), ServiceConfig::default());
        config.services.ranges =
            vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
        config.dns.addresses = vec!["10.96.3.3".parse().unwrap()];
        let reserved: Vec<String> =
            config.allocation().reserved.iter().map(ToString::to_string).collect();
        assert_eq!(reserved, ["10.96.0.10", "fd00:96::a", "10.96.3.3"]);
    }

    #[test]
    fn metrics_listen_in_both_forms() {
        let parse = |text: &str| text.parse::<MetricsListen>();
        assert_eq!(parse("off"), Ok(MetricsListen::Off));
        assert_eq!(parse("127.0.0.1:9144"), Ok(MetricsListen::default()));
        assert_eq!(parse("[::1]:80").unwrap().to_string(), "[::1]:80");
        for text in ["", "on", "9144", "127.0.0.1", "127.0.0.1:0", "localhost:9144"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_is_named_by_the_file_or_by_its_host() {
        let mut config = NodeConfig::new("prod", vec![]);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(config.node_name().unwrap().as_str(), host.trim());
        config.name = Some("node-a".parse().unwrap());
        assert_eq!(config.node_name().unwrap().as_str(), "node-a");
        for text in ["", "-a", "a-", "a b", &"a".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
    }
}
