//! A node that sends to others, and one that hears from them; and flows between their pods.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use etherparse::{IpNumber, PacketBuilder};
use overlay::decap::{Decapsulator, OFFENCES_MAX};
use overlay::encap::{Encapsulator, Transmit};
use overlay::tunnel::source_of;
use overlay::vxlan::{self, Vni};
use vswitch::counters::Counters;
use vswitch::frame::{Batch, Checksum, Frame, Gso, GsoKind, Pool};
use vswitch::mac::Mac;
use vswitch::port::{Context, NodeIx};
use vswitch::tables::{Node, Peer, Tables, TablesBuilder};
use vswitch::wire::{self, Fragment, Network, Transport, checksum};

/// Other nodes.
pub const NODES: u16 = 3;

/// Source sockets.
const SOCKETS: usize = 4;

/// Longest packet between pods.
const MTU: u16 = 1450;

pub fn underlay(node: u16) -> SocketAddr {
    let last = u8::try_from(node + 2).unwrap();
    SocketAddr::from(([192, 0, 2, last], vxlan::PORT))
}

/// What pods of two nodes have between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// The other node.
    pub node: u16,
    pub is_v4: bool,
    pub kind: Kind,
    /// Source port, or the ICMP echo's identifier.
    pub number: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Tcp,
    Udp,
    Icmp,
    /// UDP in fragments, of which one is the flow's only packet.
    Fragment,
}

impl Flow {
    /// The flow of a packet that came from `node`.
    pub fn of(node: u16, packet: &[u8]) -> Self {
        let Network::Ip(ip) = wire::parse(packet).unwrap().network else { panic!("not IP") };
        let is_v4 = ip.source.is_ipv4();
        let (kind, number) = match ip.transport {
            _ if ip.fragment != Fragment::Whole => (Kind::Fragment, last_of(ip.source)),
            Transport::Tcp { source, .. } => (Kind::Tcp, source),
            Transport::Udp { source, .. } => (Kind::Udp, source),
            Transport::Icmp { .. } => {
                let at = ip.transport_offset + 4;
                (Kind::Icmp, u16::from_be_bytes([packet[at], packet[at + 1]]))
            }
            Transport::Sctp { .. } | Transport::Other => panic!("no flow of ours"),
        };
        Self { node, is_v4, kind, number }
    }
}

fn last_of(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(address) => u16::from_be_bytes(*address.octets().last_chunk().unwrap()),
        IpAddr::V6(address) => u16::from_be_bytes(*address.octets().last_chunk().unwrap()),
    }
}

/// A frame of `flow`; with `size`, a super-frame of packets that carry so much each.
pub fn frame_of(flow: Flow, sequence: u32, payload: usize, size: Option<u16>) -> Frame {
    // Fragments have no ports, so what tells their flows apart are addresses.
    let [high, low] = if flow.kind == Kind::Fragment { flow.number.to_be_bytes() } else { [1, 2] };
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
    let builder = if flow.is_v4 {
        link.ipv4([10, 244, high, low], [10, 244, 9, 9], 64)
    } else {
        let (mut source, mut target) = ([0xfd; 16], [0xfd; 16]);
        (source[14], source[15], target[0]) = (high, low, 0xfc);
        link.ipv6(source, target, 64)
    };
    let mut random = sequence.wrapping_mul(0x9e37_79b9) ^ u32::from(flow.number);
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        random.to_be_bytes()[0]
    })
    .take(payload)
    .collect();
    let mut packet = Vec::new();
    match flow.kind {
        Kind::Tcp => {
            builder.tcp(flow.number, 80, sequence, 512).ack(7).write(&mut packet, &bytes).unwrap();
        }
        Kind::Udp => builder.udp(flow.number, 53).write(&mut packet, &bytes).unwrap(),
        Kind::Icmp if flow.is_v4 => {
            builder.icmpv4_echo_request(flow.number, 1).write(&mut packet, &bytes).unwrap();
        }
        Kind::Icmp => {
            builder.icmpv6_echo_request(flow.number, 1).write(&mut packet, &bytes).unwrap();
        }
        Kind::Fragment if flow.is_v4 => {
            builder.write(&mut packet, IpNumber::UDP, &bytes).unwrap();
            // Not the first: 8 bytes are before it.
            packet[20..22].copy_from_slice(&[0, 1]);
            checksum::set_ipv4_header(&mut packet[14..34]);
        }
        Kind::Fragment => {
            let bytes = [&[IpNumber::UDP.0, 0, 0, 8, 0, 0, 0, 1][..], &bytes].concat();
            builder.write(&mut packet, IpNumber::IPV6_FRAGMENTATION_HEADER, &bytes).unwrap();
        }
    }
    let mut frame = Frame::new();
    assert!(frame.append(&packet));
    if let Some(size) = size.filter(|size| usize::from(*size) < payload) {
        make_super_frame(&mut frame, flow, payload, size);
    }
    frame
}

fn make_super_frame(frame: &mut Frame, flow: Flow, payload: usize, size: u16) {
    let Network::Ip(ip) = wire::parse(frame.data()).unwrap().network else { panic!("not IP") };
    let segments = u16::try_from(payload.div_ceil(size.into())).unwrap();
    let kind = match (flow.kind, flow.is_v4) {
        (Kind::Tcp, true) => GsoKind::Tcp4,
        (Kind::Tcp, false) => GsoKind::Tcp6,
        (Kind::Udp, _) => GsoKind::Udp,
        (Kind::Icmp | Kind::Fragment, _) => panic!("cannot be cut"),
    };
    let offset = checksum::checksum_offset(ip.transport).unwrap();
    let len = frame.len() - ip.transport_offset;
    let sum = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, len).fold();
    let at = ip.transport_offset + offset;
    frame.data_mut()[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    frame.meta.checksum = Checksum::Partial {
        start: u16::try_from(ip.transport_offset).unwrap(),
        offset: u16::try_from(offset).unwrap(),
    };
    frame.meta.gso = Some(Gso { kind, size, segments });
}

/// One send.
pub struct Sent {
    pub to: SocketAddr,
    pub segment_len: usize,
    pub bytes: Vec<u8>,
}

/// One node's encapsulator, and the decapsulator of a node that hears the others. What the first sends to
/// a node, the second hears from it.
pub struct Bench {
    pub tables: Tables,
    pub pool: Pool,
    pub counters: Counters,
    pub encapsulator: Encapsulator,
    pub decapsulator: Decapsulator,
    pub sent: Vec<Sent>,
}

impl Bench {
    pub fn new(segments_max: usize) -> Self {
        let node = Node {
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            gateway_v4: None,
            gateway_v6: None,
            underlay: Some(IpAddr::from([192, 0, 2, 1])),
            vxlan_port: vxlan::PORT,
            gossip_port: 7946,
        };
        let mut builder = TablesBuilder::new(1, node, &[]);
        for number in 0..NODES {
            let peer = Peer {
                name: format!("n{number}"),
                underlay: underlay(number),
                vtep_mac: Mac([2, 0, 0, 0, 0, 2]),
                mtu: MTU,
                leases: Vec::new(),
            };
            assert_eq!(builder.peer(peer), Some(NodeIx(number)));
        }
        let offences = Arc::new(ArrayQueue::new(OFFENCES_MAX));
        Self {
            tables: builder.build(),
            pool: Pool::new(4096),
            counters: Counters::new(1, 1),
            encapsulator: Encapsulator::new(Vni::WEFT, segments_max),
            decapsulator: Decapsulator::new(Vni::WEFT, MTU, offences),
            sent: Vec::new(),
        }
    }

    pub fn send(&mut self, node: u16, frame: &Frame) {
        let headers = wire::parse(frame.data()).unwrap();
        let peer = self.tables.peer(NodeIx(node)).unwrap();
        let sent = &mut self.sent;
        let socket_ix = source_of(&headers, SOCKETS);
        self.encapsulator
            .push(peer, socket_ix, frame, &headers, &mut |transmit| keep(sent, transmit))
            .unwrap();
    }

    pub fn flush(&mut self) {
        let sent = &mut self.sent;
        self.encapsulator.flush(&mut |transmit| keep(sent, transmit));
    }

    /// Hands over what was sent, as a kernel does that merges up to `merged_max` datagrams of one send, and
    /// returns the frames.
    pub fn receive(&mut self, merged_max: usize) -> Batch {
        let counters = self.counters.worker(0);
        let mut context =
            Context { tables: &self.tables, pool: &mut self.pool, counters: &counters };
        let mut batch = Batch::new();
        for Sent { to, segment_len, bytes } in self.sent.drain(..) {
            for part in bytes.chunks(segment_len * merged_max) {
                let from = SocketAddr::new(to.ip(), 50_000);
                self.decapsulator.push(from, segment_len, part, &mut context, &mut batch);
            }
        }
        self.decapsulator.finish(&context, &mut batch);
        let queued: u64 = batch.iter().map(Frame::packets).sum();
        let totals = self.counters.sum();
        assert_eq!((totals.received, totals.dropped_total()), (queued, 0), "{totals:?}");
        batch
    }

    pub fn recycle(&mut self, frame: Frame) {
        self.pool.put(frame);
    }
}

fn keep(sent: &mut Vec<Sent>, transmit: Transmit<'_>) {
    let Transmit { to, segment_len, bytes, .. } = transmit;
    sent.push(Sent { to, segment_len, bytes: bytes.to_vec() });
}
