//! The control connection of one measurement.
//!
//! ```text
//! client                                   server
//!    │ Request: version, plan ──────────────▶ │ checks, opens sockets for the traffic
//!    │ ◀───────── Ready: ports, token; Refused │
//!    │ ═══ connections, or first datagrams ══▶ │ each begins with the token
//!    │ ◀─────────────────────────────────── Go │ all are there: both sides start their clocks
//!    │   warm-up, then the time that counts    │
//!    │ ◀────────────────────────────── Counted │ only where datagrams flood the way there
//!    │ Done ────────────────────────────────▶ │ stops
//!    │ ◀─────────────────────── Report; Failed │
//! ```
//!
//! A message is its length in four bytes, big-endian, and JSON. Either side may close the connection at any
//! time; that ends the measurement.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::crew::Sample;
use super::{Plan, nanoseconds};

/// Version of the messages and of what is sent as traffic.
pub(super) const VERSION: u32 = 1;

/// Longest message: a [`Ready`](Answer::Ready) with all ports has below 1 KiB.
const MESSAGE_LEN_MAX: usize = 4096;

/// How long the other side may take for a message that it has no reason to wait with. Behind a full
/// tunnel, seconds are possible.
pub(super) const MESSAGE_LIMIT: Duration = Duration::from_secs(10);

/// Proves that traffic belongs to a measurement.
pub(super) type Token = [u8; 16];

/// The first part of what a client asks, the same in all versions.
#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
}

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) version: u32,
    pub(super) plan: Plan,
}

/// What a client says when it has measured.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done {}

/// What a server says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(super) enum Answer {
    /// No. The same in all versions.
    Refused { why: String },
    /// Send the traffic here.
    Ready { ports: Vec<u16>, token: Token },
    /// Everything is there: start.
    Go,
    /// The server has counted, and the datagrams can end. Before they do, hardly a message would get
    /// through to it.
    Counted,
    /// What the server has seen.
    Report(Report),
    /// The measurement went wrong at the server.
    Failed { why: String },
}

/// What the server has seen; zero where a test has no such thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Bytes, or datagrams, received.
    pub(super) received: u64,
    /// In so much time.
    #[serde(rename = "elapsed_ns", with = "nanoseconds")]
    pub(super) elapsed: Duration,
    pub(super) retransmits: u64,
    pub(super) out_of_order: u64,
}

/// Tells everything that waits to give up, at once.
#[derive(Debug, Clone)]
pub(super) struct Stop(Arc<OwnedFd>);

impl Stop {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// There is no way back.
    pub(super) fn set(&self) {
        // Can only fail when the counter is full, and then it is set, too.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// Something can be done with the descriptor of this index.
    Ready(usize),
    TimedOut,
    Stopped,
}

/// Waits for one of `sources`, for `stop`, or for `until`.
pub(super) fn wait(
    sources: &[(&dyn AsFd, PollFlags)],
    stop: Option<&Stop>,
    until: Instant,
) -> io::Result<Wake> {
    loop {
        let mut polled: Vec<PollFd<'_>> =
            sources.iter().map(|(source, flags)| PollFd::new(source, *flags)).collect();
        polled.extend(stop.map(|stop| PollFd::new(&stop.0, PollFlags::IN)));
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&left)) {
            Ok(0) => return Ok(Wake::TimedOut),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let ready = polled.iter().position(|polled| !polled.revents().is_empty());
        return Ok(match ready {
            _ if polled.len() > sources.len() && !polled[sources.len()].revents().is_empty() => {
                Wake::Stopped
            }
            Some(ix) => Wake::Ready(ix),
            None => Wake::TimedOut,
        });
    }
}

/// One end of a control connection. Nothing that it does takes longer than it is told.
#[derive(Debug)]
pub(super) struct Control {
    stream: TcpStream,
    stop: Option<Stop>,
}

impl Control {
    pub(super) fn new(stream: TcpStream, stop: Option<Stop>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, stop })
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn peer(&self) -> io::Result<IpAddr> {
        Ok(self.stream.peer_addr()?.ip().to_canonical())
    }

    pub(super) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let len = u32::try_from(text.len()).map_err(io::Error::other)?;
        let bytes = [&len.to_be_bytes()[..], &text].concat();
        let until = Instant::now() + MESSAGE_LIMIT;
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(len) => sent += len,
                Err(error) => self.wait_out(error, PollFlags::OUT, until)?,
            }
        }
        Ok(())
    }

    pub(super) fn receive<T: DeserializeOwned>(&mut self, until: Instant) -> io::Result<T> {
        parse(&self.receive_bytes(until)?)
    }

    /// One message as it came.
    pub(super) fn receive_bytes(&mut self, until: Instant) -> io::Result<Vec<u8>> {
        let mut len = [0; 4];
        self.read_exact(&mut len, until)?;
        let len = usize::try_from(u32::from_be_bytes(len)).map_err(io::Error::other)?;
        if len > MESSAGE_LEN_MAX {
            let text = "what it says is no message of a measurement";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mut text = vec![0; len];
        self.read_exact(&mut text, until)?;
        Ok(text)
    }

    fn read_exact(&mut self, mut buffer: &mut [u8], until: Instant) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.stream.read(buffer) {
                Ok(0) => return Err(closed()),
                Ok(len) => buffer = &mut buffer[len..],
                Err(error) => self.wait_out(error, PollFlags::IN, until)?,
            }
        }
        Ok(())
    }

    /// Waits until what failed with `error` may succeed; fails if it never will.
    fn wait_out(&self, error: io::Error, flags: PollFlags, until: Instant) -> io::Result<()> {
        if error.kind() == io::ErrorKind::Interrupted {
            return Ok(());
        }
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        match wait(&[(&self.stream, flags)], self.stop.as_ref(), until)? {
            Wake::Ready(_) => Ok(()),
            Wake::TimedOut => Err(silent()),
            Wake::Stopped => Err(stopped()),
        }
    }

    /// Lets traffic that began at `start` warm up, then tells what `sample` counts more at the end of the
    /// measurement than at its beginning, and the time between the two.
    pub(super) fn measure(
        &self,
        start: Instant,
        plan: &Plan,
        sample: impl Fn() -> Sample,
    ) -> io::Result<(Sample, Duration)> {
        self.idle_until(start + plan.warm_up)?;
        let (from, before) = (Instant::now(), sample());
        // Not from `start`: a late beginning makes no short measurement.
        self.idle_until(from + plan.duration)?;
        let (elapsed, after) = (from.elapsed(), sample());
        Ok((after.since(before), elapsed))
    }

    /// Waits for `until`; fails if the other side goes away before.
    pub(super) fn idle_until(&self, until: Instant) -> io::Result<()> {
        self.wait_for(None, until).map(drop)
    }

    /// Whether the other side says or ends something before `until`.
    pub(super) fn has_message(&self, until: Instant) -> io::Result<bool> {
        match wait(&[(&self.stream, PollFlags::IN)], self.stop.as_ref(), until)? {
            Wake::Ready(_) => Ok(true),
            Wake::TimedOut => Ok(false),
            Wake::Stopped => Err(stopped()),
        }
    }

    /// Waits for `source` to be readable, at most until `until`, and tells whether it is; fails if the other
    /// side goes away before.
    pub(super) fn wait_for(&self, source: Option<&dyn AsFd>, until: Instant) -> io::Result<bool> {
        // Also where there is always something to read: strangers may see to that.
        if Instant::now() >= until {
            return Ok(false);
        }
        // Not for a message: that may come early, and is read when it is its turn.
        let mut sources: Vec<(&dyn AsFd, PollFlags)> = vec![(&self.stream, PollFlags::RDHUP)];
        sources.extend(source.map(|source| (source, PollFlags::IN)));
        match wait(&sources, self.stop.as_ref(), until)? {
            Wake::Ready(0) => Err(closed()),
            Wake::Ready(_) => Ok(true),
            Wake::TimedOut => Ok(false),
            Wake::Stopped => Err(stopped()),
        }
    }
}

pub(super) fn parse<T: DeserializeOwned>(message: &[u8]) -> io::Result<T> {
    serde_json::from_slice(message).map_err(|error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("a message is not understood: {error}"))
    })
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the other side has closed the connection")
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the other side says nothing any more")
}

fn stopped() -> io::Error {
    io::Error::other("the server was stopped")
}
