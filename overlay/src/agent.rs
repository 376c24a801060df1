//! Gossip with a socket, a clock and a disk: the shell around [`Gossip`].
//!
//! One task owns everything. It reads the socket empty before it looks at the clock, so that a process
//! that stood still does not take unread answers for silence. It writes to the disk beside all that, so
//! that a disk that is full or hangs silences nobody; what must be on disk first, [`Gossip`] holds back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::config::LeaseConfig;
use crate::error::Error;
use crate::gossip::{
    Counters, DATAGRAM_MAX, Event, Gossip, GossipConfig, Holdings, LeaseState, LocalNode, Memory,
    Protection, Stranger, check_pods,
};
use crate::memory_file;
use crate::node_id::NodeId;
use crate::pods::{LocalPod, PodError, PodMap};
use crate::seal::{FileError, KeyFile, KeyRing, Secrets};
use crate::state_file;
use crate::subnet::SubnetMap;

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The network's settings.
    pub gossip: GossipConfig,
    /// This node. Its memory and `has_seeds` are filled in by the agent.
    pub local: LocalNode,
    /// The way into the cluster: `host`, `host:port`, `address` or `[address]:port`; without a port, the
    /// node's own gossip port. Names are resolved again and again.
    pub seeds: Vec<String>,
    /// Where to remember leases and counters; made if missing.
    pub state_file: PathBuf,
    /// The file with the network's keys, looked at every second; see [`KeyFile`]. `None`: the gossip is in
    /// clear, and whoever reaches its port may join.
    pub key_file: Option<PathBuf>,
}

/// A running agent.
#[derive(Debug)]
pub struct AgentHandle {
    map: watch::Receiver<Arc<SubnetMap>>,
    pods: watch::Receiver<Arc<PodMap>>,
    own_pods: watch::Sender<Vec<LocalPod>>,
    lease: watch::Receiver<LeaseState>,
    counters: watch::Receiver<Counters>,
    storage: watch::Receiver<Option<String>>,
    key_trouble: watch::Receiver<Option<String>>,
    strangers: watch::Receiver<Vec<Stranger>>,
    events: Option<mpsc::Receiver<Event>>,
    leave: mpsc::Sender<oneshot::Sender<()>>,
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

/// What an agent is told while it runs.
#[derive(Debug)]
enum Order {
    Holdings(Holdings),
    Configure(LeaseConfig),
}

/// Starts agents.
#[derive(Debug)]
pub struct Agent {
    gossip: Gossip,
    socket: UdpSocket,
    state_file: PathBuf,
    id: NodeId,
    seeds: watch::Receiver<Resolved>,
    /// Whether the seeds' addresses may still change.
    resolving: bool,
    joined: BTreeSet<SocketAddr>,
    map: watch::Sender<Arc<SubnetMap>>,
    pods: watch::Sender<Arc<PodMap>>,
    /// This node's pods, until nobody can change them any more.
    own_pods: Option<watch::Receiver<Vec<LocalPod>>>,
    lease: watch::Sender<LeaseState>,
    counters: watch::Sender<Counters>,
    storage: watch::Sender<Option<String>>,
    /// What the key file holds; `None` without one.
    keys: Option<watch::Receiver<KeyRing>>,
    strangers: watch::Sender<Vec<Stranger>>,
    renew_at: Instant,
    /// What is being written.
    saving: Option<JoinHandle<Result<(), Error>>>,
    events: mpsc::Sender<Event>,
    counted: Instant,
}

/// What the seeds' names lead to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Resolved {
    addresses: BTreeSet<SocketAddr>,
    /// Whether every name has been resolved at least once.
    complete: bool,
}

/// Events that may wait to be read; further ones are dropped with a log line.
const EVENTS_MAX: usize = 1024;

/// Orders that may wait.
const ORDERS_MAX: usize = 16;

/// Datagrams that are read before the clock is looked at.
const READS_MAX: usize = 256;

/// How long a goodbye may take, and after how long the agent ends whatever it is doing.
const LEAVE_MAX: Duration = Duration::from_secs(1);
const END_MAX: Duration = Duration::from_millis(1500);

/// How long to wait for room in the socket before something else is looked at.
const TRANSMIT_MAX: Duration = Duration::from_millis(100);

/// How often names are resolved, while some cannot be and afterwards.
const RESOLVE_RETRY: Duration = Duration::from_secs(2);
const RESOLVE_PAUSE: Duration = Duration::from_secs(30);

/// How often totals are published.
const COUNT_PAUSE: Duration = Duration::from_secs(1);

/// How often the key file is looked at.
const KEYS_PAUSE: Duration = Duration::from_secs(1);

/// How often a new session is begun. A machine that goes on from a picture of its memory counts its
/// datagrams a second time, and is heard again with the next session at the latest.
const SESSION_LIFE: Duration = Duration::from_secs(3600);

/// How long to wait after the socket failed.
const SOCKET_RETRY: Duration = Duration::from_secs(1);

impl Agent {
    /// Opens the socket at the underlay address, reads what was remembered, and starts gossiping.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound, the state file cannot be read or written, or is damaged, or there
    /// are no keys.
    pub async fn spawn(config: AgentConfig) -> Result<AgentHandle, Error> {
        let AgentConfig { gossip, mut local, seeds, state_file, key_file } = config;
        let keys = key_file.as_deref().map(load_keys).transpose();
        let keys = keys.map_err(|error| Error::Keys(Box::new(error)))?;
        let address = SocketAddr::new(local.underlay, local.gossip_port);
        let socket =
            UdpSocket::bind(address).await.map_err(|cause| Error::BindGossip { address, cause })?;
        local.memory = load(&state_file, local.id)?;
        local.has_seeds = !seeds.is_empty();
        let id = local.id;
        let protection = match keys.clone() {
            Some(keys) => Protection::Sealed { keys, secrets: Secrets::generate()? },
            None => Protection::Insecure,
        };
        let gossip = Gossip::new(gossip, local, protection, random_seed()?, Instant::now());

        let (map_in, map) = watch::channel(Arc::clone(gossip.map()));
        let (pods_in, pods) = watch::channel(Arc::clone(gossip.pods()));
        let (own_pods, own_pods_out) = watch::channel(Vec::new());
        let (lease_in, lease) = watch::channel(gossip.lease_state());
        let (counters_in, counters) = watch::channel(Counters::default());
        let (storage_in, storage) = watch::channel(None);
        let (strangers_in, strangers) = watch::channel(Vec::new());
        let (trouble_in, key_trouble) = watch::channel(None);
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let (leave, leave_out) = mpsc::channel(1);
        let (orders, orders_out) = mpsc::channel(ORDERS_MAX);
        let mut agent = Self {
            gossip,
            socket,
            state_file,
            id,
            seeds: resolve_for_ever(seeds, address),
            resolving: true,
            joined: BTreeSet::new(),
            map: map_in,
            pods: pods_in,
            own_pods: Some(own_pods_out),
            lease: lease_in,
            counters: counters_in,
            storage: storage_in,
            keys: key_file.zip(keys).map(|(file, keys)| watch_keys(file, keys, trouble_in)),
            strangers: strangers_in,
            renew_at: Instant::now() + SESSION_LIFE,
            saving: None,
            events: events_in,
            counted: Instant::now(),
        };
        // A disk that cannot be written is told before anybody relies on it.
        if let Some(memory) = agent.gossip.poll_memory() {
            save(&agent.state_file, id, &memory)?;
            agent.gossip.handle_saved(Instant::now());
        }
        let task = tokio::spawn(agent.run(leave_out, orders_out));
        let events = Some(events);
        Ok(AgentHandle {
            map,
            pods,
            own_pods,
            lease,
            counters,
            storage,
            key_trouble,
            strangers,
            events,
            leave,
            orders,
            task,
        })
    }

    async fn run(
        mut self,
        mut leave: mpsc::Receiver<oneshot::Sender<()>>,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let mut buffer = vec![0; DATAGRAM_MAX + 1];
        let mut left = None;
        let mut give_up = None;
        loop {
            self.start_saving();
            // What finds no room stays where it is, and is tried again in the next round.
            let _in_time = tokio::time::timeout(TRANSMIT_MAX, self.transmit()).await;
            self.publish();
            let said = self.gossip.has_left() && self.saving.is_none();
            if left.is_some() && (said || give_up.is_some_and(|at| Instant::now() >= at)) {
                break;
            }
            let wake = [self.gossip.poll_timeout(), give_up].into_iter().flatten().min();
            let wake = wake.unwrap_or_else(|| Instant::now() + COUNT_PAUSE);
            tokio::select! {
                // What comes seldom is looked at first, so that a flood of datagrams cannot hide it.
                biased;
                asked = leave.recv(), if left.is_none() => {
                    // Without anybody left to ask for it, the handle is gone: go as well.
                    left = Some(asked);
                    give_up = Some(Instant::now() + LEAVE_MAX);
                    self.gossip.leave(Instant::now());
                    continue;
                }
                Some(order) = orders.recv() => self.obey(order),
                saved = finished(&mut self.saving) => self.conclude_saving(saved),
                changed = self.seeds.changed(), if self.resolving => {
                    self.resolving = changed.is_ok();
                    self.join_seeds();
                }
                pods = next_pods(&mut self.own_pods) => self.set_pods(pods),
                keys = new_keys(&mut self.keys) => self.gossip.set_keys(&keys, Instant::now()),
                readable = self.socket.readable() => {
                    if let Err(error) = readable {
                        tracing::warn!(%error, "the gossip socket failed");
                        tokio::time::sleep(SOCKET_RETRY).await;
                    }
                    self.receive(&mut buffer);
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            let now = Instant::now();
            if self.gossip.poll_timeout().is_some_and(|at| at <= now) {
                self.receive(&mut buffer);
                self.gossip.handle_timeout(now);
            }
        }
        if let Some(Some(done)) = left {
            // Whoever asked may have stopped waiting.
            let _gone = done.send(());
        }
    }

    fn obey(&mut self, order: Order) {
        let now = Instant::now();
        match order {
            Order::Holdings(holdings) => self.gossip.set_holdings(holdings, now),
            Order::Configure(lease) => self.gossip.configure(lease, now),
        }
    }

    /// Reads what has arrived, within reason.
    fn receive(&mut self, buffer: &mut [u8]) {
        for _ in 0..READS_MAX {
            match self.socket.try_recv_from(buffer) {
                Ok((len, from)) => {
                    self.gossip.handle_datagram(from, &buffer[..len], Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An ICMP error about something that was sent earlier: the failure detector will see.
                Err(error) => tracing::debug!(%error, "the gossip socket reports an error"),
            }
        }
    }

    /// Begins to write what is to be saved, on a thread where that may take long.
    fn start_saving(&mut self) {
        if self.saving.is_none()
            && let Some(memory) = self.gossip.poll_memory()
        {
            let (path, id) = (self.state_file.clone(), self.id);
            self.saving = Some(tokio::task::spawn_blocking(move || save(&path, id, &memory)));
        }
    }

    fn conclude_saving(&mut self, result: Result<(), String>) {
        let now = Instant::now();
        let trouble = match result {
            Ok(()) => {
                self.gossip.handle_saved(now);
                None
            }
            Err(error) => {
                self.gossip.handle_save_failed(now);
                Some(format!(
                    "{error}. This node takes no new subnet, and a restart may forget what it holds, \
                     until that file can be written: make room on the disk, or its directory writable. \
                     It is tried again every few seconds"
                ))
            }
        };
        self.storage.send_if_modified(|published| {
            let changed = *published != trouble;
            if changed {
                match &trouble {
                    Some(trouble) => tracing::error!("{trouble}"),
                    None => tracing::info!(path = %self.state_file.display(), "written again"),
                }
                *published = trouble;
            }
            changed
        });
    }

    async fn transmit(&mut self) {
        while let Some((to, datagram)) = self.gossip.poll_transmit() {
            if let Err(error) = self.socket.send_to(&datagram, to).await {
                tracing::debug!(%to, %error, "gossip was not sent");
            }
        }
    }

    fn publish(&mut self) {
        let map = self.gossip.map();
        self.map.send_if_modified(|published| {
            let newer = published.generation != map.generation;
            if newer {
                *published = Arc::clone(map);
            }
            newer
        });
        let pods = self.gossip.pods();
        self.pods.send_if_modified(|published| {
            let newer = published.generation != pods.generation;
            if newer {
                *published = Arc::clone(pods);
            }
            newer
        });
        let lease = self.gossip.lease_state();
        self.lease.send_if_modified(|published| {
            let newer = *published != lease;
            if newer {
                *published = lease;
            }
            newer
        });
        if self.counted.elapsed() >= COUNT_PAUSE {
            self.counted = Instant::now();
            self.counters.send_replace(self.gossip.counters().clone());
            self.strangers.send_replace(self.gossip.strangers());
            if self.renew_at <= self.counted {
                self.renew_session();
            }
        }
        while let Some(event) = self.gossip.poll_event() {
            if matches!(event, Event::Slept { .. }) {
                self.renew_session();
            }
            if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
                tracing::warn!(?event, "nobody reads the events of gossip");
            }
        }
    }

    fn set_pods(&mut self, pods: Vec<LocalPod>) {
        if let Err(error) = self.gossip.set_pods(pods, Instant::now()) {
            tracing::error!(%error, "pods were given to gossip unchecked");
        }
    }

    /// Goes on in a session that no copy of this machine has.
    fn renew_session(&mut self) {
        match Secrets::generate() {
            Ok(secrets) => self.gossip.renew_session(&secrets),
            Err(error) => tracing::warn!(%error, "the gossip goes on in its former session"),
        }
        self.renew_at = Instant::now() + SESSION_LIFE;
    }

    fn join_seeds(&mut self) {
        let resolved = self.seeds.borrow_and_update().clone();
        let now = Instant::now();
        for gone in self.joined.difference(&resolved.addresses) {
            self.gossip.forget_seed(*gone);
        }
        for seed in &resolved.addresses {
            self.gossip.join(*seed, now);
        }
        // A node that is its own only seed is the first one.
        self.gossip.expect_seeds(!resolved.complete || !resolved.addresses.is_empty());
        self.joined = resolved.addresses;
    }
}

impl AgentHandle {
    /// The subnet map, and whether it has changed.
    pub fn map(&self) -> watch::Receiver<Arc<SubnetMap>> {
        self.map.clone()
    }

    /// The pods of all nodes, and whether they have changed.
    pub fn pods(&self) -> watch::Receiver<Arc<PodMap>> {
        self.pods.clone()
    }

    /// Sets the pods of this node, all of them, as others are to know them. What stays as it was costs
    /// nothing. A new agent knows of none: whoever starts one sets them again.
    ///
    /// # Errors
    /// The first pod that cannot be told to others, and why. Nothing has changed then.
    pub fn set_pods(&self, pods: Vec<LocalPod>) -> Result<(), PodError> {
        check_pods(&pods)?;
        self.own_pods.send_replace(pods);
        Ok(())
    }

    /// The own leases, and whether they have changed.
    pub fn lease(&self) -> watch::Receiver<LeaseState> {
        self.lease.clone()
    }

    /// Totals, a second old at most.
    pub fn counters(&self) -> Counters {
        self.counters.borrow().clone()
    }

    /// Why the state file cannot be written, and what to do; `None` while it can.
    pub fn storage(&self) -> watch::Receiver<Option<String>> {
        self.storage.clone()
    }

    /// Why the key file cannot be used as it is now, and what to do; `None` while it can. The keys that were
    /// read last stay in use.
    pub fn key_trouble(&self) -> watch::Receiver<Option<String>> {
        self.key_trouble.clone()
    }

    /// Who has spoken within the last minute with a wrong seal or none, the latest first; a second old at
    /// most.
    pub fn strangers(&self) -> Vec<Stranger> {
        self.strangers.borrow().clone()
    }

    /// The stream of events; `None` if somebody has taken it already.
    pub fn take_events(&mut self) -> Option<mpsc::Receiver<Event>> {
        self.events.take()
    }

    /// Tells which addresses this node's pods have, and which of its leases' it leaves to others.
    pub async fn set_holdings(&self, holdings: Holdings) {
        self.order(Order::Holdings(holdings)).await;
    }

    /// Takes up another lease configuration, without a restart.
    pub async fn configure(&self, lease: LeaseConfig) {
        self.order(Order::Configure(lease)).await;
    }

    async fn order(&self, order: Order) {
        // An agent that has ended is noticed by whoever reads its map.
        let _ended = self.orders.send(order).await;
    }

    /// Says goodbye to the cluster and ends the agent: within about a second, and within two whatever
    /// happens.
    pub async fn leave(self) {
        let Self { leave, mut task, .. } = self;
        let goodbye = async {
            let (done, finished) = oneshot::channel();
            if leave.send(done).await.is_ok() {
                // An agent that ended without an answer has ended, too.
                let _ended = finished.await;
            }
            let _ended = (&mut task).await;
        };
        if tokio::time::timeout(END_MAX, goodbye).await.is_err() {
            tracing::warn!("gossip did not end in time, perhaps without a goodbye");
            task.abort();
        }
    }

    /// Ends the agent as if the machine had failed: nobody is told.
    pub fn abort(self) {
        self.task.abort();
    }
}

/// The next set of this node's pods; never, once nobody can change it any more.
async fn next_pods(own: &mut Option<watch::Receiver<Vec<LocalPod>>>) -> Vec<LocalPod> {
    if let Some(pods) = own
        && pods.changed().await.is_ok()
    {
        return pods.borrow_and_update().clone();
    }
    *own = None;
    std::future::pending().await
}

/// The end of what is being written; never, if nothing is.
async fn finished(saving: &mut Option<JoinHandle<Result<(), Error>>>) -> Result<(), String> {
    let Some(task) = saving else { return std::future::pending().await };
    let result = task.await;
    *saving = None;
    match result {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(format!("writing the state was interrupted: {error}")),
    }
}

/// The keys, once they have changed; never, if there are none.
async fn new_keys(keys: &mut Option<watch::Receiver<KeyRing>>) -> KeyRing {
    if let Some(keys) = keys
        && keys.changed().await.is_ok()
    {
        return keys.borrow_and_update().clone();
    }
    std::future::pending().await
}

/// Looks at the key file for ever, in a task of its own, so that a disk that hangs silences nobody.
fn watch_keys(
    path: PathBuf,
    keys: KeyRing,
    trouble: watch::Sender<Option<String>>,
) -> watch::Receiver<KeyRing> {
    let (publish, keys) = watch::channel(keys);
    tokio::spawn(async move {
        while !publish.is_closed() {
            tokio::time::sleep(KEYS_PAUSE).await;
            let file = path.clone();
            let read = tokio::task::spawn_blocking(move || load_keys(&file)).await;
            let found = match read {
                Ok(Ok(keys)) => {
                    publish.send_if_modified(|known| {
                        let changed = *known != keys;
                        if changed {
                            let ids = keys.ids();
                            tracing::info!(?ids, "the keys have changed; the first is in use");
                            *known = keys;
                        }
                        changed
                    });
                    None
                }
                Ok(Err(error)) => {
                    Some(format!("{error}. The keys that were read before stay in use"))
                }
                Err(error) => Some(format!("reading the keys was interrupted: {error}")),
            };
            trouble.send_if_modified(|known| {
                let changed = *known != found;
                if changed {
                    if let Some(found) = &found {
                        tracing::error!("{found}");
                    }
                    *known = found;
                }
                changed
            });
        }
    });
    keys
}

fn load_keys(path: &Path) -> Result<KeyRing, FileError> {
    let no_key = || FileError::Missing { path: path.to_owned() };
    KeyFile::load(path)?.ring().ok_or_else(no_key)
}

/// Resolves the seeds' names in a task of its own, so that a slow name server holds up nothing.
fn resolve_for_ever(seeds: Vec<String>, own: SocketAddr) -> watch::Receiver<Resolved> {
    let (publish, resolved) = watch::channel(Resolved::default());
    if !seeds.is_empty() {
        tokio::spawn(async move {
            let mut known = BTreeMap::new();
            while !publish.is_closed() {
                for seed in &seeds {
                    match resolve(seed, own.port()).await {
                        Ok(addresses) => {
                            known.insert(seed.clone(), addresses);
                        }
                        Err(error) => tracing::warn!(%seed, %error, "cannot resolve a seed"),
                    }
                }
                let addresses = known.values().flatten().copied();
                let addresses = addresses
                    .filter(|seed| *seed != own && seed.is_ipv6() == own.is_ipv6())
                    .collect();
                let complete = known.len() == seeds.len();
                publish.send_if_modified(|published| {
                    let news = Resolved { addresses, complete };
                    let changed = *published != news;
                    *published = news;
                    changed
                });
                tokio::time::sleep(if complete { RESOLVE_PAUSE } else { RESOLVE_RETRY }).await;
            }
        });
    }
    resolved
}

/// Finds the addresses of `host`, `host:port`, `address` or `[address]:port`.
///
/// # Errors
///
/// When the name cannot be resolved, or the port is none.
pub async fn resolve(seed: &str, default_port: u16) -> io::Result<Vec<SocketAddr>> {
    let bare = seed.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(seed);
    if let Ok(address) = bare.parse() {
        return Ok(vec![SocketAddr::new(address, default_port)]);
    }
    if let Ok(address) = seed.parse() {
        return Ok(vec![address]);
    }
    let (host, port) = match seed.rsplit_once(':') {
        Some((host, port)) => {
            let port = port.parse().map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("`{port}` is not a port"))
            })?;
            (host, port)
        }
        None => (seed, default_port),
    };
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}

fn random_seed() -> Result<u64, Error> {
    let [a, b, c, d, e, f, g, h, ..] = NodeId::generate()?.0;
    Ok(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

fn save(path: &Path, node_id: NodeId, memory: &Memory) -> Result<(), Error> {
    state_file::write(path, &memory_file::encode(path, node_id, memory)?)
}

fn load(path: &Path, node_id: NodeId) -> Result<Memory, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Memory::default()),
        Err(cause) => return Err(Error::ReadState { path: path.to_owned(), cause }),
    };
    let (former, memory) = memory_file::decode(path, &text)?;
    if former == node_id {
        return Ok(memory);
    }
    // The identity was given up on purpose; what belonged to it stays with it.
    tracing::warn!(path = %path.display(), %former, "ignoring another node's state");
    Ok(Memory::default())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::gossip::sim::Network;
    use crate::gossip::{Refused, RememberedLease};

    fn agent(dir: &Path, last: u8, seeds: &[&str]) -> AgentConfig {
        let lease =
            LeaseConfig { claim_confirm_ms: 100, claim_wait_ms: 1000, ..LeaseConfig::default() };
        AgentConfig {
            gossip: GossipConfig::new("agent-test", lease),
            local: LocalNode {
                id: NodeId([last; 16]),
                name: format!("node-{last}"),
                underlay: IpAddr::from([127, 77, 3, last]),
                gossip_port: 7946,
                vxlan_port: 4789,
                underlay_mtu: 1500,
                software: String::new(),
                has_seeds: false,
                memory: Memory::default(),
            },
            seeds: seeds.iter().map(|seed| (*seed).to_owned()).collect(),
            state_file: dir.join(format!("{last}/gossip.json")),
            key_file: Some(key_file(dir)),
        }
    }

    /// The key file of all agents in `dir`.
    fn key_file(dir: &Path) -> PathBuf {
        let path = dir.join("keys");
        if !path.exists() {
            KeyFile::new(Network::key(0), "").save(&path).unwrap();
        }
        path
    }

    async fn until<T>(receiver: &mut watch::Receiver<T>, goal: impl FnMut(&T) -> bool) {
        let reached = tokio::time::timeout(Duration::from_secs(10), receiver.wait_for(goal)).await;
        reached.expect("within ten seconds").expect("the agent runs");
    }

    #[tokio::test]
    async fn agents_find_each_other_keep_their_leases_and_say_goodbye() {
        let dir = tempfile::tempdir().unwrap();
        let first = Agent::spawn(agent(dir.path(), 1, &["127.77.3.1"])).await.unwrap();
        let second = Agent::spawn(agent(dir.path(), 2, &["127.77.3.1:7946"])).await.unwrap();
        let both = |map: &Arc<SubnetMap>| {
            map.members.values().filter(|member| member.routes().count() == 1).count() == 2
        };
        until(&mut first.map(), both).await;
        until(&mut second.map(), both).await;
        let lease = second.lease().borrow().held().to_vec();
        assert_eq!(lease.len(), 1);
        let IpAddr::V4(base) = lease[0].network() else { panic!("an IPv4 lease") };
        let address = std::net::Ipv4Addr::from_bits(base.to_bits() + 2);
        let mut pod = crate::pods::tests::pod("web", &address.to_string());
        let local = LocalPod { pod: pod.clone(), age: Duration::ZERO };
        second.set_pods(vec![local.clone()]).unwrap();
        until(&mut first.pods(), |pods| pods.by_name("default", "web").count() == 1).await;
        pod.name.clear();
        let error = second.set_pods(vec![LocalPod { pod, age: Duration::ZERO }]).unwrap_err();
        assert!(error.to_string().starts_with("pod default/ cannot be told"), "{error}");

        second.leave().await;
        until(&mut first.map(), |map| {
            let member = &map.members[&NodeId([2; 16])];
            member.state == crate::subnet::MemberState::Left
        })
        .await;
        until(&mut first.pods(), |pods| pods.is_empty()).await;

        let second = Agent::spawn(agent(dir.path(), 2, &["127.77.3.1"])).await.unwrap();
        let state = second.lease().borrow().clone();
        assert_eq!(state, LeaseState::Returning { prefixes: lease.clone() }, "from the disk");
        until(&mut second.lease(), |state| state.held() == lease).await;
        until(&mut first.map(), both).await;
        second.set_pods(vec![local]).unwrap();
        until(&mut first.pods(), |pods| pods.len() == 1).await;
        first.abort();
        second.abort();
    }

    #[tokio::test]
    async fn a_full_disk_is_told_and_silences_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let first = Agent::spawn(agent(dir.path(), 11, &[])).await.unwrap();
        until(&mut first.lease(), |lease| lease.held().len() == 1).await;
        // A file in the directory's place refuses writes to root, too.
        let place = dir.path().join("11");
        fs::rename(&place, dir.path().join("away")).unwrap();
        fs::write(&place, "").unwrap();

        // The first neighbour is worth remembering, and cannot be.
        let second = Agent::spawn(agent(dir.path(), 12, &["127.77.3.11"])).await.unwrap();
        let file = place.join("gossip.json").display().to_string();
        let told = |trouble: &Option<String>| {
            trouble.as_ref().is_some_and(|text| text.starts_with(&format!("cannot write {file}")))
        };
        until(&mut first.storage(), told).await;
        until(&mut second.map(), |map| {
            let first = map.members.get(&NodeId([11; 16]));
            first.is_some_and(|first| first.state.is_active() && first.routes().count() == 1)
        })
        .await;

        fs::remove_file(&place).unwrap();
        until(&mut first.storage(), Option::is_none).await;
        assert!(place.join("gossip.json").exists());
        first.abort();
        second.abort();
    }

    #[tokio::test]
    async fn agents_follow_their_key_files_without_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = Agent::spawn(agent(dir.path(), 21, &[])).await.unwrap();
        let second = Agent::spawn(agent(dir.path(), 22, &["127.77.3.21"])).await.unwrap();
        let path = key_file(dir.path());
        let mut file = KeyFile::load(&path).unwrap();
        let (old, new) = (Network::key(0).id(), Network::key(1).id());
        let all_have = |keys: Vec<crate::seal::KeyId>| {
            move |map: &Arc<SubnetMap>| {
                let mut active = map.members.values().filter(|member| member.state.is_active());
                map.members.len() == 2 && active.all(|member| member.keys == keys)
            }
        };
        until(&mut first.map(), all_have(vec![old])).await;
        file.add(Network::key(1), "").unwrap();
        file.save(&path).unwrap();
        until(&mut first.map(), all_have(vec![old, new])).await;
        file.put_in_use(new);
        file.save(&path).unwrap();
        until(&mut first.map(), all_have(vec![new, old])).await;
        file.remove(old);
        file.save(&path).unwrap();
        until(&mut second.map(), all_have(vec![new])).await;
        let refused = second.counters().refused;
        assert!(refused.is_empty(), "{refused:?}");

        // What cannot be used is told, and the keys that were read stay.
        fs::write(
            &path, "use 12
",
        )
        .unwrap();
        let told = |trouble: &Option<String>| {
            trouble.as_ref().is_some_and(|text| text.contains("keys:1: a key is 64"))
        };
        until(&mut first.key_trouble(), told).await;
        assert_eq!(first.map().borrow().members[&NodeId([22; 16])].keys, [new]);
        file.save(&path).unwrap();
        until(&mut first.key_trouble(), Option::is_none).await;

        // Without a key nobody gets in, and is named.
        let mut stranger = agent(dir.path(), 23, &["127.77.3.21"]);
        stranger.key_file = None;
        let stranger = Agent::spawn(stranger).await.unwrap();
        let named = async {
            while first.strangers().is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), named).await.expect("it is told");
        assert_eq!(first.strangers()[0].reason, Refused::Unsealed);
        assert_eq!(first.map().borrow().members.len(), 2);
        first.abort();
        second.abort();
        stranger.abort();
    }

    #[tokio::test]
    async fn an_agent_without_its_keys_does_not_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = agent(dir.path(), 24, &[]);
        config.key_file = Some(dir.path().join("none"));
        let error = Agent::spawn(config).await.unwrap_err().to_string();
        assert!(error.contains("none: there is no key file"), "{error}");
    }

    #[tokio::test]
    async fn an_agent_leaves_in_time_under_a_flood() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent::spawn(agent(dir.path(), 13, &[])).await.unwrap();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flood = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let socket = std::net::UdpSocket::bind("127.77.3.14:7946").unwrap();
                let mut sent = 0_u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    // A full receiver is what this is about.
                    sent += u64::from(socket.send_to(&[0; 1200], "127.77.3.13:7946").is_ok());
                }
                sent
            }
        });
        // Until the flood has arrived.
        let arrived = async {
            while agent.counters().received < 1000 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), arrived).await.expect("the flood arrives");
        let before = Instant::now();
        agent.leave().await;
        let took = before.elapsed();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(flood.join().unwrap() > 1000);
        assert!(took < Duration::from_secs(2), "{took:?}");
    }

    #[tokio::test]
    async fn an_agent_that_hangs_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut agent = Agent::spawn(agent(dir.path(), 15, &[])).await.unwrap();
        agent.task.abort();
        agent.task = tokio::spawn(std::future::pending());
        let (leave, unread) = mpsc::channel(1);
        agent.leave = leave;
        let before = Instant::now();
        agent.leave().await;
        assert!(before.elapsed() < Duration::from_secs(2));
        drop(unread);
    }

    #[tokio::test]
    async fn a_damaged_state_file_and_a_taken_port_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let config = agent(dir.path(), 9, &[]);
        fs::create_dir_all(config.state_file.parent().unwrap()).unwrap();
        fs::write(&config.state_file, "{\"node_id\": ").unwrap();
        let error = Agent::spawn(config.clone()).await.unwrap_err();
        assert!(matches!(error, Error::CorruptState { .. }), "{error}");
        fs::remove_file(&config.state_file).unwrap();
        let running = Agent::spawn(config.clone()).await.unwrap();
        let error = Agent::spawn(config).await.unwrap_err();
        assert!(error.to_string().contains("127.77.3.9:7946"), "{error}");
        running.abort();
    }

    #[tokio::test]
    async fn seeds_are_written_in_any_usual_way() {
        let resolved = async |seed| resolve(seed, 7946).await.unwrap()[0].to_string();
        assert_eq!(resolved("192.0.2.1").await, "192.0.2.1:7946");
        assert_eq!(resolved("192.0.2.1:7").await, "192.0.2.1:7");
        assert_eq!(resolved("2001:db8::1").await, "[2001:db8::1]:7946");
        assert_eq!(resolved("[2001:db8::1]").await, "[2001:db8::1]:7946");
        assert_eq!(resolved("[2001:db8::1]:7").await, "[2001:db8::1]:7");
        assert!(resolve("host:port", 7946).await.is_err());
    }

    #[test]
    fn what_is_saved_is_loaded_by_the_same_node_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gossip.json");
        let id = NodeId([1; 16]);
        let memory = Memory {
            counter: 5,
            clock: 6,
            leases: vec![RememberedLease { prefix: "10.244.7.0/24".parse().unwrap(), epoch: 3 }],
            retained: vec!["10.244.3.0/24".parse().unwrap()],
            peers: vec!["192.0.2.1:7946".parse().unwrap()],
            origin: Some(NodeId([9; 16])),
        };
        save(&path, id, &memory).unwrap();
        assert_eq!(load(&path, id).unwrap(), memory);
        assert_eq!(load(&path, NodeId([2; 16])).unwrap(), Memory::default());
    }
}
