#![no_main]
//! See `weft_fuzz::overlay_targets::node_id`.

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::overlay_targets::node_id(input));
