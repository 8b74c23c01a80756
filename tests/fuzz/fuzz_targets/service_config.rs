//! Any text as the main configuration, and as the files with tokens that it names.

#![no_main]

use backy_sched::{JobConfig, ServiceConfig};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (main, file) = text.split_once('\u{1f}').unwrap_or((text, "s3cret"));
    match ServiceConfig::parse(main, &|_| Ok(file.to_owned())) {
        Ok(config) => {
            assert!(config.base_dir.is_absolute() && !config.api.addrs.is_empty() && config.worker_limit > 0);
            for job in config.jobs.values() {
                // What the service writes for the job must read the same.
                assert_eq!(JobConfig::parse(&job.config.to_yaml()).as_ref(), Ok(&job.config));
            }
        }
        Err(problems) => assert!(!problems.is_empty() && problems.len() <= 64),
    }
});
