//! How packets for Services get to the switch, as nftables sets and maps. Pure.
//!
//! A node port is a port of an address that is the host's own, whose other ports have to stay the host's; and an
//! external IP's other ports are somebody else's. So the host routes such packets by port: before it routes, it gives
//! them a destination that leads to `weft0`, the *way* of the address that they are for; behind that, it gives them
//! back the destination that they had. The switch sees them as their sender wrote them.
//!
//! ```text
//!            mangle prerouting          route          mangle postrouting
//!   192.168.77.1:30080 ──► 240.119.0.1:30080 ──► weft0 ──► 192.168.77.1:30080
//! ```
//!
//! Nothing about a packet depends on one before it: ports that come or go are right for the next packet. Connection
//! tracking, where somebody uses it, sees the packets with their true addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use vswitch::service::{Family, Protocol};

use super::nft::TABLE;
use crate::control::exposure::Exposed;

/// Where ways are, IPv4: a part of the range that nobody uses on a network (RFC 1112 §4, "Class E"). No packet leaves
/// the host with such an address.
const WAYS_V4: Ipv4Addr = Ipv4Addr::new(240, 119, 0, 0);

/// Where ways are, IPv6: a part of the range for what is to be thrown away (RFC 6666).
const WAYS_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0x7765, 0x6674, 0, 0);

/// Most addresses whose ports are Services': of this node and external IPs.
const WAYS_MAX: u16 = 60_000;

/// Where ways are, to be routed to the switch.
pub fn ranges() -> [IpNetwork; 2] {
    [
        IpNetwork::V4(Ipv4Network::new(WAYS_V4, 16).expect("16 is a prefix length")),
        IpNetwork::V6(Ipv6Network::new(WAYS_V6, 112).expect("112 is a prefix length")),
    ]
}

/// What the sets and maps hold.
#[derive(Debug, Default)]
pub struct Ways {
    nodes: BTreeSet<IpAddr>,
    items: BTreeSet<Exposed>,
    /// The number of each address's way, and how many items need it; a node's address counts as one.
    ways: BTreeMap<IpAddr, (u16, usize)>,
    free: BTreeSet<u16>,
    /// The lowest number that was never given.
    next: u16,
}

/// An element of a set or map: the name, and what stands between the braces.
type Element = (&'static str, String);

impl Ways {
    /// Takes up the addresses of the node that have node ports. Returns a script that changes the table alike;
    /// an empty one when nothing changes.
    pub fn set_nodes(&mut self, nodes: &[IpAddr]) -> String {
        let new: BTreeSet<IpAddr> = nodes.iter().copied().collect();
        let old = std::mem::replace(&mut self.nodes, new.clone());
        let mut script = Script::default();
        for gone in old.difference(&new) {
            script.delete.push((name("nodes", *gone), gone.to_string()));
            self.leave(*gone, &mut script);
        }
        for fresh in new.difference(&old) {
            self.take(*fresh, &mut script);
            script.add.push((name("nodes", *fresh), fresh.to_string()));
        }
        script.text()
    }

    /// Takes up whether each of these is exposed. Returns a script that changes the table alike; an empty one
    /// when nothing changes.
    pub fn update(&mut self, changes: impl IntoIterator<Item = (Exposed, bool)>) -> String {
        let mut script = Script::default();
        for (item, is_exposed) in changes {
            if is_exposed == self.items.contains(&item) {
                continue;
            }
            if is_exposed {
                if let Exposed::Port(address, ..) = item
                    && !self.take(address, &mut script)
                {
                    continue;
                }
                self.items.insert(item);
                script.add.extend(element(item));
            } else {
                self.items.remove(&item);
                script.delete.extend(element(item));
                if let Exposed::Port(address, ..) = item {
                    self.leave(address, &mut script);
                }
            }
        }
        script.text()
    }

    /// A script that fails when the table lacks one of these; an empty one when none of them needs the table.
    pub fn query(&self, items: &[Exposed]) -> String {
        let mut script = Script::default();
        script.get.extend(items.iter().filter_map(|item| element(*item)));
        script.text()
    }

    /// Whether nothing needs the table.
    pub fn is_empty(&self) -> bool {
        self.items.iter().all(|item| matches!(item, Exposed::Address(_)))
    }

    fn take(&mut self, address: IpAddr, script: &mut Script) -> bool {
        if let Some((_, count)) = self.ways.get_mut(&address) {
            *count += 1;
            return true;
        }
        let number = match self.free.pop_first() {
            Some(number) => number,
            None if self.next < WAYS_MAX => {
                self.next += 1;
                self.next
            }
            None => {
                tracing::error!(%address, "more than {WAYS_MAX} addresses have ports of Services: not served");
                return false;
            }
        };
        self.ways.insert(address, (number, 1));
        script.add.extend(way_elements(address, number));
        true
    }

    fn leave(&mut self, address: IpAddr, script: &mut Script) {
        let Some((number, count)) = self.ways.get_mut(&address) else { return };
        *count -= 1;
        if *count == 0 {
            script.delete.extend(way_elements(address, *number));
            self.free.insert(*number);
            self.ways.remove(&address);
        }
    }

    /// The part of the table that is for Services: all sets, maps and chains, for packets that go out by `interface`.
    pub(super) fn ruleset(&self, interface: &str) -> String {
        let mut elements: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let nodes = self.nodes.iter().map(|node| (name("nodes", *node), node.to_string()));
        let ways = self.ways.iter().flat_map(|(address, (ix, _))| way_elements(*address, *ix));
        let items = self.items.iter().filter_map(|item| element(*item));
        for (set, text) in nodes.chain(ways).chain(items) {
            elements.entry(set).or_default().push(text);
        }
        let mut text = String::new();
        for (family, kind) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
            for (what, set, kind) in [
                ("set", "nodes", kind.to_owned()),
                ("set", "node_ports", "inet_proto . inet_service".to_owned()),
                ("set", "ports", format!("{kind} . inet_proto . inet_service")),
                ("map", "ways", format!("{kind} : {kind}")),
                ("map", "back", format!("{kind} : {kind}")),
            ] {
                let set = format!("{set}{family}");
                let _ = writeln!(text, "\t{what} {set} {{\n\t\ttype {kind};");
                if let Some(list) = elements.get(set.as_str()) {
                    let _ = writeln!(text, "\t\telements = {{ {} }};", list.join(", "));
                }
                text.push_str("\t}\n");
            }
        }
        text + &chains(interface)
    }
}

fn chains(interface: &str) -> String {
    let mut divert = String::new();
    let mut ways = String::new();
    let mut back = String::new();
    for (digit, ip, errors) in [
        ("4", "ip", "icmp type { destination-unreachable, time-exceeded, parameter-problem }"),
        (
            "6",
            "ip6",
            "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
        ),
    ] {
        // Errors about what went back to a client are addressed to the node, too.
        let _ = write!(
            divert,
            "\t\t{ip} daddr . meta l4proto . th dport @ports{digit} goto way{digit}\n\
             \t\t{ip} daddr @nodes{digit} meta l4proto . th dport @node_ports{digit} goto way{digit}\n\
             \t\t{errors} ct state related ct original {ip} daddr . ct original protocol . ct original proto-dst \
             @ports{digit} goto way{digit}\n\
             \t\t{errors} ct state related ct original {ip} daddr @nodes{digit} \
             ct original protocol . ct original proto-dst @node_ports{digit} goto way{digit}\n"
        );
        let _ = write!(
            ways,
            "\tchain way{digit} {{\n\t\t{ip} daddr set {ip} daddr map @ways{digit}\n\t}}\n"
        );
        let _ = writeln!(
            back,
            "\t\toifname \"{interface}\" {ip} daddr set {ip} daddr map @back{digit}"
        );
    }
    let [v4, v6] = ranges();
    format!(
        "{ways}\
         \tchain divert {{\n{divert}\t}}\n\
         \tchain services_in {{\n\
         \t\ttype filter hook prerouting priority mangle; policy accept;\n\
         \t\tip daddr {v4} drop\n\
         \t\tip6 daddr {v6} drop\n\
         \t\tiifname != \"{interface}\" jump divert\n\
         \t}}\n\
         \tchain services_out {{\n\
         \t\ttype route hook output priority mangle; policy accept;\n\
         \t\tjump divert\n\
         \t}}\n\
         \tchain services_back {{\n\
         \t\ttype filter hook postrouting priority mangle; policy accept;\n{back}\
         \t}}\n"
    )
}

#[derive(Debug, Default)]
struct Script {
    delete: Vec<Element>,
    add: Vec<Element>,
    get: Vec<Element>,
}

impl Script {
    /// One statement for each set and verb. What goes comes first: a way that is free may be another's now.
    fn text(&self) -> String {
        let mut text = String::new();
        for (verb, list) in [("delete", &self.delete), ("add", &self.add), ("get", &self.get)] {
            let mut by_set: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (set, element) in list {
                by_set.entry(set).or_default().push(element);
            }
            for (set, elements) in by_set {
                let elements = elements.join(", ");
                let _ = writeln!(text, "{verb} element inet {TABLE} {set} {{ {elements} }}");
            }
        }
        text
    }
}

fn element(item: Exposed) -> Option<Element> {
    match item {
        Exposed::NodePort(Family::V4, protocol, port) => {
            Some(("node_ports4", format!("{} . {port}", word(protocol))))
        }
        Exposed::NodePort(Family::V6, protocol, port) => {
            Some(("node_ports6", format!("{} . {port}", word(protocol))))
        }
        Exposed::Port(address, protocol, port) => {
            Some((name("ports", address), format!("{address} . {} . {port}", word(protocol))))
        }
        // It has a route.
        Exposed::Address(_) => None,
    }
}

fn way_elements(address: IpAddr, number: u16) -> [Element; 2] {
    let way: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::from_bits(WAYS_V4.to_bits() | u32::from(number)).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(WAYS_V6.to_bits() | u128::from(number)).into(),
    };
    [
        (name("ways", address), format!("{address} : {way}")),
        (name("back", address), format!("{way} : {address}")),
    ]
}

fn name(set: &str, address: IpAddr) -> &'static str {
    match (set, address.is_ipv4()) {
        ("nodes", true) => "nodes4",
        ("nodes", false) => "nodes6",
        ("ports", true) => "ports4",
        ("ports", false) => "ports6",
        ("ways", true) => "ways4",
        ("ways", false) => "ways6",
        (_, true) => "back4",
        (_, false) => "back6",
    }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_what_changes_is_changed() {
        let mut ways = Ways::default();
        assert_eq!(
            ways.set_nodes(&[ip("192.168.77.1"), ip("fd00:77::1")]),
            "add element inet weft back4 { 240.119.0.1 : 192.168.77.1 }\n\
             add element inet weft back6 { 100::7765:6674:0:2 : fd00:77::1 }\n\
             add element inet weft nodes4 { 192.168.77.1 }\n\
             add element inet weft nodes6 { fd00:77::1 }\n\
             add element inet weft ways4 { 192.168.77.1 : 240.119.0.1 }\n\
             add element inet weft ways6 { fd00:77::1 : 100::7765:6674:0:2 }\n"
        );
        let node_port = |port| Exposed::NodePort(Family::V4, Protocol::Tcp, port);
        let external = |port| Exposed::Port(ip("192.0.2.1"), Protocol::Udp, port);
        assert!(ways.is_empty());
        assert_eq!(
            ways.update([(node_port(30080), true), (node_port(30081), true), (external(53), true)]),
            "add element inet weft back4 { 240.119.0.3 : 192.0.2.1 }\n\
             add element inet weft node_ports4 { tcp . 30080, tcp . 30081 }\n\
             add element inet weft ports4 { 192.0.2.1 . udp . 53 }\n\
             add element inet weft ways4 { 192.0.2.1 : 240.119.0.3 }\n"
        );
        assert_eq!(ways.update([(node_port(30080), true), (external(54), false)]), "");
        assert_eq!(
            ways.update([(external(54), true)]),
            "add element inet weft ports4 { 192.0.2.1 . udp . 54 }\n",
            "its way is there"
        );
        assert_eq!(
            ways.update([(external(53), false), (external(54), false), (node_port(30081), false)]),
            "delete element inet weft back4 { 240.119.0.3 : 192.0.2.1 }\n\
             delete element inet weft node_ports4 { tcp . 30081 }\n\
             delete element inet weft ports4 { 192.0.2.1 . udp . 53, 192.0.2.1 . udp . 54 }\n\
             delete element inet weft ways4 { 192.0.2.1 : 240.119.0.3 }\n"
        );
        // The number is given again.
        let script = ways.update([(Exposed::Port(ip("192.0.2.2"), Protocol::Tcp, 80), true)]);
        assert!(script.contains("240.119.0.3 : 192.0.2.2"), "{script}");
    }

    #[test]
    fn an_external_ip_may_be_the_node_s_own() {
        let mut ways = Ways::default();
        ways.set_nodes(&[ip("192.168.77.1")]);
        let own = Exposed::Port(ip("192.168.77.1"), Protocol::Tcp, 80);
        assert_eq!(
            ways.update([(own, true)]),
            "add element inet weft ports4 { 192.168.77.1 . tcp . 80 }\n"
        );
        assert_eq!(ways.set_nodes(&[]), "delete element inet weft nodes4 { 192.168.77.1 }\n");
        let script = ways.update([(own, false)]);
        assert!(script.contains("ways4 { 192.168.77.1 : 240.119.0.1 }"), "{script}");
    }
}
