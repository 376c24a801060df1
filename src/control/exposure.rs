//! What of the Services is reached from outside of the switch, so that the host has to route it there. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vswitch::service::{Family, Frontend, Protocol, ServicePort};

/// Something that the host routes to the switch. Cluster IPs are not among it: their whole range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exposed {
    /// A port of each address of this node that has node ports.
    NodePort(Family, Protocol, u16),
    /// One port of an address whose other ports are somebody else's: an external IP, or a host port.
    Port(IpAddr, Protocol, u16),
    /// All of an address: a load balancer's.
    Address(IpAddr),
}

/// All that is exposed, and what of it has changed.
#[derive(Debug, Default)]
pub struct Exposure {
    /// With the number of Services' ports that expose it.
    counts: BTreeMap<Exposed, usize>,
    /// What may be different since [`Exposure::take_changed`].
    changed: BTreeSet<Exposed>,
}

impl Exposure {
    /// Takes up that a Service's port is in the table.
    pub(super) fn add(&mut self, port: &ServicePort) {
        for item in exposed_by(port) {
            *self.counts.entry(item).or_default() += 1;
            self.changed.insert(item);
        }
    }

    /// Takes up that it is no more.
    pub(super) fn remove(&mut self, port: &ServicePort) {
        for item in exposed_by(port) {
            self.changed.insert(item);
            if let Some(count) = self.counts.get_mut(&item) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&item);
                }
            }
        }
    }

    /// All that is exposed.
    pub fn iter(&self) -> impl Iterator<Item = Exposed> {
        self.counts.keys().copied()
    }

    /// Whether this is exposed.
    pub fn holds(&self, item: Exposed) -> bool {
        self.counts.contains_key(&item)
    }

    /// What may have come or gone since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<Exposed> {
        std::mem::take(&mut self.changed)
    }
}

/// What a port of a Service exposes.
pub(super) fn exposed_by(port: &ServicePort) -> impl Iterator<Item = Exposed> {
    let (family, protocol) = (port.family, port.protocol);
    port.frontends.iter().filter_map(move |frontend| match *frontend {
        Frontend::ClusterIp { .. } => None,
        Frontend::NodePort { port } => Some(Exposed::NodePort(family, protocol, port)),
        Frontend::ExternalIp { address, port } | Frontend::HostPort { address, port } => {
            Some(Exposed::Port(address, protocol, port))
        }
        Frontend::LoadBalancer { address, .. } => Some(Exposed::Address(address)),
    })
}

#[cfg(test)]
mod tests {
    use vswitch::service::{Algorithm, TrafficPolicy};

    use super::*;

    fn port(number: u16) -> ServicePort {
        let balancer: IpAddr = [192, 0, 2, 9].into();
        ServicePort {
            name: number.to_string(),
            family: Family::V4,
            protocol: Protocol::Tcp,
            frontends: vec![
                Frontend::ClusterIp { address: [10, 96, 0, 7].into(), port: number },
                Frontend::LoadBalancer { address: balancer, port: number, source_ranges: vec![] },
                Frontend::NodePort { port: 30_000 + number },
            ],
            endpoints: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            algorithm: Algorithm::Random,
            affinity: None,
        }
    }

    #[test]
    fn an_address_is_exposed_until_its_last_port_is_gone() {
        let mut exposure = Exposure::default();
        let balancer = Exposed::Address([192, 0, 2, 9].into());
        let node_port = |number| Exposed::NodePort(Family::V4, Protocol::Tcp, number);
        exposure.add(&port(80));
        exposure.add(&port(443));
        assert_eq!(exposure.take_changed().len(), 3, "no cluster IP among them");
        exposure.remove(&port(80));
        assert!(exposure.holds(balancer) && !exposure.holds(node_port(30_080)));
        assert_eq!(exposure.take_changed(), [node_port(30_080), balancer].into());
        exposure.remove(&port(443));
        assert_eq!(exposure.iter().count(), 0);
    }
}
