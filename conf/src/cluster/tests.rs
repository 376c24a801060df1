//! The state as a whole: whatever the order of changes, the outcome is that of the objects alone.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn labels(bits: u8) -> Labels {
    let all = [("app", "web"), ("tier", "front"), ("zone", "a")];
    all.into_iter()
        .enumerate()
        .filter(|(ix, _)| bits & (1 << ix) != 0)
        .map(|(_, pair)| pair)
        .collect()
}

fn id(number: u8) -> ObjectName {
    ObjectName::new(["a", "b"][usize::from(number % 2)], format!("x{}", number / 2))
}

fn service(number: u8, kind: ServiceType, cluster_ip: ClusterIp, selector: u8) -> Object {
    Object::Service(Arc::new(Service {
        id: id(number),
        labels: Labels::default(),
        kind,
        selector: labels(selector),
        ports: Box::new([ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            target: if selector & 1 == 0 {
                TargetPort::Number(8080)
            } else {
                TargetPort::Name("web".into())
            },
            node_port: (number.is_multiple_of(5)).then_some(30_000 + u16::from(selector)),
            app_protocol: None,
        }]),
        cluster_ip,
        families: Box::default(),
        family_policy: FamilyPolicy::PreferDualStack,
        external_name: None,
        external_ips: Box::default(),
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        affinity_s: None,
        publish_not_ready: number.is_multiple_of(3),
        distribution: (number.is_multiple_of(4)).then_some(TrafficDistribution::PreferSameNode),
        load_balancer: LoadBalancer { node_ports: true, ..LoadBalancer::default() },
        health_check_node_port: None,
        proxied: true,
    }))
}

fn arbitrary_change() -> impl Strategy<Value = Change> {
    let cluster_ip = prop_oneof![
        4 => Just(ClusterIp::Auto),
        1 => Just(ClusterIp::Headless),
        2 => (0_u8..20).prop_map(|low| ClusterIp::Given(Box::new([[10, 96, 0, low].into()]))),
    ];
    let kind = prop_oneof![
        Just(ServiceType::ClusterIp),
        Just(ServiceType::NodePort),
        Just(ServiceType::LoadBalancer),
    ];
    let set_service =
        (0_u8..12, kind, cluster_ip, 0_u8..8).prop_map(|(number, kind, ip, selector)| {
            let ip = if kind == ServiceType::ClusterIp { ip } else { ClusterIp::Auto };
            service(number, kind, ip, selector)
        });
    let set_pod = (0_u8..12, 0_u8..8, 0_u8..4, any::<(bool, bool)>()).prop_map(
        |(number, bits, node, (ready, terminating))| {
            Object::Pod(Arc::new(Pod {
                id: id(number),
                labels: labels(bits),
                node: Some(format!("n{node}").into()),
                hostname: Some("h".into()),
                subdomain: Some("x1".into()),
                host_network: number.is_multiple_of(3),
                ports: Box::new([ContainerPort {
                    name: "web".into(),
                    protocol: Protocol::Tcp,
                    port: 8000 + u16::from(bits),
                    host_port: None,
                    host_ip: None,
                }]),
                addresses: if number.is_multiple_of(3) {
                    Box::default()
                } else {
                    Box::new([IpAddr::from([10, 244, 9, number])])
                },
                ready: Some(ready),
                finished: number == 7 && terminating,
                terminating,
            }))
        },
    );
    let set_slice = (0_u8..6, 0_u8..12, any::<bool>()).prop_map(|(number, of, ready)| {
        Object::EndpointSlice(Arc::new(EndpointSlice {
            id: id(number),
            service: Some(Arc::clone(&id(of).name)),
            family: IpFamily::V4,
            endpoints: Box::new([SliceEndpoint {
                address: IpAddr::from([10, 244, 9, of]),
                ready,
                serving: ready,
                terminating: false,
                hostname: None,
                node: None,
                zone: None,
                hints: Hints::default(),
                pod: None,
            }]),
            ports: Box::new([SlicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: Some(9000),
                app_protocol: None,
            }]),
            proxied: true,
        }))
    });
    let set_node = (0_u8..4, 0_u8..3).prop_map(|(number, zone)| {
        Object::Node(Arc::new(Node {
            name: format!("n{number}").into(),
            labels: match zone {
                0 => Labels::default(),
                zone => [("topology.kubernetes.io/zone", format!("z{zone}"))].into_iter().collect(),
            },
            addresses: Box::new([IpAddr::from([192, 0, 2, number])]),
            pod_cidrs: Box::default(),
        }))
    });
    let set_namespace = (0_u8..2).prop_map(|number| {
        Object::Namespace(Arc::new(Namespace {
            name: Arc::clone(&id(number).namespace),
            labels: Labels::default(),
        }))
    });
    let object = prop_oneof![4 => set_service, 4 => set_pod, 2 => set_slice, 1 => set_node, 1 => set_namespace];
    let fact =
        (0_u8..12, 0_u8..4, 0_u8..8, 0_u64..3).prop_map(|(number, node, bits, since_ms)| PodFact {
            id: id(number),
            node: format!("n{node}").into(),
            addresses: Box::new([
                IpAddr::from([10, 244, node, number]),
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, u16::from(node), u16::from(number)]),
            ]),
            labels: labels(bits),
            host_network: false,
            since_ms,
        });
    prop_oneof![
        4 => object.clone().prop_map(Change::Set),
        3 => object.prop_map(|object| Change::Remove(object.key())),
        3 => fact.clone().prop_map(Change::SetPod),
        2 => fact.prop_map(|fact| Change::RemovePod { id: fact.id, node: fact.node }),
        1 => (0_u8..4).prop_map(|number| Change::SetNode(NodeFact {
            name: format!("n{number}").into(),
            addresses: Box::new([IpAddr::from([198, 51, 100, number])]),
        })),
        1 => (0_u8..4).prop_map(|number| Change::RemoveNode(format!("n{number}").into())),
    ]
}

/// What is left of changes: the last of each thing.
fn settled(changes: &[Change]) -> Vec<Change> {
    let mut left: std::collections::BTreeMap<String, Change> = std::collections::BTreeMap::new();
    for change in changes {
        let (key, there) = match change {
            Change::Set(object) => (object.key().to_string(), true),
            Change::Remove(key) => (key.to_string(), false),
            Change::SetPod(fact) => (format!("fact {} {}", fact.id, fact.node), true),
            Change::RemovePod { id, node } => (format!("fact {id} {node}"), false),
            Change::SetNode(fact) => (format!("node {}", fact.name), true),
            Change::RemoveNode(name) => (format!("node {name}"), false),
        };
        if there {
            left.insert(key, change.clone())
        } else {
            left.remove(&key)
        };
    }
    left.into_values().collect()
}

/// Everything that can be seen of a state.
fn look(state: &ClusterState) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    seen.extend(state.services().map(|view| format!("{view:?}")));
    seen.extend(state.pods().map(|view| format!("{view:?}")));
    seen.extend(state.namespaces().map(|namespace| format!("{namespace:?}")));
    seen.extend(state.nodes().map(|node| format!("{node:?}")));
    seen.extend(ObjectKind::ALL.map(|kind| format!("{kind}: {}", state.count(kind))));
    seen.push(format!("{:?}", state.used()));
    for low in 0..32 {
        let at = state.service_at([10, 96, 0, low].into()).map(|view| &view.service.id);
        seen.push(format!("{low}: {at:?}"));
        let pods = state.pods_at([10, 244, 9, low].into()).map(|pod| &pod.id);
        seen.push(format!("{low}: {:?}", pods.collect::<Vec<_>>()));
    }
    for bits in 0..8 {
        let selector = labels(bits);
        let selected = state.pods_selected("a", &selector).map(|pod| &pod.id);
        seen.push(format!("{bits}: {:?}", selected.collect::<Vec<_>>()));
    }
    for namespace in ["a", "b"] {
        seen.push(format!("{namespace}: {}", state.has_namespace(namespace)));
    }
    seen
}

fn small() -> ServiceConfig {
    ServiceConfig {
        ranges: vec!["10.96.0.0/27".parse().unwrap(), "fd00:96::/108".parse().unwrap()],
        node_ports: 30_000..=30_007,
        load_balancer_pool: vec!["192.0.2.240/30".parse().unwrap()],
        ..ServiceConfig::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// One change at a time, some at a time, or only what is left: it is the same; and a delta names all
    /// that is different.
    #[test]
    fn the_order_of_changes_does_not_matter(
        changes in prop::collection::vec(arbitrary_change(), 1..60),
        batch in 1_usize..8,
    ) {
        let mut one_by_one = ClusterState::new(small());
        for change in &changes {
            let before = one_by_one.clone();
            let delta = one_by_one.apply([change.clone()]);
            for number in 0..12 {
                let id = id(number);
                let differs = before.service(&id.namespace, &id.name) != one_by_one.service(&id.namespace, &id.name);
                prop_assert!(!differs || delta.services.contains(&id), "{change:?} changed Service {id}");
                let differs = before.pod(&id.namespace, &id.name) != one_by_one.pod(&id.namespace, &id.name);
                prop_assert_eq!(differs, delta.pods.contains(&id), "{:?} changed pod {}", change, id);
            }
        }
        let mut in_batches = ClusterState::new(small());
        for changes in changes.chunks(batch) {
            in_batches.apply(changes.iter().cloned());
        }
        let mut at_once = ClusterState::new(small());
        at_once.apply(settled(&changes));
        prop_assert_eq!(look(&one_by_one), look(&at_once));
        prop_assert_eq!(look(&in_batches), look(&at_once));
    }
}

#[test]
fn policies_are_told_when_they_are_different() {
    let network = |rules: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: only}}, spec: \
             {{ingress: [{rules}]}}}}"
        )
    };
    let cluster = "{apiVersion: policy.networking.k8s.io/v1alpha1, kind: AdminNetworkPolicy, metadata: {name: p}, spec: \
                   {priority: 1, subject: {namespaces: {}}}}";
    let mut state = ClusterState::default();
    let set = |state: &mut ClusterState, text: &str| -> Vec<String> {
        let found = parse::parse(text).accepted;
        let delta = state.apply(found.into_iter().map(|found| Change::Set(found.object)));
        delta.policies.iter().map(ToString::to_string).collect()
    };
    assert_eq!(set(&mut state, &network("")), ["NetworkPolicy only/p"]);
    assert_eq!(set(&mut state, &network("")), Vec::<String>::new());
    assert_eq!(set(&mut state, &network("{}")), ["NetworkPolicy only/p"]);
    assert_eq!(set(&mut state, cluster), ["AdminNetworkPolicy p"]);
    assert!(state.has_namespace("only"), "something is in it");
    assert_eq!(state.count(ObjectKind::AdminNetworkPolicy), 1);
    assert_eq!(state.count(ObjectKind::ClusterNetworkPolicy), 0);
    for (kind, id) in [
        (ObjectKind::NetworkPolicy, ObjectName::new("only", "p")),
        (ObjectKind::AdminNetworkPolicy, ObjectName::new("", "p")),
    ] {
        let gone = ObjectKey { kind, id };
        assert_eq!(state.apply([Change::Remove(gone.clone())]).policies.len(), 1, "{gone}");
        assert!(state.apply([Change::Remove(gone)]).is_empty());
    }
    assert!(!state.has_namespace("only"));
}
