//! Any text as a selection of revisions.

#![no_main]

use std::sync::LazyLock;

use backy_store::select;
use backy_store::{Revision, Zone};

static REVISIONS: LazyLock<Vec<Revision>> = LazyLock::new(backy_store::fuzzing::revisions);

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(selected) = select::select(text, &REVISIONS, &Zone::utc()) {
        assert!(selected.iter().all(|revision| REVISIONS.contains(revision)));
    }
    let _ = select::select_one(text, &REVISIONS, &Zone::utc());
});
