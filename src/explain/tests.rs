//! The evaluator against a statement of kube-proxy's rules that is made of nothing of it, and against the switch.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use conf::NodeConfig;
use conf::cluster::ClusterState;
use conf::cluster::parse::parse;
use conf::source::Directory;
use etherparse::{PacketBuilder, TcpHeader};
use vswitch::counters::Counters;
use vswitch::frame::{Ingress, Pool};
use vswitch::mac::Mac;
use vswitch::port::{Context, PortIx};
use vswitch::switch::Switch;
use vswitch::tables::Tables;

use super::world::World;
use super::*;

/// Two nodes, and a client of every kind on the first.
const NODES: &str = "\
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {topology.kubernetes.io/zone: b}}
spec: {podCIDR: 10.244.2.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.12}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: default}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIP: 10.244.1.9}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: default}
spec: {nodeName: n2, containers: [{name: c}]}
status: {podIP: 10.244.2.9}
---
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: default}
spec: {nodeName: n1, hostNetwork: true, containers: [{name: c}]}
";

struct Cluster {
    config: NodeConfig,
    state: ClusterState,
    world: World,
}

impl Cluster {
    fn new(files: &[&str]) -> Self {
        let config = NodeConfig::new("", Vec::new());
        let mut state = ClusterState::new(config.allocation());
        let mut directory = Directory::new();
        for (ix, text) in files.iter().enumerate() {
            state.apply(directory.set_file(&format!("{ix}.yaml"), parse(text)));
        }
        let refused = directory.listing(&state).refused;
        assert_eq!(refused.iter().map(ToString::to_string).collect::<String>(), "");
        Self { world: World::declared(&state), config, state }
    }

    fn known(&self) -> Known<'_> {
        Known { config: &self.config, state: &self.state, world: &self.world, own: None }
    }

    fn try_ask(&self, query: &Query) -> Result<Explained, String> {
        explain(&self.known(), query)
    }

    fn ask(&self, from: &str, to: &str, port: &str) -> Answer {
        let query = query(from, to, port);
        self.try_ask(&query).unwrap_or_else(|why| panic!("{query:?}: {why}")).answer
    }

    fn fault(&self, from: &str, to: &str, port: &str) -> String {
        self.try_ask(&query(from, to, port)).expect_err("an answer")
    }

    fn tables(&self, node: &str, to: &str, port: u16) -> Tables {
        let targets = BTreeSet::from([(to.parse().unwrap(), port)]);
        self.world.tables(node, &self.state, &self.config, &targets)
    }
}

fn query(from: &str, to: &str, port: &str) -> Query {
    Query {
        from: from.to_owned(),
        to: to.to_owned(),
        port: port.to_owned(),
        protocol: None,
        node: None,
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Pod,
    Node,
    HostPod,
    World,
}

impl Client {
    const ALL: [Self; 4] = [Self::Pod, Self::Node, Self::HostPod, Self::World];

    fn name(self) -> &'static str {
        match self {
            Self::Pod => "default/client",
            Self::Node => "n1",
            Self::HostPod => "default/host",
            Self::World => "203.0.113.9",
        }
    }

    fn address(self) -> &'static str {
        match self {
            Self::Pod => "10.244.1.9",
            Self::Node | Self::HostPod => "192.0.2.11",
            Self::World => "203.0.113.9",
        }
    }

    fn ingress(self) -> Ingress {
        match self {
            Self::Pod => Ingress::Port(PortIx(1)),
            Self::Node | Self::HostPod | Self::World => Ingress::Port(PortIx::HOST),
        }
    }
}

/// By which of the Service's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Front {
    Cluster,
    NodePort,
    OtherNodePort,
    Balancer,
    External,
}

impl Front {
    const ALL: [Self; 5] =
        [Self::Cluster, Self::NodePort, Self::OtherNodePort, Self::Balancer, Self::External];

    fn target(self) -> (&'static str, u16) {
        match self {
            Self::Cluster => ("10.96.0.7", 80),
            Self::NodePort => ("192.0.2.11", 30080),
            Self::OtherNodePort => ("192.0.2.12", 30080),
            Self::Balancer => ("198.51.100.8", 80),
            Self::External => ("198.51.100.9", 80),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    Terminating,
    NotReady,
}

/// An endpoint: whether it is on n1, and its condition.
type End = (bool, State);

fn address(ix: usize, (is_local, _): End) -> String {
    format!("10.244.{}.{}", if is_local { 1 } else { 2 }, 20 + ix)
}

fn manifests(internal: &str, external: &str, protocol: &str, ends: &[End]) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\n\
         spec:\n  type: LoadBalancer\n  clusterIP: 10.96.0.7\n  externalIPs: [198.51.100.9]\n  \
         internalTrafficPolicy: {internal}\n  externalTrafficPolicy: {external}\n  \
         ports: [{{name: http, port: 80, targetPort: 8080, nodePort: 30080, protocol: {protocol}}}]\n\
         status: {{loadBalancer: {{ingress: [{{ip: 198.51.100.8}}]}}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080, protocol: {protocol}}}]\nendpoints:"
    );
    if ends.is_empty() {
        text.push_str(" []");
    }
    for (ix, end) in ends.iter().enumerate() {
        let (ready, serving, terminating) = match end.1 {
            State::Ready => (true, true, false),
            State::Terminating => (false, true, true),
            State::NotReady => (false, false, false),
        };
        let node = if end.0 { "n1" } else { "n2" };
        let address = address(ix, *end);
        text.push_str(&format!(
            "\n- {{addresses: [{address}], nodeName: {node}, conditions: {{ready: {ready}, serving: {serving}, \
             terminating: {terminating}}}}}"
        ));
    }
    text
}

/// What kube-proxy would do, said anew: verdict, endpoints, masquerade.
fn expected(
    (client, front): (Client, Front),
    (internal, external): (&str, &str),
    ends: &[End],
) -> (Verdict, Vec<String>, bool) {
    let from_inside = client != Client::World;
    let policy = if front == Front::Cluster {
        internal
    } else if from_inside {
        "Cluster"
    } else {
        external
    };
    let all: Vec<(usize, End)> = ends.iter().copied().enumerate().collect();
    let of = |state: State, only_local: bool| -> Vec<(usize, End)> {
        let found = all.iter().filter(|(_, end)| end.1 == state && (end.0 || !only_local));
        found.copied().collect()
    };
    let usable = |only_local: bool| match of(State::Ready, only_local) {
        ready if !ready.is_empty() => ready,
        _ => of(State::Terminating, only_local),
    };
    if usable(false).is_empty() {
        return (Verdict::Reject, Vec::new(), false);
    }
    let chosen = usable(policy == "Local");
    if chosen.is_empty() {
        return (Verdict::Drop, Vec::new(), false);
    }
    // Nobody here talks to itself, and replies to this node's own addresses come back.
    let masquerade = client == Client::World && chosen.iter().any(|(_, end)| !end.0);
    let mut names: Vec<String> =
        chosen.iter().map(|(ix, end)| format!("{}:8080", address(*ix, *end))).collect();
    names.sort();
    (Verdict::Forward, names, masquerade)
}

/// What the switch does with the first packets of 40 connections.
struct Seen {
    verdict: Verdict,
    endpoints: BTreeSet<String>,
    masquerade: bool,
}

fn run_switch(tables: &Tables, client: Client, (to, port): (&str, u16), protocol: &str) -> Seen {
    let now = Instant::now();
    let config = vswitch::config::Config { flows_max: 1024, ..Default::default() };
    let mut switch = Switch::new(&config, now);
    let (mut pool, counters) = (Pool::new(256), Counters::new(1, 16));
    let worker = counters.worker(0);
    let (mut sent, mut told) = (0, 0);
    for source_port in 2000..2040 {
        let address = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
        let step = PacketBuilder::ethernet2(Mac::HOST.0, Mac::ROUTER.0).ipv4(
            address(client.address()),
            address(to),
            64,
        );
        let mut bytes = Vec::new();
        if protocol == "UDP" {
            step.udp(source_port, port).write(&mut bytes, b"question").unwrap();
        } else {
            let mut syn = TcpHeader::new(source_port, port, 1, 64_000);
            syn.syn = true;
            step.tcp_header(syn).write(&mut bytes, &[]).unwrap();
        }
        let mut frame = pool.take().unwrap();
        assert!(frame.append(&bytes));
        frame.meta.ingress = client.ingress();
        let (mut batch, mut out) = (vec![frame], Vec::new());
        let before = counters.sum().originated;
        let mut context = Context { tables, pool: &mut pool, counters: &worker };
        switch.forward(&mut context, now, &mut batch, &mut out);
        let is_told = counters.sum().originated > before;
        told += usize::from(is_told);
        sent += usize::from(!is_told && !out.is_empty());
    }
    let flows = switch.flows().view(now, 1000, |_| true);
    let shown = |(address, port): (IpAddr, u16)| format!("{address}:{port}");
    let client: IpAddr = client.address().parse().unwrap();
    Seen {
        verdict: match (sent, told) {
            (40, 0) => Verdict::Forward,
            (0, 40) => Verdict::Reject,
            (0, 0) => Verdict::Drop,
            mixed => panic!("not all packets end alike: {mixed:?}"),
        },
        endpoints: flows.iter().map(|flow| shown(flow.endpoint)).collect(),
        masquerade: flows.iter().any(|flow| flow.seen_as.0 != client),
    }
}

/// Every client × frontend × pair of policies × set of endpoints: the answer is kube-proxy's, and the switch does it.
#[test]
fn every_combination_is_answered_as_kube_proxy_would_and_as_the_switch_does() {
    use State::{NotReady, Ready, Terminating};
    let (here, there) = (true, false);
    let sets: [&[End]; 11] = [
        &[],
        &[(here, Ready)],
        &[(there, Ready)],
        &[(here, Ready), (there, Ready)],
        &[(here, Terminating)],
        &[(there, Terminating)],
        &[(here, Terminating), (there, Ready)],
        &[(here, Ready), (there, Terminating)],
        &[(here, NotReady)],
        &[(here, NotReady), (there, Ready)],
        &[(here, NotReady), (there, NotReady)],
    ];
    let mut asked = 0;
    for ends in sets {
        for internal in ["Cluster", "Local"] {
            for external in ["Cluster", "Local"] {
                for protocol in ["TCP", "UDP"] {
                    let text = manifests(internal, external, protocol, ends);
                    let cluster = Cluster::new(&[NODES, &text]);
                    for client in Client::ALL {
                        for front in Front::ALL {
                            // What the world sends to another node comes in there.
                            if front == Front::OtherNodePort && client != Client::Pod {
                                continue;
                            }
                            let (to, port) = front.target();
                            let context = format!(
                                "{client:?} {front:?} {internal} {external} {protocol} {ends:?}"
                            );
                            let asking = Query {
                                protocol: Some(protocol.to_lowercase()),
                                node: (client == Client::World).then(|| "n1".to_owned()),
                                ..query(client.name(), to, &port.to_string())
                            };
                            let answer = cluster.try_ask(&asking).expect(&context).answer;
                            let wanted = expected((client, front), (internal, external), ends);
                            let got = (answer.verdict, answer.endpoints.clone(), answer.masquerade);
                            assert_eq!(got, wanted, "{context}: {}", answer.reason);
                            assert_eq!(answer.service.as_deref(), Some("default/web:http"));
                            let tables = cluster.tables("n1", to, port);
                            let seen = run_switch(&tables, client, (to, port), protocol);
                            assert_eq!(seen.verdict, answer.verdict, "{context}");
                            assert_eq!(seen.masquerade, answer.masquerade, "{context}");
                            let told: BTreeSet<String> = answer.endpoints.into_iter().collect();
                            assert_eq!(seen.endpoints, told, "{context}");
                            asked += 1;
                        }
                    }
                }
            }
        }
    }
    assert_eq!(asked, 11 * 2 * 2 * 2 * (4 * 4 + 1));
}

const SHOP: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: default, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: main, containerPort: 8080}]}]}
status: {podIP: 10.244.1.5}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: default, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, ports: [{name: main, containerPort: 9090}]}]}
status: {podIP: 10.244.2.5}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.7
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: main}, {name: quic, port: 443, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: sql, port: 5432, targetPort: main}]}
---
apiVersion: v1
kind: Service
metadata: {name: idle, namespace: default}
spec: {clusterIP: None, selector: {app: nothing}, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: docs, namespace: default}
spec: {type: ExternalName, externalName: docs.example.org}
";

#[test]
fn names_lead_to_addresses_and_ports() {
    let cluster = Cluster::new(&[NODES, SHOP]);
    let both = ["10.244.1.5:8080", "10.244.2.5:9090"];
    for (to, port) in [("default/web", "80"), ("default/web", "http"), ("10.96.0.7", "http")] {
        let answer = cluster.ask("default/client", to, port);
        assert_eq!((answer.verdict, answer.masquerade), (Verdict::Forward, false));
        assert_eq!(answer.service.as_deref(), Some("default/web:http"));
        assert_eq!(answer.endpoints, both);
    }
    // A port has the protocol of its name.
    let quic = cluster.ask("default/client", "service/default/web", "quic");
    assert_eq!(quic.endpoints, ["10.244.1.5:443", "10.244.2.5:443"]);
    // Without its name, a port is TCP's.
    let asked = cluster.try_ask(&query("default/client", "default/web", "443")).unwrap();
    assert_eq!((asked.answer.verdict, asked.answer.service), (Verdict::Reject, None));
    assert!(asked.answer.reason.contains("no_such_port"), "{}", asked.answer.reason);
    assert_eq!(asked.details.notes, ["port 443 of default/web is UDP: say --proto"]);
    // To itself by way of its Service.
    let hairpin = cluster.ask("default/web-0", "default/web", "80");
    assert!(hairpin.masquerade);
    // Pods, by name or address, with their own ports.
    for to in ["default/web-1", "pod/default/web-1", "10.244.2.5"] {
        let answer = cluster.ask("default/client", to, "main");
        assert_eq!((answer.verdict, answer.service), (Verdict::Forward, None));
        assert_eq!(answer.endpoints, ["10.244.2.5:9090"]);
    }
    // The sender may be given by its address.
    assert_eq!(cluster.ask("10.244.1.9", "default/web", "80").endpoints, both);
}

#[test]
fn services_without_an_address_say_what_they_are() {
    let cluster = Cluster::new(&[NODES, SHOP]);
    let by_name = cluster.ask("default/client", "default/db", "sql");
    assert_eq!(by_name.service.as_deref(), Some("default/db:sql"));
    assert_eq!(by_name.endpoints, ["10.244.1.5:8080", "10.244.2.5:9090"]);
    // A number is what the client dials, and nobody translates it.
    let asked = cluster.try_ask(&query("default/client", "default/db", "5432")).unwrap();
    assert_eq!(asked.answer.endpoints, ["10.244.1.5:5432", "10.244.2.5:5432"]);
    assert!(asked.details.notes[0].contains("dial 8080"), "{:?}", asked.details.notes);
    let idle = cluster.ask("default/client", "default/idle", "5432");
    assert_eq!((idle.verdict, idle.endpoints.len()), (Verdict::Reject, 0));
    assert!(idle.reason.contains("NXDOMAIN"));
    let docs = cluster.ask("default/client", "default/docs", "443");
    assert_eq!((docs.verdict, docs.endpoints.len()), (Verdict::Forward, 0));
    assert!(docs.reason.contains("CNAME docs.example.org"));
}

#[test]
fn without_a_service_the_destination_itself_is_the_endpoint() {
    let cluster = Cluster::new(&[NODES, SHOP]);
    for (from, to, verdict) in [
        ("default/client", "10.244.2.9", Verdict::Forward),
        ("default/client", "default/far", Verdict::Forward),
        ("default/client", "198.51.100.77", Verdict::Forward),
        ("default/client", "n2", Verdict::Forward),
        // In this node's own subnet, and nobody has it.
        ("default/client", "10.244.1.200", Verdict::Reject),
        // In the range of Services, and none has it.
        ("default/client", "10.96.0.99", Verdict::Drop),
        ("n1", "default/far", Verdict::Forward),
        ("n1", "198.51.100.77", Verdict::Forward),
        ("203.0.113.9", "default/far", Verdict::Forward),
        ("203.0.113.9", "192.0.2.11", Verdict::Forward),
        ("default/client", "10.96.0.10", Verdict::Forward),
    ] {
        let answer = cluster.ask(from, to, "53");
        assert_eq!(answer.verdict, verdict, "{from} {to}: {}", answer.reason);
        assert_eq!(answer.endpoints.is_empty(), verdict != Verdict::Forward, "{from} {to}");
        assert_eq!((answer.service, answer.masquerade), (None, false));
    }
}

#[test]
fn whose_node_decides() {
    let text = manifests("Cluster", "Local", "TCP", &[(true, State::Ready)]);
    let cluster = Cluster::new(&[NODES, &text]);
    let world = "203.0.113.9";
    // The node whose address it is.
    assert_eq!(cluster.ask(world, "192.0.2.11", "30080").verdict, Verdict::Forward);
    assert_eq!(cluster.ask(world, "192.0.2.12", "30080").verdict, Verdict::Drop);
    // The load balancer's address may be at any.
    assert!(cluster.fault(world, "198.51.100.8", "80").contains("--node"));
    let at =
        |node: &str| Query { node: Some(node.to_owned()), ..query(world, "198.51.100.8", "80") };
    assert_eq!(cluster.try_ask(&at("n1")).unwrap().answer.verdict, Verdict::Forward);
    assert_eq!(cluster.try_ask(&at("n2")).unwrap().answer.verdict, Verdict::Drop);
    assert_eq!(cluster.try_ask(&at("n9")).unwrap_err(), "there is no node n9; known are: n1, n2");
    // Where all say the same it does not matter.
    let text = manifests("Cluster", "Cluster", "TCP", &[]);
    let cluster = Cluster::new(&[NODES, &text]);
    assert_eq!(cluster.ask(world, "198.51.100.8", "80").verdict, Verdict::Reject);
}

#[test]
fn manifests_need_neither_nodes_nor_pods() {
    let text =
        manifests("Cluster", "Cluster", "TCP", &[(true, State::Ready), (false, State::Ready)]);
    let bare = text.replace(", nodeName: n1", "").replace(", nodeName: n2", "");
    let cluster = Cluster::new(&[&bare]);
    let both = ["10.244.1.20:8080", "10.244.2.21:8080"];
    for from in ["10.244.7.7", "203.0.113.9"] {
        let answer = cluster.ask(from, "default/web", "80");
        assert_eq!(
            (answer.verdict, answer.endpoints.as_slice()),
            (Verdict::Forward, &both.map(str::to_owned)[..])
        );
    }
    // Only the slice says that there are nodes.
    let cluster = Cluster::new(&[&text]);
    assert_eq!(cluster.ask("10.244.1.20", "default/web", "80").verdict, Verdict::Forward);
    assert!(cluster.ask("10.244.1.20", "default/web", "80").masquerade, "it may meet itself");
}

#[test]
fn questions_without_sense_say_why() {
    let cluster = Cluster::new(&[NODES, SHOP]);
    for (from, to, port, why) in [
        ("default/nobody", "default/web", "80", "there is no pod default/nobody"),
        (
            "default/web",
            "default/web",
            "80",
            "there is no pod default/web: a Service does not send",
        ),
        ("n7", "default/web", "80", "there is no node n7; known are: n1, n2"),
        ("client", "default/web", "80", "n1, n2; do you mean the pod default/client?"),
        ("default/client", "default/x", "80", "there is neither a Service nor a pod default/x"),
        ("default/client", "default/web", "0", "port 0 is no port"),
        (
            "default/client",
            "default/web",
            "https",
            "the destination has no port https: it has http (80/TCP), quic (443/UDP)",
        ),
        ("default/client", "a/b/c/d", "80", "a/b/c/d names nobody"),
        ("fd00::9", "default/web", "80", "they cannot talk"),
    ] {
        let fault = cluster.fault(from, to, port);
        assert!(fault.contains(why), "{from} {to} {port}: {fault}");
    }
    let wrong = Query { protocol: Some("icmp".to_owned()), ..query("n1", "default/web", "80") };
    assert!(cluster.try_ask(&wrong).unwrap_err().contains("TCP, UDP or SCTP"));
}

#[test]
fn an_answer_has_its_fields_in_their_order() {
    let cluster = Cluster::new(&[NODES, SHOP]);
    let json = serde_json::to_string(&cluster.ask("default/client", "default/web", "80")).unwrap();
    assert_eq!(
        json,
        r#"{"verdict":"forward","service":"default/web:http","endpoints":["10.244.1.5:8080","10.244.2.5:9090"],"masquerade":false,"reason":"any of the endpoints of the cluster (2 of 2 known)","egress":{"verdict":"allow","isolating":[],"rule":null,"reason":"no policy is for the pod default/client in this direction"},"ingress":{"verdict":"allow","isolating":[],"rule":null,"reason":"no policy is for the pod default/web-0 in this direction"}}"#
    );
}

#[test]
fn each_endpoint_says_why_it_is_not_chosen() {
    let ends = [
        (true, State::Ready),
        (false, State::Ready),
        (true, State::Terminating),
        (true, State::NotReady),
    ];
    let text = manifests("Local", "Cluster", "TCP", &ends);
    let cluster = Cluster::new(&[NODES, &text]);
    let asked = cluster.try_ask(&query("default/client", "default/web", "80")).unwrap();
    let seen: Vec<_> = asked.details.candidates.iter().map(|one| (one.chosen, &*one.why)).collect();
    assert_eq!(
        seen,
        [
            (true, ""),
            (false, "terminates, and others are ready"),
            (false, "is not ready"),
            (false, "is not on this node, and the policy is Local"),
        ]
    );
    assert_eq!(asked.details.node.as_deref(), Some("n1"));
    assert_eq!(
        asked.details.rule.as_deref(),
        Some("from a pod to the cluster IP: internalTrafficPolicy counts, which is Local")
    );
    assert_eq!(asked.details.source.as_deref(), Some("kept: 10.244.1.9"));
}

#[test]
fn policies_are_asked_about_the_real_endpoints() {
    let policy = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec: \
             {{{spec}}}\n"
        )
    };
    let web = "podSelector: {matchLabels: {app: web}}";
    let with = |policies: &str| Cluster::new(&[NODES, SHOP, policies]);

    // By the endpoint's own port, never the Service's.
    let by_port =
        |port: &str| with(&policy("p", &format!("{web}, ingress: [{{ports: [{port}]}}]")));
    let answer = by_port("{port: main}").ask("default/client", "default/web", "80");
    assert_eq!((answer.verdict, answer.endpoints.len()), (Verdict::Forward, 2));
    let ingress = answer.ingress.unwrap();
    assert_eq!(ingress.isolating, ["default/p"]);
    assert_eq!(ingress.rule.map(|rule| (rule.policy, rule.rule)), Some(("default/p".into(), 0)));
    let answer = by_port("{port: 80}").ask("default/client", "default/web", "80");
    assert_eq!((answer.verdict, answer.endpoints.len()), (Verdict::Drop, 0));
    assert!(answer.reason.ends_with("(policy_denied_ingress)"), "{}", answer.reason);
    let ingress = answer.ingress.unwrap();
    assert_eq!((ingress.verdict.as_str(), ingress.rule), ("deny", None));
    assert_eq!(ingress.misses.len(), 1);
    assert!(ingress.misses[0].peer && !ingress.misses[0].port);

    // Some of them: what is left is reached, and it is said that others are not.
    let query = query("default/client", "default/web", "80");
    let some = by_port("{port: 8080}").try_ask(&query).unwrap();
    assert_eq!(some.answer.verdict, Verdict::Forward);
    assert_eq!(some.answer.ingress.unwrap().verdict.as_str(), "allow");
    assert!(some.details.notes[0].starts_with("policies deny 1 of the 2 endpoints"));
    assert!(some.details.candidates.iter().any(|one| one.why.starts_with("then denied: ")));

    // By the real sender; its own node always; what it sends itself.
    let outside = with(&policy(
        "p",
        &format!("{web}, ingress: [{{from: [{{ipBlock: {{cidr: 203.0.113.0/24}}}}]}}]"),
    ));
    assert_eq!(outside.ask("203.0.113.9", "default/web-1", "9090").verdict, Verdict::Forward);
    assert_eq!(outside.ask("default/client", "default/web-1", "9090").verdict, Verdict::Drop);
    assert_eq!(outside.ask("n2", "default/web-1", "9090").verdict, Verdict::Forward);
    assert_eq!(outside.ask("n1", "default/web-1", "9090").verdict, Verdict::Drop);
    let deny = with(&policy("deny", "podSelector: {}, policyTypes: [Egress]"));
    let answer = deny.ask("default/client", "default/web", "80");
    assert!(answer.reason.ends_with("(policy_denied_egress)"), "{}", answer.reason);
    assert_eq!(answer.egress.unwrap().isolating, ["default/deny"]);
}
