//! Weft and a kernel `vxlan` device as two ends of one tunnel, set up as flannel's vxlan backend does it:
//! a device with VNI 1 that learns nothing, a forwarding entry, a neighbor and an `onlink` route per peer.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;

use crate::common::capture;
use crate::common::foreign::{Foreign, address};
use crate::common::traffic::{End, both_ways};
use crate::common::{TestLab, eventually, run};
use ipnetwork::IpNetwork;
use overlay::path::probe::PathState;
use weft::lab::probe::Ping;
use weft::lab::{Family, LabConfig, Namespace};

/// Bytes of each TCP stream.
const BULK_LEN: u64 = 24_000_000;

/// The device's name, as flannel calls it.
const DEVICE: &str = "flannel.1";

#[test]
fn a_kernel_tunnel_endpoint_over_ipv4_with_offloads() {
    kernel_endpoint(Family::V4, true);
}

#[test]
fn a_kernel_tunnel_endpoint_over_ipv4_without_offloads() {
    kernel_endpoint(Family::V4, false);
}

#[test]
fn a_kernel_tunnel_endpoint_over_ipv6_with_offloads() {
    kernel_endpoint(Family::V6, true);
}

#[test]
fn a_kernel_tunnel_endpoint_over_ipv6_without_offloads() {
    kernel_endpoint(Family::V6, false);
}

/// It is taken for a Weft node, as one would be whose daemon does not answer: it is probed for as long as the test
/// runs, small and long, and searched for its MTU, and neither it nor its pods notice.
#[test]
fn a_kernel_tunnel_endpoint_is_not_disturbed_by_probes() {
    if !crate::common::has_programs(&[("ip", "iproute2"), ("bridge", "iproute2")])
        || !crate::common::may_make_labs()
    {
        return;
    }
    let config = LabConfig { nodes: 1, pods_per_node: 1, ..LabConfig::new("probed") };
    let mut lab = TestLab::up(config);
    let machine = lab.add_idle_node().unwrap();
    let foreign = Foreign::join_as(&lab, &machine, "weft/0.0.0");
    set_up_device(&lab, &foreign);
    let kernel_pod = End {
        name: "the kernel's pod".to_owned(),
        namespace: set_up_pod(&lab, &foreign),
        addresses: [true, false].map(|is_v4| address(&foreign.leases, is_v4, 2)).to_vec(),
    };
    let weft_pod = crate::common::place::pod(&lab, "n1-p1");
    let admin = lab.admin("n1").unwrap();
    eventually("it is probed, and found not to answer", || {
        both_ways(&weft_pod, &kernel_pod, BULK_LEN / 32);
        let nodes = admin.nodes().unwrap();
        let found = nodes.iter().find(|node| node.name == machine).unwrap();
        found.path.as_ref().is_some_and(|path| path.state == PathState::Down)
    });
    let counters = admin.counters().unwrap();
    assert!(counters.probes.sent > 20 && counters.probes.replies == 0, "{counters:?}");
    assert!(counters.offenders.is_empty(), "nothing came back: {counters:?}");
    let text = run(&foreign.namespace, &format!("bridge fdb show dev {DEVICE}"));
    assert!(text.lines().all(|line| line.contains("permanent")), "nothing was learnt: {text}");
    both_ways(&weft_pod, &kernel_pod, BULK_LEN / 8);
    foreign.leave();
    lab.assert_conserved();
}

fn kernel_endpoint(underlay: Family, offloads: bool) {
    let programs = [("ip", "iproute2"), ("bridge", "iproute2"), ("ethtool", "ethtool")];
    if !crate::common::has_programs(&programs) || !crate::common::may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 2, pods_per_node: 1, underlay, ..LabConfig::new("vxlan") };
    let mut lab = TestLab::up(config);
    let machine = lab.add_idle_node().unwrap();
    let foreign = Foreign::join(&lab, &machine);
    set_up_device(&lab, &foreign);
    let pod = set_up_pod(&lab, &foreign);
    if !offloads {
        // Also what belongs to it: segmentation and scatter-gather.
        run(&foreign.namespace, &format!("ethtool -K {DEVICE} tx off"));
        for (namespace, device) in
            [(&foreign.namespace, "eth0"), (&foreign.namespace, "pod"), (&pod, "eth0")]
        {
            run(namespace, &format!("ethtool -K {device} tx off gro off"));
        }
    }

    let own = |number: u8| [true, false].map(|is_v4| address(&foreign.leases, is_v4, number));
    let kernel_pod =
        End { name: "the kernel's pod".to_owned(), namespace: pod, addresses: own(2).to_vec() };
    let kernel_node = End {
        name: "the kernel's node".to_owned(),
        namespace: foreign.namespace.clone(),
        addresses: own(0).to_vec(),
    };
    for node in ["n1", "n2"] {
        let pod = lab.state().pod(&format!("{node}-p1")).unwrap().1;
        let weft_pod = End {
            name: format!("Weft's pod {}", pod.name),
            namespace: lab.namespace(&pod.name).unwrap(),
            addresses: pod.addresses.clone(),
        };
        both_ways(&weft_pod, &kernel_pod, BULK_LEN);
        let undone = capture::left_undone(&lab, node, || {
            both_ways(&weft_pod, &kernel_pod, BULK_LEN / 32);
        });
        if let Some(undone) = undone {
            assert_eq!(undone, (offloads, offloads), "checksums and cutting left to Weft");
        }
        both_ways(&weft_pod, &kernel_node, BULK_LEN / 8);
    }
    nodes_reach_each_other(&lab, &foreign, &kernel_pod);

    let admin = lab.admin("n1").unwrap();
    let counters = admin.counters().unwrap();
    assert!(counters.offenders.is_empty(), "nothing of the kernel's was refused: {counters:?}");
    assert!(!counters.dropped.contains_key("bad_checksum"), "{counters:?}");

    let source = foreign.namespace.clone();
    foreign.leave();
    let weft_pod = lab.state().pod("n1-p1").unwrap().1.addresses[0];
    eventually("a tunnel endpoint that is no member is refused and named", || {
        let answered = Ping { count: 1, ..Ping::new(weft_pod) }.run(&source).unwrap().received;
        let counters = admin.counters().unwrap();
        let offender = lab.state().node(&machine).unwrap().underlay;
        answered == 0
            && counters.dropped.contains_key("vxlan_not_member")
            && counters.offenders.iter().any(|seen| seen.address == offender)
    });
    lab.assert_conserved();
}

/// Nodes themselves, under their lease's first address and under their underlay address.
fn nodes_reach_each_other(lab: &TestLab, foreign: &Foreign, kernel_pod: &End) {
    let weft_node = lab.namespace("n1").unwrap();
    for address in &kernel_pod.addresses {
        let report = Ping::new(*address).run(&weft_node).unwrap();
        assert!(report.is_ok(), "Weft's node to {address}: {report:?}");
    }
    let weft_pod = lab.namespace("n1-p1").unwrap();
    let underlay = lab.state().node(&foreign.name).unwrap().underlay;
    let report = Ping::new(underlay).run(&weft_pod).unwrap();
    assert!(report.is_ok(), "Weft's pod to the kernel's node at {underlay}: {report:?}");
    for peer in foreign.peers(lab) {
        for lease in &peer.leases {
            let first = address(&[*lease], lease.is_ipv4(), 1);
            let report = Ping::new(first).run(&kernel_pod.namespace).unwrap();
            assert!(report.is_ok(), "the kernel's pod to {} at {first}: {report:?}", peer.name);
        }
    }
}

/// The device and what it knows of its peers.
fn set_up_device(lab: &TestLab, foreign: &Foreign) {
    let Foreign { namespace, vtep_mac, inner_mtu, leases, .. } = foreign;
    let local = lab.state().node(&foreign.name).unwrap().underlay;
    run(
        namespace,
        &format!(
            "ip link add {DEVICE} address {vtep_mac} mtu {inner_mtu} type vxlan id 1 local {local} \
             dev eth0 dstport 4789 nolearning"
        ),
    );
    run(namespace, &format!("ip link set {DEVICE} up"));
    for is_v4 in [true, false] {
        let own = IpNetwork::from(address(leases, is_v4, 0));
        let family = if is_v4 { "" } else { "nodad" };
        run(namespace, &format!("ip address add {own} dev {DEVICE} {family}"));
    }
    for peer in foreign.peers(lab) {
        let (mac, underlay) = (peer.vtep_mac, peer.underlay);
        run(namespace, &format!("bridge fdb append {mac} dev {DEVICE} dst {underlay}"));
        for lease in &peer.leases {
            let far = lease.network();
            run(
                namespace,
                &format!("ip neighbor replace {far} lladdr {mac} dev {DEVICE} nud permanent"),
            );
            run(namespace, &format!("ip route replace {lease} via {far} dev {DEVICE} onlink"));
        }
    }
}

/// A pod on a bridge that has the lease's first address, as the CNI plugin `bridge` makes it.
fn set_up_pod(lab: &TestLab, foreign: &Foreign) -> Namespace {
    let Foreign { namespace, inner_mtu, leases, .. } = foreign;
    for path in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"] {
        namespace.run(|| fs::write(path, "1")).unwrap().unwrap();
    }
    run(namespace, &format!("ip link add cni0 mtu {inner_mtu} type bridge"));
    run(namespace, "ip link set cni0 up");
    let pod = foreign.add_pod(lab, "pod");
    run(namespace, "ip link set pod master cni0");
    for lease in leases {
        let len = lease.prefix();
        let [gateway, own] = [1, 2].map(|number| address(leases, lease.is_ipv4(), number));
        let nodad = if lease.is_ipv4() { "" } else { "nodad" };
        run(namespace, &format!("ip address add {gateway}/{len} dev cni0 {nodad}"));
        run(&pod, &format!("ip address add {own}/{len} dev eth0 {nodad}"));
        run(&pod, &format!("ip route add default via {gateway}"));
    }
    pod
}
