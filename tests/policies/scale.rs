//! What policies of a large cluster take to put in force, and one change of them. For numbers:
//!
//! `cargo test --release --test policies scale -- --nocapture`

// Its figures are what it is for.
#![allow(clippy::print_stdout)]
#![allow(clippy::unwrap_used, reason = "only tests are in here")]

use std::time::Duration;

use crate::cpu_time::CpuTime;
use conf::cluster::parse::parse;
use conf::cluster::{Change, ClusterState, ObjectKey, ObjectKind, ObjectName};
use vswitch::policy::Enforcement;
use weft::control::policies::{Mode, PolicyTables, Scope};

/// All of it where it is fast enough.
const NAMESPACES: usize = if cfg!(debug_assertions) { 50 } else { 1000 };
const PODS_EACH: usize = 10;
const POLICIES_EACH: usize = 10;
const NODES: usize = 100;

/// What a change may take, by the specification where the code is optimised.
const CHANGE_MAX: Duration = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 10 });

fn namespace(number: usize, team: usize) -> String {
    format!(
        "{{apiVersion: v1, kind: Namespace, metadata: {{name: ns{number}, labels: {{team: t{team}}}}}}}\n---\n"
    )
}

fn pod(namespace: usize, number: usize, app: usize) -> String {
    let address = namespace * PODS_EACH + number;
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: ns{namespace}, labels: {{app: a{app}, tier: \
         t{}}}}}, spec: {{nodeName: n{}, containers: [{{ports: [{{name: http, containerPort: 8080}}]}}]}}, status: {{podIPs: \
         [{{ip: 10.{}.{}.{}}}, {{ip: 'fd00::{address:x}'}}]}}}}\n---\n",
        app % 3,
        address % NODES,
        1 + (address >> 16),
        address >> 8 & 255,
        address & 255
    )
}

/// What people write: deny all, and then what is needed, from the own namespace, from another one, from addresses.
fn policy(namespace: usize, number: usize, port: usize) -> String {
    let other = (namespace * 7 + number) % NAMESPACES;
    let app = number % 5;
    let by_name =
        format!("namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: ns{other}}}}}");
    let spec = match number {
        0 => "podSelector: {}, policyTypes: [Ingress, Egress]".to_owned(),
        1 => format!(
            "podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{{by_name}, podSelector: {{matchLabels: {{app: \
             a1}}}}}}], ports: [{{port: 53, protocol: UDP}}, {{port: {port}}}]}}]"
        ),
        2 => format!(
            "podSelector: {{matchLabels: {{app: a{app}}}}}, ingress: [{{from: [{{podSelector: {{}}}}], ports: [{{port: \
             {port}}}]}}]"
        ),
        3 => format!(
            "podSelector: {{matchLabels: {{app: a{app}}}}}, ingress: [{{from: [{{ipBlock: {{cidr: 192.0.2.0/24, except: \
             [192.0.2.{}/32]}}}}], ports: [{{port: {port}, endPort: {}}}]}}]",
            namespace % 256,
            port + 10
        ),
        4 => format!(
            "podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{namespaceSelector: {{matchLabels: {{team: t{}}}}}}}], \
             ports: [{{port: http}}, {{port: {port}}}]}}]",
            namespace % 20
        ),
        _ => format!(
            "podSelector: {{matchLabels: {{app: a{app}}}}}, ingress: [{{from: [{{{by_name}, podSelector: {{matchLabels: {{tier: \
             t{}}}}}}}, {{podSelector: {{matchExpressions: [{{key: app, operator: In, values: [a{}, a{}]}}]}}}}], ports: \
             [{{port: {port}}}, {{port: http}}]}}]",
            number % 3,
            number % 4,
            number % 3
        ),
    };
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: np{number}, namespace: ns{namespace}}}, spec: \
         {{{spec}}}}}\n---\n"
    )
}

fn cluster_policy(priority: usize, port: usize) -> String {
    format!(
        "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: c{priority}}}, spec: {{tier: \
         Admin, priority: {priority}, subject: {{namespaces: {{matchLabels: {{team: t{priority}}}}}}}, ingress: [{{action: Deny, \
         from: [{{namespaces: {{matchLabels: {{team: t{}}}}}}}], protocols: [{{tcp: {{destinationPort: {{number: {port}}}}}}}]}}]}}}}\n---\n",
        priority + 1
    )
}

fn objects(text: &str) -> Vec<Change> {
    let manifests = parse(text);
    assert!(manifests.refused.is_empty(), "{:?}", manifests.refused.first());
    manifests.accepted.into_iter().map(|found| Change::Set(found.object)).collect()
}

struct Node {
    state: ClusterState,
    tables: PolicyTables,
}

impl Node {
    fn take_up(&mut self, changes: Vec<Change>) -> Duration {
        let start = CpuTime::now();
        let delta = self.state.apply(changes);
        self.tables.update(&self.state, &delta);
        start.elapsed()
    }

    /// The median and the 99th of 100 of how long each of these changes takes.
    fn measure(&mut self, what: &str, changes: impl Iterator<Item = Vec<Change>>) -> Duration {
        let mut times: Vec<Duration> = changes.map(|changes| self.take_up(changes)).collect();
        times.sort();
        let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("{what}: {median:?}, p99 {p99:?}, of {} changes", times.len());
        p99
    }
}

#[test]
fn one_change_costs_what_it_changes() {
    let mut text = String::new();
    for number in 0..NAMESPACES {
        text += &namespace(number, number % 20);
        for pod_number in 0..PODS_EACH {
            text += &pod(number, pod_number, pod_number % 5);
        }
        for policy_number in 0..POLICIES_EACH {
            text += &policy(number, policy_number, 80);
        }
    }
    (0..5).for_each(|priority| text += &cluster_policy(priority, 22));
    let changes = objects(&text);
    let mode = Mode { enforcement: Enforcement::On, ..Mode::default() };
    for scope in [Scope::Node("n0".into()), Scope::All] {
        let tables = PolicyTables::new(scope.clone(), mode.clone());
        let mut node = Node { state: ClusterState::default(), tables };
        let start = CpuTime::now();
        let delta = node.state.apply(changes.clone());
        let read = start.elapsed();
        let start = CpuTime::now();
        node.tables.update(&node.state, &delta);
        println!("\n{scope:?}: {:?}", node.tables.counts());
        println!("all at once: {:?}, after {read:?} for the state", start.elapsed());
        assert_eq!(node.tables.table().len(), NAMESPACES * PODS_EACH * 2);

        let step = NAMESPACES.div_ceil(500);
        let each = || (0..NAMESPACES).step_by(step);
        let pods = each().map(|number| objects(&pod(number, 0, 1)));
        let mut worst = node.measure("a pod with other labels", pods);
        let key = |number: usize| ObjectKey {
            kind: ObjectKind::Pod,
            id: ObjectName::new(format!("ns{number}"), "p1"),
        };
        let gone = each().map(|number| vec![Change::Remove(key(number))]);
        worst = worst.max(node.measure("a pod that goes", gone));
        let new = each().map(|number| objects(&pod(number, 1, 1)));
        worst = worst.max(node.measure("a pod that comes", new));
        for (number, what) in [
            (0, "deny all"),
            (2, "the own namespace"),
            (4, "names of ports"),
            (5, "another namespace"),
        ] {
            let changed = each().map(|namespace| {
                if number == 0 {
                    let key = ObjectKey {
                        kind: ObjectKind::NetworkPolicy,
                        id: ObjectName::new(format!("ns{namespace}"), "np0"),
                    };
                    vec![Change::Remove(key)]
                } else {
                    objects(&policy(namespace, number, 81))
                }
            });
            worst =
                worst.max(node.measure(&format!("a policy about {what} that changes"), changed));
        }
        let back = each().map(|number| objects(&policy(number, 0, 80)));
        worst = worst.max(node.measure("a policy that comes", back));
        assert!(worst < CHANGE_MAX, "{worst:?}");

        // These are for a twentieth of the cluster, and rare.
        let namespaces =
            each().take(50).map(|number| objects(&namespace(number, 19 - number % 20)));
        node.measure("a namespace with other labels", namespaces);
        let cluster = (0..5).map(|priority| objects(&cluster_policy(priority, 23)));
        node.measure("a policy of the cluster for a twentieth of all pods", cluster);
        let all = (0..3).map(|number| {
            objects(&policy(number, 4, 80).replace(
                "namespaceSelector: {matchLabels: {team:",
                "namespaceSelector: {matchExpressions: [{key: none, operator: DoesNotExist}], matchLabels: {nobody:",
            ))
        });
        node.measure("a policy about peers that nobody is", all);
        let all = (0..3).map(|number| {
            let everybody = format!("podSelector: {{matchExpressions: [{{key: none{number}, operator: DoesNotExist}}]}}");
            objects(&format!(
                "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: all{number}, namespace: ns0}}, spec: \
                 {{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{}}, {everybody}}}]}}]}}}}"
            ))
        });
        node.measure("a policy about a new peer that every pod of the cluster is", all);
    }
}
