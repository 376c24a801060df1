//! placeholder

pub mod decap;
pub mod encap;
pub mod tunnel;
pub mod udp;
pub mod vxlan;
pub mod agent;
pub mod config;
pub mod error;
pub mod gossip;
pub mod interfaces;
pub mod node_id;
mod state_file;
pub mod subnet;
pub mod underlay;
