//! The link that addresses are announced on: frames of ARP and neighbor discovery, through AF_PACKET.

// Packet sockets and their filters: rustix has neither.
#![allow(unsafe_code)]

use std::io;
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_ushort, socklen_t};
use tokio::io::unix::AsyncFd;
use vswitch::wire::ethernet;

/// `linux/if_packet.h`
const PACKET_IGNORE_OUTGOING: c_int = 23;

/// Longest frame that concerns us; what is longer is cut, and then says nothing.
const FRAME_LEN_MAX: usize = 256;

/// A packet socket on one interface, for frames of one kind.
#[derive(Debug)]
pub(super) struct PacketSocket {
    fd: AsyncFd<OwnedFd>,
}

impl PacketSocket {
    /// Opens it for ARP on the interface with this index.
    ///
    /// # Errors
    /// When the kernel refuses: it takes CAP_NET_RAW.
    pub(super) fn arp(ifindex: u32) -> io::Result<Self> {
        Self::open(ifindex, ethernet::ARP, None)
    }

    /// Opens it for neighbor solicitations and advertisements. All other IPv6 packets stay in the kernel.
    ///
    /// # Errors
    /// When the kernel refuses: it takes CAP_NET_RAW.
    pub(super) fn discovery(ifindex: u32) -> io::Result<Self> {
        Self::open(ifindex, ethernet::IPV6, Some(&DISCOVERY))
    }

    fn open(
        ifindex: u32,
        ethertype: u16,
        filter: Option<&[libc::sock_filter]>,
    ) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: takes numbers only. Protocol 0: nothing is received until it is bound below.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        check(fd)?;
        // SAFETY: the descriptor is new, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        set_option(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1)?;
        if let Some(filter) = filter {
            let program = libc::sock_fprog {
                len: c_ushort::try_from(filter.len()).unwrap_or_default(),
                // The kernel copies it and does not write.
                filter: filter.as_ptr().cast_mut(),
            };
            set_option(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        }
        // SAFETY: `sockaddr_ll` is plain integers, for which all zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = c_ushort::try_from(libc::AF_PACKET).unwrap_or_default();
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = c_int::try_from(ifindex).unwrap_or_default();
        let len = len_of::<libc::sockaddr_ll>();
        // SAFETY: the address is live, and its length is given.
        check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
        // SAFETY: the descriptor is open, and is neither replaced nor closed while `AsyncFd` has it.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self { fd })
    }

    /// Waits for a frame. Of one that is longer than what concerns us only the beginning is given.
    ///
    /// # Errors
    /// When the interface is gone, or down.
    pub(super) async fn receive(&self) -> io::Result<Vec<u8>> {
        let read = |fd: &OwnedFd| {
            let mut frame = vec![0; FRAME_LEN_MAX];
            let len = rustix::io::read(fd, &mut frame[..])?;
            frame.truncate(len);
            Ok(frame)
        };
        self.fd.async_io(tokio::io::Interest::READABLE, read).await
    }

    /// Sends a frame. One that the interface has no room for is lost, as on any link.
    ///
    /// # Errors
    /// When the interface is gone, or down.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        match rustix::io::write(self.fd.get_ref(), frame) {
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Makes the interface, and switches that look at group membership (RFC 4541), pass on what is for `group`, for as
/// long as the socket is there.
///
/// # Errors
/// When the kernel refuses, as it does where the interface has no IPv6.
pub(super) fn join(group: Ipv6Addr, ifindex: u32) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    socket.join_multicast_v6(&group, ifindex)?;
    Ok(socket)
}

/// Lets ICMPv6 of types 135 and 136 pass: next header at 20, type at 54 (`linux/filter.h`, RFC 8200 §3).
const DISCOVERY: [libc::sock_filter; 7] = [
    statement(LOAD_BYTE, 20),
    jump(JUMP_IF_EQUAL, 58, 0, 4),
    statement(LOAD_BYTE, 54),
    jump(JUMP_IF_NOT_LESS, 135, 0, 2),
    jump(JUMP_IF_GREATER, 136, 1, 0),
    statement(RETURN, u32::MAX),
    statement(RETURN, 0),
];

// `linux/bpf_common.h`: class, size and mode; class and operation.
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

const fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

fn set_option<T>(fd: &OwnedFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let pointer = std::ptr::from_ref(value).cast();
    let fd: RawFd = fd.as_raw_fd();
    // SAFETY: the value is live and its length is given, and so is what a `sock_fprog` points to; the kernel only
    // reads both.
    check(unsafe { libc::setsockopt(fd, level, name, pointer, len_of::<T>()) })
}

fn len_of<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).expect("what the kernel takes is short")
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
