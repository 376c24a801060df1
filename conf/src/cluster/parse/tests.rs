//! Tables of manifests: what is accepted, with which defaults, and what is refused, with which words.

use super::*;
use crate::cluster::object::*;

/// What is said of a text: `line: title: field: reason`.
fn refused(text: &str) -> Vec<String> {
    let manifests = parse(text);
    let said = manifests.refused.iter().flat_map(|refused| {
        refused.problems.iter().map(|p| format!("{}: {}: {p}", p.line, refused.title))
    });
    said.collect()
}

fn accepted(text: &str) -> Object {
    let manifests = parse(text);
    assert_eq!(refused(text), Vec::<String>::new(), "{text}");
    let [one] = &manifests.accepted[..] else { panic!("{manifests:?}") };
    one.object.clone()
}

/// A Service with these lines in its spec.
fn spec(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("  {line}\n")).collect();
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n{lines}")
}

fn service(lines: &str) -> Service {
    let Object::Service(service) = accepted(&spec(lines)) else { panic!("{lines}") };
    (*service).clone()
}

#[test]
fn a_service_gets_the_defaults_of_the_api_server() {
    let plain = service("ports:\n- port: 80\n");
    assert_eq!(plain.id.to_string(), "default/web");
    assert_eq!(plain.kind, ServiceType::ClusterIp);
    let port = ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: 80,
        target: TargetPort::Number(80),
        node_port: None,
        app_protocol: None,
    };
    assert_eq!(*plain.ports, [port]);
    assert_eq!(plain.cluster_ip, ClusterIp::Auto);
    assert_eq!(plain.family_policy, FamilyPolicy::SingleStack);
    assert_eq!(plain.external_policy, TrafficPolicy::Cluster);
    assert_eq!(plain.internal_policy, TrafficPolicy::Cluster);
    assert_eq!((plain.affinity_s, plain.publish_not_ready), (None, false));
    assert!(plain.selector.is_empty() && plain.proxied && !plain.wants_node_ports());

    let ports = "ports: [{port: 80}]\n";
    let with = |lines: &str| service(&format!("{ports}{lines}\n"));
    assert_eq!(with("sessionAffinity: ClientIP").affinity_s, Some(10_800));
    assert_eq!(
        with("sessionAffinity: ClientIP\nsessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}")
            .affinity_s,
        Some(5)
    );
    assert!(with("type: LoadBalancer").wants_node_ports());
    assert!(!with("type: LoadBalancer\nallocateLoadBalancerNodePorts: false").wants_node_ports());
    assert!(with("type: NodePort").wants_node_ports());
    assert_eq!(with("ipFamilies: [IPv6, IPv4]").family_policy, FamilyPolicy::RequireDualStack);
    assert_eq!(
        with("clusterIPs: [10.96.0.5, 'fd00::5']").cluster_ip,
        ClusterIp::Given(Box::new(["10.96.0.5".parse().unwrap(), "fd00::5".parse().unwrap()]))
    );
    assert_eq!(with("clusterIP: None").family_policy, FamilyPolicy::RequireDualStack);
    assert_eq!(
        with("clusterIP: None\nselector: {app: web}").family_policy,
        FamilyPolicy::SingleStack
    );
    for (word, means) in [
        ("PreferClose", TrafficDistribution::PreferSameZone),
        ("PreferSameZone", TrafficDistribution::PreferSameZone),
        ("PreferSameNode", TrafficDistribution::PreferSameNode),
    ] {
        assert_eq!(with(&format!("trafficDistribution: {word}")).distribution, Some(means));
    }
    let ranges = with("type: LoadBalancer\nloadBalancerSourceRanges: [192.0.2.7/24]");
    assert_eq!(ranges.load_balancer.source_ranges[0].to_string(), "192.0.2.0/24");
    let name = service("type: ExternalName\nexternalName: example.org.\n");
    assert_eq!(name.external_name.as_deref(), Some("example.org"));
    assert_eq!(service("clusterIP: None\n").ports.len(), 0);
}

#[test]
fn a_service_that_says_everything() {
    let text = "\
apiVersion: v1
kind: Service
metadata:
  name: all
  namespace: prod
  labels: {a: b, service.kubernetes.io/service-proxy-name: other}
  annotations: {service.kubernetes.io/topology-mode: Auto}
  creationTimestamp: 2026-01-01T00:00:00Z
spec:
  type: LoadBalancer
  selector: {app: web}
  clusterIP: 10.96.0.9
  clusterIPs: [10.96.0.9]
  ipFamilies: [IPv4]
  ipFamilyPolicy: SingleStack
  ports:
  - {name: http, port: 80, targetPort: web, nodePort: 30080, appProtocol: kubernetes.io/h2c}
  - {name: dns, port: 53, protocol: UDP, targetPort: 5353, nodePort: 0}
  - {name: dns-tcp, port: 53, protocol: TCP, targetPort: 5353}
  externalIPs: [192.0.2.1, 192.0.2.1]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  healthCheckNodePort: 30090
  loadBalancerClass: example.org/lb
  loadBalancerIP: 192.0.2.200
  loadBalancerSourceRanges: [192.0.2.0/24]
  allocateLoadBalancerNodePorts: false
  publishNotReadyAddresses: true
status:
  loadBalancer:
    ingress: [{ip: 192.0.2.201, ipMode: VIP}, {ip: 192.0.2.202, ipMode: Proxy}, {hostname: lb.example.org}]
";
    let Object::Service(service) = accepted(text) else { panic!() };
    assert_eq!(service.ports[0].target, TargetPort::Name("web".into()));
    assert_eq!(service.ports[0].node_port, Some(30_080));
    assert_eq!((service.ports[1].protocol, service.ports[1].node_port), (Protocol::Udp, None));
    assert_eq!(service.external_ips.len(), 1);
    assert_eq!(service.external_policy, TrafficPolicy::Local);
    assert_eq!(service.health_check_node_port, Some(30_090));
    assert_eq!(
        *service.load_balancer.ingress,
        ["192.0.2.201".parse::<std::net::IpAddr>().unwrap()]
    );
    assert!(!service.proxied && !service.wants_load_balancer() && service.publish_not_ready);
    let manifests = parse(text);
    let notes: Vec<String> =
        manifests.accepted[0].notes.iter().map(|note| format!("{}: {note}", note.line)).collect();
    assert_eq!(
        notes,
        [
            "7: metadata.annotations[service.kubernetes.io/topology-mode]: Weft does not divide zones by \
             their CPUs: set spec.trafficDistribution",
            "24: spec.loadBalancerClass: another implementation serves this class; Weft's is weft.io/layer2"
        ]
    );
    assert_eq!(manifests.accepted[0].line_of("spec.clusterIP"), 12);
    assert_eq!(manifests.accepted[0].line_of("spec.ports[0].nodePort"), 17);
    assert_eq!(manifests.accepted[0].line_of("spec.selector"), 1);
}

#[test]
fn services_that_cannot_be_honoured() {
    let web = "Service default/web";
    let table: &[(&str, &[&str])] = &[
        (
            "selector: {app: web}",
            &["6: {web}: spec.ports: a Service has at least one port, unless it is headless"],
        ),
        ("ports: [{port: 0}]", &["6: {web}: spec.ports[0].port: 0 is no port: 1 to 65535"]),
        ("ports: [{port: 65536}]", &["6: {web}: spec.ports[0].port: 65536 is no port: 1 to 65535"]),
        (
            "ports: [{port: \"80\"}]",
            &["6: {web}: spec.ports[0].port: is text, not a whole number from 1 to 65535"],
        ),
        ("ports:\n- name: a", &["7: {web}: spec.ports[0].port: is missing"]),
        (
            "ports:\n- port: 80\n- port: 81",
            &[
                "7: {web}: spec.ports[0].name: is missing: of several ports each has a name",
                "8: {web}: spec.ports[1].name: is missing: of several ports each has a name",
            ],
        ),
        (
            "ports:\n- {name: a, port: 80}\n- {name: a, port: 81}",
            &["8: {web}: spec.ports[1].name: \"a\" is the name of another port"],
        ),
        (
            "ports:\n- {name: a, port: 80}\n- {name: b, port: 80}",
            &["8: {web}: spec.ports[1].port: TCP 80 is there twice"],
        ),
        (
            "ports: [{name: Web, port: 80}]",
            &[
                "6: {web}: spec.ports[0].name: \"Web\" is no DNS label: 1 to 63 of a-z, 0-9 and -, with a letter or \
               digit at both ends",
            ],
        ),
        (
            "ports: [{port: 80, protocol: tcp}]",
            &["6: {web}: spec.ports[0].protocol: \"tcp\" is none of TCP, UDP, SCTP"],
        ),
        (
            "ports: [{port: 80, targetPort: -1}]",
            &["6: {web}: spec.ports[0].targetPort: -1 is no port: 1 to 65535"],
        ),
        (
            "ports: [{port: 80, targetPort: http_port}]",
            &[
                "6: {web}: spec.ports[0].targetPort: \"http_port\" is no port's name: 1 to 15 of a-z, 0-9 and -, with at \
               least one letter, no -- and no - at the ends",
            ],
        ),
        (
            "ports: [{port: 80, nodePort: 30000}]",
            &[
                "6: {web}: spec.ports[0].nodePort: a Service of type ClusterIP has no node ports: set spec.type to \
               NodePort",
            ],
        ),
        (
            "ports: [{port: 80, tagetPort: 8080}]",
            &[
                "6: {web}: spec.ports[0].tagetPort: there is no such field: did you mean targetPort?",
            ],
        ),
        (
            "ports: [{port: 80}]\nselectors: {a: b}",
            &["7: {web}: spec.selectors: there is no such field: did you mean selector?"],
        ),
        (
            "ports: [{port: 80}]\nselector: {app: 1}",
            &["7: {web}: spec.selector[app]: is a number, not text: put it in quotes"],
        ),
        (
            "ports: [{port: 80}]\nselector: {app: true}",
            &["7: {web}: spec.selector[app]: is true or false, not text: put it in quotes"],
        ),
        (
            "ports: [{port: 80}]\nselector: {-a: b}",
            &[
                "7: {web}: spec.selector[-a]: \"-a\" is no qualified name: 1 to 63 letters, digits, - _ and ., with a \
               letter or digit at both ends, and a DNS name and / before that if so wanted",
            ],
        ),
        (
            "ports: [{port: 80}]\ntype: Loadbalancer",
            &[
                "7: {web}: spec.type: \"Loadbalancer\" is none of ClusterIP, NodePort, LoadBalancer, ExternalName",
            ],
        ),
        (
            "ports: [{port: 80}]\nclusterIP: none",
            &["7: {web}: spec.clusterIP: \"none\" is no IP address"],
        ),
        (
            "ports: [{port: 80}]\nclusterIP: 10.96.0.010",
            &["7: {web}: spec.clusterIP: \"10.96.0.010\" is no IP address"],
        ),
        (
            "ports: [{port: 80}]\nclusterIP: ::ffff:10.96.0.1",
            &[
                "7: {web}: spec.clusterIP: \"::ffff:10.96.0.1\" is an IPv4 address written as IPv6: write it as IPv4",
            ],
        ),
        (
            "ports: [{port: 80}]\nclusterIP: 10.96.0.1\nclusterIPs: [10.96.0.2]",
            &[
                "8: {web}: spec.clusterIPs[0]: the first of clusterIPs must be the same as clusterIP",
            ],
        ),
        (
            "ports: [{port: 80}]\nclusterIPs: [10.96.0.1, 10.96.0.2]",
            &["7: {web}: spec.clusterIPs[1]: is a second address of the same family"],
        ),
        (
            "ports: [{port: 80}]\nclusterIPs: [None, 10.96.0.2]",
            &["7: {web}: spec.clusterIPs[0]: None stands alone"],
        ),
        (
            "ports: [{port: 80}]\ntype: NodePort\nclusterIP: None",
            &["8: {web}: spec.clusterIP: a Service of type NodePort needs an address"],
        ),
        (
            "ports: [{port: 80}]\nipFamilies: [IPv4, IPv4]",
            &["7: {web}: spec.ipFamilies[1]: is there twice"],
        ),
        (
            "ports: [{port: 80}]\nipFamilies: [ipv4]",
            &["7: {web}: spec.ipFamilies[0]: \"ipv4\" is none of IPv4, IPv6"],
        ),
        (
            "ports: [{port: 80}]\nipFamilies: [IPv6]\nclusterIP: 10.96.0.1",
            &["7: {web}: spec.ipFamilies[0]: IPv6 is not the family of 10.96.0.1"],
        ),
        (
            "ports: [{port: 80}]\nipFamilies: [IPv6, IPv4]\nipFamilyPolicy: SingleStack",
            &["8: {web}: spec.ipFamilyPolicy: SingleStack is one family, and two are given"],
        ),
        (
            "ports: [{port: 80}]\nexternalIPs: [127.0.0.1, 169.254.1.1, x]",
            &[
                "7: {web}: spec.externalIPs[0]: \"127.0.0.1\" is a loopback address",
                "7: {web}: spec.externalIPs[1]: \"169.254.1.1\" is a link-local address",
                "7: {web}: spec.externalIPs[2]: \"x\" is no IP address",
            ],
        ),
        (
            "ports: [{port: 80}]\nexternalTrafficPolicy: Local",
            &[
                "7: {web}: spec.externalTrafficPolicy: only Services that are reached from outside have one",
            ],
        ),
        (
            "ports: [{port: 80}]\ninternalTrafficPolicy: local",
            &["7: {web}: spec.internalTrafficPolicy: \"local\" is none of Cluster, Local"],
        ),
        (
            "ports: [{port: 80}]\nsessionAffinity: ClientIP\nsessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}",
            &[
                "8: {web}: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is no timeout in seconds: 1 to 86400",
            ],
        ),
        (
            "ports: [{port: 80}]\nsessionAffinity: ClientIP\nsessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            &[
                "8: {web}: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is no timeout in seconds: 1 to 86400",
            ],
        ),
        (
            "ports: [{port: 80}]\nsessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}",
            &["7: {web}: spec.sessionAffinityConfig: is only for sessionAffinity: ClientIP"],
        ),
        (
            "ports: [{port: 80}]\nloadBalancerSourceRanges: [10.0.0.0/8]",
            &["7: {web}: spec.loadBalancerSourceRanges: is only for Services of type LoadBalancer"],
        ),
        (
            "ports: [{port: 80}]\ntype: LoadBalancer\nloadBalancerSourceRanges: [10.0.0.0, 10.0.0.0/33]",
            &[
                "8: {web}: spec.loadBalancerSourceRanges[0]: \"10.0.0.0\" is no range: a / and a length are missing",
                "8: {web}: spec.loadBalancerSourceRanges[1]: \"10.0.0.0/33\" is no range like 192.0.2.0/24",
            ],
        ),
        (
            "ports: [{port: 80}]\nallocateLoadBalancerNodePorts: false",
            &[
                "7: {web}: spec.allocateLoadBalancerNodePorts: is only for Services of type LoadBalancer",
            ],
        ),
        (
            "ports: [{port: 10250}]\ntype: LoadBalancer",
            &["6: {web}: spec.ports[0].port: 10250 is the kubelet's port on every node"],
        ),
        (
            "ports: [{port: 80}]\ntype: LoadBalancer\nhealthCheckNodePort: 30000",
            &[
                "8: {web}: spec.healthCheckNodePort: is only for type LoadBalancer with externalTrafficPolicy Local",
            ],
        ),
        ("type: ExternalName", &["6: {web}: spec.externalName: is missing"]),
        (
            "type: ExternalName\nexternalName: 10.0.0._1",
            &[
                "7: {web}: spec.externalName: is no DNS name: 1 to 253 of a-z, 0-9, - and ., with a letter or digit at \
               both ends of each part",
            ],
        ),
        (
            "type: ExternalName\nexternalName: a.example\nclusterIP: 10.96.0.1",
            &["8: {web}: spec.clusterIP: a Service of type ExternalName has no address"],
        ),
        (
            "ports: [{port: 80}]\ntrafficDistribution: Close",
            &[
                "7: {web}: spec.trafficDistribution: \"Close\" is none of PreferClose, PreferSameZone, PreferSameNode",
            ],
        ),
        ("ports: {port: 80}", &["6: {web}: spec.ports: is a map, not a list"]),
        ("ports: [80]", &["6: {web}: spec.ports[0]: is a number, not a map"]),
    ];
    for (lines, expected) in table {
        let found = refused(&spec(lines));
        // The quoted value stands in some messages only for exactness of the rest.
        let expected: Vec<String> =
            expected.iter().map(|line| line.replace("{web}", web)).collect();
        let relevant: Vec<String> =
            found.iter().map(|line| line.replace("\"10.0.0._1\" ", "")).collect();
        assert!(expected.iter().all(|line| relevant.contains(line)), "{lines}\n{found:#?}");
        assert!(parse(&spec(lines)).accepted.is_empty(), "{lines}");
        if !lines.contains("10250") {
            assert_eq!(relevant.len(), expected.len(), "{lines}\n{found:#?}");
        }
    }
}

#[test]
fn documents_that_are_no_objects() {
    let table: &[(&str, &[&str])] = &[
        ("kind: Service\n", &["1: Service: apiVersion: is missing"]),
        ("apiVersion: v1\n", &["1: document: kind: is missing"]),
        ("- a\n", &["1: document: is a list, not an object"]),
        ("hello\n", &["1: document: is text, not an object"]),
        ("a: [\n", &["1: document: is no YAML: unclosed bracket '['"]),
        (
            "apiVersion: v1\nkind: Service\nspec: {ports: [{port: 80}]}\n",
            &["1: Service: metadata: is missing"],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {generateName: a-}\nspec: {ports: [{port: 80}]}\n",
            &["3: Service: metadata.generateName: nobody makes names here: give it a name"],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: 1a, lables: {}}\nspec: {ports: [{port: 80}]}\n",
            &[
                "3: Service default/1a: metadata.lables: there is no such field: did you mean labels?",
                "3: Service default/1a: metadata.name: \"1a\" is no name of a Service: 1 to 63 of a-z, 0-9 and -, with \
                 a letter first and a letter or digit last",
            ],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: A_b}\nspec: {ports: [{port: 80}]}\n",
            &[
                "3: Service A_b/a: metadata.namespace: \"A_b\" is no DNS label: 1 to 63 of a-z, 0-9 and -, with a letter \
               or digit at both ends",
            ],
        ),
        (
            "apiVersion: v2\nkind: Service\nmetadata: {name: a}\n",
            &["1: Service default/a: apiVersion: version \"v2\" of Service is not known: write v1"],
        ),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a}\n",
            &[
                "1: EndpointSlice default/a: apiVersion: version \"v1beta1\" of EndpointSlice is not known: write \
               discovery.k8s.io/v1",
            ],
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}\n",
            &["3: Namespace a: metadata.namespace: objects of this kind are in no namespace"],
        ),
        (
            "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\n",
            &[
                "1: Endpoints a: kind: Endpoints is not read, Kubernetes has deprecated it: write an EndpointSlice",
            ],
        ),
        ("apiVersion: v1\nkind: List\nitems: 1\n", &["3: List: items: is a number, not a list"]),
    ];
    for (text, expected) in table {
        assert_eq!(refused(text), *expected, "{text}");
    }
}

#[test]
fn other_kinds_are_ignored_and_named() {
    let text = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: prod}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: web}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
";
    let manifests = parse(text);
    assert_eq!((manifests.accepted.len(), manifests.refused.len()), (0, 0));
    let said: Vec<String> = manifests
        .ignored
        .iter()
        .map(|i| format!("{}: {}: {}", i.line, i.title, i.reason))
        .collect();
    assert_eq!(
        said,
        [
            "1: Deployment prod/web: Weft makes no pods: it serves those that the runtime attaches",
            "5: Service default/web: it is no kind of the network that Weft knows",
            "9: Ingress web: this version of Weft serves no HTTP routes",
        ]
    );
}

#[test]
fn lists_are_opened() {
    let text = "\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: a}
- apiVersion: v1
  kind: NamespaceList
  items:
  - metadata: {name: b}
  - metadata: {name: C}
";
    let manifests = parse(text);
    let names: Vec<String> =
        manifests.accepted.iter().map(|found| found.object.key().to_string()).collect();
    assert_eq!(names, ["Namespace a", "Namespace b"]);
    assert_eq!(manifests.accepted.iter().map(|found| found.line).collect::<Vec<_>>(), [4, 10]);
    assert_eq!(refused(text).len(), 1);
    assert!(
        refused(text)[0].starts_with("11: Namespace C: metadata.name: "),
        "{:?}",
        refused(text)
    );

    let mut nested = "apiVersion: v1\nkind: List\nitems: []\n".to_owned();
    for _ in 0..6 {
        nested = format!(
            "{{apiVersion: v1, kind: List, items: [{}]}}",
            nested.trim().replace('\n', ", ")
        );
        nested = nested.replace(
            "[apiVersion: v1, kind: List, items: []]",
            "[{apiVersion: v1, kind: List, items: []}]",
        );
    }
    assert!(
        refused(&nested)[0].ends_with("items: lists are nested too deep"),
        "{:?}",
        refused(&nested)
    );
}

#[test]
fn json_is_a_manifest_too() {
    let text = r#"{
  "kind": "ServiceList", "apiVersion": "v1",
  "items": [
    {"metadata": {"name": "web", "namespace": "a"}, "spec": {"ports": [{"port": 80, "protocol": "TCP"}]}},
    {"metadata": {"name": "db", "namespace": "a"}, "spec": {"ports": [{"port": 0}]}}
  ]
}"#;
    let manifests = parse(text);
    assert_eq!(manifests.accepted[0].object.key().to_string(), "Service a/web");
    assert_eq!(refused(text), ["5: Service a/db: spec.ports[0].port: 0 is no port: 1 to 65535"]);
}

#[test]
fn one_wrong_object_leaves_its_neighbours() {
    let text = format!(
        "{}---\nkind: [\n---\n{}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: last}}\n",
        spec("ports: [{port: 80}]"),
        spec("ports: [{port: -80}]")
    );
    let manifests = parse(&text);
    let kept: Vec<String> = manifests
        .accepted
        .iter()
        .map(|found| format!("{}: {}", found.line, found.object.key()))
        .collect();
    assert_eq!(kept, ["1: Service default/web", "17: Namespace last"]);
    assert_eq!(
        refused(&text),
        [
            "8: document: is no YAML: unclosed bracket '['",
            "15: Service default/web: spec.ports[0].port: -80 is no port: 1 to 65535",
        ]
    );
}

#[test]
fn an_endpoint_slice_with_its_conditions() {
    let text = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
endpoints:
- addresses: [10.244.1.2]
- addresses: [10.244.1.3]
  conditions: {ready: false}
- addresses: [10.244.1.4, 10.244.1.40]
  conditions: {ready: false, serving: true, terminating: true}
  hostname: web-0
  nodeName: n1
  zone: a
  hints: {forZones: [{name: a}], forNodes: [{name: n1}]}
  targetRef: {kind: Pod, name: web-0, namespace: default}
- addresses: [10.244.1.5]
  conditions: {ready: null, serving: null}
  targetRef: {kind: Node, name: n1}
ports:
- {name: http, port: 8080}
- {name: any, protocol: UDP}
";
    let Object::EndpointSlice(slice) = accepted(text) else { panic!() };
    assert_eq!(slice.service.as_deref(), Some("web"));
    let conditions: Vec<_> =
        slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(
        conditions,
        [(true, true, false), (false, false, false), (false, true, true), (true, true, false)]
    );
    let third = &slice.endpoints[2];
    assert_eq!(third.address.to_string(), "10.244.1.4");
    assert_eq!(third.hostname.as_deref(), Some("web-0"));
    assert_eq!(third.pod, Some(ObjectName::new("default", "web-0")));
    assert_eq!((third.hints.zones.len(), third.hints.nodes.len()), (1, 1));
    assert_eq!(slice.endpoints[3].pod, None);
    assert_eq!((slice.ports[0].protocol, slice.ports[0].port), (Protocol::Tcp, Some(8080)));
    assert_eq!((slice.ports[1].protocol, slice.ports[1].port), (Protocol::Udp, None));
}

#[test]
fn slices_that_cannot_be_honoured() {
    let slice = |lines: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s}}\n{lines}\n"
        )
    };
    let table = [
        ("endpoints: []", "1: {s}: addressType: is missing"),
        (
            "addressType: FQDN",
            "4: {s}: addressType: names as endpoints are not served, as by kube-proxy: give addresses",
        ),
        ("addressType: IPv5", "4: {s}: addressType: \"IPv5\" is none of IPv4, IPv6"),
        (
            "addressType: IPv4\nendpoints: [{addresses: []}]",
            "5: {s}: endpoints[0].addresses: is empty: an endpoint has an address",
        ),
        ("addressType: IPv4\nendpoints: [{}]", "5: {s}: endpoints[0].addresses: is missing"),
        (
            "addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]",
            "5: {s}: endpoints[0].addresses[0]: fd00::1 is no IPv4 address",
        ),
        (
            "addressType: IPv6\nendpoints: [{addresses: ['fe80::1']}]",
            "5: {s}: endpoints[0].addresses[0]: \"fe80::1\" is a link-local address",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], conditions: {ready: maybe}}]",
            "5: {s}: endpoints[0].conditions.ready: is text, not true or false",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], node: n1}]",
            "5: {s}: endpoints[0].node: there is no such field",
        ),
        (
            "addressType: IPv4\nports: [{port: 0}]",
            "5: {s}: ports[0].port: 0 is no port: 1 to 65535",
        ),
        (
            "addressType: IPv4\nports: [{port: 1}, {port: 2}]",
            "5: {s}: ports[1].name: \"\" is the name of another port",
        ),
        (
            "addressType: IPv4\nports: [{port: 1, protocol: ICMP}]",
            "5: {s}: ports[0].protocol: \"ICMP\" is none of TCP, UDP, SCTP",
        ),
    ];
    for (lines, expected) in table {
        let found = refused(&slice(lines));
        assert_eq!(found, [expected.replace("{s}", "EndpointSlice default/s")], "{lines}");
    }
    let many = vec!["{addresses: [10.0.0.1]}"; 1001].join(", ");
    let found = refused(&slice(&format!("addressType: IPv4\nendpoints: [{many}]")));
    assert_eq!(
        found,
        ["5: EndpointSlice default/s: endpoints: has 1001 entries: at most 1000 are possible"]
    );
}

#[test]
fn a_pod_as_the_network_sees_it() {
    let text = "\
apiVersion: v1
kind: Pod
metadata:
  name: web-0
  namespace: prod
  labels: {app: web}
  deletionTimestamp: 2026-01-01T00:00:00Z
spec:
  nodeName: n1
  hostname: web-0
  subdomain: web
  hostNetwork: true
  whateverElse: {a: 1}
  initContainers:
  - {name: once, ports: [{name: once, containerPort: 1}]}
  - {name: sidecar, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]}
  containers:
  - name: web
    image: nginx
    ports:
    - {name: http, containerPort: 8080}
    - {containerPort: 53, protocol: UDP, hostPort: 5353, hostIP: 192.0.2.1}
status:
  phase: Running
  podIP: 10.244.1.2
  podIPs: [{ip: 10.244.1.2}, {ip: 'fd00::2'}]
  conditions: [{type: Initialized, status: 'True'}, {type: Ready, status: 'False'}]
";
    let Object::Pod(pod) = accepted(text) else { panic!() };
    assert_eq!(pod.id.to_string(), "prod/web-0");
    let ports: Vec<_> = pod.ports.iter().map(|p| (p.name.as_ref(), p.port, p.protocol)).collect();
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    assert_eq!(ports, [("http", 8080, tcp), ("", 53, udp), ("metrics", 9090, tcp)]);
    assert_eq!((pod.ports[1].host_port, pod.ports[1].host_ip.is_some()), (Some(5353), true));
    assert_eq!(pod.addresses.len(), 2);
    assert_eq!((pod.ready, pod.finished, pod.terminating), (Some(false), false, true));
    assert!(pod.host_network);

    let status = |status: &str| {
        let text =
            format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{}}\n{status}\n");
        let Object::Pod(pod) = accepted(&text) else { panic!() };
        (pod.ready, pod.finished, pod.addresses.len())
    };
    assert_eq!(status(""), (None, false, 0));
    assert_eq!(status("status: {podIP: 10.0.0.1}"), (None, false, 1));
    assert_eq!(status("status: {phase: Pending}"), (Some(false), false, 0));
    assert_eq!(status("status: {phase: Failed}"), (None, true, 0));
    assert_eq!(
        status("status: {conditions: [{type: Ready, status: 'True'}]}"),
        (Some(true), false, 0)
    );

    let wrong = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  hostname: A\n  containers:\n  - ports: [{containerPort: 0}]\n";
    assert_eq!(
        refused(wrong),
        [
            "5: Pod default/a: spec.hostname: \"A\" is no DNS label: 1 to 63 of a-z, 0-9 and -, with a letter or digit \
             at both ends",
            "7: Pod default/a: spec.containers[0].ports[0].containerPort: 0 is no port: 1 to 65535",
        ]
    );
}

#[test]
fn nodes_namespaces_and_secrets() {
    let node = "\
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:1::/64'], taints: []}
status:
  addresses: [{type: Hostname, address: n1}, {type: ExternalIP, address: 192.0.2.1}, {type: InternalIP, address: 10.0.0.1}]
";
    let Object::Node(node) = accepted(node) else { panic!() };
    assert_eq!(node.zone().map(AsRef::as_ref), Some("a"));
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "192.0.2.1"]);
    assert_eq!(node.pod_cidrs.len(), 2);

    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: prod, labels: {team: a}}\nspec: {finalizers: [kubernetes]}\n";
    let Object::Namespace(namespace) = accepted(namespace) else { panic!() };
    let labels: Vec<String> = namespace.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["kubernetes.io/metadata.name=prod", "team=a"]);

    let secret = "\
apiVersion: v1
kind: Secret
metadata: {name: tls}
type: kubernetes.io/tls
data: {tls.crt: aGVsbG8=, tls.key: b2xk}
stringData: {tls.key: new}
";
    let Object::Secret(secret) = accepted(secret) else { panic!() };
    assert_eq!(secret.kind.as_ref(), "kubernetes.io/tls");
    assert_eq!(secret.data["tls.crt"].as_ref(), b"hello");
    assert_eq!(secret.data["tls.key"].as_ref(), b"new");
    assert!(!format!("{secret:?}").contains("new") && !format!("{secret:?}").contains("hello"));
    let wrong = "apiVersion: v1\nkind: Secret\nmetadata: {name: tls}\ndata: {a b: aGVsbG8=, c: pass word!}\n";
    assert_eq!(
        refused(wrong),
        [
            "4: Secret default/tls: data[a b]: the key is none: 1 to 253 letters, digits, - _ and .",
            "4: Secret default/tls: data[c]: is no base64: put clear text below stringData",
        ]
    );
}

#[test]
fn service_cidrs_have_one_range_of_each_family() {
    let cidrs = |list: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: more}}\nspec: {{cidrs: {list}}}\n\
             status: {{conditions: [{{type: Ready, status: 'True'}}]}}\n"
        )
    };
    let Object::ServiceCidr(both) = accepted(&cidrs("[10.43.0.0/16, 'fd00:43::/112']")) else {
        panic!()
    };
    assert_eq!((both.name.as_ref(), both.ranges.len()), ("more", 2));
    let wrong = |list: &str| refused(&cidrs(list)).join("\n");
    assert!(wrong("[10.43.0.0/16, 10.44.0.0/16]").contains("spec.cidrs[1]: is a second range"));
    assert!(wrong("[]").contains("spec.cidrs: has no range"));
    assert!(wrong("[10.43.0.0]").contains("spec.cidrs[0]"));
}
