//! What the kernel drops before the switch sees it. These packets never came in, so they are no part of
//! the conservation law; they are counted beside it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};

use super::device::Device;
use super::{Control, capabilities};

/// Ports that are asked at a time, so that many of them cost no more than a few. With more, the figures
/// of each are some seconds old.
const PORTS_MAX: usize = 64;

/// Longest list of interfaces that is read. A pod can have many more than its own.
const LIST_MAX: u64 = 64 << 10;

/// Packets that the kernel dropped since the daemon was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct KernelDrops {
    pub(super) tunnel: u64,
    pub(super) host: u64,
    /// Of all ports, also those that were removed since.
    pub(super) ports: u64,
    /// Which port is asked next.
    next: usize,
}

/// The packets that the kernel behind a TAP had for it, and did not queue: the switch read too slowly.
///
/// They are counted in the interface's network namespace. Of all that tells the counter there, an open
/// `net/dev` of proc(5) costs the least: neither a thread to enter the namespace nor the lock of rtnetlink.
#[derive(Debug)]
pub(crate) struct TxDrops {
    list: File,
    interface: String,
    told: u64,
}

impl TxDrops {
    /// Begins to count for `interface` of the network namespace of the calling thread.
    ///
    /// # Errors
    /// When /proc does not tell.
    pub(crate) fn open(interface: &str) -> io::Result<Self> {
        let list = File::open("/proc/thread-self/net/dev")?;
        let mut drops = Self { list, interface: interface.to_owned(), told: 0 };
        drops.take()?;
        Ok(drops)
    }

    /// Packets dropped since the last call.
    ///
    /// # Errors
    /// When /proc does not tell.
    pub(crate) fn take(&mut self) -> io::Result<u64> {
        self.list.rewind()?;
        let mut text = String::new();
        (&self.list).take(LIST_MAX).read_to_string(&mut text)?;
        // Whoever owns the namespace may have renamed the interface, or made it anew: then nothing is known.
        let Some(count) = tx_dropped(&text, &self.interface) else { return Ok(0) };
        let new = count.checked_sub(self.told).unwrap_or(count);
        self.told = count;
        Ok(new)
    }
}

/// The twelfth value of the interface's line: `drop` under `Transmit` (proc_pid_net(5)).
fn tx_dropped(list: &str, interface: &str) -> Option<u64> {
    const TRANSMIT_DROP: usize = 11;
    let mut lines = list.lines().filter_map(|line| line.trim_start().rsplit_once(':'));
    let (_, values) = lines.find(|(name, _)| *name == interface)?;
    values.split_ascii_whitespace().nth(TRANSMIT_DROP)?.parse().ok()
}

/// Logs why the drops of an interface cannot be counted, if they cannot.
pub(crate) fn found(interface: &str, drops: io::Result<TxDrops>) -> Option<TxDrops> {
    drops
        .inspect_err(|error| {
            tracing::warn!(
                interface,
                "packets that the kernel drops before the switch are not counted here: /proc/net/dev: {error}"
            );
        })
        .ok()
}

/// The drops of an interface; one that vanishes has no more of them, and its port tells that.
pub(crate) fn counted(interface: &str, drops: Option<io::Result<u64>>) -> u64 {
    let counted = drops.unwrap_or(Ok(0));
    counted.unwrap_or_else(|error| {
        tracing::debug!(interface, "the kernel's drops cannot be read: {error}");
        0
    })
}

impl Control {
    /// Takes up what the kernel has dropped since the last call.
    pub(super) fn collect_kernel_drops(&mut self) {
        let drops = &mut self.kernel_drops;
        if let Some(tunnel) = &self.tunnel {
            drops.tunnel += tunnel.buffers().take_drops();
        }
        if let Some(host) = &mut self.host {
            drops.host += host.take_kernel_drops();
        }
        if drops.next >= self.attached.len() {
            drops.next = 0;
        }
        for attached in self.attached.values_mut().skip(drops.next).take(PORTS_MAX) {
            let new = attached.device.take_kernel_drops();
            attached.kernel_dropped += new;
            drops.ports += new;
        }
        drops.next += PORTS_MAX;
    }

    /// Takes up what is left to be told by a device that is no port any more.
    pub(super) fn retire(&mut self, mut device: Device) -> Device {
        self.kernel_drops.ports += device.take_kernel_drops();
        self.past_fallbacks.ports += device.gso_refused();
        let chains = self.past_fallbacks.chains.iter_mut();
        chains.zip(capabilities::chains_refused(&device)).for_each(|(past, new)| *past += new);
        device
    }

    /// Takes up what is left to be told by the tunnel, which is closed.
    pub(super) fn forget_tunnel(&mut self) {
        self.paths.set_port(None);
        if let Some(tunnel) = self.tunnel.take() {
            self.past_fallbacks.tunnel += capabilities::fallbacks_of(&tunnel);
        }
    }

    /// Takes up what is left to be told by the node's own interface, which vanished.
    pub(super) fn forget_host(&mut self) {
        if let Some(host) = self.host.take() {
            self.past_fallbacks.host += host.tap().gso_refused();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drops_of_one_interface_are_found() {
        let list = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    1    0     0          0         0        0       0    0    2    0     0       0          0
  eth0: 1234567    1000    0    3    0     0          0         0  7654321    2000    0   45    0     0       0          0
 eth0:1:      0       0    0    0    0     0          0         0        0       0    0    9    0     0       0          0
";
        assert_eq!(tx_dropped(list, "eth0"), Some(45));
        assert_eq!(tx_dropped(list, "lo"), Some(2));
        assert_eq!(tx_dropped(list, "eth"), None);
        assert_eq!(tx_dropped("eth0: 1 2 3\n", "eth0"), None);
        assert_eq!(tx_dropped("", "eth0"), None);
    }

    #[test]
    fn drops_are_told_once_and_an_unknown_interface_has_none() {
        let mut drops = TxDrops::open("lo").unwrap();
        assert_eq!(drops.take().unwrap(), 0);
        drops.told = u64::MAX;
        assert_eq!(drops.take().unwrap(), drops.told, "it was made anew, and counts from 0");
        assert_eq!(TxDrops::open("nowhere").unwrap().take().unwrap(), 0);
    }
}
