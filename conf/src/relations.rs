//! Contradictions between fields that are right each by itself.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use overlay::config::overlaps;
use overlay::underlay::UnderlaySelector;

use crate::document::Findings;
use crate::node::NodeConfig;

pub(crate) fn check(config: &NodeConfig, findings: &mut Findings) {
    ports(config, findings);
    ranges(config, findings);
    services(config, findings);
    leases(config, findings);
    mtu(config, findings);
    interface(config, findings);
    paths(config, findings);
    dns(config, findings);
    // What a part refuses and nothing above has told: its own word is the last.
    for (section, problems) in
        [("overlay", config.overlay.validate()), ("lease", config.lease.validate())]
    {
        for (field, why) in problems {
            let path = format!("{section}.{field}");
            findings.contradiction(&[&path], format!("{path} cannot be used"), why, "change it");
        }
    }
}

fn dns(config: &NodeConfig, findings: &mut Findings) {
    let addresses = &config.dns.addresses;
    for (ix, address) in addresses.iter().enumerate() {
        let same = addresses[..ix].iter().find(|other| other.is_ipv4() == address.is_ipv4());
        if let Some(other) = same {
            findings.contradiction(
                &[&entry("dns.addresses", ix)],
                format!("dns.addresses[{ix}] = {address} is of the same family as {other}"),
                "the name server has one address per family",
                "keep one of them",
            );
        }
        if let Some(range) = config.lease.ranges.iter().find(|range| range.contains(*address)) {
            findings.contradiction(
                &[&entry("dns.addresses", ix)],
                format!("dns.addresses[{ix}] = {address} is in {range}"),
                "that range is dealt out to pods",
                "choose an address of the service range, such as 10.96.0.10",
            );
        }
    }
}

fn ports(config: &NodeConfig, findings: &mut Findings) {
    if config.overlay.vxlan_port == config.overlay.gossip_port {
        findings.contradiction(
            &["overlay.gossip_port", "overlay.vxlan_port"],
            format!(
                "overlay.gossip_port and overlay.vxlan_port are both {}",
                config.overlay.vxlan_port
            ),
            "one UDP port serves one protocol",
            "change one of them",
        );
    }
}

fn ranges(config: &NodeConfig, findings: &mut Findings) {
    let ranges = &config.lease.ranges;
    let mut v6 = ranges.iter().enumerate().filter(|(_, range)| range.is_ipv6()).skip(1);
    if let Some((ix, range)) = v6.next() {
        findings.contradiction(
            &[&entry("lease.ranges", ix)],
            format!("lease.ranges[{ix}] = {range} is a second IPv6 range"),
            "a node leases from one",
            "keep one of them",
        );
    }
    for (ix, range) in ranges.iter().enumerate() {
        if let Some(earlier) = ranges[..ix].iter().find(|earlier| overlaps(**earlier, *range)) {
            findings.contradiction(
                &[&entry("lease.ranges", ix)],
                format!("lease.ranges[{ix}] = {range} overlaps with {earlier}"),
                "an address would belong to two ranges",
                "keep the larger one, or separate them",
            );
        }
    }
    let holder = |address: IpAddr| ranges.iter().find(|range| range.contains(address));
    if let UnderlaySelector::Address(address) = config.underlay.address
        && let Some(range) = holder(address)
    {
        findings.contradiction(
            &["underlay.address", "lease.ranges"],
            format!("underlay.address = {address} lies in the range {range} of the pods"),
            "the tunnel would have to go through itself",
            "choose a range that the underlay does not use",
        );
    }
    for (ix, seed) in config.seeds.iter().enumerate() {
        if let Some((address, range)) = seed.ip().and_then(|ip| Some((ip, holder(ip)?))) {
            findings.contradiction(
                &[&entry("seeds", ix), "lease.ranges"],
                format!("seeds[{ix}] = {address} lies in the range {range} of the pods"),
                "nodes are reached over the underlay",
                "give the seed's underlay address, or choose another range",
            );
        }
    }
}

/// Addresses of Services are nobody else's.
fn services(config: &NodeConfig, findings: &mut Findings) {
    let ranges = &config.services.ranges;
    if let [first, second] = ranges[..]
        && first.is_ipv4() == second.is_ipv4()
    {
        findings.contradiction(
            &["services.ranges[1]"],
            format!("services.ranges[1] = {second} is a second range of the same family"),
            "a Service has one address of each",
            "keep one of them",
        );
    }
    let pool = config.services.load_balancer_pool.iter();
    let pool =
        pool.enumerate().map(|(ix, range)| (entry("services.load_balancer_pool", ix), range));
    let own: Vec<_> = (ranges.iter().enumerate())
        .map(|(ix, range)| (entry("services.ranges", ix), range))
        .chain(pool)
        .collect();
    for (ix, (path, range)) in own.iter().enumerate() {
        let pods = config.lease.ranges.iter().find(|pods| overlaps(**pods, **range));
        let other = own[..ix].iter().find(|(_, other)| overlaps(**other, **range));
        if let Some(pods) = pods {
            findings.contradiction(
                &[path, "lease.ranges"],
                format!("{path} = {range} overlaps with the range {pods} of the pods"),
                "an address would belong to a Service and to a pod",
                "choose another range",
            );
        } else if let Some((other_path, other)) = other {
            findings.contradiction(
                &[path],
                format!("{path} = {range} overlaps with {other_path} = {other}"),
                "an address would be given away twice",
                "choose another range",
            );
        }
        if let UnderlaySelector::Address(address) = config.underlay.address
            && range.contains(address)
        {
            findings.contradiction(
                &[path, "underlay.address"],
                format!("{path} = {range} holds the underlay address {address}"),
                "a node would be a Service",
                "choose another range",
            );
        }
    }
}

fn leases(config: &NodeConfig, findings: &mut Findings) {
    let lease = &config.lease;
    for (path, len, is_v6, family) in [
        ("lease.prefix_len_v4", lease.prefix_len_v4, false, "IPv4"),
        ("lease.prefix_len_v6", lease.prefix_len_v6, true, "IPv6"),
    ] {
        let mut of_family = lease.ranges.iter().filter(|range| range.is_ipv6() == is_v6).peekable();
        if of_family.peek().is_none() && findings.is_set(path) {
            findings.contradiction(
                &[path, "lease.ranges"],
                format!("{path} is set without an {family} range"),
                "no node would lease such a subnet",
                format!("remove it, or add an {family} range to lease.ranges"),
            );
        } else if let Some(range) = of_family.find(|range| range.prefix() > len) {
            let range_len = range.prefix();
            findings.contradiction(
                &[path, "lease.ranges"],
                format!("{path} = {len} is larger than the range {range}"),
                "a node's subnet is a part of the range",
                format!("write {range_len} or more, or a larger range"),
            );
        }
    }
}

/// RFC 8200 §5: every IPv6 link carries 1280 bytes.
const IPV6_MTU_MIN: u16 = 1280;

/// What VXLAN takes: inner Ethernet 14, VXLAN 8, UDP 8, and 20 for IPv4 or 40 for IPv6 (RFC 7348 §5).
const OVERHEAD_V4: u16 = 50;
const OVERHEAD_V6: u16 = 70;

fn mtu(config: &NodeConfig, findings: &mut Findings) {
    let over_v6 = match &config.underlay.address {
        UnderlaySelector::Address(address) => address.is_ipv6(),
        UnderlaySelector::Cidr(range) => range.is_ipv6(),
        UnderlaySelector::Auto | UnderlaySelector::Interface(_) => false,
    };
    let overhead = if over_v6 { OVERHEAD_V6 } else { OVERHEAD_V4 };
    let Some(mtu) = config.underlay.mtu else { return };
    if over_v6 && mtu < IPV6_MTU_MIN {
        findings.contradiction(
            &["underlay.mtu", "underlay.address"],
            format!("underlay.mtu = {mtu} is too small for an IPv6 underlay"),
            format!("every IPv6 link carries {IPV6_MTU_MIN} bytes"),
            format!("write {IPV6_MTU_MIN} or more"),
        );
    }
    let inner = mtu.saturating_sub(overhead);
    if inner < IPV6_MTU_MIN && config.lease.ranges.iter().any(IpNetwork::is_ipv6) {
        findings.contradiction(
            &["underlay.mtu", "lease.ranges"],
            format!("underlay.mtu = {mtu} leaves pods {inner} bytes"),
            format!("IPv6 needs {IPV6_MTU_MIN}"),
            format!("write {} or more, or remove the IPv6 range", IPV6_MTU_MIN + overhead),
        );
    }
}

fn interface(config: &NodeConfig, findings: &mut Findings) {
    if config.underlay.address == UnderlaySelector::Interface(config.host.interface.clone()) {
        findings.contradiction(
            &["underlay.address", "host.interface"],
            format!("underlay.address and host.interface are both {}", config.host.interface),
            "the tunnel would have to go through itself",
            "name the interface that leads to the other nodes",
        );
    }
}

fn paths(config: &NodeConfig, findings: &mut Findings) {
    if config.paths.state.components().eq(config.paths.run.components()) {
        findings.contradiction(
            &["paths.run", "paths.state"],
            format!("paths.run and paths.state are both {}", config.paths.run.display()),
            "one must survive a reboot and the other must not",
            "change one of them",
        );
    }
}

fn entry(path: &str, ix: usize) -> String {
    format!("{path}[{ix}]")
}

#[cfg(test)]
mod tests {
    /// The line and the text of the only problem.
    #[track_caller]
    fn only(text: &str) -> (Option<usize>, String) {
        let problems = crate::document::parse(text).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        (problems[0].line, problems[0].what.clone())
    }

    #[track_caller]
    fn assert_told(rest: &str, line: usize, what: &str) {
        let text = format!("network = \"prod\"\nseeds = [\n  \"10.0.0.1\" ]\n{rest}");
        assert_eq!(only(&text), (Some(line), what.into()));
    }

    #[test]
    fn one_port_for_two_protocols() {
        let what = "overlay.gossip_port and overlay.vxlan_port are both 4789";
        assert_told("overlay.gossip_port = 4789\n", 4, what);
        let what = "overlay.gossip_port and overlay.vxlan_port are both 7946";
        assert_told("overlay.vxlan_port = 7946\n", 4, what);
    }

    #[test]
    fn ranges_that_meet() {
        let ranges = "[lease]\nranges = [ \"10.244.0.0/16\",\n \"10.244.9.0/24\" ]\n";
        assert_told(ranges, 6, "lease.ranges[1] = 10.244.9.0/24 overlaps with 10.244.0.0/16");
        let ranges = "[lease]\nranges = [ \"fd00::/56\",\n \"fd01::/56\" ]\n";
        assert_told(ranges, 6, "lease.ranges[1] = fd01::/56 is a second IPv6 range");
        let text = "lease.ranges = [\"10.0.0.0/16\"]\n";
        assert_told(text, 3, "seeds[0] = 10.0.0.1 lies in the range 10.0.0.0/16 of the pods");
        let text = "underlay.address = \"10.244.0.9\"\n";
        let what = "underlay.address = 10.244.0.9 lies in the range 10.244.0.0/16 of the pods";
        assert_told(text, 4, what);
    }

    #[test]
    fn ranges_of_services_that_meet_others() {
        for (text, what) in [
            (
                "services.ranges = [\"10.96.0.0/12\", \"10.0.0.0/12\"]\n",
                "services.ranges[1] = 10.0.0.0/12 is a second range of the same family",
            ),
            (
                "services.ranges = [\"10.244.128.0/20\"]\n",
                "services.ranges[0] = 10.244.128.0/20 overlaps with the range 10.244.0.0/16 of the pods",
            ),
            (
                "services.load_balancer_pool = [\"10.96.1.0/24\"]\n",
                "services.load_balancer_pool[0] = 10.96.1.0/24 overlaps with services.ranges[0] = 10.96.0.0/12",
            ),
            (
                "services.load_balancer_pool = [\"192.0.2.0/28\"]\nunderlay.address = \"192.0.2.1\"\n",
                "services.load_balancer_pool[0] = 192.0.2.0/28 holds the underlay address 192.0.2.1",
            ),
        ] {
            assert_told(text, 4, what);
        }
    }

    #[test]
    fn subnets_that_do_not_fit() {
        let text = "lease.prefix_len_v4 = 15\n";
        assert_told(text, 4, "lease.prefix_len_v4 = 15 is larger than the range 10.244.0.0/16");
        let text = "lease.ranges = [\"10.244.0.0/25\"]\n";
        assert_told(text, 4, "lease.prefix_len_v4 = 24 is larger than the range 10.244.0.0/25");
        let text = "lease.prefix_len_v6 = 64\n";
        assert_told(text, 4, "lease.prefix_len_v6 is set without an IPv6 range");
        let text = "lease.ranges = [\"fd00::/56\"]\nlease.prefix_len_v4 = 24\n";
        assert_told(text, 5, "lease.prefix_len_v4 is set without an IPv4 range");
    }

    #[test]
    fn packets_that_do_not_fit() {
        let v6 = "lease.ranges = [\"fd00::/56\"]\n";
        let text = format!("{v6}underlay.mtu = 1329\n");
        assert_told(&text, 5, "underlay.mtu = 1329 leaves pods 1279 bytes");
        let text = format!("{v6}underlay.mtu = 1349\nunderlay.address = \"2001:db8::1\"\n");
        assert_told(&text, 5, "underlay.mtu = 1349 leaves pods 1279 bytes");
        let text = "underlay.mtu = 1279\nunderlay.address = \"2001:db8::/64\"\n";
        assert_told(text, 4, "underlay.mtu = 1279 is too small for an IPv6 underlay");
        let right = format!("network = \"a\"\nseeds = []\n{v6}underlay.mtu = 1330\n");
        assert!(crate::document::parse(&right).is_ok());
    }

    #[test]
    fn one_name_for_two_things() {
        let text = "underlay.address = \"weft0\"\n";
        assert_told(text, 4, "underlay.address and host.interface are both weft0");
        let text = "paths.run = \"/var/lib/weft/\"\n";
        assert_told(text, 4, "paths.run and paths.state are both /var/lib/weft/");
    }
}
