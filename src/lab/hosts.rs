//! Names in a lab: the `/etc/hosts` that commands in its namespaces see, and the `/etc/resolv.conf` of those
//! in pods.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use conf::DnsConfig;

use super::cluster::{UNDERLAY, WORLD};
use super::config::{Family, Plan};
use super::plugin::NAMESPACE;
use super::state::LabState;

/// Where the file of the lab in `dir` is.
pub fn hosts(dir: &Path) -> PathBuf {
    dir.join("hosts")
}

/// Where pods' `resolv.conf` of the lab in `dir` is.
pub fn resolv_conf(dir: &Path) -> PathBuf {
    dir.join("resolv.conf")
}

/// Writes pods' `resolv.conf` as a kubelet composes it for `dnsPolicy: ClusterFirst`.
pub(super) fn write_resolv_conf(dir: &Path) -> io::Result<()> {
    let dns = DnsConfig::default();
    let (domain, mut text) = (dns.domain, String::new());
    for address in &dns.addresses {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "nameserver {address}");
    }
    let _ = writeln!(text, "search {NAMESPACE}.svc.{domain} svc.{domain} {domain}");
    text.push_str("options ndots:5\n");
    fs::write(resolv_conf(dir), text)
}

/// Writes the file, in place: it is mounted where commands run, and they are to see the change.
pub(super) fn write(dir: &Path, state: &LabState) -> io::Result<()> {
    fs::write(hosts(dir), text(state))
}

fn text(state: &LabState) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    let mut add = |address: IpAddr, name: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{address} {name}");
    };
    for family in Family::ALL {
        add(Plan::router(family).ip(), UNDERLAY);
        add(Plan::world(family).ip(), WORLD);
    }
    for node in &state.nodes {
        add(node.underlay, &node.name);
        for pod in &node.pods {
            pod.addresses.iter().for_each(|address| add(*address, &pod.name));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::lab::config::LabConfig;
    use crate::lab::state::{NodeState, PodState};

    #[test]
    fn every_node_and_pod_has_a_name() {
        let pod = PodState {
            name: "n2-p1".to_owned(),
            namespace: NAMESPACE.to_owned(),
            labels: BTreeMap::new(),
            container_id: "a-n2-p1".to_owned(),
            addresses: vec![[10, 244, 7, 2].into(), "fd00:10:244:7::2".parse().unwrap()],
            mac: None,
        };
        let node = NodeState {
            name: "n2".to_owned(),
            number: 2,
            underlay: [192, 168, 77, 2].into(),
            mtu: 1500,
            cut: false,
            daemon: None,
            next_pod: 2,
            pods: vec![pod],
        };
        let state = LabState {
            config: LabConfig::new("a"),
            owner: None,
            holder: None,
            next_number: 3,
            nodes: vec![node],
        };
        assert_eq!(
            text(&state),
            "127.0.0.1 localhost\n::1 localhost\n\
             192.168.77.254 underlay\n203.0.113.10 world\n\
             fd00:77::fe underlay\n2001:db8:113::a world\n\
             192.168.77.2 n2\n10.244.7.2 n2-p1\nfd00:10:244:7::2 n2-p1\n"
        );
    }
}
