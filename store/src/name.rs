//! Names that become directory entries: jobs and tags. Checked here and nowhere else, so that what holds
//! a `JobName` or a `Tag` need not doubt it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The directories and files at the top of a store, which no job can be named.
pub(crate) const RESERVED: [&str; 8] =
    ["chunks", "damaged", "maps", "tmp", "writers", "quarantine", "lost+found", ".pages"];

/// The name of a job: 1 to 128 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit, without `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobName(String);

impl JobName {
    /// Checks `name`.
    pub fn parse(name: &str) -> Result<Self> {
        let bad = |reason| Err(Error::NameInvalid { kind: "job name", name: name.to_owned(), reason });
        if name.is_empty() || name.len() > 128 {
            return bad("it must have 1 to 128 characters");
        }
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
            return bad("only letters, digits, '.', '_' and '-' are allowed");
        }
        if !name.as_bytes()[0].is_ascii_alphanumeric() {
            return bad("it must begin with a letter or a digit");
        }
        if name.contains("..") {
            return bad("it must not contain '..'");
        }
        if RESERVED.contains(&name) || name.starts_with("index.sqlite") || name == "backy.store" {
            return bad("the store uses this name itself");
        }
        Ok(Self(name.to_owned()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A tag: up to 128 bytes of printable text without `/` and `,`, and not `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

impl Tag {
    /// Checks `tag` as it stands; blanks around it are part of it.
    pub fn parse(tag: &str) -> Result<Self> {
        let bad = |reason| Err(Error::NameInvalid { kind: "tag", name: tag.to_owned(), reason });
        if tag.is_empty() || tag.len() > 128 {
            return bad("it must have 1 to 128 bytes");
        }
        if tag.chars().any(char::is_control) {
            return bad("control characters are not allowed");
        }
        if tag.contains(['/', ',']) {
            return bad("'/' and ',' are not allowed");
        }
        if tag == "." || tag == ".." {
            return bad("it is a directory's own name");
        }
        Ok(Self(tag.to_owned()))
    }

    /// Parses a comma-separated list; ASCII blanks around each tag and empty parts are dropped. Other blanks, which a reader
    /// may not see, are part of the tag.
    pub fn parse_list(tags: &str) -> Result<std::collections::BTreeSet<Self>> {
        tags.split(',').map(str::trim_ascii).filter(|tag| !tag.is_empty()).map(Self::parse).collect()
    }

    /// Whether no schedule may take this tag away: it begins with `manual:`.
    pub fn is_manual(&self) -> bool {
        self.0.starts_with("manual:")
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_conversions {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::parse(&text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.pad(&self.0)
            }
        }
    };
}
text_conversions!(JobName);
text_conversions!(Tag);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_names_that_could_leave_the_store_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a..b",
            "-a",
            ".hidden",
            "a b",
            "\u{e4}",
            "a\nb",
            "chunks",
            "index.sqlite-wal",
        ] {
            assert!(JobName::parse(name).is_err(), "{name:?}");
        }
        for name in ["web01", "a.b-c_d", "0", &"x".repeat(128)] {
            assert!(JobName::parse(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn tags_of_old_stores_are_accepted() {
        for tag in ["daily", "manual:before upgrade", "täglich", "a b"] {
            assert!(Tag::parse(tag).is_ok(), "{tag:?}");
        }
        for tag in ["", ".", "..", "a/b", "a,b", "a\tb", "\u{7f}"] {
            assert!(Tag::parse(tag).is_err(), "{tag:?}");
        }
        assert_eq!(Tag::parse_list(" a, b ,,a").unwrap().len(), 2);
        for blank in ['\u{a0}', '\u{2028}', '\u{3000}'] {
            let tags = Tag::parse_list(&format!(" {blank}a{blank} ")).unwrap();
            assert_eq!(tags.first().unwrap().as_str(), format!("{blank}a{blank}"));
        }
    }
}
