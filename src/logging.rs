//! The log: one line for each event, in the job's log file, and on standard error what a person must see
//! (warnings; everything with `-v`). Owner of the tracing subscriber.
//!
//! A line is `TIME TASK LEVEL JOB SUBSYSTEM/EVENT key=value ...`, keys sorted; longer texts follow on lines
//! of their own behind `>` and a tab. Nothing from outside can forge a line or steer a terminal.
//!
//! Who logs formats the line and puts it into a bounded queue; no lock is held meanwhile, and a thread of its own
//! opens and writes the file ([`crate::output::drain`]). So a log on a full or a hung disk, or one that nobody reads,
//! stops nothing. What the log itself has to say never goes through tracing.

mod file;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use backy_store::{JobName, RevisionId, Timestamp, Zone};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry;

use self::file::{LogFile, Named};
use crate::output::drain::{Drain, Outlet};
use crate::output::terminal;
use crate::output::text::{escape, quote};

/// Target of the commands' own events. Standard error has had their warnings and errors in plainer words.
pub(crate) const QUIET: &str = "backy::command";

/// The longest message that becomes the name of its event.
const EVENT_CHARS_MAX: usize = 40;
/// Characters of a random id that make a task id.
const TASK_CHARS: usize = 6;
/// How long a log that cannot be opened is left alone.
const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// The log of this process, once it is started.
static LOG: OnceLock<Log> = OnceLock::new();

/// Handle to the running log.
#[derive(Clone, Debug)]
pub(crate) struct Log(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    task: String,
    verbose: bool,
    /// Whether the file was asked for by name.
    is_named: bool,
    zone: Zone,
    job: Mutex<String>,
    lines: Drain<Writer>,
}

impl Log {
    /// Starts the log of this process. `logfile` is opened at once; failing to is an error.
    pub(crate) fn start(logfile: Option<&Path>, verbose: bool, task: Option<String>) -> anyhow::Result<Self> {
        let zone = Zone::system();
        let task = task.map_or_else(random_task, Ok)?;
        let mut writer =
            Writer { task: task.clone(), zone: zone.clone(), sink: Sink::Closed, insists: false };
        if let Some(path) = logfile {
            let opened = LogFile::open(path, Named::ByUser)
                .with_context(|| format!("cannot open the log file {}", path.display()));
            writer.sink = Sink::Open(opened?);
        }
        let lines = Drain::new("log", writer);
        let is_named = logfile.is_some();
        let log = Self(Arc::new(Shared { task, verbose, is_named, zone, job: Mutex::default(), lines }));
        let subscriber = Registry::default().with(Lines(log.clone()));
        tracing::subscriber::set_global_default(subscriber).context("cannot start the log")?;
        // Nobody else sets it: the subscriber could not have been set twice.
        let _ = LOG.set(log.clone());
        Ok(log)
    }

    /// Returns what marks the lines of this run.
    pub(crate) fn task_id(&self) -> &str {
        &self.0.task
    }

    /// Goes on in the job's own log file, unless another was asked for by name.
    pub(crate) fn enter_job(&self, name: &JobName, dir: &Path) {
        *self.0.job.lock().unwrap_or_else(PoisonError::into_inner) = name.to_string();
        self.enter_dir(dir);
    }

    /// Goes on in the log file of a directory, a job's or a store's, unless another was asked for by name.
    pub(crate) fn enter_dir(&self, dir: &Path) {
        self.enter_file(&dir.join("backy.log"), false);
    }

    /// Goes on in this file for a long time, unless another was asked for by name. That it cannot be opened is
    /// reported, and tried again.
    pub(crate) fn stay_in_file(&self, path: &Path) {
        self.enter_file(path, true);
    }

    fn enter_file(&self, path: &Path, insists: bool) {
        if !self.0.is_named {
            self.0.lines.order(Target { path: path.to_owned(), insists });
        }
    }

    /// Writes one line with a text of several, and nothing to standard error. For a program that breaks off.
    fn write_text(&self, level: Level, text: &str) {
        let fields = Fields { message: text.to_owned(), values: BTreeMap::new() };
        let head = Head { now: Timestamp::now(), zone: &self.0.zone, task: &self.0.task, level, job: "" };
        self.0.lines.push(&format_line(&head, QUIET, &fields));
    }
}

/// Lets a panic be seen and logged without help from the thread that panicked: it may hold any lock but the log's.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let mut text = format!("internal error in thread {:?}: {panic}", thread.name().unwrap_or_default());
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{trace}");
        }
        let lines: String = text.lines().map(|line| format!("{}\n", escape(line))).collect();
        terminal::note_at_once(&lines);
        if let Some(log) = LOG.get() {
            log.write_text(Level::ERROR, &text);
        }
    }));
}

/// Waits until all is written to the log and to standard error, but no longer than this.
pub(crate) fn flush(within: Duration) {
    let begun = Instant::now();
    if let Some(log) = LOG.get() {
        log.0.lines.flush(within);
    }
    terminal::flush(within.saturating_sub(begun.elapsed()));
}

fn random_task() -> anyhow::Result<String> {
    // The last digits of an id are the evenly distributed ones.
    let id = RevisionId::random()?;
    let text = id.as_str();
    Ok(text[text.len().saturating_sub(TASK_CHARS)..].to_owned())
}

/// Where the log goes on.
#[derive(Debug)]
struct Target {
    path: PathBuf,
    /// Whether a log that cannot be opened is worth a warning, and another try later: a service lives for months.
    insists: bool,
}

/// What the log's thread has.
#[derive(Debug)]
struct Writer {
    task: String,
    zone: Zone,
    sink: Sink,
    insists: bool,
}

#[derive(Debug)]
enum Sink {
    Closed,
    Pending { path: PathBuf, tried_at: Option<Instant> },
    Open(LogFile),
}

impl Outlet for Writer {
    type Order = Target;

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.open();
        match &mut self.sink {
            Sink::Open(file) => file.write(text),
            // Nobody asked for a log.
            Sink::Closed => Ok(()),
            Sink::Pending { .. } => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn follow(&mut self, target: Target) {
        self.insists = target.insists;
        self.sink = Sink::Pending { path: target.path, tried_at: None };
    }

    fn loss(&self, lines: u64) -> String {
        let values = BTreeMap::from([("number".to_owned(), lines.to_string())]);
        let fields = Fields { message: "lines lost".to_owned(), values };
        let (now, level) = (Timestamp::now(), Level::WARN);
        let head = Head { now, zone: &self.zone, task: &self.task, level, job: "" };
        format_line(&head, "backy::logging", &fields)
    }
}

impl Writer {
    /// Opens the file that is to be written next, with the first line for it.
    fn open(&mut self) {
        let Sink::Pending { path, tried_at } = &mut self.sink else { return };
        if tried_at.is_some_and(|tried| tried.elapsed() < OPEN_AGAIN) {
            return;
        }
        let is_first = tried_at.replace(Instant::now()).is_none();
        match LogFile::open(path, Named::ByRule) {
            Ok(file) => self.sink = Sink::Open(file),
            Err(error) => {
                let is_odd = file::is_odd(&error);
                if is_first && (self.insists || is_odd) {
                    let again = if self.insists { "; it is tried again with later lines" } else { "" };
                    let path = escape(&path.to_string_lossy()).into_owned();
                    terminal::note(format_args!("warning: cannot open the log {path}: {error}{again}"));
                }
                if !self.insists {
                    self.sink = Sink::Closed;
                }
            }
        }
    }
}

/// The tracing layer: turns events into lines.
struct Lines(Log);

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        let detail = if self.0.0.verbose { Level::DEBUG } else { Level::INFO };
        let ours = metadata.target().starts_with("backy");
        *metadata.level() <= if ours { detail } else { Level::WARN }
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let log = &self.0.0;
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let job = match fields.values.get("job") {
            Some(job) => job.clone(),
            None => log.job.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        // The service works on many tasks at once and marks the lines of each.
        let task = fields.values.remove("task").unwrap_or_else(|| log.task.clone());
        let (now, level) = (Timestamp::now(), *metadata.level());
        let head = Head { now, zone: &log.zone, task: &task, level, job: &job };
        let line = format_line(&head, metadata.target(), &fields);
        log.lines.push(&line);
        let grave = level <= Level::WARN;
        let told = grave && metadata.target() == QUIET;
        if (grave || log.verbose) && !told {
            terminal::note_harmless(&line);
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
    // A sentence is a value like others; only a trace of several lines follows as it is.
    let is_trace = fields.message.lines().count() > 1;
    if name.is_none() && !is_trace && !fields.message.is_empty() {
        let _ = write!(line, " message={}", quote(&fields.message));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    if name.is_none() && is_trace {
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
        format_line(&head, "backy_store::maintain::sweep", &Fields { message: message.to_owned(), values })
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
    fn words_become_names_and_sentences_do_not() {
        assert_eq!(event_name("Stage begins").as_deref(), Some("stage-begins"));
        assert_eq!(event_name("cannot read /x: no"), None);
        assert!(
            line("cannot read /x: no", &[])
                .ends_with(" sweep/message                       message='cannot read /x: no'\n")
        );
        assert_eq!(event_name(""), None);
    }
}
