//! Packets for tests of simulated clusters: made and taken apart by etherparse, not by the code under test.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "only tests use it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, NetHeaders, PacketBuilder,
    PacketBuilderStep, PacketHeaders, TransportHeader,
};
use vswitch::mac::Mac;
use weft::sim::{Cluster, Family, Node, Pod};

pub const SECOND: Duration = Duration::from_secs(1);

/// Every ordered pair of different pods.
pub fn pairs(cluster: &Cluster) -> Vec<(Pod, Pod)> {
    let pods = cluster.pods();
    let all = pods.iter().flat_map(|a| pods.iter().map(move |b| (*a, *b)));
    all.filter(|(a, b)| a != b).collect()
}

pub fn v4(cluster: &Cluster, pod: Pod) -> IpAddr {
    cluster.address(pod, Family::V4).unwrap()
}

pub fn v6(cluster: &Cluster, pod: Pod) -> IpAddr {
    cluster.address(pod, Family::V6).unwrap()
}

pub fn of(cluster: &Cluster, pod: Pod, family: Family) -> IpAddr {
    cluster.address(pod, family).unwrap()
}

/// Asserts that `from` reaches `to` in both families.
pub fn assert_reaches(cluster: &mut Cluster, from: Pod, to: Pod) {
    for family in Family::ALL {
        let target = of(cluster, to, family);
        let took = cluster.ping(from, target, 5 * SECOND);
        assert!(took.is_some(), "{from:?} -> {to:?} {target}\n{}", cluster.picture());
    }
}

/// Ethernet and IP headers of a packet with this TTL.
pub fn ip(
    macs: (Mac, Mac),
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
) -> PacketBuilderStep<etherparse::IpHeaders> {
    let link = PacketBuilder::ethernet2(macs.0.0, macs.1.0);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            link.ipv4(source.octets(), destination.octets(), ttl)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            link.ipv6(source.octets(), destination.octets(), ttl)
        }
        _ => panic!("two families"),
    }
}

/// A UDP packet from `pod` to the switch. IPv4 packets do not have Don't Fragment set.
pub fn udp_from(
    cluster: &Cluster,
    pod: Pod,
    destination: IpAddr,
    port: u16,
    payload: &[u8],
) -> Vec<u8> {
    let source = of(cluster, pod, Family::of(destination));
    udp((cluster.mac(pod), Mac::ROUTER), source, destination, port, payload)
}

pub fn udp(
    macs: (Mac, Mac),
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(macs, source, destination, 64).udp(4000, port).write(&mut bytes, payload).unwrap();
    bytes
}

/// The same with another Don't Fragment bit. etherparse sets it.
pub fn set_dont_fragment(frame: &mut [u8], dont_fragment: bool) {
    const ETHERNET: usize = 14;
    let (mut header, rest) = Ipv4Header::from_slice(&frame[ETHERNET..]).unwrap();
    let len = frame.len() - ETHERNET - rest.len();
    header.dont_fragment = dont_fragment;
    header.header_checksum = header.calc_header_checksum();
    let mut bytes = Vec::new();
    header.write(&mut bytes).unwrap();
    frame[ETHERNET..ETHERNET + len].copy_from_slice(&bytes);
}

/// Cuts an IPv6 packet that is too long into two fragments, as its sender has to (RFC 8200 §4.5).
pub fn fragment_v6(frame: &[u8], at: usize) -> [Vec<u8>; 2] {
    const HEADERS: usize = 14 + 40;
    let (headers, payload) = frame.split_at(HEADERS);
    let next_header = IpNumber(headers[14 + 6]);
    let piece = |offset: usize, more: bool, part: &[u8]| {
        let offset = IpFragOffset::try_new(u16::try_from(offset / 8).unwrap()).unwrap();
        let fragment = Ipv6FragmentHeader::new(next_header, offset, more, 77);
        let mut bytes = headers.to_vec();
        bytes[14 + 6] = 44;
        let len = u16::try_from(8 + part.len()).unwrap();
        bytes[14 + 4..14 + 6].copy_from_slice(&len.to_be_bytes());
        bytes.extend(fragment.to_bytes());
        bytes.extend(part);
        bytes
    };
    assert_eq!(at % 8, 0);
    [piece(0, true, &payload[..at]), piece(at, false, &payload[at..])]
}

/// What etherparse says of a packet, all of whose checksums were found right.
#[derive(Debug)]
pub struct Seen {
    pub macs: (Mac, Mac),
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    /// Length of the IP packet.
    pub len: usize,
    /// Whether, and where, it is a fragment: offset in bytes, and whether more follow.
    pub fragment: Option<(usize, bool)>,
    pub transport: Option<TransportHeader>,
    pub payload: Vec<u8>,
}

/// Takes a frame apart; panics if any of its checksums is wrong.
pub fn look(frame: &[u8]) -> Seen {
    let packet = PacketHeaders::from_ethernet_slice(frame).unwrap();
    let link = packet.link.unwrap().ethernet2().unwrap();
    let payload = packet.payload.slice().to_vec();
    let transport = packet.transport;
    let (source, destination, ttl, fragment): (IpAddr, IpAddr, _, _) = match packet.net.unwrap() {
        NetHeaders::Ipv4(header, _) => {
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let fragment = header
                .is_fragmenting_payload()
                .then(|| (usize::from(header.fragment_offset.value()) * 8, header.more_fragments));
            if let Some(mut right) = transport.clone().filter(|_| fragment.is_none()) {
                right.update_checksum_ipv4(&header, &payload).unwrap();
                assert_eq!(Some(right), transport, "layer 4 checksum");
            }
            let (source, destination) = (header.source, header.destination);
            let (source, destination) = (Ipv4Addr::from(source), Ipv4Addr::from(destination));
            (source.into(), destination.into(), header.time_to_live, fragment)
        }
        NetHeaders::Ipv6(header, extensions) => {
            let fragment = extensions.fragment.filter(Ipv6FragmentHeader::is_fragmenting_payload);
            let fragment =
                fragment.map(|f| (usize::from(f.fragment_offset.value()) * 8, f.more_fragments));
            if let Some(mut right) = transport.clone().filter(|_| fragment.is_none()) {
                right.update_checksum_ipv6(&header, &payload).unwrap();
                assert_eq!(Some(right), transport, "layer 4 checksum");
            }
            let (source, destination) = (header.source, header.destination);
            let (source, destination) = (Ipv6Addr::from(source), Ipv6Addr::from(destination));
            (source.into(), destination.into(), header.hop_limit, fragment)
        }
        NetHeaders::Arp(_) => panic!("ARP"),
    };
    Seen {
        macs: (Mac(link.source), Mac(link.destination)),
        source,
        destination,
        ttl,
        len: frame.len() - 14,
        fragment,
        transport,
        payload,
    }
}

/// Frames, as single packets, that `pod` was handed since this was asked last. Neighbor messages are
/// left out.
pub fn packets_at(cluster: &mut Cluster, pod: Pod) -> Vec<Vec<u8>> {
    let arrivals = cluster.host(pod).take_arrivals();
    let packets = arrivals.into_iter().flat_map(|arrival| arrival.packets);
    packets.filter(|packet| !is_neighbor_message(packet)).collect()
}

fn is_neighbor_message(frame: &[u8]) -> bool {
    let is_arp = frame[12..14] == [0x08, 0x06];
    let is_discovery =
        frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && (133..=137).contains(&frame[54]);
    is_arp || is_discovery
}

/// A VXLAN header with VNI 1 (RFC 7348 §5), and a frame behind it.
pub fn vxlan(frame: &[u8]) -> Vec<u8> {
    [&[0x08, 0, 0, 0, 0, 0, 1, 0], frame].concat()
}

/// Asserts that all running nodes have the same routes.
pub fn assert_equal_maps(cluster: &Cluster) {
    let routes = |node: Node| -> Vec<_> {
        let members = cluster.map(node).unwrap().members.values();
        let routes = members.flat_map(|m| m.routes().map(|prefix| (m.id, prefix)));
        routes.collect()
    };
    let nodes = cluster.running();
    for node in &nodes {
        assert_eq!(routes(*node), routes(nodes[0]), "{}", cluster.picture());
    }
}
