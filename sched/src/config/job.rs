//! A tree of YAML values -> a job's configuration: source, schedule, how to compare.

use std::collections::BTreeMap;
use std::path::PathBuf;

use backy_store::{DEFAULT_LEVEL, Tag};
use serde_yaml::{Mapping, Value};

use super::problem::clip;
use super::reader::{Fields, Reader, hint};
use super::{JobConfig, LEVEL_MAX, TYPES, VERIFY_LIMIT_SECS_DEFAULT, VerifyMode};
use crate::policy::{Rule, Schedule, interval};
use crate::source::{FileConfig, RbdConfig, ReadWith, Secret, SourceConfig};

const JOB_KEYS: [&str; 6] = ["source", "schedule", "verify", "verify-limit", "compression-level", "path"];
const FILE_KEYS: [&str; 4] = ["type", "filename", "cow", "backend"];
const RBD_KEYS: [&str; 15] = [
    "type",
    "pool",
    "image",
    "full-always",
    "vm",
    "consul_acl_token",
    "consul",
    "user",
    "conf",
    "read-with",
    "timeout",
    "pre-snapshot",
    "post-snapshot",
    "hook-timeout",
    "backend",
];
/// Longest time limit of a source: a day.
const TIMEOUT_SECS_MAX: i64 = 86_400;
const RULE_KEYS: [&str; 2] = ["interval", "keep"];

/// Takes the source's settings out of a file that has them at the top, which is one with `type` and without `source`.
fn split_old_form(value: &Value) -> Option<(Value, Value)> {
    let mapping =
        value.as_mapping().filter(|keys| keys.contains_key("type") && !keys.contains_key("source"))?;
    let is_ours = |key: &Value| key.as_str().is_some_and(|key| JOB_KEYS.contains(&key));
    let (rest, settings): (Mapping, Mapping) = mapping.clone().into_iter().partition(|(key, _)| is_ours(key));
    Some((Value::Mapping(settings), Value::Mapping(rest)))
}

impl Reader {
    /// Reads a whole `config` file.
    pub(crate) fn job(&mut self, value: &Value) -> Option<JobConfig> {
        // The first versions of the original had the source's settings at the top.
        let old_form = split_old_form(value);
        let (settings, value) =
            old_form.as_ref().map_or((None, value), |(settings, rest)| (Some(settings), rest));
        let fields = self.fields(value, Vec::new(), Some(&JOB_KEYS))?;
        let source = match (settings, fields.entries.get("source")) {
            (Some(settings), _) => self.source(settings, Vec::new()),
            (None, Some(source)) => self.source(source, vec!["source"]),
            (None, None) => self.missing(&fields, "source"),
        };
        let schedule = match fields.entries.get("schedule") {
            Some(schedule) => self.schedule(schedule, vec!["schedule"]),
            None => Some(Schedule::default()),
        };
        self.complete(&fields, source, schedule)
    }

    /// Reads the rest of a job's settings, once source and schedule are known.
    pub(crate) fn complete(
        &mut self,
        fields: &Fields<'_>,
        source: Option<SourceConfig>,
        schedule: Option<Schedule>,
    ) -> Option<JobConfig> {
        let verify = self.verify(fields);
        let verify_limit_secs = match fields.entries.contains_key("verify-limit") {
            true => self.duration(fields, "verify-limit"),
            false => Some(VERIFY_LIMIT_SECS_DEFAULT),
        };
        let level = match fields.entries.contains_key("compression-level") {
            true => self.number(fields, "compression-level", i64::from(LEVEL_MAX)),
            false => Some(i64::from(DEFAULT_LEVEL)),
        };
        let source = source?;
        Some(JobConfig {
            verify: verify.unwrap_or_else(|| VerifyMode::usual(&source)),
            source,
            schedule: schedule?,
            verify_limit_secs: verify_limit_secs?,
            compression_level: i32::try_from(level?).ok()?,
        })
    }

    /// Reads a length of time, in the form of an interval.
    pub(crate) fn duration(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<i64> {
        let text = self.text(fields, key)?;
        let parsed = interval::parse(&text);
        if let Err(error) = &parsed {
            self.problem(&fields.path_to(key), &error.to_string());
        }
        parsed.ok()
    }

    /// Reads what stands below `source`.
    pub(crate) fn source<'v>(&mut self, value: &'v Value, place: Vec<&'v str>) -> Option<SourceConfig> {
        let any = self.fields(value, place.clone(), None)?;
        let source_type = self.required(&any, "type")?;
        let keys: &[&str] = match source_type.as_str() {
            "file" => &FILE_KEYS,
            known if TYPES.contains(&known) => &RBD_KEYS,
            other => {
                let message = format!(
                    "there is no source type {:?}, only {}{}",
                    clip(other),
                    TYPES.join(", "),
                    hint(other, &TYPES)
                );
                self.problem(&any.path_to("type"), &message);
                return None;
            }
        };
        let fields = self.fields(value, place, Some(keys))?;
        let backend = self.text(&fields, "backend");
        if source_type == "file" {
            let cow = self.flag(&fields, "cow");
            let filename = PathBuf::from(self.required(&fields, "filename")?);
            return Some(SourceConfig::File(FileConfig { filename, cow, backend }));
        }
        self.rbd(&fields, source_type, backend).map(|rbd| SourceConfig::Rbd(Box::new(rbd)))
    }

    fn rbd(
        &mut self,
        fields: &Fields<'_>,
        source_type: String,
        backend: Option<String>,
    ) -> Option<RbdConfig> {
        let vm = match source_type.as_str() {
            "flyingcircus" => self.required(fields, "vm"),
            _ => self.text(fields, "vm"),
        };
        let pool = self.rbd_name(fields, "pool");
        let image = self.rbd_name(fields, "image");
        let full_always = self.flag(fields, "full-always").unwrap_or(false);
        let consul_acl_token = self.text(fields, "consul_acl_token").map(Secret::new);
        let consul = self.text(fields, "consul");
        let user = self.text(fields, "user");
        let conf = self.text(fields, "conf").map(PathBuf::from);
        let read_with = self.read_with(fields);
        let timeout_secs = self.time_limit(fields, "timeout", RbdConfig::TIMEOUT_SECS);
        let hook_timeout_secs = self.time_limit(fields, "hook-timeout", RbdConfig::HOOK_TIMEOUT_SECS);
        let (pre_snapshot, post_snapshot) =
            (self.text(fields, "pre-snapshot"), self.text(fields, "post-snapshot"));
        Some(RbdConfig {
            source_type,
            pool: pool?,
            image: image?,
            full_always,
            vm,
            consul_acl_token,
            consul,
            user,
            conf,
            read_with: read_with?,
            timeout_secs: timeout_secs?,
            pre_snapshot,
            post_snapshot,
            hook_timeout_secs: hook_timeout_secs?,
            backend,
        })
    }

    /// A name that `rbd` cannot take for an option, a snapshot or another pool. A pool may have a namespace.
    fn rbd_name(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<String> {
        let name = self.required(fields, key)?;
        let slashes = name.matches('/').count();
        let has_room = slashes <= usize::from(key == "pool") && name.split('/').all(|part| !part.is_empty());
        if name.starts_with('-') || name.contains('@') || name.contains(char::is_control) || !has_room {
            let message = format!("it cannot be the name of {key} at Ceph");
            self.problem(&fields.path_to(key), &message);
            return None;
        }
        Some(name)
    }

    fn read_with(&mut self, fields: &Fields<'_>) -> Option<ReadWith> {
        let Some(value) = fields.get("read-with") else { return Some(ReadWith::Auto) };
        let word = value.as_str().unwrap_or_default();
        let found = ReadWith::ALL.into_iter().find(|way| way.as_str() == word);
        if found.is_none() {
            self.problem(&fields.path_to("read-with"), "it must be auto, librbd or rbd");
        }
        found
    }

    /// A time limit, written as an interval; `None` where it is wrong.
    fn time_limit(&mut self, fields: &Fields<'_>, key: &'static str, usual: u64) -> Option<u64> {
        if fields.get(key).is_none() {
            return Some(usual);
        }
        let text = self.text(fields, key)?;
        let secs = interval::parse(&text).ok().filter(|secs| (1..=TIMEOUT_SECS_MAX).contains(secs));
        if secs.is_none() {
            self.problem(&fields.path_to(key), "it must be a time from 1s to 1d, as in 5m");
        }
        secs.and_then(|secs| u64::try_from(secs).ok())
    }

    /// Reads a mapping of tags to their rules.
    pub(crate) fn schedule<'v>(&mut self, value: &'v Value, place: Vec<&'v str>) -> Option<Schedule> {
        if value.is_null() {
            return Some(Schedule::default());
        }
        let fields = self.fields(value, place, None)?;
        let mut rules = BTreeMap::new();
        for (&name, value) in &fields.entries {
            let rule = self.rule(value, fields.path_to(name));
            match Tag::parse(name) {
                Ok(tag) => rules.extend(rule.map(|rule| (tag, rule))),
                Err(error) => self.problem(&fields.path_to(name), &error.to_string()),
            }
        }
        Some(Schedule { rules })
    }

    fn rule<'v>(&mut self, value: &'v Value, place: Vec<&'v str>) -> Option<Rule> {
        let fields = self.fields(value, place, Some(&RULE_KEYS))?;
        let interval_secs = match fields.entries.get("interval") {
            Some(Value::Number(number)) => {
                let message = format!("an interval is a text: write 1d, 12h, or \"{number}\" for seconds");
                self.problem(&fields.path_to("interval"), &message);
                None
            }
            _ => self.required(&fields, "interval").and_then(|text| match interval::parse(&text) {
                Ok(secs) => Some(secs),
                Err(error) => {
                    self.problem(&fields.path_to("interval"), &error.to_string());
                    None
                }
            }),
        };
        let keep = match fields.entries.contains_key("keep") {
            true => self.number(&fields, "keep", i64::from(u32::MAX)),
            false => self.missing(&fields, "keep"),
        };
        Some(Rule { interval_secs: interval_secs?, keep: u32::try_from(keep?).ok()? })
    }

    fn verify(&mut self, fields: &Fields<'_>) -> Option<VerifyMode> {
        let word = match fields.entries.get("verify")? {
            // Older YAML reads a bare `off` as a truth value, and tools that speak it write one.
            Value::Bool(false) => "off",
            Value::String(word) => word,
            _ => "",
        };
        let mode = VerifyMode::ALL.into_iter().find(|mode| mode.as_str() == word);
        if mode.is_none() {
            self.problem(&fields.path_to("verify"), "it must be full, sample or off");
        }
        mode
    }
}
