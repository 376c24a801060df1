//! The side that waits.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::TryRng;
use rand::rngs::SysRng;
use rustix::event::PollFlags;
use tracing::{debug, warn};

use super::connections::{self, Sender, is_transient};
use super::control::{
    Answer, Control, Done, Hello, MESSAGE_LIMIT, Report, Request, Stop, Token, VERSION, Wake,
    parse, wait,
};
use super::crew::Crew;
use super::{Direction, Plan, Protocol, Test, connects, datagrams, round_trip, streams, syscall};

/// Most clients connected at once. Each has a thread, which costs little while it only waits.
const CLIENTS_MAX: usize = 128;

/// Most threads that make or take traffic at once, over all measurements.
const TRAFFIC_THREADS_MAX: usize = 512;

/// How long to leave it alone when no connection can be accepted (no more descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Answers measurements until it is dropped.
///
/// Its threads are started by the thread that calls [`Server::start`] and by each other, so all of them are
/// in that thread's network namespace.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to listen on `listen`; with port 0, on one that the kernel chooses.
    ///
    /// # Errors
    /// When the address is not this namespace's, or the port is taken.
    pub fn start(listen: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = Stop::new()?;
        let own = stop.clone();
        let thread = std::thread::Builder::new()
            .name("bench-server".to_owned())
            .spawn(move || accept(&listener, &own))?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already, and its clients have failed.
            drop(thread.join());
        }
    }
}

fn accept(listener: &TcpListener, stop: &Stop) {
    let threads_left = Arc::new(AtomicUsize::new(TRAFFIC_THREADS_MAX));
    let mut clients: Vec<JoinHandle<()>> = Vec::new();
    // Waits much longer than a minute make no difference.
    let forever = Duration::from_secs(60);
    loop {
        match wait(&[(listener, PollFlags::IN)], Some(stop), Instant::now() + forever) {
            Ok(Wake::Ready(_)) => {}
            Ok(Wake::TimedOut) => continue,
            Ok(Wake::Stopped) => break,
            Err(error) => {
                warn!("the benchmark server ends: it cannot wait for clients: {error}");
                break;
            }
        }
        clients.retain(|client| !client.is_finished());
        let accepted = listener.accept();
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_transient(&error) => continue,
            Err(error) => {
                warn!("a benchmark client cannot be accepted: {error}");
                if matches!(wait(&[], Some(stop), Instant::now() + ACCEPT_PAUSE), Ok(Wake::Stopped))
                {
                    break;
                }
                continue;
            }
        };
        if clients.len() >= CLIENTS_MAX {
            debug!(%peer, "refused: {CLIENTS_MAX} clients are connected");
            continue;
        }
        let (stop, threads_left) = (stop.clone(), Arc::clone(&threads_left));
        let work = move || {
            if let Err(error) = serve(stream, stop, &threads_left) {
                debug!(%peer, "measurement ended: {error}");
            }
        };
        match std::thread::Builder::new().name("bench-client".to_owned()).spawn(work) {
            Ok(client) => clients.push(client),
            Err(error) => warn!(%peer, "a benchmark client gets no thread: {error}"),
        }
    }
    for client in clients {
        // As above.
        drop(client.join());
    }
}

/// Serves one client.
fn serve(stream: TcpStream, stop: Stop, threads_left: &AtomicUsize) -> io::Result<()> {
    let mut control = Control::new(stream, Some(stop))?;
    let message = control.receive_bytes(Instant::now() + MESSAGE_LIMIT)?;
    let version = parse::<Hello>(&message)?.version;
    if version != VERSION {
        let why = format!(
            "the server measures by version {VERSION} of the protocol, the client by {version}: use the \
             same version of weft on both sides"
        );
        return control.send(&Answer::Refused { why });
    }
    let plan = parse::<Request>(&message)?.plan;
    if let Err(error) = plan.check() {
        return control.send(&Answer::Refused { why: error.to_string() });
    }
    let Some(_permit) = Permit::take(threads_left, threads(&plan)) else {
        let why = "the server is busy with other measurements: try again when they are over";
        return control.send(&Answer::Refused { why: why.to_owned() });
    };
    let answer = match measure(&mut control, &plan) {
        Ok(report) => Answer::Report(report),
        Err(error) => Answer::Failed { why: error.to_string() },
    };
    control.send(&answer)
}

/// The right to start some threads; given back when dropped.
struct Permit<'a> {
    left: &'a AtomicUsize,
    count: usize,
}

impl<'a> Permit<'a> {
    fn take(left: &'a AtomicUsize, count: usize) -> Option<Self> {
        let take = |left: usize| left.checked_sub(count);
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Self { left, count })
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.left.fetch_add(self.count, Ordering::Relaxed);
    }
}

/// How many threads the server's side of a measurement takes.
fn threads(plan: &Plan) -> usize {
    usize::from(match plan.test {
        Test::TcpThroughput { streams, direction: Direction::Both } => 2 * streams,
        Test::TcpThroughput { streams, .. } => streams,
        Test::UdpRate { flows, .. } => flows,
        Test::RoundTrip { .. } | Test::ConnectRate { .. } => 1,
    })
}

fn measure(control: &mut Control, plan: &Plan) -> io::Result<Report> {
    let mut token = Token::default();
    SysRng.try_fill_bytes(&mut token).map_err(io::Error::other)?;
    // Where the client has found this server, so that answers come from there.
    let mut local = control.stream().local_addr()?;
    local.set_port(0);
    if let IpAddr::V4(v4) = local.ip().to_canonical() {
        local = SocketAddr::from((v4, 0));
    }
    match plan.test {
        Test::TcpThroughput { streams, direction } => {
            throughput(control, plan, token, local, streams, direction)
        }
        Test::UdpRate { payload, flows } => rate(control, plan, token, local, payload, flows),
        Test::RoundTrip { protocol: Protocol::Tcp, payload } => {
            answer_streams(control, plan, token, local, payload)
        }
        Test::RoundTrip { protocol: Protocol::Udp, .. } => {
            answer_datagrams(control, plan, token, local)
        }
        Test::ConnectRate { .. } => take_connections(control, plan, token, local),
    }
}

fn throughput(
    control: &mut Control,
    plan: &Plan,
    token: Token,
    local: SocketAddr,
    streams: u16,
    direction: Direction,
) -> io::Result<Report> {
    let listener = TcpListener::bind(local)?;
    control.send(&Answer::Ready { ports: vec![listener.local_addr()?.port()], token })?;
    let wanted = direction.senders().map(|sender| (sender, streams));
    let connections = connections::accept(&listener, control, token, &wanted.collect::<Vec<_>>())?;
    drop(listener);
    let (mut senders, mut receivers) = (Crew::default(), Crew::default());
    control.send(&Answer::Go)?;
    let start = Instant::now();
    for (sender, stream) in connections {
        match sender {
            Sender::Client => streams::receive(&mut receivers, stream)?,
            Sender::Server => streams::send(&mut senders, stream)?,
        }
    }
    let (received, elapsed) = control.measure(start, plan, || receivers.sample())?;
    receivers.check()?;
    wait_for_done(control, start, plan)?;
    Ok(Report {
        received: received.done,
        elapsed,
        retransmits: syscall::tcp_counts(senders.streams())?.retransmits,
        out_of_order: syscall::tcp_counts(receivers.streams())?.out_of_order,
    })
}

fn rate(
    control: &mut Control,
    plan: &Plan,
    token: Token,
    local: SocketAddr,
    payload: u16,
    flows: u16,
) -> io::Result<Report> {
    let sockets = greeted_sockets(control, token, local, flows)?;
    let mut receivers = Crew::default();
    control.send(&Answer::Go)?;
    let start = Instant::now();
    for socket in sockets {
        datagrams::receive(&mut receivers, socket, payload)?;
    }
    let (received, elapsed) = control.measure(start, plan, || receivers.sample())?;
    control.send(&Answer::Counted)?;
    wait_for_done(control, start, plan)?;
    receivers.check()?;
    Ok(Report { received: received.done, elapsed, ..Report::default() })
}

fn answer_streams(
    control: &mut Control,
    plan: &Plan,
    token: Token,
    local: SocketAddr,
    payload: u16,
) -> io::Result<Report> {
    let listener = TcpListener::bind(local)?;
    control.send(&Answer::Ready { ports: vec![listener.local_addr()?.port()], token })?;
    let connections = connections::accept(&listener, control, token, &[(Sender::Client, 1)])?;
    drop(listener);
    let mut crew = Crew::default();
    for (_, stream) in connections {
        round_trip::answer_over_tcp(&mut crew, stream, payload)?;
    }
    answer_until_done(control, plan, &mut crew)
}

fn answer_datagrams(
    control: &mut Control,
    plan: &Plan,
    token: Token,
    local: SocketAddr,
) -> io::Result<Report> {
    let mut crew = Crew::default();
    for socket in greeted_sockets(control, token, local, 1)? {
        round_trip::answer_over_udp(&mut crew, socket)?;
    }
    answer_until_done(control, plan, &mut crew)
}

fn take_connections(
    control: &mut Control,
    plan: &Plan,
    token: Token,
    local: SocketAddr,
) -> io::Result<Report> {
    let listener = connects::listen(local)?;
    control.send(&Answer::Ready { ports: vec![listener.local_addr()?.port()], token })?;
    let mut crew = Crew::default();
    connects::accept(&mut crew, listener)?;
    answer_until_done(control, plan, &mut crew)
}

/// For tests whose figures are the client's.
fn answer_until_done(control: &mut Control, plan: &Plan, crew: &mut Crew) -> io::Result<Report> {
    control.send(&Answer::Go)?;
    wait_for_done(control, Instant::now(), plan)?;
    crew.check()?;
    Ok(Report::default())
}

fn greeted_sockets(
    control: &mut Control,
    token: Token,
    local: SocketAddr,
    count: u16,
) -> io::Result<Vec<UdpSocket>> {
    let sockets = datagrams::bind(local, count)?;
    let port = |socket: &UdpSocket| Ok(socket.local_addr()?.port());
    let ports = sockets.iter().map(port).collect::<io::Result<_>>()?;
    control.send(&Answer::Ready { ports, token })?;
    datagrams::meet(control, &sockets, token)?;
    Ok(sockets)
}

fn wait_for_done(control: &mut Control, start: Instant, plan: &Plan) -> io::Result<Done> {
    control.receive(start + plan.length() + MESSAGE_LIMIT)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::super::LANES_MAX;
    use super::*;

    const PLAN: Plan = Plan {
        test: Test::TcpThroughput { streams: LANES_MAX, direction: Direction::Both },
        warm_up: Duration::ZERO,
        duration: Duration::from_secs(60),
    };

    fn server() -> Server {
        Server::start("127.0.0.1:0".parse().unwrap()).unwrap()
    }

    fn ask(server: &Server, plan: Plan) -> (Control, Answer) {
        let mut control =
            Control::new(TcpStream::connect(server.address()).unwrap(), None).unwrap();
        control.send(&Request { version: VERSION, plan }).unwrap();
        let answer = control.receive(Instant::now() + MESSAGE_LIMIT).unwrap();
        (control, answer)
    }

    #[track_caller]
    fn assert_refused(answer: &Answer, why: &str) {
        let Answer::Refused { why: text } = answer else { panic!("{answer:?}") };
        assert!(text.contains(why), "{text}");
    }

    #[test]
    fn nonsense_ends_the_connection_and_nothing_else() {
        let server = server();
        for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0\0\0\x02{}", b"\0\0\0\x03\xff\xff\xff"]
        {
            let mut stream = TcpStream::connect(server.address()).unwrap();
            stream.write_all(nonsense).unwrap();
            stream.set_read_timeout(Some(MESSAGE_LIMIT)).unwrap();
            let ended = stream.read(&mut [0; 1]);
            let reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
            assert!(ended.as_ref().map_or_else(reset, |len| *len == 0), "{ended:?}");
        }
        assert!(matches!(ask(&server, PLAN).1, Answer::Ready { .. }));
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_the_reason() {
        let server = server();
        let endless = Plan { duration: Duration::from_secs(1 << 32), ..PLAN };
        assert_refused(&ask(&server, endless).1, "give at most 3600 s");

        let mut control =
            Control::new(TcpStream::connect(server.address()).unwrap(), None).unwrap();
        control.send(&serde_json::json!({ "version": 7, "what": "else" })).unwrap();
        let answer = control.receive(Instant::now() + MESSAGE_LIMIT).unwrap();
        assert_refused(&answer, "by version 1 of the protocol, the client by 7");
    }

    #[test]
    fn no_client_can_take_more_threads_than_there_are() {
        let server = server();
        let fits = TRAFFIC_THREADS_MAX / threads(&PLAN);
        let mut held: Vec<_> = (0..fits).map(|_| ask(&server, PLAN)).collect();
        assert!(held.iter().all(|(_, answer)| matches!(answer, Answer::Ready { .. })), "{held:?}");
        assert_refused(&ask(&server, PLAN).1, "busy");

        // One of them goes away, and its threads are free again.
        drop(held.pop());
        let deadline = Instant::now() + MESSAGE_LIMIT;
        while !matches!(ask(&server, PLAN).1, Answer::Ready { .. }) {
            assert!(Instant::now() < deadline, "the threads stay taken");
        }
    }

    #[test]
    fn a_client_is_told_that_the_server_ends() {
        let server = server();
        let (mut control, _) = ask(&server, PLAN);
        drop(server);
        let answer = control.receive(Instant::now() + MESSAGE_LIMIT).unwrap();
        let Answer::Failed { why } = answer else { panic!("{answer:?}") };
        assert_eq!(why, "the server was stopped");
    }
}
