//! `backy doctor`: what this machine has that backy needs, thing by thing. Changes nothing.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::path::Path;

use backy_sched::service::config::PATH_DEFAULT;
use backy_sched::source::rbd;
use backy_store::fs::ownership::{self, Secrecy};
use backy_store::{Error as StoreError, Repository};
use clap::Args;
use serde_json::json;

use super::{Context, ceph_environment};
use crate::failure::{Outcome, Result};
use crate::output::json;
use crate::output::terminal;
use crate::output::text::{count, escape};

/// Says what backy finds here: the store, mounts, and what backups of RBD images need.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One thing: `Ok` with a fact, or `Err` with why it cannot be used.
type Fact = (&'static str, std::result::Result<String, String>);

/// Prints the facts.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    context.log_call();
    let mut facts: Vec<Fact> = vec![("store", store(context)), ("owners", owners(context)), ("fuse", fuse())];
    let ceph = rbd::examine(&ceph_environment());
    #[cfg(feature = "rados")]
    let rados = rados(ceph.iter().any(|(name, fact)| *name == "cluster" && fact.is_ok()));
    facts.extend(ceph);
    #[cfg(feature = "rados")]
    facts.push(("rados", rados));
    if arguments.json {
        let entries: Vec<_> = facts.iter().map(entry).collect();
        json::print(&json!({ "facts": entries }))?;
        return Ok(Outcome::Done);
    }
    let mut text = String::new();
    for (name, fact) in &facts {
        let (state, said) = match fact {
            Ok(said) => ("ok", said),
            Err(said) => ("no", said),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:8} {state}  {}", escape(said));
    }
    terminal::print(text)?;
    Ok(Outcome::Done)
}

fn entry((name, fact): &Fact) -> serde_json::Value {
    let (is_usable, text) = match fact {
        Ok(text) => (true, text),
        Err(text) => (false, text),
    };
    json!({ "name": name, "usable": is_usable, "text": text })
}

fn store(context: &Context) -> std::result::Result<String, String> {
    let found = || -> anyhow::Result<String> {
        let location = Repository::discover(&context.dir()?)?;
        location.repository.check_site()?;
        let jobs = location.repository.jobs()?.len();
        Ok(format!("{}, {}", location.repository.root().display(), count(jobs, "job", "jobs")))
    };
    found().map_err(|error| format!("{error:#}"))
}

/// Whether owners and modes of the store, of what is above it, of its jobs and of the usual main configuration are as
/// they should be.
fn owners(context: &Context) -> std::result::Result<String, String> {
    let mut faults = Vec::new();
    // What cannot be found or examined is the business of other lines.
    let mut look = |found: backy_store::Result<()>| {
        if let Err(StoreError::Unsafe { path, fault }) = found {
            faults.push(format!("{} {fault}: `{} {}`", path.display(), fault.remedy(), path.display()));
        }
    };
    let location = context.dir().and_then(|dir| Ok(Repository::discover(&dir)?));
    match location {
        Ok(location) => {
            look(ownership::check(location.repository.root(), Secrecy::Public));
            look(ownership::check_parents(location.repository.root()));
            for job in location.repository.jobs().unwrap_or_default() {
                look(ownership::check(job.dir(), Secrecy::Public));
                look(ownership::check(&job.config_path(), Secrecy::Public));
            }
        }
        Err(error) => look(error.downcast::<StoreError>().map_or(Ok(()), Err)),
    }
    let config = Path::new(PATH_DEFAULT);
    look(ownership::check(config, Secrecy::Public));
    look(ownership::check_parents(config));
    match faults.is_empty() {
        true => Ok("nobody else can change the store, its jobs or the configuration".to_owned()),
        false => Err(faults.join("; ")),
    }
}

fn fuse() -> std::result::Result<String, String> {
    let device = "/dev/fuse";
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(format!("{device} can be opened")),
        Err(error) => Err(format!("{device}: {error}; images cannot be mounted")),
    }
}

/// What the cluster of `CEPH_CONF` says of itself, if it is known to answer.
#[cfg(feature = "rados")]
fn rados(answers: bool) -> std::result::Result<String, String> {
    use crate::output::size::human_bytes;

    if !answers {
        return Err("not asked, for the cluster does not answer".to_owned());
    }
    let conf = std::env::var_os("CEPH_CONF").unwrap_or_else(|| "/etc/ceph/ceph.conf".into());
    let arguments = std::env::var("CEPH_ARGS").unwrap_or_default();
    let user = rbd::user_of(&arguments).unwrap_or_else(|| "admin".to_owned());
    match backy_store::cluster_facts(&user, std::path::Path::new(&conf)) {
        Ok(facts) => Ok(format!(
            "cluster {}, {} of {} used",
            facts.fsid,
            human_bytes(facts.used_bytes),
            human_bytes(facts.size_bytes)
        )),
        Err(error) => Err(format!("{:#}", anyhow::Error::from(error))),
    }
}
