//! What the kernel knows, or tries to find out, of neighbours' Ethernet addresses.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::unless;
use super::{LinkError, Netlink};

impl Netlink {
    /// Makes the kernel ask anew for the address of a neighbour as soon as it needs it. One that it does
    /// not know is not an error.
    ///
    /// Whoever asked while nobody answered would go on at the kernel's pace, a request each second.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forget_neighbor(&mut self, index: u32, neighbor: IpAddr) -> Result<(), LinkError> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = index;
        let (family, address) = match neighbor {
            IpAddr::V4(v4) => (AddressFamily::Inet, NeighbourAddress::Inet(v4)),
            IpAddr::V6(v6) => (AddressFamily::Inet6, NeighbourAddress::Inet6(v6)),
        };
        message.header.family = family;
        message.attributes.push(NeighbourAttribute::Destination(address));
        let done = self.execute(RouteNetlinkMessage::DelNeighbour(message), 0, || {
            format!("forget the neighbour {neighbor} of interface {index}")
        });
        unless(done, libc::ENOENT)
    }
}
