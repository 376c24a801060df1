//! Nodes that read their objects from an API server: what they take up, what they write, and what happens to
//! pods when it is gone.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

mod dns;
mod outage;
mod ranges;
mod snapshot;

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};

use crate::apiserver::{ApiServer, Store};
use crate::certificates::Authority;
use crate::common::TestLab;
use crate::common::traffic::End;
use serde_json::{Value, json};
use tempfile::TempDir;
use weft::admin::api::ApiServerStatus;
use weft::lab::probe::tcp_seen_as;
use weft::lab::{LabConfig, UNDERLAY};

/// Where the server is: on the router between the nodes.
const SERVER: &str = "192.168.77.254:6443";

const CLUSTER_IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 20));

/// A lab without nodes yet, whose nodes will ask a server between them.
struct Cluster {
    lab: TestLab,
    store: Store,
    server: Option<ApiServer>,
    authority: Authority,
    folder: TempDir,
}

impl Cluster {
    /// Whose server has the objects of so many nodes, and the namespaces that every cluster has.
    fn new(name: &str, nodes: u8, extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let objects = format!("source = \"kubernetes\"\nkubeconfig = \"{}\"", kubeconfig.display());
        let lab = TestLab::up(LabConfig {
            nodes: 0,
            pods_per_node: 0,
            ipv6: false,
            objects: Some(objects),
            extra: extra.to_owned(),
            ..LabConfig::new(name)
        });
        let store = Store::new(1);
        (1..=nodes).for_each(|number| store.set("nodes", &node(number)));
        for name in ["default", "kube-system"] {
            let meta = json!({"name": name});
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta});
            store.set("namespaces", &namespace);
        }
        store.set_tokens(&["secret"]);
        let authority = Authority::new("lab");
        let mut cluster = Self { lab, store, server: None, authority, folder };
        cluster.start_server();
        let (server, folder) = (cluster.server.as_ref().unwrap(), cluster.folder.path());
        let (ca, token) = (folder.join("ca.crt"), folder.join("token"));
        fs::write(&ca, cluster.authority.pem()).unwrap();
        fs::write(&token, "secret").unwrap();
        let kubeconfig = server.kubeconfig_of(
            &format!("certificate-authority: '{}'", ca.display()),
            &format!("tokenFile: '{}'", token.display()),
        );
        fs::write(folder.join("kubeconfig"), kubeconfig).unwrap();
        cluster
    }

    fn start_server(&mut self) {
        let underlay = self.lab.namespace(UNDERLAY).unwrap();
        let address: SocketAddr = SERVER.parse().unwrap();
        let listener = underlay.run(move || TcpListener::bind(address)).unwrap().unwrap();
        let tls = self.authority.server(&[&address.ip().to_string()]);
        self.server = Some(ApiServer::serve_tls(self.store.clone(), listener, tls).unwrap());
    }

    /// All its connections break, and nobody answers.
    fn stop_server(&mut self) {
        self.server = None;
    }

    /// How a node stands with the server.
    #[track_caller]
    fn api(&self, node: &str) -> ApiServerStatus {
        self.lab.admin(node).unwrap().status().unwrap().api_server.unwrap()
    }
}

fn node(number: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{number}")},
        "spec": {"podCIDR": format!("10.244.{}.0/24", 100 + number),
                 "podCIDRs": [format!("10.244.{}.0/24", 100 + number)]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.77.{number}")}]}
    })
}

fn service(name: &str, kind: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "type": kind, "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None", "selector": {"nobody": "has-this"},
            "ports": [{"name": "echo", "port": 80, "protocol": "TCP", "targetPort": 80}]
        },
        "status": {"loadBalancer": {}}
    })
}

fn slice(address: IpAddr, port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "default",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address.to_string()],
                       "conditions": {"ready": true, "serving": true, "terminating": false}}],
        "ports": [{"name": "echo", "port": port, "protocol": "TCP"}]
    })
}

/// Whether a connection to the Service gets an answer.
fn is_served(from: &End) -> bool {
    tcp_seen_as(&from.namespace, SocketAddr::new(CLUSTER_IP, 80)).is_ok()
}
