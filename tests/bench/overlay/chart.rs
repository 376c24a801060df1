//! Bar charts of the results, as SVG: rectangles and text, and the reader's own fonts and colors.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::results::Results;
use super::statistics::Summary;
use super::topology::Contestant;
use super::wire::Wire;

/// A chart: groups of bars with one unit.
struct Chart {
    file: &'static str,
    title: &'static str,
    groups: &'static [Group],
}

/// One figure of all contestants.
struct Group {
    title: &'static str,
    wire: Wire,
    figure: &'static str,
}

const CHARTS: [Chart; 5] = [
    Chart {
        file: "throughput.svg",
        title: "TCP between pods of two nodes, Gbit/s (more is better)",
        groups: &[
            group("1 stream, ideal wire", Wire::Ideal, "tcp1"),
            group("1 stream, 1500-byte wire", Wire::Mtu1500, "tcp1"),
            group("4 streams, ideal wire", Wire::Ideal, "tcp4"),
            group("4 streams, 1500-byte wire", Wire::Mtu1500, "tcp4"),
        ],
    },
    Chart {
        file: "packets.svg",
        title: "UDP with 64 bytes, delivered, 1000 packets/s (more is better)",
        groups: &[
            group("two nodes, ideal wire", Wire::Ideal, "udp64"),
            group("two nodes, 1500-byte wire", Wire::Mtu1500, "udp64"),
            group("same node", Wire::Ideal, "local-udp64"),
        ],
    },
    Chart {
        file: "latency.svg",
        title: "Round trip of 64 bytes between pods, median, µs (less is better)",
        groups: &[
            group("TCP, two nodes", Wire::Ideal, "rtt-tcp-p50"),
            group("UDP, two nodes", Wire::Ideal, "rtt-udp-p50"),
            group("TCP, CPUs busy with other work", Wire::Ideal, "busy-tcp-p50"),
            group("TCP, same node", Wire::Ideal, "local-rtt-p50"),
        ],
    },
    Chart {
        file: "connections.svg",
        title: "TCP connections made and closed between two nodes, 1000/s (more is better)",
        groups: &[
            group("ideal wire", Wire::Ideal, "connect"),
            group("1500-byte wire", Wire::Mtu1500, "connect"),
        ],
    },
    Chart {
        file: "cpu.svg",
        title: "CPU for one TCP stream, whole machine, seconds/GB (less is better)",
        groups: &[
            group("ideal wire", Wire::Ideal, "tcp1-cpu"),
            group("1500-byte wire", Wire::Mtu1500, "tcp1-cpu"),
        ],
    },
];

const fn group(title: &'static str, wire: Wire, figure: &'static str) -> Group {
    Group { title, wire, figure }
}

/// Draws all charts for which there are results into `dir`, and gives how many.
pub(crate) fn draw(dir: &Path, results: &Results) -> Result<usize> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let mut count = 0;
    for chart in &CHARTS {
        let groups: Vec<(&Group, Vec<Bar>)> = chart
            .groups
            .iter()
            .map(|group| (group, bars(results, group)))
            .filter(|(_, bars)| !bars.is_empty())
            .collect();
        if groups.is_empty() {
            continue;
        }
        let path = dir.join(chart.file);
        fs::write(&path, svg(chart.title, &groups))
            .with_context(|| format!("writing {}", path.display()))?;
        count += 1;
    }
    Ok(count)
}

/// What a contestant reached.
struct Bar {
    contestant: Contestant,
    value: Summary,
    ratio: Option<Summary>,
}

fn bars(results: &Results, group: &Group) -> Vec<Bar> {
    let bar = |contestant: Contestant| {
        let values = results.of(group.wire, &contestant, group.figure);
        let value = Summary::of(values.iter().flatten().copied())?;
        let ratio = results.ratio_to_kernel(group.wire, &contestant, group.figure);
        Some(Bar { contestant, value, ratio })
    };
    results.contestants(group.wire).into_iter().filter_map(bar).collect()
}

/// Groups below each other; in each, a bar from zero per contestant with a line from its smallest to its
/// largest value. Every group has its own scale, so that a small one can be read.
fn svg(title: &str, groups: &[(&Group, Vec<Bar>)]) -> String {
    let rows: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
    let height = TOP + groups.len() * (GROUP_HEAD + GROUP_GAP) + rows * ROW;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-family="system-ui, sans-serif" font-size="13">
<title>{title}</title>
<style>{STYLE}</style>
<rect class="ground" width="{WIDTH}" height="{height}"/>
<text x="{MARGIN}" y="24" font-size="15" font-weight="600">{title}</text>
"#
    );
    let mut y = TOP;
    for (group, bars) in groups {
        let _ = writeln!(
            text,
            r#"<text x="{MARGIN}" y="{}" font-weight="600">{}</text>"#,
            y + 14,
            group.title
        );
        y += GROUP_HEAD;
        let largest = bars.iter().map(|bar| bar.value.max).fold(0.0, f64::max);
        for bar in bars {
            draw_bar(&mut text, bar, y, largest);
            y += ROW;
        }
        y += GROUP_GAP;
    }
    text.push_str("</svg>\n");
    text
}

fn draw_bar(text: &mut String, bar: &Bar, y: usize, largest: f64) {
    let x =
        |value: f64| f64::from(BAR_X) + value / largest.max(f64::MIN_POSITIVE) * f64::from(BAR_LEN);
    let Bar { contestant, value, ratio } = bar;
    let label = match ratio {
        Some(ratio) if *contestant != Contestant::Kernel => {
            format!("{} (× {:.2})", short(value.median), ratio.median)
        }
        _ => short(value.median),
    };
    let (middle, low, high) = (y + ROW / 2, x(value.min), x(value.max));
    let class = match contestant {
        Contestant::Weft | Contestant::WeftOverV4 | Contestant::OtherWeft(_) => "weft",
        Contestant::Kernel => "kernel",
        Contestant::Plain | Contestant::Ovs | Contestant::WireguardGo => "other",
    };
    let _ = writeln!(
        text,
        r#"<text x="{}" y="{}" text-anchor="end">{}</text>
<rect class="{class}" x="{BAR_X}" y="{}" width="{:.1}" height="{}" rx="2"/>
<path class="spread" d="M{low:.1} {middle}H{high:.1}"/>
<text x="{:.1}" y="{}">{label}</text>"#,
        BAR_X - 8,
        middle + 4,
        contestant.name(),
        y + 3,
        x(value.median) - f64::from(BAR_X),
        ROW - 6,
        high.max(x(value.median)) + 8.0,
        middle + 4,
    );
}

fn short(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// Readable on light and on dark pages.
const STYLE: &str = "\
    .ground{fill:#fff}text{fill:#1f2328}.weft{fill:#0969da}.kernel{fill:#57606a}.other{fill:#afb8c1}\
    .spread{stroke:#1f2328;stroke-width:1.5}\
    @media(prefers-color-scheme:dark){.ground{fill:#0d1117}text{fill:#e6edf3}.weft{fill:#2f81f7}\
    .kernel{fill:#8b949e}.other{fill:#484f58}.spread{stroke:#e6edf3}}";

const WIDTH: usize = 800;
const MARGIN: usize = 16;
const TOP: usize = 44;
const ROW: usize = 22;
const GROUP_HEAD: usize = 22;
const GROUP_GAP: usize = 14;
const BAR_X: u16 = 130;
const BAR_LEN: u16 = 520;
