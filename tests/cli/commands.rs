//! The command line from outside: what it prints, how it exits, and that the demo works and leaves nothing
//! behind, however it ends.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A place of its own for labs, so that tests see nobody else's.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        // Not in a long $TMPDIR: the path of a Unix socket has at most 107 bytes.
        Self { dir: tempfile::Builder::new().prefix("weft-cli-").tempdir_in("/tmp").unwrap() }
    }

    fn weft(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.env("WEFT_LAB_DIR", self.labs());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.weft().args(arguments).output().unwrap()
    }

    fn labs(&self) -> std::path::PathBuf {
        self.dir.path().join("labs")
    }

    /// Nothing of any lab is left: no process that was started from it, no mount, no file, no directory.
    fn assert_clean(&self) {
        let labs = self.labs();
        let text = labs.to_string_lossy().into_owned();
        eventually("its processes are gone", || processes_of(&labs).is_empty());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&text), "{mounts}");
        assert!(!labs.exists(), "{text} is left");
    }
}

fn processes_of(labs: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let text = labs.to_string_lossy().into_owned();
    entries
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .filter(|line| line.contains(&text))
        .collect()
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        pause();
    }
}

/// Another process's state can only be looked at again and again.
#[allow(clippy::disallowed_methods)]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether the machine forbids labs to this user; then says so.
fn is_forbidden(stderr: &str) -> bool {
    let forbidden = stderr.contains("does not let an ordinary user")
        || stderr.contains("/dev/net/tun cannot be opened");
    if forbidden {
        eprintln!("skipped: {stderr}");
    }
    forbidden
}

#[test]
fn exit_codes_tell_success_failure_and_wrong_usage() {
    let place = Place::new();
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["version"], 0),
        (&["lab", "list"], 0),
        (&["status", "--socket", "/nowhere/weftd.sock"], 1),
        (&["lab", "show", "--lab", "nobody"], 1),
        (&[], 2),
        (&["frobnicate"], 2),
        (&["demo", "--nodes", "1"], 2),
        (&["status", "--lab", "x"], 2),
        (&["port", "add", "eth0", "not-a-mac"], 2),
        (&["objects", "--socket", "/nowhere/weftd.sock"], 1),
        (&["validate"], 2),
        (&["validate", "/nowhere"], 1),
        (&["explain", "--from", "n1", "--to", "a/b"], 2),
        (&["explain", "--from", "n1", "--to", "a/b", "--port", "1", "--manifests", "/nowhere"], 1),
        (&["explain", "--from", "n1", "--to", "a/b", "--port", "1", "--config", "x"], 2),
        (&["services", "--socket", "/nowhere/weftd.sock"], 1),
        (&["dns", "query", "a", "--manifests", "/nowhere"], 1),
        (&["dns", "query", "a", "--manifests", "/tmp", "--node", "n1"], 2),
        (&["port", "remove", "eth0", "--node", "n1", "--lab", "nobody"], 1),
    ] {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn errors_say_what_to_do() {
    let place = Place::new();
    let output = place.run(&["status", "--socket", "/nowhere/weftd.sock"]);
    let text = stderr(&output);
    assert!(text.contains("/nowhere/weftd.sock") && text.contains("systemctl start"), "{text}");

    let text = stderr(&place.run(&["lab", "exec", "--lab", "blue", "n1", "--", "true"]));
    assert!(text.contains("no lab `blue`") && text.contains("weft lab up --lab blue"), "{text}");
}

#[test]
fn json_is_for_programs() {
    let place = Place::new();
    let output = place.run(&["lab", "list", "-o", "json"]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), serde_json::json!([]));
}

/// Objects that need no cluster.
const SHOP: &str = "\
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: default}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIP: 10.244.1.9}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: default, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIP: 10.244.1.5}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.7, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: docs, namespace: default}
spec: {type: ExternalName, externalName: docs.example.org}
";

#[test]
fn manifests_are_explained_with_nothing_running() {
    let place = Place::new();
    let manifests = place.dir.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("shop.yaml"), SHOP).unwrap();
    let manifests = manifests.to_str().unwrap();
    let ask = |more: &[&str]| {
        let output = place.run(&[&["explain", "--manifests", manifests], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        output
    };
    let question = ["--from", "default/client", "--to", "default/web", "--port", "http"];
    let output = ask(&[&question[..], &["-o", "json"]].concat());
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).unwrap(),
        serde_json::json!({
            "verdict": "forward",
            "service": "default/web:http",
            "endpoints": ["10.244.1.5:8080"],
            "masquerade": false,
            "reason": "the one endpoint of the cluster (1 of 1 known)",
            "egress": {
                "verdict": "allow",
                "isolating": [],
                "rule": null,
                "reason": "no policy is for the pod default/client in this direction",
            },
            "ingress": {
                "verdict": "allow",
                "isolating": [],
                "rule": null,
                "reason": "no policy is for the pod default/web-0 in this direction",
            },
        })
    );
    assert_eq!(
        stdout(&ask(&question)),
        "\
verdict   forward
why       the one endpoint of the cluster (1 of 1 known)
from      pod default/client on n1, 10.244.1.9
to        Service default/web, TCP to 10.96.0.7:80
service   default/web:http
decided   by the switch of n1
rule      from a pod to the cluster IP: internalTrafficPolicy counts, which is Cluster
source    kept: 10.244.1.9
egress    allow: no policy is for the pod default/client in this direction
ingress   allow: no policy is for the pod default/web-0 in this direction

ENDPOINT         POD            NODE  STATE  MAY BE CHOSEN
10.244.1.5:8080  default/web-0  n1    ready  yes
"
    );
    // An answer that is no is an answer.
    let drop = ["--from", "default/client", "--to", "10.96.0.99", "--port", "80", "-o", "json"];
    let answer: Value = serde_json::from_slice(&ask(&drop).stdout).unwrap();
    assert_eq!((&answer["verdict"], &answer["service"]), (&"drop".into(), &Value::Null));
}

#[test]
fn names_of_manifests_are_answered_with_nothing_running() {
    let place = Place::new();
    let manifests = place.dir.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("shop.yaml"), SHOP).unwrap();
    let manifests = manifests.to_str().unwrap();
    let ask = |question: &[&str]| -> Value {
        let more = ["--manifests", manifests, "-o", "json"];
        let output = place.run(&[&["dns", "query"], question, &more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let web = ask(&["web.default.svc.cluster.local"]);
    assert_eq!(web["rcode"], "NOERROR");
    assert_eq!(
        web["answer"],
        serde_json::json!([
            {"name": "web.default.svc.cluster.local.", "ttl": 5, "type": "A", "data": "10.96.0.7"}
        ])
    );
    let srv = ask(&["_http._tcp.web.default.svc.cluster.local", "SRV"]);
    assert_eq!(srv["answer"][0]["data"], "0 100 80 web.default.svc.cluster.local.");
    assert_eq!(srv["additional"][0]["data"], "10.96.0.7");
    let docs = ask(&["docs.default.svc.cluster.local", "AAAA"]);
    assert_eq!(docs["rcode"], "NOERROR");
    assert_eq!(docs["answer"][0]["data"], "docs.example.org.");
    let none = ask(&["none.default.svc.cluster.local", "--from", "default/client"]);
    assert_eq!(
        (&none["rcode"], &none["authority"][0]["type"]),
        (&"NXDOMAIN".into(), &"SOA".into())
    );
    // A name of another namespace, found along the pod's search path.
    let walked = ask(&["web.default.default.svc.cluster.local", "--from", "default/client"]);
    assert_eq!(walked["answer"][1]["data"], "10.96.0.7");
    let nobody = ["dns", "query", "a", "--manifests", manifests, "--from", "default/nobody"];
    let output = place.run(&nobody);
    assert!(!output.status.success() && stderr(&output).contains("default/nobody"));
}

#[test]
fn the_program_is_what_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    for (name, arguments, expected) in
        [("weft-cni", &[][..], "supportedVersions"), ("weftd", &["--help"], "--config")]
    {
        let path = dir.path().join(name);
        symlink(env!("CARGO_BIN_EXE_weft"), &path).unwrap();
        let output = Command::new(path).args(arguments).env("CNI_COMMAND", "VERSION").output();
        let text = stdout(&output.unwrap());
        assert!(text.contains(expected), "{name}: {text}");
    }
}

#[test]
fn the_demo_passes_and_cleans_up() {
    let place = Place::new();
    let output = place.run(&["demo", "--nodes", "2", "--pods", "2", "-o", "json"]);
    if is_forbidden(&stderr(&output)) {
        return;
    }
    assert!(output.status.success(), "{}{}", stderr(&output), stdout(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["passed"], true);
    assert_eq!(report["nodes"].as_array().unwrap().len(), 2);
    // 4 × 3 between pods, 4 × 2 from pods to nodes, and as many back.
    for family in ["pings_v4", "pings_v6"] {
        let pairs = report[family].as_array().unwrap();
        assert_eq!(pairs.len(), 28, "{family}");
        assert!(pairs.iter().all(|pair| pair["ping"]["received"] == pair["ping"]["sent"]));
    }
    assert_eq!(report["seen"].as_array().unwrap().len(), 56);
    assert_eq!(report["speeds"].as_array().unwrap().len(), 4);
    assert_eq!(report["failure"]["same_lease"], true);
    let service = &report["service"];
    assert_eq!(
        (&service["name"], &service["rewritten"]),
        (&"web.lab.svc.cluster.local".into(), &0.into())
    );
    let served = service["served"].as_object().unwrap();
    assert_eq!(served.keys().collect::<Vec<_>>(), ["n1-p1", "n2-p1"]);
    assert_eq!(served.values().map(|count| count.as_u64().unwrap()).sum::<u64>(), 40);
    for account in report["accounts"].as_array().unwrap() {
        assert_eq!(account["counters"]["queued"], 0);
    }
    place.assert_clean();
}

/// Starts a demo and gives it back in the middle of its work: daemons run, pods are attached.
fn demo_at_work(place: &Place) -> Option<Child> {
    let mut child = place
        .weft()
        .args(["demo", "--nodes", "2", "--pods", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    for line in lines {
        if line.contains("pods attached") {
            return Some(child);
        }
    }
    let output = child.wait_with_output().unwrap();
    assert!(is_forbidden(&stderr(&output)), "{}", stderr(&output));
    None
}

fn signal(child: &Child, signal: i32) {
    let status = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

#[test]
fn an_interrupted_demo_cleans_up_and_fails() {
    for number in [2, 15] {
        let place = Place::new();
        let Some(child) = demo_at_work(&place) else { return };
        assert!(!processes_of(&place.labs()).is_empty());
        signal(&child, number);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        place.assert_clean();
    }
}

#[test]
fn a_demo_that_is_killed_takes_everything_but_files_with_it() {
    let place = Place::new();
    let Some(mut child) = demo_at_work(&place) else { return };
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("its daemons have ended", || processes_of(&place.labs()).is_empty());
    let listed = stdout(&place.run(&["lab", "list"]));
    assert!(listed.contains("abandoned"), "{listed}");
    assert!(place.run(&["lab", "down", "--all"]).status.success());
    place.assert_clean();
}

#[test]
fn a_lab_stays_is_changed_by_later_commands_and_goes() {
    let place = Place::new();
    let output = place.run(&["lab", "up", "--nodes", "2", "--pods", "1"]);
    if is_forbidden(&stderr(&output)) {
        return;
    }
    let succeed = |arguments: &[&str]| {
        let output = place.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    };
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!place.run(&["lab", "up"]).status.success(), "there is one of that name");

    let shown = |place: &Place| -> Value {
        serde_json::from_slice(&place.run(&["lab", "show", "-o", "json"]).stdout).unwrap()
    };
    assert_eq!(shown(&place)["nodes"].as_array().unwrap().len(), 2);
    let mut watch =
        place.weft().args(["watch", "--node", "n1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut seen = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
    succeed(&["lab", "add-node"]);
    assert!(seen.any(|line| line.contains("  info   node-up  ") && line.contains("node n3 is up")));
    watch.kill().unwrap();
    watch.wait().unwrap();
    let last = succeed(&["leases", "--node", "n3"]);
    assert!(last.starts_with("LEASE ") && last.matches("  held  ").count() == 6, "{last}");
    assert!(last.contains(" n3* ") && last.lines().all(|line| line.len() <= 80), "{last}");
    let nodes = succeed(&["nodes", "--node", "n1"]);
    assert!(nodes.lines().all(|line| line.len() <= 120), "{nodes}");
    assert!(succeed(&["lab", "add-pod", "n3"]).contains("n3-p1: 10.244."));
    let pods: Value =
        serde_json::from_str(&succeed(&["pods", "--local", "--node", "n3", "-o", "json"])).unwrap();
    assert_eq!(pods[0]["name"], "n3-p1");
    let interfaces = succeed(&["lab", "exec", "n3-p1", "--", "cat", "/proc/net/dev"]);
    assert!(interfaces.contains("eth0:"), "{interfaces}");
    let output = place.run(&["lab", "exec", "n3-p1", "--", "sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7));

    let names = succeed(&["lab", "exec", "n1-p1", "--", "cat", "/etc/hosts"]);
    for name in ["n1", "n2", "n3", "n1-p1", "n2-p1", "n3-p1", "world"] {
        assert!(names.lines().any(|line| line.split(' ').nth(1) == Some(name)), "{name}: {names}");
    }
    let outside = fs::read_to_string("/etc/hosts").unwrap_or_default();
    assert!(!outside.contains("n3-p1"), "the machine's own names have changed: {outside}");
    // 2 is for names that are not found; 1 for machines without the program.
    let resolved = place.run(&["lab", "exec", "n1-p1", "--", "getent", "hosts", "n3-p1"]);
    assert!(matches!(resolved.status.code(), Some(0 | 1)), "{}", stderr(&resolved));

    let alive = |place: &Place| -> Vec<String> {
        let output = place.run(&["nodes", "--node", "n1", "-o", "json"]);
        let nodes: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let nodes = nodes.as_array().cloned().unwrap_or_default();
        let alive = nodes.iter().filter(|node| node["state"] == "alive");
        let mut names: Vec<_> =
            alive.filter_map(|node| Some(node["name"].as_str()?.to_owned())).collect();
        names.sort();
        names
    };
    eventually("three nodes are alive", || alive(&place) == ["n1", "n2", "n3"]);
    succeed(&["lab", "stop", "n2"]);
    eventually("n2 has left", || alive(&place) == ["n1", "n3"]);
    succeed(&["lab", "start", "n2"]);
    eventually("n2 is back", || alive(&place) == ["n1", "n2", "n3"]);
    for _ in 0..4 {
        let pid = shown(&place)["nodes"][1]["daemon"]["pid"].as_u64().unwrap();
        succeed(&["lab", "kill", "n2"]);
        // At most the first thread, which waits to be collected: a second would hold files and devices.
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        assert!(tasks <= 1, "{tasks} threads of process {pid} are left");
        succeed(&["lab", "start", "n2"]);
    }
    succeed(&["lab", "stop", "n2"]);
    let output = place.run(&["lab", "add-pod", "n2"]);
    assert_eq!(output.status.code(), Some(1), "no daemon: {}", stdout(&output));
    assert!(stderr(&output).contains("attaching pod n2-p2"), "{}", stderr(&output));
    assert_eq!(
        shown(&place)["nodes"][1]["pods"].as_array().unwrap().len(),
        1,
        "half a pod is left"
    );
    succeed(&["lab", "start", "n2"]);
    succeed(&["lab", "cut", "n3"]);
    succeed(&["lab", "heal", "n3"]);
    succeed(&["lab", "set-mtu", "n3", "1400"]);
    succeed(&["lab", "remove-pod", "n1-p1"]);
    succeed(&["lab", "remove-node", "n3"]);
    let state = shown(&place);
    assert_eq!(state["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(state["nodes"][0]["pods"].as_array().unwrap().len(), 0);
    assert!(succeed(&["status", "--node", "n1"]).contains("ready"));

    succeed(&["lab", "down"]);
    place.assert_clean();
}

const WEB: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
spec:
  clusterIP: 10.96.0.7
  ports:
  - port: 80
";

#[test]
fn manifests_are_checked_without_a_daemon() {
    let place = Place::new();
    let dir = place.dir.path().join("manifests");
    fs::create_dir(&dir).unwrap();
    let validate =
        |arguments: &[&str]| place.run(&[&["validate", dir.to_str().unwrap()], arguments].concat());
    let output = validate(&[]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), "0 accepted, 0 refused, 0 ignored\n");

    fs::write(dir.join("web.yaml"), WEB).unwrap();
    let output = validate(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        stdout(&output),
        "ACCEPTED          AT          BUT\n\
         Service shop/web  web.yaml:1  -\n\n\
         1 accepted, 0 refused, 0 ignored\n"
    );

    let wrong =
        WEB.replace("name: web", "name: other").replace("port: 80", "port: 80\n    nodePort: 1");
    fs::write(dir.join("other.yaml"), wrong).unwrap();
    fs::write(dir.join("third.json"), "{\"kind\": \"Deployment\", \"apiVersion\": \"apps/v1\"}")
        .unwrap();
    let output = validate(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stdout(&output),
        "ACCEPTED          AT          BUT\n\
         Service shop/web  web.yaml:1  -\n\n\
         IGNORED     AT            WHY\n\
         Deployment  third.json:1  Weft makes no pods: it serves those that the runtime attaches\n\n\
         other.yaml:10: spec.ports[0].nodePort: a Service of type ClusterIP has no node ports: set spec.type to \
         NodePort (Service shop/other)\n\n\
         1 accepted, 1 refused, 1 ignored\n"
    );

    // What is right by itself, and wrong beside others.
    fs::write(dir.join("other.yaml"), WEB.replace("name: web", "name: zoo")).unwrap();
    let output = validate(&["-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["refused"][0]["file"], "other.yaml");
    assert_eq!(found["refused"][0]["line"], 7);
    assert_eq!(found["refused"][0]["field"], "spec.clusterIP");
    assert_eq!(
        found["refused"][0]["reason"],
        "the Service shop/web has this address: give each its own, or none"
    );
    assert_eq!(found["accepted"][0]["name"], "web");

    let one = dir.join("web.yaml");
    assert_eq!(place.run(&["validate", one.to_str().unwrap()]).status.code(), Some(0));
    let config = place.dir.path().join("weft.toml");
    fs::write(&config, "network = \"a\"\nseeds = []\n[services]\nranges = [\"10.112.0.0/12\"]\n")
        .unwrap();
    let output =
        place.run(&["validate", one.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("is not in the range 10.112.0.0/12 of Services"),
        "{}",
        stdout(&output)
    );
}
