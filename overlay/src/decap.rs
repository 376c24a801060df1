//! VXLAN datagrams into frames.
//!
//! What arrives is believed step by step: the sender must be a live member, the header VXLAN with our VNI,
//! and the packets inside are merged into super-frames and handed to the switch, which checks that the
//! inner addresses belong to that sender. Nothing here can fail: a datagram becomes (part of) a frame, or
//! is dropped with its reason counted.
//!
//! Probes of the path are no packets: they wait aside until [`Decapsulator::answer_probes`] answers them.
//!
//! Who sent what is not acceptable is told to the control side as an [`Offence`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use vswitch::frame::{Batch, Ingress};
use vswitch::offload::{Coalescer, Options};
use vswitch::port::{Context, NodeIx};
use vswitch::tables::Tables;
use vswitch::verdict::Reason;

use crate::path::message::{self, Kind, Message, REPLY_LEN};
use crate::path::responder::{ReplyQueue, Responder};
use crate::udp::Sent;
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
    probes: Responder,
}

impl Decapsulator {
    /// Makes one that accepts `vni`, and tells `offences`.
    ///
    /// `mtu` is the longest IP packet that pods send.
    pub fn new(vni: Vni, mtu: u16, offences: Arc<ArrayQueue<Offence>>) -> Self {
        // Every port takes merged datagrams, or cuts them when its device does not.
        let options = Options { merge_udp: true, mtu };
        Self { vni, coalescer: Coalescer::new(options), offences, probes: Responder::default() }
    }

    /// Makes one for another socket of the same tunnel.
    pub fn another(&self) -> Self {
        let Self { vni, coalescer, offences, probes } = self;
        let coalescer = Coalescer::new(coalescer.options());
        Self { vni: *vni, coalescer, offences: Arc::clone(offences), probes: probes.another() }
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

    /// Where replies to probes go.
    pub fn replies(&self) -> &Arc<ReplyQueue> {
        self.probes.replies()
    }

    /// Whether probes wait to be answered.
    pub fn has_probes(&self) -> bool {
        self.probes.is_waiting()
    }

    /// Answers the probes of the batch, each by a datagram that `send` is given, and hands replies on. Must follow
    /// before anybody reads the counters, if [`Decapsulator::has_probes`].
    pub fn answer_probes(
        &mut self,
        now: Instant,
        context: &Context<'_>,
        mut send: impl FnMut(SocketAddr, &[u8]) -> Sent,
    ) {
        let Context { tables, counters, .. } = context;
        while let Some(taken) = self.probes.take(now, tables) {
            let asked = match taken {
                Ok(asked) => asked,
                Err(reason) => {
                    counters.count_drop(reason, 1);
                    continue;
                }
            };
            counters.answered.add(1);
            if let Some((asked, peer)) = asked.and_then(|a| Some((a, tables.peer(a.node)?))) {
                let mut datagram = [0; HEADER_LEN + REPLY_LEN];
                let (header, frame) = datagram.split_at_mut(HEADER_LEN);
                header.copy_from_slice(&vxlan::encode(self.vni));
                let reply = Message { kind: Kind::Reply, mtu: peer.mtu, ..asked.message };
                message::write(frame, peer.vtep_mac, tables.node.vtep_mac, &reply);
                counters.originated.add(1);
                send(peer.underlay, &datagram).count(counters);
            }
        }
    }

    /// Tells of a frame that the switch dropped because `node` may not send it. The port told is the one
    /// that the node receives VXLAN on.
    pub fn note_foreign(&self, tables: &Tables, node: NodeIx, reason: Reason) {
        if let Some(peer) = tables.peer(node) {
            // When nobody reads them fast enough, the drop counter alone tells.
            let _full = self.offences.push(Offence { from: peer.underlay, reason });
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
            self.decline(inner, reason, sender, context);
        }
    }

    /// Counts a frame that is no packet. If it is a probe, it waits.
    #[cold]
    fn decline(&mut self, inner: &[u8], reason: Reason, sender: NodeIx, context: &Context<'_>) {
        context.counters.received.add(1);
        context.counters.received_bytes.add(inner.len() as u64);
        let taken = if message::is_probe(inner) {
            self.probes.push(inner, sender, context.tables)
        } else {
            Err(reason)
        };
        if let Err(reason) = taken {
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use vswitch::counters::Counters;
    use vswitch::frame::{Frame, Pool};
    use vswitch::mac::Mac;
    use vswitch::tables::{Node, Peer, Tables, TablesBuilder};

    use super::*;
    use crate::udp::MESSAGE_DATAGRAMS_MAX;

    const MEMBER: &str = "192.0.2.2:50000";
    const STRANGER: &str = "192.0.2.9:50000";

    struct Bench {
        tables: Tables,
        pool: Pool,
        counters: Counters,
        offences: Arc<ArrayQueue<Offence>>,
        decapsulator: Decapsulator,
        batch: Batch,
    }

    impl Bench {
        fn new(buffers: usize) -> Self {
            let node = Node {
                vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
                gateway_v4: None,
                gateway_v6: None,
                underlay: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
                vxlan_port: vxlan::PORT,
                gossip_port: 7946,
            };
            let mut builder = TablesBuilder::new(1, node, &[]);
            let peer = Peer {
                name: "n2".to_owned(),
                underlay: "192.0.2.2:4789".parse().unwrap(),
                vtep_mac: Mac([2, 0, 0, 0, 0, 2]),
                mtu: 1450,
                leases: Vec::new(),
            };
            assert!(builder.peer(peer).is_some());
            let offences = Arc::new(ArrayQueue::new(OFFENCES_MAX));
            Self {
                tables: builder.build(),
                pool: Pool::new(buffers),
                counters: Counters::new(1, 1),
                decapsulator: Decapsulator::new(Vni::WEFT, 1450, Arc::clone(&offences)),
                offences,
                batch: Batch::new(),
            }
        }

        fn push(&mut self, from: &str, stride: usize, bytes: &[u8]) {
            let counters = self.counters.worker(0);
            let mut context =
                Context { tables: &self.tables, pool: &mut self.pool, counters: &counters };
            let from = from.parse().unwrap();
            self.decapsulator.push(from, stride, bytes, &mut context, &mut self.batch);
        }

        /// Answers probes, and gives what was sent.
        fn answer(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
            let counters = self.counters.worker(0);
            let context =
                Context { tables: &self.tables, pool: &mut self.pool, counters: &counters };
            let mut sent = Vec::new();
            self.decapsulator.answer_probes(Instant::now(), &context, |to, bytes| {
                sent.push((to, bytes.to_vec()));
                Sent::taken(1, bytes.len())
            });
            sent
        }

        /// Ends the batch, and checks that every datagram is accounted for.
        #[track_caller]
        fn finish(&mut self) -> Vec<Frame> {
            let counters = self.counters.worker(0);
            let context =
                Context { tables: &self.tables, pool: &mut self.pool, counters: &counters };
            self.decapsulator.finish(&context, &mut self.batch);
            let queued: u64 = self.batch.iter().map(Frame::packets).sum();
            assert_eq!(self.counters.sum().queued(), i128::from(queued), "conservation");
            assert_eq!(self.pool.in_use(), self.batch.len());
            self.batch.drain(..).collect()
        }

        #[track_caller]
        fn assert_dropped(&self, reason: Reason, datagrams: u64) {
            let totals = self.counters.sum();
            assert_eq!(totals.dropped(reason), datagrams, "{totals:?}");
            assert_eq!(totals.dropped_total(), datagrams, "{totals:?}");
        }
    }

    /// A datagram with a packet of another flow for every `port`.
    fn datagram(port: u16, payload: usize) -> Vec<u8> {
        let mut bytes = vxlan::encode(Vni::WEFT).to_vec();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
            .ipv4([10, 244, 2, 2], [10, 244, 1, 2], 64)
            .udp(port, 2)
            .write(&mut bytes, &vec![1; payload])
            .unwrap();
        bytes
    }

    #[test]
    fn a_member_is_believed_and_merged() {
        let mut bench = Bench::new(8);
        let datagrams: Vec<u8> = (0..5).flat_map(|_| datagram(1, 100)).collect();
        bench.push(MEMBER, 150, &datagrams);
        let frames = bench.finish();
        assert_eq!(frames.iter().map(Frame::packets).collect::<Vec<_>>(), [5]);
        assert_eq!(frames[0].meta.ingress, Ingress::Node(NodeIx(0)));
        let totals = bench.counters.sum();
        assert_eq!((totals.received, totals.received_bytes), (5, 42 + 5 * 100));
        assert_eq!(bench.offences.pop(), None);
    }

    #[test]
    fn a_member_may_come_from_an_ipv4_address_in_ipv6() {
        let mut bench = Bench::new(8);
        let bytes = datagram(1, 100);
        bench.push("[::ffff:192.0.2.2]:50000", bytes.len(), &bytes);
        assert_eq!(bench.finish().len(), 1);
    }

    #[test]
    fn a_stranger_is_refused_for_each_of_its_datagrams() {
        let mut bench = Bench::new(8);
        let datagrams: Vec<u8> = (0..5).flat_map(|_| datagram(1, 100)).collect();
        bench.push(STRANGER, 150, &datagrams);
        assert!(bench.finish().is_empty());
        bench.assert_dropped(Reason::VxlanNotMember, 5);
        assert_eq!(bench.counters.sum().received_bytes, 5 * 142);
        let offence = Offence { from: STRANGER.parse().unwrap(), reason: Reason::VxlanNotMember };
        assert_eq!(bench.offences.pop(), Some(offence));
        assert_eq!(bench.offences.pop(), None, "told once for a message");
    }

    #[test]
    fn more_offences_than_are_read_are_counted_all_the_same() {
        let mut bench = Bench::new(8);
        for _ in 0..OFFENCES_MAX + 10 {
            bench.push(STRANGER, 3, b"abc");
        }
        bench.finish();
        bench.assert_dropped(Reason::VxlanNotMember, OFFENCES_MAX as u64 + 10);
        assert_eq!(bench.offences.len(), OFFENCES_MAX);
    }

    #[test]
    fn an_empty_datagram_is_one() {
        let mut bench = Bench::new(8);
        for from in [MEMBER, STRANGER] {
            bench.push(from, 0, &[]);
        }
        bench.finish();
        bench.assert_dropped(Reason::VxlanTruncated, 2);
    }

    #[test]
    fn one_bad_datagram_spoils_no_other() {
        let mut bench = Bench::new(8);
        let mut datagrams = [datagram(1, 100), datagram(2, 100), datagram(3, 100)].concat();
        datagrams[150] = 0;
        datagrams.extend_from_slice(&[8, 0, 0]);
        bench.push(MEMBER, 150, &datagrams);
        assert_eq!(bench.finish().len(), 2);
        let totals = bench.counters.sum();
        assert_eq!((totals.dropped(Reason::VxlanFlag), totals.dropped_total()), (1, 2));
        assert_eq!(totals.dropped(Reason::VxlanTruncated), 1);
        let told: Vec<_> = std::iter::from_fn(|| bench.offences.pop()).collect();
        assert_eq!(
            told.iter().map(|offence| offence.reason).collect::<Vec<_>>(),
            [Reason::VxlanFlag, Reason::VxlanTruncated]
        );
    }

    #[test]
    fn what_is_damaged_inside_is_counted() {
        let mut bench = Bench::new(8);
        let mut bytes = datagram(1, 100);
        bytes[120] ^= 1;
        bench.push(MEMBER, bytes.len(), &bytes);
        assert!(bench.finish().is_empty());
        bench.assert_dropped(Reason::BadChecksum, 1);
        assert_eq!(bench.offences.pop(), None, "the network may have done it");
    }

    #[test]
    fn without_buffers_datagrams_are_counted() {
        let mut bench = Bench::new(3);
        let ports = 1..=u16::try_from(MESSAGE_DATAGRAMS_MAX).unwrap();
        let datagrams: Vec<u8> = ports.flat_map(|port| datagram(port, 100)).collect();
        bench.push(MEMBER, 150, &datagrams);
        assert_eq!(bench.finish().len(), 3);
        bench.assert_dropped(Reason::PoolEmpty, MESSAGE_DATAGRAMS_MAX as u64 - 3);
    }

    /// A datagram with a probe or a reply of `len` bytes, from the member to this node.
    fn probe(kind: Kind, len: u16) -> Vec<u8> {
        let mut bytes = vxlan::encode(Vni::WEFT).to_vec();
        bytes.resize(HEADER_LEN + usize::from(len), 0);
        let (to, from) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let message = Message { kind, nonce: 7, mtu: 1400, len };
        message::write(&mut bytes[HEADER_LEN..], to, from, &message);
        bytes
    }

    #[test]
    fn a_members_probe_is_answered_by_less_and_never_reaches_the_switch() {
        let mut bench = Bench::new(8);
        for len in [60, 1464] {
            let bytes = probe(Kind::Probe, len);
            bench.push(MEMBER, bytes.len(), &bytes);
            let answers = bench.answer();
            let [(to, answer)] = &answers[..] else { panic!("{answers:?}") };
            assert_eq!(*to, "192.0.2.2:4789".parse().unwrap(), "not to the port that it came from");
            assert!(answer.len() <= bytes.len());
            let inner = vxlan::decode(answer, Vni::WEFT).unwrap();
            let (to, from, message) = message::read(inner).unwrap();
            assert_eq!((to, from), (Mac([2, 0, 0, 0, 0, 2]), Mac([2, 0, 0, 0, 0, 1])));
            assert_eq!(message, Message { kind: Kind::Reply, nonce: 7, mtu: 1450, len });
            assert!(bench.finish().is_empty());
        }
        let totals = bench.counters.sum();
        assert_eq!((totals.received, totals.answered), (2, 2));
        assert_eq!((totals.originated, totals.delivered), (2, 2));
    }

    #[test]
    fn a_reply_is_handed_on_and_not_answered() {
        let mut bench = Bench::new(8);
        let bytes = probe(Kind::Reply, 60);
        bench.push(MEMBER, bytes.len(), &bytes);
        assert_eq!(bench.answer(), []);
        let reply = bench.decapsulator.replies().pop().unwrap();
        assert_eq!((reply.nonce, reply.mtu), (7, 1400));
        assert_eq!(reply.from, IpAddr::from([192, 0, 2, 2]));
        bench.finish();
        assert_eq!(bench.counters.sum().answered, 1);
    }

    #[test]
    fn no_stranger_is_answered_and_no_flood() {
        let mut bench = Bench::new(8);
        let bytes = probe(Kind::Probe, 60);
        bench.push(STRANGER, bytes.len(), &bytes);
        assert_eq!(bench.answer(), []);
        bench.finish();
        bench.assert_dropped(Reason::VxlanNotMember, 1);
        let mut answered = 0;
        for _ in 0..20 {
            bench.push(MEMBER, bytes.len(), &bytes.repeat(MESSAGE_DATAGRAMS_MAX));
            answered += bench.answer().len();
        }
        bench.finish();
        let totals = bench.counters.sum();
        let sent = 20 * MESSAGE_DATAGRAMS_MAX as u64;
        assert!(answered < 300, "{answered}");
        assert_eq!(totals.dropped(Reason::ProbeExcess), sent - answered as u64);
    }

    #[test]
    fn a_damaged_probe_is_dropped() {
        let mut bench = Bench::new(8);
        let bytes = probe(Kind::Probe, 100);
        bench.push(MEMBER, bytes.len() - 1, &bytes[..bytes.len() - 1]);
        let mut foreign = probe(Kind::Probe, 60);
        foreign[HEADER_LEN] = 6;
        bench.push(MEMBER, foreign.len(), &foreign);
        assert_eq!(bench.answer(), []);
        bench.finish();
        let totals = bench.counters.sum();
        assert_eq!((totals.dropped(Reason::Malformed), totals.dropped(Reason::VxlanVtep)), (1, 1));
    }

    proptest! {
        #[test]
        fn any_bytes_from_anybody_are_accounted_for(
            messages in prop::collection::vec(
                (
                    any::<bool>(),
                    prop_oneof![Just(0_usize), 1_usize..200, any::<usize>()],
                    prop_oneof![
                        prop::collection::vec(any::<u8>(), 0..400),
                        garbled_datagrams(),
                        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, value)| {
                            let mut bytes = probe(Kind::Probe, 80);
                            let at = at.index(bytes.len());
                            bytes[at] = value;
                            bytes
                        }),
                    ],
                ),
                0..10,
            ),
            buffers in 0_usize..20,
        ) {
            let mut bench = Bench::new(buffers);
            for (is_member, stride, bytes) in messages {
                bench.push(if is_member { MEMBER } else { STRANGER }, stride, &bytes);
            }
            bench.answer();
            bench.finish();
        }
    }

    /// Datagrams of equal length, some of whose bytes are wrong.
    fn garbled_datagrams() -> impl Strategy<Value = Vec<u8>> {
        let ports = prop::collection::vec(0_u16..4, 1..5);
        let garbles = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        (ports, garbles).prop_map(|(ports, garbles)| {
            let mut bytes: Vec<u8> = ports.iter().flat_map(|port| datagram(*port, 50)).collect();
            for (at, value) in garbles {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes
        })
    }
}
