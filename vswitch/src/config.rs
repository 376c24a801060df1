//! What an operator can choose about the switch.

use serde::{Deserialize, Serialize};

/// The `[switch]` section of `weft.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Threads that carry frames. The last one reads the underlay, the others share the pods' ports.
    /// Default 2, which measured best on two CPUs; bounds 1 to 64. With 1, a single thread does both.
    pub workers: u16,

    /// Most local ports, the node's own included. Default 1024, bounds 2 to 65 535. A port costs a few
    /// hundred bytes of counters per worker. At the bound, attaching a pod fails with a clear error.
    pub ports_max: u16,

    /// Buffers per worker, of 66 kB each, used as traffic demands. Default 256, bounds 128 to 65 535. When
    /// all are in use a worker stops reading, and the kernel's queues fill.
    pub buffers: u16,

    /// Most ICMP and ICMPv6 errors per second and worker (RFC 1812 §4.3.2.8, RFC 4443 §2.4 f).
    /// Default 1000, bounds 1 to 1 000 000. Above it errors are not sent; the drops are still counted.
    pub icmp_errors_per_s: u32,

    /// Most flows to Services at a time. Default 131072, bounds 1024 to 4 194 304. Each takes up to 330 bytes, of
    /// which the kernel gives those that are used. At the bound the oldest unanswered flow gives way, or else
    /// the new one is dropped and counted as `flows_full`.
    pub flows_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 2,
            ports_max: 1024,
            buffers: 256,
            icmp_errors_per_s: 1000,
            flows_max: 131_072,
        }
    }
}
