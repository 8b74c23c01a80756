//! A tree of YAML values -> the main configuration: the whole, the service, schedules and jobs.

mod api;

pub(super) use self::api::{check_token, check_url};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backy_store::JobName;
use backy_store::select;
use serde_yaml::Value;

use super::{ApiConfig, BASE_DIR_DEFAULT, STALL_LIMIT_DEFAULT, ServiceConfig, ServiceJob};
use crate::config::problem::{Problem, clip};
use crate::config::reader::{Fields, Reader, hint};
use crate::policy::Schedule;
use crate::source::SourceConfig;

const TOP_KEYS: [&str; 5] = ["global", "api", "peers", "schedules", "jobs"];
const GLOBAL_KEYS: [&str; 8] = [
    "base-dir",
    "worker-limit",
    "stall-limit",
    "backup-completed-callback",
    "status-file",
    "status-interval",
    "telnet-addrs",
    "telnet-port",
];
/// Keys of version 2.5 whose work the API does.
const OBSOLETE_KEYS: [&str; 4] = ["status-file", "status-interval", "telnet-addrs", "telnet-port"];
const API_KEYS: [&str; 5] = ["addrs", "port", "tokens", "tokens-file", "cli-default"];
const JOB_KEYS: [&str; 5] = ["schedule", "source", "verify", "verify-limit", "compression-level"];

pub(super) const CALLBACK: &str = "backup-completed-callback";

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
        let global = self.section(&fields, "global", false, Some(&GLOBAL_KEYS));
        let base_dir = match global.as_ref().filter(|global| global.get("base-dir").is_some()) {
            Some(global) => self.base_dir(global),
            None => Some(PathBuf::from(BASE_DIR_DEFAULT)),
        };
        let worker_limit =
            global.as_ref().and_then(|global| self.number(global, "worker-limit", WORKERS_MAX));
        let stall_limit = global.as_ref().and_then(|global| self.stall_limit(global));
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
            stall_limit: stall_limit.unwrap_or(STALL_LIMIT_DEFAULT),
            callback_mark: self.common.located(&["global", CALLBACK], "").mark,
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

    fn stall_limit(&mut self, global: &Fields<'_>) -> Option<Duration> {
        let secs = self.common.duration(global, "stall-limit")?;
        u64::try_from(secs).ok().map(Duration::from_secs)
    }

    fn callback(&mut self, global: &Fields<'_>) -> Option<PathBuf> {
        let path = PathBuf::from(self.common.text(global, CALLBACK)?);
        if path.is_relative() && path.components().count() > 1 {
            self.common
                .problem(&global.path_to(CALLBACK), "it must be an absolute path or the name of a command");
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

    /// Returns every schedule that is named; `None` for those with problems, so that jobs are not blamed for it.
    fn schedules(&mut self, fields: &Fields<'_>) -> BTreeMap<String, Option<Schedule>> {
        let mut schedules = BTreeMap::new();
        for (&name, value) in &fields.entries {
            let place = fields.path_to(name);
            let schedule = self.common.schedule(value, place.clone());
            for tag in schedule.iter().flat_map(|schedule| schedule.rules.keys()) {
                // In a job's own file an old tag does no harm; here somebody may still choose another.
                if let Err(error) = select::check_new_tags([tag]) {
                    self.common.problem(&[&place[..], &[tag.as_str()]].concat(), &error.to_string());
                }
            }
            if schedule.as_ref().is_some_and(|schedule| schedule.rules.is_empty())
                && value.as_mapping().is_none_or(|mapping| mapping.is_empty())
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
        let config = self.common.complete(&fields, source, schedule)?;
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
