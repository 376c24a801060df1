//! A node with two pods, a host and two other nodes, and what its switch makes of frames.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use vswitch::config::Config;
use vswitch::counters::{Counters, Totals};
use vswitch::frame::{Frame, Ingress, Pool};
use vswitch::mac::Mac;
use vswitch::port::{Context, NodeIx, PortIx};
use vswitch::switch::Switch;
use vswitch::tables::{Node, Peer, PortEntry, PortKind, Tables, TablesBuilder};
use vswitch::verdict::{Egress, Reason};

pub const POD_A: PortIx = PortIx(1);
pub const POD_B: PortIx = PortIx(2);
/// A pod whose interface has a small MTU.
pub const POD_SMALL: PortIx = PortIx(3);
pub const PEER: NodeIx = NodeIx(0);
pub const OTHER_PEER: NodeIx = NodeIx(1);

pub const MAC_A: Mac = Mac([0x0a, 0x58, 10, 244, 1, 2]);
pub const MAC_B: Mac = Mac([0x0a, 0x58, 10, 244, 1, 3]);
pub const MAC_SMALL: Mac = Mac([0x0a, 0x58, 10, 244, 1, 4]);
pub const VTEP: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub const PEER_VTEP: Mac = Mac([2, 0, 0, 0, 0, 2]);

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn node() -> Node {
    Node {
        vtep_mac: VTEP,
        gateway_v4: Some(Ipv4Addr::new(10, 244, 1, 1)),
        gateway_v6: Some("fd00:10:244:1::1".parse().unwrap()),
        underlay: Some(ip("192.0.2.1")),
        vxlan_port: 4789,
        gossip_port: 7946,
    }
}

/// 10.244.1.0/24 and fd00:10:244:1::/64 with pods at .2, .3 and .4; a node with lease 2, and one with 3.
pub fn tables_builder() -> TablesBuilder {
    let ranges = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
    let mut builder = TablesBuilder::new(1, node(), &ranges);
    for (port, mac, mtu, last) in
        [(POD_A, MAC_A, 1450, 2), (POD_B, MAC_B, 1450, 3), (POD_SMALL, MAC_SMALL, 1280, 4)]
    {
        let addresses =
            vec![ip(&format!("10.244.1.{last}")), ip(&format!("fd00:10:244:1::{last}"))];
        builder.port(port, PortEntry { kind: PortKind::Pod, mac, mtu, addresses });
    }
    for lease in [2, 3] {
        let added = builder.peer(Peer {
            name: format!("node-{lease}"),
            underlay: format!("192.0.2.{lease}:4789").parse().unwrap(),
            vtep_mac: Mac([2, 0, 0, 0, 0, lease]),
            mtu: 1400,
            leases: vec![
                format!("10.244.{lease}.0/24").parse().unwrap(),
                format!("fd00:10:244:{lease}::/64").parse().unwrap(),
            ],
        });
        assert!(added.is_some());
    }
    builder
}

pub fn host_port() -> PortEntry {
    PortEntry {
        kind: PortKind::Host,
        mac: Mac::HOST,
        mtu: 1450,
        addresses: vec![ip("10.244.1.1"), ip("fd00:10:244:1::1"), ip("192.0.2.1")],
    }
}

pub fn tables() -> Tables {
    let mut builder = tables_builder();
    builder.port(PortIx::HOST, host_port());
    builder.build()
}

/// A switch, and what a worker has around it.
pub struct Bench {
    pub tables: Tables,
    pub switch: Switch,
    pub pool: Pool,
    pub counters: Counters,
    pub now: Instant,
}

impl Bench {
    pub fn new() -> Self {
        Self::with_tables(tables())
    }

    pub fn with_tables(tables: Tables) -> Self {
        let now = Instant::now();
        Self {
            tables,
            switch: Switch::new(&Config { flows_max: 1024, ..Config::default() }, now),
            pool: Pool::new(256),
            counters: Counters::new(1, 8),
            now,
        }
    }

    pub fn frame(&mut self, ingress: Ingress, bytes: &[u8]) -> Frame {
        let mut frame = self.pool.take().unwrap();
        assert!(frame.append(bytes));
        frame.meta.ingress = ingress;
        frame
    }

    /// Runs frames through the switch, and checks that each is accounted for.
    pub fn forward(&mut self, mut batch: Vec<Frame>) -> Vec<(Egress, Frame)> {
        let worker = self.counters.worker(0);
        for frame in &batch {
            worker.received.add(frame.packets());
        }
        let before = self.totals().queued();
        let received: i128 = batch.iter().map(|frame| i128::from(frame.packets())).sum();
        let mut out = Vec::new();
        let mut context = Context { tables: &self.tables, pool: &mut self.pool, counters: &worker };
        self.switch.forward(&mut context, self.now, &mut batch, &mut out);
        assert!(batch.is_empty());
        let queued: i128 = out.iter().map(|(_, frame)| i128::from(frame.packets())).sum();
        assert_eq!(self.totals().queued() - (before - received), queued, "conservation");
        out
    }

    /// Runs one frame through; returns what comes out, in the end as bytes.
    pub fn run(&mut self, ingress: Ingress, bytes: &[u8]) -> Vec<(Egress, Vec<u8>)> {
        let frame = self.frame(ingress, bytes);
        let out = self.forward(vec![frame]);
        self.recycle(out)
    }

    pub fn recycle(&mut self, out: Vec<(Egress, Frame)>) -> Vec<(Egress, Vec<u8>)> {
        let worker = self.counters.worker(0);
        let bytes = out
            .into_iter()
            .map(|(egress, frame)| {
                let bytes = frame.data().to_vec();
                worker.delivered.add(frame.packets());
                self.pool.put(frame);
                (egress, bytes)
            })
            .collect();
        assert_eq!(self.pool.in_use(), 0, "every buffer is back");
        bytes
    }

    pub fn totals(&self) -> Totals {
        self.counters.sum()
    }

    /// Why the last frame was dropped, if it was; forgets about it.
    pub fn reason_for(&mut self, ingress: Ingress, bytes: &[u8]) -> (Option<Reason>, Out) {
        let before = self.totals();
        let out = self.run(ingress, bytes);
        let after = self.totals();
        let mut reasons = Reason::ALL
            .iter()
            .copied()
            .filter(|reason| after.dropped(*reason) > before.dropped(*reason));
        let reason = reasons.next();
        assert_eq!(reasons.next(), None, "one reason per drop");
        (reason, out)
    }
}

pub type Out = Vec<(Egress, Vec<u8>)>;

/// A UDP packet to the switch.
pub fn udp(from: Mac, source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    udp_to(from, Mac::ROUTER, source, destination, 53, payload)
}

pub fn udp_to(
    from: Mac,
    to: Mac,
    source: &str,
    destination: &str,
    port: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    with_ip(from, to, source, destination, 64).udp(4000, port).write(&mut bytes, payload).unwrap();
    bytes
}

pub fn with_ip(
    from: Mac,
    to: Mac,
    source: &str,
    destination: &str,
    ttl: u8,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let link = PacketBuilder::ethernet2(from.0, to.0);
    match (ip(source), ip(destination)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            link.ipv4(source.octets(), destination.octets(), ttl)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            link.ipv6(source.octets(), destination.octets(), ttl)
        }
        _ => panic!("two families"),
    }
}

/// What etherparse says of a packet that the switch let out, all of whose checksums must be right.
pub struct Seen {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    pub transport: Option<TransportHeader>,
    pub payload: Vec<u8>,
    pub macs: (Mac, Mac),
}

pub fn look(bytes: &[u8]) -> Seen {
    let packet = PacketHeaders::from_ethernet_slice(bytes).unwrap();
    let link = packet.link.unwrap().ethernet2().unwrap();
    let payload = packet.payload.slice().to_vec();
    let transport = packet.transport;
    let (source, destination, ttl) = match packet.net.unwrap() {
        NetHeaders::Ipv4(header, _) => {
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            if let Some(mut right) = transport.clone() {
                right.update_checksum_ipv4(&header, &payload).unwrap();
                assert_eq!(Some(right), transport, "layer 4 checksum");
            }
            (
                IpAddr::from(Ipv4Addr::from(header.source)),
                IpAddr::from(Ipv4Addr::from(header.destination)),
                header.time_to_live,
            )
        }
        NetHeaders::Ipv6(header, _) => {
            if let Some(mut right) = transport.clone() {
                right.update_checksum_ipv6(&header, &payload).unwrap();
                assert_eq!(Some(right), transport, "layer 4 checksum");
            }
            (
                IpAddr::from(Ipv6Addr::from(header.source)),
                IpAddr::from(Ipv6Addr::from(header.destination)),
                header.hop_limit,
            )
        }
        NetHeaders::Arp(_) => panic!("ARP"),
    };
    Seen {
        source,
        destination,
        ttl,
        transport,
        payload,
        macs: (Mac(link.source), Mac(link.destination)),
    }
}
