//! What TCP itself costs: a stream over the underlay's bare `veth`, with all offloads.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use weft::lab::Namespace;

use super::path::UNDERLAY_FAR;

/// How long the stream runs.
const LENGTH: Duration = Duration::from_secs(2);

/// As that of `weft bench`.
const CHUNK_LEN: usize = 128 << 10;

/// CPU seconds that both ends take for a gigabyte, the way between them included: a `veth` carries a frame in
/// the time of whoever sends it.
pub(crate) fn seconds_per_gigabyte(near: &Namespace, far: &Namespace) -> Result<f64> {
    let listener = far.run(|| TcpListener::bind((UNDERLAY_FAR, 0)))??;
    let to = listener.local_addr()?;
    let mut source = near.run(|| TcpStream::connect(to))??;
    let (mut sink, _) = listener.accept()?;
    let receive = move || -> Result<(u64, Duration)> {
        let (mut chunk, mut bytes) = (vec![0; CHUNK_LEN], 0);
        let start = own_cpu_time()?;
        loop {
            match sink.read(&mut chunk).context("receiving")? {
                0 => return Ok((bytes, own_cpu_time()? - start)),
                len => bytes += len as u64,
            }
        }
    };
    let receiver = std::thread::spawn(receive);
    let (chunk, start, until) = (vec![0; CHUNK_LEN], own_cpu_time()?, Instant::now() + LENGTH);
    while Instant::now() < until {
        source.write_all(&chunk).context("sending")?;
    }
    let sending = own_cpu_time()? - start;
    drop(source);
    let (bytes, receiving) = receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
    Ok((sending + receiving).as_secs_f64() / bytes as f64 * 1e9)
}

/// CPU time of the calling thread, from the scheduler.
fn own_cpu_time() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")
        .context("a kernel without CONFIG_SCHED_INFO does not tell a thread's CPU time")?;
    let nanoseconds = text.split_whitespace().next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}
