//! Kernel settings of an interface. `/proc/sys/net` shows the namespace of the thread that looks.

use std::io;
use std::path::PathBuf;

use super::LinkError;

/// Settings of one interface, or of its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sysctl<'a> {
    /// `net.ipv4.conf.IFNAME.KEY`
    Ipv4 {
        /// The interface, or `all` or `default`.
        ifname: &'a str,
        /// The setting.
        key: &'a str,
    },
    /// `net.ipv6.conf.IFNAME.KEY`
    Ipv6 {
        /// The interface, or `all` or `default`.
        ifname: &'a str,
        /// The setting.
        key: &'a str,
    },
    /// `net.ipv4.ip_forward`
    Ipv4Forward,
}

impl Sysctl<'_> {
    fn path(self) -> PathBuf {
        match self {
            Self::Ipv4 { ifname, key } => ["/proc/sys/net/ipv4/conf", ifname, key].iter().collect(),
            Self::Ipv6 { ifname, key } => ["/proc/sys/net/ipv6/conf", ifname, key].iter().collect(),
            Self::Ipv4Forward => "/proc/sys/net/ipv4/ip_forward".into(),
        }
    }
}

/// Sets a value, in the namespace of the calling thread. A value that is already there is not written,
/// so that a read-only `/proc/sys` with the right values does no harm.
///
/// # Errors
/// When the kernel does not have the setting, or does not let us change it.
pub fn set_sysctl(sysctl: Sysctl<'_>, value: &str) -> Result<(), LinkError> {
    let path = sysctl.path();
    let change = |path: &PathBuf| -> io::Result<()> {
        if std::fs::read_to_string(path)?.trim_end() == value {
            return Ok(());
        }
        std::fs::write(path, value)
    };
    change(&path).map_err(|cause| LinkError::Sysctl { path, value: value.to_owned(), cause })
}

/// Makes an interface take its IPv6 configuration from us alone, and use addresses at once: no
/// duplicate address detection (the daemon is the one that hands addresses out), no router
/// advertisements. To be set while the interface is down.
pub(super) fn prepare_ipv6(ifname: &str) -> Result<(), LinkError> {
    for (key, value) in [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0")] {
        set_sysctl(Sysctl::Ipv6 { ifname, key }, value)?;
    }
    Ok(())
}
