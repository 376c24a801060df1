//! `weft policies` and `weft policy`: whom policies are for, who may reach whom, and what a change would change.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use vswitch::service::Protocol;

use super::args::{
    PoliciesArgs, PolicyArgs, PolicyCommand, PolicyDiffArgs, PolicyMatrixArgs, PolicyTestArgs,
    ProbeProtocol,
};
use super::explain::{configuration, warn_of_refused};
use super::table::Table;
use super::view::{print, target};
use crate::control::policies::Scope;
use crate::policy::diff::{self, Difference};
use crate::policy::expect::{self, Report};
use crate::policy::list::{DirectionStatus, PolicyStatus};
use crate::policy::matrix::{Matrix, Probe, ProbePort};
use crate::policy::{Evaluator, Manifests, read_manifests};

/// Pods that a line names of those that a policy is for.
const PODS_SHOWN: usize = 3;

/// Pods of the widest matrix that is shown as a table.
const COLUMNS_MAX: usize = 30;

pub(super) fn policies(arguments: &PoliciesArgs, out: &mut impl Write) -> Result<()> {
    let mut found = match &arguments.manifests {
        Some(manifests) => {
            let evaluator = evaluator(manifests, arguments.config.as_deref())?;
            evaluator.tables().list(evaluator.state())
        }
        None => target(&arguments.target)?.policy_list()?,
    };
    if let Some(namespace) = &arguments.namespace {
        found.retain(|policy| policy.namespace == *namespace);
    }
    if arguments.unused {
        found.retain(|policy| policy.pods.is_empty() || !policy.unused().is_empty());
    }
    print(&found, arguments.output.output, out, |out| {
        if arguments.unused { show_unused(&found, out) } else { show_policies(&found, out) }
    })
}

pub(super) fn run(arguments: &PolicyArgs, out: &mut impl Write) -> Result<ExitCode> {
    match &arguments.command {
        PolicyCommand::Matrix(arguments) => matrix(arguments, out),
        PolicyCommand::Test(arguments) => test(arguments, out),
        PolicyCommand::Diff(arguments) => diff(arguments, out),
    }
}

fn matrix(arguments: &PolicyMatrixArgs, out: &mut impl Write) -> Result<ExitCode> {
    let probe = probe(arguments)?;
    let matrix = match &arguments.manifests {
        Some(manifests) => {
            let evaluator = evaluator(manifests, arguments.config.as_deref())?;
            evaluator.matrix(&probe).map_err(anyhow::Error::msg)?
        }
        None => target(&arguments.target)?.policy_matrix(&probe)?,
    };
    print(&matrix, arguments.output.output, out, |out| show_matrix(&matrix, out))?;
    Ok(ExitCode::SUCCESS)
}

fn probe(arguments: &PolicyMatrixArgs) -> Result<Probe> {
    let protocol = match arguments.protocol {
        ProbeProtocol::Tcp => Some(Protocol::Tcp),
        ProbeProtocol::Udp => Some(Protocol::Udp),
        ProbeProtocol::Sctp => Some(Protocol::Sctp),
        ProbeProtocol::Icmp => None,
    };
    let port = match (&arguments.port, protocol) {
        (None, None) => ProbePort::Number(0),
        (Some(_), None) => bail!("--port: ICMP has no ports"),
        (None, Some(protocol)) => bail!("--port is missing: which port of {protocol}?"),
        (Some(port), Some(_)) => ProbePort::parse(port),
    };
    Ok(Probe { protocol, port })
}

fn test(arguments: &PolicyTestArgs, out: &mut impl Write) -> Result<ExitCode> {
    let file = &arguments.file;
    let text =
        fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let expectations =
        expect::parse(&text).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let from_file = expectations
        .manifests
        .as_ref()
        .map(|path| file.parent().unwrap_or_else(|| Path::new("")).join(path));
    let Some(manifests) = arguments.manifests.clone().or(from_file) else {
        bail!(
            "which manifests? Name them with --manifests, or as `manifests:` in {}",
            file.display()
        );
    };
    let config = configuration(arguments.config.as_deref())?;
    let read = read_manifests(&manifests, &config).map_err(anyhow::Error::msg)?;
    // What is refused is not in force, so that nothing can be said of what would be.
    if let Some(refused) = read.listing.refused.first() {
        let count = read.listing.refused.len();
        bail!("{count} of the manifests are refused: {}/{refused}", manifests.display());
    }
    let report = Evaluator::new(read.state, Scope::All).check(&expectations);
    print(&report, arguments.output.output, out, |out| show_report(&report, out))?;
    out.flush()?;
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn diff(arguments: &PolicyDiffArgs, out: &mut impl Write) -> Result<ExitCode> {
    let config = arguments.config.as_deref();
    let (old, new) = (evaluator(&arguments.old, config)?, evaluator(&arguments.new, config)?);
    let difference = diff::compare(&old, &new).map_err(anyhow::Error::msg)?;
    print(&difference, arguments.output.output, out, |out| show_difference(&difference, out))?;
    out.flush()?;
    let is_failure = arguments.exit_code && !difference.pairs.is_empty();
    Ok(if is_failure { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Everything that manifests say of policies. What is refused of them, and what was made up, is told on stderr.
fn evaluator(manifests: &Path, config: Option<&Path>) -> Result<Evaluator> {
    let config = configuration(config)?;
    let Manifests { state, listing, stand_ins } =
        read_manifests(manifests, &config).map_err(anyhow::Error::msg)?;
    warn_of_refused(&listing, manifests);
    if !stand_ins.is_empty() {
        let count = stand_ins.len();
        eprintln!(
            "weft: {count} pods have no address in their manifests: each got one of the cluster's"
        );
    }
    Ok(Evaluator::new(state, Scope::All))
}

fn show_policies(policies: &[PolicyStatus], out: &mut impl Write) -> io::Result<()> {
    let mut table =
        Table::new(["POLICY", "KIND", "TIER", "PRIORITY", "INGRESS", "EGRESS", "PODS", "FOR"])
            .right([3, 6]);
    let direction = |status: &Option<DirectionStatus>| match status {
        None => "-".to_owned(),
        Some(status) if status.rules.is_empty() => "denies all".to_owned(),
        Some(status) => match status.rules.len() {
            1 => "1 rule".to_owned(),
            count => format!("{count} rules"),
        },
    };
    for policy in policies {
        let mut pods = policy.pods.iter().take(PODS_SHOWN).cloned().collect::<Vec<_>>().join(" ");
        if policy.pods.len() > PODS_SHOWN {
            pods.push_str(" ...");
        }
        table.row([
            policy.title(),
            policy.kind.clone(),
            policy.tier.clone(),
            policy.priority.map(|priority| priority.to_string()).unwrap_or_default(),
            direction(&policy.ingress),
            direction(&policy.egress),
            policy.pods.len().to_string(),
            pods,
        ]);
    }
    write!(out, "{table}")
}

fn show_unused(policies: &[PolicyStatus], out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new(["POLICY", "KIND", "UNUSED"]);
    for policy in policies {
        let unused = if policy.pods.is_empty() {
            "it is for no pod".to_owned()
        } else {
            policy.unused().join(" ")
        };
        table.row([policy.title(), policy.kind.clone(), unused]);
    }
    write!(out, "{table}")
}

fn show_matrix(matrix: &Matrix, out: &mut impl Write) -> io::Result<()> {
    let names: Vec<&String> = matrix.0.keys().collect();
    let pairs: usize = matrix.0.values().map(std::collections::BTreeMap::len).sum();
    let reached =
        matrix.0.values().flat_map(|row| row.values()).filter(|reaches| **reaches).count();
    if names.len() <= COLUMNS_MAX {
        // Numbers for columns: names would be wider than any screen.
        let numbers = (1..=names.len()).map(|number| number.to_string());
        let heading = [String::new(), "FROM \\ TO".to_owned()].into_iter().chain(numbers);
        let mut table = Table::wide(heading.collect());
        for (number, (from, row)) in (1..).zip(&matrix.0) {
            let cell = |to: &&String| match row.get(*to) {
                Some(true) => "yes",
                Some(false) => ".",
                None => " ",
            };
            let cells = names.iter().map(|to| cell(to).to_owned());
            table.row([format!("{number}"), from.clone()].into_iter().chain(cells));
        }
        writeln!(out, "{table}")?;
    }
    writeln!(out, "{reached} of {pairs} pairs reach each other")
}

fn show_report(report: &Report, out: &mut impl Write) -> io::Result<()> {
    for failure in &report.failures {
        let expect::Failure { check, name, from, to, what, expected, reason } = failure;
        let name = name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
        let expected = if *expected { "reachable" } else { "not reachable" };
        let line =
            format!("checks[{check}]{name}: {from} -> {to} {what} should be {expected}: {reason}");
        writeln!(out, "{}", line.replace(char::is_control, "\u{fffd}"))?;
    }
    writeln!(out, "{} passed, {} failed", report.passed, report.failed)
}

fn show_difference(difference: &Difference, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new(["FROM", "TO", "NOW ALLOWED", "NO MORE"]);
    for pair in &difference.pairs {
        let (allowed, denied) = (pair.allowed.join(", "), pair.denied.join(", "));
        table.row([pair.from.clone(), pair.to.clone(), allowed, denied]);
    }
    if !difference.pairs.is_empty() {
        writeln!(out, "{table}")?;
    }
    for (what, pods) in [("gone", &difference.only_old), ("new", &difference.only_new)] {
        if !pods.is_empty() {
            writeln!(out, "{what}, and not compared: {}", pods.join(" "))?;
        }
    }
    writeln!(out, "{} pairs change", difference.pairs.len())
}
