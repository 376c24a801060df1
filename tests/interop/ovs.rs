//! Weft and Open vSwitch's userspace datapath as two ends of one tunnel.
//!
//! ```text
//!  pod ── veth ── br-int ── VXLAN ports, key 1 ── br-phy ── eth0      the machine with Open vSwitch
//!                 flows route between pod          has the underlay
//!                 and tunnels                      address
//! ```
//!
//! Open vSwitch reads and writes devices one frame at a time, so nobody may hand it super-frames: the
//! bridge between the nodes cuts them, as a wire would, and the pod makes none. Checksums are another
//! matter: with its offload on, the pod leaves them to be filled in, and Open vSwitch sends them as they
//! are. Outer checksums are tested as zero, which is its default over IPv4, and computed.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use crate::common::capture;
use crate::common::foreign::{Foreign, address};
use crate::common::ovs::{self, Ovs};
use crate::common::traffic::{End, both_ways};
use crate::common::{TestLab, eventually, run};
use weft::lab::probe::Ping;
use weft::lab::{Family, LabConfig, Namespace, Plan, UNDERLAY};

/// Bytes of each TCP stream.
const BULK_LEN: u64 = 24_000_000;

/// The pod's device, and the router that it believes to have.
const POD_MAC: &str = "0a:58:00:00:00:02";
const ROUTER_MAC: &str = "0a:58:00:00:00:01";

#[test]
fn ovs_over_ipv4_with_offloads_and_without_outer_checksums() {
    userspace_datapath(Family::V4, true, false);
}

#[test]
fn ovs_over_ipv4_without_offloads_and_with_outer_checksums() {
    userspace_datapath(Family::V4, false, true);
}

#[test]
fn ovs_over_ipv6_with_offloads() {
    userspace_datapath(Family::V6, true, true);
}

#[test]
fn ovs_over_ipv6_without_offloads() {
    userspace_datapath(Family::V6, false, true);
}

fn userspace_datapath(underlay: Family, offloads: bool, outer_checksums: bool) {
    let programs: Vec<_> =
        [("ip", "iproute2"), ("ethtool", "ethtool")].into_iter().chain(ovs::PROGRAMS).collect();
    if !crate::common::has_programs(&programs) || !crate::common::may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 2, pods_per_node: 1, underlay, ..LabConfig::new("ovs") };
    let mut lab = TestLab::up(config);
    let machine = lab.add_idle_node().unwrap();
    run(&lab.namespace(UNDERLAY).unwrap(), &format!("ethtool -K {machine} tx off gso off tso off"));
    let ovs = Ovs::start(&lab, &machine);
    set_up_underlay(&lab, &ovs, &machine);
    let foreign = Foreign::join(&lab, &machine);
    let pod = set_up_pod(&lab, &foreign, offloads);
    set_up_tunnels(&lab, &ovs, &foreign, outer_checksums);

    let foreign_pod = End {
        name: "the pod of Open vSwitch".to_owned(),
        namespace: pod,
        addresses: [true, false].map(|is_v4| address(&foreign.leases, is_v4, 2)).to_vec(),
    };
    for node in ["n1", "n2"] {
        let pod = lab.state().pod(&format!("{node}-p1")).unwrap().1;
        let weft_pod = End {
            name: format!("Weft's pod {}", pod.name),
            namespace: lab.namespace(&pod.name).unwrap(),
            addresses: pod.addresses.clone(),
        };
        // It drops what it sends before it knows the MAC address of the other end.
        eventually("Open vSwitch carries packets", || {
            let ping = Ping { count: 1, ..Ping::new(weft_pod.addresses[0]) };
            ping.run(&foreign_pod.namespace).unwrap().is_ok()
        });
        both_ways(&weft_pod, &foreign_pod, BULK_LEN);
        let undone = capture::left_undone(&lab, node, || {
            both_ways(&weft_pod, &foreign_pod, BULK_LEN / 32);
        });
        if let Some(undone) = undone {
            assert_eq!(undone, (offloads, false), "checksums left to Weft, but not cutting");
        }
    }
    let counters = lab.admin("n1").unwrap().counters().unwrap();
    assert!(counters.offenders.is_empty(), "nothing of its was refused: {counters:?}");
    assert!(!counters.dropped.contains_key("bad_checksum"), "{counters:?}");
    drop(ovs);
    foreign.leave();
    lab.assert_conserved();
}

/// Makes `eth0` a port of the bridge `br-phy`, which takes over its addresses: the userspace datapath
/// sends tunnel packets only out of a bridge that has the local address.
fn set_up_underlay(lab: &TestLab, ovs: &Ovs, machine: &str) {
    let namespace = lab.namespace(machine).unwrap();
    ovs.vsctl("add-br br-phy -- set bridge br-phy datapath_type=netdev -- add-port br-phy eth0");
    let has_bridge = || run(&namespace, "ip -o link").contains(" br-phy: ");
    eventually("br-phy is there", has_bridge);
    run(&namespace, "ip address flush dev eth0");
    run(&namespace, "ip link set br-phy up");
    let number = lab.state().node(machine).unwrap().number;
    for family in Family::ALL {
        let nodad = if family == Family::V4 { "" } else { "nodad" };
        let own = Plan::node(family, number);
        run(&namespace, &format!("ip address add {own} dev br-phy {nodad}"));
    }
    let own = Plan::node(Family::V4, number).ip();
    eventually("Open vSwitch knows its addresses", || {
        ovs.appctl("ovs/route/show").contains(&format!("SRC {own}"))
    });
}

/// A pod whose only neighbor is a router that does not exist: flows act for it.
fn set_up_pod(lab: &TestLab, foreign: &Foreign, offloads: bool) -> Namespace {
    let pod = foreign.add_pod(lab, "pod");
    run(&pod, &format!("ip link set eth0 address {POD_MAC}"));
    let tx = if offloads { "on" } else { "off" };
    run(&pod, &format!("ethtool -K eth0 tso off gso off tx {tx}"));
    for lease in &foreign.leases {
        let [router, own] = [1, 2].map(|number| address(&[*lease], lease.is_ipv4(), number));
        let (len, nodad) = (lease.prefix(), if lease.is_ipv4() { "" } else { "nodad" });
        run(&pod, &format!("ip address add {own}/{len} dev eth0 {nodad}"));
        run(
            &pod,
            &format!("ip neighbor replace {router} lladdr {ROUTER_MAC} dev eth0 nud permanent"),
        );
        run(&pod, &format!("ip route add default via {router}"));
    }
    pod
}

/// A tunnel port per peer, and the routes between them and the pod.
fn set_up_tunnels(lab: &TestLab, ovs: &Ovs, foreign: &Foreign, outer_checksums: bool) {
    ovs.vsctl(
        "add-br br-int -- set bridge br-int datapath_type=netdev fail-mode=secure -- add-port br-int pod",
    );
    for peer in foreign.peers(lab) {
        let (name, underlay) = (&peer.name, peer.underlay);
        ovs.vsctl(&format!(
            "add-port br-int vx-{name} -- set interface vx-{name} type=vxlan options:remote_ip={underlay} \
             options:key=1 options:dst_port=4789 options:csum={outer_checksums}"
        ));
        eventually("the tunnel port is there", || {
            ovs.appctl("dpif/show").contains(&format!("vx-{name} "))
        });
        for lease in &peer.leases {
            let field = if lease.is_ipv4() { "ip,nw_dst" } else { "ipv6,ipv6_dst" };
            ovs.add_flow(
                "br-int",
                &format!(
                    "in_port=pod,{field}={lease},actions=dec_ttl,mod_dl_src:{},mod_dl_dst:{},output:vx-{name}",
                    foreign.vtep_mac, peer.vtep_mac
                ),
            );
        }
        for lease in &foreign.leases {
            let field = if lease.is_ipv4() { "ip,nw_dst" } else { "ipv6,ipv6_dst" };
            ovs.add_flow(
                "br-int",
                &format!(
                    "in_port=vx-{name},dl_dst={},{field}={lease},actions=dec_ttl,mod_dl_src:{ROUTER_MAC},\
                     mod_dl_dst:{POD_MAC},output:pod",
                    foreign.vtep_mac
                ),
            );
        }
    }
}
