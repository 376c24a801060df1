//! `weft dns`: the name server of a node, its answers, and who asks for what.

use std::io::{self, Write};

use anyhow::{Context, Result};

use super::args::{DnsArgs, DnsCommand};
use super::table::Table;
use super::view::{join, print, target};
use crate::dns::report::{DnsAnswer, DnsRecord, DnsStatus};

pub(super) fn run(arguments: &DnsArgs, out: &mut impl Write) -> Result<()> {
    match &arguments.command {
        DnsCommand::Status(view) => {
            let status = target(&view.target)?.dns()?;
            let status =
                status.context("this node has no name server: enabled = false under [dns]")?;
            print(&status, view.output.output, out, |out| show_status(&status, out))
        }
        DnsCommand::Query(query) => {
            let admin = target(&query.target)?;
            let answer = admin.dns_query(&query.name, &query.kind, query.from.as_deref())?;
            print(&answer, query.output.output, out, |out| show_answer(&answer, out))
        }
    }
}

fn show_status(status: &DnsStatus, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "domain     {}", status.domain)?;
    writeln!(out, "addresses  {}", join(&status.addresses))?;
    let knows = match status.synced {
        true => format!("{} services, {} pods", status.services, status.pods),
        false => "nothing yet: names of the cluster are answered SERVFAIL".to_owned(),
    };
    writeln!(out, "knows      {knows}")?;
    writeln!(out, "cached     {} answers of other servers", status.cached)?;
    if !status.upstreams.is_empty() {
        writeln!(out)?;
        let mut table = Table::new(["FOR", "SERVER", "STATE"]);
        for server in &status.upstreams {
            let state = match (server.looping, server.healthy) {
                (true, _) => "leads back here, is not asked",
                (false, true) => "well",
                (false, false) => "does not answer",
            };
            table.row([server.zone.clone(), server.address.to_string(), state.to_owned()]);
        }
        write!(out, "{table}")?;
    }
    if !status.responses.is_empty() {
        writeln!(out)?;
        let mut table = Table::new(["ABOUT", "CODE", "RESPONSES"]);
        for line in &status.responses {
            table.row([line.part.clone(), line.rcode.clone(), line.count.to_string()]);
        }
        write!(out, "{table}")?;
    }
    Ok(())
}

fn show_answer(answer: &DnsAnswer, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", answer.rcode)?;
    for (section, records) in [
        ("answer", &answer.answer),
        ("authority", &answer.authority),
        ("additional", &answer.additional),
    ] {
        if records.is_empty() {
            continue;
        }
        writeln!(out, "\n{section}:")?;
        for DnsRecord { name, ttl, kind, data } in records {
            writeln!(out, "  {name} {ttl} {kind} {data}")?;
        }
    }
    Ok(())
}
