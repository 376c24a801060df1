//! What is said about several measurements of one thing.

/// Median and extremes of a few values.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(crate) struct Summary {
    /// How many values there are.
    pub(crate) count: usize,
    /// The middle one, or the mean of the two in the middle.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Summary {
    /// Of `values`; none of no values, and of any that is not a number.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Self { count: values.len(), median, min: values[0], max: values[values.len() - 1] })
    }
}

/// The ratios of what was measured in the same rounds: noise that lasts longer than a round is in both.
/// A round in which either is missing gives none.
pub(crate) fn ratios(subject: &[Option<f64>], baseline: &[Option<f64>]) -> Vec<f64> {
    let rounds = subject.iter().zip(baseline);
    let both = rounds.filter_map(|(subject, baseline)| Some(((*subject)?, (*baseline)?)));
    both.filter(|(_, baseline)| *baseline != 0.0)
        .map(|(subject, baseline)| subject / baseline)
        .collect()
}
