//! `weft demo`: a cluster is made, tested, broken, mended and removed, in well under a minute.

mod measure;
mod policy;
mod progress;
mod report;
mod service;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::args::{DemoArgs, Format};
use super::{lab, signals};
use crate::admin::api::ProblemTopic;
use crate::lab::{Family, Interrupt, Lab, LabConfig, Labs, Plan, sandbox};
use measure::Endpoint;
use progress::{Outcome, Progress};
use report::{NodeFailure, Report};

/// How long the nodes may take to learn of each other.
const MAP_LIMIT: Duration = Duration::from_secs(15);

/// How long a node that died may stay in the others' maps.
const GONE_LIMIT: Duration = Duration::from_secs(10);

/// How long a node that comes back may take until its own pods reach each other.
const LOCAL_LIMIT: Duration = Duration::from_secs(1);

/// How long one way may be closed while maps and tables change.
const REPLY_LIMIT: Duration = Duration::from_secs(5);

/// Name of the lab that `--keep` leaves, and start of the others' names.
const LAB_NAME: &str = "demo";

pub(super) fn run(arguments: &DemoArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let labs = Labs::of_user();
    let interrupt = Interrupt::default();
    let is_json = arguments.format() == Format::Json;
    let mut progress = Progress::new(is_json);
    let mut report = Report { version: env!("CARGO_PKG_VERSION"), ..Report::default() };

    // Alone in its namespaces, nothing of the demo can outlive it, whatever happens to it.
    if !arguments.keep {
        sandbox::enter_own()?;
        signals::install(&interrupt)?;
        remove_abandoned(&labs)?;
    }
    progress.title(&format!(
        "{} nodes with {} pods each, on this machine",
        arguments.nodes, arguments.pods
    ));
    let done = play(arguments, &labs, &interrupt, &mut progress, &mut report);
    if let Err(error) = &done
        && progress.failures().is_empty()
    {
        progress.note(format!("{error:#}"));
    }
    report.failures = progress.failures().to_vec();
    report.passed = report.failures.is_empty();
    report.elapsed_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let kept = arguments.keep && done.is_ok();
    let written = write(&report, is_json, kept);
    // That nobody reads the report any more does not make a failure a success.
    if report.passed { written.map(|()| ExitCode::SUCCESS) } else { Ok(ExitCode::FAILURE) }
}

fn write(report: &Report, is_json: bool, kept: bool) -> Result<()> {
    let mut out = io::stdout();
    if is_json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
    } else {
        report.print(&mut out)?;
        if kept {
            writeln!(out, "\nThe cluster stays: `weft lab show --lab {LAB_NAME}`")?;
            writeln!(out, "Remove it:         `weft lab down --lab {LAB_NAME}`")?;
        }
    }
    Ok(out.flush()?)
}

fn play(
    arguments: &DemoArgs,
    labs: &Labs,
    interrupt: &Interrupt,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    let mut lab = build(arguments, labs, interrupt, progress)?;
    let shown = show(&mut lab, interrupt, progress, report);
    if arguments.keep && shown.is_ok() {
        return lab.finish_up();
    }
    let removed = progress.step("everything is removed", |_| lab.down());
    shown.and(removed)
}

fn build(
    arguments: &DemoArgs,
    labs: &Labs,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> Result<Lab> {
    let name = match arguments.keep {
        true => LAB_NAME.to_owned(),
        false => format!("{LAB_NAME}-{}", std::process::id()),
    };
    let config = LabConfig {
        nodes: arguments.nodes,
        pods_per_node: arguments.pods,
        keep: arguments.keep,
        ..LabConfig::new(name)
    };
    let mut lab = progress.step("network between the nodes", |_| match arguments.keep {
        true => lab::make_kept(labs, config, interrupt),
        false => Lab::create(labs, config, interrupt.clone(), None),
    })?;
    progress.step("daemons started, leases claimed", |outcome| {
        let names = lab.add_nodes(arguments.nodes)?;
        outcome.detail = names.join(" ");
        Ok(())
    })?;
    progress.step("nodes found each other by gossip", |_| {
        lab.wait_for_map(&node_names(&lab), MAP_LIMIT)
    })?;
    progress.step("pods attached by the CNI plugin", |outcome| {
        let nodes: Vec<String> = lab.nodes().iter().map(|node| node.name.clone()).collect();
        for node in &nodes {
            for _ in 0..arguments.pods {
                lab.add_pod(node)?;
            }
        }
        outcome.detail = format!("{} pods", lab.state().pods().count());
        Ok(())
    })?;
    Ok(lab)
}

fn show(
    lab: &mut Lab,
    interrupt: &Interrupt,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    let first = lab.nodes().first().context("a demo has nodes")?.name.clone();
    report.nodes = lab.admin(&first)?.nodes()?;
    let endpoints = measure::endpoints(lab)?;
    report.names = endpoints.iter().map(|endpoint| endpoint.name.clone()).collect();
    let families = measure::families(&endpoints);
    for family in &families {
        progress.step(&format!("ping, every ordered pair, {}", name_of(*family)), |outcome| {
            let pairs = measure::ping_all(&endpoints, *family, interrupt)?;
            outcome.detail = format!("{} pairs, none lost", pairs.len());
            for pair in pairs.iter().filter(|pair| !pair.ping.is_ok()) {
                let why = pair.ping.error.clone().unwrap_or_default();
                let lost = pair.ping.lost();
                outcome.failures.push(format!(
                    "{} to {} ({}): {lost} of {} lost {why}",
                    pair.source, pair.target, pair.address, pair.ping.sent
                ));
            }
            match family {
                Family::V4 => report.pings_v4 = pairs,
                Family::V6 => report.pings_v6 = pairs,
            }
            Ok(())
        })?;
    }
    progress.step("senders keep their own address", |outcome| {
        for family in &families {
            report.seen.extend(measure::see_all(&endpoints, *family, interrupt)?);
        }
        *outcome = Outcome::new(format!("{} TCP connections, no NAT", report.seen.len()));
        for seen in report.seen.iter().filter(|seen| seen.rewritten) {
            outcome.failures.push(format!(
                "{} connected to {} as {} and was seen as {}",
                seen.source, seen.target, seen.own, seen.seen
            ));
        }
        Ok(())
    })?;
    progress.step("pods reach the world outside", |outcome| {
        reach_world(lab, &endpoints, &families, outcome, report)
    })?;
    for family in &families {
        progress.step(&format!("TCP at full speed, {}", name_of(*family)), |outcome| {
            interrupt.check()?;
            let speeds = measure::speeds(&endpoints, *family)?;
            let text = speeds
                .iter()
                .map(|speed| format!("{} {:.2} Gbit/s", speed.path, speed.bits_per_s / 1e9));
            outcome.detail = text.collect::<Vec<_>>().join(", ");
            outcome.require(speeds.iter().all(|speed| speed.bytes > 0), || {
                "no byte arrived".to_owned()
            });
            report.speeds.extend(speeds);
            Ok(())
        })?;
    }
    progress.step("a Service, by its name", |outcome| {
        report.service = Some(service::show(lab, &endpoints, interrupt, outcome)?);
        Ok(())
    })?;
    progress.step("a policy denies, and says why", |outcome| {
        report.denied = policy::show(lab, &endpoints, interrupt)?;
        outcome.detail = match &report.denied {
            None => "left out: there is one pod alone".to_owned(),
            Some(denied) => {
                let (closed, open) = (denied.closed_after_ms, denied.open_after_ms);
                format!("closed after {closed} ms, open again after {open} ms")
            }
        };
        Ok(())
    })?;
    fail_a_node(lab, &endpoints, interrupt, progress, report)?;
    progress.step("every packet is accounted for", |outcome| {
        report.accounts = measure::accounts(lab, interrupt)?;
        let packets: u64 = report.accounts.iter().map(|account| account.counters.received).sum();
        outcome.detail = format!("{packets} packets");
        for account in report.accounts.iter().filter(|account| account.counters.queued != 0) {
            outcome.failures.push(format!(
                "{}: {} packets are neither delivered nor dropped",
                account.node, account.counters.queued
            ));
        }
        Ok(())
    })
}

/// The world has no routes to pods: an answer comes only if the node lends them its address.
fn reach_world(
    lab: &Lab,
    endpoints: &[Endpoint],
    families: &[Family],
    outcome: &mut Outcome,
    report: &mut Report,
) -> Result<()> {
    let pod = endpoints.iter().find(|endpoint| endpoint.is_pod).context("a demo has pods")?;
    let number = lab.state().node(&pod.node)?.number;
    let problems = lab.admin(&pod.node)?.status()?.problems;
    if let Some(problem) = problems.iter().find(|p| p.topic == ProblemTopic::Masquerade) {
        outcome.detail = format!("left out: {}", problem.text);
        return Ok(());
    }
    for family in families {
        match measure::seen_by_world(lab, pod, *family) {
            Ok(seen) => {
                let lent = Plan::node(*family, number).ip();
                outcome.require(seen.seen == lent, || {
                    format!("{} is seen as {} instead of {lent}, its node", seen.own, seen.seen)
                });
                report.seen_by_world.push(seen);
            }
            Err(error) => outcome.failures.push(format!("{error:#}")),
        }
    }
    let seen = report.seen_by_world.iter().map(|seen| seen.seen.to_string());
    outcome.detail = format!("seen as {}", seen.collect::<Vec<_>>().join(", "));
    Ok(())
}

/// The last node dies and comes back.
fn fail_a_node(
    lab: &mut Lab,
    endpoints: &[Endpoint],
    interrupt: &Interrupt,
    progress: &mut Progress,
    report: &mut Report,
) -> Result<()> {
    let victim = lab.nodes().last().context("a demo has nodes")?.name.clone();
    let leases = lab.admin(&victim)?.status()?.leases;
    let survivors: Vec<Endpoint> =
        endpoints.iter().filter(|endpoint| endpoint.node != victim).cloned().collect();

    let gone = progress.step(&format!("{victim} dies: gone from the map"), |outcome| {
        lab.cut(&victim)?;
        lab.kill(&victim)?;
        let others: Vec<&str> =
            node_names(lab).into_iter().filter(|name| *name != victim).collect();
        let gone = lab.wait_for_map(&others, GONE_LIMIT)?;
        outcome.detail = format!("after {:.1} s", gone.as_secs_f64());
        Ok(gone)
    })?;
    progress.step("the others go on", |outcome| {
        let pairs = measure::ping_all(&survivors, Family::V4, interrupt)?;
        outcome.detail = format!("{} pairs, none lost", pairs.len());
        for pair in pairs.iter().filter(|pair| !pair.ping.is_ok()) {
            let lost = pair.ping.lost();
            outcome.failures.push(format!("{} to {}: {lost} lost", pair.source, pair.target));
        }
        Ok(())
    })?;
    let (local, back) = progress.step(&format!("{victim} returns"), |outcome| {
        lab.heal(&victim)?;
        lab.launch(&victim)?;
        let start = Instant::now();
        let mut pods = endpoints.iter().filter(|pod| pod.is_pod && pod.node == victim);
        let local = match (pods.next(), pods.next()) {
            (Some(one), Some(other)) => {
                Some(measure::first_reply(one, other, REPLY_LIMIT, interrupt)?)
            }
            _ => None,
        };
        lab.wait_until_ready(&victim)?;
        lab.wait_for_map(&node_names(lab), MAP_LIMIT)?;
        let back = start.elapsed();
        outcome.detail = format!("after {:.1} s", back.as_secs_f64());
        outcome.require(local.is_none_or(|local| local <= LOCAL_LIMIT), || {
            let seconds = local.unwrap_or_default().as_secs_f64();
            format!("its own pods reached each other only {seconds:.2} s after its start")
        });
        Ok((local, back))
    })?;
    let same_lease = lab.admin(&victim)?.status()?.leases == leases;
    progress.step("same lease, its pods are reachable", |outcome| {
        outcome.require(same_lease, || format!("{victim} has another lease than before"));
        let pods = || endpoints.iter().filter(|endpoint| endpoint.is_pod);
        let near = pods().find(|pod| pod.node != victim).context("a demo has several nodes")?;
        for far in pods().filter(|pod| pod.node == victim) {
            measure::first_reply(near, far, REPLY_LIMIT, interrupt)?;
            measure::first_reply(far, near, REPLY_LIMIT, interrupt)?;
        }
        outcome.detail = leases.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Ok(())
    })?;
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    report.failure = Some(NodeFailure {
        node: victim,
        gone_after_ms: ms(gone),
        local_after_ms: local.map(ms),
        back_after_ms: ms(back),
        same_lease,
    });
    Ok(())
}

/// Removes what demos have left that were killed in a way which nothing can survive.
fn remove_abandoned(labs: &Labs) -> Result<()> {
    let prefix = format!("{LAB_NAME}-");
    for name in labs.names()?.iter().filter(|name| name.starts_with(&prefix)) {
        if labs.read(name).is_ok_and(|state| state.is_abandoned()) {
            Lab::remove(labs, name)?;
        }
    }
    Ok(())
}

fn node_names(lab: &Lab) -> Vec<&str> {
    lab.nodes().iter().map(|node| node.name.as_str()).collect()
}

fn name_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
