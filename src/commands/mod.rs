//! One file for each command, and what they share: where the job is, and its revisions.

pub(crate) mod accept;
pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod client;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod distrust;
pub(crate) mod doctor;
pub(crate) mod expire;
pub(crate) mod find;
pub(crate) mod forget;
pub(crate) mod index;
pub(crate) mod init;
pub(crate) mod mount;
pub(crate) mod peers;
pub(crate) mod pull;
pub(crate) mod purge;
pub(crate) mod push;
pub(crate) mod release;
pub(crate) mod restore;
pub(crate) mod scheduler;
pub(crate) mod status;
pub(crate) mod tags;
pub(crate) mod undelete;
pub(crate) mod unmount;
pub(crate) mod upgrade;
pub(crate) mod verify;

use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use backy_sched::JobConfig;
use backy_sched::service::config::PATH_DEFAULT;
use backy_sched::source::rbd::{Environment, Patience};
use backy_store::{Job, Listing, Location, Repository, Revision, Zone};
use clap::CommandFactory as _;

use crate::cli::{Cli, Command, Global};
use crate::failure::{self, Outcome, Result};
use crate::logging::Log;
use crate::output::terminal;
use crate::output::text::count;

/// The most threads that `--threads` takes.
const THREADS_MAX: i64 = 256;

/// What every command gets beside its own arguments.
pub(crate) struct Context {
    log: Log,
    /// `-b` as it was given.
    given_dir: Option<PathBuf>,
    /// `-c` as it was given.
    given_config: Option<PathBuf>,
    /// The command's name, for the log; `None` for those that leave no trace there.
    logged_name: Option<&'static str>,
    /// The zone in which dates are shown and read.
    pub(crate) zone: Zone,
}

/// Runs one command to its exit status.
pub(crate) fn run(cli: Cli) -> ExitCode {
    let Some(command) = cli.command else {
        return failure::conclude(usage());
    };
    let verdict = command.is_verdict();
    failure::conclude(match (Context::start(cli.global, &command), verdict) {
        (Ok(context), _) => dispatch(&context, command),
        // A check that cannot even begin has an answer all the same.
        (Err(error), Some(as_json)) => check::conclude(Err(error), as_json),
        (Err(error), None) => Err(error),
    })
}

fn usage() -> Result {
    terminal::print(Cli::command().render_help().to_string())?;
    Ok(Outcome::Done)
}

fn dispatch(context: &Context, command: Command) -> Result {
    match command {
        Command::Init(arguments) => init::run(context, &arguments),
        Command::Backup(arguments) => backup::run(context, &arguments),
        Command::Status(arguments) => status::run(context, &arguments),
        Command::Find(arguments) => find::run(context, &arguments),
        Command::Restore(arguments) => restore::run(context, &arguments),
        Command::Mount(arguments) => mount::run(context, &arguments),
        Command::Unmount(arguments) => unmount::run(context, &arguments),
        Command::Verify(arguments) => verify::run(context, &arguments),
        Command::Distrust(arguments) => distrust::run(context, &arguments),
        Command::Accept(arguments) => accept::run(context, &arguments),
        Command::Tags(arguments) => tags::run(context, &arguments),
        Command::Expire(arguments) => expire::run(context, &arguments),
        Command::Forget(arguments) => forget::run(context, &arguments),
        Command::Undelete(arguments) => undelete::run(context, &arguments),
        Command::Purge(arguments) => purge::run(context, &arguments),
        Command::Release(arguments) => release::run(context, &arguments),
        Command::Pull(arguments) => pull::run(context, &arguments),
        Command::Push(arguments) => push::run(context, &arguments),
        Command::Upgrade(arguments) => upgrade::run(context, &arguments),
        Command::Index(arguments) => index::run(context, &arguments),
        Command::Check(arguments) => check::run(context, &arguments),
        Command::Scheduler(arguments) => scheduler::run(context, &arguments),
        Command::Client(arguments) => client::run(context, &arguments),
        Command::Config(arguments) => config::run(context, &arguments),
        Command::Doctor(arguments) => doctor::run(context, &arguments),
        Command::Completion(arguments) => completion::run(&arguments),
    }
}

impl Context {
    fn start(global: Global, command: &Command) -> anyhow::Result<Self> {
        let log = Log::start(global.logfile.as_deref(), global.verbose, global.taskid)?;
        // A log that was asked for by name gets its line from every command.
        let logged_name = (!command.only_reads() || global.logfile.is_some()).then(|| command.name());
        let (given_dir, given_config) = (global.backupdir, global.config);
        Ok(Self { log, given_dir, given_config, logged_name, zone: Zone::system() })
    }

    /// Returns what marks the log lines of this run.
    pub(crate) fn task_id(&self) -> &str {
        self.log.task_id()
    }

    /// Whether `-b` was given.
    pub(crate) fn has_given_dir(&self) -> bool {
        self.given_dir.is_some()
    }

    /// Logs to this file for a long time, unless another was asked for by name.
    pub(crate) fn log_to(&self, path: &Path) {
        self.log.stay_in_file(path);
    }

    /// Returns the main configuration's path, absolute: what `-c` names, else the usual one.
    pub(crate) fn config_path(&self) -> anyhow::Result<PathBuf> {
        absolute(self.config_name())
    }

    /// Returns the main configuration's path as it was given.
    pub(crate) fn config_name(&self) -> &Path {
        self.given_config.as_deref().unwrap_or(Path::new(PATH_DEFAULT))
    }

    /// Whether `-c` was given.
    pub(crate) fn has_given_config(&self) -> bool {
        self.given_config.is_some()
    }

    /// Returns the directory that `-b` names, absolute; the current one without it.
    pub(crate) fn dir(&self) -> anyhow::Result<PathBuf> {
        match &self.given_dir {
            Some(dir) => absolute(dir),
            None => working_dir().map_or_else(|| absolute(Path::new(".")), Ok),
        }
    }

    /// Notes in the log that the command was called.
    pub(crate) fn log_call(&self) {
        if let Some(command) = self.logged_name {
            tracing::info!(target: crate::logging::QUIET, command, "invoked");
        }
    }

    /// Finds the store, and the job if the directory is one; the log goes on there.
    pub(crate) fn location(&self) -> anyhow::Result<Location> {
        let location = Repository::discover(&self.dir()?)?;
        if location.repository.is_original() {
            // It is only looked at: no log is begun there.
            return Ok(location);
        }
        match &location.job {
            Some(job) => self.log.enter_job(job.name(), job.dir()),
            None => self.log.enter_dir(location.repository.root()),
        }
        self.log_call();
        Ok(location)
    }

    /// Finds the job.
    pub(crate) fn job(&self) -> anyhow::Result<Job> {
        Ok(self.location()?.into_job()?)
    }
}

/// Returns a job's revisions, oldest first, after warning of those that cannot be listed.
pub(crate) fn revisions(job: &Job) -> anyhow::Result<Vec<Revision>> {
    Ok(listing(job)?.revisions)
}

/// As [`revisions`], with the findings.
pub(crate) fn listing(job: &Job) -> anyhow::Result<Listing> {
    let listing =
        job.revisions().with_context(|| format!("cannot list the revisions of job {}", job.name()))?;
    for finding in &listing.damaged {
        terminal::warn(finding);
    }
    if listing.damaged.len() > 1 {
        terminal::warn(format_args!("{} revisions cannot be listed", listing.damaged.len()));
    }
    Ok(listing)
}

/// Reads the job's configuration.
pub(crate) fn load_config(job: &Job) -> anyhow::Result<JobConfig> {
    JobConfig::load(&job.config_path())
        .with_context(|| format!("cannot read the configuration of job {}", job.name()))
}

/// What the environment says about Ceph and Consul.
pub(crate) fn ceph_environment() -> Environment {
    let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Environment {
        rbd: std::env::var_os("BACKY_RBD").filter(|program| !program.is_empty()),
        ceph_args: text("CEPH_ARGS"),
        cluster: text("CEPH_CLUSTER"),
        consul: text("CONSUL_HTTP_ADDR"),
        patience: Patience::default(),
    }
}

/// Says on standard error that a specification selected no revision; that is no failure.
pub(crate) fn note_nothing_selected(spec: &str) -> Outcome {
    terminal::note(format_args!("no revision matches {spec:?}"));
    Outcome::Done
}

/// Returns how many threads to use: as told, else one for each processor.
pub(crate) fn thread_count(told: Option<u16>) -> usize {
    told.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
}

/// Parser of `--threads`.
pub(crate) fn threads_parser() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=THREADS_MAX)
}

/// Returns the names of revisions for a message: `7Qk2, 9xYz`, shortened when there are many.
pub(crate) fn id_list(revisions: &[Revision]) -> String {
    const SHOWN_MAX: usize = 5;
    let mut ids: Vec<String> =
        revisions.iter().take(SHOWN_MAX).map(|revision| revision.id.to_string()).collect();
    if revisions.len() > SHOWN_MAX {
        ids.push(format!("and {}", count(revisions.len() - SHOWN_MAX, "other", "others")));
    }
    ids.join(", ")
}

/// Returns tags as one comma-separated text.
pub(crate) fn join_tags<'t>(tags: impl IntoIterator<Item = &'t backy_store::Tag>) -> String {
    tags.into_iter().map(backy_store::Tag::as_str).collect::<Vec<_>>().join(",")
}

/// The working directory by the name under which the shell entered it, which may lead through a link; `None` when the
/// shell does not say.
fn working_dir() -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt as _;
    let named = PathBuf::from(std::env::var_os("PWD")?);
    let is_plain = named.is_absolute() && !named.components().any(|part| part == Component::ParentDir);
    let (there, here) = (std::fs::metadata(&named).ok()?, std::fs::metadata(".").ok()?);
    (is_plain && (there.dev(), there.ino()) == (here.dev(), here.ino())).then_some(named)
}

/// Makes a path absolute. Links are followed only where `..` would otherwise mean another directory: up to the last one.
pub(crate) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let parts: Vec<Component<'_>> = path.components().collect();
    if let Some(last) = parts.iter().rposition(|part| *part == Component::ParentDir) {
        let (climbing, rest) = parts.split_at(last + 1);
        if let Ok(real) = climbing.iter().collect::<PathBuf>().canonicalize() {
            return Ok(real.join(rest.iter().collect::<PathBuf>()));
        }
    }
    // An empty argument means what a shell's empty variable means: nothing.
    anyhow::ensure!(!path.as_os_str().is_empty(), failure::usage("the path of a directory is empty", ""));
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_absolute_without_following_links() {
        assert_eq!(absolute(Path::new("/x/./y")).unwrap(), Path::new("/x/y"));
        assert_eq!(absolute(Path::new("/usr/..")).unwrap(), Path::new("/"));
        assert_eq!(absolute(Path::new("/usr/../no/such")).unwrap(), Path::new("/no/such"));
        assert!(absolute(Path::new("a")).unwrap().ends_with("a"));
        assert!(absolute(Path::new("")).is_err());
    }

    #[test]
    fn lists_of_tags_are_joined_in_order() {
        assert_eq!(join_tags(&backy_store::Tag::parse_list("weekly, daily").unwrap()), "daily,weekly");
    }
}
