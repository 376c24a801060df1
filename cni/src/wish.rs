//! What a runtime may ask for beyond an interface: addresses, an Ethernet address (pure).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A port of the node that leads to the container (capability `portMappings`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The node's port.
    pub host_port: u16,
    /// The container's port.
    pub container_port: u16,
    /// The node's address; `None` is every one.
    pub host_ip: Option<IpAddr>,
}

/// The protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol's number in IP headers (IANA "Assigned Internet Protocol Numbers").
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Most ports of one container.
const PORTS_MAX: usize = 1024;

/// Reads the list of `portMappings`. An entry without a host port asks for nothing, as runtimes also list ports that
/// are only told of.
///
/// # Errors
/// What is wrong with which entry.
pub fn port_mappings(list: &Value) -> Result<Vec<PortMapping>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Entry {
        #[serde(default)]
        host_port: u32,
        container_port: u32,
        #[serde(default)]
        protocol: String,
        #[serde(default, rename = "hostIP", alias = "hostIp")]
        host_ip: String,
    }
    let entries: Vec<Entry> = Vec::deserialize(list).map_err(|error| error.to_string())?;
    let entries = entries.into_iter().filter(|entry| entry.host_port != 0);
    let mut mappings = Vec::new();
    for entry in entries {
        let port = |port: u32| u16::try_from(port).ok().filter(|port| *port != 0);
        let host_port = port(entry.host_port)
            .ok_or_else(|| format!("hostPort {} is no port: 1 to 65535", entry.host_port))?;
        let container_port = port(entry.container_port).ok_or_else(|| {
            format!("containerPort {} is no port: 1 to 65535", entry.container_port)
        })?;
        let protocol = match entry.protocol.to_ascii_lowercase().as_str() {
            "tcp" | "" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(format!("protocol {other:.16?} is none of tcp, udp, sctp")),
        };
        let host_ip = match entry.host_ip.as_str() {
            "" => None,
            text => {
                Some(text.parse().map_err(|_none| format!("hostIP {text:.64?} is no IP address"))?)
            }
        };
        mappings.push(PortMapping { protocol, host_port, container_port, host_ip });
    }
    mappings.sort_unstable();
    mappings.dedup();
    if mappings.len() > PORTS_MAX {
        return Err(format!(
            "{} ports are more than a container may have, {PORTS_MAX}",
            mappings.len()
        ));
    }
    Ok(mappings)
}

/// How fast a container may send and receive (capability `bandwidth`). Bits and bits per second; 0 is no limit, and
/// for a burst: what the rate is given by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Bandwidth {
    /// To the container.
    pub ingress_rate: u64,
    /// At once, after a pause.
    pub ingress_burst: u64,
    /// From the container.
    pub egress_rate: u64,
    /// At once, after a pause.
    pub egress_burst: u64,
}

/// Lowest rate, in bits per second: the switch's own bound (`vswitch::shape::RATE_MIN_BPS`).
const RATE_MIN_BPS: u64 = 8_000;

/// Reads `bandwidth`.
///
/// # Errors
/// When a rate is too low to carry anything, or a burst has no rate.
pub fn bandwidth(value: &Value) -> Result<Bandwidth, String> {
    let wanted = Bandwidth::deserialize(value).map_err(|error| error.to_string())?;
    let directions = [
        ("ingress", wanted.ingress_rate, wanted.ingress_burst),
        ("egress", wanted.egress_rate, wanted.egress_burst),
    ];
    for (name, rate, burst) in directions {
        if rate == 0 && burst > 0 {
            return Err(format!(
                "{name}Burst is {burst} without {name}Rate: give both, or the rate alone"
            ));
        }
        if rate > 0 && rate < RATE_MIN_BPS {
            return Err(format!("{name}Rate is {rate} bits per second: at least {RATE_MIN_BPS}"));
        }
    }
    Ok(wanted)
}

/// Reads an address, with or without a prefix length. The length is not ours to choose: a pod's address has the
/// longest.
pub fn address(text: &str) -> Option<IpAddr> {
    let ip = text.parse::<IpNetwork>().ok()?.ip();
    let is_usable = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
    is_usable.then_some(ip)
}

/// Adds an address to those that are asked for: one of each family, whoever asks.
///
/// # Errors
/// When another one of the family is asked for already.
pub fn add(ips: &mut Vec<IpAddr>, ip: IpAddr) -> Result<(), String> {
    match ips.iter().find(|other| other.is_ipv4() == ip.is_ipv4()) {
        Some(other) if *other != ip => Err(format!(
            "{other} and {ip} are asked for, and an interface has one address of each family"
        )),
        Some(_) => Ok(()),
        None => {
            ips.push(ip);
            Ok(())
        }
    }
}

/// Reads the Ethernet address of an interface, such as `c2:11:22:33:44:55`.
///
/// # Errors
/// When it is none, or that of a group, or all zeros (IEEE 802, §8.2).
pub fn mac(text: &str) -> Result<Mac, String> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2);
        *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(|| {
            format!("{text:.64?} is no Ethernet address: write c2:11:22:33:44:55")
        })?;
    }
    if parts.next().is_some() {
        return Err(format!("{text:.64?} is longer than an Ethernet address"));
    }
    if mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(format!("{text:.64} cannot be an interface's: it is a group's, or none"));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_read_as_runtimes_write_them() {
        let list = json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1" },
            { "hostPort": 9, "containerPort": 9, "protocol": "sctp", "hostIP": "::" },
            { "hostPort": 0, "containerPort": 9090, "protocol": "tcp", "hostIP": "" }
        ]);
        let mapping = |protocol, host_port, container_port, ip: Option<&str>| PortMapping {
            protocol,
            host_port,
            container_port,
            host_ip: ip.map(|ip| ip.parse().unwrap()),
        };
        let expected = [
            mapping(Protocol::Tcp, 8080, 80, None),
            mapping(Protocol::Udp, 53, 5353, Some("192.0.2.1")),
            mapping(Protocol::Sctp, 9, 9, Some("::")),
        ];
        assert_eq!(port_mappings(&list).unwrap(), expected);
        for (wrong, why) in [
            (json!([{ "hostPort": 70000, "containerPort": 80 }]), "hostPort 70000"),
            (json!([{ "hostPort": 1, "containerPort": 0 }]), "containerPort 0"),
            (json!([{ "hostPort": 1, "containerPort": 1, "protocol": "icmp" }]), "icmp"),
            (json!([{ "hostPort": 1, "containerPort": 1, "hostIP": "node" }]), "hostIP"),
            (json!([{ "hostPort": 1, "containerPort": 1, "colour": 1 }]), "colour"),
            (json!({}), "sequence"),
        ] {
            let error = port_mappings(&wrong).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_burst_needs_a_rate_and_a_rate_no_burst() {
        let read = |value: Value| bandwidth(&value);
        let both = read(json!({ "ingressRate": 1000000, "egressRate": 8000, "egressBurst": 9 }));
        let expected = Bandwidth {
            ingress_rate: 1_000_000,
            egress_rate: 8_000,
            egress_burst: 9,
            ..Bandwidth::default()
        };
        assert_eq!(both.unwrap(), expected);
        assert_eq!(read(json!({})).unwrap(), Bandwidth::default());
        for wrong in [
            json!({ "ingressBurst": 1 }),
            json!({ "egressRate": 1 }),
            json!({ "rate": 1 }),
            json!({ "ingressRate": -1 }),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
