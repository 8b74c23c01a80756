//! What every file of the mount is at this moment: nodes become facts and listings. No type of `fuser` is
//! named here, so that the rules can be read without knowing its interface.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backy_store::{FrameCache, JobName, Revision, RevisionId, Timestamp};

use crate::ahead::ReadAhead;
use crate::damage::DamageLog;
use crate::disk::Disk;
use crate::errno::Code;
use crate::error::Error as MountError;
use crate::handles::{DirectoryEntry, Handles, Kind};
use crate::inode::{Inodes, Node, ROOT};
use crate::jobs::{JobView, Jobs, Scope, is_gone};
use crate::mount::options::Options;
use crate::overlay::{self, Overlay};
use crate::parts::{Layouts, PARTS};
use crate::tree::{Entry, JobTree, RevisionFile};
use crate::window::Window;

/// How long the kernel may keep what can change: jobs, links, revisions, `info.json`.
pub(crate) const FRESH: Duration = Duration::from_millis(500);

/// How long it may keep what never changes: what an image is called in its revision, and its size.
pub(crate) const FOREVER: Duration = Duration::from_secs(86_400);

/// Threads that read ahead; more wait for the same disk.
const AHEAD_MAX: usize = 4;

/// Result of a question of the kernel.
pub(crate) type Result<T> = std::result::Result<T, Code>;

/// To whom the files belong and who may do what with them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Rights of directories.
    pub(crate) dir_mode: u16,
    /// Rights of files.
    pub(crate) file_mode: u16,
}

/// The mounted tree.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) handles: Handles,
    pub(crate) cache: Arc<FrameCache>,
    pub(crate) ahead: Arc<ReadAhead>,
    pub(crate) damage: DamageLog,
    pub(crate) owner: Owner,
    pub(crate) inodes: Inodes,
    pub(crate) layouts: Layouts,
    /// Where writes go; `None` when the tree is read-only.
    pub(crate) overlay: Option<Overlay>,
    jobs: Jobs,
    mounted_at: SystemTime,
}

/// What a file is at the moment, and how long the kernel may believe it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) inode: u64,
    pub(crate) kind: Kind,
    pub(crate) size_bytes: u64,
    /// Bytes that are not in holes.
    pub(crate) data_bytes: u64,
    pub(crate) time: SystemTime,
    /// Whether its owner may write to it.
    pub(crate) writable: bool,
    pub(crate) attr_ttl: Duration,
    pub(crate) entry_ttl: Duration,
}

impl View {
    pub(crate) fn new(
        scope: Scope,
        options: &Options,
        owner: Owner,
        overlay: Option<Overlay>,
    ) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let ahead =
            ReadAhead::start(cores.min(AHEAD_MAX), options.readahead_bytes, options.cache_bytes as u64)?;
        Ok(Self {
            handles: Handles::new(),
            cache: Arc::new(FrameCache::new(options.cache_bytes)),
            ahead: Arc::new(ahead),
            damage: DamageLog::start()?,
            owner,
            overlay,
            jobs: Jobs::new(scope, options.clone()),
            inodes: Inodes::new(),
            layouts: Layouts::new(),
            mounted_at: system_time(Timestamp::now()),
        })
    }

    /// Returns what a number stands for.
    pub(crate) fn node(&self, inode: u64) -> Result<Arc<Node>> {
        self.inodes.node(inode).ok_or(Code::MISSING)
    }

    /// Finds a job and its directory as they are now.
    fn job(&self, name: &str) -> Result<(Arc<JobView>, Arc<JobTree>)> {
        let view = self.jobs.get(name)?.ok_or(Code::MISSING)?;
        match view.tree() {
            Ok(tree) => Ok((view, tree)),
            Err(error) if is_gone(&error) => Err(Code::MISSING),
            Err(error) => Err(error.into()),
        }
    }

    /// Finds a revision that is shown now.
    pub(crate) fn revision(
        &self,
        job: &str,
        id: &RevisionId,
    ) -> Result<(Arc<JobView>, Arc<JobTree>, Arc<Revision>)> {
        let (view, tree) = self.job(job)?;
        let revision = tree.revision(id).cloned().ok_or(Code::MISSING)?;
        Ok((view, tree, revision))
    }

    /// Returns the revision that a file or directory belongs to, as it is now; `None` above the revisions.
    pub(crate) fn revision_of(&self, node: &Node) -> Result<Option<(JobName, Arc<Revision>)>> {
        match node {
            Node::Revision(job, id)
            | Node::File(job, id, _)
            | Node::Parts(job, id)
            | Node::Part(job, id, _) => Ok(Some((job.clone(), self.revision(job.as_str(), id)?.2))),
            Node::Root | Node::Job(_) | Node::Link(..) => Ok(None),
        }
    }

    /// Opens the disk of a revision. `image` is the inode of its image.
    pub(crate) fn open_disk(&self, image: u64, job: &JobView, revision: &Arc<Revision>) -> Result<Arc<Disk>> {
        self.handles.open_disk(image, job.job(), revision, &self.cache, self.overlay.as_ref()).map_err(
            |error| {
                match &error {
                    MountError::Store(error) => self.damage.met_at_open(job.job(), revision, error),
                    other => tracing::error!(cause = %overlay::failure(other), "cannot open an image"),
                }
                Code::from(&error)
            },
        )
    }

    /// Returns where a link leads now.
    pub(crate) fn target(&self, link: &Node) -> Result<RevisionId> {
        let Node::Link(job, name) = link else { return Err(Code::INVALID) };
        match self.job(job.as_str())?.1.get(name) {
            Some(Entry::Link(target)) => Ok(target.clone()),
            _ => Err(Code::MISSING),
        }
    }

    /// Finds a name in a directory.
    pub(crate) fn lookup(&self, parent: &Node, name: &OsStr) -> Result<Facts> {
        let name = name.to_str().ok_or(Code::MISSING)?;
        let node = match parent {
            Node::Root => {
                let view = self.jobs.get(name)?.ok_or(Code::MISSING)?;
                Node::Job(view.job().name().clone())
            }
            Node::Job(job) => match self.job(job.as_str())?.1.get(name).ok_or(Code::MISSING)? {
                Entry::Revision(revision) => Node::Revision(job.clone(), revision.id.clone()),
                Entry::Link(_) => Node::Link(job.clone(), name.to_owned()),
            },
            Node::Revision(job, id) if name == PARTS => Node::Parts(job.clone(), id.clone()),
            Node::Parts(job, id) => self.part(job, id, name)?,
            Node::Revision(job, id) => {
                let file = RevisionFile::named(name).ok_or(Code::MISSING)?;
                Node::File(job.clone(), id.clone(), file)
            }
            Node::Link(..) | Node::File(..) | Node::Part(..) => return Err(Code::NOT_A_DIRECTORY),
        };
        self.facts(self.inodes.number(node.clone()), &node)
    }

    /// Returns what a file is at the moment; `MISSING` if it is gone.
    pub(crate) fn facts(&self, inode: u64, node: &Node) -> Result<Facts> {
        let facts = |kind, size_bytes, time| Facts {
            inode,
            kind,
            size_bytes,
            data_bytes: size_bytes,
            time,
            writable: false,
            attr_ttl: FRESH,
            entry_ttl: FRESH,
        };
        match node {
            Node::Root => Ok(facts(Kind::Directory, 0, self.mounted_at)),
            Node::Job(job) => {
                let view = self.jobs.get(job.as_str())?.ok_or(Code::MISSING)?;
                let metadata = std::fs::metadata(view.job().dir()).map_err(|_| Code::MISSING)?;
                Ok(facts(Kind::Directory, 0, metadata.modified().unwrap_or(self.mounted_at)))
            }
            // Nothing is read of a disk until somebody looks into the directory of its parts.
            Node::Revision(job, id) | Node::Parts(job, id) => {
                let (_, _, revision) = self.revision(job.as_str(), id)?;
                Ok(facts(Kind::Directory, 0, system_time(revision.timestamp)))
            }
            Node::Link(..) => {
                let length = self.target(node)?.as_str().len() as u64;
                Ok(facts(Kind::Link, length, self.mounted_at))
            }
            Node::Part(job, id, name) => self.part_facts(inode, job, id, name),
            Node::File(job, id, RevisionFile::Info) => {
                let (view, tree, revision) = self.revision(job.as_str(), id)?;
                let length = tree.info_json(job, view.job().repository().id(), &revision).len() as u64;
                Ok(facts(Kind::File, length, system_time(revision.timestamp)))
            }
            Node::File(job, id, RevisionFile::Image) => {
                // Who has it open may ask after the revision was forgotten.
                let revision = match self.handles.disk(inode) {
                    Some(disk) => Arc::clone(&disk.revision),
                    None => self.revision(job.as_str(), id)?.2,
                };
                let size = revision.image_size.unwrap_or(0);
                // Where the manifest does not say it, the holes are counted only for those who open the image.
                let count = || self.handles.data_bytes(inode, inode, &Window::whole(size));
                let (data_bytes, attr_ttl) =
                    self.data_bytes(job, id, size, revision.data_bytes.or_else(count));
                Ok(Facts {
                    data_bytes,
                    writable: self.overlay.is_some(),
                    attr_ttl,
                    entry_ttl: FOREVER,
                    ..facts(Kind::File, size, system_time(revision.timestamp))
                })
            }
        }
    }

    /// Returns how many bytes of a file are not in holes, and how long the kernel may keep that. `counted` is what the
    /// revision has of them; until somebody can count it the kernel must ask again.
    pub(crate) fn data_bytes(
        &self,
        job: &JobName,
        id: &RevisionId,
        size_bytes: u64,
        counted: Option<u64>,
    ) -> (u64, Duration) {
        let Some(counted) = counted else { return (size_bytes, Duration::ZERO) };
        let Some(overlay) = &self.overlay else { return (counted, FOREVER) };
        // What was written may lie in holes or not: rather too much is told than too little, for there are tools that
        // do not read a file without blocks.
        let bytes = counted.saturating_add(overlay.written_bytes(job, id));
        (bytes.min(size_bytes), FRESH)
    }

    /// Lists a directory.
    pub(crate) fn list(&self, inode: u64, node: &Node) -> Result<Arc<Vec<DirectoryEntry>>> {
        let entry = |node: Node, kind, name: &str| DirectoryEntry {
            inode: self.inodes.number(node),
            kind,
            name: name.to_owned(),
        };
        let dot = |inode, name: &str| DirectoryEntry { inode, kind: Kind::Directory, name: name.to_owned() };
        let dots = |parent| [dot(inode, "."), dot(parent, "..")].into_iter();
        let (parent, entries): (u64, Vec<DirectoryEntry>) = match node {
            Node::Root => {
                let jobs = self.jobs.list()?;
                let entries = jobs
                    .iter()
                    .map(|(name, view)| entry(Node::Job(view.job().name().clone()), Kind::Directory, name));
                (ROOT, entries.collect())
            }
            Node::Job(job) => {
                let (_, tree) = self.job(job.as_str())?;
                let entries = tree.iter().map(|(name, found)| match found {
                    Entry::Revision(revision) => {
                        entry(Node::Revision(job.clone(), revision.id.clone()), Kind::Directory, name)
                    }
                    Entry::Link(_) => entry(Node::Link(job.clone(), name.to_owned()), Kind::Link, name),
                });
                // It can be long, and anybody may have it open many times.
                return Ok(tree.listing(|| dots(ROOT).chain(entries).collect()));
            }
            Node::Revision(job, id) => {
                self.revision(job.as_str(), id)?;
                let entries = RevisionFile::ALL
                    .into_iter()
                    .map(|file| entry(Node::File(job.clone(), id.clone(), file), Kind::File, file.name()))
                    .chain([entry(Node::Parts(job.clone(), id.clone()), Kind::Directory, PARTS)]);
                (self.inodes.number(Node::Job(job.clone())), entries.collect())
            }
            Node::Parts(job, id) => {
                let parent = self.inodes.number(Node::Revision(job.clone(), id.clone()));
                (parent, self.list_parts(job, id)?)
            }
            Node::Link(..) | Node::File(..) | Node::Part(..) => return Err(Code::NOT_A_DIRECTORY),
        };
        Ok(Arc::new(dots(parent).chain(entries).collect()))
    }
}

/// Converts without a panic at either end of time.
pub(crate) fn system_time(at: Timestamp) -> SystemTime {
    let distance = Duration::from_micros(at.as_micros().unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if at.as_micros() < 0 { epoch.checked_sub(distance) } else { epoch.checked_add(distance) };
    time.unwrap_or(epoch)
}
