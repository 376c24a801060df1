//! Who of several nodes acts for all: whoever holds a Lease object (coordination.k8s.io/v1). Pure.
//!
//! As in client-go: the clocks of nodes need not agree. A holder is gone when its Lease has not changed for as
//! long as it says, by the clock of whoever looks.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

/// For how long a holder counts after it was heard last.
const LIFE: Duration = Duration::from_secs(15);

/// How long a holder that cannot renew its Lease still acts: it must have stopped before another one begins.
const ACT_MAX: Duration = Duration::from_secs(10);

/// How often a holder renews.
pub const RENEW_PAUSE: Duration = Duration::from_secs(4);

/// Nodes that try to hold it: the first of the living by name. The Lease of a large cluster would be asked for
/// by all otherwise.
pub const CANDIDATES: usize = 3;

/// What to do with the Lease.
#[derive(Debug, Clone, PartialEq)]
pub enum Turn {
    /// Another node holds it.
    Leave,
    /// Make it.
    Create(Value),
    /// Write it, in place of the version that was read.
    Update(Value),
}

/// One node's view of the Lease.
#[derive(Debug)]
pub struct Election {
    own: String,
    name: &'static str,
    /// What the Lease said last, and since when.
    seen: Option<(String, Instant)>,
    /// When this node has last held it for sure.
    held_at: Option<Instant>,
}

impl Election {
    /// Nothing is known yet. `own` is this node's name.
    pub fn new(own: &str, name: &'static str) -> Self {
        Self { own: own.to_owned(), name, seen: None, held_at: None }
    }

    /// Decides by the Lease as it is now; `None` when there is none.
    pub fn turn(&mut self, lease: Option<&Value>, now: Instant, wall: Timestamp) -> Turn {
        let Some(lease) = lease else {
            return Turn::Create(self.lease(&json!({}), wall, 0));
        };
        let version = lease["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(known, _)| known != version) {
            self.seen = Some((version.to_owned(), now));
        }
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let life = lease["spec"]["leaseDurationSeconds"].as_u64().map_or(LIFE, Duration::from_secs);
        let is_over = self.seen.as_ref().is_some_and(|(_, since)| now >= *since + life);
        if holder != self.own {
            self.held_at = None;
            if !holder.is_empty() && !is_over {
                return Turn::Leave;
            }
        }
        let turns = lease["spec"]["leaseTransitions"].as_u64().unwrap_or(0);
        Turn::Update(self.lease(lease, wall, turns + u64::from(holder != self.own)))
    }

    /// Takes up that the Lease was written, at the time that the decision was made.
    pub fn won(&mut self, at: Instant) {
        self.held_at = Some(at);
    }

    /// Whether this node acts.
    pub fn acts(&self, now: Instant) -> bool {
        self.held_at.is_some_and(|at| now < at + ACT_MAX)
    }

    fn lease(&self, old: &Value, wall: Timestamp, turns: u64) -> Value {
        let now = micros(wall);
        let is_own = old["spec"]["holderIdentity"].as_str() == Some(&self.own);
        let acquired = old["spec"]["acquireTime"].as_str().filter(|_| is_own).unwrap_or(&now);
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "resourceVersion": old["metadata"]["resourceVersion"]},
            "spec": {
                "holderIdentity": self.own, "leaseDurationSeconds": LIFE.as_secs(),
                "acquireTime": acquired, "renewTime": now, "leaseTransitions": turns
            }
        })
    }
}

/// A time as a `MicroTime` of the API.
pub fn micros(wall: Timestamp) -> String {
    format!("{wall:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wall() -> Timestamp {
        Timestamp::from_second(1_780_000_000).unwrap()
    }

    fn versioned(mut lease: Value, version: &str) -> Value {
        lease["metadata"]["resourceVersion"] = version.into();
        lease
    }

    #[test]
    fn times_are_micro_times() {
        assert_eq!(micros(wall()), "2026-05-28T20:26:40.000000Z");
    }

    #[test]
    fn the_first_makes_it_and_the_second_waits_until_it_is_over() {
        let now = Instant::now();
        let (mut a, mut b) = (Election::new("a", "weft"), Election::new("b", "weft"));
        let Turn::Create(lease) = a.turn(None, now, wall()) else { panic!("there is none") };
        a.won(now);
        assert!(a.acts(now) && !b.acts(now));
        let lease = versioned(lease, "1");
        assert_eq!(b.turn(Some(&lease), now, wall()), Turn::Leave);
        // The holder renews: for the other, its life begins anew.
        let later = now + LIFE - Duration::from_secs(1);
        let Turn::Update(renewed) = a.turn(Some(&lease), later, wall()) else {
            panic!("it is a's")
        };
        assert_eq!(renewed["spec"]["leaseTransitions"], 0);
        assert_eq!(renewed["metadata"]["resourceVersion"], "1");
        a.won(later);
        let renewed = versioned(renewed, "2");
        assert_eq!(b.turn(Some(&renewed), now + LIFE, wall()), Turn::Leave);
        // It is silent: it stops by itself before another begins.
        let over = now + LIFE + LIFE;
        assert!(!a.acts(over));
        let Turn::Update(taken) = b.turn(Some(&renewed), over, wall()) else {
            panic!("it is over")
        };
        assert_eq!(taken["spec"]["holderIdentity"], "b");
        assert_eq!(taken["spec"]["leaseTransitions"], 1);
        b.won(over);
        assert!(b.acts(over));
        assert_eq!(a.turn(Some(&versioned(taken, "3")), over, wall()), Turn::Leave);
    }

    #[test]
    fn two_never_act_at_once() {
        // Whatever the order and the pauses: who acts has written less than ACT_MAX ago, and nobody else
        // writes before LIFE after that.
        assert!(ACT_MAX + RENEW_PAUSE < LIFE);
    }
}
