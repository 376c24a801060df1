//! From manifests to the switch's verdicts.

use std::net::IpAddr;

use conf::NodeConfig;
use conf::cluster::ClusterState;
use conf::cluster::parse::parse;
use conf::source::Directory;
use vswitch::policy::{Question, Traffic, judge};
use vswitch::service::Protocol;
use weft::control::policies::{Mode, PolicyTables, Scope};
use weft::policy::{add_addresses, is_own_node};

/// Addresses that are asked about.
const ADDRESSES_MAX: usize = 12;

/// The text of a file of manifests, of which the second half comes after the first. However the rules were arrived at,
/// change by change or at once, they judge alike; and when all objects are gone, nothing is left.
pub fn policies(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    let mut middle = text.len() / 2;
    while !text.is_char_boundary(middle) {
        middle += 1;
    }
    let middle = text[middle..].find("\n---").map_or(text.len(), |at| middle + at + 1);
    let (mut directory, mut state) = (Directory::new(), ClusterState::default());
    let mut tables = PolicyTables::new(Scope::All, Mode::default());
    for (file, text) in [("a", &text[..middle]), ("b", &text[middle..])] {
        let delta = state.apply(directory.set_file(file, parse(text)));
        tables.update(&state, &delta);
    }
    let fresh = PolicyTables::of(&state, Scope::All);
    let mut addresses: Vec<IpAddr> =
        state.pods().flat_map(|view| &view.addresses).copied().take(ADDRESSES_MAX).collect();
    addresses.extend(["192.0.2.1".parse::<IpAddr>(), "2001:db8::1".parse()].into_iter().flatten());
    let traffic = [
        Traffic::Portless,
        Traffic::Port { protocol: Protocol::Tcp, port: 80 },
        Traffic::Port { protocol: Protocol::Udp, port: 53 },
        Traffic::Port { protocol: Protocol::Sctp, port: 65_535 },
    ];
    for from in &addresses {
        for to in addresses.iter().filter(|to| to.is_ipv4() == from.is_ipv4()) {
            for traffic in traffic {
                let is_own_node = is_own_node(&state, *from, *to);
                let question = Question { from: *from, to: *to, traffic, is_own_node };
                let by_changes = judge(tables.table(), &question).passes();
                assert_eq!(by_changes, judge(fresh.table(), &question).passes(), "{question:?}");
                assert!(by_changes || from != to, "{question:?}");
            }
        }
    }
    add_addresses(&mut state.clone(), &NodeConfig::new("", Vec::new()).lease.ranges);
    for file in ["a", "b"] {
        let delta = state.apply(directory.remove_file(file));
        tables.update(&state, &delta);
    }
    let counts = tables.counts();
    assert!(tables.table().is_empty() && counts.policies + counts.selectors == 0, "{counts:?}");
}
