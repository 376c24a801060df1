//! Programs of the machine that the benchmark calls.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use weft::lab::Namespace;

/// A program and the Debian package that it is in.
pub(crate) type Program = (&'static str, &'static str);

/// Makes links, addresses and routes.
pub(crate) const IP: Program = ("ip", "iproute2");

/// Fills forwarding tables of bridges and VXLAN devices.
pub(crate) const BRIDGE: Program = ("bridge", "iproute2");

/// Switches offloads of devices.
pub(crate) const ETHTOOL: Program = ("ethtool", "ethtool");

/// The path of a program: also where administrators' programs are, which is not on every user's path.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// What is not there, as a text with the packages to install; none if all is there.
pub(crate) fn missing(programs: &[Program]) -> Option<String> {
    let missing = programs.iter().filter(|(program, _)| find(program).is_none());
    let missing: Vec<String> =
        missing.map(|(program, package)| format!("{program} (Debian package {package})")).collect();
    if missing.is_empty() { None } else { Some(missing.join(", ")) }
}

/// Fails with what to install unless all programs are there.
pub(crate) fn require(programs: &[Program]) -> Result<()> {
    match missing(programs) {
        Some(missing) => bail!("not installed: {missing}"),
        None => Ok(()),
    }
}

/// A command that will run in `namespace`.
pub(crate) fn command(namespace: &Namespace, program: &str) -> Result<Command> {
    let path = find(program).with_context(|| format!("{program} is not installed"))?;
    let mut command = Command::new(path);
    namespace.start_inside(&mut command, true)?;
    Ok(command)
}

/// Runs a command in `namespace`, and gives what it prints.
pub(crate) fn run(namespace: &Namespace, program: &str, arguments: &[&str]) -> Result<String> {
    run_with_input(namespace, program, arguments, "")
}

/// Carries out the lines of `script` by `ip -batch` in `namespace`.
pub(crate) fn ip(namespace: &Namespace, script: &str) -> Result<()> {
    run_with_input(namespace, IP.0, &["-batch", "-"], script).map(drop)
}

/// Carries out the lines of `script` by `bridge -batch` in `namespace`.
pub(crate) fn bridge(namespace: &Namespace, script: &str) -> Result<()> {
    run_with_input(namespace, BRIDGE.0, &["-batch", "-"], script).map(drop)
}

/// The same, with something to read.
pub(crate) fn run_with_input(
    namespace: &Namespace,
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Result<String> {
    let what =
        || format!("running {program} {} in {}", arguments.join(" "), namespace.path().display());
    let mut command = command(namespace, program)?;
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(what)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early closes its input; why it did is on its stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(what)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", what(), stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
