//! What goes over the wire: the one place where bytes become messages and back.
//!
//! A message is a byte that names its kind (0: the failure detector) and a body, encoded by postcard. What
//! is around it, is in [`super::envelope`].
//!
//! No message is longer than [`DATAGRAM_MAX`], so none is ever fragmented.

use bytes::{Buf, BufMut};
use foca::{Codec, Header, PostcardCodec};
use serde::{Deserialize, Serialize};

use super::counters::Refused;
use super::identity::Identity;
use super::pod_store::{ClockItem, Delta, Want};
use super::record::{Record, stir};
use super::session::SEAL_LEN_MAX;
use crate::node_id::NodeId;
use crate::pods::Pod;
use crate::seal::KeyId;

/// Longest datagram, in bytes of UDP payload: fits the least IPv6 MTU with room for a seal.
pub const DATAGRAM_MAX: usize = 1200;

/// Most bytes around a body: the seal, and the kind.
pub(super) const ENVELOPE_LEN: usize = SEAL_LEN_MAX + 1;

const KIND_SWIM: u8 = 0;
const KIND_MESSAGE: u8 = 1;

/// What is in a datagram.
#[derive(Debug)]
pub(super) enum Datagram<'a> {
    /// For the failure detector.
    Swim(&'a [u8]),
    /// For ourselves.
    Message(Box<Envelope>),
}

/// A message and its sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Envelope {
    pub(super) from: Identity,
    /// The highest lease epoch that the sender has seen.
    pub(super) clock: u64,
    pub(super) message: Message,
}

/// Everything that nodes say to each other besides the failure detector's own messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message {
    /// "Here I am; who are you?" With what is thought of the receiver, if that is known, and the keys that the
    /// sender accepts, the one that it uses first.
    Hello { you: Option<View>, keys: Vec<KeyId> },
    /// The answer: what is known of the asker, and the keys again.
    Welcome { you: Option<View>, keys: Vec<KeyId> },
    /// "Here is what I know, in 64 numbers for records and 64 for pods."
    Digest { session: u32, buckets: Vec<u8>, pods: Vec<u8> },
    /// "The same records as I do."
    InSync { session: u32 },
    /// "In these buckets we differ: this is my list of them." All ids from `low` to `high` in the
    /// buckets of `mask` are listed.
    Versions {
        session: u32,
        part: u16,
        parts: u16,
        /// Whether the parts together cover all that differs.
        complete: bool,
        mask: u64,
        low: NodeId,
        high: NodeId,
        items: Vec<VersionItem>,
    },
    /// "Send me these."
    Request { ids: Vec<NodeId> },
    /// Records, asked for or new.
    Records { items: Vec<RecordItem> },
    /// "In these buckets we know different things of pods: this is what I know." As with `Versions`.
    Clocks { session: u32, mask: u64, low: NodeId, high: NodeId, items: Vec<ClockItem> },
    /// "Of these nodes' pods I know this: send me the rest."
    PodRequest { wants: Vec<Want> },
    /// Changes of pods, asked for or new.
    Pods {
        items: Vec<Delta>,
        /// How this came.
        answers: Answer,
    },
}

/// Why changes of pods are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// They are news.
    News,
    /// They were asked for, and more follows.
    Part,
    /// They were asked for, and this is all that is sent before somebody asks again.
    Last,
}

/// What a node thinks of another one's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct View {
    pub(super) id: NodeId,
    /// The highest incarnation it has heard of, and whether that one is dead to it.
    pub(super) incarnation: Option<(u64, bool)>,
    /// The version of its record.
    pub(super) version: Option<u64>,
    /// Whether that record is forgotten, and only its version known.
    pub(super) buried: bool,
}

/// A record's version, without the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VersionItem {
    pub(super) id: NodeId,
    pub(super) version: u64,
    pub(super) digest: u64,
}

/// A record, and whether its owner is alive in the sender's view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordItem {
    pub(super) record: Record,
    /// For how many seconds the owner has been dead or gone; `None` while it lives.
    pub(super) dead_for_s: Option<u32>,
}

/// FNV-1a, with the bits stirred so that every part of the result is as good as the whole.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    stir(bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}

/// Encodes what the failure detector wants to send.
pub(super) fn encode_swim(body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(1 + body.len());
    message.push(KIND_SWIM);
    message.extend_from_slice(body);
    message
}

/// Encodes a message.
pub(super) fn encode(envelope: &Envelope) -> Vec<u8> {
    let mut message = Vec::with_capacity(256);
    message.push(KIND_MESSAGE);
    postcard::to_extend(envelope, message).expect("memory takes whatever is encoded")
}

/// Encodes a record alone.
pub(super) fn encode_record(record: &Record) -> Vec<u8> {
    postcard::to_extend(record, Vec::with_capacity(128)).expect("memory takes whatever is encoded")
}

/// Length in bytes of a pod, encoded for other nodes.
pub(crate) fn pod_len(pod: &Pod) -> usize {
    encoded_len(pod)
}

/// Length in bytes of anything, encoded.
pub(super) fn encoded_len(value: &impl Serialize) -> usize {
    postcard::experimental::serialized_size(value).expect("counting cannot fail")
}

/// Reads a message.
pub(super) fn decode(message: &[u8]) -> Result<Datagram<'_>, Refused> {
    match message.split_first() {
        Some((&KIND_SWIM, body)) => Ok(Datagram::Swim(body)),
        Some((&KIND_MESSAGE, body)) => match postcard::take_from_bytes::<Envelope>(body) {
            Ok((envelope, [])) if envelope.from.is_valid() => {
                Ok(Datagram::Message(Box::new(envelope)))
            }
            Ok(_) | Err(_) => Err(Refused::Malformed),
        },
        Some(_) | None => Err(Refused::Malformed),
    }
}

/// The failure detector's encoding: postcard, with every identity checked on the way in.
#[derive(Debug, Clone, Copy)]
pub(super) struct SwimCodec;

impl SwimCodec {
    /// Reads the header of a datagram of the failure detector, and how long it is.
    pub(super) fn peek(mut body: &[u8]) -> Result<(Header<Identity>, usize), Refused> {
        let len = body.len();
        let header = Self.decode_header(&mut body).map_err(|_| Refused::Malformed)?;
        Ok((header, len - body.len()))
    }

    /// Reads the members that follow a header, as far as they decode (foca's `payload` module: a count
    /// in two bytes, then as many members).
    pub(super) fn members(tail: &[u8]) -> Vec<foca::Member<Identity>> {
        let Some((count, mut rest)) = tail.split_first_chunk::<2>() else { return Vec::new() };
        let decoded =
            (0..u16::from_be_bytes(*count)).map_while(|_| Self.decode_member(&mut rest).ok());
        decoded.collect()
    }
}

impl Codec<Identity> for SwimCodec {
    type Error = postcard::Error;

    fn encode_header(
        &mut self,
        header: &Header<Identity>,
        buf: impl BufMut,
    ) -> postcard::Result<()> {
        PostcardCodec.encode_header(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> postcard::Result<Header<Identity>> {
        use foca::Message::{ForwardedAck, IndirectAck, IndirectPing, PingReq};

        let header: Header<Identity> = PostcardCodec.decode_header(buf)?;
        let third = match &header.message {
            PingReq { target: third, .. }
            | IndirectAck { target: third, .. }
            | IndirectPing { origin: third, .. }
            | ForwardedAck { origin: third, .. } => third.is_valid(),
            foca::Message::Ping(_)
            | foca::Message::Ack(_)
            | foca::Message::Announce
            | foca::Message::Feed
            | foca::Message::Gossip
            | foca::Message::Broadcast
            | foca::Message::TurnUndead => true,
        };
        if third && header.src.is_valid() && header.dst.is_valid() {
            Ok(header)
        } else {
            Err(postcard::Error::DeserializeBadEncoding)
        }
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Identity>,
        buf: impl BufMut,
    ) -> postcard::Result<()> {
        PostcardCodec.encode_member(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> postcard::Result<foca::Member<Identity>> {
        let member: foca::Member<Identity> = PostcardCodec.decode_member(buf)?;
        if member.id().is_valid() {
            Ok(member)
        } else {
            Err(postcard::Error::DeserializeBadEncoding)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::sync::Arc;

    use super::*;
    use crate::gossip::identity::COUNTER_MAX;
    use crate::gossip::pod_store::{ChangeItem, Clock, Life, PodItem};
    use crate::gossip::record::tests::record;
    use crate::pods::POD_LEN_MAX;
    use crate::pods::tests::pod;
    use crate::seal::KEYS_MAX;

    fn from() -> Identity {
        Identity {
            id: NodeId([9; 16]),
            address: "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(),
            incarnation: COUNTER_MAX - 1,
        }
    }

    fn life() -> Life {
        Life { counter: COUNTER_MAX - 1, nonce: u32::MAX }
    }

    /// With the longest pod that there can be, and the greatest numbers.
    fn longest_delta() -> Delta {
        let most = COUNTER_MAX - 1;
        let mut pod = pod("web", "2001:db8::1");
        while pod.check().is_ok() {
            pod.labels.insert(format!("label-{}", pod.labels.len()), "v".repeat(40));
        }
        pod.labels.pop_last();
        let room = POD_LEN_MAX - pod_len(&pod);
        assert!(room < 63);
        pod.uid = Some("u".repeat(room.saturating_sub(1)).chars().take(62).collect());
        assert_eq!(pod.check(), Ok(()));
        let item = PodItem { age_ms: most, pod: Arc::new(pod) };
        Delta {
            id: NodeId([7; 16]),
            life: life(),
            base: most - 1,
            upto: most,
            last: most,
            floor: most,
            changes: vec![ChangeItem { change: most, key: most, pod: Some(item) }],
        }
    }

    fn messages() -> Vec<Message> {
        let id = NodeId([7; 16]);
        let view = View { id, incarnation: Some((3, true)), version: Some(1000), buried: true };
        vec![
            Message::Hello { you: None, keys: Vec::new() },
            Message::Welcome { you: Some(view), keys: vec![KeyId([3; 8]); KEYS_MAX] },
            Message::Digest { session: 77, buckets: vec![0xab; 512], pods: vec![0xcd; 512] },
            Message::InSync { session: 77 },
            Message::Versions {
                session: 77,
                part: 0,
                parts: 1,
                complete: true,
                mask: 1 << 63,
                low: NodeId::MIN,
                high: NodeId::MAX,
                items: vec![VersionItem { id, version: 12, digest: u64::MAX }],
            },
            Message::Request { ids: vec![id; 60] },
            Message::Records {
                items: vec![RecordItem { record: record(4, 12), dead_for_s: Some(3) }],
            },
            Message::Clocks {
                session: 77,
                mask: 1,
                low: NodeId::MIN,
                high: id,
                items: vec![ClockItem { id, clock: Clock { life: life(), change: 9 } }],
            },
            Message::PodRequest { wants: vec![Want::nothing(id); 40] },
            Message::Pods { items: vec![longest_delta()], answers: Answer::Last },
        ]
    }

    #[test]
    fn every_message_round_trips_and_fits() {
        for message in messages() {
            let envelope = Envelope { from: from(), clock: 3, message };
            let bytes = encode(&envelope);
            assert_eq!(bytes.len(), 1 + encoded_len(&envelope));
            assert!(bytes.len() + SEAL_LEN_MAX <= DATAGRAM_MAX);
            match decode(&bytes).unwrap() {
                Datagram::Message(decoded) => assert_eq!(*decoded, envelope),
                Datagram::Swim(_) => panic!("wrong kind"),
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(decode(&longer).unwrap_err(), Refused::Malformed);
        }
        assert_eq!(decode(&[]).unwrap_err(), Refused::Malformed);
        assert_eq!(decode(&[7, 7]).unwrap_err(), Refused::Malformed);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..1300)) {
            let _ = decode(&[&[KIND_MESSAGE], &body[..]].concat()).is_ok();
            let _ = decode(&body).is_ok();
            let _ = SwimCodec::peek(&body).is_ok();
        }

        #[test]
        fn changed_messages_never_panic(
            which in 0_usize..10,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let message = messages().swap_remove(which);
            let mut bytes = encode(&Envelope { from: from(), clock: 3, message });
            for (ix, value) in &changes {
                let ix = ix.index(bytes.len());
                bytes[ix] = *value;
            }
            let cut = cut.index(bytes.len());
            let _ = decode(&bytes[..cut]).is_ok();
            let _ = decode(&bytes).is_ok();
        }
    }
}
