//! When a worker without work looks again at once, and when it sleeps.
//!
//! To wake a thread that sleeps on another CPU takes many times as long as to carry a frame, so a worker
//! that expects the next frame soon does better to keep looking. It gives the CPU away between two looks,
//! but looking still costs, so it must pay:
//!
//! - A worker looks for at most [`LOOK_MAX`] after its last frame: an idle node uses no CPU.
//! - It looks only if frames came close together of late ([`GAP_MAX`]).
//! - Each time that nothing came, it sleeps twice as often before it tries again, up to
//!   [`SLEEPS_MAX`] times; so does one for whom the frames come too late for it to pay ([`PAYS_MAX`]).
//! - If giving the CPU away took long ([`AWAY_MAX`]), others have work for it. Sleeping is then the
//!   faster way to get it back, for the scheduler prefers those who slept.
//!
//! No clock here: the caller says what time it is.

use std::time::{Duration, Instant};

/// Longest time to look for the next frame. As long as a round trip takes in which everybody sleeps, so that
/// the first try meets its end.
pub const LOOK_MAX: Duration = Duration::from_micros(200);

/// Longest time between two frames after which it is worth to look.
pub const GAP_MAX: Duration = Duration::from_micros(250);

/// A look that takes longer than this costs more than the sleep that it saves.
pub const PAYS_MAX: Duration = Duration::from_micros(60);

/// Looks in a row that may take longer than [`PAYS_MAX`]: enough for everybody on the way of a round trip to
/// begin looking, too, which makes it short.
pub const PATIENCE: u32 = 32;

/// Longest time that the CPU may be away while nobody else has much to do.
pub const AWAY_MAX: Duration = Duration::from_micros(100);

/// Most sleeps in a row without a try.
pub const SLEEPS_MAX: u32 = 256;

/// What a worker without work does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Give the CPU away, and look again.
    Look,
    /// Sleep until a frame comes.
    Sleep,
}

/// The memory of one worker.
#[derive(Debug)]
pub struct Spin {
    /// When there was work last.
    worked: Instant,
    /// Whether the worker looks.
    looks: bool,
    /// Slow looks in a row that are still bearable.
    patience: u32,
    /// How often to sleep when this try fails.
    sleeps_next: u32,
    /// Sleeps that are still to come before the next try.
    sleeps_left: u32,
}

impl Spin {
    /// Starts asleep.
    pub fn new(now: Instant) -> Self {
        Self { worked: now, looks: false, patience: PATIENCE, sleeps_next: 1, sleeps_left: 0 }
    }

    /// There was work, found at `now`.
    pub fn work(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.worked);
        self.worked = now;
        if !self.looks {
            self.looks = gap < GAP_MAX && self.sleeps_left == 0;
            return;
        }
        if gap <= PAYS_MAX {
            (self.patience, self.sleeps_next) = (PATIENCE, 1);
        } else if self.patience == 0 {
            self.give_up();
        } else {
            self.patience -= 1;
        }
    }

    /// There is no work at `now`.
    pub fn idle(&mut self, now: Instant) -> Idle {
        if self.looks && now.saturating_duration_since(self.worked) < LOOK_MAX {
            return Idle::Look;
        }
        if self.looks {
            self.give_up();
        } else {
            self.sleeps_left = self.sleeps_left.saturating_sub(1);
        }
        Idle::Sleep
    }

    /// The CPU was given away at `before` and is back at `after`. Returns whether others have much to do.
    pub fn back(&mut self, before: Instant, after: Instant) -> bool {
        let is_busy = after.saturating_duration_since(before) > AWAY_MAX;
        if self.looks && is_busy {
            self.give_up();
        }
        is_busy
    }

    fn give_up(&mut self) {
        self.looks = false;
        self.patience = PATIENCE;
        self.sleeps_left = self.sleeps_next;
        self.sleeps_next = (self.sleeps_next * 2).min(SLEEPS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker whose frames come at given times, and who always gets the CPU back at once.
    struct Bench {
        spin: Spin,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let now = Instant::now();
            Self { spin: Spin::new(now), now }
        }

        /// One frame after `gap`. Returns how long the worker looked for it.
        fn frame_after(&mut self, gap: Duration) -> Duration {
            let (start, step) = (self.now, Duration::from_micros(1));
            let mut looked = Duration::ZERO;
            while self.now < start + gap && self.spin.idle(self.now) == Idle::Look {
                self.now += step;
                looked += step;
            }
            self.now = start + gap;
            self.spin.work(self.now);
            looked
        }

        /// The part of the time that the worker looks when frames come every `gap`.
        fn share(&mut self, gap: Duration) -> f64 {
            const FRAMES: u32 = 10_000;
            let looked: Duration = (0..FRAMES).map(|_| self.frame_after(gap)).sum();
            looked.as_secs_f64() / (gap * FRAMES).as_secs_f64()
        }
    }

    const MICRO: Duration = Duration::from_micros(1);

    #[test]
    fn it_looks_for_frames_that_come_soon() {
        let mut bench = Bench::new();
        bench.frame_after(100 * MICRO);
        for _ in 0..1000 {
            assert_eq!(bench.frame_after(40 * MICRO), 40 * MICRO);
        }
    }

    #[test]
    fn a_round_trip_in_which_everybody_slept_becomes_one_in_which_nobody_does() {
        let mut bench = Bench::new();
        bench.frame_after(120 * MICRO);
        assert_eq!(bench.frame_after(120 * MICRO), 120 * MICRO, "the first try");
        assert_eq!(bench.frame_after(45 * MICRO), 45 * MICRO);
    }

    #[test]
    fn looking_ends_and_costs_next_to_nothing_where_it_does_not_pay() {
        for gap in [70, 150, 190, 240] {
            let share = Bench::new().share(gap * MICRO);
            assert!(share < 0.15, "frames every {gap} us: it looks {share:.3} of the time");
        }
        for gap in [260, 1000, 100_000] {
            let share = Bench::new().share(gap * MICRO);
            assert!(share == 0.0, "frames every {gap} us: it looks {share:.3} of the time");
        }
    }

    #[test]
    fn it_sleeps_once_nothing_comes() {
        let mut bench = Bench::new();
        bench.frame_after(10 * MICRO);
        assert!(bench.frame_after(Duration::from_secs(1)) <= LOOK_MAX);
        assert_eq!(bench.spin.idle(bench.now), Idle::Sleep);
    }

    #[test]
    fn who_does_not_get_the_cpu_back_sleeps() {
        let mut bench = Bench::new();
        bench.frame_after(10 * MICRO);
        let away = bench.now + AWAY_MAX + MICRO;
        assert_eq!(bench.spin.idle(bench.now), Idle::Look);
        assert!(!bench.spin.back(bench.now, bench.now + AWAY_MAX));
        assert!(bench.spin.back(bench.now, away));
        assert_eq!(bench.spin.idle(away), Idle::Sleep);
    }

    #[test]
    fn after_a_vain_try_it_tries_again_later() {
        let mut bench = Bench::new();
        bench.frame_after(10 * MICRO);
        bench.frame_after(Duration::from_secs(1));
        let tries = (0..600).filter(|_| bench.frame_after(20 * MICRO) > Duration::ZERO).count();
        assert!(tries > 500, "{tries}");
    }
}
