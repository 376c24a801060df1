//! The parsers of the data path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use vswitch::config::Config;
use vswitch::counters::Counters;
use vswitch::frame::{Batch, Frame, Ingress, Pool};
use vswitch::mac::Mac;
use vswitch::offload::{self, Coalescer, Cut, Options, VnetHeader};
use vswitch::port::{Context, NodeIx, PortIx};
use vswitch::service::{
    Algorithm, Endpoint, EndpointState, Family, Frontend, Protocol, ServicePort, ServiceTable,
    ServiceTableBuilder, TrafficPolicy,
};
use vswitch::switch::Switch;
use vswitch::tables::{Masquerade, Node, Peer, PortEntry, PortKind, Tables, TablesBuilder};
use vswitch::verdict::Egress;
use vswitch::wire::checksum::{self, Verification};
use vswitch::wire::{self, ETHERNET_LEN, Fragment, Headers, Ip, Network, Transport, flow, tcp};

/// A frame, as a pod or another node may send it.
pub fn parse(frame: &[u8]) {
    let Ok(headers) = wire::parse(frame) else {
        return;
    };
    flow::hash(&headers, 1);
    let Network::Ip(ip) = headers.network else {
        return;
    };
    assert!(ip.transport_offset <= ETHERNET_LEN + ip.len && ETHERNET_LEN + ip.len <= frame.len());
    checksum::verify(frame, &ip);
    let mut routed = frame.to_vec();
    wire::decrement_ttl(&mut routed);
    let ttl = ip.ttl.saturating_sub(1);
    let network = Network::Ip(Ip { ttl, ..ip });
    assert_eq!(wire::parse(&routed), Ok(Headers { network, ..headers }));
}

/// A virtio-net header and a frame, as a pod may send them.
pub fn cut(input: &[u8]) {
    let Some(header) = VnetHeader::from_slice(input) else {
        return;
    };
    let mut frame = Frame::new();
    if !frame.append(&input[VnetHeader::LEN..]) || offload::decode(&header, &mut frame).is_err() {
        return;
    }
    offload::encode(&frame);
    let Ok(headers) = wire::parse(frame.data()) else {
        assert_eq!(frame.meta.gso, None, "a super-frame can be parsed");
        return;
    };
    let is_super_frame = frame.meta.gso.is_some();
    let packets = cut_all(&frame, &headers);
    assert!(packets.len() <= usize::from(offload::SEGMENTS_MAX));
    for packet in packets {
        let after = wire::parse(&packet).expect("a part of a packet is a packet");
        assert_eq!((after.source, after.destination), (headers.source, headers.destination));
        if let (Network::Ip(before), Network::Ip(after)) = (headers.network, after.network) {
            assert_eq!(before.source, after.source);
            assert_eq!(before.destination, after.destination);
            assert_eq!(flow::ports(&before), flow::ports(&after));
            if is_super_frame {
                assert_eq!(checksum::verify(&packet, &after), Verification::Right);
            }
        }
    }
}

/// Packets out of the tunnel: the first byte says whether their checksums are made right, and every
/// packet has its length, in two bytes, in front.
pub fn coalesce(input: &[u8]) {
    let Some((&mode, mut rest)) = input.split_first() else {
        return;
    };
    let options = Options { merge_udp: mode & 2 != 0, mtu: u16::MAX };
    let mut coalescer = Coalescer::new(options);
    let mut pool = Pool::new(PACKETS_MAX);
    let mut batch = Batch::new();
    let mut accepted = Vec::new();
    while let Some((packet, behind)) = next_packet(rest)
        && accepted.len() < PACKETS_MAX
    {
        rest = behind;
        let mut packet = packet.to_vec();
        if mode & 1 != 0 {
            repair(&mut packet);
        }
        let ingress = Ingress::Node(NodeIx(0));
        if coalescer.push(&packet, ingress, &mut pool, &mut batch).is_ok() {
            accepted.push(packet);
        }
    }
    coalescer.finish(&mut batch);
    let mut cut = Vec::new();
    for frame in &batch {
        let headers = wire::parse(frame.data()).expect("a merged frame is one");
        let packets = cut_all(frame, &headers);
        assert_eq!(packets.len() as u64, frame.packets());
        cut.extend(packets);
    }
    // Flows may overtake each other; within a flow everything stays in order.
    let sorted = |packets: &[Vec<u8>]| {
        let mut sorted: Vec<_> = packets.iter().map(|packet| comparable(packet)).collect();
        sorted.sort_by_key(|(flow, _)| *flow);
        sorted
    };
    assert_eq!(sorted(&cut), sorted(&accepted));
}

/// Frames through the whole pipeline: the first byte says whether checksums are made right; each frame
/// has where it comes in, and its length in two bytes, in front.
pub fn switch(input: &[u8]) {
    let Some((&mode, mut rest)) = input.split_first() else {
        return;
    };
    let tables = tables();
    let counters = Counters::new(1, 4);
    let worker = counters.worker(0);
    let mut pool = Pool::new(PACKETS_MAX);
    let now = Instant::now();
    let mut switch = Switch::new(&Config { flows_max: 64, ..Config::default() }, now);
    let (mut batch, mut out) = (Batch::new(), Vec::new());
    while let Some((&from, behind)) = rest.split_first()
        && let Some((packet, behind)) = next_packet(behind)
    {
        rest = behind;
        let mut packet = packet.to_vec();
        if mode & 1 != 0 {
            repair(&mut packet);
        }
        let mut frame = pool.take().expect("all buffers came back");
        assert!(frame.append(&packet));
        frame.meta.ingress = match from % 4 {
            3 => Ingress::Node(NodeIx(0)),
            port => Ingress::Port(PortIx(u16::from(port))),
        };
        worker.received.add(1);
        batch.push(frame);
        let mut context = Context { tables: &tables, pool: &mut pool, counters: &worker };
        switch.forward(&mut context, now, &mut batch, &mut out);
        assert!(batch.is_empty());
        for (egress, frame) in out.drain(..) {
            let headers = wire::parse(frame.data()).expect("what goes out is sound");
            let mtu = match egress {
                Egress::Port(port) => tables.port(port).expect("it exists").mtu,
                Egress::Node(node) => tables.peer(node).expect("it exists").mtu,
            };
            if let Network::Ip(ip) = headers.network {
                assert!(ip.len <= usize::from(mtu));
            }
            worker.delivered.add(frame.packets());
            pool.put(frame);
        }
    }
    assert_eq!(
        counters.sum().queued(),
        0,
        "received + originated = delivered + answered + dropped"
    );
    assert_eq!(pool.in_use(), 0);
}

/// The host, two pods and another node.
fn tables() -> Tables {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let node = Node {
        vtep_mac: Mac([2, 0, 0, 0, 1, 1]),
        gateway_v4: Some(Ipv4Addr::new(10, 99, 0, 254)),
        gateway_v6: Some(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0xfe)),
        underlay: Some(ip("192.0.2.1")),
        vxlan_port: 4789,
        gossip_port: 7946,
    };
    let ranges = ["10.99.0.0/16", "fd99::/56"].map(|range| range.parse().expect("a range"));
    let mut builder = TablesBuilder::new(1, node, &ranges);
    let port = |kind, mac, addresses: &[&str]| PortEntry {
        kind,
        mac,
        mtu: 1280,
        addresses: addresses.iter().map(|address| ip(address)).collect(),
    };
    // The addresses are those of the recorded packets.
    builder
        .port(PortIx::HOST, port(PortKind::Host, Mac::HOST, &["10.99.0.254", "192.0.2.1"]))
        .port(PortIx(1), port(PortKind::Pod, POD_MACS[0], &["10.99.0.1", "fd99::1"]))
        .port(PortIx(2), port(PortKind::Pod, POD_MACS[1], &["10.99.0.2", "fd99::2"]));
    builder.peer(Peer {
        name: "peer".to_owned(),
        underlay: SocketAddr::new(ip("192.0.2.2"), 4789),
        vtep_mac: Mac([2, 0, 0, 0, 1, 2]),
        mtu: 1280,
        leases: vec!["10.99.1.0/24".parse().expect("a lease")],
    });
    builder.services(Arc::new(services()));
    builder.masquerade(Masquerade { v4: Some(Ipv4Addr::new(10, 99, 0, 253)), v6: None });
    builder.build()
}

/// Services at addresses that the recorded packets go to, with no, one and two endpoints.
fn services() -> ServiceTable {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let mut table = ServiceTableBuilder::new(vec!["10.99.7.0/24".parse().expect("a range")]);
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        for (number, port) in [53, 80, 443, 5001, 5201, 7000].into_iter().enumerate() {
            let endpoint = |address| Endpoint {
                address: ip(address),
                port: 8080,
                is_local: true,
                is_near: true,
                state: EndpointState::Ready,
            };
            let mut endpoints = vec![endpoint("10.99.0.1"), endpoint("10.99.1.9")];
            endpoints.truncate(number % 3);
            let set = table.set(ServicePort {
                name: format!("fuzz/{port}:{protocol}"),
                family: Family::V4,
                protocol,
                frontends: vec![
                    Frontend::ExternalIp { address: ip("10.99.0.2"), port },
                    Frontend::ClusterIp { address: ip("10.99.7.1"), port },
                ],
                endpoints,
                internal_policy: TrafficPolicy::Cluster,
                external_policy: TrafficPolicy::Local,
                algorithm: Algorithm::LeastConnections,
                affinity: None,
            });
            set.expect("a Service");
        }
    }
    table.build(1)
}

const POD_MACS: [Mac; 2] = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];

/// Most packets that one input stands for.
const PACKETS_MAX: usize = 256;

fn next_packet(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = input.split_first_chunk()?;
    let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
    Some(rest.split_at(len))
}

fn cut_all(frame: &Frame, headers: &Headers) -> Vec<Vec<u8>> {
    let cut = Cut::new(frame, headers).expect("the meta data fits the frame");
    (0..cut.segments())
        .map(|ix| {
            let mut packet = vec![0; cut.segment_len(ix)];
            assert_eq!(cut.write(ix, &mut packet), packet.len());
            packet
        })
        .collect()
}

/// Makes checksums right, so that a changed byte does not hide what lies behind the check.
fn repair(packet: &mut [u8]) {
    if let Some(header) = packet.get_mut(ETHERNET_LEN..)
        && header.first().is_some_and(|first| first >> 4 == 4)
    {
        let len = usize::from(header[0] & 0xf) * 4;
        if (20..=header.len()).contains(&len) {
            checksum::set_ipv4_header(&mut header[..len]);
        }
    }
    let Ok(Headers { network: Network::Ip(ip), .. }) = wire::parse(packet) else {
        return;
    };
    let Some(offset) = checksum::checksum_offset(ip.transport) else {
        return;
    };
    let segment = &mut packet[ip.transport_offset..ETHERNET_LEN + ip.len];
    if segment.len() < offset + 2 || matches!(segment[offset..offset + 2], [0, 0]) {
        return;
    }
    segment[offset..offset + 2].fill(0);
    let sum = if ip.protocol == 1 {
        checksum::internet(segment)
    } else {
        checksum::transport(ip.source, ip.destination, ip.protocol, segment)
    };
    segment[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Addresses and ports.
type Flow = (IpAddr, IpAddr, (u16, u16));

/// A packet's flow in its direction, and the packet without what coalescing may change: padding, a
/// checksum that was left to be done, PSH, and an identification that means nothing.
fn comparable(packet: &[u8]) -> (Option<Flow>, Vec<u8>) {
    let headers = wire::parse(packet).expect("accepted, so it is sound");
    let Network::Ip(ip) = headers.network else {
        return (None, packet.to_vec());
    };
    let flow = Some((ip.source, ip.destination, flow::ports(&ip)));
    let mut packet = packet[..ETHERNET_LEN + ip.len].to_vec();
    if ip.source.is_ipv4() && ip.dont_fragment {
        packet[18..20].fill(0);
        checksum::set_ipv4_header(&mut packet[ETHERNET_LEN..ETHERNET_LEN + 20]);
    }
    if let Some(offset) = checksum::checksum_offset(ip.transport)
        && ip.fragment == Fragment::Whole
    {
        packet[ip.transport_offset + offset..][..2].fill(0);
    }
    if matches!(ip.transport, Transport::Tcp { .. }) {
        packet[ip.transport_offset + tcp::FLAGS_OFFSET] &= !tcp::flag::PSH;
    }
    (flow, packet)
}
