//! Waiting for something to become so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Tells everything that waits to give up; set by ctrl-C.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Sets it. There is no way back.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails if it is set.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_set() { Err(Interrupted) } else { Ok(()) }
    }

    /// Asks `look` until it answers, and gives the answer. After `limit` gives what `describe` says was
    /// still amiss.
    ///
    /// # Errors
    /// When time is up, when interrupted, and at once when `look` fails.
    pub fn wait_for<T>(
        &self,
        limit: Duration,
        mut look: impl FnMut() -> anyhow::Result<Wait<T>>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            self.check()?;
            match look()? {
                Wait::Done(value) => return Ok(value),
                Wait::NotYet(why) if start.elapsed() >= limit => {
                    anyhow::bail!("after {:.1} s still: {why}", limit.as_secs_f64())
                }
                Wait::NotYet(_) => pause(),
            }
        }
    }
}

/// What a look at a condition gives.
#[derive(Debug)]
pub enum Wait<T> {
    /// It is so.
    Done(T),
    /// It is not so, and why.
    NotYet(String),
}

/// The work was interrupted.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Other processes' state cannot be waited for without looking again and again.
#[allow(clippy::disallowed_methods)]
fn pause() {
    std::thread::sleep(POLL_INTERVAL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_value_the_reason_or_the_interrupt() {
        let interrupt = Interrupt::default();
        let mut looks = 0;
        let third = interrupt.wait_for(Duration::from_secs(5), || {
            looks += 1;
            Ok(if looks == 3 { Wait::Done(looks) } else { Wait::NotYet("too early".to_owned()) })
        });
        assert_eq!(third.unwrap(), 3);

        let never: anyhow::Result<()> =
            interrupt.wait_for(Duration::ZERO, || Ok(Wait::NotYet("no lease".to_owned())));
        assert_eq!(never.unwrap_err().to_string(), "after 0.0 s still: no lease");

        interrupt.set();
        let interrupted = interrupt.wait_for(Duration::from_secs(5), || Ok(Wait::Done(())));
        assert!(interrupted.unwrap_err().is::<Interrupted>());
    }
}
