//! The sample files are right: users copy them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cni::config::{NetConf, Strictness};
use conf::NodeConfig;

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn load(name: &str) -> NodeConfig {
    conf::load(&file("examples").join(name)).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn every_example_is_accepted() {
    let folder = std::fs::read_dir(file("examples")).expect("conf/examples exists");
    let names: Vec<_> = folder.map(|entry| entry.expect("is readable").file_name()).collect();
    assert!(names.len() >= 4, "{names:?}");
    for name in names {
        load(name.to_str().expect("names are ASCII"));
    }
}

#[test]
fn the_full_example_says_nothing_that_the_minimal_one_does_not() {
    assert_eq!(load("full.toml"), load("minimal.toml"));
}

#[test]
fn the_dual_stack_example_has_both_families() {
    let ranges = load("dual-stack.toml").lease.ranges;
    assert_eq!(ranges.iter().map(|range| range.is_ipv6()).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn the_network_list_is_what_the_plugin_reads() {
    let text = std::fs::read_to_string(file("cni/10-weft.conflist")).expect("is readable");
    let list: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
    let plugins = list["plugins"].as_array().expect("has plugins");
    assert_eq!(plugins[0]["type"], "weft-cni");
    for plugin in plugins {
        // As a runtime does: CNI specification 1.1, "Deriving execution configuration".
        let mut plugin = plugin.clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin["name"] = list["name"].clone();
        let read = NetConf::read(&plugin, Strictness::Strict).expect("the plugin takes it");
        assert_eq!(read.socket, load("minimal.toml").paths.socket());
    }
}

#[test]
fn the_unit_agrees_with_the_defaults() {
    let text = std::fs::read_to_string(file("systemd/weftd.service")).expect("is readable");
    let unit = Unit::parse(&text);
    let paths = load("minimal.toml").paths;
    assert_eq!(unit.one("Service", "Type"), "notify");
    assert_eq!(
        unit.one("Service", "ExecStart"),
        format!("/usr/local/bin/weftd --config {}", conf::DEFAULT_PATH)
    );
    let state = Path::new("/var/lib").join(unit.one("Service", "StateDirectory"));
    assert_eq!(state, paths.state);
    let run = Path::new("/run").join(unit.one("Service", "RuntimeDirectory"));
    assert_eq!(run, paths.run);
    assert_eq!(unit.one("Service", "RuntimeDirectoryPreserve"), "yes");
    let kinds = unit.one("Service", "RestrictAddressFamilies");
    for kind in ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"] {
        assert!(kinds.split(' ').any(|word| word == kind), "{kind}");
    }
    assert_eq!(unit.one("Install", "WantedBy"), "multi-user.target");
}

/// A systemd unit as systemd.syntax(7) has it, as far as ours goes: no continued lines, and no repeated keys but
/// for commands (systemd.service(5)).
struct Unit<'a>(BTreeMap<(&'a str, &'a str), Vec<&'a str>>);

impl<'a> Unit<'a> {
    fn parse(text: &'a str) -> Self {
        let mut section = "";
        let mut entries: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name;
            } else {
                let (key, value) = line.split_once('=').expect("a line is key=value");
                let values = entries.entry((section, key)).or_default();
                assert!(values.is_empty() || key.starts_with("Exec"), "{key} stands twice");
                values.push(value);
            }
        }
        Self(entries)
    }

    fn one(&self, section: &str, key: &str) -> &'a str {
        match self.0.get(&(section, key)).map(Vec::as_slice) {
            Some([value]) => value,
            found => panic!("{key} in [{section}]: {found:?}"),
        }
    }
}
