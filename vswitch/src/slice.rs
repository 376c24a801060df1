//! How soon a worker that wakes gets a CPU which others want, too.
//!
//! The kernel's own network path runs before any thread. A worker is a thread among others, and one that
//! computes for long may run for milliseconds before it yields. With a short time slice the scheduler
//! lets a worker that has just woken run first, and still gives it no more than its share (EEVDF with custom
//! slices, Linux 6.12; `sched_setattr(2)`).

// rustix has no sched_setattr.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// The shortest that there is (`__setparam_fair`, `kernel/sched/syscalls.c`).
pub const SLICE: Duration = Duration::from_micros(100);

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

/// Gives the calling thread a short time slice. Kernels before 6.12 do nothing with it.
///
/// # Errors
/// What the kernel says. The thread then runs as any other.
pub fn shorten() -> io::Result<()> {
    let runtime = u64::try_from(SLICE.as_nanos()).unwrap_or(u64::MAX);
    let nice = rustix::process::getpriority_process(None)?;
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
    #[test]
    fn any_thread_may_have_a_short_slice() {
        super::shorten().unwrap();
    }
}
