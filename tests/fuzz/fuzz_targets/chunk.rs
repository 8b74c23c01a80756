//! Any bytes as a chunk file: with the id in the first 32 bytes, and with the id that its own table gives.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backy_store::fuzzing::chunk(data));
