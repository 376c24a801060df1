//! What the kernel offers, drops and cannot carry is seen from outside, and what it takes back comes back.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::place::{pod, same_family};
use crate::common::traffic::End;
use crate::common::{TestLab, eventually, has_programs, may_make_labs, run};
use cni::link::Netlink;
use cni::netns::Netns;
use rustix::process::Signal;
use rustix::thread::{CapabilitySet, CapabilitySets};
use vswitch::offload::LongFrames;
use vswitch::verdict::Reason;
use weft::admin::api::{CountersReport, KernelDropped, ProblemTopic, Status};
use weft::admin::capability::{Capability, CapabilityName, Place};
use weft::host::long_frames::{self, NotTaken, Probed};
use weft::lab::LabConfig;
use weft::lab::probe::Ping;

/// The MTU of the path, between links of 1500 bytes, and what is left of it for pods.
const PATH_MTU: u16 = 1400;
const PATH_INNER_MTU: u16 = 1350;
const INNER_MTU: u16 = 1450;

#[test]
fn every_capability_is_told_with_the_reason_where_it_is_off() {
    if !may_make_labs() {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 1, ..LabConfig::new("capable") });
    let found = status(&lab, "n1").capabilities;
    let names = |at, port: Option<&str>| -> Vec<CapabilityName> {
        let of = found.iter().filter(|found| found.at == at && found.port.as_deref() == port);
        of.map(|found| found.name).collect()
    };
    use CapabilityName as Name;
    let tunnel =
        [Name::UdpGro, Name::UdpGso, Name::UdpGso128, Name::ReceiveBuffer, Name::SendBuffer];
    let tap = [Name::TapChecksum, Name::TapTso, Name::TapUso, Name::GsoWrite];
    assert_eq!(names(Place::Tunnel, None), tunnel);
    assert_eq!(names(Place::Host, None), tap);
    let pods = lab.admin("n1").unwrap().pods().unwrap();
    assert_eq!(pods.len(), 2);
    let port = [&tap[..], &[Name::BigTcpV4, Name::BigTcpV6]].concat();
    for pod in pods {
        assert_eq!(names(Place::Port, Some(&pod.title())), port);
    }
    for Capability { name, on, reason, remedy, next_try_s, .. } in &found {
        assert_eq!((reason.is_none(), remedy.is_none()), (*on, *on), "{name}");
        assert!(!on || next_try_s.is_none(), "{name}");
        let is_memory = matches!(name, Name::ReceiveBuffer | Name::SendBuffer);
        assert!(*on || !is_memory || next_try_s.is_some_and(|s| s <= 60), "{name}: {next_try_s:?}");
    }
    lab.finish();
}

/// What Linux 6.6 and later take; this kernel's answer for IPv6 is its own, but one it must be.
#[test]
fn whether_long_super_frames_are_taken_is_found_out_soon_and_without_a_trace() {
    if !may_make_labs() {
        return;
    }
    let here = Netns::current().unwrap().identity().unwrap();
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        let Probed { tcp4, tcp6 } = long_frames::probe();
        fastest = fastest.min(began.elapsed());
        if kernel() >= (6, 6) {
            assert_eq!(tcp4, Ok(()));
        }
        let untried = |tried: &_| matches!(tried, Err(NotTaken::Untried { .. }));
        assert!(!untried(&tcp4) && !untried(&tcp6), "{tcp4:?}, {tcp6:?}");
        println!("IPv4: {tcp4:?}, IPv6: {tcp6:?}");
    }
    println!("found out within {fastest:?}");
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    assert_eq!(Netns::current().unwrap().identity().unwrap(), here);
    assert_eq!(Netlink::open().unwrap().find_link("probe").unwrap(), None);
}

/// A firewall does to long packets what an older kernel does.
#[test]
fn why_long_super_frames_are_not_taken_is_told_per_protocol() {
    if !may_make_labs() || !has_programs(&[("nft", "nftables")]) {
        return;
    }
    let refusing = |rule: &str| {
        let netns = Netns::create().unwrap();
        let rules =
            format!("table inet t {{ chain c {{ type filter hook input priority 0; {rule}; }}; }}");
        let done = netns.run(|| Command::new("nft").arg(rules).status().unwrap()).unwrap();
        assert!(done.success(), "{rule}");
        long_frames::probe_in(netns)
    };
    let text = |tried: Result<(), NotTaken>| tried.unwrap_err().to_string();

    let Probed { tcp4, tcp6 } = refusing("meta length > 65535 drop");
    let told = "dropped a TCP packet of 260 kB over";
    assert!(text(tcp4.clone()).contains(&format!("{told} IPv4; Linux 6.3 ")), "{tcp4:?}");
    assert!(text(tcp6.clone()).contains(&format!("{told} IPv6; Linux 5.19 ")), "{tcp6:?}");

    let Probed { tcp4, tcp6 } = refusing("meta nfproto ipv4 meta length < 65536 drop");
    assert_eq!(tcp6.is_ok(), long_frames::probe().tcp6.is_ok(), "one does not depend on the other");
    assert!(text(tcp4).contains("over IPv4 could not be found out: the kernel did not answer"));

    let without = Netns::create().unwrap();
    let off = || fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    without.run(off).unwrap().unwrap();
    let Probed { tcp4, tcp6 } = long_frames::probe_in(without);
    assert_eq!(tcp4.is_ok(), kernel() >= (6, 6), "{tcp4:?}");
    let told = text(tcp6);
    assert!(told.contains("over IPv6 could not be found out: cannot give interface"), "{told}");
}

/// Both are off then, and nothing else is.
#[test]
fn without_the_right_to_make_a_namespace_long_super_frames_are_off() {
    if !may_make_labs() {
        return;
    }
    let unprivileged = || {
        let held = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, held).unwrap();
        long_frames::probe()
    };
    let probed = thread::spawn(unprivileged).join().unwrap();
    assert_eq!(probed.allowed(), LongFrames::NONE);
    for tried in [probed.tcp4, probed.tcp6] {
        let told = tried.unwrap_err().to_string();
        assert!(told.contains("not permitted to create the network namespace"), "{told}");
    }
}

/// While its daemon stands still, the kernel has to drop, and tells where.
#[test]
fn what_the_kernel_drops_is_told_beside_the_conservation_law() {
    if !may_make_labs() {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 2, ..LabConfig::new("kdrops") });
    let (here, there) = (pod(&lab, "n1-p1"), pod(&lab, "n2-p1"));
    assert_eq!(counters(&lab, "n1").kernel_dropped, KernelDropped::default());

    // A daemon that stands still answers no ARP.
    let target = same_family(&there.addresses, here.addresses[0]);
    assert!(Ping::new(target).run(&here.namespace).unwrap().is_ok());
    still(&lab, "n1", || flood(&here, &there, 5_000));
    eventually("the pod's drops are told", || counters(&lab, "n1").kernel_dropped.ports > 0);
    let pods = lab.admin("n1").unwrap().pods().unwrap();
    let of = |name: &str| {
        let addresses = &lab.state().pod(name).unwrap().1.addresses;
        pods.iter().find(|pod| pod.addresses == *addresses).unwrap().kernel_dropped
    };
    assert_eq!((of("n1-p1"), of("n1-p2")), (counters(&lab, "n1").kernel_dropped.ports, 0));

    // What the largest buffer holds, and more, as often as it takes: on a busy machine, much of it is lost on the way.
    eventually("the tunnel's drops are told", || {
        still(&lab, "n2", || flood(&here, &there, 60_000));
        counters(&lab, "n2").kernel_dropped.tunnel > 0
    });
    assert_eq!(counters(&lab, "n2").kernel_dropped.ports, 0);
    let pod = lab.state().pod("n1-p1").unwrap().1.name.clone();
    let before = counters(&lab, "n1").kernel_dropped.ports;
    let mut lab = lab;
    lab.remove_pod(&pod).unwrap();
    assert!(counters(&lab, "n1").kernel_dropped.ports >= before, "they are not forgotten");
    lab.finish();
}

/// A route with a smaller MTU is to the tunnel what a router's "fragmentation needed" makes of one.
#[test]
fn a_path_that_carries_less_is_named_heeded_and_given_up_again() {
    if !may_make_labs() || !has_programs(&[("ip", "iproute2")]) {
        return;
    }
    let lab = TestLab::up(LabConfig { nodes: 2, ..LabConfig::new("narrow") });
    let (here, beside, there) = (pod(&lab, "n1-p1"), pod(&lab, "n1-p2"), pod(&lab, "n2-p1"));
    let target = same_family(&there.addresses, "0.0.0.0".parse().unwrap());
    let full = |len: u16| Ping {
        payload_len: usize::from(len) - 28,
        dont_fragment: true,
        count: 1,
        ..Ping::new(target)
    };
    assert!(full(INNER_MTU).run(&here.namespace).unwrap().is_ok());

    let node = lab.namespace("n1").unwrap();
    let far = lab.state().node("n2").unwrap().underlay;
    run(&node, &format!("ip route add {far} dev eth0 mtu {PATH_MTU}"));
    assert_eq!(full(INNER_MTU).run(&here.namespace).unwrap().received, 0);
    assert_eq!(lab.dropped("n1", Reason::PathMtu), 1);
    assert_eq!(lab.dropped("n1", Reason::UnderlayError), 0);
    eventually("the path is named", || path_problem(&lab).is_some());
    let problem = path_problem(&lab).unwrap();
    assert!(problem.contains(&format!("to node n2 ({far}) carries only 1400 bytes")), "{problem}");

    let told = full(INNER_MTU).run(&here.namespace).unwrap();
    let error = told.error.unwrap();
    assert!(error.starts_with(&format!("too big: mtu {PATH_INNER_MTU}")), "{error}");
    assert!(full(PATH_INNER_MTU).run(&here.namespace).unwrap().is_ok());
    assert_eq!(lab.dropped("n1", Reason::PathMtu), 1, "nothing more is lost");

    run(&node, &format!("ip route del {far} dev eth0"));
    eventually("the path is as before", || path_problem(&lab).is_none());
    // This pod's own kernel was not told anything.
    assert!(full(INNER_MTU).run(&beside.namespace).unwrap().is_ok());
    lab.finish();
}

/// The release of the kernel that runs.
fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let mut numbers = uname.release().to_str().unwrap().split(['.', '-']);
    let mut next = || numbers.next().unwrap().parse().unwrap();
    (next(), next())
}

fn status(lab: &TestLab, node: &str) -> Status {
    lab.admin(node).unwrap().status().unwrap()
}

fn counters(lab: &TestLab, node: &str) -> CountersReport {
    lab.admin(node).unwrap().counters().unwrap()
}

fn path_problem(lab: &TestLab) -> Option<String> {
    let problems = status(lab, "n1").problems.into_iter();
    problems.filter(|problem| problem.topic == ProblemTopic::Path).map(|p| p.text).next()
}

/// Holds the daemon of `node` while `work` is done, which must not take long: others would miss it.
fn still(lab: &TestLab, node: &str, work: impl FnOnce()) {
    let daemon = lab.state().node(node).unwrap().daemon.unwrap();
    daemon.signal(Signal::STOP).unwrap();
    work();
    daemon.signal(Signal::CONT).unwrap();
}

/// Sends datagrams without waiting for anybody.
fn flood(from: &End, to: &End, datagrams: usize) {
    let target = same_family(&to.addresses, from.addresses[0]);
    let socket = from.namespace.run(|| UdpSocket::bind((from.addresses[0], 0))).unwrap().unwrap();
    for _ in 0..datagrams {
        // The interface's queue may refuse, which is as good as a drop.
        let _sent_or_not = socket.send_to(&[7; 1400], (target, 9));
    }
}
