//! What a node says about itself.

use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use vswitch::mac::Mac;

use super::addresses::{ADDRESSES_MAX, Addresses};
use super::codec;
use super::counters::Refused;
use super::identity::{COUNTER_MAX, is_reachable};
use crate::config::{LeaseConfig, RANGES_MAX, RESERVED_MAX, covers, is_range, is_subnet, overlaps};
use crate::node_id::NodeId;
use crate::seal::{KEYS_MAX, KeyId};
use crate::subnet::{Claim, Standing};

/// Longest name of a node, as the longest DNS label (RFC 1035 §2.3.4).
pub const NAME_LEN_MAX: usize = 63;

/// Longest name and version of the software in a record.
pub const SOFTWARE_LEN_MAX: usize = 32;

/// Longest record, in bytes as encoded: one fits a datagram with everything around it.
pub(super) const RECORD_LEN_MAX: usize = 960;

/// Most nodes that one node leaves addresses to.
pub(super) const GRANTS_MAX: usize = 32;

/// Most leases in one record: one per family, and room for what a node is giving up or taking over.
pub const LEASES_MAX: usize = 8;

/// A node's record: written by its owner only, replicated to everybody, the greatest version wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: NodeId,
    pub(super) version: u64,
    /// The owner's life in the failure detector when it wrote this.
    pub(super) incarnation: u64,
    pub(super) name: String,
    pub(super) underlay: IpAddr,
    pub(super) gossip_port: u16,
    pub(super) vxlan_port: u16,
    pub(super) underlay_mtu: u16,
    pub(super) vtep_mac: Mac,
    /// The owner said goodbye.
    pub(super) left: bool,
    /// Name and version of the daemon; empty where no Weft daemon speaks for the node.
    pub(super) software: String,
    /// The keys that the owner accepts, the one that it uses first; none if its gossip is in clear.
    pub(super) keys: Vec<KeyId>,
    pub(super) leases: Vec<LeaseRecord>,
    /// The ranges that the owner takes its leases from.
    pub(super) ranges: Vec<Prefix>,
    /// Subnets that nobody may choose, as the owner's configuration says.
    pub(super) reserved: Vec<Prefix>,
    /// Addresses of the owner's pods out of subnets that it does not hold any more.
    pub(super) exceptions: Addresses,
    /// Addresses out of the owner's own leases that it leaves to pods of other nodes.
    pub(super) grants: Vec<Grant>,
    /// The node that founded the cluster that the owner belongs to; none while it does not know.
    pub(super) origin: Option<NodeId>,
}

/// Addresses that the holder of a subnet leaves to pods of another node, because they had them before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    pub(super) to: NodeId,
    pub(super) addresses: Addresses,
}

/// A prefix, as short as it can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    pub(super) fn new(prefix: IpNetwork) -> Self {
        Self { address: prefix.network(), len: prefix.prefix() }
    }

    /// The prefix; `None` if it is longer than the address, or has bits behind its length.
    pub(super) fn network(self) -> Option<IpNetwork> {
        let prefix = IpNetwork::new(self.address, self.len).ok()?;
        (prefix.network() == self.address).then_some(prefix)
    }
}

/// A lease in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    pub(super) network: IpAddr,
    pub(super) prefix_len: u8,
    pub(super) held: bool,
    /// The owner's configuration says that it must be this subnet.
    pub(super) fixed: bool,
    pub(super) epoch: u64,
}

impl LeaseRecord {
    pub(super) fn new(prefix: IpNetwork, standing: Standing) -> Self {
        let Standing { fixed, claim, epoch, .. } = standing;
        let held = claim == Claim::Held;
        Self { network: prefix.network(), prefix_len: prefix.prefix(), held, fixed, epoch }
    }

    /// How good the claim of `id` is.
    pub(super) fn standing(&self, id: NodeId) -> Standing {
        Standing { fixed: self.fixed, claim: self.claim(), epoch: self.epoch, id }
    }

    /// The subnet; `None` if the length is longer than the address.
    pub(super) fn prefix(&self) -> Option<IpNetwork> {
        IpNetwork::new(self.network, self.prefix_len).ok()
    }

    pub(super) fn claim(&self) -> Claim {
        if self.held { Claim::Held } else { Claim::Claiming }
    }
}

impl Record {
    /// Where the owner receives gossip.
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.underlay, self.gossip_port)
    }

    /// Checks everything that is relied on later.
    pub(super) fn validate(&self, config: &LeaseConfig) -> Result<(), Refused> {
        let ensure = |right: bool, reason| if right { Ok(()) } else { Err(reason) };
        let counters = [self.version, self.incarnation];
        ensure(counters.into_iter().all(|counter| counter < COUNTER_MAX), Refused::BadCounter)?;
        ensure(is_name(&self.name) && is_software(&self.software), Refused::BadName)?;
        ensure(is_reachable(self.address()) && self.vxlan_port != 0, Refused::BadAddress)?;
        ensure(self.underlay_mtu >= UNDERLAY_MTU_MIN, Refused::BadMtu)?;
        ensure(self.vtep_mac.is_unicast(), Refused::BadMac)?;
        let twice = |(ix, key): (usize, &KeyId)| self.keys[..ix].contains(key);
        let is_ring = self.keys.len() <= KEYS_MAX && !self.keys.iter().enumerate().any(twice);
        ensure(is_ring, Refused::BadKeys)?;
        ensure(self.leases.len() <= LEASES_MAX, Refused::BadLease)?;
        let ranges = self.validate_ranges()?;
        let mut prefixes: Vec<IpNetwork> = Vec::new();
        for lease in &self.leases {
            let prefix = lease.prefix().ok_or(Refused::BadLease)?;
            let twice = prefixes.iter().any(|other| overlaps(*other, prefix));
            // A node that has not been told of a wider range yet takes the owner's word for it.
            let mut ranges = ranges.iter().chain(&config.ranges);
            let inside = is_subnet(prefix) && ranges.any(|range| covers(*range, prefix));
            ensure(inside && !twice, Refused::BadLease)?;
            ensure(lease.epoch < COUNTER_MAX, Refused::BadCounter)?;
            prefixes.push(prefix);
        }
        self.validate_addresses(&prefixes, &ranges, config)?;
        ensure(codec::encoded_len(self) <= RECORD_LEN_MAX, Refused::LongRecord)
    }

    /// Exceptions are out of some range, and what is granted is the owner's own.
    fn validate_addresses(
        &self,
        leases: &[IpNetwork],
        ranges: &[IpNetwork],
        config: &LeaseConfig,
    ) -> Result<(), Refused> {
        let is_in = |prefixes: &[IpNetwork], address: &IpAddr| {
            prefixes.iter().any(|prefix| prefix.contains(*address))
        };
        let exceptions = self.exceptions.list().ok_or(Refused::BadException)?;
        let outside = |address: &IpAddr| !is_in(ranges, address) && !is_in(&config.ranges, address);
        let mut granted = 0;
        for grant in &self.grants {
            let addresses = grant.addresses.list().ok_or(Refused::BadException)?;
            granted += addresses.len();
            if addresses.iter().any(|address| !is_in(leases, address)) {
                return Err(Refused::BadException);
            }
        }
        let few = self.grants.len() <= GRANTS_MAX && granted <= ADDRESSES_MAX;
        let right = few && !exceptions.iter().any(outside);
        if right { Ok(()) } else { Err(Refused::BadException) }
    }

    fn validate_ranges(&self) -> Result<Vec<IpNetwork>, Refused> {
        let ranges: Option<Vec<_>> = self.ranges.iter().map(|range| range.network()).collect();
        let ranges = ranges.filter(|ranges| ranges.iter().all(|range| is_range(*range)));
        let reserved = self.reserved.iter().all(|prefix| prefix.network().is_some());
        let few = self.ranges.len() <= RANGES_MAX && self.reserved.len() <= RESERVED_MAX;
        ranges.filter(|_| reserved && few).ok_or(Refused::BadRange)
    }

    /// A short stand-in for the whole content, equal on every node.
    ///
    /// It finds differences, it does not prove anything.
    pub(super) fn digest(&self) -> u64 {
        codec::hash(&codec::encode_record(self))
    }

    /// Which of two records of one node is newer. Equal versions happen when a disk was set back or
    /// cloned; then the digest decides, so that everybody ends with the same one.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        self.version.cmp(&other.version).then_with(|| self.digest().cmp(&other.digest()))
    }
}

/// The least MTU of an underlay: 576 bytes is what every IPv4 host takes (RFC 791 §3.1).
pub const UNDERLAY_MTU_MIN: u16 = 576;

/// Whether this is fit to be a node's name: 1 to 63 printable ASCII characters without spaces.
pub fn is_name(name: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether this is fit to be the name and version of a node's software: up to 32 printable ASCII characters
/// without spaces, or nothing.
pub fn is_software(software: &str) -> bool {
    software.len() <= SOFTWARE_LEN_MAX && software.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The finalizer of `SplitMix64`: every input bit changes every output bit with probability one half.
pub(super) fn stir(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::gossip) fn record(id: u8, version: u64) -> Record {
        let id = NodeId([id; 16]);
        Record {
            id,
            version,
            incarnation: 1,
            name: "node".to_owned(),
            underlay: IpAddr::from([192, 0, 2, id.0[0]]),
            gossip_port: 7946,
            vxlan_port: 4789,
            underlay_mtu: 1500,
            vtep_mac: id.vtep_mac(),
            left: false,
            software: "weft/0.1.0".to_owned(),
            keys: vec![KeyId([1; 8])],
            leases: vec![lease(&format!("10.244.{}.0/24", id.0[0]), true, 1)],
            ranges: vec![Prefix::new("10.244.0.0/16".parse().unwrap())],
            reserved: Vec::new(),
            exceptions: Addresses::default(),
            grants: Vec::new(),
            origin: Some(NodeId([1; 16])),
        }
    }

    pub(in crate::gossip) fn addresses(list: &[&str]) -> Addresses {
        Addresses::new(&list.iter().map(|address| address.parse().unwrap()).collect())
    }

    pub(in crate::gossip) fn lease(prefix: &str, held: bool, epoch: u64) -> LeaseRecord {
        let claim = if held { Claim::Held } else { Claim::Claiming };
        let standing = Standing { fixed: false, claim, epoch, id: NodeId::MIN };
        LeaseRecord::new(prefix.parse().unwrap(), standing)
    }

    #[test]
    fn a_record_is_taken_only_if_all_of_it_is_right() {
        type Spoil = fn(&mut Record);
        let config = LeaseConfig::default();
        assert_eq!(record(1, 1).validate(&config), Ok(()));
        let cases: [(Refused, Spoil); 29] = [
            (Refused::BadCounter, |record| record.version = u64::MAX),
            (Refused::BadCounter, |record| record.incarnation = COUNTER_MAX),
            (Refused::BadCounter, |record| record.leases[0].epoch = COUNTER_MAX),
            (Refused::BadName, |record| record.name.clear()),
            (Refused::BadName, |record| record.name = "a".repeat(64)),
            (Refused::BadName, |record| record.name = "a\u{1b}[2J".to_owned()),
            (Refused::BadName, |record| record.software = "a b".to_owned()),
            (Refused::BadName, |record| record.software = "a".repeat(33)),
            (Refused::BadAddress, |record| record.underlay = IpAddr::from([0; 4])),
            (Refused::BadAddress, |record| record.vxlan_port = 0),
            (Refused::BadMtu, |record| record.underlay_mtu = 68),
            (Refused::BadKeys, |record| record.keys = vec![KeyId([1; 8]); 2]),
            (Refused::BadKeys, |record| {
                record.keys = (0..9).map(|byte| KeyId([byte; 8])).collect();
            }),
            (Refused::BadMac, |record| record.vtep_mac = Mac::BROADCAST),
            (Refused::BadLease, |record| record.leases[0].prefix_len = 23),
            (Refused::BadLease, |record| record.leases[0].prefix_len = 31),
            (Refused::BadLease, |record| record.leases[0].prefix_len = 255),
            (Refused::BadLease, |record| record.leases[0].network = IpAddr::from([10, 1, 0, 0])),
            (Refused::BadLease, |record| record.leases = vec![record.leases[0]; 2]),
            (Refused::BadLease, |record| record.leases.push(lease("10.244.1.128/25", true, 1))),
            (Refused::BadRange, |record| record.ranges[0].len = 33),
            (Refused::BadRange, |record| record.ranges[0].len = 7),
            (Refused::BadRange, |record| record.ranges = vec![record.ranges[0]; RANGES_MAX + 1]),
            (Refused::BadRange, |record| record.ranges[0].address = IpAddr::from([127, 0, 0, 0])),
            (Refused::BadRange, |record| {
                record.reserved = vec![record.ranges[0]; RESERVED_MAX + 1];
            }),
            (Refused::BadException, |record| record.exceptions = addresses(&["10.9.0.2"])),
            (Refused::BadException, |record| {
                let addresses = addresses(&["10.244.2.2"]);
                record.grants = vec![Grant { to: NodeId::MIN, addresses }];
            }),
            (Refused::BadException, |record| {
                let grant = Grant { to: NodeId::MIN, addresses: addresses(&["10.244.1.2"]) };
                record.grants = vec![grant; GRANTS_MAX + 1];
            }),
            (Refused::LongRecord, |record| {
                let single: Vec<_> = (0..490)
                    .map(|n| n * 133)
                    .map(|n| format!("10.244.{}.{}", n / 256, n % 256))
                    .collect();
                let single: Vec<_> = single.iter().map(String::as_str).collect();
                record.exceptions = addresses(&single);
            }),
        ];
        for (reason, spoil) in cases {
            let mut record = record(1, 1);
            spoil(&mut record);
            assert_eq!(record.validate(&config), Err(reason));
        }
    }

    #[test]
    fn leases_of_any_size_and_of_the_owners_ranges_are_taken() {
        let config = LeaseConfig::default();
        let mut wider = record(1, 1);
        wider.leases = vec![lease("10.244.0.0/22", true, 1), lease("10.7.64.0/26", false, 2)];
        assert_eq!(wider.validate(&config), Err(Refused::BadLease));
        wider.ranges.push(Prefix::new("10.7.0.0/16".parse().unwrap()));
        assert_eq!(wider.validate(&config), Ok(()));
    }

    #[test]
    fn of_two_records_one_is_newer_whichever_came_first() {
        let (old, new) = (record(1, 1), record(1, 2));
        assert_eq!(old.compare(&new), Ordering::Less);
        let mut twin = record(1, 1);
        twin.underlay_mtu = 9000;
        assert_ne!(old.compare(&twin), Ordering::Equal);
        assert_eq!(old.compare(&twin), twin.compare(&old).reverse());
    }
}
