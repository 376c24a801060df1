//! Other nodes: the VXLAN tunnel, gossip membership and the replicated subnet map.
//!
//! Two ways lead to other nodes, and they meet only in the switch's tables:
//!
//! - **frames**: [`encap`] and [`decap`] turn frames into VXLAN datagrams ([`vxlan`]) and back; [`tunnel`] ties them
//!   to the sockets of [`udp`] as a worker's uplink and source;
//! - **knowledge**: [`gossip`] keeps a record of every node and decides on leases; [`agent`] gives it a socket, a
//!   clock and a disk; what it knows is the [`subnet::SubnetMap`].
//!
//! [`seal`] keeps the gossip secret and strangers out: the cluster's keys, their file, the cipher.
//!
//! [`underlay`] chooses the address that both use. What the kernel offers and grants to the tunnel, and loses before
//! it, is looked at in [`send_offload`], [`buffers`] and [`path`].

pub mod agent;
pub mod buffers;
pub mod config;
pub mod decap;
pub mod encap;
pub mod error;
pub mod gossip;
pub mod interfaces;
pub mod memory_file;
pub mod node_id;
pub mod path;
pub mod pods;
pub mod seal;
pub mod send_offload;
mod span;
pub mod state_file;
pub mod subnet;
pub mod tunnel;
pub mod udp;
pub mod underlay;
pub mod vxlan;
