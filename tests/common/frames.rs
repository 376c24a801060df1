//! Frames as tshark tells of them, and how to capture such as would be on a wire.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use weft::lab::{Family, Lab};

use super::capture::{self, GOOD};
use super::run;

/// Length of an Ethernet header, which tcpdump counts and an MTU does not.
pub(crate) const ETHERNET_LEN: u32 = 14;

/// Room for a captured frame: more than any may have.
pub(crate) const BUFFER_LEN: u32 = 2048;

/// RFC 6335 §6: the dynamic ports, which RFC 7348 §5 recommends for the outer source.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// Whether frames can be captured and judged here.
#[track_caller]
pub(crate) fn can_capture() -> bool {
    let programs = [("tcpdump", "tcpdump"), ("tshark", "tshark"), ("ethtool", "ethtool")];
    super::has_programs(&programs) && super::may_make_labs() && capture::is_permitted()
}

/// Everything that a network card may be asked to do for the kernel.
#[track_caller]
pub(crate) fn switch_offloads(lab: &Lab, name: &str, device: &str, on: bool) {
    let word = if on { "on" } else { "off" };
    let namespace = lab.namespace(name).unwrap();
    run(&namespace, &format!("ethtool -K {device} tx {word} gso {word} tso {word} gro {word}"));
    let shown = run(&namespace, &format!("ethtool -k {device}"));
    for feature in ["tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload"] {
        assert!(shown.contains(&format!("{feature}: {word}")), "{name} {device}: {shown}");
    }
}

/// The frames in a file.
#[track_caller]
pub(crate) fn frames(capture: &Path) -> Vec<Frame> {
    let rows = capture::read(capture, &FIELDS).into_iter();
    rows.map(|values| Frame(FIELDS.into_iter().zip(values).collect())).collect()
}

/// What tshark is asked for.
const FIELDS: [&str; 27] = [
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
    "udp.length",
    "udp.srcport",
    "udp.dstport",
    "tcp.len",
    "tcp.srcport",
    "tcp.dstport",
    "icmp.ident",
    "icmpv6.echo.identifier",
    "vxlan.vni",
    "vxlan.flags",
    "vxlan.flag_i",
];

/// A frame as tshark tells of it.
pub(crate) struct Frame(BTreeMap<&'static str, String>);

impl Frame {
    /// The values of a field, the outermost first.
    pub(crate) fn all(&self, field: &str) -> impl Iterator<Item = &str> {
        self.0[field].split(',').filter(|value| !value.is_empty())
    }

    pub(crate) fn first(&self, field: &str) -> Option<&str> {
        self.all(field).next()
    }

    pub(crate) fn last(&self, field: &str) -> Option<&str> {
        self.all(field).last()
    }

    /// The last value of a field, as a number.
    pub(crate) fn number(&self, field: &str) -> Option<u32> {
        self.last(field).map(|value| value.parse().unwrap())
    }

    /// Its length with the Ethernet header.
    pub(crate) fn len(&self) -> u32 {
        self.number("frame.len").unwrap()
    }

    /// The source port of the tunnel's own packet.
    pub(crate) fn outer_source_port(&self) -> u16 {
        self.first("udp.srcport").unwrap().parse().unwrap()
    }

    /// Checks length and checksums, and of a packet of the tunnel what is around it.
    #[track_caller]
    pub(crate) fn assert_well_formed(&self, case: &str, underlay: Family, mtu: u16) {
        let what = || format!("{case}: {:?}", self.0);
        assert!(self.checksums().all(|status| status == GOOD), "{}", what());
        assert!(self.len() <= u32::from(mtu) + ETHERNET_LEN, "longer than the MTU: {}", what());
        if !self.is_tunnelled() {
            // The nodes' own: gossip, ARP, neighbor discovery.
            return;
        }
        assert_eq!(self.first("vxlan.vni"), Some("1"), "{}", what());
        assert_eq!(self.first("vxlan.flags"), Some("0x0800"), "only flag I: {}", what());
        assert_eq!(self.all("vxlan.vni").count(), 1, "{}", what());
        match underlay {
            Family::V4 => assert_eq!(self.first("ip.flags.df"), Some("1"), "{}", what()),
            Family::V6 => assert!(self.protocols().starts_with("eth:ethertype:ipv6:udp:")),
        }
        assert!(SOURCE_PORTS.contains(&self.outer_source_port()), "{}", what());
        // The outer UDP checksum; one per IPv4 header; and the inner one, if this is a whole packet. A probe of the path
        // is none.
        let is_whole = !self.is_probe() && (!self.is_inner_fragment() || self.is_reassembled());
        let checksums = 1
            + usize::from(underlay == Family::V4)
            + usize::from(self.is_inner_v4())
            + usize::from(is_whole);
        assert_eq!(self.checksums().count(), checksums, "{}", what());
    }

    fn protocols(&self) -> &str {
        &self.0["frame.protocols"]
    }

    /// Whether it is a whole packet of the tunnel. Fails on an outer fragment.
    pub(crate) fn is_tunnelled(&self) -> bool {
        let outer = self.protocols().split(":vxlan").next().unwrap();
        assert!(!outer.contains("fraghdr"), "an outer fragment: {:?}", self.0);
        let is_fragment = |field| self.first(field).is_some_and(|value| value != "0");
        if outer.starts_with("eth:ethertype:ip:") {
            let outer_fragment = is_fragment("ip.flags.mf") || is_fragment("ip.frag_offset");
            assert!(!outer_fragment, "an outer fragment: {:?}", self.0);
        }
        self.protocols().contains(":vxlan:")
    }

    /// Whether it is a probe of the path, or the reply to one.
    pub(crate) fn is_probe(&self) -> bool {
        self.is_tunnelled() && self.inner_protocols() == "eth:ethertype:data"
    }

    /// What tshark thinks of each of its checksums.
    pub(crate) fn checksums(&self) -> impl Iterator<Item = &str> {
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
    pub(crate) fn is_reassembled(&self) -> bool {
        let inner = self.inner_protocols();
        self.is_inner_fragment() && (inner.contains(":udp") || inner.contains(":icmp"))
    }

    pub(crate) fn kind(&self) -> &'static str {
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
    pub(crate) fn flow(&self) -> String {
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
