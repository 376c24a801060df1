//! A member of the cluster that is not Weft: gossip speaks for it, something else carries its packets.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use ipnetwork::IpNetwork;
use overlay::agent::{Agent, AgentConfig};
use overlay::config::LeaseConfig;
use overlay::gossip::{GossipConfig, LeaseState, LocalNode, Memory};
use overlay::node_id::NodeId;
use tokio::sync::oneshot;
use vswitch::mac::Mac;
use weft::admin::api::NodeStatus;
use weft::lab::{Lab, Namespace};

use super::place::skip_duplicate_detection;
use super::run;

/// How long joining may take.
const JOIN_LIMIT: Duration = Duration::from_secs(20);

/// A machine of the lab for which an agent in this process gossips.
pub(crate) struct Foreign {
    /// Name of the machine.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) namespace: Namespace,
    /// The address that its tunnel endpoint must have.
    pub(crate) vtep_mac: Mac,
    /// Its subnets.
    pub(crate) leases: Vec<IpNetwork>,
    /// MTU inside the tunnel.
    pub(crate) inner_mtu: u16,
    leave: oneshot::Sender<()>,
    gossip: JoinHandle<()>,
}

impl Foreign {
    /// Makes the idle machine `name` a member, and waits until all see it with its leases.
    #[track_caller]
    pub(crate) fn join(lab: &Lab, name: &str) -> Self {
        Self::join_as(lab, name, "")
    }

    /// The same, with this name and version of its software in its record.
    #[track_caller]
    pub(crate) fn join_as(lab: &Lab, name: &str, software: &str) -> Self {
        let node = lab.state().node(name).unwrap();
        let id = NodeId::generate().unwrap();
        let config = AgentConfig {
            gossip: GossipConfig::new(format!("lab-{}", lab.state().config.name), leases()),
            local: LocalNode {
                id,
                name: name.to_owned(),
                underlay: node.underlay,
                gossip_port: 7946,
                vxlan_port: 4789,
                underlay_mtu: node.mtu,
                software: software.to_owned(),
                has_seeds: true,
                memory: Memory::default(),
            },
            seeds: vec![lab.nodes()[0].underlay.to_string()],
            state_file: lab.dir().join(format!("{name}-gossip.json")),
            key_file: Some(lab.dir().join("keys")),
        };
        let namespace = lab.namespace(name).unwrap();
        let (leave, left) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let inside = namespace.clone();
        let gossip = std::thread::spawn(move || {
            inside.run(move || gossip(config, &tell, left)).unwrap();
        });
        let leases = told.recv_timeout(JOIN_LIMIT).expect("the agent gets a lease");
        let all: Vec<_> = lab.nodes().iter().map(|node| node.name.as_str()).collect();
        lab.wait_for_map(&all, JOIN_LIMIT).unwrap();
        let inner_mtu = overlay::subnet::inner_mtu(node.mtu, node.underlay);
        let vtep_mac = id.vtep_mac();
        Self { name: name.to_owned(), namespace, vtep_mac, leases, inner_mtu, leave, gossip }
    }

    /// The other members, as one of them sees them.
    pub(crate) fn peers(&self, lab: &Lab) -> Vec<NodeStatus> {
        let mut nodes = lab.admin(&lab.nodes()[0].name).unwrap().nodes().unwrap();
        nodes.retain(|node| node.name != self.name);
        nodes
    }

    /// Says goodbye.
    pub(crate) fn leave(self) {
        self.leave.send(()).unwrap();
        self.gossip.join().unwrap();
    }

    /// Makes a namespace on this machine, joined to it by a veth pair: `eth0` inside, `name` outside. As
    /// `container` runtimes do, but with nothing of Weft.
    pub(crate) fn add_pod(&self, lab: &Lab, name: &str) -> Namespace {
        let path: PathBuf = lab.dir().join("ns").join(format!("{}-{name}", self.name));
        let pod = Namespace::create(&path).unwrap();
        skip_duplicate_detection(&pod);
        run(&pod, "ip link set lo up");
        let (path, mtu) = (path.display(), self.inner_mtu);
        run(&self.namespace, &format!("ip link add {name} type veth peer name eth0 netns {path}"));
        run(&self.namespace, &format!("ip link set {name} mtu {mtu} up"));
        run(&pod, &format!("ip link set eth0 mtu {mtu} up"));
        pod
    }
}

/// What the lab's nodes are configured with: all must deal out addresses alike.
fn leases() -> LeaseConfig {
    let ranges = ["10.244.0.0/16", "fd00:10:244::/56"];
    let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    LeaseConfig { ranges, ..LeaseConfig::default() }
}

fn gossip(
    config: AgentConfig,
    tell: &std::sync::mpsc::Sender<Vec<IpNetwork>>,
    left: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let agent = Agent::spawn(config).await.unwrap();
        let mut lease = agent.lease();
        let state = lease.wait_for(|state| matches!(state, LeaseState::Held { .. })).await.unwrap();
        tell.send(state.held().to_vec()).unwrap();
        drop(state);
        // A test that failed drops the sender, which ends the wait, too.
        let _failed = left.await;
        agent.leave().await;
    });
}

/// The `n`th address of the lease of a family.
pub(crate) fn address(leases: &[IpNetwork], is_v4: bool, n: u8) -> std::net::IpAddr {
    let lease = leases.iter().find(|lease| lease.is_ipv4() == is_v4).expect("one of each family");
    match lease.network() {
        std::net::IpAddr::V4(base) => (base.to_bits() + u32::from(n)).to_be_bytes().into(),
        std::net::IpAddr::V6(base) => (base.to_bits() + u128::from(n)).to_be_bytes().into(),
    }
}
