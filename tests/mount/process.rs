//! The mount of a world of the testkit, by a process in the foreground.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use backy_testkit::World;

use crate::{eventually, path};

/// The mounting process. Dropping it takes the mount away at once.
pub(crate) struct Mount {
    child: Child,
    pub(crate) point: PathBuf,
    said: PathBuf,
}

impl Mount {
    /// Mounts the store with more arguments, and waits until it is there.
    pub(crate) fn new(world: &World, arguments: &[&str]) -> Self {
        let (point, said) = (world.path("mnt"), world.path("said"));
        fs::create_dir_all(&point).expect("a mount point is made");
        let mut command = world.bare(&["-b", "srv", "mount"]);
        command.args(arguments).arg(path(&point)).stdin(Stdio::null());
        command.stderr(File::create(&said).expect("a file is made"));
        let this = Self { child: command.spawn().expect("the program starts"), point, said };
        eventually("it is mounted", || fs::read_dir(&this.point).is_ok_and(|mut jobs| jobs.next().is_some()));
        this
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Unmounts; the process must end well. Returns what it said on standard error.
    pub(crate) fn finish(mut self) -> String {
        drop(Command::new("kill").args(["-TERM", &self.pid().to_string()]).status());
        // It waits for those who have files open: a test that forgot to close one fails.
        eventually("it ends", || !Path::new(&format!("/proc/{}/exe", self.pid())).exists());
        let status = backy_testkit::ended(&mut self.child);
        let said = fs::read_to_string(&self.said).expect("it is text");
        assert!(status.success() && !said.contains("panicked"), "{status}: {said}");
        said
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.point).stderr(Stdio::null()).output());
        backy_testkit::end(&mut self.child);
    }
}
