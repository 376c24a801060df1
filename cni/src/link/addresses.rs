//! Addresses of interfaces: list, add, delete.
// The kernel has many more kinds of everything than concern us.
#![allow(clippy::wildcard_enum_match_arm)]

use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::error::unless;
use super::netlink::family;
use super::{LinkError, Netlink};

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The interface's index.
    pub index: u32,
    /// The address with its prefix length.
    pub address: IpNetwork,
    /// Not usable yet: duplicate address detection has not finished.
    pub is_tentative: bool,
}

impl Netlink {
    /// The addresses of one interface, or of all.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<Address>, LinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let list = self.dump(&request, "list the addresses")?;
        Ok(list
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(address) => read_address(&address),
                _ => None,
            })
            .filter(|address| index.is_none_or(|index| address.index == index))
            .collect())
    }

    /// Gives an interface an address, usable at once. One that it has already is not an error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_address(&mut self, index: u32, address: IpNetwork) -> Result<(), LinkError> {
        let message = RouteNetlinkMessage::NewAddress(address_message(index, address));
        let done = self.execute(message, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("give interface {index} the address {address}")
        });
        unless(done, libc::EEXIST)
    }

    /// Takes an address from an interface. One that it does not have is not an error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_address(&mut self, index: u32, address: IpNetwork) -> Result<(), LinkError> {
        let message = RouteNetlinkMessage::DelAddress(address_message(index, address));
        let done = self
            .execute(message, 0, || format!("take the address {address} from interface {index}"));
        unless(done, libc::EADDRNOTAVAIL)
    }
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut remote) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => remote = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // IFA_LOCAL is the own address, where there is one (IPv4); IFA_ADDRESS the other end's.
    let address = IpNetwork::new(local.or(remote)?, message.header.prefix_len).ok()?;
    Some(Address {
        index: message.header.index,
        address,
        is_tentative: flags.contains(AddressFlags::Tentative)
            && !flags.contains(AddressFlags::Optimistic),
    })
}

fn address_message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    message.header.family = family(address.is_ipv4());
    message.attributes =
        vec![AddressAttribute::Address(address.ip()), AddressAttribute::Local(address.ip())];
    if let IpNetwork::V4(v4) = address
        && v4.prefix() < 31
    {
        message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
    }
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}
