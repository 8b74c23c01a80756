//! The file of a log: what is taken for one, and what happens when somebody renames it.
//!
//! A path that a person gave is followed through links, and may be a device (`/dev/null`, `/dev/stderr`) or a FIFO that
//! somebody reads. A path that follows from a rule (`backy.log` in a job's directory) is a regular file and no link:
//! whoever may write to that directory must not make us append to another file.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::output::drain;

/// Who chose the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    ByUser,
    ByRule,
}

/// An open log file. When somebody has renamed it, as logrotate does, the next line goes to a new one.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    named: Named,
    file: File,
    /// Whether the last write failed: what is behind the path may be another thing by now.
    has_failed: bool,
    /// Whether the last line is only there in part.
    is_torn: bool,
}

impl LogFile {
    /// Opens without waiting for anybody.
    pub(super) fn open(path: &Path, named: Named) -> io::Result<Self> {
        let mut flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        if named == Named::ByRule {
            flags |= OFlag::O_NOFOLLOW;
        }
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600).custom_flags(flags.bits());
        let file = options.open(path).map_err(explain)?;
        check_kind(&file.metadata()?, named)?;
        Ok(Self { path: path.to_owned(), named, file, has_failed: false, is_torn: false })
    }

    /// Writes whole lines, with one system call where that takes them all: lines of two runs stay apart.
    pub(super) fn write(&mut self, text: &str) -> io::Result<()> {
        if (self.has_failed || self.was_replaced())
            && let Ok(new) = Self::open(&self.path, self.named)
        {
            let is_torn = self.is_torn && !self.was_replaced();
            *self = Self { is_torn, ..new };
        }
        let whole = if self.is_torn { format!("\n{text}") } else { text.to_owned() };
        let mut begun = false;
        let written = drain::write_all(&self.file, whole.as_bytes(), &mut begun);
        self.has_failed = written.is_err();
        self.is_torn = written.is_err() && (begun || self.is_torn);
        written
    }

    fn was_replaced(&self) -> bool {
        let there = match self.named {
            Named::ByUser => std::fs::metadata(&self.path),
            Named::ByRule => std::fs::symlink_metadata(&self.path),
        };
        let identity = |facts: &Metadata| (facts.dev(), facts.ino());
        let is_same = |there, here| identity(&there) == identity(&here);
        !there.and_then(|there| Ok(is_same(there, self.file.metadata()?))).unwrap_or(false)
    }
}

/// Whether a log was refused for what it is, which somebody should know who asked for no log.
pub(super) fn is_odd(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Odd>())
}

/// A thing that is no log.
#[derive(Debug)]
struct Odd(&'static str);

impl std::fmt::Display for Odd {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.0)
    }
}

impl std::error::Error for Odd {}

fn odd(what: &'static str) -> io::Error {
    io::Error::other(Odd(what))
}

fn check_kind(facts: &Metadata, named: Named) -> io::Result<()> {
    let kind = facts.file_type();
    let is_stream = kind.is_char_device() || kind.is_fifo();
    match named {
        _ if kind.is_file() => Ok(()),
        Named::ByUser if is_stream => Ok(()),
        Named::ByUser => Err(odd("it is neither a regular file nor a character device nor a FIFO")),
        Named::ByRule => Err(odd("it is not a regular file")),
    }
}

fn explain(error: io::Error) -> io::Error {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ELOOP) => odd("it is a symbolic link"),
        Some(Errno::ENXIO) => odd("it is a FIFO that no process reads, or a socket"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "logrotate renames, too")]

    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_renamed_log_is_left_to_who_renamed_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rotated) = (dir.path().join("log"), dir.path().join("log.1"));
        let mut log = LogFile::open(&path, Named::ByRule).unwrap();
        log.write("one\n").unwrap();
        std::fs::rename(&path, &rotated).unwrap();
        log.write("two\n").unwrap();
        log.write("three\n").unwrap();
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "one\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\nthree\n");
        std::fs::remove_file(&path).unwrap();
        log.write("four\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four\n");
    }

    #[test]
    fn only_a_person_may_name_a_link_or_a_stream() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link, fifo) =
            (dir.path().join("target"), dir.path().join("link"), dir.path().join("fifo"));
        std::fs::write(&target, "").unwrap();
        symlink(&target, &link).unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refusal = |path: &Path, named| LogFile::open(path, named).unwrap_err();
        let error = refusal(&link, Named::ByRule);
        assert!(is_odd(&error) && error.to_string() == "it is a symbolic link", "{error}");
        LogFile::open(&link, Named::ByUser).unwrap().write("through\n").unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "through\n");

        // A FIFO does not hang whoever opens it.
        for named in [Named::ByRule, Named::ByUser] {
            assert!(refusal(&fifo, named).to_string().contains("FIFO that no process reads"));
        }
        let mut options = OpenOptions::new();
        let mut reader = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&fifo).unwrap();
        assert_eq!(refusal(&fifo, Named::ByRule).to_string(), "it is not a regular file");
        let mut log = LogFile::open(&fifo, Named::ByUser).unwrap();
        log.write("line\n").unwrap();
        let mut read = [0; 5];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"line\n");
        // The reader goes and another comes.
        drop(reader);
        log.write("lost\n").unwrap_err();
        let mut reader = options.open(&fifo).unwrap();
        log.write("again\n").unwrap();
        let mut read = [0; 6];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"again\n");

        assert!(refusal(dir.path(), Named::ByUser).to_string().contains("directory"));
        LogFile::open(Path::new("/dev/null"), Named::ByUser).unwrap().write("x\n").unwrap();
        LogFile::open(Path::new("/dev/full"), Named::ByUser).unwrap().write("x\n").unwrap_err();
        assert_eq!(refusal(Path::new("/dev/null"), Named::ByRule).to_string(), "it is not a regular file");
    }

    #[test]
    fn a_line_that_was_cut_ends_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path, Named::ByRule).unwrap();
        log.write("begun").unwrap();
        (log.has_failed, log.is_torn) = (true, true);
        log.write("next\n").unwrap();
        log.write("last\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "begun\nnext\nlast\n");
    }
}
