//! Any bytes as a stored frame of any length.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backy_store::fuzzing::frame(data));
