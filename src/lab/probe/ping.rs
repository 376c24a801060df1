//! ICMP and ICMPv6 echo (RFC 792, RFC 4443 §4) over raw sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use serde::Serialize;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::namespace::Namespace;

/// Largest answer that is read; longer ones are cut, which does not matter here.
const ANSWER_LEN_MAX: usize = 2048;

/// The header of an echo message.
const HEADER_LEN: usize = 8;

/// Tells the replies of this process's pings apart; raw sockets receive those of all.
static NEXT_IDENTIFIER: AtomicU16 = AtomicU16::new(1);

/// Echo requests to one address.
#[derive(Debug, Clone, Copy)]
pub struct Ping {
    /// Whom to ask.
    pub target: IpAddr,
    /// Requests to send.
    pub count: u16,
    /// Time from one request to the next.
    pub interval: Duration,
    /// How long to wait for replies after the last request.
    pub patience: Duration,
    /// Bytes after the ICMP header.
    pub payload_len: usize,
    /// Forbids fragmentation on the way.
    pub dont_fragment: bool,
    /// TTL or hop limit; absent: the namespace's own.
    pub hop_limit: Option<u8>,
}

impl Ping {
    /// A few small requests in quick succession.
    pub fn new(target: IpAddr) -> Self {
        Self {
            target,
            count: 5,
            interval: Duration::from_millis(10),
            patience: Duration::from_secs(1),
            payload_len: 56,
            dont_fragment: false,
            hop_limit: None,
        }
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u16,
    /// Requests answered.
    pub received: u16,
    /// Shortest time from request to reply.
    pub rtt_us_min: u64,
    /// Mean time.
    pub rtt_us_mean: u64,
    /// Longest time.
    pub rtt_us_max: u64,
    /// Longest run of requests in a row without a reply.
    pub gap_max: u16,
    /// The last error that a router or the own kernel reported, such as `too big: mtu 1450`.
    pub error: Option<String>,
}

impl PingReport {
    /// Requests without a reply.
    pub fn lost(&self) -> u16 {
        self.sent - self.received
    }

    /// Whether every request was answered.
    pub fn is_ok(&self) -> bool {
        self.sent > 0 && self.received == self.sent
    }
}

impl Ping {
    /// Sends the requests from `namespace` and collects the replies.
    ///
    /// # Errors
    /// When the socket cannot be made. What goes wrong on the way stands in the report.
    pub fn run(&self, namespace: &Namespace) -> io::Result<PingReport> {
        let socket = namespace.run(|| self.open())??;
        let identifier = NEXT_IDENTIFIER.fetch_add(1, Ordering::Relaxed);
        let target = SockAddr::from(SocketAddr::new(self.target, 0));
        let mut flights = vec![Flight::default(); usize::from(self.count)];
        let mut error = None;
        let start = Instant::now();
        for sequence in 0..self.count {
            let request = self.request(identifier, sequence);
            let flight = &mut flights[usize::from(sequence)];
            flight.sent = Some(Instant::now());
            if let Err(refused) = socket.send_to(&request, &target) {
                error = Some(describe_refusal(&refused));
            }
            let until = start + self.interval * u32::from(sequence + 1);
            let is_last = sequence + 1 == self.count;
            let until = if is_last { Instant::now() + self.patience } else { until };
            self.collect(&socket, identifier, until, &mut flights, &mut error)?;
        }
        Ok(report(&flights, error))
    }

    fn open(&self) -> io::Result<Socket> {
        let socket = match self.target {
            IpAddr::V4(_) => Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?,
            IpAddr::V6(_) => Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?,
        };
        if self.dont_fragment {
            match self.target {
                IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?,
                IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?,
            }
        }
        if let Some(limit) = self.hop_limit {
            match self.target {
                IpAddr::V4(_) => socket.set_ttl_v4(limit.into())?,
                IpAddr::V6(_) => socket.set_unicast_hops_v6(limit.into())?,
            }
        }
        Ok(socket)
    }

    fn request(&self, identifier: u16, sequence: u16) -> Vec<u8> {
        let kind = if self.target.is_ipv4() { 8 } else { 128 };
        let mut message = vec![0; HEADER_LEN + self.payload_len];
        message[0] = kind;
        message[4..6].copy_from_slice(&identifier.to_be_bytes());
        message[6..8].copy_from_slice(&sequence.to_be_bytes());
        for (ix, byte) in message[HEADER_LEN..].iter_mut().enumerate() {
            *byte = u8::try_from(ix % 256).unwrap_or(0);
        }
        // For ICMPv6 the kernel fills it in (RFC 3542 §3.1): it covers addresses not known here.
        if self.target.is_ipv4() {
            let checksum = internet_checksum(&message);
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        message
    }

    /// Takes what comes until `until`, or until every request that was sent is answered or refused.
    fn collect(
        &self,
        socket: &Socket,
        identifier: u16,
        until: Instant,
        flights: &mut [Flight],
        error: &mut Option<String>,
    ) -> io::Result<()> {
        let waits_for_all = flights.iter().all(|flight| flight.sent.is_some());
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let all_back = flights.iter().all(|flight| flight.rtt.is_some() || flight.refused);
            if left.is_zero() || (waits_for_all && all_back) {
                return Ok(());
            }
            // A timeout of zero would mean none at all.
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut bytes = [0; ANSWER_LEN_MAX];
            let received = rustix::net::recvfrom(socket, &mut bytes, RecvFlags::empty());
            let Ok((len, _, from)) = received else { continue };
            let now = Instant::now();
            let message = match self.target {
                // A raw IPv4 socket gives the IP header, too (raw(7)).
                IpAddr::V4(_) => skip_ipv4_header(&bytes[..len]),
                IpAddr::V6(_) => Some(&bytes[..len]),
            };
            let from = from.and_then(|from| SocketAddr::try_from(from).ok()).map(|from| from.ip());
            match message.and_then(|message| parse(message, self.target.is_ipv4(), identifier)) {
                Some(Message::Reply(sequence)) if from == Some(self.target) => {
                    if let Some(flight) = flights.get_mut(usize::from(sequence)) {
                        let sent = flight.sent.unwrap_or(now);
                        flight.rtt.get_or_insert_with(|| now.duration_since(sent));
                    }
                }
                Some(Message::Error(sequence, text)) => {
                    if let Some(flight) = flights.get_mut(usize::from(sequence)) {
                        flight.refused = true;
                    }
                    *error = Some(match from {
                        Some(from) => format!("{text}, says {from}"),
                        None => text,
                    });
                }
                Some(Message::Reply(_)) | None => {}
            }
        }
    }
}

/// One request on its way.
#[derive(Debug, Clone, Copy, Default)]
struct Flight {
    sent: Option<Instant>,
    rtt: Option<Duration>,
    refused: bool,
}

enum Message {
    Reply(u16),
    Error(u16, String),
}

/// What a message says about the request with `identifier`; `None` if it is about another.
fn parse(message: &[u8], is_v4: bool, identifier: u16) -> Option<Message> {
    let (kind, code) = (*message.first()?, *message.get(1)?);
    let reply = if is_v4 { 0 } else { 129 };
    if kind == reply {
        return (u16_at(message, 4)? == identifier).then_some(Message::Reply(u16_at(message, 6)?));
    }
    let text = if is_v4 {
        match (kind, code) {
            (3, 4) => format!("too big: mtu {}", u16_at(message, 6)?),
            (3, 0) => "network unreachable".to_owned(),
            (3, 1) => "host unreachable".to_owned(),
            (3, 9 | 10 | 13) => "prohibited".to_owned(),
            (3, _) => format!("unreachable, code {code}"),
            (11, _) => "time exceeded".to_owned(),
            _ => return None,
        }
    } else {
        match (kind, code) {
            (2, _) => format!("too big: mtu {}", u16_at(message, 6)?),
            (1, 0) => "no route".to_owned(),
            (1, 1) => "prohibited".to_owned(),
            (1, 3) => "host unreachable".to_owned(),
            (1, _) => format!("unreachable, code {code}"),
            (3, _) => "time exceeded".to_owned(),
            _ => return None,
        }
    };
    let packet = message.get(HEADER_LEN..)?;
    let request = if is_v4 { skip_ipv4_header(packet)? } else { packet.get(40..)? };
    let is_request = *request.first()? == if is_v4 { 8 } else { 128 };
    (is_request && u16_at(request, 4)? == identifier)
        .then_some(Message::Error(u16_at(request, 6)?, text))
}

fn skip_ipv4_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0x0f) * 4..)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn describe_refusal(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => "too big for the interface or the known path".to_owned(),
        _ => error.to_string(),
    }
}

fn report(flights: &[Flight], error: Option<String>) -> PingReport {
    let times: Vec<u64> = flights
        .iter()
        .filter_map(|flight| flight.rtt)
        .map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX))
        .collect();
    let count = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
    let gaps = flights.split(|flight| flight.rtt.is_some()).map(<[Flight]>::len);
    PingReport {
        sent: count(flights.len()),
        received: count(times.len()),
        rtt_us_min: times.iter().copied().min().unwrap_or(0),
        rtt_us_mean: times.iter().sum::<u64>() / (times.len() as u64).max(1),
        rtt_us_max: times.iter().copied().max().unwrap_or(0),
        gap_max: count(gaps.max().unwrap_or(0)),
        error,
    }
}
