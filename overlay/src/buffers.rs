//! The kernel's memory for a tunnel's sockets: how much it granted, and what did not fit.
//!
//! The sockets are the workers'. [`Buffers`] only look at them, and never keep one open: a closed socket's
//! port must be free at once.

// Socket options that neither the standard library nor socket2 or rustix have.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Weak;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use libc::{c_int, c_void, socklen_t};
use socket2::Socket;

/// Kernel memory for received datagrams, 8 MiB: 5 ms at 10 Gbit/s, longer than a batch takes.
pub const RECEIVE_BUFFER: usize = 8 << 20;

/// Kernel memory for datagrams on their way out: as much as a batch can hold.
pub const SEND_BUFFER: usize = 8 << 20;

/// The buffers of a tunnel's sockets, as the control side sees them.
#[derive(Debug)]
pub struct Buffers {
    receivers: Vec<Receiver>,
    senders: Vec<Weak<Socket>>,
    receive: AtomicUsize,
    send: AtomicUsize,
}

#[derive(Debug)]
struct Receiver {
    socket: Weak<Socket>,
    /// Its drops that were told already.
    told: AtomicU32,
}

impl Buffers {
    /// The buffers of these sockets, each granted that many bytes.
    pub fn new(
        receivers: Vec<Weak<Socket>>,
        senders: Vec<Weak<Socket>>,
        (receive, send): (usize, usize),
    ) -> Self {
        let watch = |socket| Receiver { socket, told: AtomicU32::new(0) };
        Self {
            receivers: receivers.into_iter().map(watch).collect(),
            senders,
            receive: AtomicUsize::new(receive),
            send: AtomicUsize::new(send),
        }
    }

    /// Bytes that the kernel granted to each receiving socket; [`RECEIVE_BUFFER`] is what is asked for.
    pub fn receive(&self) -> usize {
        self.receive.load(Ordering::Relaxed)
    }

    /// Bytes that the kernel granted to each sending socket; [`SEND_BUFFER`] is what is asked for.
    pub fn send(&self) -> usize {
        self.send.load(Ordering::Relaxed)
    }

    /// Asks for the whole buffers again: somebody may have raised the system's limit since.
    pub fn grow(&self) {
        let receivers = self.receivers.iter().filter_map(|receiver| receiver.socket.upgrade());
        let granted = receivers.filter_map(|socket| grow_receive_buffer(&socket).ok()).min();
        self.receive.store(granted.unwrap_or_else(|| self.receive()), Ordering::Relaxed);
        let senders = self.senders.iter().filter_map(Weak::upgrade);
        let granted = senders.filter_map(|socket| grow_send_buffer(&socket).ok()).min();
        self.send.store(granted.unwrap_or_else(|| self.send()), Ordering::Relaxed);
    }

    /// Packets that the kernel dropped at the receiving sockets since the last call, because the buffer was
    /// full or the outer checksum wrong. A datagram that the kernel itself merged counts as one.
    pub fn take_drops(&self) -> u64 {
        self.receivers.iter().map(Receiver::take_drops).sum()
    }
}

impl Receiver {
    fn take_drops(&self) -> u64 {
        // A kernel that does not tell (before 4.12) is older than any that is supported.
        let Some(Ok(drops)) = self.socket.upgrade().map(|socket| drops(&socket)) else {
            return 0;
        };
        drops.wrapping_sub(self.told.swap(drops, Ordering::Relaxed)).into()
    }
}

/// Asks for the whole buffer as root may, else for what the system allows. Returns what was granted.
pub(crate) fn grow_receive_buffer(socket: &Socket) -> io::Result<usize> {
    if force(socket, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.recv_buffer_size().map(granted)
}

/// The same for what is sent.
pub(crate) fn grow_send_buffer(socket: &Socket) -> io::Result<usize> {
    if force(socket, libc::SO_SNDBUFFORCE, SEND_BUFFER).is_err() {
        socket.set_send_buffer_size(SEND_BUFFER)?;
    }
    socket.send_buffer_size().map(granted)
}

/// The kernel doubles what it grants, for its own bookkeeping (socket(7)), and tells the double.
fn granted(told: usize) -> usize {
    told / 2
}

fn force(socket: &Socket, option: c_int, size: usize) -> io::Result<()> {
    let size = c_int::try_from(size).unwrap_or(c_int::MAX);
    let value = (&raw const size).cast::<c_void>();
    let len = len_of::<c_int>();
    // SAFETY: the value is a live `c_int` whose length is given; the kernel only reads it.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, len) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the socket has dropped since it was opened, modulo 2³².
fn drops(socket: &Socket) -> io::Result<u32> {
    // `SK_MEMINFO_DROPS`, the last of the values (`linux/sock_diag.h`).
    const DROPS: usize = 8;
    let mut values = [0_u32; DROPS + 1];
    let mut len = len_of::<[u32; DROPS + 1]>();
    // SAFETY: the values are live, and `len` is their true length; the kernel writes no more than that.
    let told = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if told == 0 { Ok(values[DROPS]) } else { Err(io::Error::last_os_error()) }
}

fn len_of<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).unwrap_or(socklen_t::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
    use std::sync::Arc;

    use socket2::{Domain, SockAddr, Type};

    use super::*;

    #[test]
    fn what_does_not_fit_is_told_once() {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.bind(&SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).unwrap();
        socket.set_recv_buffer_size(0).unwrap();
        let to = socket.local_addr().unwrap().as_socket().unwrap();
        let socket = Arc::new(socket);
        let buffers = Buffers::new(vec![Arc::downgrade(&socket)], Vec::new(), (0, 0));
        assert_eq!(buffers.take_drops(), 0);

        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // The loopback interface delivers before the call returns.
        for _ in 0..100 {
            sender.send_to(&[0; 1000], to).unwrap();
        }
        let dropped = buffers.take_drops();
        assert!((1..100).contains(&dropped), "{dropped} of 100");
        assert_eq!(buffers.take_drops(), 0);
        drop(socket);
        assert_eq!(buffers.take_drops(), 0, "a closed socket tells nothing");
    }

    #[test]
    fn buffers_are_asked_for_again() {
        let socket = Arc::new(Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap());
        let sockets = || vec![Arc::downgrade(&socket)];
        let buffers = Buffers::new(sockets(), sockets(), (1, 1));
        buffers.grow();
        assert_eq!(buffers.receive(), grow_receive_buffer(&socket).unwrap());
        assert_eq!(buffers.send(), grow_send_buffer(&socket).unwrap());
        assert!(buffers.receive() > 1 && buffers.send() > 1);
    }
}
