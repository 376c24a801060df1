//! The kernel's own: what flannel's vxlan backend and the CNI plugin `bridge` set up.
//!
//! On every node a bridge `cni0` with the pods' veths and the node's subnet, a device `flannel.1` (VXLAN,
//! VNI 1, UDP 8472, no learning), and for every other node a route to its subnet, a neighbor and an FDB
//! entry, all static.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::Result;

use super::super::tools;
use super::{Ground, LINK, VXLAN_OVERHEAD};

/// Bytes that the tunnel adds: inner Ethernet, VXLAN, UDP, and IPv4 or IPv6.
fn overhead(underlay: IpAddr) -> u16 {
    if underlay.is_ipv4() { VXLAN_OVERHEAD } else { VXLAN_OVERHEAD + 20 }
}

pub(super) fn join(ground: &mut Ground) -> Result<()> {
    tools::require(&[tools::IP, tools::BRIDGE])?;
    let mtu = ground.wire.mtu() - overhead(ground.underlay(0)?);
    for node in 0..ground.layout.nodes {
        let node = usize::from(node);
        add_bridge(ground, node, mtu)?;
        add_tunnel(ground, node, mtu)?;
        for pod in 0..ground.layout.pods_per_node {
            add_pod(ground, node, pod, mtu)?;
        }
    }
    Ok(())
}

/// The bridge of a node's pods, which is also their router.
pub(super) fn add_bridge(ground: &Ground, node: usize, mtu: u16) -> Result<()> {
    let namespace = ground.node(node)?;
    let number = node + 1;
    namespace.run(|| -> std::io::Result<()> {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    })??;
    tools::ip(
        &namespace,
        &format!(
            "link add cni0 mtu {mtu} type bridge\n\
             link set cni0 up\n\
             address add 10.244.{number}.1/24 dev cni0\n\
             address add fd00:10:244:{number}::1/64 dev cni0 nodad\n"
        ),
    )
}

fn add_tunnel(ground: &Ground, node: usize, mtu: u16) -> Result<()> {
    let namespace = ground.node(node)?;
    let (number, local) = (node + 1, ground.underlay(node)?);
    // Writing to a string cannot fail.
    let mut links = format!(
        "link add flannel.1 mtu {mtu} address {} type vxlan id 1 dev {LINK} local {local} dstport 8472 nolearning\n\
         link set flannel.1 up\n\
         address add 10.244.{number}.0/32 dev flannel.1\n\
         address add fd00:10:244:{number}::/128 dev flannel.1 nodad\n",
        mac(node),
    );
    let mut entries = String::new();
    for peer in (0..usize::from(ground.layout.nodes)).filter(|peer| *peer != node) {
        let (number, mac, remote) = (peer + 1, mac(peer), ground.underlay(peer)?);
        let _ = write!(
            links,
            "neighbor replace 10.244.{number}.0 lladdr {mac} dev flannel.1 nud permanent\n\
             neighbor replace fd00:10:244:{number}:: lladdr {mac} dev flannel.1 nud permanent\n\
             route add 10.244.{number}.0/24 via 10.244.{number}.0 dev flannel.1 onlink\n\
             route add fd00:10:244:{number}::/64 via fd00:10:244:{number}:: dev flannel.1 onlink\n"
        );
        let _ = writeln!(entries, "fdb append {mac} dev flannel.1 dst {remote} self permanent");
    }
    tools::ip(&namespace, &links)?;
    tools::bridge(&namespace, &entries)
}

/// A pod on the bridge, as the CNI plugin `bridge` makes it.
pub(super) fn add_pod(ground: &mut Ground, node: usize, pod: u8, mtu: u16) -> Result<()> {
    let (number, host) = (u8::try_from(node + 1)?, pod + 2);
    let v6 = [0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, host.into()];
    let addresses = vec![IpAddr::from([10, 244, number, host]), IpAddr::from(v6)];
    let [v4, v6] = [addresses[0], addresses[1]];
    let made = ground.make_pod(node, addresses)?;
    let path = made.namespace.path().display().to_string();
    tools::ip(
        &ground.node(node)?,
        &format!(
            "link add veth{pod} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {path}\n\
             link set veth{pod} master cni0 up\n"
        ),
    )?;
    tools::ip(
        &made.namespace,
        &format!(
            "link set eth0 up\n\
             address add {v4}/24 dev eth0\n\
             address add {v6}/64 dev eth0 nodad\n\
             route add default via 10.244.{number}.1\n\
             route add default via fd00:10:244:{number}::1\n"
        ),
    )
}

/// The address of a node's tunnel device.
fn mac(node: usize) -> String {
    format!("0e:00:00:00:00:{:02x}", node + 1)
}
