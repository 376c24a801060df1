//! What the underlay sees, captured by tcpdump and judged by tshark: for TCP, UDP and ICMP over IPv4 and
//! IPv6, with offloads of pods and of nodes on and off, over both underlays.
//!
//! The capture is taken where the bridge between the nodes hands frames to a node. There all offloads are
//! off, so that the kernel cuts and sums what is left to do as a network card would, and what is captured
//! is what would be on a wire.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::capture::{self, BAD, Capture, GOOD};
use common::traffic::{End, both_ways};
use common::{TestLab, run};
use etherparse::PacketBuilder;
use weft::lab::probe::Ping;
use weft::lab::{Family, LabConfig, UNDERLAY};

/// Bytes of each TCP stream.
const BULK_LEN: u64 = 3_000_000;

/// Length of an Ethernet header, which tcpdump counts and an MTU does not.
const ETHERNET_LEN: u32 = 14;

/// Room for a captured frame: more than any may have.
const BUFFER_LEN: u32 = 2048;

/// RFC 6335 §6: the dynamic ports, which RFC 7348 §5 recommends for the outer source.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

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
    if !can_run() {
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
    if !common::has_programs(&[("tshark", "tshark")]) {
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
    let states: Vec<_> =
        frames(&path).iter().map(|frame| frame.0["tcp.checksum.status"].clone()).collect();
    assert_eq!(states, [GOOD, GOOD, BAD]);
}

fn can_run() -> bool {
    let programs = [("tcpdump", "tcpdump"), ("tshark", "tshark"), ("ethtool", "ethtool")];
    common::has_programs(&programs) && common::may_make_labs() && capture::is_permitted()
}

fn underlay_frames(underlay: Family) {
    if !can_run() {
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

/// Everything that a network card may be asked to do for the kernel.
fn switch_offloads(lab: &TestLab, name: &str, device: &str, on: bool) {
    let word = if on { "on" } else { "off" };
    let namespace = lab.namespace(name).unwrap();
    run(&namespace, &format!("ethtool -K {device} tx {word} gso {word} tso {word} gro {word}"));
    let shown = run(&namespace, &format!("ethtool -k {device}"));
    for feature in ["tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload"] {
        assert!(shown.contains(&format!("{feature}: {word}")), "{name} {device}: {shown}");
    }
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

fn frames(capture: &Path) -> Vec<Frame> {
    let rows = capture::read(capture, &FIELDS).into_iter();
    rows.map(|values| Frame(FIELDS.into_iter().zip(values).collect())).collect()
}

/// Checks every frame, and that all kinds were there. Gives the source ports that were used.
fn judge(lab: &TestLab, underlay: Family, case: &str, frames: &[Frame]) -> BTreeSet<u16> {
    let frame_len_max = u32::from(lab.state().config.underlay_mtu) + ETHERNET_LEN;
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    let mut ports_of_flow: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    let mut frame_len_seen = 0;
    for frame in frames {
        let what = || format!("{case}: {:?}", frame.0);
        assert!(frame.checksums().all(|status| status == GOOD), "{}", what());
        let frame_len = frame.first("frame.len").unwrap().parse().unwrap();
        assert!(frame_len <= frame_len_max, "longer than the MTU: {}", what());
        if !frame.is_tunnelled() {
            // The nodes' own: gossip, ARP, neighbor discovery. It has been checked like the rest.
            *kinds.entry("other").or_default() += 1;
            continue;
        }
        frame_len_seen = frame_len_seen.max(frame_len);
        assert_eq!(frame.first("vxlan.vni"), Some("1"), "{}", what());
        assert_eq!(frame.first("vxlan.flags"), Some("0x0800"), "only flag I: {}", what());
        assert_eq!(frame.all("vxlan.vni").count(), 1, "{}", what());
        match underlay {
            Family::V4 => assert_eq!(frame.first("ip.flags.df"), Some("1"), "{}", what()),
            Family::V6 => assert!(frame.protocols().starts_with("eth:ethertype:ipv6:udp:")),
        }
        let source_port = frame.first("udp.srcport").unwrap().parse().unwrap();
        assert!(SOURCE_PORTS.contains(&source_port), "{}", what());
        ports_of_flow.entry(frame.flow()).or_default().insert(source_port);
        let kind = frame.kind();
        *kinds.entry(kind).or_default() += 1;
        // The outer UDP checksum; one per IPv4 header; and the inner one, if this is a whole packet.
        let is_whole = !kind.starts_with("fragment") || frame.is_reassembled();
        let checksums = 1
            + usize::from(underlay == Family::V4)
            + usize::from(frame.is_inner_v4())
            + usize::from(is_whole);
        assert_eq!(frame.checksums().count(), checksums, "{}", what());
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

/// What tshark is asked for.
const FIELDS: [&str; 25] = [
    "frame.len",
    "frame.protocols",
    "ip.checksum.status",
    "udp.checksum.status",
    "tcp.checksum.status",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
    "ip.src",
    "ip.dst",
    "ip.id",
    "ip.flags.df",
    "ip.flags.mf",
    "ip.frag_offset",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.fraghdr.ident",
    "udp.srcport",
    "udp.dstport",
    "tcp.srcport",
    "tcp.dstport",
    "icmp.ident",
    "icmpv6.echo.identifier",
    "vxlan.vni",
    "vxlan.flags",
    "vxlan.flag_i",
];

/// A frame as tshark tells of it.
struct Frame(BTreeMap<&'static str, String>);

impl Frame {
    /// The values of a field, the outermost first.
    fn all(&self, field: &str) -> impl Iterator<Item = &str> {
        self.0[field].split(',').filter(|value| !value.is_empty())
    }

    fn first(&self, field: &str) -> Option<&str> {
        self.all(field).next()
    }

    fn last(&self, field: &str) -> Option<&str> {
        self.all(field).last()
    }

    fn protocols(&self) -> &str {
        &self.0["frame.protocols"]
    }

    /// Whether it is a whole packet of the tunnel. Fails on an outer fragment.
    fn is_tunnelled(&self) -> bool {
        let outer = self.protocols().split(":vxlan").next().unwrap();
        assert!(!outer.contains("fraghdr"), "an outer fragment: {:?}", self.0);
        let is_fragment = |field| self.first(field).is_some_and(|value| value != "0");
        if outer.starts_with("eth:ethertype:ip:") {
            let outer_fragment = is_fragment("ip.flags.mf") || is_fragment("ip.frag_offset");
            assert!(!outer_fragment, "an outer fragment: {:?}", self.0);
        }
        self.protocols().contains(":vxlan:")
    }

    /// What tshark thinks of each of its checksums.
    fn checksums(&self) -> impl Iterator<Item = &str> {
        let fields = FIELDS.iter().filter(|field| field.ends_with(".checksum.status"));
        fields.flat_map(|field| self.all(field))
    }

    fn inner_protocols(&self) -> &str {
        self.protocols().split_once(":vxlan:").unwrap().1
    }

    fn is_inner_v4(&self) -> bool {
        self.inner_protocols().starts_with("eth:ethertype:ip:")
    }

    fn is_inner_fragment(&self) -> bool {
        let is_set = |field| self.last(field).is_some_and(|value| value != "0");
        if self.is_inner_v4() {
            is_set("ip.flags.mf") || is_set("ip.frag_offset")
        } else {
            self.inner_protocols().contains("ipv6.fraghdr")
        }
    }

    /// Whether tshark shows, with the last of its fragments, the packet as it was before.
    fn is_reassembled(&self) -> bool {
        let inner = self.inner_protocols();
        self.is_inner_fragment() && (inner.contains(":udp") || inner.contains(":icmp"))
    }

    fn kind(&self) -> &'static str {
        let of_family = |v4, v6| if self.is_inner_v4() { v4 } else { v6 };
        let protocols: BTreeSet<_> = self.inner_protocols().split(':').collect();
        if self.is_inner_fragment() {
            of_family("fragment4", "fragment6")
        } else if protocols.contains("tcp") {
            of_family("tcp4", "tcp6")
        } else if protocols.contains("udp") {
            of_family("udp4", "udp6")
        } else {
            assert!(protocols.contains("icmp") || protocols.contains("icmpv6"), "{:?}", self.0);
            of_family("icmp4", "icmp6")
        }
    }

    /// What the packets of one inner flow have in common; of a fragmented packet, all its fragments.
    fn flow(&self) -> String {
        let (source, target, identifier) = if self.is_inner_v4() {
            ("ip.src", "ip.dst", "ip.id")
        } else {
            ("ipv6.src", "ipv6.dst", "ipv6.fraghdr.ident")
        };
        let mut fields = vec![source, target];
        if self.is_inner_fragment() {
            fields.push(identifier);
        } else {
            let of_flow = match self.kind() {
                "tcp4" | "tcp6" => ["tcp.srcport", "tcp.dstport"],
                "udp4" | "udp6" => ["udp.srcport", "udp.dstport"],
                _ => ["icmp.ident", "icmpv6.echo.identifier"],
            };
            fields.extend(of_flow);
        }
        let values: Vec<_> = fields.iter().map(|field| self.last(field).unwrap_or("")).collect();
        format!("{} {}", self.kind(), values.join(" "))
    }
}
