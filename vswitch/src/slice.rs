//! How soon a worker that wakes gets a CPU which others want, too.
//!
//! The kernel's own network path runs before any thread. A worker is a thread among others, and one that
//! computes for long may run for milliseconds before it yields. With a short time slice the scheduler
//! lets a worker that has just woken run first, and still gives it no more than its share (EEVDF with custom
//! slices, Linux 6.12; `sched_setattr(2)`).
//!
//! While small batches wait behind large ones ([`crate::queue`]) a share is not enough: then the worker is
//! *urgent*, and has a larger one.

// rustix has no sched_setattr.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// The shortest that there is (`__setparam_fair`, `kernel/sched/syscalls.c`).
pub const SLICE: Duration = Duration::from_micros(100);

/// The nice value of an urgent worker: nine shares of a CPU to one of an ordinary thread (sched(7)).
pub const URGENT_NICE: i32 = -10;

/// `struct sched_attr`, as long as it was at first (`linux/sched/types.h`).
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// How the scheduler treats a thread, which alone may use this.
#[derive(Debug)]
pub struct Turn {
    /// The nice value that it was started with.
    own_nice: i32,
    is_urgent: bool,
}

impl Turn {
    /// Gives the calling thread a short time slice, and finds out whether it may be urgent. Kernels before 6.12
    /// do nothing with the slice.
    ///
    /// # Errors
    /// What the kernel says. The thread is then treated as before, or has the slice only.
    pub fn shorten() -> io::Result<Self> {
        let own_nice = rustix::process::getpriority_process(None)?;
        let mut turn = Self { own_nice, is_urgent: false };
        set(own_nice)?;
        turn.set_urgent(true)?;
        turn.set_urgent(false)?;
        Ok(turn)
    }

    /// Whether the thread has a larger share.
    pub fn is_urgent(&self) -> bool {
        self.is_urgent
    }

    /// Gives the thread a larger share, or its own again.
    ///
    /// # Errors
    /// What the kernel says. Nothing has changed then.
    pub fn set_urgent(&mut self, is_urgent: bool) -> io::Result<()> {
        set(if is_urgent { self.own_nice.min(URGENT_NICE) } else { self.own_nice })?;
        self.is_urgent = is_urgent;
        Ok(())
    }
}

fn set(nice: i32) -> io::Result<()> {
    let runtime = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
    let policy = libc::SCHED_OTHER.cast_unsigned();
    let size = u32::try_from(size_of::<SchedAttr>()).unwrap_or(0);
    let attr =
        SchedAttr { size, policy, flags: 0, nice, priority: 0, runtime, deadline: 0, period: 0 };
    // SAFETY: the kernel reads `size` bytes from `attr`, which is as long and outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[test]
    fn a_thread_is_urgent_for_as_long_as_it_wants() {
        let own = nice();
        match Turn::shorten() {
            Ok(mut turn) => {
                assert_eq!((turn.is_urgent(), nice()), (false, own));
                turn.set_urgent(true).unwrap();
                assert_eq!((turn.is_urgent(), nice()), (true, own.min(URGENT_NICE)));
                turn.set_urgent(false).unwrap();
                assert_eq!((turn.is_urgent(), nice()), (false, own));
            }
            // An ordinary user may not.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }
}
