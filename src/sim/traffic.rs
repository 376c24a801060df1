//! Traffic between pods and machines, for tests that only want to know whether it arrives.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::cluster::Cluster;
use super::place::{Family, Place};

/// How often the two ends are looked at.
const LOOK: Duration = Duration::from_millis(1);

/// How far apart echo requests are: a little more than smoltcp's questions for neighbors.
const PING_PAUSE: Duration = Duration::from_millis(1050);

/// How long [`Cluster::udp`] waits.
const UDP_WAIT: Duration = Duration::from_secs(5);

const UDP_PORTS: (u16, u16) = (5000, 6000);
const TCP_PORT: u16 = 80;

/// What the receiver of a datagram has seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Who sent it, as the receiver sees it.
    pub from: SocketAddr,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// What became of a TCP transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// What the receiver has read.
    pub received: Vec<u8>,
    /// How long it took until that was everything, or until the time was over.
    pub took: Duration,
}

impl Cluster {
    /// Sends echo requests, about one a second, until one is answered; returns how long that one took.
    /// `None` when none was within `time_max`.
    ///
    /// Leave it two seconds at least: smoltcp asks for one neighbor a second, and forgets what it wanted
    /// to reply meanwhile.
    ///
    /// # Panics
    /// If `from` has no address of the family of `to`.
    pub fn ping(
        &mut self,
        from: impl Into<Place>,
        to: IpAddr,
        time_max: Duration,
    ) -> Option<Duration> {
        let from = from.into();
        let start = self.elapsed();
        let mut sent = Vec::new();
        loop {
            let replies = self.host(from).take_echo_replies();
            let answered = sent.iter().find(|(sequence, _)| replies.contains(&(to, *sequence)));
            if let Some((_, at)) = answered {
                return Some(self.elapsed() - *at);
            }
            if self.elapsed() - start >= time_max {
                return None;
            }
            if sent.last().is_none_or(|(_, at)| self.elapsed() - *at >= PING_PAUSE) {
                self.ping_sequence = self.ping_sequence.wrapping_add(1);
                let sequence = self.ping_sequence;
                self.host(from).ping(to, sequence);
                sent.push((sequence, self.elapsed()));
            }
            self.run_for(LOOK);
        }
    }

    /// Sends one datagram and returns what `to` heard of it within five seconds.
    ///
    /// # Panics
    /// If one of the two has no address of the family.
    pub fn udp(
        &mut self,
        from: impl Into<Place>,
        to: impl Into<Place>,
        family: Family,
        payload: &[u8],
    ) -> Option<Heard> {
        let (from, to) = (from.into(), to.into());
        let (source_port, port) = UDP_PORTS;
        let target = SocketAddr::new(self.address_of(to, family), port);
        let server = self.host(to).udp_bind(port);
        let client = self.host(from).udp_bind(source_port);
        let mut heard = None;
        if self.host(from).udp_send(client, target, payload) {
            let end = self.elapsed() + UDP_WAIT;
            while heard.is_none() && self.elapsed() < end {
                self.run_for(LOOK);
                heard = self.host(to).udp_receive(server);
            }
        }
        self.host(to).udp_close(server);
        self.host(from).udp_close(client);
        heard.map(|(from, payload)| Heard { from, payload })
    }

    /// Connects, sends `data`, and returns what `to` has read of it by the time that it has it all, or
    /// `time_max` is over.
    ///
    /// # Panics
    /// If one of the two has no address of the family.
    pub fn tcp(
        &mut self,
        from: impl Into<Place>,
        to: impl Into<Place>,
        family: Family,
        data: &[u8],
        time_max: Duration,
    ) -> Transfer {
        let (from, to) = (from.into(), to.into());
        let target = SocketAddr::new(self.address_of(to, family), TCP_PORT);
        let server = self.host(to).tcp_listen(TCP_PORT);
        let client = self.host(from).tcp_connect(target);
        let start = self.elapsed();
        let (mut sent, mut received) = (0, Vec::new());
        while received.len() < data.len() && self.elapsed() - start < time_max {
            if self.host(from).tcp_is_connected(client) {
                sent += self.host(from).tcp_send(client, &data[sent..]);
            }
            self.run_for(LOOK);
            received.extend(self.host(to).tcp_receive(server));
        }
        let took = self.elapsed() - start;
        self.host(from).tcp_close(client);
        self.host(to).tcp_close(server);
        self.run_for(LOOK);
        Transfer { received, took }
    }

    fn address_of(&self, place: Place, family: Family) -> IpAddr {
        let address = self.address(place, family);
        address.unwrap_or_else(|| panic!("{place:?} has no {family:?} address"))
    }
}
