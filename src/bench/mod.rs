//! A traffic generator: what TCP and UDP reach between two places, measured by real sockets.
//!
//! A [`Server`] waits in one network namespace; [`run`] measures against it from another. Neither knows
//! anything about Weft, so the same figures can be taken over any network, with and without a tunnel.
//!
//! ```no_run
//! use std::time::Duration;
//! use weft::bench::{self, Direction, Plan, Server, Test};
//!
//! # fn main() -> anyhow::Result<()> {
//! let server = Server::start("127.0.0.1:0".parse()?)?;
//! let plan = Plan {
//!     test: Test::TcpThroughput { streams: 1, direction: Direction::Send },
//!     warm_up: Duration::from_millis(200),
//!     duration: Duration::from_secs(1),
//! };
//! println!("{:?}", bench::run(server.address(), &plan)?);
//! # Ok(())
//! # }
//! ```
//!
//! Each measurement has one TCP connection for its control ([`control`]) and sockets of its own for its
//! traffic, on ports that the kernel chooses and the server tells. Blocking sockets, one thread each: what
//! is measured is the network, not an event loop. A server faces whoever can reach it, so it limits
//! everything, waits for nobody forever, and sends no more than a TCP connection or an answer to a datagram.

mod client;
mod connections;
mod connects;
mod control;
mod crew;
mod datagrams;
mod round_trip;
mod server;
mod streams;
mod syscall;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use connections::Sender;

pub use client::run;
pub use server::Server;

/// The port of a server where no other is asked for.
pub const DEFAULT_PORT: u16 = 5281;

/// Most TCP connections, UDP flows or connecting threads of one measurement: more than any machine has
/// CPUs to drive, few enough that a server can give them to several clients.
pub const LANES_MAX: u16 = 64;

/// Longest UDP payload: what fits an IPv4 packet (RFC 768, RFC 791: 65 535 − 20 − 8).
pub const PAYLOAD_LEN_MAX: u16 = 65_507;

/// Shortest payload of a round trip: the number by which a datagram's answer is recognised.
pub const ROUND_TRIP_PAYLOAD_LEN_MIN: u16 = 8;

/// Longest warm-up and longest measurement.
pub const DURATION_MAX: Duration = Duration::from_secs(3600);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "test", rename_all = "snake_case", deny_unknown_fields)]
pub enum Test {
    /// Bytes that arrive over TCP connections which are always full.
    TcpThroughput {
        /// Connections in each direction, 1 to [`LANES_MAX`].
        streams: u16,
        /// Who sends.
        direction: Direction,
    },
    /// Datagrams that arrive when the client sends as many as it can.
    UdpRate {
        /// Bytes of UDP payload, 1 to [`PAYLOAD_LEN_MAX`].
        payload: u16,
        /// Sockets, each with a sending thread of its own, 1 to [`LANES_MAX`].
        flows: u16,
    },
    /// Time until an answer comes, when one request is on its way at a time.
    RoundTrip {
        /// How.
        protocol: Protocol,
        /// Bytes of the request and of the answer, [`ROUND_TRIP_PAYLOAD_LEN_MIN`] to [`PAYLOAD_LEN_MAX`].
        payload: u16,
    },
    /// TCP connections that can be made and closed.
    ConnectRate {
        /// Threads that connect, each again and again, 1 to [`LANES_MAX`].
        parallel: u16,
    },
}

/// Who sends, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The client.
    Send,
    /// The server.
    Receive,
    /// Both at once, over connections of their own.
    Both,
}

impl Direction {
    fn senders(self) -> impl Iterator<Item = Sender> {
        let (client, server) = match self {
            Self::Send => (Some(Sender::Client), None),
            Self::Receive => (None, Some(Sender::Server)),
            Self::Both => (Some(Sender::Client), Some(Sender::Server)),
        };
        client.into_iter().chain(server)
    }
}

/// A protocol that payload travels in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP, without delay (`TCP_NODELAY`).
    Tcp,
    /// UDP.
    Udp,
}

/// A measurement to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What is measured.
    pub test: Test,
    /// How long the traffic runs before anything counts, at most [`DURATION_MAX`].
    #[serde(rename = "warm_up_ns", with = "nanoseconds")]
    pub warm_up: Duration,
    /// How long it is measured after that, at most [`DURATION_MAX`], not 0.
    #[serde(rename = "duration_ns", with = "nanoseconds")]
    pub duration: Duration,
}

impl Plan {
    /// Fails if it exceeds a limit.
    fn check(&self) -> Result<()> {
        let (lanes, what) = match self.test {
            Test::TcpThroughput { streams, .. } => (streams, "streams"),
            Test::UdpRate { flows, .. } => (flows, "flows"),
            Test::ConnectRate { parallel } => (parallel, "parallel connections"),
            Test::RoundTrip { .. } => (1, "streams"),
        };
        ensure!((1..=LANES_MAX).contains(&lanes), "{lanes} {what}: give 1 to {LANES_MAX}");
        let (payload, least) = match self.test {
            Test::UdpRate { payload, .. } => (payload, 1),
            Test::RoundTrip { payload, .. } => (payload, ROUND_TRIP_PAYLOAD_LEN_MIN),
            Test::TcpThroughput { .. } | Test::ConnectRate { .. } => (1, 1),
        };
        ensure!(
            (least..=PAYLOAD_LEN_MAX).contains(&payload),
            "a payload of {payload} bytes: give {least} to {PAYLOAD_LEN_MAX}"
        );
        ensure!(
            self.warm_up <= DURATION_MAX && self.duration <= DURATION_MAX,
            "{} s after {} s of warm-up: give at most {} s each",
            self.duration.as_secs_f64(),
            self.warm_up.as_secs_f64(),
            DURATION_MAX.as_secs()
        );
        ensure!(!self.duration.is_zero(), "a measurement of no time: give a duration");
        Ok(())
    }

    /// From the beginning of the traffic to the end of the measurement.
    fn length(&self) -> Duration {
        self.warm_up + self.duration
    }
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Of [`Test::TcpThroughput`].
    Throughput {
        /// Bytes that receivers have read, of both directions together.
        bytes: u64,
        /// In so much time, taken where they were read.
        #[serde(rename = "elapsed_ns", with = "nanoseconds")]
        elapsed: Duration,
        /// Segments that the senders sent again (`tcpi_total_retrans`), from the first to the last, warm-up
        /// included.
        retransmits: u64,
        /// Segments that reached receivers out of order (`tcpi_rcv_ooopack`), from the first to the last,
        /// warm-up included. Those that follow a lost one are among them.
        reordering_seen: u64,
    },
    /// Of [`Test::UdpRate`].
    Rate {
        /// Datagrams that the client's kernel took.
        sent: u64,
        /// Datagrams that the server read. What was on its way when the two began to count makes it differ
        /// a little from what was sent even if nothing is lost.
        received: u64,
        /// In so much time, taken where they were received.
        #[serde(rename = "elapsed_ns", with = "nanoseconds")]
        elapsed: Duration,
    },
    /// Of [`Test::RoundTrip`].
    RoundTrip {
        /// Answers that came in time.
        count: u64,
        /// Requests whose answer did not come within half a second; UDP only.
        lost: u64,
        /// Half of all took at most this.
        #[serde(rename = "p50_ns", with = "nanoseconds")]
        p50: Duration,
        /// Nine of ten took at most this.
        #[serde(rename = "p90_ns", with = "nanoseconds")]
        p90: Duration,
        /// 99 of 100 took at most this.
        #[serde(rename = "p99_ns", with = "nanoseconds")]
        p99: Duration,
        /// The longest.
        #[serde(rename = "max_ns", with = "nanoseconds")]
        max: Duration,
    },
    /// Of [`Test::ConnectRate`].
    Connects {
        /// Connections made and closed.
        count: u64,
        /// Connections that the network or the server refused, or that took too long.
        failed: u64,
        /// In so much time.
        #[serde(rename = "elapsed_ns", with = "nanoseconds")]
        elapsed: Duration,
    },
}

/// Durations as whole nanoseconds: 584 years of them fit.
mod nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(test: Test) -> Outcome {
        let server = Server::start("127.0.0.1:0".parse().unwrap()).unwrap();
        let (warm_up, duration) = (Duration::from_millis(50), Duration::from_millis(200));
        run(server.address(), &Plan { test, warm_up, duration }).unwrap()
    }

    #[test]
    fn bytes_arrive_in_every_direction() {
        for direction in [Direction::Send, Direction::Receive, Direction::Both] {
            let outcome = measure(Test::TcpThroughput { streams: 2, direction });
            let Outcome::Throughput { bytes, elapsed, .. } = outcome else { panic!("{outcome:?}") };
            assert!(bytes > 100_000 && elapsed >= Duration::from_millis(200), "{outcome:?}");
        }
    }

    #[test]
    fn datagrams_are_counted_where_they_arrive() {
        let outcome = measure(Test::UdpRate { payload: 64, flows: 2 });
        let Outcome::Rate { sent, received, .. } = outcome else { panic!("{outcome:?}") };
        assert!(sent > 1000 && received > 1000, "{outcome:?}");
    }

    #[test]
    fn answers_take_some_time() {
        for (protocol, payload) in [
            (Protocol::Tcp, 64),
            (Protocol::Udp, 8),
            (Protocol::Tcp, 65_507),
            (Protocol::Udp, 65_507),
        ] {
            let outcome = measure(Test::RoundTrip { protocol, payload });
            let Outcome::RoundTrip { count, lost, p50, p90, p99, max } = outcome else {
                panic!("{outcome:?}")
            };
            assert!(count > 20 && lost == 0, "{outcome:?}");
            assert!(p50 > Duration::ZERO && p50 <= p90 && p90 <= p99 && p99 <= max, "{outcome:?}");
        }
    }

    #[test]
    fn connections_are_made_and_closed() {
        let outcome = measure(Test::ConnectRate { parallel: 2 });
        let Outcome::Connects { count, failed, elapsed } = outcome else { panic!("{outcome:?}") };
        assert!(count > 100 && failed == 0, "{outcome:?}");
        assert!(elapsed >= Duration::from_millis(200), "{outcome:?}");
    }

    #[test]
    fn plans_beyond_a_limit_are_refused() {
        let second = Duration::from_secs(1);
        let plan = |test| Plan { test, warm_up: second, duration: second };
        let connect = plan(Test::ConnectRate { parallel: 1 });
        assert!(connect.check().is_ok());
        for (plan, why) in [
            (plan(Test::ConnectRate { parallel: 65 }), "65 parallel connections: give 1 to 64"),
            (plan(Test::UdpRate { payload: 64, flows: 0 }), "0 flows: give 1 to 64"),
            (plan(Test::UdpRate { payload: 65_508, flows: 1 }), "give 1 to 65507"),
            (plan(Test::RoundTrip { protocol: Protocol::Udp, payload: 7 }), "give 8 to 65507"),
            (Plan { duration: Duration::ZERO, ..connect }, "of no time"),
            (Plan { warm_up: Duration::from_secs(3601), ..connect }, "at most 3600 s"),
        ] {
            let text = plan.check().unwrap_err().to_string();
            assert!(text.contains(why), "{text}");
        }
    }

    #[test]
    fn units_stand_in_the_names() {
        let outcome = Outcome::Rate { sent: 3, received: 2, elapsed: Duration::from_micros(1) };
        let text = serde_json::to_string(&outcome).unwrap();
        assert_eq!(text, r#"{"outcome":"rate","sent":3,"received":2,"elapsed_ns":1000}"#);
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
    }
}
