//! How far a flow has come, and so how long it is remembered.
//!
//! States only choose timeouts. A packet is never dropped for the state of its flow, nor for being outside of a
//! window: translation is by tuple alone.

use std::fmt;

use crate::flows::{Direction, FlowProtocol, Ticks};
use crate::wire::sctp::chunk;
use crate::wire::tcp::flag;

/// A set of what was seen of a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen(pub(super) u32);

impl Seen {
    /// The flow is in use.
    pub(super) const LIVE: Self = Self(1);
    /// The flow was given up, and its slot not yet.
    pub(super) const DEAD: Self = Self(1 << 1);
    /// The endpoint has answered.
    pub(super) const REPLIED: Self = Self(1 << 2);
    /// The client has gone on after that.
    pub(super) const CONFIRMED: Self = Self(1 << 3);
    /// The client has finished sending.
    pub(super) const FINISHED_ORIGINAL: Self = Self(1 << 4);
    /// The endpoint has finished sending.
    pub(super) const FINISHED_REPLY: Self = Self(1 << 5);
    /// One of them broke it off.
    pub(super) const RESET: Self = Self(1 << 6);
    /// It counts among its endpoint's connections.
    pub(super) const COUNTED: Self = Self(1 << 7);

    pub(super) fn has(self, all: Self) -> bool {
        self.0 & all.0 == all.0
    }

    #[must_use]
    pub(super) fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    #[must_use]
    pub(super) fn without(self, less: Self) -> Self {
        Self(self.0 & !less.0)
    }

    /// What is seen after one more packet. `mark` is as [`super::mark`] makes it.
    #[must_use]
    #[inline]
    pub(super) fn after(self, protocol: FlowProtocol, direction: Direction, mark: u8) -> Self {
        let mut seen = match direction {
            Direction::Reply => self.with(Self::REPLIED),
            Direction::Original if self.has(Self::REPLIED) => self.with(Self::CONFIRMED),
            Direction::Original => self,
        };
        match protocol {
            FlowProtocol::Tcp if mark & flag::RST != 0 => seen = seen.with(Self::RESET),
            FlowProtocol::Tcp => {
                // A reset that nobody believed: they go on.
                seen = seen.without(Self::RESET);
                if mark & flag::FIN != 0 {
                    seen = seen.with(match direction {
                        Direction::Original => Self::FINISHED_ORIGINAL,
                        Direction::Reply => Self::FINISHED_REPLY,
                    });
                }
            }
            FlowProtocol::Sctp => {
                let ends = matches!(mark, chunk::ABORT | chunk::SHUTDOWN_COMPLETE);
                seen = if ends { seen.with(Self::RESET) } else { seen.without(Self::RESET) };
            }
            FlowProtocol::Udp | FlowProtocol::Echo | FlowProtocol::Other(_) => {}
        }
        if seen.is_over() { seen.without(Self::COUNTED) } else { seen }
    }

    /// Whether nothing more is expected.
    pub(super) fn is_over(self) -> bool {
        self.has(Self::RESET) || self.has(Self::FINISHED_ORIGINAL.with(Self::FINISHED_REPLY))
    }

    /// Whether one side has begun to close.
    pub(super) fn is_closing(self) -> bool {
        let any = Self::RESET.with(Self::FINISHED_ORIGINAL).with(Self::FINISHED_REPLY);
        self.0 & any.0 != 0
    }

    /// Whether it should be spared when room is needed for others.
    pub(super) fn is_assured(self, protocol: FlowProtocol) -> bool {
        match protocol {
            FlowProtocol::Tcp | FlowProtocol::Sctp => self.has(Self::CONFIRMED) && !self.is_over(),
            FlowProtocol::Udp | FlowProtocol::Echo | FlowProtocol::Other(_) => {
                self.has(Self::CONFIRMED)
            }
        }
    }

    /// How long the flow is remembered after its last packet.
    pub(super) fn timeout(self, protocol: FlowProtocol) -> Ticks {
        let seconds = match protocol {
            FlowProtocol::Tcp if self.has(Self::RESET) => RESET_S,
            FlowProtocol::Tcp if self.is_over() => TCP_TIME_WAIT_S,
            FlowProtocol::Tcp if self.is_closing() => TCP_HALF_CLOSED_S,
            FlowProtocol::Tcp if self.has(Self::CONFIRMED) => TCP_ESTABLISHED_S,
            FlowProtocol::Tcp if self.has(Self::REPLIED) => TCP_ANSWERED_S,
            FlowProtocol::Tcp => TCP_UNREPLIED_S,
            FlowProtocol::Udp if self.has(Self::CONFIRMED) => UDP_STREAM_S,
            FlowProtocol::Udp => UDP_UNREPLIED_S,
            FlowProtocol::Echo => ECHO_S,
            FlowProtocol::Other(_) => OTHER_S,
            FlowProtocol::Sctp if self.has(Self::RESET) => RESET_S,
            FlowProtocol::Sctp if self.has(Self::REPLIED) => SCTP_ESTABLISHED_S,
            FlowProtocol::Sctp => SCTP_UNREPLIED_S,
        };
        Ticks::from_secs(seconds)
    }

    /// The state as people see it, with the names of `conntrack -L`.
    pub(super) fn name(self, protocol: FlowProtocol) -> &'static str {
        match protocol {
            _ if self.has(Self::RESET) => "CLOSE",
            _ if self.is_over() => "TIME_WAIT",
            FlowProtocol::Tcp if self.is_closing() => "CLOSE_WAIT",
            FlowProtocol::Tcp if self.has(Self::CONFIRMED) => "ESTABLISHED",
            FlowProtocol::Tcp if self.has(Self::REPLIED) => "SYN_RECV",
            FlowProtocol::Tcp => "SYN_SENT",
            FlowProtocol::Udp | FlowProtocol::Echo | FlowProtocol::Other(_)
                if self.has(Self::CONFIRMED) =>
            {
                "ASSURED"
            }
            FlowProtocol::Udp | FlowProtocol::Echo | FlowProtocol::Other(_)
                if self.has(Self::REPLIED) =>
            {
                "REPLIED"
            }
            FlowProtocol::Sctp if self.has(Self::REPLIED) => "ESTABLISHED",
            FlowProtocol::Udp
            | FlowProtocol::Sctp
            | FlowProtocol::Echo
            | FlowProtocol::Other(_) => "UNREPLIED",
        }
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seen({:#b})", self.0)
    }
}

// Those of Linux (Documentation/networking/nf_conntrack-sysctl.rst), but for two that kube-proxy sets
// (`--conntrack-tcp-timeout-established`, `--conntrack-tcp-timeout-close-wait`).

/// Every flow is remembered for so long.
pub(super) const TIMEOUT_MIN: Ticks = Ticks(RESET_S * Ticks::PER_S);

/// After a reset or an abort.
const RESET_S: u32 = 10;
/// A connection request without answer.
const TCP_UNREPLIED_S: u32 = 120;
/// An answer that the client has not taken up.
const TCP_ANSWERED_S: u32 = 60;
/// kube-proxy's: a day.
const TCP_ESTABLISHED_S: u32 = 86_400;
/// kube-proxy's: an hour, since half of a connection may go on for long.
const TCP_HALF_CLOSED_S: u32 = 3600;
/// Both sides have finished.
const TCP_TIME_WAIT_S: u32 = 120;
/// A datagram without answer, and one question with its answer.
const UDP_UNREPLIED_S: u32 = 30;
/// More than one question.
const UDP_STREAM_S: u32 = 120;
/// An association that is not there yet.
const SCTP_UNREPLIED_S: u32 = 30;
/// An association. Its heartbeats come every 30 s (RFC 9260 §8.3).
const SCTP_ESTABLISHED_S: u32 = 210;
/// An echo request, and its reply.
const ECHO_S: u32 = 30;
/// Anything else.
const OTHER_S: u32 = 600;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tcp::flag::{ACK, FIN, RST, SYN};

    fn walk(protocol: FlowProtocol, packets: &[(Direction, u8)]) -> (u32, &'static str) {
        let seen = packets
            .iter()
            .fold(Seen::LIVE, |seen, (direction, mark)| seen.after(protocol, *direction, *mark));
        (seen.timeout(protocol).as_secs(), seen.name(protocol))
    }

    #[test]
    fn a_connection_goes_through_its_states() {
        use Direction::{Original, Reply};
        let steps = [
            ((Original, SYN), (120, "SYN_SENT")),
            ((Reply, SYN | ACK), (60, "SYN_RECV")),
            ((Original, ACK), (86_400, "ESTABLISHED")),
            ((Reply, ACK), (86_400, "ESTABLISHED")),
            ((Original, FIN | ACK), (3600, "CLOSE_WAIT")),
            ((Reply, ACK), (3600, "CLOSE_WAIT")),
            ((Reply, FIN | ACK), (120, "TIME_WAIT")),
            ((Original, ACK), (120, "TIME_WAIT")),
        ];
        let packets: Vec<_> = steps.iter().map(|(packet, _)| *packet).collect();
        for (ix, (_, expected)) in steps.iter().enumerate() {
            assert_eq!(walk(FlowProtocol::Tcp, &packets[..=ix]), *expected, "after packet {ix}");
        }
        let reset = [(Original, SYN), (Reply, RST | ACK)];
        assert_eq!(walk(FlowProtocol::Tcp, &reset), (10, "CLOSE"));
        let ignored = [(Original, SYN), (Reply, SYN | ACK), (Original, RST), (Original, ACK)];
        assert_eq!(walk(FlowProtocol::Tcp, &ignored), (86_400, "ESTABLISHED"), "they went on");
    }

    #[test]
    fn datagrams_and_associations_have_timeouts_of_their_own() {
        use Direction::{Original, Reply};
        assert_eq!(walk(FlowProtocol::Udp, &[(Original, 0)]), (30, "UNREPLIED"));
        assert_eq!(walk(FlowProtocol::Udp, &[(Original, 0), (Reply, 0)]), (30, "REPLIED"));
        let stream = [(Original, 0), (Reply, 0), (Original, 0)];
        assert_eq!(walk(FlowProtocol::Udp, &stream), (120, "ASSURED"));
        let init = (Original, chunk::INIT);
        assert_eq!(walk(FlowProtocol::Sctp, &[init]), (30, "UNREPLIED"));
        assert_eq!(walk(FlowProtocol::Sctp, &[init, (Reply, 2)]), (210, "ESTABLISHED"));
        assert_eq!(walk(FlowProtocol::Sctp, &[init, (Reply, chunk::ABORT)]), (10, "CLOSE"));
    }

    #[test]
    fn what_is_over_counts_no_more() {
        let counted = Seen::LIVE.with(Seen::COUNTED);
        let after = counted.after(FlowProtocol::Tcp, Direction::Original, FIN);
        assert!(after.has(Seen::COUNTED));
        assert!(!after.after(FlowProtocol::Tcp, Direction::Reply, FIN).has(Seen::COUNTED));
        assert!(!counted.after(FlowProtocol::Tcp, Direction::Reply, RST).has(Seen::COUNTED));
    }
}
