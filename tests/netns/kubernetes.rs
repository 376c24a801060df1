//! Nodes that read their objects from an API server: what they take up, what they write, and what happens to
//! pods when it is gone.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use crate::apiserver::{ApiServer, Recorded, Store};
use crate::common::place::{leases, pod};
use crate::common::traffic::{End, both_ways};
use crate::common::{TestLab, eventually, may_make_labs};
use serde_json::{Value, json};
use weft::admin::api::ProblemTopic;
use weft::lab::probe::{EchoServer, Ping, tcp_seen_as};
use weft::lab::{LabConfig, UNDERLAY};

/// Where the server is: on the router between the nodes.
const SERVER: &str = "192.168.77.254:6443";

const CLUSTER_IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 20));

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

#[test]
fn a_cluster_lives_with_its_api_server_and_without() {
    if !may_make_labs() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let config = LabConfig {
        nodes: 0,
        pods_per_node: 0,
        ipv6: false,
        objects: Some(format!(
            "source = \"kubernetes\"\nkubeconfig = \"{}\"",
            kubeconfig.display()
        )),
        extra: "[services]\nload_balancer_pool = [\"198.51.100.0/28\"]\n".to_owned(),
        ..LabConfig::new("kube")
    };
    let mut lab = TestLab::up(config);
    let underlay = lab.namespace(UNDERLAY).unwrap();
    let listen = || {
        let address: SocketAddr = SERVER.parse().unwrap();
        underlay.run(move || TcpListener::bind(address)).unwrap().unwrap()
    };
    let store = Store::new(1);
    (1..=3).for_each(|number| store.set("nodes", &node(number)));
    for name in ["default", "kube-system"] {
        let meta = json!({"name": name});
        store
            .set("namespaces", &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta}));
    }
    store.set("services", &service("web", "ClusterIP", &CLUSTER_IP.to_string()));
    store.set("services", &service("out", "LoadBalancer", "10.96.0.21"));
    let mut names = slice([192, 0, 2, 1].into(), 80);
    names["metadata"]["name"] = "by-name".into();
    names["addressType"] = "FQDN".into();
    store.set("endpointslices", &names);
    let server = ApiServer::serve(store.clone(), listen()).unwrap();
    fs::write(&kubeconfig, server.kubeconfig()).unwrap();

    // The control plane's subnets are what nodes have, and they find each other by their Node objects.
    lab.add_nodes(3).unwrap();
    lab.wait_for_map(&["n1", "n2", "n3"], Duration::from_secs(20)).unwrap();
    for number in 1..=3 {
        let expected = format!("10.244.{}.0/24", 100 + number).parse().unwrap();
        assert_eq!(leases(&lab, &format!("n{number}")), [expected]);
    }
    let names = ["n1", "n2", "n3"].map(|node| lab.add_pod(node).unwrap());
    let pods = names.map(|name| pod(&lab, &name));
    both_ways(&pods[0], &pods[1], 100_000);

    // Endpoints are what slices say, whatever the selector.
    assert!(!is_served(&pods[0]));
    let echo = EchoServer::start(&pods[2].namespace, pods[2].addresses[0]).unwrap();
    store.set("endpointslices", &slice(pods[2].addresses[0], echo.port()));
    for end in &pods[..2] {
        eventually("the Service has its endpoint", || is_served(end));
    }
    let api =
        |lab: &TestLab, node: &str| lab.admin(node).unwrap().status().unwrap().api_server.unwrap();
    assert_eq!((api(&lab, "n1").synced, api(&lab, "n1").stale_s), (true, None));

    // What people look for in the API: the node's condition, the load balancer's address, an event.
    eventually("every node's network is said to be up", || {
        (1..=3).all(|number| {
            let node = store.get("nodes", "", &format!("n{number}")).unwrap();
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions
                .iter()
                .any(|it| it["type"] == "NetworkUnavailable" && it["status"] == "False")
        })
    });
    eventually("the load balancer has an address", || {
        let service = store.get("services", "default", "out").unwrap();
        let ip = service["status"]["loadBalancer"]["ingress"][0]["ip"].clone();
        ip.as_str().is_some_and(|ip| ip.starts_with("198.51.100."))
    });
    eventually("the refused slice has its event", || {
        store.all("events").iter().any(|event| event["regarding"]["name"] == "by-name")
    });
    let events = store.all("events");
    assert_eq!(events.len(), 1, "one node tells, and once: {events:?}");
    assert!(events[0]["note"].as_str().unwrap().starts_with("addressType: names"), "{events:?}");

    // Every request is in the role, and all of the role is used.
    let granted = crate::role::granted(&fs::read_to_string("conf/kubernetes/weft.yaml").unwrap());
    let made = || store.requests().iter().map(rule_of).collect::<BTreeSet<_>>();
    eventually("all of the role is used", || granted.is_subset(&made()));
    let more: Vec<_> = made().difference(&granted).cloned().collect();
    assert!(more.is_empty(), "not granted: {more:?}");

    // Without the server: nothing is lost, a new pod gets its address, a daemon starts.
    let lists = || store.requests().iter().filter(|request| request.verb == "list").count();
    let listed = lists();
    let (source, target) = (pods[0].namespace.clone(), pods[1].addresses[0]);
    let pinging = std::thread::spawn(move || {
        let interval = Duration::from_millis(10);
        Ping { count: 1000, interval, ..Ping::new(target) }.run(&source)
    });
    drop(server);
    eventually("the nodes miss it", || {
        ["n1", "n2", "n3"].iter().all(|node| api(&lab, node).stale_s.is_some())
    });
    let status = lab.admin("n2").unwrap().status().unwrap();
    assert!(status.ready);
    let topics: Vec<_> = status.problems.iter().map(|problem| problem.topic).collect();
    assert!(topics.contains(&ProblemTopic::Kubernetes), "{:?}", status.problems);
    assert!(is_served(&pods[0]));
    let late = lab.add_pod("n2").unwrap();
    both_ways(&pods[0], &pod(&lab, &late), 10_000);
    let server = ApiServer::serve(store.clone(), listen()).unwrap();
    let echo = EchoServer::start(&pods[1].namespace, pods[1].addresses[0]).unwrap();
    store.set("endpointslices", &slice(pods[1].addresses[0], echo.port()));
    eventually("the nodes hear it again", || {
        ["n1", "n2", "n3"].iter().all(|node| {
            let api = lab.admin(node).unwrap().status().unwrap().api_server.unwrap();
            api.stale_s.is_none()
        })
    });
    eventually("the Service has its new endpoint", || is_served(&pods[0]));
    let report = pinging.join().unwrap().unwrap();
    assert_eq!((report.sent, report.lost()), (1000, 0), "{report:?}");
    assert_eq!(lists(), listed, "watches go on from where they were");

    drop(server);
    lab.stop("n3").unwrap();
    lab.start("n3").unwrap();
    assert_eq!(leases(&lab, "n3"), ["10.244.103.0/24".parse().unwrap()]);
    // Its pods are shut until it knows what policies there are; all others go on.
    both_ways(&pods[0], &pods[1], 10_000);
    let _server = ApiServer::serve(store.clone(), listen()).unwrap();
    eventually("the objects are known on the node that began without them", || {
        api(&lab, "n3").synced
    });
    both_ways(&pods[0], &pods[2], 10_000);
    lab.finish();
}

/// A request as a rule of a role would have to permit it.
fn rule_of(request: &Recorded) -> crate::role::Rule {
    let Recorded { verb, group, resource, namespace, name } = request;
    // Only the Lease is of one namespace; all else is of the cluster, whichever object it is.
    let is_lease = resource == "leases";
    let is_named = is_lease && verb != "create";
    crate::role::Rule {
        verb: verb.clone(),
        group: group.clone(),
        resource: resource.clone(),
        namespace: if is_lease { namespace.clone() } else { String::new() },
        name: if is_named { name.clone() } else { String::new() },
    }
}
