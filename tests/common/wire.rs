//! A bad wire: between the nodes of a lab, frames get lost and overtake each other.
//!
//! ```text
//!  n1 eth0 ═══ n1 ─┐                ┌─ n2 ═══ eth0 n2
//!                wire-n1          wire-n2          bridges of two ports each, in the underlay
//!                tap-n1 ── relay ── tap-n2
//! ```
//!
//! The TAPs have no offloads: the kernel cuts super-frames and fills in checksums before the relay, a thread of
//! this process, gets to see them. So each loss is the loss of one packet.
// The crate that makes the TAPs lends its descriptors only as numbers.
#![allow(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cni::link::Netlink;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_tap::{Iface, Mode};
use weft::lab::{Interrupt, Lab, Namespace, UNDERLAY};

use super::run;

/// The bridge that joins all nodes of a lab.
const BRIDGE: &str = "br0";

/// How many frames wait at a TAP until the relay is given time. What comes beyond is lost too, and nobody chose
/// which. Each of some hundred flows that lose packets now and then has a few on the way.
const QUEUE_LEN: u32 = 20_000;

/// Room for a frame.
const FRAME_LEN_MAX: usize = 2048;

/// Most frames that are taken from one node in a row.
const BURST_MAX: usize = 64;

/// How often the relay looks whether it is to stop.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// What happens to frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// Of a thousand frames so many are lost.
    pub(crate) lost_per_mille: u32,
    /// Of a thousand frames so many are late, and overtaken by those behind them.
    pub(crate) late_per_mille: u32,
    /// By at most so much.
    pub(crate) late_max: Duration,
    /// Where chance begins.
    pub(crate) seed: u64,
}

/// What happened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Carried {
    /// Frames that came to the relay.
    pub(crate) frames: u64,
    /// Of those, the ones that were lost.
    pub(crate) lost: u64,
    /// And the ones that were late.
    pub(crate) late: u64,
}

/// Joins all nodes of a lab instead of the lab's own bridge, until [`BadWire::finish`].
pub(crate) struct BadWire {
    underlay: Namespace,
    nodes: Vec<String>,
    stop: Interrupt,
    relay: JoinHandle<Carried>,
}

impl BadWire {
    /// Puts the wire between the nodes.
    #[track_caller]
    pub(crate) fn between_nodes(lab: &Lab, faults: Faults) -> Self {
        let underlay = lab.namespace(UNDERLAY).unwrap();
        let nodes: Vec<String> = lab.nodes().iter().map(|node| node.name.clone()).collect();
        let mut netlink = Netlink::open_in(underlay.path()).unwrap();
        let taps: Vec<Iface> = nodes
            .iter()
            .map(|node| {
                let (bridge, tap) = (format!("wire-{node}"), format!("tap-{node}"));
                let made = underlay.run(|| Iface::without_packet_info(&tap, Mode::Tap)).unwrap();
                run(&underlay, &format!("ip link set dev {tap} txqueuelen {QUEUE_LEN}"));
                netlink.create_bridge(&bridge).unwrap();
                let bridge = netlink.link(&bridge).unwrap().index;
                for port in [&tap, node] {
                    let index = netlink.link(port).unwrap().index;
                    netlink.set_master(index, Some(bridge)).unwrap();
                    netlink.set_up(index).unwrap();
                }
                made.unwrap()
            })
            .collect();
        let stop = Interrupt::default();
        let stopped = stop.clone();
        let relay = std::thread::spawn(move || Relay::new(taps, faults).run(&stopped));
        Self { underlay, nodes, stop, relay }
    }

    /// Gives the nodes their own bridge back, and tells what happened.
    #[track_caller]
    pub(crate) fn finish(self) -> Carried {
        self.stop.set();
        let carried = self.relay.join().unwrap();
        let mut netlink = Netlink::open_in(self.underlay.path()).unwrap();
        let own = netlink.link(BRIDGE).unwrap().index;
        for node in &self.nodes {
            let index = netlink.link(node).unwrap().index;
            netlink.set_master(index, Some(own)).unwrap();
            let bridge = netlink.link(&format!("wire-{node}")).unwrap().index;
            netlink.delete_link(bridge).unwrap();
        }
        carried
    }
}

/// A switch with as many ports as there are nodes, on which things go wrong.
struct Relay {
    taps: Vec<Iface>,
    faults: Faults,
    chance: StdRng,
    /// At which TAP a MAC address was seen.
    places: BTreeMap<[u8; 6], usize>,
    late: BinaryHeap<Reverse<Late>>,
    carried: Carried,
}

/// A frame that is due at some time: ordered by that, and by the number of late frames before it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Late {
    due: Instant,
    number: u64,
    from: usize,
    frame: Vec<u8>,
}

impl Relay {
    fn new(taps: Vec<Iface>, faults: Faults) -> Self {
        Self {
            taps,
            faults,
            chance: StdRng::seed_from_u64(faults.seed),
            places: BTreeMap::new(),
            late: BinaryHeap::new(),
            carried: Carried::default(),
        }
    }

    fn run(mut self, stop: &Interrupt) -> Carried {
        for tap in &self.taps {
            rustix::io::ioctl_fionbio(descriptor(tap), true).unwrap();
        }
        while !stop.is_set() {
            self.wait();
            for from in 0..self.taps.len() {
                self.take(from);
            }
            self.send_due(Instant::now());
        }
        self.carried
    }

    /// Until there is something to read, or to send.
    fn wait(&self) {
        let due = self.late.peek().map(|Reverse(late)| late.due);
        let until_due = due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = until_due.unwrap_or(STOP_CHECK_INTERVAL).min(STOP_CHECK_INTERVAL);
        let timeout = Timespec::try_from(timeout).unwrap();
        let descriptors: Vec<_> = self.taps.iter().map(descriptor).collect();
        let mut fds: Vec<_> = descriptors.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("cannot wait for frames: {error}"),
        }
    }

    fn take(&mut self, from: usize) {
        let mut buffer = [0; FRAME_LEN_MAX];
        for _ in 0..BURST_MAX {
            let frame = match self.taps[from].recv(&mut buffer) {
                Ok(len) => {
                    assert!(len < FRAME_LEN_MAX, "a frame of {len} bytes or more was not cut");
                    &buffer[..len]
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("cannot read from {}: {error}", self.taps[from].name()),
            };
            self.carried.frames += 1;
            let chance = self.chance.random_range(0..1000);
            if chance < self.faults.lost_per_mille {
                self.carried.lost += 1;
            } else if chance < self.faults.lost_per_mille + self.faults.late_per_mille {
                self.carried.late += 1;
                let due = Instant::now() + self.faults.late_max.mul_f64(self.chance.random());
                let number = self.carried.late;
                self.late.push(Reverse(Late { due, number, from, frame: frame.to_vec() }));
            } else {
                self.send(from, frame);
            }
        }
    }

    fn send_due(&mut self, now: Instant) {
        while self.late.peek().is_some_and(|Reverse(late)| late.due <= now) {
            if let Some(Reverse(late)) = self.late.pop() {
                self.send(late.from, &late.frame);
            }
        }
    }

    fn send(&mut self, from: usize, frame: &[u8]) {
        let mac = |at: usize| <[u8; 6]>::try_from(&frame[at..at + 6]).unwrap();
        self.places.insert(mac(6), from);
        let place = self.places.get(&mac(0)).copied();
        for (ix, tap) in self.taps.iter().enumerate() {
            if ix != from && place.is_none_or(|place| place == ix) {
                let sent = tap.send(frame).unwrap_or_else(|e| panic!("to {}: {e}", tap.name()));
                assert_eq!(sent, frame.len());
            }
        }
    }
}

fn descriptor(tap: &Iface) -> BorrowedFd<'_> {
    // SAFETY: the TAP keeps its descriptor open for as long as it is borrowed here.
    unsafe { BorrowedFd::borrow_raw(tap.as_raw_fd()) }
}
