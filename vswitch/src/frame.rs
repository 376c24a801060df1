//! Frames, and the pool that their buffers come from.
//!
//! ```text
//!  buffer   |<-- HEADROOM -->|<----------- FRAME_LEN_MAX ----------->|
//!  frame                     |== data ==|<-------- tail room ------->|
//! ```
//!
//! A [`Frame`] is owned by exactly one stage at a time and is moved from stage to stage. It is not
//! `Clone`: a copy is an explicit act and takes a second buffer from a [`Pool`]. Encapsulation moves
//! the start of the data into the headroom instead of moving the payload.

use crate::ix::{NodeIx, PortIx};

/// Bytes in front of a received frame: room for a virtio-net header, or for the outer Ethernet, IPv6,
/// UDP and VXLAN headers (70 bytes).
pub const HEADROOM: usize = 128;

/// The longest frame: an Ethernet header and the longest IP packet (RFC 791 §3.1).
pub const FRAME_LEN_MAX: usize = 14 + 65_535;

/// The most frames that one stage handles in one go.
pub const BATCH_MAX: usize = 64;

/// Frames on their way through the switch, in order of arrival.
pub type Batch = Vec<Frame>;

/// One Ethernet frame without FCS, possibly a super-frame that stands for several packets.
#[derive(Debug)]
pub struct Frame {
    buffer: Box<[u8]>,
    start: usize,
    len: usize,
    /// What is known of the frame beside its bytes.
    pub meta: Meta,
}

/// What is known of a frame beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Where the frame came in.
    pub ingress: Ingress,
    /// Set on a super-frame: how it is to be cut.
    pub gso: Option<Gso>,
    /// How far the layer 4 checksum can be trusted.
    pub checksum: Checksum,
}

/// Where a frame entered the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// From a local port.
    Port(PortIx),
    /// Out of the tunnel, from another node. The index is valid for the tables of the same batch.
    Node(NodeIx),
    /// Made by the switch itself, such as an ICMP error.
    Switch,
}

/// The state of a frame's layer 4 checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// The field is filled in, by whom is not known.
    Filled,
    /// The field is right: checked, or vouched for by the kernel on this machine.
    Verified,
    /// The field holds the folded pseudo-header sum; the sum over everything from `start`, counted
    /// from the first byte of the frame, belongs `offset` bytes behind `start`
    /// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`, `linux/virtio_net.h`).
    Partial {
        /// Where the summed bytes begin: the first byte of the layer 4 header.
        start: u16,
        /// Where, counted from `start`, the checksum belongs.
        offset: u16,
    },
}

/// How a super-frame is cut into packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// What is cut.
    pub kind: GsoKind,
    /// Layer 4 payload bytes in every packet but the last, which may be shorter. Never zero.
    pub size: u16,
    /// How many packets the super-frame stands for. At least 1.
    pub segments: u16,
}

/// What a super-frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// A TCP segment over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    Tcp4,
    /// A TCP segment over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    Tcp6,
    /// UDP datagrams of equal length (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp,
}

impl Frame {
    /// Makes an empty frame with a buffer of its own. Hot paths take theirs from a [`Pool`].
    pub fn new() -> Self {
        Self {
            buffer: vec![0; HEADROOM + FRAME_LEN_MAX].into_boxed_slice(),
            start: HEADROOM,
            len: 0,
            meta: Meta::EMPTY,
        }
    }

    /// The frame's bytes, from the Ethernet header on.
    #[inline(always)]
    pub fn data(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.len]
    }

    /// The frame's bytes, to change in place.
    #[inline(always)]
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.start + self.len]
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the frame holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets bytes and meta data, so that the buffer can be filled anew.
    #[inline]
    pub fn clear(&mut self) {
        self.start = HEADROOM;
        self.len = 0;
        self.meta = Meta::EMPTY;
    }

    /// Everything that a read may fill: `prefix` bytes of headroom (a virtio-net header) and the room
    /// for the longest frame behind it. Follow with [`Frame::set_len`].
    ///
    /// # Panics
    /// If `prefix` is larger than [`HEADROOM`].
    pub fn spare_mut(&mut self, prefix: usize) -> &mut [u8] {
        self.start = HEADROOM;
        self.len = 0;
        &mut self.buffer[HEADROOM - prefix..]
    }

    /// The `prefix` bytes in front of the data.
    ///
    /// # Panics
    /// If the headroom left is smaller than `prefix`.
    #[inline]
    pub fn prefix_mut(&mut self, prefix: usize) -> &mut [u8] {
        &mut self.buffer[self.start - prefix..self.start]
    }

    /// The `prefix` bytes in front of the data, and the data: what one write to a TAP takes.
    ///
    /// # Panics
    /// If the headroom left is smaller than `prefix`.
    #[inline]
    pub fn data_with_prefix(&self, prefix: usize) -> &[u8] {
        &self.buffer[self.start - prefix..self.start + self.len]
    }

    /// Sets the length after the bytes were written through [`Frame::spare_mut`], or shortens it.
    ///
    /// # Panics
    /// If `len` passes the end of the buffer.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(self.start + len <= self.buffer.len(), "frame longer than its buffer");
        self.len = len;
    }

    /// Bytes that can still be appended.
    #[inline]
    pub fn tail_room(&self) -> usize {
        self.buffer.len() - self.start - self.len
    }

    /// Appends `bytes`. Returns whether they fitted; if not, nothing is changed.
    #[must_use]
    #[inline]
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        let end = self.start + self.len;
        let Some(room) = self.buffer.get_mut(end..end + bytes.len()) else {
            return false;
        };
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        true
    }

    /// How many packets the frame stands for: the unit of every packet counter.
    #[inline]
    pub fn packets(&self) -> u64 {
        self.meta.gso.map_or(1, |gso| u64::from(gso.segments))
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

impl Meta {
    /// Meta data of a frame that has not been filled yet.
    pub const EMPTY: Self =
        Self { ingress: Ingress::Switch, gso: None, checksum: Checksum::Filled };
}

/// The buffers of one worker. Nothing is allocated once they have been taken for the first time.
#[derive(Debug)]
pub struct Pool {
    free: Vec<Frame>,
    made: usize,
    frames_max: usize,
}

impl Pool {
    /// Makes a pool that hands out at most `frames_max` frames at a time.
    ///
    /// Buffers are made when first needed, and the last one returned is the first one reused, so an
    /// idle pool costs no memory and a busy one stays in the cache.
    pub fn new(frames_max: usize) -> Self {
        Self { free: Vec::with_capacity(frames_max), made: 0, frames_max }
    }

    /// Takes an empty frame; `None` when all are in use.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        if let Some(frame) = self.free.pop() {
            return Some(frame);
        }
        if self.made == self.frames_max {
            return None;
        }
        self.made += 1;
        Some(Frame::new())
    }

    /// Gives a frame back.
    #[inline]
    pub fn put(&mut self, mut frame: Frame) {
        debug_assert!(self.free.len() < self.frames_max, "a frame from elsewhere was put back");
        if self.free.len() < self.frames_max {
            frame.clear();
            self.free.push(frame);
        }
    }

    /// Frames that can still be taken.
    pub fn available(&self) -> usize {
        self.frames_max - self.in_use()
    }

    /// Frames that were taken and have not come back.
    pub fn in_use(&self) -> usize {
        self.made - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_with_a_prefix_leaves_the_data_in_place() {
        let mut frame = Frame::new();
        frame.spare_mut(10)[..14].copy_from_slice(b"0123456789abcd");
        frame.set_len(4);
        assert_eq!(frame.data(), b"abcd");
        assert_eq!(frame.data_with_prefix(10), b"0123456789abcd");
    }

    #[test]
    fn append_refuses_what_does_not_fit() {
        let mut frame = Frame::new();
        frame.set_len(FRAME_LEN_MAX - 1);
        assert!(!frame.append(&[1, 2]));
        assert_eq!(frame.len(), FRAME_LEN_MAX - 1);
        assert!(frame.append(&[1]));
        assert_eq!(frame.tail_room(), 0);
    }

    #[test]
    fn a_pool_has_a_limit_and_reuses_buffers() {
        let mut pool = Pool::new(2);
        let first = pool.take().unwrap();
        let second = pool.take().unwrap();
        assert!(pool.take().is_none());
        assert_eq!(pool.available(), 0);
        pool.put(first);
        assert_eq!((pool.in_use(), pool.available()), (1, 1));
        assert!(pool.take().is_some());
        pool.put(second);
    }
}
