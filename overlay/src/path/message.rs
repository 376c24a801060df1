//! The format of probes and their replies: an Ethernet frame inside the tunnel.
//!
//! ```text
//!  0       6       12      14       18   19   20       28    30    32        60
//!  +-------+-------+-------+--------+----+----+--------+-----+-----+---------+--- … ---+
//!  | dest. | source| 88 b5 | "weft" | 1  |kind| nonce  | mtu | len | zero    | zero    |
//!  +-------+-------+-------+--------+----+----+--------+-----+-----+---------+--- … ---+
//! ```
//!
//! The addresses are the nodes' VTEP addresses, so the frame is for the tunnel endpoint itself: a kernel `vxlan` device
//! or OVS hands it to its own host, which knows nobody for *Local Experimental EtherType 1* (IEEE 802, 88-B5) and drops
//! it; nothing floods it, and a learning one learns what is true. *kind* is 0 for a probe and 1 for a reply. The *nonce*
//! is chosen by chance by who probes, and repeated in the reply, so nobody can answer who has not seen the probe. *mtu*
//! is the longest IP packet that the frame's sender sends to its receiver. *len* is the length of the probe as it was
//! sent, also in the reply. Numbers are big-endian.
//!
//! A reply has [`REPLY_LEN`] bytes, and no probe has less: nobody can be made to send more than was sent to it.

use vswitch::mac::Mac;
use vswitch::verdict::Reason;
use vswitch::wire::ETHERNET_LEN;

/// Length of a reply, and of the shortest probe: the shortest frame of Ethernet.
pub const REPLY_LEN: usize = 60;

/// Longest probe: an inner frame that one datagram holds on every underlay.
pub const PROBE_LEN_MAX: usize = 65_400;

/// IEEE 802, Local Experimental EtherType 1.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

const MAGIC: [u8; 4] = *b"weft";

const VERSION: u8 = 1;

/// Bytes before the padding.
const HEADER_LEN: usize = 32;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It asks for a reply.
    Probe,
    /// It is one.
    Reply,
}

/// A probe or a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Which of the two.
    pub kind: Kind,
    /// Chosen by who probes.
    pub nonce: u64,
    /// Longest IP packet that the sender of this frame sends to its receiver.
    pub mtu: u16,
    /// Length of the probe, Ethernet header included.
    pub len: u16,
}

/// Whether `frame` has the EtherType of probes.
pub fn is_probe(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ETHERTYPE)
}

/// Reads a frame for which [`is_probe`] holds: destination, source and message.
///
/// # Errors
/// [`Reason::EtherType`] when it is somebody else's experiment or of a later version, [`Reason::Malformed`] when it is
/// ours and contradicts itself.
pub fn read(frame: &[u8]) -> Result<(Mac, Mac, Message), Reason> {
    let (ethernet, rest) = frame.split_at_checked(ETHERNET_LEN).ok_or(Reason::Malformed)?;
    let body = rest.first_chunk::<{ HEADER_LEN - ETHERNET_LEN }>().ok_or(Reason::Malformed)?;
    let [m0, m1, m2, m3, version, kind, numbers @ ..] = *body;
    if [m0, m1, m2, m3] != MAGIC || version != VERSION {
        return Err(Reason::EtherType);
    }
    let [n0, n1, n2, n3, n4, n5, n6, n7, mtu0, mtu1, len0, len1] = numbers;
    let len = u16::from_be_bytes([len0, len1]);
    let kind = match kind {
        0 if usize::from(len) == frame.len() && frame.len() >= REPLY_LEN => Kind::Probe,
        1 if usize::from(len) >= REPLY_LEN => Kind::Reply,
        _ => return Err(Reason::Malformed),
    };
    let nonce = u64::from_be_bytes([n0, n1, n2, n3, n4, n5, n6, n7]);
    let message = Message { kind, nonce, mtu: u16::from_be_bytes([mtu0, mtu1]), len };
    let (destination, source) = ethernet[..12].split_at(6);
    let mac = |bytes: &[u8]| Mac(std::array::from_fn(|ix| bytes[ix]));
    Ok((mac(destination), mac(source), message))
}

/// Writes a frame over all of `frame`: of a reply [`REPLY_LEN`] bytes, of a probe as many as [`Message::len`] says.
///
/// # Panics
/// If `frame` is shorter than [`REPLY_LEN`].
pub fn write(frame: &mut [u8], destination: Mac, source: Mac, message: &Message) {
    let (header, padding) = frame.split_at_mut(HEADER_LEN);
    header[..6].copy_from_slice(&destination.0);
    header[6..12].copy_from_slice(&source.0);
    header[12..14].copy_from_slice(&ETHERTYPE);
    header[14..18].copy_from_slice(&MAGIC);
    header[18] = VERSION;
    header[19] = match message.kind {
        Kind::Probe => 0,
        Kind::Reply => 1,
    };
    header[20..28].copy_from_slice(&message.nonce.to_be_bytes());
    header[28..30].copy_from_slice(&message.mtu.to_be_bytes());
    header[30..32].copy_from_slice(&message.len.to_be_bytes());
    padding.fill(0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TO: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const FROM: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn message(kind: Kind, len: u16) -> Message {
        Message { kind, nonce: 0x0102_0304_0506_0708, mtu: 1450, len }
    }

    fn written(message: &Message, len: usize) -> Vec<u8> {
        let mut frame = vec![0xff; len];
        write(&mut frame, TO, FROM, message);
        frame
    }

    #[test]
    fn a_probe_is_written_byte_by_byte() {
        let mut expected = vec![
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5, b'w', b'e', b'f', b't', 1, 0, 1, 2, 3,
            4, 5, 6, 7, 8, 0x05, 0xaa, 0, 60,
        ];
        expected.resize(60, 0);
        assert_eq!(written(&message(Kind::Probe, 60), 60), expected);
    }

    #[test]
    fn what_is_written_is_read() {
        for (message, len) in [
            (message(Kind::Probe, 60), 60),
            (message(Kind::Probe, 1464), 1464),
            (message(Kind::Reply, 1464), REPLY_LEN),
        ] {
            let frame = written(&message, len);
            assert!(is_probe(&frame));
            assert_eq!(read(&frame), Ok((TO, FROM, message)));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let probe = written(&message(Kind::Probe, 100), 100);
        assert_eq!(read(&probe[..99]), Err(Reason::Malformed), "cut on its way");
        assert_eq!(read(&written(&message(Kind::Probe, 59), 59)), Err(Reason::Malformed));
        assert_eq!(read(&written(&message(Kind::Reply, 59), 60)), Err(Reason::Malformed));
        for (at, value, reason) in
            [(14, b'W', Reason::EtherType), (18, 2, Reason::EtherType), (19, 2, Reason::Malformed)]
        {
            let mut frame = probe.clone();
            frame[at] = value;
            assert_eq!(read(&frame), Err(reason), "{at}");
        }
        for len in 0..HEADER_LEN {
            assert!(read(&probe[..len]).is_err(), "{len}");
            assert_eq!(is_probe(&probe[..len]), len >= 14, "{len}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _whatever = read(&bytes);
        }
    }
}
