//! The few kernel settings that a node needs, each with its reason.

use std::fs;

use cni::link::{LinkError, Sysctl, set_sysctl};

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{cause}: {consequence}")]
pub struct SettingError {
    cause: LinkError,
    consequence: &'static str,
}

/// Lets the node forward between pods and the world.
///
/// For IPv6, forwarding makes the kernel ignore router advertisements on interfaces that listened to them
/// (`accept_ra` 1, Documentation/networking/ip-sysctl.rst); those are switched to 2 first, so that the node
/// keeps its own default route.
///
/// # Errors
/// When a setting can neither be found right nor be set.
pub fn enable_forwarding(ipv6: bool) -> Result<(), SettingError> {
    let consequence = "pods cannot reach the world outside through this node";
    set(Sysctl::Ipv4Forward, "1", consequence)?;
    let forwards = fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding");
    if !ipv6 || forwards.is_ok_and(|value| value.trim() != "0") {
        return Ok(());
    }
    for interface in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let listens = fs::read_to_string(interface.path().join("accept_ra"));
        let name = interface.file_name();
        if let (true, Some(ifname)) = (listens.is_ok_and(|v| v.trim() == "1"), name.to_str()) {
            let consequence = "the node would lose the default route that it learned from a router";
            set(Sysctl::Ipv6 { ifname, key: "accept_ra" }, "2", consequence)?;
        }
    }
    set(Sysctl::Ipv6 { ifname: "all", key: "forwarding" }, "1", consequence)
}

/// Accepts on `interface` packets whose source would be answered through another one: a node may reach
/// this node's pods from its underlay address (RFC 3704 §2.4, loose mode).
///
/// # Errors
/// When the setting can neither be found right nor be set.
pub fn loosen_reverse_path_filter(interface: &str) -> Result<(), SettingError> {
    let consequence = "other nodes cannot reach this node under its pod-network address";
    set(Sysctl::Ipv4 { ifname: interface, key: "rp_filter" }, "2", consequence)
}

/// Accepts on `interface` packets from the node's own addresses: what answers to a node port comes from the switch,
/// from the address that was asked. IPv6 has no such setting, and needs none.
///
/// # Errors
/// When the setting can neither be found right nor be set.
pub fn accept_own_addresses(interface: &str) -> Result<(), SettingError> {
    let consequence = "this node does not reach node ports and external IPs under its own address";
    set(Sysctl::Ipv4 { ifname: interface, key: "accept_local" }, "1", consequence)
}

fn set(setting: Sysctl<'_>, value: &str, consequence: &'static str) -> Result<(), SettingError> {
    set_sysctl(setting, value).map_err(|cause| SettingError { cause, consequence })
}
