//! A virtual machine beside the pods: behind a plain TAP without any offload, whose one end a hypervisor
//! (here: this process, with a TCP/IP stack of its own) holds, and whose other end is a port of the switch.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]
// The crate that makes the TAP lends its descriptor only as a number.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::common::{TestLab, eventually, may_make_labs};
use cni::link::Netlink;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_tap::{Iface, Mode};
use vswitch::frame::Frame;
use vswitch::mac::Mac;
use vswitch::sim::{Host, HostConfig};
use vswitch::wire::checksum::{self, Verification};
use vswitch::wire::{self, ETHERNET_LEN, Network};
use weft::admin::api::PodStatus;
use weft::lab::probe::Ping;
use weft::lab::{Lab, LabConfig, Namespace};

/// The host's end.
const DEVICE: &str = "vm0";
/// The machine's own address, as hypervisors choose them.
const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
const NODE: &str = "n1";
const PORT: u16 = 7;
/// Bytes of each TCP stream, each way.
const BULK_LEN: usize = 3_000_000;
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_virtual_machine_is_a_port_like_a_pod() {
    if !may_make_labs() {
        return;
    }
    let config = LabConfig { nodes: 2, pods_per_node: 1, ..LabConfig::new("tap") };
    let lab = TestLab::up(config);
    let node = lab.namespace(NODE).unwrap();
    let mtu = lab.admin(NODE).unwrap().status().unwrap().pod_mtu.unwrap();
    let tap = make_tap(&node, mtu);
    let port = add_port(&lab);
    assert_eq!((port.mac, port.mtu, port.ifname.as_str()), (MAC, mtu, DEVICE));
    let mut machine = Machine::new(tap, &lab, &port);

    for pod in ["n1-p1", "n2-p1"] {
        let namespace = lab.namespace(pod).unwrap();
        let pod_addresses = lab.state().pod(pod).unwrap().1.addresses.clone();
        assert_eq!(port.addresses.len(), pod_addresses.len());
        for address in pod_addresses {
            machine.ping(address);
        }
        for address in &port.addresses {
            for payload_len in [56, 1300] {
                let ping = Ping { payload_len, ..Ping::new(*address) };
                let report = machine.run_beside(|| ping.run(&namespace).unwrap());
                assert!(report.is_ok(), "{pod} to {address}: {report:?}");
            }
            machine.serve_echo(|| exchange(&namespace, *address));
        }
    }
    // Pods send super-frames, which came in packets of full length; the machine has checked all.
    assert_eq!(machine.longest, ETHERNET_LEN + usize::from(mtu));

    for (reason, frame) in [
        ("vlan_tagged", [&Mac::ROUTER.0[..], &MAC.0, &[0x81, 0, 0, 5, 8, 0], &[0x45; 50]].concat()),
        ("spoofed", [&Mac::ROUTER.0[..], &[2; 6], &ipv4_from(&port)].concat()),
        ("spoofed", [&Mac::ROUTER.0[..], &MAC.0, &ipv4_from_nobody()].concat()),
    ] {
        let before = dropped(&lab, reason);
        machine.tap.send(&frame).unwrap();
        eventually(reason, || dropped(&lab, reason) > before);
    }
    lab.assert_conserved();

    // The node's own stack does not answer in the switch's place, until the port is removed.
    let index = Netlink::open_in(node.path()).unwrap().link(DEVICE).unwrap().index;
    let address = "198.18.0.1/24".parse().unwrap();
    Netlink::open_in(node.path()).unwrap().add_address(index, address).unwrap();
    assert_eq!(ipv6_is_disabled(&node), "1");
    let before = dropped(&lab, "spoofed");
    machine.tap.send(&arp_request([198, 18, 0, 1])).unwrap();
    eventually("the switch refuses it", || dropped(&lab, "spoofed") > before);
    assert!(!machine.hears_arp_reply());

    let removed = weft(&lab, &["port", "remove", DEVICE]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    assert_eq!(ipv6_is_disabled(&node), "0");
    eventually("the node answers on its device again", || {
        machine.tap.send(&arp_request([198, 18, 0, 1])).unwrap();
        machine.hears_arp_reply()
    });
    let pods = lab.admin(NODE).unwrap().pods().unwrap();
    assert!(pods.iter().all(|pod| pod.ifname != DEVICE), "{pods:?}");
    lab.assert_conserved();

    // It can be had again.
    Netlink::open_in(node.path()).unwrap().delete_address(index, address).unwrap();
    let again = add_port(&lab);
    assert!(!again.addresses.is_empty());
    let refused = weft(&lab, &["port", "add", DEVICE, "52:54:00:00:00:01"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("already is a port"));
}

/// Makes the TAP as a hypervisor does: no virtio-net header, so no offloads.
fn make_tap(node: &Namespace, mtu: u16) -> Iface {
    let tap = node.run(|| Iface::without_packet_info(DEVICE, Mode::Tap)).unwrap().unwrap();
    let mut netlink = Netlink::open_in(node.path()).unwrap();
    let index = netlink.link(DEVICE).unwrap().index;
    netlink.set_mtu(index, mtu.into()).unwrap();
    netlink.set_up(index).unwrap();
    tap
}

fn add_port(lab: &Lab) -> PodStatus {
    let output = weft(lab, &["port", "add", DEVICE, &MAC.to_string(), "-o", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn weft(lab: &Lab, arguments: &[&str]) -> Output {
    let socket = lab.admin(NODE).unwrap().socket().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(arguments).arg("--socket").arg(socket).output().unwrap()
}

fn dropped(lab: &Lab, reason: &str) -> u64 {
    let counters = lab.admin(NODE).unwrap().counters().unwrap();
    counters.dropped.get(reason).copied().unwrap_or(0)
}

fn ipv6_is_disabled(node: &Namespace) -> String {
    let path = format!("/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6");
    node.run(|| fs::read_to_string(path)).unwrap().unwrap().trim().to_owned()
}

/// Sends bytes to the machine's echo service, and compares what comes back.
fn exchange(pod: &Namespace, address: IpAddr) {
    let to = SocketAddr::new(address, PORT);
    let mut stream = pod.run(|| TcpStream::connect_timeout(&to, LIMIT)).unwrap().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    // No part of it is like another of a packet's length (251 is prime).
    let sent: Vec<u8> = (0..=250).cycle().take(BULK_LEN).collect();
    std::thread::scope(|scope| {
        let mut writing = stream.try_clone().unwrap();
        let sent = &sent;
        scope.spawn(move || writing.write_all(sent).unwrap());
        let mut received = vec![0; BULK_LEN];
        stream.read_exact(&mut received).unwrap();
        assert!(received == *sent, "wrong bytes over TCP to {address}");
    });
}

/// An Ethernet type and a packet from an address of the machine's.
fn ipv4_from(port: &PodStatus) -> Vec<u8> {
    let Some(IpAddr::V4(source)) = port.addresses.iter().find(|address| address.is_ipv4()) else {
        panic!("no IPv4 address");
    };
    ipv4(source.octets())
}

/// The same from an address that is another's.
fn ipv4_from_nobody() -> Vec<u8> {
    ipv4([10, 244, 200, 200])
}

fn ipv4(source: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([0; 6], [0; 6])
        .ipv4(source, [10, 244, 1, 1], 64)
        .udp(1, 2)
        .write(&mut frame, b"x")
        .unwrap();
    frame.split_off(12)
}

fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let header = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    let sender = [198, 18, 0, 9];
    [&[0xff; 6][..], &MAC.0, &header, &MAC.0, &sender, &[0; 6], &target].concat()
}

/// The virtual machine.
struct Machine {
    tap: Iface,
    host: Host,
    mtu: u16,
    /// The longest frame that it was given.
    longest: usize,
}

impl Machine {
    fn new(tap: Iface, lab: &Lab, port: &PodStatus) -> Self {
        let leases = lab.admin(NODE).unwrap().status().unwrap().leases;
        let on_link = |address: &IpAddr| {
            let lease = leases.iter().find(|lease| lease.contains(*address)).unwrap();
            // In IPv6 the gateway is all that has to be on the link.
            let prefix = if address.is_ipv4() { lease.prefix() } else { 128 };
            ipnetwork::IpNetwork::new(*address, prefix).unwrap()
        };
        let config = HostConfig {
            mac: MAC,
            mtu: port.mtu,
            addresses: port.addresses.iter().map(on_link).collect(),
            gateways: port.gateways.clone(),
            offload: false,
            seed: 1,
        };
        Self { tap, host: Host::new(&config, Instant::now()), mtu: port.mtu, longest: 0 }
    }

    /// Lives until `holds`.
    #[track_caller]
    fn run_until(&mut self, mut holds: impl FnMut(&mut Host) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !holds(&mut self.host) {
            assert!(Instant::now() < deadline, "nothing happens");
            self.step();
        }
    }

    /// Asks until an answer comes: its stack looks for no second neighbor within a second, and drops what
    /// was for it.
    #[track_caller]
    fn ping(&mut self, address: IpAddr) {
        let mut next = Instant::now();
        let mut sequence = 0;
        self.run_until(|host| {
            if Instant::now() >= next {
                sequence += 1;
                host.ping(address, sequence);
                next = Instant::now() + Duration::from_millis(200);
            }
            host.take_echo_replies().iter().any(|(from, _)| *from == address)
        });
    }

    /// Lives as long as `work` takes on a thread of its own.
    #[track_caller]
    fn run_beside<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let worker = scope.spawn(work);
            self.run_until(|_| worker.is_finished());
            worker.join().unwrap()
        })
    }

    /// Sends back what comes over one TCP connection, as long as `work` takes.
    #[track_caller]
    fn serve_echo(&mut self, work: impl FnOnce() + Send) {
        let socket = self.host.tcp_listen(PORT);
        let mut queue = VecDeque::new();
        std::thread::scope(|scope| {
            let worker = scope.spawn(work);
            self.run_until(|host| {
                queue.extend(host.tcp_receive(socket));
                let sent = host.tcp_send(socket, queue.make_contiguous());
                queue.drain(..sent);
                worker.is_finished()
            });
            worker.join().unwrap();
        });
        self.host.tcp_close(socket);
        self.run_until(|host| host.tcp_is_closed(socket));
    }

    /// Waits a little for a frame; reads, acts and sends.
    fn step(&mut self) {
        self.wait();
        while let Some(bytes) = self.read() {
            let mut frame = Frame::new();
            assert!(frame.append(&bytes));
            self.host.deliver(&frame).unwrap();
        }
        self.host.poll(Instant::now());
        let mut frame = Frame::new();
        while self.host.send(&mut frame) {
            self.tap.send(frame.data()).unwrap();
            frame.clear();
        }
    }

    /// Waits a little for a frame.
    fn wait(&self) {
        self.is_readable(Duration::from_millis(2));
    }

    fn is_readable(&self, patience: Duration) -> bool {
        let patience = Timespec::try_from(patience).unwrap();
        // SAFETY: the TAP stays open for the length of the call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.tap.as_raw_fd()) };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&patience)).unwrap() > 0
    }

    /// The next frame, which must be as one that a card without offloads gets.
    fn read(&mut self) -> Option<Vec<u8>> {
        if !self.is_readable(Duration::ZERO) {
            return None;
        }
        let mut buffer = vec![0; 1 << 16];
        let len = self.tap.recv(&mut buffer).unwrap();
        buffer.truncate(len);
        assert!(len <= ETHERNET_LEN + usize::from(self.mtu), "{len} bytes");
        if let Network::Ip(ip) = wire::parse(&buffer).unwrap().network {
            let packet = &buffer[..ETHERNET_LEN + ip.len];
            let verified = checksum::verify(packet, &ip);
            assert_eq!(verified, Verification::Right, "{ip:?}");
            if ip.source.is_ipv4() {
                assert_eq!(checksum::internet(&packet[ETHERNET_LEN..ip.transport_offset]), 0);
            }
        }
        self.longest = self.longest.max(len);
        Some(buffer)
    }

    /// Reads what waits, and tells whether an ARP reply is among it.
    fn hears_arp_reply(&mut self) -> bool {
        let is_reply = |frame: &Vec<u8>| frame[12..14] == [8, 6] && frame[20..22] == [0, 2];
        self.wait();
        std::iter::from_fn(|| self.read()).filter(is_reply).count() > 0
    }
}
