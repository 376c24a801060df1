//! The objects of the cluster in the daemon: taken up as their source and the map tell, and made into the
//! switch's table of Services.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use conf::cluster::{Change, ClusterState, Delta, Object, ObjectName};
use conf::source::kubernetes::snapshot::Snapshot;
use conf::source::kubernetes::{Health, SharedObjects};
use conf::source::manifests::Counts;
use conf::source::{self, Listing, SharedDirectory, Update};
use conf::{MetricsListen, NodeConfig};
use ipnetwork::IpNetwork;
use overlay::pods::{LocalPod, PodMap};
use vswitch::policy::PolicyTable;
use vswitch::service::Protocol;

use super::endpoints::Place;
use super::facts::Facts;
use super::policies::{PolicyTables, Scope};
use super::services::ServiceTables;
use super::{Control, Topic, gate, now_unix_s, ranges};
use crate::admin::api::ProblemTopic;
use crate::dns::{names, place as dns_place};
use crate::explain::{self, Explained, Known, Query, world::World};
use crate::policy::list::PolicyStatus;

/// The state of the cluster, which one writes and many read.
#[derive(Debug, Clone)]
pub struct SharedCluster {
    state: Arc<RwLock<ClusterState>>,
    synced: Arc<AtomicBool>,
}

impl SharedCluster {
    /// Shares `state`, of which nothing is known to be complete.
    pub fn new(state: ClusterState) -> Self {
        Self { state: Arc::new(RwLock::new(state)), synced: Arc::default() }
    }

    /// Looks at the state. Whoever holds this keeps changes waiting: look, and let go.
    pub fn read(&self) -> RwLockReadGuard<'_, ClusterState> {
        // A panic while it was written is the end of one change, not of the state.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, ClusterState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the objects have been read once. Before, that something is not there means nothing.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    fn set_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }
}

/// What the control side has of the objects.
#[derive(Debug)]
pub(super) struct Objects {
    cluster: SharedCluster,
    source: Option<source::Objects>,
    facts: Facts,
    tables: ServiceTables,
    policies: PolicyTables,
    /// Addresses of this node that have node ports.
    node_addresses: Vec<IpAddr>,
    /// Refused objects that the log has named.
    told: Vec<String>,
    /// When the log named them last, and whether there may be others since.
    told_at: Option<Instant>,
    untold: bool,
    /// Since when the API server does not answer, and whether all that is known is remembered, as far as the
    /// problem tells it.
    trouble_told: (Option<Instant>, bool),
    /// When the objects were as they are remembered, in seconds since 1970, until the API server has told them all.
    remembered_unix_s: Option<u64>,
}

/// Most refused objects that one change writes to the log.
const LINES_MAX: usize = 20;

impl Objects {
    pub(super) fn cluster(&self) -> &SharedCluster {
        &self.cluster
    }

    pub(super) fn tables(&self) -> &ServiceTables {
        &self.tables
    }

    pub(super) fn tables_mut(&mut self) -> &mut ServiceTables {
        &mut self.tables
    }

    pub(super) fn new(config: &NodeConfig, node: &str, now: Instant) -> Self {
        let services = config.allocation();
        let cluster = SharedCluster::new(ClusterState::new(services.clone()));
        let names = dns_place::addresses(&config.dns, &cluster.read());
        let balancing = config.services.balancing;
        let place = Place { node: node.into(), zone: None, balancing };
        let mut reserved = vec![
            (Protocol::Udp, config.overlay.vxlan_port, "tunnel"),
            (Protocol::Udp, config.overlay.gossip_port, "gossip"),
        ];
        if let MetricsListen::At(at) = config.metrics.listen
            && !at.ip().is_loopback()
        {
            reserved.push((Protocol::Tcp, at.port(), "metrics"));
        }
        let tables = ServiceTables::new(place, &services.ranges, &config.lease.ranges, names)
            .with_reserved(reserved);
        Self {
            cluster,
            source: None,
            facts: Facts::new(node, now),
            tables,
            policies: PolicyTables::new(Scope::Node(node.into()), gate::mode(&config.policy)),
            node_addresses: Vec::new(),
            told: Vec::new(),
            told_at: None,
            untold: false,
            trouble_told: (None, false),
            remembered_unix_s: None,
        }
    }
}

/// The addresses of a node that have node ports: its underlay address, and the first of each family that its
/// object names, as with kube-proxy's `--nodeport-addresses primary`.
fn primary_addresses(underlay: Option<IpAddr>, declared: &[IpAddr]) -> Vec<IpAddr> {
    let first = |is_ipv4| declared.iter().copied().find(|address| address.is_ipv4() == is_ipv4);
    let mut addresses: Vec<IpAddr> = underlay.into_iter().collect();
    let primary = [first(true), first(false)].into_iter().flatten();
    addresses.extend(primary.filter(|address| Some(*address) != underlay));
    addresses
}

/// How often what is refused in a cluster is looked for: there, something changes all the time.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

impl Objects {
    /// Where they come from.
    pub(super) fn source(&self) -> Option<&source::Objects> {
        self.source.as_ref()
    }

    /// Where cluster IPs are taken from.
    pub(super) fn service_ranges(&self) -> &[IpNetwork] {
        self.tables.ranges()
    }

    /// What is wrong with Services in the switch's table.
    pub(super) fn table_problems(&self) -> impl Iterator<Item = (&ObjectName, &str)> {
        self.tables.problems()
    }
}

impl Control {
    /// The state of the cluster.
    pub fn cluster(&self) -> SharedCluster {
        self.objects.cluster.clone()
    }

    /// Takes up the directory of manifests, and what is in it at first.
    pub fn set_directory(&mut self, directory: SharedDirectory, first: Update) {
        self.objects.source = Some(source::Objects::Manifests(directory));
        self.update_objects(first);
        self.set_synced();
    }

    /// Takes up where objects come from in a Kubernetes cluster. None of them is known yet.
    pub fn set_kubernetes(&mut self, objects: SharedObjects) {
        self.objects.source = Some(source::Objects::Kubernetes(objects));
    }

    /// Takes up what has changed in a Kubernetes cluster, or how its API server is doing.
    pub fn update_kubernetes(&mut self, update: Update) {
        self.objects.untold |= !update.changes.is_empty();
        self.change_cluster(update.changes);
        let Some(health) = self.api_health() else { return };
        let was_remembered = health.complete && self.objects.remembered_unix_s.take().is_some();
        if health.complete && !self.objects.cluster.is_synced() {
            self.set_synced();
        } else if !was_remembered {
            return self.tell_trouble(&health);
        }
        tracing::info!(server = health.server, "the objects of the cluster are known");
        self.tell_trouble(&health);
    }

    /// Takes up what was known of a Kubernetes cluster before this start: it is in force until the API server tells
    /// what there is.
    ///
    /// Not what is said of pods that were attached here later: a pod of the same name may have other labels, and its
    /// port stays shut until they are known.
    pub fn restore_kubernetes(&mut self, snapshot: Snapshot) {
        let Some(source::Objects::Kubernetes(objects)) = self.objects.source.clone() else {
            return;
        };
        let Snapshot { taken_unix_s, objects: mut remembered, .. } = snapshot;
        let later: BTreeSet<ObjectName> = (self.ipam.iter())
            .filter(|held| held.record.created_unix_s >= taken_unix_s)
            .filter_map(|held| held.record.pod.as_ref())
            .map(|pod| ObjectName::new(pod.namespace.as_str(), pod.name.as_str()))
            .collect();
        remembered.retain(|object| match object {
            Object::Pod(pod) => !later.contains(&pod.id),
            Object::Namespace(_)
            | Object::Node(_)
            | Object::ServiceCidr(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::Secret(_)
            | Object::NetworkPolicy(_)
            | Object::ClusterPolicy(_) => true,
        });
        let count = remembered.len();
        let changes = objects.restore(remembered);
        self.objects.remembered_unix_s = Some(taken_unix_s);
        self.change_cluster(changes);
        self.set_synced();
        tracing::info!(
            objects = count,
            taken_unix_s,
            "the cluster is taken up as it was known before"
        );
        self.tell_trouble(&objects.health());
    }

    /// Forgets what is only remembered of a pod that comes now: one of the same name may have had other labels, and
    /// its port stays shut until they are known.
    pub(super) fn forget_remembered_pod(&mut self, pod: &ipam::Pod) {
        if self.objects.remembered_unix_s.is_none() {
            return;
        }
        if let Some(source::Objects::Kubernetes(objects)) = &self.objects.source {
            let id = ObjectName::new(pod.namespace.as_str(), pod.name.as_str());
            let forgotten = objects.forget_remembered_pod(&id);
            self.change_cluster(forgotten.into_iter().collect());
        }
    }

    /// How old the objects are that are remembered, in seconds; `None` once the API server has told them all.
    pub(super) fn remembered_s(&self) -> Option<u64> {
        let taken_unix_s = self.objects.remembered_unix_s?;
        Some(now_unix_s().saturating_sub(taken_unix_s))
    }

    /// Looks for what is refused, now and then. Called about once a second.
    pub(super) fn look_for_refused(&mut self) {
        let is_due = self.objects.told_at.is_none_or(|at| at.elapsed() >= LOOK_PAUSE);
        if self.objects.untold && is_due {
            self.objects.untold = false;
            self.objects.told_at = Some(Instant::now());
            self.tell_refused();
        }
    }

    /// How the API server is doing; `None` where objects come from files.
    pub(super) fn api_health(&self) -> Option<Health> {
        match &self.objects.source {
            Some(source::Objects::Kubernetes(objects)) => Some(objects.health()),
            Some(source::Objects::Manifests(_)) | None => None,
        }
    }

    fn tell_trouble(&mut self, health: &Health) {
        let topic = Topic::Node(ProblemTopic::Kubernetes);
        let remembered = self.objects.remembered_unix_s.is_some();
        let now = (health.stale_since, remembered);
        if self.objects.trouble_told == now {
            return;
        }
        self.objects.trouble_told = now;
        let known = match (health.complete, remembered) {
            (true, _) => {
                "What is known stays in force, and new pods get addresses; what has changed since is not known"
            }
            (false, true) => {
                "What was known before this start is in force (`weft status` says how old it is); what has changed \
                 since is not known"
            }
            (false, false) => {
                "The cluster's objects are not known yet, so its Services and names are not served"
            }
        };
        let why = match &health.reason {
            Some(reason) => format!("does not tell of the cluster: {reason}"),
            None if remembered => "has not told of the cluster yet".to_owned(),
            None => return self.clear(&topic),
        };
        let objects = &self.config.objects;
        let is_led_there = objects.kubeconfig.is_some() || !objects.api_servers.is_empty();
        let hint = match health.complete || is_led_there {
            true => "",
            false => {
                ". Without kube-proxy nobody leads to the Service `kubernetes` yet: set api_servers under [objects]"
            }
        };
        let text = format!(
            "the API server {} {why}. {known}. It is asked again all the time{hint}",
            health.server
        );
        self.raise(topic, text);
    }

    /// Takes up that what is not there is not there.
    fn set_synced(&mut self) {
        self.objects.cluster.set_synced();
        self.set_up_host();
        self.take_up_policies(&Delta::default());
        if let Some(resolver) = &self.dns {
            let state = self.objects.cluster.read();
            resolver.update(|directory| *directory = names::directory(&state));
        }
    }

    /// Takes up what has changed in the directory of manifests.
    pub fn update_objects(&mut self, update: Update) {
        let changes = update.changes.len();
        self.change_cluster(update.changes);
        self.tell_refused();
        if changes > 0 {
            tracing::info!(changes, files = update.files, "objects taken up");
        }
    }

    /// Takes up the pods of all nodes, as the map tells them.
    pub fn set_pod_map(&mut self, pods: Arc<PodMap>) {
        let changes = self.objects.facts.set_pods(pods);
        self.change_cluster(changes);
    }

    /// Takes up the nodes, as the map tells them.
    pub(super) fn set_node_facts(&mut self) {
        let changes = self.objects.facts.set_nodes(&self.map);
        self.change_cluster(changes);
    }

    fn change_cluster(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let delta = self.objects.cluster.write().apply(changes);
        // Names that are not known to be all are answered with "ask again".
        if let Some(resolver) = self.dns.as_ref().filter(|_| self.objects.cluster.is_synced()) {
            let state = self.objects.cluster.read();
            resolver.update(|directory| names::update(directory, &state, &delta));
        }
        self.take_up_policies(&delta);
        self.take_up_delta(&delta);
        if !delta.service_cidrs.is_empty() {
            self.follow_service_cidrs();
        }
        if dns_place::is_in(&delta.services) {
            self.follow_dns_service();
        }
        self.follow_balancers(&delta.services);
    }

    /// Takes cluster IPs for what the ServiceCIDRs say now.
    fn follow_service_cidrs(&mut self) {
        let objects = &mut self.objects;
        let state = objects.cluster.read();
        let (ranges, problem) = ranges::of_services(&self.config, &state);
        let table = (ranges != objects.tables.ranges()).then(|| {
            tracing::info!(?ranges, "cluster IPs are of these ranges now");
            objects.tables.set_ranges(&state, ranges, &self.config.lease.ranges)
        });
        drop(state);
        let topic = Topic::Services("ranges");
        match problem {
            Some(problem) => self.raise(topic, problem),
            None => self.clear(&topic),
        }
        if let Some(table) = table {
            self.set_services(table);
            self.set_up_host();
        }
    }

    /// Moves the name server to where its Service says that it is.
    fn follow_dns_service(&mut self) {
        let objects = &mut self.objects;
        let state = objects.cluster.read();
        let names = dns_place::addresses(&self.config.dns, &state);
        if names == objects.tables.names() {
            return;
        }
        tracing::info!(addresses = ?names, "the name server answers here now");
        let table = objects.tables.set_names(&state, names.clone());
        drop(state);
        // It listens before anybody is led there.
        self.dns_addresses.send_replace(names);
        self.set_services(table);
        self.set_up_host();
    }

    /// Takes up this node's own pods.
    pub(super) fn set_own_pods(&mut self, pods: &[LocalPod], now: Instant) {
        let changes = self.objects.facts.set_own(pods, now);
        self.change_cluster(changes);
    }

    /// Makes the policies anew for what is different.
    fn take_up_policies(&mut self, delta: &Delta) {
        let objects = &mut self.objects;
        let table = objects.policies.update(&objects.cluster.read(), delta);
        // Before, that there is no policy means nothing.
        if !objects.cluster.is_synced() {
            return;
        }
        let has_any = objects.policies.counts().policies > 0;
        self.set_policies(if has_any { table } else { Arc::new(PolicyTable::off()) });
    }

    pub(super) fn take_up_delta(&mut self, delta: &Delta) {
        let objects = &mut self.objects;
        let state = objects.cluster.read();
        let underlay = self.underlay.as_ref().map(|underlay| underlay.address);
        let addresses = primary_addresses(underlay, state.node_addresses(&self.identity.name));
        let own = delta.nodes.iter().any(|node| node.as_ref() == self.identity.name);
        if delta.services.is_empty() && !own && addresses == objects.node_addresses {
            return;
        }
        objects.node_addresses.clone_from(&addresses);
        let table = objects.tables.update(&state, &delta.services, addresses);
        drop(state);
        self.set_services(table);
    }

    /// Writes to the log what is refused now and was not before, and raises how much that is.
    fn tell_refused(&mut self) {
        let Some(source) = self.objects.source.clone() else { return };
        let (counts, refused) = {
            let state = self.objects.cluster.read();
            let refused = source.refused(&state);
            let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
            (source.counts(&state), refused)
        };
        let (problem, dir) = match &source {
            source::Objects::Manifests(directory) => {
                let problem = directory.lock().problem().map(str::to_owned);
                (problem, format!("{}/", self.config.objects.dir.display()))
            }
            source::Objects::Kubernetes(_) => (None, String::new()),
        };
        let new = refused.iter().filter(|line| !self.objects.told.contains(line));
        for line in new.take(LINES_MAX) {
            tracing::warn!("refused: {dir}{line}");
        }
        self.objects.told = refused;
        self.objects.told.truncate(LINES_MAX * 50);
        let topic = Topic::Node(ProblemTopic::Objects);
        // A directory that was never made is the way to say that there are no objects.
        let is_missing = problem.as_ref().is_some_and(|text| text.contains("No such file"));
        match (problem, counts.refused) {
            (Some(problem), _) if !is_missing || counts.files > 0 => {
                self.raise(topic, format!("{problem}. What was read before stays in force"));
            }
            (_, 0) => self.clear(&topic),
            (_, count) => {
                let text =
                    format!("objects are refused: {count}; `weft objects` says which, and why");
                self.raise(topic, text);
            }
        }
    }

    /// All policies, whom they are for, and what was counted of them.
    pub fn policy_list(&self) -> Vec<PolicyStatus> {
        let state = self.objects.cluster.read();
        self.objects.policies.list(&state)
    }

    /// All objects, and what became of them.
    pub fn objects(&self) -> Listing {
        let Some(source) = &self.objects.source else { return Listing::default() };
        let mut listing = source.listing(&self.objects.cluster.read());
        let mut problems: std::collections::BTreeMap<&ObjectName, Vec<&str>> = Default::default();
        for (id, text) in self.objects.tables.problems() {
            problems.entry(id).or_default().push(text);
        }
        for object in listing.accepted.iter_mut().filter(|object| object.kind == "Service") {
            let id = ObjectName::new(object.namespace.as_str(), object.name.as_str());
            let found = problems.get(&id).into_iter().flatten();
            object.notes.extend(found.map(|text| (*text).to_owned()));
            object.notes.extend(self.announcements_of(&id));
        }
        listing
    }

    /// What the switch would do with a packet, and why: for this node with the tables that are in force, for any
    /// other with those that it must have by what is known here.
    ///
    /// # Errors
    /// When the question cannot be understood.
    pub fn explain(&self, query: &Query) -> Result<Explained, String> {
        let state = self.objects.cluster.read();
        let mut world = World::of_map(&self.map, &state);
        world.add(&self.identity.name);
        let tables = self.engine.tables();
        explain::explain(
            &Known {
                config: &self.config,
                state: &state,
                world: &world,
                own: Some((&self.identity.name, &tables)),
            },
            query,
        )
    }

    /// How many objects there are.
    pub(super) fn object_counts(&self) -> Counts {
        let Some(source) = &self.objects.source else { return Counts::default() };
        source.counts(&self.objects.cluster.read())
    }
}
