//! See `api/src/fuzz.rs`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| api::fuzz::bodies(data));
