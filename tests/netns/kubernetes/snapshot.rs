//! A start without the API server: what was known before is in force.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Value, json};
use weft::admin::api::{PolicyEnforcement, ProblemTopic};
use weft::kubernetes::memory::FILE;
use weft::lab::probe::EchoServer;

use super::dns::asked;
use super::{CLUSTER_IP, Cluster, is_served, service, slice};
use crate::common::place::pod;
use crate::common::traffic::End;
use crate::common::{eventually, may_make_labs};

/// The namespace of a lab's pods.
const NAMESPACE: &str = "lab";

/// A pod's object as the kubelet reports it.
fn object(cluster: &Cluster, end: &End, role: &str) -> Value {
    let (node, _) = cluster.lab.state().pod(&end.name).unwrap();
    let addresses: Vec<Value> =
        end.addresses.iter().map(|address| json!({"ip": address.to_string()})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": end.name, "namespace": NAMESPACE, "labels": {"role": role}},
        "spec": {"nodeName": node.name, "containers": [{"name": "c", "image": "registry.example/c:1"}]},
        "status": {"phase": "Running", "podIP": end.addresses[0].to_string(), "podIPs": addresses,
                   "conditions": [{"type": "Ready", "status": "True"}]}
    })
}

/// Servers accept clients, and nobody else.
fn policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "servers", "namespace": NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": {"role": "server"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "client"}}}]}]
        }
    })
}

struct Setting {
    cluster: Cluster,
    client: End,
    stranger: End,
    _echo: EchoServer,
}

impl Setting {
    fn new() -> Self {
        let mut cluster = Cluster::new("snapshot", 2, "");
        cluster.lab.add_nodes(2).unwrap();
        let names = ["n1", "n1", "n2"].map(|node| cluster.lab.add_pod(node).unwrap());
        let [client, stranger, server] = names.map(|name| pod(&cluster.lab, &name));
        let echo = EchoServer::start(&server.namespace, server.addresses[0]).unwrap();
        let store = &cluster.store;
        let meta = json!({"name": NAMESPACE, "labels": {"kubernetes.io/metadata.name": NAMESPACE}});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta});
        store.set("namespaces", &namespace);
        for (end, role) in [(&client, "client"), (&stranger, "stranger"), (&server, "server")] {
            store.set("pods", &object(&cluster, end, role));
        }
        store.set("services", &service("web", "ClusterIP", &CLUSTER_IP.to_string()));
        store.set("endpointslices", &slice(server.addresses[0], echo.port()));
        store.set("networkpolicies", &policy());
        Self { cluster, client, stranger, _echo: echo }
    }

    fn file(&self, node: &str) -> PathBuf {
        self.cluster.lab.dir().join("nodes").join(node).join("state").join(FILE)
    }

    /// The client is served by address and by name, and the stranger is not.
    #[track_caller]
    fn is_in_force(&self) {
        let web = "web.default.svc.cluster.local.";
        eventually("the Service answers the client", || is_served(&self.client));
        eventually("its name is answered", || {
            asked(&self.client.namespace, "10.96.0.10", web) == Some(CLUSTER_IP.to_string())
        });
        assert!(!is_served(&self.stranger), "the policy denies it");
    }

    fn restart_without_a_word(&mut self) {
        for node in ["n1", "n2"] {
            self.cluster.lab.kill(node).unwrap();
        }
        for node in ["n1", "n2"] {
            self.cluster.lab.start(node).unwrap();
        }
    }

    fn topics(&self, node: &str) -> Vec<ProblemTopic> {
        let problems = self.cluster.lab.admin(node).unwrap().status().unwrap().problems;
        problems.iter().map(|problem| problem.topic).collect()
    }
}

#[test]
fn a_node_that_starts_without_the_api_server_goes_on_with_what_it_knew() {
    if !may_make_labs() {
        return;
    }
    let mut setting = Setting::new();
    eventually("the policy is there", || {
        let admin = setting.cluster.lab.admin("n2").unwrap();
        admin.policies().unwrap().enforcement == PolicyEnforcement::On
    });
    setting.is_in_force();

    // A daemon that has just read all of it keeps it at once.
    let begun = SystemTime::now();
    setting.restart_without_a_word();
    for node in ["n1", "n2"] {
        let file = setting.file(node);
        eventually("what is known is on disk", || {
            fs::metadata(&file).is_ok_and(|file| file.modified().unwrap() > begun)
        });
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!setting.cluster.api(node).remembered);
    }

    setting.cluster.stop_server();
    setting.restart_without_a_word();
    setting.is_in_force();
    for node in ["n1", "n2"] {
        let api = setting.cluster.api(node);
        assert!(api.remembered && !api.synced && api.stale_s.is_some(), "{api:?}");
        assert!(setting.topics(node).contains(&ProblemTopic::Kubernetes));
        let policies = setting.cluster.lab.admin(node).unwrap().policies().unwrap();
        assert_eq!(policies.enforcement, PolicyEnforcement::On);
    }
    // Nobody knows the labels of a pod that comes now: its port is shut, though the policy is not for it.
    let late = setting.cluster.lab.add_pod("n1").unwrap();
    let late = pod(&setting.cluster.lab, &late);
    assert!(!is_served(&late), "closed until its object is known");

    // The server comes back to a cluster that has changed: the Service has moved, and accepts everybody.
    let store = setting.cluster.store.clone();
    store.set("pods", &object(&setting.cluster, &late, "late"));
    store.delete("networkpolicies", NAMESPACE, "servers");
    let moved = "10.96.0.77";
    store.set("services", &service("web", "ClusterIP", moved));
    setting.cluster.start_server();
    for node in ["n1", "n2"] {
        eventually("the node is told what there is", || {
            let api = setting.cluster.api(node);
            !api.remembered && api.synced && api.stale_s.is_none()
        });
        assert!(!setting.topics(node).contains(&ProblemTopic::Kubernetes));
    }
    let at: SocketAddr = SocketAddr::new(moved.parse::<IpAddr>().unwrap(), 80);
    for end in [&setting.client, &setting.stranger, &late] {
        eventually("everybody is served at the new address", || {
            weft::lab::probe::tcp_seen_as(&end.namespace, at).is_ok()
        });
        assert!(!is_served(end), "the old address is nobody's");
    }

    // What is not whole is nothing: the node waits, as one that was never here.
    setting.cluster.stop_server();
    let file = setting.file("n1");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    setting.cluster.lab.kill("n1").unwrap();
    setting.cluster.lab.start("n1").unwrap();
    let api = setting.cluster.api("n1");
    assert!(!api.remembered && !api.synced, "{api:?}");
    let policies = setting.cluster.lab.admin("n1").unwrap().policies().unwrap();
    assert_eq!(policies.enforcement, PolicyEnforcement::Pending);
    let log = fs::read_to_string(setting.cluster.lab.log_path("n1")).unwrap();
    assert!(log.contains("kubernetes-objects.json is left aside: it is damaged"), "{log}");
    setting.cluster.start_server();
    eventually("the node is told what there is", || setting.cluster.api("n1").synced);
    eventually("it is served", || {
        weft::lab::probe::tcp_seen_as(&setting.client.namespace, at).is_ok()
    });
    let Setting { cluster, .. } = setting;
    cluster.lab.finish();
}
