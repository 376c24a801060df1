//! The lab's links: bridges, veth pairs, addresses and routes, each made in the namespace where it is.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result};
use cni::link::{Netlink, Route};
use cni::netns::Netns;
use ipnetwork::IpNetwork;

use super::namespace::Namespace;

/// Makes a namespace ready for links: loopback is up, and IPv6 addresses are usable at once instead of
/// after a second of duplicate address detection (RFC 4862 §5.4).
pub(super) fn prepare(namespace: &Namespace) -> Result<()> {
    for group in ["all", "default"] {
        write_setting(namespace, &format!("/proc/sys/net/ipv6/conf/{group}/accept_dad"), "0")?;
    }
    set_up(namespace, "lo", true)
}

/// Lets `namespace` forward packets.
pub(super) fn enable_forwarding(namespace: &Namespace) -> Result<()> {
    write_setting(namespace, "/proc/sys/net/ipv4/ip_forward", "1")?;
    write_setting(namespace, "/proc/sys/net/ipv6/conf/all/forwarding", "1")
}

/// Does nothing where the kernel has no such setting: one without IPv6.
fn write_setting(namespace: &Namespace, path: &str, value: &str) -> Result<()> {
    if !fs::exists(path)? {
        return Ok(());
    }
    namespace.run(|| fs::write(path, value))?.with_context(|| format!("writing {value} to {path}"))
}

/// Makes a bridge that is up.
pub(super) fn add_bridge(namespace: &Namespace, name: &str, mtu: u16) -> Result<()> {
    let mut netlink = open(namespace)?;
    netlink.create_bridge(name)?;
    let index = netlink.link(name)?.index;
    Ok(netlink.set_mtu(index, mtu.into())?)
}

/// One end of a veth pair.
#[derive(Debug)]
pub(super) struct End<'a> {
    /// Where it is.
    pub(super) namespace: &'a Namespace,
    /// Its name there.
    pub(super) name: &'a str,
}

/// Makes a veth pair, both ends up.
pub(super) fn add_veth(near: &End<'_>, far: &End<'_>, mtu: u16) -> Result<()> {
    let far_netns = Netns::open(far.namespace.path())?;
    open(near.namespace)?.create_veth(near.name, far.name, Some(&far_netns))?;
    for end in [near, far] {
        set_mtu(end.namespace, end.name, mtu)?;
        set_up(end.namespace, end.name, true)?;
    }
    Ok(())
}

/// Removes a link; with one end of a veth pair goes the other. It is no error if it is gone.
pub(super) fn remove_link(namespace: &Namespace, name: &str) -> Result<()> {
    let mut netlink = open(namespace)?;
    match netlink.find_link(name)? {
        Some(link) => Ok(netlink.delete_link(link.index)?),
        None => Ok(()),
    }
}

/// Makes `name` a port of `bridge`.
pub(super) fn join_bridge(namespace: &Namespace, name: &str, bridge: &str) -> Result<()> {
    let mut netlink = open(namespace)?;
    let (index, bridge) = (netlink.link(name)?.index, netlink.link(bridge)?.index);
    Ok(netlink.set_master(index, Some(bridge))?)
}

/// Sets a link up or down.
pub(super) fn set_up(namespace: &Namespace, name: &str, up: bool) -> Result<()> {
    let mut netlink = open(namespace)?;
    let index = netlink.link(name)?.index;
    Ok(if up { netlink.set_up(index) } else { netlink.set_down(index) }?)
}

/// Sets a link's MTU.
pub(super) fn set_mtu(namespace: &Namespace, name: &str, mtu: u16) -> Result<()> {
    let mut netlink = open(namespace)?;
    let index = netlink.link(name)?.index;
    Ok(netlink.set_mtu(index, mtu.into())?)
}

/// Adds an address to a link.
pub(super) fn add_address(namespace: &Namespace, name: &str, address: IpNetwork) -> Result<()> {
    let mut netlink = open(namespace)?;
    let index = netlink.link(name)?.index;
    Ok(netlink.add_address(index, address)?)
}

/// Adds a route through the link `name`.
pub(super) fn add_route(
    namespace: &Namespace,
    name: &str,
    destination: IpNetwork,
    gateway: IpAddr,
) -> Result<()> {
    let mut netlink = open(namespace)?;
    let index = netlink.link(name)?.index;
    let destination = IpNetwork::new(destination.network(), destination.prefix())?;
    Ok(netlink.set_route(&Route::via(destination, gateway, index))?)
}

fn open(namespace: &Namespace) -> Result<Netlink> {
    Ok(Netlink::open_in(namespace.path())?)
}
