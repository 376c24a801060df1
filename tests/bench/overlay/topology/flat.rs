//! Pods on one link that spans all nodes, and that know each other's MAC addresses beforehand: for
//! contestants that only switch, and answer no ARP.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::Result;

use super::super::tools;
use super::{Ground, Pod};

/// Address of an interface.
pub(super) type Mac = [u8; 6];

/// A pod with its place.
#[derive(Debug)]
pub(super) struct Place {
    /// Index of its node.
    pub(super) node: usize,
    /// Index on the node.
    pub(super) ix: usize,
    /// Its MAC address.
    pub(super) mac: Mac,
    pub(super) pod: Pod,
}

/// Makes the pods' namespaces, still without a device.
pub(super) fn make_pods(ground: &mut Ground) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for node in 0..usize::from(ground.layout.nodes) {
        for ix in 0..usize::from(ground.layout.pods_per_node) {
            let (node_byte, ix_byte) = (u8::try_from(node)?, u8::try_from(ix)?);
            let address = IpAddr::from([10, 244, node_byte + 1, ix_byte + 2]);
            let pod = ground.make_pod(node, vec![address])?;
            places.push(Place { node, ix, mac: [0x0e, 0, 0, 1, node_byte, ix_byte], pod });
        }
    }
    Ok(places)
}

/// Configures the device `eth0` of a pod.
pub(super) fn configure(place: &Place, everybody: &[Place], mtu: u16) -> Result<()> {
    // Writing to a string cannot fail.
    let mut script = format!(
        "link set eth0 address {} mtu {mtu} up\naddress add {}/16 dev eth0\n",
        text(place.mac),
        place.pod.addresses[0]
    );
    for other in everybody.iter().filter(|other| other.mac != place.mac) {
        let (address, mac) = (other.pod.addresses[0], text(other.mac));
        let _ = writeln!(script, "neighbor replace {address} lladdr {mac} dev eth0 nud permanent");
    }
    tools::ip(&place.pod.namespace, &script)
}

/// A MAC address as programs take it.
pub(super) fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
