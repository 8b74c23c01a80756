//! Threads in which images are synced: a sync waits for the disk, and the kernel's other questions must not wait with it.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::Builder;

use crate::mutex::lock;

/// How many disks are synced at once; others wait.
const THREADS: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end when this is dropped and what was given to them is done.
#[derive(Debug)]
pub(crate) struct Syncers {
    /// Never holds more than the processes that wait for a sync.
    jobs: Sender<Job>,
}

impl Syncers {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (jobs, waiting) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..THREADS {
            let waiting = Arc::clone(&waiting);
            Builder::new().name("sync".to_owned()).spawn(move || work(&waiting))?;
        }
        Ok(Self { jobs })
    }

    /// Does something soon. Returns at once.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The threads end only after this.
        drop(self.jobs.send(Box::new(job)));
    }
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    loop {
        let job = lock(waiting).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_waits_holds_up_no_other() {
        let syncers = Syncers::start().unwrap();
        let ((blocker, blocked), (done, dones)) = (channel::<()>(), channel());
        let first = done.clone();
        syncers.run(move || {
            blocked.recv().unwrap();
            first.send(1).unwrap();
        });
        syncers.run(move || done.send(2).unwrap());
        assert_eq!(dones.recv(), Ok(2));
        drop(syncers);
        blocker.send(()).unwrap();
        assert_eq!(dones.recv(), Ok(1));
    }
}
