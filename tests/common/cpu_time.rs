//! How long something takes on a CPU: what else the machine does meanwhile does not count.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment of this thread's time.
pub(crate) struct CpuTime(Duration);

impl CpuTime {
    pub(crate) fn now() -> Self {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
        Self(Duration::from_secs(seconds) + Duration::from_nanos(nanos))
    }

    pub(crate) fn elapsed(&self) -> Duration {
        Self::now().0 - self.0
    }
}
