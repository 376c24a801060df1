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
