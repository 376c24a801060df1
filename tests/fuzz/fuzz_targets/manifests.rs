#![no_main]
//! See `weft_fuzz::conf_targets::manifests`.

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::conf_targets::manifests(input));
