//! The command line `weft`, which is also `weftd` and `weft-cni` when called by their names.

mod args;
mod bench;
mod cni;
mod demo;
mod dns;
mod explain;
mod ipam;
mod key;
mod lab;
mod objects;
mod policy;
mod services;
mod signals;
mod table;
mod view;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::Parser;

use args::{Cli, Command, UninstallArgs};

/// Runs the program by the name it was called by.
pub fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    match Path::new(&name).file_name().and_then(|name| name.to_str()) {
        Some("weftd") => crate::daemon::main(std::env::args_os()),
        Some("weft-cni") => ::cni::plugin::main(),
        Some(_) | None => weft(),
    }
}

fn weft() -> ExitCode {
    // Prints and exits by itself: 0 for --help, 2 for wrong usage.
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let mut out = io::stdout();
    match cli.command {
        Command::Demo(arguments) => return demo::run(&arguments),
        Command::Lab(arguments) => return lab::run(arguments, &mut out),
        Command::Status(arguments) => view::status(&arguments, &mut out)?,
        Command::Nodes(arguments) => view::nodes(&arguments, &mut out)?,
        Command::Leases(arguments) => view::leases(&arguments, &mut out)?,
        Command::Watch(arguments) => watch::watch(&arguments, &mut out)?,
        Command::Pods(arguments) => view::pods(&arguments, &mut out)?,
        Command::Cni(arguments) => cni::run(&arguments, &mut out)?,
        Command::Ipam(arguments) => ipam::run(&arguments, &mut out)?,
        Command::Counters(arguments) => view::counters(&arguments, &mut out)?,
        Command::Key(arguments) => key::run(&arguments, &mut out)?,
        Command::Objects(arguments) => objects::objects(&arguments, &mut out)?,
        Command::Policies(arguments) => policy::policies(&arguments, &mut out)?,
        Command::Policy(arguments) => return policy::run(&arguments, &mut out),
        Command::Validate(arguments) => return objects::validate(&arguments, &mut out),
        Command::Port(arguments) => view::port(&arguments, &mut out)?,
        Command::Services(arguments) => services::services(&arguments, &mut out)?,
        Command::Endpoints(arguments) => services::endpoints(&arguments, &mut out)?,
        Command::Flows(arguments) => services::flows(&arguments, &mut out)?,
        Command::Explain(arguments) => explain::run(&arguments, &mut out)?,
        Command::Dns(arguments) => dns::run(&arguments, &mut out)?,
        Command::Bench(arguments) => bench::run(&arguments, &mut out)?,
        Command::Uninstall(arguments) => uninstall(&arguments, &mut out)?,
        Command::Daemon { arguments } => {
            let name = std::iter::once(OsString::from("weftd"));
            return Ok(crate::daemon::main(name.chain(arguments)));
        }
        Command::Version => writeln!(out, "weft {}", env!("CARGO_PKG_VERSION"))?,
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn uninstall(arguments: &UninstallArgs, out: &mut impl Write) -> Result<()> {
    let config = conf::load(&arguments.config).map_err(|errors| anyhow!("{errors}"))?;
    let problems = crate::uninstall::uninstall(&config, arguments.files);
    if problems.is_empty() {
        writeln!(out, "removed")?;
        return Ok(());
    }
    bail!("not removed: {}", problems.join("; "))
}

/// Whoever read our output has seen enough (`weft pods | head -1`).
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json =
            cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}
