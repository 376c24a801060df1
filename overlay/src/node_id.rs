//! Who a node is: an identity that outlives its addresses.
//!
//! An id is made once, kept in a file and never derived from an address: machines whose addresses
//! change, or who all believe to be `10.0.2.15`, stay apart.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;

use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vswitch::mac::Mac;

use crate::error::Error;
use crate::state_file;

/// A node's identity: 16 random bytes, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

impl NodeId {
    /// The lowest id.
    pub const MIN: Self = Self([0; 16]);

    /// The highest id.
    pub const MAX: Self = Self([0xff; 16]);

    /// Makes a new id from the kernel's random numbers.
    pub fn generate() -> Result<Self, Error> {
        let mut bytes = [0; 16];
        SysRng
            .try_fill_bytes(&mut bytes)
            .map_err(|cause| Error::Random { cause: io::Error::other(cause.to_string()) })?;
        Ok(Self(bytes))
    }

    /// Reads the id in the file at `path`, or makes one and writes it there when there is no file.
    ///
    /// The file is written beside its place, synced and renamed, so a crash leaves a whole one or none.
    ///
    /// # Errors
    ///
    /// When the file can be neither read nor made, and when its content is not an id: a node must not
    /// become somebody else because of a damaged disk, so that is for its operator to decide.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        match fs::read_to_string(path) {
            Ok(text) => {
                text.trim().parse().map_err(|_| Error::CorruptNodeId { path: path.to_owned() })
            }
            Err(source) if source.kind() == io::ErrorKind::InvalidData => {
                Err(Error::CorruptNodeId { path: path.to_owned() })
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                let id = Self::generate()?;
                state_file::write(path, format!("{id}\n").as_bytes())?;
                Ok(id)
            }
            Err(cause) => Err(Error::ReadState { path: path.to_owned(), cause }),
        }
    }

    /// The address of the node's tunnel endpoint: locally administered, unicast, the same for ever.
    pub fn vtep_mac(self) -> Mac {
        let [a, b, c, d, e, f, ..] = self.0;
        Mac([(a & 0b1111_1100) | 0b10, b, c, d, e, f])
    }

    /// The first eight digits: enough for people to tell nodes apart.
    pub fn short(self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a node id: write 32 hexadecimal digits")]
pub struct InvalidNodeId(String);

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        let invalid = || InvalidNodeId(text.chars().take(64).collect());
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        u128::from_str_radix(text, 16)
            .map(|number| Self(number.to_be_bytes()))
            .map_err(|_| invalid())
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_wrong_text_is_refused() {
        let id: NodeId = "00112233445566778899aabbccddeeff".parse().unwrap();
        assert_eq!(id.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(id.short(), "00112233");
        for text in
            ["", "00", "+0112233445566778899aabbccddeeff", "g0112233445566778899aabbccddeeff"]
        {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_tunnel_address_is_local_unicast_and_stable() {
        let id = NodeId([0xff; 16]);
        assert_eq!(id.vtep_mac(), Mac([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]));
        for _ in 0..64 {
            let mac = NodeId::generate().unwrap().vtep_mac();
            assert!(mac.is_unicast());
            assert_eq!(mac.0[0] & 2, 2);
        }
    }

    #[test]
    fn an_id_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node-id");
        let first = NodeId::load_or_create(&path).unwrap();
        assert_eq!(NodeId::load_or_create(&path).unwrap(), first);
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node-id");
        for damage in [&b""[..], b"0011", b"\xff\xfe\x00", b"00112233445566778899aabbccddeeff00"] {
            fs::write(&path, damage).unwrap();
            let error = NodeId::load_or_create(&path).unwrap_err();
            assert!(matches!(error, Error::CorruptNodeId { .. }), "{error}");
            assert!(error.to_string().contains("remove"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), damage);
        }
    }
}
