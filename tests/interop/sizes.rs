//! TCP segments and UDP datagrams of every size that a pod can send, alone and out of super-frames, over IPv4 and
//! IPv6: each arrives as it was sent, and tshark finds nothing wrong with what a wire would see of it.

// Clippy takes only functions marked `#[test]` for tests, not what they call.
#![allow(clippy::unwrap_used)]
// `UDP_SEGMENT` has no safe wrapper in the crates that we use.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::common::TestLab;
use crate::common::capture::Capture;
use crate::common::frames::{
    BUFFER_LEN, ETHERNET_LEN, Frame, can_capture, frames, switch_offloads,
};
use crate::common::place::pod;
use crate::common::traffic::End;
use socket2::{Domain, Socket, Type};
use weft::lab::{Family, LabConfig, UNDERLAY};

/// Where servers listen. No protocol that tshark looks into.
const PORT: u16 = 9;

/// Shortest maximum segment size that a program may ask for (`TCP_MIN_MSS`, linux/tcp.h).
const MSS_MIN: u16 = 88;

/// Bytes of the timestamps in each segment, with their padding (RFC 7323 appendix A).
const TIMESTAMPS_LEN: u16 = 12;

/// How long to wait for what must come.
const SILENCE_MAX: Duration = Duration::from_secs(10);

#[test]
fn every_size_is_well_formed_on_an_ipv4_underlay() {
    every_size(Family::V4);
}

#[test]
fn every_size_is_well_formed_on_an_ipv6_underlay() {
    every_size(Family::V6);
}

fn every_size(underlay: Family) {
    if !can_capture() {
        return;
    }
    let config = LabConfig { nodes: 2, pods_per_node: 1, underlay, ..LabConfig::new("sizes") };
    let lab = TestLab::up(config);
    let (source, target) = (pod(&lab, "n1-p1"), pod(&lab, "n2-p1"));
    // The bridge hands on what the nodes leave undone only after doing it: as a wire would get it.
    for port in ["n1", "n2"] {
        switch_offloads(&lab, UNDERLAY, port, false);
    }
    let mtu = lab.admin("n1").unwrap().status().unwrap().pod_mtu.unwrap();
    let namespace = lab.namespace(UNDERLAY).unwrap();
    let captures = ["n1", "n2"].map(|port| {
        let path = lab.dir().join(format!("{port}.pcap"));
        Capture::start(&namespace, port, path, BUFFER_LEN)
    });
    for address in &target.addresses {
        let route = Route { source: &source, target: &target, address: *address, mtu };
        route.datagrams();
        route.datagrams_of_super_frames();
        route.segments();
        route.segments_of_super_frames();
    }
    let [to_source, mut to_target] = captures.map(|capture| frames(&capture.finish()));
    for frame in to_source.iter().chain(&to_target) {
        frame.assert_well_formed("every size", underlay, lab.state().config.underlay_mtu);
    }
    to_target.retain(|frame| !frame.is_probe());
    for address in &target.addresses {
        let route = Route { source: &source, target: &target, address: *address, mtu };
        route.assert_all_seen(&to_target);
    }
    let longest = to_target.iter().map(Frame::len).max();
    assert_eq!(longest, Some(u32::from(lab.state().config.underlay_mtu) + ETHERNET_LEN));
    lab.finish();
}

/// Who sends to whom.
struct Route<'a> {
    source: &'a End,
    target: &'a End,
    address: IpAddr,
    /// Of the pods.
    mtu: u16,
}

impl Route<'_> {
    fn ip_header_len(&self) -> u16 {
        if self.address.is_ipv4() { 20 } else { 40 }
    }

    /// Bytes in a datagram: the shortest and the longest have IP packets of 28 and 1450 bytes over IPv4, and of
    /// 48 and 1450 over IPv6.
    fn datagram_lens(&self) -> RangeInclusive<u16> {
        0..=self.mtu - self.ip_header_len() - 8
    }

    /// Payload bytes in a segment.
    fn segment_lens(&self) -> RangeInclusive<u16> {
        1..=self.mtu - self.ip_header_len() - 20 - TIMESTAMPS_LEN
    }

    fn server(&self) -> SocketAddr {
        SocketAddr::new(self.address, PORT)
    }

    fn what(&self, kind: &str, len: u16) -> String {
        format!("{kind} with {len} bytes to {}", self.address)
    }

    fn sockets(&self) -> (UdpSocket, UdpSocket) {
        let server = self.target.namespace.run(|| UdpSocket::bind(self.server())).unwrap().unwrap();
        server.set_read_timeout(Some(SILENCE_MAX)).unwrap();
        let own = crate::common::place::same_family(&self.source.addresses, self.address);
        let client = self.source.namespace.run(|| UdpSocket::bind((own, 0))).unwrap().unwrap();
        client.connect(self.server()).unwrap();
        (client, server)
    }

    /// One of each size.
    fn datagrams(&self) {
        let (client, server) = self.sockets();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        for len in self.datagram_lens() {
            let sent = content(len, usize::from(len));
            client.send(&sent).unwrap();
            let received = server.recv(&mut buffer);
            let received =
                received.unwrap_or_else(|e| panic!("{}: {e}", self.what("datagram", len)));
            assert!(buffer[..received] == sent, "{}", self.what("datagram", len));
        }
    }

    /// Of each size as many as one write gives: two, and a shorter one.
    fn datagrams_of_super_frames(&self) {
        let (client, server) = self.sockets();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        for len in self.datagram_lens().skip(1) {
            let what = || self.what("datagrams in one write", len);
            set_udp_segment(&client, len);
            let sent = content(len, 2 * usize::from(len) + usize::from(len.div_ceil(2)));
            client.send(&sent).unwrap_or_else(|error| panic!("{}: {error}", what()));
            for part in sent.chunks(len.into()) {
                let received = server.recv(&mut buffer);
                let received = received.unwrap_or_else(|error| panic!("{}: {error}", what()));
                assert!(buffer[..received] == *part, "{}", what());
            }
        }
    }

    fn connect(&self, listener: &TcpListener, mss: Option<u16>) -> (TcpStream, TcpStream) {
        let connect = || {
            let socket = Socket::new(Domain::for_address(self.server()), Type::STREAM, None)?;
            if let Some(mss) = mss {
                socket.set_tcp_mss(mss.into())?;
            }
            socket.set_tcp_nodelay(true)?;
            socket.connect_timeout(&self.server().into(), SILENCE_MAX)?;
            std::io::Result::Ok(TcpStream::from(socket))
        };
        let client = self.source.namespace.run(connect).unwrap();
        let client = client.unwrap_or_else(|e| panic!("{}: {e}", self.what("connecting", 0)));
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(SILENCE_MAX)).unwrap();
        (client, server)
    }

    fn listener(&self) -> TcpListener {
        self.target.namespace.run(|| TcpListener::bind(self.server())).unwrap().unwrap()
    }

    /// One of each size: each is read before the next is written.
    fn segments(&self) {
        let listener = self.listener();
        let (mut client, mut server) = self.connect(&listener, None);
        for len in self.segment_lens() {
            self.exchange(&mut client, &mut server, len, usize::from(len));
        }
    }

    /// Of each maximum size that can be asked for, as many as one write gives: two, and a shorter one.
    fn segments_of_super_frames(&self) {
        let listener = self.listener();
        for mss in MSS_MIN..=self.segment_lens().end() + TIMESTAMPS_LEN {
            let (mut client, mut server) = self.connect(&listener, Some(mss));
            let len = mss - TIMESTAMPS_LEN;
            let total = 2 * usize::from(len) + usize::from(len.div_ceil(2));
            self.exchange(&mut client, &mut server, len, total);
        }
    }

    fn exchange(&self, client: &mut TcpStream, server: &mut TcpStream, len: u16, total: usize) {
        let what = || self.what("segments", len);
        let sent = content(len, total);
        client.write_all(&sent).unwrap_or_else(|error| panic!("{}: {error}", what()));
        let mut received = vec![0; total];
        server.read_exact(&mut received).unwrap_or_else(|error| panic!("{}: {error}", what()));
        assert!(received == sent, "{}", what());
    }

    /// Every size was on the wire.
    fn assert_all_seen(&self, frames: &[Frame]) {
        let (tcp, udp) = if self.address.is_ipv4() { ("tcp4", "udp4") } else { ("tcp6", "udp6") };
        let tunnelled = || frames.iter().filter(|frame| frame.is_tunnelled());
        let segments = tunnelled().filter(|frame| frame.kind() == tcp);
        let segments = count(segments.map(|frame| frame.number("tcp.len").unwrap()));
        for len in self.segment_lens() {
            assert!(segments.contains_key(&len.into()), "{}: not seen", self.what("segment", len));
        }
        let datagrams = tunnelled().filter(|frame| frame.kind() == udp);
        let datagrams = count(datagrams.map(|frame| frame.number("udp.length").unwrap() - 8));
        for len in self.datagram_lens() {
            // Alone, twice out of a super-frame, and as the last of such ones.
            let shorter =
                self.datagram_lens().skip(1).filter(|long| long.div_ceil(2) == len).count();
            let expected = if len == 0 { 1 } else { 3 + shorter };
            let seen = datagrams.get(&len.into()).copied().unwrap_or(0);
            assert_eq!(seen, expected, "{}", self.what("datagrams", len));
        }
        let lens: BTreeSet<u32> = segments.keys().chain(datagrams.keys()).copied().collect();
        eprintln!("{}: {} sizes", self.address, lens.len());
    }
}

fn count(lens: impl Iterator<Item = u32>) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for len in lens {
        *counts.entry(len).or_default() += 1;
    }
    counts
}

/// Bytes in which no short piece comes twice, and no two sizes have the same.
fn content(seed: u16, len: usize) -> Vec<u8> {
    let start = u32::from(seed) << 16;
    (start..).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 24).to_le_bytes()[0]).take(len).collect()
}

/// Makes the kernel, or who does it for the kernel, cut what is written into datagrams of `len` bytes (udp(7)).
fn set_udp_segment(socket: &UdpSocket, len: u16) {
    let value = libc::c_int::from(len);
    // SAFETY: the option's value is an int, which is alive during the call; the length is its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const value).cast(),
            libc::socklen_t::try_from(size_of_val(&value)).unwrap(),
        )
    };
    assert_eq!(result, 0, "UDP_SEGMENT {len}: {}", std::io::Error::last_os_error());
}
