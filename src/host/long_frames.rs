//! Whether the kernel takes super-frames that are longer than an IP packet can say ("BIG TCP"): found out by
//! trying, because a kernel that does not take them drops them without a word.
//!
//! ```text
//!  a network namespace of its own
//!  ┌───────────────────────────────────┐
//!  │  TCP, and nobody who listens      │
//!  │       TAP, 192.0.2.1, 2001:db8::1 │
//!  └────────▲──────────────│───────────┘
//!           │ a chain      │ RST
//!           │ a byte       ▼ RST
//! ```
//!
//! A segment without ACK that nobody listens for is answered by a reset that acknowledges its whole length (RFC
//! 9293 §3.10.7.1), so the answer tells what has arrived. The kernel answers in order: once the byte behind the
//! long super-frame is answered, that one was answered before, or never will be. No time is lost by waiting.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use cni::link::Netlink;
use cni::netns::{Netns, NetnsError};
use ipnetwork::IpNetwork;
use rustix::event::{PollFd, PollFlags, Timespec};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, IpRepr, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber,
};
use vswitch::counters::WorkerCounters;
use vswitch::frame::{Batch, Checksum, Frame, Gso, GsoKind, Pool};
use vswitch::mac::Mac;
use vswitch::offload::{CHAIN_MAX, LongFrames};
use vswitch::port::{Context, PortIx, Sink, Source};
use vswitch::tables::{Node, Tables, TablesBuilder};
use vswitch::tap::Tap;
use vswitch::wire::tcp::flag::RST;
use vswitch::wire::{self, ETHERNET_LEN, Network, checksum, tcp};

/// The TAP's name in the namespace.
const INTERFACE: &str = "probe";

/// How long an answer is waited for that comes at once, on any kernel, unless something is wrong.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long the daemon waits for all of it.
const LONGEST: Duration = Duration::from_secs(2);

/// How often is asked until the interface answers at all.
const AGAIN: Duration = Duration::from_millis(10);

/// Payload of the packets that a super-frame stands for, and their number.
const SIZE: u16 = 1448;
const SEGMENTS: u16 = 45;

/// Payload of one super-frame, and of all in a chain: the longest that a port may write.
const SUPER_LEN: usize = SIZE as usize * SEGMENTS as usize;
const CHAIN_LEN: usize = CHAIN_MAX * SUPER_LEN;

/// Sequence numbers of the single bytes: the first one, and the one behind the chain, whose bytes are
/// numbered from 0.
const FIRST: u32 = 0x4000_0000;
const BEHIND: u32 = 0x5000_0000;

/// What was found out, per protocol; else why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// TCP over IPv4.
    pub tcp4: Result<(), NotTaken>,
    /// TCP over IPv6.
    pub tcp6: Result<(), NotTaken>,
}

/// Why there are no long super-frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotTaken {
    /// The TAP refuses them.
    #[error(
        "the kernel refused to take a TCP packet of {kilobytes} kB over {over} from a TAP in one write \
         (EINVAL, EMSGSIZE or ENOBUFS)"
    )]
    Refused {
        /// IPv4 or IPv6.
        over: Family,
        /// How long it was.
        kilobytes: usize,
    },
    /// The protocol stack does not take them.
    #[error(
        "the kernel dropped a TCP packet of {kilobytes} kB over {over}; Linux {release} and later take them"
    )]
    Dropped {
        /// IPv4 or IPv6.
        over: Family,
        /// How long it was.
        kilobytes: usize,
        /// Since when they are taken.
        release: &'static str,
    },
    /// The protocol stack takes less than all of it.
    #[error(
        "the kernel took {taken} of the {whole} bytes of a TCP packet over {over}, where Linux 6.6 takes all"
    )]
    CutShort {
        /// IPv4 or IPv6.
        over: Family,
        /// How many bytes were acknowledged.
        taken: u32,
        /// How many were written.
        whole: usize,
    },
    /// It could not be tried.
    #[error("whether the kernel takes them over {over} could not be found out: {why}")]
    Untried {
        /// IPv4 or IPv6.
        over: Family,
        /// What failed.
        why: String,
    },
}

/// A version of the Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The first Linux that takes long packets of this family.
    fn release(self) -> &'static str {
        match self {
            Self::V4 => "6.3",
            Self::V6 => "5.19",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Probed {
    /// What ports may use.
    pub fn allowed(&self) -> LongFrames {
        LongFrames { tcp4: self.tcp4.is_ok(), tcp6: self.tcp6.is_ok() }
    }

    fn untried(why: &str) -> Self {
        let untried = |over| Err(NotTaken::Untried { over, why: why.to_owned() });
        Self { tcp4: untried(Family::V4), tcp6: untried(Family::V6) }
    }
}

/// Finds out, in a network namespace that is made for it and goes afterwards.
pub fn probe() -> Probed {
    probe_on_own_thread(Netns::create)
}

/// The same in `netns`, where nothing else may be.
pub fn probe_in(netns: Netns) -> Probed {
    probe_on_own_thread(|| Ok(netns))
}

/// The thread is not waited for: when the answer is there, the kernel still needs some ten milliseconds to
/// remove an interface.
fn probe_on_own_thread(
    netns: impl FnOnce() -> Result<Netns, NetnsError> + Send + 'static,
) -> Probed {
    let began = Instant::now();
    let (tell, told) = mpsc::channel();
    let work = move || {
        let failed = match netns().and_then(|netns| netns.run(|| try_both(&tell))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(error) => error.into(),
        };
        send(&tell, Err(failed));
    };
    let tried = match thread::Builder::new().name("long-frames".into()).spawn(work) {
        Ok(_) => told.recv_timeout(LONGEST).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => anyhow!("it took longer than {LONGEST:?}"),
                RecvTimeoutError::Disconnected => anyhow!("the attempt panicked"),
            })
        }),
        Err(error) => Err(anyhow!("no thread can be started: {error}")),
    };
    let probed = tried.unwrap_or_else(|error| Probed::untried(&format!("{error:#}")));
    tracing::debug!(?probed, took = ?began.elapsed(), "tried super-frames longer than 64 kB");
    probed
}

fn try_both(tell: &Sender<anyhow::Result<Probed>>) -> anyhow::Result<()> {
    let tap = Tap::open(INTERFACE)?;
    send(tell, try_over(&tap));
    if let Err(error) = tap.delete() {
        tracing::debug!(%error, "the interface goes with its namespace");
    }
    Ok(())
}

fn send(tell: &Sender<anyhow::Result<Probed>>, tried: anyhow::Result<Probed>) {
    if tell.send(tried).is_err() {
        tracing::debug!("what was found out about long super-frames came too late");
    }
}

fn try_over(tap: &Tap) -> anyhow::Result<Probed> {
    let mut netlink = Netlink::open()?;
    let link = netlink.link(INTERFACE)?;
    netlink.set_no_arp(link.index)?;
    netlink.set_up(link.index)?;
    let mac = link.mac.context("the interface has no MAC address")?;
    let mut try_one = |over| {
        let ends = Ends::new(over, Mac(mac));
        let try_it = || {
            let address = IpNetwork::new(ends.kernel, ends.prefix)?;
            netlink.add_address(link.index, address)?;
            Wire::new(tap, ends).try_long(tap)
        };
        let tried = try_it();
        tried.unwrap_or_else(|error| Err(NotTaken::Untried { over, why: format!("{error:#}") }))
    };
    Ok(Probed { tcp4: try_one(Family::V4), tcp6: try_one(Family::V6) })
}

/// Who speaks with whom: addresses that are never used elsewhere (RFC 5737, RFC 3849).
struct Ends {
    family: Family,
    mac: Mac,
    ours: IpAddr,
    kernel: IpAddr,
    prefix: u8,
}

impl Ends {
    fn new(family: Family, mac: Mac) -> Self {
        let address = |host: u8| match family {
            Family::V4 => IpAddr::from(Ipv4Addr::new(192, 0, 2, host)),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()).into(),
        };
        let prefix = match family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        Self { family, mac, ours: address(2), kernel: address(1), prefix }
    }

    /// A TCP segment without ACK, as the switch would hand it to the port.
    fn fill(&self, frame: &mut Frame, sequence: u32, payload: &[u8]) {
        let tcp = TcpRepr {
            src_port: 40_000,
            dst_port: 9,
            control: TcpControl::None,
            seq_number: TcpSeqNumber(sequence.cast_signed()),
            ack_number: None,
            window_len: 1000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        let (source, destination) = (self.ours.into(), self.kernel.into());
        let len = tcp.buffer_len();
        let ip = IpRepr::new(source, destination, IpProtocol::Tcp, len, 64);
        let ethernet = EthernetRepr {
            src_addr: EthernetAddress(Mac::ROUTER.0),
            dst_addr: EthernetAddress(self.mac.0),
            ethertype: match self.family {
                Family::V4 => EthernetProtocol::Ipv4,
                Family::V6 => EthernetProtocol::Ipv6,
            },
        };
        let transport = ETHERNET_LEN + ip.header_len();
        let bytes = &mut frame.spare_mut(0)[..transport + len];
        ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
        ip.emit(&mut bytes[ETHERNET_LEN..], &ChecksumCapabilities::default());
        let segment = &mut bytes[transport..];
        let mut packet = TcpPacket::new_unchecked(&mut *segment);
        tcp.emit(&mut packet, &source, &destination, &ChecksumCapabilities::ignored());
        let sum = checksum::pseudo_header(self.ours, self.kernel, tcp::PROTOCOL, len).fold();
        packet.set_checksum(sum);
        frame.set_len(transport + len);
        frame.meta.checksum = Checksum::Partial {
            start: u16::try_from(transport).unwrap_or(u16::MAX),
            offset: u16::try_from(tcp::CHECKSUM_OFFSET).unwrap_or(u16::MAX),
        };
        let kind = match self.family {
            Family::V4 => GsoKind::Tcp4,
            Family::V6 => GsoKind::Tcp6,
        };
        let is_super = payload.len() > usize::from(SIZE);
        frame.meta.gso = is_super.then_some(Gso { kind, size: SIZE, segments: SEGMENTS });
    }

    /// What `frame` acknowledges, if it is a reset of the kernel's.
    fn answer(&self, frame: &Frame) -> Option<u32> {
        let Network::Ip(ip) = wire::parse(frame.data()).ok()?.network else {
            return None;
        };
        let segment = frame.data().get(ip.transport_offset..)?;
        let is_answer = ip.source == self.kernel && ip.protocol == tcp::PROTOCOL;
        let header = tcp::read(segment).filter(|_| is_answer)?;
        (header.flags & RST != 0).then(|| header.acknowledgment.get())
    }
}

/// The TAP as a port of a switch, and who is asked over it.
struct Wire {
    ends: Ends,
    source: Box<dyn Source>,
    sink: Box<dyn Sink>,
    tables: Tables,
    pool: Pool,
    counters: WorkerCounters,
    /// What resets acknowledged that have come and were not looked at yet.
    answers: VecDeque<u32>,
}

impl Wire {
    fn new(tap: &Tap, ends: Ends) -> Self {
        let node = Node {
            vtep_mac: Mac::HOST,
            gateway_v4: None,
            gateway_v6: None,
            underlay: None,
            vxlan_port: 0,
            gossip_port: 0,
        };
        Self {
            ends,
            source: Box::new(tap.source(PortIx::HOST)),
            sink: Box::new(tap.sink(PortIx::HOST, LongFrames { tcp4: true, tcp6: true })),
            tables: TablesBuilder::new(0, node, &[]).build(),
            pool: Pool::new(2 * CHAIN_MAX),
            counters: WorkerCounters::new(1),
            answers: VecDeque::new(),
        }
    }

    /// Tries the longest super-frame. An error if that does not tell anything.
    fn try_long(&mut self, tap: &Tap) -> anyhow::Result<Result<(), NotTaken>> {
        self.await_first()?;
        let (over, kilobytes) = (self.ends.family, CHAIN_LEN / 1000);
        self.send(0, &vec![0; CHAIN_LEN])?;
        if !tap.chain_fallbacks().is_empty() {
            return Ok(Err(NotTaken::Refused { over, kilobytes }));
        }
        self.send(BEHIND, &[0])?;
        let deadline = Instant::now() + PATIENCE;
        let answer = loop {
            match self.await_answer(deadline)? {
                // Asked more than once.
                Some(answer) if answer == FIRST + 1 => {}
                other => break other,
            }
        };
        let answer = answer.context("the kernel stopped answering")?;
        Ok(if usize::try_from(answer) == Ok(CHAIN_LEN) {
            Ok(())
        } else if answer == BEHIND + 1 {
            Err(NotTaken::Dropped { over, kilobytes, release: over.release() })
        } else {
            Err(NotTaken::CutShort { over, taken: answer, whole: CHAIN_LEN })
        })
    }

    /// Waits until the interface answers at all.
    fn await_first(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.send(FIRST, &[0])?;
            let until = deadline.min(Instant::now() + AGAIN);
            if self.await_answer(until)?.is_some() {
                return Ok(());
            }
        }
        anyhow::bail!("the kernel did not answer one byte within {} ms", PATIENCE.as_millis())
    }

    /// Sends `bytes` in as few frames, and as few writes, as the port can.
    fn send(&mut self, mut sequence: u32, bytes: &[u8]) -> anyhow::Result<()> {
        let before = self.counters.delivered.get();
        let mut packets = 0;
        let mut context =
            Context { tables: &self.tables, pool: &mut self.pool, counters: &self.counters };
        for part in bytes.chunks(SUPER_LEN) {
            let mut frame = context.pool.take().context("no buffer is free")?;
            self.ends.fill(&mut frame, sequence, part);
            packets += frame.packets();
            sequence += u32::try_from(part.len())?;
            self.sink.send(&mut context, frame);
        }
        self.sink.flush(&mut context);
        let taken = self.counters.delivered.get() - before;
        anyhow::ensure!(taken == packets, "the interface took {taken} of {packets} packets");
        Ok(())
    }

    /// What the next reset acknowledges; `None` if none comes until `until`.
    fn await_answer(&mut self, until: Instant) -> anyhow::Result<Option<u32>> {
        loop {
            // Looked for before the clock is: this thread may be the one that is late.
            let left = until.saturating_duration_since(Instant::now());
            self.receive()?;
            if !self.answers.is_empty() || left.is_zero() {
                return Ok(self.answers.pop_front());
            }
            let mut poll = [PollFd::from_borrowed_fd(self.source.fd(), PollFlags::IN)];
            let timeout = Timespec::try_from(left)?;
            match rustix::event::poll(&mut poll, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }

    fn receive(&mut self) -> anyhow::Result<()> {
        let mut context =
            Context { tables: &self.tables, pool: &mut self.pool, counters: &self.counters };
        let mut batch = Batch::new();
        self.source.receive(&mut context, &mut batch).context("reading from the interface")?;
        for frame in batch {
            self.answers.extend(self.ends.answer(&frame));
            self.pool.put(frame);
        }
        Ok(())
    }
}
