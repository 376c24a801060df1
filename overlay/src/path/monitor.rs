//! The task that probes: [`Paths`] with the tunnel's sockets, a clock and the kernel.
//!
//! It shares no lock with the workers, and with the control side only one that is held for the length of one turn.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use tokio::sync::{Notify, mpsc};
use vswitch::counters::WorkerCounters;
use vswitch::mac::Mac;
use vswitch::wire::ETHERNET_LEN;

use super::activity::Activity;
use super::kernel::path_mtu;
use super::message::{self, Message, PROBE_LEN_MAX};
use super::peers::{Outcome, PathTarget, Paths, ProbeCounters};
use super::probe::{Finding, PathReport};
use super::responder::ReplyQueue;
use crate::node_id::NodeId;
use crate::udp::{ProbeSocket, Sent};
use crate::vxlan::{self, HEADER_LEN, Vni};

/// Least pause between two turns, so that replies that come together are taken together.
const TURN_PAUSE: Duration = Duration::from_millis(20);

/// How often the kernel is asked again about paths that it said are narrow.
const KERNEL_PAUSE: Duration = Duration::from_secs(1);

/// Findings that wait to be read.
const FINDINGS_MAX: usize = 1024;

/// What probes use of an open tunnel. Once that is closed, nothing can be sent any more.
#[derive(Debug, Clone)]
pub struct ProbePort {
    /// This node's address on the underlay.
    pub underlay: IpAddr,
    /// The VXLAN network identifier.
    pub vni: Vni,
    /// The sockets that the workers send pods' traffic with; probes take them in turn.
    pub sockets: Arc<[ProbeSocket]>,
    /// Replies that the workers received.
    pub replies: Arc<ReplyQueue>,
    /// Destinations for which the kernel refused a datagram as too long.
    pub narrow: Arc<ArrayQueue<SocketAddr>>,
    /// Which nodes the workers send to.
    pub activity: Arc<Activity>,
}

/// Probes the paths to all nodes. Cheap to clone.
#[derive(Clone)]
pub struct PathMonitor {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// There are other nodes, or another tunnel.
    changed: Notify,
    findings: mpsc::Sender<(NodeId, Finding)>,
}

struct State {
    paths: Paths,
    own_mac: Mac,
    port: Option<ProbePort>,
    counters: Arc<CachePadded<WorkerCounters>>,
    buffer: Box<[u8]>,
    next_socket: usize,
    next_kernel: Instant,
}

impl fmt::Debug for PathMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PathMonitor").finish_non_exhaustive()
    }
}

impl PathMonitor {
    /// Makes one for the tunnel endpoint `own_mac`, and gives what it will find out. It counts what it sends in
    /// `counters`, of which nobody else is a writer. [`PathMonitor::run`] does the work.
    pub fn new(
        own_mac: Mac,
        counters: Arc<CachePadded<WorkerCounters>>,
        seed: u64,
    ) -> (Self, mpsc::Receiver<(NodeId, Finding)>) {
        let now = Instant::now();
        let (findings, found) = mpsc::channel(FINDINGS_MAX);
        let state = State {
            paths: Paths::new(seed, now),
            own_mac,
            port: None,
            counters,
            buffer: vec![0; HEADER_LEN + PROBE_LEN_MAX].into_boxed_slice(),
            next_socket: 0,
            next_kernel: now,
        };
        let shared = Shared { state: Mutex::new(state), changed: Notify::new(), findings };
        (Self { shared: Arc::new(shared) }, found)
    }

    /// Takes up all nodes that can be sent to, in the order in which the switch's tables have them.
    pub fn set_targets(&self, targets: Vec<PathTarget>) {
        self.lock().paths.set_targets(targets, Instant::now());
        self.shared.changed.notify_one();
    }

    /// Takes up an open tunnel, or that there is none.
    pub fn set_port(&self, port: Option<ProbePort>) {
        self.lock().port = port;
        self.shared.changed.notify_one();
    }

    /// Longest outer IP packet towards the node; `None` if it is none that can be sent to.
    pub fn mtu(&self, id: NodeId) -> Option<u16> {
        self.lock().paths.mtu(id)
    }

    /// What is known of the path to each node.
    pub fn reports(&self) -> BTreeMap<NodeId, PathReport> {
        self.lock().paths.reports()
    }

    /// What probes have come to.
    pub fn counters(&self) -> ProbeCounters {
        self.lock().paths.counters()
    }

    /// Probes for ever.
    pub async fn run(self) {
        loop {
            let (next, replies) = self.turn();
            let next = next.unwrap_or_else(|| Instant::now() + KERNEL_PAUSE);
            let replied = async {
                match &replies {
                    Some(replies) => replies.notify.notified().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = replied => {}
                () = self.shared.changed.notified() => {}
            }
            tokio::time::sleep(TURN_PAUSE).await;
        }
    }

    /// Does what there is to do, and returns when there will be more, and who tells if that is sooner.
    fn turn(&self) -> (Option<Instant>, Option<Arc<ReplyQueue>>) {
        let mut state = self.lock();
        let Some(port) = state.port.clone() else {
            return (None, None);
        };
        state.turn(&port, Instant::now());
        while let Some(finding) = state.paths.poll_finding() {
            if let Err(error) = self.shared.findings.try_send(finding) {
                tracing::debug!(%error, "nobody takes what was found out about paths");
            }
        }
        (state.paths.poll_timeout(), Some(port.replies))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn turn(&mut self, port: &ProbePort, now: Instant) {
        while let Some(reply) = port.replies.pop() {
            self.paths.handle_reply(&reply);
        }
        while let Some(to) = port.narrow.pop() {
            self.ask_kernel(port, to, now);
        }
        if self.next_kernel <= now {
            self.next_kernel = now + KERNEL_PAUSE;
            let narrow: Vec<_> = self.paths.narrow_by_kernel().collect();
            for to in narrow {
                self.ask_kernel(port, to, now);
            }
        }
        let Self { paths, own_mac, counters, buffer, next_socket, .. } = self;
        let mut refused = Vec::new();
        let is_active = |node| port.activity.take(node);
        paths.turn(now, is_active, |target, message| {
            let datagram = write(buffer, port.vni, *own_mac, target, message);
            *next_socket = next_socket.wrapping_add(1);
            let socket = port.sockets.get(*next_socket % port.sockets.len().max(1));
            // A tunnel that is just being closed has no room.
            let full = Sent { full: 1, ..Sent::default() };
            let sent = socket.and_then(|socket| socket.send(target.to, datagram)).unwrap_or(full);
            counters.originated.add(1);
            sent.count(counters);
            if sent.too_long > 0 {
                refused.push(target.to);
            }
            if sent.full > 0 { Outcome::NoRoom } else { Outcome::Sent }
        });
        for to in refused {
            self.ask_kernel(port, to, now);
        }
    }

    /// Takes up what the kernel knows of a path. When there is no way at the moment, nothing is known.
    fn ask_kernel(&mut self, port: &ProbePort, to: SocketAddr, now: Instant) {
        if let Ok(mtu) = path_mtu(port.underlay, to) {
            self.paths.handle_kernel(to.ip(), mtu, now);
        }
    }
}

/// Writes a probe with its VXLAN header to the beginning of `buffer`.
fn write<'a>(
    buffer: &'a mut [u8],
    vni: Vni,
    own_mac: Mac,
    target: &PathTarget,
    message: &Message,
) -> &'a [u8] {
    debug_assert!(usize::from(message.len) >= ETHERNET_LEN);
    let (header, frame) = buffer.split_at_mut(HEADER_LEN);
    header.copy_from_slice(&vxlan::encode(vni));
    message::write(&mut frame[..message.len.into()], target.vtep_mac, own_mac, message);
    &buffer[..HEADER_LEN + usize::from(message.len)]
}
