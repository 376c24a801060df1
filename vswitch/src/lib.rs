//! The switch: frames in, frames out.
//!
//! The way of a frame, and where to read on:
//!
//! ```text
//!  pod ── tap ──► Source ─► Batch ─► Switch::forward ─► Egress::Port ─► Sink ──► tap ── pod
//!                                        │  ▲
//!                                        │  └───────── Source ◄─ tunnel (other node)
//!                                        └──────────── Egress::Node ─► Uplink ─► tunnel
//! ```
//!
//! 1. [`worker`] polls the sources and takes a batch of [`frame::Frame`]s, with the [`tables::Tables`]
//!    that are in force borrowed for its length.
//! 2. [`switch`] decides every frame's [`verdict::Verdict`]; it is the only control flow of a frame.
//!    It uses [`wire`] to parse, [`neighbor`] to answer ARP and ND, [`tables`] to route and
//!    [`icmp_error`] to refuse politely.
//! 3. [`offload`] cuts super-frames and coalesces packets into them.
//! 4. [`tap`] and [`veth`] are the real ports; `sim` has in-memory ones.
//! 5. [`spin`] decides whether a worker without work looks again or sleeps, [`load`] who rests while another
//!    does its work.
//!
//! Everything but `tap`, `veth`, `worker` and `engine` is free of I/O and takes the time as an argument.

pub mod config;
pub mod counters;
pub mod engine;
pub mod explain;
pub mod flows;
pub mod fragment;
pub mod frame;
mod gate;
mod home;
pub mod icmp_error;
pub mod ix;
pub mod load;
pub mod mac;
pub mod nat;
pub mod neighbor;
pub mod offload;
pub mod policy;
pub mod port;
mod port_io;
mod prefix_map;
mod published;
pub mod queue;
mod reset;
mod serve;
pub mod service;
pub mod shape;
#[cfg(feature = "sim")]
pub mod sim;
pub mod slice;
pub mod spin;
pub mod switch;
mod sync;
pub mod tables;
pub mod tap;
pub mod verdict;
pub mod veth;
pub mod wire;
pub mod worker;
