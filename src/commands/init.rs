//! `backy init BASE-DIR` makes a store; `backy -b BASE-DIR/JOB init TYPE KEY=VALUE...` makes a job below
//! one; `backy init --repair BASE-DIR` gives a store that lost its file `backy.store` a new one. Only the second makes a store by itself, and only where there is nothing at all: a directory with
//! other files in it may be the wrong place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use backy_sched::JobConfig;
use backy_store::{Error, JobName, Repository, Timestamp};
use clap::Args;

use super::{Context, absolute};
use crate::failure::{Outcome, Result, refused, usage};
use crate::output::terminal;

/// The source setting that is a path.
const PATH_SETTING: &str = "filename";

/// Makes a store (`backy init /srv/backy`), or a job (`backy -b /srv/backy/web01 init file filename=/web01.img`).
#[derive(Args, Debug)]
#[command(override_usage = "backy init [--repair] BASE-DIR
       backy -b BASE-DIR/JOB init [--own-store] TYPE KEY=VALUE...")]
pub(crate) struct Arguments {
    /// The new store's directory; or a source type and its settings, for a job at -b
    #[arg(value_name = "BASE-DIR | TYPE KEY=VALUE", required = true, num_args = 1..)]
    words: Vec<String>,
    /// Give the job chunks of its own, so that its directory can be moved alone
    #[arg(long)]
    own_store: bool,
    /// Write the file backy.store of a store again that has lost it
    #[arg(long, conflicts_with = "own_store")]
    repair: bool,
}

/// What the words ask for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Store(PathBuf),
    Job { source_type: String, settings: Vec<(String, String)> },
}

/// Makes what was asked for and prints what was made.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    match wish(&arguments.words, JobConfig::source_types(), context.has_given_dir())? {
        Wish::Store(_) if arguments.own_store => {
            Err(usage("--own-store is for jobs", "give a source type and its settings, and the job with -b"))
        }
        Wish::Job { .. } if arguments.repair => {
            Err(usage("--repair is for stores", "give the directory of the store and nothing else"))
        }
        Wish::Store(dir) if arguments.repair => {
            let root = absolute(&dir)?;
            Repository::repair(&root, Timestamp::now())?;
            terminal::print_line(format_args!("repaired store {}", root.display()))?;
            Ok(Outcome::Done)
        }
        Wish::Store(dir) => {
            let root = absolute(&dir)?;
            Repository::create(&root, Timestamp::now())?;
            terminal::print_line(format_args!("created store {}", root.display()))?;
            Ok(Outcome::Done)
        }
        Wish::Job { source_type, settings } => make_job(context, &source_type, settings, arguments.own_store),
    }
}

/// Decides between a store and a job. Pure.
fn wish(words: &[String], source_types: &[&str], has_given_dir: bool) -> anyhow::Result<Wish> {
    let example = "`backy -b /srv/backy/web01 init file filename=/var/lib/images/web01.img` makes a job";
    let (first, rest) = words.split_first().ok_or_else(|| usage("nothing to make", example))?;
    let is_type = source_types.contains(&first.as_str());
    let types = source_types.join(", ");
    match rest {
        [] if is_type && has_given_dir => {
            Err(usage(format!("the settings of the source {first} are missing"), example))
        }
        [] => Ok(Wish::Store(PathBuf::from(first))),
        _ if !is_type => Err(usage(format!("unknown source type {first:?}"), format!("there are {types}"))),
        _ => {
            let settings = rest.iter().map(|word| setting(word)).collect::<anyhow::Result<_>>()?;
            Ok(Wish::Job { source_type: first.clone(), settings })
        }
    }
}

fn setting(word: &str) -> anyhow::Result<(String, String)> {
    match word.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(usage(
            format!("{word:?} is not a setting"),
            "settings look like filename=/var/lib/images/web01.img",
        )),
    }
}

fn make_job(
    context: &Context,
    source_type: &str,
    mut settings: Vec<(String, String)>,
    own_store: bool,
) -> Result {
    let dir = context.dir()?;
    let (parent, name) = parent_and_name(&dir)?;
    for (_, value) in settings.iter_mut().filter(|(key, _)| key == PATH_SETTING) {
        *value = absolute_source(value)?;
        if !Path::new(value.as_str()).exists() {
            terminal::warn(format_args!("{value} does not exist yet"));
        }
    }
    // Before anything is made, the settings must make sense.
    let config = JobConfig::for_source(source_type, &settings)?.to_yaml();
    let now = Timestamp::now();
    let made = match (Repository::open(&parent), own_store) {
        // A job with a store of its own needs nobody: the directory around it stays what it is.
        (Err(Error::StoreMissing { .. }), true) => Repository::create_lone_job(&dir, &config, now),
        (Err(Error::StoreMissing { .. }), false) => {
            create_store(&parent)?.create_job(&name, own_store, &config, now)
        }
        (opened, _) => opened?.create_job(&name, own_store, &config, now),
    };
    let job = made.with_context(|| format!("cannot create job {name}"))?;
    let chunks = if own_store { ", with chunks of its own" } else { "" };
    terminal::print_line(format_args!("created job {name} at {}{chunks}", job.dir().display()))?;
    Ok(Outcome::Done)
}

/// Splits a job's directory in the store's and the job's name.
fn parent_and_name(dir: &Path) -> anyhow::Result<(PathBuf, JobName)> {
    let hint = "the job's directory is given with -b, for example `-b /srv/backy/web01`";
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Err(usage(format!("{} cannot be a job's directory", dir.display()), hint));
    };
    let name = JobName::parse(&name.to_string_lossy())
        .with_context(|| format!("{} cannot be a job's directory", dir.display()))?;
    Ok((parent.to_owned(), name))
}

/// Makes the path of a source independent of the directory in which later commands run.
fn absolute_source(value: &str) -> anyhow::Result<String> {
    let path = Path::new(value);
    if value.is_empty() || path.is_absolute() {
        return Ok(value.to_owned());
    }
    let path = absolute(path)?;
    let real = match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path,
    };
    let text = real.to_str().map(str::to_owned);
    text.ok_or_else(|| usage(format!("the path {} is not UTF-8", real.display()), ""))
}

/// Makes the store at `parent`, where there must be nothing.
fn create_store(parent: &Path) -> anyhow::Result<Repository> {
    if let Err(error @ Error::StoreUnmarked { .. }) = Repository::open_any(parent)
        && !is_vacant(parent)?
    {
        return Err(error.into());
    }
    if !is_vacant(parent)? {
        return Err(refused(
            format!("{} holds other files and is not a store", parent.display()),
            "give an empty or a new directory as the store",
        ));
    }
    // A store inside a store is refused in any case; this says what was meant.
    if let Some(outer) = parent.ancestors().skip(1).find(|dir| Repository::open(dir).is_ok()) {
        return Err(refused(
            format!("{} lies inside the store at {}", parent.display(), outer.display()),
            format!("jobs lie directly below their store: `-b {}/JOB`", outer.display()),
        ));
    }
    let repository = Repository::create(parent, Timestamp::now())?;
    terminal::print_line(format_args!("created store {}", parent.display()))?;
    Ok(repository)
}

/// Whether `dir` is an empty directory or not there at all. What an `init` that was cut off has left there, and what
/// an empty file system has, does not count: making the store fails if there is anything in it.
fn is_vacant(dir: &Path) -> anyhow::Result<bool> {
    const NOTHING: [&str; 5] = ["chunks", "tmp", "writers", "damaged", "maps"];
    let is_nothing = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let begins = |start: &str| name.as_encoded_bytes().starts_with(start.as_bytes());
        NOTHING.iter().any(|&nothing| name == nothing)
            || backy_store::is_furniture(&name)
            || [".unfinished-", ".sweep", ".reserve"].into_iter().any(begins)
    };
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.all(|entry| entry.is_ok_and(|entry| is_nothing(&entry)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("cannot list {}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: &[&str] = &["file", "ceph-rbd"];

    fn decide(words: &[&str], has_given_dir: bool) -> anyhow::Result<Wish> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        wish(&words, TYPES, has_given_dir)
    }

    #[test]
    fn one_word_is_a_store_and_a_type_with_settings_a_job() {
        assert_eq!(decide(&["/srv/backy"], false).unwrap(), Wish::Store("/srv/backy".into()));
        assert_eq!(decide(&["file"], false).unwrap(), Wish::Store("file".into()));
        let settings = vec![("filename".to_owned(), "/x=y.img".to_owned())];
        let job = Wish::Job { source_type: "file".to_owned(), settings };
        assert_eq!(decide(&["file", "filename=/x=y.img"], true).unwrap(), job);
    }

    #[test]
    fn everything_else_is_refused() {
        for words in
            [&["file"][..], &["fil", "filename=/x"], &["file", "/x.img"], &["file", "=x"], &["a", "b"]]
        {
            assert!(decide(words, true).is_err(), "{words:?}");
        }
    }

    #[test]
    fn only_a_directory_with_a_good_name_can_be_a_job() {
        let (parent, name) = parent_and_name(Path::new("/srv/backy/web01")).unwrap();
        assert_eq!((parent.as_path(), name.as_str()), (Path::new("/srv/backy"), "web01"));
        for dir in ["/", "/srv/..", "/srv/a b", "/srv/chunks"] {
            assert!(parent_and_name(Path::new(dir)).is_err(), "{dir}");
        }
    }

    #[test]
    fn a_source_is_found_from_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        assert_eq!(absolute_source("/x/y.img").unwrap(), "/x/y.img");
        assert!(absolute_source("y.img").unwrap().starts_with('/'));
        assert!(is_vacant(&real).unwrap() && is_vacant(&real.join("new")).unwrap());
        fs::write(real.join("a"), "").unwrap();
        assert!(!is_vacant(&real).unwrap());
    }
}
