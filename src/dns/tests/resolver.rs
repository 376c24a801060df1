//! The resolver and its sockets, with name servers of the test's own on loopback.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, AtomicUsize};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::dns::answer::soa;
use crate::dns::cluster::PodNames;
use crate::dns::directory::{Pod, Target};
use crate::dns::message::ClientEdns;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// What a fake server says to a name: addresses, or a code.
type Says = fn(&str) -> Result<Vec<[u8; 4]>, ResponseCode>;

/// A name server that knows nothing but what the test says.
struct Fake {
    at: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Fake {
    async fn start(says: Says) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let listener = TcpListener::bind(at).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            loop {
                let (len, client) = socket.recv_from(&mut buffer).await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let mut reply = respond(&buffer[..len], says);
                // More than fits is to be had over TCP.
                if reply.answers.len() > 20 {
                    reply.answers.clear();
                    reply.metadata.truncation = true;
                }
                socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
            }
        });
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let len = stream.read_u16().await.unwrap();
                let mut bytes = vec![0; usize::from(len)];
                stream.read_exact(&mut bytes).await.unwrap();
                let reply = respond(&bytes, says).to_vec().unwrap();
                stream.write_u16(u16::try_from(reply.len()).unwrap()).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        });
        Self { at, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn respond(request: &[u8], says: Says) -> Message {
    let request = Message::from_vec(request).unwrap();
    let query = request.queries[0].clone();
    let mut reply = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
    match says(&query.name.to_ascii().to_ascii_lowercase()) {
        Ok(addresses) => {
            for address in addresses {
                let data = RData::A(A(Ipv4Addr::from(address)));
                reply.add_answer(Record::from_rdata(query.name.clone(), 60, data));
            }
        }
        Err(code) => {
            reply.metadata.response_code = code;
            reply.add_authority(soa(&name("org."), 60));
        }
    }
    reply.add_query(query);
    reply
}

fn resolver() -> Arc<Resolver> {
    let domain = name("cluster.local.");
    let ranges = ["10.244.0.0/16".parse().unwrap()];
    let cluster = ClusterZones::new(domain, 5, PodNames::Insecure, Vec::new(), ranges);
    let settings = Settings {
        cluster,
        statics: StaticZones::default(),
        stubs: vec![name("corp.example.")],
        autopath: true,
        cache_entries: 100,
        serve_stale: Duration::from_secs(60),
    };
    let resolver = Resolver::new(settings, 7);
    resolver.update(|directory| {
        directory.set_namespace("default", true);
        let pod = Pod { addresses: vec![CLIENT], host_network: false };
        directory.set_pod("default", "client", Some(pod));
        for (service, target) in [
            ("docs", "docs.example.org."),
            ("chain", "docs.default.svc.cluster.local."),
            ("ring", "ring.default.svc.cluster.local."),
        ] {
            directory.set_service("default", service, Some(Target::External(name(target))));
        }
    });
    Arc::new(resolver)
}

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 9));

fn ask(of: &str) -> Request {
    Request {
        id: 1,
        name: name(of),
        kind: RecordType::A,
        recursion_desired: true,
        checking_disabled: false,
        edns: Some(ClientEdns { payload: 1232, dnssec_ok: false }),
    }
}

/// The answer in a line.
async fn shown(resolver: &Arc<Resolver>, of: &str, client: IpAddr) -> String {
    let (answer, _) = resolver.answer(&ask(of), client).await;
    let data: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
    format!("{} {}", code_name(answer.rcode), data.join(" ")).trim().to_owned()
}

fn world(name: &str) -> Result<Vec<[u8; 4]>, ResponseCode> {
    match name {
        "www.example.org." => Ok(vec![[192, 0, 2, 1], [192, 0, 2, 2]]),
        "docs.example.org." => Ok(vec![[192, 0, 2, 3]]),
        "empty.example.org." => Ok(Vec::new()),
        "many.example.org." => Ok((0..60).map(|last| [192, 0, 2, last]).collect()),
        "broken.example.org." => Err(ResponseCode::ServFail),
        _ => Err(ResponseCode::NXDomain),
    }
}

#[tokio::test]
async fn names_of_others_are_asked_for_once() {
    let server = Fake::start(world).await;
    let resolver = resolver();
    resolver.set_upstreams(vec![(Name::root(), vec![server.at])], Vec::new());
    for _ in 0..3 {
        assert_eq!(
            shown(&resolver, "WWW.example.org.", CLIENT).await,
            "NOERROR 192.0.2.1 192.0.2.2"
        );
        assert_eq!(shown(&resolver, "none.example.org.", CLIENT).await, "NXDOMAIN");
    }
    assert_eq!(server.asked(), 2);
    // Many at a time want to know the same.
    let all = (0..50).map(|_| shown(&resolver, "docs.example.org.", CLIENT));
    for answer in futures_join(all).await {
        assert_eq!(answer, "NOERROR 192.0.2.3");
    }
    assert_eq!(server.asked(), 3);
    assert_eq!(resolver.cached(), 3);
}

async fn futures_join<T: Send + 'static>(
    all: impl Iterator<Item = impl Future<Output = T>>,
) -> Vec<T> {
    let mut done = Vec::new();
    let mut waiting: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        waiting.retain_mut(|one| match one.as_mut().poll(cx) {
            std::task::Poll::Ready(value) => {
                done.push(value);
                false
            }
            std::task::Poll::Pending => true,
        });
        if waiting.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done
}

#[tokio::test]
async fn what_was_cut_is_had_over_tcp() {
    let server = Fake::start(world).await;
    let resolver = resolver();
    resolver.set_upstreams(vec![(Name::root(), vec![server.at])], Vec::new());
    let (answer, _) = resolver.answer(&ask("many.example.org."), CLIENT).await;
    assert_eq!(answer.answers.len(), 60);
}

#[tokio::test]
async fn a_server_that_fails_is_outdone_by_the_next() {
    fn broken(_: &str) -> Result<Vec<[u8; 4]>, ResponseCode> {
        Err(ResponseCode::ServFail)
    }
    let (bad, good) = (Fake::start(broken).await, Fake::start(world).await);
    let resolver = resolver();
    resolver.set_upstreams(vec![(Name::root(), vec![bad.at, good.at])], Vec::new());
    assert_eq!(shown(&resolver, "docs.example.org.", CLIENT).await, "NOERROR 192.0.2.3");
    assert_eq!(shown(&resolver, "www.example.org.", CLIENT).await, "NOERROR 192.0.2.1 192.0.2.2");
    let status = resolver.upstreams();
    assert!(!status[0].healthy && status[1].healthy, "{status:?}");
    let before = bad.asked();
    assert_eq!(shown(&resolver, "broken.example.org.", CLIENT).await, "SERVFAIL");
    assert!(bad.asked() <= before + 1);
}

#[tokio::test]
async fn nobody_to_ask_is_a_failure_and_not_the_absence_of_a_name() {
    assert_eq!(shown(&resolver(), "www.example.org.", CLIENT).await, "SERVFAIL");
}

#[tokio::test]
async fn without_other_servers_a_name_that_is_nowhere_does_not_exist() {
    let resolver = resolver();
    for asked in ["nothing.default.svc.cluster.local.", "a.b.default.svc.cluster.local."] {
        assert_eq!(shown(&resolver, asked, CLIENT).await, "NXDOMAIN", "{asked}");
    }
}

#[test]
fn alone_it_answers_what_it_knows_and_follows_what_stays_here() {
    let resolver = resolver();
    for (asked, expected) in [
        ("10-244-1-9.default.pod.cluster.local.", "NOERROR 10.244.1.9"),
        ("nothing.default.svc.cluster.local.", "NXDOMAIN"),
        (
            "chain.default.svc.cluster.local.",
            "NOERROR docs.default.svc.cluster.local. docs.example.org.",
        ),
        ("ring.default.svc.cluster.local.", "SERVFAIL"),
        ("www.example.org.", "SERVFAIL"),
        // Along the search path of the pod.
        (
            "docs.default.default.svc.cluster.local.",
            "NOERROR docs.default.svc.cluster.local. docs.example.org.",
        ),
    ] {
        let (answer, _) = resolver.answer_alone(&ask(asked), CLIENT);
        let data: Vec<_> = answer.answers.iter().map(|record| record.data.to_string()).collect();
        let line = format!("{} {}", code_name(answer.rcode), data.join(" "));
        assert_eq!(line.trim(), expected, "{asked}");
    }
}

#[test]
fn responses_are_counted_by_zone() {
    let resolver = resolver();
    let count = |of: &str, part: Part| {
        let answer = Answer::failure(ResponseCode::NXDomain);
        resolver.finish(&ask(of), CLIENT, &answer, part, Duration::from_micros(50));
    };
    count("a.default.svc.CLUSTER.local.", Part::Cluster);
    count("9.1.244.10.in-addr.arpa.", Part::Cluster);
    count("db.corp.example.", Part::Forward);
    count("example.org.", Part::Forward);
    count("printer.home.", Part::Static);
    resolver.stats().responded(None, ResponseCode::FormErr, Duration::ZERO);
    let totals = resolver.stats().totals();
    let seen: Vec<_> = totals
        .responses
        .iter()
        .map(|(zone, code, count)| format!("{} {} {code} {count}", zone.part.name(), zone.name))
        .collect();
    assert_eq!(
        seen,
        [
            "cluster 244.10.in-addr.arpa. NXDOMAIN 1",
            "cluster cluster.local. NXDOMAIN 1",
            "static . NXDOMAIN 1",
            "forward corp.example. NXDOMAIN 1",
            "forward . NXDOMAIN 1",
            "none none FORMERR 1",
        ]
    );
    assert_eq!(totals.latency.iter().sum::<u64>(), 6);
}

#[tokio::test]
async fn an_external_name_costs_a_pod_one_question() {
    let server = Fake::start(world).await;
    let resolver = resolver();
    let search = vec![name("corp.example.")];
    resolver.set_upstreams(vec![(Name::root(), vec![server.at])], search);
    let first = "www.example.org.default.svc.cluster.local.";
    assert_eq!(
        shown(&resolver, first, CLIENT).await,
        "NOERROR www.example.org. 192.0.2.1 192.0.2.2"
    );
    assert_eq!(server.asked(), 2, "the node's own search domain, then the name itself");
    // Somebody else's search path is not known.
    let stranger = IpAddr::from([192, 0, 2, 99]);
    assert_eq!(shown(&resolver, first, stranger).await, "NXDOMAIN");
    // A name that exists without this type ends the search.
    assert_eq!(
        shown(&resolver, "empty.example.org.default.svc.cluster.local.", CLIENT).await,
        "NOERROR empty.example.org."
    );
    assert_eq!(
        shown(&resolver, "none.example.org.default.svc.cluster.local.", CLIENT).await,
        "NXDOMAIN"
    );
    // What is not known may be there.
    assert_eq!(
        shown(&resolver, "broken.example.org.default.svc.cluster.local.", CLIENT).await,
        "SERVFAIL"
    );
    // A name of another namespace is found on the way, too.
    assert_eq!(
        shown(&resolver, "docs.default.default.svc.cluster.local.", CLIENT).await,
        "NOERROR docs.default.svc.cluster.local. docs.example.org. 192.0.2.3"
    );
}

#[tokio::test]
async fn an_alias_is_followed_wherever_it_leads_but_not_in_circles() {
    let server = Fake::start(world).await;
    let resolver = resolver();
    resolver.set_upstreams(vec![(Name::root(), vec![server.at])], Vec::new());
    assert_eq!(
        shown(&resolver, "docs.default.svc.cluster.local.", CLIENT).await,
        "NOERROR docs.example.org. 192.0.2.3"
    );
    assert_eq!(
        shown(&resolver, "chain.default.svc.cluster.local.", CLIENT).await,
        "NOERROR docs.default.svc.cluster.local. docs.example.org. 192.0.2.3"
    );
    assert_eq!(shown(&resolver, "ring.default.svc.cluster.local.", CLIENT).await, "SERVFAIL");
}

#[tokio::test]
async fn when_all_servers_fail_an_old_answer_is_told() {
    static PHASE: AtomicU8 = AtomicU8::new(0);
    fn once(_: &str) -> Result<Vec<[u8; 4]>, ResponseCode> {
        match PHASE.load(Ordering::Relaxed) {
            0 => Ok(vec![[192, 0, 2, 1]]),
            _ => Err(ResponseCode::ServFail),
        }
    }
    let server = Fake::start(once).await;
    let resolver = resolver();
    resolver.set_upstreams(vec![(Name::root(), vec![server.at])], Vec::new());
    let question = key(&name("old.example.org."), &ask("old.example.org."));
    let answer = resolver.ask_others(&question).await;
    // Kept since longer than it may be.
    let past = Instant::now().checked_sub(Duration::from_secs(90)).unwrap();
    lock(&resolver.cache).put(question, &answer, past);
    PHASE.store(1, Ordering::Relaxed);
    assert_eq!(shown(&resolver, "old.example.org.", CLIENT).await, "NOERROR 192.0.2.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_leads_back_here_is_found_out() {
    let config = conf::DnsConfig {
        addresses: vec![IpAddr::from([127, 53, 1, 1])],
        upstreams: vec!["127.53.1.9:5300".parse().unwrap()],
        ..conf::DnsConfig::default()
    };
    let resolver = resolver();
    let (stop, stopped) = watch::channel(false);
    let mut dns = crate::dns::Dns::start(&config, &resolver, 5300, &stopped);
    dns.listen(&config.addresses).unwrap();
    let itself: SocketAddr = "127.53.1.1:5300".parse().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while resolver.upstreams().is_empty() {
        assert!(Instant::now() < deadline, "the configuration is not taken up");
        tokio::task::yield_now().await;
    }
    // In the configuration its own address would be left out; a proxy in between would hide it.
    resolver.set_upstreams(vec![(Name::root(), vec![itself])], Vec::new());
    assert_eq!(resolver.look_for_loops().await, [(itself, true)]);
    assert_eq!(resolver.look_for_loops().await, []);
    assert!(resolver.upstreams()[0].looping);
    assert_eq!(shown(&resolver, "www.example.org.", CLIENT).await, "SERVFAIL");
    stop.send_replace(true);
    dns.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_over_udp_and_tcp() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let config = conf::DnsConfig {
        addresses: vec![IpAddr::from([127, 53, 1, 2])],
        ..conf::DnsConfig::default()
    };
    let resolver = resolver();
    let (stop, stopped) = watch::channel(false);
    let mut dns = crate::dns::Dns::start(&config, &resolver, 5300, &stopped);
    dns.listen(&config.addresses).unwrap();
    let mut log = resolver.stats().watch();
    let mut request = Message::new(77, MessageType::Query, OpCode::Query);
    let asked = name("10-244-1-9.default.pod.cluster.local.");
    request.add_query(Query::query(asked.clone(), RecordType::A));
    let bytes = request.to_vec().unwrap();

    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&bytes, "127.53.1.2:5300").await.unwrap();
    let mut buffer = [0; 512];
    let (len, _) = socket.recv_from(&mut buffer).await.unwrap();
    let over_udp = Message::from_vec(&buffer[..len]).unwrap();
    assert_eq!(over_udp.answers[0].data.to_string(), "10.244.1.9");

    let mut stream = tokio::net::TcpStream::connect("127.53.1.2:5300").await.unwrap();
    for _ in 0..2 {
        stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut reply = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(Message::from_vec(&reply).unwrap().answers, over_udp.answers);
    }
    let line = log.recv().await.unwrap();
    assert_eq!((line.rcode.as_str(), line.part), ("NOERROR", Part::Cluster));
    assert_eq!((line.name.as_str(), line.pod), ("10-244-1-9.default.pod.cluster.local.", None));
    let responses = resolver.stats().totals().responses;
    assert!(
        responses.iter().any(|(zone, code, count)| {
            (zone.name.as_str(), code.as_str(), *count) == ("cluster.local.", "NOERROR", 3)
        }),
        "{responses:?}"
    );
    stop.send_replace(true);
    dns.stopped().await;
}
