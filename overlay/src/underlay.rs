//! Which of its addresses a node uses towards the others.
//!
//! The address is the one from which the seeds are reached: not the first one of the machine, which on
//! virtual machines is often an address that all of them have.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::interfaces::{InterfaceAddress, interfaces};

/// How the underlay address is chosen. Written `auto`, an address, a CIDR or an interface's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UnderlaySelector {
    /// The address from which the seeds are reached; without seeds, that of the default route.
    #[default]
    Auto,
    /// This address.
    Address(IpAddr),
    /// The first address of this interface.
    Interface(String),
    /// The first address in this network.
    Cidr(IpNetwork),
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The node's address on the underlay.
    pub address: IpAddr,
    /// The interface that has it.
    pub interface: String,
    /// Longest IP packet that the interface takes.
    pub mtu: u16,
}

/// Chooses the underlay address on this machine. Nothing is sent.
///
/// # Errors
///
/// When there is none that fits; the error names what was tried.
pub fn choose(selector: &UnderlaySelector, seeds: &[SocketAddr]) -> Result<Underlay, Error> {
    select(selector, seeds, &interfaces()?, source_towards)
}

/// Chooses among `interfaces`, where `source` tells from which address a target is reached.
pub fn select(
    selector: &UnderlaySelector,
    seeds: &[SocketAddr],
    interfaces: &[InterfaceAddress],
    source: impl Fn(SocketAddr) -> io::Result<IpAddr>,
) -> Result<Underlay, Error> {
    let fit = interfaces.iter().filter(|found| found.is_up && is_usable(found.address));
    let fit: Vec<_> = fit.collect();
    let chosen = match selector {
        UnderlaySelector::Auto => return reach(seeds, &fit, source),
        UnderlaySelector::Address(address) => fit.iter().find(|found| found.address == *address),
        UnderlaySelector::Interface(name) => fit.iter().find(|found| found.interface == *name),
        UnderlaySelector::Cidr(network) => fit.iter().find(|found| network.contains(found.address)),
    };
    chosen.map(|found| underlay(found)).ok_or_else(|| Error::NoUnderlay {
        why: format!("no interface that is up fits `{selector}`"),
        tried: list(interfaces),
    })
}

fn reach(
    seeds: &[SocketAddr],
    fit: &[&InterfaceAddress],
    source: impl Fn(SocketAddr) -> io::Result<IpAddr>,
) -> Result<Underlay, Error> {
    let by_address = |address: IpAddr| fit.iter().find(|found| found.address == address);
    // A seed at an address of this machine is this node.
    if let Some(own) = seeds.iter().find_map(|seed| by_address(seed.ip())) {
        return Ok(underlay(own));
    }
    let (why, targets) = if seeds.is_empty() {
        ("there is no seed and no default route", DEFAULT_ROUTE_TARGETS.to_vec())
    } else {
        ("no seed can be reached", seeds.to_vec())
    };
    let mut tried = Vec::new();
    for target in targets {
        match source(target) {
            Ok(address) => match by_address(address) {
                Some(found) => return Ok(underlay(found)),
                None => tried.push(format!("towards {target}: {address}, which is not usable")),
            },
            Err(error) => tried.push(format!("towards {target}: {error}")),
        }
    }
    Err(Error::NoUnderlay { why: why.to_owned(), tried: tried.join("; ") })
}

/// Addresses that nobody has (RFC 5737, RFC 3849): the way to them is the default route.
const DEFAULT_ROUTE_TARGETS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 9),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 9),
];

/// Asks the kernel from which address it would send to `target`. Connecting a UDP socket sends nothing.
fn source_towards(target: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

/// Whether other nodes could reach this address: not loopback, and not bound to one link.
fn is_usable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast() && !link_local
}

fn underlay(found: &InterfaceAddress) -> Underlay {
    Underlay { address: found.address, interface: found.interface.clone(), mtu: found.mtu }
}

fn list(interfaces: &[InterfaceAddress]) -> String {
    let all = interfaces.iter().map(|found| {
        let down = if found.is_up { "" } else { " (down)" };
        format!("{} {}{down}", found.interface, found.address)
    });
    all.collect::<Vec<_>>().join(", ")
}

impl fmt::Display for UnderlaySelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Address(address) => address.fmt(f),
            Self::Interface(name) => f.write_str(name),
            Self::Cidr(network) => network.fmt(f),
        }
    }
}

/// The text is no way to choose the underlay address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{why}: write auto, an address, a network such as 10.0.0.0/24, or the name of an interface"
)]
pub struct InvalidSelector {
    why: &'static str,
}

impl FromStr for UnderlaySelector {
    type Err = InvalidSelector;

    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Ok(address) = text.parse() {
            return if is_usable(address) {
                Ok(Self::Address(address))
            } else {
                Err(InvalidSelector { why: "other nodes cannot send to this address" })
            };
        }
        // IpNetwork takes a bare address, too, so that one is tried first.
        if text.contains('/') {
            let network = text.parse().map(Self::Cidr);
            return network.map_err(|_| InvalidSelector { why: "it is not a network" });
        }
        if text.contains(':') || text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(InvalidSelector { why: "it looks like an IP address, but is none" });
        }
        // linux/if.h: names are up to 15 bytes, without slash, colon or space.
        let fit = text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:".contains(&byte));
        if (1..=15).contains(&text.len()) && fit {
            Ok(Self::Interface(text.to_owned()))
        } else {
            Err(InvalidSelector { why: "it cannot be the name of an interface" })
        }
    }
}

impl Serialize for UnderlaySelector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnderlaySelector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Vec<InterfaceAddress> {
        let interface = |name: &str, address: &str, mtu, is_up| InterfaceAddress {
            interface: name.to_owned(),
            address: address.parse().unwrap(),
            mtu,
            is_up,
        };
        vec![
            interface("lo", "127.0.0.1", 65_535, true),
            interface("eth0", "10.0.2.15", 1500, true),
            interface("eth1", "192.168.56.11", 9000, true),
            interface("eth1", "fe80::1", 9000, true),
            interface("eth1", "2001:db8:1::11", 9000, true),
            interface("eth2", "172.16.0.1", 1500, false),
        ]
    }

    fn chosen(selector: &str, seeds: &[&str]) -> Result<String, String> {
        let seeds: Vec<_> = seeds.iter().map(|seed| seed.parse().unwrap()).collect();
        let source = |target: SocketAddr| match target.ip() {
            IpAddr::V4(v4) if v4.octets()[0] == 192 => Ok("192.168.56.11".parse().unwrap()),
            IpAddr::V4(v4) if v4.octets()[0] == 127 => Ok("127.0.0.1".parse().unwrap()),
            IpAddr::V4(_) => Ok("10.0.2.15".parse().unwrap()),
            IpAddr::V6(_) => Err(io::Error::from(io::ErrorKind::NetworkUnreachable)),
        };
        let result = select(&selector.parse().unwrap(), &seeds, &machine(), source);
        result
            .map(|found| format!("{} {} {}", found.interface, found.address, found.mtu))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_address_is_the_one_that_reaches_the_seeds() {
        let right = "eth1 192.168.56.11 9000".to_owned();
        assert_eq!(chosen("auto", &["192.168.56.10:7946"]), Ok(right.clone()));
        assert_eq!(
            chosen("auto", &["[2001:db8::9]:7946", "192.168.56.10:7946"]),
            Ok(right.clone())
        );
        assert_eq!(chosen("auto", &["192.168.56.11:7946"]), Ok(right));
        assert_eq!(chosen("auto", &[]), Ok("eth0 10.0.2.15 1500".to_owned()));
    }

    #[test]
    fn it_can_be_named() {
        assert_eq!(chosen("eth1", &[]), Ok("eth1 192.168.56.11 9000".to_owned()));
        assert_eq!(chosen("192.168.56.11", &[]), Ok("eth1 192.168.56.11 9000".to_owned()));
        assert_eq!(chosen("2001:db8:1::/64", &[]), Ok("eth1 2001:db8:1::11 9000".to_owned()));
    }

    #[test]
    fn failure_names_what_was_tried() {
        let error = chosen("auto", &["[2001:db8::9]:7946", "127.0.0.5:7946"]).unwrap_err();
        assert!(error.contains("[2001:db8::9]:7946") && error.contains("127.0.0.1"), "{error}");
        for wrong in ["eth2", "lo", "10.9.9.9"] {
            let error = chosen(wrong, &[]).unwrap_err();
            assert!(error.contains(wrong) && error.contains("eth2 172.16.0.1 (down)"), "{error}");
        }
    }

    #[test]
    fn text_round_trips_and_wrong_text_is_refused() {
        for text in ["auto", "10.0.0.1", "2001:db8::1", "10.0.0.0/24", "eth0", "br-lan.7"] {
            let selector: UnderlaySelector = text.parse().unwrap();
            assert_eq!(selector.to_string(), text);
        }
        for wrong in
            ["", "a name", "much-too-long-a-name", "10.0.0.0/33", "10.0.0.300", "127.0.0.1"]
        {
            assert!(wrong.parse::<UnderlaySelector>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_kernel_is_asked() {
        let loopback = source_towards("127.0.0.1:9".parse().unwrap()).unwrap();
        assert_eq!(loopback, IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
}
