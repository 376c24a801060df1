//! A pod's interface: what it has to look like, making it so, and saying what is different.
//!
//! ```text
//! eth0  MAC, MTU, up   10.244.1.5/32            fd00:10:244:1::5/128
//!       routes         10.244.1.1 dev eth0      fd00:10:244:1::1 dev eth0
//!                      default via 10.244.1.1   default via fd00:10:244:1::1
//! ```
//!
//! A pod may have several interfaces. Where another one has the default route or the route to the gateway
//! already, a later one gets its address and a route to the gateway of its own, with a metric of its own:
//!
//! ```text
//! net1  routes         10.244.1.1 dev net1 metric 4099
//! ```
//!
//! So the pod's traffic keeps its way, and sockets that are bound to the later interface reach the gateway.
//! Answers from its address leave by the first one, whose address they do not have, and end there; chain the
//! plugin `sbr` to route by source address.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

use super::routes::default_destination;
use super::sysctl::prepare_ipv6;
use super::{Address, Link, LinkError, Netlink, Route};
use crate::netns::Netns;

/// What a pod's interface has to look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInterface {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its addresses. Each gets the longest prefix: the pod has no neighbours but its gateway.
    pub addresses: Vec<IpAddr>,
    /// Its gateways, at most one per family. All traffic goes through them.
    pub gateways: Vec<IpAddr>,
}

impl PodInterface {
    /// The routes that it needs; `is_later` knows the gateways that another interface leads to already.
    fn routes(&self, index: u32, is_later: impl Fn(IpAddr) -> bool) -> Vec<Route> {
        let routes = self.gateways.iter().flat_map(|gateway| {
            if is_later(*gateway) {
                return vec![later_route(*gateway, index)];
            }
            vec![Route::on_link(IpNetwork::from(*gateway), index), default_via(*gateway, index)]
        });
        routes.collect()
    }

    fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }
}

/// Something that is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What is different, such as `MTU`.
    pub what: String,
    /// How it has to be.
    pub expected: String,
    /// How it is.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.what, self.expected, self.found)
    }
}

/// Makes the interface `ifname` in the namespace at `netns` look as it has to. It has to exist. May be
/// repeated.
///
/// # Errors
/// When the namespace or the interface is not there, or the kernel refuses something, or does not come to
/// use an address. What was done until then stays: the interface goes away with the attachment.
pub fn configure_pod(netns: &Path, ifname: &str, wanted: &PodInterface) -> Result<(), LinkError> {
    let netns = Netns::open(netns)?;
    netns.run(|| {
        let mut netlink = Netlink::open()?.in_foreign_hands();
        set_up_loopback(&mut netlink)?;
        configure(&mut netlink, ifname, wanted)
    })?
}

/// Compares the interface `ifname` in the namespace at `netns` with how it has to look. The list is
/// empty when all is right. Addresses and routes that others added are their business.
///
/// # Errors
/// When the namespace is not there, or the kernel does not say.
pub fn check_pod(
    netns: &Path,
    ifname: &str,
    wanted: &PodInterface,
) -> Result<Vec<Difference>, LinkError> {
    let mut netlink = Netlink::open_in(netns)?;
    let Some(link) = netlink.find_link(ifname)? else {
        return Ok(vec![Difference {
            what: format!("interface {ifname}"),
            expected: "present".into(),
            found: "none".into(),
        }]);
    };
    let mut differences = compare_link(&link, wanted);
    let addresses = netlink.addresses(Some(link.index))?;
    differences.extend(wanted.addresses.iter().filter_map(|ip| compare_address(*ip, &addresses)));
    let routes = netlink.routes()?;
    let has_later = |gateway| {
        let other = |route: &Route| is_plain_route_to(route, gateway) && route.index != link.index;
        routes.contains(&later_route(gateway, link.index)) || routes.iter().any(other)
    };
    let wanted = wanted.routes(link.index, has_later);
    differences.extend(wanted.iter().filter_map(|route| compare_route(route, &routes)));
    Ok(differences)
}

/// Those of `gateways` that the default routes of the interface `ifname` lead to: all, unless another
/// interface of the pod had a default route before. These are the routes to promise in a result.
///
/// # Errors
/// When the namespace or the interface is not there, or the kernel does not say.
pub fn default_gateways(
    netns: &Path,
    ifname: &str,
    gateways: &[IpAddr],
) -> Result<Vec<IpAddr>, LinkError> {
    let mut netlink = Netlink::open_in(netns)?;
    let index = netlink.link(ifname)?.index;
    let routes = netlink.routes()?;
    let leads = |gateway: &IpAddr| routes.contains(&default_via(*gateway, index));
    Ok(gateways.iter().copied().filter(leads).collect())
}

fn default_via(gateway: IpAddr, index: u32) -> Route {
    Route::via(default_destination(gateway.is_ipv4()), gateway, index)
}

/// The route of a later interface: with a metric that no other interface has.
fn later_route(gateway: IpAddr, index: u32) -> Route {
    let metric = LATER_METRIC.saturating_add(index);
    Route { metric, ..Route::on_link(IpNetwork::from(gateway), index) }
}

/// Above what the kernel and its usual tools choose.
const LATER_METRIC: u32 = 4096;

fn is_plain_route_to(route: &Route, gateway: IpAddr) -> bool {
    route.destination == IpNetwork::from(gateway) && route.metric < LATER_METRIC
}

/// A pod's processes talk to each other through `lo`; no plugin of ours is needed for that.
fn set_up_loopback(netlink: &mut Netlink) -> Result<(), LinkError> {
    match netlink.find_link("lo")? {
        Some(lo) if !lo.is_up => netlink.set_up(lo.index),
        Some(_) | None => Ok(()),
    }
}

fn configure(netlink: &mut Netlink, ifname: &str, wanted: &PodInterface) -> Result<(), LinkError> {
    let link = netlink.link(ifname)?;
    if wanted.has_ipv6() {
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
    netlink.set_gso_max(link.index, GSO_SIZE_MAX, super_frame_segments(wanted.mtu))?;
    // Routes need an interface that is up.
    netlink.set_up(link.index)?;
    let known = netlink.routes()?;
    let is_later = |gateway: IpAddr| {
        let everywhere = default_destination(gateway.is_ipv4());
        let other = |route: &Route| {
            let rival = route.destination == everywhere || is_plain_route_to(route, gateway);
            rival && route.index != link.index
        };
        !known.contains(&default_via(gateway, link.index)) && known.iter().any(other)
    };
    for route in wanted.routes(link.index, is_later) {
        netlink.set_route(&route)?;
    }
    // The pod may have asked for it in vain while no daemon ran.
    wanted.gateways.iter().try_for_each(|gateway| netlink.forget_neighbor(link.index, *gateway))?;
    wanted.addresses.iter().try_for_each(|address| wait_until_local(netlink, ifname, *address))
}

/// The longest super-frame in bytes, as every driver takes it (`GSO_LEGACY_MAX_SIZE`, linux/netdevice.h).
const GSO_SIZE_MAX: u32 = 65_536;

/// As many segments as one send through the tunnel holds: a longer super-frame would end in a second, short
/// one. A UDP datagram has 65 507 bytes, of which each segment takes an Ethernet and a VXLAN header.
fn super_frame_segments(mtu: u32) -> u32 {
    (65_507 / (mtu + 14 + 8)).max(1)
}

/// Waits until the pod takes what is sent to `address`. The kernel routes an IPv6 address to its interface
/// only some time after it was added and the interface set up, in work of its own (`addrconf_dad_work`,
/// net/ipv6/addrconf.c); a packet that came before would be lost.
fn wait_until_local(netlink: &mut Netlink, ifname: &str, address: IpAddr) -> Result<(), LinkError> {
    let start = Instant::now();
    while !netlink.is_local(address)? {
        let waited = start.elapsed();
        if waited >= LOCAL_LIMIT {
            return Err(LinkError::NotLocal { ifname: ifname.to_owned(), address, waited });
        }
        // Looking again is simpler than a subscription, whose messages may be lost.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(LOCAL_CHECK_INTERVAL);
    }
    Ok(())
}

/// How long the kernel may take to route an address to its interface. It takes a few milliseconds on a
/// busy machine.
const LOCAL_LIMIT: Duration = Duration::from_secs(1);

/// How often it is looked at.
const LOCAL_CHECK_INTERVAL: Duration = Duration::from_millis(1);

fn compare_link(link: &Link, wanted: &PodInterface) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, expected: String, found: String| {
        if expected != found {
            differences.push(Difference { what: what.to_owned(), expected, found });
        }
    };
    let state = |is_up| String::from(if is_up { "up" } else { "down" });
    compare("state", state(true), state(link.is_up));
    compare("MAC", mac_text(Some(wanted.mac)), mac_text(link.mac));
    compare("MTU", wanted.mtu.to_string(), link.mtu.to_string());
    differences
}

fn compare_address(ip: IpAddr, addresses: &[Address]) -> Option<Difference> {
    let wanted = IpNetwork::from(ip);
    let found = match addresses.iter().find(|address| address.address.ip() == ip) {
        Some(address) if address.address != wanted => address.address.to_string(),
        Some(address) if address.is_tentative => "not usable yet (tentative)".into(),
        Some(_) => return None,
        None => "none".into(),
    };
    Some(Difference { what: "address".into(), expected: wanted.to_string(), found })
}

fn compare_route(wanted: &Route, routes: &[Route]) -> Option<Difference> {
    if routes.contains(wanted) {
        return None;
    }
    let found = routes.iter().find(|route| route.destination == wanted.destination);
    let text = |route: &Route| match route.gateway {
        Some(gateway) => format!("via {gateway} on interface {}", route.index),
        None => format!("on the link of interface {}", route.index),
    };
    Some(Difference {
        what: format!("route to {}", wanted.destination),
        expected: text(wanted),
        found: found.map_or_else(|| "none".into(), text),
    })
}

fn mac_text(mac: Option<[u8; 6]>) -> String {
    match mac {
        Some(mac) => mac.map(|byte| format!("{byte:02x}")).join(":"),
        None => "none".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> PodInterface {
        PodInterface {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1450,
            addresses: vec!["10.244.1.5".parse().unwrap()],
            gateways: vec!["10.244.1.1".parse().unwrap()],
        }
    }

    #[test]
    fn each_difference_of_a_link_is_named() {
        let link = Link {
            index: 2,
            name: "eth0".into(),
            mac: Some([2, 0, 0, 0, 0, 2]),
            mtu: 1500,
            is_up: false,
            has_carrier: false,
            master: None,
            kind: "tun".into(),
        };
        let text: Vec<_> = compare_link(&link, &wanted()).iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "state: expected up, found down",
                "MAC: expected 02:00:00:00:00:01, found 02:00:00:00:00:02",
                "MTU: expected 1450, found 1500",
            ]
        );
    }

    #[test]
    fn each_difference_of_an_address_is_named() {
        let ip = "fd00::5".parse().unwrap();
        let address = |text: &str, is_tentative| {
            vec![Address { index: 2, address: text.parse().unwrap(), is_tentative }]
        };
        let found = |addresses: &[Address]| compare_address(ip, addresses).map(|one| one.found);
        assert_eq!(found(&address("fd00::5/128", false)), None);
        assert_eq!(found(&address("fd00::5/128", true)).unwrap(), "not usable yet (tentative)");
        assert_eq!(found(&address("fd00::5/64", false)).unwrap(), "fd00::5/64");
        assert_eq!(found(&address("fd00::6/128", false)).unwrap(), "none");
    }

    #[test]
    fn each_difference_of_a_route_is_named() {
        let routes = wanted().routes(2, |_| false);
        assert_eq!(routes.len(), 2);
        assert_eq!(compare_route(&routes[1], &routes), None);
        let other = Route { gateway: Some("10.9.9.9".parse().unwrap()), ..routes[1] };
        assert_eq!(
            compare_route(&routes[1], &[other]).unwrap().to_string(),
            "route to 0.0.0.0/0: expected via 10.244.1.1 on interface 2, \
             found via 10.9.9.9 on interface 2"
        );
        assert_eq!(compare_route(&routes[0], &[]).unwrap().found, "none");
    }
}
