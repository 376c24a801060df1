//! What was denied, on its way to whoever tells people.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;

use super::{Direction, PolicyName, RuleName, Subject};
use crate::flows::FlowProtocol;

/// Packets that policies denied, one after another.
#[derive(Debug, Clone)]
pub struct Denial {
    /// Whose rules they were: the sender's for egress, the receiver's for ingress.
    pub direction: Direction,
    /// Who sent, before anybody took its place.
    pub from: IpAddr,
    /// Who was to receive, after Services were translated.
    pub to: IpAddr,
    /// The protocol.
    pub protocol: FlowProtocol,
    /// The receiver's port; 0 for a protocol without ports.
    pub port: u16,
    /// The pod with the rules.
    pub subject: Arc<Subject>,
    /// The pod at the other end, if it is one.
    pub peer: Option<Arc<Subject>>,
    /// The rule that denies it; `None` if no rule of the policies that isolate the pod accepts it.
    pub rule: Option<Arc<RuleName>>,
    /// Whether it was only counted, and went on.
    pub is_audited: bool,
    /// How many packets.
    pub packets: u64,
}

impl Denial {
    /// The policies that isolate the pod in this direction.
    pub fn isolating(&self) -> &[Arc<PolicyName>] {
        self.subject.rules(self.direction).map(|rules| rules.isolating()).unwrap_or_default()
    }
}

/// A bounded ring of them, from the workers to whoever tells. What does not fit is counted.
#[derive(Debug)]
pub struct Denials {
    ring: ArrayQueue<Denial>,
    lost: AtomicU64,
}

/// Denials that wait.
const WAITING_MAX: usize = 256;

impl Denials {
    pub(crate) fn new() -> Self {
        Self { ring: ArrayQueue::new(WAITING_MAX), lost: AtomicU64::new(0) }
    }

    pub(crate) fn push(&self, denial: Denial) {
        if self.ring.push(denial).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self) -> bool {
        let has_room = !self.ring.is_full();
        if !has_room {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Takes the oldest.
    pub fn take(&self) -> Option<Denial> {
        self.ring.pop()
    }

    /// Takes how many did not fit since this was last asked.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}
