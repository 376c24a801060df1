//! Connections that are made and closed at once.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::connections::is_transient;
use super::crew::{Crew, STOP_CHECK_INTERVAL};

/// How long a connection may take before it counts as failed: less than the second after which TCP asks
/// again (RFC 6298 §2).
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// Connections that may wait to be accepted. The kernel grants at most `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Starts a thread that connects to `address` and closes, again and again.
pub(super) fn connect(crew: &mut Crew, address: SocketAddr) -> io::Result<()> {
    crew.start(None, move |lane| {
        while !lane.is_stopped() {
            let counter = match connect_once(address) {
                Ok(()) => &lane.done,
                Err(_) => &lane.failed,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

fn connect_once(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Ends by a reset: closed in order, each would hold its port for a minute (RFC 9293 §3.4.1).
    socket.set_linger(Some(Duration::ZERO))?;
    // Bounds connect(2), too (socket(7)).
    socket.set_write_timeout(Some(CONNECT_LIMIT))?;
    socket.connect(&address.into())
}

/// Opens a listener on a free port of `local`.
pub(super) fn listen(local: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(local), Type::STREAM, None)?;
    socket.bind(&local.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Starts a thread that takes connections and closes them.
pub(super) fn accept(crew: &mut Crew, listener: TcpListener) -> io::Result<()> {
    // Bounds accept(2), too (socket(7)).
    SockRef::from(&listener).set_read_timeout(Some(STOP_CHECK_INTERVAL))?;
    crew.start(None, move |lane| {
        while !lane.is_stopped() {
            match listener.accept() {
                Ok(_) => lane.done.fetch_add(1, Ordering::Relaxed),
                Err(error) if is_transient(&error) => 0,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    })
}
