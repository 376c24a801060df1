//! Against what others wrote: the kernel's VXLAN, Open vSwitch, containerd, podman, the reference CNI plugins, and tshark's eyes.

#[path = "../common/mod.rs"]
mod common;

mod capture;
mod chain;
mod containers;
mod ovs;
mod sizes;
mod vxlan;
