//! `weft objects` and `weft validate`: what is declared of the cluster, and what is wrong with it.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use conf::NodeConfig;
use conf::source::{self, Listing};

use super::args::{ValidateArgs, ViewArgs};
use super::table::Table;
use super::view::{print, target};

pub(super) fn objects(arguments: &ViewArgs, out: &mut impl Write) -> Result<()> {
    let listing = target(&arguments.target)?.objects()?;
    print(&listing, arguments.output.output, out, |out| print_listing(&listing, out))
}

pub(super) fn validate(arguments: &ValidateArgs, out: &mut impl Write) -> Result<ExitCode> {
    let config = match &arguments.config {
        Some(file) => conf::load(file).map_err(|errors| anyhow!("{errors}"))?,
        None => NodeConfig::new("", Vec::new()),
    };
    let (directory, state) =
        source::load(&arguments.path, config.allocation()).map_err(anyhow::Error::msg)?;
    let listing = directory.listing(&state);
    print(&listing, arguments.output.output, out, |out| print_listing(&listing, out))?;
    out.flush()?;
    let is_right = listing.refused.is_empty() && listing.problems.is_empty();
    Ok(if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_listing(listing: &Listing, out: &mut impl Write) -> io::Result<()> {
    let Listing { accepted, refused, ignored, problems } = listing;
    for problem in problems {
        writeln!(out, "{problem}\n")?;
    }
    let title = |kind: &str, namespace: &str, name: &str| match (namespace, name) {
        (_, "") => kind.to_owned(),
        ("", name) => format!("{kind} {name}"),
        (namespace, name) => format!("{kind} {namespace}/{name}"),
    };
    let mut table = Table::new(["ACCEPTED", "AT", "BUT"]);
    for object in accepted {
        table.row([
            title(&object.kind, &object.namespace, &object.name),
            place(&object.file, object.line),
            object.notes.join("; "),
        ]);
    }
    if !accepted.is_empty() {
        writeln!(out, "{table}")?;
    }
    let mut table = Table::new(["IGNORED", "AT", "WHY"]);
    for object in ignored {
        table.row([
            title(&object.kind, &object.namespace, &object.name),
            place(&object.file, object.line),
            object.reason.clone(),
        ]);
    }
    if !ignored.is_empty() {
        writeln!(out, "{table}")?;
    }
    // As compilers write it, so that editors find the place.
    for object in refused {
        let title = title(&object.kind, &object.namespace, &object.name);
        // What comes from no file is named in front.
        let is_named = title.is_empty() || object.file.is_empty();
        let text = if is_named { object.to_string() } else { format!("{object} ({title})") };
        writeln!(out, "{}", text.replace(char::is_control, "\u{fffd}"))?;
    }
    if !refused.is_empty() {
        writeln!(out)?;
    }
    writeln!(
        out,
        "{} accepted, {} refused, {} ignored",
        accepted.len(),
        refused.len(),
        ignored.len()
    )
}

/// File and line of an object; objects of an API server have none.
fn place(file: &str, line: usize) -> String {
    if file.is_empty() { "API server".to_owned() } else { format!("{file}:{line}") }
}
