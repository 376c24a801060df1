//! What changes while clients go on: endpoints, the daemon, the node that announces an address.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::common::service::{Answer, Connection, refused_at_once, serve, slice, tcp, udp};
use crate::common::{TestLab, eventually, has_programs, may_make_labs, run};
use weft::lab::{LabConfig, Namespace, WORLD};

const CONFIG: &str = "
[services]
load_balancer_pool = [\"192.168.77.240/29\"]
";

const WEB: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.80
  loadBalancerIP: 192.168.77.240
  ports:
  - {name: http, port: 80, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP, nodePort: 30053}
---
";

/// Where all servers listen.
const PORT: u16 = 8080;

/// How long an address may have no node that announces it.
const FAILOVER_MAX: Duration = Duration::from_secs(2);

fn up(name: &str) -> Option<TestLab> {
    if !has_programs(&[("nft", "nftables"), ("ip", "iproute2")]) || !may_make_labs() {
        return None;
    }
    let config = LabConfig { ipv6: false, extra: CONFIG.to_owned(), ..LabConfig::new(name) };
    let lab = TestLab::up(config);
    for pod in ["n1-p1", "n1-p2", "n2-p1", "n2-p2", "n3-p1"] {
        serve(&lab, pod, PORT);
    }
    Some(lab)
}

fn declare(lab: &TestLab, endpoints: &[(&str, &str)]) {
    let text = WEB.to_owned() + &slice(lab, ("web", "IPv4"), PORT, endpoints);
    // Moved into place, as those do who write files that others read.
    let (new, file) = (lab.manifests().join(".web"), lab.manifests().join("web.yaml"));
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

fn to(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Clients that connect again and again while something happens.
struct Load<'t> {
    namespace: &'t Namespace,
    target: SocketAddr,
    asked: AtomicUsize,
    failed: AtomicUsize,
    stop: AtomicBool,
}

impl<'t> Load<'t> {
    fn new(namespace: &'t Namespace, target: &str) -> Self {
        let (asked, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { namespace, target: to(target), asked, failed, stop: AtomicBool::new(false) }
    }

    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = tcp(self.namespace, self.target) {
                eprintln!("{}: {error}", self.target);
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn endpoints_change_under_load_and_no_request_fails() {
    let _alone = crate::alone();
    let Some(lab) = up("bluegreen") else { return };
    let (blue, green) = (["n1-p1", "n2-p1"], ["n1-p2", "n2-p2"]);
    let ready = |pods: [&'static str; 2]| pods.map(|pod| (pod, ""));
    declare(&lab, &ready(blue));
    let [pod, node, world] = ["n3-p1", "n3", WORLD].map(|name| lab.namespace(name).unwrap());
    let clients = [
        Load::new(&pod, "10.96.0.80:80"),
        Load::new(&node, "10.96.0.80:80"),
        Load::new(&node, "192.168.77.3:30080"),
        Load::new(&world, "192.168.77.3:30080"),
    ];
    for client in &clients {
        eventually("blue serves", || tcp(client.namespace, client.target).is_ok());
    }
    let mut kept = Connection::open(&pod, to("10.96.0.80:80")).unwrap();
    std::thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| client.run());
        }
        for round in 0..6 {
            let pods = if round % 2 == 0 { green } else { blue };
            declare(&lab, &ready(pods));
            for client in &clients {
                eventually("the new ones serve, and none of the old", || {
                    let answers: Vec<Answer> =
                        (0..8).filter_map(|_| tcp(client.namespace, client.target).ok()).collect();
                    answers.iter().all(|answer| pods.contains(&answer.server.as_str()))
                        && answers.len() == 8
                });
            }
        }
        clients.iter().for_each(|client| client.stop.store(true, Ordering::Relaxed));
    });
    for client in &clients {
        let (asked, failed) = (&client.asked, &client.failed);
        eprintln!("{}: {asked:?} asked, {failed:?} failed", client.target);
        assert!(asked.load(Ordering::Relaxed) > 50);
        assert_eq!(failed.load(Ordering::Relaxed), 0, "to {}", client.target);
    }

    // A connection stays with its endpoint while that terminates, and when no slice has it any more.
    let server = kept.first.server.clone();
    let other = if server == blue[0] { blue[1] } else { blue[0] };
    let leaving = ", conditions: {ready: false, serving: true, terminating: true}";
    declare(&lab, &[(other, ""), (&server, leaving)]);
    eventually("new connections go to the other", || {
        (0..8).all(|_| tcp(&pod, to("10.96.0.80:80")).unwrap().server == other)
    });
    assert_eq!(kept.again().unwrap().server, server);
    declare(&lab, &[(&server, leaving)]);
    eventually("who terminates serves while nobody else does", || {
        tcp(&pod, to("10.96.0.80:80")).is_ok_and(|answer| answer.server == server)
    });
    declare(&lab, &[(other, "")]);
    eventually("it is gone", || tcp(&pod, to("10.96.0.80:80")).unwrap().server == other);
    assert_eq!(kept.again().unwrap().server, server);

    // To nobody and back again, for a socket that is there all the time.
    declare(&lab, &[]);
    eventually("nobody serves", || {
        tcp(&world, to("192.168.77.3:30080"))
            .is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
    });
    refused_at_once("UDP", || udp(&world, to("192.168.77.3:30053")));
    declare(&lab, &ready(green));
    eventually("green serves", || udp(&world, to("192.168.77.3:30053")).is_ok());
    lab.finish();
}

#[test]
fn a_daemon_that_is_killed_and_one_that_is_removed() {
    let _alone = crate::alone();
    let Some(mut lab) = up("servekill") else { return };
    declare(&lab, &[("n1-p1", "")]);
    let world = lab.namespace(WORLD).unwrap();
    let target = to("192.168.77.1:30080");
    eventually("it serves", || tcp(&world, target).is_ok());
    let mut kept = Connection::open(&world, target).unwrap();
    // What an endpoint sends again after the restart, before the client has sent anything, does not find its flow.
    let pod = lab.namespace("n1-p1").unwrap();
    eventually("the client has confirmed what it got", || {
        let sockets = run(&pod, "ss -Htn state established");
        sockets.lines().all(|line| line.split_whitespace().nth(1) == Some("0"))
    });
    lab.kill("n1").unwrap();
    lab.start("n1").unwrap();
    eventually("it serves again", || tcp(&world, target).is_ok());
    assert_eq!(kept.again().unwrap(), kept.first, "the connection goes on");

    // The host's table follows what is declared, and nothing is left of what is not.
    let node = lab.namespace("n1").unwrap();
    let ruleset = || run(&node, "nft list table inet weft");
    let routes = || run(&node, "ip route show");
    assert!(ruleset().contains("tcp . 30080") && routes().contains("192.168.77.240 via"));
    fs::remove_file(lab.manifests().join("web.yaml")).unwrap();
    eventually("the port is the node's again", || !ruleset().contains("30080"));
    eventually("the address, too", || !routes().contains("192.168.77.240"));
    refused_at_once("the node's kernel", || tcp(&world, target));
    // Somebody meddles with the table.
    run(&node, "nft delete table inet weft");
    declare(&lab, &[("n1-p1", "")]);
    eventually("it is made anew", || tcp(&world, target).is_ok());
    lab.finish();
}

#[test]
fn an_address_moves_when_its_node_dies() {
    let _alone = crate::alone();
    let Some(mut lab) = up("failover") else { return };
    declare(&lab, &[("n1-p1", ""), ("n2-p1", ""), ("n3-p1", "")]);
    let world = lab.namespace(WORLD).unwrap();
    let target = to("192.168.77.240:80");
    eventually("the world reaches it", || tcp(&world, target).is_ok());
    let first = announcer(&lab, "n1");
    for node in ["n1", "n2", "n3"] {
        eventually("all say the same", || announcer(&lab, node) == first);
    }
    // An endpoint that dies with the node is another matter.
    let others: Vec<_> = ["n1-p1", "n2-p1", "n3-p1"]
        .into_iter()
        .filter(|pod| !pod.starts_with(&first))
        .map(|pod| (pod, ""))
        .collect();
    declare(&lab, &others);
    let witness = others[0].0.split_once('-').unwrap().0.to_owned();
    eventually("those serve", || {
        (0..10).all(|_| tcp(&world, target).is_ok_and(|answer| !answer.server.starts_with(&first)))
    });
    let mut gaps = Vec::new();
    for how in ["the daemon is killed", "the node is cut off"] {
        let last = Instant::now();
        if how.contains("killed") {
            lab.kill(&first).unwrap();
        } else {
            lab.cut(&first).unwrap();
        }
        let gap = gap(&world, target, last);
        eprintln!("{how}: {gap:?} until the next connection was answered");
        gaps.push(gap);
        eventually("another node announces", || announcer(&lab, &witness) != first);
        if how.contains("killed") {
            lab.start(&first).unwrap();
        } else {
            lab.heal(&first).unwrap();
        }
        // And back, without a request lost, but for the one that is under way when the address moves: where it goes on, nobody
        // knows its connection.
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut lost = Vec::new();
        while announcer(&lab, &witness) != first {
            assert!(Instant::now() < deadline, "it does not come back");
            lost.extend(tcp(&world, target).err());
        }
        for _ in 0..20 {
            lost.extend(tcp(&world, target).err());
        }
        assert!(lost.len() <= 1, "{lost:?}");
    }
    assert!(gaps.iter().all(|gap| *gap < FAILOVER_MAX), "{gaps:?}");

    // One that leaves in order leaves nothing to find out.
    let last = Instant::now();
    lab.stop(&first).unwrap();
    let gap = gap(&world, target, last);
    eprintln!("stopped in order: {gap:?}");
    assert!(gap < FAILOVER_MAX + Duration::from_secs(1), "{gap:?}");
    lab.finish();
}

/// How long after `last` a connection is answered again.
fn gap(world: &Namespace, target: SocketAddr, last: Instant) -> Duration {
    let deadline = last + Duration::from_secs(20);
    loop {
        let patience = Duration::from_millis(100);
        let answered = Connection::open_within(world, target, patience).is_ok();
        let now = Instant::now();
        if answered && now > last {
            return now - last;
        }
        assert!(now < deadline, "nobody answers for {:?}", now - last);
    }
}

/// Which node announces the address, as `node` sees it.
fn announcer(lab: &TestLab, node: &str) -> String {
    let listing = lab.admin(node).unwrap().objects().unwrap();
    let service = listing.accepted.into_iter().find(|object| object.kind == "Service");
    let notes = service.map(|service| service.notes).unwrap_or_default();
    let announced =
        notes.iter().find_map(|note| note.strip_prefix("192.168.77.240 is announced by "));
    announced.unwrap_or_default().to_owned()
}
