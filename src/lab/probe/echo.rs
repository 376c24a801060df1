//! An echo server that says whom it sees, over TCP and UDP: shows whether an address was rewritten.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::SILENCE_MAX;
use crate::lab::namespace::Namespace;
use crate::lab::wait::Interrupt;

/// How often the server looks whether it is to stop.
const STOP_CHECK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// How long a client waits before it sends a datagram again.
const RESEND_INTERVAL: Duration = Duration::from_millis(500);

/// Largest datagram that UDP over IPv4 can carry.
const DATAGRAM_LEN_MAX: usize = 65_507;

/// Both sides' view of the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenAs {
    /// What the client calls itself.
    pub own: SocketAddr,
    /// What the server saw.
    pub seen: SocketAddr,
}

impl SeenAs {
    /// Whether somebody between the two changed address or port.
    pub fn is_rewritten(&self) -> bool {
        self.own.ip() != self.seen.ip() || self.own.port() != self.seen.port()
    }
}

/// Answers each TCP connection and each datagram with the address that it came from. A datagram's own
/// content follows. Stops when dropped.
#[derive(Debug)]
pub struct EchoServer {
    port: u16,
    stop: Interrupt,
    threads: Vec<JoinHandle<()>>,
}

impl EchoServer {
    /// Starts a server on `address`, the same free port for TCP and UDP.
    ///
    /// # Errors
    /// When the address is not the namespace's.
    pub fn start(namespace: &Namespace, address: IpAddr) -> io::Result<Self> {
        let (listener, socket) = namespace.run(|| {
            let listener = TcpListener::bind((address, 0))?;
            let socket = UdpSocket::bind(listener.local_addr()?)?;
            io::Result::Ok((listener, socket))
        })??;
        let port = listener.local_addr()?.port();
        let stop = Interrupt::default();
        let spawn = |work: Box<dyn FnOnce(&Interrupt) + Send>| {
            let stop = stop.clone();
            std::thread::Builder::new().name("echo".to_owned()).spawn(move || work(&stop))
        };
        let threads = vec![
            spawn(Box::new(move |stop| serve_tcp(&listener, stop)))?,
            spawn(Box::new(move |stop| serve_udp(&socket, stop)))?,
        ];
        Ok(Self { port, stop, threads })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.set();
        for thread in self.threads.drain(..) {
            // A panic in the server has been printed already, and its clients have failed.
            drop(thread.join());
        }
    }
}

/// Connects from `namespace` and asks the server who it sees.
///
/// # Errors
/// When the connection fails or falls silent.
pub fn tcp_seen_as(namespace: &Namespace, server: SocketAddr) -> io::Result<SeenAs> {
    namespace.run(|| {
        let mut stream = TcpStream::connect_timeout(&server, SILENCE_MAX)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let own = stream.local_addr()?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(SeenAs { own, seen: parse(text.trim())? })
    })?
}

/// Sends a datagram with `len` bytes from `namespace`, and checks that they come back. A lost datagram is
/// sent again a few times.
///
/// # Errors
/// When no answer comes, or a wrong one.
pub fn udp_seen_as(namespace: &Namespace, server: SocketAddr, len: usize) -> io::Result<SeenAs> {
    let socket = namespace.run(|| {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => [0; 4].into(),
            SocketAddr::V6(_) => [0; 16].into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        io::Result::Ok(socket)
    })??;
    socket.set_read_timeout(Some(RESEND_INTERVAL))?;
    let request: Vec<u8> = (0..len).map(|ix| u8::try_from(ix % 251).unwrap_or(0)).collect();
    let mut answer = vec![0; DATAGRAM_LEN_MAX];
    let tries = SILENCE_MAX.as_millis() / RESEND_INTERVAL.as_millis();
    for _ in 0..tries {
        socket.send(&request)?;
        let len = match socket.recv(&mut answer) {
            Ok(len) => len,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(error),
        };
        let line_len = answer[..len].iter().position(|byte| *byte == b'\n').unwrap_or(len);
        let seen = parse(&String::from_utf8_lossy(&answer[..line_len]))?;
        if answer[..len].get(line_len + 1..) != Some(&request[..]) {
            return Err(io::Error::other("the datagram came back changed"));
        }
        return Ok(SeenAs { own: socket.local_addr()?, seen });
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer"))
}

fn serve_tcp(listener: &TcpListener, stop: &Interrupt) {
    while wait_readable(listener.as_fd(), stop) {
        // A client that is gone before its answer will report that itself.
        let Ok((mut stream, peer)) = listener.accept() else { continue };
        drop(writeln!(stream, "{peer}"));
    }
}

fn serve_udp(socket: &UdpSocket, stop: &Interrupt) {
    let mut datagram = vec![0; DATAGRAM_LEN_MAX];
    while wait_readable(socket.as_fd(), stop) {
        let Ok((len, peer)) = socket.recv_from(&mut datagram) else { continue };
        let mut answer = format!("{peer}\n").into_bytes();
        answer.extend_from_slice(&datagram[..len]);
        // As above: the client notices.
        drop(socket.send_to(&answer, peer));
    }
}

/// False once the server is to stop.
fn wait_readable(fd: BorrowedFd<'_>, stop: &Interrupt) -> bool {
    loop {
        if stop.is_set() {
            return false;
        }
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&STOP_CHECK_INTERVAL)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

fn parse(text: &str) -> io::Result<SocketAddr> {
    text.parse().map_err(|_| io::Error::other(format!("the server answered `{text}`")))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
