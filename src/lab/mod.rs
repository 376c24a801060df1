//! A cluster on one machine: for `weft demo`, `weft lab`, and tests.
//!
//! ```text
//!                 world  203.0.113.10, knows no pod addresses
//!                   │
//!             underlay: router and bridge  192.168.77.254, fd00:77::fe
//!          ┌────────┼────────┐
//!         n1        n2       n3     192.168.77.N, fd00:77::N on eth0; weft0; a real daemon each
//!        ┌─┴─┐    ┌─┴─┐    ┌─┴─┐
//!    n1-p1 n1-p2  …   …    …   …    pods, attached by the real CNI plugin
//! ```
//!
//! Each box is a network namespace; the machine's own gets nothing. Links are made through rtnetlink, and
//! what is measured is measured by [`probe`]: no program besides this one is needed.
//!
//! ```no_run
//! use weft::lab::{Lab, LabConfig, Labs, probe::Ping};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut lab = Lab::up(&Labs::of_user(), LabConfig::new("example"))?;
//! let (_, target) = lab.state().pod("n2-p1")?;
//! let ping = Ping::new(target.addresses[0]);
//! assert!(ping.run(&lab.namespace("n1-p1")?)?.is_ok());
//!
//! lab.kill("n2")?;
//! lab.start("n2")?;
//! assert!(ping.run(&lab.namespace("n1-p1")?)?.is_ok());
//! lab.down()?;
//! # Ok(())
//! # }
//! ```

mod admin;
mod cluster;
mod config;
mod daemon;
mod hosts;
mod namespace;
mod netlink;
mod plugin;
pub mod probe;
mod process;
pub mod sandbox;
mod state;
mod wait;

pub use admin::Admin;
pub use cluster::{Lab, UNDERLAY, WORLD, address_of, namespace_in};
pub use config::{Family, LabConfig, NODES_MAX, Plan};
pub use daemon::{key_file, socket};
pub use hosts::{hosts, resolv_conf};
pub use namespace::Namespace;
pub use process::ProcessId;
pub use state::{LabState, Labs, NodeState, PodState};
pub use wait::{Interrupt, Interrupted, Wait};
