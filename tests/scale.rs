//! How soon a change is in force where there are many Services, from the changed object to the tables that the
//! workers borrow, and what it all takes. For numbers:
//!
//! `cargo test --release -p weft --test scale -- --nocapture`

// Its figures are what it is for.
#![allow(clippy::print_stdout)]
// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

#[path = "common/cpu_time.rs"]
mod cpu_time;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use conf::cluster::parse::parse;
use conf::cluster::{Change, ClusterState, Delta, ObjectName, PodFact};
use cpu_time::CpuTime;
use vswitch::mac::Mac;
use vswitch::policy::{Established, PolicyTable};
use vswitch::service::{Family, ServiceTable};
use vswitch::tables::{Node, Tables};
use weft::control::compile::{self, Inputs};
use weft::control::endpoints::Place;
use weft::control::services::ServiceTables;
use weft::dns::directory::Directory;
use weft::dns::names;

const ENDPOINTS: u32 = 5;

/// All of them where it is fast enough.
const SERVICES: u32 = if cfg!(debug_assertions) { 2_000 } else { 50_000 };

/// Changes of each kind that are measured.
const CHANGES: u32 = 500;

/// What a change may take, by the specification where the code is optimised.
const CHANGE_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 10 });

fn manifest(services: impl Iterator<Item = u32>, affinity: &str) -> String {
    let mut text = String::new();
    for number in services {
        write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: n{}}}\n\
             spec: {{selector: {{app: s{number}}}, sessionAffinity: {affinity}, \
             ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n",
            number % 100
        )
        .unwrap();
    }
    text
}

fn pod(service: u32, endpoint: u32, address: u32) -> PodFact {
    PodFact {
        id: ObjectName::new(format!("n{}", service % 100), format!("s{service}-{endpoint}")),
        node: format!("node{}", service % 1000).into(),
        addresses: Box::new([IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + address))]),
        labels: [("app".to_owned(), format!("s{service}"))].into_iter().collect(),
        host_network: false,
        since_ms: 0,
    }
}

/// All that a node keeps of the objects, and what its workers see.
struct World {
    state: ClusterState,
    names: Directory,
    services: ServiceTables,
    table: Arc<ServiceTable>,
    tables: Arc<Tables>,
}

impl World {
    fn new() -> Self {
        let place = Place { node: "node0".into(), ..Place::default() };
        let ranges = ["10.96.0.0/12".parse().unwrap()];
        let pods = ["11.0.0.0/8".parse().unwrap()];
        let table = Arc::new(ServiceTable::empty());
        Self {
            state: ClusterState::default(),
            names: Directory::default(),
            services: ServiceTables::new(place, &ranges, &pods, Vec::new()),
            tables: Arc::new(made(&table)),
            table,
        }
    }

    /// What the control side does with a change, up to the swap.
    fn change(&mut self, changes: impl IntoIterator<Item = Change>) -> Delta {
        let delta = self.state.apply(changes);
        names::update(&mut self.names, &self.state, &delta);
        self.table = self.services.update(&self.state, &delta.services, Vec::new());
        self.tables = Arc::new(made(&self.table));
        delta
    }
}

fn made(services: &Arc<ServiceTable>) -> Tables {
    let inputs = Inputs {
        generation: 1,
        node: Node {
            vtep_mac: Mac::HOST,
            gateway_v4: Some([11, 0, 0, 1].into()),
            gateway_v6: None,
            underlay: Some([192, 0, 2, 1].into()),
            vxlan_port: 4789,
            gossip_port: 7946,
        },
        ranges: vec!["11.0.0.0/8".parse().unwrap()],
        host_mtu: Some(1450),
        pods: Vec::new(),
        peers: Vec::new(),
        services: Arc::clone(services),
        policies: Arc::new(PolicyTable::off()),
        established: Established::default(),
    };
    compile::compile(inputs).0
}

fn resident_mb() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096 / 1_000_000
}

fn time(run: impl FnOnce()) -> Duration {
    let start = CpuTime::now();
    run();
    start.elapsed()
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100];
    println!("{what}: median {:?}, p99 {:?}, most {:?}", at(50), at(99), times[times.len() - 1]);
    assert!(at(99) < CHANGE_MAX, "{what}: {:?}", at(99));
}

#[test]
fn a_change_is_in_force_soon_however_many_services_there_are() {
    let before = resident_mb();
    let mut world = World::new();
    let loading = time(|| {
        let files = parse(&manifest(0..SERVICES, "None"));
        let services = files.accepted.into_iter().map(|found| Change::Set(found.object));
        let pods = (0..SERVICES).flat_map(|service| {
            (0..ENDPOINTS).map(move |ix| Change::SetPod(pod(service, ix, service * ENDPOINTS + ix)))
        });
        world.change(services.chain(pods));
    });
    assert_eq!(world.table.services().count(), SERVICES as usize);
    println!(
        "{SERVICES} Services x {ENDPOINTS} endpoints: taken up in {loading:?}; objects, names and the switch's table \
         take {} MB",
        resident_mb() - before
    );
    let of_switch: usize = world.table.services().map(vswitch::service::Service::size).sum();
    println!("of these, Services in the switch's table: {} MB", of_switch / 1_000_000);

    let some =
        |turn: u32| (0..CHANGES).map(move |ix| (ix * (SERVICES / CHANGES) + turn) % SERVICES);
    let mut times = Vec::new();
    for service in some(0) {
        let moved = pod(service, 0, 5_000_000 + service);
        let address = moved.addresses[0];
        times.push(time(|| drop(world.change([Change::SetPod(moved)]))));
        let name = format!("n{}/s{service}:http", service % 100);
        let found = world.tables.services().service(&name, Family::V4).unwrap();
        assert!(found.endpoint(address, 8080).is_some());
    }
    tell("a pod with another address", times);

    let mut times = Vec::new();
    for service in some(1) {
        let object = parse(&manifest(service..=service, "ClientIP")).accepted.remove(0).object;
        times.push(time(|| drop(world.change([Change::Set(object)]))));
    }
    tell("a Service with another field", times);

    let mut times = Vec::new();
    for service in some(2) {
        let object = parse(&manifest(service..=service, "None")).accepted.remove(0).object;
        let key = object.key();
        times.push(time(|| drop(world.change([Change::Remove(key)]))));
        times.push(time(|| drop(world.change([Change::Set(object)]))));
    }
    tell("a Service removed, or added", times);
    let all: BTreeSet<_> =
        world.table.services().map(|service| service.name().to_owned()).collect();
    assert_eq!(all.len(), SERVICES as usize);
}
