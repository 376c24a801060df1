//! One request at a time, and how long its answer takes.
//!
//! The next request goes out when the answer is there. So the figures are those of a quiet path: a path
//! that stalls is asked less often while it does.

use std::io::{self, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::crew::{Crew, STOP_CHECK_INTERVAL};
use super::datagrams::is_passing;
use super::streams::prepare;
use super::{Outcome, PAYLOAD_LEN_MAX, Plan};

/// How long a datagram is waited for before it counts as lost.
const DATAGRAM_LIMIT: Duration = Duration::from_millis(500);

/// How long TCP may take to bring an answer, with all its retransmissions.
const STREAM_LIMIT: Duration = Duration::from_secs(10);

/// Longest time that is told from longer ones.
const TIME_NS_MAX: u64 = 60_000_000_000;

/// Significant decimal digits of a time.
const DIGITS: u8 = 3;

/// Measures over a TCP connection.
pub(super) fn ask_over_tcp(
    mut stream: &TcpStream,
    payload: u16,
    plan: &Plan,
) -> io::Result<Outcome> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STREAM_LIMIT))?;
    stream.set_write_timeout(Some(STREAM_LIMIT))?;
    let mut request = vec![0x5a; payload.into()];
    let mut answer = vec![0; payload.into()];
    measure(plan, |number| {
        write_number(&mut request, number);
        stream.write_all(&request)?;
        stream.read_exact(&mut answer)?;
        if answer != request {
            return Err(io::Error::other("an answer differs from its request"));
        }
        Ok(true)
    })
}

/// Measures with datagrams from a connected socket.
pub(super) fn ask_over_udp(socket: &UdpSocket, payload: u16, plan: &Plan) -> io::Result<Outcome> {
    socket.set_read_timeout(Some(DATAGRAM_LIMIT))?;
    socket.set_write_timeout(Some(DATAGRAM_LIMIT))?;
    let mut request = vec![0x5a; payload.into()];
    let mut answer = vec![0; payload.into()];
    measure(plan, |number| {
        write_number(&mut request, number);
        let until = Instant::now() + DATAGRAM_LIMIT;
        match socket.send(&request) {
            Ok(_) => {}
            Err(error) if is_passing(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        loop {
            match socket.recv(&mut answer) {
                Ok(len) if answer[..len] == request => return Ok(true),
                // The answer to a request that was given up.
                Ok(_) if Instant::now() < until => {}
                Ok(_) => return Ok(false),
                Err(error) if is_passing(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    })
}

/// Calls `exchange` with numbers that count up, as long as `plan` says; it tells whether an answer came.
fn measure(plan: &Plan, mut exchange: impl FnMut(u64) -> io::Result<bool>) -> io::Result<Outcome> {
    let mut times =
        Histogram::<u64>::new_with_bounds(1, TIME_NS_MAX, DIGITS).map_err(io::Error::other)?;
    let mut lost = 0;
    let start = Instant::now();
    let (from, until) = (start + plan.warm_up, start + plan.length());
    for number in 0.. {
        let sent = Instant::now();
        if sent >= until {
            break;
        }
        let is_answered = exchange(number)?;
        let time = sent.elapsed();
        if sent < from {
            continue;
        }
        if is_answered {
            times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(TIME_NS_MAX));
        } else {
            lost += 1;
        }
    }
    let at = |quantile| Duration::from_nanos(times.value_at_quantile(quantile));
    Ok(Outcome::RoundTrip {
        count: times.len(),
        lost,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        max: Duration::from_nanos(times.max()),
    })
}

fn write_number(request: &mut [u8], number: u64) {
    let number = number.to_be_bytes();
    let len = number.len().min(request.len());
    request[..len].copy_from_slice(&number[..len]);
}

/// Starts a thread that sends back every `payload` bytes that `stream` brings.
pub(super) fn answer_over_tcp(crew: &mut Crew, stream: TcpStream, payload: u16) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = prepare(stream)?;
    crew.start(Some(Arc::clone(&stream)), move |lane| {
        let mut message = vec![0; payload.into()];
        loop {
            (&*stream).read_exact(&mut message)?;
            (&*stream).write_all(&message)?;
            lane.done.fetch_add(1, Ordering::Relaxed);
        }
    })
}

/// Starts a thread that sends back every datagram to the one peer that `socket` is connected to.
pub(super) fn answer_over_udp(crew: &mut Crew, socket: UdpSocket) -> io::Result<()> {
    socket.set_read_timeout(Some(STOP_CHECK_INTERVAL))?;
    socket.set_write_timeout(Some(STOP_CHECK_INTERVAL))?;
    crew.start(None, move |lane| {
        let mut message = vec![0; PAYLOAD_LEN_MAX.into()];
        while !lane.is_stopped() {
            let answered = socket.recv(&mut message).and_then(|len| socket.send(&message[..len]));
            match answered {
                Ok(_) => lane.done.fetch_add(1, Ordering::Relaxed),
                // The client counts what it gets no answer to.
                Err(error) if is_passing(&error) => lane.failed.fetch_add(1, Ordering::Relaxed),
                Err(error) => return Err(error),
            };
        }
        Ok(())
    })
}
