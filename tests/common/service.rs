//! Servers that say who they are and whom they see, and clients that ask them.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use weft::lab::{Lab, Namespace};

/// How long a client waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// Who answered, and whom it saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) server: String,
    pub(crate) seen: IpAddr,
}

impl Answer {
    fn read(text: &str) -> io::Result<Self> {
        let (server, seen) =
            text.trim().split_once(' ').ok_or_else(|| io::Error::other(format!("`{text}`")))?;
        let seen = seen.parse().map_err(|_| io::Error::other(format!("`{text}`")))?;
        Ok(Self { server: server.to_owned(), seen })
    }
}

/// Serves `port` on all addresses of a pod or node, TCP and UDP, until the test's process ends. Each connection begins
/// with the name of the place and the client's address; each line after that is answered with the same.
pub(crate) fn serve(lab: &Lab, place: &str, port: u16) {
    serve_in(&lab.namespace(place).unwrap(), place, port);
}

/// The same in a namespace that the lab has no name for.
pub(crate) fn serve_in(namespace: &Namespace, place: &str, port: u16) {
    let open = || {
        let any: IpAddr = "::".parse().unwrap();
        let listener = TcpListener::bind((any, port)).unwrap();
        (listener, UdpSocket::bind((any, port)).unwrap())
    };
    let (listener, socket) = namespace.run(open).unwrap();
    let name = place.to_owned();
    std::thread::spawn(move || {
        let mut datagram = [0; 2000];
        while let Ok((_, client)) = socket.recv_from(&mut datagram) {
            let text = format!("{name} {}", client.ip().to_canonical());
            let _ = socket.send_to(text.as_bytes(), client);
        }
    });
    let name = place.to_owned();
    std::thread::spawn(move || {
        while let Ok((stream, client)) = listener.accept() {
            let line = format!("{name} {}\n", client.ip().to_canonical());
            std::thread::spawn(move || answer(stream, &line));
        }
    });
}

fn answer(mut stream: TcpStream, line: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes())?;
    for request in BufReader::new(stream.try_clone()?).lines() {
        request?;
        stream.write_all(line.as_bytes())?;
    }
    Ok(())
}

/// A connection to a server, and what it said first.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
    pub(crate) first: Answer,
}

impl Connection {
    pub(crate) fn open(namespace: &Namespace, to: SocketAddr) -> io::Result<Self> {
        Self::open_within(namespace, to, PATIENCE)
    }

    pub(crate) fn open_within(
        namespace: &Namespace,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<Self> {
        let stream = namespace.run(|| TcpStream::connect_timeout(&to, patience))??;
        stream.set_read_timeout(Some(patience))?;
        let mut reader = BufReader::new(stream);
        let first = read(&mut reader)?;
        Ok(Self { reader, first })
    }

    /// Asks again on the same connection.
    pub(crate) fn again(&mut self) -> io::Result<Answer> {
        self.reader.get_mut().write_all(b"again\n")?;
        read(&mut self.reader)
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Answer::read(&line)
}

/// Asks by a connection of its own.
pub(crate) fn tcp(namespace: &Namespace, to: SocketAddr) -> io::Result<Answer> {
    Connection::open(namespace, to).map(|connection| connection.first)
}

/// Asks by a datagram from a socket of its own.
pub(crate) fn udp(namespace: &Namespace, to: SocketAddr) -> io::Result<Answer> {
    let open = || {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        io::Result::Ok(socket)
    };
    let socket = namespace.run(open)??;
    ask(&socket)
}

/// Asks by a datagram from `socket`, which is connected.
pub(crate) fn ask(socket: &UdpSocket) -> io::Result<Answer> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"who")?;
    let mut answer = [0; 200];
    let len = socket.recv(&mut answer)?;
    Answer::read(&String::from_utf8_lossy(&answer[..len]))
}

/// What a client learns, and whether it learns that at once.
#[track_caller]
pub(crate) fn refused_at_once(what: &str, ask: impl FnOnce() -> io::Result<Answer>) {
    let asked = Instant::now();
    let answer = ask();
    let kind = answer.as_ref().map_err(io::Error::kind);
    assert!(matches!(kind, Err(io::ErrorKind::ConnectionRefused)), "{what}: {answer:?}");
    assert!(asked.elapsed() < Duration::from_secs(1), "{what}: after {:?}", asked.elapsed());
}

/// The client hears nothing.
#[track_caller]
pub(crate) fn silent(what: &str, answer: &io::Result<Answer>) {
    let kind = answer.as_ref().map_err(io::Error::kind);
    let waited = matches!(kind, Err(io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock));
    assert!(waited, "{what}: {answer:?}");
}

/// An EndpointSlice of the Service `service` with one port `http` on TCP and one `dns` on UDP, both `port`. Each
/// endpoint is a pod, with what else is to be said of it.
pub(crate) fn slice(
    lab: &Lab,
    (service, kind): (&str, &str),
    port: u16,
    endpoints: &[(&str, &str)],
) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-{}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: {kind}\n\
         ports: [{{name: http, port: {port}}}, {{name: dns, port: {port}, protocol: UDP}}]\nendpoints:",
        kind.to_lowercase()
    );
    text.push_str(if endpoints.is_empty() { " []\n" } else { "\n" });
    for (pod, more) in endpoints {
        let (node, state) = lab.state().pod(pod).unwrap();
        let address = address(&state.addresses, kind == "IPv4");
        let node = &node.name;
        text += &format!("- {{addresses: [\"{address}\"], nodeName: {node}{more}}}\n");
    }
    text + "---\n"
}

/// The address of a family.
pub(crate) fn address(addresses: &[IpAddr], is_ipv4: bool) -> IpAddr {
    *addresses.iter().find(|address| address.is_ipv4() == is_ipv4).unwrap()
}
