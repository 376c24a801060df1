//! What a node says about itself.

use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use vswitch::mac::Mac;

use super::codec;
use super::counters::Refused;
use super::identity::{COUNTER_MAX, is_reachable};
use crate::config::LeaseConfig;
use crate::node_id::NodeId;
use crate::subnet::Claim;

/// Longest name of a node, as the longest DNS label (RFC 1035 §2.3.4).
pub const NAME_LEN_MAX: usize = 63;

/// Longest name and version of the software in a record.
pub const SOFTWARE_LEN_MAX: usize = 32;

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
    pub(super) leases: Vec<LeaseRecord>,
}

/// A lease in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    pub(super) network: IpAddr,
    pub(super) prefix_len: u8,
    pub(super) held: bool,
    pub(super) epoch: u64,
}

impl LeaseRecord {
    pub(super) fn new(prefix: IpNetwork, claim: Claim, epoch: u64) -> Self {
        let held = claim == Claim::Held;
        Self { network: prefix.network(), prefix_len: prefix.prefix(), held, epoch }
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
        ensure(self.leases.len() <= LEASES_MAX, Refused::BadLease)?;
        for (ix, lease) in self.leases.iter().enumerate() {
            let prefix = lease.prefix().ok_or(Refused::BadLease)?;
            let twice = self.leases[..ix].iter().any(|other| other.network == lease.network);
            ensure(config.is_lease(prefix) && !twice, Refused::BadLease)?;
            ensure(lease.epoch < COUNTER_MAX, Refused::BadCounter)?;
        }
        Ok(())
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
            leases: vec![LeaseRecord {
                network: IpAddr::from([10, 244, id.0[0], 0]),
                prefix_len: 24,
                held: true,
                epoch: 1,
            }],
        }
    }

    #[test]
    fn a_record_is_taken_only_if_all_of_it_is_right() {
        type Spoil = fn(&mut Record);
        let config = LeaseConfig::default();
        assert_eq!(record(1, 1).validate(&config), Ok(()));
        let cases: [(Refused, Spoil); 16] = [
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
            (Refused::BadMac, |record| record.vtep_mac = Mac::BROADCAST),
            (Refused::BadLease, |record| record.leases[0].prefix_len = 23),
            (Refused::BadLease, |record| record.leases[0].prefix_len = 255),
            (Refused::BadLease, |record| record.leases[0].network = IpAddr::from([10, 1, 0, 0])),
            (Refused::BadLease, |record| record.leases = vec![record.leases[0]; 2]),
        ];
        for (reason, spoil) in cases {
            let mut record = record(1, 1);
            spoil(&mut record);
            assert_eq!(record.validate(&config), Err(reason));
        }
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
