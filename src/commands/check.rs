//! `backy check`: the state of all jobs of the main configuration, for Nagios and its kin. It looks at the store
//! itself and needs no service; the verdicts are those of `backy_sched::policy::health`.
//!
//! Whatever goes wrong is an answer too: status 3, and the first line of standard output says why.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use backy_sched::policy::health::{self, Report};
use backy_sched::service::Pulse;
use backy_sched::{ServiceConfig, check, service};
use backy_store::{Repository, Timestamp};
use clap::Args;

use super::Context;
use crate::failure::{self, Outcome, Result};
use crate::output::{json, nagios, terminal};

/// Says for monitoring whether every job is backed up in time. Prints a line of state and measures, then a line for
/// each problem. Status 0 is OK, 1 warning, 2 critical, 3 unknown.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Expect no scheduler service: something else starts the backups
    #[arg(long)]
    without_service: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Looks and prints the verdict.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    conclude(examine(context, arguments), arguments.json)
}

/// Prints a verdict, or why there is none, and returns the status for Nagios.
pub(crate) fn conclude(verdict: anyhow::Result<(Report, Option<bool>)>, as_json: bool) -> Result {
    let (text, value, status) = match verdict {
        Ok((report, service_runs)) => (
            nagios::as_text(&report, service_runs),
            nagios::as_json(&report, service_runs),
            nagios::status(&report),
        ),
        Err(error) => {
            let (message, problems) = failure::in_short(error);
            (
                nagios::unknown_as_text(&message, &problems),
                nagios::unknown_as_json(&message, &problems),
                nagios::UNKNOWN,
            )
        }
    };
    let printed = if as_json { json::print(&value) } else { terminal::print(text) };
    // Nobody has seen the verdict otherwise.
    Ok(Outcome::Status(printed.map_or_else(
        |error| {
            failure::tell(error);
            nagios::UNKNOWN
        },
        |()| status,
    )))
}

fn examine(context: &Context, arguments: &Arguments) -> anyhow::Result<(Report, Option<bool>)> {
    context.log_call();
    let path = context.config_path()?;
    let config = ServiceConfig::load(&path)?;
    let repository = Repository::open_any(&config.base_dir)?;
    let pulse = match arguments.without_service {
        true => None,
        false => Some(service::pulse(&config.base_dir, &config.api, silence_max())?),
    };
    let service_runs = pulse.map(|pulse| pulse != Pulse::Absent);
    let now = Timestamp::now();
    let facts = check::gather(&config, &repository, changed_at(&path)?, now);
    let report = health::judge(&facts, service_runs, now);
    let report = match pulse {
        Some(Pulse::Silent(silence)) => report.with_hung_service(silence),
        _ => report,
    };
    Ok((report, service_runs))
}

/// After how long without a sign of life a service counts as hung. Tests cannot wait for minutes.
pub(super) fn silence_max() -> Duration {
    let given = std::env::var("BACKY_TEST_SILENCE_MAX_SECS").ok().and_then(|secs| secs.parse().ok());
    given.filter(|&secs| secs > 0).map_or(service::SILENCE_MAX, Duration::from_secs)
}

/// When the configuration was written; a job without a directory has been there since then at the latest.
fn changed_at(path: &Path) -> anyhow::Result<Option<Timestamp>> {
    use std::os::unix::fs::MetadataExt as _;
    let facts = std::fs::metadata(path).with_context(|| format!("cannot examine {}", path.display()))?;
    Ok(Timestamp::from_secs(facts.mtime()))
}
