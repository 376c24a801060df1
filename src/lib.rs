//! Weft: a userspace virtual switch that carries the Kubernetes networking model.
//!
//! This crate joins the parts into a node daemon and a command line:
//!
//! - [`daemon`] builds every part, supervises them and stops them in reverse order; [`reload`] is what a changed
//!   file means while it runs;
//! - [`control`] turns what is declared and known into the switch's tables, and attaches pods;
//! - [`host`] is the node's own place in the network: `weft0`, routes, masquerading;
//! - [`events`] is what happens, with a code for each, in the log and for who watches;
//! - [`admin`] answers the command line, the CNI plugin and Prometheus;
//! - [`explain`] says who reaches whom and why, without a packet;
//! - [`announce`] tells the link who has the addresses of load balancers; [`health_check`] tells those in front of us;
//! - [`cli`] is the command line; [`lab`] makes clusters of namespaces on one machine;
//! - [`policy`] answers who may reach whom, and why, of the objects alone;
//! - [`sim`] is a cluster in one process, under virtual time, for packet-level tests.

pub mod admin;
pub mod announce;
pub mod bench;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod dns;
pub mod events;
pub mod explain;
pub mod health_check;
pub mod host;
pub mod kubernetes;
pub mod lab;
pub mod policy;
pub mod reload;
pub mod sim;
pub mod uninstall;
