//! What becomes of probes and replies that arrive: a probe is answered, a reply is handed on, and of either only so
//! many per second, so that no member can keep this node busy, nor keep another's probes from being answered.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use tokio::sync::Notify;
use vswitch::icmp_error::RateLimit;
use vswitch::port::NodeIx;
use vswitch::tables::Tables;
use vswitch::verdict::Reason;

use super::message::{self, Kind, Message};

/// Probes and replies of one node that are taken each second. A node that looks for the MTU sends about a hundred.
pub const PER_NODE_S: u32 = 200;

/// Probes and replies of all nodes together that are taken each second.
pub const PER_S: u32 = 5000;

/// Nodes share the limits of so many places, by chance.
const PLACES: usize = 1024;

/// Probes that wait for the end of the batch.
const WAITING_MAX: usize = 64;

/// Replies that wait to be taken; more than the workers let through in the time that a task may take to run.
const REPLIES_MAX: usize = 1024;

/// A reply to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Who replied.
    pub from: IpAddr,
    /// The probe's nonce.
    pub nonce: u64,
    /// Longest IP packet that the other node sends to this one.
    pub mtu: u16,
    /// When the worker had it.
    pub at: Instant,
}

/// Replies on their way from the workers to who probes.
#[derive(Debug)]
pub struct ReplyQueue {
    replies: ArrayQueue<Reply>,
    /// Told with each reply, and whenever else there may be something to do.
    pub notify: Notify,
}

impl ReplyQueue {
    fn new() -> Self {
        Self { replies: ArrayQueue::new(REPLIES_MAX), notify: Notify::new() }
    }

    /// The next one.
    pub fn pop(&self) -> Option<Reply> {
        self.replies.pop()
    }
}

/// A probe that is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The node that asked.
    pub node: NodeIx,
    /// What it sent.
    pub message: Message,
}

/// Takes probes and replies out of the tunnel.
#[derive(Debug)]
pub struct Responder {
    /// Those of this batch, not looked at yet.
    waiting: Vec<Asked>,
    /// Shared by all who receive, and locked only for a probe or a reply.
    limits: Arc<Mutex<Limits>>,
    replies: Arc<ReplyQueue>,
}

/// How many are taken.
#[derive(Debug)]
struct Limits {
    all: Option<RateLimit>,
    places: Box<[Option<RateLimit>]>,
    hasher: RandomState,
}

impl Default for Responder {
    fn default() -> Self {
        let places = (0..PLACES).map(|_| None).collect();
        let limits = Limits { all: None, places, hasher: RandomState::default() };
        Self::new(Arc::new(Mutex::new(limits)), Arc::new(ReplyQueue::new()))
    }
}

impl Responder {
    fn new(limits: Arc<Mutex<Limits>>, replies: Arc<ReplyQueue>) -> Self {
        Self { waiting: Vec::with_capacity(WAITING_MAX), limits, replies }
    }

    /// Makes one for another socket of the same tunnel: the limits are for both together.
    pub fn another(&self) -> Self {
        Self::new(Arc::clone(&self.limits), Arc::clone(&self.replies))
    }

    /// Where replies go.
    pub fn replies(&self) -> &Arc<ReplyQueue> {
        &self.replies
    }

    /// Looks at a frame with the EtherType of probes, which `node` sent. It then waits for [`Responder::take`].
    ///
    /// # Errors
    /// Why it is to be dropped: it is not for this node's tunnel endpoint, not from that of `node`, or damaged, or too
    /// many wait.
    pub fn push(&mut self, frame: &[u8], node: NodeIx, tables: &Tables) -> Result<(), Reason> {
        let (destination, source, message) = message::read(frame)?;
        if destination != tables.node.vtep_mac {
            return Err(Reason::VxlanVtep);
        }
        if tables.peer(node).is_none_or(|peer| peer.vtep_mac != source) {
            return Err(Reason::VxlanSource);
        }
        if self.waiting.len() == WAITING_MAX {
            return Err(Reason::ProbeExcess);
        }
        self.waiting.push(Asked { node, message });
        Ok(())
    }

    /// Whether something waits.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Decides about the next that waits: a probe that is to be answered, a reply that was handed on (`Ok(None)`), or
    /// why it is dropped. `None` when nothing waits.
    pub fn take(&mut self, now: Instant, tables: &Tables) -> Option<Result<Option<Asked>, Reason>> {
        let asked = self.waiting.pop()?;
        let Some(peer) = tables.peer(asked.node) else {
            return Some(Err(Reason::NodeGone));
        };
        let from = peer.underlay.ip();
        // Every change of the limits is whole, whoever panicked.
        let may_take =
            self.limits.lock().unwrap_or_else(PoisonError::into_inner).may_take(from, now);
        if !may_take {
            return Some(Err(Reason::ProbeExcess));
        }
        let Message { kind, nonce, mtu, .. } = asked.message;
        Some(match kind {
            Kind::Probe => Ok(Some(asked)),
            Kind::Reply => match self.replies.replies.push(Reply { from, nonce, mtu, at: now }) {
                Ok(()) => {
                    self.replies.notify.notify_one();
                    Ok(None)
                }
                Err(_) => Err(Reason::ProbeExcess),
            },
        })
    }
}

impl Limits {
    fn may_take(&mut self, from: IpAddr, now: Instant) -> bool {
        let ix = usize::try_from(self.hasher.hash_one(from) % PLACES as u64).unwrap_or(0);
        let place = self.places[ix].get_or_insert_with(|| RateLimit::new(PER_NODE_S, now));
        place.take(now) && self.all.get_or_insert_with(|| RateLimit::new(PER_S, now)).take(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vswitch::mac::Mac;
    use vswitch::tables::{Node, Peer, TablesBuilder};

    use super::*;
    use crate::path::message::REPLY_LEN;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn peer_mac(number: u8) -> Mac {
        Mac([2, 0, 0, 0, 1, number])
    }

    fn tables(peers: u8) -> Tables {
        let node = Node {
            vtep_mac: OWN,
            gateway_v4: None,
            gateway_v6: None,
            underlay: None,
            vxlan_port: 4789,
            gossip_port: 7946,
        };
        let mut builder = TablesBuilder::new(1, node, &[]);
        for number in 0..peers {
            let peer = Peer {
                name: format!("n{number}"),
                underlay: ([192, 0, 2, number], 4789).into(),
                vtep_mac: peer_mac(number),
                mtu: 1450,
                leases: Vec::new(),
            };
            assert!(builder.peer(peer).is_some());
        }
        builder.build()
    }

    fn frame(kind: Kind, to: Mac, from: Mac) -> Vec<u8> {
        let mut frame = vec![0; REPLY_LEN];
        message::write(&mut frame, to, from, &Message { kind, nonce: 7, mtu: 1400, len: 60 });
        frame
    }

    #[test]
    fn a_probe_is_answered_and_a_reply_handed_on() {
        let (tables, mut responder) = (tables(2), Responder::default());
        let now = Instant::now();
        for kind in [Kind::Probe, Kind::Reply] {
            responder.push(&frame(kind, OWN, peer_mac(1)), NodeIx(1), &tables).unwrap();
        }
        assert_eq!(responder.take(now, &tables), Some(Ok(None)));
        let message = Message { kind: Kind::Probe, nonce: 7, mtu: 1400, len: 60 };
        let asked = Asked { node: NodeIx(1), message };
        assert_eq!(responder.take(now, &tables), Some(Ok(Some(asked))));
        assert_eq!(responder.take(now, &tables), None);
        let reply = Reply { from: [192, 0, 2, 1].into(), nonce: 7, mtu: 1400, at: now };
        assert_eq!(responder.replies().pop(), Some(reply));
        assert_eq!(responder.replies().pop(), None);
    }

    #[test]
    fn only_what_the_node_sends_itself_to_this_one_is_taken() {
        let (tables, mut responder) = (tables(2), Responder::default());
        let mut push = |to, from| responder.push(&frame(Kind::Probe, to, from), NodeIx(1), &tables);
        assert_eq!(push(peer_mac(0), peer_mac(1)), Err(Reason::VxlanVtep));
        assert_eq!(push(OWN, peer_mac(0)), Err(Reason::VxlanSource));
        assert_eq!(push(OWN, OWN), Err(Reason::VxlanSource));
        assert_eq!(push(OWN, peer_mac(1)), Ok(()));
    }

    #[test]
    fn a_flood_is_bounded_and_leaves_room_for_others() {
        let (tables, mut responder) = (tables(2), Responder::default());
        let now = Instant::now();
        let flood = frame(Kind::Probe, OWN, peer_mac(0));
        let mut answered = 0;
        for _ in 0..100 {
            while responder.push(&flood, NodeIx(0), &tables).is_ok() {}
            while let Some(taken) = responder.take(now, &tables) {
                answered += u32::from(taken.is_ok());
            }
        }
        assert_eq!(answered, PER_NODE_S);
        // Two of 1024 places are the same by chance, but seldom; the next second is everybody's.
        let later = now + Duration::from_secs(1);
        responder.push(&frame(Kind::Probe, OWN, peer_mac(1)), NodeIx(1), &tables).unwrap();
        assert!(matches!(responder.take(later, &tables), Some(Ok(Some(_)))));
    }

    #[test]
    fn all_nodes_together_are_bounded() {
        let (tables, mut responder) = (tables(200), Responder::default());
        let now = Instant::now();
        let mut answered = 0;
        for number in 0..200 {
            let flood = frame(Kind::Probe, OWN, peer_mac(number));
            for _ in 0..10 {
                let node = NodeIx(number.into());
                while responder.push(&flood, node, &tables).is_ok() {}
                while let Some(taken) = responder.take(now, &tables) {
                    answered += u32::from(taken.is_ok());
                }
            }
        }
        assert_eq!(answered, PER_S);
    }

    #[test]
    fn a_node_that_reaches_several_sockets_has_no_more() {
        let (tables, first) = (tables(2), Responder::default());
        let mut sockets = [first.another(), first.another(), first];
        let (now, flood) = (Instant::now(), frame(Kind::Probe, OWN, peer_mac(1)));
        let mut answered = 0;
        for _ in 0..10 {
            for responder in &mut sockets {
                while responder.push(&flood, NodeIx(1), &tables).is_ok() {}
                while let Some(taken) = responder.take(now, &tables) {
                    answered += u32::from(taken.is_ok());
                }
            }
        }
        assert_eq!(answered, PER_NODE_S);
    }

    #[test]
    fn replies_that_nobody_takes_are_dropped() {
        let (tables, mut responder) = (tables(100), Responder::default());
        let now = Instant::now();
        let mut dropped = 0;
        for round in 0..u16::try_from(REPLIES_MAX).unwrap() + 10 {
            let number = u8::try_from(round % 100).unwrap();
            let reply = frame(Kind::Reply, OWN, peer_mac(number));
            responder.push(&reply, NodeIx(number.into()), &tables).unwrap();
            dropped += u16::from(responder.take(now, &tables) == Some(Err(Reason::ProbeExcess)));
        }
        assert_eq!(dropped, 10);
    }
}
