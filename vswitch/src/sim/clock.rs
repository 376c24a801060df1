//! Virtual time.

use std::time::{Duration, Instant};

/// Time that moves only when it is told to.
///
/// It is told in [`Instant`]s, as real time is, so that the code under test needs no second notion of
/// time. Where it starts differs from run to run; all that follows from [`Clock::elapsed`] does not.
#[derive(Debug, Clone)]
pub struct Clock {
    start: Instant,
    elapsed: Duration,
}

impl Clock {
    /// Starts at zero.
    pub fn new() -> Self {
        Self { start: Instant::now(), elapsed: Duration::ZERO }
    }

    /// The time now.
    pub fn now(&self) -> Instant {
        self.start + self.elapsed
    }

    /// What has passed since the start.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Lets `time` pass.
    pub fn advance(&mut self, time: Duration) {
        self.elapsed += time;
    }

    /// Lets time pass until `at`; none if that is over.
    pub fn advance_to(&mut self, at: Instant) {
        self.elapsed = self.elapsed.max(at.saturating_duration_since(self.start));
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_when_told_and_never_backwards() {
        let mut clock = Clock::new();
        let start = clock.now();
        assert_eq!(clock.now(), start);
        clock.advance(Duration::from_secs(2));
        assert_eq!(clock.now(), start + Duration::from_secs(2));
        clock.advance_to(start + Duration::from_secs(1));
        assert_eq!(clock.elapsed(), Duration::from_secs(2));
        clock.advance_to(start + Duration::from_secs(3));
        assert_eq!(clock.elapsed(), Duration::from_secs(3));
    }
}
