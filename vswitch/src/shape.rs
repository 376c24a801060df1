//! Rate limits of a port, in each direction: a token bucket around its source and its sinks.
//!
//! ```text
//!   from the pod:  tap ─► not read while the bucket is empty ─► switch      the pod's kernel waits, and its TCP with it
//!   to the pod:    switch ─► bucket ─► tap
//!                              └─► queue, a tenth of a second long ─► tap   and what does not fit is dropped
//! ```
//!
//! The bucket may be overdrawn by one batch and is then waited for, so that a super-frame passes whole, and the rate
//! over time is exact. Bytes are those of IP packets ([`cost`]).
//!
//! What is limited costs a short lock per frame, which its source and its sinks share. A port without limits has no
//! such thing around it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::frame::{Batch, Frame, Gso, GsoKind, Meta};
use crate::port::{Context, PortIx, Sink, Source};
use crate::verdict::Reason;
use crate::wire::{ETHERNET_LEN, ipv4, ipv6, udp};

/// Lowest rate, in bits per second. Below, a single super-frame would take minutes.
pub const RATE_MIN_BPS: u64 = 8_000;

/// Highest rate, in bits per second; more than a port carries.
pub const RATE_MAX_BPS: u64 = 1_000_000_000_000;

/// Longest burst, in time at the rate: more would be no limit to anything that is measured.
const BURST_MAX: Duration = Duration::from_secs(1);

/// The burst of a rate that was given none.
const BURST_DEFAULT: Duration = Duration::from_millis(10);

/// Shortest burst: what a worker that is woken late must be able to catch up on, or the rate would not be reached.
const BURST_MIN: Duration = Duration::from_millis(5);

/// How much of what came late is made up for: a worker may be woken so long after the time that it asked for.
const LATE_MAX: Duration = Duration::from_millis(50);

/// Shortest wait: small packets are let through some at a time, not each after a wait of its own.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// How long the queue to the pod is, in time at the rate; and its bounds in bytes: two super-frames, and what a port
/// may take of memory.
const QUEUE: Duration = Duration::from_millis(100);
const QUEUE_LEN_MIN: u64 = 128 << 10;
const QUEUE_LEN_MAX: u64 = 4 << 20;

/// How long the end of a port waits for its queue to be written. A worker that takes longer hangs.
const RELEASE_MAX: Duration = Duration::from_millis(100);

/// How long a source waits that found no buffer for what it has queued.
const BUFFER_WAIT: Duration = Duration::from_millis(1);

/// A rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second, from [`RATE_MIN_BPS`] to [`RATE_MAX_BPS`].
    pub rate_bps: u64,
    /// Bits that may pass at once after a pause. 0 stands for 10 ms at the rate; it is at least 5 ms' and at most
    /// one second's.
    pub burst_bits: u64,
}

/// The limits of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// To the pod (`ingress` in CNI and Kubernetes).
    pub to_pod: Option<Rate>,
    /// From the pod (`egress`).
    pub from_pod: Option<Rate>,
}

impl Limits {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.to_pod.is_none() && self.from_pod.is_none()
    }
}

/// What limits a port. Its source, its sinks and whoever changes the limits have one in common.
#[derive(Debug, Clone)]
pub struct Shaper(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Runs out when a bucket has enough again.
    timer: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    to_pod: Option<Bucket>,
    from_pod: Option<Bucket>,
    queue: VecDeque<Queued>,
    /// Bytes in the queue.
    queued_len: u64,
    /// Buffers that have been in the queue, for those to come.
    spare: Vec<Vec<u8>>,
}

/// A frame that waits.
#[derive(Debug)]
struct Queued {
    meta: Meta,
    data: Vec<u8>,
}

impl Shaper {
    /// Makes the limits of one port.
    ///
    /// # Errors
    /// When the kernel gives no timer.
    pub fn new(limits: Limits) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let state = State {
            limits,
            to_pod: None,
            from_pod: None,
            queue: VecDeque::new(),
            queued_len: 0,
            spare: Vec::new(),
        };
        let shaper = Self(Arc::new(Shared { timer, state: Mutex::new(state) }));
        shaper.set(limits)?;
        Ok(shaper)
    }

    /// Puts other limits in force, at once.
    ///
    /// # Errors
    /// When the timer cannot be set.
    pub fn set(&self, limits: Limits) -> io::Result<()> {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.limits = limits;
        state.to_pod = limits.to_pod.map(|rate| Bucket::new(rate, now));
        state.from_pod = limits.from_pod.map(|rate| Bucket::new(rate, now));
        drop(state);
        // Whatever waits is looked at with the new ones.
        self.0.wake_in(Duration::ZERO)
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.0.lock().limits
    }

    /// Lets go of all that waits: takes the limits away, and waits a moment for the worker to write it.
    ///
    /// # Errors
    /// When the timer cannot be set.
    pub fn release(&self) -> io::Result<()> {
        self.set(Limits::default())?;
        let deadline = Instant::now() + RELEASE_MAX;
        while !self.0.lock().queue.is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The receiving half: reads from `inner` as fast as is allowed, and writes to `writer` what had to wait.
    ///
    /// # Errors
    /// When the kernel cannot watch both the device and the timer.
    pub fn source(
        &self,
        inner: Box<dyn Source>,
        writer: Box<dyn Sink>,
    ) -> io::Result<impl Source + use<>> {
        let events = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&events, inner.fd(), EventData::new_u64(0), EventFlags::IN)?;
        epoll::add(&events, self.0.timer.as_fd(), EventData::new_u64(1), EventFlags::IN)?;
        let shared = Arc::clone(&self.0);
        Ok(ShapedSource { shared, events, inner, writer, is_paused: false })
    }

    /// A sending half.
    pub fn sink(&self, port: PortIx, inner: Box<dyn Sink>) -> impl Sink + use<> {
        ShapedSink { shared: Arc::clone(&self.0), port, inner }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_in(&self, wait: Duration) -> io::Result<()> {
        // Zero would stop the timer.
        let wait = wait.max(Duration::from_nanos(1));
        let it_value =
            Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }

    fn clear_timer(&self) -> io::Result<()> {
        match rustix::io::read(&self.timer, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[derive(Debug)]
struct ShapedSource {
    shared: Arc<Shared>,
    /// The device, while it may be read, and the timer.
    events: OwnedFd,
    inner: Box<dyn Source>,
    writer: Box<dyn Sink>,
    /// Whether the device is not watched at present.
    is_paused: bool,
}

impl Source for ShapedSource {
    fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    fn receive(&mut self, context: &mut Context<'_>, batch: &mut Batch) -> io::Result<()> {
        let now = Instant::now();
        self.shared.clear_timer()?;
        let first = batch.len();
        let drained = self.drain(context, now);
        let mut wait = self.shared.lock().from_pod.as_mut().and_then(|bucket| bucket.wait(now));
        let mut received = Ok(());
        if wait.is_none() {
            received = self.inner.receive(context, batch);
            let len = batch[first..].iter().map(|frame| cost(&frame.meta, frame.data())).sum();
            wait = self.shared.lock().from_pod.as_mut().and_then(|bucket| {
                bucket.take(len);
                bucket.wait(now)
            });
        }
        self.pause(wait.is_some())?;
        // With the lock held, so that a sink that has just queued something is not overruled.
        let state = self.shared.lock();
        let queued = (!state.queue.is_empty()).then(|| drained.unwrap_or(Duration::ZERO));
        if let Some(wait) = wait.into_iter().chain(queued).min() {
            self.shared.wake_in(wait)?;
        }
        drop(state);
        received
    }

    fn check(&self) -> io::Result<()> {
        self.inner.check()
    }

    fn pending(&self) -> bool {
        !self.is_paused && self.inner.pending()
    }
}

impl ShapedSource {
    /// Writes what has waited for long enough. Returns when there will be more to write.
    fn drain(&mut self, context: &mut Context<'_>, now: Instant) -> Option<Duration> {
        // Held until the end: what a worker sends now must not get before what has waited.
        let mut state = self.shared.lock();
        let mut wait = None;
        while !state.queue.is_empty() {
            wait = state.to_pod.as_mut().and_then(|bucket| bucket.wait(now));
            if wait.is_some() {
                break;
            }
            let Some(mut frame) = context.pool.take() else {
                wait = Some(BUFFER_WAIT);
                break;
            };
            let Some(Queued { meta, data }) = state.queue.pop_front() else { break };
            state.queued_len -= data.len() as u64;
            // Its room is that of every frame.
            let fits = frame.append(&data);
            debug_assert!(fits, "it was a frame before");
            frame.meta = meta;
            if let Some(bucket) = &mut state.to_pod {
                bucket.take(cost(&meta, &data));
            }
            state.spare.push(data);
            self.writer.send(context, frame);
        }
        self.writer.flush(context);
        if state.queue.is_empty() {
            state.spare.clear();
        }
        wait
    }

    /// Stops or starts watching the device.
    fn pause(&mut self, pause: bool) -> io::Result<()> {
        if pause != self.is_paused {
            let flags = if pause { EventFlags::empty() } else { EventFlags::IN };
            epoll::modify(&self.events, self.inner.fd(), EventData::new_u64(0), flags)?;
            self.is_paused = pause;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct ShapedSink {
    shared: Arc<Shared>,
    port: PortIx,
    inner: Box<dyn Sink>,
}

impl Sink for ShapedSink {
    fn send(&mut self, context: &mut Context<'_>, frame: Frame) {
        let mut state = self.shared.lock();
        let len = frame.len() as u64;
        let passes = state.queue.is_empty()
            && state.to_pod.as_mut().is_none_or(|bucket| {
                let may_pass = bucket.wait(Instant::now()).is_none();
                if may_pass {
                    bucket.take(cost(&frame.meta, frame.data()));
                }
                may_pass
            });
        if passes {
            drop(state);
            return self.inner.send(context, frame);
        }
        let room = state.to_pod.as_ref().map_or(QUEUE_LEN_MAX, Bucket::queue_len);
        if state.queued_len + len > room {
            drop(state);
            return context.finish_dropped(self.port, Reason::RateLimit, frame);
        }
        let was_empty = state.queue.is_empty();
        let mut data = state.spare.pop().unwrap_or_default();
        data.clear();
        data.extend_from_slice(frame.data());
        state.queue.push_back(Queued { meta: frame.meta, data });
        state.queued_len += len;
        // The source finds out for how long. A timer that cannot be set leaves it to the next frame.
        if was_empty && let Err(error) = self.shared.wake_in(Duration::ZERO) {
            debug_assert!(false, "the timer cannot be set: {error}");
        }
        drop(state);
        context.pool.put(frame);
    }

    fn flush(&mut self, context: &mut Context<'_>) {
        self.inner.flush(context);
    }
}

/// What a frame takes of a bucket: the bytes of its IP packets, without the Ethernet header. Datagrams that travel as one
/// super-frame count with a header each, as they were sent; a TCP super-frame with its one, so that a stream gets its
/// rate whatever its segments are.
fn cost(meta: &Meta, data: &[u8]) -> u64 {
    let ip_len = match data.get(ETHERNET_LEN).map(|byte| byte >> 4) {
        Some(6) => ipv6::HEADER_LEN,
        Some(_) | None => ipv4::HEADER_LEN,
    };
    let more = match meta.gso {
        Some(Gso { kind: GsoKind::Udp, segments, .. }) => u64::from(segments.saturating_sub(1)),
        Some(Gso { kind: GsoKind::Tcp4 | GsoKind::Tcp6, .. }) | None => 0,
    };
    data.len().saturating_sub(ETHERNET_LEN) as u64 + more * (ip_len + udp::HEADER_LEN) as u64
}

/// A token bucket that may be overdrawn: whoever finds anything in it takes what he needs.
#[derive(Debug, Clone, PartialEq)]
struct Bucket {
    bytes_per_s: f64,
    burst: f64,
    /// Negative while it is overdrawn.
    level: f64,
    filled: Instant,
    /// Whether somebody was told to wait when it was last looked at. What comes in until then is his, though it be
    /// more than a burst: the burst is for who pauses, not for who is woken late.
    is_awaited: bool,
}

impl Bucket {
    #[allow(clippy::cast_precision_loss)] // Rates and bursts are far below 2^52.
    fn new(rate: Rate, now: Instant) -> Self {
        let bytes_per_s = rate.rate_bps.clamp(RATE_MIN_BPS, RATE_MAX_BPS) as f64 / 8.0;
        let burst = match rate.burst_bits {
            0 => bytes_per_s * BURST_DEFAULT.as_secs_f64(),
            bits => {
                let [min, max] =
                    [BURST_MIN, BURST_MAX].map(|time| bytes_per_s * time.as_secs_f64());
                (bits as f64 / 8.0).clamp(min, max)
            }
        };
        Self { bytes_per_s, burst, level: burst, filled: now, is_awaited: false }
    }

    /// How long until something may pass; `None` when it may now.
    fn wait(&mut self, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.filled);
        let late = if self.is_awaited { self.bytes_per_s * LATE_MAX.as_secs_f64() } else { 0.0 };
        let level = self.level + since.as_secs_f64() * self.bytes_per_s;
        // What was made up for is taken in several goes.
        let is_pause = !self.is_awaited && since >= BURST_MIN;
        let kept = if is_pause { self.level.min(self.burst) } else { self.level };
        self.level = level.min(self.burst.max(late)).max(kept);
        self.filled = self.filled.max(now);
        self.is_awaited = self.level < 0.0;
        let missing = || Duration::from_secs_f64(-self.level / self.bytes_per_s);
        self.is_awaited.then(|| missing().max(WAIT_MIN))
    }

    #[allow(clippy::cast_precision_loss)] // A batch is far below 2^52 bytes.
    fn take(&mut self, len: u64) {
        self.level -= len as f64;
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Within the bounds.
    fn queue_len(&self) -> u64 {
        let len = self.bytes_per_s * QUEUE.as_secs_f64();
        (len as u64).clamp(QUEUE_LEN_MIN, QUEUE_LEN_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(rate_bps: u64, burst_bits: u64, now: Instant) -> Bucket {
        Bucket::new(Rate { rate_bps, burst_bits }, now)
    }

    #[test]
    fn over_time_the_rate_is_exact_whatever_the_frames() {
        let start = Instant::now();
        for len in [64, 1500, 64 << 10] {
            let mut bucket = bucket(80_000_000, 800_000, start);
            let (mut now, mut passed) = (start, 0_u64);
            while now < start + Duration::from_secs(10) {
                match bucket.wait(now) {
                    Some(wait) => now += wait.max(Duration::from_nanos(100)),
                    None => {
                        bucket.take(len);
                        passed += len;
                    }
                }
            }
            // 10 MB a second, and the burst of 100 kB and the last frame once.
            let expected = 100_000_000 + 100_000;
            assert!(passed.abs_diff(expected) <= len + 10_000, "{len}: {passed}");
        }
    }

    #[test]
    fn who_waits_loses_nothing_to_a_late_wake_up_and_who_pauses_gets_a_burst() {
        let start = Instant::now();
        // A burst of 5 ms, and wake-ups that are 20 ms late.
        let mut bucket = bucket(80_000_000, 8, start);
        let (mut now, mut passed) = (start, 0_u64);
        while now < start + Duration::from_secs(10) {
            match bucket.wait(now) {
                Some(wait) => now += wait + Duration::from_millis(20),
                None => {
                    bucket.take(10_000);
                    passed += 10_000;
                }
            }
        }
        assert!(passed.abs_diff(100_000_000) <= 500_000, "{passed}");

        assert_eq!(bucket.wait(now), None);
        now += Duration::from_secs(1);
        assert_eq!(bucket.wait(now), None);
        assert!((bucket.level - 50_000.0).abs() < 1.0, "a burst: {}", bucket.level);
    }

    #[test]
    fn datagrams_count_alike_alone_and_together_and_a_stream_by_what_it_carries() {
        let frame = |version: u8, headers: usize, payload: usize| {
            let mut data = vec![0; 14 + headers + payload];
            data[14] = version << 4;
            data
        };
        let gso =
            |kind, segments| Meta { gso: Some(Gso { kind, size: 1200, segments }), ..Meta::EMPTY };
        for (version, headers) in [(4, 28), (6, 48)] {
            let alone = cost(&Meta::EMPTY, &frame(version, headers, 1200));
            assert_eq!(alone, headers as u64 + 1200);
            let together = cost(&gso(GsoKind::Udp, 10), &frame(version, headers, 12_000));
            assert_eq!(together, 10 * alone);
        }
        assert_eq!(cost(&gso(GsoKind::Tcp4, 10), &frame(4, 40, 12_000)), 12_040);
        assert_eq!(cost(&Meta::EMPTY, &[]), 0);
    }

    #[test]
    fn a_burst_has_its_bounds() {
        let now = Instant::now();
        let burst = |bits| bucket(8_000_000, bits, now).burst;
        assert!((burst(0) - 10_000.0).abs() < 1.0, "10 ms at the rate");
        assert!((burst(800_000) - 100_000.0).abs() < 1.0);
        assert!((burst(8) - 5_000.0).abs() < 1.0, "5 ms at the rate");
        // What runtimes give that were told none.
        assert!((burst(2_147_483_647) - 1_000_000.0).abs() < 1.0, "one second");
    }

    #[test]
    fn a_queue_is_a_tenth_of_a_second_within_bounds() {
        let now = Instant::now();
        assert_eq!(bucket(80_000_000, 0, now).queue_len(), 1_000_000);
        assert_eq!(bucket(1_000_000, 0, now).queue_len(), QUEUE_LEN_MIN);
        assert_eq!(bucket(10_000_000_000, 0, now).queue_len(), QUEUE_LEN_MAX);
    }

    #[test]
    fn a_clock_that_stands_still_gives_nothing() {
        let now = Instant::now();
        let mut bucket = bucket(8_000_000, 0, now);
        bucket.take(1_010_000);
        assert_eq!(bucket.wait(now), Some(Duration::from_secs(1)));
        assert_eq!(bucket.wait(now), Some(Duration::from_secs(1)));
        assert_eq!(bucket.wait(now + Duration::from_secs(1)), None);
    }
}
