//! A machine behind one end of a veth pair, with the kernel's own stack and all its offloads; the other end is
//! a port of the switch.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use crate::common::place::{node, pod};
use crate::common::traffic::{End, both_ways};
use crate::common::{TestLab, eventually, may_make_labs};
use cni::link::{Netlink, PodInterface, configure_pod};
use cni::netns::Netns;
use vswitch::mac::Mac;
use weft::admin::api::PodStatus;
use weft::lab::probe::Ping;
use weft::lab::{LabConfig, Namespace};

const NODE: &str = "n1";
/// The node's end.
const DEVICE: &str = "veth-vm";
/// The address of the machine's end.
const MAC: Mac = Mac([0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
/// Bytes of each TCP stream.
const STREAM_LEN: u64 = 20_000_000;

#[test]
fn a_machine_behind_a_veth_pair_is_a_port_like_a_pod() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 2, pods_per_node: 1, ..LabConfig::new("veth") };
    let mut lab = TestLab::up(config);
    let machine = Namespace::create(lab.dir().join("ns").join("machine")).unwrap();
    let of_node = lab.namespace(NODE).unwrap();
    let mut netlink = Netlink::open_in(of_node.path()).unwrap();
    let inside = Netns::open(machine.path()).unwrap();
    netlink.create_veth(DEVICE, "eth0", Some(&inside)).unwrap();
    let index = netlink.link(DEVICE).unwrap().index;
    netlink.set_up(index).unwrap();

    let port = add_port(&lab);
    assert_eq!((port.mac, port.ifname.as_str(), &port.netns), (MAC, DEVICE, &None));
    // What a person would type in the machine, as the answer tells it.
    let interface = PodInterface {
        mac: MAC.0,
        mtu: port.mtu.into(),
        addresses: port.addresses.clone(),
        gateways: port.gateways.clone(),
    };
    configure_pod(machine.path(), "eth0", &interface).unwrap();
    let machine =
        End { name: "the machine".to_owned(), namespace: machine, addresses: port.addresses };
    for other in ["n1-p1", "n2-p1"] {
        both_ways(&machine, &pod(&lab, other), STREAM_LEN);
    }
    for other in [NODE, "n2"] {
        both_ways(&machine, &node(&lab, other), STREAM_LEN / 8);
    }

    lab.kill(NODE).unwrap();
    lab.start(NODE).unwrap();
    let far = pod(&lab, "n2-p1");
    eventually("the port is there again after a restart", || reaches(&machine, &far));
    lab.assert_conserved();

    let removed = weft(&lab, &["port", "remove", DEVICE]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    assert!(!reaches(&machine, &far));
    let ports = lab.admin(NODE).unwrap().pods().unwrap();
    assert!(ports.iter().all(|port| port.ifname != DEVICE), "{ports:?}");
    // The device is its owner's.
    assert_eq!(netlink.link(DEVICE).unwrap().index, index);
    lab.finish();
}

fn reaches(from: &End, to: &End) -> bool {
    to.addresses.iter().all(|address| {
        let ping = Ping { count: 1, ..Ping::new(*address) };
        ping.run(&from.namespace).is_ok_and(|report| report.is_ok())
    })
}

fn add_port(lab: &TestLab) -> PodStatus {
    let output = weft(lab, &["port", "add", DEVICE, &MAC.to_string(), "-o", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn weft(lab: &TestLab, arguments: &[&str]) -> Output {
    let socket = lab.admin(NODE).unwrap().socket().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(arguments).arg("--socket").arg(socket).output().unwrap()
}
