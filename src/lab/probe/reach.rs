//! Who reaches whom: hundreds of connections at a time, many of which are not meant to be answered.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, recvfrom, send, sendto, socket_with, sockopt,
};
use vswitch::service::Protocol;

use crate::lab::namespace::Namespace;
use crate::lab::wait::Interrupt;

/// How often servers look whether they are to stop, and clients whether to ask again.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Connections that wait for a server.
const BACKLOG: i32 = 128;

/// The protocols that this kernel has sockets for.
pub fn protocols() -> Vec<Protocol> {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    all.into_iter().filter(|protocol| open(*protocol, any).is_ok()).collect()
}

/// Answers every connection and every datagram with one byte. Stops when dropped.
#[derive(Debug)]
pub struct ReachServer {
    stop: Interrupt,
    thread: Option<JoinHandle<()>>,
}

impl ReachServer {
    /// Starts a server in `namespace` at each address and port of each protocol.
    ///
    /// # Errors
    /// When an address is not the namespace's, or a port is taken.
    pub fn start(
        namespace: &Namespace,
        addresses: &[IpAddr],
        ports: &[u16],
        protocols: &[Protocol],
    ) -> io::Result<Self> {
        let mut places = Vec::new();
        for protocol in protocols {
            for address in addresses {
                places
                    .extend(ports.iter().map(|port| (*protocol, SocketAddr::new(*address, *port))));
            }
        }
        let sockets = namespace.run(move || {
            let open = places.into_iter().map(|(protocol, place)| serve_at(protocol, place));
            open.collect::<io::Result<Vec<_>>>()
        })??;
        let stop = Interrupt::default();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("reach".to_owned())
            .spawn(move || serve(&sockets, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for ReachServer {
    fn drop(&mut self) {
        self.stop.set();
        // A panic in the server has been printed already, and its clients have failed.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// A question: does the server at `to` answer somebody in `from`?
#[derive(Debug, Clone)]
pub struct Reach<'n> {
    /// Who asks.
    pub from: &'n Namespace,
    /// Who is asked.
    pub to: SocketAddr,
    /// How.
    pub protocol: Protocol,
}

/// Asks all at a time. Who has not answered after `wait` is not reached.
///
/// # Errors
/// When a namespace is gone, or a socket cannot be opened.
pub fn reach(questions: &[Reach<'_>], wait: Duration) -> io::Result<Vec<bool>> {
    let mut clients: Vec<Option<OwnedFd>> = Vec::with_capacity(questions.len());
    for of_one in questions.chunk_by(|a, b| a.from == b.from) {
        let Some(first) = of_one.first() else { continue };
        let places: Vec<_> = of_one.iter().map(|asked| (asked.protocol, asked.to)).collect();
        let opened = first.from.run(move || {
            places
                .into_iter()
                .map(|(protocol, to)| ask(protocol, to))
                .collect::<io::Result<Vec<_>>>()
        })??;
        clients.extend(opened);
    }
    let deadline = Instant::now() + wait;
    let mut answered = vec![false; questions.len()];
    while Instant::now() < deadline && clients.iter().any(Option::is_some) {
        let waiting: Vec<usize> = (0..clients.len()).filter(|ix| clients[*ix].is_some()).collect();
        let sockets: Vec<&OwnedFd> =
            waiting.iter().filter_map(|ix| clients[*ix].as_ref()).collect();
        let mut fds: Vec<_> =
            sockets.iter().map(|socket| PollFd::new(*socket, PollFlags::IN)).collect();
        let ready = match poll(&mut fds, Some(&TURN)) {
            Ok(ready) => ready,
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        for (ix, events) in waiting.into_iter().zip(events) {
            let Some(socket) = &clients[ix] else { continue };
            if events.is_empty() {
                // A datagram may be lost for other reasons.
                if ready == 0 && questions[ix].protocol == Protocol::Udp {
                    let _lost = send(socket, b"?", SendFlags::DONTWAIT);
                }
                continue;
            }
            let mut byte = [0; 1];
            match recv(socket, &mut byte, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                Ok((len, _)) => {
                    answered[ix] = len == 1;
                    clients[ix] = None;
                }
                Err(_) => clients[ix] = None,
            }
        }
    }
    Ok(answered)
}

fn open(protocol: Protocol, place: SocketAddr) -> io::Result<OwnedFd> {
    let family = if place.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, rustix::net::ipproto::TCP),
        Protocol::Udp => (SocketType::DGRAM, rustix::net::ipproto::UDP),
        Protocol::Sctp => (SocketType::STREAM, rustix::net::ipproto::SCTP),
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(family, kind, flags, Some(number))?)
}

fn serve_at(protocol: Protocol, place: SocketAddr) -> io::Result<(Protocol, OwnedFd)> {
    let socket = open(protocol, place)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &place)?;
    if protocol != Protocol::Udp {
        listen(&socket, BACKLOG)?;
    }
    Ok((protocol, socket))
}

/// `None` if it is known at once that nobody will answer.
fn ask(protocol: Protocol, to: SocketAddr) -> io::Result<Option<OwnedFd>> {
    let socket = open(protocol, to)?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::CONNREFUSED | Errno::ACCESS) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    }
    if protocol == Protocol::Udp {
        // If it is lost, it is sent again.
        let _lost = send(&socket, b"?", SendFlags::DONTWAIT);
    }
    Ok(Some(socket))
}

fn serve(sockets: &[(Protocol, OwnedFd)], stop: &Interrupt) {
    while !stop.is_set() {
        let mut fds: Vec<_> = sockets
            .iter()
            .map(|(_, socket)| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
            .collect();
        match poll(&mut fds, Some(&TURN)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        for ((protocol, socket), fd) in sockets.iter().zip(&fds) {
            if !fd.revents().is_empty() {
                answer(*protocol, socket);
            }
        }
    }
}

/// Answers whoever waits at a socket. One who is gone notices that itself.
fn answer(protocol: Protocol, socket: &OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    match protocol {
        Protocol::Udp => {
            let mut byte = [0; 16];
            while let Ok((_, _, Some(from))) = recvfrom(socket, &mut byte, RecvFlags::DONTWAIT) {
                let _lost = sendto(socket, b"!", SendFlags::DONTWAIT, &from);
            }
        }
        Protocol::Tcp | Protocol::Sctp => {
            while let Ok(client) = accept_with(socket, flags) {
                let _closed = send(&client, b"!", SendFlags::DONTWAIT);
            }
        }
    }
}
