//! Who has which address, since when, and which rest: for people, and what they can do about it.

use std::net::IpAddr;

use ipam::PortKind;

use super::attach::now_unix_s;
use super::{AttachError, Control, Topic, device};
use crate::admin::api::ProblemTopic;
use crate::admin::ipam::{
    HeldAddress, IpamPool, IpamReport, KeptAddress, Released, RestingAddress,
};

/// Why an address is not released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Nobody has it.
    #[error("{0} is held by nobody here and does not rest: `weft ipam` lists all that are")]
    Free(IpAddr),
    /// Its container is still there.
    #[error(
        "{address} is held by {holder}, which still has its namespace: let the runtime remove it, or cut it off with --force"
    )]
    InUse {
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: String,
    },
    /// It belongs to a device of the host.
    #[error("{address} is held by the port {device}: `weft port remove {device}` releases it")]
    Port {
        /// The address.
        address: IpAddr,
        /// The device.
        device: String,
    },
    /// It could not be taken back.
    #[error(transparent)]
    Detach(#[from] AttachError),
}

impl Control {
    /// All addresses that are not simply free.
    pub fn ipam(&self) -> IpamReport {
        let now = now_unix_s();
        let since = |at: u64| now.saturating_sub(at);
        let pools = self.ipam.usage(now).into_iter().map(|usage| IpamPool {
            prefix: usage.prefix,
            used: usage.used as u64,
            resting: usage.resting as u64,
            free: u64::try_from(usage.free()).unwrap_or(u64::MAX),
            low: usage.is_low(),
        });
        let held = self.ipam.iter().flat_map(|held| {
            held.addresses().map(|address| HeldAddress {
                address,
                container_id: held.attachment.container_id.clone(),
                ifname: held.attachment.ifname.clone(),
                network: held.record.network.clone(),
                namespace: held.record.pod.as_ref().map(|pod| pod.namespace.clone()),
                name: held.record.pod.as_ref().map(|pod| pod.name.clone()),
                since_s: since(held.record.created_unix_s),
                outside_lease: held.outside_lease,
                alive: device::may_be_alive(held),
            })
        });
        let mut held: Vec<_> = held.collect();
        held.sort_by_key(|held| held.address);
        let resting = self.ipam.resting(now).map(|(address, resting, free_in_s)| RestingAddress {
            address,
            container_id: resting.attachment.container_id.clone(),
            ifname: resting.attachment.ifname.clone(),
            namespace: resting.pod.as_ref().map(|pod| pod.namespace.clone()),
            name: resting.pod.as_ref().map(|pod| pod.name.clone()),
            since_s: since(resting.released_unix_s),
            free_in_s,
        });
        let kept = self.ipam.kept().iter().map(|(address, kept)| KeptAddress {
            address: *address,
            namespace: kept.namespace.clone(),
            name: kept.name.clone(),
            ifname: kept.ifname.clone(),
            since_s: since(kept.released_unix_s),
        });
        IpamReport {
            pools: pools.collect(),
            held,
            resting: resting.collect(),
            kept: kept.collect(),
            excluded: self.ipam.policy().excluded.clone(),
            reuse_delay_s: self.ipam.policy().reuse_delay_s,
            shortened: self.ipam.shortened(),
        }
    }

    /// Takes an address back whose container is gone, or ends its rest. With `force` also from a container that is
    /// there, which loses its network.
    ///
    /// # Errors
    /// When there is nothing to release, or it must not be.
    pub fn release_address(
        &mut self,
        address: IpAddr,
        force: bool,
    ) -> Result<Released, ReleaseError> {
        let Some(holder) = self.ipam.holder(address).cloned() else {
            return match self.ipam.wake(address).map_err(AttachError::from)? {
                true => Ok(Released { address, holder: None }),
                false => Err(ReleaseError::Free(address)),
            };
        };
        if let PortKind::AfPacket { device, .. } = &holder.record.port {
            return Err(ReleaseError::Port { address, device: device.clone() });
        }
        let attachment = holder.attachment.clone();
        if !force && device::may_be_alive(&holder) {
            return Err(ReleaseError::InUse { address, holder: attachment.to_string() });
        }
        self.detach(&attachment)?;
        Ok(Released { address, holder: Some(attachment.to_string()) })
    }

    /// Says so when few addresses are left, before there are none.
    pub(super) fn watch_addresses(&mut self) {
        let topic = Topic::Node(ProblemTopic::Addresses);
        let usage = self.ipam.usage(now_unix_s());
        let texts = usage.iter().filter(|usage| usage.is_low()).map(|usage| match usage.free() {
            0 => format!("no address of {} is free: further pods are refused", usage.prefix),
            // No number, which would be another text with every pod.
            _ => format!("few addresses of {} are free", usage.prefix),
        });
        let texts: Vec<_> = texts.collect();
        if texts.is_empty() {
            self.clear(&topic);
            return;
        }
        let fix = "`weft ipam` shows who has which; a larger subnet (`prefix_len_v4` under [lease]) has more";
        self.raise(topic, format!("{}. {fix}", texts.join("; ")));
    }
}
