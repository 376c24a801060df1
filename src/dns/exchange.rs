//! One question to one other server, over UDP and, when the answer is cut, over TCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::Answer;
use super::cache::Key;
use super::message::UDP_MAX;

/// How long a server may take for one question, over UDP and over TCP.
const UDP_TIMEOUT: Duration = Duration::from_secs(2);
const TCP_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks. Each question has a socket of its own, so that its port is as hard to guess as its number
/// (RFC 5452 §9.2).
///
/// # Errors
/// When there is no answer in time, or none that belongs to the question.
pub(super) async fn ask(server: SocketAddr, question: &Key) -> io::Result<Answer> {
    let (id, bytes) = encode(question)?;
    let message = within(UDP_TIMEOUT, ask_udp(server, question, id, &bytes)).await?;
    let message = match message.metadata.truncation {
        true => within(TCP_TIMEOUT, ask_tcp(server, question, id, &bytes)).await?,
        false => message,
    };
    Ok(Answer {
        rcode: message.metadata.response_code,
        authoritative: false,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
    })
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

fn encode(question: &Key) -> io::Result<(u16, Vec<u8>)> {
    let mut message = Message::query();
    let (dnssec_ok, checking_disabled) = question.dnssec;
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = checking_disabled;
    message.add_query(Query::query(question.name.clone(), question.kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_MAX).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(io::Error::other)?;
    Ok((message.metadata.id, bytes))
}

async fn ask_udp(server: SocketAddr, question: &Key, id: u16, bytes: &[u8]) -> io::Result<Message> {
    let own = match server.ip() {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((own, 0)).await?;
    // Connected, so that only the server itself can answer.
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; 4096];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // What does not belong to the question may be forged: go on waiting for the right one.
        if let Some(message) = belongs(question, id, &buffer[..len]) {
            return Ok(message);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &Key, id: u16, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(len)];
    stream.read_exact(&mut buffer).await?;
    belongs(question, id, &buffer)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "another question's answer"))
}

fn belongs(question: &Key, id: u16, bytes: &[u8]) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let metadata = &message.metadata;
    let answers = metadata.id == id && metadata.message_type == MessageType::Response;
    let same = match message.queries.as_slice() {
        [query] => query.name == question.name && query.query_type == question.kind,
        _ => false,
    };
    (answers && same).then_some(message)
}
