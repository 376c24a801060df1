//! Whole clusters in one process: the shipped code, virtual time, and seeds.

mod forwarding;
mod hostile;
mod leases;
mod membership;
mod support;
mod sweep;
