//! Who may reach whom, through what, and why: answered without a packet.
//!
//! ```text
//!   Query (names) ── ends ──► addresses, whose node decides
//!                                   │            world: the nodes, from the map or from manifests
//!                                   ▼               │
//!          vswitch::explain ◄── Tables of that node ◄── the same compile, the same decide as the switch's
//!                │
//!                ▼
//!            Explained: the answer, and what it was made of
//! ```
//!
//! Pure. The daemon asks it with what it knows, and for its own node with the very tables that are in force; the
//! command line asks it with manifests, and nothing need run.

mod ends;
mod evaluate;
mod policies;
pub mod world;

use serde::{Deserialize, Serialize};

use crate::policy::explain::SideAnswer;

pub use evaluate::{Known, explain};

/// Which packet is meant, in the words of whoever asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Who sends: an address, `NAMESPACE/POD`, or a node's name.
    pub from: String,
    /// Where to: an address, `NAMESPACE/SERVICE`, `NAMESPACE/POD`, or a node's name.
    pub to: String,
    /// The port, by number or by name.
    pub port: String,
    /// `TCP`, `UDP` or `SCTP`. Without it TCP; a port that is given by name has a protocol of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The node whose switch decides; without it, the sender's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// How the packet ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It goes on, to one of the endpoints.
    Forward,
    /// It goes no further, and its sender is told at once.
    Reject,
    /// It goes no further, in silence.
    Drop,
}

/// The answer, as `weft explain -o json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// How the packet ends.
    pub verdict: Verdict,
    /// `namespace/name:port` of the Service that it is for; `None` when it is for none.
    pub service: Option<String>,
    /// All that may be chosen to receive it, as `address:port`. Without a Service, the destination itself.
    pub endpoints: Vec<String>,
    /// Whether any of them sees the switch's address in place of the sender's.
    pub masquerade: bool,
    /// Why, for people.
    pub reason: String,
    /// What policies say of what the sender sends; `None` when no endpoint is left to send to.
    pub egress: Option<SideAnswer>,
    /// What policies say of what the endpoint is sent: one that the sender reaches, if there is any.
    pub ingress: Option<SideAnswer>,
}

/// An answer with what it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The answer.
    pub answer: Answer,
    /// What it was made of.
    pub details: Details,
}

/// What an answer was made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// The sender: what it is, its address, its node.
    pub from: String,
    /// The destination: what it is, address, port and protocol.
    pub to: String,
    /// Whose switch decides; `None` when no switch has a say.
    pub node: Option<String>,
    /// What the sender is to that switch, and which traffic policy therefore counts.
    pub rule: Option<String>,
    /// Why the sender's address is kept, or not.
    pub source: Option<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// All endpoints of the Service's port, with whether each may be chosen, and why not.
    pub candidates: Vec<Candidate>,
}

/// An endpoint of the Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// `address:port`.
    pub endpoint: String,
    /// The pod behind it, as `namespace/name`.
    pub pod: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// `ready`, `terminating` or `not ready`.
    pub state: String,
    /// Whether it may be chosen.
    pub chosen: bool,
    /// Why not.
    pub why: String,
}

#[cfg(test)]
mod tests;
