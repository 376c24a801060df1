//! Where pods find the name server on a Kubernetes cluster.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};
use weft::lab::Namespace;

use super::{CLUSTER_IP, Cluster, service};
use crate::common::place::{self, pod};
use crate::common::{eventually, may_make_labs};

/// How long an answer may take that comes from the same node.
const PATIENCE: Duration = Duration::from_millis(500);

/// The Service of the DNS: its selector finds nobody, and it has no slice.
fn kube_dns(address: &str) -> Value {
    let mut service = service("kube-dns", "ClusterIP", address);
    service["metadata"]["namespace"] = "kube-system".into();
    service["spec"]["ports"] = json!([
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53}
    ]);
    service
}

/// What a name server says the address of `name` is: nothing for no answer, or one without an address.
pub(super) fn asked(from: &Namespace, server: &str, name: &str) -> Option<String> {
    let at: SocketAddr = format!("{server}:53").parse().unwrap();
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // An error is an ICMP message about the question before.
    socket.connect(at).unwrap();
    let mut request = Message::new(7, MessageType::Query, OpCode::Query);
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    socket.send(&request.to_vec().unwrap()).ok()?;
    let mut buffer = [0; 1500];
    let len = socket.recv(&mut buffer).ok()?;
    let answer = Message::from_vec(&buffer[..len]).unwrap();
    answer.answers.first().map(|record| record.data.to_string())
}

fn connects(from: &Namespace, server: &str) -> bool {
    let at: SocketAddr = format!("{server}:53").parse().unwrap();
    from.run(|| TcpStream::connect_timeout(&at, PATIENCE)).unwrap().is_ok()
}

#[test]
fn the_name_server_is_where_its_service_is() {
    if !may_make_labs() {
        return;
    }
    let mut cluster = Cluster::new("kube-dns", 1, "");
    cluster.store.set("services", &service("web", "ClusterIP", &CLUSTER_IP.to_string()));
    cluster.lab.add_nodes(1).unwrap();
    let name = cluster.lab.add_pod("n1").unwrap();
    let ends = [pod(&cluster.lab, &name), place::node(&cluster.lab, "n1")];
    let ends: Vec<Namespace> = ends.into_iter().map(|end| end.namespace).collect();
    let answers = |server: &str| {
        let web = "web.default.svc.cluster.local.";
        ends.iter().all(|from| asked(from, server, web) == Some(CLUSTER_IP.to_string()))
            && ends.iter().all(|from| connects(from, server))
    };
    let is_silent = |server: &str| {
        let name = "web.default.svc.cluster.local.";
        ends.iter().all(|from| asked(from, server, name).is_none() && !connects(from, server))
    };
    let told = |cluster: &Cluster| {
        let dns = cluster.lab.admin("n1").unwrap().dns().unwrap().unwrap();
        dns.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
    };

    // Without the Service, where the configuration says.
    eventually("the configured address answers", || answers("10.96.0.10"));
    assert_eq!(told(&cluster), "10.96.0.10");

    // The Service comes, without a pod behind it, and moves: made anew, it has another address.
    for (address, before) in [("10.96.0.53", "10.96.0.10"), ("10.96.7.7", "10.96.0.53")] {
        cluster.store.delete("services", "kube-system", "kube-dns");
        cluster.store.set("services", &kube_dns(address));
        eventually(&format!("{address} answers"), || answers(address));
        assert_eq!(told(&cluster), address);
        eventually(&format!("{before} is nobody's"), || is_silent(before));
        let own = ["kube-dns.kube-system.svc", "ns.dns"];
        for name in own.map(|name| format!("{name}.cluster.local.")) {
            eventually(&format!("{name} is {address}"), || {
                asked(&ends[0], address, &name).as_deref() == Some(address)
            });
        }
    }

    // A daemon that starts finds it there, and it goes.
    cluster.lab.stop("n1").unwrap();
    cluster.lab.start("n1").unwrap();
    eventually("the address answers after a restart", || answers("10.96.7.7"));
    cluster.store.delete("services", "kube-system", "kube-dns");
    eventually("the configured address answers again", || answers("10.96.0.10"));
    eventually("the Service's address is nobody's", || is_silent("10.96.7.7"));
    let problems = cluster.lab.admin("n1").unwrap().status().unwrap().problems;
    assert!(problems.is_empty(), "{problems:?}");
    cluster.lab.finish();
}
