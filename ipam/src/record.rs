//! What is remembered about one attachment.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One interface of one container: the key of an allocation, as CNI defines it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// The container's id, `CNI_CONTAINERID`.
    pub container_id: String,
    /// The interface's name inside the container, `CNI_IFNAME`.
    pub ifname: String,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// A network namespace: where it was found, and which one it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Netns {
    /// The path that the runtime gave, `CNI_NETNS`.
    pub path: PathBuf,
    /// The device number of the namespace file system.
    pub device: u64,
    /// The namespace's inode number there. Another number at the same path is another namespace.
    pub inode: u64,
}

/// The pod to which a container belongs, when the runtime said so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Its Kubernetes namespace, `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// Its name, `K8S_POD_NAME`.
    pub name: String,
    /// Its unique id, `K8S_POD_UID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// How the pod is connected to the switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PortKind {
    /// A TAP inside the pod's namespace, whose other end the daemon holds.
    Tap {
        /// The pod's namespace.
        netns: Netns,
    },
    /// An existing device on the host, such as a VM's tap or one end of a veth pair.
    AfPacket {
        /// The host's device.
        device: String,
        /// The Ethernet address of the interface behind it, which is not ours to choose.
        mac: Mac,
        /// Whether the host spoke IPv6 on it before, and is to do so again afterwards.
        had_ipv6: bool,
    },
    /// An interface that another plugin made, which only asked for addresses.
    Foreign {
        /// The namespace that it is in.
        netns: Netns,
    },
}

impl PortKind {
    /// The Ethernet address that the other end already has, if it is not ours to choose.
    pub fn mac(&self) -> Option<Mac> {
        match self {
            Self::Tap { .. } | Self::Foreign { .. } => None,
            Self::AfPacket { mac, .. } => Some(*mac),
        }
    }

    /// The pod's namespace; a device of the host has none.
    pub fn netns(&self) -> Option<&Netns> {
        match self {
            Self::Tap { netns } | Self::Foreign { netns } => Some(netns),
            Self::AfPacket { .. } => None,
        }
    }
}

/// A request for an attachment's addresses: everything that the caller knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The name of the network, from the CNI configuration.
    pub network: String,
    /// The pod, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The pod's labels, if the caller told them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How it is connected.
    pub port: PortKind,
    /// What it has beyond an interface.
    #[serde(default, skip_serializing_if = "Extras::is_none")]
    pub extras: Extras,
    /// When the addresses were handed out, in seconds since 1970 (UTC).
    pub created_unix_s: u64,
    /// The kernel's boot id (`/proc/sys/kernel/random/boot_id`). Namespaces do not outlive a boot.
    pub boot_id: String,
}

/// What an attachment has beyond an interface with addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extras {
    /// How fast it may send and receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

impl Extras {
    /// Whether there is nothing.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Limits in bits, and bits per second. 0 is none; a burst of 0 is what the switch chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress_rate_bps: u64,
    /// At once, after a pause.
    pub ingress_burst_bits: u64,
    /// From the pod.
    pub egress_rate_bps: u64,
    /// At once, after a pause.
    pub egress_burst_bits: u64,
}

/// A port of the node that leads to the attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    /// The IP protocol's number (IANA "Assigned Internet Protocol Numbers"): 6, 17 or 132.
    pub protocol: u8,
    /// The node's port.
    pub host_port: u16,
    /// The attachment's port.
    pub container_port: u16,
    /// The node's address; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// What an attachment holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// Whose it is.
    pub attachment: Attachment,
    /// Its IPv4 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Ipv6Addr>,
    /// The interface's Ethernet address.
    pub mac: Mac,
    /// The node's lease has changed since, and an address here is no longer part of it. It stays with
    /// its pod until the pod goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outside_lease: bool,
    /// What the caller said about it.
    pub record: Record,
}

impl Allocation {
    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::from).into_iter().chain(self.v6.map(IpAddr::from))
    }
}

/// An Ethernet address. In the file it is text, such as `0a:58:0a:f4:01:05`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address that goes with a pod's addresses: `0a:58` and its IPv4 address, or for a pod that
    /// has only IPv6, four bytes of a hash of that. It follows from the address alone, so neighbours'
    /// caches stay right when an address moves to another pod.
    pub fn for_addresses(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Self {
        let [a, b, c, d] = match (v4, v6) {
            (Some(v4), _) => v4.octets(),
            (None, Some(v6)) => fnv1a_32(&v6.octets()).to_be_bytes(),
            (None, None) => [0; 4],
        };
        Self([0x0a, 0x58, a, b, c, d])
    }
}

/// The 32-bit FNV-1a hash (RFC 9923): the same on every node and in every release.
fn fnv1a_32(bytes: &[u8]) -> u32 {
    const OFFSET: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(PRIME))
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let invalid = || serde::de::Error::custom(format!("`{text}` is not an Ethernet address"));
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(invalid)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Self(octets)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_follows_from_the_address() {
        let v4 = Some(Ipv4Addr::new(10, 244, 1, 5));
        let v6 = Some("fd00:10:244:1::5".parse().unwrap());
        assert_eq!(Mac::for_addresses(v4, v6).to_string(), "0a:58:0a:f4:01:05");
        let only_v6 = Mac::for_addresses(None, v6);
        assert_eq!(only_v6.0[..2], [0x0a, 0x58]);
        assert_ne!(only_v6, Mac::for_addresses(None, Some("fd00:10:244:1::6".parse().unwrap())));
    }

    #[test]
    fn hash_is_the_well_known_one() {
        assert_eq!(fnv1a_32(b""), 0x811c_9dc5);
        assert_eq!(fnv1a_32(b"a"), 0xe40c_292c);
        assert_eq!(fnv1a_32(b"foobar"), 0xbf9c_f968);
    }

    #[test]
    fn mac_is_text_in_the_file() {
        let mac = Mac([0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x05]);
        let text = serde_json::to_string(&mac).unwrap();
        assert_eq!(text, "\"0a:58:0a:f4:01:05\"");
        assert_eq!(serde_json::from_str::<Mac>(&text).unwrap(), mac);
        for wrong in ["\"0a:58\"", "\"\"", "\"0a:58:0a:f4:01:05:06\"", "\"0a:58:0a:f4:01:zz\"", "7"]
        {
            assert!(serde_json::from_str::<Mac>(wrong).is_err(), "{wrong}");
        }
    }
}
