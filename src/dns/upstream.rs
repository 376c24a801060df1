//! Which name server is asked: zones, their servers, and how these are doing. Pure.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hickory_proto::rr::Name;

/// A server that failed this often in a row is passed over.
const FAILURES_MAX: u32 = 2;

/// How long a server is passed over before it is tried again: first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long a server that leads back here is left alone.
const LOOP_PAUSE: Duration = Duration::from_secs(60);

/// A server and what is known of it.
#[derive(Debug, Clone)]
struct Server {
    address: SocketAddr,
    failures: u32,
    pause: Duration,
    /// Not asked before this moment.
    until: Option<Instant>,
    looping: bool,
}

/// What somebody may want to know about a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// The zone it is asked for; the root for all.
    pub zone: Name,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it is asked at present.
    pub healthy: bool,
    /// Whether its questions come back to this server.
    pub looping: bool,
}

/// Servers by zone; the root's are asked for what is in no other zone.
#[derive(Debug, Clone, Default)]
pub struct Upstreams {
    zones: Vec<(Name, Vec<Server>)>,
}

impl Upstreams {
    /// Servers by zone. Those that were known before keep what is known of them.
    pub fn set(&mut self, zones: Vec<(Name, Vec<SocketAddr>)>) {
        let known: Vec<Server> = self.zones.drain(..).flat_map(|(_, servers)| servers).collect();
        let server = |address: SocketAddr| {
            let before = known.iter().find(|server| server.address == address);
            before.cloned().unwrap_or(Server {
                address,
                failures: 0,
                pause: PAUSE_MIN,
                until: None,
                looping: false,
            })
        };
        self.zones = zones
            .into_iter()
            .map(|(zone, addresses)| (zone, addresses.into_iter().map(&server).collect()))
            .collect();
        self.zones.sort_by_key(|(zone, _)| std::cmp::Reverse(zone.num_labels()));
    }

    /// Whom to ask for a name, the best first: those that are well in their order, then those that are due
    /// to be tried again, then all the others except for those that lead back here.
    pub fn choose(&self, name: &Name, now: Instant) -> Vec<SocketAddr> {
        let Some((_, servers)) = self.zones.iter().find(|(zone, _)| zone.zone_of(name)) else {
            return Vec::new();
        };
        let mut ranked: Vec<_> = servers
            .iter()
            .filter(|server| !server.looping || server.until.is_none_or(|until| until <= now))
            .map(|server| {
                let rank = match server.until {
                    None => 0,
                    Some(until) if until <= now => 1,
                    Some(_) => 2,
                };
                (rank, server.address)
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, address)| address).collect()
    }

    /// A server has answered.
    pub fn answered(&mut self, address: SocketAddr) {
        for server in self.servers(address).filter(|server| !server.looping) {
            server.failures = 0;
            server.pause = PAUSE_MIN;
            server.until = None;
        }
    }

    /// A server has not answered, or not sensibly.
    pub fn failed(&mut self, address: SocketAddr, now: Instant) {
        for server in self.servers(address) {
            server.failures = server.failures.saturating_add(1);
            if server.failures >= FAILURES_MAX {
                server.until = Some(now + server.pause);
                server.pause = (server.pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// A server sends questions back to us, or does not any more. Returns whether that is news.
    pub fn set_looping(&mut self, address: SocketAddr, looping: bool, now: Instant) -> bool {
        let mut news = false;
        for server in self.servers(address) {
            news |= server.looping != looping;
            server.looping = looping;
            server.until = looping.then(|| now + LOOP_PAUSE);
        }
        news
    }

    /// All servers' addresses, each once.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut all: Vec<_> =
            self.zones.iter().flat_map(|(_, servers)| servers.iter().map(|s| s.address)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// How all servers are doing.
    pub fn status(&self, now: Instant) -> Vec<ServerStatus> {
        let of_zone = |(zone, servers): &(Name, Vec<Server>)| {
            let status = |server: &Server| ServerStatus {
                zone: zone.clone(),
                address: server.address,
                healthy: server.until.is_none_or(|until| until <= now) && !server.looping,
                looping: server.looping,
            };
            servers.iter().map(status).collect::<Vec<_>>()
        };
        self.zones.iter().flat_map(of_zone).collect()
    }

    fn servers(&mut self, address: SocketAddr) -> impl Iterator<Item = &mut Server> {
        let servers = self.zones.iter_mut().flat_map(|(_, servers)| servers);
        servers.filter(move |server| server.address == address)
    }
}

/// What matters to a name server in a `resolv.conf`: see resolv.conf(5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// The name servers in their order.
    pub servers: Vec<SocketAddr>,
    /// The search domains.
    pub search: Vec<Name>,
}

impl ResolvConf {
    /// Reads a file's text. What is not understood is left out, as libraries do.
    pub fn parse(text: &str) -> Self {
        let mut read = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let word = words.next().unwrap_or_default();
                    // A scope, as in fe80::1%eth0, needs the interface that is not known here.
                    if let Ok(ip) = word.parse() {
                        read.servers.push(SocketAddr::new(ip, 53));
                    }
                }
                Some("search" | "domain") => {
                    // The last line of the kind counts.
                    read.search = words.filter_map(absolute).collect();
                }
                Some(_) | None => {}
            }
        }
        read
    }
}

fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    (!name.is_root()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 53))
    }

    fn upstreams() -> Upstreams {
        let mut upstreams = Upstreams::default();
        upstreams.set(vec![
            (Name::root(), vec![at(1), at(2)]),
            (name("corp.example."), vec![at(3)]),
            (name("dev.corp.example."), vec![at(4)]),
        ]);
        upstreams
    }

    #[test]
    fn the_longest_zone_decides() {
        let (upstreams, now) = (upstreams(), Instant::now());
        assert_eq!(upstreams.choose(&name("a.dev.corp.example."), now), [at(4)]);
        assert_eq!(upstreams.choose(&name("CORP.example."), now), [at(3)]);
        assert_eq!(upstreams.choose(&name("example."), now), [at(1), at(2)]);
    }

    #[test]
    fn a_server_that_fails_is_passed_over_and_comes_back() {
        let (mut upstreams, now) = (upstreams(), Instant::now());
        upstreams.failed(at(1), now);
        assert_eq!(upstreams.choose(&name("a."), now)[0], at(1), "once is no more than bad luck");
        upstreams.failed(at(1), now);
        assert_eq!(upstreams.choose(&name("a."), now), [at(2), at(1)]);
        let later = now + PAUSE_MIN;
        assert_eq!(upstreams.choose(&name("a."), later), [at(2), at(1)]);
        assert!(upstreams.status(later)[2].healthy);
        upstreams.failed(at(2), later);
        upstreams.failed(at(2), later);
        assert_eq!(upstreams.choose(&name("a."), later), [at(1), at(2)]);
        upstreams.answered(at(1));
        assert_eq!(upstreams.choose(&name("a."), now)[0], at(1));
        // A new list keeps what is known.
        upstreams.set(vec![(Name::root(), vec![at(2), at(1)])]);
        assert_eq!(upstreams.choose(&name("a."), later), [at(1), at(2)]);
    }

    #[test]
    fn a_server_that_leads_back_here_is_not_asked_at_all() {
        let (mut upstreams, now) = (upstreams(), Instant::now());
        assert!(upstreams.set_looping(at(1), true, now));
        assert!(!upstreams.set_looping(at(1), true, now));
        assert_eq!(upstreams.choose(&name("a."), now), [at(2)]);
        upstreams.answered(at(1));
        assert_eq!(upstreams.choose(&name("a."), now), [at(2)]);
        assert!(upstreams.set_looping(at(1), false, now));
        assert_eq!(upstreams.choose(&name("a."), now), [at(1), at(2)]);
    }

    #[test]
    fn resolv_conf_is_read_as_libraries_do() {
        let text = "# made by hand\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver fd00::53\n\
                    domain old.example\nsearch a.example b.example.\noptions ndots:5\nnonsense\n";
        let read = ResolvConf::parse(text);
        assert_eq!(read.servers, [at(1), "[fd00::53]:53".parse().unwrap()]);
        assert_eq!(read.search, [name("a.example."), name("b.example.")]);
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
    }
}
