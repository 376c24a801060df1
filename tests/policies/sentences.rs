//! Policies, from manifests to verdicts: every sentence of the API's documentation as a case, and random clusters
//! against an evaluator that is nothing but these sentences.
//!
//! For 100 000 clusters: `WEFT_POLICY_SEEDS=100000 cargo test --release --test policies random -- --nocapture`

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

use std::net::IpAddr;

use crate::random::{Maker, PORTS, PROTOCOLS};
use crate::reference::{Sent, World, addresses, node_addresses};
use conf::cluster::ClusterState;
use conf::cluster::parse::parse;
use conf::source::Directory;
use serde_json::Value;
use vswitch::policy::{Enforcement, Question, Traffic, judge};
use vswitch::service::Protocol;
use weft::control::policies::{Mode, PolicyTables, Scope};
use weft::policy::is_own_node;

/// How many random clusters, unless `WEFT_POLICY_SEEDS` says.
const SEEDS: u64 = 150;

/// How often each of them is changed.
const CHANGES: usize = 3;

/// How many questions are asked of each state of it.
const QUESTIONS: usize = 60;

/// A cluster as the daemon has it.
struct System {
    directory: Directory,
    state: ClusterState,
    tables: PolicyTables,
}

impl System {
    fn new() -> Self {
        let mode = Mode { enforcement: Enforcement::On, ..Mode::default() };
        Self {
            directory: Directory::new(),
            state: ClusterState::default(),
            tables: PolicyTables::new(Scope::All, mode),
        }
    }

    /// Takes up the manifests of a world, and nothing but what is different in them.
    fn take_up(&mut self, world: &World) {
        let text: Vec<String> = world.objects.iter().map(ToString::to_string).collect();
        let changes = self.directory.set_file("all.json", parse(&text.join("\n---\n")));
        let delta = self.state.apply(changes);
        self.tables.update(&self.state, &delta);
        let refused = self.directory.listing(&self.state).refused;
        let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
        assert!(refused.is_empty(), "{refused:#?} {text:#?}");
    }

    fn allows(&self, from: IpAddr, to: IpAddr, sent: Sent) -> bool {
        allows(&self.tables, &self.state, from, to, sent)
    }
}

fn allows(
    tables: &PolicyTables,
    state: &ClusterState,
    from: IpAddr,
    to: IpAddr,
    sent: Sent,
) -> bool {
    let protocol = |name| match name {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        other => panic!("{other}"),
    };
    let traffic = match sent {
        None => Traffic::Portless,
        Some((name, port)) => Traffic::Port { protocol: protocol(name), port },
    };
    let is_own_node = is_own_node(state, from, to);
    judge(tables.table(), &Question { from, to, traffic, is_own_node }).passes()
}

#[test]
fn random_clusters_are_judged_as_the_documentation_says() {
    let seeds = std::env::var("WEFT_POLICY_SEEDS").ok().and_then(|text| text.parse().ok());
    let first: u64 =
        std::env::var("WEFT_POLICY_FIRST").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let seeds: u64 = seeds.unwrap_or(SEEDS);
    let (mut allowed, mut asked) = (0_u64, 0_u64);
    for seed in first..first + seeds {
        let mut maker = Maker::new(seed);
        let mut world = maker.world();
        let mut system = System::new();
        for change in 0..=CHANGES {
            system.take_up(&world);
            let fresh = PolicyTables::of(&system.state, Scope::All);
            let ends = ends(&world);
            for _ in 0..QUESTIONS {
                let from = maker.pick(&ends);
                let same_family: Vec<IpAddr> =
                    ends.iter().copied().filter(|to| to.is_ipv4() == from.is_ipv4()).collect();
                let to = maker.pick(&same_family);
                let sent = (!maker.one_in(8)).then(|| (maker.pick(&PROTOCOLS), maker.pick(&PORTS)));
                let expected = world.allows(from, to, sent);
                let place = || {
                    format!("seed {seed}, change {change}: {from} -> {to} {sent:?} in {world:#?}")
                };
                assert_eq!(system.allows(from, to, sent), expected, "{}", place());
                assert_eq!(
                    allows(&fresh, &system.state, from, to, sent),
                    expected,
                    "made at once: {}",
                    place()
                );
                allowed += u64::from(expected);
                asked += 1;
            }
            maker.change(&mut world);
        }
    }
    println!(
        "{seeds} clusters in {} states each, {asked} questions, {allowed} allowed, 0 differences",
        CHANGES + 1
    );
    // Neither answer is rare, or the comparison is worth little.
    assert!(allowed > asked / 10 && asked - allowed > asked / 10, "{allowed} of {asked}");
}

fn ends(world: &World) -> Vec<IpAddr> {
    let of = |object: &Value| match object["kind"].as_str().unwrap() {
        "Pod" => addresses(object),
        "Node" => node_addresses(object),
        _ => Vec::new(),
    };
    let outside = ["192.0.2.200", "10.0.0.200", "2001:db8:1::1"];
    let outside = outside.iter().map(|text| text.parse().unwrap());
    world.objects.iter().flat_map(of).chain(outside).collect()
}

/// The cluster of the cases: two nodes, two namespaces, and in each a few pods.
const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: blue}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {team: green}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {zone: east}}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {zone: west}}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, labels: {app: web}}, spec: {nodeName: n1, containers: [{ports: [{name: http, containerPort: 80}]}]}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: a, labels: {app: db}}, spec: {nodeName: n2, containers: [{ports: [{name: sql, containerPort: 5432}]}]}, status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: b, labels: {app: web}}, spec: {nodeName: n1, containers: [{ports: [{name: http, containerPort: 8080}]}]}, status: {podIPs: [{ip: 10.0.0.3}, {ip: 'fd00::3'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: api, namespace: b, labels: {app: api}}, spec: {nodeName: n2, containers: [{ports: [{name: http, containerPort: 80, protocol: UDP}]}]}, status: {podIPs: [{ip: 10.0.0.4}, {ip: 'fd00::4'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: b, labels: {app: web}}, spec: {nodeName: n2, hostNetwork: true, containers: []}, status: {podIPs: [{ip: 192.0.2.2}]}}
";

/// A NetworkPolicy in the namespace a.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: a}}, spec: {{{spec}}}}}\n---\n"
    )
}

/// A ClusterNetworkPolicy.
fn cluster(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, spec: \
         {{{spec}}}}}\n---\n"
    )
}

/// Asks both evaluators what is on the lines, which read `FROM TO WHAT yes|no`. Ends are pods as `namespace/name`, with
/// `/6` behind that over IPv6, or addresses; WHAT is `TCP80` or `ICMP`.
fn expect(policies: &str, lines: &str) {
    let text = format!("{CLUSTER}---\n{policies}");
    let documents = text.split("---\n").filter(|document| !document.trim().is_empty());
    let objects = documents.map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    let world = World { objects: objects.collect() };
    let mut system = System::new();
    system.take_up(&world);
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let [from, to, what, answer] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let sent = match what {
            "ICMP" => None,
            what => PROTOCOLS.iter().find_map(|protocol| {
                Some((*protocol, what.strip_prefix(protocol)?.parse().unwrap()))
            }),
        };
        assert!(sent.is_some() || what == "ICMP", "{line}");
        let (from, to) = (end(&world, from), end(&world, to));
        let expected = answer == "yes";
        assert!(expected || answer == "no", "{line}");
        assert_eq!(world.allows(from, to, sent), expected, "the reference: {line}\n{policies}");
        assert_eq!(system.allows(from, to, sent), expected, "{line}\n{policies}");
    }
}

fn end(world: &World, text: &str) -> IpAddr {
    if let Ok(address) = text.parse() {
        return address;
    }
    let (text, family) = match text.strip_suffix("/6") {
        Some(text) => (text, 1),
        None => (text, 0),
    };
    let (namespace, name) = text.split_once('/').unwrap();
    let pod = world.objects.iter().find(|object| {
        object["kind"] == "Pod"
            && object["metadata"]["namespace"] == namespace
            && object["metadata"]["name"] == name
    });
    addresses(pod.unwrap_or_else(|| panic!("{text}")))[family]
}

#[test]
fn without_policies_everything_is_allowed() {
    expect("", "a/web b/web TCP80 yes\n203.0.113.9 a/web UDP1 yes\na/web 203.0.113.9 ICMP yes");
}

#[test]
fn an_empty_selector_matches_all_pods_of_the_policys_namespace_only() {
    // "An empty selector matches all pods in the policy's namespace."
    // "If this field is empty then this NetworkPolicy does not allow any traffic"
    expect(
        &policy("deny", "podSelector: {}"),
        "b/web a/web TCP80 no
         b/web a/db TCP80 no
         a/db a/web TCP80 no
         b/web a/web ICMP no
         b/web a/web SCTP80 no
         203.0.113.9 a/web TCP80 no
         b/web/6 a/web/6 TCP80 no
         a/web b/web TCP80 yes
         a/web 203.0.113.9 TCP80 yes
         b/api b/web TCP80 yes",
    );
}

#[test]
fn default_deny_of_egress() {
    expect(
        &policy("deny", "podSelector: {}, policyTypes: [Egress]"),
        "a/web b/web TCP80 no
         a/web a/db TCP80 no
         a/web 203.0.113.9 UDP53 no
         a/web b/web ICMP no
         b/web a/web TCP80 yes
         203.0.113.9 a/web TCP80 yes",
    );
}

#[test]
fn an_empty_rule_allows_everything_and_no_rule_nothing() {
    expect(
        &policy("all", "podSelector: {}, ingress: [{}]"),
        "b/web a/web TCP80 yes\n203.0.113.9 a/web ICMP yes",
    );
    expect(&policy("none", "podSelector: {}, ingress: []"), "b/web a/web TCP80 no");
    // "If this field is empty or missing, this rule matches all sources" and likewise all ports.
    expect(
        &policy("all", "podSelector: {}, ingress: [{from: [], ports: []}]"),
        "203.0.113.9 a/web ICMP yes",
    );
}

#[test]
fn an_empty_peer_selector_is_not_an_empty_list() {
    // podSelector {}: all pods of the own namespace. namespaceSelector {}: all pods of all. Neither is the world.
    expect(
        &policy("own", "podSelector: {}, ingress: [{from: [{podSelector: {}}]}]"),
        "a/db a/web TCP80 yes\nb/web a/web TCP80 no\n203.0.113.9 a/web TCP80 no",
    );
    expect(
        &policy("all", "podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]"),
        "a/db a/web TCP80 yes\nb/web a/web TCP80 yes\n203.0.113.9 a/web TCP80 no\n192.0.2.2 a/web TCP80 no",
    );
}

#[test]
fn selectors_in_one_peer_are_anded_and_peers_are_ored() {
    let both =
        "namespaceSelector: {matchLabels: {team: green}}, podSelector: {matchLabels: {app: web}}";
    expect(
        &policy("and", &format!("podSelector: {{}}, ingress: [{{from: [{{{both}}}]}}]")),
        "b/web a/db TCP80 yes\nb/api a/db TCP80 no\na/web a/db TCP80 no",
    );
    let either = "{namespaceSelector: {matchLabels: {team: green}}}, {podSelector: {matchLabels: {app: web}}}";
    expect(
        &policy("or", &format!("podSelector: {{}}, ingress: [{{from: [{either}]}}]")),
        "b/web a/db TCP80 yes\nb/api a/db TCP80 yes\na/web a/db TCP80 yes\na/db a/web TCP80 no",
    );
}

#[test]
fn every_operator_of_match_expressions() {
    let with = |expression: &str| {
        policy(
            "p",
            &format!(
                "podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{}}, podSelector: {{matchExpressions: \
                 [{{{expression}}}]}}}}]}}]"
            ),
        )
    };
    expect(
        &with("key: app, operator: In, values: [web, api]"),
        "b/web a/db TCP80 yes\nb/api a/db TCP80 yes\na/db a/web TCP80 no",
    );
    expect(
        &with("key: app, operator: NotIn, values: [web]"),
        "b/web a/db TCP80 no\nb/api a/db TCP80 yes\na/db a/web TCP80 yes",
    );
    // NotIn also selects what has no such label.
    expect(&with("key: none, operator: NotIn, values: [web]"), "b/web a/db TCP80 yes");
    expect(&with("key: app, operator: Exists"), "b/web a/db TCP80 yes");
    expect(&with("key: none, operator: Exists"), "b/web a/db TCP80 no");
    expect(&with("key: none, operator: DoesNotExist"), "b/web a/db TCP80 yes");
    expect(&with("key: app, operator: DoesNotExist"), "b/web a/db TCP80 no");
}

#[test]
fn a_namespace_can_be_selected_by_its_name() {
    let by_name = "namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: b}}";
    expect(
        &policy("p", &format!("podSelector: {{}}, ingress: [{{from: [{{{by_name}}}]}}]")),
        "b/web a/db TCP80 yes\na/web a/db TCP80 no",
    );
}

#[test]
fn rules_and_policies_are_a_union() {
    // "the ingress rules for each are combined additively"
    expect(
        &(policy(
            "one",
            "podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]",
        ) + &policy(
            "two",
            "podSelector: {}, ingress: [{ports: [{port: 81}]}, {ports: [{port: 82}]}]",
        ) + &policy("deny", "podSelector: {}")),
        "b/web a/web TCP80 yes
         b/web a/web TCP81 yes
         b/web a/web TCP82 yes
         b/web a/web TCP83 no
         b/web a/db TCP80 no
         b/web a/db TCP81 yes",
    );
}

#[test]
fn both_sides_have_to_allow() {
    expect(
        &(policy(
            "out",
            "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]",
        ) + &policy(
            "in",
            "podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 5432}]}]",
        )),
        "a/web a/db TCP5432 yes\na/web a/db TCP80 no\na/web b/web TCP5432 no\nb/web a/db TCP5432 yes",
    );
}

#[test]
fn a_pod_always_reaches_itself() {
    let deny = policy("deny", "podSelector: {}, policyTypes: [Ingress, Egress]");
    expect(&deny, "a/web a/web TCP80 yes\na/web/6 a/web/6 ICMP yes\na/web a/db TCP80 no");
}

#[test]
fn the_pods_own_node_is_always_allowed_and_other_nodes_are_not() {
    let deny = policy("deny", "podSelector: {}, policyTypes: [Ingress, Egress]");
    expect(
        &deny,
        "192.0.2.1 a/web TCP80 yes
         a/web 192.0.2.1 TCP80 yes
         192.0.2.2 a/web TCP80 no
         a/web 192.0.2.2 TCP80 no
         192.0.2.2 a/db TCP80 yes",
    );
}

#[test]
fn pods_on_their_nodes_network_are_their_nodes() {
    // No policy selects them, and as peers they are their node's addresses.
    let in_b = policy("deny", "podSelector: {}, policyTypes: [Ingress, Egress]")
        .replace("namespace: a", "namespace: b");
    expect(&in_b, "a/web b/host TCP80 yes\nb/host a/web TCP80 yes\na/web b/web TCP80 no");
    let web = "{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}";
    expect(
        &policy("p", &format!("podSelector: {{}}, ingress: [{{from: [{web}]}}]")),
        "b/web a/web TCP80 yes\nb/host a/web TCP80 no",
    );
    expect(
        &policy("p", "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.0.2.2/32}}]}]"),
        "b/host a/web TCP80 yes\nb/web a/web TCP80 no",
    );
}

#[test]
fn a_block_is_about_addresses_whosesoever() {
    let block = |block: &str| {
        policy("p", &format!("podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{{block}}}}}]}}]"))
    };
    expect(
        &block("cidr: 10.0.0.0/24, except: [10.0.0.4/32]"),
        "b/web a/web TCP80 yes\nb/api a/web TCP80 no\n203.0.113.9 a/web TCP80 no\nb/web/6 a/web/6 TCP80 no",
    );
    expect(
        &block("cidr: 0.0.0.0/0"),
        "b/web a/web TCP80 yes\n203.0.113.9 a/web ICMP yes\n192.0.2.2 a/web TCP80 yes\nb/web/6 a/web/6 TCP80 no",
    );
    expect(&block("cidr: '::/0'"), "b/web/6 a/web/6 TCP80 yes\nb/web a/web TCP80 no");
    expect(
        &policy(
            "p",
            "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]",
        ),
        "a/web 203.0.113.9 TCP80 yes\na/web b/web TCP80 no\na/web 192.0.2.2 TCP80 no",
    );
}

#[test]
fn what_one_rule_excepts_another_may_allow() {
    let except = "{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.3/32]}}]}";
    let again = "{from: [{ipBlock: {cidr: 10.0.0.3/32}}]}";
    let of = |rules: &str| format!("podSelector: {{}}, ingress: [{rules}]");
    expect(&policy("p", &of(except)), "b/web a/web TCP80 no");
    expect(&policy("p", &of(&format!("{except}, {again}"))), "b/web a/web TCP80 yes");
    let two = policy("p", &of(except)) + &policy("q", &of(again));
    expect(&two, "b/web a/web TCP80 yes");
}

#[test]
fn ports_by_number_and_range_and_protocol() {
    let ports =
        |ports: &str| policy("p", &format!("podSelector: {{}}, ingress: [{{ports: [{ports}]}}]"));
    // "If not specified, this field defaults to TCP."
    expect(
        &ports("{port: 80}"),
        "b/web a/web TCP80 yes\nb/web a/web UDP80 no\nb/web a/web SCTP80 no",
    );
    // "If this field is not provided, this matches all port names and numbers."
    expect(
        &ports("{protocol: UDP}"),
        "b/web a/web UDP1 yes\nb/web a/web UDP65535 yes\nb/web a/web TCP1 no\nb/web a/web ICMP no",
    );
    // "the range of ports from port to endPort if set, inclusive"
    expect(
        &ports("{port: 80, endPort: 82}"),
        "b/web a/web TCP79 no\nb/web a/web TCP80 yes\nb/web a/web TCP82 yes\nb/web a/web TCP83 no",
    );
    expect(&ports("{port: 1, endPort: 65535}"), "b/web a/web TCP65535 yes\nb/web a/web UDP1 no");
    // SCTP isolates, and is never taken for TCP.
    expect(
        &ports("{protocol: SCTP, port: 80}"),
        "b/web a/web SCTP80 yes\nb/web a/web SCTP81 no\nb/web a/web TCP80 no",
    );
    // Ports are asked of what has ports alone.
    expect(&ports("{port: 80}"), "b/web a/web ICMP no");
    expect(&policy("p", "podSelector: {}, ingress: [{}]"), "b/web a/web ICMP yes");
}

#[test]
fn names_of_ports_are_those_of_the_pod_that_is_sent_to() {
    let inwards =
        |spec: &str| policy("p", &format!("podSelector: {{}}, ingress: [{{ports: [{spec}]}}]"));
    expect(
        &inwards("{port: http}"),
        "b/web a/web TCP80 yes\nb/web a/web TCP8080 no\nb/web a/db TCP80 no\nb/web a/web ICMP no",
    );
    // A name that a pod does not have, or has for another protocol, is no port of it; least of all every port.
    expect(&inwards("{port: sql}"), "b/web a/web TCP5432 no\nb/web a/db TCP5432 yes");
    expect(&inwards("{port: http, protocol: UDP}"), "b/web a/web UDP80 no\nb/web a/web TCP80 no");
    let outwards = |peers: &str, port: &str| {
        policy(
            "p",
            &format!(
                "podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{peers}], ports: [{port}]}}]"
            ),
        )
    };
    // Each receiver has its own number for it.
    let all = "{namespaceSelector: {}}";
    expect(
        &outwards(all, "{port: http}"),
        "a/db a/web TCP80 yes
         a/db b/web TCP8080 yes
         a/db b/web TCP80 no
         a/db a/web TCP8080 no
         a/db b/api TCP80 no
         a/db b/api UDP80 no",
    );
    expect(
        &outwards(all, "{port: http, protocol: UDP}"),
        "a/db b/api UDP80 yes\na/db b/api TCP80 no",
    );
    expect(
        &outwards("", "{port: http}, {port: 443}"),
        "a/db b/web TCP8080 yes\na/db b/web TCP443 yes\na/db 203.0.113.9 TCP8080 no\na/db 203.0.113.9 TCP443 yes",
    );
    // A block is about addresses, and so about the pods that have them.
    expect(
        &outwards("{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.1/32]}}", "{port: http}"),
        "a/db b/web TCP8080 yes\na/db a/web TCP80 no\na/db b/web/6 TCP8080 no",
    );
}

#[test]
fn tiers_in_their_order() {
    let subject = "subject: {namespaces: {}}";
    let from_b = "from: [{namespaces: {matchLabels: {team: green}}}]";
    let admin = |action: &str, priority: u16| {
        cluster(
            &format!("c{priority}"),
            &format!(
                "tier: Admin, priority: {priority}, {subject}, ingress: [{{action: {action}, {from_b}}}]"
            ),
        )
    };
    let baseline = |action: &str| {
        cluster(
            "base",
            &format!(
                "tier: Baseline, priority: 0, {subject}, ingress: [{{action: {action}, {from_b}}}]"
            ),
        )
    };
    let deny = policy("deny", "podSelector: {}");
    let allow = policy("allow", "podSelector: {}, ingress: [{}]");
    // Admin rules come before those of namespaces, whichever way.
    expect(&(admin("Accept", 1) + &deny), "b/web a/web TCP80 yes\na/db a/web TCP80 no");
    expect(&(admin("Deny", 1) + &allow), "b/web a/web TCP80 no\na/db a/web TCP80 yes");
    // Pass leaves it to the namespace, and without a policy there to the baseline.
    expect(&(admin("Pass", 1) + &deny), "b/web a/web TCP80 no");
    expect(&(admin("Pass", 1) + &allow + &baseline("Deny")), "b/web a/web TCP80 yes");
    expect(&(admin("Pass", 1) + &baseline("Deny")), "b/web a/web TCP80 no\na/db a/web TCP80 yes");
    // A pass skips what comes later in its tier.
    expect(&(admin("Pass", 1) + &admin("Deny", 2)), "b/web a/web TCP80 yes");
    expect(&(admin("Deny", 1) + &admin("Accept", 2)), "b/web a/web TCP80 no");
    // "Further evaluation only happens for Pods not selected by a v1.NetworkPolicy."
    expect(&(baseline("Accept") + &deny), "b/web a/web TCP80 no");
    expect(&baseline("Deny"), "b/web a/web TCP80 no\nb/web b/api TCP80 no\na/web a/db TCP80 yes");
    // Nodes and the world are no pods.
    expect(
        &admin("Deny", 1),
        "192.0.2.2 a/web TCP80 yes\nb/host a/web TCP80 yes\n203.0.113.9 a/web TCP80 yes",
    );
}

#[test]
fn rules_of_the_cluster_in_their_order_with_every_peer() {
    let egress = |rules: &str| {
        cluster(
            "c",
            &format!(
                "tier: Admin, priority: 1, subject: {{pods: {{namespaceSelector: {{}}, podSelector: \
             {{matchLabels: {{app: web}}}}}}}}, egress: [{rules}]"
            ),
        )
    };
    expect(
        &egress(
            "{action: Accept, to: [{networks: [10.0.0.4/32]}]}, {action: Deny, to: [{networks: [0.0.0.0/0]}]}",
        ),
        "a/web b/api TCP80 yes
         a/web a/db TCP80 no
         a/web 203.0.113.9 ICMP no
         a/web/6 a/db/6 TCP80 yes
         a/db a/web TCP80 yes
         a/web 192.0.2.1 TCP80 yes",
    );
    expect(
        &egress("{action: Deny, to: [{nodes: {matchLabels: {zone: west}}}]}"),
        "a/web 192.0.2.2 TCP80 no\na/web b/host TCP80 no\na/web b/api TCP80 yes",
    );
    expect(
        &egress(
            "{action: Deny, to: [{namespaces: {}}], protocols: [{destinationNamedPort: http}, {tcp: {destinationPort: \
                 {range: {start: 90, end: 99}}}}]}",
        ),
        "a/web b/web TCP8080 no
         a/web b/api UDP80 no
         a/web b/api TCP80 yes
         a/web b/api TCP95 no
         a/web b/api UDP95 yes
         a/web b/api ICMP yes",
    );
}

#[test]
fn the_older_kinds_say_the_same_in_other_words() {
    let old = |kind: &str, name: &str, spec: &str| {
        format!(
            "{{apiVersion: policy.networking.k8s.io/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, spec: \
             {{subject: {{namespaces: {{}}}}, {spec}}}}}\n---\n"
        )
    };
    let rule = |action: &str| {
        format!(
            "ingress: [{{action: {action}, from: [{{namespaces: {{matchLabels: {{team: green}}}}}}], ports: [{{portNumber: {{port: \
             80}}}}, {{portRange: {{protocol: UDP, start: 1, end: 9}}}}, {{namedPort: sql}}]}}]"
        )
    };
    expect(
        &old("AdminNetworkPolicy", "p", &format!("priority: 1, {}", rule("Deny"))),
        "b/web a/web TCP80 no
         b/web a/web TCP81 yes
         b/web a/web UDP9 no
         b/web a/db TCP5432 no
         a/web a/db TCP80 yes",
    );
    let baseline = old("BaselineAdminNetworkPolicy", "default", &rule("Deny"));
    expect(&baseline, "b/web a/web TCP80 no");
    expect(
        &(baseline + &policy("allow", "podSelector: {}, ingress: [{}]")),
        "b/web a/web TCP80 yes",
    );
}

#[test]
fn a_node_makes_rules_for_its_own_pods_and_takes_others_for_peers() {
    let deny = policy("deny", "podSelector: {}, policyTypes: [Ingress, Egress]");
    let mut directory = Directory::new();
    let mut state = ClusterState::default();
    state.apply(directory.set_file("a.yaml", parse(&format!("{CLUSTER}---\n{deny}"))));
    let tables = PolicyTables::of(&state, Scope::Node("n1".into()));
    let of = |address: &str| tables.table().subject(address.parse().unwrap()).unwrap();
    assert!(of("10.0.0.1").egress.is_some() && of("10.0.0.1").ingress.is_some());
    // The other node's: what it is sent, for when this node takes a client's place.
    assert!(of("10.0.0.2").egress.is_none() && of("10.0.0.2").ingress.is_some());
    // Not selected.
    assert!(of("10.0.0.3").egress.is_none() && of("10.0.0.3").ingress.is_none());
    assert!(tables.table().subject("192.0.2.2".parse().unwrap()).is_none());
}
