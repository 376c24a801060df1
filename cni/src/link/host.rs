//! The node's own interface: addresses of the lease, and routes to the cluster through the switch.
//!
//! ```text
//! weft0  10.244.1.1/32   169.254.1.1       dev weft0 scope link
//!                        10.244.0.0/16     via 169.254.1.1 dev weft0 onlink src 10.244.1.1
//!        fd00:…:1::1/128 fd00:10:244::/56  via fe80::1     dev weft0 onlink src fd00:10:244:1::1
//! ```
//!
//! The route to the IPv4 router makes the kernel accept what the router says itself, its ICMP errors: with
//! `rp_filter` a source needs a way back. An IPv6 link-local address has one on every interface.

use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;

use super::routes::RouteScope;
use super::sysctl::prepare_ipv6;
use super::{LinkError, Netlink, Route};
use crate::netns::Netns;

/// What the node's interface has to look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInterface {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses; the first of each family is what the node speaks from.
    pub addresses: Vec<IpAddr>,
    /// The ranges behind the switch.
    pub ranges: Vec<IpNetwork>,
    /// The switch's own addresses, at most one per family: the next hop to the ranges.
    pub routers: Vec<IpAddr>,
}

impl HostInterface {
    fn routes(&self, index: u32) -> impl Iterator<Item = Route> + '_ {
        let of_family = |list: &[IpAddr], range: &IpNetwork| {
            list.iter().copied().find(|address| address.is_ipv4() == range.is_ipv4())
        };
        let routers = self.routers.iter().filter(|router| router.is_ipv4());
        let on_link = routers.map(move |router| Route::on_link(IpNetwork::from(*router), index));
        on_link.chain(self.ranges.iter().filter_map(move |range| {
            Some(Route {
                destination: IpNetwork::new(range.network(), range.prefix()).ok()?,
                gateway: Some(of_family(&self.routers, range)?),
                index,
                source: of_family(&self.addresses, range),
                scope: RouteScope::Universe,
                onlink: true,
                metric: 0,
            })
        }))
    }
}

/// Makes the node's interface look as it has to, in the namespace at `netns` or in the calling
/// thread's. It has to exist. May be repeated: addresses and routes of an earlier lease are removed, save for those of
/// [`set_single_routes`].
///
/// # Errors
/// When the interface is not there, the kernel refuses something, or another interface has a route to
/// one of the ranges (another network plugin, say).
pub fn configure_host(
    netns: Option<&Path>,
    ifname: &str,
    wanted: &HostInterface,
) -> Result<(), LinkError> {
    in_netns(netns, || {
        let mut netlink = Netlink::open()?;
        let link = netlink.link(ifname)?;
        if wanted.addresses.iter().any(IpAddr::is_ipv6) {
            prepare_ipv6(ifname)?;
        }
        if link.mac != Some(wanted.mac) {
            netlink.set_mac(link.index, wanted.mac)?;
        }
        if link.mtu != wanted.mtu {
            netlink.set_mtu(link.index, wanted.mtu)?;
        }
        for address in &wanted.addresses {
            netlink.add_address(link.index, IpNetwork::from(*address))?;
        }
        netlink.set_up(link.index)?;
        refuse_taken(&mut netlink, link.index, wanted)?;
        for route in wanted.routes(link.index) {
            netlink.set_route(&route)?;
        }
        // The node may have asked for them in vain while no daemon ran.
        for router in &wanted.routers {
            netlink.forget_neighbor(link.index, *router)?;
        }
        remove_others(&mut netlink, link.index, wanted)
    })
}

/// How single addresses are routed to the switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SingleRoutes {
    /// Addresses of the interface that the node speaks from, one of a family at most.
    pub sources: Vec<IpAddr>,
    /// The switch's own addresses, at most one per family.
    pub routers: Vec<IpAddr>,
}

impl SingleRoutes {
    fn route(&self, address: IpAddr, index: u32) -> Option<Route> {
        let of_family = |list: &[IpAddr]| {
            list.iter().copied().find(|other| other.is_ipv4() == address.is_ipv4())
        };
        Some(Route {
            gateway: Some(of_family(&self.routers)?),
            // Without an address of its own, the node could not speak to it.
            source: Some(of_family(&self.sources)?),
            onlink: true,
            ..Route::via(address.into(), address, index)
        })
    }
}

/// Routes single addresses to the switch behind the interface `ifname` of the calling thread's namespace, and those in
/// `removed` no more; `None` stands for all others that are routed there. Addresses of a family that the node does not
/// speak are passed over. Goes on past errors and returns all of them.
pub fn set_single_routes(
    ifname: &str,
    routes: &SingleRoutes,
    added: &[IpAddr],
    removed: Option<&[IpAddr]>,
) -> Vec<LinkError> {
    let opened = Netlink::open().and_then(|mut netlink| {
        let link = netlink.link(ifname)?;
        let known = if removed.is_none() { netlink.routes()? } else { Vec::new() };
        Ok((netlink, link.index, known))
    });
    let (mut netlink, index, known) = match opened {
        Ok(opened) => opened,
        Err(error) => return vec![error],
    };
    let wanted: Vec<Route> =
        added.iter().filter_map(|address| routes.route(*address, index)).collect();
    let gone: Vec<Route> = match removed {
        Some(removed) => {
            removed.iter().filter_map(|address| routes.route(*address, index)).collect()
        }
        None => known
            .iter()
            .filter(|route| is_single(route, index) && !wanted.contains(route))
            .copied()
            .collect(),
    };
    let deleted = gone.iter().map(|route| netlink.delete_route(route)).collect::<Vec<_>>();
    let mut errors: Vec<LinkError> = deleted.into_iter().filter_map(Result::err).collect();
    for route in wanted.iter().filter(|route| !known.contains(route)) {
        // Of several routes to one address the kernel would follow one, and not say which.
        let done = netlink.set_route(route);
        errors.extend(done.err());
    }
    errors
}

/// Whether this is a route that [`set_single_routes`] made.
fn is_single(route: &Route, index: u32) -> bool {
    let destination = route.destination;
    route.index == index && route.onlink && destination == IpNetwork::from(destination.ip())
}

/// Removes the interface, and with it all its addresses and routes. One that is not there is not an
/// error.
///
/// # Errors
/// When the kernel refuses.
pub fn unconfigure_host(netns: Option<&Path>, ifname: &str) -> Result<(), LinkError> {
    in_netns(netns, || {
        let mut netlink = Netlink::open()?;
        match netlink.find_link(ifname)? {
            Some(link) => netlink.delete_link(link.index),
            None => Ok(()),
        }
    })
}

/// Another network plugin's route is not outdone, whatever its metric.
fn refuse_taken(
    netlink: &mut Netlink,
    index: u32,
    wanted: &HostInterface,
) -> Result<(), LinkError> {
    let known = netlink.routes()?;
    let rival = |route: &Route| {
        let same =
            |known: &&Route| known.destination == route.destination && known.index != route.index;
        known.iter().find(same)
    };
    match wanted.routes(index).find_map(|route| rival(&route)) {
        Some(other) => Err(netlink.taken(other)?),
        None => Ok(()),
    }
}

/// Removes what an earlier lease left on the interface. Link-local things are the kernel's own.
fn remove_others(
    netlink: &mut Netlink,
    index: u32,
    wanted: &HostInterface,
) -> Result<(), LinkError> {
    let routes: Vec<Route> = wanted.routes(index).collect();
    for route in netlink.routes()? {
        let ours = route.index == index && route.onlink && !is_single(&route, index);
        if ours && !routes.contains(&route) {
            netlink.delete_route(&route)?;
        }
    }
    for address in netlink.addresses(Some(index))? {
        let ip = address.address.ip();
        if !wanted.addresses.contains(&ip) && !is_link_local(ip) {
            netlink.delete_address(index, address.address)?;
        }
    }
    Ok(())
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn in_netns<T: Send>(
    netns: Option<&Path>,
    work: impl FnOnce() -> Result<T, LinkError> + Send,
) -> Result<T, LinkError> {
    match netns {
        Some(path) => Netns::open(path)?.run(work)?,
        None => work(),
    }
}
