//! The revision index: a view of the manifests of a store, so that listing 1,000 revisions costs a `stat`
//! each and not a parse. Owner of the crate `rusqlite`.
//!
//! The manifests are the truth. A row is used only while its manifest has the same inode, length and times, and only
//! if it proves itself: every row carries a hash over all of its columns, for SQLite notices no byte that rots inside a
//! value. Every other manifest is read, and its row replaced. So the database can be missing, stale, damaged, locked or
//! read-only: listing then costs more and answers the same, and whoever lists may decide about deletion by it.

pub mod memo;
mod schema;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags, params};

use crate::error::{Error, Result};
use crate::format::id::seal;
use crate::format::manifest;
use crate::fs::disk;
use crate::fs::ownership::{self, Secrecy};
use crate::monitor::Finding;
use crate::repository::Repository;
use crate::repository::job::{Job, JobFile, job_files};
use crate::revision::{Revision, RevisionId};

/// The manifests of one job as they were when they were last listed: who lists again reads only what has changed.
#[derive(Debug, Default)]
pub struct KnownRevisions {
    /// Whether the index was asked.
    asked: bool,
    known: HashMap<RevisionId, (Stamp, Arc<Revision>)>,
}

/// What the index knows of a job; `None` when a row does not prove itself, and then no other one is trusted either.
type Rows = Option<HashMap<RevisionId, (Stamp, Arc<Revision>)>>;

/// The index of one store, opened as well as it can be.
#[derive(Debug)]
struct RevisionIndex {
    connection: Option<Connection>,
}

/// What must be equal for a row to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: i64,
    length: i64,
    mtime_nanos: i64,
    ctime_nanos: i64,
}

/// Returns the hash over the columns of a row. Their lengths go in, so that no byte can move from one to the next.
fn proof(texts: &[&str], numbers: &[i64]) -> [u8; 32] {
    let lengths = texts.iter().flat_map(|text| (text.len() as u64).to_le_bytes());
    let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
    let head: Vec<u8> = lengths.chain(numbers).collect();
    let mut parts = vec![&head[..]];
    parts.extend(texts.iter().map(|text| text.as_bytes()));
    seal(&parts)
}

impl Stamp {
    /// The hash that a manifest's row carries.
    fn proof(&self, job: &str, id: &str, body: &str) -> [u8; 32] {
        proof(&[job, id, body], &[self.inode, self.length, self.mtime_nanos, self.ctime_nanos])
    }

    fn of(path: &Path) -> Option<Self> {
        let facts = std::fs::symlink_metadata(path).ok()?;
        let nanos = |secs: i64, nanos: i64| secs.wrapping_mul(1_000_000_000).wrapping_add(nanos);
        Some(Self {
            inode: facts.ino() as i64,
            length: facts.len() as i64,
            mtime_nanos: nanos(facts.mtime(), facts.mtime_nsec()),
            ctime_nanos: nanos(facts.ctime(), facts.ctime_nsec()),
        })
    }
}

fn database_path(repository: &Repository) -> PathBuf {
    repository.root().join("index.sqlite")
}

impl RevisionIndex {
    /// Opens the index of a store, making it when it is missing and moving it aside when it is damaged.
    fn open(repository: &Repository) -> Self {
        if repository.is_original() {
            return Self { connection: None };
        }
        let path = database_path(repository);
        // Neither where a link leads nor in the store of another user anything is written.
        if let Err(error) =
            refuse_links(&path).and_then(|()| ownership::check(repository.root(), Secrecy::Public))
        {
            tracing::debug!(error = crate::error::in_full(&error), "doing without the revision index");
            return Self { connection: None };
        }
        let connection = match schema::open(&path) {
            Err(error) if schema::is_damage(&error) => {
                tracing::warn!(path = %path.display(), error = crate::error::in_full(&error), "the revision index is damaged and is made anew");
                move_aside(&path).ok().and_then(|()| schema::open(&path).ok())
            }
            Err(error) => {
                tracing::debug!(path = %path.display(), error = crate::error::in_full(&error), "reading the revision index only");
                open_read_only(&path)
            }
            Ok(connection) => Some(connection),
        };
        Self { connection }
    }

    fn rows(&self, job: &Job) -> rusqlite::Result<Rows> {
        let Some(connection) = &self.connection else { return Ok(Some(HashMap::new())) };
        let mut query = connection.prepare(
            "SELECT revision, inode, length, mtime_nanos, ctime_nanos, body, proof FROM manifest WHERE job = ?1",
        )?;
        let rows = query.query_map([job_key(job)], |row| {
            let stamp = Stamp {
                inode: row.get(1)?,
                length: row.get(2)?,
                mtime_nanos: row.get(3)?,
                ctime_nanos: row.get(4)?,
            };
            Ok((row.get::<_, String>(0)?, stamp, row.get::<_, String>(5)?, row.get::<_, Vec<u8>>(6)?))
        })?;
        let mut found = HashMap::new();
        for row in rows {
            let (key, stamp, body, proof) = row?;
            if proof != stamp.proof(job_key(job), &key, &body) {
                return Ok(None);
            }
            // One that cannot be understood was written by another version, and is as good as none.
            if let (Ok(id), Ok(revision)) = (RevisionId::parse(&key), serde_json::from_str::<Revision>(&body))
            {
                found.insert(id, (stamp, Arc::new(revision)));
            }
        }
        Ok(Some(found))
    }

    fn update(
        &mut self,
        job: &Job,
        fresh: &[(RevisionId, Stamp, Arc<Revision>)],
        gone: &[RevisionId],
        is_damaged: bool,
    ) -> rusqlite::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        {
            if is_damaged {
                transaction.execute("DELETE FROM manifest WHERE job = ?1", [job_key(job)])?;
            }
            let mut delete = transaction.prepare("DELETE FROM manifest WHERE job = ?1 AND revision = ?2")?;
            for id in gone {
                delete.execute(params![job_key(job), id.as_str()])?;
            }
            let mut insert = transaction.prepare(
                "INSERT OR REPLACE INTO manifest (job, revision, inode, length, mtime_nanos, ctime_nanos, body, proof)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?;
            for (id, stamp, revision) in fresh {
                let body = serde_json::to_string(&**revision).unwrap_or_default();
                insert.execute(params![
                    job_key(job),
                    id.as_str(),
                    stamp.inode,
                    stamp.length,
                    stamp.mtime_nanos,
                    stamp.ctime_nanos,
                    body,
                    &stamp.proof(job_key(job), id.as_str(), &body)[..]
                ])?;
            }
        }
        transaction.commit()
    }
}

/// Keeps the index of a store open. Who looks at many jobs holds one: otherwise each look is the last to close the
/// database, which then writes all of it back and waits for the disk.
#[derive(Debug)]
pub struct IndexHold(#[expect(dead_code, reason = "it only has to be there")] RevisionIndex);

impl Repository {
    /// Keeps the index open until the hold is dropped.
    pub fn hold_index(&self) -> IndexHold {
        IndexHold(RevisionIndex::open(self))
    }
}

/// Lists the revisions of a job, in no order, and the manifests that cannot be read. Brings `known` and the index up to
/// date.
pub(crate) fn list(job: &Job, known: &mut KnownRevisions) -> Result<(Vec<Arc<Revision>>, Vec<Finding>)> {
    let (mut index, mut is_damaged) = (None, false);
    if !std::mem::replace(&mut known.asked, true) {
        let rows = ask(job, index.insert(RevisionIndex::open(job.repository())));
        is_damaged = rows.is_none();
        known.known = rows.unwrap_or_default();
    }
    if is_damaged {
        tracing::warn!(job = %job.name(), "the revision index is damaged: the job's manifests are read instead");
    }
    let files = job_files(job.dir())?;
    let (mut revisions, mut damaged, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
    let mut before = std::mem::take(&mut known.known);
    for (file, path) in files {
        let id = match file {
            JobFile::Manifest(id) => id,
            // The original skips all links.
            JobFile::NotAFile(id, kind) if !job.repository().is_original() => {
                let reason = format!("it is {kind}, not a file");
                damaged.push(Finding::of_revision(job.name(), &id, Error::ManifestCorrupt { path, reason }));
                continue;
            }
            _ => continue,
        };
        // Taken before the manifest is read: if it changes in between, what is known is stale at once.
        let Some(stamp) = Stamp::of(&path) else { continue };
        let revision = match before.remove(&id) {
            Some((known, revision)) if known == stamp => revision,
            _ => match manifest::read(&path, &id) {
                Ok(revision) => {
                    let revision = Arc::new(job.complete(revision));
                    fresh.push((id.clone(), stamp, Arc::clone(&revision)));
                    revision
                }
                Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => continue,
                Err(error) => {
                    damaged.push(Finding::of_revision(job.name(), &id, error));
                    continue;
                }
            },
        };
        revisions.push(Arc::clone(&revision));
        known.known.insert(id, (stamp, revision));
    }
    if !fresh.is_empty() || !before.is_empty() || is_damaged {
        let gone: Vec<RevisionId> = before.into_keys().collect();
        let mut index = index.unwrap_or_else(|| RevisionIndex::open(job.repository()));
        if let Err(error) = index.update(job, &fresh, &gone, is_damaged) {
            tracing::debug!(error = crate::error::in_full(&error), "the revision index was not updated");
        }
    }
    Ok((revisions, damaged))
}

/// Returns what the index knows of a job; a damaged one is moved aside.
fn ask(job: &Job, index: &mut RevisionIndex) -> Rows {
    index.rows(job).unwrap_or_else(|error| {
        if schema::is_damage(&error) {
            tracing::warn!(
                error = crate::error::in_full(&error),
                "the revision index is damaged and is made anew"
            );
            index.connection = None;
            drop(move_aside(&database_path(job.repository())));
        }
        Some(HashMap::new())
    })
}

fn job_key(job: &Job) -> &str {
    job.name().as_str()
}

/// SQLite would write where a link leads.
fn refuse_links(path: &Path) -> Result<()> {
    ["", "-wal", "-shm", "-journal"]
        .iter()
        .try_for_each(|suffix| ownership::refuse_link(&path.with_file_name(format!("index.sqlite{suffix}"))))
}

fn open_read_only(path: &Path) -> Option<Connection> {
    // On a read-only file system nobody writes, so the file can be taken as it is.
    let uri = format!(
        "file:{}?immutable=1",
        path.to_str()?.replace('%', "%25").replace('?', "%3f").replace('#', "%23")
    );
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let read_only =
        nix::sys::statvfs::statvfs(path).ok()?.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY);
    if read_only { Connection::open_with_flags(uri, flags).ok() } else { None }
}

fn move_aside(path: &Path) -> Result<()> {
    disk::rename(path, &path.with_file_name("index.sqlite.damaged"))?;
    for suffix in ["-wal", "-shm"] {
        disk::remove(&path.with_file_name(format!("index.sqlite{suffix}")))?;
    }
    Ok(())
}

/// Makes the index of a store anew from the manifests; returns the number of jobs and revisions, and the
/// manifests that cannot be read.
pub fn rebuild(repository: &Repository) -> Result<(u64, u64, Vec<Finding>)> {
    repository.check_ours()?;
    let path = database_path(repository);
    for suffix in ["", "-wal", "-shm"] {
        disk::remove(&path.with_file_name(format!("index.sqlite{suffix}")))?;
    }
    drop(schema::open(&path).map_err(|source| Error::Index { path: path.clone(), source })?);
    let (mut jobs, mut revisions, mut damaged) = (0, 0, Vec::new());
    for job in repository.jobs()? {
        if job.repository().id() == repository.id() {
            let (listed, unusable) = list(&job, &mut KnownRevisions::default())?;
            jobs += 1;
            revisions += listed.len() as u64;
            damaged.extend(unusable);
        }
    }
    Ok((jobs, revisions, damaged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{commit_empty_revision, new_job};

    #[test]
    fn a_missing_damaged_or_foreign_index_changes_no_answer() {
        let (_dir, job) = new_job("web01");
        let expected: Vec<_> = (0..5).map(|number| commit_empty_revision(&job, number)).collect();
        let listed = || -> Vec<Revision> { job.revisions().unwrap().revisions };
        assert_eq!(listed(), expected);
        let path = database_path(job.repository());
        assert!(path.exists());
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[4097..].iter_mut().step_by(7).for_each(|byte| *byte ^= 0xff);
        for content in [Vec::new(), b"garbage".repeat(4000), good[..good.len() / 2].to_vec(), flipped] {
            std::fs::write(&path, content).unwrap();
            disk::remove(&path.with_file_name("index.sqlite-wal")).unwrap();
            assert_eq!(listed(), expected);
            assert_eq!(listed(), expected);
        }
        disk::remove(&path).unwrap();
        assert_eq!(rebuild(job.repository()).unwrap().1, 5);
        assert_eq!(listed(), expected);
    }

    /// Changes columns of rows as rot would: the database itself stays sound.
    fn rot(job: &Job, statement: &str) {
        let connection = Connection::open(database_path(job.repository())).unwrap();
        assert!(connection.execute(statement, []).unwrap() > 0, "{statement}");
    }

    #[test]
    fn a_row_that_rotted_is_not_believed_and_replaced() {
        let (_dir, job) = new_job("web01");
        let expected: Vec<_> = (0..4).map(|number| commit_empty_revision(&job, number)).collect();
        let listed = || -> Vec<Revision> { job.revisions().unwrap().revisions };
        assert_eq!(listed(), expected);
        let index = || RevisionIndex::open(job.repository()).rows(&job).unwrap();
        assert_eq!(index().map(|rows| rows.len()), Some(4));
        for statement in [
            "UPDATE manifest SET body = replace(body, 'daily', 'eaily')",
            "UPDATE manifest SET body = replace(body, '\"image_size\":0', '\"image_size\":5')",
            "UPDATE manifest SET body = replace(body, 'trusted', 'verified')",
            "UPDATE manifest SET mtime_nanos = mtime_nanos + 1",
            "UPDATE manifest SET revision = 'x' || revision",
            "UPDATE manifest SET proof = x'00'",
        ] {
            rot(&job, statement);
            assert!(index().is_none(), "{statement}");
            assert_eq!(listed(), expected, "{statement}");
            assert_eq!(index().map(|rows| rows.len()), Some(4), "repaired after {statement}");
        }
        rot(&job, "UPDATE manifest SET job = 'web02'");
        assert_eq!(listed(), expected);
        // Two whole rows that changed places prove nothing either.
        rot(&job, "UPDATE manifest SET body = (SELECT max(body) FROM manifest)");
        assert_eq!(listed(), expected);
    }

    #[test]
    fn who_lists_again_gets_what_has_changed_and_the_same_of_the_rest() {
        let (_dir, job) = new_job("web01");
        let made: Vec<_> = (0..4).map(|number| commit_empty_revision(&job, number)).collect();
        let mut known = KnownRevisions::default();
        let before = job.revisions_again(&mut known).unwrap().0;
        assert!(before.iter().map(|revision| &**revision).eq(&made));
        let guard = job.lock_manifests().unwrap();
        job.set_tags(&guard, &made[1].id, crate::Tag::parse_list("manual:x").unwrap()).unwrap();
        job.forget(&guard, &made[2].id, made[2].timestamp).unwrap();
        drop(guard);
        let added = commit_empty_revision(&job, 9);
        let after = job.revisions_again(&mut known).unwrap().0;
        let ids: Vec<_> = after.iter().map(|revision| &revision.id).collect();
        assert_eq!(ids, [&made[0].id, &made[1].id, &made[3].id, &added.id]);
        assert_eq!(after[1].tags.len(), 1);
        assert!(Arc::ptr_eq(&after[0], &before[0]) && Arc::ptr_eq(&after[2], &before[3]), "not read again");
        // Without the index it is the same, and the index knows what was found meanwhile.
        assert!(job.revisions().unwrap().revisions.iter().eq(after.iter().map(|revision| &**revision)));
        std::fs::write(job.dir().join(format!("{}.rev", added.id)), b"{}").unwrap();
        let (after, damaged) = job.revisions_again(&mut known).unwrap();
        assert_eq!((after.len(), damaged.len()), (3, 1));
    }

    #[test]
    fn changes_behind_the_index_are_noticed() {
        let (_dir, job) = new_job("web01");
        let one = commit_empty_revision(&job, 1);
        let two = commit_empty_revision(&job, 2);
        assert_eq!(job.revisions().unwrap().revisions.len(), 2);
        let guard = job.lock_manifests().unwrap();
        job.set_tags(&guard, &one.id, crate::Tag::parse_list("manual:x").unwrap()).unwrap();
        job.forget(&guard, &two.id, one.timestamp).unwrap();
        let listing = job.revisions().unwrap();
        assert_eq!((listing.revisions.len(), listing.revisions[0].tags.len()), (1, 1));
        std::fs::write(job.dir().join(format!("{}.rev", one.id)), b"{}").unwrap();
        let listing = job.revisions().unwrap();
        assert_eq!((listing.revisions.len(), listing.damaged.len()), (0, 1));
        job.undelete(&guard, &two.id).unwrap();
        assert_eq!(job.revisions().unwrap().revisions, [two]);
    }
}
