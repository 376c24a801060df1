//! A pod or a machine: smoltcp behind an in-memory network card.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU16, NonZeroUsize};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpCidr,
    IpEndpoint,
};

use crate::frame::{Checksum, FRAME_LEN_MAX, Frame, Gso, GsoKind};
use crate::mac::Mac;
use crate::offload::Cut;
use crate::tables::{PortEntry, PortKind};
use crate::verdict::Reason;
use crate::wire::{self, ETHERNET_LEN, Network, Transport, checksum};

/// What a [`Host`] is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// Address of its interface.
    pub mac: Mac,
    /// Longest IP packet that its interface takes.
    pub mtu: u16,
    /// Its addresses, at most one per family, with what it takes to be on its link. smoltcp believes ARP
    /// replies only from there, so an IPv4 prefix has to contain the gateway. With /0 it takes everything
    /// to be there and needs no gateway: the switch answers for all addresses. In IPv6, /128 does.
    pub addresses: Vec<IpNetwork>,
    /// Its default gateways, at most one per family.
    pub gateways: Vec<IpAddr>,
    /// Whether its interface takes TCP with unfilled checksums and, in IPv4, in super-frames, as a TAP with
    /// offloads does.
    pub offload: bool,
    /// Where its random numbers (ports, sequence numbers) come from.
    pub seed: u64,
}

impl HostConfig {
    /// The port of a switch that this host, as a pod, belongs to.
    pub fn port_entry(&self) -> PortEntry {
        PortEntry {
            kind: PortKind::Pod,
            mac: self.mac,
            mtu: self.mtu,
            addresses: self.addresses.iter().map(IpNetwork::ip).collect(),
        }
    }
}

/// A pod or a machine with a TCP/IP stack of its own, which checks every checksum.
///
/// It acts only in [`Host::poll`]; what it sends then waits for [`Host::send`].
pub struct Host {
    interface: Interface,
    sockets: SocketSet<'static>,
    card: Card,
    echo: SocketHandle,
    epoch: Instant,
    now: Instant,
    next_port: u16,
    icmp_errors: VecDeque<IcmpError>,
    arrivals: VecDeque<Arrival>,
    arrivals_max: usize,
}

/// A frame that a [`Host`] was handed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// What its network card made of the frame: of a super-frame its packets, of any other one packet.
    /// All checksums are filled in.
    pub packets: Vec<Vec<u8>>,
}

/// A UDP socket of a [`Host`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpHandle(SocketHandle);

/// A TCP socket of a [`Host`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpHandle(SocketHandle);

/// An ICMP or ICMPv6 error that a [`Host`] was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IcmpError {
    /// Who sent it.
    pub from: IpAddr,
    /// Its type.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The MTU that it tells, if it tells one.
    pub mtu: u32,
}

impl Host {
    /// Makes a host.
    ///
    /// # Panics
    /// If it has more than four addresses, or gateways than one per family.
    pub fn new(config: &HostConfig, now: Instant) -> Self {
        let mut card = Card {
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            unanswered: Vec::new(),
            mtu: config.mtu,
            offload: config.offload,
        };
        let mut stack = Config::new(HardwareAddress::Ethernet(EthernetAddress(config.mac.0)));
        stack.random_seed = config.seed;
        let mut interface = Interface::new(stack, &mut card, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            for network in &config.addresses {
                let cidr = IpCidr::new(network.ip().into(), network.prefix());
                addresses.push(cidr).expect("at most four addresses");
            }
        });
        for gateway in &config.gateways {
            let added = match *gateway {
                IpAddr::V4(v4) => interface.routes_mut().add_default_ipv4_route(v4),
                IpAddr::V6(v6) => interface.routes_mut().add_default_ipv6_route(v6),
            };
            added.expect("one gateway per family");
        }
        let mut sockets = SocketSet::new(Vec::new());
        let mut echo = icmp::Socket::new(
            icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; ECHO_MAX], vec![0; 8192]),
            icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; ECHO_MAX], vec![0; 8192]),
        );
        echo.bind(icmp::Endpoint::Ident(ECHO_IDENT)).expect("a new socket can be bound");
        let echo = sockets.add(echo);
        Self {
            interface,
            sockets,
            card,
            echo,
            epoch: now,
            now,
            next_port: 49_152,
            icmp_errors: VecDeque::new(),
            arrivals: VecDeque::new(),
            arrivals_max: 0,
        }
    }

    /// Lets the host read what it got, act, and queue what it sends. Returns whether anything happened.
    pub fn poll(&mut self, now: Instant) -> bool {
        self.now = now;
        let at = self.stack_now();
        let result = self.interface.poll(at, &mut self.card, &mut self.sockets);
        result == smoltcp::iface::PollResult::SocketStateChanged || !self.card.outbox.is_empty()
    }

    /// When the host wants to be polled next, if nothing arrives before.
    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        self.now = now;
        let at = self.stack_now();
        let wait = self.interface.poll_delay(at, &self.sockets)?;
        Some(now + Duration::from_micros(wait.total_micros()))
    }

    /// Puts the next frame that the host sends into the empty `frame`; returns whether there was one.
    pub fn send(&mut self, frame: &mut Frame) -> bool {
        let Some(sent) = self.card.outbox.pop_front() else {
            return false;
        };
        let fits = frame.append(&sent.bytes);
        assert!(fits, "the card takes no frame that is longer than FRAME_LEN_MAX");
        if self.card.offload {
            leave_to_card(frame, sent.segment_size);
        }
        true
    }

    /// Hands the host a frame. It sees what a real stack behind a real card would: a super-frame in
    /// packets, and every checksum filled in.
    ///
    /// # Errors
    /// What [`wire::parse`] returns, and [`Reason::BadOffload`] when the frame's meta data contradicts its
    /// bytes: no card would take it.
    pub fn deliver(&mut self, frame: &Frame) -> Result<(), Reason> {
        let headers = wire::parse(frame.data())?;
        let cut = Cut::new(frame, &headers)?;
        let packets = (0..cut.segments()).map(|ix| {
            let mut packet = vec![0; cut.segment_len(ix)];
            cut.write(ix, &mut packet);
            packet
        });
        let packets: Vec<_> = packets.collect();
        if self.arrivals_max > 0 {
            self.arrivals.truncate(self.arrivals_max - 1);
            self.arrivals.push_front(Arrival { packets: packets.clone() });
        }
        for packet in packets {
            self.note_icmp_error(&packet);
            let answer = is_neighbor_message(&packet, ARP_REPLY, NEIGHBOR_ADVERTISEMENT);
            self.card.inbox.push_back(packet);
            if answer {
                self.card.inbox.extend(self.card.unanswered.drain(..));
            }
        }
        Ok(())
    }

    /// Sends one echo request.
    pub fn ping(&mut self, target: IpAddr, sequence: u16) {
        self.ping_with(target, sequence, b"weft");
    }

    /// Sends one echo request with `data`. Longer ones than the MTU are fragmented (IPv4 only).
    ///
    /// # Panics
    /// If the host has no address of the family.
    pub fn ping_with(&mut self, target: IpAddr, sequence: u16, data: &[u8]) {
        let capabilities = ChecksumCapabilities::default();
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(self.echo);
        match target {
            IpAddr::V4(_) => {
                let request = Icmpv4Repr::EchoRequest { ident: ECHO_IDENT, seq_no: sequence, data };
                if let Ok(payload) = socket.send(request.buffer_len(), target.into()) {
                    request.emit(&mut Icmpv4Packet::new_unchecked(payload), &capabilities);
                }
            }
            IpAddr::V6(v6) => {
                let source = self.interface.get_source_address_ipv6(&v6);
                let request = Icmpv6Repr::EchoRequest { ident: ECHO_IDENT, seq_no: sequence, data };
                if let Ok(payload) = socket.send(request.buffer_len(), target.into()) {
                    let mut packet = Icmpv6Packet::new_unchecked(payload);
                    request.emit(&source, &v6, &mut packet, &capabilities);
                }
            }
        }
    }

    /// Takes the echo replies that came in: from whom, and the sequence number.
    pub fn take_echo_replies(&mut self) -> Vec<(IpAddr, u16)> {
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(self.echo);
        let mut replies = Vec::new();
        while let Ok((message, from)) = socket.recv() {
            // Type, code, checksum, identifier, sequence number (RFC 792, RFC 4443 §4.2).
            if let [0 | 129, 0, _, _, _, _, high, low, ..] = *message {
                replies.push((from.into(), u16::from_be_bytes([high, low])));
            }
        }
        replies
    }

    /// Takes the ICMP errors that came in, the oldest first. At most 4096 are kept, of more the latest.
    pub fn take_icmp_errors(&mut self) -> Vec<IcmpError> {
        self.icmp_errors.drain(..).collect()
    }

    /// From now on keeps the latest `frames_max` frames that it is handed, for
    /// [`Host::take_arrivals`]. Zero, which is the default, keeps none.
    pub fn watch_arrivals(&mut self, frames_max: usize) {
        self.arrivals_max = frames_max;
        self.arrivals.truncate(frames_max);
    }

    /// Takes the frames that were kept, the oldest first.
    pub fn take_arrivals(&mut self) -> Vec<Arrival> {
        self.arrivals.drain(..).rev().collect()
    }

    /// Whether frames wait for [`Host::send`].
    pub fn is_sending(&self) -> bool {
        !self.card.outbox.is_empty()
    }

    /// Opens a UDP socket at `port`.
    ///
    /// # Panics
    /// If `port` is zero.
    pub fn udp_bind(&mut self, port: u16) -> UdpHandle {
        let buffer = || {
            let metadata = vec![udp::PacketMetadata::EMPTY; DATAGRAMS_MAX];
            udp::PacketBuffer::new(metadata, vec![0; BUFFER_LEN])
        };
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).expect("a new socket can be bound to any port but zero");
        UdpHandle(self.sockets.add(socket))
    }

    /// Sends a datagram; returns whether there was room for it.
    pub fn udp_send(&mut self, socket: UdpHandle, to: SocketAddr, data: &[u8]) -> bool {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(socket.0);
        socket.send_slice(data, IpEndpoint::from(to)).is_ok()
    }

    /// Takes the next datagram, and from whom it is.
    pub fn udp_receive(&mut self, socket: UdpHandle) -> Option<(SocketAddr, Vec<u8>)> {
        let socket = self.sockets.get_mut::<udp::Socket<'_>>(socket.0);
        let (data, meta) = socket.recv().ok()?;
        let from = SocketAddr::new(meta.endpoint.addr.into(), meta.endpoint.port);
        Some((from, data.to_vec()))
    }

    /// Closes a UDP socket. Its handle must not be used again.
    ///
    /// # Panics
    /// If it was closed already.
    pub fn udp_close(&mut self, socket: UdpHandle) {
        self.sockets.remove(socket.0);
    }

    /// Waits at `port` for one connection.
    ///
    /// # Panics
    /// If `port` is zero.
    pub fn tcp_listen(&mut self, port: u16) -> TcpHandle {
        let mut socket = new_tcp_socket();
        socket.listen(port).expect("a new socket can listen at any port but zero");
        TcpHandle(self.sockets.add(socket))
    }

    /// Starts a connection to `target`.
    ///
    /// # Panics
    /// If `target` is not an address and a port that can be connected to, or the host has no address of
    /// its family.
    pub fn tcp_connect(&mut self, target: SocketAddr) -> TcpHandle {
        let port = self.next_port;
        self.next_port = self.next_port.checked_add(1).unwrap_or(49_152);
        let mut socket = new_tcp_socket();
        socket
            .connect(self.interface.context(), IpEndpoint::from(target), port)
            .expect("a new socket can connect to an address and port");
        TcpHandle(self.sockets.add(socket))
    }

    /// Queues the front of `data` for sending; returns how much of it there was room for.
    pub fn tcp_send(&mut self, socket: TcpHandle, data: &[u8]) -> usize {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(socket.0);
        socket.send_slice(data).unwrap_or(0)
    }

    /// Takes all data that came in.
    pub fn tcp_receive(&mut self, socket: TcpHandle) -> Vec<u8> {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(socket.0);
        let mut data = Vec::new();
        while socket.can_recv() {
            let read = socket.recv(|front| {
                data.extend_from_slice(front);
                (front.len(), front.len())
            });
            if read.is_err() {
                break;
            }
        }
        data
    }

    /// Says that no more data follows. What was queued is still sent.
    pub fn tcp_close(&mut self, socket: TcpHandle) {
        self.sockets.get_mut::<tcp::Socket<'_>>(socket.0).close();
    }

    /// Whether data can be sent: the connection stands.
    pub fn tcp_is_connected(&self, socket: TcpHandle) -> bool {
        self.sockets.get::<tcp::Socket<'_>>(socket.0).may_send()
    }

    /// Whether the connection has ended, in whatever way.
    pub fn tcp_is_closed(&self, socket: TcpHandle) -> bool {
        !self.sockets.get::<tcp::Socket<'_>>(socket.0).is_open()
    }

    fn stack_now(&self) -> StackInstant {
        let passed = self.now.saturating_duration_since(self.epoch);
        StackInstant::from_micros(i64::try_from(passed.as_micros()).unwrap_or(i64::MAX))
    }

    fn note_icmp_error(&mut self, packet: &[u8]) {
        let Ok(headers) = wire::parse(packet) else { return };
        let Network::Ip(ip) = headers.network else { return };
        let Transport::Icmp { kind, code } = ip.transport else { return };
        let is_error = match ip.source {
            IpAddr::V4(_) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            IpAddr::V6(_) => kind < 128,
        };
        let Some(mtu) = packet.get(ip.transport_offset + 4..).and_then(<[u8]>::first_chunk) else {
            return;
        };
        if is_error {
            let mtu = u32::from_be_bytes(*mtu);
            if self.icmp_errors.len() == ICMP_ERRORS_MAX {
                self.icmp_errors.pop_front();
            }
            self.icmp_errors.push_back(IcmpError { from: ip.source, kind, code, mtu });
        }
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let addresses = self.interface.ip_addrs();
        f.debug_struct("Host").field("addresses", &addresses).finish_non_exhaustive()
    }
}

fn new_tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_LEN]);
    tcp::Socket::new(buffer(), buffer())
}

/// The network card of a [`Host`].
///
/// smoltcp forgets what it wanted to say to a neighbor whose link address it has to ask for first. A
/// stack should keep at least one packet (RFC 1122 §2.3.2.2), so the card keeps what came in and led to
/// the question, and hands it in once more behind the answer.
struct Card {
    inbox: VecDeque<Vec<u8>>,
    outbox: VecDeque<Sent>,
    unanswered: Vec<Vec<u8>>,
    mtu: u16,
    offload: bool,
}

struct Sent {
    bytes: Vec<u8>,
    segment_size: Option<NonZeroU16>,
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Received, Sending<'_>)> {
        let packet = self.inbox.pop_front()?;
        let sending = Sending { card: self, cause: Some(packet.clone()), segment_size: None };
        Some((Received(packet), sending))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Sending<'_>> {
        Some(Sending { card: self, cause: None, segment_size: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.mtu) + ETHERNET_LEN;
        if self.offload {
            capabilities.checksum.tcp = phy::Checksum::Rx;
            // smoltcp 0.14 would drop its own IPv6 super-frames for being longer than the MTU.
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(FRAME_LEN_MAX);
        }
        capabilities
    }
}

struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

struct Sending<'a> {
    card: &'a mut Card,
    /// The packet that this is a reaction to, if any.
    cause: Option<Vec<u8>>,
    segment_size: Option<NonZeroU16>,
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut bytes = vec![0; len];
        let result = fill(&mut bytes);
        if is_neighbor_message(&bytes, ARP_REQUEST, NEIGHBOR_SOLICITATION) {
            self.card.unanswered.extend(self.cause);
        }
        self.card.outbox.push_back(Sent { bytes, segment_size: self.segment_size });
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment_size = meta.segmentation_offload_size;
    }
}

/// Whether the frame is an ARP packet of this operation, or an ICMPv6 message of this type.
fn is_neighbor_message(frame: &[u8], operation: u8, kind: u8) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x06]) => frame.get(21) == Some(&operation),
        Some([0x86, 0xdd]) => {
            frame.get(20) == Some(&ICMPV6) && frame.get(ETHERNET_LEN + IPV6_LEN) == Some(&kind)
        }
        _ => false,
    }
}

/// Gives a TCP frame the meta data, and the pseudo-header sum, that a kernel hands to a card with.
fn leave_to_card(frame: &mut Frame, segment_size: Option<NonZeroU16>) {
    let Ok(headers) = wire::parse(frame.data()) else { return };
    let Network::Ip(ip) = headers.network else { return };
    let Transport::Tcp { header_len, .. } = ip.transport else { return };
    let segment_len = ETHERNET_LEN + ip.len - ip.transport_offset;
    let sum = checksum::pseudo_header(ip.source, ip.destination, ip.protocol, segment_len).fold();
    let at = ip.transport_offset + TCP_CHECKSUM_AT;
    frame.data_mut()[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let start = u16::try_from(ip.transport_offset).expect("headers are short");
    let offset = u16::try_from(TCP_CHECKSUM_AT).expect("the TCP header is short");
    frame.meta.checksum = Checksum::Partial { start, offset };
    frame.meta.gso = segment_size.map(|size| Gso {
        kind: if ip.source.is_ipv4() { GsoKind::Tcp4 } else { GsoKind::Tcp6 },
        size: size.get(),
        segments: u16::try_from((segment_len - header_len).div_ceil(usize::from(size.get())))
            .expect("a frame has fewer segments than bytes"),
    });
}

const ECHO_IDENT: u16 = 0x5745;
const ECHO_MAX: usize = 64;
const ICMP_ERRORS_MAX: usize = 4096;
const DATAGRAMS_MAX: usize = 256;
const BUFFER_LEN: usize = 65_535;
const TCP_CHECKSUM_AT: usize = 16;
const IPV6_LEN: usize = 40;
const ICMPV6: u8 = 58;
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
