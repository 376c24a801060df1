//! Host ports: ports of this node's own addresses that lead to one of its pods. Pure.
//!
//! They are in the same table as Services, each as a Service with one endpoint. A host port comes before a node port
//! of the same number: it is the more specific of the two.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use vswitch::service::{
    Algorithm, Endpoint, EndpointState, Family, Frontend, Protocol, ServicePort, TrafficPolicy,
};

/// A port of this node that leads to one of its pods (`hostPort`; the CNI capability `portMappings`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The node's address. `None`, `0.0.0.0` and `::` stand for all that have node ports, of the target's family.
    pub address: Option<IpAddr>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the node.
    pub port: u16,
    /// Address and port of the pod. A pod with two families has one host port for each.
    pub target: (IpAddr, u16),
}

/// Why a pod does not get its host ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostPortError {
    /// Another pod, or a Service, has it.
    #[error("{protocol} port {port} of {place} is {holder}'s already: choose another hostPort")]
    Taken {
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
        /// The address, or "this node".
        place: String,
        /// Who has it.
        holder: String,
    },
    /// The node itself could not go on without it.
    #[error("{protocol} port {port} is the node's own, for its {purpose}: choose another hostPort")]
    Reserved {
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
        /// What the node needs it for.
        purpose: &'static str,
    },
    /// Nothing could ever be sent there, or it is sent past the switch.
    #[error("hostIP {0} cannot be served: it is no address that other hosts send to")]
    Address(IpAddr),
    /// The address is a pod's or a Service's, or might be.
    #[error(
        "hostIP {address} lies in {range}, which is the cluster's own: give an address of the node, or none"
    )]
    Guarded {
        /// The address.
        address: IpAddr,
        /// Where it lies.
        range: IpNetwork,
    },
    /// What is sent to another host is not this node's to take.
    #[error("hostIP {0} is no address of this node: give one of its own, or none")]
    Foreign(IpAddr),
    /// Address and target are not of one family.
    #[error("hostIP {address} and the pod's address {target} are not of one family")]
    Family {
        /// The node's address.
        address: IpAddr,
        /// The pod's address.
        target: IpAddr,
    },
    /// The pod has no address of that family.
    #[error("hostIP {0} cannot lead to the pod, which has no address of that family")]
    NoFamily(IpAddr),
    /// No port of that protocol can lead anywhere.
    #[error("protocol {0} is none of TCP (6), UDP (17) and SCTP (132)")]
    Protocol(u8),
    /// A port is zero.
    #[error("port 0 is no port: 1 to 65535")]
    Zero,
}

/// Whose host ports they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// What tells it from all others on this node.
    pub id: String,
    /// What people call it.
    pub name: String,
}

/// A port that the node keeps for itself, and what for.
pub type Reserved = (Protocol, u16, &'static str);

/// The host ports of all pods of this node.
#[derive(Debug, Default)]
pub(super) struct HostPorts {
    /// By the owner's id, with its name.
    by_owner: BTreeMap<String, (String, Vec<HostPort>)>,
    reserved: Vec<Reserved>,
}

impl HostPorts {
    pub(super) fn new(reserved: Vec<Reserved>) -> Self {
        Self { by_owner: BTreeMap::new(), reserved }
    }

    /// Whether `owner` may have these, as far as other host ports go.
    pub(super) fn check(&self, owner: &Owner, ports: &[HostPort]) -> Result<(), HostPortError> {
        for (ix, port) in ports.iter().enumerate() {
            self.check_one(port)?;
            let others = self.by_owner.iter().filter(|(other, _)| **other != owner.id);
            let others = others
                .flat_map(|(_, (name, ports))| ports.iter().map(move |port| (name.as_str(), port)));
            let own = ports.iter().take(ix).map(|port| (owner.name.as_str(), port));
            if let Some((holder, _)) = others.chain(own).find(|(_, other)| port.meets(other)) {
                return Err(port.taken(holder));
            }
        }
        Ok(())
    }

    fn check_one(&self, port: &HostPort) -> Result<(), HostPortError> {
        if port.port == 0 || port.target.1 == 0 {
            return Err(HostPortError::Zero);
        }
        let own =
            |(protocol, number, _): &&Reserved| (*protocol, *number) == (port.protocol, port.port);
        if let Some((protocol, number, purpose)) = self.reserved.iter().find(own) {
            return Err(HostPortError::Reserved { protocol: *protocol, port: *number, purpose });
        }
        let Some(address) = port.address else { return Ok(()) };
        if address.is_ipv4() != port.target.0.is_ipv4() {
            return Err(HostPortError::Family { address, target: port.target.0 });
        }
        let is_link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if address.is_loopback() || address.is_multicast() || is_link_local {
            return Err(HostPortError::Address(address));
        }
        Ok(())
    }

    /// Takes up the ports of `owner` in place of those that it had.
    pub(super) fn set(&mut self, owner: &Owner, ports: Vec<HostPort>) -> Vec<HostPort> {
        let before = if ports.is_empty() {
            self.by_owner.remove(&owner.id)
        } else {
            self.by_owner.insert(owner.id.clone(), (owner.name.clone(), ports))
        };
        before.map(|(_, ports)| ports).unwrap_or_default()
    }

    /// The ports of the one with this id.
    pub(super) fn of(&self, id: &str) -> &[HostPort] {
        self.by_owner.get(id).map_or(&[], |(_, ports)| ports.as_slice())
    }

    /// What the switch has to know of the ports of the one with this id, on a node with these addresses.
    pub(super) fn specs_of(
        &self,
        id: &str,
        node: &[IpAddr],
    ) -> impl Iterator<Item = (HostPort, ServicePort)> {
        let owned = self.by_owner.get(id);
        let (name, ports) =
            owned.map_or(("", &[][..]), |(name, ports)| (name.as_str(), ports.as_slice()));
        ports.iter().filter_map(move |port| Some((*port, port.spec(name, node)?)))
    }

    /// The ids of all that have any.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.by_owner.keys().map(String::as_str)
    }
}

impl HostPort {
    /// The host ports of a pod with these addresses: without an address of the node one for each of the pod's.
    ///
    /// # Errors
    /// When the node's address has no counterpart among the pod's.
    pub fn of_pod(
        address: Option<IpAddr>,
        protocol: Protocol,
        (port, target): (u16, u16),
        pod: &[IpAddr],
    ) -> Result<Vec<Self>, HostPortError> {
        let fits = |own: &&IpAddr| address.is_none_or(|at| at.is_ipv4() == own.is_ipv4());
        let at = |own: &IpAddr| Self { address, protocol, port, target: (*own, target) };
        let ports: Vec<_> = pod.iter().filter(fits).map(at).collect();
        match address {
            Some(address) if ports.is_empty() => Err(HostPortError::NoFamily(address)),
            Some(_) | None => Ok(ports),
        }
    }

    /// The one address that it is at, if it is not at all.
    pub(super) fn only(&self) -> Option<IpAddr> {
        self.address.filter(|address| !address.is_unspecified())
    }

    /// Whether it is the same port of the same place, wherever it leads.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        self.meets(other) && self.only() == other.only()
    }

    /// Whether one packet could be for both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.port == other.port
            && self.target.0.is_ipv4() == other.target.0.is_ipv4()
            && (self.only().is_none() || other.only().is_none() || self.only() == other.only())
    }

    pub(super) fn taken(&self, holder: &str) -> HostPortError {
        HostPortError::Taken {
            protocol: self.protocol,
            port: self.port,
            place: self
                .only()
                .map_or_else(|| "this node".to_owned(), |address| address.to_string()),
            holder: holder.to_owned(),
        }
    }

    fn spec(&self, name: &str, node: &[IpAddr]) -> Option<ServicePort> {
        let family = Family::of(self.target.0);
        let all = node.iter().copied().filter(|address| Family::of(*address) == family);
        let addresses: Vec<IpAddr> = self.only().map_or_else(|| all.collect(), |only| vec![only]);
        let front = |address| Frontend::HostPort { address, port: self.port };
        let frontends: Vec<_> = addresses.into_iter().map(front).collect();
        let place = self.only().map(|address| format!("-{address}")).unwrap_or_default();
        (!frontends.is_empty()).then(|| ServicePort {
            name: format!("{name}:host-{}-{}{place}", self.protocol, self.port),
            family,
            protocol: self.protocol,
            frontends,
            endpoints: vec![Endpoint {
                address: self.target.0,
                port: self.target.1,
                is_local: true,
                is_near: true,
                state: EndpointState::Ready,
            }],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            // There is nothing to choose.
            algorithm: Algorithm::Random,
            affinity: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: Option<&str>, number: u16, target: &str) -> HostPort {
        HostPort {
            address: address.map(|text| text.parse().unwrap()),
            protocol: Protocol::Tcp,
            port: number,
            target: (target.parse().unwrap(), 80),
        }
    }

    fn owner(name: &str) -> Owner {
        Owner { id: format!("id of {name}"), name: name.to_owned() }
    }

    fn ports() -> HostPorts {
        let mut ports = HostPorts::new(vec![(Protocol::Udp, 4789, "tunnel")]);
        ports.set(
            &owner("shop/a"),
            vec![port(None, 8080, "10.244.1.2"), port(None, 8080, "fd00::2")],
        );
        ports.set(&owner("shop/b"), vec![port(Some("192.0.2.1"), 8081, "10.244.1.3")]);
        ports
    }

    #[test]
    fn one_port_of_an_address_has_one_pod() {
        let ports = ports();
        let error = |name: &str, port| ports.check(&owner(name), &[port]).unwrap_err().to_string();
        assert_eq!(
            error("shop/c", port(Some("192.0.2.1"), 8080, "10.244.1.4")),
            "TCP port 8080 of 192.0.2.1 is shop/a's already: choose another hostPort"
        );
        assert_eq!(
            error("shop/c", port(Some("0.0.0.0"), 8081, "10.244.1.4")),
            "TCP port 8081 of this node is shop/b's already: choose another hostPort"
        );
        assert_eq!(
            ports.check(&owner("shop/c"), &[port(Some("192.0.2.2"), 8081, "10.244.1.4")]),
            Ok(())
        );
        assert_eq!(
            ports.check(&owner("shop/a"), &[port(None, 8080, "10.244.1.2")]),
            Ok(()),
            "its own"
        );
        let twice = [port(None, 9, "10.244.1.4"), port(None, 9, "10.244.1.4")];
        assert!(ports.check(&owner("shop/c"), &twice).is_err());
        let udp = HostPort { protocol: Protocol::Udp, ..port(None, 8080, "10.244.1.4") };
        assert_eq!(ports.check(&owner("shop/c"), &[udp]), Ok(()));
    }

    #[test]
    fn what_can_be_no_host_port_is_refused() {
        let ports = ports();
        let tunnel = HostPort { protocol: Protocol::Udp, ..port(None, 4789, "10.244.1.4") };
        for (port, error) in [
            (port(None, 0, "10.244.1.4"), "port 0 is no port: 1 to 65535"),
            (tunnel, "UDP port 4789 is the node's own, for its tunnel: choose another hostPort"),
            (
                port(Some("127.0.0.1"), 80, "10.244.1.4"),
                "hostIP 127.0.0.1 cannot be served: it is no address that other hosts send to",
            ),
            (
                port(Some("::"), 80, "10.244.1.4"),
                "hostIP :: and the pod's address 10.244.1.4 are not of one family",
            ),
        ] {
            assert_eq!(ports.check(&owner("shop/c"), &[port]).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn all_addresses_are_those_of_the_pods_family() {
        let node = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|text| text.parse().unwrap());
        let of = |name: &str| {
            let (ports, owner) = (ports(), owner(name));
            let specs = ports.specs_of(&owner.id, &node);
            specs.map(|(_, spec)| (spec.name, spec.frontends)).collect::<Vec<_>>()
        };
        let front =
            |address: &str, port| Frontend::HostPort { address: address.parse().unwrap(), port };
        assert_eq!(
            of("shop/a"),
            [
                (
                    "shop/a:host-TCP-8080".to_owned(),
                    vec![front("192.0.2.1", 8080), front("192.0.2.2", 8080)]
                ),
                ("shop/a:host-TCP-8080".to_owned(), vec![front("2001:db8::1", 8080)]),
            ]
        );
        assert_eq!(
            of("shop/b"),
            [("shop/b:host-TCP-8081-192.0.2.1".to_owned(), vec![front("192.0.2.1", 8081)])]
        );
    }

    #[test]
    fn a_pod_has_one_for_each_family_that_is_asked_for() {
        let pod: [IpAddr; 2] = ["10.244.1.2", "fd00::2"].map(|text| text.parse().unwrap());
        let of = |address: Option<&str>, pod: &[IpAddr]| {
            let address = address.map(|text| text.parse().unwrap());
            let ports = HostPort::of_pod(address, Protocol::Tcp, (8080, 80), pod)?;
            Ok(ports.into_iter().map(|port| port.target.0).collect::<Vec<_>>())
        };
        assert_eq!(of(None, &pod), Ok(pod.to_vec()));
        assert_eq!(of(Some("192.0.2.1"), &pod), Ok(vec![pod[0]]));
        assert_eq!(of(Some("::"), &pod), Ok(vec![pod[1]]));
        let error: HostPortError = of(Some("::"), &pod[..1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "hostIP :: cannot lead to the pod, which has no address of that family"
        );
    }
}
