//! The place `rbd:POOL/IMAGE` of `backy restore --to`: a new image, written where the revision has data and nowhere else.
//!
//! All threads decode and feed one `rbd import-diff`, which writes many objects at once; it was measured to be quicker than
//! writing from each thread through librbd, which is done where the job says `read-with: librbd`. The image is written under
//! another name and renamed when it is whole, so nobody can take a half restored disk for a good one; what could not be
//! finished is removed again. With `force` an image without snapshots gives up its name at that moment. What is whole and
//! cannot be given its name stays and is named: the image that it replaces may be gone.
//!
//! The other name is noted in the store before the image is made, so that what a killed restore leaves is found
//! (`leftovers`). Without a note, as on a store that cannot be written, a restore works as well.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backy_librbd::{Cluster, Image};
use backy_store::restore::ImageTarget;
use backy_store::{Monitor, Repository, RestoreNote, RevisionId, Silent};

use super::Environment;
use super::command::Running;
use super::diff::DiffWriter;
use super::error::RbdError;
use super::leftovers::{self, remove_note};
use super::tool::RbdTool;
use crate::error::{Error, Result};
use crate::source::{RbdConfig, ReadWith};

/// Where to restore to.
#[derive(Clone, Debug)]
pub struct RbdTarget {
    /// Pool, image, and how to reach the cluster.
    pub config: RbdConfig,
    /// Whether an existing image is replaced.
    pub force: bool,
}

impl RbdTarget {
    /// Reads `POOL/IMAGE` or `POOL/NAMESPACE/IMAGE`.
    pub fn parse(name: &str, force: bool) -> Result<Self> {
        let parts: Vec<&str> = name.split('/').collect();
        let is_name =
            |part: &&str| !part.is_empty() && !part.starts_with('-') && !part.contains(['@', '\0', ' ']);
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(is_name) {
            return Err(RbdError::Name { name: name.to_owned() }.into());
        }
        let (image, pool) = parts.split_last().expect("there are two parts at least");
        let config = RbdConfig { pool: pool.join("/"), image: (*image).to_owned(), ..RbdConfig::default() };
        Ok(Self { config, force })
    }

    /// The program for the image.
    pub(super) fn tool(&self, environment: &Environment) -> RbdTool {
        let config = &self.config;
        let limit = Duration::from_secs(config.timeout_secs);
        RbdTool::new(environment.rbd(), &environment.access(config), limit, &config.pool, &config.image)
    }
}

/// Makes the image and opens it for an image of `size_bytes`. The note of it goes into `store`.
pub fn open_target<'m>(
    target: &RbdTarget,
    environment: &Environment,
    store: &Repository,
    size_bytes: u64,
    monitor: &'m dyn Monitor,
) -> Result<Box<dyn ImageTarget + 'm>> {
    let config = &target.config;
    let limit = Duration::from_secs(config.timeout_secs);
    let tool = target.tool(environment);
    let replaces = match tool.info(None, monitor) {
        Err(Error::Rbd(RbdError::Missing { .. })) => false,
        Err(error) => return Err(error),
        Ok(_) if !target.force => return Err(RbdError::Exists { image: tool.spec(None) }.into()),
        Ok(_) => true,
    };
    if replaces {
        check_replaceable(&tool, monitor)?;
    }
    let made = Made::create(tool, replaces, store, size_bytes, monitor)?;
    let access = environment.access(config);
    let access = access.or_arguments(environment.ceph_args.as_deref().unwrap_or_default());
    if config.read_with == ReadWith::Librbd {
        let opened = Cluster::connect(&access, limit)
            .and_then(|cluster| cluster.open_writable(&config.pool, &made.tool.image));
        let image = opened.map_err(|source| {
            let image = made.tool.spec(None);
            Error::from(RbdError::Library { doing: "open", image, source })
        })?;
        return Ok(Box::new(LibraryTarget { image: Some(image), made }));
    }
    let writer = start_import(&made.tool, size_bytes, monitor)?;
    Ok(Box::new(ProgramTarget { writer: Mutex::new(Some(writer)), made }))
}

/// Fails when something hangs on the image that is in the way.
fn check_replaceable(tool: &RbdTool, monitor: &dyn Monitor) -> Result<()> {
    let snapshots = tool.snapshots(monitor)?;
    if let Some(first) = snapshots.first() {
        let problem = format!("it has {} snapshots, one of them {}", snapshots.len(), first.name);
        return Err(RbdError::Unfit { image: tool.spec(None), problem }.into());
    }
    Ok(())
}

fn start_import<'m>(
    tool: &RbdTool,
    size_bytes: u64,
    monitor: &'m dyn Monitor,
) -> Result<DiffWriter<Giving<'m>>> {
    let mut running = tool.start_import(monitor)?;
    running.prepare_to_give()?;
    let command = running.command.clone();
    DiffWriter::new(Giving(running), size_bytes).map_err(|error| given(&command, error))
}

fn given(command: &str, error: io::Error) -> Error {
    error
        .downcast::<Error>()
        .unwrap_or_else(|source| RbdError::Pipe { command: command.to_owned(), source }.into())
}

/// A running program as a writer.
struct Giving<'m>(Running<'m>);

impl io::Write for Giving<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.give(data).map(|()| data.len()).map_err(io::Error::other)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The image that was made here under another name; removed again unless it is whole.
struct Made {
    tool: RbdTool,
    wanted: RbdTool,
    replaces: bool,
    is_whole: bool,
    /// Locked as long as this is here or one of our programs runs.
    note: Option<RestoreNote>,
}

impl Made {
    /// Makes an empty image, noted first.
    fn create(
        wanted: RbdTool,
        replaces: bool,
        store: &Repository,
        size_bytes: u64,
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let id = RevisionId::random()?;
        let tool = wanted.of_image(leftovers::unfinished_name(&wanted.image, &id));
        let note = store.note_restore(&id, &tool.spec(None));
        let note = note
            .inspect_err(|error| tracing::warn!(error = crate::error::in_full(&error), "restore-not-noted"))
            .ok();
        match tool.create_image(size_bytes, monitor) {
            Ok(()) => Ok(Self { tool, wanted, replaces, is_whole: false, note }),
            // There is certainly no image of ours. Otherwise it may be there or come yet, whatever `rbd` said: the note
            // stays, and the next restore removes what it names.
            Err(error @ Error::Rbd(RbdError::PoolMissing { .. } | RbdError::Exists { .. })) => {
                remove_note(note);
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the image, which is whole and not open, its name. If that fails, it stays, and its note, too.
    fn publish(&mut self) -> io::Result<()> {
        self.is_whole = true;
        let publish = || {
            if self.replaces {
                self.wanted.remove_image(&Silent)?;
            }
            self.tool.rename_image(&self.wanted, &Silent)
        };
        if let Err(error) = publish() {
            let (image, wanted) = (self.tool.spec(None), self.wanted.spec(None));
            let command = self.tool.command(&["rename", &image, &wanted]).join(" ");
            tracing::warn!(%image, command, "whole-image-not-renamed");
            return Err(io::Error::other(error));
        }
        remove_note(self.note.take());
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.is_whole {
            return;
        }
        match self.tool.remove_image(&Silent) {
            Ok(()) => remove_note(self.note.take()),
            Err(error) => {
                tracing::warn!(image = %self.tool.spec(None), error = crate::error::in_full(&error), "unfinished-image-not-removed");
            }
        }
    }
}

struct LibraryTarget {
    /// `None` once it was closed: an image is removed only when nobody has it open.
    image: Option<Image>,
    made: Made,
}

impl LibraryTarget {
    fn on_image(
        &self,
        act: impl FnOnce(&Image) -> std::result::Result<(), backy_librbd::CephError>,
    ) -> io::Result<()> {
        let image = self.image.as_ref().expect("it is open until it is dropped");
        act(image).map_err(io::Error::other)
    }
}

impl ImageTarget for LibraryTarget {
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.on_image(|image| image.write_at(offset, data))
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.on_image(Image::flush)?;
        drop(self.image.take());
        self.made.publish()
    }
}

impl Drop for LibraryTarget {
    fn drop(&mut self) {
        // Before `made` is dropped.
        drop(self.image.take());
    }
}

struct ProgramTarget<'m> {
    writer: Mutex<Option<DiffWriter<Giving<'m>>>>,
    made: Made,
}

impl ImageTarget for ProgramTarget<'_> {
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *writer {
            Some(writer) => writer.data(offset, data),
            None => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        }
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writer) = writer else { return Err(io::Error::from(io::ErrorKind::BrokenPipe)) };
        let Giving(running) = writer.finish()?;
        running.finish().and_then(super::command::Finished::success).map_err(io::Error::other)?;
        self.made.publish()
    }
}

impl Drop for ProgramTarget<'_> {
    fn drop(&mut self) {
        // The program must not have the image open when `made` removes it.
        drop(self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_pool_and_image() {
        let target = RbdTarget::parse("rbd/new", false).unwrap();
        assert_eq!((target.config.pool.as_str(), target.config.image.as_str()), ("rbd", "new"));
        assert_eq!(RbdTarget::parse("a/b/c", true).unwrap().config.pool, "a/b");
        for name in ["", "rbd", "/x", "rbd/", "rbd/x@y", "-p/x", "a/b/c/d", "rbd/x y"] {
            assert!(RbdTarget::parse(name, false).is_err(), "{name:?}");
        }
    }
}
