//! What the fuzz targets do. Each function takes any bytes and panics if something does not hold.
//!
//! One file for each crate that is fuzzed. It uses nothing but that crate's public API, so that the
//! crate's `tests/corpus.rs` can include it and replay the committed corpus with the stable compiler.

pub mod cni_targets;
pub mod conf_targets;
pub mod overlay_targets;
pub mod vswitch_targets;
#[cfg(feature = "daemon")]
pub mod weft_targets;
