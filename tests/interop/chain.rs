//! The reference plugins before, behind and below ours, run one after the other as a runtime does it (CNI specification
//! 1.1, "Execution of Network Configurations"): ADD and CHECK in the list's order, DEL backwards, each with what the
//! one before has answered.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::common::container::{Container, addresses, call, text};
use crate::common::service::{serve_in, tcp};
use crate::common::{TestLab, eventually, find, has_programs, may_make_labs, run, skip};
use serde_json::{Value, json};
use weft::lab::probe::Ping;
use weft::lab::{LabConfig, WORLD};

const PLUGINS: &str = "/usr/lib/cni";
const NODE: &str = "n1";
/// What the reference plugins of Debian 12 speak.
const VERSION: &str = "1.0.0";

#[test]
fn reference_plugins_work_behind_ours() {
    if !has_plugins(&["portmap", "firewall", "tuning"])
        || !has_programs(&[("iptables", "iptables"), ("nft", "nftables")])
        || !may_make_labs()
    {
        return;
    }
    let lab = TestLab::up(config("chain"));
    let pod = Container::new(&lab, NODE, "chained");
    serve_in(&pod.namespace, "chained", 80);
    let chain = [
        json!({ "type": "weft-cni", "socket": pod.socket }),
        json!({
            "type": "portmap",
            "snat": true,
            "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
        }),
        json!({ "type": "firewall", "backend": "iptables" }),
        json!({ "type": "tuning", "mtu": 1300, "sysctl": { "net.ipv4.conf.eth0.arp_announce": "2" } }),
    ];
    let result = add(&pod, &chain).unwrap();
    check(&pod, &chain, &result).unwrap();
    let address = addresses(&result)[0];
    assert!(address.is_ipv4(), "{result}");

    let reaches = |place: &str, to: SocketAddr| {
        let namespace = lab.namespace(place).unwrap();
        eventually(&format!("{place} reaches {to}"), || {
            tcp(&namespace, to).is_ok_and(|answer| answer.server == "chained")
        });
    };
    reaches("n2-p1", SocketAddr::new(address, 80));
    reaches(WORLD, "192.168.77.1:8080".parse().unwrap());
    reaches(NODE, "192.168.77.1:8080".parse().unwrap());
    let on = lab.namespace(NODE).unwrap();
    let rules = |table: &str| run(&on, &format!("iptables -t {table} -S"));
    assert!(rules("nat").contains(&format!("--to-destination {address}:80")), "{}", rules("nat"));
    assert!(rules("filter").contains(&format!("-d {address}/32")), "{}", rules("filter"));
    let mtu = run(&pod.namespace, "ip link show dev eth0");
    assert!(mtu.contains("mtu 1300"), "{mtu}");
    let sysctl = run(&pod.namespace, "sysctl -n net.ipv4.conf.eth0.arp_announce");
    assert_eq!(sysctl.trim(), "2");

    // What one of them did is undone by somebody: its own CHECK tells, and what is ours is ours to tell.
    run(&on, "iptables -t nat -F");
    let error = check(&pod, &chain, &result).unwrap_err();
    assert!(text(&error).contains("CNI-"), "portmap tells: {error}");

    del(&pod, &chain, &result).unwrap();
    for table in ["nat", "filter"] {
        let left = rules(table);
        assert!(!left.contains(&address.to_string()), "{left}");
    }
    assert!(!pod.has_interface("eth0"));
    lab.finish();
}

#[test]
fn the_reference_plugin_for_rates_finds_nothing_to_limit() {
    if !has_plugins(&["bandwidth"]) || !may_make_labs() {
        return;
    }
    let lab = TestLab::up(config("chained-rates"));
    let pod = Container::new(&lab, NODE, "limited");
    let rates = json!({ "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 80_000 } });
    let ours = json!({ "type": "weft-cni", "socket": pod.socket });
    let chain = [ours.clone(), json!({ "type": "bandwidth", "runtimeConfig": rates })];
    let error = add(&pod, &chain).unwrap_err();
    assert!(text(&error).contains("eth0 has no veth peer"), "docs/cni.md says so: {error}");
    del(&pod, &chain[..1], &Value::Null).unwrap();

    // It is not needed.
    let mut own = ours;
    own["runtimeConfig"] = rates;
    let result = add(&pod, &[own.clone()]).unwrap();
    check(&pod, &[own.clone()], &result).unwrap();
    del(&pod, &[own], &result).unwrap();
    lab.finish();
}

#[test]
fn other_plugins_hand_out_addresses_of_the_nodes_subnet() {
    if !has_plugins(&["host-local", "static", "dhcp"]) || !may_make_labs() {
        return;
    }
    let lab = TestLab::up(config("delegated"));
    let status = lab.admin(NODE).unwrap().status().unwrap();
    let leases = status.leases.iter().filter_map(|lease| match lease {
        ipnetwork::IpNetwork::V4(v4) => Some(*v4),
        ipnetwork::IpNetwork::V6(_) => None,
    });
    let lease = leases.into_iter().next().unwrap();
    let nth = |n: u32| lease.nth(n).unwrap();
    let store = lab.dir().join("host-local");
    let host_local = json!({
        "type": "host-local",
        "dataDir": store,
        "ranges": [[{ "subnet": lease, "rangeStart": nth(100), "rangeEnd": nth(101) }]],
    });
    let list = |pod: &Container, ipam: &Value| {
        [json!({ "type": "weft-cni", "socket": pod.socket, "ipam": ipam })]
    };
    let pods: Vec<_> = ["first", "second", "third"].map(|id| Container::new(&lab, NODE, id)).into();
    let results: Vec<_> = pods.iter().map(|pod| add(pod, &list(pod, &host_local))).collect();
    for (result, n) in results[..2].iter().zip([100, 101]) {
        let result = result.as_ref().unwrap();
        assert_eq!(addresses(result), [IpAddr::from(nth(n))], "{result}");
        assert_reaches(&lab, "n2-p1", addresses(result)[0]);
    }
    // Its own error, when it has no more.
    let error = results[2].as_ref().unwrap_err();
    assert!(text(error).contains("no IP addresses available in range"), "{error}");
    assert!(!pods[2].has_interface("eth0"));
    let first = results[0].as_ref().unwrap();
    check(&pods[0], &list(&pods[0], &host_local), first).unwrap();
    // Its CHECK comes before ours.
    let reserved = files(&store).into_iter().find(|file| file.ends_with(&nth(100).to_string()));
    let reserved = reserved.expect("it keeps a file for each address");
    let content = fs::read(&reserved).unwrap();
    fs::remove_file(&reserved).unwrap();
    let error = check(&pods[0], &list(&pods[0], &host_local), first).unwrap_err();
    assert_eq!(error["code"], 105, "{error}");
    fs::write(&reserved, content).unwrap();
    for (pod, result) in pods.iter().zip(&results) {
        let promised = result.as_ref().unwrap_or(&Value::Null);
        del(pod, &list(pod, &host_local), promised).unwrap();
        assert!(!pod.has_interface("eth0"));
    }
    let addresses_of = |store: &Path| {
        let in_use = |file: &String| file.rsplit('/').next().unwrap().starts_with("10.");
        files(store).into_iter().filter(in_use).count()
    };
    assert_eq!(addresses_of(&store), 0, "all are given back: {:?}", files(&store));

    // What no other node could reach is refused, and given back.
    let elsewhere = json!({ "type": "host-local", "dataDir": store, "subnet": "10.99.0.0/24" });
    let pod = &pods[2];
    let error = add(pod, &list(pod, &elsewhere)).unwrap_err();
    assert_eq!(error["code"], 7, "{error}");
    assert!(text(&error).contains("10.99.0."), "{error}");
    assert_eq!(addresses_of(&store), 0, "{:?}", files(&store));

    let fixed =
        json!({ "type": "static", "addresses": [{ "address": format!("{}/24", nth(77)) }] });
    let result = add(pod, &list(pod, &fixed)).unwrap();
    assert_eq!(addresses(&result), [IpAddr::from(nth(77))]);
    assert_reaches(&lab, "n2-p1", nth(77).into());
    check(pod, &list(pod, &fixed), &result).unwrap();
    let error = add(&pods[1], &list(&pods[1], &fixed)).unwrap_err();
    assert_eq!(error["code"], 104, "{error}");
    del(pod, &list(pod, &fixed), &result).unwrap();

    // A DHCP client asks over the interface, which would have to be there before its address.
    let error = add(pod, &list(pod, &json!({ "type": "dhcp" }))).unwrap_err();
    assert_eq!(error["code"], 2, "{error}");
    assert!(text(&error).contains("`ipam.type` is \"dhcp\""), "{error}");
    lab.finish();
}

/// ADD of a whole list: what the last one answers.
fn add(pod: &Container, chain: &[Value]) -> Result<Value, Value> {
    let mut result = Value::Null;
    for plugin in chain {
        result = call_one(pod, "ADD", plugin, &result)?;
    }
    Ok(result)
}

fn check(pod: &Container, chain: &[Value], result: &Value) -> Result<(), Value> {
    chain.iter().try_for_each(|plugin| call_one(pod, "CHECK", plugin, result).map(drop))
}

fn del(pod: &Container, chain: &[Value], result: &Value) -> Result<(), Value> {
    chain.iter().rev().try_for_each(|plugin| call_one(pod, "DEL", plugin, result).map(drop))
}

fn call_one(pod: &Container, verb: &str, plugin: &Value, previous: &Value) -> Result<Value, Value> {
    let mut config = plugin.clone();
    config["cniVersion"] = json!(VERSION);
    config["name"] = json!("weft");
    if !previous.is_null() {
        config["prevResult"] = previous.clone();
    }
    let kind = plugin["type"].as_str().unwrap();
    let program = match kind {
        "weft-cni" => pod.program.clone(),
        other => Path::new(PLUGINS).join(other),
    };
    let mut command = Container { program, ..pod.clone() }.command(verb);
    let path = match kind {
        // Its CHECK looks for every container's rules in both families, if it finds programs for both.
        "portmap" => only_iptables(pod),
        _ => "/usr/sbin:/usr/bin:/sbin:/bin".into(),
    };
    command.env("CNI_PATH", PLUGINS).env("PATH", path);
    call(command, &config)
}

/// A directory of programs where there is nothing but iptables.
fn only_iptables(pod: &Container) -> PathBuf {
    let programs = pod.socket.with_file_name("iptables");
    if fs::create_dir(&programs).is_ok() {
        symlink(find("iptables").unwrap(), programs.join("iptables")).unwrap();
    }
    programs
}

#[track_caller]
fn assert_reaches(lab: &TestLab, pod: &str, address: IpAddr) {
    let report = Ping::new(address).run(&lab.namespace(pod).unwrap()).unwrap();
    assert!(report.is_ok(), "{pod} to {address}: {report:?}");
}

/// All files in and below a directory.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path().to_string_lossy().into_owned()),
        }
    }
    found
}

fn has_plugins(names: &[&str]) -> bool {
    let missing: Vec<_> =
        names.iter().filter(|name| !Path::new(PLUGINS).join(name).exists()).collect();
    if !missing.is_empty() {
        let why = format!("not installed: {missing:?} (package containernetworking-plugins)");
        skip("WEFT_REQUIRE_INTEROP", &why);
    }
    missing.is_empty()
}

fn config(name: &str) -> LabConfig {
    LabConfig { nodes: 2, pods_per_node: 1, ipv6: false, ..LabConfig::new(name) }
}
