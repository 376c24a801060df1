//! How often what happens.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use crate::config::Preset;

/// The clockwork of gossip, for up to 256 nodes on a local network; for more, some of it goes slower, see
/// [`Preset`]. With the defaults a node that dies is noticed within 10 seconds even when one datagram in ten is lost, and nobody is declared
/// dead by such losses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// How often each node asks another one, chosen in random turns, whether it is alive. Default 700 ms.
    pub probe_period: Duration,
    /// How long to wait for the answer before three others are asked to try. Default 250 ms; less than
    /// half of `probe_period`.
    pub probe_rtt: Duration,
    /// How long a node that did not answer may contradict before it counts as dead. Default 3 s.
    pub suspect: Duration,
    /// How long a node that others declare dead is asked itself before that is believed. Default 1.5 s.
    pub appeal: Duration,
    /// How often news about lives are passed on, while there are any. Default 200 ms.
    pub swim_gossip: Duration,
    /// How often records are compared with one other node. Default 1 s.
    pub sync: Duration,
    /// How long new records are gathered before they are passed on. Default 20 ms.
    pub rumor: Duration,
    /// How often one dead node is tried again, for ever, so that partitions heal. Default 5 s.
    pub dead_dial: Duration,
    /// First pause before a seed that does not answer is dialled again; doubles each time. Default 1 s.
    pub seed_retry: Duration,
    /// Longest pause between dials of a seed that does not answer or is not among the members, and the
    /// pause between looks at one that is. Default 30 s.
    pub seed_retry_max: Duration,
    /// Least time between two maps: a storm of news costs a bounded amount of work. Default 20 ms.
    pub view: Duration,
    /// How long a contradiction between nodes must last before it is reported: longer than it takes to
    /// notice that a node's predecessor at its address is dead. Default 10 s.
    pub conflict: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(700),
            probe_rtt: Duration::from_millis(250),
            suspect: Duration::from_secs(3),
            appeal: Duration::from_millis(1500),
            swim_gossip: Duration::from_millis(200),
            sync: Duration::from_secs(1),
            rumor: Duration::from_millis(20),
            dead_dial: Duration::from_secs(5),
            seed_retry: Duration::from_secs(1),
            seed_retry_max: Duration::from_secs(30),
            view: Duration::from_millis(20),
            conflict: Duration::from_secs(10),
        }
    }
}

/// How many members get a record that is new to a node.
pub(super) const FANOUT: usize = 4;

/// How many others are asked to try a node that did not answer, and get news about lives each time.
const HELPERS: NonZeroUsize = NonZeroUsize::new(3).expect("three is not zero");

/// How large a cluster is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Size {
    #[default]
    Small,
    Medium,
    Large,
}

/// From how many nodes on a cluster is medium, and large. It is so until a quarter of them is gone, so that
/// nothing changes to and fro.
const MEDIUM_MIN: usize = 257;
const LARGE_MIN: usize = 1501;

impl Size {
    /// The size of a cluster of `nodes` that was of size `self`, unless the preset says otherwise.
    pub(super) fn next(self, preset: Preset, nodes: usize) -> Self {
        match preset {
            Preset::Small => Self::Small,
            Preset::Medium => Self::Medium,
            Preset::Large => Self::Large,
            Preset::Auto => {
                let of = |nodes| match nodes {
                    LARGE_MIN.. => Self::Large,
                    MEDIUM_MIN.. => Self::Medium,
                    _ => Self::Small,
                };
                of(nodes).max(self.min(of(nodes + nodes / 3)))
            }
        }
    }
}

impl Timing {
    /// This clockwork for a cluster of another size: news of a suspicion and the suspect's answer to it
    /// take more steps, and the more news there are, the more of them go into one datagram and one map.
    pub(super) fn scaled(&self, size: Size) -> Self {
        let (suspect, rumor, view) = match size {
            Size::Small => (1.0, 1, 1),
            Size::Medium => (4.0 / 3.0, 2, 3),
            Size::Large => (5.0 / 3.0, 4, 10),
        };
        Self {
            suspect: self.suspect.mul_f64(suspect),
            rumor: self.rumor * rumor,
            view: self.view * view,
            ..self.clone()
        }
    }

    /// The failure detector's settings for a cluster of `nodes`.
    pub(super) fn swim(&self, nodes: usize, packet_len_max: usize) -> foca::Config {
        let one = NonZeroUsize::MIN;
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: HELPERS,
            max_transmissions: transmissions(nodes),
            suspect_to_down_after: self.suspect,
            // What is dead is forgotten together with its record, not by a timer.
            remove_down_after: None,
            max_packet_size: NonZeroUsize::new(packet_len_max).unwrap_or(one),
            notify_down_members: true,
            periodic_announce: Some(foca::PeriodicParams {
                frequency: Duration::from_secs(30),
                num_members: one,
            }),
            // The dead are dialled by `Gossip`, also while nobody is alive.
            periodic_announce_to_down_members: None,
            periodic_gossip: Some(foca::PeriodicParams {
                frequency: self.swim_gossip,
                num_members: HELPERS,
            }),
        }
    }
}

/// How often one piece of news is passed on by each node. Twelve reach everybody in a small cluster even
/// when a tenth of all datagrams is lost, and leave no suspicion without its answer; three more for each
/// doubling beyond 32 nodes.
fn transmissions(nodes: usize) -> NonZeroU8 {
    let doublings = (nodes / 32).max(1).ilog2();
    let count = u8::try_from(12 + 3 * doublings).unwrap_or(TRANSMISSIONS_MAX);
    NonZeroU8::new(count.min(TRANSMISSIONS_MAX)).unwrap_or(NonZeroU8::MIN)
}

const TRANSMISSIONS_MAX: u8 = 36;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_follows_the_nodes_and_does_not_waver() {
        let auto = |size: Size, nodes| size.next(Preset::Auto, nodes);
        assert_eq!(auto(Size::Small, 256), Size::Small);
        assert_eq!(auto(Size::Small, 257), Size::Medium);
        assert_eq!(auto(Size::Medium, 200), Size::Medium);
        assert_eq!(auto(Size::Medium, 150), Size::Small);
        assert_eq!(auto(Size::Medium, 1500), Size::Medium);
        assert_eq!(auto(Size::Small, 5000), Size::Large);
        assert_eq!(auto(Size::Large, 1200), Size::Large);
        assert_eq!(auto(Size::Large, 1000), Size::Medium);
        assert_eq!(auto(Size::Large, 3), Size::Small);
        assert_eq!(Size::Small.next(Preset::Large, 3), Size::Large);
        assert_eq!(Timing::default().scaled(Size::Large).suspect, Duration::from_secs(5));
    }

    #[test]
    fn news_are_told_more_often_in_larger_clusters() {
        assert_eq!(transmissions(0).get(), 12);
        assert_eq!(transmissions(100).get(), 15);
        assert_eq!(transmissions(5000).get(), 33);
    }
}
