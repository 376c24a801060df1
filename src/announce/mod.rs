//! Announces the addresses of load balancers on the link of the underlay: hosts there, routers first of all, learn by
//! ARP and neighbor discovery that this node has them.
//!
//! ```text
//!   Control ── Plan ──► run ── frames, now ──► Core (pure) ── frames ──► the link
//!                          └── Report ──► Control
//! ```

mod election;
mod frames;
mod socket;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cni::link::{LinkError, Netlink};
use overlay::interfaces::interfaces;
use overlay::node_id::NodeId;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};
use vswitch::mac::Mac;

use self::election::Core;
pub use self::election::{Wanted, rank};
use self::frames::Speaker;
use self::socket::PacketSocket;

/// How often time is looked at while there is something to announce.
const TICK: Duration = Duration::from_millis(50);

/// How long after a failure the link is opened again.
const RETRY: Duration = Duration::from_secs(2);

/// What is to be announced, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The interface of the underlay, once it is known.
    pub interface: Option<String>,
    /// What is to be announced there.
    pub wanted: Wanted,
}

/// How announcing goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Who announces each address, as far as this node knows: `None` when no node may.
    pub holders: BTreeMap<IpAddr, Option<NodeId>>,
    /// Why nothing can be announced.
    pub problem: Option<String>,
}

/// Announces what `plan` says, for the node `me`, as long as somebody makes plans and takes reports.
pub async fn run(me: NodeId, mut plan: watch::Receiver<Arc<Plan>>, report: watch::Sender<Report>) {
    let mut core: Option<Core> = None;
    plan.mark_changed();
    while !report.is_closed() {
        let current = Arc::clone(&plan.borrow_and_update());
        let interface = current.interface.as_ref().filter(|_| !current.wanted.addresses.is_empty());
        let Some(interface) = interface else {
            core = None;
            report.send_if_modified(|old| replace(old, Report::default()));
            if plan.changed().await.is_err() {
                return;
            }
            continue;
        };
        let ended = match Link::open(interface, &current.wanted) {
            Ok(link) => serve(me, &link, &mut core, &mut plan, &report).await,
            Err(error) => Err(error.to_string()),
        };
        match ended {
            Ok(Next::Reopen) => {}
            Ok(Next::Stop) => return,
            Err(error) => {
                let problem = format!(
                    "addresses of load balancers cannot be announced on {interface}: {error}. It is tried again"
                );
                let holders = report.borrow().holders.clone();
                report.send_if_modified(|old| {
                    replace(old, Report { holders, problem: Some(problem) })
                });
                sleep(RETRY).await;
            }
        }
    }
}

/// Why a link is given up.
enum Next {
    /// For another one, or the same with other groups.
    Reopen,
    Stop,
}

/// Announces on one link until it has to be opened anew.
async fn serve(
    me: NodeId,
    link: &Link,
    core: &mut Option<Core>,
    plan: &mut watch::Receiver<Arc<Plan>>,
    report: &watch::Sender<Report>,
) -> Result<Next, String> {
    // A node that has been here for a while need not wait again.
    let core = core.get_or_insert_with(|| Core::new(me, link.speaker, Instant::now()));
    core.set_speaker(link.speaker);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut out = Vec::new();
    core.set(&plan.borrow_and_update().wanted, Instant::now());
    loop {
        tokio::select! {
            changed = plan.changed() => {
                if changed.is_err() {
                    return Ok(Next::Stop);
                }
                let new = Arc::clone(&plan.borrow_and_update());
                core.set(&new.wanted, Instant::now());
                if !link.fits(&new) {
                    return Ok(Next::Reopen);
                }
            }
            _ = tick.tick() => core.tick(Instant::now(), &mut out),
            frame = link.receive() => {
                let frame = frame.map_err(|error| error.to_string())?;
                core.take(&frame, Instant::now(), &mut out);
            }
        }
        for frame in out.drain(..) {
            link.send(&frame).map_err(|error| error.to_string())?;
        }
        let holders = core.holders();
        report.send_if_modified(|old| replace(old, Report { holders, problem: None }));
    }
}

fn replace(old: &mut Report, new: Report) -> bool {
    let is_new = *old != new;
    if is_new {
        *old = new;
    }
    is_new
}

/// The link that addresses are announced on.
struct Link {
    interface: String,
    speaker: Speaker,
    arp: PacketSocket,
    /// Only while there are IPv6 addresses, or nodes that are known by one.
    discovery: Option<PacketSocket>,
    /// The groups that solicitations go to are listened to as long as these are there.
    groups: BTreeMap<Ipv6Addr, UdpSocket>,
}

#[derive(Debug, thiserror::Error)]
enum LinkFault {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Interfaces(#[from] overlay::error::Error),
    #[error("it is not of the Ethernet kind")]
    NoEthernet,
    #[error(transparent)]
    Socket(#[from] io::Error),
}

impl Link {
    fn open(interface: &str, wanted: &Wanted) -> Result<Self, LinkFault> {
        let found = Netlink::open()?.link(interface)?;
        let all = interfaces()?;
        let own = all.iter().filter(|address| address.interface == interface);
        let own: Vec<IpAddr> = own.map(|address| address.address).collect();
        let v4 = own.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let v6 = own.iter().find_map(|address| match address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(*v6),
            IpAddr::V6(_) | IpAddr::V4(_) => None,
        });
        let mac = Mac(found.mac.ok_or(LinkFault::NoEthernet)?);
        let targets = v6_addresses(wanted);
        let mut groups = BTreeMap::new();
        for group in targets.map(frames::solicited_node_group) {
            if let Entry::Vacant(place) = groups.entry(group) {
                place.insert(socket::join(group, found.index)?);
            }
        }
        let discovery =
            needs_discovery(wanted).then(|| PacketSocket::discovery(found.index)).transpose()?;
        Ok(Self {
            interface: interface.to_owned(),
            speaker: Speaker { mac, v4, v6 },
            arp: PacketSocket::arp(found.index)?,
            discovery,
            groups,
        })
    }

    /// Whether it does for this plan, too.
    fn fits(&self, plan: &Plan) -> bool {
        let groups = v6_addresses(&plan.wanted).map(frames::solicited_node_group);
        let groups: std::collections::BTreeSet<Ipv6Addr> = groups.collect();
        plan.interface.as_ref() == Some(&self.interface)
            && groups.iter().eq(self.groups.keys())
            && needs_discovery(&plan.wanted) == self.discovery.is_some()
    }

    async fn receive(&self) -> io::Result<Vec<u8>> {
        match &self.discovery {
            None => self.arp.receive().await,
            Some(discovery) => tokio::select! {
                frame = self.arp.receive() => frame,
                frame = discovery.receive() => frame,
            },
        }
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // Any packet socket of the interface sends any frame.
        self.arp.send(frame)
    }
}

fn needs_discovery(wanted: &Wanted) -> bool {
    wanted.addresses.keys().chain(wanted.nodes.values()).any(IpAddr::is_ipv6)
}

fn v6_addresses(wanted: &Wanted) -> impl Iterator<Item = Ipv6Addr> {
    wanted.addresses.keys().filter_map(|address| match address {
        IpAddr::V6(v6) => Some(*v6),
        IpAddr::V4(_) => None,
    })
}
