//! One sealed datagram.
//!
//! ```text
//!  0        1      2           10        14                30         38
//!  +--------+------+-----------+---------+-----------------+----------+-----------------------+-----+
//!  | version| form | key id    | network | session's salt  | counter  | sealed                | tag |
//!  | 3      | 1    | 8 bytes   | 4 bytes | 16 bytes        | 8 bytes  | AES-256-GCM-SIV       | 16  |
//!  +--------+------+-----------+---------+-----------------+----------+-----------------------+-----+
//!  |<------------------- in clear, authenticated ------------------->|
//! ```
//!
//! A session is what one process sends with one salt. Its key is derived (HKDF, RFC 5869) from the
//! cluster's key, the salt and the network's name. The salt is random and new at every start, so no two
//! sessions have one key, whatever disk they were started from; within a session the counter is the nonce
//! and only ever grows. Should a machine be copied while it runs, and two processes send under one key and
//! counter, then GCM-SIV (RFC 8452) gives away no more than whether two messages were equal.
//!
//! The network's tag, too, is derived from key and name: who has the key can tell that a datagram is of
//! another network, and nobody else learns which one.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};

use super::key::{ClusterKey, KeyId};

/// Bytes before what is sealed.
pub(crate) const HEADER_LEN: usize = 38;

/// Bytes behind it.
pub(crate) const TAG_LEN: usize = 16;

/// What a session's key is derived with: random, and different for every life of every node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Salt(pub(crate) [u8; 16]);

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a sealed datagram says in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) key: KeyId,
    pub(crate) network: [u8; 4],
    pub(crate) session: Salt,
    pub(crate) counter: u64,
}

impl Header {
    /// Writes the header, behind the two bytes of `prefix` that say what follows.
    pub(crate) fn write(&self, prefix: [u8; 2], datagram: &mut Vec<u8>) {
        datagram.extend_from_slice(&prefix);
        datagram.extend_from_slice(&self.key.0);
        datagram.extend_from_slice(&self.network);
        datagram.extend_from_slice(&self.session.0);
        datagram.extend_from_slice(&self.counter.to_be_bytes());
    }

    /// Reads the header; `None` if there is none, or nothing sealed behind it.
    pub(crate) fn read(datagram: &[u8]) -> Option<Self> {
        let (_prefix, rest) = datagram.split_first_chunk::<2>()?;
        let (key, rest) = rest.split_first_chunk()?;
        let (network, rest) = rest.split_first_chunk()?;
        let (session, rest) = rest.split_first_chunk()?;
        let (counter, rest) = rest.split_first_chunk()?;
        (rest.len() >= TAG_LEN).then(|| Self {
            key: KeyId(*key),
            network: *network,
            session: Salt(*session),
            counter: u64::from_be_bytes(*counter),
        })
    }
}

/// A cluster key at work in one network.
pub(crate) struct NetworkKey {
    key: ClusterKey,
    pub(crate) id: KeyId,
    pub(crate) tag: [u8; 4],
    network: String,
}

impl NetworkKey {
    pub(crate) fn new(key: &ClusterKey, network: &str) -> Self {
        let mut tag = [0; 4];
        key.derive(&[], &[b"weft gossip: network", network.as_bytes()], &mut tag);
        Self { key: key.clone(), id: key.id(), tag, network: network.to_owned() }
    }

    /// The key of one session.
    pub(crate) fn session(&self, salt: Salt) -> SessionKey {
        let mut bytes = [0; 32];
        self.key.derive(&salt.0, &[b"weft gossip: session", self.network.as_bytes()], &mut bytes);
        let key = UnboundKey::new(&AES_256_GCM_SIV, &bytes).expect("32 bytes are what it takes");
        SessionKey(LessSafeKey::new(key))
    }
}

impl fmt::Debug for NetworkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkKey({} in {})", self.id, self.network)
    }
}

/// Seals and opens what is sent in one session.
#[derive(Debug)]
pub(crate) struct SessionKey(LessSafeKey);

impl SessionKey {
    /// Seals what stands behind the header in `datagram`, and adds the tag.
    pub(crate) fn seal(&self, counter: u64, datagram: &mut Vec<u8>) {
        let mut body = datagram.split_off(HEADER_LEN);
        self.0
            .seal_in_place_append_tag(nonce(counter), Aad::from(&*datagram), &mut body)
            .expect("a datagram is far shorter than the cipher's limit");
        datagram.append(&mut body);
    }

    /// What stands behind the header, if it is genuine.
    pub(crate) fn open(&self, counter: u64, datagram: &[u8]) -> Option<Vec<u8>> {
        let (header, sealed) = datagram.split_at_checked(HEADER_LEN)?;
        let mut body = sealed.to_vec();
        let len = self.0.open_in_place(nonce(counter), Aad::from(header), &mut body).ok()?.len();
        body.truncate(len);
        Some(body)
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed(key: &NetworkKey, header: Header, body: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        header.write([2, 1], &mut datagram);
        datagram.extend_from_slice(body);
        key.session(header.session).seal(header.counter, &mut datagram);
        datagram
    }

    fn header(key: &NetworkKey, counter: u64) -> Header {
        Header { key: key.id, network: key.tag, session: Salt([5; 16]), counter }
    }

    proptest! {
        #[test]
        fn only_what_was_sealed_is_opened(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            counter in any::<u64>(),
            place in any::<prop::sample::Index>(),
            bit in 0_u32..8,
        ) {
            let key = NetworkKey::new(&ClusterKey::from_bytes([7; 32]), "prod");
            let header = header(&key, counter);
            let datagram = sealed(&key, header, &body);
            prop_assert_eq!(datagram.len(), HEADER_LEN + body.len() + TAG_LEN);
            prop_assert_eq!(Header::read(&datagram), Some(header));
            let session = key.session(header.session);
            prop_assert_eq!(session.open(counter, &datagram), Some(body));

            // One bit anywhere, header and tag included.
            let mut changed = datagram.clone();
            changed[place.index(datagram.len())] ^= 1 << bit;
            let opened = Header::read(&changed)
                .and_then(|header| key.session(header.session).open(header.counter, &changed));
            prop_assert_eq!(opened, None);
            // Any other length.
            prop_assert_eq!(session.open(counter, &datagram[..place.index(datagram.len())]), None);
        }
    }

    #[test]
    fn another_key_network_session_or_counter_opens_nothing() {
        let key = NetworkKey::new(&ClusterKey::from_bytes([7; 32]), "prod");
        let datagram = sealed(&key, header(&key, 9), b"hello");
        assert_eq!(key.session(Salt([5; 16])).open(9, &datagram).unwrap(), b"hello");
        assert_eq!(key.session(Salt([5; 16])).open(8, &datagram), None);
        assert_eq!(key.session(Salt([6; 16])).open(9, &datagram), None);
        let other = NetworkKey::new(&ClusterKey::from_bytes([8; 32]), "prod");
        assert_eq!(other.session(Salt([5; 16])).open(9, &datagram), None);
        let test = NetworkKey::new(&ClusterKey::from_bytes([7; 32]), "test");
        assert_eq!(test.session(Salt([5; 16])).open(9, &datagram), None);
        assert_eq!(test.id, key.id);
        assert_ne!(test.tag, key.tag);
    }
}
