//! `weft dns`: the name server of a node, its answers, and who asks for what.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result};
use conf::source;
use jiff::tz::TimeZone;

use super::args::{DnsArgs, DnsCommand, DnsLogArgs, DnsQueryArgs, Format};
use super::explain::{configuration, warn_of_refused};
use super::table::{Table, sanitize};
use super::view::{join, print, target};
use crate::dns;
use crate::dns::report::{DnsAnswer, DnsRecord, DnsStatus};
use crate::dns::stats::{LogLine, Part, QueryLine};

pub(super) fn run(arguments: &DnsArgs, out: &mut impl Write) -> Result<()> {
    match &arguments.command {
        DnsCommand::Status(view) => {
            let status = target(&view.target)?.dns()?;
            let status =
                status.context("this node has no name server: enabled = false under [dns]")?;
            print(&status, view.output.output, out, |out| show_status(&status, out))
        }
        DnsCommand::Query(query) => {
            let answer = match &query.manifests {
                Some(manifests) => ask_manifests(manifests, query)?,
                None => {
                    let admin = target(&query.target)?;
                    admin.dns_query(&query.name, &query.kind, query.from.as_deref())?
                }
            };
            print(&answer, query.output.output, out, |out| show_answer(&answer, out))
        }
        DnsCommand::Log(log) => show_log(log, out),
    }
}

fn ask_manifests(manifests: &Path, query: &DnsQueryArgs) -> Result<DnsAnswer> {
    let config = configuration(query.config.as_deref())?;
    let (directory, state) =
        source::load(manifests, config.allocation()).map_err(anyhow::Error::msg)?;
    warn_of_refused(&directory.listing(&state), manifests);
    let question = (query.name.as_str(), query.kind.as_str());
    let answer = dns::answer_alone(&config, &state, question, query.from.as_deref())
        .map_err(anyhow::Error::msg)?;
    if answer.part == Part::Forward {
        eprintln!("weft: this is no name of the cluster: a node would ask other servers for it");
    }
    Ok(answer)
}

fn show_log(arguments: &DnsLogArgs, out: &mut impl Write) -> Result<()> {
    let zone = TimeZone::system();
    let (mut left, mut failed) = (arguments.count, Ok(()));
    let begun = || eprintln!("watching; ctrl-C ends it");
    let admin = target(&arguments.target)?;
    let ended = admin.dns_log(arguments.client.as_deref(), begun, |line| {
        failed = write_line(&line, arguments.output.output, &zone, out);
        left = left.map(|left| left.saturating_sub(1));
        match failed.is_err() || left == Some(0) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    failed?;
    ended
}

fn write_line(line: &LogLine, format: Format, zone: &TimeZone, out: &mut impl Write) -> Result<()> {
    match format {
        Format::Json => {
            serde_json::to_writer(&mut *out, line)?;
            writeln!(out)?;
        }
        Format::Table => writeln!(out, "{}", log_text(line, zone))?,
    }
    // Whoever reads wants to see it now, also through a pipe.
    out.flush()?;
    Ok(())
}

/// Time, who, what, how it went, how long it took.
fn log_text(line: &LogLine, zone: &TimeZone) -> String {
    let line = match line {
        LogLine::Query(line) => line,
        LogLine::Missed { missed } => return format!("{missed} questions were missed"),
    };
    let time = line.time.to_zoned(zone.clone()).strftime("%H:%M:%S%.3f").to_string();
    let client = match &line.pod {
        Some(pod) => format!("{pod} ({})", line.client),
        None => line.client.to_string(),
    };
    let QueryLine { name, kind, rcode, answers, took_us, .. } = line;
    sanitize(&format!("{time} {client} {name} {kind}: {rcode}, {answers} answers, {took_us} us"))
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
        let mut table = Table::new(["ZONE", "OF", "CODE", "RESPONSES"]).right([3]);
        for line in &status.responses {
            table.row([
                line.zone.clone(),
                line.part.clone(),
                line.rcode.clone(),
                line.count.to_string(),
            ]);
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
