//! Bulk transfer over TCP, with every byte checked where asked.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::SILENCE_MAX;
use crate::lab::namespace::Namespace;

/// Bytes per read and write.
const CHUNK_LEN: usize = 256 * 1024;

/// Length of the pattern that repeats. A prime, so that a lost or doubled piece of any common size (a
/// segment, a page, a super-frame) shifts the rest against it.
const PATTERN_LEN: usize = 1_000_003;

/// When a transfer ends.
#[derive(Debug, Clone, Copy)]
pub enum Amount {
    /// After so many bytes.
    Bytes(u64),
    /// After so much time.
    For(Duration),
}

/// A transfer over one TCP connection.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// When it ends.
    pub amount: Amount,
    /// Whether the receiver compares every byte with what was sent. Costs a little speed.
    pub verify: bool,
}

/// What was measured, at the receiver.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TransferReport {
    /// Bytes received.
    pub bytes: u64,
    /// From the first byte to the last.
    pub elapsed: Duration,
}

impl TransferReport {
    /// Bits per second.
    pub fn bits_per_s(&self) -> f64 {
        // Exact up to 2⁵³ bytes.
        #[allow(clippy::cast_precision_loss)]
        let bits = self.bytes as f64 * 8.0;
        bits / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl Transfer {
    /// Sends from `source` to `address` in `target`.
    ///
    /// # Errors
    /// When the connection fails or falls silent, or content differs.
    pub fn run(
        &self,
        source: &Namespace,
        target: &Namespace,
        address: IpAddr,
    ) -> io::Result<TransferReport> {
        let listener = target.run(|| TcpListener::bind((address, 0)))??;
        let server = listener.local_addr()?;
        let pattern = pattern();
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&listener, self.verify.then_some(&pattern[..])));
            let sent = self.send(source, server, &pattern);
            if sent.is_err() {
                // The receiver may still wait for a connection; this one ends at once.
                drop(target.run(|| TcpStream::connect_timeout(&server, SILENCE_MAX)));
            }
            let received = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let (sent, received) = (sent?, received?);
            if sent != received.bytes {
                let text = format!("sent {sent} bytes, received {}", received.bytes);
                return Err(io::Error::other(text));
            }
            Ok(received)
        })
    }

    fn send(&self, source: &Namespace, server: SocketAddr, pattern: &[u8]) -> io::Result<u64> {
        let mut stream = source.run(|| TcpStream::connect_timeout(&server, SILENCE_MAX))??;
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        let start = Instant::now();
        let mut sent: u64 = 0;
        loop {
            let left = match self.amount {
                Amount::Bytes(bytes) => bytes - sent,
                Amount::For(time) if start.elapsed() < time => u64::MAX,
                Amount::For(_) => 0,
            };
            if left == 0 {
                return Ok(sent);
            }
            let chunk = chunk_at(pattern, sent);
            let len = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            stream.write_all(&chunk[..len])?;
            sent += len as u64;
        }
    }
}

fn receive(listener: &TcpListener, expected: Option<&[u8]>) -> io::Result<TransferReport> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let mut buffer = vec![0; CHUNK_LEN];
    let mut bytes: u64 = 0;
    let mut first = None;
    loop {
        let len = match stream.read(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let start = *first.get_or_insert_with(Instant::now);
        if len == 0 {
            return Ok(TransferReport { bytes, elapsed: start.elapsed() });
        }
        if let Some(pattern) = expected {
            compare(pattern, bytes, &buffer[..len])?;
        }
        bytes += len as u64;
    }
}

fn compare(pattern: &[u8], offset: u64, received: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < received.len() {
        let expected = chunk_at(pattern, offset + done as u64);
        let len = expected.len().min(received.len() - done);
        if expected[..len] != received[done..done + len] {
            let text = format!("content differs near byte {}", offset + done as u64);
            return Err(io::Error::other(text));
        }
        done += len;
    }
    Ok(())
}

/// The next bytes of the endless repetition of `pattern`, from `offset`.
fn chunk_at(pattern: &[u8], offset: u64) -> &[u8] {
    let start = usize::try_from(offset % pattern.len() as u64).unwrap_or(0);
    &pattern[start..pattern.len().min(start + CHUNK_LEN)]
}

/// Bytes in which no short piece comes twice: the generator of Marsaglia, "Xorshift RNGs" (2003).
fn pattern() -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(PATTERN_LEN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_lost_or_doubled_piece_is_noticed() {
        let pattern = pattern();
        let stream: Vec<u8> = pattern.iter().chain(&pattern).copied().collect();
        assert!(compare(&pattern, 0, &stream).is_ok());
        assert!(compare(&pattern, 777, &stream[777..]).is_ok());

        let mut changed = stream.clone();
        changed[PATTERN_LEN + 5] ^= 1;
        assert!(compare(&pattern, 0, &changed).is_err());
        let mut lost = stream.clone();
        lost.drain(5000..6448);
        assert!(compare(&pattern, 0, &lost).is_err());
        let mut doubled = stream;
        doubled.splice(0..0, pattern[..1448].to_vec());
        assert!(compare(&pattern, 0, &doubled).is_err());
    }
}
