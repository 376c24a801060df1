//! `weft status`, `nodes`, `pods`, `counters`, `port`: one question to the daemon, one table.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;

use anyhow::{Result, bail};
use conf::source::manifests::Counts;
use overlay::path::probe::PathState;
use overlay::seal::KeyId;
use serde::Serialize;
use vswitch::verdict::Reason;

use super::args::{Format, PodsArgs, PortArgs, PortCommand, TargetArgs, ViewArgs};
use super::table::Table;
use crate::admin::api::{
    CountersReport, ExceptionStatus, FallbackCount, HostPortStatus, KernelDropped, LeaseStatus,
    LeasesReport, MapPod, NodeStatus, PathStatus, PodStatus, PortRequest, ProblemTopic, Status,
};
use crate::admin::capability::{Capability, Place};
use crate::lab::{self, Admin, Labs};

pub(super) fn status(arguments: &ViewArgs, out: &mut impl Write) -> Result<()> {
    let status = target(&arguments.target)?.status()?;
    print(&status, arguments.output.output, out, |out| print_status(&status, out))
}

pub(super) fn nodes(arguments: &ViewArgs, out: &mut impl Write) -> Result<()> {
    let nodes = target(&arguments.target)?.nodes()?;
    print(&nodes, arguments.output.output, out, |out| write!(out, "{}", nodes_table(&nodes)))
}

pub(super) fn pods(arguments: &PodsArgs, out: &mut impl Write) -> Result<()> {
    let PodsArgs { on, namespace, local, target: asked, output } = arguments;
    let in_namespace = |found: &Option<String>| namespace.is_none() || found == namespace;
    let admin = target(asked)?;
    if *local {
        let mut pods = admin.pods()?;
        pods.retain(|pod| in_namespace(&pod.namespace));
        return print(&pods, output.output, out, |out| write!(out, "{}", pods_table(&pods)));
    }
    let mut pods = admin.map_pods()?;
    if let Some(on) = on {
        let nodes = admin.nodes()?;
        if !nodes.iter().any(|node| node.name == *on) {
            let names: Vec<_> = nodes.into_iter().map(|node| node.name).collect();
            bail!("there is no node {on:?}: the map has {}", names.join(", "));
        }
        pods.retain(|pod| pod.node.as_ref() == Some(on));
    }
    pods.retain(|pod| in_namespace(&pod.namespace));
    print(&pods, output.output, out, |out| write!(out, "{}", map_pods_table(&pods)))
}

pub(super) fn counters(arguments: &ViewArgs, out: &mut impl Write) -> Result<()> {
    let counters = target(&arguments.target)?.counters()?;
    print(&counters, arguments.output.output, out, |out| print_counters(&counters, out))
}

pub(super) fn port(arguments: &PortArgs, out: &mut impl Write) -> Result<()> {
    let admin = target(&arguments.target)?;
    match &arguments.command {
        PortCommand::Add { device, mac, output } => {
            let port = admin.add_port(&PortRequest { device: device.clone(), mac: *mac })?;
            print(&port, output.output, out, |out| {
                writeln!(out, "{device} is a port. Configure behind it:")?;
                for address in &port.addresses {
                    writeln!(
                        out,
                        "  address  {address}/{}",
                        if address.is_ipv4() { 32 } else { 128 }
                    )?;
                }
                for gateway in &port.gateways {
                    writeln!(out, "  gateway  {gateway} (on link)")?;
                }
                writeln!(out, "  mtu      {}", port.mtu)
            })
        }
        PortCommand::Remove { device } => {
            admin.remove_port(device)?;
            writeln!(out, "{device} is no port any more")?;
            Ok(())
        }
    }
}

pub(super) fn leases(arguments: &ViewArgs, out: &mut impl Write) -> Result<()> {
    let leases = target(&arguments.target)?.leases()?;
    print(&leases, arguments.output.output, out, |out| print_leases(&leases, out))
}

/// Writes `value` as JSON, or as `table` does.
pub(super) fn print<W: Write>(
    value: &impl Serialize,
    format: Format,
    out: &mut W,
    table: impl FnOnce(&mut W) -> io::Result<()>,
) -> Result<()> {
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, value)?;
            writeln!(out)?;
        }
        Format::Table => table(out)?,
    }
    Ok(())
}

/// The daemon that the user has named.
pub(super) fn target(arguments: &TargetArgs) -> Result<Admin> {
    let Some(node) = &arguments.node else { return Ok(Admin::new(&arguments.socket)) };
    let labs = Labs::of_user();
    let name = arguments.lab.as_deref().unwrap_or("lab");
    labs.read(name)?.node(node)?;
    Ok(Admin::new(lab::socket(&labs.dir(name), node)))
}

fn print_status(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let mut line = |name: &str, value: String| writeln!(out, "{name:<11}{value}");
    line("node", format!("{} ({})", status.name, status.node_id))?;
    line("network", status.network.clone())?;
    line("ready", if status.ready { "yes" } else { "NO" }.to_owned())?;
    line("lease", format!("{} ({})", join(&status.leases), status.lease_state.name()))?;
    for (ix, pool) in status.addresses.iter().enumerate() {
        let name = if ix == 0 { "addresses" } else { "" };
        let free = match pool.free {
            // An IPv6 lease: nobody reads twenty digits, and nobody runs out.
            free if free > 1 << 32 => "plenty".to_owned(),
            free => free.to_string(),
        };
        line(name, format!("{}: {} used, {free} free", pool.prefix, pool.used))?;
    }
    let underlay = status.underlay.map_or_else(|| "not known yet".to_owned(), |ip| ip.to_string());
    line("underlay", format!("{underlay}, mtu {}", or_dash(status.underlay_mtu)))?;
    line("pods", format!("{}, mtu {}", status.pods, or_dash(status.pod_mtu)))?;
    let Counts { accepted, refused, ignored, .. } = status.objects;
    line("objects", format!("{accepted} accepted, {refused} refused, {ignored} ignored"))?;
    if let Some(api) = &status.api_server {
        let state = match (api.stale_s, api.synced) {
            (Some(stale_s), _) if api.remembered => {
                format!("STALE for {}, as known before the start", duration(stale_s))
            }
            (None, true) => "up to date".to_owned(),
            (None, false) => "being read".to_owned(),
            (Some(stale_s), true) => format!("STALE for {}", duration(stale_s)),
            (Some(stale_s), false) => format!("UNKNOWN for {}", duration(stale_s)),
        };
        line("api server", format!("{}, {state}", api.server))?;
    }
    line("nodes", format!("{} alive, map version {}", status.nodes_alive, status.map_generation))?;
    line("seal", seal(status))?;
    line("vtep", status.vtep_mac.to_string())?;
    line("uptime", duration(status.uptime_s))?;
    line("version", status.version.clone())?;
    let (on, off): (Vec<_>, Vec<_>) = status.capabilities.iter().partition(|found| found.on);
    match (on.len(), off.len()) {
        (0, 0) => {}
        (_, 0) => line("kernel", "all that it offers is in use".to_owned())?,
        (on, off) => line("kernel", format!("{on} of {} features in use", on + off))?,
    }
    if !off.is_empty() {
        write!(out, "\n{}", off_table(&off))?;
    }
    if !status.problems.is_empty() {
        let mut table = Table::new(["PROBLEM", ""]);
        for problem in &status.problems {
            table.row([topic_name(problem.topic).to_owned(), problem.text.clone()]);
        }
        write!(out, "\n{table}")?;
    }
    Ok(())
}

/// The capabilities that are off. Those of ports that are off for one reason take one row.
fn off_table(off: &[&Capability]) -> Table {
    let mut rows: BTreeMap<_, Vec<&Capability>> = BTreeMap::new();
    for capability in off {
        let Capability { at, name, reason, .. } = capability;
        rows.entry((at, name, reason)).or_default().push(capability);
    }
    let mut table = Table::new(["OFF", "AT", "SINCE", "NEXT TRY", "WHY, AND WHAT TO DO"]);
    for ((at, name, reason), alike) in rows {
        let at = match (&alike[..], alike[0].port.as_ref()) {
            ([_], Some(port)) => port.clone(),
            (many, Some(_)) => format!("{} ports", many.len()),
            (_, None) => at.as_str().to_owned(),
        };
        let since = alike.iter().map(|capability| capability.since_s).max().unwrap_or(0);
        let next = match alike.iter().filter_map(|capability| capability.next_try_s).min() {
            Some(0) => "now".to_owned(),
            Some(seconds) => format!("in {}", duration(seconds)),
            None => "-".to_owned(),
        };
        let remedy = alike[0].remedy.as_deref().unwrap_or_default();
        let text = format!("{}: {remedy}", reason.as_deref().unwrap_or_default());
        table.row([name.to_string(), at, duration(since), next, text]);
    }
    table
}

/// How the gossip is protected.
fn seal(status: &Status) -> String {
    match (&status.keys[..], status.insecure) {
        (_, true) => "NONE: insecure = true".to_owned(),
        ([], false) => "not known yet".to_owned(),
        ([used], false) => format!("key {used}"),
        ([used, others @ ..], false) => {
            format!("key {used} in use, also accepted: {}", join(others))
        }
    }
}

fn topic_name(topic: ProblemTopic) -> &'static str {
    match topic {
        ProblemTopic::Underlay => "underlay",
        ProblemTopic::Tunnel => "tunnel",
        ProblemTopic::Gossip => "gossip",
        ProblemTopic::Storage => "storage",
        ProblemTopic::Lease => "lease",
        ProblemTopic::Host => "host",
        ProblemTopic::Masquerade => "masquerade",
        ProblemTopic::Sysctl => "sysctl",
        ProblemTopic::Pod => "pod",
        ProblemTopic::Tables => "tables",
        ProblemTopic::Conflict => "conflict",
        ProblemTopic::Objects => "objects",
        ProblemTopic::Kubernetes => "kubernetes",
        ProblemTopic::Path => "path",
        ProblemTopic::Data => "data",
        ProblemTopic::Dns => "dns",
        ProblemTopic::Keys => "keys",
        ProblemTopic::Addresses => "addresses",
    }
}

/// As many digits as tell a cluster's keys apart at a glance.
fn short_key(key: &KeyId) -> String {
    key.to_string().chars().take(8).collect()
}

pub(super) fn nodes_table(nodes: &[NodeStatus]) -> Table {
    let heading = [
        "NODE", "STATE", "SINCE", "DATA", "RTT", "LOSS", "MTU", "LEASE", "UNDERLAY", "VERSION",
        "KEY",
    ];
    let mut table = Table::new(heading).right(4..7);
    for node in nodes {
        let mark = if node.this_node { "*" } else { "" };
        let path = node.path.as_ref();
        let mut leases = node.leases.iter().map(ToString::to_string);
        table.row([
            format!("{}{mark}", node.name),
            node.state.name().to_owned(),
            short_duration(node.since_s),
            path.map_or("", data_state).to_owned(),
            path.and_then(|path| path.rtt_us).map_or_else(String::new, rtt),
            path.and_then(|path| path.loss).map_or_else(String::new, percent),
            path.map_or_else(|| node.underlay_mtu.to_string(), width),
            leases.next().unwrap_or_default(),
            node.underlay.to_string(),
            node.software.strip_prefix("weft/").unwrap_or(&node.software).to_owned(),
            node.keys.first().map_or_else(|| "NONE".to_owned(), short_key),
        ]);
        // One lease each line: two would not fit beside the rest.
        for lease in leases {
            table.below(7, lease);
        }
    }
    table
}

/// What people call it: a path that is narrow is up, too.
fn data_state(path: &PathStatus) -> &'static str {
    match path.state {
        PathState::Untested => "untested",
        PathState::Up if path.mtu < path.mtu_max => "narrow",
        PathState::Up => "ok",
        PathState::Down => "dead",
    }
}

fn rtt(us: u64) -> String {
    match us {
        0..1000 => format!("{us} us"),
        1000..100_000 => format!("{}.{} ms", us / 1000, us / 100 % 10),
        _ => format!("{} ms", us / 1000),
    }
}

fn percent(share: f32) -> String {
    format!("{:.0}%", share * 100.0)
}

/// What the path carries, and what both ends would.
fn width(path: &PathStatus) -> String {
    if path.mtu < path.mtu_max {
        format!("{}/{}", path.mtu, path.mtu_max)
    } else {
        path.mtu.to_string()
    }
}

fn print_leases(report: &LeasesReport, out: &mut impl Write) -> io::Result<()> {
    let mut table = Table::new(["LEASE", "NODE", "STATE", "EPOCH", "NOTE"]).right([3]);
    for lease in &report.leases {
        let mark = if lease.this_node { "*" } else { "" };
        table.row([
            lease.prefix.to_string(),
            format!("{}{mark}", lease.node),
            lease.state.name().to_owned(),
            lease.epoch.to_string(),
            lease_note(lease),
        ]);
    }
    write!(out, "{table}")?;
    if !report.exceptions.is_empty() {
        let mut table = Table::new(["EXCEPTION", "NODE", "SUBNET NOW", ""]);
        for exception in &report.exceptions {
            let ExceptionStatus { address, node, leads_there, holder, .. } = exception;
            let note = if *leads_there {
                "the pod keeps it until it ends"
            } else {
                "cut off: delete the pod, so that it comes back with another"
            };
            let holder = holder.clone().unwrap_or_else(|| "nobody".to_owned());
            table.row([address.to_string(), node.clone(), holder, note.to_owned()]);
        }
        write!(out, "\n{table}")?;
    }
    if !report.reserved.is_empty() {
        writeln!(out, "\nRESERVED (by this node's configuration)\n{}", join(&report.reserved))?;
    }
    if !report.conflicts.is_empty() {
        let mut table = Table::new(["CONFLICT, AND WHAT IS BEING DONE"]);
        for conflict in &report.conflicts {
            table.row([conflict.text.clone()]);
        }
        write!(out, "\n{table}")?;
    }
    Ok(())
}

fn lease_note(lease: &LeaseStatus) -> String {
    let fixed = lease.fixed.then(|| "fixed".to_owned());
    let winner = lease.winner.as_ref().map(|winner| format!("{winner} keeps it"));
    let free = lease.free_in_s.map(|seconds| {
        let state = lease.node_state.name();
        match seconds {
            0 => format!("{state}; free for anybody"),
            seconds => format!("{state}; kept for {}", duration(seconds)),
        }
    });
    let notes: Vec<_> = [fixed, winner, free].into_iter().flatten().collect();
    join(&notes)
}

fn map_pods_table(pods: &[MapPod]) -> Table {
    let mut table = Table::new(["NAMESPACE", "POD", "ADDRESSES", "NODE", "AGE"]);
    for pod in pods {
        let dash = || "-".to_owned();
        table.row([
            pod.namespace.clone().unwrap_or_else(dash),
            pod.name.clone(),
            join(&pod.addresses),
            pod.node.clone().unwrap_or_else(dash),
            duration(pod.age_s),
        ]);
    }
    table
}

fn pods_table(pods: &[PodStatus]) -> Table {
    let heading = [
        "POD",
        "INTERFACE",
        "ADDRESSES",
        "MAC",
        "MTU",
        "SENT",
        "RECEIVED",
        "DROPPED",
        "HOST PORTS",
    ];
    let mut table = Table::new(heading).right(4..8);
    for pod in pods {
        let name = pod.title();
        let detached = if pod.port.is_none() { " (detached)" } else { "" };
        table.row([
            format!("{name}{detached}"),
            pod.ifname.clone(),
            join(&pod.addresses),
            pod.mac.to_string(),
            pod.mtu.to_string(),
            pod.traffic.received.to_string(),
            pod.traffic.delivered.to_string(),
            pod.traffic.dropped.to_string(),
            join(&pod.host_ports.iter().map(host_port).collect::<Vec<_>>()),
        ]);
    }
    table
}

/// Such as `192.0.2.1:8080->80/TCP`.
fn host_port(port: &HostPortStatus) -> String {
    let HostPortStatus { protocol, host_ip, host_port, container_port, problem } = port;
    let from = match host_ip {
        Some(ip) => SocketAddr::new(*ip, *host_port).to_string(),
        None => host_port.to_string(),
    };
    let problem = problem.as_ref().map(|why| format!(" (NOT SERVED: {why})")).unwrap_or_default();
    format!("{from}->{container_port}/{protocol}{problem}")
}

fn print_counters(counters: &CountersReport, out: &mut impl Write) -> io::Result<()> {
    let dropped: u64 = counters.dropped.values().sum();
    let mut table = Table::new(["PACKETS", "", ""]).right([1]);
    let mut row = |name: &str, value: u64, meaning: &str| {
        table.row([name.to_owned(), value.to_string(), meaning.to_owned()]);
    };
    row("received", counters.received, "came in through a port or the tunnel");
    row("originated", counters.originated, "made by the switch: replies, ICMP errors, fragments");
    row("delivered", counters.delivered, "taken by a port or the underlay");
    row("answered", counters.answered, "asked of the switch itself");
    row("dropped", dropped, "refused or lost, by reason below");
    table.row([
        "queued".to_owned(),
        counters.queued.to_string(),
        "received + originated - delivered - answered - dropped".to_owned(),
    ]);
    write!(out, "{table}")?;
    if !counters.dropped.is_empty() {
        let mut table = Table::new(["DROPPED", "", ""]).right([1]);
        for (name, count) in &counters.dropped {
            let reason = Reason::ALL.iter().find(|reason| reason.as_str() == name);
            let meaning = reason.map_or("", |reason| reason.describe());
            table.row([name.clone(), count.to_string(), meaning.to_owned()]);
        }
        write!(out, "\n{table}")?;
    }
    let KernelDropped { tunnel, host, ports } = counters.kernel_dropped;
    if tunnel + host + ports > 0 {
        let mut table = Table::new(["DROPPED BY THE KERNEL", "", ""]).right([1]);
        for (at, count, meaning) in [
            (
                Place::Tunnel,
                tunnel,
                "before the tunnel: the switch read too slowly for its receive buffer",
            ),
            (
                Place::Host,
                host,
                "from the node itself: its interface's queue to the switch was full",
            ),
            (
                Place::Port,
                ports,
                "from pods: the queues of their interfaces to the switch were full",
            ),
        ] {
            if count > 0 {
                table.row([at.as_str().to_owned(), count.to_string(), meaning.to_owned()]);
            }
        }
        write!(out, "\n{table}")?;
    }
    if counters.fallbacks.iter().any(|fallback| fallback.count > 0) {
        let mut table = Table::new(["FALLBACK", "AT", "TIMES"]).right([2]);
        for fallback in counters.fallbacks.iter().filter(|fallback| fallback.count > 0) {
            let FallbackCount { name, at, count } = fallback;
            table.row([name.to_string(), at.as_str().to_owned(), count.to_string()]);
        }
        write!(out, "\n{table}")?;
    }
    if !counters.offenders.is_empty() {
        let mut table = Table::new(["REFUSED SENDER", "REASON", "REPORTS"]).right([2]);
        for offender in &counters.offenders {
            let count = offender.reports.to_string();
            table.row([offender.address.to_string(), offender.reason.clone(), count]);
        }
        write!(out, "\n{table}")?;
    }
    if !counters.gossip_refused.is_empty() {
        let mut table = Table::new(["GOSSIP REFUSED", ""]).right([1]);
        for (reason, count) in &counters.gossip_refused {
            table.row([reason.clone(), count.to_string()]);
        }
        write!(out, "\n{table}")?;
    }
    Ok(())
}

/// Joins as people write lists.
pub(super) fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn or_dash(value: Option<u16>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// For columns: two units at most, without spaces.
pub(super) fn short_duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{:02}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes:02}m"),
        (days, hours, _) => format!("{days}d{hours:02}h"),
    }
}

pub(super) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use crate::admin::api::{ConflictStatus, LeaseHolding};
    use overlay::subnet::MemberState;
    use vswitch::mac::Mac;

    use super::*;
    use crate::admin::api::{LeasePhase, PoolStatus, ProbesReport, Problem};
    use crate::admin::capability::CapabilityName;

    #[test]
    fn a_status_ends_with_the_problems() {
        let on = Capability {
            name: CapabilityName::UdpGro,
            at: Place::Tunnel,
            port: None,
            on: true,
            value: None,
            reason: None,
            remedy: None,
            since_s: 61,
            next_try_s: None,
        };
        let off = |name, at, port: Option<&str>, next_try_s| Capability {
            name,
            at,
            port: port.map(str::to_owned),
            on: false,
            reason: Some("refused".to_owned()),
            remedy: Some("do this".to_owned()),
            next_try_s,
            ..on.clone()
        };
        let pool =
            |prefix: &str, used, free| PoolStatus { prefix: prefix.parse().unwrap(), used, free };
        let (v4, v6) = ("10.244.1.0/24", "fd00:10:244:1::/64");
        let mut status = Status {
            version: "0.1.0".to_owned(),
            network: "prod".to_owned(),
            name: "host1".to_owned(),
            node_id: "00ff".to_owned(),
            underlay: Some([192, 168, 10, 11].into()),
            underlay_mtu: Some(1500),
            pod_mtu: Some(1450),
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            leases: vec![v4.parse().unwrap(), v6.parse().unwrap()],
            lease_state: LeasePhase::Held,
            addresses: vec![pool(v4, 2, 251), pool(v6, 2, u64::MAX)],
            insecure: false,
            keys: vec![KeyId([1; 8]), KeyId([2; 8])],
            nodes_alive: 3,
            map_generation: 7,
            tables_generation: 9,
            pods: 2,
            objects: Counts { files: 1, accepted: 3, refused: 1, ignored: 0 },
            api_server: None,
            uptime_s: 61,
            ready: true,
            problems: vec![Problem {
                topic: ProblemTopic::Masquerade,
                text: "`nft` is not there".to_owned(),
            }],
            capabilities: vec![
                on.clone(),
                off(CapabilityName::TapUso, Place::Port, Some("a/web"), None),
                off(CapabilityName::TapUso, Place::Port, Some("a/db"), None),
                off(CapabilityName::GsoWrite, Place::Port, Some("a/db"), Some(0)),
                off(CapabilityName::UdpGso, Place::Tunnel, None, Some(20)),
            ],
        };
        let print = |status: &Status| {
            let mut text = Vec::new();
            print_status(status, &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        assert_eq!(
            print(&status),
            "\
node       host1 (00ff)
network    prod
ready      yes
lease      10.244.1.0/24, fd00:10:244:1::/64 (held)
addresses  10.244.1.0/24: 2 used, 251 free
           fd00:10:244:1::/64: 2 used, plenty free
underlay   192.168.10.11, mtu 1500
pods       2, mtu 1450
objects    3 accepted, 1 refused, 0 ignored
nodes      3 alive, map version 7
seal       key 0101010101010101 in use, also accepted: 0202020202020202
vtep       02:00:00:00:00:01
uptime     1 min 1 s
version    0.1.0
kernel     1 of 5 features in use

OFF        AT       SINCE      NEXT TRY  WHY, AND WHAT TO DO
udp_gso    tunnel   1 min 1 s  in 20 s   refused: do this
tap_uso    2 ports  1 min 1 s  -         refused: do this
gso_write  a/db     1 min 1 s  now       refused: do this

PROBLEM
masquerade  `nft` is not there
"
        );
        status.capabilities.truncate(1);
        let text = print(&status);
        assert!(
            text.contains("version    0.1.0\nkernel     all that it offers is in use\n\nPROBLEM\n")
        );
        status.capabilities.clear();
        assert!(!print(&status).contains("kernel"), "nothing is open yet");
    }

    #[test]
    fn a_device_of_the_host_is_called_by_its_name() {
        let device = PodStatus {
            namespace: None,
            name: None,
            container_id: "host-device".to_owned(),
            ifname: "vnet0".to_owned(),
            netns: None,
            mac: Mac([2, 0, 0, 0, 0, 9]),
            addresses: Vec::new(),
            gateways: Vec::new(),
            mtu: 1450,
            port: Some(3),
            traffic: vswitch::counters::PortTotals::default(),
            kernel_dropped: 0,
            host_ports: Vec::new(),
        };
        let container = PodStatus {
            container_id: "0123456789abcdef0123".to_owned(),
            ifname: "eth0".to_owned(),
            netns: Some("/run/netns/x".to_owned()),
            host_ports: vec![HostPortStatus {
                protocol: conf::cluster::Protocol::Udp,
                host_ip: Some([192, 0, 2, 1].into()),
                host_port: 53,
                container_port: 5353,
                problem: None,
            }],
            ..device.clone()
        };
        let text = pods_table(&[device, container]).to_string();
        let names: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(names, ["POD", "vnet0", "0123456789abcdef"]);
        assert!(text.ends_with("  192.0.2.1:53->5353/UDP\n"), "{text}");
    }

    #[test]
    fn nodes_fit_a_terminal_and_say_what_passes() {
        let node = NodeStatus {
            name: "rack-7-host-12".to_owned(),
            node_id: "00ff".to_owned(),
            state: MemberState::Alive,
            this_node: true,
            underlay: [192, 168, 110, 111].into(),
            underlay_mtu: 1500,
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            leases: ["10.244.112.0/24", "fd00:10:244:70::/64"].map(|l| l.parse().unwrap()).to_vec(),
            version: 1,
            since_s: 90_061,
            software: "weft/0.1.0".to_owned(),
            keys: vec![KeyId([0x5f; 8]), KeyId([1; 8])],
            path: None,
        };
        let path = |state, mtu| {
            Some(PathStatus {
                state,
                since_s: 7,
                rtt_us: Some(12_345),
                loss: Some(0.034),
                mtu,
                mtu_max: 1500,
                pod_mtu: mtu - 50,
                pod_mtu_back: None,
            })
        };
        let other = |name: &str, path| NodeStatus {
            name: name.to_owned(),
            this_node: false,
            leases: node.leases[..1].to_vec(),
            path,
            ..node.clone()
        };
        let nodes = [
            node.clone(),
            other("b", path(PathState::Up, 1500)),
            other("c", path(PathState::Up, 1400)),
            NodeStatus {
                software: String::new(),
                keys: vec![],
                ..other("d", path(PathState::Down, 1500))
            },
        ];
        let text = nodes_table(&nodes).to_string();
        assert_eq!(
            text,
            "\
NODE             STATE  SINCE  DATA        RTT  LOSS        MTU  LEASE                UNDERLAY         VERSION  KEY
rack-7-host-12*  alive  1d01h  -             -     -       1500  10.244.112.0/24      192.168.110.111  0.1.0    5f5f5f5f
                                                                 fd00:10:244:70::/64
b                alive  1d01h  ok      12.3 ms    3%       1500  10.244.112.0/24      192.168.110.111  0.1.0    5f5f5f5f
c                alive  1d01h  narrow  12.3 ms    3%  1400/1500  10.244.112.0/24      192.168.110.111  0.1.0    5f5f5f5f
d                alive  1d01h  dead    12.3 ms    3%       1500  10.244.112.0/24      192.168.110.111  -        NONE
"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 120));
        assert_eq!((rtt(310), rtt(250_000)), ("310 us".to_owned(), "250 ms".to_owned()));
    }

    #[test]
    fn leases_say_who_keeps_what_and_for_how_long() {
        let held = LeaseStatus {
            prefix: "10.244.1.0/24".parse().unwrap(),
            node: "a".to_owned(),
            node_id: "00ff".to_owned(),
            this_node: true,
            node_state: MemberState::Alive,
            state: LeaseHolding::Held,
            fixed: true,
            epoch: 12,
            winner: None,
            free_in_s: None,
        };
        let losing = LeaseStatus {
            node: "b".to_owned(),
            this_node: false,
            state: LeaseHolding::Losing,
            fixed: false,
            epoch: 3,
            winner: Some("a".to_owned()),
            ..held.clone()
        };
        let reserved = LeaseStatus {
            prefix: "10.244.9.0/24".parse().unwrap(),
            node: "c".to_owned(),
            state: LeaseHolding::Reserved,
            node_state: MemberState::Dead,
            winner: None,
            free_in_s: Some(3_600 * 23),
            ..losing.clone()
        };
        let mut report = LeasesReport {
            ranges: vec!["10.244.0.0/16".parse().unwrap()],
            reserved: vec!["10.244.0.0/24".parse().unwrap()],
            exceptions: vec![ExceptionStatus {
                address: [10, 244, 7, 2].into(),
                node: "b".to_owned(),
                node_id: "00ff".to_owned(),
                leads_there: true,
                holder: None,
            }],
            leases: vec![held, losing, reserved],
            conflicts: vec![ConflictStatus { text: "subnet x is held by a and by b".to_owned() }],
        };
        let print = |report: &LeasesReport| {
            let mut text = Vec::new();
            print_leases(report, &mut text).unwrap();
            String::from_utf8(text).unwrap()
        };
        assert_eq!(
            print(&report),
            "\
LEASE          NODE  STATE     EPOCH  NOTE
10.244.1.0/24  a*    held         12  fixed
10.244.1.0/24  b     losing        3  a keeps it
10.244.9.0/24  c     reserved      3  dead; kept for 23 h 0 min

EXCEPTION   NODE  SUBNET NOW
10.244.7.2  b     nobody      the pod keeps it until it ends

RESERVED (by this node's configuration)
10.244.0.0/24

CONFLICT, AND WHAT IS BEING DONE
subnet x is held by a and by b
"
        );
        report.reserved.clear();
        report.exceptions.clear();
        report.conflicts.clear();
        assert_eq!(print(&report).lines().count(), 4);
    }

    #[test]
    fn the_pods_of_all_nodes_are_listed_with_where_they_are() {
        let web = MapPod {
            namespace: Some("default".to_owned()),
            name: "web-0".to_owned(),
            uid: None,
            addresses: vec!["10.244.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            labels: BTreeMap::new(),
            host_network: false,
            node: Some("host1".to_owned()),
            node_id: "00ff".to_owned(),
            age_s: 61,
        };
        let tap = MapPod { namespace: None, name: "vnet0".to_owned(), node: None, ..web.clone() };
        assert_eq!(
            map_pods_table(&[tap, web]).to_string(),
            "\
NAMESPACE  POD    ADDRESSES            NODE   AGE
-          vnet0  10.244.1.2, fd00::2  -      1 min 1 s
default    web-0  10.244.1.2, fd00::2  host1  1 min 1 s
"
        );
    }

    #[test]
    fn durations_have_two_units_at_most() {
        assert_eq!(short_duration(59), "59s");
        assert_eq!(short_duration(61), "1m01s");
        assert_eq!(short_duration(7260), "2h01m");
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(61), "1 min 1 s");
        assert_eq!(duration(7260), "2 h 1 min");
        assert_eq!(duration(90_000), "1 d 1 h");
    }

    #[test]
    fn counters_show_the_law_and_explain_each_drop() {
        let counters = CountersReport {
            received: 10,
            originated: 1,
            delivered: 7,
            answered: 1,
            queued: 0,
            received_bytes: 0,
            delivered_bytes: 0,
            dropped: [("spoofed".to_owned(), 3)].into(),
            offenders: Vec::new(),
            gossip_refused: [].into(),
            kernel_dropped: KernelDropped { tunnel: 5, ..KernelDropped::default() },
            probes: ProbesReport::default(),
            fallbacks: [(Place::Host, 0), (Place::Port, 4)]
                .map(|(at, count)| FallbackCount { name: CapabilityName::GsoWrite, at, count })
                .to_vec(),
        };
        let mut text = Vec::new();
        print_counters(&counters, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\ndropped      3  refused"), "{text}");
        assert!(text.contains("spoofed  3  A pod sent from"), "{text}");
        assert!(
            text.contains("\nDROPPED BY THE KERNEL\ntunnel                 5  before"),
            "{text}"
        );
        assert!(text.contains("\nFALLBACK   AT    TIMES\ngso_write  port      4\n"), "{text}");
    }
}
