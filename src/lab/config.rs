//! How a lab is asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// Most nodes in a lab: each has one byte in its underlay address, and a few are taken.
pub const NODES_MAX: u8 = 200;

/// The protocol between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// A lab that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabConfig {
    /// Its name: 1 to 32 lower-case letters, digits and `-`.
    pub name: String,
    /// Nodes, at most [`NODES_MAX`].
    pub nodes: u8,
    /// Pods on each node.
    pub pods_per_node: u8,
    /// Whether pods get IPv6 addresses, too.
    pub ipv6: bool,
    /// MTU of the network between the nodes.
    pub underlay_mtu: u16,
    /// Protocol between the nodes. Both are configured; it is the one that daemons use.
    pub underlay: Family,
    /// The content of every node's `[lease]`. Absent: `10.244.0.0/16`, with `ipv6` also
    /// `fd00:10:244::/56`.
    #[serde(default)]
    pub lease: Option<String>,
    /// The content of every node's `[objects]`. Absent: a directory of manifests that all nodes share.
    #[serde(default)]
    pub objects: Option<String>,
    /// Text for every node's `weft.toml`: whole sections other than `underlay`, `lease`, `objects`,
    /// `paths`, `metrics` and `log`. Where it has an `[overlay]` that says nothing about keys, the lab adds the file
    /// with the node's.
    pub extra: String,
    /// The same for single nodes, by name.
    pub extra_of_node: BTreeMap<String, String>,
    /// Level of the daemons' logs.
    pub log: String,
    /// Whether it outlives the process that makes it.
    pub keep: bool,
    /// The program that is `weft`, `weftd` and `weft-cni`, by the name it is called by. Absent: this one.
    pub program: Option<PathBuf>,
}

impl LabConfig {
    /// Three nodes with two pods each, over IPv4 with an MTU of 1500.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            nodes: 3,
            pods_per_node: 2,
            ipv6: true,
            underlay_mtu: 1500,
            underlay: Family::V4,
            lease: None,
            objects: None,
            extra: String::new(),
            extra_of_node: BTreeMap::new(),
            log: "info".to_owned(),
            keep: false,
            program: None,
        }
    }

    /// Checks the bounds.
    pub(super) fn check(&self) -> Result<()> {
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(
            (1..=32).contains(&self.name.len()) && self.name.bytes().all(letters),
            "a lab's name is 1 to 32 lower-case letters, digits and `-`: `{}` is not",
            self.name
        );
        ensure!(self.nodes <= NODES_MAX, "a lab has at most {NODES_MAX} nodes");
        // RFC 8200 §5: IPv6 needs 1280 inside; the tunnel adds 50 or 70.
        let mtu_min = match (self.ipv6, self.underlay) {
            (true, Family::V4) => 1330,
            (_, Family::V6) => 1350,
            (false, Family::V4) => 626,
        };
        ensure!(
            self.underlay_mtu >= mtu_min,
            "the underlay's MTU must be at least {mtu_min} to carry pods' packets"
        );
        Ok(())
    }
}

/// The addresses of a lab's networks.
///
/// Nodes are `192.168.77.N` and `fd00:77::N`; the underlay routes to the world, which knows the way back
/// to the nodes and not to pods. The world's addresses are for documentation (RFC 5737, RFC 3849), so that
/// nobody takes them for real ones.
#[derive(Debug, Clone, Copy)]
pub struct Plan;

impl Plan {
    /// A node's address with the length of its prefix.
    pub fn node(family: Family, number: u8) -> IpNetwork {
        match family {
            Family::V4 => network(IpAddr::from([192, 168, 77, number]), 24),
            Family::V6 => network(IpAddr::from([0xfd00, 0x77, 0, 0, 0, 0, 0, number.into()]), 64),
        }
    }

    /// The router between the nodes and the world, seen from the nodes.
    pub fn router(family: Family) -> IpNetwork {
        Self::node(family, 254)
    }

    /// The same router, seen from the world.
    pub fn world_router(family: Family) -> IpNetwork {
        match family {
            Family::V4 => network(IpAddr::from([203, 0, 113, 1]), 24),
            Family::V6 => network(IpAddr::from([0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1]), 64),
        }
    }

    /// Everywhere.
    pub fn anywhere(family: Family) -> IpNetwork {
        match family {
            Family::V4 => network(IpAddr::from([0; 4]), 0),
            Family::V6 => network(IpAddr::from([0; 16]), 0),
        }
    }

    /// A host in the world.
    pub fn world(family: Family) -> IpNetwork {
        match family {
            Family::V4 => network(IpAddr::from([203, 0, 113, 10]), 24),
            Family::V6 => network(IpAddr::from([0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 10]), 64),
        }
    }
}

fn network(address: IpAddr, prefix_len: u8) -> IpNetwork {
    match IpNetwork::new(address, prefix_len) {
        Ok(network) => network,
        Err(_) => IpNetwork::from(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked() {
        assert!(LabConfig::new("demo-7").check().is_ok());
        assert!(LabConfig::new("").check().is_err());
        assert!(LabConfig::new("../etc").check().is_err());
        assert!(LabConfig { nodes: 201, ..LabConfig::new("a") }.check().is_err());
        assert!(LabConfig { underlay_mtu: 1300, ..LabConfig::new("a") }.check().is_err());
    }

    #[test]
    fn addresses_are_as_documented() {
        assert_eq!(Plan::node(Family::V4, 3).to_string(), "192.168.77.3/24");
        assert_eq!(Plan::node(Family::V6, 16).to_string(), "fd00:77::10/64");
        assert_eq!(Plan::world(Family::V6).to_string(), "2001:db8:113::a/64");
    }
}
