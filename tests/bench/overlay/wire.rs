//! The network between the nodes, and the proof that it is what it is called.

// A packet socket is bound to one device by an address that `socket2` cannot make.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};
use weft::lab::{Family, Namespace};

use super::tools;

/// What joins the nodes.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
pub(crate) enum Wire {
    /// MTU 1500, and super-frames cross unsegmented: a NIC with segmentation offload.
    #[value(name = "ideal")]
    #[serde(rename = "ideal")]
    Ideal,
    /// No frame is longer than an MTU of 1500, and all checksums are filled in: a NIC without offloads.
    #[value(name = "1500")]
    #[serde(rename = "1500")]
    Mtu1500,
    /// The same with an MTU of 9000.
    #[value(name = "9000")]
    #[serde(rename = "9000")]
    Mtu9000,
    /// Like `ideal`, with IPv6 between the nodes.
    #[value(name = "v6")]
    #[serde(rename = "v6")]
    V6,
}

impl Wire {
    pub(crate) const ALL: [Self; 4] = [Self::Ideal, Self::Mtu1500, Self::Mtu9000, Self::V6];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ideal => "ideal",
            Self::Mtu1500 => "1500",
            Self::Mtu9000 => "9000",
            Self::V6 => "v6",
        }
    }

    /// What a reader has to know.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Ideal => "underlay MTU 1500, veth offloads on: super-frames cross unsegmented",
            Self::Mtu1500 => {
                "underlay MTU 1500, offloads off: every frame at most 1500 bytes, checksums real"
            }
            Self::Mtu9000 => {
                "underlay MTU 9000, offloads off: every frame at most 9000 bytes, checksums real"
            }
            Self::V6 => "IPv6 underlay, MTU 1500, veth offloads on",
        }
    }

    pub(crate) fn mtu(self) -> u16 {
        match self {
            Self::Ideal | Self::Mtu1500 | Self::V6 => 1500,
            Self::Mtu9000 => 9000,
        }
    }

    pub(crate) fn underlay(self) -> Family {
        match self {
            Self::V6 => Family::V6,
            Self::Ideal | Self::Mtu1500 | Self::Mtu9000 => Family::V4,
        }
    }

    /// Whether the wire cuts super-frames and fills in checksums itself.
    pub(crate) fn has_offloads(self) -> bool {
        matches!(self, Self::Ideal | Self::V6)
    }

    /// Makes `device`, one end of a wire, what this wire is called.
    pub(crate) fn prepare(self, namespace: &Namespace, device: &str) -> Result<()> {
        if self.has_offloads() {
            return Ok(());
        }
        let mut arguments = vec!["-K", device];
        for feature in OFFLOADS {
            arguments.extend([feature, "off"]);
        }
        tools::run(namespace, tools::ETHTOOL.0, &arguments)?;
        let state = tools::run(namespace, tools::ETHTOOL.0, &["-k", device])?;
        for line in
            ["tx-checksumming: off", "tcp-segmentation-offload: off", "tx-udp-segmentation: off"]
        {
            ensure!(
                state.contains(line),
                "{device} does not give up its offloads: no `{line}` in\n{state}"
            );
        }
        Ok(())
    }
}

/// What a NIC without offloads leaves to the kernel, as `ethtool` calls it.
const OFFLOADS: [&str; 6] = ["tx", "rx", "tso", "gso", "gro", "tx-udp-segmentation"];

/// Watches the frames that arrive at one end of a wire, until it is asked what it saw.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Seen>>,
}

/// What a [`Watch`] saw.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Frames, without those that were missed.
    pub(crate) count: u64,
    /// Bytes of the longest one, with its Ethernet header.
    pub(crate) len_max: usize,
}

impl Watch {
    /// Begins to watch `device` in `namespace`.
    pub(crate) fn start(namespace: &Namespace, device: &str) -> Result<Self> {
        let socket = namespace
            .run(|| open(device))?
            .with_context(|| format!("watching the frames that arrive at {device}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("watch".to_owned());
        Ok(Self { stop, thread: thread.spawn(move || count(&socket, &stopped))? })
    }

    /// Ends it.
    pub(crate) fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().map_err(|_| anyhow!("the watch of the wire panicked"))?;
        seen.context("watching the frames on the wire")
    }
}

fn open(device: &str) -> io::Result<Socket> {
    // No protocol yet: before it is bound, such a socket gets nothing (packet(7)).
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    let index = rustix::net::netdevice::name_to_index(&socket, device)?;
    socket.bind(&arrivals_at(index)?)?;
    socket.set_read_timeout(Some(WATCH_INTERVAL))?;
    Ok(socket)
}

/// The address that stands for every frame of the device `index` (packet(7)).
fn arrivals_at(index: u32) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the type is the one that the family says, it is not larger than the storage, and any bytes
    // are valid in it.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET.try_into().map_err(io::Error::other)?;
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
    address.sll_ifindex = index.try_into().map_err(io::Error::other)?;
    let len = size_of::<libc::sockaddr_ll>().try_into().map_err(io::Error::other)?;
    // SAFETY: the storage holds an address of the family that it names, and `len` is its length.
    Ok(unsafe { SockAddr::new(storage, len) })
}

fn count(socket: &Socket, stop: &AtomicBool) -> io::Result<Seen> {
    let mut seen = Seen::default();
    let mut start = [MaybeUninit::uninit(); 1];
    while !stop.load(Ordering::Relaxed) {
        // With MSG_TRUNC the length is the frame's, whatever fits (packet(7)).
        match socket.recv_from_with_flags(&mut start, libc::MSG_TRUNC) {
            Ok((len, from)) if !is_outgoing(&from) => {
                seen.count += 1;
                seen.len_max = seen.len_max.max(len);
            }
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

/// Whether a frame from `address` left through the device; its length is not yet the wire's.
fn is_outgoing(address: &SockAddr) -> bool {
    let mut storage = address.clone().as_storage();
    // SAFETY: see `arrivals_at`; the kernel filled it in for a packet socket.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_pkttype == libc::PACKET_OUTGOING
}

/// How soon a watch sees that it is over, when nothing arrives.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);
