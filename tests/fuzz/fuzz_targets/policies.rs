#![no_main]
//! See `weft_fuzz::weft_targets::policies`.

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::weft_targets::policies(input));
