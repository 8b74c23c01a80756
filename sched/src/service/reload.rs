//! Reading the configuration again: all of it is in force afterwards, or nothing has changed. What can only fail later
//! (listening on other addresses) is tried first.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use backy_store::{JobName, Timestamp};

use super::api::Server;
use super::config::ServiceConfig;
use super::control::Control as _;
use super::core::Shared;
use super::desk::Desk;
use super::offload::offload_and_forget;
use super::{overdue, supervisor};
use crate::error::{Error, Result, in_full};

/// How long the answer to a reload waits for the jobs' directories.
const PREPARE_PATIENCE: Duration = Duration::from_secs(5);

/// Loads the configuration, and when its file was written.
pub(super) fn load(path: &Path) -> Result<(ServiceConfig, Option<Timestamp>)> {
    let config = ServiceConfig::load(path)?;
    let written_at = std::fs::metadata(path).ok().and_then(|facts| Timestamp::from_secs(facts.mtime()));
    Ok((config, written_at))
}

/// Starts the API as the configuration wants it; `None` when nobody has a token.
pub(super) fn start_api(shared: &Arc<Shared>) -> Result<Option<Server>> {
    let config = Arc::clone(&shared.core().config);
    if config.api.tokens.is_empty() {
        tracing::info!("no token is configured: the API is off");
        return Ok(None);
    }
    let desk = Arc::new(Desk(Arc::clone(shared)));
    Ok(Some(Server::start(&config.api.addrs, config.api.port, desk)?))
}

/// Whether an API is missing that could be there: the machine's addresses may come after the service has started.
pub(super) fn wants_api(shared: &Shared, api: Option<&Server>) -> bool {
    let config = Arc::clone(&shared.core().config);
    match api {
        Some(api) => !api.serves(&config.api) || api.could_listen_on_more(),
        None => {
            let api = &config.api;
            !api.tokens.is_empty() && Server::try_to_listen(&api.addrs, api.port, &[]).is_ok()
        }
    }
}

/// Reads the configuration again if somebody wants that (a signal wants no answer), then sees to it that the API listens
/// where the configuration in force wants it. Blocks.
pub(super) fn settle(
    shared: &Arc<Shared>,
    api: Option<Server>,
    asker: Option<Option<SyncSender<Result<()>>>>,
) -> Option<Server> {
    if let Some(asker) = asker {
        supervisor::reloading();
        let reloaded = reload(shared, api.as_ref(), Timestamp::now());
        log(&reloaded);
        if reloaded.is_ok() {
            prepare_soon(shared);
        }
        let summary = {
            let mut core = shared.core();
            core.vitals.reload_refused = reloaded.is_err();
            overdue::summary(&core, Timestamp::now())
        };
        supervisor::ready(&summary);
        let is_new = reloaded.is_ok();
        if let Some(asker) = asker {
            // Who asked may be gone.
            let _ = asker.try_send(reloaded);
        }
        if is_new {
            shared.look_at_all(Timestamp::now());
            tell_of_snapshots(shared);
        }
    }
    move_api(shared, api)
}

/// Brings the jobs' directories in line with the configuration, before the answer if the disks answer soon.
fn prepare_soon(shared: &Arc<Shared>) {
    let (done, ended) = std::sync::mpsc::channel();
    let shared = Arc::clone(shared);
    offload_and_forget(move || {
        shared.prepare_all(Timestamp::now());
        // Nobody may be waiting any more.
        let _ = done.send(());
    });
    let _ = ended.recv_timeout(PREPARE_PATIENCE);
}

fn log(reloaded: &Result<()>) {
    match reloaded {
        Ok(()) => tracing::info!("configuration reloaded"),
        Err(Error::ConfigInvalid { path, problems }) => {
            for problem in problems {
                tracing::error!(problem = problem.in_file(path), "configuration refused");
            }
        }
        Err(error) => tracing::error!(reason = in_full(error), "configuration refused"),
    }
}

/// Names the jobs that are not configured any more and have snapshots at their sources: nothing removes these by itself.
/// Nobody waits for it, for a former job may lie on a disk that hangs. One thread at most is at it; a reload meanwhile
/// makes it look again.
fn tell_of_snapshots(shared: &Arc<Shared>) {
    if shared.tellings.fetch_add(1, Ordering::SeqCst) > 0 {
        return;
    }
    let desk = Desk(Arc::clone(shared));
    let name_them = move || {
        loop {
            let wanted = desk.0.tellings.load(Ordering::SeqCst);
            name_jobs_with_snapshots(&desk);
            let told = desk.0.tellings.compare_exchange(wanted, 0, Ordering::SeqCst, Ordering::SeqCst);
            if told.is_ok() {
                return;
            }
        }
    };
    offload_and_forget(name_them);
}

fn name_jobs_with_snapshots(desk: &Desk) {
    let has_snapshots = |name: &JobName| {
        let noted = desk.repository()?.job(name)?.noted_snapshots()?;
        Ok::<bool, Error>(!noted.is_empty())
    };
    for job in desk.dead_jobs().unwrap_or_default() {
        // What cannot be read is no reason to bother anybody about a job that is over.
        if has_snapshots(&job).unwrap_or(false) {
            tracing::warn!(%job, "not configured any more, but its source has a snapshot of it: `backy release` removes it");
        }
    }
}

fn move_api(shared: &Arc<Shared>, api: Option<Server>) -> Option<Server> {
    let config = Arc::clone(&shared.core().config);
    if api.as_ref().is_some_and(|api| api.serves(&config.api) && !api.could_listen_on_more()) {
        return api;
    }
    if let Some(api) = api {
        api.stop();
    }
    start_api(shared).unwrap_or_else(|error| {
        tracing::error!(reason = in_full(&error), "the API is off");
        None
    })
}

/// Reads the configuration again and puts it in force. Where the API listens changes after that. Blocks.
pub(super) fn reload(shared: &Shared, api: Option<&Server>, now: Timestamp) -> Result<()> {
    let (config, written_at) = load(&shared.fixed.config_path)?;
    if config.base_dir != shared.fixed.base_dir {
        return Err(Error::BaseDirChanged {
            running: shared.fixed.base_dir.clone(),
            wanted: config.base_dir.clone(),
        });
    }
    let is_there = api.is_some_and(|api| api.serves(&config.api));
    if !config.api.tokens.is_empty() && !is_there {
        Server::try_to_listen(&config.api.addrs, config.api.port, api.map_or(&[], Server::local_addrs))?;
    }
    let mut core = shared.core();
    core.tokens = Arc::new(config.api.tokens.clone());
    core.config = Arc::new(config);
    core.configured_at = now;
    core.written_at = written_at;
    core.configure_jobs();
    Ok(())
}
