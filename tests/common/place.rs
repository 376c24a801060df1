//! The nodes and pods of a lab as ends of traffic, and changes to their devices.

use std::fs;
use std::net::IpAddr;

use cni::link::{Netlink, Route};
use ipnetwork::IpNetwork;
use weft::lab::{Lab, Namespace};

use super::foreign::address;
use super::traffic::End;

/// A pod.
#[track_caller]
pub(crate) fn pod(lab: &Lab, name: &str) -> End {
    let (_, pod) = lab.state().pod(name).unwrap();
    End {
        name: name.to_owned(),
        namespace: lab.namespace(name).unwrap(),
        addresses: pod.addresses.clone(),
    }
}

/// A node, under its underlay address and the first addresses of its lease.
#[track_caller]
pub(crate) fn node(lab: &Lab, name: &str) -> End {
    let underlay = lab.state().node(name).unwrap().underlay;
    let mut addresses = vec![underlay];
    addresses.extend(gateways(lab, name));
    End { name: name.to_owned(), namespace: lab.namespace(name).unwrap(), addresses }
}

/// The prefixes that a node holds, IPv4 first.
#[track_caller]
pub(crate) fn leases(lab: &Lab, node: &str) -> Vec<IpNetwork> {
    lab.admin(node).unwrap().status().unwrap().leases
}

/// The first addresses of a node's lease, from which it also sends ICMP errors.
#[track_caller]
pub(crate) fn gateways(lab: &Lab, node: &str) -> Vec<IpAddr> {
    let leases = leases(lab, node);
    leases.iter().map(|lease| address(&leases, lease.is_ipv4(), 1)).collect()
}

/// The one address of `addresses` with the same family as `like`.
#[track_caller]
pub(crate) fn same_family(addresses: &[IpAddr], like: IpAddr) -> IpAddr {
    let same = addresses.iter().find(|address| address.is_ipv4() == like.is_ipv4());
    *same.unwrap_or_else(|| panic!("{addresses:?} has none of the family of {like}"))
}

/// Sets the MTU of a device.
#[track_caller]
pub(crate) fn set_mtu(namespace: &Namespace, device: &str, mtu: u32) {
    let mut netlink = Netlink::open_in(namespace.path()).unwrap();
    let index = netlink.link(device).unwrap().index;
    netlink.set_mtu(index, mtu).unwrap();
}

/// Routes `destination` through `gateway`.
#[track_caller]
pub(crate) fn add_route(
    namespace: &Namespace,
    device: &str,
    destination: IpNetwork,
    gateway: IpAddr,
) {
    let mut netlink = Netlink::open_in(namespace.path()).unwrap();
    let index = netlink.link(device).unwrap().index;
    netlink.set_route(&Route::via(destination, gateway, index)).unwrap();
}

/// Makes IPv6 addresses usable at once (RFC 4862 §5.4).
pub(crate) fn skip_duplicate_detection(namespace: &Namespace) {
    for group in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{group}/accept_dad");
        namespace.run(|| fs::write(path, "0")).unwrap().unwrap();
    }
}
