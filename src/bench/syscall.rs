//! System calls that neither the standard library nor rustix nor socket2 has.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

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
