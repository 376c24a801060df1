//! What the kernel offers that makes the switch fast, and why some of it is not in use.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something that the kernel offers to the tunnel or to a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// What it is.
    pub name: CapabilityName,
    /// What has it, or has it not.
    pub at: Place,
    /// The port, as `weft pods --local` calls it; absent for the tunnel and for the node's own interface.
    pub port: Option<String>,
    /// Whether it is in use, and in full.
    pub on: bool,
    /// How much of it is in use, where it can be more or less.
    pub value: Option<String>,
    /// Why it is off; absent when it is on.
    pub reason: Option<String>,
    /// What to do about it; absent when it is on.
    pub remedy: Option<String>,
    /// Seconds that it has been off; when it is on, that the tunnel or port is open.
    pub since_s: u64,
    /// Seconds until it is tried again, 0 when the next packet is the trial. Absent when it is on, and when
    /// nothing less than another kernel, or a new start, can bring it back.
    pub next_try_s: Option<u64>,
}

/// What has capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The tunnel to the other nodes.
    Tunnel,
    /// The node's own interface.
    Host,
    /// A port with a pod or a device of the host behind it.
    Port,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tunnel, Self::Host, Self::Port];

    /// The place as it stands in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Host => "host",
            Self::Port => "port",
        }
    }
}

macro_rules! names {
    ($($(#[doc = $doc:literal])+ $name:ident => $text:literal,)+) => {
        /// What the kernel may offer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum CapabilityName {
            $($(#[doc = $doc])+ #[serde(rename = $text)] $name,)+
        }

        impl CapabilityName {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The name as it stands in JSON, metrics and tables.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            /// What it is, in one sentence for people.
            pub fn describe(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

names! {
    /// Tunnel: received datagrams come merged (`UDP_GRO`, Linux 5.0).
    UdpGro => "udp_gro",
    /// Tunnel: many datagrams are sent by one call (`UDP_SEGMENT`, Linux 4.18).
    UdpGso => "udp_gso",
    /// Tunnel: one call sends up to 128 datagrams (Linux 6.9), not 64.
    UdpGso128 => "udp_gso_128",
    /// Tunnel, and ports on devices of the host: the receive buffer is as large as it was asked for.
    ReceiveBuffer => "receive_buffer",
    /// Tunnel: the send buffers are as large as they were asked for.
    SendBuffer => "send_buffer",
    /// Interface: the kernel behind it leaves layer 4 checksums to the switch (`TUN_F_CSUM`).
    TapChecksum => "tap_checksum",
    /// Interface: the kernel behind it leaves cutting TCP to the switch (`TUN_F_TSO4`, `TUN_F_TSO6`).
    TapTso => "tap_tso",
    /// Interface: the kernel behind it leaves cutting UDP to the switch (`TUN_F_USO4`, `TUN_F_USO6`, Linux 6.2).
    TapUso => "tap_uso",
    /// Interface: the kernel behind it takes super-frames whole.
    GsoWrite => "gso_write",
    /// Pod's interface: the kernel behind it takes TCP over IPv4 in super-frames longer than 64 kB (BIG TCP, Linux 6.6).
    BigTcpV4 => "big_tcp_v4",
    /// Pod's interface: the kernel behind it takes TCP over IPv6 in super-frames longer than 64 kB (BIG TCP, Linux 6.6).
    BigTcpV6 => "big_tcp_v6",
}

impl fmt::Display for CapabilityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
