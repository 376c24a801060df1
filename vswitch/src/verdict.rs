//! What becomes of a frame.

use std::fmt;

use crate::ix::{NodeIx, PortIx};

/// Where a forwarded frame leaves the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Through a local port: a pod's, or the host's.
    Port(PortIx),
    /// Through the tunnel, to another node.
    Node(NodeIx),
}

/// The end of a frame's way through the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Forward(Egress),
    /// The switch itself was asked, and has answered (ARP, ND, echo to its own address).
    Answered,
    /// It ends here.
    Drop(Reason),
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $text:literal,)+) => {
        /// Why a frame was dropped. Every drop has exactly one, and every one has a counter.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The reason as it stands in metrics and tables.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            /// One sentence for people.
            pub fn describe(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+).trim_ascii(),)+
                }
            }
        }
    };
}

reasons! {
    /// The frame is cut short, or its lengths contradict each other.
    Malformed => "malformed",
    /// Neither IPv4, IPv6 nor ARP.
    EtherType => "ethertype",
    /// The frame carries an 802.1Q or 802.1ad tag.
    VlanTagged => "vlan_tagged",
    /// A pod sent from a MAC or IP address that is not its own.
    Spoofed => "spoofed",
    /// The destination MAC address is neither the switch's nor a group address.
    NotForRouter => "not_for_router",
    /// Multicast and broadcast are not carried.
    Multicast => "multicast",
    /// The source or destination can never be routed: loopback, unspecified, link-local, reserved.
    Martian => "martian",
    /// An ARP or neighbor request for an address that nobody holds, or a reply that nobody asked for.
    NeighborIgnored => "neighbor_ignored",
    /// TTL or hop limit ran out.
    TtlExpired => "ttl_expired",
    /// The address is in the cluster range and nobody holds it.
    NoSuchAddress => "no_such_address",
    /// The packet is longer than the MTU ahead and may not be fragmented.
    TooBig => "too_big",
    /// A pod sent to the VXLAN or gossip port of a node, or of an address outside that may be one.
    TunnelPort => "tunnel_port",
    /// The layer 4 checksum is wrong.
    BadChecksum => "bad_checksum",
    /// The virtio-net header contradicts the frame.
    BadOffload => "bad_offload",
    /// The node itself sent from an address that the other node would have to refuse.
    ForeignSource => "foreign_source",
    /// Shorter than its VXLAN and Ethernet headers.
    VxlanTruncated => "vxlan_truncated",
    /// The VXLAN header's I flag is clear.
    VxlanFlag => "vxlan_flag",
    /// The VNI is not ours.
    VxlanVni => "vxlan_vni",
    /// The sender is not a live member.
    VxlanNotMember => "vxlan_not_member",
    /// The inner source address does not belong to the member that sent it.
    VxlanSource => "vxlan_source",
    /// The inner destination MAC address is not this node's VTEP address.
    VxlanVtep => "vxlan_vtep",
    /// More path probes from one node, or from all, than are answered.
    ProbeExcess => "probe_excess",
    /// Came out of the tunnel for an address that is not on this node.
    NotForUs => "not_for_us",
    /// The pod's receive queue is full.
    PortFull => "port_full",
    /// More than the pod's rate limit lets through (`bandwidth`), and more than waits for it.
    RateLimit => "rate_limit",
    /// The port was removed while the frame was on its way.
    PortGone => "port_gone",
    /// The kernel refused the frame at a port.
    PortError => "port_error",
    /// The underlay socket's send buffer is full.
    UnderlayFull => "underlay_full",
    /// Longer than the path to the other node carries, though both nodes' interfaces take it (`weft status`).
    PathMtu => "path_mtu",
    /// The kernel refused to send to the other node: no route, or a firewall.
    UnderlayError => "underlay_error",
    /// The tables changed and the node left while the frame was on its way.
    NodeGone => "node_gone",
    /// All buffers of the worker are in use.
    PoolEmpty => "pool_empty",
    /// For the switch's own address, and neither a neighbor request nor an echo request.
    NoService => "no_service",
    /// The Service has no endpoint that serves; its client was told.
    NoEndpoint => "no_endpoint",
    /// The Service has endpoints, but none on this node, and its traffic policy asks for one.
    NoLocalEndpoint => "no_local_endpoint",
    /// The sender is not in the load balancer's source ranges.
    SourceRange => "source_range",
    /// The address is a Service's, which does not have this port; the sender was told.
    NoSuchPort => "no_such_port",
    /// The address is in a range of cluster IPs, and no Service has it.
    NoSuchService => "no_such_service",
    /// The endpoint of a TCP connection is gone; its client was told.
    EndpointGone => "endpoint_gone",
    /// There is no room for one more flow to a Service or of a pod with policies.
    FlowsFull => "flows_full",
    /// The switch has no address or port left to take the client's place with.
    NatPorts => "nat_ports",
    /// A part of a fragmented packet to a Service, or of a pod that policies apply to, whose first part has not been here or is too short.
    FragmentUnknown => "fragment_unknown",
    /// The policies for the sending pod do not let it send this (`weft policies`, `weft watch`).
    PolicyDeniedEgress => "policy_denied_egress",
    /// The policies for the receiving pod do not let it be sent this (`weft policies`, `weft watch`).
    PolicyDeniedIngress => "policy_denied_ingress",
    /// Which policies apply to one of the two pods is not known yet.
    PolicyPending => "policy_pending",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_distinct_names_and_dense_numbers() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::COUNT);
        for (ix, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, ix);
            assert!(reason.describe().ends_with('.'), "{reason}");
        }
    }
}
