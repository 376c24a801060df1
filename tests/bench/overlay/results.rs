//! Everything that was measured, and what follows from it for a line of the table.

use std::collections::BTreeMap;

use super::lines::{Baseline, Line, Target};
use super::measure::Figures;
use super::statistics::{Summary, ratios};
use super::topology::Contestant;
use super::wire::Wire;

/// All values of a run.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// One value a round; absent where the measurement failed.
    values: BTreeMap<(Wire, Contestant, &'static str), Vec<Option<f64>>>,
    /// What could not be measured, and why.
    pub(crate) failures: Vec<String>,
    /// What was left out on purpose, and why.
    pub(crate) left_out: Vec<String>,
}

/// How a line turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Also the second target, where there is one.
    Stretch,
    /// The first target.
    Must,
    /// Not even that.
    Missed,
}

/// A line with its values.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) line: Line,
    /// What it is compared with.
    pub(crate) baseline: Option<Summary>,
    /// Weft.
    pub(crate) subject: Summary,
    /// Subject to baseline, round by round.
    pub(crate) ratio: Option<Summary>,
    pub(crate) target: Option<Target>,
    pub(crate) verdict: Option<Verdict>,
}

impl Results {
    /// Adds what a contestant reached in a round.
    pub(crate) fn add(
        &mut self,
        wire: Wire,
        contestant: &Contestant,
        round: usize,
        figures: Figures,
    ) {
        for (figure, value) in figures {
            let values = self.values.entry((wire, contestant.clone(), figure)).or_default();
            values.resize(values.len().max(round + 1), None);
            values[round] = Some(value);
        }
    }

    /// Takes over all values of a figure, in the place of those that it had.
    pub(crate) fn set(
        &mut self,
        wire: Wire,
        contestant: Contestant,
        figure: &'static str,
        values: Vec<Option<f64>>,
    ) {
        self.values.insert((wire, contestant, figure), values);
    }

    /// The values of a figure, one a round.
    pub(crate) fn of(
        &self,
        wire: Wire,
        contestant: &Contestant,
        figure: &'static str,
    ) -> &[Option<f64>] {
        self.values.get(&(wire, contestant.clone(), figure)).map_or(&[], Vec::as_slice)
    }

    /// All values, for a machine to read.
    pub(crate) fn all(
        &self,
    ) -> impl Iterator<Item = (Wire, &Contestant, &'static str, &[Option<f64>])> {
        self.values.iter().map(|((wire, contestant, figure), values)| {
            (*wire, contestant, *figure, values.as_slice())
        })
    }

    /// Everybody who was measured on a wire.
    pub(crate) fn contestants(&self, wire: Wire) -> Vec<Contestant> {
        let mut contestants: Vec<Contestant> =
            self.values.keys().filter(|key| key.0 == wire).map(|key| key.1.clone()).collect();
        contestants.sort();
        contestants.dedup();
        contestants
    }

    /// How Weft turned out in a line; none if it was not measured.
    pub(crate) fn judge(&self, wire: Wire, line: &Line) -> Option<Judged> {
        if !(line.on)(wire) {
            return None;
        }
        let subject_values = self.of(wire, &Contestant::Weft, line.figure);
        let subject = Summary::of(subject_values.iter().flatten().copied())?;
        let baseline_values = match line.baseline {
            Baseline::Kernel => self.of(wire, &Contestant::Kernel, line.figure),
            Baseline::WeftOverV4 => self.of(wire, &Contestant::WeftOverV4, line.figure),
            Baseline::Own(figure) => self.of(wire, &Contestant::Weft, figure),
            Baseline::None => &[],
        };
        let baseline = Summary::of(baseline_values.iter().flatten().copied());
        if matches!(line.baseline, Baseline::Own(_) | Baseline::WeftOverV4) && baseline.is_none() {
            return None;
        }
        let ratio = Summary::of(ratios(subject_values, baseline_values));
        let target = (line.target)(wire);
        let verdict = target.and_then(|target| {
            let judged = if target.is_absolute { subject.median } else { ratio?.median };
            Some(match target.stretch {
                _ if !target.must.is_met_by(judged) => Verdict::Missed,
                Some(stretch) if !stretch.is_met_by(judged) => Verdict::Must,
                _ => Verdict::Stretch,
            })
        });
        Some(Judged { line: *line, baseline, subject, ratio, target, verdict })
    }

    /// The ratio of any contestant's figure to the kernel's.
    pub(crate) fn ratio_to_kernel(
        &self,
        wire: Wire,
        contestant: &Contestant,
        figure: &'static str,
    ) -> Option<Summary> {
        let (subject, kernel) =
            (self.of(wire, contestant, figure), self.of(wire, &Contestant::Kernel, figure));
        Summary::of(ratios(subject, kernel))
    }
}
