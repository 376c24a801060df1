//! Pods that come to life, and daemons that come back, while somebody sends to every address that there is: not one
//! packet gets past a policy.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::{TestLab, eventually, may_make_labs};
use ipnetwork::IpNetwork;
use vswitch::verdict::Reason;
use weft::admin::api::PolicyEnforcement;

use weft::lab::{Interrupt, LabConfig, Namespace};

/// How many pods are started. `WEFT_POLICY_STARTS=10000` is the full length.
fn starts() -> u32 {
    const SHORT: u32 = 60;
    std::env::var("WEFT_POLICY_STARTS").map_or(SHORT, |text| text.parse().unwrap())
}

/// Everything in namespace `shut` is isolated in both directions; `open` is as ever.
const POLICIES: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shut}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
";

/// How long the other nodes may take to learn of a new pod and its labels.
const LEARNED_MAX: Duration = Duration::from_secs(10);

/// Sends datagrams to all addresses of a lease, round and round, until it is dropped.
struct Attack {
    stop: Interrupt,
    thread: Option<JoinHandle<()>>,
    sent: Arc<AtomicU64>,
}

impl Attack {
    fn start(from: &Namespace, lease: IpNetwork) -> Self {
        let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.set_nonblocking(true).unwrap();
        let IpNetwork::V4(lease) = lease else { panic!("{lease} is no IPv4 lease") };
        // The first two are the node's.
        let targets: Vec<Ipv4Addr> = lease.iter().skip(2).take(250).collect();
        let (stop, sent) = (Interrupt::default(), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            while !stopped.is_set() {
                for target in &targets {
                    // What does not fit is lost, as on any network.
                    if socket.send_to(b"leak", (*target, 80)).is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // A rate, not a wait for a state.
                #[allow(clippy::disallowed_methods)]
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Self { stop, thread: Some(thread), sent }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until it has gone round twice from now on.
    fn go_round(&self) {
        let before = self.sent();
        eventually("the attack goes on", || self.sent() >= before + 500);
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.set();
        // A panic has been printed already.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// IPv4 packets that the namespace was ever sent, whatever became of them there (proc_net_snmp, `InReceives`).
fn received(namespace: &Namespace) -> u64 {
    let text = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let place = names.split(' ').position(|name| name == "InReceives").unwrap();
    values.split(' ').nth(place).unwrap().parse().unwrap()
}

struct Field {
    lab: TestLab,
    lease: IpNetwork,
    /// On the same node, and on another.
    attackers: Vec<Namespace>,
    victim: String,
}

fn field(name: &str) -> Field {
    let config = LabConfig { nodes: 2, pods_per_node: 0, ipv6: false, ..LabConfig::new(name) };
    let mut lab = TestLab::up(config);
    fs::write(lab.manifests().join("policies.yaml"), POLICIES).unwrap();
    for node in ["n1", "n2"] {
        let admin = lab.admin(node).unwrap();
        eventually("the policy is in force", || {
            admin.policies().unwrap().enforcement == PolicyEnforcement::On
        });
    }
    let add = |lab: &mut TestLab, node: &str, ns: &str| {
        lab.add_pod_as(node, ns, BTreeMap::new()).unwrap()
    };
    let near = add(&mut lab, "n1", "open");
    let far = add(&mut lab, "n2", "open");
    let victim = add(&mut lab, "n1", "open");
    let attackers = [near, far].map(|name| lab.namespace(&name).unwrap()).into();
    let lease = lab.admin("n1").unwrap().status().unwrap().leases[0];
    Field { lab, lease, attackers, victim }
}

#[test]
fn a_pod_is_born_with_its_policies() {
    if !may_make_labs() {
        return;
    }
    let Field { mut lab, lease, attackers, victim } = field("birth");
    let attacks: Vec<_> = attackers.iter().map(|from| Attack::start(from, lease)).collect();
    // The attack works: a pod without policies is hit at once.
    let open = lab.namespace(&victim).unwrap();
    eventually("a pod that is open is hit", || received(&open) > 100);

    let listener = attackers[0].run(|| UdpSocket::bind("0.0.0.0:99")).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let target = SocketAddr::new(address(&lab, "n1-p1"), 99);
    let start = Instant::now();
    for turn in 0..starts() {
        let name = lab.add_pod_as("n1", "shut", BTreeMap::new()).unwrap();
        let namespace = lab.namespace(&name).unwrap();
        // It sends with its first breath, too.
        let sent = namespace.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            (0..20).try_for_each(|_| socket.send_to(b"leak", target).map(drop))
        });
        sent.unwrap().unwrap();
        attacks.iter().for_each(Attack::go_round);
        assert_eq!(received(&namespace), 0, "{name} was sent something, in turn {turn}");
        lab.remove_pod(&name).unwrap();
    }
    eprintln!("{} starts in {:?}, nothing leaked", starts(), start.elapsed());
    let mut bytes = [0; 16];
    assert!(listener.recv_from(&mut bytes).is_err(), "a pod that may not send has sent {bytes:?}");
    let denied = lab.dropped("n1", Reason::PolicyDeniedIngress);
    assert!(denied > u64::from(starts()), "{denied}");
    assert!(lab.dropped("n1", Reason::PolicyDeniedEgress) >= u64::from(starts()));
    drop(attacks);
    lab.finish();
}

#[test]
fn a_daemon_that_comes_back_opens_no_window() {
    if !may_make_labs() {
        return;
    }
    const RESTARTS: u32 = 5;
    let Field { mut lab, lease, attackers, victim } = field("window");
    let name = lab.add_pod_as("n1", "shut", BTreeMap::new()).unwrap();
    let shut = lab.namespace(&name).unwrap();
    let open = lab.namespace(&victim).unwrap();
    let attacks: Vec<_> = attackers.iter().map(|from| Attack::start(from, lease)).collect();
    for turn in 0..RESTARTS {
        let before = received(&open);
        if turn % 2 == 0 {
            lab.kill("n1").unwrap();
            lab.start("n1").unwrap();
        } else {
            lab.stop("n1").unwrap();
            lab.start("n1").unwrap();
        }
        eventually("a pod that is open is hit again", || received(&open) > before + 100);
        attacks.iter().for_each(Attack::go_round);
        assert_eq!(received(&shut), 0, "in turn {turn}");
    }
    drop(attacks);
    lab.finish();
}

#[test]
fn a_new_pod_is_known_to_other_nodes_by_its_labels_within_seconds() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 2, pods_per_node: 0, ipv6: false, ..LabConfig::new("learned") };
    let mut lab = TestLab::up(config);
    let accept = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shut}
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: web}}}]}]}
";
    fs::write(lab.manifests().join("policies.yaml"), accept).unwrap();
    let admin = lab.admin("n1").unwrap();
    eventually("the policy is in force", || {
        admin.policies().unwrap().enforcement == PolicyEnforcement::On
    });
    let server = lab.add_pod_as("n1", "shut", BTreeMap::new()).unwrap();
    let listener = lab.namespace(&server).unwrap().run(|| UdpSocket::bind("0.0.0.0:80"));
    let listener = listener.unwrap().unwrap();
    listener.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let target = SocketAddr::new(address(&lab, &server), 80);
    for (labels, is_let_in) in [(vec![("role", "web")], true), (vec![("role", "db")], false)] {
        let labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        let client = lab.add_pod_as("n2", "open", labels.collect()).unwrap();
        let start = Instant::now();
        let socket = lab.namespace(&client).unwrap().run(|| UdpSocket::bind("0.0.0.0:0"));
        let socket = socket.unwrap().unwrap();
        let limit = if is_let_in { LEARNED_MAX } else { Duration::from_secs(2) };
        let mut bytes = [0; 16];
        let mut is_in = false;
        while !is_in && start.elapsed() < limit {
            socket.send_to(b"hello", target).unwrap();
            is_in = listener.recv_from(&mut bytes).is_ok();
        }
        assert_eq!(is_in, is_let_in, "after {:?}", start.elapsed());
        eprintln!("let in: {is_in}, after {:?}", start.elapsed());
    }
    lab.finish();
}

fn address(lab: &TestLab, pod: &str) -> IpAddr {
    lab.state().pod(pod).unwrap().1.addresses[0]
}
