//! What people and the Kubernetes API declare of a cluster: Services, endpoints, pods, and the rest.
//!
//! ```text
//!   manifests, API ── parse ──► Object ─┐
//!                                       ├─ Change ──► ClusterState::apply ──► Delta (what is different)
//!   map of the cluster ── PodFact ──────┘                  │
//!                                                          ▼
//!                               ServiceView (addresses, ports, endpoints), PodView, indexes
//! ```
//!
//! Everything here is pure: no files, no clocks. The same objects give the same state on every node, in
//! whatever order they came, so that nodes agree on addresses without talking about them.

mod endpoints;
mod fact;
mod labels;
pub mod names;
mod namespaced;
mod object;
pub mod parse;
pub mod policy;
mod pool;
mod service_map;
mod state;

pub use self::endpoints::{Endpoint, EndpointPort, ServiceEndpoints};
pub use self::fact::{NodeFact, PodFact, PodView};
pub use self::labels::{LabelSelector, Labels, Operator, Requirement};
pub use self::object::*;
pub use self::service_map::{Authority, ServiceConfig, ServiceProblem, ServiceView, Used};
pub use self::state::{Change, ClusterState, Delta, KnownNode};

#[cfg(test)]
mod tests;
