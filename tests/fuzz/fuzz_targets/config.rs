//! Any text as a job's configuration; what is taken is written and read again.

#![no_main]

use backy_sched::JobConfig;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(config) = JobConfig::parse(text) {
        let again = JobConfig::parse(&config.to_yaml());
        assert!(again.is_ok(), "{:?}\n{}", again.err(), config.to_yaml());
    }
});
