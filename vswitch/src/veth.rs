//! An existing interface of the host as a port, through AF_PACKET: a veth whose other end a pod or a
//! virtual machine holds, or a tap of a hypervisor. What the other end sends is received here.
//!
//! The host's own stack must not answer on the interface in the switch's place. [`Veth::open`] switches
//! ARP off and promiscuous mode on, for as long as the port is open; whoever opens it disables IPv6 on it
//! (`net.ipv6.conf.*.disable_ipv6`). Frames to the switch's MAC address are not the host's, which drops
//! them. ARP is on again when the last half is closed, also if it was off before: that is what a process
//! leaves that was killed.
//!
//! Frames carry a virtio-net header, as with a TAP. VLAN tags are another matter: the kernel takes them out
//! of the frame and tells them beside it, so a frame with one has to be recognised by that.

// `recvmsg` with auxiliary data, packet socket options and interface ioctls: rustix has none of them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use libc::{c_int, c_short, c_ushort, c_void, socklen_t};
use rustix::io::Errno;
use zerocopy::FromBytes;

use crate::frame::{Batch, Frame};
use crate::port::{Context, GsoFallback, PortIx, Sink, Source};
use crate::port_io::{self, GsoRefusals, Received};
use crate::tap::interface_request;

// `linux/if_packet.h`
const PACKET_ADD_MEMBERSHIP: c_int = 1;
const PACKET_STATISTICS: c_int = 6;
const PACKET_AUXDATA: c_int = 8;
const PACKET_VNET_HDR: c_int = 15;
const PACKET_IGNORE_OUTGOING: c_int = 23;
const PACKET_MR_PROMISC: c_ushort = 1;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;

/// `struct packet_mreq` (`linux/if_packet.h`).
#[repr(C)]
struct Membership {
    ifindex: c_int,
    kind: c_ushort,
    address_len: c_ushort,
    address: [u8; 8],
}

/// `struct tpacket_auxdata` (`linux/if_packet.h`).
#[repr(C)]
#[derive(Clone, Copy)]
struct AuxiliaryData {
    status: u32,
    _len: u32,
    _snaplen: u32,
    _mac: u16,
    _net: u16,
    _vlan_tci: u16,
    _vlan_tpid: u16,
}

/// `struct tpacket_stats` (`linux/if_packet.h`). The kernel counts from 0 again once it has told.
#[repr(C)]
#[derive(Clone, Copy, FromBytes)]
struct Statistics {
    _packets: u32,
    drops: u32,
}

/// Kernel memory for frames that wait, 4 MiB: some 60 super-frames.
pub const RECEIVE_BUFFER: usize = 4 << 20;

/// Why an interface could not be opened as a port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VethError {
    /// There is no such interface.
    #[error("there is no interface `{0}`")]
    NotFound(String),
    /// The packet socket could not be opened.
    #[error("cannot open a packet socket: {0} (CAP_NET_RAW is needed)")]
    OpenSocket(io::Error),
    /// The interface or the socket could not be set up.
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

/// An interface of the host, opened as a port.
#[derive(Debug)]
pub struct Veth {
    name: String,
    device: Arc<Device>,
    refusals: Arc<GsoRefusals>,
}

impl Veth {
    /// Opens the interface `name` of the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`VethError`], whose text says what to do where that is known.
    pub fn open(name: &str) -> Result<Self, VethError> {
        let not_found = || VethError::NotFound(name.to_owned());
        let request = interface_request(name).ok_or_else(not_found)?;
        // Protocol 0: nothing is received until it is bound below.
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        check(fd).map_err(VethError::OpenSocket)?;
        // SAFETY: the descriptor is new, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };

        let ifindex = interface_index(&fd, request).map_err(|_| not_found())?;
        let set = |what| move |source| VethError::Set { what, name: name.to_owned(), source };
        for (option, what) in [
            (PACKET_VNET_HDR, "the virtio-net header"),
            (PACKET_AUXDATA, "the auxiliary data"),
            (PACKET_IGNORE_OUTGOING, "the direction (Linux 4.20 is needed)"),
        ] {
            set_option(&fd, libc::SOL_PACKET, option, &1).map_err(set(what))?;
        }
        grow_receive_buffer(&fd).map_err(set("the receive buffer"))?;
        let promiscuous =
            Membership { ifindex, kind: PACKET_MR_PROMISC, address_len: 0, address: [0; 8] };
        set_option(&fd, libc::SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promiscuous)
            .map_err(set("promiscuous mode"))?;
        set_arp(&fd, request, false).map_err(set("NOARP"))?;
        let device = Device { fd, ifindex };
        bind(&device.fd, ifindex).map_err(set("the packet socket"))?;
        Ok(Self { name: name.to_owned(), device: Arc::new(device), refusals: Arc::default() })
    }

    /// The interface's name when it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many super-frames the kernel refused to take whole so far; they were cut.
    pub fn gso_refused(&self) -> u64 {
        self.refusals.count()
    }

    /// The kinds of super-frames that the kernel does not take whole for the time being.
    pub fn gso_fallbacks(&self) -> Vec<GsoFallback> {
        self.refusals.fallbacks()
    }

    /// Frames that the kernel dropped since the last call, because the receive buffer was full. A
    /// super-frame counts as one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take_drops(&self) -> io::Result<u64> {
        let statistics: Statistics = option(&self.device.fd, libc::SOL_PACKET, PACKET_STATISTICS)?;
        Ok(statistics.drops.into())
    }

    /// Bytes of the receive buffer that the kernel granted, of [`RECEIVE_BUFFER`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn receive_buffer(&self) -> io::Result<usize> {
        let told: c_int = option(&self.device.fd, libc::SOL_SOCKET, libc::SO_RCVBUF)?;
        // The kernel doubles what it grants, for its own bookkeeping (socket(7)), and tells the double.
        Ok(usize::try_from(told).unwrap_or(0) / 2)
    }

    /// Asks for the whole receive buffer, as root may, or else for what the system allows.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn grow_receive_buffer(&self) -> io::Result<()> {
        grow_receive_buffer(&self.device.fd)
    }

    /// The receiving half, for `port`. There must be only one, or a flow's packets are reordered.
    pub fn source(&self, port: PortIx) -> impl Source + use<> {
        VethSource { device: Arc::clone(&self.device), port }
    }

    /// A sending half, for `port`. There may be any number.
    pub fn sink(&self, port: PortIx) -> impl Sink + use<> {
        VethSink { device: Arc::clone(&self.device), port, refusals: Arc::clone(&self.refusals) }
    }
}

/// The packet socket. Promiscuous mode ends with it by itself.
#[derive(Debug)]
struct Device {
    fd: OwnedFd,
    ifindex: c_int,
}

impl Device {
    /// Whether the interface exists; it may be down.
    fn check(&self) -> io::Result<()> {
        interface_name(&self.fd, self.ifindex).map(drop)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The interface may have been renamed, or be gone; then there is nothing to restore.
        if let Ok(request) = interface_name(&self.fd, self.ifindex) {
            let _gone_meanwhile = set_arp(&self.fd, request, true);
        }
    }
}

#[derive(Debug)]
struct VethSource {
    device: Arc<Device>,
    port: PortIx,
}

impl Source for VethSource {
    fn fd(&self) -> BorrowedFd<'_> {
        self.device.fd.as_fd()
    }

    fn receive(&mut self, context: &mut Context<'_>, batch: &mut Batch) -> io::Result<()> {
        let fd = &self.device.fd;
        match port_io::receive(context, self.port, batch, |buffer| receive_frame(fd, buffer)) {
            // The interface went down. It may come up again, and then frames come again, too. If it is
            // being removed, it may still be there now, and nothing else is told: `check` finds out.
            Err(Errno::NETDOWN) => self.check(),
            other => Ok(other?),
        }
    }

    fn check(&self) -> io::Result<()> {
        self.device.check()
    }
}

#[derive(Debug)]
struct VethSink {
    device: Arc<Device>,
    port: PortIx,
    refusals: Arc<GsoRefusals>,
}

impl Sink for VethSink {
    fn send(&mut self, context: &mut Context<'_>, frame: Frame) {
        port_io::send(context, self.port, &self.refusals, frame, |bytes| {
            rustix::io::write(&self.device.fd, bytes).map(|_| ())
        });
    }

    fn flush(&mut self, _context: &mut Context<'_>) {}
}

/// Takes one frame behind its virtio-net header.
fn receive_frame(fd: &OwnedFd, buffer: &mut [u8]) -> Result<Received, Errno> {
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: `msghdr` is plain integers and pointers, for which all zeroes are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to the vector, and through it to the buffer, and to the control buffer,
    // with their true lengths; all of them outlive the call.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(len) = usize::try_from(len) else {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    };
    Ok(if is_tagged(&message) { Received::Tagged(len) } else { Received::Frame(len) })
}

fn is_tagged(message: &libc::msghdr) -> bool {
    // SAFETY: the kernel has filled `msg_control` with well-formed messages up to `msg_controllen`, and
    // both still describe the buffer that the message was set up with. PACKET_AUXDATA carries a
    // `tpacket_auxdata`, for which any bytes are valid.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(message);
        while let Some(header) = control.as_ref() {
            if header.cmsg_level == libc::SOL_PACKET && header.cmsg_type == PACKET_AUXDATA {
                let data = libc::CMSG_DATA(control).cast::<AuxiliaryData>().read_unaligned();
                return data.status & TP_STATUS_VLAN_VALID != 0;
            }
            control = libc::CMSG_NXTHDR(message, control);
        }
    }
    false
}

fn interface_index(fd: &OwnedFd, mut request: libc::ifreq) -> io::Result<c_int> {
    interface_ioctl(fd, libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: the ioctl has filled in this member.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

/// Makes a request for the interface with this index.
fn interface_name(fd: &OwnedFd, ifindex: c_int) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain integers and pointers, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = ifindex;
    interface_ioctl(fd, libc::SIOCGIFNAME, &mut request)?;
    Ok(request)
}

/// Switches ARP on or off.
fn set_arp(fd: &OwnedFd, mut request: libc::ifreq, on: bool) -> io::Result<()> {
    interface_ioctl(fd, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the ioctl has filled in this member.
    let old = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let new = if on { old & !libc::IFF_NOARP } else { old | libc::IFF_NOARP };
    // The flags of this ioctl are the lower 16 bits (`net/if.h`), and IFF_NOARP is 0x80.
    let [low, high, ..] = new.to_le_bytes();
    request.ifr_ifru.ifru_flags = c_short::from_le_bytes([low, high]);
    interface_ioctl(fd, libc::SIOCSIFFLAGS, &mut request)
}

fn interface_ioctl(fd: &OwnedFd, kind: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the interface ioctls used here read and write an `ifreq`, which is live for the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), kind, &raw mut *request) })
}

fn bind(fd: &OwnedFd, ifindex: c_int) -> io::Result<()> {
    const ALL: u16 = 3; // ETH_P_ALL, `linux/if_ether.h`
    // SAFETY: `sockaddr_ll` is plain integers, for which all zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = c_ushort::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = ALL.to_be();
    address.sll_ifindex = ifindex;
    // SAFETY: the address is live, and its length is given.
    check(unsafe {
        libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len_of::<libc::sockaddr_ll>())
    })
}

/// Asks for the whole buffer as root may, else for what the system allows.
fn grow_receive_buffer(fd: &OwnedFd) -> io::Result<()> {
    let size = c_int::try_from(RECEIVE_BUFFER).unwrap_or(c_int::MAX);
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &size)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUF, &size))
}

fn option<T: FromBytes>(fd: &OwnedFd, level: c_int, name: c_int) -> io::Result<T> {
    let mut value = T::new_zeroed();
    let mut len = len_of::<T>();
    let value_ptr = (&raw mut value).cast::<c_void>();
    // SAFETY: the value is live and may hold any bytes, and `len` is its length; the kernel writes no more.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value_ptr, &raw mut len) })?;
    Ok(value)
}

fn set_option<T>(fd: &OwnedFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let value = std::ptr::from_ref(value).cast::<c_void>();
    // SAFETY: the value is live and its length is given; the kernel only reads it.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, len_of::<T>()) })
}

fn len_of<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).unwrap_or(socklen_t::MAX)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `u64`s that hold one control message with auxiliary data, aligned as `cmsghdr` must be.
const CONTROL_WORDS: usize = {
    // SAFETY: plain arithmetic; the function is unsafe only because all of libc's are.
    let space = unsafe { libc::CMSG_SPACE(20) as usize };
    assert!(size_of::<AuxiliaryData>() == 20, "the kernel's layout");
    space.div_ceil(size_of::<u64>())
};
