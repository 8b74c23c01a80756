//! Makes a mount, keeps it until someone unmounts it or a signal asks for its end, and takes it away.
//!
//! The order of the end: the tree is detached, so that nobody can enter any more; those who have files open
//! read on; when the last is closed the kernel ends the session and its threads are joined. A second signal
//! does not wait for them. fuser's own unmounting is not used: it fails on a busy mount and gives up its handle.

pub(crate) mod background;
pub mod options;
pub(crate) mod point;
pub(crate) mod signals;
pub(crate) mod table;
pub mod users;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use backy_store::Repository;
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{getegid, geteuid};
use sd_notify::NotifyState;

use self::options::{Access, Options};
use self::signals::{Signals, Wanted};
use crate::error::{Error, Result};
use crate::filesystem::FileSystem;
use crate::jobs::Scope;
use crate::overlay::Overlay;
use crate::view::{Owner, View};

/// What the mount reads ahead for one reader, where the system lets it be set.
const READ_AHEAD_KIB: u32 = 1024;

/// Mounts the revisions of `base`, a store or a job's directory, at `mountpoint` and returns when the mount has
/// ended; with `background` it returns when the mount is ready, and another process of this program serves it.
///
/// Call it before other threads are started: they must not take the signals that end a mount.
pub fn run(base: &Path, mountpoint: &Path, options: &Options, background: bool) -> Result<()> {
    if background && !background::is_child() {
        return background::start();
    }
    raise_file_limit();
    let signals = Signals::block().map_err(|errno| Error::io("block", "signals", errno))?;
    let mounted = Mounted::start(base, mountpoint, options, signals::wake)?;
    if background {
        // Not before: who mounts for systemd's automount is let through to the mount point only in systemd's group of
        // processes, and would wait for itself outside of it.
        background::leave_terminal();
        background::announce()?;
    }
    tell_systemd(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("serving {} at {}", base.display(), mounted.mountpoint.display())),
    ]);
    serve(mounted, &signals)
}

/// Returns where the revisions of a store are mounted so that nobody can write to them, newest mount first.
pub fn shown_at(base: &Path) -> Vec<PathBuf> {
    let Ok(base) = base.canonicalize() else { return Vec::new() };
    let shows = |mount: &table::Mount| {
        let is_of_store =
            || mount.source.is_absolute() && mount.source.canonicalize().is_ok_and(|source| source == base);
        mount.kind == "fuse.backy" && mount.is_read_only && is_of_store()
    };
    let mounts = table::mounts().unwrap_or_default().into_iter().rev();
    mounts.filter(shows).map(|mount| mount.point).collect()
}

/// Takes the mount at a place away, unless it is in use: then the error says by whom.
pub fn unmount(mountpoint: &Path) -> Result<()> {
    let mount = find(mountpoint)?;
    table::remove(&mount.point).map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => {
            Error::InUse { users: users::users(&same_device(&mount.device)), path: mount.point }
        }
        _ => Error::UnmountFailed { path: mount.point, source },
    })
}

/// Takes the mount at a place away from sight; who uses it goes on.
pub fn detach(mountpoint: &Path) -> Result<()> {
    let mount = find(mountpoint)?;
    table::detach(&mount.point).map_err(|source| Error::UnmountFailed { path: mount.point, source })
}

/// Finds our mount at a place, which may be dead.
fn find(mountpoint: &Path) -> Result<table::Mount> {
    let point = point::resolve(mountpoint)?;
    let mount = table::at(&point).map_err(|source| Error::io("read", "/proc/self/mountinfo", source))?;
    mount
        .filter(|mount| mount.kind == "fuse.backy")
        .ok_or_else(|| Error::NotMounted { path: mountpoint.to_owned() })
}

/// Returns all places where the file system of a device is mounted.
fn same_device(device: &str) -> Vec<table::Mount> {
    let mounts = table::mounts().unwrap_or_default();
    mounts.into_iter().filter(|mount| mount.device == device).collect()
}

/// Every image that somebody has open takes a few descriptors here; the usual limit is meant for programs that use
/// `select`.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::debug!(
            error = backy_store::error::in_full(&error),
            "the limit of open files stays as it is"
        );
    }
}

/// Without systemd nobody listens.
fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(error = backy_store::error::in_full(&error), "cannot tell systemd about the mount");
    }
}

/// Waits for the end of a mount, whoever brings it about.
fn serve(mounted: Mounted, signals: &Signals) -> Result<()> {
    let mut asked = false;
    while !mounted.is_over() {
        match signals.wait() {
            Wanted::Look => {}
            Wanted::End(_) if asked => return Err(Error::CutOff { path: mounted.mountpoint.clone() }),
            Wanted::End(signal) => {
                asked = true;
                tracing::info!(signal, mountpoint = %mounted.mountpoint.display(), "unmounting");
                tell_systemd(&[NotifyState::Stopping]);
                mounted.sync_early();
                mounted.say_who_reads();
                if let Err(error) = mounted.detach() {
                    tracing::error!(
                        error = backy_store::error::in_full(&error),
                        "a second signal ends the mount by force"
                    );
                }
            }
        }
    }
    mounted.finish()
}

/// A mount that is there. Dropping it takes it away without waiting for those who use it.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    /// `major:minor` of the mount.
    device: String,
    over: Arc<AtomicBool>,
    joiner: Option<JoinHandle<Result<()>>>,
    overlay: Option<Overlay>,
}

impl Mounted {
    /// Mounts the revisions of `base`, a store or a job's directory. When it returns, the mount answers.
    pub fn new(base: &Path, mountpoint: &Path, options: &Options) -> Result<Self> {
        Self::start(base, mountpoint, options, || {})
    }

    /// Mounts, and calls `on_end` in some thread when the mount has ended.
    fn start(
        base: &Path,
        mountpoint: &Path,
        options: &Options,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Self> {
        let location = Repository::discover(base)?;
        let root = location.repository.root().to_owned();
        point::check_system(options)?;
        let mountpoint = point::prepare(mountpoint, &root, options)?;
        let scope = location.job.map_or_else(|| Scope::Store(location.repository), Scope::Job);
        let owner = Owner {
            uid: options.uid.unwrap_or_else(|| geteuid().as_raw()),
            gid: options.gid.unwrap_or_else(|| getegid().as_raw()),
            dir_mode: options.mode(0o555),
            file_mode: options.mode(0o444),
        };
        let overlay = options.overlay.as_ref();
        let overlay = overlay.map(|overlay| Overlay::open(&overlay.dir, overlay.max_bytes, &mountpoint));
        let overlay = overlay.transpose()?;
        let failed = |source| Error::MountFailed { path: mountpoint.clone(), source };
        let idle = idle_thread().map_err(failed)?;
        let view = View::new(scope, options, owner, overlay.clone()).map_err(failed)?;
        let files = FileSystem::new(view).map_err(failed)?;
        let session = Session::new(files, &mountpoint, &config(options, base)).map_err(failed)?;
        let session = session.spawn().map_err(failed)?;
        let over = Arc::new(AtomicBool::new(false));
        let end = End { mountpoint: mountpoint.clone(), overlay: overlay.clone(), over: Arc::clone(&over) };
        let joiner = end.wait_in_thread(session, idle, on_end).map_err(failed)?;
        let mut mounted = Self { mountpoint, device: String::new(), over, joiner: Some(joiner), overlay };
        // The first question to the mount: it is ready when it has an answer.
        match table::device_of(&mounted.mountpoint) {
            Ok(device) => mounted.device = device,
            Err(source) => {
                drop(table::detach(&mounted.mountpoint));
                return Err(Error::MountFailed { path: mounted.mountpoint.clone(), source });
            }
        }
        raise_read_ahead(&mounted.device);
        tracing::info!(store = %root.display(), mountpoint = %mounted.mountpoint.display(), "mounted");
        Ok(mounted)
    }

    /// Returns the mount point, absolute.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether the mount has ended.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Unmounts and waits until the last open file is closed.
    pub fn unmount(self) -> Result<()> {
        self.detach()?;
        self.finish()
    }

    /// Takes the mount out of the tree of directories, wherever it is bound. It is no error if it is out already.
    fn detach(&self) -> Result<()> {
        let failed = |source| Error::UnmountFailed { path: self.mountpoint.clone(), source };
        for mount in table::mounts().map_err(failed)?.iter().rev() {
            if mount.device == self.device {
                table::detach(&mount.point).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Syncs what was written before the end, which may wait for readers longer than the system does for us. Not here:
    /// a second signal must not wait for a disk.
    fn sync_early(&self) {
        let Some(overlay) = self.overlay.clone() else { return };
        // What fails is logged, and tried again or told at the end.
        let started = std::thread::Builder::new().name("early sync".to_owned()).spawn(move || overlay.sync());
        if let Err(error) = started {
            tracing::warn!(
                error = backy_store::error::in_full(&error),
                "what was written is synced at the end only"
            );
        }
    }

    /// Names those for whom the end has to wait.
    fn say_who_reads(&self) {
        let users = users::users(&same_device(&self.device));
        for user in &users {
            tracing::warn!(who = user.who, path = %user.path.display(), "waiting for a reader");
        }
        if let Some(first) = users.first() {
            let others = users.len() - 1;
            tell_systemd(&[NotifyState::Status(&format!("waiting: {first}, {others} others"))]);
        }
    }

    /// Waits for the end.
    fn finish(mut self) -> Result<()> {
        match self.joiner.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(ended)) => ended,
            Some(Err(_)) => {
                let source = io::Error::other("the thread that waits for it broke off");
                Err(Error::SessionFailed { path: self.mountpoint.clone(), source })
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.joiner.is_some()
            && !self.is_over()
            && let Err(error) = self.detach()
        {
            tracing::error!(error = backy_store::error::in_full(&error), "the mount stays");
        }
    }
}

/// A thread that does nothing, for [`join`]: at the end of a mount the system may give no more threads.
fn idle_thread() -> io::Result<JoinHandle<io::Result<()>>> {
    std::thread::Builder::new().name("idle".to_owned()).spawn(|| Ok(()))
}

/// Waits for the end of a session.
fn join(mut session: BackgroundSession, idle: JoinHandle<io::Result<()>>) -> io::Result<()> {
    // When it is dropped, fuser 0.18 unmounts what is at the mount point once more although our mount is gone: that is
    // what lay below it, systemd's automount for instance. It is right only where the session broke off.
    let serving = std::mem::replace(&mut session.guard, idle);
    let broke_off = |_| Err(io::Error::other("a thread that answers the kernel broke off"));
    let result = serving.join().unwrap_or_else(broke_off);
    if result.is_ok() {
        std::mem::forget(session);
    }
    result
}

/// What is done when a mount has ended.
struct End {
    mountpoint: PathBuf,
    overlay: Option<Overlay>,
    over: Arc<AtomicBool>,
}

impl End {
    fn wait_in_thread(
        self,
        session: BackgroundSession,
        idle: JoinHandle<io::Result<()>>,
        on_end: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<Result<()>>> {
        std::thread::Builder::new().name("joiner".to_owned()).spawn(move || {
            let Self { mountpoint, overlay, over } = self;
            let joined = join(session, idle);
            let synced = overlay.map_or(Ok(()), |overlay| overlay.finish());
            over.store(true, Ordering::Release);
            on_end();
            joined.map_err(|source| Error::SessionFailed { path: mountpoint, source }).and(synced)
        })
    }
}

/// Returns what the table of mounts shows as the source: the store, so that `mount -a` sees that it is mounted.
fn source_name(base: &Path) -> String {
    // A comma would end the option for the helper of ordinary users.
    let name = base.to_str().filter(|name| !name.contains([',', '\\']));
    name.unwrap_or("backy").to_owned()
}

fn config(options: &Options, base: &Path) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        if options.overlay.is_some() { MountOption::RW } else { MountOption::RO },
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName(source_name(base)),
        // fuser's own `Subtype` reaches only the helper for ordinary users, this one the kernel too.
        MountOption::CUSTOM("subtype=backy".to_owned()),
    ];
    config.acl = match options.access {
        Access::Owner => SessionACL::Owner,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
        Access::Everyone => SessionACL::All,
    };
    config.n_threads = Some(options.threads);
    config.clone_fd = true;
    config
}

/// Lets the kernel read further ahead than FUSE can ask for. Only root may; others do without.
fn raise_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, error = backy_store::error::in_full(&error), "the read-ahead stays as it is");
    }
}
