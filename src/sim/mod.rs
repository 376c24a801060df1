//! A whole cluster in one process: for packet-level tests, yours included.
//!
//! ```text
//!        node 0                                                       node 1
//!  ┌──────────────────────────┐                             ┌──────────────────────────┐
//!  │ pod   pod   machine      │  hosts: smoltcp's TCP/IP    │ pod   pod   machine      │
//!  │  │     │      │ weft0    │                             │  │     │      │ weft0    │
//!  │ ┌▼─────▼──────▼────────┐ │                             │ ┌▼─────▼──────▼────────┐ │
//!  │ │ Switch with Tables   │ │  the daemon's own code:     │ │ Switch with Tables   │ │
//!  │ └┬──────────────────▲──┘ │  switch, control::compile,  │ └┬──────────────────▲──┘ │
//!  │ Encapsulator  Decapsulator  tunnel, gossip, ipam       │ Encapsulator  Decapsulator
//!  │  │  Gossip ─► map   │    │                             │  │  Gossip ─► map   │    │
//!  └──┼────▲─────────────┼────┘                             └──┼────▲─────────────┼────┘
//!     ▼    ▼ 7946        │ 4789                                ▼    ▼             │
//!  ═══ underlay: one wire for VXLAN and gossip. Loss, delay, reorder, duplication, ═══
//!  ═══ partition per pair of nodes, all by one seed; MTU; capture as pcap          ═══
//! ```
//!
//! Only what is outside of the daemon is simulated: time, the underlay, and the pods' kernels. Nothing
//! sleeps, nothing needs a privilege, and the same seed and calls give the same run to the byte
//! ([`Cluster::trace`] proves it), so what fails once can be looked at as often as it takes.
//!
//! ```
//! use std::time::Duration;
//! use weft::sim::{Cluster, Faults, Family};
//!
//! // Two nodes that have found each other and hold a subnet each, with one pod on either.
//! let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).seed(42).build();
//! let [client, server] = [cluster.pods()[0], cluster.pods()[1]];
//! let address = cluster.address(server, Family::V4).ok_or("the server has no IPv4 address")?;
//!
//! // On a bad wire a transfer takes longer, and all arrives.
//! cluster.set_faults(Faults { loss: 0.02, delay: Duration::from_millis(5), ..Faults::NONE });
//! let data = vec![7; 100_000];
//! let transfer = cluster.tcp(client, server, Family::V4, &data, Duration::from_secs(60));
//! assert!(transfer.received == data);
//!
//! // Behind a cut cable the other node is dead within ten seconds, and its pods are unreachable.
//! let nodes = cluster.nodes();
//! cluster.partition(&nodes[..1], &nodes[1..]);
//! cluster.run_for(Duration::from_secs(10));
//! assert_eq!(cluster.ping(client, address, Duration::from_secs(3)), None);
//! assert!(!cluster.host(client).take_icmp_errors().is_empty());
//!
//! // Every packet is accounted for; `Drop` would check it, too.
//! cluster.check();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | what a test wants | where it is |
//! |---|---|
//! | nodes that come, crash, return, leave | [`Cluster::add_node`], [`Cluster::kill`], [`Cluster::start`], [`Cluster::leave`] |
//! | pods | [`Cluster::add_pod`], [`Cluster::remove_pod`]; [`Cluster::host`] is a pod's network stack |
//! | traffic | [`Cluster::ping`], [`Cluster::udp`], [`Cluster::tcp`], or by hand with [`Cluster::host`] |
//! | a bad network | [`Cluster::set_faults`], [`Cluster::set_link`], [`Cluster::set_link_mtu`], [`Cluster::partition`] |
//! | hostile frames and datagrams | [`Cluster::inject_frame`], [`Cluster::inject_datagram`] |
//! | what was on the wire | [`Cluster::start_capture`], [`Cluster::take_capture`], [`pcap::write`] |
//! | what a pod was handed | [`vswitch::sim::Host::watch_arrivals`] |
//! | what each node knows and counts | [`Cluster::map`], [`Cluster::totals`], [`Cluster::take_offences`] |
//! | what happened, in order | [`Cluster::trace`] |
//!
//! What differs from a real node: a pod's stack is smoltcp's, which fragments IPv4 only and takes its
//! node's whole subnet to be on its link; a node has one worker; a killed daemon's pods lose what they
//! send until it is started again.

mod builder;
mod check;
mod cluster;
mod machine;
pub mod pcap;
mod place;
mod trace;
mod traffic;
mod underlay;

pub use self::builder::{ClusterBuilder, NodeOptions};
pub use self::cluster::Cluster;
pub use self::machine::PodError;
pub use self::place::{Family, Node, Place, Pod};
pub use self::trace::{Trace, TraceEvent};
pub use self::traffic::{Heard, Transfer};
pub use self::underlay::{Captured, UnderlayTotals};
pub use overlay::decap::Offence;
pub use vswitch::sim::{Arrival, Faults, Host, IcmpError, TcpHandle, UdpHandle};
