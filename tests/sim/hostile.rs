//! What strangers, members gone bad and hostile pods can do: be counted, and nothing else.

#![allow(clippy::unwrap_used, reason = "only tests are in here")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::support::*;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use vswitch::frame::FRAME_LEN_MAX;
use vswitch::mac::Mac;
use vswitch::verdict::Reason;
use weft::sim::{Cluster, Family, Faults, Node, Offence, Pod};

/// Two nodes with a pod each; the second is under attack.
struct Scene {
    cluster: Cluster,
    member: Node,
    victim: Node,
    near: Pod,
    far: Pod,
}

const STRANGER: ([u8; 4], u16) = ([203, 0, 113, 9], 50_000);

impl Scene {
    fn new(seed: u64) -> Self {
        let mut cluster = Cluster::builder().nodes(2).pods_per_node(1).seed(seed).build();
        let (nodes, pods) = (cluster.nodes(), cluster.pods());
        assert_reaches(&mut cluster, pods[0], pods[1]);
        cluster.host(pods[1]).watch_arrivals(64);
        Self { cluster, member: nodes[0], victim: nodes[1], near: pods[0], far: pods[1] }
    }

    /// A frame as the member would send it for its pod to the victim's pod.
    fn frame(&self) -> Vec<u8> {
        let cluster = &self.cluster;
        self.frame_between(v4(cluster, self.near), v4(cluster, self.far))
    }

    fn frame_between(&self, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let cluster = &self.cluster;
        let macs = (cluster.vtep_mac(self.member), cluster.vtep_mac(self.victim));
        udp(macs, source, destination, 9, b"through the tunnel")
    }

    fn member_address(&self) -> SocketAddr {
        SocketAddr::new(self.cluster.underlay_address(self.member), 50_000)
    }

    /// Sends a datagram to the victim's VXLAN port; returns for what it was refused, if it was.
    fn send(&mut self, from: SocketAddr, datagram: &[u8]) -> Option<Reason> {
        let before = self.cluster.totals(self.victim).unwrap();
        let to = self.cluster.vxlan_address(self.victim);
        self.cluster.inject_datagram(from, to, datagram);
        self.cluster.run_for(Duration::from_millis(1));
        let after = self.cluster.totals(self.victim).unwrap();
        let mut reasons = Reason::ALL.iter().copied();
        let reason = reasons.find(|reason| after.dropped(*reason) > before.dropped(*reason));
        assert_eq!(after.dropped_total() - before.dropped_total(), u64::from(reason.is_some()));
        self.cluster.check();
        reason
    }

    /// How many datagrams the victim's pod got since this was asked last.
    fn arrived(&mut self) -> usize {
        packets_at(&mut self.cluster, self.far).len()
    }

    fn offences(&mut self) -> Vec<Offence> {
        self.cluster.take_offences(self.victim)
    }
}

#[test]
fn who_is_no_member_is_refused_and_told_of() {
    let mut scene = Scene::new(1);
    let stranger = SocketAddr::from(STRANGER);
    let datagram = vxlan(&scene.frame());
    assert_eq!(scene.send(stranger, &datagram), Some(Reason::VxlanNotMember));
    let offence = Offence { from: stranger, reason: Reason::VxlanNotMember };
    assert_eq!(scene.offences(), [offence]);
    assert_eq!(scene.arrived(), 0);
    // The same from a member arrives.
    assert_eq!(scene.send(scene.member_address(), &datagram), None);
    assert_eq!(scene.arrived(), 1);
    assert_eq!(scene.offences(), []);
}

#[test]
fn who_is_a_member_no_more_is_refused() {
    let mut scene = Scene::new(2);
    let datagram = vxlan(&scene.frame());
    scene.cluster.kill(scene.member);
    scene.cluster.run_for(10 * SECOND);
    assert_eq!(scene.send(scene.member_address(), &datagram), Some(Reason::VxlanNotMember));
    assert_eq!(scene.arrived(), 0);
}

#[test]
fn a_member_sends_only_what_its_lease_and_its_own_address_cover() {
    let mut scene = Scene::new(3);
    let member = scene.member_address();
    let third = scene.cluster.add_node();
    scene.cluster.settle(10 * SECOND);
    let cluster = &scene.cluster;
    let foreign = [
        // Another member's lease and address, the victim's own, and the world.
        cluster.address(third, Family::V4).unwrap(),
        cluster.underlay_address(third),
        v4(cluster, scene.far),
        cluster.address(scene.victim, Family::V4).unwrap(),
        cluster.underlay_address(scene.victim),
        [198, 51, 100, 7].into(),
        [127, 0, 0, 1].into(),
        [0, 0, 0, 0].into(),
    ];
    let target = v4(cluster, scene.far);
    let own = [cluster.address(scene.member, Family::V4).unwrap(), member.ip()];
    for source in foreign {
        let datagram = vxlan(&scene.frame_between(source, target));
        assert_eq!(scene.send(member, &datagram), Some(Reason::VxlanSource), "{source}");
        // The operator is told who it was.
        let from = scene.cluster.vxlan_address(scene.member);
        assert_eq!(scene.offences(), [Offence { from, reason: Reason::VxlanSource }]);
    }
    assert_eq!(scene.arrived(), 0);
    for source in own {
        let datagram = vxlan(&scene.frame_between(source, target));
        assert_eq!(scene.send(member, &datagram), None, "{source}");
    }
    assert_eq!(scene.arrived(), 2);
}

#[test]
fn the_tunnel_leads_to_the_node_and_not_through_it() {
    let mut scene = Scene::new(4);
    let member = scene.member_address();
    let source = v4(&scene.cluster, scene.near);
    for target in [IpAddr::from([198, 51, 100, 7]), source, member.ip(), [169, 254, 1, 1].into()] {
        let datagram = vxlan(&scene.frame_between(source, target));
        assert_eq!(scene.send(member, &datagram), Some(Reason::NotForUs), "{target}");
    }
}

#[test]
fn headers_that_are_not_ours_are_refused_each_for_its_reason() {
    let mut scene = Scene::new(5);
    let member = scene.member_address();
    let good = vxlan(&scene.frame());
    let with = |at: usize, value: u8| {
        let mut datagram = good.clone();
        datagram[at] = value;
        datagram
    };
    assert_eq!(scene.send(member, &with(0, 0)), Some(Reason::VxlanFlag));
    assert_eq!(scene.send(member, &with(0, 0xf7)), Some(Reason::VxlanFlag));
    for (at, value) in [(4, 1), (5, 1), (6, 0), (6, 2), (6, 0xff)] {
        assert_eq!(scene.send(member, &with(at, value)), Some(Reason::VxlanVni));
    }
    // The first byte of the inner destination address.
    assert_eq!(scene.send(member, &with(8, 0xfe)), Some(Reason::VxlanVtep));
    assert_eq!(scene.send(member, &vxlan(&[0xff; 200])), Some(Reason::EtherType));
    assert_eq!(scene.arrived(), 0);

    // Reserved bits are ignored (RFC 7348 §5).
    for at in [0, 1, 2, 3, 7] {
        assert_eq!(scene.send(member, &with(at, 0xff)), None, "byte {at}");
    }
    assert_eq!(scene.arrived(), 5);
}

#[test]
fn datagrams_cut_short_at_any_length_are_refused() {
    let mut scene = Scene::new(6);
    let member = scene.member_address();
    for frame in [scene.frame(), {
        let (near, far) = (v6(&scene.cluster, scene.near), v6(&scene.cluster, scene.far));
        scene.frame_between(near, far)
    }] {
        let whole = vxlan(&frame);
        for len in 0..whole.len() {
            let reason = scene.send(member, &whole[..len]);
            let expected = if len < 8 + 14 { Reason::VxlanTruncated } else { Reason::Malformed };
            assert_eq!(reason, Some(expected), "{len} bytes");
        }
        assert_eq!(scene.arrived(), 0);
        assert_eq!(scene.send(member, &whole), None);
        assert_eq!(scene.arrived(), 1);
    }
}

#[test]
fn longer_frames_than_the_way_allows_are_no_danger() {
    let mut scene = Scene::new(7);
    let (near, far) = (v4(&scene.cluster, scene.near), v4(&scene.cluster, scene.far));
    let macs = (scene.cluster.vtep_mac(scene.member), scene.cluster.vtep_mac(scene.victim));
    let member = scene.member_address();
    let to = scene.cluster.vxlan_address(scene.victim);
    // The underlay carries 1500 bytes; but the kernel puts fragments of longer ones together.
    scene.cluster.inject_datagram(member, to, &vxlan(&udp(macs, near, far, 9, &[1; 9000])));
    scene.cluster.run_for(SECOND);
    assert_eq!(scene.cluster.underlay_totals().too_long, 1);

    let options = weft::sim::NodeOptions { underlay_mtu: u16::MAX, ..Default::default() };
    let jumbo = scene.cluster.add_node_with(options);
    scene.cluster.settle(10 * SECOND);
    let pod = scene.cluster.add_pod(jumbo);
    let target = v4(&scene.cluster, pod);
    let macs = (macs.0, scene.cluster.vtep_mac(jumbo));
    scene.victim = jumbo;
    for len in [9000, 40_000, 65_000] {
        let datagram = vxlan(&udp(macs, near, target, 9, &vec![1; len]));
        assert_eq!(scene.send(member, &datagram), None, "{len} bytes");
    }
    let mut padded = vxlan(&udp(macs, near, target, 9, b"short"));
    padded.resize(65_400, 0);
    assert_eq!(scene.send(member, &padded), None);
}

#[test]
fn random_datagrams_are_all_accounted_for() {
    let mut scene = Scene::new(8);
    let mut random = StdRng::seed_from_u64(8);
    let good = vxlan(&scene.frame());
    let to = scene.cluster.vxlan_address(scene.victim);
    let before = scene.cluster.totals(scene.victim).unwrap();
    const SENT: u64 = 4000;
    for round in 0..SENT {
        let from = if random.random_bool(0.8) {
            scene.member_address()
        } else {
            SocketAddr::from(STRANGER)
        };
        let datagram = match round % 3 {
            0 => random_bytes(&mut random, 1400),
            1 => vxlan(&random_bytes(&mut random, 1400)),
            _ => mutate(&mut random, &good),
        };
        scene.cluster.inject_datagram(from, to, &datagram);
        scene.cluster.run_for(Duration::from_micros(300));
    }
    scene.cluster.run_for(SECOND);
    let after = scene.cluster.totals(scene.victim).unwrap();
    assert!(after.received - before.received >= SENT);
    assert!(after.dropped_total() > before.dropped_total() + SENT / 2);
    assert_eq!(scene.offences().len(), 4096.min(scene.offences_told(&before, &after)));
    scene.cluster.check();
    assert_reaches(&mut scene.cluster, scene.near, scene.far);
}

impl Scene {
    /// How many of the drops between two moments are told of with their sender.
    fn offences_told(
        &self,
        before: &vswitch::counters::Totals,
        after: &vswitch::counters::Totals,
    ) -> usize {
        let told = [
            Reason::VxlanTruncated,
            Reason::VxlanFlag,
            Reason::VxlanVni,
            Reason::VxlanNotMember,
            Reason::VxlanSource,
            Reason::VxlanVtep,
        ];
        let drops = told.iter().map(|reason| after.dropped(*reason) - before.dropped(*reason));
        usize::try_from(drops.sum::<u64>()).unwrap()
    }
}

#[test]
fn what_a_node_sent_does_not_come_back_to_it() {
    let mut scene = Scene::new(9);
    scene.cluster.start_capture(1000);
    let payload = b"around and around";
    let frame = udp_from(&scene.cluster, scene.near, v4(&scene.cluster, scene.far), 9, payload);
    scene.cluster.inject_frame(scene.near, &frame);
    let captured = scene.cluster.take_capture();
    let sent = captured.iter().find(|captured| captured.to.port() == 4789).unwrap().clone();
    scene.cluster.run_for(SECOND);

    // Back to its sender, from itself, from the other node and from a stranger.
    let to = scene.cluster.vxlan_address(scene.member);
    let other = SocketAddr::new(scene.cluster.underlay_address(scene.victim), 50_000);
    let cases = [
        (sent.from, Reason::VxlanNotMember),
        (other, Reason::VxlanVtep),
        (SocketAddr::from(STRANGER), Reason::VxlanNotMember),
    ];
    for (from, reason) in cases {
        let before = scene.cluster.dropped(scene.member, reason);
        scene.cluster.inject_datagram(from, to, &sent.bytes);
        scene.cluster.run_for(SECOND);
        assert_eq!(scene.cluster.dropped(scene.member, reason), before + 1, "{from}");
    }
    // Also with the address that would let it in.
    let mut looped = sent.bytes.clone();
    looped[8..14].copy_from_slice(&scene.cluster.vtep_mac(scene.member).0);
    let before = scene.cluster.dropped(scene.member, Reason::VxlanSource);
    scene.cluster.inject_datagram(other, to, &looped);
    scene.cluster.run_for(SECOND);
    assert_eq!(scene.cluster.dropped(scene.member, Reason::VxlanSource), before + 1);
}

#[test]
fn a_packet_between_two_nodes_that_blame_each_other_ends() {
    // Whatever both believe, a frame out of the tunnel never goes back into it, so there is no loop.
    let mut scene = Scene::new(10);
    scene.cluster.start_capture(1000);
    let member = scene.member_address();
    let third = scene.cluster.add_node();
    scene.cluster.settle(10 * SECOND);
    let target = scene.cluster.address(third, Family::V4).unwrap();
    let source = v4(&scene.cluster, scene.near);
    scene.cluster.take_capture();
    let datagram = vxlan(&scene.frame_between(source, target));
    assert_eq!(scene.send(member, &datagram), Some(Reason::NotForUs));
    let captured = scene.cluster.take_capture();
    let tunnel = captured.iter().filter(|captured| captured.to.port() == 4789);
    assert_eq!(tunnel.count(), 1, "only the one that was put there");
}

#[test]
fn gossip_survives_a_third_of_garbage() {
    for seed in 20..23 {
        let mut cluster = Cluster::builder().nodes(3).pods_per_node(1).seed(seed).build();
        let (nodes, pods) = (cluster.nodes(), cluster.pods());
        let mut random = StdRng::seed_from_u64(seed);
        cluster.start_capture(10_000);
        cluster.run_for(5 * SECOND);
        let real: Vec<_> =
            cluster.take_capture().into_iter().filter(|c| c.to.port() == 7946).collect();
        assert!(real.len() > 50);
        let pause = 5 * SECOND / u32::try_from(real.len()).unwrap();
        let refused = |cluster: &Cluster| -> u64 {
            nodes
                .iter()
                .map(|n| cluster.gossip(*n).unwrap().counters().refused.values().sum::<u64>())
                .sum()
        };
        let before = refused(&cluster);
        // As much as half of what is real, which makes a third of all.
        for round in 0..real.len() {
            let model = &real[random.random_range(0..real.len())];
            let from = match round % 3 {
                0 => SocketAddr::from(STRANGER),
                _ => model.from,
            };
            let datagram = match round % 2 {
                0 => random_bytes(&mut random, 1400),
                _ => mutate(&mut random, &model.bytes),
            };
            cluster.inject_datagram(from, model.to, &datagram);
            cluster.run_for(2 * pause);
        }
        assert!(refused(&cluster) > before + u64::try_from(real.len()).unwrap() / 2);
        cluster.settle(10 * SECOND);
        assert_equal_maps(&cluster);
        for (from, to) in [(pods[0], pods[1]), (pods[1], pods[2]), (pods[2], pods[0])] {
            assert_reaches(&mut cluster, from, to);
        }
    }
}

#[test]
fn random_frames_from_pods_harm_nobody_else() {
    const FRAMES: usize = 20_000;
    let mut cluster = Cluster::builder().nodes(2).pods_per_node(2).seed(30).build();
    let pods = cluster.pods();
    let (hostile, client, server) = (pods[0], pods[1], pods[2]);
    let mut random = StdRng::seed_from_u64(30);
    let models = models(&cluster, hostile, &pods[1..]);

    let target = SocketAddr::new(v4(&cluster, server), 80);
    let listener = cluster.host(server).tcp_listen(80);
    let connection = cluster.host(client).tcp_connect(target);
    let data: Vec<u8> = (0..500_000).map(|ix: u32| ix.to_le_bytes()[ix as usize % 3]).collect();
    let (mut sent, mut received) = (0, Vec::new());
    for round in 0..FRAMES {
        let frame = match round % 10 {
            0 => random_bytes(&mut random, 200),
            1 => random_bytes(&mut random, FRAME_LEN_MAX + 100),
            _ => {
                let ix = random_ix(&mut random, models.len());
                mutate(&mut random, &models[ix])
            }
        };
        cluster.inject_frame(hostile, &frame);
        cluster.run_for(Duration::from_micros(100));
        if cluster.host(client).tcp_is_connected(connection) {
            sent += cluster.host(client).tcp_send(connection, &data[sent..]);
        }
        received.extend(cluster.host(server).tcp_receive(listener));
    }
    for _ in 0..5000 {
        cluster.run_for(Duration::from_millis(1));
        sent += cluster.host(client).tcp_send(connection, &data[sent..]);
        received.extend(cluster.host(server).tcp_receive(listener));
    }
    assert!(received == data, "{} bytes of {}", received.len(), data.len());
    cluster.check();
    let node = cluster.nodes()[0];
    let totals = cluster.totals(node).unwrap();
    for reason in [Reason::Malformed, Reason::Spoofed, Reason::NotForRouter, Reason::EtherType] {
        assert!(totals.dropped(reason) > 10, "{reason}: {totals:?}");
    }
    for (from, to) in [(client, server), (server, client)] {
        assert_reaches(&mut cluster, from, to);
    }
}

#[test]
fn a_flood_of_errors_is_limited_and_the_drops_are_counted() {
    let mut scene = Scene::new(31);
    let nobody = match v4(&scene.cluster, scene.near) {
        IpAddr::V4(v4) => IpAddr::from([v4.octets()[0], v4.octets()[1], v4.octets()[2], 250]),
        IpAddr::V6(_) => panic!("not IPv4"),
    };
    let frame = udp_from(&scene.cluster, scene.near, nobody, 9, b"?");
    let before = scene.cluster.totals(scene.member).unwrap();
    for _ in 0..5000 {
        scene.cluster.inject_frame(scene.near, &frame);
    }
    scene.cluster.run_for(Duration::from_millis(10));
    let after = scene.cluster.totals(scene.member).unwrap();
    assert_eq!(after.dropped(Reason::NoSuchAddress) - before.dropped(Reason::NoSuchAddress), 5000);
    let errors = after.originated - before.originated;
    assert!((1..=1100).contains(&errors), "{errors}");
}

#[test]
fn a_bad_wire_and_garbage_at_once_change_nothing_of_it() {
    let mut scene = Scene::new(32);
    let mut random = StdRng::seed_from_u64(32);
    scene.cluster.set_faults(Faults {
        loss: 0.05,
        duplication: 0.05,
        delay: Duration::from_millis(1),
        jitter: Duration::from_millis(2),
    });
    let good = vxlan(&scene.frame());
    let to = scene.cluster.vxlan_address(scene.victim);
    let member = scene.member_address();
    for _ in 0..500 {
        let datagram = mutate(&mut random, &good);
        scene.cluster.inject_datagram(member, to, &datagram);
        scene.cluster.run_for(Duration::from_millis(1));
    }
    let (near, far) = (scene.near, scene.far);
    let transfer = scene.cluster.tcp(near, far, Family::V6, &[9; 50_000], 120 * SECOND);
    assert_eq!(transfer.received.len(), 50_000);
}

/// Frames of each kind from `pod` to each of the others, and to nobody in particular.
fn models(cluster: &Cluster, pod: Pod, others: &[Pod]) -> Vec<Vec<u8>> {
    let own = (cluster.mac(pod), Mac::ROUTER);
    let mut models = Vec::new();
    for family in Family::ALL {
        let source = of(cluster, pod, family);
        let outside: IpAddr = match family {
            Family::V4 => [198, 51, 100, 7].into(),
            Family::V6 => "2001:db8:ffff::1".parse().unwrap(),
        };
        let targets = others.iter().map(|other| of(cluster, *other, family)).chain([outside]);
        for target in targets {
            models.push(udp(own, source, target, 53, &[0x55; 300]));
            let mut tcp = Vec::new();
            ip(own, source, target, 64).tcp(1, 2, 3, 4).write(&mut tcp, &[0xaa; 100]).unwrap();
            models.push(tcp);
            let long = udp(own, source, target, 53, &[1; 1600]);
            if family == Family::V6 {
                models.extend(fragment_v6(&long, 1000));
            }
            models.push(long);
        }
    }
    // A question for a neighbor: ARP (RFC 826).
    let mut arp =
        [&[0xff; 6][..], &cluster.mac(pod).0, &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]].concat();
    arp.extend(cluster.mac(pod).0);
    arp.extend([10, 244, 0, 2, 0, 0, 0, 0, 0, 0, 10, 244, 0, 1]);
    models.push(arp);
    models
}

fn random_bytes(random: &mut StdRng, len_max: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(0..=len_max)];
    random.fill_bytes(&mut bytes);
    bytes
}

/// Changes some bytes, cuts, or lengthens.
fn mutate(random: &mut StdRng, model: &[u8]) -> Vec<u8> {
    let mut bytes = model.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random_ix(random, bytes.len().min(80));
        match random.random_range(0..10) {
            0 => bytes.truncate(at.max(1)),
            1 => bytes.extend([0; 50]),
            2 => bytes[at] ^= 1 << random.random_range(0..8),
            _ => bytes[at] = random.random(),
        }
    }
    bytes
}

fn random_ix(random: &mut StdRng, len: usize) -> usize {
    random.random_range(0..len)
}
