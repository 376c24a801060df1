//! The results as a text that people read.

use std::fmt::Write as _;

use super::lines::{Bound, LINES};
use super::results::{Judged, Results, Verdict};
use super::statistics::Summary;
use super::topology::Contestant;
use super::wire::Wire;

/// The tables of all wires, with what was left out or failed.
pub(crate) fn text(results: &Results, wires: &[Wire]) -> String {
    let mut text = String::new();
    for wire in wires {
        let judged: Vec<Judged> =
            LINES.iter().filter_map(|line| results.judge(*wire, line)).collect();
        if !judged.is_empty() {
            targets(&mut text, *wire, &judged);
        }
        let contestants = results.contestants(*wire);
        if contestants.iter().any(|one| !matches!(one, Contestant::Kernel | Contestant::Weft)) {
            everybody(&mut text, *wire, results, &contestants);
        }
    }
    for (title, notes) in [("Left out", &results.left_out), ("FAILED", &results.failures)] {
        for note in notes {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{title}: {note}");
        }
    }
    text
}

/// Weft beside what it is compared with, and beside its targets.
fn targets(text: &mut String, wire: Wire, judged: &[Judged]) {
    let _ = writeln!(text, "wire {}: {}", wire.name(), wire.description());
    let _ = writeln!(
        text,
        "{:<39}{:<8}{:<25}{:<25}{:<21}{:<9}{:<9}result",
        "", "unit", "baseline (min–max)", "weft (min–max)", "ratio (min–max)", "must", "stretch"
    );
    for Judged { line, baseline, subject, ratio, target, verdict } in judged {
        let spread = |summary: &Option<Summary>| summary.as_ref().map_or_else(none, spread);
        let bound = |bound: Option<Bound>| bound.map_or_else(none, |bound| bound.to_string());
        let _ = writeln!(
            text,
            "{:<39}{:<8}{:<25}{:<25}{:<21}{:<9}{:<9}{}",
            line.title,
            line.unit,
            spread(baseline),
            spread(&Some(*subject)),
            spread(ratio),
            bound(target.map(|target| target.must)),
            bound(target.and_then(|target| target.stretch)),
            match verdict {
                Some(Verdict::Stretch) => "met, stretch",
                Some(Verdict::Must) => "met",
                Some(Verdict::Missed) => "MISSED",
                None => "",
            }
        );
    }
    text.push('\n');
}

/// Medians of all contestants, each with its ratio to the kernel's.
fn everybody(text: &mut String, wire: Wire, results: &Results, contestants: &[Contestant]) {
    let _ = write!(text, "wire {}: everybody, median (ratio to kernel)\n{:<47}", wire.name(), "");
    for contestant in contestants {
        let _ = write!(text, "{:<20}", contestant.name());
    }
    text.push('\n');
    let mut shown: Vec<&str> = Vec::new();
    for line in LINES {
        let values = |one: &Contestant| {
            Summary::of(results.of(wire, one, line.figure).iter().flatten().copied())
        };
        if shown.contains(&line.figure) || !contestants.iter().any(|one| values(one).is_some()) {
            continue;
        }
        shown.push(line.figure);
        let _ = write!(text, "{:<39}{:<8}", line.title, line.unit);
        for contestant in contestants {
            let ratio = results.ratio_to_kernel(wire, contestant, line.figure);
            let cell = match (values(contestant), ratio) {
                (None, _) => none(),
                (Some(value), None) => number(value.median),
                (Some(value), Some(ratio)) => {
                    format!("{} ({})", number(value.median), number(ratio.median))
                }
            };
            let _ = write!(text, "{cell:<20}");
        }
        text.push('\n');
    }
    for contestant in contestants {
        let _ = writeln!(text, "  {contestant}: {}", contestant.description());
    }
    text.push('\n');
}

fn spread(summary: &Summary) -> String {
    if summary.count == 1 {
        return number(summary.median);
    }
    format!("{} ({}–{})", number(summary.median), number(summary.min), number(summary.max))
}

/// In the place of a value.
fn none() -> String {
    "–".to_owned()
}

/// Three digits that matter.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}
