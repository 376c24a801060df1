//! Many TCP flows at once over a wire on which frames get lost and overtake each other, and single ones over
//! one on which nothing goes wrong: every byte arrives, every packet is accounted for, and nobody but the wire
//! changes the order.
//!
//! `WEFT_SOAK_SECONDS=60` makes the flows last longer than the default of ten seconds.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::common::TestLab;
use crate::common::place::pod;
use crate::common::traffic::End;
use crate::common::wire::{BadWire, Faults};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vswitch::verdict::Reason;
use weft::lab::{LabConfig, Namespace, UNDERLAY};

/// Flows over the bad wire.
const FLOWS: usize = 200;

/// Flows over the good one, one after another.
const SINGLE_FLOWS: usize = 60;

/// Bytes of each of those.
const SINGLE_LEN: u64 = 4_000_000;

/// How many single flows may be repeated because something was lost, which leaves holes as well.
const REPEATS_MAX: usize = 30;

/// How long a peer may be silent: several retransmissions in a row may be lost.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long the nodes may take to see each other once the wire is good again.
const MAP_LIMIT: Duration = Duration::from_secs(20);

/// Bytes of one write.
const CHUNK_LEN: usize = 64 * 1024;

/// What is sent, again and again. A prime, so that no lost or doubled piece of a common size fits.
const CONTENT_LEN: usize = 1_000_003;

/// One after the other, as each would disturb the other's timing.
#[test]
fn order_is_kept_and_nothing_is_lost_for_good() {
    let _alone = crate::alone();
    if !crate::common::has_programs(&[("ip", "iproute2")]) || !crate::common::may_make_labs() {
        return;
    }
    let lab = TestLab::up(LabConfig::new("soak"));
    let pods: Vec<End> = lab.state().pods().map(|(_, one)| pod(&lab, &one.name)).collect();
    for pod in &pods {
        yield_to_losses(&pod.namespace);
    }
    let routes = routes(&pods);
    let content = content();
    single_flows_are_in_order(&lab, &pods, &routes, &content);
    flows_survive_a_bad_wire(&lab, &pods, &routes, &content);
    lab.finish();
}

/// Makes TCP send less where packets get lost, as most of the world's does (RFC 5681). BBR, which some kernels
/// are set to, does not: some hundred such flows keep every queue full, and single ones starve for minutes.
fn yield_to_losses(namespace: &Namespace) {
    let path = "/proc/sys/net/ipv4/tcp_congestion_control";
    namespace.run(|| fs::write(path, "reno")).unwrap().unwrap_or_else(|e| panic!("{path}: {e}"));
}

/// Who sends to whom, and under which address.
struct Route<'a> {
    source: &'a End,
    target: &'a End,
    address: IpAddr,
}

/// Every pod to every other one, over both protocols.
fn routes(pods: &[End]) -> Vec<Route<'_>> {
    let pairs = pods.iter().flat_map(|source| pods.iter().map(move |target| (source, target)));
    let pairs = pairs.filter(|(source, target)| source.name != target.name);
    let routes = pairs.flat_map(|(source, target)| {
        target.addresses.iter().map(move |address| Route { source, target, address: *address })
    });
    let routes: Vec<_> = routes.collect();
    assert_eq!(routes.len(), 6 * 5 * 2);
    routes
}

/// On a wire without faults, no receiver sees a segment before the one in front of it, unless something was
/// lost: for lack of time the kernel may drop, and says so.
fn single_flows_are_in_order(lab: &TestLab, pods: &[End], routes: &[Route<'_>], content: &[u8]) {
    let mut repeats = 0;
    for ix in 0..SINGLE_FLOWS {
        let route = &routes[ix % routes.len()];
        loop {
            let (early, lost) = (out_of_order(pods), lost(lab, pods));
            let flow = Flow { route, number: ix, until: Until::Sent(SINGLE_LEN) };
            assert_eq!(flow.run(content).bytes, SINGLE_LEN);
            let early = out_of_order(pods) - early;
            if early == 0 {
                break;
            }
            let lost = lost_since(&lost, lab, pods);
            assert!(
                !lost.is_empty(),
                "{early} segments out of order, and none lost: {}",
                flow.what()
            );
            eprintln!("{}: {early} segments out of order, lost {lost:?}", flow.what());
            repeats += 1;
            assert!(repeats <= REPEATS_MAX, "too much is lost on a wire without faults: {lost:?}");
        }
    }
    eprintln!("{SINGLE_FLOWS} single flows in order, {repeats} repeated after losses");
}

fn flows_survive_a_bad_wire(lab: &TestLab, pods: &[End], routes: &[Route<'_>], content: &[u8]) {
    let faults = Faults {
        lost_per_mille: 10,
        late_per_mille: 20,
        late_max: Duration::from_millis(5),
        seed: 0x5eed,
    };
    let wire = BadWire::between_nodes(lab, faults);
    let (early, lost) = (out_of_order(pods), lost(lab, pods));
    let end = Instant::now() + length();
    let done: Vec<Transferred> = std::thread::scope(|scope| {
        let flows = (0..FLOWS).map(|number| {
            let route = &routes[number % routes.len()];
            let flow = Flow { route, number, until: Until::Time(end) };
            scope.spawn(move || flow.run(content))
        });
        let flows: Vec<_> = flows.collect();
        flows.into_iter().map(|flow| flow.join().unwrap()).collect()
    });
    let lost = lost_since(&lost, lab, pods);
    let carried = wire.finish();
    let bytes: Vec<u64> = done.iter().map(|flow| flow.bytes).collect();
    let (total, least) = (bytes.iter().sum::<u64>(), bytes.iter().min().unwrap());
    let early = out_of_order(pods) - early;
    eprintln!(
        "{FLOWS} flows, {total} bytes, at least {least} each, {early} segments out of order; {carried:?}, \
         and for lack of time {lost:?}"
    );
    assert!(*least > 0, "{bytes:?}");
    assert!(carried.lost > 100 && carried.late > 100 && early > 100, "{carried:?}, {early}");
    let nodes: Vec<&str> = lab.nodes().iter().map(|node| node.name.as_str()).collect();
    lab.wait_for_map(&nodes, MAP_LIMIT).unwrap();
    for node in nodes {
        // The wire loses and delays whole packets; whatever looks broken was broken by us.
        for reason in [Reason::Malformed, Reason::BadChecksum, Reason::BadOffload] {
            assert_eq!(lab.dropped(node, reason), 0, "{node}: {reason:?}");
        }
    }
}

fn length() -> Duration {
    let text = std::env::var("WEFT_SOAK_SECONDS").unwrap_or_else(|_| "10".to_owned());
    let seconds = text.parse().unwrap_or_else(|_| panic!("WEFT_SOAK_SECONDS={text} is no number"));
    Duration::from_secs(seconds)
}

/// One TCP connection.
struct Flow<'a> {
    route: &'a Route<'a>,
    /// Tells flows apart: each begins at another place of the content.
    number: usize,
    until: Until,
}

#[derive(Clone, Copy)]
enum Until {
    Sent(u64),
    Time(Instant),
}

/// What one end of a flow had through its hands.
#[derive(Debug, PartialEq, Eq)]
struct Transferred {
    bytes: u64,
    hash: u64,
}

impl Flow<'_> {
    fn what(&self) -> String {
        let Route { source, target, address } = self.route;
        format!("flow {} from {} to {} at {address}", self.number, source.name, target.name)
    }

    /// Sends, and gives what was received after comparing it with what was sent.
    fn run(&self, content: &[u8]) -> Transferred {
        let Route { source, target, address } = self.route;
        let listener = target.namespace.run(|| TcpListener::bind((*address, 0))).unwrap().unwrap();
        let server = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&server, SILENCE_MAX);
        let sender = source.namespace.run(connect).unwrap();
        let sender = sender.unwrap_or_else(|error| panic!("connecting {}: {error}", self.what()));
        let (receiver, _) = listener.accept().unwrap();
        let (sent, received) = std::thread::scope(|scope| {
            let sent = scope.spawn(|| self.send(sender, content));
            let received = self.receive(receiver);
            let failed = |error| self.fail(&error, server.port());
            let received = received.unwrap_or_else(failed);
            (sent.join().unwrap().unwrap_or_else(failed), received)
        });
        assert_eq!(sent, received, "{}", self.what());
        received
    }

    /// Fails with what the kernels at both ends know of the connection (proc_net_tcp.rst in the kernel's
    /// documentation says what the columns are).
    fn fail(&self, error: &std::io::Error, port: u16) -> ! {
        let Route { source, target, .. } = self.route;
        let port = format!(":{port:04X} ");
        let told = [source, target].map(|end| {
            let text = read_net(&end.namespace, "tcp") + &read_net(&end.namespace, "tcp6");
            let lines = text.lines().filter(|line| line.contains(&port));
            format!("\nin {}:\n{}", end.name, lines.collect::<Vec<_>>().join("\n"))
        });
        panic!("{}: {error}{}", self.what(), told.concat());
    }

    fn send(&self, mut stream: TcpStream, content: &[u8]) -> std::io::Result<Transferred> {
        stream.set_write_timeout(Some(SILENCE_MAX))?;
        let mut tally = Tally::default();
        let mut at = self.number * 4999 % content.len();
        loop {
            let left = match self.until {
                Until::Sent(bytes) => usize::try_from(bytes - tally.bytes).unwrap(),
                Until::Time(end) if Instant::now() < end => usize::MAX,
                Until::Time(_) => 0,
            };
            if left == 0 {
                break;
            }
            let chunk = &content[at..(at + CHUNK_LEN.min(left)).min(content.len())];
            stream.write_all(chunk)?;
            tally.add(chunk);
            at = (at + chunk.len()) % content.len();
        }
        stream.shutdown(Shutdown::Write)?;
        Ok(tally.finish())
    }

    fn receive(&self, mut stream: TcpStream) -> std::io::Result<Transferred> {
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let mut tally = Tally::default();
        let mut buffer = vec![0; CHUNK_LEN];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(tally.finish()),
                Ok(len) => tally.add(&buffer[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Counts and hashes.
#[derive(Default)]
struct Tally {
    bytes: u64,
    hasher: DefaultHasher,
}

impl Tally {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += u64::try_from(bytes.len()).unwrap();
        self.hasher.write(bytes);
    }

    fn finish(self) -> Transferred {
        Transferred { bytes: self.bytes, hash: self.hasher.finish() }
    }
}

fn content() -> Vec<u8> {
    let mut content = vec![0; CONTENT_LEN];
    StdRng::seed_from_u64(0xc0ffee).fill(&mut content[..]);
    content
}

/// How many segments came to pods before the one in front of them, ever. Linux counts them where it also counts
/// `rcv_ooopack` of the socket's `TCP_INFO` (`tcp_data_queue_ofo`, net/ipv4/tcp_input.c).
fn out_of_order(pods: &[End]) -> u64 {
    pods.iter().map(|pod| counter(&pod.namespace, "netstat", "TcpExt", "TCPOFOQueue")).sum()
}

/// What was lost so far, by where it was lost. Whatever is not here has no place to get lost at.
fn lost(lab: &TestLab, pods: &[End]) -> BTreeMap<String, u64> {
    let mut lost = BTreeMap::new();
    let names = lab.nodes().iter().map(|node| node.name.as_str());
    for name in names.clone().chain(pods.iter().map(|pod| pod.name.as_str())).chain([UNDERLAY]) {
        let namespace = lab.namespace(name).unwrap();
        for (device, dropped) in dropped_by_devices(&namespace) {
            lost.insert(format!("{name}, {device}"), dropped);
        }
        let full =
            counter(&namespace, "snmp", "Udp", "RcvbufErrors") + buffer_errors_v6(&namespace);
        lost.insert(format!("{name}, UDP receive buffers"), full);
    }
    for name in names {
        for (reason, dropped) in lab.admin(name).unwrap().counters().unwrap().dropped {
            lost.insert(format!("{name}, {reason}"), dropped);
        }
    }
    lost
}

fn lost_since(
    before: &BTreeMap<String, u64>,
    lab: &TestLab,
    pods: &[End],
) -> BTreeMap<String, u64> {
    let mut now = lost(lab, pods);
    for (place, count) in &mut now {
        *count -= before.get(place).copied().unwrap_or(0);
    }
    now.retain(|_, count| *count > 0);
    now
}

/// A counter of a namespace in `/proc/net/snmp` or `netstat`: a line of names, and one of values.
fn counter(namespace: &Namespace, file: &str, group: &str, name: &str) -> u64 {
    let text = read_net(namespace, file);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(other, _)| *other == name).unwrap();
    value.parse().unwrap()
}

fn buffer_errors_v6(namespace: &Namespace) -> u64 {
    let text = read_net(namespace, "snmp6");
    let line = text.lines().find_map(|line| line.strip_prefix("Udp6RcvbufErrors"));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

/// Frames that each device has dropped, in either direction.
fn dropped_by_devices(namespace: &Namespace) -> Vec<(String, u64)> {
    // Two lines of titles; then bytes, packets, errors, drops and four more, of what was received; and again
    // of what was sent.
    let text = read_net(namespace, "dev");
    let lines = text.lines().skip(2).map(|line| line.split_once(':').unwrap());
    lines
        .map(|(device, values)| {
            let values: Vec<u64> =
                values.split_whitespace().map(|value| value.parse().unwrap()).collect();
            (device.trim().to_owned(), values[3] + values[11])
        })
        .collect()
}

fn read_net(namespace: &Namespace, file: &str) -> String {
    let path = format!("/proc/thread-self/net/{file}");
    namespace.run(|| fs::read_to_string(&path)).unwrap().unwrap_or_else(|e| panic!("{path}: {e}"))
}
