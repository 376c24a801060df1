//! placeholder

pub mod udp;
pub mod vxlan;
