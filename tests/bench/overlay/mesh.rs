//! Streams from every pod to every pod of the other nodes, and how much all of them carry together.
//!
//! Hundreds of measurements that each have their own beginning and end would not add up: here all
//! connections stand before the first byte is sent, and one counter is read twice.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft::lab::{Family, Interrupt};

use super::measure::{Timing, float, pass};
use super::topology::{Pod, Stage};

/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of one call to read or write.
const CHUNK_LEN: usize = 64 * 1024;

/// Stack of a thread that only reads or writes.
const STACK_LEN: usize = 64 * 1024;

/// The two ends of a connection.
struct Stream {
    source: TcpStream,
    target: TcpStream,
}

/// Bits per second that all streams carry together.
pub(crate) fn bits_per_s(stage: &Stage, timing: Timing, interrupt: &Interrupt) -> Result<f64> {
    let streams = connect(stage)?;
    let received = AtomicU64::new(0);
    thread::scope(|scope| {
        let measured = || -> Result<f64> {
            for stream in &streams {
                let thread = || thread::Builder::new().stack_size(STACK_LEN);
                thread().spawn_scoped(scope, || send(&stream.source))?;
                thread().spawn_scoped(scope, || receive(&stream.target, &received))?;
            }
            pass(timing.warm_up, interrupt)?;
            let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
            pass(timing.duration, interrupt)?;
            let bytes = received.load(Ordering::Relaxed) - before;
            ensure!(bytes > 0, "no byte arrived by any of {} streams", streams.len());
            Ok(float(bytes) * 8.0 / start.elapsed().as_secs_f64())
        };
        let measured = measured();
        // This ends the threads, which the scope waits for.
        for end in streams.iter().flat_map(|stream| [&stream.source, &stream.target]) {
            // It may have been closed by an error, which the other end has seen.
            let _ = end.shutdown(Shutdown::Both);
        }
        measured
    })
}

/// Makes all connections.
fn connect(stage: &Stage) -> Result<Vec<Stream>> {
    let nodes: Vec<&[Pod]> = (0..stage.lab().nodes().len()).map(|node| stage.pods(node)).collect();
    let mut listeners: Vec<(usize, TcpListener)> = Vec::new();
    for (node, pods) in nodes.iter().enumerate() {
        for pod in *pods {
            let address = SocketAddr::new(pod.address(Family::V4)?, 0);
            let bound = pod.namespace.run(|| TcpListener::bind(address))?;
            listeners.push((node, bound.with_context(|| format!("listening on {address}"))?));
        }
    }
    let mut streams = Vec::new();
    for (node, pods) in nodes.iter().enumerate() {
        let targets: Vec<&TcpListener> =
            listeners.iter().filter(|(other, _)| *other != node).map(|(_, one)| one).collect();
        for pod in *pods {
            let connected = pod
                .namespace
                .run(|| targets.iter().map(|to| stream(to)).collect::<Result<Vec<_>>>())?;
            streams.extend(connected?);
        }
    }
    Ok(streams)
}

/// Connects from this thread's namespace.
fn stream(to: &TcpListener) -> Result<Stream> {
    let address = to.local_addr()?;
    let source = TcpStream::connect_timeout(&address, CONNECT_LIMIT)
        .with_context(|| format!("connecting to {address}"))?;
    let (target, _) = to.accept().with_context(|| format!("accepting at {address}"))?;
    Ok(Stream { source, target })
}

/// Until the connection is shut down.
fn send(mut stream: &TcpStream) {
    static CHUNK: [u8; CHUNK_LEN] = [0; CHUNK_LEN];
    while stream.write(&CHUNK).is_ok_and(|len| len > 0) {}
}

fn receive(mut stream: &TcpStream, received: &AtomicU64) {
    let mut chunk = vec![0; CHUNK_LEN];
    while let Ok(len @ 1..) = stream.read(&mut chunk) {
        received.fetch_add(u64::try_from(len).unwrap_or(0), Ordering::Relaxed);
    }
}
