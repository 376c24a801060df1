//! Who talks in the failure detector.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::node_id::NodeId;

/// Larger numbers are refused at the border, so that nobody can push a counter to where its owner
/// cannot go above it.
pub(crate) const COUNTER_MAX: u64 = 1 << 48;

/// A node at an address, in its `incarnation`th life.
///
/// Two identities are the same member to the failure detector when id *and* address are equal. So
/// a node that restarts replaces its former life at once (it has a higher incarnation), while clones of
/// one id, or two nodes with one address, remain two members: they are named as a conflict and do not
/// drive each other out of the cluster in turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) id: NodeId,
    pub(super) address: SocketAddr,
    pub(super) incarnation: u64,
}

impl Identity {
    /// Whether this can be the identity of a node that one can send to.
    pub(super) fn is_valid(&self) -> bool {
        self.incarnation < COUNTER_MAX && is_reachable(self.address)
    }
}

/// Whether datagrams can be sent to this address in principle.
pub(super) fn is_reachable(address: SocketAddr) -> bool {
    let ip = address.ip();
    let broadcast = ip == IpAddr::from([255, 255, 255, 255]);
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

impl foca::Identity for Identity {
    type Addr = (NodeId, SocketAddr);

    fn renew(&self) -> Option<Self> {
        Some(Self { incarnation: self.incarnation + 1, ..*self })
    }

    fn addr(&self) -> Self::Addr {
        (self.id, self.address)
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.incarnation > adversary.incarnation
    }
}

#[cfg(test)]
mod tests {
    use foca::Identity as _;

    use super::*;

    #[test]
    fn a_renewed_identity_replaces_the_former_one() {
        let old = Identity {
            id: NodeId([1; 16]),
            address: "192.0.2.1:7946".parse().unwrap(),
            incarnation: 7,
        };
        let new = old.renew().unwrap();
        assert_eq!(new.addr(), old.addr());
        assert!(new.win_addr_conflict(&old) && !old.win_addr_conflict(&new));
    }

    #[test]
    fn identities_that_nobody_could_send_to_are_invalid() {
        let identity = |address: &str, incarnation| Identity {
            id: NodeId([1; 16]),
            address: address.parse().unwrap(),
            incarnation,
        };
        assert!(identity("192.0.2.1:7946", 1).is_valid());
        assert!(identity("127.0.0.1:1", 0).is_valid());
        for wrong in ["0.0.0.0:1", "[::]:1", "224.0.0.1:1", "255.255.255.255:1", "192.0.2.1:0"] {
            assert!(!identity(wrong, 1).is_valid(), "{wrong}");
        }
        assert!(!identity("192.0.2.1:7946", COUNTER_MAX).is_valid());
    }
}
