//! The stream of `rbd export-diff`: a reader that takes nothing on trust, and a writer for `rbd import-diff`.
//! Pure but for the stream itself.
//!
//! Both versions of the format are read. Always true of what [`DiffReader`] returns: metadata come before data,
//! the size is known before the first range, every range lies inside it, and `None` is returned only when the
//! end mark came and nothing follows it. A stream that is cut anywhere is an error, never a shorter diff.

use std::io::{self, Read, Write};

/// Longest name of a snapshot.
const NAME_BYTES_MAX: u64 = 4096;
/// Longest record of version 2 that is skipped because its tag is not known.
const UNKNOWN_BYTES_MAX: u64 = 1 << 20;
/// Larger images do not exist: offsets in RBD are signed in many places.
const SIZE_BYTES_MAX: u64 = 1 << 62;
const HEADER_BYTES: usize = 12;

/// Why a stream is no diff.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiffError {
    /// It ends before its end mark.
    #[error("it ends early, after {at} bytes")]
    Cut {
        /// Bytes that came.
        at: u64,
    },
    /// It does not begin like a diff.
    #[error("it does not begin with the header of a diff")]
    Header,
    /// Something that cannot be.
    #[error("{problem} at byte {at}")]
    Malformed {
        /// What is wrong.
        problem: &'static str,
        /// Where in the stream.
        at: u64,
    },
    /// It cannot be read.
    #[error("it cannot be read")]
    Io(#[source] io::Error),
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The snapshot that the diff starts from.
    FromSnapshot(String),
    /// The snapshot that it leads to.
    ToSnapshot(String),
    /// The size that the image has then.
    Size(u64),
    /// Bytes; [`DiffReader::read`] gives them.
    Data {
        /// First byte in the image.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Zeros.
    Zero {
        /// First byte in the image.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
}

/// Reads a diff record by record, in constant memory.
#[derive(Debug)]
pub struct DiffReader<R> {
    input: R,
    /// Bytes read so far.
    at: u64,
    is_v2: bool,
    size_bytes: Option<u64>,
    data_begun: bool,
    /// Bytes of the last data record that were not fetched yet.
    pending_bytes: u64,
    is_over: bool,
}

impl<R: Read> DiffReader<R> {
    /// Reads the header.
    pub fn new(input: R) -> Result<Self, DiffError> {
        let mut this = Self {
            input,
            at: 0,
            is_v2: false,
            size_bytes: None,
            data_begun: false,
            pending_bytes: 0,
            is_over: false,
        };
        let header: [u8; HEADER_BYTES] = this.bytes()?;
        this.is_v2 = match &header {
            b"rbd diff v1\n" => false,
            b"rbd diff v2\n" => true,
            _ => return Err(DiffError::Header),
        };
        Ok(this)
    }

    /// Returns the next record, `None` behind the end mark. Data of the record before that nobody fetched are skipped.
    pub fn next_record(&mut self) -> Result<Option<Record>, DiffError> {
        self.skip(self.pending_bytes)?;
        self.pending_bytes = 0;
        while !self.is_over {
            let [tag] = self.bytes()?;
            if tag == b'e' {
                self.is_over = true;
                self.check_end()?;
                break;
            }
            if let Some(record) = self.record(tag)? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Fills `buf` with the next bytes of the data record that came last.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<(), DiffError> {
        let length = buf.len() as u64;
        if length > self.pending_bytes {
            return Err(self.malformed("more data are wanted than the record has"));
        }
        self.fill(buf)?;
        self.pending_bytes -= length;
        Ok(())
    }

    /// `None`: a record of version 2 that is not known and was skipped.
    fn record(&mut self, tag: u8) -> Result<Option<Record>, DiffError> {
        let length = if self.is_v2 { Some(self.word()?) } else { None };
        match tag {
            b'f' | b't' | b's' if self.data_begun => Err(self.malformed("metadata follow data")),
            b'f' => self.name(length).map(|name| Some(Record::FromSnapshot(name))),
            b't' => self.name(length).map(|name| Some(Record::ToSnapshot(name))),
            b's' => self.size(length).map(|size| Some(Record::Size(size))),
            b'w' | b'z' => self.range(tag == b'w', length).map(Some),
            _ => match length {
                Some(length) if length <= UNKNOWN_BYTES_MAX => self.skip(length).map(|()| None),
                _ => Err(self.malformed("there is a record of unknown type")),
            },
        }
    }

    fn name(&mut self, length: Option<u64>) -> Result<String, DiffError> {
        let own = u64::from(u32::from_le_bytes(self.bytes()?));
        if own > NAME_BYTES_MAX || length.is_some_and(|length| length != own + 4) {
            return Err(self.malformed("the name of a snapshot has an impossible length"));
        }
        let mut name = vec![0; usize::try_from(own).map_err(|_| self.malformed("a name is too long"))?];
        self.fill(&mut name)?;
        String::from_utf8(name).map_err(|_| self.malformed("the name of a snapshot is not UTF-8"))
    }

    fn size(&mut self, length: Option<u64>) -> Result<u64, DiffError> {
        let size = self.word()?;
        if size > SIZE_BYTES_MAX || length.is_some_and(|length| length != 8) || self.size_bytes.is_some() {
            return Err(self.malformed("the size makes no sense"));
        }
        self.size_bytes = Some(size);
        Ok(size)
    }

    fn range(&mut self, has_data: bool, record_length: Option<u64>) -> Result<Record, DiffError> {
        let (offset, length) = (self.word()?, self.word()?);
        let size = self.size_bytes.ok_or_else(|| self.malformed("data come before the size"))?;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(self.malformed("a range lies outside of the image"));
        }
        let expected = if has_data { 16 + length } else { 16 };
        if record_length.is_some_and(|found| found != expected) {
            return Err(self.malformed("a record's length does not fit its range"));
        }
        self.data_begun = true;
        if !has_data {
            return Ok(Record::Zero { offset, length });
        }
        self.pending_bytes = length;
        Ok(Record::Data { offset, length })
    }

    fn check_end(&mut self) -> Result<(), DiffError> {
        let mut byte = [0];
        loop {
            match self.input.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(self.malformed("bytes follow the end mark")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(DiffError::Io(error)),
            }
        }
    }

    fn malformed(&self, problem: &'static str) -> DiffError {
        DiffError::Malformed { problem, at: self.at }
    }

    fn word(&mut self) -> Result<u64, DiffError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], DiffError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, mut count: u64) -> Result<(), DiffError> {
        let mut rest = [0; 8192];
        while count > 0 {
            let part = count.min(rest.len() as u64);
            self.fill(&mut rest[..part as usize])?;
            count -= part;
        }
        Ok(())
    }

    fn fill(&mut self, mut buf: &mut [u8]) -> Result<(), DiffError> {
        while !buf.is_empty() {
            match self.input.read(buf) {
                Ok(0) => return Err(DiffError::Cut { at: self.at }),
                Ok(count) => {
                    self.at += count as u64;
                    buf = &mut buf[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(DiffError::Io(error)),
            }
        }
        Ok(())
    }
}

/// Writes a diff of version 1 from nothing.
#[derive(Debug)]
pub struct DiffWriter<W> {
    output: W,
}

impl<W: Write> DiffWriter<W> {
    /// Begins the diff of an image of this size.
    pub fn new(mut output: W, size_bytes: u64) -> io::Result<Self> {
        output.write_all(b"rbd diff v1\ns")?;
        output.write_all(&size_bytes.to_le_bytes())?;
        Ok(Self { output })
    }

    /// Adds bytes.
    pub fn data(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut head = [b'w'; 17];
        head[1..9].copy_from_slice(&offset.to_le_bytes());
        head[9..].copy_from_slice(&(data.len() as u64).to_le_bytes());
        self.output.write_all(&head)?;
        self.output.write_all(data)
    }

    /// Ends the diff; returns where it went.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(b"e")?;
        self.output.flush()?;
        Ok(self.output)
    }
}

/// For the fuzz target: reads any bytes as a diff, fetching half of the data.
#[doc(hidden)]
pub fn read_any(bytes: &[u8]) {
    let Ok(mut reader) = DiffReader::new(bytes) else { return };
    let mut size = None;
    while let Ok(Some(record)) = reader.next_record() {
        match record {
            Record::Size(bytes) => size = Some(bytes),
            Record::Data { offset, length } | Record::Zero { offset, length } => {
                assert!(
                    offset.checked_add(length).is_some_and(|end| Some(end) <= size),
                    "a range lies outside"
                );
                if let Record::Data { .. } = record {
                    let mut buf = vec![0; usize::try_from(length / 2).unwrap_or(usize::MAX).min(4096)];
                    let _ = reader.read(&mut buf);
                }
            }
            Record::FromSnapshot(name) | Record::ToSnapshot(name) => {
                assert!(name.len() as u64 <= NAME_BYTES_MAX, "a long name");
            }
        }
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
