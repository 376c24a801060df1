//! Paths under virtual time: what is found out of a wire that loses, and how soon.

use proptest::prelude::*;

use super::*;

const SMALL: u16 = 96;
const MAX: u16 = 1500;
const IDLE: Duration = Duration::from_secs(10);

/// How soon everything must be noticed where there is traffic.
const NOTICED: Duration = Duration::from_secs(3);

/// A path, the wire below it, and the time.
struct Bench {
    probe: PathProbe,
    start: Instant,
    now: Instant,
    /// Longest packet that passes; 0 passes nothing.
    wire: u16,
    /// Of so many probes one is lost.
    lose_one_in: Option<u64>,
    rtt: Duration,
    replies: Vec<(Instant, u64)>,
    nonce: u64,
    sent: u64,
    sent_bytes: u64,
    findings: Vec<(Duration, Finding)>,
}

impl Bench {
    fn with(max: u16, wire: u16, rtt: Duration) -> Self {
        let start = Instant::now();
        Self {
            probe: PathProbe::new(SMALL, max, IDLE, start, Some(start)),
            start,
            now: start,
            wire,
            lose_one_in: None,
            rtt,
            replies: Vec::new(),
            nonce: 0,
            sent: 0,
            sent_bytes: 0,
            findings: Vec::new(),
        }
    }

    /// A path with traffic over a wire that carries all.
    fn active() -> Self {
        let mut bench = Self::with(MAX, MAX, Duration::from_millis(1));
        bench.probe.set_active(true, bench.now);
        bench
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.turn();
            let next = self.replies.iter().map(|(at, _)| *at).min();
            let next = next.into_iter().chain(self.probe.poll_timeout()).min().unwrap();
            // A monitor looks at its clock a little late.
            let next = next.max(self.now + Duration::from_micros(100));
            if next > end {
                self.now = end;
                return;
            }
            self.now = next;
        }
    }

    fn turn(&mut self) {
        let now = self.now;
        let (arrived, later): (Vec<_>, _) = self.replies.iter().partition(|(at, _)| *at <= now);
        self.replies = later;
        for (at, nonce) in arrived {
            // Of very many under way the oldest are forgotten.
            let _known = self.probe.handle_reply(nonce, 1450, at);
        }
        self.probe.handle_timeout(now);
        while let Some(size) = self.probe.poll_transmit(|| self.nonce + 1, now) {
            self.nonce += 1;
            self.sent += 1;
            self.sent_bytes += u64::from(size);
            let scrambled = self.nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
            let is_lost = self.lose_one_in.is_some_and(|n| scrambled.is_multiple_of(n));
            if size <= self.wire && !is_lost {
                self.replies.push((now + self.rtt, self.nonce));
            }
        }
        while let Some(finding) = self.probe.poll_finding() {
            self.findings.push((now - self.start, finding));
        }
    }

    fn seconds(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds));
    }

    fn take(&mut self) -> Vec<Finding> {
        self.findings.drain(..).map(|(_, finding)| finding).collect()
    }

    fn narrow(to: u16) -> Finding {
        Finding::Mtu { from: MAX, to, cause: Cause::Probes }
    }
}

#[test]
fn a_path_that_carries_all_is_up_at_once_and_costs_little() {
    let mut bench = Bench::with(MAX, MAX, Duration::from_millis(2));
    bench.seconds(59);
    assert_eq!(bench.take(), [Finding::Up { after: None }]);
    assert_eq!(bench.sent, 6, "one every ten seconds");
    assert_eq!(bench.sent_bytes, u64::from(MAX) + 5 * u64::from(SMALL), "one of them long");
    let report = bench.probe.report();
    assert_eq!((report.state, report.mtu, report.max), (PathState::Up, MAX, MAX));
    assert_eq!((report.rtt, report.loss), (Some(Duration::from_millis(2)), Some(0.0)));
    assert_eq!(report.back, Some(1450));
}

#[test]
fn a_path_with_traffic_is_looked_at_twice_a_second_in_full_length() {
    let mut bench = Bench::active();
    bench.seconds(10);
    assert!((19..=21).contains(&bench.sent), "{}", bench.sent);
    assert_eq!(bench.sent_bytes, bench.sent * u64::from(MAX));
}

#[test]
fn a_path_that_dies_is_noticed_and_so_is_its_return() {
    for at_ms in (0..1000).step_by(70) {
        let mut bench = Bench::active();
        bench.run(Duration::from_millis(5000 + at_ms));
        assert_eq!(bench.take(), [Finding::Up { after: None }]);
        bench.wire = 0;
        bench.run(NOTICED);
        assert_eq!(bench.take(), [Finding::Down], "cut at {at_ms} ms");
        assert_eq!(bench.probe.report().state, PathState::Down);
        assert_eq!(bench.probe.mtu(), MAX, "of which nothing is known");
        bench.seconds(60);
        assert_eq!(bench.take(), []);
        assert_eq!(bench.probe.report().loss, Some(1.0));
        bench.wire = MAX;
        bench.run(NOTICED);
        let findings = bench.take();
        assert!(matches!(&findings[..], [Finding::Up { after: Some(_) }]), "{findings:?}");
    }
}

#[test]
fn a_path_that_never_answered_is_down() {
    let mut bench = Bench::with(MAX, 0, Duration::from_millis(1));
    bench.run(NOTICED);
    assert_eq!(bench.take(), [Finding::Down]);
    let sent = bench.sent;
    bench.seconds(60);
    assert!((29..=31).contains(&(bench.sent - sent)), "{} in a minute", bench.sent - sent);
}

#[test]
fn an_idle_path_that_dies_is_noticed_after_its_pause() {
    let mut bench = Bench::with(MAX, MAX, Duration::from_millis(1));
    bench.seconds(5);
    bench.wire = 0;
    bench.run(IDLE + NOTICED);
    assert_eq!(bench.take(), [Finding::Up { after: None }, Finding::Down]);
}

#[test]
fn a_black_hole_for_long_packets_is_found_to_the_byte() {
    for wire in (UNDERLAY_MTU_MIN..MAX).step_by(37).chain([577, 1280, 1400, 1419, 1498, 1499]) {
        for rtt_ms in [0, 1, 20, 50] {
            let mut bench = Bench::active();
            bench.rtt = Duration::from_millis(rtt_ms);
            bench.run(Duration::from_millis(5000 + u64::from(wire) % 500));
            bench.take();
            bench.wire = wire;
            bench.run(NOTICED);
            assert_eq!(bench.take(), [Bench::narrow(wire)], "at {rtt_ms} ms");
            assert_eq!(bench.probe.report().state, PathState::Up);
        }
    }
}

#[test]
fn long_frames_on_a_path_that_became_short() {
    let mut bench = Bench::with(9000, 9000, Duration::from_millis(1));
    bench.probe.set_active(true, bench.now);
    bench.seconds(5);
    bench.take();
    for wire in [8999, 4321, 1500, 1492] {
        let from = bench.probe.mtu();
        bench.wire = wire;
        bench.run(NOTICED);
        assert_eq!(bench.take(), [Finding::Mtu { from, to: wire, cause: Cause::Probes }]);
    }
}

#[test]
fn what_is_less_than_every_host_takes_is_no_mtu() {
    let mut bench = Bench::active();
    bench.seconds(5);
    bench.wire = 300;
    bench.run(NOTICED);
    assert_eq!(bench.take(), [Finding::Up { after: None }, Bench::narrow(UNDERLAY_MTU_MIN)]);
}

#[test]
fn a_narrow_path_is_tried_again_soon_then_seldom_and_grows_back() {
    let mut bench = Bench::active();
    bench.wire = 1400;
    bench.seconds(5);
    assert_eq!(bench.take(), [Finding::Up { after: None }, Bench::narrow(1400)]);
    bench.wire = MAX;
    bench.run(RAISE_MIN);
    assert_eq!(bench.take(), [Finding::Mtu { from: 1400, to: MAX, cause: Cause::Probes }]);

    bench.wire = 1400;
    bench.seconds(5);
    bench.seconds(24 * 3600);
    bench.take();
    bench.wire = 1450;
    let changed = bench.now;
    while bench.probe.mtu() == 1400 {
        bench.seconds(1);
    }
    assert!(bench.now - changed <= RAISE_MAX + NOTICED);
    assert_eq!(bench.take(), [Finding::Mtu { from: 1400, to: 1450, cause: Cause::Probes }]);
    bench.wire = MAX;
    bench.run(RAISE_MIN + NOTICED);
    assert_eq!(bench.take(), [Finding::Mtu { from: 1450, to: MAX, cause: Cause::Probes }], "soon");
}

#[test]
fn losses_by_chance_are_told_and_make_no_path_narrow_or_dead() {
    for one_in in [3, 5, 10, 50] {
        let mut bench = Bench::active();
        bench.lose_one_in = Some(one_in);
        bench.seconds(600);
        assert_eq!(bench.take(), [Finding::Up { after: None }], "one in {one_in}");
        let loss = bench.probe.report().loss.unwrap();
        let expected = 1.0 / one_in as f32;
        assert!((loss - expected).abs() < 0.25, "{loss} of {expected}");
    }
}

#[test]
fn a_narrow_path_with_losses_is_found_and_grows_back() {
    let mut bench = Bench::active();
    bench.lose_one_in = Some(20);
    bench.seconds(5);
    bench.wire = 1400;
    bench.run(NOTICED);
    let mtu = bench.probe.mtu();
    assert!((1350..=1400).contains(&mtu), "{mtu}");
    bench.seconds(60);
    assert_eq!(bench.probe.mtu(), 1400, "what chance took away comes back");
    bench.wire = MAX;
    bench.seconds(120);
    assert_eq!(bench.probe.mtu(), MAX);
}

#[test]
fn answers_that_come_late_are_believed() {
    let mut bench = Bench::active();
    bench.seconds(5);
    bench.take();
    // Longer than any round takes, at once: as if both daemons had stood still.
    bench.rtt = Duration::from_millis(900);
    bench.seconds(2);
    bench.rtt = Duration::from_millis(1);
    bench.seconds(20);
    assert_eq!(bench.take(), [], "nothing was wrong with the path");
    assert_eq!(bench.probe.mtu(), MAX);
}

#[test]
fn what_the_kernel_knows_counts_at_once_and_until_it_forgets() {
    let mut bench = Bench::active();
    bench.seconds(5);
    bench.take();
    let (wire, now) = (1400, bench.now);
    bench.wire = wire;
    bench.probe.handle_kernel(wire, now);
    assert!(bench.probe.is_narrow_by_kernel());
    bench.run(Duration::ZERO);
    let told = Finding::Mtu { from: MAX, to: wire, cause: Cause::Kernel };
    assert_eq!(bench.take(), [told]);
    bench.wire = MAX;
    bench.seconds(300);
    assert_eq!(bench.take(), [], "the kernel would refuse longer ones");
    bench.probe.handle_kernel(MAX, bench.now);
    bench.run(NOTICED);
    assert_eq!(bench.take(), [Finding::Mtu { from: wire, to: MAX, cause: Cause::Probes }]);
    assert!(!bench.probe.is_narrow_by_kernel());
}

#[test]
fn another_mtu_of_the_interfaces_is_taken_up() {
    let mut bench = Bench::active();
    bench.seconds(5);
    bench.probe.set_max(1400, bench.now);
    assert_eq!(bench.probe.mtu(), 1400);
    bench.wire = 9000;
    bench.probe.set_max(9000, bench.now);
    assert_eq!(bench.probe.mtu(), 9000);
    bench.take();
    bench.wire = 1500;
    bench.run(NOTICED);
    assert_eq!(bench.probe.mtu(), 1500);
    // Narrow for another reason than the interfaces: not believed to have grown with them.
    bench.probe.set_max(8000, bench.now);
    assert_eq!(bench.probe.mtu(), 1500);
}

#[test]
fn what_finds_no_room_is_no_loss() {
    let start = Instant::now();
    let mut probe = PathProbe::new(SMALL, MAX, IDLE, start, Some(start));
    let mut now = start;
    for nonce in 0..200 {
        probe.handle_timeout(now);
        while let Some(size) = probe.poll_transmit(|| nonce, now) {
            assert_eq!(size, MAX, "no search");
            probe.handle_unsent(nonce, now);
        }
        now += Duration::from_millis(50);
    }
    assert_eq!(probe.poll_finding(), None);
    assert_eq!(probe.report().loss, None);
}

#[test]
fn nobody_answers_without_having_been_asked() {
    let mut bench = Bench::active();
    assert!(!bench.probe.handle_reply(77, 1450, bench.now));
    bench.seconds(5);
    assert!(!bench.probe.handle_reply(1, 1450, bench.now), "twice");
    assert!(!bench.probe.handle_reply(u64::MAX, 1450, bench.now));
}

proptest! {
    /// Whatever happens to the wire: what it carries at the end is known in the end, and no work piles up.
    #[test]
    fn the_truth_is_found_in_the_end(
        changes in prop::collection::vec(
            (0_u16..1600, 1_u64..6000, 0_u64..200, prop::option::of(4_u64..30), any::<bool>()),
            0..12,
        ),
        wire in UNDERLAY_MTU_MIN..=MAX,
    ) {
        let mut bench = Bench::active();
        for (wire, ms, rtt_ms, lose_one_in, is_active) in changes {
            bench.wire = if wire < UNDERLAY_MTU_MIN { 0 } else { wire };
            bench.rtt = Duration::from_millis(rtt_ms);
            bench.lose_one_in = lose_one_in;
            bench.probe.set_active(is_active, bench.now);
            bench.run(Duration::from_millis(ms));
        }
        bench.wire = wire;
        bench.rtt = Duration::from_millis(1);
        bench.lose_one_in = None;
        bench.probe.set_active(true, bench.now);
        let before = bench.sent;
        bench.seconds(700);
        prop_assert_eq!(bench.probe.report().state, PathState::Up);
        prop_assert_eq!(bench.probe.mtu(), wire);
        prop_assert!(bench.sent - before < 700 * 4 + 2000, "{}", bench.sent - before);
    }
}
