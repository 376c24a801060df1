//! Whether the tunnel carries what is sent to each node, and how long packets may be.
//!
//! Gossip tells who is alive; it says nothing of the tunnel. A firewall may let gossip through and not VXLAN, and a
//! link may swallow long packets without a word. So each node asks the others, through the tunnel itself:
//!
//! ```text
//!  this node                                                                other node
//!  monitor ──► Paths ──► PathProbe per node                                 TunnelSource
//!     │  probe, 96 bytes up to the MTU: outer IP, UDP 4789, VXLAN, inner frame   │
//!     └──── the workers' own sending sockets ─────────────────────────────► Decapsulator ─► Responder
//!                                                                                │
//!  Decapsulator ◄───────────── reply, always 96 bytes, to UDP 4789 ──────────────┘
//!     └─ ReplyQueue ──► monitor ──► reports, findings ──► control
//! ```
//!
//! - [`message`] is the format; [`responder`] answers, within limits; [`probe`] is the state machine of one path (RFC
//!   8899); [`peers`] lets the paths take turns; [`kernel`] is what the kernel knows. All of that but the last is pure.
//! - [`monitor`] gives it sockets, a clock and a task.
//!
//! A reply is short whatever the probe was, so each node measures its own direction, and tells the other what it
//! found: a reply and a probe both carry the MTU that their sender keeps to.

pub mod activity;
pub mod kernel;
pub mod message;
pub mod monitor;
pub mod peers;
pub mod probe;
pub mod responder;
