//! What can be typed: the global options and the list of commands. The options of a command stand in
//! the command's own file.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::commands::{
    accept, backup, check, client, completion, config, distrust, doctor, expire, find, forget, index, init,
    mount, peers, purge, release, restore, scheduler, status, tags, undelete, unmount, upgrade, verify,
};
use crate::failure::{self, EXIT_FAILED, EXIT_USAGE};
use crate::output::terminal;

/// The help's last words.
const AFTER_HELP: &str = "\
Revisions (-r) are given by id, by count (0 is the newest), as `last`, `first`, `all`, `tag:daily`,
`trust:distrusted`, by date or range (`2024-03-01..`), combined with `&`, `,` and `not(...)`, or by a tag alone.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 locked by another run.";

/// Keeps many revisions of virtual machine disks and gives any of them back at once.
#[derive(Debug, Parser)]
#[command(name = "backy", version, about, after_help = AFTER_HELP, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Options that every command takes, before or after its name.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Append the log to FILE [default: backy.log in the directory of the job or store]
    #[arg(short, long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) logfile: Option<PathBuf>,
    /// Show every log line on standard error, not only warnings
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) verbose: bool,
    /// The job's directory, or the store's [default: the current directory]
    #[arg(short, long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(crate) backupdir: Option<PathBuf>,
    /// Marks the log lines of this run [default: random]
    #[arg(short, long, global = true, value_name = "ID", help_heading = "Global options")]
    pub(crate) taskid: Option<String>,
    /// The main configuration, for the commands that read it [default: /etc/backy.conf]
    #[arg(short, long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,
}

/// The commands, in the order of a revision's life.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a store, or a job below it
    Init(init::Arguments),
    /// Make a new revision of the job's source
    Backup(backup::Arguments),
    /// List the revisions of a job, or the jobs of a store
    Status(status::Arguments),
    /// Print where revisions are kept
    Find(find::Arguments),
    /// Copy a revision's image out
    Restore(restore::Arguments),
    /// Show all revisions as files below a mount point
    Mount(mount::Arguments),
    /// Take a mount away, or say who uses it
    Unmount(unmount::Arguments),
    /// Read revisions back and check every byte
    Verify(verify::Arguments),
    /// Mark revisions as possibly damaged
    Distrust(distrust::Arguments),
    /// Accept a changed source: its suspicious revisions count from now on
    Accept(accept::Arguments),
    /// Change the tags of revisions
    Tags(tags::Arguments),
    /// Drop the tags that the schedule no longer keeps, and the revisions without tags
    Expire(expire::Arguments),
    /// Remove revisions; `undelete` brings them back until they are purged
    Forget(forget::Arguments),
    /// Bring a forgotten revision back
    Undelete(undelete::Arguments),
    /// Delete the chunks that no revision needs
    Purge(purge::Arguments),
    /// Remove the snapshots that the job has at its source
    Release(release::Arguments),
    /// Note which revisions of the job other servers have
    Pull(peers::Arguments),
    /// Tell other servers which tags of their revisions were changed here
    Push(peers::Arguments),
    /// Convert revisions that the original backy wrote
    Upgrade(upgrade::Arguments),
    /// Look after the index of revisions
    Index(index::Arguments),
    /// Say for monitoring whether every job is backed up in time
    Check(check::Arguments),
    /// Run the service that lets every job run on time
    Scheduler(scheduler::Arguments),
    /// Ask a running scheduler service
    Client(client::Arguments),
    /// Look after the main configuration
    Config(config::Arguments),
    /// Say what this machine has that backy needs
    Doctor(doctor::Arguments),
    /// Print a completion script for a shell
    Completion(completion::Arguments),
}

impl Command {
    /// Returns the name as it is typed.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Init(_) => "init",
            Self::Backup(_) => "backup",
            Self::Status(_) => "status",
            Self::Find(_) => "find",
            Self::Restore(_) => "restore",
            Self::Mount(_) => "mount",
            Self::Unmount(_) => "unmount",
            Self::Verify(_) => "verify",
            Self::Distrust(_) => "distrust",
            Self::Accept(_) => "accept",
            Self::Tags(_) => "tags",
            Self::Expire(_) => "expire",
            Self::Forget(_) => "forget",
            Self::Undelete(_) => "undelete",
            Self::Purge(_) => "purge",
            Self::Release(_) => "release",
            Self::Pull(_) => "pull",
            Self::Push(_) => "push",
            Self::Upgrade(_) => "upgrade",
            Self::Index(_) => "index",
            Self::Check(_) => "check",
            Self::Scheduler(_) => "scheduler",
            Self::Client(_) => "client",
            Self::Config(_) => "config",
            Self::Doctor(_) => "doctor",
            Self::Completion(_) => "completion",
        }
    }

    /// Whether its answer is a verdict for a monitoring system, which every failure is a part of.
    pub(crate) fn is_verdict(&self) -> Option<bool> {
        match self {
            Self::Check(arguments) => Some(arguments.json),
            Self::Client(arguments) => arguments.asks_for_verdict(),
            _ => None,
        }
    }

    /// Whether it only looks. Such a command leaves no line in the job's log.
    pub(crate) fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::Status(_)
                | Self::Find(_)
                | Self::Unmount(_)
                | Self::Check(_)
                | Self::Scheduler(_)
                | Self::Client(_)
                | Self::Config(_)
                | Self::Doctor(_)
                | Self::Completion(_)
        )
    }
}

/// Prints what clap has to say: help and version on standard output, misuse on standard error. Misuse of a check is
/// also a verdict on standard output, which is all that a monitoring system shows.
pub(crate) fn report(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let printed = error.print().and_then(|()| io::stdout().flush());
    let is_lost =
        terminal::stdout_is_closed() || printed.is_err_and(|error| error.kind() != io::ErrorKind::BrokenPipe);
    match u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE) {
        0 if is_lost => return ExitCode::from(EXIT_FAILED),
        EXIT_USAGE if asks_for_verdict(arguments) => {}
        status => return ExitCode::from(status),
    }
    let message = error.to_string();
    let message = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let words = Words::of(arguments);
    let error =
        words.swallowed().map_or_else(|| failure::usage(message, ""), |option| option.complaint(&words));
    give_verdict(error, arguments)
}

/// Refuses options without a command, which may be what one of them took for its value. A monitoring system that ran
/// `check` that way gets a verdict.
pub(crate) fn without_command(arguments: &[OsString]) -> ExitCode {
    let words = Words::of(arguments);
    let error = match words.swallowed() {
        Some(option) => option.complaint(&words),
        None => failure::usage("no command was given", "`backy --help` lists the commands"),
    };
    match asks_for_verdict(arguments) {
        true => give_verdict(error, arguments),
        false => failure::conclude(Err(error)),
    }
}

fn give_verdict(error: anyhow::Error, arguments: &[OsString]) -> ExitCode {
    let as_json = arguments.iter().any(|argument| argument == "--json");
    failure::conclude(check::conclude(Err(error), as_json))
}

/// Whether arguments that make no sense were meant for `check` or `client check`, also where an option took the word.
fn asks_for_verdict(arguments: &[OsString]) -> bool {
    let words = Words::of(arguments);
    match words.commands[..] {
        ["check", ..] | ["client", "check", ..] => true,
        [] | ["client"] => words.swallowed().is_some_and(|option| option.value == "check"),
        _ => false,
    }
}

/// The words of a command line as far as the names of commands go.
struct Words<'a> {
    /// The words that stand where names of commands are expected.
    commands: Vec<&'a str>,
    /// Options with the word that follows them as their value.
    options: Vec<Valued<'a>>,
}

/// An option and its value.
#[derive(Clone)]
struct Valued<'a> {
    /// As it was typed.
    option: &'a str,
    /// What the help calls its value.
    value_name: String,
    value: &'a str,
}

impl<'a> Words<'a> {
    fn of(arguments: &'a [OsString]) -> Self {
        let known = ValuedOptions::of_checks();
        let (mut commands, mut options) = (Vec::new(), Vec::new());
        let mut words = arguments.iter().skip(1).map(|word| word.to_str().unwrap_or_default());
        while let Some(word) = words.next() {
            match known.needs_next(word) {
                Some(value_name) => options.extend(words.next().map(|value| Valued {
                    option: word,
                    value_name: value_name.to_owned(),
                    value,
                })),
                None if !word.starts_with('-') => commands.push(word),
                None => {}
            }
        }
        Self { commands, options }
    }

    /// The option that took the name of a command for its value, where no command is left.
    fn swallowed(&self) -> Option<&Valued<'a>> {
        let root = Cli::command();
        let parent = match self.commands[..] {
            [] => &root,
            ["client"] => root.find_subcommand("client")?,
            _ => return None,
        };
        self.options.iter().rfind(|option| parent.find_subcommand(option.value).is_some())
    }
}

impl Valued<'_> {
    fn complaint(&self, words: &Words<'_>) -> anyhow::Error {
        let Self { option, value_name, value } = self;
        let before: String = words.commands.iter().map(|word| format!("{word} ")).collect();
        failure::usage(
            format!("no command was given: `{option}` takes a {value_name}, and took `{value}` for it"),
            format!("`backy {before}{option} {value_name} {value}`"),
        )
    }
}

/// The options before the name of a check that take a value, as clap knows them, with the names of the values.
struct ValuedOptions {
    short: Vec<(char, String)>,
    long: Vec<(String, String)>,
}

impl ValuedOptions {
    fn of_checks() -> Self {
        let root = Cli::command();
        let client = root.find_subcommand("client");
        let arguments = root.get_arguments().chain(client.into_iter().flat_map(clap::Command::get_arguments));
        let (mut short, mut long) = (Vec::new(), Vec::new());
        for argument in arguments.filter(|argument| argument.get_action().takes_values()) {
            let name = argument.get_value_names().and_then(|names| names.first());
            let name = name.map_or_else(|| "value".to_owned(), ToString::to_string);
            short.extend(argument.get_short().map(|letter| (letter, name.clone())));
            long.extend(argument.get_long().map(|word| (word.to_owned(), name.clone())));
        }
        Self { short, long }
    }

    /// Returns the name of the value of the option in `word`, if that is the next word.
    fn needs_next(&self, word: &str) -> Option<&str> {
        if let Some(long) = word.strip_prefix("--") {
            return self.long.iter().find(|(known, _)| known == long).map(|(_, name)| name.as_str());
        }
        let letters = word.strip_prefix('-')?;
        // What follows the first option with a value in a cluster is that value.
        let mut known = letters.char_indices().filter_map(|(at, letter)| {
            let (_, name) = self.short.iter().find(|(known, _)| *known == letter)?;
            Some((at + letter.len_utf8(), name.as_str()))
        });
        known.next().filter(|(end, _)| *end == letters.len()).map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_are_those_that_are_typed() {
        let typed: Vec<String> =
            Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        for words in [
            &["backup", "daily"][..],
            &["expire"],
            &["accept"],
            &["index", "rebuild"],
            &["undelete"],
            &["mount", "/m"],
            &["release"],
            &["pull"],
            &["push"],
        ] {
            let cli = Cli::try_parse_from(std::iter::once(&"backy").chain(words)).unwrap();
            let name = cli.command.unwrap().name();
            assert_eq!(name, words[0]);
            assert!(typed.iter().any(|known| known == name), "{name}");
        }
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for words in [
            ["-b", "/x", "-c", "/c", "-v", "check"],
            ["check", "-b", "/x", "-c", "/c", "-v"],
            ["-c", "/c", "check", "-b", "/x", "-v"],
        ] {
            let cli = Cli::try_parse_from(std::iter::once("backy").chain(words)).unwrap();
            assert_eq!(cli.global.backupdir.as_deref(), Some(std::path::Path::new("/x")));
            assert_eq!(cli.global.config.as_deref(), Some(std::path::Path::new("/c")), "{words:?}");
            assert!(cli.global.verbose);
        }
    }

    #[test]
    fn the_manual_names_every_command_and_option() {
        let manual = include_str!("../docs/cli.md");
        let named = |text: &str, argument: &clap::Arg| {
            let long = argument.get_long().map(|long| format!("`--{long}"));
            let short = argument.get_short().map(|short| format!("`-{short}"));
            long.iter().chain(&short).all(|name| text.contains(name.as_str()))
        };
        for argument in Cli::command().get_arguments() {
            assert!(named(manual, argument), "{}", argument.get_id());
        }
        for command in Cli::command().get_subcommands() {
            let head = format!("\n## {}\n", command.get_name());
            let (_, section) = manual.split_once(&head).unwrap_or_else(|| panic!("no section{head}"));
            let section = section.split("\n## ").next().unwrap();
            assert!(section.contains("Exit status:"), "{head}");
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(named(section, argument), "{} in {head}", argument.get_id());
            }
            for nested in command.get_subcommands() {
                let name = format!("{} {}", command.get_name(), nested.get_name());
                assert!(section.contains(&name), "{name}");
                for argument in nested.get_arguments() {
                    assert!(named(section, argument), "{} in {name}", argument.get_id());
                }
            }
        }
    }

    #[test]
    fn wrong_usage_of_a_check_is_told_apart() {
        for (words, expected) in [
            (&["check", "--colour"][..], true),
            (&["-v", "-b", "config", "check", "-x"], true),
            (&["-vc", "config", "check", "-x"], true),
            (&["-cconfig", "check", "-x"], true),
            (&["client", "-c", "x", "check", "-x"], true),
            (&["client", "--token", "check"], true),
            (&["client", "-c", "check", "--json"], true),
            (&["client", "--token", "jobs"], false),
            (&["client", "jobs", "check", "-x"], false),
            (&["--backupdir=check", "status", "--x"], false),
            (&["-b", "check"], true),
            (&["-vl", "check", "--json"], true),
            (&["-b", "status"], false),
            (&["-lcheck"], false),
            (&["status", "-l", "check"], false),
            (&["config", "check", "-x"], false),
            (&[], false),
        ] {
            let words: Vec<OsString> = ["backy"].iter().chain(words).map(OsString::from).collect();
            assert_eq!(asks_for_verdict(&words), expected, "{words:?}");
        }
    }

    #[test]
    fn a_misspelt_command_is_answered_with_the_nearest() {
        let error = Cli::try_parse_from(["backy", "restroe"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("'restore'"), "{error}");
    }
}
