//! The Internet checksum over a small packet, a full one and a super-frame.

use std::hint::black_box;

use vswitch::wire::checksum;

use super::packet::bytes;
use super::{Round, Workload};

/// Sums in one round.
const SUMS: usize = 64;

pub fn workloads() -> Vec<Workload> {
    let lens = [("64B", 64), ("1460B", 1460), ("64KB", 65_536)];
    lens.into_iter()
        .map(|(name, len)| {
            Workload::new(format!("checksum/{name}"), SUMS, move || Summing { bytes: bytes(len) })
        })
        .collect()
}

struct Summing {
    bytes: Vec<u8>,
}

impl Round for Summing {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        for _ in 0..SUMS {
            black_box(checksum::internet(black_box(&self.bytes)));
        }
    }
}
