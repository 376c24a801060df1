//! The network between the nodes.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use vswitch::sim::{Clock, Faults, Net};

use super::trace::{Step, Trace};

/// A UDP datagram as it was sent, before anything could happen to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// When, counted from the start of the cluster.
    pub at: Duration,
    /// Who sent it.
    pub from: SocketAddr,
    /// For whom it is.
    pub to: SocketAddr,
    /// Its payload.
    pub bytes: Vec<u8>,
}

/// What became of all datagrams so far:
/// sent + duplicated = delivered + unclaimed + lost + cut + too long + on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnderlayTotals {
    /// Datagrams that were sent.
    pub sent: u64,
    /// Second copies that the network made.
    pub duplicated: u64,
    /// Datagrams that a running node received.
    pub delivered: u64,
    /// Datagrams to an address or port where nobody listens.
    pub unclaimed: u64,
    /// Datagrams that were lost by chance.
    pub lost: u64,
    /// Datagrams between nodes that are cut off from each other.
    pub cut: u64,
    /// Datagrams that were longer than the MTU of the way, or of the receiver's interface.
    pub too_long: u64,
    /// Datagrams that have not arrived yet.
    pub on_the_way: u64,
}

/// A datagram on its way.
#[derive(Debug, Clone)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// The network between the nodes, its time, and what is noted about it.
#[derive(Debug)]
pub(super) struct Underlay {
    pub(super) clock: Clock,
    pub(super) trace: Trace,
    net: Net<IpAddr, Datagram>,
    interface_mtus: BTreeMap<IpAddr, u16>,
    link_mtus: BTreeMap<(IpAddr, IpAddr), u16>,
    capture: VecDeque<Captured>,
    capture_max: usize,
    sent: u64,
    too_long: u64,
    unclaimed: u64,
}

impl Underlay {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            clock: Clock::new(),
            trace: Trace::new(),
            net: Net::new(seed),
            interface_mtus: BTreeMap::new(),
            link_mtus: BTreeMap::new(),
            capture: VecDeque::new(),
            capture_max: 0,
            sent: 0,
            too_long: 0,
            unclaimed: 0,
        }
    }

    pub(super) fn connect(&mut self, address: IpAddr, mtu: u16) {
        self.interface_mtus.insert(address, mtu);
    }

    pub(super) fn set_faults(&mut self, faults: Faults) {
        self.net.set_faults(faults);
    }

    pub(super) fn set_link(&mut self, from: IpAddr, to: IpAddr, faults: Faults) {
        self.net.set_link(from, to, faults);
    }

    pub(super) fn set_link_mtu(&mut self, from: IpAddr, to: IpAddr, mtu: u16) {
        self.link_mtus.insert((from, to), mtu);
    }

    pub(super) fn cut(&mut self, from: IpAddr, to: IpAddr) {
        self.net.cut(from, to);
    }

    pub(super) fn mend(&mut self, from: IpAddr, to: IpAddr) {
        self.net.mend(from, to);
    }

    pub(super) fn heal(&mut self) {
        self.net.heal();
    }

    /// Keeps the latest `datagrams_max` datagrams from now on.
    pub(super) fn set_capture(&mut self, datagrams_max: usize) {
        self.capture_max = datagrams_max;
        self.capture.clear();
    }

    pub(super) fn take_capture(&mut self) -> Vec<Captured> {
        self.capture.drain(..).collect()
    }

    /// Puts a datagram on the wire.
    pub(super) fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let at = self.clock.elapsed();
        self.trace.note_datagram(at, Step::Sent, (from, to), bytes);
        self.sent += 1;
        if self.capture_max > 0 {
            if self.capture.len() == self.capture_max {
                self.capture.pop_front();
            }
            self.capture.push_back(Captured { at, from, to, bytes: bytes.to_vec() });
        }
        if packet_len(to.ip(), bytes.len()) > self.mtu_between(from.ip(), to.ip()) {
            self.too_long += 1;
            return;
        }
        let datagram = Datagram { from, to, bytes: bytes.to_vec() };
        self.net.send(self.clock.now(), from.ip(), to.ip(), datagram);
    }

    /// Takes the next datagram that has arrived by now.
    pub(super) fn receive(&mut self) -> Option<Datagram> {
        let datagram = self.net.receive(self.clock.now())?.message;
        let (at, ends) = (self.clock.elapsed(), (datagram.from, datagram.to));
        self.trace.note_datagram(at, Step::Arrived, ends, &datagram.bytes);
        Some(datagram)
    }

    /// Notes that nobody took what [`Underlay::receive`] gave.
    pub(super) fn count_unclaimed(&mut self) {
        self.unclaimed += 1;
    }

    /// When the next datagram arrives.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.net.next_at()
    }

    pub(super) fn totals(&self) -> UnderlayTotals {
        let net = self.net.totals();
        UnderlayTotals {
            sent: self.sent,
            duplicated: net.duplicated,
            delivered: net.delivered - self.unclaimed,
            unclaimed: self.unclaimed,
            lost: net.lost,
            cut: net.cut,
            too_long: self.too_long,
            on_the_way: self.net.on_the_way() as u64,
        }
    }

    fn mtu_between(&self, from: IpAddr, to: IpAddr) -> usize {
        let link = self.link_mtus.get(&(from, to)).copied().unwrap_or(u16::MAX);
        let interface = self.interface_mtus.get(&to).copied().unwrap_or(u16::MAX);
        usize::from(link.min(interface))
    }
}

/// Length of the IP packet around a datagram with a payload of `len` bytes.
pub(super) fn packet_len(address: IpAddr, len: usize) -> usize {
    const UDP_LEN: usize = 8;
    let ip_len = if address.is_ipv4() { 20 } else { 40 };
    ip_len + UDP_LEN + len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], 4789))
    }

    #[test]
    fn what_does_not_fit_the_way_is_counted() {
        let mut underlay = Underlay::new(1);
        underlay.connect(at(2).ip(), 1500);
        underlay.set_link_mtu(at(1).ip(), at(2).ip(), 1000);
        for (from, len) in [(1, 972), (1, 973), (3, 1472), (3, 1473)] {
            underlay.send(at(from), at(2), &vec![0; len]);
        }
        assert_eq!(underlay.receive().map(|datagram| datagram.bytes.len()), Some(972));
        assert_eq!(underlay.receive().map(|datagram| datagram.bytes.len()), Some(1472));
        assert!(underlay.receive().is_none());
        let totals = underlay.totals();
        assert_eq!((totals.sent, totals.delivered, totals.too_long), (4, 2, 2));
    }

    #[test]
    fn a_capture_holds_the_latest() {
        let mut underlay = Underlay::new(1);
        underlay.send(at(1), at(2), b"before");
        underlay.set_capture(2);
        for bytes in [b"one", b"two", b"thr"] {
            underlay.send(at(1), at(2), bytes);
        }
        let captured = underlay.take_capture();
        let bytes: Vec<_> = captured.iter().map(|captured| &captured.bytes[..]).collect();
        assert_eq!(bytes, [b"two", b"thr"]);
        assert!(underlay.take_capture().is_empty());
    }
}
