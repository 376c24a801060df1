//! Network policies from manifests to verdicts.

mod random;
mod reference;
mod scale;
mod sentences;
