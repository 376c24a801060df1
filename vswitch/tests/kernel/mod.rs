//! Tests against the real kernel: their runner, namespaces with pods in them, and traffic.
//!
//! The whole process first moves into namespaces of its own (as an ordinary user: also a user
//! namespace), so that nothing here can touch the machine, and nothing is left when it ends. It
//! understands the arguments of the standard test runner that `cargo test` and `cargo nextest` use.
//!
//! Where the kernel does not permit that, it says so and passes, unless `WEFT_REQUIRE_KERNEL_TESTS=1`.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cni::link::{Netlink, PodInterface, Sysctl, configure_pod, set_sysctl};
use cni::netns::Netns;
use ipnetwork::IpNetwork;
use vswitch::counters::Totals;
use vswitch::engine::{Engine, Port};
use vswitch::mac::Mac;
use vswitch::offload::LongFrames;
use vswitch::port::{PortIx, Sink};
use vswitch::tables::{Node, Peer, PortEntry, PortKind, Tables, TablesBuilder};
use vswitch::tap::Tap;
use vswitch::verdict::Reason;
use vswitch::veth::Veth;

/// Longest that anything here may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub type Test = (&'static str, fn());

/// Runs the tests that the arguments ask for.
pub fn main(tests: &[Test]) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        if !has("--ignored") {
            tests.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> =
        arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|filter| {
                if has("--exact") { name == *filter } else { name.contains(filter.as_str()) }
            })
    };
    if let Err((action, error)) = isolate() {
        println!(
            "not run: cannot {action}: {error}. These tests need /dev/net/tun and root, or an ordinary \
             user's right to make user namespaces (kernel.unprivileged_userns_clone=1, \
             user.max_user_namespaces > 0, kernel.apparmor_restrict_unprivileged_userns=0, no seccomp \
             filter against unshare)"
        );
        return if is_required() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let mut failed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        let passed = std::thread::spawn(*test).join().is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says why a part of a test is left out; fails where that is not allowed.
#[track_caller]
pub fn skip(why: &str) {
    assert!(!is_required(), "{why}");
    println!("skipped: {why}");
}

fn is_required() -> bool {
    std::env::var_os("WEFT_REQUIRE_KERNEL_TESTS").is_some_and(|set| set == "1")
}

/// Moves the process into namespaces of its own.
fn isolate() -> Result<(), (&'static str, io::Error)> {
    use rustix::thread::UnshareFlags as Unshare;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let user = if uid.is_root() { Unshare::empty() } else { Unshare::NEWUSER };
    // SAFETY: the process has one thread, and no file descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(user | Unshare::NEWNET | Unshare::NEWNS) }
        .map_err(|errno| ("make namespaces", errno.into()))?;
    if !uid.is_root() {
        for (file, text) in [
            ("/proc/self/setgroups", "deny".to_owned()),
            ("/proc/self/uid_map", format!("0 {} 1", uid.as_raw())),
            ("/proc/self/gid_map", format!("0 {} 1", gid.as_raw())),
        ] {
            std::fs::write(file, text).map_err(|error| ("map the user", error))?;
        }
    }
    std::fs::File::open("/dev/net/tun").map_err(|error| ("open /dev/net/tun", error))?;
    Ok(())
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A network namespace.
pub struct Net {
    pub netns: Netns,
}

impl Net {
    pub fn new() -> Self {
        let net = Self { netns: Netns::create().unwrap() };
        // Addresses can be used at once, and fewer frames are sent that nobody asked for.
        net.run(|| {
            for ifname in ["all", "default"] {
                set_sysctl(Sysctl::Ipv6 { ifname, key: "accept_dad" }, "0").unwrap();
            }
        });
        let mut netlink = net.netlink();
        let lo = netlink.link("lo").unwrap();
        netlink.set_up(lo.index).unwrap();
        net
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).unwrap()
    }

    pub fn netlink(&self) -> Netlink {
        Netlink::open_in_netns(&self.netns).unwrap()
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.netns.as_fd().as_raw_fd()).into()
    }

    pub fn index(&self, ifname: &str) -> u32 {
        self.netlink().link(ifname).unwrap().index
    }

    pub fn set_up(&self, ifname: &str, is_up: bool) {
        let index = self.index(ifname);
        let mut netlink = self.netlink();
        if is_up { netlink.set_up(index) } else { netlink.set_down(index) }.unwrap();
    }

    pub fn delete(&self, ifname: &str) {
        self.netlink().delete_link(self.index(ifname)).unwrap();
    }

    /// Joins two namespaces by a veth pair that is up.
    pub fn join(&self, ifname: &str, other: &Self, other_ifname: &str, mtu: u32) {
        self.netlink().create_veth(ifname, other_ifname, Some(&other.netns)).unwrap();
        for (net, ifname) in [(self, ifname), (other, other_ifname)] {
            let index = net.index(ifname);
            net.netlink().set_mtu(index, mtu).unwrap();
            net.netlink().set_up(index).unwrap();
        }
    }

    pub fn add_address(&self, ifname: &str, address: &str) {
        let address: IpNetwork = address.parse().unwrap();
        self.netlink().add_address(self.index(ifname), address).unwrap();
    }
}

/// Node `node`'s pod `number`: its addresses, and its namespace.
pub struct Pod {
    pub net: Net,
    pub port: PortIx,
    node: u8,
    mtu: u16,
}

impl Pod {
    pub fn new(node: u8, number: u8, mtu: u16) -> Self {
        Self { net: Net::new(), port: PortIx(number.into()), node, mtu }
    }

    pub fn v4(&self) -> IpAddr {
        Ipv4Addr::new(10, 244, self.node, self.number()).into()
    }

    pub fn v6(&self) -> IpAddr {
        ip(&format!("fd00:10:244:{}::{}", self.node, self.number()))
    }

    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4(), self.v6()]
    }

    pub fn mac(&self) -> Mac {
        Mac([0x0a, 0x58, 10, 244, self.node, self.number()])
    }

    fn number(&self) -> u8 {
        u8::try_from(self.port.0).unwrap()
    }

    fn entry(&self) -> PortEntry {
        let addresses = self.addresses().to_vec();
        PortEntry { kind: PortKind::Pod, mac: self.mac(), mtu: self.mtu, addresses }
    }

    /// Gives the pod's `eth0` its addresses and routes.
    pub fn configure(&self) {
        let interface = PodInterface {
            mac: self.mac().0,
            mtu: self.mtu.into(),
            addresses: self.addresses().to_vec(),
            gateways: gateways(self.node),
        };
        configure_pod(&self.net.path(), "eth0", &interface).unwrap();
    }

    /// Makes the pod's `eth0` a TAP, and a port of the switch.
    pub fn plug_tap(&self, engine: &Engine) -> Tap {
        self.plug_tap_that_takes(engine, LongFrames::NONE)
    }

    /// The same, where the kernel takes `long`.
    pub fn plug_tap_that_takes(&self, engine: &Engine, long: LongFrames) -> Tap {
        let tap = self.net.run(|| Tap::open("eth0")).unwrap();
        let sinks =
            (0..engine.workers()).map(|_| Box::new(tap.sink(self.port, long)) as Box<dyn Sink>);
        let port = Port { source: Box::new(tap.source(self.port)), sinks: sinks.collect() };
        engine.add_port(self.port, port).unwrap();
        self.configure();
        tap
    }

    /// Makes the pod's `eth0` one end of a veth pair, whose other end, `ifname` in `host`, is a port.
    pub fn plug_veth(&self, engine: &Engine, host: &Net, ifname: &str) -> Veth {
        host.join(ifname, &self.net, "eth0", self.mtu.into());
        let veth = host.run(|| {
            set_sysctl(Sysctl::Ipv6 { ifname, key: "disable_ipv6" }, "1").unwrap();
            Veth::open(ifname).unwrap()
        });
        let sinks = (0..engine.workers()).map(|_| Box::new(veth.sink(self.port)) as Box<dyn Sink>);
        let port = Port { source: Box::new(veth.source(self.port)), sinks: sinks.collect() };
        engine.add_port(self.port, port).unwrap();
        self.configure();
        veth
    }
}

fn gateways(node: u8) -> Vec<IpAddr> {
    vec![Ipv4Addr::new(10, 244, node, 1).into(), ip(&format!("fd00:10:244:{node}::1"))]
}

pub fn vtep_mac(node: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, node])
}

/// The tables of node `node` with `pods`, and `peers` by number, underlay address and MTU. All nodes
/// receive VXLAN on `vxlan_port`.
pub fn tables(
    (node, underlay): (u8, IpAddr),
    pods: &[&Pod],
    peers: &[(u8, IpAddr, u16)],
    vxlan_port: u16,
) -> Tables {
    let ranges = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
    let own = Node {
        vtep_mac: vtep_mac(node),
        gateway_v4: Some(Ipv4Addr::new(10, 244, node, 1)),
        gateway_v6: Some(format!("fd00:10:244:{node}::1").parse().unwrap()),
        underlay: Some(underlay),
        vxlan_port,
        gossip_port: 7946,
    };
    let mut builder = TablesBuilder::new(1, own, &ranges);
    // Its sink is not there: nobody sends to it in these tests, but pods ask for the gateways' MAC.
    let host =
        PortEntry { kind: PortKind::Host, mac: Mac::HOST, mtu: 1280, addresses: gateways(node) };
    builder.port(PortIx::HOST, host);
    for pod in pods {
        builder.port(pod.port, pod.entry());
    }
    for (number, underlay, mtu) in peers {
        let peer = Peer {
            name: format!("n{number}"),
            underlay: SocketAddr::new(*underlay, vxlan_port),
            vtep_mac: vtep_mac(*number),
            mtu: *mtu,
            leases: vec![
                format!("10.244.{number}.0/24").parse().unwrap(),
                format!("fd00:10:244:{number}::/64").parse().unwrap(),
            ],
        };
        assert!(builder.peer(peer).is_some());
    }
    builder.build()
}

/// Waits until `holds`.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::yield_now();
    }
}

/// Every packet is accounted for, and none was dropped but of the kinds that a kernel sends unasked
/// (router solicitations, reports of groups).
#[track_caller]
pub fn assert_clean(engine: &Engine) -> Totals {
    let mut totals = engine.counters().sum();
    eventually("every packet is accounted for", || {
        totals = engine.counters().sum();
        totals.queued() == 0
    });
    let unasked = [Reason::Multicast, Reason::NeighborIgnored, Reason::Spoofed];
    for reason in Reason::ALL.iter().filter(|reason| !unasked.contains(reason)) {
        assert_eq!(totals.dropped(*reason), 0, "{reason}: {totals:?}");
    }
    totals
}

/// Sends `len` bytes over TCP from `source` to `target` at `address`, and compares each.
#[track_caller]
pub fn transfer(source: &Net, target: &Net, address: IpAddr, len: usize) {
    let listener = target.run(|| TcpListener::bind((address, 0))).unwrap();
    let to = listener.local_addr().unwrap();
    let mut sending = source.run(|| TcpStream::connect_timeout(&to, DEADLINE)).unwrap();
    let (mut receiving, _) = listener.accept().unwrap();
    sending.set_write_timeout(Some(DEADLINE)).unwrap();
    receiving.set_read_timeout(Some(DEADLINE)).unwrap();
    let sender = std::thread::spawn(move || {
        let mut pattern = Pattern::default();
        let mut left = len;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            let part = left.min(buffer.len());
            pattern.fill(&mut buffer[..part]);
            sending.write_all(&buffer[..part]).unwrap();
            left -= part;
        }
    });
    let mut pattern = Pattern::default();
    let (mut buffer, mut expected) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut received = 0;
    loop {
        let part = receiving.read(&mut buffer).unwrap();
        if part == 0 {
            break;
        }
        pattern.fill(&mut expected[..part]);
        assert!(buffer[..part] == expected[..part], "wrong bytes behind {received}");
        received += part;
    }
    sender.join().unwrap();
    assert_eq!(received, len);
}

/// Sends datagrams of all `lens` from `source` to `target` at `address` and back.
#[track_caller]
pub fn echo(source: &Net, target: &Net, address: IpAddr, lens: &[usize]) {
    let bind = |net: &Net, address: IpAddr| {
        let socket = net.run(|| UdpSocket::bind((address, 0))).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    let server = bind(target, address);
    let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
    let client = bind(source, ip(any));
    client.connect(server.local_addr().unwrap()).unwrap();
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 1 << 16];
    for len in lens {
        let mut sent = vec![0; *len];
        pattern.fill(&mut sent);
        client.send(&sent).unwrap();
        let (received, from) = server.recv_from(&mut buffer).unwrap();
        assert!(buffer[..received] == sent, "there, {len} bytes");
        server.send_to(&buffer[..received], from).unwrap();
        let received = client.recv(&mut buffer).unwrap();
        assert!(buffer[..received] == sent, "back, {len} bytes");
    }
}

/// Bytes that look random and are the same each time (splitmix64).
#[derive(Default)]
struct Pattern {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.used == 0 {
                self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                self.word = (mixed ^ (mixed >> 27)).to_le_bytes();
            }
            *byte = self.word[self.used];
            self.used = (self.used + 1) % 8;
        }
    }
}
