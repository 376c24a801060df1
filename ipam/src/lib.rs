//! The addresses of one node's pods: which are free, who holds which, since when.
//!
//! The node's lease is a prefix per family. Each attachment (one interface of one container) holds at
//! most one address of each. [`Ipam`] keeps the list in memory and in one file; a change is on disk
//! before the call that made it returns, so that no address is given twice, whatever dies when.
//!
//! ```
//! use ipam::{Attachment, Ipam, Netns, PortKind, Record};
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
//!     created_unix_s: 1_800_000_000,
//!     boot_id: "2f1c".into(),
//! };
//! let allocation = ipam.allocate(&attachment, record.clone())?;
//! assert_eq!(allocation.v4, Some("10.244.1.2".parse()?));
//! assert_eq!(ipam.allocate(&attachment, record)?, allocation, "the same answer again");
//!
//! ipam.release(&attachment)?;
//! ipam.release(&attachment)?; // nothing left to do, which is not an error
//! # Ok(())
//! # }
//! ```

pub mod pool;
pub mod record;
pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

pub use crate::pool::{Pool, PrefixTooSmall};
pub use crate::record::{Allocation, Attachment, Mac, Netns, Pod, PortKind, Record};
use crate::store::Store;
pub use crate::store::StoreError;

/// Most allocations on one node, far above what a kernel's interfaces allow in practice. It bounds the
/// file and the memory; at the limit [`Ipam::allocate`] fails with [`Error::TooMany`].
pub const ALLOCATIONS_MAX: usize = 16_384;

/// The layout of the file. A file with another number is refused.
const FORMAT: u32 = 1;

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
    /// The limit on the number of allocations is reached.
    #[error("this node already has {ALLOCATIONS_MAX} allocations, which is the most it keeps")]
    TooMany,
    /// The lease cannot be used.
    #[error(transparent)]
    Lease(#[from] PrefixTooSmall),
    /// The file was written by another release.
    #[error(
        "{} has format {found}, and this release reads format {FORMAT}: use the release that wrote it",
        path.display()
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
    /// Addresses that can be handed out.
    pub capacity: u128,
    /// Addresses held, or left to pods of other nodes.
    pub used: usize,
}

/// The allocations of one node.
#[derive(Debug)]
pub struct Ipam {
    store: Store,
    state: State,
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
        Ok(Self { store, state })
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

    /// Gives an attachment one address of each family of the lease, or says which it already has.
    ///
    /// A repeated call gives the same addresses. What the caller says about the attachment (its
    /// namespace, say, if the runtime made a new one) replaces what was known.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when a family has no free address: then neither is given.
    pub fn allocate(
        &mut self,
        attachment: &Attachment,
        record: Record,
    ) -> Result<Allocation, Error> {
        let mut next = self.state.clone();
        let allocation = match next.allocations.get_mut(attachment) {
            Some(known) => {
                let created_unix_s = known.record.created_unix_s;
                known.record = Record { created_unix_s, ..record };
                known.clone()
            }
            None => next.add(attachment, record)?,
        };
        self.commit(next)?;
        Ok(allocation)
    }

    /// Takes an attachment's addresses back and returns what it held, if anything.
    ///
    /// # Errors
    /// When the file cannot be written; the attachment then still holds its addresses.
    pub fn release(&mut self, attachment: &Attachment) -> Result<Option<Allocation>, Error> {
        let mut next = self.state.clone();
        let released = next.remove(attachment);
        self.commit(next)?;
        Ok(released)
    }

    /// Releases what is gone: the allocations of an earlier boot, and those for which `is_alive` says no.
    /// Returns them in the order of [`Ipam::iter`].
    ///
    /// # Errors
    /// When the file cannot be written; then nothing is released.
    pub fn reconcile(
        &mut self,
        boot_id: &str,
        is_alive: impl Fn(&Allocation) -> bool,
    ) -> Result<Vec<Allocation>, Error> {
        let gone: Vec<Attachment> = self
            .iter()
            .filter(|allocation| allocation.record.boot_id != boot_id || !is_alive(allocation))
            .map(|allocation| allocation.attachment.clone())
            .collect();
        let mut next = self.state.clone();
        let released = gone.iter().filter_map(|attachment| next.remove(attachment)).collect();
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
    pub fn usage(&self) -> Vec<Usage> {
        let pools = self.state.lease.pools().unwrap_or_default();
        pools
            .iter()
            .flatten()
            .map(|pool| Usage {
                prefix: pool.prefix(),
                capacity: pool.capacity(),
                used: self.state.used(pool),
            })
            .collect()
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
    fn add(&mut self, attachment: &Attachment, record: Record) -> Result<Allocation, Error> {
        if self.allocations.len() >= ALLOCATIONS_MAX {
            return Err(Error::TooMany);
        }
        let [pool_v4, pool_v6] = self.lease.pools()?;
        if pool_v4.is_none() && pool_v6.is_none() {
            return Err(Error::NoLease);
        }
        let (mut v4, mut v6) = (None, None);
        if let Some(IpAddr::V4(address)) = self.pick(pool_v4, self.cursor.v4)? {
            v4 = Some(address);
            self.cursor.v4 = Some(address.into());
        }
        if let Some(IpAddr::V6(address)) = self.pick(pool_v6, self.cursor.v6)? {
            v6 = Some(address);
            self.cursor.v6 = Some(address.into());
        }
        let allocation = Allocation {
            attachment: attachment.clone(),
            v4,
            v6,
            mac: record.port.mac().unwrap_or_else(|| Mac::for_addresses(v4, v6)),
            outside_lease: false,
            record,
        };
        self.taken.extend(allocation.addresses());
        self.allocations.insert(attachment.clone(), allocation.clone());
        Ok(allocation)
    }

    fn remove(&mut self, attachment: &Attachment) -> Option<Allocation> {
        let allocation = self.allocations.remove(attachment)?;
        for address in allocation.addresses() {
            self.taken.remove(&address);
        }
        Some(allocation)
    }

    fn pick(&self, pool: Option<Pool>, cursor: Option<IpAddr>) -> Result<Option<IpAddr>, Error> {
        let Some(pool) = pool else { return Ok(None) };
        let is_taken = |address| self.taken.contains(&address) || self.lent.contains_key(&address);
        match pool.next_free(cursor, is_taken) {
            Some(address) => Ok(Some(address)),
            None => Err(Error::Exhausted { prefix: pool.prefix(), used: self.used(&pool) }),
        }
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

/// The file as people see it.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    format: u32,
    #[serde(default)]
    lease: Lease,
    #[serde(default)]
    cursor: Cursor,
    #[serde(default)]
    allocations: Vec<Allocation>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    lent: BTreeMap<IpAddr, String>,
}

impl From<&State> for Document {
    fn from(state: &State) -> Self {
        Self {
            format: FORMAT,
            lease: state.lease,
            cursor: state.cursor,
            allocations: state.allocations.values().cloned().collect(),
            lent: state.lent.clone(),
        }
    }
}

impl Document {
    fn into_state(self, path: &Path) -> Result<State, Error> {
        if self.format != FORMAT {
            return Err(Error::Format { path: path.to_owned(), found: self.format });
        }
        let damaged = |why| Error::Store(StoreError::Damaged { path: path.to_owned(), why });
        let mut state = State { lease: self.lease, cursor: self.cursor, ..State::default() };
        state.lease.pools()?;
        for allocation in self.allocations {
            for address in allocation.addresses() {
                if !state.taken.insert(address) {
                    return Err(damaged(format!("{address} is held twice")));
                }
            }
            let attachment = allocation.attachment.clone();
            if state.allocations.insert(attachment.clone(), allocation).is_some() {
                return Err(damaged(format!("{attachment} appears twice")));
            }
        }
        if let Some(address) = self.lent.keys().find(|address| state.taken.contains(*address)) {
            return Err(damaged(format!("{address} is held here and left to another node")));
        }
        state.lent = self.lent;
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
            created_unix_s: 1_800_000_000,
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
            ipam.allocate(&attachment(id), record("b")).unwrap();
        }
        let held = ipam.release(&attachment(2)).unwrap().unwrap();
        assert_eq!(held.v4, Some("10.244.1.4".parse().unwrap()));
        drop(ipam);
        let mut ipam = Ipam::open(&directory.path().join("allocations.json")).unwrap();
        let next = ipam.allocate(&attachment(3), record("b")).unwrap();
        assert_eq!(next.v4, Some("10.244.1.5".parse().unwrap()), "not the one just given back");
        assert_eq!(next.v6, Some("fd00:10:244:1::5".parse().unwrap()));
        assert_eq!(next.mac.to_string(), "0a:58:0a:f4:01:05");
    }

    #[test]
    fn a_repeated_add_keeps_the_addresses_and_learns_the_new_namespace() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        let first = ipam.allocate(&attachment(1), record("b")).unwrap();
        let mut again = record("b");
        again.port = PortKind::Tap { netns: netns(41) };
        again.created_unix_s += 9;
        let second = ipam.allocate(&attachment(1), again).unwrap();
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
            ipam.allocate(&attachment(id), record("b")).unwrap();
        }
        let error = ipam.allocate(&attachment(9), record("b")).unwrap_err();
        assert_eq!(error.to_string(), "no free address in 10.244.1.0/29: 5 in use");
        assert_eq!(ipam.get(&attachment(9)), None);
        assert_eq!(ipam.usage()[1].used, 5, "no IPv6 address was taken either");
        ipam.release(&attachment(3)).unwrap();
        let last = ipam.allocate(&attachment(9), record("b")).unwrap();
        assert_eq!(last.v4, Some("10.244.1.5".parse().unwrap()));
    }

    #[test]
    fn without_a_lease_there_is_no_address() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(&directory.path().join("allocations.json")).unwrap();
        assert!(matches!(ipam.allocate(&attachment(1), record("b")), Err(Error::NoLease)));
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
        let old = ipam.allocate(&attachment(1), record("b")).unwrap();
        let (v4, v6) = ipam.lease();
        ipam.set_lease(Some("10.244.7.0/24".parse().unwrap()), v6).unwrap();
        let kept = ipam.get(&attachment(1)).unwrap();
        assert!(kept.outside_lease);
        assert_eq!(kept.v4, old.v4);
        let new = ipam.allocate(&attachment(2), record("b")).unwrap();
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
        let held = ipam.allocate(&attachment(1), record("b")).unwrap();
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let wanted: BTreeMap<_, _> =
            ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.9.2", "fd00:10:244:1::3"]
                .map(|text| (address(text), "n2".to_owned()))
                .into();
        let lent: Vec<_> = ipam.lend(&wanted).unwrap().keys().copied().collect();
        assert_eq!(held.v4.map(IpAddr::from), Some(address("10.244.1.2")), "used here");
        assert_eq!(lent, ["10.244.1.3", "10.244.1.4", "fd00:10:244:1::3"].map(address));
        assert_eq!(ipam.usage()[0].used, 3);
        drop(ipam);
        let mut ipam = Ipam::open(&directory.path().join("allocations.json")).unwrap();
        let next = ipam.allocate(&attachment(2), record("b")).unwrap();
        assert_eq!(next.v4, Some("10.244.1.5".parse().unwrap()));
        assert_eq!(next.v6, Some("fd00:10:244:1::4".parse().unwrap()));
        ipam.lend(&BTreeMap::new()).unwrap();
        for id in 3..6 {
            ipam.allocate(&attachment(id), record("b")).unwrap();
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
            ipam.allocate(&attachment(id), record(boot)).unwrap();
        }
        let released =
            ipam.reconcile("new", |allocation| allocation.attachment != attachment(3)).unwrap();
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
        let held = ipam.allocate(&attachment(1), record("b")).unwrap();
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
        ipam.allocate(&attachment(1), record("b")).unwrap();
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
        let held = dual_stack(&directory).allocate(&attachment(1), record("b")).unwrap();
        let mut twin = held.clone();
        twin.attachment = attachment(2);
        let document = |format, allocations| Document {
            format,
            lease: Lease::default(),
            cursor: Cursor::default(),
            allocations,
            lent: BTreeMap::new(),
        };
        Store::open(&path).unwrap().write(&document(FORMAT, vec![held, twin])).unwrap();
        let error = Ipam::open(&path).unwrap_err().to_string();
        assert!(error.contains("10.244.1.2 is held twice"), "{error}");
        Store::open(&path).unwrap().write(&document(2, vec![])).unwrap();
        assert!(matches!(Ipam::open(&path), Err(Error::Format { found: 2, .. })));
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = dual_stack(&directory);
        ipam.allocate(&attachment(1), record("b")).unwrap();
        let before = ipam.state.clone();
        ipam.store.crash = Some(store::Crash { after: store::Step::Write, kept_percent: 50 });
        assert!(ipam.allocate(&attachment(2), record("b")).is_err());
        assert_eq!(ipam.state, before);
        ipam.allocate(&attachment(2), record("b")).unwrap();
    }
}

#[cfg(test)]
mod model;
