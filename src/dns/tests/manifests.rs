//! From manifests to answers: what objects say, as the specification has it answered.

use conf::NodeConfig;
use conf::cluster::ClusterState;
use conf::cluster::parse::parse;
use conf::source::Directory;

use super::report::DnsAnswer;

const OBJECTS: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: empty}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: default, labels: {app: db}}
spec: {hostname: db-0, subdomain: db, nodeName: n1, containers: [{name: c, ports: [{name: sql, containerPort: 5433}]}]}
status: {podIP: 10.244.1.5}
---
apiVersion: v1
kind: Pod
metadata: {name: db-1, namespace: default, labels: {app: db}}
spec: {hostname: db-1, subdomain: db, nodeName: n1, containers: [{name: c, ports: [{name: sql, containerPort: 5434}]}]}
status: {podIP: 10.244.1.6, conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-2, namespace: default, deletionTimestamp: '2026-01-01T00:00:00Z', labels: {app: db}}
spec: {hostname: db-2, subdomain: db, nodeName: n1, containers: [{name: c}]}
status: {podIP: 10.244.1.7}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 5432, targetPort: sql}]}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: default}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: db}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, 'fd00:10:96::7']
  ipFamilyPolicy: RequireDualStack
  ports: [{name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: web-again, namespace: default}
spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alone, namespace: default}
spec: {clusterIP: 10.96.0.9, ports: [{port: 9, protocol: SCTP}]}
---
apiVersion: v1
kind: Service
metadata: {name: docs, namespace: default}
spec: {type: ExternalName, externalName: docs.example.org}
---
apiVersion: v1
kind: Service
metadata: {name: inner, namespace: default}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: made, namespace: default}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: made-1, namespace: default, labels: {kubernetes.io/service-name: made}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [192.0.2.21], hostname: one}
- {addresses: [192.0.2.22], hostname: one}
- {addresses: [192.0.2.23]}
- {addresses: [192.0.2.24], conditions: {ready: false}}
";

fn config() -> NodeConfig {
    let mut config = NodeConfig::new("", Vec::new());
    config.services.ranges.push("fd00:10:96::/112".parse().unwrap());
    config.lease.ranges.push("fd00:10:244::/56".parse().unwrap());
    config
}

fn state(config: &NodeConfig) -> ClusterState {
    let mut state = ClusterState::new(config.allocation());
    state.apply(Directory::new().set_file("all.yaml", parse(OBJECTS)));
    state
}

/// Code and answers in a line; negatives bring the zone's SOA.
fn line(answer: &DnsAnswer) -> String {
    let DnsAnswer { rcode, answer, authority, .. } = answer;
    if answer.is_empty() {
        assert_eq!(authority.len(), 1, "{authority:?}");
        assert_eq!((authority[0].kind.as_str(), authority[0].ttl), ("SOA", 5));
    }
    let mut data: Vec<_> =
        answer.iter().map(|record| format!("{} {}", record.kind, record.data)).collect();
    data.sort();
    format!("{rcode} {}", data.join(", ")).trim().to_owned()
}

#[test]
fn objects_are_answered_as_the_specification_has_it() {
    let config = config();
    let state = state(&config);
    for (name, kind, expected) in [
        // 2.2: the version.
        ("dns-version", "TXT", "NOERROR TXT 1.1.0"),
        // 2.3: Services with an address, of both families.
        ("web.default.svc", "A", "NOERROR A 10.96.0.7"),
        ("web.default.svc", "AAAA", "NOERROR AAAA fd00:10:96::7"),
        ("alone.default.svc", "AAAA", "NOERROR"),
        (
            "_http._tcp.web.default.svc",
            "SRV",
            "NOERROR SRV 0 100 80 web.default.svc.cluster.local.",
        ),
        ("_dns._udp.web.default.svc", "SRV", "NOERROR SRV 0 100 53 web.default.svc.cluster.local."),
        ("_dns._tcp.web.default.svc", "SRV", "NXDOMAIN"),
        ("alone.default.svc", "SRV", "NOERROR SRV 0 100 9 alone.default.svc.cluster.local."),
        // Its address is another's: it is refused, and has no name.
        ("web-again.default.svc", "A", "NXDOMAIN"),
        // 2.4: headless: those that are ready, under their host names.
        ("db.default.svc", "A", "NOERROR A 10.244.1.5"),
        ("db-0.db.default.svc", "A", "NOERROR A 10.244.1.5"),
        ("db-1.db.default.svc", "A", "NXDOMAIN"),
        ("db-2.db.default.svc", "A", "NXDOMAIN"),
        (
            "_sql._tcp.db.default.svc",
            "SRV",
            "NOERROR SRV 0 100 5433 db-0.db.default.svc.cluster.local.",
        ),
        // Or all, when that is asked for. They are not members of the subdomain `peers`.
        ("peers.default.svc", "A", "NOERROR A 10.244.1.5, A 10.244.1.6, A 10.244.1.7"),
        ("10-244-1-6.peers.default.svc", "A", "NOERROR A 10.244.1.6"),
        // Endpoints that somebody wrote down: one name may be several's.
        ("made.default.svc", "A", "NOERROR A 192.0.2.21, A 192.0.2.22, A 192.0.2.23"),
        ("one.made.default.svc", "A", "NOERROR A 192.0.2.21, A 192.0.2.22"),
        ("192-0-2-23.made.default.svc", "A", "NOERROR A 192.0.2.23"),
        // 2.5: names for names, here or elsewhere.
        ("docs.default.svc", "A", "NOERROR CNAME docs.example.org."),
        ("docs.default.svc", "CNAME", "NOERROR CNAME docs.example.org."),
        ("inner.default.svc", "A", "NOERROR A 10.96.0.7, CNAME web.default.svc.cluster.local."),
        // Names between, and names that are not.
        ("default.svc", "A", "NOERROR"),
        ("empty.svc", "A", "NOERROR"),
        ("svc", "A", "NOERROR"),
        ("nowhere.svc", "A", "NXDOMAIN"),
        ("nothing.default.svc", "A", "NXDOMAIN"),
        ("10-244-1-5.default.pod", "A", "NOERROR A 10.244.1.5"),
    ] {
        let asked = format!("{name}.cluster.local");
        let answer = super::answer_alone(&config, &state, (&asked, kind), None).unwrap();
        assert_eq!(
            line(&answer).to_ascii_lowercase(),
            expected.to_ascii_lowercase(),
            "{asked} {kind}"
        );
    }
    for (asked, expected) in [
        ("7.0.96.10.in-addr.arpa", "NOERROR PTR web.default.svc.cluster.local."),
        (
            "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa",
            "NOERROR PTR web.default.svc.cluster.local.",
        ),
        (
            "5.1.244.10.in-addr.arpa",
            "NOERROR PTR 10-244-1-5.peers.default.svc.cluster.local., PTR db-0.db.default.svc.cluster.local.",
        ),
        ("23.2.0.192.in-addr.arpa", "NOERROR PTR 192-0-2-23.made.default.svc.cluster.local."),
        ("8.0.96.10.in-addr.arpa", "NXDOMAIN"),
    ] {
        let answer = super::answer_alone(&config, &state, (asked, "PTR"), None).unwrap();
        assert_eq!(line(&answer), expected, "{asked}");
    }
}

#[test]
fn questions_without_sense_say_why() {
    let config = config();
    let state = state(&config);
    let fault = |name: &str, kind: &str, from: Option<&str>| {
        super::answer_alone(&config, &state, (name, kind), from).unwrap_err()
    };
    assert!(fault("a..b", "A", None).contains("is no name"));
    assert!(fault("a", "WHAT", None).contains("is no type of records"));
    assert!(fault("a", "A", Some("default/nobody")).contains("neither an address nor a known pod"));
}
