//! What says, on a link, who has an address: ARP (RFC 826) and neighbor discovery (RFC 4861). Bytes in, bytes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vswitch::mac::Mac;
use vswitch::wire::{ETHERNET_LEN, arp, checksum, ethernet, icmp, ipv6};

/// What somebody says about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Who has `target`?
    Asks {
        /// What is asked for.
        target: IpAddr,
        /// Who asks. Its address is unspecified when it has none yet.
        asker: (Mac, IpAddr),
    },
    /// "I have this address."
    Has {
        /// The address.
        address: IpAddr,
        /// Who has it.
        mac: Mac,
    },
}

/// Who speaks: the link's Ethernet address, and those of this node on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Speaker {
    pub(super) mac: Mac,
    pub(super) v4: Option<Ipv4Addr>,
    /// Link-local, as RFC 4861 §4.3 wants it where there is one.
    pub(super) v6: Option<Ipv6Addr>,
}

/// Reads a frame, which may be anything. `None` when it says nothing of the kind.
pub(super) fn read(frame: &[u8]) -> Option<Said> {
    let (header, body) = ethernet::read(frame).ok()?;
    match header.ethertype.get() {
        ethernet::ARP => read_arp(body),
        ethernet::IPV6 => read_discovery(Mac(header.source), body),
        _ => None,
    }
}

fn read_arp(body: &[u8]) -> Option<Said> {
    let packet = arp::read(body).ok()?;
    let (sender, target) = (Ipv4Addr::from(packet.sender), Ipv4Addr::from(packet.target));
    let mac = Mac(packet.sender_mac);
    match packet.operation.get() {
        arp::REQUEST if sender != target => {
            Some(Said::Asks { target: target.into(), asker: (mac, sender.into()) })
        }
        arp::REQUEST | arp::REPLY if !sender.is_unspecified() => {
            Some(Said::Has { address: sender.into(), mac })
        }
        _ => None,
    }
}

/// RFC 4861 §7.1: hop limit 255, code 0, no extension headers in front.
fn read_discovery(source_mac: Mac, packet: &[u8]) -> Option<Said> {
    let (header, message) = packet.split_at_checked(ipv6::HEADER_LEN)?;
    let len = usize::from(u16::from_be_bytes([*header.get(4)?, *header.get(5)?]));
    let message = message.get(..len)?;
    if header.get(6..8)? != [icmp::PROTOCOL_V6, 255] || *message.get(1)? != 0 {
        return None;
    }
    let source = Ipv6Addr::from(*header.get(8..)?.first_chunk::<16>()?);
    let destination = Ipv6Addr::from(*header.get(24..)?.first_chunk::<16>()?);
    if !checksum::is_right(source.into(), destination.into(), icmp::PROTOCOL_V6, message) {
        return None;
    }
    let target = Ipv6Addr::from(*message.get(8..)?.first_chunk::<16>()?);
    let option = link_address(message.get(24..)?);
    match *message.first()? {
        SOLICITATION => {
            let mac = option(SOURCE_LINK_ADDRESS).unwrap_or(source_mac);
            Some(Said::Asks { target: target.into(), asker: (mac, source.into()) })
        }
        ADVERTISEMENT => {
            let mac = option(TARGET_LINK_ADDRESS).unwrap_or(source_mac);
            Some(Said::Has { address: target.into(), mac })
        }
        _ => None,
    }
}

/// Looks for an option with a link-layer address (RFC 4861 §4.6.1).
fn link_address(options: &[u8]) -> impl Fn(u8) -> Option<Mac> + '_ {
    move |wanted| {
        let mut rest = options;
        while let [kind, units, ..] = *rest {
            let len = usize::from(units) * 8;
            if len == 0 {
                return None;
            }
            if kind == wanted {
                return Some(Mac(*rest.get(2..)?.first_chunk::<6>()?));
            }
            rest = rest.get(len..)?;
        }
        None
    }
}

/// "Who has `target`?", to one host or to all. `None` when the speaker has no address of that family.
pub(super) fn ask(speaker: &Speaker, to: Option<Mac>, target: IpAddr) -> Option<Vec<u8>> {
    match target {
        IpAddr::V4(target) => {
            let (mac, sender) = (speaker.mac, speaker.v4?);
            let to = to.unwrap_or(Mac([0xff; 6]));
            Some(arp_frame(to, arp::REQUEST, (mac, sender), (Mac([0; 6]), target)))
        }
        IpAddr::V6(target) => {
            let group = solicited_node_group(target);
            let (mac, destination) = match to {
                Some(mac) => (mac, target),
                None => (group_mac(group), group),
            };
            let option = (SOURCE_LINK_ADDRESS, speaker.mac);
            let head = [SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            Some(discovery_frame(
                (mac, destination),
                (speaker.mac, speaker.v6?),
                head,
                target,
                option,
            ))
        }
    }
}

/// "I have `target`", to who asked.
pub(super) fn answer(speaker: &Speaker, target: IpAddr, asker: (Mac, IpAddr)) -> Option<Vec<u8>> {
    match (target, asker) {
        (IpAddr::V4(target), (mac, IpAddr::V4(address))) => {
            Some(arp_frame(mac, arp::REPLY, (speaker.mac, target), (mac, address)))
        }
        (IpAddr::V6(target), (mac, IpAddr::V6(address))) => {
            // Who has no address yet cannot be sent to (RFC 4861 §7.2.4).
            let is_probe = address.is_unspecified();
            let to = if is_probe { (group_mac(ALL_NODES), ALL_NODES) } else { (mac, address) };
            let solicited = if is_probe { 0 } else { FLAG_SOLICITED };
            Some(advertisement(speaker, to, target, FLAG_OVERRIDE | solicited))
        }
        _ => None,
    }
}

/// "I have `address` from now on", to all: a request and a reply, as some hosts take up only one (RFC 5944 §4.6), or
/// an unsolicited advertisement (RFC 4861 §7.2.6).
pub(super) fn claim(speaker: &Speaker, address: IpAddr) -> Vec<Vec<u8>> {
    match address {
        IpAddr::V4(address) => {
            let (all, own) = (Mac([0xff; 6]), (speaker.mac, address));
            vec![
                arp_frame(all, arp::REQUEST, own, (Mac([0; 6]), address)),
                arp_frame(all, arp::REPLY, own, (speaker.mac, address)),
            ]
        }
        IpAddr::V6(address) => {
            let to = (group_mac(ALL_NODES), ALL_NODES);
            vec![advertisement(speaker, to, address, FLAG_OVERRIDE)]
        }
    }
}

fn arp_frame(to: Mac, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut frame = ethernet_header(to, sender.0, ethernet::ARP);
    // Ethernet, IPv4, and the lengths of their addresses.
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        frame.extend(mac.0);
        frame.extend(address.octets());
    }
    frame
}

fn advertisement(speaker: &Speaker, to: (Mac, Ipv6Addr), target: Ipv6Addr, flags: u8) -> Vec<u8> {
    let head = [ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    // From the address itself: it is the one that every stack looks up.
    discovery_frame(to, (speaker.mac, target), head, target, (TARGET_LINK_ADDRESS, speaker.mac))
}

fn discovery_frame(
    to: (Mac, Ipv6Addr),
    from: (Mac, Ipv6Addr),
    head: [u8; 8],
    target: Ipv6Addr,
    option: (u8, Mac),
) -> Vec<u8> {
    let mut message = head.to_vec();
    message.extend(target.octets());
    message.extend([option.0, 1]);
    message.extend(option.1.0);
    let sum = checksum::transport(from.1.into(), to.1.into(), icmp::PROTOCOL_V6, &message);
    message.splice(2..4, sum.to_be_bytes());
    let mut frame = ethernet_header(to.0, from.0, ethernet::IPV6);
    // Version 6, no traffic class, no flow label; 32 bytes of ICMPv6; hop limit 255.
    frame.extend([0x60, 0, 0, 0, 0, 32, icmp::PROTOCOL_V6, 255]);
    frame.extend(from.1.octets());
    frame.extend(to.1.octets());
    frame.extend(message);
    frame
}

fn ethernet_header(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET_LEN + 72);
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(kind.to_be_bytes());
    frame
}

/// The group that a host listens to for solicitations of `target` (RFC 4291 §2.7.1).
pub(super) fn solicited_node_group(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// RFC 2464 §7.
fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

// RFC 4861 §4: ICMPv6 types, options, flags.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn speaker() -> Speaker {
        Speaker { mac: OWN, v4: Some([192, 0, 2, 1].into()), v6: Some("fe80::1".parse().unwrap()) }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_literal_claim() {
        let [request, reply] = &claim(&speaker(), ip("192.0.2.9"))[..] else {
            panic!("two frames")
        };
        #[rustfmt::skip]
        assert_eq!(request[..], [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6,
            0, 1, 8, 0, 6, 4, 0, 1,
            2, 0, 0, 0, 0, 1, 192, 0, 2, 9,
            0, 0, 0, 0, 0, 0, 192, 0, 2, 9,
        ]);
        assert_eq!((reply[21], &reply[22..28]), (2, &OWN.0[..]));
    }

    #[test]
    fn a_literal_advertisement() {
        let asker = (OTHER, ip("2001:db8::7"));
        let frame = answer(&speaker(), ip("2001:db8::9"), asker).unwrap();
        #[rustfmt::skip]
        let expected = [
            &OTHER.0[..], &OWN.0, &[0x86, 0xdd],
            &[0x60, 0, 0, 0, 0, 32, 58, 255],
            &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
            &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
            &[136, 0], &frame[56..58], &[0x60, 0, 0, 0],
            &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
            &[2, 1], &OWN.0,
        ].concat();
        assert_eq!(frame, expected);
    }

    #[test]
    fn what_is_written_is_read() {
        for target in ["192.0.2.9", "2001:db8::9"] {
            let target = ip(target);
            for to in [None, Some(OTHER)] {
                let frame = ask(&speaker(), to, target).unwrap();
                let Some(Said::Asks { target: read_target, asker }) = read(&frame) else {
                    panic!("{frame:x?}")
                };
                assert_eq!((read_target, asker.0), (target, OWN));
                let mut other = speaker();
                other.mac = OTHER;
                let answer = answer(&other, target, asker).unwrap();
                assert_eq!(&answer[..6], OWN.0);
                assert_eq!(read(&answer), Some(Said::Has { address: target, mac: OTHER }));
            }
            for frame in claim(&speaker(), target) {
                assert_eq!(read(&frame), Some(Said::Has { address: target, mac: OWN }));
            }
        }
        let probe = (OTHER, ip("::"));
        let frame = answer(&speaker(), ip("2001:db8::9"), probe).unwrap();
        assert_eq!(&frame[..6], [0x33, 0x33, 0, 0, 0, 1], "told to all");
    }

    #[test]
    fn a_wrong_sum_or_hop_limit_says_nothing() {
        let frame = ask(&speaker(), None, ip("2001:db8::9")).unwrap();
        for ix in [21, 56, 70] {
            let mut wrong = frame.clone();
            wrong[ix] ^= 1;
            assert_eq!(read(&wrong), None, "byte {ix}");
        }
    }

    proptest! {
        #[test]
        fn anything_can_be_read(frame in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = read(&frame);
        }
    }
}
