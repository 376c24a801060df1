//! The lines of the table: what is measured, where, and how good it has to be.

use super::topology::Contestant;
use super::wire::Wire;

/// A measurement, which may give several figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Job {
    /// TCP between nodes, one stream; also what it costs, and reordering.
    Tcp1,
    /// Four streams.
    Tcp4,
    /// A stream each way.
    Bidir,
    /// Datagrams of 64 bytes, as many as arrive.
    Udp64,
    /// Round trip of 64 bytes by TCP, CPUs idle otherwise.
    RttTcp,
    /// The same by UDP.
    RttUdp,
    /// Round trip by TCP while a thread of other work runs on each CPU.
    BusyTcp,
    /// The same by UDP.
    BusyUdp,
    /// TCP connections made and closed.
    Connect,
    /// The same to a Service's address, translated on the client's node.
    ServiceConnect,
    /// Round trip of other pods on the same nodes while one stream runs.
    Fair,
    /// One stream between pods of one node.
    LocalTcp1,
    /// Datagrams of 64 bytes between pods of one node.
    LocalUdp64,
    /// Round trip by TCP between pods of one node.
    LocalRtt,
    /// One stream between nodes, IPv6 inside the tunnel.
    #[value(name = "tcp1-v6")]
    Tcp1V6,
    /// Round trip by TCP, IPv6 inside the tunnel.
    RttV6,
    /// 8 pods on each of 3 nodes, every pod to every pod of the other nodes.
    Mesh,
    /// What a daemon with 10 pods and no traffic takes.
    Idle,
    /// The same with 250 pods.
    Full,
}

impl Job {
    pub(crate) const PAIR: [Self; 16] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::Bidir,
        Self::Udp64,
        Self::RttTcp,
        Self::RttUdp,
        Self::BusyTcp,
        Self::BusyUdp,
        Self::Connect,
        Self::ServiceConnect,
        Self::Fair,
        Self::LocalTcp1,
        Self::LocalUdp64,
        Self::LocalRtt,
        Self::Tcp1V6,
        Self::RttV6,
    ];

    /// What it is called in progress lines: its name as an argument.
    pub(crate) fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether it says something new on this wire.
    pub(crate) fn belongs_on(self, wire: Wire) -> bool {
        match self {
            // The wire does not matter within a node, nor for what IPv6 inside costs.
            Self::LocalTcp1 | Self::LocalUdp64 | Self::LocalRtt | Self::Tcp1V6 | Self::RttV6 => {
                wire == Wire::Ideal
            }
            Self::Idle | Self::Full => wire == Wire::Ideal,
            Self::Mesh => matches!(wire, Wire::Ideal | Wire::Mtu1500),
            Self::Tcp1 | Self::Udp64 | Self::RttTcp => true,
            Self::Tcp4 | Self::Connect | Self::ServiceConnect => wire != Wire::V6,
            Self::Bidir | Self::RttUdp | Self::BusyTcp | Self::BusyUdp | Self::Fair => {
                matches!(wire, Wire::Ideal | Wire::Mtu1500)
            }
        }
    }

    /// Whether it needs a stage of its own, and is left out of the quick run.
    pub(crate) fn is_long(self) -> bool {
        matches!(self, Self::Mesh | Self::Idle | Self::Full)
    }

    /// Whether a contestant can do it: only Weft and the kernel carry IPv6, have Services and stand on three
    /// nodes, and only Weft has a daemon.
    pub(crate) fn suits(self, contestant: &Contestant) -> bool {
        let is_weft = matches!(contestant, Contestant::Weft | Contestant::OtherWeft(_));
        if matches!(self, Self::Idle | Self::Full) {
            return is_weft;
        }
        let is_for_all =
            !matches!(self, Self::Tcp1V6 | Self::RttV6 | Self::Mesh | Self::ServiceConnect);
        is_for_all || is_weft || *contestant == Contestant::Kernel
    }
}

/// What a figure of Weft is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Baseline {
    /// The kernel's, in the same round.
    Kernel,
    /// Another of its own, in the same round.
    Own(&'static str),
    /// Its own over an IPv4 underlay, in the same round.
    WeftOverV4,
    /// Nothing: the value itself is judged.
    None,
}

/// How good a value has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// Not less.
    AtLeast(f64),
    /// Not more.
    AtMost(f64),
}

impl Bound {
    pub(crate) fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
        }
    }
}

/// What has to be reached, and what would be better still.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Target {
    pub(crate) must: Bound,
    pub(crate) stretch: Option<Bound>,
    /// Whether the value itself is judged, not its ratio to the baseline.
    pub(crate) is_absolute: bool,
}

/// A line of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    /// The figure of it.
    pub(crate) figure: &'static str,
    /// What it is called.
    pub(crate) title: &'static str,
    /// The unit of its values.
    pub(crate) unit: &'static str,
    /// What it is compared with.
    pub(crate) baseline: Baseline,
    /// What has to be reached, by wire.
    pub(crate) target: fn(Wire) -> Option<Target>,
    /// Whether it is shown on this wire.
    pub(crate) on: fn(Wire) -> bool,
}

const fn at_least(must: f64, stretch: f64) -> Option<Target> {
    let stretch = Some(Bound::AtLeast(stretch));
    Some(Target { must: Bound::AtLeast(must), stretch, is_absolute: false })
}

const fn at_most(must: f64, stretch: f64) -> Option<Target> {
    let stretch = Some(Bound::AtMost(stretch));
    Some(Target { must: Bound::AtMost(must), stretch, is_absolute: false })
}

const fn absolute(must: f64, stretch: Option<f64>) -> Option<Target> {
    let stretch = match stretch {
        Some(stretch) => Some(Bound::AtMost(stretch)),
        None => None,
    };
    Some(Target { must: Bound::AtMost(must), stretch, is_absolute: true })
}

/// One target on the wires `ideal` and `1500`, another on each.
fn by_wire(wire: Wire, ideal: Option<Target>, mtu1500: Option<Target>) -> Option<Target> {
    match wire {
        Wire::Ideal => ideal,
        Wire::Mtu1500 => mtu1500,
        Wire::Mtu9000 | Wire::V6 => None,
    }
}

fn on_main(wire: Wire, target: Option<Target>) -> Option<Target> {
    by_wire(wire, target, target)
}

/// All of them, in the order of the table.
pub(crate) const LINES: [Line; 34] = [
    line("tcp1", "TCP 1 stream", "Gbit/s", |wire| {
        by_wire(wire, at_least(0.95, 1.15), at_least(1.10, 1.25))
    }),
    line("tcp4", "TCP 4 streams", "Gbit/s", |wire| {
        by_wire(wire, at_least(0.80, 1.0), at_least(1.0, 1.15))
    }),
    line("bidir", "TCP both ways, sum", "Gbit/s", |wire| on_main(wire, at_least(0.80, 1.0))),
    line("udp64", "UDP 64 B, delivered", "kpps", |wire| on_main(wire, at_least(4.0, 6.0))),
    line("rtt-tcp-p50", "round trip TCP 64 B, p50", "µs", |wire| on_main(wire, at_most(0.5, 0.4))),
    line("rtt-tcp-p99", "round trip TCP 64 B, p99", "µs", |wire| on_main(wire, at_most(1.0, 0.7))),
    line("rtt-udp-p50", "round trip UDP 64 B, p50", "µs", |wire| on_main(wire, at_most(0.5, 0.4))),
    line("rtt-udp-p99", "round trip UDP 64 B, p99", "µs", |wire| on_main(wire, at_most(1.0, 0.7))),
    line("busy-tcp-p50", "round trip TCP, CPUs busy, p50", "µs", |wire| {
        on_main(wire, at_most(3.0, 1.5))
    }),
    line("busy-tcp-p99", "round trip TCP, CPUs busy, p99", "µs", |wire| {
        on_main(wire, absolute(5_000.0, Some(2_000.0)))
    }),
    line("busy-udp-p50", "round trip UDP, CPUs busy, p50", "µs", |wire| {
        on_main(wire, at_most(3.0, 1.5))
    }),
    line("busy-udp-p99", "round trip UDP, CPUs busy, p99", "µs", |wire| {
        on_main(wire, absolute(5_000.0, Some(2_000.0)))
    }),
    line("connect", "TCP connections", "1000/s", |wire| on_main(wire, at_least(1.0, 1.5))),
    line("service-connect", "TCP connections, to a Service", "1000/s", |wire| {
        on_main(wire, at_least(1.0, 1.5))
    }),
    Line {
        baseline: Baseline::Own("connect"),
        ..line("service-connect", "TCP connections, Service to plain", "1000/s", |_| None)
    },
    line("local-tcp1", "same node: TCP 1 stream", "Gbit/s", |wire| {
        on_main(wire, at_least(0.90, 1.05))
    }),
    line("local-udp64", "same node: UDP 64 B, delivered", "kpps", |wire| {
        on_main(wire, at_least(2.0, 3.0))
    }),
    line("local-rtt-p50", "same node: round trip TCP, p50", "µs", |wire| {
        on_main(wire, at_most(0.65, 0.5))
    }),
    line("local-rtt-p99", "same node: round trip TCP, p99", "µs", |_| None),
    line("tcp1-cpu", "CPU, TCP 1 stream, whole machine", "s/GB", |wire| {
        by_wire(wire, at_most(1.4, 1.0), at_most(1.3, 1.0))
    }),
    line("tcp1-reordered", "out-of-order arrivals, TCP 1 stream", "events", |wire| {
        on_main(wire, absolute(0.0, None))
    }),
    line("fair-p50", "round trip TCP beside a stream, p50", "µs", |wire| {
        on_main(wire, at_most(3.0, 1.0))
    }),
    line("fair-p99", "round trip TCP beside a stream, p99", "µs", |_| None),
    line("mesh", "8 pods × 3 nodes all to all, TCP sum", "Gbit/s", |wire| {
        by_wire(wire, at_least(0.80, 1.0), at_least(1.0, 1.15))
    }),
    line("tcp1-v6", "IPv6 inside: TCP 1 stream", "Gbit/s", |_| None),
    line("rtt-v6-p50", "IPv6 inside: round trip TCP, p50", "µs", |_| None),
    Line {
        baseline: Baseline::Own("tcp1"),
        ..line("tcp1-v6", "IPv6 inside: TCP 1 stream, to IPv4", "Gbit/s", |_| at_least(0.9, 1.0))
    },
    Line {
        baseline: Baseline::Own("rtt-tcp-p50"),
        ..line("rtt-v6-p50", "IPv6 inside: round trip TCP, to IPv4", "µs", |_| at_most(1.1, 1.0))
    },
    Line {
        on: |wire| wire == Wire::V6,
        baseline: Baseline::WeftOverV4,
        ..line("tcp1", "TCP 1 stream, to IPv4 underlay", "Gbit/s", |_| at_least(0.9, 1.0))
    },
    Line {
        on: |wire| wire == Wire::V6,
        baseline: Baseline::WeftOverV4,
        ..line("rtt-tcp-p50", "round trip TCP, to IPv4 underlay", "µs", |_| at_most(1.1, 1.0))
    },
    alone("idle-cpu", "idle daemon, 10 pods: CPU", "%", |_| absolute(0.3, None)),
    alone("idle-memory", "idle daemon, 10 pods: memory", "MB", |_| absolute(40.0, None)),
    alone("full-cpu", "idle daemon, 250 pods: CPU", "%", |_| None),
    alone("full-memory", "idle daemon, 250 pods: memory", "MB", |_| absolute(120.0, None)),
];

const fn line(
    figure: &'static str,
    title: &'static str,
    unit: &'static str,
    target: fn(Wire) -> Option<Target>,
) -> Line {
    Line { figure, title, unit, baseline: Baseline::Kernel, target, on: |_| true }
}

/// A line that is compared with nothing.
const fn alone(
    figure: &'static str,
    title: &'static str,
    unit: &'static str,
    target: fn(Wire) -> Option<Target>,
) -> Line {
    Line { baseline: Baseline::None, ..line(figure, title, unit, target) }
}
