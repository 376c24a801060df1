//! In which order a worker serves its sources, and how much hurry there is.
//!
//! A source whose last batch was small most likely has a small one again: a request, an answer, an
//! acknowledgment. It takes next to no time and is waited for, so it comes before those with large batches.
//! Nobody starves: every source that is ready is served once a breath.
//!
//! A worker is urgent ([`crate::slice`]), for [`URGENT_FOR`] at a time, while somebody waits for it that keeps
//! nobody waiting: when both kinds are ready together, and when a worker that has small batches only does not
//! get the CPU. Those with large batches alone are not: what runs later finds more to do at once.
//!
//! No clock here: the caller says what time it is.

use std::time::{Duration, Instant};

use crate::frame::Frame;

/// Bytes of a small batch, at most.
pub const SMALL_BYTES_MAX: usize = 8192;

/// Packets of a small batch, at most.
pub const SMALL_PACKETS_MAX: u64 = 16;

/// How long a worker stays urgent: many turns of the scheduler, so that it is not told at every breath.
pub const URGENT_FOR: Duration = Duration::from_millis(50);

/// Whether a batch is not small.
pub fn is_bulky(batch: &[Frame]) -> bool {
    let bytes: usize = batch.iter().map(Frame::len).sum();
    bytes > SMALL_BYTES_MAX || batch.iter().map(Frame::packets).sum::<u64>() > SMALL_PACKETS_MAX
}

/// Whether somebody with little waits for a worker.
#[derive(Debug, Default)]
pub struct Urgency {
    until: Option<Instant>,
}

impl Urgency {
    /// Notes that somebody does, at `now`.
    pub fn note(&mut self, now: Instant) {
        self.until = Some(now + URGENT_FOR);
    }

    /// Whether somebody did of late.
    pub fn is_urgent(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Gso, GsoKind, Pool};

    fn frame(len: usize, packets: u16) -> Frame {
        let mut frame = Pool::new(1).take().unwrap();
        assert!(frame.append(&vec![0; len]));
        frame.meta.gso = Some(Gso { kind: GsoKind::Udp, size: 1, segments: packets });
        frame
    }

    #[test]
    fn many_bytes_or_many_packets_are_bulky() {
        assert!(!is_bulky(&[]));
        assert!(!is_bulky(&[frame(1500, 1), frame(1500, 1)]));
        assert!(is_bulky(&[frame(60_000, 1)]));
        assert!(is_bulky(&[frame(5000, 1), frame(5000, 1)]));
        assert!(is_bulky(&[frame(1000, 17)]));
    }

    #[test]
    fn it_is_urgent_until_some_time_after_the_last_who_waited() {
        let (mut urgency, start) = (Urgency::default(), Instant::now());
        assert!(!urgency.is_urgent(start));
        urgency.note(start);
        assert!(urgency.is_urgent(start + URGENT_FOR / 2));
        urgency.note(start + URGENT_FOR / 2);
        assert!(urgency.is_urgent(start + URGENT_FOR));
        assert!(!urgency.is_urgent(start + 2 * URGENT_FOR));
    }
}
