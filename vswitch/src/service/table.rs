//! All Services of a node, and how the table of them is put together.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnetwork::IpNetwork;

use crate::service::filter::AddressFilter;
use crate::service::pool::{Pick, Pool};
use crate::service::ranges::Ranges;
use crate::service::shared::{Names, Slots};
use crate::service::{
    Algorithm, Endpoint, EndpointState, Family, Frontend, FrontendKind, Protocol, ServicePort,
    stable_hash,
};

/// All Services of a node: immutable, and shared between snapshots of [`crate::tables::Tables`].
#[derive(Debug, Clone)]
pub struct ServiceTable {
    /// Changes whenever anything in the table does.
    generation: u64,
    /// Where cluster IPs are taken from.
    ranges: Ranges,
    /// Addresses in the ranges that the node itself answers.
    answered: Vec<IpAddr>,
    /// Addresses of this node that have NodePorts, beside its underlay address.
    node_addresses: Vec<IpAddr>,
    services: Slots,
    free: Vec<u32>,
    by_name: Names,
    frontends: HashMap<Key, Place, RandomState>,
    node_ports: HashMap<(Family, Protocol, u16), u32, RandomState>,
    /// How many frontends are this node's alone.
    host_ports: u32,
    /// Addresses that are Services' alone, with the number of frontends there.
    owned: HashMap<IpAddr, u32, RandomState>,
    filter: AddressFilter,
}

/// An address and port that belongs to a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    address: IpAddr,
    port: u16,
    protocol: Protocol,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    service: u32,
    kind: FrontendKind,
}

/// A [`ServicePort`], made ready to choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    spec: ServicePort,
    /// Names the Service in tables that outlive this one.
    id: u64,
    /// For traffic policy `Cluster`.
    cluster: Pool,
    /// For traffic policy `Local`.
    local: Pool,
}

/// Why a Service cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Another Service has the same address and port.
    #[error("{name}: {protocol} port {port} of {place} is {holder}'s already")]
    Taken {
        /// The Service.
        name: String,
        /// The protocol.
        protocol: Protocol,
        /// The port.
        port: u16,
        /// The address, or "every node".
        place: String,
        /// Who has it.
        holder: String,
    },
    /// An address is of the other family.
    #[error("{name}: {address} is no {family} address")]
    WrongFamily {
        /// The Service.
        name: String,
        /// The address.
        address: IpAddr,
        /// The Service's family.
        family: Family,
    },
    /// An address can be no Service's or endpoint's.
    #[error("{name}: {address} cannot be the address of a Service or an endpoint")]
    ImpossibleAddress {
        /// The Service.
        name: String,
        /// The address.
        address: IpAddr,
    },
    /// A port is zero.
    #[error("{name}: port 0 is no port")]
    PortZero {
        /// The Service.
        name: String,
    },
    /// Too many endpoints.
    #[error("{name}: {count} endpoints are more than {ENDPOINTS_MAX}")]
    TooManyEndpoints {
        /// The Service.
        name: String,
        /// How many there are.
        count: usize,
    },
    /// Too many Services.
    #[error("{name}: there are {SERVICES_MAX} ports of Services already")]
    TooManyServices {
        /// The Service.
        name: String,
    },
}

/// Most endpoints of one Service.
const ENDPOINTS_MAX: usize = 65_534;

/// Most ports of Services, both families counted.
const SERVICES_MAX: u32 = 1 << 20;

impl Service {
    fn new(mut spec: ServicePort) -> Self {
        spec.endpoints.sort_unstable_by_key(|endpoint| (endpoint.address, endpoint.port));
        spec.endpoints.dedup_by_key(|endpoint| (endpoint.address, endpoint.port));
        let all = &spec.endpoints;
        let cluster = first_not_empty(
            all,
            [
                &|endpoint| endpoint.state == EndpointState::Ready && endpoint.is_near,
                &|endpoint| endpoint.state == EndpointState::Ready,
                &|endpoint| endpoint.state == EndpointState::Draining,
            ],
        );
        let local = first_not_empty(
            all,
            [
                &|endpoint| endpoint.state == EndpointState::Ready && endpoint.is_local,
                &|endpoint| endpoint.state == EndpointState::Draining && endpoint.is_local,
                &|_| false,
            ],
        );
        let needs_maglev = spec.algorithm == Algorithm::Maglev;
        let finish = |pool: Pool| if needs_maglev { pool.with_maglev(all) } else { pool };
        let (cluster, local) = (finish(cluster), finish(local));
        let name = spec.name.bytes().map(u64::from).collect::<Vec<_>>();
        // 0 is no Service.
        let id = stable_hash(u64::from(spec.family == Family::V6), &name).max(1);
        Self { spec, id, cluster, local }
    }

    /// `namespace/name:port`.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What the Service was made from, its endpoints sorted.
    pub fn spec(&self) -> &ServicePort {
        &self.spec
    }

    /// A number that stays the Service's for its life, across tables.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The endpoints that serve under traffic policy `Cluster`.
    pub fn cluster(&self) -> &Pool {
        &self.cluster
    }

    /// The endpoints that serve under traffic policy `Local`.
    pub fn local(&self) -> &Pool {
        &self.local
    }

    /// The endpoints of `pool`, which is one of this Service's.
    pub fn members<'s>(&'s self, pool: &'s Pool) -> impl Iterator<Item = &'s Endpoint> {
        pool.members().filter_map(|ix| self.spec.endpoints.get(ix))
    }

    /// The endpoint with this address and port, whatever its state.
    pub fn endpoint(&self, address: IpAddr, port: u16) -> Option<&Endpoint> {
        self.spec.endpoints.get(self.endpoint_ix(address, port)?)
    }

    /// Whether `pool` has the endpoint with this address and port.
    pub fn is_member(&self, pool: &Pool, address: IpAddr, port: u16) -> bool {
        self.endpoint_ix(address, port).is_some_and(|ix| pool.contains(ix))
    }

    /// Chooses an endpoint of `pool`. `connections` says how many an endpoint has.
    pub fn choose(
        &self,
        pool: &Pool,
        pick: &Pick,
        connections: impl Fn(&Endpoint) -> u32,
    ) -> Option<&Endpoint> {
        let endpoints = &self.spec.endpoints;
        let of = |ix: usize| endpoints.get(ix).map_or(0, &connections);
        endpoints.get(pool.choose(self.spec.algorithm, pick, of)?)
    }

    /// Whether anybody serves at all.
    pub fn has_endpoint(&self) -> bool {
        !self.cluster.is_empty()
    }

    /// Whether `source` may send to the load balancer's address `address`.
    pub(super) fn admits(&self, address: IpAddr, source: IpAddr) -> bool {
        let mut ranges = self.spec.frontends.iter().filter_map(|frontend| match frontend {
            Frontend::LoadBalancer { address: own, source_ranges, .. } if *own == address => {
                Some(source_ranges)
            }
            Frontend::LoadBalancer { .. }
            | Frontend::ClusterIp { .. }
            | Frontend::ExternalIp { .. }
            | Frontend::NodePort { .. }
            | Frontend::HostPort { .. } => None,
        });
        ranges.all(|ranges| ranges.is_empty() || ranges.iter().any(|range| range.contains(source)))
    }

    /// Bytes of memory that the Service takes, for its name, its endpoints and its tables.
    pub fn size(&self) -> usize {
        size_of::<Self>()
            + self.spec.name.len()
            + self.spec.endpoints.len() * size_of::<Endpoint>()
            + self.spec.frontends.len() * size_of::<Frontend>()
            + self.cluster.size()
            + self.local.size()
    }

    fn endpoint_ix(&self, address: IpAddr, port: u16) -> Option<usize> {
        let endpoints = &self.spec.endpoints;
        endpoints
            .binary_search_by_key(&(address, port), |endpoint| (endpoint.address, endpoint.port))
            .ok()
    }
}

/// The pool of the first kind of endpoints of which there is any.
fn first_not_empty(endpoints: &[Endpoint], kinds: [&dyn Fn(&Endpoint) -> bool; 3]) -> Pool {
    let found = kinds.iter().find(|is_member| endpoints.iter().any(**is_member));
    Pool::new(endpoints, |endpoint| found.is_some_and(|is_member| is_member(endpoint)))
}

impl ServiceTable {
    /// A table without Services.
    pub fn empty() -> Self {
        ServiceTableBuilder::new(Vec::new()).build(0)
    }

    /// Changes whenever anything in the table does.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All Services, in no order that means anything.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().map(Arc::as_ref)
    }

    /// The Service of this name and family.
    pub fn service(&self, name: &str, family: Family) -> Option<&Service> {
        self.at(self.by_name.get(name, family)?)
    }

    /// Begins a table that differs a little from this one: what is not changed is shared.
    pub fn edit(&self) -> ServiceTableBuilder {
        ServiceTableBuilder { table: self.clone() }
    }

    /// The addresses that have NodePorts, beside the underlay addresses of nodes.
    pub(crate) fn node_addresses(&self) -> &[IpAddr] {
        &self.node_addresses
    }

    /// Whether `address` is one that this node answers, beside those that lead to it.
    pub(crate) fn is_node_own(&self, address: IpAddr) -> bool {
        self.node_addresses.contains(&address) || self.answered.contains(&address)
    }

    pub(crate) fn has_node_ports(&self) -> bool {
        !self.node_ports.is_empty()
    }

    /// Whether any frontend is this node's alone, so that what other nodes send may be for it.
    #[inline]
    pub(crate) fn has_host_ports(&self) -> bool {
        self.host_ports > 0
    }

    pub(crate) fn filter(&self) -> &AddressFilter {
        &self.filter
    }

    /// Whether cluster IPs are taken from anywhere.
    pub(crate) fn has_ranges(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Whether cluster IPs are taken from where `address` is, and the node does not answer there itself.
    #[inline]
    pub(crate) fn is_in_range(&self, address: IpAddr) -> bool {
        self.ranges.contain(address) && !self.answered.contains(&address)
    }

    /// Whether all of `address` is Services'.
    pub(super) fn owns(&self, address: IpAddr) -> bool {
        self.owned.contains_key(&address)
    }

    /// Who has this port of this address.
    pub(crate) fn frontend(
        &self,
        address: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> Option<(&Service, FrontendKind)> {
        let place = self.frontends.get(&Key { address, port, protocol })?;
        Some((self.at(place.service)?, place.kind))
    }

    /// Who has this port of every node.
    pub fn node_port(&self, family: Family, port: u16, protocol: Protocol) -> Option<&Service> {
        self.at(*self.node_ports.get(&(family, protocol, port))?)
    }

    fn at(&self, slot: u32) -> Option<&Service> {
        self.services.get(usize::try_from(slot).ok()?).map(Arc::as_ref)
    }
}

/// Puts a [`ServiceTable`] together.
#[derive(Debug)]
pub struct ServiceTableBuilder {
    table: ServiceTable,
}

impl ServiceTableBuilder {
    /// Begins with no Service. `ranges` is where cluster IPs are taken from: what is sent to an address there
    /// that no Service has, ends at the switch.
    pub fn new(ranges: Vec<IpNetwork>) -> Self {
        Self {
            table: ServiceTable {
                generation: 0,
                ranges: Ranges::new(&ranges),
                answered: Vec::new(),
                node_addresses: Vec::new(),
                services: Slots::default(),
                free: Vec::new(),
                by_name: Names::new(),
                frontends: HashMap::default(),
                node_ports: HashMap::default(),
                host_ports: 0,
                owned: HashMap::default(),
                filter: AddressFilter::empty(),
            },
        }
    }

    /// Where cluster IPs are taken from.
    pub fn ranges(&mut self, ranges: Vec<IpNetwork>) -> &mut Self {
        self.table.ranges = Ranges::new(&ranges);
        self
    }

    /// The addresses in the ranges that the node itself answers, such as its name server's: what is sent
    /// there goes to the node.
    pub fn answered(&mut self, addresses: Vec<IpAddr>) -> &mut Self {
        self.table.answered = addresses;
        self
    }

    /// The addresses of this node that have NodePorts, beside its underlay address.
    pub fn node_addresses(&mut self, addresses: Vec<IpAddr>) -> &mut Self {
        self.table.node_addresses = addresses;
        self
    }

    /// Adds a Service, or replaces the one of the same name and family.
    ///
    /// # Errors
    /// When it cannot be served; the table is then without a Service of this name.
    pub fn set(&mut self, spec: ServicePort) -> Result<(), ServiceError> {
        self.remove(&spec.name, spec.family);
        self.check(&spec)?;
        let service = Arc::new(Service::new(spec));
        let table = &mut self.table;
        let slot = match table.free.pop() {
            Some(slot) => slot,
            None => {
                let count = u32::try_from(table.services.len()).unwrap_or(u32::MAX);
                if count >= SERVICES_MAX {
                    return Err(ServiceError::TooManyServices { name: service.spec.name.clone() });
                }
                table.services.push();
                count
            }
        };
        for frontend in &service.spec.frontends {
            table.claim(&service.spec, frontend, slot);
        }
        table.by_name.insert(Arc::from(service.name()), service.spec.family, slot);
        table.set_at(slot, Some(service));
        Ok(())
    }

    /// Removes a Service. Returns whether there was one of this name and family.
    pub fn remove(&mut self, name: &str, family: Family) -> bool {
        let table = &mut self.table;
        let Some(slot) = table.by_name.remove(name, family) else {
            return false;
        };
        if let Some(service) = table.set_at(slot, None) {
            for frontend in &service.spec.frontends {
                table.release(&service.spec, frontend);
            }
        }
        table.free.push(slot);
        true
    }

    /// Finishes the table. `generation` must differ from that of every table before it that was not the same.
    pub fn build(mut self, generation: u64) -> ServiceTable {
        let table = &mut self.table;
        table.generation = generation;
        let mut filter = AddressFilter::with_room(table.frontends.len());
        for key in table.frontends.keys() {
            filter.insert(key.address);
        }
        table.filter = filter;
        self.table
    }

    fn check(&self, spec: &ServicePort) -> Result<(), ServiceError> {
        let name = || spec.name.clone();
        if spec.endpoints.len() > ENDPOINTS_MAX {
            return Err(ServiceError::TooManyEndpoints {
                name: name(),
                count: spec.endpoints.len(),
            });
        }
        let fronts = spec.frontends.iter().map(Frontend::place);
        let ends = spec.endpoints.iter().map(|endpoint| (Some(endpoint.address), endpoint.port));
        for (address, port) in fronts.chain(ends) {
            if port == 0 {
                return Err(ServiceError::PortZero { name: name() });
            }
            let Some(address) = address else { continue };
            if Family::of(address) != spec.family {
                let family = spec.family;
                return Err(ServiceError::WrongFamily { name: name(), address, family });
            }
            if is_impossible(address) {
                return Err(ServiceError::ImpossibleAddress { name: name(), address });
            }
        }
        for frontend in &spec.frontends {
            let (address, port) = frontend.place();
            let holder = match address {
                Some(address) => self.table.frontend(address, port, spec.protocol).map(|(s, _)| s),
                None => self.table.node_port(spec.family, port, spec.protocol),
            };
            if let Some(holder) = holder {
                return Err(ServiceError::Taken {
                    name: name(),
                    protocol: spec.protocol,
                    port,
                    place: address
                        .map_or_else(|| "every node".to_owned(), |address| address.to_string()),
                    holder: holder.name().to_owned(),
                });
            }
        }
        Ok(())
    }
}

impl ServiceTable {
    fn set_at(&mut self, slot: u32, service: Option<Arc<Service>>) -> Option<Arc<Service>> {
        self.services.replace(usize::try_from(slot).ok()?, service)
    }

    fn claim(&mut self, spec: &ServicePort, frontend: &Frontend, slot: u32) {
        let (address, port) = frontend.place();
        let protocol = spec.protocol;
        match address {
            None => {
                self.node_ports.insert((spec.family, protocol, port), slot);
            }
            Some(address) => {
                let kind = frontend.kind();
                let key = Key { address, port, protocol };
                let is_new = self.frontends.insert(key, Place { service: slot, kind }).is_none();
                if is_new && kind.owns_address() {
                    *self.owned.entry(address).or_default() += 1;
                }
                self.host_ports += u32::from(is_new && kind == FrontendKind::HostPort);
            }
        }
    }

    fn release(&mut self, spec: &ServicePort, frontend: &Frontend) {
        let (address, port) = frontend.place();
        let protocol = spec.protocol;
        match address {
            None => {
                self.node_ports.remove(&(spec.family, protocol, port));
            }
            Some(address) => {
                let place = self.frontends.remove(&Key { address, port, protocol });
                let is_host_port = place.is_some_and(|place| place.kind == FrontendKind::HostPort);
                self.host_ports -= u32::from(is_host_port);
                if place.is_some_and(|place| place.kind.owns_address())
                    && let Some(count) = self.owned.get_mut(&address)
                {
                    *count -= 1;
                    if *count == 0 {
                        self.owned.remove(&address);
                    }
                }
            }
        }
    }
}

impl Frontend {
    /// Address and port; no address for every node's.
    pub fn place(&self) -> (Option<IpAddr>, u16) {
        match self {
            Self::ClusterIp { address, port }
            | Self::ExternalIp { address, port }
            | Self::HostPort { address, port }
            | Self::LoadBalancer { address, port, .. } => (Some(*address), *port),
            Self::NodePort { port } => (None, *port),
        }
    }

    /// What kind of frontend this is.
    pub fn kind(&self) -> FrontendKind {
        match self {
            Self::ClusterIp { .. } => FrontendKind::ClusterIp,
            Self::ExternalIp { .. } => FrontendKind::ExternalIp,
            Self::LoadBalancer { .. } => FrontendKind::LoadBalancer,
            Self::NodePort { .. } => FrontendKind::NodePort,
            Self::HostPort { .. } => FrontendKind::HostPort,
        }
    }
}

impl FrontendKind {
    /// Whether all ports of the address are Services', used or not. An external IP may be a node's own address.
    fn owns_address(self) -> bool {
        match self {
            Self::ClusterIp | Self::LoadBalancer => true,
            Self::ExternalIp | Self::NodePort | Self::HostPort => false,
        }
    }
}

/// What Kubernetes refuses as an endpoint's address (`EndpointSlice`: not loopback, not link-local), and what
/// names no host.
fn is_impossible(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    is_link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast()
}
