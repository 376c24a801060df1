//! What other nodes, or anybody who can reach the ports, send.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use overlay::config::LeaseConfig;
use overlay::gossip::sim::{Network, seal};
use overlay::gossip::{DATAGRAM_MAX, Gossip, GossipConfig, LocalNode, Memory, Protection};
use overlay::memory_file;
use overlay::node_id::NodeId;
use overlay::path::message::{self, Kind, REPLY_LEN};
use overlay::seal::KeyFile;
use overlay::vxlan::{self, Vni};

/// A VXLAN datagram.
pub fn vxlan(datagram: &[u8]) {
    if let Ok(inner) = vxlan::decode(datagram, Vni::WEFT) {
        assert_eq!(inner.len() + vxlan::HEADER_LEN, datagram.len());
        // The reserved bits are ignored; everything else is what we write.
        let ours = vxlan::encode(Vni::WEFT);
        assert_eq!(datagram[0] & ours[0], ours[0]);
        assert_eq!(datagram[4..7], ours[4..7]);
        if message::is_probe(inner)
            && let Ok((destination, source, found)) = message::read(inner)
        {
            // A probe is as long as it says, and a reply written anew from what was read is what was read.
            assert!(found.kind == Kind::Reply || usize::from(found.len) == inner.len());
            let mut written = [0; REPLY_LEN];
            message::write(&mut written, destination, source, &found);
            assert_eq!(written[..32], inner[..32]);
        }
    }
}

/// The state file of a node, `gossip.json`. What is read can be written and read again, and a node can live
/// with it.
pub fn state(input: &[u8]) {
    let path = Path::new("gossip.json");
    let (id, memory) = match memory_file::decode(path, input) {
        Ok(read) => read,
        Err(error) => {
            assert!(error.to_string().contains("gossip.json"), "{error}");
            return;
        }
    };
    let text = memory_file::encode(path, id, &memory).expect("what was read can be written");
    assert_eq!(
        memory_file::decode(path, &text).expect("it can be read again"),
        (id, memory.clone())
    );
    let mut now = Instant::now();
    let config = GossipConfig::new("weft", LeaseConfig::default());
    let local = LocalNode { id, memory, ..local_node(0) };
    let mut node = Gossip::new(config, local, Protection::Insecure, 0, now);
    for _ in 0..20 {
        while node.poll_memory().is_some() {
            node.handle_saved(now);
        }
        while node.poll_transmit().is_some() {}
        now = node.poll_timeout().map_or(now, |at| at.max(now));
        node.handle_timeout(now);
    }
}

/// The file with a node's id.
pub fn node_id(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    if let Ok(id) = text.trim().parse::<NodeId>() {
        assert_eq!(id.to_string(), text.trim().to_ascii_lowercase());
    }
}

/// The file with a cluster's keys.
pub fn keys(input: &[u8]) {
    let (Ok(text), path) = (str::from_utf8(input), Path::new("keys")) else { return };
    match KeyFile::parse(path, text) {
        Ok(file) => {
            let again =
                KeyFile::parse(path, &file.text()).expect("what was read can be read again");
            assert_eq!(again.ring().map(|ring| ring.ids()), file.ring().map(|ring| ring.ids()));
            assert!(file.ring().is_some());
        }
        Err(error) => assert!(error.to_string().contains("keys"), "{error}"),
    }
}

/// Datagrams to a node that has a key. Each begins with a byte that says what it is: any bytes at all, or any
/// content under a right seal, of a session that its next byte names. A length follows in one byte, times five.
pub fn sealed(mut input: &[u8]) {
    let mut network = Network::new(0);
    network.add_node();
    network.add_node();
    network.run_for(Duration::from_secs(1));
    let from = network.address(1);
    let to = network.address(0);
    let mut counter = 0;
    let mut steps = 0;
    while let Some(([what, session, len], rest)) = input.split_first_chunk()
        && steps < STEPS_MAX
    {
        steps += 1;
        let (content, rest) = rest.split_at((usize::from(*len) * 5).min(rest.len()));
        input = rest;
        let datagram = match what % 3 {
            0 => content.to_vec(),
            1 => {
                counter += 1;
                seal(&Network::key(0), "sim", [*session; 16], counter, content)
            }
            // A datagram that somebody has really sent, with some bytes changed.
            _ => {
                network.capture();
                network.run_for(Duration::from_secs(1));
                let captured = network.capture();
                let Some((_, _, datagram)) = captured.into_iter().next_back() else { continue };
                let mut datagram = datagram;
                for (ix, value) in content.iter().enumerate() {
                    let at = (usize::from(*session) + ix) % datagram.len();
                    datagram[at] ^= value;
                }
                datagram
            }
        };
        network.inject(from, to, datagram);
        network.run_for(Duration::from_millis(10));
    }
    assert!(network.map(0).is_some_and(|map| map.members.len() <= 5000));
    assert!(network.longest_sent <= DATAGRAM_MAX);
}

/// Two nodes that gossip over a bad network. Each step of the input says what the network does with the
/// next datagram on its way, or that time passes.
pub fn gossip(mut input: &[u8]) {
    let mut pair = Pair::new();
    let mut steps = 0;
    while let Some((&step, rest)) = input.split_first()
        && steps < STEPS_MAX
    {
        steps += 1;
        input = match step % 8 {
            0 => pair.pass(rest, Duration::from_millis(20)),
            1 => pair.pass(rest, Duration::from_secs(2)),
            2 | 3 => pair.deliver(rest),
            4 => pair.lose(rest),
            5 => pair.repeat(rest),
            6 => pair.damage(rest),
            _ => pair.forge(rest),
        };
        pair.collect();
    }
    for node in &pair.nodes {
        assert!(node.map().members.len() <= NODES_MAX);
    }
}

const STEPS_MAX: usize = 400;
const NODES_MAX: usize = 8;
/// Most datagrams on their way at a time.
const FLYING_MAX: usize = 256;

struct Pair {
    nodes: [Gossip; 2],
    /// To which node, and what.
    flying: VecDeque<(usize, Vec<u8>)>,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let nodes = [0, 1].map(|ix| {
            let mut config = GossipConfig::new("weft", LeaseConfig::default());
            config.nodes_max = NODES_MAX;
            let local = local_node(ix);
            // In clear, so that the messages inside can be changed.
            Gossip::new(config, local, Protection::Insecure, u64::from(ix), now)
        });
        let mut pair = Self { nodes, flying: VecDeque::new(), now };
        pair.nodes[1].join(address(0), now);
        pair.collect();
        pair
    }

    /// Does what a driver does after every call.
    fn collect(&mut self) {
        for (ix, node) in self.nodes.iter_mut().enumerate() {
            while node.poll_memory().is_some() {
                node.handle_saved(self.now);
            }
            while node.poll_event().is_some() {}
            while let Some((to, datagram)) = node.poll_transmit() {
                assert!(datagram.len() <= overlay::gossip::DATAGRAM_MAX);
                if to == address(1 - ix) && self.flying.len() < FLYING_MAX {
                    assert_eq!(
                        checked(datagram.clone()),
                        datagram,
                        "the sum is not that of codec.rs"
                    );
                    self.flying.push_back((1 - ix, datagram));
                }
            }
        }
    }

    fn pass<'a>(&mut self, rest: &'a [u8], time: Duration) -> &'a [u8] {
        self.now += time;
        for node in &mut self.nodes {
            node.handle_timeout(self.now);
        }
        rest
    }

    fn hand_over(&mut self, to: usize, datagram: &[u8]) {
        self.nodes[to].handle_datagram(address(1 - to), datagram, self.now);
    }

    fn deliver<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        if let Some((to, datagram)) = self.flying.pop_front() {
            self.hand_over(to, &datagram);
        }
        rest
    }

    fn lose<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        self.flying.pop_front();
        rest
    }

    fn repeat<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        if let Some((to, datagram)) = self.flying.front().cloned() {
            self.hand_over(to, &datagram);
        }
        rest
    }

    /// Changes a byte (its place in two bytes, its value in a third) of the next datagram.
    fn damage<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        let Some(([high, low, value], rest)) = rest.split_first_chunk() else {
            return &[];
        };
        if let Some((to, mut datagram)) = self.flying.pop_front() {
            let at = usize::from(u16::from_be_bytes([*high, *low])) % datagram.len();
            datagram[at] ^= value;
            self.hand_over(to, &checked(datagram));
        }
        rest
    }

    /// Makes up a datagram: receiver and kind in a byte, its length in another, then its body.
    fn forge<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        let Some(([what, len], rest)) = rest.split_first_chunk() else {
            return &[];
        };
        let (body, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        let Some(mut datagram) = self.flying.front().map(|(_, datagram)| datagram.clone()) else {
            return rest;
        };
        datagram.truncate(SUMMED_FROM);
        datagram.push(what >> 1);
        datagram.extend_from_slice(body);
        self.hand_over(usize::from(what & 1), &checked(datagram));
        rest
    }
}

fn local_node(ix: u8) -> LocalNode {
    LocalNode {
        id: NodeId([ix + 1; 16]),
        name: format!("node-{ix}"),
        underlay: address(usize::from(ix)).ip(),
        gossip_port: 7946,
        vxlan_port: 4789,
        underlay_mtu: 1500,
        software: String::new(),
        has_seeds: false,
        memory: Memory::default(),
    }
}

/// Where the summed part of a datagram begins: at its kind, behind version, form, network and sum.
const SUMMED_FROM: usize = 14;

/// Fills in the check sum, as the gossip's `codec.rs` does.
fn checked(mut datagram: Vec<u8>) -> Vec<u8> {
    if datagram.len() > SUMMED_FROM {
        let hash = datagram[SUMMED_FROM..].iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        datagram[SUMMED_FROM - 4..SUMMED_FROM].copy_from_slice(&stir(hash).to_be_bytes()[..4]);
    }
    datagram
}

/// The finalizer of `SplitMix64`.
fn stir(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

fn address(ix: usize) -> SocketAddr {
    let host = if ix == 0 { 1 } else { 2 };
    SocketAddr::new(IpAddr::from([198, 18, 0, host]), 7946)
}
