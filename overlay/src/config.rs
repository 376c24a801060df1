//! What an operator can choose about the overlay.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// The `[overlay]` section of `weft.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// UDP port that VXLAN is received on and sent to (RFC 7348 §5). Default 4789; bounds 1 to 65 535,
    /// not equal to `gossip_port`. Nodes may differ: each announces its own.
    pub vxlan_port: u16,

    /// VXLAN network identifier (RFC 7348 §5). Default 1; bounds 0 to 16 777 215. It must be the same on
    /// every node: what arrives with another one is dropped and counted.
    pub vni: u32,

    /// UDP port for gossip. Default 7946; bounds 1 to 65 535, not equal to `vxlan_port`. Nodes may
    /// differ: each announces its own.
    pub gossip_port: u16,

    /// Most nodes that this one remembers, dead ones included. Default 5000; bounds 2 to 65 000. A record
    /// costs about 300 bytes. At the bound records of further nodes are refused and counted.
    pub nodes_max: u32,

    /// The file with the keys that the gossip is sealed with, see [`crate::seal::KeyFile`]. Default
    /// `/etc/weft/keys`; absolute. All nodes of a network have the same keys.
    pub key_file: PathBuf,

    /// Whether the gossip is in clear: no key is needed, and whoever reaches the gossip port may join, lie
    /// and listen. Default `false`. It must be the same on every node.
    pub insecure: bool,

    /// Most pods that this one remembers, of all nodes together. Default 250 000; bounds 1000 to
    /// 10 000 000. A pod costs about 600 bytes. At the bound pods of further nodes are refused and counted.
    pub pods_max: u32,

    /// For how many nodes the clockwork of gossip is set. Default [`Preset::Auto`].
    pub preset: Preset,
}

/// For how many nodes the clockwork of gossip is set. In a larger cluster news take more steps, and there
/// are more of them: a suspect has longer to contradict, and news are gathered for longer before they are
/// passed on. Nodes may differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// By the number of live nodes, changing as that does.
    #[default]
    Auto,
    /// Up to 256 nodes.
    Small,
    /// Up to 1500 nodes.
    Medium,
    /// More.
    Large,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vxlan_port: 4789,
            vni: 1,
            gossip_port: 7946,
            nodes_max: 5000,
            key_file: "/etc/weft/keys".into(),
            insecure: false,
            pods_max: 250_000,
            preset: Preset::Auto,
        }
    }
}

impl Config {
    /// All that is wrong with these values, as (field, what and why).
    pub fn validate(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.vxlan_port == 0 {
            problems.push(("vxlan_port", "0 is not a port: write 1 to 65535".to_owned()));
        }
        if self.gossip_port == 0 {
            problems.push(("gossip_port", "0 is not a port: write 1 to 65535".to_owned()));
        }
        if self.gossip_port == self.vxlan_port {
            let text = format!("{} is the vxlan_port too: choose another", self.gossip_port);
            problems.push(("gossip_port", text));
        }
        if self.vni > 0xff_ffff {
            let text = format!("{} does not fit 24 bits: write 0 to 16777215", self.vni);
            problems.push(("vni", text));
        }
        if !(2..=65_000).contains(&self.nodes_max) {
            let text = format!("{} is out of bounds: write 2 to 65000", self.nodes_max);
            problems.push(("nodes_max", text));
        }
        if !self.key_file.is_absolute() {
            let text =
                format!("{} is not absolute: write all of the path", self.key_file.display());
            problems.push(("key_file", text));
        }
        if !(1000..=10_000_000).contains(&self.pods_max) {
            let text = format!("{} is out of bounds: write 1000 to 10000000", self.pods_max);
            problems.push(("pods_max", text));
        }
        problems
    }
}

/// The `[lease]` section of `weft.toml`: how the cluster's addresses are dealt out to nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeaseConfig {
    /// The cluster's address ranges, out of which this node leases one subnet per family. Default
    /// `["10.244.0.0/16"]`; at least one, at most 16, at most one of them IPv6, none overlapping. Every
    /// node announces its own, and routes those of all; see `docs/gossip.md`.
    pub ranges: Vec<IpNetwork>,

    /// Length in bits of this node's IPv4 lease, the next time that it claims one. Default 24 (253 pods);
    /// bounds: the longest IPv4 range's own length to 30. Nodes may differ.
    pub prefix_len_v4: u8,

    /// Length in bits of this node's IPv6 lease, the next time that it claims one. Default 64; bounds:
    /// the IPv6 range's own length to 126. Nodes may differ.
    pub prefix_len_v6: u8,

    /// The subnets that this node has, and no others: at most one per family, inside of the ranges, of
    /// any length that a lease may have. Default none. Another node that holds a part of one gives it up,
    /// unless it is fixed there, too.
    pub fixed: Vec<IpNetwork>,

    /// Subnets that no node chooses, unless they are fixed for it: at most 16. Default none. Every node
    /// announces its own and keeps away from those of all. Who holds one already keeps it.
    pub reserved: Vec<IpNetwork>,

    /// How long the lease of a node that died or left stays reserved for its return, in seconds. Default
    /// 86 400 (a day); bounds 0 to 31 536 000 (a year). When nothing else is free, the subnet that has
    /// been without its holder for longest is given away earlier. After this time, and an hour at least,
    /// the node is forgotten.
    pub hold_s: u32,

    /// How long a node without a lease tries to reach a seed before it claims one on its own, in
    /// milliseconds. Default 5000; bounds 100 to 600 000. Shorter starts lone nodes sooner; longer makes
    /// it less likely that two nodes which cannot reach each other yet choose the same subnet.
    pub claim_wait_ms: u32,

    /// How long a claim must stand without contradiction before the subnet is used, in milliseconds.
    /// Default 1500; bounds 100 to 60 000. It should be longer than news take to reach every node.
    pub claim_confirm_ms: u32,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            ranges: vec![IpNetwork::V4(DEFAULT_RANGE)],
            prefix_len_v4: 24,
            prefix_len_v6: 64,
            fixed: Vec::new(),
            reserved: Vec::new(),
            hold_s: 86_400,
            claim_wait_ms: 5000,
            claim_confirm_ms: 1500,
        }
    }
}

const DEFAULT_RANGE: ipnetwork::Ipv4Network =
    match ipnetwork::Ipv4Network::new_checked(std::net::Ipv4Addr::new(10, 244, 0, 0), 16) {
        Some(range) => range,
        None => unreachable!(),
    };

impl LeaseConfig {
    /// All that is wrong with these values, as (field, what and why).
    pub fn validate(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        self.validate_ranges(&mut problems);
        self.validate_fixed(&mut problems);
        self.validate_reserved(&mut problems);
        for (field, length, longest, v6) in [
            ("prefix_len_v4", self.prefix_len_v4, 30, false),
            ("prefix_len_v6", self.prefix_len_v6, 126, true),
        ] {
            let shortest = self.ranges.iter().filter(|range| range.is_ipv6() == v6);
            let shortest = shortest.map(IpNetwork::prefix).max();
            if shortest.is_some_and(|shortest| length < shortest) || length > longest {
                let shortest = shortest.unwrap_or_default();
                let text = format!("{length} is out of bounds: write {shortest} to {longest}");
                problems.push((field, text));
            }
        }
        for (field, value, least, most) in [
            ("hold_s", self.hold_s, 0, 31_536_000),
            ("claim_wait_ms", self.claim_wait_ms, 100, 600_000),
            ("claim_confirm_ms", self.claim_confirm_ms, 100, 60_000),
        ] {
            if !(least..=most).contains(&value) {
                problems
                    .push((field, format!("{value} is out of bounds: write {least} to {most}")));
            }
        }
        problems
    }

    fn validate_ranges(&self, problems: &mut Vec<(&'static str, String)>) {
        let mut complain = |text: String| problems.push(("ranges", text));
        if self.ranges.is_empty() {
            complain(
                "no range: pods would have no addresses; write one, such as 10.244.0.0/16".into(),
            );
        }
        if self.ranges.len() > RANGES_MAX {
            complain(format!("{} ranges: at most 16 are possible", self.ranges.len()));
        }
        if self.ranges.iter().filter(|range| range.is_ipv6()).count() > 1 {
            complain("more than one IPv6 range: write one".to_owned());
        }
        for (ix, range) in self.ranges.iter().enumerate() {
            if range.ip() != range.network() {
                let whole = IpNetwork::new(range.network(), range.prefix());
                let whole = whole.map_or_else(|_| "its network".to_owned(), |net| net.to_string());
                complain(format!("{range} has bits set behind its length: write {whole}"));
            }
            if let Some(why) = unusable(*range) {
                complain(format!("{range} cannot be used for pods: {why}"));
            }
            for earlier in self.ranges.iter().take(ix) {
                if overlaps(*earlier, *range) {
                    complain(format!("{range} and {earlier} overlap: write separate ones"));
                }
            }
        }
    }

    fn validate_fixed(&self, problems: &mut Vec<(&'static str, String)>) {
        for (ix, fixed) in self.fixed.iter().enumerate() {
            if !self.is_lease(*fixed) {
                let text = format!(
                    "{fixed} is no subnet of the ranges with 8 to 30 bits (IPv6: to 126): write one"
                );
                problems.push(("fixed", text));
            }
            let twice = self.fixed[..ix].iter().any(|other| other.is_ipv6() == fixed.is_ipv6());
            if twice {
                problems
                    .push(("fixed", format!("{fixed} is a second one of its family: keep one")));
            }
        }
    }

    fn validate_reserved(&self, problems: &mut Vec<(&'static str, String)>) {
        if self.reserved.len() > RESERVED_MAX {
            let text =
                format!("{} entries: at most {RESERVED_MAX} are possible", self.reserved.len());
            problems.push(("reserved", text));
        }
        for reserved in self.reserved.iter().filter(|prefix| prefix.ip() != prefix.network()) {
            problems.push(("reserved", format!("{reserved} has bits set behind its length")));
        }
    }

    /// Whether `prefix` is a subnet that a node can lease. It need not be of this node's length.
    pub fn is_lease(&self, prefix: IpNetwork) -> bool {
        is_subnet(prefix) && self.ranges.iter().any(|range| covers(*range, prefix))
    }

    /// The subnet that this node must have of a family.
    pub fn fixed(&self, v6: bool) -> Option<IpNetwork> {
        self.fixed.iter().copied().find(|prefix| prefix.is_ipv6() == v6)
    }
}

/// Most ranges, and most reserved subnets.
pub(crate) const RANGES_MAX: usize = 16;
pub(crate) const RESERVED_MAX: usize = 16;

/// Whether `prefix` has the form of a lease: no bits behind its length, and room for a pod.
pub(crate) fn is_subnet(prefix: IpNetwork) -> bool {
    let lengths = if prefix.is_ipv6() { 8..=126 } else { 8..=30 };
    prefix.ip() == prefix.network() && lengths.contains(&prefix.prefix())
}

/// Whether `range` can be a cluster range.
pub(crate) fn is_range(range: IpNetwork) -> bool {
    is_subnet(range) && unusable(range).is_none()
}

/// Whether `range` contains all of `prefix`.
pub fn covers(range: IpNetwork, prefix: IpNetwork) -> bool {
    range.is_ipv6() == prefix.is_ipv6()
        && range.prefix() <= prefix.prefix()
        && range.contains(prefix.network())
}

/// Whether any address is in both.
pub fn overlaps(one: IpNetwork, other: IpNetwork) -> bool {
    covers(one, other) || covers(other, one)
}

fn unusable(range: IpNetwork) -> Option<&'static str> {
    match range.network() {
        IpAddr::V4(v4) if range.prefix() == 0 || v4.is_unspecified() => Some("it contains 0.0.0.0"),
        IpAddr::V4(v4) if v4.is_loopback() => Some("it is the loopback network"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("it is the link-local network"),
        IpAddr::V4(v4) if v4.octets()[0] >= 224 => Some("it is multicast or reserved"),
        IpAddr::V6(v6) if range.prefix() < 8 || v6.is_unspecified() || v6.is_loopback() => {
            Some("it contains special addresses")
        }
        IpAddr::V6(v6) if v6.is_multicast() => Some("it is multicast"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("it is the link-local network"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn the_defaults_are_right() {
        assert_eq!(Config::default().validate(), vec![]);
        assert_eq!(LeaseConfig::default().validate(), vec![]);
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let config = Config {
            vxlan_port: 0,
            vni: 1 << 24,
            gossip_port: 0,
            nodes_max: 1,
            key_file: "keys".into(),
            insecure: false,
            pods_max: 1,
            preset: Preset::Auto,
        };
        let fields: Vec<_> = config.validate().into_iter().map(|(field, _)| field).collect();
        assert_eq!(
            fields,
            [
                "vxlan_port",
                "gossip_port",
                "gossip_port",
                "vni",
                "nodes_max",
                "key_file",
                "pods_max"
            ]
        );

        let lease = LeaseConfig {
            ranges: ["10.1.2.3/16", "10.1.0.0/20", "224.0.0.0/8", "fd00::/56", "fd01::/56"]
                .map(net)
                .to_vec(),
            prefix_len_v4: 18,
            prefix_len_v6: 127,
            fixed: vec![net("10.9.0.0/24"), net("10.1.9.0/24")],
            reserved: vec![net("10.1.0.1/24")],
            hold_s: 31_536_001,
            claim_wait_ms: 0,
            claim_confirm_ms: 0,
        };
        let problems = lease.validate();
        let text = format!("{problems:?}");
        for part in ["10.1.0.0/16", "overlap", "multicast", "more than one IPv6", "write 20 to 30"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        for field in
            ["prefix_len_v6", "fixed", "reserved", "hold_s", "claim_wait_ms", "claim_confirm_ms"]
        {
            assert!(problems.iter().any(|(name, _)| *name == field), "{field}");
        }
        let none = LeaseConfig { ranges: Vec::new(), ..LeaseConfig::default() };
        assert_eq!(none.validate().len(), 1);
    }

    #[test]
    fn only_subnets_of_the_ranges_are_leases() {
        let config = LeaseConfig {
            ranges: vec![net("10.244.0.0/16"), net("fd00:10:244::/56")],
            ..LeaseConfig::default()
        };
        for right in ["10.244.0.0/24", "10.244.255.0/25", "10.244.4.0/22", "fd00:10:244:ff::/64"] {
            assert!(config.is_lease(net(right)), "{right}");
        }
        for wrong in ["10.244.0.0/31", "10.244.0.1/24", "10.245.0.0/24", "fd00:10:244:100::/64"] {
            assert!(!config.is_lease(net(wrong)), "{wrong}");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        let json = r#"{"vxlan_prot": 1}"#;
        assert!(serde_json::from_str::<Config>(json).is_err());
        assert!(serde_json::from_str::<LeaseConfig>(r#"{"hold_s": 5}"#).is_ok());
    }
}
