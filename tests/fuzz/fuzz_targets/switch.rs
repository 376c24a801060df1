#![no_main]
//! See `weft_fuzz::vswitch_targets::switch`.

libfuzzer_sys::fuzz_target!(|input: &[u8]| weft_fuzz::vswitch_targets::switch(input));
