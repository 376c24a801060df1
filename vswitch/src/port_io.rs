//! What ports that speak virtio-net headers have in common: TAP and AF_PACKET differ in the system call
//! alone, which comes in as a closure.

use std::io::IoSlice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::frame::{BATCH_MAX, Batch, Frame, GsoKind, Ingress};
use crate::offload::{self, Chain, Cut, VnetHeader};
use crate::port::{Context, GsoFallback, PortIx};
use crate::verdict::Reason;
use crate::wire;

/// Bytes that one batch may hold before it is handed on: two super-frames or a little more. Further ones make
/// it no faster, and whoever comes behind them waits for longer.
const BATCH_BYTES_MAX: usize = 128 << 10;

/// How long super-frames of a kind are cut after one was refused, before the kernel is asked again. A
/// question costs one system call, so it can be asked often, and a pod that provokes a refusal does not slow
/// its neighbour down for long.
const PAUSE: Duration = Duration::from_millis(100);

/// Frames that one batch may lose because the kernel cannot describe them, so that a port whose reads all
/// fail cannot hold its worker.
const UNREADABLE_MAX: usize = BATCH_MAX;

/// What one read brought.
#[derive(Clone, Copy)]
pub(crate) enum Received {
    /// A virtio-net header and a frame; their length together.
    Frame(usize),
    /// The same, but the kernel has taken a VLAN tag out of the frame.
    Tagged(usize),
}

/// Reads frames until the batch is full, nothing waits, or the pool is empty.
///
/// # Errors
/// When the device cannot be read any more.
pub(crate) fn receive(
    context: &mut Context<'_>,
    port: PortIx,
    batch: &mut Batch,
    mut read: impl FnMut(&mut [u8]) -> Result<Received, Errno>,
) -> Result<(), Errno> {
    let mut bytes = 0;
    let mut unreadable = 0;
    while batch.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX && unreadable < UNREADABLE_MAX {
        let Some(mut frame) = context.pool.take() else {
            return Ok(());
        };
        match read(frame.spare_mut(VnetHeader::LEN)) {
            Ok(received) => {
                let (Received::Frame(len) | Received::Tagged(len)) = received;
                bytes += len;
                frame.set_len(len.saturating_sub(VnetHeader::LEN));
                accept(context, port, frame, received, batch);
            }
            Err(error) => {
                match error {
                    // The kernel had a super-frame of a kind that virtio-net headers do not know (SCTP),
                    // and has thrown it away (`virtio_net_hdr_from_skb`, `linux/virtio_net.h`).
                    Errno::INVAL => {
                        unreadable += 1;
                        context.count_received(port, &frame);
                        context.finish_dropped(port, Reason::BadOffload, frame);
                        continue;
                    }
                    _ => context.pool.put(frame),
                }
                match error {
                    Errno::INTR => {}
                    Errno::AGAIN | Errno::NOMEM | Errno::NOBUFS => return Ok(()),
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
    received: Received,
    batch: &mut Batch,
) {
    frame.meta.ingress = Ingress::Port(port);
    let (Received::Frame(len) | Received::Tagged(len)) = received;
    let header = &frame.prefix_mut(VnetHeader::LEN)[..len.min(VnetHeader::LEN)];
    let decoded = match VnetHeader::from_slice(header) {
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
    frame: Frame,
    write: impl Fn(&[u8]) -> Result<(), Errno>,
) {
    send_at(context, port, refusals, frame, Instant::now, write);
}

/// The same, where `clock` tells the time. It is asked only while super-frames are refused.
fn send_at(
    context: &mut Context<'_>,
    port: PortIx,
    refusals: &GsoRefusals,
    mut frame: Frame,
    clock: impl Fn() -> Instant,
    write: impl Fn(&[u8]) -> Result<(), Errno>,
) {
    let gso = frame.meta.gso;
    if gso.is_some_and(|gso| refusals.must_cut(gso.kind, &clock)) {
        return send_cut(context, port, frame, write);
    }
    match (write_whole(&mut frame, &write), gso) {
        (Ok(()), gso) => {
            if let Some(gso) = gso {
                refusals.regain(gso.kind);
            }
            context.finish_delivered(port, frame);
        }
        (Err(Errno::INVAL), Some(gso)) => {
            refusals.note(gso.kind, clock());
            send_cut(context, port, frame, write);
        }
        (Err(error), _) => context.finish_dropped(port, reason_of(error), frame),
    }
}

fn write_whole(frame: &mut Frame, write: impl Fn(&[u8]) -> Result<(), Errno>) -> Result<(), Errno> {
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

/// Writes the super-frames of `chain` as one. Where the kernel does not take that, they stay in the chain, to be
/// written one by one.
pub(crate) fn send_chain(
    context: &mut Context<'_>,
    port: PortIx,
    refusals: &GsoRefusals,
    chain: &mut Chain,
    write: impl Fn(&[IoSlice<'_>]) -> Result<(), Errno>,
) {
    send_chain_at(context, port, refusals, chain, Instant::now, write);
}

/// The same, where `clock` tells the time. It is asked only while chains are refused.
fn send_chain_at(
    context: &mut Context<'_>,
    port: PortIx,
    refusals: &GsoRefusals,
    chain: &mut Chain,
    clock: impl Fn() -> Instant,
    write: impl Fn(&[IoSlice<'_>]) -> Result<(), Errno>,
) {
    let Some((kind, slices)) = chain.slices() else {
        return;
    };
    if refusals.must_cut(kind, &clock) {
        return;
    }
    let written = write(&slices);
    drop(slices);
    match written {
        Ok(()) => {
            refusals.regain(kind);
            while let Some(frame) = chain.pop() {
                context.finish_delivered(port, frame);
            }
        }
        Err(error) if is_about_length(error) => refusals.note(kind, clock()),
        Err(error) => {
            while let Some(frame) = chain.pop() {
                context.finish_dropped(port, reason_of(error), frame);
            }
        }
    }
}

/// Whether shorter frames may be taken where a long one was not: it is of a kind that is not taken, has more
/// pages than the kernel can hold in one (`sock_alloc_send_pskb`, `net/core/sock.c`, before Linux 6.6), or
/// there is too little memory in large pieces.
fn is_about_length(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::MSGSIZE | Errno::NOBUFS | Errno::NOMEM)
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

/// Which super-frames a device refuses to take whole. Shared by all that write to it.
#[derive(Debug)]
pub(crate) struct GsoRefusals {
    start: Instant,
    kinds: [Refusal; GSO_KINDS.len()],
}

/// What is known of one kind, in milliseconds since the start. Two workers may both try at a time, or one a
/// moment too early: it does not matter.
#[derive(Debug, Default)]
struct Refusal {
    /// How many were refused so far.
    count: AtomicU64,
    since: AtomicU64,
    /// When the next one is to be tried whole; 0 while they are taken.
    next_try: AtomicU64,
}

const GSO_KINDS: [GsoKind; 3] = [GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp];

impl Default for GsoRefusals {
    fn default() -> Self {
        Self { start: Instant::now(), kinds: Default::default() }
    }
}

impl GsoRefusals {
    pub(crate) fn count(&self) -> u64 {
        GSO_KINDS.map(|kind| self.count_of(kind)).iter().sum()
    }

    pub(crate) fn count_of(&self, kind: GsoKind) -> u64 {
        self.kinds[kind_ix(kind)].count.load(Ordering::Relaxed)
    }

    /// The kinds that are cut for the time being.
    pub(crate) fn fallbacks(&self) -> Vec<GsoFallback> {
        let refused = GSO_KINDS.into_iter().zip(&self.kinds).filter_map(|(kind, refusal)| {
            let next_try = refusal.next_try.load(Ordering::Relaxed);
            let at = |millis| self.start + Duration::from_millis(millis);
            let since = at(refusal.since.load(Ordering::Relaxed));
            (next_try > 0).then(|| GsoFallback { kind, since, next_try: at(next_try) })
        });
        refused.collect()
    }

    fn note(&self, kind: GsoKind, now: Instant) {
        let refusal = &self.kinds[kind_ix(kind)];
        refusal.count.fetch_add(1, Ordering::Relaxed);
        let next_try = self.millis(now + PAUSE);
        if refusal.next_try.swap(next_try, Ordering::Relaxed) == 0 {
            refusal.since.store(self.millis(now), Ordering::Relaxed);
        }
    }

    /// Notes that the device has taken one.
    fn regain(&self, kind: GsoKind) {
        let next_try = &self.kinds[kind_ix(kind)].next_try;
        // Shared by the workers, so it is not written for each.
        if next_try.load(Ordering::Relaxed) > 0 {
            next_try.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the next super-frame of this kind is to be cut.
    fn must_cut(&self, kind: GsoKind, clock: impl FnOnce() -> Instant) -> bool {
        let next_try = self.kinds[kind_ix(kind)].next_try.load(Ordering::Relaxed);
        next_try > 0 && self.millis(clock()) < next_try
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.start);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

fn kind_ix(kind: GsoKind) -> usize {
    match kind {
        GsoKind::Tcp4 => 0,
        GsoKind::Tcp6 => 1,
        GsoKind::Udp => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::net::{IpAddr, Ipv4Addr};

    use etherparse::{PacketBuilder, SlicedPacket};

    use super::*;
    use crate::counters::Counters;
    use crate::frame::{Checksum, Gso, Pool};
    use crate::mac::Mac;
    use crate::offload::LongFrames;
    use crate::tables::{Node, Tables, TablesBuilder};
    use crate::wire::checksum;

    const PORT: PortIx = PortIx(3);

    /// A worker's belongings, and a kernel that answers as it is told.
    struct Bench {
        tables: Tables,
        pool: Pool,
        counters: Counters,
        refusals: GsoRefusals,
        now: Instant,
    }

    impl Bench {
        fn new(buffers: usize) -> Self {
            let node = Node {
                vtep_mac: Mac::HOST,
                gateway_v4: None,
                gateway_v6: None,
                underlay: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                vxlan_port: 4789,
                gossip_port: 7946,
            };
            Self {
                tables: TablesBuilder::new(1, node, &[]).build(),
                pool: Pool::new(buffers),
                counters: Counters::new(1, 8),
                refusals: GsoRefusals::default(),
                now: Instant::now(),
            }
        }

        /// Sends `frame` to a kernel that answers the `n`th write with what `answer` makes of it. Returns
        /// what the kernel was given.
        fn send(
            &mut self,
            frame: Frame,
            answer: impl Fn(usize, &VnetHeader) -> Result<(), Errno>,
        ) -> Vec<(VnetHeader, Vec<u8>)> {
            let writes = RefCell::new(Vec::new());
            let counters = self.counters.worker(0);
            // As the switch has counted it.
            counters.received.add(frame.packets());
            let mut context =
                Context { tables: &self.tables, pool: &mut self.pool, counters: &counters };
            let clock = || self.now;
            send_at(&mut context, PORT, &self.refusals, frame, clock, |bytes| {
                let header = VnetHeader::from_slice(bytes).unwrap();
                let mut writes = writes.borrow_mut();
                writes.push((header, bytes[VnetHeader::LEN..].to_vec()));
                answer(writes.len() - 1, &header)
            });
            self.assert_accounted(0);
            writes.into_inner()
        }

        /// Sends `chain` to a kernel that answers so. Returns the bytes of each write.
        fn send_chain(&mut self, chain: &mut Chain, answer: Result<(), Errno>) -> Vec<Vec<u8>> {
            let writes = RefCell::new(Vec::new());
            let counters = self.counters.worker(0);
            let mut context =
                Context { tables: &self.tables, pool: &mut self.pool, counters: &counters };
            let clock = || self.now;
            send_chain_at(&mut context, PORT, &self.refusals, chain, clock, |slices| {
                let bytes = slices.iter().flat_map(|slice| slice.to_vec()).collect();
                writes.borrow_mut().push(bytes);
                answer
            });
            writes.into_inner()
        }

        /// Ends what is left in `chain`; returns how many packets that is.
        fn empty(&mut self, chain: &mut Chain) -> u64 {
            let mut packets = 0;
            while let Some(frame) = chain.pop() {
                packets += frame.packets();
                self.pool.put(frame);
            }
            packets
        }

        /// Receives from a kernel that has these answers, and then nothing.
        fn receive(
            &mut self,
            answers: impl IntoIterator<Item = Result<(Vec<u8>, bool), Errno>>,
        ) -> (Result<(), Errno>, Batch, usize) {
            let mut answers: VecDeque<_> = answers.into_iter().collect();
            let counters = self.counters.worker(0);
            let mut context =
                Context { tables: &self.tables, pool: &mut self.pool, counters: &counters };
            let mut batch = Batch::new();
            let result = receive(&mut context, PORT, &mut batch, |buffer| {
                let (bytes, is_tagged) = answers.pop_front().unwrap_or(Err(Errno::AGAIN))?;
                buffer[..bytes.len()].copy_from_slice(&bytes);
                let len = bytes.len();
                Ok(if is_tagged { Received::Tagged(len) } else { Received::Frame(len) })
            });
            self.assert_accounted(batch.iter().map(Frame::packets).sum());
            (result, batch, answers.len())
        }

        #[track_caller]
        fn assert_accounted(&self, queued: u64) {
            assert_eq!(self.counters.sum().queued(), i128::from(queued), "conservation");
        }

        #[track_caller]
        fn assert_counts(&self, delivered: u64, dropped: &[(Reason, u64)]) {
            let totals = self.counters.sum();
            assert_eq!(totals.delivered, delivered);
            for reason in Reason::ALL {
                let expected = dropped.iter().find(|(other, _)| other == reason);
                assert_eq!(totals.dropped(*reason), expected.map_or(0, |(_, n)| *n), "{reason}");
            }
            let port = self.counters.port(PORT);
            assert_eq!(port.delivered, delivered);
            assert_eq!(port.dropped, totals.dropped_total());
            assert_eq!(port.delivered_bytes, totals.delivered_bytes);
        }
    }

    fn tcp(payload: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 244, 1, 2], [10, 244, 1, 3], 64)
            .tcp(4000, 80, 1, 1000)
            .write(&mut bytes, &vec![7; payload])
            .unwrap();
        bytes
    }

    /// What a TAP hands over for a TCP packet: with `size`, a super-frame.
    fn with_header(mut packet: Vec<u8>, size: u16) -> Vec<u8> {
        let pseudo = {
            let wire::Network::Ip(ip) = wire::parse(&packet).unwrap().network else { panic!() };
            let len = packet.len() - ip.transport_offset;
            checksum::pseudo_header(ip.source, ip.destination, ip.protocol, len).fold()
        };
        packet[50..52].copy_from_slice(&pseudo.to_be_bytes());
        let header = VnetHeader {
            flags: 1,
            gso_type: u8::from(size > 0),
            gso_size: size.into(),
            csum_start: 34.into(),
            csum_offset: 16.into(),
            ..VnetHeader::NONE
        };
        [&header.to_bytes()[..], &packet].concat()
    }

    /// A super-frame of `segments` packets with 100 bytes each.
    fn super_frame(bench: &mut Bench, segments: u16) -> Frame {
        let mut frame = bench.pool.take().unwrap();
        let bytes = with_header(tcp(usize::from(segments) * 100), 100);
        assert!(frame.append(&bytes[VnetHeader::LEN..]));
        frame.meta.checksum = Checksum::Partial { start: 34, offset: 16 };
        frame.meta.gso = Some(Gso { kind: GsoKind::Tcp4, size: 100, segments });
        frame
    }

    /// A chain of `frames` super-frames of five packets each, as the switch has counted it.
    fn chain(bench: &mut Bench, frames: u16) -> Chain {
        let mut chain = Chain::new(LongFrames { tcp4: true, tcp6: true });
        for ix in 0..frames {
            let mut frame = super_frame(bench, 5);
            let sequence = 1 + u32::from(ix) * 500;
            frame.data_mut()[38..42].copy_from_slice(&sequence.to_be_bytes());
            bench.counters.worker(0).received.add(frame.packets());
            chain.push(frame).unwrap();
        }
        chain
    }

    fn small_frame(bench: &mut Bench) -> Frame {
        let mut frame = bench.pool.take().unwrap();
        assert!(frame.append(&tcp(10)));
        frame
    }

    fn is_whole(header: &VnetHeader) -> bool {
        header.gso_type != 0
    }

    #[track_caller]
    fn assert_is_right(packet: &[u8]) {
        let sliced = SlicedPacket::from_ethernet(packet).unwrap();
        let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) =
            (sliced.net, sliced.transport)
        else {
            panic!("not TCP over IPv4");
        };
        assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
        let header = ip.header().to_header();
        let right = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap();
        assert_eq!(tcp.checksum(), right);
    }

    #[test]
    fn a_super_frame_is_sent_whole_where_the_kernel_takes_it() {
        let mut bench = Bench::new(4);
        let frame = super_frame(&mut bench, 5);
        let bytes = frame.data().to_vec();
        let writes = bench.send(frame, |_, _| Ok(()));
        assert_eq!(writes.len(), 1);
        let (header, written) = &writes[0];
        assert_eq!(*written, bytes);
        assert_eq!((header.flags, header.gso_type, header.gso_size.get()), (1, 1, 100));
        assert_eq!((header.csum_start.get(), header.csum_offset.get()), (34, 16));
        bench.assert_counts(5, &[]);
        assert_eq!(bench.refusals.count(), 0);
        assert_eq!(bench.pool.in_use(), 0);
    }

    #[test]
    fn a_refused_super_frame_is_cut_and_so_are_those_after_it_for_a_while() {
        let mut bench = Bench::new(4);
        let refuse = |_, header: &VnetHeader| {
            if is_whole(header) { Err(Errno::INVAL) } else { Ok(()) }
        };
        let frame = super_frame(&mut bench, 5);
        let writes = bench.send(frame, refuse);
        assert_eq!(writes.len(), 6, "once whole, then five packets");
        for (header, packet) in &writes[1..] {
            assert_eq!(*header, VnetHeader::NONE);
            assert_eq!(packet.len(), 54 + 100);
            assert_is_right(packet);
        }
        bench.assert_counts(5, &[]);
        assert_eq!(bench.refusals.count(), 1);

        let since = bench.refusals.fallbacks()[0].since;

        for wait in [Duration::ZERO, PAUSE - Duration::from_millis(1)] {
            bench.now += wait;
            let frame = super_frame(&mut bench, 2);
            assert_eq!(bench.send(frame, refuse).len(), 2, "the kernel is not asked");
        }
        bench.now += Duration::from_millis(2);
        let frame = super_frame(&mut bench, 2);
        assert_eq!(bench.send(frame, refuse).len(), 3, "the kernel is asked again");
        assert_eq!(bench.refusals.count(), 2);
        let [told] = bench.refusals.fallbacks()[..] else { panic!() };
        assert_eq!((told.kind, told.since), (GsoKind::Tcp4, since));
        assert!(told.next_try > bench.now);

        bench.now += PAUSE + Duration::from_millis(1);
        for _ in 0..2 {
            let frame = super_frame(&mut bench, 2);
            assert_eq!(bench.send(frame, |_, _| Ok(())).len(), 1, "the device takes them again");
            assert_eq!(bench.refusals.fallbacks(), []);
        }
        assert_eq!(bench.pool.in_use(), 0);
    }

    #[test]
    fn a_refusal_is_about_one_kind() {
        let bench = Bench::new(1);
        bench.refusals.note(GsoKind::Tcp4, bench.now);
        assert!(!bench.refusals.must_cut(GsoKind::Tcp6, || unreachable!()));
        assert!(!bench.refusals.must_cut(GsoKind::Udp, || unreachable!()));
        assert!(bench.refusals.must_cut(GsoKind::Tcp4, || bench.now));
    }

    #[test]
    fn each_packet_of_a_cut_frame_has_its_own_fate() {
        let mut bench = Bench::new(4);
        bench.refusals.note(GsoKind::Tcp4, bench.now);
        let frame = super_frame(&mut bench, 4);
        let writes = bench.send(frame, |n, _| match n {
            1 => Err(Errno::AGAIN),
            2 => Err(Errno::IO),
            _ => Ok(()),
        });
        assert_eq!(writes.len(), 4);
        bench.assert_counts(2, &[(Reason::PortFull, 1), (Reason::PortError, 1)]);
    }

    #[test]
    fn what_cannot_be_cut_for_want_of_a_buffer_is_counted() {
        let mut bench = Bench::new(1);
        bench.refusals.note(GsoKind::Tcp4, bench.now);
        let frame = super_frame(&mut bench, 4);
        assert!(bench.send(frame, |_, _| Ok(())).is_empty());
        bench.assert_counts(0, &[(Reason::PoolEmpty, 4)]);
        assert_eq!(bench.pool.in_use(), 0);
    }

    #[test]
    fn a_chain_is_one_write_where_the_kernel_takes_it() {
        let mut bench = Bench::new(4);
        let mut chain = chain(&mut bench, 4);
        let writes = bench.send_chain(&mut chain, Ok(()));
        assert_eq!(writes.iter().map(Vec::len).collect::<Vec<_>>(), [VnetHeader::LEN + 54 + 2000]);
        let header = VnetHeader::from_slice(&writes[0]).unwrap();
        assert_eq!((header.gso_type, header.gso_size.get()), (1, 100));
        bench.assert_counts(20, &[]);
        bench.assert_accounted(0);
        assert!(chain.pop().is_none());
        assert_eq!((bench.pool.in_use(), bench.refusals.count()), (0, 0));
    }

    #[test]
    fn a_refused_chain_is_left_to_be_written_singly_and_so_are_those_after_it_for_a_while() {
        for error in [Errno::INVAL, Errno::MSGSIZE, Errno::NOBUFS, Errno::NOMEM] {
            let mut bench = Bench::new(4);
            let mut refused = chain(&mut bench, 3);
            assert_eq!(bench.send_chain(&mut refused, Err(error)).len(), 1);
            bench.assert_counts(0, &[]);
            bench.assert_accounted(15);
            assert_eq!(bench.empty(&mut refused), 15, "nothing is lost");
            assert_eq!(bench.refusals.count_of(GsoKind::Tcp4), 1);
            let since = bench.refusals.fallbacks()[0].since;

            let mut later = chain(&mut bench, 3);
            for wait in [Duration::ZERO, PAUSE - Duration::from_millis(1)] {
                bench.now += wait;
                assert!(bench.send_chain(&mut later, Ok(())).is_empty(), "the kernel is not asked");
            }
            bench.now += Duration::from_millis(2);
            assert_eq!(bench.send_chain(&mut later, Err(error)).len(), 1, "it is asked again");
            let [told] = bench.refusals.fallbacks()[..] else { panic!() };
            assert_eq!((told.kind, told.since), (GsoKind::Tcp4, since));
            assert_eq!(bench.refusals.count_of(GsoKind::Tcp4), 2);
            assert_eq!(bench.refusals.count_of(GsoKind::Tcp6), 0);

            bench.now += PAUSE + Duration::from_millis(1);
            assert_eq!(bench.send_chain(&mut later, Ok(())).len(), 1, "it takes them again");
            assert_eq!(bench.refusals.fallbacks(), []);
            bench.assert_counts(15, &[]);
            bench.assert_accounted(15);
            assert_eq!(bench.pool.in_use(), 0);
        }
    }

    #[test]
    fn a_chain_that_is_not_taken_for_another_reason_is_dropped_as_its_frames_would_be() {
        for (error, reason) in [
            (Errno::AGAIN, Reason::PortFull),
            (Errno::BADFD, Reason::PortGone),
            (Errno::NODEV, Reason::PortGone),
            (Errno::IO, Reason::PortError),
        ] {
            let mut bench = Bench::new(4);
            let mut chain = chain(&mut bench, 4);
            assert_eq!(bench.send_chain(&mut chain, Err(error)).len(), 1);
            bench.assert_counts(0, &[(reason, 20)]);
            bench.assert_accounted(0);
            assert!(chain.pop().is_none());
            assert_eq!(bench.refusals.count(), 0, "that is not about its length");
            assert_eq!(bench.pool.in_use(), 0);
        }
    }

    #[test]
    fn what_is_no_chain_is_left_alone() {
        let mut bench = Bench::new(4);
        let mut single = chain(&mut bench, 1);
        assert!(bench.send_chain(&mut single, Ok(())).is_empty());
        assert_eq!(bench.empty(&mut single), 5);
        assert!(bench.send_chain(&mut single, Ok(())).is_empty());
        bench.refusals.note(GsoKind::Tcp6, bench.now);
        let mut other = chain(&mut bench, 2);
        assert_eq!(bench.send_chain(&mut other, Ok(())).len(), 1, "another kind is refused");
        assert_eq!(bench.pool.in_use(), 0);
    }

    #[test]
    fn a_super_frame_whose_meta_data_lies_is_counted() {
        let mut bench = Bench::new(2);
        bench.refusals.note(GsoKind::Udp, bench.now);
        let mut frame = super_frame(&mut bench, 4);
        frame.meta.gso = Some(Gso { kind: GsoKind::Udp, size: 100, segments: 4 });
        assert!(bench.send(frame, |_, _| Ok(())).is_empty());
        bench.assert_counts(0, &[(Reason::BadOffload, 4)]);
    }

    #[test]
    fn every_error_of_a_write_has_its_reason() {
        for (error, reason) in [
            (Errno::AGAIN, Reason::PortFull),
            (Errno::NOBUFS, Reason::PortFull),
            (Errno::NOMEM, Reason::PortFull),
            (Errno::BADFD, Reason::PortGone),
            (Errno::NODEV, Reason::PortGone),
            (Errno::NXIO, Reason::PortGone),
            (Errno::NETDOWN, Reason::PortError),
            (Errno::IO, Reason::PortError),
            (Errno::MSGSIZE, Reason::PortError),
            // Of a frame that is none, a refusal says nothing about super-frames.
            (Errno::INVAL, Reason::PortError),
        ] {
            let mut bench = Bench::new(2);
            let frame = small_frame(&mut bench);
            bench.send(frame, |_, _| Err(error));
            bench.assert_counts(0, &[(reason, 1)]);
            assert_eq!(bench.refusals.count(), 0);
            assert_eq!(bench.pool.in_use(), 0);
        }
    }

    #[test]
    fn frames_are_received_until_nothing_waits() {
        let mut bench = Bench::new(8);
        let plain = [&VnetHeader::NONE.to_bytes()[..], &tcp(10)].concat();
        let merged = with_header(tcp(250), 100);
        let answers = [Ok((plain, false)), Err(Errno::INTR), Ok((merged, false))];
        let (result, batch, left) = bench.receive(answers);
        assert_eq!((result, left), (Ok(()), 0));
        assert_eq!(batch.iter().map(Frame::packets).collect::<Vec<_>>(), [1, 3]);
        assert!(batch.iter().all(|frame| frame.meta.ingress == Ingress::Port(PORT)));
        assert_eq!(batch[0].data(), tcp(10));
        let port = bench.counters.port(PORT);
        assert_eq!((port.received, port.received_bytes), (4, (64 + 304)));
    }

    #[test]
    fn what_cannot_be_carried_is_counted_and_the_rest_goes_on() {
        let mut bench = Bench::new(8);
        let tagged_super_frame = with_header(tcp(250), 100);
        let mut wrong = with_header(tcp(10), 0);
        wrong[6] = 35; // Where the sum begins.
        let good = [&VnetHeader::NONE.to_bytes()[..], &tcp(1)].concat();
        let (result, batch, _) = bench.receive([
            Ok((tagged_super_frame, true)),
            Ok((wrong, false)),
            Ok((vec![0; 3], false)),
            Err(Errno::INVAL),
            Ok((good, false)),
        ]);
        assert_eq!((result, batch.len()), (Ok(()), 1));
        bench.assert_counts(0, &[(Reason::VlanTagged, 3), (Reason::BadOffload, 3)]);
        assert_eq!(bench.counters.sum().received, 7);
    }

    #[test]
    fn a_lost_device_is_an_error_and_what_came_before_it_is_kept() {
        let mut bench = Bench::new(8);
        let good = [&VnetHeader::NONE.to_bytes()[..], &tcp(1)].concat();
        let (result, batch, left) =
            bench.receive([Ok((good.clone(), false)), Err(Errno::BADFD), Ok((good, false))]);
        assert_eq!((result, batch.len(), left), (Err(Errno::BADFD), 1, 1));
        assert_eq!(bench.pool.in_use(), 1);
    }

    #[test]
    fn a_batch_has_limits() {
        let small = || Ok(([&VnetHeader::NONE.to_bytes()[..], &tcp(1)].concat(), false));
        let (result, batch, left) =
            Bench::new(100).receive(std::iter::repeat_with(small).take(BATCH_MAX + 5));
        assert_eq!((result, batch.len(), left), (Ok(()), BATCH_MAX, 5), "frames");

        let large = || Ok((with_header(tcp(60_000), 1400), false));
        let (result, batch, left) = Bench::new(100).receive(std::iter::repeat_with(large).take(20));
        assert_eq!((result, batch.len(), left), (Ok(()), 3, 17), "bytes");

        let (result, batch, left) = Bench::new(3).receive(std::iter::repeat_with(small).take(5));
        assert_eq!((result, batch.len(), left), (Ok(()), 3, 2), "buffers");

        let refused = || Err(Errno::INVAL);
        let (result, batch, left) =
            Bench::new(3).receive(std::iter::repeat_with(refused).take(UNREADABLE_MAX + 5));
        assert_eq!((result, batch.len(), left), (Ok(()), 0, 5), "frames that cannot be described");

        let (result, batch, left) =
            Bench::new(3).receive([Err(Errno::NOBUFS), Ok((vec![], false))]);
        assert_eq!((result, batch.len(), left), (Ok(()), 0, 1), "the kernel's memory");
    }
}
