//! What is compared: one set of nodes and pods per contestant, all alike up to what joins the pods.
//!
//! ```text
//!   p1  p2            p1  p2       pods, each a network namespace
//!    └┬──┘             └┬──┘       what is measured: kernel bridge + vxlan, Weft, ...
//!     n1 ────────────── n2         two nodes: one veth pair; more: a bridge in a namespace of its own
//! ```
//!
//! Sets stand beside each other; one that is not being measured costs nothing.

mod flat;
mod kernel;
mod ovs;
mod plain;
mod service;
mod weft;
mod wireguard;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use ::weft::lab::{
    Family, Interrupt, Lab, LabConfig, Labs, Namespace, Plan, ProcessId, address_of,
};
use anyhow::{Context, Result};
use rustix::process::Signal;

use super::tools;
use super::wire::Wire;

pub(crate) use plain::{ARGUMENT as PLAIN_ARGUMENT, main as plain_main};
pub(crate) use service::Service;

/// A node's device on the wire.
pub(crate) const LINK: &str = "eth0";

/// Who is measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contestant {
    /// Bridge, vxlan device and static routes, as flannel's vxlan backend sets them up.
    Kernel,
    /// This tree's daemon and plugin.
    Weft,
    /// The same over IPv4 where the others run over IPv6.
    WeftOverV4,
    /// Another build of Weft.
    OtherWeft(PathBuf),
    /// One frame a system call.
    Plain,
    /// Open vSwitch's userspace datapath with TAP ports.
    Ovs,
    /// wireguard-go between the nodes, bridges in them.
    WireguardGo,
}

impl Contestant {
    /// Those who are measured with `--all`.
    pub(crate) const OTHERS: [Self; 3] = [Self::Plain, Self::Ovs, Self::WireguardGo];

    /// Its name in tables, files and arguments.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Weft => "weft",
            Self::WeftOverV4 => "weft-over-v4",
            Self::OtherWeft(_) => "other-weft",
            Self::Plain => "plain",
            Self::Ovs => "ovs",
            Self::WireguardGo => "wireguard-go",
        }
    }

    /// The one with this [`Contestant::name`]. Which other build it was, a name does not say.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let others = [Self::Kernel, Self::Weft, Self::WeftOverV4, Self::OtherWeft(PathBuf::new())];
        others.into_iter().chain(Self::OTHERS).find(|one| one.name() == name)
    }

    /// What its name stands for, for a footnote.
    pub(crate) fn description(&self) -> String {
        match self {
            Self::Kernel => {
                "K: the kernel's bridge and vxlan device, set up as flannel does".to_owned()
            }
            Self::Weft => "this tree's daemon, pods attached by its CNI plugin".to_owned(),
            Self::WeftOverV4 => "the same with an IPv4 underlay".to_owned(),
            Self::OtherWeft(path) => format!("the Weft at {}", path.display()),
            Self::Plain => {
                "a VXLAN forwarder of this benchmark's own, one frame a system call, no offloads"
                    .to_owned()
            }
            Self::Ovs => "Open vSwitch's userspace datapath, pods on TAP ports".to_owned(),
            Self::WireguardGo => {
                "wireguard-go as installed (it encrypts), pods on bridges".to_owned()
            }
        }
    }

    /// What is not installed of that which it needs.
    pub(crate) fn missing(&self) -> Option<String> {
        match self {
            Self::Kernel | Self::Weft | Self::WeftOverV4 | Self::OtherWeft(_) | Self::Plain => None,
            Self::Ovs => tools::missing(&ovs::PROGRAMS),
            Self::WireguardGo => wireguard::missing(),
        }
    }

    /// Whether it is set up for a wire. The others are for comparison, and have IPv4 only.
    pub(crate) fn suits(&self, wire: Wire) -> bool {
        !(Self::OTHERS.contains(self) && wire.underlay() == Family::V6)
    }

    fn join_pods(&self, ground: &mut Ground) -> Result<()> {
        match self {
            Self::Kernel => kernel::join(ground),
            Self::Weft | Self::WeftOverV4 | Self::OtherWeft(_) => weft::join(ground),
            Self::Plain => plain::join(ground),
            Self::Ovs => ovs::join(ground),
            Self::WireguardGo => wireguard::join(ground),
        }
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many of what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Nodes.
    pub(crate) nodes: u8,
    /// Pods on each.
    pub(crate) pods_per_node: u8,
}

/// Where traffic begins or ends.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    /// Its network namespace.
    pub(crate) namespace: Namespace,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Pod {
    /// Its address of one protocol.
    pub(crate) fn address(&self, family: Family) -> Result<IpAddr> {
        address_of(&self.addresses, family).with_context(|| {
            format!("the pod has no address of {family:?}, but {:?}", self.addresses)
        })
    }
}

/// A contestant's nodes with pods that reach each other. All of it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) contestant: Contestant,
    ground: Ground,
}

impl Stage {
    /// Builds it. The thread that does must live as long as it: its processes end with the thread.
    pub(crate) fn build(
        contestant: Contestant,
        wire: Wire,
        layout: Layout,
        site: &Site,
    ) -> Result<Self> {
        let what = || format!("building {contestant} on wire {}", wire.name());
        let mut ground = Ground::lay(&contestant, wire, layout, site).with_context(what)?;
        contestant.join_pods(&mut ground).with_context(what)?;
        Ok(Self { contestant, ground })
    }

    /// The pods of the node with this index.
    pub(crate) fn pods(&self, node: usize) -> &[Pod] {
        self.ground.pods.get(node).map_or(&[], Vec::as_slice)
    }

    /// The namespace of the node with this index.
    pub(crate) fn node(&self, node: usize) -> Result<Namespace> {
        self.ground.node(node)
    }

    /// The lab in which it is.
    pub(crate) fn lab(&self) -> &Lab {
        &self.ground.lab
    }

    /// Removes it.
    pub(crate) fn down(self) -> Result<()> {
        let Ground { lab, processes, .. } = self.ground;
        drop(processes);
        lab.down()
    }
}

/// What all stages have in common.
#[derive(Debug)]
pub(crate) struct Site {
    /// Where labs are.
    pub(crate) labs: Labs,
    /// Set when the work is to end.
    pub(crate) interrupt: Interrupt,
    /// Text for the `weft.toml` of every node.
    pub(crate) weft_extra: String,
}

/// Nodes that reach each other, and what a contestant adds to them.
#[derive(Debug)]
struct Ground {
    // Dropped in this order: what runs in the namespaces goes before them.
    processes: Vec<Process>,
    lab: Lab,
    wire: Wire,
    layout: Layout,
    pods: Vec<Vec<Pod>>,
}

impl Ground {
    /// The underlay: machines on which nothing runs yet.
    fn lay(contestant: &Contestant, wire: Wire, layout: Layout, site: &Site) -> Result<Self> {
        let is_over_v4 = *contestant == Contestant::WeftOverV4;
        let underlay = if is_over_v4 { Family::V4 } else { wire.underlay() };
        let own = PathBuf::from(env!("CARGO_BIN_EXE_weft"));
        let program = if let Contestant::OtherWeft(path) = contestant { path.clone() } else { own };
        let name = format!("{LAB_PREFIX}{}-{contestant}", std::process::id());
        let config = LabConfig {
            nodes: layout.nodes,
            pods_per_node: layout.pods_per_node,
            underlay,
            underlay_mtu: wire.mtu(),
            extra: site.weft_extra.clone(),
            program: Some(program),
            ..LabConfig::new(name)
        };
        let mut lab = Lab::create(&site.labs, config, site.interrupt.clone(), None)?;
        for _ in 0..layout.nodes {
            lab.add_idle_node()?;
        }
        let ground = Self { processes: Vec::new(), lab, wire, layout, pods: Vec::new() };
        if layout.nodes == 2 {
            ground.join_directly()?;
        }
        ground.prepare_wires()?;
        Ok(ground)
    }

    /// Puts one veth pair between two nodes in place of the bridge.
    fn join_directly(&self) -> Result<()> {
        let (one, other) = (self.node(0)?, self.node(1)?);
        for namespace in [&one, &other] {
            tools::ip(namespace, &format!("link del {LINK}\n"))?;
        }
        let (mtu, path) = (self.wire.mtu(), other.path().display());
        let pair = format!(
            "link add {LINK} mtu {mtu} type veth peer name {LINK} mtu {mtu} netns {path}\n"
        );
        tools::ip(&one, &pair)?;
        for (node, namespace) in self.lab.nodes().iter().zip([&one, &other]) {
            let (v4, v6) =
                (Plan::node(Family::V4, node.number), Plan::node(Family::V6, node.number));
            let addresses = format!(
                "link set {LINK} up\naddress add {v4} dev {LINK}\naddress add {v6} dev {LINK} nodad\n"
            );
            tools::ip(namespace, &addresses)?;
        }
        Ok(())
    }

    fn prepare_wires(&self) -> Result<()> {
        for (ix, node) in self.lab.nodes().iter().enumerate() {
            self.wire.prepare(&self.node(ix)?, LINK)?;
            if self.layout.nodes > 2 {
                // The other end is a port of the bridge between the nodes.
                self.wire.prepare(&self.lab.namespace(::weft::lab::UNDERLAY)?, &node.name)?;
            }
        }
        Ok(())
    }

    fn node(&self, ix: usize) -> Result<Namespace> {
        let node = self.lab.nodes().get(ix).with_context(|| format!("there is no node {ix}"))?;
        self.lab.namespace(&node.name)
    }

    /// The underlay address of a node.
    fn underlay(&self, ix: usize) -> Result<IpAddr> {
        let node = self.lab.nodes().get(ix).with_context(|| format!("there is no node {ix}"))?;
        Ok(node.underlay)
    }

    /// Makes the namespace of a pod that is attached by hand. It goes with the lab.
    fn make_pod(&mut self, node: usize, addresses: Vec<IpAddr>) -> Result<Pod> {
        if self.pods.len() <= node {
            self.pods.resize_with(node + 1, Vec::new);
        }
        let name = format!("{}-p{}", self.lab.nodes()[node].name, self.pods[node].len() + 1);
        let namespace = Namespace::create(self.lab.dir().join("ns").join(&name))
            .with_context(|| format!("making the namespace of pod {name}"))?;
        tools::ip(&namespace, "link set lo up\n")?;
        let pod = Pod { namespace, addresses };
        self.pods[node].push(pod.clone());
        Ok(pod)
    }
}

/// A process that is stopped when this is dropped.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, and one that does not stop is killed: then its files stay.
        if let Ok(id) = ProcessId::of(self.0.id())
            && id.signal(Signal::TERM).is_ok()
        {
            let _ = id.wait_for_end(STOP_LIMIT);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Removes what benchmarks have left that were killed in a way which nothing can survive.
pub(crate) fn remove_abandoned(labs: &Labs) -> Result<()> {
    for name in labs.names()?.iter().filter(|name| name.starts_with(LAB_PREFIX)) {
        if labs.read(name).is_ok_and(|state| state.is_abandoned()) {
            Lab::remove(labs, name)?;
        }
    }
    Ok(())
}

/// Bytes that VXLAN over IPv4 adds: inner Ethernet, VXLAN, UDP, IPv4 (RFC 7348 §5).
const VXLAN_OVERHEAD: u16 = 50;

/// How long a process may take to stop before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What the names of the labs begin with.
const LAB_PREFIX: &str = "bench-";
