//! Tables of policies: what is accepted, as what, and what is refused, with which words.

use super::*;
use crate::cluster::labels::{LabelSelector, Operator};
use crate::cluster::object::Protocol;
use crate::cluster::policy::*;

/// What is said of a text: `line: field: reason`.
fn refused(text: &str) -> Vec<String> {
    let manifests = parse(text);
    let problems = manifests.refused.iter().flat_map(|refused| &refused.problems);
    problems.map(|problem| format!("{}: {problem}", problem.line)).collect()
}

fn accepted(text: &str) -> (Object, Vec<String>) {
    let manifests = parse(text);
    assert_eq!(refused(text), Vec::<String>::new(), "{text}");
    let [one] = &manifests.accepted[..] else { panic!("{manifests:?}") };
    (one.object.clone(), one.notes.iter().map(ToString::to_string).collect())
}

/// A NetworkPolicy with these lines in its spec, of which the first is the file's 4th.
fn network(spec: &str) -> String {
    let lines: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: a}},\n\n spec: {{\n{lines} }}}}\n"
    )
}

fn policy(spec: &str) -> NetworkPolicy {
    let (Object::NetworkPolicy(policy), _) = accepted(&network(spec)) else { panic!("{spec}") };
    (*policy).clone()
}

fn only_rule(rules: Option<&[PolicyRule]>) -> PolicyRule {
    let Some([rule]) = rules else { panic!("{rules:?}") };
    rule.clone()
}

/// Which directions a policy is about: ingress, egress.
fn directions(spec: &str) -> (bool, bool) {
    let policy = policy(spec);
    (policy.ingress.is_some(), policy.egress.is_some())
}

#[test]
fn policy_types_default_as_the_api_server_sets_them() {
    for (spec, ingress, egress) in [
        // "policies that contain an egress section are assumed to affect egress, and all policies (whether or
        // not they contain an ingress section) are assumed to affect ingress"
        ("", true, false),
        ("podSelector: {}", true, false),
        ("ingress: [{}]", true, false),
        ("egress: [{}]", true, true),
        ("egress: [{}], ingress: []", true, true),
        // The section has to have rules: the API server looks at its length.
        ("egress: []", true, false),
        ("policyTypes: []", true, false),
        ("policyTypes: [], egress: [{}]", true, true),
        // "If you want to write an egress-only policy, you must explicitly specify policyTypes [ "Egress" ]"
        ("policyTypes: [Egress]", false, true),
        ("policyTypes: [Egress], egress: [{}]", false, true),
        ("policyTypes: [Ingress]", true, false),
        ("policyTypes: [Ingress], egress: [{}]", true, false),
        ("policyTypes: [Ingress, Egress]", true, true),
        ("policyTypes: [Ingress, Ingress]", true, false),
    ] {
        assert_eq!(directions(spec), (ingress, egress), "{spec}");
    }
    let bare = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\n";
    let (Object::NetworkPolicy(bare), _) = accepted(bare) else { panic!() };
    assert_eq!((bare.pods.clone(), bare.ingress.is_some()), (LabelSelector::default(), true));
}

#[test]
fn rules_without_effect_are_told() {
    let (_, notes) = accepted(&network("policyTypes: [Ingress], egress: [{}]"));
    assert_eq!(
        notes,
        ["spec.egress: has no effect: spec.policyTypes does not name this direction"]
    );
    let (_, notes) = accepted(&network("policyTypes: [Ingress], egress: []"));
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn empty_and_missing_are_told_apart_as_the_api_does() {
    // No rule: isolated, nothing allowed. An empty rule: everything allowed.
    assert_eq!(policy("ingress: []").ingress.as_deref(), Some(&[][..]));
    assert_eq!(policy("").ingress.as_deref(), Some(&[][..]));
    for spec in ["ingress: [{}]", "ingress: [{from: [], ports: []}]", "ingress: [{from: null}]"] {
        let rule = only_rule(policy(spec).ingress.as_deref());
        assert_eq!((rule.peers, rule.ports.len()), (None, 0), "{spec}");
    }
    let pods = |spec: &str| {
        let rule = only_rule(policy(spec).ingress.as_deref());
        let Some([PolicyPeer::Pods(pods)]) = rule.peers.as_deref() else { panic!("{spec}") };
        pods.clone()
    };
    let everything = LabelSelector::default();
    // podSelector alone: the policy's own namespace. namespaceSelector alone: all pods there.
    let own = pods("ingress: [{from: [{podSelector: {}}]}]");
    assert_eq!(own.namespaces, NamespaceSelection::Own("a".into()));
    assert_eq!(own.pods, everything);
    let all = pods("ingress: [{from: [{namespaceSelector: {}}]}]");
    assert_eq!(all.namespaces, NamespaceSelection::Selected(everything.clone()));
    assert_eq!(all.pods, everything);
    // Both in one entry: pods with the one in namespaces with the other.
    let both = pods(
        "ingress: [{from: [{namespaceSelector: {matchLabels: {x: y}}, podSelector: {matchLabels: {app: web}}}]}]",
    );
    let NamespaceSelection::Selected(namespaces) = &both.namespaces else { panic!() };
    assert_eq!(namespaces.labels.get("x").map(AsRef::as_ref), Some("y"));
    assert_eq!(both.pods.labels.get("app").map(AsRef::as_ref), Some("web"));
    // As two entries: either.
    let two = policy("ingress: [{from: [{namespaceSelector: {}}, {podSelector: {}}]}]");
    assert_eq!(only_rule(two.ingress.as_deref()).peers.map(|peers| peers.len()), Some(2));
}

#[test]
fn ports_in_every_form() {
    let ports = |ports: &str| {
        let policy = policy(&format!("egress: [{{ports: [{ports}]}}]"));
        only_rule(policy.egress.as_deref()).ports
    };
    let numbers =
        |protocol, first, last| PolicyPort::Numbers { protocol, ports: PortRange { first, last } };
    assert_eq!(*ports("{}"), [numbers(Protocol::Tcp, 0, 65_535)]);
    assert_eq!(*ports("{port: 80}"), [numbers(Protocol::Tcp, 80, 80)]);
    assert_eq!(*ports("{protocol: SCTP}"), [numbers(Protocol::Sctp, 0, 65_535)]);
    assert_eq!(
        *ports("{protocol: UDP, port: 80, endPort: 80}, {port: 1, endPort: 65535}"),
        [numbers(Protocol::Udp, 80, 80), numbers(Protocol::Tcp, 1, 65_535)]
    );
    assert_eq!(
        *ports("{protocol: UDP, port: dns}"),
        [PolicyPort::Named { protocol: Some(Protocol::Udp), name: "dns".into() }]
    );
}

#[test]
fn blocks_and_expressions() {
    let policy = policy(
        "podSelector: {matchLabels: {a: b}, matchExpressions: [{key: k, operator: In, values: [x, ''\
         ]}, {key: k, operator: NotIn, values: [y]}, {key: l, operator: Exists}, {key: m, operator: DoesNotExist, values: []}]},\n\
         ingress: [{from: [{ipBlock: {cidr: 10.0.0.7/8, except: [10.1.0.0/16, 10.1.0.0/16]}}, {ipBlock: {cidr: 'fd00::/8'}}]}]",
    );
    assert_eq!(policy.pods.expressions.len(), 4);
    assert_eq!(
        policy.pods.expressions[0].operator,
        Operator::In(Box::new(["x".into(), "".into()]))
    );
    let rule = only_rule(policy.ingress.as_deref());
    let Some([PolicyPeer::Block(v4), PolicyPeer::Block(v6)]) = rule.peers.as_deref() else {
        panic!("{rule:?}")
    };
    assert_eq!((v4.cidr.to_string().as_str(), v4.except.len()), ("10.0.0.0/8", 2));
    assert_eq!(v6.cidr.to_string(), "fd00::/8");
}

#[test]
fn network_policies_that_cannot_be_honoured() {
    let table: &[(&str, &[&str])] = &[
        (
            "policyTypes: [ingress]",
            &["4: spec.policyTypes[0]: \"ingress\" is none of Ingress, Egress"],
        ),
        (
            "policyTypes: [Ingress, Egress, Ingress]",
            &["4: spec.policyTypes: has 3 entries: at most 2 are possible"],
        ),
        ("ingres: [{}]", &["4: spec.ingres: there is no such field: did you mean ingress?"]),
        (
            "ingress: [{to: [{podSelector: {}}]}]",
            &["4: spec.ingress[0].to: there is no such field"],
        ),
        (
            "ingress: [\n{from: [{}]}]",
            &[
                "5: spec.ingress[0].from[0]: says nobody: one of podSelector, namespaceSelector, ipBlock is missing",
            ],
        ),
        ("ingress: [{from: [null]}]", &["4: spec.ingress[0].from[0]: is nothing, not a map"]),
        ("ingress: [null]", &["4: spec.ingress[0]: is nothing, not a map"]),
        (
            "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]",
            &["4: spec.ingress[0].from[0].ipBlock: stands alone: addresses, or pods, but not both"],
        ),
        (
            "ingress: [{from: [{ipBlock: {}}]}]",
            &["4: spec.ingress[0].from[0].ipBlock.cidr: is missing"],
        ),
        (
            "ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]",
            &[
                "4: spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.1\" is no range of addresses like 192.0.2.0/24",
            ],
        ),
        (
            "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]",
            &[
                "4: spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/33\" is no range of addresses like 192.0.2.0/24",
            ],
        ),
        (
            "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/255.0.0.0}}]}]",
            &[
                "4: spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/255.0.0.0\" is no range of addresses like \
                 192.0.2.0/24",
            ],
        ),
        (
            "ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}]",
            &[
                "4: spec.ingress[0].from[0].ipBlock.cidr: \"::ffff:10.0.0.0/104\" is an IPv4 address written as IPv6: \
                 write it as IPv4",
            ],
        ),
        (
            "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except:\n [10.0.0.0/8, 11.0.0.0/16, 'fd00::/16']}}]}]",
            &[
                "5: spec.ingress[0].from[0].ipBlock.except[0]: 10.0.0.0/8 is no part of cidr: it must lie in it, and be \
                 smaller",
                "5: spec.ingress[0].from[0].ipBlock.except[1]: 11.0.0.0/16 is no part of cidr: it must lie in it, and be \
                 smaller",
                "5: spec.ingress[0].from[0].ipBlock.except[2]: fd00::/16 is no part of cidr: it must lie in it, and be \
                 smaller",
            ],
        ),
        (
            "egress: [{ports: [{protocol: ICMP}]}]",
            &["4: spec.egress[0].ports[0].protocol: \"ICMP\" is none of TCP, UDP, SCTP"],
        ),
        (
            "egress: [{ports: [{port: 0}]}]",
            &["4: spec.egress[0].ports[0].port: 0 is no port: 1 to 65535"],
        ),
        (
            "egress: [{ports: [{port: '80'}]}]",
            &[
                "4: spec.egress[0].ports[0].port: \"80\" is no port's name: 1 to 15 of a-z, 0-9 and -, with at least one \
                 letter, no -- and no - at the ends",
            ],
        ),
        (
            "egress: [{ports: [{port: 80, endPort: 79}]}]",
            &["4: spec.egress[0].ports[0].endPort: 79 is less than port, which is 80"],
        ),
        (
            "egress: [{ports: [{port: 80, endPort: 65536}]}]",
            &["4: spec.egress[0].ports[0].endPort: 65536 is no port: 1 to 65535"],
        ),
        (
            "egress: [{ports: [{endPort: 80}]}]",
            &[
                "4: spec.egress[0].ports[0].endPort: is the end of a range that has no beginning: port is missing",
            ],
        ),
        (
            "egress: [{ports: [{port: http, endPort: 80}]}]",
            &["4: spec.egress[0].ports[0].endPort: is only for ports with a number"],
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}",
            &[
                "4: spec.podSelector.matchExpressions[0].operator: \"in\" is none of In, NotIn, Exists, DoesNotExist",
            ],
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: In}]}",
            &[
                "4: spec.podSelector.matchExpressions[0].values: is missing: In and NotIn ask for at least one",
            ],
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}",
            &[
                "4: spec.podSelector.matchExpressions[0].values: is missing: In and NotIn ask for at least one",
            ],
        ),
        (
            "podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            &[
                "4: spec.podSelector.matchExpressions[0].values: Exists and DoesNotExist ask for no values",
            ],
        ),
        (
            "podSelector: {matchExpressions: [{operator: Exists}]}",
            &["4: spec.podSelector.matchExpressions[0].key: is missing"],
        ),
        (
            "podSelector: {matchLabels: {a: b c}}",
            &[
                "4: spec.podSelector.matchLabels[a]: \"b c\" is no label's value: at most 63 letters, digits, - _ and ., \
                 with a letter or digit at both ends",
            ],
        ),
        ("podSelector: {app: web}", &["4: spec.podSelector.app: there is no such field"]),
    ];
    for (spec, expected) in table {
        assert_eq!(refused(&network(spec)), *expected, "{spec}");
    }
}

/// A policy of the cluster with this spec, on the file's 3rd line.
fn cluster(kind: &str, version: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: policy.networking.k8s.io/{version}, kind: {kind}, metadata: {{name: {name}}},\n\n spec: {{{spec}}}}}\n"
    )
}

fn newest(spec: &str) -> String {
    cluster("ClusterNetworkPolicy", "v1alpha2", "p", spec)
}

fn admin(spec: &str) -> String {
    cluster("AdminNetworkPolicy", "v1alpha1", "p", spec)
}

#[test]
fn policies_of_the_cluster_in_every_form() {
    let spec = "tier: Baseline, priority: 7, subject: {namespaces: {}}, ingress: [{name: one, action: Pass, from: \
                [{namespaces: {}}, {pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}}], protocols: \
                [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}}, \
                {destinationNamedPort: web}]}], egress: [{action: Deny, to: [{networks: [10.0.0.0/8, 'fd00::/8']}, {nodes: {}}]}]";
    let (Object::ClusterPolicy(policy), _) = accepted(&newest(spec)) else { panic!() };
    assert_eq!((policy.tier, policy.priority), (PolicyTier::Baseline, 7));
    let [rule] = &*policy.ingress else { panic!() };
    assert_eq!((rule.name.as_deref(), rule.action), (Some("one"), PolicyAction::Pass));
    assert_eq!(rule.peers.as_deref().map(<[_]>::len), Some(2));
    let ports = [
        PolicyPort::Numbers { protocol: Protocol::Tcp, ports: PortRange { first: 80, last: 80 } },
        PolicyPort::Numbers { protocol: Protocol::Udp, ports: PortRange { first: 1, last: 9 } },
        PolicyPort::Named { protocol: None, name: "web".into() },
    ];
    assert_eq!(*rule.ports, ports);
    let [rule] = &*policy.egress else { panic!() };
    let Some([PolicyPeer::Block(_), PolicyPeer::Block(_), PolicyPeer::Nodes(_)]) =
        rule.peers.as_deref()
    else {
        panic!("{rule:?}")
    };

    let spec = "priority: 1000, subject: {pods: {namespaceSelector: {}, podSelector: {}}}, ingress: [{action: Allow, from: \
                [{namespaces: {}}], ports: [{portNumber: {port: 80}}, {portRange: {protocol: SCTP, start: 1, end: 2}}, \
                {namedPort: web}]}]";
    let (Object::ClusterPolicy(policy), _) = accepted(&admin(spec)) else { panic!() };
    assert_eq!((policy.tier, policy.priority), (PolicyTier::Admin, 1000));
    assert_eq!(policy.ingress[0].action, PolicyAction::Accept);
    assert_eq!(policy.ingress[0].ports.len(), 3);

    let text = cluster(
        "BaselineAdminNetworkPolicy",
        "v1alpha1",
        "default",
        "subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}]}]",
    );
    let (Object::ClusterPolicy(policy), _) = accepted(&text) else { panic!() };
    assert_eq!((policy.tier, policy.egress[0].action), (PolicyTier::Baseline, PolicyAction::Deny));
}

#[test]
fn policies_of_the_cluster_that_cannot_be_honoured() {
    let start = "tier: Admin, priority: 1, subject: {namespaces: {}}";
    let rule = |rule: &str| newest(&format!("{start}, egress: [{{{rule}}}]"));
    let old = |rule: &str| {
        admin(&format!("priority: 1, subject: {{namespaces: {{}}}}, ingress: [{{{rule}}}]"))
    };
    let to = "action: Accept, to: [{namespaces: {}}]";
    let from = "action: Allow, from: [{namespaces: {}}]";
    let table: Vec<(String, &[&str])> = vec![
        (newest("priority: 1, subject: {namespaces: {}}"), &["3: spec.tier: is missing"]),
        (
            newest("tier: Namespace, priority: 1, subject: {namespaces: {}}"),
            &["3: spec.tier: \"Namespace\" is none of Admin, Baseline"],
        ),
        (
            newest("tier: Admin, priority: 1001, subject: {namespaces: {}}"),
            &["3: spec.priority: 1001 is no priority: 0 to 1000"],
        ),
        (newest("tier: Admin, priority: 1"), &["3: spec.subject: is missing"]),
        (
            newest("tier: Admin, priority: 1, subject: {}"),
            &["3: spec.subject: has 0 of namespaces, pods: exactly one is possible"],
        ),
        (
            newest(
                "tier: Admin, priority: 1, subject: {namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}",
            ),
            &["3: spec.subject: has 2 of namespaces, pods: exactly one is possible"],
        ),
        (
            rule("action: Allow, to: [{namespaces: {}}]"),
            &["3: spec.egress[0].action: \"Allow\" is none of Accept, Deny, Pass"],
        ),
        (rule("action: Deny"), &["3: spec.egress[0].to: is missing"]),
        (
            rule("action: Deny, to: []"),
            &["3: spec.egress[0].to: is empty: a rule is about somebody"],
        ),
        (
            rule("action: Deny, to: [{}]"),
            &[
                "3: spec.egress[0].to[0]: has 0 of namespaces, pods, nodes, networks: exactly one is possible",
            ],
        ),
        (
            rule("action: Accept, to: [{domainNames: [example.org]}]"),
            &[
                "3: spec.egress[0].to[0].domainNames: cannot be enforced: this version of Weft does not look into answers \
             of the DNS",
            ],
        ),
        (
            rule("action: Deny, to: [{networks: []}]"),
            &["3: spec.egress[0].to[0].networks: is empty: at least one is needed"],
        ),
        (
            rule(
                "action: Deny, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: web}]",
            ),
            &[
                "3: spec.egress[0].to[0]: has no names of ports: only pods do, and the rule has such a name",
            ],
        ),
        (
            rule(&format!("{to}, protocols: []")),
            &["3: spec.egress[0].protocols: is empty: leave it out for everything"],
        ),
        (
            rule(&format!("{to}, protocols: [{{}}]")),
            &[
                "3: spec.egress[0].protocols[0]: has 0 of tcp, udp, sctp, destinationNamedPort: exactly one is possible",
            ],
        ),
        (
            rule(&format!("{to}, protocols: [{{tcp: {{}}}}]")),
            &["3: spec.egress[0].protocols[0].tcp.destinationPort: is missing"],
        ),
        (
            rule(&format!("{to}, protocols: [{{tcp: {{destinationPort: {{}}}}}}]")),
            &[
                "3: spec.egress[0].protocols[0].tcp.destinationPort: has 0 of number, range: exactly one is possible",
            ],
        ),
        (
            rule(&format!(
                "{to}, protocols: [{{tcp: {{destinationPort: {{range: {{start: 2, end: 2}}}}}}}}]"
            )),
            &[
                "3: spec.egress[0].protocols[0].tcp.destinationPort.range.end: 2 is not greater than start, which is 2",
            ],
        ),
        (
            rule(&format!("{to}, name: {}", "x".repeat(101))),
            &[
                "3: spec.egress[0].name: \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…\" is too long: at most \
             100 characters are possible",
            ],
        ),
        (
            newest(&format!("{start}, ingress: [{{action: Deny, from: [{{nodes: {{}}}}]}}]")),
            &[
                "3: spec.ingress[0].from[0]: has 0 of namespaces, pods: exactly one is possible",
                "3: spec.ingress[0].from[0].nodes: there is no such field",
            ],
        ),
        (
            old("action: Accept, from: [{namespaces: {}}]"),
            &["3: spec.ingress[0].action: \"Accept\" is none of Allow, Deny, Pass"],
        ),
        (
            old(&format!("{from}, ports: [{{}}]")),
            &[
                "3: spec.ingress[0].ports[0]: has 0 of portNumber, portRange, namedPort: exactly one is possible",
            ],
        ),
        (
            cluster("BaselineAdminNetworkPolicy", "v1alpha1", "other", "subject: {namespaces: {}}"),
            &[
                "1: metadata.name: \"other\" is not \"default\": a cluster has one such policy, of that name",
            ],
        ),
        (
            cluster(
                "BaselineAdminNetworkPolicy",
                "v1alpha1",
                "default",
                "subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {}}]}]",
            ),
            &["3: spec.ingress[0].action: \"Pass\" is none of Allow, Deny"],
        ),
        (
            cluster("ClusterNetworkPolicy", "v1alpha1", "p", ""),
            &["1: apiVersion: version \"v1alpha1\" of ClusterNetworkPolicy is not known: write \
             policy.networking.k8s.io/v1alpha2"],
        ),
    ];
    for (text, expected) in table {
        assert_eq!(refused(&text), *expected, "{text}");
    }
}
