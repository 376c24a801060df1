//! Routes of the main table: list, make, delete.
// The kernel has many more kinds of everything than concern us.
#![allow(clippy::wildcard_enum_match_arm)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol,
    RouteScope as KernelScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::error::unless;
use super::netlink::family;
use super::{LinkError, Netlink};

/// How far a route's destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteScope {
    /// Anywhere.
    Universe,
    /// On the link itself.
    Link,
    /// Another, which we never make.
    Other,
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads; length 0 for the default route.
    pub destination: IpNetwork,
    /// The next hop; without one, the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The interface's index.
    pub index: u32,
    /// The source address that sockets use which have not chosen one.
    pub source: Option<IpAddr>,
    /// How far. IPv6 has no scopes: the kernel always says universe.
    pub scope: RouteScope,
    /// The next hop is on the link although no route says so.
    pub onlink: bool,
    /// Of several routes to one destination the lowest counts; 0 for what the family uses when nothing is
    /// said.
    pub metric: u32,
}

impl Route {
    /// A destination that is on the link itself.
    pub fn on_link(destination: IpNetwork, index: u32) -> Self {
        let scope = if destination.is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
        Self { destination, gateway: None, index, source: None, scope, onlink: false, metric: 0 }
    }

    /// A destination behind a next hop.
    pub fn via(destination: IpNetwork, gateway: IpAddr, index: u32) -> Self {
        Self {
            destination,
            gateway: Some(gateway),
            index,
            source: None,
            scope: RouteScope::Universe,
            onlink: false,
            metric: 0,
        }
    }
}

/// The metric of an IPv6 route that was made without one (linux/ipv6_route.h, `IP6_RT_PRIO_USER`).
const IPV6_METRIC: u32 = 1024;

/// The default destination of a family.
pub(super) fn default_destination(is_ipv4: bool) -> IpNetwork {
    let any: IpAddr =
        if is_ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    IpNetwork::new(any, 0).expect("0 is a prefix length of either family")
}

impl Netlink {
    /// The unicast routes of the main table, without those that lead to several next hops.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn routes(&mut self) -> Result<Vec<Route>, LinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            let list = self.dump(&RouteNetlinkMessage::GetRoute(request), "list the routes")?;
            routes.extend(list.into_iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) => read_route(&route),
                _ => None,
            }));
        }
        Ok(routes)
    }

    /// Whether the namespace takes packets to `address` for its own.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_local(&mut self, address: IpAddr) -> Result<bool, LinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = family(address.is_ipv4());
        request.header.destination_prefix_length = IpNetwork::from(address).prefix();
        request.attributes.push(RouteAttribute::Destination(address.into()));
        let what = || format!("look for the route to {address}");
        match self.ask(RouteNetlinkMessage::GetRoute(request), what) {
            Ok(Some(RouteNetlinkMessage::NewRoute(route))) => {
                Ok(route.header.kind == RouteType::Local)
            }
            Ok(_) => Ok(false),
            Err(error) if error.refusal().is_some_and(is_no_route) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a route, instead of one with the same destination and metric if the same interface has one.
    /// The list of routes, which may be long, is looked at only if there is one already.
    ///
    /// # Errors
    /// [`LinkError::RouteTaken`] when another interface has one, and whatever the kernel refuses.
    pub fn set_route(&mut self, route: &Route) -> Result<(), LinkError> {
        let message = RouteNetlinkMessage::NewRoute(route_message(route));
        let made =
            self.execute(message.clone(), NLM_F_CREATE | NLM_F_EXCL, || describe("make", route));
        match made {
            Err(error) if error.refusal() == Some(libc::EEXIST) => {}
            other => return other,
        }
        let routes = self.routes()?;
        if routes.contains(route) {
            return Ok(());
        }
        let rival = |known: &&Route| {
            known.destination == route.destination
                && known.metric == route.metric
                && known.index != route.index
        };
        if let Some(other) = routes.iter().find(rival) {
            return Err(self.taken(other)?);
        }
        self.execute(message, NLM_F_CREATE | NLM_F_REPLACE, || describe("make", route))
    }

    /// Tells that `other` is in the way.
    pub(super) fn taken(&mut self, other: &Route) -> Result<LinkError, LinkError> {
        let device = self.links()?.into_iter().find(|link| link.index == other.index);
        Ok(LinkError::RouteTaken {
            destination: other.destination,
            device: device.map_or_else(|| other.index.to_string(), |link| link.name),
        })
    }

    /// Deletes a route. One that is gone already is not an error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), LinkError> {
        let message = RouteNetlinkMessage::DelRoute(route_message(route));
        unless(self.execute(message, 0, || describe("delete", route)), libc::ESRCH)
    }
}

/// How the kernel says that nothing leads there, and that a route forbids it.
fn is_no_route(errno: i32) -> bool {
    [libc::ENETUNREACH, libc::EHOSTUNREACH].contains(&errno)
}

fn describe(action: &str, route: &Route) -> String {
    let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    format!("{action} the route to {}{via} on interface {}", route.destination, route.index)
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let is_ipv4 = header.address_family == AddressFamily::Inet;
    let (mut destination, mut gateway, mut index, mut source) = (None, None, None, None);
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = read_ip(address),
            RouteAttribute::Gateway(address) => gateway = read_ip(address),
            RouteAttribute::PrefSource(address) => source = read_ip(address),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Priority(priority) if is_ipv4 || *priority != IPV6_METRIC => {
                metric = *priority;
            }
            // A route that was cloned from a neighbour discovery exchange, not one that was made.
            RouteAttribute::Expires(_) => return None,
            _ => {}
        }
    }
    let any = default_destination(is_ipv4).ip();
    let destination =
        IpNetwork::new(destination.unwrap_or(any), header.destination_prefix_length).ok()?;
    Some(Route {
        destination,
        gateway,
        index: index?,
        source,
        scope: match header.scope {
            KernelScope::Universe => RouteScope::Universe,
            KernelScope::Link => RouteScope::Link,
            _ => RouteScope::Other,
        },
        onlink: header.flags.contains(RouteFlags::Onlink),
        metric,
    })
}

fn read_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination.is_ipv4());
    header.destination_prefix_length = route.destination.prefix();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::Static;
    header.kind = RouteType::Unicast;
    header.scope = match route.scope {
        RouteScope::Link => KernelScope::Link,
        RouteScope::Universe | RouteScope::Other => KernelScope::Universe,
    };
    if route.onlink {
        header.flags.insert(RouteFlags::Onlink);
    }
    message.attributes.push(RouteAttribute::Oif(route.index));
    if route.destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    }
    if let Some(gateway) = route.gateway {
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if route.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    message
}
