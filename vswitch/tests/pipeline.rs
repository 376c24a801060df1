//! What the switch makes of frames, by where they come from and go to, in both families.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "only tests are in here")]

mod common;

use common::*;
use etherparse::{Icmpv4Type, Icmpv6Type, TransportHeader};
use proptest::prelude::*;
use vswitch::frame::{Checksum, Gso, GsoKind, Ingress};
use vswitch::mac::Mac;
use vswitch::port::PortIx;
use vswitch::tables::{PortEntry, PortKind};
use vswitch::verdict::{Egress, Reason};

const FROM_A: Ingress = Ingress::Port(POD_A);
const FROM_HOST: Ingress = Ingress::Port(PortIx::HOST);
const FROM_PEER: Ingress = Ingress::Node(PEER);
const TO_HOST: Egress = Egress::Port(PortIx::HOST);

/// What is expected of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expect {
    /// Forwarded; with this TTL, having come with 64.
    Out(Egress, u8),
    /// Dropped without a word.
    Drop(Reason),
    /// Dropped, and an ICMP error sent: with this type and code.
    Refuse(Reason, Egress, u8, u8),
}
use Expect::{Drop, Out, Refuse};

fn check(bench: &mut Bench, ingress: Ingress, source: &str, destination: &str, expect: Expect) {
    let (from, to) = match ingress {
        Ingress::Port(PortIx::HOST) => (Mac::HOST, Mac::ROUTER),
        Ingress::Port(_) => (MAC_A, Mac::ROUTER),
        Ingress::Node(_) | Ingress::Switch => (PEER_VTEP, VTEP),
    };
    let case = format!("{ingress:?} {source} -> {destination}");
    let bytes = udp_to(from, to, source, destination, 53, b"payload");
    let (reason, out) = bench.reason_for(ingress, &bytes);
    match expect {
        Out(egress, ttl) => {
            assert_eq!(reason, None, "{case}");
            let [(at, bytes)] = &out[..] else { panic!("{case}: {out:?}") };
            let seen = look(bytes);
            assert_eq!((*at, seen.ttl), (egress, ttl), "{case}");
            assert_eq!((seen.source, seen.destination), (ip(source), ip(destination)), "{case}");
            assert_eq!(seen.macs, macs_at(bench, egress), "{case}");
            assert_eq!(seen.payload, b"payload", "{case}");
        }
        Drop(expected) => {
            assert_eq!(reason, Some(expected), "{case}");
            assert_eq!(out, [], "{case}");
        }
        Refuse(expected, egress, kind, code) => {
            assert_eq!(reason, Some(expected), "{case}");
            let [(at, error)] = &out[..] else { panic!("{case}: {out:?}") };
            let seen = look(error);
            assert_eq!(*at, egress, "{case}");
            assert_eq!(seen.destination, ip(source), "{case}");
            assert_eq!(seen.macs, macs_at(bench, egress), "{case}");
            assert_eq!(icmp_kind(error), (kind, code), "{case}");
            assert_eq!(seen.payload, bytes[14..], "{case}: quotes the packet as it was sent");
        }
    }
}

fn macs_at(bench: &Bench, egress: Egress) -> (Mac, Mac) {
    match egress {
        Egress::Port(port) => (Mac::ROUTER, bench.tables.port(port).unwrap().mac),
        Egress::Node(node) => (VTEP, bench.tables.peer(node).unwrap().vtep_mac),
    }
}

fn icmp_kind(bytes: &[u8]) -> (u8, u8) {
    let at = if bytes[12] == 0x08 { 34 } else { 54 };
    (bytes[at], bytes[at + 1])
}

#[test]
fn every_way_through_the_switch_in_ipv4() {
    let mut bench = Bench::new();
    let to_b = Egress::Port(POD_B);
    for (ingress, source, destination, expect) in [
        (FROM_A, "10.244.1.2", "10.244.1.3", Out(to_b, 63)),
        (FROM_A, "10.244.1.2", "10.244.1.2", Out(Egress::Port(POD_A), 63)),
        (FROM_A, "10.244.1.2", "10.244.2.9", Out(Egress::Node(PEER), 63)),
        (FROM_A, "10.244.1.2", "192.0.2.2", Out(Egress::Node(PEER), 63)),
        (FROM_A, "10.244.1.2", "10.244.1.1", Out(TO_HOST, 64)),
        (FROM_A, "10.244.1.2", "192.0.2.1", Out(TO_HOST, 64)),
        (FROM_A, "10.244.1.2", "198.51.100.7", Out(TO_HOST, 64)),
        (
            FROM_A,
            "10.244.1.2",
            "10.244.1.99",
            Refuse(Reason::NoSuchAddress, Egress::Port(POD_A), 3, 1),
        ),
        (FROM_A, "10.244.1.2", "169.254.1.1", Refuse(Reason::NoService, Egress::Port(POD_A), 3, 3)),
        (FROM_A, "10.244.1.3", "10.244.1.2", Drop(Reason::Spoofed)),
        (FROM_A, "198.51.100.7", "10.244.1.3", Drop(Reason::Spoofed)),
        (FROM_A, "10.244.1.2", "224.0.0.251", Drop(Reason::Multicast)),
        (FROM_A, "10.244.1.2", "255.255.255.255", Drop(Reason::Multicast)),
        (FROM_A, "10.244.1.2", "127.0.0.1", Drop(Reason::Martian)),
        (FROM_A, "10.244.1.2", "0.0.0.0", Drop(Reason::Martian)),
        (FROM_A, "10.244.1.2", "169.254.169.254", Drop(Reason::Martian)),
        (FROM_A, "10.244.1.2", "240.0.0.1", Drop(Reason::Martian)),
        (FROM_HOST, "10.244.1.1", "10.244.1.3", Out(to_b, 64)),
        (FROM_HOST, "198.51.100.7", "10.244.1.3", Out(to_b, 64)),
        (FROM_HOST, "10.244.1.1", "10.244.2.9", Out(Egress::Node(PEER), 64)),
        (FROM_HOST, "192.0.2.1", "10.244.2.9", Out(Egress::Node(PEER), 64)),
        (FROM_HOST, "198.51.100.7", "10.244.2.9", Drop(Reason::ForeignSource)),
        (FROM_HOST, "10.244.3.9", "10.244.2.9", Drop(Reason::ForeignSource)),
        (FROM_HOST, "127.0.0.1", "10.244.1.3", Drop(Reason::Martian)),
        (FROM_HOST, "10.244.1.1", "10.244.1.99", Refuse(Reason::NoSuchAddress, TO_HOST, 3, 1)),
        (FROM_HOST, "10.244.1.1", "198.51.100.7", Refuse(Reason::NoSuchAddress, TO_HOST, 3, 0)),
        (FROM_PEER, "10.244.2.9", "10.244.1.3", Out(to_b, 63)),
        (FROM_PEER, "192.0.2.2", "10.244.1.3", Out(to_b, 63)),
        (FROM_PEER, "10.244.2.9", "10.244.1.1", Out(TO_HOST, 64)),
        (FROM_PEER, "10.244.2.9", "192.0.2.1", Out(TO_HOST, 64)),
        (
            FROM_PEER,
            "10.244.2.9",
            "10.244.1.99",
            Refuse(Reason::NoSuchAddress, Egress::Node(PEER), 3, 1),
        ),
        (FROM_PEER, "10.244.3.9", "10.244.1.3", Drop(Reason::VxlanSource)),
        (FROM_PEER, "10.244.1.2", "10.244.1.3", Drop(Reason::VxlanSource)),
        (FROM_PEER, "198.51.100.7", "10.244.1.3", Drop(Reason::VxlanSource)),
        (FROM_PEER, "10.244.2.9", "10.244.3.9", Drop(Reason::NotForUs)),
        (FROM_PEER, "10.244.2.9", "10.244.2.8", Drop(Reason::NotForUs)),
        (FROM_PEER, "10.244.2.9", "198.51.100.7", Drop(Reason::NotForUs)),
        (FROM_PEER, "10.244.2.9", "169.254.1.1", Drop(Reason::NotForUs)),
        (Ingress::Node(OTHER_PEER), "10.244.2.9", "10.244.1.3", Drop(Reason::VxlanSource)),
    ] {
        check(&mut bench, ingress, source, destination, expect);
    }
}

#[test]
fn every_way_through_the_switch_in_ipv6() {
    let mut bench = Bench::new();
    let (a, b) = ("fd00:10:244:1::2", "fd00:10:244:1::3");
    let (host, far) = ("fd00:10:244:1::1", "fd00:10:244:2::9");
    let nobody = "fd00:10:244:1::99";
    for (ingress, source, destination, expect) in [
        (FROM_A, a, b, Out(Egress::Port(POD_B), 63)),
        (FROM_A, a, far, Out(Egress::Node(PEER), 63)),
        (FROM_A, a, host, Out(TO_HOST, 64)),
        (FROM_A, a, "2001:db8::7", Out(TO_HOST, 64)),
        (FROM_A, a, nobody, Refuse(Reason::NoSuchAddress, Egress::Port(POD_A), 1, 3)),
        (FROM_A, a, "fe80::1", Refuse(Reason::NoService, Egress::Port(POD_A), 1, 4)),
        (FROM_A, "fe80::858:aff:fef4:102", "fe80::1", Drop(Reason::NoService)),
        (FROM_A, "fe80::858:aff:fef4:102", b, Drop(Reason::Spoofed)),
        (FROM_A, b, a, Drop(Reason::Spoofed)),
        (FROM_A, a, "ff02::fb", Drop(Reason::Multicast)),
        (FROM_A, a, "::1", Drop(Reason::Martian)),
        (FROM_A, a, "fe80::2", Drop(Reason::Martian)),
        (FROM_A, a, "::ffff:10.244.1.3", Drop(Reason::Martian)),
        (FROM_HOST, host, b, Out(Egress::Port(POD_B), 64)),
        (FROM_HOST, host, far, Out(Egress::Node(PEER), 64)),
        (FROM_HOST, "2001:db8::7", far, Drop(Reason::ForeignSource)),
        (FROM_HOST, host, nobody, Refuse(Reason::NoSuchAddress, TO_HOST, 1, 3)),
        (FROM_HOST, host, "2001:db8::7", Refuse(Reason::NoSuchAddress, TO_HOST, 1, 0)),
        (FROM_PEER, far, b, Out(Egress::Port(POD_B), 63)),
        (FROM_PEER, far, host, Out(TO_HOST, 64)),
        (FROM_PEER, far, nobody, Refuse(Reason::NoSuchAddress, Egress::Node(PEER), 1, 3)),
        (FROM_PEER, "fd00:10:244:3::9", b, Drop(Reason::VxlanSource)),
        (FROM_PEER, far, "fd00:10:244:3::9", Drop(Reason::NotForUs)),
    ] {
        check(&mut bench, ingress, source, destination, expect);
    }
}

#[test]
fn without_a_host_nothing_leads_outside() {
    let mut bench = Bench::with_tables(tables_builder().build());
    let refused = Refuse(Reason::NoSuchAddress, Egress::Port(POD_A), 3, 0);
    check(&mut bench, FROM_A, "10.244.1.2", "198.51.100.7", refused);
}

#[test]
fn errors_come_from_the_gateway_and_to_the_host_from_the_router() {
    let mut bench = Bench::new();
    for (ingress, mac, source, nobody, expected) in [
        (FROM_A, MAC_A, "10.244.1.2", "10.244.1.99", "10.244.1.1"),
        (FROM_A, MAC_A, "fd00:10:244:1::2", "fd00:10:244:1::99", "fd00:10:244:1::1"),
        (FROM_HOST, Mac::HOST, "10.244.1.1", "10.244.1.99", "169.254.1.1"),
        (FROM_HOST, Mac::HOST, "fd00:10:244:1::1", "fd00:10:244:1::99", "fe80::1"),
    ] {
        let out = bench.run(ingress, &udp(mac, source, nobody, b""));
        assert_eq!(look(&out[0].1).source, ip(expected));
    }
}

#[test]
fn link_addresses_are_checked() {
    let mut bench = Bench::new();
    let (a, b) = ("10.244.1.2", "10.244.1.3");
    for (ingress, from, to, source, reason) in [
        (FROM_A, MAC_B, Mac::ROUTER, a, Reason::Spoofed),
        (FROM_A, MAC_A, MAC_B, a, Reason::NotForRouter),
        (FROM_A, MAC_A, Mac::BROADCAST, a, Reason::Multicast),
        (FROM_PEER, PEER_VTEP, Mac::ROUTER, "10.244.2.9", Reason::VxlanVtep),
        (FROM_PEER, PEER_VTEP, Mac::BROADCAST, "10.244.2.9", Reason::VxlanVtep),
        (Ingress::Port(PortIx(7)), MAC_A, Mac::ROUTER, a, Reason::PortGone),
        (Ingress::Node(vswitch::port::NodeIx(9)), PEER_VTEP, VTEP, a, Reason::NodeGone),
    ] {
        let bytes = udp_to(from, to, source, b, 53, b"");
        assert_eq!(bench.reason_for(ingress, &bytes), (Some(reason), vec![]), "{from} {to}");
    }
    assert_eq!(bench.counters.port(POD_A).dropped, 3);
}

#[test]
fn padding_is_cut_off() {
    let mut bench = Bench::new();
    let packet = udp(MAC_A, "10.244.1.2", "10.244.2.9", b"short");
    let padded = [&packet[..], &[0xee; 30_000]].concat();
    let out = bench.run(FROM_A, &padded);
    assert_eq!(out[0].0, Egress::Node(PEER));
    assert_eq!(out[0].1.len(), packet.len());
}

#[test]
fn pods_do_not_reach_the_tunnel() {
    let mut bench = Bench::new();
    for (destination, port, expected) in [
        ("192.0.2.1", 4789, Some(Reason::TunnelPort)),
        ("192.0.2.2", 4789, Some(Reason::TunnelPort)),
        ("192.0.2.2", 7946, Some(Reason::TunnelPort)),
        ("10.244.1.1", 4789, Some(Reason::TunnelPort)),
        ("192.0.2.2", 53, None),
        ("10.244.1.3", 4789, None),
        ("198.51.100.7", 4789, Some(Reason::TunnelPort)),
    ] {
        let bytes = udp_to(MAC_A, Mac::ROUTER, "10.244.1.2", destination, port, b"");
        assert_eq!(bench.reason_for(FROM_A, &bytes).0, expected, "{destination}:{port}");
    }
    let from_host = udp_to(Mac::HOST, Mac::ROUTER, "192.0.2.1", "192.0.2.2", 4789, b"");
    assert_eq!(bench.reason_for(FROM_HOST, &from_host).0, None);
}

#[test]
fn fragments_do_not_reach_the_tunnel_either() {
    let mut bench = Bench::new();
    let whole = udp_to(MAC_A, Mac::ROUTER, "10.244.1.2", "192.0.2.2", 4789, &[7; 100]);
    let first = with_fragment_field(&whole, 0x2000, 24);
    assert_eq!(bench.reason_for(FROM_A, &first).0, Some(Reason::TunnelPort));
    let later = with_fragment_field(&whole, 0x0001, 24);
    assert_eq!(bench.reason_for(FROM_A, &later).0, None);
}

/// The packet cut to `len` bytes of payload, with the given flags and offset.
fn with_fragment_field(whole: &[u8], field: u16, len: u16) -> Vec<u8> {
    let mut bytes = whole[..34 + usize::from(len)].to_vec();
    bytes[16..18].copy_from_slice(&(20 + len).to_be_bytes());
    bytes[20..22].copy_from_slice(&field.to_be_bytes());
    vswitch::wire::checksum::set_ipv4_header(&mut bytes[14..34]);
    bytes
}

#[test]
fn ttl_runs_out_between_pods_but_not_at_the_host() {
    let mut bench = Bench::new();
    let packet = |mac, to, source, destination, ttl| {
        let mut bytes = Vec::new();
        with_ip(mac, to, source, destination, ttl).udp(1, 2).write(&mut bytes, b"x").unwrap();
        bytes
    };
    for (source, destination, kind) in
        [("10.244.1.2", "10.244.1.3", 11), ("fd00:10:244:1::2", "fd00:10:244:2::9", 3)]
    {
        let bytes = packet(MAC_A, Mac::ROUTER, source, destination, 1);
        let (reason, out) = bench.reason_for(FROM_A, &bytes);
        assert_eq!(reason, Some(Reason::TtlExpired));
        assert_eq!(icmp_kind(&out[0].1), (kind, 0));
        assert_eq!(look(&out[0].1).payload, bytes[14..], "with the TTL that it came with");
    }
    let (reason, out) =
        bench.reason_for(FROM_A, &packet(MAC_A, Mac::ROUTER, "10.244.1.2", "10.244.1.1", 1));
    assert_eq!((reason, look(&out[0].1).ttl), (None, 1));
    let (reason, out) =
        bench.reason_for(FROM_HOST, &packet(Mac::HOST, Mac::ROUTER, "10.244.1.1", "10.244.1.2", 1));
    assert_eq!((reason, look(&out[0].1).ttl), (None, 1));
    let (reason, out) =
        bench.reason_for(FROM_PEER, &packet(PEER_VTEP, VTEP, "10.244.2.9", "10.244.1.2", 1));
    assert_eq!((reason, out[0].0), (Some(Reason::TtlExpired), Egress::Node(PEER)));
}

#[test]
fn too_long_packets_are_refused_with_the_mtu_ahead() {
    let mut bench = Bench::new();
    let mut v4 = udp(MAC_A, "10.244.1.2", "10.244.2.9", &[1; 1400]);
    v4[20] |= 0x40;
    vswitch::wire::checksum::set_ipv4_header(&mut v4[14..34]);
    let (reason, out) = bench.reason_for(FROM_A, &v4);
    assert_eq!(reason, Some(Reason::TooBig));
    assert_eq!(icmp_kind(&out[0].1), (3, 4));
    assert_eq!(out[0].1.len(), 14 + 576);
    let Some(TransportHeader::Icmpv4(icmp)) = look(&out[0].1).transport else { panic!() };
    let Icmpv4Type::DestinationUnreachable(
        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
    ) = icmp.icmp_type
    else {
        panic!("{icmp:?}")
    };
    assert_eq!(next_hop_mtu, 1400);

    let v6 = udp(MAC_A, "fd00:10:244:1::2", "fd00:10:244:2::9", &[1; 1353]);
    let (reason, out) = bench.reason_for(FROM_A, &v6);
    assert_eq!(reason, Some(Reason::TooBig));
    assert_eq!(out[0].1.len(), 14 + 1280);
    let Some(TransportHeader::Icmpv6(icmp)) = look(&out[0].1).transport else { panic!() };
    assert_eq!(icmp.icmp_type, Icmpv6Type::PacketTooBig { mtu: 1400 });

    let fits = udp(MAC_A, "fd00:10:244:1::2", "fd00:10:244:2::9", &[1; 1352]);
    assert_eq!(bench.reason_for(FROM_A, &fits).0, None);
}

#[test]
fn packets_that_may_be_are_fragmented() {
    let mut bench = Bench::new();
    let payload: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let mut bytes = udp(MAC_A, "10.244.1.2", "10.244.2.9", &payload);
    bytes[20] &= !0x40;
    bytes[18..20].copy_from_slice(&[0x12, 0x34]);
    vswitch::wire::checksum::set_ipv4_header(&mut bytes[14..34]);
    let out = bench.run(FROM_A, &bytes);
    assert_eq!(out.len(), 4);
    assert_eq!(bench.totals().originated, 3);
    let mut together = Vec::new();
    for (egress, fragment) in &out {
        assert_eq!(*egress, Egress::Node(PEER));
        assert!(fragment.len() <= 14 + 1400);
        let seen = look(fragment);
        assert_eq!((seen.ttl, seen.macs), (63, (VTEP, PEER_VTEP)));
        together.extend_from_slice(&fragment[34..]);
    }
    assert_eq!(together, bytes[34..], "the datagram arrives as it was sent");
}

#[test]
fn too_long_super_frames_are_judged_by_their_packets() {
    let mut bench = Bench::new();
    for (size, egress) in [(1360, Some(Egress::Node(PEER))), (1361, None)] {
        let mut bytes = Vec::new();
        with_ip(MAC_A, Mac::ROUTER, "10.244.1.2", "10.244.2.9", 64)
            .tcp(1, 2, 1000, 500)
            .fin()
            .write(&mut bytes, &[5; 20_000])
            .unwrap();
        bytes[20] |= 0x40;
        vswitch::wire::checksum::set_ipv4_header(&mut bytes[14..34]);
        let mut frame = bench.frame(FROM_A, &bytes);
        frame.meta.gso = Some(Gso { kind: GsoKind::Tcp4, size, segments: 15 });
        frame.meta.checksum = Checksum::Partial { start: 34, offset: 16 };
        let before = bench.totals();
        let out = bench.forward(vec![frame]);
        let after = bench.totals();
        match egress {
            Some(egress) => {
                assert_eq!(out[0].0, egress);
                assert_eq!(out[0].1.packets(), 15);
                bench.recycle(out);
            }
            None => {
                assert_eq!(after.dropped(Reason::TooBig) - before.dropped(Reason::TooBig), 15);
                let out = bench.recycle(out);
                let quoted = &look(&out[0].1).payload;
                assert_eq!(quoted[2..4], (20 + 20 + size).to_be_bytes(), "of the first packet");
                assert_eq!(quoted[33] & 1, 0, "the first packet is not the last");
            }
        }
    }
}

#[test]
fn super_frames_that_contradict_themselves_are_dropped() {
    let mut bench = Bench::new();
    let bytes = udp(MAC_A, "10.244.1.2", "10.244.1.3", &[0; 3000]);
    let mut frame = bench.frame(FROM_A, &bytes);
    frame.meta.gso = Some(Gso { kind: GsoKind::Tcp4, size: 1000, segments: 3 });
    let out = bench.forward(vec![frame]);
    bench.recycle(out);
    assert_eq!(bench.totals().dropped(Reason::BadOffload), 3);
}

#[test]
fn the_router_answers_echo_requests() {
    let mut bench = Bench::new();
    let mut v4 = Vec::new();
    with_ip(MAC_A, Mac::ROUTER, "10.244.1.2", "169.254.1.1", 1)
        .icmpv4_echo_request(7, 9)
        .write(&mut v4, b"abc")
        .unwrap();
    let out = bench.run(FROM_A, &v4);
    let seen = look(&out[0].1);
    assert_eq!(out[0].0, Egress::Port(POD_A));
    assert_eq!((seen.source, seen.destination), (ip("169.254.1.1"), ip("10.244.1.2")));
    assert_eq!(seen.macs, (Mac::ROUTER, MAC_A));
    let Some(TransportHeader::Icmpv4(icmp)) = seen.transport else { panic!() };
    assert!(matches!(icmp.icmp_type, Icmpv4Type::EchoReply(echo) if (echo.id, echo.seq) == (7, 9)));
    assert_eq!(seen.payload, b"abc");

    let mut v6 = Vec::new();
    with_ip(Mac::HOST, Mac::ROUTER, "fe80::42", "fe80::1", 64)
        .icmpv6_echo_request(7, 9)
        .write(&mut v6, b"abc")
        .unwrap();
    let out = bench.run(FROM_HOST, &v6);
    let seen = look(&out[0].1);
    assert_eq!(out[0].0, TO_HOST);
    assert_eq!((seen.source, seen.destination), (ip("fe80::1"), ip("fe80::42")));
    let Some(TransportHeader::Icmpv6(icmp)) = seen.transport else { panic!() };
    assert!(matches!(icmp.icmp_type, Icmpv6Type::EchoReply(_)), "{icmp:?}");
    assert_eq!(bench.totals().answered, 2);
    assert_eq!(bench.totals().originated, 2);
}

#[test]
fn errors_are_limited_in_rate() {
    let mut bench = Bench::new();
    let bytes = udp(MAC_A, "10.244.1.2", "10.244.1.99", b"");
    for _ in 0..5000 {
        bench.run(FROM_A, &bytes);
    }
    assert_eq!(bench.totals().originated, 1000);
    assert_eq!(bench.totals().dropped(Reason::NoSuchAddress), 5000);
}

#[test]
fn without_buffers_nothing_is_lost_uncounted() {
    let mut bench = Bench::new();
    bench.pool = vswitch::frame::Pool::new(2);
    let mut bytes = udp(MAC_A, "10.244.1.2", "10.244.2.9", &[3; 5000]);
    bytes[20] &= !0x40;
    vswitch::wire::checksum::set_ipv4_header(&mut bytes[14..34]);
    assert_eq!(bench.reason_for(FROM_A, &bytes), (Some(Reason::PoolEmpty), vec![]));
    bench.pool = vswitch::frame::Pool::new(1);
    let nobody = udp(MAC_A, "10.244.1.2", "10.244.1.99", b"");
    assert_eq!(bench.reason_for(FROM_A, &nobody), (Some(Reason::NoSuchAddress), vec![]));
}

#[test]
fn a_node_without_a_family_sends_no_errors_in_it() {
    let mut node = node();
    node.gateway_v6 = None;
    let ranges = ["fd00:10:244::/56".parse().unwrap()];
    let mut builder = vswitch::tables::TablesBuilder::new(1, node, &ranges);
    let addresses = vec![ip("fd00:10:244:1::2")];
    builder.port(POD_A, PortEntry { kind: PortKind::Pod, mac: MAC_A, mtu: 1450, addresses });
    let mut bench = Bench::with_tables(builder.build());
    let bytes = udp(MAC_A, "fd00:10:244:1::2", "fd00:10:244:1::99", b"");
    assert_eq!(bench.reason_for(FROM_A, &bytes), (Some(Reason::NoSuchAddress), vec![]));
}

/// Frames that are nearly right, from which mutation starts.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        udp(MAC_A, "10.244.1.2", "10.244.1.3", &[0; 64]),
        udp(MAC_A, "fd00:10:244:1::2", "fd00:10:244:2::9", &[0; 64]),
        udp(MAC_A, "10.244.1.2", "10.244.2.9", &[0; 4000]),
        udp(MAC_A, "10.244.1.2", "10.244.1.99", &[0; 700]),
        udp_to(PEER_VTEP, VTEP, "10.244.2.9", "10.244.1.4", 53, &[0; 1300]),
        udp(Mac::HOST, "10.244.1.1", "10.244.2.9", &[0; 1440]),
    ];
    for (source, router) in [("10.244.1.2", "169.254.1.1"), ("10.244.1.2", "10.244.1.3")] {
        let mut bytes = Vec::new();
        with_ip(MAC_A, Mac::ROUTER, source, router, 2)
            .icmpv4_echo_request(1, 1)
            .write(&mut bytes, &[0; 32])
            .unwrap();
        seeds.push(bytes);
    }
    let mut tcp = Vec::new();
    with_ip(MAC_A, Mac::ROUTER, "fd00:10:244:1::2", "fd00:10:244:1::3", 64)
        .tcp(1, 2, 3, 4)
        .write(&mut tcp, &[0; 3000])
        .unwrap();
    seeds.push(tcp);
    let mut arp = vec![0xff; 6];
    arp.extend(MAC_A.0);
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(MAC_A.0);
    arp.extend([10, 244, 1, 2, 0, 0, 0, 0, 0, 0, 10, 244, 1, 1]);
    seeds.push(arp);
    let mut solicitation = Vec::new();
    with_ip(MAC_A, Mac::ROUTER, "fd00:10:244:1::2", "ff02::1:ff00:1", 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut solicitation, &[0xfd, 0, 0, 0x10, 2, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1])
        .unwrap();
    seeds.push(solicitation);
    seeds
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let mutated = (
        prop::sample::select(seeds()),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
    )
        .prop_map(|(mut bytes, changes, cut)| {
            for (at, value) in changes {
                // Most of what matters is in the first bytes.
                let at = at.index(bytes.len().min(100));
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        });
    prop_oneof![8 => mutated, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

fn any_ingress() -> impl Strategy<Value = Ingress> {
    prop_oneof![
        4 => Just(FROM_A),
        1 => Just(FROM_HOST),
        2 => Just(FROM_PEER),
        1 => (0u16..10).prop_map(|port| Ingress::Port(PortIx(port))),
        1 => Just(Ingress::Switch),
    ]
}

fn any_offload() -> impl Strategy<Value = (Option<Gso>, Checksum)> {
    let kind = prop::sample::select(vec![GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp]);
    let gso =
        (kind, 1u16.., 1u16..100).prop_map(|(kind, size, segments)| Gso { kind, size, segments });
    let checksum = prop_oneof![
        3 => Just(Checksum::Filled),
        1 => Just(Checksum::Verified),
        1 => (0u16..200, 0u16..40).prop_map(|(start, offset)| Checksum::Partial { start, offset }),
        1 => any::<(u16, u16)>().prop_map(|(start, offset)| Checksum::Partial { start, offset }),
    ];
    (prop::option::weighted(0.2, gso), checksum)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// `Bench::forward` checks the conservation law, `Bench::recycle` that no buffer is lost.
    #[test]
    fn whatever_comes_in_is_accounted_for(
        frames in prop::collection::vec((any_frame(), any_ingress(), any_offload()), 1..8)
    ) {
        let mut bench = Bench::new();
        let batch = frames
            .iter()
            .map(|(bytes, ingress, (gso, checksum))| {
                let mut frame = bench.frame(*ingress, bytes);
                frame.meta.gso = *gso;
                frame.meta.checksum = *checksum;
                frame
            })
            .collect();
        let out = bench.forward(batch);
        bench.recycle(out);
        prop_assert_eq!(bench.totals().queued(), 0);
    }
}
