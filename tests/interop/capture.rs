//! What the underlay sees, captured by tcpdump and judged by tshark: for TCP, UDP and ICMP over IPv4 and
//! IPv6, with offloads of pods and of nodes on and off, over both underlays.
//!
//! The capture is taken where the bridge between the nodes hands frames to a node. There all offloads are
//! off, so that the kernel cuts and sums what is left to do as a network card would, and what is captured
//! is what would be on a wire.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use crate::common::TestLab;
use crate::common::capture::{self, BAD, Capture, GOOD};
use crate::common::frames::{
    BUFFER_LEN, ETHERNET_LEN, Frame, can_capture, frames, switch_offloads,
};
use crate::common::traffic::{End, both_ways};
use etherparse::PacketBuilder;
use weft::lab::probe::Ping;
use weft::lab::{Family, LabConfig, UNDERLAY};

/// Bytes of each TCP stream.
const BULK_LEN: u64 = 3_000_000;

#[test]
fn everything_on_an_ipv4_underlay_is_well_formed() {
    underlay_frames(Family::V4);
}

#[test]
fn everything_on_an_ipv6_underlay_is_well_formed() {
    underlay_frames(Family::V6);
}

/// That all is well means something only if tshark sees what is not.
#[test]
fn a_single_wrong_bit_would_be_seen() {
    if !can_capture() {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 2, pods_per_node: 1, ..LabConfig::new("bit") });
    switch_offloads(&lab, UNDERLAY, "n2", false);
    let path = lab.dir().join("n2.pcap");
    let capture = Capture::start(&lab.namespace(UNDERLAY).unwrap(), "n2", path, BUFFER_LEN);
    let target = lab.state().pod("n2-p1").unwrap().1.addresses[0];
    let ping = Ping { payload_len: 999, ..Ping::new(target) };
    assert!(ping.run(&lab.namespace("n1-p1").unwrap()).unwrap().is_ok());
    let path = capture.finish();
    capture::flip_last_bit(&path, 1000);
    let bad: Vec<_> = frames(&path).into_iter().filter(|frame| frame.is_tunnelled()).collect();
    let bad: Vec<_> =
        bad.iter().map(|frame| frame.checksums().filter(|s| *s == BAD).count()).collect();
    assert_eq!(bad, [2, 0, 0, 0, 0], "outer UDP and inner ICMP of the one frame");
}

#[test]
fn a_tcp_checksum_of_zero_is_good_in_both_forms() {
    if !crate::common::has_programs(&[("tshark", "tshark")]) {
        return;
    }
    let segment = |payload: [u8; 2]| {
        let builder =
            PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        let mut frame = Vec::new();
        builder.tcp(1000, 2000, 1, 4096).write(&mut frame, &payload).unwrap();
        frame
    };
    // Ethernet 14, IPv4 20; the checksum is at 16 (RFC 9293 §3.1).
    let checksum = 50..52;
    // What is added to the payload, the checksum has less.
    let rest = segment([0, 0])[checksum.clone()].try_into().unwrap();
    let [mut zero, mut other_zero, mut wrong] = [(); 3].map(|()| segment(rest));
    zero[checksum.clone()].fill(0);
    other_zero[checksum.clone()].fill(0xff);
    wrong[checksum].fill(0x55);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("zero.pcap");
    capture::write(&path, &[zero, other_zero, wrong]);
    let frames = frames(&path);
    let states: Vec<_> = frames.iter().map(|frame| frame.first("tcp.checksum.status")).collect();
    assert_eq!(states, [Some(GOOD), Some(GOOD), Some(BAD)]);
}

fn underlay_frames(underlay: Family) {
    if !can_capture() {
        return;
    }
    let config = LabConfig { nodes: 2, pods_per_node: 1, underlay, ..LabConfig::new("capture") };
    let lab = TestLab::up(config);
    for port in ["n1", "n2"] {
        switch_offloads(&lab, UNDERLAY, port, false);
    }
    let mut source_ports = BTreeSet::new();
    for pods in [true, false] {
        for nodes in [true, false] {
            switch_offloads(&lab, "n1-p1", "eth0", pods);
            switch_offloads(&lab, "n2-p1", "eth0", pods);
            switch_offloads(&lab, "n1", "eth0", nodes);
            switch_offloads(&lab, "n2", "eth0", nodes);
            let name = |on| if on { "on" } else { "off" };
            let case = format!("offloads of pods {}, of nodes {}", name(pods), name(nodes));
            source_ports.extend(judge(&lab, underlay, &case, &captured(&lab)));
        }
    }
    assert!(
        source_ports.len() > 1,
        "flows have different source ports, so that routers can spread them"
    );
    lab.assert_conserved();
}

/// All frames that go to either node while their pods talk to each other.
fn captured(lab: &TestLab) -> Vec<Frame> {
    let namespace = lab.namespace(UNDERLAY).unwrap();
    let captures = ["n1", "n2"].map(|port| {
        let path = lab.dir().join(format!("{port}.pcap"));
        Capture::start(&namespace, port, path, BUFFER_LEN)
    });
    let ends = ["n1-p1", "n2-p1"].map(|name| End {
        name: name.to_owned(),
        namespace: lab.namespace(name).unwrap(),
        addresses: lab.state().pod(name).unwrap().1.addresses.clone(),
    });
    both_ways(&ends[0], &ends[1], BULK_LEN);
    captures.map(Capture::finish).iter().flat_map(|path| frames(path)).collect()
}

/// Checks every frame, and that all kinds were there. Gives the source ports that were used.
fn judge(lab: &TestLab, underlay: Family, case: &str, frames: &[Frame]) -> BTreeSet<u16> {
    let mtu = lab.state().config.underlay_mtu;
    let frame_len_max = u32::from(mtu) + ETHERNET_LEN;
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    let mut ports_of_flow: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    let mut frame_len_seen = 0;
    for frame in frames {
        frame.assert_well_formed(case, underlay, mtu);
        if !frame.is_tunnelled() {
            *kinds.entry("other").or_default() += 1;
            continue;
        }
        if frame.is_probe() {
            *kinds.entry("probe").or_default() += 1;
            continue;
        }
        frame_len_seen = frame_len_seen.max(frame.len());
        ports_of_flow.entry(frame.flow()).or_default().insert(frame.outer_source_port());
        *kinds.entry(frame.kind()).or_default() += 1;
        *kinds.entry("reassembled").or_default() += u64::from(frame.is_reassembled());
    }
    eprintln!("{case}: {kinds:?}");
    for kind in
        ["tcp4", "tcp6", "udp4", "udp6", "icmp4", "icmp6", "fragment4", "fragment6", "reassembled"]
    {
        assert!(kinds.get(kind).is_some_and(|count| *count >= 4), "{case}: no {kind} in {kinds:?}");
    }
    // Both ways, in packets of at most the MTU.
    let tcp_min = 2 * BULK_LEN / u64::from(frame_len_max);
    assert!(kinds["tcp4"] > tcp_min && kinds["tcp6"] > tcp_min, "{case}: {kinds:?}");
    assert_eq!(frame_len_seen, frame_len_max, "{case}: full packets fill the MTU");
    for (flow, ports) in &ports_of_flow {
        assert_eq!(ports.len(), 1, "{case}: {flow} has several source ports: {ports:?}");
    }
    ports_of_flow.into_values().flatten().collect()
}
