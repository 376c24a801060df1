//! The VXLAN header (RFC 7348 §5).
//!
//! ```text
//!  0               1               2               3
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |R|R|R|R|I|R|R|R|            Reserved                           |
//! |                VXLAN Network Identifier (VNI) |   Reserved    |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! ```
//!
//! Reserved bits are zero when sent and ignored when received.

use vswitch::verdict::Reason;
use vswitch::wire::ETHERNET_LEN;

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 8;

/// The UDP port that IANA assigned (RFC 7348 §8).
pub const PORT: u16 = 4789;

/// The I flag: the VNI is valid.
const FLAG_I: u8 = 0x08;

/// A VXLAN network identifier: 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The one that Weft uses, as flannel does.
    pub const WEFT: Self = Self(1);

    /// Takes a number below 2²⁴.
    pub fn new(vni: u32) -> Option<Self> {
        (vni < 1 << 24).then_some(Self(vni))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// Makes the header for `vni`.
pub fn encode(vni: Vni) -> [u8; HEADER_LEN] {
    let [_, high, middle, low] = vni.0.to_be_bytes();
    [FLAG_I, 0, 0, 0, high, middle, low, 0]
}

/// Finds the inner Ethernet frame of a datagram.
///
/// # Errors
/// The reason to drop it: too short for both headers, I flag clear, or a VNI other than `vni`.
pub fn decode(datagram: &[u8], vni: Vni) -> Result<&[u8], Reason> {
    let Some((header, inner)) = datagram.split_first_chunk::<HEADER_LEN>() else {
        return Err(Reason::VxlanTruncated);
    };
    if inner.len() < ETHERNET_LEN {
        return Err(Reason::VxlanTruncated);
    }
    let [flags, _, _, _, high, middle, low, _] = *header;
    if flags & FLAG_I == 0 {
        return Err(Reason::VxlanFlag);
    }
    if u32::from_be_bytes([0, high, middle, low]) != vni.0 {
        return Err(Reason::VxlanVni);
    }
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INNER: [u8; 14] = *b"abcdefghijklmn";

    fn datagram(header: [u8; HEADER_LEN]) -> Vec<u8> {
        [&header[..], &INNER].concat()
    }

    #[test]
    fn the_header_is_the_one_of_the_rfc() {
        assert_eq!(encode(Vni::WEFT), [8, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(encode(Vni::new(0x0012_3456).unwrap()), [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        assert_eq!(Vni::new(1 << 24), None);
    }

    #[test]
    fn what_is_not_ours_has_its_reason() {
        let decode = |header| decode(&datagram(header), Vni::WEFT).map(<[u8]>::len);
        assert_eq!(decode([8, 0, 0, 0, 0, 0, 1, 0]), Ok(14));
        assert_eq!(decode([0xff, 1, 2, 3, 0, 0, 1, 0xff]), Ok(14), "reserved bits are ignored");
        assert_eq!(decode([0, 0, 0, 0, 0, 0, 1, 0]), Err(Reason::VxlanFlag));
        assert_eq!(decode([0xf7, 0, 0, 0, 0, 0, 1, 0]), Err(Reason::VxlanFlag));
        assert_eq!(decode([8, 0, 0, 0, 1, 0, 1, 0]), Err(Reason::VxlanVni));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            match decode(&bytes, Vni::WEFT) {
                Ok(inner) => prop_assert_eq!(inner, &bytes[HEADER_LEN..]),
                Err(Reason::VxlanTruncated) => prop_assert!(bytes.len() < 22),
                Err(Reason::VxlanFlag) => prop_assert_eq!(bytes[0] & 8, 0),
                Err(Reason::VxlanVni) => prop_assert_ne!(&bytes[4..7], &[0, 0, 1]),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(vni in 0_u32..1 << 24) {
            let vni = Vni::new(vni).unwrap();
            let datagram = datagram(encode(vni));
            prop_assert_eq!(decode(&datagram, vni), Ok(&INNER[..]));
        }
    }
}
