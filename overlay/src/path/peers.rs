//! The paths to all nodes, taking turns: a node that is sent to is looked at twice a second, the others seldom, so that
//! a thousand of them cost no more than a hundred.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vswitch::mac::Mac;
use vswitch::port::NodeIx;
use vswitch::wire::ETHERNET_LEN;

use super::message::{Kind, Message, PROBE_LEN_MAX, REPLY_LEN};
use super::probe::{BEAT, Finding, PathProbe, PathReport};
use super::responder::Reply;
use crate::node_id::NodeId;
use crate::subnet::inner_mtu;

/// Pause between two probes of a node that nothing is sent to, in a small cluster.
pub const IDLE_PAUSE: Duration = Duration::from_secs(10);

/// At most this many such nodes are probed each second: with more than a hundred nodes the pause grows.
pub const IDLE_PER_S: u32 = 10;

/// At most this many probes go each second to nodes that are sent to, apart from searches: with more than 250 of them
/// the pause grows.
pub const ACTIVE_PER_S: u32 = 500;

/// How long a node counts as sent to.
const ACTIVE_FOR: Duration = Duration::from_secs(3);

/// How often is looked which nodes are sent to.
const SWEEP: Duration = Duration::from_millis(500);

/// A new node is left in peace for this long: it may not know this one yet, and would refuse what comes from a stranger.
pub const FIRST: Duration = Duration::from_secs(3);

/// Pause between the first probes of nodes that became known at once.
const STAGGER: Duration = Duration::from_millis(5);

/// Findings that wait to be read. What they say can also be seen in the reports.
const FINDINGS_MAX: usize = 1024;

/// A node, as probes see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathTarget {
    /// Who it is.
    pub id: NodeId,
    /// Where it receives VXLAN.
    pub to: SocketAddr,
    /// The address of its tunnel endpoint.
    pub vtep_mac: Mac,
    /// The lesser MTU of both ends' interfaces.
    pub max: u16,
    /// Whether a Weft daemon is there, which answers.
    pub answers: bool,
}

/// What became of a probe that was to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is on its way, or lost already.
    Sent,
    /// There was no room for it.
    NoRoom,
}

/// What probes have come to, since the daemon was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProbeCounters {
    /// Probes that were sent.
    pub sent: u64,
    /// Replies to them.
    pub replies: u64,
    /// Replies that nobody had asked for, or that came too late.
    pub unasked: u64,
}

/// The paths.
#[derive(Debug)]
pub struct Paths {
    rng: StdRng,
    /// As the switch's tables number them.
    order: Vec<NodeId>,
    paths: BTreeMap<NodeId, Path>,
    by_address: BTreeMap<IpAddr, NodeId>,
    next_sweep: Instant,
    findings: VecDeque<(NodeId, Finding)>,
    counters: ProbeCounters,
}

#[derive(Debug)]
struct Path {
    target: PathTarget,
    probe: PathProbe,
    active_until: Option<Instant>,
}

impl Paths {
    /// No paths yet. `seed` decides on every nonce.
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            order: Vec::new(),
            paths: BTreeMap::new(),
            by_address: BTreeMap::new(),
            next_sweep: now,
            findings: VecDeque::new(),
            counters: ProbeCounters::default(),
        }
    }

    /// Takes up all nodes that can be sent to, in the order in which the switch's tables have them. What is known of
    /// those that stay, stays.
    pub fn set_targets(&mut self, targets: Vec<PathTarget>, now: Instant) {
        let idle = idle_pause(targets.len());
        let mut former = std::mem::take(&mut self.paths);
        self.order.clear();
        self.by_address.clear();
        let mut first = now + FIRST;
        for target in targets {
            self.order.push(target.id);
            self.by_address.insert(target.to.ip(), target.id);
            let same = former.remove(&target.id).filter(|former| {
                former.target.to == target.to && former.target.answers == target.answers
            });
            let path = match same {
                Some(mut path) => {
                    path.probe.set_max(target.max, now);
                    path.probe.set_idle_pause(idle);
                    path.target = target;
                    path
                }
                None => {
                    first += STAGGER;
                    let small = outer_len(REPLY_LEN, target.to.ip());
                    let start = target.answers.then_some(first);
                    let probe = PathProbe::new(small, target.max, idle, now, start);
                    Path { target, probe, active_until: None }
                }
            };
            self.paths.insert(path.target.id, path);
        }
    }

    /// Does what time has come for: looks which nodes are sent to (`is_active`, once for each), and hands every probe
    /// that is due to `send`, with the length of its frame.
    pub fn turn(
        &mut self,
        now: Instant,
        is_active: impl Fn(NodeIx) -> bool,
        mut send: impl FnMut(&PathTarget, &Message) -> Outcome,
    ) {
        if self.next_sweep <= now {
            self.next_sweep = now + SWEEP;
            self.sweep(now, is_active);
        }
        let Self { rng, paths, findings, counters, .. } = self;
        for (id, Path { target, probe, .. }) in paths {
            if probe.poll_timeout().is_some_and(|at| at <= now) {
                probe.handle_timeout(now);
            }
            let mut nonce = 0;
            while let Some(size) = probe.poll_transmit(
                || {
                    nonce = rng.random();
                    nonce
                },
                now,
            ) {
                let mtu = inner_mtu(probe.mtu(), target.to.ip());
                let len = frame_len(size, target.to.ip());
                match send(target, &Message { kind: Kind::Probe, nonce, mtu, len }) {
                    Outcome::Sent => counters.sent += 1,
                    Outcome::NoRoom => probe.handle_unsent(nonce, now),
                }
            }
            while let Some(finding) = probe.poll_finding() {
                if findings.len() < FINDINGS_MAX {
                    findings.push_back((*id, finding));
                }
            }
        }
    }

    /// When [`Paths::turn`] has to be called at the latest. `None` when there is no node to look at.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = self.paths.values().filter_map(|path| path.probe.poll_timeout()).min()?;
        Some(next.min(self.next_sweep))
    }

    /// Takes a reply.
    pub fn handle_reply(&mut self, reply: &Reply) {
        let path = self.by_address.get(&reply.from).and_then(|id| self.paths.get_mut(id));
        let asked =
            path.is_some_and(|path| path.probe.handle_reply(reply.nonce, reply.mtu, reply.at));
        if asked {
            self.counters.replies += 1;
        } else {
            self.counters.unasked += 1;
        }
    }

    /// Takes up what the kernel knows of the path to this address.
    pub fn handle_kernel(&mut self, to: IpAddr, mtu: u16, now: Instant) {
        if let Some(path) = self.by_address.get(&to).and_then(|id| self.paths.get_mut(id)) {
            path.probe.handle_kernel(mtu, now);
        }
    }

    /// The paths of which the kernel has said that they carry less: it forgets that without telling.
    pub fn narrow_by_kernel(&self) -> impl Iterator<Item = SocketAddr> {
        let narrow = self.paths.values().filter(|path| path.probe.is_narrow_by_kernel());
        narrow.map(|path| path.target.to)
    }

    /// What has been found out since the last call, the oldest first.
    pub fn poll_finding(&mut self) -> Option<(NodeId, Finding)> {
        self.findings.pop_front()
    }

    /// Longest outer IP packet towards the node; `None` if it is none that can be sent to.
    pub fn mtu(&self, id: NodeId) -> Option<u16> {
        self.paths.get(&id).map(|path| path.probe.mtu())
    }

    /// What is known of the path to each node.
    pub fn reports(&self) -> BTreeMap<NodeId, PathReport> {
        self.paths.iter().map(|(id, path)| (*id, path.probe.report())).collect()
    }

    /// What probes have come to.
    pub fn counters(&self) -> ProbeCounters {
        self.counters
    }

    fn sweep(&mut self, now: Instant, is_active: impl Fn(NodeIx) -> bool) {
        let mut active = 0;
        for (ix, id) in (0..=u16::MAX).zip(&self.order) {
            let Some(path) = self.paths.get_mut(id) else { continue };
            if is_active(NodeIx(ix)) {
                path.active_until = Some(now + ACTIVE_FOR);
            }
            let is_active = path.active_until.is_some_and(|until| until > now);
            active += u32::from(is_active);
            path.probe.set_active(is_active, now);
        }
        let pause = BEAT.max(Duration::from_secs(1) * active / ACTIVE_PER_S);
        for path in self.paths.values_mut() {
            path.probe.set_active_pause(pause);
        }
    }
}

/// How often each of so many nodes is probed while nothing is sent to it.
pub fn idle_pause(nodes: usize) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    IDLE_PAUSE.max(Duration::from_secs(1) * nodes / IDLE_PER_S)
}

/// The length of the frame inside an outer packet of this length.
fn frame_len(size: u16, underlay: IpAddr) -> u16 {
    let most = u16::try_from(PROBE_LEN_MAX).unwrap_or(u16::MAX);
    let ethernet = u16::try_from(ETHERNET_LEN).unwrap_or(u16::MAX);
    inner_mtu(size, underlay).saturating_add(ethernet).min(most)
}

/// The length of the outer packet around a frame of this length.
fn outer_len(frame: usize, underlay: IpAddr) -> u16 {
    let overhead = u16::MAX - inner_mtu(u16::MAX, underlay);
    u16::try_from(frame - ETHERNET_LEN).unwrap_or(u16::MAX).saturating_add(overhead)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn target(number: u16) -> PathTarget {
        let [high, low] = number.to_be_bytes();
        let mut id = [0; 16];
        id[..2].copy_from_slice(&[high, low]);
        PathTarget {
            id: NodeId(id),
            to: ([10, 0, high, low], 4789).into(),
            vtep_mac: Mac([2, 0, 0, 0, high, low]),
            max: 1500,
            answers: true,
        }
    }

    /// Runs for a time in which `active` nodes are sent to and every probe is answered. Returns probes and their bytes.
    fn run(paths: &mut Paths, now: &mut Instant, time: Duration, active: u16) -> (u64, u64) {
        let end = *now + time;
        let (mut sent, mut bytes) = (0, 0);
        while *now < end {
            let mut replies = Vec::new();
            paths.turn(
                *now,
                |node| node.0 < active,
                |target, message| {
                    sent += 1;
                    bytes += u64::from(message.len);
                    let from = target.to.ip();
                    replies.push(Reply { from, nonce: message.nonce, mtu: 1450, at: *now });
                    Outcome::Sent
                },
            );
            for reply in replies {
                paths.handle_reply(&reply);
            }
            *now = paths.poll_timeout().unwrap().max(*now + Duration::from_millis(20)).min(end);
        }
        (sent, bytes)
    }

    #[test]
    fn idle_nodes_take_turns_so_that_many_cost_as_much_as_a_hundred() {
        assert_eq!(idle_pause(5000), Duration::from_secs(500));
        for (nodes, pause_s) in [(2, 10), (100, 10), (500, 50)] {
            let mut now = Instant::now();
            let mut paths = Paths::new(1, now);
            paths.set_targets((0..nodes).map(target).collect(), now);
            run(&mut paths, &mut now, Duration::from_secs(60), 0);
            let time = Duration::from_secs(6 * pause_s);
            let (sent, bytes) = run(&mut paths, &mut now, time, 0);
            let per_node = sent / u64::from(nodes);
            assert!((5..=6).contains(&per_node), "{nodes} nodes: {per_node} each");
            let bytes_s = bytes / time.as_secs();
            assert!(bytes_s < 4000, "{nodes} nodes: {bytes_s} bytes each second");
            assert_eq!(paths.counters().replies, paths.counters().sent);
        }
    }

    #[test]
    fn nodes_that_are_sent_to_are_looked_at_twice_a_second_within_limits() {
        for (active, per_s) in [(1, 2), (100, 200), (250, 500), (1000, 500)] {
            let mut now = Instant::now();
            let mut paths = Paths::new(1, now);
            paths.set_targets((0..1000).map(target).collect(), now);
            run(&mut paths, &mut now, Duration::from_secs(30), active);
            let (sent, _) = run(&mut paths, &mut now, Duration::from_secs(20), active);
            let found = sent / 20;
            let idle = if active == 1000 { 0 } else { u64::from(IDLE_PER_S) };
            assert!(
                (per_s * 9 / 10..=per_s * 11 / 10 + idle + 1).contains(&found),
                "{active}: {found}"
            );
        }
    }

    #[test]
    fn what_is_known_stays_with_who_stays() {
        let mut now = Instant::now();
        let mut paths = Paths::new(1, now);
        paths.set_targets((0..3).map(target).collect(), now);
        run(&mut paths, &mut now, Duration::from_secs(10), 0);
        paths.handle_kernel(target(1).to.ip(), 1400, now);
        let moved = PathTarget { to: ([10, 9, 9, 9], 4789).into(), ..target(2) };
        paths.set_targets(vec![target(1), moved, target(7)], now);
        let reports = paths.reports();
        let known: BTreeSet<_> = reports.keys().copied().collect();
        assert_eq!(known, [1, 2, 7].map(|number| target(number).id).into());
        assert_eq!((reports[&target(1).id].mtu, paths.mtu(target(0).id)), (1400, None));
        assert!(reports[&target(1).id].rtt.is_some());
        assert!(reports[&target(2).id].rtt.is_none(), "another address is another path");
        assert_eq!(paths.narrow_by_kernel().collect::<Vec<_>>(), [target(1).to]);
    }

    #[test]
    fn who_does_not_answer_is_not_asked_and_held_to_what_the_kernel_knows() {
        let mut now = Instant::now();
        let mut paths = Paths::new(1, now);
        paths.set_targets(vec![PathTarget { answers: false, ..target(1) }], now);
        assert_eq!(paths.poll_timeout(), None);
        for _ in 0..100 {
            now += Duration::from_millis(500);
            paths.turn(now, |_| true, |_, _| panic!("asked"));
        }
        let id = target(1).id;
        paths.handle_kernel(target(1).to.ip(), 1400, now);
        assert_eq!(paths.mtu(id), Some(1400));
        paths.handle_kernel(target(1).to.ip(), 1500, now);
        assert_eq!(paths.mtu(id), Some(1500));
    }

    #[test]
    fn lengths_are_those_of_the_outer_packet() {
        let (v4, v6) = (IpAddr::from([192, 0, 2, 1]), "fd00::1".parse().unwrap());
        assert_eq!((frame_len(1500, v4), frame_len(1500, v6)), (1464, 1444));
        assert_eq!((outer_len(REPLY_LEN, v4), outer_len(REPLY_LEN, v6)), (96, 116));
        assert_eq!(usize::from(frame_len(96, v4)), REPLY_LEN);
        assert_eq!(usize::from(frame_len(116, v6)), REPLY_LEN);
        assert_eq!(usize::from(frame_len(u16::MAX, v4)), PROBE_LEN_MAX);
    }
}
