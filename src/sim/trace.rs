//! What happened, so that two runs can be compared.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use overlay::gossip::Event;

use super::place::{Node, Place, Pod};

/// Most events that are kept; of more, the latest. The digest is of all.
const EVENTS_MAX: usize = 65_536;

/// What happened in a cluster: the latest events, and a digest of everything, datagrams included.
///
/// Two runs are equal, to the byte and the nanosecond, if their digests are.
#[derive(Debug, Clone)]
pub struct Trace {
    events: VecDeque<(Duration, TraceEvent)>,
    digest: DefaultHasher,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceEvent {
    /// A daemon was started.
    Started(Node),
    /// A daemon was killed.
    Killed(Node),
    /// A daemon began to say goodbye.
    Leaving(Node),
    /// A daemon has ended after its goodbye.
    Left(Node),
    /// A node took up subnets as its own.
    Lease(Node, Vec<IpNetwork>),
    /// A pod was added.
    PodAdded(Pod, Node, Vec<IpAddr>),
    /// A pod was removed.
    PodRemoved(Pod),
    /// The way between two nodes was cut.
    Cut(Node, Node),
    /// All ways were mended.
    Healed,
    /// Gossip had something to tell.
    Gossip(Node, Event),
}

/// What happened to a datagram.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) enum Step {
    Sent,
    Arrived,
}

impl Trace {
    pub(super) fn new() -> Self {
        Self { events: VecDeque::new(), digest: DefaultHasher::new() }
    }

    /// What happened and when, counted from the start of the cluster, the oldest first.
    pub fn events(&self) -> impl Iterator<Item = &(Duration, TraceEvent)> {
        self.events.iter()
    }

    /// A number that two different runs share only by an unlikely chance.
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    pub(super) fn note(&mut self, at: Duration, event: TraceEvent) {
        (at, format!("{event:?}")).hash(&mut self.digest);
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back((at, event));
    }

    pub(super) fn note_datagram(
        &mut self,
        at: Duration,
        step: Step,
        ends: (SocketAddr, SocketAddr),
        bytes: &[u8],
    ) {
        (at, step, ends, bytes).hash(&mut self.digest);
    }

    pub(super) fn note_frame(&mut self, at: Duration, place: Place, bytes: &[u8]) {
        (at, place, bytes).hash(&mut self.digest);
    }
}
