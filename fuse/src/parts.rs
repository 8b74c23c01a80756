//! The directory `parts` of a revision: a file for each partition and each linear logical volume, and `parts.json`,
//! which describes them.
//!
//! A disk is looked at when somebody looks into the directory, not before, and once: a revision never changes.
//! Only where bytes could not be read it is looked at again each time, for a backup may heal them; what was found
//! nevertheless is shown, and when that is nothing the directory cannot be read.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};

use backy_store::{JobName, Revision, RevisionId};
use lru::LruCache;

use crate::disk::{Disk, DiskFile};
use crate::errno::Code;
use crate::handles::{COUNTED_MAX_BYTES, DirectoryEntry, Kind, Open};
use crate::inode::Node;
use crate::mutex::lock;
use crate::partition::{self, Layout, Probe};
use crate::tree::RevisionFile;
use crate::view::{FOREVER, FRESH, Facts, Result, View, system_time};

/// Name of the directory.
pub(crate) const PARTS: &str = "parts";

/// Name of the file that describes the others.
const DESCRIPTION: &str = "parts.json";

/// Most layouts kept.
const LAYOUTS_MAX: usize = 1000;

/// Most memory of the layouts kept, in their own measure: about 50 MB. Normal ones are far below it.
const WEIGHT_MAX: usize = 1 << 20;

/// Most revisions whose findings were logged and are not logged again.
const LOGGED_MAX: usize = 100_000;

type Key = (JobName, RevisionId);

/// The layouts that were looked at last.
#[derive(Debug)]
pub(crate) struct Layouts(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    layouts: LruCache<Key, Arc<Layout>>,
    weight: usize,
    logged: HashSet<Key>,
}

impl Layouts {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Kept { layouts: LruCache::unbounded(), weight: 0, logged: HashSet::new() }))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.0)
    }

    fn get(&self, key: &Key) -> Option<Arc<Layout>> {
        self.kept().layouts.get(key).cloned()
    }

    fn keep(&self, key: Key, layout: &Arc<Layout>) {
        let mut kept = self.kept();
        kept.weight += layout.weight();
        if let Some((_, replaced)) = kept.layouts.push(key, Arc::clone(layout)) {
            kept.weight = kept.weight.saturating_sub(replaced.weight());
        }
        while kept.layouts.len() > LAYOUTS_MAX || kept.weight > WEIGHT_MAX {
            let Some((_, oldest)) = kept.layouts.pop_lru() else { return };
            kept.weight = kept.weight.saturating_sub(oldest.weight());
        }
    }

    /// Logs what is odd about a disk, once in a mount.
    fn log(&self, key: &Key, layout: &Layout) {
        let mut kept = self.kept();
        if layout.findings.is_empty() || kept.logged.len() >= LOGGED_MAX || !kept.logged.insert(key.clone()) {
            return;
        }
        for finding in &layout.findings {
            tracing::warn!(job = %key.0, revision = %key.1, "partitions: {finding}");
        }
    }
}

impl View {
    fn image_inode(&self, job: &JobName, id: &RevisionId) -> u64 {
        self.inodes.number(Node::File(job.clone(), id.clone(), RevisionFile::Image))
    }

    /// Returns what the disk of a revision is divided into.
    fn layout(&self, job: &JobName, id: &RevisionId) -> Result<(Arc<Revision>, Arc<Layout>)> {
        let image = self.image_inode(job, id);
        let key = (job.clone(), id.clone());
        // Who has it open may ask after the revision was forgotten.
        let disk = match self.handles.disk(image) {
            Some(disk) => disk,
            None => {
                let (view, _, revision) = self.revision(job.as_str(), id)?;
                if let Some(layout) = self.layouts.get(&key) {
                    return Ok((revision, layout));
                }
                self.open_disk(image, &view, &revision)?
            }
        };
        let revision = Arc::clone(&disk.revision);
        if let Some(layout) = self.layouts.get(&key) {
            return Ok((revision, layout));
        }
        let layout = Arc::new(self.look_at(&disk)?);
        self.layouts.log(&key, &layout);
        if !layout.is_unreadable {
            self.layouts.keep(key, &layout);
        }
        Ok((revision, layout))
    }

    fn look_at(&self, disk: &Disk) -> Result<Layout> {
        let failed = RefCell::new(None);
        let read = |offset: u64, out: &mut [u8]| {
            let read = disk.reader.read_at(offset, out);
            self.damage.avoided(disk);
            match read {
                Ok(length) => length == out.len(),
                Err(error) => {
                    self.damage.met(disk, offset, &error);
                    failed.replace(Some(error));
                    false
                }
            }
        };
        let mut layout = partition::read(Probe::new(disk.size_bytes(), &read));
        count_data(disk, &mut layout);
        match failed.take() {
            Some(error) if layout.parts.is_empty() => Err(error.into()),
            _ => Ok(layout),
        }
    }

    /// Lists the directory, without the entries that every directory has.
    pub(crate) fn list_parts(&self, job: &JobName, id: &RevisionId) -> Result<Vec<DirectoryEntry>> {
        let (_, layout) = self.layout(job, id)?;
        let names = layout.parts.iter().map(|part| Arc::clone(&part.file_name));
        let entry = |name: Arc<str>| DirectoryEntry {
            kind: Kind::File,
            name: (*name).to_owned(),
            inode: self.inodes.number(Node::Part(job.clone(), id.clone(), name)),
        };
        Ok(names.chain([DESCRIPTION.into()]).map(entry).collect())
    }

    /// Finds a name in the directory.
    pub(crate) fn part(&self, job: &JobName, id: &RevisionId, name: &str) -> Result<Node> {
        let (_, layout) = self.layout(job, id)?;
        let is_there = name == DESCRIPTION || layout.part(name).is_some();
        is_there.then(|| Node::Part(job.clone(), id.clone(), name.into())).ok_or(Code::MISSING)
    }

    /// Returns what a file of the directory is at the moment.
    pub(crate) fn part_facts(&self, inode: u64, job: &JobName, id: &RevisionId, name: &str) -> Result<Facts> {
        let (revision, layout) = self.layout(job, id)?;
        let facts = |size_bytes| Facts {
            inode,
            kind: Kind::File,
            size_bytes,
            data_bytes: size_bytes,
            writable: false,
            time: system_time(revision.timestamp),
            attr_ttl: FRESH,
            entry_ttl: FRESH,
        };
        if name == DESCRIPTION {
            return Ok(facts(layout.to_json().len() as u64));
        }
        let part = layout.part(name).ok_or(Code::MISSING)?;
        let count = || self.handles.data_bytes(inode, self.image_inode(job, id), &part.window);
        // It is not kept where the part may have another place the next time.
        let counted = part.data_bytes.or_else(|| if layout.is_unreadable { None } else { count() });
        let size = part.window.size_bytes();
        let (data_bytes, attr_ttl) = self.data_bytes(job, id, size, counted);
        Ok(Facts {
            data_bytes,
            writable: self.overlay.is_some(),
            attr_ttl: if layout.is_unreadable { attr_ttl.min(FRESH) } else { attr_ttl },
            entry_ttl: if layout.is_unreadable { FRESH } else { FOREVER },
            ..facts(size)
        })
    }

    /// Opens a file of the directory, and says whether it will be the same the next time: what was found although
    /// bytes could not be read may have another place when they are healed.
    pub(crate) fn open_part(&self, job: &JobName, id: &RevisionId, name: &str) -> Result<(Open, bool)> {
        let (view, _, revision) = self.revision(job.as_str(), id)?;
        let (_, layout) = self.layout(job, id)?;
        if name == DESCRIPTION {
            return Ok((Open::Text(Arc::new(layout.to_json())), false));
        }
        let window = layout.part(name).ok_or(Code::MISSING)?.window.clone();
        let disk = self.open_disk(self.image_inode(job, id), &view, &revision)?;
        Ok((Open::Disk(Arc::new(DiskFile::new(disk, window, &self.ahead))), !layout.is_unreadable))
    }
}

/// Counts what is data of each part while the disk is open, so that the first question gets the right answer. Parts
/// may lie over each other in their thousands: what goes beyond the bound for all of them is counted when it is opened.
fn count_data(disk: &Disk, layout: &mut Layout) {
    let mut left = COUNTED_MAX_BYTES;
    for part in &mut layout.parts {
        let Some(rest) = left.checked_sub(part.window.size_bytes()) else { continue };
        left = rest;
        part.data_bytes = disk.data_bytes(&part.window).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        (JobName::parse("web01").unwrap(), RevisionId::parse(&format!("r{number}")).unwrap())
    }

    #[test]
    fn the_layouts_kept_have_a_bound() {
        let layouts = Layouts::new();
        let empty = Arc::new(Layout::default());
        layouts.keep(key(0), &empty);
        layouts.keep(key(0), &empty);
        assert_eq!(layouts.kept().weight, empty.weight());
        (1..LAYOUTS_MAX + 1).for_each(|number| layouts.keep(key(number), &empty));
        assert_eq!(layouts.kept().layouts.len(), LAYOUTS_MAX);
        assert_eq!(layouts.kept().weight, LAYOUTS_MAX * empty.weight());
        assert!(layouts.get(&key(0)).is_none() && layouts.get(&key(1)).is_some());
    }

    #[test]
    fn findings_are_logged_once() {
        let layouts = Layouts::new();
        let odd = Layout { findings: vec!["odd".to_owned()], ..Layout::default() };
        layouts.log(&key(0), &Layout::default());
        assert!(layouts.kept().logged.is_empty());
        layouts.log(&key(0), &odd);
        layouts.log(&key(0), &odd);
        assert_eq!(layouts.kept().logged.len(), 1);
    }
}
