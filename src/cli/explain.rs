//! `weft explain`: what becomes of a connection, asked of the daemon or of manifests.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use conf::NodeConfig;
use conf::source;

use super::args::ExplainArgs;
use super::table::{Table, sanitize};
use super::view::print;
use crate::explain::world::World;
use crate::explain::{self, Answer, Details, Explained, Known, Query, Verdict};
use crate::lab::{self, Admin, Labs};

pub(super) fn run(arguments: &ExplainArgs, out: &mut impl Write) -> Result<()> {
    let query = Query {
        from: arguments.from.clone(),
        to: arguments.to.clone(),
        port: arguments.port.clone(),
        protocol: arguments.protocol.clone(),
        node: arguments.node.clone(),
    };
    let explained = match &arguments.manifests {
        Some(manifests) => of_manifests(manifests, arguments.config.as_deref(), &query)?,
        None => ask(arguments, &query)?,
    };
    print(&explained.answer, arguments.output.output, out, |out| show(&explained, out))
}

fn ask(arguments: &ExplainArgs, query: &Query) -> Result<Explained> {
    let Some(name) = &arguments.lab else {
        let admin = Admin::new(&arguments.socket);
        return match &arguments.node {
            // Elsewhere `--node` alone means a node of the lab; who types it by habit is told.
            Some(node) if !arguments.socket.exists() => admin.explain(query).with_context(|| {
                format!("is {node} a node of a lab? Then say --lab lab --node {node}")
            }),
            Some(_) | None => admin.explain(query),
        };
    };
    let labs = Labs::of_user();
    let state = labs.read(name)?;
    let node = match &arguments.node {
        Some(node) => &state.node(node)?.name,
        None => &state.nodes.first().context("the lab has no nodes")?.name,
    };
    Admin::new(lab::socket(&labs.dir(name), node)).explain(query)
}

fn of_manifests(manifests: &Path, config: Option<&Path>, query: &Query) -> Result<Explained> {
    let config = configuration(config)?;
    let (directory, state) =
        source::load(manifests, config.allocation()).map_err(anyhow::Error::msg)?;
    warn_of_refused(&directory.listing(&state), manifests);
    let world = World::declared(&state);
    let known = Known { config: &config, state: &state, world: &world, own: None };
    explain::explain(&known, query).map_err(anyhow::Error::msg)
}

/// The node file, or the defaults of all its fields.
pub(super) fn configuration(file: Option<&Path>) -> Result<NodeConfig> {
    match file {
        Some(file) => conf::load(file).map_err(|errors| anyhow!("{errors}")),
        None => Ok(NodeConfig::new("", Vec::new())),
    }
}

/// Says on standard error that something is not part of the answer.
pub(super) fn warn_of_refused(listing: &source::Listing, manifests: &Path) {
    let count = listing.refused.len() + listing.problems.len();
    if count > 0 {
        let manifests = manifests.display();
        eprintln!(
            "weft: {count} of what is in {manifests} cannot be honoured and is left out; `weft validate {manifests}` \
             says what, and why"
        );
    }
}

fn show(explained: &Explained, out: &mut impl Write) -> io::Result<()> {
    let Explained { answer, details } = explained;
    let Answer { verdict, service, endpoints, reason, egress, ingress, .. } = answer;
    let Details { from, to, node, rule, source, notes, candidates } = details;
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<10}{}", sanitize(value));
    let verdict = match verdict {
        Verdict::Forward => "forward",
        Verdict::Reject => "reject: the sender is told at once",
        Verdict::Drop => "drop: the sender is told nothing",
    };
    line("verdict", verdict)?;
    line("why", reason)?;
    line("from", from)?;
    line("to", to)?;
    line("service", service.as_deref().unwrap_or("none"))?;
    if let Some(node) = node {
        line(
            "decided",
            &format!("by the switch of {}", if node.is_empty() { "the node" } else { node }),
        )?;
    }
    if let Some(rule) = rule {
        line("rule", rule)?;
    }
    if let Some(source) = source {
        line("source", source)?;
    }
    for (direction, side) in [("egress", egress), ("ingress", ingress)] {
        if let Some(side) = side {
            line(direction, &format!("{}: {}", side.verdict.as_str(), side.reason))?;
            for miss in &side.misses {
                line("", &miss.to_string())?;
            }
        }
    }
    for note in notes {
        line("note", note)?;
    }
    if candidates.is_empty() {
        for endpoint in endpoints {
            line("endpoint", endpoint)?;
        }
        return Ok(());
    }
    let mut table = Table::new(["ENDPOINT", "POD", "NODE", "STATE", "MAY BE CHOSEN"]);
    for candidate in candidates {
        let chosen = match (candidate.chosen, candidate.why.as_str()) {
            (true, "") => "yes".to_owned(),
            (true, why) => format!("yes, {why}"),
            (false, "") => "no".to_owned(),
            (false, why) => format!("no: {why}"),
        };
        table.row([
            candidate.endpoint.clone(),
            candidate.pod.clone().unwrap_or_default(),
            candidate.node.clone().unwrap_or_default(),
            candidate.state.clone(),
            chosen,
        ]);
    }
    write!(out, "\n{table}")
}
