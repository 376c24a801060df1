//! What other nodes, or anybody who can reach the ports, send.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use overlay::config::LeaseConfig;
use overlay::gossip::sim::{self, Network};
use overlay::gossip::{Gossip, GossipConfig, LocalNode, Memory, Protection};
use overlay::memory_file;
use overlay::node_id::NodeId;
use overlay::path::message::{self, Kind, REPLY_LEN};
use overlay::seal::{KeyFile, KeyRing, Secrets};
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

/// Two nodes that gossip in clear over a bad network. Each step of the input says what the network does with
/// the next datagram on its way, or that time passes.
pub fn gossip(input: &[u8]) {
    run(Pair::new(Seal::None), input);
}

/// The same with a seal. What is changed on its way is refused; what is made up has a right seal, of a
/// session of its own or of the other node, and any content.
pub fn seal(input: &[u8]) {
    run(Pair::new(Seal::Key), input);
}

/// A file with keys.
pub fn key_file(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let path = Path::new("keys");
    match KeyFile::parse(path, text) {
        Ok(file) => {
            assert_eq!(KeyFile::parse(path, &file.text()).expect("what was read"), file);
            let ring = file.ring().expect("one key is in use");
            assert_eq!(ring.ids().len(), file.keys().count());
        }
        Err(error) => assert!(error.to_string().starts_with("keys:")),
    }
}

fn run(mut pair: Pair, mut input: &[u8]) {
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seal {
    None,
    Key,
}

struct Pair {
    seal: Seal,
    nodes: [Gossip; 2],
    /// To which node, and what.
    flying: VecDeque<(usize, Vec<u8>)>,
    now: Instant,
}

impl Pair {
    fn new(seal: Seal) -> Self {
        let now = Instant::now();
        let nodes = [0, 1].map(|ix| {
            let mut config = GossipConfig::new("weft", LeaseConfig::default());
            config.nodes_max = NODES_MAX;
            let local = local_node(ix);
            let protection = match seal {
                Seal::None => Protection::Insecure,
                Seal::Key => Protection::Sealed {
                    keys: KeyRing::new(Network::key(0)),
                    secrets: Secrets::from_bytes([ix + 1; 16], [ix + 1; 32]),
                },
            };
            Gossip::new(config, local, protection, u64::from(ix), now)
        });
        let mut pair = Self { seal, nodes, flying: VecDeque::new(), now };
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
                    if self.seal == Seal::None {
                        let sum = "the sum is not that of envelope.rs";
                        assert_eq!(checked(datagram.clone()), datagram, "{sum}");
                    }
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
            match self.seal {
                Seal::None => self.hand_over(to, &checked(datagram)),
                Seal::Key => {
                    let taken = refused(&self.nodes[to]);
                    self.hand_over(to, &datagram);
                    assert!(*value == 0 || refused(&self.nodes[to]) > taken, "at {at}");
                }
            }
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
        let to = usize::from(what & 1);
        let datagram = match self.seal {
            Seal::None => {
                datagram.truncate(SUMMED_FROM);
                datagram.push(what >> 1);
                datagram.extend_from_slice(body);
                checked(datagram)
            }
            Seal::Key => {
                let salt = if what & 2 == 0 { [9; 16] } else { [u8::from(to == 0) + 1; 16] };
                let counter = u64::from(what >> 2);
                sim::seal(&Network::key(0), "weft", salt, counter, body)
            }
        };
        self.hand_over(to, &datagram);
        rest
    }
}

/// How much a node has refused, or not believed.
fn refused(node: &Gossip) -> u64 {
    let counters = node.counters();
    counters.refused.values().sum::<u64>() + counters.unproven
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

/// Fills in the check sum, as the gossip's `envelope.rs` does.
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
