//! Any bytes as a manifest: as they are, and with a seal that is right, to get past it.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = backy_store::format::manifest::parse(data);
    if let Ok(revision) = backy_store::fuzzing::sealed_manifest(data) {
        backy_store::fuzzing::write_and_read(&revision);
    }
});
