//! The one nftables table that Weft owns: pods' traffic to the world leaves under the node's address, and what is
//! for a Service finds its way to the switch ([`super::ways`]). The tunnel's own datagrams and questions to the name
//! server are not tracked, since nothing is ever decided by their connections.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use ipnetwork::IpNetwork;

use super::ways::Ways;

/// Name of the table, family `inet`.
pub const TABLE: &str = "weft";

/// What kept the table from being set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no `nft`.
    #[error(
        "the program `nft` was not found: pods reach each other and the nodes, but not the world outside, and \
         node ports, host ports and external IPs are served to pods alone. Install the package nftables and restart weftd, or set `masquerade = false` under [host] and do without those ports"
    )]
    Missing,
    /// `nft` did not run.
    #[error("running `nft` failed: {cause}")]
    Run {
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// `nft` refused.
    #[error("`nft` refused table `inet {TABLE}`: {0}")]
    Refused(String),
}

/// What the table is made from.
#[derive(Debug, Clone, Copy)]
pub struct Ruleset<'a> {
    /// The node's own interface.
    pub interface: &'a str,
    /// The tunnel's port.
    pub vxlan_port: u16,
    /// The node's subnets, whose traffic to the world is masqueraded; empty for none.
    pub masqueraded: &'a [IpNetwork],
    /// The cluster ranges.
    pub ranges: &'a [IpNetwork],
    /// Where the name server answers.
    pub dns: &'a [IpAddr],
    /// What is for Services.
    pub ways: &'a Ways,
}

/// Sets the table in one transaction: whatever was in it before is gone.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn apply(ruleset: &Ruleset<'_>) -> Result<(), Error> {
    run(&ruleset.text())
}

/// Changes what a script of [`Ways`] says, in one transaction.
///
/// # Errors
/// When `nft` is missing or refuses. Nothing is changed then.
pub fn change(script: &str) -> Result<(), Error> {
    run(script)
}

/// Looks whether the table has what a script of [`Ways`] asks for.
///
/// # Errors
/// When it lacks any of it, or `nft` is missing or refuses.
pub fn look(script: &str) -> Result<(), Error> {
    run(script)
}

/// Removes the table. It is no error if there is none.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn remove() -> Result<(), Error> {
    run(&format!("table inet {TABLE}\ndelete table inet {TABLE}\n"))
}

impl Ruleset<'_> {
    /// The ruleset as text. Declaring the table first makes the deletion valid when there is none.
    fn text(&self) -> String {
        let Self { interface, vxlan_port, .. } = self;
        let mut text = format!(
            "table inet {TABLE}\n\
             delete table inet {TABLE}\n\
             table inet {TABLE} {{\n"
        );
        if !self.masqueraded.is_empty() {
            let _ = write!(
                text,
                "\tchain postrouting {{\n\
                 \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
                 \t\toifname \"{interface}\" return\n"
            );
            for range in self.ranges {
                let _ = writeln!(text, "\t\t{} daddr {range} return", family(range));
            }
            for lease in self.masqueraded {
                let _ = writeln!(text, "\t\t{} saddr {lease} masquerade", family(lease));
            }
            text.push_str("\t}\n");
        }
        for (chain, hook, dns_end) in
            [("untracked_in", "prerouting", "d"), ("untracked_out", "output", "s")]
        {
            let _ = write!(
                text,
                "\tchain {chain} {{\n\
                 \t\ttype filter hook {hook} priority raw; policy accept;\n\
                 \t\tudp dport {vxlan_port} notrack\n"
            );
            for address in self.dns {
                let family = family(&IpNetwork::from(*address));
                let _ = writeln!(
                    text,
                    "\t\t{family} {dns_end}addr {address} udp {dns_end}port {} notrack",
                    crate::dns::PORT
                );
            }
            text.push_str("\t}\n");
        }
        text.push_str(&self.ways.ruleset(interface));
        text.push_str("}\n");
        text
    }
}

fn family(prefix: &IpNetwork) -> &'static str {
    match prefix {
        IpNetwork::V4(_) => "ip",
        IpNetwork::V6(_) => "ip6",
    }
}

fn run(script: &str) -> Result<(), Error> {
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Error::Missing),
        spawned => spawned.map_err(run_failed)?,
    };
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).map_err(run_failed)?;
    }
    let output = child.wait_with_output().map_err(run_failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Refused(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")))
}

fn run_failed(cause: std::io::Error) -> Error {
    Error::Run { cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_traffic_from_the_lease_to_outside_is_masqueraded_and_tunnel_and_names_are_not_tracked()
    {
        let leases = ["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()];
        let ranges = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
        let dns = ["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()];
        let ways = Ways::default();
        let ruleset = Ruleset {
            interface: "weft0",
            vxlan_port: 4789,
            masqueraded: &leases,
            ranges: &ranges,
            dns: &dns,
            ways: &ways,
        };
        let text = ruleset.text();
        let (text, services) = text.split_at(text.find("\tset nodes4").unwrap());
        assert!(services.ends_with("\t}\n}\n"), "{services}");
        assert_eq!(
            text,
            "table inet weft\n\
             delete table inet weft\n\
             table inet weft {\n\
             \tchain postrouting {\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\toifname \"weft0\" return\n\
             \t\tip daddr 10.244.0.0/16 return\n\
             \t\tip6 daddr fd00:10:244::/56 return\n\
             \t\tip saddr 10.244.1.0/24 masquerade\n\
             \t\tip6 saddr fd00:10:244:1::/64 masquerade\n\
             \t}\n\
             \tchain untracked_in {\n\
             \t\ttype filter hook prerouting priority raw; policy accept;\n\
             \t\tudp dport 4789 notrack\n\
             \t\tip daddr 10.96.0.10 udp dport 53 notrack\n\
             \t\tip6 daddr fd00:10:96::a udp dport 53 notrack\n\
             \t}\n\
             \tchain untracked_out {\n\
             \t\ttype filter hook output priority raw; policy accept;\n\
             \t\tudp dport 4789 notrack\n\
             \t\tip saddr 10.96.0.10 udp sport 53 notrack\n\
             \t\tip6 saddr fd00:10:96::a udp sport 53 notrack\n\
             \t}\n"
        );
        let plain = Ruleset { masqueraded: &[], ..ruleset };
        assert!(!plain.text().contains("masquerade"));
    }
}
