//! Any text as the name of a job, a tag, tags or the id of a revision. What is taken is safe as a file name.

#![no_main]

use backy_store::{JobName, RevisionId, Tag};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let safe =
        |name: &str| assert!(!name.contains('/') && !name.contains('\0') && name != ".." && !name.is_empty());
    JobName::parse(text).into_iter().for_each(|name| safe(name.as_str()));
    RevisionId::parse(text).into_iter().for_each(|id| safe(id.as_str()));
    Tag::parse_list(text).into_iter().flatten().for_each(|tag| safe(tag.as_str()));
});
