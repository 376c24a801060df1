//! Where a node's name server answers. Pure.
//!
//! Kubelets write one address into pods' `resolv.conf`, and the Service `kube-system/kube-dns` keeps that
//! address for the DNS. So the Service has the first word, whether pods stand behind it or not, and the
//! configuration has it for a family that the Service has no address of.

use std::collections::BTreeSet;
use std::net::IpAddr;

use conf::DnsConfig;
use conf::cluster::{ClusterState, ObjectName};

/// The Service that keeps the address of a cluster's DNS: its namespace and name.
pub const SERVICE: (&str, &str) = ("kube-system", "kube-dns");

/// Where the name server answers: at most one address of a family, IPv4 first; none where there is no name server.
pub fn addresses(config: &DnsConfig, state: &ClusterState) -> Vec<IpAddr> {
    match config.enabled {
        true => chosen(&of_service(state), &config.addresses),
        false => Vec::new(),
    }
}

/// The cluster IPs of the Service; none without it, and while it is refused.
pub fn of_service(state: &ClusterState) -> Vec<IpAddr> {
    let (namespace, name) = SERVICE;
    let view = state.service(namespace, name).filter(|view| view.refused.is_none());
    view.map(|view| view.cluster_ips.to_vec()).unwrap_or_default()
}

/// Whether the Service is among these.
pub fn is_in(services: &BTreeSet<ObjectName>) -> bool {
    let (namespace, name) = SERVICE;
    services.contains(&ObjectName::new(namespace, name))
}

/// Of each family, the address of the Service, or else the configured one.
pub fn chosen(service: &[IpAddr], configured: &[IpAddr]) -> Vec<IpAddr> {
    let of_family = |is_ipv4: bool| {
        service.iter().chain(configured).copied().find(|address| address.is_ipv4() == is_ipv4)
    };
    [true, false].into_iter().filter_map(of_family).collect()
}

#[cfg(test)]
mod tests {
    use conf::cluster::parse::parse;
    use conf::cluster::{Authority, Change, ServiceConfig};

    use super::*;

    fn state(services: &str) -> ClusterState {
        let config = ServiceConfig { authority: Authority::Kubernetes, ..ServiceConfig::default() };
        let mut state = ClusterState::new(config);
        let manifests = parse(services);
        assert!(manifests.refused.is_empty(), "{manifests:?}");
        state.apply(manifests.accepted.into_iter().map(|found| Change::Set(found.object)));
        state
    }

    fn config() -> DnsConfig {
        let addresses = ["10.96.0.10", "fd00:10:96::a"].map(|text| text.parse().unwrap()).to_vec();
        DnsConfig { addresses, ..DnsConfig::default() }
    }

    fn service(namespace: &str, addresses: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: {namespace}}}\n\
             spec: {{{addresses}, ports: [{{port: 53, protocol: UDP}}]}}\n"
        )
    }

    fn shown(config: &DnsConfig, services: &str) -> String {
        let addresses = addresses(config, &state(services));
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_service_has_the_first_word_for_the_families_that_it_has() {
        assert_eq!(shown(&config(), ""), "10.96.0.10 fd00:10:96::a");
        let v4 = service("kube-system", "clusterIP: 10.43.0.10");
        assert_eq!(shown(&config(), &v4), "10.43.0.10 fd00:10:96::a");
        let both = service(
            "kube-system",
            "clusterIP: 'fd00:43::a', clusterIPs: ['fd00:43::a', 10.43.0.10], \
             ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack",
        );
        assert_eq!(shown(&config(), &both), "10.43.0.10 fd00:43::a");
    }

    #[test]
    fn only_that_service_counts_and_only_with_addresses() {
        assert!(shown(&config(), &service("shop", "clusterIP: 10.43.0.10")).starts_with("10.96"));
        let headless = service("kube-system", "clusterIP: None");
        assert!(shown(&config(), &headless).starts_with("10.96.0.10"));
    }

    #[test]
    fn without_a_name_server_it_is_nowhere() {
        let config = DnsConfig { enabled: false, ..config() };
        assert_eq!(shown(&config, &service("kube-system", "clusterIP: 10.43.0.10")), "");
    }
}
