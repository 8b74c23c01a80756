//! The stream of `rbd export-diff`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backy_sched::source::rbd::diff::read_any(data));
