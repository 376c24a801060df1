//! Namespaces, interfaces, addresses and routes against the real kernel.
//!
//! The whole process first moves into namespaces of its own (as an ordinary user: also a user
//! namespace), so that nothing here can touch the machine, and nothing is left when it ends. It
//! understands the arguments of the standard test runner that `cargo test` and `cargo nextest` use.
//!
//! Where the kernel does not permit that, it says so and passes, unless `WEFT_REQUIRE_KERNEL_TESTS=1`.
#![allow(unsafe_code, clippy::unwrap_used, clippy::print_stdout)]

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use cni::link::{
    HostInterface, Link, LinkError, Netlink, PodInterface, Route, Sysctl, check_pod,
    configure_host, configure_pod, default_gateways, set_sysctl, unconfigure_host,
};
use cni::netns::{self, Netns, NetnsError};
use ipnetwork::IpNetwork;

const TESTS: [(&str, fn()); 16] = [
    ("a_namespace_lives_while_pinned", a_namespace_lives_while_pinned),
    ("work_runs_in_the_namespace_and_nowhere_else", work_runs_in_the_namespace_and_nowhere_else),
    ("a_pod_is_configured_and_checked", a_pod_is_configured_and_checked),
    ("a_configured_pod_takes_packets_at_once", a_configured_pod_takes_packets_at_once),
    ("each_change_of_a_pod_is_found", each_change_of_a_pod_is_found),
    ("a_pod_with_ipv6_switched_off_gets_it", a_pod_with_ipv6_switched_off_gets_it),
    ("a_pod_of_one_family", a_pod_of_one_family),
    ("a_pod_has_several_interfaces", a_pod_has_several_interfaces),
    ("a_pod_with_many_routes_holds_up_nobody", a_pod_with_many_routes_holds_up_nobody),
    ("missing_things_are_named", missing_things_are_named),
    ("the_host_is_configured_and_follows_its_lease", the_host_is_configured_and_follows_its_lease),
    (
        "a_range_that_another_interface_has_is_refused",
        a_range_that_another_interface_has_is_refused,
    ),
    ("a_bridge_joins_namespaces", a_bridge_joins_namespaces),
    ("a_forgotten_neighbour_is_asked_for_at_once", a_forgotten_neighbour_is_asked_for_at_once),
    ("links_can_be_changed_and_deleted", links_can_be_changed_and_deleted),
    ("settings_belong_to_the_namespace", settings_belong_to_the_namespace),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--list") {
        if !has("--ignored") {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
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
            "not run: cannot {action}: {error}. These tests need root, or an ordinary user's right to \
             make user namespaces (kernel.unprivileged_userns_clone=1, user.max_user_namespaces > 0, \
             kernel.apparmor_restrict_unprivileged_userns=0, no seccomp filter against unshare)"
        );
        let required = std::env::var_os("WEFT_REQUIRE_KERNEL_TESTS").is_some_and(|set| set == "1");
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let mut failed = 0;
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        let passed = std::thread::spawn(*test).join().is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
    netns::make_mounts_private().map_err(|error| ("make mounts private", error))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// A namespace with a path, as a runtime makes one for a pod.
struct Pod {
    netns: Netns,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Pod {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        netns::mount_tmpfs(directory.path()).unwrap();
        let path = directory.path().join("pod");
        let netns = Netns::create().unwrap();
        netns.pin(&path).unwrap();
        Self { netns, path, _directory: directory }
    }

    /// With an interface `ifname`, whose other end is in the namespace, too.
    fn with_interface(ifname: &str) -> Self {
        let pod = Self::new();
        let mut netlink = pod.netlink();
        netlink.create_veth(ifname, "other", None).unwrap();
        let other = netlink.link("other").unwrap();
        pod.netns
            .run(|| set_sysctl(Sysctl::Ipv6 { ifname: "other", key: "disable_ipv6" }, "1"))
            .unwrap()
            .unwrap();
        netlink.set_up(other.index).unwrap();
        pod
    }

    fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.path).unwrap()
    }

    /// The address from which the kernel would send to `target`.
    fn source_towards(&self, target: &str) -> IpAddr {
        let target = ip(target);
        self.netns
            .run(|| {
                let any: SocketAddr = if target.is_ipv4() {
                    "0.0.0.0:0".parse().unwrap()
                } else {
                    "[::]:0".parse().unwrap()
                };
                let socket = UdpSocket::bind(any).unwrap();
                socket.connect((target, 9)).unwrap();
                socket.local_addr().unwrap().ip()
            })
            .unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        netns::unpin(&self.path).unwrap();
        let directory = self.path.parent().unwrap();
        rustix::mount::unmount(directory, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

fn dual_stack() -> PodInterface {
    PodInterface {
        mac: [0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x05],
        mtu: 1450,
        addresses: vec![ip("10.244.1.5"), ip("fd00:10:244:1::5")],
        gateways: vec![ip("10.244.1.1"), ip("fd00:10:244:1::1")],
    }
}

fn a_namespace_lives_while_pinned() {
    let pod = Pod::new();
    assert!(netns::is_netns(&pod.path));
    let identity = netns::identity(&pod.path).unwrap();
    assert_eq!(identity, pod.netns.identity().unwrap());
    assert_ne!(identity, Netns::current().unwrap().identity().unwrap());

    let again = pod.netns.pin(&pod.path).unwrap_err();
    assert!(matches!(again, NetnsError::Io { .. }), "{again}");

    netns::unpin(&pod.path).unwrap();
    netns::unpin(&pod.path).unwrap();
    assert!(Netns::open(&pod.path).unwrap_err().is_missing());

    // What a reboot leaves of /run/netns on some machines.
    std::fs::write(&pod.path, "").unwrap();
    let error = Netns::open(&pod.path).unwrap_err();
    assert!(matches!(error, NetnsError::NotANamespace { .. }), "{error}");
    assert!(error.is_missing());
    netns::unpin(&pod.path).unwrap();
    assert!(!pod.path.exists());
}

fn work_runs_in_the_namespace_and_nowhere_else() {
    let pod = Pod::with_interface("only-here");
    let here = Netns::current().unwrap().identity().unwrap();
    let inside = netns::run_in(&pod.path, || Netns::current().unwrap().identity().unwrap());
    assert_eq!(inside.unwrap(), pod.netns.identity().unwrap());
    assert_eq!(Netns::current().unwrap().identity().unwrap(), here);

    // A socket that was opened inside sees the inside from everywhere, on any thread.
    let mut inside = pod.netlink();
    let found = std::thread::spawn(move || inside.find_link("only-here").unwrap()).join().unwrap();
    assert_eq!(found.unwrap().kind, "veth");
    assert_eq!(Netlink::open().unwrap().find_link("only-here").unwrap(), None);

    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pod.netns.run(|| std::panic::resume_unwind(Box::new("passed on")))
    }));
    assert!(panicked.is_err());
}

fn a_pod_is_configured_and_checked() {
    let pod = Pod::with_interface("eth0");
    configure_pod(&pod.path, "eth0", &dual_stack()).unwrap();
    assert_eq!(check_pod(&pod.path, "eth0", &dual_stack()).unwrap(), []);
    configure_pod(&pod.path, "eth0", &dual_stack()).unwrap();
    assert_eq!(check_pod(&pod.path, "eth0", &dual_stack()).unwrap(), []);

    let mut netlink = pod.netlink();
    assert!(netlink.link("lo").unwrap().is_up);
    let eth0 = netlink.link("eth0").unwrap();
    let addresses = netlink.addresses(Some(eth0.index)).unwrap();
    let global: Vec<_> = addresses
        .iter()
        .filter(|address| !address.address.ip().to_string().starts_with("fe80"))
        .map(|address| address.address)
        .collect();
    assert_eq!(global, [net("10.244.1.5/32"), net("fd00:10:244:1::5/128")]);

    // Usable at once: no waiting for duplicate address detection.
    for address in dual_stack().addresses {
        pod.netns.run(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
    }
    assert!(!netlink.is_local(ip("10.244.1.6")).unwrap());
    assert!(!netlink.is_local(ip("fd00:10:244:1::6")).unwrap());
    assert_eq!(pod.source_towards("192.0.2.1"), ip("10.244.1.5"));
    assert_eq!(pod.source_towards("2001:db8::1"), ip("fd00:10:244:1::5"));
}

fn a_configured_pod_takes_packets_at_once() {
    for _ in 0..50 {
        let pod = Pod::with_interface("eth0");
        let mut netlink = pod.netlink();
        assert!(!netlink.is_local(ip("fd00:10:244:1::5")).unwrap());
        configure_pod(&pod.path, "eth0", &dual_stack()).unwrap();
        for address in dual_stack().addresses {
            assert!(netlink.is_local(address).unwrap(), "{address}");
        }
    }
}

fn each_change_of_a_pod_is_found() {
    type Damage = fn(&mut Netlink, &Link);
    let damages: [(&str, Damage); 6] = [
        ("MTU", |netlink, eth0| netlink.set_mtu(eth0.index, 1400).unwrap()),
        ("MAC", |netlink, eth0| netlink.set_mac(eth0.index, [2, 0, 0, 0, 0, 9]).unwrap()),
        ("address", |netlink, eth0| {
            netlink.delete_address(eth0.index, net("10.244.1.5/32")).unwrap();
            netlink.delete_address(eth0.index, net("10.244.1.5/32")).unwrap();
        }),
        ("route to ::/0", |netlink, eth0| {
            let default = Route::via(net("::/0"), ip("fd00:10:244:1::1"), eth0.index);
            netlink.delete_route(&default).unwrap();
            netlink.delete_route(&default).unwrap();
        }),
        ("state", |netlink, eth0| netlink.set_down(eth0.index).unwrap()),
        ("interface eth0", |netlink, eth0| {
            netlink.set_down(eth0.index).unwrap();
            netlink.rename(eth0.index, "eth7").unwrap();
        }),
    ];
    for (what, damage) in damages {
        let pod = Pod::with_interface("eth0");
        configure_pod(&pod.path, "eth0", &dual_stack()).unwrap();
        let mut netlink = pod.netlink();
        let eth0 = netlink.link("eth0").unwrap();
        damage(&mut netlink, &eth0);
        let differences = check_pod(&pod.path, "eth0", &dual_stack()).unwrap();
        assert!(
            differences.iter().any(|difference| difference.what == what),
            "{what}: {differences:?}"
        );
        if what != "interface eth0" {
            configure_pod(&pod.path, "eth0", &dual_stack()).unwrap();
            assert_eq!(check_pod(&pod.path, "eth0", &dual_stack()).unwrap(), [], "after {what}");
        }
    }
}

fn a_pod_with_ipv6_switched_off_gets_it() {
    // Docker's default for a container's namespace.
    let pod = Pod::new();
    pod.netns
        .run(|| {
            for ifname in ["all", "default"] {
                set_sysctl(Sysctl::Ipv6 { ifname, key: "disable_ipv6" }, "1").unwrap();
            }
        })
        .unwrap();
    pod.netlink().create_veth("eth0", "other", None).unwrap();
    configure_pod(&pod.path, "eth0", &dual_stack()).unwrap();
    assert_eq!(check_pod(&pod.path, "eth0", &dual_stack()).unwrap(), []);
}

fn a_pod_of_one_family() {
    for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
        let pod = Pod::with_interface("net1");
        let mut wanted = dual_stack();
        wanted.addresses.retain(family);
        wanted.gateways.retain(family);
        configure_pod(&pod.path, "net1", &wanted).unwrap();
        assert_eq!(check_pod(&pod.path, "net1", &wanted).unwrap(), []);
        let missing = check_pod(&pod.path, "net1", &dual_stack()).unwrap();
        assert_eq!(missing.len(), 3, "an address and two routes: {missing:?}");
    }
}

fn a_pod_has_several_interfaces() {
    let pod = Pod::with_interface("eth0");
    let mut netlink = pod.netlink();
    let mut all = vec![("eth0", dual_stack())];
    for (last, ifname) in [(6, "net1"), (7, "net2")] {
        netlink.create_veth(ifname, &format!("other{last}"), None).unwrap();
        let other = netlink.link(&format!("other{last}")).unwrap();
        netlink.set_up(other.index).unwrap();
        let mut interface = dual_stack();
        interface.mac[5] = last;
        interface.addresses =
            vec![ip(&format!("10.244.1.{last}")), ip(&format!("fd00:10:244:1::{last}"))];
        all.push((ifname, interface));
    }
    // A daemon that was restarted does it all again.
    for _ in 0..2 {
        for (ifname, interface) in &all {
            configure_pod(&pod.path, ifname, interface).unwrap();
        }
        for (ifname, interface) in &all {
            assert_eq!(check_pod(&pod.path, ifname, interface).unwrap(), [], "{ifname}");
            let defaults = default_gateways(&pod.path, ifname, &interface.gateways).unwrap();
            let expected = if *ifname == "eth0" { interface.gateways.clone() } else { vec![] };
            assert_eq!(defaults, expected, "{ifname}");
        }
        assert_eq!(pod.source_towards("192.0.2.1"), ip("10.244.1.5"));
        assert_eq!(pod.source_towards("2001:db8::1"), ip("fd00:10:244:1::5"));
    }
    // A default route that was stolen is still found, and so is a later interface's lost route.
    let (eth0, net1) = (netlink.link("eth0").unwrap(), netlink.link("net1").unwrap());
    let default = |index| Route::via(net("0.0.0.0/0"), ip("10.244.1.1"), index);
    netlink.delete_route(&default(eth0.index)).unwrap();
    netlink.set_route(&default(net1.index)).unwrap();
    let differences = check_pod(&pod.path, "eth0", &dual_stack()).unwrap();
    assert_eq!(differences.len(), 1, "{differences:?}");
    assert_eq!(differences[0].what, "route to 0.0.0.0/0");
    netlink.set_down(net1.index).unwrap();
    assert!(!check_pod(&pod.path, "net1", &all[1].1).unwrap().is_empty());

    // The first one goes; the others stay as they were promised.
    netlink.delete_link(eth0.index).unwrap();
    assert_eq!(check_pod(&pod.path, "net2", &all[2].1).unwrap(), []);
}

fn a_pod_with_many_routes_holds_up_nobody() {
    let pod = Pod::with_interface("eth0");
    let mut netlink = pod.netlink();
    let eth0 = netlink.link("eth0").unwrap();
    netlink.set_up(eth0.index).unwrap();
    for number in 0..16_400_u32 {
        let address = IpAddr::from((0x6440_0000 + number).to_be_bytes());
        netlink.set_route(&Route::on_link(IpNetwork::from(address), eth0.index)).unwrap();
    }
    let error = configure_pod(&pod.path, "eth0", &dual_stack()).unwrap_err();
    assert!(error.to_string().contains("more than 16384"), "{error}");
    let error = check_pod(&pod.path, "eth0", &dual_stack()).unwrap_err();
    assert!(error.to_string().contains("more than 16384"), "{error}");
}

fn missing_things_are_named() {
    let pod = Pod::with_interface("eth0");
    let error = configure_pod(&pod.path, "eth9", &dual_stack()).unwrap_err();
    assert!(matches!(error, LinkError::NoSuchLink { .. }), "{error}");
    let differences = check_pod(&pod.path, "eth9", &dual_stack()).unwrap();
    assert_eq!(differences[0].to_string(), "interface eth9: expected present, found none");

    let gone = Path::new("/proc/0/ns/net");
    let error = configure_pod(gone, "eth0", &dual_stack()).unwrap_err();
    assert!(matches!(error, LinkError::Netns(NetnsError::Missing { .. })), "{error}");

    let mut netlink = pod.netlink();
    let eth0 = netlink.link("eth0").unwrap();
    netlink.set_up(eth0.index).unwrap();
    let unreachable = Route::via(net("10.9.0.0/16"), ip("10.8.0.1"), eth0.index);
    let error = netlink.set_route(&unreachable).unwrap_err();
    assert_eq!(error.refusal(), Some(libc::ENETUNREACH));
    assert!(error.to_string().contains("Nexthop has invalid gateway"), "{error}");
    let error = netlink.create_veth("eth0", "x", None).unwrap_err();
    assert_eq!(error.refusal(), Some(libc::EEXIST), "{error}");
}

fn host(v4: &str, v6: &str) -> HostInterface {
    HostInterface {
        mac: [0x02, b'W', b'E', b'F', b'T', 2],
        mtu: 1450,
        addresses: vec![ip(v4), ip(v6)],
        ranges: vec![net("10.244.0.0/16"), net("fd00:10:244::/56")],
        routers: vec![ip("169.254.1.1"), ip("fe80::1")],
    }
}

fn the_host_is_configured_and_follows_its_lease() {
    let node = Pod::with_interface("weft0");
    let first = host("10.244.1.1", "fd00:10:244:1::1");
    for _ in 0..2 {
        configure_host(Some(&node.path), "weft0", &first).unwrap();
        assert_eq!(node.source_towards("10.244.7.5"), ip("10.244.1.1"));
        assert_eq!(node.source_towards("fd00:10:244:7::5"), ip("fd00:10:244:1::1"));
    }

    let second = host("10.244.2.1", "fd00:10:244:2::1");
    configure_host(Some(&node.path), "weft0", &second).unwrap();
    assert_eq!(node.source_towards("10.244.7.5"), ip("10.244.2.1"));
    assert_eq!(node.source_towards("fd00:10:244:7::5"), ip("fd00:10:244:2::1"));
    let mut netlink = node.netlink();
    let weft0 = netlink.link("weft0").unwrap();
    let addresses = netlink.addresses(Some(weft0.index)).unwrap();
    assert!(!addresses.iter().any(|address| first.addresses.contains(&address.address.ip())));

    // A range that is no longer ours, and one family less.
    let third = HostInterface {
        ranges: vec![net("10.99.0.0/16")],
        addresses: vec![ip("10.99.1.1")],
        ..second
    };
    configure_host(Some(&node.path), "weft0", &third).unwrap();
    let routes: Vec<_> = netlink
        .routes()
        .unwrap()
        .into_iter()
        .filter(|route| route.onlink)
        .map(|route| route.destination)
        .collect();
    assert_eq!(routes, [net("10.99.0.0/16")]);

    for _ in 0..2 {
        unconfigure_host(Some(&node.path), "weft0").unwrap();
    }
    assert_eq!(netlink.find_link("weft0").unwrap(), None);
    assert!(netlink.routes().unwrap().iter().all(|route| route.destination.prefix() != 16));
}

fn a_range_that_another_interface_has_is_refused() {
    let node = Pod::with_interface("weft0");
    let mut netlink = node.netlink();
    netlink.create_veth("flannel.1", "f", None).unwrap();
    let other = netlink.link("flannel.1").unwrap();
    netlink.set_up(other.index).unwrap();
    netlink.set_route(&Route::on_link(net("10.244.0.0/16"), other.index)).unwrap();
    let wanted = host("10.244.1.1", "fd00:10:244:1::1");
    let error = configure_host(Some(&node.path), "weft0", &wanted).unwrap_err();
    let text = error.to_string();
    assert_eq!(text, "the route to 10.244.0.0/16 is already taken by interface flannel.1");
}

fn a_bridge_joins_namespaces() {
    let (switch, left, right) = (Pod::new(), Pod::new(), Pod::new());
    let mut netlink = switch.netlink();
    netlink.create_bridge("br0").unwrap();
    let bridge = netlink.link("br0").unwrap();
    // One end made in the other namespace, one moved there.
    netlink.create_veth("left", "eth0", Some(&left.netns)).unwrap();
    netlink.create_veth("right", "eth0", None).unwrap();
    let moving = netlink.link("eth0").unwrap();
    netlink.move_to(moving.index, &right.netns).unwrap();
    for name in ["left", "right"] {
        let port = netlink.link(name).unwrap();
        netlink.set_master(port.index, Some(bridge.index)).unwrap();
        netlink.set_up(port.index).unwrap();
        assert_eq!(netlink.link(name).unwrap().master, Some(bridge.index));
    }
    for (pod, address) in [(&left, "192.0.2.1/24"), (&right, "192.0.2.2/24")] {
        let mut netlink = pod.netlink();
        let eth0 = netlink.link("eth0").unwrap();
        netlink.add_address(eth0.index, net(address)).unwrap();
        netlink.set_up(eth0.index).unwrap();
        assert_eq!(netlink.addresses(Some(eth0.index)).unwrap()[0].address, net(address));
    }
    let receiver = right.netns.run(|| UdpSocket::bind("192.0.2.2:7000").unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let sender = left.netns.run(|| UdpSocket::bind("192.0.2.1:0").unwrap()).unwrap();
    sender.send_to(b"across", "192.0.2.2:7000").unwrap();
    let mut buffer = [0; 16];
    let (len, from) = receiver.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from), (&b"across"[..], sender.local_addr().unwrap()));

    let port = netlink.link("left").unwrap();
    netlink.set_master(port.index, None).unwrap();
    assert_eq!(netlink.link("left").unwrap().master, None);
}

fn a_forgotten_neighbour_is_asked_for_at_once() {
    // The kernel repeats a request after a second (RFC 4861 §10, RETRANS_TIMER).
    let soon = Duration::from_millis(700);
    let (left, right) = (Pod::new(), Pod::new());
    left.netlink().create_veth("eth0", "eth0", Some(&right.netns)).unwrap();
    for pod in [&left, &right] {
        let index = pod.netlink().link("eth0").unwrap().index;
        pod.netlink().set_up(index).unwrap();
    }
    let (mut near, mut far) = (left.netlink(), right.netlink());
    let index = near.link("eth0").unwrap().index;
    let far_index = far.link("eth0").unwrap().index;
    for (own, other) in [("192.0.2.1/24", "192.0.2.2/24"), ("fd00::1/64", "fd00::2/64")] {
        let (own, other) = (net(own), net(other));
        near.forget_neighbor(index, other.ip()).unwrap();
        near.add_address(index, own).unwrap();
        let sender = left.netns.run(|| UdpSocket::bind((own.ip(), 0)).unwrap()).unwrap();
        sender.send_to(b"lost", (other.ip(), 7000)).unwrap();

        far.add_address(far_index, other).unwrap();
        near.forget_neighbor(index, other.ip()).unwrap();
        let receiver = right.netns.run(|| UdpSocket::bind((other.ip(), 7000)).unwrap()).unwrap();
        receiver.set_read_timeout(Some(soon)).unwrap();
        sender.send_to(b"found", (other.ip(), 7000)).unwrap();
        let mut buffer = [0; 16];
        let len = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"found");
    }
    assert!(near.forget_neighbor(u32::MAX >> 1, ip("192.0.2.2")).is_err(), "no such interface");
}

fn links_can_be_changed_and_deleted() {
    let pod = Pod::with_interface("eth0");
    let mut netlink = pod.netlink();
    let eth0 = netlink.link("eth0").unwrap();
    netlink.set_gso_max(eth0.index, 32_000, 20).unwrap();
    let refused = netlink.set_mtu(eth0.index, 1).unwrap_err();
    assert_eq!(refused.refusal(), Some(libc::EINVAL), "{refused}");

    match netlink.create_vxlan("vx", 1, 4789, ip("192.0.2.1"), eth0.index) {
        Ok(()) => assert_eq!(netlink.link("vx").unwrap().kind, "vxlan"),
        // A kernel without the module.
        Err(error) => assert_eq!(error.refusal(), Some(libc::EOPNOTSUPP), "{error}"),
    }
    for _ in 0..2 {
        netlink.delete_link(eth0.index).unwrap();
    }
    assert_eq!(netlink.find_link("other").unwrap(), None, "a pair goes together");
}

fn settings_belong_to_the_namespace() {
    let pod = Pod::new();
    let forwarding = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    let outside = forwarding();
    let inside = pod
        .netns
        .run(|| {
            set_sysctl(Sysctl::Ipv4Forward, "1").unwrap();
            set_sysctl(Sysctl::Ipv4 { ifname: "lo", key: "rp_filter" }, "2").unwrap();
            forwarding()
        })
        .unwrap();
    assert_eq!(inside, "1\n");
    assert_eq!(forwarding(), outside);
    let missing = pod.netns.run(|| set_sysctl(Sysctl::Ipv6 { ifname: "no", key: "mtu" }, "1"));
    let error = missing.unwrap().unwrap_err();
    assert!(error.to_string().contains("/proc/sys/net/ipv6/conf/no/mtu"), "{error}");
}
