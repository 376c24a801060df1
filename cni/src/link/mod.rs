//! Interfaces, addresses and routes in the kernel.
//!
//! [`Netlink`] is one netlink socket. It belongs to the namespace in which it was opened and can then be
//! used from any thread; the kernel answers while the request is being sent, so its calls are plain
//! blocking ones, in the order of microseconds. [`configure_pod`] and [`configure_host`] say,
//! on top of it, what an interface of ours has to look like.

mod addresses;
mod error;
mod host;
mod links;
mod neighbors;
mod netlink;
mod pod;
mod routes;
mod sysctl;

pub use addresses::Address;
pub use error::LinkError;
pub use host::{HostInterface, SingleRoutes, configure_host, set_single_routes, unconfigure_host};
pub use links::Link;
pub use netlink::Netlink;
pub use pod::{Difference, PodInterface, check_pod, configure_pod, default_gateways};
pub use routes::{Route, RouteScope};
pub use sysctl::{Sysctl, set_sysctl};
