//! A TAP device as a port: what its interface sends is received here, what is written here it receives.
//!
//! Frames cross with a virtio-net header in front (`IFF_VNET_HDR`, `linux/virtio_net.h`), so that a
//! super-frame of up to 64 KiB takes one system call, and checksums are left to whoever needs them.
//!
//! The device is persistent: it outlives the process, and [`Tap::open`] attaches to it again. It lives in
//! the network namespace that it was opened in, and an open descriptor keeps that namespace alive.
//! Addresses, MAC, MTU and state are set through rtnetlink, not here.
//!
//! One queue, not several: several threads that read one TAP reorder the packets of a flow.

// Device ioctls: rustix has none for TUN/TAP.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use libc::{c_int, c_short, c_uint, c_ulong};
use rustix::fs::{Mode, OFlags};

use crate::frame::{Batch, Frame, GsoKind};
use crate::offload::{Chain, LongFrames, VnetHeader};
use crate::port::{Context, GsoFallback, PortIx, Sink, Source};
use crate::port_io::{self, GsoRefusals, Received};

/// The character device that TAPs are made through.
const DEVICE: &str = "/dev/net/tun";

/// One frame per read, no packet information, a virtio-net header (`linux/if_tun.h`).
const FLAGS: c_short = 0x5002;
const _: () = assert!(FLAGS as c_int == libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);

/// The offloads that are asked for, the best first. Every one includes the next.
const OFFLOADS: [(c_uint, Offloads); 4] = [
    (CHECKSUM | TCP | UDP, Offloads { checksum: true, tcp: true, udp: true }),
    (CHECKSUM | TCP, Offloads { checksum: true, tcp: true, udp: false }),
    (CHECKSUM, Offloads { checksum: true, tcp: false, udp: false }),
    (0, Offloads { checksum: false, tcp: false, udp: false }),
];
const CHECKSUM: c_uint = libc::TUN_F_CSUM;
const TCP: c_uint = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const UDP: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// What the interface may leave to the switch. Less of it costs speed only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads {
    /// Layer 4 checksums (`TUN_F_CSUM`).
    pub checksum: bool,
    /// Cutting TCP, ECN included (`TUN_F_TSO4`, `TUN_F_TSO6`, `TUN_F_TSO_ECN`).
    pub tcp: bool,
    /// Cutting UDP (`TUN_F_USO4`, `TUN_F_USO6`; Linux 6.2).
    pub udp: bool,
}

/// Why a TAP could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The name cannot be an interface's.
    #[error("`{0}` cannot name an interface: 1 to 15 bytes, without `/`, `:`, `%` and spaces")]
    Name(String),
    /// The TUN driver is not there or may not be used.
    #[error("cannot open {DEVICE}: {0} (is the `tun` module loaded, and may this process use it?)")]
    OpenDevice(io::Error),
    /// The interface could not be made or attached to.
    #[error("cannot attach to the interface `{name}`: {source}{}", attach_hint(source))]
    Attach {
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The interface could not be set up.
    #[error("cannot set {what} of the interface `{name}`: {source}")]
    Set {
        /// What was to be set.
        what: &'static str,
        /// The interface.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn attach_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EBUSY) => " (another process has it open)",
        Some(libc::EINVAL) => " (an interface of this name exists and is not a single-queue TAP)",
        Some(libc::EPERM) => " (CAP_NET_ADMIN in its network namespace is needed)",
        _ => "",
    }
}

/// An open TAP device.
#[derive(Debug)]
pub struct Tap {
    name: String,
    fd: Arc<OwnedFd>,
    offloads: Offloads,
    refusals: Arc<GsoRefusals>,
    chain_refusals: Arc<GsoRefusals>,
}

impl Tap {
    /// Makes the persistent TAP `name` in the network namespace of the calling thread, or attaches to
    /// it if it is there already.
    ///
    /// # Errors
    /// [`TapError`], whose text says what to do where that is known.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let mut request = interface_request(name).ok_or_else(|| TapError::Name(name.to_owned()))?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(DEVICE, flags, Mode::empty())
            .map_err(|error| TapError::OpenDevice(error.into()))?;
        request.ifr_ifru.ifru_flags = FLAGS;
        // SAFETY: TUNSETIFF takes an `ifreq`, which is live and initialised for the whole call.
        let attached = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        check(attached).map_err(|source| TapError::Attach { name: name.to_owned(), source })?;
        let set = |what| move |source| TapError::Set { what, name: name.to_owned(), source };
        set_header_len(&fd).map_err(set("the length of the virtio-net header"))?;
        let offloads = set_offloads(&fd).map_err(set("the offloads"))?;
        set_value(&fd, libc::TUNSETPERSIST, 1).map_err(set("the persistence"))?;
        Ok(Self {
            name: name.to_owned(),
            fd: Arc::new(fd),
            offloads,
            refusals: Arc::default(),
            chain_refusals: Arc::default(),
        })
    }

    /// The interface's name when it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The offloads that the kernel granted.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// How many super-frames the kernel refused to take whole so far; they were cut.
    pub fn gso_refused(&self) -> u64 {
        self.refusals.count()
    }

    /// The kinds of super-frames that the kernel does not take whole for the time being.
    pub fn gso_fallbacks(&self) -> Vec<GsoFallback> {
        self.refusals.fallbacks()
    }

    /// How many writes of several super-frames of this kind as one the kernel refused so far; they were written
    /// one by one.
    pub fn chains_refused(&self, kind: GsoKind) -> u64 {
        self.chain_refusals.count_of(kind)
    }

    /// The kinds of super-frames that the kernel does not take several of as one for the time being.
    pub fn chain_fallbacks(&self) -> Vec<GsoFallback> {
        self.chain_refusals.fallbacks()
    }

    /// The receiving half, for `port`. There must be only one, or a flow's packets are reordered.
    pub fn source(&self, port: PortIx) -> impl Source + use<> {
        TapSource { fd: Arc::clone(&self.fd), port }
    }

    /// A sending half, for `port`. There may be any number. `long` is what the kernel takes that a packet's own
    /// length cannot say.
    pub fn sink(&self, port: PortIx, long: LongFrames) -> impl Sink + use<> {
        TapSink {
            fd: Arc::clone(&self.fd),
            port,
            refusals: Arc::clone(&self.refusals),
            chain: Chain::new(long),
            chain_refusals: Arc::clone(&self.chain_refusals),
        }
    }

    /// Removes the interface, at the latest when the last source and sink are gone. Works also if the
    /// path of its namespace has vanished.
    ///
    /// # Errors
    /// What the kernel says; the device may be gone already.
    pub fn delete(self) -> io::Result<()> {
        set_value(&self.fd, libc::TUNSETPERSIST, 0)
    }
}

#[derive(Debug)]
struct TapSource {
    fd: Arc<OwnedFd>,
    port: PortIx,
}

impl Source for TapSource {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn receive(&mut self, context: &mut Context<'_>, batch: &mut Batch) -> io::Result<()> {
        port_io::receive(context, self.port, batch, |buffer| {
            rustix::io::read(&self.fd, buffer).map(Received::Frame)
        })
        .map_err(io::Error::from)
    }
}

#[derive(Debug)]
struct TapSink {
    fd: Arc<OwnedFd>,
    port: PortIx,
    refusals: Arc<GsoRefusals>,
    /// Super-frames that may become one write.
    chain: Chain,
    /// Which chains the kernel has refused.
    chain_refusals: Arc<GsoRefusals>,
}

impl Sink for TapSink {
    fn send(&mut self, context: &mut Context<'_>, frame: Frame) {
        let frame = match self.chain.push(frame) {
            Ok(()) => None,
            Err(frame) => {
                self.flush(context);
                self.chain.push(frame).err()
            }
        };
        match frame {
            Some(frame) => self.write(context, frame),
            None if self.chain.is_full() => self.flush(context),
            None => {}
        }
    }

    fn flush(&mut self, context: &mut Context<'_>) {
        let write = |slices: &[IoSlice<'_>]| rustix::io::writev(&self.fd, slices).map(|_| ());
        let refusals = &self.chain_refusals;
        port_io::send_chain(context, self.port, refusals, &mut self.chain, write);
        while let Some(frame) = self.chain.pop() {
            self.write(context, frame);
        }
    }
}

impl TapSink {
    fn write(&self, context: &mut Context<'_>, frame: Frame) {
        port_io::send(context, self.port, &self.refusals, frame, |bytes| {
            rustix::io::write(&self.fd, bytes).map(|_| ())
        });
    }
}

/// Makes a request for the interface `name`; `None` if that cannot be a name (`dev_valid_name`,
/// `net/core/dev.c`; `%` would be taken for a pattern).
pub(crate) fn interface_request(name: &str) -> Option<libc::ifreq> {
    let refused = |byte: u8| byte.is_ascii_whitespace() || b"/:%\0".contains(&byte);
    if matches!(name, "" | "." | "..") || name.len() >= libc::IFNAMSIZ || name.bytes().any(refused)
    {
        return None;
    }
    // SAFETY: `ifreq` is plain integers and pointers, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        // Signed here, and unsigned on other machines.
        *target = libc::c_char::from_ne_bytes([byte]);
    }
    Some(request)
}

fn set_header_len(fd: &OwnedFd) -> io::Result<()> {
    let len = c_int::try_from(VnetHeader::LEN).unwrap_or(c_int::MAX);
    // SAFETY: TUNSETVNETHDRSZ takes a pointer to an `int`, which is live for the whole call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

fn set_offloads(fd: &OwnedFd) -> io::Result<Offloads> {
    let mut refused = None;
    for (flags, offloads) in OFFLOADS {
        match set_value(fd, libc::TUNSETOFFLOAD, c_ulong::from(flags)) {
            Ok(()) => return Ok(offloads),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
}

/// An ioctl whose argument is the value itself.
fn set_value(fd: &OwnedFd, request: libc::Ioctl, value: c_ulong) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD and TUNSETPERSIST take a number, not a pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_interfaces_are_taken() {
        for name in ["eth0", "a", "fifteen-bytes-x"] {
            assert!(interface_request(name).is_some(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "tap%d", "a:1", "sixteen-bytes-xy", "a\0b"] {
            assert!(interface_request(name).is_none(), "{name}");
        }
    }
}
