//! Random histories: whatever happened, in the end all is accounted for, all maps are equal, and every pod
//! reaches every other.

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

use std::time::Duration;

use crate::support::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use weft::sim::{Cluster, Faults, Node, Pod};

/// How many seeds; `WEFT_SIM_FACTOR` times as many if that is set.
const SEEDS: u64 = 50;

const OPERATIONS: usize = 30;
const NODES_MAX: usize = 6;
const PODS_MAX: usize = 8;

struct History {
    cluster: Cluster,
    random: StdRng,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let nodes = random.random_range(2..=4);
        let faults = Faults {
            loss: *[0.0, 0.01, 0.05].choose(&mut random).unwrap(),
            duplication: 0.01,
            delay: Duration::from_micros(random.random_range(50..5000)),
            jitter: Duration::from_micros(random.random_range(0..5000)),
        };
        let builder = Cluster::builder().nodes(nodes).pods_per_node(1).seed(seed);
        let cluster = builder.ipv6_underlay(random.random()).faults(faults).build();
        Self { cluster, random }
    }

    fn operate(&mut self) {
        let random = &mut self.random;
        let cluster = &mut self.cluster;
        let (nodes, running, pods) = (cluster.nodes(), cluster.running(), cluster.pods());
        let node = nodes[random.random_range(0..nodes.len())];
        match random.random_range(0..100) {
            // Never the last one: those that come back would have nobody to ask.
            0..12 if running.len() > 1 => cluster.kill(node),
            12..17 if running.len() > 1 => cluster.leave(node),
            17..35 => cluster.start(node),
            35..43 => {
                let at = random.random_range(1..nodes.len());
                let (side, other) = nodes.split_at(at);
                cluster.partition(side, other);
            }
            43..46 => cluster.cut_one_way(node, nodes[random.random_range(0..nodes.len())]),
            46..56 => cluster.heal(),
            56..58 if nodes.len() < NODES_MAX => {
                cluster.add_node();
            }
            58..68 if pods.len() < PODS_MAX => {
                // A node that is cut off may hold no lease; one that is down takes no pods.
                let _refused = cluster.try_add_pod(node);
            }
            68..73 if pods.len() > 2 => {
                cluster.remove_pod(pods[random.random_range(0..pods.len())]);
            }
            73..76 => {
                let mut bytes = vec![0; random.random_range(0..1500)];
                random.fill_bytes(&mut bytes);
                let (from, to) = (nodes[0], node);
                let port = random.random_range(49_152..=65_535);
                let from = std::net::SocketAddr::new(cluster.underlay_address(from), port);
                cluster.inject_datagram(from, cluster.vxlan_address(to), &bytes);
                cluster.inject_datagram(from, cluster.gossip_address(to), &bytes);
            }
            _ => self.traffic(),
        }
        let pause = Duration::from_millis(self.random.random_range(0..3000));
        self.cluster.run_for(pause);
    }

    /// Packets between pods, whether they can arrive or not.
    fn traffic(&mut self) {
        let pods = self.cluster.pods();
        for _ in 0..20 {
            let (Some(from), Some(to)) =
                (pods.choose(&mut self.random), pods.choose(&mut self.random))
            else {
                return;
            };
            let target = *self.cluster.addresses((*to).into()).choose(&mut self.random).unwrap();
            let len = self.random.random_range(0..3000);
            let frame = udp_from(&self.cluster, *from, target, 9, &vec![7; len]);
            self.cluster.inject_frame(*from, &frame);
        }
    }

    /// Whether a pod has an address out of a lease that its node holds now.
    fn is_at_home(&self, pod: Pod) -> bool {
        let leases = self.cluster.leases(self.cluster.node_of(pod));
        let addresses = self.cluster.addresses(pod.into());
        addresses.iter().all(|address| leases.iter().any(|lease| lease.contains(*address)))
    }

    fn end(mut self, seed: u64) {
        self.cluster.heal();
        let delay = Duration::from_millis(1);
        self.cluster.set_faults(Faults { delay, ..Faults::NONE });
        // A goodbye takes its time, and only then can a node be started again.
        self.cluster.run_for(SECOND);
        for node in self.cluster.nodes() {
            self.cluster.start(node);
        }
        let settled = self.cluster.run_until(90 * SECOND, Cluster::agrees);
        assert!(settled, "seed {seed}:\n{}", self.cluster.picture());
        assert_equal_maps(&self.cluster);
        let nodes: Vec<Node> = self.cluster.nodes();
        assert_eq!(self.cluster.running(), nodes, "seed {seed}");
        for pod in self.cluster.pods() {
            assert!(
                self.is_at_home(pod),
                "seed {seed}: a node lost its lease\n{}",
                self.cluster.picture()
            );
        }
        for (from, to) in pairs(&self.cluster) {
            assert_reaches(&mut self.cluster, from, to);
        }
        let violations = self.cluster.violations();
        assert!(violations.is_empty(), "seed {seed}: {violations:?}");
    }
}

#[test]
fn whatever_happens_all_is_well_in_the_end() {
    let factor = std::env::var("WEFT_SIM_FACTOR")
        .map_or(1, |factor| factor.parse().expect("WEFT_SIM_FACTOR is a number"));
    for seed in 0..SEEDS * factor {
        let mut history = History::new(seed);
        for _ in 0..OPERATIONS {
            history.operate();
            let violations = history.cluster.violations();
            assert!(violations.is_empty(), "seed {seed}: {violations:?}");
        }
        history.end(seed);
    }
}
