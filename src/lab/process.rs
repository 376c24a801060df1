//! Processes of a lab: found again by later commands, and never mistaken for others.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use super::wait::{Interrupt, Wait};

/// A process that is recognised even when its number has been used again: by the moment of its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

impl ProcessId {
    /// The running process with the number `pid`.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let (_, start_time) = stat(pid)?;
        Ok(Self { pid, start_time })
    }

    /// This process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// Whether any of its threads still runs. When none does, all its files are closed and the locks on
    /// them are free; it may still wait to be collected.
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_ok_and(|(state, start_time)| {
            start_time == self.start_time && !has_ended(state, || threads(self.pid))
        })
    }

    /// Sends a signal. It is no error if the process has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) else { return Ok(()) };
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it has not ended within `limit`.
    pub fn wait_for_end(self, limit: Duration) -> anyhow::Result<()> {
        Interrupt::default().wait_for(limit, || {
            Ok(match self.is_alive() {
                false => Wait::Done(()),
                true => Wait::NotYet(format!("process {} runs", self.pid)),
            })
        })
    }
}

/// Processes in any of the network namespaces with these inode numbers, this one excepted.
pub(super) fn inside(inodes: &[u64]) -> Vec<ProcessId> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != own)
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| {
                let text = link.to_string_lossy();
                let inode = text.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']'));
                inode.and_then(|inode| inode.parse().ok()).is_some_and(|ino| inodes.contains(&ino))
            })
        })
        .filter_map(|pid| ProcessId::of(pid).ok())
        .collect()
}

/// Whether a process has ended whose first thread is in `state`. That thread of a killed process is often
/// the first to end, and then waits for the `threads`, which still hold the files open.
fn has_ended(state: char, threads: impl FnOnce() -> usize) -> bool {
    matches!(state, 'Z' | 'X') && threads() <= 1
}

/// How many threads a process has, an ended first one included.
fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// State and start time of a process: fields 3 and 22 of `/proc/PID/stat` (proc_pid_stat(5)).
fn stat(pid: i32) -> io::Result<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not understood")))
}

/// The second field, the program's name, may contain anything; it ends at the last `)`.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_ends_and_a_reused_number_is_not_it() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        assert!(!ProcessId { start_time: id.start_time + 1, ..id }.is_alive());
        id.signal(Signal::KILL).unwrap();
        id.wait_for_end(Duration::from_secs(5)).unwrap();
        child.wait().unwrap();
        assert!(!id.is_alive());
        id.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn a_process_has_ended_with_its_last_thread_not_with_its_first() {
        assert!(!has_ended('S', || 1));
        assert!(!has_ended('Z', || 2), "another thread still holds its files");
        assert!(has_ended('Z', || 1));
        assert!(has_ended('Z', || 0), "collected meanwhile");
        let own = i32::try_from(std::process::id()).unwrap();
        let before = threads(own);
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        assert!(before >= 1 && threads(own) >= 2);
        drop(stop);
        assert!(thread.join().unwrap().is_err());
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_confuse() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 10 20";
        assert_eq!(parse_stat(text), Some(('S', 4242)));
        assert_eq!(parse_stat("7 (short) S 1"), None);
    }
}
