//! One netlink socket, requests and dumps, without a runtime.
// The kernel has many more kinds of everything than concern us.
#![allow(clippy::wildcard_enum_match_arm)]

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::LinkError;
use super::error::unless;
use crate::netns::Netns;

/// How long an answer may take. The kernel answers at once; this only keeps a bug from hanging a pod.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a dump is begun anew because the state changed in the middle of it.
const DUMP_TRIES_MAX: u32 = 16;

/// Most links, addresses or routes that are read from a namespace that somebody else may fill. A pod that
/// has more hurts itself: its interface cannot be set up or checked.
const FOREIGN_LIST_MAX: usize = 16_384;

/// Length of a message's header in bytes (linux/netlink.h, `struct nlmsghdr`).
const HEADER_LEN: usize = 16;

/// A netlink socket (`NETLINK_ROUTE`) of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    /// Most entries of a list that is asked for.
    list_max: usize,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open() -> Result<Self, LinkError> {
        Self::open_here().map_err(LinkError::Open)
    }

    /// Opens a socket in the namespace at `path`. Lists of more than some thousand entries are refused: what
    /// is in another namespace is not trusted to be little.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel gives no socket.
    pub fn open_in(path: &Path) -> Result<Self, LinkError> {
        Self::open_in_netns(&Netns::open(path)?)
    }

    /// Opens a socket in a namespace that is already open.
    ///
    /// # Errors
    /// As [`Netlink::open_in`].
    pub fn open_in_netns(netns: &Netns) -> Result<Self, LinkError> {
        netns.run(Self::open_here)?.map(Self::in_foreign_hands).map_err(LinkError::Open)
    }

    /// Bounds the lists that are read.
    pub(super) fn in_foreign_hands(self) -> Self {
        Self { list_max: FOREIGN_LIST_MAX, ..self }
    }

    fn open_here() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel's own words with an error, and not our request repeated before them.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        rustix::net::sockopt::set_socket_timeout(
            socket.as_fd(),
            rustix::net::sockopt::Timeout::Recv,
            Some(ANSWER_TIMEOUT),
        )?;
        Ok(Self { socket, sequence: 0, list_max: usize::MAX })
    }

    /// Sends a request that changes something. `what` completes the sentence "cannot ...".
    pub(super) fn execute(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: impl FnOnce() -> String,
    ) -> Result<(), LinkError> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            for answer in self.receive()? {
                if let NetlinkPayload::Error(error) = read(&answer)?.payload {
                    return acknowledge(&error, what);
                }
            }
        }
    }

    /// Asks for one thing. `None` when the kernel says that there is no such device.
    pub(super) fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        what: impl FnOnce() -> String,
    ) -> Result<Option<RouteNetlinkMessage>, LinkError> {
        self.send(message, NLM_F_REQUEST)?;
        loop {
            for answer in self.receive()? {
                match read(&answer)?.payload {
                    NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                    NetlinkPayload::Error(error) => {
                        return unless(acknowledge(&error, what), libc::ENODEV).map(|()| None);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Asks for a list. `what` completes the sentence "cannot ...".
    pub(super) fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
        what: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
        for _ in 0..DUMP_TRIES_MAX {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if let Some(list) = self.receive_dump(what)? {
                return Ok(list);
            }
        }
        Err(LinkError::Socket {
            action: "list",
            why: format!("it changed {DUMP_TRIES_MAX} times while being listed ({what})"),
        })
    }

    /// `None` when the list changed in the middle.
    fn receive_dump(&mut self, what: &str) -> Result<Option<Vec<RouteNetlinkMessage>>, LinkError> {
        let mut list = Vec::new();
        let mut interrupted = false;
        loop {
            for answer in self.receive()? {
                let answer = match read(&answer) {
                    Ok(answer) => answer,
                    Err(error) => {
                        // One exotic device must not hide all others.
                        tracing::warn!(%error, "left out of a list of the kernel's: {what}");
                        continue;
                    }
                };
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(_) if list.len() == self.list_max => {
                        // The rest of the list stays unread.
                        let why = format!("there are more than {} ({what})", self.list_max);
                        return Err(broken("list", &why));
                    }
                    NetlinkPayload::InnerMessage(message) => list.push(message),
                    NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(list)),
                    NetlinkPayload::Error(error) => {
                        acknowledge(&error, || what.to_owned())?;
                    }
                    NetlinkPayload::Overrun(_) => {
                        return Err(broken("list", &"the kernel ran out of buffer"));
                    }
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), LinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        self.socket.send(&buffer, 0).map(drop).map_err(|error| broken("send a request", &error))
    }

    /// The messages of one datagram that answer the last request, not yet read. What answers an
    /// earlier one, which ran into the timeout, is left out.
    fn receive(&mut self) -> Result<Vec<Vec<u8>>, LinkError> {
        let (datagram, _) =
            self.socket.recv_from_full().map_err(|error| broken("receive an answer", &error))?;
        let answers = messages(&datagram)
            .filter(|(sequence, _)| *sequence == self.sequence)
            .map(|(_, message)| message.to_owned())
            .collect();
        Ok(answers)
    }
}

/// The messages of a datagram, each with its sequence number (linux/netlink.h, `struct nlmsghdr`).
/// What follows a message with an impossible length is left out.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    const SEQUENCE: usize = 8;
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
        let message = rest.get(..len).filter(|_| len >= HEADER_LEN)?;
        let sequence = u32::from_ne_bytes(*message.get(SEQUENCE..)?.first_chunk()?);
        // Messages are aligned to four bytes (NLMSG_ALIGN).
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((sequence, message))
    })
}

fn read(message: &[u8]) -> Result<NetlinkMessage<RouteNetlinkMessage>, LinkError> {
    NetlinkMessage::deserialize(message).map_err(|error| broken("read an answer", &error))
}

fn acknowledge(error: &ErrorMessage, what: impl FnOnce() -> String) -> Result<(), LinkError> {
    if error.code.is_none() {
        return Ok(());
    }
    let detail = kernels_words(&error.header).unwrap_or_default();
    Err(LinkError::Refused { what: what(), cause: error.to_io(), detail })
}

/// The text in an extended acknowledgement (linux/netlink.h, `NLMSGERR_ATTR_MSG`), which follows the
/// header of the request.
fn kernels_words(payload: &[u8]) -> Option<String> {
    const ATTRIBUTE_HEADER_LEN: usize = 4;
    const MESSAGE: u16 = 1;
    let mut rest = payload.get(HEADER_LEN..)?;
    loop {
        let len = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        let value = rest.get(ATTRIBUTE_HEADER_LEN..len)?;
        if kind == MESSAGE {
            let text = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
}

/// The kernel's name of a family.
pub(super) fn family(is_ipv4: bool) -> AddressFamily {
    if is_ipv4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn broken(action: &'static str, why: &impl ToString) -> LinkError {
    LinkError::Socket { action, why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_kernels_words_are_found() {
        let mut payload = vec![0; 16];
        payload.extend([8, 0, 2, 0, 1, 2, 3, 4]);
        payload.extend([7, 0, 1, 0]);
        payload.extend(b"no\0\0");
        assert_eq!(kernels_words(&payload).as_deref(), Some("no"));
        assert_eq!(kernels_words(&payload[..24]), None);
    }

    #[test]
    fn a_datagram_is_taken_apart() {
        let message = |len: u32, sequence: u32, body: &[u8]| {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.extend([2, 0, 0, 0]);
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(body);
            bytes
        };
        let mut datagram = message(18, 7, &[1, 2, 0, 0]);
        datagram.extend(message(16, 8, &[]));
        let found: Vec<_> = messages(&datagram).map(|(seq, one)| (seq, one.len())).collect();
        assert_eq!(found, [(7, 18), (8, 16)]);
        for len in [0, 15, 17, u32::MAX] {
            assert_eq!(messages(&message(len, 7, &[])).count(), 0, "length {len}");
        }
    }

    #[test]
    fn the_own_namespace_can_be_listed() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap();
        assert!(netlink.links().unwrap().contains(&lo));
        assert_eq!(netlink.find_link("no-such-link").unwrap(), None);
        netlink.addresses(None).unwrap();
        netlink.routes().unwrap();
    }

    proptest! {
        #[test]
        fn garbage_never_panics_or_loops(payload in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = kernels_words(&payload);
            for (_, message) in messages(&payload) {
                let _ = read(message);
            }
        }
    }
}
