//! A tree of YAML values -> the main configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use backy_store::JobName;
use serde_yaml::Value;

use super::{ApiConfig, PORT_DEFAULT, PeerConfig, ServiceConfig, ServiceJob};
use crate::config::problem::{Problem, clip};
use crate::config::reader::{Fields, Reader, hint};
use crate::config::{JobConfig, VerifyMode, document};
use crate::policy::Schedule;
use crate::source::{Secret, SourceConfig};

const TOP_KEYS: [&str; 5] = ["global", "api", "peers", "schedules", "jobs"];
const GLOBAL_KEYS: [&str; 7] = [
    "base-dir",
    "worker-limit",
    "backup-completed-callback",
    "status-file",
    "status-interval",
    "telnet-addrs",
    "telnet-port",
];
/// Keys of version 2.5 whose work the API does.
const OBSOLETE_KEYS: [&str; 4] = ["status-file", "status-interval", "telnet-addrs", "telnet-port"];
const API_KEYS: [&str; 5] = ["addrs", "port", "tokens", "tokens-file", "cli-default"];
const PEER_KEYS: [&str; 3] = ["url", "token", "token-file"];
const JOB_KEYS: [&str; 4] = ["schedule", "source", "verify", "compression-level"];

const WORKERS_MAX: i64 = 1024;

/// Reads with the means of all configuration files, and from the files with tokens.
pub(super) struct ServiceReader<'f> {
    pub(super) common: Reader,
    pub(super) read_file: &'f dyn Fn(&Path) -> Result<String, String>,
    pub(super) notes: Vec<Problem>,
}

impl ServiceReader<'_> {
    /// Reads the whole file.
    pub(super) fn service(&mut self, value: &Value) -> Option<ServiceConfig> {
        if value.is_null() {
            self.common.problem(&[], "it is empty");
            return None;
        }
        let fields = self.common.fields(value, Vec::new(), Some(&TOP_KEYS))?;
        let global = self.section(&fields, "global", true, Some(&GLOBAL_KEYS));
        let base_dir = global.as_ref().and_then(|global| self.base_dir(global));
        let worker_limit =
            global.as_ref().and_then(|global| self.number(global, "worker-limit", WORKERS_MAX));
        let completed_callback = global.as_ref().and_then(|global| self.callback(global));
        global.iter().for_each(|global| self.note_obsolete(global));
        let api = self.section(&fields, "api", false, Some(&API_KEYS));
        let api = api.map_or_else(ApiConfig::default, |api| self.api(&api));
        let peers = self.section(&fields, "peers", false, None).map(|peers| self.peers(&peers));
        let schedules =
            self.section(&fields, "schedules", true, None).map(|schedules| self.schedules(&schedules));
        let jobs = self.section(&fields, "jobs", true, None).map(|jobs| self.jobs(&jobs, schedules.as_ref()));
        Some(ServiceConfig {
            base_dir: base_dir?,
            worker_limit: u32::try_from(worker_limit.unwrap_or(1)).ok()?,
            completed_callback,
            api,
            peers: peers.unwrap_or_default(),
            schedules: schedules?
                .into_iter()
                .filter_map(|(name, schedule)| Some((name, schedule?)))
                .collect(),
            jobs: jobs?,
            notes: std::mem::take(&mut self.notes),
        })
    }

    /// Takes a mapping at the top apart. An empty one is written `{}`; a bare key is what is left of a file that
    /// was cut.
    fn section<'v>(
        &mut self,
        fields: &Fields<'v>,
        key: &'v str,
        is_required: bool,
        known: Option<&[&str]>,
    ) -> Option<Fields<'v>> {
        match fields.entries.get(key) {
            None if is_required => self.common.missing(fields, key),
            None => None,
            Some(Value::Null) if is_required => {
                self.common.problem(&[key], "nothing follows it; if nothing is meant, write {}");
                None
            }
            Some(Value::Null) => None,
            Some(value) => self.common.fields(value, vec![key], known),
        }
    }

    fn number(&mut self, fields: &Fields<'_>, key: &'static str, max: i64) -> Option<i64> {
        fields.get(key)?;
        self.common.number(fields, key, max)
    }

    fn base_dir(&mut self, global: &Fields<'_>) -> Option<PathBuf> {
        let path = PathBuf::from(self.common.required(global, "base-dir")?);
        if path.is_absolute() {
            return Some(path);
        }
        self.common.problem(&global.path_to("base-dir"), "it must be an absolute path, beginning with /");
        None
    }

    fn callback(&mut self, global: &Fields<'_>) -> Option<PathBuf> {
        const KEY: &str = "backup-completed-callback";
        let path = PathBuf::from(self.common.text(global, KEY)?);
        if path.is_relative() && path.components().count() > 1 {
            self.common.problem(&global.path_to(KEY), "it must be an absolute path or the name of a command");
        }
        Some(path)
    }

    fn note_obsolete(&mut self, global: &Fields<'_>) {
        for key in OBSOLETE_KEYS.into_iter().filter(|key| global.entries.contains_key(key)) {
            let path = global.path_to(key);
            let message = "it has no effect any more: the API does its work; the key can be removed";
            self.notes.push(self.common.located(&path, message));
        }
    }

    fn api(&mut self, fields: &Fields<'_>) -> ApiConfig {
        let usual = ApiConfig::default();
        let addrs = fields.get("addrs").map(|value| self.addrs(value, &fields.path_to("addrs")));
        let port = self.number(fields, "port", i64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok());
        let mut api = ApiConfig {
            addrs: addrs.unwrap_or(usual.addrs),
            port: port.unwrap_or(PORT_DEFAULT),
            tokens: fields
                .get("tokens")
                .map_or_else(Vec::new, |value| self.tokens(value, &fields.path_to("tokens"))),
            cli_default: None,
        };
        if let Some(text) = self.file(fields, "tokens-file") {
            let path = fields.path_to("tokens-file");
            match document::parse(&text) {
                Ok((value, _)) => api.tokens.extend(self.tokens(&value, &path)),
                // The lines are those of the other file, which is named.
                Err(problems) => {
                    problems
                        .iter()
                        .for_each(|one| self.common.problem(&path, &format!("in that file: {one}")));
                }
            }
        }
        self.check_distinct(&api.tokens, fields);
        if let Some(value) = fields.get("cli-default") {
            let local_url = api.local_url();
            api.cli_default = self.peer(value, fields.path_to("cli-default"), Some(local_url));
        }
        api
    }

    /// Addresses come as one text with commas or as a list.
    fn addrs(&mut self, value: &Value, place: &[&str]) -> Vec<IpAddr> {
        let words: Vec<&str> = match value {
            Value::String(text) => text.split(',').map(str::trim).collect(),
            Value::Sequence(list) => list.iter().map(|item| item.as_str().unwrap_or_default()).collect(),
            _ => vec![""],
        };
        if words.is_empty() {
            self.common.problem(place, "there must be at least one address");
        }
        let mut addrs = Vec::new();
        for word in words {
            match word.parse::<IpAddr>() {
                Ok(addr) => addrs.push(addr),
                Err(_) => {
                    let message = format!(
                        "{:?} is not an IP address; write addresses with commas between them, as in \"::1, 127.0.0.1\"",
                        clip(word)
                    );
                    self.common.problem(place, &message);
                }
            }
        }
        addrs
    }

    /// Reads token -> name. No message has a key of this mapping in it.
    fn tokens(&mut self, value: &Value, place: &[&str]) -> Vec<(Secret, String)> {
        let Value::Mapping(mapping) = value else {
            self.common.problem(place, "it must be a mapping of tokens to names");
            return Vec::new();
        };
        let mut tokens = Vec::new();
        for (number, (token, name)) in mapping.iter().enumerate() {
            let number = number + 1;
            let name = name.as_str().filter(|name| !name.is_empty());
            if name.is_none() {
                self.common.problem(place, &format!("the name that follows token {number} must be a text"));
            }
            match token.as_str().map(check_token) {
                Some(Ok(())) => {}
                Some(Err(why)) => self.common.problem(place, &format!("token {number} {why}")),
                None => {
                    self.common.problem(place, &format!("token {number} must be a text; put it into quotes"))
                }
            }
            if let (Some(token), Some(name)) = (token.as_str(), name) {
                tokens.push((Secret::new(token.to_owned()), name.to_owned()));
            }
        }
        tokens
    }

    fn check_distinct(&mut self, tokens: &[(Secret, String)], fields: &Fields<'_>) {
        for (place, (token, name)) in tokens.iter().enumerate() {
            if let Some((_, first)) = tokens[..place].iter().find(|(other, _)| other == token) {
                let message = format!("{:?} and {:?} have the same token", clip(first), clip(name));
                self.common.problem(&fields.path_to("tokens-file"), &message);
            }
        }
    }

    fn peers(&mut self, fields: &Fields<'_>) -> BTreeMap<String, PeerConfig> {
        let mut peers = BTreeMap::new();
        for (&name, value) in &fields.entries {
            if let Some(peer) = self.peer(value, fields.path_to(name), None) {
                peers.insert(name.to_owned(), peer);
            }
        }
        peers
    }

    fn peer<'v>(
        &mut self,
        value: &'v Value,
        place: Vec<&'v str>,
        url_default: Option<String>,
    ) -> Option<PeerConfig> {
        let fields = self.common.fields(value, place, Some(&PEER_KEYS))?;
        let url = match url_default {
            Some(usual) if fields.get("url").is_none() => Some(usual),
            _ => self.common.required(&fields, "url"),
        };
        let url = url.and_then(|url| match check_url(&url) {
            Ok(()) => Some(url.trim_end_matches('/').to_owned()),
            Err(why) => {
                self.common.problem(&fields.path_to("url"), why);
                None
            }
        });
        let token = self.token(&fields);
        Some(PeerConfig { url: url?, token: token? })
    }

    fn token(&mut self, fields: &Fields<'_>) -> Option<Secret> {
        let (key, token) = match (fields.get("token").is_some(), fields.get("token-file").is_some()) {
            (true, true) => {
                self.common
                    .problem(&fields.path_to("token-file"), "there is a token already: keep one of the two");
                return None;
            }
            (false, false) => return self.common.missing(fields, "token"),
            (true, false) => ("token", self.common.text(fields, "token")?),
            (false, true) => ("token-file", self.file(fields, "token-file")?.trim().to_owned()),
        };
        match check_token(&token) {
            Ok(()) => Some(Secret::new(token)),
            Err(why) => {
                self.common.problem(&fields.path_to(key), &format!("the token {why}"));
                None
            }
        }
    }

    /// Returns the text of the file that a key names.
    fn file(&mut self, fields: &Fields<'_>, key: &'static str) -> Option<String> {
        let path = PathBuf::from(self.common.text(fields, key)?);
        match (self.read_file)(&path) {
            Ok(text) => Some(text),
            Err(why) => {
                self.common.problem(&fields.path_to(key), &why);
                None
            }
        }
    }

    /// Returns every schedule that is named; `None` for those with problems, so that jobs are not blamed for it.
    fn schedules(&mut self, fields: &Fields<'_>) -> BTreeMap<String, Option<Schedule>> {
        let mut schedules = BTreeMap::new();
        for (&name, value) in &fields.entries {
            let place = fields.path_to(name);
            let schedule = self.common.schedule(value, place.clone());
            if schedule.as_ref().is_some_and(|schedule| schedule.rules.is_empty())
                && !value.as_mapping().is_some_and(|mapping| !mapping.is_empty())
            {
                self.common.problem(&place, "it has no tags: its jobs would never run");
            }
            schedules.insert(name.to_owned(), schedule);
        }
        schedules
    }

    fn jobs(
        &mut self,
        fields: &Fields<'_>,
        schedules: Option<&BTreeMap<String, Option<Schedule>>>,
    ) -> BTreeMap<JobName, ServiceJob> {
        let mut jobs = BTreeMap::new();
        for (&name, value) in &fields.entries {
            let place = fields.path_to(name);
            let job = self.job(value, place.clone(), schedules);
            match JobName::parse(name) {
                Ok(name) => jobs.extend(job.map(|job| (name, job))),
                Err(error) => self.common.problem(&place, &error.to_string()),
            }
        }
        jobs
    }

    fn job<'v>(
        &mut self,
        value: &'v Value,
        place: Vec<&'v str>,
        schedules: Option<&BTreeMap<String, Option<Schedule>>>,
    ) -> Option<ServiceJob> {
        let fields = self.common.fields(value, place, Some(&JOB_KEYS))?;
        let source = match fields.get("source") {
            Some(source) => self.common.source(source, fields.path_to("source")),
            None => self.common.missing(&fields, "source"),
        };
        if let Some(SourceConfig::File(file)) = &source
            && file.filename.is_relative()
        {
            let mut path = fields.path_to("source");
            path.push("filename");
            self.common.problem(&path, "it must be an absolute path, beginning with /");
        }
        let schedule_name = self.common.required(&fields, "schedule");
        let schedule = schedule_name.as_ref().and_then(|name| self.schedule_named(&fields, name, schedules));
        let (verify, compression_level) = self.common.comparison(&fields);
        let source = source?;
        let config = JobConfig {
            verify: verify.unwrap_or_else(|| VerifyMode::usual(&source)),
            source,
            schedule: schedule?,
            compression_level: compression_level?,
        };
        Some(ServiceJob { schedule_name: schedule_name?, config })
    }

    fn schedule_named(
        &mut self,
        fields: &Fields<'_>,
        name: &str,
        schedules: Option<&BTreeMap<String, Option<Schedule>>>,
    ) -> Option<Schedule> {
        // Without a list of schedules, that is the problem, and it has been told.
        let schedules = schedules?;
        if let Some(schedule) = schedules.get(name) {
            return schedule.clone();
        }
        let known: Vec<&str> = schedules.keys().map(String::as_str).collect();
        let message = format!("there is no schedule {:?}{}", clip(name), hint(name, &known));
        self.common.problem(&fields.path_to("schedule"), &message);
        None
    }
}

/// A token goes into a header of HTTP.
fn check_token(token: &str) -> Result<(), &'static str> {
    if token.is_empty() {
        Err("is empty")
    } else if token.len() > 1024 {
        Err("is longer than 1024 bytes")
    } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("must be of printable ASCII characters, without blanks")
    } else {
        Ok(())
    }
}

fn check_url(url: &str) -> Result<(), &'static str> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let Some(rest) = rest else { return Err("it must begin with http:// or https://") };
    let host = rest.split('/').next().unwrap_or_default();
    if host.contains('@') {
        Err("it must not have a name or password in it; the token goes into `token`")
    } else if host.is_empty() || host.starts_with(':') {
        Err("it has no host")
    } else if host.matches(':').count() > 1 && !host.starts_with('[') {
        Err("an IPv6 address in it must be in brackets, as in http://[::1]:6023")
    } else if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("it must be of printable ASCII characters, without blanks")
    } else {
        Ok(())
    }
}
