//! What ports that speak virtio-net headers have in common: TAP and AF_PACKET differ in the system call
//! alone, which comes in as a closure.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;

use crate::frame::{BATCH_MAX, Batch, Frame, GsoKind, Ingress};
use crate::offload::{self, Cut, VnetHeader};
use crate::port::{Context, PortIx};
use crate::verdict::Reason;
use crate::wire;

/// Bytes that one batch may hold before it is handed on. A few super-frames fill a CPU's own cache, and
/// more would push each other out of it before they are sent.
const BATCH_BYTES_MAX: usize = 512 << 10;

/// Super-frames of a kind that are cut after one was refused, before the kernel is asked again. So a pod
/// that provokes a refusal does not slow its neighbour down for long.
const CUT_AFTER_REFUSAL: u32 = 4096;

/// What one read brought.
pub(crate) enum Received {
    /// A virtio-net header and a frame; their length together.
    Frame(usize),
    /// The same, but the kernel has taken a VLAN tag out of the frame.
    Tagged(usize),
}

/// Reads frames until the batch is full, nothing waits, or the pool is empty.
///
/// # Errors
/// When the device is gone.
pub(crate) fn receive(
    context: &mut Context<'_>,
    port: PortIx,
    batch: &mut Batch,
    mut read: impl FnMut(&mut [u8]) -> Result<Received, Errno>,
) -> Result<(), Errno> {
    let mut bytes = 0;
    while batch.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
        let Some(mut frame) = context.pool.take() else {
            return Ok(());
        };
        match read(frame.spare_mut(VnetHeader::LEN)) {
            Ok(received) => {
                let (Received::Frame(len) | Received::Tagged(len)) = received;
                bytes += len;
                frame.set_len(len.saturating_sub(VnetHeader::LEN));
                accept(context, port, frame, &received, batch);
            }
            Err(error) => {
                context.pool.put(frame);
                match error {
                    Errno::INTR => {}
                    Errno::AGAIN => return Ok(()),
                    gone => return Err(gone),
                }
            }
        }
    }
    Ok(())
}

fn accept(
    context: &mut Context<'_>,
    port: PortIx,
    mut frame: Frame,
    received: &Received,
    batch: &mut Batch,
) {
    frame.meta.ingress = Ingress::Port(port);
    let decoded = match VnetHeader::from_slice(frame.prefix_mut(VnetHeader::LEN)) {
        Some(header) => offload::decode(&header, &mut frame),
        None => Err(Reason::BadOffload),
    };
    context.count_received(port, &frame);
    match (decoded, received) {
        (_, Received::Tagged(_)) => context.finish_dropped(port, Reason::VlanTagged, frame),
        (Err(reason), Received::Frame(_)) => context.finish_dropped(port, reason, frame),
        (Ok(()), Received::Frame(_)) => batch.push(frame),
    }
}

/// Writes a frame behind its virtio-net header, and accounts for it. A super-frame that the device refuses
/// is cut.
pub(crate) fn send(
    context: &mut Context<'_>,
    port: PortIx,
    refusals: &GsoRefusals,
    mut frame: Frame,
    write: impl Fn(&[u8]) -> Result<(), Errno>,
) {
    let gso = frame.meta.gso;
    if gso.is_some_and(|gso| refusals.must_cut(gso.kind)) {
        return send_cut(context, port, frame, write);
    }
    match (write_whole(&mut frame, &write), gso) {
        (Ok(()), _) => context.finish_delivered(port, frame),
        (Err(Errno::INVAL), Some(gso)) => {
            refusals.note(gso.kind);
            send_cut(context, port, frame, write);
        }
        (Err(error), _) => context.finish_dropped(port, reason_of(error), frame),
    }
}

fn write_whole(
    frame: &mut Frame,
    write: impl Fn(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let header = offload::encode(frame).to_bytes();
    frame.prefix_mut(VnetHeader::LEN).copy_from_slice(&header);
    write(frame.data_with_prefix(VnetHeader::LEN))
}

/// Writes the packets of a super-frame one by one. Each is accounted for by itself.
fn send_cut(
    context: &mut Context<'_>,
    port: PortIx,
    frame: Frame,
    write: impl Fn(&[u8]) -> Result<(), Errno>,
) {
    let headers = wire::parse(frame.data());
    let cut = match &headers {
        Ok(headers) => Cut::new(&frame, headers),
        Err(reason) => Err(*reason),
    };
    let cut = match cut {
        Ok(cut) => cut,
        Err(reason) => return context.finish_dropped(port, reason, frame),
    };
    for ix in 0..cut.segments() {
        let Some(mut packet) = context.pool.take() else {
            context.count_dropped(port, Reason::PoolEmpty, (cut.segments() - ix) as u64);
            break;
        };
        let len = cut.write(ix, packet.spare_mut(0));
        packet.set_len(len);
        match write_whole(&mut packet, &write) {
            Ok(()) => context.finish_delivered(port, packet),
            Err(error) => context.finish_dropped(port, reason_of(error), packet),
        }
    }
    context.pool.put(frame);
}

/// Why the kernel did not take a frame (`tun_get_user`, `drivers/net/tun.c`; `packet_snd`,
/// `net/packet/af_packet.c`).
fn reason_of(error: Errno) -> Reason {
    match error {
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => Reason::PortFull,
        Errno::BADFD | Errno::NODEV | Errno::NXIO => Reason::PortGone,
        _ => Reason::PortError,
    }
}

/// Which super-frames a device refuses to take whole.
#[derive(Debug, Default)]
pub(crate) struct GsoRefusals {
    count: AtomicU64,
    /// Per kind, how many more are to be cut before the next is tried whole.
    cut: [AtomicU32; 3],
}

impl GsoRefusals {
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn note(&self, kind: GsoKind) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.cut[kind_ix(kind)].store(CUT_AFTER_REFUSAL, Ordering::Relaxed);
    }

    /// Whether the next super-frame of this kind is to be cut.
    fn must_cut(&self, kind: GsoKind) -> bool {
        let cut = &self.cut[kind_ix(kind)];
        // Two workers may count one frame once or twice; it does not matter when the next try is.
        let left = cut.load(Ordering::Relaxed);
        if left > 0 {
            cut.store(left - 1, Ordering::Relaxed);
        }
        left > 0
    }
}

fn kind_ix(kind: GsoKind) -> usize {
    match kind {
        GsoKind::Tcp4 => 0,
        GsoKind::Tcp6 => 1,
        GsoKind::Udp => 2,
    }
}
