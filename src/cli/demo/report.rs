//! The demo's result, as JSON and as tables.

use std::io::{self, Write};

use serde::Serialize;

use super::measure::{Account, Pair, Seen, Speed};
use super::policy::Denied;
use super::service::ServiceShown;
use crate::admin::api::NodeStatus;
use crate::cli::table::Table;
use crate::cli::view::nodes_table;

/// Widest matrix that is printed whole, in rows and columns.
const MATRIX_MAX: usize = 12;

/// Everything that was seen and measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Whether all is as it should be.
    pub(super) passed: bool,
    /// What is not.
    pub(super) failures: Vec<String>,
    /// How long it all took.
    pub(super) elapsed_ms: u64,
    /// Version of this program.
    pub(super) version: &'static str,
    /// The nodes, as the first of them sees them.
    pub(super) nodes: Vec<NodeStatus>,
    /// Pods, then nodes.
    #[serde(skip)]
    pub(super) names: Vec<String>,
    /// Every ordered pair, IPv4.
    pub(super) pings_v4: Vec<Pair>,
    /// Every ordered pair, IPv6.
    pub(super) pings_v6: Vec<Pair>,
    /// As whom senders are seen.
    pub(super) seen: Vec<Seen>,
    /// As whom a pod is seen from outside the cluster.
    pub(super) seen_by_world: Vec<Seen>,
    /// What a Service did.
    pub(super) service: Option<ServiceShown>,
    /// TCP throughput.
    pub(super) speeds: Vec<Speed>,
    /// What a policy denied.
    pub(super) denied: Option<Denied>,
    /// The node that was made to fail.
    pub(super) failure: Option<NodeFailure>,
    /// Every node's packets.
    pub(super) accounts: Vec<Account>,
}

/// What happened when a node failed and came back.
#[derive(Debug, Clone, Serialize)]
pub(super) struct NodeFailure {
    /// The node.
    pub(super) node: String,
    /// From its failure until no other node had it in its map.
    pub(super) gone_after_ms: u64,
    /// From the start of its daemon until its own pods reached each other; absent with one pod a node.
    pub(super) local_after_ms: Option<u64>,
    /// From the start of its daemon until all nodes had it in their maps again.
    pub(super) back_after_ms: u64,
    /// Whether it has the lease that it had.
    pub(super) same_lease: bool,
}

impl Report {
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        if !self.nodes.is_empty() {
            writeln!(out, "\nNODES\n{}", nodes_table(&self.nodes))?;
        }
        for (title, pairs) in [("IPv4", &self.pings_v4), ("IPv6", &self.pings_v6)] {
            if !pairs.is_empty() {
                self.print_pings(title, pairs, out)?;
            }
        }
        if !self.seen.is_empty() {
            let rewritten = self.seen.iter().filter(|seen| seen.rewritten).count();
            writeln!(
                out,
                "SEEN AS\n{} TCP connections, every pair: {rewritten} had another address at the far end \
                 than at the near one.",
                self.seen.len()
            )?;
            for seen in &self.seen_by_world {
                writeln!(
                    out,
                    "Outside the cluster, {} ({}) is seen as {}.",
                    seen.source, seen.own, seen.seen
                )?;
            }
            writeln!(out)?;
        }
        if !self.speeds.is_empty() {
            let heading = ["TCP THROUGHPUT", "FROM", "TO", "ADDRESS", "GBIT/S"];
            let mut table = Table::new(heading).right([4]);
            for speed in &self.speeds {
                table.row([
                    speed.path.to_owned(),
                    speed.source.clone(),
                    speed.target.clone(),
                    speed.address.to_string(),
                    format!("{:.2}", speed.bits_per_s / 1e9),
                ]);
            }
            writeln!(out, "{table}")?;
        }
        if let Some(service) = &self.service {
            print_service(service, out)?;
        }
        if let Some(denied) = &self.denied {
            writeln!(
                out,
                "POLICY\n{} asked {}, which a policy isolates. The node says:\n  {}\n",
                denied.source, denied.target, denied.told
            )?;
        }
        if let Some(failure) = &self.failure {
            print_failure(failure, out)?;
        }
        if !self.accounts.is_empty() {
            print_accounts(&self.accounts, out)?;
        }
        for failure in &self.failures {
            writeln!(out, "FAILED: {failure}")?;
        }
        let verdict = if self.passed { "All is well" } else { "Something is wrong" };
        writeln!(out, "{verdict} after {:.1} s.", seconds(self.elapsed_ms))
    }

    fn print_pings(&self, title: &str, pairs: &[Pair], out: &mut impl Write) -> io::Result<()> {
        let lost = pairs.iter().map(|pair| u64::from(pair.ping.lost())).sum::<u64>();
        let sent = pairs.iter().map(|pair| u64::from(pair.ping.sent)).sum::<u64>();
        writeln!(
            out,
            "PING {title}: mean round trip in ms, from row to column; {lost} of {sent} lost, {} pairs",
            pairs.len()
        )?;
        if self.names.len() > MATRIX_MAX {
            let times = || pairs.iter().filter(|pair| pair.ping.received > 0);
            let min = times().map(|pair| pair.ping.rtt_us_min).min().unwrap_or(0);
            let max = times().map(|pair| pair.ping.rtt_us_max).max().unwrap_or(0);
            writeln!(out, "from {} to {} ms; all pairs with `-o json`", ms(min), ms(max))?;
            for pair in pairs.iter().filter(|pair| !pair.ping.is_ok()) {
                let why = pair.ping.error.as_deref().unwrap_or_default();
                writeln!(out, "{} to {}: {} {why}", pair.source, pair.target, cell(pair))?;
            }
            return writeln!(out);
        }
        let mut heading = vec![String::new()];
        heading.extend(self.names.iter().cloned());
        heading[0] = "FROM".to_owned();
        let mut table = Table::wide(heading).right(1..=self.names.len());
        for source in &self.names {
            let mut row = vec![source.clone()];
            for target in &self.names {
                let pair =
                    pairs.iter().find(|pair| pair.source == *source && pair.target == *target);
                row.push(pair.map(cell).unwrap_or_default());
            }
            table.row(row);
        }
        writeln!(out, "{table}")
    }
}

fn print_service(service: &ServiceShown, out: &mut impl Write) -> io::Result<()> {
    let ServiceShown { name, address, port, client, served, rewritten } = service;
    writeln!(out, "SERVICE\n{client} asked for {name}: {address}")?;
    let count: usize = served.values().sum();
    let served: Vec<String> =
        served.iter().map(|(pod, count)| format!("{count} by {pod}")).collect();
    writeln!(
        out,
        "{count} connections to {address}:{port} were served: {}; {rewritten} had another address at the far end.\n",
        served.join(", ")
    )
}

fn print_failure(failure: &NodeFailure, out: &mut impl Write) -> io::Result<()> {
    let node = &failure.node;
    writeln!(out, "NODE FAILURE\n{node}: daemon killed, cable cut")?;
    let mut table = Table::new(["", "AFTER"]).right([1]);
    let mut row =
        |text: &str, ms: u64| table.row([text.to_owned(), format!("{:.2} s", seconds(ms))]);
    row("gone from every other node's map", failure.gone_after_ms);
    if let Some(ms) = failure.local_after_ms {
        row("started again: its pods reach each other", ms);
    }
    row("started again: back in every map", failure.back_after_ms);
    write!(out, "{table}")?;
    let lease = if failure.same_lease { "the same lease as before" } else { "ANOTHER lease" };
    writeln!(out, "came back with {lease}\n")
}

fn print_accounts(accounts: &[Account], out: &mut impl Write) -> io::Result<()> {
    let heading = [
        "PACKETS",
        "RECEIVED",
        "+ORIGINATED",
        "=DELIVERED",
        "+ANSWERED",
        "+DROPPED",
        "+QUEUED",
        "REASONS",
    ];
    let mut table = Table::new(heading).right(1..7);
    for Account { node, counters } in accounts {
        let reasons = counters.dropped.iter().map(|(reason, count)| format!("{reason} {count}"));
        table.row([
            node.clone(),
            counters.received.to_string(),
            counters.originated.to_string(),
            counters.delivered.to_string(),
            counters.answered.to_string(),
            counters.dropped.values().sum::<u64>().to_string(),
            counters.queued.to_string(),
            reasons.collect::<Vec<_>>().join(", "),
        ]);
    }
    writeln!(out, "{table}")
}

/// A mean time, or how much was lost.
fn cell(pair: &Pair) -> String {
    if pair.ping.is_ok() {
        return ms(pair.ping.rtt_us_mean);
    }
    format!("LOST {}/{}", pair.ping.lost(), pair.ping.sent)
}

fn ms(us: u64) -> String {
    format!("{}.{:02}", us / 1000, us % 1000 / 10)
}

fn seconds(ms: u64) -> f64 {
    std::time::Duration::from_millis(ms).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::probe::PingReport;

    #[test]
    fn a_matrix_shows_times_and_losses() {
        let pair = |source: &str, target: &str, received| Pair {
            source: source.to_owned(),
            target: target.to_owned(),
            address: [10, 244, 1, 2].into(),
            ping: PingReport {
                sent: 5,
                received,
                rtt_us_min: 100,
                rtt_us_mean: 1234,
                rtt_us_max: 2000,
                gap_max: 0,
                error: None,
            },
        };
        let report = Report {
            names: vec!["a".to_owned(), "b".to_owned()],
            pings_v4: vec![pair("a", "b", 5), pair("b", "a", 3)],
            failures: vec!["ping".to_owned()],
            ..Report::default()
        };
        let mut text = Vec::new();
        report.print(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("2 of 10 lost, 2 pairs"), "{text}");
        assert!(text.contains("\na            -  1.23\nb     LOST 2/5     -\n"), "{text}");
        assert!(text.contains("FAILED: ping\nSomething is wrong"), "{text}");
    }
}
