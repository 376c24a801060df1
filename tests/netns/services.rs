//! Services over three nodes, for every kind of client: pods, nodes, the world outside.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

use crate::common::service::{
    Connection, PATIENCE, address, ask, refused_at_once, serve, silent, slice, tcp, udp,
};
use crate::common::{eventually, has_programs, may_make_labs, run};
use crate::control_plane::{Source, SourcedLab};
use vswitch::verdict::Reason;
use weft::lab::{Family, LabConfig, Plan, UNDERLAY, WORLD};

const CONFIG: &str = "
[services]
ranges = [\"10.96.0.0/16\", \"fd00:10:96::/112\"]
load_balancer_pool = [\"192.168.77.240/29\", \"fd00:77::f0/125\"]
";

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  clusterIP: 10.96.0.80
  clusterIPs: [10.96.0.80, \"fd00:10:96::80\"]
  loadBalancerIP: 192.168.77.240
  externalIPs: [198.51.100.5]
  ports:
  - {name: http, port: 80, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP, nodePort: 30053}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
  loadBalancerIP: 192.168.77.241
  allocateLoadBalancerNodePorts: true
  ports: [{name: http, port: 80, nodePort: 30081}]
---
apiVersion: v1
kind: Service
metadata: {name: guarded}
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  loadBalancerIP: 192.168.77.242
  loadBalancerSourceRanges: [203.0.113.0/24]
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.83
  loadBalancerIP: 192.168.77.243
  ports:
  - {name: http, port: 80, nodePort: 30083}
  - {name: dns, port: 53, protocol: UDP, nodePort: 30063}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  type: NodePort
  clusterIP: 10.96.0.84
  sessionAffinity: ClientIP
  ports: [{name: http, port: 80, nodePort: 30084}]
---
apiVersion: v1
kind: Service
metadata: {name: mirror}
spec:
  clusterIP: 10.96.0.85
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: names}
spec:
  clusterIP: None
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: names.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: node}
spec:
  clusterIP: 10.96.0.86
  ports: [{name: http, port: 80}]
---
";

/// Where all servers listen.
const PORT: u16 = 8080;

struct Place {
    lab: SourcedLab,
}

#[test]
fn every_service_for_every_client() {
    every_service(Source::Manifests);
}

#[test]
fn every_service_of_an_api_server_for_every_client() {
    every_service(Source::Kubernetes);
}

fn every_service(source: Source) {
    if !has_programs(&[("nft", "nftables"), ("ip", "iproute2")]) || !may_make_labs() {
        return;
    }
    let config = LabConfig { extra: CONFIG.to_owned(), ..LabConfig::new("services") };
    let place = Place { lab: SourcedLab::up(source, config) };
    place.declare();
    for (ix, step) in Place::STEPS.iter().enumerate() {
        eprintln!("step {ix}");
        step(&place);
    }
    let Place { lab } = place;
    lab.finish();
}

impl Place {
    const STEPS: [fn(&Self); 9] = [
        Self::all_addresses_are_reached_by_all,
        Self::sources_are_kept_where_they_can_be,
        Self::a_pod_reaches_itself,
        Self::nobody_serves_and_everybody_is_told_at_once,
        Self::local_drops_what_is_from_outside,
        Self::health_is_told_as_kube_proxy_tells_it,
        Self::source_ranges_and_affinity,
        Self::names_lead_to_pods,
        Self::the_node_itself_serves_and_localhost_does_not,
    ];

    fn declare(&self) {
        let lab = &self.lab;
        for pod in ["n1-p1", "n1-p2", "n2-p1", "n3-p1"] {
            serve(lab, pod, PORT);
        }
        serve(lab, "n2", PORT + 1);
        let mut text = SERVICES.to_owned();
        let all = [("n1-p1", ""), ("n2-p1", "")];
        for kind in ["IPv4", "IPv6"] {
            text += &slice(lab, ("web", kind), PORT, &all);
        }
        text += &slice(lab, ("near", "IPv4"), PORT, &[("n1-p1", "")]);
        for name in ["guarded", "sticky", "names"] {
            text += &slice(lab, (name, "IPv4"), PORT, &all);
        }
        text += &slice(lab, ("mirror", "IPv4"), PORT, &[("n1-p1", "")]);
        text += "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {name: node-1, labels: {kubernetes.io/service-name: node}}\naddressType: IPv4\n\
                 ports: [{name: http, port: 8081}]\n\
                 endpoints: [{addresses: [192.168.77.2], nodeName: n2}]\n---\n";
        for number in 1..=3 {
            text += &format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: n{number}}}\nstatus: {{addresses: [{{type: \
                 InternalIP, address: 192.168.77.{number}}}, {{type: InternalIP, address: \"fd00:77::{number}\"}}]}}\n---\n"
            );
        }
        fs::write(lab.manifests().join("all.yaml"), text).unwrap();
        // The world's router sends external IPs to a node of its choice.
        let underlay = lab.namespace(UNDERLAY).unwrap();
        run(&underlay, "ip route add 198.51.100.5 via 192.168.77.1");
        run(&lab.namespace(WORLD).unwrap(), "ip route add 198.51.100.5 via 203.0.113.1");
        for node in ["n1", "n2", "n3"] {
            eventually(&format!("{node} has all objects"), || {
                let listing = lab.admin(node).unwrap().objects().unwrap();
                assert_eq!(listing.refused.len(), 0, "{}", listing.refused[0]);
                listing.accepted.len() >= 20
            });
        }
        eventually("the addresses for the world are announced", || {
            tcp(&lab.namespace(WORLD).unwrap(), to("192.168.77.240", 80)).is_ok()
                && self.balancer6().is_some_and(|address| {
                    tcp(&lab.namespace(WORLD).unwrap(), to(&address, 80)).is_ok()
                })
        });
    }

    /// The IPv6 address for the world that `web` was given.
    fn balancer6(&self) -> Option<String> {
        let notes = self.notes("n1", "web");
        let announced = notes.iter().filter_map(|note| note.split_once(" is announced by "));
        announced.map(|(address, _)| address.to_owned()).find(|address| address.contains(':'))
    }

    fn tcp(&self, from: &str, to: SocketAddr) -> std::io::Result<crate::common::service::Answer> {
        tcp(&self.lab.namespace(from).unwrap(), to)
    }

    /// The addresses that `name` has as a client.
    fn own_addresses(&self, name: &str) -> BTreeSet<IpAddr> {
        let state = self.lab.state();
        if name == WORLD {
            return [Family::V4, Family::V6].map(|family| Plan::world(family).ip()).into();
        }
        if let Ok((_, pod)) = state.pod(name) {
            return pod.addresses.iter().copied().collect();
        }
        let node = state.node(name).unwrap();
        let number = name.trim_start_matches('n');
        let underlay = [format!("192.168.77.{number}"), format!("fd00:77::{number}")];
        let underlay = underlay.map(|text| text.parse().unwrap());
        self.lease(&node.name, 1).into_iter().chain(underlay).collect()
    }

    /// The address `offset` behind the network address of each of a node's subnets.
    fn lease(&self, node: &str, offset: u8) -> Vec<IpAddr> {
        let status = self.lab.admin(node).unwrap().status().unwrap();
        let networks = status.leases.iter().map(|prefix| prefix.network());
        let behind = networks.map(|network| match network {
            IpAddr::V4(v4) => IpAddr::from((v4.to_bits() + u32::from(offset)).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((v6.to_bits() + u128::from(offset)).to_be_bytes()),
        });
        behind.collect()
    }

    fn all_addresses_are_reached_by_all(&self) {
        let inside = ["10.96.0.80", "fd00:10:96::80"];
        let balancer6 = self.balancer6().unwrap();
        let outside = ["198.51.100.5", "192.168.77.240", &balancer6];
        let nodes = ["192.168.77.1", "192.168.77.3", "fd00:77::1", "fd00:77::3"];
        for client in ["n1-p2", "n3-p1", "n1", "n3", WORLD] {
            let namespace = self.lab.namespace(client).unwrap();
            let inside = inside.iter().filter(|_| client != WORLD);
            let clusterwide = inside.chain(&outside).map(|address| (*address, 80, 53));
            let ports = nodes.iter().map(|address| (*address, 30080, 30053));
            for (target, http, dns) in clusterwide.chain(ports) {
                // The lab's world has one route for external IPs.
                let answer = tcp(&namespace, to(target, http));
                let answer = answer.unwrap_or_else(|e| panic!("TCP {client} to {target}: {e}"));
                assert!(["n1-p1", "n2-p1"].contains(&answer.server.as_str()), "{answer:?}");
                let answer = udp(&namespace, to(target, dns));
                answer.unwrap_or_else(|error| panic!("UDP {client} to {target}: {error}"));
            }
        }
    }

    fn sources_are_kept_where_they_can_be(&self) {
        let switches: BTreeSet<IpAddr> =
            ["n1", "n2", "n3"].iter().flat_map(|node| self.lease(node, 0)).collect();
        for client in ["n1-p2", "n3-p1", "n1", "n3", WORLD] {
            let own = self.own_addresses(client);
            for (target, port, node) in [
                ("10.96.0.80", 80, None),
                ("192.168.77.1", 30080, Some("n1")),
                ("192.168.77.2", 30080, Some("n2")),
                ("192.168.77.3", 30080, Some("n3")),
                ("fd00:77::2", 30080, Some("n2")),
            ] {
                // The switches know a node by one underlay address; at others the world's rules hold.
                let is_worlds = node.is_some() && target.contains(':');
                if (client == WORLD && node.is_none()) || (client != WORLD && is_worlds) {
                    continue;
                }
                let mut servers = BTreeSet::new();
                // That all go to one of the two by chance does not happen.
                for _ in 0..20 {
                    let answer = self.tcp(client, to(target, port)).unwrap();
                    let is_inside = client.contains('-') || node.is_none() || node == Some(client);
                    let is_here = node.is_some_and(|node| answer.server.starts_with(node));
                    if is_inside || is_here {
                        assert!(own.contains(&answer.seen), "{client} to {target}: {answer:?}");
                    } else {
                        assert!(
                            switches.contains(&answer.seen),
                            "{client} to {target}: {answer:?}"
                        );
                    }
                    servers.insert(answer.server);
                }
                assert_eq!(servers.len(), 2, "{client} to {target}: both serve");
            }
        }
    }

    fn a_pod_reaches_itself(&self) {
        let answer = self.tcp("n1-p1", to("10.96.0.85", 80)).unwrap();
        assert_eq!(answer.server, "n1-p1");
        assert!(self.lease("n1", 0).contains(&answer.seen), "{answer:?}");
    }

    fn nobody_serves_and_everybody_is_told_at_once(&self) {
        let world = self.lab.namespace(WORLD).unwrap();
        eventually("the address is announced", || {
            let answer = tcp(&world, to("192.168.77.243", 80));
            answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
        for client in ["n1-p1", "n2", WORLD] {
            let namespace = self.lab.namespace(client).unwrap();
            let targets = [
                ("10.96.0.83", 80, 53),
                ("192.168.77.243", 80, 53),
                ("192.168.77.1", 30083, 30063),
            ];
            for (target, http, dns) in targets {
                if client == WORLD && target == "10.96.0.83" {
                    continue;
                }
                let what = format!("{client} to {target}");
                refused_at_once(&format!("TCP {what}"), || tcp(&namespace, to(target, http)));
                refused_at_once(&format!("UDP {what}"), || udp(&namespace, to(target, dns)));
            }
            let what = format!("{client} to another port");
            refused_at_once(&what, || tcp(&namespace, to("192.168.77.240", 81)));
        }
    }

    fn local_drops_what_is_from_outside(&self) {
        let answer = self.tcp(WORLD, to("192.168.77.1", 30081)).unwrap();
        assert!(self.own_addresses(WORLD).contains(&answer.seen), "{answer:?}");
        let before = self.lab.dropped("n2", Reason::NoLocalEndpoint);
        silent("world to n2", &self.tcp(WORLD, to("192.168.77.2", 30081)));
        assert!(self.lab.dropped("n2", Reason::NoLocalEndpoint) > before);
        // From inside, the way is cut short.
        for client in ["n2-p1", "n2"] {
            assert_eq!(self.tcp(client, to("192.168.77.2", 30081)).unwrap().server, "n1-p1");
        }
        // Only the node with the endpoint announces the address, so the client is seen.
        eventually("n1 announces", || {
            let notes = self.notes("n3", "near");
            notes.iter().any(|note| note == "192.168.77.241 is announced by n1")
        });
        eventually("the world reaches it there", || {
            let answer = self.tcp(WORLD, to("192.168.77.241", 80));
            answer.is_ok_and(|answer| self.own_addresses(WORLD).contains(&answer.seen))
        });
    }

    fn notes(&self, node: &str, service: &str) -> Vec<String> {
        let listing = self.lab.admin(node).unwrap().objects().unwrap();
        let found = listing
            .accepted
            .into_iter()
            .find(|object| object.kind == "Service" && object.name == service);
        found.unwrap().notes
    }

    fn health_is_told_as_kube_proxy_tells_it(&self) {
        let ask = |target: &str| {
            let world = self.lab.namespace(WORLD).unwrap();
            let connect = || TcpStream::connect_timeout(&to(target, 32000), PATIENCE).unwrap();
            let mut stream = world.run(connect).unwrap();
            stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        for (target, status, count) in
            [("192.168.77.1", "200 OK", 1), ("192.168.77.2", "503 Service", 0)]
        {
            let text = ask(target);
            assert!(text.starts_with(&format!("HTTP/1.0 {status}")), "{text}");
            let lower = text.to_lowercase();
            assert!(
                lower.contains(&format!("x-load-balancing-endpoint-weight: {count}\r\n")),
                "{text}"
            );
            let body: serde_json::Value =
                serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
            assert_eq!(
                body,
                serde_json::json!({
                    "service": {"namespace": "default", "name": "near"},
                    "localEndpoints": count,
                    "serviceProxyHealthy": true
                })
            );
        }
    }

    fn source_ranges_and_affinity(&self) {
        eventually("the world may", || self.tcp(WORLD, to("192.168.77.242", 80)).is_ok());
        silent("a node may not", &self.tcp("n1", to("192.168.77.242", 80)));
        for (client, target, port) in [("n3-p1", "10.96.0.84", 80), (WORLD, "192.168.77.3", 30084)]
        {
            let servers: BTreeSet<_> =
                (0..10).map(|_| self.tcp(client, to(target, port)).unwrap().server).collect();
            assert_eq!(servers.len(), 1, "{client}: {servers:?}");
        }
    }

    fn names_lead_to_pods(&self) {
        let admin = self.lab.admin("n1").unwrap();
        let look_up = |name: &str| {
            let answer = admin.dns_query(&format!("{name}.default.svc.cluster.local"), "A", None);
            serde_json::to_string(&answer.unwrap()).unwrap()
        };
        let text = look_up("names");
        for pod in ["n1-p1", "n2-p1"] {
            let address = address(&self.lab.state().pod(pod).unwrap().1.addresses, true);
            assert!(text.contains(&address.to_string()), "{text}");
            assert_eq!(self.tcp("n3-p1", SocketAddr::new(address, PORT)).unwrap().server, pod);
        }
        assert!(look_up("elsewhere").contains("names.default.svc.cluster.local"));
    }

    fn the_node_itself_serves_and_localhost_does_not(&self) {
        for client in ["n1-p1", "n1", "n2"] {
            let answer = self.tcp(client, to("10.96.0.86", 80));
            let answer = answer.unwrap_or_else(|error| panic!("{client}: {error}"));
            assert_eq!(answer.server, "n2");
        }
        refused_at_once("127.0.0.1", || self.tcp("n1", to("127.0.0.1", 30080)));
        // A datagram's socket that is connected hears from the address that it asked.
        let open = || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("192.168.77.3:30053").unwrap();
            socket
        };
        let socket = self.lab.namespace("n3").unwrap().run(open).unwrap();
        for _ in 0..3 {
            ask(&socket).unwrap();
        }
        // What follows on a connection goes where its first packet went.
        let mut connection =
            Connection::open(&self.lab.namespace(WORLD).unwrap(), to("192.168.77.3", 30080))
                .unwrap();
        assert_eq!(connection.again().unwrap(), connection.first);
    }
}

fn to(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}
