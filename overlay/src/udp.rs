//! The underlay's UDP sockets, with the kernel's offloads where they exist.
//!
//! Unconnected [`ReceiveSocket`]s take VXLAN from everybody (a kernel VTEP's source port is a flow hash, so
//! connecting would lock it out). They are several on one port, so that flows do not all wait in one queue
//! behind the largest of them; the kernel chooses by addresses and ports (`SO_REUSEPORT`, socket(7)), so a
//! flow has one. [`SendSocket`]s are several, because a UDP socket has one source port, and the source port
//! is what spreads flows over links and queues (RFC 7348 §5).
//!
//! **Fragmentation.** Don't Fragment is always set (`IP_PMTUDISC_DO`). VTEPs must not fragment (RFC 7348
//! §4.3), and pods' MTUs are chosen so that nothing needs to be. `DO` rather than `PROBE`, because the
//! kernel then heeds "fragmentation needed" from the path, and refuses what would be lost on it: the loss
//! becomes an error here, with a counter, instead of silence.
//!
//! **Checksums.** The outer UDP checksum is real. Without one the other side's `UDP_GRO` does nothing, and
//! `UDP_SEGMENT` refuses to send. Zero is accepted on receipt, as RFC 7348 §5 demands (RFC 6935 for IPv6).
//!
//! **Type of service.** The outer one is always 0; the inner one's ECN bits are not copied (RFC 6040).

// `recvmmsg`, `sendmmsg` and control messages: neither the standard library nor rustix has them all.
#![allow(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::{Arc, Weak};
use std::time::Instant;

use libc::{c_int, c_void};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use vswitch::counters::WorkerCounters;
use vswitch::verdict::Reason;

use crate::buffers::{grow_receive_buffer, grow_send_buffer};
use crate::send_offload::SendOffload;
use crate::vxlan;

/// The longest UDP payload over IPv4 (RFC 768, RFC 791: 65 535 − 20 − 8).
pub const PAYLOAD_MAX: usize = 65_507;

/// Source ports are taken from here on, to 65 535 (RFC 7348 §5).
pub const SOURCE_PORT_MIN: u16 = 49_152;

/// `UDP_MAX_SEGMENTS` of kernels before 6.9, and of later ones (`linux/udp.h`).
pub const SEGMENTS_MAX: [usize; 2] = [64, 128];

/// Most datagrams in one received message: as many as one send can hold, where it crosses the network
/// uncut. What `UDP_GRO` merges itself is less (`UDP_GRO_CNT_MAX`, `net/ipv4/udp_offload.c`).
pub const MESSAGE_DATAGRAMS_MAX: usize = SEGMENTS_MAX[1];

/// Datagrams, each perhaps an aggregate of many, taken by one system call while they are short.
const RECEIVE_MESSAGES: libc::c_uint = 8;
const RECEIVE_BATCH: usize = RECEIVE_MESSAGES as usize;

/// The same while they are long, as what is copied at once keeps others waiting.
const RECEIVE_LONG_MESSAGES: libc::c_uint = 2;

/// Bytes of one call from which on the next takes fewer messages: half a long one.
const RECEIVE_LONG: usize = 32_768;

/// The kernel merges up to 64 KiB of datagrams.
const RECEIVE_LEN: usize = 65_536;

/// Datagrams sent by one system call where `UDP_SEGMENT` does not work.
const SEND_BATCH: usize = 32;

/// How often a send is made again that an earlier datagram's fate has failed. A few such reports may wait,
/// but some policies (SELinux) answer every send in the same way, and must not hold the worker.
const RETRIES_MAX: usize = 4;

/// `UDP_NO_CHECK6_RX` (`linux/udp.h`): accept zero checksums over IPv6.
const UDP_NO_CHECK6_RX: c_int = 102;

/// What the kernel offers. Probed when the sockets are opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Received datagrams come merged (`UDP_GRO`, Linux 5.0); else one by one, at a multiple of the cost.
    pub receive_offload: Result<(), String>,
    /// Many datagrams are sent as one (`UDP_SEGMENT`, Linux 4.18); else one by one.
    pub send_offload: Result<(), String>,
    /// Most datagrams in one send.
    pub segments_max: usize,
    /// Bytes of the receive buffer that the kernel granted, of [`crate::buffers::RECEIVE_BUFFER`].
    pub receive_buffer: usize,
    /// Bytes of each send buffer that the kernel granted, of [`crate::buffers::SEND_BUFFER`].
    pub send_buffer: usize,
}

/// Probes what the kernel offers to sockets on `address`.
///
/// # Errors
/// When no socket can be opened on `address` at all.
pub fn probe(address: IpAddr) -> io::Result<Capabilities> {
    let socket = open(address)?;
    socket.bind(&SockAddr::from(SocketAddr::new(address, 0)))?;
    let receive_offload =
        set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).map_err(|error| error.to_string());
    let send_offload =
        set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 1).map_err(|error| error.to_string());
    let segments_max = if send_offload.is_ok() { probe_segments(&socket)? } else { 1 };
    Ok(Capabilities {
        receive_offload,
        send_offload,
        segments_max,
        receive_buffer: grow_receive_buffer(&socket)?,
        send_buffer: grow_send_buffer(&socket)?,
    })
}

/// Sends the socket, which is the only one that hears it, more one-byte segments than old kernels take.
/// Those refuse. If anything else is in the way, what old kernels take is right everywhere.
fn probe_segments(socket: &Socket) -> io::Result<usize> {
    let [old, new] = SEGMENTS_MAX;
    let bytes = [0; SEGMENTS_MAX[1]];
    match send_message(socket, &socket.local_addr()?, &bytes, Some(1)) {
        Ok(()) => Ok(new),
        Err(_) => Ok(old),
    }
}

/// A socket on which VXLAN arrives.
#[derive(Debug)]
pub struct ReceiveSocket {
    socket: Arc<Socket>,
    buffers: Box<[u8]>,
    /// What the last system call brought, in order of arrival.
    messages: [Message; RECEIVE_BATCH],
    /// The messages from here on have not been taken yet.
    next: usize,
    /// There are messages up to here.
    end: usize,
    /// How many messages the next system call is to bring.
    wanted: libc::c_uint,
    /// The last one brought all that there was.
    is_drained: bool,
}

/// One datagram, or several merged by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received<'a> {
    /// Who sent it.
    pub from: SocketAddr,
    /// The length of every datagram in `bytes` but the last, which may be shorter. Zero only if `bytes`
    /// is empty.
    pub stride: usize,
    /// The datagrams' payloads, one behind the other.
    pub bytes: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
struct Message {
    from: Option<SocketAddr>,
    stride: usize,
    len: usize,
}

impl ReceiveSocket {
    /// Opens `count` sockets on `address`, in the network namespace of the calling thread. Each flow comes to
    /// one of them.
    ///
    /// # Errors
    /// As [`ReceiveSocket::bind`].
    pub fn bind_group(address: SocketAddr, count: usize) -> io::Result<Vec<Self>> {
        let first = Self::bind_to(address, false)?;
        // Only now: it was to fail where anybody else has the port, another weftd included.
        first.socket.set_reuse_port(true)?;
        let address = first.socket.local_addr()?.as_socket().unwrap_or(address);
        let mut group = vec![first];
        for _ in 1..count {
            group.push(Self::bind_to(address, true)?);
        }
        Ok(group)
    }

    /// Opens a socket on `address`, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// `AddrInUse` when something else has the port; whatever else the kernel says.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::bind_to(address, false)
    }

    fn bind_to(address: SocketAddr, is_shared: bool) -> io::Result<Self> {
        let socket = open(address.ip())?;
        grow_receive_buffer(&socket)?;
        if address.is_ipv6() {
            set_option(&socket, libc::SOL_UDP, UDP_NO_CHECK6_RX, 1)?;
        }
        // Where the option does not exist, datagrams come one by one; `probe` has told.
        let _told_by_probe = set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
        socket.set_reuse_port(is_shared)?;
        socket.bind(&SockAddr::from(address))?;
        Ok(Self {
            socket: Arc::new(socket),
            buffers: vec![0; RECEIVE_BATCH * RECEIVE_LEN].into_boxed_slice(),
            messages: [Message { from: None, stride: 0, len: 0 }; RECEIVE_BATCH],
            next: 0,
            end: 0,
            wanted: RECEIVE_MESSAGES,
            is_drained: false,
        })
    }

    /// Readable when datagrams wait that were not read yet.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The socket, for whoever looks at its buffer.
    pub fn watch(&self) -> Weak<Socket> {
        Arc::downgrade(&self.socket)
    }

    /// Whether datagrams were read that [`ReceiveSocket::receive`] has not returned yet.
    pub fn pending(&self) -> bool {
        self.next < self.end
    }

    /// Whether the last [`ReceiveSocket::receive`] most likely returned the last datagrams that there are: asking
    /// for more would cost a system call.
    pub fn is_drained(&self) -> bool {
        self.is_drained && !self.pending()
    }

    /// Returns the next datagrams; `None` when nothing waits.
    ///
    /// # Errors
    /// When the socket is of no use any more. What has merely gone wrong on the way is no error.
    pub fn receive(&mut self) -> io::Result<Option<Received<'_>>> {
        loop {
            if !self.pending() {
                self.read()?;
                if self.end == 0 {
                    return Ok(None);
                }
            }
            let ix = self.next;
            self.next += 1;
            let Message { from, stride, len } = self.messages[ix];
            let start = ix * RECEIVE_LEN;
            if let Some(from) = from {
                let bytes = &self.buffers[start..start + len];
                return Ok(Some(Received { from, stride, bytes }));
            }
        }
    }

    /// Reads what waits, up to eight messages.
    fn read(&mut self) -> io::Result<()> {
        let mut names = [const { MaybeUninit::<libc::sockaddr_storage>::zeroed() }; RECEIVE_BATCH];
        let mut controls = [[0_u64; CONTROL_WORDS]; RECEIVE_BATCH];
        let mut vectors = [EMPTY_VECTOR; RECEIVE_BATCH];
        // SAFETY: `mmsghdr` is plain integers and pointers, for which all zeroes are valid.
        let mut headers: [libc::mmsghdr; RECEIVE_BATCH] = unsafe { mem::zeroed() };
        for (ix, buffer) in self.buffers.chunks_exact_mut(RECEIVE_LEN).enumerate() {
            vectors[ix] =
                libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut headers[ix].msg_hdr;
            header.msg_name = names[ix].as_mut_ptr().cast();
            header.msg_namelen = NAME_LEN;
            header.msg_iov = &raw mut vectors[ix];
            header.msg_iovlen = 1;
            header.msg_control = controls[ix].as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&controls[ix]);
        }
        (self.next, self.end) = (0, 0);
        // SAFETY: each of the RECEIVE_BATCH headers points to its own name, control and payload buffer
        // with their true lengths; all of them outlive the call, and no reference to them is in use.
        let received = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                self.wanted,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            return if is_broken(&error) { Err(error) } else { Ok(()) };
        };
        for (ix, (header, name)) in headers.iter().zip(&names).enumerate().take(received) {
            let len = usize::try_from(header.msg_len).unwrap_or(0).min(RECEIVE_LEN);
            // SAFETY: it was zeroed, and `sockaddr_storage` is valid for all bytes.
            let from = socket_address(unsafe { name.assume_init_ref() });
            let stride = gro_size(&header.msg_hdr).unwrap_or(len);
            self.messages[ix] = Message { from, stride, len };
        }
        self.end = received;
        self.is_drained = received < self.wanted as usize;
        let bytes: usize = self.messages[..received].iter().map(|message| message.len).sum();
        let is_long = bytes >= RECEIVE_LONG;
        self.wanted = if is_long { RECEIVE_LONG_MESSAGES } else { RECEIVE_MESSAGES };
        Ok(())
    }
}

/// A socket that sends VXLAN, with a source port of its own.
#[derive(Debug)]
pub struct SendSocket {
    socket: Arc<Socket>,
    source_port: u16,
}

/// A way to send through a [`SendSocket`] from elsewhere, as long as that is open.
#[derive(Debug, Clone)]
pub struct ProbeSocket(Weak<Socket>);

impl ProbeSocket {
    /// Sends one datagram; `None` once the socket is closed.
    pub fn send(&self, destination: SocketAddr, bytes: &[u8]) -> Option<Sent> {
        let socket = self.0.upgrade()?;
        Some(Sent::of(send_message(&socket, &SockAddr::from(destination), bytes, None), bytes))
    }
}

/// What became of the datagrams of one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// The kernel has taken them.
    pub taken: u64,
    /// Bytes of the payloads that the kernel has taken.
    pub bytes: u64,
    /// The send buffer was full.
    pub full: u64,
    /// They were longer than the path carries, as far as the kernel knows it.
    pub too_long: u64,
    /// The kernel refused them for another reason: no route, forbidden.
    pub refused: u64,
}

impl SendSocket {
    /// Opens a socket on `address` with a free source port from 49152–65535, in the network namespace
    /// of the calling thread.
    ///
    /// # Errors
    /// `AddrInUse` when all those ports are taken; whatever else the kernel says.
    pub fn bind(address: IpAddr) -> io::Result<Self> {
        let socket = open(address)?;
        grow_send_buffer(&socket)?;
        // Nobody reads what is sent to it, so little of that is to be kept (the kernel has a minimum).
        socket.set_recv_buffer_size(0)?;
        // A random start, so that a restarted node does not meet its own old flows' state on the way.
        let start = RandomState::new().hash_one(address);
        let ports = u64::from(u16::MAX - SOURCE_PORT_MIN) + 1;
        for offset in 0..ports {
            let port =
                SOURCE_PORT_MIN + u16::try_from(start.wrapping_add(offset) % ports).unwrap_or(0);
            match socket.bind(&SockAddr::from(SocketAddr::new(address, port))) {
                Ok(()) => return Ok(Self { socket: Arc::new(socket), source_port: port }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// The source port.
    pub fn source_port(&self) -> u16 {
        self.source_port
    }

    /// The socket, for whoever looks at its buffer.
    pub fn watch(&self) -> Weak<Socket> {
        Arc::downgrade(&self.socket)
    }

    /// A way to send through it for probes.
    pub fn probe_socket(&self) -> ProbeSocket {
        ProbeSocket(self.watch())
    }

    /// Sends `bytes` as datagrams of `segment_len` bytes, the last of which may be shorter: by one call if
    /// `offload` has it so. The clock is read only where that does not work.
    ///
    /// `bytes` must not be empty, and hold at most [`PAYLOAD_MAX`] bytes and
    /// [`Capabilities::segments_max`] datagrams.
    pub fn send(
        &self,
        offload: &mut SendOffload,
        destination: SocketAddr,
        segment_len: usize,
        bytes: &[u8],
        clock: impl Fn() -> Instant,
    ) -> Sent {
        let to = SockAddr::from(destination);
        let datagrams = bytes.len().div_ceil(segment_len) as u64;
        if datagrams == 1 {
            return Sent::of(send_message(&self.socket, &to, bytes, None), bytes);
        }
        let may_merge = offload.may_merge(destination, &clock);
        let (true, Ok(segment)) = (may_merge, u16::try_from(segment_len)) else {
            return self.send_singly(&to, segment_len, bytes);
        };
        match send_message(&self.socket, &to, bytes, Some(segment)) {
            Ok(()) => {
                offload.regain(destination);
                Sent::taken(datagrams, bytes.len())
            }
            // EIO: the route's device cannot do it. EINVAL: some kernels say so when a segment is too
            // long for the path, too. Which it is shows when the same datagrams go singly.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => {
                let sent = self.send_singly(&to, segment_len, bytes);
                if sent.taken > 0 && sent.too_long == 0 && sent.refused == 0 {
                    offload.lose(destination, &error, clock());
                }
                sent
            }
            // The long ones do not fit the path; a shorter last one may.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                self.send_singly(&to, segment_len, bytes)
            }
            Err(error) => Sent::failed(&error, datagrams),
        }
    }

    fn send_singly(&self, to: &SockAddr, segment_len: usize, bytes: &[u8]) -> Sent {
        let mut sent = Sent::default();
        for chunk in bytes.chunks(segment_len * SEND_BATCH) {
            sent.add(self.send_chunk(to, segment_len, chunk));
        }
        sent
    }

    /// Sends up to [`SEND_BATCH`] datagrams by one call. Those behind one that fails share its fate, unless
    /// it was only too long.
    fn send_chunk(&self, to: &SockAddr, segment_len: usize, bytes: &[u8]) -> Sent {
        let mut vectors = [EMPTY_VECTOR; SEND_BATCH];
        // SAFETY: `mmsghdr` is plain integers and pointers, for which all zeroes are valid.
        let mut messages: [libc::mmsghdr; SEND_BATCH] = unsafe { mem::zeroed() };
        let mut datagrams = 0;
        for (ix, segment) in bytes.chunks(segment_len).enumerate() {
            // The kernel only reads what it sends.
            vectors[ix] = libc::iovec {
                iov_base: segment.as_ptr().cast_mut().cast(),
                iov_len: segment.len(),
            };
            let header = &mut messages[ix].msg_hdr;
            header.msg_name = to.as_ptr().cast_mut().cast();
            header.msg_namelen = to.len();
            header.msg_iov = &raw mut vectors[ix];
            header.msg_iovlen = 1;
            datagrams += 1;
        }
        let mut sent = Sent::default();
        let mut retries = 0;
        let mut done = 0;
        while done < datagrams {
            let rest = &mut messages[done..datagrams];
            // SAFETY: each header points to the address and to its own vector, which points into `bytes`;
            // all of them outlive the call.
            let result = unsafe {
                libc::sendmmsg(
                    self.socket.as_raw_fd(),
                    rest.as_mut_ptr(),
                    libc::c_uint::try_from(rest.len()).unwrap_or(0),
                    libc::MSG_DONTWAIT,
                )
            };
            if let Ok(count) = usize::try_from(result) {
                let taken = vectors[done..done + count].iter().map(|vector| vector.iov_len).sum();
                sent.add(Sent::taken(count as u64, taken));
                done += count;
                continue;
            }
            let error = io::Error::last_os_error();
            if is_transient(&error) && retries < RETRIES_MAX {
                retries += 1;
                continue;
            }
            let is_too_long = error.raw_os_error() == Some(libc::EMSGSIZE);
            let lost = if is_too_long { 1 } else { datagrams - done };
            sent.add(Sent::failed(&error, lost as u64));
            done += lost;
        }
        sent
    }
}

impl Sent {
    /// Counts the datagrams, which hold VXLAN, as delivered or dropped.
    pub fn count(&self, counters: &WorkerCounters) {
        counters.delivered.add(self.taken);
        counters.delivered_bytes.add(self.bytes - self.taken * vxlan::HEADER_LEN as u64);
        counters.count_drop(Reason::UnderlayFull, self.full);
        counters.count_drop(Reason::PathMtu, self.too_long);
        counters.count_drop(Reason::UnderlayError, self.refused);
    }

    /// One datagram that was sent, or not.
    fn of(result: io::Result<()>, bytes: &[u8]) -> Self {
        match result {
            Ok(()) => Self::taken(1, bytes.len()),
            Err(error) => Self::failed(&error, 1),
        }
    }

    /// So many datagrams, with so many bytes together, that the kernel has taken.
    pub fn taken(datagrams: u64, bytes: usize) -> Self {
        Self { taken: datagrams, bytes: bytes as u64, ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.taken += other.taken;
        self.bytes += other.bytes;
        self.full += other.full;
        self.too_long += other.too_long;
        self.refused += other.refused;
    }

    fn failed(error: &io::Error, datagrams: u64) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                Self { full: datagrams, ..Self::default() }
            }
            Some(libc::EMSGSIZE) => Self { too_long: datagrams, ..Self::default() },
            _ => Self { refused: datagrams, ..Self::default() },
        }
    }
}

/// Sends one message, cut by the kernel every `segment` bytes if that is given.
fn send_message(
    socket: &Socket,
    to: &SockAddr,
    bytes: &[u8],
    segment: Option<u16>,
) -> io::Result<()> {
    let mut vector =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: `msghdr` is plain integers and pointers, for which all zeroes are valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    if let Some(segment) = segment {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: `control` is aligned for `cmsghdr` and has the space for one header and an `int`, so
        // for one with a `u16`, too; so the first header exists and its data fits.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(SEGMENT_LEN) as usize;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_UDP;
            (*header).cmsg_type = libc::UDP_SEGMENT;
            (*header).cmsg_len = libc::CMSG_LEN(SEGMENT_LEN) as usize;
            libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment);
        }
    }
    let mut retries = 0;
    loop {
        // SAFETY: the message points to the address, the vector and the control buffer, all of which
        // outlive the call; the vector points to `bytes`, which the kernel only reads.
        let sent =
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if !is_transient(&error) || retries == RETRIES_MAX {
            return Err(error);
        }
        retries += 1;
    }
}

/// Whether a socket that cannot be received from will never be again. All other errors are about the
/// network or about memory; the call has consumed them, or they pass.
fn is_broken(error: &io::Error) -> bool {
    let broken = [libc::EBADF, libc::ENOTSOCK, libc::EINVAL, libc::EFAULT, libc::EOPNOTSUPP];
    error.raw_os_error().is_none_or(|error| broken.contains(&error))
}

/// Whether the call is to be made again: a signal came, or the answer to an earlier datagram is reported,
/// which the call consumes.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ECONNREFUSED))
}

/// Finds the length of the datagrams that were merged (`UDP_GRO`, `linux/udp.h`).
fn gro_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has filled `msg_control` with well-formed messages up to `msg_controllen`, and
    // both still describe the buffer that the header was set up with.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = control.as_ref() {
            if message.cmsg_level == libc::SOL_UDP && message.cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(control).cast::<c_int>().read_unaligned();
                return usize::try_from(size).ok().filter(|size| *size > 0);
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}

fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says what the storage holds; it is large and aligned enough for every
            // family, and all bytes are valid for `sockaddr_in`.
            let v4 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(address, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for `sockaddr_in6`.
            let v6 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(address, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Opens a socket that never fragments and never blocks.
fn open(address: IpAddr) -> io::Result<Socket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if address.is_ipv4() {
        let discover = libc::IP_PMTUDISC_DO;
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover)?;
    } else {
        socket.set_only_v6(true)?;
        let discover = libc::IPV6_PMTUDISC_DO;
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover)?;
    }
    Ok(socket)
}

fn set_option(socket: &Socket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let value_ptr = (&raw const value).cast::<c_void>();
    // SAFETY: the value is a live `c_int` whose length is given; the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value_ptr, INT_LEN) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `u64`s that hold one control message with an `int`, aligned as `cmsghdr` must be.
const CONTROL_WORDS: usize = {
    // SAFETY: plain arithmetic; the function is unsafe only because all of libc's are.
    let space = unsafe { libc::CMSG_SPACE(INT_LEN) as usize };
    space.div_ceil(size_of::<u64>())
};

const EMPTY_VECTOR: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

// Lengths as the kernel's `socklen_t`.
const INT_LEN: libc::socklen_t = 4;
const SEGMENT_LEN: libc::socklen_t = 2;
const NAME_LEN: libc::socklen_t = 128;
const _: () = assert!(size_of::<c_int>() == INT_LEN as usize);
const _: () = assert!(size_of::<u16>() == SEGMENT_LEN as usize);
const _: () = assert!(size_of::<libc::sockaddr_storage>() == NAME_LEN as usize);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::send_offload::PAUSE_MIN;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn receive_all(socket: &mut ReceiveSocket, bytes: usize) -> (Vec<u8>, Vec<usize>) {
        let (mut data, mut lens) = (Vec::new(), Vec::new());
        let deadline = Instant::now() + Duration::from_secs(10);
        while data.len() < bytes {
            assert!(Instant::now() < deadline, "only {} of {bytes} bytes came", data.len());
            match socket.receive().unwrap() {
                Some(Received { from, stride, bytes }) => {
                    assert_eq!(from.ip(), LOOPBACK);
                    data.extend_from_slice(bytes);
                    lens.extend(bytes.chunks(stride).map(<[u8]>::len));
                }
                None => std::thread::yield_now(),
            }
        }
        (data, lens)
    }

    fn sockets() -> (ReceiveSocket, SocketAddr, SendSocket) {
        let receiver = ReceiveSocket::bind(SocketAddr::new(LOOPBACK, 0)).unwrap();
        let to = receiver.socket.local_addr().unwrap().as_socket().unwrap();
        (receiver, to, SendSocket::bind(LOOPBACK).unwrap())
    }

    fn payload(len: usize) -> Vec<u8> {
        (0..=250).cycle().take(len).collect()
    }

    #[test]
    fn segments_arrive_as_datagrams_with_and_without_the_offload() {
        let (mut receiver, to, sender) = sockets();
        let mut offload = SendOffload::new(&probe(LOOPBACK).unwrap());
        assert!(sender.source_port() >= SOURCE_PORT_MIN);
        let bytes = payload(40 * 1400 + 77);
        let start = Instant::now();
        let mut send = |offload: &mut SendOffload, now: Instant| {
            let sent = sender.send(offload, to, 1400, &bytes, || now);
            assert_eq!(sent, Sent::taken(41, bytes.len()));
            let (data, lens) = receive_all(&mut receiver, bytes.len());
            assert_eq!(data, bytes);
            assert_eq!(lens, [&[1400; 40][..], &[77]].concat());
        };
        send(&mut offload, start);
        offload.lose(to, &io::Error::from_raw_os_error(libc::EIO), start);
        send(&mut offload, start);
        assert_eq!(offload.fallbacks().lost().len(), 1, "too early for a trial");
        send(&mut offload, start + PAUSE_MIN);
        assert_eq!(offload.fallbacks().lost(), [], "the trial has worked");
    }

    /// Without an outer checksum the kernel refuses merged datagrams, and takes the same ones singly.
    #[test]
    fn what_the_kernel_refuses_merged_goes_singly_until_a_trial_works() {
        let (mut receiver, to, sender) = sockets();
        let mut offload = SendOffload::new(&probe(LOOPBACK).unwrap());
        let start = Instant::now();
        let bytes = payload(4000);
        let mut send = |offload: &mut SendOffload, now: Instant| {
            let sent = sender.send(offload, to, 1000, &bytes, || now);
            assert_eq!(sent, Sent::taken(4, 4000));
            assert_eq!(receive_all(&mut receiver, 4000).0, bytes);
            offload.fallbacks().count()
        };
        let without_checksum = |value| {
            set_option(&sender.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, value).unwrap();
        };
        without_checksum(1);
        assert_eq!(send(&mut offload, start), 1);
        assert_eq!(send(&mut offload, start), 1, "the kernel is not asked");
        assert_eq!(send(&mut offload, start + PAUSE_MIN), 2, "it is asked, and refuses again");
        without_checksum(0);
        let next_try = start + 3 * PAUSE_MIN;
        assert_eq!(offload.fallbacks().lost()[0].next_try, next_try);
        assert_eq!(send(&mut offload, next_try), 2);
        assert_eq!(offload.fallbacks().lost(), [], "it takes them again");
    }

    #[test]
    fn a_flow_comes_to_one_socket_of_a_group_and_many_flows_to_several() {
        const FLOWS: usize = 32;
        let mut group = ReceiveSocket::bind_group(SocketAddr::new(LOOPBACK, 0), 8).unwrap();
        let to = group[0].socket.local_addr().unwrap().as_socket().unwrap();
        let mut offload = SendOffload::new(&probe(LOOPBACK).unwrap());
        let senders: Vec<_> = (0..FLOWS).map(|_| SendSocket::bind(LOOPBACK).unwrap()).collect();
        for round in 0..4 {
            for sender in &senders {
                sender.send(&mut offload, to, 1, &[round], Instant::now);
            }
        }
        // The loopback interface delivers before a send returns.
        let mut places: Vec<(u16, usize, Vec<u8>)> = Vec::new();
        for (ix, socket) in group.iter_mut().enumerate() {
            while let Some(Received { from, bytes, .. }) = socket.receive().unwrap() {
                match places
                    .iter_mut()
                    .find(|(port, place, _)| (*port, *place) == (from.port(), ix))
                {
                    Some((.., data)) => data.extend_from_slice(bytes),
                    None => places.push((from.port(), ix, bytes.to_vec())),
                }
            }
        }
        assert_eq!(places.len(), FLOWS, "each flow in one place: {places:?}");
        assert!(places.iter().all(|(.., data)| *data == [0, 1, 2, 3]), "in order: {places:?}");
        assert!(places.iter().any(|(_, place, _)| *place != places[0].1), "all in one: {places:?}");
    }

    #[test]
    fn a_group_shares_its_port_with_nobody_else() {
        let group = ReceiveSocket::bind_group(SocketAddr::new(LOOPBACK, 0), 4).unwrap();
        let address = group[0].socket.local_addr().unwrap().as_socket().unwrap();
        let second = ReceiveSocket::bind_group(address, 4).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn the_longest_payload_goes_as_one() {
        let mut offload = SendOffload::new(&probe(LOOPBACK).unwrap());
        let (mut receiver, to, sender) = sockets();
        let bytes = payload(PAYLOAD_MAX);
        let sent = sender.send(&mut offload, to, PAYLOAD_MAX, &bytes, Instant::now);
        assert_eq!(sent.taken, 1);
        assert_eq!(receive_all(&mut receiver, PAYLOAD_MAX), (bytes, vec![PAYLOAD_MAX]));
    }

    #[test]
    fn what_is_too_long_is_told() {
        let mut offload = SendOffload::new(&probe(LOOPBACK).unwrap());
        let sender = SendSocket::bind(LOOPBACK).unwrap();
        let to = SocketAddr::new(LOOPBACK, 9);
        let bytes = payload(PAYLOAD_MAX + 1);
        let sent = sender.send(&mut offload, to, bytes.len(), &bytes, Instant::now);
        assert_eq!(sent, Sent { too_long: 1, ..Sent::default() });
        assert_eq!(offload.fallbacks().count(), 0, "this says nothing about the offload");
    }

    #[test]
    fn a_port_in_use_is_an_error() {
        let first = ReceiveSocket::bind(SocketAddr::new(LOOPBACK, 0)).unwrap();
        let address = first.socket.local_addr().unwrap().as_socket().unwrap();
        let second = ReceiveSocket::bind(address).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }
}
