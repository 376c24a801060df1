//! Interfaces: list, make, change, delete.
// The kernel has many more kinds of everything than concern us.
#![allow(clippy::wildcard_enum_match_arm)]

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use super::error::unless;
use super::{LinkError, Netlink};
use crate::netns::Netns;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` for interfaces that have none of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it was set up.
    pub is_up: bool,
    /// Whether the other side is there, too (`LOWER_UP`).
    pub has_carrier: bool,
    /// The bridge (or other master) to which it belongs.
    pub master: Option<u32>,
    /// What kind the kernel calls it, such as `veth` or `tun`; empty for hardware.
    pub kind: String,
}

impl Netlink {
    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn links(&mut self) -> Result<Vec<Link>, LinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let list = self.dump(&request, "list the interfaces")?;
        Ok(list
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(read_link(&link)),
                _ => None,
            })
            .collect())
    }

    /// The interface of that name, if there is one.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn find_link(&mut self, name: &str) -> Result<Option<Link>, LinkError> {
        let request = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        let answer = self.ask(RouteNetlinkMessage::GetLink(request), || {
            format!("look at the interface {name}")
        })?;
        Ok(match answer {
            Some(RouteNetlinkMessage::NewLink(link)) => Some(read_link(&link)),
            _ => None,
        })
    }

    /// The interface of that name.
    ///
    /// # Errors
    /// [`LinkError::NoSuchLink`] when there is none.
    pub fn link(&mut self, name: &str) -> Result<Link, LinkError> {
        self.find_link(name)?.ok_or_else(|| LinkError::NoSuchLink { name: name.to_owned() })
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_up(&mut self, index: u32) -> Result<(), LinkError> {
        self.set(LinkUnspec::new_with_index(index).up(), || format!("set interface {index} up"))
    }

    /// Sets an interface down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_down(&mut self, index: u32) -> Result<(), LinkError> {
        self.set(LinkUnspec::new_with_index(index).down(), || format!("set interface {index} down"))
    }

    /// Sets an interface's MTU, in bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), LinkError> {
        self.set(LinkUnspec::new_with_index(index).mtu(mtu), || {
            format!("set the MTU of interface {index} to {mtu}")
        })
    }

    /// Sets an interface's Ethernet address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> Result<(), LinkError> {
        self.set(LinkUnspec::new_with_index(index).address(mac.to_vec()), || {
            format!("set the MAC of interface {index} to {mac:02x?}")
        })
    }

    /// Makes an interface send without asking for its neighbours' Ethernet addresses (`NOARP`): everything goes
    /// to its own. Then its IPv6 addresses are not asked for either, and can be used at once.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_no_arp(&mut self, index: u32) -> Result<(), LinkError> {
        self.set(LinkUnspec::new_with_index(index).arp(false), || {
            format!("set interface {index} to NOARP")
        })
    }

    /// Renames an interface, which has to be down (kernels before 6.2).
    ///
    /// # Errors
    /// When the kernel refuses, as for a name that exists.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<(), LinkError> {
        self.set(LinkUnspec::new_with_index(index).name(name), || {
            format!("rename interface {index} to {name}")
        })
    }

    /// Makes an interface a port of a bridge, or with `None` of nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_master(&mut self, index: u32, master: Option<u32>) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).controller(master.unwrap_or(0));
        self.set(message, || format!("make interface {index} a port of {master:?}"))
    }

    /// Moves an interface to another namespace. It arrives there set down, without addresses.
    ///
    /// # Errors
    /// When the kernel refuses, as for a name that exists there.
    pub fn move_to(&mut self, index: u32, netns: &Netns) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index).setns_by_fd(netns.as_fd().as_raw_fd());
        self.set(message, || format!("move interface {index} to {}", netns.path().display()))
    }

    /// Sets the largest super-frame (bytes, segments) that the stack may hand to an interface.
    ///
    /// # Errors
    /// When the kernel refuses, as for a size above what the driver can.
    pub fn set_gso_max(&mut self, index: u32, size: u32, segments: u32) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::GsoMaxSize(size))
            .append_extra_attribute(LinkAttribute::GsoMaxSegs(segments));
        self.set(message, || {
            format!("set the largest super-frame of interface {index} to {size} bytes")
        })
    }

    /// Deletes an interface. One that is gone already is not an error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_link(&mut self, index: u32) -> Result<(), LinkError> {
        let message = RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build());
        let done = self.execute(message, 0, || format!("delete interface {index}"));
        unless(done, libc::ENODEV)
    }

    /// Makes a pair of virtual Ethernet interfaces, the second one in `peer_netns` if that is given.
    ///
    /// # Errors
    /// When the kernel refuses, as for a name that exists.
    pub fn create_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_netns: Option<&Netns>,
    ) -> Result<(), LinkError> {
        let mut other = LinkMessageBuilder::<LinkUnspec>::new().name(peer);
        if let Some(netns) = peer_netns {
            other = other.setns_by_fd(netns.as_fd().as_raw_fd());
        }
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(other.build())));
        self.create(pair, || format!("create the veth pair {name} and {peer}"))
    }

    /// Makes a bridge, set up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create_bridge(&mut self, name: &str) -> Result<(), LinkError> {
        self.create(LinkBridge::new(name), || format!("create the bridge {name}"))
    }

    /// Makes a kernel VXLAN interface, as flannel does: no learning, the peers come from outside.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create_vxlan(
        &mut self,
        name: &str,
        vni: u32,
        port: u16,
        local: IpAddr,
        underlay_index: u32,
    ) -> Result<(), LinkError> {
        let vxlan = LinkVxlan::new(name, vni).port(port).dev(underlay_index).learning(false);
        let vxlan = match local {
            IpAddr::V4(local) => vxlan.local(local),
            IpAddr::V6(local) => vxlan.local6(local),
        };
        self.create(vxlan, || format!("create the VXLAN interface {name}"))
    }

    fn create<T>(
        &mut self,
        message: LinkMessageBuilder<T>,
        what: impl FnOnce() -> String,
    ) -> Result<(), LinkError> {
        let message = RouteNetlinkMessage::NewLink(message.build());
        self.execute(message, NLM_F_CREATE | NLM_F_EXCL, what)
    }

    fn set(
        &mut self,
        message: LinkMessageBuilder<LinkUnspec>,
        what: impl FnOnce() -> String,
    ) -> Result<(), LinkError> {
        self.execute(RouteNetlinkMessage::SetLink(message.build()), 0, what)
    }
}

fn read_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        is_up: flags.contains(LinkFlags::Up),
        has_carrier: flags.contains(LinkFlags::LowerUp),
        master: None,
        kind: String::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = Some(*index).filter(|ix| *ix != 0),
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}
