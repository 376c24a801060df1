//! Nodes that others declared dead, before that is believed.
//!
//! Whoever was cut off from everybody declares everybody dead, and says so to the first one that it meets
//! again. To believe it at once would stop traffic between two nodes that were never apart. So a node whose
//! death is hearsay is asked itself, and keeps its routes for the moment that an answer takes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::node_id::NodeId;

/// A member: who, and where.
pub(super) type Accused = (NodeId, SocketAddr);

#[derive(Debug, Default)]
pub(super) struct Appeals {
    pending: BTreeMap<Accused, Appeal>,
}

#[derive(Debug, Clone, Copy)]
struct Appeal {
    until: Instant,
    next: Instant,
}

/// How often one is asked.
const QUESTIONS: u32 = 4;

impl Appeals {
    /// Gives somebody `time` to show that it lives; `false` if it has been given that already.
    pub(super) fn open(&mut self, accused: Accused, time: Duration, now: Instant) -> bool {
        let known = self.pending.contains_key(&accused);
        let appeal = Appeal { until: now + time, next: now + time / QUESTIONS };
        self.pending.entry(accused).or_insert(appeal);
        !known
    }

    /// Whether it is still to be heard.
    pub(super) fn is_open(&self, accused: Accused) -> bool {
        self.pending.contains_key(&accused)
    }

    /// Ends all that `is_over` says are, and all whose time has come; tells whom to ask once more, and
    /// whether any has ended.
    pub(super) fn tend(
        &mut self,
        time: Duration,
        now: Instant,
        is_over: impl Fn(Accused) -> bool,
    ) -> (Vec<Accused>, bool) {
        let before = self.pending.len();
        self.pending.retain(|accused, appeal| now < appeal.until && !is_over(*accused));
        let due = self.pending.iter_mut().filter(|(_, appeal)| appeal.next <= now);
        let due = due.map(|(accused, appeal)| {
            appeal.next += time / QUESTIONS;
            *accused
        });
        let due = due.collect();
        (due, self.pending.len() < before)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.pending.values().map(|appeal| appeal.until.min(appeal.next)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accused_is_asked_until_its_time_is_over() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let accused = (NodeId([1; 16]), "192.0.2.1:7946".parse().unwrap());
        let mut appeals = Appeals::default();
        assert!(appeals.open(accused, second, start));
        assert!(!appeals.open(accused, second, start + second / 2), "its time does not begin anew");
        let mut asked = Vec::new();
        while let Some(now) = appeals.poll_timeout() {
            assert!(appeals.is_open(accused));
            let (due, ended) = appeals.tend(second, now, |_| false);
            asked.extend(due.iter().map(|_| (now - start).as_millis()));
            assert_eq!(ended, now == start + second);
        }
        assert_eq!(asked, [250, 500, 750]);

        appeals.open(accused, second, start);
        assert_eq!(appeals.tend(second, start, |_| true), (Vec::new(), true));
        assert!(!appeals.is_open(accused));
    }
}
