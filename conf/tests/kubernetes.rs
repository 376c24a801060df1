//! Objects of an API server that fails in every way end as those of a directory with the same objects.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "../../tests/common/apiserver.rs"]
mod apiserver;
#[path = "../../tests/common/certificates.rs"]
mod certificates;

#[path = "kubernetes/access.rs"]
mod access;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use conf::cluster::parse::parse;
use conf::cluster::{
    Authority, Change, ClusterState, ObjectKey, ObjectKind, ObjectName, ServiceConfig,
};
use conf::source::Objects;
use conf::source::kubernetes::reflector::Failure;
use conf::source::kubernetes::{Access, Api, Source, Timing};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::time::timeout;

use self::apiserver::{ApiServer, Faults, Store};

/// How long anything may take to settle.
const SETTLE_MAX: Duration = Duration::from_secs(20);

const TIMING: Timing = Timing {
    retry_min: Duration::from_millis(2),
    retry_max: Duration::from_millis(20),
    list_pause: Duration::from_millis(5),
    absent_pause: Duration::from_millis(50),
    watch_min: Duration::from_secs(300),
};

const ALL_FAULTS: Faults =
    Faults { refuse: 0.1, forget: 0.1, cut: 0.05, end: 0.05, again: 0.2, swap: 0.2, slow: 0.2 };

/// An object as people write it, all of whose fields say what a server would fill in.
fn written(plural: &str, number: u32, variant: u32) -> Value {
    let namespace = format!("ns{}", number % 2);
    let name = format!("{}{number}", &plural[..3]);
    let labels = json!({"app": format!("a{}", variant % 3)});
    let meta = json!({"name": name, "namespace": namespace, "labels": labels});
    match plural {
        "namespaces" => json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": format!("ns{number}"), "labels": labels},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}
        }),
        "nodes" => json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": format!("node{number}"), "labels": {
                "topology.kubernetes.io/zone": format!("z{}", variant % 2)
            }},
            "spec": {"podCIDR": format!("10.244.{number}.0/24"),
                     "podCIDRs": [format!("10.244.{number}.0/24")]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": format!("192.0.2.{number}")},
                {"type": "Hostname", "address": format!("node{number}")}
            ]}
        }),
        "services" => json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {
                "clusterIP": format!("10.96.0.{}", 20 + number),
                "clusterIPs": [format!("10.96.0.{}", 20 + number)],
                "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "type": "ClusterIP",
                "selector": {"app": format!("a{}", variant % 3)},
                "ports": [{"name": "http", "port": 80 + variant % 5, "protocol": "TCP",
                           "targetPort": 8080}]
            },
            "status": {"loadBalancer": {}}
        }),
        "endpointslices" => json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": namespace, "labels": {
                    "kubernetes.io/service-name": format!("ser{number}"),
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"
                },
                "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "x", "uid": "1",
                                     "blockOwnerDeletion": true, "controller": true}]
            },
            "addressType": "IPv4",
            "endpoints": (0..variant % 4).map(|ix| json!({
                "addresses": [format!("10.244.{number}.{}", 10 + ix)],
                "conditions": {"ready": ix != 1, "serving": true, "terminating": ix == 1},
                "nodeName": format!("node{ix}"), "zone": "z0",
                "targetRef": {"kind": "Pod", "name": format!("pod{ix}"), "namespace": namespace,
                              "uid": "2"}
            })).collect::<Vec<_>>(),
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]
        }),
        "pods" => json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta,
            "spec": {
                "nodeName": format!("node{}", variant % 3), "hostNetwork": variant % 4 == 3,
                "containers": [{"name": "c", "image": "registry.example/c:1", "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"}
                ], "resources": {}, "terminationMessagePath": "/dev/termination-log"}],
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]
            },
            "status": {
                "phase": "Running", "podIP": format!("10.244.{}.{number}", variant % 3),
                "podIPs": [{"ip": format!("10.244.{}.{number}", variant % 3)}],
                "conditions": [{"type": "Ready", "status": "True"}], "qosClass": "BestEffort"
            }
        }),
        other => panic!("{other}"),
    }
}

/// The same as a server that is newer than this version of Weft sends it.
fn sent(written: &Value) -> Value {
    let mut object = written.clone();
    object["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": "{\"kind\":\"\u{e4}\"}\n"});
    object["metadata"]["somethingNew"] = json!([null, 1, -2.5e3, {"deep": [[]]}]);
    object["spec"]["newInNextRelease"] = json!({"mode": "Auto", "list": null});
    object["newSection"] = json!({"conditions": []});
    if let Some(ports) = object["spec"]["ports"].as_array_mut() {
        ports.iter_mut().for_each(|port| port["newField"] = "x".into());
    }
    // As of Go: empty lists are null.
    if object["endpoints"].as_array().is_some_and(Vec::is_empty) {
        object["endpoints"] = Value::Null;
    }
    object
}

fn key(plural: &str, object: &Value) -> (String, String, String) {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    (plural.to_owned(), text("namespace"), text("name"))
}

fn config() -> ServiceConfig {
    ServiceConfig { authority: Authority::Kubernetes, ..ServiceConfig::default() }
}

/// What the same objects in a directory lead to.
fn of_directory(objects: impl Iterator<Item = Value>) -> ClusterState {
    let items: Vec<Value> = objects.collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let manifests = parse(&list.to_string());
    assert!(manifests.refused.is_empty(), "{:?}", manifests.refused);
    let mut state = ClusterState::new(config());
    state.apply(manifests.accepted.into_iter().map(|found| Change::Set(found.object)));
    state
}

/// A node that reads the objects of a server.
struct Reader {
    source: Source,
    state: ClusterState,
    /// These are never deleted: whoever removes them has taken an incomplete list for all.
    anchors: Vec<ObjectKey>,
}

impl Reader {
    async fn start(server: &ApiServer, folder: &std::path::Path, timing: Timing) -> Self {
        let kubeconfig = folder.join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        let access = Access { kubeconfig: Some(kubeconfig), ..Access::default() };
        let source = Source::start(Api::new(access).await.unwrap(), timing, 7);
        Self { source, state: ClusterState::new(config()), anchors: Vec::new() }
    }

    /// Takes up one update, if there is one within a moment.
    async fn step(&mut self) {
        let Ok(update) = timeout(Duration::from_millis(20), self.source.next()).await else {
            return;
        };
        for change in &update.changes {
            if let Change::Remove(key) = change {
                assert!(!self.anchors.contains(key), "{key} was removed, and nobody did");
            }
        }
        self.state.apply(update.changes);
    }

    async fn until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + SETTLE_MAX;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.source.objects().health());
            self.step().await;
        }
    }

    async fn until_equal(&mut self, expected: &ClusterState) {
        let expected = format!("{expected:#?}");
        let deadline = Instant::now() + SETTLE_MAX;
        while format!("{:#?}", self.state) != expected {
            if Instant::now() > deadline {
                let found = format!("{:#?}", self.state);
                let differs = expected.lines().zip(found.lines()).position(|(a, b)| a != b);
                let around = differs.unwrap_or(0).saturating_sub(5);
                let part =
                    |text: &str| text.lines().skip(around).take(12).collect::<Vec<_>>().join("\n");
                panic!("expected\n{}\nfound\n{}", part(&expected), part(&found));
            }
            self.step().await;
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

const PLURALS: [&str; 5] = ["namespaces", "nodes", "services", "endpointslices", "pods"];

fn schedule(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let store = Store::new(seed);
    store.set_chunk_len_max(3);
    let mut there: BTreeMap<(String, String, String), Value> = BTreeMap::new();
    let set = |there: &mut BTreeMap<_, _>, plural: &str, number: u32, variant: u32| {
        let written = written(plural, number, variant);
        store.set(plural, &sent(&written));
        there.insert(key(plural, &written), written);
    };
    for plural in PLURALS {
        (0..6).for_each(|number| set(&mut there, plural, number, rng.random_range(0..12)));
    }
    let anchors = [(ObjectKind::Service, "ns0", "ser0"), (ObjectKind::Pod, "ns1", "pod1")];
    let anchors = anchors.map(|(kind, ns, name)| ObjectKey { kind, id: ObjectName::new(ns, name) });

    let folder = tempfile::tempdir().unwrap();
    let mut server =
        Some(ApiServer::start(store.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).unwrap());
    let address = server.as_ref().unwrap().address();
    store.set_faults(ALL_FAULTS);
    let runtime = runtime();
    runtime.block_on(async {
        let mut reader = Reader::start(server.as_ref().unwrap(), folder.path(), TIMING).await;
        reader.anchors = anchors.to_vec();
        for _ in 0..80 {
            let plural = PLURALS[rng.random_range(0..PLURALS.len())];
            match rng.random_range(0..20) {
                0..12 => {
                    let (number, variant) = (rng.random_range(0..8), rng.random_range(0..12));
                    set(&mut there, plural, number, variant);
                }
                12..16 => {
                    let number = rng.random_range(2..8);
                    let (_, namespace, name) = key(plural, &written(plural, number, 0));
                    store.delete(plural, &namespace, &name);
                    there.remove(&(plural.to_owned(), namespace, name));
                }
                16 => store.forget(),
                17 => {
                    drop(server.take());
                    reader.step().await;
                    server = Some(ApiServer::start(store.clone(), address).unwrap());
                }
                _ => reader.step().await,
            }
        }
        store.set_faults(Faults::default());
        reader.until_equal(&of_directory(there.values().cloned())).await;
        reader
            .until("all is known", |reader| {
                let health = reader.source.objects().health();
                health.complete && health.stale_since.is_none()
            })
            .await;
    });
}

#[test]
fn after_any_schedule_of_faults_the_state_is_that_of_a_directory() {
    let seeds = std::env::var("WEFT_KUBERNETES_SEEDS").ok().and_then(|text| text.parse().ok());
    for seed in 0..seeds.unwrap_or(12) {
        println!("seed {seed}");
        schedule(seed);
    }
}

/// A store with some objects, its server, and a reader that knows them all.
async fn settled(timing: Timing) -> (Store, ApiServer, Reader, tempfile::TempDir) {
    let store = Store::new(1);
    for plural in PLURALS {
        (0..4).for_each(|number| store.set(plural, &sent(&written(plural, number, 2))));
    }
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(store.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let mut reader = Reader::start(&server, folder.path(), timing).await;
    reader.until("all is known", |reader| reader.source.objects().health().complete).await;
    (store, server, reader, folder)
}

fn lists(store: &Store) -> usize {
    store.requests().iter().filter(|request| request.verb == "list").count()
}

#[test]
fn a_server_that_is_away_leaves_all_in_force_and_is_not_asked_for_lists_again() {
    let runtime = runtime();
    runtime.block_on(async {
        let (store, server, mut reader, _folder) = settled(TIMING).await;
        let (before, address) = (format!("{:?}", reader.state), server.address());
        let listed = lists(&store);
        drop(server);
        reader
            .until("it is missed", |reader| reader.source.objects().health().stale_since.is_some())
            .await;
        let health = reader.source.objects().health();
        assert!(health.complete, "{health:?}");
        assert!(format!("{:?}", reader.state) == before, "something has changed");
        // What happens meanwhile is told by the watches, which go on from where they were.
        store.set("services", &sent(&written("services", 9, 0)));
        let _server = ApiServer::start(store.clone(), address).unwrap();
        reader
            .until("what was missed is told", |reader| {
                reader.state.service("ns1", "ser9").is_some()
            })
            .await;
        reader
            .until("nothing is stale", |reader| {
                reader.source.objects().health().stale_since.is_none()
            })
            .await;
        assert_eq!(lists(&store), listed);
    });
}

#[test]
fn a_server_that_forgets_all_the_time_is_not_flooded_with_lists() {
    let timing = Timing { list_pause: Duration::from_secs(3600), ..TIMING };
    let runtime = runtime();
    runtime.block_on(async {
        let (store, _server, mut reader, _folder) = settled(timing).await;
        let listed = lists(&store);
        store.set_faults(Faults { forget: 1.0, end: 1.0, ..Faults::default() });
        for plural in PLURALS {
            store.set(plural, &sent(&written(plural, 1, 3)));
        }
        reader
            .until("the server has forgotten", |reader| {
                reader
                    .source
                    .objects()
                    .health()
                    .reason
                    .is_some_and(|text| text.contains("forgotten"))
            })
            .await;
        for _ in 0..20 {
            reader.step().await;
        }
        assert_eq!(lists(&store), listed);
        assert!(reader.state.service("ns1", "ser1").is_some());
    });
}

#[test]
fn a_list_in_chunks_is_whole_before_anything_is_missed() {
    let runtime = runtime();
    runtime.block_on(async {
        let (store, server, mut reader, _folder) = settled(TIMING).await;
        let address = server.address();
        drop(server);
        // Deleted while nobody looks, and then forgotten: only a new list can tell.
        store.delete("services", "ns0", "ser0");
        store.forget();
        store.set_chunk_len_max(1);
        reader.anchors =
            vec![ObjectKey { kind: ObjectKind::Service, id: ObjectName::new("ns1", "ser3") }];
        let _server = ApiServer::start(store.clone(), address).unwrap();
        reader
            .until("the deleted one is gone", |reader| {
                reader.state.service("ns0", "ser0").is_none()
            })
            .await;
        assert_eq!(reader.state.services().count(), 3);
    });
}

#[test]
fn what_cannot_be_honoured_is_named_by_kind_and_name() {
    let runtime = runtime();
    runtime.block_on(async {
        let (store, _server, mut reader, _folder) = settled(TIMING).await;
        let mut slice = written("endpointslices", 7, 0);
        slice["addressType"] = "FQDN".into();
        store.set("endpointslices", &slice);
        let refused = |reader: &Reader| {
            let objects = Objects::Kubernetes(reader.source.objects());
            let refused = objects.refused(&reader.state);
            assert_eq!(objects.counts(&reader.state).refused, refused.len());
            refused.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        reader.until("it is refused", |reader| !refused(reader).is_empty()).await;
        assert_eq!(
            refused(&reader),
            ["EndpointSlice ns1/end7: addressType: names as endpoints are not served, as by kube-proxy: give addresses"]
        );
        store.set("endpointslices", &written("endpointslices", 7, 0));
        reader.until("it is right now", |reader| refused(reader).is_empty()).await;
        let listing = Objects::Kubernetes(reader.source.objects()).listing(&reader.state);
        assert!(listing.accepted.iter().any(|object| object.name == "end7"));
    });
}

#[test]
fn a_kind_that_must_be_there_and_is_not_is_told() {
    let runtime = runtime();
    runtime.block_on(async {
        let store = Store::new(1);
        store.set_absent(&["endpointslices"]);
        let folder = tempfile::tempdir().unwrap();
        let server =
            ApiServer::start(store.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let mut reader = Reader::start(&server, folder.path(), TIMING).await;
        reader
            .until("it is told", |reader| {
                let reason = reader.source.objects().health().reason.unwrap_or_default();
                reason.starts_with("endpointslices: status 404")
            })
            .await;
        assert!(!reader.source.objects().health().complete);
        store.set_absent(&[]);
        reader.until("it is there", |reader| reader.source.objects().health().complete).await;
    });
}

#[test]
fn the_next_server_is_asked_when_one_does_not_answer() {
    let runtime = runtime();
    runtime.block_on(async {
        let store = Store::new(1);
        let server =
            ApiServer::start(store.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        // Port 1 is nobody's.
        let servers = vec!["http://127.0.0.1:1".to_owned(), format!("http://{}", server.address())];
        let access = Access { kubeconfig: Some(kubeconfig), servers, ..Access::default() };
        let api = Api::new(access).await.unwrap();
        assert!(matches!(api.get("/api/v1/nodes").await, Err(Failure::Unreachable(_))));
        api.get("/api/v1/nodes").await.unwrap();
        assert_eq!(api.server(), format!("http://{}", server.address()));
    });
}

#[test]
fn who_asks_and_whom_must_be_known() {
    let runtime = runtime();
    runtime.block_on(async {
        let access = |file: &str| Access { kubeconfig: Some(file.into()), ..Access::default() };
        let error = Api::new(access("/nonexistent/kubeconfig")).await.unwrap_err();
        assert!(error.starts_with("/nonexistent/kubeconfig cannot be used"), "{error}");
    });
}
