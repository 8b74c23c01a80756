//! The main configuration, `/etc/backy.conf`: where the store is, which jobs there are and when they run, who
//! may ask. `docs/config.md` describes every key.
//!
//! A file is taken whole or not at all. Whatever is wrong with it, `load` fails with all problems, and a
//! service that reloads keeps what it has: an empty file, or one that lost its `jobs`, is a problem like any
//! other and never means "no jobs".
//!
//! Secrets are [`Secret`]s from the moment they are read, and no message repeats one.

mod reader;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use backy_store::JobName;
use nix::unistd::{AccessFlags, access};

use crate::config::document;
use crate::config::problem::{Mark, Problem, unsafe_problem};
use crate::config::reader::Reader;
use crate::config::{JobConfig, read_text};
use crate::error::{Error, Result};
use crate::policy::Schedule;
use crate::service::rights::ApiToken;
use crate::source::Secret;
use backy_store::fs::ownership::{self, Secrecy};

/// Where the main configuration is, unless told otherwise.
pub const PATH_DEFAULT: &str = "/etc/backy.conf";
/// The base directory, unless told otherwise.
pub const BASE_DIR_DEFAULT: &str = "/srv/backy";
/// The port of the API, unless told otherwise.
pub const PORT_DEFAULT: u16 = 6023;
/// How long a child process may do nothing, unless told otherwise.
pub const STALL_LIMIT_DEFAULT: Duration = Duration::from_secs(30 * 60);

/// Largest main configuration: some 20,000 jobs.
const SIZE_BYTES_MAX: u64 = 4 << 20;
/// Largest file with a token or tokens.
const TOKENS_BYTES_MAX: u64 = 1 << 20;

/// The main configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceConfig {
    /// The directory with the store and the directories of all jobs; absolute.
    pub base_dir: PathBuf,
    /// How many backups each pool of workers runs at a time, at least 1.
    pub worker_limit: u32,
    /// A child process that does nothing for so long is ended.
    pub stall_limit: Duration,
    /// The program that is called after each backup, with the job's name.
    pub completed_callback: Option<PathBuf>,
    /// Where that is said.
    callback_mark: Option<Mark>,
    /// Who may ask the service, and where.
    pub api: ApiConfig,
    /// Other servers by name.
    pub peers: BTreeMap<String, PeerConfig>,
    /// All schedules by name, those that no job uses too.
    pub schedules: BTreeMap<String, Schedule>,
    /// The jobs by name.
    pub jobs: BTreeMap<JobName, ServiceJob>,
    /// What is accepted and has no effect, for people.
    pub notes: Vec<Problem>,
}

/// One job of the main configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceJob {
    /// The name of its schedule.
    pub schedule_name: String,
    /// What belongs into its `config` file, with the schedule itself.
    pub config: JobConfig,
}

/// The service's API.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfig {
    /// The addresses to listen on; at least one.
    pub addrs: Vec<IpAddr>,
    /// The port to listen on.
    pub port: u16,
    /// Tokens, who has them and what they allow. Not a map by token, so that nobody compares them but in constant
    /// time.
    pub tokens: Vec<ApiToken>,
    /// What `backy client` uses when it is told nothing.
    pub cli_default: Option<PeerConfig>,
}

/// How to reach a service.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerConfig {
    /// Its address, `http://` or `https://`, without a slash at the end.
    pub url: String,
    /// What it wants to be shown.
    pub token: Secret,
    /// Whether its revisions count in the verdicts on the jobs here.
    pub counts: bool,
}

impl Default for ApiConfig {
    fn default() -> Self {
        let addrs = vec![IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)];
        Self { addrs, port: PORT_DEFAULT, tokens: Vec::new(), cli_default: None }
    }
}

impl ApiConfig {
    /// Returns where a client on the same machine finds the service. The loopback address of IPv4 comes first: every
    /// machine has it, and the service goes on without `::1` where that is switched off.
    pub fn local_url(&self) -> String {
        let port = self.port;
        let sure = |addr: &&IpAddr| addr.is_ipv4() && (addr.is_loopback() || addr.is_unspecified());
        match self.addrs.iter().find(sure).or(self.addrs.first()) {
            Some(IpAddr::V4(addr)) if !addr.is_unspecified() => format!("http://{addr}:{port}"),
            Some(IpAddr::V6(addr)) if !addr.is_unspecified() => format!("http://[{addr}]:{port}"),
            Some(IpAddr::V6(_)) => format!("http://[::1]:{port}"),
            _ => format!("http://127.0.0.1:{port}"),
        }
    }
}

impl PeerConfig {
    /// Checks an address and a token that were given elsewhere than in a configuration.
    pub fn new(url: &str, token: &str) -> Result<Self, String> {
        reader::check_url(url).map_err(|why| format!("the URL cannot be used: {why}"))?;
        reader::check_token(token).map_err(|why| format!("the token {why}"))?;
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            token: Secret::new(token.to_owned()),
            counts: false,
        })
    }

    /// Whether the token can be read on the way: it goes to another machine without encryption.
    pub fn sends_openly(&self) -> bool {
        let Some(rest) = self.url.strip_prefix("http://") else { return false };
        let authority = rest.split('/').next().unwrap_or_default();
        let host = match authority.strip_prefix('[') {
            Some(inside) => inside.split(']').next().unwrap_or_default(),
            None => authority.split(':').next().unwrap_or_default(),
        };
        let is_here = host.eq_ignore_ascii_case("localhost")
            || host.parse::<IpAddr>().is_ok_and(|addr| addr.is_loopback());
        !is_here
    }
}

impl ServiceConfig {
    /// Reads the main configuration, and the files with tokens that it names. Files that others could have written are
    /// refused: it names commands and says who may ask for what.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_text(path, SIZE_BYTES_MAX, Secrecy::Public)?;
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let invalid = |problems| Error::ConfigInvalid { path: path.to_owned(), problems };
        check_parents(path).map_err(|problem| invalid(vec![problem]))?;
        let read = |file: &Path| {
            let path = dir.join(file);
            let text = read_text(&path, TOKENS_BYTES_MAX, Secrecy::Secret);
            let text = text.and_then(|text| match check_parents(&path) {
                Ok(()) => Ok(text),
                Err(problem) => Err(Error::ConfigInvalid { path, problems: vec![problem] }),
            });
            text.map_err(|error| match error {
                Error::ConfigUnreadable { source, .. } => format!("cannot read {}: {source}", file.display()),
                Error::ConfigInvalid { problems, .. } => {
                    let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                    format!("cannot use {}: {}", file.display(), problems.join("; "))
                }
                other => other.to_string(),
            })
        };
        let config = Self::parse(&text, &read).map_err(invalid)?;
        config.check_callback().map_err(|problem| invalid(vec![problem]))?;
        Ok(config)
    }

    /// The callback runs as the service does: nobody else may be able to change it. That it is missing is another matter.
    fn check_callback(&self) -> Result<(), Problem> {
        let Some(program) = self.completed_callback.as_deref().filter(|path| path.is_file()) else {
            return Ok(());
        };
        ownership::check(program, Secrecy::Public).map_err(|error| Problem {
            place: "global.backup-completed-callback".to_owned(),
            ..unsafe_problem(&error)
        })
    }

    /// What cannot work on this machine as it is now, though the configuration itself is right. It stops nothing.
    /// `search_path` is what `PATH` holds.
    pub fn doubts(&self, search_path: &OsStr) -> Vec<Problem> {
        let unusable = self.completed_callback.as_deref();
        let unusable = unusable.and_then(|program| why_not_run(program, search_path));
        let doubt = |message| Problem {
            mark: self.callback_mark,
            place: format!("global.{}", reader::CALLBACK),
            message,
        };
        unusable.map(doubt).into_iter().collect()
    }

    /// Reads the text of a main configuration; `read_file` gives the text of the files with tokens that it
    /// names, or says why not. The error is the list of all problems.
    pub fn parse(
        text: &str,
        read_file: &dyn Fn(&Path) -> Result<String, String>,
    ) -> Result<Self, Vec<Problem>> {
        let (value, places) = document::parse(text)?;
        let mut reader = reader::ServiceReader { common: Reader::new(places), read_file, notes: Vec::new() };
        let config = reader.service(&value);
        reader.common.finish(config)
    }
}

/// Why a program, given by its path or looked for in the directories of `search_path`, cannot be run.
fn why_not_run(program: &Path, search_path: &OsStr) -> Option<String> {
    let can_run = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    if program.is_absolute() {
        return match (program.is_file(), can_run(program)) {
            (_, true) => None,
            (true, false) => Some("this file may not be executed: `chmod +x` allows it".to_owned()),
            (false, false) => Some("there is no such program".to_owned()),
        };
    }
    let is_found = std::env::split_paths(search_path).any(|dir| can_run(&dir.join(program)));
    (!is_found).then(|| "no directory of PATH has this program; an absolute path is safer".to_owned())
}

fn check_parents(path: &Path) -> Result<(), Problem> {
    ownership::check_parents(path).map_err(|error| unsafe_problem(&error))
}

#[cfg(test)]
mod tests;
