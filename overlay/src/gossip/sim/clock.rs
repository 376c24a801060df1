//! A node's own clock, which shows another time than its neighbours', and goes a little fast or slow.

use std::time::{Duration, Instant};

/// A clock by what it showed when it was last set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// When it was set, in the time of the network.
    set: Instant,
    /// What it showed then.
    shows: Instant,
    /// By how many parts in a million it goes too fast.
    fast_ppm: i32,
}

impl Clock {
    /// A clock that shows the network's own time.
    pub(super) fn right(now: Instant) -> Self {
        Self { set: now, shows: now, fast_ppm: 0 }
    }

    /// A clock that is `ahead`, and `fast_ppm` parts in a million too fast.
    pub(super) fn wrong(now: Instant, ahead: Duration, fast_ppm: i32) -> Self {
        Self { set: now, shows: now + ahead, fast_ppm }
    }

    /// The same clock after a jump.
    pub(super) fn ahead(self, now: Instant, ahead: Duration) -> Self {
        Self { set: now, shows: self.read(now) + ahead, ..self }
    }

    /// What it shows at `now`.
    pub(super) fn read(&self, now: Instant) -> Instant {
        let passed = now.saturating_duration_since(self.set).as_nanos();
        self.shows + nanos(passed * self.rate() / MILLION)
    }

    /// When it shows `time`, or something later for the first time.
    pub(super) fn when(&self, time: Instant) -> Instant {
        let passed = time.saturating_duration_since(self.shows).as_nanos();
        self.set + nanos((passed * MILLION).div_ceil(self.rate()))
    }

    fn rate(&self) -> u128 {
        MILLION.saturating_add_signed(i128::from(self.fast_ppm))
    }
}

const MILLION: u128 = 1_000_000;

fn nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_awaited_is_there_when_the_clock_says_so() {
        let start = Instant::now();
        for fast_ppm in [-20_000, -7, 0, 3, 500, 50_000] {
            let clock = Clock::wrong(start, Duration::from_secs(86_400), fast_ppm);
            for wait in [0, 1, 999, 1_000_003, 700_000_000, 86_400_000_000_017] {
                let due = clock.shows + Duration::from_nanos(wait);
                let at = clock.when(due);
                assert!(clock.read(at) >= due, "{fast_ppm} {wait}");
                assert!(clock.read(at) < due + Duration::from_nanos(2), "{fast_ppm} {wait}");
            }
        }
        let clock = Clock::right(start);
        let jumped = clock.ahead(start + Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(jumped.read(start + Duration::from_secs(2)), start + Duration::from_secs(62));
        assert_eq!(jumped.when(start), start + Duration::from_secs(1));
    }
}
