//! What pods on different nodes see of each other, and what is on the wire meanwhile.

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::support::*;
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, TransportHeader, icmpv4, icmpv6};
use overlay::vxlan::{self, Vni};
use vswitch::frame::{Checksum, Gso, GsoKind};
use vswitch::mac::Mac;
use vswitch::sim::IcmpError;
use vswitch::verdict::Reason;
use weft::sim::{Captured, Cluster, Family, Faults, NodeOptions, Place, Pod};

/// Two nodes with one pod each.
fn pair(seed: u64) -> (Cluster, Pod, Pod) {
    let cluster = Cluster::builder().nodes(2).pods_per_node(1).seed(seed).build();
    let pods = cluster.pods();
    (cluster, pods[0], pods[1])
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|ix| (ix % 251).to_le_bytes()[0] ^ (ix / 251).to_le_bytes()[0]).collect()
}

#[test]
fn every_pod_reaches_every_other_in_both_families() {
    for ipv6_underlay in [false, true] {
        let builder = Cluster::builder().nodes(3).pods_per_node(2).seed(1);
        let mut cluster = builder.ipv6_underlay(ipv6_underlay).build();
        let pairs = pairs(&cluster);
        assert_eq!(pairs.len(), 30);
        for (from, to) in pairs {
            assert_reaches(&mut cluster, from, to);
        }
    }
}

#[test]
fn pods_reach_machines_and_machines_reach_pods_without_translation() {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).seed(2).build();
    let (nodes, pods) = (cluster.nodes(), cluster.pods());
    for pod in pods {
        for node in &nodes {
            // The gateway addresses, and the underlay address.
            let addresses = cluster.addresses(Place::Machine(*node));
            assert_eq!(addresses.len(), 3);
            for address in addresses {
                assert!(cluster.ping(pod, address, 5 * SECOND).is_some(), "{pod:?} -> {address}");
            }
            for family in Family::ALL {
                let heard = cluster.udp(*node, pod, family, b"from the machine").unwrap();
                assert_eq!(heard.from.ip(), cluster.address(*node, family).unwrap());
                let heard = cluster.udp(pod, *node, family, b"from the pod").unwrap();
                assert_eq!(heard.from.ip(), cluster.address(pod, family).unwrap());
            }
        }
    }
}

#[test]
fn an_underlay_address_comes_out_of_that_nodes_own_interface() {
    let (mut cluster, pod, _) = pair(3);
    let other = cluster.nodes()[1];
    let underlay = cluster.underlay_address(other);
    cluster.host(other).watch_arrivals(16);
    let server = cluster.host(other).udp_bind(9000);
    let client = cluster.host(pod).udp_bind(5000);
    assert!(cluster.host(pod).udp_send(client, SocketAddr::new(underlay, 9000), b"to the node"));
    cluster.run_for(2 * SECOND);
    let (from, payload) = cluster.host(other).udp_receive(server).unwrap();
    assert_eq!(
        (from, &payload[..]),
        (SocketAddr::new(v4(&cluster, pod), 5000), &b"to the node"[..])
    );
}

#[test]
fn tcp_arrives_whole_over_a_bad_wire() {
    let faults = Faults {
        loss: 0.01,
        duplication: 0.01,
        delay: Duration::from_micros(500),
        jitter: Duration::from_micros(200),
    };
    for (seed, family, offload) in [
        (1, Family::V4, true),
        (2, Family::V6, true),
        (3, Family::V4, false),
        (4, Family::V6, false),
    ] {
        let options = NodeOptions { offload, ..NodeOptions::default() };
        let builder = Cluster::builder().nodes(2).pods_per_node(1).seed(seed);
        let mut cluster = builder.node_options(options).build();
        cluster.set_faults(faults);
        let pods = cluster.pods();
        let data = pattern(2_000_000);
        let transfer = cluster.tcp(pods[0], pods[1], family, &data, 600 * SECOND);
        assert!(transfer.received == data, "seed {seed}: {} bytes", transfer.received.len());
        let totals = cluster.underlay_totals();
        assert!(totals.lost > 0 && totals.duplicated > 0, "{totals:?}");
    }
}

#[test]
fn datagrams_up_to_8_kb_arrive_with_the_senders_own_address() {
    let (mut cluster, a, b) = pair(5);
    for (from, to) in [(a, b), (b, a)] {
        for len in [0, 1, 1000, 1422, 1423, 4000, 8192] {
            let payload = pattern(len);
            let heard = cluster.udp(from, to, Family::V4, &payload);
            let heard = heard.unwrap_or_else(|| panic!("{len} bytes got lost"));
            assert_eq!(heard.from, SocketAddr::new(v4(&cluster, from), 5000));
            assert!(heard.payload == payload, "{len} bytes");
        }
        for len in [0, 1000, 1402] {
            let payload = pattern(len);
            let heard = cluster.udp(from, to, Family::V6, &payload).unwrap();
            assert_eq!(heard.from, SocketAddr::new(v6(&cluster, from), 5000));
            assert!(heard.payload == payload, "{len} bytes");
        }
    }
}

#[test]
fn fragments_of_ipv6_datagrams_pass_as_they_are() {
    let (mut cluster, a, b) = pair(6);
    cluster.host(b).watch_arrivals(16);
    let whole = udp_from(&cluster, a, v6(&cluster, b), 9, &pattern(2000));
    for fragment in fragment_v6(&whole, 1200) {
        cluster.inject_frame(a, &fragment);
    }
    cluster.run_for(SECOND);
    let packets = packets_at(&mut cluster, b);
    let seen: Vec<_> = packets.iter().map(|packet| look(packet)).collect();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].fragment, Some((0, true)));
    assert_eq!(seen[1].fragment, Some((1200, false)));
    let payload: Vec<_> = packets.iter().flat_map(|packet| packet[14 + 48..].to_vec()).collect();
    assert_eq!(payload, whole[14 + 40..]);
}

#[test]
fn each_node_takes_one_hop() {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(2).seed(7).build();
    let pods = cluster.pods();
    let (a, neighbor, far) = (pods[0], pods[1], pods[2]);
    let machine = cluster.nodes()[0];
    for family in Family::ALL {
        for (target, expected) in [(neighbor, 63), (far, 62)] {
            cluster.host(target).watch_arrivals(16);
            let frame = udp_from(&cluster, a, of(&cluster, target, family), 9, b"hop");
            cluster.inject_frame(a, &frame);
            cluster.run_for(SECOND);
            let packets = packets_at(&mut cluster, target);
            assert_eq!(packets.len(), 1);
            let seen = look(&packets[0]);
            assert_eq!(seen.ttl, expected);
            assert_eq!(seen.source, of(&cluster, a, family));
            assert_eq!(seen.macs, (Mac::ROUTER, cluster.mac(target)));
        }
        // The switch and its host are one router.
        cluster.host(machine).watch_arrivals(16);
        let gateway = cluster.address(machine, family).unwrap();
        let frame = udp_from(&cluster, a, gateway, 9, b"hop");
        cluster.inject_frame(a, &frame);
        let arrivals = cluster.host(machine).take_arrivals();
        assert_eq!(look(&arrivals[0].packets[0]).ttl, 64);
    }
}

#[test]
fn the_router_where_the_hops_ran_out_says_so() {
    let (mut cluster, a, b) = pair(8);
    let nodes = cluster.nodes();
    for family in Family::ALL {
        let (source, destination) = (of(&cluster, a, family), of(&cluster, b, family));
        let kind = if family == Family::V4 { 11 } else { 3 };
        for (ttl, router) in [(1, nodes[0]), (2, nodes[1])] {
            let mut frame = Vec::new();
            let headers = ip((cluster.mac(a), Mac::ROUTER), source, destination, ttl);
            headers.udp(4000, 33_434).write(&mut frame, b"trace").unwrap();
            cluster.inject_frame(a, &frame);
            cluster.run_for(SECOND);
            let errors = cluster.host(a).take_icmp_errors();
            let from = cluster.address(router, family).unwrap();
            assert_eq!(errors, [IcmpError { from, kind, code: 0, mtu: 0 }], "TTL {ttl}");
        }
    }
    assert_eq!(cluster.dropped(nodes[0], Reason::TtlExpired), 2);
    assert_eq!(cluster.dropped(nodes[1], Reason::TtlExpired), 2);
}

/// A pod on a node with an underlay MTU of 1500, and one on a node with `mtu`.
fn narrow(seed: u64, mtu: u16) -> (Cluster, Pod, Pod) {
    let mut cluster = Cluster::builder().nodes(1).seed(seed).build();
    cluster.add_node_with(NodeOptions { underlay_mtu: mtu, ..NodeOptions::default() });
    cluster.settle(30 * SECOND);
    let nodes = cluster.nodes();
    let (wide, narrow) = (cluster.add_pod(nodes[0]), cluster.add_pod(nodes[1]));
    (cluster, wide, narrow)
}

#[test]
fn too_long_packets_are_told_the_right_mtu() {
    let (mut cluster, a, b) = narrow(9, 1400);
    cluster.host(b).watch_arrivals(16);
    cluster.host(b).udp_bind(9);
    let router = cluster.nodes()[0];
    for (family, kind, code, headers) in [(Family::V4, 3, 4, 28), (Family::V6, 2, 0, 48)] {
        let target = of(&cluster, b, family);
        for (len, fits) in [(1350, true), (1351, false)] {
            let mut frame = udp_from(&cluster, a, target, 9, &pattern(len - headers));
            if family == Family::V4 {
                set_dont_fragment(&mut frame, true);
            }
            cluster.inject_frame(a, &frame);
            cluster.run_for(SECOND);
            let errors = cluster.host(a).take_icmp_errors();
            let arrived = packets_at(&mut cluster, b).len();
            if fits {
                assert_eq!((arrived, &errors[..]), (1, &[][..]));
            } else {
                let from = cluster.address(router, family).unwrap();
                assert_eq!(errors, [IcmpError { from, kind, code, mtu: 1350 }]);
                assert_eq!(arrived, 0);
            }
        }
    }
    assert_eq!(cluster.dropped(router, Reason::TooBig), 2);
}

#[test]
fn the_error_quotes_the_packet_that_was_too_long() {
    let (mut cluster, a, b) = narrow(10, 1400);
    cluster.host(a).watch_arrivals(16);
    for family in Family::ALL {
        let target = of(&cluster, b, family);
        let mut frame = udp_from(&cluster, a, target, 9, &pattern(1400));
        if family == Family::V4 {
            set_dont_fragment(&mut frame, true);
        }
        cluster.inject_frame(a, &frame);
        let packets = packets_at(&mut cluster, a);
        let seen = look(packets.last().unwrap());
        assert_eq!(seen.destination, of(&cluster, a, family));
        let unreachable = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1350 };
        match seen.transport.unwrap() {
            TransportHeader::Icmpv4(header) => {
                assert_eq!(header.icmp_type, Icmpv4Type::DestinationUnreachable(unreachable));
            }
            TransportHeader::Icmpv6(header) => {
                assert_eq!(header.icmp_type, Icmpv6Type::PacketTooBig { mtu: 1350 });
            }
            other @ (TransportHeader::Tcp(_)
            | TransportHeader::Udp(_)
            | TransportHeader::Igmp(_)) => panic!("{other:?}"),
        }
        // From the IP header on, as it was sent: no hop was taken yet.
        assert_eq!(seen.payload, frame[14..14 + seen.payload.len()]);
        assert!(seen.payload.len() >= 28);
    }
}

#[test]
fn packets_that_may_be_fragmented_are() {
    let (mut cluster, a, b) = narrow(11, 1400);
    cluster.host(b).watch_arrivals(16);
    let mut frame = udp_from(&cluster, a, v4(&cluster, b), 9, &pattern(1400));
    set_dont_fragment(&mut frame, false);
    cluster.inject_frame(a, &frame);
    cluster.run_for(SECOND);
    let packets = packets_at(&mut cluster, b);
    let seen: Vec<_> = packets.iter().map(|packet| look(packet)).collect();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen.iter().all(|seen| seen.len <= 1350 && seen.ttl == 62));
    let payload: Vec<_> = packets.iter().flat_map(|packet| packet[14 + 20..].to_vec()).collect();
    assert_eq!(payload, frame[14 + 20..]);
    // Fragments are fragmented once more, and a stack puts all together again.
    let heard = cluster.udp(a, b, Family::V4, &pattern(4000)).unwrap();
    assert_eq!(heard.payload, pattern(4000));
}

#[test]
fn a_path_that_is_narrower_than_both_ends_know_loses_long_packets_only() {
    let (mut cluster, a, b) = pair(12);
    let nodes = cluster.nodes();
    cluster.set_link_mtu(nodes[0], nodes[1], 1400);
    assert!(cluster.udp(a, b, Family::V4, &pattern(1000)).is_some());
    let before = cluster.underlay_totals().too_long;
    assert!(cluster.udp(a, b, Family::V4, &pattern(1400)).is_none());
    assert_eq!(cluster.underlay_totals().too_long, before + 1);
}

#[test]
fn nobody_at_an_address_is_told_by_the_router_that_knows() {
    let (mut cluster, a, b) = pair(13);
    let nodes = cluster.nodes();
    // In the own lease, in that of the other node, and in nobody's.
    let v4_of = |pod: Pod, last: u8| match v4(&cluster, pod) {
        IpAddr::V4(v4) => IpAddr::from([v4.octets()[0], v4.octets()[1], v4.octets()[2], last]),
        IpAddr::V6(_) => panic!("not IPv4"),
    };
    let v6_of = |pod: Pod, last: u16| match v6(&cluster, pod) {
        IpAddr::V6(v6) => {
            let mut segments = v6.segments();
            segments[7] = last;
            IpAddr::from(segments)
        }
        IpAddr::V4(_) => panic!("not IPv6"),
    };
    let leases: Vec<_> = nodes.iter().flat_map(|node| cluster.leases(*node)).collect();
    let free = (0..=255).map(|third| IpAddr::from([10, 244, third, 9]));
    let mut free = free.filter(|address| !leases.iter().any(|lease| lease.contains(*address)));
    let targets = [
        (v4_of(a, 200), nodes[0]),
        (v4_of(b, 200), nodes[1]),
        (free.next().unwrap(), nodes[0]),
        (v6_of(a, 200), nodes[0]),
        (v6_of(b, 200), nodes[1]),
    ];
    for (target, router) in targets {
        let family = Family::of(target);
        let frame = udp_from(&cluster, a, target, 9, b"anybody?");
        cluster.inject_frame(a, &frame);
        cluster.run_for(SECOND);
        let (kind, code) = if family == Family::V4 { (3, 1) } else { (1, 3) };
        let from = cluster.address(router, family).unwrap();
        let errors = cluster.host(a).take_icmp_errors();
        assert_eq!(errors, [IcmpError { from, kind, code, mtu: 0 }], "{target}");
    }
    assert_eq!(cluster.dropped(nodes[0], Reason::NoSuchAddress), 3);
    assert_eq!(cluster.dropped(nodes[1], Reason::NoSuchAddress), 2);
}

#[test]
fn a_pod_sends_only_as_itself() {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(2).seed(14).build();
    let pods = cluster.pods();
    let (a, neighbor, far) = (pods[0], pods[1], pods[2]);
    let node = cluster.nodes()[0];
    for pod in [neighbor, far] {
        cluster.host(pod).watch_arrivals(64);
    }
    let mut sent = 0;
    for family in Family::ALL {
        for target in [neighbor, far] {
            let destination = of(&cluster, target, family);
            let own = (cluster.mac(a), Mac::ROUTER);
            let gateway = cluster.address(node, family).unwrap();
            for source in [of(&cluster, neighbor, family), of(&cluster, far, family), gateway] {
                let frame = udp(own, source, destination, 9, b"not me");
                cluster.inject_frame(a, &frame);
                sent += 1;
            }
            let foreign_mac = (cluster.mac(neighbor), Mac::ROUTER);
            let frame = udp(foreign_mac, of(&cluster, a, family), destination, 9, b"not mine");
            cluster.inject_frame(a, &frame);
            sent += 1;
        }
    }
    cluster.run_for(SECOND);
    assert_eq!(cluster.dropped(node, Reason::Spoofed), sent);
    for pod in [neighbor, far] {
        assert!(packets_at(&mut cluster, pod).is_empty());
    }
}

#[test]
fn pods_do_not_reach_the_tunnel_and_gossip_ports_of_nodes() {
    let (mut cluster, a, _) = pair(15);
    let nodes = cluster.nodes();
    let mut sent = 0;
    for node in &nodes {
        cluster.host(*node).watch_arrivals(64);
        for port in [4789, 7946] {
            let frame = udp_from(&cluster, a, cluster.underlay_address(*node), port, b"believe me");
            cluster.inject_frame(a, &frame);
            sent += 1;
        }
    }
    // Neither those of a node that is not known yet.
    let frame = udp_from(&cluster, a, [198, 18, 0, 77].into(), 4789, b"believe me");
    cluster.inject_frame(a, &frame);
    sent += 1;
    cluster.run_for(SECOND);
    assert_eq!(cluster.dropped(nodes[0], Reason::TunnelPort), sent);
    for node in &nodes {
        assert!(cluster.host(*node).take_arrivals().is_empty());
        assert_eq!(cluster.dropped(*node, Reason::VxlanNotMember), 0);
    }
}

/// The inner frames of what was captured, and whether outer checksums are right as pcap writes them.
fn inner_frames(captured: &[Captured]) -> Vec<(SocketAddr, Vec<u8>)> {
    let tunnel = captured.iter().filter(|captured| captured.to.port() == vxlan::PORT);
    let frames = tunnel.map(|captured| {
        let packet = captured.to_packet();
        assert!(packet.len() <= 1500, "{} bytes on a wire of 1500", packet.len());
        // An Ethernet header in front, and the outer packet is one to look at like any other.
        let outer_frame = [&[2; 12][..], &[0x08, 0x00], &packet].concat();
        let outer = look(&outer_frame);
        assert_eq!(outer.source, captured.from.ip());
        assert!((49_152..=65_535).contains(&captured.from.port()));
        let inner = vxlan::decode(&outer.payload, Vni::WEFT).unwrap();
        (captured.from, inner.to_vec())
    });
    frames.collect()
}

/// A TCP super-frame from `a` to `b` with a partial checksum, as a kernel hands it to a TAP.
fn super_frame(
    cluster: &Cluster,
    a: Pod,
    b: Pod,
    family: Family,
    len: usize,
) -> (Vec<u8>, Checksum) {
    let macs = (cluster.mac(a), Mac::ROUTER);
    let (source, destination) = (of(cluster, a, family), of(cluster, b, family));
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(macs.0.0, macs.1.0);
    let builder = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            builder.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            builder.ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("two families"),
    };
    let builder = builder.tcp(4000, 80, 1000, 5000).ack(1).psh();
    builder.write(&mut frame, &pattern(len)).unwrap();
    let start = if family == Family::V4 { 34 } else { 54 };
    // Only the pseudo-header is in the sum.
    let tcp_len = frame.len() - start;
    let sum = vswitch::wire::checksum::pseudo_header(source, destination, 6, tcp_len).fold();
    frame[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
    (frame, Checksum::Partial { start: u16::try_from(start).unwrap(), offset: 16 })
}

#[test]
fn super_frames_are_cut_on_the_wire_and_whole_again_behind_it() {
    for (family, kind, size) in
        [(Family::V4, GsoKind::Tcp4, 1410), (Family::V6, GsoKind::Tcp6, 1390)]
    {
        let (mut cluster, a, b) = pair(16);
        let len = 40_000;
        let segments = len / size + 1;
        let (frame, checksum) = super_frame(&cluster, a, b, family, len);
        cluster.start_capture(1000);
        cluster.host(b).watch_arrivals(16);
        let gso = Gso {
            kind,
            size: u16::try_from(size).unwrap(),
            segments: u16::try_from(segments).unwrap(),
        };
        cluster.inject_super_frame(a, &frame, Some(gso), checksum);
        cluster.run_for(Duration::from_millis(1));

        let (source, captured) = (of(&cluster, a, family), cluster.take_capture());
        let from_a = |(_, frame): &(SocketAddr, Vec<u8>)| look(frame).source == source;
        let wire: Vec<_> = inner_frames(&captured).into_iter().filter(from_a).collect();
        assert_eq!(wire.len(), segments);
        let headers = if family == Family::V4 { 54 } else { 74 };
        let mut data: Vec<u8> = Vec::new();
        for (ix, (from, packet)) in wire.iter().enumerate() {
            let seen = look(packet);
            assert_eq!(from.port(), wire[0].0.port(), "one flow, one way");
            assert_eq!(seen.ttl, 63);
            let Some(TransportHeader::Tcp(tcp)) = seen.transport else { panic!("{seen:?}") };
            assert_eq!(tcp.sequence_number, 1000 + u32::try_from(ix * size).unwrap());
            assert_eq!(tcp.psh, ix + 1 == segments);
            if family == Family::V4 {
                let identification = u16::from_be_bytes([packet[18], packet[19]]);
                assert_eq!(usize::from(identification), ix, "counted up from the first");
            }
            data.extend(&packet[headers..]);
        }
        assert!(data == pattern(len));

        // The far switch got one frame, and so did the pod behind it, but for the checksums it checks.
        let arrivals = cluster.host(b).take_arrivals();
        let data_arrivals: Vec<_> =
            arrivals.iter().filter(|arrival| look_quietly(&arrival.packets[0], source)).collect();
        assert_eq!(data_arrivals.len(), 1, "coalesced");
        assert_eq!(data_arrivals[0].packets.len(), segments);
        let data: Vec<_> =
            data_arrivals[0].packets.iter().flat_map(|packet| look(packet).payload).collect();
        assert!(data == pattern(len));
    }
}

fn look_quietly(packet: &[u8], source: IpAddr) -> bool {
    packet[12..14] != [0x08, 0x06] && look(packet).source == source
}

#[test]
fn every_packet_on_the_wire_has_right_checksums_and_fits_it() {
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).seed(17).build();
    let pods = cluster.pods();
    cluster.start_capture(100_000);
    for family in Family::ALL {
        let data = pattern(200_000);
        let transfer = cluster.tcp(pods[0], pods[1], family, &data, 60 * SECOND);
        assert!(transfer.received == data);
        assert!(cluster.udp(pods[1], pods[0], family, &pattern(1000)).is_some());
    }
    assert!(cluster.udp(pods[1], pods[0], Family::V4, &pattern(8000)).is_some());
    let captured = cluster.take_capture();
    let frames = inner_frames(&captured);
    assert!(frames.len() > 300, "{}", frames.len());
    for (_, frame) in frames {
        let seen = look(&frame);
        assert!(seen.len <= 1450);
        let vteps = [cluster.vtep_mac(cluster.nodes()[0]), cluster.vtep_mac(cluster.nodes()[1])];
        assert!(vteps.contains(&seen.macs.0) && vteps.contains(&seen.macs.1));
    }
}

#[test]
fn errors_about_a_flow_name_the_switchs_address_of_the_family() {
    // Also where ICMPv6 is needed over an IPv4 underlay and the other way round.
    let builder = Cluster::builder().nodes(2).pods_per_node(1).seed(18).ipv6_underlay(true);
    let mut cluster = builder.build();
    let pods = cluster.pods();
    let nodes = cluster.nodes();
    cluster.host(pods[0]).watch_arrivals(16);
    for family in Family::ALL {
        let gateway = cluster.address(nodes[1], family).unwrap();
        // No service: a stack on the far machine answers, with the address that was asked.
        let frame = udp_from(&cluster, pods[0], gateway, 9, b"closed port");
        cluster.inject_frame(pods[0], &frame);
        cluster.run_for(2 * SECOND);
        let errors = cluster.host(pods[0]).take_icmp_errors();
        assert_eq!(errors.len(), 1, "{family:?}");
        assert_eq!(errors[0].from, gateway);
        let unreachable = icmpv6::DestUnreachableCode::Port.code_u8();
        assert_eq!(errors[0].code, if family == Family::V4 { 3 } else { unreachable });
    }
}
