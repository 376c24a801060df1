//! Super-frames: what the kernel says of them, how they are cut, and how they are made.
//!
//! ```text
//!   pod's kernel ── vnet::decode ──► Frame with Gso ── Cut ──► packets ──► tunnel
//!   pod's kernel ◄── vnet::encode ── Frame with Gso ◄── Coalescer ── packets ◄── tunnel
//! ```
//!
//! Between two ports of one switch a super-frame is passed on whole. Cutting and coalescing are inverse:
//! cutting what was coalesced gives the same packets in the same order, but for two things that carry
//! no meaning for the receiver: PSH moves to the last packet of a super-frame, and the identification
//! of IPv4 packets that may not be fragmented counts up even if it stood still (RFC 6864 §4.1).

mod chain;
mod coalesce;
mod cut;
mod vnet;

pub use chain::{CHAIN_MAX, Chain, LongFrames};
pub use coalesce::{Coalescer, Options, UDP_SEGMENTS_MAX};
pub use cut::Cut;
pub use vnet::{VnetHeader, decode, encode};

/// Most packets that one super-frame may stand for.
///
/// A sender chooses the payload length of a packet. With one byte, a single super-frame of 64 kB would
/// make 65 000 packets of 50 headers' bytes and more each; this bounds the work that it can cause. The
/// shortest segments that Linux makes, of 48 bytes (`TCP_MIN_SND_MSS`), stay below.
pub const SEGMENTS_MAX: u16 = 2048;

#[cfg(test)]
mod tests;
