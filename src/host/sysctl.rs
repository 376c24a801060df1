//! The few kernel settings that a node needs, each with its reason.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("kernel setting {path}: {source}: {consequence}")]
pub struct Error {
    path: String,
    source: io::Error,
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
pub fn enable_forwarding(ipv6: bool) -> Result<(), Error> {
    const CONSEQUENCE: &str = "pods cannot reach the world outside through this node";
    set("net/ipv4/ip_forward", "1", CONSEQUENCE)?;
    if !ipv6 || get("net/ipv6/conf/all/forwarding").is_ok_and(|value| value != "0") {
        return Ok(());
    }
    let interfaces = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    for interface in interfaces {
        let name = interface.file_name();
        let key = format!("net/ipv6/conf/{}/accept_ra", name.to_string_lossy());
        if get(&key).is_ok_and(|value| value == "1") {
            set(&key, "2", "the node would lose the default route that it learned from a router")?;
        }
    }
    set("net/ipv6/conf/all/forwarding", "1", CONSEQUENCE)
}

/// Accepts on `interface` packets whose source would be answered through another one: a node may reach
/// this node's pods from its underlay address (RFC 3704 §2.4, loose mode).
///
/// # Errors
/// When the setting can neither be found right nor be set.
pub fn loosen_reverse_path_filter(interface: &str) -> Result<(), Error> {
    let key = format!("net/ipv4/conf/{interface}/rp_filter");
    set(&key, "2", "other nodes cannot reach this node under its pod-network address")
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}

fn get(key: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(key))?.trim().to_owned())
}

/// Writes only what is not so already: in a container the setting may be right and read-only.
fn set(key: &str, value: &str, consequence: &'static str) -> Result<(), Error> {
    if get(key).is_ok_and(|current| current == value) {
        return Ok(());
    }
    fs::write(path(key), value).map_err(|source| Error {
        path: path(key).display().to_string(),
        source,
        consequence,
    })
}
