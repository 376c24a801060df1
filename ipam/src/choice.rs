//! Which free address an attachment gets, and how addresses rest (pure).

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::policy::{Kept, Policy, Resting, Wish};
use crate::pool::Pool;
use crate::record::{Allocation, Attachment, Pod, Record};
use crate::{Error, State};

/// Most addresses that rest, or that are kept, at once. They bound the file; beyond, the oldest is forgotten.
const RESTING_MAX: usize = 16_384;
const KEPT_MAX: usize = 4096;

/// An address that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) address: IpAddr,
    /// Whether it should have rested for longer.
    pub(crate) had_rest_left: bool,
}

impl State {
    /// Chooses one of `pool`, or checks the one that is `wanted`.
    pub(crate) fn choose(
        &self,
        pool: &Pool,
        wanted: Option<IpAddr>,
        attachment: &Attachment,
        record: &Record,
        wish: &Wish,
        policy: &Policy,
    ) -> Result<Chosen, Error> {
        let now = record.created_unix_s;
        let rested = |address| Chosen { address, had_rest_left: false };
        if let Some(address) = wanted {
            self.check_wanted(address, attachment, record, wish, policy)?;
            return Ok(rested(address));
        }
        let is_out = |address: IpAddr| {
            self.taken.contains(&address)
                || self.lent.contains_key(&address)
                || policy.excludes(address)
        };
        let rests = |address| self.rests_for(address, now, policy).is_some();
        let usable = |address: &IpAddr| pool.contains(*address) && !is_out(*address);

        let is_own = |kept: &Kept| is_same_pod(kept, attachment, record.pod.as_ref());
        let own = self.kept.iter().filter(|(address, kept)| is_own(kept) && usable(address));
        // Nobody out there means another pod by it.
        if let Some((address, _)) = own.max_by_key(|(_, kept)| kept.released_unix_s) {
            return Ok(rested(*address));
        }
        let cursor = if pool.prefix().is_ipv4() { self.cursor.v4 } else { self.cursor.v6 };
        let free = pool.next_free(cursor, &policy.excluded, |address| {
            is_out(address) || rests(address) || self.kept.contains_key(&address)
        });
        if let Some(address) = free {
            return Ok(rested(address));
        }
        let kept = self.kept.iter().filter(|(address, _)| usable(address) && !rests(**address));
        if let Some((address, _)) = kept.min_by_key(|(_, kept)| kept.released_unix_s) {
            return Ok(rested(*address));
        }
        let resting = self.resting.iter().filter(|(address, _)| usable(address));
        match resting.min_by_key(|(_, resting)| resting.released_unix_s) {
            Some((address, _)) => Ok(Chosen { address: *address, had_rest_left: true }),
            None => Err(Error::Exhausted { prefix: pool.prefix(), used: self.used(pool) }),
        }
    }

    fn check_wanted(
        &self,
        address: IpAddr,
        attachment: &Attachment,
        record: &Record,
        wish: &Wish,
        policy: &Policy,
    ) -> Result<(), Error> {
        if let Some(excluded) = policy.excluding(address) {
            return Err(Error::Excluded { address, excluded });
        }
        let has_it = |held: &&Allocation| held.addresses().any(|held| held == address);
        if let Some(holder) = self.allocations.values().find(has_it) {
            return Err(Error::Taken { address, holder: holder.attachment.to_string() });
        }
        if let Some(node) = self.lent.get(&address) {
            return Err(Error::Taken { address, holder: format!("a pod of node {node}") });
        }
        let Some(ready_in_s) = self.rests_for(address, record.created_unix_s, policy) else {
            return Ok(());
        };
        let resting = self.resting.get(&address).filter(|resting| {
            let same_name = match (&resting.pod, &record.pod) {
                (Some(former), Some(pod)) => name_of(former) == name_of(pod),
                (Some(_), None) | (None, Some(_)) | (None, None) => false,
            };
            !wish.is_delegated && !same_name && resting.attachment != *attachment
        });
        match resting {
            Some(Resting { attachment: holder, .. }) => {
                Err(Error::Rests { address, holder: holder.clone(), ready_in_s })
            }
            None => Ok(()),
        }
    }

    pub(crate) fn check_mac(&self, wish: &Wish) -> Result<(), Error> {
        let Some(mac) = wish.mac else { return Ok(()) };
        match self.allocations.values().find(|held| held.mac == mac) {
            Some(held) => Err(Error::MacTaken { mac, holder: held.attachment.clone() }),
            None => Ok(()),
        }
    }

    /// How long an address still rests, in seconds; `None` when it does not.
    pub(crate) fn rests_for(
        &self,
        address: IpAddr,
        now_unix_s: u64,
        policy: &Policy,
    ) -> Option<u64> {
        let resting = self.resting.get(&address)?;
        // A clock that was set back must not keep it for longer than the delay.
        let rested_s = now_unix_s.saturating_sub(resting.released_unix_s.min(now_unix_s));
        policy.reuse_delay_s.checked_sub(rested_s).filter(|left_s| *left_s > 0)
    }

    /// Lets an address rest that was given back, and keeps it for its pod.
    pub(crate) fn rest(
        &mut self,
        address: IpAddr,
        former: &Allocation,
        now_unix_s: u64,
        policy: &Policy,
    ) {
        let Attachment { ifname, .. } = &former.attachment;
        let pod = former.record.pod.clone();
        if let (true, Some(pod)) = (policy.sticky, &pod) {
            let kept = Kept {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                ifname: ifname.clone(),
                released_unix_s: now_unix_s,
            };
            // One address of a family for a pod's interface: the last.
            self.kept.retain(|address_of, other| {
                address_of.is_ipv4() != address.is_ipv4()
                    || (&other.namespace, &other.name, &other.ifname)
                        != (&kept.namespace, &kept.name, &kept.ifname)
            });
            forget_oldest(&mut self.kept, KEPT_MAX, |kept| kept.released_unix_s);
            self.kept.insert(address, kept);
        }
        if policy.reuse_delay_s > 0 {
            forget_oldest(&mut self.resting, RESTING_MAX, |resting| resting.released_unix_s);
            let attachment = former.attachment.clone();
            self.resting.insert(address, Resting { attachment, pod, released_unix_s: now_unix_s });
        }
    }

    /// Forgets the addresses that have rested for long enough.
    pub(crate) fn forget_rested(&mut self, now_unix_s: u64, policy: &Policy) {
        let resting = std::mem::take(&mut self.resting);
        let left = resting.into_iter().map(|(address, resting)| {
            // Seen from a clock that was set back, it was given back just now.
            let released_unix_s = resting.released_unix_s.min(now_unix_s);
            (address, Resting { released_unix_s, ..resting })
        });
        let delay = policy.reuse_delay_s;
        self.resting =
            left.filter(|(_, resting)| now_unix_s - resting.released_unix_s < delay).collect();
    }
}

fn is_same_pod(kept: &Kept, attachment: &Attachment, pod: Option<&Pod>) -> bool {
    pod.is_some_and(|pod| name_of(pod) == (&kept.namespace, &kept.name))
        && kept.ifname == attachment.ifname
}

fn name_of(pod: &Pod) -> (&String, &String) {
    (&pod.namespace, &pod.name)
}

/// Makes room for one more.
fn forget_oldest<T>(map: &mut BTreeMap<IpAddr, T>, max: usize, age: impl Fn(&T) -> u64) {
    while map.len() >= max {
        let oldest = map.iter().min_by_key(|(_, value)| age(value)).map(|(address, _)| *address);
        let Some(oldest) = oldest else { return };
        map.remove(&oldest);
    }
}
