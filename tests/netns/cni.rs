//! The plugin as container runtimes call it: the real program, real daemons, real namespaces.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use crate::common::container::{Container, addresses, call, text};
use crate::common::{TestLab, eventually, find, may_make_labs, run, skip};
use cni::link::{Netlink, Route};
use serde_json::{Value, json};
use weft::admin::api::{LeasePhase, ProblemTopic};
use weft::lab::probe::Ping;
use weft::lab::{Lab, LabConfig, Namespace, socket};

const NODE: &str = "n1";
/// A pod on the other node, from which the ones here are looked for.
const FAR_POD: &str = "n2-p1";

/// What a node leases, without the patience that real networks need.
const QUICK_LEASES: &str = "claim_wait_ms = 300\nclaim_confirm_ms = 300";

#[test]
fn the_verbs_keep_what_the_specification_asks_for() {
    if !may_make_labs() {
        return;
    }
    let mut lab = TestLab::up(dual_stack("verbs", 2));
    repeated_calls_change_nothing(&lab);
    del_needs_no_namespace(&lab);
    check_names_what_is_missing(&lab);
    an_address_that_takes_no_packets_is_told(&lab);
    any_interface_name_will_do(&lab);
    a_second_interface_leaves_the_default_route(&lab);
    what_others_in_the_chain_did_is_passed_on(&lab);
    every_version_has_its_form(&lab);
    what_is_missing_is_named_at_once(&lab);
    status_says_whether_add_would_work(&lab);
    a_list_for_another_network_does_not_share_this_one(&lab);
    without_a_daemon_the_runtime_tries_again(&mut lab);
    lab.finish();
}

#[test]
fn pods_that_come_at_once_all_get_a_network() {
    if !may_make_labs() {
        return;
    }
    const PODS: usize = 100;
    let lab = TestLab::up(dual_stack("burst", 2));
    let pods: Vec<_> =
        (0..PODS).map(|n| Container::new(&lab, NODE, &format!("burst{n}"))).collect();
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let calls: Vec<_> = pods.iter().map(|pod| scope.spawn(|| pod.add())).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    let all: Vec<IpAddr> = answers.iter().flat_map(addresses).collect();
    assert_eq!(all.len(), 2 * PODS);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    for address in &all {
        assert_reaches(&lab, FAR_POD, *address);
    }
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| pod.del());
        }
    });
    let left = lab.admin(NODE).unwrap().pods().unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    lab.finish();
}

#[test]
fn a_full_lease_refuses_the_pod_and_keeps_the_others() {
    if !may_make_labs() {
        return;
    }
    // Four addresses: the network's, the node's, one pod's and the broadcast address.
    let mut lab = TestLab::up(ipv4_only("full", "10.244.0.0/24", 2));
    let error = format!("{:#}", lab.add_pod(NODE).unwrap_err());
    assert!(error.contains("(code 101)") && error.contains("/30"), "{error}");
    assert!(!error.contains("DEL after that failed"), "{error}");
    let runtime = Container::new(&lab, NODE, "status");
    let status = runtime.call("STATUS", &runtime.config()).unwrap_err();
    assert_eq!(status["code"], 50, "{status}");
    assert!(text(&status).contains("no address of"), "{status}");
    let held = lab.state().pod("n1-p1").unwrap().1.addresses[0];
    assert_reaches(&lab, FAR_POD, held);
    lab.check_pod("n1-p1").unwrap();

    lab.remove_pod("n1-p1").unwrap();
    let next = lab.add_pod(NODE).unwrap();
    let given = lab.state().pod(&next).unwrap().1.addresses[0];
    assert_eq!(given, held, "the only one");
    assert_reaches(&lab, FAR_POD, given);
    lab.finish();
}

#[test]
fn a_node_too_many_for_the_range_says_so() {
    if !may_make_labs() {
        return;
    }
    let mut lab = TestLab::up(ipv4_only("range", "10.244.0.0/29", 2));
    let third = lab.add_idle_node().unwrap();
    lab.launch(&third).unwrap();
    let admin = lab.admin(&third).unwrap();
    eventually("the third node finds no lease", || {
        admin.status().is_ok_and(|status| status.lease_state == LeasePhase::Exhausted)
    });
    let status = admin.status().unwrap();
    let problem = status.problems.iter().find(|problem| problem.topic == ProblemTopic::Lease);
    let text = &problem.unwrap_or_else(|| panic!("{:?}", status.problems)).text;
    assert!(text.contains("10.244.0.0/29") && text.contains("[lease]"), "{text}");
    assert!(!status.ready && status.leases.is_empty(), "{status:?}");
    let shown = weft(&lab, &third, &["status"]);
    assert!(shown.contains("lease") && shown.contains("10.244.0.0/29"), "{shown}");

    let error = format!("{:#}", lab.add_pod(&third).unwrap_err());
    assert!(error.contains("10.244.0.0/29") && error.contains("(code 101)"), "{error}");
    let held = lab.state().pod("n1-p1").unwrap().1.addresses[0];
    assert_reaches(&lab, FAR_POD, held);
    lab.finish();
}

#[test]
fn two_nodes_with_one_identity_are_told_apart() {
    if !may_make_labs() {
        return;
    }
    let mut lab = TestLab::up(LabConfig { pods_per_node: 0, ..dual_stack("clone", 1) });
    let clone = lab.add_idle_node().unwrap();
    let node_id = |lab: &Lab, node: &str| lab.dir().join("nodes").join(node).join("state/node-id");
    let (original, copy) = (node_id(&lab, NODE), node_id(&lab, &clone));
    std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
    std::fs::copy(&original, &copy).unwrap();
    lab.launch(&clone).unwrap();
    for node in [NODE, clone.as_str()] {
        let admin = lab.admin(node).unwrap();
        eventually(&format!("{node} sees the conflict"), || {
            let problems = admin.status().map(|status| status.problems).unwrap_or_default();
            problems.iter().any(|problem| problem.topic == ProblemTopic::Conflict)
        });
    }
    let phase = |lab: &Lab, node: &str| lab.admin(node).unwrap().status().unwrap().lease_state;
    eventually("exactly one of them is suspended", || {
        let phases = [phase(&lab, NODE), phase(&lab, &clone)];
        phases.iter().filter(|phase| **phase == LeasePhase::Suspended).count() == 1
            && phases.contains(&LeasePhase::Held)
    });
    let is_original = phase(&lab, NODE) == LeasePhase::Suspended;
    let suspended = if is_original { NODE.to_owned() } else { clone.clone() };
    let error = format!("{:#}", lab.add_pod(&suspended).unwrap_err());
    assert!(error.contains("node-id") && error.contains("(code 11)"), "{error}");

    // What the text of the problem advises.
    lab.stop(&suspended).unwrap();
    std::fs::remove_file(node_id(&lab, &suspended)).unwrap();
    lab.start(&suspended).unwrap();
    lab.wait_for_map(&[NODE, &clone], Duration::from_secs(20)).unwrap();
    for node in [NODE, clone.as_str()] {
        lab.add_pod(node).unwrap();
    }
    let there = lab.state().nodes[1].pods[0].addresses.clone();
    for address in there {
        assert_reaches(&lab, &lab.state().nodes[0].pods[0].name, address);
    }
    lab.finish();
}

fn repeated_calls_change_nothing(lab: &TestLab) {
    let pod = Container::new(lab, NODE, "twice");
    let first = pod.add();
    assert_eq!(pod.add(), first);
    let [v4, v6] = addresses(&first)[..] else { panic!("{first}") };
    assert!(v4.is_ipv4() && v6.is_ipv6(), "{first}");
    assert_eq!(first["interfaces"][0]["sandbox"], pod.netns());
    assert_eq!(pods_called(lab, "twice"), 1);
    for address in [v4, v6] {
        assert_reaches(lab, FAR_POD, address);
    }
    pod.del();
    pod.del();
    assert_eq!(pods_called(lab, "twice"), 0);
    assert!(!pod.has_interface("eth0"));
}

fn del_needs_no_namespace(lab: &TestLab) {
    for (name, tell_path) in [("gone", true), ("gone-too", false)] {
        let pod = Container::new(lab, NODE, name);
        let given = addresses(&pod.add());
        pod.namespace.remove().unwrap();
        let mut command = pod.command("DEL");
        if !tell_path {
            command.env_remove("CNI_NETNS");
        }
        call(command, &pod.config()).unwrap();
        assert_eq!(pods_called(lab, name), 0);
        let next = Container::new(lab, NODE, &format!("after-{name}"));
        assert_ne!(addresses(&next.add()), given, "an address rests before somebody else gets it");
        next.del();
    }
    let never = Container::new(lab, NODE, "never-added");
    never.del();
}

fn check_names_what_is_missing(lab: &TestLab) {
    let pod = Container::new(lab, NODE, "checked");
    let result = pod.add();
    pod.check(&result).unwrap();
    let address = addresses(&result)[0];
    let mut netlink = Netlink::open_in(pod.namespace.path()).unwrap();
    let index = netlink.link("eth0").unwrap().index;
    netlink.delete_address(index, address.into()).unwrap();
    let error = pod.check(&result).unwrap_err();
    assert_eq!(error["code"], 103, "{error}");
    let details = error["details"].as_str().unwrap();
    assert!(details.contains(&address.to_string()), "{error}");
    assert!(!details.contains(&addresses(&result)[1].to_string()), "only what is missing: {error}");

    // ADD again mends it.
    assert_eq!(pod.add(), result);
    pod.check(&result).unwrap();
    assert_reaches(lab, FAR_POD, address);

    let mut other = result.clone();
    other["ips"][0]["address"] = json!("10.244.99.99/32");
    let error = pod.check(&other).unwrap_err();
    assert_eq!(error["code"], 103, "{error}");
    assert!(error["details"].as_str().unwrap().contains("10.244.99.99"), "{error}");
    pod.del();
    let error = pod.check(&result).unwrap_err();
    assert_eq!(error["code"], 3, "{error}");
}

fn an_address_that_takes_no_packets_is_told(lab: &TestLab) {
    if find("ip").is_none() {
        skip("WEFT_REQUIRE_INTEROP", "ip is not installed (package iproute2)");
        return;
    }
    let pod = Container::new(lab, NODE, "deaf");
    let address = addresses(&pod.add())[1];
    run(&pod.namespace, &format!("ip -6 route del local {address} table local"));
    let error = pod.call("ADD", &pod.config()).unwrap_err();
    assert_eq!(error["code"], 102, "{error}");
    assert!(text(&error).contains(&format!("eth0 has the address {address}")), "{error}");
    pod.del();
}

fn any_interface_name_will_do(lab: &TestLab) {
    // A point separates names in other spellings of sysctl keys; 15 bytes are the most.
    for name in ["net0.7", "abcdefghijklmno"] {
        let pod = Container::new(lab, NODE, "named").with_interface(name);
        let result = pod.add();
        assert_eq!(result["interfaces"][0]["name"], name);
        pod.check(&result).unwrap();
        for address in addresses(&result) {
            assert_reaches(lab, FAR_POD, address);
        }
        pod.del();
        assert!(!pod.has_interface(name));
        pod.namespace.remove().unwrap();
    }
    for name in ["abcdefghijklmnop", "a/b", "a:b", "a b", "eth%d", ".."] {
        let pod = Container::new(lab, NODE, "misnamed").with_interface(name);
        let error = pod.call("ADD", &pod.config()).unwrap_err();
        assert_eq!(error["code"], 4, "{error}");
        assert!(text(&error).contains("CNI_IFNAME"), "{error}");
        pod.namespace.remove().unwrap();
    }
    assert_eq!(pods_called(lab, "misnamed"), 0);
}

fn a_second_interface_leaves_the_default_route(lab: &TestLab) {
    let first = Container::new(lab, NODE, "double");
    let given = first.add();
    let second = Container { ifname: "net1".to_owned(), ..first.clone() };
    let more = second.add();
    assert_eq!(second.add(), more);
    assert_eq!(more.get("routes").and_then(Value::as_array).map_or(0, Vec::len), 0, "{more}");
    let [one, other] = [addresses(&given), addresses(&more)];
    assert!(one.iter().all(|address| !other.contains(address)));
    let mut netlink = Netlink::open_in(first.namespace.path()).unwrap();
    let index = netlink.link("eth0").unwrap().index;
    let routes = netlink.routes().unwrap();
    let defaults: Vec<&Route> =
        routes.iter().filter(|route| route.destination.prefix() == 0).collect();
    assert_eq!(defaults.len(), 2, "{defaults:?}");
    assert!(defaults.iter().all(|route| route.index == index), "{defaults:?}");
    first.check(&given).unwrap();
    second.check(&more).unwrap();
    for address in &one {
        assert_reaches(lab, FAR_POD, *address);
    }
    for address in &lab.state().pod(FAR_POD).unwrap().1.addresses {
        assert!(Ping::new(*address).run(&first.namespace).unwrap().is_ok(), "to {address}");
    }
    second.del();
    assert!(first.has_interface("eth0") && !first.has_interface("net1"));
    first.check(&given).unwrap();
    first.del();
}

fn what_others_in_the_chain_did_is_passed_on(lab: &TestLab) {
    let pod = Container::new(lab, NODE, "chained");
    let mut config = pod.config();
    let loopback = json!({ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.netns() });
    config["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [loopback],
        "ips": [{ "address": "127.0.0.1/8", "interface": 0 }],
        "dns": { "nameservers": ["10.1.0.1"] },
    });
    let result = pod.call("ADD", &config).unwrap();
    assert_eq!(result["interfaces"][0]["name"], "lo", "{result}");
    assert_eq!(result["ips"][0]["address"], "127.0.0.1/8", "{result}");
    assert_eq!(result["dns"], json!({ "nameservers": ["10.1.0.1"] }), "{result}");
    assert_eq!(result["interfaces"][1]["name"], "eth0", "{result}");
    assert!(result["ips"].as_array().unwrap()[1..].iter().all(|ip| ip["interface"] == 1));
    pod.check(&result).unwrap();
    assert_reaches(lab, FAR_POD, addresses(&result)[1]);
    pod.del();
}

fn every_version_has_its_form(lab: &TestLab) {
    let pod = Container::new(lab, NODE, "versions");
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut config = pod.config();
        config["cniVersion"] = json!(version);
        let result = pod.call("ADD", &config).unwrap();
        assert_eq!(result["cniVersion"], version);
        // Before 0.3.0, there was one address per family, and no list.
        let is_old = version == "0.2.0";
        assert_eq!((result["ip4"].is_object(), result["ips"].is_array()), (is_old, !is_old));
        pod.call("DEL", &config).unwrap();
    }
    let mut config = pod.config();
    config["cniVersion"] = json!("2.0.0");
    let error = pod.call("ADD", &config).unwrap_err();
    assert_eq!(error["code"], 1, "{error}");
}

fn what_is_missing_is_named_at_once(lab: &TestLab) {
    let pod = Container::new(lab, NODE, "missing");
    let mut command = pod.command("ADD");
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        command.env_remove(name);
    }
    let error = call(command, &pod.config()).unwrap_err();
    assert_eq!(error["code"], 4, "{error}");
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        assert!(text(&error).contains(name), "{error}");
    }
    let nowhere = Namespace::at(lab.dir().join("ns/nowhere"));
    let nowhere = Container { namespace: nowhere, ..pod };
    let error = nowhere.call("ADD", &nowhere.config()).unwrap_err();
    assert!(text(&error).contains("ns/nowhere"), "{error}");
    assert_eq!(pods_called(lab, "missing"), 0);
}

fn status_says_whether_add_would_work(lab: &TestLab) {
    let pod = Container::new(lab, NODE, "status");
    assert_eq!(pod.call("STATUS", &pod.config()).unwrap(), Value::Null);
}

fn a_list_for_another_network_does_not_share_this_one(lab: &TestLab) {
    let pod = Container::new(lab, NODE, "other-list");
    let network = lab.admin(NODE).unwrap().status().unwrap().network;
    let mut config = pod.config();
    config["name"] = json!("blue");
    config["cni.dev/valid-attachments"] = json!([]);
    for verb in ["ADD", "STATUS"] {
        let error = pod.call(verb, &config).unwrap_err();
        assert_eq!(error["code"], 7, "{verb}: {error}");
        assert!(text(&error).contains("`name` is \"blue\""), "{error}");
        assert!(text(&error).contains(&format!("\"network\": {network:?}")), "{error}");
    }
    assert!(!pod.has_interface("eth0"));
    // It says that it means this one. GC of a list is about its own containers.
    config["network"] = json!(network);
    assert_eq!(pod.call("STATUS", &config).unwrap(), Value::Null);
    pod.call("ADD", &config).unwrap();
    let mut others = pod.config();
    others["name"] = json!("green");
    others["cni.dev/valid-attachments"] = json!([]);
    pod.call("GC", &others).unwrap();
    assert_eq!(pods_called(lab, "other-list"), 1);
    pod.call("GC", &config).unwrap();
    assert_eq!(pods_called(lab, "other-list"), 0);
    // For DEL, nothing has to be right.
    config["network"] = json!("red");
    pod.call("DEL", &config).unwrap();
}

fn without_a_daemon_the_runtime_tries_again(lab: &mut TestLab) {
    let pod = Container::new(lab, NODE, "patient");
    lab.stop(NODE).unwrap();
    for (verb, code) in [("ADD", 11), ("GC", 11), ("STATUS", 51)] {
        let mut config = pod.config();
        config["cni.dev/valid-attachments"] = json!([]);
        let error = pod.call(verb, &config).unwrap_err();
        assert_eq!(error["code"], code, "{verb}: {error}");
        assert!(text(&error).contains("weftd is not available"), "{error}");
        assert!(text(&error).contains("weftd.sock"), "{error}");
    }
    assert_eq!(version_without_input(&pod), json!("1.1.0"));
    lab.start(NODE).unwrap();
    let result = pod.add();
    pod.check(&result).unwrap();
    for address in addresses(&result) {
        assert_reaches(lab, FAR_POD, address);
    }
    pod.del();
}

/// Asks for the version with an input that stays open and empty.
fn version_without_input(pod: &Container) -> Value {
    let mut command = pod.command("VERSION");
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        command.env_remove(name);
    }
    let mut child = command.spawn().unwrap();
    let input = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert!(output.status.success());
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["cniVersion"].clone()
}

/// How many interfaces of this container the daemon knows.
#[track_caller]
fn pods_called(lab: &Lab, id: &str) -> usize {
    let pods = lab.admin(NODE).unwrap().pods().unwrap();
    pods.iter().filter(|pod| pod.container_id == id).count()
}

/// The first packet gets through: what was attached works from then on.
#[track_caller]
fn assert_reaches(lab: &Lab, pod: &str, address: IpAddr) {
    let namespace = lab.namespace(pod).unwrap();
    let ping = Ping { count: 1, patience: Duration::from_secs(5), ..Ping::new(address) };
    let report = ping.run(&namespace).unwrap();
    assert!(report.is_ok(), "{pod} to {address}: {report:?}");
}

/// What the command line prints.
#[track_caller]
fn weft(lab: &Lab, node: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(lab.dir().join("bin/weft"));
    command.args(arguments).arg("--socket").arg(socket(lab.dir(), node));
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn dual_stack(name: &str, nodes: u8) -> LabConfig {
    let ranges = r#"ranges = ["10.244.0.0/16", "fd00:10:244::/56"]"#;
    let lease = Some(format!("{ranges}\n{QUICK_LEASES}"));
    LabConfig { nodes, pods_per_node: 1, lease, ..LabConfig::new(name) }
}

/// Leases of four addresses each.
fn ipv4_only(name: &str, range: &str, nodes: u8) -> LabConfig {
    let lease = Some(format!("ranges = [{range:?}]\nprefix_len_v4 = 30\n{QUICK_LEASES}"));
    LabConfig { nodes, pods_per_node: 1, ipv6: false, lease, ..LabConfig::new(name) }
}
