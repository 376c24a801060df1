//! Cutting what was coalesced gives back what came in, whatever that was.
//!
//! Several senders' packets, with everything in them that may end a merge, arrive interleaved, late and twice, out
//! of the tunnel or from pods. They are coalesced, and the frames are cut: by [`Cut`], or, where several become
//! one long write, as Linux does. What comes out is compared with what came in, flow by flow and
//! byte by byte, but for what [`crate::offload`] says may change: in packets that were merged, PSH moves to the
//! last one, and an IPv4 identification that means nothing counts up even if it stood still.
//!
//! The limits of the coalescer are in [`limits`], and the properties hold whatever they are.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::{TestCaseError, TestRunner};

use proptest::prelude::*;

use super::coalesce::{FROM, OPTIONS};
use super::*;

proptest! {
    // Each has some hundred packets.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..Default::default() })]

    #[test]
    fn cutting_gives_back_what_was_coalesced(stream in streams(), options in limits()) {
        check(&stream, options)?;
    }

    #[test]
    fn coalescing_gives_back_what_was_cut(packet in super_packets(), size in 1u16..1350) {
        let most = if packet.is_tcp { SEGMENTS_MAX } else { UDP_SEGMENTS_MAX };
        let least = packet.payload_len.div_ceil(usize::from(most));
        let size = usize::from(size).max(least).min(packet.payload_len - 1);
        let (mut frame, header) = super_frame(&packet, u16::try_from(size).unwrap());
        decode(&header, &mut frame).unwrap();
        frame.meta.ingress = FROM;
        let (mut pool, mut batch) = (Pool::new(usize::from(most)), Batch::new());
        let mut coalescer = Coalescer::new(OPTIONS);
        for packet in cut(&frame) {
            coalescer.push(&packet, FROM, &mut pool, &mut batch).unwrap();
        }
        coalescer.finish(&mut batch);
        prop_assert_eq!(batch.len(), 1);
        prop_assert_eq!(batch[0].data(), frame.data());
        prop_assert_eq!(batch[0].meta, frame.meta);
    }
}

/// That everything comes back means something only if much is merged.
#[test]
fn the_streams_are_worth_something() {
    let mut runner = TestRunner::deterministic();
    let mut draw = |limits: Options| {
        let mut sum = Merged::default();
        for _ in 0..100 {
            let stream = streams().new_tree(&mut runner).unwrap().current();
            sum.add(&check(&stream, limits).unwrap());
        }
        sum
    };
    let merged = draw(OPTIONS);
    assert!(merged.kinds.iter().all(|frames| *frames > 50), "{merged:?}");
    assert!(merged.packets > 1000 && merged.alone > 1000, "{merged:?}");
    assert!(merged.rewritten > 100, "{merged:?}");
    assert!(merged.chains >= 5 && merged.longest > 150_000, "{merged:?}");
    let mut without_udp = OPTIONS;
    without_udp.merge_udp = false;
    let [tcp4, tcp6, udp] = draw(without_udp).kinds;
    assert!(tcp4 > 50 && tcp6 > 50 && udp == 0, "{:?}", [tcp4, tcp6, udp]);
}

#[test]
fn more_flows_than_places_are_fine() {
    let send = |packet: Packet| Sent { ingress: FROM, what: What::Packet(packet, Form::Plain) };
    let first = |port| Packet { port, ..Packet::TCP };
    let two = (0..200).flat_map(|port| [first(port), first(port).next()]);
    let third = (0..200).map(|port| first(port).next().next());
    let stream = Stream {
        sent: two.chain(third).map(send).collect(),
        is_local: false,
        long: LongFrames::NONE,
        batch_len: 600,
        pool_len: 600,
    };
    let merged = check(&stream, OPTIONS).unwrap();
    assert!(merged.packets >= 400, "{merged:?}");
}

/// Everything that a coalescer can be asked to do.
fn limits() -> impl Strategy<Value = Options> {
    let mtu = prop_oneof![2 => Just(OPTIONS.mtu), 1 => Just(8950), 1 => 576u16..1500];
    (any::<bool>(), mtu).prop_map(|(merge_udp, mtu)| {
        let mut options = OPTIONS;
        options.merge_udp = merge_udp;
        options.mtu = mtu;
        options
    })
}

/// What arrives at a coalescer, and how it goes on.
#[derive(Debug, Clone)]
struct Stream {
    sent: Vec<Sent>,
    /// Whether it arrives in frames of a port, and not in datagrams out of the tunnel.
    is_local: bool,
    /// What the kernel takes that it goes to.
    long: LongFrames,
    /// After so many packets, the frames are finished and leave.
    batch_len: usize,
    /// So many frames fit into the pool. Packets for which there is none are refused.
    pool_len: usize,
}

/// One packet, and where it comes in.
#[derive(Debug, Clone)]
struct Sent {
    ingress: Ingress,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Packet(Packet, Form),
    Echo(u16),
    Arp,
}

/// How a packet is written.
#[derive(Debug, Clone, Copy)]
enum Form {
    Plain,
    /// With the checksum left to do, if it fits the MTU: longer TCP segments are taken for super-frames.
    Partial,
    /// UDP over IPv4 without a checksum.
    Unsummed,
    /// With bytes behind the IP packet.
    Padded(usize),
    /// UDP with bytes behind the datagram, but in the IP packet.
    Trailed(u8),
}

/// A sender.
#[derive(Debug, Clone)]
struct Flow {
    ingress: Ingress,
    /// What it sends next.
    next: Packet,
    numbering: Numbering,
}

/// How a sender goes on with the IPv4 identification.
#[derive(Debug, Clone, Copy)]
enum Numbering {
    Counts,
    StandsStill,
    CountsBy(u16),
    /// As if at random.
    Jumps,
}

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    /// A flow sends some packets. The first one, or all from it on, deviate.
    Send {
        flow: Index,
        deviation: Option<(Deviation, Lasts)>,
        packets: usize,
    },
    Echo(u16),
    Arp,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Lasts {
    Once,
    FromNowOn,
}

/// How a packet differs from what its sender's last one lets expect.
#[derive(Debug, Clone)]
enum Deviation {
    Size(usize),
    /// Ahead is a gap; back is a retransmission, or overlaps.
    Sequence(i32),
    /// Of TCP.
    Flags(u8),
    Acknowledgment,
    Window(u16),
    Urgent(u16),
    /// NOPs.
    Options(usize),
    /// RFC 7323 §3.2.
    Timestamps(u32, u32),
    TrafficClass(u8),
    Ttl(u8),
    Identification(u16),
    DontFragment,
    FlowLabel(u32),
    SourceMac(u8),
    IpOptions,
    Fragment(u16, bool),
    Form(Form),
}

fn streams() -> impl Strategy<Value = Stream> {
    let flows =
        prop_oneof![prop::collection::vec(flow(), 1..3), prop::collection::vec(flow(), 3..7)];
    let all = streams_of(flows, prop::collection::vec(step(1usize..200), 1..40));
    // Long writes need many full packets in a row.
    let bulk = flow().prop_filter_map("bulk", |mut flow| {
        flow.next.payload_len = 1380;
        matches!(flow.numbering, Numbering::Counts | Numbering::StandsStill).then_some(vec![flow])
    });
    let bulk = streams_of(bulk, prop::collection::vec(step(40usize..200), 1..6));
    prop_oneof![4 => all, 1 => bulk]
}

/// Streams of these flows and steps.
fn streams_of(
    flows: impl Strategy<Value = Vec<Flow>>,
    steps: impl Strategy<Value = Vec<Step>>,
) -> impl Strategy<Value = Stream> {
    let late = || prop::collection::vec((any::<Index>(), 1usize..12), 0..5);
    (
        flows,
        steps,
        late(),
        late(),
        (any::<bool>(), any::<[bool; 2]>()),
        (1usize..300, prop_oneof![1 => 1usize..30, 4 => Just(usize::MAX)]),
    )
        .prop_map(
            |(mut flows, steps, late, twice, (is_local, long), (batch_len, pool_len))| {
                let [tcp4, tcp6] = long;
                let long = LongFrames { tcp4, tcp6 };
                let mut sent: Vec<Sent> =
                    steps.iter().flat_map(|step| play(&mut flows, step)).collect();
                for (from, by) in late {
                    let from = from.index(sent.len());
                    let packet = sent.remove(from);
                    sent.insert((from + by).min(sent.len()), packet);
                }
                for (from, by) in twice {
                    let from = from.index(sent.len());
                    let packet = sent[from].clone();
                    sent.insert((from + by).min(sent.len()), packet);
                }
                Stream { sent, is_local, long, batch_len, pool_len }
            },
        )
}

/// Ports and hosts are few, so that there are also two senders in one flow, and one flow from two nodes.
fn flow() -> impl Strategy<Value = Flow> {
    let payload_len =
        prop_oneof![1 => 1usize..40, 1 => 40usize..600, 2 => Just(1380), 1 => 7000usize..8800];
    let numbering = prop_oneof![
        3 => Just(Numbering::Counts),
        2 => Just(Numbering::StandsStill),
        1 => (2u16..9).prop_map(Numbering::CountsBy),
        1 => Just(Numbering::Jumps),
    ];
    (
        (any::<[bool; 4]>(), 1u16..5, 5u8..7, any::<bool>()),
        (payload_len, numbering, any::<u16>(), any::<u32>()),
        (0u8..4, 1u8..65),
    )
        .prop_map(|(of_flow, of_packets, (traffic_class, ttl))| {
            let ([is_ipv4, is_tcp, dont_fragment, timestamps], port, host, is_near) = of_flow;
            let (payload_len, numbering, identification, sequence) = of_packets;
            let options = if timestamps && is_tcp { timestamp_option(7, 9) } else { Vec::new() };
            let next = Packet {
                is_ipv4,
                is_tcp,
                host,
                traffic_class,
                ttl,
                identification,
                dont_fragment,
                port,
                sequence,
                options,
                payload_len,
                ..Packet::TCP
            };
            let ingress = if is_near { FROM } else { Ingress::Node(NodeIx(4)) };
            Flow { ingress, next, numbering }
        })
}

fn timestamp_option(value: u32, echo: u32) -> Vec<u8> {
    [&[1, 1, 8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
}

/// A step in which a flow sends so many packets; few ones more often than many.
fn step(packets: Range<usize>) -> impl Strategy<Value = Step> {
    let Range { start, end } = packets;
    let packets = prop_oneof![6 => start..start + 5, 3 => start..start + 30, 1 => start..end];
    let lasts = prop_oneof![Just(Lasts::Once), Just(Lasts::FromNowOn)];
    let send = (any::<Index>(), prop::option::of((deviation(), lasts)), packets)
        .prop_map(|(flow, deviation, packets)| Step::Send { flow, deviation, packets });
    prop_oneof![20 => send, 1 => any::<u16>().prop_map(Step::Echo), 1 => Just(Step::Arp)]
}

fn deviation() -> impl Strategy<Value = Deviation> {
    // What Linux sends, and anything.
    let flags = prop_oneof![
        Just(ACK),
        Just(ACK | PSH),
        Just(ACK | FIN),
        Just(ACK | PSH | FIN),
        Just(ACK | ECE),
        Just(ACK | CWR),
        Just(SYN),
        Just(SYN | ACK),
        Just(RST),
        any::<u8>(),
    ];
    let form = prop_oneof![
        Just(Form::Partial),
        Just(Form::Unsummed),
        (1usize..40).prop_map(Form::Padded),
        (1u8..9).prop_map(Form::Trailed),
    ];
    prop_oneof![
        3 => prop_oneof![Just(0), 1usize..1500, 1usize..9000].prop_map(Deviation::Size),
        2 => prop_oneof![-3000i32..3000, any::<i32>()].prop_map(Deviation::Sequence),
        4 => flags.prop_map(Deviation::Flags),
        1 => Just(Deviation::Acknowledgment),
        1 => any::<u16>().prop_map(Deviation::Window),
        1 => (0u16..2).prop_map(Deviation::Urgent),
        1 => (0usize..10).prop_map(Deviation::Options),
        2 => any::<[u32; 2]>().prop_map(|[value, echo]| Deviation::Timestamps(value, echo)),
        2 => prop_oneof![Just(3u8), any::<u8>()].prop_map(Deviation::TrafficClass),
        1 => (1u8..65).prop_map(Deviation::Ttl),
        2 => any::<u16>().prop_map(Deviation::Identification),
        1 => Just(Deviation::DontFragment),
        1 => (0u32..0x10_0000).prop_map(Deviation::FlowLabel),
        1 => (1u8..3).prop_map(Deviation::SourceMac),
        1 => Just(Deviation::IpOptions),
        1 => (0u16..1000, any::<bool>()).prop_map(|(at, more)| Deviation::Fragment(at, more)),
        2 => form.prop_map(Deviation::Form),
    ]
}

/// What is sent in one step. The flow goes on behind it.
fn play(flows: &mut [Flow], step: &Step) -> Vec<Sent> {
    let (flow, deviation, packets) = match step {
        Step::Send { flow, deviation, packets } => (flow, deviation, *packets),
        Step::Echo(number) => return vec![Sent { ingress: FROM, what: What::Echo(*number) }],
        Step::Arp => return vec![Sent { ingress: FROM, what: What::Arp }],
    };
    let flow = &mut flows[flow.index(flows.len())];
    let mut form = Form::Plain;
    let mut sent = Vec::new();
    for ix in 0..packets {
        let mut packet = flow.next.clone();
        if let (0, Some((deviation, lasts))) = (ix, deviation) {
            deviation.apply(&mut packet, &mut form);
            if *lasts == Lasts::FromNowOn {
                flow.next = packet.clone();
            }
        }
        let is_astray = matches!((ix, deviation), (0, Some((Deviation::Sequence(_), Lasts::Once))));
        if !is_astray {
            flow.next.sequence = packet.next().sequence;
        }
        flow.next.identification = flow.numbering.follow(packet.identification);
        sent.push(Sent { ingress: flow.ingress, what: What::Packet(packet, form) });
        if matches!(deviation, Some((_, Lasts::Once))) {
            form = Form::Plain;
        }
    }
    sent
}

impl Numbering {
    fn follow(self, last: u16) -> u16 {
        match self {
            Self::Counts => last.wrapping_add(1),
            Self::StandsStill => last,
            Self::CountsBy(step) => last.wrapping_add(step),
            Self::Jumps => last.wrapping_mul(0x6255).wrapping_add(0x3619),
        }
    }
}

impl Deviation {
    fn apply(&self, packet: &mut Packet, form: &mut Form) {
        match *self {
            Self::Size(len) => packet.payload_len = len,
            Self::Sequence(by) => packet.sequence = packet.sequence.wrapping_add_signed(by),
            Self::Flags(flags) => packet.flags = flags,
            Self::Acknowledgment => packet.acknowledgment = packet.acknowledgment.wrapping_add(1),
            Self::Window(window) => packet.window = window,
            Self::Urgent(urgent) => packet.urgent = urgent,
            Self::Options(words) => packet.options = vec![1; words * 4],
            Self::Timestamps(value, echo) => packet.options = timestamp_option(value, echo),
            Self::TrafficClass(class) => packet.traffic_class = class,
            Self::Ttl(ttl) => packet.ttl = ttl,
            Self::Identification(number) => packet.identification = number,
            Self::DontFragment => packet.dont_fragment ^= true,
            Self::FlowLabel(label) => packet.flow_label = label,
            Self::SourceMac(mac) => packet.source_mac = mac,
            Self::IpOptions => packet.has_ip_options = true,
            Self::Fragment(at, more) => packet.fragment = Some((at, more)),
            Self::Form(other) => *form = other,
        }
        // Only the end of a fragmented packet may be odd (RFC 791 §3.2).
        if packet.fragment.is_some_and(|(_, more)| more) {
            let header_len = if packet.is_tcp { 20 + packet.options.len() } else { 8 };
            packet.payload_len = (header_len + packet.payload_len).next_multiple_of(8) - header_len;
        }
    }
}

impl Sent {
    /// Its bytes as they arrive, and as they have to leave.
    fn bytes(&self, options: Options) -> (Vec<u8>, Vec<u8>) {
        let (packet, form) = match &self.what {
            What::Packet(packet, form) => (packet, *form),
            What::Echo(number) => {
                let (mut bytes, payload) = (Vec::new(), [0x55; 56]);
                PacketBuilder::ethernet2([2; 6], [4; 6])
                    .ipv4([10, 244, 1, 5], [10, 244, 2, 7], 63)
                    .icmpv4_echo_request(7, *number)
                    .write(&mut bytes, &payload)
                    .unwrap();
                return (bytes.clone(), bytes);
            }
            What::Arp => {
                // RFC 826: a request for IPv4 over Ethernet.
                let mut bytes = [&[0xff; 6][..], &[2; 6], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
                bytes.resize(42, 5);
                return (bytes.clone(), bytes);
            }
        };
        let mut bytes = packet.build();
        let is_whole = matches!(packet.fragment, None | Some((0, false)));
        let fits = bytes.len() <= 14 + usize::from(options.mtu);
        let transport_at = ip_of(&bytes).transport_offset;
        match form {
            Form::Partial if is_whole && fits => (super_frame(packet, 0).0.data().to_vec(), bytes),
            Form::Unsummed if is_whole && !packet.is_tcp && packet.is_ipv4 => {
                let at = transport_at + 6;
                bytes[at..at + 2].fill(0);
                (bytes.clone(), bytes)
            }
            Form::Padded(len) => {
                let padded = [&bytes[..], &vec![0xff; len]].concat();
                (padded, bytes)
            }
            Form::Trailed(len) if is_whole && !packet.is_tcp => {
                let len_at = if packet.is_ipv4 { 14 + 2 } else { 14 + 4 };
                let ip_len =
                    u16::from_be_bytes([bytes[len_at], bytes[len_at + 1]]) + u16::from(len);
                bytes[len_at..len_at + 2].copy_from_slice(&ip_len.to_be_bytes());
                if packet.is_ipv4 {
                    checksum::set_ipv4_header(&mut bytes[14..transport_at]);
                }
                bytes.resize(bytes.len() + usize::from(len), 0xaa);
                (bytes.clone(), bytes)
            }
            Form::Plain | Form::Partial | Form::Unsummed | Form::Trailed(_) => {
                (bytes.clone(), bytes)
            }
        }
    }
}

/// What has to stay in order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Key {
    ingress: Ingress,
    addresses: (IpAddr, IpAddr),
    /// Protocol and ports; of a fragment, which may be of any flow, none.
    flow: Option<(u8, (u16, u16))>,
}

impl Key {
    fn of(ingress: Ingress, packet: &[u8]) -> Self {
        let none = Ipv4Addr::UNSPECIFIED.into();
        let Network::Ip(ip) = wire::parse(packet).unwrap().network else {
            return Self { ingress, addresses: (none, none), flow: None };
        };
        let is_whole = ip.fragment == wire::Fragment::Whole;
        let flow = is_whole.then(|| (ip.protocol, wire::flow::ports(&ip)));
        Self { ingress, addresses: (ip.source, ip.destination), flow }
    }

    /// Whether neither of two packets may overtake the other.
    fn is_tied_to(&self, other: &Self) -> bool {
        let is_fragment = self.flow.is_none() || other.flow.is_none();
        let is_between_same = self.ingress == other.ingress && self.addresses == other.addresses;
        is_between_same && (is_fragment || self.flow == other.flow)
    }
}

/// What a coalescer did.
#[derive(Debug, Default)]
struct Merged {
    /// Super-frames: TCP over IPv4, TCP over IPv6, UDP.
    kinds: [usize; 3],
    /// Packets in them.
    packets: usize,
    /// Of those, the ones in which something changed that means nothing.
    rewritten: usize,
    /// Packets that became frames of their own.
    alone: usize,
    /// Length of the longest write.
    longest: usize,
    /// Writes of several super-frames.
    chains: usize,
}

impl Merged {
    fn add(&mut self, other: &Self) {
        for (sum, kind) in self.kinds.iter_mut().zip(other.kinds) {
            *sum += kind;
        }
        self.packets += other.packets;
        self.rewritten += other.rewritten;
        self.alone += other.alone;
        self.longest = self.longest.max(other.longest);
        self.chains += other.chains;
    }

    fn count(&mut self, write: &Write) {
        self.longest = self.longest.max(write.len);
        self.chains += usize::from(write.is_chain);
        match write.kind {
            Some(GsoKind::Tcp4) => self.kinds[0] += 1,
            Some(GsoKind::Tcp6) => self.kinds[1] += 1,
            Some(GsoKind::Udp) => self.kinds[2] += 1,
            None => self.alone += 1,
        }
        if write.kind.is_some() {
            self.packets += write.packets.len();
        }
    }
}

/// Coalesces the stream, cuts what comes of it, and compares.
fn check(stream: &Stream, options: Options) -> Result<Merged, TestCaseError> {
    let mut merged = Merged::default();
    // Keys and bytes of what was taken, and how many of the first came out.
    let mut came: Vec<(Key, Vec<u8>)> = Vec::new();
    let mut is_out: Vec<bool> = Vec::new();
    let mut pool = Pool::new(stream.pool_len.min(stream.batch_len));
    let mut coalescer = Coalescer::new(options);
    let mut batch = Batch::new();
    for sent in stream.sent.chunks(stream.batch_len) {
        for packet in sent {
            let (arriving, leaving) = packet.bytes(options);
            let taken = if stream.is_local {
                read(&arriving, packet.ingress, &mut pool).map(|frame| batch.push(frame))
            } else {
                coalescer.push(&arriving, packet.ingress, &mut pool, &mut batch)
            };
            match taken {
                Ok(()) => came.push((Key::of(packet.ingress, &leaving), leaving)),
                Err(reason) => {
                    prop_assert_eq!(reason, Reason::PoolEmpty);
                    prop_assert_eq!(pool.available(), 0);
                }
            }
        }
        if stream.is_local {
            coalescer.merge(&mut batch, &mut pool);
        } else {
            coalescer.finish(&mut batch);
        }
        is_out.resize(came.len(), false);
        for write in writes(batch.drain(..), stream.long, &mut pool) {
            merged.count(&write);
            let key = Key::of(write.ingress, &write.packets[0]);
            let came = take(&came, &mut is_out, key, write.packets.len())?;
            merged.rewritten += compare(&came, &write)?;
        }
        prop_assert_eq!(pool.in_use(), 0);
        prop_assert!(is_out.iter().all(|out| *out), "what was taken, comes out");
    }
    Ok(merged)
}

/// A frame of a port, as the kernel hands it over.
fn read(packet: &[u8], ingress: Ingress, pool: &mut Pool) -> Result<Frame, Reason> {
    let mut frame = pool.take().ok_or(Reason::PoolEmpty)?;
    assert!(frame.append(packet));
    frame.meta.ingress = ingress;
    frame.meta.checksum = match wire::parse(packet).unwrap().network {
        Network::Arp => Checksum::Filled,
        Network::Ip(ip) => match checksum::verify(packet, &ip) {
            checksum::Verification::Partial { start, offset } => {
                Checksum::Partial { start, offset }
            }
            checksum::Verification::Right => Checksum::Verified,
            checksum::Verification::Absent | checksum::Verification::Wrong => Checksum::Filled,
        },
    };
    Ok(frame)
}

/// What is written to a device at once.
struct Write {
    ingress: Ingress,
    kind: Option<GsoKind>,
    is_chain: bool,
    len: usize,
    packets: Vec<Vec<u8>>,
}

/// Writes frames as the sink of a TAP does, and cuts what it writes.
fn writes(frames: impl Iterator<Item = Frame>, long: LongFrames, pool: &mut Pool) -> Vec<Write> {
    let mut chain = Chain::new(long);
    let mut writes = Vec::new();
    let mut ingress = FROM;
    for frame in frames {
        // A flow out of two nodes is two here.
        if frame.meta.ingress != ingress {
            flush(&mut chain, ingress, pool, &mut writes);
            ingress = frame.meta.ingress;
        }
        let refused = chain.push(frame).err().and_then(|frame| {
            flush(&mut chain, ingress, pool, &mut writes);
            chain.push(frame).err()
        });
        if let Some(frame) = refused {
            writes.push(Write::of(&frame));
            pool.put(frame);
        }
        if chain.is_full() {
            flush(&mut chain, ingress, pool, &mut writes);
        }
    }
    flush(&mut chain, ingress, pool, &mut writes);
    writes
}

fn flush(chain: &mut Chain, ingress: Ingress, pool: &mut Pool, writes: &mut Vec<Write>) {
    let long = chain.slices().map(|(kind, slices)| {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter()).copied().collect();
        (kind, bytes)
    });
    if let Some((kind, bytes)) = &long {
        let packets = cut_as_linux(*kind, bytes);
        writes.push(Write {
            ingress,
            kind: Some(*kind),
            is_chain: true,
            len: bytes.len(),
            packets,
        });
    }
    while let Some(frame) = chain.pop() {
        if long.is_none() {
            writes.push(Write::of(&frame));
        }
        pool.put(frame);
    }
}

impl Write {
    fn of(frame: &Frame) -> Self {
        let kind = frame.meta.gso.map(|gso| gso.kind);
        let (ingress, len) = (frame.meta.ingress, frame.len());
        Self { ingress, kind, is_chain: false, len, packets: cut(frame) }
    }
}

/// Cuts a long TCP segment, written with a virtio-net header, as the kernel does that gets it.
fn cut_as_linux(kind: GsoKind, bytes: &[u8]) -> Vec<Vec<u8>> {
    let header = VnetHeader::from_slice(bytes).unwrap();
    let mut frame = bytes[VnetHeader::LEN..].to_vec();
    let mut at = usize::from(header.csum_start.get());
    assert_eq!((header.flags, header.csum_offset.get()), (1, 16));
    let len_at = if kind == GsoKind::Tcp4 { 16 } else { 18 };
    let len = u16::from_be_bytes([frame[len_at], frame[len_at + 1]]);
    let whole = frame.len() - if kind == GsoKind::Tcp4 { 14 } else { 14 + 40 };
    assert_eq!(len, u16::try_from(whole).unwrap_or(0));
    if frame[20] == 0 && kind == GsoKind::Tcp6 {
        // RFC 2675 §2: a hop-by-hop header with one option. The kernel takes it away
        // (`ipv6_hopopt_jumbo_remove`, include/net/ipv6.h).
        assert_eq!(frame[54..58], [6, 0, 0xc2, 4]);
        let long = u32::from_be_bytes(frame[58..62].try_into().unwrap());
        assert_eq!((len, long), (0, u32::try_from(whole).unwrap()));
        frame[20] = 6;
        frame.drain(54..62);
        at -= 8;
    }
    let flags = frame[at + 13];
    let headers_len = at + usize::from(frame[at + 12] >> 4) * 4;
    let (headers, payload) = frame.split_at(headers_len);
    let word = |at: usize| u32::from_be_bytes(headers[at..at + 4].try_into().unwrap());
    let size = usize::from(header.gso_size.get());
    let count = payload.len().div_ceil(size);
    let packet = |(ix, part): (usize, &[u8])| {
        let mut packet = [headers, part].concat();
        let len = u16::try_from(packet.len() - 14).unwrap();
        let ahead = u32::try_from(ix * size).unwrap();
        packet[at + 4..at + 8].copy_from_slice(&word(at + 4).wrapping_add(ahead).to_be_bytes());
        let last = if ix + 1 == count { FIN | PSH } else { 0 };
        packet[at + 13] = flags & (!(FIN | PSH) | last);
        if kind == GsoKind::Tcp4 {
            packet[16..18].copy_from_slice(&len.to_be_bytes());
            let number = u16::from_be_bytes([headers[18], headers[19]]);
            let number = number.wrapping_add(u16::try_from(ix).unwrap());
            packet[18..20].copy_from_slice(&number.to_be_bytes());
            checksum::set_ipv4_header(&mut packet[14..34]);
        } else {
            packet[18..20].copy_from_slice(&(len - 40).to_be_bytes());
        }
        let ip = ip_of(&packet);
        packet[at + 16..at + 18].fill(0);
        let sum = checksum::transport(ip.source, ip.destination, ip.protocol, &packet[at..]);
        packet[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
        packet
    };
    // The sum of the pseudo header, of which the length is part, is what the kernel goes on from.
    let ip = ip_of(&packet((0, &payload[..size])));
    let segment_len = frame.len() - at;
    let partial = checksum::pseudo_header(ip.source, ip.destination, 6, segment_len).fold();
    assert_eq!(headers[at + 16..at + 18], partial.to_be_bytes());
    payload.chunks(size).enumerate().map(packet).collect()
}

/// The next `count` packets of the flow `key`. Everything must be out already that they may not overtake.
fn take<'a>(
    came: &'a [(Key, Vec<u8>)],
    is_out: &mut [bool],
    key: Key,
    count: usize,
) -> Result<Vec<&'a [u8]>, TestCaseError> {
    let mut taken = Vec::new();
    for (ix, (other, bytes)) in came.iter().enumerate() {
        if is_out[ix] || taken.len() == count {
            continue;
        }
        if *other == key {
            is_out[ix] = true;
            taken.push(&bytes[..]);
        } else if other.is_tied_to(&key) {
            break;
        }
    }
    prop_assert_eq!(taken.len(), count, "{:?} overtakes, or is more than came in", key);
    Ok(taken)
}

/// Compares the packets of one write with those that it was made of. Gives how many were changed.
fn compare(came: &[&[u8]], write: &Write) -> Result<usize, TestCaseError> {
    let went = &write.packets[..];
    if let ([came], [went]) = (came, went) {
        prop_assert_eq!(*came, went);
        return Ok(0);
    }
    let first = ip_of(came[0]);
    let is_tcp = first.protocol == 6;
    let flags_at = first.transport_offset + 13;
    let has_psh = is_tcp && came.iter().any(|packet| packet[flags_at] & PSH != 0);
    let number = |packet: &[u8]| u16::from_be_bytes([packet[18], packet[19]]);
    let is_free = first.source.is_ipv4() && first.dont_fragment;
    let is_renumbered = is_free && (write.is_chain || number(came[0]) == number(came[1]));
    let mut changed = 0;
    for (ix, (came_one, went)) in came.iter().zip(went).enumerate() {
        assert_sound(went);
        let mut expected = came_one.to_vec();
        if has_psh {
            expected[flags_at] &= !PSH;
        }
        if has_psh && ix + 1 == came.len() {
            expected[flags_at] |= PSH;
        }
        if is_renumbered {
            let ahead = u16::try_from(ix).unwrap();
            let number = number(came[0]).wrapping_add(ahead);
            expected[18..20].copy_from_slice(&number.to_be_bytes());
        }
        if expected == *came_one {
            prop_assert_eq!(&expected, went);
        } else {
            changed += 1;
            prop_assert_eq!(without_checksums(&expected, &first), without_checksums(went, &first));
        }
    }
    Ok(changed)
}

fn without_checksums(packet: &[u8], ip: &wire::Ip) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let at = ip.transport_offset + if ip.protocol == 6 { 16 } else { 6 };
    packet[at..at + 2].fill(0);
    if ip.source.is_ipv4() {
        packet[24..26].fill(0);
    }
    packet
}

/// What a pod hands over to be cut, and what a coalescer may merge again.
fn super_packets() -> impl Strategy<Value = Packet> {
    let flags = prop::sample::subsequence(vec![PSH, FIN, ECE, CWR], 0..=4);
    (any::<[bool; 3]>(), any::<(u16, u32)>(), flags, 0usize..=10, 2usize..65_400).prop_map(
        |([is_ipv4, is_tcp, dont_fragment], (identification, sequence), flags, words, len)| {
            Packet {
                is_ipv4,
                is_tcp,
                dont_fragment,
                identification,
                sequence,
                flags: if is_tcp { flags.into_iter().fold(ACK, |all, flag| all | flag) } else { 0 },
                options: if is_tcp { vec![1; words * 4] } else { Vec::new() },
                payload_len: len,
                ..Packet::TCP
            }
        },
    )
}
