//! Around every message: sealed for members, or in clear where the operator has chosen that.
//!
//! Both forms begin with the protocol's version and a byte that tells them apart. The sealed one is drawn in
//! [`crate::seal::cipher`], the one in clear is
//!
//! ```text
//!  0        1      2                 10        14
//!  +--------+------+-----------------+---------+-------------------------------+
//!  | version| form | hash of the     | check   | kind and body, as codec.rs    |
//!  | 2      | 0    | network's name  | sum     | writes them                   |
//!  +--------+------+-----------------+---------+-------------------------------+
//! ```
//!
//! Its check sum keeps damage out, not enemies.

use std::net::SocketAddr;
use std::time::Instant;

use super::codec::{DATAGRAM_MAX, hash};
use super::counters::Refused;
use super::session::Sessions;
use crate::seal::cipher::Salt;
use crate::seal::{KeyId, KeyRing, Secrets};

/// How the gossip of a node is protected.
#[derive(Debug, Clone)]
pub enum Protection {
    /// Not at all: whoever reaches the port may join, lie and listen.
    Insecure,
    /// By keys: nobody without one can read or say anything.
    Sealed {
        /// The keys.
        keys: KeyRing,
        /// What this life of the process has of its own.
        secrets: Secrets,
    },
}

/// Puts messages into datagrams and takes them out again.
#[derive(Debug)]
pub(super) enum Envelopes {
    /// In clear, with the hash of the network's name.
    Clear(u64),
    /// Sealed.
    Sealed(Box<Sessions>),
}

/// What is to be put into a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// A message: kind and body.
    Message(Vec<u8>),
    /// A message that the receiver did not believe yet.
    Repeated(Vec<u8>),
    /// Nothing but the proof that this session lives.
    Proof,
    /// The question whether the session lives, sealed with the key called `key`.
    Challenge { session: Salt, key: KeyId },
}

/// What was in a datagram.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Kind and body of a message that may be believed.
    pub(super) body: Option<Vec<u8>>,
    /// What is to be sent back at once.
    pub(super) answers: Vec<Outgoing>,
    /// Whether there was a message that may not be believed yet.
    pub(super) unproven: bool,
}

/// Version of the protocol: the first byte of every datagram.
const VERSION: u8 = 3;

const FORM_CLEAR: u8 = 0;
const FORM_SEALED: u8 = 1;

/// What stands before a sealed message in clear.
pub(super) const SEALED_PREFIX: [u8; 2] = [VERSION, FORM_SEALED];

/// Bytes before a message in clear.
pub(super) const CLEAR_LEN: usize = 14;

impl Envelopes {
    pub(super) fn new(
        network: &str,
        protection: Protection,
        nodes_max: usize,
        now: Instant,
    ) -> Self {
        match protection {
            Protection::Insecure => Self::Clear(hash(network.as_bytes())),
            Protection::Sealed { keys, secrets } => {
                Self::Sealed(Box::new(Sessions::new(network, &keys, &secrets, nodes_max, now)))
            }
        }
    }

    /// The names of this node's keys, the one in use first. Empty if it has none.
    pub(super) fn keys(&self) -> Vec<KeyId> {
        match self {
            Self::Clear(_) => Vec::new(),
            Self::Sealed(sessions) => sessions.keys(),
        }
    }

    /// Notes which keys the node at `address` accepts.
    pub(super) fn note_keys(&mut self, address: SocketAddr, keys: &[KeyId], now: Instant) {
        if let Self::Sealed(sessions) = self {
            sessions.note_keys(address, keys, now);
        }
    }

    /// Makes the datagram.
    pub(super) fn close(&mut self, to: SocketAddr, what: Outgoing, now: Instant) -> Vec<u8> {
        match (self, what) {
            (Self::Sealed(sessions), what) => sessions.close(to, what, now),
            (Self::Clear(network), Outgoing::Message(body) | Outgoing::Repeated(body)) => {
                close_clear(*network, &body)
            }
            (Self::Clear(network), Outgoing::Proof | Outgoing::Challenge { .. }) => {
                // Nobody asks for these in clear.
                close_clear(*network, &[])
            }
        }
    }

    /// Opens a datagram.
    pub(super) fn open(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Opened, Refused> {
        if datagram.len() > DATAGRAM_MAX {
            return Err(Refused::Oversize);
        }
        let Some([version, form]) = datagram.first_chunk() else { return Err(Refused::Malformed) };
        if *version != VERSION {
            return Err(Refused::Version);
        }
        match (self, *form) {
            (Self::Clear(network), FORM_CLEAR) => {
                let body = Some(open_clear(*network, datagram)?);
                Ok(Opened { body, ..Opened::default() })
            }
            (Self::Sealed(sessions), FORM_SEALED) => sessions.open(from, datagram, now),
            (Self::Clear(_), FORM_SEALED) => Err(Refused::Sealed),
            (Self::Sealed(_), FORM_CLEAR) => Err(Refused::Unsealed),
            (_, _) => Err(Refused::Malformed),
        }
    }
}

/// The message in a datagram, for whoever looks on with the keys and believes nothing of it. Empty where there is
/// nothing but proofs and questions for them.
pub(super) fn look_into(network: &str, keys: Option<&KeyRing>, datagram: &[u8]) -> Option<Vec<u8>> {
    match (datagram.first_chunk()?, keys) {
        ([VERSION, FORM_CLEAR], _) => open_clear(hash(network.as_bytes()), datagram).ok(),
        ([VERSION, FORM_SEALED], Some(keys)) => Sessions::look_into(network, keys, datagram),
        (_, _) => None,
    }
}

fn close_clear(network: u64, body: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(CLEAR_LEN + body.len());
    datagram.extend_from_slice(&[VERSION, FORM_CLEAR]);
    datagram.extend_from_slice(&network.to_be_bytes());
    datagram.extend_from_slice(&check_sum(body));
    datagram.extend_from_slice(body);
    datagram
}

fn open_clear(network: u64, datagram: &[u8]) -> Result<Vec<u8>, Refused> {
    let (header, body) = datagram.split_first_chunk::<CLEAR_LEN>().ok_or(Refused::Malformed)?;
    let [_, _, n0, n1, n2, n3, n4, n5, n6, n7, sum @ ..] = *header;
    if u64::from_be_bytes([n0, n1, n2, n3, n4, n5, n6, n7]) != network {
        return Err(Refused::ForeignNetwork);
    }
    if sum == check_sum(body) { Ok(body.to_vec()) } else { Err(Refused::Damaged) }
}

/// Fills in the check sum of a changed datagram in clear.
#[cfg(test)]
pub(super) fn finish(mut datagram: Vec<u8>) -> Vec<u8> {
    let sum = check_sum(&datagram[CLEAR_LEN..]);
    datagram[CLEAR_LEN - 4..CLEAR_LEN].copy_from_slice(&sum);
    datagram
}

fn check_sum(bytes: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = hash(bytes).to_be_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::ClusterKey;

    #[test]
    fn what_is_not_for_this_network_is_told_apart() {
        let now = Instant::now();
        let from = "192.0.2.1:7946".parse().unwrap();
        let clear = |network| Envelopes::new(network, Protection::Insecure, 10, now);
        let message = Outgoing::Message(b"hello".to_vec());
        let bytes = clear("a").close(from, message, now);
        let opened = clear("a").open(from, &bytes, now).unwrap();
        assert_eq!(opened.body.as_deref(), Some(&b"hello"[..]));
        let refused = |network, bytes: &[u8]| clear(network).open(from, bytes, now).unwrap_err();
        assert_eq!(refused("b", &bytes), Refused::ForeignNetwork);
        let with = |ix: usize, value| {
            let mut changed = bytes.clone();
            changed[ix] = value;
            changed
        };
        assert_eq!(refused("a", &with(0, 1)), Refused::Version);
        assert_eq!(refused("a", &with(1, 1)), Refused::Sealed);
        assert_eq!(refused("a", &with(1, 7)), Refused::Malformed);
        assert_eq!(refused("a", &with(16, 0)), Refused::Damaged);
        assert_eq!(refused("a", &bytes[..9]), Refused::Malformed);
        assert_eq!(refused("a", &[3]), Refused::Malformed);
        assert_eq!(refused("a", &[3; DATAGRAM_MAX + 1]), Refused::Oversize);

        let keys = KeyRing::new(ClusterKey::from_bytes([7; 32]));
        let secrets = Secrets::from_bytes([1; 16], [2; 32]);
        let mut sealed = Envelopes::new("a", Protection::Sealed { keys, secrets }, 10, now);
        assert_eq!(sealed.open(from, &bytes, now).unwrap_err(), Refused::Unsealed);
        assert_eq!(finish(with(16, 0)).len(), bytes.len());
    }
}
