//! Any bytes as a chunk file and as a chunk map of the original. (Its manifests are read by the target `manifest`.)

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backy_store::fuzzing::original(data));
