//! This node's place in a Kubernetes cluster, as the Node objects say: its subnets, its address, and whom it
//! asks for the cluster's map. Pure, but for the file that remembers it.
//!
//! What was decided once is kept on disk, so that a node starts without the API server, too.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use conf::cluster::{ClusterState, Node};
use conf::{NodeConfig, PodCidrs};
use ipnetwork::IpNetwork;
use overlay::state_file;
use overlay::underlay::UnderlaySelector;
use serde::{Deserialize, Serialize};

/// Name of the file in the state directory.
pub const FILE: &str = "kubernetes.json";

/// How long the control plane may take to give a new node its subnets where no node has any yet.
pub const ALLOCATION_WAIT: Duration = Duration::from_secs(10);

/// Nodes that are asked for the map: the first by name, so that all ask some that others ask, too.
const FIRST_SEEDS: usize = 3;

/// And the next after this one's own name, so that not all ask the same.
const NEXT_SEEDS: usize = 5;

/// Where this node is in the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The subnets that the control plane has given it; none where nodes choose them.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Its own address; `None` where the Node object has none.
    pub address: Option<IpAddr>,
    /// Addresses of other nodes.
    pub seeds: Vec<IpAddr>,
}

/// What is known of the placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is this.
    Placed(Placement),
    /// It is not known yet; why, in words.
    Waiting(String),
}

/// Decides where this node is. `waited` is how long the Node objects are known.
pub fn decide(config: &NodeConfig, name: &str, state: &ClusterState, waited: Duration) -> Decision {
    let own = state.node(name);
    let given = own.map(|node| &node.pod_cidrs[..]).unwrap_or_default();
    let pod_cidrs = match config.objects.pod_cidrs {
        PodCidrs::Claim => &[],
        PodCidrs::Auto | PodCidrs::Node => given,
    };
    if let Some(foreign) = pod_cidrs.iter().find(|prefix| !config.lease.is_lease(**prefix)) {
        let ranges: Vec<_> = config.lease.ranges.iter().map(ToString::to_string).collect();
        return Decision::Waiting(format!(
            "the Node object {name} has the subnet {foreign}, which is none of {}: set ranges under [lease] to the \
             cluster's range (--cluster-cidr of the controller manager)",
            ranges.join(", ")
        ));
    }
    if pod_cidrs.is_empty() {
        let others = state.nodes().any(|node| !node.pod_cidrs.is_empty());
        let waits = match config.objects.pod_cidrs {
            PodCidrs::Claim => false,
            PodCidrs::Node => true,
            PodCidrs::Auto => others || waited < ALLOCATION_WAIT,
        };
        if waits {
            let what = if own.is_some() { "has no podCIDRs yet" } else { "is not there yet" };
            return Decision::Waiting(format!(
                "the Node object {name} {what}: the controller manager gives them (--allocate-node-cidrs). \
                 Where nodes shall choose their subnets, set pod_cidrs = \"claim\" under [objects]"
            ));
        }
    }
    Decision::Placed(Placement {
        pod_cidrs: pod_cidrs.to_vec(),
        address: own.and_then(|node| address(node)),
        seeds: seeds(name, state),
    })
}

fn address(node: &Node) -> Option<IpAddr> {
    node.addresses.first().copied()
}

fn seeds(name: &str, state: &ClusterState) -> Vec<IpAddr> {
    // In the order of names.
    let others: Vec<&Arc<Node>> = state.nodes().filter(|node| node.name.as_ref() != name).collect();
    let after = others.partition_point(|node| node.name.as_ref() < name);
    let next = others[after..].iter().chain(&others[..after]).take(NEXT_SEEDS);
    let chosen = others.iter().take(FIRST_SEEDS).chain(next);
    let mut seen = BTreeSet::new();
    chosen.filter_map(|node| address(node)).filter(|address| seen.insert(*address)).collect()
}

impl Placement {
    /// The configuration of a node that is there.
    pub fn apply(&self, config: &NodeConfig) -> NodeConfig {
        let mut config = config.clone();
        if !self.pod_cidrs.is_empty() {
            config.lease.fixed.clone_from(&self.pod_cidrs);
        }
        let seed = |address: &IpAddr| conf::Seed { host: address.to_string(), port: None };
        let known: Vec<conf::Seed> = self.seeds.iter().map(seed).collect();
        let new = known.into_iter().filter(|seed| !config.seeds.contains(seed)).collect::<Vec<_>>();
        config.seeds.extend(new);
        if let (UnderlaySelector::Auto, Some(address)) = (&config.underlay.address, self.address) {
            config.underlay.address = UnderlaySelector::Address(address);
        }
        config
    }

    /// What was decided before; `None` when nothing was.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(state: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(state.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_slice(&text).map(Some).map_err(io::Error::other)
    }

    /// Remembers it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, state: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        state_file::write(&state.join(FILE), &text).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use conf::ObjectSource;
    use conf::cluster::Change;
    use conf::cluster::parse::parse;

    use super::*;

    fn config() -> NodeConfig {
        let mut config = NodeConfig::new("prod", vec![]);
        config.objects.source = ObjectSource::Kubernetes;
        config
    }

    /// Nodes with an address, and a subnet if the number behind is not 0.
    fn state(nodes: &[(&str, u8)]) -> ClusterState {
        let mut state = ClusterState::default();
        for (ix, (name, subnet)) in nodes.iter().enumerate() {
            let cidr = match subnet {
                0 => String::new(),
                n => format!("podCIDR: 10.244.{n}.0/24, podCIDRs: [10.244.{n}.0/24]"),
            };
            let text = format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{{cidr}}}\n\
                 status: {{addresses: [{{type: InternalIP, address: 192.0.2.{ix}}}]}}\n"
            );
            let manifests = parse(&text);
            assert!(manifests.refused.is_empty(), "{manifests:?}");
            state.apply(manifests.accepted.into_iter().map(|found| Change::Set(found.object)));
        }
        state
    }

    fn placed(decision: Decision) -> Placement {
        match decision {
            Decision::Placed(placement) => placement,
            Decision::Waiting(why) => panic!("{why}"),
        }
    }

    #[test]
    fn what_the_control_plane_gives_is_fixed() {
        let state = state(&[("a", 1), ("b", 2)]);
        let placement = placed(decide(&config(), "b", &state, Duration::ZERO));
        assert_eq!(placement.pod_cidrs, ["10.244.2.0/24".parse().unwrap()]);
        let config = placement.apply(&config());
        assert_eq!(config.lease.fixed, placement.pod_cidrs);
        assert_eq!(config.seeds[0].host, "192.0.2.0");
        assert_eq!(config.underlay.address, UnderlaySelector::Address([192, 0, 2, 1].into()));
    }

    #[test]
    fn a_node_without_a_subnet_waits_where_others_have_one() {
        let waiting = |decision| matches!(decision, Decision::Waiting(_));
        let (long, some) = (ALLOCATION_WAIT * 100, state(&[("a", 1), ("b", 0)]));
        assert!(waiting(decide(&config(), "b", &some, long)));
        let none = state(&[("a", 0), ("b", 0)]);
        assert!(waiting(decide(&config(), "b", &none, Duration::ZERO)));
        assert!(placed(decide(&config(), "b", &none, ALLOCATION_WAIT)).pod_cidrs.is_empty());
        let mut strict = config();
        strict.objects.pod_cidrs = PodCidrs::Node;
        assert!(waiting(decide(&strict, "b", &none, long)));
        let mut own = config();
        own.objects.pod_cidrs = PodCidrs::Claim;
        assert!(placed(decide(&own, "a", &some, Duration::ZERO)).pod_cidrs.is_empty());
    }

    #[test]
    fn a_subnet_outside_of_the_ranges_is_told() {
        let mut config = config();
        config.lease.ranges = vec!["10.42.0.0/16".parse().unwrap()];
        let Decision::Waiting(why) = decide(&config, "a", &state(&[("a", 1)]), Duration::ZERO)
        else {
            panic!("it is in no range");
        };
        assert!(why.contains("10.244.1.0/24, which is none of 10.42.0.0/16"), "{why}");
    }

    #[test]
    fn any_two_nodes_know_of_each_other_by_way_of_the_first() {
        let names: Vec<String> = (0..40).map(|n| format!("n{n:02}")).collect();
        let nodes: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 1)).collect();
        let state = state(&nodes);
        for name in &names {
            let seeds = placed(decide(&config(), name, &state, Duration::ZERO)).seeds;
            assert!(seeds.len() <= FIRST_SEEDS + NEXT_SEEDS);
            assert!(seeds.contains(&[192, 0, 2, 0].into()) || name == "n00", "{name} {seeds:?}");
        }
    }

    #[test]
    fn it_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Placement::load(folder.path()).unwrap(), None);
        let placement = placed(decide(&config(), "a", &state(&[("a", 1)]), Duration::ZERO));
        placement.save(folder.path()).unwrap();
        assert_eq!(Placement::load(folder.path()).unwrap(), Some(placement));
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Placement::load(folder.path()).is_err());
    }
}
