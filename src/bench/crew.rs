//! Threads that make or take traffic until they are told to stop.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::utils::CachePadded;

/// How long a thread may wait for a datagram or a connection before it looks whether it is to stop.
pub(super) const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// What one thread shares with whoever started it.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Bytes, datagrams or connections so far.
    pub(super) done: AtomicU64,
    /// What did not succeed.
    pub(super) failed: AtomicU64,
    stop: AtomicBool,
}

impl Lane {
    /// Whether the thread is to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Counters at one moment, all threads together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) done: u64,
    pub(super) failed: u64,
}

impl Sample {
    /// What has come since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self { done: self.done - earlier.done, failed: self.failed - earlier.failed }
    }
}

/// Threads of one kind. They end when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Crew {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    lane: Arc<CachePadded<Lane>>,
    /// The connection that it may be blocked on.
    stream: Option<Arc<TcpStream>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Crew {
    /// Starts a thread for `work`, which must look at [`Lane::is_stopped`] at least every
    /// [`STOP_CHECK_INTERVAL`], or be blocked in `stream`.
    pub(super) fn start(
        &mut self,
        stream: Option<Arc<TcpStream>>,
        work: impl FnOnce(&Lane) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let lane = Arc::new(CachePadded::new(Lane::default()));
        let own = Arc::clone(&lane);
        let thread =
            std::thread::Builder::new().name("bench".to_owned()).spawn(move || work(&own))?;
        self.members.push(Member { lane, stream, thread });
        Ok(())
    }

    pub(super) fn sample(&self) -> Sample {
        self.members.iter().fold(Sample::default(), |sum, member| Sample {
            done: sum.done + member.lane.done.load(Ordering::Relaxed),
            failed: sum.failed + member.lane.failed.load(Ordering::Relaxed),
        })
    }

    /// The connections of all.
    pub(super) fn streams(&self) -> impl Iterator<Item = &TcpStream> {
        self.members.iter().filter_map(|member| member.stream.as_deref())
    }

    /// Fails if a thread has ended: before it is stopped, that is never right.
    pub(super) fn check(&mut self) -> io::Result<()> {
        let Some(ix) = self.members.iter().position(|member| member.thread.is_finished()) else {
            return Ok(());
        };
        join(self.members.swap_remove(ix).thread)?;
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a connection was closed early"))
    }

    fn stop(&mut self) {
        for member in &self.members {
            member.lane.stop.store(true, Ordering::Relaxed);
            if let Some(stream) = &member.stream {
                // Fails when the other side has closed it already, which ends the thread as well.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        for member in self.members.drain(..) {
            // How it ends after it was told to says nothing: connections are cut off in the middle.
            let _ = join(member.thread);
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
    }
}

fn join(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread has panicked")))
}
