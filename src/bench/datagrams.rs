//! UDP: as many datagrams as a thread can send, and counting what arrives.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::control::{Control, MESSAGE_LIMIT, Token};
use super::crew::{Crew, STOP_CHECK_INTERVAL};
use super::syscall::Burst;

/// Kernel memory for received datagrams of one measurement, 4 MiB: some milliseconds of small ones, which
/// is what a receiver waits for its turn on a busy machine.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How often a client says where its datagrams come from until all have been heard.
const GREETING_INTERVAL: Duration = Duration::from_millis(50);

/// Opens sockets that take datagrams at `local`.
pub(super) fn bind(local: SocketAddr, count: u16) -> io::Result<Vec<UdpSocket>> {
    let bind = |_| {
        let socket = UdpSocket::bind(local)?;
        let len = RECEIVE_BUFFER / usize::from(count.max(1));
        // Beyond the machine's limit (`net.core.rmem_max`) only for an administrator.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, len).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, len)?;
        }
        Ok(socket)
    };
    (0..count).map(bind).collect()
}

/// Opens a socket for datagrams to each of `addresses`.
pub(super) fn open(addresses: &[SocketAddr]) -> io::Result<Vec<UdpSocket>> {
    let open = |address: &SocketAddr| {
        let any = match address {
            SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
            SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        Ok(socket)
    };
    addresses.iter().map(open).collect()
}

/// Shows the server where the datagrams of each socket come from, until it says something.
pub(super) fn greet(control: &Control, sockets: &[UdpSocket], token: Token) -> io::Result<()> {
    let until = Instant::now() + MESSAGE_LIMIT;
    while Instant::now() < until {
        for socket in sockets {
            match socket.send(&token) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if control.has_message(Instant::now() + GREETING_INTERVAL)? {
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no datagram has reached the server"))
}

/// Waits until every socket has been greeted by the client at the other end of `control`, and from then on
/// hears only that.
pub(super) fn meet(control: &Control, sockets: &[UdpSocket], token: Token) -> io::Result<()> {
    let peer = control.peer()?;
    let until = Instant::now() + MESSAGE_LIMIT;
    for socket in sockets {
        socket.set_nonblocking(true)?;
        loop {
            if !control.wait_for(Some(socket), until)? {
                let text = "the first datagrams have not arrived: is UDP open on all ports?";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            // One byte more, to tell a longer datagram.
            let mut greeting = [0; size_of::<Token>() + 1];
            match socket.recv_from(&mut greeting) {
                Ok((len, from)) if greeting[..len] == token && from.ip() == peer => {
                    socket.connect(from)?;
                    break;
                }
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        socket.set_nonblocking(false)?;
    }
    Ok(())
}

/// Starts a thread that sends datagrams with `payload` bytes through `socket`.
pub(super) fn send(crew: &mut Crew, socket: UdpSocket, payload: u16) -> io::Result<()> {
    socket.set_write_timeout(Some(STOP_CHECK_INTERVAL))?;
    crew.start(None, move |lane| {
        let mut burst = Burst::new(payload.into());
        while !lane.is_stopped() {
            match burst.send(&socket) {
                Ok(sent) => lane.done.fetch_add(sent, Ordering::Relaxed),
                Err(error) if is_passing(&error) => lane.failed.fetch_add(1, Ordering::Relaxed),
                Err(error) => return Err(error),
            };
        }
        Ok(())
    })
}

/// Starts a thread that counts the datagrams with up to `payload` bytes that `socket` receives.
pub(super) fn receive(crew: &mut Crew, socket: UdpSocket, payload: u16) -> io::Result<()> {
    socket.set_read_timeout(Some(STOP_CHECK_INTERVAL))?;
    crew.start(None, move |lane| {
        let mut burst = Burst::new(payload.into());
        while !lane.is_stopped() {
            match burst.receive(&socket) {
                Ok(received) => lane.done.fetch_add(received, Ordering::Relaxed),
                Err(error) if is_passing(&error) => 0,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    })
}

/// Whether the same call may succeed later: queues are full, nothing is there, or an earlier datagram was
/// answered by an ICMP error, which the kernel tells with the next call (ip(7), udp(7)).
pub(super) fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::TimedOut
            | io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    ) || error.raw_os_error() == Some(libc::ENOBUFS)
}
