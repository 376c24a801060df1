//! The keys that make a node a member.

use std::fmt;
use std::io;
use std::str::FromStr;

use aws_lc_rs::hkdf;
use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;

/// Most keys in a ring. A rotation needs two; more are left over from rotations that were not ended.
pub const KEYS_MAX: usize = 8;

/// Length of a key, in bytes.
const KEY_LEN: usize = 32;

/// A key of the cluster: 32 random bytes, written as 64 hexadecimal digits.
///
/// Whoever has it is a member, may say everything and read everything. It never appears in logs, and is
/// never sent.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey([u8; KEY_LEN]);

impl ClusterKey {
    /// Makes a key of these bytes, which must be as random as the kernel's.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Makes a new key from the kernel's random numbers.
    ///
    /// # Errors
    ///
    /// When the kernel gives none.
    pub fn generate() -> Result<Self, Error> {
        random().map(Self)
    }

    /// What the key is called. It does not lead back to the key.
    pub fn id(&self) -> KeyId {
        let mut id = [0; KeyId::LEN];
        self.derive(&[], &[b"weft gossip: key id"], &mut id);
        KeyId(id)
    }

    /// The key as it stands in a file: only for where a key belongs.
    pub fn reveal(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Fills `out` with what HKDF (RFC 5869, with SHA-256) makes of the key.
    pub(crate) fn derive(&self, salt: &[u8], info: &[&[u8]], out: &mut [u8]) {
        hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
            .extract(&self.0)
            .expand(info, Length(out.len()))
            .and_then(|output| output.fill(out))
            .expect("no more is asked of HKDF than it gives: 255 times 32 bytes");
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey({})", self.id())
    }
}

/// The text was not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// It has another form.
    #[error("a key is 64 hexadecimal digits, as `weft key generate` makes them")]
    Form,
    /// All its bytes are the same.
    #[error("this is no random key: make one with `weft key generate`")]
    NotRandom,
}

impl FromStr for ClusterKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let bytes = unhex::<KEY_LEN>(text).ok_or(InvalidKey::Form)?;
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err(InvalidKey::NotRandom);
        }
        Ok(Self(bytes))
    }
}

/// The name of a key: 8 bytes derived from it, written as 16 hexadecimal digits. It is no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl KeyId {
    pub(crate) const LEN: usize = 8;
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a key: write 16 hexadecimal digits")]
pub struct InvalidKeyId(String);

impl FromStr for KeyId {
    type Err = InvalidKeyId;

    fn from_str(text: &str) -> Result<Self, InvalidKeyId> {
        unhex(text).map(Self).ok_or_else(|| InvalidKeyId(text.chars().take(80).collect()))
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 8]>::deserialize(deserializer).map(Self)
        }
    }
}

/// The keys of a node: one that it seals with, and all that it opens with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRing {
    /// The first is the one in use; no two are the same.
    keys: Vec<ClusterKey>,
}

impl KeyRing {
    /// A ring of one key, which is in use.
    pub fn new(used: ClusterKey) -> Self {
        Self { keys: vec![used] }
    }

    /// Adds a key that is accepted, but not in use; `false` if there are [`KEYS_MAX`] already.
    pub fn accept(&mut self, key: ClusterKey) -> bool {
        if self.keys.contains(&key) {
            return true;
        }
        let room = self.keys.len() < KEYS_MAX;
        if room {
            self.keys.push(key);
        }
        room
    }

    /// Puts the key called `id` in use; `false` if there is none.
    pub fn put_in_use(&mut self, id: KeyId) -> bool {
        let place = self.keys.iter().position(|key| key.id() == id);
        if let Some(ix) = place {
            self.keys[..=ix].rotate_right(1);
        }
        place.is_some()
    }

    /// Removes a key; `false` if there is none of this name, or it is in use.
    pub fn remove(&mut self, id: KeyId) -> bool {
        let place = self.keys.iter().position(|key| key.id() == id).filter(|ix| *ix > 0);
        place.map(|ix| self.keys.remove(ix)).is_some()
    }

    /// The names of all keys, the one in use first.
    pub fn ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(ClusterKey::id).collect()
    }

    /// All keys, the one in use first.
    pub(crate) fn keys(&self) -> &[ClusterKey] {
        &self.keys
    }
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|cause| Error::Random { cause: io::Error::other(cause.to_string()) })?;
    Ok(bytes)
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// How much HKDF is to give.
struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_round_trips_as_text_and_says_nothing_else() {
        let key = ClusterKey::generate().unwrap();
        assert_eq!(key.reveal().parse::<ClusterKey>().unwrap(), key);
        assert!(!format!("{key:?}").contains(&key.reveal()[..16]));
        assert_eq!(key.id().to_string().parse::<KeyId>().unwrap(), key.id());
        assert_ne!(ClusterKey::generate().unwrap().id(), key.id());
        for wrong in ["", "00", &"g".repeat(64), &"ab".repeat(33)] {
            assert_eq!(wrong.parse::<ClusterKey>(), Err(InvalidKey::Form), "{wrong}");
        }
        assert_eq!("ab".repeat(32).parse::<ClusterKey>(), Err(InvalidKey::NotRandom));
        assert!("0123".parse::<KeyId>().is_err());
    }

    #[test]
    fn derived_keys_are_those_of_rfc_5869() {
        // Computed from the RFC's definition with Python's hmac and hashlib.
        let key = ClusterKey::from_bytes(std::array::from_fn(|ix| u8::try_from(ix).unwrap()));
        let mut out = [0; 8];
        key.derive(b"salt", &[b"in", b"fo"], &mut out);
        assert_eq!(out, [0x64, 0xcc, 0x2a, 0x23, 0xb7, 0xa1, 0xda, 0x43]);
    }

    #[test]
    fn one_key_of_a_ring_is_in_use_and_stays() {
        let [a, b, c] = [1, 2, 3].map(|byte| ClusterKey::from_bytes([byte; 32]));
        let mut ring = KeyRing::new(a.clone());
        assert!(ring.accept(b.clone()) && ring.accept(c.clone()) && ring.accept(b.clone()));
        assert_eq!(ring.ids(), [a.id(), b.id(), c.id()]);
        assert!(ring.put_in_use(c.id()));
        assert_eq!(ring.ids(), [c.id(), a.id(), b.id()]);
        assert!(!ring.remove(c.id()) && ring.remove(a.id()) && !ring.remove(a.id()));
        assert!(!ring.put_in_use(a.id()));
        for byte in 10..16 {
            assert!(ring.accept(ClusterKey::from_bytes([byte; 32])));
        }
        assert!(!ring.accept(a));
    }
}
