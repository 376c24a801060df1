//! Frames into VXLAN datagrams, and datagrams into as few sends as possible.
//!
//! ```text
//!  super-frame ─► cut ─► │VXLAN│segment│VXLAN│segment│ … │VXLAN│last│ ─► one send (UDP_SEGMENT)
//!  small frames ───────► │VXLAN│frame  │VXLAN│frame  │ …
//!                         └─ a run: one peer, one source port, equal lengths (the last may be shorter)
//! ```
//!
//! [`Encapsulator`] copies into its one buffer, and hands it on when the next datagram does not continue
//! the run, or at [`Encapsulator::flush`]. So order is kept, whatever goes where. It knows no socket.

use std::net::SocketAddr;

use vswitch::frame::Frame;
use vswitch::offload::Cut;
use vswitch::tables::Peer;
use vswitch::verdict::Reason;
use vswitch::wire::Headers;

use crate::udp::PAYLOAD_MAX;
use crate::vxlan::{self, HEADER_LEN, Vni};

/// Datagrams on their way out: one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// Where they go.
    pub to: SocketAddr,
    /// Which source socket they take.
    pub socket_ix: usize,
    /// The length of every datagram but the last, which may be shorter. Never zero.
    pub segment_len: usize,
    /// How many datagrams there are; at least one.
    pub datagrams: u64,
    /// Their payloads, one behind the other.
    pub bytes: &'a [u8],
}

/// Collects datagrams into sends.
#[derive(Debug)]
pub struct Encapsulator {
    header: [u8; HEADER_LEN],
    segments_max: usize,
    buffer: Box<[u8]>,
    run: Option<Run>,
}

/// What the buffer holds.
#[derive(Debug, Clone, Copy)]
struct Run {
    to: SocketAddr,
    socket_ix: usize,
    segment_len: usize,
    datagrams: usize,
    len: usize,
    /// The last datagram is shorter than the others, so no further one can follow.
    closed: bool,
}

impl Encapsulator {
    /// Makes one whose sends hold at most `segments_max` datagrams.
    pub fn new(vni: Vni, segments_max: usize) -> Self {
        Self {
            header: vxlan::encode(vni),
            segments_max: segments_max.max(1),
            buffer: vec![0; PAYLOAD_MAX].into_boxed_slice(),
            run: None,
        }
    }

    /// Encapsulates `frame`, whose headers are `headers`, for `peer`. A super-frame is cut, and a partial
    /// checksum is filled in. What cannot be collected further is handed to `transmit`.
    ///
    /// # Errors
    /// Why the frame, as a whole, is to be dropped.
    pub fn push(
        &mut self,
        peer: &Peer,
        socket_ix: usize,
        frame: &Frame,
        headers: &Headers,
        transmit: &mut impl FnMut(Transmit<'_>),
    ) -> Result<(), Reason> {
        let cut = Cut::new(frame, headers)?;
        // The first segment is as long as any.
        if HEADER_LEN + cut.segment_len(0) > self.buffer.len() {
            return Err(Reason::TooBig);
        }
        for ix in 0..cut.segments() {
            let len = HEADER_LEN + cut.segment_len(ix);
            cut.write(ix, self.reserve(peer.underlay, socket_ix, len, transmit));
        }
        Ok(())
    }

    /// Hands on what is collected.
    pub fn flush(&mut self, transmit: &mut impl FnMut(Transmit<'_>)) {
        let Some(run) = self.run.take() else {
            return;
        };
        transmit(Transmit {
            to: run.to,
            socket_ix: run.socket_ix,
            segment_len: run.segment_len,
            datagrams: run.datagrams as u64,
            bytes: &self.buffer[..run.len],
        });
    }

    /// Makes room for a datagram of `len` bytes behind the run, or begins a new one.
    fn reserve(
        &mut self,
        to: SocketAddr,
        socket_ix: usize,
        len: usize,
        transmit: &mut impl FnMut(Transmit<'_>),
    ) -> &mut [u8] {
        let continues = self.run.is_some_and(|run| {
            !run.closed
                && run.to == to
                && run.socket_ix == socket_ix
                && len <= run.segment_len
                && run.datagrams < self.segments_max
                && run.len + len <= self.buffer.len()
        });
        if !continues {
            self.flush(transmit);
        }
        let run = self.run.get_or_insert(Run {
            to,
            socket_ix,
            segment_len: len,
            datagrams: 0,
            len: 0,
            closed: false,
        });
        let start = run.len;
        run.len += len;
        run.datagrams += 1;
        run.closed = len < run.segment_len;
        let (header, inner) = self.buffer[start..start + len].split_at_mut(HEADER_LEN);
        header.copy_from_slice(&self.header);
        inner
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use vswitch::frame::Frame;
    use vswitch::mac::Mac;
    use vswitch::wire;

    use super::*;

    /// What was handed on: to whom, by which socket, and the datagrams' inner frames.
    type Sent = Vec<(SocketAddr, usize, Vec<Vec<u8>>)>;

    struct Bench {
        encapsulator: Encapsulator,
        sent: Sent,
    }

    impl Bench {
        fn new(segments_max: usize) -> Self {
            Self { encapsulator: Encapsulator::new(Vni::WEFT, segments_max), sent: Vec::new() }
        }

        fn push(&mut self, peer: u8, socket_ix: usize, frame: &Frame) -> Result<(), Reason> {
            let headers = wire::parse(frame.data()).unwrap();
            let sent = &mut self.sent;
            let mut transmit = |transmit: Transmit<'_>| sent.push(take_apart(transmit));
            self.encapsulator.push(&self::peer(peer), socket_ix, frame, &headers, &mut transmit)
        }

        fn flush(&mut self) {
            let sent = &mut self.sent;
            self.encapsulator.flush(&mut |transmit| sent.push(take_apart(transmit)));
        }

        /// Sends frames of these lengths, and returns how many datagrams each send held.
        fn runs(&mut self, frames: &[(u8, usize, usize)]) -> Vec<usize> {
            for (peer, socket_ix, len) in frames {
                self.push(*peer, *socket_ix, &frame(*len)).unwrap();
            }
            self.flush();
            self.sent.iter().map(|(_, _, datagrams)| datagrams.len()).collect()
        }
    }

    /// Checks that a send keeps its promises.
    fn take_apart(transmit: Transmit<'_>) -> (SocketAddr, usize, Vec<Vec<u8>>) {
        let Transmit { to, socket_ix, segment_len, datagrams, bytes } = transmit;
        assert!(segment_len > 0 && !bytes.is_empty() && bytes.len() <= PAYLOAD_MAX);
        let chunks: Vec<_> = bytes.chunks(segment_len).collect();
        assert_eq!(chunks.len() as u64, datagrams);
        let inner = chunks.iter().map(|chunk| vxlan::decode(chunk, Vni::WEFT).unwrap().to_vec());
        (to, socket_ix, inner.collect())
    }

    fn peer(number: u8) -> Peer {
        Peer {
            name: format!("n{number}"),
            underlay: SocketAddr::from(([192, 0, 2, number], vxlan::PORT)),
            vtep_mac: Mac([2, 0, 0, 0, 0, number]),
            mtu: 1450,
            leases: Vec::new(),
        }
    }

    /// A UDP packet of `len` bytes, Ethernet header included.
    fn frame(len: usize) -> Frame {
        let mut bytes = Vec::new();
        let payload: Vec<u8> = (0..=255).cycle().take(len - 42).collect();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 244, 1, 2], [10, 244, 2, 2], 64)
            .udp(1, 2)
            .write(&mut bytes, &payload)
            .unwrap();
        let mut frame = Frame::new();
        assert!(frame.append(&bytes));
        frame
    }

    #[test]
    fn frames_of_equal_length_for_one_peer_go_together() {
        assert_eq!(Bench::new(64).runs(&[(1, 0, 100); 10]), [10]);
    }

    #[test]
    fn nothing_is_handed_on_before_it_must_be_and_nothing_twice() {
        let mut bench = Bench::new(64);
        bench.flush();
        bench.push(1, 0, &frame(100)).unwrap();
        assert!(bench.sent.is_empty());
        bench.flush();
        bench.flush();
        assert_eq!(bench.sent.len(), 1);
        assert_eq!(bench.sent[0].0, "192.0.2.1:4789".parse().unwrap());
        assert_eq!(bench.sent[0].2, [frame(100).data()]);
    }

    #[test]
    fn a_run_ends_where_it_cannot_go_on() {
        for (what, frames, runs) in [
            ("another peer", &[(1, 0, 100), (2, 0, 100), (1, 0, 100)][..], &[1, 1, 1][..]),
            ("another socket", &[(1, 0, 100), (1, 1, 100), (1, 1, 100)], &[1, 2]),
            ("a longer frame", &[(1, 0, 100), (1, 0, 101), (1, 0, 101)], &[1, 2]),
            ("behind a shorter one", &[(1, 0, 100), (1, 0, 99), (1, 0, 99)], &[2, 1]),
            ("behind a shorter one", &[(1, 0, 100), (1, 0, 99), (1, 0, 100)], &[2, 1]),
        ] {
            assert_eq!(Bench::new(64).runs(frames), runs, "{what}");
        }
    }

    #[test]
    fn a_run_has_limits() {
        assert_eq!(Bench::new(64).runs(&[(1, 0, 100); 150]), [64, 64, 22]);
        assert_eq!(Bench::new(1).runs(&[(1, 0, 100); 3]), [1, 1, 1]);
        assert_eq!(Bench::new(0).runs(&[(1, 0, 100); 2]), [1, 1], "at least one");
        let len = 1450 + 14;
        let most = PAYLOAD_MAX / (len + HEADER_LEN);
        assert_eq!(Bench::new(128).runs(&vec![(1, 0, len); most + 1]), [most, 1]);
    }

    #[test]
    fn what_no_datagram_can_hold_is_refused_and_leaves_the_run_alone() {
        let mut bench = Bench::new(64);
        bench.push(1, 0, &frame(100)).unwrap();
        let longest = PAYLOAD_MAX - HEADER_LEN;
        assert_eq!(bench.push(1, 0, &frame(longest + 1)), Err(Reason::TooBig));
        assert_eq!(bench.runs(&[(1, 0, 100), (1, 0, longest)]), [2, 1]);
    }

    proptest! {
        #[test]
        fn order_is_kept_and_nothing_is_lost_or_made(
            frames in prop::collection::vec((1_u8..4, 0_usize..3, 60_usize..70), 0..200),
            segments_max in 1_usize..130,
        ) {
            let mut bench = Bench::new(segments_max);
            bench.runs(&frames);
            let sent: Vec<_> = bench
                .sent
                .iter()
                .inspect(|(_, _, datagrams)| assert!(datagrams.len() <= segments_max))
                .flat_map(|(to, socket_ix, datagrams)| {
                    datagrams.iter().map(|inner| (*to, *socket_ix, inner.clone()))
                })
                .collect();
            let pushed: Vec<_> = frames
                .iter()
                .map(|(to, socket_ix, len)| {
                    (peer(*to).underlay, *socket_ix, frame(*len).data().to_vec())
                })
                .collect();
            prop_assert_eq!(sent, pushed);
        }
    }
}
