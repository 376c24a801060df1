//! The host's part in Services: what is for them is routed to the switch.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::exposure::Exposed;
use super::{Control, Topic, ways};
use crate::admin::api::ProblemTopic;
use crate::host::nft;

impl Control {
    /// The ranges that the host routes to the switch as a whole: pods', cluster IPs', and those of the ways.
    pub(super) fn routed_ranges(&self) -> Vec<IpNetwork> {
        let mut ranges = self.config.lease.ranges.clone();
        let families = [self.lease.v4.is_some(), self.lease.v6.is_some()];
        let services = self.objects.service_ranges().iter().copied().chain(ways::ranges());
        ranges.extend(services.filter(|range| families[usize::from(!range.is_ipv4())]));
        ranges
    }

    /// Takes up into the ways what has changed. Returns what changes the host's table alike, and the addresses of
    /// load balancers that have come and gone.
    pub(super) fn follow_ways(&mut self) -> (String, [Vec<IpAddr>; 2]) {
        let tables = self.objects.tables_mut();
        let mut script = self.ways.set_nodes(tables.node_addresses());
        let exposure = tables.exposure();
        let changed = exposure.take_changed();
        let changed: Vec<_> =
            changed.into_iter().map(|item| (item, exposure.holds(item))).collect();
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for (item, is_exposed) in &changed {
            if let Exposed::Address(address) = item {
                if *is_exposed { &mut added } else { &mut removed }.push(*address);
            }
        }
        script += &self.ways.update(changed);
        (script, [added, removed])
    }

    /// Makes the host route what is exposed now, and no more what was before. Nothing is done while there is no host
    /// to do it: whoever makes it does all.
    pub(super) fn follow_exposure(&mut self) {
        if self.host.is_none() || !self.objects.cluster().is_synced() {
            return;
        }
        let (script, [added, removed]) = self.follow_ways();
        if !script.is_empty()
            && let Err(error) = nft::change(&script)
        {
            // Somebody has changed the table, perhaps. It is made anew.
            tracing::debug!("{error}");
            self.set_up_table();
        }
        let sources = self.gateways();
        if let (Some(host), false) = (&self.host, added.is_empty() && removed.is_empty()) {
            let errors = host.change_routes(&added, &removed, &sources);
            self.tell_routes(&errors);
        }
    }

    /// Routes the addresses of all load balancers to the switch, and no others.
    pub(super) fn route_balancers(&mut self) {
        // Until the objects are known, those of an earlier run stay.
        if !self.objects.cluster().is_synced() {
            return;
        }
        let balancers = self.objects.tables_mut().exposure().iter().filter_map(|item| match item {
            Exposed::Address(address) => Some(address),
            Exposed::NodePort(..) | Exposed::Port(..) => None,
        });
        let balancers: Vec<IpAddr> = balancers.collect();
        let sources = self.gateways();
        let errors = self.host.as_ref().map(|host| host.route_only(&balancers, &sources));
        self.tell_routes(&errors.unwrap_or_default());
    }

    fn tell_routes<E: ToString>(&mut self, errors: &[E]) {
        if errors.is_empty() {
            return;
        }
        let all = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let problem = format!("addresses of load balancers are not served from outside: {all}");
        self.raise(Topic::Node(ProblemTopic::Host), problem);
    }
}
