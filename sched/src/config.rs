//! The configuration of one job: its `config` file, read and written. Owner of the crate `serde_yaml` in
//! this crate; the service's configuration is read with the same means.
//!
//! A file is read whole or not at all: every problem in it is collected and reported at once, each with its
//! line. Unknown keys are problems, so that a misspelt one cannot silently mean the default. What the
//! original wrote is accepted. `docs/config.md` describes every key.

pub(crate) mod document;
mod job;
pub(crate) mod problem;
pub(crate) mod reader;

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use backy_store::DEFAULT_LEVEL;
use backy_store::fs::ownership::{self, Secrecy};
use serde_yaml::{Mapping, Value};

use self::problem::unsafe_problem;
pub use self::problem::{Mark, Problem};
use self::reader::Reader;
use crate::error::{Error, Result};
use crate::policy::{Schedule, interval};
use crate::source::{FileConfig, RbdConfig, ReadWith, SourceConfig};

/// How long a sample is compared for, unless told otherwise.
pub(crate) const VERIFY_LIMIT_SECS_DEFAULT: i64 = 300;

/// Largest configuration file.
const SIZE_BYTES_MAX: u64 = 1 << 20;
/// The highest zstd level that needs no special decoder.
const LEVEL_MAX: i32 = 19;

const TYPES: [&str; 5] = ["file", "ceph", "ceph-rbd", "rbd", "flyingcircus"];

/// How a fresh revision is compared with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyMode {
    /// All of it.
    Full,
    /// A random part.
    Sample,
    /// Not.
    Off,
}

impl VerifyMode {
    const ALL: [Self; 3] = [Self::Full, Self::Sample, Self::Off];

    /// Returns the word in the configuration and in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Sample => "sample",
            Self::Off => "off",
        }
    }

    /// Files are cheap to read again; for RBD every byte crosses the network.
    pub(crate) fn usual(source: &SourceConfig) -> Self {
        match source {
            SourceConfig::File(_) => Self::Full,
            SourceConfig::Rbd(_) => Self::Sample,
        }
    }
}

/// A job's `config` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobConfig {
    /// Where the images come from.
    pub source: SourceConfig,
    /// Which tags there are and how long they stay.
    pub schedule: Schedule,
    /// How a fresh revision is compared with its source.
    pub verify: VerifyMode,
    /// How many seconds a sample is compared for.
    pub verify_limit_secs: i64,
    /// The zstd level of new chunks, 1 to 19.
    pub compression_level: i32,
}

impl JobConfig {
    /// Reads `<job>/config`.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_text(path, SIZE_BYTES_MAX, Secrecy::Public)?;
        // Whoever owns the directory can put another file there.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        ownership::check(dir, Secrecy::Public)?;
        Self::parse(&text).map_err(|problems| Error::ConfigInvalid { path: path.to_owned(), problems })
    }

    /// Reads the text of a `config` file; the error is the list of all problems.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let (value, places) = document::parse(text)?;
        let mut reader = Reader::new(places);
        let config = reader.job(&value);
        reader.finish(config)
    }

    /// From `init TYPE key=value ...`: a source type and its settings, with the usual schedule. A relative
    /// `filename` counts from the working directory and is made absolute.
    pub fn for_source(source_type: &str, settings: &[(String, String)]) -> Result<Self> {
        let mut reader = Reader::default();
        let mut mapping = Mapping::from_iter([("type".into(), source_type.into())]);
        for (key, value) in settings {
            if mapping.insert(key.as_str().into(), value.as_str().into()).is_some() {
                reader.add(Problem::of_file(format!("the key {key} is given twice")));
            }
        }
        let settings = Value::Mapping(mapping);
        let source = reader.source(&settings, vec!["source"]);
        let source = reader.finish(source).map_err(|problems| Error::SettingsInvalid {
            source_type: source_type.to_owned(),
            problems: problems.iter().map(ToString::to_string).collect(),
        })?;
        let source = absolute(source).map_err(|source| Error::SourceUnusable {
            name: source_type.to_owned(),
            doing: "find the absolute name of",
            source,
        })?;
        let verify = VerifyMode::usual(&source);
        Ok(Self {
            source,
            schedule: Schedule::usual(),
            verify,
            verify_limit_secs: VERIFY_LIMIT_SECS_DEFAULT,
            compression_level: DEFAULT_LEVEL,
        })
    }

    /// Returns the text of a `config` file. Settings with their default value are left out.
    pub fn to_yaml(&self) -> String {
        let mut schedule = Mapping::new();
        for (tag, rule) in &self.schedule.rules {
            let interval = interval::format(rule.interval_secs);
            let rule =
                Mapping::from_iter([("interval".into(), interval.into()), ("keep".into(), rule.keep.into())]);
            schedule.insert(tag.as_str().into(), rule.into());
        }
        let mut job = Mapping::new();
        job.insert("source".into(), source_mapping(&self.source).into());
        job.insert("schedule".into(), schedule.into());
        if self.verify != VerifyMode::usual(&self.source) {
            job.insert("verify".into(), self.verify.as_str().into());
        }
        if self.verify_limit_secs != VERIFY_LIMIT_SECS_DEFAULT {
            job.insert("verify-limit".into(), interval::format(self.verify_limit_secs).into());
        }
        if self.compression_level != DEFAULT_LEVEL {
            job.insert("compression-level".into(), self.compression_level.into());
        }
        backy_store::yaml::to_string(&job).expect("a tree of texts and numbers can be written")
    }

    /// Returns the names of all source types, for telling `init BASE-DIR` from `init TYPE ...`.
    pub fn source_types() -> &'static [&'static str] {
        &TYPES
    }
}

/// Reads a text file of at most `bytes_max` bytes that nobody else may have written.
pub(crate) fn read_text(path: &Path, bytes_max: u64, secrecy: Secrecy) -> Result<String> {
    let unreadable = |source| Error::ConfigUnreadable { path: path.to_owned(), source };
    let invalid = |message: String| Error::ConfigInvalid {
        path: path.to_owned(),
        problems: vec![Problem::of_file(message)],
    };
    let mut text = Vec::new();
    // A pipe or a device would keep us waiting for ever.
    let file =
        OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::other("it is not a regular file")));
    }
    ownership::check_open(&file, path, secrecy).map_err(|error| Error::ConfigInvalid {
        path: path.to_owned(),
        problems: vec![unsafe_problem(&error)],
    })?;
    file.take(bytes_max + 1).read_to_end(&mut text).map_err(unreadable)?;
    if text.len() as u64 > bytes_max {
        return Err(invalid(format!("it is larger than {} MiB", bytes_max >> 20)));
    }
    let text = String::from_utf8(text).map_err(|_| invalid("it is not UTF-8 text".to_owned()))?;
    // Editors of other systems begin a file with a byte order mark.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn absolute(source: SourceConfig) -> io::Result<SourceConfig> {
    match source {
        SourceConfig::File(file) => {
            Ok(SourceConfig::File(FileConfig { filename: std::path::absolute(&file.filename)?, ..file }))
        }
        other => Ok(other),
    }
}

fn source_mapping(source: &SourceConfig) -> Mapping {
    let mut mapping = Mapping::from_iter([("type".into(), source.source_type().into())]);
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            mapping.insert(key.into(), value);
        }
    };
    match source {
        SourceConfig::File(file) => {
            put("filename", Some(file.filename.display().to_string().into()));
            put("cow", file.cow.map(Value::from));
            put("backend", file.backend.clone().map(Value::from));
        }
        SourceConfig::Rbd(rbd) => {
            put("pool", Some(rbd.pool.clone().into()));
            put("image", Some(rbd.image.clone().into()));
            put("full-always", rbd.full_always.then_some(Value::from(true)));
            put("vm", rbd.vm.clone().map(Value::from));
            put("consul_acl_token", rbd.consul_acl_token.as_ref().map(|token| token.expose().into()));
            put("consul", rbd.consul.clone().map(Value::from));
            put("user", rbd.user.clone().map(Value::from));
            put("conf", rbd.conf.as_ref().map(|conf| conf.display().to_string().into()));
            put("read-with", (rbd.read_with != ReadWith::Auto).then(|| rbd.read_with.as_str().into()));
            let limit = |secs: u64, usual| {
                (secs != usual).then(|| interval::format(i64::try_from(secs).unwrap_or(i64::MAX)).into())
            };
            put("timeout", limit(rbd.timeout_secs, RbdConfig::TIMEOUT_SECS));
            put("pre-snapshot", rbd.pre_snapshot.clone().map(Value::from));
            put("post-snapshot", rbd.post_snapshot.clone().map(Value::from));
            put("hook-timeout", limit(rbd.hook_timeout_secs, RbdConfig::HOOK_TIMEOUT_SECS));
            put("backend", rbd.backend.clone().map(Value::from));
        }
    }
    mapping
}

#[cfg(test)]
mod tests;
