//! `weft lab`: each command finds the lab on disk, enters its namespaces where they are not the machine's
//! own, does one thing, and leaves.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::args::{Format, LabArgs, LabChange, LabCommand, LabUpArgs, UnderlayFamily};
use super::signals;
use super::table::Table;
use super::view::{join, print};
use crate::lab::{
    Family, Interrupt, Lab, LabConfig, LabState, Labs, Namespace, ProcessId, hosts, namespace_in,
    resolv_conf, sandbox,
};

pub(super) fn run(arguments: LabArgs, out: &mut impl Write) -> Result<ExitCode> {
    // Before any namespace is entered: there, everybody is root.
    let labs = Labs::of_user();
    let name = arguments.lab;
    match arguments.command {
        LabCommand::Up(arguments) => up(&labs, &name, arguments, out)?,
        LabCommand::Down { all: true } => down_all(&labs, out)?,
        LabCommand::Down { all: false } => down(&labs, &name, out)?,
        LabCommand::List { output } => list(&labs, output.output, out)?,
        LabCommand::Show { output } => {
            let state = labs.read(&name)?;
            print(&state, output.output, out, |out| show(&labs, &state, out))?;
        }
        LabCommand::Exec { place, command } => {
            let state = labs.read(&name)?;
            enter(&state)?;
            let (program, arguments) = command.split_first().context("no command")?;
            let mut command = std::process::Command::new(program);
            command.args(arguments);
            let dir = labs.dir(&name);
            namespace_in(&dir, &state, &place)?.start_inside(&mut command, false)?;
            if state.pod(&place).is_ok() {
                Namespace::show_resolv_conf(&mut command, &resolv_conf(&dir))?;
            }
            if let Err(error) = sandbox::mount_hosts(&hosts(&dir)) {
                eprintln!("weft: names of nodes and pods will not be known: {error:#}");
            }
            // Returns only when it fails.
            let error = command.exec();
            return Err(error).with_context(|| format!("running {}", program.to_string_lossy()));
        }
        LabCommand::Hold => sandbox::hold()?,
        LabCommand::Change(change) => apply(&labs, &name, change, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn apply(labs: &Labs, name: &str, change: LabChange, out: &mut impl Write) -> Result<()> {
    enter(&labs.read(name)?)?;
    let mut lab = Lab::open(labs, name)?;
    match change {
        LabChange::AddNode => writeln!(out, "added {}", lab.add_node()?)?,
        LabChange::RemoveNode { node } => {
            lab.remove_node(&node)?;
            writeln!(out, "removed {node}")?;
        }
        LabChange::AddPod { node } => {
            let pod = lab.add_pod(&node)?;
            let (_, pod) = lab.state().pod(&pod)?;
            writeln!(out, "added {}: {}", pod.name, join(&pod.addresses))?;
        }
        LabChange::RemovePod { pod } => {
            lab.remove_pod(&pod)?;
            writeln!(out, "removed {pod}")?;
        }
        LabChange::Cut { node } => {
            lab.cut(&node)?;
            writeln!(out, "cut {node} off")?;
        }
        LabChange::Heal { node } => {
            lab.heal(&node)?;
            writeln!(out, "healed the link of {node}")?;
        }
        LabChange::SetMtu { node, mtu } => {
            lab.set_mtu(&node, mtu)?;
            writeln!(out, "the link of {node} has MTU {mtu}")?;
        }
        LabChange::Kill { node } => {
            lab.kill(&node)?;
            writeln!(out, "killed the daemon of {node}")?;
        }
        LabChange::Stop { node } => {
            lab.stop(&node)?;
            writeln!(out, "stopped the daemon of {node}")?;
        }
        LabChange::Start { node } => {
            lab.start(&node)?;
            writeln!(out, "the daemon of {node} runs")?;
        }
    }
    Ok(())
}

fn up(labs: &Labs, name: &str, arguments: LabUpArgs, out: &mut impl Write) -> Result<()> {
    if labs.names()?.iter().any(|other| other == name) {
        bail!("there is a lab `{name}` already: remove it with `weft lab down --lab {name}`");
    }
    let extra = match &arguments.extra {
        Some(path) => {
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?
        }
        None => String::new(),
    };
    let config = LabConfig {
        nodes: arguments.nodes,
        pods_per_node: arguments.pods,
        ipv6: !arguments.no_ipv6,
        underlay_mtu: arguments.mtu,
        underlay: match arguments.underlay {
            UnderlayFamily::V4 => Family::V4,
            UnderlayFamily::V6 => Family::V6,
        },
        extra,
        log: arguments.log,
        keep: true,
        ..LabConfig::new(name)
    };
    let mut lab = make_kept(labs, config, &Interrupt::default())?;
    lab.add_nodes(arguments.nodes)?;
    let nodes: Vec<String> = lab.nodes().iter().map(|node| node.name.clone()).collect();
    for node in &nodes {
        for _ in 0..arguments.pods {
            lab.add_pod(node)?;
        }
    }
    lab.finish_up()?;
    show(labs, lab.state(), out)?;
    let mut pods = lab.state().pods().map(|(_, pod)| pod.name.as_str());
    if let Some(first) = pods.next() {
        let lab = if name == "lab" { String::new() } else { format!(" --lab {name}") };
        writeln!(out, "\nA shell in a pod:  weft lab exec{lab} {first} -- sh")?;
        if let Some(last) = pods.last() {
            writeln!(out, "Pods have names:   weft lab exec{lab} {first} -- ping {last}")?;
        }
        writeln!(out, "Remove it all:     weft lab down{lab}")?;
    }
    Ok(())
}

/// Makes a lab that outlasts this process, and enters its namespaces if they are not the machine's own.
pub(super) fn make_kept(labs: &Labs, config: LabConfig, interrupt: &Interrupt) -> Result<Lab> {
    let holder = if sandbox::is_privileged() {
        sandbox::check_tun()?;
        None
    } else {
        let program = std::env::current_exe().context("looking for the own program")?;
        Some(sandbox::start_holder(&program, &["lab", "hold"])?)
    };
    let made = holder.map_or(Ok(()), sandbox::join).and_then(|()| {
        signals::install(interrupt)?;
        Lab::create(labs, config, interrupt.clone(), holder)
    });
    if made.is_err() {
        end_holder(holder)?;
    }
    made
}

fn end_holder(holder: Option<ProcessId>) -> Result<()> {
    match holder {
        Some(holder) => Ok(holder.signal(rustix::process::Signal::KILL)?),
        None => Ok(()),
    }
}

/// Enters the namespaces of a lab that has its own.
pub(super) fn enter(state: &LabState) -> Result<()> {
    match state.holder {
        Some(holder) => sandbox::join(holder).with_context(|| {
            let name = &state.config.name;
            format!("the lab cannot be used any more; remove it: `weft lab down --lab {name}`")
        }),
        None => Ok(()),
    }
}

fn down(labs: &Labs, name: &str, out: &mut impl Write) -> Result<()> {
    let state = labs.read(name);
    // Without its holder, a lab's namespaces are gone already, and its files can be removed from here.
    if let Some(holder) =
        state.ok().and_then(|state| state.holder).filter(|holder| holder.is_alive())
    {
        sandbox::join(holder)?;
    }
    Lab::remove(labs, name)?;
    writeln!(out, "removed lab {name}")?;
    Ok(())
}

fn down_all(labs: &Labs, out: &mut impl Write) -> Result<()> {
    let program = std::env::current_exe().context("looking for the own program")?;
    let mut failed = Vec::new();
    for name in labs.names()? {
        // Each in a process of its own: one that has entered a lab's namespaces cannot go back.
        let status = std::process::Command::new(&program)
            .args(["lab", "down", "--lab", &name])
            .stdout(std::process::Stdio::null())
            .status()
            .context("starting weft again")?;
        if status.success() {
            writeln!(out, "removed lab {name}")?;
        } else {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("not removed: {}", failed.join(", "));
    }
    Ok(())
}

fn list(labs: &Labs, format: Format, out: &mut impl Write) -> Result<()> {
    let mut states = Vec::new();
    let mut table = Table::new(["LAB", "NODES", "PODS", "STATE"]).right([1, 2]);
    for name in labs.names()? {
        match labs.read(&name) {
            Ok(state) => {
                let health = match state.holder {
                    Some(holder) if !holder.is_alive() => "dead, remove it with `weft lab down`",
                    _ if state.is_abandoned() => "abandoned, remove it with `weft lab down`",
                    _ if state.owner.is_some() => "in use by a running command",
                    _ => "up",
                };
                let pods = state.pods().count();
                table.row([
                    name,
                    state.nodes.len().to_string(),
                    pods.to_string(),
                    health.to_owned(),
                ]);
                states.push(state);
            }
            Err(error) => table.row([name, String::new(), String::new(), format!("{error:#}")]),
        }
    }
    print(&states, format, out, |out| write!(out, "{table}"))
}

fn show(labs: &Labs, state: &LabState, out: &mut impl Write) -> std::io::Result<()> {
    let mut table = Table::new(["NODE", "UNDERLAY", "MTU", "LINK", "DAEMON", "PODS"]).right([2]);
    for node in &state.nodes {
        let daemon = match node.daemon {
            Some(daemon) if daemon.is_alive() => format!("runs, pid {}", daemon.pid),
            Some(_) => "has died".to_owned(),
            None => "stopped".to_owned(),
        };
        table.row([
            node.name.clone(),
            node.underlay.to_string(),
            node.mtu.to_string(),
            if node.cut { "CUT" } else { "up" }.to_owned(),
            daemon,
            node.pods.len().to_string(),
        ]);
    }
    writeln!(out, "{table}")?;
    let mut table = Table::new(["POD", "NODE", "ADDRESSES"]);
    for (node, pod) in state.pods() {
        table.row([pod.name.clone(), node.name.clone(), join(&pod.addresses)]);
    }
    writeln!(out, "{table}")?;
    let dir = labs.dir(&state.config.name);
    writeln!(out, "Files, logs and sockets: {}/nodes/NODE", dir.display())
}
