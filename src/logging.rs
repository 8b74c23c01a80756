//! The log: one line for each event, in the job's log file, and on standard error what a person must see
//! (warnings; everything with `-v`). Owner of the tracing subscriber.
//!
//! A line is `TIME TASK LEVEL JOB SUBSYSTEM/EVENT key=value ...`, keys sorted; longer texts follow on lines
//! of their own behind `>` and a tab. Nothing from outside can forge a line or steer a terminal. The log
//! file of a job is opened with the first line; that it cannot be opened stops nothing, unless it was
//! asked for by name.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use backy_store::{JobName, RevisionId, Timestamp, Zone};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry;

use crate::output::terminal;
use crate::output::text::{escape, quote};

/// Target of the commands' own events. Standard error has had their warnings and errors in plainer words.
pub(crate) const QUIET: &str = "backy::command";

/// The longest message that becomes the name of its event.
const EVENT_CHARS_MAX: usize = 40;
/// Characters of a random id that make a task id.
const TASK_CHARS: usize = 6;

/// Handle to the running log.
#[derive(Clone, Debug)]
pub(crate) struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    task: String,
    verbose: bool,
    zone: Zone,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    job: String,
    file: Sink,
    /// Whether a log that cannot be opened is worth a warning, and every line another try: a service lives for months.
    insists: bool,
    /// Whether that warning was given.
    warned: bool,
}

#[derive(Debug)]
enum Sink {
    Closed,
    Pending(PathBuf),
    Open { file: LogFile, by_name: bool },
}

/// An open log file. When somebody has renamed it, as logrotate does, the next line goes to a new one.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(&mut self, line: &str) {
        let identity = |facts: &std::fs::Metadata| (facts.dev(), facts.ino());
        let (there, here) = (std::fs::metadata(&self.path), self.file.metadata());
        let is_same = matches!((there, here), (Ok(there), Ok(here)) if identity(&there) == identity(&here));
        if !is_same && let Ok(new) = Self::open(&self.path) {
            *self = new;
        }
        // A full disk must not stop a restore; one write for each line keeps lines of two runs apart.
        let _ = self.file.write_all(line.as_bytes());
    }
}

impl Log {
    /// Starts the log of this process. `logfile` is opened at once; failing to is an error.
    pub(crate) fn start(logfile: Option<&Path>, verbose: bool, task: Option<String>) -> anyhow::Result<Self> {
        let file = match logfile {
            Some(path) => {
                let opened = LogFile::open(path)
                    .with_context(|| format!("cannot open the log file {}", path.display()));
                Sink::Open { file: opened?, by_name: true }
            }
            None => Sink::Closed,
        };
        let task = task.map_or_else(random_task, Ok)?;
        let state = Mutex::new(State { job: String::new(), file, insists: false, warned: false });
        let shared = Arc::new(Shared { task, verbose, zone: Zone::system(), state });
        let subscriber = Registry::default().with(Lines(Arc::clone(&shared)));
        tracing::subscriber::set_global_default(subscriber).context("cannot start the log")?;
        Ok(Self(shared))
    }

    /// Returns what marks the lines of this run.
    pub(crate) fn task_id(&self) -> &str {
        &self.0.task
    }

    /// Goes on in the job's own log file, unless another was asked for by name.
    pub(crate) fn enter_job(&self, name: &JobName, dir: &Path) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).job = name.to_string();
        self.enter_dir(dir);
    }

    /// Goes on in the log file of a directory, a job's or a store's, unless another was asked for by name.
    pub(crate) fn enter_dir(&self, dir: &Path) {
        self.enter_file(&dir.join("backy.log"));
    }

    /// Goes on in this file for a long time: as [`Log::enter_file`], but that it cannot be opened is told, and tried again.
    pub(crate) fn stay_in_file(&self, path: &Path) {
        self.enter_file(path);
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).insists = true;
    }

    /// Goes on in this file, unless another was asked for by name.
    pub(crate) fn enter_file(&self, path: &Path) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(state.file, Sink::Open { by_name: true, .. }) {
            state.file = Sink::Pending(path.to_owned());
        }
    }
}

fn random_task() -> anyhow::Result<String> {
    // The last digits of an id are the evenly distributed ones.
    let id = RevisionId::random()?;
    let text = id.as_str();
    Ok(text[text.len().saturating_sub(TASK_CHARS)..].to_owned())
}

impl State {
    fn write(&mut self, line: &str) {
        if let Sink::Pending(path) = &self.file {
            match LogFile::open(path) {
                Ok(file) => self.file = Sink::Open { file, by_name: false },
                Err(_) if !self.insists => self.file = Sink::Closed,
                Err(error) if !self.warned => {
                    self.warned = true;
                    terminal::warn(format_args!(
                        "cannot open the log {}: {error}; tried again with each line",
                        path.display()
                    ));
                }
                Err(_) => {}
            }
        }
        if let Sink::Open { file, .. } = &mut self.file {
            file.write(line);
        }
    }
}

/// The tracing layer: turns events into lines.
struct Lines(Arc<Shared>);

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        let ours = metadata.target().starts_with("backy");
        *metadata.level() <= if ours { Level::DEBUG } else { Level::WARN }
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let now = Timestamp::now();
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let job = fields.values.get("job").map_or(state.job.as_str(), String::as_str).to_owned();
        // The service works on many tasks at once and marks the lines of each.
        let task = fields.values.remove("task").unwrap_or_else(|| self.0.task.clone());
        let head = Head { now, zone: &self.0.zone, task: &task, level: *metadata.level(), job: &job };
        let line = format_line(&head, metadata.target(), &fields);
        state.write(&line);
        drop(state);
        let grave = *metadata.level() <= Level::WARN;
        let told = grave && metadata.target() == QUIET;
        if (grave || self.0.verbose) && !told {
            line.lines().for_each(terminal::note);
        }
    }
}

/// The values of one event.
#[derive(Default)]
struct Fields {
    message: String,
    values: BTreeMap<String, String>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            self.values.insert(field.name().to_owned(), value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.record_str(field, &text);
    }
}

/// What stands at the head of a line.
struct Head<'h> {
    now: Timestamp,
    zone: &'h Zone,
    task: &'h str,
    level: Level,
    job: &'h str,
}

fn format_line(head: &Head<'_>, target: &str, fields: &Fields) -> String {
    let time = head.now.format(head.zone).replace(' ', "T");
    let micros = head.now.as_micros().rem_euclid(1_000_000);
    let level = head.level.as_str().chars().next().unwrap_or('?');
    let subsystem = target.rsplit("::").next().unwrap_or(target);
    let name = event_name(&fields.message);
    let event = format!("{}/{}", escape(subsystem), name.as_deref().unwrap_or("message"));
    let (task, job) = (escape(head.task), escape(head.job));
    let mut line = format!("{time}.{micros:06} {task} {level} {job:<20} {event:<35}");
    for (key, value) in fields.values.iter().filter(|(key, _)| *key != "job") {
        // Writing to a string cannot fail.
        let _ = write!(line, " {}={}", escape(key), quote(value));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    if name.is_none() {
        for text in fields.message.lines() {
            let _ = writeln!(line, ">\t{}", escape(text));
        }
    }
    line
}

/// Returns a short message as one word with hyphens; `None` when it is longer or more than words.
fn event_name(message: &str) -> Option<String> {
    let word = |character: char| character.is_ascii_alphanumeric() || " -_".contains(character);
    let fits = !message.is_empty() && message.len() <= EVENT_CHARS_MAX && message.chars().all(word);
    fits.then(|| message.to_lowercase().replace(' ', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str, values: &[(&str, &str)]) -> String {
        let zone = Zone::utc();
        let now = Timestamp::from_micros(1_709_294_400_000_010).unwrap();
        let head = Head { now, zone: &zone, task: "a1b2c3", level: Level::INFO, job: "web01" };
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        format_line(&head, "backy_store::sweep", &Fields { message: message.to_owned(), values })
    }

    #[test]
    fn a_line_has_columns_and_sorted_keys() {
        assert_eq!(
            line("removed chunks", &[("job", "web01"), ("number", "7"), ("path", "/srv/a b")]),
            "2024-03-01T12:00:00.000010 a1b2c3 I web01                sweep/removed-chunks                number=7 path='/srv/a b'\n"
        );
    }

    #[test]
    fn no_text_can_forge_a_line() {
        let text = line("bad name: x\n2024-03-01T12:00:00 y\x1b[2J", &[("name", "a\nb")]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].ends_with("name='a\\nb'"), "{text}");
        assert_eq!(lines[1], ">\tbad name: x");
        assert_eq!(lines[2], ">\t2024-03-01T12:00:00 y\\u{1b}[2J");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "logrotate renames, too")]
    fn a_renamed_log_is_left_to_who_renamed_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rotated) = (dir.path().join("log"), dir.path().join("log.1"));
        let mut log = LogFile::open(&path).unwrap();
        log.write("one\n");
        std::fs::rename(&path, &rotated).unwrap();
        log.write("two\n");
        log.write("three\n");
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "one\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\nthree\n");
    }

    #[test]
    fn words_become_names_and_sentences_do_not() {
        assert_eq!(event_name("Stage begins").as_deref(), Some("stage-begins"));
        assert_eq!(event_name("cannot read /x: no"), None);
        assert_eq!(event_name(""), None);
    }
}
