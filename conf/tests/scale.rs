//! How large a cluster may be. For numbers:
//!
//! `cargo test --release -p conf --test scale -- --nocapture`

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use conf::cluster::parse::parse;
use conf::cluster::{Change, ClusterState, ObjectName, PodFact};
use conf::source::Directory;

const ENDPOINTS: u32 = 5;

/// All of them where it is fast enough.
const SERVICES: u32 = if cfg!(debug_assertions) { 2_000 } else { 50_000 };

fn manifest(services: impl Iterator<Item = u32>, session_affinity: &str) -> String {
    let mut text = String::new();
    for number in services {
        write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: s{number}\n  namespace: n{}\nspec:\n  selector:\n    \
             app: s{number}\n    tier: web\n  sessionAffinity: {session_affinity}\n  ports:\n  - name: http\n    port: 80\n    \
             targetPort: 8080\n---\n",
            number % 100
        )
        .unwrap();
    }
    text
}

fn fact(service: u32, endpoint: u32, address: u32) -> PodFact {
    PodFact {
        id: ObjectName::new(format!("n{}", service % 100), format!("s{service}-{endpoint}")),
        node: format!("node{}", service % 1000).into(),
        addresses: Box::new([IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + address))]),
        labels: [("app".to_owned(), format!("s{service}")), ("tier".to_owned(), "web".to_owned())]
            .into_iter()
            .collect(),
        host_network: false,
        since_ms: 0,
    }
}

fn resident_mb() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / 1_000_000
}

fn time(mut run: impl FnMut()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

/// The 99th of 100, and the median.
fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() * 99 / 100], times[times.len() / 2])
}

#[test]
fn one_change_costs_what_it_changes() {
    let before = resident_mb();
    let mut directory = Directory::new();
    let mut state = ClusterState::default();
    // Fifty files, as somebody would write them who has so many.
    let per_file = SERVICES / 50;
    let text_of = |file: u32| manifest(file * per_file..(file + 1) * per_file, "None");
    let loading = time(|| {
        for file in 0..50 {
            let text = text_of(file);
            let changes = directory.set_file(&format!("{file:02}.yaml"), parse(&text));
            state.apply(changes);
        }
    });
    let pods = time(|| {
        let facts = (0..SERVICES).flat_map(|service| {
            (0..ENDPOINTS)
                .map(move |endpoint| fact(service, endpoint, service * ENDPOINTS + endpoint))
        });
        state.apply(facts.map(Change::SetPod));
    });
    assert_eq!(state.services().count(), SERVICES as usize);
    assert!(state.services().all(|view| view.endpoints.endpoints.len() == ENDPOINTS as usize));
    println!("{SERVICES} Services x {ENDPOINTS} endpoints: {} MB", resident_mb() - before);
    println!("manifests read and taken up in {loading:?}, pods in {pods:?}");

    let mut pod_changes = Vec::new();
    for service in (0..SERVICES).step_by(SERVICES as usize / 1000) {
        let moved = fact(service, 0, 5_000_000 + service);
        pod_changes.push(time(|| {
            let delta = state.apply([Change::SetPod(moved.clone())]);
            assert_eq!((delta.services.len(), delta.pods.len()), (1, 1));
        }));
    }
    let (p99, median) = percentiles(pod_changes);
    println!("a pod with another address: {median:?}, p99 {p99:?}");
    assert!(p99 < Duration::from_millis(500), "{p99:?}");

    let mut service_changes = Vec::new();
    for service in (0..SERVICES).step_by(SERVICES as usize / 1000) {
        let changed = parse(&manifest(service..=service, "ClientIP"));
        let object = changed.accepted[0].object.clone();
        service_changes.push(time(|| {
            let delta = state.apply([Change::Set(object.clone())]);
            assert_eq!(delta.services.len(), 1);
        }));
    }
    let (p99, median) = percentiles(service_changes);
    println!("a Service with another field: {median:?}, p99 {p99:?}");
    assert!(p99 < Duration::from_millis(500), "{p99:?}");

    let text = text_of(7) + &manifest(900_000..900_001, "None");
    let file = time(|| {
        let changes = directory.set_file("07.yaml", parse(&text));
        assert_eq!(changes.len(), 1);
        assert_eq!(state.apply(changes).services.len(), 1);
    });
    println!("a file of {per_file} Services with one more: {file:?}");
    let listing = time(|| assert_eq!(directory.counts(&state).accepted, SERVICES as usize + 1));
    println!("counting: {listing:?}");
}
