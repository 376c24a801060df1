//! TCP connections for traffic: each begins with a greeting that says what it belongs to.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::control::{Control, MESSAGE_LIMIT, Token};

/// How long a stranger can hold up those who belong here.
const GREETING_LIMIT: Duration = Duration::from_secs(1);

const GREETING_LEN: usize = size_of::<Token>() + 1;

/// Who sends over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Client,
    Server,
}

impl Sender {
    fn code(self) -> u8 {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }
}

/// Connects to `address` for the measurement that `token` belongs to.
pub(super) fn connect(address: SocketAddr, token: Token, sender: Sender) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, MESSAGE_LIMIT)?;
    stream.set_nodelay(true)?;
    let mut greeting = [0; GREETING_LEN];
    greeting[..size_of::<Token>()].copy_from_slice(&token);
    greeting[size_of::<Token>()] = sender.code();
    stream.write_all(&greeting)?;
    Ok(stream)
}

/// Takes `count` connections of the client at the other end of `control`, over which `sender` sends.
pub(super) fn accept(
    listener: &TcpListener,
    control: &Control,
    token: Token,
    wanted: &[(Sender, u16)],
) -> io::Result<Vec<(Sender, TcpStream)>> {
    let peer = control.peer()?;
    let until = Instant::now() + MESSAGE_LIMIT;
    let mut left = wanted.to_vec();
    let mut streams = Vec::new();
    listener.set_nonblocking(true)?;
    while left.iter().any(|(_, count)| *count > 0) {
        if !control.wait_for(Some(listener), until)? {
            let text = "not all connections for the traffic have arrived";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        let (stream, address) = match listener.accept() {
            Ok(accepted) => accepted,
            // It was reset before it was taken.
            Err(error) if is_transient(&error) => continue,
            Err(error) => return Err(error),
        };
        if address.ip().to_canonical() != peer {
            continue;
        }
        let Some(sender) = read_greeting(&stream, token) else { continue };
        let Some((_, count)) = left.iter_mut().find(|(of, count)| *of == sender && *count > 0)
        else {
            continue;
        };
        *count -= 1;
        stream.set_nodelay(true)?;
        streams.push((sender, stream));
    }
    Ok(streams)
}

/// Whether the next accept may succeed: accept(2) hands out what has become of a connection.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

/// `None` for a stranger.
fn read_greeting(mut stream: &TcpStream, token: Token) -> Option<Sender> {
    let mut greeting = [0; GREETING_LEN];
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(GREETING_LIMIT)).ok()?;
    stream.read_exact(&mut greeting).ok()?;
    let (said, code) = greeting.split_at(size_of::<Token>());
    let sender = [Sender::Client, Sender::Server].into_iter().find(|s| [s.code()] == *code);
    sender.filter(|_| *said == token)
}
