//! What goes into one node's encapsulator comes out of the other's decapsulator: the same packets, in the
//! order of each flow.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "only tests are in here")]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use common::{Bench, Flow, Kind, NODES, frame_of};
use overlay::tunnel::source_of;
use proptest::prelude::*;
use vswitch::frame::{Frame, Ingress};
use vswitch::offload::Cut;
use vswitch::port::NodeIx;
use vswitch::wire::{self, Network};

/// A frame to be sent: its flow, its payload's length, and with a super-frame, the packets' length.
#[derive(Debug, Clone)]
struct Sending {
    flow: Flow,
    payload: usize,
    size: Option<u16>,
}

fn sending() -> impl Strategy<Value = Sending> {
    let kind = prop_oneof![
        4 => Just(Kind::Tcp),
        2 => Just(Kind::Udp),
        1 => Just(Kind::Icmp),
        1 => Just(Kind::Fragment),
    ];
    let flow = (0..NODES, any::<bool>(), kind, 0_u16..3)
        .prop_map(|(node, is_v4, kind, number)| Flow { node, is_v4, kind, number });
    let len = prop_oneof![3 => Just((1400, None)), 3 => (1_usize..1400).prop_map(|len| (len, None)),
        2 => (1_usize..40_000, 100_u16..1400).prop_map(|(len, size)| (len, Some(size)))];
    (flow, len).prop_map(|(flow, (payload, size))| {
        let size = size.filter(|_| matches!(flow.kind, Kind::Tcp | Kind::Udp));
        Sending { flow, payload: if size.is_none() { payload.min(1400) } else { payload }, size }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn packets_survive_in_the_order_of_their_flows(
        sendings in prop::collection::vec(sending(), 1..40),
        segments_max in prop_oneof![Just(1_usize), Just(64), Just(128)],
        // How many datagrams the receiving kernel merges at most.
        merged_max in 1_usize..70,
    ) {
        let mut bench = Bench::new(segments_max);
        let mut next: HashMap<Flow, u32> = HashMap::new();
        let mut expected: BTreeMap<Flow, Vec<Vec<u8>>> = BTreeMap::new();
        for sending in &sendings {
            let sequence = next.entry(sending.flow).or_insert(1);
            let frame = frame_of(sending.flow, *sequence, sending.payload, sending.size);
            *sequence += u32::try_from(sending.payload).unwrap();
            expected.entry(sending.flow).or_default().extend(packets_of(&frame));
            bench.send(sending.flow.node, &frame);
        }
        bench.flush();
        let mut received: BTreeMap<Flow, Vec<Vec<u8>>> = BTreeMap::new();
        for frame in bench.receive(merged_max) {
            let Ingress::Node(NodeIx(node)) = frame.meta.ingress else {
                return Err(TestCaseError::fail("not from a node"));
            };
            let flow = Flow::of(node, frame.data());
            received.entry(flow).or_default().extend(packets_of(&frame));
            bench.recycle(frame);
        }
        for packets in expected.values_mut().chain(received.values_mut()) {
            packets.iter_mut().for_each(|packet| forget_what_may_change(packet));
        }
        prop_assert_eq!(received, expected);
    }

    #[test]
    fn a_flow_has_one_source_socket(
        flows in prop::collection::vec((any::<bool>(), 0_u16..1000), 1..20),
        sockets in 1_usize..64,
    ) {
        for (is_v4, number) in flows {
            for kind in [Kind::Tcp, Kind::Udp, Kind::Icmp, Kind::Fragment] {
                let flow = Flow { node: 0, is_v4, kind, number };
                let chosen: HashSet<usize> = [(1, 10, None), (9, 1400, None), (77, 9000, Some(1000))]
                    .into_iter()
                    .filter(|(_, _, size)| size.is_none() || matches!(kind, Kind::Tcp | Kind::Udp))
                    .map(|(sequence, payload, size)| {
                        let frame = frame_of(flow, sequence, payload, size);
                        source_of(&wire::parse(frame.data()).unwrap(), sockets)
                    })
                    .collect();
                prop_assert_eq!(chosen.len(), 1, "{:?}", flow);
                prop_assert!(chosen.iter().all(|chosen| *chosen < sockets));
            }
        }
    }
}

#[test]
fn flows_spread_over_the_source_sockets() {
    let chosen: HashSet<usize> = (0..200)
        .map(|number| Flow { node: 0, is_v4: true, kind: Kind::Tcp, number })
        .map(|flow| source_of(&wire::parse(frame_of(flow, 1, 10, None).data()).unwrap(), 8))
        .collect();
    assert_eq!(chosen.len(), 8);
}

#[test]
fn sends_go_to_the_node_that_they_are_for() {
    let mut bench = Bench::new(64);
    for node in 0..NODES {
        let flow = Flow { node, is_v4: true, kind: Kind::Udp, number: 1 };
        bench.send(node, &frame_of(flow, 1, 100, None));
    }
    bench.flush();
    let targets: Vec<SocketAddr> = bench.sent.iter().map(|sent| sent.to).collect();
    let nodes: Vec<SocketAddr> = (0..NODES).map(common::underlay).collect();
    assert_eq!(targets, nodes);
}

/// The packets that a frame stands for.
fn packets_of(frame: &Frame) -> Vec<Vec<u8>> {
    let headers = wire::parse(frame.data()).unwrap();
    let cut = Cut::new(frame, &headers).unwrap();
    (0..cut.segments())
        .map(|ix| {
            let mut packet = vec![0; cut.segment_len(ix)];
            cut.write(ix, &mut packet);
            packet
        })
        .collect()
}

/// What merging may change is the same in all: PSH, and the identification of IPv4 packets that must not be
/// fragmented; with them, their checksums, which have been checked before.
fn forget_what_may_change(packet: &mut [u8]) {
    let Network::Ip(ip) = wire::parse(packet).unwrap().network else { return };
    if let (IpAddr::V4(_), true) = (ip.source, ip.dont_fragment) {
        packet[18..20].fill(0);
        packet[24..26].fill(0);
    }
    if let wire::Transport::Tcp { .. } = ip.transport {
        packet[ip.transport_offset + 13] &= !8;
        packet[ip.transport_offset + 16..ip.transport_offset + 18].fill(0);
    }
}
