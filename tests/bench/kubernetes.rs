//! What the objects of a large Kubernetes cluster take on each node: time to read and take up the lists, and
//! memory that stays.
//!
//! `cargo bench --bench kubernetes` prints it; `-- --test` takes a hundredth.

// What a benchmark prints is what it is for; and it ends when something is not as it should be.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::wildcard_enum_match_arm)]

use std::fs;
use std::time::{Duration, Instant};

use conf::cluster::{Authority, ClusterState, ObjectKind, ServiceConfig};
use conf::source::kubernetes::reflector::{CHUNK_LEN, Reflector, Step, Timing};
use conf::source::kubernetes::resource::WATCHED;
use conf::source::kubernetes::wire;
use serde_json::{Value, json};

const NODES: usize = 1000;
const PODS: usize = 30_000;
const SERVICES: usize = 10_000;

fn main() {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let part = if is_test { 100 } else { 1 };
    let (nodes, pods, services) = (NODES / part, PODS / part, SERVICES / part);
    println!("{nodes} nodes, {pods} pods, {services} Services with {services} slices");
    println!(
        "{:<14} {:>8} {:>9} {:>10} {:>10} {:>12}",
        "kind", "objects", "MB sent", "read", "taken up", "RSS after"
    );

    let config = ServiceConfig { authority: Authority::Kubernetes, ..ServiceConfig::default() };
    let mut state = ClusterState::new(config);
    let mut kept = Vec::new();
    let begin = rss_mb();
    for resource in WATCHED {
        let (count, make): (usize, fn(usize) -> Value) = match resource.kind {
            ObjectKind::Node => (nodes, node),
            ObjectKind::Namespace => (services / 100 + 1, namespace),
            ObjectKind::Service => (services, service),
            ObjectKind::EndpointSlice => (services, slice),
            ObjectKind::Pod => (pods, pod),
            // Kinds of which clusters have few.
            _ => (0, namespace),
        };
        let mut reflector = Reflector::new(*resource, Timing::default(), 1, Instant::now());
        let (mut sent, mut reading, mut applying) = (0, Duration::ZERO, Duration::ZERO);
        let mut from = 0;
        while let Step::List { .. } = reflector.step(Instant::now()) {
            let end = (from + usize::try_from(CHUNK_LEN).unwrap()).min(count);
            let items: Vec<Value> = (from..end).map(|ix| served(make(ix), ix)).collect();
            let mut meta = json!({"resourceVersion": "123456789"});
            if end < count {
                meta["continue"] = end.to_string().into();
            }
            let body = json!({"metadata": meta, "items": items}).to_string();
            sent += body.len();
            let start = Instant::now();
            let page = wire::page(resource.kind, body.as_bytes()).unwrap();
            reading += start.elapsed();
            let start = Instant::now();
            state.apply(reflector.listed(page));
            applying += start.elapsed();
            from = end;
        }
        assert_eq!(reflector.store().counts(), (count, 0), "{}", resource.plural);
        println!(
            "{:<14} {:>8} {:>9.1} {:>8.0} ms {:>7.0} ms {:>9.0} MB",
            resource.plural,
            count,
            sent as f64 / 1e6,
            reading.as_secs_f64() * 1e3,
            applying.as_secs_f64() * 1e3,
            rss_mb() - begin,
        );
        kept.push(reflector);
    }
    assert_eq!(state.services().count(), services);
    assert_eq!(state.pods().count(), pods);
    let start = Instant::now();
    let pods = kept.iter_mut().find(|it| it.resource().kind == ObjectKind::Pod).unwrap();
    let rounds = 1000;
    for round in 0..rounds {
        let mut changed = served(pod(round % (PODS / part)), round);
        changed["metadata"]["resourceVersion"] = (200_000_000 + round).to_string().into();
        changed["metadata"]["labels"]["round"] = round.to_string().into();
        let line = json!({"type": "MODIFIED", "object": changed}).to_string();
        let seen = wire::event(ObjectKind::Pod, line.as_bytes()).unwrap().unwrap();
        state.apply(pods.seen(seen));
    }
    println!(
        "one event of a pod: {:.0} us",
        start.elapsed().as_secs_f64() * 1e6 / f64::from(u32::try_from(rounds).unwrap())
    );
}

/// Resident memory of this process. Freed memory is given back to the system first, as far as it is whole pages.
fn rss_mb() -> f64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / 1e6
}

/// An object with all that a server adds, of about the length that real ones have.
fn served(mut object: Value, ix: usize) -> Value {
    let meta = &mut object["metadata"];
    meta["resourceVersion"] = (100_000_000 + ix).to_string().into();
    meta["uid"] = format!("0d1f5a2c-0000-4000-8000-{ix:012x}").into();
    meta["creationTimestamp"] = "2026-05-04T03:02:01Z".into();
    let fields: serde_json::Map<String, Value> =
        (0..30).map(|field| (format!("f:field{field}"), json!({".": {}, "f:value": {}}))).collect();
    meta["managedFields"] = json!([{
        "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
        "time": "2026-05-04T03:02:01Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": fields}
    }]);
    object
}

fn place(ix: usize) -> (String, String) {
    (format!("namespace-{}", ix % (SERVICES / 100)), format!("web-{ix}"))
}

fn namespace(ix: usize) -> Value {
    json!({"metadata": {"name": format!("namespace-{ix}"), "labels": {"team": format!("t{}", ix % 7)}}})
}

fn node(ix: usize) -> Value {
    json!({
        "metadata": {"name": format!("node-{ix}"), "labels": {
            "kubernetes.io/hostname": format!("node-{ix}"), "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": format!("zone-{}", ix % 3)
        }},
        "spec": {"podCIDRs": [format!("10.{}.{}.0/24", 128 + ix / 256, ix % 256)]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("192.168.{}.{}", ix / 256, ix % 256)}],
            "images": (0..20).map(|image| json!({
                "names": [format!("registry.example/library/image-{image}@sha256:{:064x}", image)],
                "sizeBytes": 123_456_789
            })).collect::<Vec<_>>()
        }
    })
}

fn service(ix: usize) -> Value {
    let (namespace, name) = place(ix);
    let address = format!("10.{}.{}.{}", 96 + ix / 65_000, (ix / 250) % 256, 1 + ix % 250);
    json!({
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": format!("web-{ix}")}},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None", "selector": {"app": format!("web-{ix}")},
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"},
                {"name": "metrics", "port": 9090, "protocol": "TCP", "targetPort": 9090}
            ]
        },
        "status": {"loadBalancer": {}}
    })
}

fn slice(ix: usize) -> Value {
    let (namespace, name) = place(ix);
    let endpoint = |pod: usize| {
        json!({
            "addresses": [address(pod)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", pod % NODES), "zone": format!("zone-{}", pod % 3),
            "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("web-{pod}"), "uid": "x"}
        })
    };
    json!({
        "metadata": {"name": format!("{name}-abcde"), "namespace": namespace, "labels": {
            "kubernetes.io/service-name": name,
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"
        }},
        "addressType": "IPv4",
        "endpoints": (0..PODS / SERVICES).map(|one| endpoint(ix + one * SERVICES)).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"},
                  {"name": "metrics", "port": 9090, "protocol": "TCP"}]
    })
}

fn address(pod: usize) -> String {
    let node = pod % NODES;
    format!("10.{}.{}.{}", 128 + node / 256, node % 256, 2 + pod / NODES)
}

fn pod(ix: usize) -> Value {
    let (namespace, _) = place(ix % SERVICES);
    json!({
        "metadata": {"name": format!("web-{ix}"), "namespace": namespace, "labels": {
            "app": format!("web-{}", ix % SERVICES), "pod-template-hash": format!("{:010x}", ix % SERVICES)
        }},
        "spec": {
            "nodeName": format!("node-{}", ix % NODES), "serviceAccountName": "default",
            "containers": [{
                "name": "web", "image": "registry.example/library/web:1.2.3",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "env": (0..20).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "some value of it"}))
                    .collect::<Vec<_>>(),
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets", "readOnly": true}]
            }],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]
        },
        "status": {
            "phase": "Running", "podIP": address(ix), "podIPs": [{"ip": address(ix)}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "web", "ready": true, "imageID": format!("sha256:{:064x}", 7)}]
        }
    })
}
