#![no_main]
//! See `weft_fuzz::overlay_targets::state`.

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::overlay_targets::state(input));
