//! Who has which subnet, and what is being done where two have one: for people.

use std::net::IpAddr;
use std::time::Instant;

use overlay::subnet::{Claim, Conflict, Lease, Member};

use super::Control;
use crate::admin::api::{ConflictStatus, ExceptionStatus, LeaseHolding, LeaseStatus, LeasesReport};

impl Control {
    /// All leases of the map, in the order of their addresses, and what is wrong with them.
    pub fn leases_report(&self) -> LeasesReport {
        let now = Instant::now();
        let leases = self.map.members.values().flat_map(|member| {
            member.leases.iter().map(move |lease| self.lease_status(member, lease, now))
        });
        let mut leases: Vec<_> = leases.collect();
        leases
            .sort_by(|a, b| (a.prefix, &a.node, &a.node_id).cmp(&(b.prefix, &b.node, &b.node_id)));
        LeasesReport {
            ranges: self.config.lease.ranges.clone(),
            reserved: self.config.lease.reserved.clone(),
            leases,
            exceptions: self.exceptions(),
            conflicts: self.map.conflicts.iter().map(|it| self.conflict_status(it)).collect(),
        }
    }

    /// Addresses of pods out of subnets that their nodes have lost.
    fn exceptions(&self) -> Vec<ExceptionStatus> {
        let active = self.map.members.values().filter(|member| member.state.is_active());
        let exceptions = active.flat_map(|member| {
            member.asked.iter().map(|address| ExceptionStatus {
                address: *address,
                node: member.name.clone(),
                node_id: member.id.to_string(),
                leads_there: member.exceptions.contains(address),
                holder: self.lease_holder(*address).map(|holder| holder.name.clone()),
            })
        });
        let mut exceptions: Vec<_> = exceptions.collect();
        exceptions.sort_by(|a, b| (a.address, &a.node_id).cmp(&(b.address, &b.node_id)));
        exceptions
    }

    /// Who has the subnet of this address, whoever has the address.
    fn lease_holder(&self, address: IpAddr) -> Option<&Member> {
        let mut members = self.map.members.values();
        members.find(|member| member.routes().any(|prefix| prefix.contains(address)))
    }

    fn lease_status(&self, member: &Member, lease: &Lease, now: Instant) -> LeaseStatus {
        let since_s = now.saturating_duration_since(member.since).as_secs();
        let is_active = member.state.is_active();
        let state = match (is_active, lease.claim) {
            (false, _) => LeaseHolding::Reserved,
            (true, _) if lease.contested => LeaseHolding::Losing,
            (true, Claim::Claiming) => LeaseHolding::Claiming,
            (true, Claim::Held) => LeaseHolding::Held,
        };
        let winner = (state == LeaseHolding::Losing)
            .then(|| self.lease_holder(lease.prefix.network()))
            .flatten()
            .map(|winner| winner.name.clone());
        let hold_s = u64::from(self.config.lease.hold_s);
        LeaseStatus {
            prefix: lease.prefix,
            node: member.name.clone(),
            node_id: member.id.to_string(),
            this_node: member.id == self.identity.id,
            node_state: member.state,
            state,
            fixed: lease.fixed,
            epoch: lease.epoch,
            winner,
            free_in_s: (!is_active).then(|| hold_s.saturating_sub(since_s)),
        }
    }

    fn conflict_status(&self, conflict: &Conflict) -> ConflictStatus {
        ConflictStatus { text: self.map.describe(conflict) }
    }
}
