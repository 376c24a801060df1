//! Bulk transfer over TCP.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::SockRef;

use super::crew::Crew;

/// Bytes per read and write: two super-frames, so that TCP is never short of data, and few enough to stay
/// in a CPU's cache on their way through the kernel.
const CHUNK_LEN: usize = 128 * 1024;

/// Starts a thread that fills `stream`.
pub(super) fn send(crew: &mut Crew, stream: TcpStream) -> io::Result<()> {
    let stream = prepare(stream)?;
    crew.start(Some(Arc::clone(&stream)), move |lane| {
        let chunk = vec![0x5a; CHUNK_LEN];
        loop {
            let len = retry(|| (&*stream).write(&chunk))?;
            lane.done.fetch_add(len as u64, Ordering::Relaxed);
        }
    })
}

/// Starts a thread that reads what `stream` brings.
pub(super) fn receive(crew: &mut Crew, stream: TcpStream) -> io::Result<()> {
    let stream = prepare(stream)?;
    crew.start(Some(Arc::clone(&stream)), move |lane| {
        let mut chunk = vec![0; CHUNK_LEN];
        loop {
            let len = retry(|| (&*stream).read(&mut chunk))?;
            if len == 0 {
                return Ok(());
            }
            lane.done.fetch_add(len as u64, Ordering::Relaxed);
        }
    })
}

/// Blocking without a limit, as the crew cuts it off; and when it is, what is still queued is not sent,
/// where it would disturb the next measurement.
pub(super) fn prepare(stream: TcpStream) -> io::Result<Arc<TcpStream>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(Arc::new(stream))
}

/// Calls again what a signal has interrupted.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
