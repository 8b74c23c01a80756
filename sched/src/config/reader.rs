//! A tree of YAML values -> a job's configuration, with every problem on the way.
//!
//! YAML libraries tell the place of what they cannot parse, but not of a value that makes no sense; its
//! line is found in the text by the keys that lead to it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use backy_store::{DEFAULT_LEVEL, Tag};
use serde_yaml::Value;

use super::{JobConfig, LEVEL_MAX, TYPES, VerifyMode};
use crate::nearest::nearest;
use crate::policy::{Rule, Schedule, interval};
use crate::source::{FileConfig, RbdConfig, Secret, SourceConfig};

const JOB_KEYS: [&str; 5] = ["source", "schedule", "verify", "compression-level", "path"];
const FILE_KEYS: [&str; 4] = ["type", "filename", "cow", "backend"];
const RBD_KEYS: [&str; 7] = ["type", "pool", "image", "full-always", "vm", "consul_acl_token", "backend"];
const RULE_KEYS: [&str; 2] = ["interval", "keep"];

/// Collects problems while it takes values out of a tree. What is missing or wrong reads as `None`.
pub(super) struct Reader<'t> {
    text: &'t str,
    pub(super) problems: Vec<String>,
}

/// The known entries of one mapping and where it stands: the keys that lead to it.
struct Fields<'v> {
    place: Vec<&'v str>,
    entries: BTreeMap<&'v str, &'v Value>,
}

impl<'v> Fields<'v> {
    fn path_to(&self, key: &'v str) -> Vec<&'v str> {
        let mut path = self.place.clone();
        path.push(key);
        path
    }
}

impl<'t> Reader<'t> {
    /// Begins without problems; `text` is what the tree was parsed from.
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, problems: Vec::new() }
    }

    /// Reads a whole `config` file.
    pub(super) fn job(&mut self, value: &Value) -> Option<JobConfig> {
        let fields = self.fields(value, Vec::new(), Some(&JOB_KEYS))?;
        let source = match fields.entries.get("source") {
            Some(source) => self.source(source),
            None => self.missing(&fields, "source"),
        };
        let schedule = match fields.entries.get("schedule") {
            Some(schedule) => self.schedule(schedule),
            None => Some(Schedule::default()),
        };
        let verify = self.verify(&fields);
        let compression_level = match fields.entries.contains_key("compression-level") {
            true => self.number(&fields, "compression-level", i64::from(LEVEL_MAX))?,
            false => i64::from(DEFAULT_LEVEL),
        };
        let source = source?;
        Some(JobConfig {
            verify: verify.unwrap_or_else(|| VerifyMode::usual(&source)),
            source,
            schedule: schedule?,
            compression_level: i32::try_from(compression_level).ok()?,
        })
    }

    /// Reads what stands below `source`.
    pub(super) fn source(&mut self, value: &Value) -> Option<SourceConfig> {
        let any = self.fields(value, vec!["source"], None)?;
        let source_type = self.required(&any, "type")?;
        let keys: &[&str] = match source_type.as_str() {
            "file" => &FILE_KEYS,
            known if TYPES.contains(&known) => &RBD_KEYS,
            other => {
                let message = format!(
                    "there is no source type {other:?}, only {}{}",
                    TYPES.join(", "),
                    hint(other, &TYPES)
                );
                self.problem(&["source", "type"], &message);
                return None;
            }
        };
        let fields = self.fields(value, vec!["source"], Some(keys))?;
        let backend = self.text(&fields, "backend");
        if source_type == "file" {
            let cow = self.flag(&fields, "cow");
            let filename = PathBuf::from(self.required(&fields, "filename")?);
            return Some(SourceConfig::File(FileConfig { filename, cow, backend }));
        }
        let vm = match source_type.as_str() {
            "flyingcircus" => self.required(&fields, "vm"),
            _ => self.text(&fields, "vm"),
        };
        let pool = self.required(&fields, "pool");
        let image = self.required(&fields, "image");
        let full_always = self.flag(&fields, "full-always").unwrap_or(false);
        let consul_acl_token = self.text(&fields, "consul_acl_token").map(Secret::new);
        Some(SourceConfig::Rbd(RbdConfig {
            source_type,
            pool: pool?,
            image: image?,
            full_always,
            vm,
            consul_acl_token,
            backend,
        }))
    }

    fn schedule(&mut self, value: &Value) -> Option<Schedule> {
        if value.is_null() {
            return Some(Schedule::default());
        }
        let fields = self.fields(value, vec!["schedule"], None)?;
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

    /// Takes a mapping apart; with `known`, other keys are problems and left out.
    fn fields<'v>(
        &mut self,
        value: &'v Value,
        place: Vec<&'v str>,
        known: Option<&[&str]>,
    ) -> Option<Fields<'v>> {
        let Value::Mapping(mapping) = value else {
            self.problem(&place, "it must be a mapping of keys to values");
            return None;
        };
        let mut fields = Fields { place, entries: BTreeMap::new() };
        for (key, value) in mapping {
            let Value::String(key) = key else {
                self.problem(&fields.place, "every key in it must be a text; put numbers into quotes");
                continue;
            };
            match known {
                Some(known) if !known.contains(&key.as_str()) => {
                    let message = format!("unknown key {key:?}{}", hint(key, known));
                    self.problem(&fields.path_to(key), &message);
                }
                _ => {
                    fields.entries.insert(key, value);
                }
            }
        }
        Some(fields)
    }

    fn text(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<String> {
        match fields.entries.get(key)? {
            Value::Null => None,
            Value::String(text) if !text.is_empty() && !text.contains('\0') => Some(text.clone()),
            _ => {
                self.problem(&fields.path_to(key), "it must be a text and not empty");
                None
            }
        }
    }

    fn required(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<String> {
        match fields.entries.get(key) {
            None | Some(Value::Null) => self.missing(fields, key),
            Some(_) => self.text(fields, key),
        }
    }

    fn missing<T>(&mut self, fields: &Fields<'_>, key: &str) -> Option<T> {
        self.problem(&fields.place, &format!("the key {key} is missing"));
        None
    }

    /// Truth values come as such or as the words that older YAML and the command line have for them.
    fn flag(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<bool> {
        let word = match fields.entries.get(key)? {
            Value::Null => return None,
            Value::Bool(flag) => return Some(*flag),
            Value::String(word) => word.to_ascii_lowercase(),
            _ => String::new(),
        };
        match word.as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => {
                self.problem(&fields.path_to(key), "it must be true or false");
                None
            }
        }
    }

    /// A whole number from 1 to `max`.
    fn number(&mut self, fields: &Fields<'_>, key: &'static str, max: i64) -> Option<i64> {
        let number = fields.entries.get(key)?.as_i64().filter(|number| (1..=max).contains(number));
        if number.is_none() {
            self.problem(&fields.path_to(key), &format!("it must be a whole number from 1 to {max}"));
        }
        number
    }

    /// Adds a problem with the value that `path` leads to.
    fn problem(&mut self, path: &[&str], message: &str) {
        let line = line_of(self.text, path).map_or_else(String::new, |line| format!("line {line}, "));
        let place = if path.is_empty() { "the file".to_owned() } else { path.join(".") };
        self.problems.push(format!("{line}{place}: {message}"));
    }
}

fn hint(word: &str, known: &[&str]) -> String {
    nearest(word, known.iter().copied()).map_or_else(String::new, |known| format!(", did you mean {known}?"))
}

/// Returns the line of the key at the end of `path`, found as text: each key behind the one before it.
fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    let mut from = 0;
    let mut at = None;
    for key in path {
        let begins = |start: &usize| {
            let before = text[..*start].chars().next_back();
            let after = text[start + key.len()..].trim_start_matches(['"', '\'', ' ']);
            after.starts_with(':') && before.is_none_or(|letter| " \t\n{,\"'".contains(letter))
        };
        let start = text[from..].match_indices(key).map(|(start, _)| from + start).find(begins)?;
        at = Some(start);
        from = start + key.len();
    }
    at.map(|start| text[..start].matches('\n').count() + 1)
}
