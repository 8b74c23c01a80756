//! Reading the configuration again: all of it is in force afterwards, or nothing has changed. What can only fail later
//! (listening on other addresses) is tried first.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use backy_store::Timestamp;

use super::api::Server;
use super::config::ServiceConfig;
use super::core::Shared;
use super::desk::Desk;
use crate::error::{Error, Result};

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
