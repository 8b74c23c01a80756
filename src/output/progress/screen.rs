//! The terminal as the bar sees it: what is drawn is gathered, and handed over as a whole.

use std::fmt::Write as _;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::TermLike;

use super::super::terminal;

const WIDTH_DEFAULT: u16 = 80;
const HEIGHT_DEFAULT: u16 = 24;

/// What was drawn and not handed over yet.
#[derive(Debug, Default)]
pub(super) struct Screen(Mutex<String>);

impl Screen {
    fn drawn(&self) -> MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the cursor; by nothing is not at all, where a terminal would move it by one.
    fn steer(&self, count: usize, way: char) -> io::Result<()> {
        if count > 0 {
            // Writing to a string cannot fail.
            let _ = write!(self.drawn(), "\x1b[{count}{way}");
        }
        Ok(())
    }
}

/// Asking for the size reads what the kernel knows: that does not wait for the terminal.
fn size() -> Option<(u16, u16)> {
    console::Term::stderr().size_checked()
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        size().map_or(WIDTH_DEFAULT, |(_, columns)| columns)
    }

    fn height(&self) -> u16 {
        size().map_or(HEIGHT_DEFAULT, |(rows, _)| rows)
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.steer(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.steer(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.steer(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.steer(n, 'D')
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        let mut drawn = self.drawn();
        drawn.push_str(s);
        drawn.push('\n');
        Ok(())
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        self.drawn().push_str(s);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        self.drawn().push_str("\r\x1b[2K");
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let drawn = std::mem::take(&mut *self.drawn());
        terminal::draw(&drawn);
        Ok(())
    }
}
