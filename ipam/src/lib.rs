//! The addresses of one node's pods: which are free, who holds which, since when.
//!
//! The node's lease is a prefix per family. Each attachment (one interface of one container) holds at
//! most one address of each. [`Ipam`] keeps the list in memory and in one file; a change is on disk
//! before the call that made it returns, so that no address is given twice, whatever dies when.
//!
//! An address that was given back rests before somebody else gets it ([`Policy::reuse_delay_s`]): caches and
//! connections out there still mean its former holder. The order in which free addresses are taken:
//!
//! 1. the one that was asked for, or refuse
//! 2. with [`Policy::sticky`]: the one that a pod of the same name had before
//! 3. one that neither rests nor is kept for such a pod, the longest unused first
//! 4. one that is kept for another pod's return, the longest unused first
//! 5. one that still rests, the longest first: the delay is shortened, and that is counted
//!
//! ```
//! use ipam::{Attachment, Ipam, Netns, PortKind, Record, Wish};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let mut ipam = Ipam::open(&directory.path().join("allocations.json"))?;
//! ipam.set_lease(Some("10.244.1.0/24".parse()?), None)?;
//!
//! let attachment = Attachment { container_id: "c0ffee".into(), ifname: "eth0".into() };
//! let record = Record {
//!     network: "weft".into(),
//!     pod: None,
//!     labels: Default::default(),
//!     port: PortKind::Tap {
//!         netns: Netns { path: "/run/netns/c0ffee".into(), device: 4, inode: 4026532177 },
//!     },
//!     extras: Default::default(),
//!     created_unix_s: 1_800_000_000,
//!     boot_id: "2f1c".into(),
//! };
//! let allocation = ipam.allocate(&attachment, record.clone(), &Wish::default())?;
//! assert_eq!(allocation.v4, Some("10.244.1.2".parse()?));
//! assert_eq!(ipam.allocate(&attachment, record, &Wish::default())?, allocation, "the same again");
//!
//! ipam.release(&attachment, 1_800_000_060)?;
//! ipam.release(&attachment, 1_800_000_061)?; // nothing left to do, which is not an error
//! # Ok(())
//! # }
//! ```

mod choice;
mod document;
pub mod policy;
pub mod pool;
pub mod record;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use crate::choice::Chosen;
use crate::document::Document;
pub use crate::policy::{Kept, Policy, Resting, Wish};
pub use crate::pool::{Pool, PrefixTooSmall};
pub use crate::record::{
    Allocation, Attachment, Bandwidth, Extras, HostPort, Mac, Netns, Pod, PortKind, Record,
};
use crate::store::Store;
pub use crate::store::StoreError;

/// Most allocations on one node, far above what a kernel's interfaces allow in practice. It bounds the
/// file and the memory; at the limit [`Ipam::allocate`] fails with [`Error::TooMany`].
pub const ALLOCATIONS_MAX: usize = 16_384;

/// Why a call failed. Nothing has changed then, except as [`Store`] says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Every address of a prefix is held.
    #[error("no free address in {prefix}: {used} in use")]
    Exhausted {
        /// The prefix without a free address.
        prefix: IpNetwork,
        /// How many of its addresses are held.
        used: usize,
    },
    /// The node has no lease yet.
    #[error("this node has no subnet yet, so there is no address to hand out; try again later")]
    NoLease,
    /// The address that was asked for is not one of this node's.
    #[error(
        "{address} was asked for and is not in this node's subnet ({leases}): ask for one that is, or let the pod run on the node that holds it"
    )]
    NotInLease {
        /// The address.
        address: IpAddr,
        /// What the node has.
        leases: String,
    },
    /// The address that was asked for is never handed out.
    #[error("{address} was asked for and lies in {excluded}, which is excluded under [ipam]")]
    Excluded {
        /// The address.
        address: IpAddr,
        /// The range that it lies in.
        excluded: IpNetwork,
    },
    /// The address that was asked for is somebody else's.
    #[error(
        "{address} was asked for and is held by {holder}: ask for another one, or remove that first"
    )]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        holder: String,
    },
    /// The address that was asked for was somebody else's until just now.
    #[error(
        "{address} was asked for and was {holder}'s until just now: it is free in {ready_in_s} s"
    )]
    Rests {
        /// The address.
        address: IpAddr,
        /// Who had it.
        holder: Attachment,
        /// How long it still rests, in seconds.
        ready_in_s: u64,
    },
    /// More than one address of a family was asked for.
    #[error("{0} and {1} were asked for, and an interface has one address of each family")]
    TwoOfAFamily(IpAddr, IpAddr),
    /// The attachment has other addresses than it asks for now.
    #[error("{attachment} holds {held} and asks for {wanted} now: remove it first (DEL)")]
    Holds {
        /// Whose it is.
        attachment: Attachment,
        /// What it has.
        held: String,
        /// What it asks for.
        wanted: String,
    },
    /// The Ethernet address that was asked for is somebody else's.
    #[error("the MAC address {mac} was asked for and is held by {holder}: ask for another one")]
    MacTaken {
        /// The Ethernet address.
        mac: Mac,
        /// Who holds it.
        holder: Attachment,
    },
    /// The limit on the number of allocations is reached.
    #[error("this node already has {ALLOCATIONS_MAX} allocations, which is the most it keeps")]
    TooMany,
    /// The lease cannot be used.
    #[error(transparent)]
    Lease(#[from] PrefixTooSmall),
    /// The file was written by another release.
    #[error(
        "{} has format {found}, and this release reads format {}: use the release that wrote it",
        path.display(), document::FORMAT
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The file could not be read or written, or contradicts itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How much of a prefix is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The prefix.
    pub prefix: IpNetwork,
    /// Addresses that can be handed out, without those that are excluded.
    pub capacity: u128,
    /// Addresses held, or left to pods of other nodes.
    pub used: usize,
    /// Of the others: addresses that rest until they may be somebody else's.
    pub resting: usize,
}

impl Usage {
    /// Addresses that nobody has, also those that rest: under need they are given out.
    pub fn free(&self) -> u128 {
        self.capacity.saturating_sub(self.used as u128)
    }

    /// Whether so few are left that a person should do something: a tenth, or less than four.
    pub fn is_low(&self) -> bool {
        self.free() < (self.capacity / 10).max(LOW_MIN).min(self.capacity.div_ceil(2))
    }
}

/// Fewest free addresses that are not called few.
const LOW_MIN: u128 = 4;

/// The allocations of one node.
#[derive(Debug)]
pub struct Ipam {
    store: Store,
    state: State,
    policy: Policy,
    shortened: u64,
}

/// The content of the file. Invariant: no address appears twice, and the map's keys are the
/// allocations' own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    lease: Lease,
    cursor: Cursor,
    allocations: BTreeMap<Attachment, Allocation>,
    /// Addresses of the lease that pods of other nodes have, and the nodes. None is an allocation's.
    lent: BTreeMap<IpAddr, String>,
    /// Addresses that were given back a short time ago. None is an allocation's.
    resting: BTreeMap<IpAddr, Resting>,
    /// Addresses of pods that are expected to return. None is an allocation's.
    kept: BTreeMap<IpAddr, Kept>,
    /// Derived from `allocations`.
    taken: BTreeSet<IpAddr>,
}

/// The node's part of the cluster's range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lease {
    v4: Option<Ipv4Network>,
    v6: Option<Ipv6Network>,
}

/// The addresses handed out last, from which the search goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cursor {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl Ipam {
    /// Opens the file, or starts empty when there is none.
    ///
    /// # Errors
    /// When the file is held by another process, damaged, or of another format.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let store = Store::open(path)?;
        let state = match store.read::<Document>()? {
            Some(document) => document.into_state(path)?,
            None => State::default(),
        };
        Ok(Self { store, state, policy: Policy::default(), shortened: 0 })
    }

    /// Sets the rules by which addresses are handed out.
    ///
    /// # Errors
    /// When addresses were kept for pods' return, are not to be any more, and the file cannot be written.
    pub fn set_policy(&mut self, policy: Policy) -> Result<(), Error> {
        let mut next = self.state.clone();
        if !policy.sticky {
            next.kept.clear();
        }
        self.commit(next)?;
        self.policy = policy;
        Ok(())
    }

    /// Sets the prefixes that addresses come from. Allocations outside stay as they are and are marked;
    /// those that a later lease contains again lose the mark.
    ///
    /// # Errors
    /// When a prefix has no room for a pod, or the file cannot be written.
    pub fn set_lease(
        &mut self,
        v4: Option<Ipv4Network>,
        v6: Option<Ipv6Network>,
    ) -> Result<(), Error> {
        let lease = Lease { v4, v6 };
        let pools = lease.pools()?;
        let mut next = self.state.clone();
        next.lease = lease;
        for allocation in next.allocations.values_mut() {
            allocation.outside_lease = allocation
                .addresses()
                .any(|address| !pools.iter().flatten().any(|pool| pool.contains(address)));
        }
        next.lent.retain(|address, _| pools.iter().flatten().any(|pool| pool.contains(*address)));
        self.commit(next)
    }

    /// Leaves addresses of the lease to other nodes, whose pods had them before this node held it: they are not
    /// handed out until another call leaves them out. `wanted` says to which node each address goes.
    ///
    /// An address that an attachment here holds, or that is not in the lease, is not lent. Returns what is.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing has changed.
    pub fn lend(
        &mut self,
        wanted: &BTreeMap<IpAddr, String>,
    ) -> Result<&BTreeMap<IpAddr, String>, Error> {
        let pools = self.state.lease.pools()?;
        let mut next = self.state.clone();
        next.lent = wanted.clone();
        next.lent.retain(|address, _| {
            let in_lease = pools.iter().flatten().any(|pool| pool.contains(*address));
            in_lease && !self.state.taken.contains(address)
        });
        self.commit(next)?;
        Ok(&self.state.lent)
    }

    /// The addresses that are left to other nodes, and to which.
    pub fn lent(&self) -> &BTreeMap<IpAddr, String> {
        &self.state.lent
    }

    /// The prefixes that addresses come from.
    pub fn lease(&self) -> (Option<Ipv4Network>, Option<Ipv6Network>) {
        (self.state.lease.v4, self.state.lease.v6)
    }

    /// Gives an attachment one address of each family of the lease, or says which it already has. Now is when
    /// the record was created.
    ///
    /// A repeated call gives the same addresses. What the caller says about the attachment (its
    /// namespace, say, if the runtime made a new one) replaces what was known.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when a family has no free address: then neither is given. When what was asked for
    /// cannot be given.
    pub fn allocate(
        &mut self,
        attachment: &Attachment,
        record: Record,
        wish: &Wish,
    ) -> Result<Allocation, Error> {
        let now = record.created_unix_s;
        let mut next = self.state.clone();
        let mut shortened = 0;
        let allocation = match next.allocations.get_mut(attachment) {
            Some(known) => {
                wish.check_held(known)?;
                let created_unix_s = known.record.created_unix_s;
                known.record = Record { created_unix_s, ..record };
                known.clone()
            }
            None => next.add(attachment, record, wish, &self.policy, &mut shortened)?,
        };
        next.forget_rested(now, &self.policy);
        self.commit(next)?;
        self.shortened += shortened;
        Ok(allocation)
    }

    /// Takes an attachment's addresses back and returns what it held, if anything.
    ///
    /// # Errors
    /// When the file cannot be written; the attachment then still holds its addresses.
    pub fn release(
        &mut self,
        attachment: &Attachment,
        now_unix_s: u64,
    ) -> Result<Option<Allocation>, Error> {
        let mut next = self.state.clone();
        let released = next.remove(attachment, now_unix_s, &self.policy);
        if released.is_some() {
            next.forget_rested(now_unix_s, &self.policy);
        }
        self.commit(next)?;
        Ok(released)
    }

    /// Ends an address's rest, and does not keep it for a pod's return any more. Whether there was anything of
    /// the kind.
    ///
    /// # Errors
    /// When the file cannot be written; then nothing has changed.
    pub fn wake(&mut self, address: IpAddr) -> Result<bool, Error> {
        let mut next = self.state.clone();
        let rested = next.resting.remove(&address).is_some();
        let kept = next.kept.remove(&address).is_some();
        self.commit(next)?;
        Ok(rested || kept)
    }

    /// Releases what is gone: the allocations of an earlier boot, and those for which `is_alive` says no.
    /// Returns them in the order of [`Ipam::iter`].
    ///
    /// # Errors
    /// When the file cannot be written; then nothing is released.
    pub fn reconcile(
        &mut self,
        boot_id: &str,
        now_unix_s: u64,
        is_alive: impl Fn(&Allocation) -> bool,
    ) -> Result<Vec<Allocation>, Error> {
        let gone: Vec<Attachment> = self
            .iter()
            .filter(|allocation| allocation.record.boot_id != boot_id || !is_alive(allocation))
            .map(|allocation| allocation.attachment.clone())
            .collect();
        let mut next = self.state.clone();
        let released = gone
            .iter()
            .filter_map(|attachment| next.remove(attachment, now_unix_s, &self.policy))
            .collect();
        next.forget_rested(now_unix_s, &self.policy);
        self.commit(next)?;
        Ok(released)
    }

    /// What an attachment holds.
    pub fn get(&self, attachment: &Attachment) -> Option<&Allocation> {
        self.state.allocations.get(attachment)
    }

    /// Who holds an address.
    pub fn holder(&self, address: IpAddr) -> Option<&Allocation> {
        self.iter().find(|allocation| allocation.addresses().any(|held| held == address))
    }

    /// All allocations, ordered by container id and interface.
    pub fn iter(&self) -> impl Iterator<Item = &Allocation> {
        self.state.allocations.values()
    }

    /// How much of each of the lease's prefixes is in use, IPv4 first.
    pub fn usage(&self, now_unix_s: u64) -> Vec<Usage> {
        let pools = self.state.lease.pools().unwrap_or_default();
        let rests =
            |address: &&IpAddr| self.state.rests_for(**address, now_unix_s, &self.policy).is_some();
        pools
            .iter()
            .flatten()
            .map(|pool| Usage {
                prefix: pool.prefix(),
                capacity: pool.capacity_without(&self.policy.excluded),
                used: self.state.used(pool),
                resting: (self.state.resting.keys())
                    .filter(|address| pool.contains(**address) && !self.policy.excludes(**address))
                    .filter(rests)
                    .count(),
            })
            .collect()
    }

    /// The addresses that rest, each with how long it still does, in seconds.
    pub fn resting(&self, now_unix_s: u64) -> impl Iterator<Item = (IpAddr, &Resting, u64)> {
        self.state.resting.iter().filter_map(move |(address, resting)| {
            let left_s = self.state.rests_for(*address, now_unix_s, &self.policy)?;
            Some((*address, resting, left_s))
        })
    }

    /// The addresses that are kept for pods' return.
    pub fn kept(&self) -> &BTreeMap<IpAddr, Kept> {
        &self.state.kept
    }

    /// The rules.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How often since the start an address was given out that still rested, because no other was free.
    pub fn shortened(&self) -> u64 {
        self.shortened
    }

    /// Writes the new state, if it is one, and only then takes it over.
    fn commit(&mut self, next: State) -> Result<(), Error> {
        if next != self.state {
            self.store.write(&Document::from(&next))?;
            self.state = next;
        }
        Ok(())
    }
}

impl State {
    fn add(
        &mut self,
        attachment: &Attachment,
        record: Record,
        wish: &Wish,
        policy: &Policy,
        shortened: &mut u64,
    ) -> Result<Allocation, Error> {
        if self.allocations.len() >= ALLOCATIONS_MAX {
            return Err(Error::TooMany);
        }
        let pools = self.lease.pools()?;
        if pools.iter().all(Option::is_none) {
            return Err(Error::NoLease);
        }
        self.check_mac(wish)?;
        let wanted = wish.by_family(&pools)?;
        let (mut v4, mut v6) = (None, None);
        for (pool, wanted) in pools.iter().zip(wanted) {
            let Some(pool) = pool else { continue };
            let Chosen { address, had_rest_left } =
                self.choose(pool, wanted, attachment, &record, wish, policy)?;
            *shortened += u64::from(had_rest_left);
            self.resting.remove(&address);
            self.kept.remove(&address);
            match address {
                IpAddr::V4(address) => v4 = Some(address),
                IpAddr::V6(address) => v6 = Some(address),
            }
            // What was asked for says nothing of the order of the others.
            match (wanted, address) {
                (Some(_), _) => {}
                (None, IpAddr::V4(_)) => self.cursor.v4 = Some(address),
                (None, IpAddr::V6(_)) => self.cursor.v6 = Some(address),
            }
        }
        let own = record.port.mac().or(wish.mac);
        let allocation = Allocation {
            attachment: attachment.clone(),
            v4,
            v6,
            mac: own.unwrap_or_else(|| Mac::for_addresses(v4, v6)),
            outside_lease: false,
            record,
        };
        self.taken.extend(allocation.addresses());
        self.allocations.insert(attachment.clone(), allocation.clone());
        Ok(allocation)
    }

    fn remove(
        &mut self,
        attachment: &Attachment,
        now_unix_s: u64,
        policy: &Policy,
    ) -> Option<Allocation> {
        let allocation = self.allocations.remove(attachment)?;
        for address in allocation.addresses() {
            self.taken.remove(&address);
            self.rest(address, &allocation, now_unix_s, policy);
        }
        Some(allocation)
    }

    fn used(&self, pool: &Pool) -> usize {
        let unfree = self.taken.iter().chain(self.lent.keys());
        unfree.filter(|address| pool.contains(**address)).count()
    }
}

impl Lease {
    /// The pools of both families, IPv4 first.
    fn pools(&self) -> Result<[Option<Pool>; 2], PrefixTooSmall> {
        Ok([
            self.v4.map(|prefix| Pool::new(prefix.into())).transpose()?,
            self.v6.map(|prefix| Pool::new(prefix.into())).transpose()?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::document::FORMAT;

    const NOW: u64 = 1_800_000_000;

    fn attachment(id: u32) -> Attachment {
        Attachment { container_id: format!("c{id}"), ifname: "eth0".into() }
    }

    fn netns(inode: u64) -> Netns {
        Netns { path: "/run/netns/a".into(), device: 4, inode }
    }

    fn record(boot_id: &str) -> Record {
        Record {
            network: "weft".into(),
            pod: Some(Pod { namespace: "default".into(), name: "web-0".into(), uid: None }),
            labels: BTreeMap::new(),
            port: PortKind::Tap { netns: netns(40) },
            extras: Extras::default(),
            created_unix_s: NOW,
            boot_id: boot_id.into(),
        }
    }

    fn dual_stack(directory: &tempfile::TempDir) -> Ipam {
        let mut ipam = Ipam::open(&directory.path().join("allocations.json")).unwrap();
        ipam.set_lease(
            Some("10.244.1.0/29".parse().unwrap()),
            Some("fd00:10:244:1::/64".parse().unwrap()),
        )
        .unwrap();
        ipam
    }

    #[test]
    fn addresses_go_round_and_the_cursor_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        for id in 0..3 {
            ipam.allocate(&attachment(id), record("b"), &Wish::default()).unwrap();
        }
        let held = ipam.release(&attachment(2), NOW).unwrap().unwrap();
        assert_eq!(held.v4, Some("10.244.1.4".parse().unwrap()));
        drop(ipam);
        let mut ipam = Ipam::open(&directory.path().join("allocations.json")).unwrap();
        let next = ipam.allocate(&attachment(3), record("b"), &Wish::default()).unwrap();
        assert_eq!(next.v4, Some("10.244.1.5".parse().unwrap()), "not the one just given back");
        assert_eq!(next.v6, Some("fd00:10:244:1::5".parse().unwrap()));
        assert_eq!(next.mac.to_string(), "0a:58:0a:f4:01:05");
    }

    #[test]
    fn a_repeated_add_keeps_the_addresses_and_learns_the_new_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        let first = ipam.allocate(&attachment(1), record("b"), &Wish::default()).unwrap();
        let mut again = record("b");
        again.port = PortKind::Tap { netns: netns(41) };
        again.created_unix_s += 9;
        let second = ipam.allocate(&attachment(1), again, &Wish::default()).unwrap();
        assert_eq!((first.v4, first.v6, first.mac), (second.v4, second.v6, second.mac));
        assert_eq!(second.record.port.netns(), Some(&netns(41)));
        assert_eq!(second.record.created_unix_s, first.record.created_unix_s);
        assert_eq!(ipam.get(&attachment(1)), Some(&second));
    }

    #[test]
    fn exhaustion_names_the_prefix_and_gives_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        for id in 0..5 {
            ipam.allocate(&attachment(id), record("b"), &Wish::default()).unwrap();
        }
        let error = ipam.allocate(&attachment(9), record("b"), &Wish::default()).unwrap_err();
        assert_eq!(error.to_string(), "no free address in 10.244.1.0/29: 5 in use");
        assert_eq!(ipam.get(&attachment(9)), None);
        assert_eq!(ipam.usage(NOW)[1].used, 5, "no IPv6 address was taken either");
        ipam.release(&attachment(3), NOW).unwrap();
        let last = ipam.allocate(&attachment(9), record("b"), &Wish::default()).unwrap();
        assert_eq!(last.v4, Some("10.244.1.5".parse().unwrap()));
    }

    #[test]
    fn without_a_lease_there_is_no_address() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(&directory.path().join("allocations.json")).unwrap();
        assert!(matches!(
            ipam.allocate(&attachment(1), record("b"), &Wish::default()),
            Err(Error::NoLease)
        ));
        assert!(matches!(
            ipam.set_lease(Some("10.0.0.0/31".parse().unwrap()), None),
            Err(Error::Lease(_))
        ));
        assert_eq!(ipam.lease(), (None, None));
    }

    #[test]
    fn a_changed_lease_keeps_and_marks_what_is_outside() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        let old = ipam.allocate(&attachment(1), record("b"), &Wish::default()).unwrap();
        let (v4, v6) = ipam.lease();
        ipam.set_lease(Some("10.244.7.0/24".parse().unwrap()), v6).unwrap();
        let kept = ipam.get(&attachment(1)).unwrap();
        assert!(kept.outside_lease);
        assert_eq!(kept.v4, old.v4);
        let new = ipam.allocate(&attachment(2), record("b"), &Wish::default()).unwrap();
        assert_eq!(new.v4, Some("10.244.7.2".parse().unwrap()));
        assert!(!new.outside_lease);
        ipam.set_lease(v4, v6).unwrap();
        assert!(!ipam.get(&attachment(1)).unwrap().outside_lease);
        assert!(ipam.get(&attachment(2)).unwrap().outside_lease);
    }

    #[test]
    fn an_address_that_is_lent_is_not_handed_out_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        let held = ipam.allocate(&attachment(1), record("b"), &Wish::default()).unwrap();
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let wanted: BTreeMap<_, _> =
            ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.9.2", "fd00:10:244:1::3"]
                .map(|text| (address(text), "n2".to_owned()))
                .into();
        let lent: Vec<_> = ipam.lend(&wanted).unwrap().keys().copied().collect();
        assert_eq!(held.v4.map(IpAddr::from), Some(address("10.244.1.2")), "used here");
        assert_eq!(lent, ["10.244.1.3", "10.244.1.4", "fd00:10:244:1::3"].map(address));
        assert_eq!(ipam.usage(NOW)[0].used, 3);
        drop(ipam);
        let mut ipam = Ipam::open(&directory.path().join("allocations.json")).unwrap();
        let next = ipam.allocate(&attachment(2), record("b"), &Wish::default()).unwrap();
        assert_eq!(next.v4, Some("10.244.1.5".parse().unwrap()));
        assert_eq!(next.v6, Some("fd00:10:244:1::4".parse().unwrap()));
        ipam.lend(&BTreeMap::new()).unwrap();
        for id in 3..6 {
            ipam.allocate(&attachment(id), record("b"), &Wish::default()).unwrap();
        }
        assert!(ipam.holder(address("10.244.1.3")).is_some(), "free again");
        ipam.lend(&wanted).unwrap();
        ipam.set_lease(Some("10.244.7.0/24".parse().unwrap()), None).unwrap();
        assert!(ipam.lent().is_empty());
    }

    #[test]
    fn reconcile_releases_the_dead_and_those_of_an_earlier_boot() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        for (id, boot) in [(1, "old"), (2, "new"), (3, "new"), (4, "old")] {
            ipam.allocate(&attachment(id), record(boot), &Wish::default()).unwrap();
        }
        let released = ipam
            .reconcile("new", NOW, |allocation| allocation.attachment != attachment(3))
            .unwrap();
        let released: Vec<_> = released.into_iter().map(|gone| gone.attachment).collect();
        assert_eq!(released, [attachment(1), attachment(3), attachment(4)]);
        drop(ipam);
        let ipam = Ipam::open(&directory.path().join("allocations.json")).unwrap();
        let left: Vec<_> = ipam.iter().map(|allocation| allocation.attachment.clone()).collect();
        assert_eq!(left, [attachment(2)]);
    }

    #[test]
    fn the_holder_of_an_address_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        let held = ipam.allocate(&attachment(1), record("b"), &Wish::default()).unwrap();
        for address in held.addresses() {
            assert_eq!(ipam.holder(address).unwrap().attachment, attachment(1));
        }
        assert_eq!(ipam.holder("10.244.1.6".parse().unwrap()), None);
    }

    #[test]
    fn a_file_cut_in_half_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allocations.json");
        let mut ipam = dual_stack(&directory);
        ipam.allocate(&attachment(1), record("b"), &Wish::default()).unwrap();
        drop(ipam);
        let whole = fs::read(&path).unwrap();
        let half = &whole[..whole.len() / 2];
        fs::write(&path, half).unwrap();
        let error = Ipam::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("allocations.json is damaged (the checksum line is missing"),
            "{error}"
        );
        assert!(error.contains("Restore it from a backup"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), half, "evidence is not touched");
    }

    #[test]
    fn a_contradictory_or_foreign_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allocations.json");
        let held =
            dual_stack(&directory).allocate(&attachment(1), record("b"), &Wish::default()).unwrap();
        let mut twin = held.clone();
        twin.attachment = attachment(2);
        let document = |format, allocations| Document {
            format,
            lease: Lease::default(),
            cursor: Cursor::default(),
            allocations,
            lent: BTreeMap::new(),
            resting: BTreeMap::new(),
            kept: BTreeMap::new(),
        };
        Store::open(&path).unwrap().write(&document(FORMAT, vec![held, twin])).unwrap();
        let error = Ipam::open(&path).unwrap_err().to_string();
        assert!(error.contains("10.244.1.2 is held twice"), "{error}");
        Store::open(&path).unwrap().write(&document(2, vec![])).unwrap();
        assert!(matches!(Ipam::open(&path), Err(Error::Format { found: 2, .. })));
    }

    #[test]
    fn an_address_rests_before_somebody_else_gets_it_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        for id in 0..5 {
            ipam.allocate(&attachment(id), record("b"), &Wish::default()).unwrap();
        }
        ipam.release(&attachment(4), NOW + 1).unwrap();
        ipam.release(&attachment(1), NOW + 2).unwrap();
        drop(ipam);
        let mut ipam = Ipam::open(&directory.path().join("allocations.json")).unwrap();
        let resting: Vec<_> = ipam
            .resting(NOW + 3)
            .map(|(ip, who, left)| (ip.to_string(), who.attachment.clone(), left))
            .collect();
        assert_eq!(resting[0], ("10.244.1.3".to_owned(), attachment(1), 59));
        assert_eq!(resting[1], ("10.244.1.6".to_owned(), attachment(4), 58));
        assert_eq!((ipam.usage(NOW + 3)[0].used, ipam.usage(NOW + 3)[0].resting), (3, 2));
        // Nothing else is left: the one that has rested longest, and that is counted.
        let at = |s| Record { created_unix_s: NOW + s, ..record("b") };
        let early = ipam.allocate(&attachment(7), at(10), &Wish::default()).unwrap();
        assert_eq!(early.v4, Some("10.244.1.6".parse().unwrap()));
        assert_eq!(ipam.shortened(), 1);
        let late = ipam.allocate(&attachment(8), at(62), &Wish::default()).unwrap();
        assert_eq!(late.v4, Some("10.244.1.3".parse().unwrap()));
        assert_eq!((ipam.shortened(), ipam.resting(NOW + 62).count()), (1, 0));
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_rest_longer() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        ipam.allocate(&attachment(1), record("b"), &Wish::default()).unwrap();
        ipam.release(&attachment(1), NOW + 86_400).unwrap();
        assert_eq!(ipam.resting(NOW).next().unwrap().2, 60);
        // From the next change on, that is written down, too.
        ipam.allocate(&attachment(2), record("b"), &Wish::default()).unwrap();
        assert_eq!(ipam.resting(NOW + 59).next().unwrap().2, 1);
        assert_eq!(ipam.resting(NOW + 60).count(), 0);
    }

    #[test]
    fn an_address_can_be_asked_for_and_refusals_say_why() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        let excluded = vec!["10.244.1.5/32".parse().unwrap()];
        ipam.set_policy(Policy { excluded, ..Policy::default() }).unwrap();
        let ask = |text: &str| Wish { addresses: vec![text.parse().unwrap()], ..Wish::default() };
        let mac = Some(Mac([2, 0, 0, 0, 0, 7]));
        let wish = Wish { mac, ..ask("10.244.1.4") };
        let held = ipam.allocate(&attachment(1), record("b"), &wish).unwrap();
        assert_eq!((held.v4, Some(held.mac)), (Some("10.244.1.4".parse().unwrap()), mac));
        assert_eq!(
            held.v6,
            Some("fd00:10:244:1::2".parse().unwrap()),
            "any, where none was asked for"
        );
        assert_eq!(ipam.allocate(&attachment(1), record("b"), &wish).unwrap(), held);
        let mut why = |wish: &Wish| {
            let error = ipam.allocate(&attachment(2), record("b"), wish).unwrap_err();
            assert_eq!(ipam.get(&attachment(2)), None);
            error.to_string()
        };
        assert!(why(&ask("10.244.1.4")).contains("held by c1/eth0"));
        assert!(why(&ask("10.244.1.5")).contains("10.244.1.5/32, which is excluded"));
        for outside in ["10.244.1.1", "10.244.2.4", "fd01::1"] {
            assert!(why(&ask(outside)).contains("10.244.1.0/29"), "{outside}");
        }
        assert!(why(&Wish { mac, ..Wish::default() }).contains("02:00:00:00:00:07 was asked for"));
        let two = ["10.244.1.2", "10.244.1.3"].map(|text| text.parse().unwrap()).to_vec();
        assert!(why(&Wish { addresses: two, ..Wish::default() }).contains("each family"));
        let error = ipam.allocate(&attachment(1), record("b"), &ask("10.244.1.6")).unwrap_err();
        assert!(error.to_string().contains("asks for 10.244.1.6 now"), "{error}");

        ipam.release(&attachment(1), NOW).unwrap();
        let stranger = Record { pod: None, ..record("b") };
        let error = ipam.allocate(&attachment(2), stranger.clone(), &ask("10.244.1.4"));
        assert!(error.unwrap_err().to_string().contains("was c1/eth0's"));
        let delegated = Wish { is_delegated: true, ..ask("10.244.1.4") };
        ipam.allocate(&attachment(2), stranger, &delegated).unwrap();
        ipam.release(&attachment(2), NOW).unwrap();
        assert!(ipam.wake("10.244.1.4".parse().unwrap()).unwrap());
        assert!(!ipam.wake("10.244.1.4".parse().unwrap()).unwrap());
        ipam.allocate(&attachment(3), record("b"), &ask("10.244.1.4")).unwrap();
    }

    #[test]
    fn a_pod_of_the_same_name_gets_its_addresses_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        ipam.set_policy(Policy { sticky: true, ..Policy::default() }).unwrap();
        let named = |name: &str, at| {
            let pod = Some(Pod { namespace: "db".into(), name: name.into(), uid: None });
            Record { pod, created_unix_s: at, ..record("b") }
        };
        let first = ipam.allocate(&attachment(1), named("pg-0", NOW), &Wish::default()).unwrap();
        ipam.release(&attachment(1), NOW).unwrap();
        // Others pass it by, also when it has rested.
        let others: Vec<_> = (2..6)
            .map(|id| {
                ipam.allocate(
                    &attachment(id),
                    named(&format!("x{id}"), NOW + 500),
                    &Wish::default(),
                )
            })
            .collect::<Result<_, _>>()
            .unwrap();
        assert!(others.iter().all(|other| other.v4 != first.v4));
        ipam.release(&attachment(2), NOW + 500).unwrap();
        let again =
            ipam.allocate(&attachment(9), named("pg-0", NOW + 501), &Wish::default()).unwrap();
        assert_eq!((again.v4, again.v6, again.mac), (first.v4, first.v6, first.mac));
        ipam.release(&attachment(9), NOW + 502).unwrap();
        // Under need it goes to another pod, after those that are kept for nobody.
        let next = ipam.allocate(&attachment(10), named("y", NOW + 600), &Wish::default()).unwrap();
        assert_eq!(next.v4, Some("10.244.1.3".parse().unwrap()), "kept for x2, the longest unused");
        let last = ipam.allocate(&attachment(11), named("z", NOW + 600), &Wish::default()).unwrap();
        assert_eq!((last.v4, ipam.shortened()), (first.v4, 0));
        ipam.set_policy(Policy::default()).unwrap();
        assert!(ipam.kept().is_empty());
    }

    #[test]
    fn few_free_addresses_are_known_before_there_are_none() {
        let usage = |capacity, used| Usage {
            prefix: "10.244.1.0/24".parse().unwrap(),
            capacity,
            used,
            resting: 0,
        };
        assert!(!usage(253, 228).is_low() && usage(253, 229).is_low());
        assert!(!usage(13, 9).is_low() && usage(13, 10).is_low());
        assert!(!usage(5, 2).is_low() && usage(5, 3).is_low());
        assert!(!usage(1, 0).is_low() && usage(1, 1).is_low());
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        ipam.allocate(&attachment(1), record("b"), &Wish::default()).unwrap();
        let before = ipam.state.clone();
        ipam.store.crash = Some(store::Crash { after: store::Step::Write, kept_percent: 50 });
        assert!(ipam.allocate(&attachment(2), record("b"), &Wish::default()).is_err());
        assert_eq!(ipam.state, before);
        ipam.allocate(&attachment(2), record("b"), &Wish::default()).unwrap();
    }
}

#[cfg(test)]
mod model;
