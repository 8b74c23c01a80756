//! What the process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files that a worker with its child needs open.
const FILES_PER_WORKER: u64 = 8;
/// Files of everything else: connections, the store, the log.
const FILES_OF_THE_REST: u64 = 256;

/// Raises the limit of open files as far as it may be raised: the usual one is meant for programs that use `select`.
pub(super) fn raise(worker_limit: u32) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let limit = if soft < hard { hard } else { soft };
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).map(|()| limit)
    });
    let needed = 2 * u64::from(worker_limit) * FILES_PER_WORKER + FILES_OF_THE_REST;
    match raised {
        Ok(limit) if limit < needed => {
            tracing::warn!(
                limit,
                needed,
                "the limit of open files is low for so many workers: raise LimitNOFILE or ulimit -n"
            );
        }
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(error = crate::error::in_full(&error), "the limit of open files stays as it is")
        }
    }
}
