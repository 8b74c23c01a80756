//! Progress of long work: a bar with rate and remaining time on a terminal, a line now and then for
//! everything else. Findings appear at once, above the bar. Owner of the crate `indicatif`.
//!
//! The bar is drawn through [`terminal::draw`]: a terminal that was stopped (Ctrl-S, a broken connection) holds up
//! neither the work nor who waits for the bar's lock.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backy_store::{Finding, Monitor};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::screen::Screen;
use super::size::{human_bytes, human_duration};
use super::{interrupt, terminal};
use crate::logging;

/// Time between two lines where there is no terminal; a stage that took less ends without a line.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// The bar's redraw interval while nothing advances.
const TICK: Duration = Duration::from_millis(250);
const BAR_SIZED: &str =
    "{prefix} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
const BAR_UNSIZED: &str = "{prefix} {spinner} {binary_bytes}, {binary_bytes_per_sec}";

mod screen;

/// The bar on the screen, so that lines on standard error can be written above it.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Listens to one command's long work.
#[derive(Debug)]
pub(crate) struct Progress {
    draws: bool,
    stage: Mutex<Option<Stage>>,
    findings: AtomicUsize,
    stop: Arc<AtomicBool>,
}

/// What is running now.
#[derive(Debug)]
struct Stage {
    label: String,
    total_bytes: Option<u64>,
    done_bytes: u64,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins to listen, and to watch for signals that ask the work to stop.
    pub(crate) fn start() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            draws: std::io::stderr().is_terminal() && !dumb,
            stage: Mutex::new(None),
            findings: AtomicUsize::new(0),
            stop: interrupt::watch(),
        }
    }

    /// Returns how many findings there were.
    pub(crate) fn findings(&self) -> usize {
        self.findings.load(Ordering::SeqCst)
    }

    fn stage(&self) -> MutexGuard<'_, Option<Stage>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitor for Progress {
    fn begin(&self, label: &str, total_bytes: Option<u64>) {
        self.end();
        tracing::info!(target: logging::QUIET, stage = label, total_bytes, "stage begins");
        let now = Instant::now();
        let bar = self.draws.then(|| shown_bar(label, total_bytes));
        let label = label.to_owned();
        *self.stage() = Some(Stage { label, total_bytes, done_bytes: 0, started: now, told: now, bar });
    }

    fn advance(&self, bytes: u64) {
        // Nothing is written while the stage is locked.
        let line = {
            let mut stage = self.stage();
            let Some(stage) = stage.as_mut() else { return };
            stage.done_bytes = stage.done_bytes.saturating_add(bytes);
            if let Some(bar) = &stage.bar {
                bar.inc(bytes);
            }
            let is_due = stage.bar.is_none() && stage.told.elapsed() >= LINE_INTERVAL;
            is_due.then(|| {
                stage.told = Instant::now();
                stage.line()
            })
        };
        if let Some(line) = line {
            terminal::note(line);
        }
    }

    fn end(&self) {
        let Some(stage) = self.stage().take() else { return };
        if let Some(bar) = &stage.bar {
            bar.finish_and_clear();
            *shown() = None;
        }
        let elapsed = stage.started.elapsed();
        if stage.bar.is_none() && elapsed >= LINE_INTERVAL {
            terminal::note(format_args!(
                "{}: {} in {}",
                stage.label,
                human_bytes(stage.done_bytes),
                human_duration(elapsed.as_secs_f64())
            ));
        }
        let secs = elapsed.as_secs_f64();
        tracing::info!(target: logging::QUIET, stage = stage.label, bytes = stage.done_bytes, secs, "stage ends");
    }

    fn finding(&self, finding: &Finding) {
        self.findings.fetch_add(1, Ordering::SeqCst);
        terminal::note(format_args!("damaged: {finding}"));
        tracing::warn!(target: logging::QUIET, job = %finding.job, "damaged: {finding}");
    }

    fn warn(&self, message: &str) {
        terminal::warn(message);
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl Drop for Progress {
    /// An operation that failed leaves its stage open: the bar must go before the error is printed.
    fn drop(&mut self) {
        self.end();
    }
}

impl Stage {
    /// Returns the state in words, for a pipe or a log.
    fn line(&self) -> String {
        let elapsed_secs = self.started.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        progress_line(&self.label, self.done_bytes, self.total_bytes, elapsed_secs)
    }
}

/// Pure form of [`Stage::line`].
fn progress_line(label: &str, done_bytes: u64, total_bytes: Option<u64>, elapsed_secs: f64) -> String {
    let rate = done_bytes as f64 / elapsed_secs;
    let done = human_bytes(done_bytes);
    let speed = human_bytes(rate as u64);
    match total_bytes.filter(|&total| total > 0) {
        Some(total) => {
            let percent = u128::from(done_bytes.min(total)) * 100 / u128::from(total);
            let left = human_duration(total.saturating_sub(done_bytes) as f64 / rate);
            format!("{label}: {done} of {} ({percent} %), {speed}/s, {left} left", human_bytes(total))
        }
        None => format!("{label}: {done}, {speed}/s"),
    }
}

/// Runs `write` with the bar taken off the screen.
pub(crate) fn suspended(write: impl FnOnce()) {
    // The bar is cloned out: writing must not hold the lock that the next bar needs.
    let bar = shown().clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shown_bar(label: &str, total_bytes: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(
        total_bytes,
        ProgressDrawTarget::term_like(Box::new(Screen::default())),
    );
    let template = if total_bytes.is_some() { BAR_SIZED } else { BAR_UNSIZED };
    let plain = |_| ProgressStyle::default_bar();
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(plain));
    bar.set_prefix(label.to_owned());
    *shown() = Some(bar.clone());
    tick(bar.downgrade());
    bar
}

/// Redraws a bar while nothing advances, until it is gone. Where no thread can be started it stands still.
fn tick(bar: indicatif::WeakProgressBar) {
    let ticks = move || {
        while let Some(bar) = bar.upgrade().filter(|bar| !bar.is_finished()) {
            bar.tick();
            drop(bar);
            std::thread::sleep(TICK);
        }
    };
    drop(std::thread::Builder::new().name("bar".to_owned()).spawn(ticks));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_how_much_how_fast_and_how_long() {
        assert_eq!(
            progress_line("copying", 1 << 30, Some(4 << 30), 10.0),
            "copying: 1.0 GiB of 4.0 GiB (25 %), 102.4 MiB/s, 30 seconds left"
        );
        assert_eq!(progress_line("sweeping", 1 << 20, None, 1.0), "sweeping: 1.0 MiB, 1.0 MiB/s");
        assert_eq!(
            progress_line("copying", 0, Some(1 << 20), 10.0),
            "copying: 0 Bytes of 1.0 MiB (0 %), 0 Bytes/s, - left"
        );
        assert_eq!(progress_line("copying", 0, Some(0), 1.0), "copying: 0 Bytes, 0 Bytes/s");
    }

    #[test]
    fn templates_are_valid() {
        assert!(ProgressStyle::with_template(BAR_SIZED).is_ok());
        assert!(ProgressStyle::with_template(BAR_UNSIZED).is_ok());
    }
}
