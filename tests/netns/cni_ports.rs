//! Ports of a node that lead to its containers (capability `portMappings`): for every kind of client, across restarts,
//! and given to one at a time.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::common::container::{Container, addresses, call, text};
use crate::common::service::{Answer, ask, refused_at_once, serve, serve_in, tcp, udp};
use crate::common::{TestLab, eventually, has_programs, may_make_labs, run};
use serde_json::{Value, json};
use weft::lab::{Family, LabConfig, Plan, WORLD, socket};

const NODE: &str = "n1";
const V4: &str = "192.168.77.1";
const V6: &str = "fd00:77::1";

/// Where all containers listen.
const PORT: u16 = 80;

/// Who is outside of the node, who is on it, and the node.
const CLIENTS: [&str; 5] = [WORLD, "n2", "n2-p1", "n1-p1", NODE];

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.80
  ports: [{name: http, port: 80, nodePort: 30080}]
---
";

#[test]
fn host_ports_lead_to_the_container_from_everywhere() {
    if !has_programs(&[("nft", "nftables")]) || !may_make_labs() {
        return;
    }
    let mut lab = lab("hostports", 2);
    let pod = Container::new(&lab, NODE, "published");
    serve_in(&pod.namespace, "published", PORT);
    let ports = json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8080, "containerPort": 80, "protocol": "UDP" },
        { "hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": V4 },
        { "hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "::" },
        // Only told of.
        { "hostPort": 0, "containerPort": 9090, "protocol": "tcp" }
    ]);
    let result = with_ports(&pod, &ports).unwrap();
    all_clients_reach(&lab, "at first");
    the_client_is_seen(&lab);
    other_places_stay_as_they_are(&lab);
    they_are_listed(&lab);
    check_notices_what_is_missing(&lab, &pod, &ports, &result);
    what_is_somebody_elses_is_refused(&lab);

    lab.stop(NODE).unwrap();
    lab.start(NODE).unwrap();
    all_clients_reach(&lab, "after a restart");
    lab.kill(NODE).unwrap();
    lab.start(NODE).unwrap();
    all_clients_reach(&lab, "after the daemon was killed");
    let mut config = config(&pod, &ports);
    config["prevResult"] = result.clone();
    pod.call("CHECK", &config).unwrap();

    // Repeating ADD with others changes them under the running container.
    let other = json!([{ "hostPort": 8090, "containerPort": 80 }]);
    assert_eq!(with_ports(&pod, &other).unwrap(), result);
    let world = lab.namespace(WORLD).unwrap();
    assert_eq!(server(tcp(&world, at(V4, 8090))), "published");
    refused_at_once("a port of before", || tcp(&world, at(V4, 8080)));
    pod.del();
    for client in CLIENTS {
        let namespace = lab.namespace(client).unwrap();
        refused_at_once(client, || tcp(&namespace, at(V4, 8090)));
    }
    lab.finish();
}

#[test]
fn a_host_port_has_one_holder_at_a_time() {
    if !has_programs(&[("nft", "nftables")]) || !may_make_labs() {
        return;
    }
    let mut lab = lab("oneholder", 1);
    let ports = json!([
        { "hostPort": 53, "containerPort": 80, "protocol": "udp" },
        { "hostPort": 53, "containerPort": 80, "protocol": "tcp" }
    ]);
    let first = Container::new(&lab, NODE, "first");
    serve_in(&first.namespace, "first", PORT);
    with_ports(&first, &ports).unwrap();
    let clients = [WORLD, "n1-p1", NODE];
    let sockets = clients.map(|client| connected(&lab, client, at(V4, 53)));
    let all_hear = |expected: &str| {
        for (client, socket) in clients.iter().zip(&sockets) {
            eventually(&format!("{client} hears {expected}"), || {
                ask(socket).is_ok_and(|answer| answer.server == expected)
            });
        }
    };
    all_hear("first");

    // DEL frees it, and clients that go on from the same port are heard by the next.
    first.del();
    let second = Container::new(&lab, NODE, "second");
    serve_in(&second.namespace, "second", PORT);
    with_ports(&second, &ports).unwrap();
    all_hear("second");

    // The same without a pause: the old container is there and has its address, but not the port.
    with_ports(&second, &json!([])).unwrap();
    first.namespace.remove().unwrap();
    let third = Container::new(&lab, NODE, "third");
    serve_in(&third.namespace, "third", PORT);
    with_ports(&third, &ports).unwrap();
    all_hear("third");

    // GC.
    let mut gc = third.config();
    let pods = lab.admin(NODE).unwrap().pods().unwrap();
    gc["cni.dev/valid-attachments"] = (pods.iter())
        .filter(|pod| pod.container_id != "third")
        .map(|pod| json!({ "containerID": pod.container_id, "ifname": pod.ifname }))
        .collect();
    third.call("GC", &gc).unwrap();
    let fourth = Container::new(&lab, NODE, "fourth");
    serve_in(&fourth.namespace, "fourth", PORT);
    as_pod(&fourth, "db", &ports).unwrap();
    all_hear("fourth");

    // A container that is gone without DEL holds nothing.
    fourth.namespace.remove().unwrap();
    let fifth = Container::new(&lab, NODE, "fifth");
    serve_in(&fifth.namespace, "fifth", PORT);
    as_pod(&fifth, "db", &ports).unwrap();
    all_hear("fifth");

    // A new sandbox of the same pod, before the old one was taken away; and that DEL does no harm to the new one.
    let sixth = Container::new(&lab, NODE, "sixth");
    serve_in(&sixth.namespace, "sixth", PORT);
    let error = as_pod(&sixth, "other", &ports).unwrap_err();
    assert_eq!(error["code"], 104, "{error}");
    assert!(text(&error).contains("port 53 of this node is default/db's already"), "{error}");
    as_pod(&sixth, "db", &ports).unwrap();
    all_hear("sixth");
    fifth.del();
    all_hear("sixth");
    lab.stop(NODE).unwrap();
    lab.start(NODE).unwrap();
    all_hear("sixth");

    // The namespace goes while no daemon runs.
    lab.stop(NODE).unwrap();
    sixth.namespace.remove().unwrap();
    lab.start(NODE).unwrap();
    let world = lab.namespace(WORLD).unwrap();
    eventually("nobody has it", || {
        tcp(&world, at(V4, 53)).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    });
    lab.finish();
}

#[track_caller]
fn all_clients_reach(lab: &TestLab, when: &str) {
    for client in CLIENTS {
        let namespace = lab.namespace(client).unwrap();
        for (address, port) in [(V4, 8080), (V6, 8080), (V4, 8081), (V6, 8082)] {
            let to = at(address, port);
            eventually(&format!("{when}: {client} to {to} by TCP"), || {
                tcp(&namespace, to).is_ok_and(|answer| answer.server == "published")
            });
            if port == 8080 {
                eventually(&format!("{when}: {client} to {to} by UDP"), || {
                    udp(&namespace, to).is_ok_and(|answer| answer.server == "published")
                });
            }
        }
        refused_at_once(&format!("{client}: a port of one address"), || {
            tcp(&namespace, at(V6, 8081))
        });
        refused_at_once(&format!("{client}: a port of one family"), || {
            tcp(&namespace, at(V4, 8082))
        });
    }
}

fn the_client_is_seen(lab: &TestLab) {
    let world = lab.namespace(WORLD).unwrap();
    for (address, family) in [(V4, Family::V4), (V6, Family::V6)] {
        assert_eq!(tcp(&world, at(address, 8080)).unwrap().seen, Plan::world(family).ip());
    }
    let (_, pod) = lab.state().pod("n1-p1").unwrap();
    let seen = tcp(&lab.namespace("n1-p1").unwrap(), at(V4, 8080)).unwrap().seen;
    assert!(pod.addresses.contains(&seen), "{seen}");
}

/// The node's other ports, other nodes, and this node under loopback addresses.
fn other_places_stay_as_they_are(lab: &TestLab) {
    serve(lab, NODE, 8089);
    for client in CLIENTS {
        let namespace = lab.namespace(client).unwrap();
        assert_eq!(server(tcp(&namespace, at(V4, 8089))), NODE, "{client}");
        refused_at_once(&format!("{client} to the other node"), || {
            tcp(&namespace, at("192.168.77.2", 8080))
        });
    }
    let node = lab.namespace(NODE).unwrap();
    for loopback in ["127.0.0.1", "::1"] {
        refused_at_once(loopback, || tcp(&node, at(loopback, 8080)));
    }
}

fn they_are_listed(lab: &TestLab) {
    let pods = lab.admin(NODE).unwrap().pods().unwrap();
    let pod = pods.iter().find(|pod| pod.container_id == "published").unwrap();
    assert_eq!(pod.host_ports.len(), 4, "{pod:?}");
    assert!(pod.host_ports.iter().all(|port| port.problem.is_none()), "{pod:?}");
    let mut command = std::process::Command::new(lab.dir().join("bin/weft"));
    command.args(["pods", "--local", "--socket"]).arg(socket(lab.dir(), NODE));
    let output = command.output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = "8080->80/TCP, 192.168.77.1:8081->80/TCP, [::]:8082->80/TCP, 8080->80/UDP";
    assert!(shown.contains(expected), "{shown}");
}

fn check_notices_what_is_missing(lab: &TestLab, pod: &Container, ports: &Value, result: &Value) {
    let check = |ports: &Value| {
        let mut config = config(pod, ports);
        config["prevResult"] = result.clone();
        pod.call("CHECK", &config)
    };
    check(ports).unwrap();
    let error = check(&json!([{ "hostPort": 8099, "containerPort": 80 }])).unwrap_err();
    assert_eq!(error["code"], 103, "{error}");
    assert!(text(&error).contains("host port 8099/TCP: expected, found none"), "{error}");

    let node = lab.namespace(NODE).unwrap();
    run(&node, "nft flush set inet weft ports4");
    let error = check(ports).unwrap_err();
    assert_eq!(error["code"], 103, "{error}");
    assert!(text(&error).contains("host ports: not in the host's table"), "{error}");
    // ADD again mends it.
    assert_eq!(&with_ports(pod, ports).unwrap(), result);
    check(ports).unwrap();
    let world = lab.namespace(WORLD).unwrap();
    assert_eq!(server(tcp(&world, at(V4, 8080))), "published");
}

fn what_is_somebody_elses_is_refused(lab: &TestLab) {
    fs::write(lab.manifests().join("service.yaml"), SERVICE).unwrap();
    let admin = lab.admin(NODE).unwrap();
    eventually("the Service is known", || admin.services().is_ok_and(|all| !all.is_empty()));
    let pod = Container::new(lab, NODE, "refused");
    let free = |report: weft::admin::ipam::IpamReport| {
        report.pools.into_iter().map(|pool| pool.free).collect::<Vec<_>>()
    };
    let before = free(admin.ipam().unwrap());
    for (port, code, why) in [
        (
            json!({ "hostPort": 8080 }),
            104,
            "TCP port 8080 of this node is published/eth0's already",
        ),
        (json!({ "hostPort": 8081, "hostIP": "0.0.0.0" }), 104, "TCP port 8081 of this node is"),
        (json!({ "hostPort": 8081, "hostIP": V4 }), 104, "TCP port 8081 of 192.168.77.1 is"),
        (json!({ "hostPort": 30080 }), 104, "TCP port 30080 of every node is default/web:http's"),
        (json!({ "hostPort": 4789, "protocol": "udp" }), 104, "the node's own, for its tunnel"),
        (json!({ "hostPort": 9, "hostIP": "127.0.0.1" }), 7, "hostIP 127.0.0.1 cannot be served"),
        (json!({ "hostPort": 9, "hostIP": "10.96.0.80" }), 7, "which is the cluster's own"),
        (json!({ "hostPort": 9, "hostIP": "10.244.0.1" }), 7, "which is the cluster's own"),
        (json!({ "hostPort": 9, "hostIP": "192.168.77.2" }), 7, "is no address of this node"),
        (json!({ "hostPort": 443, "hostIP": "198.51.100.1" }), 7, "is no address of this node"),
        (json!({ "hostPort": 70000 }), 7, "hostPort 70000 is no port"),
        (json!({ "hostPort": 9, "protocol": "icmp" }), 7, "none of tcp, udp, sctp"),
    ] {
        let mut port = port;
        port["containerPort"] = json!(80);
        let error = with_ports(&pod, &json!([port])).unwrap_err();
        assert_eq!(error["code"], code, "{error}");
        assert!(text(&error).contains(why), "{error}");
        assert!(!pod.has_interface("eth0"));
    }
    let same =
        json!([{ "hostPort": 9, "containerPort": 80 }, { "hostPort": 9, "containerPort": 81 }]);
    assert_eq!(with_ports(&pod, &same).unwrap_err()["code"], 104);
    assert_eq!(free(admin.ipam().unwrap()), before, "no address was spent on that");

    // What is nobody's: the same number by another protocol, at another address.
    run(&lab.namespace(NODE).unwrap(), "ip address add 192.168.77.101/24 dev eth0");
    let ports = json!([
        { "hostPort": 30080, "containerPort": 80, "protocol": "udp" },
        { "hostPort": 8081, "containerPort": 80, "hostIP": "192.168.77.101" }
    ]);
    let given = addresses(&with_ports(&pod, &ports).unwrap());
    assert_eq!(given.len(), 2);
    pod.del();
    fs::remove_file(lab.manifests().join("service.yaml")).unwrap();
}

fn config(pod: &Container, ports: &Value) -> Value {
    let mut config = pod.config();
    config["runtimeConfig"] = json!({ "portMappings": ports });
    config
}

fn with_ports(pod: &Container, ports: &Value) -> Result<Value, Value> {
    pod.call("ADD", &config(pod, ports))
}

/// ADD as Kubernetes calls it, for the pod `default/NAME`.
fn as_pod(pod: &Container, name: &str, ports: &Value) -> Result<Value, Value> {
    let mut command = pod.command("ADD");
    command.env("CNI_ARGS", format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}"));
    call(command, &config(pod, ports))
}

fn connected(lab: &TestLab, client: &str, to: SocketAddr) -> UdpSocket {
    let open = || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        socket.connect(to).unwrap();
        socket
    };
    lab.namespace(client).unwrap().run(open).unwrap()
}

#[track_caller]
fn server(answer: io::Result<Answer>) -> String {
    answer.unwrap().server
}

fn at(address: &str, port: u16) -> SocketAddr {
    let address: IpAddr = address.parse().unwrap();
    SocketAddr::new(address, port)
}

/// Nodes with two families, each of which is told of in a Node object, so that host ports are at both.
fn lab(name: &str, nodes: u8) -> TestLab {
    let lease = "ranges = [\"10.244.0.0/16\", \"fd00:10:244::/56\"]\nclaim_wait_ms = 300\nclaim_confirm_ms = 300";
    let extra = "[services]\nranges = [\"10.96.0.0/16\"]\n";
    let lab = TestLab::up(LabConfig {
        nodes,
        pods_per_node: 1,
        lease: Some(lease.to_owned()),
        extra: extra.to_owned(),
        ..LabConfig::new(name)
    });
    let node = |number: u8| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: n{number}}}\nstatus: {{addresses: [{{type: InternalIP, \
             address: 192.168.77.{number}}}, {{type: InternalIP, address: \"fd00:77::{number}\"}}]}}\n---\n"
        )
    };
    let all: String = (1..=nodes).map(node).collect();
    fs::write(lab.manifests().join("nodes.yaml"), all).unwrap();
    for number in 1..=nodes {
        let admin = lab.admin(&format!("n{number}")).unwrap();
        eventually("the nodes' objects are known", || {
            admin.objects().is_ok_and(|listing| listing.accepted.len() >= usize::from(nodes))
        });
    }
    lab
}
