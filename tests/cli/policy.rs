//! `weft policies` and `weft policy` from outside, on manifests alone.

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

const PODS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {containers: [{ports: [{name: http, containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {containers: [{ports: [{name: sql, containerPort: 5432}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: probe, namespace: other}, spec: {containers: []}, status: {podIP: 10.244.7.7}}
---
";

const POLICIES: &str = "
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny, namespace: shop}, spec: {podSelector: {}}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: sql}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: nobody, namespace: shop}, spec: {podSelector: {matchLabels: {app: none}}, policyTypes: [Egress]}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: probes}, spec: {tier: Admin, priority: 7, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: other}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]}}
";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write("manifests/pods.yaml", PODS);
        place.write("manifests/policies.yaml", POLICIES);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn weft(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.current_dir(self.0.path()).args(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.weft(&[arguments, &["-o", "json"][..]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn the_matrix_has_every_ordered_pair() {
    let place = Place::new();
    let matrix = |port: &[&str]| {
        place.json(&[&["policy", "matrix", "--manifests", "manifests"][..], port].concat())
    };
    assert_eq!(
        matrix(&["--port", "80"]),
        json!({
            "other/probe": {"other/probe": true, "shop/db": true, "shop/web": true},
            "shop/db": {"other/probe": true, "shop/db": true, "shop/web": false},
            "shop/web": {"other/probe": true, "shop/db": false, "shop/web": true},
        })
    );
    // A name is each receiver's own number, and who has none is not reached.
    let by_name = matrix(&["--port", "sql"]);
    assert_eq!(
        by_name["shop/web"],
        json!({"other/probe": false, "shop/db": true, "shop/web": false})
    );
    assert_eq!(by_name["other/probe"]["shop/db"], false);
    assert_eq!(matrix(&["--proto", "icmp"])["other/probe"]["shop/web"], false);
    assert_eq!(matrix(&["--proto", "UDP", "--port", "80"])["other/probe"]["shop/web"], false);
    let text = place.weft(&["policy", "matrix", "--manifests", "manifests", "--port", "80"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("7 of 9 pairs reach each other"), "{text}");
    let nonsense = place.weft(&["policy", "matrix", "--manifests", "manifests"]);
    assert_eq!(nonsense.status.code(), Some(1));
}

#[test]
fn expectations_hold_or_say_why_not() {
    let place = Place::new();
    place.write(
        "tests/good.yaml",
        "manifests: ../manifests
checks:
- {from: shop/web, to: shop/db, port: sql, reachable: true}
- {from: shop/web, to: shop/db, port: [80, 5433], reachable: false}
- {from: other/*, to: shop/*, port: 80, reachable: true}
- {from: 203.0.113.9, to: shop/web, protocol: ICMP, reachable: false}
",
    );
    let good = place.weft(&["policy", "test", "tests/good.yaml"]);
    assert_eq!(String::from_utf8_lossy(&good.stdout), "4 passed, 0 failed\n");
    assert!(good.status.success());

    place.write(
        "tests/bad.yaml",
        "checks:
- {name: the shop is closed, from: other/probe, to: shop/web, port: 80, reachable: false}
- {from: shop/db, to: shop/web, port: http, reachable: true}
- {from: shop/nobody, to: shop/web, port: 80, reachable: true}
",
    );
    let bad = place.weft(&["policy", "test", "tests/bad.yaml", "--manifests", "manifests"]);
    assert_eq!(bad.status.code(), Some(1));
    let text = String::from_utf8(bad.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with(
        "checks[0] (the shop is closed): other/probe -> shop/web TCP 80 should be not reachable"
    ));
    assert!(
        lines[0].contains("rule 0 for ingress of the policy probes (admin tier) allows it"),
        "{text}"
    );
    assert!(lines[1].contains("isolated for ingress by shop/deny"), "{text}");
    assert!(lines[2].contains("\"shop/nobody\" is no pod"), "{text}");
    assert_eq!(lines[3], "0 passed, 3 failed");

    // Of what is refused nothing can be said.
    place.write("manifests/wrong.yaml", "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: x}, spec: {podSelektor: {}}}\n");
    let refused = place.weft(&["policy", "test", "tests/good.yaml"]);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("wrong.yaml:1: spec.podSelektor"), "{text}");
}

#[test]
fn a_change_is_told_by_its_pairs_and_ports() {
    let place = Place::new();
    place.write("new/pods.yaml", PODS);
    let new = POLICIES
        .replace("port: sql", "port: 5000, endPort: 5432")
        .replace("number: 80", "number: 81");
    place.write("new/policies.yaml", &new);
    assert_eq!(
        place.json(&["policy", "diff", "manifests", "new"])["pairs"],
        json!([
            {"from": "other/probe", "to": "shop/db", "allowed": ["TCP 81"], "denied": ["TCP 80"]},
            {"from": "other/probe", "to": "shop/web", "allowed": ["TCP 81"], "denied": ["TCP 80"]},
            {"from": "shop/web", "to": "shop/db", "allowed": ["TCP 5000-5431"], "denied": []},
        ])
    );
    let diff = |arguments: &[&str]| place.weft(&[&["policy", "diff"][..], arguments].concat());
    assert_eq!(diff(&["manifests", "new"]).status.code(), Some(0));
    assert_eq!(diff(&["--exit-code", "manifests", "new"]).status.code(), Some(1));
    let same = diff(&["--exit-code", "manifests", "manifests"]);
    assert!(same.status.success());
    assert_eq!(String::from_utf8_lossy(&same.stdout), "0 pairs change\n");
    place.write("none/pods.yaml", PODS);
    let gone = place.json(&["policy", "diff", "manifests", "none"]);
    let pair = gone["pairs"].as_array().unwrap().iter().find(|pair| pair["from"] == "shop/db");
    assert_eq!(pair.unwrap()["allowed"], json!(["everything"]));
}

#[test]
fn policies_are_listed_with_whom_they_are_for() {
    let place = Place::new();
    let list = place.json(&["policies", "--manifests", "manifests"]);
    let of = |name: &str| {
        let all = list.as_array().unwrap();
        all.iter().find(|policy| policy["name"] == name).unwrap().clone()
    };
    assert_eq!(of("deny")["pods"], json!(["shop/db", "shop/web"]));
    assert_eq!(of("deny")["egress"], Value::Null);
    assert_eq!(of("nobody")["pods"], json!([]));
    assert_eq!((&of("probes")["tier"], &of("probes")["priority"]), (&json!("admin"), &json!(7)));
    assert_eq!(of("db")["ingress"]["rules"][0]["action"], "accept");
    let text = place.weft(&["policies", "--manifests", "manifests", "--namespace", "shop"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("shop/deny") && !text.contains("probes"), "{text}");
    assert!(text.contains("denies all"), "{text}");
}
