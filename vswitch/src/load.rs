//! How busy a worker is, and what follows for the others.
//!
//! One thread that does everything answers sooner than two that hand the CPU to each other, and two carry more
//! than one. So while there is little to do, the first worker (the *keeper*) serves the sources of the others,
//! which rest; as soon as it has no idle moment left, it gives them back.
//!
//! No clock here: the caller says what time it is.

use std::time::{Duration, Instant};

/// The time over which a worker's load is taken.
pub const WINDOW: Duration = Duration::from_millis(2);

/// A worker rests when the load of it and of the keeper, in percent of one CPU each, is together not more than
/// this.
pub const REST_MAX: u8 = 60;

/// The keeper gives the others' sources back when it has not been idle for so long: a few batches.
pub const STREAK_MAX: Duration = Duration::from_micros(200);

/// The load of one worker.
#[derive(Debug)]
pub struct Load {
    window: Instant,
    /// Idle time in this window.
    idle: Duration,
    /// When the worker was idle last.
    last_idle: Instant,
}

impl Load {
    /// Starts with an idle worker.
    pub fn new(now: Instant) -> Self {
        Self { window: now, idle: Duration::ZERO, last_idle: now }
    }

    /// The worker waited for `idle` and went on at `now`. At the end of a window, returns the load in percent.
    pub fn waited(&mut self, idle: Duration, now: Instant) -> Option<u8> {
        if !idle.is_zero() {
            self.last_idle = now;
            self.idle += idle;
        }
        let elapsed = now.saturating_duration_since(self.window);
        if elapsed < WINDOW {
            return None;
        }
        let busy = elapsed.saturating_sub(self.idle);
        (self.window, self.idle) = (now, Duration::ZERO);
        let percent = busy.as_nanos() * 100 / elapsed.as_nanos().max(1);
        Some(u8::try_from(percent).unwrap_or(100))
    }

    /// Whether the worker has had no idle moment for long.
    pub fn is_saturated(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_idle) > STREAK_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    #[test]
    fn the_load_is_the_part_of_the_time_that_was_not_idle() {
        let start = Instant::now();
        for (idle, percent) in [(0, 100), (20, 50), (30, 25), (40, 0)] {
            let mut load = Load::new(start);
            let told =
                (1..=50).find_map(|breath| load.waited(idle * MICRO, start + breath * 40 * MICRO));
            assert_eq!(told, Some(percent), "idle for {idle} of every 40 us");
        }
    }

    #[test]
    fn each_window_is_told_of_once() {
        let start = Instant::now();
        let mut load = Load::new(start);
        let told = (1..=500).filter_map(|breath| load.waited(MICRO, start + breath * 40 * MICRO));
        assert_eq!(told.count(), 10);
    }

    #[test]
    fn an_idle_moment_ends_a_streak() {
        let start = Instant::now();
        let mut load = Load::new(start);
        let long = start + STREAK_MAX + MICRO;
        load.waited(Duration::ZERO, long);
        assert!(load.is_saturated(long));
        load.waited(MICRO, long);
        assert!(!load.is_saturated(long));
    }
}
