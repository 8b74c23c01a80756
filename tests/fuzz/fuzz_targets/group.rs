//! Any bytes as a group, a run and a recipe.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backy_store::fuzzing::group(data));
