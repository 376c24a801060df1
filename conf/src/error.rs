//! How a wrong file is told: `file:line: what, why, fix`.

use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The line, from 1. `None` when the file as a whole is meant.
    pub line: Option<usize>,
    /// What is wrong: names the field and the value.
    pub what: String,
    /// The rule that it breaks.
    pub why: String,
    /// What to write instead.
    pub fix: String,
}

impl Problem {
    /// A problem on a line.
    pub fn at(
        line: usize,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { line: Some(line), what: what.into(), why: why.into(), fix: fix.into() }
    }

    /// A problem of the whole file.
    pub fn of_file(
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { line: None, what: what.into(), why: why.into(), fix: fix.into() }
    }
}

/// Everything that is wrong with one file, in the order of the lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    path: PathBuf,
    problems: Vec<Problem>,
}

impl Errors {
    pub(crate) fn new(path: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self { path: path.to_path_buf(), problems }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The problems; never empty.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (ix, Problem { line, what, why, fix }) in self.problems.iter().enumerate() {
            let end_of_last = if ix == 0 { "" } else { "\n" };
            write!(f, "{end_of_last}{}:", self.path.display())?;
            if let Some(line) = line {
                write!(f, "{line}:")?;
            }
            write!(f, " {what}, {why}, {fix}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_told_in_the_order_of_their_lines() {
        let problems = vec![
            Problem::at(9, "late", "b", "c"),
            Problem::at(2, "early", "b", "c"),
            Problem::of_file("whole", "b", "c"),
            Problem::at(2, "early", "b", "c"),
        ];
        let errors = Errors::new(Path::new("w.toml"), problems);
        assert_eq!(
            errors.to_string(),
            "w.toml: whole, b, c\nw.toml:2: early, b, c\nw.toml:9: late, b, c"
        );
    }
}
