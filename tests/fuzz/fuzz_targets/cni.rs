#![no_main]
//! See `weft_fuzz::cni_targets::cni`.

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::cni_targets::cni(input));
