//! The Kubernetes DNS specification 1.1.0, question by question.

use conf::cluster::Protocol;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType::{self, A, AAAA, ANY, CNAME, MX, NS, PTR, SOA, SRV, TXT};

use super::*;
use crate::dns::directory::Pod;

fn port(name: &str, protocol: Protocol, number: u16) -> Port {
    Port { name: name.into(), protocol, number }
}

fn endpoint(address: &str, hostname: Option<&str>, ports: &[Port]) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        hostname: hostname.map(str::to_owned),
        ports: ports.to_vec(),
    }
}

fn directory() -> Directory {
    let mut directory = Directory::default();
    for namespace in ["empty", "default", "prod"] {
        directory.set_namespace(namespace, true);
    }
    let web = Target::Cluster {
        addresses: vec!["10.96.0.20".parse().unwrap()],
        ports: vec![port("http", Protocol::Tcp, 80), port("quic", Protocol::Udp, 443)],
    };
    directory.set_service("default", "web", Some(web));
    let dual = Target::Cluster {
        addresses: vec!["10.96.0.21".parse().unwrap(), "fd00:10:96::21".parse().unwrap()],
        ports: vec![port("", Protocol::Sctp, 9)],
    };
    directory.set_service("prod", "dual", Some(dual));
    let sql = [port("sql", Protocol::Tcp, 5432)];
    let db = Target::Headless(vec![
        endpoint("10.244.1.5", Some("db-0"), &sql),
        endpoint("10.244.2.5", Some("db-1"), &[port("sql", Protocol::Tcp, 5433)]),
        endpoint("10.244.2.6", None, &sql),
        endpoint("fd00:10:244:1::5", Some("db-0"), &sql),
    ]);
    directory.set_service("default", "db", Some(db));
    directory.set_service("default", "idle", Some(Target::Headless(Vec::new())));
    let docs = Target::External(Name::from_ascii("docs.example.org.").unwrap());
    directory.set_service("default", "docs", Some(docs));
    let addresses = ["10.244.1.9", "fd00:10:244:1::9"].map(|text| text.parse().unwrap());
    let pod = Pod { addresses: addresses.to_vec(), host_network: false };
    directory.set_pod("default", "client", Some(pod));
    directory
}

fn zones(pods: PodNames) -> ClusterZones {
    ClusterZones::new(
        Name::from_ascii("cluster.local.").unwrap(),
        5,
        pods,
        vec!["10.96.0.10".parse().unwrap()],
        ["10.244.0.0/16", "10.96.0.0/12", "fd00:10:244::/56"].map(|range| range.parse().unwrap()),
    )
}

/// The answer in a line: data of the records, or the code.
fn ask_of(zones: &ClusterZones, name: &str, kind: RecordType) -> String {
    let name = Name::from_ascii(name).unwrap();
    let shown = |answer: &Answer| {
        let mut data: Vec<_> =
            answer.answers.iter().map(|record| record.data.to_string()).collect();
        data.sort();
        data.join(", ")
    };
    match zones.answer(Some(&directory()), &name, kind) {
        Found::Foreign => "foreign".to_owned(),
        Found::Alias(answer, target) => format!("{} -> {target}", shown(&answer)),
        Found::Answer(answer) if answer.answers.is_empty() => {
            assert!(answer.authoritative);
            let [soa] = answer.authorities.as_slice() else { panic!("no SOA: {answer:?}") };
            assert_eq!(soa.record_type(), SOA);
            assert!(soa.name.zone_of(&name), "{} is not above {name}", soa.name);
            assert!([ResponseCode::NoError, ResponseCode::NXDomain].contains(&answer.rcode));
            if answer.exists() { "no data".to_owned() } else { "no name".to_owned() }
        }
        Found::Answer(answer) => {
            assert_eq!(answer.rcode, ResponseCode::NoError);
            assert!(answer.answers.iter().all(|record| record.name.eq_case(&name)), "{answer:?}");
            assert!(answer.answers.iter().all(|record| record.ttl == 5));
            shown(&answer)
        }
    }
}

#[test]
fn every_question_of_the_specification() {
    let zones = zones(PodNames::Verified);
    for (name, kind, expected) in [
        // The zone itself.
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("dns-version.cluster.local.", A, "no data"),
        ("cluster.local.", A, "no data"),
        ("cluster.local.", NS, "ns.dns.cluster.local."),
        ("ns.dns.cluster.local.", A, "10.96.0.10"),
        ("dns.cluster.local.", A, "no data"),
        // Names that only have others below them, and names that do not exist, at every level.
        ("svc.cluster.local.", A, "no data"),
        ("pod.cluster.local.", A, "no data"),
        ("default.svc.cluster.local.", A, "no data"),
        ("empty.svc.cluster.local.", A, "no data"),
        ("default.pod.cluster.local.", A, "no data"),
        ("nowhere.svc.cluster.local.", A, "no name"),
        ("nowhere.pod.cluster.local.", A, "no name"),
        ("nothing.default.svc.cluster.local.", A, "no name"),
        ("nothing.nowhere.svc.cluster.local.", A, "no name"),
        ("default.cluster.local.", A, "no name"),
        ("www.google.com.cluster.local.", A, "no name"),
        // A service with an address.
        ("web.default.svc.cluster.local.", A, "10.96.0.20"),
        ("WEB.Default.SVC.cluster.LOCAL.", A, "10.96.0.20"),
        ("web.default.svc.cluster.local.", AAAA, "no data"),
        ("web.default.svc.cluster.local.", MX, "no data"),
        ("dual.prod.svc.cluster.local.", A, "10.96.0.21"),
        ("dual.prod.svc.cluster.local.", AAAA, "fd00:10:96::21"),
        ("x.web.default.svc.cluster.local.", A, "no name"),
        // Its ports.
        (
            "_http._tcp.web.default.svc.cluster.local.",
            SRV,
            "0 100 80 web.default.svc.cluster.local.",
        ),
        (
            "_QUIC._UDP.web.default.svc.cluster.local.",
            SRV,
            "0 100 443 web.default.svc.cluster.local.",
        ),
        ("_http._udp.web.default.svc.cluster.local.", SRV, "no name"),
        ("_http._tcp.web.default.svc.cluster.local.", A, "no data"),
        ("_tcp.web.default.svc.cluster.local.", SRV, "no data"),
        ("_sctp.web.default.svc.cluster.local.", SRV, "no name"),
        (
            "web.default.svc.cluster.local.",
            SRV,
            "0 50 443 web.default.svc.cluster.local., 0 50 80 web.default.svc.cluster.local.",
        ),
        ("dual.prod.svc.cluster.local.", SRV, "0 100 9 dual.prod.svc.cluster.local."),
        ("_._sctp.dual.prod.svc.cluster.local.", SRV, "no name"),
        // A service without one.
        ("db.default.svc.cluster.local.", A, "10.244.1.5, 10.244.2.5, 10.244.2.6"),
        ("db.default.svc.cluster.local.", AAAA, "fd00:10:244:1::5"),
        ("db-0.db.default.svc.cluster.local.", A, "10.244.1.5"),
        ("db-0.db.default.svc.cluster.local.", AAAA, "fd00:10:244:1::5"),
        ("db-1.db.default.svc.cluster.local.", AAAA, "no data"),
        ("10-244-2-6.db.default.svc.cluster.local.", A, "10.244.2.6"),
        ("10-244-1-5.db.default.svc.cluster.local.", A, "no name"),
        ("db-2.db.default.svc.cluster.local.", A, "no name"),
        (
            "_sql._tcp.db.default.svc.cluster.local.",
            SRV,
            "0 33 5432 10-244-2-6.db.default.svc.cluster.local., \
             0 33 5432 db-0.db.default.svc.cluster.local., \
             0 33 5433 db-1.db.default.svc.cluster.local.",
        ),
        ("idle.default.svc.cluster.local.", A, "no name"),
        // An alias.
        ("docs.default.svc.cluster.local.", A, "docs.example.org. -> docs.example.org."),
        ("docs.default.svc.cluster.local.", CNAME, "docs.example.org."),
        ("_http._tcp.docs.default.svc.cluster.local.", SRV, "no name"),
        // Pods.
        ("10-244-1-9.default.pod.cluster.local.", A, "10.244.1.9"),
        ("fd00-10-244-1--9.default.pod.cluster.local.", AAAA, "fd00:10:244:1::9"),
        ("10-244-1-9.default.pod.cluster.local.", AAAA, "no data"),
        ("10-244-1-9.prod.pod.cluster.local.", A, "no name"),
        ("10-244-1-8.default.pod.cluster.local.", A, "no name"),
        ("client.default.pod.cluster.local.", A, "no name"),
        // Back from addresses to names.
        ("20.0.96.10.in-addr.arpa.", PTR, "web.default.svc.cluster.local."),
        ("5.1.244.10.in-addr.arpa.", PTR, "db-0.db.default.svc.cluster.local."),
        ("6.2.244.10.in-addr.arpa.", PTR, "10-244-2-6.db.default.svc.cluster.local."),
        ("5.1.244.10.in-addr.arpa.", A, "no data"),
        ("99.9.244.10.in-addr.arpa.", PTR, "no name"),
        ("244.10.in-addr.arpa.", PTR, "no data"),
        ("1.244.10.in-addr.arpa.", PTR, "no data"),
        ("x.244.10.in-addr.arpa.", PTR, "no name"),
        ("1.5.1.244.10.in-addr.arpa.", PTR, "no name"),
        ("244.10.in-addr.arpa.", NS, "ns.dns.cluster.local."),
        (
            "244.10.in-addr.arpa.",
            SOA,
            "ns.dns.244.10.in-addr.arpa. hostmaster.244.10.in-addr.arpa. 1 7200 1800 86400 5",
        ),
        (
            "1.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            "dual.prod.svc.cluster.local.",
        ),
        ("1.1.1.10.in-addr.arpa.", PTR, "foreign"),
        ("1.2.0.192.in-addr.arpa.", PTR, "foreign"),
        // The rest of the world.
        ("example.org.", A, "foreign"),
        ("local.", A, "foreign"),
        ("notcluster.local.", A, "foreign"),
        // RFC 8482.
        ("web.default.svc.cluster.local.", ANY, "RFC8482 "),
    ] {
        assert_eq!(ask_of(&zones, name, kind), expected, "{name} {kind}");
    }
}

#[test]
fn pods_names_follow_the_setting() {
    let unknown = "192-0-2-77.default.pod.cluster.local.";
    let known = "10-244-1-9.default.pod.cluster.local.";
    for (pods, of_unknown, of_known, of_zone) in [
        (PodNames::Disabled, "no name", "no name", "no name"),
        (PodNames::Insecure, "192.0.2.77", "10.244.1.9", "no data"),
        (PodNames::Verified, "no name", "10.244.1.9", "no data"),
    ] {
        let zones = zones(pods);
        assert_eq!(ask_of(&zones, unknown, A), of_unknown, "{pods:?}");
        assert_eq!(ask_of(&zones, known, A), of_known, "{pods:?}");
        assert_eq!(ask_of(&zones, "default.pod.cluster.local.", A), of_zone, "{pods:?}");
        assert_eq!(ask_of(&zones, "1-2-3-4.nowhere.pod.cluster.local.", A), "no name");
    }
}

#[test]
fn before_the_first_state_nothing_is_said_not_to_exist() {
    let zones = zones(PodNames::Insecure);
    for name in ["web.default.svc.cluster.local.", "cluster.local.", "1.0.244.10.in-addr.arpa."] {
        let found = zones.answer(None, &Name::from_ascii(name).unwrap(), A);
        let Found::Answer(answer) = found else { panic!("{name}: {found:?}") };
        assert_eq!(answer.rcode, ResponseCode::ServFail, "{name}");
    }
    let world = Name::from_ascii("example.org.").unwrap();
    assert_eq!(zones.answer(None, &world, A), Found::Foreign);
}

#[test]
fn an_srv_answer_brings_the_addresses_of_its_targets() {
    let name = Name::from_ascii("_sql._tcp.db.default.svc.cluster.local.").unwrap();
    let found = zones(PodNames::Disabled).answer(Some(&directory()), &name, SRV);
    let Found::Answer(answer) = found else { panic!("{found:?}") };
    let beside = answer.additionals.iter();
    let beside: Vec<_> = beside.map(|record| format!("{} {}", record.name, record.data)).collect();
    assert_eq!(beside.len(), 4, "{beside:?}");
    assert!(beside.contains(&"db-1.db.default.svc.cluster.local. 10.244.2.5".to_owned()));
}

proptest::proptest! {
    /// Whatever is asked, the answer is one, and belongs to the name.
    #[test]
    fn random_names_have_answers(labels in proptest::collection::vec("[a-z0-9_-]{1,12}", 0..6)) {
        let text = labels.iter().map(|label| format!("{label}.")).collect::<String>();
        for zone in ["cluster.local.", "in-addr.arpa.", "ip6.arpa."] {
            let Ok(name) = Name::from_ascii(format!("{text}{zone}")) else { continue };
            for kind in [A, AAAA, SRV, PTR, TXT, ANY] {
                if let Found::Answer(answer) =
                    zones(PodNames::Insecure).answer(Some(&directory()), &name, kind)
                {
                    proptest::prop_assert!(answer.answers.iter().all(|record| record.name == name));
                }
            }
        }
    }
}
