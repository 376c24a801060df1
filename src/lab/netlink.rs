//! The lab's links: bridges, veth pairs, addresses and routes, each made in the namespace where it is.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};

use super::namespace::Namespace;

/// Runs `work` with a netlink connection in `namespace`.
fn with<T: Send>(
    namespace: &Namespace,
    work: impl AsyncFnOnce(Handle) -> Result<T> + Send,
) -> Result<T> {
    let entered = namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let done = work(handle).await;
            connection.abort();
            done
        })
    });
    entered.with_context(|| format!("entering namespace {}", namespace.path().display()))?
}

/// Makes a namespace ready for links: loopback is up, and IPv6 addresses are usable at once instead of
/// after a second of duplicate address detection (RFC 4862 §5.4).
pub(super) fn prepare(namespace: &Namespace) -> Result<()> {
    for group in ["all", "default"] {
        let key = format!("/proc/sys/net/ipv6/conf/{group}/accept_dad");
        // Without the file, the kernel has no IPv6, and nothing waits for the detection.
        if fs::exists(&key)? {
            namespace.run(|| fs::write(&key, "0"))?.with_context(|| format!("writing {key}"))?;
        }
    }
    set_up(namespace, "lo", true)
}

/// Lets `namespace` forward packets.
pub(super) fn enable_forwarding(namespace: &Namespace) -> Result<()> {
    for key in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
        if fs::exists(key)? {
            namespace.run(|| fs::write(key, "1"))?.with_context(|| format!("writing {key}"))?;
        }
    }
    Ok(())
}

/// Makes a bridge that is up.
pub(super) fn add_bridge(namespace: &Namespace, name: &str, mtu: u16) -> Result<()> {
    with(namespace, async |handle| {
        // Snooping would lose neighbor discovery when nobody sends multicast queries.
        let bridge = LinkBridge::new(name).mcast_snooping(false).build();
        let context = || format!("making bridge {name}");
        handle.link().add(bridge).execute().await.with_context(context)?;
        let mtu = LinkUnspec::new_with_name(name).mtu(mtu.into()).build();
        handle.link().set(mtu).execute().await.with_context(context)
    })
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
    let far_fd = far.namespace.open()?;
    with(near.namespace, async |handle| {
        let peer = LinkMessageBuilder::<LinkUnspec>::default()
            .name(far.name.to_owned())
            .mtu(mtu.into())
            .setns_by_fd(far_fd.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(near.name, far.name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(mtu.into())
            .up()
            .build();
        let context = || format!("making link {} to {}", near.name, far.name);
        handle.link().add(pair).execute().await.with_context(context)
    })?;
    set_up(far.namespace, far.name, true)
}

/// Removes a link; with one end of a veth pair goes the other.
pub(super) fn remove_link(namespace: &Namespace, name: &str) -> Result<()> {
    with(namespace, async |handle| {
        let index = index_of(name)?;
        let context = || format!("removing link {name}");
        handle.link().del(index).execute().await.with_context(context)
    })
}

/// Makes `name` a port of `bridge`.
pub(super) fn join_bridge(namespace: &Namespace, name: &str, bridge: &str) -> Result<()> {
    with(namespace, async |handle| {
        let bridge = index_of(bridge)?;
        let port = LinkUnspec::new_with_name(name).controller(bridge).build();
        let context = || format!("joining link {name} to the bridge");
        handle.link().set(port).execute().await.with_context(context)
    })
}

/// Sets a link up or down.
pub(super) fn set_up(namespace: &Namespace, name: &str, up: bool) -> Result<()> {
    with(namespace, async |handle| {
        let link = LinkUnspec::new_with_name(name);
        let link = if up { link.up() } else { link.down() };
        let context = || format!("setting link {name} {}", if up { "up" } else { "down" });
        handle.link().set(link.build()).execute().await.with_context(context)
    })
}

/// Sets a link's MTU.
pub(super) fn set_mtu(namespace: &Namespace, name: &str, mtu: u16) -> Result<()> {
    with(namespace, async |handle| {
        let link = LinkUnspec::new_with_name(name).mtu(mtu.into()).build();
        let context = || format!("setting MTU {mtu} on link {name}");
        handle.link().set(link).execute().await.with_context(context)
    })
}

/// Adds an address to a link.
pub(super) fn add_address(namespace: &Namespace, name: &str, address: IpNetwork) -> Result<()> {
    with(namespace, async |handle| {
        let index = index_of(name)?;
        let mut request = handle.address().add(index, address.ip(), address.prefix());
        if address.is_ipv6() {
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
        }
        let context = || format!("adding address {address} to link {name}");
        request.execute().await.with_context(context)
    })
}

/// Adds a route.
pub(super) fn add_route(
    namespace: &Namespace,
    destination: IpNetwork,
    gateway: IpAddr,
) -> Result<()> {
    with(namespace, async |handle| {
        let context = || format!("adding the route to {destination} by {gateway}");
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination.network(), destination.prefix())
            .and_then(|route| route.gateway(gateway))
            .with_context(context)?;
        handle.route().add(route.build()).execute().await.with_context(context)
    })
}

/// The index of a link of the namespace that the calling thread is in.
fn index_of(name: &str) -> Result<u32> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    name_to_index(&socket, name).with_context(|| format!("looking for link {name}"))
}
