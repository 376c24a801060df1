//! What a change costs, and what outlives it.

use conf::cluster::parse::parse;
use conf::cluster::{Authority, Change, ClusterState, Labels, ObjectName, PodFact, ServiceConfig};
use conf::source::Directory;
use vswitch::policy::Traffic;

use super::*;

struct Node {
    directory: Directory,
    state: ClusterState,
    tables: PolicyTables,
}

impl Node {
    fn new() -> Self {
        let mode = Mode { enforcement: Enforcement::On, ..Mode::default() };
        Self {
            directory: Directory::new(),
            state: ClusterState::default(),
            tables: PolicyTables::new(Scope::All, mode),
        }
    }

    fn set(&mut self, file: &str, text: &str) {
        let changes = self.directory.set_file(file, parse(text));
        let refused = self.directory.listing(&self.state).refused;
        assert!(refused.is_empty(), "{refused:?}");
        let delta = self.state.apply(changes);
        self.tables.update(&self.state, &delta);
    }

    fn remove(&mut self, file: &str) {
        let changes = self.directory.remove_file(file);
        let delta = self.state.apply(changes);
        self.tables.update(&self.state, &delta);
    }

    fn subject(&self, address: &str) -> Arc<Subject> {
        Arc::clone(self.tables.table().subject(address.parse().unwrap()).unwrap())
    }
}

fn pod(name: &str, address: &str, ports: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec: {{containers: [{{ports: \
         [{ports}]}}]}}\nstatus: {{podIP: {address}}}\n---\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
    )
}

#[test]
fn pods_with_the_same_policies_share_their_rules() {
    let mut node = Node::new();
    node.set("pods", &(pod("a", "10.0.0.1", "") + &pod("b", "10.0.0.2", "")));
    node.set("policies", &policy("p", "ingress: [{ports: [{port: 80}]}]"));
    let (a, b) = (node.subject("10.0.0.1"), node.subject("10.0.0.2"));
    assert!(Arc::ptr_eq(a.ingress.as_ref().unwrap(), b.ingress.as_ref().unwrap()));
    assert!(a.egress.is_none());
    assert_eq!(node.tables.counts().rule_sets, 1);
    // With a name for a port in it, only if it is the same number for both.
    node.set("policies", &policy("p", "ingress: [{ports: [{port: http}]}]"));
    let port = |number: u16| format!("{{name: http, containerPort: {number}}}");
    node.set("pods", &(pod("a", "10.0.0.1", &port(80)) + &pod("b", "10.0.0.2", &port(81))));
    let (a, b) = (node.subject("10.0.0.1"), node.subject("10.0.0.2"));
    assert!(!Arc::ptr_eq(a.ingress.as_ref().unwrap(), b.ingress.as_ref().unwrap()));
}

/// A pod that a node has attached, whose labels others tell.
fn attached(name: &str, address: &str) -> PodFact {
    PodFact {
        id: ObjectName::new("default", name),
        node: "n1".into(),
        addresses: [address.parse().unwrap()].into(),
        labels: Labels::default(),
        host_network: false,
        since_ms: 0,
    }
}

#[test]
fn a_pod_that_is_not_known_yet_is_not_who_had_its_address_before() {
    let mut node = Node::new();
    let config = ServiceConfig { authority: Authority::Kubernetes, ..ServiceConfig::default() };
    node.state = ClusterState::new(config);
    node.set("policies", &policy("p", "podSelector: {matchLabels: {app: a}}"));
    node.set("a", &pod("a", "10.0.0.1", ""));
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    assert!(node.subject("10.0.0.1").ingress.is_some());
    // That `a` has ended was never heard of.
    let delta = node.state.apply([Change::SetPod(attached("b", "10.0.0.1"))]);
    node.tables.update(&node.state, &delta);
    assert!(node.tables.table().subject(address).is_none());
    node.set("b", &pod("b", "10.0.0.1", ""));
    assert!(node.subject("10.0.0.1").ingress.is_none(), "it is b's now");
    node.remove("b");
    assert!(node.tables.table().subject(address).is_none());
    let delta = node
        .state
        .apply([Change::RemovePod { id: ObjectName::new("default", "b"), node: "n1".into() }]);
    node.tables.update(&node.state, &delta);
    assert!(node.subject("10.0.0.1").ingress.is_some(), "nobody else claims it");
}

#[test]
fn on_a_kubernetes_cluster_a_pod_without_its_object_is_nobody() {
    for (authority, is_somebody) in [(Authority::Weft, true), (Authority::Kubernetes, false)] {
        let mut node = Node::new();
        node.state = ClusterState::new(ServiceConfig { authority, ..ServiceConfig::default() });
        let delta = node.state.apply([Change::SetPod(attached("a", "10.0.0.1"))]);
        node.tables.update(&node.state, &delta);
        node.set("policies", &policy("p", "podSelector: {matchLabels: {app: a}}"));
        let subject = |node: &Node| node.tables.table().subject([10, 0, 0, 1].into()).cloned();
        assert_eq!(subject(&node).is_some(), is_somebody, "{authority:?}");
        node.set("pods", &pod("a", "10.0.0.1", ""));
        assert!(subject(&node).is_some_and(|it| it.ingress.is_some()), "{authority:?}");
    }
}

#[test]
fn nothing_but_what_changed_is_another() {
    let mut node = Node::new();
    node.set("pods", &(pod("a", "10.0.0.1", "") + &pod("b", "10.0.0.2", "")));
    node.set(
        "p",
        &policy(
            "p",
            "podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {}}]}]",
        ),
    );
    let generation = node.tables.table().generation();
    let (a, b) = (node.subject("10.0.0.1"), node.subject("10.0.0.2"));
    // A pod that is ready, or has another annotation, is no other peer.
    let ready = pod("b", "10.0.0.2", "")
        .replace("podIP", "conditions: [{type: Ready, status: 'False'}], podIP");
    node.set("pods", &(pod("a", "10.0.0.1", "") + &ready));
    assert_eq!(node.tables.table().generation(), generation);
    // A new pod leaves the others alone, with their rules.
    node.set("more", &pod("c", "10.0.0.3", ""));
    assert_ne!(node.tables.table().generation(), generation);
    assert!(
        Arc::ptr_eq(&a, &node.subject("10.0.0.1")) && Arc::ptr_eq(&b, &node.subject("10.0.0.2"))
    );
    // A policy that goes leaves nothing.
    node.remove("p");
    assert!(!node.subject("10.0.0.1").is_judged());
    assert_eq!(node.tables.counts().selectors, 0);
    node.remove("more");
    node.remove("pods");
    assert!(node.tables.table().is_empty() && node.tables.table().policies().is_empty());
}

#[test]
fn what_was_counted_of_a_rule_stays_as_long_as_the_rule() {
    let mut node = Node::new();
    node.set("pods", &pod("a", "10.0.0.1", ""));
    node.set("p", &policy("p", "ingress: [{ports: [{port: 80}]}, {ports: [{port: 81}]}]"));
    let names = |node: &Node| {
        let policies = node.tables.table().policies();
        let [policy] = policies[..] else { panic!("{policies:?}") };
        (Arc::clone(&policy.name), policy.rules.clone())
    };
    let before = names(&node);
    node.set("p", &policy("p", "ingress: [{ports: [{port: 80}]}, {ports: [{port: 82}]}]"));
    let after = names(&node);
    assert!(Arc::ptr_eq(&before.0, &after.0));
    assert!(Arc::ptr_eq(&before.1[0], &after.1[0]) && !Arc::ptr_eq(&before.1[1], &after.1[1]));
}

#[test]
fn an_address_that_two_claim_is_the_same_ones_everywhere() {
    let mut node = Node::new();
    node.set("b", &pod("b", "10.0.0.1", ""));
    assert_eq!(&*node.subject("10.0.0.1").name, "default/b");
    node.set("a", &pod("a", "10.0.0.1", ""));
    assert_eq!(&*node.subject("10.0.0.1").name, "default/a");
    node.remove("a");
    assert_eq!(&*node.subject("10.0.0.1").name, "default/b");
}

#[test]
fn why_no_rule_matches() {
    let mut node = Node::new();
    node.set("pods", &(pod("a", "10.0.0.1", "") + &pod("b", "10.0.0.2", "")));
    let peers = "from: [{podSelector: {matchLabels: {app: b}}}]";
    node.set(
        "p",
        &policy(
            "p",
            &format!(
                "podSelector: {{matchLabels: {{app: a}}}}, ingress: [{{{peers}, ports: [{{port: 80}}]}}, {{ports: [{{port: \
                 http}}]}}, {{from: [{{ipBlock: {{cidr: 192.0.2.0/24}}}}]}}]"
            ),
        ),
    );
    let id = ObjectName::new("default", "a");
    let traffic = Traffic::Port { protocol: vswitch::service::Protocol::Tcp, port: 81 };
    let misses = node.tables.misses(&id, Direction::Ingress, "10.0.0.2".parse().unwrap(), traffic);
    let seen: Vec<_> = misses.iter().map(|miss| (miss.rule, miss.peer, miss.port)).collect();
    assert_eq!(seen, [(0, true, false), (1, true, false), (2, false, true)]);
}
