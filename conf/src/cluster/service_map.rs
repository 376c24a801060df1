//! Which addresses and ports each Service has: those that it asks for, and those that it is given.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::endpoints::ServiceEndpoints;
use super::object::{ClusterIp, FamilyPolicy, IpFamily, ObjectName, Service, ServiceType};
use super::pool::{Outcome, Pool, Space};

/// Who decides what the objects leave open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Authority {
    /// Weft: it gives addresses and ports to Services, and computes their endpoints.
    #[default]
    Weft,
    /// The Kubernetes control plane: objects are complete, and nothing is added to them.
    Kubernetes,
}

/// Out of what Services get addresses and ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Who decides.
    pub authority: Authority,
    /// At most one range of each family; the first is that of Services that do not say.
    pub ranges: Vec<IpNetwork>,
    /// Addresses in the ranges that are given only to Services which ask for them.
    pub reserved: Vec<IpAddr>,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
    /// Addresses for Services of type LoadBalancer.
    pub load_balancer_pool: Vec<IpNetwork>,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        let range = IpNetwork::V4(
            ipnetwork::Ipv4Network::new([10, 96, 0, 0].into(), 12).expect("12 is a prefix length"),
        );
        Self {
            authority: Authority::Weft,
            ranges: vec![range],
            reserved: vec![IpAddr::from([10, 96, 0, 10])],
            node_ports: 30_000..=32_767,
            load_balancer_pool: Vec::new(),
        }
    }
}

impl ServiceConfig {
    fn range(&self, family: IpFamily) -> Option<&IpNetwork> {
        self.ranges.iter().find(|range| IpFamily::of(range.ip()) == family)
    }
}

/// A Service with everything that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// What is declared.
    pub service: Arc<Service>,
    /// Why it is not served at all, neither by the switch nor by the DNS.
    pub refused: Option<ServiceProblem>,
    /// What else it should have, and has not.
    pub problems: Box<[ServiceProblem]>,
    /// Its families, the primary one first.
    pub families: Box<[IpFamily]>,
    /// Its cluster-wide addresses, the primary one first. None when it is headless, a name for a name, or
    /// refused.
    pub cluster_ips: Box<[IpAddr]>,
    /// The node port of each of its ports.
    pub node_ports: Box<[Option<u16>]>,
    /// Where its health is asked for.
    pub health_check_node_port: Option<u16>,
    /// Its addresses for the world.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Its endpoints.
    pub endpoints: Arc<ServiceEndpoints>,
}

/// Why a Service has not got what it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceProblem {
    /// The field that asks for it.
    pub field: String,
    /// Why not, and what to do.
    pub reason: String,
}

impl ServiceProblem {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// A Service's addresses and ports, without its endpoints.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    pub(super) refused: Option<ServiceProblem>,
    pub(super) problems: Vec<ServiceProblem>,
    pub(super) families: Vec<IpFamily>,
    pub(super) cluster_ips: Vec<IpAddr>,
    pub(super) node_ports: Vec<Option<u16>>,
    pub(super) health_check_node_port: Option<u16>,
    pub(super) load_balancer_ips: Vec<IpAddr>,
}

impl Addresses {
    /// The first reason is told.
    fn refuse(&mut self, field: impl Into<String>, reason: String) {
        self.refused.get_or_insert_with(|| ServiceProblem::new(field, reason));
    }
}

/// One claim on a pool of node ports: the Service, and the index of the port that it is for.
type PortClaim = (ObjectName, u16);

/// All pools, and who has what of them.
#[derive(Debug, Clone)]
pub(super) struct Allocations {
    config: ServiceConfig,
    cluster: [Option<AddressPool>; 2],
    load_balancer: [Option<AddressPool>; 2],
    node_ports: Pool<PortClaim>,
}

impl Allocations {
    pub(super) fn new(config: ServiceConfig) -> Self {
        let families = [IpFamily::V4, IpFamily::V6];
        let cluster = families.map(|family| {
            let range = *config.range(family)?;
            AddressPool::new(vec![range], &config.reserved, Bands::StaticFirst)
        });
        let load_balancer = families.map(|family| {
            let pool = config.load_balancer_pool.iter().copied();
            let pool: Vec<_> = pool.filter(|range| IpFamily::of(range.ip()) == family).collect();
            AddressPool::new(pool, &[], Bands::One)
        });
        let len = u64::from(*config.node_ports.end()) + 1 - u64::from(*config.node_ports.start());
        let low = low_numbers(len, 32, 128);
        Self { cluster, load_balancer, node_ports: Pool::new(Space::new(len, low, [])), config }
    }

    pub(super) fn config(&self) -> &ServiceConfig {
        &self.config
    }

    /// Takes up what a Service asks for now. Returns the Services that may have got something else by it, this
    /// one included.
    pub(super) fn update(
        &mut self,
        id: &ObjectName,
        service: Option<&Service>,
    ) -> BTreeSet<ObjectName> {
        if self.config.authority == Authority::Weft {
            self.ask_for_addresses(id, service);
            self.ask_for_node_ports(id, service);
        }
        let mut changed = BTreeSet::from([id.clone()]);
        for pool in self.cluster.iter_mut().chain(&mut self.load_balancer).flatten() {
            changed.extend(pool.pool.take_changed());
        }
        changed.extend(self.node_ports.take_changed().into_iter().map(|(id, _)| id));
        changed
    }

    fn ask_for_addresses(&mut self, id: &ObjectName, service: Option<&Service>) {
        let families = service.map(|service| self.families(service));
        let families = families.and_then(Result::ok).unwrap_or_default();
        for (ix, family) in [IpFamily::V4, IpFamily::V6].into_iter().enumerate() {
            let of_family = |address: &&IpAddr| IpFamily::of(**address) == family;
            if let Some(pool) = &mut self.cluster[ix] {
                let want =
                    service.filter(|_| families.contains(&family)).and_then(|service| {
                        match (service.kind, &service.cluster_ip) {
                            (ServiceType::ExternalName, _) | (_, ClusterIp::Headless) => None,
                            (_, ClusterIp::Auto) => Some(Want::Any(0)),
                            (_, ClusterIp::Given(given)) => match given.iter().find(of_family) {
                                Some(address) => pool.number(*address).map(Want::This),
                                None => Some(Want::Any(0)),
                            },
                        }
                    });
                pool.want(id, want);
            }
            if let Some(pool) = &mut self.load_balancer[ix] {
                let wants = |service: &&Service| {
                    service.wants_load_balancer() && families.contains(&family)
                };
                let want = service.filter(wants).and_then(|service| {
                    let LoadBalancerWants { given, requested } = lb_wants(service, family);
                    match given.or(requested) {
                        Some(address) => pool.number(address).map(Want::This),
                        None => Some(Want::Any(0)),
                    }
                });
                pool.want(id, want);
            }
        }
    }

    fn ask_for_node_ports(&mut self, id: &ObjectName, service: Option<&Service>) {
        let mut wants: BTreeMap<u16, Want> = BTreeMap::new();
        if let Some(service) = service {
            for (ix, port) in service.ports.iter().enumerate() {
                let want = match given_node_port(service, ix) {
                    Some(number) => self.node_port_number(number).map(Want::This),
                    None if service.wants_node_ports() => Some(Want::Any(port.port)),
                    None => None,
                };
                wants.extend(want.map(|want| (claim_of(service, ix), want)));
            }
            if service.wants_health_check() {
                let want = match service.health_check_node_port {
                    Some(number) => self.node_port_number(number).map(Want::This),
                    None => Some(Want::Any(0)),
                };
                wants.extend(want.map(|want| (HEALTH_CHECK, want)));
            }
        }
        for claim in self.node_ports.claims_from((id.clone(), 0), |claim| claim.0 == *id) {
            if !wants.contains_key(&claim.1) {
                self.node_ports.release(&claim);
            }
        }
        for (claim, want) in wants {
            let claim = (id.clone(), claim);
            match want {
                Want::This(number) => self.node_ports.claim(claim, number),
                Want::Any(port) => self.node_ports.request(claim, &format!("{id}:{port}")),
            }
        }
    }

    /// What a Service has now.
    pub(super) fn addresses(&self, service: &Service) -> Addresses {
        let mut found = Addresses {
            node_ports: service.ports.iter().map(|port| port.node_port).collect(),
            ..Addresses::default()
        };
        match self.families(service) {
            Ok(families) => found.families = families,
            Err(problem) => {
                found.refused = Some(problem);
                return found;
            }
        }
        match self.config.authority {
            Authority::Weft => self.allocated(service, &mut found),
            Authority::Kubernetes => declared(service, &mut found),
        }
        if found.refused.is_some() {
            found.cluster_ips.clear();
            found.load_balancer_ips.clear();
            found.node_ports = vec![None; service.ports.len()];
            found.health_check_node_port = None;
        }
        found
    }

    fn allocated(&self, service: &Service, found: &mut Addresses) {
        for family in found.families.clone() {
            self.cluster_address(service, family, found);
            if service.wants_load_balancer() {
                self.load_balancer_address(service, family, found);
            }
        }
        for ix in 0..service.ports.len() {
            let given = given_node_port(service, ix);
            if given.is_none() && !service.wants_node_ports() {
                continue;
            }
            let field = format!("spec.ports[{ix}].nodePort");
            found.node_ports[ix] =
                self.node_port(service, claim_of(service, ix), given, field, found);
        }
        if service.wants_health_check() {
            let field = "spec.healthCheckNodePort".to_owned();
            let given = service.health_check_node_port;
            found.health_check_node_port =
                self.node_port(service, HEALTH_CHECK, given, field, found);
        }
    }

    fn cluster_address(&self, service: &Service, family: IpFamily, found: &mut Addresses) {
        if service.kind == ServiceType::ExternalName || service.cluster_ip == ClusterIp::Headless {
            return;
        }
        let given = match &service.cluster_ip {
            ClusterIp::Given(given) => given.iter().position(|ip| IpFamily::of(*ip) == family),
            ClusterIp::Auto | ClusterIp::Headless => None,
        };
        let field = match given {
            None | Some(0) => "spec.clusterIP".to_owned(),
            Some(ix) => format!("spec.clusterIPs[{ix}]"),
        };
        let Some(pool) = &self.cluster[family as usize] else { return };
        match pool.outcome(&service.id) {
            Some(Outcome::Has(number)) => found.cluster_ips.extend(pool.address(number)),
            Some(Outcome::Taken { by }) => {
                let reason =
                    format!("the Service {by} has this address: give each its own, or none");
                found.refuse(field, reason);
            }
            Some(Outcome::Exhausted) => {
                let reason =
                    format!("no address of {} is free: widen [services] ranges", pool.text());
                found.refuse(field, reason);
            }
            None => {
                let reason = format!(
                    "is not in the range {} of Services: choose another, or leave it out to be given one",
                    pool.text()
                );
                found.refuse(field, reason);
            }
        }
    }

    fn load_balancer_address(&self, service: &Service, family: IpFamily, found: &mut Addresses) {
        let LoadBalancerWants { given, requested } = lb_wants(service, family);
        let pool = self.load_balancer[family as usize].as_ref();
        let number = given.or(requested).and_then(|address| pool?.number(address));
        if let Some(given) = given
            && number.is_none()
        {
            // Somebody else looks after it.
            found.load_balancer_ips.push(given);
            return;
        }
        let field = "spec.loadBalancerIP";
        let Some(pool) = pool else {
            if requested.is_some() {
                let reason = "there is no [services] load_balancer_pool that it could be in";
                found.problems.push(ServiceProblem::new(field, reason));
            }
            return;
        };
        let problem = match pool.outcome(&service.id) {
            Some(Outcome::Has(number)) => {
                found.load_balancer_ips.extend(pool.address(number));
                return;
            }
            Some(Outcome::Taken { by }) => {
                ServiceProblem::new(field, format!("the Service {by} has this address"))
            }
            Some(Outcome::Exhausted) => {
                let reason = format!("no address of the pool {} is free: widen it", pool.text());
                ServiceProblem::new("spec.type", reason)
            }
            None => ServiceProblem::new(field, format!("is not in the pool {}", pool.text())),
        };
        found.problems.push(problem);
    }

    fn node_port(
        &self,
        service: &Service,
        claim: u16,
        given: Option<u16>,
        field: String,
        found: &mut Addresses,
    ) -> Option<u16> {
        let (first, last) = (self.config.node_ports.start(), self.config.node_ports.end());
        if let Some(given) = given
            && self.node_port_number(given).is_none()
        {
            let reason = format!("is not in the range {first}-{last} of node ports");
            found.refuse(field, reason);
            return None;
        }
        match self.node_ports.outcome(&(service.id.clone(), claim))? {
            Outcome::Has(number) => u16::try_from(u64::from(*first) + number).ok(),
            Outcome::Taken { by: (by, _) } if by == service.id => given,
            Outcome::Taken { by: (by, _) } => {
                let reason = format!("the Service {by} has this port: give each its own, or none");
                found.refuse(field, reason);
                None
            }
            Outcome::Exhausted => {
                let reason =
                    format!("no port of {first}-{last} is free: widen [services] node_ports");
                found.problems.push(ServiceProblem::new(field, reason));
                None
            }
        }
    }

    fn node_port_number(&self, port: u16) -> Option<u64> {
        let offset =
            self.config.node_ports.contains(&port).then(|| port - self.config.node_ports.start());
        offset.map(u64::from)
    }

    /// Which families a Service has, as the API server decides it.
    fn families(&self, service: &Service) -> Result<Vec<IpFamily>, ServiceProblem> {
        if service.kind == ServiceType::ExternalName {
            return Ok(Vec::new());
        }
        let mut families: Vec<IpFamily> = match &service.cluster_ip {
            ClusterIp::Given(given) => given.iter().map(|ip| IpFamily::of(*ip)).collect(),
            ClusterIp::Auto | ClusterIp::Headless => Vec::new(),
        };
        for family in &service.families {
            if !families.contains(family) {
                families.push(*family);
            }
        }
        let cluster = self.config.ranges.iter().map(|range| IpFamily::of(range.ip()));
        let cluster: Vec<IpFamily> = cluster.collect();
        if self.config.authority == Authority::Kubernetes {
            // The API server has decided.
            let primary = cluster.first().copied().unwrap_or(IpFamily::V4);
            return Ok(if families.is_empty() { vec![primary] } else { families });
        }
        let Some(primary) = cluster.first().copied() else {
            return Err(ServiceProblem::new("spec.clusterIP", "there are no [services] ranges"));
        };
        if families.is_empty() {
            families.push(primary);
        }
        let second = families[0].other();
        // Nobody looks for the pods of such a Service, so the cluster's families do not matter.
        let is_free = service.is_headless() && service.selector.is_empty();
        if let Some(ix) = families.iter().position(|family| !cluster.contains(family))
            && !is_free
        {
            let reason = format!(
                "there is no {} range of Services: add one to [services] ranges",
                families[ix]
            );
            let field = if service.families.is_empty() {
                "spec.clusterIP".to_owned()
            } else {
                format!("spec.ipFamilies[{}]", ix.min(service.families.len() - 1))
            };
            return Err(ServiceProblem::new(field, reason));
        }
        match service.family_policy {
            FamilyPolicy::SingleStack => families.truncate(1),
            FamilyPolicy::PreferDualStack if families.len() < 2 => {
                if cluster.contains(&second) || is_free {
                    families.push(second);
                }
            }
            FamilyPolicy::RequireDualStack if families.len() < 2 => {
                if !cluster.contains(&second) && !is_free {
                    let reason = format!(
                        "there is no {second} range of Services: add one to [services] ranges, or prefer dual \
                         stack instead of requiring it"
                    );
                    return Err(ServiceProblem::new("spec.ipFamilyPolicy", reason));
                }
                families.push(second);
            }
            FamilyPolicy::PreferDualStack | FamilyPolicy::RequireDualStack => {}
        }
        Ok(families)
    }

    /// How many addresses and node ports are in use.
    pub(super) fn used(&self) -> Used {
        let sum = |pools: &[Option<AddressPool>; 2]| {
            pools.iter().flatten().map(|pool| pool.pool.used()).sum()
        };
        Used {
            cluster_ips: sum(&self.cluster),
            load_balancer_ips: sum(&self.load_balancer),
            node_ports: self.node_ports.used(),
        }
    }
}

/// How much of the pools is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Cluster-wide addresses.
    pub cluster_ips: usize,
    /// Addresses for the world.
    pub load_balancer_ips: usize,
    /// Node ports.
    pub node_ports: usize,
}

/// What a Service says itself, where the API server has completed it.
fn declared(service: &Service, found: &mut Addresses) {
    if let ClusterIp::Given(given) = &service.cluster_ip
        && service.kind != ServiceType::ExternalName
    {
        found.cluster_ips = given.to_vec();
    }
    if service.kind == ServiceType::LoadBalancer {
        found.load_balancer_ips = service.load_balancer.ingress.to_vec();
    }
    if service.wants_health_check() {
        found.health_check_node_port = service.health_check_node_port;
    }
}

/// The node port that is given for a port, or for another protocol of the same number.
fn given_node_port(service: &Service, ix: usize) -> Option<u16> {
    let port = service.ports.get(ix)?;
    let same = service.ports.iter().filter(|other| other.port == port.port);
    port.node_port.or_else(|| same.into_iter().find_map(|other| other.node_port))
}

/// Which claim stands for a port: several with one node port, or one number, have one.
fn claim_of(service: &Service, ix: usize) -> u16 {
    let claim = match (given_node_port(service, ix), service.ports.get(ix)) {
        (Some(given), _) => service.ports.iter().position(|other| other.node_port == Some(given)),
        (None, Some(port)) => service.ports.iter().position(|other| other.port == port.port),
        (None, None) => None,
    };
    claim.and_then(|ix| u16::try_from(ix).ok()).unwrap_or(0)
}

/// Stands for the health check's port.
const HEALTH_CHECK: u16 = u16::MAX;

struct LoadBalancerWants {
    /// Given from outside.
    given: Option<IpAddr>,
    /// Asked for.
    requested: Option<IpAddr>,
}

fn lb_wants(service: &Service, family: IpFamily) -> LoadBalancerWants {
    let of_family = |address: &&IpAddr| IpFamily::of(**address) == family;
    LoadBalancerWants {
        given: service.load_balancer.ingress.iter().find(of_family).copied(),
        requested: service.load_balancer.requested.iter().find(of_family).copied(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    This(u64),
    /// Whichever comes; for a node port, of this port of the Service.
    Any(u16),
}

/// Whether the lowest addresses are left to people.
#[derive(Clone, Copy)]
enum Bands {
    StaticFirst,
    One,
}

/// Addresses of one family.
#[derive(Debug, Clone)]
struct AddressPool {
    /// One after the other.
    ranges: Vec<IpNetwork>,
    pool: Pool<ObjectName>,
}

impl AddressPool {
    /// `None` without an address.
    fn new(ranges: Vec<IpNetwork>, reserved: &[IpAddr], bands: Bands) -> Option<Self> {
        let len = ranges.iter().map(len_of).fold(0, u64::saturating_add);
        if len == 0 {
            return None;
        }
        let low = match bands {
            Bands::StaticFirst => low_numbers(len, 16, 256),
            Bands::One => 0,
        };
        let empty = Self { ranges, pool: Pool::new(Space::new(len, low, [])) };
        let mut reserved: Vec<u64> = reserved.iter().filter_map(|ip| empty.number(*ip)).collect();
        if let Bands::StaticFirst = bands {
            // The network's own address, and the broadcast address.
            reserved.push(0);
            if empty.ranges[0].is_ipv4() && len > 2 {
                reserved.push(len - 1);
            }
        }
        Some(Self { pool: Pool::new(Space::new(len, low, reserved)), ..empty })
    }

    fn number(&self, address: IpAddr) -> Option<u64> {
        let mut before = 0_u64;
        for range in &self.ranges {
            if range.contains(address) {
                let offset = bits(address) - bits(range.network());
                let offset = u64::try_from(offset).ok().filter(|offset| *offset < len_of(range))?;
                return before.checked_add(offset);
            }
            before = before.saturating_add(len_of(range));
        }
        None
    }

    fn address(&self, number: u64) -> Option<IpAddr> {
        let mut offset = number;
        for range in &self.ranges {
            if offset < len_of(range) {
                let bits = bits(range.network()) + u128::from(offset);
                return Some(match range {
                    IpNetwork::V4(_) => IpAddr::V4(u32::try_from(bits).ok()?.into()),
                    IpNetwork::V6(_) => IpAddr::V6(bits.into()),
                });
            }
            offset -= len_of(range);
        }
        None
    }

    fn want(&mut self, id: &ObjectName, want: Option<Want>) {
        match want {
            None => self.pool.release(id),
            Some(Want::This(number)) => self.pool.claim(id.clone(), number),
            Some(Want::Any(_)) => self.pool.request(id.clone(), &id.to_string()),
        }
    }

    fn outcome(&self, id: &ObjectName) -> Option<Outcome<ObjectName>> {
        self.pool.outcome(id)
    }

    fn text(&self) -> String {
        self.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// How many addresses of a range can be handed out. Of large IPv6 ranges only the first 2^32 are.
fn len_of(range: &IpNetwork) -> u64 {
    let (width, len) = match range {
        IpNetwork::V4(v4) => (32, v4.prefix()),
        IpNetwork::V6(v6) => (128, v6.prefix()),
    };
    1 << (width - len).min(32)
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// How many of the lowest numbers are left to people: as many as the API server leaves
/// (`calculateRangeOffset`).
fn low_numbers(len: u64, part: u64, most: u64) -> u64 {
    if len <= 16 { 0 } else { (len / part).clamp(16, most) }
}
