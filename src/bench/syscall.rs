//! System calls that neither the standard library nor rustix nor socket2 has.

#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

/// What TCP has counted over the life of connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TcpCounts {
    /// Segments sent again (`tcpi_total_retrans`).
    pub(super) retransmits: u64,
    /// Segments received out of order (`tcpi_rcv_ooopack`, Linux 5.4; 0 before).
    pub(super) out_of_order: u64,
}

/// The sum over `streams`.
pub(super) fn tcp_counts<'a>(
    streams: impl IntoIterator<Item = &'a TcpStream>,
) -> io::Result<TcpCounts> {
    let mut sum = TcpCounts::default();
    for stream in streams {
        let info = tcp_info(stream)?;
        sum.retransmits += u64::from(info.tcpi_total_retrans);
        sum.out_of_order += u64::from(info.tcpi_rcv_ooopack);
    }
    Ok(sum)
}

fn tcp_info(stream: &TcpStream) -> io::Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len =
        libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(io::Error::other)?;
    // SAFETY: `info` has `len` bytes; the kernel writes at most so many.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all fields are integers, for which the zeros of an older kernel's shorter answer are valid.
    Ok(unsafe { info.assume_init() })
}

/// Datagrams per system call: enough for the call itself to cost little, few enough to be sent before the
/// receiver could have taken them.
const BURST: libc::c_uint = 64;

/// Many datagrams for one system call, all of the same length, whose content does not matter.
pub(super) struct Burst {
    headers: Vec<libc::mmsghdr>,
    /// What all headers point to. A vector's elements stay where they are when it is moved.
    _iovec: Vec<libc::iovec>,
    /// What the iovec points to.
    _buffer: Vec<u8>,
}

impl Burst {
    pub(super) fn new(len: usize) -> Self {
        let mut buffer = vec![0x5a; len];
        let mut iovec =
            vec![libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }];
        let header = || {
            // SAFETY: integers and pointers; zeros stand for no address and no control messages.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_iov = iovec.as_mut_ptr();
            header.msg_hdr.msg_iovlen = 1;
            header
        };
        let headers = std::iter::repeat_with(header).take(BURST as usize).collect();
        Self { headers, _iovec: iovec, _buffer: buffer }
    }

    /// Sends datagrams over a connected socket; gives how many the kernel took.
    pub(super) fn send(&mut self, socket: &UdpSocket) -> io::Result<u64> {
        // SAFETY: `headers` has `BURST` elements, and what they point to lives in `self`; the kernel only
        // reads it, and writes the headers.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), BURST, 0) };
        count(sent)
    }

    /// Waits for datagrams and takes those that are there, all into the same place; gives their number.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<u64> {
        // SAFETY: as in `send`; the kernel writes at most `iov_len` bytes to the buffer, to which no
        // reference exists.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BURST,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        count(received)
    }
}

fn count(result: libc::c_int) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}
