//! Endpoints to choose from, and how one is chosen.

use std::net::IpAddr;

use crate::service::maglev::Maglev;
use crate::service::{Algorithm, Endpoint, address_words, stable_hash};

/// Endpoints of one Service of which any may serve a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Indexes of the Service's endpoints, ascending.
    members: Box<[u16]>,
    maglev: Maglev,
}

/// What a choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct Pick {
    /// The client.
    pub client: (IpAddr, u16),
    /// Where it sent to.
    pub frontend: (IpAddr, u16),
    /// Only the client's address counts, because it is to find its endpoint again.
    pub by_address: bool,
    /// A number that differs from choice to choice.
    pub chance: u64,
}

impl Pool {
    /// Makes the pool of the endpoints for which `is_member` holds. `endpoints` must be in an order that is the same
    /// on all nodes.
    pub(super) fn new(endpoints: &[Endpoint], is_member: impl Fn(&Endpoint) -> bool) -> Self {
        let members = (0..).zip(endpoints).filter(|(_, endpoint)| is_member(endpoint));
        let members: Box<[u16]> = members.map(|(ix, _)| ix).collect();
        Self { members, maglev: Maglev::new(&[]) }
    }

    /// Makes the table by which Maglev chooses.
    pub(super) fn with_maglev(mut self, endpoints: &[Endpoint]) -> Self {
        let identities: Vec<u64> =
            self.members.iter().map(|ix| identity(&endpoints[usize::from(*ix)])).collect();
        self.maglev = Maglev::new(&identities);
        self
    }

    /// Whether there is nobody to choose.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many endpoints there are to choose from.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Bytes of memory that the pool takes.
    pub fn size(&self) -> usize {
        2 * self.members.len() + self.maglev.size()
    }

    /// Indexes of the endpoints to choose from.
    pub(super) fn members(&self) -> impl Iterator<Item = usize> {
        self.members.iter().map(|ix| usize::from(*ix))
    }

    /// Whether endpoint `ix` is one to choose.
    pub(super) fn contains(&self, ix: usize) -> bool {
        u16::try_from(ix).is_ok_and(|ix| self.members.binary_search(&ix).is_ok())
    }

    /// Chooses one, as its index. `connections` says how many an endpoint has.
    pub(super) fn choose(
        &self,
        algorithm: Algorithm,
        pick: &Pick,
        connections: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        let count = self.members.len() as u64;
        let member = |number: u64| {
            let ix = usize::try_from(number.checked_rem(count)?).ok()?;
            self.members.get(ix).copied().map(usize::from)
        };
        match algorithm {
            Algorithm::Maglev => {
                self.members.get(self.maglev.get(pick.hash())).copied().map(usize::from)
            }
            Algorithm::Random => member(pick.chance),
            Algorithm::LeastConnections => {
                let first = member(pick.chance)?;
                // Another one, if there is another one.
                let step = 1 + (pick.chance >> 32) % (count - 1).max(1);
                let second = member(pick.chance % count + step)?;
                Some(if connections(second) < connections(first) { second } else { first })
            }
        }
    }
}

impl Pick {
    fn hash(&self) -> u64 {
        let [client_upper, client_lower] = address_words(self.client.0);
        let [upper, lower] = address_words(self.frontend.0);
        let client_port = if self.by_address { 0 } else { self.client.1 };
        // A client is to find its endpoint by whichever address of the Service it comes.
        let frontend =
            if self.by_address { [0; 3] } else { [upper, lower, self.frontend.1.into()] };
        let [upper, lower, port] = frontend;
        let ports = u64::from(client_port) << 16 | port;
        stable_hash(CONNECTION_SEED, &[client_upper, client_lower, upper, lower, ports])
    }
}

/// What names an endpoint on every node.
pub(super) fn identity(endpoint: &Endpoint) -> u64 {
    let [upper, lower] = address_words(endpoint.address);
    stable_hash(ENDPOINT_SEED, &[upper, lower, endpoint.port.into()])
}

const ENDPOINT_SEED: u64 = 0x656e_6470_6f69_6e74;
const CONNECTION_SEED: u64 = 0x636f_6e6e_6563_7400;
