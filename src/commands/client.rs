//! `backy client`: asks a running service over its API, on this machine or another.

mod tables;
mod target;

use backy_sched::service::client::{Client, Reloaded};
use clap::{Args, Subcommand};
use serde_json::json;

use self::target::Target;
use super::{Context, check};
use crate::failure::{Outcome, Result, refused};
use crate::output::text::count;
use crate::output::{json, terminal};

/// Asks a running scheduler service. `-b` has no effect.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

/// What to ask.
#[derive(Debug, Subcommand)]
enum Action {
    /// Say for monitoring whether every job is backed up in time, as `backy check` does
    Check,
    /// List the jobs and what they do, dead directories last
    Jobs {
        /// Only jobs in whose names this regular expression is found
        regex: Option<String>,
    },
    /// Count the jobs by what they do
    Status,
    /// Let a job run as soon as a worker is free
    Run {
        /// The job
        job: String,
    },
    /// Let all jobs run
    Runall,
    /// Let the service read its configuration again
    Reload,
}

impl Arguments {
    /// For `client check`, whether the verdict is wanted as JSON.
    pub(crate) fn asks_for_verdict(&self) -> Option<bool> {
        matches!(self.action, Action::Check).then_some(self.json)
    }
}

/// Asks and prints.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    context.log_call();
    let open = || arguments.target.open(context);
    let as_json = arguments.json;
    match &arguments.action {
        Action::Check => {
            // That the service answers is proof that it runs.
            let verdict = open().and_then(|client| Ok((client.check()?, Some(true))));
            check::conclude(verdict, as_json)
        }
        Action::Jobs { regex } => jobs(context, &open()?, regex.as_deref().unwrap_or(""), as_json),
        Action::Status => status(&open()?, as_json),
        Action::Run { job } => run_job(&open()?, job, as_json),
        Action::Runall => run_all(&open()?, as_json),
        Action::Reload => reload(&open()?, as_json),
    }
}

fn jobs(context: &Context, client: &Client, regex: &str, as_json: bool) -> Result {
    let mut entries = client.status(regex)?;
    tables::sort(&mut entries);
    match as_json {
        true => json::print(&json!({ "service": client.url(), "jobs": entries }))?,
        false => terminal::print(tables::jobs(&entries, &context.zone, terminal::stdout_width()))?,
    }
    Ok(Outcome::Done)
}

fn status(client: &Client, as_json: bool) -> Result {
    let states = tables::states(&client.status("")?);
    match as_json {
        true => json::print(&json!({ "service": client.url(), "states": states }))?,
        false => terminal::print(tables::status(&states, terminal::stdout_width()))?,
    }
    Ok(Outcome::Done)
}

fn run_job(client: &Client, job: &str, as_json: bool) -> Result {
    if !client.run(job)? {
        let message = format!("the service at {} has no job {job}", client.url());
        return Err(refused(message, "`backy client jobs` lists them"));
    }
    match as_json {
        true => json::print(&json!({ "service": client.url(), "jobs": 1 }))?,
        false => terminal::print_line(format_args!("job {job} runs as soon as a worker is free"))?,
    }
    Ok(Outcome::Done)
}

fn run_all(client: &Client, as_json: bool) -> Result {
    let jobs = client.run_all()?;
    match as_json {
        true => json::print(&json!({ "service": client.url(), "jobs": jobs }))?,
        false => {
            let run = if jobs == 1 { "runs" } else { "run" };
            let jobs = count(jobs, "job", "jobs");
            terminal::print_line(format_args!("{jobs} {run} as soon as workers are free"))?;
        }
    }
    Ok(Outcome::Done)
}

fn reload(client: &Client, as_json: bool) -> Result {
    let problems = match client.reload()? {
        Reloaded::Done => Vec::new(),
        Reloaded::Refused(problems) => problems,
    };
    let refused = !problems.is_empty();
    if as_json {
        json::print(&json!({ "service": client.url(), "reloaded": !refused, "problems": problems }))?;
    } else if refused {
        terminal::note("error: the service keeps the configuration it has");
        problems.iter().for_each(|problem| terminal::note(format_args!("  cause: {problem}")));
    } else {
        terminal::print_line("the configuration is in force")?;
    }
    Ok(Outcome::bad_if(refused))
}
