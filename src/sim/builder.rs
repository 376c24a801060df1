//! How a cluster is made.

use std::time::Duration;

use overlay::config::LeaseConfig;
use overlay::gossip::Timing;
use vswitch::config::Config;
use vswitch::sim::Faults;

use super::cluster::Cluster;

/// How long nodes may take to find each other and to lease their subnets.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// Settings of a [`Cluster`] before it exists. The defaults make one node without pods, in both address
/// families, on a wire that takes 200 µs and loses nothing.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    pub(super) nodes: usize,
    pub(super) pods_per_node: usize,
    pub(super) ipv6: bool,
    pub(super) ipv6_underlay: bool,
    pub(super) seed: u64,
    pub(super) lease: LeaseConfig,
    pub(super) timing: Timing,
    pub(super) switch: Config,
    pub(super) faults: Faults,
    pub(super) node: NodeOptions,
}

/// What may differ from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeOptions {
    /// Longest IP packet that the node's underlay interface takes. Default 1500.
    pub underlay_mtu: u16,
    /// Whether the pods hand TCP to the switch with unfilled checksums and, in IPv4, in super-frames, as
    /// kernels do. Default true.
    pub offload: bool,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { underlay_mtu: 1500, offload: true }
    }
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        let delay = Duration::from_micros(200);
        Self {
            nodes: 1,
            pods_per_node: 0,
            ipv6: true,
            ipv6_underlay: false,
            seed: 0,
            lease: LeaseConfig::default(),
            timing: Timing::default(),
            switch: Config::default(),
            faults: Faults { delay, ..Faults::NONE },
            node: NodeOptions::default(),
        }
    }
}

impl ClusterBuilder {
    /// How many nodes there are at first.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many pods each of them has at first.
    #[must_use]
    pub fn pods_per_node(mut self, pods: usize) -> Self {
        self.pods_per_node = pods;
        self
    }

    /// Whether pods have IPv6 addresses, too: default yes, out of `fd00:10:244::/56` unless
    /// [`ClusterBuilder::lease`] says otherwise.
    #[must_use]
    pub fn ipv6(mut self, ipv6: bool) -> Self {
        self.ipv6 = ipv6;
        self
    }

    /// Whether nodes reach each other by IPv6; default no.
    #[must_use]
    pub fn ipv6_underlay(mut self, ipv6: bool) -> Self {
        self.ipv6_underlay = ipv6;
        self
    }

    /// What decides on everything that happens by chance.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How the cluster's addresses are dealt out; replaces the ranges, also those of
    /// [`ClusterBuilder::ipv6`].
    #[must_use]
    pub fn lease(mut self, lease: LeaseConfig) -> Self {
        self.ipv6 = lease.ranges.iter().any(ipnetwork::IpNetwork::is_ipv6);
        self.lease = lease;
        self
    }

    /// The clockwork of gossip.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// The settings of the switches.
    #[must_use]
    pub fn switch(mut self, config: Config) -> Self {
        self.switch = config;
        self
    }

    /// What the underlay does to datagrams, from the first on.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// What nodes are like, unless they are added with options of their own.
    #[must_use]
    pub fn node_options(mut self, options: NodeOptions) -> Self {
        self.node = options;
        self
    }

    /// Makes the cluster, waits (in virtual time) until all nodes agree on who holds what, and adds the
    /// pods.
    ///
    /// # Panics
    /// If the nodes do not agree within a minute, or a lease has no room for the pods.
    pub fn build(self) -> Cluster {
        let pods_per_node = self.pods_per_node;
        let mut cluster = self.build_unsettled();
        cluster.settle(SETTLE_MAX);
        for node in cluster.nodes() {
            for _ in 0..pods_per_node {
                cluster.add_pod(node);
            }
        }
        cluster
    }

    /// Makes the cluster as it is in the moment when its nodes are started: nobody knows anybody, and
    /// there are no pods.
    pub fn build_unsettled(self) -> Cluster {
        Cluster::new(self)
    }
}
