//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An Ethernet (IEEE 802) address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The switch's own address on every port: pods and the host send to it as their next hop.
    ///
    /// Locally administered; the last five bytes spell "WEFT" and an index.
    pub const ROUTER: Self = Self([0x02, b'W', b'E', b'F', b'T', 0x01]);

    /// The address of the node's own interface `weft0`.
    pub const HOST: Self = Self([0x02, b'W', b'E', b'F', b'T', 0x02]);

    /// Reads the first six bytes of `bytes`; `None` if there are fewer.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(|octets| Self(*octets))
    }

    /// Whether the group bit is set: multicast or broadcast (IEEE 802-2014 §8.2.2).
    #[inline]
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether this can name one interface: not a group address and not all zero.
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self != Self::default()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not six hexadecimal bytes joined by colons.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a MAC address: write six hexadecimal bytes, such as 02:00:5e:10:00:01")]
pub struct InvalidMac(String);

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(invalid)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() {
            return Err(invalid());
        }
        Ok(Self(octets))
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 6]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let mac: Mac = "0a:58:0a:f4:01:05".parse().unwrap();
        assert_eq!(mac, Mac([0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x05]));
        assert_eq!(mac.to_string(), "0a:58:0a:f4:01:05");
    }

    #[test]
    fn wrong_text_is_refused() {
        for text in [
            "",
            "0a:58",
            "0a:58:0a:f4:01:05:06",
            "0a:58:0a:f4:01:zz",
            "+a:58:0a:f4:01:0",
            "a:5:0:f:1:5",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn our_own_addresses_are_local_unicast() {
        for mac in [Mac::ROUTER, Mac::HOST] {
            assert!(mac.is_unicast());
            assert_eq!(mac.0[0] & 2, 2, "locally administered");
        }
    }
}
