//! How the gossip behaves at size: the shipped code, in virtual time, with many nodes in one process.
//!
//! ```text
//! cargo run --release --example gossip_scale                     100, 300 and 1000 nodes
//! cargo run --release --example gossip_scale -- 1000:30 5000:0   nodes:pods per node
//! ```
//!
//! Printed is a table, as Markdown. Times are those until each single node knows: the median, the 99th
//! percentile and the last of all nodes, over several changes. Bytes are of UDP payload, sent, on average
//! over all nodes, and of the node that sends most. The network delays each datagram by 0.2 to 2 ms and
//! loses one in a hundred.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use overlay::gossip::sim::Network;
use overlay::pods::{LocalPod, Pod};
use overlay::subnet::MemberState;

/// How often nodes are looked at while something spreads.
const LOOK: Duration = Duration::from_millis(10);

/// How many changes of each kind are measured.
const CHANGES: usize = 5;

/// How long rest and churn are measured.
const MEASURED: Duration = Duration::from_secs(30);

/// How many nodes are started per second of virtual time.
const STARTS_PER_S: usize = 50;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<(usize, usize)> = match arguments.is_empty() {
        true => vec![(100, 30), (300, 30), (1000, 30)],
        false => arguments.iter().map(|text| parse(text)).collect(),
    };
    println!(
        "| nodes | pods | pod known | node joined | node left | node died | newcomer knows all | at rest | \
         with churn | memory per node | took |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (nodes, pods) in wanted {
        let began = Instant::now();
        let row = measure(nodes, pods);
        println!("| {nodes} | {} | {row} | {:.0} s |", nodes * pods, began.elapsed().as_secs_f64());
    }
}

fn parse(text: &str) -> (usize, usize) {
    let parts = text.split_once(':').and_then(|(nodes, pods)| {
        Some((nodes.parse().ok()?, pods.parse().ok().filter(|pods| *pods <= 250)?))
    });
    let Some(parts) = parts else {
        eprintln!("{text} is not NODES:PODS, with at most 250 pods per node");
        std::process::exit(2);
    };
    parts
}

fn measure(nodes: usize, pods: usize) -> String {
    let before = resident();
    let mut network = Network::new(1);
    network.config.lease.ranges = vec!["10.0.0.0/8".parse().unwrap()];
    network.config.nodes_max = nodes + 100;
    network.faults.loss = 0.01;
    say("starting");
    for ix in 0..nodes {
        network.add_node();
        if ix % STARTS_PER_S == STARTS_PER_S - 1 {
            network.run_for(Duration::from_secs(1));
        }
    }
    until(&mut network, 300, "all nodes alive with a lease", |network| {
        network.running().all(|ix| {
            !network.held(ix).is_empty()
                && network
                    .map(ix)
                    .is_some_and(|map| map.peers(network.id(ix), 1500).len() == nodes - 1)
        })
    });
    for ix in 0..nodes {
        set_pods(&mut network, ix, pods, 0);
    }
    let total = nodes * pods;
    until(&mut network, 300, "all pods known", |network| {
        network.running().all(|ix| network.pods(ix).unwrap().len() == total)
    });
    // What was said at the start is said no more.
    network.run_for(Duration::from_secs(60));
    say("at rest");
    let rest = rate(&mut network, |network| network.run_for(MEASURED));
    let memory = (resident() - before) / nodes as u64;

    say("pod changes");
    let mut known = Vec::new();
    for change in 0..CHANGES {
        let ix = change * 7919 % nodes;
        set_pods(&mut network, ix, pods, 1 + change);
        let name = format!("web-{ix}-{}", pods.max(1) + 1 + change);
        spread(&mut network, ix, &mut known, |network, other| {
            network.pods(other).unwrap().by_name("default", &name).next().is_some()
        });
    }
    say("joins");
    let (mut joined, mut learned) = (Vec::new(), Vec::new());
    for _ in 0..CHANGES {
        let began = network.elapsed();
        let ix = network.add_node();
        // Its own claim takes time by design; measured is how its result spreads.
        let held = |network: &Network| !network.held(ix).is_empty();
        assert!(network.run_until(Duration::from_secs(30), held));
        let id = network.id(ix);
        spread(&mut network, ix, &mut joined, |network, other| {
            network
                .map(other)
                .unwrap()
                .members
                .get(&id)
                .is_some_and(|m| m.routes().next().is_some())
        });
        let total = network.pods(0).unwrap().len();
        let all = |network: &Network| network.pods(ix).unwrap().len() == total;
        assert!(network.run_until(Duration::from_secs(60), all));
        learned.push(network.elapsed() - began);
    }
    say("goodbyes");
    let (mut left, mut died) = (Vec::new(), Vec::new());
    let gone = |network: &Network, other: usize, ix: usize| {
        let member = network.map(other).unwrap().members.get(&network.id(ix));
        member.is_none_or(|member| matches!(member.state, MemberState::Dead | MemberState::Left))
    };
    for change in 0..CHANGES {
        let ix = nodes + change;
        if change % 2 == 0 {
            network.leave(ix);
            spread(&mut network, ix, &mut left, |network, other| gone(network, other, ix));
        } else {
            network.kill(ix);
            spread(&mut network, ix, &mut died, |network, other| gone(network, other, ix));
        }
    }
    network.run_for(Duration::from_secs(30));
    say("churn");
    let churn = rate(&mut network, |network| {
        // One pod of each node is replaced per minute.
        let end = network.elapsed() + MEASURED;
        let pause = Duration::from_secs(60).div_f64(nodes as f64);
        let mut round = 0;
        while network.elapsed() < end {
            if pods > 0 {
                set_pods(network, round % nodes, pods, 100 + round / nodes);
            }
            round += 1;
            network.run_for(pause);
        }
    });
    format!(
        "{} | {} | {} | {} | {} | {} | {} | {:.1} MB",
        times(&mut known),
        times(&mut joined),
        times(&mut left),
        times(&mut died),
        times(&mut learned),
        rest,
        churn,
        memory as f64 / 1e6,
    )
}

/// The node's pods: `count` of them, the first `skipped` of a row of names being gone.
fn set_pods(network: &mut Network, ix: usize, count: usize, skipped: usize) {
    let IpAddr::V4(base) = network.held(ix)[0].network() else { return };
    let [a, b, c, _] = base.octets();
    let count = if count == 0 && skipped > 0 { 1 } else { count };
    let pods = (1..=count).map(|number| number + skipped).map(|number| {
        let labels = [
            ("app.kubernetes.io/name", "web".to_owned()),
            ("app.kubernetes.io/instance", format!("web-{ix}")),
            ("pod-template-hash", "7d4b9c6f8d".to_owned()),
        ];
        let host = u8::try_from(2 + number % 250).unwrap();
        let pod = Pod {
            namespace: "default".to_owned(),
            name: format!("web-{ix}-{number}"),
            uid: Some(format!("8a7c1c1e-0000-4000-8000-{ix:06}{number:06}")),
            addresses: vec![IpAddr::from([a, b, c, host])],
            labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
            host_network: false,
        };
        LocalPod { pod, age: Duration::ZERO }
    });
    let pods = pods.collect();
    network.set_pods(ix, pods);
}

/// Notes for each other node after how long it knows.
fn spread(
    network: &mut Network,
    source: usize,
    times: &mut Vec<Duration>,
    knows: impl Fn(&Network, usize) -> bool,
) {
    let began = network.elapsed();
    let mut missing: BTreeSet<usize> = network.running().filter(|ix| *ix != source).collect();
    while !missing.is_empty() {
        network.run_for(LOOK);
        let now = network.elapsed() - began;
        assert!(now < Duration::from_secs(120), "{} nodes never learn", missing.len());
        missing.retain(|ix| {
            if network.gossip(*ix).is_none() {
                // It was still saying goodbye.
                return false;
            }
            let known = knows(network, *ix);
            if known {
                times.push(now);
            }
            !known
        });
    }
}

fn until(network: &mut Network, seconds: u64, what: &str, goal: impl Fn(&Network) -> bool) {
    let began = network.elapsed();
    while !goal(network) {
        let elapsed = network.elapsed() - began;
        assert!(elapsed < Duration::from_secs(seconds), "not within {seconds} s: {what}");
        network.run_for(Duration::from_secs(1));
    }
    say(&format!("{what} after {:?}", network.elapsed() - began));
}

/// Bytes per second and node while `work` is done: on average, and of the busiest.
fn rate(network: &mut Network, work: impl FnOnce(&mut Network)) -> String {
    let sent = |network: &Network| -> Vec<(usize, u64)> {
        let nodes = network.running();
        nodes.map(|ix| (ix, network.gossip(ix).unwrap().counters().sent_bytes)).collect()
    };
    let (before, began) = (sent(network), network.elapsed());
    work(network);
    let seconds = (network.elapsed() - began).as_secs_f64();
    let rates: Vec<f64> = before
        .iter()
        .filter_map(|(ix, before)| {
            let after = network.gossip(*ix)?.counters().sent_bytes;
            Some((after - before) as f64 / seconds / 1000.0)
        })
        .collect();
    let most = rates.iter().copied().fold(0.0, f64::max);
    format!("{:.1} kB/s, most {most:.1}", rates.iter().sum::<f64>() / rates.len() as f64)
}

fn times(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| {
        let ix = times.len() * percent / 100;
        times.get(ix.min(times.len() - 1)).map_or(0.0, Duration::as_secs_f64)
    };
    format!("{:.2} / {:.2} / {:.2} s", at(50), at(99), at(100))
}

/// The process' memory in bytes (proc(5), statm).
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * 4096
}

fn say(what: &str) {
    if std::env::var_os("WEFT_VERBOSE").is_some() {
        eprintln!("{what}");
    }
}
