//! Fragments IPv4 packets for a smaller MTU (RFC 791 §3.2).
//!
//! IPv6 packets are never fragmented on their way (RFC 8200 §5).

use crate::frame::{Frame, Pool};
use crate::verdict::Reason;
use crate::wire::{ETHERNET_LEN, Ip, checksum};

/// Cuts the IPv4 packet in `frame` so that no piece is longer than `mtu`. The first piece stays in
/// `frame`; the others are appended to `later`, in order, in buffers from `pool`.
///
/// The packet may be a fragment already. It is not a super-frame and does not have its Don't Fragment
/// flag set; `ip` is what [`crate::wire::parse`] said of it.
///
/// # Errors
/// [`Reason::TooBig`] when not even eight bytes of payload fit behind the header,
/// [`Reason::PoolEmpty`] when buffers run out, [`Reason::BadOffload`] when the checksum cannot be
/// completed, [`Reason::Malformed`] when a fragment passes the end of the longest packet. The frame must then be dropped; nothing is appended to `later`.
pub fn fragment(
    frame: &mut Frame,
    ip: &Ip,
    mtu: u16,
    pool: &mut Pool,
    later: &mut Vec<Frame>,
) -> Result<(), Reason> {
    // Each piece is a part of what the checksum covers, so it can only be completed now.
    checksum::complete(frame)?;
    let mtu = usize::from(mtu);
    let header_len = usize::from(frame.data()[ETHERNET_LEN] & 0x0f) * 4;
    let payload_len = ip.len - header_len;
    let first_len = piece_len(mtu, header_len).ok_or(Reason::TooBig)?;
    let own_offset = u16::from_be_bytes([frame.data()[20], frame.data()[21]]) & OFFSET_MASK;
    if usize::from(own_offset) * 8 + payload_len > usize::from(u16::MAX) {
        return Err(Reason::Malformed);
    }
    let before = later.len();

    let mut offset = first_len;
    while offset < payload_len {
        let Some(mut piece) = pool.take() else {
            later.drain(before..).for_each(|piece| pool.put(piece));
            return Err(Reason::PoolEmpty);
        };
        offset += write_later_piece(&mut piece, frame, ip.len, offset, mtu);
        later.push(piece);
    }

    if first_len < payload_len {
        frame.set_len(ETHERNET_LEN + header_len + first_len);
        let header = &mut frame.data_mut()[ETHERNET_LEN..ETHERNET_LEN + header_len];
        finish_header(header, first_len, 0, true);
    }
    Ok(())
}

/// Writes the piece that starts `offset` bytes into the payload of `whole`; returns how much of the
/// payload it carries.
fn write_later_piece(
    piece: &mut Frame,
    whole: &Frame,
    ip_len: usize,
    offset: usize,
    mtu: usize,
) -> usize {
    let data = whole.data();
    let (ethernet, packet) = data.split_at(ETHERNET_LEN);
    let whole_header_len = usize::from(packet[0] & 0x0f) * 4;
    let (header, payload) = packet[..ip_len].split_at(whole_header_len);

    let (options, options_len) = copied_options(&header[IPV4_LEN..]);
    let header_len = IPV4_LEN + options_len;
    let left = &payload[offset..];
    // The header is not longer than that of the first piece, which had room.
    let len = piece_len(mtu, header_len).map_or(left.len(), |len| len.min(left.len()));

    piece.meta = whole.meta;
    let appended = piece.append(ethernet)
        && piece.append(&header[..IPV4_LEN])
        && piece.append(&options[..options_len])
        && piece.append(&left[..len]);
    debug_assert!(appended, "a piece is shorter than the packet that it is a part of");
    let header = &mut piece.data_mut()[ETHERNET_LEN..ETHERNET_LEN + header_len];
    finish_header(header, len, offset, len < left.len());
    len
}

/// The most payload that a piece other than the last can carry: a multiple of eight bytes.
fn piece_len(mtu: usize, header_len: usize) -> Option<usize> {
    let len = mtu.checked_sub(header_len)? & !7;
    (len > 0).then_some(len)
}

/// Sets header length, total length, offset, More Fragments and checksum of a piece.
///
/// The header's fragment field is still that of the packet that is cut: offsets add up, and the last
/// piece of a fragment that was not the last has More Fragments set too.
fn finish_header(header: &mut [u8], payload_len: usize, offset: usize, more: bool) {
    let words = header.len() / 4;
    let total_len = header.len() + payload_len;
    let field = u16::from_be_bytes([header[6], header[7]]);
    let more = if more { MORE_FRAGMENTS } else { field & MORE_FRAGMENTS };
    let units = usize::from(field & OFFSET_MASK) + offset / 8;
    let field = (field & !(OFFSET_MASK | MORE_FRAGMENTS)) | more | low_16(units);
    header[0] = 0x40 | low_16(words).to_be_bytes()[1];
    header[2..4].copy_from_slice(&low_16(total_len).to_be_bytes());
    header[6..8].copy_from_slice(&field.to_be_bytes());
    checksum::set_ipv4_header(header);
}

/// The options that go into every fragment (RFC 791 §3.1: the copied flag), padded to whole words.
/// An option that passes the end ends the list, as it does for a receiver.
fn copied_options(mut options: &[u8]) -> ([u8; OPTIONS_LEN_MAX], usize) {
    let mut copied = [END_OF_OPTIONS; OPTIONS_LEN_MAX];
    let mut copied_len = 0;
    while let Some(kind) = options.first() {
        let len = match *kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => 1,
            _ => usize::from(options.get(1).copied().unwrap_or(0)).max(1),
        };
        let Some((option, rest)) = options.split_at_checked(len) else {
            break;
        };
        if *kind & COPIED != 0 && len > 1 {
            copied[copied_len..copied_len + len].copy_from_slice(option);
            copied_len += len;
        }
        options = rest;
    }
    (copied, copied_len.next_multiple_of(4))
}

/// The low 16 bits: for lengths that are known to be those of one IP packet.
fn low_16(value: usize) -> u16 {
    debug_assert!(value <= usize::from(u16::MAX), "longer than an IP packet");
    u16::try_from(value).unwrap_or(u16::MAX)
}

const IPV4_LEN: usize = 20;
const OPTIONS_LEN_MAX: usize = 40;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;
const COPIED: u8 = 0x80;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
