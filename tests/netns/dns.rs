//! Names as pods see them: `dig` and the C library in pods, a name server in the world outside.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{eventually, find, has_programs, may_make_labs};
use crate::control_plane::{Source, SourcedLab};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use weft::dns::stats::LogLine;
use weft::lab::{Lab, LabConfig};

const PROGRAMS: [(&str, &str); 2] = [("dig", "bind9-dnsutils"), ("getent", "libc-bin")];

/// Where pods find their name server.
const SERVER: &str = "10.96.0.10";

/// The world outside has a name server of its own.
const DNS: &str = "
[dns]
upstreams = [\"203.0.113.10:5353\"]
resolv_conf = \"/dev/null\"
zones = [\"lab.example\"]
records = [\"db.lab.example A 192.0.2.7\", \"*.apps.lab.example CNAME db.lab.example.\"]
";

#[test]
fn pods_resolve_names_of_the_cluster_of_the_lab_and_of_the_world() {
    pods_resolve_names(Source::Manifests);
}

#[test]
fn pods_resolve_names_of_the_cluster_of_an_api_server() {
    pods_resolve_names(Source::Kubernetes);
}

fn pods_resolve_names(source: Source) {
    if !may_make_labs() || !has_programs(&PROGRAMS) {
        return;
    }
    let mut config = LabConfig::new("names");
    config.nodes = 2;
    config.pods_per_node = 1;
    config.extra = DNS.to_owned();
    let lab = SourcedLab::up(source, config);
    let world = World::start(&lab);
    pods_have_names(&lab);
    records_of_the_configuration_are_answered(&lab);
    an_external_name_costs_the_world_one_question_a_family(&lab, &world);
    many_questions_from_one_socket_are_all_answered(&lab);
    the_node_itself_may_ask(&lab);
    the_log_names_the_pod_that_asks(&lab);
    lab.finish();
}

/// The name server outside: it knows `*.example.test`.
struct World {
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl World {
    fn start(lab: &Lab) -> Self {
        let bind = || UdpSocket::bind("203.0.113.10:5353").unwrap();
        let socket = lab.namespace("world").unwrap().run(bind).unwrap();
        let asked: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let count = Arc::clone(&asked);
        // Ends with the test's process.
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((len, client)) = socket.recv_from(&mut buffer) {
                let request = Message::from_vec(&buffer[..len]).unwrap();
                let query = request.queries[0].clone();
                let name = query.name.to_ascii();
                let mut reply = Message::response(request.metadata.id, OpCode::Query);
                if !name.ends_with("example.test.") {
                    reply.metadata.response_code = ResponseCode::NXDomain;
                } else if query.query_type == RecordType::A {
                    let data = RData::A(A(Ipv4Addr::new(198, 51, 100, 7)));
                    reply.add_answer(Record::from_rdata(query.name.clone(), 60, data));
                }
                *count
                    .lock()
                    .unwrap()
                    .entry(format!("{name} {}", query.query_type))
                    .or_default() += 1;
                reply.add_query(query);
                socket.send_to(&reply.to_vec().unwrap(), client).unwrap();
            }
        });
        Self { asked }
    }
}

/// Runs a command, written as in a shell but without quoting, in a pod or node as `weft lab exec` does.
#[track_caller]
fn exec(lab: &Lab, place: &str, line: &str) -> (bool, String) {
    let mut words = line.split_whitespace();
    let program = find(words.next().unwrap()).unwrap();
    let mut command = lab.command(place, program.to_str().unwrap()).unwrap();
    let output = command.args(words).stderr(Stdio::inherit()).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

/// What `dig` prints of the answer section, sorted.
#[track_caller]
fn dig(lab: &Lab, place: &str, question: &str) -> String {
    let (done, text) =
        exec(lab, place, &format!("dig +short +time=3 +tries=2 @{SERVER} {question}"));
    assert!(done, "dig {question} in {place}: {text}");
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines.join(" ")
}

fn pods_have_names(lab: &Lab) {
    for (pod, other) in [("n1-p1", "n2-p1"), ("n2-p1", "n1-p1")] {
        for address in &lab.state().pod(other).unwrap().1.addresses {
            let label = address.to_string().replace(['.', ':'], "-");
            let kind = if address.is_ipv4() { "A" } else { "AAAA" };
            let question = format!("{label}.lab.pod.cluster.local {kind}");
            eventually(&format!("{question} is answered in {pod}"), || {
                dig(lab, pod, &question) == address.to_string()
            });
            let (_, text) =
                exec(lab, pod, &format!("dig +tcp +noall +comments @{SERVER} {question}"));
            assert!(
                text.contains("status: NOERROR") && text.contains("flags: qr aa rd ra"),
                "{text}"
            );
        }
    }
    let (_, text) = exec(lab, "n1-p1", &format!("dig @{SERVER} nobody.lab.svc.cluster.local"));
    assert!(text.contains("status: NXDOMAIN") && text.contains("SOA"), "{text}");
    assert_eq!(dig(lab, "n1-p1", "dns-version.cluster.local TXT"), "\"1.1.0\"");
    assert_eq!(dig(lab, "n1-p1", "99.99.244.10.in-addr.arpa PTR"), "");
}

fn records_of_the_configuration_are_answered(lab: &Lab) {
    assert_eq!(dig(lab, "n1-p1", "db.lab.example"), "192.0.2.7");
    assert_eq!(dig(lab, "n1-p1", "shop.apps.lab.example"), "192.0.2.7 db.lab.example.");
    let (_, text) = exec(lab, "n1-p1", &format!("dig @{SERVER} none.lab.example"));
    assert!(text.contains("status: NXDOMAIN"), "{text}");
}

/// The library's first question has the pod's own search domain behind the name; the server walks the path.
fn an_external_name_costs_the_world_one_question_a_family(lab: &Lab, world: &World) {
    let (done, text) = exec(lab, "n1-p1", "getent ahosts www.example.test");
    assert!(done && text.contains("198.51.100.7"), "{text}");
    let asked = world.asked.lock().unwrap().clone();
    let expected =
        [("www.example.test. A".to_owned(), 1), ("www.example.test. AAAA".to_owned(), 1)];
    let about_it: BTreeMap<_, _> =
        asked.into_iter().filter(|(question, _)| question.contains("example.test")).collect();
    assert_eq!(about_it, BTreeMap::from(expected));
    let (done, text) = exec(lab, "n1-p1", "getent ahosts db.lab.example");
    assert!(done && text.contains("192.0.2.7"), "{text}");
    let (done, _) = exec(lab, "n1-p1", "getent ahosts www.example.invalid");
    assert!(!done);
}

/// A and AAAA from one socket at the same time: what loses packets where such questions are translated. Five thousand
/// pairs, or as many as `WEFT_DNS_PAIRS` says.
fn many_questions_from_one_socket_are_all_answered(lab: &Lab) {
    const UNDER_WAY: u16 = 50;
    let pairs = match std::env::var("WEFT_DNS_PAIRS") {
        Ok(text) => text.parse::<u32>().expect("WEFT_DNS_PAIRS is a number"),
        Err(_not_set) => 5000,
    };
    let address = lab.state().pod("n2-p1").unwrap().1.addresses[0];
    let label = address.to_string().replace('.', "-");
    let name = Name::from_ascii(format!("{label}.lab.pod.cluster.local.")).unwrap();
    let run = move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((SERVER, 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let ask = |id: u16| {
            for kind in [RecordType::A, RecordType::AAAA] {
                let mut message = Message::new(id, MessageType::Query, OpCode::Query);
                message.add_query(Query::query(name.clone(), kind));
                socket.send(&message.to_vec().unwrap()).unwrap();
            }
        };
        (0..UNDER_WAY).for_each(ask);
        let mut answered = [0_u8; UNDER_WAY as usize];
        let mut asked = u32::from(UNDER_WAY);
        let mut buffer = [0; 1500];
        for _ in 0..u64::from(pairs.max(asked)) * 2 {
            let len = socket.recv(&mut buffer).expect("a question was lost");
            let message = Message::from_vec(&buffer[..len]).unwrap();
            assert_eq!(message.metadata.response_code, ResponseCode::NoError);
            let id = message.metadata.id;
            let of_pair = &mut answered[usize::from(id)];
            *of_pair += 1;
            if *of_pair == 2 && asked < pairs {
                *of_pair = 0;
                ask(id);
                asked += 1;
            }
        }
        assert!(answered.iter().all(|count| *count == 2), "{answered:?}");
    };
    lab.namespace("n1-p1").unwrap().run(run).unwrap();
}

fn the_node_itself_may_ask(lab: &Lab) {
    assert_eq!(dig(lab, "n1", "dns-version.cluster.local TXT"), "\"1.1.0\"");
    let answer =
        lab.admin("n1").unwrap().dns_query("dns-version.cluster.local", "TXT", None).unwrap();
    assert_eq!((answer.rcode.as_str(), answer.answer[0].data.as_str()), ("NOERROR", "1.1.0"));
    let status = lab.admin("n1").unwrap().dns().unwrap().unwrap();
    assert!(status.synced && status.upstreams[0].healthy, "{status:?}");
    let counted = |zone: &str, rcode: &str| {
        status
            .responses
            .iter()
            .any(|line| (line.zone.as_str(), line.rcode.as_str()) == (zone, rcode))
    };
    assert!(
        counted("cluster.local.", "NOERROR") && counted("cluster.local.", "NXDOMAIN"),
        "{status:?}"
    );
    assert!(
        counted("lab.example.", "NOERROR") && counted("244.10.in-addr.arpa.", "NXDOMAIN"),
        "{status:?}"
    );
}

/// The log is there while somebody reads it, and knows the pods by name.
fn the_log_names_the_pod_that_asks(lab: &Lab) {
    let admin = lab.admin("n1").unwrap();
    let (tell, begun) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut lines = Vec::new();
            let begun = || tell.send(()).unwrap();
            admin
                .dns_log(Some("lab/n1-p1"), begun, |line| {
                    lines.push(line);
                    match lines.len() {
                        2 => std::ops::ControlFlow::Break(()),
                        _ => std::ops::ControlFlow::Continue(()),
                    }
                })
                .unwrap();
            lines
        });
        begun.recv().unwrap();
        dig(lab, "n1", "dns-version.cluster.local TXT");
        assert_eq!(dig(lab, "n1-p1", "dns-version.cluster.local TXT"), "\"1.1.0\"");
        assert_eq!(dig(lab, "n1-p1", "nobody.lab.svc.cluster.local"), "");
        let lines: Vec<String> = reading
            .join()
            .unwrap()
            .into_iter()
            .map(|line| match line {
                LogLine::Query(line) => format!(
                    "{} {} {} {}",
                    line.pod.as_deref().unwrap_or_default(),
                    line.name,
                    line.kind,
                    line.rcode
                ),
                LogLine::Missed { missed } => format!("{missed} missed"),
            })
            .collect();
        assert_eq!(
            lines,
            [
                "lab/n1-p1 dns-version.cluster.local. TXT NOERROR",
                "lab/n1-p1 nobody.lab.svc.cluster.local. A NXDOMAIN",
            ]
        );
    });
}
