//! The list of steps that grows while the demo works.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use anyhow::Result;

/// Writes one line per step: to standard output, or to standard error when that is for JSON.
#[derive(Debug)]
pub(super) struct Progress {
    to_stderr: bool,
    is_terminal: bool,
    /// Every check that failed, to be repeated at the end.
    failures: Vec<String>,
}

/// What a step has to say.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// In a few words, when it went well.
    pub(super) detail: String,
    /// Each thing that is not as it should be. None: the step went well.
    pub(super) failures: Vec<String>,
}

impl Outcome {
    pub(super) fn new(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), failures: Vec::new() }
    }

    pub(super) fn require(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.failures.push(otherwise());
        }
    }
}

impl Progress {
    pub(super) fn new(to_stderr: bool) -> Self {
        let is_terminal =
            if to_stderr { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
        Self { to_stderr, is_terminal, failures: Vec::new() }
    }

    /// Runs one step. What it finds amiss is noted and the demo goes on; an error ends it.
    pub(super) fn step<T>(
        &mut self,
        title: &str,
        work: impl FnOnce(&mut Outcome) -> Result<T>,
    ) -> Result<T> {
        if self.is_terminal {
            self.write(&format!("  · {title}"), false);
        }
        let start = Instant::now();
        let mut outcome = Outcome::default();
        let done = work(&mut outcome);
        let seconds = start.elapsed().as_secs_f64();
        let good = done.is_ok() && outcome.failures.is_empty();
        let mark = if good { '✓' } else { '✗' };
        let detail = if good { outcome.detail } else { String::new() };
        self.write(&format!("  {mark} {title:<34}{seconds:>6.2} s  {detail}"), true);
        for failure in &outcome.failures {
            self.write(&format!("      {failure}"), true);
        }
        self.failures.extend(outcome.failures.into_iter().map(|text| format!("{title}: {text}")));
        if let Err(error) = &done {
            self.failures.push(format!("{title}: {error:#}"));
        }
        done
    }

    pub(super) fn failures(&self) -> &[String] {
        &self.failures
    }

    pub(super) fn note(&mut self, failure: String) {
        self.failures.push(failure);
    }

    pub(super) fn title(&self, text: &str) {
        self.write(text, true);
    }

    /// Whoever reads this may have gone; the demo still has to clean up.
    fn write(&self, text: &str, line_end: bool) {
        let start = if self.is_terminal { "\r\x1b[K" } else { "" };
        let end = if line_end { "\n" } else { "" };
        let text = format!("{start}{}{end}", text.trim_end());
        let _ = if self.to_stderr {
            io::stderr().write_all(text.as_bytes())
        } else {
            let mut out = io::stdout();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        };
    }
}
