//! What is shipped for Kubernetes clusters: every name that it refers to is there, and its parts agree.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

#[path = "common/role.rs"]
mod role;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use conf::source::kubernetes::resource::WATCHED;
use conf::{MetricsListen, ObjectSource};
use serde_json::Value;

const FILE: &str = "conf/kubernetes/weft.yaml";

struct Shipped(Vec<Value>);

impl Shipped {
    fn read() -> Self {
        Self(role::documents(&fs::read_to_string(FILE).unwrap()))
    }

    fn all(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    fn one(&self, kind: &str) -> &Value {
        let all = self.all(kind);
        assert_eq!(all.len(), 1, "{kind}");
        all[0]
    }

    fn pod(&self) -> &Value {
        &self.one("DaemonSet")["spec"]["template"]["spec"]
    }

    fn config(&self) -> conf::NodeConfig {
        let text = self.one("ConfigMap")["data"]["weft.toml"].as_str().unwrap();
        conf::parse(Path::new("weft.toml"), text).unwrap_or_else(|errors| panic!("{errors}"))
    }
}

fn names(list: &Value) -> BTreeSet<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().flat_map(|of| pod[of].as_array().unwrap())
}

#[test]
fn every_object_says_what_it_is_and_where() {
    for object in Shipped::read().0 {
        let title = format!("{} {}", object["kind"], object["metadata"]["name"]);
        assert!(object["apiVersion"].is_string() && object["kind"].is_string(), "{title}");
        assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/name"], "weft", "{title}");
        let is_of_cluster = object["kind"].as_str().unwrap().starts_with("ClusterRole");
        let namespace = object["metadata"]["namespace"].as_str();
        assert_eq!(namespace, (!is_of_cluster).then_some("kube-system"), "{title}");
    }
}

#[test]
fn the_roles_are_bound_to_the_daemons_account() {
    let shipped = Shipped::read();
    let account = shipped.one("ServiceAccount")["metadata"]["name"].as_str().unwrap();
    assert_eq!(shipped.pod()["serviceAccountName"], account);
    for (binding, role) in [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")] {
        let binding = shipped.one(binding);
        assert_eq!(binding["roleRef"]["kind"], role);
        assert_eq!(binding["roleRef"]["name"], shipped.one(role)["metadata"]["name"]);
        let subject = &binding["subjects"][0];
        assert_eq!(
            (subject["name"].as_str(), &subject["kind"]),
            (Some(account), &"ServiceAccount".into())
        );
        assert_eq!(subject["namespace"], shipped.one("ServiceAccount")["metadata"]["namespace"]);
    }
}

/// The same as `netns/kubernetes.rs` shows of the requests, for whoever cannot run that.
#[test]
fn what_is_watched_is_granted_and_nothing_else_is() {
    let granted = role::granted(&fs::read_to_string(FILE).unwrap());
    let read = |verb: &str| -> BTreeSet<(String, String)> {
        let rules = granted.iter().filter(|rule| rule.verb == verb);
        rules.map(|rule| (rule.group.clone(), rule.resource.clone())).collect()
    };
    let watched: BTreeSet<(String, String)> =
        WATCHED.iter().map(|it| (it.group().to_owned(), it.plural.to_owned())).collect();
    assert_eq!(read("list"), watched);
    assert_eq!(read("watch"), watched);
    assert!(granted.iter().all(|rule| rule.resource != "secrets" && rule.verb != "delete"));
    assert!(granted.iter().all(|rule| rule.verb != "*" && rule.resource != "*"));
}

#[test]
fn every_volume_is_there_and_used() {
    let shipped = Shipped::read();
    let pod = shipped.pod();
    let mounted: BTreeSet<&str> =
        containers(pod).flat_map(|container| names(&container["volumeMounts"])).collect();
    assert_eq!(mounted, names(&pod["volumes"]));
    let volumes = pod["volumes"].as_array().unwrap();
    let config = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str()).unwrap();
    assert_eq!(shipped.one("ConfigMap")["metadata"]["name"], config);
    // The one object that people make: the page says how.
    let secret = volumes.iter().find_map(|volume| volume["secret"]["secretName"].as_str()).unwrap();
    let page = fs::read_to_string("docs/kubernetes.md").unwrap();
    assert!(page.contains(&format!("create secret generic {secret}")), "{secret}");
}

#[test]
fn the_daemon_set_finds_its_pods_and_disturbs_little() {
    let shipped = Shipped::read();
    let set = &shipped.one("DaemonSet")["spec"];
    assert_eq!(set["selector"]["matchLabels"], set["template"]["metadata"]["labels"]);
    assert_eq!(set["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 1);
    let pod = shipped.pod();
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["tolerations"][0]["operator"], "Exists");
    let version = format!("ghcr.io/weft-net/weft:{}", env!("CARGO_PKG_VERSION"));
    assert!(containers(pod).all(|container| container["image"] == version.as_str()), "{version}");
}

/// What waits for the daemon to be ready, run as it is shipped: by the shell of this machine, in a directory.
#[test]
fn the_runtime_gets_its_configuration_when_the_node_is_ready_and_the_end_is_at_once() {
    let shipped = Shipped::read();
    let container = &shipped.pod()["containers"][1];
    let place = tempfile::tempdir().unwrap();
    let (bin, root) = (place.path().join("bin"), place.path().display().to_string());
    for directory in ["bin", "share", "net.d"] {
        fs::create_dir(place.path().join(directory)).unwrap();
    }
    fs::copy("conf/cni/10-weft.conflist", place.path().join("share/10-weft.conflist")).unwrap();
    let here = |text: &str| {
        text.replace("/usr/local/share/weft", &format!("{root}/share"))
            .replace("/host/net.d", &format!("{root}/net.d"))
    };
    let weft = |ready: bool| {
        let path = bin.join("weft.new");
        fs::write(&path, format!("#!/bin/sh\nprintf '{{\\n  \"ready\": {ready}\\n}}\\n'\n"))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&path, bin.join("weft")).unwrap();
    };
    weft(false);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let script = here(container["command"][2].as_str().unwrap());
    let mut shell =
        Command::new("/bin/sh").args(["-c", &script]).env("PATH", &path).spawn().unwrap();
    let probe = container["readinessProbe"]["exec"]["command"].as_array().unwrap();
    let probe: Vec<String> = probe.iter().map(|word| here(word.as_str().unwrap())).collect();
    let is_ready = || Command::new(&probe[0]).args(&probe[1..]).status().unwrap().success();
    assert!(!is_ready());
    weft(true);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_ready() {
        assert!(Instant::now() < deadline, "there is no configuration");
        std::thread::yield_now();
    }
    let text = fs::read_to_string(place.path().join("net.d/10-weft.conflist")).unwrap();
    assert!(text.contains("weft-cni"), "{text}");
    // As the runtime stops a container.
    let stopped = Instant::now();
    let pid = rustix::process::Pid::from_child(&shell);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(shell.wait().unwrap().success());
    assert!(stopped.elapsed() < Duration::from_secs(5), "{:?}", stopped.elapsed());
}

#[test]
fn the_configuration_is_right_and_the_manifest_follows_it() {
    let shipped = Shipped::read();
    let config = shipped.config();
    assert_eq!(config.objects.source, ObjectSource::Kubernetes);
    let (pod, daemon) = (shipped.pod(), &shipped.pod()["containers"][0]);
    let mounts = daemon["volumeMounts"].as_array().unwrap();
    let is_mounted = |path: &Path| {
        let mut places = mounts.iter().map(|mount| mount["mountPath"].as_str().unwrap());
        places.any(|place| path.starts_with(place))
    };
    let paths = &config.paths;
    for path in [&paths.state, &paths.run, &config.overlay.key_file, &"/etc/weft/weft.toml".into()]
    {
        assert!(is_mounted(path), "{}", path.display());
    }
    let MetricsListen::At(metrics) = config.metrics.listen else { panic!("probes ask there") };
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(daemon[probe]["httpGet"]["port"], metrics.port(), "{probe}");
        assert_eq!(daemon[probe]["httpGet"]["host"], metrics.ip().to_string(), "{probe}");
    }
    // The node's name reaches the daemon.
    assert_eq!(daemon["env"][0]["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");
    let arguments = daemon["args"].as_array().unwrap();
    assert!(
        arguments.contains(&format!("$({})", daemon["env"][0]["name"].as_str().unwrap()).into())
    );
    // The DNS answers where its Service is.
    let dns = shipped.one("Service");
    assert_eq!(dns["spec"]["clusterIP"], config.dns.addresses[0].to_string());
    assert!(dns["spec"]["selector"].is_null(), "no pod stands behind it");
    assert_eq!(pod["dnsPolicy"], "Default");
}

#[test]
fn what_concerns_the_network_is_read_by_weft_itself() {
    let manifests = conf::cluster::parse::parse(&fs::read_to_string(FILE).unwrap());
    assert!(manifests.refused.is_empty(), "{:?}", manifests.refused);
    assert_eq!(manifests.accepted.len(), 1, "the Service");
}

#[test]
fn the_kustomization_names_what_is_there() {
    let text = fs::read_to_string("conf/kubernetes/kustomization.yaml").unwrap();
    let kustomization: Value = role::documents(&text).remove(0);
    for resource in kustomization["resources"].as_array().unwrap() {
        let path = Path::new("conf/kubernetes").join(resource.as_str().unwrap());
        assert!(path.is_file(), "{}", path.display());
    }
    let recipe = fs::read_to_string("conf/kubernetes/Containerfile").unwrap();
    for name in ["weft", "weftd", "weft-cni"] {
        assert!(recipe.contains(&format!("/usr/local/bin/{name}")), "{name}");
    }
}
