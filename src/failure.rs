//! What a command that failed says, and with which status it ends. Libraries know neither hints nor exit
//! statuses; both are found here by the kind of error, never by its text.

use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use backy_fuse::Error as MountError;
use backy_sched::Error as SchedError;
use backy_sched::source::rbd::RbdError;
use backy_store::fs::ownership::Fault;
use backy_store::restore::TargetProblem;
use backy_store::{Error as StoreError, JobName, Refusal};

use crate::logging;
use crate::output::terminal;
use crate::output::text::quote;

/// Result of a command.
pub(crate) type Result<T = Outcome> = anyhow::Result<T>;

/// How a command ended that came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Done,
    /// The work was done and showed something bad, which has been printed.
    Bad,
    /// The command has a status of its own, as `check` has those of Nagios.
    Status(u8),
}

impl Outcome {
    /// `Bad` when `bad` is true.
    pub(crate) fn bad_if(bad: bool) -> Self {
        if bad { Self::Bad } else { Self::Done }
    }
}

/// The command failed, or its work showed something bad.
pub(crate) const EXIT_FAILED: u8 = 1;
/// The command line makes no sense.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Another run holds the lock.
pub(crate) const EXIT_LOCKED: u8 = 3;

/// An error that the command line itself raises.
#[derive(Debug)]
pub(crate) struct Complaint {
    message: String,
    hint: String,
    usage: bool,
}

impl fmt::Display for Complaint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for Complaint {}

/// Makes an error of wrong usage, which ends with status 2.
pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Complaint { message: message.into(), hint: hint.into(), usage: true }.into()
}

/// Makes an error that knows what to do about it; an empty hint is none.
pub(crate) fn refused(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    Complaint { message: message.into(), hint: hint.into(), usage: false }.into()
}

/// Returns an error and its causes on one line, and the problems of a configuration, each for a line.
pub(crate) fn in_short(error: anyhow::Error) -> (String, Vec<String>) {
    let problems = error.chain().find_map(|cause| match cause.downcast_ref::<SchedError>() {
        Some(SchedError::ConfigInvalid { path, problems }) => {
            Some(problems.iter().map(|problem| problem.in_file(path)).collect::<Vec<String>>())
        }
        _ => None,
    });
    let mut messages: Vec<String> = error.chain().map(ToString::to_string).collect();
    messages.dedup();
    (messages.join(": "), problems.unwrap_or_default())
}

/// Turns the end of a command into an exit status, after printing what went wrong.
pub(crate) fn conclude(result: Result) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::from(EXIT_FAILED),
        Ok(Outcome::Status(status)) => ExitCode::from(status),
        Err(error) => ExitCode::from(tell(error)),
    }
}

/// Prints and logs what went wrong, and returns the exit status for it.
pub(crate) fn tell(error: anyhow::Error) -> u8 {
    let failure = Failure { error };
    failure.lines().iter().for_each(terminal::note);
    let messages = failure.messages();
    let (error, causes) = messages.split_first().unzip();
    let causes = causes.filter(|causes| !causes.is_empty()).map(|causes| causes.join("; "));
    let hint = failure.hint();
    tracing::error!(target: logging::QUIET, error, causes, hint, "failed");
    failure.code()
}

const THREADS_HINT: &str = "raise the limit of processes and threads: `ulimit -u`, or TasksMax in systemd";

/// An error on its way to a person.
struct Failure {
    error: anyhow::Error,
}

impl Failure {
    fn code(&self) -> u8 {
        if self.error.chain().any(is_usage) {
            EXIT_USAGE
        } else if self.store_errors().any(|error| matches!(error, StoreError::Locked { .. })) {
            EXIT_LOCKED
        } else {
            EXIT_FAILED
        }
    }

    /// The error, and each cause once.
    fn messages(&self) -> Vec<String> {
        let mut messages: Vec<String> = Vec::new();
        for cause in self.error.chain() {
            let message = cause.to_string();
            if messages.last() != Some(&message) {
                messages.push(message);
            }
            if let Some(SchedError::ConfigInvalid { problems, .. }) = cause.downcast_ref::<SchedError>() {
                messages.extend(problems.iter().map(ToString::to_string));
            }
        }
        messages
    }

    /// The same with labels, and what to do.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (place, message) in self.messages().iter().enumerate() {
            let label = if place == 0 { "error" } else { "  cause" };
            lines.push(format!("{label}: {message}"));
        }
        lines.extend(self.hint().map(|hint| format!("hint: {hint}")));
        lines
    }

    fn hint(&self) -> Option<String> {
        self.error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Complaint>())
            .map(|complaint| complaint.hint.clone())
            .or_else(|| self.error.chain().find_map(|cause| sched_hint(sched_error(cause)?)))
            .or_else(|| self.error.chain().find_map(|cause| mount_hint(cause.downcast_ref()?)))
            .or_else(|| self.store_errors().find_map(store_hint))
            .filter(|hint| !hint.is_empty())
    }

    /// The store's errors in the chain, also those that `sched` passes on.
    fn store_errors(&self) -> impl Iterator<Item = &StoreError> {
        self.error.chain().filter_map(|cause| match cause.downcast_ref::<SchedError>() {
            Some(SchedError::Store(error)) => Some(error),
            _ => cause.downcast_ref::<StoreError>(),
        })
    }
}

/// Whether an error says that the command line makes no sense.
fn is_usage(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<Complaint>().is_some_and(|complaint| complaint.usage)
        || matches!(
            error.downcast_ref(),
            Some(MountError::OptionUnknown { .. } | MountError::OptionInvalid { .. })
        )
        || matches!(error.downcast_ref(), Some(SchedError::SettingsInvalid { .. }))
}

/// Returns the error of `sched` that a cause is, or that an I/O error of a stream has inside.
fn sched_error<'e>(cause: &'e (dyn std::error::Error + 'static)) -> Option<&'e SchedError> {
    let inside = || cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref();
    cause.downcast_ref().or_else(inside)
}

fn mount_hint(error: &MountError) -> Option<String> {
    Some(match error {
        MountError::InUse { .. } => {
            "`--wait` waits for them; `--lazy` takes the mount away from sight, and they go on".to_owned()
        }
        MountError::AlreadyMounted { path } => format!("`backy unmount {}` takes it away", path.display()),
        _ => return None,
    })
}

fn sched_hint(error: &SchedError) -> Option<String> {
    match error {
        SchedError::TagsUnknown { known, .. } => Some(format!(
            "the schedule has {}; use one of these, a tag that begins with `manual:`, or `--force`",
            if known.is_empty() { "no tags".to_owned() } else { known.join(", ") }
        )),
        SchedError::ThreadMissing { .. } => Some(THREADS_HINT.to_owned()),
        SchedError::ServiceNotStarted { source } if source.kind() == io::ErrorKind::WouldBlock => {
            Some(THREADS_HINT.to_owned())
        }
        SchedError::BaseDirChanged { .. } => Some("restart the service".to_owned()),
        SchedError::Rbd(error) => rbd_hint(error),
        SchedError::SourceUnreadable { .. } => Some("install librbd".to_owned()),
        SchedError::SourceWithoutMedium { .. } => Some(
            "attach its disk or image again (`losetup`, `lvchange --activate y`, `multipath`, ...), or correct `filename` of the source"
                .to_owned(),
        ),
        SchedError::ChangesUntrue { .. } => Some(
            "the revisions that rest on such lists are distrusted now, and the next backup reads the whole image; the \
             quarantine has both sides"
                .to_owned(),
        ),
        SchedError::ConfigInvalid { path, .. } => Some(format!("correct {}", quote(&path.to_string_lossy()))),
        SchedError::ServiceUnreachable { .. } => Some(
            "see whether the service runs there, and whether `api.addrs`, `api.port` and the URL agree; `/healthz` needs no token"
                .to_owned(),
        ),
        SchedError::TokenRefused { .. } => Some(
            "the service's `api.tokens` or its `tokens-file` must have it; `backy client reload` makes changes known"
                .to_owned(),
        ),
        SchedError::RightMissing { right, .. } => Some(format!(
            "on that server add `{right}` to the token's `rights` in `api.tokens` or its `tokens-file`, and the job to its `jobs` if it has \
             some; then run `backy client reload` there"
        )),
        SchedError::AnswerInvalid { .. } => {
            Some("see whether that is a backy service, and of about this version".to_owned())
        }
        SchedError::ApiAddressUnusable { source, .. } => Some(
            match source.kind() {
                io::ErrorKind::AddrInUse => "another program listens there, perhaps another service: `ss -ltnp` shows it; `api.port` can be changed",
                io::ErrorKind::PermissionDenied => "ports below 1024 are for root: change `api.port`",
                _ => "change `api.addrs` in the main configuration to addresses of this machine",
            }
            .to_owned(),
        ),
        _ => None,
    }
}

fn rbd_hint(error: &RbdError) -> Option<String> {
    Some(match error {
        RbdError::Missing { image, .. } => {
            let pool = image.rsplit_once('/').map_or(image.as_str(), |(pool, _)| pool);
            format!("`rbd ls {}` lists the images; was it renamed or removed?", quote(pool))
        }
        RbdError::PoolMissing { .. } => "`ceph osd pool ls` lists the pools".to_owned(),
        RbdError::ProgramUnusable { .. } => {
            "install the package ceph-common, or set BACKY_RBD to the program".to_owned()
        }
        RbdError::CommandFailed { .. } | RbdError::Library { .. } => {
            "try the same as this user with `rbd`: CEPH_CONF, CEPH_ARGS, and `user` and `conf` of the source say which \
             cluster and who asks"
                .to_owned()
        }
        RbdError::TimeOut { .. } => {
            "look at `ceph -s`; `timeout` of the source sets how long to wait".to_owned()
        }
        RbdError::Hook { hook, .. } => {
            format!("run the command of `{hook}` by hand, and look whether a file system is still frozen")
        }
        RbdError::Exists { .. } => "choose another name, or replace it with `--force`".to_owned(),
        RbdError::Unfit { .. } => "restore under another name, then rename the images".to_owned(),
        _ => return None,
    })
}

fn refusal_hint(refusal: &Refusal) -> Option<String> {
    Some(match refusal {
        Refusal::Moved { .. } => {
            "if the whole store was moved there on purpose, run `backy purge --moved` once".to_owned()
        }
        Refusal::NeedsUnknown { revision, .. } => format!(
            "restore what is needed of revision {revision}, `backy forget -r {revision}`, then purge with `--now`"
        ),
        Refusal::RegisterShrunk { job, .. } => format!(
            "bring back `maps/{job}` or the job's directory; if they were deleted on purpose, `backy purge --without {job}`"
        ),
        Refusal::TooDeep { .. } => "move the directory out of the store".to_owned(),
        Refusal::NotMissing { .. } => {
            "to give a job up, forget its revisions, or delete its directory first".to_owned()
        }
        _ => return None,
    })
}

fn store_hint(error: &StoreError) -> Option<String> {
    let text = |path: &std::path::Path| quote(&path.to_string_lossy()).into_owned();
    Some(match error {
        StoreError::StoreMissing { path } => {
            format!("create one with `backy init {}`, or mount the disk it is on", text(path))
        }
        StoreError::StoreUnmarked { path } | StoreError::StoreDamaged { path, .. } => format!(
            "if it is a store, `backy init --repair {}` writes the file again; mount what is missing there before",
            text(path)
        ),
        StoreError::StoreNotRepairable { .. } => "`backy init` makes a store in an empty or a new directory".to_owned(),
        StoreError::StoreSplit { path, .. } => format!(
            "chunks are renamed from `tmp` to `chunks`: put both on one file system, in {} or both as links to \
             directories of one other disk",
            text(path)
        ),
        StoreError::ChunksAway { path } => format!(
            "mount the disk that they are on; if they are lost for good, `mkdir -p {}` and back up again",
            text(&path.join("chunks").join("00"))
        ),
        StoreError::StoreEntangled { .. } => {
            "each store needs directories of its own: put a copy of the directory in place of the link".to_owned()
        }
        StoreError::ChunksClaimed { path } | StoreError::ChunksUnclaimed { path } => format!(
            "if no other store uses them from now on, `backy -b {} purge --moved` makes them this one's; otherwise put a \
             copy of them in place of the link: two stores would delete each other's chunks",
            text(path)
        ),
        StoreError::LocksUnusable { .. } => {
            "keep the store on a file system with `flock`, such as a local disk, or mount this one with locks".to_owned()
        }
        StoreError::StoreShared { path, host, .. } => format!(
            "wait for it to end, or end it there; if that machine is gone for good: `backy -b {} purge --host-gone {}`",
            text(path),
            quote(host)
        ),
        StoreError::RevisionPurged { .. } => {
            "read it as a user who may write in the store's directory `writers`: then a purge waits for the reader".to_owned()
        }
        StoreError::StoreOriginal { path } => format!(
            "run `backy init {}` first: it makes a store beside the jobs and changes nothing of theirs",
            text(path)
        ),
        StoreError::StoreNotCreatable { .. } => "choose an empty or a new directory".to_owned(),
        StoreError::Unsafe { path, fault } => unsafe_hint(path, *fault),
        StoreError::LinkInStore { path } => format!("remove the link: `rm {}`", text(path)),
        StoreError::NotAJob { path, jobs } => {
            format!("choose a job with `-b {}/JOB`; {}", text(path), job_names(jobs))
        }
        StoreError::JobUnknown { store, .. } => {
            format!("`backy -b {} status` lists the jobs", text(store))
        }
        StoreError::NameInvalid { kind: "tag", .. } => {
            "tags are words such as daily, manual:before-upgrade or v1.2".to_owned()
        }
        StoreError::JobLinkBroken { .. } => "mount the disk that the link leads to".to_owned(),
        StoreError::JobExists { path, .. } => {
            format!("back it up with `backy -b {} backup TAGS`", text(path))
        }
        StoreError::RevisionUnknown { .. } | StoreError::SpecInvalid { .. } => {
            "`backy status` lists the revisions, `backy --help` the forms of `-r`".to_owned()
        }
        StoreError::ManifestCorrupt { .. } => {
            "the job's other revisions are not affected; `backy undelete --lost JOB` restores the manifest from the \
             store's own copy"
                .to_owned()
        }
        StoreError::MapCorrupt { .. } => "restore an older revision; the map cannot be read".to_owned(),
        StoreError::ImageDamaged { revision, .. } => format!(
            "run `backy verify -r {revision}`, then restore an older revision, or what is left of this one \
             with `--salvage`"
        ),
        StoreError::ChunkMissing { .. } | StoreError::ChunkCorrupt { .. } | StoreError::GroupDamaged { .. } => {
            "run `backy verify -r all`; the next backup stores damaged chunks anew where the source still has them"
                .to_owned()
        }
        StoreError::Locked { .. } => "wait for the other run to end, then try again".to_owned(),
        StoreError::JobAway { job, .. } => format!(
            "mount its disk or bring its directory back; if it was deleted on purpose, `backy purge --without {job}`"
        ),
        StoreError::SweepRefused { refusal } => refusal_hint(refusal)?,
        StoreError::TargetRefused { problem, .. } => target_hint(problem)?,
        StoreError::Target { source, .. } => target_io_hint(source)?,
        StoreError::FormatNewer { .. } => "use the backy that wrote it, or a newer one".to_owned(),
        StoreError::Index { path, .. } => format!(
            "the index can be made anew: `backy -b {} index rebuild`",
            path.parent().map_or_else(|| "DIR".to_owned(), text)
        ),
        StoreError::Io { source, .. } => io_hint(source.kind())?,
        _ => return None,
    })
}

fn target_hint(problem: &TargetProblem) -> Option<String> {
    let text = |path: &std::path::Path| quote(&path.to_string_lossy()).into_owned();
    Some(match problem {
        TargetProblem::FileHoldsData | TargetProblem::DeviceHoldsData => "`--force` overwrites it".to_owned(),
        TargetProblem::InUse { .. } => "end what uses it, or restore all the same with `--force`".to_owned(),
        TargetProblem::Claimed { .. } | TargetProblem::Underlies { .. } => {
            "unmount it or take it out of use first; `lsblk` shows what is made of it".to_owned()
        }
        TargetProblem::DeviceReadOnly => {
            "`blockdev --setrw` allows writing, if the device and what it is made of can be written"
                .to_owned()
        }
        TargetProblem::NoRoom { .. } => {
            "make room there or choose another place; `--force` tries it, since data often take less"
                .to_owned()
        }
        TargetProblem::Link { to } => format!("name the file itself: {}", text(to)),
        TargetProblem::LinkDangling { .. } => "remove the link, or choose another name".to_owned(),
        TargetProblem::Directory => "add the name of a file".to_owned(),
        TargetProblem::DirectoryMissing { dir } => format!("create it: `mkdir -p {}`", text(dir)),
        TargetProblem::TooSmall { .. } => "make the device larger, or choose another one".to_owned(),
        TargetProblem::InStore { .. } => "choose a place outside of the store".to_owned(),
        TargetProblem::MountPoint => "unmount it, or name the file that is mounted there".to_owned(),
        TargetProblem::Appeared => "choose another name, or replace the file with `--force`".to_owned(),
        TargetProblem::TooLarge { .. } => {
            "choose another file system (FAT takes files up to 4 GiB), or raise the limit: `ulimit -f`"
                .to_owned()
        }
        TargetProblem::NameTooLong { .. } => "choose a shorter name".to_owned(),
        _ => return None,
    })
}

/// What failed on the target says nothing about the store.
fn target_io_hint(error: &io::Error) -> Option<String> {
    const EIO: i32 = nix::libc::EIO;
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the target is full, not the store: make room there, or restore to another place"
        }
        io::ErrorKind::PermissionDenied => {
            "restore as a user who may write there; `lsattr` shows files and directories that must not be changed"
        }
        io::ErrorKind::ReadOnlyFilesystem => "the file system of the target is mounted read-only",
        _ if error.raw_os_error() == Some(EIO) => {
            "the target reports errors, not the store; `dmesg` has more"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The remedy, and what can be done without it where the owner is another user.
fn unsafe_hint(path: &std::path::Path, fault: Fault) -> String {
    let quoted = quote(&path.to_string_lossy()).into_owned();
    let remedy = fault.remedy();
    match fault {
        Fault::Owner { .. } if path.is_dir() => format!(
            "run backy as that user, or take over what can be trusted with `{remedy} -R {quoted}`; `restore`, `mount` and \
             `status` work all the same"
        ),
        _ => format!("if what lies there can be trusted: `{remedy} {quoted}`"),
    }
}

fn io_hint(kind: io::ErrorKind) -> Option<String> {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("`backy purge` works on a full disk; `forget` and `purge --now` free more".to_owned())
        }
        io::ErrorKind::PermissionDenied => Some("run it as the owner of the store, usually root".to_owned()),
        io::ErrorKind::ReadOnlyFilesystem => Some("the file system is mounted read-only".to_owned()),
        _ => None,
    }
}

fn job_names(jobs: &[JobName]) -> String {
    const SHOWN_MAX: usize = 20;
    if jobs.is_empty() {
        return "there is none yet".to_owned();
    }
    let names: Vec<&str> = jobs.iter().take(SHOWN_MAX).map(JobName::as_str).collect();
    let mut text = format!("jobs here: {}", names.join(", "));
    if jobs.len() > SHOWN_MAX {
        // Writing to a string cannot fail.
        let _ = write!(text, " and {} more", jobs.len() - SHOWN_MAX);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use anyhow::Context as _;

    use super::*;

    fn failure(error: impl Into<anyhow::Error>) -> Failure {
        Failure { error: error.into() }
    }

    #[test]
    fn the_chain_is_printed_once() {
        let cause = io::Error::from(io::ErrorKind::PermissionDenied);
        let result: Result = Err(StoreError::io("read", "/x", cause)).context("cannot restore");
        let lines = failure(result.unwrap_err()).lines();
        assert_eq!(lines[0], "error: cannot restore");
        assert_eq!(lines[1], "  cause: cannot read /x");
        assert_eq!(lines[2], "  cause: permission denied");
        assert!(lines[3].starts_with("hint: run it as"), "{lines:?}");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_lock_is_told_apart_wherever_it_comes_from() {
        let locked = || StoreError::Locked { what: "job web01 (backup)".to_owned() };
        assert_eq!(failure(locked()).code(), EXIT_LOCKED);
        assert_eq!(failure(SchedError::Store(locked())).code(), EXIT_LOCKED);
        let wrapped: Result = Err(SchedError::Store(locked())).context("cannot back up job web01");
        let wrapped = failure(wrapped.unwrap_err());
        assert_eq!(wrapped.code(), EXIT_LOCKED);
        assert_eq!(wrapped.lines().len(), 3, "{:?}", wrapped.lines());
        assert_eq!(failure(StoreError::Cancelled).code(), EXIT_FAILED);
        assert_eq!(failure(usage("no", "")).code(), EXIT_USAGE);
        assert_eq!(failure(refused("no", "")).code(), EXIT_FAILED);
    }

    #[test]
    fn hints_name_what_to_do() {
        let path = PathBuf::from("/srv/backy");
        let missing = failure(StoreError::StoreMissing { path: path.clone() });
        assert!(missing.hint().unwrap().contains("`backy init /srv/backy`"));
        let jobs = vec![JobName::parse("web01").unwrap(), JobName::parse("web02").unwrap()];
        let hint = failure(StoreError::NotAJob { path: path.clone(), jobs }).hint().unwrap();
        assert!(hint.contains("web01, web02") && hint.contains("-b /srv/backy/"), "{hint}");
        let hint = failure(StoreError::JobUnknown { name: "x".into(), store: path }).hint().unwrap();
        assert_eq!(hint, "`backy -b /srv/backy status` lists the jobs");
        assert_eq!(failure(StoreError::Cancelled).hint(), None);
    }

    #[test]
    fn a_hint_knows_which_side_failed() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let store = failure(StoreError::io("write", "/srv/x", full())).hint().unwrap();
        assert!(store.contains("purge"), "{store}");
        let target = StoreError::Target { doing: "write", target: "/mnt/x".into(), source: full() };
        let hint = failure(target).hint().unwrap();
        assert!(hint.contains("the target is full") && !hint.contains("purge"), "{hint}");
        let broken: SchedError = RbdError::PoolMissing { pool: "rbd".into() }.into();
        let source = io::Error::other(broken);
        let image = StoreError::Target { doing: "write to", target: "the new image".into(), source };
        assert!(failure(image).hint().unwrap().contains("lists the pools"));
        let refused = |problem| StoreError::TargetRefused { target: "/mnt/x".into(), problem };
        assert_eq!(failure(refused(TargetProblem::Special)).hint(), None);
        let (name, to) = (failure(refused(TargetProblem::Link { to: "/a b".into() })), "'/a b'");
        assert!(name.hint().unwrap().ends_with(to), "{:?}", name.hint());
    }

    #[test]
    fn every_problem_of_a_configuration_is_named() {
        let problem = |place: &str, message: &str| {
            let mark = Some(backy_sched::config::Mark { line: 3, column: 1 });
            backy_sched::config::Problem { mark, place: place.to_owned(), message: message.to_owned() }
        };
        let problems = vec![problem("source.filenam", "unknown key"), problem("source", "no `type`")];
        let lines = failure(SchedError::ConfigInvalid { path: "/x/config".into(), problems }).lines();
        assert_eq!(lines[2], "  cause: line 3, source: no `type`");
    }
}
