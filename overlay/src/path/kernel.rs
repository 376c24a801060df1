//! What the kernel knows of the path to an address.

// Neither the standard library nor socket2 or rustix have these socket options.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use libc::{c_int, socklen_t};

/// The longest IP packet that goes from `from` to `to` as far as the kernel knows: the MTU of the route, or
/// less if a router on the path has said so (RFC 1191, RFC 8201). The kernel forgets that after ten minutes
/// (`net.ipv4.route.mtu_expires`, `net.ipv6.route.mtu_expires`). Nothing is sent.
///
/// # Errors
/// When there is no route, or `from` is no address of this network namespace.
pub fn path_mtu(from: IpAddr, to: SocketAddr) -> io::Result<u16> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(to)?;
    let (level, option) = match from {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut mtu: c_int = 0;
    let mut len = socklen_t::try_from(size_of::<c_int>()).unwrap_or_default();
    // SAFETY: the value is a live `c_int`, and `len` is its length; the kernel writes no more than that.
    let told = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut mtu).cast(), &raw mut len)
    };
    if told != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn the_path_to_oneself_is_that_of_the_loopback_interface() {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        assert!(path_mtu(v4.ip(), v4).unwrap() > 1500);
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        if UdpSocket::bind((v6.ip(), 0)).is_ok() {
            assert!(path_mtu(v6.ip(), v6).unwrap() > 1500);
        }
        assert!(path_mtu(Ipv4Addr::new(192, 0, 2, 1).into(), v4).is_err());
    }
}
