//! A network in one process: the same switch, in-memory wires, virtual time and seeded faults.
//!
//! Nothing here does I/O, sleeps or needs a privilege, and one seed gives one sequence of events, so a
//! failure that was seen once can be seen again. The parts, each usable by itself:
//!
//! | part | stands for |
//! |---|---|
//! | [`Clock`] | time, which moves only when it is told to |
//! | [`Net`] | the network between nodes: loss, delay, reorder, duplication, partition |
//! | [`Host`] | a pod or a machine, with a TCP/IP stack of its own (smoltcp) |
//! | [`SwitchSim`] | a node: the real [`crate::switch::Switch`] with a host on each port |
//!
//! Two pods on one node, one of which pings the other:
//!
//! ```
//! use std::time::Duration;
//! use vswitch::config::Config;
//! use vswitch::port::PortIx;
//! use vswitch::sim::{Clock, Host, HostConfig, SwitchSim};
//! use vswitch::tables::{Node, TablesBuilder};
//!
//! let gateway = "10.244.1.1".parse()?;
//! let node = Node {
//!     vtep_mac: "02:00:00:00:00:01".parse()?,
//!     gateway_v4: Some(gateway),
//!     gateway_v6: None,
//!     underlay: None,
//!     vxlan_port: 4789,
//!     gossip_port: 7946,
//! };
//! let pod = |mac: &str, address: &str| -> Result<HostConfig, Box<dyn std::error::Error>> {
//!     Ok(HostConfig {
//!         mac: mac.parse()?,
//!         mtu: 1450,
//!         addresses: vec![address.parse()?],
//!         gateways: vec![gateway.into()],
//!         offload: false,
//!         seed: 1,
//!     })
//! };
//! let a = pod("0a:58:0a:f4:01:02", "10.244.1.2/24")?;
//! let b = pod("0a:58:0a:f4:01:03", "10.244.1.3/24")?;
//!
//! let mut tables = TablesBuilder::new(1, node, &["10.244.0.0/16".parse()?]);
//! tables.port(PortIx(1), a.port_entry());
//! tables.port(PortIx(2), b.port_entry());
//!
//! let mut clock = Clock::new();
//! let mut switch = SwitchSim::new(&Config::default(), tables.build(), clock.now());
//! switch.attach(PortIx(1), Host::new(&a, clock.now()));
//! switch.attach(PortIx(2), Host::new(&b, clock.now()));
//!
//! let target = "10.244.1.3".parse()?;
//! switch.host(PortIx(1)).ping(target, 7);
//! for _ in 0..3 {
//!     switch.run(clock.now());
//!     clock.advance(Duration::from_secs(1));
//! }
//!
//! assert_eq!(switch.host(PortIx(1)).take_echo_replies(), [(target, 7)]);
//! assert_eq!(switch.totals().queued(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! For several nodes, take each node's frames for the others with [`SwitchSim::send_wire`], carry them
//! (encapsulated or as they are) through one [`Net`], and hand them in with [`SwitchSim::receive`].

mod clock;
mod host;
mod net;
mod node;

pub use clock::Clock;
pub use host::{Arrival, Host, HostConfig, IcmpError, TcpHandle, UdpHandle};
pub use net::{Delivery, Faults, Net, NetTotals};
pub use node::SwitchSim;
