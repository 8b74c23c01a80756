//! Revisions and schedules for the tests of the rules.

use std::collections::{BTreeMap, BTreeSet};

use backy_store::{BackendType, Revision, RevisionId, Stats, Tag, Timestamp, Trust};

use super::{Rule, Schedule, interval};

pub(crate) const DAY: i64 = 86_400;

/// A time counted from some day in 2023.
pub(crate) fn at(secs: i64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + secs).unwrap()
}

pub(crate) fn tags(list: &str) -> BTreeSet<Tag> {
    Tag::parse_list(list).unwrap()
}

/// A complete, trusted, local revision.
pub(crate) fn revision(number: u128, secs: i64, list: &str) -> Revision {
    Revision {
        id: RevisionId::from_bits(number),
        timestamp: at(secs),
        parent: None,
        sequence: None,
        stats: Stats { duration_secs: Some(1.0), ..Stats::default() },
        tags: tags(list),
        backend_type: BackendType::Framed,
        trust: Trust::Trusted,
        orig_tags: BTreeSet::new(),
        server: String::new(),
        image_size: Some(0),
        map_seal: None,
        data_bytes: None,
        stored_bytes: None,
        source: BTreeMap::new(),
        extra: BTreeMap::new(),
    }
}

pub(crate) fn schedule(rules: &[(&str, &str, u32)]) -> Schedule {
    let rule = |&(tag, every, keep): &(&str, &str, u32)| {
        (Tag::parse(tag).unwrap(), Rule { interval_secs: interval::parse(every).unwrap(), keep })
    };
    Schedule { rules: rules.iter().map(rule).collect() }
}
