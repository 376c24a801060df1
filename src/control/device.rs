//! The devices at the other end of ports: how they are opened, and removed without a trace.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::link::{self, LinkError, Netlink, Sysctl};
use cni::netns::{self, NetnsError};
use ipam::{Allocation, Attachment, Netns, PortKind};
use vswitch::engine::Port;
use vswitch::offload::LongFrames;
use vswitch::port::{PortIx, Sink};
use vswitch::shape::{Limits, Shaper};
use vswitch::tap::{Tap, TapError};
use vswitch::veth::{Veth, VethError};

use super::kernel_drops::{self, TxDrops};

/// The device at the other end of a port.
#[derive(Debug)]
pub(super) enum Device {
    /// A pod's interface.
    Tap {
        /// The open device.
        tap: Tap,
        /// What the pod's kernel could not queue for it; absent where /proc does not tell.
        drops: Option<TxDrops>,
    },
    /// An interface of the host.
    Veth {
        /// The open device.
        veth: Veth,
        /// Whether the host is to speak IPv6 on it afterwards.
        had_ipv6: bool,
    },
}

/// Why a device could not be opened or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The pod's interface could not be made.
    #[error("in network namespace {}: {cause}", netns.display())]
    Tap {
        /// The namespace.
        netns: PathBuf,
        /// What failed.
        cause: TapError,
    },
    /// The pod shares the network of the node.
    #[error("{} is the node's own network namespace: a pod there has the node's network", .0.display())]
    OwnNetns(PathBuf),
    /// The interface is another plugin's, and has no port.
    #[error("{0} only has addresses of this node: its interface is another plugin's")]
    Foreign(Attachment),
    /// The port's rate cannot be limited.
    #[error("cannot limit the rate of a port: {0}")]
    Shape(io::Error),
    /// The host's device cannot be opened.
    #[error(transparent)]
    Veth(#[from] VethError),
    /// The host itself needs the device.
    #[error(
        "{device} cannot become a port: {why}. Give one end of a veth pair, or a tap, without addresses"
    )]
    InUse {
        /// The device.
        device: String,
        /// What the host needs it for.
        why: String,
    },
    /// The kernel refused to tell of, or to change, a link.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Device {
    /// Opens the device of `attachment`, making the pod's if it is not there.
    pub(super) fn open(attachment: &Attachment, port: &PortKind) -> Result<Self, DeviceError> {
        match port {
            PortKind::Tap { netns } => {
                let ifname = &attachment.ifname;
                let (tap, drops) = netns::run_in(&netns.path, || {
                    let tap = Tap::open(ifname)?;
                    Ok((tap, TxDrops::open(ifname)))
                })?
                .map_err(|cause| DeviceError::Tap { netns: netns.path.clone(), cause })?;
                Ok(Self::Tap { tap, drops: kernel_drops::found(ifname, drops) })
            }
            PortKind::AfPacket { device, had_ipv6, .. } => {
                let veth = Veth::open(device)?;
                // The host must not answer there: the device belongs to the switch now.
                set_ipv6(device, false)?;
                Ok(Self::Veth { veth, had_ipv6: *had_ipv6 })
            }
            PortKind::Foreign { .. } => Err(DeviceError::Foreign(attachment.clone())),
        }
    }

    /// The device as a port for an engine with `workers` workers. `long` is what the kernel takes of long
    /// super-frames.
    pub(super) fn port(&self, port: PortIx, workers: usize, long: LongFrames) -> Port {
        match self {
            Self::Tap { tap, .. } => Port {
                source: Box::new(tap.source(port)),
                sinks: (0..workers).map(|_| Box::new(tap.sink(port, long)) as _).collect(),
            },
            Self::Veth { veth, .. } => Port {
                source: Box::new(veth.source(port)),
                sinks: (0..workers).map(|_| Box::new(veth.sink(port)) as _).collect(),
            },
        }
    }

    /// The halves of a port with limits around them, and what they can be changed with.
    pub(super) fn shaped(
        &self,
        port: PortIx,
        halves: Port,
        limits: Limits,
        long: LongFrames,
    ) -> Result<(Port, Option<Shaper>), DeviceError> {
        let shaper = Shaper::new(limits).map_err(DeviceError::Shape)?;
        let writer: Box<dyn Sink> = match self {
            Self::Tap { tap, .. } => Box::new(tap.sink(port, long)),
            Self::Veth { veth, .. } => Box::new(veth.sink(port)),
        };
        let source = shaper.source(halves.source, writer).map_err(DeviceError::Shape)?;
        let sinks = halves.sinks.into_iter().map(|sink| Box::new(shaper.sink(port, sink)) as _);
        let port = Port { source: Box::new(source), sinks: sinks.collect() };
        Ok((port, Some(shaper)))
    }

    /// Packets that the kernel dropped since the last call, before the switch saw them.
    pub(super) fn take_kernel_drops(&mut self) -> u64 {
        let (name, drops) = match self {
            Self::Tap { tap, drops } => (tap.name(), drops.as_mut().map(TxDrops::take)),
            Self::Veth { veth, .. } => (veth.name(), Some(veth.take_drops())),
        };
        kernel_drops::counted(name, drops)
    }

    /// How many super-frames the device has refused to take whole.
    pub(super) fn gso_refused(&self) -> u64 {
        match self {
            Self::Tap { tap, .. } => tap.gso_refused(),
            Self::Veth { veth, .. } => veth.gso_refused(),
        }
    }

    /// Removes a pod's interface; gives one of the host back to it. One that went before is no matter.
    pub(super) fn remove(self) {
        let removed = match self {
            Self::Tap { tap, .. } => tap.delete().map_err(|error| error.to_string()),
            Self::Veth { veth, had_ipv6 } => {
                set_ipv6(veth.name(), had_ipv6).map_err(|error| error.to_string())
            }
        };
        if let Err(error) = removed {
            tracing::debug!(error, "the interface went before its port");
        }
    }
}

/// Removes the device of an allocation that has no port, as far as it is there.
pub(crate) fn remove_leftover(allocation: &Allocation) -> Result<(), DeviceError> {
    let ifname = &allocation.attachment.ifname;
    match &allocation.record.port {
        PortKind::Tap { netns } if is_same(netns) => {
            let mut netlink = Netlink::open_in(&netns.path)?;
            match netlink.find_link(ifname)? {
                // Only ours: another interface may have the name by now.
                Some(found) if found.mac == Some(allocation.mac.0) => {
                    Ok(netlink.delete_link(found.index)?)
                }
                Some(_) | None => Ok(()),
            }
        }
        PortKind::Tap { .. } | PortKind::Foreign { .. } => Ok(()),
        PortKind::AfPacket { device, had_ipv6, .. } => Ok(set_ipv6(device, *had_ipv6)?),
    }
}

/// Which namespace is at `path` now.
///
/// # Errors
/// When there is none, or it is the node's own.
pub(super) fn identify(path: &Path) -> Result<Netns, DeviceError> {
    let netns::Identity { device, inode } = netns::identity(path)?;
    let own = netns::identity(Path::new("/proc/self/ns/net"))?;
    if (own.device, own.inode) == (device, inode) {
        return Err(DeviceError::OwnNetns(path.to_owned()));
    }
    Ok(Netns { path: path.to_owned(), device, inode })
}

/// Whether the namespace of an allocation may still be the one that it was made in: unless it is known to
/// be gone, its pod keeps its addresses.
pub(super) fn may_be_alive(allocation: &Allocation) -> bool {
    let Some(netns) = allocation.record.port.netns() else {
        return true;
    };
    match netns::identity(&netns.path) {
        Ok(found) => (found.device, found.inode) == (netns.device, netns.inode),
        Err(error) => !error.is_missing(),
    }
}

fn is_same(netns: &Netns) -> bool {
    netns::identity(&netns.path)
        .is_ok_and(|found| (found.device, found.inode) == (netns.device, netns.inode))
}

/// Checks that the host can do without `device`, and tells whether it speaks IPv6 there.
///
/// # Errors
/// [`DeviceError::InUse`] when it is one that the node itself lives on.
pub(super) fn check_host_device(device: &str, own: &[&str]) -> Result<bool, DeviceError> {
    let in_use = |why: String| DeviceError::InUse { device: device.to_owned(), why };
    if device == "lo" || own.contains(&device) {
        return Err(in_use("the node itself needs it".to_owned()));
    }
    let mut netlink = Netlink::open()?;
    let found = netlink.link(device)?;
    let addresses = netlink.addresses(Some(found.index))?;
    if let Some(held) = addresses.iter().find(|held| !is_link_local(held.address.ip())) {
        return Err(in_use(format!("the node has the address {} on it", held.address)));
    }
    if let Some(master) = found.master {
        return Err(in_use(format!("it belongs to the bridge with index {master}")));
    }
    let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
    Ok(fs::read_to_string(path).is_ok_and(|value| value.trim() == "0"))
}

/// Switches IPv6 on `device` on or off; in a kernel without IPv6 there is nothing to do.
fn set_ipv6(device: &str, on: bool) -> Result<(), LinkError> {
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    let setting = Sysctl::Ipv6 { ifname: device, key: "disable_ipv6" };
    link::set_sysctl(setting, if on { "0" } else { "1" })
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
