//! Why gossip was refused, counted.

use std::collections::BTreeMap;
use std::time::Duration;

/// Why a datagram, or a part of one, was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Refused {
    /// Longer than this protocol sends.
    Oversize,
    /// Another version of the protocol, or none.
    Version,
    /// Of a network with another name.
    ForeignNetwork,
    /// Its check sum is wrong.
    Damaged,
    /// In clear, while this node has a key.
    Unsealed,
    /// Sealed, while this node has no key.
    Sealed,
    /// Sealed with a key that is not in this node's key file.
    UnknownKey,
    /// Its seal is broken: damaged on the way, or forged.
    Unauthentic,
    /// It was here before.
    Replayed,
    /// Too old to tell whether it was here before.
    Late,
    /// This node's own datagram came back.
    Reflected,
    /// It does not decode.
    Malformed,
    /// The sender claims another address than it sent from: address translation, or a forgery.
    SourceMismatch,
    /// Its sender has this node's own address.
    OwnAddress,
    /// Meant for another node that is expected at this address.
    NotForUs,
    /// An answer to a question that was not asked, or not any more.
    Unsolicited,
    /// More questions than are answered per second.
    RateLimited,
    /// More nodes than are remembered.
    TooManyNodes,
    /// A version, incarnation or epoch that nobody gets to by counting.
    BadCounter,
    /// A node name that is empty, too long or not printable.
    BadName,
    /// An address or port that nobody can send to.
    BadAddress,
    /// An MTU below the least there is.
    BadMtu,
    /// A tunnel endpoint address that is not unicast.
    BadMac,
    /// A lease that is not a subnet of the ranges, or overlaps with another one of its node.
    BadLease,
    /// A range or a reserved subnet that cannot be one, or too many of them.
    BadRange,
    /// A pod with a name, label or address that is none, or too much of it.
    BadPod,
    /// More pods than are remembered, of one node or of all.
    TooManyPods,
    /// An address that cannot be an exception, or is not its node's to grant, or too many of them.
    BadException,
    /// A record that does not fit a datagram.
    LongRecord,
    /// More keys than a ring holds, or one twice.
    BadKeys,
    /// Well-formed, but not in the failure detector's order of things.
    Protocol,
}

impl Refused {
    /// The reason's name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Oversize => "oversize",
            Self::Version => "version",
            Self::ForeignNetwork => "foreign_network",
            Self::Damaged => "damaged",
            Self::Unsealed => "unsealed",
            Self::Sealed => "sealed",
            Self::UnknownKey => "unknown_key",
            Self::Unauthentic => "unauthentic",
            Self::Replayed => "replayed",
            Self::Late => "late",
            Self::Reflected => "reflected",
            Self::Malformed => "malformed",
            Self::SourceMismatch => "source_mismatch",
            Self::OwnAddress => "own_address",
            Self::NotForUs => "not_for_us",
            Self::Unsolicited => "unsolicited",
            Self::RateLimited => "rate_limited",
            Self::TooManyNodes => "too_many_nodes",
            Self::BadCounter => "bad_counter",
            Self::BadName => "bad_name",
            Self::BadAddress => "bad_address",
            Self::BadMtu => "bad_mtu",
            Self::BadMac => "bad_mac",
            Self::BadLease => "bad_lease",
            Self::BadRange => "bad_range",
            Self::BadPod => "bad_pod",
            Self::TooManyPods => "too_many_pods",
            Self::BadException => "bad_exception",
            Self::LongRecord => "long_record",
            Self::BadKeys => "bad_keys",
            Self::Protocol => "protocol",
        }
    }
}

/// Totals since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that came in.
    pub received: u64,
    /// Bytes that came in, without UDP and IP headers.
    pub received_bytes: u64,
    /// Datagrams that went out.
    pub sent: u64,
    /// Bytes that went out, without UDP and IP headers.
    pub sent_bytes: u64,
    /// Messages from before their session had proven to live: not believed, and not refused either. Their
    /// sender was asked for the proof and repeats them with it.
    pub unproven: u64,
    /// Datagrams that were to go out while too many were waiting.
    pub overflowed: u64,
    /// Events that nobody took in time.
    pub events_lost: u64,
    /// Datagrams and records that were refused.
    pub refused: BTreeMap<Refused, u64>,
    /// How long it took to learn of new pods.
    pub pods_learned: Ages,
}

/// How old pods of other nodes were when this node learned of them, told by how long each node on the way
/// kept the news; the time on the wire itself is missing, and no clocks are compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ages {
    /// Number of pods for each of [`Ages::BOUNDS_MS`], and one for all above.
    pub counts: [u64; Self::BOUNDS_MS.len() + 1],
    /// All ages together.
    pub sum: Duration,
}

impl Ages {
    /// The longest age that is counted in each place, in milliseconds.
    pub const BOUNDS_MS: [u64; 8] = [50, 100, 250, 500, 1000, 2500, 5000, 10_000];

    pub(super) fn add(&mut self, age_ms: u64) {
        let place = Self::BOUNDS_MS.partition_point(|bound| *bound < age_ms);
        self.counts[place] += 1;
        self.sum = self.sum.saturating_add(Duration::from_millis(age_ms));
    }
}

impl Counters {
    /// Counts one refusal.
    pub(super) fn refuse(&mut self, reason: Refused) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// How often something was refused for `reason`.
    pub fn refused(&self, reason: Refused) -> u64 {
        self.refused.get(&reason).copied().unwrap_or_default()
    }
}
