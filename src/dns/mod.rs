//! The name server of a node.
//!
//! Pods ask it at an address that every node has for itself (`10.96.0.10`), so no question leaves the node,
//! and none is translated on its way.
//!
//! ```text
//!  pod ──► server (UDP, TCP) ──► resolver ──► records   zones of the configuration   ┐
//!             │    ▲                │ ├──────► cluster   the cluster's zones          ├ pure
//!             ▼    │                │ │           ▲ directory: the state's names      │
//!          message: bytes           │ ├──────► cache     answers of other servers     │
//!                                   │ └──────► upstream  whom to ask                  ┘
//!                                   └────────► exchange  asks one of them
//! ```
//!
//! Names of the cluster are not cached: each answer is made of the state at that moment.

pub mod answer;
pub mod cache;
pub mod cluster;
pub mod directory;
mod exchange;
pub mod message;
pub mod names;
pub mod place;
pub mod records;
pub mod report;
pub mod resolver;
mod server;
pub mod stats;
pub mod upstream;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use conf::cluster::ClusterState;
use conf::{DnsConfig, NodeConfig, PodRecords};
use hickory_proto::rr::{Name, RecordType};
use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};

use self::cluster::{ClusterZones, PodNames};
use self::message::Request;
use self::records::StaticZones;
use self::report::DnsAnswer;
use self::resolver::{Resolver, Settings};
use self::upstream::ResolvConf;

/// The UDP and TCP port of DNS.
pub const PORT: u16 = 53;

/// How often `resolv.conf` is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How often servers are asked whether they lead back here.
const LOOP_LOOK: Duration = Duration::from_secs(60);

/// Makes a resolver of the configuration. `ranges` are those of pods and services, whose reverse zones are
/// the cluster's.
pub fn resolver(config: &DnsConfig, ranges: &[IpNetwork], secret: u64) -> Resolver {
    let pods = match config.pods {
        PodRecords::Disabled => PodNames::Disabled,
        PodRecords::Insecure => PodNames::Insecure,
        PodRecords::Verified => PodNames::Verified,
    };
    let zones = config.zones.iter().map(|zone| zone.name().clone());
    let records = config.records.iter().map(|record| record.record().clone());
    Resolver::new(
        Settings {
            cluster: ClusterZones::new(
                config.domain.name().clone(),
                config.ttl_s,
                pods,
                config.addresses.clone(),
                ranges.iter().copied(),
            ),
            statics: StaticZones::new(zones, records, config.ttl_s),
            stubs: config.stubs.iter().map(|stub| stub.zone.name().clone()).collect(),
            autopath: config.autopath,
            cache_entries: usize::try_from(config.cache_entries).unwrap_or(usize::MAX),
            serve_stale: Duration::from_secs(u64::from(config.serve_stale_s)),
        },
        secret,
    )
}

/// A question as a person asks it: a type that is not known is refused, and a name is absolute.
///
/// # Errors
/// What is wrong, in words.
pub fn question(name: &str, kind: &str) -> Result<Request, String> {
    let mut asked = Name::from_utf8(name).map_err(|error| format!("{name} is no name: {error}"))?;
    asked.set_fqdn(true);
    let kind = kind.to_ascii_uppercase();
    let kind = RecordType::from_str(&kind)
        .map_err(|_unknown| format!("{kind} is no type of records: A, AAAA, SRV, PTR, TXT, ..."))?;
    Ok(Request {
        id: 0,
        name: asked,
        kind,
        recursion_desired: true,
        checking_disabled: false,
        edns: None,
    })
}

/// The address that somebody asks from: an address, or the pod `namespace/name`.
///
/// # Errors
/// When there is no such pod.
pub fn client(resolver: &Resolver, from: &str) -> Result<IpAddr, String> {
    let address = from.parse().ok().or_else(|| resolver.address_of(from));
    address.ok_or_else(|| format!("{from} is neither an address nor a known pod NAMESPACE/NAME"))
}

/// What the name server of a node answers to a question as far as `state` tells: nothing need run, and no other
/// server is asked. `from` is the pod or address that asks.
///
/// # Errors
/// What is wrong with the question, in words.
pub fn answer_alone(
    config: &NodeConfig,
    state: &ClusterState,
    (name, kind): (&str, &str),
    from: Option<&str>,
) -> Result<DnsAnswer, String> {
    let request = question(name, kind)?;
    let ranges = [&config.lease.ranges[..], &config.services.ranges].concat();
    let resolver = resolver(&config.dns, &ranges, 0);
    resolver.update(|directory| *directory = names::directory(state));
    let client = match from {
        Some(from) => client(&resolver, from)?,
        None => IpAddr::from([127, 0, 0, 1]),
    };
    let (answer, part) = resolver.answer_alone(&request, client);
    Ok(DnsAnswer::new(&answer, part))
}

/// A running name server.
#[derive(Debug)]
pub struct Dns {
    resolver: Arc<Resolver>,
    port: u16,
    servers: BTreeMap<IpAddr, Server>,
    /// Where it answers, for who must not ask it.
    own: watch::Sender<Vec<IpAddr>>,
    upstreams: JoinHandle<()>,
}

/// What serves one address.
#[derive(Debug)]
struct Server {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Dns {
    /// Keeps the resolver's list of other servers true, until `stop` says so. It listens nowhere yet, and will at
    /// `port`.
    pub fn start(
        config: &DnsConfig,
        resolver: &Arc<Resolver>,
        port: u16,
        stop: &watch::Receiver<bool>,
    ) -> Self {
        let own = watch::Sender::new(config.addresses.clone());
        let upstreams = Others {
            path: config.resolv_conf.clone(),
            fixed: config.upstreams.iter().map(|upstream| upstream.address()).collect(),
            stubs: config
                .stubs
                .iter()
                .map(|stub| {
                    let servers = stub.servers.iter().map(|server| server.address()).collect();
                    (stub.zone.name().clone(), servers)
                })
                .collect(),
            own: own.subscribe(),
            seen: None,
        };
        let upstreams = tokio::spawn(upstreams.keep(Arc::clone(resolver), stop.clone()));
        Self { resolver: Arc::clone(resolver), port, servers: BTreeMap::new(), own, upstreams }
    }

    /// Listens at these addresses, and at no others any more. They need not be on an interface yet. Where it
    /// listens already, nobody notices.
    ///
    /// # Errors
    /// When an address cannot be listened on; the others are served then, and those of before as well.
    pub fn listen(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        self.own.send_replace(addresses.to_vec());
        let mut first_error = None;
        for address in addresses {
            if self.servers.contains_key(address) {
                continue;
            }
            let (stop, stopped) = watch::channel(false);
            let at = SocketAddr::new(*address, self.port);
            match server::serve(at, &self.resolver, &stopped) {
                Ok(tasks) => drop(self.servers.insert(*address, Server { stop, tasks })),
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        if let Some(error) = first_error {
            return Err(error);
        }
        // The sockets close within the pause of their threads.
        self.servers.retain(|address, server| {
            let stays = addresses.contains(address);
            if !stays {
                server.stop.send_replace(true);
            }
            stays
        });
        Ok(())
    }

    /// Ends all servers and waits for their end, and for that of everything else once it was told to stop.
    pub async fn stopped(self) {
        for server in self.servers.values() {
            server.stop.send_replace(true);
        }
        let servers = self.servers.into_values().flat_map(|server| server.tasks);
        for task in servers.chain([self.upstreams]) {
            // One that panicked has ended, too; its log line is there.
            let _ended = task.await;
        }
    }
}

/// Who is asked for what this server does not know, as far as that may change.
struct Others {
    path: PathBuf,
    fixed: Vec<SocketAddr>,
    stubs: Vec<(Name, Vec<SocketAddr>)>,
    /// Where this server itself answers.
    own: watch::Receiver<Vec<IpAddr>>,
    /// When the file was written that was read last.
    seen: Option<SystemTime>,
}

impl Others {
    /// Keeps the resolver's list of servers true.
    async fn keep(mut self, resolver: Arc<Resolver>, mut stop: watch::Receiver<bool>) {
        let mut look = interval(LOOK);
        let mut next_loop_look = Instant::now() + LOOK;
        self.take_up(&resolver, true);
        loop {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                _ = look.tick() => self.take_up(&resolver, false),
                Ok(()) = self.own.changed() => self.take_up(&resolver, true),
            }
            if Instant::now() >= next_loop_look {
                next_loop_look = Instant::now() + LOOP_LOOK;
                for (server, looping) in resolver.look_for_loops().await {
                    if looping {
                        tracing::warn!(
                            %server,
                            "the name server sends its questions back to this node: it is not asked. Set \
                             upstreams or resolv_conf under [dns] to the real servers"
                        );
                    } else {
                        tracing::info!(%server, "the name server does not lead back here any more");
                    }
                }
            }
        }
    }

    fn take_up(&mut self, resolver: &Resolver, first: bool) {
        let written = fs::metadata(&self.path).and_then(|file| file.modified()).ok();
        if written == self.seen && !first {
            return;
        }
        self.seen = written;
        let own = self.own.borrow_and_update().clone();
        let read = match fs::read_to_string(&self.path) {
            Ok(text) => ResolvConf::parse(&text),
            Err(error) => {
                tracing::warn!(
                    path = %self.path.display(), %error,
                    "the node's name servers cannot be read; set upstreams or resolv_conf under [dns]"
                );
                ResolvConf::default()
            }
        };
        let all = if self.fixed.is_empty() { read.servers } else { self.fixed.clone() };
        let (own, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|server| own.contains(&server.ip()));
        for server in own {
            tracing::warn!(%server, "this name server is this node's own: it is not asked");
        }
        tracing::info!(servers = ?others, "names outside of the cluster are asked for at these servers");
        let mut zones = self.stubs.clone();
        zones.push((Name::root(), others));
        resolver.set_upstreams(zones, read.search);
    }
}

#[cfg(test)]
#[path = "tests/manifests.rs"]
mod tests;
