//! Any bytes as a disk: its partition tables and its LVM, as they are and with checksums made right.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| backy_fuse::fuzzing::partitions(data));
