//! What the demo measures, each part on its own.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::admin::api::CountersReport;
use crate::lab::probe::{
    Amount, EchoServer, Ping, PingReport, Transfer, TransferReport, tcp_seen_as,
};
use crate::lab::{Family, Interrupt, Lab, Namespace, Plan, Wait, address_of};

/// How long one throughput measurement takes.
const TRANSFER_TIME: Duration = Duration::from_millis(1500);

/// Pairs that are pinged one after the other; more are shared among several threads, which compete for
/// the processor and lengthen the times.
const QUIET_PAIRS_MAX: usize = 400;

/// How often a node's counters are looked at for a moment of rest.
const LOOKS_MAX: u32 = 50;

/// How long that may take.
const REST_LIMIT: Duration = Duration::from_secs(10);

/// Something that sends and receives: a pod, or a node itself.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) is_pod: bool,
    namespace: Namespace,
    pub(super) addresses: Vec<IpAddr>,
}

impl Endpoint {
    pub(super) fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// A ping from one to the other.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Pair {
    pub(super) source: String,
    pub(super) target: String,
    pub(super) address: IpAddr,
    pub(super) ping: PingReport,
}

/// A connection, as both its ends see it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Seen {
    pub(super) source: String,
    pub(super) target: String,
    /// What the source calls itself.
    pub(super) own: IpAddr,
    /// What the target sees.
    pub(super) seen: IpAddr,
    pub(super) rewritten: bool,
}

/// The speed of one TCP connection.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Speed {
    pub(super) path: &'static str,
    pub(super) source: String,
    pub(super) target: String,
    pub(super) address: IpAddr,
    pub(super) bytes: u64,
    pub(super) bits_per_s: f64,
}

/// The packets of a node.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Account {
    pub(super) node: String,
    pub(super) counters: CountersReport,
}

/// All pods, then all nodes.
///
/// A node's addresses are the one on the underlay, and for the other protocol the first of its lease.
pub(super) fn endpoints(lab: &Lab) -> Result<Vec<Endpoint>> {
    let mut endpoints = Vec::new();
    for (node, pod) in lab.state().pods() {
        endpoints.push(Endpoint {
            name: pod.name.clone(),
            node: node.name.clone(),
            is_pod: true,
            namespace: lab.namespace(&pod.name)?,
            addresses: pod.addresses.clone(),
        });
    }
    for node in lab.nodes() {
        let mut addresses = vec![node.underlay];
        for lease in lab.admin(&node.name)?.status()?.leases {
            if lease.is_ipv4() != node.underlay.is_ipv4() {
                addresses.extend(lease.iter().nth(1));
            }
        }
        endpoints.push(Endpoint {
            name: node.name.clone(),
            node: node.name.clone(),
            is_pod: false,
            namespace: lab.namespace(&node.name)?,
            addresses,
        });
    }
    Ok(endpoints)
}

/// The protocols that pods have addresses of.
pub(super) fn families(endpoints: &[Endpoint]) -> Vec<Family> {
    let has = |family: &Family| {
        let mut pods = endpoints.iter().filter(|endpoint| endpoint.is_pod);
        pods.any(|pod| address_of(&pod.addresses, *family).is_some())
    };
    Family::ALL.into_iter().filter(has).collect()
}

/// Pings every ordered pair of which at least one is a pod.
pub(super) fn ping_all(
    endpoints: &[Endpoint],
    family: Family,
    interrupt: &Interrupt,
) -> Result<Vec<Pair>> {
    let pairs: Vec<_> = pairs(endpoints, family).collect();
    let threads = if pairs.len() <= QUIET_PAIRS_MAX { 1 } else { 8 };
    let chunks = pairs.chunks(pairs.len().div_ceil(threads).max(1));
    std::thread::scope(|scope| {
        let ping = |chunk: &[(&Endpoint, &Endpoint, IpAddr)]| -> Result<Vec<Pair>> {
            chunk
                .iter()
                .map(|(source, target, address)| {
                    interrupt.check()?;
                    ping_one(source, &target.name, *address)
                })
                .collect()
        };
        let running: Vec<_> = chunks.map(|chunk| scope.spawn(move || ping(chunk))).collect();
        let mut results = Vec::new();
        for thread in running {
            let done = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            results.extend(done?);
        }
        Ok(results)
    })
}

fn ping_one(source: &Endpoint, target: &str, address: IpAddr) -> Result<Pair> {
    let ping = Ping { interval: Duration::from_millis(2), ..Ping::new(address) };
    let report = ping
        .run(&source.namespace)
        .with_context(|| format!("pinging {address} from {}", source.name))?;
    Ok(Pair { source: source.name.clone(), target: target.to_owned(), address, ping: report })
}

/// Connects over TCP between every ordered pair, and has the target tell whom it sees.
pub(super) fn see_all(
    endpoints: &[Endpoint],
    family: Family,
    interrupt: &Interrupt,
) -> Result<Vec<Seen>> {
    let mut results = Vec::new();
    for target in endpoints {
        let Some(address) = address_of(&target.addresses, family) else { continue };
        let server = EchoServer::start(&target.namespace, address)
            .with_context(|| format!("listening on {address} in {}", target.name))?;
        let server_address = SocketAddr::new(address, server.port());
        for source in endpoints.iter().filter(|source| is_pair(source, target)) {
            interrupt.check()?;
            let seen = tcp_seen_as(&source.namespace, server_address)
                .with_context(|| format!("connecting from {} to {}", source.name, target.name))?;
            results.push(Seen {
                source: source.name.clone(),
                target: target.name.clone(),
                own: seen.own.ip(),
                seen: seen.seen.ip(),
                rewritten: seen.is_rewritten(),
            });
        }
    }
    Ok(results)
}

/// What a host outside sees of a pod that connects to it.
pub(super) fn seen_by_world(lab: &Lab, pod: &Endpoint, family: Family) -> Result<Seen> {
    let world = Plan::world(family).ip();
    let server = EchoServer::start(&lab.namespace(crate::lab::WORLD)?, world)?;
    let seen = tcp_seen_as(&pod.namespace, SocketAddr::new(world, server.port()))
        .with_context(|| format!("connecting from {} to the world, {world}", pod.name))?;
    Ok(Seen {
        source: pod.name.clone(),
        target: crate::lab::WORLD.to_owned(),
        own: seen.own.ip(),
        seen: seen.seen.ip(),
        rewritten: seen.is_rewritten(),
    })
}

/// One TCP connection at full speed between two pods of the same node, and of different ones.
pub(super) fn speeds(endpoints: &[Endpoint], family: Family) -> Result<Vec<Speed>> {
    let pods = || endpoints.iter().filter(|endpoint| endpoint.is_pod);
    let Some(source) = pods().next() else { return Ok(Vec::new()) };
    let same = pods().find(|pod| pod.node == source.node && pod.name != source.name);
    let cross = pods().find(|pod| pod.node != source.node);
    let mut speeds = Vec::new();
    for (path, target) in [("same node", same), ("cross node", cross)] {
        let Some(target) = target else { continue };
        let Some(address) = address_of(&target.addresses, family) else { continue };
        let transfer = Transfer { amount: Amount::For(TRANSFER_TIME), verify: true };
        let report: TransferReport = transfer
            .run(&source.namespace, &target.namespace, address)
            .with_context(|| format!("sending from {} to {}", source.name, target.name))?;
        speeds.push(Speed {
            path,
            source: source.name.clone(),
            target: target.name.clone(),
            address,
            bytes: report.bytes,
            bits_per_s: report.bits_per_s(),
        });
    }
    Ok(speeds)
}

/// How long it takes until a ping from `source` to `target` is answered.
pub(super) fn first_reply(
    source: &Endpoint,
    target: &Endpoint,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Duration> {
    let start = std::time::Instant::now();
    let address = target.addresses.first().copied().context("the target has no address")?;
    let ping = Ping { count: 1, patience: Duration::from_millis(50), ..Ping::new(address) };
    interrupt.wait_for(limit, || {
        Ok(if ping.run(&source.namespace)?.is_ok() {
            Wait::Done(())
        } else {
            Wait::NotYet(format!("{} does not reach {} ({address})", source.name, target.name))
        })
    })?;
    Ok(start.elapsed())
}

/// The counters of all nodes, each at a moment when no packet is under way, or the last of several looks
/// if there is no such moment: then the account does not close.
pub(super) fn accounts(lab: &Lab, interrupt: &Interrupt) -> Result<Vec<Account>> {
    let mut accounts = Vec::new();
    for node in lab.nodes() {
        let admin = lab.admin(&node.name)?;
        let mut looks = 0;
        let counters = interrupt.wait_for(REST_LIMIT, || {
            let counters = admin.counters()?;
            looks += 1;
            Ok(if counters.queued == 0 || looks == LOOKS_MAX {
                Wait::Done(counters)
            } else {
                Wait::NotYet(format!("{} has {} packets under way", node.name, counters.queued))
            })
        })?;
        accounts.push(Account { node: node.name.clone(), counters });
    }
    Ok(accounts)
}

fn pairs(
    endpoints: &[Endpoint],
    family: Family,
) -> impl Iterator<Item = (&Endpoint, &Endpoint, IpAddr)> {
    endpoints.iter().flat_map(move |source| {
        let targets = endpoints.iter().filter(move |target| is_pair(source, target));
        targets.filter_map(move |target| {
            Some((source, target, address_of(&target.addresses, family)?))
        })
    })
}

fn is_pair(source: &Endpoint, target: &Endpoint) -> bool {
    source.name != target.name && (source.is_pod || target.is_pod)
}
