//! Names for what is in a cluster.

/// A node of a [`super::Cluster`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub(super) usize);

/// A pod of a [`super::Cluster`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod(pub(super) usize);

/// Something with a network stack: a pod, or the machine that a node runs on, behind `weft0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A pod.
    Pod(Pod),
    /// A node's machine.
    Machine(Node),
}

impl From<Pod> for Place {
    fn from(pod: Pod) -> Self {
        Self::Pod(pod)
    }
}

impl From<Node> for Place {
    fn from(node: Node) -> Self {
        Self::Machine(node)
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `address`.
    pub fn of(address: std::net::IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}
