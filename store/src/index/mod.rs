//! The revision index: a view of the manifests of a store, so that listing 1,000 revisions costs a `stat`
//! each and not a parse. Owner of the crate `rusqlite`.
//!
//! The manifests are the truth. A row is used only while its manifest has the same inode, length and times;
//! every other manifest is read anew. So the database can be missing, stale, damaged, locked or read-only:
//! listing then costs more and answers the same.

mod schema;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, params};

use crate::disk;
use crate::error::{Error, Result};
use crate::job::{Job, JobFile, Listing, job_files};
use crate::monitor::Finding;
use crate::repository::Repository;
use crate::revision::{Revision, RevisionId, manifest};

/// The index of one store, opened as well as it can be.
#[derive(Debug)]
pub struct RevisionIndex {
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

impl Stamp {
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
    pub fn open(repository: &Repository) -> Self {
        let path = database_path(repository);
        let connection = match schema::open(&path) {
            Err(error) if schema::is_damage(&error) => {
                tracing::warn!(path = %path.display(), %error, "the revision index is damaged and is made anew");
                move_aside(&path).ok().and_then(|()| schema::open(&path).ok())
            }
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "reading the revision index only");
                open_read_only(&path)
            }
            Ok(connection) => Some(connection),
        };
        Self { connection }
    }

    /// Lists the revisions of a job, in no order, and brings the index up to date.
    pub(crate) fn list(&mut self, job: &Job) -> Result<Listing> {
        let mut rows = match self.rows(job) {
            Ok(rows) => rows,
            Err(error) => {
                if schema::is_damage(&error) {
                    tracing::warn!(%error, "the revision index is damaged and is made anew");
                    self.connection = None;
                    drop(move_aside(&database_path(job.repository())));
                }
                HashMap::new()
            }
        };
        let mut listing = Listing::default();
        let mut fresh = Vec::new();
        for (file, path) in job_files(job.dir())? {
            let JobFile::Manifest(id) = file else { continue };
            // Taken before the manifest is read: if it changes in between, the row is stale at once.
            let Some(stamp) = Stamp::of(&path) else { continue };
            match rows.remove(&id) {
                Some((known, revision)) if known == stamp => listing.revisions.push(revision),
                _ => match manifest::read(&path, &id) {
                    Ok(revision) => {
                        fresh.push((id, stamp, revision.clone()));
                        listing.revisions.push(revision);
                    }
                    Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => {}
                    Err(error) => listing.damaged.push(finding(job, id, &error)),
                },
            }
        }
        let gone: Vec<RevisionId> = rows.into_keys().collect();
        if let Err(error) = self.update(job, &fresh, &gone) {
            tracing::debug!(%error, "the revision index was not updated");
        }
        Ok(listing)
    }

    fn rows(&self, job: &Job) -> rusqlite::Result<HashMap<RevisionId, (Stamp, Revision)>> {
        let Some(connection) = &self.connection else { return Ok(HashMap::new()) };
        let mut query = connection.prepare(
            "SELECT revision, inode, length, mtime_nanos, ctime_nanos, body FROM manifest WHERE job = ?1",
        )?;
        let rows = query.query_map([job_key(job)], |row| {
            let stamp = Stamp {
                inode: row.get(1)?,
                length: row.get(2)?,
                mtime_nanos: row.get(3)?,
                ctime_nanos: row.get(4)?,
            };
            Ok((row.get::<_, String>(0)?, stamp, row.get::<_, String>(5)?))
        })?;
        let mut found = HashMap::new();
        for row in rows {
            let (id, stamp, body) = row?;
            // A row that cannot be understood is as good as none.
            if let (Ok(id), Ok(revision)) = (RevisionId::parse(&id), serde_json::from_str::<Revision>(&body))
            {
                found.insert(id, (stamp, revision));
            }
        }
        Ok(found)
    }

    fn update(
        &mut self,
        job: &Job,
        fresh: &[(RevisionId, Stamp, Revision)],
        gone: &[RevisionId],
    ) -> rusqlite::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if fresh.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        {
            let mut delete = transaction.prepare("DELETE FROM manifest WHERE job = ?1 AND revision = ?2")?;
            for id in gone {
                delete.execute(params![job_key(job), id.as_str()])?;
            }
            let mut insert = transaction.prepare(
                "INSERT OR REPLACE INTO manifest (job, revision, inode, length, mtime_nanos, ctime_nanos, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for (id, stamp, revision) in fresh {
                let body = serde_json::to_string(revision).unwrap_or_default();
                insert.execute(params![
                    job_key(job),
                    id.as_str(),
                    stamp.inode,
                    stamp.length,
                    stamp.mtime_nanos,
                    stamp.ctime_nanos,
                    body
                ])?;
            }
        }
        transaction.commit()
    }
}

fn job_key(job: &Job) -> &str {
    job.name().as_str()
}

fn finding(job: &Job, id: RevisionId, error: &Error) -> Finding {
    Finding {
        job: job.name().clone(),
        revision: Some(id),
        range: None,
        chunk: None,
        problem: error.to_string(),
    }
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
    let path = database_path(repository);
    for suffix in ["", "-wal", "-shm"] {
        disk::remove(&path.with_file_name(format!("index.sqlite{suffix}")))?;
    }
    let connection = schema::open(&path).map_err(|source| Error::Index { path: path.clone(), source })?;
    let mut index = RevisionIndex { connection: Some(connection) };
    let (mut jobs, mut revisions, mut damaged) = (0, 0, Vec::new());
    for job in repository.jobs()? {
        if job.repository().id() == repository.id() {
            let listing = index.list(&job)?;
            jobs += 1;
            revisions += listing.revisions.len() as u64;
            damaged.extend(listing.damaged);
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
