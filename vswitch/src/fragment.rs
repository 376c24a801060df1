//! Fragments IPv4 packets for a smaller MTU (RFC 791 §3.2).
//!
//! IPv6 packets are never fragmented on their way (RFC 8200 §5).

use crate::frame::{Frame, Pool};
use crate::verdict::Reason;
use crate::wire::ipv4::{self, FRAGMENT_OFFSET, MORE_FRAGMENTS};
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
    let own_offset = u16::from_be_bytes([frame.data()[20], frame.data()[21]]) & FRAGMENT_OFFSET;
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

    let (options, options_len) = copied_options(&header[ipv4::HEADER_LEN..]);
    let header_len = ipv4::HEADER_LEN + options_len;
    let left = &payload[offset..];
    // The header is not longer than that of the first piece, which had room.
    let len = piece_len(mtu, header_len).map_or(left.len(), |len| len.min(left.len()));

    piece.meta = whole.meta;
    let appended = piece.append(ethernet)
        && piece.append(&header[..ipv4::HEADER_LEN])
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
    let units = usize::from(field & FRAGMENT_OFFSET) + offset / 8;
    let field = (field & !(FRAGMENT_OFFSET | MORE_FRAGMENTS)) | more | low_16(units);
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

const OPTIONS_LEN_MAX: usize = 40;
const COPIED: u8 = 0x80;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::Checksum;
    use crate::wire::{self, Network};

    /// A packet with these options, flags and offset, and a payload that tells its place.
    fn packet(options: &[u8], field: u16, payload_len: usize) -> Frame {
        let header_len = 20 + options.len();
        let mut bytes = vec![2; 12];
        bytes.extend([8, 0, 0x40 | u8::try_from(header_len / 4).unwrap(), 0]);
        bytes.extend(u16::try_from(header_len + payload_len).unwrap().to_be_bytes());
        bytes.extend([0xab, 0xcd]);
        bytes.extend(field.to_be_bytes());
        bytes.extend([64, 253, 0, 0, 10, 244, 1, 2, 10, 244, 1, 3]);
        bytes.extend(options);
        bytes.extend((0..payload_len).map(|ix| u8::try_from(ix / 8 % 251).unwrap()));
        checksum::set_ipv4_header(&mut bytes[14..14 + header_len]);
        let mut frame = Frame::new();
        assert!(frame.append(&bytes));
        frame
    }

    fn ip_of(frame: &Frame) -> Ip {
        let Network::Ip(ip) = wire::parse(frame.data()).unwrap().network else { panic!("ARP") };
        ip
    }

    fn cut(frame: &mut Frame, mtu: u16) -> (Result<(), Reason>, Vec<Frame>) {
        let mut later = Vec::new();
        let ip = ip_of(frame);
        let mut pool = Pool::new(200);
        let result = fragment(frame, &ip, mtu, &mut pool, &mut later);
        assert_eq!(pool.in_use(), later.len());
        (result, later)
    }

    /// Offset in bytes, More Fragments, and header length, as etherparse reads them.
    fn look(frame: &Frame) -> (usize, bool, usize) {
        let (header, _) = etherparse::Ipv4Header::from_slice(&frame.data()[14..]).unwrap();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(usize::from(header.total_len) + 14, frame.len());
        assert_eq!((header.identification, header.time_to_live), (0xabcd, 64));
        let offset = usize::from(header.fragment_offset.value()) * 8;
        (offset, header.more_fragments, header.header_len())
    }

    #[test]
    fn a_packet_is_cut_at_multiples_of_eight() {
        let mut frame = packet(&[], 0, 3000);
        let (result, later) = cut(&mut frame, 1400);
        assert_eq!(result, Ok(()));
        assert_eq!(look(&frame), (0, true, 20));
        assert_eq!(
            later.iter().map(look).collect::<Vec<_>>(),
            [(1376, true, 20), (2752, false, 20)]
        );
    }

    #[test]
    fn a_fragment_is_cut_again() {
        for (more, last) in [(MORE_FRAGMENTS, true), (0, false)] {
            let mut frame = packet(&[], more | 100, 1600);
            let (_, later) = cut(&mut frame, 820);
            assert_eq!(look(&frame), (800, true, 20));
            assert_eq!(later.iter().map(look).collect::<Vec<_>>(), [(1600, last, 20)]);
        }
    }

    #[test]
    fn only_options_with_the_copied_flag_go_into_later_fragments() {
        // No operation; record route (7), not copied; router alert (148), copied; end.
        let options = [1, 7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0];
        let mut frame = packet(&options, 0, 3000);
        let (_, later) = cut(&mut frame, 1400);
        assert_eq!(look(&frame).2, 32);
        assert_eq!(frame.data()[34..46], options);
        for piece in &later {
            assert_eq!(look(piece).2, 24);
            assert_eq!(piece.data()[34..38], [148, 4, 0, 0]);
        }
    }

    #[test]
    fn broken_options_end_the_list() {
        for options in [&[148, 0][..], &[148, 1], &[148], &[148, 9, 0, 0], &[]] {
            let (_, len) = copied_options(options);
            assert_eq!(len, 0, "{options:?}");
        }
        assert_eq!(copied_options(&[130, 3, 7, 0]).1, 4, "padded to whole words");
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let mut frame = packet(&[], 0, 3000);
        let whole = frame.data().to_vec();
        assert_eq!(cut(&mut frame, 27).0, Err(Reason::TooBig));
        let ip = ip_of(&frame);
        let (mut pool, mut later) = (Pool::new(1), Vec::new());
        let result = fragment(&mut frame, &ip, 1000, &mut pool, &mut later);
        assert_eq!(result, Err(Reason::PoolEmpty));
        assert_eq!((later.len(), pool.in_use()), (0, 0));
        assert_eq!(frame.data(), whole);
    }

    #[test]
    fn a_checksum_is_filled_in_before_the_cut() {
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut bytes, &[9; 3000])
            .unwrap();
        bytes[20] = 0;
        checksum::set_ipv4_header(&mut bytes[14..34]);
        let expected = bytes[40..42].to_vec();
        let mut frame = Frame::new();
        let ip = |a| std::net::IpAddr::from([10, 0, 0, a]);
        let sum = checksum::pseudo_header(ip(1), ip(2), 17, 3008).fold();
        bytes[40..42].copy_from_slice(&sum.to_be_bytes());
        assert!(frame.append(&bytes));
        frame.meta.checksum = Checksum::Partial { start: 34, offset: 6 };
        let (result, later) = cut(&mut frame, 1400);
        assert_eq!(result, Ok(()));
        assert_eq!(frame.data()[40..42], expected);
        assert!(later.iter().all(|piece| piece.meta.checksum == Checksum::Filled));
    }

    proptest! {
        #[test]
        fn pieces_fit_and_make_the_whole(
            words in 0usize..=10,
            options in prop::collection::vec(any::<u8>(), 40),
            payload_len in 0usize..4000,
            mtu in 100u16..2000,
        ) {
            // Options of any sense that a parser lets through: no operations, then arbitrary data in one.
            let mut options = options[..words * 4].to_vec();
            if let [kind, len, ..] = &mut options[..] {
                *kind = (*kind | 4) & !1;
                *len = u8::try_from(words * 4).unwrap();
            }
            let mut frame = packet(&options, 0, payload_len);
            if wire::parse(frame.data()).is_err() {
                return Ok(());
            }
            let header_len = 20 + options.len();
            let payload = frame.data()[14 + header_len..].to_vec();
            let (result, later) = cut(&mut frame, mtu);
            prop_assert_eq!(result, Ok(()));
            let mut together = Vec::new();
            for (ix, piece) in std::iter::once(&frame).chain(&later).enumerate() {
                let (offset, more, header_len) = look(piece);
                prop_assert!(piece.len() <= 14 + usize::from(mtu));
                prop_assert_eq!(offset, together.len());
                prop_assert_eq!(more, ix < later.len());
                together.extend_from_slice(&piece.data()[14 + header_len..]);
            }
            prop_assert_eq!(together, payload);
        }
    }
}
