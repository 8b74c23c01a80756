//! Any bytes as a chunk map: as they are, and with seal and page hashes that are right.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backy_store::fuzzing::map(data));
