//! Real daemons, devices, namespaces and kernel TCP. One program for all of it: building each file by itself
//! would link the whole of Weft once more. What is measured by the clock is in `netns_timed`.

// Shared with other programs of tests, which use more of them.
#[allow(dead_code)]
#[path = "../common/apiserver.rs"]
mod apiserver;
#[allow(dead_code)]
#[path = "../common/certificates.rs"]
mod certificates;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/role.rs"]
mod role;

mod changes;
mod cni;
mod cni_faults;
mod cni_model;
mod cni_ports;
mod conflict;
mod control_plane;
mod dns;
mod explain;
mod health;
mod kernel;
mod keys;
mod kubernetes;
mod objects;
mod partition;
mod paths;
mod policy;
mod policy_birth;
mod ports;
mod restart;
mod services;
mod tap;
mod traffic;
mod veth;
