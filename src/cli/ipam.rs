//! `weft ipam`: who has which address, since when, and which rest.

use std::io::{self, Write};

use anyhow::Result;

use super::args::{IpamArgs, IpamCommand};
use super::table::Table;
use super::view::{duration, join, print, target};
use crate::admin::ipam::{IpamReport, ReleaseRequest};

pub(super) fn run(arguments: &IpamArgs, out: &mut impl Write) -> Result<()> {
    let admin = target(&arguments.target)?;
    match &arguments.command {
        None => {
            let report = admin.ipam()?;
            print(&report, arguments.output.output, out, |out| show(&report, out))
        }
        Some(IpamCommand::Release { address, force }) => {
            let request = ReleaseRequest { address: *address, force: *force };
            let released = admin.release_address(&request)?;
            print(&released, arguments.output.output, out, |out| match &released.holder {
                Some(holder) => writeln!(out, "{address} is taken back from {holder}"),
                None => writeln!(out, "{address} rests no more"),
            })
        }
    }
}

fn show(report: &IpamReport, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new(["PREFIX", "USED", "FREE", "OF THESE RESTING"]).right(1..4);
    for pool in &report.pools {
        let free = match pool.free {
            // An IPv6 lease: nobody reads twenty digits, and nobody runs out.
            free if free > 1 << 32 => "plenty".to_owned(),
            free if pool.low => format!("{free} (few)"),
            free => free.to_string(),
        };
        let (used, resting) = (pool.used.to_string(), pool.resting.to_string());
        table.row([pool.prefix.to_string(), used, free, resting]);
    }
    write!(out, "{table}")?;
    if !report.excluded.is_empty() {
        writeln!(out, "excluded: {}", join(&report.excluded))?;
    }
    if report.shortened > 0 {
        let rest = duration(report.reuse_delay_s);
        let times = report.shortened;
        writeln!(out, "{times} addresses were given out before they had rested for {rest}")?;
    }
    if report.held.is_empty() && report.resting.is_empty() && report.kept.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = Table::new(["ADDRESS", "STATE", "WHO", "INTERFACE", "NETWORK", "SINCE"]);
    let who = |namespace: &Option<String>, name: &Option<String>, id: &str| match (namespace, name)
    {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => id.to_owned(),
    };
    for held in &report.held {
        let state = match (held.alive, held.outside_lease) {
            (false, _) => "held, container gone",
            (true, true) => "held, of a former subnet",
            (true, false) => "held",
        };
        table.row([
            held.address.to_string(),
            state.to_owned(),
            who(&held.namespace, &held.name, &held.container_id),
            held.ifname.clone(),
            held.network.clone(),
            duration(held.since_s),
        ]);
    }
    for resting in &report.resting {
        table.row([
            resting.address.to_string(),
            format!("rests, {} more", duration(resting.free_in_s)),
            who(&resting.namespace, &resting.name, &resting.container_id),
            resting.ifname.clone(),
            String::new(),
            duration(resting.since_s),
        ]);
    }
    let rests = |address| report.resting.iter().any(|resting| resting.address == address);
    for kept in report.kept.iter().filter(|kept| !rests(kept.address)) {
        table.row([
            kept.address.to_string(),
            "kept".to_owned(),
            format!("{}/{}", kept.namespace, kept.name),
            kept.ifname.clone(),
            String::new(),
            duration(kept.since_s),
        ]);
    }
    write!(out, "{table}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::ipam::{HeldAddress, IpamPool, KeptAddress, RestingAddress};

    #[test]
    fn every_address_is_shown_with_who_and_since_when() {
        let held = HeldAddress {
            address: "10.244.1.2".parse().unwrap(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
            network: "weft".into(),
            namespace: Some("default".into()),
            name: Some("web-0".into()),
            since_s: 90,
            outside_lease: false,
            alive: true,
        };
        let gone = HeldAddress {
            address: "10.244.1.3".parse().unwrap(),
            container_id: "c2".into(),
            namespace: None,
            name: None,
            alive: false,
            ..held.clone()
        };
        let report = IpamReport {
            pools: vec![
                IpamPool {
                    prefix: "10.244.1.0/29".parse().unwrap(),
                    used: 3,
                    resting: 1,
                    free: 2,
                    low: true,
                },
                IpamPool {
                    prefix: "fd00::/64".parse().unwrap(),
                    used: 0,
                    resting: 0,
                    free: u64::MAX,
                    low: false,
                },
            ],
            held: vec![held, gone],
            resting: vec![RestingAddress {
                address: "10.244.1.4".parse().unwrap(),
                container_id: "c3".into(),
                ifname: "eth0".into(),
                namespace: None,
                name: None,
                since_s: 20,
                free_in_s: 40,
            }],
            kept: vec![KeptAddress {
                address: "10.244.1.5".parse().unwrap(),
                namespace: "db".into(),
                name: "pg-0".into(),
                ifname: "eth0".into(),
                since_s: 7,
            }],
            excluded: vec!["10.244.1.6/32".parse().unwrap()],
            reuse_delay_s: 60,
            shortened: 2,
        };
        let mut out = Vec::new();
        show(&report, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for line in [
            "excluded: 10.244.1.6/32",
            "2 addresses were given out before they had rested for 1 min 0 s",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let cells: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect())
            .collect();
        for row in [
            &["10.244.1.0/29", "3", "2 (few)", "1"][..],
            &["fd00::/64", "0", "plenty", "0"],
            &["10.244.1.2", "held", "default/web-0", "eth0", "weft", "1 min 30 s"],
            &["10.244.1.3", "held, container gone", "c2", "eth0", "weft", "1 min 30 s"],
            &["10.244.1.4", "rests, 40 s more", "c3", "eth0", "-", "20 s"],
            &["10.244.1.5", "kept", "db/pg-0", "eth0", "-", "7 s"],
        ] {
            assert!(cells.iter().any(|cells| cells == row), "{row:?}\n{text}");
        }
    }
}
