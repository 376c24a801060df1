//! A lab whose nodes get their objects from a directory, or from an API server with the same objects: tests of what
//! they are used for are the same with both.
//!
//! Whoever declares objects writes manifests in any case. For nodes of a Kubernetes cluster a stand-in reads them, and
//! does with them what a control plane and the kubelets do: Services get their addresses and ports, Pods and Nodes
//! have objects, and an API server tells all that.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use conf::cluster::{ClusterState, ServiceConfig, ServiceView};
use conf::source::kubernetes::resource::WATCHED;
use serde_json::{Value, json};
use tempfile::TempDir;
use weft::admin::api::MapPod;
use weft::lab::{Admin, LabConfig, UNDERLAY, socket};

use crate::apiserver::{ApiServer, Store};
use crate::common::TestLab;

/// Where the server is: on the router between the nodes.
const SERVER: &str = "192.168.77.254:6443";

/// How often the directory is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Where a lab's nodes get their objects from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The directory.
    Manifests,
    /// An API server.
    Kubernetes,
}

/// A lab with such a source.
pub(crate) struct SourcedLab {
    lab: TestLab,
    plane: Option<ControlPlane>,
}

impl SourcedLab {
    /// Makes the lab, and waits until its nodes know each other.
    #[track_caller]
    pub(crate) fn up(source: Source, config: LabConfig) -> Self {
        if source == Source::Manifests {
            return Self { lab: TestLab::up(config), plane: None };
        }
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let (nodes, pods_per_node) = (config.nodes, config.pods_per_node);
        let text = format!("network = \"x\"\nseeds = []\n{}", config.extra);
        let parsed = conf::parse(Path::new("weft.toml"), &text);
        let allocation = parsed.unwrap_or_else(|errors| panic!("{errors}")).allocation();
        let mut lab = TestLab::up(LabConfig {
            nodes: 0,
            pods_per_node: 0,
            name: format!("{}-k", config.name),
            objects: Some(format!(
                "source = \"kubernetes\"\npod_cidrs = \"claim\"\nkubeconfig = \"{}\"",
                kubeconfig.display()
            )),
            ..config
        });
        let names: Vec<String> = (1..=nodes).map(|number| format!("n{number}")).collect();
        let plane = ControlPlane::start(&lab, names.clone(), allocation, folder);
        fs::write(&kubeconfig, plane.server.kubeconfig()).unwrap();
        lab.add_nodes(nodes).unwrap();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        lab.wait_for_map(&names, Duration::from_secs(20)).unwrap();
        for node in &names {
            (0..pods_per_node).for_each(|_| drop(lab.add_pod(node).unwrap()));
        }
        Self { lab, plane: Some(plane) }
    }

    /// As [`TestLab::finish`].
    #[track_caller]
    pub(crate) fn finish(self) {
        let Self { lab, plane } = self;
        if let Some(plane) = plane {
            plane.stop();
        }
        lab.finish();
    }
}

impl Deref for SourcedLab {
    type Target = TestLab;

    fn deref(&self) -> &TestLab {
        &self.lab
    }
}

impl DerefMut for SourcedLab {
    fn deref_mut(&mut self) -> &mut TestLab {
        &mut self.lab
    }
}

/// The stand-in.
struct ControlPlane {
    server: ApiServer,
    stop: Sender<()>,
    working: JoinHandle<()>,
    _folder: TempDir,
}

impl ControlPlane {
    fn start(
        lab: &TestLab,
        nodes: Vec<String>,
        allocation: ServiceConfig,
        folder: TempDir,
    ) -> Self {
        let store = Store::new(1);
        let address: SocketAddr = SERVER.parse().unwrap();
        let underlay = lab.namespace(UNDERLAY).unwrap();
        let listener = underlay.run(move || TcpListener::bind(address)).unwrap().unwrap();
        let server = ApiServer::serve(store.clone(), listener).unwrap();
        let mut work = Work {
            store,
            manifests: lab.manifests(),
            nodes,
            socket: socket(lab.dir(), "n1"),
            allocation,
            pods: Vec::new(),
            told: BTreeMap::new(),
        };
        // The nodes wait for their Node objects.
        work.turn();
        let (stop, stopped) = mpsc::channel();
        let working = std::thread::spawn(move || {
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                work.turn();
            }
        });
        Self { server, stop, working, _folder: folder }
    }

    #[track_caller]
    fn stop(self) {
        // It has ended already when it has panicked.
        let _ = self.stop.send(());
        self.working.join().unwrap();
    }
}

type Key = (String, String, String);

struct Work {
    store: Store,
    manifests: PathBuf,
    nodes: Vec<String>,
    /// Of the daemon that is asked for the pods.
    socket: PathBuf,
    allocation: ServiceConfig,
    pods: Vec<MapPod>,
    told: BTreeMap<Key, Value>,
}

impl Work {
    /// Looks at what is declared and which pods there are, and tells what is different.
    fn turn(&mut self) {
        // While no daemon runs there, the pods are those of before.
        if let Ok(pods) = Admin::new(&self.socket).map_pods() {
            self.pods = pods;
        }
        // A file may be half written just now.
        let Some(objects) = self.objects() else { return };
        for (key, object) in &objects {
            if self.told.get(key) == Some(object) {
                continue;
            }
            let (plural, namespace, name) = key;
            let mut object = object.clone();
            // What others have written there stays.
            if let Some(known) = self.store.get(plural, namespace, name)
                && plural == "services"
            {
                object["status"] = known["status"].clone();
            }
            self.store.set(plural, &object);
        }
        for (plural, namespace, name) in self.told.keys() {
            if !objects.contains_key(&(plural.clone(), namespace.clone(), name.clone())) {
                self.store.delete(plural, namespace, name);
            }
        }
        self.told = objects;
    }

    fn objects(&self) -> Option<BTreeMap<Key, Value>> {
        let mut objects = BTreeMap::new();
        let mut add = |object: Value| {
            let kind = object["kind"].as_str()?;
            let resource = WATCHED.iter().find(|resource| resource.kind.as_str() == kind)?;
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            let key = (resource.plural.to_owned(), text("namespace").into(), text("name").into());
            objects.insert(key, object);
            Some(())
        };
        for name in &self.nodes {
            let number = name.trim_start_matches('n');
            let addresses = [format!("192.168.77.{number}"), format!("fd00:77::{number}")];
            let addresses = addresses.map(|it| json!({"type": "InternalIP", "address": it}));
            add(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                       "status": {"addresses": addresses}}))?;
        }
        let of_pods = self.pods.iter().filter_map(|pod| pod.namespace.as_deref());
        for name in of_pods.chain(["default", "kube-system"]) {
            let labels = json!({"kubernetes.io/metadata.name": name});
            add(json!({"apiVersion": "v1", "kind": "Namespace",
                       "metadata": {"name": name, "labels": labels}}))?;
        }
        for pod in &self.pods {
            let labels = json!(pod.labels);
            let meta = json!({"name": pod.name, "namespace": pod.namespace, "labels": labels});
            let containers = json!([{"name": "c", "image": "registry.example/c:1"}]);
            let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta,
                                "spec": {"containers": containers}});
            add(run(object, pod))?;
        }
        let (_, state) = conf::source::load(&self.manifests, self.allocation.clone()).ok()?;
        let files = fs::read_dir(&self.manifests).ok()?.flatten().map(|entry| entry.path());
        for file in files.filter(|file| file.extension().is_some_and(|it| it == "yaml")) {
            let text = fs::read_to_string(file).ok()?;
            // A directory's reader takes `y` for a text, too.
            let options = || serde_saphyr::options! { strict_booleans: true };
            let documents = text.split("---\n").filter(|text| !text.trim().is_empty());
            for document in documents {
                let read = serde_saphyr::from_str_with_options::<Value>(document, options());
                let mut object = read.ok()?;
                let is_of_cluster =
                    ["Node", "Namespace"].iter().any(|kind| object["kind"] == **kind)
                        || object["kind"].as_str()?.ends_with("NetworkPolicy")
                            && object["kind"] != "NetworkPolicy";
                if object["metadata"]["namespace"].is_null() && !is_of_cluster {
                    object["metadata"]["namespace"] = "default".into();
                }
                if object["kind"] == "Service" {
                    object = allocated(object, &state)?;
                }
                let of = |pod: &&MapPod| {
                    object["metadata"]["name"] == pod.name.as_str()
                        && object["metadata"]["namespace"].as_str() == pod.namespace.as_deref()
                };
                if object["kind"] == "Pod"
                    && let Some(pod) = self.pods.iter().find(of)
                {
                    object = run(object, pod);
                }
                add(object)?;
            }
        }
        Some(objects)
    }
}

/// A pod's object when its kubelet has started it.
fn run(mut object: Value, pod: &MapPod) -> Value {
    let addresses: Vec<Value> =
        pod.addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
    object["spec"]["nodeName"] = json!(pod.node);
    object["status"] = json!({
        "phase": "Running", "podIP": addresses.first().map(|first| first["ip"].clone()),
        "podIPs": addresses, "conditions": [{"type": "Ready", "status": "True"}]
    });
    object
}

/// A Service's object when the API server has given it what it needs. `None` while its manifest is not whole.
fn allocated(mut object: Value, state: &ClusterState) -> Option<Value> {
    let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
    let view: &ServiceView = state.service(&text("namespace")?, &text("name")?)?;
    let (ips, families) = (view.cluster_ips.to_vec(), view.families.to_vec());
    let node_ports = view.node_ports.to_vec();
    let spec = &mut object["spec"];
    if spec["clusterIP"] == "None" {
        spec["clusterIPs"] = json!(["None"]);
    } else if let Some(first) = ips.first() {
        spec["clusterIP"] = first.to_string().into();
        spec["clusterIPs"] = ips.iter().map(ToString::to_string).collect();
    }
    if spec["type"] != "ExternalName" {
        spec["ipFamilies"] = families.iter().map(|family| family.as_str()).collect();
    }
    let ports = spec["ports"].as_array_mut().into_iter().flatten();
    for (port, node_port) in ports.zip(node_ports) {
        if let Some(node_port) = node_port {
            port["nodePort"] = node_port.into();
        }
    }
    object["status"] = json!({"loadBalancer": {}});
    Some(object)
}
