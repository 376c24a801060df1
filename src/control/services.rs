//! The switch's table of Services, kept in step with the state of the cluster. Pure.
//!
//! An address and port belongs to one Service. Cluster IPs and node ports are handed out so; addresses that
//! people choose (external IPs, addresses of load balancers) may be claimed by several, and the cluster IP
//! of one may be an external IP of another. Then a cluster IP comes first, and after that the first by
//! namespace and name: the same on every node, whatever happened before. Who claims in vain is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use conf::cluster::{ClusterState, ObjectName, ServiceView};
use ipnetwork::IpNetwork;
use vswitch::service::{
    Family, Frontend, Protocol, ServiceError, ServicePort, ServiceTable, ServiceTableBuilder,
};

use super::endpoints::{Place, service_ports};
use super::exposure::{Exposed, Exposure, exposed_by};
use super::host_ports::{HostPort, HostPortError, HostPorts, Owner, Reserved};

/// A place that clients send to. Node ports have no address.
type FrontendKey = (Option<IpAddr>, Family, Protocol, u16);

/// Who claims it: cluster IPs first, then by name.
type Claim = (bool, ObjectName);

/// Makes [`ServiceTable`]s, each out of the one before.
#[derive(Debug)]
pub struct ServiceTables {
    place: Place,
    /// Where cluster IPs are taken from.
    ranges: Vec<IpNetwork>,
    /// Where nobody's external IPs may be: an address there is a pod's or a Service's.
    guarded: Vec<IpNetwork>,
    /// Where this node's name server answers, whatever is declared.
    names: Vec<IpAddr>,
    table: Arc<ServiceTable>,
    generation: u64,
    /// What each Service has in the table, by the names of its ports.
    made: BTreeMap<ObjectName, Vec<(String, Family)>>,
    claims: BTreeMap<FrontendKey, BTreeSet<Claim>>,
    claimed: BTreeMap<ObjectName, BTreeSet<(FrontendKey, bool)>>,
    problems: BTreeMap<ObjectName, Vec<String>>,
    /// Addresses of this node that have node ports.
    node_addresses: Vec<IpAddr>,
    host_ports: HostPorts,
    /// What each pod has in the table, by its id and the names of its ports.
    made_host_ports: BTreeMap<String, Vec<(String, Family)>>,
    exposure: Exposure,
}

impl ServiceTables {
    /// A table without Services. `ranges` is where cluster IPs are taken from, `pods` where pods' addresses are,
    /// and at `names` the node's name server answers.
    pub fn new(place: Place, ranges: &[IpNetwork], pods: &[IpNetwork], names: Vec<IpAddr>) -> Self {
        let mut empty = ServiceTableBuilder::new(ranges.to_vec());
        empty.answered(names.clone());
        Self {
            place,
            ranges: ranges.to_vec(),
            guarded: ranges.iter().chain(pods).copied().collect(),
            names,
            table: Arc::new(empty.build(0)),
            generation: 0,
            made: BTreeMap::new(),
            claims: BTreeMap::new(),
            claimed: BTreeMap::new(),
            problems: BTreeMap::new(),
            node_addresses: Vec::new(),
            host_ports: HostPorts::default(),
            made_host_ports: BTreeMap::new(),
            exposure: Exposure::default(),
        }
    }

    /// The same, with ports that no pod may have of the node.
    #[must_use]
    pub fn with_reserved(mut self, reserved: Vec<Reserved>) -> Self {
        self.host_ports = HostPorts::new(reserved);
        self
    }

    /// Where cluster IPs are taken from.
    pub fn ranges(&self) -> &[IpNetwork] {
        &self.ranges
    }

    /// Takes up where cluster IPs are taken from now, and where pods' addresses are. Returns the new table.
    pub fn set_ranges(
        &mut self,
        state: &ClusterState,
        ranges: Vec<IpNetwork>,
        pods: &[IpNetwork],
    ) -> Arc<ServiceTable> {
        self.guarded = ranges.iter().chain(pods).copied().collect();
        self.ranges = ranges;
        let mut builder = self.table.edit();
        builder.ranges(self.ranges.clone());
        // External IPs of any of them may lie there, or not any more.
        let affected = state.services().map(|view| view.service.id.clone()).collect();
        self.remake(state, affected, &mut builder);
        self.finish(builder)
    }

    /// Where this node's name server answers.
    pub fn names(&self) -> &[IpAddr] {
        &self.names
    }

    /// Takes up where this node's name server answers from now on. Returns the new table.
    pub fn set_names(&mut self, state: &ClusterState, names: Vec<IpAddr>) -> Arc<ServiceTable> {
        let before = std::mem::replace(&mut self.names, names);
        let is_concerned = |(address, ..): &FrontendKey| {
            address
                .is_some_and(|address| before.contains(&address) || self.names.contains(&address))
        };
        let claims = self.claims.iter().filter(|(key, _)| is_concerned(key));
        let affected = claims.flat_map(|(_, claims)| claims.iter().map(|(_, id)| id.clone()));
        let affected: BTreeSet<ObjectName> = affected.collect();
        let mut builder = self.table.edit();
        builder.answered(self.names.clone());
        self.remake(state, affected, &mut builder);
        self.finish(builder)
    }

    /// What of the table the host has to route to the switch, and whether it has changed.
    pub fn exposure(&mut self) -> &mut Exposure {
        &mut self.exposure
    }

    /// The addresses of this node that have node ports.
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.node_addresses
    }

    /// What is wrong with a Service that nobody else knows of.
    pub fn problems(&self) -> impl Iterator<Item = (&ObjectName, &str)> {
        self.problems
            .iter()
            .flat_map(|(id, texts)| texts.iter().map(move |text| (id, text.as_str())))
    }

    /// Takes up that `services` may be different, and which addresses of this node have node ports.
    /// Returns the new table.
    pub fn update(
        &mut self,
        state: &ClusterState,
        services: &BTreeSet<ObjectName>,
        node_addresses: Vec<IpAddr>,
    ) -> Arc<ServiceTable> {
        let zone = state.zone_of(&self.place.node).cloned();
        let mut affected: BTreeSet<ObjectName> = services.clone();
        if zone != self.place.zone {
            self.place.zone = zone;
            // Any of them may prefer other endpoints now.
            affected.extend(state.services().map(|view| view.service.id.clone()));
        }
        for id in services {
            self.claim(state, id, &mut affected);
        }
        let mut builder = self.table.edit();
        if node_addresses != self.node_addresses {
            builder.node_addresses(node_addresses.clone());
            self.node_addresses = node_addresses;
            affected.extend(self.remake_host_ports(&mut builder));
        }
        self.remake(state, affected, &mut builder);
        // A Service may have let go of one.
        let ids: Vec<String> = self.host_ports.ids().map(str::to_owned).collect();
        ids.iter().for_each(|id| self.make_host_ports(id, &mut builder));
        self.finish(builder)
    }

    /// Whether a pod of this node may have these host ports in place of those that it has.
    ///
    /// # Errors
    /// When one of them is another pod's or a Service's, or cannot be served.
    pub fn check_host_ports(&self, owner: &Owner, ports: &[HostPort]) -> Result<(), HostPortError> {
        self.host_ports.check(owner, ports)?;
        let had = self.host_ports.of(&owner.id);
        for port in ports {
            if let Some(address) = port.address
                && let Some(range) = self.guarded.iter().find(|range| range.contains(address))
            {
                return Err(HostPortError::Guarded { address, range: *range });
            }
            // One that has come since has to stand back.
            let is_new = !had.iter().any(|had| port.is_at(had));
            let family = Family::of(port.target.0);
            let node_port = self.table.node_port(family, port.port, port.protocol);
            if let Some(service) = node_port.filter(|_| is_new && self.is_primary(port)) {
                return Err(HostPortError::Taken {
                    protocol: port.protocol,
                    port: port.port,
                    place: "every node".to_owned(),
                    holder: service.name().to_owned(),
                });
            }
        }
        let mut trial = HostPorts::default();
        trial.set(owner, ports.to_vec());
        let mut builder = self.table.edit();
        for (name, family) in self.made_host_ports.get(&owner.id).into_iter().flatten() {
            builder.remove(name, *family);
        }
        for (_, spec) in trial.specs_of(&owner.id, &self.node_addresses) {
            let (protocol, place) = (spec.protocol, spec.frontends.first().map(Frontend::place));
            builder.set(spec).map_err(|error| host_port_error(error, protocol, place))?;
        }
        Ok(())
    }

    /// Whether a host port is at an address that has node ports.
    fn is_primary(&self, port: &HostPort) -> bool {
        port.only().is_none_or(|address| self.node_addresses.contains(&address))
    }

    /// Takes up the host ports of a pod of this node in place of those that it had; none remove them. Returns the new
    /// table.
    ///
    /// # Errors
    /// As [`Self::check_host_ports`]. Nothing is changed then.
    pub fn set_host_ports(
        &mut self,
        state: &ClusterState,
        owner: &Owner,
        ports: Vec<HostPort>,
    ) -> Result<Arc<ServiceTable>, HostPortError> {
        self.check_host_ports(owner, &ports)?;
        Ok(self.take_up_host_ports(state, owner, ports))
    }

    /// As [`Self::set_host_ports`], for ports that the pod has had all along, before a restart. What a Service has
    /// taken meanwhile is left out, and served when it is free.
    pub fn take_up_host_ports(
        &mut self,
        state: &ClusterState,
        owner: &Owner,
        ports: Vec<HostPort>,
    ) -> Arc<ServiceTable> {
        let mut builder = self.table.edit();
        self.unmake_host_ports(&owner.id, &mut builder);
        self.host_ports.set(owner, ports);
        self.make_host_ports(&owner.id, &mut builder);
        // One of them may have waited for what is free now.
        let waiting = self.problems.keys().cloned().collect();
        self.remake(state, waiting, &mut builder);
        self.finish(builder)
    }

    /// What of a pod's host ports is not served, and why.
    pub fn unserved_host_ports(&self, id: &str) -> Vec<(HostPort, String)> {
        let missing: Vec<_> = self.missing_host_ports(id).collect();
        if missing.is_empty() {
            return Vec::new();
        }
        let mut builder = self.table.edit();
        missing
            .into_iter()
            .filter_map(|(port, spec)| {
                let (protocol, place) =
                    (spec.protocol, spec.frontends.first().map(Frontend::place));
                let error = builder.set(spec).err()?;
                Some((port, host_port_error(error, protocol, place).to_string()))
            })
            .collect()
    }

    /// The host ports of a pod.
    pub fn host_ports_of(&self, id: &str) -> &[HostPort] {
        self.host_ports.of(id)
    }

    /// What is exposed of a pod's host ports.
    pub(super) fn exposed_host_ports(&self, id: &str) -> Vec<Exposed> {
        let made = self.made_host_ports.get(id).into_iter().flatten();
        let made = made.filter_map(|(name, family)| self.table.service(name, *family));
        made.flat_map(|service| exposed_by(service.spec())).collect()
    }

    fn missing_host_ports(&self, id: &str) -> impl Iterator<Item = (HostPort, ServicePort)> {
        let made = self.made_host_ports.get(id).map_or(&[][..], Vec::as_slice);
        let all = self.host_ports.specs_of(id, &self.node_addresses);
        all.filter(|(_, spec)| {
            !made.iter().any(|(name, family)| (name, *family) == (&spec.name, spec.family))
        })
    }

    /// Puts what is missing of a pod's host ports into the next table. What a Service has is left out, and tried
    /// again with every change of Services.
    fn make_host_ports(&mut self, id: &str, builder: &mut ServiceTableBuilder) {
        let missing: Vec<_> = self.missing_host_ports(id).collect();
        for (_, spec) in missing {
            match builder.set(spec.clone()) {
                Ok(()) => {
                    self.exposure.add(&spec);
                    let made = self.made_host_ports.entry(id.to_owned()).or_default();
                    made.push((spec.name, spec.family));
                }
                Err(error) => tracing::debug!("host port is not served: {error}"),
            }
        }
    }

    fn unmake_host_ports(&mut self, id: &str, builder: &mut ServiceTableBuilder) {
        for (name, family) in self.made_host_ports.remove(id).unwrap_or_default() {
            builder.remove(&name, family);
            self.conceal(&name, family);
        }
    }

    /// Makes all host ports anew, for a node with other addresses. Returns the Services that may get something else
    /// by it.
    fn remake_host_ports(&mut self, builder: &mut ServiceTableBuilder) -> BTreeSet<ObjectName> {
        let ids: Vec<String> = self.host_ports.ids().map(str::to_owned).collect();
        ids.iter().for_each(|id| self.unmake_host_ports(id, builder));
        ids.iter().for_each(|id| self.make_host_ports(id, builder));
        self.problems.keys().cloned().collect()
    }

    /// Makes Services anew.
    fn remake(
        &mut self,
        state: &ClusterState,
        services: BTreeSet<ObjectName>,
        builder: &mut ServiceTableBuilder,
    ) {
        let made: Vec<_> =
            services.iter().filter_map(|id| self.made.remove(id)).flatten().collect();
        for (name, family) in made {
            builder.remove(&name, family);
            self.conceal(&name, family);
        }
        for id in services {
            self.problems.remove(&id);
            if let Some(view) = view(state, &id) {
                self.make(&id, view, builder);
            }
        }
    }

    /// Takes up that what the table has by this name is not in the next one.
    fn conceal(&mut self, name: &str, family: Family) {
        if let Some(service) = self.table.service(name, family) {
            self.exposure.remove(service.spec());
        }
    }

    fn finish(&mut self, builder: ServiceTableBuilder) -> Arc<ServiceTable> {
        self.generation += 1;
        self.table = Arc::new(builder.build(self.generation));
        Arc::clone(&self.table)
    }

    /// Takes up what a Service claims now, and adds to `affected` who else wins or loses by it.
    fn claim(
        &mut self,
        state: &ClusterState,
        id: &ObjectName,
        affected: &mut BTreeSet<ObjectName>,
    ) {
        let ports =
            view(state, id).map(|view| service_ports(view, &self.place)).unwrap_or_default();
        let new: BTreeSet<_> = ports
            .iter()
            .flat_map(|port| port.frontends.iter().map(|frontend| key(port, frontend)))
            .collect();
        let old = self.claimed.remove(id).unwrap_or_default();
        for (key, is_second) in old.difference(&new) {
            let claims = self.claims.entry(*key).or_default();
            claims.remove(&(*is_second, id.clone()));
            affected.extend(claims.iter().map(|(_, other)| other.clone()));
            if claims.is_empty() {
                self.claims.remove(key);
            }
        }
        for (key, is_second) in new.difference(&old) {
            let claims = self.claims.entry(*key).or_default();
            affected.extend(claims.iter().map(|(_, other)| other.clone()));
            claims.insert((*is_second, id.clone()));
        }
        if !new.is_empty() {
            self.claimed.insert(id.clone(), new);
        }
    }

    fn make(&mut self, id: &ObjectName, view: &ServiceView, builder: &mut ServiceTableBuilder) {
        let (mut made, mut problems) = (Vec::new(), Vec::new());
        for mut port in service_ports(view, &self.place) {
            let frontends = std::mem::take(&mut port.frontends);
            for frontend in frontends {
                match self.fault(id, &port, &frontend) {
                    None => port.frontends.push(frontend),
                    Some(problem) => problems.push(problem),
                }
            }
            if port.frontends.is_empty() {
                continue;
            }
            let (name, family) = (port.name.clone(), port.family);
            match builder.set(port.clone()) {
                Ok(()) => {
                    self.exposure.add(&port);
                    made.push((name, family));
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
        if !made.is_empty() {
            self.made.insert(id.clone(), made);
        }
        if !problems.is_empty() {
            self.problems.insert(id.clone(), problems);
        }
    }

    /// Why a Service does not get a frontend.
    fn fault(&self, id: &ObjectName, port: &ServicePort, frontend: &Frontend) -> Option<String> {
        let (key, _) = key(port, frontend);
        let (address, _, protocol, number) = key;
        if let (Frontend::ExternalIp { .. }, Some(address)) = (frontend, address)
            && let Some(range) = self.guarded.iter().find(|range| range.contains(address))
        {
            return Some(format!(
                "spec.externalIPs: {address} lies in {range}, which is the cluster's own: choose an address \
                 outside of it"
            ));
        }
        if let Some(address) = address.filter(|address| self.names.contains(address)) {
            return Some(format!(
                "at {address} each node's own name server answers: endpoints are not asked (see [dns])"
            ));
        }
        let first = self.claims.get(&key)?.first().map(|(_, first)| first)?;
        let place = address.map_or_else(|| "every node".to_owned(), |address| address.to_string());
        (first != id).then(|| {
            format!("{protocol} port {number} of {place} is the Service {first}'s: choose another")
        })
    }
}

fn view<'s>(state: &'s ClusterState, id: &ObjectName) -> Option<&'s ServiceView> {
    state.service(&id.namespace, &id.name).map(AsRef::as_ref)
}

/// What keeps a host port out of the table, which has no other pod's at its place.
fn host_port_error(
    error: ServiceError,
    protocol: Protocol,
    place: Option<(Option<IpAddr>, u16)>,
) -> HostPortError {
    let (address, port) = place.unwrap_or_default();
    let place = address.map_or_else(|| "this node".to_owned(), |address| address.to_string());
    if let ServiceError::Taken { place, holder, port, .. } = error {
        return HostPortError::Taken { protocol, port, place, holder };
    }
    HostPortError::Taken { protocol, port, place, holder: error.to_string() }
}

/// What a frontend takes, and whether it comes second to cluster IPs.
fn key(port: &ServicePort, frontend: &Frontend) -> (FrontendKey, bool) {
    let (address, number, is_second) = match frontend {
        Frontend::ClusterIp { address, port } => (Some(*address), *port, false),
        Frontend::ExternalIp { address, port } | Frontend::LoadBalancer { address, port, .. } => {
            (Some(*address), *port, true)
        }
        Frontend::NodePort { port } => (None, *port, false),
        // No Service has one.
        Frontend::HostPort { address, port } => (Some(*address), *port, true),
    };
    ((address, port.family, port.protocol, number), is_second)
}

#[cfg(test)]
mod tests {
    use conf::cluster::parse::parse;
    use conf::cluster::{Change, Delta};
    use conf::source::Directory;
    use vswitch::service::EndpointState;

    use super::*;
    use crate::control::exposure::Exposed;

    struct Node {
        state: ClusterState,
        directory: Directory,
        tables: ServiceTables,
        table: Arc<ServiceTable>,
    }

    impl Node {
        fn new(name: &str) -> Self {
            let place = Place { node: name.into(), ..Place::default() };
            let ranges = ["10.96.0.0/12".parse().unwrap()];
            let pods = ["10.244.0.0/16".parse().unwrap()];
            Self {
                state: ClusterState::default(),
                directory: Directory::new(),
                tables: ServiceTables::new(place, &ranges, &pods, vec![[10, 96, 0, 10].into()]),
                table: Arc::new(ServiceTable::empty()),
            }
        }

        fn set(&mut self, file: &str, text: &str) {
            let changes = self.directory.set_file(file, parse(text));
            let listing = self.directory.listing(&self.state);
            assert_eq!(listing.refused.iter().map(ToString::to_string).collect::<String>(), "");
            self.take_up(changes);
        }

        fn remove(&mut self, file: &str) {
            let changes = self.directory.remove_file(file);
            self.take_up(changes);
        }

        fn take_up(&mut self, changes: Vec<Change>) {
            let Delta { services, .. } = self.state.apply(changes);
            self.table = self.tables.update(&self.state, &services, Vec::new());
        }

        /// The frontends of all Services, and their endpoints with `*` local, `~` near, and their state.
        fn look(&self) -> Vec<String> {
            let mut seen: Vec<String> =
                self.table.services().map(|service| show(service.spec())).collect();
            seen.sort();
            seen
        }

        fn problems(&self) -> Vec<String> {
            self.tables.problems().map(|(id, text)| format!("{id}: {text}")).collect()
        }
    }

    fn show(port: &ServicePort) -> String {
        let frontends = port.frontends.iter().map(|frontend| match frontend {
            Frontend::ClusterIp { address, port } => format!("cluster {address} {port}"),
            Frontend::ExternalIp { address, port } => format!("external {address} {port}"),
            Frontend::LoadBalancer { address, port, source_ranges } => {
                format!("lb {address} {port} from {}", source_ranges.len())
            }
            Frontend::NodePort { port } => format!("node {port}"),
            Frontend::HostPort { address, port } => format!("host {address} {port}"),
        });
        let endpoints = port.endpoints.iter().map(|endpoint| {
            let state = match endpoint.state {
                EndpointState::Ready => "ready",
                EndpointState::Draining => "draining",
                EndpointState::Unavailable => "unavailable",
            };
            let local = if endpoint.is_local { "*" } else { "" };
            let near = if endpoint.is_near { "~" } else { "" };
            format!("{}:{}{local}{near} {state}", endpoint.address, endpoint.port)
        });
        let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
        format!(
            "{} {} [{}] -> [{}]",
            port.name,
            port.protocol,
            list(&mut { frontends }),
            list(&mut { endpoints })
        )
    }

    fn service(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
        )
    }

    fn pod(name: &str, address: &str, node: &str, more: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}{more}}}\nspec: {{nodeName: \
             {node}, containers: [{{ports: [{{name: http, containerPort: {}}}]}}]}}\nstatus: {{podIP: {address}}}\n---\n",
            8000 + name.len()
        )
    }

    #[test]
    fn every_kind_of_frontend_with_its_endpoints() {
        let mut node = Node::new("n1");
        let ports = "ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}, {name: dns, port: 53, \
                     protocol: UDP, nodePort: 30053}]";
        node.set(
            "a.yaml",
            &service(
                "web",
                &format!(
                    "type: LoadBalancer, selector: {{app: web}}, clusterIP: 10.96.0.7, {ports}, externalIPs: \
                     [192.0.2.1], loadBalancerSourceRanges: [192.0.2.0/24]"
                ),
            ),
        );
        node.set(
            "pods.yaml",
            &(pod("a", "10.244.1.2", "n1", "") + &pod("bb", "10.244.2.2", "n2", "")),
        );
        assert_eq!(
            node.look(),
            [
                "default/web:dns UDP [cluster 10.96.0.7 53, external 192.0.2.1 53, node 30053] -> \
                 [10.244.1.2:53*~ ready, 10.244.2.2:53~ ready]",
                "default/web:http TCP [cluster 10.96.0.7 80, external 192.0.2.1 80, node 30080] -> \
                 [10.244.1.2:8001*~ ready, 10.244.2.2:8002~ ready]",
            ]
        );
        let deleted = ", deletionTimestamp: 2026-01-01T00:00:00Z";
        node.set("pods.yaml", &pod("a", "10.244.1.2", "n1", deleted));
        assert!(node.look()[1].ends_with("[10.244.1.2:8001*~ draining]"), "{:?}", node.look());
        node.remove("pods.yaml");
        assert!(node.look()[1].ends_with("-> []"), "{:?}", node.look());
        node.remove("a.yaml");
        assert!(node.look().is_empty());
    }

    #[test]
    fn what_the_switch_does_not_serve() {
        let mut node = Node::new("n1");
        let ports = "ports: [{port: 80}]";
        node.set("a.yaml", &service("headless", &format!("clusterIP: None, {ports}")));
        node.set("b.yaml", &service("name", "type: ExternalName, externalName: example.org"));
        let other = service("other", ports).replace(
            "name: other",
            "name: other, labels: {service.kubernetes.io/service-proxy-name: x}",
        );
        node.set("c.yaml", &other);
        assert!(node.look().is_empty(), "{:?}", node.look());
    }

    #[test]
    fn hints_choose_what_is_near() {
        let mut node = Node::new("n1");
        node.set(
            "nodes.yaml",
            "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}\n---\n\
             apiVersion: v1\nkind: Node\nmetadata: {name: n2, labels: {topology.kubernetes.io/zone: a}}\n---\n\
             apiVersion: v1\nkind: Node\nmetadata: {name: n3, labels: {topology.kubernetes.io/zone: b}}\n",
        );
        let pods = pod("a", "10.244.1.2", "n1", "")
            + &pod("b", "10.244.2.2", "n2", "")
            + &pod("c", "10.244.3.2", "n3", "");
        node.set("pods.yaml", &pods);
        let near = |node: &Node| {
            let service = node.table.services().next().unwrap();
            let near = service.spec().endpoints.iter().filter(|endpoint| endpoint.is_near);
            near.map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>()
        };
        let web = |more: &str| {
            service(
                "web",
                &format!(
                    "clusterIP: 10.96.0.7, selector: {{app: web}}, ports: [{{port: 80}}]{more}"
                ),
            )
        };
        node.set("web.yaml", &web(""));
        assert_eq!(near(&node).len(), 3);
        node.set("web.yaml", &web(", trafficDistribution: PreferSameZone"));
        assert_eq!(near(&node), ["10.244.1.2", "10.244.2.2"]);
        node.set("web.yaml", &web(", trafficDistribution: PreferSameNode"));
        assert_eq!(near(&node), ["10.244.1.2"]);
        // Nobody on this node: its zone. Nobody there either: all.
        node.set("pods.yaml", &pods.replace("nodeName: n1", "nodeName: n2"));
        assert_eq!(near(&node), ["10.244.1.2", "10.244.2.2"]);
        node.set(
            "pods.yaml",
            &pods.replace("nodeName: n1", "nodeName: n3").replace("nodeName: n2", "nodeName: n3"),
        );
        assert_eq!(near(&node).len(), 3);
        // A node whose zone is not known takes part in no topology.
        node.set("pods.yaml", &pods);
        node.set("web.yaml", &web(", trafficDistribution: PreferClose"));
        node.set("nodes.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: n2}\n");
        assert_eq!(near(&node).len(), 3);
    }

    #[test]
    fn one_address_and_port_has_one_service() {
        let external = |name: &str, port: u16| {
            service(name, &format!("externalIPs: [192.0.2.1], ports: [{{port: {port}}}]"))
        };
        let mut node = Node::new("n1");
        let has = |node: &Node, name: &str| {
            node.look().iter().any(|line| {
                line.starts_with(&format!("default/{name}:")) && line.contains("external")
            })
        };
        node.set("b.yaml", &external("b", 80));
        assert!(has(&node, "b"));
        node.set("a.yaml", &external("a", 80));
        assert!(has(&node, "a") && !has(&node, "b"));
        assert_eq!(
            node.problems(),
            ["default/b: TCP port 80 of 192.0.2.1 is the Service default/a's: choose another"]
        );
        node.set("a.yaml", &external("a", 81));
        assert!(has(&node, "a") && has(&node, "b") && node.problems().is_empty());
        node.set("a.yaml", &external("a", 80));
        node.remove("a.yaml");
        assert!(has(&node, "b") && node.problems().is_empty());
        // The outcome does not depend on who came first.
        let mut other = Node::new("n1");
        for file in ["c", "b"] {
            node.set(&format!("{file}.yaml"), &external(file, 80));
        }
        for file in ["b", "c"] {
            other.set(&format!("{file}.yaml"), &external(file, 80));
        }
        assert_eq!((node.look(), node.problems()), (other.look(), other.problems()));
    }

    #[test]
    fn host_ports_are_served_beside_services() {
        let mut node = Node::new("n1");
        let here: Vec<IpAddr> = vec![[192, 0, 2, 1].into()];
        let port = |number| HostPort {
            address: None,
            protocol: Protocol::Tcp,
            port: number,
            target: ([10, 244, 1, 2].into(), 80),
        };
        let set = |node: &mut Node, name: &str, ports: Vec<HostPort>| {
            let owner = Owner { id: format!("id of {name}"), name: name.to_owned() };
            node.table = node.tables.set_host_ports(&node.state, &owner, ports)?;
            Ok::<_, HostPortError>(())
        };
        // The node's addresses may become known later.
        set(&mut node, "default/a", vec![port(8080)]).unwrap();
        assert!(node.look().is_empty());
        node.table = node.tables.update(&node.state, &BTreeSet::new(), here.clone());
        let served = "default/a:host-TCP-8080 TCP [host 192.0.2.1 8080] -> [10.244.1.2:80*~ ready]";
        assert_eq!(node.look(), [served]);

        let exposed = |node: &mut Node| node.tables.exposure().iter().collect::<Vec<_>>();
        let at = |number| Exposed::Port([192, 0, 2, 1].into(), Protocol::Tcp, number);
        assert_eq!(exposed(&mut node), [at(8080)]);
        let external = service("web", "externalIPs: [192.0.2.1], ports: [{port: 8080}]");
        let changes = node.directory.set_file("a.yaml", parse(&external));
        let delta = node.state.apply(changes);
        node.table = node.tables.update(&node.state, &delta.services, here);
        assert_eq!(
            node.problems(),
            [
                "default/web: default/web:8080: TCP port 8080 of 192.0.2.1 is default/a:host-TCP-8080's already"
            ]
        );
        set(&mut node, "default/a", vec![port(8081)]).unwrap();
        assert!(node.problems().is_empty(), "it has what became free");
        assert_eq!(
            set(&mut node, "default/b", vec![port(8080)]).unwrap_err().to_string(),
            "TCP port 8080 of 192.0.2.1 is default/web:8080's already: choose another hostPort"
        );
        set(&mut node, "default/b", vec![port(8082)]).unwrap();
        set(&mut node, "default/a", Vec::new()).unwrap();
        assert_eq!(node.look().iter().filter(|line| line.contains("host ")).count(), 1);
        assert_eq!(exposed(&mut node), [at(8080), at(8082)]);
        node.tables.exposure().take_changed();
        // What it had before a restart is kept for it until the Service lets go.
        let (owner, late) =
            (Owner { id: "late".into(), name: "default/late".into() }, vec![port(8080)]);
        node.table = node.tables.take_up_host_ports(&node.state, &owner, late.clone());
        let unserved = node.tables.unserved_host_ports("late");
        assert_eq!(unserved.len(), 1);
        assert_eq!(unserved[0].0, late[0]);
        assert!(unserved[0].1.contains("is default/web:8080's already"), "{unserved:?}");
        let changes = node.directory.remove_file("a.yaml");
        let delta = node.state.apply(changes);
        let addresses = node.tables.node_addresses().to_vec();
        node.table = node.tables.update(&node.state, &delta.services, addresses);
        assert_eq!(node.tables.unserved_host_ports("late"), []);
        assert_eq!(exposed(&mut node), [at(8080), at(8082)]);
        node.table = node.tables.take_up_host_ports(&node.state, &owner, Vec::new());
        node.take_up(Vec::new());
        assert_eq!(exposed(&mut node), []);
        assert_eq!(node.tables.exposure().take_changed(), [at(8080), at(8082)].into());
    }

    #[test]
    fn a_host_port_comes_after_the_node_ports_that_are_there() {
        let mut node = Node::new("n1");
        let here: Vec<IpAddr> = vec![[192, 0, 2, 1].into()];
        node.table = node.tables.update(&node.state, &BTreeSet::new(), here.clone());
        let port = |address: Option<IpAddr>, port| HostPort {
            address,
            protocol: Protocol::Tcp,
            port,
            target: ([10, 244, 1, 2].into(), 80),
        };
        let owner = Owner { id: "1".into(), name: "default/a".into() };
        let early = vec![port(None, 30081)];
        node.table = node.tables.set_host_ports(&node.state, &owner, early.clone()).unwrap();
        let web = service(
            "web",
            "type: NodePort, ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 81, nodePort: 30081}]",
        );
        let changes = node.directory.set_file("a.yaml", parse(&web));
        let delta = node.state.apply(changes);
        node.table = node.tables.update(&node.state, &delta.services, here);
        let check = |port: HostPort| node.tables.check_host_ports(&owner, &[port, early[0]]);
        assert_eq!(
            check(port(None, 30080)).unwrap_err().to_string(),
            "TCP port 30080 of every node is default/web:a's already: choose another hostPort"
        );
        // Node ports are not at the node's other addresses.
        assert_eq!(check(port(Some([192, 0, 2, 77].into()), 30080)), Ok(()));
        assert_eq!(check(port(None, 30082)), Ok(()), "what was there before stays");
        assert_eq!(
            check(port(Some([10, 244, 7, 7].into()), 80)).unwrap_err().to_string(),
            "hostIP 10.244.7.7 lies in 10.244.0.0/16, which is the cluster's own: give an address of the node, or none"
        );
    }

    #[test]
    fn the_name_server_keeps_its_address() {
        let mut node = Node::new("n1");
        node.set(
            "dns.yaml",
            &service("kube-dns", "clusterIP: 10.96.0.10, ports: [{port: 53, protocol: UDP}]"),
        );
        assert!(node.look().is_empty());
        assert_eq!(
            node.problems(),
            [
                "default/kube-dns: at 10.96.0.10 each node's own name server answers: endpoints are not asked (see \
                 [dns])"
            ]
        );
    }

    #[test]
    fn external_addresses_cannot_be_the_clusters_own() {
        let mut node = Node::new("n1");
        node.set("b.yaml", &service("b", "clusterIP: 10.96.0.7, ports: [{port: 80}]"));
        node.set(
            "a.yaml",
            &service("a", "externalIPs: [10.96.0.7, 10.244.1.1], ports: [{port: 80}]"),
        );
        assert!(node.look().iter().all(|line| !line.contains("external")), "{:?}", node.look());
        assert_eq!(
            node.problems(),
            [
                "default/a: spec.externalIPs: 10.96.0.7 lies in 10.96.0.0/12, which is the cluster's own: choose an \
                 address outside of it",
                "default/a: spec.externalIPs: 10.244.1.1 lies in 10.244.0.0/16, which is the cluster's own: choose an \
                 address outside of it",
            ]
        );
        assert!(
            node.look()
                .iter()
                .any(|line| line.starts_with("default/b:80 TCP [cluster 10.96.0.7 80]"))
        );
    }
}
