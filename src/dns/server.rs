//! The sockets of the name server.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::answer::Answer;
use super::message::{self, Request, Unanswerable};
use super::resolver::Resolver;
use super::stats::count;

/// Longest request, in bytes: a name and some EDNS options.
const REQUEST_MAX: usize = 4096;

/// What the kernel may keep of requests that wait, in bytes: a burst of ten thousand.
const RECEIVE_BUFFER: usize = 8 << 20;

/// How often the thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(250);

/// How long a connection may be silent (RFC 7766 §6.2.3 leaves that to the server).
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Most connections, of all clients and of one.
const CONNECTIONS_MAX: usize = 512;
const CONNECTIONS_EACH: usize = 32;

/// Serves UDP and TCP at an address, until `stop` says so.
pub(super) fn serve(
    at: SocketAddr,
    resolver: &Arc<Resolver>,
    stop: &watch::Receiver<bool>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let udp = Arc::new(bind_udp(at)?);
    let listener = bind_tcp(at)?;
    let runtime = Handle::current();
    let (answering, ending) = (Arc::clone(resolver), stop.clone());
    let udp = tokio::task::spawn_blocking(move || serve_udp(&udp, &answering, &runtime, &ending));
    let tcp = tokio::spawn(serve_tcp(listener, Arc::clone(resolver), stop.clone()));
    Ok(vec![udp, tcp])
}

/// A socket that may be bound before its address is on an interface.
fn socket(at: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
    match at {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_freebind_v6(true)?;
            socket.set_only_v6(true)?;
        }
    }
    socket.set_reuse_address(kind == Type::STREAM)?;
    socket.bind(&at.into())?;
    Ok(socket)
}

fn bind_udp(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket(at, Type::DGRAM, Protocol::UDP)?;
    // As much as the kernel grants: SO_RCVBUFFORCE needs a privilege that may be missing.
    if socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER).is_err() {
        tracing::debug!(%at, "the name server's receive buffer stays as it is");
    }
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket.into())
}

fn bind_tcp(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(at, Type::STREAM, Protocol::TCP)?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// Answers on a thread of its own; only what takes another server goes to the runtime.
fn serve_udp(
    socket: &Arc<UdpSocket>,
    resolver: &Arc<Resolver>,
    runtime: &Handle,
    stop: &watch::Receiver<bool>,
) {
    let _within = runtime.enter();
    let mut buffer = [0; REQUEST_MAX];
    // An error means that whoever could say so is gone.
    while !*stop.borrow() && stop.has_changed().is_ok() {
        let (len, client) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // An ICMP error about an earlier answer: that client has gone.
            Err(error) => {
                tracing::debug!(%error, "the name server's socket reports an error");
                continue;
            }
        };
        let began = Instant::now();
        let request = match message::parse(&buffer[..len]) {
            Ok(request) => request,
            Err(why) => {
                if let Some(bytes) = refusal(resolver, &why, began) {
                    send(socket, resolver, client, &bytes);
                }
                continue;
            }
        };
        match resolver.answer_now(&request, client.ip()) {
            Some((answer, part)) => {
                let bytes = message::respond_udp(&request, &rotated(answer.clone(), request.id));
                send(socket, resolver, client, &bytes);
                resolver.finish(&request, client.ip(), &answer, part, began.elapsed());
            }
            None => {
                let (socket, resolver) = (Arc::clone(socket), Arc::clone(resolver));
                runtime.spawn(async move {
                    let (answer, part) = resolver.answer(&request, client.ip()).await;
                    send(&socket, &resolver, client, &message::respond_udp(&request, &answer));
                    resolver.finish(&request, client.ip(), &answer, part, began.elapsed());
                });
            }
        }
    }
}

fn send(socket: &UdpSocket, resolver: &Resolver, client: SocketAddr, bytes: &[u8]) {
    // Waiting for one client's queue would let all others wait.
    if rustix::net::sendto(socket, bytes, SendFlags::DONTWAIT, &client).is_err() {
        count(&resolver.stats().unsent);
    }
}

/// What is said to something that is no request that can be answered.
fn refusal(resolver: &Resolver, why: &Unanswerable, began: Instant) -> Option<Vec<u8>> {
    match why {
        Unanswerable::Silent => {
            count(&resolver.stats().ignored);
            None
        }
        Unanswerable::Refused(code, bytes) => {
            resolver.stats().responded(None, *code, began.elapsed());
            Some(bytes.clone())
        }
    }
}

/// Begins with another record each time, so that clients that take the first one share the load.
fn rotated(mut answer: Answer, by: u16) -> Answer {
    let first = answer.answers.first().map(|record| (record.record_type(), record.name.clone()));
    let alike = |record: &hickory_proto::rr::Record| {
        first.as_ref().is_some_and(|(kind, name)| {
            record.record_type() == *kind && kind.is_ip_addr() && record.name == *name
        })
    };
    if answer.answers.len() > 1 && answer.answers.iter().all(alike) {
        let by = usize::from(by) % answer.answers.len();
        answer.answers.rotate_left(by);
    }
    answer
}

async fn serve_tcp(
    listener: TcpListener,
    resolver: Arc<Resolver>,
    mut stop: watch::Receiver<bool>,
) {
    let connections: Arc<Mutex<HashMap<IpAddr, usize>>> = Arc::default();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection to the name server failed");
                // Out of descriptors: some will be closed soon.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(seat) = Seat::take(&connections, client.ip()) else {
            count(&resolver.stats().overload);
            continue;
        };
        let (resolver, mut stop) = (Arc::clone(&resolver), stop.clone());
        tokio::spawn(async move {
            let _seat = seat;
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                ended = converse(stream, client, &resolver) => {
                    if let Err(error) = ended {
                        tracing::debug!(%client, %error, "a connection to the name server ended");
                    }
                }
            }
        });
    }
}

async fn converse(
    mut stream: TcpStream,
    client: SocketAddr,
    resolver: &Arc<Resolver>,
) -> io::Result<()> {
    loop {
        let len = match timeout(IDLE_MAX, stream.read_u16()).await {
            Ok(Ok(len)) => usize::from(len),
            Ok(Err(error)) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_idle) => return Ok(()),
        };
        if len > REQUEST_MAX {
            return Err(io::Error::new(ErrorKind::InvalidData, "the request is too long"));
        }
        let mut bytes = vec![0; len];
        timeout(IDLE_MAX, stream.read_exact(&mut bytes)).await??;
        let began = Instant::now();
        let response = match message::parse(&bytes) {
            Ok(request) => respond(resolver, &request, client, began).await,
            Err(why) => match refusal(resolver, &why, began) {
                Some(bytes) => bytes,
                None => return Ok(()),
            },
        };
        let len = u16::try_from(response.len()).map_err(io::Error::other)?;
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend_from_slice(&response);
        timeout(IDLE_MAX, stream.write_all(&framed)).await??;
    }
}

async fn respond(
    resolver: &Arc<Resolver>,
    request: &Request,
    client: SocketAddr,
    began: Instant,
) -> Vec<u8> {
    let (answer, part) = resolver.answer(request, client.ip()).await;
    resolver.finish(request, client.ip(), &answer, part, began.elapsed());
    message::respond_tcp(request, &rotated(answer, request.id))
}

/// A client's right to a connection.
struct Seat {
    connections: Arc<Mutex<HashMap<IpAddr, usize>>>,
    client: IpAddr,
}

impl Seat {
    fn take(connections: &Arc<Mutex<HashMap<IpAddr, usize>>>, client: IpAddr) -> Option<Self> {
        let mut counts = connections.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = counts.values().sum();
        let own = counts.get(&client).copied().unwrap_or(0);
        if all >= CONNECTIONS_MAX || own >= CONNECTIONS_EACH {
            return None;
        }
        counts.insert(client, own + 1);
        Some(Self { connections: Arc::clone(connections), client })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = counts.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                counts.remove(&self.client);
            }
        }
    }
}
