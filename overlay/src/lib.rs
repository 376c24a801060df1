//! placeholder

pub mod udp;
pub mod vxlan;
pub mod config;
pub mod error;
pub mod gossip;
pub mod node_id;
mod state_file;
pub mod subnet;
