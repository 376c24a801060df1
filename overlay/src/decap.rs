//! VXLAN datagrams into frames.
//!
//! What arrives is believed step by step: the sender must be a live member, the header VXLAN with our VNI,
//! and the packets inside are merged into super-frames and handed to the switch, which checks that the
//! inner addresses belong to that sender. Nothing here can fail: a datagram becomes (part of) a frame, or
//! is dropped with its reason counted.
//!
//! Who sent what is not acceptable is told to the control side as an [`Offence`].

use std::net::SocketAddr;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use vswitch::frame::{Batch, Ingress};
use vswitch::offload::{Coalescer, Options};
use vswitch::port::{Context, NodeIx};
use vswitch::verdict::Reason;

use crate::vxlan::{self, HEADER_LEN, Vni};

/// Offences that wait to be read. When there are more, they are counted as drops all the same.
pub const OFFENCES_MAX: usize = 256;

/// A datagram that was not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offence {
    /// Who sent it.
    pub from: SocketAddr,
    /// Why it was dropped.
    pub reason: Reason,
}

/// Takes VXLAN datagrams apart.
#[derive(Debug)]
pub struct Decapsulator {
    vni: Vni,
    coalescer: Coalescer,
    offences: Arc<ArrayQueue<Offence>>,
}

impl Decapsulator {
    /// Makes one that accepts `vni`, and tells `offences`.
    ///
    /// `mtu` is the longest IP packet that pods send.
    pub fn new(vni: Vni, mtu: u16, offences: Arc<ArrayQueue<Offence>>) -> Self {
        // Every port takes merged datagrams, or cuts them when its device does not.
        let options = Options { merge_udp: true, mtu };
        Self { vni, coalescer: Coalescer::new(options), offences }
    }

    /// Takes datagrams of `stride` bytes apart, which lie in `bytes` one behind the other (the last may be
    /// shorter), and appends their frames to `batch`.
    ///
    /// [`Decapsulator::finish`] must follow before the batch is handed on.
    pub fn push(
        &mut self,
        from: SocketAddr,
        stride: usize,
        bytes: &[u8],
        context: &mut Context<'_>,
        batch: &mut Batch,
    ) {
        if bytes.is_empty() {
            // A datagram without payload is one datagram; there is nothing to divide.
            self.refuse(from, Reason::VxlanTruncated, 1, 0, context);
            return;
        }
        let stride = stride.clamp(1, bytes.len());
        let datagrams = bytes.len().div_ceil(stride) as u64;
        let Some(sender) = context.tables.peer_by_underlay(from.ip().to_canonical()) else {
            self.refuse(from, Reason::VxlanNotMember, datagrams, bytes.len(), context);
            return;
        };
        for datagram in bytes.chunks(stride) {
            match vxlan::decode(datagram, self.vni) {
                Ok(inner) => self.accept(inner, sender, context, batch),
                Err(reason) => self.refuse(from, reason, 1, datagram.len(), context),
            }
        }
    }

    /// Finishes the frames of the batch, all of which came from here, and counts them as received.
    pub fn finish(&mut self, context: &Context<'_>, batch: &mut Batch) {
        self.coalescer.finish(batch);
        for frame in batch {
            context.counters.received.add(frame.packets());
            context.counters.received_bytes.add(frame.len() as u64);
        }
    }

    fn accept(
        &mut self,
        inner: &[u8],
        sender: NodeIx,
        context: &mut Context<'_>,
        batch: &mut Batch,
    ) {
        let merged = self.coalescer.push(inner, Ingress::Node(sender), context.pool, batch);
        if let Err(reason) = merged {
            context.counters.received.add(1);
            context.counters.received_bytes.add(inner.len() as u64);
            context.counters.count_drop(reason, 1);
        }
    }

    fn refuse(
        &self,
        from: SocketAddr,
        reason: Reason,
        datagrams: u64,
        bytes: usize,
        context: &Context<'_>,
    ) {
        let inner_len = (bytes as u64).saturating_sub(datagrams * HEADER_LEN as u64);
        context.counters.received.add(datagrams);
        context.counters.received_bytes.add(inner_len);
        context.counters.count_drop(reason, datagrams);
        // When nobody reads them fast enough, the drop counter alone tells.
        let _full = self.offences.push(Offence { from, reason });
    }
}
