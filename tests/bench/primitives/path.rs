//! The steps of a super-frame from pod to pod, one by one, each by the product's own code.
//!
//! ```text
//!  socket ─► TAP ─► read ─► cut ─► send ══ veth ══► receive ─► merge ─► write ─► TAP ─► socket
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use crossbeam::queue::ArrayQueue;
use overlay::decap::Decapsulator;
use overlay::encap::{Encapsulator, Transmit};
use overlay::send_offload::SendOffload;
use overlay::udp::{self, ReceiveSocket, SendSocket};
use overlay::vxlan::{self, Vni};
use vswitch::counters::Counters;
use vswitch::frame::{Batch, Frame, Pool};
use vswitch::mac::Mac;
use vswitch::offload::LongFrames;
use vswitch::port::{Context, PortIx, Sink, Source};
use vswitch::tables::{Node, Peer, Tables, TablesBuilder};
use vswitch::tap::Tap;
use vswitch::wire;
use weft::lab::Namespace;

use super::{SUPER_FRAME, median, pin, row};

/// Payload of one datagram of the super-frame.
const DATAGRAM: usize = 1398;

const POD_PORT: u16 = 5000;
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
const UNDERLAY_NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const UNDERLAY_FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Measures every step, prints it, and returns what a super-frame takes altogether if each happens where the
/// step before was, but for the two where it changes hands.
pub(crate) fn measure(cpus: &[usize], near: &Namespace, far: &Namespace) -> Result<Duration> {
    let mut path = near.run(|| Path::build(far))??;
    let (here, there) = (cpus[0], cpus[cpus.len() - 1]);
    let mut sum = Duration::ZERO;
    for step in STEPS {
        let mut time_on = |cpu| median(|| path.go(step, here, cpu));
        let (same, other) = (time_on(here)?, time_on(there)?);
        row(step.title(), same, Some(other));
        sum += if step.changes_hands() { other } else { same };
    }
    Ok(sum)
}

/// What happens to a super-frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Read,
    Cut,
    Send,
    Receive,
    Merge,
    Write,
}

const STEPS: [Step; 6] =
    [Step::Read, Step::Cut, Step::Send, Step::Receive, Step::Merge, Step::Write];

impl Step {
    fn title(self) -> &'static str {
        match self {
            Self::Read => "reading 61.5 kB from a TAP, and that there is no more",
            Self::Cut => "cutting it into 44 datagrams, with checksums",
            Self::Send => "sending them at once, to the other node's queue",
            Self::Receive => "receiving them at once, and that there is no more",
            Self::Merge => "checking and merging them",
            Self::Write => "writing 61.5 kB to a TAP, to the pod's queue",
        }
    }

    /// Whether what it works on was made by another thread.
    fn changes_hands(self) -> bool {
        matches!(self, Self::Read | Self::Receive)
    }
}

/// Two pods' TAPs and two nodes' sockets, here and in another namespace.
struct Path {
    tables: Tables,
    counters: Counters,
    pool: Pool,
    batch: Batch,
    pod: SendSocket,
    other_pod: ReceiveSocket,
    source: Box<dyn Source>,
    sink: Box<dyn Sink>,
    sender: SendSocket,
    offload: SendOffload,
    receiver: ReceiveSocket,
    encapsulator: Encapsulator,
    decapsulator: Decapsulator,
    peer: Peer,
    datagrams: Vec<u8>,
}

impl Path {
    fn build(other: &Namespace) -> Result<Self> {
        let tap = Tap::open("near")?;
        ip("link add under type veth peer name under-far")?;
        ip(&format!("link set under-far netns {}", other.path().display()))?;
        let (far_tap, receiver, other_pod) = other.run(far_end)??;
        for command in [
            format!("address add {UNDERLAY_NEAR}/24 dev under"),
            "link set under up".to_owned(),
            format!("address add {NEAR}/32 dev near"),
            "link set near mtu 1450 up".to_owned(),
            format!("route add {FAR}/32 dev near"),
            format!("neighbor add {FAR} lladdr 0e:00:00:00:00:02 dev near nud permanent"),
        ] {
            ip(&command)?;
        }
        let node = Node {
            vtep_mac: Mac::HOST,
            gateway_v4: None,
            gateway_v6: None,
            underlay: Some(IpAddr::V4(UNDERLAY_NEAR)),
            vxlan_port: vxlan::PORT,
            gossip_port: 7946,
        };
        let peer = Peer {
            name: "far".to_owned(),
            underlay: SocketAddr::from((UNDERLAY_FAR, vxlan::PORT)),
            vtep_mac: Mac::HOST,
            mtu: 1450,
            leases: Vec::new(),
        };
        let mut builder = TablesBuilder::new(1, node, &[]);
        let sending =
            Peer { underlay: SocketAddr::from((UNDERLAY_NEAR, vxlan::PORT)), ..peer.clone() };
        ensure!(builder.peer(sending).is_some(), "the node's map is full");
        let capabilities = udp::probe(UNDERLAY_NEAR.into())?;
        Ok(Self {
            tables: builder.build(),
            counters: Counters::new(1, 8),
            pool: Pool::new(256),
            batch: Batch::new(),
            pod: SendSocket::bind(NEAR.into())?,
            other_pod,
            source: Box::new(tap.source(PortIx(1))),
            sink: Box::new(far_tap.sink(PortIx(2), LongFrames::NONE)),
            sender: SendSocket::bind(UNDERLAY_NEAR.into())?,
            offload: SendOffload::new(&capabilities),
            receiver,
            encapsulator: Encapsulator::new(Vni::WEFT, capabilities.segments_max),
            decapsulator: Decapsulator::new(Vni::WEFT, 1450, Arc::new(ArrayQueue::new(1))),
            peer,
            datagrams: Vec::new(),
        })
    }

    /// Takes a super-frame up to `step` on the CPU `before`, and measures that step on the CPU `cpu`.
    fn go(&mut self, step: Step, before: usize, cpu: usize) -> Result<Duration> {
        let mut taken = None;
        pin(before)?;
        let to = SocketAddr::from((FAR, POD_PORT));
        let sent = self.pod.send(&mut self.offload, to, DATAGRAM, &[0; SUPER_FRAME], Instant::now);
        ensure!(sent.taken == 44, "the pod sends: {sent:?}");
        for now in STEPS {
            let is_it = now == step;
            if is_it {
                pin(cpu)?;
            }
            let start = Instant::now();
            self.take(now)?;
            if is_it {
                taken = Some(start.elapsed());
                pin(before)?;
            }
        }
        let received = self.other_pod.receive()?.context("nothing comes to the other pod")?;
        ensure!(received.bytes.len() == SUPER_FRAME, "it comes in parts");
        taken.context("no such step")
    }

    fn take(&mut self, step: Step) -> Result<()> {
        let counters = self.counters.worker(0);
        let mut context =
            Context { tables: &self.tables, pool: &mut self.pool, counters: &counters };
        match step {
            Step::Read => self.source.receive(&mut context, &mut self.batch)?,
            Step::Cut => {
                let frame: Frame = self.batch.pop().context("nothing came out of the TAP")?;
                ensure!(frame.packets() == 44, "a super-frame of {} packets", frame.packets());
                let headers = wire::parse(frame.data())
                    .map_err(|reason| anyhow::anyhow!("what the TAP gave: {reason:?}"))?;
                // All super-frames are alike, so one copy for the next steps is enough.
                let datagrams = &mut self.datagrams;
                let mut keep = |transmit: Transmit<'_>| {
                    if datagrams.is_empty() {
                        datagrams.extend_from_slice(transmit.bytes);
                    }
                };
                let pushed = self.encapsulator.push(&self.peer, 0, &frame, &headers, &mut keep);
                pushed.map_err(|reason| anyhow::anyhow!("cutting: {reason:?}"))?;
                self.encapsulator.flush(&mut keep);
                context.pool.put(frame);
            }
            Step::Send => {
                let len = self.datagrams.len().div_ceil(44);
                let sent = self.sender.send(
                    &mut self.offload,
                    self.peer.underlay,
                    len,
                    &self.datagrams,
                    Instant::now,
                );
                ensure!(sent.taken == 44, "{sent:?}");
            }
            Step::Receive => {
                let received = self.receiver.receive()?.context("nothing was received")?;
                ensure!(received.bytes.len() == self.datagrams.len(), "received in parts");
                ensure!(self.receiver.receive()?.is_none(), "more was received than was sent");
            }
            Step::Merge => {
                let stride = self.datagrams.len().div_ceil(44);
                let from = SocketAddr::from((UNDERLAY_NEAR, vxlan::PORT));
                self.decapsulator.push(
                    from,
                    stride,
                    &self.datagrams,
                    &mut context,
                    &mut self.batch,
                );
                self.decapsulator.finish(&context, &mut self.batch);
                // The next super-frame would find it merged in part.
                ensure!(self.batch.len() == 1, "merged into {} frames", self.batch.len());
            }
            Step::Write => {
                let frame = self.batch.pop().context("nothing was merged")?;
                self.sink.send(&mut context, frame);
                self.sink.flush(&mut context);
            }
        }
        Ok(())
    }
}

/// In the other namespace: a pod's TAP, a node's receiving socket, and the pod's socket.
fn far_end() -> Result<(Tap, ReceiveSocket, ReceiveSocket)> {
    let tap = Tap::open("far")?;
    for command in [
        format!("address add {UNDERLAY_FAR}/24 dev under-far"),
        "link set under-far up".to_owned(),
        "link set far address 0e:00:00:00:00:02 mtu 1450 up".to_owned(),
        format!("address add {FAR}/32 dev far"),
        // So that the kernel believes where they come from.
        format!("route add {NEAR}/32 dev far"),
    ] {
        ip(&command)?;
    }
    let receiver = ReceiveSocket::bind(SocketAddr::from((UNDERLAY_FAR, vxlan::PORT)))?;
    let pod = ReceiveSocket::bind(SocketAddr::from((FAR, POD_PORT)))?;
    Ok((tap, receiver, pod))
}

fn ip(command: &str) -> Result<()> {
    let output = Command::new("ip").args(command.split(' ')).output().context("starting ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {command}`: {said}");
    Ok(())
}
