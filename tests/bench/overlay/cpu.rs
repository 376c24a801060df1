//! CPU time: what a measurement takes of it, and other work that takes it away.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// CPU time of the whole machine during a part of a measurement.
#[derive(Debug)]
pub(crate) struct Window {
    sampler: JoinHandle<Result<f64>>,
    // Dropped, it ends the sampler early.
    _end: mpsc::Sender<()>,
}

impl Window {
    /// Takes note of what all CPUs do between `warm_up` from now and `duration` after that.
    pub(crate) fn open(warm_up: Duration, duration: Duration) -> Result<Self> {
        let (end, ended) = mpsc::channel();
        let sampler = move || {
            let mut samples = Vec::new();
            for wait in [warm_up, duration] {
                match ended.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => {
                        samples.push((Instant::now(), busy_seconds()?));
                    }
                    _ => return Err(anyhow!("the measurement ended before its time")),
                }
            }
            let [(start, before), (end, after)] = samples[..] else {
                return Err(anyhow!("CPU time was not sampled twice"));
            };
            Ok((after - before) / (end - start).as_secs_f64())
        };
        let thread = std::thread::Builder::new().name("cpu".to_owned());
        Ok(Self { sampler: thread.spawn(sampler)?, _end: end })
    }

    /// How many CPUs were busy in the mean. To be called when the measurement has ended.
    pub(crate) fn busy(self) -> Result<f64> {
        self.sampler.join().map_err(|_| anyhow!("the sampler of CPU time panicked"))?
    }
}

/// What all CPUs have worked since the machine started: everything but idling, waiting for disks, and what
/// a hypervisor gave to others (proc_stat(5)).
fn busy_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let ticks = busy_ticks(&text).context("/proc/stat is not understood")?;
    Ok(ticks / TICKS_PER_SECOND)
}

fn busy_ticks(text: &str) -> Option<f64> {
    let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let mut next = || fields.next()?.parse::<f64>().ok();
    let (user, nice, system) = (next()?, next()?, next()?);
    let (_idle, _iowait, irq, softirq) = (next()?, next()?, next()?, next()?);
    Some(user + nice + system + irq + softirq)
}

/// Ticks of `/proc/stat` in a second, on x86-64 and arm64 alike (`USER_HZ`, asm-generic/param.h).
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds that a process has taken, from the scheduler: in nanoseconds, not ticks.
pub(crate) fn of_process(pid: i32) -> Result<f64> {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| {
            format!("reading {} (it needs a kernel with CONFIG_SCHED_INFO)", path.display())
        })?;
        let nanoseconds: Option<f64> =
            text.split_whitespace().next().and_then(|text| text.parse().ok());
        sum += nanoseconds.with_context(|| format!("{} is not understood", path.display()))?;
    }
    Ok(sum / 1e9)
}

/// Resident memory of a process, in bytes.
pub(crate) fn resident(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<f64> =
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    Ok(kib.with_context(|| format!("no VmRSS in {path}"))? * 1024.0)
}

/// Other work: a process per CPU that never rests, at normal priority. Ends when dropped.
#[derive(Debug)]
pub(crate) struct OtherWork(Vec<Child>);

/// The argument by which this program is told to be such a process.
pub(crate) const ARGUMENT: &str = "__spin";

impl OtherWork {
    /// Starts it, and waits until all of them run.
    pub(crate) fn start() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("asking for the usable CPUs")?;
        let mut work = Self(Vec::new());
        for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)) {
            let mut command = Command::new(std::env::current_exe()?);
            command.args([ARGUMENT, &cpu.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
            let mut child = command.spawn().context("starting other work")?;
            let stdout = child.stdout.take();
            work.0.push(child);
            let mut ready = [0];
            let read = stdout.context("no pipe")?.read(&mut ready)?;
            ensure!(read == 1, "the process that keeps CPU {cpu} busy does not start");
        }
        Ok(work)
    }
}

impl Drop for OtherWork {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself; then there is nothing to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What such a process does: nothing, on one CPU, until it is killed or its parent ends.
pub(crate) fn spin(cpu: &str) -> Result<()> {
    use std::io::Write;

    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut set = CpuSet::new();
    set.set(cpu.parse().with_context(|| format!("`{cpu}` is no CPU"))?);
    sched_setaffinity(None, &set).with_context(|| format!("moving to CPU {cpu}"))?;
    let mut stdout = std::io::stdout();
    stdout.write_all(b"r")?;
    stdout.flush()?;
    loop {
        std::hint::spin_loop();
    }
}
