//! The tunnel as the workers see it: [`Source`]s of frames from other nodes, and an [`Uplink`] per worker
//! to send frames to them.
//!
//! [`Encapsulator`] and [`Decapsulator`] decide what is sent and what is believed; here they are tied to
//! [`crate::udp`]'s sockets.

use std::hash::BuildHasher;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use foldhash::fast::FixedState;
use vswitch::frame::{BATCH_MAX, Batch, Frame};
use vswitch::port::{Context, NodeIx, Source, Uplink};
use vswitch::tables::Tables;
use vswitch::verdict::Reason;
use vswitch::wire::{self, Fragment, Headers, Ip, Network, Transport};

use crate::buffers::Buffers;
use crate::decap::{Decapsulator, OFFENCES_MAX, Offence};
use crate::encap::{Encapsulator, Transmit};
use crate::path::activity::Activity;
use crate::path::monitor::ProbePort;
use crate::send_offload::{Fallbacks, SendOffload};
use crate::udp::{self, Capabilities, ProbeSocket, ReceiveSocket, SendSocket, Sent};
use crate::vxlan::Vni;

/// Source sockets per worker: enough that a few flows rarely share a queue on the way, and few enough
/// that runs of small datagrams stay long.
const SOURCES: usize = 8;

/// Receiving sockets. A flow waits for what came before it to the same socket, so with more of them it waits
/// less often for a larger one; but each costs system calls of its own.
const RECEIVERS: usize = 8;

/// Bytes that one batch takes before it is handed on; see the like limit of ports.
const BATCH_BYTES_MAX: usize = 64 << 10;

/// Reports of narrow paths that the control side has not taken yet; more of them are not kept.
const NARROW_MAX: usize = 64;

/// What a tunnel needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelConfig {
    /// This node's address on the underlay.
    pub underlay: IpAddr,
    /// The UDP port that VXLAN is received on.
    pub port: u16,
    /// The VXLAN network identifier.
    pub vni: Vni,
    /// How many workers send.
    pub workers: usize,
    /// Longest IP packet that pods send.
    pub mtu: u16,
}

/// Why a tunnel could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The kernel could not be probed on this address.
    #[error("cannot use {underlay} as the underlay address: {source}{}", address_hint(source))]
    Probe {
        /// The address.
        underlay: IpAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The receive socket could not be bound.
    #[error("cannot receive VXLAN on {address}: {source}{}", port_hint(source))]
    Bind {
        /// The address and port.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A send socket could not be bound.
    #[error("cannot open a socket to send VXLAN from {underlay}: {source}{}", address_hint(source))]
    BindSource {
        /// The address.
        underlay: IpAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

fn address_hint(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::AddrNotAvailable {
        " (no interface of this network namespace has it)"
    } else {
        ""
    }
}

fn port_hint(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::AddrInUse {
        " (another program, or a kernel vxlan device, has this UDP port: `ss -ulnp` and `ip -d link show \
         type vxlan` tell which; remove it, or set another `vxlan_port` on this node)"
    } else {
        address_hint(source)
    }
}

/// An open tunnel, in parts.
#[derive(Debug)]
pub struct Tunnel {
    /// The receiving halves.
    pub sources: Vec<TunnelSource>,
    /// The sending halves, one per worker.
    pub uplinks: Vec<TunnelUplink>,
    /// What it tells the control side.
    pub status: TunnelStatus,
}

/// What a tunnel tells the control side. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TunnelStatus {
    opened: Instant,
    capabilities: Arc<Capabilities>,
    fallbacks: Arc<[Arc<Fallbacks>]>,
    buffers: Arc<Buffers>,
    offences: Arc<ArrayQueue<Offence>>,
    probes: ProbePort,
}

impl Tunnel {
    /// Opens the sockets in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`TunnelError`], whose text says what to do where that is known.
    pub fn open(config: &TunnelConfig) -> Result<Self, TunnelError> {
        let underlay = config.underlay;
        let capabilities =
            udp::probe(underlay).map_err(|source| TunnelError::Probe { underlay, source })?;
        Self::open_with(config, capabilities)
    }

    /// The same, with no more of the kernel's offers than `capabilities` has.
    ///
    /// # Errors
    /// As [`Tunnel::open`].
    pub fn open_with(
        config: &TunnelConfig,
        capabilities: Capabilities,
    ) -> Result<Self, TunnelError> {
        let TunnelConfig { underlay, port, vni, workers, mtu } = *config;
        let address = SocketAddr::new(underlay, port);
        let sockets = ReceiveSocket::bind_group(address, RECEIVERS)
            .map_err(|source| TunnelError::Bind { address, source })?;
        let receivers = sockets.iter().map(ReceiveSocket::watch).collect();
        let offences = Arc::new(ArrayQueue::new(OFFENCES_MAX));
        let decapsulator = Decapsulator::new(vni, mtu, Arc::clone(&offences));

        let narrow = Arc::new(ArrayQueue::new(NARROW_MAX));
        let activity = Arc::new(Activity::default());
        let mut senders = Vec::new();
        let mut probe_sockets = Vec::new();
        let mut fallbacks = Vec::with_capacity(workers);
        let mut uplinks = Vec::with_capacity(workers);
        for _ in 0..workers {
            let mut sockets = Vec::with_capacity(SOURCES);
            for _ in 0..SOURCES {
                let socket = SendSocket::bind(underlay)
                    .map_err(|source| TunnelError::BindSource { underlay, source })?;
                senders.push(socket.watch());
                probe_sockets.push(socket.probe_socket());
                sockets.push(socket);
            }
            let encapsulator = Encapsulator::new(vni, capabilities.segments_max);
            let offload = SendOffload::new(&capabilities);
            fallbacks.push(offload.fallbacks());
            let sender = Sender { sockets, offload, narrow: Arc::clone(&narrow) };
            uplinks.push(TunnelUplink { encapsulator, sender, activity: Arc::clone(&activity) });
        }
        let probes = ProbePort {
            underlay,
            vni,
            sockets: probe_sockets.into(),
            replies: Arc::clone(decapsulator.replies()),
            narrow,
            activity,
        };
        let source = |socket| TunnelSource {
            socket,
            decapsulator: decapsulator.another(),
            sockets: Arc::clone(&probes.sockets),
            next_socket: 0,
        };
        let sources = sockets.into_iter().map(source).collect();
        let granted = (capabilities.receive_buffer, capabilities.send_buffer);
        let status = TunnelStatus {
            opened: Instant::now(),
            capabilities: Arc::new(capabilities),
            fallbacks: fallbacks.into(),
            buffers: Arc::new(Buffers::new(receivers, senders, granted)),
            offences,
            probes,
        };
        Ok(Self { sources, uplinks, status })
    }
}

impl TunnelStatus {
    /// What the kernel offered when the tunnel was opened.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// When it was opened.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Where sends are not merged although the kernel can, per worker.
    pub fn fallbacks(&self) -> &[Arc<Fallbacks>] {
        &self.fallbacks
    }

    /// The sockets' buffers.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// What probes use of the tunnel.
    pub fn probes(&self) -> &ProbePort {
        &self.probes
    }

    /// The next datagram that was not acceptable.
    pub fn take_offence(&self) -> Option<Offence> {
        self.offences.pop()
    }
}

/// A receiving half of a tunnel.
#[derive(Debug)]
pub struct TunnelSource {
    socket: ReceiveSocket,
    decapsulator: Decapsulator,
    /// For replies to probes, in turn.
    sockets: Arc<[ProbeSocket]>,
    next_socket: usize,
}

impl Source for TunnelSource {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    fn receive(&mut self, context: &mut Context<'_>, batch: &mut Batch) -> io::Result<()> {
        let received = self.receive_batch(context, batch);
        // Also what came before an error is to be finished and counted.
        self.decapsulator.finish(context, batch);
        if self.decapsulator.has_probes() {
            self.answer_probes(context);
        }
        received
    }

    fn pending(&self) -> bool {
        self.socket.pending()
    }

    fn note_foreign(&mut self, tables: &Tables, node: NodeIx, reason: Reason) {
        self.decapsulator.note_foreign(tables, node, reason);
    }
}

impl TunnelSource {
    #[cold]
    fn answer_probes(&mut self, context: &Context<'_>) {
        let Self { decapsulator, sockets, next_socket, .. } = self;
        decapsulator.answer_probes(Instant::now(), context, |to, datagram| {
            *next_socket = next_socket.wrapping_add(1);
            let socket = sockets.get(*next_socket % sockets.len().max(1));
            // The workers' sockets are closed, then so is this one.
            let refused = Sent { refused: 1, ..Sent::default() };
            socket.and_then(|socket| socket.send(to, datagram)).unwrap_or(refused)
        });
    }

    /// One message can add as many frames as it holds datagrams, so the batch may end up longer than
    /// [`BATCH_MAX`]; a message for which the buffers may not suffice is left for the next batch.
    fn receive_batch(&mut self, context: &mut Context<'_>, batch: &mut Batch) -> io::Result<()> {
        let mut taken = 0;
        while batch.len() < BATCH_MAX && taken < BATCH_BYTES_MAX {
            if !batch.is_empty() && context.pool.available() < udp::MESSAGE_DATAGRAMS_MAX {
                break;
            }
            let Some(udp::Received { from, stride, bytes }) = self.socket.receive()? else {
                break;
            };
            taken += bytes.len();
            self.decapsulator.push(from, stride, bytes, context, batch);
            if self.socket.is_drained() {
                break;
            }
        }
        Ok(())
    }
}

/// The sending half of a tunnel, of one worker.
#[derive(Debug)]
pub struct TunnelUplink {
    encapsulator: Encapsulator,
    sender: Sender,
    activity: Arc<Activity>,
}

/// The sockets of one worker, and what it has learnt from them.
#[derive(Debug)]
struct Sender {
    sockets: Vec<SendSocket>,
    offload: SendOffload,
    narrow: Arc<ArrayQueue<SocketAddr>>,
}

impl Uplink for TunnelUplink {
    fn send(&mut self, context: &mut Context<'_>, node: NodeIx, frame: Frame) {
        if let Err(reason) = self.encapsulate(context, node, &frame) {
            context.counters.count_drop(reason, frame.packets());
        }
        context.pool.put(frame);
    }

    fn flush(&mut self, context: &mut Context<'_>) {
        let Self { encapsulator, sender, .. } = self;
        encapsulator.flush(&mut |transmit| sender.send(context, transmit));
    }
}

impl TunnelUplink {
    fn encapsulate(
        &mut self,
        context: &Context<'_>,
        node: NodeIx,
        frame: &Frame,
    ) -> Result<(), Reason> {
        let peer = context.tables.peer(node).ok_or(Reason::NodeGone)?;
        let headers = wire::parse(frame.data())?;
        let Self { encapsulator, sender, activity } = self;
        activity.mark(node);
        let socket_ix = source_of(&headers, sender.sockets.len());
        encapsulator.push(peer, socket_ix, frame, &headers, &mut |transmit| {
            sender.send(context, transmit);
        })
    }
}

impl Sender {
    fn send(&mut self, context: &Context<'_>, transmit: Transmit<'_>) {
        let Transmit { to, socket_ix, segment_len, bytes, .. } = transmit;
        let Self { sockets, offload, narrow } = self;
        let sent = sockets[socket_ix].send(offload, to, segment_len, bytes, Instant::now);
        sent.count(context.counters);
        if sent.too_long > 0 {
            // Where the queue is full, the control side has enough to look at, and the next loss tells.
            let _told_with_the_next = narrow.push(to);
        }
    }
}

/// Chooses the source socket by the flow, so that a flow's packets take one way and keep their order.
/// Fragments have ports in the first only, so for all of them the addresses decide.
pub fn source_of(headers: &Headers, sockets: usize) -> usize {
    let Network::Ip(ip) = headers.network else {
        return 0;
    };
    let Ip { source, destination, protocol, .. } = ip;
    let ports = match (ip.fragment, ip.transport) {
        (
            Fragment::Whole,
            Transport::Tcp { source, destination, .. } | Transport::Udp { source, destination },
        ) => (source, destination),
        _ => (0, 0),
    };
    let hash = FixedState::with_seed(0).hash_one((source, destination, protocol, ports));
    usize::try_from(hash % sockets.max(1) as u64).unwrap_or(0)
}
