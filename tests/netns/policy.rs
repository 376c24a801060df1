//! Network policies with real pods: who reaches whom, for each of many policies, on three nodes with real traffic.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::common::{eventually, may_make_labs};
use crate::control_plane::{Source, SourcedLab};
use vswitch::service::Protocol;
use vswitch::verdict::Reason;
use weft::admin::api::PolicyEnforcement;
use weft::lab::probe::{Reach, ReachServer, protocols, reach};
use weft::lab::{LabConfig, Namespace};

/// How long an answer may take that is to come.
const WAIT: Duration = Duration::from_millis(400);

/// How long a change may take until all nodes act on it: the directory is looked at after 100 ms of silence, and the
/// machine is busy with other tests.
const SETTLE_MAX: Duration = Duration::from_secs(20);

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 2] = [80, 81];

/// A pod by the names that policies know it by.
type Name = (&'static str, &'static str);

/// What is expected: from, to, port and protocol.
type Expect = fn(Name, Name, u16, Protocol) -> bool;

struct Pod {
    name: Name,
    lab_name: String,
    address: IpAddr,
    namespace: Namespace,
    _server: ReachServer,
}

/// Three namespaces with three pods each, of which every two are on one node or on two.
struct World {
    lab: SourcedLab,
    pods: Vec<Pod>,
    protocols: Vec<Protocol>,
}

impl World {
    fn up(source: Source, name: &str) -> Self {
        let config = LabConfig { pods_per_node: 0, ..LabConfig::new(name) };
        let mut lab = SourcedLab::up(source, config);
        let namespaces: String = NAMESPACES
            .iter()
            .map(|ns| format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {ns}, labels: {{ns: {ns}}}}}\n"))
            .collect();
        fs::write(lab.manifests().join("namespaces.yaml"), namespaces).unwrap();
        let protocols = protocols();
        let mut pods = Vec::new();
        for (i, ns) in NAMESPACES.into_iter().enumerate() {
            for (j, pod) in PODS.into_iter().enumerate() {
                let node = format!("n{}", (i + j) % 3 + 1);
                let labels = BTreeMap::from([("pod".to_owned(), pod.to_owned())]);
                let lab_name = lab.add_pod_as(&node, ns, labels).unwrap();
                let (_, state) = lab.state().pod(&lab_name).unwrap();
                let addresses = state.addresses.clone();
                let namespace = lab.namespace(&lab_name).unwrap();
                let server =
                    ReachServer::start(&namespace, &addresses, &PORTS, &protocols).unwrap();
                let address = *addresses.iter().find(|address| address.is_ipv4()).unwrap();
                pods.push(Pod { name: (ns, pod), lab_name, address, namespace, _server: server });
            }
        }
        Self { lab, pods, protocols }
    }

    /// Everything that can be asked.
    fn questions(&self) -> Vec<(Name, Name, u16, Protocol)> {
        let mut all = Vec::new();
        for from in &self.pods {
            for to in &self.pods {
                for port in PORTS {
                    for protocol in &self.protocols {
                        all.push((from.name, to.name, port, *protocol));
                    }
                }
            }
        }
        all
    }

    fn pod(&self, name: Name) -> &Pod {
        self.pods.iter().find(|pod| pod.name == name).unwrap()
    }

    fn ask(&self, questions: &[(Name, Name, u16, Protocol)]) -> Vec<bool> {
        let questions: Vec<_> = questions
            .iter()
            .map(|(from, to, port, protocol)| Reach {
                from: &self.pod(*from).namespace,
                to: SocketAddr::new(self.pod(*to).address, *port),
                protocol: *protocol,
            })
            .collect();
        reach(&questions, WAIT).unwrap()
    }

    /// Puts these manifests in force, with `{x/a}` for that pod's address and `{pod x/a}` for its name.
    fn apply(&self, yaml: &str) {
        let mut text = yaml.to_owned();
        for pod in &self.pods {
            let (ns, name) = pod.name;
            text = text.replace(&format!("{{{ns}/{name}}}"), &pod.address.to_string());
            text = text.replace(&format!("{{pod {ns}/{name}}}"), &pod.lab_name);
        }
        let dir = self.lab.manifests();
        // As a whole, or not at all.
        fs::write(dir.join("policy.new"), text).unwrap();
        fs::rename(dir.join("policy.new"), dir.join("policy.yaml")).unwrap();
    }

    /// Waits until everybody reaches those and only those that are expected; says who does not.
    #[track_caller]
    fn expect(&self, what: &str, expected: Expect) {
        let questions = self.questions();
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            let answers = self.ask(&questions);
            let wrong: Vec<_> = questions
                .iter()
                .zip(answers)
                .filter(|((from, to, port, protocol), answered)| {
                    // A pod always reaches itself.
                    (from == to || expected(*from, *to, *port, *protocol)) != *answered
                })
                .map(|((from, to, port, protocol), answered)| {
                    let how = if answered { "reaches" } else { "does not reach" };
                    format!("{}/{} {how} {}/{} at {protocol} {port}", from.0, from.1, to.0, to.1)
                })
                .collect();
            if wrong.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: {} of {} are wrong:\n{}",
                wrong.len(),
                questions.len(),
                wrong.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
            );
        }
    }

    #[track_caller]
    fn finish(self) {
        let Self { lab, pods, .. } = self;
        drop(pods);
        lab.finish();
    }
}

/// An open connection.
struct Stream {
    near: TcpStream,
    far: TcpStream,
}

impl Stream {
    fn open(client: &Namespace, server: &Namespace, address: IpAddr) -> Self {
        let listener = server.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
        let to = listener.local_addr().unwrap();
        let near = client.run(move || TcpStream::connect(to)).unwrap().unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_nodelay(true).unwrap();
        Self { near, far }
    }

    /// A byte there and back, after everything that is on its way.
    fn exchange(&mut self) {
        for end in [&self.near, &self.far] {
            end.set_nonblocking(false).unwrap();
        }
        for (from, to) in [(&self.near, &self.far), (&self.far, &self.near)] {
            to.set_read_timeout(Some(SETTLE_MAX)).unwrap();
            (&*from).write_all(b"!").unwrap();
            let mut byte = [0];
            while byte != *b"!" {
                (&*to).read_exact(&mut byte).unwrap();
            }
        }
    }

    /// Sends all the time, until nothing has come for a second and more. How long something came.
    #[track_caller]
    fn time_until_silent(&mut self, limit: Duration) -> Duration {
        const SILENCE: Duration = Duration::from_millis(1200);
        self.near.set_nonblocking(true).unwrap();
        self.far.set_nonblocking(true).unwrap();
        let start = Instant::now();
        let mut last = Instant::now();
        while last.elapsed() < SILENCE {
            assert!(start.elapsed() < limit, "it goes on and on");
            match self.near.write(b".") {
                Ok(_) => {}
                // What was sent before has not arrived.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            let mut bytes = [0; 4096];
            match self.far.read(&mut bytes) {
                Ok(0) => panic!("it was closed"),
                Ok(_) => last = Instant::now(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            // A rate, not a wait for a state.
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(Duration::from_millis(1));
        }
        last.duration_since(start)
    }
}

/// A NetworkPolicy with this `spec`, in flow style.
fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const TCP: Protocol = Protocol::Tcp;
const UDP: Protocol = Protocol::Udp;
const SCTP: Protocol = Protocol::Sctp;

/// A policy and what is expected of it.
type Case = (&'static str, String, Expect);

fn case(what: &'static str, yaml: String, expected: Expect) -> Case {
    (what, yaml, expected)
}

/// Policies, each with what is expected of it.
fn cases() -> Vec<Case> {
    let p = policy;
    let x = |spec: &str| policy("x", "p", spec);
    let to_x = |spec: &str| policy("x", "p", &format!("{{podSelector: {{}}, ingress: [{spec}]}}"));
    let from_x = |spec: &str| {
        policy("x", "p", &format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{spec}]}}"))
    };
    vec![
        case("no policy", String::new(), |_, _, _, _| true),
        case("default deny ingress", x("{podSelector: {}, policyTypes: [Ingress]}"), |_, to, _, _| to.0 != "x"),
        case("default deny ingress by no type", x("{podSelector: {}}"), |_, to, _, _| to.0 != "x"),
        case("default deny egress", x("{podSelector: {}, policyTypes: [Egress]}"), |from, _, _, _| from.0 != "x"),
        case("default deny both", x("{podSelector: {}, policyTypes: [Ingress, Egress]}"), |from, to, _, _| {
            from.0 != "x" && to.0 != "x"
        }),
        case("an empty list of egress rules does not imply the type", x("{podSelector: {}, egress: []}"), |_, to, _, _| to.0 != "x"),
        case("allow all ingress", to_x("{}"), |_, _, _, _| true),
        case("allow all egress", from_x("{}"), |_, _, _, _| true),
        case("one pod is isolated", x("{podSelector: {matchLabels: {pod: a}}}"), |_, to, _, _| to != ("x", "a")),
        case("an empty from is everybody", to_x("{from: []}"), |_, _, _, _| true),
        case("an empty podSelector is the own namespace", to_x("{from: [{podSelector: {}}]}"), |from, to, _, _| {
            to.0 != "x" || from.0 == "x"
        }),
        case("a podSelector is of the own namespace", to_x("{from: [{podSelector: {matchLabels: {pod: b}}}]}"), |from, to, _, _| {
            to.0 != "x" || from == ("x", "b")
        }),
        case("an empty namespaceSelector is all pods", to_x("{from: [{namespaceSelector: {}}]}"), |_, _, _, _| true),
        case("a namespace", to_x("{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}"), |from, to, _, _| {
            to.0 != "x" || from.0 == "y"
        }),
        case(
            "a namespace by the name that the API server gives",
            to_x("{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}"),
            |from, to, _, _| to.0 != "x" || from.0 == "z",
        ),
        case(
            "both selectors of one peer",
            to_x("{from: [{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: b}}}]}"),
            |from, to, _, _| to.0 != "x" || from == ("y", "b"),
        ),
        case(
            "two peers",
            to_x("{from: [{namespaceSelector: {matchLabels: {ns: y}}}, {podSelector: {matchLabels: {pod: b}}}]}"),
            |from, to, _, _| to.0 != "x" || from.0 == "y" || from == ("x", "b"),
        ),
        case(
            "In",
            to_x("{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: [x, z]}]}}]}"),
            |from, to, _, _| to.0 != "x" || from.0 != "y",
        ),
        case(
            "NotIn",
            to_x("{from: [{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x, z]}]}}]}"),
            |from, to, _, _| to.0 != "x" || from.0 == "y",
        ),
        case(
            "Exists",
            to_x("{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: pod, operator: Exists}]}}]}"),
            |_, _, _, _| true,
        ),
        case(
            "DoesNotExist",
            to_x("{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: pod, operator: DoesNotExist}]}}]}"),
            |_, to, _, _| to.0 != "x",
        ),
        case(
            "several expressions are all meant",
            to_x("{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: lab}, matchExpressions: [{key: pod, operator: In, values: [a, b]}, {key: pod, operator: NotIn, values: [a]}]}}]}"),
            |from, to, _, _| to.0 != "x" || from.1 == "b",
        ),
        case("a port", to_x("{ports: [{port: 80}]}"), |_, to, port, protocol| {
            to.0 != "x" || (port == 80 && protocol == TCP)
        }),
        case("a port of UDP", to_x("{ports: [{port: 81, protocol: UDP}]}"), |_, to, port, protocol| {
            to.0 != "x" || (port == 81 && protocol == UDP)
        }),
        case("SCTP isolates, and is no TCP", to_x("{ports: [{port: 80, protocol: SCTP}]}"), |_, to, port, protocol| {
            to.0 != "x" || (port == 80 && protocol == SCTP)
        }),
        case("all of a protocol", to_x("{ports: [{protocol: UDP}]}"), |_, to, _, protocol| to.0 != "x" || protocol == UDP),
        case("two ports", to_x("{ports: [{port: 80}, {port: 81, protocol: UDP}]}"), |_, to, port, protocol| {
            to.0 != "x" || (port, protocol) == (80, TCP) || (port, protocol) == (81, UDP)
        }),
        case("endPort", to_x("{ports: [{port: 81, endPort: 90}]}"), |_, to, port, protocol| {
            to.0 != "x" || (port == 81 && protocol == TCP)
        }),
        case("endPort holds both ends", to_x("{ports: [{port: 80, endPort: 81}]}"), |_, to, _, protocol| {
            to.0 != "x" || protocol == TCP
        }),
        case("peers and ports are both meant", to_x("{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}"), |from, to, port, protocol| {
            to.0 != "x" || (from.0 == "y" && (port, protocol) == (80, TCP))
        }),
        case(
            "two rules",
            to_x("{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{port: 80}]}, {from: [{podSelector: {}}], ports: [{port: 81}]}"),
            |from, to, port, protocol| {
                to.0 != "x"
                    || (from.0 == "y" && (port, protocol) == (80, TCP))
                    || (from.0 == "x" && (port, protocol) == (81, TCP))
            },
        ),
        case("a block is about pods, too", to_x("{from: [{ipBlock: {cidr: '{y/a}/32'}}]}"), |from, to, _, _| {
            to.0 != "x" || from == ("y", "a")
        }),
        case("an except", to_x("{from: [{ipBlock: {cidr: 10.244.0.0/16, except: ['{y/a}/32', '{z/c}/32']}}]}"), |from, to, _, _| {
            to.0 != "x" || ![("y", "a"), ("z", "c")].contains(&from)
        }),
        case(
            "what one rule excepts another may accept",
            to_x("{from: [{ipBlock: {cidr: 10.244.0.0/16, except: ['{y/a}/32', '{z/c}/32']}}]}, {from: [{ipBlock: {cidr: '{z/c}/32'}}]}"),
            |from, to, _, _| to.0 != "x" || from != ("y", "a"),
        ),
        case("egress to a namespace", from_x("{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}"), |from, to, _, _| {
            from.0 != "x" || to.0 == "y"
        }),
        case("egress to a port", from_x("{ports: [{port: 80}]}"), |from, _, port, protocol| {
            from.0 != "x" || (port, protocol) == (80, TCP)
        }),
        case("egress to a block", from_x("{to: [{ipBlock: {cidr: '{z/b}/32'}}]}"), |from, to, _, _| {
            from.0 != "x" || to == ("z", "b")
        }),
        case(
            "policies add up",
            p("x", "deny", "{podSelector: {}}") + &p("x", "y", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}")
                + &p("x", "z", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}"),
            |from, to, _, _| to.0 != "x" || from.0 == "y" || (from.0 == "z" && to.1 == "a"),
        ),
        case(
            "both sides must agree",
            p("x", "out", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {ns: y}}}]}]}")
                + &p("y", "in", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}"),
            |from, to, _, _| (from.0 != "x" || to.0 == "y") && (to.0 != "y" || from.0 == "z"),
        ),
        case(
            "all namespaces are isolated, and two pods meet",
            NAMESPACES.map(|ns| policy(ns, "deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}")).concat()
                + &p("x", "out", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}]}")
                + &p("y", "in", "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: x}}}]}]}"),
            |from, to, port, protocol| {
                (from, to) == (("x", "a"), ("y", "b")) && (port, protocol) == (80, TCP)
            },
        ),
        case(
            "a name of a port is each pod's own",
            "---\napiVersion: v1\nkind: Pod\nmetadata: {name: '{pod x/a}', namespace: x, labels: {pod: a}}\nspec: {containers: [{name: c, image: i, ports: [{name: web, containerPort: 80}]}]}\n\
             ---\napiVersion: v1\nkind: Pod\nmetadata: {name: '{pod x/b}', namespace: x, labels: {pod: b}}\nspec: {containers: [{name: c, image: i, ports: [{name: web, containerPort: 81}]}]}\n"
                .to_owned()
                + &to_x("{ports: [{port: web}]}"),
            |_, to, port, protocol| {
                to.0 != "x" || [("a", 80), ("b", 81)].contains(&(to.1, port)) && protocol == TCP
            },
        ),
        case(
            "a name of a port that is sent to is the receiver's",
            "---\napiVersion: v1\nkind: Pod\nmetadata: {name: '{pod y/a}', namespace: y, labels: {pod: a}}\nspec: {containers: [{name: c, image: i, ports: [{name: web, containerPort: 81}]}]}\n"
                .to_owned()
                + &from_x("{to: [{namespaceSelector: {}}], ports: [{port: web}]}"),
            |from, to, port, protocol| {
                from.0 != "x" || (to, port, protocol) == (("y", "a"), 81, TCP)
            },
        ),
        case("a selector that nobody matches isolates nobody", x("{podSelector: {matchLabels: {pod: d}}}"), |_, _, _, _| true),
    ]
}

#[test]
fn each_policy_lets_through_what_it_says_and_no_more() {
    each_policy(Source::Manifests);
}

#[test]
fn each_policy_of_an_api_server_lets_through_what_it_says_and_no_more() {
    each_policy(Source::Kubernetes);
}

fn each_policy(source: Source) {
    if !may_make_labs() {
        return;
    }
    let world = World::up(source, "policy");
    let cases = cases();
    assert!(cases.len() > 40, "{}", cases.len());
    for (what, yaml, expected) in cases {
        world.apply(&yaml);
        let start = Instant::now();
        world.expect(what, expected);
        eprintln!("{what}: as expected after {:?}", start.elapsed());
    }
    let refused = world.lab.admin("n1").unwrap().objects().unwrap().refused;
    assert!(refused.is_empty(), "{refused:?}");
    world.finish();
}

#[test]
fn changes_of_policies_and_labels_take_hold_under_traffic() {
    changes(Source::Manifests);
}

#[test]
fn changes_of_policies_and_labels_of_an_api_server_take_hold_under_traffic() {
    changes(Source::Kubernetes);
}

fn changes(source: Source) {
    if !may_make_labs() {
        return;
    }
    let world = World::up(source, "policy-changes");
    let pod = |labels: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: '{{pod y/a}}', namespace: y, labels: {{{labels}}}}}\nspec: {{containers: [{{name: c, image: i}}]}}\n"
        )
    };
    let allow = policy(
        "x",
        "p",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: web}}}]}]}",
    );
    let nobody: Expect = |_, to, _, _| to.0 != "x";
    let one: Expect = |from, to, _, _| to.0 != "x" || from == ("y", "a");
    for _ in 0..3 {
        world.apply(&(allow.clone() + &pod("pod: a")));
        world.expect("without the label", nobody);
        world.apply(&(allow.clone() + &pod("pod: a, role: web")));
        world.expect("with the label", one);
        world.apply("");
        world.expect("without policies", |_, _, _, _| true);
    }

    // An open connection: it stops when its policy goes, on the server's node and on the client's.
    let (client, server) = (world.pod(("y", "a")), world.pod(("x", "a")));
    for direction in ["ingress", "egress"] {
        world.apply("");
        world.expect("all is open", |_, _, _, _| true);
        let accept = |ns, types: &str| {
            policy(
                ns,
                "p",
                &format!(
                    "{{podSelector: {{}}, policyTypes: [{types}], {}: [{{}}]}}",
                    types.to_lowercase()
                ),
            )
        };
        let (ns, kind) = if direction == "ingress" { ("x", "Ingress") } else { ("y", "Egress") };
        world.apply(&accept(ns, kind));
        // Everything was allowed before, so that alone does not show that the policy is in force; and only then does
        // the node of its pod note which end began.
        let judged = if direction == "ingress" { server } else { client };
        let node = world.lab.state().pod(&judged.lab_name).unwrap().0.name.clone();
        let admin = world.lab.admin(&node).unwrap();
        let name = format!("{ns}/p");
        eventually("the policy is in force", || {
            admin.policies().unwrap().policies.iter().any(|counts| counts.name == name)
        });
        world.expect("it is allowed", |_, _, _, _| true);
        let mut stream = Stream::open(&client.namespace, &server.namespace, server.address);
        stream.exchange();
        world.apply(&policy(ns, "p", &format!("{{podSelector: {{}}, policyTypes: [{kind}]}}")));
        let stops = stream.time_until_silent(SETTLE_MAX);
        eprintln!("{direction}: the connection stopped {stops:?} after the change was written");
        world.apply("");
        stream.exchange();
    }
    world.finish();
}

#[test]
fn a_denial_is_counted_named_and_told() {
    if !may_make_labs() {
        return;
    }
    let world = World::up(Source::Manifests, "policy-denied");
    world.apply(&policy("x", "deny-all", "{podSelector: {}}"));
    world.expect("x is isolated", |_, to, _, _| to.0 != "x");
    let server = world.pod(("x", "b"));
    let node = world.lab.state().pod(&server.lab_name).unwrap().0.name.clone();
    let admin = world.lab.admin(&node).unwrap();
    let client = world.pod(("y", "c"));
    let question = [(client.name, server.name, 81, Protocol::Udp)];
    let before = world.lab.dropped(&node, Reason::PolicyDeniedIngress);
    assert_eq!(world.ask(&question), [false]);
    assert!(world.lab.dropped(&node, Reason::PolicyDeniedIngress) > before);
    let report = admin.policies().unwrap();
    assert_eq!(report.enforcement, PolicyEnforcement::On);
    let counts = &report.policies[0];
    assert_eq!((counts.tier.as_str(), counts.name.as_str()), ("namespace", "x/deny-all"));
    assert!(counts.denied_ingress > 0 && counts.denied_egress == 0, "{counts:?}");
    let expected = [
        format!("y/{}", client.lab_name),
        format!("x/{}", server.lab_name),
        "x/deny-all".to_owned(),
        "policy-denied".to_owned(),
    ];
    eventually("the log tells who was denied what, and by which policy", || {
        world.ask(&question);
        let log = fs::read_to_string(world.lab.log_path(&node)).unwrap();
        log.lines().any(|line| expected.iter().all(|part| line.contains(part)))
    });
    world.finish();
}
