//! Measures what the data path is made of, on this machine, and computes from it the bound for one stream.
//!
//! ```console
//! $ cargo bench --bench primitives
//! ```
//!
//! Everything is the median of many single calls. *Same CPU*: who made the data and who takes it run on one,
//! so it is in that CPU's cache. *Other CPU*: it has to be fetched from another's. As the benchmark `overlay`,
//! it stands in namespaces of its own, and nothing else should run meanwhile.
//!
//! **The bound.** A super-frame of one stream is written and read by pods, which costs what TCP between two
//! namespaces over a bare `veth` costs, and between them it takes the steps of the first table. If every
//! CPU worked at nothing else and never waited, the stream would have the speed that is printed last.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it found")]

#[path = "primitives/path.rs"]
mod path;
#[path = "primitives/tcp.rs"]
mod tcp;

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vswitch::wire::checksum;
use weft::lab::Namespace;

/// Bytes of payload in a super-frame: what one send into the tunnel holds of an MTU of 1450.
pub(crate) const SUPER_FRAME: usize = 44 * 1398;

/// How often each thing is done.
const TIMES: usize = 400;

fn main() -> Result<()> {
    // What cargo says to every benchmark.
    if let Some(argument) = std::env::args().nth(1).filter(|argument| argument != "--bench") {
        anyhow::bail!("this benchmark takes no arguments, and `{argument}` is one");
    }
    weft::lab::sandbox::enter_own()?;
    let cpus = cpus()?;
    println!("{:<52}{:>12}{:>12}", "", "same CPU", "other CPU");
    let directory = tempfile::tempdir().context("making a directory for namespaces")?;
    let near = Namespace::create(directory.path().join("near"))?;
    let far = Namespace::create(directory.path().join("far"))?;
    let steps = path::measure(&cpus, &near, &far)?;
    println!();
    row(
        "reading the thread's own identity (a system call)",
        repeat(|| {
            black_box(rustix::thread::gettid());
        }),
        None,
    );
    row("sched_yield with nobody else there", repeat(rustix::thread::sched_yield), None);
    copies();
    let (source, mut target) = (vec![1_u8; SUPER_FRAME], 0);
    row("checksum of 61.5 kB in the cache", repeat(|| target ^= checksum::internet(&source)), None);
    black_box(target);
    wakeups(&cpus)?;
    println!();

    let ends = tcp::seconds_per_gigabyte(&near, &far)?;
    let way = steps.as_secs_f64() / SUPER_FRAME as f64 * 1e9;
    let count = cpus.len() as f64;
    println!("{:<52}{ends:>12.2} s/GB", "TCP's ends, and a bare veth between them");
    println!("{:<52}{way:>12.2} s/GB", "the way from pod to pod: the table's first part");
    println!(
        "{:<52}{:>12.1} Gbit/s",
        format!("bound for one stream on {count} CPUs"),
        count / (ends + way) * 8.0
    );
    Ok(())
}

/// Prints one line of the table, in microseconds.
pub(crate) fn row(what: &str, same: Duration, other: Option<Duration>) {
    let text = |time: Duration| format!("{:.2} µs", time.as_secs_f64() * 1e6);
    println!("{what:<52}{:>12}{:>12}", text(same), other.map_or_else(String::new, text));
}

/// The median time of `work`, which is so short that one reading of the clock would be much of it.
fn repeat(mut work: impl FnMut()) -> Duration {
    const CALLS: u32 = 64;
    median(|| {
        let start = Instant::now();
        for _ in 0..CALLS {
            work();
        }
        Ok(start.elapsed() / CALLS)
    })
    .unwrap_or_default()
}

/// The median of what `measure` says.
pub(crate) fn median(mut measure: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut times = (0..TIMES).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(times[times.len() / 2])
}

/// Copying a super-frame that is in the cache, and one that is not.
fn copies() {
    let (source, mut target) = (vec![1_u8; SUPER_FRAME], vec![0_u8; SUPER_FRAME]);
    let copy = || {
        target.copy_from_slice(&source);
        black_box(&mut target);
    };
    row("copying 61.5 kB in the cache", repeat(copy), None);

    // Far more than any CPU's own cache holds.
    const LARGE: usize = 1024;
    let (source, mut target) = (vec![1_u8; LARGE * SUPER_FRAME], vec![0_u8; LARGE * SUPER_FRAME]);
    let mut at = 0;
    let copy = || {
        at = (at + 7) % LARGE * SUPER_FRAME;
        target[at..at + SUPER_FRAME].copy_from_slice(&source[at..at + SUPER_FRAME]);
        black_box(&mut target);
        at /= SUPER_FRAME;
    };
    row("copying 61.5 kB from memory to memory", repeat(copy), None);
}

/// How long it takes until a thread runs that waits for an event: half of there and back.
fn wakeups(cpus: &[usize]) -> Result<()> {
    let mut times = Vec::new();
    for cpu in [cpus[0], *cpus.last().context("no CPU")?] {
        let (there, back) =
            (eventfd(0, EventfdFlags::empty())?, eventfd(0, EventfdFlags::empty())?);
        let time = std::thread::scope(|scope| -> Result<Duration> {
            let echo = scope.spawn(|| -> Result<()> {
                pin(cpu)?;
                for _ in 0..TIMES {
                    rustix::io::read(&there, &mut [0; 8])?;
                    rustix::io::write(&back, &1_u64.to_ne_bytes())?;
                }
                Ok(())
            });
            pin(cpus[0])?;
            let time = median(|| {
                let start = Instant::now();
                rustix::io::write(&there, &1_u64.to_ne_bytes())?;
                rustix::io::read(&back, &mut [0; 8])?;
                Ok(start.elapsed() / 2)
            })?;
            echo.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            Ok(time)
        })?;
        times.push(time);
    }
    row("waking a thread that sleeps", times[0], Some(times[1]));
    Ok(())
}

/// The CPUs that this process may use.
fn cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None).context("asking for the usable CPUs")?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect())
}

/// Moves the calling thread to a CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None::<Pid>, &set).with_context(|| format!("moving to CPU {cpu}"))
}
