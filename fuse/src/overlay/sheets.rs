//! A file of states: a header and the pages behind it, as bytes. What is on the disk is described in `docs/format.md`,
//! section 10.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::Whence;

use super::files::{create_file, set_len, sync};
use super::header::{Base, BootId, HEADER_BYTES, Header, Kind};
use super::states::{PAGE_BYTES, Page, Sheet, States, page_count};
use crate::error::{Error, Result};

/// Most bytes of states that are written at once.
const BATCH_BYTES: usize = 256 * PAGE_BYTES;

/// Makes a file of states, durably but for its name. Without `states` nothing was written.
pub(super) fn create(
    path: &Path,
    kind: Kind,
    base: &Base,
    boot: &BootId,
    states: Option<&States>,
) -> Result<File> {
    let file = create_file(path)?;
    set_len(&file, place(page_count(base.size_bytes)), path)?;
    let header = Header { kind, base: base.clone(), boot: *boot };
    file.write_all_at(&header.to_bytes(), 0).map_err(|source| Error::io("write to", path, source))?;
    write(&file, path, states.iter().flat_map(|states| states.sheets()))?;
    sync(&file, path)?;
    Ok(file)
}

/// Writes pages in ascending order to a file of states, neighbours at once.
pub(super) fn write(file: &File, path: &Path, sheets: impl IntoIterator<Item = Sheet>) -> Result<()> {
    let mut batch = Vec::new();
    let mut start = 0;
    let put = |batch: &[u8], start| {
        file.write_all_at(batch, place(start)).map_err(|source| Error::io("write to", path, source))
    };
    for sheet in sheets {
        if start + batch.len() / PAGE_BYTES != sheet.number || batch.len() >= BATCH_BYTES {
            put(&batch, start)?;
            batch.clear();
            start = sheet.number;
        }
        sheet.append_to(&mut batch);
    }
    put(&batch, start)
}

/// Where a page of states lies in its file.
pub(super) fn place(number: usize) -> u64 {
    (HEADER_BYTES + number * PAGE_BYTES) as u64
}

pub(super) fn read_header(file: &File, path: &Path, kind: Kind) -> Result<Header> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(|source| unreadable(path, source))?;
    Header::parse(&bytes, kind).map_err(|reason| Error::overlay_damaged(path, reason))
}

pub(super) fn read(file: &File, size_bytes: u64, path: &Path) -> Result<States> {
    check_length(file, place(page_count(size_bytes)), path)?;
    let states = States::load(size_bytes, pages(file, page_count(size_bytes), path))?;
    states.ok_or_else(|| Error::overlay_damaged(path, "it has blocks that make no sense"))
}

/// Reads the pages of a file of states but for holes.
fn pages(file: &File, count: usize, path: &Path) -> impl Iterator<Item = Result<(usize, Page)>> {
    let (mut number, mut hole) = (0, 0);
    std::iter::from_fn(move || {
        if number == hole {
            let found = match next_data(file, place(number)) {
                Ok(found) => found?,
                Err(source) => return Some(Err(Error::io("read", path, source))),
            };
            let page = |at: u64| (at.saturating_sub(HEADER_BYTES as u64) / PAGE_BYTES as u64) as usize;
            (number, hole) =
                (page(found.start).max(number), page(found.end + PAGE_BYTES as u64 - 1).min(count));
        }
        if number >= hole {
            return None;
        }
        let mut page = [0; PAGE_BYTES];
        let read = file.read_exact_at(&mut page, place(number)).map_err(|source| unreadable(path, source));
        number += 1;
        Some(read.map(|()| (number - 1, page)))
    })
}

/// Returns the next bytes at or after `from` that are not in a hole. Where holes are not known that is the whole file.
pub(crate) fn next_data(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    // No file is longer than its offsets can say.
    let seek = |from: u64, whence| nix::unistd::lseek(file, from as i64, whence);
    match seek(from, Whence::SeekData)
        .and_then(|start| Ok(start as u64..seek(start as u64, Whence::SeekHole)? as u64))
    {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn check_length(file: &File, wanted: u64, path: &Path) -> Result<()> {
    let length = file.metadata().map_err(|source| Error::io("examine", path, source))?.len();
    if length == wanted {
        return Ok(());
    }
    Err(Error::overlay_damaged(path, format!("it has {length} bytes instead of {wanted}")))
}

fn unreadable(path: &Path, source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::UnexpectedEof => Error::overlay_damaged(path, "it is too short"),
        _ => Error::io("read", path, source),
    }
}
