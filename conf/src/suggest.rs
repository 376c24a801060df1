//! "Did you mean": the known name that is nearest to what was written.

/// The candidate with the smallest edit distance to `written`, if that is small enough to be a slip of
/// the fingers: at most a third of the letters, and never more than three.
pub(crate) fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = (written.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (distance(written, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Longest name worth comparing; the work grows with the product of both lengths.
const NAME_LEN_MAX: usize = 64;

/// Edit distance in which a swap of neighbours counts as one (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    if a.len().max(b.len()) > NAME_LEN_MAX {
        return usize::MAX;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let one_more = rows[i - 1][j].min(rows[i][j - 1]) + 1;
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let swap = if swapped { rows[i - 2][j - 2] + 1 } else { usize::MAX };
                replace.min(one_more).min(swap)
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_of_known_pairs() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("seeds", "seeds", 0),
            ("seed", "seeds", 1),
            ("sedes", "seeds", 1),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let known = ["network", "seeds", "name"];
        assert_eq!(nearest("netwrok", known), Some("network"));
        assert_eq!(nearest("seed", known), Some("seeds"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"n".repeat(100_000), known), None);
    }
}
