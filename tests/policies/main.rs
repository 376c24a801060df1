//! Network policies from manifests to verdicts.

#[path = "../common/cpu_time.rs"]
mod cpu_time;
mod random;
mod reference;
mod scale;
mod sentences;
