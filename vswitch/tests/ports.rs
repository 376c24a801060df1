//! TAP and AF_PACKET ports, and a whole switch between them, against the real kernel.
#![allow(
    unsafe_code,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that speaks to the kernel, and shares its means with others"
)]

mod kernel;

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use kernel::*;
use vswitch::config::Config;
use vswitch::engine::{Engine, LostSource};
use vswitch::frame::GsoKind;
use vswitch::mac::Mac;
use vswitch::offload::LongFrames;
use vswitch::tap::{Offloads, Tap, TapError};
use vswitch::verdict::Reason;
use vswitch::veth::{self, Veth, VethError};

const TESTS: [Test; 12] = [
    ("a_tap_outlives_its_process_until_it_is_deleted", a_tap_outlives_its_process),
    ("a_tap_that_cannot_be_had_says_why", a_tap_that_cannot_be_had_says_why),
    ("two_taps_carry_tcp_and_udp", two_taps_carry_tcp_and_udp),
    ("super_frames_that_follow_each_other_are_one_write", long_super_frames_arrive),
    ("a_tap_and_a_veth_carry_tcp_and_udp", a_tap_and_a_veth_carry_tcp_and_udp),
    ("a_veth_is_restored", a_veth_is_restored),
    ("a_frame_with_a_vlan_tag_is_dropped", a_frame_with_a_vlan_tag_is_dropped),
    ("what_an_interface_that_is_down_gets_is_counted", down_is_counted),
    ("what_a_veth_has_no_room_for_is_told", what_a_veth_has_no_room_for_is_told),
    ("a_veth_comes_up_again", a_veth_comes_up_again),
    ("a_deleted_tap_is_told", a_deleted_tap_is_told),
    ("a_deleted_veth_is_told_whether_it_was_up_or_down", a_deleted_veth_is_told),
];

const MTU: u16 = 1450;
const BULK: usize = 32_000_000;
const LENS: [usize; 4] = [1, 1000, 1422, 9000];

fn main() -> ExitCode {
    kernel::main(&TESTS)
}

fn start(workers: u16, pods: &[&Pod]) -> Engine {
    let tables = tables((1, ip("192.0.2.1")), pods, &[], 4789);
    Engine::start(&Config { workers, ..Config::default() }, Arc::new(tables)).unwrap()
}

fn a_tap_outlives_its_process() {
    let net = Net::new();
    let tap = net.run(|| Tap::open("eth0")).unwrap();
    assert_eq!(tap.name(), "eth0");
    assert_eq!(tap.offloads(), Offloads { checksum: true, tcp: true, udp: true });
    let made = net.netlink().link("eth0").unwrap();
    assert_eq!(made.kind, "tun");
    let busy = net.run(|| Tap::open("eth0")).unwrap_err();
    assert!(busy.to_string().contains("another process has it open"), "{busy}");
    drop(tap);
    assert_eq!(net.index("eth0"), made.index, "it stays");

    let again = net.run(|| Tap::open("eth0")).unwrap();
    assert_eq!(net.index("eth0"), made.index, "it is the same");
    assert!(again.offloads().checksum);
    let source = again.source(vswitch::port::PortIx(1));
    again.delete().unwrap();
    drop(source);
    assert_eq!(net.netlink().find_link("eth0").unwrap(), None);
}

fn a_tap_that_cannot_be_had_says_why() {
    let net = Net::new();
    net.netlink().create_veth("eth0", "other", None).unwrap();
    let taken = net.run(|| Tap::open("eth0")).unwrap_err();
    assert!(matches!(taken, TapError::Attach { .. }), "{taken}");
    assert!(taken.to_string().contains("not a single-queue TAP"), "{taken}");
    let unnamed = net.run(|| Tap::open("tap%d")).unwrap_err();
    assert!(matches!(unnamed, TapError::Name(_)), "{unnamed}");
    let missing = net.run(|| Veth::open("nowhere")).unwrap_err();
    assert!(matches!(missing, VethError::NotFound(_)), "{missing}");
}

fn two_taps_carry_tcp_and_udp() {
    for workers in [1, 2, 3] {
        let (a, b) = (Pod::new(1, 2, MTU), Pod::new(1, 3, MTU));
        let engine = start(workers, &[&a, &b]);
        let taps = [a.plug_tap(&engine), b.plug_tap(&engine)];
        for (source, target) in [(&a, &b), (&b, &a)] {
            for address in target.addresses() {
                transfer(&source.net, &target.net, address, BULK);
                echo(&source.net, &target.net, address, &LENS);
            }
        }
        assert_clean(&engine);
        let (from_a, to_b) = (engine.counters().port(a.port), engine.counters().port(b.port));
        assert!(from_a.received_bytes > 2 * BULK as u64 && to_b.delivered_bytes > 2 * BULK as u64);
        assert_eq!(taps.map(|tap| tap.gso_refused()), [0, 0], "super-frames go whole");
        engine.stop().unwrap();
    }
}

/// Every byte is compared that TCP gets out of them.
fn long_super_frames_arrive() {
    let uname = rustix::system::uname();
    let release = uname.release().to_str().unwrap().split(['.', '-']);
    let release: Vec<u32> = release.map_while(|number| number.parse().ok()).collect();
    let [major, minor, ..] = release[..] else { panic!("{uname:?}") };
    if (major, minor) < (6, 6) {
        return skip("a TAP takes long super-frames since Linux 6.6");
    }
    // Newer ones may do without the jumbo option of IPv6.
    let long = LongFrames { tcp4: true, tcp6: major < 7 };
    let (a, b) = (Pod::new(1, 2, MTU), Pod::new(1, 3, MTU));
    let engine = start(2, &[&a, &b]);
    let taps = [&a, &b].map(|pod| pod.plug_tap_that_takes(&engine, long));
    for (address, is_long) in [(b.v4(), long.tcp4), (b.v6(), long.tcp6)] {
        let watch = Watch::new(&b.net, "eth0");
        eventually("a write that is longer than an IP packet", || {
            transfer(&a.net, &b.net, address, BULK);
            watch.longest() > 14 + 65_535 || !is_long
        });
        transfer(&b.net, &a.net, if address.is_ipv4() { a.v4() } else { a.v6() }, BULK);
    }
    assert_clean(&engine);
    for tap in &taps {
        assert_eq!((tap.gso_refused(), tap.chain_fallbacks()), (0, vec![]));
        assert_eq!([GsoKind::Tcp4, GsoKind::Tcp6].map(|kind| tap.chains_refused(kind)), [0, 0]);
    }
    engine.stop().unwrap();
}

fn a_tap_and_a_veth_carry_tcp_and_udp() {
    let (a, b, host) = (Pod::new(1, 2, MTU), Pod::new(1, 3, MTU), Net::new());
    let engine = start(2, &[&a, &b]);
    let _tap = a.plug_tap(&engine);
    let veth = b.plug_veth(&engine, &host, "port0");
    assert_eq!(veth.name(), "port0");
    for (source, target) in [(&a, &b), (&b, &a)] {
        for address in target.addresses() {
            transfer(&source.net, &target.net, address, BULK);
            echo(&source.net, &target.net, address, &LENS);
        }
    }
    assert_clean(&engine);
    engine.stop().unwrap();
}

/// Nobody reads from the port, so its buffer fills.
fn what_a_veth_has_no_room_for_is_told() {
    let (host, other) = (Net::new(), Net::new());
    host.join("port0", &other, "eth0", 1500);
    other.add_address("eth0", "192.0.2.1/24");
    let veth = host.run(|| Veth::open("port0")).unwrap();
    assert_eq!(veth.take_drops().unwrap(), 0);
    veth.grow_receive_buffer().unwrap();
    let buffer = veth.receive_buffer().unwrap();
    assert!((1..=veth::RECEIVE_BUFFER).contains(&buffer), "{buffer}");
    let socket = other.run(|| UdpSocket::bind("192.0.2.1:0")).unwrap();
    socket.set_broadcast(true).unwrap();
    let mut dropped = 0;
    eventually("the buffer is full", || {
        for _ in 0..1000 {
            socket.send_to(&[1; 1400], "192.0.2.255:9").unwrap();
        }
        dropped = veth.take_drops().unwrap();
        dropped > 0
    });
    assert!(dropped <= 1000, "{dropped}");
    eventually("the last ones come", || veth.take_drops().unwrap() == 0);
}

fn a_veth_is_restored() {
    let (host, other) = (Net::new(), Net::new());
    host.join("port0", &other, "eth0", 1500);
    let has_arp = || flags(&host, "port0") & libc::IFF_NOARP == 0;
    assert!(has_arp());
    for _ in 0..2 {
        let veth = host.run(|| Veth::open("port0")).unwrap();
        assert!(!has_arp());
        let source = veth.source(vswitch::port::PortIx(1));
        drop(veth);
        assert!(!has_arp(), "while one half is open");
        drop(source);
        assert!(has_arp());
        // What a process leaves that was killed; it is not taken for how the interface was before.
        set_flags(&host, "port0", flags(&host, "port0") | libc::IFF_NOARP);
    }
}

fn a_frame_with_a_vlan_tag_is_dropped() {
    let (a, b, host) = (Pod::new(1, 2, MTU), Pod::new(1, 3, MTU), Net::new());
    let engine = start(2, &[&a, &b]);
    let _tap = a.plug_tap(&engine);
    let _veth = b.plug_veth(&engine, &host, "port0");
    for (ix, pod) in [&a, &b].into_iter().enumerate() {
        let before = engine.counters().port(pod.port).dropped;
        let tagged =
            [&Mac::ROUTER.0[..], &pod.mac().0, &[0x81, 0, 0, 5, 8, 0], &[0x45; 50]].concat();
        send_raw(&pod.net, "eth0", &tagged);
        eventually("the drop is counted", || {
            engine.counters().sum().dropped(Reason::VlanTagged) == ix as u64 + 1
        });
        assert!(engine.counters().port(pod.port).dropped > before);
    }
    eventually("every packet is accounted for", || engine.counters().sum().queued() == 0);
}

fn down_is_counted() {
    let (a, b, c, host) =
        (Pod::new(1, 2, MTU), Pod::new(1, 3, MTU), Pod::new(1, 4, MTU), Net::new());
    let engine = start(2, &[&a, &b, &c]);
    let _tap = a.plug_tap(&engine);
    let _veth = b.plug_veth(&engine, &host, "port0");
    let _other_tap = c.plug_tap(&engine);
    host.set_up("port0", false);
    c.net.set_up("eth0", false);
    for (ix, pod) in [&b, &c].into_iter().enumerate() {
        let socket = a.net.run(|| UdpSocket::bind((a.v4(), 0))).unwrap();
        socket.send_to(b"x", (pod.v4(), 9)).unwrap();
        eventually("the drop is counted", || {
            engine.counters().sum().dropped(Reason::PortError) == ix as u64 + 1
        });
        assert!(engine.counters().port(pod.port).dropped > 0);
    }
    eventually("every packet is accounted for", || engine.counters().sum().queued() == 0);
    assert_eq!(engine.take_lost_sources(), []);
}

fn a_veth_comes_up_again() {
    let (a, b, host) = (Pod::new(1, 2, MTU), Pod::new(1, 3, MTU), Net::new());
    let engine = start(2, &[&a, &b]);
    let _tap = a.plug_tap(&engine);
    let _veth = b.plug_veth(&engine, &host, "port0");
    for _ in 0..2 {
        host.set_up("port0", false);
        let down = Instant::now();
        eventually("a breath", || engine.health()[0].last_breath < down.elapsed());
        host.set_up("port0", true);
        transfer(&b.net, &a.net, a.v4(), 1_000_000);
        transfer(&a.net, &b.net, b.v4(), 1_000_000);
    }
    assert_eq!(engine.take_lost_sources(), []);
}

fn a_deleted_tap_is_told() {
    let a = Pod::new(1, 2, MTU);
    let engine = start(2, &[&a]);
    let tap = a.plug_tap(&engine);
    a.net.delete("eth0");
    assert_eq!(await_loss(&engine).port, Some(a.port));
    assert!(tap.delete().is_err(), "there is nothing to delete");
    engine.remove_port(a.port).unwrap();
    // The worker lives, and the index can be used again.
    let _again = a.plug_tap(&engine);
    let index = a.net.index("eth0");
    a.net.netlink().delete_link(index).unwrap();
    assert_eq!(await_loss(&engine).port, Some(a.port));
}

fn a_deleted_veth_is_told() {
    for is_up in [true, false] {
        let (a, host) = (Pod::new(1, 2, MTU), Net::new());
        let engine = start(2, &[&a]);
        let _veth = a.plug_veth(&engine, &host, "port0");
        host.set_up("port0", is_up);
        host.delete("port0");
        assert_eq!(await_loss(&engine).port, Some(a.port));
        assert_eq!(engine.health()[0].ended, None);
    }
}

#[track_caller]
fn await_loss(engine: &Engine) -> LostSource {
    let mut lost = Vec::new();
    eventually("the loss is told", || {
        lost.extend(engine.take_lost_sources());
        !lost.is_empty()
    });
    assert_eq!(lost.len(), 1, "{lost:?}");
    lost.remove(0)
}

/// Sends a frame out of an interface as its owner could.
fn send_raw(net: &Net, ifname: &str, frame: &[u8]) {
    let address = link_address(net, ifname);
    net.run(|| {
        let socket = open_socket(libc::AF_PACKET, libc::SOCK_RAW);
        // SAFETY: frame and address are live and their lengths are given.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address).try_into().unwrap(),
            )
        };
        assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", io::Error::last_os_error());
    });
}

/// Sees the frames of an interface.
struct Watch(OwnedFd);

impl Watch {
    fn new(net: &Net, ifname: &str) -> Self {
        let mut address = link_address(net, ifname);
        address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        let socket = net.run(|| open_socket(libc::AF_PACKET, libc::SOCK_RAW));
        // SAFETY: the address is live and its length is given.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address).try_into().unwrap(),
            )
        };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        Self(socket)
    }

    /// Length of the longest frame that was seen since the last call.
    fn longest(&self) -> usize {
        let mut longest = 0;
        let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        loop {
            // SAFETY: with MSG_TRUNC the length comes without the bytes; none are written.
            let len = unsafe { libc::recv(self.0.as_raw_fd(), std::ptr::null_mut(), 0, flags) };
            match usize::try_from(len) {
                Ok(len) => longest = longest.max(len),
                Err(_) => return longest,
            }
        }
    }
}

fn link_address(net: &Net, ifname: &str) -> libc::sockaddr_ll {
    // SAFETY: `sockaddr_ll` is plain integers, for which all zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.try_into().unwrap();
    address.sll_ifindex = net.index(ifname).try_into().unwrap();
    address
}

fn flags(net: &Net, ifname: &str) -> i32 {
    let mut request = request(ifname);
    net.run(|| interface_ioctl(libc::SIOCGIFFLAGS, &mut request));
    // SAFETY: the ioctl has filled in this member.
    i32::from(unsafe { request.0.ifr_ifru.ifru_flags })
}

fn set_flags(net: &Net, ifname: &str, flags: i32) {
    let mut request = request(ifname);
    request.0.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    net.run(|| interface_ioctl(libc::SIOCSIFFLAGS, &mut request));
}

struct Request(libc::ifreq);
// SAFETY: of the union's members only the flags, an integer, are used.
unsafe impl Send for Request {}

fn request(ifname: &str) -> Request {
    // SAFETY: `ifreq` is plain integers and pointers, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, byte) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
        *target = byte.cast_signed();
    }
    Request(request)
}

fn interface_ioctl(kind: libc::c_ulong, request: &mut Request) {
    let socket = open_socket(libc::AF_INET, libc::SOCK_DGRAM);
    // SAFETY: the ioctls read and write an `ifreq`, which is live for the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), kind, &raw mut request.0) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

fn open_socket(family: i32, kind: i32) -> OwnedFd {
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    assert!(socket >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(socket) }
}
