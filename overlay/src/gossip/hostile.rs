//! What a member that lies can do: nothing to memory, and nothing that ends the process.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::codec::DATAGRAM_MAX;
use super::envelope::{CLEAR_LEN, finish};
use super::sim::Network;
use super::{EVENTS_MAX, OUTBOX_MAX};

/// Real messages with changed bodies and right check sums, from the addresses that they name, as a member
/// could send them: without seals, which would be in the way of the changes. They lead to no panic, to no more members than the limit, and to no datagram that is too long.
#[test]
fn changed_messages_of_members_end_nothing_and_fill_nothing() {
    for seed in 0..8 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut network = Network::new(seed);
        network.config.nodes_max = 40;
        network.keys = None;
        network.capture();
        for _ in 0..3 {
            network.add_node();
        }
        assert!(network.run_until(Duration::from_secs(10), |network| network.agrees_on(3)));
        network.kill(2);
        network.start(2);
        network.run_for(Duration::from_secs(8));
        let captured = network.capture();
        for _ in 0..3000 {
            let (from, to, mut datagram) = captured[random.random_range(0..captured.len())].clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(CLEAR_LEN..datagram.len());
                datagram[at] = match random.random_range(0..3) {
                    0 => random.random(),
                    1 => 0xff,
                    _ => datagram[at] ^ 1 << random.random_range(0..8),
                };
            }
            if random.random_bool(0.1) {
                datagram.truncate(random.random_range(CLEAR_LEN + 1..=datagram.len()));
            }
            network.inject(from, to, finish(datagram));
            network.run_for(Duration::from_millis(3));
        }
        for ix in 0..3 {
            let map = network.map(ix).unwrap();
            assert!(map.members.len() <= 40, "seed {seed}: {} members", map.members.len());
            let gossip = network.gossip(ix).unwrap();
            assert!(gossip.outbox.len() <= OUTBOX_MAX && gossip.events.len() <= EVENTS_MAX);
            assert!(gossip.swim.states().count() <= 40 + DATAGRAM_MAX / 20, "seed {seed}");
        }
        assert!(network.longest_sent <= DATAGRAM_MAX, "seed {seed}: {}", network.longest_sent);
    }
}
