//! The node's own place in the network: `weft0`, its addresses and routes, and masquerading.

pub mod long_frames;
pub mod nft;
pub mod sysctl;
pub mod ways;

use std::net::IpAddr;
use std::time::Instant;

use cni::link::{self, HostInterface, LinkError};
use ipnetwork::IpNetwork;
use vswitch::engine::Port;
use vswitch::mac::Mac;
use vswitch::offload::LongFrames;
use vswitch::port::PortIx;
use vswitch::tables::{ROUTER_V4, ROUTER_V6};
use vswitch::tap::{Tap, TapError};

use crate::control::kernel_drops::{self, TxDrops};

/// The node's own interface.
#[derive(Debug)]
pub struct Host {
    tap: Tap,
    opened: Instant,
    drops: Option<TxDrops>,
}

/// Why the node's own interface could not be set up or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The interface could not be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Addresses or routes could not be set, or the interface could not be removed.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Host {
    /// Makes the interface, or takes up the one that an earlier run left.
    ///
    /// # Errors
    /// When the kernel refuses the device.
    pub fn open(interface: &str) -> Result<Self, HostError> {
        let tap = Tap::open(interface)?;
        let drops = kernel_drops::found(interface, TxDrops::open(interface));
        Ok(Self { tap, opened: Instant::now(), drops })
    }

    /// The interface.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// When it was opened.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Packets that the kernel dropped since the last call, before the switch saw them.
    pub fn take_kernel_drops(&mut self) -> u64 {
        kernel_drops::counted(self.tap.name(), self.drops.as_mut().map(TxDrops::take))
    }

    /// The interface as a port for an engine with `workers` workers.
    pub fn port(&self, workers: usize) -> Port {
        Port {
            source: Box::new(self.tap.source(PortIx::HOST)),
            // What the node sends on may leave by any device of its own.
            sinks: (0..workers)
                .map(|_| Box::new(self.tap.sink(PortIx::HOST, LongFrames::NONE)) as _)
                .collect(),
        }
    }

    /// Gives the interface its addresses, MTU and routes. May be repeated with others. The first address of
    /// each family is the node's own, which it speaks from. Routes to single addresses are left as they are.
    ///
    /// # Errors
    /// When the kernel refuses, or somebody else has a route to the cluster range.
    pub fn configure(
        &self,
        addresses: &[IpAddr],
        ranges: &[IpNetwork],
        mtu: u16,
    ) -> Result<(), HostError> {
        let wanted = HostInterface {
            mac: Mac::HOST.0,
            mtu: u32::from(mtu),
            addresses: addresses.to_vec(),
            ranges: ranges.to_vec(),
            routers: vec![ROUTER_V4.into(), ROUTER_V6.into()],
        };
        Ok(link::configure_host(None, self.tap.name(), &wanted)?)
    }

    /// Routes these single addresses to the switch, and no others. Goes on past errors and returns all of them.
    /// `sources` are the addresses that the node speaks from.
    pub fn route_only(&self, addresses: &[IpAddr], sources: &[IpAddr]) -> Vec<LinkError> {
        link::set_single_routes(self.tap.name(), &self.single_routes(sources), addresses, None)
    }

    /// Routes the addresses in `added` to the switch, and those in `removed` no more. Goes on past errors and
    /// returns all of them.
    pub fn change_routes(
        &self,
        added: &[IpAddr],
        removed: &[IpAddr],
        sources: &[IpAddr],
    ) -> Vec<LinkError> {
        link::set_single_routes(self.tap.name(), &self.single_routes(sources), added, Some(removed))
    }

    fn single_routes(&self, sources: &[IpAddr]) -> link::SingleRoutes {
        link::SingleRoutes {
            sources: sources.to_vec(),
            routers: vec![ROUTER_V4.into(), ROUTER_V6.into()],
        }
    }
}

/// Removes every trace of the node's own place in the network: interface, routes and table. Goes on past
/// errors and returns all of them.
pub fn remove(interface: &str) -> Vec<String> {
    let link = link::unconfigure_host(None, interface).map_err(|error| error.to_string());
    let table = match nft::remove() {
        // Without `nft` there never was a table.
        Err(nft::Error::Missing) => Ok(()),
        other => other.map_err(|error| error.to_string()),
    };
    [link, table].into_iter().filter_map(Result::err).collect()
}
