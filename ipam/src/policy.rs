//! By which rules addresses are handed out, and what can be asked for.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::pool::Pool;
use crate::record::{Allocation, Attachment, Mac, Pod};

/// The rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How long an address that was given back rests before somebody else gets it, in seconds. Default 60. Under
    /// need it is shortened, for the address that has rested longest. 0 is no rest.
    pub reuse_delay_s: u64,
    /// Ranges of which nothing is handed out, also when asked for. Default none.
    pub excluded: Vec<IpNetwork>,
    /// Whether a pod gets the address back that the last pod of its namespace and name had, as long as no other
    /// pod needed it. Default no.
    pub sticky: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { reuse_delay_s: 60, excluded: Vec::new(), sticky: false }
    }
}

impl Policy {
    /// The range that excludes `address`.
    pub(crate) fn excluding(&self, address: IpAddr) -> Option<IpNetwork> {
        self.excluded.iter().copied().find(|range| range.contains(address))
    }

    /// Whether `address` is never handed out.
    pub(crate) fn excludes(&self, address: IpAddr) -> bool {
        self.excluding(address).is_some()
    }
}

/// What an attachment asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// These addresses and no others, at most one per family. A family that is not named gets any.
    pub addresses: Vec<IpAddr>,
    /// Whether somebody else decides who gets which address, so that none of them has to rest.
    pub is_delegated: bool,
    /// This Ethernet address, unless the other end already has one.
    pub mac: Option<Mac>,
}

impl Wish {
    /// The address that is wanted out of each pool.
    pub(crate) fn by_family(
        &self,
        pools: &[Option<Pool>; 2],
    ) -> Result<[Option<IpAddr>; 2], Error> {
        let mut wanted: [Option<IpAddr>; 2] = [None, None];
        for address in &self.addresses {
            let family = usize::from(address.is_ipv6());
            if pools[family].is_none_or(|pool| !pool.contains(*address)) {
                let leases: Vec<_> =
                    pools.iter().flatten().map(|pool| pool.prefix().to_string()).collect();
                let leases = leases.join(" ");
                return Err(Error::NotInLease { address: *address, leases });
            }
            match wanted[family] {
                Some(other) if other != *address => {
                    return Err(Error::TwoOfAFamily(other, *address));
                }
                Some(_) | None => wanted[family] = Some(*address),
            }
        }
        Ok(wanted)
    }

    /// Whether what is held already is what is asked for.
    pub(crate) fn check_held(&self, held: &Allocation) -> Result<(), Error> {
        let has = |wanted: &IpAddr| held.addresses().any(|address| address == *wanted);
        let other_mac = self.mac.filter(|mac| *mac != held.mac && held.record.port.mac().is_none());
        if self.addresses.iter().all(has) && other_mac.is_none() {
            return Ok(());
        }
        let text = |addresses: &mut dyn Iterator<Item = IpAddr>, mac: Option<Mac>| {
            let addresses = addresses.map(|address| address.to_string());
            let all: Vec<_> = addresses.chain(mac.map(|mac| mac.to_string())).collect();
            all.join(" ")
        };
        Err(Error::Holds {
            attachment: held.attachment.clone(),
            held: text(&mut held.addresses(), Some(held.mac)),
            wanted: text(&mut self.addresses.iter().copied(), other_mac),
        })
    }
}

/// An address that was given back a short time ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resting {
    /// Who had it.
    pub attachment: Attachment,
    /// The pod, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// When it was given back, in seconds since 1970 (UTC).
    pub released_unix_s: u64,
}

/// An address that is kept for the return of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The pod's Kubernetes namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The interface that had it.
    pub ifname: String,
    /// When it was given back, in seconds since 1970 (UTC).
    pub released_unix_s: u64,
}
