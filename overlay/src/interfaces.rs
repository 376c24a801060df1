//! The machine's network interfaces, as this thread's network namespace has them.
//!
//! `/sys/class/net` shows the namespace it was mounted in, which need not be this one, so the kernel is
//! asked by system calls. No safe wrapper among the dependencies offers these two.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

use crate::error::Error;

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's name.
    pub interface: String,
    /// One of its addresses.
    pub address: IpAddr,
    /// Longest IP packet that it takes; 65 535 if it takes longer ones.
    pub mtu: u16,
    /// Whether it is up.
    pub is_up: bool,
}

/// All addresses of all interfaces, in the kernel's order.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn interfaces() -> Result<Vec<InterfaceAddress>, Error> {
    read().map_err(|cause| Error::ReadInterfaces { cause })
}

fn read() -> io::Result<Vec<InterfaceAddress>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))?;
    let mut found = Vec::new();
    let mut list = ptr::null_mut();
    // SAFETY: `list` is a valid place for a pointer; it is freed below, on every path.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut next = list;
    while !next.is_null() {
        // SAFETY: getifaddrs made a list of valid entries that ends with a null pointer, and nothing is
        // freed before the loop has ended.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        // SAFETY: `ifa_addr` is null or points to a socket address of the family that it names.
        let Some(address) = (unsafe { address(entry.ifa_addr) }) else { continue };
        // SAFETY: `ifa_name` points to a NUL-terminated string that lives as long as the list.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) };
        // An interface that has just vanished is none.
        if let Ok(mtu) = mtu(&socket, name) {
            found.push(InterfaceAddress {
                interface: name.to_string_lossy().into_owned(),
                address,
                mtu,
                is_up: entry.ifa_flags & libc::IFF_UP.unsigned_abs() != 0,
            });
        }
    }
    // SAFETY: `list` came from getifaddrs, is freed once, and nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// Reads an IP address.
///
/// # Safety
///
/// `address` is null, or valid for reads as the kind of socket address that its family names.
unsafe fn address(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: not null, and by contract valid; every socket address begins with its family.
    let family = i32::from(unsafe { (*address).sa_family });
    match family {
        libc::AF_INET => {
            // SAFETY: by contract an IPv4 socket address; read unaligned, as nothing promises more.
            let v4 = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(IpAddr::V4(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes())))
        }
        libc::AF_INET6 => {
            // SAFETY: by contract an IPv6 socket address; read unaligned, as nothing promises more.
            let v6 = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr)))
        }
        _ => None,
    }
}

/// netdevice(7), `SIOCGIFMTU`.
fn mtu(socket: &UdpSocket, name: &CStr) -> io::Result<u16> {
    // SAFETY: all zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = name.to_bytes_with_nul();
    if name.len() > request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        // Signed here, and unsigned on other machines.
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: the descriptor is open, and `request` is an `ifreq` with a terminated name, which is what
    // this request reads and writes.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: on success the kernel has filled in `ifru_mtu`.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(if mtu > 0 { u16::MAX } else { 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found_with_its_mtu() {
        let all = interfaces().unwrap();
        let loopback = all.iter().find(|found| found.address == IpAddr::V4(Ipv4Addr::LOCALHOST));
        let loopback = loopback.expect("every machine has 127.0.0.1");
        assert_eq!(loopback.interface, "lo");
        assert!(loopback.is_up);
        assert!(loopback.mtu > 1000, "{}", loopback.mtu);
    }
}
